"""Images in one folder per class: `<root>/<split>/<class>/<image>`, as ImageNet and Imagenette come.

    images = imagefolder.read(root / "train")

Nothing is skipped in silence but hidden files: what is not an image, a class without images and a class that
only one split has are errors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from reproduce.data.images import Files
from reproduce.messages import InvalidError, NotFoundError, unknown

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of image files, in any case (torchvision/datasets/folder.py)."""
SPLITS = ("train", "val")


def load(
    root: Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    cache_gb: float = 0.0,
) -> Files:
    """The images of a split of `root`, after a check that `train` and `val` have the same classes.

    Args:
        classes: names of the folders to read; None: all.
        num_classes: how many there must be where all are read; None: any number.
        cache_gb: see `Images`.

    Raises:
        LookupError: there is no such split, or no folder for it.
        ValueError: a class is missing in a split, has no images, or has something in it that is not an image;
            the message names it.
    """
    if split not in SPLITS:
        raise NotFoundError(unknown("split", split, SPLITS))
    if classes is None:
        classes = _common_classes(root)
        if num_classes not in (None, len(classes)):
            raise InvalidError(
                f"{root} has {len(classes)} classes, not {num_classes}: it is another data set or incomplete."
            )
    for name in classes:
        for each in SPLITS:
            _class_folder(root / each, name)
    return read(root / split, classes, cache_gb=cache_gb)


def read(folder: Path, classes: Sequence[str] | None = None, *, cache_gb: float = 0.0) -> Files:
    """The images of the class folders of `folder`, sorted by class and file name; labels follow the sorted
    class names.

    Args:
        classes: names of the folders to read; None: all.
        cache_gb: see `Images`.

    Raises:
        LookupError: `folder` is not there.
        ValueError: there are no class folders, or one is missing, has no images, or has something in it that
            is not an image.
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
    """The names of the class folders, sorted.

    Raises:
        LookupError: `folder` is not there.
        ValueError: it holds no class folders, or images outside of them.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder} does not exist; the layout is {folder}/<class>/<image>.")
    classes = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith("."):
                raise InvalidError(
                    f"{entry.path} is not in a class folder; the layout is {folder}/<class>/<image>."
                )
            if not entry.name.startswith(".") and entry.is_dir():
                classes.append(entry.name)
    if not classes:
        raise InvalidError(
            f"{folder} holds no images: it has no class folders; the layout is {folder}/<class>/<image>."
        )
    return tuple(sorted(classes))


def _common_classes(root: Path) -> tuple[str, ...]:
    """The classes of `train`, which must be those of `val`."""
    classes = {split: find_classes(root / split) for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        missing = [name for name in classes[split] if name not in set(classes[other])]
        if missing:
            lost = f"{root / other} lacks ({len(missing)} in all)"
            raise InvalidError(
                f"{root / split / missing[0]} is a class that {lost}: both splits need every class."
            )
    return classes[SPLITS[0]]


def _image_files(folder: Path, name: str) -> list[bytes]:
    """The paths of one class's images relative to `folder`, sorted by their bytes, which no locale can
    change."""
    place = _class_folder(folder, name)
    found = []
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.name.lower().endswith(ENDINGS) or entry.is_dir():
                raise InvalidError(
                    f"{entry.path} is not an image ({' '.join(ENDINGS)}): class folders hold nothing else, move it away."
                )
            found.append(os.fsencode(f"{name}/{entry.name}"))
    if not found:
        raise InvalidError(f"{place} is empty: every class needs images.")
    return sorted(found)


def _class_folder(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        raise InvalidError(f"{folder} has no class folder '{name}', which belongs to the data set.")
    return folder / name
