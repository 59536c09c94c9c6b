"""A table with its numbers: what the renderers print, as plain data that goes to `tableN.json` and back.

    filled = fill(table, seeds, finished, reasons)
    to_json(filled) / from_json(...) / loads(text, where)

Numbers are as printed from here on: per cent where the column's unit is `%`. A cell with some seeds missing
has no number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reproduce.messages import InvalidError
from reproduce.report import stats
from reproduce.report.markup import literal
from reproduce.report.observe import Finished, observe
from reproduce.report.table import Cell, Column, Row, Table, Verdict
from reproduce.spec import Pretrain

DECIMALS = 10
"""Numbers in files are rounded to this many decimals, which sheds binary noise (100 x 0.8156 =
81.55999999999999) and nothing else."""

NOT_IN_PAPER = "the paper's table has no such cell"
ADDED_ROW = "an added row: the paper's table does not have it"
SMOKE = "The smoke scale shows that everything runs; its numbers are not comparable with the paper's."
NO_RUN = "no run of this suite gives this number"


@dataclass(frozen=True, kw_only=True)
class FilledCell:
    """The paper's number and ours, or why either is missing."""

    paper: str | None
    """Digits as the paper printed them."""
    paper_note: str | None
    """A doubt or a dagger of the paper's number, or why there is none."""
    value: float | None
    """Mean over the seeds, as printed."""
    std: float | None
    """Sample standard deviation over the seeds, from two seeds on."""
    seeds: tuple[int, ...]
    """Seeds that are finished, also where others are missing and `value` is therefore empty."""
    runs: tuple[str, ...]
    """The id of each of these seeds' evaluations, which is the same in every tracking store."""
    reason: str | None
    """Why `value` is None, with the seeds that it concerns."""
    causes: tuple[str, ...]
    """The different reasons in `reason`, without the seeds."""


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
    """A sentence of the paper, and whether it holds on the paper's own numbers and on ours."""

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
        """The caption's first words, which renderers set in bold."""
        return _head(self.number)

    @property
    def body(self) -> str:
        """The caption without its first words."""
        return self.caption.removeprefix(self.head).lstrip()


def fill(table: Table, seeds: int, finished: Mapping[str, Finished], reasons: Mapping[str, str]) -> Filled:
    """The numbers of `seeds` seeds in every cell, the claims judged on them, and the caption.

    Args:
        finished: finished runs by spec id.
        reasons: why a run is not finished, by spec id.
    """
    rows = tuple(_row(row, table.columns, seeds, finished, reasons) for row in table.rows)
    verdicts = zip(table.claims, table.judge_paper(), _judge_ours(table, rows), strict=True)
    return Filled(
        table=table.name,
        number=table.number,
        title=table.title,
        scale=table.scale,
        caption=_caption(table, seeds),
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
    """A number with its decimals; the one place where numbers become text. A rounded zero has no sign."""
    text = f"{number:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def to_json(filled: Filled) -> dict[str, Any]:
    """Plain data for `tableN.json`; `paper` is a number there, and its digits as printed stand beside it."""
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
    """The inverse of `to_json`, after the data have been to a file and back.

    Raises:
        KeyError, TypeError: the data were not written by this version of `to_json`.
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
    """The table in a `tableN.json`.

    Args:
        where: what an error calls the file.

    Raises:
        ValueError: this version did not write it.
    """
    try:
        return from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{where} is not a report that this version wrote ({error}); render the table again or remove the file."
        raise InvalidError(message) from None


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


def _row(
    row: Row,
    columns: tuple[Column, ...],
    seeds: int,
    finished: Mapping[str, Finished],
    reasons: Mapping[str, str],
) -> FilledRow:
    cells = {column.key: _cell(row, column, seeds, finished, reasons) for column in columns}
    return FilledRow(
        label=row.label,
        shown=row.shown or row.label,
        facts=dict(row.facts),
        note=row.note,
        added=row.added,
        rule_before=row.rule_before,
        cells=cells,
    )


def _cell(
    row: Row, column: Column, seeds: int, finished: Mapping[str, Finished], reasons: Mapping[str, str]
) -> FilledCell:
    cell = row.cells.get(column.key, Cell())
    paper = None if cell.paper is None else cell.paper.value
    note = (ADDED_ROW if row.added else NOT_IN_PAPER) if cell.paper is None else cell.paper.note or None
    if cell.setting is not None:
        return FilledCell(
            paper=paper,
            paper_note=note,
            value=cell.setting,
            std=None,
            seeds=(),
            runs=(),
            reason=None,
            causes=(),
        )
    if cell.ours is None:
        reason = cell.why_not_ours or NO_RUN
        return FilledCell(
            paper=paper,
            paper_note=note,
            value=None,
            std=None,
            seeds=(),
            runs=(),
            reason=reason,
            causes=(reason,),
        )
    observations = observe(cell.ours, seeds, finished, reasons)
    missing = {
        observation.seed: observation.reason for observation in observations if observation.reason is not None
    }
    runs = {observation.seed: observation.spec for observation in observations if observation.run is not None}
    factor = 100 if column.unit == "%" else 1
    values = [factor * observation.value for observation in observations if observation.value is not None]
    std = None if missing else stats.sample_std(values)
    return FilledCell(
        paper=paper,
        paper_note=note,
        value=None if missing else round(stats.mean(values), DECIMALS),
        std=None if std is None else round(std, DECIMALS),
        seeds=tuple(runs),
        runs=tuple(runs.values()),
        reason=_reason(missing, seeds),
        causes=tuple(dict.fromkeys(missing.values())),
    )


def _reason(missing: Mapping[int, str], seeds: int) -> str | None:
    """Why a cell is empty: one reason if it is every seed's, else every reason with its seeds; None: nothing
    is missing."""
    by_reason: dict[str, list[str]] = {}
    for seed, reason in missing.items():
        by_reason.setdefault(reason, []).append(str(seed))
    if len(missing) == seeds and len(by_reason) == 1:
        return next(iter(by_reason))
    return (
        "; ".join(
            f"seed{'s' * (len(of) > 1)} {', '.join(of)} of {seeds}: {reason}"
            for reason, of in by_reason.items()
        )
        or None
    )


def _judge_ours(table: Table, rows: tuple[FilledRow, ...]) -> tuple[Verdict, ...]:
    """Every claim on our numbers, rounded as they are printed."""
    digits = {column.key: column.digits for column in table.columns}
    cells = {(row.label, key): cell for row in rows for key, cell in row.cells.items()}

    def number(label: str, key: str) -> float | None:
        value = cells[label, key].value
        return None if value is None else float(printed(value, digits[key]))

    return tuple(claim.judge(table.values(number)) for claim in table.claims)


def _caption(table: Table, seeds: int) -> str:
    """What the table shows and under which conditions, in full sentences."""
    measured = any(table.measured())
    sentences = [
        _head(table.number),
        f"{table.title.rstrip('.')}.",
        f"Scale: {literal(table.scale)}.",
        _data(table),
        f"Seeds: {seeds}." if measured else "",
        f"Changed settings: {literal(', '.join(table.changes))}." if table.changes else "",
        f"Left out: {table.left_out}." if table.left_out else "",
        table.stand_in if measured else "",
        *dict.fromkeys(ours.spec.protocol.caveat for *_, ours in table.measured()),
        SMOKE if table.scale == "smoke" and measured else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _head(number: str) -> str:
    """`Table 8 of the paper.`, `Tables 6 and 13 of the paper.`; empty for a table that is not the paper's."""
    return f"Table{'' if number.isdigit() else 's'} {number} of the paper." if number else ""


def _data(table: Table) -> str:
    """The data sets of the runs, in the order in which the table first names them."""
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
