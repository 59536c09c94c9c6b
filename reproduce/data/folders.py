"""Whether the files that a list names are in their folder: one question for all of them, asked before
anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from reproduce.messages import InvalidError, NotFoundError


def check_files(folder: Path, names: Sequence[str], listed: Path, *, layout: str, source: str) -> None:
    """Raises where a file of `names` is not in `folder`.

    Args:
        listed: the file that names them.
        layout, source: what the data set looks like, and what gets it, for the message.

    Raises:
        LookupError: the folder is not there.
        ValueError: a file is not; the message names the first and says how many are not.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder} does not exist. Layout: {layout}. Get it: {source}.")
    present = set(os.listdir(folder))  # noqa: PTH208 (names alone: no object for each of 118 287 images)
    missing = [name for name in names if name not in present]
    if missing:
        lost = f"{len(missing)} of its {len(names)} images are missing"
        raise InvalidError(
            f"{folder / missing[0]} does not exist, which {listed} names: {lost}. Get it: {source}."
        )
