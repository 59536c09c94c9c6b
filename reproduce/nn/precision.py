"""Arithmetic that stays in float32 in a run whose precision is bfloat16."""

from __future__ import annotations

from reproduce.lazy import torch


def full_precision(device: torch.device) -> torch.autocast:
    """Return a block in which autocast is off: products of float32 matrices stay in float32.

    Losses need it if bfloat16 loses what they measure: logits of a queue, Sinkhorn's iterations, covariances
    and Cholesky factors. A tensor that an autocast block has made keeps its type: call `float()` first.
    """
    return torch.autocast(device.type, enabled=False)
