"""The store's view of runs whose process, lease, disk or server really failed; no measurement is lost."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import PRETRAIN, ended
from waiting import answers, joined, received, until

from reproduce.runs import interrupt, lease
from reproduce.runs.journal import FILE, REFUSED, RESULT, Journal, Result, keep_result
from reproduce.runs.lease import Held, LostError
from reproduce.site import Site
from reproduce.tracking import retry, tags
from reproduce.tracking.errors import StoreError
from reproduce.tracking.recording import Run
from reproduce.tracking.retry import RETRY_SECONDS
from reproduce.tracking.store import AlreadyRunningError, Store
from reproduce.tracking.tags import RunState

pytestmark = pytest.mark.slow  # MLflow takes seconds to import and its store seconds to create

fork = multiprocessing.get_context("fork")


@pytest.fixture
def site(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    import mlflow.tracking  # noqa: F401, forked processes need not import it again

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(template, runs)
    return Site(runs=runs)


def ask(runs: Path, sql: str, *values: str) -> list[tuple[Any, ...]]:
    """Query the store's database directly."""
    with contextlib.closing(sqlite3.connect(runs / "mlflow.db")) as database:
        return database.execute(sql, values).fetchall()


def measured(runs: Path, key: str) -> list[tuple[int, float]]:
    """Return every row of a metric, however MLflow's client reads it."""
    return [
        (step, value)
        for step, value in ask(
            runs, "SELECT step, value FROM metrics WHERE key = ? ORDER BY step, timestamp", key
        )
    ]


def status(site: Site) -> tuple[str, RunState]:
    """Return MLflow's status of the only record of `PRETRAIN`, and the state that `invoke status` prints."""
    (row,) = [row for row in Store(site).status() if row.spec_id == PRETRAIN.id]
    ((found,),) = ask(site.runs, "SELECT status FROM runs WHERE run_uuid = ?", row.run_id)
    return found, row


def eat_memory(run: Run) -> None:
    """Fill the address space, like a process that gets no more memory from the system."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))
    eaten = []
    while True:
        eaten.append(bytearray(1_000_000))


def be_killed_for_memory(run: Run) -> None:
    """Do what the kernel does to a process when the machine is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def be_interrupted(run: Run) -> None:
    interrupt.listen()
    os.kill(os.getpid(), signal.SIGTERM)


def fail(run: Run) -> None:
    raise ValueError("no luck\nsecond line")


def leave(run: Run) -> None:
    sys.exit(3)


def attempt(site: Site, how: Callable[[Run], None], leased: bool) -> None:
    """Execute a run that measures twice and then ends in some way, like the worker.

    Args:
        leased: True to own the run's lease.
    """
    with contextlib.ExitStack() as stack:
        hold = (
            stack.enter_context(lease.take(site.runs / PRETRAIN.id, PRETRAIN.id, heartbeat=10))
            if leased
            else None
        )
        run = stack.enter_context(Store(site).start(PRETRAIN, scale="smoke", hold=hold))
        run.log(1, {"loss": 1.0})
        run.flush()
        run.log(2, {"loss": 0.5})
        how(run)


ENDS = {
    "MemoryError": (eat_memory, 1, "FAILED", "failed", "MemoryError"),
    "exception": (fail, 1, "FAILED", "failed", "ValueError: no luck"),
    "sys.exit": (leave, 3, "FAILED", "failed", "SystemExit: 3"),
    "told to stop": (be_interrupted, 1, "KILLED", "interrupted", "SIGTERM"),
    "killed for memory": (
        be_killed_for_memory,
        -9,
        "KILLED",
        "interrupted",
        "its process {pid} on {host} is gone",
    ),
}


@pytest.mark.parametrize("leased", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_the_status_is_right_however_a_run_ends(end: str, leased: bool, site: Site) -> None:
    how, code, recorded, state, reason = ENDS[end]
    assert ended(attempt, site, how, leased) == code
    owner = json.loads(ask(site.runs, "SELECT value FROM tags WHERE key = 'owner'")[0][0])
    reason = reason.format(**owner)
    assert ({"token", "place"} <= set(owner)) == leased
    _, row = status(site)
    assert (row.state, row.reason) == (state, reason)
    Store(site).mark_dead_runs()
    found, row = status(site)
    assert (found, row.state, row.reason) == (recorded, state, reason)
    assert measured(site.runs, "loss") == ([(1, 1.0)] if code == -9 else [(1, 1.0), (2, 0.5)])
    assert Store(site).finished([PRETRAIN.id]) == {}


def test_a_store_that_takes_nothing_is_told_to_a_command_in_one_line(site: Site) -> None:
    """The store is read-only, locked or broken; MLflow's error has many lines."""
    assert ended(attempt, site, be_killed_for_memory, True) == -9
    ask(site.runs, "CREATE TRIGGER no BEFORE INSERT ON tags BEGIN SELECT RAISE(ABORT, 'not today'); END")
    with pytest.raises(StoreError, match=r"mlflow\.db refuses a request: .*not today$"):
        Store(site).mark_dead_runs()


def test_a_server_that_is_stopped_while_it_is_asked_is_told_to_a_command_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server accepts the connection and closes it without an answer."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):  # at the end of the test
                while True:
                    server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            StoreError, match=f"^The tracking server {address} closed the connection: "
        ) as told:
            Store(Site(runs=tmp_path, tracking_uri=address)).finished([PRETRAIN.id])
        server.shutdown(socket.SHUT_RDWR)
    assert len(str(told.value).splitlines()) == 1


def be_killed_before_it_is_recorded(site: Site) -> None:
    """Leave a run whose lease records why it failed, while its store was unreachable."""
    with lease.take(site.runs / PRETRAIN.id, PRETRAIN.id, heartbeat=10) as held:
        Store(site).start(PRETRAIN, scale="smoke", hold=held)
        raise ValueError("no luck")


def test_a_failure_that_could_not_be_recorded_is_taken_from_the_lease(site: Site) -> None:
    assert ended(be_killed_before_it_is_recorded, site) == 1
    found, row = status(site)
    assert (found, row.state, row.reason) == ("RUNNING", "failed", "ValueError: no luck")
    assert Store(site).mark_dead_runs() == [row.run_id]
    found, row = status(site)
    assert (found, row.state, row.reason) == ("FAILED", "failed", "ValueError: no luck")


@contextlib.contextmanager
def held(site: Site) -> Iterator[Held]:
    with lease.take(site.runs / PRETRAIN.id, PRETRAIN.id, heartbeat=10) as found:
        yield found


def rewrite_lease(site: Site, **changes: object) -> None:
    """Rewrite the lease like another process that took over, or like another machine that runs it."""
    path = site.runs / PRETRAIN.id / lease.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def snapshot(site: Site) -> list[list[tuple[Any, ...]]]:
    """Return the store's whole record of all runs."""
    return [
        sorted(ask(site.runs, f"SELECT * FROM {table}"), key=repr)
        for table in ("runs", "tags", "metrics", "params")
    ]


def log(run: Run) -> None:
    run.log(2, {"loss": 0.5})
    run.flush()


WRITES: dict[str, Callable[[Run], None]] = {
    "log": log,
    "tag": lambda run: run.tag("a", "b"),
    "text": lambda run: run.text("a", "b.txt"),
    "finish": lambda run: run.finish({"top1": 0.5}),
    "an error": fail,
}


def lose(site: Site, hold: Held, how: str, before: list[Any]) -> None:
    """Write to a run after it was taken over; store the record at that moment in `before`."""
    with Store(site).start(PRETRAIN, scale="smoke", hold=hold) as run:
        run.log(1, {"loss": 1.0})
        rewrite_lease(site, token="0" * 32)
        before += snapshot(site)
        WRITES[how](run)


@pytest.mark.parametrize("how", WRITES)
def test_who_has_lost_the_lease_writes_nothing_more(how: str, site: Site) -> None:
    before: list[Any] = []
    with held(site) as found:
        with pytest.raises(ValueError if how == "an error" else LostError):
            lose(site, found, how, before)
        rewrite_lease(site, token=found.token)
    assert snapshot(site) == before
    assert not Journal(site.runs / PRETRAIN.id, PRETRAIN.id).read()


def test_a_run_with_a_lease_is_finished_under_it(site: Site) -> None:
    with held(site) as found, Store(site).start(PRETRAIN, scale="smoke", hold=found) as run:
        run.log(1, {"loss": 1.0})
        keep_result(site.runs / PRETRAIN.id, PRETRAIN.id, Result({"top1": 0.5}, "c0ffee"))
        run.finish({"top1": 0.5})
        found.finished()
    assert status(site)[0] == "FINISHED"
    assert Store(site).finished([PRETRAIN.id])[PRETRAIN.id].metrics == {"top1": 0.5}
    assert not {FILE, RESULT} & {path.name for path in (site.runs / PRETRAIN.id).iterdir()}


def test_a_run_that_finishes_while_the_dead_are_looked_for_is_none_of_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        hold = stack.enter_context(lease.take(site.runs / PRETRAIN.id, PRETRAIN.id, heartbeat=10))
        run = stack.enter_context(Store(site).start(PRETRAIN, scale="smoke", hold=hold))
        look = tags.alive

        def finish_first(*arguments: Any) -> bool | None:
            run.finish({"loss": 0.5})
            hold.finished()
            stack.close()
            return look(*arguments)

        monkeypatch.setattr(tags, "alive", finish_first)
        assert Store(site).mark_dead_runs() == []
    monkeypatch.undo()
    found, row = status(site)
    assert (found, row.state) == ("FINISHED", "finished")


def test_a_run_of_another_machine_is_known_by_its_lease(site: Site) -> None:
    """Another machine shares the folder of runs: its process is invisible, but its heartbeats are not."""
    store = Store(site)
    with held(site) as found:
        run = store.start(PRETRAIN, scale="smoke", hold=found)
        owner = json.loads(store.connection.client.get_run(run.run_id).data.tags["owner"])
        store.connection.client.set_tag(run.run_id, "owner", json.dumps(owner | {"host": "another"}))
        rewrite_lease(site, host="another")
        assert store.status()[0].state == "running"
        assert store.mark_dead_runs() == []
        with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()} on another"):
            store.start(PRETRAIN, scale="smoke")

        path = site.runs / PRETRAIN.id / lease.FILE
        os.utime(path, (time.time() - 31, time.time() - 31))  # three heartbeats of ten seconds are missing
        assert store.status()[0].state == "interrupted"
        os.utime(path)
        # Another process owns the run, but has not reached its record yet.
        rewrite_lease(site, token="0" * 32)
        assert store.status()[0].state == "interrupted"
        with store.start(PRETRAIN, scale="smoke") as second:
            assert second.run_id == run.run_id
            second.finish({})
        rewrite_lease(site, token=found.token)


def test_a_run_in_another_folder_is_not_judged_by_the_lease_here(site: Site, tmp_path: Path) -> None:
    store = Store(site)
    with held(site) as found:
        run = store.start(PRETRAIN, scale="smoke", hold=found)
        owner = json.loads(store.connection.client.get_run(run.run_id).data.tags["owner"])
        store.connection.client.set_tag(
            run.run_id, "owner", json.dumps(owner | {"host": "another", "place": "0" * 32})
        )
        rewrite_lease(site, token="0" * 32)
        assert store.mark_dead_runs() == []
        assert store.status()[0].state == "running"
        rewrite_lease(site, token=found.token)


def send_and_be_killed(site: Site) -> None:
    """Die between sending and forgetting what was sent: the file is unchanged."""
    run = Store(site).start(PRETRAIN, scale="smoke")
    for step in range(600):
        run.log(step, {"loss": 1 / (step + 3), "rank": math.nan, "lr": 0.1 + step * 1e-17})
    run._keep()
    run._journal.add(tags={"data_digest": "abc"})
    file = site.runs / PRETRAIN.id / FILE
    shutil.copy(file, file.with_suffix(".before"))
    run._deliver()
    file.with_suffix(".before").replace(file)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_sent_again_after_a_kill_is_there_once(site: Site) -> None:
    assert ended(send_and_be_killed, site) == -signal.SIGKILL
    assert len(Journal(site.runs / PRETRAIN.id, PRETRAIN.id).read().points) > 0
    before = len(measured(site.runs, "rank"))
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        assert not Journal(site.runs / PRETRAIN.id, PRETRAIN.id).read()
        assert len(measured(site.runs, "rank")) == before
        run.log(600, {"loss": 0.5})
        run.finish({})
    assert measured(site.runs, "loss") == [(step, 1 / (step + 3)) for step in range(600)] + [(600, 0.5)]
    assert Store(site).connection.client.get_run(run.run_id).data.tags["data_digest"] == "abc"


def fill_the_disk(site: Site, sender: multiprocessing.connection.Connection) -> None:
    """Measure until the store's file may not grow any more; the much smaller journal may."""
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        resource.setrlimit(
            resource.RLIMIT_FSIZE,
            ((site.runs / "mlflow.db").stat().st_size + 100_000, resource.RLIM_INFINITY),
        )
        for step in range(100_000):
            run.log(step, {"loss": 1 / (step + 3)})
            if step % 50 == 49:
                try:
                    run.flush()
                except OSError as error:
                    sender.send((step, str(error)))
                    raise


def test_a_full_disk_of_the_store_stops_the_run_and_loses_nothing(site: Site) -> None:
    receiver, sender = fork.Pipe(duplex=False)
    assert ended(fill_the_disk, site, sender) == 1
    step, message = received(receiver)
    assert "mlflow.db cannot be written (" in message
    assert "free some disk space" in message
    assert len(message.splitlines()) == 1
    found, row = status(site)
    assert (found, row.state) in (("RUNNING", "interrupted"), ("FAILED", "failed"))
    waiting = {point.step for point in Journal(site.runs / PRETRAIN.id, PRETRAIN.id).read().points}
    assert waiting >= set(range(step - 49, step + 1))
    assert ask(site.runs, "PRAGMA integrity_check") == [("ok",)]
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        run.finish({})
    assert measured(site.runs, "loss") == [(each, 1 / (each + 3)) for each in range(step + 1)]


def misname(run: Run) -> None:
    run.log(3, {"no such name?": 1.0})
    run.flush()


def test_what_the_store_refuses_is_put_aside_and_named(site: Site) -> None:
    with pytest.raises(ValueError, match=rf"refuses these measurements, now in .*{REFUSED}: .*") as caught:
        attempt(site, misname, leased=False)
    assert len(str(caught.value).splitlines()) == 1
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        run.finish({})
    assert (site.runs / PRETRAIN.id / REFUSED).exists()


class Server:
    """MLflow's server for the store of a site; it can be killed and restarted."""

    def __init__(self, site: Site, port: int, folder: Path) -> None:
        self.port = port
        self.site = replace(site, tracking_uri=f"http://127.0.0.1:{self.port}")
        command, extra = Store(site).ui_command(self.port)
        self._command, self._environment, self._log = command, {**os.environ, **extra}, folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        assert answers(self._process, f"http://127.0.0.1:{self.port}/health"), self._log.read_text()

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def measure_without_a_server(site: Site, pipe: multiprocessing.connection.Connection) -> None:
    """Measure, also while the server is gone, which must not wait for it, and be killed."""
    retry.PAUSE = 3600.0
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        for step in (1, 2, 3):
            run.log(step, {"loss": 1 / step})
            run.flush()
        pipe.send("measured")
        received(pipe)
        for step in (4, 5, 6):
            run.log(step, {"loss": 1 / step})
            run.flush()
            run.tag("note", f"of step {step}")
        pipe.send("did not wait")
        os.kill(os.getpid(), signal.SIGKILL)


def finish_when_it_comes_back(
    site: Site, pipe: multiprocessing.connection.Connection, log: Path, pause: float
) -> None:
    """Make the next attempt, which starts while the server is gone."""
    retry.PAUSE = pause
    interrupt.listen()
    logging.basicConfig(filename=log, force=True)
    try:
        with Store(site, retry_seconds=RETRY_SECONDS).start(PRETRAIN, scale="smoke") as run:
            for step in (7, 8, 9):
                run.log(step, {"loss": 1 / step})
            run.finish({"top1": 0.5})
    except interrupt.Interrupted as error:
        pipe.send(str(error))


def test_a_server_that_goes_away_costs_nothing(site: Site, port: int, tmp_path: Path) -> None:
    server = Server(site, port, tmp_path)
    here, there = fork.Pipe()
    try:
        server.start()
        first = fork.Process(target=measure_without_a_server, args=(server.site, there))
        first.start()
        assert received(here) == "measured"
        server.kill()
        here.send("go on")
        assert received(here) == "did not wait"
        joined(first)
        assert measured(site.runs, "loss") == [(step, 1 / step) for step in (1, 2, 3)]

        processes = []
        for name, pause in (("interrupted.log", 3600.0), ("finished.log", 1.0)):
            log = tmp_path / name
            process = fork.Process(target=finish_when_it_comes_back, args=(server.site, there, log, pause))
            process.start()
            processes.append(process)
            until(lambda log=log: log.exists() and "does not answer" in log.read_text(), f"a line in {name}")
        os.kill(processes[0].pid or 0, signal.SIGTERM)
        assert received(here) == "SIGTERM"
        server.start()
        assert joined(processes[1]) == 0
    finally:
        server.kill()
    assert measured(site.runs, "loss") == [(step, 1 / step) for step in range(1, 10)]
    found, row = status(site)
    assert (found, row.state, row.metrics) == ("FINISHED", "finished", {"top1": 0.5})
    assert ask(site.runs, "SELECT value FROM tags WHERE key = 'note'") == [("of step 6",)]
    assert (tmp_path / "finished.log").read_text().count("does not answer") == 1
    assert list(site.runs.glob(f"{PRETRAIN.id}/{FILE}")) == []
