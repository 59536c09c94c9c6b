"""Average precision of boxes and masks by the two benchmarks' own rules.

    scores = voc(images, predicted)                # VOC2007's, 11 points; rule="area": that of the later
    years scores = coco(images, predicted, "segm")       # COCO's, by pycocotools
    details(scores, "mask_")                       # {"mask_ap_class/person": .31, ..., "mask_ap_size/small":
    .08, ...}

On one core the 4 952 test images of VOC2007 with 100 detections each take less than a second, COCO's 5 000
two to three minutes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reproduce.data.detection import Annotated, Picture
from reproduce.detection.predictions import Predicted
from reproduce.messages import InvalidError

Rule = Literal["07", "area"]
Kind = Literal["bbox", "segm"]

OVERLAPS = tuple(percent / 100 for percent in range(50, 100, 5))
"""Both benchmarks': what a detection must share with an object to have found it, as a fraction of their
union."""
AT_50, AT_75 = OVERLAPS.index(0.5), OVERLAPS.index(0.75)
POINTS = np.arange(0, 1.1, 0.1)
"""Recalls at which VOC2007 reads the precision. The fourth, seventh and eighth are 3, 6 and 7 tenths plus a
rounding error, so a recall of 3 / 10 does not reach the fourth; the source computes them so, and so must
whoever compares with its numbers."""
SIZES = ("small", "medium", "large")
"""Of COCO's objects: up to 32 x 32 pixels, up to 96 x 96, above."""
MIN_COORDINATES = 6
"""Of a polygon: three points."""
ALL_SIZES, ALL_DETECTIONS = 0, -1
"""Where pycocotools keeps the precision over objects of all sizes, and that with 100 detections an image."""


class Scores(NamedTuple):
    """Average precisions as fractions; NaN where the benchmark has none."""

    ap: float
    ap50: float
    ap75: float
    by_class: Mapping[str, float]
    """`ap` of each class."""
    by_size: Mapping[str, float]
    """COCO: `ap` of small, medium and large objects; VOC: empty."""


def voc(images: Annotated, predicted: Sequence[Predicted], *, rule: Rule = "07") -> Scores:
    """VOC's average precision of boxes at OVERLAPS (facebookresearch/detectron2
    detectron2/evaluation/pascal_voc_evaluation.py).

    In each class detections are taken by falling score; of equal scores the one of the earlier image comes
    first, then the detector's own order. A detection belongs to the object of its image that it overlaps most
    (of equals the first annotated). It is right where the overlap is *above* the threshold and the object was
    not found before, does not count where that object is difficult, and is wrong otherwise. A class of which
    the images show no object, or difficult ones alone, has an average precision of 0.

    VOC's boxes count pixels from 1 and include both ends; ours begin one less and end in the same place, so
    that the plain area of an intersection here is the source's, which adds 1 to each side. The source writes
    boxes with one decimal and scores with three to a text file before it scores; here nothing is rounded.

    Args:
        images: all that are tested on.
        predicted: for each image at most once what was found there, in any order; an image without has no
            detections.
        rule: "07", the mean precision at the 11 recalls POINTS; "area", that below the whole curve.

    Raises:
        ValueError: an image that is not among `images` or is there twice, a label that is no class, a box or
            score that is not finite.
    """
    objects, detections = _objects(images), _detections(_in_order(images, predicted))
    table = np.array(  # (classes, overlaps)
        [
            _precisions(objects.at(objects.labels == label), detections.at(detections.labels == label), rule)
            for label in range(len(images.classes))
        ]
    )
    return Scores(
        ap=float(table.mean()),
        ap50=float(table[:, AT_50].mean()),
        ap75=float(table[:, AT_75].mean()),
        by_class=dict(zip(images.classes, table.mean(axis=1).tolist(), strict=True)),
        by_size={},
    )


def coco(images: Annotated, predicted: Sequence[Predicted], kind: Kind) -> Scores:
    """COCO's average precision of boxes or masks, by pycocotools (ppwwyyxx/cocoapi
    PythonAPI/pycocotools/cocoeval.py).

    Objects are those of `images.origin` in the images of `images`, crowds among them: whatever lies in a
    crowd counts neither way. Where nothing was found at all, a class with objects has an average precision of
    0, as in all other cases; Detectron2 gives none there.

    Args:
        images: all that are tested on.
        predicted: for each image at most once what was found there, in any order; an image without has no
            detections.
        kind: "bbox", or "segm", for which each detection needs a mask.

    Raises:
        ValueError: as in `voc`; a mask of another size than its image; a file of annotations that cannot be
            scored by.
    """
    results = [
        result
        for index, found in _in_order(images, predicted)
        for result in _results(images.pictures[index], found, images.category_ids, kind)
    ]
    precision = _coco_precision(images, results, kind)
    place = {category: index for index, category in enumerate(sorted(images.category_ids))}
    overall = precision[:, :, :, ALL_SIZES]
    return Scores(
        ap=_mean(overall),
        ap50=_mean(overall[AT_50]),
        ap75=_mean(overall[AT_75]),
        by_class={
            name: _mean(overall[:, :, place[category]])
            for name, category in zip(images.classes, images.category_ids, strict=True)
        },
        by_size={name: _mean(precision[:, :, :, number]) for number, name in enumerate(SIZES, start=1)},
    )


def details(scores: Scores, prefix: str = "") -> dict[str, float]:
    """The numbers by class and by size under the names by which they are logged; those that are NaN are left
    out.

    Args:
        prefix: of each name, such as `box_`, where boxes and masks are logged by the same run.
    """
    named = {f"{prefix}ap_class/{name}": value for name, value in scores.by_class.items()}
    named |= {f"{prefix}ap_size/{name}": value for name, value in scores.by_size.items()}
    return {name: value for name, value in named.items() if not math.isnan(value)}


def _in_order(images: Annotated, predicted: Sequence[Predicted]) -> list[tuple[int, Predicted]]:
    """(place in the pictures, what was found), in the pictures' order: whoever ran the detector cannot decide
    between equal scores."""
    place = {picture.id: index for index, picture in enumerate(images.pictures)}
    if not place:
        raise InvalidError("There is no image to score detections on.")
    found: dict[int, Predicted] = {}
    for each in predicted:
        if each.id not in place:
            raise InvalidError(
                f"Detections are given for image {each.id!r}, which is not one of the {len(place)} that are scored."
            )
        if place[each.id] in found:
            raise InvalidError(f"Detections are given for image {each.id!r} twice.")
        _check(each, len(images.classes))
        found[place[each.id]] = each
    return sorted(found.items())


def _check(found: Predicted, num_classes: int) -> None:
    num = len(found.scores)
    shapes = (found.boxes.shape, found.scores.shape, found.labels.shape)
    assert shapes == ((num, 4), (num,), (num,)), (
        f"boxes, scores and labels of image {found.id!r} have shapes {shapes}"
    )
    if not np.isfinite(found.boxes).all() or not np.isfinite(found.scores).all():
        raise InvalidError(
            f"A detection in image {found.id!r} has a box or a score that is not finite: the detector has diverged."
        )
    if (found.boxes[:, 2:] < found.boxes[:, :2]).any():
        raise InvalidError(
            f"A box in image {found.id!r} ends before it begins: left, top, right, bottom are expected."
        )
    wrong = found.labels[(found.labels < 0) | (found.labels >= num_classes)]
    if len(wrong):
        raise InvalidError(
            f"A detection in image {found.id!r} has the label {wrong[0]}: labels go from 0 to {num_classes - 1}."
        )


# VOC


class _Boxes(NamedTuple):
    """Of all images together."""

    places: NDArray[np.int64]
    """(n,), of the images."""
    labels: NDArray[np.int64]
    """(n,)."""
    boxes: NDArray[np.float64]
    """(n, 4), left, top, right, bottom in pixels."""
    difficult: NDArray[np.bool_]
    """(n,); no detection is."""

    def at(self, chosen: NDArray[Any]) -> _Boxes:
        """Some of them: by a mask, or in the order of their indices."""
        return _Boxes(self.places[chosen], self.labels[chosen], self.boxes[chosen], self.difficult[chosen])


def _objects(images: Annotated) -> _Boxes:
    """In the order of the images."""
    every = [
        (place, instance) for place, picture in enumerate(images.pictures) for instance in picture.instances
    ]
    return _Boxes(
        places=np.array([place for place, _ in every], np.int64),
        labels=np.array([instance.label for _, instance in every], np.int64),
        boxes=np.array([instance.box for _, instance in every], np.float64).reshape(-1, 4),
        difficult=np.array([instance.difficult for _, instance in every], np.bool_),
    )


def _detections(ordered: Sequence[tuple[int, Predicted]]) -> _Boxes:
    """By falling score; of equal ones the earlier image's, then the detector's earlier one."""
    scores = np.concatenate([np.empty(0), *(found.scores for _, found in ordered)])
    every = _Boxes(
        places=np.repeat([place for place, _ in ordered], [len(found.scores) for _, found in ordered]).astype(
            np.int64
        ),
        labels=np.concatenate([np.empty(0, np.int64), *(found.labels for _, found in ordered)]),
        boxes=np.concatenate([np.empty((0, 4)), *(found.boxes for _, found in ordered)]),
        difficult=np.zeros(len(scores), np.bool_),
    )
    return every.at(np.argsort(-scores, kind="stable"))


def _precisions(objects: _Boxes, detections: _Boxes, rule: Rule) -> list[float]:
    """The average precision of one class at each of OVERLAPS."""
    num_objects = int((~objects.difficult).sum())
    if not num_objects:
        return [0.0] * len(OVERLAPS)
    overlap, nearest = _nearest(objects, detections)
    return [
        _average_precision(_right(overlap > least, nearest, objects.difficult), num_objects, rule)
        for least in OVERLAPS
    ]


def _nearest(objects: _Boxes, detections: _Boxes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each detection the object of its image that it overlaps most, and by how much; 0 of any object
    where the image has none."""
    start, stop = (np.searchsorted(objects.places, detections.places, side) for side in ("left", "right"))
    num = stop - start
    detection = np.repeat(np.arange(len(num)), num)  # every pair of a detection and an object of its image
    other = np.arange(len(detection)) - np.repeat(np.cumsum(num) - num, num) + np.repeat(start, num)
    overlaps = _overlaps(detections.boxes[detection], objects.boxes[other])
    best_first = np.lexsort(
        (-overlaps, detection)
    )  # stable: of equal overlaps the object that was annotated first
    matched, first = np.unique(detection[best_first], return_index=True)
    overlap, nearest = np.zeros(len(num)), np.zeros(len(num), np.int64)
    overlap[matched], nearest[matched] = overlaps[best_first][first], other[best_first][first]
    return overlap, nearest


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each box with the other in its place; 0 where both have no area."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def _right(
    hit: NDArray[np.bool_], nearest: NDArray[np.int64], difficult: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the detections that count are right; those of a difficult object do not count.

    Args:
        hit: (detections,) by falling score, whether each overlaps its object enough.
        nearest: (detections,), that object.
        difficult: (objects,).
    """
    right = np.zeros(len(hit), np.bool_)
    candidates = np.flatnonzero(hit)
    _, first = np.unique(
        nearest[candidates], return_index=True
    )  # an object is found once, by the highest score
    right[candidates[first]] = True
    return right[~(hit & difficult[nearest])]


def _average_precision(right: NDArray[np.bool_], num_objects: int, rule: Rule) -> float:
    """Of detections by falling score; at each recall the best precision that is reached there or beyond."""
    found = np.cumsum(right)
    recall, precision = found / num_objects, found / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "area":
        return float(np.diff(recall, prepend=0) @ best)
    return float(np.append(best, 0)[np.searchsorted(recall, POINTS)].sum() / len(POINTS))


# COCO


def _results(
    picture: Picture, found: Predicted, category_ids: Sequence[int], kind: Kind
) -> list[dict[str, Any]]:
    """The detections of an image as a file of results has them (cocodataset.org, format-results)."""
    common = [
        {"image_id": picture.id, "category_id": category_ids[label], "score": score}
        for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    if kind == "bbox":
        sides = np.hstack([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]])
        return [{**each, "bbox": box} for each, box in zip(common, sides.tolist(), strict=True)]
    masks = found.masks or ()
    assert len(masks) == len(common), (
        f"image {found.id!r} has {len(common)} detections and {len(masks)} masks"
    )
    for mask in masks:
        if tuple(mask["size"]) != (picture.height, picture.width):
            given = (
                f"{mask['size'][1]} x {mask['size'][0]} pixels, the image {picture.width} x {picture.height}"
            )
            raise InvalidError(f"A mask of image {found.id!r} has {given}: both must be the same.")
    return [{**each, "segmentation": dict(mask)} for each, mask in zip(common, masks, strict=True)]


def _coco_precision(images: Annotated, results: list[dict[str, Any]], kind: Kind) -> NDArray[np.float64]:
    """(overlaps, 101 recalls, classes by category id, sizes: all and SIZES); -1 where there is no object."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = _truth(images, kind)
        evaluation = COCOeval(truth, truth.loadRes(results) if results else _nothing(truth), kind)
        evaluation.params.imgIds = [picture.id for picture in images.pictures]
        evaluation.params.catIds = list(images.category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    assert np.allclose(evaluation.params.iouThrs, OVERLAPS)
    precision: NDArray[np.float64] = evaluation.eval["precision"][..., ALL_DETECTIONS]
    return precision


def _truth(images: Annotated, kind: Kind) -> Any:
    """pycocotools' own view of the annotations; where masks are scored, of those that have one.

    Raises:
        ValueError: the file is no file of annotations, lacks one of the images, or its ids would be mistaken
            for one another.
    """
    from pycocotools.coco import COCO

    try:
        truth = COCO(str(images.origin))
    except OSError as error:
        raise InvalidError(
            f"{images.origin} cannot be read ({error.strerror}): the annotations to score by are expected there."
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError, AssertionError) as error:
        raise InvalidError(
            f"{images.origin} is not a file of COCO's annotations ({type(error).__name__}: {error})."
        ) from None
    lost = [picture.id for picture in images.pictures if picture.id not in truth.imgs]
    if lost:
        raise InvalidError(
            f"{images.origin} has no image {lost[0]!r} ({len(lost)} of {len(images.pictures)} are missing in it)."
        )
    if 0 in truth.anns or len(truth.anns) != len(truth.dataset["annotations"]):
        # pycocotools marks an object that was not found by the id 0, and keeps one object of each id.
        raise InvalidError(f"{images.origin}: the ids of annotations must be different numbers from 1 on.")
    if kind == "segm":
        masked = [
            {**each, "segmentation": _drawable(each["segmentation"])} for each in truth.dataset["annotations"]
        ]
        truth.dataset["annotations"] = [each for each in masked if each["segmentation"]]
        truth.createIndex()
    return truth


def _drawable(segmentation: Any) -> Any:
    """Without polygons of fewer than three points, on which pycocotools stops; the data set leaves them out,
    too."""
    return (
        segmentation
        if isinstance(segmentation, dict)
        else [polygon for polygon in segmentation if len(polygon) >= MIN_COORDINATES]
    )


def _nothing(truth: Any) -> Any:
    """Results without a detection, which pycocotools' own reader of results does not take."""
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _mean(precision: NDArray[np.float64]) -> float:
    """Over what there is; NaN where there is nothing."""
    valid = precision[precision > -1]
    return float(valid.mean()) if len(valid) else math.nan
