"""Nearest neighbours in feature space (protocol sheet, 1 and 4): an exact search with bounded memory, and two ways of voting.

The result depends neither on the size of the chunks nor on the number of processes: distances are computed in double precision and rounded
to a grid much wider than their error, so images that are equally far stay so, and of those the one with the smaller index comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reproduce.data.dataset import Dataset
from reproduce.lazy import F, torch
from reproduce.protocols.protocol import Protocol
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.encoder import Encoder
    from reproduce.nn.features import Split

LEVELS = 2**30
"""Steps of the grid from 0 to the largest possible squared distance; finer than float32, wider than a float64 product's error."""
INDEX_BITS = 32
WEIGHT_UNIT = 2**50
"""The nearest one's weighted vote: sums of whole numbers do not depend on their order, and what is lost is below 1e-15 of a vote."""


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours(Protocol, name="knn"):
    """The small-scale protocol's k-NN: Euclidean, un-normalised pooled features, unweighted majority (htdt/self-supervised eval/knn.py)."""

    k: int = 5
    """Neighbours (section 4.1 and eval/knn.py)."""
    distance: Literal["euclidean"] = "euclidean"
    """Between un-normalised features."""

    metrics = ("top1",)

    def check(self) -> None:
        if self.k < 1:
            raise ValueError(f"knn takes k >= 1, not {self.k}.")

    def run(self, encoder: Encoder, dataset: Dataset, site: Site, device: torch.device, seed: int) -> dict[str, float]:
        """Returns `top1`; nothing here is random."""
        from reproduce.nn import features

        train, test = features.train_and_test(dataset, site)
        require(self.k, train, self.name)
        bank, queries = (features.extract(encoder, dataset, split, site, device) for split in (train, test))
        _, neighbours = nearest(queries, bank, self.k, device)
        return {"top1": accuracy(majority(train.labels[neighbours], train.num_classes), test.labels)}


@dataclass(frozen=True, kw_only=True)
class WeightedNeighbours(Protocol, name="weighted_knn"):
    """Cosine neighbours with votes exp(similarity / T), and the plain majority vote of the same neighbours beside it.

    Sources: zhirongw/lemniscate.pytorch test.py, facebookresearch/dino eval_knn.py; the plain vote is a choice (protocol sheet, 4).
    """

    ks: tuple[int, ...] = (20, 200)
    """Neighbours (Table 4)."""
    temperature: float = 0.07
    """T (the same files)."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"{vote}_{k}" for vote in ("top1", "majority") for k in self.ks)

    def check(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
            raise ValueError(f"weighted_knn takes one or more different ks >= 1, not {self.ks}.")
        if not self.temperature > 0:
            raise ValueError(f"weighted_knn takes a temperature > 0, not {self.temperature}.")

    def run(self, encoder: Encoder, dataset: Dataset, site: Site, device: torch.device, seed: int) -> dict[str, float]:
        """Returns `top1_<k>` (weighted) and `majority_<k>` for each k; nothing here is random."""
        from reproduce.nn import features

        train, test = features.train_and_test(dataset, site)
        require(max(self.ks), train, self.name)
        bank, queries = (features.extract(encoder, dataset, split, site, device) for split in (train, test))
        return self.measure(queries, test.labels, bank, train.labels, train.num_classes, device)

    def measure(
        self, queries: Tensor, query_labels: Tensor, bank: Tensor, bank_labels: Tensor, num_classes: int, device: torch.device
    ) -> dict[str, float]:
        """The metrics from features of any norm, (n, d) and (m, d), and their labels, (n,) and (m,); features are normalised in place."""
        for x in (queries, bank):
            F.normalize(x, dim=1, out=x)
        squared, neighbours = nearest(queries, bank, max(self.ks), device)
        labels, similarity = bank_labels[neighbours], 1 - squared / 2  # || x - y ||^2 = 2 - 2 cos on unit vectors
        metrics = {}
        for k in self.ks:
            # In units of the nearest one's vote, which changes no winner: votes are within [0, 1] however small T is.
            votes = ((similarity[:, :k] - similarity[:, :1]) / self.temperature).exp()
            metrics[f"top1_{k}"] = accuracy(majority(labels[:, :k], num_classes, votes), query_labels)
            metrics[f"majority_{k}"] = accuracy(majority(labels[:, :k], num_classes), query_labels)
        return {name: metrics[name] for name in self.metrics}


def require(k: int, train: Split, name: str) -> None:
    """Raises ValueError where the train split has fewer than k labelled images."""
    if k > len(train.labels):
        raise ValueError(
            f"{name} asks for {k} neighbours, but {train.title} has {len(train.labels)} labelled images: choose a k up to that."
        )


def nearest(
    queries: Tensor, bank: Tensor, k: int, device: torch.device, *, query_chunk: int = 1024, bank_chunk: int = 8192
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `bank` to each query by Euclidean distance, nearest first; equally far ones in the order of their indices.

    Beside the queries, only `query_chunk` x `bank_chunk` distances and n x k results are on the device at a time.

    Args:
        queries: (n, d) float32.
        bank: (m, d) float32, m >= k.

    Returns:
        Squared distances (n, k) float64 and row numbers (n, k) int64, on the CPU.
    """
    assert 1 <= k <= len(bank) < 2**INDEX_BITS
    centre = bank.mean(dim=0).to(device).double()  # any common point would do; a near one keeps digits
    queries = queries.to(device)
    unit = (2 * max(_radius(queries, centre), _radius(bank, centre))) ** 2 / LEVELS or 1.0
    best: list[Tensor] = [torch.empty(len(rows), 0, dtype=torch.int64, device=device) for rows in torch.split(queries, query_chunk)]
    for start in range(0, len(bank), bank_chunk):
        y = bank[start : start + bank_chunk].to(device).double() - centre
        index = torch.arange(start, start + len(y), device=device)
        for part, rows in enumerate(torch.split(queries, query_chunk)):
            x = rows.double() - centre
            # One whole number holds the distance and then the index, so that no two are equal and the k smallest are always the same ones.
            keys = (_squared_distances(x, y) / unit).round().long().bitwise_left_shift(INDEX_BITS).add(index)
            keys = keys.topk(min(k, len(y)), dim=1, largest=False).values
            merged = torch.cat([best[part], keys], dim=1)
            best[part] = merged.topk(min(k, merged.shape[1]), dim=1, largest=False, sorted=True).values
    keys = torch.cat(best).cpu()
    return keys.bitwise_right_shift(INDEX_BITS).double() * unit, keys.bitwise_and(2**INDEX_BITS - 1)


def _radius(x: Tensor, centre: Tensor) -> float:
    """The largest distance of a row from `centre`, a little more so that rounding never leaves the grid."""
    distances = ((rows.to(centre.device).double() - centre).square().sum(dim=1).max().item() for rows in torch.split(x, 8192))
    return math.sqrt(max(distances)) * (1 + 1e-6)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|| x_i - y_j ||^2 of the rows of two float64 matrices."""
    lengths = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return torch.addmm(lengths, x, y.T, alpha=-2).clamp_(min=0)


def majority(labels: Tensor, num_classes: int, votes: Tensor | None = None, chunk: int = 4096) -> Tensor:
    """The label with the most votes in each row, the smallest of those that tie.

    Args:
        labels: of the neighbours, (n, k) int64.
        votes: their weights in [0, 1], (n, k); None: one each.

    Returns:
        (n,) int64.
    """
    weights = torch.ones_like(labels) if votes is None else (votes * WEIGHT_UNIT).long()
    winners = []
    for label, weight in zip(torch.split(labels, chunk), torch.split(weights, chunk), strict=True):
        counts = torch.zeros(len(label), num_classes, dtype=torch.int64, device=labels.device).scatter_add_(1, label, weight)
        winners.append(counts.argmax(dim=1))  # the first of equal maxima
    return torch.cat(winners)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The fraction of predictions that are right."""
    return (predicted == labels).double().mean().item()
