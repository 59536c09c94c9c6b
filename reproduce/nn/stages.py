"""A backbone as the stages that a detector is built from: the stem, then one part for each size of the
features."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reproduce.lazy import torch

if TYPE_CHECKING:
    from torch import nn


SIDE = 64
"""Of the image by which shapes are found, in pixels: a multiple of every stride here."""


class Stage(NamedTuple):
    """A part of a backbone; what it returns is what the next one takes."""

    module: nn.Module
    """The backbone's own, not a copy."""
    channels: int
    """Of what it returns."""
    stride: int
    """Pixels of the image from one place of what it returns to the next."""


def stages(backbone: nn.Module) -> list[Stage]:
    """The stages of `backbone`, the stem first; their average over places is what the backbone returns.

    Raises:
        ValueError: it is none of `backbones.py`.
    """
    modes = {module: module.training for module in backbone.modules()}
    parts = _parts(backbone)
    features = torch.zeros(1, 3, SIDE, SIDE, device=next(backbone.parameters()).device)
    found = []
    for part in parts:
        with torch.no_grad():
            features = part.eval()(features)  # in eval mode, so that no statistics move
        found.append(Stage(part, features.shape[1], SIDE // features.shape[2]))
    for module, mode in modes.items():
        module.training = mode
    return found


def _parts(backbone: nn.Module) -> list[nn.Module]:
    from torchvision.models import ResNet

    from reproduce.nn.residual import SmallResNet

    if isinstance(backbone, SmallResNet):
        return [backbone.stem, *backbone.blocks]
    if isinstance(backbone, ResNet):
        stem = torch.nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool)
        return [stem, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    raise ValueError(
        f"A {type(backbone).__name__} has no stages that a detector could be built from: resnet50, resnet18, resnet18_3x3 and small have."
    )
