"""The report: numbers, marks and text of one small table in every format, against files under golden/report/
and against what it must say.

    PYTHONPATH=tests python -m tests.test_report      # renews the golden files; read the difference first
"""

from __future__ import annotations

import csv
import html as html_entities
import importlib
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
from toys import fill_from

from reproduce.data.augmentation import Augmentation
from reproduce.data.dataset import Dataset
from reproduce.messages import InvalidError, reason_of
from reproduce.methods.method import Method
from reproduce.nn.optimizers import LARS
from reproduce.nn.weights import Weights
from reproduce.plan import registered
from reproduce.protocols.protocol import Protocol
from reproduce.report import document, latex, markup, overview, register, render, stats
from reproduce.report.claim import Claim, MissingNumberError, Number
from reproduce.report.display import display
from reproduce.report.filled import Filled, fill, from_json, to_json
from reproduce.report.observe import COLUMNS, Finished, frame, rows_of, statistics, write_runs
from reproduce.report.origin import origin
from reproduce.report.publish import publish, publish_pdf
from reproduce.report.stats import printed
from reproduce.report.table import Cell, Column, Measured, Reported, Row, Table
from reproduce.report.verdicts import Emphasis
from reproduce.spec import Evaluate, Pretrain

PROJECT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden" / "report"
SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Images(Dataset, name="images"):
    """A data set of which a report reads the title only."""

    size: int = 32
    resize: int = 32
    canvas: int = 32
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    title: ClassVar[str] = "STL-10 & friends"


@dataclass(frozen=True, kw_only=True)
class Toy(Method, name="toy"):
    """A method of which a report reads nothing."""

    num_views: int = 2
    label: str


@dataclass(frozen=True, kw_only=True)
class Probe(Protocol, name="probe"):
    """A protocol of which a report reads the caveat and the names of its metrics only."""

    metrics = ("top1", "top5", "loss")


def run_of(label: str) -> Evaluate:
    pretrain = Pretrain(
        method=Toy(label=label),
        dataset=Images(),
        backbone="small",
        augmentation=Augmentation(),
        optimizer=LARS(base_lr=0.1),
        epochs=1,
    )
    return Evaluate(encoder=pretrain, protocol=Probe(), dataset=Images())


def cell(
    paper: str | None, label: str, metric: str = "top1", note: str = "", emphasis: Emphasis = ""
) -> Cell:
    reported = Reported(value=paper, note=note, emphasis=emphasis)
    return Cell(paper=reported, ours=Measured(spec=run_of(label), metric=metric))


SAME_NOTE = r"100 % quoted from [5] & \emph{not} $\lambda_b$ | a_b."

TABLE = Table(
    name="table99",
    number="99",
    title=r"Text that every format must escape: 50% of $\mathcal{L}_b$ & x_1 | y \ z",
    columns=(
        Column(key="acc", title="Top-1", group="STL-10"),
        Column(key="loss", title="Loss (nats)", group="Embeddings", unit="", digits=1, better="lower"),
        Column(key="rank", title="Rank", group="Embeddings", unit="", digits=0, better=""),
    ),
    rows=(
        Row(
            label="BYOL",
            cells={"acc": cell("74.60", "byol", note=SAME_NOTE), "loss": cell("-1.52", "byol", "loss")},
            facts={r"$\lambda_b$": "0", "Views × epochs": "2 × 320"},
        ),
        Row(
            label="quoted",
            shown="[5] <b>quoted</b>",
            cells={
                "acc": Cell(paper=Reported(value="80.38"), why_not_ours="Quoted from another paper."),
                "loss": Cell(paper=Reported(value=None, note="Not legible in the scan.")),
            },
            facts={r"$\lambda_b$": "–", "Views × epochs": "not stated"},
            note=SAME_NOTE,
        ),
        Row(
            label="Ours (K=4)",
            shown="Ours ($K = 4$)",
            cells={
                "acc": cell("80.38", "ours4", emphasis="bold"),
                "loss": cell("-3.8", "ours4", "loss", emphasis="bold"),
                "rank": Cell(setting=0.0),
            },
            facts={r"$\lambda_b$": r"$5 \times 10^{-4}$", "Views × epochs": "4 × 320"},
            rule_before=True,
        ),
        Row(
            label="Ours (K=8)",
            cells={
                "acc": cell("79.9", "ours8", note="Tentative.", emphasis="underline"),
                "loss": cell("0", "ours8", "loss"),
            },
            facts={r"$\lambda_b$": "0.5", "Views × epochs": "8 × 320"},
        ),
        Row(
            label="Extra",
            cells={"acc": Cell(ours=Measured(spec=run_of("extra"), metric="top1"))},
            facts={r"$\lambda_b$": "✗", "Views × epochs": "✓"},
            added=True,
        ),
    ),
    claims=(
        Claim(
            text="Ours beats BYOL.",
            contrasts=(Number("Ours (K=4)", "acc") > Number("BYOL", "acc"),),
            source="section 4.5",
        ),
        Claim(
            text="$K = 8$ beats $K = 4$.",
            contrasts=(Number("Ours (K=8)", "acc") > Number("Ours (K=4)", "acc"),),
        ),
        Claim(
            text="Ours is above the quoted one.",
            contrasts=(Number("Ours (K=4)", "acc") > Number("quoted", "acc"),),
        ),
    ),
    notes=("Choice: $K$ is not stated.",),
    scale="small",
    changes=("epochs=5", "dir=$HOME/a_b"),
    stand_in="Squares stand in for photographs.",
)

METRICS = {
    ("byol", 0): {"top1": 0.8, "loss": -1.0},
    ("byol", 1): {"top1": 0.82, "loss": -2.0},
    ("ours4", 0): {"top1": 0.8156, "loss": -3.0},
    ("ours4", 1): {"top1": 0.8156, "loss": -3.0},
    ("ours8", 0): {"top1": 0.9, "loss": 0.0},
    ("extra", 0): {"top1": 0.0, "loss": 1.0},
    ("extra", 1): {"top1": 0.0, "loss": 1.0},
}
"""By run and seed; the second seed of ours8 has failed."""


def finished(table: Table = TABLE, *, backwards: bool = False) -> dict[str, Finished]:
    runs = {}
    for _, _, ours in table.measured():
        for seed, spec in enumerate(ours.runs(SEEDS)):
            label = ours.spec.encoder.method.label
            if (label, seed) in METRICS:
                runs[spec.id] = Finished(
                    spec_id=spec.id, run_id=f"run-{label}-{seed}", metrics=METRICS[label, seed]
                )
    return dict(reversed(runs.items())) if backwards else runs


def ids(label: str) -> list[str]:
    """Of the runs that a cell cites, whatever the tracking store calls them."""
    return [spec.id for spec in Measured(spec=run_of(label), metric="top1").runs(SEEDS)]


FAILED = "failed: NaN at 100% | see\n$LOG"
REASONS = {run_of("ours8").replace("encoder.seed", 1).replace("seed", 1).id: FAILED}


def filled(table: Table = TABLE, *, backwards: bool = False) -> Filled:
    return fill_from(table, SEEDS, finished(backwards=backwards), REASONS)


# Hand-written: what every format must show, as (label, facts, then paper and ours of each column); the marks
# are letters after the number.
EXPECTED = [
    ["BYOL", "0", "2 × 320", "74.60 a", "81.00 ± 1.41 (2)", "-1.52", "-1.5 ± 0.7 (2)", "–"],
    ["[5] <b>quoted</b> a", "–", "not stated", "80.38", "–", "– b", "–", "–"],
    ["Ours (K = 4)", "5 × 10−4", "4 × 320", "80.38", "81.56 ± 0.00 (2)", "-3.8", "-3.0 ± 0.0 (2)", "0"],
    ["Ours (K=8)", "0.5", "8 × 320", "79.9 c", "–", "0", "–", "–"],
    ["Extra *", "✗", "✓", "–", "0.00 ± 0.00 (2)", "–", "–", "–"],
]
WHY = {
    **{(0, 7): "1", (1, 6): "1", (1, 7): "1", (3, 7): "1", (4, 6): "1", (4, 7): "1"},
    **{(1, 4): "2", (3, 4): "3", (3, 6): "3"},
}
"""Number of the reason next to each dash of ours, by row and column: no run, quoted, failed."""
WITH_REASONS = [
    [f"{text} {WHY[row, column]}" if (row, column) in WHY else text for column, text in enumerate(texts)]
    for row, texts in enumerate(EXPECTED)
]
BOLD = {"80.38", "-3.8"}
UNDERLINED = {"79.9", "81.56", "-3.0"}


# Statistics and numbers
# ------------------------------------------------------------------------------------------------------------


def test_mean_and_sample_deviation_by_hand() -> None:
    assert stats.mean([1.0, 2.0, 6.0]) == 3.0
    assert stats.sample_std([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert stats.sample_std([5.0]) is None


def test_the_mean_of_nothing_is_an_error_and_its_order_does_not_matter() -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.mean([])
    assert stats.mean([1e16, 1.0, -1e16]) == stats.mean([1.0, -1e16, 1e16]) == 1 / 3


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [(81.5, 2, "81.50"), (0.0, 2, "0.00"), (-0.001, 2, "0.00"), (-1.5, 0, "-2"), (12345.6, 1, "12345.6")],
)
def test_numbers_keep_their_decimals_and_a_rounded_zero_has_no_sign(
    number: float, digits: int, text: str
) -> None:
    assert printed(number, digits) == text


# Filling
# ------------------------------------------------------------------------------------------------------------


def test_a_cell_holds_per_cent_without_binary_noise() -> None:
    rows = {row.label: row.cells for row in filled().rows}
    noisy = run_of("byol")
    assert 100 * 0.57 != 57  # the noise that must not reach a file
    one = fill_from(TABLE, 1, {noisy.id: Finished(spec_id=noisy.id, run_id="r", metrics={"top1": 0.57})}, {})
    assert one.rows[0].cells["acc"].value == 57
    assert (rows["Ours (K=4)"]["acc"].value, rows["Ours (K=4)"]["acc"].std) == (81.56, 0.0)
    assert rows["BYOL"]["acc"].value == 81.0
    assert rows["BYOL"]["acc"].std == pytest.approx(100 * math.sqrt(2) * 0.01, abs=1e-9)
    assert rows["BYOL"]["loss"].value == -1.5
    assert rows["BYOL"]["acc"].runs == tuple(ids("byol"))


def test_a_cell_with_a_missing_seed_is_empty_and_says_which() -> None:
    missing = {row.label: row.cells for row in filled().rows}["Ours (K=8)"]["acc"]
    assert (missing.value, missing.std, missing.seeds, missing.runs) == (None, None, (0,), (ids("ours8")[0],))
    assert missing.reason == f"seed 1 of 2: {FAILED}"


def test_a_metric_that_is_absent_or_not_finite_is_missing() -> None:
    table = replace(
        TABLE,
        rows=(Row(label="x", cells={"acc": cell("1", "byol", "top5"), "loss": cell("1", "nan", "loss")}),),
        claims=(),
    )
    runs = finished()
    for seed in range(SEEDS):
        spec = run_of("nan").replace("encoder.seed", seed).replace("seed", seed)
        runs[spec.id] = Finished(spec_id=spec.id, run_id="r", metrics={"loss": math.nan})
    cells = fill_from(table, SEEDS, runs, {}).rows[0].cells
    assert cells["acc"].reason == "the finished run has no metric 'top5', only loss, top1"
    assert cells["loss"].reason == "the run's 'loss' is nan"
    assert cells["loss"].value is None


def test_claims_are_judged_on_both_sides() -> None:
    """BYOL has 80 and 82, ours 81.56 twice: one seed in favour, one against."""
    judged = filled().claims
    assert [(claim.paper, claim.ours) for claim in judged] == [
        ("holds", "inconclusive"),
        ("fails", "open"),
        ("fails", "not judged"),
    ]
    assert judged[0].effect is not None
    assert judged[0].effect.value == pytest.approx(0.56)
    assert judged[1].reason == (
        "a number is missing; to fill it: invoke table99 --rows 'Ours (K=8)' --columns acc --scale small "
        "--seeds 2 --set epochs=5 --set 'dir=$HOME/a_b'"
    )
    assert judged[2].reason == "the quoted number of quoted is of another scale"


def test_one_seed_gives_a_direction_only_and_smoke_scale_not_even_that() -> None:
    close = {"byol": 0.81561, "ours4": 0.81564}
    runs = {
        spec.id: Finished(spec_id=spec.id, run_id="r", metrics={"top1": value, "loss": 0.0})
        for label, value in close.items()
        for spec in [run_of(label)]
    }
    one = fill_from(TABLE, 1, runs, {}).claims[0]
    assert (one.ours, one.reason) == ("direction only", "agrees, one seed")
    assert one.effect is not None
    assert (one.effect.value, one.effect.low, one.effect.n) == (pytest.approx(0.003), None, 1)
    smoke = fill_from(replace(TABLE, scale="smoke"), 1, runs, {})
    assert {claim.ours for claim in smoke.claims} == {"not judged"}
    assert {cell.emphasis for row in smoke.rows for cell in row.cells.values()} == {""}


def test_a_cut_table_still_judges_the_paper_on_all_its_rows() -> None:
    cut = TABLE.select(rows="Ours (K=4)").map(
        lambda run: run.replace("encoder.epochs", 2), changes=("epochs=2",)
    )
    result = fill_from(cut, SEEDS, {}, {})
    assert [(claim.paper, claim.ours) for claim in result.claims] == [
        ("holds", "open"),
        ("fails", "open"),
        ("fails", "open"),
    ]
    assert "Left out: 4 of 5 rows." in result.caption
    assert cut.select(columns="acc").left_out == "4 of 5 rows and 2 of 3 columns"


def test_a_claim_about_a_row_that_never_was_is_an_error_of_ours() -> None:
    with pytest.raises(LookupError, match="no row 'Oursss'") as error:
        replace(TABLE, claims=(Claim(text="x", contrasts=(Number("Oursss", "acc") > 0,)),))
    assert not isinstance(error.value, MissingNumberError)


def test_the_caption_names_the_conditions() -> None:
    caption = filled().caption
    for part in (
        "Table 99 of the paper.",
        "Scale: small.",
        "Data: STL-10 & friends.",
        "Seeds: 2.",
        r"epochs=5, dir=\$HOME/a_b",
        "Squares stand in for photographs.",
    ):
        assert part in caption
    assert "not comparable" not in caption
    assert "not comparable with the paper's" in filled(replace(TABLE, scale="smoke")).caption
    assert fill_from(replace(TABLE, number="6 and 13"), 1, {}, {}).caption.startswith(
        "Tables 6 and 13 of the paper."
    )


def test_messages_name_a_table_of_the_paper_by_its_number_and_another_by_its_task() -> None:
    assert (str(replace(TABLE, number="8")), str(replace(TABLE, number=""))) == ("Table 8", TABLE.name)


def test_the_frame_has_one_line_for_each_row_column_and_seed() -> None:
    lines = frame(TABLE, SEEDS, finished(), REASONS)
    assert len(lines) == len(list(TABLE.measured())) * SEEDS
    assert tuple(lines.columns[: len(COLUMNS)]) == COLUMNS
    means = lines.dropna(subset="value").groupby(["row", "column"])["value"].mean()
    assert means["BYOL", "acc"] == pytest.approx(0.81)
    failed = lines[(lines["row"] == "Ours (K=8)") & (lines["seed"] == 1) & (lines["column"] == "acc")].iloc[0]
    assert math.isnan(failed["value"])
    assert failed["reason"] == FAILED
    first = lines.iloc[0]
    assert (first["table"], first["scale"], first["metric"], first["seed"]) == ("table99", "small", "top1", 0)
    assert (first["spec"], first["run"], first["value"]) == (ids("byol")[0], "run-byol-0", 0.8)


def test_the_frame_has_every_setting_of_a_run_by_its_full_path() -> None:
    lines = frame(TABLE, SEEDS, finished(), REASONS)
    for index, (_, _, ours) in enumerate(TABLE.measured()):
        for seed, spec in enumerate(ours.runs(SEEDS)):
            found = lines.iloc[index * SEEDS + seed]
            for path, value in spec.leaves():
                plain = json.dumps(value) if isinstance(value, tuple) else value
                assert found[path] == ("none" if plain is None else plain), path
    assert lines.iloc[0]["encoder.method"] == "toy"
    assert lines.iloc[0]["encoder.method.label"] == "byol"


def test_the_statistics_of_a_cell_agree_with_pandas() -> None:
    """To the last digits that binary fractions leave; the numbers in the reports are summed exactly."""
    runs = frame(TABLE, SEEDS, finished(), REASONS)
    found = statistics(runs, {"acc": 100, "loss": 1})
    assert set(found) == {(row.label, column.key) for row, column, _ in TABLE.measured()}
    for (row, column), group in runs.groupby(["row", "column"]):
        values = group["value"] * {"acc": 100, "loss": 1}[column]
        cell = found[row, column]
        assert list(cell.finished.values()) == group["spec"][group["run"].notna()].tolist()
        if cell.missing:
            assert (cell.mean, cell.std) == (None, None)
        else:
            assert cell.mean == pytest.approx(values.mean(), rel=1e-14)
            assert cell.std == pytest.approx(values.std(), rel=1e-14, abs=1e-14)


# Runs
# ------------------------------------------------------------------------------------------------------------

SMALL = Table(
    name="table100",
    number="100",
    title="Another table",
    columns=(Column(key="acc", title="Top-1"),),
    rows=(
        Row(label="BYOL", cells={"acc": cell("74.60", "byol")}),
        Row(
            label="frozen",
            cells={
                "acc": Cell(ours=Measured(spec=Evaluate(
                    encoder=Weights(sha256="a" * 64), protocol=Probe(), dataset=Images()), metric="top1"))
            },
        ),
    ),
)  # fmt: skip


def add_runs(table: Table, folder: Path, metrics: dict[str, Finished] | None = None) -> bytes:
    """The content of `runs.csv` after the table's rows have been written."""
    write_runs(frame(table, SEEDS, finished() if metrics is None else metrics, REASONS), table.name, folder)
    return (folder / "runs.csv").read_bytes()


def test_runs_csv_keeps_the_rows_of_other_tables_and_does_not_depend_on_their_order(tmp_path: Path) -> None:
    add_runs(SMALL, tmp_path / "a")
    both = add_runs(TABLE, tmp_path / "a")
    add_runs(TABLE, tmp_path / "b")
    assert add_runs(SMALL, tmp_path / "b") == both
    assert add_runs(SMALL, tmp_path / "b") == both, "the same runs give the same bytes"
    alone = add_runs(TABLE, tmp_path / "c")
    assert add_runs(replace(SMALL, rows=()), tmp_path / "a") == alone, "no row and no setting is left behind"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["runs.csv"]


def test_runs_csv_is_the_frame(tmp_path: Path) -> None:
    add_runs(SMALL, tmp_path)
    add_runs(TABLE, tmp_path)
    read = pd.read_csv(tmp_path / "runs.csv")
    tables = {name: rows.reset_index(drop=True) for name, rows in read.groupby("table", sort=False)}
    assert list(tables) == ["table99", "table100"]
    for table in (TABLE, SMALL):
        written, found = frame(table, SEEDS, finished(), REASONS), tables[table.name]
        assert found["value"].equals(written["value"])
        assert found["seed"].equals(written["seed"])
        for column in (
            "row",
            "column",
            "metric",
            "spec",
            "run",
            "reason",
            "encoder",
            "protocol",
            "dataset.mean",
        ):
            assert found[column].fillna("-").tolist() == written[column].fillna("-").tolist(), column
    assert tables["table99"]["encoder.epochs"].tolist() == [1] * len(tables["table99"])
    frozen = tables["table100"][tables["table100"]["row"] == "frozen"]
    assert frozen["encoder.method"].isna().all()
    assert frozen["encoder.sha256"].tolist() == ["a" * 64] * SEEDS
    means = read[read["table"] == "table99"].groupby(["row", "column"], sort=False)["value"].mean()
    assert 100 * means["Ours (K=4)", "acc"] == pytest.approx(81.56)


def test_a_cut_table_overwrites_its_rows_of_runs_csv_as_its_report_does(tmp_path: Path) -> None:
    add_runs(TABLE, tmp_path)
    add_runs(TABLE.select(rows="BYOL"), tmp_path)
    assert {row["row"] for row in rows_of(tmp_path / "runs.csv", "table99")} == {"BYOL"}
    write_runs(None, "table98", tmp_path)
    write_runs(None, "table99", tmp_path)
    assert (tmp_path / "runs.csv").read_text() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe", b"table\n" + b"x,y,z\n" * 3])
def test_a_broken_runs_csv_is_begun_again_with_a_warning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = add_runs(TABLE, tmp_path / "whole")
    (tmp_path / "runs.csv").write_bytes(content)
    assert add_runs(TABLE, tmp_path) == expected
    assert "runs.csv is not a file that `invoke reports` wrote" in caplog.text


# The register of claims
# ------------------------------------------------------------------------------------------------------------


def test_the_register_counts_every_claim_of_every_table(tmp_path: Path) -> None:
    """Table 99 is rendered; table 100, with one claim more that holds on its own numbers, is not."""
    other = replace(TABLE, name="table100", number="100", claims=(*TABLE.claims[:1], *TABLE.claims))
    found = register.entries([TABLE, other, replace(OWN, claims=())], {TABLE.name: filled()})
    assert [(entry.name, entry.rendered, len(entry.claims)) for entry in found] == [
        ("Table 99", True, 3),
        ("Table 100", False, 4),
    ]
    assert register.counts(found) == [
        "On the paper's own numbers, 3 of 7 registered claims hold: 3 hold, 4 fail.",
        "On ours, 0 of 7 registered claims are supported: 1 inconclusive, 1 not judged, 5 open.",
    ]
    text, page = (path.read_text(encoding="utf-8") for path in register.write(found, "small", tmp_path))
    assert "## [Table 99](table99.md)" in text
    assert "## Table 100" in text
    lines = [line for line in text.splitlines() if line.startswith("| Ours beats BYOL.")]
    assert lines[0].startswith(
        "| Ours beats BYOL. | section 4.5 | holds | inconclusive | about 27 seeds would decide at this effect"
    )
    assert "the table is not rendered: invoke table100 --scale small" in lines[1]
    assert Page(page).links == ["index.html", "claims.md", "table99.html"]
    assert "with its 95 % interval over" in text
    assert "with its 95 % interval over" in page


def test_the_level_of_a_table_is_named_where_its_intervals_are(tmp_path: Path) -> None:
    strict = filled(replace(TABLE, alpha=0.001))
    shown = display(strict)
    remarks = " ".join(shown.remarks)
    assert "with its 99.9 % interval over training seeds" in remarks
    assert "Holm's method over the claims of the table, level 0.001" in remarks
    assert any("99.9 % interval" in cell.hint for line in shown.lines for cell in line.cells)
    found = register.entries([TABLE], {"table99": strict, "table100": replace(filled(), table="table100")})
    text, _ = (path.read_text(encoding="utf-8") for path in register.write(found, "small", tmp_path))
    assert "with its 99.9 % or 95 % interval over training seeds" in text


# Publishing
# ------------------------------------------------------------------------------------------------------------


def published(
    folder: Path, table: Table = TABLE, *, request: str = "as it is", value: float = 0.82
) -> tuple[Filled, list[str]]:
    """The table with its numbers, and the names of the files that were written."""
    runs, spec_id = finished(), ids("byol")[1]
    runs[spec_id] = replace(runs[spec_id], metrics={"top1": value, "loss": -2.0})
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*") if path.is_file()}
    result, paths = publish(table, SEEDS, runs, REASONS, folder, request, lambda: [TABLE])
    assert paths == [folder / f"{table.name}.{ending}" for ending in render.FORMATS]
    after = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*") if path.is_file()}
    return result, sorted(path.name for path in after if after[path] != before.get(path))


def front(folder: Path) -> Path:
    """Write the index over the tables in a folder, and return it."""
    tables = render.read_all(folder)
    found = register.entries([], {filled.table: filled for filled in tables})
    path = folder / render.INDEX
    path.write_text(overview.index(tables, found, tables[0].scale), encoding="utf-8")
    return path


SHARED = ("claims.html", "claims.md", "index.html", "report.html", "report.tex")
"""Files over all tables of a scale."""
FILES = sorted([*SHARED, "runs.csv", *(f"table99.{ending}" for ending in render.FORMATS)])


def test_a_report_is_written_only_if_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, written = published(tmp_path)
    assert written == FILES
    again, written = published(tmp_path)
    assert (again, written) == (first, [])
    assert published(tmp_path, request="another")[1] == [name for name in FILES if name not in SHARED]
    changed, written = published(tmp_path, value=0.84)
    assert written == FILES
    assert changed.rows[0].cells["acc"].value == 82
    monkeypatch.setattr("reproduce.report.publish._code", lambda: "another version")
    assert published(tmp_path, value=0.84)[1] == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_report_that_was_edited_or_deleted_is_written_again(name: str, tmp_path: Path) -> None:
    published(tmp_path)
    whole = (tmp_path / name).read_bytes()
    edited = whole.replace(b"Ours", b"ours") if b"Ours" in whole else whole.replace(b"cells", b"Cells")
    assert edited != whole
    (tmp_path / name).write_bytes(edited)
    assert name in published(tmp_path)[1]
    assert (tmp_path / name).read_bytes() == whole
    (tmp_path / name).unlink()
    assert name in published(tmp_path)[1]
    assert (tmp_path / name).read_bytes() == whole
    assert published(tmp_path)[1] == []


def test_a_record_of_what_was_rendered_that_is_broken_costs_one_rendering(tmp_path: Path) -> None:
    published(tmp_path)
    for content in ("", "[]", "\0", '{"table99": 1}', "[" * 100_000, '{"index.html": "\\ud800"}'):
        (tmp_path / ".rendered").write_text(content)
        assert published(tmp_path)[1] == FILES
    assert published(tmp_path)[1] == []


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".rendered.lock"
    }


def published_again_and_again(folder: Path, seeds: int, barrier: Any, seen: Any) -> None:
    """Render the table from so many seeds, each time with another process that uses other seeds."""
    for _ in range(12):
        barrier.wait(60)
        publish(TABLE, seeds, finished(), REASONS, folder, "as it is", lambda: [TABLE])
        barrier.wait(60)
        if seeds == 1:
            seen.put(files_of(folder))


def test_two_commands_that_render_one_table_at_once_leave_the_files_of_one(tmp_path: Path) -> None:
    alone = {}
    for seeds in (1, SEEDS):
        publish(TABLE, seeds, finished(), REASONS, tmp_path / str(seeds), "as it is", lambda: [TABLE])
        alone[seeds] = files_of(tmp_path / str(seeds))
    assert alone[1] != alone[SEEDS]
    fork = multiprocessing.get_context("fork")
    barrier, seen = fork.Barrier(2), fork.Queue()
    both = [
        fork.Process(
            target=published_again_and_again, args=(tmp_path / "both", seeds, barrier, seen), daemon=True
        )
        for seeds in alone
    ]
    for process in both:
        process.start()
    for _ in range(12):
        assert seen.get(timeout=60) in alone.values()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]


def test_a_table_that_cannot_be_written_whole_leaves_the_one_before(tmp_path: Path) -> None:
    publish(TABLE, SEEDS, finished(), REASONS, tmp_path, "as it is", lambda: [TABLE])
    before = files_of(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["table99.md"]) + 100, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):  # the Markdown fits, the other formats do not
            publish(TABLE, 1, finished(), REASONS, tmp_path, "as it is", lambda: [TABLE])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert files_of(tmp_path) == before


def test_another_table_renews_what_all_tables_share(tmp_path: Path) -> None:
    published(tmp_path)
    small = sorted([*SHARED, "runs.csv", *(f"table100.{ending}" for ending in render.FORMATS)])
    assert published(tmp_path, SMALL)[1] == small
    assert published(tmp_path)[1] == published(tmp_path, SMALL)[1] == []
    (tmp_path / "table100.json").unlink()
    assert published(tmp_path)[1] == [*SHARED]


def test_a_table_that_no_run_fills_leaves_no_runs_csv(tmp_path: Path) -> None:
    constant = replace(
        SMALL, rows=(Row(label="x", cells={"acc": Cell(paper=Reported(value="1"), setting=0.5)}),)
    )
    assert "runs.csv" not in published(tmp_path, constant)[1]
    assert published(tmp_path, constant)[1] == []


# Tables that are not the paper's
# ------------------------------------------------------------------------------------------------------------

OWN = Table(
    name="table101",
    number="",
    title="A study of our own",
    columns=(
        Column(key="acc", title="Top-1", group="STL-10"),
        Column(key="loss", title="Loss", group="STL-10", unit=""),
    ),
    rows=(
        Row(
            label="BYOL",
            cells={key: Cell(ours=Measured(spec=run_of("byol"), metric=metric))
                   for key, metric in (("acc", "top1"), ("loss", "loss"))},
        ),
        Row(label="Ours (K=4)", cells={"acc": Cell(ours=Measured(spec=run_of("ours4"), metric="top1"))}),
        Row(label="Ours (K=8)", cells={"acc": Cell(ours=Measured(spec=run_of("ours8"), metric="top1"))}),
        Row(
            label="Extra",
            cells={"acc": Cell(ours=Measured(spec=run_of("extra"), metric="top1"))},
            added=True,
        ),
    ),
    claims=(
        Claim(
            text="Ours beats BYOL.", contrasts=(Number("Ours (K=4)", "acc") > Number("BYOL", "acc"),)
        ),
    ),
    scale="small",
)  # fmt: skip


def test_a_table_that_is_not_the_papers_does_not_speak_of_the_paper(tmp_path: Path) -> None:
    result = filled(OWN)
    render.write(result, tmp_path)
    pages = {path.suffix[1:]: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    pages["index"] = front(tmp_path).read_text(encoding="utf-8")
    pages["summary"] = render.summary(result)
    assert pages["summary"] == "table101 (small): 4 of 8 cells filled; claims: 1 inconclusive"
    for kind in ("html", "index"):
        pages[kind] = re.sub('<style>.*?</style>|class=".*?"', "", pages[kind], flags=re.DOTALL)
    # Files for programs have the same fields for every table; the paper's are empty.
    pages["csv"] = pages["csv"].replace("row,column,unit,paper,paper_note,", "")
    pages["json"] = re.sub(
        r'"paper(_printed|_note|_emphasis)?": (null|"open"|"")|"ours": ', "", pages["json"]
    )
    for kind, text in pages.items():
        assert not re.search(r"paper", text, re.IGNORECASE), kind
        assert not re.search(r"\bours\b(?! \()", text), kind
        assert "****" not in text
        assert r"\textbf{}" not in text
    assert result.caption.startswith("A study of our own. Scale: small. Data: STL-10 & friends. Seeds: 2.")


def test_a_table_that_is_not_the_papers_has_its_numbers_in_every_format(tmp_path: Path) -> None:
    render.write(filled(OWN), tmp_path)
    page = Page((tmp_path / "table101.html").read_text(encoding="utf-8"))
    body = [[words(text) for *_, text in row] for row in page.rows if row[0][1].get("scope") == "row"]
    assert body[0] == ["BYOL", "81.00 ± 1.41 (2)", "-1.50 ± 0.71 (2)"]
    assert body[3] == ["Extra *", "0.00 ± 0.00 (2)", "– 1"]
    head = [row for row in page.rows if row[0][1].get("scope") != "row"]
    assert [[words(text) for *_, text in row] for row in head] == [
        ["Method", "STL-10"],
        ["Top-1 (%)", "Loss"],
    ]
    assert head[0][0][1]["rowspan"] == "2"
    lines = [
        line for line in (tmp_path / "table101.md").read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    assert words(lines[0]) == "| Method | STL-10 Top-1 (%) | STL-10 Loss |"
    assert words(lines[2]) == "| BYOL | 81.00 ± 1.41 (2) | -1.50 ± 0.71 (2) |"
    text = words(typeset(tmp_path, ["table101"])).replace("−", "-")
    for part in (
        "A study of our own.",
        "81.56 ± 0.00 (2)",
        "-1.50 ± 0.71 (2)",
        "Claims:",
        "Ours beats BYOL. about 27 seeds would decide",
    ):
        assert part in text, part


# Text
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        (r"$\lambda_b$", markup.markdown, "λ<sub>b</sub>"),
        (r"$\lambda_b$", markup.html, '<span class="math">λ<sub><i>b</i></sub></span>'),
        (r"$5 \times 10^{-4}$", markup.plain, "5 × 10^−4"),
        (r"BYOL + $\mathcal{L}_\text{uniform}$", markup.tex, r"BYOL + $\mathcal{L}_{\mathrm{uniform}}$"),
        (r"BYOL + $\mathcal{L}_\text{uniform}$", markup.plain, "BYOL + ℒ_uniform"),
        ("a|b_c*d", markup.markdown, r"a\|b\_c\*d"),
        ("<a> & 'b'", markup.html, "&lt;a&gt; &amp; &#x27;b&#x27;"),
        ("a\\b{c}#_%&~^", markup.tex, r"a\textbackslash{}b\{c\}\#\_\%\&\textasciitilde{}\textasciicircum{}"),
        ("--set", markup.tex, "-{}-set"),
        ("é ± ☃", markup.tex, "é $\\pm$ {[}U+2603{]}"),
        (r"\$5", markup.plain, "$5"),
        (markup.literal("a $b\n c_d \\$"), markup.plain, "a $b c_d \\$"),
    ],
)
def test_text_in_each_format(text: str, form: object, expected: str) -> None:
    assert form(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a $b", "do not pair"),
        (r"$\lamda$", "Did you mean 'lambda'"),
        ("${a$", "not closed"),
        ("$a_$", "missing"),
    ],
)
def test_text_that_is_not_markup_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        markup.html(text)


# Formats, each read by something that did not write it
# ------------------------------------------------------------------------------------------------------------


def golden(name: str) -> str:
    return (GOLDEN / name).read_bytes().decode("utf-8")


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_markdown_table_says_what_it_must() -> None:
    lines = [line for line in golden("table99.md").splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "the columns are not aligned"
    cells = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0] == [
        "Method", "λ<sub>b</sub>", "Views × epochs", "STL-10 Top-1 (%), paper", "STL-10 Top-1 (%), ours",
        "Embeddings Loss (nats), paper", "Embeddings Loss (nats), ours", "Embeddings Rank, ours",
    ]  # fmt: skip
    assert all(re.fullmatch("-+:?", rule) for rule in cells[1])
    assert [[markdown_text(part) for part in row] for row in cells[2:]] == WITH_REASONS
    body = " ".join(part for row in cells[2:] for part in row)
    assert set(re.findall(r"\*\*(.*?)\*\*", body)) == BOLD
    assert set(re.findall("<u>(.*?)</u>", body)) == UNDERLINED


def markdown_text(cell: str) -> str:
    """A cell as a reader sees it, footnote marks apart from the rest."""
    cell = re.sub(r"(?<=10)<sup>(.*?)</sup>", r"\1", cell)
    cell = re.sub(r"</?(u|sub)>|\*\*", "", re.sub("<sup>(.*?)</sup>", r" \1", cell))
    return words(
        re.sub(r"\\(.)", r"\1", cell).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )


class Page(HTMLParser):
    """The tables of a page; fails on tags that do not pair."""

    VOID: ClassVar[set[str]] = {"meta", "br", "link"}

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.rows: list[list[tuple[str, dict[str, str | None], str]]] = []
        self.marked: dict[str, set[str]] = {"bold": set(), "underline": set()}
        self.rank = ""
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((tag, given, ""))
        if tag == "a":
            self.links.append(given["href"] or "")
        self.rank = given.get("class") or "" if tag == "span" and given.get("class") in self.marked else ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.rank = ""

    def handle_data(self, data: str) -> None:
        if not {"td", "th"} & set(self.open):
            return
        tag, given, text = self.rows[-1][-1]
        space = " " if self.open[-1] == "sup" and "math" not in str(given) and not text.endswith("10") else ""
        self.rows[-1][-1] = (
            tag,
            given,
            text + space + data.replace("−", "-" if "td" in self.open and "sup" not in self.open else "−"),
        )
        if self.rank:
            self.marked[self.rank].add(data.replace("−", "-"))


def test_the_html_table_says_what_it_must() -> None:
    page = Page(golden("table99.html"))
    body = [row for row in page.rows if row[0][0] == "th" and row[0][1].get("scope") == "row"]
    found = [[words(text) for _, _, text in row] for row in body]
    assert found == WITH_REASONS
    dashes, reasons = (
        golden("table99.html").count(each) for each in (">–</span>", 'aria-label="no number: ')
    )
    assert dashes == reasons == 12
    assert page.marked == {"bold": BOLD, "underline": UNDERLINED}
    for head in page.rows[:2]:
        assert sum(int(given.get("colspan") or 1) for _, given, _ in head) == (
            8 if head is page.rows[0] else 5
        )
    assert all(given.get("scope") for row in page.rows for tag, given, _ in row if tag == "th")
    assert body[0][4][1]["title"] == (
        "95 % interval 68.29 to 93.71, seed 0: run {}, seed 1: run {}".format(*ids("byol"))
    )
    assert body[3][4][1]["title"] == f"seed 1 of 2: {FAILED}"
    files = [f"table99.{ending}" for ending in ("md", "tex", "tabular.tex", "csv", "json")]
    assert page.links[:7] == ["index.html", "report.html#table99", *files]
    assert "http" not in golden("table99.html"), "the page is not self-contained"


def test_the_command_that_explains_the_numbers_has_the_changes_of_the_table() -> None:
    command = "invoke why table99 --scale small --seeds 2 --set epochs=5 --set 'dir=$HOME/a_b'"
    assert command in html_entities.unescape(golden("table99.html"))
    trained = replace(filled(), changes=("baselines=trained", "row Mine=encoder.pth"))
    assert trained.why == "invoke why table99 --scale small --seeds 2 --baselines trained"


def test_every_row_names_its_runs_in_every_format() -> None:
    """In LaTeX above the row, in Markdown below the table, in HTML where the row's numbers link to."""
    told = {
        "BYOL": "acc {0} {1}; loss {0} {1}".format(*ids("byol")),
        "Extra": "acc {} {}".format(*ids("extra")),
    }
    tex, markdown, page = (
        golden("table99.tabular.tex").splitlines(),
        golden("table99.md").splitlines(),
        golden("table99.html"),
    )
    for label, runs in told.items():
        assert next(
            line for line in tex[tex.index(f"% runs: {runs}") + 1 :] if not line.startswith("\\midrule")
        ).startswith(label)
        assert (
            re.sub("`", "", next(line for line in markdown if line.startswith(f"- {label}:")))
            == f"- {label}: {runs}"
        )
    links = [link for link in Page(page).links if "#runs-" in link]
    assert len(links) == sum(
        line.count(" ours") and "run " in line and "<a " in line for line in page.splitlines()
    )
    for link in links:
        file, _, place = link.partition("#")
        assert (file, page.count(f'id="{place}"')) == ("table99.html", 1)
    for run in ids("byol"):
        assert (
            f'<a href="runs/{run}.html"><code>{run}</code></a>'
            in page.partition('id="runs-1"')[2].partition("</li>")[0]
        )


def test_the_json_is_what_programs_expect() -> None:
    data = json.loads(golden("table99.json"))
    assert (data["table"], data["scale"]) == ("table99", "small")
    first = {"key": "acc", "title": "Top-1", "unit": "%", "digits": 2, "better": "higher"}
    assert {key: data["columns"][0][key] for key in first} == first
    rows = {row["label"]: row["cells"] for row in data["rows"]}
    assert all(list(cells) == ["acc", "loss", "rank"] for cells in rows.values())
    wanted = {
        "paper": 80.38,
        "paper_note": None,
        "value": 81.56,
        "std": 0.0,
        "seeds": [0, 1],
        "runs": ids("ours4"),
        "reason": None,
    }
    assert {key: rows["Ours (K=4)"]["acc"][key] for key in wanted} == wanted
    assert rows["quoted"]["acc"]["reason"] == "Quoted from another paper."
    assert (rows["quoted"]["loss"]["paper"], rows["quoted"]["loss"]["paper_note"]) == (
        None,
        "Not legible in the scan.",
    )
    assert rows["Extra"]["acc"]["value"] == 0.0
    for cells in rows.values():
        for entry in cells.values():
            assert (entry["value"] is None) == (entry["reason"] is not None)
            assert entry["paper"] is not None or entry["paper_note"]
            assert len(entry["seeds"]) == len(entry["runs"])
    assert [(claim["paper"], claim["ours"]) for claim in data["claims"]] == [
        ("holds", "inconclusive"),
        ("fails", "open"),
        ("fails", "not judged"),
    ]
    assert render.json(from_json(data)) == golden("table99.json")


def test_the_csv_has_one_line_for_each_cell() -> None:
    lines = list(csv.DictReader(golden("table99.csv").splitlines(keepends=True)))
    assert len(lines) == 5 * 3
    cells = {(line["row"], line["column"]): line for line in lines}
    byol = cells["BYOL", "acc"]
    assert (byol["paper"], byol["value"], byol["n"], byol["runs"]) == (
        "74.60",
        "81.0",
        "2",
        " ".join(ids("byol")),
    )
    assert (cells["Ours (K=8)", "acc"]["value"], cells["Ours (K=8)", "acc"]["reason"]) == (
        "",
        f"seed 1 of 2: {FAILED}",
    )
    assert cells["Extra", "acc"]["value"] == "0.0"


def typeset(folder: Path, names: list[str]) -> str:
    """The text of a document that includes the tables; only packages of texlive-latex-base and
    -recommended."""
    if not (shutil.which("pdflatex") and shutil.which("pdftotext")):
        pytest.skip("pdflatex or pdftotext is not installed")
    packages = "\\usepackage[margin=2cm]{geometry}\n\\usepackage{booktabs,amssymb,graphicx}\n"
    document = f"\\documentclass{{article}}\n{packages}\\begin{{document}}\n"
    inputs = "".join(f"\\input{{{name}}}\\clearpage\n" for name in names)
    (folder / "document.tex").write_text(document + inputs + "\\end{document}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]
    assert b"Overfull" not in done.stdout
    return subprocess.run(
        ["pdftotext", "-layout", "document.pdf", "-"], cwd=folder, capture_output=True, check=True
    ).stdout.decode("utf-8")


def test_the_latex_table_compiles_and_says_what_it_must(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "table99.tex", tmp_path)
    text = words(typeset(tmp_path, ["table99"])).replace("−", "-")
    assert "(3) failed: NaN" in text
    for part in (
        "81.56 ± 0.00 (2)",
        "0.00 ± 0.00 (2)",
        "-1.5 ± 0.7 (2)",
        "74.60",
        "-3.8",
        "dir=$HOME/a b",
        "x 1 | y \\ z",
        "\\emph{not}",
        "[5] <b>quoted</b>",
    ):
        assert part in text.replace("_", " "), part
    source = golden("table99.tabular.tex")
    assert {number.replace("$-$", "-") for number in re.findall(r"\\textbf\{([-$\d.]+)\}", source)} == BOLD
    assert {
        number.replace("$-$", "-") for number in re.findall(r"\\underline\{([-$\d.]+)\}", source)
    } == UNDERLINED
    rows = [line for line in source.splitlines() if line.endswith(r"\\")]
    widths = [sum(int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", line)) for line in rows]
    counts = [
        len(re.split(r"(?<!\\)&", line)) + width - len(re.findall("multicolumn", line))
        for line, width in zip(rows, widths, strict=True)
    ]
    assert set(counts) == {8}


def compiled(folder: Path, source: str) -> tuple[str, str]:
    """Return the log of pdflatex and the text of the PDF."""
    if not (shutil.which("pdflatex") and shutil.which("pdftotext")):
        pytest.skip("pdflatex or pdftotext is not installed")
    (folder / "whole.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "whole.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]
    text = subprocess.run(["pdftotext", "-layout", "whole.pdf", "-"], cwd=folder, capture_output=True)
    return done.stdout.decode("utf-8", "replace"), text.stdout.decode("utf-8")


def filled_with_three_seeds(table: Table) -> Filled:
    """Return a table in which each of our numbers has its spread."""
    runs = {
        spec.id: Finished(
            spec_id=spec.id,
            run_id="0" * 32,
            metrics=dict.fromkeys(spec.protocol.metrics, 0.5 + 0.25 * (index % 3)),
        )
        for index, spec in enumerate(table.specs(3))
        if isinstance(spec, Evaluate)
    }
    return fill(table, 3, frame(table, 3, runs, {}) if any(table.measured()) else None)


def overflows(log: str) -> list[str]:
    """Return the warnings about what does not fit its line or its page."""
    widths = [float(width) for width in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]
    return [f"{width} pt" for width in widths if width > 1] + re.findall("Float too large.*", log)


@pytest.mark.slow
@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_every_table_fits_the_page_of_an_article(scale: str, measured: bool, tmp_path: Path) -> None:
    """With three seeds, each of our numbers has its spread; the line is the narrow one of the class."""
    tables = [
        filled_with_three_seeds(table) if measured else fill_from(table, 3, {}, {})
        for table in registered(scale)
    ]
    for each in tables:
        render.write(each, tmp_path)
    inputs = "".join(f"\\input{{{filled.table}}}\\clearpage\n" for filled in tables)
    head = "\\documentclass{article}\\usepackage{booktabs,amssymb,graphicx}\\begin{document}\n"
    log, text = compiled(tmp_path, f"{head}{inputs}\\end{{document}}\n")
    assert overflows(log) == []
    (tmp_path / "whole.aux").unlink()
    whole = document.document(tables, register.entries(registered(scale), {}), origin([None]), scale)
    log, report = compiled(tmp_path, whole)
    assert overflows(log) == []
    for filled in tables:
        for row in filled.rows:
            for cell in row.cells.values():
                for number in [cell.paper or "", *([f"{cell.std:.2f}"] if cell.std and measured else [])]:
                    assert number.lstrip("-")[:3] in text, (filled.table, number)
                    assert number.lstrip("-")[:3] in report, (filled.table, number)


def test_the_bare_tabular_needs_what_its_first_line_lists(tmp_path: Path) -> None:
    bare = golden("table99.tabular.tex")
    packages = re.findall(r"usepackage\{([a-z,]+)\}", bare.splitlines()[0])[0]
    assert "caption" not in bare
    source = (
        f"\\documentclass{{article}}\\usepackage{{{packages}}}\\begin{{document}}\n{bare}\\end{{document}}"
    )
    assert "81.56 ± 0.00 (2)" in words(compiled(tmp_path, source)[1])


def test_a_word_of_the_user_breaks_rather_than_leave_the_page(tmp_path: Path) -> None:
    path = "/a_folder/" + "x" * 200 + "/log.txt"
    table = filled(replace(TABLE, notes=(f"See {path} here.",)))
    source = "\\documentclass{article}\\usepackage{booktabs,amssymb,graphicx}\\begin{document}\n"
    log, _ = compiled(tmp_path, f"{source}{latex.table(table)}\\end{{document}}")
    assert overflows(log) == []


def test_a_long_label_is_wrapped_and_the_table_is_not_shrunk_for_it(tmp_path: Path) -> None:
    """A label of --add-row may have 100 characters, without a space among them."""

    def with_row(label: str) -> Filled:
        return filled(replace(TABLE, claims=(), rows=(*TABLE.rows, replace(TABLE.rows[0], label=label))))

    plain = with_row("M" * 40)
    assert "{lc" in latex.tabular(plain)
    assert 'class="long"' not in render.html(plain)
    for label in ("an encoder of ours with more words in its name than are good for it, or two", "W" * 100):
        table = with_row(label)
        rows = tuple(replace(row, facts={}) for row in table.rows)
        assert (
            latex._split(display(replace(table, rows=rows, columns=table.columns[:1])), 400).size
            == "normalsize"
        )
        assert r"{p{210pt}c" in latex.tabular(table)
        source = "\\documentclass{article}\\usepackage{booktabs,amssymb,graphicx}\\begin{document}\n"
        log, text = compiled(tmp_path, f"{source}{latex.table(table)}\\end{{document}}")
        assert overflows(log) == []
        assert not re.search("W{40}", text), "the line ends within the word"
        assert render.html(table).count('<th scope="row" class="long">') == 1


def test_the_pdf_is_made_once_and_has_the_same_bytes_anywhere(tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    made = []
    for folder in (tmp_path / "a", tmp_path / "another folder"):
        published(folder)
        assert publish_pdf(folder) == ""
        made.append((folder / "report.pdf").read_bytes())
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]
    before = (folder / "report.pdf").stat().st_mtime_ns
    assert publish_pdf(folder) == ""
    assert (folder / "report.pdf").stat().st_mtime_ns == before
    published(folder, value=0.9)
    assert not (folder / "report.pdf").exists(), "a PDF with old numbers stays"
    assert publish_pdf(folder) == ""
    assert (folder / "report.pdf").read_bytes() != made[0]


def test_without_pdflatex_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert publish_pdf(tmp_path) == (
        "report.pdf is not made: pdflatex is not installed. report.tex has the same content."
    )
    assert not (tmp_path / "report.pdf").exists()


MARKS = "\u061c\u200e\u200f"
BIDI_CONTROLS = [
    sign
    for sign in map(chr, range(0x10000))
    if sign in MARKS or re.fullmatch("..[EOI]|PD[FI]", unicodedata.bidirectional(sign))
]
"""Unicode's Bidi_Control: three marks, and all embeddings, overrides and isolates with their ends."""
assert len(BIDI_CONTROLS) == 12
FORMULAS = ("=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\ttab", "\rreturn", "＝1")
NUMBERS = ("-0.5", "+1", "-1e-05", "-.5")


def test_a_text_that_a_spreadsheet_would_execute_has_an_apostrophe_and_a_number_has_none(
    tmp_path: Path,
) -> None:
    texts = [*FORMULAS, *NUMBERS, "BYOL", "5-1", "–", ""]
    quoted = [
        "'=HYPERLINK(1)",
        "'+1+cmd|' /C calc'!A0",
        "'-2+3",
        "'@SUM(A1)",
        "'\ttab",
        "'[U+000D]return",
        "'＝1",
    ]
    assert [markup.csv(text) for text in texts] == [*quoted, *NUMBERS, "BYOL", "5-1", "–", ""]
    assert [markup.csv(value) for value in (-0.5, -1, None)] == [-0.5, -1, None]
    label, fields = FORMULAS[0], {"value": -0.25, "std": None, "reason": None, "paper": "-1.5"}
    cell = replace(filled().rows[0].cells["acc"], **fields)
    row = replace(filled().rows[0], label=label, cells={**filled().rows[0].cells, "acc": cell})
    (read,) = csv.DictReader(
        render.csv(replace(filled(), rows=(row,), columns=filled().columns[:1])).splitlines()
    )
    assert (read["row"], read["paper"], read["value"]) == (f"'{label}", "-1.5", "-0.25")
    runs = frame(TABLE, SEEDS, finished(), REASONS)
    runs["value"] = -runs["value"]
    write_runs(runs.assign(row=label, reason="-0.5"), "table99", tmp_path)
    write_runs(frame(SMALL, SEEDS, finished(), REASONS), SMALL.name, tmp_path)
    rows = rows_of(tmp_path / "runs.csv", "table99")
    assert {row["row"] for row in rows} == {f"'{label}"}, "it has one apostrophe, however often it is written"
    assert {row["reason"] for row in rows} == {"-0.5"}
    assert any(row.get("value", "").startswith("-") for row in rows)


@pytest.mark.parametrize("sign", [*"\x00\x07\x1b\x7f\x85\x9b\u2028\ud800", *BIDI_CONTROLS])
def test_no_format_contains_a_character_that_controls_a_terminal_or_turns_a_text_around(sign: str) -> None:
    """Also in the pages of runs, whose texts come from the tracking store."""
    text, number = f"safe{sign}txt.exe", f"[U+{ord(sign):04X}]"
    for form in (markup.plain, markup.markdown, markup.html, markup.tex, markup.csv):
        shown = form(text)
        assert sign not in shown
        assert number in re.sub(r"[{}\\]", "", shown), form
    page = render.environment().from_string(
        "<p title='{{ value }}'>{{ value|text }}{{ value }}</p>{{ 7 }}<br>"
    )
    safe = f"safe{number}txt.exe"
    assert page.render(value=text) == f"<p title='{safe}'>{safe}{safe}</p>7<br>"
    assert sign not in reason_of(InvalidError(text))
    assert reason_of(InvalidError("safe\u202etxt")) == "safe[U+202E]txt"


def test_a_letter_and_its_accent_are_one_character_of_latex() -> None:
    assert markup.tex("Mu\u0308ller, Ange\u0301lique $e\u0301$") == "Müller, Angélique $é$"
    assert markup.tex("q\u0308") == "q{[}U+0308{]}", "which has no such letter"


def test_a_comment_of_the_latex_ends_with_its_line() -> None:
    odd = replace(filled(), number="8\n\\input{x}", scale="a}\\input{y}")
    for text in (latex.table(odd), latex.tabular(odd)):
        assert not any(line.startswith("\\input") for line in text.splitlines())
        assert "input{y}" not in text


def test_the_index_reads_the_tables_of_its_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    render.write(filled(), tmp_path)
    render.write(filled(replace(TABLE, name="table100", number="100")), tmp_path)
    page = Page(front(tmp_path).read_text(encoding="utf-8"))
    tables = [link for link in page.links if link.endswith(".html")]
    assert list(dict.fromkeys(tables)) == ["report.html", "claims.html", "table99.html", "table100.html"]
    (tmp_path / "table7.json").write_text('{"table": "table7"}')
    again = Page(front(tmp_path).read_text(encoding="utf-8"))
    assert again.links == page.links
    assert "table7.json is not a report that this version wrote" in caplog.text


def damaged(change: Callable[[Any], Any]) -> str:
    """Return a report with a change in its first row that no renderer expects."""
    data = to_json(filled())
    change(data)
    return json.dumps(data)


def in_first_row(**fields: Any) -> Callable[[Any], None]:
    return lambda data: data["rows"][0].update(fields)


def in_first_cell(**fields: Any) -> Callable[[Any], None]:
    return lambda data: data["rows"][0]["cells"]["acc"].update(fields)


DAMAGED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a text for a number": (in_first_cell(value="81"), "value is '81'"),
    "not a number": (in_first_cell(value=math.nan), "value is nan"),
    "a number for a text": (in_first_row(label=7), "label is 7"),
    "a flag for a number": (in_first_cell(seeds=[True, False]), "seeds is True"),
    "another seed": (in_first_cell(seeds=[0]), "has 1 seeds and 2 runs"),
    "a seed twice": (in_first_cell(seeds=[0, 0]), "is there twice"),
    "no digits": (in_first_cell(paper_printed="many"), "could not convert"),
    "a cell fewer": (lambda data: data["rows"][0]["cells"].pop("acc"), "lacks a column"),
    "a row twice": (lambda data: data.update(rows=data["rows"][:1] * 2), "the row 'BYOL' is there twice"),
    "other facts": (lambda data: data["rows"][1].update(facts={}), "has other facts"),
    "a cell of too many seeds": (
        in_first_cell(seeds=[*range(1001)], runs=["a"] * 1001),
        "1001 seeds, but at most 1000 are shown",
    ),
    "too many cells": (
        lambda data: data.update(columns=[{**data["columns"][0], "key": str(n)} for n in range(10_000)]),
        r"it has \d0000 cells and \d figures, but at most 10000 and 100 are shown",
    ),
    "decimals without end": (lambda data: data["columns"][0].update(digits=10**9), "1000000000 decimals"),
    "a verdict of its own": (lambda data: data["claims"][0].update(ours="maybe"), "ours is 'maybe'"),
    "an escape code": (in_first_row(note="\x1b[2J"), r"note is '\\x1b\[2J'"),
    "a dollar sign alone": (in_first_row(note="$x"), "dollar signs do not pair"),
    "a command of its own": (in_first_row(note="$\\input{/etc/passwd}$"), "There is no command"),
    "braces without end": (in_first_row(note="$" + "{" * 5000 + "}" * 5000 + "$"), "cannot be shown"),
    "the name of another table": (lambda data: data.update(table="table98"), "contains 'table98'"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_report_is_left_out_of_the_index_with_one_line(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, says = DAMAGED[what]
    path = tmp_path / "table99.json"
    path.write_text(damaged(change))
    with pytest.raises(ValueError, match=says) as caught:
        render.read(path)
    assert "\n" not in str(caught.value)
    published(tmp_path, SMALL)
    assert "Left out of the index: " in caplog.text
    links = Page((tmp_path / "index.html").read_text(encoding="utf-8")).links
    assert {link.partition(".")[0] for link in links} == {"claims", "report", SMALL.name}


def test_what_is_not_a_file_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "nowhere.json").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "table99.md")
    publish(TABLE, SEEDS, finished(), REASONS, tmp_path, "as it is", lambda: [TABLE])
    assert {path.name for path in render.tables_in(tmp_path)} == {"table99.json"}
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "table99.md").is_file()


# Bytes
# ------------------------------------------------------------------------------------------------------------


def test_the_golden_files_are_what_is_written(tmp_path: Path) -> None:
    files = [*render.write(filled(), tmp_path), front(tmp_path)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files), (
        "something else was left behind"
    )
    for path in files:
        assert path.read_bytes() == (GOLDEN / path.name).read_bytes(), (
            f"{path.name} differs from its golden file"
        )
        assert b"\r" not in path.read_bytes()
        assert str(PROJECT) not in path.read_text(encoding="utf-8")


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """Another hash seed, another locale, runs finished in another order; and neither jinja2 nor pandas is
    imported before it is used."""
    program = (
        "import sys; from pathlib import Path; from reproduce.report import publish, render\n"
        "assert not {'jinja2', 'pandas', 'torch', 'numpy', 'mlflow'} & set(sys.modules)\n"
        "from test_report import filled, front\n"
        "folder = Path(sys.argv[1]); render.write(filled(backwards=True), folder)\n"
        "front(folder)"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": "7",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}",
    }
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, env=environment, check=True)
    for path in GOLDEN.glob("*99.*"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    assert (tmp_path / "index.html").read_bytes() == (GOLDEN / "index.html").read_bytes()


def test_every_table_of_the_suite_prints_in_every_format(tmp_path: Path) -> None:
    names = sorted(path.stem for path in (PROJECT / "tables").glob("table*.py"))
    for name in names:
        result = fill_from(importlib.import_module(f"tables.{name}").table(), 3, {}, {})
        assert from_json(json.loads(json.dumps(to_json(result)))) == result
        assert len(render.write(result, tmp_path)) == len(render.FORMATS)
    Page(front(tmp_path).read_text(encoding="utf-8"))
    typeset(tmp_path, names)


if __name__ == "__main__":
    render.write(filled(), GOLDEN)
    front(GOLDEN)
