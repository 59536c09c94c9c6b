"""Data that wait on disk: measurements that a store lacks, and a run's result; and waiting for a store."""

from __future__ import annotations

import json
import math
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import joined, received

from reproduce.runs import interrupt, lease
from reproduce.runs.journal import (
    FILE,
    RESULT,
    SKIPPED,
    Journal,
    Point,
    Result,
    drop_result,
    keep_result,
    kept_result,
)
from reproduce.runs.lease import LostError
from reproduce.tracking import retry
from reproduce.tracking.errors import StoreError, UnreachableError, temporary
from reproduce.tracking.retry import giving_up_after, retrying

RUN, OTHER = "0123456789ab", "ba9876543210"
fork = multiprocessing.get_context("fork")


def points(*steps: int) -> list[Point]:
    return [Point("loss", 1 / (step + 3), 1_700_000_000_000 + step, step) for step in steps]


def test_what_was_added_comes_back_in_order_until_it_was_sent(tmp_path: Path) -> None:
    folder = tmp_path / "not yet there"
    journal = Journal(folder)
    assert not journal.read()
    journal.add(points(1, 2))
    journal.add([Point("rank", math.nan, 5, 2)], {"a": "old", "b": "ünï\n"})
    journal.add(tags={"a": "new"})
    waiting = Journal(folder).read()
    assert waiting.points[:2] == points(1, 2)
    assert (waiting.points[2].key, math.isnan(waiting.points[2].value)) == ("rank", True)
    assert waiting.tags == {"a": "new", "b": "ünï\n"}
    journal.sent(waiting)
    assert not Journal(folder).read()
    journal.add(points(3))
    assert journal.read().points == points(3)
    journal.remove()
    assert list(folder.iterdir()) == []


def test_what_was_added_while_the_rest_was_sent_is_not_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(points(1))
    waiting = journal.read()
    journal.add(points(2))
    journal.sent(waiting)
    assert journal.read().points == points(1, 2)


def test_a_line_that_was_cut_anywhere_costs_that_line_alone(tmp_path: Path) -> None:
    """As after a kill during a write; the next attempt appends to the same file."""
    journal = Journal(tmp_path)
    journal.add(points(1))
    before = (tmp_path / FILE).read_bytes()
    journal.add(points(2))
    whole = (tmp_path / FILE).read_bytes()
    for size in range(len(before), len(whole)):
        (tmp_path / FILE).write_bytes(whole[:size])
        Journal(tmp_path).add(points(3))
        assert Journal(tmp_path).read().points == points(1, 3)


def test_a_broken_line_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    journal.add(points(1))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b"\0" * 40 + b"\n[1]\n")
    journal.add(points(2))
    assert journal.read().points == points(1, 2)
    assert caplog.text.count("broken line") == 2


def test_lines_of_another_run_and_of_an_older_version_are_kept_and_never_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Journal(tmp_path, OTHER).add(points(1), {"data_digest": "theirs"})
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"points": [["loss", 0.5, 1, 1]], "tags": {}}\n')
    theirs = (tmp_path / FILE).read_bytes()
    journal = Journal(tmp_path, RUN)
    journal.add(points(2), {"a": "ours"})
    waiting = journal.read()
    assert (waiting.points, waiting.tags) == (points(2), {"a": "ours"})
    assert f"has lines of run '{OTHER}', not of {RUN}" in caplog.text
    assert f"has lines of no run, not of {RUN}" in caplog.text
    journal.sent(waiting)
    assert not journal.read()
    assert (tmp_path / SKIPPED).read_bytes().startswith(theirs)
    for step in (3, 4):
        Journal(tmp_path, OTHER).add(points(step))
        journal.sent(journal.read())
    assert len(list(tmp_path.glob("journal.skipped*.jsonl"))) == 3, "no such file replaces another"
    journal.add(points(5))
    assert journal.read().points == points(5)


ENTRY = {"spec_id": RUN, "points": [["loss", 0.5, 1, 1]], "tags": {"a": "b"}}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 50_000,
        '{"points": ' + "9" * 5000 + "}",
        json.dumps(ENTRY | {"points": [["loss", "0.5", 1, 1]]}),
        json.dumps(ENTRY | {"points": [["loss", True, 1, 1]]}),
        json.dumps(ENTRY | {"points": [["loss", 0.5, 1.5, 1]]}),
        json.dumps(ENTRY | {"points": [["loss", 0.5, 1]]}),
        json.dumps(ENTRY | {"points": {"loss": 1}}),
        json.dumps(ENTRY | {"tags": {"a": 1}}),
        json.dumps(ENTRY | {"tags": ["a"]}),
        "\x00\x00",
    ],
)
def test_a_line_with_other_types_is_skipped_and_nothing_else(line: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(f"{line}\n")
    journal = Journal(tmp_path, RUN)
    journal.add(points(1))
    waiting = journal.read()
    assert (waiting.points, waiting.tags, waiting.skipped) == (points(1), {}, True)


def test_what_is_not_a_file_is_no_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    os.mkfifo(tmp_path / FILE)
    assert not journal.read()
    assert not journal.read()
    assert caplog.text.count("journal.jsonl cannot be read (Not a regular file) and is skipped.") == 1
    with pytest.raises(OSError, match=r"Not a regular file"):
        journal.add(points(1))
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).touch()
    os.truncate(tmp_path / FILE, 2**40)
    assert not journal.read()


def test_only_the_owner_of_the_run_writes_its_journal(tmp_path: Path) -> None:
    with lease.take(tmp_path, RUN, heartbeat=1000.0) as held:
        old = Journal(tmp_path, RUN, held.guard)
        old.add(points(1))
        waiting = old.read()
        assert lease.free(tmp_path, RUN, lease.mark(tmp_path))
        with lease.take(tmp_path, RUN, heartbeat=1000.0) as later:
            new = Journal(tmp_path, RUN, later.guard)
            for write in (
                lambda: old.add(points(9)),
                lambda: old.sent(waiting),
                old.set_aside,
                old.remove,
            ):
                with pytest.raises(LostError):
                    write()
            assert new.read().points == points(1)
            new.add(points(2))
            assert new.read().points == points(1, 2)


def fill(folder: Path, sender: multiprocessing.connection.Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    journal = Journal(folder)
    step = 0
    try:
        while True:
            journal.add(points(step))
            step += 1
    except OSError as error:
        sender.send((step, str(error)))


def test_a_full_disk_leaves_what_was_added_before(tmp_path: Path) -> None:
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=fill, args=(tmp_path, sender))
    process.start()
    added, message = received(receiver)
    joined(process)
    assert f"{FILE} cannot be written (" in message
    assert len(message.splitlines()) == 1
    assert added > 10
    assert (tmp_path / FILE).read_bytes().endswith(b"\n")
    assert Journal(tmp_path).read().points == points(*range(added))


def add_for_ever(folder: Path, added: multiprocessing.connection.Connection) -> None:
    journal = Journal(folder)
    for step in range(1_000_000):
        journal.add(points(step))
        added.send(step)


def test_kill_9_while_adding_loses_nothing_that_was_added(tmp_path: Path) -> None:
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=add_for_ever, args=(tmp_path, sender))
    process.start()
    sender.close()
    while (last := received(receiver)) < 20:
        pass
    os.kill(process.pid or 0, signal.SIGKILL)
    joined(process)
    while receiver.poll(0):
        try:
            last = receiver.recv()
        except EOFError:
            break
    found = [point.step for point in Journal(tmp_path).read().points]
    assert found in (list(range(last + 1)), list(range(last + 2)))


def test_a_result_is_kept_until_it_is_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "not yet there"
    assert kept_result(folder, "0123456789ab") is None
    keep_result(folder, "0123456789ab", Result({"top1": 1 / 3, "gone": math.nan}, "c0ffee"))
    found = kept_result(folder, "0123456789ab")
    assert found is not None
    assert found.metrics["top1"] == 1 / 3
    assert math.isnan(found.metrics["gone"])
    assert found.commit == "c0ffee"
    keep_result(folder, "0123456789ab", Result({}, "c0ffee"))
    assert kept_result(folder, "0123456789ab") == Result({}, "c0ffee")
    drop_result(folder)
    drop_result(folder)
    assert kept_result(folder, "0123456789ab") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"spec_id": "ba9876543210", "metrics": {"top1": 0.5}, "commit": ""}',
            "belongs to run ba9876543210, not to 0123456789ab",
        ),
        ('{"spec_id": "0123456789ab", "metrics": {"top1"', "is broken"),
        ('{"spec_id": "0123456789ab", "metrics": {"top1": null}}', "is broken"),
        ('{"spec_id": "0123456789ab", "metrics": [1], "commit": ""}', "is broken"),
        ('{"spec_id": "0123456789ab", "metrics": {"top1": 0.5}}', "is broken"),
        ("[]", "is broken"),
        ("", "is broken"),
    ],
)
def test_a_result_that_is_broken_or_another_run_s_is_passed_over(
    content: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / RESULT).write_text(content)
    assert kept_result(tmp_path, "0123456789ab") is None
    assert said in caplog.text


def test_what_may_be_better_a_while_later() -> None:
    assert temporary(ConnectionRefusedError())
    assert temporary(StoreError("busy", temporary=True))
    assert not temporary(StoreError("damaged"))
    assert not temporary(ValueError("no luck"))


def failing(times: int, error: Exception) -> Callable[[], int]:
    """Return an action that fails so many times, and then returns the number of its calls."""
    calls = []

    def action() -> int:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return action


def test_a_store_that_comes_back_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retry, "PAUSE", 0.01)
    assert retrying(failing(3, ConnectionRefusedError("nobody\nhere")), seconds=60) == 4
    assert caplog.messages == ["The tracking store does not answer (nobody); retrying for up to 60 s."]


def test_a_store_that_does_not_come_back_ends_the_waiting_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "PAUSE", 0.01)
    with pytest.raises(
        UnreachableError,
        match=r"^The tracking store did not answer for 0 s \(nobody\)\. "
        r"Nothing is lost: once it answers, .*\.$",
    ):
        retrying(failing(10**6, ConnectionRefusedError("nobody")), seconds=0.05)


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0, ConnectionRefusedError("nobody")), (60, StoreError("damaged")), (60, UnreachableError("given up"))],
)
def test_what_waiting_does_not_help_is_raised_at_once(seconds: float, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        retrying(failing(1, error), seconds=seconds)
    assert caught.value is error


def wait_for_ever(inside: bool, sender: multiprocessing.connection.Connection) -> None:
    """Wait for a store that never answers, inside code that saves its work before it stops, or does not."""
    interrupt.listen()

    def nobody() -> None:
        sender.send("waits")
        raise ConnectionRefusedError

    def wait() -> None:
        retrying(nobody, seconds=600)

    try:
        if inside:
            with interrupt.deferred():
                wait()
        else:
            wait()
    except interrupt.Interrupted as error:
        sender.send(str(error))


@pytest.mark.parametrize("inside", [False, True])
def test_a_request_to_stop_ends_the_waiting_at_once(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE", 3600.0)
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=wait_for_ever, args=(inside, sender))
    process.start()
    assert received(receiver) == "waits"
    os.kill(process.pid or 0, signal.SIGTERM)
    assert received(receiver) == "SIGTERM"
    assert joined(process) == 0


def test_mlflow_is_told_to_be_hasty_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with giving_up_after(2):
        assert (os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == (
            "2",
            "0",
        )
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_the_file_is_plain_json_lines(tmp_path: Path) -> None:
    Journal(tmp_path, RUN).add(points(1), {"a": "b"})
    (line,) = (tmp_path / FILE).read_text().splitlines()
    assert json.loads(line) == {
        "spec_id": RUN,
        "points": [["loss", 0.25, 1_700_000_000_001, 1]],
        "tags": {"a": "b"},
    }
