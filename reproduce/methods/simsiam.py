"""SimSiam: two views, a predictor and a stop-gradient; no target network, no negatives, no queue.

Sources: Chen and He, Exploring Simple Siamese Representation Learning (arXiv 2011.10566), section 3;
facebookresearch/simsiam simsiam/builder.py, main_simsiam.py.

    z_i = g(f(v_i)),  p_i = h(z_i)
    L = -1/2 mean cos(p_1, sg z_2) - 1/2 mean cos(p_2, sg z_1)

sg is the stop-gradient: z is a constant in the loss. Without it all embeddings become the same (section 4.1).
z and p of a view come from one forward pass, so both views form one part. The minimum of L is -1. BatchNorm
sees one view at a time, over the images of all processes. Memory holds the activations of two views; with
`recompute` in the site file it holds those of one, for one more forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from reproduce.lazy import F
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost
from reproduce.nn.heads import Head
from reproduce.settings import Limits

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.networks import Network


@dataclass(frozen=True, kw_only=True)
class SimSiam(Method, name="simsiam"):
    """Settings of SimSiam."""

    num_views: Annotated[int, Limits(2, 2)] = 2
    """Views of an image; SimSiam has two (section 3)."""
    projector: Head = Head(widths=(2048, 2048, 2048), bias=False, last_bias=False, last_norm="fixed")
    """g: three layers; the last BatchNorm has no parameters (simsiam/builder.py).

    The official hidden layers are as wide as the features: 2048 with a ResNet-50. The last layer's bias is
    frozen there, and the BatchNorm after it removes it.
    """
    predictor: Head = Head(widths=(512, 2048), bias=False)
    """h: two layers with a bottleneck of a quarter, without BatchNorm at the end (simsiam/builder.py)."""

    def check(self) -> None:
        """Raise ValueError if p and z differ in their dimensions."""
        if self.predictor.output != self.projector.output:
            raise ValueError(
                f"simsiam.predictor has {self.predictor.output} outputs, but z has {self.projector.output} "
                "dimensions: both must be equal."
            )

    @property
    def num_parts(self) -> int:
        return 1

    def layout(self, num_features: int) -> Layout:
        return cost.Layout(
            cost.head(num_features, self.projector), cost.head(self.projector.output, self.predictor)
        )

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return SimSiam with heads for the 64 features of the smoke scale: d = 128.

        The small scale keeps the heads, as solo-learn and lightly do with a ResNet-18.
        """
        if scale == "small":
            return self
        return replace(self, projector=self.projector.narrower(16), predictor=self.predictor.narrower(16))

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> Network:
        from reproduce.nn.networks import Network

        projector = self.projector.build(backbone.num_features)
        return Network(backbone, projector, self.predictor.build(self.projector.output))

    def parts(self, network: Network, batch: Batch) -> Iterator[Part]:
        z, p = network.online(*batch.views)
        z = z.detach()
        loss = symmetric_loss(p, z)
        yield Part(loss, {"L_simsiam": loss}, z[: batch.num_images])


def symmetric_loss(p: Tensor, z: Tensor) -> Tensor:
    """Return L = -1/2 mean cos(p_1, z_2) - 1/2 mean cos(p_2, z_1).

    The gradient flows through both arguments: the caller detaches z.

    Args:
        p: predictions of both views, (2 n, d): all images of the first view, then those of the second.
        z: projections in the same order, (2 n, d).
    """
    return -F.cosine_similarity(p, z.roll(len(z) // 2, dims=0), dim=1).mean()
