"""An encoder: the result of pretraining or of `weight_files.py`, and the start of every evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reproduce.runs import checkpoint

if TYPE_CHECKING:
    from torch import nn

    from reproduce.data.augmentation import Augmentation

FILE = "encoder.safetensors"


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
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the backbone in training."""

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
        return checkpoint.save_encoder(folder / FILE, tensors, spec_id=self.spec_id)
