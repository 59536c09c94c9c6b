"""Rendered reports and the records of their runs as one file, and back: `invoke export` and `invoke import`.

    export(Path("msbreg.zip"), "smoke", site, store)
    receive(Path("msbreg.zip"), other_site, other_store)

The file is a zip. Its members are stored uncompressed, in the order of their names and with a fixed date, so
the same store and reports give the same bytes. `manifest.json` contains the SHA-256 and the size of every
other member:

    manifest.json    reports/<scale>/table8.md ...    runs/<id>/record.json    runs/<id>/encoder.safetensors

No part of a file is written before all of it has been checked. The content of a checked file may still be
untrue: it is as trustworthy as its author.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from reproduce.messages import InvalidError, NotFoundError, counted, size, unknown
from reproduce.nn.encoder import FILE
from reproduce.plan import CUSTOM, SCALES
from reproduce.report import render
from reproduce.report.filled import loads
from reproduce.runs import checkpoint
from reproduce.runs.files import atomic, remove_drafts, write_atomic
from reproduce.site import Site
from reproduce.tracking.portable import OF_THE_MACHINE, PortableRun, from_json, to_json

if TYPE_CHECKING:
    from reproduce.tracking.store import Store

KIND, VERSION = "msbreg archive", 1
MANIFEST, RECORD, INDEX = "manifest.json", "record.json", "index.html"
DATE = (1980, 1, 1, 0, 0, 0)
"""Date of every member: the earliest that a zip can contain."""
REPORT = re.compile(
    rf"reports/({'|'.join(SCALES)})/(?!runs\.csv)(?=[^.])[^/\\:\x00-\x1f]+\.({'|'.join(render.FORMATS)})"
)
"""Names of rendered files. `runs.csv` stays: it contains the ids that one tracking store gave to its runs."""
RUN = re.compile(rf"runs/([0-9a-f]{{12}})/({re.escape(RECORD)}|{re.escape(FILE)})")
RUN_ID = re.compile(r"[0-9a-f]{12}")
CHUNK = 1 << 20
"""Number of bytes that are read at a time."""
BROKEN = (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, UnicodeDecodeError, OverflowError)
"""Exceptions that `zipfile` raises for a file that is not a complete zip."""


# Export
# ----------------------------------------------------------------------------------------------------------


def export(file: Path, scale: str, site: Site, store: Store, *, encoders: bool = False) -> str:
    """Write the reports of a scale, the records of the runs that they cite, and those upstream, to `file`.

    Args:
        scale: name of the scale; empty for every scale that has reports.
        encoders: True to include the encoders of the pretraining runs.

    Returns:
        A line that describes the content.

    Raises:
        LookupError: the scale or the file's folder does not exist, the scale has no reports, or a cited run
            or its encoder is missing.
        ValueError: a report has another version, or `file` already exists.
        OSError: `file` cannot be written.
    """
    if scale and scale not in SCALES:
        raise NotFoundError(unknown("scale", scale, SCALES))
    _check_free(file)
    reports = _reports(site, [scale] if scale else SCALES)
    runs = _records(_cited(reports), store)
    with tempfile.TemporaryDirectory() as folder:
        members: dict[str, bytes | Path] = {**reports}
        for spec_id, run in runs.items():
            members[f"runs/{spec_id}/{RECORD}"] = _document(to_json(run))
            if encoders and run.is_pretraining:
                members[f"runs/{spec_id}/{FILE}"] = _encoder(spec_id, site, store, Path(folder))
        _write_zip(file, members)
    content = ", ".join(
        f"{counted(len(tables), 'table')} ({name})" for name, tables in _tables(reports).items()
    )
    return f"{file}: {content}, {counted(len(runs), 'run')}, {size(file.stat().st_size)}."


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


def _reports(site: Site, scales: Iterable[str]) -> dict[str, bytes]:
    """Return the rendered files of the scales by their names in the archive; other files are ignored.

    Raises:
        LookupError: no table is among them.
    """
    scales = list(scales)
    paths = {
        f"reports/{scale}/{path.name}": path
        for scale in scales
        for path in (site.reports / scale).glob("*")
        if path.is_file()
    }
    found = {name: path.read_bytes() for name, path in sorted(paths.items()) if REPORT.fullmatch(name)}
    if not any(name.endswith(".json") for name in found):
        where = str(site.reports / scales[0]) if len(scales) == 1 else f"any scale's folder in {site.reports}"
        option = f" --scale {scales[0]}" if len(scales) == 1 else ""
        raise NotFoundError(
            f"No report exists in {where}: `invoke reports{option}` renders every table from finished runs."
        )
    return found


def _tables(names: Iterable[str]) -> dict[str, set[str]]:
    """Return the tables among report files, by scale."""
    found: dict[str, set[str]] = {}
    for name in names:
        _, scale, file = name.split("/")
        if file != INDEX:
            found.setdefault(scale, set()).add(file.rpartition(".")[0])
    return found


def _cited(reports: Mapping[str, bytes]) -> dict[str, str]:
    """Return the ids of all runs behind a number, each with the report that cites it.

    Raises:
        ValueError: a report has another version, or cites something that is not an id.
    """
    cited: dict[str, str] = {}
    for name in (name for name in reports if name.endswith(".json")):
        table = loads(reports[name], name)
        for run in (run for row in table.rows for cell in row.cells.values() for run in cell.runs):
            if not (isinstance(run, str) and RUN_ID.fullmatch(run)):
                raise InvalidError(f"{name} cites '{run}', which is not a run's id: {_again(name)}.")
            cited.setdefault(run, name)
    return cited


def _again(report: str) -> str:
    """Return the command that renders a report again, in words."""
    _, scale, file = report.split("/")
    return f"render it again with `invoke {file.removesuffix('.json')} --scale {scale} --render-only`"


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
            "export without --encoders."
        ) from None


def _document(data: object) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_zip(file: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write the archive, whole or not at all."""
    listed = {
        name: {"sha256": _sha256(members[name]), "size": _size(members[name])} for name in sorted(members)
    }
    manifest = _document({"kind": KIND, "version": VERSION, "files": listed})
    with atomic(file) as draft:
        with zipfile.ZipFile(draft, "w") as archive:
            for name, content in sorted({MANIFEST: manifest, **members}.items()):
                _add(archive, name, content)
        _check_free(file)


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


# Import
# ----------------------------------------------------------------------------------------------------------


@dataclass
class Received:
    """The outcome of an import."""

    added: int = 0
    present: int = 0
    """Number of runs that the store had already, with the same values."""
    clashes: list[str] = field(default_factory=list)
    """One line for each run whose values differ from the store's."""
    encoders: int = 0
    kept: list[str] = field(default_factory=list)
    """One line for each local encoder and table that differs from the archive's."""
    tables: dict[str, int] = field(default_factory=dict)
    """Number of added tables, by scale."""

    @property
    def code(self) -> int:
        """Exit code: 1 if a run clashes."""
        return int(bool(self.clashes))

    def __str__(self) -> str:
        runs = (
            f"{counted(self.added, 'run')} added, {self.present} already present, "
            f"{len(self.clashes)} with different values."
        )
        tables = "".join(
            f" {counted(number, 'table')} added to the reports at {scale}."
            for scale, number in self.tables.items()
        )
        encoders = f" {counted(self.encoders, 'encoder')} added." if self.encoders else ""
        return "\n".join([runs + encoders + tables, *self.clashes, *self.kept])


def receive(file: Path, site: Site, store: Store) -> Received:
    """Add the runs and reports of an archive to this site, after all of the file has been checked.

    Everything that exists already is unchanged. If a call is interrupted, the same call again adds the rest.

    Raises:
        LookupError: the file does not exist.
        ValueError: the file is incomplete, has another version, or contradicts itself; nothing was written.
    """
    if not file.is_file():
        raise NotFoundError(
            f"The file '{file if file.name else ''}' does not exist: give one that `invoke export` wrote, "
            "such as --file msbreg.zip."
        )
    with _Archive.opened(file) as archive:
        runs = archive.check()
        received = Received()
        upstream_first = sorted(runs.values(), key=lambda run: (run.needs is not None, run.spec_id))
        for run in upstream_first:
            _receive_run(run, archive, site, store, received)
        for scale, tables in _tables(archive.reports).items():
            _receive_reports(scale, sorted(tables), archive, site.reports / scale, received)
    return received


def _receive_run(run: PortableRun, archive: _Archive, site: Site, store: Store, received: Received) -> None:
    """Add one run, and its encoder unless the store's record belongs to another training."""
    here = store.adopt(run, archive.digest)
    if here is not None and not run.agrees(here.metrics):
        received.clashes.append(
            f"clash: {run.spec_id} {run.name}: {_differing(here.metrics, run.final)}. "
            "The run here is unchanged."
        )
        return
    received.added += here is None
    received.present += here is not None
    name = f"runs/{run.spec_id}/{FILE}"
    if name not in archive.files:
        return
    path = site.runs / run.spec_id / FILE
    if path.exists() and _sha256(path) != archive.files[name].sha256:
        received.kept.append(
            f"kept: {path} differs from the archive's encoder, although the runs have the same values."
        )
    elif not path.exists():
        _put(path, archive.read(name))
        received.encoders += 1


def _put(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and delete what a killed import left next to it."""
    remove_drafts(path)
    write_atomic(path, content, durable=True)


def _differing(here: Mapping[str, float], there: Mapping[str, float]) -> str:
    """Return the values that differ between two runs, in words."""
    shown = (
        f"{key} {here.get(key, 'none')} here, {there.get(key, 'none')} in the archive"
        for key in sorted({*here, *there} - {*OF_THE_MACHINE})
        if repr(here.get(key)) != repr(there.get(key))
    )
    return "; ".join(shown)


def _receive_reports(
    scale: str, tables: list[str], archive: _Archive, folder: Path, received: Received
) -> None:
    """Add the tables of a scale that do not differ from local ones, and write the index of all tables."""
    for table in tables:
        names = [
            name
            for name in archive.reports
            if name.startswith(f"reports/{scale}/") and Path(name).stem == table
        ]
        here = {name: folder / Path(name).name for name in names}
        if any(path.exists() and _sha256(path) != archive.files[name].sha256 for name, path in here.items()):
            received.kept.append(
                f"kept: {folder / table}.* differs from the archive's table: "
                f"`invoke reports --scale {scale}` renders it from the runs."
            )
            continue
        absent = [name for name, path in here.items() if not path.exists()]
        for name in absent:
            _put(here[name], archive.read(name))
        if absent:
            received.tables[scale] = received.tables.get(scale, 0) + 1
    render.write_index(folder)


@dataclass(frozen=True)
class _Member:
    """The manifest's entry for a file."""

    sha256: str
    size: int


class _Archive:
    """An archive that is open for reading."""

    def __init__(self, file: Path, zipped: zipfile.ZipFile) -> None:
        self._file, self._zip = file, zipped
        self.files: dict[str, _Member] = {}
        """Entries of all members except the manifest, by name."""
        self.digest = ""
        """SHA-256 of the manifest, and thereby of everything."""

    @classmethod
    @contextmanager
    def opened(cls, file: Path) -> Iterator[_Archive]:
        """Yield the archive in `file`.

        Raises:
            ValueError: the zip itself is broken; the message is one line.
        """
        try:
            with zipfile.ZipFile(file) as zipped:
                yield cls(file, zipped)
        except BROKEN as error:
            raise InvalidError(
                f"{file} is not a complete zip file ({error}): copy it again, or export it again."
            ) from None

    @property
    def reports(self) -> list[str]:
        return sorted(name for name in self.files if name.startswith("reports/"))

    def check(self) -> dict[str, PortableRun]:
        """Read every byte once, and return the records by id.

        Raises:
            ValueError: something is wrong; the message describes it.
        """
        self._check_members()
        self._read_manifest()
        for name, said in self.files.items():
            with self._zip.open(name) as member:
                if hashlib.file_digest(member, "sha256").hexdigest() != said.sha256:  # type: ignore[arg-type]
                    self._refuse(f"{name} does not match the manifest", "copy it again, or export it again")
        runs = {
            match[1]: self._record(name)
            for name in self.files
            if (match := RUN.fullmatch(name)) and match[2] == RECORD
        }
        for name in self.files:
            if (match := RUN.fullmatch(name)) and match[2] == FILE:
                self._check_encoder(name, match[1], runs)
        needed = self._cited()
        needed |= {run.needs: f"run {run.spec_id}" for run in runs.values() if run.needs}
        if absent := [(who, spec_id) for spec_id, who in needed.items() if spec_id not in runs]:
            self._refuse(f"{absent[0][0]} needs run {absent[0][1]}, which the archive lacks")
        return runs

    def read(self, name: str) -> bytes:
        """Return the content of a file, compared with the manifest at each reading.

        The archive may be replaced after the first one.

        Raises:
            ValueError: the file has changed.
        """
        content = self._zip.read(name)
        if hashlib.sha256(content).hexdigest() != self.files[name].sha256:
            self._refuse(f"{name} does not match the manifest", "copy it again, or export it again")
        return content

    def _check_members(self) -> None:
        """Raise ValueError for members that no export writes, from the zip's directory alone."""
        infos = self._zip.infolist()
        names = [info.filename for info in infos]
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.filename != MANIFEST and not (
                REPORT.fullmatch(info.filename) or RUN.fullmatch(info.filename)
            ):
                self._refuse(f"{info.filename!r} is not a name of a report or of a run's file")
            if kind not in (0, stat.S_IFREG):
                self._refuse(f"{info.filename} is a link, or otherwise not a regular file")
            if (
                info.compress_type != zipfile.ZIP_STORED
                or info.compress_size != info.file_size
                or info.flag_bits & 1
            ):
                self._refuse(f"{info.filename} is compressed or encrypted, unlike the files of an export")
        if len(set(names)) < len(names):
            self._refuse("it contains a file twice")
        if sum(info.file_size for info in infos) > self._file.stat().st_size:
            self._refuse("its files are larger than the archive itself")

    def _read_manifest(self) -> None:
        """Raise ValueError if the manifest is missing, has another version, or does not list the members."""
        if MANIFEST not in self._zip.namelist():
            self._refuse(f"it has no {MANIFEST}", "give a file that `invoke export` wrote")
        content = self._zip.read(MANIFEST)
        data = self._json(MANIFEST, content)
        if not isinstance(data, dict) or data.get("kind") != KIND:
            self._refuse(
                f"its {MANIFEST} was written by another program", "give a file that `invoke export` wrote"
            )
        if data.get("version") != VERSION:
            self._refuse(
                f"it has version {data.get('version')}, but this suite reads version {VERSION}",
                "import it with the version of the suite that wrote it",
            )
        try:
            self.files = {
                name: _Member(str(said["sha256"]), int(said["size"])) for name, said in data["files"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError):
            self._refuse(f"its {MANIFEST} lists no files")
        sizes = {info.filename: info.file_size for info in self._zip.infolist() if info.filename != MANIFEST}
        if missing := sorted(self.files.keys() - sizes.keys()):
            self._refuse(f"it lacks {missing[0]}, which its manifest lists")
        if extra := sorted(sizes.keys() - self.files.keys()):
            self._refuse(f"it contains {extra[0]}, which its manifest does not list")
        if wrong := [name for name, size in sizes.items() if size != self.files[name].size]:
            self._refuse(
                f"{wrong[0]} has {sizes[wrong[0]]} bytes, but the manifest lists {self.files[wrong[0]].size}"
            )
        self.digest = hashlib.sha256(content).hexdigest()

    def _record(self, name: str) -> PortableRun:
        """Return a run's record, after checking that its name, its id and the hash of its settings agree."""
        try:
            run = from_json(self._json(name, self.read(name)), name)
        except ValueError as error:
            self._refuse(str(error).rstrip("."))
        if name != f"runs/{run.spec_id}/{RECORD}":
            self._refuse(f"{name} is the record of run {run.spec_id}")
        if run.scale not in (*SCALES, CUSTOM):
            self._refuse(f"{name} has the unknown scale '{run.scale}'")
        return run

    def _check_encoder(self, name: str, spec_id: str, runs: Mapping[str, PortableRun]) -> None:
        """Raise ValueError for an encoder that does not belong to a pretraining run in the archive."""
        if spec_id not in runs or not runs[spec_id].is_pretraining:
            self._refuse(f"it contains {name}, but no record of a pretraining run {spec_id}")
        try:
            with self._zip.open(name) as member:
                owner = checkpoint.encoder_of(member)
        except ValueError as error:
            self._refuse(f"{name} is not an encoder: {error}")
        if owner != spec_id:
            self._refuse(f"{name} is the encoder of run {owner}")

    def _cited(self) -> dict[str, str]:
        """Return the runs behind the reports."""
        try:
            return _cited({name: self.read(name) for name in self.reports if name.endswith(".json")})
        except ValueError as error:
            self._refuse(str(error).rstrip("."))

    def _json(self, name: str, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            self._refuse(f"{name} is not JSON ({error})")

    def _refuse(self, problem: str, remedy: str = "export it again") -> NoReturn:
        raise InvalidError(
            f"{self._file} was refused: {problem}; nothing was written. What would work: {remedy}."
        )
