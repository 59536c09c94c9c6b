"""A name of the folder of runs that all machines share which mount it.

    place(site.runs)     # 32 hexadecimal digits, from the file `.place`

Two records that name the same place belong to one folder of runs, whatever its path on each machine is.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from reproduce.messages import InvalidError
from reproduce.runs.files import read_regular, synchronise

FILE = ".place"
LARGEST = 1000
"""Maximum number of bytes of the file."""


def place(runs: Path) -> str:
    """Return a name of the folder `runs` that is the same on all machines that mount it.

    The name is random digits, kept in the folder.

    Raises:
        ValueError: the file with the name cannot be read.
    """
    path = runs / FILE
    try:
        return _place(path)
    except FileNotFoundError:
        runs.mkdir(parents=True, exist_ok=True)
        draft = runs / f"{FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        draft.write_text(secrets.token_hex(16), encoding="utf-8")
        synchronise(draft)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # of several processes at once, the first one wins
        draft.unlink()
        return _place(path)


def _place(path: Path) -> str:
    """Return the name that a file contains."""
    try:
        name = read_regular(path, LARGEST)[0].decode(errors="replace")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InvalidError(f"{path}, the name of this folder, cannot be read ({error.strerror}).") from None
    if not re.fullmatch("[0-9a-f]{32}", name):
        raise InvalidError(
            f"{path} does not contain the 32 hexadecimal digits that name this folder: delete it."
        )
    return name
