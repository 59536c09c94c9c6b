"""Checkpoints that a thread writes while training continues: when, with what content, and what a kill leaves.

The runs are those of `test_interrupt.py`: two epochs of five steps.
"""

from __future__ import annotations

import io
import os
import random
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from test_interrupt import BATCH, EPOCHS, STEPS, spec, weights
from toys import CPU, Notes, ended

from reproduce.nn import backbones, lars
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.lease import LostError
from reproduce.runs.progress import Progress
from reproduce.runs.writing import Copy, Writer
from reproduce.site import Site
from reproduce.train import pretrain

ANY_TIME = 1e-9
"""Seconds between checkpoints of which one is always due, unless the one before is still being written."""
IN_ORDER = [
    f"epoch-{step // STEPS:05d}{f'-step-{step % STEPS:06d}-of-{STEPS:06d}' if step % STEPS else ''}.pt"
    for step in range(EPOCHS * STEPS + 1)
]
"""Name of the checkpoint after each step."""

Hook = Callable[[], None]


def nothing() -> None: ...


def writes() -> bool:
    """Return True in the thread that writes checkpoints."""
    return threading.current_thread().name == "checkpoint"


def train(
    folder: Path, seconds: float, hold: Hook = nothing, report: Callable[[int], object] = lambda step: None
) -> Notes:
    """Train or resume in `folder`; `report` receives the number of finished steps."""
    notes, site = Notes(), Site(runs=folder.parent, checkpoint_seconds=seconds)

    def told(progress: Progress) -> None:
        report(progress.done // BATCH)

    pretrain(spec(), site, folder, CPU, notes, told, hold)
    return notes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run that is not interrupted and writes one checkpoint, at its end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder, 3600.0)
    yield folder
    torch.set_num_threads(threads)


def finish_write() -> None:
    """Wait for the thread that writes."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(60)


def drafts(folder: Path) -> list[str]:
    """Return the names that the drafts of checkpoints will have."""
    return sorted(path.name[1:].split(".pt")[0] + ".pt" for path in folder.glob(".epoch-*.tmp"))


def left(folder: Path) -> list[str]:
    """Return the names of the run's checkpoints and of their drafts."""
    return sorted(path.name for path in folder.glob("*epoch-*"))


# When a checkpoint is due


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0.0, [STEPS, 2 * STEPS]), (3600.0, [2 * STEPS]), (1e9, [2 * STEPS])]
)
def test_checkpoints_are_as_far_apart_as_the_site_says_and_the_end_has_one(
    seconds: float, steps: list[int], whole: Path, tmp_path: Path
) -> None:
    found: list[str] = []
    train(tmp_path / "run", seconds, lambda: found.extend(drafts(tmp_path / "run")))
    assert found == [IN_ORDER[step] for step in steps]
    assert weights(tmp_path / "run") == weights(whole)


def test_a_checkpoint_waits_for_the_one_that_is_being_written_and_has_the_state_of_its_step(
    whole: Path, tmp_path: Path
) -> None:
    """The first is written while three more steps are taken, each of which could have had one."""
    folder, released, copies = tmp_path / "run", threading.Event(), []

    def hold() -> None:
        if writes():
            assert released.wait(60)
        else:
            copies.append(drafts(folder))

    def report(step: int) -> None:
        if step == 4:
            assert copies == [[]], "a checkpoint was begun while another one was written"
            released.set()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(folder, ANY_TIME, hold, report)
    assert left(folder) == [IN_ORDER[1]]
    with pytest.raises(Interrupted, match="a test"):
        train(tmp_path / "stopped", 3600.0, report=lambda step: interrupt.ask("a test"))
    late, at_once = (checkpoint.latest(each, spec().id) for each in (folder, tmp_path / "stopped"))
    assert late is not None
    assert at_once is not None
    for part in ("network", "optimizer"):
        assert same(late[part], at_once[part])
    train(folder, 3600.0)
    assert weights(folder) == weights(whole)


def test_measurements_are_on_disk_before_the_checkpoint_of_their_step_is_visible(tmp_path: Path) -> None:
    class Flushed(Notes):
        flushed = 0

        def flush(self) -> None:
            self.flushed = max(self.logged, default=0)

    notes, found = Flushed(), []

    def hold() -> None:
        found.extend((name, notes.flushed) for name in drafts(tmp_path / "run"))

    site = Site(runs=tmp_path, checkpoint_seconds=0)
    pretrain(spec(), site, tmp_path / "run", CPU, notes, lambda progress: None, hold)
    assert found == [(IN_ORDER[STEPS], STEPS), (IN_ORDER[2 * STEPS], 2 * STEPS)]


# Kills, lost leases, full disks


def dies(folder: Path, at: Callable[[list[str]], bool]) -> NoReturn:
    """Train, and kill this process in the thread that writes, right before a draft is renamed.

    Args:
        at: returns True for the names of the drafts at that moment.
    """
    torch.set_num_threads(1)

    def hold() -> None:
        if writes() and at(drafts(folder)):
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder, ANY_TIME, hold)
    os._exit(0)


def dies_in_flight(folder: Path, looks: int) -> NoReturn:
    """Train, and kill this process from another thread, once that has seen a draft so many times."""
    torch.set_num_threads(1)

    def watch() -> None:
        seen = 0
        while seen < looks:
            seen += bool(drafts(folder))
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    train(folder, ANY_TIME)
    os._exit(0)


@pytest.mark.slow
def test_a_run_that_is_killed_between_write_and_rename_ends_bit_equal(whole: Path, tmp_path: Path) -> None:
    folder, seen = tmp_path / "run", set()

    def at(names: list[str]) -> bool:
        return names != [] and names[0] not in seen and len(list(folder.iterdir())) > 1

    for _ in range(3):
        assert ended(dies, folder, at) == -signal.SIGKILL
        newest, *_ = sorted(drafts(folder), reverse=True)
        assert newest not in left(folder), "the draft has no name yet"
        seen.add(newest)
    assert checkpoint.newest(folder, spec().id) < EPOCHS
    train(folder, 3600.0)
    assert left(folder)[-1] == IN_ORDER[-1]
    assert not drafts(folder)
    assert weights(folder) == weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_while_a_checkpoint_is_written_ends_bit_equal(
    seed: int, whole: Path, tmp_path: Path
) -> None:
    folder, draw = tmp_path / "run", random.Random(seed)
    codes = {ended(dies_in_flight, folder, looks) for looks in (1, *draw.choices(range(2, 50), k=2))}
    assert -signal.SIGKILL in codes
    assert codes <= {-signal.SIGKILL, 0}, "0: it ended before it was seen so often"
    for name in left(folder):
        if not name.startswith("."):
            assert checkpoint.usable(folder / name, spec().id), "a file with its name is whole"
    train(folder, 3600.0)
    assert weights(folder) == weights(whole)


def test_a_run_that_loses_its_lease_while_a_checkpoint_is_written_stops_and_leaves_no_file(
    whole: Path, tmp_path: Path
) -> None:
    folder, lost = tmp_path / "run", threading.Event()

    def hold() -> None:
        if lost.is_set() or writes():
            lost.set()
            raise LostError("taken over")

    steps: list[int] = []

    def report(step: int) -> None:
        steps.append(step)
        if step == 3:
            finish_write()

    with pytest.raises(LostError, match="taken over"):
        train(folder, ANY_TIME, hold, report)
    assert lost.is_set()
    assert steps[-1] <= 3, "it notices at the next step, not at the end"
    assert left(folder) == []


def fills_the_disk(folder: Path) -> NoReturn:
    """Train on a disk that is full after three steps, and exit with 7 if the run says so before its end."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    steps: list[int] = []

    def report(step: int) -> None:
        steps.append(step)
        if step in (3, 6):
            finish_write()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    try:
        train(folder, ANY_TIME, report=report)
    except OSError as error:
        said = re.search(r"-step-00000[34]-of-000005\.pt cannot be written \(.*\); .* is intact$", str(error))
        os._exit(7 if said and steps[-1] <= 6 else 1)
    os._exit(0)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoints_before(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert ended(fills_the_disk, folder) == 7
    assert left(folder)
    assert set(left(folder)) <= set(IN_ORDER[1:4])
    assert all(checkpoint.usable(folder / name, spec().id) for name in left(folder))
    train(folder, 3600.0)
    assert weights(folder) == weights(whole)


# The copy and the thread


def same(one: Any, other: Any) -> bool:
    """Return True if two states consist of the same values, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def serialised(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_a_copy_has_the_bytes_of_the_state_and_keeps_them_while_training_continues() -> None:
    network = backbones.build("small", seed=0).to(memory_format=torch.channels_last)
    optimizer = lars.LARS(network.parameters(), lr=0.1, weight_decay=0.1)

    def step() -> None:
        network(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def state() -> dict[str, Any]:
        return {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scores": [0.5, (1, torch.zeros(3)), None, "x"],
        }

    copy, addresses = Copy(), []
    for _ in range(2):
        step()
        expected = serialised(state())
        copied, complete = copy.take(state())
        step()
        complete()
        assert serialised(copied) == expected, "values, strides, and versions of the modules"
        assert serialised(state()) != expected
        addresses.append([value.data_ptr() for value in copied["network"].values()])
    assert addresses[0] == addresses[1], "the memory of one copy serves the next"
    grown, _ = copy.take({"network": {"a": torch.ones(2)}, "scores": [torch.ones(2)]})
    assert same(grown, {"network": {"a": torch.ones(2)}, "scores": [torch.ones(2)]})


def test_a_writer_raises_the_error_of_its_work_once_in_the_thread_of_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(text: str) -> None:
        raise LostError(text)

    writer, released = Writer(), threading.Event()
    writer.start(partial(fail, "first"))
    with suppress(LostError):
        writer.start(released.set)
    assert not released.is_set(), "nothing is begun after a failure"
    writer.check()
    writer.start(partial(released.wait, 60))
    assert writer.busy
    writer.check()
    released.set()
    writer.wait()
    assert not writer.busy
    with pytest.raises(LostError, match="second"), writer:
        writer.start(partial(fail, "second"))
    with pytest.raises(ZeroDivisionError), writer:
        (writer.start(partial(fail, "third")), 1 / 0)
    assert "A checkpoint is missing: third" in caplog.text
    with writer:
        pass
