"""A backbone in stages: the stem, then one part for each size of the features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from reproduce.lazy import torch

if TYPE_CHECKING:
    from torch import nn


SIDE = 64
"""Side in pixels of the image that determines the shapes: a multiple of every stride in this file."""


class Stage(NamedTuple):
    """A part of a backbone; its output is the next part's input."""

    module: nn.Module
    """Module of the backbone itself, not a copy."""
    channels: int
    """Number of channels of the output."""
    stride: int
    """Stride of the output in pixels of the image."""


def stages(backbone: nn.Module) -> list[Stage]:
    """Return the stages of `backbone`, the stem first.

    The spatial average of the last stage's output is the output of the backbone.

    Raises:
        ValueError: the backbone is not one of `backbones.py`.
    """
    modes = {module: module.training for module in backbone.modules()}
    features = torch.zeros(1, 3, SIDE, SIDE, device=next(backbone.parameters()).device)
    found = []
    for part in parts(backbone):
        with torch.no_grad():
            features = part.eval()(features)  # eval mode leaves the running statistics unchanged
        # Strides are powers of two; a padding of the stem may add pixels to the side.
        stride = 2 ** round(math.log2(SIDE / features.shape[2]))
        found.append(Stage(part, features.shape[1], stride))
    for module, mode in modes.items():
        module.training = mode
    return found


def parts(backbone: nn.Module) -> list[nn.Module]:
    """Return the modules of the stages, the stem first.

    Raises:
        ValueError: the backbone is not one of `backbones.py`.
    """
    from reproduce.nn.residual import SmallResNet

    if isinstance(backbone, SmallResNet):
        return [backbone.stem, *backbone.blocks]

    from torchvision.models import ResNet  # takes seconds

    if isinstance(backbone, ResNet):
        stem = torch.nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool)
        return [stem, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    raise ValueError(f"A {type(backbone).__name__} has no stages; the ResNets of backbones.py and small do.")
