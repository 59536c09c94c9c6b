"""The time that runs need: from a forecast before they have a speed, from their speed afterwards.

    left = TimeLeft([Expected(spec, seconds=60.0)], makespan)
    left.progress(spec.id, 0.25, now)              # a quarter of its work is done
    left.of(spec.id), left.of_all()                # seconds; None if unknown

A forecast counts like a measurement of a small share of the work, so the transition from one to the other is
gradual. Times follow from rates and remaining shares: they are never negative, and nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from reproduce.spec import Spec

SHARE = 0.02
"""Share of a run's work after which its own speed counts as much as its forecast."""
RUNS = 0.1
"""Number of measured runs that count as much as the assumption that the other forecasts are right."""


class Expected(NamedTuple):
    """A run before it starts, with its forecast."""

    spec: Spec
    seconds: float | None = None
    """Forecast for the whole run on its devices; None if it is unknown."""
    share: float = 1.0
    """Share of its work that remains, such as after a checkpoint."""


@dataclass
class _Run:
    """A run and its measurements."""

    expected: Expected
    forecast: float | None
    first: tuple[float, float] | None = None
    """Time and finished share at the first measurement of the present stage."""
    last: tuple[float, float] = (0.0, 0.0)
    """The same at the newest measurement."""

    @property
    def measured(self) -> float:
        """Share of the work that was measured."""
        return self.last[1] - self.first[1] if self.first else 0.0

    def duration(self) -> float | None:
        """Return the seconds of the whole run, or None if they are unknown."""
        elapsed = self.last[0] - self.first[0] if self.first else 0.0
        if self.forecast is None:
            return elapsed / self.measured if self.measured else None
        return (SHARE * self.forecast + elapsed) / (SHARE + self.measured)

    def left(self) -> float | None:
        """Return the remaining seconds of a run under way, or None if they are unknown."""
        duration = self.duration()
        return None if duration is None else (1.0 - self.last[1]) * duration


class TimeLeft:
    """The remaining time of a command's runs.

    Args:
        expected: the runs, upstream first.
        makespan: returns the seconds until runs are done that need these seconds each, by id.
    """

    def __init__(
        self, expected: Iterable[Expected], makespan: Callable[[Mapping[str, float]], float]
    ) -> None:
        self._runs = {each.spec.id: _Run(each, each.seconds) for each in expected}
        self._makespan = makespan
        self._ended: set[str] = set()

    @property
    def is_measured(self) -> bool:
        """True if a run has a speed."""
        return any(run.measured for run in self._runs.values())

    def has_speed(self, spec_id: str) -> bool:
        """Return True if the speed of one run was measured."""
        return self._runs[spec_id].measured > 0

    @property
    def share(self) -> float:
        """Share of the runs that is done, each run counted as one."""
        done = sum(1.0 if spec_id in self._ended else run.last[1] for spec_id, run in self._runs.items())
        return done / len(self._runs)

    def progress(self, spec_id: str, share: float, now: float) -> None:
        """Note the share of a run's work that is done.

        A smaller share than before begins another stage, such as testing. Its length is not part of the
        forecast, so only its own speed counts.
        """
        run = self._runs[spec_id]
        if run.first is None or share < run.last[1]:
            run.forecast = None if run.first else run.forecast
            run.first = now, share
        run.last = now, share

    def restart(self, spec_id: str) -> None:
        """Forget the measurements of a run that starts again, from its newest checkpoint."""
        expected = self._runs[spec_id].expected
        self._runs[spec_id] = _Run(expected, expected.seconds)

    def end(self, spec_id: str, now: float | None = None) -> None:
        """Note that a run has ended.

        Args:
            now: time at which it finished; None if it failed.
        """
        run = self._runs[spec_id]
        self._ended.add(spec_id)
        if now is not None and run.first:
            run.last = now, 1.0

    def of(self, spec_id: str) -> float | None:
        """Return the remaining seconds of one run, or None if they are unknown."""
        run = self._runs[spec_id]
        return run.left() if run.first else self._waiting(run)

    def of_all(self) -> float | None:
        """Return the seconds until all runs are done, or None if they are unknown for one of them."""
        seconds = {spec_id: self.of(spec_id) for spec_id in self._runs if spec_id not in self._ended}
        known = {spec_id: each for spec_id, each in seconds.items() if each is not None}
        return self._makespan(known) if len(known) == len(seconds) else None

    def _waiting(self, run: _Run) -> float | None:
        """Return the seconds of a run without a measurement, corrected by those of its kind."""
        kind = run.expected.spec.name
        alike = [other for other in self._runs.values() if other.expected.spec.name == kind]
        forecast, share = run.expected.seconds, run.expected.share
        if forecast is None:
            return None
        ratios = [
            (other.measured, (other.duration() or 0.0) / other.expected.seconds)
            for other in alike
            if other.measured and other.expected.seconds
        ]
        total = sum(weight * ratio for weight, ratio in ratios) + RUNS
        return share * forecast * total / (sum(weight for weight, _ in ratios) + RUNS)
