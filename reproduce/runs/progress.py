"""Progress and measurements that a run reports while it is executed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from reproduce.messages import rate

FETCHED = "MiB"
"""Unit of a download's progress, which is not part of a run's work."""
RATE = "images_per_second"
"""Name of the speed among the measurements."""


class Progress(NamedTuple):
    """The progress of a run, for display."""

    done: int
    """Number of finished units."""
    total: int
    """Number of all units."""
    unit: str
    """Unit of the counts: `images`, `classes`, or FETCHED for a download."""
    note: str
    """Few words, such as the loss."""


def epoch_note(epoch: int, epochs: int, measured: Mapping[str, float]) -> str:
    """Return the note of a training in its `epoch`, counted from 1, with the newest loss if there is one."""
    loss = f", loss {measured['loss']:.4g}" if "loss" in measured else ""
    return f"epoch {epoch}/{epochs}{loss}"


def log_epoch(epoch: int, epochs: int, measured: Mapping[str, float]) -> None:
    """Write a line about a finished epoch to standard error, which is the run's log.

    It contains the loss, its terms and whatever else was measured; images/s stand last.
    """
    values = [f"{name} {value:.4g}" for name, value in measured.items() if name != RATE]
    speed = [f"{rate(measured[RATE])} images/s"] if RATE in measured else []
    print(f"epoch {epoch}/{epochs}: {', '.join(values + speed)}", file=sys.stderr, flush=True)


class Record(Protocol):
    """Receiver of a run's measurements, such as a `recording.Run`."""

    def log(self, step: int, metrics: Mapping[str, float], /) -> None:
        """Record measurements after `step` steps."""

    def flush(self) -> None:
        """Write the measurements that still wait."""

    def tag(self, name: str, value: str, /) -> None:
        """Record a fact about the run."""

    def facts(self, values: Mapping[str, str], /) -> None:
        """Record several facts about the run."""

    def artifact(self, path: Path, /) -> None:
        """Record a file that the run leaves behind, such as a picture."""


class Silent:
    """A record that discards everything.

    It serves all processes but the first, and protocols that are called directly.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def tag(self, name: str, value: str) -> None: ...

    def facts(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Watch:
    """The receivers of an evaluation's reports; by default everything is discarded."""

    record: Record = field(default_factory=Silent)
    report: Callable[[Progress], None] = lambda progress: None
    folder: Path | None = None
    """The run's folder, for the checkpoints of an evaluation that takes hours; None if it keeps none."""
    hold: Callable[[], None] = lambda: None
    """Function that is called before a checkpoint is written; it raises if another process has taken over the
    run."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Digests of the data by name, as far as known; a checkpoint of other data is not continued."""
    spec_id: str = ""
    """Id of the run, which its checkpoints name; empty outside a run."""

    def part(self, before: int, total: int) -> Watch:
        """Return a copy for a part of the work, whose counts start at `before` out of `total`."""
        return replace(
            self,
            report=lambda progress: self.report(progress._replace(done=before + progress.done, total=total)),
        )
