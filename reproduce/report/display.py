"""How a filled table is laid out, in every format alike: sub-columns, ranks, footnote marks, and what is said
under the table.

The paper's number and ours stand in two sub-columns of one column. Nothing here knows a format; text is
markup (`markup.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from reproduce.report.filled import ADDED_ROW, NOT_IN_PAPER, Filled, FilledCell, printed
from reproduce.report.markup import literal
from reproduce.report.stats import Rank, ranks
from reproduce.report.table import Column

DASH = "–"
"""Printed in an empty cell."""
ADDED_MARK = "*"
MAX_REASONS = 5
"""Reasons for empty cells that are told under the table; the `.json` has every cell's."""


@dataclass(frozen=True)
class SubColumn:
    """The paper's half of a column, or ours."""

    column: Column
    side: Literal["paper", "ours"]
    first: bool
    """Whether it is the left one of its column."""

    @property
    def heading(self) -> str:
        """The column's title with its unit."""
        unit, title = self.column.unit, self.column.title
        return title if not unit or unit in title else f"{title} ({unit})"


@dataclass(frozen=True)
class Shown:
    """What stands in one cell of a sub-column."""

    number: str
    """Digits, or a dash."""
    std: str = ""
    """Digits of the standard deviation; empty: one seed, or the paper's number."""
    n: int = 0
    """Seeds behind `std`."""
    rank: Rank = ""
    marks: tuple[str, ...] = ()
    """Marks of the footnotes."""
    hint: str = ""
    """Plain text: the runs behind the number, or why it is missing."""


@dataclass(frozen=True)
class Line:
    """One row as shown."""

    label: str
    marks: tuple[str, ...]
    facts: tuple[str, ...]
    rule_before: bool
    cells: tuple[Shown, ...]
    runs: tuple[tuple[str, tuple[str, ...]], ...]
    """The ids of the runs behind each number of ours, by column key."""


@dataclass(frozen=True)
class Display:
    """The whole table as shown."""

    row_title: str
    fact_titles: tuple[str, ...]
    sub_columns: tuple[SubColumn, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[tuple[str, str], ...]
    """(mark, text), in the order in which they are met."""
    remarks: tuple[str, ...]
    """Sentences under the table: how to read it, the table's notes, why cells are empty."""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(heading, number of sub-columns) over neighbouring columns; empty headings included; none if no
        column has one."""
        spans = [
            (group, len(list(members)))
            for group, members in groupby(self.sub_columns, lambda sub: sub.column.group)
        ]
        return spans if any(group for group, _ in spans) else []

    @property
    def headings(self) -> list[tuple[str, int]]:
        """(heading, number of sub-columns) of every column."""
        spans = [list(members) for _, members in groupby(self.sub_columns, lambda sub: sub.column.key)]
        return [(members[0].heading, len(members)) for members in spans]


def display(filled: Filled) -> Display:
    """The layout of `filled`."""
    sub_columns = tuple(_sub_columns(filled))
    rank = {(sub.column.key, sub.side): _ranks(filled, sub) for sub in sub_columns}
    marks = _Marks()
    lines = []
    for index, row in enumerate(filled.rows):
        label_marks = marks.of(row.note) + ((ADDED_MARK,) if row.added else ())
        cells = tuple(
            _paper(row.cells[sub.column.key], rank[sub.column.key, "paper"][index], marks)
            if sub.side == "paper"
            else _ours(row.cells[sub.column.key], sub.column.digits, rank[sub.column.key, "ours"][index])
            for sub in sub_columns
        )
        runs = tuple(
            (column.key, row.cells[column.key].runs)
            for column in filled.columns
            if row.cells[column.key].runs
        )
        lines.append(Line(row.shown, label_marks, tuple(row.facts.values()), row.rule_before, cells, runs))
    added = (
        ((ADDED_MARK, "An added row; the paper's table does not have it."),)
        if any(r.added for r in filled.rows)
        else ()
    )
    return Display(
        row_title=filled.row_title,
        fact_titles=tuple(filled.rows[0].facts) if filled.rows else (),
        sub_columns=sub_columns,
        lines=tuple(lines),
        footnotes=(*marks.met(), *added),
        remarks=tuple(_remarks(filled, lines)),
    )


class _Marks:
    """Footnotes by their text: the same text has the same mark, a to z, then aa, ab, ..."""

    def __init__(self) -> None:
        self._by_text: dict[str, str] = {}

    def of(self, text: str | None) -> tuple[str, ...]:
        """The mark of `text`, as a tuple; none for no text."""
        if not text:
            return ()
        return (self._by_text.setdefault(text, _letters(len(self._by_text))),)

    def met(self) -> Iterator[tuple[str, str]]:
        return ((mark, text) for text, mark in self._by_text.items())


def _letters(index: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _sub_columns(filled: Filled) -> Iterator[SubColumn]:
    """Both halves of every column that has a number of the paper, our half alone where it has none."""
    for column in filled.columns:
        cells = [row.cells[column.key] for row in filled.rows]
        has_paper = any(cell.paper is not None for cell in cells)
        if has_paper:
            yield SubColumn(column, "paper", first=True)
        yield SubColumn(column, "ours", first=not has_paper)


def _ranks(filled: Filled, sub: SubColumn) -> list[Rank]:
    """The rank of every row in a sub-column, among the numbers as printed; beside an added row stands no
    number of the paper's."""
    cells = [row.cells[sub.column.key] for row in filled.rows]
    if sub.side == "paper":
        papers = [None if row.added else cell.paper for row, cell in zip(filled.rows, cells, strict=True)]
        numbers = [None if paper is None else float(paper) for paper in papers]
    else:
        numbers = [
            None if cell.value is None else float(printed(cell.value, sub.column.digits)) for cell in cells
        ]
    return ranks(numbers, sub.column.better)


def _paper(cell: FilledCell, rank: Rank, marks: _Marks) -> Shown:
    note = cell.paper_note if cell.paper_note not in (ADDED_ROW, NOT_IN_PAPER) else None
    return Shown(
        cell.paper or DASH, rank=rank, marks=marks.of(note), hint="" if cell.paper else cell.paper_note or ""
    )


def _ours(cell: FilledCell, digits: int, rank: Rank) -> Shown:
    if cell.value is None:
        return Shown(DASH, hint=cell.reason or "")
    runs = ", ".join(f"seed {seed}: run {run}" for seed, run in zip(cell.seeds, cell.runs, strict=True))
    if cell.std is None:
        return Shown(printed(cell.value, digits), rank=rank, hint=runs)
    return Shown(
        printed(cell.value, digits), std=printed(cell.std, digits), n=len(cell.seeds), rank=rank, hint=runs
    )


def _remarks(filled: Filled, lines: list[Line]) -> Iterator[str]:
    shown = [cell for line in lines for cell in line.cells]
    if any(cell.rank for cell in shown):
        yield "The best number of a column is bold and the second best underlined, separately for the paper's numbers and ours."
    if any(cell.std for cell in shown):
        yield "Ours: mean ± sample standard deviation over the seeds (number of seeds)."
    yield from filled.notes
    yield from _empty_cells(filled)


def _empty_cells(filled: Filled) -> Iterator[str]:
    """One sentence that counts our empty cells by their reason."""
    cells = (cell for row in filled.rows for cell in row.cells.values())
    counts = Counter(cause for cell in cells for cause in cell.causes)
    shown = list(counts.items())[: MAX_REASONS if len(counts) > MAX_REASONS + 1 else None]
    told = [f"{literal(cause.rstrip('.'))} ({_cells(count)})" for cause, count in shown]
    if len(shown) < len(counts):
        told.append(f"{len(counts) - len(shown)} other reasons, all in {filled.table}.json")
    if told:
        yield f"Cells of ours without a number: {'; '.join(told)}."


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"
