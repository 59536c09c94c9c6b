"""The layout of a filled table, the same in every format: sub-columns, emphasis, footnote marks, and remarks.

    shown = display(filled)

The paper's number and our number are in two sub-columns of one column. This module is independent of the
formats; text is markup (`markup.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from reproduce.messages import counted
from reproduce.report.filled import ADDED_ROW, NOT_IN_PAPER, Filled, FilledCell
from reproduce.report.markup import literal, plain
from reproduce.report.stats import printed
from reproduce.report.table import Column
from reproduce.report.verdicts import FEW_SEEDS, CellVerdict, Emphasis, JudgedClaim

DASH = "–"
"""Printed in an empty cell."""
ADDED_MARK = "*"
"""Footnote mark of an added row."""
FORMULAS = {
    r"\bL_([a-z])\b": r"$\\mathcal{L}_\1$",
    r"\(K=(\d+)\)": r"($K = \1$)",
    r"\blambda_([a-z]+)=(\d+)e-(\d+)\b": r"$\\lambda_\1 = \2 \\times 10^{-\3}$",
    r"\blambda_([a-z]+)=([\d.]+)\b": r"$\\lambda_\1 = \2$",
}
"""Formulas by the text of a row's label that they replace."""
WIDE, NUMBER = 75, 9
"""Number of characters of a row beyond which a table leaves no room next to it, and those of a number."""
EFFECT_DIGITS = 2
"""Decimals of a contrast and of its interval."""
SIGNS: Mapping[CellVerdict, str] = {"reproduced": "=", "not reproduced": "≠", "inconclusive": "?"}
"""Signs of the verdicts on our numbers against the paper's."""
MAX_REASONS = 5
"""Maximum number of reasons for empty cells under the table; the `.json` has the reason of every cell."""


@dataclass(frozen=True)
class SubColumn:
    """The paper's half of a column, or our half."""

    column: Column
    side: Literal["paper", "ours"]
    first: bool
    """True if it is the left one of its column."""

    @property
    def heading(self) -> str:
        """The column's title with its unit."""
        unit, title = self.column.unit, self.column.title
        return title if not unit or unit in title else f"{title} ({unit})"


@dataclass(frozen=True)
class Shown:
    """Content of one cell of a sub-column."""

    number: str
    """Digits, or a dash."""
    std: str = ""
    """Digits of the standard deviation; empty for a single seed and for the paper's number."""
    n: int = 0
    """Number of seeds behind `std`."""
    emphasis: Emphasis = ""
    against: str = ""
    """Sign of the verdict on our number against the paper's."""
    marks: tuple[str, ...] = ()
    """Marks of the footnotes."""
    why: str = ""
    """Numbers of the reasons for an empty cell of ours, such as `1,3`; empty if all have the same reason."""
    hint: str = ""
    """Runs behind the number, or why it is missing, as plain text."""


@dataclass(frozen=True)
class Line:
    """One row as shown."""

    name: str
    """Label by which `--rows` and `invoke why` find the row; unique, as plain text."""
    label: str
    """Printed name, as markup; rows that differ in their facts alone have the same."""
    distinct: str
    """Printed name for HTML and Markdown, which extends `label` if other rows have it, too."""
    listed: str
    """Name in a list of rows, where no facts stand next to it, as markup."""
    marks: tuple[str, ...]
    facts: tuple[str, ...]
    rule_before: bool
    cells: tuple[Shown, ...]
    runs: tuple[tuple[str, tuple[str, ...]], ...]
    """Ids of the runs behind each of our numbers, by column key."""


@dataclass(frozen=True)
class Display:
    """The whole table as shown."""

    row_title: str
    fact_titles: tuple[str, ...]
    sub_columns: tuple[SubColumn, ...]
    lines: tuple[Line, ...]
    sided: bool
    """False if all numbers are ours and the table is not the paper's, so that no side needs a name."""
    footnotes: tuple[tuple[str, str], ...]
    """(mark, text), in order of first use."""
    remarks: tuple[str, ...]
    """Sentences under the table: how to read it, and the table's notes."""
    reasons: tuple[tuple[str, int], ...]
    """(reason, number of cells) of our empty cells; the last one may stand for several. Each is named by its
    place, from 1 on (`Shown.why`)."""
    ours_empty: str
    """Name of the empty cells in print."""
    claims: tuple[tuple[JudgedClaim, str], ...]
    """Each claim with what decides it on our numbers, unless one reason holds for all of them."""
    verdicts: str
    """Why our numbers decide no claim, if one reason holds for all of them."""

    @property
    def wide(self) -> bool:
        """True if the table takes the whole width of a page."""
        left = ((line.distinct, *line.facts) for line in self.lines)
        names = sum(max(len(plain(text)) for text in column) for column in zip(*left, strict=True))
        return names + NUMBER * len(self.sub_columns) > WIDE

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(heading, number of sub-columns) over neighbouring columns, empty headings included.

        Empty if no column has a heading.
        """
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

    @property
    def headings_by_key(self) -> dict[str, str]:
        """Name of every column with its group, as markup."""
        columns = [sub.column for sub in self.sub_columns]
        return {column.key: f"{column.group} {column.title}".strip() for column in columns}

    @property
    def empty_cells(self) -> tuple[str, ...]:
        """One sentence that counts our empty cells by their reason, numbered as next to the dashes."""
        parts = [
            (f"({place}) " if len(self.reasons) > 1 else "")
            + (f"{reason} ({counted(number, 'cell')})" if number else reason)
            for place, (reason, number) in enumerate(self.reasons, start=1)
        ]
        return (f"{self.ours_empty}: {'; '.join(parts)}.",) if parts else ()


def display(filled: Filled) -> Display:
    """Return the layout of `filled`."""
    sub_columns = tuple(_sub_columns(filled))
    marks = _Marks()
    causes = _causes(filled)
    lines = []
    names = Counter(row.shown for row in filled.rows)
    for row in filled.rows:
        named = with_formulas(row.label)
        # A label of settings alone, as in Table 11, would only repeat the facts.
        distinct = named if names[row.shown] > 1 and named.startswith(row.shown) else row.shown
        label_marks = marks.of(row.note) + ((ADDED_MARK,) if row.added else ())
        cells = tuple(
            _paper(row.cells[sub.column.key], marks)
            if sub.side == "paper"
            else _ours(row.cells[sub.column.key], sub.column.digits, filled.alpha, causes)
            for sub in sub_columns
        )
        runs = tuple(
            (column.key, row.cells[column.key].runs)
            for column in filled.columns
            if row.cells[column.key].runs
        )
        lines.append(
            Line(
                row.label,
                row.shown,
                distinct,
                named if names[row.shown] > 1 else row.shown,
                label_marks,
                tuple(row.facts.values()),
                row.rule_before,
                cells,
                runs,
            )
        )
    added = "An added row; the paper's table does not have it." if filled.number else "An added row."
    has_added = any(row.added for row in filled.rows)
    sided = bool(filled.number) or any(sub.side == "paper" for sub in sub_columns)
    reasons = {evidence(claim) for claim in filled.claims}
    same = len(reasons) == 1 and len(filled.claims) > 1
    return Display(
        row_title=filled.row_title,
        fact_titles=tuple(filled.rows[0].facts) if filled.rows else (),
        sub_columns=sub_columns,
        lines=tuple(lines),
        sided=sided,
        footnotes=(*marks.used(), *(((ADDED_MARK, added),) if has_added else ())),
        remarks=tuple(_remarks(filled, sub_columns, lines)),
        reasons=_reasons(filled, causes),
        ours_empty="Our empty cells" if filled.number else "Empty cells",
        claims=tuple((claim, "" if same else evidence(claim)) for claim in filled.claims),
        verdicts=f"{'On our numbers' if sided else 'Verdicts'}: {reasons.pop()}." if same else "",
    )


def with_formulas(label: str) -> str:
    """Return a row's label as markup, with its losses and its settings as formulas."""
    text = literal(label)
    for pattern, formula in FORMULAS.items():
        text = re.sub(pattern, formula, text)
    return text


def confidence(alpha: float) -> str:
    """Return the confidence of intervals in words, such as `95 %`."""
    return f"{100 * (1 - alpha):.10g} %"


class _Marks:
    """Footnotes by their text: the same text has the same mark, a to z, then aa, ab, ..."""

    def __init__(self) -> None:
        self._by_text: dict[str, str] = {}

    def of(self, text: str | None) -> tuple[str, ...]:
        """Return the mark of `text` as a tuple; an empty text has none."""
        if not text:
            return ()
        return (self._by_text.setdefault(text, _letters(len(self._by_text))),)

    def used(self) -> Iterator[tuple[str, str]]:
        return ((mark, text) for text, mark in self._by_text.items())


def _letters(index: int) -> str:
    """Return the mark with that index: a, b, ..., z, aa, ab, ..."""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _sub_columns(filled: Filled) -> Iterator[SubColumn]:
    """Yield both halves of every column in which the paper has a number, and only our half of the others."""
    for column in filled.columns:
        cells = [row.cells[column.key] for row in filled.rows]
        has_paper = any(cell.paper is not None for cell in cells)
        if has_paper:
            yield SubColumn(column, "paper", first=True)
        yield SubColumn(column, "ours", first=not has_paper)


def _paper(cell: FilledCell, marks: _Marks) -> Shown:
    note = cell.paper_note if cell.paper_note not in (ADDED_ROW, NOT_IN_PAPER) else None
    return Shown(
        cell.paper or DASH,
        emphasis=cell.paper_emphasis,
        marks=marks.of(note),
        hint="" if cell.paper else cell.paper_note or "",
    )


def _ours(cell: FilledCell, digits: int, alpha: float, causes: Mapping[str, int]) -> Shown:
    if cell.value is None:
        places = sorted({min(list(causes).index(cause), _num_listed(causes)) + 1 for cause in cell.causes})
        why = ",".join(map(str, places)) if len(causes) > 1 else ""
        return Shown(DASH, hint=cell.reason or "", why=why)
    parts = [f"seed {seed}: run {run}" for seed, run in zip(cell.seeds, cell.runs, strict=True)]
    if cell.interval is not None:
        low, high = (printed(end, digits) for end in cell.interval)
        parts.insert(0, f"{confidence(alpha)} interval {low} to {high}")
    if cell.against in SIGNS:
        parts.insert(0, f"{cell.against}{f' ({cell.against_reason})' if cell.against_reason else ''}")
    return Shown(
        printed(cell.value, digits),
        std="" if cell.std is None else printed(cell.std, digits),
        n=0 if cell.std is None else len(cell.seeds),
        emphasis=cell.emphasis,
        against=SIGNS.get(cell.against, "") if cell.against else "",
        hint=", ".join(parts),
    )


def _remarks(filled: Filled, sub_columns: Sequence[SubColumn], lines: Sequence[Line]) -> Iterator[str]:
    shown = [cell for line in lines for cell in line.cells]
    halves = any(sub.side == "paper" for sub in sub_columns)
    whose = "Our numbers" if halves else "Numbers"
    cells = [cell for row in filled.rows for cell in row.cells.values()]
    if any(cell.paper_emphasis for cell in cells):
        yield "Bold and underline of the paper's numbers are as printed there."
    if any(cell.emphasis == "bold" for cell in cells):
        yield (
            f"{whose}: the best mean of each column and all that cannot be told from it are bold ($t$ tests "
            f"by seed, Holm's method over the column, level {filled.alpha:g})."
        )
    if any(cell.emphasis == "underline" for cell in cells):
        yield (
            f"{whose}: the best of each column is underlined; fewer than {FEW_SEEDS} seeds decide nothing."
        )
    if any(cell.std for cell in shown):
        yield f"{whose} are the mean ± sample standard deviation over the seeds (number of seeds)."
    if any(cell.std is not None and cell.spread == "evaluations" for cell in cells):
        yield (
            "The spread of a released encoder is that of its evaluation; it says nothing about trainings and "
            "is compared with none."
        )
    if filled.scale == "paper" and any(column.margin is not None for column in filled.columns):
        yield from _margins(filled)
    if any(claim.effect is not None for claim in filled.claims):
        yield (
            "Claims on our numbers: for each, the contrast that decides it, with its "
            f"{confidence(filled.alpha)} interval over training seeds, paired where the seeds are the same. "
            "A claim is supported if all its contrasts exceed their margins, contradicted if one falls short "
            f"($t$ tests, Holm's method over the claims of the table, level {filled.alpha:g})."
        )
    yield from filled.notes


def evidence(claim: JudgedClaim) -> str:
    """Return what decides a claim on our numbers, as markup: the reason, and the effect with its interval."""
    parts = [claim.reason] if claim.reason else []
    if effect := claim.effect:
        number = f"{effect.contrast}: {printed(effect.value, EFFECT_DIGITS)}"
        if effect.low is not None and effect.high is not None:
            low, high = (printed(end, EFFECT_DIGITS) for end in (effect.low, effect.high))
            number += f" [{low}, {high}], n = {effect.n}"
        parts.append(number)
    return literal("; ".join(parts))


def _margins(filled: Filled) -> Iterator[str]:
    """Yield how to read the signs of the comparison with the paper, and each margin with its source."""
    meanings = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items())
    yield (
        f"Ours against the paper: {meanings}. A number is reproduced if its {confidence(filled.alpha)} "
        "interval lies within the margin around the printed one."
    )
    for margin in dict.fromkeys(column.margin for column in filled.columns):
        if margin is not None:
            titles = [column.title for column in filled.columns if column.margin == margin]
            yield f"Margin of {', '.join(titles)}: {margin.value:g} ({margin.source})."


def _causes(filled: Filled) -> dict[str, int]:
    """Return how many of our cells are empty for each reason, in the order of the table."""
    cells = (cell for row in filled.rows for cell in row.cells.values())
    return dict(Counter(cause for cell in cells for cause in cell.causes))


def _num_listed(causes: Mapping[str, int]) -> int:
    """Return how many reasons are listed; a single one is never summarised."""
    return MAX_REASONS if len(causes) > MAX_REASONS + 1 else len(causes)


def _reasons(filled: Filled, causes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return each reason as markup with its number of cells; all after MAX_REASONS are one entry without."""
    shown = list(causes.items())[: _num_listed(causes)]
    listed = [(literal(cause.rstrip(".")), number) for cause, number in shown]
    if rest := len(causes) - len(shown):
        listed.append((f"{counted(rest, 'other reason')}, listed in {filled.table}.json", 0))
    return tuple(listed)
