"""The backbones f: each public function here but `build` and `names` makes one, and its name is what a spec's
`backbone` says.

A backbone maps images (n, 3, size, size) to pooled features (n, num_features). Weights are random;
torchvision's defaults initialise them unless a function says otherwise.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from reproduce.lazy import torch
from reproduce.messages import unknown

if TYPE_CHECKING:
    from torch import nn


def build(name: str, seed: int | None = None) -> Any:
    """The backbone `name`, an `nn.Module` with `num_features`.

    Args:
        seed: decides the initial weights, and leaves the global random state alone; None: they come from the
            global random state.

    Raises:
        LookupError: there is no such backbone.
    """
    if name not in names():
        raise LookupError(unknown("backbone", name, names()))
    if seed is None:
        return globals()[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return globals()[name]()


def names() -> list[str]:
    """Every backbone there is; needs no torch."""
    functions = [
        name
        for name, value in globals().items()
        if isinstance(value, FunctionType) and value.__module__ == __name__
    ]
    return [name for name in functions if not name.startswith("_") and name not in ("build", "names")]


def small() -> nn.Module:
    """A residual network of 77 392 parameters for 32-pixel images, 64 features; imports no torchvision."""
    from reproduce.nn.residual import SmallResNet

    return SmallResNet()


def resnet18() -> nn.Module:
    """torchvision's ResNet-18, 512 features."""
    return _torchvision("resnet18")


def resnet18_3x3() -> nn.Module:
    """ResNet-18 whose first convolution is 3x3 with stride 1, its max pooling kept (htdt/self-supervised
    model.py), 512 features."""
    from torch import nn

    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet50() -> nn.Module:
    """torchvision's ResNet-50, 2048 features.

    The last BatchNorm of each bottleneck starts at 0, so that a block starts as its shortcut: BYOL's network
    does so (dm-haiku haiku/_src/nets/resnet.py, `batchnorm_2`), but not in the blocks of a ResNet-18.
    """
    return _torchvision("resnet50", zero_init_residual=True)


def _torchvision(name: str, **options: bool) -> nn.Module:
    """A torchvision ResNet without its classifier."""
    from torch import nn
    from torchvision import models

    network: nn.Module = getattr(models, name)(**options)
    network.num_features = network.fc.in_features  # type: ignore[union-attr]
    network.fc = nn.Identity()
    return network
