"""Tables in the terminal: the exact text, narrow terminals, wide characters, and `invoke show`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from test_cli import HEAVY, imported

from reproduce.commands.show import _request
from reproduce.plan import Request
from reproduce.report.filled import Filled, FilledCell, FilledRow
from reproduce.report.table import Column
from reproduce.report.terminal import cut, lines, padded, width_of, wrapped

if TYPE_CHECKING:
    from conftest import Home


def cell(paper: str | None, *values: float, std: float | None = None) -> FilledCell:
    """Return a cell with the paper's number and our numbers, one for each seed."""
    return FilledCell(
        paper=paper,
        paper_note=None,
        paper_emphasis="",
        value=sum(values) / len(values) if values else None,
        std=std,
        spread="trainings",
        interval=None,
        values=values,
        emphasis="",
        against="reproduced" if std else None,
        against_reason="",
        seeds=tuple(range(len(values))),
        runs=tuple(f"run{seed}" for seed in range(len(values))),
        reason=None if values else "not run yet",
        causes=(),
    )


def row(label: str, *cells: FilledCell, rule_before: bool = False) -> FilledRow:
    return FilledRow(
        label=label,
        shown=label,
        facts={},
        note="",
        added=False,
        rule_before=rule_before,
        cells=dict(zip(("top1", "top5", "loss"), cells, strict=True)),
    )


TABLE = Filled(
    table="table99",
    number="99",
    title=r"Ablation of $\lambda_b$",
    scale="paper",
    caption="Table 99 of the paper.",
    notes=("A note.",),
    changes=(),
    row_title="Method",
    alpha=0.05,
    columns=(
        Column(key="top1", title="Top-1", group="STL-10"),
        Column(key="top5", title="Top-5", group="STL-10"),
        Column(key="loss", title="Loss", group="Embeddings", unit="", digits=1),
    ),
    rows=(
        row("BYOL", cell("71.92", 71.5), cell("90.1"), cell(None, -1.25)),
        row(
            "Ours (K=4)",
            cell("80.38", 79.0, 81.0, std=1.4142), cell("95.0", 94.0), cell(None),
            rule_before=True,
        ),
    ),
    claims=(),
)  # fmt: skip


def test_a_table_is_printed_as_it_is_drawn_here() -> None:
    assert list(lines(TABLE, 80)) == [
        "table99 (paper): Ablation of λ_b",
        "            STL-10                                   Embeddings",
        "                            Top-1 (%)     Top-5 (%)        Loss",
        "Method      paper                ours  paper   ours        ours",
        "---------------------------------------------------------------",
        "BYOL        71.92               71.50   90.1      –        -1.2",
        "---------------------------------------------------------------",
        "Ours (K=4)  80.38  80.00 ± 1.41 (2) =   95.0  94.00           –",
    ]


def test_columns_that_do_not_fit_are_counted() -> None:
    assert list(lines(TABLE, 50)) == [
        "table99 (paper): Ablation of λ_b",
        "            STL-10",
        "                            Top-1 (%)",
        "Method      paper                ours",
        "-------------------------------------",
        "BYOL        71.92               71.50",
        "-------------------------------------",
        "Ours (K=4)  80.38  80.00 ± 1.41 (2) =",
        "2 columns of 3 left out: too wide.",
    ]
    assert list(lines(TABLE, 51))[-1] == "1 column of 3 left out: too wide."


def test_a_long_label_is_wrapped_before_a_column_is_left_out() -> None:
    assert list(lines(TABLE, 36))[-3:] == [
        "Ours       80.38  80.00 ± 1.41 (2) =",
        "(K=4)",
        "2 columns of 3 left out: too wide.",
    ]
    label = f"ours with {'x' * 60} 方法方法"
    long = replace(TABLE, rows=(replace(TABLE.rows[0], label=label), TABLE.rows[1]))
    shown = list(lines(long, 80))
    assert max(map(width_of, shown)) <= 80
    assert shown[5:10] == [
        f"{'ours with':40}  71.92               71.50",
        "x" * 40,
        f"{'x' * 20} 方法方法",
        "-" * 67,
        f"{'Ours (K=4)':40}  80.38  80.00 ± 1.41 (2) =",
    ]
    assert wrapped("方法方法", 3) == ["方", "法", "方", "法"]
    assert [wrapped("", 8), wrapped("a b", 8), wrapped("a b", 2)] == [[""], ["a b"], ["a", "b"]]


def test_a_table_of_ours_has_no_sides() -> None:
    own = replace(
        TABLE, number="", columns=TABLE.columns[2:],
        rows=tuple(replace(each, cells={"loss": each.cells["loss"]}) for each in TABLE.rows),
    )  # fmt: skip
    assert list(lines(own, 80))[1:4] == [
        "            Embeddings",
        "Method            Loss",
        "----------------------",
    ]


def test_one_rule_separates_the_headings_from_a_first_row_with_a_rule_before_it() -> None:
    ruled = replace(TABLE, rows=tuple(replace(each, rule_before=True) for each in TABLE.rows))
    assert list(lines(ruled, 80)) == list(lines(TABLE, 80))


def test_wide_characters_count_twice_and_accents_not_at_all() -> None:
    assert [width_of(text) for text in ("ours", "方法", "e\u0301", "ℒ", "")] == [4, 4, 1, 1, 0]
    assert cut("方法方法", 8) == "方法方法"
    assert [cut("方法方法", width) for width in (7, 6, 5, 4)] == ["方法方…", "方法…", "方法…", "方…"]
    assert padded("方法", 6, right=True) == "  方法"
    wide = replace(TABLE, rows=(replace(TABLE.rows[0], label="方法"), TABLE.rows[1]))
    shown = list(lines(wide, 80))
    assert shown[5] == "方法        71.92               71.50   90.1      –        -1.2"


# The command line


@pytest.mark.slow
def test_a_table_task_ends_with_the_table_and_show_prints_the_same(home: Home) -> None:
    made = home.invoke("table9").stdout.splitlines()
    assert made[1].startswith("table9 (smoke): ")
    assert made[-1].endswith(f"cells filled: {home.reports / 'smoke' / 'table9.md'}")
    shown = home.invoke("show", "table9")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == made[1:]
    assert not imported(home, "show", "table9") & (HEAVY - {"jinja2"})
    narrow = home.invoke("show", "table9", COLUMNS="30").stdout.splitlines()
    assert [line for line in narrow[:-1] if len(line) > 30] == []
    assert not home.runs.exists()


def test_a_report_that_is_missing_is_named_with_the_command(home: Home) -> None:
    done = home.invoke("show", "table8", "--scale", "small")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "table8 at small scale was not rendered yet: `invoke table8 --scale small --render-only` renders it "
        "from finished runs.\n"
    )


def test_the_command_that_renders_a_report_again_repeats_its_settings_and_seeds() -> None:
    changes = ("baselines=trained", "row Mine=mine.pth", "epochs=5")
    assert _request(replace(TABLE, changes=changes)) == Request(
        table="table99", scale="paper", seeds=2, changes=("epochs=5",), baselines="trained"
    )


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[]", json.dumps({"table": "table9"})])
def test_a_report_of_another_version_is_named_with_the_command(content: str, home: Home) -> None:
    folder = home.reports / "smoke"
    folder.mkdir(parents=True)
    (folder / "table9.json").write_text(content)
    done = home.invoke("show", "table9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "The report of table9 at smoke scale is damaged or of another version: `invoke table9 --render-only` "
        "renders it again.\n"
    )
