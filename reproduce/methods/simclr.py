"""SimCLR: contrast of the two views of an image with all other views of the batch.

Sources: Chen et al., 2020 (arXiv 2002.05709); google-research/simclr. For two views of n images, with z of 2n
rows and i' the other view of i:

    s_ij = z hat_i . z hat_j / T
    L = mean over i of -log( exp s_ii' / sum_{k != i} exp s_ik )

The 2n - 1 terms below are the other view and all views of other images. The batch is that of all processes.
With K > 2 views, L is the mean over the K (K - 1) / 2 pairs of views, as in htdt/self-supervised.

The loss couples the views with gradients on both sides, so the activations of all K views are in memory. With
`joint` not `all`, `recompute` in the site file keeps those of one view and takes one more forward pass.
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
from reproduce.settings import Positive

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.networks import Network


@dataclass(frozen=True, kw_only=True)
class SimCLR(Method, name="simclr"):
    """Settings of SimCLR."""

    num_views: int = 2
    """K: 2 in SimCLR."""
    temperature: Positive = 0.1
    """T: .1 on ImageNet (google-research/simclr README.md), .5 on STL-10 (htdt/self-supervised cfg.py)."""
    loss_scale: Positive = 2.0
    """Factor of L. SimCLR adds the means of two halves, which is 2 L (google-research/simclr objective.py).

    htdt/self-supervised has 1. LARS hides the factor from weights, but not from biases and normalisation
    parameters.
    """
    joint: Literal["none", "heads", "all"] = "all"
    """Networks in which the views share the statistics of BatchNorm: see `nn/networks.py`.

    all: google-research/simclr model.py. heads: htdt/self-supervised methods/contrastive.py.
    """
    head: Head = Head(widths=(2048, 128), bias=False, last_bias=False, last_norm="scale", weight_std=0.01)
    """Projector (google-research/simclr model_util.py). SimCLR v2 has another layer of 2048 units."""

    @property
    def num_parts(self) -> int:
        return 1

    @property
    def recomputes(self) -> bool:
        return self.joint != "all"

    def layout(self, num_features: int) -> Layout:
        return cost.Layout(cost.head(num_features, self.head))

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return SimCLR with a narrower projector.

        The hidden layers have at most 1024 units at small scale, those of htdt/self-supervised with a
        ResNet-18. Smoke has at most 128 units, 32 dimensions and a T of .2, a choice: a batch of 32 images
        has few negatives, and a higher T teaches less.
        """
        hidden, output = (128, 32) if scale == "smoke" else (1024, self.head.output)
        widths = (*(min(width, hidden) for width in self.head.widths[:-1]), min(self.head.output, output))
        temperature = min(self.temperature, 0.2) if scale == "smoke" else self.temperature
        return replace(self, temperature=temperature, head=replace(self.head, widths=widths))

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> Network:
        from reproduce.nn.networks import Network

        return Network(backbone, self.head.build(backbone.num_features), joint=self.joint)

    def parts(self, network: Network, batch: Batch) -> Iterator[Part]:
        views = network.online(*batch.views).z.chunk(self.num_views)  # (n, d) each
        pairs = itertools.combinations(views, 2)
        losses = [contrastive_loss(*pair, temperature=self.temperature) for pair in pairs]
        L = torch.stack(losses).mean()
        yield Part(self.loss_scale * L, {"L_simclr": L}, views[-1].detach())


def contrastive_loss(z1: Tensor, z2: Tensor, *, temperature: float) -> Tensor:
    """Return L of two views.

    The rows i are those of this process, so that L is the mean over the processes. The rows k are those of
    all processes.

    Args:
        z1: embeddings of the first view of this process's images, (n, d).
        z2: embeddings of the second view of the same images, (n, d).
    """
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    everyone = torch.cat([distributed.gather(z1), distributed.gather(z2)])
    s = torch.cat([z1, z2]) @ everyone.T / temperature  # (2 n, 2 n of all processes)
    first = distributed.rank() * len(z1) + torch.arange(len(z1), device=z1.device)
    second = first + len(everyone) // 2
    itself, other = torch.cat([first, second]), torch.cat([second, first])
    s = s.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(s, other)
