"""Encoder files: safetensors with a digest of their tensors and the id of the run that trained them.

    save(path, tensors, spec_id=...)
    load(path, spec_id=...)             # the tensors, compared with their digest
    digest_of(path)                     # from the header alone

The same tensors give the same bytes. A file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from reproduce.lazy import torch
from reproduce.messages import InvalidError, NotFoundError, first_line
from reproduce.runs.files import is_regular, naming, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

SPEC, DIGEST = "spec_id", "sha256"
"""Keys of the file's metadata."""
LARGEST_HEADER = 100_000_000
"""Maximum number of bytes in a header, the limit of safetensors itself."""


def save(path: Path, tensors: Mapping[str, Tensor], *, spec_id: str) -> Path:
    """Write an encoder's tensors as safetensors, with a digest and the id of the run that trained it.

    The same tensors give the same bytes, in any order and in any process.

    Raises:
        OSError: the file cannot be written; a previous encoder is intact.
    """
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return write_atomic(path, *_serialised(owned, {SPEC: spec_id, DIGEST: digest(owned)}), durable=True)


def load(path: Path, *, spec_id: str) -> dict[str, Tensor]:
    """Return the tensors that `save` wrote, on the CPU.

    Raises:
        LookupError: the file does not exist.
        ValueError: the file is broken, or belongs to another run.
        OSError: the file cannot be read.
    """
    try:
        with naming(path):
            content = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"Encoder {path} does not exist: its pretraining run {spec_id} has not finished on this machine, "
            f"or the file was lost. `invoke redo {spec_id}` trains a finished one again."
        ) from None
    try:
        return read(content, spec_id=spec_id)
    except InvalidError as error:
        raise InvalidError(
            f"Encoder {path} cannot be used, because {error}. Move it away if the tracking store has a copy; "
            f"otherwise `invoke redo {spec_id}` trains it again."
        ) from None


def read(content: bytes, *, spec_id: str) -> dict[str, Tensor]:
    """Return the tensors of an encoder's file that is in memory, compared with their digest.

    Raises:
        ValueError: the content is not an encoder, is broken, or belongs to another run. The message is the
            end of a sentence about the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    if (named := owner(io.BytesIO(content))) != spec_id:
        raise InvalidError(f"it is the encoder of run {named:.60}")
    try:
        tensors = deserialise(content)
        same = metadata(io.BytesIO(content)).get(DIGEST) == digest(tensors)
    except (SafetensorError, TypeError, ValueError) as error:
        raise InvalidError(f"it is broken ({first_line(error)})") from None
    if not same:
        raise InvalidError("its values do not match its digest")
    return tensors


def owner(file: IO[bytes]) -> str:
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


def digest_of(path: Path) -> str:
    """Return the digest that an encoder's file names, without reading the tensors; "" if there is none.

    Raises:
        OSError: the file exists, but cannot be read.
    """
    if not is_regular(path):
        return ""
    try:
        with naming(path), path.open("rb") as file:
            return metadata(file).get(DIGEST, "")
    except ValueError:
        return ""


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


def _serialised(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in parts, with a header in sorted order.

    The library itself sorts the tensors, but writes the metadata in an order that differs in each process.
    """
    from safetensors.torch import save as serialise

    content = serialise(dict(tensors), metadata=dict(about))
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of 8 bytes
    yield len(header).to_bytes(8, "little") + header
    yield memoryview(content)[8 + size :]
