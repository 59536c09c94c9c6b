"""A reader of MLflow's sqlite file that uses only the standard library.

    reader = SqliteReader.open(Path("runs/mlflow.db"))   # None if its schema is unknown
    experiments = reader.experiments("msbreg/")
    for run in reader.search(experiments.values(), Wanted(tags={"complete": ids})):
        run.info.status, run.data.metrics

`import mlflow` takes 3 CPU-seconds; all that a finished table needs from the store takes 0.1. No second
record exists that could become stale: each question is answered from MLflow's tables, with the answer of its
client. Nothing is ever written, and each run is read in one transaction, so none is seen half-written. A
question about 120 runs among 10 000 takes 0.05 s.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from reproduce.tracking.errors import StoreError, of_file
from reproduce.tracking.locks import holders
from reproduce.tracking.retry import QUIET

SCHEMAS = ("dc11669786a5",)
"""Versions of MLflow's tables (alembic's) for which the answers were compared with those of its client:
mlflow 3.17's."""
LOCK_TIMEOUT = 30.0
"""Seconds to wait while another process writes; MLflow's own transactions take tenths of a second. After
QUIET, a line names that process."""
AT_ONCE = 500
"""Number of runs that are read in one transaction. Meanwhile no writer can commit: 0.1 s, at 140 tags and
params per run."""
TAG = "SELECT 1 FROM tags WHERE tags.run_uuid = candidate.run_uuid AND key = ?"
"""Query for a tag of a candidate run."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Conditions on the runs of a search; empty fields impose none."""

    run_id: str = ""
    status: str = ""
    tags: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Tags that must have one of these values."""
    begins: Mapping[str, str] = field(default_factory=dict)
    """Tags whose values must begin with these letters and digits."""
    present: tuple[str, ...] = ()
    """Tags that the run must have."""
    absent: tuple[str, ...] = ()
    """Tags that the run must not have."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """The used part of MLflow's `run.info`."""

    run_id: str
    run_name: str
    experiment_id: str
    status: str
    start_time: int
    """Milliseconds since 1970."""
    end_time: int | None


@dataclass(frozen=True, kw_only=True)
class Data:
    """MLflow's `run.data`."""

    metrics: dict[str, float]
    """Latest value of each metric."""
    params: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run in the form that MLflow's client returns."""

    info: Info
    data: Data


class SqliteReader:
    """A reader of MLflow's sqlite file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @classmethod
    def open(cls, file: Path) -> Self | None:
        """Return the reader of an existing file, or None if the version of its tables is unknown.

        Raises:
            StoreError: the database is not MLflow's, which would add its tables to it; or see `search`.
        """
        reader = cls(file)
        with reader._reading() as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
                raise StoreError(f"{file} is a database, but not MLflow's: set another path for the store.")
            versions = [version for (version,) in database.execute("SELECT version_num FROM alembic_version")]
        return reader if len(versions) == 1 and versions[0] in SCHEMAS else None

    def experiments(self, prefix: str) -> dict[str, tuple[str, bool]]:
        """Return the experiments by name: the id of each, and True if it is active or False if deleted.

        Args:
            prefix: beginning of their names: letters and slashes.

        Raises:
            StoreError: see `search`.
        """
        query = "SELECT name, experiment_id, lifecycle_stage FROM experiments WHERE name GLOB ? ORDER BY name"
        with self._reading() as database:
            found = database.execute(query, (f"{prefix}*",)).fetchall()
        return {name: (str(experiment), stage == "active") for name, experiment, stage in found}

    def search(self, experiments: Iterable[str], wanted: Wanted, limit: int | None = None) -> Iterator[Entry]:
        """Yield active runs of the experiments, the newest first.

        Raises:
            StoreError: the file cannot be read: it is damaged, or locked for half a minute.
        """
        query, values = _query([int(each) for each in experiments], wanted, limit)
        with self._reading() as database:
            ids = [run_id for (run_id,) in database.execute(query, values)]
            found = _entries(database, ids[:AT_ONCE])
        yield from found
        for start in range(AT_ONCE, len(ids), AT_ONCE):
            with self._reading() as database:
                found = _entries(database, ids[start : start + AT_ONCE])
            yield from found

    def histories(
        self, runs: Collection[str], names: Collection[str]
    ) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Return the steps and values of measurements by run and name, in order of steps.

        Of a repeated step, the value is the one that was logged last.

        Args:
            names: names; a `*` at the end of one stands for any text.

        Raises:
            StoreError: see `search`.
        """
        tests = " OR ".join("key GLOB ?" if name.endswith("*") else "key = ?" for name in names)
        query = (
            "SELECT run_uuid, key, step, value, is_nan FROM metrics "
            f"WHERE run_uuid IN (SELECT value FROM json_each(?)) AND ({tests or 'FALSE'}) "
            "ORDER BY run_uuid, key, step, timestamp, rowid"
        )
        found: dict[str, dict[str, dict[int, float]]] = {}
        with self._reading() as database:
            for run, key, step, value, is_nan in database.execute(query, [json.dumps([*runs]), *names]):
                found.setdefault(run, {}).setdefault(key, {})[step] = math.nan if is_nan else value
        return {run: {key: [*steps.items()] for key, steps in by.items()} for run, by in found.items()}

    def points(self, run: str) -> dict[str, list[tuple[int, float, int]]]:
        """Return (step, value, time in milliseconds) of every measurement of a run, as `histories` does.

        Raises:
            StoreError: see `search`.
        """
        query = (
            "SELECT key, step, value, is_nan, timestamp FROM metrics WHERE run_uuid = ? "
            "ORDER BY key, step, timestamp, rowid"
        )
        found: dict[str, dict[int, tuple[int, float, int]]] = {}
        with self._reading() as database:
            for key, step, value, is_nan, time in database.execute(query, [run]):
                found.setdefault(key, {})[step] = step, math.nan if is_nan else value, time
        return {key: [*steps.values()] for key, steps in found.items()}

    def artifacts(self, run: str) -> Path | None:
        """Return the folder of a run's artifacts; None if it is not a folder of this machine.

        Raises:
            StoreError: see `search`.
        """
        with self._reading() as database:
            row = database.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", [run]).fetchone()
        address = urlsplit(row[0] if row else "")
        folder = Path(unquote(address.path))
        return folder if address.scheme in ("file", "") and address.path and folder.is_dir() else None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction, in which nothing changes.

        It has its own connection, because no connection may be used after a fork or by another thread.
        """
        # Not mode=ro, which cannot roll back what a killed process left half-written. rw does not create a
        # file, and query_only prevents changes.
        address = f"{self._file.as_uri()}?mode=rw"
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=QUIET, isolation_level=None)) as database:
                database.execute("PRAGMA query_only = ON")
                database.execute("BEGIN")
                self._wait(database)
                yield database
        except sqlite3.Error as error:
            raise of_file(error, self._file) from None

    def _wait(self, database: sqlite3.Connection) -> None:
        """Wait until no other process writes; the transaction then keeps writers out."""
        first = "SELECT 1 FROM sqlite_master LIMIT 1"
        try:
            database.execute(first).fetchall()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            logger.warning(
                "Waiting for the tracking store %s, which %s holds.", self._file, holders(self._file)
            )
            database.execute(f"PRAGMA busy_timeout = {1000 * (LOCK_TIMEOUT - QUIET):.0f}")
            database.execute(first).fetchall()


def _query(experiments: Sequence[int], wanted: Wanted, limit: int | None) -> tuple[str, list[str | int]]:
    """Return the query for the ids of the wanted runs, newest first as in MLflow, and its parameters."""
    simple: list[tuple[str, list[str | int]]] = [
        (f"experiment_id IN ({_marks(experiments)})", [*experiments])
    ]
    simple += [
        (f"{column} = ?", [value])
        for column, value in (("run_uuid", wanted.run_id), ("status", wanted.status))
        if value
    ]
    values = [
        ("AND value IN (SELECT value FROM json_each(?))", [key, json.dumps([*among])])
        for key, among in wanted.tags.items()
    ]
    values += [("AND value GLOB ?", [key, f"{beginning}*"]) for key, beginning in wanted.begins.items()]
    tests: list[tuple[str, list[str | int]]] = [(f"EXISTS ({TAG})", [key]) for key in wanted.present]
    tests += [(f"NOT EXISTS ({TAG})", [key]) for key in wanted.absent]
    # Tags have indexes by key and run, not by value. One pass over all tags of a key finds any number of
    # values. With a limit, the newest runs are tested one by one instead, until enough are found.
    if limit is None:
        simple += [
            (f"run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? {test})", [*bound])
            for test, bound in values
        ]
    else:
        tests += [(f"EXISTS ({TAG} {test})", [*bound]) for test, bound in values]
    candidates = (
        f"SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'{_all(simple)} "
        "ORDER BY start_time DESC, run_uuid LIMIT -1"
    )
    query = f"SELECT run_uuid FROM ({candidates}) AS candidate WHERE TRUE{_all(tests)} LIMIT ?"
    return query, [*itertools.chain(*(bound for _, bound in simple + tests)), -1 if limit is None else limit]


def _all(tests: Sequence[tuple[str, object]]) -> str:
    return "".join(f" AND {test}" for test, _ in tests)


def _entries(database: sqlite3.Connection, ids: Sequence[str]) -> list[Entry]:
    """Return the runs with these ids in the same order, without those that were deleted meanwhile."""
    of_these = f"WHERE run_uuid IN ({_marks(ids)})"

    def rows(columns: str, table: str) -> sqlite3.Cursor:
        return database.execute(f"SELECT run_uuid, {columns} FROM {table} {of_these}", ids)

    def texts(table: str) -> dict[str, dict[str, str]]:
        # One row for each run: 140 of them take three times as long.
        query = f"SELECT run_uuid, json_group_object(key, value) FROM {table} {of_these} GROUP BY run_uuid"
        return defaultdict(
            dict, ((run_id, json.loads(texts)) for run_id, texts in database.execute(query, ids))
        )

    tags, params = texts("tags"), texts("params")
    metrics: dict[str, dict[str, float]] = defaultdict(dict)
    for run_id, key, value, is_nan in rows("key, value, is_nan", "latest_metrics"):
        metrics[run_id][key] = math.nan if is_nan else value
    infos = {
        run_id: Info(
            run_id=run_id,
            run_name=name or tags[run_id].get("mlflow.runName", ""),
            experiment_id=str(experiment),
            status=status,
            start_time=started,
            end_time=ended,
        )
        for run_id, name, experiment, status, started, ended, stage in rows(
            "name, experiment_id, status, start_time, end_time, lifecycle_stage", "runs"
        )
        if stage == "active"
    }
    return [
        Entry(
            info=infos[run_id], data=Data(metrics=metrics[run_id], params=params[run_id], tags=tags[run_id])
        )
        for run_id in ids
        if run_id in infos
    ]


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
