"""Reports and records from another machine: `invoke import` of a file that `archive.py` wrote.

    receive(Path("msbreg.zip"), site, store)

No part of a file is written before all of it has been checked: names, sizes and digests, each record, each
encoder by the digest of its tensors, and each report by rendering it in memory. Reports are written as they
are rendered here, so only numbers and texts arrive, never a page. The content of a checked file may still be
untrue: it is as trustworthy as its author.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from reproduce.commands.archive import FIGURE, KIND, MANIFEST, RECORD, REPORT, VERSION, cited_by, tables_of
from reproduce.commands.pages import records_of
from reproduce.messages import InvalidError, NotFoundError, counted, first_line, size
from reproduce.nn.encoder import FILE, check_backbone
from reproduce.plan import CUSTOM, SCALES, registered
from reproduce.report import publish, render
from reproduce.report.filled import Filled
from reproduce.report.record import Records
from reproduce.runs import encoder_file, zips
from reproduce.runs.files import naming, remove_drafts, write_atomic
from reproduce.site import Site
from reproduce.tracking.portable import OF_THE_MACHINE, PortableRun, from_json
from reproduce.tracking.tags import ENCODER

if TYPE_CHECKING:
    from reproduce.report.observe import Finished
    from reproduce.tracking.store import Store

RUN = re.compile(rf"runs/([0-9a-f]{{12}})/({re.escape(RECORD)}|{re.escape(FILE)})")
SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_MEMBERS, LARGEST_DOCUMENT = 500_000, 500_000_000
"""Maximum number of files, and of bytes of one that is read as JSON: a long run's record has 20 MB."""
BROKEN = (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, UnicodeDecodeError, OverflowError)
"""Exceptions that `zipfile` raises for a file that is not a complete zip."""


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
    returned: list[str] = field(default_factory=list)
    """One line for each run that is reused again although `invoke redo` has marked it here."""
    skipped: list[str] = field(default_factory=list)
    """One line for each report of the archive that cannot be shown; its runs are added."""
    tables: dict[str, int] = field(default_factory=dict)
    """Number of added tables, by scale."""

    @property
    def code(self) -> int:
        """Exit code: 1 if a run clashes or a report was skipped."""
        return int(bool(self.clashes or self.skipped))

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
        return "\n".join([runs + encoders + tables, *self.clashes, *self.returned, *self.kept, *self.skipped])


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
    with Archive.opened(file) as archive:
        content = archive.check()
        _check_places(archive, content, site)
        received = Received(skipped=content.skipped)
        runs = content.runs.values()
        upstream_first = sorted(runs, key=lambda run: (run.needs is not None, run.spec_id))
        present = store.finished(content.runs)
        marked = store.superseded(content.runs.keys() - present.keys())
        received.returned += [
            f"run {spec_id} was marked by `invoke redo`; the imported one counts now. To have it executed, "
            f"repeat `invoke redo {spec_id}`."
            for spec_id in sorted(marked)
        ]
        for run in upstream_first:
            here = present.get(run.spec_id) or store.adopt(run, archive.digest)
            _receive_run(run, here, content, archive, site, received)
    records = records_of(store, site)
    for scale, tables in content.tables.items():
        _receive_reports(scale, tables, site.reports / scale, received, records)
    return received


def _check_places(archive: Archive, content: _Content, site: Site) -> None:
    """Raise an error for the user if the files could not be written: nothing would be added by half.

    Raises:
        ValueError: a file is in the place of a folder, or a folder in the place of a file.
        OSError: permission is missing, or the disk is too small.
    """
    paths = [site.runs / spec_id / FILE for spec_id in content.encoders]
    for scale, tables in content.tables.items():
        folder = site.reports / scale
        for table, filled in tables.items():
            paths += [*render.paths(table, folder), *render.figure_paths(filled, folder)]
    folders = {path.parent for path in paths} | {site.runs}
    for folder in sorted(folders):
        existing = _existing(folder)
        if not existing.is_dir():
            archive.refuse(f"{folder} cannot be created, because {existing} is not a folder", "move it away")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(f"{existing} cannot be written: nothing was imported.")
    if odd := [path for path in paths if path.exists() and not path.is_file()]:
        archive.refuse(f"{odd[0]} is not a file", "move it away")
    # Reports in five formats, and records in the store, need about what they need in the archive.
    needed, free = archive.size, shutil.disk_usage(_existing(site.runs)).free
    if needed > free:
        raise OSError(
            f"{size(needed)} are needed in {site.runs}, but only {size(free)} are free: nothing was imported."
        )


def _existing(folder: Path) -> Path:
    """Return the folder, or the innermost one above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def _receive_run(
    run: PortableRun,
    here: Finished | None,
    content: _Content,
    archive: Archive,
    site: Site,
    received: Received,
) -> None:
    """Count one run, and add its encoder unless the store's record belongs to another training.

    Args:
        here: the finished run that the store had already; None if the archive's was added.
    """
    if here is not None and not run.agrees(here.metrics):
        received.clashes.append(
            f"clash: {run.spec_id} {run.name}: {_differing(here.metrics, run.final)}. "
            "The run here is unchanged."
        )
        return
    received.added += here is None
    received.present += here is not None
    if run.spec_id not in content.encoders:
        return
    path = site.runs / run.spec_id / FILE
    if not path.exists():
        _put(path, archive.read(f"runs/{run.spec_id}/{FILE}"))
        received.encoders += 1
    elif problem := _other_encoder(path, run.spec_id, content.encoders[run.spec_id]):
        received.kept.append(f"kept: {path}: {problem}, although the runs have the same values.")


def _other_encoder(path: Path, spec_id: str, digest: str) -> str:
    """Return in what the encoder at `path` differs from one with that digest, or "" if it does not."""
    try:
        here = encoder_file.digest(encoder_file.read(path.read_bytes(), spec_id=spec_id))
    except ValueError as error:
        return f"{error}; delete it and import again"
    return "" if here == digest else "its tensors differ from those in the archive"


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
    scale: str, tables: Mapping[str, Filled], folder: Path, received: Received, records: Records
) -> None:
    """Add the tables of a scale that do not differ from local ones, and write the index of all tables."""
    with publish.locked(folder):
        for table, filled in sorted(tables.items()):
            files = dict(zip(render.paths(table, folder), render.rendered(filled).values(), strict=True))
            here = {path: path.read_bytes() for path in files if path.exists()}
            if any(content != files[path].encode() for path, content in here.items()):
                received.kept.append(
                    f"kept: {folder / table}.* differs from the archive's table: "
                    f"`invoke reports --scale {scale}` renders it from the runs."
                )
            elif len(here) < len(files) or not all(
                path.is_file() for path in render.figure_paths(filled, folder)
            ):
                for path in (*files, *render.figure_paths(filled, folder)):
                    remove_drafts(path)
                render.write(filled, folder)
                received.tables[scale] = received.tables.get(scale, 0) + 1
        publish.publish_shared(scale, folder, partial(registered, scale), records)
    publish.publish_pdf(folder)


@dataclass(frozen=True)
class _Member:
    """The manifest's entry for a file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class _Content:
    """All that an archive adds, checked."""

    runs: dict[str, PortableRun]
    """Records by id."""
    encoders: dict[str, str]
    """Digests of the encoders' tensors, by the ids of their runs."""
    tables: dict[str, dict[str, Filled]]
    """Tables by scale and name."""
    skipped: list[str]
    """See `Received.skipped`."""


class Archive:
    """An archive that is open for reading."""

    def __init__(self, file: Path, zipped: zipfile.ZipFile) -> None:
        self._file, self._zip = file, zipped
        self.files: dict[str, _Member] = {}
        """Entries of all members except the manifest, by name."""
        self.digest = ""
        """SHA-256 of the manifest, and thereby of everything."""

    @classmethod
    @contextmanager
    def opened(cls, file: Path) -> Iterator[Archive]:
        """Yield the archive in `file`.

        Raises:
            ValueError: the zip itself is broken; the message is one line.
            OSError: the file cannot be read.
        """
        try:
            with naming(file):
                zipped = zips.opened(file, most=MOST_MEMBERS)
            with zipped:
                yield cls(file, zipped)
        except BROKEN as error:
            raise InvalidError(
                f"{file} is not a complete zip file ({error}): copy it again, or export it again."
            ) from None

    @property
    def size(self) -> int:
        """Number of bytes of all files."""
        return sum(member.size for member in self.files.values())

    def check(self) -> _Content:
        """Read every byte, and return the content.

        Raises:
            ValueError: something is wrong; the message describes it.
            OSError: the file cannot be read.
        """
        with naming(self._file):
            return self._checked()

    def _checked(self) -> _Content:
        self._check_members()
        self._read_manifest()
        for name, said in self.files.items():
            with self._zip.open(name) as member:
                if hashlib.file_digest(member, "sha256").hexdigest() != said.sha256:  # type: ignore[arg-type]
                    self.refuse(f"{name} does not match the manifest", "copy it again, or export it again")
        matches = [match for name in self.files if (match := RUN.fullmatch(name))]
        runs = {match[1]: self._record(match[0]) for match in matches if match[2] == RECORD}
        encoders = {
            match[1]: self._encoder(match[0], match[1], runs) for match in matches if match[2] == FILE
        }
        self._check_evaluated(runs, encoders)
        tables, needed, skipped = self._reports()
        needed |= {run.needs: f"run {run.spec_id}" for run in runs.values() if run.needs}
        if absent := [(who, spec_id) for spec_id, who in needed.items() if spec_id not in runs]:
            self.refuse(f"{absent[0][0]} needs run {absent[0][1]}, which the archive lacks")
        return _Content(runs, encoders, tables, skipped)

    def read(self, name: str) -> bytes:
        """Return the content of a file, compared with the manifest at each reading.

        The archive may be replaced after the first one.

        Raises:
            ValueError: the file has changed.
            OSError: the file cannot be read.
        """
        with naming(self._file):
            content = self._zip.read(name)
        if hashlib.sha256(content).hexdigest() != self.files[name].sha256:
            self.refuse(f"{name} does not match the manifest", "copy it again, or export it again")
        return content

    def _check_members(self) -> None:
        """Raise ValueError for members that no export writes, from the zip's directory alone."""
        infos = self._zip.infolist()
        names = [info.filename for info in infos]
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.filename != MANIFEST and not (
                any(kind.fullmatch(info.filename) for kind in (REPORT, FIGURE, RUN))
            ):
                self.refuse(f"{info.filename!r:.200} is not a name of a report or of a run's file")
            if not 0 <= info.header_offset < self._file.stat().st_size:
                self.refuse(f"{info.filename} lies outside the file", "copy it again, or export it again")
            if kind not in (0, stat.S_IFREG):
                self.refuse(f"{info.filename} is a link, or otherwise not a regular file")
            if (
                info.compress_type != zipfile.ZIP_STORED
                or info.compress_size != info.file_size
                or info.flag_bits & 1
            ):
                self.refuse(f"{info.filename} is compressed or encrypted, unlike the files of an export")
            if info.file_size > LARGEST_DOCUMENT and not info.filename.endswith(FILE):
                self.refuse(f"{info.filename} has {size(info.file_size)}, more than {size(LARGEST_DOCUMENT)}")
        if len(names) > MOST_MEMBERS:
            self.refuse(f"it contains {len(names)} files, but at most {MOST_MEMBERS} are read")
        if len(set(names)) < len(names):
            self.refuse("it contains a file twice")
        if sum(info.file_size for info in infos) > self._file.stat().st_size:
            self.refuse("its files are larger than the archive itself")

    def _read_manifest(self) -> None:
        """Raise ValueError if the manifest is missing, has another version, or does not list the members."""
        if MANIFEST not in self._zip.namelist():
            self.refuse(f"it has no {MANIFEST}", "give a file that `invoke export` wrote")
        content = self._zip.read(MANIFEST)
        data = self._json(MANIFEST, content)
        if not isinstance(data, dict) or data.get("kind") != KIND:
            self.refuse(
                f"its {MANIFEST} was written by another program", "give a file that `invoke export` wrote"
            )
        if data.get("version") != VERSION:
            self.refuse(
                f"it has version {data.get('version')}, but this suite reads version {VERSION}",
                "import it with the version of the suite that wrote it",
            )
        try:
            self.files = {
                name: _Member(str(said["sha256"]), int(said["size"])) for name, said in data["files"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError):
            self.refuse(f"its {MANIFEST} lists no files")
        if odd := [name for name, member in self.files.items() if not SHA256.fullmatch(member.sha256)]:
            self.refuse(f"its {MANIFEST} has no digest of {odd[0]!r:.200}")
        sizes = {info.filename: info.file_size for info in self._zip.infolist() if info.filename != MANIFEST}
        if missing := sorted(self.files.keys() - sizes.keys()):
            self.refuse(f"it lacks {missing[0]}, which its manifest lists")
        if extra := sorted(sizes.keys() - self.files.keys()):
            self.refuse(f"it contains {extra[0]}, which its manifest does not list")
        if wrong := [name for name, size in sizes.items() if size != self.files[name].size]:
            self.refuse(
                f"{wrong[0]} has {sizes[wrong[0]]} bytes, but the manifest lists {self.files[wrong[0]].size}"
            )
        self.digest = hashlib.sha256(content).hexdigest()

    def _record(self, name: str) -> PortableRun:
        """Return a run's record, after checking that its name, its id and the hash of its settings agree."""
        try:
            run = from_json(self._json(name, self.read(name)), name)
        except ValueError as error:
            self.refuse(str(error).rstrip("."))
        if name != f"runs/{run.spec_id}/{RECORD}":
            self.refuse(f"{name} is the record of run {run.spec_id}")
        if run.scale not in (*SCALES, CUSTOM):
            self.refuse(f"{name} has the unknown scale '{run.scale}'")
        return run

    def _encoder(self, name: str, spec_id: str, runs: Mapping[str, PortableRun]) -> str:
        """Return the digest of an encoder's tensors, after comparing them with it and with the run's network.

        Raises:
            ValueError: the encoder does not belong to a pretraining run in the archive.
        """
        if spec_id not in runs or not runs[spec_id].is_pretraining:
            self.refuse(f"it contains {name}, but no record of a pretraining run {spec_id}")
        try:
            tensors = encoder_file.read(self.read(name), spec_id=spec_id)
            check_backbone(str(runs[spec_id].settings.get("backbone")), tensors)
        except ValueError as error:
            self.refuse(f"{name} is not the encoder of run {spec_id}: {error}")
        return encoder_file.digest(tensors)

    def _check_evaluated(self, runs: Mapping[str, PortableRun], encoders: Mapping[str, str]) -> None:
        """Raise ValueError if an evaluation used another encoder than the archive's."""
        for run in runs.values():
            used = run.tags.get(ENCODER)
            if used and run.needs and encoders.get(run.needs, used) != used:
                self.refuse(f"run {run.spec_id} evaluated another encoder than that of run {run.needs}")

    def _reports(self) -> tuple[dict[str, dict[str, Filled]], dict[str, str], list[str]]:
        """Return the tables by scale and name, the runs behind them, and why a report cannot be shown."""
        tables: dict[str, dict[str, Filled]] = {}
        cited: dict[str, str] = {}
        skipped: list[str] = []
        for scale, names in tables_of(filter(REPORT.fullmatch, self.files)).items():
            if again := [name for name, count in Counter(map(str.lower, names)).items() if count > 1]:
                self.refuse(f"two of its tables differ from {again[0]} only in capital letters")
            for table in sorted(names):
                name = f"reports/{scale}/{table}.json"
                if name not in self.files:
                    self.refuse(f"it contains a report of {table}, but not {name}")
                try:
                    filled = self._report(name, scale, table)
                    cited |= dict.fromkeys(cited_by(filled, name), name)
                except ValueError as error:
                    skipped.append(f"skipped: {str(error).rstrip('.')}.")
                else:
                    tables.setdefault(scale, {})[table] = filled
        return tables, cited, skipped

    def _report(self, name: str, scale: str, table: str) -> Filled:
        """Return a table that can be shown.

        Raises:
            ValueError: it cannot; the message is one line.
        """
        content = self.read(name)
        _json(name, content)
        filled = render.checked(content, table, name)
        if filled.scale != scale:
            raise InvalidError(f"{name} contains a table at scale {filled.scale:.60}")
        return filled

    def _json(self, name: str, content: bytes) -> Any:
        try:
            return _json(name, content)
        except ValueError as error:
            self.refuse(str(error))

    def refuse(self, problem: str, remedy: str = "export it again") -> NoReturn:
        """Raise ValueError with one line for the user."""
        raise InvalidError(
            f"{self._file} was refused: {problem}; nothing was written. What would work: {remedy}."
        )


def _json(name: str, content: bytes) -> Any:
    """Return a JSON document in which no name is there twice.

    Raises:
        ValueError: the content is something else; the message names the file.
    """
    try:
        return json.loads(content, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{name} is not JSON ({first_line(error)})") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a JSON document.

    Raises:
        ValueError: a name is there twice, of which other readers may use the other one.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found
