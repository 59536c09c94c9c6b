"""The origin of a number, and the differences of two runs: `invoke why` and `invoke diff`.

    for line in why(Request(table="table8", rows="BYOL", columns="acc"), store, site):
        print(line)
    for line in difference("5f0c2a9d1e77", "0a1b2c3d4e5f", store):
        print(line)

Both read the store and start nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from reproduce.messages import UserError, clock, counted
from reproduce.plan import Request
from reproduce.report.observe import observe
from reproduce.report.table import Cell, Measured
from reproduce.runs import output
from reproduce.settings import Settings, field_types
from reproduce.spec import Spec
from reproduce.tracking.tags import title

if TYPE_CHECKING:
    from reproduce.report.table import Column, Row
    from reproduce.site import Site
    from reproduce.tracking.reuse import Reuse
    from reproduce.tracking.store import Store
    from reproduce.tracking.tags import Record

ABSENT = "–"
"""Sign for a setting or a metric that a run does not have."""
WIDTH = 116
"""Maximum number of columns of a list of settings."""


def why(request: Request, store: Store, site: Site) -> Iterator[str]:
    """Yield, for each cell of the request, its number, its runs, and the command that would fill it.

    Raises:
        LookupError, ValueError, TypeError: see `Request.build`.
        ConnectionError: the tracking server does not answer.
    """
    from reproduce.tracking.reuse import choose

    table = request.build()
    found = choose(store, table.specs(request.seeds), site)
    for number, (row, column) in enumerate((row, column) for row in table.rows for column in table.columns):
        if number:
            yield ""
        cell = row.cells.get(column.key)
        yield f"{table.name} at {request.scale} scale, row '{row.label}', column {column.key}{_paper(cell)}"
        if cell is None or cell.ours is None:
            reason = cell.why_not_ours if cell else ""
            yield f"  ours: none. {reason or 'No run fills this cell.'}"
            yield from (f"  to fill it: {each}" for each in _choices(request, row, column))
            continue
        yield from _cell(request, row, column, cell.ours, found, store)


def _paper(cell: Cell | None) -> str:
    if cell is None or cell.paper is None:
        return ""
    return f"; the paper: {cell.paper.value or ABSENT}{f' ({cell.paper.note})' if cell.paper.note else ''}"


def _cell(
    request: Request, row: Row, column: Column, ours: Measured, found: Reuse, store: Store
) -> Iterator[str]:
    """Yield the seeds of a cell, each with its runs, upstream last; then the runs that are missing."""
    factor, unit = (100, " %") if column.unit == "%" else (1, "")
    todo: dict[str, Spec] = {}
    observed = observe(ours, request.seeds, found.finished, found.changed)
    for seen, spec in zip(observed, ours.runs(request.seeds), strict=True):
        value = ABSENT if seen.value is None else f"{factor * seen.value:.{column.digits}f}{unit}"
        yield f"  seed {seen.seed}: {ours.metric} {value}{f' ({seen.reason})' if seen.reason else ''}"
        runs: tuple[Spec, ...] = (spec, *spec.needs())
        for run in runs:
            yield from (f"    {line}" for line in _run(run, store, found))
            if run.id not in found.finished:
                todo[run.id] = run
    if todo:
        yield f"  {counted(len(todo), 'run')} missing; to fill it: {_command(request, row, column)}"
    else:
        command = _command(request, row, column)
        redo = command.replace("invoke ", "invoke redo ", 1)
        yield f"  to make it again: {redo} && {command}"


def _choices(request: Request, row: Row, column: Column) -> Iterator[str]:
    """Yield the commands that fill a cell without a run by another choice of baselines."""
    cell = row.cells.get(column.key, Cell())
    for kind, instead in (("released", cell.released), ("trained", cell.trained)):
        if not isinstance(instead, Measured) or kind == request.baselines:
            continue
        other = replace(request, rows=row.label, columns=column.key, baselines=kind)
        try:
            runs = list(other.build().measured())
        except UserError:  # the row has no setting that the request changes
            continue
        if runs:  # none at a scale without a stand-in for the data
            yield _command(other, row, column)


def _command(request: Request, row: Row, column: Column) -> str:
    """Return the command that fills one cell."""
    return replace(request, rows=row.label, columns=column.key).command()


def _run(spec: Spec, store: Store, found: Reuse) -> Iterator[str]:
    """Yield one run's title, state, settings and artifacts, and whether it is reused."""
    yield f"{spec.name} {spec.id}  {title(spec)}"
    record = store.record_of(spec.id, found.finished.get(spec.id))
    if record is None:
        yield "  no run with these settings"
    else:
        state = record.state
        reason = f": {state.reason}" if state.reason else ""
        started = f"started {state.started.astimezone():%Y-%m-%d %H:%M}"
        yield f"  {state.state}{reason}, {started}{_duration(record)}"
        if spec.id in found.changed:
            yield f"  not reused: {found.changed[spec.id]}"
        if spec.id in found.unchecked:
            yield f"  reused unchecked: {found.unchecked[spec.id]}"
        yield f"  code: commit {record.commit}{' with uncommitted changes' if record.dirty else ''}"
        yield from (f"  {name.replace('_', ' ')}: {value}" for name, value in record.digests.items())
        yield f"  MLflow: run {state.run_id}, {record.address}"
    settings = ", ".join(
        f"{path}={value}" for path, value in _changed(spec) if not path.startswith("encoder.")
    )
    yield from textwrap.wrap(
        f"settings that differ from the defaults: {settings}",
        min(WIDTH, output.width(WIDTH)),
        initial_indent="  ",
        subsequent_indent=" " * 12,
        break_long_words=False,
    )


def _changed(settings: Settings, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the names of the components, and each setting that differs from the default of its own class."""
    differing = dict(settings.changed())
    for name in field_types(type(settings)):
        value, path = getattr(settings, name), f"{prefix}{name}"
        if isinstance(value, Settings):
            if value.name != name:
                yield path, value.name
            yield from _changed(value, f"{path}.")
        elif name in differing:
            yield path, value


def _duration(record: Record) -> str:
    """Return the duration of a run that has ended and its device, as the end of a line; empty if unknown."""
    if record.ended is None:
        return ""
    took = clock((record.ended - record.state.started).total_seconds())
    device = f" on {record.device}" if record.device else ""
    if record.attempts is not None and record.attempts > 1:
        return f", ended {took} later, after {record.attempts} attempts{device}"
    return f", took {took}{device}"


def difference(first: str, second: str, store: Store) -> Iterator[str]:
    """Yield the settings in which two runs differ, and the metrics of both.

    A pretraining and an evaluation are compared by the settings of the encoder.

    Args:
        first, second: ids of runs, the beginnings of ids, or MLflow's ids.

    Raises:
        LookupError: no such run exists, or several ids begin like this.
        ConnectionError: the tracking server does not answer.
    """
    runs = [store.named(name) for name in (first, second)]
    for sign, run in zip("ab", runs, strict=True):
        state = run.state
        yield f"{sign}  {state.spec_id}  {state.name}, {state.scale}, {state.state}"
    what, settings = "settings", [run.settings for run in runs]
    if runs[0].is_pretraining != runs[1].is_pretraining:
        # An evaluation has the settings of its encoder's pretraining under other names.
        what, settings = "settings of the encoder", [_of_encoder(run) for run in runs]
    differing = list(_pairs(settings, only_different=True))
    yield f"{what}: {len(differing)} of {len({key for each in settings for key in each})} differ"
    yield from _columns(differing)
    metrics = [{key: f"{value:.6g}" for key, value in run.state.metrics.items()} for run in runs]
    measured = list(_pairs(metrics, only_different=False))
    yield "final metrics:" if measured else "final metrics: none"
    yield from _columns(measured)


def _of_encoder(run: Record) -> dict[str, str]:
    """Return the settings of the encoder that a run trained or evaluated."""
    return run.settings if run.is_pretraining else run.encoder


def _pairs(values: list[dict[str, str]], *, only_different: bool) -> Iterator[tuple[str, str, str]]:
    """Yield (name, value of the first, value of the second) in the order of the names."""
    first, second = values
    for key in sorted(first.keys() | second.keys()):
        pair = first.get(key, ABSENT), second.get(key, ABSENT)
        if pair[0] != pair[1] or not only_different:
            yield key, *pair


def _columns(lines: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    lines = list(lines)
    widths = [max((len(line[place]) for line in lines), default=0) for place in (0, 1)]
    for name, one, other in lines:
        yield f"  {name:<{widths[0]}}  {one:<{widths[1]}}  {other}"
