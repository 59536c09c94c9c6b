"""What a crash of the machine, a kill and a failing disk leave of a run's files: the old content or the new.

Each writer works on a layer that records its calls (`filesystem.py`). A crash may come between any two of
them and forgets what was not synchronised. A fault may hit any one of them, in turn, until none fails.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import test_report
import torch
from filesystem import Call, Disk, fault, no_fault
from test_reuse import TRAINED_ON_IT, UNTRAINED, perform, unpack
from toys import PRETRAIN

from reproduce import identity
from reproduce.commands import archive
from reproduce.commands.receive import Archive
from reproduce.messages import UserError
from reproduce.nn.encoder import FILE
from reproduce.report import publish, render
from reproduce.report.plots import Agreement
from reproduce.runs import checkpoint, encoder_file, journal, lease
from reproduce.runs.files import DRAFT, naming
from reproduce.runs.journal import Journal, Point, Result
from reproduce.runs.lease import BusyError, LostError
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.tracking.portable import PortableRun, to_json
from reproduce.tracking.store import Store

if TYPE_CHECKING:
    from conftest import Home

    from reproduce.report.observe import Finished

RUN = "0123456789ab"
OTHER = "ba9876543210"
CODES = (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ESTALE)
"""Errors of a broken disk, a full one, a process with too many open files, and a server that restarted."""


def points(step: int) -> list[Point]:
    return [Point("loss", 1 / step, 1_700_000_000_000 + step, step)]


def steps(folder: Path) -> list[int]:
    """Return the steps in a journal and in one that was set aside, each once."""
    found = {point.step for point in Journal(folder, RUN).read().points}
    aside = folder / journal.REFUSED
    with naming(aside):
        lines = aside.read_text().splitlines() if aside.exists() else []
    return sorted(found | {point[-1] for line in lines for point in json.loads(line)["points"]})


def set_aside(folder: Path) -> None:
    journal = Journal(folder, RUN)
    if journal.read():
        journal.set_aside()


def sent(folder: Path) -> None:
    waiting = Journal(folder, RUN)
    waiting.sent(waiting.read())


def save_checkpoint(folder: Path, epoch: int) -> None:
    state = {"epoch": epoch, "weights": torch.full((500,), float(epoch))}
    checkpoint.save(folder, RUN, state, epoch, keep=1)


def saved_epoch(folder: Path) -> object:
    found = checkpoint.latest(folder, RUN)
    if found is None:
        return None
    assert torch.equal(found["weights"], torch.full((500,), float(found["epoch"])))
    return found["epoch"]


def save_encoder(folder: Path, value: float) -> None:
    encoder_file.save(folder / FILE, {"weight": torch.full((50,), value)}, spec_id=RUN)


def saved_encoder(folder: Path) -> float:
    found = encoder_file.load(folder / FILE, spec_id=RUN)["weight"].unique().item()
    assert encoder_file.digest_of(folder / FILE)
    return found


def keep_result(folder: Path, value: float) -> None:
    journal.keep_result(folder, RUN, Result({"top1": value}, "c0ffee"))


def kept_result(folder: Path) -> object:
    found = journal.kept_result(folder, RUN)
    return found and found.metrics["top1"]


def take(folder: Path) -> None:
    lease.take(folder, RUN, heartbeat=1000.0)


def taken(folder: Path) -> object:
    """Return the state of the lease, and whether its process is this one."""
    found = lease.read(folder, RUN)
    return found and (found.state, found.pid == os.getpid())


def leave_dead(folder: Path) -> None:
    """Write the lease of a process that is gone."""
    take(folder)
    path = folder / lease.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": 2**31 - 1, "started": 1.0}))


RECORD = PortableRun(
    spec_id=PRETRAIN.id,
    name="toy",
    started=1_700_000_000_000,
    ended=1_700_000_600_000,
    settings=identity.canonical(PRETRAIN),
    tags={"scale": "smoke"},
    params={},
    final={"loss": 0.5},
    histories={"loss": tuple((step, 1 / step, 1_700_000_000_000 + step) for step in range(1, 400))},
    environments={},
)


def write_archive(folder: Path) -> None:
    content = json.dumps(to_json(RECORD)).encode()
    archive._write_zip(folder / "sent.zip", {f"runs/{RECORD.spec_id}/{archive.RECORD}": content})


def archived(folder: Path) -> object:
    """Return the records of an archive; None if there is no archive."""
    if not (folder / "sent.zip").exists():
        return None
    with Archive.opened(folder / "sent.zip") as found:
        return found.check().runs


def nothing(folder: Path) -> None: ...


@dataclass(frozen=True)
class Writer:
    """A way to change a run's files, and how they are read back."""

    name: str
    before: Callable[[Path], object]
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    old: object
    new: object
    durable: bool = True
    """True if what was written survives a crash as soon as the writer returns."""

    def __str__(self) -> str:
        return self.name


def with_points(*known: int) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        for step in known:
            Journal(folder, RUN).add(points(step))

    return add


WRITERS = [
    Writer(
        "checkpoint", lambda at: save_checkpoint(at, 1), lambda at: save_checkpoint(at, 2), saved_epoch, 1, 2
    ),
    Writer("first checkpoint", nothing, lambda at: save_checkpoint(at, 1), saved_epoch, None, 1),
    Writer("journal", with_points(1), with_points(2), steps, [1], [1, 2]),
    Writer("first line of a journal", nothing, with_points(1), steps, [], [1]),
    Writer("journal that was sent", with_points(1), sent, steps, [1], [], durable=False),
    Writer("journal set aside", with_points(1, 2), set_aside, steps, [1, 2], [1, 2]),
    Writer(
        "result", lambda at: keep_result(at, 0.25), lambda at: keep_result(at, 0.5), kept_result, 0.25, 0.5
    ),
    Writer(
        "encoder", lambda at: save_encoder(at, 1.0), lambda at: save_encoder(at, 2.0), saved_encoder, 1.0, 2.0
    ),
    Writer("lease", leave_dead, take, taken, ("running", False), ("running", True), durable=False),
    Writer("archive", nothing, write_archive, archived, None, {RECORD.spec_id: RECORD}),
]


def prepared(writer: Writer, folder: Path) -> Path:
    """Return an empty folder with what the writer finds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with Disk(folder):
        writer.before(folder)
    return folder


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_a_crash_between_any_two_calls_leaves_the_old_content_or_the_new(
    writer: Writer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Disk(prepared(writer, tmp_path / "run")) as disk:
        writer.write(tmp_path / "run")
    disk.check()
    crashes = list(disk.crashes())
    assert len({tuple(sorted(crash.files.items())) for crash in crashes}) > 1
    for crash in crashes:
        found = writer.read(crash.write(tmp_path / "after"))
        assert found in (writer.old, writer.new), crash.after
        if crash.complete and writer.durable:
            assert found == writer.new, f"it was lost although the writer had returned: {crash.after}"
        assert "broken" not in caplog.text, f"a torn file has its final name: {crash.after}"


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_a_fault_at_any_call_loses_nothing_and_the_second_try_succeeds(
    writer: Writer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for lasting, code in itertools.product((False, True), CODES):
        for number in itertools.count(1):
            with Disk(prepared(writer, folder), fault(number, code, lasting=lasting)) as disk:
                problem = problem_of(writer.write, folder)
                left, disk.before = disk.calls[number - 1 :], no_fault
                case = f"{os.strerror(code)} at call {number}, {left[0] if left else 'none'}"
                assert not disk.leaked, case
                assert writer.read(folder) in (writer.new, *([writer.old] if problem else ())), case
                if not any(call.name == "unlink" for call in left):
                    assert not list(folder.rglob(f"*{DRAFT}")), case
                if problem and not (lasting and writer.read(folder) == writer.new):
                    writer.write(folder)
                assert writer.read(folder) == writer.new, case
            if writer.durable and not lasting and code == errno.EIO:
                for crash in disk.crashes(complete=True):
                    assert writer.read(crash.write(tmp_path / "after")) == writer.new, (case, crash.after)
            if not left:
                break


@pytest.mark.parametrize("writer", WRITERS, ids=str)
def test_a_fault_at_any_call_of_a_reader_is_an_error_and_never_another_content(
    writer: Writer, tmp_path: Path
) -> None:
    folder = prepared(writer, tmp_path / "run")
    if writer.name != "lease":
        writer.write(folder)
    whole = writer.read(folder)
    for code in CODES:
        for number in itertools.count(1):
            read: list[object] = []
            with Disk(folder, fault(number, code)) as disk:
                problem = problem_of(lambda at, read=read: read.append(writer.read(at)), folder)
            left = disk.calls[number - 1 :]
            case = f"{os.strerror(code)} at call {number}, {left[0] if left else 'none'}"
            assert problem or read in ([whole], [("unreadable", False)]), f"{case}: {read}"
            assert not disk.leaked, case
            if not left:
                break


def test_checkpoints_that_cannot_be_deleted_fail_no_finished_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1)
    for number in itertools.count(1):
        with Disk(tmp_path, fault(number, errno.EIO)) as disk:
            checkpoint.discard(tmp_path, RUN)
        if len(disk.calls) < number:
            break
        assert f"Checkpoints of the finished run stay in {tmp_path} (Input/output error)." in caplog.messages
    assert not checkpoint.leftovers(tmp_path)


def problem_of(act: Callable[[Path], object], folder: Path) -> str | None:
    """Return the one line by which an action fails; None if it succeeds."""
    try:
        act(folder)
    except (OSError, UserError, BusyError) as error:
        problem = str(error)
    else:
        return None
    assert str(folder) in problem or RUN in problem, f"neither a file nor a run is named: {problem}"
    assert len(problem.splitlines()) == 1
    return problem


def test_a_crash_leaves_each_report_whole(tmp_path: Path) -> None:
    """A table whose second seed has arrived: every file is the old one or the new one."""
    table, seeds = replace(test_report.TABLE, figures=(Agreement(),)), test_report.SEEDS
    folder, both = tmp_path / "reports", test_report.finished()
    first = {key: run for key, run in both.items() if not run.run_id.endswith("-1")}
    folder.mkdir()

    def write(finished: Mapping[str, Finished], request: str) -> Disk:
        with Disk(folder) as disk:
            publish.publish(table, seeds, finished, test_report.REASONS, folder, request, lambda: [])
        disk.check()
        return disk

    write(first, "one seed")
    disk = write(both, "two seeds")
    new = {name: content for name, content in files_in(folder).items() if not hidden(name)}
    changed = {name for name, content in new.items() if disk.start.get(name) != content}
    assert {f"table99.{kind}" for kind in render.FORMATS} | {"runs.csv", "index.html"} <= changed
    assert "figures/table99-agreement.png" in changed
    for crash in disk.crashes():
        found = {name: content for name, content in crash.files.items() if not hidden(name)}
        torn = [name for name in found if found[name] not in (disk.start.get(name), new.get(name))]
        assert not torn, crash.after
        assert not crash.complete or found == new, f"a report was lost: {crash.after}"


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


# Owners
# ----------------------------------------------------------------------------------------------------------

HOUR = 3600.0


def owned(folder: Path, host: str, *, age: float) -> lease.Held:
    """Take a run for a process on a machine that sent its last heartbeat `age` seconds ago."""
    held = lease.take(folder, RUN, heartbeat=10.0)
    path = folder / lease.FILE
    if host:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": host}))
    beat = path.stat().st_mtime - age
    os.utime(path, (beat, beat))
    return held


@pytest.mark.parametrize("shift", [-HOUR, 0.0, HOUR])
@pytest.mark.parametrize("host", ["", "elsewhere"])
def test_a_fault_at_any_call_gives_a_run_no_second_owner(host: str, shift: float, tmp_path: Path) -> None:
    """The clock of the shared file system is an hour behind this machine's, or ahead of it."""
    held = owned(tmp_path, host, age=20.0)
    for code in CODES:
        for number in itertools.count(1):
            with Disk(tmp_path, fault(number, code), shift) as disk:
                for take in (lease.take, partial(lease.queue, job="7_0")):
                    with pytest.raises((BusyError, OSError)):
                        take(tmp_path, RUN, heartbeat=10.0)
            if len(disk.calls) < number:
                break
    held.check()


@pytest.mark.parametrize("shift", [-HOUR, HOUR])
def test_the_clock_of_the_file_system_decides_who_is_dead(shift: float, tmp_path: Path) -> None:
    owned(tmp_path, "elsewhere", age=29.0)
    with Disk(tmp_path, shift=shift):
        found = lease.read(tmp_path, RUN)
        assert found is not None
        assert (found.alive, found.doubt) == (True, "")
        assert 29.0 <= found.age < 30.0
    path = tmp_path / lease.FILE
    os.utime(path, (path.stat().st_mtime - 2, path.stat().st_mtime - 2))
    with Disk(tmp_path, shift=shift):
        lease.take(tmp_path, RUN, heartbeat=10.0)


def test_a_fault_at_any_call_costs_no_owner_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RETRY", 0.0)
    held = lease.take(tmp_path, RUN, heartbeat=1000.0)
    for code in CODES:
        for number in itertools.count(1):
            with Disk(tmp_path, fault(number, code)) as disk:
                try:
                    held.check()
                    with held.guard():
                        pass
                except LostError as error:
                    pytest.fail(f"{disk.calls[-1]}: {error}")
            if len(disk.calls) < number:
                break


# A run from its start to its record
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(place: Home, tmp_path: Path) -> Site:
    """Return a site with a store and images to train on."""
    unpack(tmp_path / "data", complete=True)
    return Site(runs=place.runs, device="cpu", data={"imagenette": tmp_path / "data"})


def prepare(site: Site, spec: Pretrain) -> Path:
    """Create the folder of a run, and return it."""
    folder = site.runs / spec.id
    folder.mkdir()
    return folder


def num_complete(site: Site) -> int:
    """Return the number of runs that the store has as complete, without MLflow."""
    with contextlib.closing(sqlite3.connect(site.runs / "mlflow.db")) as database:
        return int(database.execute("SELECT count(*) FROM tags WHERE key = 'complete'").fetchone()[0])


@pytest.mark.slow
def test_a_run_deletes_nothing_before_it_is_recorded_and_has_no_result_without_its_encoder(
    site: Site,
) -> None:
    folder, deleted = prepare(site, TRAINED_ON_IT), []

    def before(number: int, call: Call) -> None:
        if call.name == "unlink" and not hidden(call.path):
            deleted.append((call.path, num_complete(site)))

    with Disk(folder, before) as disk:
        perform(site, TRAINED_ON_IT)
    assert deleted == [
        *(("failure.txt", 0), ("journal.jsonl", 1), ("result.json", 1)),
        ("epoch-00001.pt", 1),
    ]
    encoder = (folder / FILE).read_bytes()
    results = [crash for crash in disk.crashes() if crash.files.get(journal.RESULT)]
    assert results
    for crash in results:
        assert crash.files.get(FILE) == encoder, crash.after
        assert json.loads(crash.files[journal.RESULT])["spec_id"] == TRAINED_ON_IT.id


@pytest.mark.slow
def test_a_run_that_is_taken_over_after_its_last_step_leaves_no_result(site: Site) -> None:
    folder = prepare(site, UNTRAINED)

    def before(number: int, call: Call) -> None:
        if disk.changes and disk.changes[-1].call.to == FILE:
            assert lease.free(folder, UNTRAINED.id, lease.mark(folder))

    with Disk(folder, before) as disk, pytest.raises(LostError, match="freed by hand"):
        perform(site, UNTRAINED)
    assert (folder / FILE).exists()
    assert not (folder / journal.RESULT).exists()


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "another run's encoder"])
def test_a_kept_result_is_not_used_without_its_encoder(left: str, site: Site) -> None:
    """As an older version left it, which did not record the digest of the encoder."""
    folder = prepare(site, UNTRAINED)
    journal.keep_result(folder, UNTRAINED.id, Result({"kept": 0.125}, ""))
    if left != "nothing":
        encoder_file.save(folder / FILE, {"weight": torch.zeros(3)}, spec_id=OTHER)
    perform(site, UNTRAINED)
    assert "kept" not in Store(site).finished([UNTRAINED.id])[UNTRAINED.id].metrics
    assert encoder_file.load(folder / FILE, spec_id=UNTRAINED.id)
