"""Alignment and uniformity in place of a contrastive loss, on MoCo's networks and queue.

Source: Wang and Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on
the Hypersphere, Eq. 18; ssnl/moco_align_uniform @ 7698785 moco/builder.py.

    q = f_q(v1) hat,  k = f_k(v2) hat
    L = lambda_align mean || q - k ||^2 + lambda_uniform log mean over pairs of exp(-t || x - y ||^2)

The pairs (x, y) are those of each query with each row of the queue, and those of two queries. The key network
and the queue have no gradient and are MoCo's (`nn/key_network.py`).

The official code forms the pairs of two queries on each GPU by itself. Here they are those of the whole
batch, so that the loss does not depend on the number of devices. With 128 images and 16 384 rows they are
.4 % of all pairs. Memory is that of one view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import distributed
from reproduce.nn.heads import Head
from reproduce.nn.keys import Keys
from reproduce.settings import Inverse, Limits, NotNegative

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.key_network import MomentumContrast


@dataclass(frozen=True, kw_only=True)
class WangIsola(Method, name="wang_isola"):
    """Settings of Wang and Isola's method."""

    num_views: Annotated[int, Limits(2, 2)] = 2
    """One view for the queries, one for the keys (ssnl/moco_align_uniform moco/loader.py)."""
    lambda_align: NotNegative = 3.0
    """Weight of the alignment loss (ssnl/moco_align_uniform main_moco.py)."""
    lambda_uniform: NotNegative = 1.0
    """Weight of the uniformity loss (ssnl/moco_align_uniform main_moco.py)."""
    uniform_t: Inverse = 3.0
    """t of exp(-t ||.||^2) (ssnl/moco_align_uniform main_moco.py)."""
    head: Head = Head(widths=(128,))
    """Head of both networks: MoCo v1's single layer (ssnl/moco_align_uniform moco/builder.py)."""
    keys: Keys = Keys()
    """Queue, decay rate of the key network and groups of BatchNorm."""

    @property
    def num_parts(self) -> int:
        return 1

    def passes(self, view: int) -> float:
        return 1.0 if view else 3.0  # the first view makes queries, the second keys

    def layout(self, num_features: int) -> Layout:
        return self.keys.layout(num_features, self.head)

    def batchnorm_images(self, batch_size: int) -> int:
        return min(self.keys.group, batch_size)

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return the method with a shorter queue and a faster key network (`Keys.smaller`)."""
        return replace(self, keys=self.keys.smaller(scale))

    def check_for(self, *, batch_size: int, num_images: int | None = None) -> None:
        self.keys.check_for(batch_size=batch_size, num_images=num_images)

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> MomentumContrast:
        return self.keys.network(backbone, self.head)

    def parts(self, network: MomentumContrast, batch: Batch) -> Iterator[Part]:
        k = network.keys(batch.views[1], 0, seed=batch.seed, step=batch.step)
        z = network.online(batch.views[0]).z
        q = F.normalize(z, dim=1)
        align, uniform = alignment(q, k), uniformity(q, network.queue(0), self.uniform_t)
        loss = self.lambda_align * align + self.lambda_uniform * uniform
        yield Part(loss, {"L_align": align, "L_uniform": uniform}, z.detach())

    def after_step(self, network: MomentumContrast, batch: Batch) -> dict[str, float]:
        return network.advance(self.keys.momentum, step=batch.step)


def alignment(q: Tensor, k: Tensor) -> Tensor:
    """Return the mean over images of || q - k ||^2, from unit vectors, (n, d) each."""
    return 2 - 2 * (q * k).sum(dim=1).mean()


def uniformity(q: Tensor, negatives: Tensor, t: float) -> Tensor:
    """Return the log of the mean over pairs of exp(-t || x - y ||^2), from unit vectors.

    The pairs are each query of all processes with each row of the queue, and two queries i < j of all
    processes. Each process compares its own queries with the queue; the sums are added with their gradients.

    Args:
        q: queries of this process, (n, d).
        negatives: the queue, (K, d).
    """
    with_queue = (2 - 2 * (q @ negatives.T)).mul(-t).exp().sum()
    everyone = distributed.gather(q)
    with_queries = torch.pdist(everyone).square().mul(-t).exp().sum()
    total = distributed.gather(with_queue.reshape(1)).sum() + with_queries
    n = len(everyone)
    return (total / (n * len(negatives) + n * (n - 1) / 2)).log()
