"""One step over several processes: who this process is, and gathering with gradients. In one process every function is the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproduce.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def world_size() -> int:
    """Processes of this run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, (n, d) -> (world_size x n, d), with gradients to every process."""
    if world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(x.contiguous())))
