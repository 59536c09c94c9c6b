"""Centroids of all images' embeddings as prototypes, and a key network that clusters its embeddings.

Source: salesforce/PCL @ 964da1f pcl/builder.py, main_pcl.py.

    phi_c = mean over the images of cluster c of || k - m_c || / log(images of c + 10)
    l(q, c) = -log( exp(q . c / phi_c) / sum_{c'} exp(q . c' / phi_c') )

k are the embeddings of the key network, m_c is the mean of those of a cluster and c = m_c hat. A cluster with
a single image takes the largest phi. All phi are clamped to their 10th and 90th percentiles and scaled to the
mean T.

c' are the centroids of all images of a group and r others. The r are drawn without replacement from the
clusters to which no image of the group belongs. If two images of a group share a centroid, it counts twice,
as the positive and as a negative of both. In the official code a group is the images of one GPU. Here it is
the group of BatchNorm, which lies in one process, so the loss does not depend on the number of devices.

Labels, centroids and phi belong to the state of the network, so a checkpoint contains them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from reproduce.nn import distributed, kmeans, seeds
from reproduce.nn.key_network import MomentumContrast

if TYPE_CHECKING:
    from torch import Tensor

SMOOTHING = 10.0
"""Summand of the number of images, so that small clusters do not get a large phi (main_pcl.py)."""
PERCENTILES = (0.1, 0.9)
"""Limits of phi (main_pcl.py)."""


class Clusterings(nn.Module):
    """Several clusterings of all images, the same in all processes."""

    labels: Tensor
    """Number of the cluster of each image in each clustering, (clusterings, num_images)."""
    centroids: Tensor
    """Unit vectors of all clusterings in a row, (sum of clusters, dim)."""
    phi: Tensor
    """Temperature of each centroid, (sum of clusters,)."""

    def __init__(self, clusters: tuple[int, ...], *, num_images: int, dim: int) -> None:
        """Create clusterings without content; `clusters` is the number of clusters of each."""
        super().__init__()
        self.clusters = clusters
        self.register_buffer("labels", torch.zeros(len(clusters), num_images, dtype=torch.int64))
        self.register_buffer("centroids", torch.zeros(sum(clusters), dim))
        self.register_buffer("phi", torch.ones(sum(clusters)))

    def _each(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield labels, centroids and phi of each clustering, as parts of the buffers."""
        sizes = list(self.clusters)
        yield from zip(
            self.labels, torch.split(self.centroids, sizes), torch.split(self.phi, sizes), strict=True
        )

    @torch.no_grad()
    def renew(
        self,
        embeddings: Tensor,
        *,
        iterations: int,
        restarts: int,
        temperature: float,
        seed: int,
        before_iteration: Callable[[], None] = lambda: None,
    ) -> None:
        """Cluster the embeddings of all images.

        Clustering number m starts from the same images in each epoch, as the official code does.

        Args:
            embeddings: unit vectors, (num_images, dim), the same in all processes.
            iterations: see `kmeans`.
            restarts: see `kmeans`.
            temperature: T, the mean of phi.
            seed: seed of the run.
            before_iteration: see `kmeans`.
        """
        for number, (labels, centroids, phi) in enumerate(self._each()):
            found = kmeans.kmeans(
                embeddings,
                len(centroids),
                iterations=iterations,
                seed=seeds.seed("clusters", seed, number),
                restarts=restarts,
                before_iteration=before_iteration,
            )
            labels.copy_(found.labels)
            centroids.copy_(F.normalize(found.centroids, dim=1))
            phi.copy_(concentration(found.labels, found.distances, len(phi), temperature=temperature))

    def loss(self, q: Tensor, indices: Tensor, *, negatives: int, group: int, seed: int, step: int) -> Tensor:
        """Return the mean of l(q, c) over clusterings and images, c being the centroid of the image.

        Args:
            q: unit vectors, (n, dim).
            indices: numbers of their images, (n,), on the device of the centroids.
            negatives: r, the centroids that each group gets besides those of its images.
            group: number of neighbouring images in a group; n is a multiple of it.
        """
        grouped = q.view(-1, group, q.shape[1])  # (groups, group, dim)
        targets = torch.arange(group, device=q.device).repeat(len(grouped))
        losses = []
        for number, (labels, centroids, phi) in enumerate(self._each()):
            own = labels[indices].view(-1, group)
            drawn = others(own, len(centroids), negatives, seed=seed, step=step, clustering=number)
            compared = torch.cat([own, drawn], dim=1)  # (groups, group + r)
            logits = grouped @ centroids[compared].transpose(1, 2) / phi[compared].unsqueeze(1)
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets))
        return torch.stack(losses).mean()


def concentration(labels: Tensor, distances: Tensor, k: int, *, temperature: float) -> Tensor:
    """Return phi of each cluster, (k,).

    Args:
        labels: number of the cluster of each image, (n,).
        distances: squared distance of each image to the mean of its cluster, (n,).
        k: number of clusters.
        temperature: T, the mean of the result.
    """
    counts = labels.bincount(minlength=k)
    in_order = distances.double().sqrt()[labels.argsort(stable=True)]
    sums = torch.segment_reduce(in_order, "sum", lengths=counts)
    several = counts > 1
    phi = torch.where(several, sums / counts / (counts.double() + SMOOTHING).log(), 0)
    phi = torch.where(several, phi, phi.max())
    low, high = phi.quantile(phi.new_tensor(PERCENTILES))
    phi = phi.clamp(low, high)
    return temperature * phi / phi.mean()


def others(own: Tensor, k: int, count: int, *, seed: int, step: int, clustering: int) -> Tensor:
    """Return clusters to which no image of a group belongs, without repetition, (groups, count).

    They follow from seed and step, on any number of processes.

    Args:
        own: numbers of the clusters of this process's images, (groups, images of a group).
        k: number of clusters.
        count: at most `k` less the images of a group.
        clustering: number of the clustering.
    """
    groups = len(own)
    generator = torch.Generator(own.device).manual_seed(seeds.seed("centroids", seed, step, clustering))
    ranks = torch.rand(groups * distributed.world_size(), k, generator=generator, device=own.device)
    mine = ranks[distributed.rank() * groups :][:groups].scatter(1, own, -1.0)
    return mine.topk(count, dim=1).indices


class CentroidNetwork(MomentumContrast):
    """A query network, its key network with a queue, and clusterings of the keys of all images."""

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        dim: int,
        num_rows: int,
        clusters: tuple[int, ...],
        num_images: int,
    ) -> None:
        """Create the networks, a queue of `num_rows` keys, and a clustering for each entry of `clusters`."""
        super().__init__(backbone, projector, dim=dim, num_rows=num_rows, num_queues=1)
        self.clusterings = Clusterings(clusters, num_images=num_images, dim=dim)

    @torch.no_grad()
    def embed(self, images: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the key network's embeddings in eval mode, unit vectors, (num_images, dim).

        They are those of all images, in all processes.

        Args:
            images: numbers and normalised crops of this process's share of all images (`Epoch.images`).
        """
        assert self.target is not None
        clusterings = self.clusterings
        embeddings = clusterings.centroids.new_zeros(
            clusterings.labels.shape[1], clusterings.centroids.shape[1]
        )
        self.target.eval()
        for numbers, crops in images:
            k = self.project(crops.to(memory_format=torch.channels_last))
            embeddings[numbers.to(embeddings.device)] = F.normalize(k, dim=1)
        self.target.train()
        if distributed.world_size() > 1:
            torch.distributed.all_reduce(embeddings)
        return embeddings
