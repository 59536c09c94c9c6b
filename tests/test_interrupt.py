"""Runs that receive a stop request: what they leave, and that they resume to the same numbers as others."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT, Home
from toys import CPU, Notes, on_two_processes
from waiting import limited, thread_joined

from reproduce.data import ahead
from reproduce.data.images import batches
from reproduce.data.synthetic import SyntheticFolder
from reproduce.launch.local import GRACE
from reproduce.methods.method import Part
from reproduce.nn import distributed
from reproduce.nn.encoder import FILE
from reproduce.plan import Request
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.tracking.store import Store
from reproduce.train import Meter, pretrain
from reproduce.worker import serve

EPOCHS, STEPS, BATCH = 2, 5, 16
"""Settings of the runs in this process."""


# Requests


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Listen for signals; none counts as an echo of another test's."""
    monkeypatch.setattr(interrupt, "_request", interrupt._Request())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_at_once_where_nobody_is_patient(listening: None, number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=rf"^{number.name}$"):
        os.kill(os.getpid(), number)


def test_a_deferred_signal_waits_until_the_code_looks(listening: None) -> None:
    looked = []

    def work() -> None:
        with interrupt.deferred() as asked:
            looked.append(asked())
            with interrupt.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
            looked.append(asked())
            interrupt.stop(asked())

    with pytest.raises(Interrupted, match=r"^SIGTERM$"):
        work()
    assert looked == ["", "SIGTERM"]
    with interrupt.deferred() as asked:
        assert asked() == "", "an old request must not stop what is begun after it"


def test_a_request_that_nobody_looked_for_is_not_lost(listening: None) -> None:
    with pytest.raises(Interrupted, match=r"^SIGINT$"), interrupt.deferred():
        os.kill(os.getpid(), signal.SIGINT)


def test_an_error_that_comes_of_the_request_is_an_interruption(listening: None) -> None:
    def fail() -> None:
        with interrupt.deferred():
            interrupt.ask("asked")
            raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    with pytest.raises(Interrupted, match=r"^asked$") as caught:
        fail()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_second_signal_is_an_echo_at_first_and_raises_later(
    listening: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = []

    def work() -> None:
        with interrupt.deferred():
            # The second is the one that torchrun sends after the terminal's SIGINT.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
                passed.append(number)
                if len(passed) == 2:
                    monkeypatch.setattr(interrupt, "ECHO", 0.0)

    with pytest.raises(Interrupted, match=r"^SIGINT$"):
        work()
    assert len(passed) == 2


def test_another_thread_stops_a_main_thread_that_waits(listening: None) -> None:
    thread = threading.Thread(target=interrupt.ask, args=("its parent is gone",))

    def wait() -> None:
        thread.start()
        time.sleep(60)  # is what is interrupted

    with pytest.raises(Interrupted, match=r"^its parent is gone$"):
        wait()
    thread_joined(thread)


# Images that are decoded by other processes


def test_decoders_outlive_a_signal_to_the_whole_group_and_end_with_the_loop(tmp_path: Path) -> None:
    images = SyntheticFolder(num_train=192, num_val=20).load("train", Site(runs=tmp_path, cache_gb=0))
    before = set(psutil.Process().children())
    shown = batches(images, range(192), 32, workers=2)
    found = [next(shown), next(shown)]  # one of each: both have begun
    decoders = set(psutil.Process().children()) - before
    assert len(decoders) == 2
    for decoder in decoders:
        for number in (signal.SIGTERM, signal.SIGINT):
            # A process sends them that is not the decoders' parent.
            subprocess.run(["kill", f"-{number.value}", str(decoder.pid)], check=True)
    found += shown
    assert torch.equal(torch.cat([batch.indices for batch in found]), torch.arange(192))
    _, alive = psutil.wait_procs(decoders, timeout=20)
    assert not alive
    shown = batches(images, range(192), 32, workers=1)
    next(shown)
    (decoder,) = set(psutil.Process().children()) - before
    decoder.terminate()  # by their parent: it ends
    assert decoder.wait(20) is not None
    shown.close()


# Training in this process


def spec(epochs: int = EPOCHS) -> Pretrain:
    changes = (f"epochs={epochs}", f"batch_size={BATCH}", f"num_train={STEPS * BATCH}", "num_val=20")
    found = Request(table="table8", rows="BYOL", changes=changes).specs()[0]
    assert isinstance(found, Pretrain)
    return found


def train(
    site: Site,
    name: str,
    stop_at: int | None = None,
    strike: Callable[[], None] = lambda: interrupt.ask("a test"),
) -> Notes:
    """Resume in the folder `name` and return the record; call `strike` during step `stop_at` (from 1)."""
    notes = Notes()

    def report(progress: Progress) -> None:
        if progress.done == (stop_at or 0) * BATCH:
            strike()

    notes.logged[0] = pretrain(spec(), site, site.runs / name, CPU, notes, report)
    return notes


def steady(metrics: dict[str, float]) -> dict[str, float]:
    """Return a record without the values that depend on the clock."""
    return {key: value for key, value in metrics.items() if key != "images_per_second"}


def weights(folder: Path) -> bytes:
    """Return an encoder's file without its header, whose keys have no fixed order."""
    content = (folder / FILE).read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def left(folder: Path) -> list[str]:
    """Return the names of the files that a run left."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_stopped_in_the_middle_of_an_epoch_ends_bit_equal(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    whole = train(site, "whole")
    with pytest.raises(Interrupted, match="a test"):
        train(site, "struck", stop_at=2)
    assert left(tmp_path / "struck") == ["epoch-00000-step-000002-of-000005.pt"]
    assert checkpoint.newest(tmp_path / "struck", spec().id) == pytest.approx(2 / 5)
    with pytest.raises(Interrupted):
        train(site, "struck", stop_at=5)
    assert checkpoint.newest(tmp_path / "struck", spec().id) == 1
    with pytest.raises(Interrupted):
        train(site, "struck", stop_at=7)
    with pytest.raises(Interrupted):
        train(site, "struck", stop_at=9)
    assert left(tmp_path / "struck") == [
        "epoch-00001-step-000002-of-000005.pt",
        "epoch-00001-step-000004-of-000005.pt",
    ]
    last = train(site, "struck")
    assert steady(last.logged[0]) == steady(whole.logged[0])
    assert last.logged.keys() == {0, 10}, "what was measured before is not measured again"
    assert steady(last.logged[10]) == steady(whole.logged[10])
    assert weights(tmp_path / "struck") == weights(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_batches_that_are_prepared_ahead_change_no_bit_and_end_with_a_run_that_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, before = train(Site(runs=tmp_path, cache_gb=0), "whole"), set(psutil.Process().children())
    monkeypatch.setitem(ahead.DEPTH, "cpu", 2)
    for name, site in {
        "by processes": Site(runs=tmp_path, cache_gb=0, workers=2),
        "from memory": Site(runs=tmp_path, workers=0),
    }.items():
        with pytest.raises(Interrupted):
            train(site, name, stop_at=3)
        last = train(site, name)
        assert steady(last.logged[10]) == steady(whole.logged[10])
        assert weights(tmp_path / name) == weights(tmp_path / "whole")

        def lost() -> None:
            raise BrokenPipeError

        with pytest.raises(BrokenPipeError):  # in the loop, with batches ahead
            train(site, f"{name}, failed", stop_at=4, strike=lost)
        assert not {ahead.NAME, "decode_0"} & {thread.name for thread in threading.enumerate()}
        assert not set(psutil.Process().children()) - before


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_lost_lease_writes_nothing(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    with pytest.raises(Interrupted):
        train(site, "run", stop_at=STEPS)
    before = left(tmp_path / "run")

    def hold() -> None:
        raise Interrupted("lost")

    with pytest.raises(Interrupted, match="lost"):
        pretrain(spec(), site, tmp_path / "run", CPU, Notes(), lambda progress: None, hold)
    assert left(tmp_path / "run") == before
    assert train(site, "run").logged.keys() == {0, 10}


# Two processes


def two(folder: Path) -> list[Any]:
    """Return what each of two processes finds.

    There are three trainings: a whole one, one in which only the second process receives a stop request, and
    one that a single process began. A checkpoint is due as soon as rank 0 has written the one before.
    """
    interrupt.listen()
    site, found = Site(runs=folder, checkpoint_seconds=1e-9), []
    whole = train(site, "whole")
    found.append(steady(whole.logged[0]))
    try:
        train(site, "struck", 2, lambda: distributed.rank() == 1 and os.kill(os.getpid(), signal.SIGTERM))
    except Interrupted as error:
        found.append(str(error))
    found.append(left(folder / "struck"))
    assert distributed.anyone(distributed.rank() == 1)
    assert not distributed.anyone(False)
    found += [steady(train(site, name).logged[0]) for name in ("struck", "from one")]
    with contextlib.suppress(Interrupted):
        train(site, "to one", 7)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_processes_stop_at_the_same_step_and_go_on_as_one_or_as_two(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    alone = steady(train(site, "alone").logged[0])
    with pytest.raises(Interrupted):
        train(site, "from one", stop_at=3)
    (first, second) = on_two_processes(two, tmp_path, tmp_path)
    whole, reason, names, struck, from_one = first
    assert (reason, second[1]) == (interrupt.ELSEWHERE, "SIGTERM")
    assert names == ["epoch-00000-step-000001-of-000005.pt", "epoch-00000-step-000002-of-000005.pt"]
    assert struck == whole, "as one that was not stopped, bit for bit"
    assert checkpoint.newest(tmp_path / "to one", spec().id) == pytest.approx(7 / 5)
    to_one = steady(train(site, "to one").logged[0])
    for found in (whole, from_one, to_one):
        # Rounding grows: a ReLU's input close to 0 may change its sign.
        assert found == pytest.approx(alone, rel=5e-3)


def test_the_speed_of_an_epoch_that_was_interrupted_counts_the_time_of_all_its_images() -> None:
    first, second = Meter(), Meter()
    first.add(Part(torch.tensor(1.0), {}, torch.randn(8, 4)))
    first.count(64)
    second.load_state_dict(first.state_dict() | {"seconds": 100.0}, CPU)
    second.add(Part(torch.tensor(1.0), {}, torch.randn(8, 4)))
    second.count(64)
    assert second.read(1)["images_per_second"] == pytest.approx(128 / 100, rel=0.1)


# The worker


LONG = 30
"""Steps of an epoch: more than the time to report and to be interrupted."""
REQUEST = Request(
    table="table8",
    rows="BYOL",
    changes=("epochs=2", f"batch_size={BATCH}", f"dataset.num_train={LONG * BATCH}", "dataset.num_val=40"),
)


def start(home: Home) -> subprocess.Popen[str]:
    """Start the worker of the pretraining run in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "reproduce.worker", REQUEST.dumps(), REQUEST.specs()[0].id],
        cwd=ROOT,
        env=home.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def strike(home: Home, number: signal.Signals, step: int) -> tuple[int, float]:
    """Send a signal once the worker reports `step` steps; return its exit code and the seconds until its end.

    The worker reports its first step, and then every half second: many steps of a fast machine.
    """
    worker = start(home)
    try:
        assert worker.stdout is not None
        with limited(worker):
            for line in worker.stdout:
                event = json.loads(line)
                if event["event"] == "progress" and event["done"] >= step * BATCH:
                    break
            else:
                pytest.fail(f"the worker ended: {worker.communicate()}")
        children = psutil.Process(worker.pid).children(recursive=True)
        struck = time.monotonic()
        worker.send_signal(number)
        worker.communicate(timeout=60)
        took = time.monotonic() - struck
        assert not psutil.wait_procs(children, timeout=20)[1]
        return worker.returncode, took
    finally:
        worker.kill()
        worker.communicate()


class AtOnce(threading.Thread):
    """A thread that has finished when it has been started."""

    def start(self) -> None:
        self.run()


def test_a_worker_whose_input_ended_before_it_looked_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Ctrl-C while workers start: the input contains the run and has ended."""
    order = json.dumps({"request": REQUEST.dumps(), "id": "0123456789ab"})
    monkeypatch.setattr("sys.stdin", io.StringIO(order + "\n"))
    monkeypatch.setattr(threading, "Thread", AtOnce)
    events = io.StringIO()
    serve(Site(runs=tmp_path), events)
    assert events.getvalue() == ""


@pytest.mark.slow
def test_a_worker_that_waits_for_orders_can_start_processes_that_decode(tmp_path: Path) -> None:
    """A forked process closes standard input, which a thread of the worker is reading."""
    script = (
        "import multiprocessing, queue, threading; from reproduce import worker\n"
        "reading = (worker._input(), queue.Queue(), threading.Event(), threading.Event())\n"
        "threading.Thread(target=worker._listen, args=reading, daemon=True).start()\n"
        "assert reading[1].get() == 'an order\\n'\n"
        "forked = multiprocessing.get_context('fork').Process(target=print, args=('forked',))\n"
        "forked.start(); forked.join(20); print(forked.exitcode, flush=True); forked.kill()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("an order\n")
    process.stdin.flush()
    with limited(process):
        assert process.stdout.read().split() == ["forked", "0"]
    process.communicate(timeout=20)


def query(home: Home, sql: str) -> list[tuple[Any, ...]]:
    """Query the store's database directly, without MLflow."""
    with contextlib.closing(sqlite3.connect(home.runs / "mlflow.db")) as database:
        return database.execute(sql).fetchall()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_worker_that_is_struck_in_the_middle_of_an_epoch_stops_within_seconds_and_goes_on_bit_equal(
    place: Home,
) -> None:
    run: Any = REQUEST.specs()[0]
    folder, store = place.runs / run.id, Store(Site(runs=place.runs))
    done, inside = 0.0, []
    for number, step in ((signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGINT, LONG + 2)):
        code, took = strike(place, number, step)
        assert took < GRACE, "a command would have killed it before it had stopped"
        assert not (folder / FILE).exists()
        (row,) = store.status()
        assert (row.spec_id, row.state, number.name in row.reason) == (
            run.id,
            "interrupted",
            number != signal.SIGKILL,
        )
        if number == signal.SIGKILL:
            assert (code, checkpoint.newest(folder, run.id)) == (-9, done)
            assert query(place, "SELECT status FROM runs") == [("RUNNING",)], "MLflow cannot know"
            store.mark_dead_runs()
        assert query(place, "SELECT status FROM runs") == [("KILLED",)]
        if number == signal.SIGKILL:
            continue
        assert code == 143
        inside.append(any("-step-" in name for name in left(folder)))
        assert checkpoint.newest(folder, run.id) > done
        done = checkpoint.newest(folder, run.id)
    assert any(inside), (
        "each signal arrived at the end of an epoch, one of 30 steps, and this test shows nothing"
    )
    last = start(place)
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors

    alone = place.folder / "alone"
    expected = steady(pretrain(run, Site(runs=place.runs), alone, CPU, Notes(), lambda progress: None))
    recorded = dict(query(place, "SELECT key, value FROM latest_metrics"))
    assert {"loss", "std", "rank", "lr"} <= expected.keys()
    assert {key: recorded[key] for key in expected} == expected
    assert weights(folder) == weights(alone)
