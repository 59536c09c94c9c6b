"""Nearest neighbours in feature space: an exact search with bounded memory, and two ways of voting.

Source: protocol sheet, 1 and 4. The result depends neither on the size of the chunks nor on the number of
processes. Neighbours are ranked by distances in double precision, each computed from its own two rows. Of
images at the same distance, the one with the smaller index comes first. A float32 product only selects which
distances are worth computing.

Plan for ImageNet, with a bank of 1 281 167 x 2048 features and 50 000 queries:

- Host memory: 10.5 GB for the bank, 0.4 GB for the queries, 0.3 GB for 200 neighbours of each. The device
  holds 16 384 rows of the bank at a time (twice 0.13 GB), all queries (0.8 GB with their copy), 34 MB of
  products and 0.1 GB of candidates: about 1.5 GB.
- Work: 2 x 50 000 x 1 281 167 x 2048 = 2.6e14 operations in float32. That is 4 s at the 67e12 a second of an
  H200's data sheet, and about 10 s with the selection of the smallest values and the transfer of the bank to
  the device (planned, not measured). It is 25 minutes on two CPU cores at 90e9 a second each. Then the CPU
  measures 228 rows for each query: 2.3e10 differences, a minute on one core. Extracting the features takes
  far longer.
- Measured on one CPU core: a bank of 400 000 x 512 takes 0.1 GB beyond its own 0.8 GB, as does one of 100 000
  (`bench/bench_knn.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from reproduce.data.dataset import Dataset
from reproduce.lazy import F, torch
from reproduce.messages import InvalidError
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Watch
from reproduce.settings import Count, Limits, Positive
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.encoder import Encoder
    from reproduce.nn.features import Split

SPARE = 16
"""Rows measured beyond the k nearest and a sixteenth more. Bounds order rows slightly differently from
distances."""
GROUPED = 8
"""Columns per group whose minimum is taken first in a search for the smallest of many values."""
HUGE = 1e18
"""Norm above which a square may overflow float32, so that bounds prove nothing."""
BLOCK = 2**22
"""Numbers measured at once. In smaller blocks, threads would spend more time waiting for each other than
working."""
WEIGHT_UNIT = 2**50
"""Integer that represents the weighted vote of the nearest neighbour. Sums of integers do not depend on their
order, and rounding loses less than 1e-15 of a vote."""
MAX_K = 2**63 // WEIGHT_UNIT - 1
"""Maximum number of neighbours whose summed votes fit a 64-bit integer."""


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours(Protocol, name="knn"):
    """k-NN of the small-scale protocol (htdt/self-supervised eval/knn.py).

    It uses the Euclidean distance of unnormalised pooled features and an unweighted majority vote.
    """

    k: Count = 5
    """Number of neighbours (section 4.1 and eval/knn.py)."""
    distance: Literal["euclidean"] = "euclidean"
    """Distance between unnormalised features."""

    deterministic = True
    metrics = ("top1",)

    @property
    def least_images(self) -> tuple[int, str]:
        return self.k, "k"

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
        """Return `top1`. Nothing here is random."""
        from reproduce.nn import features

        train, test = features.train_and_test(dataset, site)
        require(self.k, train, self.name)
        bank, queries = (features.extract(encoder, dataset, split, site, device) for split in (train, test))
        _, neighbours = nearest(queries, bank, self.k, device)
        return {"top1": accuracy(majority(train.labels[neighbours], train.num_classes), test.labels)}


@dataclass(frozen=True, kw_only=True)
class WeightedNeighbours(Protocol, name="weighted_knn"):
    """Cosine neighbours that vote with weight exp(similarity / T), and a plain majority vote of the same.

    Sources: zhirongw/lemniscate.pytorch test.py, facebookresearch/dino eval_knn.py. The plain vote is our
    choice (protocol sheet, 4).
    """

    ks: tuple[Annotated[int, Limits(1, MAX_K)], ...] = (20, 200)
    """Numbers of neighbours (Table 4)."""
    temperature: Positive = 0.07
    """Temperature T of the votes (lemniscate.pytorch test.py, dino eval_knn.py)."""

    deterministic = True

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"{vote}_{k}" for vote in ("top1", "majority") for k in self.ks)

    def check(self) -> None:
        if not self.ks or len(set(self.ks)) < len(self.ks):
            raise ValueError(f"weighted_knn needs one or more different ks, not {self.ks}.")

    @property
    def least_images(self) -> tuple[int, str]:
        return max(self.ks), "ks"

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
        """Return `top1_<k>` (weighted) and `majority_<k>` for each k. Nothing here is random."""
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
        """Return the metrics for these features and labels. The features are normalised in place.

        Args:
            queries: features of the test images, (n, d), of any norm.
            query_labels: labels of the test images, (n,).
            bank: features of the train images, (m, d), of any norm.
            bank_labels: labels of the train images, (m,).
        """
        for x in (queries, bank):
            F.normalize(x, dim=1, out=x)
        squared, neighbours = nearest(queries, bank, max(self.ks), device)
        labels = bank_labels[neighbours]
        similarity = 1 - squared / 2  # || x - y ||^2 = 2 - 2 cos on unit vectors
        metrics = {}
        for k in self.ks:
            # Votes in units of the nearest neighbour's vote lie in [0, 1] however small T is. The unit
            # changes no winner.
            votes = ((similarity[:, :k] - similarity[:, :1]) / self.temperature).exp()
            metrics[f"top1_{k}"] = accuracy(majority(labels[:, :k], num_classes, votes), query_labels)
            metrics[f"majority_{k}"] = accuracy(majority(labels[:, :k], num_classes), query_labels)
        return {name: metrics[name] for name in self.metrics}


def require(k: int, train: Split, name: str) -> None:
    """Raise ValueError if the train split has fewer than k labelled images."""
    if k > len(train.labels):
        raise InvalidError(
            f"{name} asks for {k} neighbours, but {train.title} has {len(train.labels)} labelled images: "
            "choose a k up to that number."
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
    """Return the k rows of `bank` nearest to each query by Euclidean distance, nearest first.

    Rows at the same distance are in the order of their indices.

    A float32 matrix product bounds every distance from below. The rows with the smallest bounds are measured
    in double precision, and the bounds prove that all other rows are farther away. This proof can fail, for
    example for a collapsed encoder, whose distances are all equal. Such a query is measured against the whole
    bank, which is about ten times slower.

    Args:
        queries: (n, d) float32 on the CPU.
        bank: (m, d) float32 on the CPU, m >= k. The device holds `bank_chunk` rows of it at a time.

    Returns:
        Squared distances (n, k) float64 and row numbers (n, k) int64, on the CPU.
    """
    assert 1 <= k <= len(bank)
    rows, floor = _candidates(
        queries, bank, min(len(bank), k + k // 16 + SPARE), device, query_chunk, bank_chunk
    )
    distances, order = _measure(queries, bank, rows).sort(dim=1, stable=True)
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
    """Return the `num` rows with the smallest lower bounds for each query, and a bound on all other rows.

    |x|^2 + |y|^2 - 2 xy is off by at most error (|x| + |y|)^2 if its products are summed in float32, in any
    order. The error counts d roundings for xy, d for the norms and a few for centring (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1). The bound is the difference of the two. It is itself a
    product, of rows with two more columns: (x, |x|, 1) and (-2 y, -2 error |y|, (1 - error) |y|^2).

    Returns:
        Row numbers (n, num) int64, ascending, and distances (n,) float64 that bound every other row from
        below, on the CPU.
    """
    assert torch.get_float32_matmul_precision() == "highest", "TF32 would exceed the error bound"
    d = bank.shape[1]
    error, underflow = (2 * d + 32) * 1.01 * 2.0**-24, (d + 16) * 2.0**-125
    centre = queries.mean(dim=0).to(device)  # any point is valid; a near one preserves digits
    x, norms = _widened(queries.to(device), centre)
    longest = norms.max()
    x[:, -2], x[:, -1] = norms, 1
    best = [
        (rows.new_empty(len(rows), 0), rows.new_empty(len(rows), 0, dtype=torch.int64))
        for rows in torch.split(x, query_chunk)
    ]
    # One buffer for all products: allocating it for each of them would cost a tenth of the time.
    buffer = x.new_empty(min(query_chunk, len(x)) * min(bank_chunk, len(bank)))
    for start in range(0, len(bank), bank_chunk):
        y, lengths = _widened(bank[start : start + bank_chunk].to(device), centre)
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
        floor.fill_(math.inf)  # every row is a candidate
    return torch.cat([found for _, found in best]).cpu().sort(dim=1).values, floor.cpu()


def _widened(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of x minus `centre`, with two empty columns added, and their norms.

    Returns:
        Rows (n, d + 2), whose last two columns the caller fills in, and norms (n,).
    """
    wide = x.new_empty(len(x), x.shape[1] + 2)
    rows = torch.sub(x, centre, out=wide[:, :-2])
    return wide, torch.linalg.vector_norm(rows, dim=1)


def _smallest(x: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the `num` smallest values in each row of x, unordered, and their columns.

    A row with fewer values is returned whole.
    """
    n, m = x.shape
    if m % GROUPED or 2 * num * GROUPED > m:
        return x.topk(min(num, m), dim=1, largest=False, sorted=False)
    # The values are in the groups of columns with the smallest minima, which are much faster to find.
    groups = x.view(n, GROUPED, -1).amin(dim=1).topk(num, dim=1, largest=False, sorted=False).indices
    columns = torch.cat([groups + first for first in range(0, m, m // GROUPED)], dim=1)
    values, order = x.gather(1, columns).topk(num, dim=1, largest=False, sorted=False)
    return values, columns.gather(1, order)


def _measure(queries: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Return the distance of each query to the rows of `bank` in its row of `rows`.

    Args:
        rows: row numbers, (n, c) int64.

    Returns:
        Distances (n, c) float64.
    """
    (n, c), d = rows.shape, bank.shape[1]
    step = min(n, max(1, BLOCK // (c * d)))
    # These are allocated once, because new memory is slow.
    single = torch.empty(step * c, d)
    double = torch.empty(step * c, d, dtype=torch.float64)
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
    """Return the distances (n, k) and numbers (n, k) of the k nearest rows, measuring every distance."""
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
            # The sort is stable: rows at the same distance stay in the order of their numbers.
            distances, order = distances.sort(dim=1, stable=True)
            best[part] = distances[:, :k], numbers.gather(1, order[:, :k])
    distances = torch.cat([distances for distances, _ in best])
    numbers = torch.cat([numbers for _, numbers in best])
    return distances.cpu(), numbers.cpu()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the distances of the rows of x and y, rounded to 36 binary digits.

    Each distance is the norm of one difference, so it does not depend on what else is measured in the same
    call. Rounding hides that devices add in different orders.

    Args:
        x: (..., n, d).
        y: (..., m, d).

    Returns:
        Distances (..., n, m) float64.
    """
    exact = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    shifted = exact * (2**17 + 1)  # Veltkamp splitting keeps 53 - 17 digits
    return shifted - (shifted - exact)


def majority(labels: Tensor, num_classes: int, votes: Tensor | None = None, chunk: int = 4096) -> Tensor:
    """Return the label with the most votes in each row; of labels that tie, the smallest.

    Args:
        labels: labels of the neighbours, (n, k) int64.
        votes: weights of the neighbours in [0, 1], (n, k). None if each has one vote.

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
    """Return the fraction of predictions that are right."""
    return (predicted == labels).double().mean().item()
