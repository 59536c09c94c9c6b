"""A table's reports on disk: rendered when something changed, else left as they are.

    filled, paths = publish(table, seeds, finished, reasons, reports / "smoke", request.dumps())

`.rendered` in the folder records what each table was rendered from: a digest of the request, of the numbers
of its runs and of the code, and the SHA-256 of each file. If all of these still hold, the numbers are read
back from `tableN.json`; then nothing is written, and neither pandas nor jinja2 is imported. A file that was
edited or deleted is written again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.report import render
from reproduce.report.counts import incomplete
from reproduce.report.filled import Filled, fill, loads
from reproduce.report.observe import RUNS, Finished, frame, observe, rows_of, write_runs
from reproduce.report.table import Table
from reproduce.runs.files import write_atomic
from reproduce.site import PROJECT

if TYPE_CHECKING:
    import filelock

STATE, LOCK = ".rendered", ".rendered.lock"
"""Names of the file that records what was rendered, and of its lock; the index and the export ignore hidden
files."""
SOURCES = ("*.py", "*.html", "*.css")
"""Files of the code that can change a report."""


def publish(
    table: Table,
    seeds: int,
    finished: Mapping[str, Finished],
    reasons: Mapping[str, str],
    folder: Path,
    request: str,
) -> tuple[Filled, list[Path]]:
    """Write the table in every format, its rows of `runs.csv` and the index, unless they are up to date.

    Args:
        finished: finished runs by spec id.
        reasons: why a run is not finished, by spec id.
        folder: the reports of one scale.
        request: what the table was built from, as text.

    Returns:
        The table with its numbers, and its files.

    Raises:
        OSError: a file cannot be written.
    """
    other_data = incomplete(table.specs(seeds), finished)
    inputs = _digest(_code(), request, _numbers(table, seeds, finished, reasons), other_data)
    paths = render.paths(table.name, folder)
    if _state(folder).get(table.name) == {"inputs": inputs, "files": _files_of(table.name, paths, folder)}:
        report = folder / f"{table.name}.json"
        filled = loads(report.read_bytes(), str(report))
    else:
        runs = frame(table, seeds, finished, reasons) if any(table.measured()) else None
        filled = fill(table, seeds, runs, other_data)
        render.write(filled, folder)
        with _lock(folder):
            write_runs(runs, table.name, folder)
            _record(folder, table.name, inputs, _files_of(table.name, paths, folder))
    _publish_index(folder)
    return filled, paths


def _publish_index(folder: Path) -> None:
    """Write the index unless it is up to date."""
    path = folder / render.INDEX
    inputs = _digest(_code(), *(f"{each.name} {_sha256(each)}" for each in render.tables_in(folder)))
    if _state(folder).get(path.name) != {"inputs": inputs, "files": {path.name: _sha256(path)}}:
        render.write_index(folder)
        with _lock(folder):
            _record(folder, path.name, inputs, {path.name: _sha256(path)})


def _numbers(
    table: Table, seeds: int, finished: Mapping[str, Finished], reasons: Mapping[str, str]
) -> list[Any]:
    """Return everything that the runs contribute to the table."""
    return [
        [row.label, column.key, asdict(observation)]
        for row, column, ours in table.measured()
        for observation in observe(ours, seeds, finished, reasons)
    ]


def _files_of(table: str, paths: Sequence[Path], folder: Path) -> dict[str, str]:
    """Return a digest of each of a table's files, and of its rows in `runs.csv`, as they are now."""
    return {path.name: _sha256(path) for path in paths} | {RUNS: _digest(rows_of(folder / RUNS, table))}


def _state(folder: Path) -> dict[str, Any]:
    """Return all entries of `.rendered`; none if it cannot be read, so that everything is rendered again."""
    try:
        found = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(folder: Path, name: str, inputs: str, files: Mapping[str, str]) -> None:
    """Write one entry of `.rendered`; the caller holds the lock."""
    state = _state(folder) | {name: {"inputs": inputs, "files": files}}
    write_atomic(folder / STATE, json.dumps(state, indent=1, sort_keys=True) + "\n")


def _lock(folder: Path) -> filelock.BaseFileLock:
    """Return the lock that keeps two commands from losing each other's rows of `runs.csv`."""
    from filelock import FileLock

    return FileLock(folder / LOCK)


@cache
def _code() -> str:
    """Return a digest of the code that makes tables and reports."""
    folders = (PROJECT / name for name in ("reproduce", "configs", "tables"))
    files = sorted(path for folder in folders for kind in SOURCES for path in folder.rglob(kind))
    return _digest(*(f"{path.relative_to(PROJECT)} {_sha256(path)}" for path in files))


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
