"""Faults of finished runs, reports and data: `invoke verify`.

    found = verify(site, store)
    print("\n".join(found.lines()))         # one line for each fault, then a summary
    recalled(site, store)                   # the faults that are still there, for `invoke status`

Every file is read. A record must be readable on another machine (`tracking/portable.py`). An encoder must
have the tensors, the network and the run that its file and its evaluations name. A report must be as it was
rendered, with the numbers of the runs that it cites. With --data, each split of a data set must have the
content that was recorded.

The faults are kept in `runs/verified.json`. A fault is forgotten as soon as its file changes, or another
finished run takes the place of its record.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reproduce import messages
from reproduce.commands.verify_data import verify_data
from reproduce.messages import counted, first_line
from reproduce.nn.encoder import FILE, check_backbone
from reproduce.plan import BASELINES, SCALES, NotHereError, Request, table_names
from reproduce.report import publish, render, stats
from reproduce.report.filled import DECIMALS, Filled, FilledCell
from reproduce.report.table import Column
from reproduce.runs import encoder_file
from reproduce.runs.files import write_atomic
from reproduce.site import Site
from reproduce.tracking import portable
from reproduce.tracking.tags import ENCODER

if TYPE_CHECKING:
    from reproduce.report.observe import Finished
    from reproduce.tracking.store import Store
    from reproduce.tracking.tags import Record

KEPT = "verified.json"
"""File in the folder of runs that contains the faults."""

Kind = Literal["record", "encoder", "report", "split"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is not as it was recorded."""

    kind: Kind
    about: str
    """Id of a run, or the path of a report."""
    problem: str
    """The problem, and what would work."""
    path: str = ""
    """File whose change may have mended it; empty if it is about no file."""
    changed: tuple[int, int] | None = None
    """Time of the file's last change and its size; None if it did not exist."""
    run_id: str = ""
    """Finished run in the tracking store that had the fault; empty if it is about none."""

    def __str__(self) -> str:
        return f"{self.kind:<7}  {self.about}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """The outcome of a check."""

    checked: Mapping[Kind, int]
    """Number of things of each kind that were looked at."""
    faults: tuple[Fault, ...]

    @property
    def code(self) -> int:
        """Exit code: 1 if there is a fault."""
        return int(bool(self.faults))

    def lines(self) -> Iterator[str]:
        """Yield one line for each fault, and a summary."""
        yield from map(str, self.faults)
        looked = ", ".join(counted(number, kind) for kind, number in self.checked.items()) or "nothing"
        yield f"Checked {looked}: {counted(len(self.faults), 'fault')}."


Check = Callable[[Site, "Store", Sequence["Record"]], Iterator[tuple[Kind, Fault | None]]]
"""A function that looks at one thing after the other, given all finished runs; None is for no fault."""


def verify(site: Site, store: Store, *, data: bool = False) -> Found:
    """Look at everything, and keep the faults for `recalled`.

    Args:
        data: read every byte of the data sets, too. This takes long, so each good split is printed at once.

    Raises:
        ConnectionError: the tracking store does not answer.
        OSError: the faults cannot be kept.
    """
    records = store.complete()
    checked: Counter[Kind] = Counter({"split": 0} if data else {})
    faults = []
    for check in (*CHECKS, _data) if data else CHECKS:
        for kind, fault in check(site, store, records):
            checked[kind] += 1
            faults += [fault] if fault else []
    if site.runs.is_dir():
        _keep(site.runs / KEPT, faults)
    return Found(checked=checked, faults=tuple(faults))


def recalled(site: Site, store: Store) -> list[str]:
    """Return a line for each fault of the last `verify` that may still be there, under a line of its age."""
    kept, age = _kept(site.runs / KEPT)
    if not kept:
        return []
    finished = {
        run.run_id for run in store.finished({fault.about for fault in kept if fault.run_id}).values()
    }
    there = [
        fault
        for fault in kept
        if (not fault.run_id or fault.run_id in finished)
        and (not fault.path or _changed(Path(fault.path)) == fault.changed)
    ]
    if not there:
        return []
    return [
        f"`invoke verify`, {messages.age(max(0.0, age))} ago: {counted(len(there), 'fault')}",
        *map(str, there),
    ]


def _keep(path: Path, faults: Sequence[Fault]) -> None:
    """Write the faults of a check.

    Raises:
        OSError: the file cannot be written.
    """
    content = {"at": time.time(), "faults": [asdict(fault) for fault in faults]}
    write_atomic(path, json.dumps(content, indent=1) + "\n", durable=True)


def _kept(path: Path) -> tuple[list[Fault], float]:
    """Return the faults in a file and the seconds since they were found; no faults if it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        entries = [entry | {"changed": _pair(entry["changed"])} for entry in content["faults"]]
        faults = [Fault(**entry) for entry in entries]
        texts = [text for fault in faults for key, text in vars(fault).items() if key != "changed"]
        sound = all(type(text) is str and not messages.unprintable(text) for text in texts)
        age = time.time() - float(content["at"])
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return [], 0.0
    return (faults, age) if sound and math.isfinite(age) else ([], 0.0)


def _pair(value: Any) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))


def _changed(path: Path) -> tuple[int, int] | None:
    """Return the time of a file's last change and its size, or None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


# Records
# ----------------------------------------------------------------------------------------------------------


def _records(site: Site, store: Store, records: Sequence[Record]) -> Iterator[tuple[Kind, Fault | None]]:
    """Check that each record is whole: settings that hash to its id, times, values, histories."""
    for record in records:
        problem = _record_problem(record, store)
        yield "record", _fault("record", record, f"{problem}: {_again(record)}") if problem else None


def _record_problem(record: Record, store: Store) -> str:
    """Return what is wrong with a record, or "" if nothing is."""
    try:
        portable.check(store.portable(record.state.spec_id))
    except (ValueError, LookupError) as error:
        return first_line(error).rstrip(".")
    if odd := [name for name, value in record.state.metrics.items() if not math.isfinite(value)]:
        return "" if record.is_pretraining else f"its final {odd[0]} is not a number"
    return ""


def _fault(kind: Kind, record: Record, problem: str, path: Path | None = None) -> Fault:
    """Return a fault of a finished run, or of a file of it."""
    return Fault(
        kind=kind,
        about=record.state.spec_id,
        problem=problem,
        path=str(path or ""),
        changed=_changed(path) if path else None,
        run_id=record.state.run_id,
    )


def _again(record: Record) -> str:
    return f"`invoke redo {record.state.spec_id}` has it executed again"


# Encoders
# ----------------------------------------------------------------------------------------------------------


def _encoders(site: Site, store: Store, records: Sequence[Record]) -> Iterator[tuple[Kind, Fault | None]]:
    """Check the encoder of each pretraining run, and that its evaluations used this one."""
    digests: dict[frozenset[tuple[str, str]], tuple[str, str]] = {}
    for record in records:
        if not record.is_pretraining:
            continue
        found = _encoder(record, site, store)
        if isinstance(found, Fault):
            yield "encoder", found
        elif found:
            digests[frozenset(record.settings.items())] = record.state.spec_id, found
            yield "encoder", None
    for record in records:
        trained_by, digest = digests.get(frozenset(record.encoder.items()), ("", ""))
        used = record.digests.get(ENCODER, "")
        if digest and used and used != digest:
            problem = f"it evaluated another encoder than that of run {trained_by}: {_again(record)}"
            yield "encoder", _fault("encoder", record, problem)


def _encoder(record: Record, site: Site, store: Store) -> str | Fault:
    """Return the digest of a run's encoder, a fault, or "" for an imported run without its encoder."""
    path = site.runs / record.state.spec_id / FILE
    here = path.is_file()
    try:
        if here:
            return _digest(path, record)
    except (OSError, ValueError) as error:
        problem = first_line(error)
    with tempfile.TemporaryDirectory() as folder:
        try:
            stored = _digest(store.download(record.state.run_id, FILE, Path(folder)), record)
        except LookupError:
            if record.imported and not here:
                return ""
            lost = "" if here else f"{path} does not exist, and the tracking store has no copy"
        except ValueError as error:
            lost = (
                ""
                if here
                else f"{path} does not exist, and of the tracking store's copy, {first_line(error)}"
            )
        else:
            if not here:
                return stored
            remedy = f"delete {path}, and the next run that needs it fetches the tracking store's copy"
            return _fault("encoder", record, f"{problem}: {remedy}", path)
    return _fault("encoder", record, f"{lost or problem}: {_again(record)}", path)


def _digest(path: Path, record: Record) -> str:
    """Return the digest of an encoder's tensors.

    Raises:
        ValueError: the file is broken, belongs to another run, or does not fit the run's network.
    """
    tensors = encoder_file.read(path.read_bytes(), spec_id=record.state.spec_id)
    check_backbone(record.settings.get("backbone", ""), tensors)
    return encoder_file.digest(tensors)


# Reports
# ----------------------------------------------------------------------------------------------------------


def _reports(site: Site, store: Store, records: Sequence[Record]) -> Iterator[tuple[Kind, Fault | None]]:
    """Check that each report is as it was rendered, and shows the numbers of its runs."""
    for scale in SCALES:
        folder = site.reports / scale
        tables, changed = render.tables_in(folder), set(publish.damaged(folder))
        for path in sorted({*tables, *changed}):
            problem = _report_problem(path, store) if path in tables else ""
            if not problem and path in changed:
                problem = "it was changed or deleted since it was rendered"
            remedy = f"`invoke reports --scale {scale}`, or the command that made it, renders it again"
            yield "report", _of_report(path, site, f"{problem}: {remedy}") if problem else None


def _of_report(path: Path, site: Site, problem: str) -> Fault:
    about = str(path.relative_to(site.reports))
    return Fault(kind="report", about=about, problem=problem, path=str(path), changed=_changed(path))


def _report_problem(path: Path, store: Store) -> str:
    """Return why a report cannot be shown, or the first number that its runs do not give, or ""."""
    try:
        table = render.read(path)
    except ValueError as error:
        return first_line(error).removeprefix(f"{path} ").partition(": render the table again")[0]
    cells = [(row.label, column, row.cells[column.key]) for row in table.rows for column in table.columns]
    cited = [(label, column, cell) for label, column, cell in cells if cell.runs and cell.value is not None]
    finished = store.finished({run for _, _, cell in cited for run in cell.runs})
    metrics = _metrics(table)
    for label, column, cell in cited:
        if missing := [run for run in cell.runs if run not in finished]:
            return f"{label}/{column.key} cites run {missing[0]}, which is not finished in the tracking store"
        runs = [finished[run] for run in cell.runs]
        metric = metrics.get((label, column.key), "")
        shared = set.intersection(*(set(run.metrics) for run in runs))
        if not any(_gives(runs, each, column, cell) for each in ({metric} & shared if metric else shared)):
            return f"{label}/{column.key} shows {cell.value:.{column.digits}f}, which its runs do not give"
    return ""


def _metrics(table: Filled) -> dict[tuple[str, str], str]:
    """Return the metric of each cell by row and column; a row that a user added has none."""
    found: dict[tuple[str, str], str] = {}
    for baselines in reversed(BASELINES) if table.table in table_names() else ():
        with suppress(NotHereError):
            plain = Request(table=table.table, scale=table.scale, baselines=baselines).build()
            found |= {(row.label, column.key): ours.metric for row, column, ours in plain.measured()}
    return found


def _gives(runs: Sequence[Finished], metric: str, column: Column, cell: FilledCell) -> bool:
    """Return True if a metric of runs has the mean and the deviation of a cell."""
    factor = 100 if column.unit == "%" else 1
    values = [factor * run.metrics[metric] for run in runs]
    if not all(map(math.isfinite, values)):
        return False
    std = stats.sample_std(values)
    mean = round(stats.mean(values), DECIMALS)
    return cell.value == mean and cell.std == (None if std is None else round(std, DECIMALS))


def _data(site: Site, store: Store, records: Sequence[Record]) -> Iterator[tuple[Kind, Fault | None]]:
    for split in verify_data(site):
        if split.good:
            print(split, flush=True)
        yield "split", None if split.good else Fault(kind="split", about=split.title, problem=split.text)


CHECKS: tuple[Check, ...] = (_records, _encoders, _reports)
