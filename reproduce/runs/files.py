"""Files that appear whole or not at all, even if their process is killed or the machine crashes.

    write_atomic(path, text)                  # the content is in memory
    with new_file(path) as file: ...          # it is written piece by piece
    with atomic(path) as draft: ...           # another library writes the file `draft`
    content, status = read_regular(path, 10_000)
    is_regular(path)                          # an error is not an answer

A draft is next to its file as `.<name>.<process>.<thread>.tmp`. It is on disk before it is renamed, so a
crash of the machine leaves the previous file or the new one. `invoke gc` lists the drafts of killed
processes.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

DRAFT = ".tmp"
"""End of the name of a draft."""


@contextmanager
def atomic(path: Path, *, durable: bool = False, ready: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield the path of a draft, and rename it to `path` unless the block raises.

    Args:
        durable: synchronise the folder too, so that a crash of the machine leaves the new file.
        ready: called right before the draft is renamed, when it is on disk. If it raises, nothing is renamed.

    Raises:
        OSError: the file cannot be written; the previous file at `path` is unchanged.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{DRAFT}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            yield draft
        synchronise(draft)
        ready()
        draft.replace(path)
    except BaseException:  # also a second Ctrl-C
        draft.unlink(missing_ok=True)
        raise
    if durable:
        synchronise(path.parent)


@contextmanager
def new_file(
    path: Path, *, durable: bool = False, ready: Callable[[], None] = lambda: None
) -> Iterator[BinaryIO]:
    """Yield a file to write to, which replaces the one at `path` unless the block raises.

    Args:
        durable, ready: see `atomic`.

    Raises:
        OSError: the disk is full or permission is missing; the previous file at `path` is unchanged.
    """
    try:
        with atomic(path, durable=durable, ready=ready) as draft, draft.open("wb") as file:
            yield file
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror}); what was saved before is intact"
        raise OSError(error.errno, message) from error


def write_atomic(path: Path, *parts: str | bytes | memoryview, durable: bool = False) -> Path:
    """Write the parts in order to `path` and return it; text is encoded as UTF-8.

    Args:
        durable: see `atomic`.

    Raises:
        OSError: the disk is full or permission is missing; the previous file at `path` is unchanged.
    """
    with new_file(path, durable=durable) as file:
        for part in parts:
            file.write(part.encode() if isinstance(part, str) else part)
    return path


def read_regular(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Return the content of a file and its status; nothing else than a file is read, and nothing blocks.

    Args:
        limit: maximum number of bytes that the file may have.

    Raises:
        FileNotFoundError: the path does not exist.
        OSError: the path cannot be read, is not a file (a folder or a pipe), or is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with naming(path):
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "Not a regular file")
            if status.st_size > limit:
                raise OSError(errno.EFBIG, f"Larger than {limit} bytes")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size), status
    finally:
        os.close(descriptor)


def is_regular(path: Path) -> bool:
    """Return True if a path is a file, False if it does not exist or is something else.

    `Path.is_file` returns False after an error of the disk, too, in some versions of Python.

    Raises:
        OSError: the system does not answer, for example because of an error of the disk.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def remove_drafts(path: Path) -> None:
    """Delete the drafts of `path` that killed processes left; no other process may be writing it."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*{DRAFT}"):
        draft.unlink(missing_ok=True)


def synchronise(path: Path) -> None:
    """Wait until a file or a folder is on disk; a rename is durable once its folder is synchronised."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add a path to an error of the system that names no file, as those of an open file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror:
            error.filename = str(path)
        raise
