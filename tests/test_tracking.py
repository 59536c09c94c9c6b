"""MLflow's records after every way in which a run can end, with real processes and a real store."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from toys import PRETRAIN, Judge, Recorded, ended, fill_from
from waiting import answers, joined

from reproduce import identity, worker
from reproduce.methods.byol import BYOL
from reproduce.methods.msbreg import MSBReg
from reproduce.nn.heads import Heads
from reproduce.nn.weights import Weights
from reproduce.plan import Request
from reproduce.report.filled import Filled
from reproduce.report.observe import Finished
from reproduce.report.table import Cell, Column, Margin, Measured, Reported, Row, Table
from reproduce.runs import interrupt, processes
from reproduce.runs.journal import now
from reproduce.site import PROJECT, Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking import uses, views
from reproduce.tracking.monitor import Monitor
from reproduce.tracking.recording import Run
from reproduce.tracking.sqlite import Wanted
from reproduce.tracking.store import AlreadyRunningError, Store
from reproduce.tracking.tags import group, title, user

pytestmark = pytest.mark.slow  # MLflow takes seconds to import and its store seconds to create

fork = multiprocessing.get_context("fork")


EVALUATE = Evaluate(encoder=PRETRAIN, protocol=Judge(k=5), dataset=Recorded())


def open_new(site: Site, results: multiprocessing.Queue[tuple[int, int]]) -> None:
    with Store(site).start(PRETRAIN.replace("seed", os.getpid()), scale="race") as run:
        run.finish({})
    stat = (site.runs / "mlflow.db").stat()
    results.put((stat.st_ino, os.getpid()))


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, list[tuple[int, int]]]:
    """Return a store that two processes created at once, and the (inode, seed) that each saw.

    Creation takes seconds, so tests copy it.
    """
    import mlflow.tracking  # noqa: F401, forked processes need not import it again

    site, results = Site(runs=tmp_path_factory.mktemp("template")), fork.Queue()
    processes = [fork.Process(target=open_new, args=(site, results)) for _ in range(2)]
    for process in processes:
        process.start()
    seen = [results.get(timeout=120) for _ in processes]
    for process in processes:
        joined(process)
    return site, seen


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run tests in an empty folder without the caller's server; they must leave no `mlruns` there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.glob("mlruns"))
    assert not list(tmp_path.glob("mlartifacts"))


@pytest.fixture
def site(tmp_path: Path, race: tuple[Site, object]) -> Site:
    runs = tmp_path / "runs of mine"
    runs.mkdir()
    shutil.copy(race[0].runs / "mlflow.db", runs)
    return Site(runs=runs)


def mlflow_status(site: Site, run_id: str) -> str:
    return str(Store(site).connection.client.get_run(run_id).info.status)


def test_two_processes_create_a_store_once(race: tuple[Site, list[tuple[int, int]]]) -> None:
    site, seen = race
    assert len({inode for inode, _ in seen}) == 1
    assert {row.spec_id for row in Store(site).status()} == {
        PRETRAIN.replace("seed", seed).id for _, seed in seen
    }
    assert not list(site.runs.glob("*.draft"))


def test_a_finished_run_is_found_with_its_final_metrics(site: Site) -> None:
    store = Store(site)
    with store.start(PRETRAIN, scale="smoke") as run:
        run.log(1, {"top1": 0.1})
        assert store.finished([PRETRAIN.id]) == {}
        run.finish({"top1": 0.123456789012345, "gone": math.nan})
    found = Store(site).finished([PRETRAIN.id, EVALUATE.id, PRETRAIN.id])
    assert list(found) == [PRETRAIN.id]
    assert found[PRETRAIN.id].run_id == run.run_id
    assert found[PRETRAIN.id].metrics["top1"] == 0.123456789012345
    assert math.isnan(found[PRETRAIN.id].metrics["gone"])
    assert mlflow_status(site, run.run_id) == "FINISHED"


def test_the_record_has_settings_axes_and_environment(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "any.bin"
    file.write_bytes(b"abc")
    store = Store(site)
    with store.start(PRETRAIN, scale="smoke", labels={"table": "table8"}) as run:
        run.artifact(file)
        run.artifact(file, "folder/renamed.bin")
        run.text("hello", "note.txt")
        run.finish({})
    data = store.connection.client.get_run(run.run_id).data
    expected = {
        "K": "4",
        "lambda_b": "0.5",
        "lambda_s": "0.004",
        "norm": "batchnorm",
        "method": "msbreg",
        "method.heads.hidden": "512",
    }
    expected |= {
        "epochs": "3",
        "batch_size": "32",
        "seed": "0",
        "backbone": "small",
        "dataset": "toy",
        "dataset.sizes": "[32, 64]",
    }
    assert data.params.items() >= expected.items()
    named = {"spec_id": PRETRAIN.id, "group": PRETRAIN.id, "table": "table8", "scale": "smoke"}
    assert data.tags.items() >= (named | {"kind": "pretrain", "method": "msbreg"}).items()
    assert not {"K", "epochs", "method.lambda_b", "dataset"} & data.tags.keys()  # settings are params only
    assert data.tags["mlflow.note.content"].startswith("Pretraining by `msbreg` with 4 views on Toy:")
    owner = json.loads(data.tags["owner"])
    assert (owner["pid"], owner["host"]) == (os.getpid(), processes.this_host())
    assert json.loads(store.download(run.run_id, "spec.json", tmp_path).read_text()) == identity.canonical(
        PRETRAIN
    )
    environment = json.loads(store.download(run.run_id, "environment.json", tmp_path).read_text())
    assert environment["packages"]["mlflow"].count(".") == 2
    assert environment["commit"] == data.tags["commit"]
    assert store.download(run.run_id, "folder/renamed.bin", tmp_path / "copy").read_bytes() == b"abc"
    assert store.download(run.run_id, "any.bin", tmp_path / "copy").read_bytes() == b"abc"
    assert (site.runs / "artifacts").is_dir()


def test_data_and_encoder_are_linked_to_the_numbers(site: Site) -> None:
    store = Store(site)
    with store.start(PRETRAIN, scale="smoke") as parent:
        parent.facts({"data_digest": "a" * 64})
        parent.model("encoder.safetensors", "beef")
        parent.finish({"loss": 1.0})
    with store.start(EVALUATE, scale="smoke") as child:
        child.facts({"data_digest_train": "b" * 64, "data_digest_val": "c" * 64})
        child.finish({"top1": 0.5})
    client = store.connection.client
    inputs = client.get_run(child.run_id).inputs
    shown = {(each.dataset.name, each.dataset.digest, each.tags[0].value) for each in inputs.dataset_inputs}
    assert shown == {("toy train", "b" * 36, "training"), ("toy val", "c" * 36, "evaluation")}
    model = client.get_logged_model(inputs.model_inputs[0].model_id)
    assert model.source_run_id == parent.run_id
    assert (model.params["K"], model.tags["spec_id"]) == ("4", PRETRAIN.id)
    found = {metric.key: (metric.value, metric.dataset_name, metric.run_id) for metric in model.metrics}
    assert found["final/top1"] == (0.5, "toy val", child.run_id)
    assert store.finished([EVALUATE.id])[EVALUATE.id].metrics == {"top1": 0.5}


def test_an_evaluation_is_the_child_of_its_pretraining_run(site: Site) -> None:
    store = Store(site)
    with store.start(PRETRAIN, scale="smoke") as parent:
        parent.finish({})
    with store.start(EVALUATE, scale="smoke") as child:
        child.finish({"top1": 0.5})
    data = store.connection.client.get_run(child.run_id).data
    assert data.tags["mlflow.parentRunId"] == parent.run_id
    assert (
        data.params.items()
        >= {
            "K": "4",
            "epochs": "3",
            "protocol": "toy",
            "protocol.k": "5",
            "encoder.method.num_views": "4",
        }.items()
    )


def fail(run: Run) -> None:
    raise ValueError("no luck\nsecond line")


def leave(run: Run) -> None:
    sys.exit(0)


def forget(run: Run) -> None:
    """Leave the block without finish()."""


def kill(signum: int) -> Callable[[Run], None]:
    return lambda run: os.kill(os.getpid(), signum)


def be_told(run: Run) -> None:
    interrupt.listen()
    os.kill(os.getpid(), signal.SIGTERM)


def attempt(site: Site, how: Callable[[Run], None]) -> None:
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        run.log(1, {"loss": 1.0})
        run.flush()
        run.log(2, {"loss": 0.5})
        how(run)


ENDS = {
    "exception": (fail, 1, "FAILED", "failed", "ValueError: no luck"),
    "sys.exit": (leave, 0, "FAILED", "failed", "SystemExit: 0"),
    "no finish": (forget, 0, "FAILED", "failed", "ended without finish()"),
    "Ctrl-C": (kill(signal.SIGINT), 1, "KILLED", "interrupted", "KeyboardInterrupt"),
    "SIGTERM": (be_told, 1, "KILLED", "interrupted", "SIGTERM"),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_status_is_true_after(end: str, site: Site) -> None:
    how, code, status, state, reason = ENDS[end]
    assert ended(attempt, site, how) == code
    store = Store(site)
    row = next(row for row in store.status() if row.spec_id == PRETRAIN.id)
    assert (row.state, row.reason) == (state, reason)
    assert mlflow_status(site, row.run_id) == status
    assert store.finished([PRETRAIN.id]) == {}
    assert store.history(row.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert store.mark_dead_runs() == []
    names = {entry.path for entry in store.connection.client.list_artifacts(row.run_id)}
    assert ("error.txt" in names) == (end in ("exception", "sys.exit"))


def test_a_run_killed_with_sigkill_is_interrupted_and_reaped(site: Site) -> None:
    assert ended(attempt, site, kill(signal.SIGKILL)) == -signal.SIGKILL
    store = Store(site)
    row = store.status()[0]
    assert (row.spec_id, row.state) == (PRETRAIN.id, "interrupted")
    assert mlflow_status(site, row.run_id) == "RUNNING"
    assert store.mark_dead_runs() == [row.run_id]
    assert mlflow_status(site, row.run_id) == "KILLED"
    assert "is gone" in store.status()[0].reason
    assert store.history(row.run_id, "loss") == [(1, 1.0)]


def terminate_just_before_the_tag(site: Site) -> None:
    run = Store(site).start(PRETRAIN, scale="smoke")
    run._connection.client.set_terminated(run.run_id)
    os.kill(os.getpid(), signal.SIGKILL)


def test_finished_without_the_completion_tag_is_not_finished(site: Site) -> None:
    ended(terminate_just_before_the_tag, site)
    store = Store(site)
    row = store.status()[0]
    assert mlflow_status(site, row.run_id) == "FINISHED"
    assert store.finished([PRETRAIN.id]) == {}
    assert row.state == "interrupted"
    assert store.mark_dead_runs() == [row.run_id]
    assert mlflow_status(site, row.run_id) == "KILLED"


class Impatient(dict[str, float]):
    """Metrics that send signals while they are written: the terminal's, then torchrun's."""

    def items(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return super().items()


def finish_impatiently(run: Run) -> None:
    interrupt.listen()
    run.finish(Impatient(top1=0.5))


def test_a_signal_during_finish_waits_for_the_completion_tag(site: Site) -> None:
    assert ended(attempt, site, finish_impatiently) == 1
    store = Store(site)
    assert store.finished([PRETRAIN.id])[PRETRAIN.id].metrics == {"top1": 0.5}
    assert store.status()[0].state == "finished"
    assert mlflow_status(site, store.status()[0].run_id) == "FINISHED"


def test_a_killed_run_goes_on_in_the_same_record(site: Site, tmp_path: Path) -> None:
    ended(attempt, site, fail)
    store = Store(site)
    first = store.status()[0]
    with store.start(PRETRAIN, scale="smoke") as run:
        assert run.run_id == first.run_id
        assert store.finished([PRETRAIN.id]) == {}
        assert [
            (row.state, row.reason.startswith("process"))
            for row in store.status()
            if row.spec_id == PRETRAIN.id
        ] == [("running", True)]
        run.log(2, {"loss": 0.25})
        run.log(3, {"loss": 0.125})
        run.finish({"loss": 0.125})
    assert store.history(run.run_id, "loss") == [(1, 1.0), (2, 0.25), (3, 0.125)]
    assert store.finished([PRETRAIN.id])[PRETRAIN.id].run_id == first.run_id
    names = {entry.path for entry in store.connection.client.list_artifacts(run.run_id)}
    assert names == {"spec.json", "environment.json", "environment-2.json", "error.txt"}
    assert "reason" not in store.connection.client.get_run(run.run_id).data.tags


def hold(site: Site, started: multiprocessing.Queue[str]) -> None:
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        started.put(run.run_id)
        signal.pause()


def test_a_run_that_is_alive_is_neither_resumed_nor_reaped(site: Site) -> None:
    started = fork.Queue()
    process = fork.Process(target=hold, args=(site, started))
    process.start()
    run_id = started.get(timeout=60)
    store = Store(site)
    with pytest.raises(AlreadyRunningError, match=f"process {process.pid} "):
        store.start(PRETRAIN, scale="smoke")
    assert store.mark_dead_runs() == []
    assert store.status()[0].state == "running"
    process.kill()
    joined(process)
    assert store.start(PRETRAIN, scale="smoke").run_id == run_id


def test_a_process_id_that_was_given_away_again_is_not_the_owner(site: Site) -> None:
    store = Store(site)
    run = store.start(PRETRAIN, scale="smoke")
    owner = json.loads(store.connection.client.get_run(run.run_id).data.tags["owner"])
    store.connection.client.set_tag(
        run.run_id, "owner", json.dumps(owner | {"started": owner["started"] - 60})
    )
    assert store.mark_dead_runs() == [run.run_id]


def test_a_run_on_another_machine_is_left_alone(site: Site) -> None:
    store = Store(site)
    run = store.start(PRETRAIN, scale="smoke")
    owner = json.loads(store.connection.client.get_run(run.run_id).data.tags["owner"])
    store.connection.client.set_tag(run.run_id, "owner", json.dumps(owner | {"host": "another"}))
    assert store.mark_dead_runs() == []
    assert store.status()[0].state == "running"
    with store.start(PRETRAIN, scale="smoke") as second:
        assert second.run_id != run.run_id
        second.finish({"top1": 0.5})
    assert store.finished([PRETRAIN.id])[PRETRAIN.id].run_id == second.run_id


def test_the_newest_finished_run_counts_and_deleted_ones_do_not(site: Site) -> None:
    store = Store(site)
    ids = []
    for top1 in (0.1, 0.2):
        with store.start(PRETRAIN, scale="smoke") as run:
            run.finish({"top1": top1})
        store.connection.client.update_run(run.run_id, status="FINISHED")
        ids.append(run.run_id)
    assert ids[0] != ids[1]
    assert store.finished([PRETRAIN.id])[PRETRAIN.id].metrics == {"top1": 0.2}
    store.connection.client.delete_run(ids[1])
    assert store.finished([PRETRAIN.id])[PRETRAIN.id].metrics == {"top1": 0.1}


def test_measurements_that_are_not_finite_are_kept_as_nan(site: Site) -> None:
    store = Store(site)
    with store.start(PRETRAIN, scale="smoke") as run:
        run.log(1, {"loss": math.inf, "rank": math.nan, "lr": 0.5})
        run.flush()
        run.finish({"loss": -math.inf})
    assert math.isnan(store.history(run.run_id, "loss")[0][1])
    assert math.isnan(store.history(run.run_id, "rank")[0][1])
    assert store.history(run.run_id, "lr") == [(1, 0.5)]
    assert math.isnan(store.finished([PRETRAIN.id])[PRETRAIN.id].metrics["loss"])


def test_a_long_history_and_the_load_of_the_machine_are_written(site: Site) -> None:
    store = Store(site)
    with store.start(PRETRAIN, scale="smoke") as run:
        for step in range(700):
            run.log(step, {"loss": 1 / (step + 1), "lr": 0.5})
        assert len(store.history(run.run_id, "loss")) == 500  # two full buffers of 250 steps; the rest waits
        run.finish({})
    assert store.history(run.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(700)]
    memory = store.history(run.run_id, "system/process_memory_usage_megabytes")
    assert memory
    assert all(10 < value < 1e6 for _, value in memory)
    assert store.history(run.run_id, "system/disk_usage_percentage")
    assert "system metrics" not in {thread.name for thread in threading.enumerate()}


class Machine:
    """A collector in MLflow's form, of two GPUs, that signals each sample."""

    sampled = threading.Semaphore(0)

    def collect_metrics(self) -> None: ...

    def aggregate_metrics(self) -> dict[str, float]:
        self.sampled.release()
        return {"gpu_0_power_usage_watts": 300.0, "gpu_1_power_usage_watts": 70.5}

    def clear_metrics(self) -> None: ...


def broken() -> Machine:
    raise RuntimeError("no GPU")


def test_samples_have_the_seconds_since_the_start_as_steps_and_a_broken_collector_is_left_out() -> None:
    monitor = Monitor([broken, Machine], now() - 60_000)
    for _ in range(3):  # the third begins when the second is complete
        assert Machine.sampled.acquire(timeout=30)
    taken = [point for point in monitor.take() if point.key == "system/gpu_1_power_usage_watts"]
    monitor.stop()
    assert len(taken) >= 2
    assert {point.value for point in taken} == {70.5}
    steps = [point.step for point in taken]
    assert 60 <= steps[0] < steps[1] < 120


def filled(*values: float | None) -> Filled:
    """Return two rows whose labels differ only in a symbol, with these fractions in their cells."""
    labels, evaluations = ("Ours ($K$=4)*", "Ours ($K$=4)"), (EVALUATE, EVALUATE.replace("protocol.k", 20))
    rows = [
        Row(label=label, cells={"acc": Cell(ours=Measured(spec=spec, metric="top1"))})
        for label, spec in zip(labels, evaluations, strict=True)
    ]
    columns = (Column(key="acc", title="top-1"),)
    table = Table(
        name="table8",
        number="8",
        title="Terms",
        columns=columns,
        rows=tuple(rows),
        scale="smoke",
        changes=("epochs=5",),
    )
    finished = {
        spec.id: Finished(spec_id=spec.id, run_id="r", metrics={"top1": value})
        for spec, value in zip(evaluations, values, strict=True)
        if value is not None
    }
    return fill_from(table, 1, finished, {})


def test_a_table_is_recorded_once_and_again_only_when_it_changed(site: Site, tmp_path: Path) -> None:
    store, report = Store(site), tmp_path / "table8.md"
    report.write_text("| 80 | 81 |")
    run_id = store.log_table(filled(0.8, 0.81), [report])
    recorded = store.connection.client.get_run(run_id)
    assert recorded.data.metrics == {
        "Ours K 4/acc": 80.0,
        "Ours K 4/acc/n": 1,
        "Ours K 4 again/acc": 81.0,
        "Ours K 4 again/acc/n": 1,
    }
    assert recorded.info.run_name == "Table 8, ours, smoke, epochs=5"
    assert store.log_table(filled(0.8, 0.81), [report]) == run_id
    assert store.connection.client.get_run(run_id).info.end_time == recorded.info.end_time
    assert len(store.connection.client.get_metric_history(run_id, "Ours K 4/acc")) == 1

    report.write_text("| - | 82 |")
    assert store.log_table(filled(None, 0.82), [report]) == run_id
    metrics = store.connection.client.get_run(run_id).data.metrics
    assert math.isnan(metrics["Ours K 4/acc"])
    assert metrics["Ours K 4 again/acc"] == 82.0
    assert store.download(run_id, "table8.md", tmp_path / "copy").read_text() == "| - | 82 |"
    assert store.status() == [row for row in store.status() if row.spec_id]


@pytest.mark.parametrize(
    ("label", "metric"),
    [("日本", "日本/acc"), ("-", "row/acc"), ("../a", "a/acc"), ("x" * 300, "x" * 200 + "/acc")],
)
def test_a_table_is_recorded_whatever_a_row_is_called(
    site: Site, tmp_path: Path, label: str, metric: str
) -> None:
    store, report, table = Store(site), tmp_path / "table8.md", filled(0.8, 0.81)
    report.write_text("| 80 | 81 |")
    run_id = store.log_table(
        replace(table, rows=(replace(table.rows[0], label=label), table.rows[1])), [report]
    )
    assert store.connection.client.get_run(run_id).data.metrics == {
        metric: 80.0,
        f"{metric}/n": 1,
        "Ours K 4/acc": 81.0,
        "Ours K 4/acc/n": 1,
    }


def test_a_table_is_recorded_with_the_interval_and_the_verdict_of_each_number(
    site: Site, tmp_path: Path
) -> None:
    """Of 79 and 81, the mean is 80 and the interval 80 +- 12.706 (t of one degree) x 1."""
    store, report = Store(site), tmp_path / "table8.md"
    report.write_text("| 80 |")
    ours = Measured(spec=EVALUATE, metric="top1")
    table = Table(
        name="table8",
        number="8",
        title=r"$\mathcal{L}_c$",
        columns=(Column(key="acc", title="top-1", margin=Margin(1.0, "made up")),),
        rows=(Row(label="BYOL", cells={"acc": Cell(paper=Reported(value="95"), ours=ours)}),),
    )
    runs = {
        spec.id: Finished(spec_id=spec.id, run_id="r", metrics={"top1": value})
        for spec, value in zip(ours.runs(2), (0.79, 0.81), strict=True)
    }
    filled_in = fill_from(table, 2, runs, {})
    run_id = store.log_table(filled_in, [report], command="invoke table8")
    data = store.connection.client.get_run(run_id).data
    assert data.metrics == {
        "BYOL/acc": 80.0,
        "BYOL/acc/n": 2,
        "BYOL/acc/difference": -15.0,
        "BYOL/acc/low": pytest.approx(80 - 12.7062, abs=1e-3),
        "BYOL/acc/high": pytest.approx(80 + 12.7062, abs=1e-3),
    }
    assert data.tags["verdict/BYOL/acc"] == "not reproduced"
    (paper,) = store.connection.search(Wanted(tags={"numbers": ["paper"]}))
    shown = ("The numbers that the paper printed. ℒ_c", "invoke table8", "LOCAL")
    named = ("mlflow.note.content", "mlflow.source.name", "mlflow.source.type")
    assert tuple(paper.data.tags[name] for name in named) == shown
    assert data.tags["title"] == "ℒ_c"
    assert data.tags["mlflow.user"] == user()
    assert (paper.info.run_name, paper.data.metrics) == ("Table 8, paper", {"BYOL/acc": 95.0})
    assert "table" not in " ".join(row.name for row in store.status()).lower()  # neither is a run of ours
    smoke = replace(table, scale="smoke", changes=())
    data = store.connection.client.get_run(store.log_table(fill_from(smoke, 2, runs, {}), [report])).data
    assert data.tags["verdict/BYOL/acc"] == "not comparable"
    (again,) = store.connection.search(Wanted(tags={"numbers": ["paper"]}))
    assert (again.info.status, again.info.end_time) == ("FINISHED", paper.info.end_time)


def test_the_view_of_a_table_leaves_out_runs_with_changed_settings(site: Site, tmp_path: Path) -> None:
    store, report = Store(site), tmp_path / "table8.md"
    report.write_text("| 80 |")
    made = {}
    for changes in ((), ("epochs=2",)):
        request = Request(table="table8", rows="BYOL", changes=changes)
        for spec in request.specs():
            with store.start(spec, scale="smoke", purpose=worker.purpose_of(request, spec)) as run:
                run.finish({"top1": 0.8})
            made[changes, spec.name] = run.run_id
        table = Request(table="table8", changes=changes).build()
        store.log_table(fill_from(table, 1, {}, {}), [report], table)
    client, experiment = store.connection.client, store.connection.experiment("smoke")
    view = json.loads(client.get_experiment(experiment).tags[views.tag("table8")])
    assert view == views.of_table(Request(table="table8").build())["table8"]
    shown = client.search_runs([experiment], view["searchFilter"])
    assert [run.info.run_id for run in shown] == [made[(), "evaluate"]]
    ours, trial = (client.get_run(made[changes, "pretrain"]).data.tags for changes in ((), ("epochs=2",)))
    assert (ours["tables"], trial["tables"]) == ("/table1/table8/table11/table12/", "/table8 with changes/")
    assert "Used by Table 11:\n\n- `lambda_s=0 lambda_b=0, k2`" in ours["mlflow.note.content"]
    assert "Used by Table 8, with changed settings" in trial["mlflow.note.content"]
    evaluated = client.get_run(made[(), "evaluate"]).data.tags
    assert evaluated["mlflow.note.content"].startswith(
        f"Evaluation of the encoder of run `{ours['spec_id']}`, `byol · synth 4ep · s0`, by `linear` on "
    )


def test_a_row_of_the_user_is_no_part_of_the_table() -> None:
    request = Request(table="table4", rows="Mine", added=(("Mine", Weights(sha256="a" * 64)),))
    ((use,),) = uses.of([request.build()]).values()
    assert (uses.as_tag([use]), use.cells) == ("/table4 with changes/", ["Mine, top1_20", "Mine, top1_200"])


def test_titles_and_groups() -> None:
    assert title(PRETRAIN) == "K4 λs.004 λb.5 · toy 3ep · s0"
    assert title(EVALUATE) == "K4 λs.004 λb.5 → toy k5 · toy 3ep · s0"
    normed = replace(
        PRETRAIN,
        method=MSBReg(num_views=8, lambda_s=0.0, lambda_b=1.5, heads=Heads(norm="layernorm")),
        epochs=320,
        seed=2,
    )
    assert title(normed) == "K8 λs0 λb1.5 norm=layernorm · toy · s2"
    weighted = replace(PRETRAIN, method=BYOL(lambda_uniform=0.25, uniform_t=2, tau=0.996), epochs=30)
    assert title(weighted) == "byol λuniform.25 uniform_t=2 τ.996 · toy 30ep · s0"
    eight = Request(table="table8", rows="Ours (K=8) + L_b + L_s", scale="paper").specs()[0]
    assert isinstance(eight, Pretrain)
    assert title(eight) == "K8 λs.004 λb.5 · IN100 · s0"
    assert title(replace(eight, method=eight.method.smaller("smoke"))) == title(eight)
    seeded = replace(EVALUATE, encoder=replace(PRETRAIN, seed=3), seed=3)
    assert seeded.id != EVALUATE.id
    assert group(seeded) == group(EVALUATE) == EVALUATE.id
    assert group(normed) != group(PRETRAIN)


def test_a_folder_as_tracking_store_is_refused_by_name(site: Site) -> None:
    for uri in ("./mlruns", "file:///tmp/mlruns"):
        with pytest.raises(ValueError, match=re.escape("sqlite:////path/mlflow.db")):
            Store(replace(site, tracking_uri=uri))


def test_asking_an_absent_store_creates_nothing_and_imports_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from reproduce.site import Site
from reproduce.tracking.store import Store
store = Store(Site(runs=Path(sys.argv[1])))
assert store.finished(["0" * 12]) == {} and store.mark_dead_runs() == [] and store.status() == []
slow = [name for name in ("mlflow", "torch", "pandas", "numpy") if name in sys.modules]
print(slow, list(Path(sys.argv[1]).parent.iterdir()))
"""
    folder = tmp_path / "empty"
    folder.mkdir()
    shown = subprocess.run(
        [sys.executable, "-c", code, folder / "runs"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[] []"


def test_a_server_on_this_machine_keeps_runs_as_sqlite_does(site: Site, port: int, tmp_path: Path) -> None:
    command, extra = Store(site).ui_command(port)
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **extra}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        assert answers(server, f"http://127.0.0.1:{port}/health"), (tmp_path / "server.log").read_text()
        remote = replace(site, tracking_uri=f"http://127.0.0.1:{port}")
        assert ended(attempt, remote, be_told) == 1
        store = Store(remote)
        assert store.status()[0].state == "interrupted"
        with store.start(PRETRAIN, scale="smoke") as run:
            run.log(2, {"loss": math.nan, "lr": 1 / 3})
            run.finish({"top1": 1 / 3, "lost": math.inf})
        assert store.history(run.run_id, "lr") == [(2, 1 / 3)]
        metrics = store.finished([PRETRAIN.id])[PRETRAIN.id].metrics
        assert metrics["top1"] == 1 / 3
        assert math.isnan(metrics["lost"])
        with pytest.raises(LookupError, match=f"http://127.0.0.1:{port}"):
            store.ui_command()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert Store(site).finished([PRETRAIN.id])[PRETRAIN.id].run_id == run.run_id
    assert "Warning" not in (tmp_path / "server.log").read_text()
