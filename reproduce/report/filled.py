"""A table with its numbers: plain data that the renderers print and that `tableN.json` contains.

    filled = fill(table, seeds, frame(table, seeds, finished, reasons))
    to_json(filled) / from_json(...) / loads(text, where)

From here on, numbers are as printed: per cent if the column's unit is `%`. A cell with a missing seed has no
number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from reproduce.messages import InvalidError, first_line, table_command, unprintable
from reproduce.report import drawing
from reproduce.report.claim import Claim
from reproduce.report.drawing import Drawing
from reproduce.report.markup import literal
from reproduce.report.observe import Statistics, statistics
from reproduce.report.plots import NAME
from reproduce.report.stats import MOST_SEEDS, Sample, estimate
from reproduce.report.table import Cell, Column, Margin, Row, Table, baselines_in, settings_in
from reproduce.report.verdicts import (
    Absent,
    CellVerdict,
    Effect,
    Emphasis,
    JudgedClaim,
    LookUp,
    compare,
    emphasis,
    judge,
)
from reproduce.spec import Pretrain

if TYPE_CHECKING:
    from reproduce.report.observe import Frame

DECIMALS = 10
"""Decimals of numbers in files: enough to drop binary noise only (100 x 0.8156 = 81.55999999999999)."""

MOST_CELLS, MOST_FIGURES = 10_000, 100
"""Maximum number of cells and of figures of a table in a file; the paper's largest has 60 cells."""
NOT_IN_PAPER = "the paper's table has no such cell"
ADDED_ROW = "the paper's table does not have this row"
SMOKE = "The smoke scale shows that everything runs; its numbers are not comparable with the paper's."
SMOKE_WITHOUT_PAPER = "The smoke scale shows that everything runs; its numbers do not measure quality."
NO_RUN = "this suite has no run for this cell"
NO_MARGIN = "no margin is declared, because no spread over seeds is published for this protocol"
OTHER_DATA = "the sentence is about the paper's data, for which others stand in here"


@dataclass(frozen=True, kw_only=True)
class FilledCell:
    """The paper's number and our number, or why either is missing."""

    paper: str | None
    """Digits as the paper printed them."""
    paper_note: str | None
    """A doubt about the paper's number, the text of its dagger, or why it is missing. None in a table that is
    not the paper's."""
    paper_emphasis: Emphasis
    """Emphasis of the paper's number, as printed there."""
    value: float | None
    """Mean over the seeds, as printed."""
    std: float | None
    """Sample standard deviation over the seeds; None if there are fewer than two."""
    spread: Literal["trainings", "evaluations"]
    """Unit of the seeds; `evaluations` are those of one released encoder, and say nothing about trainings."""
    interval: tuple[float, float] | None
    """Confidence interval of the mean over trainings; None if there are fewer than two."""
    values: tuple[float, ...]
    """Numbers of the finished seeds, in the order of `seeds`."""
    emphasis: Emphasis
    against: CellVerdict | None
    """Verdict on our number against the paper's; None if either is missing."""
    against_reason: str
    """Why the numbers are not comparable, or not decided; empty otherwise."""
    seeds: tuple[int, ...]
    """Seeds that are finished. They are listed even if others are missing and `value` is None."""
    runs: tuple[str, ...]
    """Id of each of these seeds' evaluations, which is the same in every tracking store."""
    reason: str | None
    """Why `value` is None, with the seeds that it concerns."""
    causes: tuple[str, ...]
    """Distinct reasons in `reason`, without the seeds."""


@dataclass(frozen=True, kw_only=True)
class FilledRow:
    """One line; text as in `Row`."""

    label: str
    shown: str
    facts: Mapping[str, str]
    note: str
    added: bool
    rule_before: bool
    cells: Mapping[str, FilledCell]
    """By column key, one for every column."""


@dataclass(frozen=True, kw_only=True)
class Illustration:
    """One figure of a table."""

    name: str
    """Name of its files in the folder `figures`, without the ending."""
    title: str
    """Caption, as markup."""
    alternative: str
    """Content of the figure in words, for readers who do not see it; plain text."""
    drawing: Drawing
    """Numbers and texts of the figure."""


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A table with all its numbers; text is markup (`markup.py`)."""

    table: str
    number: str
    title: str
    scale: str
    caption: str
    notes: tuple[str, ...]
    changes: tuple[str, ...]
    row_title: str
    alpha: float
    """Significance level of the verdicts; intervals have a confidence of 1 - alpha."""
    columns: tuple[Column, ...]
    rows: tuple[FilledRow, ...]
    claims: tuple[JudgedClaim, ...]
    not_drawn: tuple[str, ...] = ()
    """Figures that are left out, each with the reason as a sentence."""
    figures: tuple[Illustration, ...] = ()

    @property
    def head(self) -> str:
        """The caption's first words, which renderers set in bold; empty if the table is not the paper's."""
        return _head(self.number)

    @property
    def name(self) -> str:
        """Name of the table in print, such as `Table 8`."""
        return self.head.removesuffix(" of the paper.") or self.table

    @property
    def body(self) -> str:
        """The caption without its first words."""
        return self.caption.removeprefix(self.head).lstrip()

    @property
    def why(self) -> str:
        """Command that prints the runs behind the numbers, without those of added rows."""
        seeds = 1 + max((max(c.seeds, default=0) for row in self.rows for c in row.cells.values()), default=0)
        settings, baselines = settings_in(self.changes), baselines_in(self.changes)
        command = table_command(self.table, "*", "*", self.scale, seeds, baselines, settings)
        return command.replace("invoke ", "invoke why ", 1)


def fill(table: Table, seeds: int, runs: Frame | None, incomplete: Sequence[str] = ()) -> Filled:
    """Return the table with the statistics of every cell, the claims judged on them, and the caption.

    Args:
        runs: the table's frame (`observe.frame`) of that many seeds; None if no run fills the table.
        incomplete: a phrase for each split that was not as published (`counts.incomplete`).
    """
    factors = {column.key: 100 if column.unit == "%" else 1 for column in table.columns}
    found = {} if runs is None else statistics(runs, factors)
    rows = _emphasised(table, tuple(_row(table, row, seeds, found, incomplete) for row in table.rows))
    return Filled(
        table=table.name,
        number=table.number,
        title=table.title,
        scale=table.scale,
        caption=_caption(table, seeds, incomplete),
        notes=table.notes,
        changes=table.changes,
        row_title=table.row_title,
        alpha=table.alpha,
        columns=table.columns,
        rows=rows,
        claims=_judged(table, rows, seeds),
    )


def to_json(filled: Filled) -> dict[str, Any]:
    """Return plain data for `tableN.json`: `paper` as a number, and next to it its digits as printed."""
    data = asdict(filled)
    for row in data["rows"]:
        row["cells"] = {
            key: {
                "paper": None if cell["paper"] is None else float(cell["paper"]),
                "paper_printed": cell["paper"],
            }
            | {name: cell[name] for name in cell if name != "paper"}
            for key, cell in row["cells"].items()
        }
    return data


def from_json(data: Mapping[str, Any]) -> Filled:
    """Return the table that `to_json` turned into `data`, also after a round trip through a file.

    Raises:
        KeyError, TypeError: another version of `to_json` wrote the data.
    """
    parts = dict(data) | {key: tuple(data[key]) for key in ("notes", "changes", "not_drawn")}
    parts["columns"] = tuple(
        Column(**column | {"margin": column["margin"] and Margin(**column["margin"])})
        for column in data["columns"]
    )
    parts["claims"] = tuple(
        JudgedClaim(**claim | {"effect": claim["effect"] and Effect(**claim["effect"])})
        for claim in data["claims"]
    )
    parts["figures"] = tuple(
        Illustration(**figure | {"drawing": drawing.from_json(figure["drawing"])})
        for figure in data["figures"]
    )
    parts["rows"] = tuple(
        FilledRow(**row | {"cells": {key: _cell_from_json(cell) for key, cell in row["cells"].items()}})
        for row in data["rows"]
    )
    return Filled(**parts)


def loads(text: str | bytes, where: str) -> Filled:
    """Return the table in a `tableN.json`.

    Args:
        where: the file's name in error messages.

    Raises:
        ValueError: another version wrote the file, or it contains what no table can contain.
    """
    try:
        filled = from_json(json.loads(text))
        _check(filled)
        return filled
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        message = f"{where} is not a report that this version wrote ({first_line(error):.200})"
        raise InvalidError(f"{message}: render the table again or delete the file.") from None


def _check(filled: Filled) -> None:
    """Raise ValueError for a table whose types or parts do not fit together, so that it cannot be shown."""
    _check_type(filled, Filled, "the table")
    columns = [column.key for column in filled.columns]
    cells = len(columns) * len(filled.rows)
    if cells > MOST_CELLS or len(filled.figures) > MOST_FIGURES:
        raise ValueError(
            f"it has {cells} cells and {len(filled.figures)} figures, but at most {MOST_CELLS} and "
            f"{MOST_FIGURES} are shown"
        )
    _check_distinct(columns, "column")
    _check_distinct((row.label for row in filled.rows), "row")
    _check_distinct((figure.name for figure in filled.figures), "figure")
    for figure in filled.figures:
        name = figure.name.removeprefix(f"{filled.table}-")
        if name == figure.name or not NAME.fullmatch(name):
            raise ValueError(f"a figure is named {figure.name!r:.60}")
        drawing.check(figure.drawing)
    if not 0 < filled.alpha < 1:
        raise ValueError(f"alpha is {filled.alpha}")
    for column in filled.columns:
        if not 0 <= column.digits <= DECIMALS:
            raise ValueError(f"column '{column.key}' has {column.digits} decimals")
    for row in filled.rows:
        if set(row.cells) != set(columns):
            raise ValueError(f"row '{row.label}' lacks a column or has another one")
        if list(row.facts) != list(filled.rows[0].facts):
            raise ValueError(f"row '{row.label}' has other facts than the first row")
        for cell in row.cells.values():
            if cell.paper is not None and not math.isfinite(float(cell.paper)):
                raise ValueError(f"row '{row.label}' quotes {cell.paper}")
            if len(cell.seeds) > MOST_SEEDS:
                raise ValueError(
                    f"row '{row.label}' has {len(cell.seeds)} seeds, but at most {MOST_SEEDS} are shown"
                )
            if len(cell.seeds) != len(cell.runs):
                raise ValueError(f"row '{row.label}' has {len(cell.seeds)} seeds and {len(cell.runs)} runs")
            _check_distinct(cell.seeds, f"seed of row '{row.label}'")


def _check_distinct(names: Iterable[object], what: str) -> None:
    if again := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"the {what} {again[0]!r} is there twice")


def _check_type(value: Any, hint: Any, where: str) -> None:
    """Raise ValueError unless a value has the type of its field, down to each number and text."""
    origin, inside = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        for name, each in _hints(hint).items():
            _check_type(getattr(value, name), each, name)
        return  # `from_json` made it, so it has the right class
    if origin in (UnionType, Union):
        fits = value is None
        if not fits:
            return _check_type(value, inside[0], where)
    elif origin is Literal:
        fits = value in inside
    elif origin is tuple:
        fits = isinstance(value, tuple)
        for item in value if fits else ():
            _check_type(item, inside[0], where)
    elif origin is Mapping:
        fits = isinstance(value, dict)
        for key, item in value.items() if fits else ():
            _check_type(key, str, where)
            _check_type(item, inside[1], where)
    elif hint is float:
        fits = type(value) in (int, float) and math.isfinite(value)
    else:
        # Reasons may have several lines; renderers print them on one.
        fits = type(value) is hint and not (hint is str and unprintable(" ".join(value.split())))
    if not fits:
        raise ValueError(f"{where} is {value!r:.60}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _cell_from_json(cell: Mapping[str, Any]) -> FilledCell:
    parts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in cell.items()
    }
    return FilledCell(**parts | {"paper": parts.pop("paper_printed")})


def _row(
    table: Table,
    row: Row,
    seeds: int,
    found: Mapping[tuple[str, str], Statistics],
    incomplete: Sequence[str],
) -> FilledRow:
    return FilledRow(
        label=row.label,
        shown=row.shown or row.label,
        facts=dict(row.facts),
        note=row.note,
        added=row.added,
        rule_before=row.rule_before,
        cells={
            column.key: _cell(table, row, column, seeds, found.get((row.label, column.key)), incomplete)
            for column in table.columns
        },
    )


def _cell(
    table: Table,
    row: Row,
    column: Column,
    seeds: int,
    found: Statistics | None,
    incomplete: Sequence[str],
) -> FilledCell:
    """Return one cell, without the emphasis of our number.

    Args:
        found: statistics of its runs; None if no run fills it.
    """
    cell = row.cells.get(column.key, Cell())
    value, std, reason = cell.setting, None, None
    causes: tuple[str, ...] = ()
    sample = None
    if found is not None:
        value, std = _rounded(found.mean), _rounded(found.std)
        reason, causes = _reason(found.missing, seeds), tuple(dict.fromkeys(found.missing.values()))
        trainings = cell.ours is not None and isinstance(cell.ours.spec.encoder, Pretrain)
        sample = Sample(found.values, trainings) if found.mean is not None else None
    elif value is None:
        reason = cell.why_not_ours or NO_RUN
        causes = (reason,)
    interval = estimate([(1.0, sample)]).interval(table.alpha) if sample and sample.trainings else None
    against, why = _against(table, column, cell, sample, incomplete)
    return FilledCell(
        paper=None if cell.paper is None else cell.paper.value,
        paper_note=_paper_note(table, row, cell),
        paper_emphasis="" if cell.paper is None else cell.paper.emphasis,
        value=value,
        std=std,
        spread="trainings" if sample is None or sample.trainings else "evaluations",
        interval=None if interval is None else (round(interval[0], DECIMALS), round(interval[1], DECIMALS)),
        values=tuple(round(number, DECIMALS) for number in sample.values.values()) if sample else (),
        emphasis="",
        against=against,
        against_reason=why,
        seeds=tuple(found.finished) if found else (),
        runs=tuple(found.finished.values()) if found else (),
        reason=reason,
        causes=causes,
    )


def _against(
    table: Table, column: Column, cell: Cell, sample: Sample | None, incomplete: Sequence[str]
) -> tuple[CellVerdict | None, str]:
    """Return the verdict on our number against the printed one, and its reason."""
    if cell.paper is None or cell.paper.value is None or sample is None:
        return None, ""
    if table.scale != "paper":
        return "not comparable", f"the paper's number is not of the scale {table.scale}"
    if changed := settings_in(table.changes):
        return "not comparable", f"changed settings: {', '.join(changed)}"
    if incomplete:
        return "not comparable", f"not the published data: {'; '.join(incomplete)}"
    if not sample.trainings:
        return "not comparable", "one released encoder has no spread over trainings"
    if column.margin is None:
        return "not comparable", NO_MARGIN
    found = compare(sample, float(cell.paper.value), column.margin.value, table.alpha)
    return found, "one seed has no interval" if len(sample.values) < 2 else ""


def _paper_note(table: Table, row: Row, cell: Cell) -> str | None:
    """Return the note on the paper's number, or why the paper has none."""
    if cell.paper is not None:
        return cell.paper.note or None
    if not table.number:
        return None
    return ADDED_ROW if row.added else NOT_IN_PAPER


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, DECIMALS)


def _reason(missing: Mapping[int, str], seeds: int) -> str | None:
    """Return why a cell is empty, or None if nothing is missing.

    If all seeds share one reason, it is returned alone; otherwise each reason is followed by its seeds.
    """
    by_reason: dict[str, list[str]] = {}
    for seed, reason in missing.items():
        by_reason.setdefault(reason, []).append(str(seed))
    if len(missing) == seeds and len(by_reason) == 1:
        return next(iter(by_reason))
    each = (
        f"seed{'s' * (len(of) > 1)} {', '.join(of)} of {seeds}: {reason}" for reason, of in by_reason.items()
    )
    return "; ".join(each) or None


def _emphasised(table: Table, rows: tuple[FilledRow, ...]) -> tuple[FilledRow, ...]:
    """Return the rows with the emphasis of our numbers; at smoke scale nothing of ours has any."""
    if table.scale == "smoke":
        return rows
    marks = {
        column.key: emphasis(
            [_sample(row.cells[column.key]) for row in rows], column.better, column.digits, table.alpha
        )
        for column in table.columns
    }
    return tuple(
        replace(
            row,
            cells={key: replace(cell, emphasis=marks[key][index]) for key, cell in row.cells.items()},
        )
        for index, row in enumerate(rows)
    )


def _sample(cell: FilledCell) -> Sample | None:
    """Return our numbers in a cell; None if one is missing. A setting counts as a constant."""
    if cell.value is None:
        return None
    if not cell.values:
        return Sample({0: cell.value}, trainings=False)
    return Sample(dict(zip(cell.seeds, cell.values, strict=True)), cell.spread == "trainings")


def _judged(table: Table, rows: tuple[FilledRow, ...], seeds: int) -> tuple[JudgedClaim, ...]:
    """Judge every claim on the paper's numbers and on ours."""

    def not_judged(claim: Claim) -> str:
        if table.scale == "smoke":
            return "the smoke scale shows that everything runs, not how well"
        return OTHER_DATA if table.stand_in and claim.needs_the_papers_data else ""

    return judge(table.claims, numbers(table, rows, seeds), table.printed, table.alpha, not_judged)


def numbers(table: Table, rows: Iterable[FilledRow], seeds: int) -> LookUp:
    """Return the function that looks up a cell's number for a verdict.

    Args:
        rows: the table's rows with their numbers of that many seeds.
    """
    filled = {(row.label, key): cell for row in rows for key, cell in row.cells.items()}

    def look_up(label: str, key: str) -> Sample | Absent:
        cell = filled.get((label, key))
        if cell is None:
            return Absent("open", f"row '{label}', column '{key}' is left out")
        sample = _sample(cell)
        if sample is not None:
            return sample
        if table.cell(label, key).ours is not None:
            changes, baselines = settings_in(table.changes), baselines_in(table.changes)
            command = table_command(table.name, label, key, table.scale, seeds, baselines, changes)
            return Absent("open", f"a number is missing; to fill it: {command}")
        if cell.paper is None:
            return Absent("open", f"row '{label}', column '{key}' has no number")
        if table.scale != "paper":
            return Absent("not judged", f"the quoted number of {label} is of another scale")
        if settings_in(table.changes):
            return Absent("not judged", f"the quoted number of {label} is of unchanged settings")
        return Sample({0: float(cell.paper)}, trainings=False)

    return look_up


def _caption(table: Table, seeds: int, incomplete: Sequence[str]) -> str:
    """Return what the table shows and under which conditions, in full sentences."""
    measured = any(table.measured())
    smoke = SMOKE if table.number else SMOKE_WITHOUT_PAPER
    sentences = [
        _head(table.number),
        f"{table.title.rstrip('.')}.",
        f"Scale: {literal(table.scale)}.",
        _data(table),
        f"Not the published data: {literal('; '.join(incomplete))}." if incomplete else "",
        f"Seeds: {seeds}." if measured else "",
        f"Changed settings: {literal(', '.join(table.changes))}." if table.changes else "",
        f"Left out: {table.left_out}." if table.left_out else "",
        table.stand_in if measured else "",
        *dict.fromkeys(ours.spec.protocol.caveat for *_, ours in table.measured()),
        smoke if table.scale == "smoke" and measured else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _head(number: str) -> str:
    """Return `Table 8 of the paper.`, or an empty text if the table is not the paper's."""
    return f"Table{'' if number.isdigit() else 's'} {number} of the paper." if number else ""


def _data(table: Table) -> str:
    """Return a sentence with the data sets of the runs, in the order in which the table first names them."""
    specs = [ours.spec for _, _, ours in table.measured()]
    pretrain = dict.fromkeys(
        spec.encoder.dataset.title for spec in specs if isinstance(spec.encoder, Pretrain)
    )
    evaluate = dict.fromkeys(spec.dataset.title for spec in specs)
    if not specs:
        return ""
    if pretrain == evaluate or not pretrain:
        return f"Data: {literal(', '.join(evaluate))}."
    return f"Pretrained on {literal(', '.join(pretrain))}; evaluated on {literal(', '.join(evaluate))}."
