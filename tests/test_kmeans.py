"""k-means: scikit-learn's result from the same start, the same on one and two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch.overrides import TorchFunctionMode
from toys import on_two_processes

from reproduce.nn import kmeans
from reproduce.nn.kmeans import Clusters


def rows(n: int, dim: int) -> torch.Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def test_two_clusters_of_four_points_by_hand() -> None:
    points = torch.tensor([[0.0], [2.0], [8.0], [12.0]])
    found = kmeans.lloyd(points, torch.tensor([[0.0], [3.0]]), iterations=10)
    # 0 | 2 8 12, whose means are 0 and 22/3, then 0 2 | 8 12 with the means 1 and 10.
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.centroids.flatten().tolist() == [1.0, 10.0]
    assert found.distances.tolist() == [1.0, 1.0, 4.0, 4.0]
    once = kmeans.lloyd(points, torch.tensor([[0.0], [3.0]]), iterations=1)
    assert once.centroids.flatten().tolist() == pytest.approx([0.0, 22 / 3])


def test_an_empty_cluster_takes_the_row_that_is_farthest_from_its_centroid() -> None:
    points = torch.tensor([[0.0], [1.0], [9.0]])
    found = kmeans.lloyd(points, torch.tensor([[0.0], [100.0]]), iterations=10)
    assert found.centroids.flatten().tolist() == [0.5, 9.0]
    assert found.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("n", "dim", "k", "iterations"), [(3000, 8, 20, 30), (500, 4, 100, 10), (60, 2, 40, 5)]
)
def test_the_clusters_are_those_of_scikit_learn(n: int, dim: int, k: int, iterations: int) -> None:
    x = rows(n, dim)
    start = x[:k] + 50 * (torch.arange(k) % 7 == 0).unsqueeze(1)  # some are far away, and thus empty
    found = kmeans.lloyd(x, start, iterations=iterations)
    theirs = KMeans(k, init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x)
    assert found.labels.tolist() == theirs.labels_.tolist()
    torch.testing.assert_close(found.centroids, torch.from_numpy(theirs.cluster_centers_))
    assert found.distances.sum().item() == pytest.approx(theirs.inertia_)


def test_the_best_of_several_starts_counts_and_the_seed_determines_them() -> None:
    x = rows(200, 3)
    sums = [
        kmeans.kmeans(x, 12, iterations=5, seed=3, restarts=number).distances.sum().item()
        for number in (1, 2, 8)
    ]
    assert sums == sorted(sums, reverse=True)
    assert len(set(sums)) > 1
    assert torch.equal(*(kmeans.kmeans(x, 12, iterations=5, seed=3).labels for _ in range(2)))
    assert not torch.equal(*(kmeans.kmeans(x, 12, iterations=5, seed=seed).labels for seed in (3, 4)))


def clustered(block: int) -> list[torch.Tensor]:
    """Return the clusters of float32 rows, computed in blocks of this size."""
    kmeans.BLOCK = block
    return list(kmeans.kmeans(rows(100, 4).float(), 9, iterations=20, seed=1, restarts=2))


class Largest(TorchFunctionMode):
    """Measures the largest number of distances that are computed together."""

    number = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.addmm:
            self.number = max(self.number, found.numel())
        return found


def test_a_limit_of_distances_at_once_changes_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(100, 4)
    expected = kmeans.kmeans(x, 9, iterations=20, seed=1)
    monkeypatch.setattr(kmeans, "DISTANCES", 70)
    with Largest() as largest:
        found = kmeans.kmeans(x, 9, iterations=20, seed=1)
    assert largest.number == 7 * 9
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("block", [16, 1000], ids=["7 blocks", "1 block"])
def test_two_processes_find_the_same_bits(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "BLOCK", block)
    expected = clustered(block)
    for found in on_two_processes(clustered, tmp_path, block):
        for name, mine, theirs in zip(Clusters._fields, found, expected, strict=True):
            assert torch.equal(mine, theirs), name
