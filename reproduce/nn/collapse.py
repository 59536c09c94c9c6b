"""Measures of collapse: how far the embeddings spread, and over how many dimensions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def measure(embeddings: Tensor) -> dict[str, float]:
    """Return `std` and `rank` of embeddings (n, d), for the log; NaN if an embedding is not finite."""
    embeddings = embeddings.detach().float()
    if not bool(embeddings.isfinite().all()):
        return {"std": math.nan, "rank": math.nan}
    return {"std": std(embeddings), "rank": effective_rank(embeddings)}


def std(embeddings: Tensor) -> float:
    """Return sqrt(d) times the mean standard deviation of the l2-normalised embeddings (n, d).

    The standard deviation is taken over the images and averaged over the dimensions. It is close to 1 if the
    embeddings are uniform on the sphere and 0 if they are all the same (Chen and He, Exploring Simple Siamese
    Representation Learning, section 4.1, which omits the factor sqrt(d)).
    """
    return float(F.normalize(embeddings, dim=1).std(dim=0, correction=0).mean()) * math.sqrt(
        embeddings.shape[1]
    )


def effective_rank(embeddings: Tensor) -> float:
    """Return the effective rank of embeddings (n, d), from 1 to min(n, d).

    It is exp of the entropy of the singular values divided by their sum (Roy and Vetterli, 2007). The mean is
    not removed, so identical embeddings have rank 1. If all embeddings are zero, the result is 0.
    """
    values = torch.linalg.svdvals(embeddings)
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())
