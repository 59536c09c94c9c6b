"""The reader of MLflow's sqlite file gives the same answers as MLflow's own client."""

from __future__ import annotations

import json
import math
import multiprocessing
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import INVOKE, ROOT, Home
from waiting import SECONDS

from reproduce.plan import Request, jobs
from reproduce.runs import processes
from reproduce.site import Site
from reproduce.tracking.errors import StoreError
from reproduce.tracking.sqlite import AT_ONCE, SCHEMAS, SqliteReader, Wanted
from reproduce.tracking.store import Store
from reproduce.tracking.tags import ATTEMPTS, COMPLETE, DEVICE, FINAL, OWNER, REASON, SCALE, SPEC

pytestmark = pytest.mark.slow  # MLflow takes seconds to import and its store seconds to create

FILE = "mlflow.db"
FEW, MANY = 100, 10_000


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Site:
    """Return a store with this project's three kinds of experiments, all empty."""
    site = Site(runs=tmp_path_factory.mktemp("experiments"))
    shutil.copy(template, site.runs)
    for name in ("smoke", "gone", "tables"):
        Store(site).connection.experiment(name)
    return site


@pytest.fixture
def site(tmp_path: Path, experiments: Site) -> Site:
    runs = tmp_path / "runs of mine ä #1"  # these characters are escaped in a file's address
    runs.mkdir()
    shutil.copy(experiments.runs / FILE, runs)
    return Site(runs=runs)


def by_mlflow(site: Site) -> Store:
    """Return a store that asks MLflow's client, as for a server."""
    store = Store(site)
    store.connection.reader = None
    return store


class Writer:
    """Writes runs with MLflow's client, each a second older than the one before."""

    def __init__(self, site: Site) -> None:
        self.store = Store(site)
        self.client = self.store.connection.client
        self.count = 0

    def add(
        self,
        experiment: str,
        status: str = "RUNNING",
        *,
        metrics: Iterable[tuple[str, float, int]] = (),
        **tags: str,
    ) -> str:
        from mlflow.entities import Metric, Param

        self.count += 1
        start = 1_700_000_000_000 - 1000 * (self.count // 2)  # pairs start at the same time: their ids decide
        run_id = str(
            self.client.create_run(
                experiment, start_time=start, run_name=f"run {self.count}", tags=tags
            ).info.run_id
        )
        points = [Metric(key, value, start + 7, step) for key, value, step in metrics]
        params = [Param("epochs", str(self.count)), Param("long", "ä'\"\\\n" * 1000)]
        self.client.log_batch(run_id, metrics=points, params=params)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status=status, end_time=start + 60_000 * (self.count % 3))
        return run_id


def populated(site: Site) -> dict[str, str]:
    """Write runs of every kind to the store of a site; return MLflow's names of some of them."""
    writer = Writer(site)
    client, store = writer.client, writer.store
    smoke, gone = store.connection.experiment("smoke"), store.connection.experiment("gone")
    dead = json.dumps({"host": processes.this_host(), "pid": 999_999_999, "started": 1.0})
    one = {SPEC: "0123456789ab", SCALE: "smoke", "kind": "evaluate", OWNER: dead, "commit": "c" * 40}
    two = {
        SPEC: "0123ffffffff",
        SCALE: "smoke",
        "kind": "pretrain",
        OWNER: dead,
        DEVICE: "Chip",
        ATTEMPTS: "2",
    }
    final = [
        (f"{FINAL}top1", 0.123456789012345678, 0),
        (f"{FINAL}gone", math.nan, 0),
        ("loss", 3.0, 2),
        ("loss", 2.0, 2),
        ("loss", 9.0, 1),
    ]
    names = {
        "earlier": writer.add(smoke, "FINISHED", metrics=final, **one, **{COMPLETE: one[SPEC]}),
        "finished": writer.add(
            smoke, "FINISHED", metrics=final, **one, **{COMPLETE: one[SPEC], "encoder_digest": "d1"}
        ),
        "failed": writer.add(smoke, "FAILED", **one, **{REASON: "ValueError: 'a' \"b\" {\\n} – λ 🙂\x01"}),
        "killed": writer.add(smoke, "KILLED", **two, **{REASON: "Interrupted: SIGTERM"}),
        "lost": writer.add(smoke, "RUNNING", **two),
        "ended without its tag": writer.add(
            smoke, "FINISHED", metrics=[("inf", math.inf, 0), ("minus", -math.inf, 0)], **two
        ),
        "no spec": writer.add(smoke, "FINISHED"),
        "deleted": writer.add(smoke, "FINISHED", **two, **{COMPLETE: two[SPEC]}),
        "of a deleted experiment": writer.add(gone, "FINISHED", **two, **{COMPLETE: two[SPEC]}),
    }
    for name in ("other", "MSBREG/smoke", "msbreg"):
        writer.add(client.create_experiment(name), "FINISHED", **two, **{COMPLETE: two[SPEC]})
    client.delete_run(names["deleted"])
    client.delete_experiment(gone)
    return names


def shown(run: Any) -> tuple[object, ...]:
    """Return what the store uses of a run, with NaN, which equals nothing, as a word."""
    info = run.info
    metrics = {key: str(value) for key, value in run.data.metrics.items()}
    return (
        info.run_id,
        info.run_name,
        info.experiment_id,
        info.status,
        info.start_time,
        info.end_time,
        metrics,
        run.data.params,
        run.data.tags,
    )


QUESTIONS = (
    Wanted(),
    Wanted(present=(SPEC,)),
    Wanted(present=(SPEC,), absent=(COMPLETE, REASON)),
    Wanted(status="RUNNING"),
    Wanted(status="FINISHED", present=(SPEC,), absent=(COMPLETE,)),
    Wanted(tags={SPEC: ["0123456789ab"]}),
    Wanted(tags={COMPLETE: ["0123456789ab"], SCALE: ["smoke"]}, present=(OWNER,)),
    Wanted(tags={COMPLETE: []}),
    Wanted(tags={"encoder_digest": ["d1"]}),
    Wanted(begins={SPEC: "0123"}),
    Wanted(begins={SPEC: "01234"}),
    Wanted(begins={SPEC: "f"}),
)


def test_every_question_is_answered_as_by_mlflow(site: Site) -> None:
    names = populated(site)
    ours, theirs = Store(site), by_mlflow(site)
    assert ours.connection.reader is not None
    listed = ours.connection.reader.experiments("msbreg/")
    assert listed == theirs.connection._listed()
    assert [name for name, (_, active) in listed.items() if not active] == ["msbreg/gone"]
    experiments = ours.connection.experiments()  # restores it
    assert ours.connection.reader.experiments("msbreg/") == theirs.connection._listed()
    assert sorted(experiments) == sorted(theirs.connection.experiments())
    assert len(experiments) == 3
    assert ours.connection.experiments("smoke") == theirs.connection.experiments("smoke") != []
    for wanted in (*QUESTIONS, *(Wanted(run_id=each) for each in names.values())):
        for limit in (None, 1, 2, 100):
            found = [
                list(map(shown, store.connection.search(wanted, experiments, limit)))
                for store in (ours, theirs)
            ]
            assert found[0] == found[1], (wanted, limit)
    several = Wanted(tags={SPEC: ["0123456789ab", "0123ffffffff", "none"]})
    found = [list(map(shown, store.connection.search(several, experiments))) for store in (ours, theirs)]
    assert len(found[0]) == 7
    assert sorted(found[0]) == sorted(found[1])


def test_histories_are_those_of_mlflow(site: Site) -> None:
    ours, theirs, writer = Store(site), by_mlflow(site), Writer(site)
    from mlflow.entities import Metric

    experiment = ours.connection.experiments("smoke")[0]
    runs = [writer.add(experiment), writer.add(experiment)]
    points = [("loss", 1.0, 10, 1), ("loss", 2.0, 20, 1), ("loss", math.inf, 30, 3), ("loss", 0.5, 5, 2)]
    points += [("ap_class/dog", 0.25, 1, 7), ("ap", 0.5, 1, 7), ("rank", math.nan, 1, 2)]
    for key, value, at, step in points:
        writer.client.log_metric(runs[0], key, value, at, step)
    writer.client.log_batch(runs[1], [Metric("loss", 9.0, 1, 1)])
    names = ["loss", "ap_class/*", "rank", "absent"]
    found = [store.histories(runs, names) for store in (ours, theirs)]
    answers = [
        {(run, key): str(points) for run in runs for key, points in each[run].items()} for each in found
    ]
    assert answers[0] == answers[1]  # as text, so that NaN equals NaN
    of = found[0][runs[0]]
    assert of["loss"][:2] == [(1, 2.0), (2, 0.5)]  # of a repeated step, the later one
    assert of.keys() == {"ap_class/dog", "loss", "rank"}
    assert math.isnan(of["rank"][0][1])
    assert ours.histories([], names) == ours.histories(runs, []) == {}


def test_the_store_says_the_same_by_either_way(site: Site) -> None:
    names = populated(site)
    ours, theirs = Store(site), by_mlflow(site)
    ids = ["0123ffffffff", "0123456789ab", "000000000000", "0123456789ab"]

    def answers(store: Store) -> list[str]:
        found: list[object] = [store.finished(ids), store.records(ids), store.status(), store.unfinished()]
        found += [store.record_of(each) for each in ids] + [
            store.named("01234"),
            store.named(names["failed"]),
        ]
        found += [store.newest_finished("evaluate", "smoke", limit) for limit in (1, 2, 200)] + [
            store.newest_finished("pretrain", "smoke", 9)
        ]
        return list(map(str, found))

    assert answers(ours) == answers(theirs)
    assert ours.finished(ids)["0123456789ab"].run_id == names["finished"], "the one that ended last counts"
    assert [each.state for each in ours.status()].count("finished") == 3
    for store in (ours, theirs):
        with pytest.raises(LookupError, match="could be 0123456789ab, 0123ffffffff"):
            store.named("0123")


def test_more_runs_than_are_read_at_once(site: Site) -> None:
    foreign(site.runs / FILE, 1200, bare=True)
    found = list(Store(site).connection.search(Wanted(present=(SPEC,))))
    assert len({run.info.run_id for run in found}) == 1200
    assert [run.info.start_time for run in found] == sorted(
        (run.info.start_time for run in found), reverse=True
    )


def test_runs_that_are_deleted_between_two_transactions_are_left_out(site: Site) -> None:
    foreign(site.runs / FILE, 2 * AT_ONCE, bare=True)
    reader = SqliteReader(site.runs / FILE)
    *kept, marked, removed = reader.search(["1", "2", "3"], Wanted(present=(SPEC,)))
    found = reader.search(["1", "2", "3"], Wanted(present=(SPEC,)))
    first = next(found)
    with closing(sqlite3.connect(site.runs / FILE)) as database, database:
        database.execute(
            "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", [marked.info.run_id]
        )
        for table in ("tags", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", [removed.info.run_id])
    assert [first, *found] == kept


def write(site: Site, ids: list[str]) -> None:
    """Write a finished run of each spec in another process, in as many transactions as a real run."""
    from mlflow.entities import Metric, Param

    client, experiment = Store(site).connection.client, Store(site).connection.experiment("smoke")
    for number, spec_id in enumerate(ids):
        run_id = client.create_run(experiment, tags={SPEC: spec_id}).info.run_id
        metrics = [Metric(f"{FINAL}{each}", number, 1, 0) for each in range(50)]
        client.log_batch(run_id, metrics=metrics, params=[Param("number", str(number))])
        client.set_terminated(run_id)
        client.set_tag(run_id, COMPLETE, spec_id)


def test_no_run_is_seen_half_written_while_another_process_writes(site: Site) -> None:
    ids = [f"{number:012x}" for number in range(25)]
    process = multiprocessing.get_context("fork").Process(target=write, args=(site, ids))
    process.start()
    store, seen = Store(site), [0]
    running, deadline = True, time.monotonic() + SECONDS
    while running:
        assert time.monotonic() < deadline, "the writer has not ended"
        running = process.is_alive()
        found = store.finished(ids)
        assert len(found) >= seen[-1], "a finished run is never lost again"
        assert all(
            run.metrics == dict.fromkeys(map(str, range(50)), int(spec_id, 16))
            for spec_id, run in found.items()
        )
        seen.append(len(found))
    assert process.exitcode == 0, "a reader does not block writers"
    assert seen[-1] == 25
    assert len(set(seen)) > 5, "it was read in between"
    assert str(store.finished(ids)) == str(by_mlflow(site).finished(ids))


KILLED_IN_A_WRITE = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")
database.execute("UPDATE tags SET value = 'half-written ' || value")
database.execute("UPDATE runs SET status = 'KILLED'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_rolled_back(site: Site) -> None:
    file = site.runs / FILE
    foreign(file, 300, bare=True)
    before = list(map(shown, Store(site).connection.search(Wanted(), ["1", "2", "3"])))
    assert (
        subprocess.run([sys.executable, "-c", KILLED_IN_A_WRITE, str(file)], check=False).returncode
        == -signal.SIGKILL
    )
    journal = file.with_name(f"{FILE}-journal")
    assert journal.stat().st_size > 0
    assert b"half-written" in file.read_bytes(), "its pages had reached the file"
    assert list(map(shown, Store(site).connection.search(Wanted(), ["1", "2", "3"]))) == before
    assert not journal.exists()


def test_reading_changes_nothing_and_makes_no_file(site: Site, tmp_path: Path) -> None:
    file = site.runs / FILE
    before = file.read_bytes(), file.stat().st_mtime_ns
    store = Store(site)
    assert store.finished(["0123456789ab"]) == store.records(["0123456789ab"]) == {}
    assert store.status() == []
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    with pytest.raises(StoreError, match=r"nowhere\.db cannot be opened"):
        SqliteReader.open(tmp_path / "nowhere.db")
    assert not (tmp_path / "nowhere.db").exists()


def test_only_a_known_schema_is_read_without_mlflow(site: Site, tmp_path: Path) -> None:
    file = site.runs / FILE
    assert SqliteReader.open(file) is not None, (
        f"compare the answers on the schema of the pinned mlflow, then add it to {SCHEMAS}"
    )
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    assert SqliteReader.open(file) is None
    empty, text = tmp_path / "empty.db", tmp_path / "text.db"
    empty.touch()
    text.write_text("no database, but long enough for the header of one: " * 10)
    with pytest.raises(StoreError, match=r"empty\.db is a database, but not MLflow's"):
        SqliteReader.open(empty)
    with pytest.raises(StoreError, match=r"text\.db is damaged \(file is not a database\)") as caught:
        SqliteReader.open(text)
    assert "\n" not in str(caught.value)


def foreign(file: Path, count: int, *, bare: bool = False) -> None:
    """Add finished runs of other specs to the smoke experiment, and as many to another one.

    Args:
        bare: True to write only the tags of a finished run.
    """
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (77, 'other', 'active')"
        )
        (smoke,) = database.execute(
            "SELECT experiment_id FROM experiments WHERE name = 'msbreg/smoke'"
        ).fetchone()
        database.execute(
            "CREATE TEMP TABLE numbers AS WITH RECURSIVE n(i) AS "
            "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ?) SELECT i FROM n",
            (count,),
        )
        for experiment in (smoke, 77) if not bare else (smoke,):
            run_id = f"printf('%016x%016x', {experiment}, i * 7919 % 104729)"
            columns = "run_uuid, name, status, lifecycle_stage, experiment_id, start_time, end_time"
            start = "1700000000000 + i * 7919 % 104729"  # not in the order of the rows
            values = f"{run_id}, 'run ' || i, 'FINISHED', 'active', {experiment}, {start}, 1800000000000"
            database.execute(f"INSERT INTO runs ({columns}) SELECT {values} FROM numbers")
            tags = {
                "kind": "iif(i % 2, 'pretrain', 'evaluate')",
                SCALE: "'smoke'",
                SPEC: "printf('f%011x', i)",
                COMPLETE: "printf('f%011x', i)",
            }
            if not bare:
                tags |= {f"setting.{number}": f"'value ' || i % {number + 2}" for number in range(3)}
            for key, value in tags.items():
                database.execute(
                    f"INSERT INTO tags (key, value, run_uuid) SELECT '{key}', {value}, {run_id} FROM numbers"
                )
                if key.startswith("setting"):
                    database.execute(
                        "INSERT INTO params (key, value, run_uuid) "
                        f"SELECT '{key}', {value}, {run_id} FROM numbers"
                    )


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory, experiments: Site) -> tuple[Home, Home]:
    """Return two homes where Table 8 is finished and rendered, with few and many foreign runs."""
    few = Home(tmp_path_factory.mktemp("few"))
    few.runs.mkdir()
    shutil.copy(experiments.runs / FILE, few.runs)
    writer = Writer(Site(runs=few.runs))
    for number, job in enumerate(jobs([Request(table="table8")])):
        tags = {SPEC: job.spec.id, COMPLETE: job.spec.id, SCALE: "smoke", "kind": job.spec.name}
        writer.add(
            writer.store.connection.experiment("smoke"),
            "FINISHED",
            metrics=[(f"{FINAL}top1", number / 100, 0)],
            **tags,
        )
    done = few.invoke("table8")
    assert done.returncode == 0, done.stderr
    many = Home(tmp_path_factory.mktemp("many"))
    for each, count in ((many, MANY), (few, FEW)):
        if each is many:
            shutil.copytree(few.runs, many.runs)
            shutil.copytree(few.reports, many.reports)
        foreign(each.runs / FILE, count)
    return few, many


COMMANDS = (("table8",), ("ablation-grid", "--dry-run"))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_heavy_is_imported_where_nothing_is_to_be_done(
    homes: tuple[Home, Home], command: tuple[str, ...]
) -> None:
    home = homes[0]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *INVOKE[1:], *command],
        cwd=ROOT,
        env=home.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {
        line.rpartition("|")[2].strip().split(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "sqlite3" in imported
    assert not imported & {"mlflow", "torch", "torchvision", "pandas", "numpy", "sqlalchemy", "sklearn"}
    assert "matplotlib" not in imported


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_hundred_times_as_many_runs_of_others_cost_next_to_nothing(
    homes: tuple[Home, Home], command: tuple[str, ...]
) -> None:
    """Processor time is compared; the bound, of one of three trials, leaves room for a busy machine.

    With MLflow's client it was twice as much, and four seconds more.
    """
    trials = ([seconds(home, command) for home in homes] for _ in range(3))
    assert any(many < 1.6 * few + 0.2 for few, many in trials)


def seconds(home: Home, command: tuple[str, ...]) -> float:
    """Return the processor time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = home.invoke(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
