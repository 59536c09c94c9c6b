"""The exact neighbour search against scikit-learn's brute force, and its peak memory.

    python -m bench knn    # about 4 minutes on two CPU cores

The bars: ours takes at most as long, and the same memory for a bank of four times the size.

A bank of 50 000 features of 512 numbers is searched with 5 000 queries on the CPU. To within a factor of
three this is ImageNet-100's with a ResNet-18. Both sides run with one thread and with two. The numbers are
Gaussian, so distances differ least, which is the hardest case for a search that sorts by bounds first. Memory
is counted beyond the bank and the queries, in a fresh process for each bank.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import psutil
import torch
from torch import Tensor

from bench.command import options
from bench.compare import in_fresh_process, in_turns, record, resident_peak
from reproduce.protocols.knn import nearest

CPU = torch.device("cpu")
CASES = (("euclidean", 5), ("cosine", 20), ("cosine", 200))
"""Distances and numbers of neighbours of Tables 1 and 4."""
BANKS = (100_000, 400_000)
SLOWER, MORE_MEMORY = 1.0, 1.1
"""Bars for the time and for the memory."""


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Return one record of the time for each case and number of threads, and one of the memory."""
    bank, queries, rounds = (500, 20, 1) if quick else (50_000, 5_000, 3)
    # First, while this process is small: until a child executes another program, the system attributes this
    # process's memory to it.
    memory = _memory(*((500, 2_000, 16) if quick else (*BANKS, 512)), bar=None if quick else MORE_MEMORY)
    threads = [count for count in (1, 2) if count <= (os.cpu_count() or 1)]
    return [
        *(_time(metric, k, bank, queries, rounds, count) for count in threads for metric, k in CASES),
        memory,
    ]


def _time(metric: str, k: int, num_bank: int, num_queries: int, rounds: int, threads: int) -> dict[str, Any]:
    """Measure our time over scikit-learn's.

    The cosine's neighbours are the Euclidean ones of normalised rows; our time includes the normalisation.
    """
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    bank, queries = features(num_bank, 512, seed=0), features(num_queries, 512, seed=1)
    k = min(k, num_bank // 10)
    reference = NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit(bank.numpy())

    def ours() -> Tensor:
        cosine = metric == "cosine"
        x, y = (torch.nn.functional.normalize(rows, dim=1) if cosine else rows for rows in (queries, bank))
        return nearest(x, y, k, CPU)[1]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            clock = time.process_time if threads == 1 else time.perf_counter
            found = in_turns(
                ours, lambda: reference.kneighbors(queries.numpy()), rounds=rounds, device=CPU, clock=clock
            )
    finally:
        torch.set_num_threads(before)
    size = f"{num_queries} queries, {num_bank} x 512"
    return record(
        "knn",
        f"{k} neighbours, {metric}, {size}, {threads} thread{'s' * (threads > 1)}: ours over scikit-learn",
        found.ratio,
        unit="x",
        detail=f"{found.first:.2f} over {found.second:.2f} s; CPU",
        at_most=SLOWER if num_bank == 50_000 else None,
    )


def _memory(small: int, large: int, d: int, *, bar: float | None) -> dict[str, Any]:
    peaks = [in_fresh_process("bench_knn", num_bank, d) for num_bank in (small, large)]
    return record(
        "knn",
        f"peak memory beyond the features, bank of {large} x {d} over one of {small} x {d}",
        peaks[1] / peaks[0],
        unit="x",
        detail=f"{peaks[1] / 2**20:.0f} MiB over {peaks[0] / 2**20:.0f} MiB; "
        f"the larger bank has {4 * d * large / 2**20:.0f} MiB",
        at_most=bar,
    )


def peak(num_bank: int, d: int) -> int:
    """Return the peak bytes beyond the features of a search in this process: 20 neighbours of 512 queries."""
    torch.set_num_threads(1)
    queries, bank = features(512, d, seed=1), features(num_bank, d, seed=0)
    nearest(queries[:1], bank[:100], 1, CPU)  # loads all libraries
    before = psutil.Process().memory_info().rss
    nearest(queries, bank, 20, CPU)
    return resident_peak() - before


def features(n: int, d: int, seed: int) -> Tensor:
    """Return random features, (n, d) float32."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    asked = options("bench.bench_knn", __doc__, inner="--peak", num=2)
    if asked.inner:
        print(peak(*map(int, asked.inner)))
    else:
        print(json.dumps(measure(quick=asked.quick)))
