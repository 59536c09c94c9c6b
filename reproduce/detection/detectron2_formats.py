"""Detectron2's inputs and outputs as plain values. Nothing of Detectron2 is imported here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce.data.detection import Annotated, DetectionDataset, Instance, Picture, is_polygon
from reproduce.messages import InvalidError

CORNERS = 0
"""Value of BoxMode.XYXY_ABS: left, top, right, bottom in pixels (detectron2/structures/boxes.py)."""
TASKS = {"": "bbox", "box": "bbox", "mask": "segm"}
"""Detectron2's name of each task, by the prefix of a metric's name."""


def dictionary(picture: Picture, *, masks: bool) -> dict[str, Any]:
    """Return an image in Detectron2's standard format (its docs/tutorials/datasets.md).

    VOC's difficult objects are trained on like all others.

    Args:
        masks: keep the polygons of objects, and leave out objects without any
            (detectron2/data/datasets/coco.py).

    Raises:
        ValueError: An object that is not a crowd has a run-length encoding. Detectron2 cannot train on these
            together with polygons.
    """
    return {
        "file_name": str(picture.file),
        "image_id": picture.id,
        "height": picture.height,
        "width": picture.width,
        "annotations": [
            _annotation(each, picture, masks)
            for each in picture.instances
            if not masks or each.crowd or _polygons(each)
        ],
    }


def trainable(images: Annotated, *, masks: bool) -> list[tuple[Picture, dict[str, Any]]]:
    """Return the images with something to learn from, and their dictionaries."""
    pairs = [(picture, dictionary(picture, masks=masks)) for picture in images.trainable]
    return [
        (picture, made) for picture, made in pairs if any(not each["iscrowd"] for each in made["annotations"])
    ]


def _annotation(each: Instance, picture: Picture, masks: bool) -> dict[str, Any]:
    """Return an object in Detectron2's standard format."""
    made = {
        "bbox": list(each.box),
        "bbox_mode": CORNERS,
        "category_id": each.label,
        "iscrowd": int(each.crowd),
    }
    if not masks or each.crowd:
        return made
    if isinstance(each.segmentation, Mapping):
        raise InvalidError(
            f"{picture.file}: an object that is not a crowd has a run-length encoding, "
            "but Detectron2 trains on polygons."
        )
    return made | {"segmentation": _polygons(each)}


def _polygons(each: Instance) -> Any:
    """Return the polygons of at least three points, or a run-length encoding unchanged."""
    if isinstance(each.segmentation, Mapping):
        return each.segmentation
    return [polygon for polygon in each.segmentation or () if is_polygon(polygon)]


def check_coco(images: Annotated) -> None:
    """Check, before any training, that Detectron2's evaluator can read the masks that it scores by.

    Raises:
        ValueError: An object has no polygon, or one of fewer than three points, or does not say whether it is
            a crowd. pycocotools stops on these.
    """
    with images.origin.open(encoding="utf-8") as file:
        rows = json.load(file)["annotations"]
    for row in rows:
        if "iscrowd" not in row:
            raise InvalidError(
                f"{images.origin}: the annotation {row['id']} has no iscrowd, on which Detectron2's "
                "evaluation stops. Set it to 0, COCO's default, or use engine=torchvision."
            )
        polygons = row.get("segmentation") or []
        if isinstance(polygons, list) and not (polygons and all(map(is_polygon, polygons))):
            raise InvalidError(
                f"{images.origin}: the annotation {row['id']} has no polygon, or one of fewer than three "
                "points, on which Detectron2's evaluation stops. Get the file again."
            )


def check_voc(images: Annotated, split: str) -> None:
    """Check, before any training, that Detectron2's evaluator can read the boxes and score every class.

    Raises:
        ValueError: A box has fractions of pixels, or a class has no object and the rules are not those of
            2007.
    """
    for picture in images.pictures:
        if any(number != int(number) for each in picture.instances for number in each.box):
            raise InvalidError(
                f"{images.origin}: a box of the image {picture.id} has fractions of pixels, "
                "which Detectron2's evaluation does not accept."
            )
    seen = {each.label for picture in images.pictures for each in picture.instances if not each.difficult}
    lost = [name for label, name in enumerate(images.classes) if label not in seen]
    if lost and not split.startswith("2007"):
        raise InvalidError(
            f"{images.origin}: no image of {split} shows an object that counts of {', '.join(lost)}: "
            "the rules after 2007 define no average precision for such a class."
        )


def write_voc(images: Annotated, split: str, folder: Path) -> None:
    """Write a list and annotations of the images in VOC's layout, for Detectron2's evaluator.

    The images must have passed `check_voc`. The evaluator reads the files itself, and it stops at things that
    the benchmark allows, such as a blank line or an object without a flag that it is truncated.
    """
    for place in ("Annotations", "ImageSets/Main"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for picture in images.pictures:
        objects = "".join(_object(images.classes[each.label], each) for each in picture.instances)
        (folder / "Annotations" / f"{picture.id}.xml").write_text(f"<annotation>\n{objects}</annotation>\n")
    names = "".join(f"{picture.id}\n" for picture in images.pictures)
    (folder / "ImageSets" / "Main" / f"{split.partition('_')[2]}.txt").write_text(names)


def _object(name: str, each: Instance) -> str:
    """Return the XML of an object. Its pixels count from 1."""
    left, top, right, bottom = map(int, each.box)
    box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    flags = f"<pose>Unspecified</pose><truncated>0</truncated><difficult>{int(each.difficult)}</difficult>"
    return f"<object><name>{name}</name>{flags}<bndbox>{box}</bndbox></object>\n"


def metadata(dataset: DetectionDataset, images: Annotated, voc: Path) -> dict[str, Any]:
    """Return the metadata that Detectron2's evaluators need.

    This is the list, the annotations and the year of VOC, or the file of COCO.

    Args:
        voc: folder of `write_voc`.
    """
    common: dict[str, Any] = {"thing_classes": list(images.classes)}
    if dataset.benchmark == "coco":
        places = {category: label for label, category in enumerate(images.category_ids)}
        return common | {"json_file": str(images.origin), "thing_dataset_id_to_contiguous_id": places}
    year, _, split = dataset.test_split.partition("_")
    return common | {"dirname": str(voc), "year": int(year), "split": split}


def measured(
    results: Mapping[str, Mapping[str, float]], metrics: Sequence[str], *, num_found: int
) -> dict[str, float]:
    """Return an evaluator's results as fractions under our names, given its results in per cent.

    `box_ap50` is `bbox/AP50`, `ap` is `bbox/AP`.

    Args:
        num_found: number of all detections. If it is 0, Detectron2 has no average precision on COCO, but the
            benchmark's is 0.

    Raises:
        ValueError: A metric is missing or is not a number.
    """
    found = {}
    for metric in metrics:
        prefix, _, name = metric.rpartition("_")
        wanted, values = f"{TASKS[prefix]}/{name.upper()}", results.get(TASKS[prefix], {})
        value = values.get(name.upper(), math.nan)
        if num_found and name.upper() not in values:
            known = [f"{task}/{key}" for task, others in results.items() for key in others]
            raise InvalidError(
                f"Detectron2's evaluation returned {', '.join(known) or 'nothing at all'}, but not {wanted}."
            )
        if num_found and math.isnan(value):
            raise InvalidError(
                f"Detectron2's evaluation returned NaN for {wanted}: "
                "the images show no object to measure it on."
            )
        found[metric] = 0.0 if math.isnan(value) else value / 100
    return found
