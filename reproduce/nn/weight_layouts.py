"""Names that other libraries give to the tensors of a ResNet, and networks that are none of our backbones.

    for layout in LAYOUTS: layout.theirs("layer1.0.downsample.0.weight")
    unknown_network(tensors)      # "a ResNet-34", or "" if only the details differ from a backbone

timm, MMSelfSup, VISSL, PyTorch Lightning, DDP and torch.compile have torchvision's names under a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

UNPOOLED = ("resnet18_cifar", "resnet18_cifar_pad2")
"""Backbones without max pooling."""
RESNETS = ("resnet18", "resnet18_3x3", *UNPOOLED, "resnet50")
"""Backbones with torchvision's names."""
BLOCK = r"^layer(\d)\.(\d+)\."


@dataclass(frozen=True)
class Layout:
    """A naming of a backbone's tensors."""

    title: str
    """Origin in messages; empty for the names of the backbone itself."""
    theirs: Callable[[str], str]
    """Maps the backbone's name of a tensor to this naming."""
    networks: tuple[str, ...] | None = None
    """Backbones that can have these names. None for all."""

    def fits(self, backbone: str) -> bool:
        """Return True if the backbone can have these names."""
        return self.networks is None or backbone in self.networks


def _sequential(first: int) -> Callable[[str], str]:
    """Return the names in `nn.Sequential(*list(resnet.children())[:-1])`.

    Args:
        first: number of `layer1` there: 4 after a convolution, BatchNorm, ReLU and pooling.
    """

    def theirs(name: str) -> str:
        name = re.sub(r"^conv1\.", "0.", re.sub(r"^bn1\.", "1.", name))
        return re.sub(r"^layer(\d)\.", lambda match: f"{first - 1 + int(match[1])}.", name)

    return theirs


def _hugging_face(name: str) -> str:
    """Return the name in a ResNetModel (huggingface/transformers models/resnet/modeling_resnet.py)."""
    name = re.sub(BLOCK, lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.", name)
    name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
    name = re.sub(r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution.", name)
    name = re.sub(r"\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization.", name)
    return name.replace(".downsample.0.", ".shortcut.convolution.").replace(
        ".downsample.1.", ".shortcut.normalization."
    )


LAYOUTS = (
    Layout("", lambda name: name),
    Layout("torchvision's modules in an nn.Sequential, as in lightly's examples", _sequential(4), RESNETS),
    Layout("torchvision's modules without max pooling in an nn.Sequential", _sequential(3), UNPOOLED),
    Layout("Hugging Face's ResNetModel", _hugging_face, RESNETS),
    Layout(
        "blocks with `shortcut`, as in kuangliu/pytorch-cifar",
        lambda name: name.replace(".downsample.", ".shortcut."),
        RESNETS,
    ),
)
"""The namings that are tried, in this order."""

FAMILIES: Mapping[str, str] = {
    r"(^|\.)res2\.0\.conv1\.weight$": (
        "a ResNet with Detectron2's names (convert it to torchvision's; Detectron2's own models also expect "
        "BGR images from 0 to 255)"
    ),
    r"(^|\.)conv1\.0\.weight$": "a ResNet whose stem has several convolutions, such as timm's resnet50d",
    r"(^|\.)stages\.0\.blocks\.0\.norm1\.weight$": "a pre-activation ResNet, such as timm's resnetv2_50",
    r"(^|\.)root\.conv\.weight$": "a Big Transfer ResNet with weight standardisation",
    r"(^|\.)2\.0\.(conv1|shortcut\.0)\.weight$": (
        "a ResNet in an nn.Sequential without its first ReLU, such as lightly's ResNetGenerator"
    ),
    r"(patch_embed|cls_token|class_token|patch_embeddings|conv_proj)": "a vision transformer",
    r"(dwconv|conv_dw|depthwise)": "a network with depthwise convolutions, such as ConvNeXt",
    r"(^|\.)layer1\.0\.(se|eca)\.": "a ResNet with channel attention, such as timm's seresnet50",
}
"""Networks that are none of our backbones, by a pattern of a name of a tensor."""
DEPTHS: Mapping[tuple[bool, tuple[int, ...]], str] = {
    (False, (1, 1, 1, 1)): "a ResNet-10",
    (False, (3, 4, 6, 3)): "a ResNet-34",
    (True, (2, 2, 2, 2)): "a ResNet-26",
    (True, (3, 4, 23, 3)): "a ResNet-101",
    (True, (3, 8, 36, 3)): "a ResNet-152",
}
"""ResNets by their kind of block, True for bottlenecks, and the number of blocks in each stage."""


def unknown_network(tensors: Mapping[str, Tensor]) -> str:
    """Return what the network is if it differs from every backbone in kind, or "" if that is unknown."""
    for pattern, title in FAMILIES.items():
        if any(re.search(pattern, name) for name in tensors):
            return title
    stem = next((name for name in tensors if name.endswith("layer1.0.conv1.weight")), "")
    prefix = stem.removesuffix("layer1.0.conv1.weight")
    if not stem:
        return ""
    bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
    depths = tuple(_num_blocks(tensors, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4))
    if bottleneck and depths == (3, 4, 6, 3):
        inner = tensors.get(f"{prefix}layer1.0.conv2.weight")
        if inner is not None and inner.ndim == 4 and inner.shape[1] < inner.shape[0]:
            return "a ResNeXt"
        if tensors[stem].shape[:1] > (64,):
            return "a wide ResNet"
    return DEPTHS.get((bottleneck, depths), "")


def _num_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of blocks of a stage."""
    number = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for name in tensors if (match := number.match(name))})
