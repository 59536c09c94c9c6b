"""The record of a finished run as its page and the report show it: plain data, and the cost in hours and kWh.

    cost([record, ...])          # Cost(hours={"GPU": 12.3}, unknown_hours=2, kwh=1.2, unknown_kwh=3)

`commands/pages.py` reads the records from the tracking store. Except for the log, they are the same in every
store that has the run, also after an import.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

HOUR = 3_600_000.0
"""Milliseconds of an hour."""
POWER = re.compile(r"system/gpu_(\d+)_power_usage_watts")
"""Measurements of the power of a GPU, by MLflow's names, with the driver's number of the GPU."""
Point = tuple[int, float, int]
"""Step, value, and time of logging in milliseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run."""

    spec_id: str
    title: str
    is_pretraining: bool
    started: int
    """Start, in milliseconds since 1970."""
    ended: int
    """End, in milliseconds since 1970."""
    attempts: int | None
    """Number of attempts; None if not recorded."""
    commit: str
    dirty: bool
    """True if the code had uncommitted changes."""
    settings: Mapping[str, str]
    """Every setting by its dotted path, as text."""
    changed: frozenset[str] = frozenset()
    """Paths of the settings that differ from the defaults of their classes, or have none."""
    final: Mapping[str, float]
    histories: Mapping[str, Sequence[Point]]
    environments: Sequence[Mapping[str, Any]]
    """Versions, code and machine of each attempt."""
    log: str = ""
    """Last lines of the run's log; empty if it is not on this machine."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Digests of the data and of the encoder, numbers of images, and the compiler of the backbones."""
    needs: str = ""
    """Id of the pretraining whose encoder the run evaluates; empty if it needs none."""
    address: str = ""
    """Address of the run's page on a tracking server; empty if the store is a file."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """Environment of the last attempt; empty if not recorded."""
        return self.environments[-1] if self.environments else {}

    @property
    def kind(self) -> str:
        """`GPU` or `CPU`; empty if not recorded."""
        kind = self.environment.get("kind")
        return kind if kind in ("GPU", "CPU") else ""

    @property
    def devices(self) -> int | None:
        """Number of GPUs, or of cores without one; None if not recorded."""
        processes, threads = (self.environment.get(key) for key in ("processes", "threads"))
        devices = processes if self.kind == "GPU" else _product(processes, threads)
        return devices if self.kind and isinstance(devices, int) else None

    @property
    def sharing(self) -> int:
        """Number of runs that shared its GPU, itself included; 1 if not recorded."""
        found = self.environment.get("runs_per_gpu")
        return found if isinstance(found, int) and found > 0 and self.kind == "GPU" else 1

    @property
    def gpus(self) -> frozenset[int]:
        """The driver's numbers of its GPUs; empty if not all are recorded."""
        listed = self.environment.get("gpus")
        entries = listed if isinstance(listed, list) else []
        numbers = [entry.get("index") if isinstance(entry, Mapping) else None for entry in entries]
        known = frozenset(number for number in numbers if isinstance(number, int))
        return frozenset() if None in numbers else known

    @property
    def hours(self) -> float | None:
        """Hours of a GPU, or of a core without one; None if they are unknown.

        They are unknown if the number of devices was not recorded, or if several attempts have pauses between
        them. Runs that share a GPU divide its hours.
        """
        if self.devices is None or self.attempts != 1:
            return None
        return self.devices / self.sharing * (self.ended - self.started) / HOUR

    @property
    def kwh(self) -> float | None:
        """Energy of its GPUs between the first and the last sample of their power; None if not measured.

        Without their numbers, every GPU counts that its process saw. Runs that share a GPU divide its energy.
        """
        if self.attempts != 1:
            return None
        each = [
            _kwh(points)
            for name, points in self.histories.items()
            if (found := POWER.fullmatch(name)) and (not self.gpus or int(found[1]) in self.gpus)
        ]
        known = [energy for energy in each if energy is not None]
        return sum(known) / self.sharing if known and len(known) == len(each) else None


Records = Callable[[Iterable[str]], Mapping[str, RunRecord | None]]
"""Function that returns the records of the runs with these ids and of those upstream.

The record is None if the store has none. A run is left out if the store does not answer.
"""


def no_records(ids: Iterable[str]) -> Mapping[str, RunRecord | None]:
    """Return that none of the runs has a record."""
    return dict.fromkeys(ids)


@dataclass(frozen=True)
class Cost:
    """Cost of some runs, as far as it was recorded."""

    num_runs: int
    hours: Mapping[str, float]
    """Hours by kind of device."""
    unknown_hours: int
    """Number of runs whose hours are unknown."""
    kwh: float | None
    """Energy of the GPUs; None if it was not measured for any run."""
    unknown_kwh: int
    """Number of runs whose energy was not measured."""


def cost(records: Sequence[RunRecord | None]) -> Cost:
    """Return the cost of runs; one without a record counts as unknown."""
    hours: dict[str, float] = {}
    known = [record for record in records if record is not None]
    for record in known:
        if record.hours is not None:
            hours[record.kind] = hours.get(record.kind, 0.0) + record.hours
    energies = [record.kwh for record in known if record.kwh is not None]
    return Cost(
        num_runs=len(records),
        hours=dict(sorted(hours.items(), reverse=True)),
        unknown_hours=len(records) - sum(record.hours is not None for record in known),
        kwh=sum(energies) if energies else None,
        unknown_kwh=len(records) - len(energies),
    )


def _product(first: object, second: object) -> int | None:
    return first * second if isinstance(first, int) and isinstance(second, int) else None


def _kwh(points: Sequence[Point]) -> float | None:
    """Return the energy under samples of power in watts; None if there are fewer than two times."""
    samples = sorted({(time, watts) for _, watts, time in points})
    if len({time for time, _ in samples}) < 2 or any(watts != watts for _, watts in samples):
        return None
    return sum((b - a) / HOUR * (x + y) / 2 / 1000 for (a, x), (b, y) in pairwise(samples))
