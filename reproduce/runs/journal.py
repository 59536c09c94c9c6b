"""Measurements that the tracking store lacks, and final values: files in a run's folder.

    journal = Journal(folder, spec_id, guard=held.guard)
    journal.add([Point("loss", 0.3, 1700000000000, 1)], {"data_digest": "..."})  # on disk when it returns
    waiting = journal.read()                                # includes what a killed process left
    journal.sent(waiting)                                   # the store has it

    keep_result(folder, spec_id, Result({"top1": 0.81}, commit))  # before the run is recorded as finished
    kept_result(folder, spec_id)                            # the result of an earlier attempt, or None

If a process dies between sending and `sent`, its measurements are sent twice. That changes nothing, because
MLflow identifies a measurement by its key, step, value and time.

The journal is written, shortened and renamed only under the lease, so an old owner that wakes up cannot
damage what the new one has written. Each line names its run. Lines of another run, lines that name none, as
older versions wrote them, and broken lines are kept in a file next to it, but never sent.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from reproduce.messages import visible
from reproduce.runs.files import naming, read_regular, synchronise, write_atomic

FILE, RESULT = "journal.jsonl", "result.json"
REFUSED, SKIPPED = "journal.refused.jsonl", "journal.skipped.jsonl"
"""A journal that the store refused, and one with lines that could not be sent: kept for inspection, never
sent again."""
LARGEST = 2**30
"""Maximum number of bytes of a file; a run of a year writes less."""
LARGEST_NUMBER = 2**63 - 1
"""Maximum of a time and of a step, as in the tracking store."""
NOT_A_FILE = (errno.EINVAL, errno.EFBIG, errno.ELOOP)
"""Codes of the errors that `read_regular` raises for what is not a file of this package."""

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
    skipped: bool = False
    """True if the file has lines that cannot be sent."""

    def __bool__(self) -> bool:
        return self.size > 0


class Journal:
    """The journal of one run; only the run's owner writes it."""

    def __init__(
        self,
        folder: Path,
        spec_id: str = "",
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Write nothing yet.

        Args:
            spec_id: id of the run.
            guard: returns a context in which no other process can take over the run. It raises if this
                process does not own the run.
        """
        self._path, self._spec_id, self._guard = folder / FILE, spec_id, guard
        self._warned: set[str] = set()
        self._named = False
        """True if this process has synchronised the folder since the file was created."""

    def add(self, points: Iterable[Point] = (), tags: Mapping[str, str] | None = None) -> None:
        """Append measurements and tags; they are on disk when this returns.

        Raises:
            OSError: the disk is full or permission is missing; earlier entries are intact.
        """
        entry = {"spec_id": self._spec_id, "points": list(points), "tags": dict(tags or {})}
        line = (json.dumps(entry) + "\n").encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._guard(), _opened(self._path) as descriptor:
            with naming(self._path):
                size = _cut(descriptor)
            self._named = self._named and size > 0
            try:
                _write_all(descriptor, line)
                os.fsync(descriptor)
            except OSError as error:
                with suppress(OSError):  # otherwise the next call cuts a broken line off
                    os.truncate(descriptor, size)
                raise OSError(
                    error.errno,
                    f"{self._path} cannot be written ({error.strerror}); what was saved before is intact",
                ) from error
        if not self._named:
            # A new file survives a crash of the machine once its folder is on disk. The process that created
            # it may have been killed before.
            synchronise(self._path.parent)
            self._named = True

    def read(self) -> Waiting:
        """Return everything that waits.

        Broken lines and those of another run are skipped with a warning, and so is a path that is not a file.
        """
        try:
            content, _ = read_regular(self._path, LARGEST)
        except FileNotFoundError:
            return Waiting([], {}, 0)
        except OSError as error:
            if error.errno not in NOT_A_FILE:
                raise
            self._warn(f"{self._path} cannot be read ({error.strerror}) and is skipped.")
            return Waiting([], {}, 0)
        points: list[Point] = []
        tags: dict[str, str] = {}
        *lines, rest = content.split(b"\n")
        entries = [self._entry(line + b"\n") for line in lines]
        entries += [self._entry(rest)] if rest else []
        for entry in filter(None, entries):
            points += entry.points
            tags |= entry.tags
        return Waiting(points, tags, len(content), None in entries)

    def sent(self, waiting: Waiting) -> None:
        """Delete what was read, because the store has it now; lines that were skipped are kept elsewhere."""
        with self._guard():
            if self._path.stat().st_size != waiting.size:
                return  # all is sent again, with the new entries
            if waiting.skipped:
                self._move(SKIPPED)
            else:
                os.truncate(self._path, 0)

    def set_aside(self) -> Path:
        """Rename the journal, because the store refuses its content, and return the new path."""
        with self._guard():
            return self._move(REFUSED)

    def remove(self) -> None:
        """Delete the journal: the run is finished and nothing waits any more."""
        with self._guard():
            self._path.unlink(missing_ok=True)

    def _move(self, name: str) -> Path:
        """Rename the journal to `name`, or to a similar name if that exists, and return the new path."""
        path = self._path.with_name(name)
        if path.exists():
            path = path.with_stem(f"{path.stem}-{secrets.token_hex(4)}")
        self._path.replace(path)
        synchronise(path.parent)
        return path

    def _entry(self, line: bytes) -> _Entry | None:
        """Return what a line contains; None, with a warning, if it is broken or another run's."""
        try:
            fields = json.loads(line)
            named = fields.get("spec_id")
            entry = _Entry([_point(each) for each in fields["points"]], _tags(fields["tags"]))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            if not line.endswith(b"\n"):
                return _Entry([], {})  # incomplete, because a process was killed while it wrote
            self._warn(
                f"{self._path} has a broken line of {len(line)} bytes, which is skipped: {line[:40]!r}."
            )
            return None
        if named != self._spec_id:
            other = "no run" if named is None else f"run {named!r:.60}"
            self._warn(f"{self._path} has lines of {other}, not of {self._spec_id}, which are skipped.")
            return None
        return entry

    def _warn(self, text: str) -> None:
        """Log a warning, once."""
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)


class _Entry(NamedTuple):
    """The content of a line of a journal."""

    points: list[Point]
    tags: dict[str, str]


def _point(fields: Any) -> Point:
    """Return a measurement from the fields of a line.

    Raises:
        TypeError, ValueError, OverflowError: the fields are not those of a measurement.
    """
    key, value, timestamp, step = fields
    if (type(key), type(timestamp), type(step)) != (str, int, int) or type(value) not in (int, float):
        raise TypeError("not a measurement")
    if max(abs(timestamp), abs(step)) > LARGEST_NUMBER:
        raise ValueError("not a number that a store accepts")
    return Point(key, float(value), timestamp, step)


def _tags(fields: Any) -> dict[str, str]:
    """Return the tags of a line.

    Raises:
        TypeError: these are not tags.
    """
    if type(fields) is not dict or any(type(value) is not str for value in fields.values()):
        raise TypeError("not tags")
    return fields


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of a file, which is created if necessary, to read it and to append to it.

    Raises:
        OSError: the file cannot be opened, or the path is not a file. A pipe does not block.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        with naming(path):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "Not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _cut(descriptor: int) -> int:
    """Cut off a line that a killed process left incomplete, and return the number of bytes of the file."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.truncate(descriptor, whole)
    return whole


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

    Raises:
        OSError: the file exists, but cannot be read.
    """
    path = folder / RESULT
    try:
        content = json.loads(_content(path))
        metrics = {str(name): _number(value) for name, value in content["metrics"].items()}
        found, commit = content["spec_id"], content["commit"]
        facts = _tags(content.get("facts", {}))
        if not isinstance(found, str) or not isinstance(commit, str):
            raise TypeError("not a result")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        logger.warning("%s is broken and is skipped: the run is executed again.", path)
        return None
    if found != spec_id:
        logger.warning(
            "%s belongs to run %s, not to %s, and is skipped.", path, visible(found[:60], keep=""), spec_id
        )
        return None
    return Result(metrics, commit, facts)


def _content(path: Path) -> bytes:
    """Return the content of a result's file.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the path is not a file of this package.
        OSError: the file cannot be read.
    """
    try:
        return read_regular(path, LARGEST)[0]
    except OSError as error:
        if error.errno in NOT_A_FILE:
            raise ValueError(error.strerror) from None
        raise


def _number(value: Any) -> float:
    """Return a value of a result.

    Raises:
        TypeError, OverflowError: it is not a number.
    """
    if type(value) not in (int, float):
        raise TypeError("not a number")
    return float(value)


def drop_result(folder: Path) -> None:
    """Delete the final values, because the store has them now."""
    (folder / RESULT).unlink(missing_ok=True)


def _write_all(descriptor: int, content: bytes) -> None:
    """Write all bytes: on a disk that is nearly full, the system may write only a part."""
    while content:
        content = content[os.write(descriptor, content) :]
