"""A table's reports on disk: rendered when something changed, else left as they are.

    filled, paths = publish(table, seeds, finished, reasons, reports / "smoke", request.dumps())

`.rendered` in the folder records what each table was rendered from: a digest of the request, of the numbers
of its runs and of the code, and the SHA-256 of each file. If all of these still hold, the numbers are read
back from `tableN.json`; then nothing is written, and neither pandas, jinja2 nor matplotlib is imported. A
file that was edited or deleted is written again.

One process at a time writes the reports of a scale (`.rendered.lock`), and the files of a table are renamed
together. Two commands that render one table with other options leave the files of one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from reproduce import identity
from reproduce.report import document, overview, register, render
from reproduce.report.counts import incomplete
from reproduce.report.filled import Filled, fill, loads
from reproduce.report.illustrate import Histories, illustrate, no_histories, sources
from reproduce.report.observe import RUNS, Finished, frame, observe, rows_of, write_runs
from reproduce.report.record import Records, no_records
from reproduce.report.table import Table
from reproduce.runs.files import write_atomic
from reproduce.site import PROJECT

STATE, LOCK = ".rendered", ".rendered.lock"
"""Names of the file that records what was rendered, and of its lock; the index and the export ignore hidden
files."""
Registered = Callable[[], Sequence[Table]]
"""Function that returns every table at a scale, in the order of the register."""
SOURCES = ("*.py", "*.html", "*.css")
"""Files of the code that can change a report."""


def publish(
    table: Table,
    seeds: int,
    finished: Mapping[str, Finished],
    reasons: Mapping[str, str],
    folder: Path,
    request: str,
    registered: Registered,
    histories: Histories | None = None,
    *,
    records: Records = no_records,
) -> tuple[Filled, list[Path]]:
    """Write the table in every format, its rows of `runs.csv`, the index and the register of claims.

    What is up to date is left as it is.

    Args:
        finished: finished runs by spec id.
        reasons: why a run is not finished, by spec id.
        folder: the reports of one scale.
        request: what the table was built from, as text.
        registered: returns every table at the scale, for the register of claims.
        histories: returns the measurements of runs, for the figures. It is called only if the table is
            rendered; the ids of the runs decide that. None if they cannot be read now: the figures are
            drawn without them, and again once they can be read.
        records: returns the records of runs, for the report and the pages of runs. It is called only if
            something changed.

    Returns:
        The table with its numbers, and its files.

    Raises:
        OSError: a file cannot be written.
    """
    other_data = incomplete(table.specs(seeds), finished)
    shown = None if histories is None else sources(table, seeds, finished)
    inputs = _digest(_code(), request, _numbers(table, seeds, finished, reasons), other_data, shown)
    runs = _runs(table, seeds, finished)
    paths = render.paths(table.name, folder)
    filled = _current(table.name, inputs, runs, folder)
    if filled is not None and _shared_are_current(folder):
        return filled, paths
    with locked(folder):
        filled = _current(table.name, inputs, runs, folder)
        if filled is None:
            numbers = frame(table, seeds, finished, reasons) if any(table.measured()) else None
            filled = fill(table, seeds, numbers, other_data)
            filled = illustrate(table, filled, seeds, finished, histories or no_histories, records)
            render.write(filled, folder)
            write_runs(numbers, table.name, folder)
            figures = render.figure_paths(filled, folder)
            _record(folder, table.name, inputs, _files_of(table.name, [*paths, *figures], folder), runs)
        publish_shared(table.scale, folder, registered, records)
    return filled, paths


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing reports of a scale, so that the files of two renderings never mix.

    Raises:
        OSError: the folder cannot be written.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        yield


def publish_shared(scale: str, folder: Path, registered: Registered, records: Records = no_records) -> None:
    """Write the pages over all tables and those of the runs, unless they are up to date.

    The caller holds the lock. If the store did not answer for a run, the next call writes them again.
    """
    if _shared_are_current(folder):
        return
    inputs, tables = _shared_inputs(folder), render.read_all(folder)
    found = register.entries(registered(), {filled.table: filled for filled in tables})
    known = records(overview.cited(tables))
    runs = overview.Runs(tables, known)
    paths = register.write(found, scale, folder)
    paths.append(document.write(tables, found, runs.origin, scale, folder))
    pages = overview.pages(runs, scale)
    pages |= {overview.REPORT: lambda: overview.report(tables, found, runs, scale, folder)}
    pages |= {render.INDEX: lambda: _front(overview.index(tables, found, scale), folder)}
    for name, page in pages.items():
        paths.append(folder / name)
        paths[-1].parent.mkdir(exist_ok=True)
        write_atomic(paths[-1], page(), durable=True)
    if runs.uses.keys() <= known.keys():
        _record(
            folder,
            render.INDEX,
            inputs,
            {path.relative_to(folder).as_posix(): _sha256(path) for path in paths},
        )
    else:
        _forget(folder, render.INDEX)
    for path in unused_pages(folder):
        path.unlink(missing_ok=True)
    if not (folder / document.PDF).exists():
        _forget(folder, document.PDF)


def unused_pages(folder: Path) -> list[Path]:
    """Return the pages of runs that no table of the folder needs; none before the tables were rendered."""
    recorded = _state(folder).get(render.INDEX)
    files = recorded.get("files") if isinstance(recorded, dict) else None
    if not isinstance(files, dict):
        return []
    found = sorted((folder / overview.RUNS).glob("*.html"))
    return [
        path
        for path in found
        if identity.ID.fullmatch(path.stem) and path.relative_to(folder).as_posix() not in files
    ]


def publish_pdf(folder: Path) -> str:
    """Write `report.pdf` unless it is up to date, and return "", or one line that explains why there is none.

    Raises:
        OSError: the file cannot be written.
    """
    with locked(folder):
        files = document.sources(folder)
        inputs = _digest(_code(), *(f"{name} {_sha256(path)}" for name, path in files.items()))
        made = _sha256(folder / document.PDF)
        recorded = {"inputs": inputs, "files": {document.PDF: made}}
        if not files or (made and _state(folder).get(document.PDF) == recorded):
            return ""
        problem = document.typeset(folder)
        if problem:
            (folder / document.PDF).unlink(missing_ok=True)
            _forget(folder, document.PDF)
        else:
            _record(folder, document.PDF, inputs, {document.PDF: _sha256(folder / document.PDF)})
        _link_pdf(folder)
        return problem


def _link_pdf(folder: Path) -> None:
    """Have the front page link to the PDF if it exists; one that was edited is left to `publish_shared`."""
    path, found = folder / render.INDEX, _state(folder).get(render.INDEX)
    entry = found if isinstance(found, dict) else {}
    files = entry.get("files")
    if not isinstance(files, dict) or files.get(render.INDEX, "") != _sha256(path) or not path.is_file():
        return
    write_atomic(path, _front(path.read_text(encoding="utf-8"), folder), durable=True)
    _record(folder, render.INDEX, entry.get("inputs", ""), files | {render.INDEX: _sha256(path)})


def _front(text: str, folder: Path) -> str:
    return overview.with_pdf(text, exists=(folder / document.PDF).exists())


def damaged(folder: Path) -> list[Path]:
    """Return the files that were changed or deleted since they were rendered.

    An imported table was not rendered here, and is not among them.
    """
    found = []
    for name, entry in _state(folder).items():
        files = entry.get("files") if isinstance(entry, dict) else None
        for file, digest in (files if isinstance(files, dict) else {}).items():
            path = folder / file
            now = _digest(rows_of(path, name)) if file == RUNS else _sha256(path)
            found += [path] if now != digest else []
    return found


def _current(table: str, inputs: str, runs: str, folder: Path) -> Filled | None:
    """Return the table as it was rendered from `inputs`; None if a file of it is another one now."""
    recorded = _state(folder).get(table)
    known = recorded.get("files") if isinstance(recorded, dict) else None
    names = known if isinstance(known, dict) else ()
    figures = [folder / name for name in names if name.startswith(f"{render.FIGURES}/")]
    files = _files_of(table, [*render.paths(table, folder), *figures], folder)
    if recorded != {"inputs": inputs, "files": files, "runs": runs}:
        return None
    report = folder / f"{table}.json"
    try:
        content = report.read_bytes()
        # Another process may have replaced the file just now.
        same = hashlib.sha256(content).hexdigest() == recorded["files"][report.name]
        return loads(content, str(report)) if same else None
    except (OSError, ValueError):
        return None


def _shared_are_current(folder: Path) -> bool:
    recorded = _state(folder).get(render.INDEX)
    if not isinstance(recorded, dict) or not isinstance(files := recorded.get("files"), dict):
        return False
    return (
        {render.INDEX, overview.REPORT, document.TEX, *register.FILES} <= files.keys()
        and recorded.get("inputs") == _shared_inputs(folder)
        and all(_sha256(folder / name) == digest for name, digest in files.items())
    )


def _shared_inputs(folder: Path) -> str:
    """Return a digest of everything that the pages over all tables and those of the runs show."""
    state, tables = _state(folder), render.tables_in(folder)
    rendered = (state.get(each.stem) for each in tables)
    runs = [entry.get("runs") if isinstance(entry, dict) else None for entry in rendered]
    figures = sorted((folder / document.FIGURES).glob("*.svg"))
    return _digest(_code(), *(f"{each.name} {_sha256(each)}" for each in (*tables, *figures)), runs)


def _runs(table: Table, seeds: int, finished: Mapping[str, Finished]) -> str:
    """Return a digest of the store's ids of all runs of a table: one that was made again has another page."""
    return _digest([finished[spec.id].run_id for spec in table.specs(seeds) if spec.id in finished])


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
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}
    return digests | {RUNS: _digest(rows_of(folder / RUNS, table))}


def _state(folder: Path) -> dict[str, Any]:
    """Return all entries of `.rendered`; none if it cannot be read, so that everything is rendered again."""
    try:
        found = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(folder: Path, name: str, inputs: str, files: Mapping[str, str], runs: str = "") -> None:
    """Write one entry of `.rendered`; the caller holds the lock."""
    entry = {"inputs": inputs, "files": files} | ({"runs": runs} if runs else {})
    state = _state(folder) | {name: entry}
    write_atomic(folder / STATE, json.dumps(state, indent=1, sort_keys=True) + "\n", durable=True)


def _forget(folder: Path, name: str) -> None:
    """Delete one entry of `.rendered`; the caller holds the lock."""
    state = _state(folder)
    if state.pop(name, None) is not None:
        write_atomic(folder / STATE, json.dumps(state, indent=1, sort_keys=True) + "\n", durable=True)


@cache
def _code() -> str:
    """Return a digest of the code that makes tables and reports."""
    folders = (PROJECT / name for name in ("reproduce", "configs", "tables"))
    files = sorted(path for folder in folders for kind in SOURCES for path in folder.rglob(kind))
    return _digest(*(f"{path.relative_to(PROJECT)} {_sha256(path)}" for path in files))


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file; empty if it cannot be read, or is a pipe that would be waited for."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    except OSError:
        return ""


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
