"""Check that the files that a list names exist: one listing of their folder, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from reproduce.messages import InvalidError, NotFoundError


def check_files(
    folder: Path, names: Sequence[str], listed: Path, *, layout: str, source: str, published: int = 0
) -> None:
    """Raise an error if a file of `names` is missing in `folder`, or if the list of the names is cut.

    A release may be cut on purpose, to a list and its images. A list that is shorter than the published one
    although the folder has as many files as all of that list was cut by accident.

    Args:
        listed: file that contains the names.
        layout, source: layout of the data set, and where to get it, for the message.
        published: number of names in the published list; 0 if it is not known.

    Raises:
        LookupError: the folder does not exist.
        ValueError: files are missing, or the list is cut. The message names the first file or the list and
            counts.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder} does not exist. Layout: {layout}. Get it: {source}.")
    present = set(os.listdir(folder))  # noqa: PTH208 (names only, not a Path for each of 118 287 images)
    missing = [name for name in names if name not in present]
    if missing:
        lost = f"{len(missing)} of its {len(names)} images are missing"
        raise InvalidError(
            f"{folder / missing[0]} does not exist, but {listed} names it: {lost}. Get it: {source}."
        )
    if len(names) < published <= len(present):
        raise InvalidError(
            f"{listed} names {len(names)} images, the published one {published}, but {folder} has "
            f"{len(present)} files: the list is cut. Get it: {source}."
        )
