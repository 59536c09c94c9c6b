"""Random streams that follow from counters: the same key gives the same numbers, whatever was drawn before.

torch's CPU generator keeps only the low 32 bits of its seed, so packing a run's seed and a step into one
integer makes every run draw the same numbers. The key is therefore hashed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from reproduce.lazy import torch

if TYPE_CHECKING:
    from torch import Generator


def generator(purpose: str, *counters: int) -> Generator:
    """A CPU generator whose stream is decided by `purpose` (such as `noise`) and `counters` (such as a run's
    seed and a step)."""
    return torch.Generator().manual_seed(seed(purpose, *counters))


def seed(purpose: str, *counters: int) -> int:
    """32 bits that are decided by `purpose` and `counters`, the same on every machine."""
    key = " ".join((purpose, *(str(int(counter)) for counter in counters)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little")
