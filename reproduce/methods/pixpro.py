"""PixPro: pixel-to-propagation consistency (Xie et al., 2021, arXiv 2011.10043).

Source: zdaxie/PixPro @ e390d6b contrast/models/PixPro.py, contrast/data/transform_coord.py, tools/.

    x = g(f(view))                                          online: a vector for each place of the last map
    y_i = sum_j max(cos(x_i, x_j), 0)^gamma h(x_j) hat      propagation over the places of the map
    x' = g'(f'(other view))                                 target: xi <- tau xi + (1 - tau) theta
    L = -2 mean over images of [ mean over positive pairs (i, j) of cos(y_i, x'_j) ]    in both directions

A place of one view and a place of another are a positive pair if their centres are close in the image. The
limit is `distance` times the diagonal of a place, of the larger view. An image without a positive pair counts
0. The minimum of L is -4.

A view's box has coordinates from 0 to 1 along each axis of its image, from the centre of the first pixel to
that of the last. Distances in images that are not square are therefore not those in pixels. If a view is
mirrored, its left and right are exchanged.

With K > 2 views, L is twice the mean over the ordered pairs of views, a choice: it is the same sum for K = 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost
from reproduce.nn.heads import Head
from reproduce.settings import Fraction, Limits, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.places import PlaceNetwork

EPS = 1e-6
"""Summand of the number of positive pairs (contrast/models/PixPro.py)."""


@dataclass(frozen=True, kw_only=True)
class PixPro(Method, name="pixpro"):
    """Settings of PixPro."""

    num_views: int = 2
    """K: 2 in PixPro."""
    exponent: Annotated[float, Limits(1, 100)] = 2.0
    """gamma: sharpness of the propagation (tools/pixpro_base_r50_400ep.sh `pixpro-p`)."""
    distance: Positive = 0.7
    """Maximum distance of a positive pair (tools/pixpro_base_r50_400ep.sh `pixpro-pos-ratio`)."""
    tau: Fraction = 0.99
    """Decay rate of the target at the first step (tools/pixpro_base_r50_400ep.sh `pixpro-momentum`).

    It rises to 1 along a cosine.
    """
    head: Head = Head(widths=(4096, 256))
    """g: two 1x1 convolutions, on the map; h is one 1x1 convolution (contrast/models/PixPro.py)."""

    @property
    def num_parts(self) -> int:
        return self.num_views

    def passes(self, view: int) -> float:
        return 4.0  # one of them is the target network's

    def layout(self, num_features: int) -> Layout:
        return cost.Layout(
            cost.head(num_features, self.head),
            cost.propagation(self.head.output),
            has_target=True,
            at_places=True,
        )

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return PixPro with narrower heads, a choice: 2048-256 at small scale, 512-128 at smoke scale.

        Maps have 4 x 4 places at both. In the 70 steps or so of the smoke scale, heads of 256-16 teach less,
        and so does a faster target.
        """
        hidden, output = (512, 128) if scale == "smoke" else (2048, 256)
        *inner, last = self.head.widths
        widths = (*(min(width, hidden) for width in inner), min(last, output))
        return replace(self, head=replace(self.head, widths=widths))

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> PlaceNetwork:
        from reproduce.nn.places import PlaceNetwork, Propagation

        projector = self.head.build(backbone.num_features)
        return PlaceNetwork(backbone, projector, Propagation(self.head.output, exponent=self.exponent))

    def parts(self, network: PlaceNetwork, batch: Batch) -> Iterator[Part]:
        targets = [F.normalize(network.project(view), dim=1) for view in batch.views]  # (n, d, height, width)
        where = [
            Places.of(box, flip, batch.sizes, shape=tuple(x.shape[2:]), device=x.device)
            for box, flip, x in zip(batch.boxes, batch.flips, targets, strict=True)
        ]
        pairs = self.num_views * (self.num_views - 1)
        for index, view in enumerate(batch.views):
            y = F.normalize(network.online(view).p, dim=1)
            cosines = [
                consistency(y, x, where[index].near(where[other], self.distance))
                for other, x in enumerate(targets)
                if other != index
            ]
            loss = -4 / pairs * torch.stack(cosines).sum()
            yield Part(loss, {"L_pixpro": loss}, y.detach().mean(dim=(2, 3)))

    def after_step(self, network: PlaceNetwork, batch: Batch) -> dict[str, float]:
        """Move the target at the rate of the next step: the official code moves it before that step."""
        return network.follow(self.tau, step=batch.step + 1, num_steps=batch.num_steps)


class Places(NamedTuple):
    """The places of a view's map in the original images, row by row."""

    centres: Tensor
    """y and x of the centre of each place, (n, places, 2), from 0 to 1."""
    diagonal: Tensor
    """Diagonal of a place, (n,)."""

    @staticmethod
    def of(
        box: Tensor, flip: Tensor, sizes: Tensor, *, shape: tuple[int, ...], device: torch.device
    ) -> Places:
        """Return the places of a map of `shape`, height and width, on `device`.

        Args:
            box: top, left, height and width of the view in pixels of its image, (n, 4).
            flip: True for mirrored views, (n,).
            sizes: heights and widths of the images, (n, 2).
        """
        box, sizes = box.to(device, non_blocking=True), sizes.to(device, non_blocking=True)
        extent = (sizes - 1).clamp(min=1)
        start, side = box[:, :2] / extent, (box[:, 2:] - 1) / extent  # (n, 2)
        mirrored = flip.to(device, non_blocking=True)[:, None]
        rows, columns = (_middles(count, device) for count in shape)
        y = start[:, :1] + side[:, :1] * rows  # (n, height)
        x = start[:, 1:] + side[:, 1:] * torch.where(mirrored, 1 - columns, columns)  # (n, width)
        height, width = shape
        centres = torch.stack(
            [y[:, :, None].expand(-1, -1, width), x[:, None].expand(-1, height, -1)], dim=-1
        )
        diagonal = torch.hypot(side[:, 0] / height, side[:, 1] / width)
        return Places(centres.flatten(1, 2), diagonal)

    def near(self, other: Places, distance: float) -> Tensor:
        """Return True for the positive pairs, (n, places, places of `other`)."""
        y, x = (self.centres[:, :, None] - other.centres[:, None]).unbind(dim=3)
        return torch.hypot(y, x) < distance * torch.maximum(self.diagonal, other.diagonal)[:, None, None]


def _middles(count: int, device: torch.device) -> Tensor:
    """Return the middles of `count` equal parts of the range from 0 to 1."""
    return (torch.arange(count, device=device) + 0.5) / count


def consistency(y: Tensor, x: Tensor, positive: Tensor) -> Tensor:
    """Return the mean over images of the mean cosine of their positive pairs.

    Args:
        y: unit vectors of the places of one view, (n, d, height, width).
        x: those of another view, whose map may have another size.
        positive: see `Places.near`.
    """
    cosines = y.flatten(2).mT @ x.flatten(2)  # (n, places, places)
    pairs = positive.sum(dim=(1, 2))
    return ((cosines * positive).sum(dim=(1, 2)) / (pairs + EPS)).mean()
