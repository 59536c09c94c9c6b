"""Projection and prediction heads.

`Heads` are those of BYOL and MSBReg (paper, section 7.2): two fully connected layers with a normalisation and
a ReLU between them. `Head` is that of another method, with any number of layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from reproduce.identity import added_later
from reproduce.settings import NotNegative, Settings, Width

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Heads(Settings, name="heads"):
    """The projector g and the predictor h, which differ only in their input size."""

    hidden: Width = 512
    """Width of the hidden layer: 512 with a ResNet-18, 2048 with a ResNet-50 (section 7.2)."""
    output: Width = 128
    """Dimensions d of z and p: 128 with a ResNet-18, 256 with a ResNet-50 (section 7.2)."""
    norm: Literal["batchnorm", "layernorm", "ws"] = "batchnorm"
    """Normalisation between the two layers (section 7.2; Table 6 compares the first two). The backbone always
    keeps its BatchNorm.

    ws: weight standardization (Qiao et al., 2019). The weights of the first layer are standardised, and no
    other normalisation follows. Section 7.2 names it, and no table has it; its place is a choice.
    """

    last_bias: bool = added_later(True, "0.2")
    """Bias of the last layers. BYOL's own code has none there (google-deepmind/deepmind-research
    byol/utils/networks.py); the paper does not state it, so torch's default is a choice."""

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

        from reproduce.nn.standardized import StandardizedLinear

        first: list[nn.Module]
        if self.norm == "ws":
            first = [StandardizedLinear(inputs, self.hidden)]
        else:
            norm = nn.BatchNorm1d if self.norm == "batchnorm" else nn.LayerNorm
            first = [nn.Linear(inputs, self.hidden), norm(self.hidden)]
        last = nn.Linear(self.hidden, self.output, bias=self.last_bias)
        return nn.Sequential(*first, nn.ReLU(inplace=True), last)


@dataclass(frozen=True, kw_only=True)
class Head(Settings, name="head"):
    """A head of n fully connected layers; each but the last is followed by a normalisation and a ReLU.

    The defaults are the most frequent form. A method states its own, with its source.
    """

    widths: tuple[Width, ...]
    """Outputs of the layers. The last one is d, the dimensions of the embeddings."""
    bias: bool = True
    """Bias of the layers before the last; torch's default."""
    last_bias: bool = True
    """Bias of the last layer; torch's default."""
    norm: Literal["batchnorm", "none"] = "batchnorm"
    """Normalisation between two layers; MoCo v2 has none (facebookresearch/moco moco/builder.py)."""
    last_norm: Literal["none", "scale", "fixed", "affine"] = "none"
    """BatchNorm after the last layer.

    scale: with a weight and no bias (google-research/simclr model_util.py). fixed: without both
    (facebookresearch/simsiam simsiam/builder.py). affine: with both.
    """
    weight_std: NotNegative = 0.0
    """Standard deviation of the layers' initial weights, whose mean is 0; with it their biases start at 0.

    0 for torch's own initialisation. google-research/simclr model_util.py: .01.
    """

    def check(self) -> None:
        if not self.widths:
            raise ValueError("head.widths is (): at least one layer is expected.")

    @property
    def output(self) -> int:
        """Dimensions d of the embeddings."""
        return self.widths[-1]

    def narrower(self, factor: int) -> Head:
        """Return a head whose layers are `factor` times narrower, with at least one unit each."""
        return replace(self, widths=tuple(max(1, width // factor) for width in self.widths))

    def build(self, inputs: int) -> nn.Sequential:
        """Return the head: (batch, inputs) -> (batch, output)."""
        from torch import nn

        layers: list[nn.Module] = []
        for width in self.widths[:-1]:
            layers.append(self._linear(inputs, width, bias=self.bias))
            layers += [nn.BatchNorm1d(width)] if self.norm == "batchnorm" else []
            layers.append(nn.ReLU(inplace=True))
            inputs = width
        layers.append(self._linear(inputs, self.output, bias=self.last_bias))
        if self.last_norm != "none":
            affine, bias = self.last_norm != "fixed", self.last_norm == "affine"
            layers.append(nn.BatchNorm1d(self.output, affine=affine, bias=bias))
        return nn.Sequential(*layers)

    def _linear(self, inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
        from torch import nn

        layer = nn.Linear(inputs, outputs, bias=bias)
        if self.weight_std:
            nn.init.normal_(layer.weight, std=self.weight_std)
            if bias:
                nn.init.zeros_(layer.bias)
        return layer
