"""`invoke gc`: unreferenced things are listed, and removed on demand; everything else is kept.

Kept are things that a run needs, that a process owns, or that a user put there. Most tests look at one folder
with runs of every kind, whose records are real and whose files are small.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Home

from reproduce.commands import gc, redo
from reproduce.commands.options import GcOptions
from reproduce.nn import feature_cache
from reproduce.nn.encoder import FILE
from reproduce.plan import Request
from reproduce.runs import encoder_file, journal, lease
from reproduce.site import Site
from reproduce.spec import Spec
from reproduce.tracking.store import Store
from reproduce.tracking.tags import OWNER

pytestmark = pytest.mark.slow

DAY = 24 * 3600


def pair(*changes: str, seeds: int = 1, table: str = "table8", **fields: str) -> tuple[Spec, ...]:
    """Return the pretraining and the evaluation of a row; of several seeds, those of the last."""
    return Request(
        table=table, rows=fields.pop("rows", "BYOL"), changes=changes, seeds=seeds, **fields
    ).specs()[-2:]


FINISHED, EVALUATION = pair("epochs=3")
WANTED = pair(seeds=10)[0]
"""Unfinished run of the tenth seed, which is kept."""
OF_A_RELEASE = pair(table="table4", rows="SwAV*", scale="small", baselines="released")[-1]
ELEVENTH = pair(seeds=11)[0]
STRANGE = pair("epochs=5")[0]
OWNED = pair("epochs=6")[0]
ELSEWHERE = pair("epochs=7")[0]
QUEUED = pair("epochs=8")[0]
UNKNOWN = pair("epochs=9")[0]
"""Run without a record."""
MEASURED = pair("epochs=11")[1]
"""Run whose result waits on disk."""
ONLY_ITS_ENCODER = pair("epochs=12")[0]
"""Run with an encoder and without a record."""
FAR = pair("epochs=13")[0]
"""Run that failed on another machine, which has its folder."""
BEFORE = pair("epochs=15")[0]
"""Run of which only a record is left."""
EVALUATED, LATER = pair("epochs=14")
"""Pretraining whose finished record was deleted, and which was started again; the finished evaluation of its
encoder."""

GONE = {STRANGE.id, ELEVENTH.id, UNKNOWN.id, BEFORE.id}


def stopped(store: Store, spec: Spec) -> None:
    """Record an interrupted attempt."""
    with pytest.raises(KeyboardInterrupt), store.start(spec, scale="smoke"):
        raise KeyboardInterrupt("SIGINT")


def put(path: Path, content: bytes = b"x" * 1000, age: float = 0.0) -> Path:
    """Write a file, and create the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    written = time.time() - age
    os.utime(path, (written, written))
    return path


def trained(site: Site, spec: Spec, value: float) -> str:
    """Write an encoder to a run's folder and return its digest."""
    tensors = {"backbone.weight": torch.full((2, 2), value)}
    encoder_file.save(site.runs / spec.id / FILE, tensors, spec_id=spec.id)
    return encoder_file.digest(tensors)


def features(site: Site, encoder: str) -> Path:
    """Write a file of features like `feature_cache`."""
    describe: Callable[[], dict[str, str]] = lambda: {"encoder": encoder}  # noqa: E731
    feature_cache.once(
        describe, num_rows=2, site=site, device=torch.device("cpu"), compute=lambda: torch.ones(2, 3)
    )
    return next(
        path
        for path in (site.runs / "features").glob("*.safetensors")
        if feature_cache.encoder_of(path) == encoder
    )


def begun(site: Site, spec: Spec) -> None:
    """Create the folder of a started run, with 1000 bytes of a checkpoint."""
    put(site.runs / spec.id / "epoch-00001.pt")
    put(site.runs / spec.id / "log.txt", b"")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Home:
    """Return a home with runs of every kind; each test takes a copy."""
    home = Home(tmp_path_factory.mktemp("gc"))
    home.runs.mkdir()
    shutil.copy(template, home.runs)
    site = Site(runs=home.runs, reports=home.reports)
    store = Store(site)
    for value, spec in enumerate((FINISHED, EVALUATION, LATER)):
        with store.start(spec, scale="smoke") as run:
            run.tag("encoder_digest", "e" * 64)
            run.finish({"top1": 0.5 + value / 8})
    for spec in (WANTED, OF_A_RELEASE, ELEVENTH, STRANGE, ELSEWHERE, MEASURED, FAR, BEFORE, EVALUATED):
        stopped(store, spec)
        begun(site, spec)
    for spec in (OWNED, QUEUED, UNKNOWN):
        begun(site, spec)
    for spec in (FAR, BEFORE):
        shutil.rmtree(home.runs / spec.id)
    (record,) = [state.run_id for state in store.status() if state.spec_id == FAR.id]
    store.connection.client.set_tag(
        record, OWNER, json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0})
    )
    begun(site, FINISHED)
    put(home.runs / MEASURED.id / journal.RESULT)
    here, gone = trained(site, FINISHED, 1.0), trained(site, STRANGE, 2.0)
    trained(site, ONLY_ITS_ENCODER, 3.0)
    for digest in (here, gone, "e" * 64, "f" * 64):
        features(site, digest)
    put(home.runs / "features" / "notes.txt")
    put(home.runs / "features" / ".0123.safetensors.99.1.tmp", age=2 * DAY)
    put(home.runs / FINISHED.id / ".epoch-00004.pt.99.tmp", age=2 * DAY)
    put(home.runs / EVALUATION.id / ".epoch-00004.pt.99.tmp", age=3600)
    put(home.reports / "smoke" / ".table8.md.99.tmp", age=2 * DAY)
    put(home.runs / "0123456789ab" / "thesis.tex")
    put(home.runs / "thesis" / "epoch-00001.pt")
    put(home.runs / "abcdef.txt")
    put(home.folder / "beside" / "epoch-00001.pt")
    return home


@pytest.fixture
def place(everything: Home, tmp_path: Path) -> Iterator[tuple[Site, Store]]:
    """Yield a copy of everything, with the leases that only a living process can have."""
    shutil.copytree(everything.folder, tmp_path / "home")
    site = Site(runs=tmp_path / "home" / "runs", reports=tmp_path / "home" / "reports")
    (site.runs / ("c" * 12)).symlink_to(tmp_path / "home" / "beside")
    lease.queue(site.runs / QUEUED.id, QUEUED.id, job="123_4", heartbeat=10.0)
    of_another_machine(site, beat=0.0)
    with lease.take(site.runs / OWNED.id, OWNED.id, heartbeat=10.0):
        yield site, Store(site)


def of_another_machine(site: Site, beat: float) -> None:
    """Write a lease that another machine's process last renewed so many seconds ago."""
    process = {"host": "elsewhere", "pid": 1, "started": 0.0, "job": "", "reason": "", "progress": None}
    content = {"spec_id": ELSEWHERE.id, "token": "0" * 32, "heartbeat": 3600.0, "state": "running", **process}
    put(site.runs / ELSEWHERE.id / lease.FILE, json.dumps(content).encode(), age=beat)


def snapshot(folder: Path) -> set[str]:
    """Return every file below a folder except the locks."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def written(folder: Path, age: float) -> None:
    """Set the times of all files in a run's folder."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - age,) * 2)


def ended_before(store: Store, spec: Spec, age: float) -> None:
    """Set the times of the records of a run."""
    at = int((time.time() - age) * 1000)
    with contextlib.closing(sqlite3.connect(str(store.connection.file))) as database, database:
        database.execute(
            "UPDATE runs SET start_time = ?, end_time = ? WHERE run_uuid IN "
            "(SELECT run_uuid FROM tags WHERE key = 'spec_id' AND value = ?)",
            (at, at, spec.id),
        )


def names(found: gc.Found, kind: str) -> set[str]:
    return {item.name for item in found.items if item.kind == kind}


def test_what_nothing_refers_to_is_listed_and_nothing_else(place: tuple[Site, Store]) -> None:
    site, store = place
    before = snapshot(site.runs)
    found = gc.find(site, store, 0.0)
    assert snapshot(site.runs) == before
    assert names(found, "run") == {f"runs/{spec_id}" for spec_id in GONE - {BEFORE.id}}
    records = {state.run_id: state.spec_id for state in store.status() if state.spec_id in GONE}
    assert names(found, "record") == set(records)
    assert set(records.values()) == GONE - {UNKNOWN.id}
    assert names(found, "checkpoints") == {f"runs/{FINISHED.id}: epoch-00001.pt"}
    assert names(found, "draft") == {
        f"runs/{FINISHED.id}/.epoch-00004.pt.99.tmp",
        "runs/features/.0123.safetensors.99.1.tmp",
        "reports/smoke/.table8.md.99.tmp",
    }
    encoders = {feature_cache.encoder_of(site.runs.parent / name) for name in names(found, "features")}
    assert encoders == {"f" * 64, encoder_file.digest({"backbone.weight": torch.full((2, 2), 2.0)})}
    assert sorted(note.split()[1] for note in found.notes) == sorted(
        f"runs/{spec.id}:" for spec in (MEASURED, ONLY_ITS_ENCODER)
    )


def test_a_line_gives_size_age_and_reason_and_the_last_one_sums_up(place: tuple[Site, Store]) -> None:
    site, store = place
    written(site.runs / UNKNOWN.id, age=3 * DAY)
    lines = list(gc.find(site, store, 0.0).lines())
    (unknown,) = [line for line in lines if UNKNOWN.id in line]
    assert unknown.split("  ")[-1] == f"runs/{UNKNOWN.id}: no record; no table uses it"
    assert unknown.split()[:5] == ["run", "1", "kB", "3", "days"]
    (strange,) = [line for line in lines if line.startswith("run ") and STRANGE.id in line]
    assert "interrupted (SIGINT); no table uses it" in strange
    counts = "3 runs, 1 checkpoint set, 3 drafts, 2 feature files, 3 records: "
    assert lines[-1].startswith(counts)
    assert lines[-1].endswith("kB. `invoke gc --delete --older-than 0` removes all of this.")


def test_what_is_listed_is_removed_and_all_else_is_as_before(place: tuple[Site, Store]) -> None:
    site, store = place
    before, states = snapshot(site.runs), {state.run_id: state for state in store.status()}
    found = gc.find(site, store, 0.0)
    lines, num_left = gc.remove(found)
    assert num_left == 0
    assert [line for line in lines if line.startswith("kept")] == list(found.notes)
    gone = {name for name in before if name.split("/")[0] in GONE}
    gone |= {name.removeprefix("runs/") for kind in ("draft", "features") for name in names(found, kind)}
    gone |= {f"{FINISHED.id}/epoch-00001.pt", "reports/smoke/.table8.md.99.tmp"}
    assert {name for name in before - snapshot(site.runs) if not name.startswith("mlflow")} == gone & before
    assert not [
        path.name for path in site.runs.iterdir() if path.name in GONE or path.name.startswith(gc.ASIDE)
    ]
    assert not (site.reports / "smoke" / ".table8.md.99.tmp").exists()
    assert {state.run_id: state for state in store.status()} == {
        run_id: state for run_id, state in states.items() if state.spec_id not in GONE
    }
    again = gc.find(site, store, 0.0)
    assert again.items == ()
    assert list(again.lines())[-1] == "Nothing to remove."


def test_what_is_young_or_resumable_is_listed_only_if_asked_for(place: tuple[Site, Store]) -> None:
    site, store = place
    found = gc.find(site, store)
    assert found.items == ()
    counts = "3 runs, 1 checkpoint set, 3 drafts, 2 feature files, 3 records: "
    assert found.notes[-1].startswith(
        f"Not listed, because it is younger than 30 days or can be resumed: {counts}"
    )
    assert list(found.lines())[-1] == "Nothing to remove."
    for spec in (STRANGE, ELEVENTH, UNKNOWN):
        written(site.runs / spec.id, age=40 * DAY)
    (site.runs / UNKNOWN.id / "epoch-00001.pt").unlink()  # its folder has no checkpoint, and a new time
    ended_before(store, STRANGE, age=40 * DAY)
    ended_before(store, BEFORE, age=40 * DAY)
    records = {state.run_id: state.spec_id for state in store.status()}

    def listed(older_than: float | None) -> set[str]:
        found = gc.find(site, store, older_than)
        return {name.removeprefix("runs/") for name in names(found, "run")} | {
            records[name] for name in names(found, "record")
        }

    assert listed(None) == {UNKNOWN.id, BEFORE.id}
    assert listed(20.0 * DAY) == {UNKNOWN.id, BEFORE.id, STRANGE.id}, "the record of the other is young"
    assert listed(50.0 * DAY) == set()
    assert listed(0.0) == GONE


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("", None), ("0", 0), ("0d", 0), ("7d", 7 * DAY), ("12h", DAY / 2), ("1.5 h", 5400), ("2w", 14 * DAY)],
)
def test_ages_have_units(given: str, seconds: float | None) -> None:
    assert GcOptions(older_than=given).seconds() == seconds


@pytest.mark.parametrize("given", ["7", "d", "-1d", "7 months", "1e9d", "nan", "\u0667d"])
def test_an_age_without_a_unit_is_refused_in_one_line(given: str) -> None:
    with pytest.raises(ValueError, match="a number with a unit, such as 7d") as caught:
        GcOptions(older_than=given).seconds()
    assert "\n" not in str(caught.value)


def test_the_files_of_a_run_that_was_executed_again_are_listed(place: tuple[Site, Store]) -> None:
    site, store = place
    old = put(site.runs / redo.FOLDER / f"{FINISHED.id}-01234567" / FILE).parent
    put(site.runs / redo.FOLDER / f"{STRANGE.id}-01234567" / FILE)
    found = gc.find(site, store, 0.0)
    assert names(found, "replaced") == {f"runs/{redo.FOLDER}/{old.name}"}, "the other is not finished yet"
    gc.remove(found)
    assert not old.exists()


def test_pages_of_runs_that_no_report_needs_are_listed(place: tuple[Site, Store]) -> None:
    site, store = place
    needed, left = (put(site.reports / "smoke" / "runs" / f"{spec.id}.html") for spec in (FINISHED, STRANGE))
    assert names(gc.find(site, store, 0.0), "page") == set(), "no record of what was rendered"
    rendered = {"index.html": {"inputs": "", "files": {f"runs/{FINISHED.id}.html": ""}}}
    (site.reports / "smoke" / ".rendered").write_text(json.dumps(rendered))
    found = gc.find(site, store, 0.0)
    assert names(found, "page") == {f"reports/smoke/runs/{STRANGE.id}.html"}
    gc.remove(found)
    assert (needed.exists(), left.exists()) == (True, False)


def test_deleted_records_can_be_restored(place: tuple[Site, Store]) -> None:
    site, store = place
    found = gc.find(site, store, 0.0)
    gc.remove(found)
    (deleted,) = [item.name for item in found.items if item.kind == "record" and STRANGE.id in item.why]
    store.connection.client.restore_run(deleted)
    assert {state.spec_id for state in store.status() if state.run_id == deleted} == {STRANGE.id}


def test_a_run_goes_when_its_owner_elsewhere_has_missed_three_heartbeats(place: tuple[Site, Store]) -> None:
    site, store = place
    name = f"runs/{ELSEWHERE.id}"
    of_another_machine(site, beat=2.5 * 3600)
    assert name not in names(gc.find(site, store, 0.0), "run")
    of_another_machine(site, beat=3.5 * 3600)
    assert name in names(gc.find(site, store, 0.0), "run")


def test_what_is_begun_or_finished_between_the_look_and_the_removal_stays(place: tuple[Site, Store]) -> None:
    site, store = place
    found = gc.find(site, store, 0.0)
    with store.start(ELEVENTH, scale="smoke") as run:
        run.finish({"top1": 0.5})
    with lease.take(site.runs / STRANGE.id, STRANGE.id, heartbeat=10.0):
        lines, num_left = gc.remove(found)
    told = {line.split()[1].rstrip(":"): line for line in lines if line.startswith("kept")}
    assert f"process {os.getpid()} on " in told[f"runs/{STRANGE.id}"]
    assert told[f"runs/{ELEVENTH.id}"].endswith("it is finished now")
    assert (site.runs / STRANGE.id / "epoch-00001.pt").exists()
    assert (site.runs / ELEVENTH.id / "epoch-00001.pt").exists()
    assert not (site.runs / UNKNOWN.id).exists()
    assert {STRANGE.id, ELEVENTH.id} <= {state.spec_id for state in store.status()}
    assert num_left == 0, "what somebody needs now is no failure"


def test_a_folder_that_is_gone_meanwhile_is_no_error_and_one_that_may_not_go_is_a_line(
    place: tuple[Site, Store],
) -> None:
    site, store = place
    found = gc.find(site, store, 0.0)
    shutil.rmtree(site.runs / UNKNOWN.id)
    about = {"kind": "draft", "size": 1, "age": 1.0, "why": "a test"}
    fixed = gc.Item(name="fixed", remove=lambda: str(site.runs.rmdir()), **about)
    lines, num_left = gc.remove(gc.Found(items=(*found.items, fixed)))
    assert num_left == 1
    assert [line for line in lines if line.startswith("kept")] == ["kept  fixed: Directory not empty"]


def test_a_folder_of_runs_behind_a_link_and_one_that_is_not_there(
    place: tuple[Site, Store], tmp_path: Path
) -> None:
    site, store = place
    (tmp_path / "link").symlink_to(site.runs)
    linked = Site(runs=tmp_path / "link", reports=site.reports, tracking_uri=store.address)
    by_link, directly = (gc.find(each, Store(each), 0.0).items for each in (linked, site))
    assert [(item.kind, item.name, item.why) for item in by_link] == [
        (item.kind, item.name, item.why) for item in directly
    ]
    nowhere = Site(runs=tmp_path / "nowhere")
    assert list(gc.find(nowhere, Store(nowhere)).lines()) == [
        f"The folder {nowhere.runs} does not exist.",
        "Nothing to remove.",
    ]
    assert not nowhere.runs.exists()


def test_another_store_s_runs_stay(place: tuple[Site, Store], tmp_path: Path) -> None:
    """With the wrong tracking store every run looks unfinished; encoders that took days must stay."""
    site, _ = place
    put(site.runs / EVALUATION.id / "log.txt", b"")
    with lease.take(site.runs / EVALUATION.id, EVALUATION.id, heartbeat=10.0) as held:
        held.finished()
    other = Site(runs=site.runs, reports=site.reports, tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")
    found = gc.find(other, Store(other), 0.0)
    assert not {f"runs/{spec.id}" for spec in (FINISHED, EVALUATION, STRANGE)} & names(found, "run")


MANY = 20_000


def test_a_kill_in_the_middle_leaves_no_half_folder_under_a_run_s_name(place: tuple[Site, Store]) -> None:
    site, store = place
    folder = site.runs / UNKNOWN.id
    for number in range(MANY):
        (folder / f"{number}").touch()
    home = Home(site.runs.parent)
    command = subprocess.Popen(
        [sys.executable, "-m", "invoke", "gc", "--delete", "--older-than", "0"],
        cwd=ROOT,
        env=home.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 300
    while not (aside := list(site.runs.glob(f"{gc.ASIDE}{UNKNOWN.id}*"))):
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    command.send_signal(signal.SIGKILL)
    command.communicate(timeout=60)
    assert not folder.exists()
    assert 0 < len(list(aside[0].iterdir())) <= MANY + 5, "it was too fast to be killed"
    found = gc.find(site, store, 0.0)
    assert f"runs/{aside[0].name}" in names(found, "draft")
    gc.remove(found)
    assert not aside[0].exists()


def rendered(home: Home) -> dict[Path, bytes]:
    """Return the content of every report."""
    files = (path for path in (home.reports / "smoke").rglob("[!.]*") if path.is_file())
    return {path: path.read_bytes() for path in files}


def test_tables_are_as_before(place: tuple[Site, Store]) -> None:
    """A finished table is reused, and rendered to the same bytes, after everything else is gone."""
    site, store = place
    store.connection.client  # noqa: B018 (the first to open a copied store says that it corrects paths)
    home, table = Home(site.runs.parent), ("table8", "--rows", "BYOL", "--set", "epochs=3")
    assert home.invoke(*table).returncode == 0
    reports = rendered(home)

    now = ("--older-than", "0")
    for arguments in (("--dry", "gc", "--delete", *now), ("gc", "--delete", *now)):
        listed = home.invoke(*arguments)
        assert (listed.returncode, listed.stderr) == (0, "")
        assert (home.runs / STRANGE.id).exists() == ("--dry" in arguments)
        assert "3 runs, 1 checkpoint set, 3 drafts, 2 feature files, 3 records: " in listed.stdout
    done = home.invoke(*table)
    assert done.stdout.startswith("0 runs done, 2 reused, 0 missing, in ")
    assert rendered(home) == reports
