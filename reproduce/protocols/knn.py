"""Nearest neighbours in feature space (protocol sheet, 1 and 4): an exact search with bounded memory, and two
ways of voting.

The result depends neither on the size of the chunks nor on the number of processes: what is nearest is
decided by distances in double precision, each from its own two rows, and of images that are equally far the
one with the smaller index comes first. A float32 product only says which distances are worth that.

ImageNet's bank of 1 281 167 x 2048 features with 50 000 queries, planned:

- Memory of the host: the bank 10.5 GB, the queries 0.4 GB, 0.3 GB for 200 neighbours of each. The device sees
  16 384 rows of the bank at a time, twice 0.13 GB, beside all queries (0.8 GB with their copy), 34 MB of
  products and 0.1 GB of candidates: about 1.5 GB.
- Work: 2 x 50 000 x 1 281 167 x 2048 = 2.6e14 operations in float32: 4 s at the 67e12 a second of an H200's
  data sheet, some 10 s with the selection of the smallest and the bank's way to the device (planned, not
  measured); 25 minutes on two CPU cores at 90e9 a second each.
  Then 228 rows for each query are measured on the CPU: 2.3e10 differences, a minute on one core. Extracting
  the features takes far longer.
- Measured, on one CPU core: a bank of 400 000 x 512 takes 0.1 GB beyond its own 0.8 GB, as one of 100 000
  does (`bench/bench_knn.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reproduce.data.dataset import Dataset
from reproduce.lazy import F, torch
from reproduce.messages import InvalidError
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Watch
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.encoder import Encoder
    from reproduce.nn.features import Split

SPARE = 16
"""Rows that are measured beyond the k nearest and a sixteenth more: bounds order rows a little differently
than distances do."""
GROUPED = 8
"""Columns whose minimum is looked at first, when the smallest of many are sought."""
HUGE = 1e18
"""Norms from which float32 may not hold a square, so that bounds prove nothing."""
BLOCK = 2**22
"""Numbers that are measured at once: in smaller blocks threads would wait for each other more than they
work."""
WEIGHT_UNIT = 2**50
"""The nearest one's weighted vote: sums of whole numbers do not depend on their order, and what is lost is
below 1e-15 of a vote."""
MOST = 2**63 // WEIGHT_UNIT - 1
"""Neighbours whose votes a whole number of 64 bits holds."""


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours(Protocol, name="knn"):
    """The small-scale protocol's k-NN: Euclidean, un-normalised pooled features, unweighted majority
    (htdt/self-supervised eval/knn.py)."""

    k: int = 5
    """Neighbours (section 4.1 and eval/knn.py)."""
    distance: Literal["euclidean"] = "euclidean"
    """Between un-normalised features."""

    metrics = ("top1",)

    def check(self) -> None:
        if self.k < 1:
            raise ValueError(f"knn takes k >= 1, not {self.k}.")

    def passes(self, num_train: int, num_test: int) -> float | None:
        return num_train + num_test

    def run(
        self,
        encoder: Encoder,
        dataset: Dataset,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Returns `top1`; nothing here is random."""
        from reproduce.nn import features

        train, test = features.train_and_test(dataset, site)
        require(self.k, train, self.name)
        bank, queries = (features.extract(encoder, dataset, split, site, device) for split in (train, test))
        _, neighbours = nearest(queries, bank, self.k, device)
        return {"top1": accuracy(majority(train.labels[neighbours], train.num_classes), test.labels)}


@dataclass(frozen=True, kw_only=True)
class WeightedNeighbours(Protocol, name="weighted_knn"):
    """Cosine neighbours with votes exp(similarity / T), and the plain majority vote of the same neighbours
    beside it.

    Sources: zhirongw/lemniscate.pytorch test.py, facebookresearch/dino eval_knn.py; the plain vote is a
    choice (protocol sheet, 4).
    """

    ks: tuple[int, ...] = (20, 200)
    """Neighbours (Table 4)."""
    temperature: float = 0.07
    """T (the same files)."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"{vote}_{k}" for vote in ("top1", "majority") for k in self.ks)

    def check(self) -> None:
        if not self.ks or min(self.ks) < 1 or max(self.ks) > MOST or len(set(self.ks)) < len(self.ks):
            raise ValueError(f"weighted_knn takes one or more different ks from 1 to {MOST}, not {self.ks}.")
        if not self.temperature > 0:
            raise ValueError(f"weighted_knn takes a temperature > 0, not {self.temperature}.")

    def passes(self, num_train: int, num_test: int) -> float | None:
        return num_train + num_test

    def run(
        self,
        encoder: Encoder,
        dataset: Dataset,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Returns `top1_<k>` (weighted) and `majority_<k>` for each k; nothing here is random."""
        from reproduce.nn import features

        train, test = features.train_and_test(dataset, site)
        require(max(self.ks), train, self.name)
        bank, queries = (features.extract(encoder, dataset, split, site, device) for split in (train, test))
        return self.measure(queries, test.labels, bank, train.labels, train.num_classes, device)

    def measure(
        self,
        queries: Tensor,
        query_labels: Tensor,
        bank: Tensor,
        bank_labels: Tensor,
        num_classes: int,
        device: torch.device,
    ) -> dict[str, float]:
        """The metrics from features of any norm, (n, d) and (m, d), and their labels, (n,) and (m,); features
        are normalised in place."""
        for x in (queries, bank):
            F.normalize(x, dim=1, out=x)
        squared, neighbours = nearest(queries, bank, max(self.ks), device)
        labels, similarity = (
            bank_labels[neighbours],
            1 - squared / 2,
        )  # || x - y ||^2 = 2 - 2 cos on unit vectors
        metrics = {}
        for k in self.ks:
            # In units of the nearest one's vote, which changes no winner: votes are within [0, 1] however
            # small T is.
            votes = ((similarity[:, :k] - similarity[:, :1]) / self.temperature).exp()
            metrics[f"top1_{k}"] = accuracy(majority(labels[:, :k], num_classes, votes), query_labels)
            metrics[f"majority_{k}"] = accuracy(majority(labels[:, :k], num_classes), query_labels)
        return {name: metrics[name] for name in self.metrics}


def require(k: int, train: Split, name: str) -> None:
    """Raises ValueError where the train split has fewer than k labelled images."""
    if k > len(train.labels):
        raise InvalidError(
            f"{name} asks for {k} neighbours, but {train.title} has {len(train.labels)} labelled images: choose a k up to that."
        )


def nearest(
    queries: Tensor,
    bank: Tensor,
    k: int,
    device: torch.device,
    *,
    query_chunk: int = 512,
    bank_chunk: int = 16384,
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `bank` to each query by Euclidean distance, nearest first; equally far ones in
    the order of their indices.

    A float32 matrix product bounds every distance from below. The rows with the smallest bounds are measured
    in double precision, and what was not measured is proven to be farther. Where that cannot be proven, as in
    a collapsed encoder, whose distances are all equal, the query is measured against the whole bank, some ten
    times as slowly.

    Args:
        queries: (n, d) float32 on the CPU.
        bank: (m, d) float32 on the CPU, m >= k; the device sees `bank_chunk` rows of it at a time.

    Returns:
        Squared distances (n, k) float64 and row numbers (n, k) int64, on the CPU.
    """
    assert 1 <= k <= len(bank)
    rows, floor = _candidates(
        queries, bank, min(len(bank), k + k // 16 + SPARE), device, query_chunk, bank_chunk
    )
    distances, order = _measured(queries, bank, rows).sort(dim=1, stable=True)
    distances, rows = distances[:, :k], rows.gather(1, order[:, :k])
    unproven = ~(floor > distances[:, -1])
    if unproven.any():
        distances[unproven], rows[unproven] = _scan(
            queries[unproven], bank, k, device, query_chunk, bank_chunk
        )
    return distances.square(), rows


def _candidates(
    queries: Tensor, bank: Tensor, num: int, device: torch.device, query_chunk: int, bank_chunk: int
) -> tuple[Tensor, Tensor]:
    """The `num` rows of `bank` with the smallest lower bounds of their distance to each query, and what
    bounds all the others.

    |x|^2 + |y|^2 - 2 xy is at most error (|x| + |y|)^2 off when its products are summed in float32, in
    whatever order: d roundings for xy, d for the norms and a few for centring (Higham, Accuracy and Stability
    of Numerical Algorithms, section 3.1). The bound, the difference
    of the two, is a product as well, of rows that are two numbers longer: (x, |x|, 1) and (-2 y, -2 error
    |y|, (1 - error) |y|^2).

    Returns:
        Row numbers (n, num) int64, ascending, and distances (n,) float64 that no other row is below, on the
        CPU.
    """
    assert torch.get_float32_matmul_precision() == "highest", "TF32 would be farther off"
    d = bank.shape[1]
    error, underflow = (2 * d + 32) * 1.01 * 2.0**-24, (d + 16) * 2.0**-125
    centre = queries.mean(dim=0).to(device)  # any common point would do; a near one keeps digits
    x, norms = _longer(queries.to(device), centre)
    longest = norms.max()
    x[:, -2], x[:, -1] = norms, 1
    best = [
        (rows.new_empty(len(rows), 0), rows.new_empty(len(rows), 0, dtype=torch.int64))
        for rows in torch.split(x, query_chunk)
    ]
    buffer = x.new_empty(
        min(query_chunk, len(x)) * min(bank_chunk, len(bank))
    )  # taking it anew for each product would cost a tenth
    for start in range(0, len(bank), bank_chunk):
        y, lengths = _longer(bank[start : start + bank_chunk].to(device), centre)
        longest = torch.maximum(longest, lengths.max())
        y.mul_(-2)
        y[:, -2], y[:, -1] = -2 * error * lengths, (1 - error) * lengths.square()
        for part, rows in enumerate(torch.split(x, query_chunk)):
            bounds = torch.mm(rows, y.T, out=buffer[: len(rows) * len(y)].view(len(rows), len(y)))
            bounds, found = _smallest(bounds, num)
            bounds, found = (
                torch.cat([best[part][0], bounds], dim=1),
                torch.cat([best[part][1], found + start], dim=1),
            )
            bounds, order = bounds.topk(min(num, bounds.shape[1]), dim=1, largest=False, sorted=False)
            best[part] = bounds, found.gather(1, order)
    largest = torch.cat([bounds.amax(dim=1) for bounds, _ in best]).double()
    floor = (largest + (1 - error) * norms.double().square() - underflow).clamp_(min=0).sqrt_()
    floor = torch.where(longest < HUGE, floor, 0.0)
    if num == len(bank):
        floor.fill_(math.inf)  # there are no others
    return torch.cat([found for _, found in best]).cpu().sort(dim=1).values, floor.cpu()


def _longer(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of x, less `centre`, with two more numbers to be filled in, (n, d + 2), and their norms,
    (n,)."""
    longer = x.new_empty(len(x), x.shape[1] + 2)
    rows = torch.sub(x, centre, out=longer[:, :-2])
    return longer, torch.linalg.vector_norm(rows, dim=1)


def _smallest(x: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` smallest values in each row of x, in no order, and their columns; all of them where a row has
    fewer."""
    n, m = x.shape
    if m % GROUPED or 2 * num * GROUPED > m:
        return x.topk(min(num, m), dim=1, largest=False, sorted=False)
    # They are in the groups of columns with the smallest minima, which take a fraction of the time to find.
    groups = x.view(n, GROUPED, -1).amin(dim=1).topk(num, dim=1, largest=False, sorted=False).indices
    columns = torch.cat([groups + first for first in range(0, m, m // GROUPED)], dim=1)
    values, order = x.gather(1, columns).topk(num, dim=1, largest=False, sorted=False)
    return values, columns.gather(1, order)


def _measured(queries: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """The distance of each query to the rows of `bank` named for it, (n, c) int64; (n, c) float64."""
    (n, c), d = rows.shape, bank.shape[1]
    step = min(n, max(1, BLOCK // (c * d)))
    single, double = (
        torch.empty(step * c, d),
        torch.empty(step * c, d, dtype=torch.float64),
    )  # taken once: new memory is slow
    distances = []
    for x, chosen in zip(torch.split(queries, step), torch.split(rows, step), strict=True):
        count = chosen.numel()
        torch.index_select(bank, 0, chosen.flatten(), out=single[:count])
        double[:count] = single[:count]
        distances.append(_distances(x[:, None], double[:count].view(*chosen.shape, d))[:, 0])
    return torch.cat(distances)


def _scan(
    queries: Tensor, bank: Tensor, k: int, device: torch.device, query_chunk: int, bank_chunk: int
) -> tuple[Tensor, Tensor]:
    """The distances (n, k) and numbers (n, k) of the k nearest rows, each distance measured."""
    queries = queries.to(device)
    best = [
        (rows.new_empty(len(rows), 0, dtype=torch.float64), rows.new_empty(len(rows), 0, dtype=torch.int64))
        for rows in torch.split(queries, query_chunk)
    ]
    for start in range(0, len(bank), bank_chunk):
        y = bank[start : start + bank_chunk].to(device)
        index = torch.arange(start, start + len(y), device=device)
        for part, rows in enumerate(torch.split(queries, query_chunk)):
            distances = torch.cat([best[part][0], _distances(rows, y)], dim=1)
            numbers = torch.cat([best[part][1], index.expand(len(rows), -1)], dim=1)
            distances, order = distances.sort(
                dim=1, stable=True
            )  # what is equally far stays in the order of its numbers
            best[part] = distances[:, :k], numbers.gather(1, order[:, :k])
    return torch.cat([distances for distances, _ in best]).cpu(), torch.cat(
        [numbers for _, numbers in best]
    ).cpu()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Distances (..., n, m) float64 of the rows of x (..., n, d) and y (..., m, d), rounded to 36 binary
    digits.

    Each is the norm of one difference, so what else is measured with it does not matter; rounding hides that
    devices add in other orders.
    """
    exact = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    shifted = exact * (2**17 + 1)  # Veltkamp's way to leave 53 - 17 digits
    return shifted - (shifted - exact)


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
        counts = torch.zeros(len(label), num_classes, dtype=torch.int64, device=labels.device).scatter_add_(
            1, label, weight
        )
        winners.append(counts.argmax(dim=1))  # the first of equal maxima
    return torch.cat(winners)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The fraction of predictions that are right."""
    return (predicted == labels).double().mean().item()
