"""What the benchmarks share: two things timed in turns, and the record that each comparison leaves."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Comparison(NamedTuple):
    """Two things timed in turns."""

    ratio: float
    """The median over the rounds of the first's seconds over the second's."""
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
    """Times `first` and `second` in each of `rounds` rounds, in alternating order, after a round that does
    not count.

    A ratio is taken within each round, so that a machine that is busy for a while slows both of its sides.

    Args:
        clock: what a CPU's seconds are read from. Those of this process are not lengthened by others on the
            machine, but those of its
            threads add up: `time.perf_counter` is the one for what takes several.
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
    """Of one call; on a GPU from when it has nothing left to do until then again."""
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
    """One line of the table and of the JSON.

    Args:
        bench: the file, `step` for `bench_step.py`.
        case: what was compared with what, in words.
        value: None: it could not be measured; `detail` says why.
        unit: such as `x` for a ratio.
        detail: the numbers behind the value, and the machine where they matter.
        at_most, at_least: the bar, where there is one.
    """
    bar = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}" if at_least is not None else None
    holds = (
        None
        if value is None or bar is None
        else value <= at_most
        if at_most is not None
        else value >= (at_least or 0.0)
    )
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
    """The GPU if there is one, else the CPU with one thread, as the local launcher uses it: a run on each
    core."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)  # and threads that wait for each other would count as work
    return torch.device("cpu")


def machine(device: torch.device) -> str:
    """In words, such as `CPU, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "one CPU core"


def resident_peak() -> int:
    """The most bytes of resident memory that this process has had."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
