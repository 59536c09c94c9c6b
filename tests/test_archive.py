"""Reports and records that travel as a file: what arrives, what is refused, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Home
from invoke import Context, Exit
from toys import backbone, ended
from waiting import joined

import tasks
from reproduce.commands import archive
from reproduce.commands.archive import export
from reproduce.commands.make import produce
from reproduce.commands.receive import Archive, receive
from reproduce.nn.encoder import FILE
from reproduce.plan import Request
from reproduce.runs import encoder_file
from reproduce.runs.files import DRAFT
from reproduce.site import PROJECT, Site
from reproduce.spec import Evaluate, Pretrain, Spec
from reproduce.tracking.portable import from_json, to_json
from reproduce.tracking.store import Store

pytestmark = pytest.mark.slow  # MLflow takes seconds to import and its store seconds to create

fork = multiprocessing.get_context("fork")

REQUEST = Request(table="table4")
SPECS = REQUEST.specs()
FIRST, SECOND = (spec for spec in SPECS if isinstance(spec, Pretrain))
EVALUATIONS = [spec for spec in SPECS if isinstance(spec, Evaluate)]
TOP = {EVALUATIONS[0].id: 0.25, EVALUATIONS[1].id: 0.5}
Members = dict[str, bytes]


def trained(store: Store, spec: Spec, final: dict[str, float]) -> str:
    """Record a finished run like a worker, in its second attempt; return MLflow's name of it."""
    with store.start(spec, scale="smoke") as run:
        run.log(1, {"loss": 4.0, "rank": math.nan})
        run.log(2, {"loss": 3.0})
    with store.start(spec, scale="smoke") as run:
        run.log(2, {"loss": 2.0})
        run.log(3, {"loss": 1 / 3})
        run.tag("data_digest", "d" * 64)
        if isinstance(spec, Pretrain):
            path = store._site.runs / spec.id / FILE
            tensors = backbone(spec)
            run.artifact(encoder_file.save(path, tensors, spec_id=spec.id))
        run.finish(final)
    return run.run_id


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file by its name, except `runs.csv`, which contains one store's ids, and hidden files.

    A killed rendering may leave hidden files.
    """
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("[!.]*"))
        if path.is_file() and path.name != "runs.csv"
    }


def site_in(folder: Path) -> Site:
    return Site(runs=folder / "runs", reports=folder / "reports", device="cpu")


def fresh(folder: Path, template: Path) -> Site:
    site = site_in(folder)
    site.runs.mkdir(parents=True)
    shutil.copy(template, site.runs)
    return site


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run tests without the caller's server."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Site:
    """Return a site with the four runs of Table 4 and its reports; one encoder is in the store alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        site = fresh(tmp_path_factory.mktemp("origin"), template)
        store = Store(site)
        for spec in SPECS:
            final = (
                {"loss": math.nan, "images_per_second": 600.0}
                if isinstance(spec, Pretrain)
                else dict.fromkeys(metrics(), TOP[spec.id])
            )
            trained(store, spec, final)
        (site.runs / SECOND.id / FILE).unlink()
        assert produce([REQUEST], site, render_only=True) == 0
    return site


def metrics() -> set[str]:
    return {ours.metric for *_, ours in REQUEST.build().measured()}


@pytest.fixture(scope="module")
def sent(origin: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the export of that site, including encoders."""
    file = tmp_path_factory.mktemp("sent") / "sent.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        told = export(file, "smoke", origin, Store(origin), encoders=True)
    assert told.startswith(f"{file}: 1 table (smoke), 4 runs, ")
    return file


@pytest.fixture
def site(tmp_path: Path, template: Path) -> Site:
    """Return another, empty site."""
    return fresh(tmp_path / "another", template)


def test_the_reports_rendered_from_an_import_are_the_same_bytes(sent: Path, origin: Site, site: Site) -> None:
    received = receive(sent, site, Store(site))
    assert (
        str(received) == "4 runs added, 0 already present, 0 with different values. 2 encoders added. "
        "1 table added to the reports at smoke."
    )
    assert received.code == 0
    assert {path.name for path in site.reports.glob("smoke/[!.]*")} == {
        "claims.html",
        "claims.md",
        "index.html",
        "report.html",
        "report.tex",
        "runs",
        *(["report.pdf"] if shutil.which("pdflatex") else []),
        *(f"table4.{kind}" for kind in archive.render.FORMATS),
        "figures",
    }
    assert "smoke/figures/table4-agreement.svg" in tree(site.reports)
    assert tree(site.reports) == tree(origin.reports)
    assert {path.stem for path in site.reports.glob("smoke/runs/*.html")} == {
        spec.id for spec in REQUEST.specs()
    }
    linked = b'href="report.pdf"' in tree(site.reports)["smoke/index.html"]
    assert linked == bool(shutil.which("pdflatex"))
    assert (origin.reports / "smoke" / "runs.csv").exists()
    shutil.rmtree(site.reports)
    assert produce([REQUEST], site, render_only=True) == 0
    assert tree(site.reports) == tree(origin.reports)
    assert b"25.0" in tree(site.reports)["smoke/table4.md"]
    for content in tree(site.reports).values():
        assert not re.search(rb"\b[0-9a-f]{32}\b", content), (
            "MLflow's name of a run, which is another one in every store"
        )


def test_a_record_arrives_whole(sent: Path, origin: Site, site: Site) -> None:
    receive(sent, site, Store(site))
    store, before = Store(site), Store(origin)
    found, there = store.finished(spec.id for spec in SPECS), before.finished(spec.id for spec in SPECS)
    for spec_id, run in there.items():
        assert repr(found[spec_id].metrics) == repr(run.metrics)  # as texts, two nan are equal
    first, original = (
        store.connection.client.get_run(found[FIRST.id].run_id),
        before.connection.client.get_run(there[FIRST.id].run_id),
    )
    assert store.history(first.info.run_id, "loss") == [(1, 4.0), (2, 2.0), (3, 1 / 3)]
    assert math.isnan(store.history(first.info.run_id, "rank")[0][1])
    assert (first.info.start_time, first.info.end_time, first.info.status) == (
        original.info.start_time,
        original.info.end_time,
        "FINISHED",
    )
    assert first.data.params == original.data.params
    local = {"owner", "imported", "mlflow.note.content", "mlflow.user"}
    assert {key: value for key, value in first.data.tags.items() if key not in local} == {
        key: value for key, value in original.data.tags.items() if key not in local | {"reason"}
    }
    with zipfile.ZipFile(sent) as zipped:
        assert first.data.tags["imported"] == hashlib.sha256(zipped.read("manifest.json")).hexdigest()
    names = {entry.path for entry in store.connection.client.list_artifacts(first.info.run_id)}
    assert names == {"spec.json", "environment.json", "environment-2.json"}
    for name in names:
        ours, theirs = (
            each.download(run.info.run_id, name, site.runs / folder).read_text()
            for each, run, folder in ((store, first, "new"), (before, original, "old"))
        )
        assert ours == theirs
    child = store.connection.client.get_run(found[EVALUATIONS[0].id].run_id)
    assert child.data.tags["mlflow.parentRunId"] == found[EVALUATIONS[0].encoder.id].run_id
    assert {row.state for row in store.status()} == {"finished"}
    for spec in (FIRST, SECOND):
        found = encoder_file.load(site.runs / spec.id / FILE, spec_id=spec.id)
        assert encoder_file.digest(found) == encoder_file.digest(backbone(spec))


def test_the_same_runs_give_the_same_bytes_here_and_after_an_import(
    sent: Path, origin: Site, site: Site, tmp_path: Path
) -> None:
    for path in origin.reports.rglob("*.*"):
        os.utime(path, (1, 1))
    export(tmp_path / "again.zip", "", origin, Store(origin), encoders=True)
    assert (tmp_path / "again.zip").read_bytes() == sent.read_bytes()
    receive(sent, site, Store(site))
    export(tmp_path / "back.zip", "smoke", site, Store(site), encoders=True)
    assert (tmp_path / "back.zip").read_bytes() == sent.read_bytes()
    with zipfile.ZipFile(sent) as zipped:
        assert zipped.namelist() == sorted(zipped.namelist())
        assert {info.date_time for info in zipped.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        for part in (str(origin.runs), str(PROJECT)):
            assert not [name for name in zipped.namelist() if part.encode() in zipped.read(name)]
    export(tmp_path / "small.zip", "smoke", origin, Store(origin))
    with zipfile.ZipFile(tmp_path / "small.zip") as zipped:
        assert not [name for name in zipped.namelist() if name.endswith(FILE)]


def test_a_second_import_changes_nothing(sent: Path, site: Site) -> None:
    receive(sent, site, Store(site))
    before, runs = tree(site.reports), {row.run_id for row in Store(site).status()}
    received = receive(sent, site, Store(site))
    assert str(received) == "0 runs added, 4 already present, 0 with different values."
    assert received.code == 0
    assert tree(site.reports) == before
    assert {row.run_id for row in Store(site).status()} == runs
    (site.runs / FIRST.id / FILE).unlink()
    assert receive(sent, site, Store(site)).encoders == 1


def test_an_import_names_the_runs_that_redo_has_marked(sent: Path, site: Site) -> None:
    receive(sent, site, Store(site))
    marked = EVALUATIONS[0].id
    Store(site).supersede(marked, "its number is odd")
    again = receive(sent, site, Store(site))
    assert (again.added, again.present, again.code) == (1, 3, 0)
    (line,) = again.returned
    assert line.startswith(f"run {marked} was marked by `invoke redo`; the imported one counts now.")
    assert line in str(again)
    assert marked in Store(site).finished([marked])


def test_a_run_with_other_values_here_stays_and_the_others_are_added(sent: Path, site: Site) -> None:
    store, (other, _) = Store(site), EVALUATIONS
    trained(store, FIRST, {"loss": math.nan, "images_per_second": 1.0})  # only its speed differs
    trained(store, other, dict.fromkeys(metrics(), 0.75))
    received = receive(sent, site, store)
    assert (received.added, received.present, received.code) == (2, 1, 1)
    assert len(received.clashes) == 1
    assert f"clash: {other.id} " in received.clashes[0]
    assert f"{min(metrics())} 0.75 here, 0.25 in the archive" in received.clashes[0]
    assert store.finished([other.id])[other.id].metrics == dict.fromkeys(metrics(), 0.75)
    assert set(store.finished(spec.id for spec in SPECS)) == {spec.id for spec in SPECS}


def test_reports_and_encoders_that_are_others_here_are_kept(sent: Path, origin: Site, site: Site) -> None:
    folder, encoder = site.reports / "smoke", site.runs / SECOND.id / FILE
    folder.mkdir(parents=True)
    encoder.parent.mkdir()
    (folder / "table4.md").write_text("mine")
    encoder.write_bytes(b"mine")
    received = receive(sent, site, Store(site))
    assert (received.code, received.added, received.encoders, received.tables) == (0, 4, 1, {})
    assert [str(folder / "table4.*") in line or str(encoder) in line for line in received.kept] == [
        True,
        True,
    ]
    assert "invoke reports --scale smoke" in str(received)
    assert (folder / "table4.md").read_text() == "mine"
    assert not (folder / "table4.json").exists()
    assert encoder.read_bytes() == b"mine"
    (folder / "table4.md").write_bytes(tree(origin.reports)["smoke/table4.md"])
    assert receive(sent, site, Store(site)).tables == {"smoke": 1}
    assert tree(site.reports) == tree(origin.reports)


def test_an_encoder_that_did_not_come_along_is_missed_in_words(
    sent: Path, origin: Site, site: Site, tmp_path: Path
) -> None:
    export(tmp_path / "small.zip", "smoke", origin, Store(origin))
    receive(tmp_path / "small.zip", site, Store(site))
    with pytest.raises(LookupError, match=r"has no encoder\.safetensors of its run"):
        Store(site).download(Store(site).finished([FIRST.id])[FIRST.id].run_id, FILE, tmp_path)
    with pytest.raises(LookupError, match=f"encoder of run {FIRST.id}|encoder of run {SECOND.id}"):
        export(tmp_path / "large.zip", "smoke", site, Store(site), encoders=True)
    assert not list(tmp_path.glob("*large*"))


# Kills
# ----------------------------------------------------------------------------------------------------------


def strike(site: Site, at: int, number: signal.Signals) -> Callable[[], int]:
    """Send a signal to this process at the `at`-th time that a file of the site is written or renamed.

    Returns:
        A function that returns the number of such operations so far.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "os.rename" or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (
            writes
            and str(arguments[0]).startswith(str(site.runs.parent))
            and not str(arguments[0]).endswith(".lock")
        ):
            count += 1
            if count == at:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    return lambda: count


def interrupted(sent: Path, site: Site, at: int, seen: Any) -> None:
    """Import in this process, and be killed at a write."""
    count = strike(site, at, signal.SIGKILL)
    receive(sent, site, Store(site))
    seen.put(count())


def told_to_stop(sent: Path, home: Home) -> None:
    """Run `invoke import` in this process, with a Ctrl-C at the first write, inside the first record."""
    os.environ |= home.environment
    strike(Site(runs=home.runs), 1, signal.SIGINT)
    try:
        tasks.receive.body(Context(), file=str(sent))
    except Exit as error:
        sys.exit(error.code)


def test_an_import_that_is_killed_anywhere_is_completed_by_the_same_command(
    sent: Path, origin: Site, template: Path, tmp_path: Path
) -> None:
    seen = fork.Queue()
    process = fork.Process(target=interrupted, args=(sent, fresh(tmp_path / "counted", template), 0, seen))
    process.start()
    total = seen.get(timeout=60)
    joined(process)
    assert total > 20
    halfway = 0
    for at in (2, total // 4, total // 2, total - 1):
        site = fresh(tmp_path / f"killed at {at}", template)
        process = fork.Process(target=interrupted, args=(sent, site, at, seen))
        process.start()
        assert joined(process) == -signal.SIGKILL
        store = Store(site)
        done = store.finished(spec.id for spec in SPECS)
        halfway += 0 < len(done) < 4
        assert all(
            set(run.metrics.values()) == {TOP[spec_id]} for spec_id, run in done.items() if spec_id in TOP
        )
        assert {row.state for row in store.status()} <= {"finished", "interrupted"}
        received = receive(sent, site, store)
        assert (received.added, received.present, received.code) == (4 - len(done), len(done), 0)
        assert {row.state for row in store.status()} == {"finished"}
        assert tree(site.reports) == tree(origin.reports)
        assert not list(site.runs.parent.rglob("*.tmp"))
        export(site.runs / "back.zip", "smoke", site, store, encoders=True)
        assert (site.runs / "back.zip").read_bytes() == sent.read_bytes()
    assert halfway


def test_what_an_import_left_half_written_is_not_resumed_by_a_training(
    sent: Path, template: Path, tmp_path: Path
) -> None:
    site = fresh(tmp_path / "killed", template)
    process = fork.Process(target=interrupted, args=(sent, site, 1, None))
    process.start()
    joined(process)
    (left,) = Store(site).status()
    spec = next(spec for spec in SPECS if spec.id == left.spec_id)
    run = Store(site).start(spec, scale="smoke")
    assert run.run_id != left.run_id


def test_an_import_that_is_told_to_stop_completes_the_record_under_way(sent: Path, place: Home) -> None:
    assert ended(told_to_stop, sent, place) == 128 + signal.SIGINT
    (row,) = Store(Site(runs=place.runs)).status()
    assert row.state == "finished"


# Refusals
# ----------------------------------------------------------------------------------------------------------


def members(file: Path) -> Members:
    with zipfile.ZipFile(file) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def listed(content: Members) -> Members:
    """Return the members with a manifest that fits them."""
    files = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in content.items()
        if name != "manifest.json"
    }
    manifest = {"kind": archive.KIND, "version": archive.VERSION, "files": files}
    return content | {"manifest.json": json.dumps(manifest).encode()}


def zipped(
    file: Path, content: Members, change: Callable[[zipfile.ZipInfo], None] = lambda info: None
) -> Path:
    with zipfile.ZipFile(file, "w") as archive_file:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            change(info)
            archive_file.writestr(info, data)
    return file


RECORD = EVALUATION = f"runs/{EVALUATIONS[0].id}/record.json"
ENCODER = f"runs/{FIRST.id}/{FILE}"
NOW = 1_700_000_000_000
UPSTREAM = f"runs/{EVALUATIONS[0].encoder.id}/record.json"


def edited(content: Members, name: str, change: Callable[[Any], Any]) -> Members:
    """Return the members with the JSON of one of them changed."""
    data = json.loads(content[name])
    return content | {name: json.dumps(change(data)).encode()}


def settings(record: Any) -> Any:
    record["settings"]["seed"] = 7
    return record


def changed(**fields: Any) -> Callable[[Members], Members]:
    """Return a change of fields of a record."""
    return lambda content: listed(edited(content, RECORD, lambda record: record | fields))


def tagged(**tags: str) -> Callable[[Any], Any]:
    return lambda record: record | {"tags": record["tags"] | tags}


def tag(**tags: str) -> Callable[[Members], Members]:
    """Return a change of tags of an evaluation's record."""
    return lambda content: listed(edited(content, EVALUATION, tagged(**tags)))


def cores(record: Any) -> Any:
    return record | {"environments": {"environment.json": {"cores": "many"}}}


def nested(levels: int) -> Any:
    return {"inside": nested(levels - 1)} if levels else {}


def encoder(tensors: dict[str, torch.Tensor]) -> bytes:
    """Return an encoder of the first run with any tensors."""
    with tempfile.TemporaryDirectory() as folder:
        return encoder_file.save(Path(folder) / FILE, tensors, spec_id=FIRST.id).read_bytes()


def version(manifest: Any) -> Any:
    return manifest | {"version": 2}


def value(text: bytes) -> Callable[[Members], Members]:
    """Return a change that puts `text` in the place of a number in a history."""
    return lambda content: listed(content | {RECORD: content[RECORD].replace(b"4.0", text, 1)})


def without(content: Members, *names: str) -> Members:
    return {name: data for name, data in content.items() if name not in names}


REFUSED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "another version": (
        lambda c: edited(c, "manifest.json", version),
        "has version 2, but this suite reads version 1",
    ),
    "another program's": (
        lambda c: c | {"manifest.json": b"{}"},
        "manifest.json was written by another program",
    ),
    "no manifest": (lambda c: without(c, "manifest.json"), "it has no manifest.json"),
    "no JSON": (lambda c: c | {"manifest.json": b"[" * 100_000}, "manifest.json is not JSON"),
    "a file fewer": (lambda c: without(c, "reports/smoke/table4.md"), "it lacks reports/smoke/table4.md"),
    "a file more": (
        lambda c: c | {"reports/smoke/table9.md": b"x"},
        "it contains reports/smoke/table9.md, which its manifest does not list",
    ),
    "other bytes": (
        lambda c: c | {RECORD: c[RECORD].replace(b"0.25", b"0.52")},
        f"{RECORD} does not match the manifest",
    ),
    "other sizes": (lambda c: c | {RECORD: c[RECORD] + b" "}, r"has \d+ bytes, but the manifest lists \d+"),
    "a parent folder": (
        lambda c: listed(c | {"reports/smoke/../../../evil.md": b"x"}),
        "is not a name of a report",
    ),
    "two dots": (lambda c: listed(c | {"reports/../evil.md": b"x"}), "is not a name of a report"),
    "an absolute name": (lambda c: listed(c | {"/tmp/evil.md": b"x"}), "is not a name of a report"),
    "a drive": (lambda c: listed(c | {"reports/smoke/C:evil.md": b"x"}), "is not a name of a report"),
    "a backslash": (lambda c: listed(c | {"reports/smoke/..\\evil.md": b"x"}), "is not a name of a report"),
    "a hidden file": (lambda c: listed(c | {"reports/smoke/.evil.md": b"x"}), "is not a name of a report"),
    "another kind of file": (
        lambda c: listed(c | {"reports/smoke/evil.py": b"x"}),
        "is not a name of a report",
    ),
    "another scale": (lambda c: listed(c | {"reports/huge/table4.md": b"x"}), "is not a name of a report"),
    "no id": (lambda c: listed(c | {"runs/../record.json": b"x"}), "is not a name of a report"),
    "settings of another run": (
        lambda c: listed(edited(c, RECORD, settings)),
        f"its id is {EVALUATIONS[0].id}, but its settings",
    ),
    "a record of another run": (
        lambda c: listed(c | {RECORD: c[UPSTREAM]}),
        f"{RECORD} is the record of run {EVALUATIONS[0].encoder.id}",
    ),
    "no run upstream": (
        lambda c: listed(without(c, UPSTREAM, UPSTREAM.replace("record.json", FILE))),
        f"run {EVALUATIONS[0].id} needs run {EVALUATIONS[0].encoder.id}, which the archive lacks",
    ),
    "no run that is cited": (
        lambda c: listed(without(c, RECORD)),
        f"reports/smoke/table4.json needs run {EVALUATIONS[0].id}",
    ),
    "an encoder of another run": (
        lambda c: listed(c | {f"runs/{FIRST.id}/{FILE}": c[f"runs/{SECOND.id}/{FILE}"]}),
        f"it is the encoder of run {SECOND.id}",
    ),
    "no encoder": (
        lambda c: listed(c | {f"runs/{FIRST.id}/{FILE}": b"x" * 99}),
        "it is not a safetensors file",
    ),
    "an encoder of an evaluation": (
        lambda c: listed(c | {RECORD.replace("record.json", FILE): b""}),
        f"no record of a pretraining run {EVALUATIONS[0].id}",
    ),
    "other values in an encoder": (
        lambda c: listed(c | {ENCODER: c[ENCODER][:-1] + bytes([c[ENCODER][-1] ^ 1])}),
        "its values do not match its digest",
    ),
    "an encoder of another shape": (
        lambda c: listed(c | {ENCODER: encoder({"backbone.w": torch.ones(2)})}),
        f"it is not a {FIRST.backbone}",
    ),
    "an encoder that is not the evaluated one": (
        lambda c: listed(edited(c, EVALUATION, tagged(encoder_digest="e" * 64))),
        "evaluated another encoder than that of run",
    ),
    "a report without its numbers": (
        lambda c: listed(without(c, "reports/smoke/table4.json")),
        r"it contains a report of table4, but not reports/smoke/table4\.json",
    ),
    "two tables of one name": (
        lambda c: listed(c | {"reports/smoke/TABLE4.json": c["reports/smoke/table4.json"]}),
        "differ from table4 only in capital letters",
    ),
    "an index that is a table": (
        lambda c: listed(c | {"reports/smoke/index.json": c["reports/smoke/table4.json"]}),
        "is not a name of a report",
    ),
    "a name that no disk takes": (
        lambda c: listed(c | {f"reports/smoke/{'x' * 300}.md": b"x"}),
        "is not a name of a report",
    ),
    "no digest": (
        lambda c: c | {"manifest.json": c["manifest.json"].replace(b'"sha256": "', b'"sha256": "x', 1)},
        "has no digest of",
    ),
    "a name twice": (
        lambda c: listed(c | {RECORD: c[RECORD].replace(b"{", b'{"name": "x",', 1)}),
        "is not JSON \\(a name is there twice",
    ),
    "a time that is no time": (changed(started=99_999_999_999_999_999), "in place of a time"),
    "a time before 1970": (changed(started=-1), "in place of a time"),
    "a time in the future": (changed(ended=4_102_444_800_000), "in place of a time"),
    "an end before the start": (
        lambda c: listed(edited(c, RECORD, lambda r: r | {"started": r["ended"], "ended": r["ended"] - 7})),
        "it ended 7 ms before it started",
    ),
    "an escape code": (changed(name="\x1b[31mrun"), "the control character"),
    "a text from right to left": (changed(name="run \u202e"), "the control character"),
    "a long name": (changed(name="x" * 300), "a text of 300 characters, but at most 250"),
    "a long tag": (tag(device="x" * 9000), "a text of 9000 characters, but at most 8000"),
    "a long setting": (
        changed(params={"epochs": "1" * 7000}),
        "a text of 7000 characters, but at most 6000",
    ),
    "attempts that are no number": (tag(attempts="two"), "its tag 'attempts' is 'two'"),
    "another kind": (tag(kind="pretrain"), "its tag 'kind' is 'pretrain', unlike its settings"),
    "another setting": (changed(params={"seed": "7"}), "its setting 'seed' is '7', but '0' in its spec"),
    "a final value as a measurement": (
        changed(histories={"final/top1": [[0, 0.99, NOW]]}),
        "the name of a final value",
    ),
    "a step twice": (changed(histories={"loss": [[1, 1.0, NOW], [1, 2.0, NOW]]}), "steps are not in order"),
    "an evaluation without a result": (changed(final={}), "an evaluation without a final value"),
    "a name that a disk would change": (changed(final={"a//b": 1.0}), "is not a name of a tag"),
    "an environment without end": (
        changed(environments={"environment.json": nested(40)}),
        "more than 32 levels",
    ),
    "an environment that is no number": (
        lambda c: listed(c | {RECORD: edited(c, RECORD, cores)[RECORD].replace(b'"many"', b"1e999")}),
        "it contains inf in place of a number",
    ),
    "a field more": (
        lambda c: listed(edited(c, RECORD, lambda record: record | {"more": 1})),
        "is not a record of a run",
    ),
    "a tag that is no name": (
        lambda c: listed(
            edited(c, RECORD, lambda record: record | {"tags": record["tags"] | {"a/../b": ""}})
        ),
        "'a/../b' is not a name of a tag",
    ),
    "a scale that is a path": (
        lambda c: listed(
            edited(c, RECORD, lambda record: record | {"tags": record["tags"] | {"scale": "../x"}})
        ),
        "its tag 'scale' is not a scale",
    ),
    "a text for a number": (value(b'"4"'), "it contains '4' in place of a float"),
    "an infinity": (value(b"Infinity"), "it contains inf in place of a number or null"),
    "half a character": (
        lambda c: listed(edited(c, RECORD, lambda record: record | {"name": "\ud800"})),
        "can't encode",
    ),
    "a step beyond all": (
        lambda c: listed(
            edited(c, RECORD, lambda record: record | {"histories": {"loss": [[2**70, 1.0, 1]]}})
        ),
        "in place of a step",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_archive_is_refused_in_one_line_before_anything_is_written(
    what: str, sent: Path, site: Site, tmp_path: Path
) -> None:
    change, says = REFUSED[what]
    file, before = zipped(tmp_path / "bad.zip", change(members(sent))), tree(site.runs.parent)
    with pytest.raises(ValueError, match=says) as caught:
        receive(file, site, Store(site))
    message = str(caught.value)
    assert message.startswith(f"{file} was refused: ")
    assert "\n" not in message
    assert len(message) < 1000
    assert tree(site.runs.parent) == before


def test_a_report_that_cannot_be_shown_is_skipped_and_all_else_arrives(
    sent: Path, origin: Site, site: Site, tmp_path: Path
) -> None:
    """Its runs are there, so a command renders it again; nothing of the report itself is written."""
    other = json.loads(members(sent)["reports/smoke/table4.json"]) | {"table": "table44", "figures": []}
    other["rows"][0]["note"] = "$x"
    content = listed(members(sent) | {"reports/smoke/table44.json": json.dumps(other).encode()})
    received = receive(zipped(tmp_path / "other.zip", content), site, Store(site))
    assert (received.added, received.tables, received.code) == (4, {"smoke": 1}, 1)
    assert [
        line.startswith("skipped: reports/smoke/table44.json cannot be shown") for line in received.skipped
    ] == [True]
    assert tree(site.reports) == tree(origin.reports)
    content = listed(members(sent) | {"reports/smoke/table4.json": b"{}"})
    received = receive(zipped(tmp_path / "bad.zip", content), site, Store(site))
    assert (received.present, received.tables, received.code) == (4, {}, 1)
    assert "table4.json is not a report that this version wrote" in str(received)
    assert "\n\n" not in str(received)


def test_pages_arrive_as_their_numbers_are_rendered_here(
    sent: Path, origin: Site, site: Site, tmp_path: Path
) -> None:
    page = b"<script>alert(1)</script>"
    names = ("table4.html", "index.html", "figures/table4-agreement.svg", "figures/table4-other.svg")
    content = listed(members(sent) | {f"reports/smoke/{name}": page for name in names})
    receive(zipped(tmp_path / "other.zip", content), site, Store(site))
    assert tree(site.reports) == tree(origin.reports)


def test_a_place_that_cannot_be_written_is_known_before_anything_is(sent: Path, site: Site) -> None:
    before = tree(site.runs.parent)
    site.reports.write_text("mine")
    with pytest.raises(ValueError, match=r"because .* is not a folder; nothing was written"):
        receive(sent, site, Store(site))
    site.reports.unlink()
    (site.runs / FIRST.id / FILE).mkdir(parents=True)
    with pytest.raises(ValueError, match="is not a file; nothing was written"):
        receive(sent, site, Store(site))
    assert tree(site.runs.parent) == before


def test_an_encoder_with_the_same_tensors_is_the_same(sent: Path, site: Site) -> None:
    receive(sent, site, Store(site))
    path = site.runs / FIRST.id / FILE
    tensors = encoder_file.load(path, spec_id=FIRST.id)
    before = path.read_bytes()
    from safetensors.torch import save

    metadata = {"spec_id": FIRST.id, "sha256": encoder_file.digest(tensors), "more": "x"}
    path.write_bytes(save(tensors, metadata=metadata))
    assert path.read_bytes() != before
    assert receive(sent, site, Store(site)).kept == []
    path.write_bytes(before[:-1])
    (line,) = receive(sent, site, Store(site)).kept
    assert line.startswith(f"kept: {path}: it is broken (")
    assert "delete it and import again" in line


def link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def deflated(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(("change", "says"), [(link, "is a link"), (deflated, "is compressed or encrypted")])
def test_links_and_compressed_files_are_refused(
    change: Callable[[zipfile.ZipInfo], None], says: str, sent: Path, site: Site, tmp_path: Path
) -> None:
    bomb = listed(members(sent) | {"reports/smoke/table4.md": b"0" * 10_000_000})
    with pytest.raises(ValueError, match=says):
        receive(zipped(tmp_path / "bad.zip", bomb, change), site, Store(site))
    assert not site.reports.exists()


def test_a_file_that_is_there_twice_is_refused(sent: Path, site: Site, tmp_path: Path) -> None:
    file = Path(shutil.copy(sent, tmp_path / "bad.zip"))
    with zipfile.ZipFile(file, "a") as again, pytest.warns(UserWarning, match="Duplicate name"):
        again.writestr("reports/smoke/table4.md", "another")
    with pytest.raises(ValueError, match="it contains a file twice"):
        receive(file, site, Store(site))


def opened(file: Path) -> tuple[str, str] | str:
    """Return the archive's digest and records, or the reason why it is refused."""
    try:
        with Archive.opened(file) as found:
            return repr(found.check()), found.digest
    except ValueError as error:
        return str(error)


def test_whatever_is_cut_off_or_flipped_is_refused_or_does_not_matter(
    sent: Path, site: Site, tmp_path: Path
) -> None:
    """A flipped bit outside the files' content, such as in a date, changes no file and may pass."""
    whole, chance, file = sent.read_bytes(), random.Random(0), tmp_path / "bad.zip"
    good, refused = opened(sent), 0
    for number in range(300):
        place = chance.randrange(len(whole))
        broken = bytearray(whole)
        broken[place] ^= 1 << chance.randrange(8)
        file.write_bytes(whole[:place] if number % 10 == 0 else broken)
        found = opened(file)
        refused += isinstance(found, str)
        assert "\n" not in found if isinstance(found, str) else found == good
    assert refused > 250
    file.write_text("hello")
    with pytest.raises(ValueError, match="is not a complete zip file"):
        receive(file, site, Store(site))
    with pytest.raises(LookupError, match=r"The file 'nowhere\.zip' does not exist"):
        receive(Path("nowhere.zip"), site, Store(site))


def change(file: Path, member: str) -> None:
    """Flip bits of a member, in place, by CRC-32's polynomial: the CRC that a zip compares stays the same."""
    whole = bytearray(file.read_bytes())
    place = whole.index(members(file)[member]) + 20
    for offset, byte in enumerate(0x1DB710641.to_bytes(5, "little")):
        whole[place + offset] ^= byte
    file.write_bytes(whole)


def test_the_first_and_the_second_reading_each_compare_the_digest(sent: Path, tmp_path: Path) -> None:
    """A page is read once. An encoder is read again when it is written, after another program changed it."""
    page, weights = "reports/smoke/table4.md", f"runs/{FIRST.id}/{FILE}"
    file = Path(shutil.copy(sent, tmp_path / "changed.zip"))
    with Archive.opened(file) as found:
        found.check()
        change(file, weights)
        with pytest.raises(ValueError, match=f"{weights} does not match the manifest"):
            found.read(weights)
    file = Path(shutil.copy(sent, tmp_path / "changed.zip"))
    change(file, page)
    with zipfile.ZipFile(file) as zipped:
        assert zipped.testzip() is None
    with (
        Archive.opened(file) as found,
        pytest.raises(ValueError, match=f"{page} does not match the manifest"),
    ):
        found.check()


def origin_of(reports: Site, runs: Site) -> Site:
    """Return a site with the reports of one and the runs of another."""
    return Site(runs=runs.runs, reports=reports.reports)


def test_an_export_that_cannot_be_whole_says_why(origin: Site, site: Site, tmp_path: Path) -> None:
    store = Store(site)
    with pytest.raises(LookupError, match=r"No report exists in .*`invoke reports --scale small` renders"):
        export(tmp_path / "new.zip", "small", origin, Store(origin))
    with pytest.raises(LookupError, match=r"There is no scale 'smok'. Did you mean 'smoke'"):
        export(tmp_path / "new.zip", "smok", origin, Store(origin))
    with pytest.raises(LookupError, match="No report exists in any scale's folder"):
        export(tmp_path / "new.zip", "", site, store)
    shutil.copytree(origin.reports, site.reports)
    with pytest.raises(
        LookupError,
        match=r"table4\.json needs run [0-9a-f]{12}: .* has no finished run .* renders it again",
    ):
        export(tmp_path / "new.zip", "", site, store)
    report = site.reports / "smoke" / "table4.json"
    whole = report.read_text()
    report.with_name("table7.json").write_text("{}")
    (site.reports / "smoke" / "table7.md").write_text("of no use without its numbers")
    told = export(tmp_path / "most.zip", "smoke", origin_of(site, origin), Store(origin))
    assert told.splitlines()[0].startswith(f"{tmp_path / 'most.zip'}: 1 table (smoke), 4 runs, ")
    assert told.splitlines()[1].startswith("left out: reports/smoke/table7.json is not a report")
    assert not [name for name in members(tmp_path / "most.zip") if "table7" in name]
    report.with_name("table7.json").unlink()
    report.write_text(whole.replace(EVALUATIONS[0].id, "f" * 32))
    with pytest.raises(
        ValueError,
        match="not a run's id: `invoke reports --scale smoke`, or the command that made it, renders",
    ):
        export(tmp_path / "new.zip", "", site, store)
    (tmp_path / "old.zip").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        export(tmp_path / "old.zip", "", origin, Store(origin))
    with pytest.raises(LookupError, match="does not exist: create it first"):
        export(tmp_path / "nowhere" / "new.zip", "", origin, Store(origin))
    assert (tmp_path / "old.zip").read_text() == "mine"
    assert not list(tmp_path.glob("*new*"))


def overtaken(file: Path, origin: Site) -> None:
    """Export to a file that another program writes while the archive's draft is written."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(DRAFT) and not file.exists():
            file.write_text("of another program")

    sys.addaudithook(hook)
    with pytest.raises(ValueError, match=r"new\.zip already exists: name another file"):
        export(file, "smoke", origin, Store(origin))


def test_a_file_that_appears_during_an_export_is_not_replaced(origin: Site, tmp_path: Path) -> None:
    file = tmp_path / "new.zip"
    assert ended(overtaken, file, origin) == 0
    assert file.read_text() == "of another program"
    assert list(tmp_path.iterdir()) == [file]


def test_a_record_is_the_same_after_a_file(sent: Path) -> None:
    data = json.loads(members(sent)[UPSTREAM])
    run = from_json(data, "it")
    assert json.loads(json.dumps(to_json(run))) == data
    assert data["final"] == {"images_per_second": 600.0, "loss": None}
    assert [(step, value) for step, value, _ in data["histories"]["loss"]] == [(1, 4.0), (2, 2.0), (3, 1 / 3)]
    assert run.agrees({"loss": math.nan})
    assert not run.agrees({"loss": 1.0})
    assert not run.agrees({})


def test_a_reason_in_a_report_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    site = Site(runs=tmp_path / "runs", data={"voc": tmp_path / "data", "coco": tmp_path / "data" / "coco"})
    place = f"{tmp_path}/data"
    assert site.without_places(
        f"root 'voc' is {place}, no folder; {place}/coco/a.jpg; {place}-2; x{place}"
    ) == (f"root 'voc' is <voc>, no folder; <coco>/a.jpg; {place}-2; x{place}")
    assert (
        site.without_places(f"not in {site.store}, see {site.runs}/0a/log.txt")
        == "not in the tracking store, see runs/0a/log.txt"
    )
    assert site.without_places(f"{PROJECT}/configs/site.toml") in ("./configs/site.toml", "site.toml")


def test_a_directory_that_would_fill_the_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("manifest.json", "{}")
    content = bytearray(path.read_bytes())
    content[-10:-6] = (2_000_000_000).to_bytes(4, "little")  # the size of the directory
    path.write_bytes(content)
    with (
        pytest.raises(
            ValueError, match=r"large\.zip is not a complete zip file \(its directory has 2 GB, more"
        ),
        Archive.opened(path),
    ):
        pass


def test_the_commands_print_a_line_and_end_with_their_codes(
    sent: Path, origin: Site, home: Home, template: Path, tmp_path: Path
) -> None:
    home.runs.mkdir()
    shutil.copy(template, home.runs)
    done = home.invoke("import", "--file", str(sent))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("4 runs added, ")
    assert tree(home.reports) == tree(origin.reports)
    (tmp_path / "bad.zip").write_bytes(sent.read_bytes()[:-100])
    for arguments, says in (
        (("import", "--file", str(tmp_path / "bad.zip")), "is not a complete zip file"),
        (("import",), "The file '' does not exist: give one that `invoke export` wrote"),
        (("export",), "No file was given: name one, such as --file msbreg.zip."),
    ):
        done = home.invoke(*arguments)
        assert done.returncode == 2
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    store = Store(site_in(home.folder))
    store.connection.client.log_metric(
        store.finished([EVALUATIONS[0].id])[EVALUATIONS[0].id].run_id, f"final/{min(metrics())}", 0.75
    )
    done = home.invoke("import", "--file", str(sent))
    assert (done.returncode, done.stderr) == (1, "")
    assert f"clash: {EVALUATIONS[0].id} " in done.stdout
