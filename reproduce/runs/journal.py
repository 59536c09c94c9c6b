"""Measurements that the tracking store lacks, and final values: files in a run's folder.

    journal = Journal(folder)
    journal.add([Point("loss", 0.3, 1700000000000, 1)], {"data_digest": "..."})  # on disk when it returns
    waiting = journal.read()                                # includes what a killed process left
    journal.sent(waiting)                                   # the store has it

    keep_result(folder, spec_id, Result({"top1": 0.81}, commit))  # before the run is recorded as finished
    kept_result(folder, spec_id)                            # the result of an earlier attempt, or None

If a process dies between sending and `sent`, its measurements are sent twice. That changes nothing, because
MLflow identifies a measurement by its key, step, value and time.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from reproduce.runs.files import synchronise, write_atomic

FILE, RESULT = "journal.jsonl", "result.json"
REFUSED = "journal.refused.jsonl"
"""Lines that the store refused: kept for inspection, never sent again."""

logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """One measurement."""

    key: str
    value: float
    timestamp: int
    """Time of the measurement, in milliseconds since 1970."""
    step: int


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def points(metrics: Mapping[str, float], step: int, at: int | None = None) -> list[Point]:
    """Return the measurements of a step in a form that MLflow can store.

    An infinity becomes NaN, because MLflow would turn it into 1.8e308.

    Args:
        at: time of the measurements, in milliseconds since 1970; None for now.
    """
    timestamp, values = now() if at is None else at, {key: float(value) for key, value in metrics.items()}
    return [
        Point(key, value if math.isfinite(value) else math.nan, timestamp, step)
        for key, value in values.items()
    ]


@dataclass(frozen=True)
class Waiting:
    """Measurements and tags that the store does not have yet, in order."""

    points: list[Point]
    tags: dict[str, str]
    """Newest value of each tag."""
    size: int
    """Bytes that were read from the file."""

    def __bool__(self) -> bool:
        return self.size > 0


class Journal:
    """The journal of one run; only the run's owner writes it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._tidy = False

    def add(self, points: Iterable[Point] = (), tags: Mapping[str, str] | None = None) -> None:
        """Append measurements and tags; they are on disk when this returns.

        Raises:
            OSError: the disk is full or permission is missing; earlier entries are intact.
        """
        line = json.dumps({"points": list(points), "tags": dict(tags or {})}) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            size = self._path.stat().st_size if self._tidy else _whole(self._path)
            try:
                file.truncate(size)  # drops the incomplete line that a process killed while writing leaves
                self._tidy = True
                _write_all(file.fileno(), line.encode())
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(size)
                raise OSError(
                    error.errno,
                    f"{self._path} cannot be written ({error.strerror}); what was saved before is intact",
                ) from error
        if size == 0:
            # A new file survives a crash of the machine once its folder is on disk.
            synchronise(self._path.parent)

    def read(self) -> Waiting:
        """Return everything that waits; a broken line is skipped with a warning."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            content = b""
        points: list[Point] = []
        tags: dict[str, str] = {}
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                points += [Point(*point) for point in entry["points"]]
                tags |= entry["tags"]
            except (ValueError, TypeError, KeyError):
                logger.warning("%s has a broken line of %d bytes, which is skipped.", self._path, len(line))
        return Waiting(points, tags, len(content))

    def sent(self, waiting: Waiting) -> None:
        """Delete what was read, because the store has it now."""
        if self._path.stat().st_size == waiting.size:  # otherwise all is sent again, with the new entries
            os.truncate(self._path, 0)

    def set_aside(self) -> Path:
        """Rename the journal, because the store refuses its content, and return the new path."""
        return self._path.replace(self._path.with_name(REFUSED))

    def remove(self) -> None:
        """Delete the journal: the run is finished and nothing waits any more."""
        self._path.unlink(missing_ok=True)


class Result(NamedTuple):
    """The final values of a run."""

    metrics: dict[str, float]
    commit: str
    """Commit of the code that computed them."""
    facts: Mapping[str, str] = MappingProxyType({})
    """Digests of what they were computed from; a result of other data is not used."""


def keep_result(folder: Path, spec_id: str, result: Result) -> None:
    """Write the final values of a run to disk, so that a later attempt need not compute them again.

    Raises:
        OSError: the file cannot be written.
    """
    content = json.dumps({"spec_id": spec_id, **result._asdict(), "facts": dict(result.facts)}, indent=2)
    write_atomic(folder / RESULT, content, durable=True)


def kept_result(folder: Path, spec_id: str) -> Result | None:
    """Return the final values that an earlier attempt left, or None if there are none.

    A file that is broken or belongs to another run is skipped with a warning.
    """
    path = folder / RESULT
    try:
        content = json.loads(path.read_bytes())
        metrics = {str(name): float(value) for name, value in content["metrics"].items()}
        found, commit = content["spec_id"], str(content["commit"])
        facts = {str(name): str(value) for name, value in content.get("facts", {}).items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        logger.warning("%s is broken and is skipped: the run is executed again.", path)
        return None
    if found != spec_id:
        logger.warning("%s belongs to run %s, not to %s, and is skipped.", path, found, spec_id)
        return None
    return Result(metrics, commit, facts)


def drop_result(folder: Path) -> None:
    """Delete the final values, because the store has them now."""
    (folder / RESULT).unlink(missing_ok=True)


def _whole(path: Path) -> int:
    """Return the number of bytes up to the end of the last complete line of a file."""
    return path.read_bytes().rfind(b"\n") + 1


def _write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes: on a disk that is nearly full, the system may write only a part."""
    while content:
        content = content[os.write(descriptor, content) :]
