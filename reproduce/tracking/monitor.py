"""Samples of the machine's load during a run, by MLflow's own collectors.

    monitor = Monitor(collectors, started)      # a thread samples until `stop`
    monitor.take()                              # the samples since the last call, for the journal
    monitor.stop()

The step of a sample is its time in seconds since the start of the record. An integral over the steps is
therefore an energy or a volume, except across a pause between two attempts. The first seconds are sampled
often, so a short run has several samples. A collector that fails is left out and never fails the run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

from reproduce.runs import environment
from reproduce.runs.journal import Point, now, points

PREFIX = "system/"
FIRST, LONGEST, GROWTH = 1.0, 10.0, 1.5
"""Seconds to the second sample, the maximum between two, and the factor from one to the next."""


class Monitor:
    """A thread that samples the machine."""

    def __init__(self, collectors: Iterable[Callable[[], Any]], started: int) -> None:
        """Start to sample.

        Args:
            collectors: classes with MLflow's interface of collectors.
            started: start of the record, in milliseconds since 1970.
        """
        self._started = started
        self._points: list[Point] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        # A daemon, which does not keep the process if a driver never answers.
        threading.Thread(
            target=self._run, args=(list(collectors),), name="system metrics", daemon=True
        ).start()

    def take(self) -> list[Point]:
        """Return the samples since the last call."""
        with self._lock:
            taken, self._points = self._points, []
        return taken

    def stop(self) -> None:
        """End the thread without waiting for it; a sample that it is taking is dropped."""
        self._stopped.set()

    def _run(self, collectors: list[Callable[[], Any]]) -> None:
        ready = []
        for collector in collectors:
            with contextlib.suppress(Exception):  # for example, the machine has no GPU
                ready.append(collector())
        wait = FIRST
        while not self._stopped.is_set():
            self._sample(ready)
            self._stopped.wait(wait)
            wait = min(wait * GROWTH, LONGEST)

    def _sample(self, collectors: list[Any]) -> None:
        at = now()
        measured: dict[str, float] = {}
        for collector in collectors:
            with contextlib.suppress(Exception):  # a collector's fault must not stop a run
                collector.collect_metrics()
                measured |= collector.aggregate_metrics()
                collector.clear_metrics()
        with contextlib.suppress(Exception):
            measured["process_memory_usage_megabytes"] = environment.process_memory()
        step = max(at - self._started, 0) // 1000
        found = points({PREFIX + key: value for key, value in measured.items()}, step, at)
        with self._lock:
            if not self._stopped.is_set():
                self._points += found
