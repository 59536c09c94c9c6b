"""MSBReg: multiview centroid, singular value and Brownian diffusive losses (paper, section 3.2).

    L = L_c + lambda_s L_s + lambda_b L_b                                              (Eq. 2)

Given the target network's centroid, each term is a mean over K views, and each summand depends on one online
view only. The views therefore go forward and backward one at a time, and memory does not grow with K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost, dispersion
from reproduce.nn.heads import Heads
from reproduce.settings import Fraction, NotNegative

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.networks import Network


@dataclass(frozen=True, kw_only=True)
class MSBReg(Method, name="msbreg"):
    """Settings of MSBReg."""

    num_views: int = 4
    """K (Tables 1 and 8 use 4 and 8)."""
    lambda_s: NotNegative = 4e-3
    """Weight of the singular value loss (section 4.5); 0 leaves the term out."""
    lambda_b: NotNegative = 0.5
    """Weight of the Brownian diffusive loss (section 4.5); 0 leaves the term out."""
    tau: Fraction = 0.99
    """Decay rate of the target at the first step; it rises to 1 at the last.

    Not stated in the paper, so a choice: see TAU in configs/pretrain.py.
    """
    heads: Heads = Heads()
    """Projector and predictor."""

    @property
    def num_parts(self) -> int:
        return self.num_views

    def passes(self, view: int) -> float:
        return 4.0  # one of them is the target network's

    def layout(self, num_features: int) -> Layout:
        return cost.siamese(num_features, self.heads)

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return MSBReg for about 150 steps at smoke scale: narrower heads, and a faster target."""
        return replace(self, tau=0.95, heads=self.heads.narrower(4)) if scale == "smoke" else self

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> Network:
        from reproduce.nn.networks import Network

        projector = self.heads.projector(backbone.num_features)
        return Network(backbone, projector, self.heads.predictor(), with_target=True)

    def parts(self, network: Network, batch: Batch) -> Iterator[Part]:
        centre = centroid([network.project(view) for view in batch.views])
        noise = dispersion.unit_noise(
            batch.num_images,
            self.heads.output,
            seed=batch.seed,
            step=batch.step,
            device=batch.views[0].device,
        )
        for view in batch.views:
            p = network.online(view).p
            terms = {"L_c": centroid_loss(p, centre) / self.num_views}
            loss = terms["L_c"]
            if self.lambda_b:
                terms["L_b"] = dispersion.brownian_loss(p, noise) / self.num_views
                loss = loss + self.lambda_b * terms["L_b"]
            if self.lambda_s:
                terms["L_s"] = dispersion.singular_value_loss(p) / self.num_views
                loss = loss + self.lambda_s * terms["L_s"]
            yield Part(loss, terms, p.detach())

    def after_step(self, network: Network, batch: Batch) -> dict[str, float]:
        return network.follow(self.tau, step=batch.step, num_steps=batch.num_steps)


def centroid(projections: list[Tensor]) -> Tensor:
    """Return 1/K sum_l z hat'_l, (n, d): the mean of the normalised target projections of an image's K views.

    The mean itself is not normalised again.
    """
    return torch.stack([F.normalize(z, dim=1) for z in projections]).mean(dim=0)


def centroid_loss(p: Tensor, centre: Tensor) -> Tensor:
    """Return one view's term of L_c, Eq. 3, before the factor 1/K.

    It is the mean over images of || p hat - centroid ||^2.
    """
    return (F.normalize(p, dim=1) - centre).square().sum(dim=1).mean()
