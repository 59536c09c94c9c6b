"""Files that survive a crash: training checkpoints and encoders. Whole or not there, and checked when they
are read.

    save(folder, state, epoch)               # epoch-00003.pt; the two newest stay
    save(folder, state, 3, step=7, steps=20) # epoch-00003-step-000007-of-000020.pt: 7 of the 20 steps of the
    epoch after the third latest(folder)                           # the newest whole state, or None
    save_encoder(path, tensors, spec_id=...) # safetensors that know which run they are from
    load_encoder(path, spec_id=...)

A file is written beside its place, synchronised and then renamed, so that a kill or a full disk leaves the
one before it. A checkpoint is what `torch.save` writes with the 32 bytes of its SHA-256 behind it;
`torch.load` reads it too.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from reproduce.lazy import torch
from reproduce.messages import InvalidError, NotFoundError
from reproduce.runs.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_BYTES = 32
SPEC, DIGEST = "spec_id", "sha256"
"""Keys of an encoder file's metadata."""
LARGEST_HEADER = 100_000_000
"""Bytes: the limit of safetensors itself."""
DETECTRON2, LAST, FINISHED = "detectron2", "last_checkpoint", "model_final.pth"
"""A run's folder in which Detectron2 keeps its own checkpoints; the file there that names the newest; what
that is called where nothing is left to train (fvcore/common/checkpoint.py)."""

NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+)-of-(\d+))?")
"""Of a checkpoint's file, without the ending: epochs done, then steps of the one under way."""

logger = logging.getLogger(__name__)


def save(
    folder: Path, state: Mapping[str, Any], epoch: int, *, step: int = 0, steps: int = 0, keep: int = 2
) -> Path:
    """Writes the checkpoint of `epoch` and removes all but the `keep` newest, and what killed processes left
    half-written.

    Args:
        state: dicts, lists, tuples, tensors, numbers, strings and None, nested at will.
        epoch: how many are done.
        step: how many steps of the next one are done, of its `steps`; 0: none.

    Raises:
        TypeError: something else is inside, which could not be read back; the message names it.
        OSError: the file cannot be written, as on a full disk; the checkpoints before it are intact.
    """
    _check(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    path = _path(folder, epoch, step, steps)
    for leftover in folder.glob(".epoch-*.tmp"):
        leftover.unlink(missing_ok=True)
    write_atomic(path, content, hashlib.sha256(content).digest(), durable=True)
    for old in _newest_first(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def latest(folder: Path, device: str = "cpu") -> dict[str, Any] | None:
    """The newest state in `folder` that is whole; a broken file is passed over with a warning. None: there is
    none.

    Args:
        device: where its tensors are put.
    """
    for path in _newest_first(folder):
        content = memoryview(path.read_bytes())
        payload, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == digest:
            state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
            return state
        logger.warning(
            "Checkpoint %s is broken (%d bytes, wrong digest); the one before it is used.", path, len(content)
        )
    return None


def newest(folder: Path) -> float:
    """How many epochs the newest checkpoint in `folder` has behind it, by its name, without reading it; 0:
    there is none.

    Of a detector it is iterations; infinity: all of them.
    """
    return max(_by_epochs(folder), default=_of_detectron2(folder / DETECTRON2 / LAST))


def discard(folder: Path) -> None:
    """Removes the checkpoints in `folder`: its run is finished and recorded."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """The files and folders that `discard` removes."""
    return [*_newest_first(folder), *([folder / DETECTRON2] if (folder / DETECTRON2).is_dir() else [])]


def save_encoder(path: Path, tensors: Mapping[str, Tensor], *, spec_id: str) -> Path:
    """Writes an encoder's tensors as safetensors with the id of the run that trained it and a digest of their
    values.

    Raises:
        OSError: the file cannot be written; an encoder that was there before is intact.
    """
    from safetensors.torch import save as serialise

    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return write_atomic(path, serialise(owned, metadata={SPEC: spec_id, DIGEST: digest(owned)}), durable=True)


def load_encoder(path: Path, *, spec_id: str) -> dict[str, Tensor]:
    """The tensors that `save_encoder` wrote, on the CPU.

    Raises:
        LookupError: there is no such file.
        ValueError: the file is broken, or another run's.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise NotFoundError(
            f"There is no encoder {path}: the pretraining run {spec_id} has not finished here. Run it first."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a safetensors file is no dict
    except SafetensorError as error:
        raise InvalidError(
            f"Encoder {path} is broken ({error}). Delete it and run {spec_id} again."
        ) from None
    if metadata.get(SPEC) != spec_id:
        raise InvalidError(
            f"Encoder {path} is from run {metadata.get(SPEC, 'unknown')}, not from {spec_id} as asked."
        )
    if metadata.get(DIGEST) != digest(tensors):
        raise InvalidError(
            f"Encoder {path} is broken (its values do not match their digest). Delete it and run {spec_id} again."
        )
    return tensors


def encoder_of(file: IO[bytes]) -> str:
    """The id of the run that an encoder's file, open at its beginning, says it is from; the tensors are not
    read.

    Raises:
        ValueError: it is no safetensors file, or says of no run.
    """
    try:
        return metadata(file)[SPEC]
    except KeyError:
        raise InvalidError("it is no safetensors file that names its run") from None


def metadata(file: IO[bytes]) -> dict[str, str]:
    """What a safetensors file, open at its beginning, says of itself; the tensors are not read.

    Raises:
        ValueError: it is no safetensors file.
    """
    size = int.from_bytes(file.read(8), "little")  # of the header, which is JSON
    if size > LARGEST_HEADER:
        raise InvalidError("it is no safetensors file")
    try:
        return {
            str(key): str(value) for key, value in json.loads(file.read(size)).get("__metadata__", {}).items()
        }
    except (ValueError, AttributeError, RecursionError):
        raise InvalidError("it is no safetensors file") from None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values of CPU tensors, whatever their order; hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _of_detectron2(last: Path) -> float:
    """How many iterations the checkpoint that `last` names has behind it; 0: there is none."""
    try:
        name = last.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:  # not begun, or done and recorded in this moment
        return 0.0
    if name == FINISHED:
        return math.inf
    numbered = re.fullmatch(r"model_(\d{7,})\.pth", name)
    return int(numbered[1]) + 1.0 if numbered else 0.0


def _path(folder: Path, epoch: int, step: int, steps: int) -> Path:
    return folder / f"epoch-{epoch:05d}{f'-step-{step:06d}-of-{steps:06d}' if step else ''}.pt"


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, by how far they are."""
    found = _by_epochs(folder)
    return [found[epochs] for epochs in sorted(found, reverse=True)]


def _by_epochs(folder: Path) -> dict[float, Path]:
    """The checkpoints in `folder` by the epochs behind them; of two that are equally far either will do."""
    found = ((NAME.fullmatch(path.stem), path) for path in folder.glob("epoch-*.pt"))
    return {
        int(name[1]) + (int(name[2]) / int(name[3]) if name[2] else 0.0): path for name, path in found if name
    }


def _check(value: object, where: str) -> None:
    """Raises TypeError for what `torch.load(weights_only=True)` would refuse to read back."""
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        for key, item in value.items():
            _check(key, f"a key of {where}")
            _check(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):  # type: ignore[arg-type]
            _check(item, f"{where}[{index}]")
    elif (
        value is not None
        and type(value) not in (bool, int, float, str, bytes)
        and not isinstance(value, torch.Tensor)
    ):
        raise TypeError(
            f"{where} is a {type(value).__name__}: a checkpoint holds dicts, lists, tuples, tensors, numbers, strings and None."
        )
