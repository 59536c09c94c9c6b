"""Operations over processes that carry gradients: gathering the rows of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch import Tensor


class Gather(torch.autograd.Function):
    """(n, ...) of each process -> (world_size x n, ...), the same in all; n must be the same in all.

    The gradient of a process is the sum over all processes of their losses' gradients with respect to its
    rows. DistributedDataParallel then averages over the processes. So if every process computes the same loss
    from gathered rows, the gradient is that of one process on the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the rows of all processes in the order of their ranks."""
        ctx.rows = len(x)
        everyone = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
        ]
        dist.all_gather(everyone, x.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return this process's rows of the summed gradient."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.rows :][: ctx.rows]
