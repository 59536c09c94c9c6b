"""Images in one folder per class, `<root>/<split>/<class>/<image>`, the layout of ImageNet and Imagenette.

    images = imagefolder.read(root / "train")

Only hidden files are skipped silently. Files that are not images, classes without images and classes that
only one split has are errors.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np

from reproduce.data.images import Files
from reproduce.data.sources import shown
from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.runs import kinds

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Extensions of image files, in upper or lower case (torchvision/datasets/folder.py)."""
IMAGENET = re.compile(rb"(n\d{8}|ILSVRC2012_val)_\d+(?=\.)")
"""Names of ImageNet's images, without the extension."""
SPLITS = ("train", "val")


def load(
    root: Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    cache_gb: float = 0.0,
    splits: Sequence[str] = SPLITS,
) -> Files:
    """Read a split of `root`, after checking that `train` and `val` have the same classes.

    Args:
        classes: names of the folders to read. None for all.
        num_classes: expected number of classes if all are read. None for any number.
        cache_gb: see `Images`.
        splits: splits that the data set has.

    Raises:
        LookupError: the split or its folder does not exist.
        ValueError: a class is missing in a split, has no images, or contains a file that is not an image, or
            a folder or an image has two labels. The message names it.
    """
    if split not in splits:
        raise NotFoundError(unknown("split", split, splits))
    if classes is None:
        classes = _common_classes(root, splits)
        if num_classes not in (None, len(classes)):
            raise InvalidError(
                f"{root} has {len(classes)} classes, not {num_classes}: it is incomplete or another data set."
            )
    _check_apart(root, classes, splits)
    images = read(root / split, classes, cache_gb=cache_gb)
    if twice := images.names.repeated(key=_identity):
        first, second = (images.name(index) for index in twice)
        raise InvalidError(
            f"{first} and {second} are one image of ImageNet: keep the one with the right label."
        )
    return images


def _identity(name: bytes) -> bytes:
    """Return ImageNet's name of an image, which is unique in a split, or the path of an image of others."""
    found = IMAGENET.match(name.rpartition(b"/")[2])
    return found[0] if found else name


def _check_apart(root: Path, classes: Sequence[str], splits: Sequence[str]) -> None:
    """Raise ValueError if a class folder is missing, or is also the folder of another class or split."""
    spelled: dict[str, str] = {}
    for name in classes:
        other = spelled.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other is not name:
            raise InvalidError(
                f"{root} has the classes '{other}' and '{name}', which differ only in case or in the "
                "encoding of their letters: one class must not have two labels. Merge them."
            )
    places: dict[tuple[int, int], Path] = {}
    for each in splits:
        for name in classes:
            folder = _class_folder(root / each, name)
            found = folder.stat()
            other_place = places.setdefault((found.st_dev, found.st_ino), folder)
            if other_place is not folder:
                raise InvalidError(
                    f"{folder} and {other_place} are the same folder: its images would have two labels, or "
                    "be in both splits."
                )


def read(folder: Path, classes: Sequence[str] | None = None, *, cache_gb: float = 0.0) -> Files:
    """Read the images of the class folders of `folder`, sorted by class and file name.

    Labels follow the sorted class names.

    Args:
        classes: names of the folders to read. None for all.
        cache_gb: see `Images`.

    Raises:
        LookupError: `folder` does not exist.
        ValueError: `folder` lacks class folders, or one is missing, has no images, or contains another file.
    """
    chosen = find_classes(folder) if classes is None else tuple(sorted(classes))
    names: list[bytes] = []
    ends = [0]
    for name in chosen:
        names += _image_files(folder, name)
        ends.append(len(names))
    counts = [end - begin for begin, end in pairwise(ends)]
    return Files(folder, names, np.repeat(np.arange(len(chosen)), counts), chosen, cache_gb)


def find_classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders, sorted.

    Raises:
        LookupError: `folder` does not exist.
        ValueError: it contains no class folders, or images outside of them.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder} does not exist. Layout: {folder}/<class>/<image>.")
    classes = []
    with _entries(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith("."):
                raise InvalidError(
                    f"{shown(entry.path)} is not in a class folder. Layout: {folder}/<class>/<image>."
                )
            if not entry.name.startswith(".") and entry.is_dir():
                classes.append(entry.name)
    if not classes:
        raise InvalidError(
            f"{folder} contains no class folders with images. Layout: {folder}/<class>/<image>."
        )
    return tuple(sorted(classes))


def _common_classes(root: Path, splits: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of the first split after checking that the others have the same."""
    classes = {split: find_classes(root / split) for split in splits}
    for split, other in permutations(splits, 2):
        missing = [name for name in classes[split] if name not in set(classes[other])]
        if missing:
            lost = f"is missing in {root / other} ({len(missing)} in all)"
            raise InvalidError(
                f"The class {shown(str(root / split / missing[0]))} {lost}: both splits need every class."
            )
    return classes[splits[0]]


def _image_files(folder: Path, name: str) -> list[bytes]:
    """Return the paths of one class's images relative to `folder`, sorted by their bytes in every locale."""
    place = _class_folder(folder, name)
    found = []
    with _entries(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.name.lower().endswith(ENDINGS) or not entry.is_file():
                raise InvalidError(
                    f"{shown(entry.path)} is {_other(entry)}not an image ({' '.join(ENDINGS)}). "
                    "Class folders may contain only images: move it elsewhere."
                )
            found.append(os.fsencode(f"{name}/{entry.name}"))
    if not found:
        raise InvalidError(f"{shown(str(place))} is empty: every class needs images.")
    return sorted(found)


@contextmanager
def _entries(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Yield the entries of a folder.

    Raises:
        ValueError: the folder cannot be read. The message names it.
    """
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise InvalidError(f"{shown(str(folder))} cannot be read ({error.strerror}).") from None


def _other(entry: os.DirEntry[str]) -> str:
    """Return what an entry is if it is not a file, such as `a FIFO, `; empty for a file."""
    if entry.is_file():
        return ""
    exists = os.path.exists(entry.path)  # noqa: PTH110 (False for a link to nothing)
    return f"{kinds.by_mode(entry.stat().st_mode) if exists else 'a link to nothing'}, "


def _class_folder(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        raise InvalidError(f"{folder} has no folder '{shown(name)}', but that class belongs to the data set.")
    return folder / name
