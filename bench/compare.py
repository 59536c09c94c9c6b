"""Timing of two things in turns, and the record of a comparison."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

PROJECT = Path(__file__).resolve().parent.parent


class Comparison(NamedTuple):
    """Times of two things that ran in turns."""

    ratio: float
    """Median over the rounds of the first's seconds over the second's."""
    first: float
    second: float
    """Median seconds of a call."""


def in_turns(
    first: Callable[[], Any],
    second: Callable[[], Any],
    *,
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.process_time,
) -> Comparison:
    """Time `first` and `second` in each of `rounds` rounds, in alternating order, after a warm-up round.

    A ratio is taken within each round, so that a machine that is busy for a while slows both of its sides.

    Args:
        clock: source of the seconds on a CPU. Other processes do not lengthen the CPU time of this process,
            but the times of its threads add up: use `time.perf_counter` for code with several threads.
    """
    seconds: list[tuple[float, float]] = []
    for index in range(rounds + 1):
        if index % 2:
            late, early = _seconds(second, device, clock), _seconds(first, device, clock)
            seconds.append((early, late))
        else:
            seconds.append((_seconds(first, device, clock), _seconds(second, device, clock)))
    firsts, seconds_ = zip(*seconds[1:], strict=True)
    return Comparison(
        statistics.median(a / b for a, b in seconds[1:]),
        statistics.median(firsts),
        statistics.median(seconds_),
    )


def _seconds(run: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """Return the seconds of one call; on a GPU from idle to idle."""
    if device.type == "cpu":
        begin = clock()
        run()
        return clock() - begin
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def record(
    bench: str,
    case: str,
    value: float | None,
    *,
    unit: str,
    detail: str,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """Return one line of the table and of the JSON.

    Args:
        bench: name of the file, `step` for `bench_step.py`.
        case: description of the two sides.
        value: the result. None if it could not be measured; `detail` gives the reason.
        unit: unit of the value, such as `x` for a ratio.
        detail: numbers behind the value, and the machine if it matters.
        at_most, at_least: the bar, if there is one.
    """
    bar = holds = None
    if at_most is not None:
        bar, holds = f"<= {at_most:g}", value is not None and value <= at_most
    elif at_least is not None:
        bar, holds = f">= {at_least:g}", value is not None and value >= at_least
    if value is None:
        holds = None
    rounded = None if value is None else round(value, 3)
    return {
        "bench": bench,
        "case": case,
        "value": rounded,
        "unit": unit,
        "bar": bar,
        "holds": holds,
        "detail": detail,
    }


def prepare() -> torch.device:
    """Return the GPU if there is one, else the CPU limited to one thread.

    The local launcher also runs one thread per run, with a run on each core.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    return torch.device("cpu")


def machine(device: torch.device) -> str:
    """Return the device in words, such as `one CPU core`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "one CPU core"


def in_fresh_process(benchmark: str, *arguments: object) -> int:
    """Return the bytes that `python -m bench.<benchmark> --peak` prints, run in a process of its own."""
    # glibc then returns every freed tensor to the system, so that resident memory is the memory in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", f"bench.{benchmark}", "--peak", *map(str, arguments)]
    return int(
        subprocess.run(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, check=True).stdout
    )


def resident_peak() -> int:
    """Return the peak bytes of resident memory of this process."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
