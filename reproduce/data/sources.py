"""State of a data set's files on disk, without their content; names of files as messages show them."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from reproduce.messages import InvalidError
from reproduce.runs import kinds


class State(NamedTuple):
    """The part of a file's state that changes when its content does."""

    size: int
    """Bytes."""
    modified: int
    """Time of the last write in nanoseconds, which a copy may preserve and a user may set."""
    changed: int
    """Time of the last change of content or state (ctime) in nanoseconds, which only the system sets."""


def state(path: bytes | str) -> State:
    """Return the state of one file; nothing is opened, so a FIFO cannot block.

    Raises:
        ValueError: the file is missing, empty or not a regular file, or cannot be reached. The message names
            it.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 (bytes)
    except OSError as error:
        raise InvalidError(
            f"{shown(path)} belongs to the data set but cannot be found ({error.strerror}). Get it again."
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise InvalidError(f"{shown(path)} is {kinds.by_mode(found.st_mode)}, not a file: move it elsewhere.")
    if not found.st_size:
        raise InvalidError(f"{shown(path)} is empty (0 bytes). Get it again.")
    return State(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def shown(path: bytes | str) -> str:
    """Return a path that every UTF-8 stream can print: bytes that are not UTF-8 appear as `\\xe9`."""
    return os.fsencode(path).decode(errors="backslashreplace")
