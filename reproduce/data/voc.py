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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reproduce.data import lists
from reproduce.messages import InvalidError, NotFoundError, UserError, counted
from reproduce.runs.files import read_regular

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
LARGEST = 1_000_000
"""Maximum number of bytes of an annotation; those of the releases have at most about 20 kB."""
COUNTS = {
    "2007_train": 2_501,
    "2007_val": 2_510,
    "2007_trainval": 5_011,
    "2007_test": 4_952,
    "2012_train": 5_717,
    "2012_val": 5_823,
    "2012_trainval": 11_540,
}
"""Number of images in each list of the releases (host.robots.ox.ac.uk/pascal/VOC). The annotations of 2012's
test images were never released."""


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


def sidecars(folder: Path, split: str) -> list[Path]:
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
    for number, line in lists.numbered(path.read_bytes().splitlines()):
        name = line.decode("ascii", errors="replace")
        if not (name.isascii() and name.replace("_", "").isalnum()):
            raise InvalidError(
                f"{path}, line {number}: '{name:.80}' is not the name of an image, such as 000005."
            )
        if name in ids:
            raise InvalidError(f"{path}, line {number}: {name:.80} is already on line {ids[name]}.")
        ids[name] = number
    if not ids:
        raise InvalidError(f"{path} is empty: it does not name any images.")
    return tuple(ids)


def check_lists(folders: Mapping[str, Path], train: Iterable[str], test: Iterable[str]) -> None:
    """Check the lists of the splits `train` and `test`, such as `2007_test`, before anything starts.

    Args:
        folders: folder of each year.

    Raises:
        LookupError: a list does not exist.
        ValueError: a list is invalid, or an image is in both `train` and `test`.
    """

    def named(split: str) -> tuple[Path, tuple[str, ...]]:
        year, _, name = split.partition("_")
        path = folders[year] / "ImageSets" / "Main" / f"{name}.txt"
        return path, read_ids(path)

    trained = {id_: path for path, ids in map(named, train) for id_ in ids}
    for path, ids in map(named, test):
        both = [id_ for id_ in ids if id_ in trained]
        if both:
            raise InvalidError(
                f"{path} names {both[0]}, and so does {trained[both[0]]}: {counted(len(both), 'image')} "
                "would be trained on and tested."
            )


def read_annotation(path: Path) -> Annotation:
    """Read the size and the objects of one image, in the order of the file.

    Parts of objects (heads, hands, feet) are skipped.

    Raises:
        ValueError: the file is missing or not a VOC annotation, or an object has an unknown class. The
            message names the file.
    """
    from defusedxml import DefusedXmlException, ElementTree

    try:
        content, _ = read_regular(path, LARGEST)
        root = ElementTree.fromstring(content, forbid_dtd=True)
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
        objects = _objects(root)
        size = [_number(root, f"size/{side}") for side in ("width", "height")]
        return Annotation(int(size[0]), int(size[1]), tuple(map(_object, objects)))
    except ValueError as error:
        raise InvalidError(f"{path}: {error}. Get it again.") from None


def _objects(root: Element) -> list[Element]:
    """Return the elements of the objects, after checking that no others are in another place."""
    found = root.findall("object") if root.tag == "annotation" else []
    tags = [
        element.tag.rpartition("}")[2].casefold() for element in root.iter() if isinstance(element.tag, str)
    ]
    if root.tag != "annotation" or tags.count("object") != len(found):
        raise InvalidError(
            f"it holds {counted(tags.count('object'), 'object')}, but {len(found)} where VOC has them, as "
            f"<object> below <annotation>; its root is <{root.tag}>"
        )
    return found


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


def fetch(root: Path, splits: Iterable[str], count: Callable[[str], int]) -> Path:
    """Fetch the archives of the splits that are not complete into `root`, with their checksums verified.

    Args:
        splits: names from COUNTS.
        count: returns the number of images of a split in `root`; raises a UserError if the split is broken.

    Raises:
        LookupError, ValueError: a split is not complete after its archive was unpacked.
    """
    from torchvision import datasets

    root.mkdir(parents=True, exist_ok=True)
    for split in splits:
        try:
            complete = count(split) == COUNTS[split]
        except UserError:
            complete = False
        if not complete:
            year, _, name = split.partition("_")
            datasets.VOCDetection(root, year=year, image_set=name, download=True)
            if (found := count(split)) != COUNTS[split]:
                raise InvalidError(
                    f"{root} has {found} images of {split}, not {COUNTS[split]}, though its archive was "
                    f"unpacked into VOCdevkit: move the other VOC{year} elsewhere."
                )
    return root
