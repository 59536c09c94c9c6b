"""Runs from the command line to the report, with real processes that are killed, interrupted and restarted.

The runs are those of Table 8's first row, made tiny: 96 scenes, three steps an epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import pytest
import torch
from conftest import ROOT, Home

from reproduce.nn import seeds
from reproduce.plan import Request
from reproduce.site import Site
from reproduce.tracking.store import Store

if TYPE_CHECKING:
    from reproduce.spec import Evaluate, Pretrain

T = TypeVar("T")

EPOCHS, STEPS = 8, 3
"""Epochs of the runs that are interrupted or found running, and the steps of each."""
TINY = ("dataset.num_train=96", "dataset.num_val=40", "protocol.epochs=5")
TITLE = "byol · synth"
"""What the title of the row's pretraining says of its method."""
KINDS = ("md", "tex", "tabular.tex", "html", "csv", "json")

pytestmark = pytest.mark.slow


def row(*changes: str, epochs: int = 1) -> tuple[str, ...]:
    """Return the arguments of `invoke` for one tiny row of Table 8."""
    changes = (f"epochs={epochs}", *TINY, *changes)
    return ("table8", "--rows", "BYOL", *(word for change in changes for word in ("--set", change)))


def specs(*changes: str, epochs: int = 1) -> tuple[Pretrain, Evaluate]:
    """Return the two runs of that row."""
    return Request(table="table8", rows="BYOL", changes=(f"epochs={epochs}", *TINY, *changes)).specs()


def wait(found: Callable[[], T | None], what: str, process: subprocess.Popen[str] | None = None) -> T:
    """Poll until there is something; the process must not end before."""
    deadline = time.monotonic() + 120
    while (value := found()) is None:
        if process is not None and process.poll() is not None:
            pytest.fail(f"No {what}: the command ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, f"No {what} in two minutes."
        time.sleep(0.005)
    return value


def newest_epoch(home: Home, spec_id: str) -> int:
    """Return the number of whole epochs in a run's newest checkpoint, or 0 if there is none."""
    names = (path.stem.removeprefix("epoch-") for path in (home.runs / spec_id).glob("epoch-*.pt"))
    return max((int(name.partition("-")[0]) for name in names), default=0)


def query(home: Home, sql: str, *values: str) -> list[tuple[Any, ...]]:
    """Query the store's database directly, without MLflow."""
    with contextlib.closing(sqlite3.connect(home.runs / "mlflow.db")) as database:
        return database.execute(sql, values).fetchall()


def records(home: Home, spec_id: str) -> list[str]:
    """Return MLflow's status of every record of a run."""
    found = query(
        home,
        "SELECT status FROM runs JOIN tags USING (run_uuid) WHERE key = 'spec_id' AND value = ?",
        spec_id,
    )
    return [status for (status,) in found]


def attempts(home: Home, spec_id: str) -> int:
    """Return the number of attempts of a run, from the environments in its records."""
    sql = "SELECT artifact_uri FROM runs JOIN tags USING (run_uuid) WHERE key = 'spec_id' AND value = ?"
    return sum(
        len(list(Path(uri.removeprefix("file://")).glob("environment*.json")))
        for (uri,) in query(home, sql, spec_id)
    )


def states(home: Home) -> dict[str, str]:
    """Return the states that `invoke status` prints, by run id, without a slow import of MLflow."""
    return {found.spec_id: found.state for found in Store(Site(runs=home.runs)).status()}


def weights(home: Home, spec_id: str) -> tuple[dict[str, Any], bytes]:
    """Return the header and the bytes of an encoder's file; the header's keys have no fixed order."""
    content = (home.runs / spec_id / "encoder.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def cell(home: Home) -> dict[str, Any]:
    """Return the one cell of the one row in the report."""
    (found,) = json.loads((home.reports / "smoke" / "table8.json").read_text())["rows"]
    return found["cells"]["acc"]


@pytest.fixture(scope="module")
def finished(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """Return a home in which the row finished without interruption, and the output."""
    home = Home(tmp_path_factory.mktemp("finished"))
    home.runs.mkdir()
    shutil.copy(template, home.runs)
    done = home.invoke(*row(epochs=EPOCHS))
    assert (done.returncode, done.stderr) == (0, "")
    return home, done.stdout


@contextlib.contextmanager
def under_way(
    home: Home, arguments: tuple[str, ...], spec_id: str, epoch: int
) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Yield `invoke` and its worker, which has just written the checkpoint of `epoch` or a later one.

    Afterwards no process may be left.
    """
    command = home.start(*arguments)
    children: list[psutil.Process] = []
    try:
        wait(lambda: newest_epoch(home, spec_id) >= epoch or None, f"checkpoint {epoch}", command)
        children = psutil.Process(command.pid).children(recursive=True)
        worker = next(child for child in children if "reproduce.worker" in child.cmdline())
        yield command, worker
        command.wait(60)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, f"still alive: {alive}"
    finally:
        for process in (command, *children):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()
        command.communicate()


def pause(home: Home, worker: psutil.Process) -> None:
    """Stop a worker where others can write to the store, until it is resumed."""

    def paused() -> bool | None:
        worker.suspend()
        wait(lambda: worker.status() == psutil.STATUS_STOPPED or None, "stop of the worker")
        try:
            with contextlib.closing(sqlite3.connect(home.runs / "mlflow.db", timeout=0)) as database:
                database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            worker.resume()
            return None
        return True

    wait(paused, "pause between two writes")


def attached(command: subprocess.Popen[str]) -> str:
    """Return the output of a command up to the line that names the process to which it attaches."""
    assert command.stdout is not None
    printed = ""
    for line in command.stdout:
        printed += line
        if line.startswith("attached to process "):
            return printed
    pytest.fail(f"It did not attach: {printed}")


def test_a_row_is_run_recorded_and_printed_in_every_format(finished: tuple[Home, str]) -> None:
    home, printed = finished
    pretraining, evaluation = (spec.id for spec in specs(epochs=EPOCHS))
    first, one, two, summary, *table, report = printed.splitlines()
    assert first == "2 runs to do, 0 reused."
    took = r"[\d:]+( s)?"
    assert re.fullmatch(rf"\[1/2\] {TITLE} {EPOCHS}ep · s0: {took}, [\d,]+ images/s", one)
    assert re.fullmatch(rf"\[2/2\] byol → linear · synth {EPOCHS}ep · s0: {took}", two)
    assert re.fullmatch(rf"2 runs done, 0 reused, 0 missing, in {took}\.", summary)
    assert table[0].startswith("table8 (smoke): Ablation of the multiview centroid loss")
    assert table[-1].split() == ["BYOL", "71.92", f"{cell(home)['value']:.2f}"]
    assert report.endswith(f": {home.reports / 'smoke' / 'table8.md'}")
    written = {path.name for path in (home.reports / "smoke").iterdir()}
    state = {".rendered", ".rendered.lock"}
    assert written - state - {"report.pdf"} == {  # pdflatex may not be installed
        "claims.html",
        "claims.md",
        "index.html",
        "report.html",
        "report.tex",
        "runs",
        "runs.csv",
        *(f"table8.{kind}" for kind in KINDS),
        "figures",
    }
    page = (home.reports / "smoke" / "runs" / f"{pretraining}.html").read_text()
    assert f"<pre>epoch 1/{EPOCHS}: loss " in page
    assert str(home.folder) not in page
    figures = sorted(path.name for path in (home.reports / "smoke" / "figures").iterdir())
    shown = ("curves", "losses", "views")
    assert [name for name in figures if name.partition("-")[2].partition(".")[0] in shown] == [
        f"table8-{name}.{ending}" for name in shown for ending in ("png", "svg")
    ]
    ours = cell(home)
    assert 0 <= ours["value"] <= 100
    assert ours["reason"] is None
    assert records(home, pretraining) == records(home, evaluation) == ["FINISHED"]
    assert states(home) == {pretraining: "finished", evaluation: "finished"}
    assert ours["runs"] == [evaluation]


def test_a_second_call_starts_nothing_and_writes_the_same_bytes(finished: tuple[Home, str]) -> None:
    home, _ = finished

    def read() -> dict[Path, bytes]:
        files = (path for path in (home.reports / "smoke").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    reports = read()
    written = {path: path.stat().st_mtime_ns for path in reports}
    runs = {path: path.stat().st_mtime_ns for path in home.runs.glob("[0-9a-f]*/*")}
    again = home.invoke(*row(epochs=EPOCHS))
    assert {path: path.stat().st_mtime_ns for path in read()} == written
    for path in reports:
        path.unlink()
    done = home.invoke(*row(epochs=EPOCHS))
    assert (done.returncode, done.stderr) == (again.returncode, again.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == again.stdout.splitlines()[1:]
    assert done.stdout.startswith("0 runs done, 2 reused, 0 missing, in ")
    assert read() == reports
    assert {path: path.stat().st_mtime_ns for path in home.runs.glob("[0-9a-f]*/*")} == runs
    planned = home.invoke(*row(epochs=EPOCHS), "--dry-run").stdout.splitlines()
    assert [line.split()[0] for line in planned] == ["reuse", "reuse", "2", "Changed", "Plan"]


def kill_worker(command: subprocess.Popen[str], worker: psutil.Process) -> None:
    worker.send_signal(signal.SIGKILL)


def kill_command(command: subprocess.Popen[str], worker: psutil.Process) -> None:
    command.kill()


def terminate(command: subprocess.Popen[str], worker: psutil.Process) -> None:
    command.terminate()


def press_ctrl_c(command: subprocess.Popen[str], worker: psutil.Process) -> None:
    os.killpg(command.pid, signal.SIGINT)  # a terminal sends it to the whole group


def test_a_run_that_is_killed_and_interrupted_ends_with_the_weights_of_one_that_is_not(
    place: Home, finished: tuple[Home, str]
) -> None:
    pretraining, evaluation = (spec.id for spec in specs(epochs=EPOCHS))
    arguments = row(epochs=EPOCHS)
    printed = {}
    ways = {
        kill_worker: (1, "RUNNING"),
        kill_command: (-9, "KILLED"),
        press_ctrl_c: (130, "KILLED"),
        terminate: (143, "KILLED"),
    }
    for strike, (code, recorded) in ways.items():
        before = newest_epoch(place, pretraining)
        with under_way(place, arguments, pretraining, before + 1) as (command, worker):
            strike(command, worker)
            printed[strike], errors = command.communicate(timeout=60)
        assert (strike, command.returncode, errors) == (strike, code, "")
        assert newest_epoch(place, pretraining) < EPOCHS, "the run was too fast to be interrupted"
        assert not (place.runs / pretraining / "encoder.safetensors").exists()
        assert records(place, pretraining) == [recorded]
        assert states(place) == {pretraining: "interrupted"}
    done = place.invoke(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert states(place) == {pretraining: "finished", evaluation: "finished"}

    died = f"its process ended with signal 9 (log: {place.runs}/{pretraining}/log.txt)"
    failed = [line for line in printed[kill_worker].splitlines() if line.startswith("failed: ")]
    ends = (died, f": needs run {pretraining}, which failed: {died}")
    assert [(line.split()[1], line.endswith(end)) for line, end in zip(failed, ends, strict=True)] == [
        (pretraining, True),
        (evaluation, True),
    ]

    reference, _ = finished
    assert weights(place, pretraining) == weights(reference, pretraining)
    for name in ("table8.md", "table8.tex"):  # the other formats contain MLflow's run ids
        assert (place.reports / "smoke" / name).read_bytes() == (
            reference.reports / "smoke" / name
        ).read_bytes()
    # It was resumed, not restarted: five restarts would have measured more epochs than all epochs and the
    # interrupted ones.
    steps = [step for (step,) in query(place, "SELECT step FROM metrics WHERE key = 'loss'")]
    assert set(steps) == {STEPS * epoch for epoch in range(1, EPOCHS + 1)}
    assert len(steps) <= EPOCHS + len(ways)
    assert attempts(place, pretraining) == 1 + len(ways)


def test_a_broken_image_fails_its_run_and_the_others_go_on(place: Home) -> None:
    changes = ("epochs=1", *TINY, "num_unlabeled=64", "num_test=40", "warmup_epochs=0")
    columns = "imagenet100_top1,stl10_top1"
    runs = Request(table="table1", rows="BYOL", columns=columns, changes=changes).specs()
    broken, lost, *others = (spec.id for spec in runs)
    dataset: Any = runs[0].dataset
    dataset.load("train", Site(runs=place.runs))
    image = next(dataset.folder(Site(runs=place.runs)).glob("train/*/*"))
    image.write_bytes(image.read_bytes()[:100])

    done = place.invoke(
        "table1",
        "--rows",
        "BYOL",
        "--columns",
        columns,
        *(word for change in changes for word in ("--set", change)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (reason,) = [line for line in done.stdout.splitlines() if line.startswith(f"failed: {broken} ")]
    assert image.name in reason
    assert f"needs run {broken}, which failed" in done.stdout
    assert records(place, broken) == ["FAILED"]
    assert records(place, lost) == []
    assert [records(place, spec_id) for spec_id in others] == [["FINISHED"]] * 2
    assert states(place) == {broken: "failed", **dict.fromkeys(others, "finished")}
    assert image.name in (place.runs / broken / "log.txt").read_text()
    assert "Traceback" in (place.runs / broken / "log.txt").read_text()
    (found,) = json.loads((place.reports / "smoke" / "table1.json").read_text())["rows"]
    assert found["cells"]["imagenet100_top1"]["value"] is None
    assert f"needs run {broken}, which failed" in found["cells"]["imagenet100_top1"]["reason"]
    assert found["cells"]["stl10_top1"]["value"] is not None


def test_a_loss_that_is_not_finite_stops_the_run(place: Home) -> None:
    huge = ("optimizer.base_lr=1e30", "warmup_epochs=0")
    pretraining, _ = (spec.id for spec in specs(*huge, epochs=2))
    done = place.invoke(*row(*huge, epochs=2))
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"failed: {pretraining} ")]
    assert re.search(
        r"FloatingPointError: The loss is not finite at step \d+: "
        r"loss = (nan|inf), L_byol = (nan|inf)\. A lower",
        line,
    )
    assert records(place, pretraining) == ["FAILED"]
    assert newest_epoch(place, pretraining) == 0, "a state that is not finite was saved"
    (status,) = place.invoke("status").stdout.splitlines()
    assert status.startswith(f"failed       {pretraining} ")
    assert "The loss is not finite" in status


def test_rendering_only_starts_nothing_and_says_why_cells_are_empty(place: Home) -> None:
    done = place.invoke("reports")
    assert (done.returncode, done.stderr) == (3, "")
    assert re.search(r"^0 runs done, 0 reused, \d+ missing, in ", done.stdout)
    assert not list(place.runs.glob("[0-9a-f]*/"))
    tables = {path.stem for path in (place.reports / "smoke").glob("*.json")}
    assert tables == {f"table{number}" for number in range(1, 13)}
    report = json.loads((place.reports / "smoke" / "table8.json").read_text())
    for line in report["rows"]:
        assert line["cells"]["acc"]["value"] is None
        assert line["cells"]["acc"]["reason"] == "no finished run with these settings"
    assert {claim["ours"] for claim in report["claims"]} == {"not judged"}
    assert "–" in (place.reports / "smoke" / "table8.md").read_text()


def test_a_second_command_attaches_to_the_first_and_both_end_with_the_same_table(place: Home) -> None:
    pretraining, evaluation = specs(epochs=EPOCHS)
    with under_way(place, row(epochs=EPOCHS), pretraining.id, 1) as (first, worker):
        pause(place, worker)
        planned = place.invoke(*row(epochs=EPOCHS), "--dry-run").stdout.splitlines()
        listed = place.invoke("status", "--state", "running", "--table", "table8").stdout
        second = place.start(*row(epochs=EPOCHS))
        begun = attached(second)
        worker.resume()
        printed = [command.communicate(timeout=200) for command in (first, second)]
    assert [command.returncode for command in (first, second)] == [0, 0], printed
    assert planned[0].startswith(f"attach   {pretraining.id}  byol ")
    assert re.search(rf": process {worker.pid} on \S+ executes it", planned[0])
    assert listed == "", "settings were changed, so the run is not one of the table's"
    (rest, errors), report = printed[1], (place.reports / "smoke" / "table8.md").read_bytes()
    assert errors == ""
    assert re.search(rf"^attached to process {worker.pid} on \S+: byol ", begun, re.M), begun
    assert "by other processes), 0 reused, 0 missing" in rest
    assert place.invoke("reports", "--set", f"epochs={EPOCHS}").returncode == 3
    for name in ("table2", "table8"):
        assert json.loads((place.reports / "smoke" / f"{name}.json").read_text())["changes"] == [
            f"epochs={EPOCHS}"
        ]
    assert place.invoke(*row(epochs=EPOCHS)).stdout.startswith("0 runs done, 2 reused")
    assert (place.reports / "smoke" / "table8.md").read_bytes() == report
    for spec in (pretraining, evaluation):
        assert records(place, spec.id) == ["FINISHED"]
        assert attempts(place, spec.id) == 1


def test_who_waits_for_a_command_that_is_killed_goes_on_with_its_run(place: Home) -> None:
    pretraining, _ = specs(epochs=EPOCHS)
    with under_way(place, row(epochs=EPOCHS), pretraining.id, 1) as (first, worker):
        pause(place, worker)
        second = place.start(*row(epochs=EPOCHS))
        attached(second)
        first.kill()
        worker.kill()
        rest, errors = second.communicate(timeout=200)
    assert (second.returncode, errors) == (0, ""), rest
    assert re.search(rf"^taken over from process {worker.pid} on ", rest, re.M)
    assert attempts(place, pretraining.id) == 2


def test_a_run_on_two_devices_is_interrupted_and_resumed_and_leaves_no_process(place: Home) -> None:
    """torchrun starts two CPU processes for the pretraining; its evaluation takes one."""
    place.site_file.write_text(place.site_file.read_text() + "devices = 2\n")
    pretraining, evaluation = specs(epochs=EPOCHS)
    with under_way(place, row(epochs=EPOCHS), pretraining.id, 1) as (command, _):
        workers = [
            child
            for child in psutil.Process(command.pid).children(recursive=True)
            if pretraining.id in child.cmdline()
        ]
        assert len(workers) == 3, "torchrun and two processes of the run"
        press_ctrl_c(command, workers[0])
        printed = command.communicate(timeout=60)
    assert (command.returncode, states(place)) == (130, {pretraining.id: "interrupted"}), printed
    assert printed[1] == "", "torchrun's traceback belongs into the run's log"
    done = place.invoke(*row(epochs=EPOCHS))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert states(place) == {pretraining.id: "finished", evaluation.id: "finished"}
    assert attempts(place, pretraining.id) == 2
    steps = [step for (step,) in query(place, "SELECT step FROM metrics WHERE key = 'loss'")]
    assert sorted(set(steps)) == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]


def test_images_are_decoded_by_processes_of_their_own(place: Home, finished: tuple[Home, str]) -> None:
    """A worker that reads its orders must be able to fork."""
    place.site_file.write_text(place.site_file.read_text() + "workers = 1\ncache_gb = 0.0\n")
    done = place.invoke(*row(epochs=EPOCHS))
    assert (done.returncode, done.stderr) == (0, "")
    pretraining, _ = specs(epochs=EPOCHS)
    assert weights(place, pretraining.id) == weights(finished[0], pretraining.id)


def test_the_error_of_one_of_two_processes_is_the_runs(place: Home) -> None:
    """The second process decodes a broken image; torchrun then stops the first one."""
    place.site_file.write_text(place.site_file.read_text() + "devices = 2\ncache_gb = 0.0\n")
    pretraining, _ = specs()
    images = pretraining.dataset.load("train", Site(runs=place.runs))
    first = torch.randperm(len(images), generator=seeds.generator("order", pretraining.seed, 0))[
        : pretraining.batch_size
    ]
    broken = Path(os.fsdecode(images._path(first[-1])))
    broken.write_bytes(broken.read_bytes()[:-40])
    done = place.invoke(*row())
    assert done.returncode == 1
    assert re.search(
        rf"^failed: {pretraining.id} .*: another process of the run failed, .*{re.escape(broken.name)}",
        done.stdout,
        re.MULTILINE,
    )
    assert states(place) == {pretraining.id: "failed"}
    assert records(place, pretraining.id) == ["FAILED"]


def test_two_processes_of_torchrun_complete_a_run(place: Home) -> None:
    pretraining, _ = specs(epochs=2)
    request = Request(table="table8", rows="BYOL", changes=("epochs=2", *TINY)).dumps()
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "reproduce.worker",
    ]
    done = subprocess.run(
        [*launcher, request, pretraining.id],
        cwd=ROOT,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert records(place, pretraining.id) == ["FINISHED"]
    assert states(place) == {pretraining.id: "finished"}
    assert attempts(place, pretraining.id) == 1
    header, _ = weights(place, pretraining.id)
    assert header["__metadata__"]["spec_id"] == pretraining.id
    assert not any("module." in name for name in header)  # DistributedDataParallel leaves no trace
    steps = [step for (step,) in query(place, "SELECT step FROM metrics WHERE key = 'loss' ORDER BY step")]
    assert steps == [STEPS, 2 * STEPS]


def test_an_encoder_that_is_not_here_is_fetched_from_the_store(
    place: Home, finished: tuple[Home, str]
) -> None:
    """As on a machine that shares only the tracking store."""
    reference, _ = finished
    shutil.rmtree(place.runs)
    shutil.copytree(reference.runs, place.runs)
    pretraining, _ = specs(epochs=EPOCHS)
    encoder = place.runs / pretraining.id / "encoder.safetensors"
    encoder.unlink()
    changes = (f"epochs={EPOCHS}", *TINY[:2])
    options = (word for change in changes for word in ("--set", change))
    done = place.invoke("table1", "--rows", "BYOL", "--columns", "imagenet100_5nn", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 run done, 1 reused, 0 missing" in done.stdout
    assert weights(place, pretraining.id) == weights(reference, pretraining.id)


def test_the_full_method_beats_its_own_random_initialisation(place: Home) -> None:
    """At the smoke scale itself, by linear accuracy.

    There are ten classes, and the standard error is about 1.5 percentage points.
    """
    accuracy = {}
    for epochs in (0, 4):
        done = place.invoke("table8", "--rows", "Ours (K=4) + L_b + L_s", "--set", f"epochs={epochs}")
        assert (done.returncode, done.stderr) == (0, "")
        accuracy[epochs] = cell(place)["value"]
    assert accuracy[4] > accuracy[0] + 5
