"""Training checkpoints: files that survive a crash and are checked when they are read.

    save(folder, spec_id, state, epoch)                # epoch-00003.pt; keeps the two newest of the run
    save(folder, spec_id, state, 3, step=7, steps=20)  # epoch-00003-step-000007-of-000020.pt: 7 of 20 steps
    latest(folder, spec_id)                            # the run's newest intact state, or None

Each file is written under a temporary name, synchronised and then renamed, so a kill or a full disk leaves
the previous file intact. A checkpoint is the output of `torch.save` followed by a seal: the id of its run and
a SHA-256 of both. `torch.load` can read it too. A file that names another run is never continued, replaced or
deleted; one without a seal, as older versions wrote it, is not continued either.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from reproduce.lazy import torch
from reproduce.runs.files import is_regular, naming, new_file, read_regular, synchronise

MARK, ID_BYTES, DIGEST_BYTES = b"msbreg\x001", 24, 32
"""First bytes of a seal; the number of bytes of the id after them, and of the digest after that."""
SEAL = len(MARK) + ID_BYTES + DIGEST_BYTES
"""Number of bytes of a seal."""
DETECTRON2, LAST, FINISHED = "detectron2", "last_checkpoint", "model_final.pth"
"""Subfolder with Detectron2's own checkpoints; the file in it that names the newest; the name of the newest
when training is complete (fvcore/common/checkpoint.py)."""
LONGEST_NAME = 1000
"""Maximum number of bytes in the file that names Detectron2's newest checkpoint."""

NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+)-of-(\d*[1-9]\d*))?")
"""Stem of a checkpoint's file name: finished epochs, then finished steps of the current epoch."""
MOVED = re.compile(r"epoch-.*\.pt\.of-.*", re.DOTALL)
"""Name of another run's checkpoint that `move_foreign` has renamed."""

logger = logging.getLogger(__name__)


def save(
    folder: Path,
    spec_id: str,
    state: Mapping[str, Any],
    epoch: int,
    *,
    step: int = 0,
    steps: int = 0,
    keep: int = 2,
    hold: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint of `epoch` and delete all but the `keep` newest of the run.

    Half-written files of killed processes are deleted too. Files of other runs stay. Nothing of the state is
    collected in memory, and other threads continue while it is hashed and written.

    Args:
        spec_id: id of the run.
        state: dicts, lists, tuples, tensors, numbers, strings and None, nested in any way.
        epoch: number of finished epochs.
        step: number of finished steps of the next epoch, out of `steps`; 0 between two epochs.
        hold: called right before the file gets its name. It raises if another process has taken over the run.

    Raises:
        TypeError: `state` contains another type, which could not be read back; the message names it.
        OSError: the file cannot be written, for example because the disk is full; earlier checkpoints are
            intact.
    """
    _check(state, "state")
    path = _path(folder, epoch, step, steps)
    for leftover in folder.glob(".epoch-*.tmp"):
        leftover.unlink(missing_ok=True)
    move_foreign(path, spec_id)
    with new_file(path, durable=True, ready=hold) as file:
        hashed = _Hashed(file)
        torch.save(state, hashed)  # type: ignore[arg-type]  # it needs these two methods alone
        hashed.check()
        file.write(_seal(hashed.total, spec_id))
    newest = _newest_first(folder, spec_id)[:keep]
    for old in _newest_first(folder):
        if old not in newest and owner(old) in (spec_id, None):
            old.unlink(missing_ok=True)
    return path


def latest(folder: Path, spec_id: str, device: str = "cpu") -> dict[str, Any] | None:
    """Return the run's newest intact state in `folder`, or None if there is none.

    A broken file, a file of another run and one that names no run are skipped with a warning.

    Args:
        device: device for the tensors.

    Raises:
        OSError: the folder or a checkpoint cannot be read. An older state would lose progress.
    """
    for path in _newest_first(folder):
        with naming(path):
            content = memoryview(path.read_bytes())
        if (problem := _problem(content, spec_id)) is None:
            payload = io.BytesIO(content[:-SEAL])
            return dict(torch.load(payload, map_location=device, weights_only=True))
        logger.warning("Checkpoint %s %s: it is not used.", path, problem)
    return None


def newest(folder: Path, spec_id: str) -> float:
    """Return the number of epochs in the run's newest checkpoint in `folder`, or 0 if there is none.

    The number is taken from the file's name; only the seal is read. For a detector it counts iterations, and
    infinity means that training is complete.
    """
    own = (epochs for epochs, path in _by_epochs(folder) if owner(path) == spec_id)
    return max(own, default=_of_detectron2(folder / DETECTRON2, spec_id))


def seal(path: Path, spec_id: str) -> None:
    """Append the seal of a run to a checkpoint that another library wrote, and synchronise the file.

    Raises:
        OSError: the disk is full.
    """
    total = hashlib.sha256()
    with path.open("r+b") as file:
        while part := file.read(2**24):
            total.update(part)
        file.write(_seal(total, spec_id))
    synchronise(path)


def usable(path: Path, spec_id: str) -> bool:
    """Return True if `path` is an intact checkpoint of the run; log a warning if it exists and is not.

    Raises:
        OSError: the file exists, but cannot be read.
    """
    if not is_regular(path):
        return False
    with naming(path):
        content = memoryview(path.read_bytes())
    if problem := _problem(content, spec_id):
        logger.warning("Checkpoint %s %s: it is not used.", path, problem)
    return not problem


def owner(path: Path) -> str | None:
    """Return the id of the run that a checkpoint names; None if it has no seal or does not exist.

    Raises:
        OSError: the file exists, but cannot be read.
    """
    if not is_regular(path):
        return None
    with naming(path), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - SEAL))
        return _named(file.read(SEAL))


def move_foreign(path: Path, spec_id: str) -> None:
    """Rename the checkpoint at `path` if it is another run's, so that it is not overwritten."""
    if (other := owner(path)) not in (None, spec_id):
        named = re.sub(r"[^\w-]", "_", str(other))  # the id in a broken file may be anything
        path.replace(path.with_name(f"{path.name}.of-{named}"))


def discard(folder: Path, spec_id: str) -> None:
    """Delete the checkpoints of a run that is finished and recorded; files of other runs stay.

    If they cannot be deleted, a warning is logged: nothing is lost.
    """
    try:
        for path in leftovers(folder):
            if path.is_dir():
                if all(owner(each) in (spec_id, None) for each in path.glob("*.pth*")):
                    shutil.rmtree(path, ignore_errors=True)
            elif owner(path) in (spec_id, None):
                path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("Checkpoints of the finished run stay in %s (%s).", folder, error.strerror)


def leftovers(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, of any run: files, and the subfolder of Detectron2.

    Raises:
        OSError: the folder cannot be read.
    """
    moved = sorted(path for path in _files(folder) if MOVED.fullmatch(path.name))
    return [
        *_newest_first(folder),
        *moved,
        *([folder / DETECTRON2] if (folder / DETECTRON2).is_dir() else []),
    ]


class _Hashed:
    """A file that torch writes a state to, and the hash of its content.

    An error of the disk waits for `check`, because torch would replace it by an error of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.total = hashlib.sha256()

    def write(self, data: memoryview) -> int:
        """Write and hash a piece; neither keeps other threads from running."""
        if self._error is None:
            try:
                self._file.write(data)
                self.total.update(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: the file is synchronised when it is complete."""

    def check(self) -> None:
        """Raise the first error of the disk, if there was one."""
        if self._error is not None:
            raise self._error


def _seal(payload: Any, spec_id: str) -> bytes:
    """Return the seal of a checkpoint.

    Args:
        payload: SHA-256 object of everything before the seal; it is changed.
    """
    name = spec_id.encode().ljust(ID_BYTES, b"\0")
    assert len(name) == ID_BYTES, f"The id {spec_id} is too long."
    payload.update(MARK + name)
    return MARK + name + bytes(payload.digest())


def _named(seal: bytes | memoryview) -> str | None:
    """Return the id in a seal; None if these bytes are not a seal."""
    if len(seal) != SEAL or bytes(seal[: len(MARK)]) != MARK:
        return None
    return bytes(seal[len(MARK) : -DIGEST_BYTES]).rstrip(b"\0").decode(errors="replace")


def _problem(content: memoryview, spec_id: str) -> str | None:
    """Return in words why a checkpoint with this content cannot be continued by a run, or None if it can."""
    payload, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return f"is broken ({len(content)} bytes, wrong digest)"
    other = _named(content[-SEAL:])
    if other is None:
        return "names no run, as an older version wrote it"
    return None if other == spec_id else f"is run {other}'s, not run {spec_id}'s"


def _of_detectron2(folder: Path, spec_id: str) -> float:
    """Return the number of iterations in the checkpoint that LAST names, or 0 if it is not the run's."""
    try:
        name = read_regular(folder / LAST, LONGEST_NAME)[0].decode(errors="replace").strip()
    except OSError:  # not started yet, or finished and recorded just now
        return 0.0
    numbered = re.fullmatch(r"model_(\d{7,})\.pth", name)
    if not (numbered or name == FINISHED) or owner(folder / name) != spec_id:
        return 0.0
    return int(numbered[1]) + 1.0 if numbered else math.inf


def _path(folder: Path, epoch: int, step: int, steps: int) -> Path:
    return folder / f"epoch-{epoch:05d}{f'-step-{step:06d}-of-{steps:06d}' if step else ''}.pt"


def _newest_first(folder: Path, spec_id: str | None = None) -> list[Path]:
    """Return the checkpoints in `folder`, the most advanced first; with `spec_id`, only those of the run."""
    return [path for _, path in sorted(_by_epochs(folder), reverse=True) if spec_id in (None, owner(path))]


def _by_epochs(folder: Path) -> Iterator[tuple[float, Path]]:
    """Yield the number of finished epochs and the path of each checkpoint in `folder`, of any run."""
    for path in _files(folder):
        if (name := NAME.fullmatch(path.stem)) and path.suffix == ".pt" and is_regular(path):
            yield int(name[1]) + (int(name[2]) / int(name[3]) if name[2] else 0.0), path


def _files(folder: Path) -> list[Path]:
    """Return everything in a folder; nothing if it does not exist.

    `Path.glob` returns nothing after an error of the disk, too, in some versions of Python.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _check(value: object, where: str) -> None:
    """Raise TypeError for a value that `torch.load(weights_only=True)` would refuse to read back."""
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        for key, item in value.items():
            _check(key, f"a key of {where}")
            _check(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):  # type: ignore[arg-type]
            _check(item, f"{where}[{index}]")
    elif (
        value is not None
        and type(value) not in (bool, int, float, str)
        and not isinstance(value, torch.Tensor)
    ):
        raise TypeError(
            f"{where} is a {type(value).__name__}: a checkpoint can contain dicts, lists, tuples, tensors, "
            "numbers, strings and None."
        )
