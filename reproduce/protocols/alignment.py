"""Alignment and uniformity of the embeddings (protocol sheet, 7; Wang and Isola, ssnl/align_uniform).

    alignment  = mean over positive pairs of || x - y ||^2
    uniformity = log of the mean over i < j of exp(-2 || x_i - x_j ||^2), averaged over the two sides of the
    pairs

Both on l2-normalised vectors; lower is better aligned, lower is more uniform. A positive pair is two
augmented views of a test image. The paper's -3.8 is out of reach for ReLU features (their floor is about
-2.7), so the head's output z is what is measured; the pooled features' values stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reproduce.data.dataset import Dataset
from reproduce.lazy import F, torch
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Watch
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class AlignmentUniformity(Protocol, name="alignment"):
    """Settings of the alignment and uniformity measurement."""

    t: float = 2.0
    """Temperature of the uniformity's Gaussian (ssnl/align_uniform)."""

    metrics = ("alignment", "uniformity", "alignment_features", "uniformity_features")

    def check(self) -> None:
        if not self.t > 0:
            raise ValueError(f"alignment takes t > 0, not {self.t}.")

    def passes(self, num_train: int, num_test: int) -> float | None:
        return 2 * num_test

    def run(
        self,
        encoder: Encoder,
        dataset: Dataset,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Returns squared distances and their log-mean-exp, of projections and (`_features`) of pooled
        features.

        The views are drawn from the augmentation that the encoder was trained with, from `seed`.
        """
        from reproduce.nn import features

        pairs = features.extract_pairs(encoder, dataset, site, device, seed)
        metrics = {}
        for suffix, vectors in (("", pairs.projections), ("_features", pairs.features)):
            x, y = (F.normalize(view.to(device).double(), dim=1) for view in vectors)
            metrics[f"alignment{suffix}"] = alignment(x, y)
            metrics[f"uniformity{suffix}"] = (uniformity(x, self.t) + uniformity(y, self.t)) / 2
        return metrics


def alignment(x: Tensor, y: Tensor) -> float:
    """The mean squared distance of positive pairs, the rows of x and y, (n, d) float64 of unit length."""
    return (x - y).square().sum(dim=1).mean().item()


def uniformity(x: Tensor, t: float = 2.0, chunk: int = 2048) -> float:
    """log of the mean over i < j of exp(-t || x_i - x_j ||^2), with chunk x chunk distances in memory at a
    time.

    Args:
        x: (n, d) float64 of unit length, n >= 2.
    """
    assert x.dtype == torch.float64
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), chunk):
        rows = x[start : start + chunk]
        for other in range(start, len(x), chunk):
            columns = x[other : other + chunk]
            lengths = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)
            gaussian = torch.addmm(lengths, rows, columns.T, alpha=-2).clamp_(min=0).mul_(-t).exp_()
            total += gaussian.triu_(diagonal=1).sum() if other == start else gaussian.sum()
    return (total / (len(x) * (len(x) - 1) / 2)).log().item()
