"""The examples of CONTRIBUTING.md work, and a mistake in a table shows its place before anything runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import INVOKE, ROOT, Home

from configs.evaluate import linear
from configs.pretrain import byol, imagenet100
from reproduce.messages import UserError
from reproduce.plan import requests
from reproduce.report.claim import Claim, Contrast, MissingNumberError, Number, best, rising, within
from reproduce.report.table import Cell, Column, Measured, Reported, Row, Table

EXAMPLE = re.compile(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A line with the name of a file, and the block of its code."""
METHOD, TABLE = "reproduce/methods/cosine.py", "tables/table14.py"
COPIED = (
    "reproduce",
    "configs",
    "tables",
    "tasks.py",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/skips.py",
    "tests/test_contracts.py",
    "tests/toys.py",
    "tests/waiting.py",
)
ROW = "Cosine (K=2)"
TINY = ("epochs=1", "dataset.num_train=96", "dataset.num_val=40", "protocol.epochs=5")


def examples() -> dict[str, str]:
    """Return the code of each example by the name of its file."""
    return dict(EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with the files of the examples."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tests").mkdir()
    for name in COPIED:
        copy: Callable[[Path, Path], Any] = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for name, text in examples().items():
        assert not (folder / name).exists(), f"{name} is an example and a file of the project"
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(tree: Path, home: Home, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the copy."""
    return subprocess.run(
        command, cwd=tree, env=home.environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_examples_are_a_method_and_a_table() -> None:
    assert set(examples()) == {METHOD, TABLE}


@pytest.mark.slow
def test_the_example_of_a_table_trains_the_example_of_a_method(tree: Path, place: Home) -> None:
    options = [word for change in TINY for word in ("--set", change)]
    done = run(tree, place, *INVOKE, "table14", "--rows", ROW, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((place.reports / "smoke" / "table14.json").read_text())
    (row,) = report["rows"]
    assert row["label"] == ROW
    assert 0 <= row["cells"]["acc"]["value"] <= 100
    assert report["claims"][0]["ours"] == "not judged"  # at smoke scale
    assert "of the paper" not in (place.reports / "smoke" / "table14.md").read_text().splitlines()[0]


@pytest.mark.slow
def test_the_examples_keep_the_contracts(tree: Path, place: Home) -> None:
    tests = ("tests/test_contracts.py", "-k", "Cosine or table14 or share_a_name or line_with_its_source")
    done = run(tree, place, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    for check in (("check",), ("format", "--check")):
        checked = run(tree, place, sys.executable, "-m", "ruff", *check, "--no-cache", *examples())
        assert checked.returncode == 0, checked.stdout


MISTAKES = {
    "a parameter that a class does not have": (
        "Row(label=label",
        "Row(lable=label",
        "TypeError: Row.__init__() got an unexpected keyword argument 'lable'",
    ),
    "a metric that the protocol does not return": (
        'metric="top1"',
        'metric="top10"',
        "UnknownMetricError: There is no metric of linear 'top10'. Did you mean 'top1'?",
    ),
    "a claim about a row that does not exist": (
        'Number("Cosine (K=4)", "acc")',
        'Number("Cosine (K=8)", "acc")',
        "LookupError: A claim of table15: There is no row 'Cosine (K=8)'. Did you mean 'Cosine (K=4)'?",
    ),
    "a cell for a column that does not exist": (
        'cells={"acc"',
        'cells={"accuracy"',
        "LookupError: table15, row 'BYOL': There is no column 'accuracy'.",
    ),
    "two rows with one label": (
        '_row("Cosine (K=2)"',
        '_row("Cosine (K=4)"',
        "ValueError: table15 has more than one row label 'Cosine (K=4)': each must be unique.",
    ),
}

OF_THE_WHOLE = (
    "a cell for a column that does not exist",
    "a claim about a row that does not exist",
    "two rows with one label",
)
"""Mistakes that only the whole table has: the line is that of the table."""


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_table_shows_its_line(tree: Path, home: Home, mistake: str) -> None:
    right, wrong, message = MISTAKES[mistake]
    text = examples()[TABLE].replace("table14", "table15")
    assert right in text
    text = text.replace(right, wrong)
    file = tree / "tables" / "table15.py"
    file.write_text(text)
    done = run(tree, home, *INVOKE, "table15", "--dry-run")
    file.unlink()
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    blamed = "return Table(" if mistake in OF_THE_WHOLE else wrong
    number = next(number for number, line in enumerate(text.splitlines(), 1) if blamed in line)
    assert f'/tables/table15.py", line {number}, in ' in done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert not home.runs.exists()


@pytest.mark.slow
def test_a_table_with_the_name_of_another_file_is_refused(tree: Path, home: Home) -> None:
    file = tree / "tables" / "table15.py"
    file.write_text(examples()[TABLE])
    done = run(tree, home, *INVOKE, "table15", "--dry-run")
    file.unlink()
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "ValueError: tables/table15.py returns a table named 'table14': name it 'table15'."


# The same checks, by themselves


def small_table(*claims: Sequence[Contrast], **fields: Any) -> Table:
    """Return a table with two rows and one column; the second row has no number of the paper."""
    ours = Measured(spec=linear(byol(imagenet100)), metric="top1")
    rows = (
        Row(label="a", cells={"acc": Cell(paper=Reported(value="70.5"), ours=ours)}),
        Row(label="b", cells={"acc": Cell(ours=ours)}),
    )
    return Table(
        **{
            "name": "table15",
            "title": "A test.",
            "columns": (Column(key="acc", title="Acc."),),
            "rows": rows,
            "claims": tuple(Claim(text="x", contrasts=tuple(each)) for each in claims),
            **fields,
        }
    )


A, B, C = (Number(row, "acc") for row in "abc")


@pytest.mark.parametrize(
    "claim",
    [
        [C > 0],
        [B > C],
        [A > B, C <= 0],
        [A - B > C - A],
        rising(A, B, C),
        best(A, (B, C)),
        within(C, 70.0, 1.0),
        [replace(C > 0, optional=True)],
    ],
)
def test_a_claim_about_an_unknown_row_is_found_wherever_it_is_asked(claim: Sequence[Contrast]) -> None:
    with pytest.raises(LookupError, match=r"^A claim of table15: There is no row 'c'\.") as caught:
        small_table(claim)
    assert not isinstance(caught.value, (MissingNumberError, UserError))


def test_a_claim_about_an_unknown_column_is_found() -> None:
    with pytest.raises(LookupError, match=r"There is no column 'top1'\."):
        small_table([Number("a", "top1") > 0])


def test_a_claim_that_compares_before_it_is_judged_is_found() -> None:
    with pytest.raises(TypeError, match="write `a > b, b > c`"):
        small_table([A > B > 0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="The claim 'x' has no contrasts"):
        small_table([])


def test_a_claim_without_its_number_stays_open_unless_another_contrast_fails() -> None:
    optional = replace(A > B, optional=True)
    table = small_table([A > B], [A > 70], [A > B, A > 71], [A > B, A > 70], [optional, A > 70])
    assert table.judge_paper() == ("open", "holds", "fails", "open", "holds")
    assert table.select(rows="b").judge_paper() == ("open", "holds", "fails", "open", "holds")


def test_a_table_is_checked_where_it_is_written() -> None:
    table = small_table()
    with pytest.raises(ValueError, match=r"^table15 has more than one row label 'a': each must be unique\.$"):
        small_table(rows=(table.rows[0], table.rows[0]))
    with pytest.raises(
        ValueError, match=r"^table15 has more than one column key 'acc': each must be unique\.$"
    ):
        small_table(columns=table.columns * 2)
    with pytest.raises(LookupError, match=r"^table15, row 'a': There is no column 'acc'\. Known: top1\.$"):
        small_table(columns=(Column(key="top1", title="Top-1"),))
    with pytest.raises(
        ValueError, match=r"^table15, row 'b': its facts are none, the first row's are Views\."
    ):
        small_table(rows=(replace(table.rows[0], facts={"Views": "2"}), table.rows[1]))
    with pytest.raises(ValueError, match=r"^Reported\(value=None\) needs a note"):
        Reported(value=None)
    with pytest.raises(ValueError, match="a measurement or a setting, not both"):
        replace(table.rows[0].cells["acc"], setting=1.0)


def test_a_change_that_takes_a_metric_away_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError, match=r"^ks=10,50: There is no metric of weighted_knn 'top1_20'\."):
        requests(["table4"], changes=("ks=10,50",))
