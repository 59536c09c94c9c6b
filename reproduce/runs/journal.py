"""What a run has measured and the tracking store does not have yet, and what a run came to: files in the
run's folder.

    journal = Journal(folder)
    journal.add([Point("loss", 0.3, 1700000000000, 1)], {"data_digest": "..."})     # it is on disk when this
    returns waiting = journal.read()                                                        # whatever a
    killed process left, too journal.sent(waiting)                                                           #
    the store has it

    keep_result(folder, spec_id, Result({"top1": 0.81}, commit))    # before the run is recorded as finished
    kept_result(folder, spec_id)                                    # what an earlier attempt came to, or None

Between sending and `sent` a process may die: what is read is then sent a second time, which changes nothing
where a measurement is named by its key, step, value and time, as MLflow names it.
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
from typing import NamedTuple

from reproduce.runs.files import synchronise, write_atomic

FILE, RESULT = "journal.jsonl", "result.json"
REFUSED = "journal.refused.jsonl"
"""Lines that the store refused: kept for whoever looks into it, and never sent again."""

logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """One measurement."""

    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970, when it was measured."""
    step: int


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def points(metrics: Mapping[str, float], step: int, at: int | None = None) -> list[Point]:
    """What was measured at a step, as MLflow can keep it: an infinity, which it would turn into 1.8e308,
    becomes NaN.

    Args:
        at: when, in milliseconds since 1970; None: now.
    """
    timestamp, values = now() if at is None else at, {key: float(value) for key, value in metrics.items()}
    return [
        Point(key, value if math.isfinite(value) else math.nan, timestamp, step)
        for key, value in values.items()
    ]


@dataclass(frozen=True)
class Waiting:
    """What the store does not have yet, in order."""

    points: list[Point]
    tags: dict[str, str]
    """Of each the newest value."""
    size: int
    """Bytes of the file that were read."""

    def __bool__(self) -> bool:
        return self.size > 0


class Journal:
    """The file of one run; written by its owner alone."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._tidy = False

    def add(self, points: Iterable[Point] = (), tags: Mapping[str, str] | None = None) -> None:
        """Appends measurements and tags; they are on disk when this returns.

        Raises:
            OSError: there is no room, or no permission; what was added before is as it was.
        """
        line = json.dumps({"points": list(points), "tags": dict(tags or {})}) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            size = self._path.stat().st_size if self._tidy else _whole(self._path)
            try:
                file.truncate(size)  # without the rest of a line, which a kill in the midst of writing leaves
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
            synchronise(
                self._path.parent
            )  # a new file is only there after a crash of the machine once its folder is

    def read(self) -> Waiting:
        """Everything that waits; a broken line is passed over with a warning."""
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
                logger.warning(
                    "%s has a broken line of %d bytes, which is passed over.", self._path, len(line)
                )
        return Waiting(points, tags, len(content))

    def sent(self, waiting: Waiting) -> None:
        """Forgets what was read, as the store has it."""
        if (
            self._path.stat().st_size == waiting.size
        ):  # otherwise all of it is sent again with what was added meanwhile
            os.truncate(self._path, 0)

    def set_aside(self) -> Path:
        """Moves what waits out of the way, as the store does not take it; returns where it is."""
        return self._path.replace(self._path.with_name(REFUSED))

    def remove(self) -> None:
        """Nothing waits any more: the run is finished."""
        self._path.unlink(missing_ok=True)


class Result(NamedTuple):
    """What a run came to."""

    metrics: dict[str, float]
    commit: str
    """Of the code that computed it."""


def keep_result(folder: Path, spec_id: str, result: Result) -> None:
    """Puts the final values of a run on disk: whatever becomes of the process or the store, they are not
    computed again.

    Raises:
        OSError: the file cannot be written.
    """
    content = json.dumps({"spec_id": spec_id, **result._asdict()}, indent=2)
    write_atomic(folder / RESULT, content, durable=True)


def kept_result(folder: Path, spec_id: str) -> Result | None:
    """The final values that an earlier attempt left; None: there are none. A file that is broken or another
    run's is passed over."""
    path = folder / RESULT
    try:
        content = json.loads(path.read_bytes())
        metrics = {str(name): float(value) for name, value in content["metrics"].items()}
        found, commit = content["spec_id"], str(content["commit"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        logger.warning("%s is broken and is passed over: the run is done again.", path)
        return None
    if found != spec_id:
        logger.warning("%s is of run %s, not of %s, and is passed over.", path, found, spec_id)
        return None
    return Result(metrics, commit)


def drop_result(folder: Path) -> None:
    """Removes the final values: the store has them."""
    (folder / RESULT).unlink(missing_ok=True)


def _whole(path: Path) -> int:
    """The bytes of a file up to the end of its last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def _write_all(descriptor: int, content: bytes) -> None:
    """Writes all of it: on a disk that is nearly full, the system may take a part and say so."""
    while content:
        content = content[os.write(descriptor, content) :]
