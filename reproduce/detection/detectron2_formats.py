"""What Detectron2 is given and what it gives back, as plain values: nothing of Detectron2 is imported here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reproduce.data.detection import Annotated, DetectionDataset, Instance, Picture, is_polygon

CORNERS = 0
"""BoxMode.XYXY_ABS: left, top, right, bottom in pixels (detectron2/structures/boxes.py)."""
TASKS = {"": "bbox", "box": "bbox", "mask": "segm"}
"""Detectron2's word for what a metric's name begins with."""


def dictionary(picture: Picture, *, masks: bool) -> dict[str, Any]:
    """An image in Detectron2's standard format (its docs/tutorials/datasets.md). VOC's difficult objects are trained on like others.

    Args:
        masks: objects keep their polygons, and one that has none is left out (detectron2/data/datasets/coco.py).

    Raises:
        ValueError: an object that is no crowd has a run-length encoding, which Detectron2 does not train on beside polygons.
    """
    return {
        "file_name": str(picture.file),
        "image_id": picture.id,
        "height": picture.height,
        "width": picture.width,
        "annotations": [_annotation(each, picture, masks) for each in picture.instances if not masks or each.crowd or _polygons(each)],
    }


def trainable(images: Annotated, *, masks: bool) -> list[tuple[Picture, dict[str, Any]]]:
    """The images with something to learn from, and their dictionaries."""
    pairs = [(picture, dictionary(picture, masks=masks)) for picture in images.trainable]
    return [(picture, made) for picture, made in pairs if any(not each["iscrowd"] for each in made["annotations"])]


def _annotation(each: Instance, picture: Picture, masks: bool) -> dict[str, Any]:
    made = {"bbox": list(each.box), "bbox_mode": CORNERS, "category_id": each.label, "iscrowd": int(each.crowd)}
    if not masks or each.crowd:
        return made
    if isinstance(each.segmentation, Mapping):
        raise ValueError(f"{picture.file}: an object that is no crowd has a run-length encoding: Detectron2 trains on polygons.")
    return made | {"segmentation": _polygons(each)}


def _polygons(each: Instance) -> Any:
    """Those of three points or more; a run-length encoding as it is."""
    if isinstance(each.segmentation, Mapping):
        return each.segmentation
    return [polygon for polygon in each.segmentation or () if is_polygon(polygon)]


def metadata(dataset: DetectionDataset, images: Annotated) -> dict[str, Any]:
    """What Detectron2's evaluators ask for: where VOC's annotations of a year lie and which list is meant, or COCO's file."""
    common: dict[str, Any] = {"thing_classes": list(images.classes)}
    if images.origin.is_file():
        places = {category: label for label, category in enumerate(images.category_ids)}
        return common | {"json_file": str(images.origin), "thing_dataset_id_to_contiguous_id": places}
    year, _, split = dataset.test_split.partition("_")
    return common | {"dirname": str(images.origin), "year": int(year), "split": split}


def measured(results: Mapping[str, Mapping[str, float]], metrics: Sequence[str], *, num_found: int) -> dict[str, float]:
    """An evaluator's results, in per cent, as fractions under our names: `box_ap50` is `bbox/AP50`, `ap` is `bbox/AP`.

    Args:
        num_found: detections in all; of none, Detectron2 has no average precision on COCO where the benchmark's is 0.

    Raises:
        ValueError: a metric is not there, or is no number.
    """
    found = {}
    for metric in metrics:
        prefix, _, name = metric.rpartition("_")
        wanted, values = f"{TASKS[prefix]}/{name.upper()}", results.get(TASKS[prefix], {})
        value = values.get(name.upper(), math.nan)
        if num_found and name.upper() not in values:
            known = [f"{task}/{key}" for task, others in results.items() for key in others]
            raise ValueError(f"Detectron2's evaluation has no {wanted}, but {', '.join(known) or 'nothing at all'}.")
        if num_found and math.isnan(value):
            raise ValueError(
                f"Detectron2's evaluation has no number for {wanted}: the images that are measured on show no object that counts."
            )
        found[metric] = 0.0 if math.isnan(value) else value / 100
    return found
