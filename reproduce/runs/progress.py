"""What a run tells while it goes on: how far it is, and what it measures on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

FETCHED = "MiB"
"""The unit of a download's progress, which is no part of a run's work."""


class Progress(NamedTuple):
    """How far a run is, for whoever shows it."""

    done: int
    """How many are done."""
    total: int
    """How many there are to do."""
    unit: str
    """What is counted: `images`, `classes`, or what a download is counted in, FETCHED."""
    note: str
    """A few words, such as the loss."""


class Record(Protocol):
    """Where a run's measurements go, such as a `recording.Run`."""

    def log(self, step: int, metrics: Mapping[str, float], /) -> None:
        """Measurements after `step` steps."""

    def flush(self) -> None:
        """Writes what still waits."""

    def tag(self, name: str, value: str, /) -> None:
        """A fact about the run."""

    def artifact(self, path: Path, /) -> None:
        """A file that the run leaves behind, such as a picture."""


class Silent:
    """The record of whoever keeps none: every process but the first, and a protocol that is called by
    itself."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def tag(self, name: str, value: str) -> None: ...

    def artifact(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Watch:
    """Who follows an evaluation; by default nobody."""

    record: Record = field(default_factory=Silent)
    report: Callable[[Progress], None] = lambda progress: None
    folder: Path | None = None
    """The run's own, where what takes hours keeps its checkpoints; None: it keeps none."""
    hold: Callable[[], None] = lambda: None
    """Called before a checkpoint is written; raises when another process has taken the run over."""

    def tag_data(self, split: str, digest: str) -> None:
        """Records what the images of a split are."""
        self.record.tag(f"data_digest_{split.replace('+', '_')}", digest)  # MLflow takes no + in a name

    def part(self, before: int, total: int) -> Watch:
        """For a part of the work: what it counts comes after `before` of `total`."""
        return replace(
            self,
            report=lambda progress: self.report(progress._replace(done=before + progress.done, total=total)),
        )
