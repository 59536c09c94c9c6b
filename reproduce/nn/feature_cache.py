"""Features on disk: what an encoder makes of un-augmented images is computed once and read by every
evaluation after that.

    x = feature_cache.once(describe, num_rows=n, site=site, device=device, compute=compute)

Files lie in `<runs>/features/`, each named by all that decides its content but the code: `VERSION` stands for
that. They may be deleted at any time, even while runs go on. A file is checked when it is read; one that is
broken is removed and made again. Reading takes about a second for a gigabyte, and the memory of the features
alone, beside the system's own cache of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.lazy import torch
from reproduce.messages import size
from reproduce.nn import distributed
from reproduce.runs import checkpoint
from reproduce.runs.files import write_atomic
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""A change of the code that moves features, in decoding, cropping, normalising or a backbone's layers, adds
one."""
WAIT = 300
"""Seconds for which one of several processes waits for another run that computes the same: the others wait
for it, and not for ever."""
NAME, CONTENT, DIGEST = "features", "content", "sha256"
"""The tensor in a file, and the keys of the file's metadata."""

logger = logging.getLogger(__name__)


def once(
    describe: Callable[[], Mapping[str, Any] | None],
    *,
    num_rows: int,
    site: Site,
    device: torch.device,
    compute: Callable[[], Tensor],
) -> Tensor:
    """What `compute` gives, (num_rows, d) float32 on the CPU, from the disk if it is there; the same on every
    process.

    Args:
        describe: all that decides the features, as JSON takes it; None: they are not to be kept. Only the
            main process asks.
        device: of this process, through which processes talk.
        compute: called by every process or by none.
    """
    main = distributed.main_process()
    content = describe() if main and site.features_gb > 0 else None
    file = _File.of(content, site) if content is not None else None
    with file.alone() if file else nullcontext():
        stored = file.read(num_rows) if file else None
        if distributed.agreed(stored is not None):
            return distributed.from_first(stored, num_rows, device)
        features = compute()
        if file:
            file.write(features, limit=int(site.features_gb * 1e9))
        return features


@dataclass(frozen=True)
class _File:
    """One tensor of features, there or not."""

    path: Path
    content: str
    """All that decides the features, as JSON."""

    @classmethod
    def of(cls, content: Mapping[str, Any], site: Site) -> _File:
        text = json.dumps({"version": VERSION, **content}, sort_keys=True)
        return cls(
            site.runs / "features" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors", text
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, nobody else computes these features or removes their file, unless somebody removes the
        lock: then work is done twice."""
        lock = _lock(self.path, timeout=-1 if distributed.world_size() == 1 else WAIT)
        with suppress(OSError):  # also what a lock's timeout is
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def read(self, num_rows: int) -> Tensor | None:
        """The features, (num_rows, d), or None: they are not there, or were broken and are no more."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                features: Tensor = file.get_tensor(NAME).clone()  # it may be mapped, and the file may go
        except (OSError, SafetensorError) as error:
            problem = str(error)
        else:
            if (
                metadata.get(CONTENT) == self.content
                and len(features) == num_rows
                and metadata.get(DIGEST) == _digest(features)
            ):
                with suppress(OSError):
                    os.utime(self.path)  # the last use, for `_evict`
                return features
            problem = "its values do not match what it says about them"
        logger.warning("Features %s are broken (%s): they are computed again.", self.path, problem)
        with suppress(OSError):
            self.path.unlink()
        return None

    def write(self, features: Tensor, limit: int) -> None:
        """Puts the features in their place, whole or not at all; what cannot be kept is a warning.

        Args:
            limit: bytes that all files together may have; the least recently used make room.
        """
        if features.nbytes > limit:
            logger.warning(
                "Features of %s are not kept: features_gb in the site file is %.3g.",
                size(features.nbytes),
                limit / 1e9,
            )
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _evict(self.path, limit - features.nbytes)
            write_atomic(self.path, *self._safetensors(features.contiguous()))
        except OSError as error:
            logger.warning("Features %s cannot be kept: %s.", self.path, error)

    def _safetensors(self, features: Tensor) -> Iterator[bytes | memoryview]:
        """The file in parts: the library would write a draft under a name that nobody knows after a kill."""
        about = {CONTENT: self.content, DIGEST: _digest(features)}
        tensor = {"dtype": "F32", "shape": list(features.shape), "data_offsets": [0, features.nbytes]}
        head = json.dumps({"__metadata__": about, NAME: tensor}).encode()
        head += b" " * (-len(head) % 8)  # the numbers begin at a multiple of 8 bytes
        yield len(head).to_bytes(8, "little") + head
        yield features.numpy().data.cast("B")


def _digest(features: Tensor) -> str:
    return checkpoint.digest({NAME: features})


def _key(path: Path) -> str:
    """Return the digits that name a file of features and its drafts."""
    return path.name.lstrip(".").split(".")[0]


def _lock(path: Path, timeout: float) -> Any:
    """The lock of the features at `path` or of a draft of them."""
    import filelock

    return filelock.FileLock(path.with_name(f"{_key(path)}.lock"), timeout=timeout)


def _evict(path: Path, limit: int) -> None:
    """Removes the drafts of killed processes, and the least recently used files until the others have at most
    `limit` bytes.

    Those at `path` are the caller's, whose lock it holds. Of the others, those whose lock somebody else holds
    are in use and stay.
    """
    mine = _key(path)
    found = [
        (other, other.stat()) for other in path.parent.iterdir() if other.suffix in (".safetensors", ".tmp")
    ]
    found.sort(key=lambda entry: (entry[0].suffix == ".safetensors", entry[1].st_mtime_ns))
    used = sum(status.st_size for _, status in found)
    for other, status in found:
        if other.suffix == ".safetensors" and used <= limit:
            return
        if _key(other) == mine or discard(other):
            other.unlink(missing_ok=True)
            used -= status.st_size


def encoder_of(path: Path) -> str:
    """The digest of the encoder whose features the file at `path` holds; empty: it does not say, or is there
    no more."""
    try:
        with path.open("rb") as file:
            return str(json.loads(checkpoint.metadata(file)[CONTENT])["encoder"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def discard(path: Path) -> bool:
    """Removes a file of features or a draft of one, unless somebody uses it; says whether it is gone."""
    try:
        with _lock(path, timeout=0):
            path.unlink(missing_ok=True)
    except OSError:  # also what a lock's timeout is
        return False
    return True
