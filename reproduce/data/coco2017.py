"""COCO 2017: photographs with 80 classes of objects, their boxes and masks (cocodataset.org).

There are 118 287 training and 5 000 validation images. Layout: `train2017/*.jpg`, `val2017/*.jpg`,
`annotations/instances_{train,val}2017.json`. As in Detectron2 (detectron2/data/datasets/coco.py):

- Images are sorted by id. An image without annotations is evaluated but not trained on.
- A polygon with fewer than three points or an odd number of coordinates is dropped. An object without any
  other polygon is dropped as well: the box AP counts it, the mask AP does not. A run logs how many.
- An object without `iscrowd` is not a crowd (pycocotools/cocoeval.py, _prepare).
- Boxes that have no area or reach beyond the image stay as annotated. The engines clip and drop them in
  training; the benchmark counts them.

Reading train takes about 40 s and at most 1.7 GB, and keeps 1.5 GB. Plain lists of its numbers would keep 2.4
GB. (Measured on a file of 20 000 images with 184 750 annotations: 8.5 s, 0.37 GB and 0.32 GB.)
"""

from __future__ import annotations

import math
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from reproduce.data import detection, json_tables
from reproduce.data.decoding import MOST_PIXELS
from reproduce.data.detection import Annotated, Box, DetectionDataset, Instance, Picture
from reproduce.data.folders import check_files
from reproduce.data.json_tables import Row, quoted
from reproduce.messages import InvalidError, NotFoundError, counted, unknown
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
LONGEST_OUTLINE = 20_000_000
"""Maximum of a polygon's number of coordinates times their range in pixels, for which pycocotools takes up to
0.8 GB. An image of COCO has at most 640 pixels to a side, and a polygon a few thousand coordinates."""
LONGEST_RUN = 60
"""Maximum number of bits of a run in a compressed encoding."""
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
    short: ClassVar[str] = "COCO"
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

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
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
    with json_tables.faults(path, SOURCE):
        pictures, dropped = _joined(json_tables.parse(path, _compact), folder)
    check_files(
        folder,
        [picture.file.name for picture in pictures],
        path,
        layout=LAYOUT,
        source=SOURCE,
        published=COCO2017.published[split],
    )
    odd = (*_without_mask(split, dropped), *detection.oddities(split, pictures))
    return Annotated(pictures, CLASSES, CATEGORY_IDS, path, detection.digest(pictures), odd)


def _without_mask(split: str, dropped: Sequence[int]) -> Iterator[str]:
    """Yield a sentence about the annotations whose objects have no mask."""
    if dropped:
        yield (
            f"{split}: {counted(len(dropped), 'object')} without a polygon of at least three points, such as "
            f"annotation {dropped[0]}. They are not trained on; box AP counts them, mask AP does not."
        )


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


def _joined(content: Row, folder: Path) -> tuple[tuple[Picture, ...], list[int]]:
    """Return the images with their objects, from the three tables of a JSON file.

    Returns:
        the images in the order of their ids, and the ids of the annotations whose objects have no mask.
    """
    _check_categories(json_tables.table(content, "categories"))
    images = json_tables.by_id(json_tables.table(content, "images"), "image")
    if not images:
        raise InvalidError("it has no images")
    names = json_tables.file_names(images)
    sizes = {id_: _size(row, f"image {id_} ({names[id_]})") for id_, row in images.items()}
    if nested := [id_ for id_, name in names.items() if "/" in name]:
        raise InvalidError(f"image {nested[0]} has the file name {names[nested[0]]!r}, which is not valid")
    objects: dict[int, list[Instance]] = {id_: [] for id_ in images}
    dropped = []
    # pycocotools reads 0 as "no match", so it would count an object with that id as missed in every case.
    for id_, row in json_tables.by_id(
        json_tables.table(content, "annotations"), "annotation", least=1
    ).items():
        owner = f"annotation {id_}"
        image = json_tables.reference(row, "image_id", images, owner, "image")
        instance = _instance(row, sizes[image], f"{owner} of image {image}")
        if instance is None:
            dropped.append(id_)
        else:
            objects[image].append(instance)
    pictures = tuple(
        Picture(folder / names[id_], id_, sizes[id_][1], sizes[id_][0], tuple(objects[id_]))
        for id_ in sorted(images)
    )
    return pictures, dropped


def _check_categories(rows: Sequence[Row]) -> None:
    categories = json_tables.by_id(rows, "category")
    found = {id_: json_tables.value(row, "name", f"category {id_}") for id_, row in categories.items()}
    wrong = [id_ for id_ in sorted({**CATEGORIES, **found}) if found.get(id_) != CATEGORIES.get(id_)]
    if not wrong:
        return
    id_ = wrong[0]
    if id_ not in found:
        problem = f"{id_} ({CATEGORIES[id_]}) is missing in the file"
    elif id_ not in CATEGORIES:
        problem = f"{id_} ({quoted(found[id_])}) is not a category of COCO"
    else:
        problem = f"{id_} is {quoted(found[id_])}, not '{CATEGORIES[id_]}'"
    raise InvalidError(f"its {len(found)} categories are not COCO's {len(CATEGORIES)}: {problem}")


def _size(row: Row, owner: str) -> tuple[int, int]:
    """Return the height and the width of an image."""
    height, width = (json_tables.value(row, side, owner) for side in ("height", "width"))
    sides = (height, width)
    if not all(type(side) is int and side > 0 for side in sides) or height * width > MOST_PIXELS:
        raise InvalidError(f"{owner} has an impossible size: {quoted(width)} x {quoted(height)} pixels")
    return height, width


def _instance(row: Row, size: tuple[int, int], owner: str) -> Instance | None:
    """Return the object of an annotation, or None if it has no valid polygon.

    Args:
        size: height and width of its image.
        owner: name of the annotation, for messages.

    Raises:
        ValueError: the annotation is invalid.
    """
    category, crowd = json_tables.value(row, "category_id", owner), row.get("iscrowd", 0)
    if not _is_number(category) or category not in LABELS:
        raise InvalidError(f"{owner} has the category {quoted(category)}, which is not one of COCO's")
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise InvalidError(f"{owner} has iscrowd {quoted(crowd)}, not 0 or 1")
    # The benchmark's scoring reads the area: it decides whether an object is small, medium or large.
    area, bbox = json_tables.value(row, "area", owner), json_tables.value(row, "bbox", owner)
    if not _is_number(area) or area < 0:
        raise InvalidError(f"{owner} has the area {quoted(area)}, not a number of pixels")
    try:
        segmentation = _segmentation(row.get("segmentation"), size)
        box = _box(bbox)
    except InvalidError as error:
        raise InvalidError(f"{owner} {error}") from None
    if segmentation == []:
        return None
    return Instance(LABELS[category], box, crowd=crowd == 1, segmentation=segmentation)


def _box(bbox: Any) -> Box:
    """Convert (left, top, width, height) to (left, top, right, bottom)."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)) or min(bbox[2:]) < 0:
        raise InvalidError(f"has the bbox {quoted(bbox)}, not left, top, width and height in pixels")
    left, top, width, height = map(float, bbox)
    box = left, top, left + width, top + height
    if not all(map(math.isfinite, box)):
        raise InvalidError(f"has the bbox {quoted(bbox)}, which ends beyond every image")
    return box


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _segmentation(given: Any, size: tuple[int, int]) -> list[Sequence[float]] | dict[str, Any]:
    """Return the valid polygons, or the run-length encoding of an image of `size`, (height, width).

    Raises:
        ValueError: the segmentation is invalid. The message completes a sentence that begins with 'the
            annotation ...'.
    """
    if given is None:
        return []
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
    polygons = [polygon for polygon in given if detection.is_polygon(polygon)]
    for polygon in polygons:
        if len(polygon) * (max(0.0, max(polygon)) - min(0.0, min(polygon))) > LONGEST_OUTLINE:
            raise InvalidError(
                f"has a polygon of {len(polygon)} coordinates from {min(polygon):g} to {max(polygon):g}: its "
                "outline is too long"
            )
    return polygons


def _check_runs(given: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Raise ValueError if a run-length encoding, plain or compressed, does not fit the image.

    pycocotools' decoder does not check this.
    """
    given_size, counts = given.get("size"), given.get("counts")
    if isinstance(counts, str):
        counts = _runs(counts)
    if given_size != list(size) or any(type(side) is not int for side in given_size):
        raise InvalidError(
            f"has a run-length encoding of height and width {quoted(given_size)}, but its image has "
            f"{list(size)}"
        )
    if (
        not isinstance(counts, list)
        or not all(type(run) is int and run >= 0 for run in counts)
        or sum(counts) != size[0] * size[1]
    ):
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
        if shift > LONGEST_RUN:
            raise InvalidError(f"has a compressed run-length encoding with a run of over {LONGEST_RUN} bits")
        if six & 32:
            continue
        if six & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise InvalidError("has a compressed run-length encoding that is truncated")
    return runs
