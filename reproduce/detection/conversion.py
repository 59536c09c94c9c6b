"""A torchvision ResNet's tensors under the names that Detectron2 gives them.

The stem's are put under `stem`, `layer1` to `layer4` are called `res2` to `res5`, a BatchNorm belongs to its
convolution, and a shortcut is called so (facebookresearch/moco detection/convert-pretrain-to-detectron2.py;
detectron2/modeling/backbone/resnet.py). The classifier is dropped. 318 tensors for a ResNet-50: 53
convolutions and the 5 tensors of each one's BatchNorm.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

AUTHOR = "msbreg-reproduction"
"""Any but Caffe2, whose names and channel order Detectron2 would convert once more."""


def renamed(name: str) -> str:
    """`layer1.0.bn2.weight` -> `res2.0.conv2.norm.weight`."""
    name = re.sub(r"\bdownsample\.0\.", "shortcut.", name)
    name = re.sub(r"\bdownsample\.1\.", "shortcut.norm.", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    stage = re.match(r"layer(\d)\.", name)
    return f"res{int(stage[1]) + 1}.{name[stage.end() :]}" if stage else f"stem.{name}"


def converted(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """The backbone's `state_dict()` as Detectron2 names it, on the CPU."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    return {renamed(name): tensor.detach().cpu().contiguous().numpy() for name, tensor in kept.items()}


def file(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a pickle of weights holds, so that Detectron2 fits the names to whatever detector loads it."""
    return {"model": converted(tensors), "__author__": AUTHOR, "matching_heuristics": True}


def matches(name: str, ours: Container[str]) -> bool:
    """Whether a detector's tensor has the name of one of ours behind what it is a part of
    (detectron2/checkpoint/c2_model_loading.py)."""
    parts = name.split(".")
    return any(".".join(parts[begin:]) in ours for begin in range(len(parts)))
