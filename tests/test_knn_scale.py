"""The neighbour search in hard cases.

They are ties, outliers, numbers that float32 cannot distinguish, large banks and real photographs.
"""

from __future__ import annotations

import math
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skips import shared
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toys import CPU, encoder, on_two_processes

from reproduce.data.imagenette import Imagenette
from reproduce.nn import features
from reproduce.protocols import knn
from reproduce.site import Site

pytestmark = pytest.mark.usefixtures("one_thread")
PHOTOGRAPHS = "imagenette96.tar.gz"
CHUNKS = ((7, 64), (100, 160), (3, 37))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(queries: Tensor, bank: Tensor, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return distances and indices by the definition, one query at a time.

    A stable sort keeps equal distances in the order of their indices.
    """
    rows = bank.double().numpy()
    distances = [np.sqrt(((rows - query) ** 2).sum(axis=1)) for query in queries.double().numpy()]
    orders = [np.argsort(each, kind="stable")[:k] for each in distances]
    return np.stack([each[order] for each, order in zip(distances, orders, strict=True)]), np.stack(orders)


def hard() -> dict[str, tuple[Tensor, Tensor]]:
    """Return queries and banks for which a float32 search alone would be wrong or could prove nothing."""
    x, y = drawn(20, 24, seed=0), drawn(400, 24, seed=1)
    copies = y.clone()
    copies[50:350] = x[3]  # more copies than are measured first
    outlier = y.clone()
    outlier[77] *= 1e6
    steps = torch.zeros(400, 24)
    # Squares of neighbouring floats differ by less than a rounding error.
    steps[:, 0] = 1 + torch.arange(400).flip(0) * 2.0**-23
    mixed = torch.cat([y[:200], 1e-3 * y[200:]])
    return {
        "copies": (x, copies),
        "an outlier": (x, outlier),
        "neighbouring floats": (torch.zeros(20, 24), steps),
        "two scales": (mixed[::20], mixed),
        "tiny": (1e-23 * x, 1e-23 * y),
        "huge": (1e19 * x, 1e19 * y),
        "far away": (1e4 + x, 1e4 + y),
        "collapsed": (torch.ones(20, 24), torch.ones(400, 24)),
        "collapsed to rounding errors": (1 + 1e-7 * x, 1 + 1e-7 * y),
    }


@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("case", hard())
def test_the_search_is_exact_where_float32_is_not_and_chunks_do_not_show(case: str, k: int) -> None:
    queries, bank = hard()[case]
    distances, indices = reference(queries, bank, k)
    first = knn.nearest(queries, bank, k, CPU)
    np.testing.assert_array_equal(first[1].numpy(), indices)
    np.testing.assert_allclose(first[0].sqrt().numpy(), distances, rtol=1e-10)
    for query_chunk, bank_chunk in CHUNKS:
        squared, found = knn.nearest(queries, bank, k, CPU, query_chunk=query_chunk, bank_chunk=bank_chunk)
        assert torch.equal(found, first[1])
        assert torch.equal(squared, first[0])


@pytest.mark.parametrize("case", hard())
def test_no_row_that_is_left_out_is_below_the_bound(case: str) -> None:
    queries, bank = hard()[case]
    for num in (1, 30, 399):
        rows, floor = knn._candidates(queries, bank, num, CPU, 7, 160)
        distances = (queries.double()[:, None] - bank.double()).norm(dim=2)
        others = distances.scatter(1, rows, math.inf).amin(dim=1)
        assert (floor <= others).all()


def test_the_bound_proves_nearly_every_query_of_plain_features() -> None:
    """Without this, the search would be right but slow."""
    centres = drawn(10, 512, seed=2)
    bank, queries = (centres[torch.arange(n) % 10] + drawn(n, 512, seed=n) for n in (6000, 300))
    _, floor = knn._candidates(queries, bank, 228, CPU, 512, 16384)
    squared, _ = knn.nearest(queries, bank, 200, CPU)
    assert (floor > squared[:, -1].sqrt()).double().mean().item() > 0.99


@pytest.mark.parametrize("num", [1, 5, 40, 200])
def test_the_smallest_of_many_are_found_by_groups(num: int) -> None:
    x = drawn(30, 2048, seed=3)
    x[5] = 1.0
    x[6, 8:] = math.inf
    values, columns = knn._smallest(x, num)
    assert torch.equal(values.sort(dim=1).values, x.sort(dim=1).values[:, :num])
    assert torch.equal(x.gather(1, columns), values)
    assert all(len(set(row)) == num for row in columns.tolist())


class Largest(TorchDispatchMode):
    """The size in bytes of the largest result of any operation, except views of the bank."""

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        self.bank, self.bytes = bank.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() != self.bank:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("collapsed", [False, True])
def test_memory_does_not_grow_with_the_bank(collapsed: bool) -> None:
    """With a bank of four times the size, the largest tensor of the search is at most a tenth larger."""
    found = []
    for num_bank in (8_192, 32_768):
        queries, bank = drawn(64, 64, seed=4), drawn(num_bank, 64, seed=5)
        if collapsed:
            queries, bank = torch.ones_like(queries), torch.ones_like(bank)
        with Largest(bank) as largest:
            knn.nearest(queries, bank, 5, CPU, query_chunk=32, bank_chunk=512)
        found.append(largest.bytes)
    assert found[0] == found[1] <= 4 * 64 * 32_768 / 10


# Real photographs


def photographs(folder: Path, num_train: int, num_val: int) -> Path:
    """Extract the first images of each class, so many per split."""
    kept: dict[str, int] = defaultdict(int)
    with tarfile.open(shared(PHOTOGRAPHS)) as archive:
        for member in archive:
            split, wnid, *_ = (*member.name.split("/")[1:], "", "")
            kept[f"{split}/{wnid}"] += member.isfile()
            if member.isfile() and kept[f"{split}/{wnid}"] <= (num_train if split == "train" else num_val):
                archive.extract(member, folder, filter="data")
    return folder / PHOTOGRAPHS.removesuffix(".tar.gz")


PROTOCOLS = (knn.NearestNeighbours(), knn.WeightedNeighbours(ks=(20, 200)))


def measured(folder: str) -> dict[str, float]:
    """Run both protocols on the photographs in `folder`, with an encoder that was never trained."""
    site = Site(data={"imagenette": Path(folder)})
    return {
        key: value
        for protocol in PROTOCOLS
        for key, value in protocol.run(encoder(), Imagenette(), site, CPU, 0).items()
    }


def by_scikit_learn(folder: Path) -> dict[str, float]:
    """Return the same four numbers by scikit-learn's brute force and explicit votes."""
    from sklearn.neighbors import NearestNeighbors

    site = Site(data={"imagenette": folder})
    train, test = features.train_and_test(Imagenette(), site)
    bank, queries = (
        features.extract(encoder(), Imagenette(), split, site, CPU).double().numpy()
        for split in (train, test)
    )
    labels, truth = train.labels.tolist(), test.labels.tolist()

    def share(k: int, metric: str, temperature: float) -> float:
        distances, neighbours = (
            NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit(bank).kneighbors(queries)
        )
        right = 0
        for row, near, label in zip(distances, neighbours, truth, strict=True):
            votes: Counter[int] = Counter()
            for distance, index in zip(row, near, strict=True):
                votes[labels[index]] += (
                    math.exp((1 - distance) / temperature) if temperature < math.inf else 1
                )
            right += min(votes, key=lambda one: (-votes[one], one)) == label
        return right / len(truth)

    weighted = {f"top1_{k}": share(k, "cosine", 0.07) for k in (20, 200)}
    plain = {f"majority_{k}": share(k, "cosine", math.inf) for k in (20, 200)}
    return {"top1": share(5, "euclidean", math.inf), **weighted, **plain}


@pytest.mark.slow
def test_photographs_get_the_top1_of_scikit_learns_brute_force_on_one_process_and_on_two(
    tmp_path: Path,
) -> None:
    folder = photographs(tmp_path, num_train=50, num_val=20)
    one = measured(str(folder))
    assert one == by_scikit_learn(folder)
    assert 0.15 < one["top1_20"] < 0.6, "ten classes, an untrained encoder: better than chance"
    assert on_two_processes(measured, tmp_path, str(folder)) == [one, one]
