"""PIRL: pretext-invariant representations (Misra and van der Maaten, 2020, arXiv 1912.01991).

Source: facebookresearch/vissl @ 09270ed vissl/losses/nce_loss.py, vissl/models/heads/siamese_concat_view.py,
configs/config/pretrain/pirl/pirl_jigsaw_4node_resnet50.yaml.

    v = g(f(image)) hat
    u = L(g_p(f(patch 1)), ..., g_p(f(patch 9))) hat
    L = lambda mean h(u, i) + (1 - lambda) mean h(v, i)

The image and its nine patches, in random order, should both tell the image's row m_i in a memory bank from
the rows of M random images. h is noise-contrastive estimation (`nn/bank.py`). Both losses have one Z, set at
the first loss of the patches, and negatives of their own. After the step, m_i moves towards v. A loss whose
products are all equal is log(1 + M) + M log(1 + 1/M), 11.374 for M = 32 000.

The patches and the image have a backward pass each, so that memory is that of the larger one. The patches
come first, as in the official code.

The rows of the bank start at length 1. The official code then averages them over its processes, whose seeds
differ. On 32 GPUs they start at a length of about .18, and Z is half as large. That follows from the number
of GPUs and is left out, a choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost
from reproduce.nn.cost import Block, Layout
from reproduce.nn.heads import Head
from reproduce.settings import Count, Fraction, Limits, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.patch_network import PatchNetwork

PATCHES: Final = 9
"""Number of patches of an image, views 1 to 9 (vissl pirl_jigsaw_4node_resnet50.yaml: `num_patches`)."""


@dataclass(frozen=True, kw_only=True)
class PIRL(Method, name="pirl"):
    """Settings of PIRL."""

    num_views: Annotated[int, Limits(1 + PATCHES, 1 + PATCHES)] = 1 + PATCHES
    """View 0 is the image, the others are its nine patches (vissl pirl_jigsaw_4node_resnet50.yaml)."""
    lambda_patches: Fraction = 0.5
    """lambda: weight of the loss of the patches (vissl pirl_jigsaw_4node_resnet50.yaml: `loss_weights`)."""
    negatives: Count = 32_000
    """M: random images that each embedding is compared with (vissl pirl_jigsaw_4node_resnet50.yaml)."""
    temperature: Positive = 0.07
    """T (vissl pirl_jigsaw_4node_resnet50.yaml)."""
    momentum: Fraction = 0.5
    """m: weight of the old row when a row moves (vissl pirl_jigsaw_4node_resnet50.yaml)."""
    head: Head = Head(widths=(128,), norm="none")
    """g: a single layer (vissl pirl_jigsaw_4node_resnet50.yaml)."""
    patch_head: Head = Head(widths=(128,), norm="none")
    """g_p: a single layer (vissl pirl_jigsaw_4node_resnet50.yaml). L has as many outputs as g."""
    batchnorm_group: Annotated[int, Limits(2)] = 32
    """Images whose image views, or patches, share the statistics of BatchNorm; all of a smaller batch.

    vissl pirl_jigsaw_4node_resnet50.yaml: 32 images on each of 32 GPUs, without synchronised BatchNorm.
    """

    @property
    def num_patches(self) -> int | None:
        return PATCHES

    @property
    def num_parts(self) -> int:
        return 2

    @property
    def view_groups(self) -> tuple[tuple[int, ...], ...]:
        return tuple(range(1, self.num_views)), (0,)

    def layout(self, num_features: int) -> Layout:
        each, dim = cost.head(num_features, self.patch_head), self.head.output
        joint = PATCHES * self.patch_head.output * dim + dim
        return Layout(
            cost.head(num_features, self.head),
            Block(each.parameters + joint, each.buffers, each.outputs + dim),
            kept=cost.FLOAT,
            kept_per_image=cost.FLOAT * dim,
            compared=1 + self.negatives,
        )

    def batchnorm_images(self, batch_size: int) -> int:
        return min(self.batchnorm_group, batch_size)

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return PIRL with fewer negatives and a higher temperature, and at smoke scale with narrower heads.

        All are choices. In an epoch of few steps, the bank fills with embeddings that are still almost alike.
        Their exponentials at .07 are far above Z, which random rows determine, and the loss rises. On 9 469
        photographs at 32 px, the training loss is 2 426 after 10 epochs of 36 steps at .07. At .5 it is 8.7
        after 24 epochs, below the 9.3 of equal products.
        """
        if scale == "small":
            return replace(self, negatives=4096, temperature=0.5)
        return replace(
            self,
            negatives=256,
            temperature=0.5,
            head=self.head.narrower(4),
            patch_head=self.patch_head.narrower(4),
        )

    def side(self, scale: Literal["smoke", "small"]) -> int | None:
        """Return 128 pixels at small scale, where patches of 64 px would have 19 of them in place of 37."""
        return 128 if scale == "small" else None

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> PatchNetwork:
        from reproduce.nn.patch_network import PatchHead, PatchNetwork

        dim = self.head.output
        projector = self.head.build(backbone.num_features)
        patch_head = PatchHead(
            self.patch_head.build(backbone.num_features),
            width=self.patch_head.output,
            num_patches=PATCHES,
            dim=dim,
        )
        return PatchNetwork(backbone, projector, patch_head, num_images=num_images, dim=dim)

    def parts(self, network: PatchNetwork, batch: Batch) -> Iterator[Part]:
        image, *patches = batch.views
        indices = batch.indices.to(image.device, non_blocking=True)

        z = network.online(*patches).z
        h = self._h(network, F.normalize(z, dim=1), indices, batch, "negatives of patches")
        yield Part(self.lambda_patches * h, {"L_patches": h, "L_image": torch.zeros_like(h)}, z.detach())

        z = network.online(image).z
        v = F.normalize(z, dim=1)
        network.keep(indices, v)
        h = self._h(network, v, indices, batch, "negatives")
        yield Part(
            (1 - self.lambda_patches) * h, {"L_patches": torch.zeros_like(h), "L_image": h}, z.detach()
        )

    def after_step(self, network: PatchNetwork, batch: Batch) -> dict[str, float]:
        network.advance(self.momentum)
        return {}

    def _h(self, network: PatchNetwork, v: Tensor, indices: Tensor, batch: Batch, purpose: str) -> Tensor:
        """Return the mean over images of h(v, i), with negatives drawn for `purpose`."""
        from reproduce.nn import bank

        rows = len(network.bank.rows)
        drawn = bank.negatives(
            rows, self.negatives, indices=indices, seed=batch.seed, step=batch.step, purpose=purpose
        )
        return network.bank.nce(v, indices, drawn, temperature=self.temperature)
