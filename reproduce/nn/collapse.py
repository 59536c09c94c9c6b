"""Whether the embeddings collapse: how far they spread, and over how many dimensions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def measure(embeddings: Tensor) -> dict[str, float]:
    """`std` and `rank` of embeddings (n, d), for the log; NaN where an embedding is not finite."""
    embeddings = embeddings.detach().float()
    if not bool(embeddings.isfinite().all()):
        return {"std": math.nan, "rank": math.nan}
    return {"std": std(embeddings), "rank": effective_rank(embeddings)}


def std(embeddings: Tensor) -> float:
    """sqrt(d) times the standard deviation of the l2-normalised embeddings over the images, averaged over the
    dimensions.

    Close to 1 where embeddings (n, d) are uniform on the sphere and 0 where they are all the same (Chen and
    He, Exploring Simple Siamese Representation Learning, section 4.1, which leaves out the factor sqrt(d)).
    """
    return float(F.normalize(embeddings, dim=1).std(dim=0, correction=0).mean()) * math.sqrt(
        embeddings.shape[1]
    )


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the singular values of embeddings (n, d), divided by their sum (Roy and Vetterli,
    2007): from 1 to min(n, d).

    The mean is not removed, so embeddings that are all the same have rank 1; embeddings that are all zero
    have none, 0.
    """
    values = torch.linalg.svdvals(embeddings)
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())
