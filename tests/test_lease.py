"""A run has one owner: tests of taking, refusing, taking over from the dead, and stopping."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import joined, thread_joined

from reproduce.runs import lease, place, processes
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.lease import BusyError, Lease, LostError
from reproduce.runs.progress import Progress

RUN = "0123456789ab"
BEAT = 0.2
"""Seconds between two heartbeats."""
FORK = multiprocessing.get_context("fork")


def wait(condition: Callable[[], Any]) -> Any:
    """Poll until the condition holds, for at most a minute."""
    for _ in range(6000):
        if found := condition():
            return found
        threading.Event().wait(0.01)
    pytest.fail("It did not become true in a minute.")


def present(folder: Path) -> Lease:
    found = lease.read(folder, RUN)
    assert found is not None
    return found


def change(folder: Path, *, age: float = 0.0, **fields: Any) -> None:
    """Write a lease as another owner would have written it, `age` seconds ago."""
    path = folder / lease.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    beat = path.stat().st_mtime - age
    os.utime(path, (beat, beat))


def own(folder: Path, ready: Any, heartbeat: float = BEAT) -> None:
    """Take the run, announce it, and hold it until this process is killed."""
    with lease.take(folder, RUN, heartbeat=heartbeat):
        ready.put(os.getpid())
        signal.pause()


def owner(folder: Path, own: Callable[[Path, Any], None] = own) -> Any:
    """Return a process that owns the run."""
    ready = FORK.Queue()
    process = FORK.Process(target=own, args=(folder, ready), daemon=True)
    process.start()
    ready.get(timeout=60)
    return process


def test_an_owner_tells_how_far_it_is_and_how_it_ended(tmp_path: Path) -> None:
    assert lease.read(tmp_path, RUN) is None
    with lease.take(tmp_path, RUN, heartbeat=BEAT) as held:
        assert present(tmp_path).alive
        assert present(tmp_path).progress is None
        held.report(Progress(3, 10, "images", "epoch 1/2"))
        assert wait(lambda: present(tmp_path).progress) == Progress(3, 10, "images", "epoch 1/2")
        held.finished()
    found = present(tmp_path)
    assert (found.state, found.reason, found.alive) == ("finished", "", False)
    assert found.who == f"process {os.getpid()} on {processes.this_host()}"


def test_the_time_left_follows_from_the_speed_since_a_stage_began(tmp_path: Path) -> None:
    """From 40 of 100 images on, 20 images in some seconds; then another stage of 10 images."""
    with lease.take(tmp_path, RUN, heartbeat=0.05) as held:
        earliest = time.monotonic()
        held.report(Progress(40, 100, "images", ""))
        since = time.monotonic()
        assert wait(lambda: present(tmp_path).progress)
        assert present(tmp_path).left is None
        time.sleep(0.2)
        until = time.monotonic()
        held.report(Progress(60, 100, "images", ""))
        latest = time.monotonic()
        assert wait(lambda: present(tmp_path).rate)
        left = present(tmp_path).left
        assert left is not None
        assert 40 / 20 * (until - since) <= left + 1e-3
        assert 40 / 20 * (latest - earliest) >= left - 1e-3
        held.report(Progress(1, 10, "images", "testing"))
        assert wait(lambda: present(tmp_path).progress == Progress(1, 10, "images", "testing") or None)
        assert present(tmp_path).left is None


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ValueError("no\nluck"), "failed", "ValueError: no"),
        (Interrupted("SIGTERM"), "interrupted", "SIGTERM"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(1), "interrupted", "SystemExit: 1"),
    ],
)
def test_a_run_that_did_not_finish_says_why_and_is_free(
    error: BaseException, state: str, reason: str, tmp_path: Path
) -> None:
    """The state comes before the reason in a plan, so the reason does not repeat it."""
    with pytest.raises(type(error)), lease.take(tmp_path, RUN, heartbeat=BEAT):
        raise error
    found = present(tmp_path)
    assert (found.state, found.alive, found.reason) == (state, False, reason)
    lease.take(tmp_path, RUN, heartbeat=BEAT)


def test_a_run_whose_owner_lives_cannot_be_taken_and_one_whose_owner_was_killed_can_at_once(
    tmp_path: Path,
) -> None:
    process = owner(tmp_path)
    with pytest.raises(BusyError, match=rf"^Run {RUN} is being executed by process {process.pid} on "):
        lease.take(tmp_path, RUN, heartbeat=BEAT)
    os.kill(process.pid, signal.SIGKILL)
    joined(process)
    assert present(tmp_path).state == "running"
    assert not present(tmp_path).alive
    lease.take(tmp_path, RUN, heartbeat=1000.0)


def test_one_of_many_that_try_at_once_becomes_the_owner(tmp_path: Path) -> None:
    start, tried, taken = FORK.Barrier(8), FORK.Barrier(8), FORK.Queue()

    def attempt() -> None:
        start.wait(60)
        try:
            with lease.take(tmp_path, RUN, heartbeat=BEAT):
                taken.put(True)
                tried.wait(60)
        except BusyError:
            taken.put(False)
            tried.wait(60)

    processes = [FORK.Process(target=attempt) for _ in range(8)]
    for process in processes:
        process.start()
    assert sum(taken.get(timeout=60) for _ in processes) == 1
    for process in processes:
        joined(process)


def test_an_owner_on_another_machine_is_dead_when_three_of_its_heartbeats_are_missing(tmp_path: Path) -> None:
    with lease.take(tmp_path, RUN, heartbeat=1000.0):
        pass
    change(tmp_path, host="elsewhere", state="running", heartbeat=1000.0, age=2900.0)
    assert present(tmp_path).alive
    with pytest.raises(BusyError, match=r"process \d+ on elsewhere"):
        lease.take(tmp_path, RUN, heartbeat=BEAT)
    change(tmp_path, age=3100.0)
    assert not present(tmp_path).alive
    lease.take(tmp_path, RUN, heartbeat=BEAT)


def own_elsewhere(folder: Path, ready: Any) -> None:
    """Own the run on a machine with another name, with heartbeats that a busy machine does not miss."""
    socket.gethostname = lambda: "elsewhere"
    own(folder, ready, 0.5)


def test_an_owner_on_another_machine_lives_for_as_long_as_its_heartbeats_arrive(tmp_path: Path) -> None:
    """The process is alive either way; only its heartbeats count."""
    process = owner(tmp_path, own_elsewhere)
    heartbeats = set()
    while len(heartbeats) < lease.MISSED + 2:
        with pytest.raises(BusyError, match="on elsewhere"):
            lease.take(tmp_path, RUN, heartbeat=BEAT)
        heartbeats.add(lease.mark(tmp_path))
        threading.Event().wait(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    wait(lambda: not present(tmp_path).alive)
    lease.take(tmp_path, RUN, heartbeat=1000.0)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_an_owner_in_a_container_with_the_name_of_this_machine_is_judged_by_its_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `docker run --network=host`: the same process numbers mean other processes."""
    monkeypatch.setattr(Path, "readlink", lambda path: Path("pid:[4026532571]"))
    lease.take(tmp_path, RUN, heartbeat=1000.0)
    monkeypatch.undo()
    change(tmp_path, pid=999_999_999, age=2900.0)
    assert present(tmp_path).alive
    change(tmp_path, age=3100.0)
    assert not present(tmp_path).alive


def test_a_clock_that_is_set_kills_no_owner_that_is_heard_of(tmp_path: Path) -> None:
    """After a sleep or a change of the clock, the same processes have other start times.

    The number may also belong to another process.
    """
    with lease.take(tmp_path, RUN, heartbeat=1000.0):
        change(tmp_path, started=0.0, heartbeat=1000.0, age=2900.0)
        assert present(tmp_path).alive
        change(tmp_path, age=3100.0)
        assert not present(tmp_path).alive


def test_a_suspended_owner_loses_its_run_and_stops_before_it_writes(tmp_path: Path) -> None:
    """As on a machine that was put to sleep: it wakes up and assumes that it still owns the run."""
    log = tmp_path / "written"

    def train(ready: Any) -> None:
        lost = threading.Event()
        with lease.take(tmp_path, RUN, heartbeat=BEAT, lost=lost.set) as held:
            ready.put(os.getpid())
            lost.wait(60)
            for write in (held.check, held.guard().__enter__):
                try:
                    write()
                    log.write_text("it wrote")
                except LostError as error:
                    ready.put(str(error))

    ready = FORK.Queue()
    process = FORK.Process(target=train, args=(ready,))
    process.start()
    os.kill(ready.get(timeout=60), signal.SIGSTOP)
    wait(lambda: not present(tmp_path).alive)
    held = lease.take(tmp_path, RUN, heartbeat=1000.0)
    os.kill(process.pid, signal.SIGCONT)
    assert [ready.get(timeout=60) for _ in range(2)] == [
        f"run {RUN} was taken from this process: "
        f"process {os.getpid()} on {processes.this_host()} has its lease now"
    ] * 2
    joined(process)
    assert not log.exists()
    assert present(tmp_path).token == held.token, "the loser left the lease as it was"


def test_nobody_takes_a_run_while_its_completion_is_written(tmp_path: Path) -> None:
    held = lease.take(tmp_path, RUN, heartbeat=BEAT)
    taken = threading.Event()

    def other() -> None:
        lease.take(tmp_path, RUN, heartbeat=BEAT)
        taken.set()

    with held.guard():
        change(tmp_path, host="elsewhere", age=60.0)  # it looks dead
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        assert not taken.wait(0.3)
    assert taken.wait(60)
    thread_joined(thread)
    with pytest.raises(LostError):
        held.check()


def test_a_queued_run_belongs_to_its_job(tmp_path: Path) -> None:
    lease.queue(tmp_path, RUN, job="12_3", heartbeat=BEAT)
    assert present(tmp_path).who == "Slurm job 12_3"
    for take in (
        lambda: lease.take(tmp_path, RUN, heartbeat=BEAT),
        lambda: lease.queue(tmp_path, RUN, job="13_0", heartbeat=BEAT),
    ):
        with pytest.raises(BusyError, match="Slurm job 12_3"):
            take()
    lease.drop(tmp_path, RUN, "13_0")
    assert present(tmp_path).job == "12_3", "of another job"
    held = lease.take(tmp_path, RUN, heartbeat=1000.0, job="12_3")
    lease.queue(tmp_path, RUN, job="12_3", heartbeat=BEAT)  # the submitter was slower than its job
    lease.drop(tmp_path, RUN, "12_3")
    held.check()
    assert present(tmp_path).state == "running"


LEASE = {
    "spec_id": RUN,
    "token": "0" * 32,
    "host": "elsewhere",
    "pid": 7,
    "started": 1.0,
    "job": "",
    "heartbeat": 10.0,
    "state": "running",
    "reason": "",
    "progress": None,
}
"""A sound lease of a process on another machine."""
BROKEN: dict[str, Any] = {
    "empty": "",
    "cut": "{",
    "a list": "[]",
    "a number": "7",
    "not UTF-8": b"\xff\xfe\x00",
    "deep": "[" * 50_000 + "]" * 50_000,
    "long digits": '{"pid": ' + "9" * 5000 + "}",
    "too large": " " * 200_000,
    "a field is missing": {"token": None},
    "one field more": {"also": 1},
    "a token that is a number": {"token": 7},
    "a host with a line": {"host": "a\nb"},
    "half a character": {"host": "\ud800"},
    "a process number that is a text": {"pid": "7"},
    "a process number that is true": {"pid": True},
    "a process number below 1": {"pid": 0},
    "a process number that no system has": {"pid": 10**400},
    "a start that is not a number": {"started": float("nan")},
    "an endless heartbeat": {"heartbeat": float("inf")},
    "a heartbeat below 0": {"heartbeat": -1.0},
    "an unknown state": {"state": "asleep"},
    "a state that no file has": {"state": "unreadable"},
    "an age": {"age": 0.0},
    "progress of one": {"progress": [1]},
    "a negative rate": {"rate": -1},
    "a rate in words": {"rate": "fast"},
    "progress in words": {"progress": ["half", 2, "images", ""]},
}


def broken(path: Path, how: str) -> None:
    """Make the file at `path` a lease that is broken in some way."""
    what = BROKEN[how]
    if isinstance(what, dict):
        fields = LEASE | what
        if how == "a field is missing":
            del fields["token"]
        what = json.dumps(fields)
    path.write_bytes(what if isinstance(what, bytes) else what.encode())


def odd(path: Path, how: str) -> None:
    """Make something at `path` that is not a readable file."""
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "a link to itself":
        path.symlink_to(path)
    elif how == "the file of a huge disk":
        path.touch()
        os.truncate(path, 10**12)


ODD = ("a folder", "a pipe", "a link to itself", "the file of a huge disk")


@pytest.mark.parametrize("how", [*BROKEN, *ODD])
def test_a_lease_that_cannot_be_read_may_be_a_live_owners_until_it_is_freed_by_hand(
    how: str, tmp_path: Path
) -> None:
    path = tmp_path / lease.FILE
    (broken if how in BROKEN else odd)(path, how)
    assert present(tmp_path).state == "unreadable"
    assert present(tmp_path).alive
    for take in (
        lambda: lease.take(tmp_path, RUN, heartbeat=BEAT),
        lambda: lease.queue(tmp_path, RUN, job="7_0", heartbeat=BEAT),
    ):
        with pytest.raises(
            BusyError, match=r"^Run .* by an unknown process \(lease\.json cannot be read: .+\)\.$"
        ):
            take()
    assert lease.free(tmp_path, RUN, lease.mark(tmp_path))
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(f"{lease.FILE}.unreadable-")]
    lease.take(tmp_path, RUN, heartbeat=BEAT)


def test_a_sound_lease_is_read(tmp_path: Path) -> None:
    (tmp_path / lease.FILE).write_text(json.dumps(LEASE))
    assert present(tmp_path).who == "process 7 on elsewhere"
    (tmp_path / lease.FILE).write_text(
        json.dumps(LEASE | {"reason": "a\x1b[2Jb", "progress": [1, 2, "images", "\x07"]})
    )
    assert (present(tmp_path).reason, present(tmp_path).progress) == ("a [2Jb", Progress(1, 2, "images", " "))


def test_a_lease_that_must_not_be_read_is_somebodys() -> None:
    """As an ordinary user, for whom the file is forbidden; root becomes one in another process."""
    results = FORK.Queue()

    def other(folder: Path) -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            lease.take(folder, RUN, heartbeat=BEAT)
        except BusyError as error:
            results.put(str(error))

    with tempfile.TemporaryDirectory() as folder:  # an ordinary user cannot enter `tmp_path`
        Path(folder).chmod(0o777)
        with lease.take(Path(folder), RUN, heartbeat=1000.0):
            (Path(folder) / lease.LOCK).chmod(0o666)
            (Path(folder) / lease.FILE).chmod(0)
            process = FORK.Process(target=other, args=(Path(folder),))
            process.start()
            assert "lease.json cannot be read: Permission denied" in results.get(timeout=60)
            joined(process)


def test_the_lease_of_another_run_is_none_of_this_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a copy of a run's folder: its owner lives, but executes another run."""
    with lease.take(tmp_path / "a", "a" * 12, heartbeat=1000.0):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert lease.read(tmp_path / "b", RUN) is None
        assert lease.read(tmp_path / "b", RUN) is None
        assert caplog.text.count("is the lease of run aaaaaaaaaaaa, not of 0123456789ab") == 1
        lease.take(tmp_path / "b", RUN, heartbeat=BEAT)


def exhausted() -> list[int]:
    """Open files until the system refuses more; the caller lowers the limit before."""
    found = []
    with contextlib.suppress(OSError):
        while True:
            found.append(os.open(os.devnull, os.O_RDONLY))
    return found


def own_without_descriptors(folder: Path, results: Any) -> None:
    """Own a run while this process cannot open any file, for some and for too many heartbeats."""
    most = max(int(each.name) for each in Path("/proc/self/fd").iterdir()) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    lost: list[str] = []
    with lease.take(folder, RUN, heartbeat=BEAT, lost=lambda: lost.append("lost")) as held:
        files = exhausted()
        held.check()
        for _ in range(600):  # until the owner does not know any more
            try:
                held.check()
            except OSError as error:
                problem = str(error)
                break
            threading.Event().wait(0.01)
        with contextlib.suppress(OSError), held.guard():
            problem = "guarded without a lock"
        for each in files:
            os.close(each)
        held.check()
        with held.guard():
            results.put((problem, lost))
        held.finished()


def test_an_owner_without_free_descriptors_keeps_its_run_and_says_when_it_does_not_know(
    tmp_path: Path,
) -> None:
    results = FORK.Queue()
    process = FORK.Process(target=own_without_descriptors, args=(tmp_path, results))
    process.start()
    problem, lost = results.get(timeout=60)
    joined(process)
    assert f"the lease of run {RUN} cannot be read (OSError: [Errno 24] Too many open files" in problem
    assert lost == []
    assert present(tmp_path).state == "finished"


def test_a_run_that_was_freed_by_hand_is_lost_to_its_owner(tmp_path: Path) -> None:
    lost = threading.Event()
    with contextlib.suppress(LostError), lease.take(tmp_path, RUN, heartbeat=BEAT, lost=lost.set) as held:
        seen = lease.mark(tmp_path)
        wait(lambda: lease.mark(tmp_path) != seen)
        assert not lease.free(tmp_path, RUN, seen), "the owner has sent a heartbeat since"
        wait(lambda: lease.free(tmp_path, RUN, lease.mark(tmp_path)))
        assert lost.wait(60)
        for write in (held.check, held.guard().__enter__):
            with pytest.raises(
                LostError, match=f"{RUN} was taken from this process: freed by hand, from process"
            ):
                write()
        raise LostError
    assert (present(tmp_path).state, present(tmp_path).alive) == ("interrupted", False)
    lease.take(tmp_path, RUN, heartbeat=BEAT)


def test_a_heartbeat_in_the_future_keeps_a_run_and_is_doubtful(tmp_path: Path) -> None:
    (tmp_path / lease.FILE).write_text(json.dumps(LEASE))
    change(tmp_path, age=-3 * 3600.0)
    assert present(tmp_path).alive
    with pytest.raises(
        BusyError,
        match=r"process 7 on elsewhere \(its last heartbeat lies 3 h in the future; .*`invoke unlock 012",
    ):
        lease.take(tmp_path, RUN, heartbeat=BEAT)
    change(tmp_path, age=-5.0)
    assert present(tmp_path).doubt == "", "clocks differ by seconds"


def test_the_place_of_runs_has_one_name_whoever_asks_first(tmp_path: Path) -> None:
    names = FORK.Queue()
    processes = [FORK.Process(target=lambda: names.put(place.place(tmp_path / "runs"))) for _ in range(4)]
    for process in processes:
        process.start()
    found = {names.get(timeout=60) for _ in processes}
    for process in processes:
        joined(process)
    assert found == {place.place(tmp_path / "runs")}
    assert found != {place.place(tmp_path / "others")}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [place.FILE]


@pytest.mark.parametrize("content", [b"", b"\0" * 32, b"0" * 31])
def test_a_folder_whose_name_is_damaged_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / place.FILE).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"\.place does not contain the 32 hexadecimal digits .*: delete it\.$"
    ):
        place.place(tmp_path)
    (tmp_path / place.FILE).unlink()
    os.mkfifo(tmp_path / place.FILE)
    with pytest.raises(
        ValueError, match=r"\.place, the name of this folder, cannot be read \(Not a regular file"
    ):
        place.place(tmp_path)


def test_the_job_of_a_process_is_named_as_squeue_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert processes.job_of_environment() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    assert processes.job_of_environment() == "15"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert processes.job_of_environment() == "12_0"
