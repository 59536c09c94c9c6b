"""NPID: non-parametric instance discrimination (Wu et al., 2018, arXiv 1805.01978).

Source: zhirongw/lemniscate.pytorch @ f7cfe29 main.py, lib/NCEAverage.py, lib/NCECriterion.py.

    v = g(f(view)) hat
    L = mean over images of h(v, i)

Each image has one view, and a row m_i in a memory bank. h is noise-contrastive estimation: v should tell the
row of its own image from those of M random images (`nn/bank.py`). After the step, m_i moves towards v. L
starts near log(1 + M) + M log(1 + 1/M), 9.318 for M = 4096.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from reproduce.lazy import F
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost
from reproduce.nn.heads import Head
from reproduce.settings import Count, Fraction, Limits, Positive

if TYPE_CHECKING:
    from reproduce.nn.bank import BankNetwork
    from reproduce.nn.cost import Layout


@dataclass(frozen=True, kw_only=True)
class NPID(Method, name="npid"):
    """Settings of NPID."""

    num_views: Annotated[int, Limits(1, 1)] = 1
    """Views of an image; NPID has one."""
    negatives: Count = 4096
    """M: random images that a view is compared with (lemniscate.pytorch main.py `nce-k`)."""
    temperature: Positive = 0.07
    """T (lemniscate.pytorch main.py `nce-t`)."""
    momentum: Fraction = 0.5
    """m: weight of the old row when a row moves (lemniscate.pytorch main.py `nce-m`)."""
    head: Head = Head(widths=(128,), norm="none")
    """g: a single layer (lemniscate.pytorch models/resnet.py)."""

    @property
    def num_parts(self) -> int:
        return 1

    def layout(self, num_features: int) -> Layout:
        return cost.Layout(
            cost.head(num_features, self.head),
            kept=cost.FLOAT,
            kept_per_image=cost.FLOAT * self.head.output,
            compared=1 + self.negatives,
        )

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return NPID with a higher temperature, and at smoke scale with 256 negatives, all choices.

        In an epoch of few steps, the bank fills with embeddings that are still almost alike. Their
        exponentials at .07 are far above Z, which random rows determine: the gradients are too large, and all
        embeddings become one. On 9 469 photographs at 32 px, the training loss after 40 epochs of 37 steps is
        21 319, 4 449 and 41 at .07, .1 and .2. It is 8.3 at .5, below the 9.3 of equal products. The smoke
        scale has 1 200 images.
        """
        negatives = 256 if scale == "smoke" else self.negatives
        return replace(self, negatives=negatives, temperature=0.5)

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> BankNetwork:
        from reproduce.nn.bank import BankNetwork

        projector = self.head.build(backbone.num_features)
        return BankNetwork(backbone, projector, num_images=num_images, dim=self.head.output)

    def parts(self, network: BankNetwork, batch: Batch) -> Iterator[Part]:
        from reproduce.nn import bank

        z = network.online(*batch.views).z
        v = F.normalize(z, dim=1)
        indices = batch.indices.to(z.device, non_blocking=True)
        drawn = bank.negatives(
            len(network.bank.rows), self.negatives, indices=indices, seed=batch.seed, step=batch.step
        )
        network.keep(indices, v)
        loss = network.bank.nce(v, indices, drawn, temperature=self.temperature)
        yield Part(loss, {"L_npid": loss}, z.detach())

    def after_step(self, network: BankNetwork, batch: Batch) -> dict[str, float]:
        network.advance(self.momentum)
        return {}
