"""PASCAL VOC's layout: which images a split has, and what is in them (host.robots.ox.ac.uk/pascal/VOC, the
development kit).

    VOC2007/JPEGImages/000005.jpg
    VOC2007/Annotations/000005.xml
    VOC2007/ImageSets/Main/{train,val,trainval,test}.txt     one image a line

Lines may end in CR LF, as those of the release do. Annotations are parsed by defusedxml: they come from
anywhere, and entities of XML can read files or fill the memory.
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
"""Of all years, in the development kit's order, which is the alphabet's."""


class Object(NamedTuple):
    """One object of an image."""

    name: str
    """One of CLASSES."""
    difficult: bool
    """Hard to recognise: it counts neither for nor against a classifier."""
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax in pixels as written: counted from 1, both ends inside."""


class Annotation(NamedTuple):
    """What an image shows."""

    width: int
    height: int
    objects: tuple[Object, ...]


def find(root: Path, year: str, source: str, *, itself: bool = True) -> Path:
    """The folder of one year's release: in `root`, in the VOCdevkit of `root`, or `root` itself.

    Args:
        itself: whether `root` may be the release; not where several years are asked for, as it would be taken
            for each of them.

    Raises:
        LookupError: it is none of these.
    """
    for folder in (root / year, root / "VOCdevkit" / year, *([root] if itself else [])):
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    problem = f"is not {year} and does not hold it" if itself else f"does not hold {year}"
    raise NotFoundError(f"{root} {problem}: ImageSets/Main is nowhere. Get it: {source}.")


def read_ids(path: Path) -> tuple[str, ...]:
    """The images of a list such as `ImageSets/Main/trainval.txt`, in its order.

    Raises:
        LookupError: the list is not there.
        ValueError: it is empty, names an image twice, or has a line that is not the name of one image; the
            message names both.
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
            raise InvalidError(f"{path}, line {number}: {name} is on line {ids[name]} already.")
        ids[name] = number
    if not ids:
        raise InvalidError(f"{path} is empty: it names no image.")
    return tuple(ids)


def read_annotation(path: Path) -> Annotation:
    """The size and the objects of one image, the objects in the order of the file; parts of objects (heads,
    hands, feet) are none.

    Raises:
        ValueError: the file is not there or not a VOC annotation, or an object is of no known class; the
            message names it.
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
            f"{path} declares a document type or entities, which no annotation of VOC does: it is not read."
        ) from None
    except (
        ElementTree.ParseError,
        LookupError,
        ValueError,
    ) as error:  # the last two: encodings that the parser does not know
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
    difficult = (
        element.findtext("difficult") or "0"
    ).strip()  # absent is not difficult, as in the development kit
    if difficult not in ("0", "1"):
        raise InvalidError(f"the <difficult> of a {name} is '{difficult}', not 0 or 1")
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    if xmin > xmax or ymin > ymax:
        raise InvalidError(
            f"the box of a {name} is ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}): its ends are exchanged"
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
