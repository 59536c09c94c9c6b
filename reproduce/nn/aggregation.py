"""Clusters of a memory bank's rows, and local aggregation over the neighbours that share one with an image.

Source: neuroailab/LocalAggregation-Pytorch @ b085877 src/objectives/localagg.py.

    P(j | v) = exp(v . m_j / T) / Z
    L(v, i) = -log( sum_{j in C_i} P(j | v) / sum_{j in B_i} P(j | v) + 1e-7 )

m_j is the row of image j. B_i are the rows nearest to v. C_i are those of B_i that share a cluster with image
i in at least one clustering. Row i itself belongs to both if it is among the nearest; nothing adds it
otherwise. If C_i is empty, L is -log 1e-7 = 16.118, without a gradient. Z cancels. The exponentials are those
of a softmax over B_i, which cannot overflow.

Gradients flow through v alone. The nearest rows are found in blocks of the bank. Only their products with v
are then computed with a gradient, so memory does not grow with the bank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from reproduce.nn import seeds
from reproduce.nn.bank import BankNetwork
from reproduce.nn.kmeans import kmeans

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCK = 2**17
"""Rows whose products with all vectors exist together: 67 MB for 128 vectors."""
LEAST = 1e-7
"""Summand of the ratio (localagg.py)."""


class AggregationNetwork(BankNetwork):
    """An online network, a bank that starts with unit rows, and several clusterings of it."""

    labels: Tensor
    """Number of each image's cluster, (clusterings, num_images); its own before the first clustering.

    A run that resumes within an epoch needs the clusters of the bank as it was at the start of the epoch.
    """

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, *, num_images: int, dim: int, clusterings: int
    ) -> None:
        """Create the networks, then a bank of `num_images` rows with `dim` dimensions."""
        super().__init__(backbone, projector, num_images=num_images, dim=dim, unit=True)
        self.register_buffer("labels", torch.arange(num_images).repeat(clusterings, 1))

    def cluster(
        self,
        num_clusters: int,
        *,
        iterations: int,
        seed: int,
        before_iteration: Callable[[], None] = lambda: None,
    ) -> None:
        """Replace all clusterings by those of the rows as they are now.

        The first centroids of each clustering follow from its number and the seed. As in the source, they are
        the rows of the same images each time.

        Args:
            num_clusters: number of clusters of each clustering.
            iterations: see `kmeans`.
            seed: seed of the run.
            before_iteration: see `kmeans`.
        """
        for number, labels in enumerate(self.labels):
            start = seeds.seed("clusters", seed, number)
            found = kmeans(
                self.bank.rows,
                num_clusters,
                iterations=iterations,
                seed=start,
                before_iteration=before_iteration,
            )
            labels.copy_(found.labels)

    def aggregation(self, v: Tensor, indices: Tensor, *, neighbours: int, temperature: float) -> Tensor:
        """Return the mean over images of L(v, i).

        Args:
            v: unit vectors, (n, dim).
            indices: numbers of their images, (n,), on the device of the rows.
            neighbours: number of rows in B_i.
        """
        nearest = nearest_rows(v, self.bank.rows, neighbours)  # (n, neighbours)
        close = (self.labels[:, nearest] == self.labels[:, indices].unsqueeze(2)).any(dim=0)
        products = torch.einsum("nd,nmd->nm", v, self.bank.rows[nearest])
        shares = (products / temperature).softmax(dim=1)
        return -(shares.where(close, 0).sum(dim=1) + LEAST).log().mean()


@torch.no_grad()
def nearest_rows(v: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return the numbers of the rows with the largest products with each vector, (n, count)."""
    largest = v.new_empty(len(v), 0)
    numbers = torch.empty(len(v), 0, dtype=torch.int64, device=v.device)
    for first in range(0, len(rows), BLOCK):
        products = v @ rows[first : first + BLOCK].T
        best = products.topk(min(count, products.shape[1]), dim=1)
        largest = torch.cat([largest, best.values], dim=1)
        numbers = torch.cat([numbers, best.indices + first], dim=1)
        if largest.shape[1] > count:
            largest, chosen = largest.topk(count, dim=1)
            numbers = numbers.gather(1, chosen)
    return numbers
