"""What a run tells while it goes on: how far it is, and what it measures on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Progress(NamedTuple):
    """How far a run is, for whoever shows it."""

    done: int
    """Images seen."""
    total: int
    """Images to see."""
    unit: str
    """What is counted, such as `images`."""
    note: str
    """A few words, such as the loss."""


class Record(Protocol):
    """Where a run's measurements go, such as a `tracking.Run`."""

    def log(self, step: int, metrics: Mapping[str, float], /) -> None:
        """Measurements after `step` steps."""

    def flush(self) -> None:
        """Writes what still waits."""

    def tag(self, name: str, value: str, /) -> None:
        """A fact about the run."""


class Silent:
    """The record of whoever keeps none: every process but the first, and a protocol that is called by itself."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def tag(self, name: str, value: str) -> None: ...


@dataclass(frozen=True)
class Watch:
    """Who follows an evaluation; by default nobody."""

    record: Record = field(default_factory=Silent)
    report: Callable[[Progress], None] = lambda progress: None
