"""`invoke redo`: what is executed again, what stays, and that nothing of the old run fills the new one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Home
from toys import backbone, recorded

from reproduce.commands import redo
from reproduce.commands.make import produce
from reproduce.commands.options import RedoOptions
from reproduce.nn.encoder import FILE
from reproduce.plan import Request
from reproduce.runs import encoder_file, journal, lease
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking.store import Store

pytestmark = pytest.mark.slow  # MLflow takes seconds to import and its store seconds to create

TABLE = ("table4", "--rows", "BYOL", "--set", "epochs=1")
REQUEST = Request(table="table4", rows="BYOL", changes=("epochs=1",))
TRAINED, EVALUATION = REQUEST.specs()
ANOTHER = Request(table="table4", rows="BYOL", changes=("epochs=1", "protocol.temperature=0.2")).specs()[-1]
"""Another evaluation of the same encoder."""
SHOWN = "table4 (smoke): BYOL/top1_20, table4 (smoke): BYOL/top1_200"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Home:
    """Return a home with a finished pretraining, two evaluations of it, and a table."""
    home = Home(tmp_path_factory.mktemp("redo"))
    home.runs.mkdir()
    shutil.copy(template, home.runs)
    site = site_of(home)
    store = Store(site)
    assert isinstance(TRAINED, Pretrain)
    assert isinstance(EVALUATION, Evaluate)
    recorded(store, site, TRAINED, {"loss": 2.0})
    for spec in (EVALUATION, ANOTHER):
        recorded(store, site, spec, dict.fromkeys(EVALUATION.protocol.metrics, 0.75))
    assert produce([REQUEST], site, render_only=True) == 0
    return home


def site_of(home: Home) -> Site:
    return Site(runs=home.runs, reports=home.reports, device="cpu")


@pytest.fixture
def place(finished: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a copy of that home without artifacts: its encoder is in the run's folder alone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(finished.folder, tmp_path / "home", ignore=shutil.ignore_patterns("artifacts"))
    return Home(tmp_path / "home")


def by_mlflow(site: Site) -> Store:
    """Return a store that asks MLflow's client, as for a server."""
    store = Store(site)
    vars(store.connection)["reader"] = None
    return store


IDS = [TRAINED.id, EVALUATION.id, ANOTHER.id]


def test_a_marked_run_is_not_finished_however_the_store_is_read(place: Home) -> None:
    site = site_of(place)
    store = Store(site)
    (site.runs / TRAINED.id / journal.RESULT).write_text("{}")
    before = {row.spec_id: row.run_id for row in store.status()}
    chosen = redo.choose(TRAINED.id[:6], site, store)
    first, second, last = chosen.lines()
    assert {first.split()[1], second.split()[1]} == {EVALUATION.id, ANOTHER.id}
    assert last.startswith(f"again  {TRAINED.id}  byol ")
    (shown,) = [line for line in (first, second) if EVALUATION.id in line]
    assert shown.endswith(f"an evaluation of the encoder of {TRAINED.id}; shown in {SHOWN}")
    (line,) = redo.mark(chosen, site, store)
    assert line.startswith("3 runs marked. They are executed again by the next command that needs them.")
    for each in (store, by_mlflow(site)):
        assert each.finished(IDS) == {}
        assert each.complete() == []
        assert each.newest_finished("evaluate", "smoke", 10) == []
        assert {row.spec_id: row.run_id for row in each.status()} == before
        assert {row.state for row in each.status()} == {"superseded"}
        assert {record.state.state for record in each.records(IDS).values()} == {"superseded"}
        found = each.record_of(TRAINED.id)
        assert found is not None
        assert found.state.reason.startswith("by `invoke redo` on 20")
        assert each.unfinished() == []
    assert not store.delete(before[TRAINED.id])
    assert not (site.runs / TRAINED.id).exists()
    (aside,) = (site.runs / redo.FOLDER).glob(f"{TRAINED.id}-*")
    assert {FILE, journal.RESULT} <= {path.name for path in aside.iterdir()}

    recorded(store, site, TRAINED, {"loss": 1.0})
    for each in (store, by_mlflow(site)):
        (run,) = each.finished(IDS).values()
        assert (run.metrics, run.run_id == before[TRAINED.id]) == ({"loss": 1.0}, False)
        assert each.records(IDS)[TRAINED.id].state.run_id == run.run_id
    with pytest.raises(ValueError, match=r"is not finished but superseded \(by `invoke redo`"):
        redo.choose(EVALUATION.id, site, store)


def test_evaluations_stay_if_the_user_says_so_and_an_evaluation_leaves_its_encoder(place: Home) -> None:
    site = site_of(place)
    store = Store(site)
    alone = redo.choose(EVALUATION.id, site, store)
    assert [run.state.spec_id for run in alone.runs] == [EVALUATION.id]
    only = redo.choose(TRAINED.id, site, store, only=True)
    assert [run.state.spec_id for run in only.runs] == [TRAINED.id]
    assert {line.split()[1] for line in only.lines() if line.startswith("kept ")} == {
        EVALUATION.id,
        ANOTHER.id,
    }
    redo.mark(only, site, store)
    assert set(store.finished(IDS)) == {EVALUATION.id, ANOTHER.id}


def test_an_evaluation_is_found_by_the_record_that_it_names_too(place: Home) -> None:
    """A setting that a later version added is in the newer record alone."""
    site = site_of(place)
    store = Store(site)
    run_id = store.finished([ANOTHER.id])[ANOTHER.id].run_id
    store.connection.client.log_param(run_id, "encoder.method.new", "0.5")
    chosen = redo.choose(TRAINED.id, site, store)
    assert {run.state.spec_id for run in chosen.runs} == set(IDS)


def test_a_run_that_a_process_executes_is_unchanged(place: Home) -> None:
    site = site_of(place)
    store = Store(site)
    with lease.take(site.runs / TRAINED.id, TRAINED.id, heartbeat=10.0):
        with pytest.raises(ValueError, match=r"is being executed by process \d+ .* It is unchanged\."):
            redo.mark(redo.choose(TRAINED.id, site, store, only=True), site, store)
        assert (site.runs / TRAINED.id / FILE).exists()
        assert set(store.finished(IDS)) == set(IDS)


def test_a_store_that_fails_leaves_the_folder_in_place(place: Home) -> None:
    site = site_of(place)
    store = Store(site)
    chosen = redo.choose(TRAINED.id, site, store, only=True)
    assert store.connection.file is not None
    store.connection.file.write_bytes(b"not a database" * 100)
    with pytest.raises(ConnectionError):
        redo.mark(chosen, site, Store(site))
    assert (site.runs / TRAINED.id / FILE).exists()


def test_an_interrupted_call_is_completed_by_the_same_one(place: Home) -> None:
    """A kill after the folder moved and before the record was marked leaves a finished run without files."""
    site = site_of(place)
    store = Store(site)
    (run,) = redo.choose(TRAINED.id, site, store, only=True).runs
    aside = site.runs / redo.FOLDER / f"{TRAINED.id}-{run.state.run_id[:8]}"
    aside.parent.mkdir()
    (site.runs / TRAINED.id).rename(aside)
    (site.runs / TRAINED.id).mkdir()  # an evaluation looks for the encoder meanwhile
    redo.mark(redo.choose(TRAINED.id, site, store), site, store)
    assert store.finished(IDS) == {}
    assert (aside / FILE).exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"run": "table4"}, "All of table4? Name its rows, such as `invoke redo table4 --rows BYOL`"),
        ({"run": "0123", "rows": "BYOL"}, "'0123' is not a table: --rows, --columns, --scale"),
        ({"run": "0123", "seeds": "2"}, "'0123' is not a table"),
        ({"run": "0123", "baselines": "trained"}, "'0123' is not a table"),
        ({"run": "table4", "rows": "BYOL", "seeds": "x"}, "--seeds must be a whole number"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        RedoOptions(**given).request()


def test_a_lost_encoder_is_trained_again_and_its_table_is_made_from_it(place: Home) -> None:
    """The finished numbers (75 %) were never measured. The encoder is broken, and the store has no copy."""
    site = site_of(place)
    store = Store(site)
    old = {run.run_id for run in store.finished(IDS).values()}
    path = site.runs / TRAINED.id / FILE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    listed = place.invoke("redo", *TABLE, "--dry-run")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["again"] * 3
    assert set(store.finished(IDS)) == set(IDS)
    marked = place.invoke("redo", *TABLE)
    assert marked.stdout.startswith(listed.stdout)
    assert "3 runs marked." in marked.stdout
    done = place.invoke(*TABLE)
    assert done.returncode == 0, done.stderr
    assert "2 runs done, 0 reused, 0 missing, in " in done.stdout
    trained, evaluated = (Store(site).finished(IDS)[spec_id] for spec_id in IDS[:2])
    assert not {trained.run_id, evaluated.run_id} & old
    assert set(evaluated.metrics.values()) != {0.75}
    tensors = encoder_file.load(path, spec_id=TRAINED.id)
    assert isinstance(TRAINED, Pretrain)
    assert encoder_file.digest(tensors) != encoder_file.digest(backbone(TRAINED))
    assert b"75.0" not in (place.reports / "smoke" / "table4.csv").read_bytes()
    assert {row.run_id for row in Store(site).status() if row.state == "superseded"} == old
