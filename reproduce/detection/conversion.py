"""The tensors of a torchvision ResNet under Detectron2's names.

The stem's tensors move to `stem`, and `layer1` to `layer4` become `res2` to `res5`. A BatchNorm belongs to
its convolution, and a downsampling branch is called `shortcut`. The classifier is dropped. Sources:
facebookresearch/moco detection/convert-pretrain-to-detectron2.py and detectron2/modeling/backbone/resnet.py.
A ResNet-50 has 318 tensors: 53 convolutions, each with the 5 tensors of its BatchNorm.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

AUTHOR = "msbreg-reproduction"
"""Author recorded in the file. Any name but Caffe2 works: Detectron2 would convert Caffe2's names and channel
order once more."""


def renamed(name: str) -> str:
    """Return Detectron2's name of a tensor: `layer1.0.bn2.weight` -> `res2.0.conv2.norm.weight`."""
    name = re.sub(r"\bdownsample\.0\.", "shortcut.", name)
    name = re.sub(r"\bdownsample\.1\.", "shortcut.norm.", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    stage = re.match(r"layer(\d)\.", name)
    return f"res{int(stage[1]) + 1}.{name[stage.end() :]}" if stage else f"stem.{name}"


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's `state_dict()` under Detectron2's names, on the CPU."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    return {renamed(name): tensor.detach().cpu().contiguous() for name, tensor in kept.items()}


def file(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the content of a file of weights, whose names Detectron2 matches to those of any detector."""
    return {"model": converted(tensors), "__author__": AUTHOR, "matching_heuristics": True}


def matches(name: str, ours: Container[str]) -> bool:
    """Return True if a detector's tensor has one of our names, possibly behind the name of the part it is in.

    Follows detectron2/checkpoint/c2_model_loading.py.
    """
    parts = name.split(".")
    return any(".".join(parts[begin:]) in ours for begin in range(len(parts)))
