"""`invoke verify`: a fault is one line that names a remedy, is remembered, and is forgotten when mended."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Home
from toys import backbone, recorded

from reproduce.commands.make import produce
from reproduce.commands.verify import KEPT, recalled, verify
from reproduce.nn.encoder import FILE
from reproduce.plan import Request
from reproduce.report import publish
from reproduce.runs import encoder_file
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking.store import Store

pytestmark = pytest.mark.slow  # MLflow takes seconds to import and its store seconds to create

REQUEST = Request(table="table4", rows="BYOL")
TRAINED, EVALUATION = REQUEST.specs()
assert isinstance(TRAINED, Pretrain)
assert isinstance(EVALUATION, Evaluate)
VALUES = {"top1_20": 0.25, "top1_200": 0.5, "majority_20": 0.1, "majority_200": 0.2}


@dataclass
class Place:
    """A site with a finished row of Table 4."""

    site: Site
    store: Store

    @property
    def encoder(self) -> Path:
        """The encoder in the run's folder."""
        return self.site.runs / TRAINED.id / FILE

    def artifact(self, spec_id: str, name: str) -> Path:
        """Return the tracking store's file."""
        run_id = self.store.finished([spec_id])[spec_id].run_id
        (path,) = self.site.runs.glob(f"artifacts/msbreg/smoke/{run_id}/artifacts/{name}")
        return path

    def change(self, sql: str, *values: object) -> None:
        """Change the tracking store's file."""
        with contextlib.closing(sqlite3.connect(self.site.runs / "mlflow.db")) as database, database:
            assert database.execute(sql, values).rowcount == 1

    def report(self, name: str) -> Path:
        return self.site.reports / "smoke" / name

    def lines(self) -> list[str]:
        """Return what `invoke verify` prints."""
        return list(verify(self.site, Store(self.site)).lines())


@pytest.fixture
def place(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    site = Site(runs=tmp_path / "runs", reports=tmp_path / "reports", device="cpu")
    site.runs.mkdir()
    shutil.copy(template, site.runs)
    store = Store(site)
    recorded(store, site, TRAINED, {"loss": math.nan})
    recorded(store, site, EVALUATION, VALUES)
    assert produce([REQUEST], site, render_only=True) == 0
    return Place(site, store)


def flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def lose(path: Path) -> None:
    path.unlink()


def flip_encoder(place: Place) -> None:
    flipped(place.encoder)


def lose_encoder(place: Place) -> None:
    lose(place.encoder)
    lose(place.artifact(TRAINED.id, FILE))


def break_both_encoders(place: Place) -> None:
    flipped(place.encoder)
    place.artifact(TRAINED.id, FILE).write_bytes(b"\0" * 4)


def replace_encoder(place: Place) -> None:
    """Write an intact encoder of the run with other values."""
    tensors = {name: tensor + 1 for name, tensor in backbone(TRAINED).items()}
    encoder_file.save(place.encoder, tensors, spec_id=TRAINED.id)


def replace_network(place: Place) -> None:
    encoder_file.save(place.encoder, {"backbone.w": torch.ones(2)}, spec_id=TRAINED.id)


def replace_settings(place: Place) -> None:
    path = place.artifact(EVALUATION.id, "spec.json")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


def break_settings(place: Place) -> None:
    place.artifact(EVALUATION.id, "spec.json").write_text("{")


def lose_settings(place: Place) -> None:
    lose(place.artifact(EVALUATION.id, "spec.json"))


OF_EVALUATION = "run_uuid = (SELECT run_uuid FROM tags WHERE key = 'complete' AND value = ?)"


def lose_end(place: Place) -> None:
    place.change(f"UPDATE runs SET end_time = NULL WHERE {OF_EVALUATION}", EVALUATION.id)


def change_number(place: Place) -> None:
    place.change(
        f"UPDATE latest_metrics SET value = 0.75 WHERE key = 'final/top1_20' AND {OF_EVALUATION}",
        EVALUATION.id,
    )


def lose_number(place: Place) -> None:
    place.change(
        f"UPDATE latest_metrics SET is_nan = 1 WHERE key = 'final/top1_20' AND {OF_EVALUATION}", EVALUATION.id
    )


def edit_report(place: Place) -> None:
    path = place.report("table4.md")
    path.write_text(path.read_text().replace("25.0", "52.0"))


def edit_runs(place: Place) -> None:
    path = place.report("runs.csv")
    path.write_text(path.read_text().replace("0.25", "0.52"))


def forge_report(place: Place) -> None:
    """Change a number so that the record of what was rendered fits."""
    path = place.report("table4.json")
    path.write_text(path.read_text().replace('"value": 25.0', '"value": 52.0'))
    state = json.loads(place.report(publish.STATE).read_text())
    state["table4"]["files"][path.name] = publish._sha256(path)
    place.report(publish.STATE).write_text(json.dumps(state))


def break_report(place: Place) -> None:
    place.report("table4.json").write_text("{}")


RUN = rf"{EVALUATION.id}: "
AGAIN = rf"`invoke redo {EVALUATION.id}` has it executed again$"
RENDER = r"`invoke reports --scale smoke`, or the command that made it, renders it again$"
FAULTS: dict[str, tuple[Callable[[Place], None], list[str]]] = {
    "a flipped bit": (
        flip_encoder,
        [rf"^encoder  {TRAINED.id}: its values do not match its digest: delete /.* fetches the .* copy$"],
    ),
    "a lost encoder": (
        lose_encoder,
        [rf"^encoder  {TRAINED.id}: /.* does not exist, .* no copy: `invoke redo {TRAINED.id}` has it"],
    ),
    "two broken encoders": (
        break_both_encoders,
        [rf"^encoder  {TRAINED.id}: its values do not match its digest: `invoke redo {TRAINED.id}` has it"],
    ),
    "another encoder": (
        replace_encoder,
        [rf"^encoder  {RUN}it evaluated another encoder than that of run {TRAINED.id}: {AGAIN}"],
    ),
    "another network": (
        replace_network,
        [rf"^encoder  {TRAINED.id}: it is not a {TRAINED.backbone}, whose "],
    ),
    "settings of another run": (
        replace_settings,
        [rf"^record   {RUN}.*its id is {EVALUATION.id}, but its settings are those of run .*{AGAIN}"],
    ),
    "broken settings": (break_settings, [rf"^record   {RUN}.*{AGAIN}"]),
    "lost settings": (lose_settings, [rf"^record   {RUN}.*no spec\.json.*{AGAIN}"]),
    "no end": (lose_end, [rf"^record   {RUN}.*{AGAIN}"]),
    "another number": (
        change_number,
        [rf"^report   smoke/table4\.json: BYOL/top1_20 shows 25\.0, which its runs do not give: {RENDER}"],
    ),
    "not a number": (
        lose_number,
        [rf"^record   {RUN}its final top1_20 is not a number: {AGAIN}", "which its runs do not give"],
    ),
    "an edited report": (
        edit_report,
        [rf"^report   smoke/table4\.md: it was changed or deleted since it was rendered: {RENDER}"],
    ),
    "edited runs": (edit_runs, [r"^report   smoke/runs\.csv: it was changed or deleted"]),
    "a forged number": (forge_report, [r"^report   smoke/table4\.json: BYOL/top1_20 shows 52\.0"]),
    "a broken report": (
        break_report,
        [rf"^report   smoke/table4\.json: is not a report that this version wrote \('notes'\): {RENDER}"],
    ),
}


def test_what_is_whole_has_no_fault(place: Place) -> None:
    assert place.lines() == ["Checked 2 records, 1 encoder, 1 report: 0 faults."]
    assert recalled(place.site, place.store) == []
    lose(place.encoder)  # the tracking store has a copy
    assert place.lines() == ["Checked 2 records, 1 encoder, 1 report: 0 faults."]


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_one_line_with_a_remedy(what: str, place: Place) -> None:
    spoil, expected = FAULTS[what]
    spoil(place)
    *lines, summary = place.lines()
    assert summary.endswith(f": {len(expected)} fault{'s' * (len(expected) > 1)}.")
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line
        assert "\n" not in line
    head, *recalled_lines = recalled(place.site, place.store)
    assert head.startswith("`invoke verify`, ")
    assert recalled_lines == lines


def test_a_fault_is_forgotten_when_it_is_mended(place: Place) -> None:
    copy = Path(shutil.copy(place.encoder, place.site.runs / "copy"))
    flip_encoder(place)
    edit_report(place)
    change_number(place)
    assert place.lines()[-1].endswith(": 3 faults.")
    shutil.copy(copy, place.encoder)
    assert [line.split()[0] for line in recalled(place.site, place.store)[1:]] == ["report", "report"]
    place.store.supersede(EVALUATION.id, "a test")
    recorded(place.store, place.site, EVALUATION, VALUES)
    assert produce([REQUEST], place.site, render_only=True) == 0
    assert recalled(place.site, place.store) == []
    assert place.lines() == ["Checked 2 records, 1 encoder, 1 report: 0 faults."]


def test_a_file_of_faults_that_is_broken_has_none(place: Place) -> None:
    for content in (
        "",
        "[]",
        "[" * 100_000,
        '{"faults": [{"changed": 1}], "at": 0}',
        '{"faults": [7], "at": "x"}',
    ):
        (place.site.runs / KEPT).write_text(content)
        assert recalled(place.site, place.store) == []


def test_an_imported_run_may_lack_its_encoder(place: Place) -> None:
    lose_encoder(place)
    run_id = place.store.finished([TRAINED.id])[TRAINED.id].run_id
    place.store.connection.client.set_tag(run_id, "imported", "a" * 64)
    assert place.lines() == ["Checked 2 records, 1 report: 0 faults."]


def test_the_commands_print_faults_and_end_with_1(place: Place) -> None:
    home = Home(place.site.runs.parent)
    flip_encoder(place)
    done = home.invoke("verify")
    assert (done.returncode, done.stderr) == (1, "")
    (fault, summary) = done.stdout.splitlines()
    assert summary == "Checked 2 records, 1 encoder, 1 report: 1 fault."
    listed = home.invoke("status")
    assert listed.returncode == 0
    assert listed.stdout.splitlines()[-1] == fault
