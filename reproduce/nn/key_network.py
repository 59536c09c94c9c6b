"""A query network, the key network that follows it, and queues of keys.

Source: facebookresearch/moco moco/builder.py.

    q = online(v) hat       with gradient
    k = target(v') hat      without gradient
    Q                       keys of earlier steps, without those of this one

The images of a step are permuted before they become keys, and the keys are put back. So the groups of images
that share the statistics of BatchNorm are others than those of the queries. Without this, a query could
recognise its key by the statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from reproduce.nn import distributed, seeds
from reproduce.nn.networks import Network
from reproduce.nn.queue import Queue

if TYPE_CHECKING:
    from torch import Tensor


class MomentumContrast(Network):
    """The online network makes queries, its target makes keys; each direction has a queue of its own.

    A direction is a pair of views, one for the queries and one for the keys.
    """

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, *, dim: int, num_rows: int, num_queues: int
    ) -> None:
        """Create the networks and `num_queues` queues of `num_rows` keys with `dim` dimensions."""
        super().__init__(backbone, projector, with_target=True)
        self.queues = nn.ModuleList(Queue(num_rows, dim) for _ in range(num_queues))
        self._made: dict[int, Tensor] = {}
        """Keys of this step by direction. They join the queues at its end."""

    def queue(self, direction: int) -> Tensor:
        """Return the keys of earlier steps in one direction, unit vectors, (num_rows, dim)."""
        return self.queues[direction].get_buffer("rows")

    @torch.no_grad()
    def keys(self, view: Tensor, direction: int, *, seed: int, step: int) -> Tensor:
        """Return the keys of this process's images, unit vectors, (n, dim), in the order of the images.

        Args:
            view: (n, 3, size, size).
            seed: seed of the run. The permutation follows from it, from `step` and from `direction`.
        """
        images = len(view) * distributed.world_size()
        permutation = seeds.shuffled(images, seed, step, direction)
        permuted = self.project(distributed.exchange(view, permutation))
        k = F.normalize(distributed.exchange(permuted, distributed.inverse(permutation)), dim=1)
        self._made[direction] = k
        return k

    def advance(self, momentum: float, *, step: int) -> dict[str, float]:
        """End step number `step`: queue its keys and move the key network; return the rate for the log."""
        for direction, k in self._made.items():
            queue = self.queues[direction]
            assert isinstance(queue, Queue)
            queue.push(k, at=step * len(k) * distributed.world_size())
        self._made = {}
        return self.follow_at(momentum)


def contrastive_loss(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of a query's own key among it and the queue, from unit vectors.

    Args:
        q: queries, (n, d).
        k: their keys, (n, d).
        negatives: the queue Q, (K, d).
    """
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ negatives.T], dim=1) / temperature  # (n, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))
