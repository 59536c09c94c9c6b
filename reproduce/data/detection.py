"""Base class of data sets with boxes: photographs with boxes, masks and classes, as plain records.

Each detection data set has a module of its own (`voc0712.py`, `coco2017.py`). Its `load` returns an
`Annotated` for each split.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from reproduce.data.dataset import MOST_FILES
from reproduce.data.sources import State, state
from reproduce.messages import InvalidError
from reproduce.settings import Channels, Deviations, Settings
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

EXIF_ORIENTATION = 274
"""EXIF tag that records the camera's orientation (exif.org, Exif 2.2, section 4.6.4)."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels from the image's corner. A box that covers an image of w x h is (0,
0, w, h)."""


class Instance(NamedTuple):
    """One object of an image."""

    label: int
    """Index of its class in `Annotated.classes`."""
    box: Box
    """Box as annotated. It may reach beyond the image or have no area."""
    difficult: bool = False
    """VOC: an object that is trained on but counts neither as right nor as wrong in a test."""
    crowd: bool = False
    """COCO: a group, which is not trained on and counts neither as right nor as wrong in a test."""
    segmentation: list[Sequence[float]] | Mapping[str, Any] | None = None
    """COCO: polygons (x0, y0, x1, y1, ...), or a run-length encoding (`size`, `counts`) for a crowd."""


class Picture(NamedTuple):
    """One image and its objects."""

    file: Path
    id: int | str
    """Identifier of the benchmark: a number for COCO, a name for VOC."""
    width: int
    height: int
    """Height as annotated. `pixels` compares it and the width with the decoded file."""
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class Annotated:
    """The images of a split."""

    pictures: tuple[Picture, ...]
    """Images in the order of the list (VOC) or of the ids (COCO)."""
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Number of each class in the benchmark: 1 to 90 with gaps for COCO, the alphabetical position from 0 for
    VOC."""
    origin: Path
    """Input of the benchmark's own evaluation: instances_*.json of COCO, the folder of the year of VOC."""
    digest: str
    """SHA-256 of names, sizes, boxes and masks, but not of the pixels."""
    oddities: tuple[str, ...] = ()
    """Sentences about images and objects that do not count or look wrong. A run logs them."""

    def __len__(self) -> int:
        return len(self.pictures)

    def paths(self) -> Iterator[bytes]:
        """Yield the files of the images in order."""
        return (os.fsencode(picture.file) for picture in self.pictures)

    @cached_property
    def states(self) -> list[State]:
        """State of each of these files.

        Raises:
            ValueError: a file is missing or empty, or is not a regular file. The message names it.
        """
        return [state(path) for path in self.paths()]

    @property
    def trainable(self) -> tuple[Picture, ...]:
        """Images with something to learn from: at least one object that is not a crowd.

        Training leaves out all others, as Detectron2 does.
        """
        return tuple(
            picture for picture in self.pictures if any(not instance.crowd for instance in picture.instances)
        )


@dataclass(frozen=True, kw_only=True)
class DetectionDataset(Settings):
    """Base class. The protocol sets the sizes of the images; the encoder sets their normalisation."""

    mean: Channels = (0.485, 0.456, 0.406)
    """Mean of the RGB channels, for values from 0 to 1 (ImageNet's): the normalisation that the encoder was
    trained with."""
    std: Deviations = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels, for values from 0 to 1 (ImageNet's)."""
    train_split: str
    """Split that detectors are fine-tuned on."""
    test_split: str
    """Split that is only ever evaluated on."""

    splits: ClassVar[tuple[str, ...]]
    """Names of all splits. VOC splits can be joined with `+`."""
    title: ClassVar[str]
    """Name that captions print."""
    short: ClassVar[str] = ""
    """Name in the titles of runs; the data set's own name if empty."""
    classes: ClassVar[tuple[str, ...]]
    """Names of the classes in the benchmark's order."""
    benchmark: ClassVar[Literal["voc", "coco"]]
    """Benchmark whose rules govern annotation and scoring."""
    published: ClassVar[Mapping[str, int]] = {}
    """Number of images in each split, if known in advance. The images on disk are compared with it."""
    most_checked: ClassVar[int] = MOST_FILES
    """Maximum number of files of a split whose states are checked each time."""
    roots: ClassVar[tuple[str, ...]] = ()
    """Keys of its folders under [data] in the site file; empty for the name of the data set."""

    def check(self) -> None:
        for key in ("train_split", "test_split"):
            split = getattr(self, key)
            if not set(split.split("+") if self.benchmark == "voc" else [split]) <= set(self.splits):
                raise ValueError(f"{self.name} has no {key} '{split}'. Known: {', '.join(self.splits)}.")

    @property
    def label(self) -> str:
        """Name in the titles of runs."""
        return self.short or self.name

    def folders(self, site: Site) -> Mapping[str, str]:
        """Return its folders by their keys; empty for generated images, or if none is set."""
        return site.folders(self.roots or (self.name,))

    def check_root(self, site: Site) -> None:
        """Raise LookupError if the site file names no root, or if a folder or list of the layout is missing.

        Only folders and lists are checked, not every image. Generated data sets need no root.
        """

    def load(self, split: str, site: Site) -> Annotated:
        """Return the images of `split`.

        Raises:
            LookupError: the root is not set or does not exist, or the split does not exist.
            ValueError: a file is missing or broken. The message names it.
        """
        raise NotImplementedError

    def count(self, split: str, site: Site) -> int:
        """Return the number of images of `split` on disk, as cheaply as possible.

        Raises:
            LookupError, ValueError: see `load`.
        """
        return len(self.load(split, site).pictures)

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
        """Return the files besides the images that `split` is read from: lists and annotations."""
        return ()


def is_polygon(numbers: Sequence[float]) -> bool:
    """Return True if `numbers` are x and y of at least three points.

    Anything else has no area (detectron2/data/datasets/coco.py).
    """
    return len(numbers) >= 6 and len(numbers) % 2 == 0


def oddities(split: str, pictures: Sequence[Picture]) -> tuple[str, ...]:
    """Return sentences about images without objects and about boxes that are not inside of their image."""
    num_boxes = sum(len(picture.instances) for picture in pictures)
    without = [picture.id for picture in pictures if not picture.instances]
    empty, beyond = [], []
    for picture in pictures:
        for left, top, right, bottom in (each.box for each in picture.instances):
            if left >= right or top >= bottom:
                empty.append(picture.id)
            # Rounding moves the sides of real boxes by up to a pixel.
            if min(left, top) < -1 or right > picture.width + 1 or bottom > picture.height + 1:
                beyond.append(picture.id)
    found = (
        (without, len(pictures), "images show no object", "They are tested, but not trained on."),
        (empty, num_boxes, "boxes have no area", "They are not trained on, and the benchmark counts them."),
        (
            beyond,
            num_boxes,
            "boxes reach beyond their image",
            "Training clips them, and the benchmark counts them as annotated.",
        ),
    )
    return tuple(
        f"{split}: {len(ids)} of {number} {what}, such as image {ids[0]}. {effect}"
        for ids, number, what, effect in found
        if ids
    )


def digest(pictures: Iterable[Picture]) -> str:
    """Return the SHA-256 of names, sizes, boxes, classes, flags and masks.

    It is the same on every machine and for every location of the files.
    """
    found = hashlib.sha256()
    for picture in pictures:
        # The header counts the instances that follow, so no two lists of pictures give the same bytes.
        _add(found, [picture.file.name, picture.id, picture.width, picture.height, len(picture.instances)])
        for each in picture.instances:
            polygons = each.segmentation if isinstance(each.segmentation, list) else []
            runs = _plain(each.segmentation) if isinstance(each.segmentation, Mapping) else None
            _add(
                found, [each.label, each.difficult, each.crowd, [len(polygon) for polygon in polygons], runs]
            )
            for numbers in (each.box, *polygons):
                found.update(_little_endian(numbers))
    return found.hexdigest()


def _add(found: Any, row: list[Any]) -> None:
    found.update(json.dumps(row).encode() + b"\n")


def _plain(encoding: Mapping[str, Any]) -> list[Any]:
    """Return a run-length encoding as lists and text; the counts of a compressed one may be text or bytes."""
    counts = encoding["counts"]
    return [list(encoding["size"]), counts.decode() if isinstance(counts, bytes) else counts]


def _little_endian(numbers: Sequence[float]) -> bytes:
    doubles = array("d", numbers)
    if sys.byteorder == "big":
        doubles.byteswap()
    return doubles.tobytes()


def pixels(picture: Picture) -> NDArray[np.uint8]:
    """Decode an image to RGB, (height, width, 3), rotated according to its EXIF tag.

    This is Detectron2's `read_image` (detectron2/data/detection_utils.py).

    Raises:
        ValueError: the file is missing, truncated, not an image or not of 8 bits, or its size differs from
            the annotated one. The message names it.
    """
    import numpy as np

    from reproduce.data import decoding

    try:
        with decoding.opened(picture.file) as image:
            decoded = np.asarray(_upright(decoding.eight_bits(image)).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        raise decoding.fault(str(picture.file), error) from error
    height, width, _ = decoded.shape
    if (width, height) != (picture.width, picture.height):
        sizes = f"has {width} x {height} pixels, but {picture.width} x {picture.height} in its annotation"
        raise InvalidError(f"{picture.file} {sizes}: boxes and masks would be misplaced. Get both again.")
    return decoded


def _upright(image: Image.Image) -> Image.Image:
    """Return the image rotated upright; unreadable EXIF data is ignored."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # broken EXIF raises SyntaxError, struct.error and more
        return image  # as stored, as in Detectron2
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image
