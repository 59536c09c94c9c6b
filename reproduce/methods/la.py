"""LA: local aggregation (Zhuang et al., 2019, arXiv 1903.12355).

Sources: neuroailab/LocalAggregation-Pytorch @ b085877 config/, src/agents/agents.py,
src/objectives/localagg.py; neuroailab/LocalAggregation exp_configs/la_final.json for the ResNet-50.

    v = g(f(view)) hat
    L = mean over images of -log( sum_{j in C_i} P(j | v) / sum_{j in B_i} P(j | v) + 1e-7 )

Each image has one view, and a row m_i in a memory bank. B_i are the rows nearest to v, its background
neighbours. C_i are those of them that share a cluster with image i, its close neighbours
(`nn/aggregation.py`). The bank is clustered several times at the start of each epoch. After a step, m_i moves
towards v.

The first epochs have NPID's loss (`nn/bank.py`), since a random bank has no clusters. Z is NPID's estimate
there, about 2.21 N. The sources have a constant, 2.2456 N. L is at most 16.118. If only row i were close and
all rows alike, it would be the log of the neighbours' number, 8.318 for 4096.

10 clusterings of ImageNet into 30 000 clusters take 20 iterations each. These are 2.1e15 operations in
float32 at the start of each epoch, 7 % of those of a ResNet-50 in the epoch itself. Forecasts do not count
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from reproduce.lazy import F
from reproduce.methods.method import Batch, Epoch, Method, Part
from reproduce.nn import cost
from reproduce.nn.heads import Head
from reproduce.settings import Count, CountOrZero, Fraction, Limits, Positive

if TYPE_CHECKING:
    from reproduce.nn.aggregation import AggregationNetwork
    from reproduce.nn.cost import Layout


@dataclass(frozen=True, kw_only=True)
class LA(Method, name="la"):
    """Settings of LA."""

    num_views: Annotated[int, Limits(1, 1)] = 1
    """Views of an image; LA has one."""
    neighbours: Count = 4096
    """Number of rows in B_i (LocalAggregation-Pytorch config/imagenet_la.json `k`)."""
    clusters: Count = 30_000
    """Clusters of each clustering (LocalAggregation-Pytorch config/imagenet_la.json `kmeans_k`)."""
    clusterings: Count = 10
    """Clusterings of the bank (LocalAggregation-Pytorch config/imagenet_la.json `n_kmeans`)."""
    iterations: Count = 20
    """Iterations of k-means (LocalAggregation-Pytorch src/objectives/localagg.py)."""
    npid_epochs: CountOrZero = 10
    """Epochs with NPID's loss before the first clustering (LocalAggregation exp_configs/la_final.json).

    They are 10 of the 200 epochs there. LocalAggregation-Pytorch adds them to 200 others. A run without
    further epochs is one of NPID.
    """
    negatives: Count = 4096
    """M of NPID's loss (LocalAggregation-Pytorch config/imagenet_ir.json `k`)."""
    temperature: Positive = 0.07
    """T of both losses (LocalAggregation-Pytorch config/imagenet_la.json `t`)."""
    momentum: Fraction = 0.5
    """m: weight of the old row when a row moves (LocalAggregation-Pytorch config/imagenet_la.json `m`)."""
    head: Head = Head(widths=(128,), norm="none")
    """g: a single layer (LocalAggregation-Pytorch src/agents/agents.py)."""

    @property
    def num_parts(self) -> int:
        return 1

    def layout(self, num_features: int) -> Layout:
        """Return the sizes; the backward pass of LA's loss needs the neighbours of each image."""
        head, dim = cost.head(num_features, self.head), self.head.output
        return cost.Layout(
            head._replace(outputs=head.outputs + self.neighbours * dim),
            kept=cost.FLOAT,
            kept_per_image=cost.FLOAT * dim + cost.INDEX * self.clusterings,
            compared=1 + self.negatives if self.npid_epochs else 0,
        )

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return LA with neighbours and clusters in proportion to the images of a scale, all choices.

        The small scale has 9 469 images, the smoke scale 1 200. At smoke scale, one of 3 epochs has NPID's
        loss, the fewest in which each image reaches the bank. Negatives and temperature are those of NPID at
        the same scale.
        """
        if scale == "small":
            return replace(self, neighbours=1024, clusters=220, temperature=0.5)
        return replace(self, neighbours=128, clusters=30, npid_epochs=1, negatives=256, temperature=0.5)

    def check_for(self, *, batch_size: int, num_images: int | None = None) -> None:
        """Raise ValueError if the bank has fewer rows than neighbours or clusters."""
        for name, count in (("neighbours", self.neighbours), ("clusters", self.clusters)):
            if num_images is not None and count > num_images:
                raise ValueError(
                    f"la.{name} is {count}, but the memory bank has only {num_images} rows, one for each "
                    f"image: choose at most {num_images}."
                )

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> AggregationNetwork:
        from reproduce.nn.aggregation import AggregationNetwork

        return AggregationNetwork(
            backbone,
            self.head.build(backbone.num_features),
            num_images=num_images,
            dim=self.head.output,
            clusterings=self.clusterings,
        )

    def before_epoch(self, network: AggregationNetwork, epoch: Epoch) -> None:
        """Cluster the bank, unless the epoch has NPID's loss."""
        if epoch.number >= self.npid_epochs:
            network.cluster(
                self.clusters,
                iterations=self.iterations,
                seed=epoch.seed,
                before_iteration=epoch.may_stop,
            )

    def parts(self, network: AggregationNetwork, batch: Batch) -> Iterator[Part]:
        from reproduce.nn import bank

        z = network.online(*batch.views).z
        v = F.normalize(z, dim=1)
        indices = batch.indices.to(z.device, non_blocking=True)
        network.keep(indices, v)
        if batch.epoch < self.npid_epochs:
            drawn = bank.negatives(
                len(network.bank.rows), self.negatives, indices=indices, seed=batch.seed, step=batch.step
            )
            loss = network.bank.nce(v, indices, drawn, temperature=self.temperature)
            yield Part(loss, {"L_npid": loss}, z.detach())
        else:
            loss = network.aggregation(v, indices, neighbours=self.neighbours, temperature=self.temperature)
            yield Part(loss, {"L_la": loss}, z.detach())

    def after_step(self, network: AggregationNetwork, batch: Batch) -> dict[str, float]:
        network.advance(self.momentum)
        return {}
