"""A linear layer with standardised weights (Qiao et al., 2019, arXiv 1903.10520)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-5
"""Summand of each standard deviation (joe-siyuan-qiao/WeightStandardization README.md)."""


class StandardizedLinear(nn.Linear):
    """A linear layer that computes with standardised weights and trains the original ones.

    The weights of each output have mean 0 and standard deviation 1 over the inputs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, (n, inputs) -> (n, outputs)."""
        std, mean = torch.std_mean(self.weight, dim=1, correction=0, keepdim=True)
        return F.linear(x, (self.weight - mean) / (std + EPS), self.bias)
