"""An encoder: the result of pretraining or of `weight_files.py`, and the start of every evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import backbones
from reproduce.runs import encoder_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reproduce.data.augmentation import Augmentation

FILE = "encoder.safetensors"


def check_backbone(architecture: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if an encoder's file does not contain the backbone that its run trained.

    Args:
        architecture: name of the backbone; one that this version does not have is not checked.
        tensors: content of the file.
    """
    if architecture not in backbones.names():
        return
    with torch.device("meta"):
        expected = {
            f"backbone.{key}": value.shape
            for key, value in backbones.build(architecture).state_dict().items()
        }
    found = {key: value.shape for key, value in tensors.items() if key.startswith("backbone.")}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise InvalidError(f"it is not a {architecture}, whose {wrong[0]} it lacks or has in another shape")


@dataclass
class Encoder:
    """The online backbone and its projector (the predictor is discarded: section 3.1)."""

    architecture: str
    """Name of the function in `nn/backbones.py` that builds the backbone."""
    backbone: nn.Module
    """Normalised images (n, 3, size, size) -> pooled features (n, num_features)."""
    projector: nn.Module | None = None
    """Features (n, num_features) -> z (n, d). None if only the backbone is known."""
    spec_id: str = ""
    """Id of the pretraining run, or of the `Weights`, that it comes from."""
    digest: str = ""
    """SHA-256 of its values. Empty if unknown, as for an encoder that was never written."""
    augmentation: Augmentation | None = None
    """Distribution of the views that it was trained on. None for weights from elsewhere."""

    def save(self, folder: Path) -> Path:
        """Write `encoder.safetensors` with the keys `backbone.*` and `projector.*`."""
        parts = {"backbone": self.backbone} | (
            {} if self.projector is None else {"projector": self.projector}
        )
        tensors = {
            f"{part}.{key}": value
            for part, module in parts.items()
            for key, value in module.state_dict().items()
        }
        return encoder_file.save(folder / FILE, tensors, spec_id=self.spec_id)
