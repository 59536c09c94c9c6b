"""BYOL, optionally with the paper's dispersive terms.

Sources: paper, sections 3.1 and 4.4; google-deepmind/deepmind-research byol/.

    L = L_byol + lambda_s L_s + lambda_b L_b + lambda_uniform L_uniform

L_byol (Eq. 1) is one direction; training sums both. The rows of Tables 8, 11 and 12 with K = 2 are this
method.

L_byol is a sum of directions, but L_b and L_s are means over the views (Eqs. 4 and 6). At K = 2 a lambda
therefore counts half as much as next to L_c, which is a mean, too. `dispersive` = `sum` is the other reading:
L_b and L_s are summed over both views, as the directions are.

BYOL with multi-crop (section 4.4, Table 7) adds V small crops to the two views, so K = V + 2. All views go
through the online and the target network, and

    L_byol = 2 / (K (K - 1)) sum_{i != j} || p hat_i - z hat'_j ||^2

The paper does not divide its sum by the K (K - 1) pairs, so its step would grow with K (errata, Table 7). The
factor 2 makes this BYOL's loss, the sum of both directions, for K = 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from reproduce.identity import added_later
from reproduce.lazy import F
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost, dispersion
from reproduce.nn.heads import Heads
from reproduce.settings import Fraction, Inverse, NotNegative

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.networks import Network


@dataclass(frozen=True, kw_only=True)
class BYOL(Method, name="byol"):
    """Settings of BYOL."""

    num_views: int = 2
    """K: 2 in BYOL, V + 2 with V small crops (section 4.4: V = 6)."""
    lambda_s: NotNegative = 0.0
    """Weight of the singular value loss; 0 in BYOL."""
    lambda_b: NotNegative = 0.0
    """Weight of the Brownian diffusive loss; 0 in BYOL."""
    lambda_uniform: NotNegative = 0.0
    """Weight of Wang and Isola's uniformity loss; 0 in BYOL (Table 12's second row adds it)."""
    uniform_t: Inverse = 3.0
    """t of the uniformity loss exp(-t ||.||^2) (ssnl/moco_align_uniform: uniform(3))."""
    dispersive: Literal["mean", "sum"] = added_later("mean", "0.2")
    """Reading of Eq. 2 for L_s and L_b at K = 2.

    mean: the mean over the views, as Eqs. 4 and 6 are printed. sum: twice that, which for two views is their
    sum, as L_byol sums two directions. L_uniform is a mean in both.
    """
    tau: Fraction = 0.99
    """Decay rate of the target at the first step; it rises to 1 at the last.

    byol/configs/byol.py: .99 up to 300 epochs, .996 beyond.
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
        """Return BYOL for about 150 steps at smoke scale: narrower heads, and a faster target."""
        return replace(self, tau=0.95, heads=self.heads.narrower(4)) if scale == "smoke" else self

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> Network:
        from reproduce.nn.networks import Network

        projector = self.heads.projector(backbone.num_features)
        return Network(backbone, projector, self.heads.predictor(), with_target=True)

    def parts(self, network: Network, batch: Batch) -> Iterator[Part]:
        targets = [network.project(view) for view in batch.views]
        noise = dispersion.unit_noise(
            batch.num_images,
            self.heads.output,
            seed=batch.seed,
            step=batch.step,
            device=batch.views[0].device,
        )
        factor = 2 if self.dispersive == "sum" else 1
        for index, view in enumerate(batch.views):
            p = network.online(view).p
            terms = {"L_byol": 2 * pairwise_share(p, index, targets)}
            loss = terms["L_byol"]
            if self.lambda_b:
                terms["L_b"] = dispersion.brownian_loss(p, noise) / self.num_views
                loss = loss + factor * self.lambda_b * terms["L_b"]
            if self.lambda_s:
                terms["L_s"] = dispersion.singular_value_loss(p) / self.num_views
                loss = loss + factor * self.lambda_s * terms["L_s"]
            if self.lambda_uniform:
                terms["L_uniform"] = dispersion.uniformity_loss(p, self.uniform_t) / self.num_views
                loss = loss + self.lambda_uniform * terms["L_uniform"]
            yield Part(loss, terms, p.detach())

    def after_step(self, network: Network, batch: Batch) -> dict[str, float]:
        return network.follow(self.tau, step=batch.step, num_steps=batch.num_steps)


def pairwise_share(p: Tensor, index: int, targets: list[Tensor]) -> Tensor:
    """Return the share of view `index` in the mean over ordered pairs i != j of || p hat_i - z hat'_j ||^2.

    The sum over all views is the multi-crop loss (section 4.4), divided by its pairs. For two views it is
    half of BYOL's loss, which sums both directions.

    Args:
        p: online predictions of view `index`, (n, d).
        targets: the target network's projections z' of every view, each (n, d).
    """
    others = [2 - 2 * F.cosine_similarity(p, z, dim=1).mean() for j, z in enumerate(targets) if j != index]
    return sum(others[1:], others[0]) / (len(targets) * (len(targets) - 1))
