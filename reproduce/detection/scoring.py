"""Average precision of boxes and masks by the two benchmarks' own rules.

    scores = voc(images, predicted)             # VOC2007's, 11 points; rule="area" for the later years'
    scores = coco(images, predicted, "segm")    # COCO's, by pycocotools
    details(scores, "mask_")                    # {"mask_ap_class/person": .31, ...,
                                                #  "mask_ap_size/small": .08, ...}

On one core, the 4 952 test images of VOC2007 with 100 detections each take less than a second. COCO's 5 000
take two to three minutes.
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
"""Thresholds of both benchmarks: the overlap at which a detection finds an object, as intersection over
union."""
AT_50, AT_75 = OVERLAPS.index(0.5), OVERLAPS.index(0.75)
"""Indices of the thresholds .5 and .75."""
POINTS = np.arange(0, 1.1, 0.1)
"""Recalls at which VOC2007 reads the precision. The fourth, seventh and eighth are 3, 6 and 7 tenths plus a
rounding error, so a recall of 3 / 10 does not reach the fourth. The source computes them in this way, and
comparable numbers must do the same."""
SIZES = ("small", "medium", "large")
"""Sizes of COCO's objects: up to 32 x 32 pixels, up to 96 x 96, above."""
MIN_COORDINATES = 6
"""Minimum number of coordinates of a polygon: three points."""
ALL_SIZES, ALL_DETECTIONS = 0, -1
"""Indices into pycocotools' precision: objects of all sizes, and 100 detections per image."""


class Scores(NamedTuple):
    """Average precisions as fractions, NaN where the benchmark defines none."""

    ap: float
    ap50: float
    ap75: float
    by_class: Mapping[str, float]
    """Value of `ap` for each class."""
    by_size: Mapping[str, float]
    """Value of `ap` for small, medium and large objects on COCO. Empty on VOC."""


def voc(images: Annotated, predicted: Sequence[Predicted], *, rule: Rule = "07") -> Scores:
    """Return VOC's average precision of boxes at OVERLAPS.

    Source: facebookresearch/detectron2 detectron2/evaluation/pascal_voc_evaluation.py.

    In each class, detections are taken by descending score. Of those with equal scores, the detection of the
    earlier image comes first, then the detector's own order decides. A detection belongs to the object of its
    image that it overlaps most (of equal overlaps, the first annotated object). It is right if the overlap is
    *above* the threshold and the object was not found before. It does not count if that object is difficult,
    and is wrong otherwise. A class of which the images show only difficult objects, or none, has an average
    precision of 0.

    VOC's boxes count pixels from 1 and include both ends. Ours begin one lower and end at the same place. The
    plain area of an intersection here therefore equals the source's, which adds 1 to each side. The source
    writes boxes with one decimal and scores with three to a text file before scoring; nothing is rounded
    here.

    Args:
        images: all test images.
        predicted: detections, at most one entry per image, in any order. An image without an entry has no
            detections.
        rule: "07" for the mean precision at the 11 recalls POINTS, "area" for the area below the whole curve.

    Raises:
        ValueError: An entry's image is not among `images` or occurs twice, a label is not that of a class, or
            a box or score is not finite.
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
    """Return COCO's average precision of boxes or masks, by pycocotools.

    Source: ppwwyyxx/cocoapi PythonAPI/pycocotools/cocoeval.py.

    The objects are those of `images.origin` in the images of `images`, including crowds. Detections in a
    crowd count neither way. If nothing at all is detected, a class with objects has an average precision
    of 0, as in all other cases; Detectron2 has no value there.

    Args:
        images: all test images.
        predicted: detections, at most one entry per image, in any order. An image without an entry has no
            detections.
        kind: "bbox", or "segm", for which each detection needs a mask.

    Raises:
        ValueError: As in `voc`; or a mask differs from its image in size, or the file of annotations cannot
            be scored by.
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
    """Return the values by class and by size under their names in the log. NaNs are left out.

    Args:
        prefix: prefix of each name, such as `box_`, for runs that log both boxes and masks.
    """
    named = {f"{prefix}ap_class/{name}": value for name, value in scores.by_class.items()}
    named |= {f"{prefix}ap_size/{name}": value for name, value in scores.by_size.items()}
    return {name: value for name, value in named.items() if not math.isnan(value)}


def _in_order(images: Annotated, predicted: Sequence[Predicted]) -> list[tuple[int, Predicted]]:
    """Return (index of the picture, its detections) in the order of the pictures.

    The order in which a detector was run therefore cannot decide between equal scores.
    """
    place = {picture.id: index for index, picture in enumerate(images.pictures)}
    if not place:
        raise InvalidError("Detections cannot be scored without images: at least one is needed.")
    found: dict[int, Predicted] = {}
    for each in predicted:
        if each.id not in place:
            raise InvalidError(
                f"Detections are given for image {each.id!r}, "
                f"which is not one of the {len(place)} test images."
            )
        if place[each.id] in found:
            raise InvalidError(f"Detections are given for image {each.id!r} twice.")
        _check(each, len(images.classes))
        found[place[each.id]] = each
    return sorted(found.items())


def _check(found: Predicted, num_classes: int) -> None:
    """Raise ValueError for boxes, scores or labels that cannot be right."""
    num = len(found.scores)
    shapes = (found.boxes.shape, found.scores.shape, found.labels.shape)
    assert shapes == ((num, 4), (num,), (num,)), (
        f"boxes, scores and labels of image {found.id!r} have shapes {shapes}"
    )
    if not np.isfinite(found.boxes).all() or not np.isfinite(found.scores).all():
        raise InvalidError(
            f"A detection in image {found.id!r} has a box or a score that is not finite: "
            "the detector has diverged."
        )
    if (found.boxes[:, 2:] < found.boxes[:, :2]).any():
        raise InvalidError(
            f"A box in image {found.id!r} ends before it begins: left, top, right, bottom are expected."
        )
    wrong = found.labels[(found.labels < 0) | (found.labels >= num_classes)]
    if len(wrong):
        raise InvalidError(
            f"A detection in image {found.id!r} has the label {wrong[0]}: "
            f"labels go from 0 to {num_classes - 1}."
        )


# VOC


class _Boxes(NamedTuple):
    """Boxes of all images together."""

    places: NDArray[np.int64]
    """Indices of the images, (n,)."""
    labels: NDArray[np.int64]
    """Labels, (n,)."""
    boxes: NDArray[np.float64]
    """Boxes, (n, 4): left, top, right, bottom in pixels."""
    difficult: NDArray[np.bool_]
    """Flags of difficult objects, (n,). False for detections."""

    def at(self, chosen: NDArray[Any]) -> _Boxes:
        """Return a selection, by a mask or in the order of these indices."""
        return _Boxes(self.places[chosen], self.labels[chosen], self.boxes[chosen], self.difficult[chosen])


def _objects(images: Annotated) -> _Boxes:
    """Return the annotated objects in the order of the images."""
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
    """Return the detections by descending score.

    Of those with equal scores, the earlier image's comes first, then the detector's earlier one.
    """
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
    """Return the average precision of one class at each of OVERLAPS."""
    num_objects = int((~objects.difficult).sum())
    if not num_objects:
        return [0.0] * len(OVERLAPS)
    overlap, nearest = _nearest(objects, detections)
    return [
        _average_precision(_correct(overlap > least, nearest, objects.difficult), num_objects, rule)
        for least in OVERLAPS
    ]


def _nearest(objects: _Boxes, detections: _Boxes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return for each detection the overlap with the object that it overlaps most, and that object's index.

    Both are 0 if the image has no objects.
    """
    start, stop = (np.searchsorted(objects.places, detections.places, side) for side in ("left", "right"))
    num = stop - start
    detection = np.repeat(np.arange(len(num)), num)  # pairs of a detection and an object of its image
    other = np.arange(len(detection)) - np.repeat(np.cumsum(num) - num, num) + np.repeat(start, num)
    overlaps = _overlaps(detections.boxes[detection], objects.boxes[other])
    # The sort is stable: of equal overlaps, the object that was annotated first comes first.
    best_first = np.lexsort((-overlaps, detection))
    matched, first = np.unique(detection[best_first], return_index=True)
    overlap, nearest = np.zeros(len(num)), np.zeros(len(num), np.int64)
    overlap[matched], nearest[matched] = overlaps[best_first][first], other[best_first][first]
    return overlap, nearest


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of each box with its counterpart, 0 if neither has an area."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def _correct(
    hit: NDArray[np.bool_], nearest: NDArray[np.int64], difficult: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return True if each detection that counts is right. Those of difficult objects do not count.

    Args:
        hit: whether each detection overlaps its object enough, (detections,), by descending score.
        nearest: index of each detection's object, (detections,).
        difficult: flags of difficult objects, (objects,).
    """
    correct = np.zeros(len(hit), np.bool_)
    candidates = np.flatnonzero(hit)
    # An object is found once, by the detection with the highest score.
    _, first = np.unique(nearest[candidates], return_index=True)
    correct[candidates[first]] = True
    return correct[~(hit & difficult[nearest])]


def _average_precision(correct: NDArray[np.bool_], num_objects: int, rule: Rule) -> float:
    """Return the average precision of detections by descending score.

    At each recall, the best precision counts that is reached there or at a higher recall.
    """
    found = np.cumsum(correct)
    recall, precision = found / num_objects, found / np.arange(1, len(correct) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "area":
        return float(np.diff(recall, prepend=0) @ best)
    return float(np.append(best, 0)[np.searchsorted(recall, POINTS)].sum() / len(POINTS))


# COCO


def _results(
    picture: Picture, found: Predicted, category_ids: Sequence[int], kind: Kind
) -> list[dict[str, Any]]:
    """Return the detections of an image in COCO's format of results (cocodataset.org, format-results)."""
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
            height, width = mask["size"]
            raise InvalidError(
                f"A mask of image {found.id!r} has {width} x {height} pixels, "
                f"the image {picture.width} x {picture.height}: both must be the same."
            )
    return [{**each, "segmentation": dict(mask)} for each, mask in zip(common, masks, strict=True)]


def _coco_precision(images: Annotated, results: list[dict[str, Any]], kind: Kind) -> NDArray[np.float64]:
    """Return the precision as an array of (overlaps, 101 recalls, classes by category id, sizes).

    The sizes are: all, then SIZES. A class without objects has -1.
    """
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
    """Return pycocotools' view of the annotations; to score masks, only of those that have a mask.

    Raises:
        ValueError: The file does not contain annotations, lacks one of the images, or has ids that are
            ambiguous.
    """
    from pycocotools.coco import COCO

    try:
        truth = COCO(str(images.origin))
    except OSError as error:
        raise InvalidError(
            f"{images.origin} cannot be read ({error.strerror}): "
            "it is expected to contain the annotations to score by."
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError, AssertionError) as error:
        raise InvalidError(
            f"{images.origin} is not a file of COCO's annotations ({type(error).__name__}: {error})."
        ) from None
    lost = [picture.id for picture in images.pictures if picture.id not in truth.imgs]
    if lost:
        raise InvalidError(
            f"{images.origin} has no image {lost[0]!r} ({len(lost)} of {len(images.pictures)} are missing)."
        )
    if 0 in truth.anns or len(truth.anns) != len(truth.dataset["annotations"]):
        # pycocotools uses id 0 for an object that was not found, and keeps one object per id.
        raise InvalidError(f"{images.origin}: the ids of annotations must be different numbers from 1 on.")
    for each in truth.dataset["annotations"]:
        each.setdefault("iscrowd", 0)  # as in the data set; pycocotools stops without
    if kind == "segm":
        annotations = truth.dataset["annotations"]
        masked = [{**each, "segmentation": _drawable(each.get("segmentation"))} for each in annotations]
        truth.dataset["annotations"] = [each for each in masked if each["segmentation"]]
        truth.createIndex()
    return truth


def _drawable(segmentation: Any) -> Any:
    """Return a segmentation without polygons of fewer than three points.

    pycocotools stops at these, and the data set leaves them out too.
    """
    if isinstance(segmentation, dict):
        return segmentation
    return [polygon for polygon in segmentation or () if len(polygon) >= MIN_COORDINATES]


def _nothing(truth: Any) -> Any:
    """Return results without detections, which pycocotools' own reader of results does not accept."""
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _mean(precision: NDArray[np.float64]) -> float:
    """Return the mean over the valid entries, NaN if there are none."""
    valid = precision[precision > -1]
    return float(valid.mean()) if len(valid) else math.nan
