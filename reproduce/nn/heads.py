"""Projection and prediction heads: two fully connected layers with a normalisation and a ReLU between them
(paper, section 7.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from reproduce.settings import Settings

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Heads(Settings, name="heads"):
    """The projector g and the predictor h, alike but for their input."""

    hidden: int = 512
    """Section 7.2, with a ResNet-18; 2048 with a ResNet-50."""
    output: int = 128
    """Dimensions d of z and p (section 7.2, with a ResNet-18); 256 with a ResNet-50."""
    norm: Literal["batchnorm", "layernorm"] = "batchnorm"
    """Between the two layers (section 7.2; Table 6 compares both). The backbone keeps its BatchNorm either
    way."""

    def narrower(self, factor: int) -> Heads:
        """Return heads whose layers are `factor` times narrower.

        With a batch that is smaller by `factor` squared, white predictions keep their singular value loss,
        d (d + 1) / (n - 1): it is 32 with the paper's d = 128 and n = 512, and 34 with d = 32 and n = 32.
        """
        return replace(self, hidden=self.hidden // factor, output=self.output // factor)

    def projector(self, features: int) -> nn.Module:
        """g: (batch, features) -> (batch, output)."""
        return self._mlp(features)

    def predictor(self) -> nn.Module:
        """h: (batch, output) -> (batch, output)."""
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
