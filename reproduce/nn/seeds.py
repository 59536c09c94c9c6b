"""Random streams that are functions of counters: the same key always gives the same numbers.

torch's CPU generator keeps only the low 32 bits of its seed. If a run's seed and a step were packed into one
integer, all runs would draw the same numbers. The key is therefore hashed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from reproduce.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


def generator(purpose: str, *counters: int) -> Generator:
    """Return a CPU generator whose stream is a function of `purpose` and `counters`.

    Args:
        purpose: such as `noise`.
        counters: such as a run's seed and a step.
    """
    return torch.Generator().manual_seed(seed(purpose, *counters))


def shuffled(n: int, *counters: int, purpose: str = "keys") -> Tensor:
    """Return a permutation of the numbers 0 to n - 1 that is a function of `purpose` and `counters`.

    Args:
        n: such as the images per step over all processes.
        counters: such as a run's seed and a step.
    """
    return torch.randperm(n, generator=generator(purpose, *counters))


def seed(purpose: str, *counters: int) -> int:
    """Return 32 bits that are a function of `purpose` and `counters`, the same on every machine."""
    key = " ".join((purpose, *(str(int(counter)) for counter in counters)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little")
