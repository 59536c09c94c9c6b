"""Published lists of names: the images whose labels semi-supervised classification may use, and the classes
of a data set.

A list is known by its SHA-256, so that no two runs of a kind ever read two lists.

google-research/simclr imagenet_subsets/ has the lists `1percent.txt` (12 811 images of ImageNet's train
split) and `10percent.txt` (128 116), one file name a line, `n04235860_14959.JPEG`; the class is the part
before the underscore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.runs.files import atomic
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Files

KEY = "imagenet_subsets"
"""In the site file: a folder of the user's that holds the lists."""
URL = "https://raw.githubusercontent.com/google-research/simclr/master/imagenet_subsets/{}.txt"
SHA256 = {
    "1percent": "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    "10percent": "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
}
"""Of the bytes of the two lists."""
TIMEOUT = 60
"""Seconds without an answer after which a server counts as out of reach."""


def of_imagenet(name: str, site: Site, *, fetch: bool = True) -> Path:
    """SimCLR's list `name`, from the user's folder, or else fetched once into the site's runs.

    Args:
        fetch: False: nothing is fetched, and the path may be of a list that is not here yet.

    Raises:
        LookupError: there is no such list, or it is not here and cannot be fetched; the message says how to
            get it.
        ValueError: its bytes are not those that were published.
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
    """`path`, after its content was fetched from `url` where it is not there yet; it appears whole or not at
    all.

    Raises:
        LookupError: the server cannot be reached; the message says how to get the file otherwise.
        ValueError: what comes has another sha256.
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
            content: bytes = answer.read()
            return content
    except (OSError, HTTPException) as error:
        hint = f'put the file of sha256 {sha256} into a folder and add `{KEY} = "/that/folder"` under [data] in the site file'
        raise NotFoundError(f"{url} cannot be fetched ({error}). Without a network {hint}.") from None


def verified(path: Path, sha256: str, source: str) -> bytes:
    """The content of the list at `path`.

    Raises:
        LookupError: the file is not there.
        ValueError: its bytes are not those of `sha256`.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist. Get it: {source} (sha256 {sha256}).")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        lines = b"".join(line + b"\n" for line in content.split())
        hint = (
            "Only its line ends differ"
            if hashlib.sha256(lines).hexdigest() == sha256
            else "It is another list"
        )
        raise InvalidError(
            f"{path} has the sha256 {found}, expected is {sha256}. {hint}: get it again, byte by byte, from {source}."
        )
    return content


def read(path: Path) -> dict[bytes, bytes]:
    """The images of a list: `class/name` without the ending, which the releases of one data set do not agree
    on -> the line it is from.

    A line is `class_number.ending`, or `class/name.ending` where the name does not begin with its class.

    Raises:
        ValueError: the list is empty, or a line is neither; the message names both.
    """
    images: dict[bytes, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        folder, slash, file = name.rpartition(b"/")
        stem, _, ending = file.rpartition(b".")
        if not slash:
            folder = stem.rpartition(b"_")[0]
        if not (folder and stem and ending):
            raise InvalidError(
                f"{path}, line {number}: '{line.decode(errors='replace')}' is no image, such as n04235860_14959.JPEG."
            )
        images[folder + b"/" + stem] = name
    if not images:
        raise InvalidError(f"{path} names no image.")
    return images


def indices(images: Files, path: Path) -> NDArray[np.int64]:
    """Where the images of the list at `path` are in the split `images`, (n,), ascending.

    Raises:
        ValueError: an image of the list is not in the split; the message names it and says how many are not.
    """
    wanted = read(path)
    found = _places(images, wanted)
    missing = [line for image, line in wanted.items() if image not in found]
    if missing:
        lost = f"{len(missing)} of its {len(wanted)} images are missing"
        raise InvalidError(
            f"{path} names {missing[0].decode(errors='replace')}, which the train split lacks: {lost}. Get the split again."
        )
    return _covering(images, found, path)


def indices_there(images: Files, path: Path) -> NDArray[np.int64]:
    """The same for a split that has a part of the list's classes, and a part of their images; (n,),
    ascending.

    Raises:
        ValueError: a class of the split has no image in the list.
    """
    return _covering(images, _places(images, read(path)), path)


def _places(images: Files, wanted: Mapping[bytes, bytes]) -> dict[bytes, int]:
    """Those of the images `wanted` that are there, with their indices, in the order of these."""
    stems = (images.names[index].rpartition(b".")[0] for index in range(len(images)))
    return {stem: index for index, stem in enumerate(stems) if stem in wanted}


def _covering(images: Files, found: Mapping[bytes, int], path: Path) -> NDArray[np.int64]:
    """The indices, of which each class must have one."""
    import numpy as np

    chosen = np.fromiter(found.values(), np.int64, len(found))
    bare = set(range(len(images.classes))) - set(images.labels[chosen].tolist())
    if bare:
        some = f"of the {len(images.classes)} classes {len(bare)} have none"
        raise InvalidError(
            f"{path} names no image of the class '{images.classes[min(bare)]}' that is in the train split; {some}."
        )
    return chosen
