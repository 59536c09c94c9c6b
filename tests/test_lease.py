"""A run has one owner: tests of taking, refusing, taking over from the dead, and stopping."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.runs import lease
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
    found = lease.read(folder)
    assert found is not None
    return found


def change(folder: Path, *, age: float = 0.0, **fields: Any) -> None:
    """Write a lease as another owner would have written it, `age` seconds ago."""
    path = folder / lease.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    beat = path.stat().st_mtime - age
    os.utime(path, (beat, beat))


def own(folder: Path, ready: Any) -> None:
    """Take the run, announce it, and hold it until this process is killed."""
    with lease.take(folder, RUN, heartbeat=BEAT):
        ready.put(os.getpid())
        signal.pause()


def owner(folder: Path) -> Any:
    """Yield a process that owns the run."""
    ready = FORK.Queue()
    process = FORK.Process(target=own, args=(folder, ready))
    process.start()
    ready.get(timeout=60)
    return process


def test_an_owner_tells_how_far_it_is_and_how_it_ended(tmp_path: Path) -> None:
    assert lease.read(tmp_path) is None
    with lease.take(tmp_path, RUN, heartbeat=BEAT) as held:
        assert present(tmp_path).alive
        assert present(tmp_path).progress is None
        held.report(Progress(3, 10, "images", "epoch 1/2"))
        assert wait(lambda: present(tmp_path).progress) == Progress(3, 10, "images", "epoch 1/2")
        held.finished()
    found = present(tmp_path)
    assert (found.state, found.reason, found.alive) == ("finished", "", False)
    assert found.who == f"process {os.getpid()} on {lease.this_host()}"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("no\nluck"), "failed"),
        (KeyboardInterrupt("SIGTERM"), "interrupted"),
        (SystemExit(1), "interrupted"),
    ],
)
def test_a_run_that_did_not_finish_says_why_and_is_free(
    error: BaseException, state: str, tmp_path: Path
) -> None:
    with pytest.raises(type(error)), lease.take(tmp_path, RUN, heartbeat=BEAT):
        raise error
    found = present(tmp_path)
    assert (found.state, found.alive) == (state, False)
    assert found.reason.startswith(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    lease.take(tmp_path, RUN, heartbeat=BEAT)


def test_a_run_whose_owner_lives_cannot_be_taken_and_one_whose_owner_was_killed_can_at_once(
    tmp_path: Path,
) -> None:
    process = owner(tmp_path)
    with pytest.raises(BusyError, match=rf"^Run {RUN} is being executed by process {process.pid} on "):
        lease.take(tmp_path, RUN, heartbeat=BEAT)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert present(tmp_path).state == "running"
    assert not present(tmp_path).alive
    lease.take(tmp_path, RUN, heartbeat=1000.0)


def test_one_of_many_that_try_at_once_becomes_the_owner(tmp_path: Path) -> None:
    start, tried, taken = FORK.Barrier(8), FORK.Barrier(8), FORK.Queue()

    def attempt() -> None:
        start.wait()
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
        process.join()


def test_an_owner_on_another_machine_is_dead_when_three_of_its_heartbeats_are_missing(tmp_path: Path) -> None:
    with lease.take(tmp_path, RUN, heartbeat=1000.0):
        pass
    change(tmp_path, host="elsewhere", state="running", heartbeat=10.0, age=29.0)
    assert present(tmp_path).alive
    with pytest.raises(BusyError, match=r"process \d+ on elsewhere"):
        lease.take(tmp_path, RUN, heartbeat=BEAT)
    change(tmp_path, age=31.0)
    assert not present(tmp_path).alive
    lease.take(tmp_path, RUN, heartbeat=BEAT)


def test_an_owner_in_a_container_with_the_name_of_this_machine_is_judged_by_its_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `docker run --network=host`: the same process numbers mean other processes."""
    monkeypatch.setattr(Path, "readlink", lambda path: Path("pid:[4026532571]"))
    lease.take(tmp_path, RUN, heartbeat=10.0)
    monkeypatch.undo()
    change(tmp_path, pid=999_999_999, age=29.0)
    assert present(tmp_path).alive
    change(tmp_path, age=31.0)
    assert not present(tmp_path).alive


def test_a_clock_that_is_set_kills_no_owner_that_is_heard_of(tmp_path: Path) -> None:
    """After a sleep or a change of the clock, the same processes have other start times.

    The number may also belong to another process.
    """
    with lease.take(tmp_path, RUN, heartbeat=1000.0):
        change(tmp_path, started=0.0, heartbeat=10.0, age=29.0)
        assert present(tmp_path).alive
        change(tmp_path, age=31.0)
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
        f"process {os.getpid()} on {lease.this_host()} has its lease now"
    ] * 2
    process.join()
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
    thread.join()
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
    lease.drop(tmp_path, "13_0")
    assert present(tmp_path).job == "12_3", "of another job"
    held = lease.take(tmp_path, RUN, heartbeat=1000.0, job="12_3")
    lease.queue(tmp_path, RUN, job="12_3", heartbeat=BEAT)  # the submitter was slower than its job
    lease.drop(tmp_path, "12_3")
    held.check()
    assert present(tmp_path).state == "running"


def test_a_lease_that_cannot_be_read_is_nobodys(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"spec_id": "x"}'):
        (tmp_path / lease.FILE).write_text(content)
        assert lease.read(tmp_path) is None
    lease.take(tmp_path, RUN, heartbeat=BEAT)


def test_the_place_of_runs_has_one_name_whoever_asks_first(tmp_path: Path) -> None:
    names = FORK.Queue()
    processes = [FORK.Process(target=lambda: names.put(lease.place(tmp_path / "runs"))) for _ in range(4)]
    for process in processes:
        process.start()
    found = {names.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert found == {lease.place(tmp_path / "runs")}
    assert found != {lease.place(tmp_path / "others")}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [lease.PLACE]


def test_the_job_of_a_process_is_named_as_squeue_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert lease.job_of_environment() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    assert lease.job_of_environment() == "15"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert lease.job_of_environment() == "12_0"
