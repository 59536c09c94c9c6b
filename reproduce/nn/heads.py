"""Projection and prediction heads (paper, section 7.2).

A head consists of two fully connected layers with a normalisation and a ReLU between them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from reproduce.settings import Settings, Width

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Heads(Settings, name="heads"):
    """The projector g and the predictor h, which differ only in their input size."""

    hidden: Width = 512
    """Width of the hidden layer: 512 with a ResNet-18, 2048 with a ResNet-50 (section 7.2)."""
    output: Width = 128
    """Dimensions d of z and p: 128 with a ResNet-18, 256 with a ResNet-50 (section 7.2)."""
    norm: Literal["batchnorm", "layernorm"] = "batchnorm"
    """Normalisation between the two layers (section 7.2; Table 6 compares both). The backbone always keeps
    its BatchNorm."""

    def narrower(self, factor: int) -> Heads:
        """Return heads whose layers are `factor` times narrower.

        With a batch that is smaller by `factor` squared, white predictions keep their singular value loss,
        d (d + 1) / (n - 1): it is 32 with the paper's d = 128 and n = 512, and 34 with d = 32 and n = 32.
        """
        return replace(self, hidden=self.hidden // factor, output=self.output // factor)

    def projector(self, features: int) -> nn.Module:
        """Return g: (batch, features) -> (batch, output)."""
        return self._mlp(features)

    def predictor(self) -> nn.Module:
        """Return h: (batch, output) -> (batch, output)."""
        return self._mlp(self.output)

    def _mlp(self, inputs: int) -> nn.Module:
        from torch import nn

        norm = nn.BatchNorm1d if self.norm == "batchnorm" else nn.LayerNorm
        return nn.Sequential(
            nn.Linear(inputs, self.hidden),
            norm(self.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(self.hidden, self.output),
        )
