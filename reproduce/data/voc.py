"""Layout of PASCAL VOC: the images of a split, and their objects.

    VOC2007/JPEGImages/000005.jpg
    VOC2007/Annotations/000005.xml
    VOC2007/ImageSets/Main/{train,val,trainval,test}.txt     one image per line

The source is the development kit (host.robots.ox.ac.uk/pascal/VOC). Lines may end in CR LF, as in the
release. defusedxml parses the annotations, because they may come from anywhere and XML entities can read
files or fill the memory.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reproduce.messages import InvalidError, NotFoundError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""Classes of all years, in the development kit's order, which is alphabetical."""


class Object(NamedTuple):
    """One object of an image."""

    name: str
    """Name of its class, one of CLASSES."""
    difficult: bool
    """True if the object is hard to recognise: it counts neither for nor against a classifier."""
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax in pixels as in the file: counted from 1, both ends inclusive."""


class Annotation(NamedTuple):
    """Size and objects of an image."""

    width: int
    height: int
    objects: tuple[Object, ...]


def find(root: Path, year: str, source: str, *, itself: bool = True) -> Path:
    """Return the folder of one year's release: in `root`, in the VOCdevkit of `root`, or `root` itself.

    Args:
        itself: True if `root` may be the release. It is False if several years are needed, since `root` would
            match each of them.

    Raises:
        LookupError: the release is in none of these places.
    """
    for folder in (root / year, root / "VOCdevkit" / year, *([root] if itself else [])):
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    problem = f"neither is nor contains {year}" if itself else f"does not contain {year}"
    raise NotFoundError(f"{root} {problem}: ImageSets/Main is missing. Get it: {source}.")


def list_of(folder: Path, split: str) -> Path:
    """Return the list of the images of a split, in the folder of one year's release."""
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def beside(folder: Path, split: str) -> list[Path]:
    """Return the list of a split and the annotations of its images."""
    path = list_of(folder, split)
    return [path, *(folder / "Annotations" / f"{name}.xml" for name in read_ids(path))]


def read_ids(path: Path) -> tuple[str, ...]:
    """Read the names in a list such as `ImageSets/Main/trainval.txt`, in its order.

    Raises:
        LookupError: the list does not exist.
        ValueError: it is empty, names an image twice, or has a line that is not the name of one image. The
            message names the list and the image.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; it lists the images of a split.")
    ids: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        if not (name.isascii() and name.replace("_", "").isalnum()):
            raise InvalidError(
                f"{path}, line {number}: '{line}' is not the name of an image, such as 000005."
            )
        if name in ids:
            raise InvalidError(f"{path}, line {number}: {name} is already on line {ids[name]}.")
        ids[name] = number
    if not ids:
        raise InvalidError(f"{path} is empty: it does not name any images.")
    return tuple(ids)


def read_annotation(path: Path) -> Annotation:
    """Read the size and the objects of one image, in the order of the file.

    Parts of objects (heads, hands, feet) are skipped.

    Raises:
        ValueError: the file is missing or not a VOC annotation, or an object has an unknown class. The
            message names the file.
    """
    from defusedxml import DefusedXmlException, ElementTree

    try:
        root = ElementTree.parse(path, forbid_dtd=True).getroot()
    except OSError as error:
        raise InvalidError(
            f"{path} cannot be read ({error.strerror}): every image needs its annotation."
        ) from None
    except DefusedXmlException:
        raise InvalidError(
            f"{path} declares a document type or entities, which VOC's annotations never do. Get it again."
        ) from None
    # Encodings that the parser does not know raise LookupError or ValueError.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InvalidError(f"{path} is not well-formed XML: {error}.") from None
    try:
        size = [_number(root, f"size/{side}") for side in ("width", "height")]
        return Annotation(
            int(size[0]), int(size[1]), tuple(_object(element) for element in root.findall("object"))
        )
    except ValueError as error:
        raise InvalidError(f"{path}: {error}. Get it again.") from None


def _object(element: Element) -> Object:
    name = (element.findtext("name") or "").strip()
    if name not in CLASSES:
        raise InvalidError(f"'{name}' is not one of the {len(CLASSES)} classes")
    # Without the element an object is not difficult, as in the development kit.
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise InvalidError(f"the <difficult> of a {name} is '{difficult}', not 0 or 1")
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    if xmin > xmax or ymin > ymax:
        raise InvalidError(
            f"the box of a {name} is ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}): its ends are swapped"
        )
    return Object(name, difficult == "1", (xmin, ymin, xmax, ymax))


def _number(element: Element, place: str) -> float:
    text = (element.findtext(place) or "").strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidError(f"the <{place}> of <{element.tag}> is '{text}', not a number")
    return number
