"""Published lists of names: labelled images for semi-supervised classification, and classes of data sets.

The SHA-256 of a list is part of its identity, so that two runs of a kind always read the same list.

google-research/simclr imagenet_subsets/ contains the lists `1percent.txt` (12 811 images of ImageNet's train
split) and `10percent.txt` (128 116). They have one file name per line, such as `n04235860_14959.JPEG`; the
class is the part before the underscore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.messages import InvalidError, NotFoundError, counted, unknown
from reproduce.runs.files import atomic
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Files

KEY = "imagenet_subsets"
"""Key in the site file of a folder with the lists, which the user provides."""
URL = "https://raw.githubusercontent.com/google-research/simclr/master/imagenet_subsets/{}.txt"
SHA256 = {
    "1percent": "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    "10percent": "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
}
"""SHA-256 of the two lists."""
BOM = b"\xef\xbb\xbf"
"""Byte order mark that some editors write at the beginning of a text."""
TIMEOUT = 60
"""Seconds without an answer after which a server counts as unreachable."""


def of_imagenet(name: str, site: Site, *, fetch: bool = True) -> Path:
    """Return the path of SimCLR's list `name`.

    The list comes from the user's folder. Without one, it is fetched once into the site's folder of runs.

    Args:
        fetch: False to fetch nothing. The returned path may then not exist yet.

    Raises:
        LookupError: the list does not exist, or it is missing and cannot be fetched. The message explains how
            to get it.
        ValueError: the bytes of the list differ from the published ones.
    """
    if name not in SHA256:
        raise NotFoundError(unknown("list of labelled images", name, SHA256))
    url, sha256 = URL.format(name), SHA256[name]
    if KEY in site.data:
        path = site.root(KEY, ", ".join(f"{each}.txt" for each in SHA256), url) / f"{name}.txt"
    else:
        path = site.runs / "lists" / f"{name}.txt"
        if not fetch and not path.is_file():
            return path
        fetched(url, path, sha256)
    verified(path, sha256, url)
    return path


def fetched(url: str, path: Path, sha256: str) -> Path:
    """Fetch `url` to `path` unless `path` exists, and return `path`; it appears complete or not at all.

    Raises:
        LookupError: the server cannot be reached. The message explains another way to get the file.
        ValueError: the content has another SHA-256.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            with atomic(path) as draft:
                draft.write_bytes(_download(url, sha256))
                verified(draft, sha256, url)
    return path


def _download(url: str, sha256: str) -> bytes:
    from http.client import HTTPException
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 (an address of ours, and the content is checked)
            return bytes(answer.read())
    except (OSError, HTTPException) as error:
        hint = (
            f"put the file with SHA-256 {sha256} into a folder and add "
            f'`{KEY} = "/that/folder"` under [data] in the site file'
        )
        raise NotFoundError(f"{url} cannot be fetched ({error}). Without a network, {hint}.") from None


def verified(path: Path, sha256: str, source: str) -> bytes:
    """Return the content of the list at `path`.

    Raises:
        LookupError: the file does not exist.
        ValueError: its bytes do not match `sha256`.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist. Get it: {source} (SHA-256 {sha256}).")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        lines = [line for _, line in numbered(content.splitlines())]
        same = hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest() == sha256
        other = f"It is another list or a part of it, of {counted(len(lines), 'line')}"
        hint = "Only its line endings differ" if same else other
        raise InvalidError(
            f"{path} has SHA-256 {found}, but {sha256} is expected. {hint}: get an exact copy from {source}."
        )
    return content


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their numbers from 1, without the space around them.

    A byte order mark at the beginning is not part of the first line.
    """
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if number == 1:
            stripped = stripped.removeprefix(BOM).strip()
        if stripped:
            yield number, stripped


def read(path: Path) -> dict[bytes, bytes]:
    """Read the images of a list, as `class/name` without the extension -> the line that names it.

    Releases of one data set have different extensions. A line is `class_number.ext`, or `class/name.ext` if
    the name does not begin with its class.

    Raises:
        ValueError: the list is empty, a line has another format, or names an image that a line before it
            names. The message names the list and the line.
    """
    images: dict[bytes, bytes] = {}
    for number, name in numbered(path.read_bytes().splitlines()):
        shown = f"{name.decode(errors='replace'):.80}"
        folder, slash, file = name.rpartition(b"/")
        stem, _, ending = file.rpartition(b".")
        if not slash:
            folder = stem.rpartition(b"_")[0]
        if not (folder and stem and ending) or b"\\" in name or {b"", b"..", b"."} & set(folder.split(b"/")):
            raise InvalidError(
                f"{path}, line {number}: '{shown}' is not the name of an image, such as n04235860_14959.JPEG."
            )
        image = folder + b"/" + stem
        if image in images:
            raise InvalidError(f"{path}, line {number}: {shown} is already on a line before it.")
        images[image] = name
    if not images:
        raise InvalidError(f"{path} does not name any images.")
    return images


def indices(images: Files, path: Path) -> NDArray[np.int64]:
    """Return the indices of the listed images in the split `images`, (n,), ascending.

    Raises:
        ValueError: images of the list are missing in the split. The message names one and counts them.
    """
    wanted = read(path)
    found = _places(images, wanted, path)
    missing = [line for image, line in wanted.items() if image not in found]
    if missing:
        lost = f"{len(missing)} of its {len(wanted)} images are missing"
        raise InvalidError(
            f"{path} names {missing[0].decode(errors='replace')}, but the train split does not contain it: "
            f"{lost}. Get the split again."
        )
    return _covering(images, found, path)


def indices_there(images: Files, path: Path) -> NDArray[np.int64]:
    """Return the indices of the listed images that a split contains, (n,), ascending.

    The split may have only some of the list's classes, and only some of their images.

    Raises:
        ValueError: the list has no image of one of the split's classes.
    """
    return _covering(images, _places(images, read(path), path), path)


def _places(images: Files, wanted: Mapping[bytes, bytes], path: Path) -> dict[bytes, int]:
    """Return the available images of `wanted` and their indices, in ascending order.

    Raises:
        ValueError: two images of the split have a name of the list, with different extensions.
    """
    found: dict[bytes, int] = {}
    for index in range(len(images)):
        stem = images.names[index].rpartition(b".")[0]
        if stem in wanted and found.setdefault(stem, index) != index:
            raise InvalidError(
                f"{path} names {wanted[stem].decode(errors='replace')}, but the train split has two such "
                f"images, {images.name(found[stem])} and {images.name(index)}: remove one of them."
            )
    return found


def _covering(images: Files, found: Mapping[bytes, int], path: Path) -> NDArray[np.int64]:
    """Return the indices after checking that every class has at least one."""
    import numpy as np

    chosen = np.fromiter(found.values(), np.int64, len(found))
    empty = set(range(len(images.classes))) - set(images.labels[chosen].tolist())
    if empty:
        raise InvalidError(
            f"{path} names no image of the train split in {len(empty)} of its {len(images.classes)} classes, "
            f"such as '{images.classes[min(empty)]}'."
        )
    return chosen
