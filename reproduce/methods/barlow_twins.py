"""Barlow Twins: the cross-correlation of two views' embeddings is the identity.

Sources: Zbontar et al., 2021 (arXiv 2103.03230); facebookresearch/barlowtwins main.py. For two views of n
images, with BN the standardisation of each dimension over the batch:

    C = BN(z1)^T BN(z2) / n
    L = sum_i (C_ii - 1)^2 + lambda sum_{i != j} C_ij^2

The batch is that of all processes. With K > 2 views, L is the mean over the pairs of views, a choice.

The loss couples the views with gradients on both sides, so the activations of all K views are in memory.
`recompute` in the site file keeps those of one view and takes one more forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from reproduce.lazy import torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost, distributed
from reproduce.nn.heads import Head
from reproduce.settings import NotNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.networks import Network

EPS = 1e-5
"""Summand of each variance: that of torch's BatchNorm, which standardises in the official code."""


@dataclass(frozen=True, kw_only=True)
class BarlowTwins(Method, name="barlow_twins"):
    """Settings of Barlow Twins."""

    num_views: int = 2
    """K: 2 in Barlow Twins."""
    lambda_redundancy: NotNegative = 0.0051
    """lambda, the weight of the redundancy term (facebookresearch/barlowtwins main.py)."""
    loss_scale: Positive = 1 / 16
    """Factor of L. The official code sums C without its gradient, so its gradient is 1 / W of the true one.

    W is 16 GPUs (facebookresearch/barlowtwins README.md); the paper's 32 could not be confirmed. LARS hides
    the factor from weights. The official rate of biases and normalisation parameters was tuned with it. With
    a factor of 1, `vector_lr` is 16 times too high.
    """
    head: Head = Head(widths=(8192, 8192, 8192), bias=False, last_bias=False)
    """Projector (facebookresearch/barlowtwins main.py)."""

    @property
    def num_parts(self) -> int:
        return 1

    def layout(self, num_features: int) -> Layout:
        return cost.Layout(cost.head(num_features, self.head))

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return Barlow Twins with a narrower projector, whose loss costs n d^2.

        Small has at most 2048 units, those of solo-learn and lightly with a ResNet-18. Smoke has at most 64,
        a choice: with 256, some 70 steps teach less.
        """
        most = 64 if scale == "smoke" else 2048
        return replace(self, head=replace(self.head, widths=tuple(min(w, most) for w in self.head.widths)))

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> Network:
        from reproduce.nn.networks import Network

        return Network(backbone, self.head.build(backbone.num_features))

    def parts(self, network: Network, batch: Batch) -> Iterator[Part]:
        views = network.online(*batch.views).z.chunk(self.num_views)  # (n, d) each
        whole = [standardised(distributed.gather(z)) for z in views]
        # Each process sums over a share of C's rows, times W: the loss is the mean over the processes.
        W = distributed.world_size()
        mine = slice(distributed.rank(), None, W)
        pairs = [correlation_terms(a, b, mine) for a, b in itertools.combinations(whole, 2)]
        invariance, redundancy = (W * torch.stack(terms).mean() for terms in zip(*pairs, strict=True))
        loss = self.loss_scale * (invariance + self.lambda_redundancy * redundancy)
        yield Part(loss, {"L_invariance": invariance, "L_redundancy": redundancy}, views[-1].detach())


def standardised(z: Tensor) -> Tensor:
    """Return BN(z), (n, d): mean 0 and variance 1 in each dimension; the variance is the biased one."""
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    return (z - mean) * (variance + EPS).rsqrt()


def correlation_terms(a: Tensor, b: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Return sum_i (C_ii - 1)^2 and sum_{i != j} C_ij^2.

    Args:
        a: standardised embeddings of one view of the whole batch, (n, d).
        b: standardised embeddings of another view, (n, d).
        rows: rows i that are summed.
    """
    C = a[:, rows].T @ b / len(a)  # (rows, d)
    diagonal = (a * b).mean(dim=0)[rows]
    return (diagonal - 1).square().sum(), C.square().sum() - diagonal.square().sum()
