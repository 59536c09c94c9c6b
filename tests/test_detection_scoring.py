"""Average precision and pictures of detections.

Numbers are worked out by hand, or compared with a plain reading of VOC's rule, with pycocotools' summary and
with real annotations.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as encoding
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from skips import shared

from reproduce.data.coco2017 import COCO2017
from reproduce.data.detection import Annotated, Box, Instance, Picture
from reproduce.data.imagenette import Imagenette
from reproduce.data.synthetic_detection import SyntheticCOCO2017, SyntheticVOC0712
from reproduce.data.voc0712 import VOC0712
from reproduce.detection import picture, scoring
from reproduce.detection.predictions import Predicted
from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.site import Site

pytestmark = pytest.mark.slow  # torchvision or pycocotools and pictures: seconds in all

SQUARE = (10.0, 10.0, 50.0, 50.0)
"""Box of 40 x 40 pixels, which COCO calls medium."""
OTHER = (100.0, 100.0, 140.0, 140.0)
FAR = (200.0, 10.0, 230.0, 40.0)
NEAR = (108.0, 100.0, 148.0, 140.0)
"""Box OTHER moved by 8 of its 40 pixels: they share 32 x 40 of 48 x 40. The overlap is 2/3, above .5, .55, .6
and .65 alone."""
ONE = pytest.approx(1, abs=1e-12)
"""One, up to the smallest number that pycocotools adds to each divisor."""
Found = tuple[float, int, Box]
"""Score, label and box of a detection."""


def found(
    image: int | str, *detections: Found, masks: Sequence[Mapping[str, Any]] | None = None
) -> Predicted:
    return Predicted(
        image,
        np.array([box for _, _, box in detections], np.float64).reshape(-1, 4),
        np.array([score for score, _, _ in detections], np.float64),
        np.array([label for _, label, _ in detections], np.int64),
        None if masks is None else tuple(masks),
    )


def annotated(
    *images: Sequence[Instance],
    classes: int = 1,
    folder: Path = Path("nowhere"),
    width: int = 240,
    height: int = 160,
) -> Annotated:
    """Return images 1, 2, ... with these objects. Category ids have gaps, as in COCO."""
    pictures = tuple(
        Picture(folder / f"{n}.png", n, width, height, tuple(each)) for n, each in enumerate(images, start=1)
    )
    names = tuple(f"class {label}" for label in range(classes))
    return Annotated(
        pictures, names, tuple(3 + 2 * label for label in range(classes)), folder / "instances.json", ""
    )


def written(folder: Path, *images: Sequence[Instance], classes: int = 1) -> Annotated:
    """Return the same with its instances.json.

    Each object has the polygon of its box, or its `segmentation` if it has one.
    """
    data = annotated(*images, classes=classes, folder=folder)
    rows = [(each, instance) for each in data.pictures for instance in each.instances]
    content = {
        "images": [
            {"id": each.id, "width": each.width, "height": each.height, "file_name": each.file.name}
            for each in data.pictures
        ],
        "categories": [
            {"id": number, "name": name} for number, name in zip(data.category_ids, data.classes, strict=True)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": each.id,
                "category_id": data.category_ids[instance.label],
                "bbox": [
                    *instance.box[:2],
                    instance.box[2] - instance.box[0],
                    instance.box[3] - instance.box[1],
                ],
                "area": (instance.box[2] - instance.box[0]) * (instance.box[3] - instance.box[1]),
                "iscrowd": int(instance.crowd),
                "segmentation": [outline(instance.box)]
                if instance.segmentation is None
                else instance.segmentation,
            }
            for number, (each, instance) in enumerate(rows, start=1)
        ],
    }
    data.origin.write_text(json.dumps(content))
    return data


def outline(box: Box) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def filled(box: Box, *, width: int = 240, height: int = 160) -> dict[str, Any]:
    """Return the mask of a box with whole pixels."""
    pixels = np.zeros((height, width), np.uint8, order="F")
    left, top, right, bottom = map(int, box)
    pixels[top:bottom, left:right] = 1
    encoded: dict[str, Any] = encoding.encode(pixels)
    return encoded


def scored(data: Annotated, kind: scoring.Kind, *detections: Sequence[Found]) -> scoring.Scores:
    """Return the scores of the detections of images 1, 2, ...; the mask of a detection is its box."""
    masks = [[filled(box) for _, _, box in each] if kind == "segm" else None for each in detections]
    return scoring.coco(
        data,
        [
            found(n, *each, masks=mask)
            for n, (each, mask) in enumerate(zip(detections, masks, strict=True), 1)
        ],
        kind,
    )


def as_found(data: Annotated) -> list[Predicted]:
    """Return the annotations as detections, without crowds, and with masks if there are any."""
    return [
        found(
            each.id,
            *((1.0, instance.label, instance.box) for instance in each.instances if not instance.crowd),
            masks=[
                encoding.merge(
                    encoding.frPyObjects(
                        [list(part) for part in instance.segmentation], each.height, each.width
                    )
                )
                for instance in each.instances
                if isinstance(instance.segmentation, list) and not instance.crowd
            ],
        )
        for each in data.pictures
    ]


# VOC


def test_voc_counts_by_hand() -> None:
    """Four objects. By descending score, detections are right, wrong, right.

    Recalls are 1/4, 1/4, 1/2, precisions 1, 1/2, 2/3.
    """
    data = annotated([Instance(0, SQUARE), Instance(0, OTHER)], [Instance(0, SQUARE)], [Instance(0, SQUARE)])
    predicted = [found(1, (0.9, 0, SQUARE), (0.7, 0, OTHER)), found(2, (0.8, 0, FAR))]
    eleven = scoring.voc(data, predicted)
    assert eleven[:3] == pytest.approx((5 / 11,) * 3)  # 1 at 0, .1, .2; 2/3 at .3, .4, .5; 0 beyond
    assert scoring.voc(data, predicted, rule="area").ap == pytest.approx(5 / 12)  # 1/4 x 1 + 1/4 x 2/3
    assert eleven.by_class == {"class 0": pytest.approx(5 / 11)}
    assert eleven.by_size == {}


def test_voc_takes_a_moved_box_up_to_its_overlap() -> None:
    """The second of two objects is found at 4 of 10 thresholds, where every detection is right.

    At the other thresholds, recall 1/2 is reached with precision 1.
    """
    data = annotated([Instance(0, SQUARE), Instance(0, OTHER)])
    predicted = [found(1, (0.9, 0, SQUARE), (0.8, 0, NEAR))]
    eleven, area = scoring.voc(data, predicted), scoring.voc(data, predicted, rule="area")
    assert (eleven.ap50, eleven.ap75, eleven.ap) == pytest.approx((1, 6 / 11, (4 + 6 * 6 / 11) / 10))
    assert (area.ap50, area.ap75, area.ap) == pytest.approx((1, 1 / 2, (4 + 6 / 2) / 10))


def test_voc_wants_more_than_the_threshold() -> None:
    """With 20 of 40 pixels, the overlap is exactly .5. One pixel more is enough.

    VOC's boxes include both ends.
    """
    data = annotated([Instance(0, SQUARE)])
    assert scoring.voc(data, [found(1, (0.9, 0, (10, 10, 30, 50)))]).ap50 == 0
    assert scoring.voc(data, [found(1, (0.9, 0, (10, 10, 31, 50)))]).ap50 == ONE


def test_voc_reads_the_precision_at_multiples_of_a_tenth_as_its_source_computes_them() -> None:
    """With 3 of 10 objects, 3 * .1 is slightly more than 3 / 10, so three points are reached, not four."""
    data = annotated(*([Instance(0, SQUARE)] for _ in range(10)))
    assert scoring.voc(data, [found(n, (0.9, 0, SQUARE)) for n in (1, 2, 3)]).ap50 == pytest.approx(3 / 11)


def test_voc_takes_an_object_once_and_the_second_detection_of_it_is_wrong() -> None:
    data = annotated([Instance(0, SQUARE), Instance(0, OTHER)])
    once = [(0.9, 0, SQUARE), (0.7, 0, OTHER)]
    assert scoring.voc(data, [found(1, *once)], rule="area").ap == ONE
    # Precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1.
    assert scoring.voc(data, [found(1, *once, (0.8, 0, SQUARE))], rule="area").ap == pytest.approx(
        1 / 2 + 1 / 2 * 2 / 3
    )
    # A detection belongs to the object that it overlaps most, even if that is taken and another would do.
    inside = annotated([Instance(0, (0, 0, 100, 100)), Instance(0, (0, 0, 100, 90))])
    again = [found(1, (0.9, 0, (0, 0, 100, 100)), (0.8, 0, (0, 0, 100, 99)))]
    assert scoring.voc(inside, again, rule="area").ap50 == pytest.approx(1 / 2)


def test_difficult_objects_count_neither_way_in_voc() -> None:
    data = annotated([Instance(0, SQUARE, difficult=True), Instance(0, OTHER)])
    both = found(1, (0.9, 0, SQUARE), (0.8, 0, SQUARE), (0.7, 0, OTHER))
    assert scoring.voc(data, [both]) == scoring.voc(data, [found(1, (0.7, 0, OTHER))])
    assert scoring.voc(data, [both]).ap == ONE
    assert scoring.voc(data, [found(1, (0.9, 0, SQUARE))]).ap == 0


def test_a_class_without_an_object_counts_as_0_in_voc_and_not_at_all_in_coco(tmp_path: Path) -> None:
    data = written(tmp_path, [Instance(0, SQUARE), Instance(1, OTHER, difficult=True, crowd=True)], classes=3)
    detections = [(0.9, 0, SQUARE), (0.8, 1, OTHER), (0.7, 2, FAR)]
    for rule in ("07", "area"):
        scores = scoring.voc(data, [found(1, *detections)], rule=rule)
        assert scores.by_class == {"class 0": ONE, "class 1": 0, "class 2": 0}
        assert scores[:3] == pytest.approx((1 / 3,) * 3)
    scores = scored(data, "bbox", detections)
    assert (scores.ap, scores.by_class["class 0"]) == (ONE, ONE)
    assert math.isnan(scores.by_class["class 1"])
    assert math.isnan(scores.by_class["class 2"])
    assert scoring.details(scores) == {"ap_class/class 0": ONE, "ap_size/medium": ONE}


def test_of_equal_scores_the_earlier_image_comes_first_whatever_the_order_of_the_predictions() -> None:
    """The wrong detection is in the second image, so the right one precedes it: precision 1."""
    data = annotated([Instance(0, SQUARE)], [])
    predicted = [found(1, (0.5, 0, SQUARE)), found(2, (0.5, 0, FAR))]
    assert scoring.voc(data, predicted).ap == scoring.voc(data, predicted[::-1]).ap == ONE
    assert scoring.voc(data, [found(1, (0.5, 0, FAR), (0.5, 0, SQUARE))]).ap == pytest.approx(1 / 2)


def naive_voc(data: Annotated, predicted: Sequence[Predicted], label: int, least: float, rule: str) -> float:
    """Apply the rule step by step: pixels from 1 with both ends inside, one detection after another.

    Recalls are sets.
    """
    objects = {each.id: [o for o in each.instances if o.label == label] for each in data.pictures}
    number = sum(not o.difficult for o in itertools.chain(*objects.values()))
    queue = [
        (s, p.id, b)
        for p in predicted
        for s, n, b in zip(p.scores, p.labels, p.boxes, strict=True)
        if n == label
    ]
    taken, right, points = set(), [], []
    for _, image, box in sorted(queue, key=lambda each: -each[0]):
        overlaps = [naive_overlap(box, o.box) for o in objects[image]]
        nearest = max(range(len(overlaps)), key=lambda n: overlaps[n], default=None)
        if nearest is None or overlaps[nearest] <= least:
            right.append(False)
        elif not objects[image][nearest].difficult:
            right.append((image, nearest) not in taken)
            taken.add((image, nearest))
        if right:
            points.append((sum(right) / number if number else 0.0, sum(right) / len(right)))
    if not number:
        return 0.0
    if rule == "07":
        return sum(max((p for r, p in points if r >= t), default=0.0) for t in np.arange(0, 1.1, 0.1)) / 11
    recalls = sorted({r for r, _ in points})
    return sum(
        (r - before) * max(p for q, p in points if q >= r)
        for before, r in zip([0.0, *recalls], recalls, strict=False)
    )


def naive_overlap(box: Sequence[float] | NDArray[np.float64], other: Sequence[float]) -> float:
    (x0, y0, x1, y1), (u0, v0, u1, v1) = box, other
    x0, y0, u0, v0 = x0 + 1, y0 + 1, u0 + 1, v0 + 1
    shared = max(min(x1, u1) - max(x0, u0) + 1, 0) * max(min(y1, v1) - max(y0, v0) + 1, 0)
    return shared / ((x1 - x0 + 1) * (y1 - y0 + 1) + (u1 - u0 + 1) * (v1 - v0 + 1) - shared)


@pytest.mark.parametrize("seed", range(3))
def test_voc_agrees_with_a_plain_reading_of_the_rule(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.integers(0, 60, (40, 4, 2)).astype(float)
    boxes = np.concatenate([corners, corners + random.integers(8, 40, corners.shape)], axis=2)
    labels, difficult = random.integers(0, 3, (40, 4)), random.random((40, 4)) < 0.3
    images = [
        [
            Instance(int(n), tuple(b), difficult=bool(d))
            for n, b, d in zip(labels[i], boxes[i], difficult[i], strict=True)
        ][: i % 5]
        for i in range(40)
    ]
    data = annotated(*images, classes=4)
    moved = np.repeat(boxes, 3, axis=1) + random.normal(0, 3, (40, 12, 4))
    moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
    changed = np.where(
        random.random((40, 12)) < 0.2, random.integers(0, 4, (40, 12)), np.repeat(labels, 3, axis=1)
    )
    predicted = [Predicted(i + 1, moved[i], random.random(12), changed[i]) for i in range(40) if i % 7]
    for rule in ("07", "area"):
        scores = scoring.voc(data, predicted, rule=rule)
        expected = np.array(
            [
                [naive_voc(data, predicted, label, t / 100, rule) for t in range(50, 100, 5)]
                for label in range(4)
            ]
        )
        assert list(scores.by_class.values()) == pytest.approx(expected.mean(axis=1).tolist(), abs=1e-12)
        assert scores[:3] == pytest.approx(
            (expected.mean(), expected[:, 0].mean(), expected[:, 5].mean()), abs=1e-12
        )
        assert 0.1 < scores.ap50 < 0.9


# COCO


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_counts_by_hand(tmp_path: Path, kind: scoring.Kind) -> None:
    """Of two objects, one is found exactly and one is found by a moved box.

    Precision is 1 at all recalls up to the overlap 2/3, which is above four thresholds, and at the 51 of 101
    recalls up to 1/2 at the others. A duplicate detection before the moved one makes that the third of three:
    2/3 at 50 recalls.
    """
    data = written(tmp_path, [Instance(0, SQUARE), Instance(0, OTHER)])
    scores = scored(data, kind, [(0.9, 0, SQUARE), (0.8, 0, NEAR)])
    assert (scores.ap50, scores.ap75) == pytest.approx((1, 51 / 101))
    assert (scores.ap, scores.by_class["class 0"], scores.by_size["medium"]) == pytest.approx(
        ((4 + 6 * 51 / 101) / 10,) * 3
    )
    assert math.isnan(scores.by_size["small"])
    assert math.isnan(scores.by_size["large"])
    twice = scored(data, kind, [(0.9, 0, SQUARE), (0.85, 0, SQUARE), (0.8, 0, NEAR)])
    assert (twice.ap50, twice.ap75) == pytest.approx(((51 + 50 * 2 / 3) / 101, 51 / 101))


def test_coco_measures_a_mask_by_its_own_area_and_not_by_its_box(tmp_path: Path) -> None:
    """The mask is the right half of the object's, in a box that is right.

    The box is found; the mask is found at no threshold above .5.
    """
    data = written(tmp_path, [Instance(0, SQUARE)])
    half = found(1, (0.9, 0, SQUARE), masks=[filled((30, 10, 50, 50))])
    assert scoring.coco(data, [half], "bbox").ap == ONE
    scores = scoring.coco(data, [half], "segm")
    assert (scores.ap50, scores.ap) == pytest.approx((1, 0.1))


def test_what_lies_in_a_crowd_counts_neither_way_in_coco(tmp_path: Path) -> None:
    crowd = {"size": [160, 240], "counts": [0, 160 * 240]}
    data = written(
        tmp_path, [Instance(0, SQUARE), Instance(0, (0.0, 0.0, 240.0, 160.0), crowd=True, segmentation=crowd)]
    )
    for kind in ("bbox", "segm"):
        assert scored(data, kind, [(0.95, 0, FAR), (0.9, 0, SQUARE)]).ap == ONE
        assert scored(data, kind, [(0.95, 0, FAR)]).ap == 0


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_to_find_nothing_is_an_average_precision_of_0(tmp_path: Path, kind: scoring.Kind) -> None:
    data = written(tmp_path, [Instance(0, SQUARE)], [], classes=2)
    for predicted in ([], [found(1), found(2, masks=[])]):
        scores = scoring.coco(data, predicted, kind)
        assert scores[:3] == (0, 0, 0)
        assert scores.by_class["class 0"] == scores.by_size["medium"] == 0
        assert math.isnan(scores.by_class["class 1"])
    assert scoring.voc(data, [])[:3] == scoring.voc(data, [found(2)])[:3] == (0, 0, 0)


def test_only_the_images_that_are_given_are_scored_whatever_else_the_file_holds(tmp_path: Path) -> None:
    data = written(tmp_path, [Instance(0, SQUARE)], [Instance(0, SQUARE)])
    assert scored(data, "bbox", [(0.9, 0, SQUARE)]).ap50 == pytest.approx(51 / 101)
    assert scored(replace(data, pictures=data.pictures[:1]), "bbox", [(0.9, 0, SQUARE)]).ap50 == ONE


def test_classes_keep_their_places_when_their_categories_come_in_another_order(tmp_path: Path) -> None:
    data = written(tmp_path, [Instance(0, SQUARE), Instance(1, OTHER)], classes=2)
    turned = replace(data, classes=data.classes[::-1], category_ids=data.category_ids[::-1])
    assert scored(data, "bbox", [(0.9, 1, OTHER)]).by_class == {"class 0": 0, "class 1": ONE}
    assert scored(turned, "bbox", [(0.9, 0, OTHER)]).by_class == {"class 0": 0, "class 1": ONE}


def test_an_object_without_a_polygon_is_scored_by_its_box_and_not_by_a_mask(tmp_path: Path) -> None:
    data = written(tmp_path, [Instance(0, SQUARE), Instance(0, OTHER, segmentation=[[1.0, 2.0, 3.0, 4.0]])])
    assert scored(data, "bbox", [(0.9, 0, SQUARE)]).ap50 == pytest.approx(51 / 101)
    assert scored(data, "segm", [(0.9, 0, SQUARE)]).ap50 == ONE


def test_coco_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scored(written(tmp_path, [Instance(0, SQUARE)]), "bbox", [(0.9, 0, SQUARE)])
    assert capfd.readouterr() == ("", "")


# Real annotations


@pytest.fixture(scope="module")
def photographs() -> Annotated:
    return COCO2017().load("val2017", Site(data={"coco": shared("coco")}))


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_annotations_of_real_photographs_as_detections_are_all_right(
    photographs: Annotated, kind: scoring.Kind
) -> None:
    scores = scoring.coco(photographs, as_found(photographs), kind)
    valid = [
        value
        for value in (*scores[:3], *scores.by_class.values(), *scores.by_size.values())
        if not math.isnan(value)
    ]
    assert len(valid) > 50
    assert valid == pytest.approx([1.0] * len(valid), abs=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_scores_are_those_that_pycocotools_sums_up(photographs: Annotated, kind: scoring.Kind) -> None:
    """Return the numbers of pycocotools' own reader of results, settings and summary.

    It has -1 where ours is NaN.
    """
    random = np.random.default_rng(0)
    predicted = [
        replace(
            each,
            scores=random.random(len(each.scores)),
            labels=np.where(random.random(len(each.labels)) < 0.2, 0, each.labels),
        )
        for each in as_found(photographs)
    ]
    truth = COCO(photographs.origin)
    rows = [
        {"image_id": each.id, "category_id": photographs.category_ids[label], "score": score}
        | ({"segmentation": mask} if kind == "segm" else {"bbox": [x0, y0, x1 - x0, y1 - y0]})
        for each in predicted
        for (x0, y0, x1, y1), score, label, mask in zip(
            each.boxes, each.scores, each.labels, each.masks or (), strict=True
        )
    ]
    reference = COCOeval(truth, truth.loadRes(rows), kind)
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    scores = scoring.coco(photographs, predicted, kind)
    assert [*scores[:3], *scores.by_size.values()] == pytest.approx(reference.stats[:6].tolist(), abs=1e-12)
    assert 0.2 < scores.ap < 0.95


def test_the_objects_of_voc_as_detections_are_all_right() -> None:
    root = shared("voc")
    data = VOC0712().load("2012_trainval", Site(data={"voc": root}))
    there = {
        instance.label for each in data.pictures for instance in each.instances if not instance.difficult
    }
    for rule in ("07", "area"):
        scores = scoring.voc(data, as_found(data), rule=rule)
        assert scores.by_class == {
            name: pytest.approx(float(label in there)) for label, name in enumerate(data.classes)
        }
        assert scores.ap == scores.ap75 == pytest.approx(len(there) / 20)


# Mistakes


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ([found(7, (0.9, 0, SQUARE))], "image 7, which is not one of the 1"),
        ([found(1), found(1)], "image 1 twice"),
        ([found(1, (0.9, 2, SQUARE))], "label 2: labels go from 0 to 1"),
        ([found(1, (0.9, -1, SQUARE))], "label -1"),
        ([found(1, (math.nan, 0, SQUARE))], "not finite"),
        ([found(1, (0.9, 0, (0, 0, math.inf, 5)))], "not finite"),
        ([found(1, (0.9, 0, (20, 0, 10, 5)))], "ends before it begins"),
    ],
)
def test_impossible_detections_are_refused(tmp_path: Path, predicted: list[Predicted], message: str) -> None:
    data = written(tmp_path, [Instance(0, SQUARE)], classes=2)
    with pytest.raises(ValueError, match=message):
        scoring.voc(data, predicted)
    with pytest.raises(ValueError, match=message):
        scoring.coco(data, predicted, "bbox")


def test_masks_of_another_size_and_missing_ones_are_refused(tmp_path: Path) -> None:
    data = written(tmp_path, [Instance(0, SQUARE)])
    turned = filled(SQUARE, width=160, height=240)
    with pytest.raises(ValueError, match="A mask of image 1 has 160 x 240 pixels, the image 240 x 160"):
        scoring.coco(data, [found(1, (0.9, 0, SQUARE), masks=[turned])], "segm")
    with pytest.raises(AssertionError, match="1 detections and 0 masks"):
        scoring.coco(data, [found(1, (0.9, 0, SQUARE))], "segm")


def test_annotations_that_cannot_be_scored_by_are_named(tmp_path: Path) -> None:
    data = written(tmp_path, [Instance(0, SQUARE)], [])
    content = json.loads(data.origin.read_text())
    first = content["annotations"][0]
    for change, message in [
        ({"images": content["images"][:1]}, "no image 2 .1 of 2"),
        ({"annotations": [{**first, "id": 0}]}, "different numbers from 1 on"),
        ({"annotations": [first, first]}, "different numbers from 1 on"),
    ]:
        data.origin.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=message):
            scoring.coco(data, [], "bbox")
    data.origin.write_text("{")
    with pytest.raises(ValueError, match=r"instances\.json is not a file of COCO's annotations"):
        scoring.coco(data, [], "bbox")
    data.origin.unlink()
    with pytest.raises(ValueError, match=r"instances\.json cannot be read \(No such file"):
        scoring.coco(data, [], "bbox")
    with pytest.raises(ValueError, match="cannot be scored without images"):
        scoring.voc(annotated(), [])


def test_numbers_are_logged_under_names_that_the_store_takes() -> None:
    classes = {**dict.fromkeys(COCO2017.classes, 0.25), **dict.fromkeys(VOC0712.classes, 0.5)}
    scores = scoring.Scores(0.1, 0.2, 0.3, classes | {"absent": math.nan}, {"small": 0.0, "large": math.nan})
    named = scoring.details(scores, "box_")
    assert named["box_ap_class/traffic light"] == 0.25
    assert named["box_ap_size/small"] == 0.0
    assert len(named) == len(classes) + 1
    assert all(re.fullmatch(r"[\w./ -]+", name, re.ASCII) for name in named)  # the names that MLflow allows


# Pictures


def drawn(tmp_path: Path, predicted: Sequence[Predicted], **options: Any) -> NDArray[np.uint8]:
    """Return two grey images of 64 x 48 pixels: the first without an object, the second with one."""
    data = annotated(
        [], [Instance(1, (8.0, 8.0, 24.0, 40.0))], classes=2, folder=tmp_path, width=64, height=48
    )
    for each in data.pictures:
        Image.new("RGB", (64, 48), (128, 128, 128)).save(each.file)
    path = picture.draw(data, predicted, tmp_path / "out" / "found.png", **options)
    assert [left.name for left in path.parent.iterdir()] == ["found.png"]
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def pixels_of(image: NDArray[np.uint8], colour: Sequence[int]) -> NDArray[np.intp]:
    """Return the rows and columns of coloured pixels, (n, 2)."""
    return np.argwhere((image == np.array(colour, np.uint8)).all(axis=2))


def test_a_picture_shows_each_detection_in_the_colour_of_its_class_where_it_is(tmp_path: Path) -> None:
    detection = (0.9, 1, (32.0, 16.0, 48.0, 32.0))
    image = drawn(tmp_path, [found(2, detection, (0.4, 0, (0.0, 0.0, 64.0, 48.0)))])
    scale, margin = picture.LONGER // 64, picture.MARGIN
    box = pixels_of(image, picture.colour(1)) - margin
    assert box[:, 1].min() == 32 * scale
    assert box[:, 0].max() == 32 * scale - 1
    assert not len(pixels_of(image, picture.colour(0)))  # its score is below the threshold
    assert len(pixels_of(image, picture.WHITE)) > 100  # the dashes of the annotations
    again = drawn(tmp_path, [found(2, detection)])
    assert (again == image).all()


def test_the_best_detection_is_drawn_where_all_are_doubtful_and_none_where_nothing_was_found(
    tmp_path: Path,
) -> None:
    doubtful = [found(2, (0.1, 0, (0.0, 0.0, 10.0, 10.0)), (0.3, 1, (32.0, 16.0, 48.0, 32.0)))]
    image = drawn(tmp_path, doubtful)
    assert len(pixels_of(image, picture.colour(1)))
    assert not len(pixels_of(image, picture.colour(0)))
    assert len(pixels_of(drawn(tmp_path, doubtful, threshold=0.05), picture.colour(0)))
    for nothing in ([], [found(2)]):
        assert not len(pixels_of(drawn(tmp_path, nothing), picture.colour(1)))


def test_a_mask_is_translucent(tmp_path: Path) -> None:
    box = (32.0, 16.0, 48.0, 32.0)
    image = drawn(tmp_path, [found(2, (0.9, 1, box), masks=[filled(box, width=64, height=48)])])
    middle = image[picture.MARGIN + 24 * picture.LONGER // 64, picture.MARGIN + 40 * picture.LONGER // 64]
    expected = [(1 - picture.OPACITY) * 128 + picture.OPACITY * part for part in picture.colour(1)]
    assert middle.tolist() == pytest.approx(expected, abs=1)


def test_classes_that_follow_each_other_differ_in_colour() -> None:
    colours = [picture.colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    assert all(
        max(abs(a - b) for a, b in zip(one, other, strict=True)) > 60
        for one, other in itertools.pairwise(colours)
    )


def test_a_picture_of_images_without_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No image has an object"):
        picture.draw(annotated([], []), [], tmp_path / "found.png")
    assert not list(tmp_path.iterdir())


# What fits together


@pytest.mark.parametrize(
    ("protocol", "dataset", "backbone", "said"),
    [
        (
            VOCDetection(),
            VOC0712(test_split="2007_test+2012_val"),
            "resnet50",
            "Detectron2 measures on a single list of VOC",
        ),
        (
            COCOMaskRCNN(),
            COCO2017(),
            "small",
            r"needs a ResNet .* not the backbone 'small': .*engine=torchvision",
        ),
        (COCOMaskRCNN(anchor_sizes=(32, 64)), COCO2017(), "resnet50", "one anchor size for each of 5 levels"),
        (VOCDetection(norm="LN"), VOC0712(), "resnet50", "norm is 'LN'"),
    ],
)
def test_what_detectron2_cannot_do_is_known_before_anything_starts(
    protocol: Any, dataset: Any, backbone: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        protocol.check_for(dataset, backbone)


def test_torchvision_takes_what_detectron2_does_not() -> None:
    VOCDetection(engine="torchvision").check_for(VOC0712(test_split="2007_test+2012_val"), "small")
    COCOMaskRCNN(engine="torchvision").check_for(SyntheticCOCO2017(), "small")


def test_a_benchmark_scores_its_own_data() -> None:
    kinds = (VOC0712, SyntheticVOC0712, COCO2017, SyntheticCOCO2017, Imagenette)
    assert [VOCDetection.accepts(kind) for kind in kinds] == [True, True, False, False, False]
    assert [COCOMaskRCNN.accepts(kind) for kind in kinds] == [False, False, True, True, False]
