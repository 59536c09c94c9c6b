"""The origin of a number and the differences of two runs, from the command line with a real store."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Home
from waiting import until

from reproduce.commands import status
from reproduce.commands.status import Filter
from reproduce.commands.why import difference, why
from reproduce.messages import NotFoundError
from reproduce.plan import Request
from reproduce.runs import lease
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking.store import Store

pytestmark = pytest.mark.slow  # MLflow takes seconds to import and its store seconds to create

BYOL = Request(table="table8", rows="BYOL", columns="acc")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store in which Table 8's BYOL is finished at seed 0, and its pretraining failed at seed 1."""
    store = Store(Site(runs=tmp_path_factory.mktemp("runs")))
    pretrained, evaluated = BYOL.specs()
    with store.start(pretrained, scale="smoke") as run:
        run.tag("data_digest", "0123")
        run.finish({"loss": 0.25})
    with store.start(evaluated, scale="smoke") as run:
        run.tag("encoder_digest", "4567")
        run.finish({"top1": 0.5, "top5": 0.75})
    with pytest.raises(FloatingPointError), store.start(pretrained.replace("seed", 1), scale="smoke"):
        raise FloatingPointError("the loss is not finite")
    return store


def test_a_finished_cell_names_its_runs_and_what_they_used(store: Store) -> None:
    lines = list(why(BYOL, store, store._site))
    pretrained, evaluated = BYOL.specs()
    assert lines[0].startswith("table8 at smoke scale, row 'BYOL', column acc; the paper: 71.92 (")
    assert lines[1] == "  seed 0: top1 50.00 %"
    text = "\n".join(lines)
    for spec in (pretrained, evaluated):
        record = store.record_of(spec.id)
        assert record is not None
        assert f"{spec.name} {spec.id}" in text
        assert f"MLflow: run {record.state.run_id}, " in text
        assert f"code: commit {record.commit}" in text
    assert "data digest: 0123" in text
    assert "encoder digest: 4567" in text
    settings = " ".join(text.split())
    assert "settings that differ from the defaults: method=byol, " in settings
    assert "method.tau=0.95" in settings
    assert "augmentation.crop_min" not in settings
    assert len(re.findall(r"  finished, started [\d-]+ [\d:]+, took \d+ s on ", text)) == 2
    command = "table8 --rows BYOL --columns acc"
    assert text.endswith(f"  to make it again: invoke redo {command} && invoke {command}")
    assert "to fill it" not in text


def test_an_empty_cell_says_what_would_fill_it(store: Store) -> None:
    request = Request(table="table8", rows="BYOL", columns="acc", seeds=2)
    text = "\n".join(why(request, store, store._site))
    assert "  seed 1: top1 – (not run yet)" in text
    assert "failed: FloatingPointError: the loss is not finite" in text
    assert text.endswith("2 runs missing; to fill it: invoke table8 --rows BYOL --columns acc --seeds 2")


def test_a_quoted_cell_says_that_nothing_is_run_for_it(store: Store) -> None:
    (_, told) = why(Request(table="table5", rows="BoWNet", columns="voc07"), store, store._site)
    assert told == "  ours: none. This method's numbers are quoted, and nothing is run for it here."
    (_, *told) = why(Request(table="table4", rows="NPID", columns="top1_200"), store, store._site)
    assert told == [
        "  ours: none. This method's numbers are quoted, but --baselines released evaluates the released "
        "encoder, and --baselines trained trains it here.",
        "  to fill it: invoke table4 --rows NPID --columns top1_200 --baselines released",
        "  to fill it: invoke table4 --rows NPID --columns top1_200 --baselines trained",
    ]


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"table": "table5", "rows": "BoWNet", "columns": "ap", "baselines": "trained"}, []),
        ({"table": "table1", "rows": "SimCLR", "columns": "stl10_5nn"}, ["trained"]),
        ({"table": "table1", "rows": "SimCLR", "columns": "imagenet100_5nn"}, []),
        ({"table": "table5", "rows": "SwAV", "columns": "ap"}, ["released", "trained"]),
        ({"table": "table5", "rows": "SwAV", "columns": "places", "scale": "small"}, []),
    ],
)
def test_a_quoted_cell_names_the_choices_of_baselines_that_it_has(
    fields: dict[str, Any], choices: list[str], store: Store
) -> None:
    """The small scale has no Places205."""
    (_, _, *told) = why(Request(**fields), store, store._site)
    assert [line.rpartition(" --baselines ")[2].split()[0] for line in told] == choices
    for line in told:
        _, _, command = line.partition(f"to fill it: invoke {fields['table']} ")
        options = dict(zip(*[iter(shlex.split(command))] * 2, strict=True))
        named = {key: options[f"--{key}"] for key in ("rows", "columns", "baselines")}
        assert Request(table=fields["table"], **named).specs()


def test_a_choice_without_the_changed_setting_is_not_named(store: Store) -> None:
    """A released encoder has no epochs."""
    request = Request(table="table5", rows="SwAV,BYOL", columns="ap", changes=("epochs=1",))
    told = [line for line in why(request, store, store._site) if "to fill it" in line]
    swav = "  to fill it: invoke table5 --rows SwAV --columns ap --baselines trained --set epochs=1"
    assert [line for line in told if "SwAV" in line] == [swav]


def test_a_trained_row_is_traced_to_its_runs(store: Store) -> None:
    request = Request(table="table1", rows="SimCLR", columns="stl10_5nn", baselines="trained")
    pretrained, evaluated = request.specs()
    with store.start(pretrained, scale="smoke") as run:
        run.finish({"loss": 0.5})
    with store.start(evaluated, scale="smoke") as run:
        run.finish({"top1": 0.375})
    told = list(why(request, store, store._site))
    assert told[1] == "  seed 0: top1 37.50 %"
    for spec in (pretrained, evaluated):
        assert any(f"{spec.name} {spec.id}" in line for line in told)


def test_two_runs_differ_in_what_was_changed_and_in_nothing_else(store: Store) -> None:
    pretrained, _ = BYOL.specs()
    assert isinstance(pretrained, Pretrain)
    other = pretrained.replace("epochs", 7).replace("method.lambda_s", 0.5)
    with store.start(other, scale="smoke") as run:
        run.finish({"loss": 0.125, "rank": 3.0})
    lines = list(difference(pretrained.id[:6], other.id, store))
    assert [line.split()[:2] for line in lines[:2]] == [["a", pretrained.id], ["b", other.id]]
    assert lines[2].startswith("settings: 2 of ")
    differing = {line.split()[0]: tuple(line.split()[1:]) for line in lines[3:5]}
    assert differing == {"epochs": ("4", "7"), "method.lambda_s": ("0.0", "0.5")}
    assert [line.split() for line in lines[6:]] == [["loss", "0.25", "0.125"], ["rank", "–", "3"]]


def test_a_pretraining_and_an_evaluation_are_compared_by_the_settings_of_the_encoder(store: Store) -> None:
    pretrained, evaluated = BYOL.specs()
    other = pretrained.replace("epochs", 9)
    with store.start(other, scale="smoke") as run:
        run.finish({"loss": 0.5})
    assert list(difference(pretrained.id, evaluated.id, store))[2].startswith(
        "settings of the encoder: 0 of "
    )
    lines = list(difference(evaluated.id, other.id, store))
    assert lines[2].startswith("settings of the encoder: 1 of ")
    assert lines[3].split() == ["epochs", "4", "9"]
    assert [line.split()[0] for line in lines[5:]] == ["loss", "top1", "top5"]


def test_status_lists_what_was_chosen_and_counts_the_rest(store: Store) -> None:
    """Table 8's BYOL is finished at seed 0 and failed at seed 1; other runs have changed settings."""
    pretrained, evaluated = BYOL.specs()
    failed = pretrained.replace("seed", 1)

    def listed(**chosen: Any) -> list[str]:
        return [line.split()[1] for line in status.lines(store._site, store, Filter(**chosen))]

    everything = listed()
    assert {pretrained.id, evaluated.id, failed.id} < set(everything)
    assert listed(state="failed") == [failed.id]
    assert set(listed(table="table8")) == {pretrained.id, evaluated.id, failed.id}
    assert set(listed(table="table8", state="finished")) == {pretrained.id, evaluated.id}
    assert listed(scale="small") == listed(table="table8", scale="paper") == []
    (first, more) = status.lines(store._site, store, Filter(limit=1))
    assert first.split()[1] == everything[0]
    assert more == f"{len(everything) - 1} more runs; --limit is 1."
    for kind, wrong, right in (("state", "runing", "running"), ("table", "tabel8", "table8")):
        with pytest.raises(NotFoundError, match=f"Did you mean '{right}'"):
            listed(**{kind: wrong})


def progress_in(folder: Path, spec_id: str) -> float:
    """Return the progress in a run's lease."""
    found = lease.read(folder, spec_id)
    return found.progress.done if found and found.progress else 0


def test_status_shows_the_progress_and_the_time_left_of_a_run_under_way(store: Store) -> None:
    running = BYOL.specs()[0].replace("seed", 7)
    folder = store._site.runs / running.id
    with (
        lease.take(folder, running.id, heartbeat=0.05) as held,
        store.start(running, scale="smoke", hold=held) as run,
    ):
        for done in (10, 40):
            held.report(Progress(done, 100, "images", "epoch 2/4, loss 0.41"))
            time.sleep(0.3)
        until(lambda: progress_in(folder, running.id) == 40, "a heartbeat")
        (line,) = status.lines(store._site, store, Filter(state="running"))
        run.finish({"loss": 0.4})
    assert line.startswith(f"running      {running.id}  smoke  ")
    assert re.search(r"  40%, epoch 2/4, loss 0\.41, \d+ s left; process \d+ on \S+$", line), line


def test_an_evaluation_and_mlflows_own_name_are_runs_like_any(store: Store) -> None:
    _, evaluated = BYOL.specs()
    assert isinstance(evaluated, Evaluate)
    record = store.record_of(evaluated.id)
    assert record is not None
    lines = list(difference(record.state.run_id, evaluated.id, store))
    assert lines[2].startswith("settings: 0 of ")
    assert store.named(record.state.run_id).settings["encoder.epochs"] == "4"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "ffffffffffff",
            r"sqlite:.* has no run 'ffffffffffff': `invoke status` lists the runs that exist\.",
        ),
        ("table8", r"'table8' is not a run's id: use 4 to 12 hexadecimal digits"),
        ("' OR 1=1", r"is not a run's id"),
    ],
)
def test_a_name_that_is_no_runs_is_refused(name: str, says: str, store: Store) -> None:
    with pytest.raises(LookupError, match=says):
        list(difference(name, name, store))


def test_the_command_line_says_the_same(store: Store, home: Home, tmp_path: Path) -> None:
    home.site_file.write_text(f'runs = "{store._site.runs}"\nreports = "{tmp_path}"\n')
    told = home.invoke("why", "table8", "--row", "BYOL", "--column", "acc")
    assert (told.returncode, told.stdout.splitlines()) == (0, list(why(BYOL, store, store._site)))
    trained = home.invoke("why", "table1", "--row", "SimCLR", "--baselines", "trained")
    assert (trained.returncode, "  ours: none. " in trained.stdout) == (0, True)
    wrong = home.invoke("why", "table8", "--baselines", "trained")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    wrong = home.invoke("why", "table8", "--row", "nobody")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    wrong = home.invoke("diff", "ffffffffffff", "ffffffffffff")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
