"""An encoder: what pretraining leaves behind, or `weights.py` reads, and every evaluation starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from reproduce import checkpoint
from reproduce.lazy import torch
from reproduce.nn import backbones, seeds
from reproduce.spec import Pretrain, Weights

if TYPE_CHECKING:
    from torch import nn

    from reproduce.methods.method import Method

FILE = "encoder.safetensors"


@dataclass
class Encoder:
    """The online backbone and its projector (the predictor is discarded: section 3.1)."""

    spec: Pretrain | Weights
    """The run that trained it, or where it comes from."""
    backbone: nn.Module
    """Normalised images (n, 3, size, size) -> pooled features (n, num_features)."""
    projector: nn.Module | None
    """Features (n, num_features) -> z (n, d); None: only the backbone is known."""
    digest: str = ""
    """SHA-256 of its values; empty: not known, as of an encoder that was never written."""

    def save(self, folder: Path) -> Path:
        """Writes `encoder.safetensors`: keys `backbone.*` and `projector.*`."""
        parts = {"backbone": self.backbone} | ({} if self.projector is None else {"projector": self.projector})
        tensors = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
        return checkpoint.save_encoder(folder / FILE, tensors, spec_id=self.spec.id)


def build_network(spec: Pretrain) -> Any:
    """The network of a pretraining run with the initial weights that its seed decides."""
    method = cast("Method", spec.method)
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed("weights", spec.seed))
        return method.network(backbones.build(spec.backbone))


def load(spec: Pretrain, folder: Path, device: torch.device) -> Encoder:
    """The encoder that the run of `spec` left in `folder`, in eval mode on `device`.

    Raises:
        LookupError: there is no such file.
        ValueError: the file is broken or belongs to another run.
    """
    online = build_network(spec).online
    tensors = checkpoint.load_encoder(folder / FILE, spec_id=spec.id)
    for part in ("backbone", "projector"):
        getattr(online, part).load_state_dict(
            {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}
        )
    online.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Encoder(spec, online.backbone, online.projector, checkpoint.digest(tensors))
