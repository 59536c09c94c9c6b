"""Shared memory, through which processes that decode return images; containers often have 64 MB of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from reproduce.messages import counted, size

FOLDER = Path("/dev", "shm")
"""Folder of the shared memory on Linux."""
SHARE = 0.5
"""Maximum share of the free shared memory that images take; sizes of photographs differ."""
PREFETCHED = 2
"""Pieces for each process that are requested at a time: `prefetch_factor` of torch's DataLoader."""
PIECE = 16
"""Images that a process decodes at once, if shared memory allows so many."""


class Fitting(NamedTuple):
    """Processes that decode, and how many images each returns at once."""

    workers: int
    """Number of processes; 0 if not even the images of one fit."""
    piece: int


def free(processes: int) -> int | None:
    """Return the free bytes for each of so many training processes; None without a limit."""
    try:
        return shutil.disk_usage(FOLDER).free // processes
    except OSError:  # another system than Linux
        return None


def fitting(available: int | None, image: int, workers: int) -> Fitting:
    """Return the processes and the size of their pieces that fit.

    Smaller pieces come first, as they cost little. With single images, fewer processes follow.

    Args:
        available: free bytes; None without a limit.
        image: bytes of a decoded image.
        workers: number of processes that are wanted.
    """
    if available is None:
        return Fitting(workers, PIECE)
    number = int(SHARE * available) // max(1, image)  # images that may exist at a time
    piece = min(PIECE, number // (PREFETCHED * workers + 1))
    return Fitting(workers, piece) if piece else Fitting(max(0, (number - 1) // PREFETCHED), 1)


def few(number: int, image: int, workers: int, available: int) -> str:
    """Return the warning of a run with fewer processes than are wanted; the arguments are those of `fitting`.

    Args:
        number: processes that fit.
    """
    used = f"only {number} will decode" if number else "a thread of the run will decode"
    return (
        f"{counted(workers, 'decoder')} would need {size(_needed(workers, image))} of shared memory, but the "
        f"share of this process in {FOLDER} is {size(available)}: {used}. Give the container more "
        "(--shm-size)."
    )


def _needed(workers: int, image: int) -> int:
    """Return the free bytes with which so many processes can return single images."""
    return int((PREFETCHED * workers + 1) * image / SHARE)
