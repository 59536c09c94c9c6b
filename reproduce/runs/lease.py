"""The owner of a run: a lease in the run's folder, so that no run is executed twice at the same time.

    with lease.take(folder, spec.id, heartbeat=10) as held:  # BusyError if another process owns the run
        held.report(progress)                                # for processes that wait for the run
        held.check()                                         # before each write; LostError if taken over
        held.finished()
    lease.read(folder, spec.id)                              # in other processes: owner, state, progress
    lease.free(folder, spec.id, lease.mark(folder))          # by hand: `invoke unlock`

The lease is the file `lease.json`, which the owner keeps alive by a heartbeat. It is replaced as a whole, and
only under the lock next to it, which is held for milliseconds. An owner on this machine is dead when its
process is gone; its run is free at once. An owner on another machine is dead when three of its heartbeats are
missing. Ages are measured by the clock of the shared file system, so machines need not agree on the time.
While that clock cannot be read, no process takes a run from an owner that may be alive.
Locks and renames must work between machines on that file system, as they do on NFS, and on Lustre mounted
with `flock`.

A run has no lease only if the file does not exist, or names another run. A lease that cannot be read may be
a live owner's: no other process takes the run. Its owner continues, because for three heartbeats after its
last one no other process may have taken the run, and then fails.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, get_args

from reproduce.messages import LONGEST, age, reason_of, visible
from reproduce.runs.files import naming, read_regular, write_atomic
from reproduce.runs.processes import process, process_alive, this_host
from reproduce.runs.progress import Progress

if TYPE_CHECKING:
    import filelock

FILE, LOCK = "lease.json", "lease.lock"
LARGEST = 100_000
"""Maximum number of bytes of a lease."""
AHEAD = 60.0
"""Seconds by which a heartbeat may lie in the future before the lease is doubtful."""
RETRY = 0.1
"""Seconds after which an owner tries again to lock its lease."""
FREED = "freed by hand"
"""Beginning of the reason in a lease that `free` took from its owner."""
MISSED = 3
"""Missing heartbeats after which an owner that cannot be observed counts as dead."""

State = Literal["queued", "running", "finished", "failed", "interrupted", "unreadable"]
"""State of a run. The last one is never in a file: the lease exists, but cannot be read."""

logger = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """Another live process, or a scheduler's job, owns the run."""

    def __init__(self, lease: Lease) -> None:
        advice = "" if lease.doubt else ": wait for it, or stop it first"
        super().__init__(f"Run {lease.spec_id} is being executed by {lease.who}{advice}.")
        self.lease = lease


class LostError(KeyboardInterrupt):
    """Another process owns the run now; this one was considered dead, stops and writes nothing more."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The content of a lease file, and its age."""

    spec_id: str
    token: str
    """32 hexadecimal digits, new each time the run is taken."""
    host: str
    pid: int
    started: float
    """Start of the process, in seconds since 1970; it distinguishes processes that reuse a number."""
    job: str = ""
    """Job id in a scheduler's notation, such as 123_4; empty if there is none."""
    heartbeat: float
    """Seconds between two heartbeats."""
    state: State
    reason: str = ""
    """Reason of a failure or an interruption, or why the lease cannot be read."""
    progress: Progress | None = None
    rate: float | None = None
    """Units of progress per second since the owner began with them; None if unknown."""
    age: float = 0.0
    """Seconds since the last heartbeat; not in the file."""
    ahead: float = 0.0
    """Seconds by which the last heartbeat lies in the future; not in the file."""

    @property
    def alive(self) -> bool:
        """True if its owner seems to be alive; a queued job counts as alive until the queue is asked.

        The owner of a lease that cannot be read counts as alive.
        """
        if self.state != "running":
            return self.state in ("queued", "unreadable")
        recent = self.age <= MISSED * self.heartbeat
        if self.host != this_host():
            return recent
        return process_alive(self.host, self.pid, self.started, heard=recent)

    @property
    def left(self) -> float | None:
        """Remaining seconds of the run at its last heartbeat, by its speed until then; None if unknown."""
        if self.progress is None or not self.rate:
            return None
        return (self.progress.total - self.progress.done) / self.rate

    @property
    def owner(self) -> str:
        """Owner of the run, in words."""
        if self.state == "unreadable":
            return "an unknown process"
        return f"Slurm job {self.job}" if self.job else f"process {self.pid} on {self.host}"

    @property
    def who(self) -> str:
        """Owner of the run and the doubt about it, in words."""
        return f"{self.owner} ({self.doubt})" if self.doubt else self.owner

    @property
    def doubt(self) -> str:
        """Reason why the owner may be gone although the lease keeps the run, and the way out; else ""."""
        if self.state == "unreadable":
            problem = f"{FILE} cannot be read: {self.reason}"
        elif self.state == "running" and self.ahead > AHEAD:
            problem = f"its last heartbeat lies {age(self.ahead)} in the future"
        else:
            return ""
        return f"{problem}; if no process executes the run, `invoke unlock {self.spec_id}` frees it"


def read(folder: Path, spec_id: str) -> Lease | None:
    """Return the lease in a run's folder, or None if there is none.

    A file that names another run, such as one in a copied folder, is not a lease of this run. If the file
    exists but cannot be read, the result has the state `unreadable`. If no file can be created in the folder,
    the age of the lease is measured by this machine's clock.
    """

    def now(folder: Path) -> float:
        try:
            return _now(folder)
        except OSError:
            return time.time()

    return _judged(folder, spec_id, now)


def _judged(folder: Path, spec_id: str, now: Callable[[Path], float]) -> Lease | None:
    """Return the lease in a run's folder with its age, or None if there is none.

    Args:
        now: returns the time by the clock of a folder's file system. If it raises OSError, the result has the
            state `unreadable`.
    """
    try:
        found = _read(folder, spec_id)
        if found is None:
            return None
        lease, heartbeat = found
        late = now(folder) - heartbeat if lease.state in ("running", "queued") else 0.0
        return replace(lease, age=max(0.0, late), ahead=max(0.0, -late))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or reason_of(error)
        return Lease(
            spec_id=spec_id,
            token="",
            host="",
            pid=0,
            started=0.0,
            heartbeat=1.0,
            state="unreadable",
            reason=reason,
        )


def take(
    folder: Path, spec_id: str, *, heartbeat: float, job: str = "", lost: Callable[[], None] = lambda: None
) -> Held:
    """Make this process the owner of a run; use the result in a `with` block.

    Takes over from a dead owner, and from the queue if `job` is the queued job.

    Args:
        heartbeat: seconds between two heartbeats.
        job: scheduler's job that this process belongs to.
        lost: called in another thread when another process has taken the lease.

    Raises:
        BusyError: another live process, or another queued job, owns the run.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        found = _judged(folder, spec_id, _now)
        if found and found.alive and not (found.state == "queued" and found.job == job):
            raise BusyError(found)
        mine = Lease(
            spec_id=spec_id,
            token=secrets.token_hex(16),
            **process(),
            job=job,
            heartbeat=heartbeat,
            state="running",
        )
        now = _clock()
        _write(folder, mine)
    return Held(folder, mine, lost, now)


def queue(folder: Path, spec_id: str, *, job: str, heartbeat: float) -> None:
    """Record that a run waits in a scheduler's queue as `job`, which then owns it.

    Raises:
        BusyError: the run already has an owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        found = _judged(folder, spec_id, _now)
        if found and found.alive and found.job != job:
            raise BusyError(found)
        if found and found.job == job:  # the job is faster than its submitter; it may even have ended
            return
        token = secrets.token_hex(16)
        waiting = Lease(
            spec_id=spec_id, token=token, **process(), job=job, heartbeat=heartbeat, state="queued"
        )
        _write(folder, waiting)


def fail(folder: Path, spec_id: str, *, job: str, reason: str) -> None:
    """Record that the process of a run in a scheduler's job has ended without a record of how.

    It changes no lease of another job, and none of a run that has ended.
    """
    if not folder.is_dir():
        return
    with _locked(folder):
        found = read(folder, spec_id)
        if found and found.job == job and found.state in ("queued", "running"):
            _write(folder, replace(found, state="failed", reason=reason))


def drop(folder: Path, spec_id: str, job: str) -> None:
    """Delete the record that a run is queued as `job`, unless the lease has changed since."""
    if not folder.is_dir():
        return
    with _locked(folder):
        found = read(folder, spec_id)
        if found and found.state == "queued" and found.job == job:
            (folder / FILE).unlink(missing_ok=True)


def mark(folder: Path) -> tuple[int, int, int] | None:
    """Return a mark of the lease's file, which each heartbeat changes; None if it does not exist."""
    try:
        status = (folder / FILE).lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def free(folder: Path, spec_id: str, seen: tuple[int, int, int] | None) -> bool:
    """Take a run from its owner, which notices that before its next write; return whether it is free now.

    A lease that cannot be read is renamed, so that its content is kept.

    Args:
        seen: mark of the lease that the caller has judged. If the lease has changed since, it stays.

    Raises:
        OSError: the folder cannot be written.
    """
    with _locked(folder):
        if mark(folder) != seen:
            return False
        found = read(folder, spec_id)
        if found is None:
            return True
        if found.state == "unreadable":
            (folder / FILE).replace(folder / f"{FILE}.unreadable-{secrets.token_hex(4)}")
        else:
            reason = f"{FREED}, from {found.owner}"
            _write(folder, replace(found, token=secrets.token_hex(16), state="interrupted", reason=reason))
    return True


class Held:
    """The lease of this process; a `with` block sends the heartbeats and records how the run ended."""

    def __init__(
        self, folder: Path, lease: Lease, lost: Callable[[], None] = lambda: None, since: float = 0.0
    ) -> None:
        self.lease = lease
        self._folder, self._lost = folder, lost
        self._last_heartbeat = since
        """Time of the last heartbeat that was written, by `_clock`."""
        self._progress: Progress | None = None
        self._began: tuple[float, Progress] | None = None
        """Time of the first progress of the present stage, by `_clock`, and that progress."""
        self._rate: float | None = None
        self._finished = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    @property
    def token(self) -> str:
        """Token of this lease."""
        return self.lease.token

    @property
    def _may_be_taken(self) -> bool:
        """True if so many heartbeats are missing that another process may have taken the run."""
        return _clock() - self._last_heartbeat > MISSED * self.lease.heartbeat

    def check(self) -> None:
        """Raise LostError unless this process still owns the run; call it before each write.

        A lease that cannot be read for a moment is not lost: no other process takes it.

        Raises:
            LostError: another process has the lease.
            OSError: the lease cannot be read, and the owner is unknown by now.
        """
        try:
            found = _read(self._folder, self.lease.spec_id)
        except (OSError, ValueError) as error:
            if self._may_be_taken:
                raise OSError(
                    getattr(error, "errno", None) or errno.EIO,
                    f"the lease of run {self.lease.spec_id} cannot be read ({reason_of(error)}), so another "
                    "process may own the run",
                ) from error
            return
        lease = found[0] if found else None
        if lease is None or lease.token != self.token:
            owner = f"{lease.owner} has its lease now" if lease else "its lease is gone"
            if lease and lease.reason.startswith(FREED):
                owner = lease.reason
            raise LostError(f"run {self.lease.spec_id} was taken from this process: {owner}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep the lease: inside the block no other process can take it.

        Raises:
            LostError: another process has the lease.
            OSError: the lease cannot be locked, and the owner is unknown by now.
        """
        lock = _lock(self._folder)
        while True:
            try:
                with naming(self._folder / LOCK):
                    lock.acquire()
                break
            except OSError:  # such as too many open files
                if self._may_be_taken:
                    raise
                time.sleep(RETRY)
        try:
            self.check()
            yield
        finally:
            lock.release()

    def report(self, progress: Progress) -> None:
        """Set the progress that the next heartbeat records, and the speed since the stage began."""
        now, before = _clock(), self._progress
        stage = before and (before.total, before.unit) == (progress.total, progress.unit)
        if self._began is None or not stage or (before and progress.done < before.done):
            self._began = now, progress
        since, first = self._began
        self._rate = (progress.done - first.done) / (now - since) if now > since else None
        self._progress = progress

    def finished(self) -> None:
        """Note that the run is finished and recorded."""
        self._finished = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(LostError, OSError):  # the run's own exception matters more
            if self._finished:
                self._record("finished")
            elif isinstance(error, KeyboardInterrupt | SystemExit):
                self._record("interrupted", reason_of(error))
            else:
                self._record("failed", reason_of(error) if error else "it ended without a result")

    def _beat(self) -> None:
        while not self._ended.wait(self.lease.heartbeat):
            try:
                self._record("running")
            except LostError:
                self._lost()
                return
            except OSError:
                continue  # the file system may recover; otherwise other processes miss the heartbeats

    def _record(self, state: State, reason: str = "") -> None:
        lease = replace(
            self.lease,
            **process(),
            state=state,
            reason=reason,
            progress=self._progress,
            rate=self._rate,
        )
        with self.guard():
            now = _clock()
            _write(self._folder, lease)
            self._last_heartbeat = now


def _read(folder: Path, spec_id: str) -> tuple[Lease, float] | None:
    """Return the lease in a folder, without its age, and the time of its last heartbeat.

    None if there is none, or if it is another run's. The time is by the clock of the file system.

    Raises:
        OSError: the file exists, but cannot be read.
        ValueError: the file is not a lease.
    """
    try:
        content, status = read_regular(folder / FILE, LARGEST)
    except FileNotFoundError:
        return None
    found = _parsed(content)
    if found.spec_id != spec_id:
        _warn_of_foreign(folder / FILE, found.spec_id, spec_id)
        return None
    return found, status.st_mtime


@functools.cache
def _warn_of_foreign(path: Path, other: str, spec_id: str) -> None:
    """Log once that a lease is another run's."""
    named = visible(other[:60], keep="")
    logger.warning("%s is the lease of run %s, not of %s, and is not used.", path, named, spec_id)


TEXTS, NUMBERS_IN_FILE = ("spec_id", "token", "host", "job", "reason"), ("pid", "started", "heartbeat")
"""Fields of a lease that are texts, and those that are numbers."""
LARGEST_PID, LARGEST_COUNT = 2**31 - 1, 2**53


def _parsed(content: bytes) -> Lease:
    """Return the lease in a file, without its age.

    Raises:
        ValueError: the content is not a lease.
    """
    try:
        fields = json.loads(content)
        progress = fields.pop("progress")
        found = Lease(**fields, progress=Progress(*progress) if progress is not None else None)
        texts = [*(getattr(found, name) for name in TEXTS), *(found.progress[2:] if found.progress else ())]
        numbers = [getattr(found, name) for name in NUMBERS_IN_FILE]
        numbers += found.progress[:2] if found.progress else ()
        numbers += [] if found.rate is None else [found.rate]
        sound = (
            all(type(text) is str for text in texts)
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and all("".join(text.split(" ")).isprintable() for text in (found.token, found.host, found.job))
            and type(found.pid) is int
            and 0 < found.pid <= LARGEST_PID
            and found.heartbeat > 0
            and (found.rate is None or found.rate >= 0)
            and (found.progress is None or max(map(abs, found.progress[:2])) <= LARGEST_COUNT)
            and found.state in get_args(State)
            and found.state != "unreadable"
            and "age" not in fields
            and "ahead" not in fields
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"its {len(content)} bytes are not a lease")
    if found.progress:
        unit, note = map(_printable, found.progress[2:])
        progress = found.progress._replace(unit=unit, note=note)
    return replace(found, reason=_printable(found.reason), progress=progress)


def _printable(text: str) -> str:
    """Return a text without characters that could change a terminal or cannot be encoded."""
    return "".join(each if each.isprintable() else " " for each in text[:LONGEST])


def _clock() -> float:
    """Return a time in seconds that also counts while the machine sleeps, and that is never set."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _lock(folder: Path) -> filelock.BaseFileLock:
    """Return the lock under which the lease is read and changed.

    The kernel releases it when its process ends, however it ends.
    """
    import filelock

    return filelock.FileLock(folder / LOCK)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock inside the block.

    Raises:
        OSError: the lock cannot be acquired.
    """
    lock = _lock(folder)
    with naming(folder / LOCK):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, lease: Lease) -> None:
    """Replace the lease as a whole."""
    progress = lease.progress and lease.progress._replace(note=lease.progress.note[:LONGEST])
    lease = replace(lease, reason=lease.reason[:LONGEST], progress=progress)
    content = {key: value for key, value in vars(lease).items() if key not in ("age", "ahead")}
    write_atomic(folder / FILE, json.dumps(content))


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system of `folder`, from a new file in it.

    Raises:
        OSError: no file can be created.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError as error:
        raise OSError(error.errno, f"its age is unknown, {error.strerror}") from error
