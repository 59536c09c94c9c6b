"""SwAV: swapping assignments between views, with multi-crop (Caron et al., 2020, arXiv 2006.09882).

Source: facebookresearch/swav main_swav.py. Views 1 and 2 are large, the others may be small crops. The scores
of view v are S_v = z hat_v C^T, where the rows of C are prototypes of length 1. Sinkhorn's iterations turn
the scores of the large views into codes Q_1 and Q_2, without gradient, so that all prototypes are used about
equally often. Each view predicts the codes of the others:

    L = 1/2 sum_{i = 1, 2} 1 / (V - 1) sum_{v != i} l(Q_i, S_v)
    l(Q, S) = -1/n sum_images sum_k Q_k log softmax(S / T)_k

L starts near log(number of prototypes), 8.006 for 3000. A loss that stays there means collapse.

The official network normalises over all crops of one size as one batch in the backbone, and over all crops
in the projector. All views go forward and backward at once, so memory grows with their number. With
`crop_by_crop`, the codes come from a first pass of the large views without gradient, and then each view is a
part of its own: memory is that of one view, a step with two large views costs a third more, and each
BatchNorm sees one view at a time, which is another network than the official one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost, distributed
from reproduce.nn.cost import Block, Layout
from reproduce.nn.heads import Head
from reproduce.settings import CountOrZero, Limits, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.prototypes import PrototypeNetwork

CODED: Final = 2
"""Number of views that get codes: the first ones (scripts/: `crops_for_assign 0 1`)."""


@dataclass(frozen=True, kw_only=True)
class SwAV(Method, name="swav"):
    """Settings of SwAV."""

    num_views: int = 2
    """V: 2 large views, and with multi-crop 6 small ones (swav scripts/swav_400ep_pretrain.sh)."""
    head: Head = Head(widths=(2048, 128))
    """Projector (swav src/resnet50.py: `hidden_mlp`, `output_dim`); its output is normalised."""
    num_prototypes: Annotated[int, Limits(2, 2**16)] = 3000
    """Number of prototypes (swav main_swav.py); with a single one, the loss is 0."""
    temperature: Positive = 0.1
    """T of the predictions (swav main_swav.py)."""
    epsilon: Annotated[float, Limits(0.015, 100)] = 0.05
    """Weight of the codes' entropy (swav main_swav.py).

    Below .015, sums of exp(1 / epsilon) may overflow. The README advises .03 if the loss stays at its start.
    """
    iterations: CountOrZero = 3
    """Iterations of Sinkhorn (swav main_swav.py); with 0, nothing balances the prototypes."""
    frozen_epochs: CountOrZero = 1
    """Epochs without an update of the prototypes.

    swav scripts/: 313 steps at batch 4096 and 5005 at 256, both of which are an epoch of ImageNet.
    """
    queue: CountOrZero = 0
    """Embeddings in the queue of each large view over all devices, a multiple of the batch; 0 for none.

    swav scripts/swav_400ep_bs256_pretrain.sh: 3840 at batch 256; none at 4096.
    """
    queue_epoch: CountOrZero = 15
    """Epoch, from 0, in which the queue begins to fill (swav main_swav.py). It is used once it is full."""
    batchnorm_group: Annotated[int, Limits(2)] = 512
    """Images that share the statistics of BatchNorm; all of a smaller batch.

    swav main_swav.py: groups of 8 GPUs with 64 images each, for 64 GPUs (`sync_bn apex`).
    """
    crop_by_crop: bool = False
    """True if each view goes forward and backward by itself, a choice; see the top of this file."""

    least_large: ClassVar[int] = CODED

    @property
    def num_parts(self) -> int:
        return self.num_views if self.crop_by_crop else 1

    @property
    def recomputes(self) -> bool:
        return False  # its views share the statistics of BatchNorm, or pass one by one

    def passes(self, view: int) -> float:
        return 4.0 if self.crop_by_crop and view < CODED else 3.0

    def layout(self, num_features: int) -> Layout:
        dim = self.head.output
        return Layout(
            cost.head(num_features, self.head),
            Block(dim * self.num_prototypes),
            kept=cost.FLOAT * CODED * self.queue * dim,
        )

    def batchnorm_images(self, batch_size: int) -> int:
        return min(self.batchnorm_group, batch_size)

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return SwAV without a queue, and at smoke scale with narrower heads and 100 prototypes.

        About ten prototypes for each class are enough. 3000 are also those of lightly's run on Imagenette
        (lightly-ai/lightly benchmarks/imagenette). A queue of 3840 would hold a third of the images there.
        """
        if scale == "small":
            return replace(self, queue=0)
        *hidden, output = self.head.widths
        narrow = replace(self.head, widths=(*(width // 16 for width in hidden), output // 4))
        return replace(self, queue=0, head=narrow, num_prototypes=100)

    def check_for(self, *, batch_size: int, num_images: int | None = None) -> None:
        """Raise ValueError if the queue does not hold whole batches."""
        if self.queue % batch_size:
            raise ValueError(
                f"swav.queue is {self.queue}, which does not hold whole batches of {batch_size} images: "
                "choose a multiple of batch_size, or 0 for no queue."
            )

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> PrototypeNetwork:
        from reproduce.nn.prototypes import PrototypeNetwork, Prototypes

        return PrototypeNetwork(
            backbone,
            self.head.build(backbone.num_features),
            Prototypes(self.head.output, self.num_prototypes),
            joint="none" if self.crop_by_crop else "all",
            num_queues=CODED,
            num_rows=self.queue,
        )

    def before_step(self, network: PrototypeNetwork, batch: Batch) -> None:
        """Give each prototype the length 1."""
        network.prototypes.normalise()

    def parts(self, network: PrototypeNetwork, batch: Batch) -> Iterator[Part]:
        if not self.crop_by_crop:
            z, scores = (of_all.chunk(self.num_views) for of_all in network.online(*batch.views))
            codes = self._codes(network, batch, z, scores)
            loss = torch.stack([self._share(codes, s, view) for view, s in enumerate(scores)]).sum()
            yield Part(loss, {"L_swav": loss}, z[0].detach())
            return
        with torch.no_grad():
            online = distributed.unwrapped(network.online)
            z, scores = zip(*(online(view) for view in batch.views[:CODED]), strict=True)
            codes = self._codes(network, batch, z, scores)
        for view, images in enumerate(batch.views):
            of_view = network.online(images)
            loss = self._share(codes, of_view.p, view)
            yield Part(loss, {"L_swav": loss}, of_view.z.detach())

    def before_update(self, network: PrototypeNetwork, batch: Batch) -> None:
        """Freeze the prototypes at first: without a gradient, they have neither decay nor momentum."""
        if batch.epoch < self.frozen_epochs:
            network.prototypes.weight.grad = None

    def after_step(self, network: PrototypeNetwork, batch: Batch) -> dict[str, float]:
        """Write the embeddings of the large views to their queues."""
        if self.queue and batch.epoch >= self.queue_epoch:
            network.push(at=self._pushed(batch))
        return {}

    def _codes(
        self, network: PrototypeNetwork, batch: Batch, z: Sequence[Tensor], scores: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the codes of the large views of this process's images."""
        return network.codes(
            z[:CODED],
            scores[:CODED],
            epsilon=self.epsilon,
            iterations=self.iterations,
            with_queues=0 < self.queue <= self._pushed(batch),
        )

    def _pushed(self, batch: Batch) -> int:
        """Return the number of embeddings that were written to each queue before this step."""
        steps = batch.step - self.queue_epoch * batch.steps_per_epoch
        return steps * batch.num_images * distributed.world_size()

    def _share(self, codes: list[Tensor], scores: Tensor, view: int) -> Tensor:
        return share(codes, scores, view, num_views=self.num_views, temperature=self.temperature)


def share(codes: list[Tensor], scores: Tensor, view: int, *, num_views: int, temperature: float) -> Tensor:
    """Return the terms of L in which view number `view` predicts; the sum over all views is L.

    Args:
        codes: codes Q of the large views, (n, K) each.
        scores: scores S of view `view`, (n, K).
        num_views: V.
    """
    target = torch.stack([code for index, code in enumerate(codes) if index != view]).sum(dim=0)
    cross_entropy = -(target * F.log_softmax(scores / temperature, dim=1)).sum(dim=1).mean()
    return cross_entropy / (len(codes) * (num_views - 1))
