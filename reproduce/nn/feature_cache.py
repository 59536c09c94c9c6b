"""Cache of features on disk: the features of un-augmented images are computed once and then read.

    x = feature_cache.once(describe, num_rows=n, site=site, device=device, compute=compute)

Files are in `<runs>/features/`. The name of each depends on everything that determines its content except the
code, which `VERSION` represents. Files may be deleted at any time, even during runs. A file is checked when
it is read; a broken one is deleted and computed again. Reading takes about a second per gigabyte, and only
the memory of the features, apart from the system's own cache of the file.
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
from reproduce.runs import encoder_file
from reproduce.runs.files import write_atomic
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Version of the features. Increase it when the code changes the features: decoding, cropping, normalising or
the layers of a backbone."""
WAIT = 300
"""Seconds that rank 0 waits for another run that computes the same features. Its other processes wait for
rank 0, so the time is limited."""
NAME, CONTENT, DIGEST = "features", "content", "sha256"
"""Name of the tensor in a file, and the keys of the file's metadata."""

logger = logging.getLogger(__name__)


def once(
    describe: Callable[[], Mapping[str, Any] | None],
    *,
    num_rows: int,
    site: Site,
    device: torch.device,
    compute: Callable[[], Tensor],
) -> Tensor:
    """Return features, (num_rows, d) float32 on the CPU, from the disk or from `compute`.

    Every process gets the same features.

    Args:
        describe: returns everything that determines the features, as JSON data, or None if the features must
            not be kept. Only rank 0 calls it.
        device: device of this process, through which the processes communicate.
        compute: called by all processes or by none.
    """
    main = distributed.main_process()
    content = describe() if main and site.features_gb > 0 else None
    file = _File.of(content, site) if content is not None else None
    with file.locked() if file else nullcontext():
        stored = file.read(num_rows) if file else None
        if distributed.agreed(stored is not None):
            return distributed.from_first(stored, num_rows, device)
        features = compute()
        if file:
            file.write(features, limit=int(site.features_gb * 1e9))
        return features


@dataclass(frozen=True)
class _File:
    """One tensor of features, which may or may not exist."""

    path: Path
    content: str
    """Everything that determines the features, as JSON."""

    @classmethod
    def of(cls, content: Mapping[str, Any], site: Site) -> _File:
        text = json.dumps({"version": VERSION, **content}, sort_keys=True)
        return cls(
            site.runs / "features" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors", text
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the features for the duration of the block.

        No other process then computes these features or deletes their file. If the lock file is deleted, the
        work may be done twice.
        """
        lock = _lock(self.path, timeout=-1 if distributed.world_size() == 1 else WAIT)
        with suppress(OSError):  # includes the timeout of the lock
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def read(self, num_rows: int) -> Tensor | None:
        """Return the features, (num_rows, d), or None if they do not exist; a broken file is deleted."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                # A copy, because the tensor may be memory-mapped and the file may be deleted.
                features: Tensor = file.get_tensor(NAME).clone()
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
            problem = "its values do not match its metadata"
        logger.warning("Features %s are broken (%s) and will be computed again.", self.path, problem)
        with suppress(OSError):
            self.path.unlink()
        return None

    def write(self, features: Tensor, limit: int) -> None:
        """Write the features, completely or not at all; log a warning if they cannot be kept.

        Args:
            limit: maximum bytes of all files together. The least recently used files are deleted to make
                room.
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
        """Yield the file in parts.

        The library's own writer would leave drafts after a kill whose names cannot be found again.
        """
        about = {CONTENT: self.content, DIGEST: _digest(features)}
        tensor = {"dtype": "F32", "shape": list(features.shape), "data_offsets": [0, features.nbytes]}
        head = json.dumps({"__metadata__": about, NAME: tensor}).encode()
        head += b" " * (-len(head) % 8)  # the numbers begin at a multiple of 8 bytes
        yield len(head).to_bytes(8, "little") + head
        yield features.numpy().data.cast("B")


def _digest(features: Tensor) -> str:
    return encoder_file.digest({NAME: features})


def _key(path: Path) -> str:
    """Return the digits that name a file of features and its drafts."""
    return path.name.lstrip(".").split(".")[0]


def _lock(path: Path, timeout: float) -> Any:
    """Return the lock of the features at `path`, or of a draft of them."""
    import filelock

    return filelock.FileLock(path.with_name(f"{_key(path)}.lock"), timeout=timeout)


def _evict(path: Path, limit: int) -> None:
    """Delete drafts of killed processes and the least recently used files until at most `limit` bytes remain.

    The caller holds the lock of `path` and its drafts. A file whose lock another process holds is in use and
    stays.
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
    """Return the digest of the encoder of the features at `path`.

    Empty if the file does not contain it or no longer exists.
    """
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return str(json.loads(encoder_file.metadata(file)[CONTENT])["encoder"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def discard(path: Path) -> bool:
    """Delete a file of features or a draft of one unless it is in use, and return whether it is gone."""
    try:
        with _lock(path, timeout=0):
            path.unlink(missing_ok=True)
    except OSError:  # includes the timeout of the lock
        return False
    return True
