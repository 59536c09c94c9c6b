"""COCO 2017: photographs with 80 classes of objects, their boxes and masks (cocodataset.org).

There are 118 287 training and 5 000 validation images. Layout: `train2017/*.jpg`, `val2017/*.jpg`,
`annotations/instances_{train,val}2017.json`. As in Detectron2 (detectron2/data/datasets/coco.py):

- Images are sorted by id. An image without annotations is evaluated but not trained on.
- A polygon with fewer than three points or an odd number of coordinates is dropped. An object without any
  other polygon is dropped as well.
- Boxes that have no area or reach beyond the image stay as annotated. The engines clip and drop them in
  training; the benchmark counts them.

Reading train takes about 40 s and at most 1.7 GB, and keeps 1.5 GB. Plain lists of its numbers would keep 2.4
GB. (Measured on a file of 20 000 images with 184 750 annotations: 8.5 s, 0.37 GB and 0.32 GB.)
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from reproduce.data import detection
from reproduce.data.detection import Annotated, Box, DetectionDataset, Instance, Picture
from reproduce.data.folders import check_files
from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.site import Site

KEY = "coco"
LAYOUT = "train2017/*.jpg, val2017/*.jpg and annotations/instances_{train,val}2017.json"
SOURCE = (
    "https://cocodataset.org/#download (train2017.zip, val2017.zip and annotations_trainval2017.zip, 20 GB)"
)
SPLITS = ("train2017", "val2017")
CATEGORIES = {
    1: "person",
    2: "bicycle",
    3: "car",
    4: "motorcycle",
    5: "airplane",
    6: "bus",
    7: "train",
    8: "truck",
    9: "boat",
    10: "traffic light",
    11: "fire hydrant",
    13: "stop sign",
    14: "parking meter",
    15: "bench",
    16: "bird",
    17: "cat",
    18: "dog",
    19: "horse",
    20: "sheep",
    21: "cow",
    22: "elephant",
    23: "bear",
    24: "zebra",
    25: "giraffe",
    27: "backpack",
    28: "umbrella",
    31: "handbag",
    32: "tie",
    33: "suitcase",
    34: "frisbee",
    35: "skis",
    36: "snowboard",
    37: "sports ball",
    38: "kite",
    39: "baseball bat",
    40: "baseball glove",
    41: "skateboard",
    42: "surfboard",
    43: "tennis racket",
    44: "bottle",
    46: "wine glass",
    47: "cup",
    48: "fork",
    49: "knife",
    50: "spoon",
    51: "bowl",
    52: "banana",
    53: "apple",
    54: "sandwich",
    55: "orange",
    56: "broccoli",
    57: "carrot",
    58: "hot dog",
    59: "pizza",
    60: "donut",
    61: "cake",
    62: "chair",
    63: "couch",
    64: "potted plant",
    65: "bed",
    67: "dining table",
    70: "toilet",
    72: "tv",
    73: "laptop",
    74: "mouse",
    75: "remote",
    76: "keyboard",
    77: "cell phone",
    78: "microwave",
    79: "oven",
    80: "toaster",
    81: "sink",
    82: "refrigerator",
    84: "book",
    85: "clock",
    86: "vase",
    87: "scissors",
    88: "teddy bear",
    89: "hair drier",
    90: "toothbrush",
}
"""Category ids and names of the benchmark (instances_val2017.json). The gaps are classes that were planned
but never annotated."""
CLASSES = tuple(CATEGORIES.values())
CATEGORY_IDS = tuple(CATEGORIES)
LABELS = {category: label for label, category in enumerate(CATEGORY_IDS)}
DROPPED_KEYS = frozenset(("license", "coco_url", "flickr_url", "date_captured"))
"""Keys of the JSON file that are dropped while it is parsed."""


@dataclass(frozen=True, kw_only=True)
class COCO2017(DetectionDataset, name="coco2017"):
    """COCO 2017 for detection and instance segmentation."""

    train_split: str = "train2017"
    """Training split, 118 287 images (detectron2 configs/Base-RCNN-FPN.yaml)."""
    test_split: str = "val2017"
    """Test split, 5 000 images (detectron2 configs/Base-RCNN-FPN.yaml)."""

    splits: ClassVar[tuple[str, ...]] = SPLITS
    title: ClassVar[str] = "COCO 2017"
    classes: ClassVar[tuple[str, ...]] = CLASSES
    benchmark: ClassVar[Literal["voc", "coco"]] = "coco"
    published: ClassVar[Mapping[str, int]] = {"train2017": 118_287, "val2017": 5_000}
    roots: ClassVar[tuple[str, ...]] = (KEY,)

    def check_root(self, site: Site) -> None:
        splits = (self.train_split, self.test_split)
        site.root(
            KEY, LAYOUT, SOURCE, holds=(*splits, *(f"annotations/instances_{split}.json" for split in splits))
        )

    def load(self, split: str, site: Site) -> Annotated:
        return read(site.root(KEY, LAYOUT, SOURCE), split)

    def count(self, split: str, site: Site) -> int:
        """Return the number of files in the folder of images: reading the list of train takes 40 s."""
        folder = site.root(KEY, LAYOUT, SOURCE, holds=(split,)) / split
        return sum(name.endswith(".jpg") for name in os.listdir(folder))  # noqa: PTH208 (names only)

    def beside(self, split: str, site: Site) -> Iterable[Path]:
        return (_list(site.root(KEY, LAYOUT, SOURCE), split),)


def _list(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def read(root: Path, split: str) -> Annotated:
    """Read a split of `root`.

    Raises:
        LookupError: the split does not exist, or its JSON file or its folder of images is missing.
        ValueError: the JSON file is invalid or an image is missing. The message names the file and the image
            or annotation.
    """
    if split not in SPLITS:
        raise NotFoundError(unknown("split", split, SPLITS))
    path, folder = _list(root, split), root / split
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist. Layout: {LAYOUT}. Get it: {SOURCE}.")
    try:
        with path.open(encoding="utf-8") as file:
            pictures = _joined(json.load(file, object_hook=_compact), folder)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidError(f"{path} is not JSON: {error}. Get it: {SOURCE}.") from None
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path} is not text: {error}. Get it: {SOURCE}.") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidError(
            f"{path} is not a list of images, annotations and categories ({error!r}). Get it: {SOURCE}."
        ) from None
    except (ValueError, OverflowError) as error:  # numbers with hundreds of digits overflow
        raise InvalidError(f"{path}: {error}. Get it: {SOURCE}.") from None
    check_files(folder, [picture.file.name for picture in pictures], path, layout=LAYOUT, source=SOURCE)
    return Annotated(pictures, CLASSES, CATEGORY_IDS, path, detection.digest(pictures))


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    """Return the needed keys of a row of the JSON file.

    Coordinates of polygons take 8 bytes each, in place of 32.
    """
    kept = {key: value for key, value in row.items() if key not in DROPPED_KEYS}
    if isinstance(kept.get("segmentation"), list):
        # An invalid polygon stays as it is: `_segmentation` reports it along with its annotation.
        with suppress(TypeError, OverflowError):
            kept["segmentation"] = [array("d", polygon) for polygon in kept["segmentation"]]
    return kept


def _joined(content: Mapping[str, list[dict[str, Any]]], folder: Path) -> tuple[Picture, ...]:
    """Return the images with their objects, from the three tables of a JSON file."""
    _check_categories(content["categories"])
    images = _by_id(content["images"], "image")
    if not images:
        raise InvalidError("it has no images")
    for row in images.values():
        _check_image(row)
    objects: dict[int, list[Instance]] = {id_: [] for id_ in images}
    for id_, row in _by_id(content["annotations"], "annotation").items():
        image = images.get(row["image_id"])
        if image is None:
            raise InvalidError(
                f"annotation {id_} refers to image {row['image_id']}, not one of its {len(images)} images"
            )
        try:
            instance = _instance(row, image)
        except ValueError as error:
            raise InvalidError(f"annotation {id_} of image {row['image_id']} {error}") from None
        if instance is not None:
            objects[row["image_id"]].append(instance)
    ordered = ((images[id_], tuple(objects[id_])) for id_ in sorted(images))
    return tuple(
        Picture(folder / row["file_name"], row["id"], row["width"], row["height"], found)
        for row, found in ordered
    )


def _check_categories(rows: Iterable[Mapping[str, Any]]) -> None:
    found = {id_: row["name"] for id_, row in _by_id(rows, "category").items()}
    if found != CATEGORIES:
        other = sorted(found.items() ^ CATEGORIES.items())[0]
        where = "is missing in the file" if other in CATEGORIES.items() else "is not a category of COCO"
        name = " ".join(str(other[1]).split())
        raise InvalidError(
            f"its {len(found)} categories are not COCO's {len(CATEGORIES)}: {other[0]} ({name}) {where}"
        )


def _by_id(rows: Iterable[Mapping[str, Any]], kind: str) -> dict[int, Mapping[str, Any]]:
    """Return the rows of a table by id.

    Raises:
        ValueError: two rows have the same id, or an id is not a whole number that is large enough.
    """
    found: dict[int, Mapping[str, Any]] = {}
    # pycocotools reads 0 as "no match", so it would count an object with that id as missed in every case.
    least = 1 if kind == "annotation" else 0
    for row in rows:
        id_ = row["id"]
        if type(id_) is not int or id_ < least:
            raise InvalidError(f"the {kind} id {id_!r} is not a whole number of at least {least}")
        if id_ in found:
            raise InvalidError(f"more than one {kind} has the id {id_}")
        found[id_] = row
    return found


def _check_image(row: Mapping[str, Any]) -> None:
    name, sides = row["file_name"], (row["width"], row["height"])
    if not name or Path(name).name != name or not name.isprintable():
        raise InvalidError(f"image {row['id']} has the file name {name!r}, which is not valid")
    if not all(type(side) is int and side > 0 for side in sides):
        raise InvalidError(
            f"image {row['id']} ({name}) has an impossible size: {sides[0]!r} x {sides[1]!r} pixels"
        )


def _instance(row: Mapping[str, Any], image: Mapping[str, Any]) -> Instance | None:
    """Return the object of an annotation, or None if it has no valid polygon.

    Raises:
        ValueError: the annotation is invalid. The message completes a sentence that begins with 'the
            annotation ...'.
    """
    if row["category_id"] not in LABELS:
        raise InvalidError(f"has the category {row['category_id']!r}, which is not one of COCO's")
    if row["iscrowd"] not in (0, 1):
        raise InvalidError(f"has iscrowd {row['iscrowd']!r}, not 0 or 1")
    # The benchmark's scoring reads the area: it decides whether an object is small, medium or large.
    if not _is_number(row["area"]) or row["area"] < 0:
        raise InvalidError(f"has the area {row['area']!r}, not a number of pixels")
    segmentation = _segmentation(row["segmentation"], (image["height"], image["width"]))
    if segmentation == []:
        return None
    return Instance(
        LABELS[row["category_id"]], _box(row["bbox"]), crowd=row["iscrowd"] == 1, segmentation=segmentation
    )


def _box(bbox: Sequence[float]) -> Box:
    """Convert (left, top, width, height) to (left, top, right, bottom)."""
    if len(bbox) != 4 or not all(map(_is_number, bbox)) or min(bbox[2:]) < 0:
        raise InvalidError(f"has the bbox {bbox!r}, not left, top, width and height in pixels")
    left, top, width, height = map(float, bbox)
    return left, top, left + width, top + height


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _segmentation(given: Any, size: tuple[int, int]) -> list[Sequence[float]] | dict[str, Any]:
    """Return the valid polygons, or the run-length encoding of an image of `size`, (height, width)."""
    if isinstance(given, dict):
        _check_runs(given, size)
        return given
    # The sum of numbers is finite only if each of them is.
    if not isinstance(given, list) or not all(
        isinstance(each, array) and math.isfinite(sum(each)) for each in given
    ):
        raise InvalidError(
            "has a segmentation that is neither polygons (lists of numbers) nor a run-length encoding"
        )
    return [polygon for polygon in given if detection.is_polygon(polygon)]


def _check_runs(given: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Raise ValueError if a run-length encoding, plain or compressed, does not fit the image.

    pycocotools' decoder does not check this.
    """
    counts = _runs(given["counts"]) if isinstance(given["counts"], str) else given["counts"]
    if given["size"] != list(size):
        raise InvalidError(
            f"has a run-length encoding of height and width {given['size']!r}, but its image has {list(size)}"
        )
    if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != size[0] * size[1]:
        raise InvalidError(
            f"has a run-length encoding that does not add up to its image's {size[0] * size[1]} pixels"
        )


def _runs(text: str) -> list[int]:
    """Return the runs of a compressed encoding (ppwwyyxx/cocoapi common/maskApi.c, rleFrString).

    Each character contributes six bits: five of a number, lowest first, and one that is set if more follow.
    From the fourth on, a number is the difference between its run and the last run but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        six = ord(character) - 48
        if not 0 <= six < 64:
            raise InvalidError(f"has a compressed run-length encoding with the character {character!r}")
        value |= (six & 31) << shift
        shift += 5
        if six & 32:
            continue
        if six & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise InvalidError("has a compressed run-length encoding that is truncated")
    return runs
