"""PCL v1 and v2: prototypical contrastive learning (Li et al., 2021, arXiv 2005.04966).

Source: salesforce/PCL @ 964da1f pcl/builder.py, main_pcl.py.

    q = f_q(v1) hat,  k = f_k(v2) hat
    L = L_moco + 1/M sum_m L_m
    L_m = mean over images of -log( exp(q . c / phi_c) / sum_{c'} exp(q . c' / phi_c') )

L_moco is MoCo's loss with the key network f_k, its queue and the groups of BatchNorm (`methods/moco.py`). It
is the whole loss of the first 20 epochs. From then on, an epoch starts with M clusterings of all images by
k-means on the embeddings of f_k. c is the centroid of the image's cluster in clustering m, c' are those of
its group's images and r others, and phi_c is the concentration of a cluster (`nn/centroids.py`).

The embeddings of all images are those of centre crops, which costs a forward pass of each image in an epoch.
On ImageNet, 20 iterations with 5 restarts and 175 000 centroids need 5.7e15 operations in float32. That is a
ninth of the operations of an epoch's backbones, in bfloat16. Embeddings and their distances to centroids take
about 2.5 GB of a GPU before the first step of an epoch, when no activations exist. Otherwise, memory is that
of one view.

The official code clusters at most 1000 images for each centroid. That excludes none of ImageNet's, so the
limit is left out. The official key network moves before a step and not after it, so its clusterings are those
of a key network one move behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Epoch, Method, Part
from reproduce.nn import cost
from reproduce.nn.heads import Head
from reproduce.nn.keys import Keys
from reproduce.settings import Count, CountOrZero, Limits, Positive

if TYPE_CHECKING:
    from reproduce.nn.centroids import CentroidNetwork
    from reproduce.nn.cost import Layout


@dataclass(frozen=True, kw_only=True)
class PCL(Method, name="pcl"):
    """Settings of PCL; the defaults are those of v1."""

    num_views: Annotated[int, Limits(2, 2)] = 2
    """One view for the queries, one for the keys (salesforce/PCL pcl/loader.py)."""
    temperature: Positive = 0.2
    """T of L_moco, and the mean of phi (salesforce/PCL main_pcl.py `temperature`, README.md)."""
    clusters: tuple[Count, ...] = (25000, 50000, 100000)
    """Number of clusters of each clustering (salesforce/PCL main_pcl.py `num-cluster`)."""
    negatives: Count = 16384
    """r: centroids that a group gets besides those of its images (salesforce/PCL main_pcl.py `pcl-r`).

    The official code uses the same number for the queue.
    """
    cluster_epoch: CountOrZero = 20
    """Epoch, from 0, in which the images are first clustered (salesforce/PCL main_pcl.py `warmup-epoch`).

    A run that ends before it has the loss of MoCo alone.
    """
    iterations: Count = 20
    """Iterations of k-means (salesforce/PCL main_pcl.py `clus.niter`)."""
    restarts: Count = 5
    """Starts of k-means; the best one counts (salesforce/PCL main_pcl.py `clus.nredo`)."""
    head: Head = Head(widths=(128,))
    """Head of both networks: one layer of 128 in v1, 2048-128 without BatchNorm in v2 (salesforce/PCL
    pcl/builder.py)."""
    keys: Keys = Keys(queue=16384)
    """Queue, decay rate of the key network and groups of BatchNorm.

    A group is the images of one of 8 GPUs, 32 of 256. The README names machines of 4 and of 8
    (salesforce/PCL main_pcl.py `pcl-r`, `moco-m`, README.md).
    """

    @property
    def num_parts(self) -> int:
        return 1

    def passes(self, view: int) -> float:
        return 2.0 if view else 3.0  # queries; keys, and the centre crop that is clustered

    def layout(self, num_features: int) -> Layout:
        layout, dim = self.keys.layout(num_features, self.head), self.head.output
        return layout._replace(
            kept=layout.kept + cost.FLOAT * sum(self.clusters) * (dim + 1),
            kept_per_image=cost.INDEX * len(self.clusters),
        )

    def batchnorm_images(self, batch_size: int) -> int:
        return min(self.keys.group, batch_size)

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return PCL with clusters in proportion to the images, and with MoCo's changes.

        These are fewer negatives, a shorter queue, a faster key network (`Keys.smaller`) and MoCo's
        temperatures. The numbers of clusters are choices. At smoke scale, the first of 3 epochs is without
        clusters: 20 of 200 would be a third of an epoch.
        """
        if scale == "small":
            changes: dict[str, Any] = {"clusters": (185, 370, 740), "negatives": 120, "temperature": 0.1}
        else:
            changes = {"clusters": (24, 47, 94), "negatives": 15, "temperature": 0.05, "cluster_epoch": 1}
        return replace(self, keys=self.keys.smaller(scale), **changes)

    def check(self) -> None:
        """Raise ValueError if `clusters` is empty."""
        if not self.clusters:
            raise ValueError("pcl.clusters is (): at least one number of clusters is expected.")

    def check_for(self, *, batch_size: int, num_images: int | None = None) -> None:
        """Raise ValueError if the keys or the clusters do not fit the batch or the data set."""
        self.keys.check_for(batch_size=batch_size, num_images=num_images)
        if num_images is not None and max(self.clusters) >= num_images:
            raise ValueError(
                f"pcl.clusters contains {max(self.clusters)}, but the data set has only {num_images} images: "
                f"choose at most {num_images - 1}. ImageNet has 13 images for each of its most clusters."
            )
        fewest, group = min(self.clusters), self.keys.group
        if self.negatives > fewest - group:
            least = f"at least {self.negatives + group} clusters"
            raise ValueError(
                f"pcl.negatives is {self.negatives}, but a group of {group} images may occupy "
                f"{min(group, fewest)} of the {fewest} clusters: choose "
                + (f"at most {fewest - group} negatives, or {least}." if fewest > group else f"{least}.")
            )

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> CentroidNetwork:
        from reproduce.nn.centroids import CentroidNetwork

        return CentroidNetwork(
            backbone,
            self.head.build(backbone.num_features),
            dim=self.head.output,
            num_rows=self.keys.queue,
            clusters=self.clusters,
            num_images=num_images,
        )

    def before_epoch(self, network: CentroidNetwork, epoch: Epoch) -> None:
        """Cluster all images, from epoch `cluster_epoch` on."""
        if epoch.number >= self.cluster_epoch:
            network.clusterings.renew(
                network.embed(epoch.images()),
                iterations=self.iterations,
                restarts=self.restarts,
                temperature=self.temperature,
                seed=epoch.seed,
                before_iteration=epoch.may_stop,
            )

    def parts(self, network: CentroidNetwork, batch: Batch) -> Iterator[Part]:
        from reproduce.nn.key_network import contrastive_loss

        k = network.keys(batch.views[1], 0, seed=batch.seed, step=batch.step)
        z = network.online(batch.views[0]).z
        q = F.normalize(z, dim=1)
        terms = {"L_moco": contrastive_loss(q, k, network.queue(0), self.temperature)}
        if batch.epoch >= self.cluster_epoch:
            terms["L_proto"] = network.clusterings.loss(
                q,
                batch.indices.to(z.device, non_blocking=True),
                negatives=self.negatives,
                group=self.keys.group,
                seed=batch.seed,
                step=batch.step,
            )
        yield Part(torch.stack([*terms.values()]).sum(), terms, z.detach())

    def after_step(self, network: CentroidNetwork, batch: Batch) -> dict[str, float]:
        return network.advance(self.keys.momentum, step=batch.step)
