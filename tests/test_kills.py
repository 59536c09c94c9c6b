"""`kill -9` at any moment: the same command resumes, and reads nothing half-written.

    MSBREG_KILLS=24 pytest tests/test_kills.py      # some six seconds each

The tests use real commands, workers and training: one row of Table 8, made tiny. One after the other, the
processes of a command are killed, at a moment that is visible from outside, such as the draft of a
checkpoint, or at any time; then the command is started again. The end is the same as that of a command that
was never killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from conftest import Home

from reproduce.commands import gc
from reproduce.nn.encoder import FILE
from reproduce.plan import Request
from reproduce.runs import encoder_file
from reproduce.site import Site
from reproduce.tracking.store import Store

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("MSBREG_KILLS", "4"))
SEED = int(os.environ.get("MSBREG_KILLS_SEED", "0"))
CHANGES = ("epochs=4", "dataset.num_train=96", "dataset.num_val=40", "protocol.epochs=5")
COMMAND = ("table8", "--rows", "BYOL", *(word for change in CHANGES for word in ("--set", change)))
PRETRAINING, EVALUATION = Request(table="table8", rows="BYOL", changes=CHANGES).specs()
TIMEOUT = 300.0
"""Seconds to wait for what takes a few."""


class Finished(NamedTuple):
    """The result of a command that was not killed."""

    metrics: dict[str, dict[str, float]]
    encoder: str
    """Digest of its tensors."""
    reports: dict[str, bytes]
    seconds: float


Moment = Callable[[Home], bool]
"""Function that returns whether the moment has come or is over."""


def new(*patterns: str) -> Callable[[Home], Moment]:
    """Return the moment at which a new file with such a name appears.

    The file is a draft, or the final file if the draft was missed.
    """

    def files(home: Home) -> set[Path]:
        return {path for pattern in patterns for path in home.folder.glob(pattern)}

    def begin(home: Home) -> Moment:
        before = files(home)
        return lambda home: not files(home) <= before

    return begin


def owned(home: Home) -> Moment:
    """Return the moment at which the run is taken, also after a process that was killed as its owner."""
    before = lease(home)
    return lambda home: lease(home).get("token") != before.get("token")


def lease(home: Home) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        found: dict[str, Any] = json.loads((home.runs / PRETRAINING.id / "lease.json").read_text())
        return found
    return {}


def nearly_complete(home: Home) -> Moment:
    """Return the moment at which MLflow's status is FINISHED, but the completion tag is missing."""
    of_runs = (
        "SELECT count(*) FROM runs JOIN tags USING (run_uuid) WHERE key = 'spec_id' AND status = 'FINISHED'"
    )
    before = query(home, of_runs)
    return lambda home: query(home, of_runs) > before


def complete(home: Home) -> Moment:
    """Return the moment at which a run has the completion tag, but its folder is not tidied yet."""
    with_tag = "SELECT count(*) FROM tags WHERE key = 'complete'"
    before = query(home, with_tag)
    return lambda home: query(home, with_tag) > before


def query(home: Home, sql: str) -> int:
    """Return a number from the store's database, without MLflow."""
    with contextlib.closing(sqlite3.connect(home.runs / "mlflow.db", timeout=30)) as database:
        return int(database.execute(sql).fetchone()[0])


MOMENTS: tuple[dict[str, Callable[[Home], Moment]], ...] = (
    {
        "the run is taken": owned,
        "the draft of a checkpoint": new("runs/*/.epoch-*.tmp", "runs/*/epoch-*.pt"),
        "a checkpoint has its name": new("runs/*/epoch-*.pt"),
    },
    {
        "the draft of an encoder": new("runs/*/.encoder*.tmp", f"runs/*/{FILE}"),
        "the result is on disk": new(f"runs/{PRETRAINING.id}/result.json"),
        "the status before the tag": nearly_complete,
        "the tag of the pretraining": complete,
    },
    {
        "the evaluation begins": new(f"runs/{EVALUATION.id}"),
        "the result of the evaluation": new(f"runs/{EVALUATION.id}/result.json"),
        "the tag of the evaluation": complete,
    },
    {
        "the draft of a report": new("reports/smoke/.*", "reports/smoke/table8.*"),
        "a report has its name": new("reports/smoke/table8.*"),
    },
)
"""Moments in their order; those of one group follow each other within milliseconds."""
VICTIMS = ("command", "worker", "all")


class Kill(NamedTuple):
    """Victims and time of a kill."""

    victim: str
    moment: str = ""
    """One of MOMENTS; empty for a kill `after` some time."""
    after: float = 0.0
    """Time of the kill, as a fraction of a command's duration."""

    def __str__(self) -> str:
        return f"{self.victim} at {self.moment or f'{self.after:.0%}'}"


def plan() -> list[list[Kill]]:
    """Return so many kills: in turns at a moment of each group, and at some time of the whole duration."""
    draw = random.Random(SEED)
    lives: list[list[Kill]] = []
    while (left := KILLS - sum(map(len, lives))) > 0:
        if len(lives) % 2:
            lives.append([Kill(draw.choice(VICTIMS), after=draw.uniform(0.0, 1.0))])
            continue
        groups = sorted(draw.sample(range(len(MOMENTS)), min(left, len(MOMENTS), max(1, KILLS - 1))))
        lives.append([Kill(draw.choice(VICTIMS), draw.choice(list(MOMENTS[group]))) for group in groups])
    return lives


def empty(folder: Path, template: Path) -> Home:
    """Return a home with a store and no runs."""
    home = Home(folder)
    home.runs.mkdir()
    shutil.copy(template, home.runs)
    return home


@pytest.fixture(scope="module")
def reference(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Execute the command that is not killed, and return its result."""
    home, began = empty(tmp_path_factory.mktemp("reference"), template), time.monotonic()
    done = home.invoke(*COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    return left_by(home)._replace(seconds=time.monotonic() - began)


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Iterator[Home]:
    """Yield a home with a store and no runs; in the end no process is left."""
    made = empty(tmp_path / "home", template)
    yield made
    for process in processes(made):
        process.kill()


def left_by(home: Home) -> Finished:
    """Return what exists at the end.

    That is the final metrics without speeds, the encoder, and the reports without MLflow's run names.
    """
    found = Store(Site(runs=home.runs)).finished([PRETRAINING.id, EVALUATION.id])
    assert len(found) == 2
    metrics = {
        spec_id: {name: value for name, value in run.metrics.items() if "per_second" not in name}
        for spec_id, run in found.items()
    }
    encoder = encoder_file.digest(
        encoder_file.load(home.runs / PRETRAINING.id / FILE, spec_id=PRETRAINING.id)
    )
    paths = [
        path
        for path in (home.reports / "smoke").iterdir()
        if path.suffix in (".md", ".tex", ".csv")
        # These contain the ids of one store, and the cost, which is unknown for a run that was resumed.
        and path.name not in ("runs.csv", "report.tex")
    ]
    return Finished(metrics, encoder, {path.name: path.read_bytes() for path in paths}, 0.0)


def processes(home: Home) -> list[psutil.Process]:
    """Return the processes that work in this home, without zombies."""

    def here(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return (
                process.environ().get("MSBREG_SITE") == str(home.site_file)
                and process.status() != psutil.STATUS_ZOMBIE
            )
        return False

    return [process for process in psutil.process_iter() if here(process)]


def until(found: Callable[[], bool], what: str) -> None:
    """Poll for a condition that may hold only for milliseconds."""
    deadline = time.monotonic() + TIMEOUT
    while not found():
        assert time.monotonic() < deadline, f"not in {TIMEOUT:.0f} s: {what}"
        time.sleep(0.001)


def strike(kill: Kill, command: subprocess.Popen[str], draw: random.Random) -> None:
    """Kill the victims together, so that none sees that another is gone."""
    try:
        tree = psutil.Process(command.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    workers = [process.pid for process in tree]
    victims = {
        "command": [command.pid],
        "worker": draw.sample(workers, min(1, len(workers))),
        "all": [command.pid, *workers],
    }
    for pid in victims[kill.victim] or [command.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


def check_files(home: Home) -> None:
    """Check that every file with a final name is complete."""
    for path in home.runs.glob("*/epoch-*.pt"):
        content = path.read_bytes()
        assert hashlib.sha256(content[:-32]).digest() == content[-32:], path
    for path in [
        *home.runs.glob("*/lease.json"),
        *home.runs.glob("*/result.json"),
        *home.reports.glob("smoke/*.json"),
    ]:
        json.loads(path.read_text())
    for path in home.runs.glob(f"*/{FILE}"):
        encoder_file.load(path, spec_id=path.parent.name)
    for path in home.reports.glob("smoke/table8.html"):
        assert path.read_text().rstrip().endswith("</html>")


def check_status(home: Home) -> None:
    """Check that no run without an owner counts as running, before and after the store is tidied."""
    for state in Store(Site(runs=home.runs)).status():
        assert state.state in ("finished", "interrupted"), state


def survive(kill: Kill, home: Home, seconds: float, draw: random.Random) -> bool:
    """Start the command, kill it as planned, and check what is left.

    Args:
        seconds: duration of the command if it is not killed.

    Returns:
        Whether it was killed. A moment that the previous command did not see, because others continued, may
        have been this one's.
    """
    begin = {name: begin for group in MOMENTS for name, begin in group.items()}
    come = begin[kill.moment](home) if kill.moment else (lambda home: False)
    command = home.start(*COMMAND)
    latest = time.monotonic() + (TIMEOUT if kill.moment else kill.after * seconds)
    until(lambda: come(home) or time.monotonic() > latest or command.poll() is not None, str(kill))
    in_time = command.poll() is None
    strike(kill, command, draw)
    printed = command.communicate(timeout=TIMEOUT)
    assert in_time or command.returncode == 0, printed
    until(lambda: not processes(home), f"after {kill} no process is left")
    check_files(home)
    check_status(home)
    return in_time


LIVES: Sequence[list[Kill]] = plan()


@pytest.mark.parametrize("life", LIVES, ids=lambda life: ", ".join(map(str, life)))
def test_a_command_that_is_killed_again_and_again_ends_as_if_it_were_not(
    life: list[Kill], home: Home, reference: Finished
) -> None:
    draw = random.Random(str(life))
    struck = [survive(kill, home, reference.seconds, draw) for kill in life]
    print(f"{sum(struck)} of {len(life)} kills met a command at work")
    assert struck[0] or not life[0].moment
    done = home.invoke(*COMMAND)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert left_by(home)._replace(seconds=reference.seconds) == reference
    site = Site(runs=home.runs, reports=home.reports)
    assert {state.state for state in Store(site).status()} == {"finished"}
    logs = "".join(path.read_text() for path in home.runs.glob("*/log.txt"))
    assert "broken" not in logs, "something half-written was read"
    assert {item.kind for item in gc.find(site, Store(site)).items} <= {"checkpoints"}
