"""MoCo v1 and v2, and the variant with a symmetric loss.

Sources: He et al., Momentum Contrast for Unsupervised Visual Representation Learning (v1); Chen et al.,
Improved Baselines with Momentum Contrastive Learning (v2); facebookresearch/moco @ 132aea9 moco/builder.py.

    q = f_q(v1) hat,  k = f_k(v2) hat
    L = mean over images of -log( exp(q . k / T) / (exp(q . k / T) + sum_j exp(q . Q_j / T)) )

Q are the K newest keys of earlier steps. The key network f_k has no gradient and follows the query network:
theta_k <- m theta_k + (1 - m) theta_q. The official code moves it before it makes keys. That equals a move
after each optimiser step, since both networks start alike.

The symmetric loss is the mean of both directions, each with the keys of the other view (Chen and He,
Exploring Simple Siamese Representation Learning, appendix C). Memory is that of one view in all variants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from reproduce.lazy import F
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn.heads import Head
from reproduce.nn.keys import Keys
from reproduce.settings import Limits, Positive

if TYPE_CHECKING:
    from reproduce.nn.cost import Layout
    from reproduce.nn.key_network import MomentumContrast


@dataclass(frozen=True, kw_only=True)
class MoCo(Method, name="moco"):
    """Settings of MoCo; the defaults are those of v2."""

    num_views: Annotated[int, Limits(2, 2)] = 2
    """One view for the queries, one for the keys (moco/loader.py)."""
    temperature: Positive = 0.2
    """T: .2 in v2, .07 in v1 (facebookresearch/moco README.md, main_moco.py)."""
    symmetric: bool = False
    """True for the mean of both directions, as in the runs of SimSiam's Table 4 (appendix C there).

    Which keys are queued is not stated. One queue for each direction is a choice; solo-learn does the same
    (vturrisi/solo-learn solo/methods/mocov2plus.py).
    """
    head: Head = Head(widths=(2048, 128), norm="none")
    """Head of both networks: 2048-128 without BatchNorm in v2, one layer of 128 in v1 (moco/builder.py)."""
    keys: Keys = Keys()
    """Queue, decay rate of the key network and groups of BatchNorm."""

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """Pairs of views: the one that makes queries, and the one that makes their keys."""
        return ((0, 1), (1, 0)) if self.symmetric else ((0, 1),)

    @property
    def num_parts(self) -> int:
        return len(self.directions)

    def passes(self, view: int) -> float:
        queries = sum(view == query for query, _ in self.directions)
        keys = sum(view == key for _, key in self.directions)
        return 3.0 * queries + 1.0 * keys

    def layout(self, num_features: int) -> Layout:
        return self.keys.layout(num_features, self.head, num_queues=self.num_parts)

    def batchnorm_images(self, batch_size: int) -> int:
        return min(self.keys.group, batch_size)

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return MoCo with a shorter queue and a faster key network (`Keys.smaller`).

        The small scale has lightly's temperature for Imagenette (lightly-ai/lightly imagenette_benchmark.py).
        That of the smoke scale is a choice: embeddings that are still almost alike need a lower one.
        """
        temperature = 0.1 if scale == "small" else 0.05
        return replace(self, temperature=temperature, keys=self.keys.smaller(scale))

    def check_for(self, *, batch_size: int, num_images: int | None = None) -> None:
        self.keys.check_for(batch_size=batch_size, num_images=num_images)

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> MomentumContrast:
        return self.keys.network(backbone, self.head, num_queues=self.num_parts)

    def parts(self, network: MomentumContrast, batch: Batch) -> Iterator[Part]:
        from reproduce.nn.key_network import contrastive_loss

        for direction, (query, key) in enumerate(self.directions):
            k = network.keys(batch.views[key], direction, seed=batch.seed, step=batch.step)
            z = network.online(batch.views[query]).z
            q, negatives = F.normalize(z, dim=1), network.queue(direction)
            loss = contrastive_loss(q, k, negatives, self.temperature) / self.num_parts
            yield Part(loss, {"L_moco": loss}, z.detach())

    def after_step(self, network: MomentumContrast, batch: Batch) -> dict[str, float]:
        return network.advance(self.keys.momentum, step=batch.step)
