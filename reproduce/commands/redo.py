"""Finished runs that are to be executed again: `invoke redo`.

    chosen = choose("5f0c2a9d1e77", site, store)     # a run, and the evaluations of its encoder
    print("\n".join(chosen.lines()))
    print("\n".join(mark(chosen, site, store)))

A marked run counts as not finished, so the next command that needs it executes it from scratch. Nothing is
deleted: its record stays in MLflow with the tag `superseded`, and its files move to `runs/superseded/`, where
no run looks for an encoder, a checkpoint or a result.

Evaluations are marked before the encoder that they used. A call that was interrupted leaves no evaluation of
an encoder that is trained again, and the same call marks the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.messages import InvalidError, counted
from reproduce.plan import Request
from reproduce.report import render
from reproduce.runs import lease
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.tracking.store import Store
    from reproduce.tracking.tags import Record

FOLDER = "superseded"
"""Folder in the folder of runs for the files of marked runs."""
HEARTBEAT = 10.0
"""Heartbeat of the lease under which a run's folder is moved; the lease moves with the folder."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Finished runs to be marked, evaluations first."""

    runs: tuple[Record, ...]
    because: Mapping[str, str]
    """Id of the run whose encoder an evaluation used, by the evaluation's id, unless it was named itself."""
    kept: tuple[Record, ...]
    """Evaluations of these runs' encoders that stay finished, as the user asked."""
    shown: Mapping[str, tuple[str, ...]]
    """Cells of the reports on disk that cite a run, by its id."""
    unfinished: tuple[str, ...]
    """One line for each named run that is not finished."""

    def lines(self) -> Iterator[str]:
        """Yield one line for each run with what depends on it."""
        for run in self.runs:
            spec_id = run.state.spec_id
            needs = (
                f", an evaluation of the encoder of {self.because[spec_id]}"
                if spec_id in self.because
                else ""
            )
            yield f"again  {spec_id}  {run.state.name}{needs}{self._cells(spec_id)}"
        for run in self.kept:
            spec_id = run.state.spec_id
            yield f"kept   {spec_id}  {run.state.name}: it evaluated the encoder before{self._cells(spec_id)}"
        yield from self.unfinished

    def _cells(self, spec_id: str) -> str:
        return f"; shown in {', '.join(self.shown[spec_id])}" if spec_id in self.shown else ""


def choose(asked: str | Request, site: Site, store: Store, *, only: bool = False) -> Chosen:
    """Return the finished runs that a user names, and all finished evaluations of their encoders.

    Args:
        asked: id of a run, the beginning of one, or MLflow's id; or a part of a table.
        only: True to leave the evaluations as they are.

    Raises:
        LookupError: no such run exists, or several ids begin like this.
        ValueError: the run, or every run of this part, is not finished.
        ConnectionError: the tracking store does not answer.
    """
    if isinstance(asked, Request):
        return _of_table(asked, site, store, only=only)
    found = store.named(asked)
    if found.state.state != "finished":
        raise InvalidError(_unfinished(found))
    return _chosen([found], (), site, store, only=only)


def _of_table(request: Request, site: Site, store: Store, *, only: bool) -> Chosen:
    """Return the finished runs of a part of a table, and all finished evaluations of their encoders."""
    known = store.records(spec.id for spec in request.specs())
    finished = [record for record in known.values() if record.state.state == "finished"]
    if not finished:
        raise InvalidError(
            f"None of these runs of {request} is finished: `invoke {request.table}` executes them anyway."
        )
    others = [_unfinished(record) for record in known.values() if record.state.state != "finished"]
    return _chosen(finished, others, site, store, only=only)


def _unfinished(record: Record) -> str:
    state = record.state
    return (
        f"Run {state.spec_id} ({state.name}) is not finished but {state.state} ({state.reason}): the next "
        "command that needs it executes it anyway."
    )


def _chosen(
    named: list[Record], unfinished: Iterable[str], site: Site, store: Store, *, only: bool
) -> Chosen:
    """Return the named runs with what depends on them."""
    runs = {run.state.spec_id: run for run in named}
    because: dict[str, str] = {}
    kept: dict[str, Record] = {}
    for run in named:
        for evaluation in store.evaluations(run):
            spec_id = evaluation.state.spec_id
            if spec_id in runs:
                continue
            if only:
                kept[spec_id] = evaluation
            else:
                runs[spec_id], because[spec_id] = evaluation, run.state.spec_id
    return Chosen(
        runs=tuple(sorted(runs.values(), key=lambda run: (run.is_pretraining, run.state.spec_id))),
        because=because,
        kept=tuple(kept.values()),
        shown=_cells({*runs, *kept}, site.reports),
        unfinished=tuple(unfinished),
    )


def _cells(ids: set[str], reports: Path) -> dict[str, tuple[str, ...]]:
    """Return the cells that cite each of these runs, such as `table8 (smoke): BYOL/acc`.

    A damaged report has none.
    """
    found: dict[str, list[str]] = {}
    for path in (path for folder in sorted(reports.glob("*/")) for path in render.tables_in(folder)):
        with suppress(ValueError):
            table = render.read(path)
            for row in table.rows:
                for key, cell in row.cells.items():
                    for run in ids & set(cell.runs):
                        found.setdefault(run, []).append(f"{table.table} ({table.scale}): {row.label}/{key}")
    return {run: tuple(cells) for run, cells in found.items()}


def mark(chosen: Chosen, site: Site, store: Store) -> list[str]:
    """Mark the runs, and return the lines to print.

    Raises:
        ValueError: a process executes one of the runs; it and those after it are unchanged.
        OSError: a run's folder cannot be moved.
        ConnectionError: the tracking store does not answer.
    """
    note = f"by `invoke redo` on {datetime.now().astimezone():%Y-%m-%d %H:%M}"
    for run in chosen.runs:
        with _aside(site.runs, run):
            store.supersede(run.state.spec_id, note)
    number = len(chosen.runs)
    what, its = ("It is", "Its record stays") if number == 1 else ("They are", "Their records stay")
    return [
        f"{counted(number, 'run')} marked. {what} executed again by the next command that needs "
        f"{'it' if number == 1 else 'them'}. {its} in MLflow, and the files are in {site.runs / FOLDER}."
    ]


@contextmanager
def _aside(runs: Path, run: Record) -> Iterator[None]:
    """Move a run's folder away as its owner, and back if the block raises.

    Raises:
        ValueError: another process executes the run.
    """
    spec_id = run.state.spec_id
    folder, target = runs / spec_id, runs / FOLDER / f"{spec_id}-{run.state.run_id[:8]}"
    if not folder.exists():
        yield
        return
    try:
        lease.take(folder, spec_id, heartbeat=HEARTBEAT)  # no `with`: the lease moves with the folder
    except lease.BusyError as busy:
        raise InvalidError(f"{busy} It is unchanged.") from None
    target.parent.mkdir(exist_ok=True)
    while target.exists():  # a call that was interrupted
        target = target.with_name(f"{target.name}+")
    folder.rename(target)
    try:
        yield
    except BaseException:
        target.rename(folder)
        raise
