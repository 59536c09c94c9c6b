"""Who does a run: a lease in the run's folder, which its owner keeps alive by a heartbeat, so that no run is
ever done twice at once.

    with lease.take(folder, spec.id, heartbeat=10) as held:    # BusyError: another process, alive, does it
        held.report(progress)                                  # what others see who wait for the run
        held.check()                                           # before each write: LostError if the lease was
        taken over held.finished()
    lease.read(folder)                                         # the same for everybody else: owner, state,
    progress, age

The lease is the file `lease.json`, replaced as a whole and changed only under the lock beside it, which is
held for milliseconds. An owner on this machine is dead when its process is gone, and so at once free to be
taken over; one on another machine when three of its heartbeats are missing. Ages are taken by the clock of
the file system that all of them share, so machines need not agree on the time. What is asked of that file
system is that locks and renames hold between machines, as they do on NFS, and on Lustre mounted with `flock`.
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
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from reproduce.runs.files import write_atomic
from reproduce.runs.progress import Progress

FILE, LOCK, PLACE = "lease.json", "lease.lock", ".place"
MISSED = 3
"""Heartbeats after which an owner that cannot be seen counts as dead."""
NUMBERS, MACHINES = Path("/proc/self/ns/pid"), "pid:[4026531836]"
"""Where Linux says among which processes this one has its number, and what it says outside of all
containers."""
LONGEST = 500
"""Characters of a reason."""

State = Literal["queued", "running", "finished", "failed", "interrupted"]


class BusyError(RuntimeError):
    """Another process, which is alive, or a scheduler's job owns the run."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"Run {lease.spec_id} is being done by {lease.who}: wait for it, or stop it first.")
        self.lease = lease


class LostError(KeyboardInterrupt):
    """Somebody else owns the run now, as this process was taken for dead: it stops and writes nothing
    more."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What the file says, and how old it is."""

    spec_id: str
    token: str
    """32 hexadecimal digits, new each time that the run is taken."""
    host: str
    pid: int
    started: float
    """When the process started, in seconds since 1970: a later process of the same number is another one."""
    job: str = ""
    """A scheduler's name of the job, such as 123_4; empty: there is none."""
    heartbeat: float
    """Seconds between two beats."""
    state: State
    reason: str = ""
    """Why it failed, or was interrupted."""
    progress: Progress | None = None
    age: float = 0.0
    """Seconds since the last beat; not in the file."""

    @property
    def alive(self) -> bool:
        """Whether its owner is at work, as far as it can be seen from here; a job in a queue counts as alive
        until the queue is asked."""
        if self.state != "running":
            return self.state == "queued"
        missed = self.age > MISSED * self.heartbeat
        return (
            process_alive(self.host, self.pid, self.started, heard=not missed)
            if self.host == this_host()
            else not missed
        )

    @property
    def who(self) -> str:
        """The owner in words."""
        return f"Slurm job {self.job}" if self.job else f"process {self.pid} on {self.host}"


def read(folder: Path) -> Lease | None:
    """The lease in a run's folder; None: there is none."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        beat = path.stat().st_mtime
        progress = content.pop("progress")
        found = Lease(
            **content, progress=Progress(*progress) if progress else None, age=max(0.0, _now(folder) - beat)
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None  # a lease is replaced as a whole: what cannot be read was not written by us
    return found


def take(
    folder: Path, spec_id: str, *, heartbeat: float, job: str = "", lost: Callable[[], None] = lambda: None
) -> Held:
    """Makes this process the owner of a run; use what it returns in a `with`.

    Takes over from an owner that is dead, and from the queue if `job` is the one that was queued.

    Args:
        heartbeat: seconds between two signs of life.
        job: the scheduler's job that this process belongs to.
        lost: called in another thread when the lease is found to be somebody else's.

    Raises:
        BusyError: another process that is alive owns it, or another job that was queued.
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
    """Notes that a run waits in a scheduler's queue as `job`, which is then its owner.

    Raises:
        BusyError: it has an owner already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        found = read(folder)
        if found and found.alive and found.job != job:
            raise BusyError(found)
        if not (
            found and found.job == job
        ):  # the job may be faster than whoever submitted it, even to its end
            _write(
                folder,
                Lease(
                    spec_id=spec_id,
                    token=secrets.token_hex(16),
                    **process(),
                    job=job,
                    heartbeat=heartbeat,
                    state="queued",
                ),
            )


def drop(folder: Path, job: str) -> None:
    """Removes the note that a run waits as `job`, if that is still what is noted."""
    if not folder.is_dir():
        return
    with _lock(folder):
        found = read(folder)
        if found and found.state == "queued" and found.job == job:
            (folder / FILE).unlink(missing_ok=True)


class Held:
    """The lease of this process; in a `with` it beats, and at the end says how the run ended."""

    def __init__(self, folder: Path, lease: Lease, lost: Callable[[], None] = lambda: None) -> None:
        self.lease = lease
        self._folder, self._lost = folder, lost
        self._progress: Progress | None = None
        self._finished = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    @property
    def token(self) -> str:
        """What names this lease."""
        return self.lease.token

    def check(self) -> None:
        """To be called before whatever only the owner may write.

        Raises:
            LostError: somebody else has the lease.
        """
        found = read(self._folder)
        if found is None or found.token != self.token:
            owner = f"{found.who} has its lease now" if found else "its lease is gone"
            raise LostError(f"run {self.lease.spec_id} was taken from this process: {owner}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Inside, the lease is ours and nobody can take it.

        Raises:
            LostError: somebody else has it.
        """
        with _lock(self._folder):
            self.check()
            yield

    def report(self, progress: Progress) -> None:
        """What the next beat says."""
        self._progress = progress

    def finished(self) -> None:
        """The run is done and recorded."""
        self._finished = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        state: State = "finished" if self._finished else "interrupted" if interrupted else "failed"
        with contextlib.suppress(LostError, OSError):  # what the run itself raised matters more
            self._say(
                state, "" if self._finished else one_line(error) if error else "it ended without a result"
            )

    def _beat(self) -> None:
        while not self._ended.wait(self.lease.heartbeat):
            try:
                self._say("running")
            except LostError:
                self._lost()
                return
            except OSError:
                continue  # the file system may come back; if it does not, others will see that no beat arrives

    def _say(self, state: State, reason: str = "") -> None:
        with self.guard():
            own = {
                "spec_id": self.lease.spec_id,
                "token": self.token,
                "job": self.lease.job,
                "heartbeat": self.lease.heartbeat,
            }
            _write(
                self._folder,
                Lease(
                    **cast(Any, own),
                    **process(),
                    state=state,
                    reason=reason[:LONGEST],
                    progress=self._progress,
                ),
            )


def this_host() -> str:
    """The name of this machine; in a container also that of its processes' numbers, as several may share a
    machine and its name."""
    try:
        numbers = str(NUMBERS.readlink())
    except OSError:  # not Linux
        numbers = MACHINES
    return socket.gethostname() if numbers == MACHINES else f"{socket.gethostname()} {numbers}"


def process() -> dict[str, Any]:
    """This process, such that no later one can be taken for it: `host`, `pid` and when it `started`."""
    import psutil

    return {"host": this_host(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def process_alive(host: str, pid: int, started: float, *, heard: bool | None = None) -> bool:
    """Whether a process of this machine still is there.

    Args:
        heard: whether it gave a sign of life lately: then the clock by which it `started` may have been set
            since; if it should have and
            did not, one that was suspended counts as gone. None: it gives none.
    """
    import psutil

    assert host == this_host()
    try:
        found = psutil.Process(pid)
        same = abs(found.create_time() - started) < 2  # seconds, as the clock is set a little all the time
        gone = (
            psutil.STATUS_ZOMBIE,
            psutil.STATUS_DEAD,
            *((psutil.STATUS_STOPPED,) if heard is False else ()),
        )
        return bool((same or heard) and found.status() not in gone)
    except psutil.NoSuchProcess:
        return False


def job_of_environment() -> str:
    """The Slurm job that this process belongs to, as squeue names it; empty: none."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")


def place(runs: Path) -> str:
    """A name of the folder `runs` that is the same from every machine that mounts it: random digits, kept in
    it."""
    path = runs / PLACE
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        runs.mkdir(parents=True, exist_ok=True)
        draft = runs / f"{PLACE}.{os.getpid()}.{secrets.token_hex(4)}"
        draft.write_text(secrets.token_hex(16), encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # the first one stays, whoever else tries at the same time
        draft.unlink()
        return path.read_text(encoding="utf-8")


def one_line(error: BaseException) -> str:
    """An exception as a reason, short enough for a tag."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:LONGEST] if text else type(error).__name__


def _lock(folder: Path) -> Any:
    """The lock under which the lease is read and changed; the kernel releases it when its process ends,
    however that happens."""
    import filelock

    return filelock.FileLock(folder / LOCK)


def _write(folder: Path, lease: Lease) -> None:
    """Replaces the lease as a whole. It is not synchronised: after a crash of the machine there is no owner
    anyway."""
    content = {key: value for key, value in vars(lease).items() if key != "age"}
    write_atomic(folder / FILE, json.dumps(content))


def _now(folder: Path) -> float:
    """The time by the clock that sets the times of files in `folder`: that of a new file; ours where none may
    be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()
