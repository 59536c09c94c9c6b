"""Files that survive a crash: training checkpoints and encoders. Whole or not there, and checked when they are read.

    save(folder, state, epoch)               # epoch-00003.pt; the two newest stay
    latest(folder)                           # the newest whole state, or None
    save_encoder(path, tensors, spec_id=...) # safetensors that know which run they are from
    load_encoder(path, spec_id=...)

A file is written beside its place, synchronised and then renamed, so that a kill or a full disk leaves the one before it. A checkpoint is
what `torch.save` writes with the 32 bytes of its SHA-256 behind it; `torch.load` reads it too.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from reproduce.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_BYTES = 32
SPEC, DIGEST = "spec_id", "sha256"
"""Keys of an encoder file's metadata."""
LARGEST_HEADER = 100_000_000
"""Bytes: the limit of safetensors itself."""
DETECTRON2 = "detectron2"
"""The folder of a run in which Detectron2 keeps its own checkpoints."""

logger = logging.getLogger(__name__)


def save(folder: Path, state: Mapping[str, Any], epoch: int, *, keep: int = 2) -> Path:
    """Writes the checkpoint of `epoch` and removes all but the `keep` newest, and what killed processes left half-written.

    Args:
        state: dicts, lists, tuples, tensors, numbers, strings and None, nested at will.

    Raises:
        TypeError: something else is inside, which could not be read back; the message names it.
        OSError: the file cannot be written, as on a full disk; the checkpoints before it are intact.
    """
    _check(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, epoch)
    for leftover in folder.glob(".epoch-*.tmp"):
        leftover.unlink(missing_ok=True)
    write(path, content, hashlib.sha256(content).digest())
    for old in _newest_first(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def latest(folder: Path, device: str = "cpu") -> dict[str, Any] | None:
    """The newest state in `folder` that is whole; a broken file is passed over with a warning. None: there is none.

    Args:
        device: where its tensors are put.
    """
    for path in _newest_first(folder):
        content = memoryview(path.read_bytes())
        payload, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == digest:
            state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
            return state
        logger.warning("Checkpoint %s is broken (%d bytes, wrong digest); the one before it is used.", path, len(content))
    return None


def newest(folder: Path) -> int:
    """The epoch of the newest checkpoint in `folder` by its name, without reading it; 0: there is none."""
    return max((int(path.stem.removeprefix("epoch-")) for path in folder.glob("epoch-*.pt")), default=0)


def discard(folder: Path) -> None:
    """Removes the checkpoints in `folder`: its run is finished and recorded."""
    for path in _newest_first(folder):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / DETECTRON2, ignore_errors=True)


def save_encoder(path: Path, tensors: Mapping[str, Tensor], *, spec_id: str) -> Path:
    """Writes an encoder's tensors as safetensors with the id of the run that trained it and a digest of their values.

    Raises:
        OSError: the file cannot be written; an encoder that was there before is intact.
    """
    from safetensors.torch import save as serialise

    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, serialise(owned, metadata={SPEC: spec_id, DIGEST: digest(owned)}))
    return path


def load_encoder(path: Path, *, spec_id: str) -> dict[str, Tensor]:
    """The tensors that `save_encoder` wrote, on the CPU.

    Raises:
        LookupError: there is no such file.
        ValueError: the file is broken, or another run's.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise LookupError(f"There is no encoder {path}: the pretraining run {spec_id} has not finished here. Run it first.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a safetensors file is no dict
    except SafetensorError as error:
        raise ValueError(f"Encoder {path} is broken ({error}). Delete it and run {spec_id} again.") from None
    if metadata.get(SPEC) != spec_id:
        raise ValueError(f"Encoder {path} is from run {metadata.get(SPEC, 'unknown')}, not from {spec_id} as asked.")
    if metadata.get(DIGEST) != digest(tensors):
        raise ValueError(f"Encoder {path} is broken (its values do not match their digest). Delete it and run {spec_id} again.")
    return tensors


def encoder_of(file: IO[bytes]) -> str:
    """The id of the run that an encoder's file, open at its beginning, says it is from; the tensors are not read.

    Raises:
        ValueError: it is no safetensors file, or says of no run.
    """
    size = int.from_bytes(file.read(8), "little")  # of the header, which is JSON
    if size > LARGEST_HEADER:
        raise ValueError("it is no safetensors file")
    try:
        return str(json.loads(file.read(size))["__metadata__"][SPEC])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("it is no safetensors file that names its run") from None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values of CPU tensors, whatever their order; hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:05d}.pt"


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, by epoch."""
    return sorted(folder.glob("epoch-*.pt"), key=lambda path: int(path.stem.removeprefix("epoch-")), reverse=True)


def write(path: Path, *parts: bytes | memoryview) -> None:
    """Puts a file in its place, whole or not at all.

    Raises:
        OSError: there is no room or no permission; what was at `path` is as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, f"{path} cannot be written ({error.strerror}); what was saved before is intact") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # A rename is only durable once its folder is.
    finally:
        os.close(folder)


def _check(value: object, where: str) -> None:
    """Raises TypeError for what `torch.load(weights_only=True)` would refuse to read back."""
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        for key, item in value.items():
            _check(key, f"a key of {where}")
            _check(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):  # type: ignore[arg-type]
            _check(item, f"{where}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str, bytes) and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{where} is a {type(value).__name__}: a checkpoint holds dicts, lists, tuples, tensors, numbers, strings and None."
        )
