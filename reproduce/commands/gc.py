"""Leftovers: files and records of runs that no table and no finished run refers to (`invoke gc`).

    found = find(site, Store(site), older_than=7 * 86400)
    print("\\n".join(found.lines()))
    print("\\n".join(remove(found)))

The folder of a run is listed if the run is unfinished, no table uses it at any scale (with default options,
`SEEDS` seeds, all kinds of baselines), no process owns it, and no finished evaluation used its
encoder. Also listed are checkpoints of finished runs, abandoned drafts, features of encoders that no local
run evaluated, files of runs that `invoke redo` replaced, and pages of runs that no report needs.

Nothing is listed that changed in the last `MONTH`, and no run that could resume from a checkpoint. If the
user names an age, everything older is listed.

A folder is first renamed, in one step, and then deleted. A kill in between leaves no incomplete folder under
a run's name, and the next call deletes the rest. MLflow can restore deleted records.
Everything else in the folder of runs is left alone.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reproduce import identity, messages
from reproduce.commands import redo
from reproduce.nn import feature_cache
from reproduce.nn.encoder import FILE
from reproduce.plan import BASELINES, SCALES, NotHereError, Request, table_names
from reproduce.report import publish
from reproduce.runs import checkpoint, encoder_file, journal, lease, processes
from reproduce.runs.claims import Claims
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.report.table import Table
    from reproduce.tracking.store import Store
    from reproduce.tracking.tags import Record

SEEDS = 10
"""Number of seeds, from 0, whose runs of a table are kept."""
OLD = 24 * 3600.0
"""Seconds after which a draft counts as abandoned; a file is written within minutes."""
MONTH = 30 * 24 * 3600.0
"""Seconds for which everything is kept unless the user names another age."""
HEARTBEAT = 10.0
"""Heartbeat of the lease under which a folder is deleted; the lease is deleted with the folder."""
ASIDE = ".removed-"
"""Prefix of folders that are being deleted."""
RUN_FILES = (lease.FILE, lease.LOCK, "lock", "log.txt", FILE)
"""Files that identify a run's folder, in addition to its name."""
EVERY = 1_000_000
"""Maximum number of finished evaluations of a scale."""
DRAFTS = ("*/.*.tmp", "weights/*/.*.tmp")
"""Patterns of drafts in the folder of runs."""

Kind = Literal["run", "checkpoints", "draft", "replaced", "features", "record", "page"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that can be deleted."""

    kind: Kind
    name: str
    """Path of a file or folder relative to its root, or MLflow's id of a record."""
    size: int
    """Size in bytes."""
    age: float
    """Seconds since the newest of its files was written, or since the run ended."""
    why: str
    resumable: bool = False
    """True if work is lost that a later command would continue."""
    begun: bool = False
    """True if a call that was interrupted has begun to delete it."""
    remove: Callable[[], str]
    """Function that deletes the item and returns why it could not, or "" if it is gone; it may raise
    OSError."""

    def __str__(self) -> str:
        size = "" if self.kind == "record" else messages.size(self.size)
        return f"{self.kind:<11}  {size:>8}  {messages.age(self.age):>8}  {self.name}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything that can be deleted, and notes on what is kept although it looks similar."""

    items: tuple[Item, ...]
    command: str = "invoke gc --delete"
    """Command that removes what was found."""
    notes: tuple[str, ...] = ()
    """One line for each thing that is kept and could be missed in the list, and one that counts what is too
    young."""

    def lines(self) -> Iterator[str]:
        """Yield the lines that `invoke gc` prints."""
        yield from map(str, self.items)
        yield from self.notes
        if self.items:
            yield f"{_counted(self.items)} `{self.command}` removes all of this."
        else:
            yield "Nothing to remove."


@dataclass
class _Runs:
    """The runs with a local folder or an unfinished record."""

    site: Site
    store: Store
    folders: dict[str, Path]
    unfinished: dict[str, list[Record]]
    """Unfinished records, by the ids of their specs."""
    finished: set[str]
    notes: list[str]

    def owned(self, spec_id: str) -> bool:
        """Return True if a process executes the run, or may execute it out of sight of this machine."""
        running = any(record.state.state == "running" for record in self.unfinished.get(spec_id, ()))
        return running or spec_id in Claims(self.site).leases([spec_id])


def find(site: Site, store: Store, older_than: float | None = None) -> Found:
    """Return everything that can be deleted, without any change.

    Args:
        older_than: minimum age in seconds. None for a month, and for nothing that could be resumed.

    Raises:
        OSError: the folder of runs cannot be read.
        ConnectionError: the tracking store does not answer.
    """
    if not site.runs.is_dir():
        return Found(items=(), notes=(f"The folder {site.runs} does not exist.",))
    runs = _known(site, store)
    runs.notes += [f"kept  runs/{spec_id}: {each.who}" for spec_id, each in Claims(site).doubtful().items()]
    unwanted = _unwanted(runs, store)
    items = [
        *(_run(runs, spec_id, store) for spec_id in unwanted if spec_id in runs.folders),
        *(
            _record(runs, record, store)
            for spec_id in unwanted
            for record in runs.unfinished.get(spec_id, ())
        ),
        *_checkpoints(runs),
        *_features(runs, unwanted, store),
        *_drafts(site, unwanted),
        *_replaced(runs),
        *_pages(site),
    ]
    option = "" if older_than is None else f" --older-than {older_than:g}{'s' if older_than else ''}"
    listed = tuple(item for item in items if _asked(item, older_than))
    rest = [item for item in items if not _asked(item, older_than)]
    return Found(
        items=listed,
        command=f"invoke gc --delete{option}",
        notes=(*runs.notes, *([_not_listed(rest, older_than)] if rest else [])),
    )


def _asked(item: Item, older_than: float | None) -> bool:
    """Return True if an item is listed: it is old enough, and no work is lost without being asked for."""
    if item.begun or older_than is not None:
        return item.begun or item.age >= (older_than or 0.0)
    return item.age >= MONTH and not item.resumable


def _not_listed(rest: Sequence[Item], older_than: float | None) -> str:
    """Return a line that counts what is listed only if the user asks for it."""
    age = messages.age(MONTH if older_than is None else older_than)
    resumable = " or can be resumed" if older_than is None else ""
    why = f"because it is younger than {age}{resumable}"
    return f"Not listed, {why}: {_counted(rest)} `--older-than 0` lists all."


def remove(found: Found) -> tuple[list[str], int]:
    """Delete what was found.

    Returns:
        The lines to print, and the number of things that could not be deleted.
    """
    lines, removed, stayed = [], [], 0
    for item in found.items:
        try:
            problem = item.remove()
        except FileNotFoundError:  # another process was faster
            problem = ""
        except OSError as error:
            problem, stayed = error.strerror or str(error), stayed + 1
        lines.append(f"kept  {item.name}: {problem}" if problem else f"removed  {item.name}")
        removed += [] if problem else [item]
    records = any(item.kind == "record" for item in removed)
    restored = " `mlflow runs restore --run-id ID` restores a record." if records else ""
    return [
        *lines,
        *found.notes,
        f"Removed: {_counted(removed)}{restored}" if removed else "Nothing was removed.",
    ], stayed


def _known(site: Site, store: Store) -> _Runs:
    """Return the local runs, with a single query to the store."""
    folders = {
        path.name: path
        for path in sorted(site.runs.iterdir())
        if identity.ID.fullmatch(path.name) and _is_folder(path) and _ours(path)
    }
    unfinished = defaultdict(list)
    for record in store.unfinished():
        unfinished[record.state.spec_id].append(record)
    return _Runs(site, store, folders, dict(unfinished), set(store.finished({*folders, *unfinished})), [])


def _unwanted(runs: _Runs, store: Store) -> list[str]:
    """Return the ids of runs that can be deleted."""
    unfinished = sorted({*runs.folders, *runs.unfinished} - runs.finished)
    free = [spec_id for spec_id in unfinished if not runs.owned(spec_id) and _may_be_leftover(runs, spec_id)]
    wanted = _of_tables() | _of_evaluations(runs, free, store) if free else frozenset[str]()
    return [spec_id for spec_id in free if spec_id not in wanted]


def _may_be_leftover(runs: _Runs, spec_id: str) -> bool:
    """Return True if an unfinished run may be a leftover, and note why it is not."""
    folder = runs.folders.get(spec_id)
    if folder is None:
        # The record of another machine's run is kept: its checkpoints cannot be seen from here.
        return all(record.host == processes.this_host() for record in runs.unfinished[spec_id])
    held = lease.read(folder, spec_id)
    if (held and held.state == "finished") or (spec_id not in runs.unfinished and (folder / FILE).exists()):
        runs.notes.append(
            f"kept  {_name(folder, runs.site)}: this tracking store has no record of it, but another may "
            "have one"
        )
    elif (folder / journal.RESULT).exists():
        runs.notes.append(
            f"kept  {_name(folder, runs.site)}: its result is not recorded yet; the command that started "
            "it records it"
        )
    else:
        return True
    return False


@cache
def _of_tables() -> frozenset[str]:
    """Return the ids of all runs that tables use; takes about 2 CPU-seconds."""
    measured = {ours.spec: ours for table in _tables() for _, _, ours in table.measured()}
    runs = {run for ours in measured.values() for run in ours.runs(SEEDS)}
    return frozenset(spec.id for spec in runs | {needed for run in runs for needed in run.needs()})


def _tables() -> Iterator[Table]:
    """Yield every table at every scale, with every kind of baselines that it has."""
    for scale, name, baselines in itertools.product(SCALES, table_names(), BASELINES):
        with suppress(NotHereError):
            yield Request(table=name, scale=scale, baselines=baselines).build()


def _of_evaluations(runs: _Runs, ids: Iterable[str], store: Store) -> set[str]:
    """Return the pretrainings among `ids` whose encoder a finished evaluation used.

    Their own finished record was deleted by hand.
    """
    pretrainings = [
        record for spec_id in ids for record in runs.unfinished.get(spec_id, ()) if record.is_pretraining
    ]
    evaluated = [
        evaluation.encoder
        for scale in {record.state.scale for record in pretrainings}
        for evaluation in store.newest_finished("evaluate", scale, limit=EVERY)
    ]
    return {record.state.spec_id for record in pretrainings if record.settings in evaluated}


def _run(runs: _Runs, spec_id: str, store: Store) -> Item:
    """Return the item of a run's folder."""
    folder, records = runs.folders[spec_id], runs.unfinished.get(spec_id, ())
    state = next((f"{record.state.state} ({record.state.reason})" for record in records), "no record")
    size, age = _measured([folder])
    age = min([age, *map(_since, records)])
    return Item(
        kind="run",
        name=_name(folder, runs.site),
        size=size,
        age=age,
        why=f"{state}; no table uses it",
        resumable=_resumable(folder),
        remove=partial(_remove_run, folder, spec_id, runs.site, store),
    )


def _resumable(folder: Path) -> bool:
    """Return True if a run's folder contains work that a later command would continue."""
    return bool(checkpoint.leftovers(folder))


def _since(record: Record) -> float:
    """Return the seconds since a run ended; since its start if the end was not recorded."""
    return max(0.0, time.time() - (record.ended or record.state.started).timestamp())


def _remove_run(folder: Path, spec_id: str, site: Site, store: Store) -> str:
    """Delete a run's folder as its owner, so that no process starts the run meanwhile."""
    if not folder.exists():
        return ""
    try:
        lease.take(folder, spec_id, heartbeat=HEARTBEAT)  # no `with`: the lease goes with the folder
    except lease.BusyError as busy:
        return f"{busy.lease.who} executes it now"
    if store.finished([spec_id]):
        return "it is finished now"
    _delete(folder, site.runs)
    return ""


def _record(runs: _Runs, record: Record, store: Store) -> Item:
    """Return the item of a record.

    It is deleted after the run's folder, so that a run whose folder is kept keeps its record.
    """
    state, folder = record.state, runs.site.runs / record.state.spec_id

    def delete() -> str:
        if folder.exists():
            return "the run's folder is kept"
        return "" if store.delete(state.run_id) else "it is running or finished now"

    why = f"{state.state} ({state.reason}), run {state.spec_id}; no table uses it"
    age = _since(record)
    if state.spec_id in runs.folders:  # they are deleted together
        age = _run(runs, state.spec_id, store).age
    return Item(
        kind="record",
        name=state.run_id,
        size=0,
        age=age,
        why=why,
        resumable=_resumable(folder),
        remove=delete,
    )


def _checkpoints(runs: _Runs) -> Iterator[Item]:
    """Yield the files of finished runs that were killed between their last two steps."""
    # A finished run that is executed again, for other data, has an unfinished record.
    for spec_id in (runs.finished & set(runs.folders)) - set(runs.unfinished):
        result = runs.folders[spec_id] / journal.RESULT
        left = [*checkpoint.leftovers(runs.folders[spec_id]), *([result] if result.exists() else [])]
        if left and not runs.owned(spec_id):
            size, age = _measured(left)
            name = f"{_name(runs.folders[spec_id], runs.site)}: {', '.join(path.name for path in left)}"
            yield Item(
                kind="checkpoints",
                name=name,
                size=size,
                age=age,
                why="the run is finished",
                remove=partial(_remove_all, left, runs.site.runs),
            )


def _features(runs: _Runs, unwanted: Iterable[str], store: Store) -> Iterator[Item]:
    """Yield features whose encoder is not stored on this machine and was evaluated by no run that is kept."""
    found = {
        path: feature_cache.encoder_of(path)
        for path in sorted((runs.site.runs / "features").glob("*.safetensors"))
    }
    if not found:
        return
    local = {
        encoder_file.digest_of(folder / FILE)
        for spec_id, folder in runs.folders.items()
        if spec_id not in unwanted
    }
    unknown = {digest for digest in found.values() if digest and digest not in local}
    if not unknown:
        return
    used = {digest for digest, spec_id in store.evaluated(unknown) if spec_id not in unwanted}
    for path, digest in found.items():
        if digest in unknown - used:
            size, age = _measured([path])
            yield Item(
                kind="features",
                name=_name(path, runs.site),
                size=size,
                age=age,
                why=f"no local run evaluated their encoder ({digest[:12]})",
                remove=partial(_remove_features, path),
            )


def _remove_features(path: Path) -> str:
    return "" if feature_cache.discard(path) else "a run reads them now"


def _replaced(runs: _Runs) -> Iterator[Item]:
    """Yield the files of runs that `invoke redo` marked and that are finished again."""
    folders = {
        path: path.name[:12] for path in sorted((runs.site.runs / redo.FOLDER).glob("*")) if _is_folder(path)
    }
    again = set(runs.store.finished(folders.values())) if folders else set()
    for path, spec_id in folders.items():
        if spec_id in again:
            size, age = _measured([path])
            yield Item(
                kind="replaced",
                name=_name(path, runs.site),
                size=size,
                age=age,
                why="the run was executed again",
                remove=partial(_remove_all, [path], runs.site.runs),
            )


def _drafts(site: Site, unwanted: Iterable[str]) -> Iterator[Item]:
    """Yield drafts of killed processes outside `unwanted` folders, and folders of interrupted calls."""
    places = [path for pattern in DRAFTS for path in site.runs.glob(pattern)] + [
        path for pattern in ("*/.*.tmp", "*/figures/.*.tmp") for path in site.reports.glob(pattern)
    ]
    for path in sorted(path for path in places if path.parent.name not in unwanted):
        size, age = _measured([path])
        if path.is_file() and age > OLD:
            yield Item(
                kind="draft",
                name=_name(path, site),
                size=size,
                age=age,
                why="unfinished for more than a day",
                remove=partial(_remove_all, [path], site.runs),
            )
    for path in sorted(site.runs.glob(f"{ASIDE}*")):
        size, age = _measured([path])
        yield Item(
            kind="draft",
            name=_name(path, site),
            size=size,
            age=age,
            why="its removal was interrupted",
            begun=True,
            remove=partial(_remove_all, [path], site.runs),
        )


def _remove_all(paths: Iterable[Path], runs: Path) -> str:
    for path in paths:
        _delete(path, runs)
    return ""


def _delete(path: Path, runs: Path) -> None:
    """Delete a file, or a folder in two steps; the first step renames it.

    Raises:
        OSError: permission is missing; the path is unchanged, or has a name that the next call finds.
    """
    if not _is_folder(path):
        path.unlink(missing_ok=True)
        return
    aside = path if path.name.startswith(ASIDE) else runs / f"{ASIDE}{path.name}-{secrets.token_hex(4)}"
    path.rename(aside)
    shutil.rmtree(aside)


def _is_folder(path: Path) -> bool:
    """Return True if a path is a folder, not a link to one; runs make no links, so links are not ours."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _ours(folder: Path) -> bool:
    """Return True if a folder with a run's name belongs to a run."""
    return any((folder / name).exists() for name in RUN_FILES) or any(folder.glob("epoch-*.pt"))


def _measured(paths: Iterable[Path]) -> tuple[int, float]:
    """Return the total size of files and folders in bytes, and the seconds since the newest was written.

    Files that disappear meanwhile are ignored. The time of a folder counts only if it contains no file: a
    command that looks at a lease creates a temporary file next to it.
    """
    size, newest, of_folders = 0, 0.0, 0.0
    for path in paths:
        inside = (Path(root) / name for root, _, names in os.walk(path) for name in names)
        for each in (path, *inside):
            with suppress(OSError):
                found = each.lstat()
                if stat.S_ISDIR(found.st_mode):
                    of_folders = max(of_folders, found.st_mtime)
                else:
                    size, newest = size + found.st_size, max(newest, found.st_mtime)
    return size, max(0.0, time.time() - (newest or of_folders))


def _name(path: Path, site: Site) -> str:
    """Return a path in the form that messages use."""
    if path.is_relative_to(site.runs):
        return f"runs/{path.relative_to(site.runs)}"
    return f"reports/{path.relative_to(site.reports)}"


NAMES: Mapping[Kind, str] = {
    "run": "run",
    "checkpoints": "checkpoint set",
    "draft": "draft",
    "replaced": "replaced run",
    "features": "feature file",
    "page": "page",
    "record": "record",
}
"""Name of one item of each kind."""


def _pages(site: Site) -> Iterator[Item]:
    """Yield the pages of runs that no report needs; a command that was killed may leave them."""
    for scale in SCALES:
        for path in publish.unused_pages(site.reports / scale):
            size, age = _measured([path])
            yield Item(
                kind="page",
                name=f"reports/{path.relative_to(site.reports).as_posix()}",
                size=size,
                age=age,
                why="no report needs this page of a run",
                remove=partial(_remove_page, path),
            )


def _remove_page(path: Path) -> str:
    path.unlink()
    return ""


def _counted(items: Iterable[Item]) -> str:
    """Return the number of items of each kind and their size, such as `2 runs, 1 draft: 3.2 MB.`."""
    items = list(items)
    counts = Counter(item.kind for item in items)
    parts = [messages.counted(counts[kind], name) for kind, name in NAMES.items() if counts[kind]]
    return f"{', '.join(parts)}: {messages.size(sum(item.size for item in items))}."
