"""k-means by Lloyd's iterations, on the device of the rows.

    clusters = kmeans(rows, 100, iterations=20, seed=seeds.seed("clusters", run, epoch))
    clusters.labels, clusters.centroids, clusters.distances

The first centroids are distinct random rows, as in faiss (facebookresearch/faiss Clustering.h). A cluster
without rows moves to a row that is far from its centroid, as in scikit-learn
(sklearn/cluster/_k_means_common.pyx).

All processes hold the same rows. Each assigns a share of them, in blocks of a fixed size, and all compute the
centroids of the gathered assignment in the same order. The result is therefore the same, bit for bit, on
every process and on any number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from reproduce.nn import distributed

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2**13
"""Rows that one process assigns before the next block, which is another's."""
DISTANCES = 2**28
"""Maximum number of distances that are computed together, 1.07 GB in float32.

A block with more of them, of more than 32 768 centroids, is assigned in pieces.
"""


class Clusters(NamedTuple):
    """Rows divided into k clusters."""

    labels: Tensor
    """Number of the cluster of each row, (n,)."""
    centroids: Tensor
    """Means of the clusters before the last assignment, (k, dim)."""
    distances: Tensor
    """Squared distance of each row to its centroid, (n,)."""


@torch.no_grad()
def kmeans(
    rows: Tensor,
    k: int,
    *,
    iterations: int,
    seed: int,
    restarts: int = 1,
    before_iteration: Callable[[], None] = lambda: None,
) -> Clusters:
    """Divide rows into clusters with a small sum of squared distances to their centroids.

    Args:
        rows: (n, dim), the same in all processes.
        k: number of clusters, at most n.
        iterations: number of Lloyd's iterations. Fewer are done if no row changes its cluster.
        seed: 32 bits that determine the first centroids.
        restarts: number of starts, of which the one with the smallest sum counts.
        before_iteration: called by all processes together; it may raise to stop the work.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.randperm(len(rows), generator=generator)[:k].to(rows.device) for _ in range(restarts)]
    found = [
        lloyd(rows, rows[start], iterations=iterations, before_iteration=before_iteration) for start in starts
    ]
    sums = torch.stack([clusters.distances.sum(dtype=torch.float64) for clusters in found])
    return found[int(sums.argmin())]


@torch.no_grad()
def lloyd(
    rows: Tensor,
    centroids: Tensor,
    *,
    iterations: int,
    before_iteration: Callable[[], None] = lambda: None,
) -> Clusters:
    """Return the clusters after Lloyd's iterations from given centroids, (k, dim)."""
    labels, distances = assign(rows, centroids)
    for _ in range(iterations):
        before_iteration()
        centroids, before = means(rows, labels, distances, len(centroids)), labels
        labels, distances = assign(rows, centroids)
        if torch.equal(labels, before):
            break
    return Clusters(labels, centroids, distances)


def assign(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of each row's nearest centroid and the squared distance to it, (n,) each."""
    half = centroids.square().sum(dim=1) / 2
    blocks, processes = torch.split(rows, BLOCK), distributed.world_size()
    each = -(-len(blocks) // processes)
    labels = torch.zeros(each, BLOCK, dtype=torch.int64, device=rows.device)
    distances = rows.new_zeros(each, BLOCK)
    for number, block in enumerate(blocks[distributed.rank() :: processes]):
        pieces = torch.split(block, max(1, DISTANCES // len(centroids)))
        nearest = torch.cat([torch.addmm(half, x, centroids.T, alpha=-1).argmin(dim=1) for x in pieces])
        labels[number, : len(block)] = nearest
        distances[number, : len(block)] = (block - centroids[nearest]).square().sum(dim=1)
    return _whole(labels, len(rows)), _whole(distances, len(rows))


def _whole(mine: Tensor, n: int) -> Tensor:
    """Return the values of all n rows from those of each process's blocks, which alternate."""
    everyone: Tensor = distributed.gather(mine).view(-1, *mine.shape)  # (processes, blocks of each, BLOCK)
    return everyone.transpose(0, 1).reshape(-1)[:n]


def means(rows: Tensor, labels: Tensor, distances: Tensor, k: int) -> Tensor:
    """Return the mean row of each cluster, (k, dim).

    An empty cluster takes the row with the largest distance. That row also leaves the mean of its own
    cluster. Several empty clusters take several such rows. The sums have the order of the rows, on a GPU,
    too.
    """
    counts = labels.bincount(minlength=k)
    order = labels.argsort(stable=True)
    sums = torch.segment_reduce(rows[order], "sum", lengths=counts, axis=0)
    empty = (counts == 0).nonzero().flatten()
    if len(empty):
        far = distances.topk(len(empty)).indices
        for cluster, row in zip(empty.tolist(), far.tolist(), strict=True):
            sums[labels[row]] -= rows[row]
            counts[labels[row]] -= 1
            sums[cluster], counts[cluster] = rows[row], 1
    return sums / counts.clamp(min=1).unsqueeze(1)
