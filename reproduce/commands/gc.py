"""What may go: files and records of runs that no table and no finished run refers to: `invoke gc`.

    found = find(site, Store(site))
    print("\\n".join(found.lines()))
    print("\\n".join(remove(found)))

A folder of a run is listed where the run is not finished, no table makes it at any scale (with default
options, `SEEDS` seeds, quoted and released baselines), nobody owns it, and no finished evaluation is of its
encoder. So are the checkpoints that finished runs left, drafts that nobody goes on with, and features of
encoders that no run here evaluated. What is removed gets another name first, in one step, so that a kill in
the middle leaves no half folder under a run's name; the next call removes the rest. Records are deleted as
MLflow deletes: they can be restored. Whatever else lies in the folder of runs stays.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reproduce import messages
from reproduce.nn import feature_cache
from reproduce.nn.encoder import FILE
from reproduce.plan import SCALES, NotHereError, Request, table_names
from reproduce.runs import checkpoint, journal, lease
from reproduce.runs.claims import Claims
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.report.table import Table
    from reproduce.tracking.store import Store
    from reproduce.tracking.tags import Record

SEEDS = 10
"""Seeds from 0 on of which a table's runs are kept."""
OLD = 24 * 3600.0
"""Seconds after which nobody goes on with a draft: a file is written in minutes."""
HEARTBEAT = 10.0
"""Of the lease under which a folder is removed; it is gone with the folder."""
ASIDE = ".removed-"
"""What the names of folders begin with that are being removed."""
RUN = re.compile(r"[0-9a-f]{12}")
OURS = (lease.FILE, lease.LOCK, "lock", "log.txt", FILE)
"""Files by which a run's folder is known, besides its name."""
EVERY = 1_000_000
"""Finished evaluations of a scale, at most."""
DRAFTS = ("*/.*.tmp", "weights/*/.*.tmp", "features/*.tmp")
"""Where drafts are in the folder of runs."""

Kind = Literal["run", "checkpoints", "draft", "features", "record"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that may go."""

    kind: Kind
    name: str
    """Of a file or folder, from the folder that holds it; of a record, MLflow's."""
    size: int
    """Bytes."""
    age: float
    """Seconds since it was last written."""
    why: str
    remove: Callable[[], str]
    """Removes it, and says why it could not; empty: it is gone. Raises OSError."""

    def __str__(self) -> str:
        size = "" if self.kind == "record" else messages.size(self.size)
        return f"{self.kind:<11}  {size:>8}  {messages.age(self.age):>8}  {self.name}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What may go, and what looks like it and stays."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    """A line for each thing that stays and might be missed."""

    def lines(self) -> Iterator[str]:
        """What `invoke gc` prints."""
        yield from map(str, self.items)
        yield from self.notes
        yield (
            f"{_counted(self.items)} `invoke gc --delete` removes that."
            if self.items
            else "There is nothing to remove."
        )


@dataclass
class _Runs:
    """What is known of the runs whose folders or unfinished records are here."""

    site: Site
    folders: dict[str, Path]
    unfinished: dict[str, list[Record]]
    """Records by the ids of their specs."""
    finished: set[str]
    notes: list[str]

    def owned(self, spec_id: str) -> bool:
        """Whether somebody does the run, or may do it where that cannot be seen from here."""
        running = any(record.state.state == "running" for record in self.unfinished.get(spec_id, ()))
        return running or spec_id in Claims(self.site).leases([spec_id])


def find(site: Site, store: Store) -> Found:
    """Everything that may go; changes nothing.

    Raises:
        OSError: the folder of runs cannot be read.
        ConnectionError: the tracking store cannot be asked.
    """
    if not site.runs.is_dir():
        return Found(items=(), notes=(f"There is no folder {site.runs}.",))
    runs = _known(site, store)
    gone = _unwanted(runs, store)
    items = [
        *(_run(runs, spec_id, store) for spec_id in gone if spec_id in runs.folders),
        *(_record(runs, record, store) for spec_id in gone for record in runs.unfinished.get(spec_id, ())),
        *_checkpoints(runs),
        *_features(runs, gone, store),
        *_drafts(site, gone),
    ]
    return Found(items=tuple(items), notes=tuple(runs.notes))


def remove(found: Found) -> tuple[list[str], int]:
    """Removes what was found.

    Returns:
        What to print, and how many things could not be removed.
    """
    lines, gone, stayed = [], [], 0
    for item in found.items:
        try:
            problem = item.remove()
        except FileNotFoundError:  # somebody else was faster
            problem = ""
        except OSError as error:
            problem, stayed = error.strerror or str(error), stayed + 1
        lines.append(f"stays  {item.name}: {problem}" if problem else f"removed  {item.name}")
        gone += [] if problem else [item]
    records = any(item.kind == "record" for item in gone)
    restored = " `mlflow runs restore --run-id ID` restores a record." if records else ""
    return [
        *lines,
        *found.notes,
        f"Removed: {_counted(gone)}{restored}" if gone else "Nothing was removed.",
    ], stayed


def _known(site: Site, store: Store) -> _Runs:
    """The runs here, with one question to the store for all."""
    folders = {
        path.name: path
        for path in sorted(site.runs.iterdir())
        if RUN.fullmatch(path.name) and _is_folder(path) and _ours(path)
    }
    unfinished = defaultdict(list)
    for record in store.unfinished():
        unfinished[record.state.spec_id].append(record)
    return _Runs(site, folders, dict(unfinished), set(store.finished({*folders, *unfinished})), [])


def _unwanted(runs: _Runs, store: Store) -> list[str]:
    """The ids of runs that may go."""
    unfinished = sorted({*runs.folders, *runs.unfinished} - runs.finished)
    free = [spec_id for spec_id in unfinished if not runs.owned(spec_id) and _may_go(runs, spec_id)]
    wanted = _of_tables() | _of_evaluations(runs, free, store) if free else frozenset[str]()
    return [spec_id for spec_id in free if spec_id not in wanted]


def _may_go(runs: _Runs, spec_id: str) -> bool:
    """Whether what is here of an unfinished run may be garbage; notes what only looks so."""
    folder = runs.folders.get(spec_id)
    if folder is None:
        # A record of another machine's run, whose checkpoints cannot be seen from here, stays.
        return all(record.host == lease.this_host() for record in runs.unfinished[spec_id])
    held = lease.read(folder)
    if (held and held.state == "finished") or (spec_id not in runs.unfinished and (folder / FILE).exists()):
        runs.notes.append(
            f"stays  {_name(folder, runs.site)}: this tracking store does not know the run, another one may"
        )
    elif (folder / journal.RESULT).exists():
        runs.notes.append(
            f"stays  {_name(folder, runs.site)}: its result waits to be recorded; the command that began it does that"
        )
    else:
        return True
    return False


@cache
def _of_tables() -> frozenset[str]:
    """The ids of all runs that tables make; some 2 CPU-seconds."""
    measured = {ours.spec: ours for table in _tables() for _, _, ours in table.measured()}
    runs = {run for ours in measured.values() for run in ours.runs(SEEDS)}
    return frozenset(spec.id for spec in runs | {needed for run in runs for needed in run.needs()})


def _tables() -> Iterator[Table]:
    """Every table at every scale, with quoted and, where there are any, with released baselines."""
    for scale, name in itertools.product(SCALES, table_names()):
        yield (quoted := Request(table=name, scale=scale).build())
        if any(cell.released for row in quoted.rows for cell in row.cells.values()):
            with suppress(NotHereError):  # we run all of these already
                yield Request(table=name, scale=scale, baselines="released").build()


def _of_evaluations(runs: _Runs, ids: Iterable[str], store: Store) -> set[str]:
    """The pretrainings among `ids` whose encoder a finished evaluation used: their own finished record was
    deleted by hand."""
    pretrainings = [
        record
        for spec_id in ids
        for record in runs.unfinished.get(spec_id, ())
        if "protocol" not in record.settings
    ]
    evaluated: list[dict[str, str]] = []
    for scale in {record.state.scale for record in pretrainings}:
        for evaluation in store.newest_finished("evaluate", scale, limit=EVERY):
            settings = evaluation.settings.items()
            evaluated.append(
                {key.removeprefix("encoder."): value for key, value in settings if key.startswith("encoder.")}
            )
    return {record.state.spec_id for record in pretrainings if record.settings in evaluated}


def _run(runs: _Runs, spec_id: str, store: Store) -> Item:
    """The item of a run's folder."""
    folder, records = runs.folders[spec_id], runs.unfinished.get(spec_id, ())
    before = next((f"{record.state.state} ({record.state.reason})" for record in records), "it has no record")
    size, age = _measured([folder])
    away = partial(_remove_run, folder, spec_id, runs.site, store)
    return Item(
        kind="run",
        name=_name(folder, runs.site),
        size=size,
        age=age,
        why=f"{before}, and no table makes it",
        remove=away,
    )


def _remove_run(folder: Path, spec_id: str, site: Site, store: Store) -> str:
    """Removes a run's folder as its owner, so that nobody begins the run meanwhile."""
    if not folder.exists():
        return ""
    try:
        lease.take(folder, spec_id, heartbeat=HEARTBEAT)  # no `with`: the lease goes with the folder
    except lease.BusyError as busy:
        return f"{busy.lease.who} does it now"
    if store.finished([spec_id]):
        return "it is finished now"
    _away(folder, site.runs)
    return ""


def _record(runs: _Runs, record: Record, store: Store) -> Item:
    """The item of a record; it goes after the folder, so that what stays of a run is known."""
    state, folder = record.state, runs.site.runs / record.state.spec_id

    def away() -> str:
        if folder.exists():
            return "the run's folder stays"
        return "" if store.delete(state.run_id) else "it is running or finished now"

    why = f"{state.state} ({state.reason}), run {state.spec_id}, which no table makes"
    began = time.time() - state.started.timestamp()
    return Item(kind="record", name=state.run_id, size=0, age=began, why=why, remove=away)


def _checkpoints(runs: _Runs) -> Iterator[Item]:
    """What finished runs left: they were killed between their last two steps."""
    for spec_id in runs.finished & set(runs.folders):
        result = runs.folders[spec_id] / journal.RESULT
        left = [*checkpoint.leftovers(runs.folders[spec_id]), *([result] if result.exists() else [])]
        if left and not runs.owned(spec_id):
            size, age = _measured(left)
            name = f"{_name(runs.folders[spec_id], runs.site)}: {', '.join(path.name for path in left)}"
            away = partial(_remove_all, left, runs.site.runs)
            yield Item(
                kind="checkpoints", name=name, size=size, age=age, why="the run is finished", remove=away
            )


def _features(runs: _Runs, gone: Iterable[str], store: Store) -> Iterator[Item]:
    """Features of encoders that are neither here nor evaluated by any run that stays."""
    found = {
        path: feature_cache.encoder_of(path)
        for path in sorted((runs.site.runs / "features").glob("*.safetensors"))
    }
    here = (
        {_encoder_digest(folder) for spec_id, folder in runs.folders.items() if spec_id not in gone}
        if found
        else set()
    )
    unknown = {digest for digest in found.values() if digest and digest not in here}
    used = (
        {digest for digest, spec_id in store.evaluated(unknown) if spec_id not in gone} if unknown else set()
    )
    for path, digest in found.items():
        if digest in unknown - used:
            size, age = _measured([path])
            why = f"no run here evaluated their encoder ({digest[:12]})"
            away = partial(_remove_features, path)
            yield Item(kind="features", name=_name(path, runs.site), size=size, age=age, why=why, remove=away)


def _remove_features(path: Path) -> str:
    return "" if feature_cache.discard(path) else "a run reads them now"


def _drafts(site: Site, gone: Iterable[str]) -> Iterator[Item]:
    """Drafts of killed processes, but for those in folders that go, and what an earlier call was killed
    over."""
    places = [path for pattern in DRAFTS for path in site.runs.glob(pattern)] + list(
        site.reports.glob("*/.*.tmp")
    )
    for path in sorted(path for path in places if path.parent.name not in gone):
        size, age = _measured([path])
        if path.is_file() and age > OLD:
            away = partial(_remove_all, [path], site.runs)
            yield Item(
                kind="draft",
                name=_name(path, site),
                size=size,
                age=age,
                why="half written, for a day",
                remove=away,
            )
    for path in sorted(site.runs.glob(f"{ASIDE}*")):
        size, age = _measured([path])
        away = partial(_remove_all, [path], site.runs)
        yield Item(
            kind="draft",
            name=_name(path, site),
            size=size,
            age=age,
            why="its removal was interrupted",
            remove=away,
        )


def _remove_all(paths: Iterable[Path], runs: Path) -> str:
    for path in paths:
        _away(path, runs)
    return ""


def _away(path: Path, runs: Path) -> None:
    """Removes a file, or a folder in two steps, of which the first takes it away from its name.

    Raises:
        OSError: it may not be removed; it is where it was, or under another name, where the next call finds
            it.
    """
    if not _is_folder(path):
        path.unlink(missing_ok=True)
        return
    aside = path if path.name.startswith(ASIDE) else runs / f"{ASIDE}{path.name}-{secrets.token_hex(4)}"
    path.rename(aside)
    shutil.rmtree(aside)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder itself, and no link to one: we make none, so what is behind it is not ours."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _ours(folder: Path) -> bool:
    """Whether a folder that is named like a run is one."""
    return any((folder / name).exists() for name in OURS) or any(folder.glob("epoch-*.pt"))


def _encoder_digest(folder: Path) -> str:
    """The digest of the encoder in a run's folder; empty: there is none."""
    try:
        with (folder / FILE).open("rb") as file:
            return checkpoint.metadata(file).get(checkpoint.DIGEST, "")
    except (OSError, ValueError):
        return ""


def _measured(paths: Iterable[Path]) -> tuple[int, float]:
    """Bytes of files, and of all that is in folders; seconds since the newest was written. What is gone
    meanwhile counts nothing."""
    size, newest = 0, 0.0
    for path in paths:
        inside = (Path(root) / name for root, _, names in os.walk(path) for name in names)
        for each in (path, *inside):
            with suppress(OSError):
                found = each.lstat()
                size += 0 if stat.S_ISDIR(found.st_mode) else found.st_size
                newest = max(newest, found.st_mtime)
    return size, max(0.0, time.time() - newest)


def _name(path: Path, site: Site) -> str:
    """A path as messages name it."""
    return (
        f"runs/{path.relative_to(site.runs)}"
        if path.is_relative_to(site.runs)
        else f"reports/{path.relative_to(site.reports)}"
    )


NAMES: Mapping[Kind, tuple[str, str]] = {
    "run": ("run", "runs"),
    "checkpoints": ("run's checkpoints", "runs' checkpoints"),
    "draft": ("draft", "drafts"),
    "features": ("file of features", "files of features"),
    "record": ("record", "records"),
}
"""How one and how several of a kind are called."""


def _counted(items: Iterable[Item]) -> str:
    """`2 runs, 1 draft: 3.2 MB.`"""
    items = list(items)
    counts = Counter(item.kind for item in items)
    told = [f"{counts[kind]} {names[counts[kind] > 1]}" for kind, names in NAMES.items() if counts[kind]]
    return f"{', '.join(told)}: {messages.size(sum(item.size for item in items))}."
