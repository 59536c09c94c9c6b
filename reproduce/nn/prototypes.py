"""Prototypes, the balanced codes of images over them, and the network of a method that learns both.

The source is SwAV's code (facebookresearch/swav main_swav.py, src/resnet50.py).
Scores and codes are in float32 like all heads; exp(s / .05) reaches 4.9e8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from reproduce.nn import distributed
from reproduce.nn.networks import Joint, Network
from reproduce.nn.queue import Queue

if TYPE_CHECKING:
    from torch import Tensor


class Prototypes(nn.Linear):
    """Prototypes C as the rows of a linear layer without bias, in the place of a predictor."""

    def __init__(self, dim: int, num_prototypes: int) -> None:
        """Create the prototypes with torch's initialisation of a layer; `normalise` sets their lengths."""
        super().__init__(dim, num_prototypes, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """Return the scores z hat C^T: (n, dim) -> (n, num_prototypes)."""
        return F.linear(F.normalize(z, dim=1), self.weight)

    @torch.no_grad()
    def normalise(self) -> None:
        """Give each prototype the length 1."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


class PrototypeNetwork(Network):
    """A network whose predictor returns scores, with a queue of earlier embeddings for each coded view."""

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        prototypes: Prototypes,
        *,
        joint: Joint,
        num_queues: int,
        num_rows: int,
    ) -> None:
        """Create the network.

        Args:
            num_queues: views of an image that get codes.
            num_rows: rows of each queue over all processes; 0 for no queues.
        """
        super().__init__(backbone, projector, prototypes, joint=joint)
        self.queues = nn.ModuleList(
            Queue(num_rows, prototypes.in_features) for _ in range(num_queues if num_rows else 0)
        )
        self._newest: list[Tensor] = []

    @property
    def prototypes(self) -> Prototypes:
        """Prototypes, as trained by the online network."""
        prototypes: Prototypes = distributed.unwrapped(self.online).predictor
        return prototypes

    @torch.no_grad()
    def codes(
        self,
        z: Sequence[Tensor],
        scores: Sequence[Tensor],
        *,
        epsilon: float,
        iterations: int,
        with_queues: bool,
    ) -> list[Tensor]:
        """Return the codes of each coded view, (n, num_prototypes), and remember its embeddings for `push`.

        Args:
            z: embeddings of the views, (images of this process, dim) each.
            scores: scores of the same embeddings.
            with_queues: true if the queues' embeddings share the prototypes with those of the batch. They are
                scored with the current prototypes.
        """
        if self.queues:
            self._newest = [F.normalize(each, dim=1) for each in z]
        found = []
        for index, of_view in enumerate(scores):
            if with_queues:
                of_view = torch.cat([self._scores_of_queue(index), of_view])
            found.append(sinkhorn(of_view, epsilon=epsilon, iterations=iterations)[-len(scores[index]) :])
        return found

    def _scores_of_queue(self, index: int) -> Tensor:
        """Return the scores of this process's share of a queue's rows; any share will do for sums."""
        mine = self.queues[index].get_buffer("rows")[distributed.rank() :: distributed.world_size()]
        return F.linear(mine, self.prototypes.weight)

    def push(self, at: int) -> None:
        """Write the newest embeddings of all processes to the queues.

        Args:
            at: number of embeddings that were pushed before to each queue.
        """
        for queue, rows in zip(self.queues, self._newest, strict=True):
            assert isinstance(queue, Queue)
            queue.push(rows, at=at)


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Return codes Q, (n, K), in which all prototypes have about the same mass over all processes' images.

    Q = diag(c) exp(S / epsilon) diag(r). An iteration sets r so that each prototype has the same mass, then c
    so that each image's code sums to 1. The official code also divides by numbers that cancel. Without an
    iteration, Q is the softmax of each image's scores, and nothing balances the prototypes.

    Args:
        scores: S, (images of this process, K). The number of images may differ between processes.
        epsilon: weight of the codes' entropy.
    """
    e = torch.exp(scores / epsilon)
    r, c = e.new_ones(e.shape[1]), e.new_ones(e.shape[0])
    for _ in range(iterations):
        r = 1 / distributed.gather((c @ e).unsqueeze(0)).sum(dim=0)
        c = 1 / (e @ r)
    codes = e * r
    return codes / codes.sum(dim=1, keepdim=True)
