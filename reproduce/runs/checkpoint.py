"""Training checkpoints and encoders: files that survive a crash and are checked when they are read.

    save(folder, state, epoch)                # epoch-00003.pt; keeps the two newest
    save(folder, state, 3, step=7, steps=20)  # epoch-00003-step-000007-of-000020.pt: 7 of 20 steps done
    latest(folder)                            # the newest intact state, or None
    save_encoder(path, tensors, spec_id=...)  # safetensors that name the run that trained them
    load_encoder(path, spec_id=...)

Each file is written under a temporary name, synchronised and then renamed, so a kill or a full disk leaves
the previous file intact. A checkpoint is the output of `torch.save` followed by the 32 bytes of its SHA-256;
`torch.load` can read it too.
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
from reproduce.messages import InvalidError, NotFoundError, first_line
from reproduce.runs.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_BYTES = 32
SPEC, DIGEST = "spec_id", "sha256"
"""Keys of an encoder file's metadata."""
LARGEST_HEADER = 100_000_000
"""Maximum number of bytes in a header, the limit of safetensors itself."""
DETECTRON2, LAST, FINISHED = "detectron2", "last_checkpoint", "model_final.pth"
"""Subfolder with Detectron2's own checkpoints; the file in it that names the newest; the name of the newest
when training is complete (fvcore/common/checkpoint.py)."""

NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+)-of-(\d+))?")
"""Stem of a checkpoint's file name: finished epochs, then finished steps of the current epoch."""

logger = logging.getLogger(__name__)


def save(
    folder: Path, state: Mapping[str, Any], epoch: int, *, step: int = 0, steps: int = 0, keep: int = 2
) -> Path:
    """Write the checkpoint of `epoch` and delete all but the `keep` newest.

    Half-written files of killed processes are deleted too.

    Args:
        state: dicts, lists, tuples, tensors, numbers, strings and None, nested in any way.
        epoch: number of finished epochs.
        step: number of finished steps of the next epoch, out of `steps`; 0 between two epochs.

    Raises:
        TypeError: `state` contains another type, which could not be read back; the message names it.
        OSError: the file cannot be written, for example because the disk is full; earlier checkpoints are
            intact.
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
    """Return the newest intact state in `folder`, or None if there is none.

    A broken file is skipped with a warning.

    Args:
        device: device for the tensors.
    """
    for path in _newest_first(folder):
        content = memoryview(path.read_bytes())
        payload, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == digest:
            return dict(torch.load(io.BytesIO(payload), map_location=device, weights_only=True))
        logger.warning(
            "Checkpoint %s is broken (%d bytes, wrong digest); using the previous one.", path, len(content)
        )
    return None


def newest(folder: Path) -> float:
    """Return the number of epochs in the newest checkpoint of `folder`, or 0 if there is none.

    The number is taken from the file's name; the file is not read. For a detector it counts iterations, and
    infinity means that training is complete.
    """
    return max(_by_epochs(folder), default=_of_detectron2(folder / DETECTRON2 / LAST))


def discard(folder: Path) -> None:
    """Delete the checkpoints in `folder`, whose run is finished and recorded."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """Return the files and folders that `discard` deletes."""
    return [*_newest_first(folder), *([folder / DETECTRON2] if (folder / DETECTRON2).is_dir() else [])]


def save_encoder(path: Path, tensors: Mapping[str, Tensor], *, spec_id: str) -> Path:
    """Write an encoder's tensors as safetensors, with a digest and the id of the run that trained it.

    Raises:
        OSError: the file cannot be written; a previous encoder is intact.
    """
    from safetensors.torch import save as serialise

    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return write_atomic(path, serialise(owned, metadata={SPEC: spec_id, DIGEST: digest(owned)}), durable=True)


def load_encoder(path: Path, *, spec_id: str) -> dict[str, Tensor]:
    """Return the tensors that `save_encoder` wrote, on the CPU.

    Raises:
        LookupError: the file does not exist.
        ValueError: the file is broken, or belongs to another run.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise NotFoundError(
            f"Encoder {path} does not exist: its pretraining run {spec_id} has not finished on this machine, "
            f"or the file was lost. `invoke redo {spec_id}` trains a finished one again."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a safetensors file is not a dict
    except SafetensorError as error:
        raise InvalidError(
            f"Encoder {path} is broken ({error}). Delete it if the tracking store has a copy; otherwise "
            f"`invoke redo {spec_id}` trains it again."
        ) from None
    if metadata.get(SPEC) != spec_id:
        raise InvalidError(
            f"Encoder {path} is from run {metadata.get(SPEC, 'unknown')}, but run {spec_id}'s is expected."
        )
    if metadata.get(DIGEST) != digest(tensors):
        raise InvalidError(
            f"Encoder {path} is broken (its values do not match its digest). Delete it if the tracking store "
            f"has a copy; otherwise `invoke redo {spec_id}` trains it again."
        )
    return tensors


def read_encoder(content: bytes, *, spec_id: str) -> dict[str, Tensor]:
    """Return the tensors of an encoder's file that is in memory, compared with their digest.

    Raises:
        ValueError: the content is not an encoder, is broken, or belongs to another run. The message is the
            end of a sentence about the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if (owner := encoder_of(io.BytesIO(content))) != spec_id:
        raise InvalidError(f"it is the encoder of run {owner:.60}")
    try:
        tensors = load(content)
        same = metadata(io.BytesIO(content)).get(DIGEST) == digest(tensors)
    except (SafetensorError, TypeError, ValueError) as error:
        raise InvalidError(f"it is broken ({first_line(error)})") from None
    if not same:
        raise InvalidError("its values do not match its digest")
    return tensors


def encoder_of(file: IO[bytes]) -> str:
    """Return the id of the run that an encoder's file names, without reading the tensors.

    Args:
        file: the encoder's file, open at its beginning.

    Raises:
        ValueError: the file is not a safetensors file, or names no run.
    """
    try:
        return metadata(file)[SPEC]
    except KeyError:
        raise InvalidError("it is not a safetensors file that names its run") from None


def metadata(file: IO[bytes]) -> dict[str, str]:
    """Return the metadata of a safetensors file that is open at its beginning, without reading the tensors.

    Raises:
        ValueError: the file is not a safetensors file.
    """
    size = int.from_bytes(file.read(8), "little")  # bytes of the header, which is JSON
    if size > LARGEST_HEADER:
        raise InvalidError("it is not a safetensors file")
    try:
        return {
            str(key): str(value) for key, value in json.loads(file.read(size)).get("__metadata__", {}).items()
        }
    except (ValueError, AttributeError, RecursionError):
        raise InvalidError("it is not a safetensors file") from None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values of CPU tensors, in hexadecimal.

    The order of the tensors does not matter.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _of_detectron2(last: Path) -> float:
    """Return the number of iterations in the checkpoint that `last` names, or 0 if there is none."""
    try:
        name = last.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:  # not started yet, or finished and recorded just now
        return 0.0
    if name == FINISHED:
        return math.inf
    numbered = re.fullmatch(r"model_(\d{7,})\.pth", name)
    return int(numbered[1]) + 1.0 if numbered else 0.0


def _path(folder: Path, epoch: int, step: int, steps: int) -> Path:
    return folder / f"epoch-{epoch:05d}{f'-step-{step:06d}-of-{steps:06d}' if step else ''}.pt"


def _newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, the most advanced first."""
    found = _by_epochs(folder)
    return [found[epochs] for epochs in sorted(found, reverse=True)]


def _by_epochs(folder: Path) -> dict[float, Path]:
    """Map numbers of finished epochs to the checkpoints in `folder`; of two equal ones, either is used."""
    found = ((NAME.fullmatch(path.stem), path) for path in folder.glob("epoch-*.pt"))
    return {
        int(name[1]) + (int(name[2]) / int(name[3]) if name[2] else 0.0): path for name, path in found if name
    }


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
        and type(value) not in (bool, int, float, str, bytes)
        and not isinstance(value, torch.Tensor)
    ):
        raise TypeError(
            f"{where} is a {type(value).__name__}: a checkpoint can contain dicts, lists, tuples, tensors, "
            "numbers, strings and None."
        )
