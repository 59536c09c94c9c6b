"""VICReg: invariance of the embeddings, variance of each dimension, no covariance between dimensions.

Sources: Bardes et al., 2022 (arXiv 2105.04906); facebookresearch/vicreg main_vicreg.py. For the embeddings x
and y of two views of n images, which are not normalised:

    L = lambda s(x, y) + mu (v(x) + v(y)) / 2 + nu (c(x) + c(y))

    s(x, y) = mean over all n d entries of (x - y)^2
    v(x) = mean_j max(0, 1 - sqrt(Var_j + 1e-4))
    c(x) = 1 / d sum_{i != j} Cov_ij^2

Variances and covariances are over n - 1, of the images of all processes. This is the loss of the code. The
paper's equation has v(x) + v(y) without the half: a mu of 50. With K > 2 views, s is the mean over the pairs
of views, and (v(x) + v(y)) / 2 and (c(x) + c(y)) / 2 are means over the views, a choice.

The loss couples the views with gradients on both sides, so the activations of all K views are in memory.
`recompute` in the site file keeps those of one view and takes one more forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost, distributed
from reproduce.nn.heads import Head
from reproduce.settings import NotNegative

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.networks import Network

EPS = 1e-4
"""Summand of each variance below the square root (facebookresearch/vicreg main_vicreg.py)."""


@dataclass(frozen=True, kw_only=True)
class VICReg(Method, name="vicreg"):
    """Settings of VICReg."""

    num_views: int = 2
    """K: 2 in VICReg."""
    lambda_invariance: NotNegative = 25.0
    """lambda, the weight of s (facebookresearch/vicreg main_vicreg.py)."""
    lambda_variance: NotNegative = 25.0
    """mu, the weight of the mean of v (facebookresearch/vicreg main_vicreg.py)."""
    lambda_covariance: NotNegative = 1.0
    """nu, the weight of c(x) + c(y) (facebookresearch/vicreg main_vicreg.py)."""
    head: Head = Head(widths=(8192, 8192, 8192), last_bias=False)
    """Expander (facebookresearch/vicreg main_vicreg.py)."""

    @property
    def num_parts(self) -> int:
        return 1

    def layout(self, num_features: int) -> Layout:
        return cost.Layout(cost.head(num_features, self.head))

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return VICReg with a narrower expander, whose loss costs n d^2.

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
        whole = [distributed.gather(z) for z in views]
        # Each process sums over a share of Cov's rows, times W: the loss is the mean over the processes.
        W = distributed.world_size()
        mine = slice(distributed.rank(), None, W)
        pairs = itertools.combinations(views, 2)
        s = torch.stack([F.mse_loss(x, y) for x, y in pairs]).mean()
        v = torch.stack([variance_loss(z) for z in whole]).mean()
        c = 2 * W * torch.stack([covariance_loss(z, mine) for z in whole]).mean()
        terms = {"L_invariance": s, "L_variance": v, "L_covariance": c}
        loss = self.lambda_invariance * s + self.lambda_variance * v + self.lambda_covariance * c
        yield Part(loss, terms, views[-1].detach())


def variance_loss(z: Tensor) -> Tensor:
    """Return v of a view's embeddings of the whole batch, (n, d)."""
    return F.relu(1 - (z.var(dim=0) + EPS).sqrt()).mean()


def covariance_loss(z: Tensor, rows: slice = slice(None)) -> Tensor:
    """Return c of a view's embeddings of the whole batch, (n, d).

    Args:
        rows: rows i of the covariance matrix that are summed.
    """
    n, d = z.shape
    z = z - z.mean(dim=0)
    covariance = z[:, rows].T @ z / (n - 1)  # (rows, d)
    variances = (z.square().sum(dim=0) / (n - 1))[rows]
    return (covariance.square().sum() - variances.square().sum()) / d
