"""A table with its numbers: plain data that the renderers print and that `tableN.json` contains.

    filled = fill(table, seeds, frame(table, seeds, finished, reasons))
    to_json(filled) / from_json(...) / loads(text, where)

From here on, numbers are as printed: per cent if the column's unit is `%`. A cell with a missing seed has no
number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from reproduce.messages import InvalidError, unprintable
from reproduce.report.markup import literal
from reproduce.report.observe import Statistics, statistics
from reproduce.report.table import Cell, Column, Row, Table, Verdict
from reproduce.spec import Pretrain

if TYPE_CHECKING:
    from reproduce.report.observe import Frame

DECIMALS = 10
"""Decimals of numbers in files: enough to drop binary noise only (100 x 0.8156 = 81.55999999999999)."""

NOT_IN_PAPER = "the paper's table has no such cell"
ADDED_ROW = "the paper's table does not have this row"
SMOKE = "The smoke scale shows that everything runs; its numbers are not comparable with the paper's."
SMOKE_WITHOUT_PAPER = "The smoke scale shows that everything runs; its numbers do not measure quality."
NO_RUN = "this suite has no run for this cell"


@dataclass(frozen=True, kw_only=True)
class FilledCell:
    """The paper's number and our number, or why either is missing."""

    paper: str | None
    """Digits as the paper printed them."""
    paper_note: str | None
    """A doubt about the paper's number, the text of its dagger, or why it is missing. None in a table that is
    not the paper's."""
    value: float | None
    """Mean over the seeds, as printed."""
    std: float | None
    """Sample standard deviation over the seeds; None if there are fewer than two."""
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
class JudgedClaim:
    """A sentence about the table, and whether it holds on the paper's own numbers and on our numbers."""

    text: str
    source: str
    paper: Verdict
    ours: Verdict


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
    columns: tuple[Column, ...]
    rows: tuple[FilledRow, ...]
    claims: tuple[JudgedClaim, ...]

    @property
    def head(self) -> str:
        """The caption's first words, which renderers set in bold; empty if the table is not the paper's."""
        return _head(self.number)

    @property
    def body(self) -> str:
        """The caption without its first words."""
        return self.caption.removeprefix(self.head).lstrip()


def fill(table: Table, seeds: int, runs: Frame | None, incomplete: Sequence[str] = ()) -> Filled:
    """Return the table with the statistics of every cell, the claims judged on them, and the caption.

    Args:
        runs: the table's frame (`observe.frame`) of that many seeds; None if no run fills the table.
        incomplete: a phrase for each split that was not as published (`counts.incomplete`).
    """
    factors = {column.key: 100 if column.unit == "%" else 1 for column in table.columns}
    found = {} if runs is None else statistics(runs, factors)
    rows = tuple(_row(table, row, seeds, found) for row in table.rows)
    verdicts = zip(table.claims, table.judge_paper(), _judge_ours(table, rows), strict=True)
    return Filled(
        table=table.name,
        number=table.number,
        title=table.title,
        scale=table.scale,
        caption=_caption(table, seeds, incomplete),
        notes=table.notes,
        changes=table.changes,
        row_title=table.row_title,
        columns=table.columns,
        rows=rows,
        claims=tuple(
            JudgedClaim(text=claim.text, source=claim.source, paper=paper, ours=ours)
            for claim, paper, ours in verdicts
        ),
    )


def printed(number: float, digits: int) -> str:
    """Return a number as text with its decimals; a rounded zero has no sign. No other code does this."""
    text = f"{number:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def to_json(filled: Filled) -> dict[str, Any]:
    """Return plain data for `tableN.json`: `paper` as a number, and next to it its digits as printed."""
    data = asdict(filled)
    for row in data["rows"]:
        row["cells"] = {
            key: {
                "paper": None if cell["paper"] is None else float(cell["paper"]),
                "paper_printed": cell["paper"],
            }
            | {
                name: cell[name]
                for name in ("paper_note", "value", "std", "seeds", "runs", "reason", "causes")
            }
            for key, cell in row["cells"].items()
        }
    return data


def from_json(data: Mapping[str, Any]) -> Filled:
    """Return the table that `to_json` turned into `data`, also after a round trip through a file.

    Raises:
        KeyError, TypeError: another version of `to_json` wrote the data.
    """
    parts = dict(data) | {"notes": tuple(data["notes"]), "changes": tuple(data["changes"])}
    parts["columns"] = tuple(Column(**column) for column in data["columns"])
    parts["claims"] = tuple(JudgedClaim(**claim) for claim in data["claims"])
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{where} is not a report that this version wrote ({error})"
        raise InvalidError(f"{message}: render the table again or delete the file.") from None


def _check(filled: Filled) -> None:
    """Raise ValueError for a table whose types or parts do not fit together, so that it cannot be shown."""
    _check_type(filled, Filled, "the table")
    columns = [column.key for column in filled.columns]
    _check_distinct(columns, "column")
    _check_distinct((row.label for row in filled.rows), "row")
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
            if len(cell.seeds) != len(cell.runs):
                raise ValueError(f"row '{row.label}' has {len(cell.seeds)} seeds and {len(cell.runs)} runs")
            _check_distinct(cell.seeds, f"seed of row '{row.label}'")


def _check_distinct(names: Iterable[object], what: str) -> None:
    names = list(names)
    if again := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the {what} {again[0]!r} is there twice")


def _check_type(value: Any, hint: Any, where: str) -> None:
    """Raise ValueError unless a value has the type of its field, down to each number and text."""
    origin, inside = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        for name, each in _hints(hint).items():
            _check_type(getattr(value, name), each, name)
        return  # `from_json` made it, so it has the right class
    if origin is UnionType:
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
    return FilledCell(
        paper=cell["paper_printed"],
        paper_note=cell["paper_note"],
        value=cell["value"],
        std=cell["std"],
        seeds=tuple(cell["seeds"]),
        runs=tuple(cell["runs"]),
        reason=cell["reason"],
        causes=tuple(cell["causes"]),
    )


def _row(table: Table, row: Row, seeds: int, found: Mapping[tuple[str, str], Statistics]) -> FilledRow:
    return FilledRow(
        label=row.label,
        shown=row.shown or row.label,
        facts=dict(row.facts),
        note=row.note,
        added=row.added,
        rule_before=row.rule_before,
        cells={
            column.key: _cell(table, row, column, seeds, found.get((row.label, column.key)))
            for column in table.columns
        },
    )


def _cell(table: Table, row: Row, column: Column, seeds: int, found: Statistics | None) -> FilledCell:
    """Return one cell.

    Args:
        found: statistics of its runs; None if no run fills it.
    """
    cell = row.cells.get(column.key, Cell())
    value, std, reason = cell.setting, None, None
    causes: tuple[str, ...] = ()
    if found is not None:
        value, std = _rounded(found.mean), _rounded(found.std)
        reason, causes = _reason(found.missing, seeds), tuple(dict.fromkeys(found.missing.values()))
    elif value is None:
        reason = cell.why_not_ours or NO_RUN
        causes = (reason,)
    return FilledCell(
        paper=None if cell.paper is None else cell.paper.value,
        paper_note=_paper_note(table, row, cell),
        value=value,
        std=std,
        seeds=tuple(found.finished) if found else (),
        runs=tuple(found.finished.values()) if found else (),
        reason=reason,
        causes=causes,
    )


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


def _judge_ours(table: Table, rows: tuple[FilledRow, ...]) -> tuple[Verdict, ...]:
    """Judge every claim on our numbers, rounded as they are printed."""
    digits = {column.key: column.digits for column in table.columns}
    cells = {(row.label, key): cell for row in rows for key, cell in row.cells.items()}

    def number(label: str, key: str) -> float | None:
        value = cells[label, key].value
        return None if value is None else float(printed(value, digits[key]))

    return tuple(claim.judge(table.values(number)) for claim in table.claims)


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
