"""Rendered reports and the records of their runs as one file: `invoke export`. `receive.py` reads it.

    export(Path("msbreg.zip"), "smoke", site, store)

The file is a zip. Its members are stored uncompressed, in the order of their names and with a fixed date, so
the same store and reports give the same bytes. `manifest.json` contains the SHA-256 and the size of every
other member:

    manifest.json    reports/<scale>/table8.md ...    runs/<id>/record.json    runs/<id>/encoder.safetensors
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from reproduce import identity
from reproduce.messages import InvalidError, NotFoundError, counted, first_line, size, unknown
from reproduce.nn.encoder import FILE
from reproduce.plan import SCALES
from reproduce.report import overview, register, render
from reproduce.report.filled import Filled
from reproduce.runs.files import atomic, synchronise
from reproduce.site import Site
from reproduce.tracking.portable import PortableRun, check, to_json

if TYPE_CHECKING:
    from reproduce.tracking.store import Store

KIND, VERSION = "msbreg archive", 1
MANIFEST, RECORD = "manifest.json", "record.json"
SHARED = (render.INDEX, overview.REPORT, *register.FILES)
"""Reports over all tables of a scale."""
DATE = (1980, 1, 1, 0, 0, 0)
"""Date of every member: the earliest that a zip can contain."""
REPORT = re.compile(
    rf"reports/({'|'.join(SCALES)})/((?!runs\.csv)(?!report\.(?!html))(?!claims\.(?!html|md))(?!index\.(?!html))[a-z0-9]\w{{0,99}})\.({'|'.join(render.FORMATS)})",
    re.ASCII | re.IGNORECASE,
)
"""Names of rendered files. `runs.csv` stays: it contains the ids that one tracking store gave to its runs."""
FIGURE = re.compile(
    rf"reports/({'|'.join(SCALES)})/{render.FIGURES}/([a-z0-9]\w{{0,99}})-[a-z0-9-]{{1,100}}\.(svg|png)",
    re.ASCII | re.IGNORECASE,
)
"""Names of figures, with the scale and the table. An import draws them from the table's numbers."""
CHUNK = 1 << 20
"""Number of bytes that are read at a time."""


def export(file: Path, scale: str, site: Site, store: Store, *, encoders: bool = False) -> str:
    """Write the reports of a scale, the records of the runs that they cite, and those upstream, to `file`.

    Args:
        scale: name of the scale; empty for every scale that has reports.
        encoders: True to include the encoders of the pretraining runs.

    Returns:
        A line that describes the content, and one for each damaged report, which is left out.

    Raises:
        LookupError: the scale or the file's folder does not exist, the scale has no reports, or a cited run
            or its encoder is missing.
        ValueError: a report has another version, or `file` already exists.
        OSError: `file` cannot be written.
    """
    if scale and scale not in SCALES:
        raise NotFoundError(unknown("scale", scale, SCALES))
    _check_free(file)
    reports, cited, problems = _reports(site, [scale] if scale else SCALES)
    runs = _records(cited, store)
    with tempfile.TemporaryDirectory() as folder:
        members: dict[str, bytes | Path] = {**reports}
        for spec_id, run in runs.items():
            members[f"runs/{spec_id}/{RECORD}"] = _document(to_json(run))
            if encoders and run.is_pretraining:
                members[f"runs/{spec_id}/{FILE}"] = _encoder(spec_id, site, store, Path(folder))
        _write_zip(file, members)
    content = ", ".join(
        f"{counted(len(tables), 'table')} ({name})" for name, tables in tables_of(reports).items()
    )
    written = f"{file}: {content}, {counted(len(runs), 'run')}, {size(file.stat().st_size)}."
    return "\n".join([written, *(f"left out: {problem}" for problem in problems)])


def _check_free(file: Path) -> None:
    """Raise an error for the user if no archive can be written at `file`.

    Raises:
        ValueError: no file was given, or it already exists.
        LookupError: its folder does not exist.
    """
    if not file.name:
        raise InvalidError("No file was given: name one, such as --file msbreg.zip.")
    if file.exists():
        raise InvalidError(f"{file} already exists: name another file, or move this one.")
    if not file.absolute().parent.is_dir():
        raise NotFoundError(f"The folder {file.parent} for {file.name} does not exist: create it first.")


def _reports(site: Site, scales: Iterable[str]) -> tuple[dict[str, bytes], dict[str, str], list[str]]:
    """Return the rendered files of the scales by their names in the archive; other files are ignored.

    Also returned are the ids of all runs behind a number, each with the report that cites it, and the reasons
    why damaged reports are left out.

    Raises:
        LookupError: no table is among them.
        ValueError: every table is damaged.
    """
    scales = list(scales)
    paths = {
        f"reports/{scale}/{path.name}": path
        for scale in scales
        for path in (site.reports / scale).glob("*")
        if path.is_file()
    }
    found = {name: path.read_bytes() for name, path in sorted(paths.items()) if REPORT.fullmatch(name)}
    cited: dict[str, str] = {}
    damaged: dict[tuple[str, str], str] = {}
    for name in [name for name in found if name.endswith(".json")]:
        try:
            table = render.checked(found[name], Path(name).stem, name)
            cited |= dict.fromkeys(cited_by(table, name), name)
        except ValueError as error:
            damaged[_table(name)] = str(error)
    whole = {name: content for name, content in found.items() if _table(name) not in damaged}
    for scale in scales:
        for path in sorted((site.reports / scale / render.FIGURES).glob("*")):
            name = f"reports/{scale}/{render.FIGURES}/{path.name}"
            match = FIGURE.fullmatch(name)
            if match and path.is_file() and f"reports/{scale}/{match[2]}.json" in whole:
                whole[name] = path.read_bytes()
    if any(name.endswith(".json") for name in whole):
        return whole, cited, list(damaged.values())
    if damaged:
        raise InvalidError(next(iter(damaged.values())))
    where = str(site.reports / scales[0]) if len(scales) == 1 else f"any scale's folder in {site.reports}"
    option = f" --scale {scales[0]}" if len(scales) == 1 else ""
    raise NotFoundError(
        f"No report exists in {where}: `invoke reports{option}` renders every table from finished runs."
    )


def _table(name: str) -> tuple[str, str]:
    """Return the scale and the table that a report's name in an archive contains."""
    _, scale, file = name.split("/")
    return scale, file.partition(".")[0]


def tables_of(names: Iterable[str]) -> dict[str, set[str]]:
    """Return the tables among report files, by scale."""
    found: dict[str, set[str]] = {}
    for name in names:
        if not FIGURE.fullmatch(name) and name.rpartition("/")[2] not in SHARED:
            scale, table = _table(name)
            found.setdefault(scale, set()).add(table)
    return found


def cited_by(table: Filled, name: str) -> set[str]:
    """Return the ids of the runs behind a table's numbers.

    Args:
        name: name of its report for error messages.

    Raises:
        ValueError: the table cites something that is not an id.
    """
    runs = {run for row in table.rows for cell in row.cells.values() for run in cell.runs}
    if odd := sorted(run for run in runs if not identity.ID.fullmatch(run)):
        raise InvalidError(f"{name} cites '{odd[0]:.60}', which is not a run's id: {_again(name)}.")
    return runs


def _again(report: str) -> str:
    """Return the command that renders a report again, in words."""
    scale = report.split("/")[1]
    return f"`invoke reports --scale {scale}`, or the command that made it, renders it again"


def _records(cited: Mapping[str, str], store: Store) -> dict[str, PortableRun]:
    """Return the records of the cited runs and of those upstream, by id.

    Raises:
        LookupError: a record is not in the store.
    """
    wanted, found = dict(cited), dict[str, PortableRun]()
    while wanted:
        spec_id, report = wanted.popitem()
        try:
            run = store.portable(spec_id)
            check(run)
        except ValueError as error:
            raise InvalidError(
                f"{report} needs run {spec_id}, which no other machine could read: {first_line(error)} "
                f"What would work: `invoke redo {spec_id}`."
            ) from None
        except LookupError as error:
            raise NotFoundError(
                f"{report} needs run {spec_id}: {error.args[0]} What would work: {_again(report)}."
            ) from None
        found[spec_id] = run
        if run.needs and run.needs not in found:
            wanted[run.needs] = report
    return found


def _encoder(spec_id: str, site: Site, store: Store, folder: Path) -> Path:
    """Return the path of a pretraining run's encoder.

    If it is only in the tracking store, it is fetched into `folder`.
    """
    here = site.runs / spec_id / FILE
    if here.is_file():
        return here
    try:
        return store.download(store.finished([spec_id])[spec_id].run_id, FILE, folder / spec_id)
    except LookupError:
        raise NotFoundError(
            f"The encoder of run {spec_id} is neither in {here} nor in the tracking store: "
            f"export without --encoders. `invoke redo {spec_id}` trains it again."
        ) from None


def _document(data: object) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_zip(file: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write the archive, whole or not at all.

    Raises:
        OSError: the archive cannot be written, or is not known to survive a crash of the machine.
    """
    listed = {
        name: {"sha256": _sha256(members[name]), "size": _size(members[name])} for name in sorted(members)
    }
    manifest = _document({"kind": KIND, "version": VERSION, "files": listed})
    with atomic(file) as draft:
        with zipfile.ZipFile(draft, "w") as archive:
            for name, content in sorted({MANIFEST: manifest, **members}.items()):
                _add(archive, name, content)
        _check_free(file)
    try:
        synchronise(file.absolute().parent)
    except OSError:
        file.unlink()  # a second export would not replace it
        raise


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    """Add one member, independent of when, where and by whom it is added."""
    info = zipfile.ZipInfo(name, DATE)
    info.create_system, info.external_attr, info.file_size = 3, (stat.S_IFREG | 0o644) << 16, _size(content)
    with archive.open(info, "w") as member, _opened(content) as source:
        shutil.copyfileobj(source, member, CHUNK)


def _opened(content: bytes | Path) -> BinaryIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def _sha256(content: bytes | Path) -> str:
    with _opened(content) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)
