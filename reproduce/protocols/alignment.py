"""Alignment and uniformity of the embeddings (protocol sheet, 7; Wang and Isola, ssnl/align_uniform).

    alignment  = mean over positive pairs of || x - y ||^2
    uniformity = log of the mean over i < j of exp(-2 || x_i - x_j ||^2),
                 averaged over the two sides of the pairs

Vectors are l2-normalised. Lower alignment means closer pairs; lower uniformity means a more uniform
distribution. A positive pair is two augmented views of one test image.

ReLU features cannot reach the paper's -3.8: their floor is about -2.7. Both metrics are therefore measured on
the head's output z. The values of the pooled features are reported next to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reproduce.data.dataset import Dataset
from reproduce.lazy import F, torch
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Watch
from reproduce.settings import Inverse
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class AlignmentUniformity(Protocol, name="alignment"):
    """Settings of the alignment and uniformity measurement."""

    t: Inverse = 2.0
    """Factor t of the squared distance in the uniformity's Gaussian (ssnl/align_uniform)."""

    metrics = ("alignment", "uniformity", "alignment_features", "uniformity_features")
    needs_projector = True

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
        """Return both metrics of the projections and, with the suffix `_features`, of the pooled features.

        Alignment is a mean squared distance; uniformity is the log of a mean of Gaussians. The views are
        drawn from `seed` with the augmentation that the encoder was trained with.
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
    """Return the mean squared distance of positive pairs.

    Args:
        x: one side of the pairs, (n, d) float64 of unit length.
        y: the other side, row by row, (n, d) float64 of unit length.
    """
    return (x - y).square().sum(dim=1).mean().item()


def uniformity(x: Tensor, t: float = 2.0, chunk: int = 2048) -> float:
    """Return the log of the mean over i < j of exp(-t || x_i - x_j ||^2).

    At most chunk x chunk distances are in memory at a time.

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
