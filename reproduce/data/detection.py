"""What detection data sets share: photographs with boxes, masks and classes, as plain records.

One file of this folder holds one data set (`voc0712.py`, `coco2017.py`); its `load` gives an `Annotated` for
each split.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from reproduce.messages import InvalidError
from reproduce.settings import Settings
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

EXIF_ORIENTATION = 274
"""The tag of EXIF that says how the camera was held (exif.org, Exif 2.2, section 4.6.4)."""

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels from the image's corner; a box that covers an image of w x h is (0, 0,
w, h)."""


class Instance(NamedTuple):
    """One object of an image."""

    label: int
    """Its place in `Annotated.classes`."""
    box: Box
    """As annotated: it may reach beyond the image, or have no area."""
    difficult: bool = False
    """VOC: trained on, neither right nor wrong in a test."""
    crowd: bool = False
    """COCO: a group; not trained on, neither right nor wrong in a test."""
    segmentation: list[Sequence[float]] | Mapping[str, Any] | None = None
    """COCO: polygons (x0, y0, x1, y1, ...), or a run-length encoding (`size`, `counts`) where it is a
    crowd."""


class Picture(NamedTuple):
    """One image and what is in it."""

    file: Path
    id: int | str
    """The benchmark's own: COCO's number, VOC's name."""
    width: int
    height: int
    """As annotated; whoever decodes the file compares."""
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class Annotated:
    """The images of a split."""

    pictures: tuple[Picture, ...]
    """In the order of the list or of the ids."""
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The benchmark's own number of each class: COCO's 1 to 90 with gaps; VOC's places in the alphabet from
    0."""
    origin: Path
    """What the benchmark's own evaluation reads: COCO's instances_*.json, VOC's folder of the year."""
    digest: str
    """SHA-256 of names, sizes, boxes and masks; not of the pixels."""

    @property
    def trainable(self) -> tuple[Picture, ...]:
        """Those with something to learn from: an instance that is no crowd. The others are left out of
        training, as Detectron2 does."""
        return tuple(
            picture for picture in self.pictures if any(not instance.crowd for instance in picture.instances)
        )


@dataclass(frozen=True, kw_only=True)
class DetectionDataset(Settings):
    """Base class. The sizes at which images are shown are settings of the protocol; normalisation is the
    encoder's."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the RGB channels, for values from 0 to 1 (ImageNet's): what the encoder was trained with."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """The same."""
    train_split: str
    """Fine-tuned on."""
    test_split: str
    """Only ever measured on."""

    splits: ClassVar[tuple[str, ...]]
    """All that there are; several of VOC's are joined by `+`."""
    title: ClassVar[str]
    """As printed in captions."""
    classes: ClassVar[tuple[str, ...]]
    """In the benchmark's order."""
    benchmark: ClassVar[Literal["voc", "coco"]]
    """By whose rules it is annotated and scored."""

    def check(self) -> None:
        if not all(value > 0 for value in self.std):
            raise ValueError(f"{self.name} takes std > 0 for each channel, not {self.std}.")
        for key in ("train_split", "test_split"):
            split = getattr(self, key)
            if not set(split.split("+") if self.benchmark == "voc" else [split]) <= set(self.splits):
                raise ValueError(f"{self.name} takes {key} of {', '.join(self.splits)}, not '{split}'.")

    def check_root(self, site: Site) -> None:
        """Raises LookupError where `site` does not say where the files are, or a folder or list of their
        layout is not there.

        Only folders and lists are looked for, not every image; data that are generated need no root.
        """

    def load(self, split: str, site: Site) -> Annotated:
        """The images of `split`.

        Raises:
            LookupError: the root is not set or not there, or there is no such split.
            ValueError: a file is missing or broken; the message names it.
        """
        raise NotImplementedError


def is_polygon(numbers: Sequence[float]) -> bool:
    """Whether these are x and y of three points or more; all else has no area
    (detectron2/data/datasets/coco.py)."""
    return len(numbers) >= 6 and len(numbers) % 2 == 0


def digest(pictures: Iterable[Picture]) -> str:
    """SHA-256 of names, sizes, boxes, classes, flags and masks, the same on every machine and wherever the
    files lie."""
    found = hashlib.sha256()
    for picture in pictures:
        # A line of text, then as many instances as it says: no two lists of pictures give the same bytes.
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
    """A run-length encoding; its compressed kind may be text or bytes."""
    counts = encoding["counts"]
    return [list(encoding["size"]), counts.decode() if isinstance(counts, bytes) else counts]


def _little_endian(numbers: Sequence[float]) -> bytes:
    doubles = array("d", numbers)
    if sys.byteorder == "big":
        doubles.byteswap()
    return doubles.tobytes()


def pixels(picture: Picture) -> NDArray[np.uint8]:
    """The image in RGB, (height, width, 3), turned as its EXIF says (detectron2/data/detection_utils.py,
    read_image).

    Raises:
        ValueError: the file is missing, truncated or no image, or its size is not the annotated one; the
            message names it.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(picture.file) as image:
            decoded = np.asarray(_upright(image).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
        raise InvalidError(f"{picture.file} cannot be decoded: {error}. Get it again.") from error
    height, width, _ = decoded.shape
    if (width, height) != (picture.width, picture.height):
        sizes = f"has {width} x {height} pixels, its annotation says {picture.width} x {picture.height}"
        raise InvalidError(f"{picture.file} {sizes}: boxes and masks would lie elsewhere. Get both again.")
    return decoded


def _upright(image: Image.Image) -> Image.Image:
    """The image as its camera was held; EXIF that cannot be read says nothing."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # broken EXIF raises SyntaxError, struct.error and more; the image is shown as it is stored, as in Detectron2
        return image
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
