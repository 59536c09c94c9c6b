"""Networks that embed each place of a backbone's last map, and pixel propagation.

Source: zdaxie/PixPro @ e390d6b contrast/models/PixPro.py (Xie et al., 2021, arXiv 2011.10043).

    x = g(f(view))                                          a vector for each place of the map
    y_i = sum_j max(cos(x_i, x_j), 0)^gamma h(x_j) hat      over all places j of the same map

A 1x1 convolution is a fully connected layer on each place. Projector g and transform h are such layers on
rows, (batch places, channels). Their BatchNorms average over all places of all images. The projector
therefore accepts pooled features, too, which are the map of a single place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from reproduce.nn.maps import Level
from reproduce.nn.networks import Network, Online, Outputs, Target

if TYPE_CHECKING:
    from torch import Tensor

LAST: tuple[Level, ...] = ("conv5",)
"""The level whose places are embedded."""


class Propagation(nn.Module):
    """Pixel propagation: each place becomes a mean of all places that resemble it."""

    def __init__(self, dim: int, *, exponent: float) -> None:
        """Create h, a 1x1 convolution with `dim` channels; `exponent` is gamma."""
        super().__init__()
        self.transform = nn.Linear(dim, dim)
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        """Return y of x, both (n, dim, height, width)."""
        rows = x.flatten(2).mT  # (n, places, dim)
        unit = F.normalize(rows, dim=2)
        similarity = (unit @ unit.mT).clamp(min=0) ** self.exponent  # (n, places, places)
        y: Tensor = similarity @ F.normalize(self.transform(rows), dim=2)
        return y.mT.view(x.shape)


class PlaceOnline(Online):
    """An online network whose outputs are maps: z and p are (V n, d, height, width)."""

    levels = LAST

    def _features(self, view: Tensor) -> Tensor:
        (found,) = self.maps(view)
        return found

    def _heads(self, features: Tensor) -> Outputs:
        z = at_places(self.projector, features)
        return Outputs(z, self.predictor(z))


class PlaceTarget(Target):
    """A target network whose outputs are maps: (n, 3, size, size) -> z', (n, d, height, width)."""

    levels = LAST

    def forward(self, view: Tensor) -> Tensor:
        """Return the projections z' of one view, un-normalised."""
        (found,) = self.maps(view)
        return at_places(self.projector, found)


class PlaceNetwork(Network):
    """An online and a target network that embed each place of the last map."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, propagation: Propagation) -> None:
        """Create the networks; the target starts as a copy."""
        super().__init__(backbone, projector)
        self.online = PlaceOnline(backbone, projector, propagation)
        self.target = PlaceTarget(backbone, projector)


def at_places(head: nn.Module, features: Tensor) -> Tensor:
    """Return a head's outputs at each place of a map: (n, channels, height, width) -> (n, d, height, width).

    Args:
        head: (rows, channels) -> (rows, d).
    """
    n, _, height, width = features.shape
    rows: Tensor = head(features.permute(0, 2, 3, 1).flatten(0, 2))
    return rows.view(n, height, width, -1).permute(0, 3, 1, 2)
