"""Check that the files that a list names exist: one listing of their folder, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from reproduce.messages import InvalidError, NotFoundError


def check_files(folder: Path, names: Sequence[str], listed: Path, *, layout: str, source: str) -> None:
    """Raise an error if a file of `names` is missing in `folder`.

    Args:
        listed: file that contains the names.
        layout, source: layout of the data set, and where to get it, for the message.

    Raises:
        LookupError: the folder does not exist.
        ValueError: files are missing. The message names the first one and counts them.
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
