"""A table's report in the terminal: `invoke show`.

    for line in show("table8", "smoke", site, store):
        print(line)

The numbers are those of `reports/<scale>/tableN.json`. Runs that the store contains and the report lacks, or
that have other numbers now, make the report stale. Starts nothing and writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproduce.messages import InvalidError, NotFoundError, from_here, unknown
from reproduce.plan import SCALES, Request, table_names
from reproduce.report import render, terminal
from reproduce.report.filled import DECIMALS, Filled, loads
from reproduce.report.observe import observe
from reproduce.report.table import baselines_in, settings_in
from reproduce.runs import output
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.report.filled import FilledCell
    from reproduce.report.observe import Observation
    from reproduce.tracking.store import Store


def show(table: str, scale: str, site: Site, store: Store) -> list[str]:
    """Return the lines of a table, and one that counts its claims by verdict.

    Raises:
        NotFoundError: the table, the scale or the report does not exist.
        InvalidError: the report cannot be read, or is stale; the message contains the command that renders
            it.
        ConnectionError: the tracking store does not answer.
    """
    for kind, asked, known in (("table", table, table_names()), ("scale", scale, SCALES)):
        if asked not in known:
            raise NotFoundError(unknown(kind, asked, known))
    request, path = Request(table=table, scale=scale), site.reports / scale / f"{table}.json"
    try:
        filled = loads(path.read_bytes(), str(path))
        lines = [*terminal.lines(filled, output.width()), render.summary(filled)]
    except FileNotFoundError:
        raise NotFoundError(
            f"{request} was not rendered yet: {_command(request)} renders it from finished runs."
        ) from None
    except (OSError, ValueError):
        raise InvalidError(
            f"The report of {request} is damaged or of another version: {_command(request)} renders it again."
        ) from None
    made_by = _request(filled)
    if _is_stale(filled, made_by, site, store):
        raise InvalidError(
            f"Runs of {request} have finished since its report was rendered: {_command(made_by)} renders it "
            "again."
        )
    return [*lines[:-1], from_here(f"{lines[-1]}: {path.with_suffix('.md')}")]


def _command(request: Request) -> str:
    return f"`{request.command()} --render-only`"


def _request(filled: Filled) -> Request:
    """Return the request of a report, for its whole table."""
    cells = [cell for row in filled.rows for cell in row.cells.values()]
    return Request(
        table=filled.table,
        scale=filled.scale,
        seeds=max((seed + 1 for cell in cells for seed in cell.seeds), default=1),
        changes=tuple(settings_in(filled.changes)),
        baselines=baselines_in(filled.changes),
    )


def _is_stale(filled: Filled, request: Request, site: Site, store: Store) -> bool:
    """Return True if the store has a run that the report lacks, or another number for one.

    Rows that the table does not have are the user's, and are not compared.
    """
    from reproduce.tracking.reuse import choose

    shown = {(row.label, key): cell for row in filled.rows for key, cell in row.cells.items()}
    measured = [
        (ours, column, shown[row.label, column.key])
        for row, column, ours in request.build().measured()
        if (row.label, column.key) in shown
    ]
    finished = choose(
        store, [spec for ours, *_ in measured for spec in ours.runs(request.seeds)], site
    ).finished
    return any(
        _differs(observe(ours, request.seeds, finished, {}), cell, 100 if column.unit == "%" else 1)
        for ours, column, cell in measured
    )


def _differs(now: list[Observation], cell: FilledCell, factor: float) -> bool:
    """Return True if a cell lacks a finished run, or if its numbers are others now."""
    if any(each.run is not None and each.spec not in cell.runs for each in now):
        return True
    values = tuple(round(factor * each.value, DECIMALS) for each in now if each.value is not None)
    return bool(cell.values) and len(values) == len(cell.values) and values != cell.values
