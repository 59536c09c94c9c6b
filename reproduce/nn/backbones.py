"""The backbones f.

Every public function except `build`, `names` and `zero_last_batchnorms` creates one backbone. Its name is the
value of a spec's `backbone`.

A backbone maps images (n, 3, size, size) to pooled features (n, num_features). Its weights are random, with
torchvision's default initialisation unless a function's docstring names another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any

from reproduce.lazy import torch
from reproduce.messages import unknown

if TYPE_CHECKING:
    from torch import nn

SAME_TENSORS: Mapping[str, str] = {
    "resnet18_3x3": "with max pooling, as in htdt/self-supervised",
    "resnet18_cifar": "without max pooling, as in lightly's and SimCLR's networks for CIFAR",
    "resnet18_cifar_pad2": "without max pooling and with a padding of 2, as in solo-learn's for CIFAR",
}
"""Differences of backbones whose tensors have the same names and shapes."""
OTHERS = ("build", "names", "zero_last_batchnorms")
"""Public functions that do not create a backbone."""


def build(name: str, seed: int | None = None) -> Any:
    """Return the backbone `name`, an `nn.Module` with `num_features`.

    Args:
        seed: seed of the initial weights, which leaves the global random state unchanged. None to draw the
            weights from the global random state.

    Raises:
        LookupError: the backbone does not exist.
    """
    if name not in names():
        raise LookupError(unknown("backbone", name, names()))
    if seed is None:
        return globals()[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return globals()[name]()


def names() -> list[str]:
    """Return the names of all backbones, without importing torch."""
    functions = [
        name
        for name, value in globals().items()
        if isinstance(value, FunctionType) and value.__module__ == __name__
    ]
    return [name for name in functions if not name.startswith("_") and name not in OTHERS]


def zero_last_batchnorms(backbone: nn.Module, zero: bool) -> None:
    """Set the scale of the last BatchNorm of each residual block to 0, or to 1 if not `zero`.

    With 0 a block starts as its shortcut (Goyal et al., 2017, section 5.1).
    """
    from torch import nn

    # torchvision's blocks and those of `residual.py` have a `bn2`; only bottlenecks have a `bn3`, too.
    blocks: list[Any] = [module for module in backbone.modules() if hasattr(module, "bn2")]
    assert blocks, "a backbone without residual blocks"
    for block in blocks:
        nn.init.constant_(getattr(block, "bn3", block.bn2).weight, 0.0 if zero else 1.0)


def small() -> nn.Module:
    """Return a residual network of 77 392 parameters for 32-pixel images, with 64 features.

    It imports no torchvision.
    """
    from reproduce.nn.residual import SmallResNet

    return SmallResNet()


def resnet18() -> nn.Module:
    """Return torchvision's ResNet-18, with 512 features."""
    return _torchvision("resnet18")


def resnet18_3x3() -> nn.Module:
    """Return a ResNet-18 for small images, with 512 features.

    Its first convolution is 3x3 with stride 1, with torch's own initialisation of a convolution. The max
    pooling stays (htdt/self-supervised model.py).
    """
    from torch import nn

    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, padding=1, bias=False)
    return network


def resnet18_cifar() -> nn.Module:
    """Return a ResNet-18 for images of 32 px, with 512 features.

    Its first convolution is 3x3 with stride 1, without max pooling after it (SimCLR, appendix B.9;
    kuangliu/pytorch-cifar models/resnet.py). Its tensors are those of `resnet18_3x3`.
    """
    from torch import nn

    network = resnet18_3x3()
    network.maxpool = nn.Identity()
    return network


def resnet18_cifar_pad2() -> nn.Module:
    """Return `resnet18_cifar` with a padding of 2 in its first convolution, with 512 features.

    An image of 32 px then has features of 34 x 34 (vturrisi/solo-learn solo/methods/base.py).
    """
    network = resnet18_cifar()
    network.conv1.padding = (2, 2)  # type: ignore[union-attr]
    return network


def resnet50() -> nn.Module:
    """Return torchvision's ResNet-50, with 2048 features.

    The last BatchNorm of each bottleneck starts at 0, so that a block starts as its shortcut. BYOL's network
    does the same (dm-haiku haiku/_src/nets/resnet.py, `batchnorm_2`), but not in the blocks of a ResNet-18.
    """
    return _torchvision("resnet50", zero_init_residual=True)


def _torchvision(name: str, **options: bool) -> nn.Module:
    """Return a torchvision ResNet without its classifier."""
    from torch import nn
    from torchvision import models

    network: nn.Module = getattr(models, name)(**options)
    network.num_features = network.fc.in_features  # type: ignore[union-attr]
    network.fc = nn.Identity()
    return network
