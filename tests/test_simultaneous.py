"""Several commands at once that share runs: each run is executed once, and all reports are the same.

    MSBREG_TRIALS=100 pytest tests/test_simultaneous.py      # half a minute each on two cores

Commands and workers are real. Only training and evaluation, in the worker's process, are replaced by
functions of a second: they record their call in one file, and return a number that follows from the run's id.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from conftest import Home

from reproduce.plan import Request
from reproduce.report.table import RESERVED
from reproduce.site import Site
from reproduce.spec import Spec
from reproduce.tracking.store import Store

pytestmark = pytest.mark.slow

TRIALS = int(os.environ.get("MSBREG_TRIALS", "2"))
FIRST = 51
"""Seed whose first two trials have three and four commands, and all tables."""
COMMANDS = {
    "table1": ("BYOL,Ours (K=4)", "imagenet100_top1,imagenet100_5nn"),
    "table8": ("BYOL,BYOL + L_b + L_s,Ours (K=4) + L_b + L_s", "*"),
    "table11": ("lambda_s=0 lambda_b=0,lambda_s=0.004 lambda_b=0.5", "k2"),
    "table12": ("BYOL,Ours (K=4)", "acc,uniformity"),
}
"""Rows and columns of tables at smoke, of four to six runs each, ten in all: three pretrainings are each
needed by two to four of them."""
LATEST = 2.0
"""Seconds between the first command and the last: the duration of two replaced functions."""
STAND_IN = '''
import importlib.machinery, os, sys, time

def note(spec):
    line = os.open(os.environ["STAND_IN_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(line, f"{spec.id}\\n".encode())
    os.close(line)
    with open(f"{os.environ['STAND_IN_NOTES']}.{os.getpid()}", "w") as place:
        place.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ['MSBREG_RUNS_PER_GPU']}")

def work(report):
    from reproduce.runs.progress import Progress
    for done in range(10):
        time.sleep(0.1)
        report(Progress(done + 1, 10, "images", "a stand-in"))

def pretrain(spec, site, folder, device, record, report, **more):
    from reproduce.train import build_network, encoder_of
    note(spec)
    work(report)
    online = build_network(spec).online
    encoder_of(spec, online).save(folder)
    return {"loss": 1.0}

def evaluate(spec, encoder, site, device, watch):
    note(spec)
    work(watch.report)
    return dict.fromkeys(spec.protocol.metrics, int(spec.id[:4], 16) / 65536)

class Instead:
    """Puts a stand-in in the place of a function as soon as its module has been imported."""

    @staticmethod
    def find_spec(name, path, target=None):
        function = {"reproduce.train": pretrain, "reproduce.evaluate": evaluate}.get(name)
        if function is None:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        execute = found.loader.exec_module
        found.loader.exec_module = lambda module: (
            execute(module),
            setattr(module, function.__name__, function),
        )
        return found

sys.meta_path.insert(0, Instead)
'''


@dataclass
class Stage(Home):
    """A home whose workers have the replaced functions; each command has one worker, enough for two cores."""

    site: str = field(default='device = "cpu"\njobs = 1\n')

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "PYTHONPATH": str(self.folder / "stand_in"),
            "STAND_IN_NOTES": str(self.notes),
        }

    @property
    def notes(self) -> Path:
        return self.folder / "notes.txt"

    def processes(self) -> list[psutil.Process]:
        """Processes of this home, without zombies."""
        return [process for process in psutil.process_iter() if self._here(process)]

    def _here(self, process: psutil.Process) -> bool:
        try:
            return (
                process.environ().get("MSBREG_SITE") == str(self.site_file)
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False


def arguments(table: str) -> tuple[str, ...]:
    rows, columns = COMMANDS[table]
    return (table, "--rows", rows, "--columns", columns)


def specs(table: str) -> tuple[Spec, ...]:
    rows, columns = COMMANDS[table]
    return Request(table=table, rows=rows, columns=columns).specs()


def value(spec: Spec) -> float:
    """Return the value that the replaced function measures."""
    return int(spec.id[:4], 16) / 65536


@pytest.fixture
def stage(template: Path, tmp_path: Path) -> Iterator[Stage]:
    """Yield an empty home with the replaced functions; in the end no process is left."""
    made = Stage(tmp_path / "home")
    made.runs.mkdir()
    shutil.copy(template, made.runs)
    (made.folder / "stand_in").mkdir()
    (made.folder / "stand_in" / "sitecustomize.py").write_text(STAND_IN)
    yield made
    for process in made.processes():
        process.kill()


REPORTS: dict[str, bytes] = {}
"""Content of each report that names no run of the store, from the first trial."""


def test_the_commands_share_runs() -> None:
    """Without shared runs the trials would show nothing."""
    needed = Counter(spec.id for table in COMMANDS for spec in specs(table))
    assert 8 <= len(needed) <= 12
    assert sum(number > 1 for number in needed.values()) >= 4


@pytest.mark.parametrize("trial", range(TRIALS))
def test_no_run_is_done_twice(trial: int, stage: Stage) -> None:
    draw = random.Random(FIRST + trial)
    num = draw.randint(2, 8)
    tables = draw.choices(sorted(COMMANDS), k=num)
    commands = []
    for table in tables:
        commands.append(stage.start(*arguments(table)))
        # This waits for nothing: it varies the start times of the commands.
        time.sleep(draw.uniform(0, LATEST / len(tables)))
    printed = [command.communicate(timeout=600) for command in commands]
    assert [command.returncode for command in commands] == [0] * len(tables), printed
    assert [errors for _, errors in printed] == [""] * len(tables)

    wanted = {spec.id: spec for table in tables for spec in specs(table)}
    assert Counter(stage.notes.read_text().split()) == Counter(list(wanted)), printed
    known = Store(Site(runs=stage.runs)).status()
    assert {(state.spec_id, state.state) for state in known} == {(spec_id, "finished") for spec_id in wanted}
    assert len(known) == len(wanted)
    assert not stage.processes()

    for table in set(tables):
        rows = json.loads((stage.reports / "smoke" / f"{table}.json").read_text())["rows"]
        values = [
            cell["value"] for row in rows for cell in row["cells"].values() if cell["value"] is not None
        ]
        assert sorted(values) == pytest.approx(
            sorted(value(spec) * (100 if metric.startswith("top") else 1) for spec, metric in shown(table))
        )
    for path in sorted((stage.reports / "smoke").iterdir()):
        if path.suffix in (".md", ".tex", ".csv") and path.stem not in RESERVED:  # these are of all tables
            assert REPORTS.setdefault(path.name, path.read_bytes()) == path.read_bytes(), path.name


def test_runs_that_share_a_gpu_are_done_once(stage: Stage) -> None:
    """Two commands at once, and a GPU that is only a name: the workers find none and use the CPU."""
    stage.site_file.write_text(f'runs = "{stage.runs}"\nreports = "{stage.reports}"\nruns_per_gpu = 2\n')
    rows, columns = "BYOL,BYOL + L_b + L_s", "acc"
    chosen = ("table8", "--rows", rows, "--columns", columns)
    commands = [stage.start(*chosen, CUDA_VISIBLE_DEVICES="3") for _ in range(2)]
    printed = [command.communicate(timeout=600) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], printed
    wanted = [spec.id for spec in Request(table="table8", rows=rows, columns=columns).specs()]
    assert len(wanted) == 4
    assert Counter(stage.notes.read_text().split()) == Counter(wanted), printed
    places = [path.read_text() for path in stage.notes.parent.glob("notes.txt.*")]
    assert set(places) == {"3 2"}
    assert 2 <= len(places) <= 4, "each command has two workers on the GPU"
    assert not stage.processes()


def shown(table: str) -> list[tuple[Spec, str]]:
    """Return the evaluation behind each cell, and the part of it that the cell shows."""
    rows, columns = COMMANDS[table]
    return [
        (ours.runs(1)[0], ours.metric)
        for _, _, ours in Request(table=table, rows=rows, columns=columns).build().measured()
    ]
