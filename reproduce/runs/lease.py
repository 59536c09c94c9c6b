"""The owner of a run: a lease in the run's folder, so that no run is executed twice at the same time.

    with lease.take(folder, spec.id, heartbeat=10) as held:  # BusyError if another process owns the run
        held.report(progress)                                # for processes that wait for the run
        held.check()                                         # before each write; LostError if taken over
        held.finished()
    lease.read(folder)                                       # in other processes: owner, state, progress

The lease is the file `lease.json`, which the owner keeps alive by a heartbeat. It is replaced as a whole, and
only under the lock next to it, which is held for milliseconds. An owner on this machine is dead when its
process is gone; its run is free at once. An owner on another machine is dead when three of its heartbeats are
missing. Ages are measured by the clock of the shared file system, so machines need not agree on the time.
Locks and renames must work between machines on that file system, as they do on NFS, and on Lustre mounted
with `flock`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from reproduce.messages import LONGEST, reason_of
from reproduce.runs.files import write_atomic
from reproduce.runs.progress import Progress

FILE, LOCK, PLACE = "lease.json", "lease.lock", ".place"
MISSED = 3
"""Missing heartbeats after which an owner that cannot be observed counts as dead."""
NUMBERS, MACHINES = Path("/proc/self/ns/pid"), "pid:[4026531836]"
"""Link that names the PID namespace of this process on Linux, and its target outside all containers."""

State = Literal["queued", "running", "finished", "failed", "interrupted"]


class BusyError(RuntimeError):
    """Another live process, or a scheduler's job, owns the run."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(
            f"Run {lease.spec_id} is being executed by {lease.who}: wait for it, or stop it first."
        )
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
    """Reason of a failure or an interruption."""
    progress: Progress | None = None
    age: float = 0.0
    """Seconds since the last heartbeat; not in the file."""

    @property
    def alive(self) -> bool:
        """True if its owner seems to be alive; a queued job counts as alive until the queue is asked."""
        if self.state != "running":
            return self.state == "queued"
        recent = self.age <= MISSED * self.heartbeat
        if self.host != this_host():
            return recent
        return process_alive(self.host, self.pid, self.started, heard=recent)

    @property
    def who(self) -> str:
        """Owner of the run, in words."""
        return f"Slurm job {self.job}" if self.job else f"process {self.pid} on {self.host}"


def read(folder: Path) -> Lease | None:
    """Return the lease in a run's folder, or None if there is none."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        beat = path.stat().st_mtime
        progress = content.pop("progress")
        return Lease(
            **content, progress=Progress(*progress) if progress else None, age=max(0.0, _now(folder) - beat)
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None  # leases are replaced as a whole, so this project did not write an unreadable one


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
    with _lock(folder):
        found = read(folder)
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
        _write(folder, mine)
    return Held(folder, mine, lost)


def queue(folder: Path, spec_id: str, *, job: str, heartbeat: float) -> None:
    """Record that a run waits in a scheduler's queue as `job`, which then owns it.

    Raises:
        BusyError: the run already has an owner.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        found = read(folder)
        if found and found.alive and found.job != job:
            raise BusyError(found)
        if found and found.job == job:  # the job is faster than its submitter; it may even have ended
            return
        token = secrets.token_hex(16)
        waiting = Lease(
            spec_id=spec_id, token=token, **process(), job=job, heartbeat=heartbeat, state="queued"
        )
        _write(folder, waiting)


def drop(folder: Path, job: str) -> None:
    """Delete the record that a run is queued as `job`, unless the lease has changed since."""
    if not folder.is_dir():
        return
    with _lock(folder):
        found = read(folder)
        if found and found.state == "queued" and found.job == job:
            (folder / FILE).unlink(missing_ok=True)


class Held:
    """The lease of this process; a `with` block sends the heartbeats and records how the run ended."""

    def __init__(self, folder: Path, lease: Lease, lost: Callable[[], None] = lambda: None) -> None:
        self.lease = lease
        self._folder, self._lost = folder, lost
        self._progress: Progress | None = None
        self._finished = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    @property
    def token(self) -> str:
        """Token of this lease."""
        return self.lease.token

    def check(self) -> None:
        """Raise LostError unless this process still owns the run; call it before each write.

        Raises:
            LostError: another process has the lease.
        """
        found = read(self._folder)
        if found is None or found.token != self.token:
            owner = f"{found.who} has its lease now" if found else "its lease is gone"
            raise LostError(f"run {self.lease.spec_id} was taken from this process: {owner}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep the lease: inside the block no other process can take it.

        Raises:
            LostError: another process has the lease.
        """
        with _lock(self._folder):
            self.check()
            yield

    def report(self, progress: Progress) -> None:
        """Set the progress that the next heartbeat records."""
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
        now = replace(
            self.lease, **process(), state=state, reason=reason[:LONGEST], progress=self._progress, age=0.0
        )
        with self.guard():
            _write(self._folder, now)


def this_host() -> str:
    """Return the name of this machine; in a container, also of its PID namespace.

    Several containers may share a machine and its name.
    """
    try:
        numbers = str(NUMBERS.readlink())
    except OSError:  # not Linux
        numbers = MACHINES
    return socket.gethostname() if numbers == MACHINES else f"{socket.gethostname()} {numbers}"


def process() -> dict[str, Any]:
    """Return `host`, `pid` and start time (`started`), which together identify this process uniquely."""
    import psutil

    return {"host": this_host(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def process_alive(host: str, pid: int, started: float, *, heard: bool | None = None) -> bool:
    """Return whether a process of this machine is still alive.

    Args:
        heard: True if its last heartbeat is recent. Then a start time that differs is accepted, because the
            clock may have been set since. False if heartbeats are missing; then a suspended process counts as
            gone. None if it sends no heartbeats.
    """
    import psutil

    assert host == this_host()
    try:
        found = psutil.Process(pid)
        same = abs(found.create_time() - started) < 2  # seconds; the clock is adjusted slightly all the time
        gone = (
            psutil.STATUS_ZOMBIE,
            psutil.STATUS_DEAD,
            *((psutil.STATUS_STOPPED,) if heard is False else ()),
        )
        return bool((same or heard) and found.status() not in gone)
    except psutil.NoSuchProcess:
        return False


def job_of_environment() -> str:
    """Return the Slurm job of this process in squeue's notation, or "" if there is none."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")


def place(runs: Path) -> str:
    """Return a name of the folder `runs` that is the same on all machines that mount it.

    The name is random digits, kept in the folder.
    """
    path = runs / PLACE
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        runs.mkdir(parents=True, exist_ok=True)
        draft = runs / f"{PLACE}.{os.getpid()}.{secrets.token_hex(4)}"
        draft.write_text(secrets.token_hex(16), encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # of several processes at once, the first one wins
        draft.unlink()
        return path.read_text(encoding="utf-8")


def _lock(folder: Path) -> Any:
    """Return the lock under which the lease is read and changed.

    The kernel releases it when its process ends, however it ends.
    """
    import filelock

    return filelock.FileLock(folder / LOCK)


def _write(folder: Path, lease: Lease) -> None:
    """Replace the lease as a whole.

    The file is not synchronised: after a crash of the machine no owner is left anyway.
    """
    content = {key: value for key, value in vars(lease).items() if key != "age"}
    write_atomic(folder / FILE, json.dumps(content))


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system of `folder`, from a new file in it.

    If no file can be created, this machine's clock is used.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()
