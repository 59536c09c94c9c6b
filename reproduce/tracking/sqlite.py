"""Reads MLflow's own sqlite file by the standard library: `import mlflow` takes 3 CPU-seconds, all that a
finished table asks for 0.1.

    reader = SqliteReader.open(Path("runs/mlflow.db"))       # None: not a schema that this module knows; ask MLflow's
    client experiments = reader.experiments("msbreg/")
    for run in reader.search(experiments.values(), Wanted(tags={"complete": ids})):
        run.info.status, run.data.metrics

There is no second record that could go stale: each question is answered from MLflow's tables, with what its
client would answer. Nothing is ever written, and every run is read in one transaction, so none is seen
half-written. A question about 120 runs among 10 000 takes 0.05 s.
"""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

SCHEMAS = ("dc11669786a5",)
"""Versions of MLflow's tables (alembic's) on which the answers were compared with those of its client: mlflow
3.17's."""
LOCK_TIMEOUT = 30.0
"""Seconds to wait while another process writes; MLflow's own transactions take tenths."""
AT_ONCE = 500
"""Runs that are read in one transaction, during which no writer can commit: 0.1 s at our 140 tags and params
each."""
TAG = "SELECT 1 FROM tags WHERE tags.run_uuid = candidate.run_uuid AND key = ?"
"""A tag of a run that may be wanted."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which runs are looked for; what is left empty does not matter."""

    run_id: str = ""
    status: str = ""
    tags: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Tags that have one of these values."""
    begins: Mapping[str, str] = field(default_factory=dict)
    """Tags whose values begin so, with letters and digits."""
    there: tuple[str, ...] = ()
    """Tags that the run has."""
    absent: tuple[str, ...] = ()
    """Tags that it lacks."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What MLflow's `run.info` says, as far as it is used."""

    run_id: str
    run_name: str
    experiment_id: str
    status: str
    start_time: int
    """Milliseconds since 1970."""
    end_time: int | None


@dataclass(frozen=True, kw_only=True)
class Data:
    """What MLflow's `run.data` says."""

    metrics: dict[str, float]
    """The latest value of each."""
    params: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run as MLflow's client gives it."""

    info: Info
    data: Data


class SqliteReader:
    """MLflow's sqlite file, for reading."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @classmethod
    def open(cls, file: Path) -> Self | None:
        """The reader of a file that is there; None: its tables are not of a version that is known here.

        Raises:
            ConnectionError: as of `search`.
        """
        reader = cls(file)
        with reader._reading() as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
                return None
            versions = [version for (version,) in database.execute("SELECT version_num FROM alembic_version")]
        return reader if len(versions) == 1 and versions[0] in SCHEMAS else None

    def experiments(self, prefix: str) -> dict[str, str]:
        """The ids of the active experiments whose names begin with `prefix`, letters and slashes, by their
        names.

        Raises:
            ConnectionError: as of `search`.
        """
        query = "SELECT name, experiment_id FROM experiments WHERE name GLOB ? AND lifecycle_stage = 'active' ORDER BY name"
        with self._reading() as database:
            return {name: str(experiment) for name, experiment in database.execute(query, (f"{prefix}*",))}

    def search(self, experiments: Iterable[str], wanted: Wanted, limit: int | None = None) -> Iterator[Entry]:
        """Active runs of the experiments, the newest first.

        Raises:
            ConnectionError: the file cannot be read: it is damaged, or locked for half a minute.
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

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One transaction, in which nothing changes; a connection of its own, as none may be used after a
        fork or by another thread."""
        # Not mode=ro, which cannot roll back what a killed process left half-written. rw creates no file, and
        # query_only changes nothing.
        address = f"{self._file.as_uri()}?mode=rw"
        try:
            with closing(
                sqlite3.connect(address, uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)
            ) as database:
                database.execute("PRAGMA query_only = ON")
                database.execute("BEGIN")
                yield database
        except sqlite3.Error as error:
            raise ConnectionError(
                f"The tracking store {self._file} cannot be read ({error}): if it is locked, another process writes to it, so try again; "
                "if it is damaged, put a copy of it back."
            ) from None


def _query(experiments: Sequence[int], wanted: Wanted, limit: int | None) -> tuple[str, list[str | int]]:
    """What finds the ids of the runs that are wanted, the newest first, as MLflow orders them; and its
    parameters."""
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
    tests: list[tuple[str, list[str | int]]] = [(f"EXISTS ({TAG})", [key]) for key in wanted.there]
    tests += [(f"NOT EXISTS ({TAG})", [key]) for key in wanted.absent]
    # Tags have indexes by key and run, not by value. One pass over all tags of a key finds any number of
    # values; where a few runs are enough, the newest are tested one by one instead, until there are as many
    # as wanted.
    if limit is None:
        simple += [
            (f"run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? {test})", [*asked])
            for test, asked in values
        ]
    else:
        tests += [(f"EXISTS ({TAG} {test})", [*asked]) for test, asked in values]
    candidates = f"SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'{_all(simple)} ORDER BY start_time DESC, run_uuid LIMIT -1"
    query = f"SELECT run_uuid FROM ({candidates}) AS candidate WHERE TRUE{_all(tests)} LIMIT ?"
    return query, [*itertools.chain(*(asked for _, asked in simple + tests)), -1 if limit is None else limit]


def _all(tests: Sequence[tuple[str, object]]) -> str:
    return "".join(f" AND {test}" for test, _ in tests)


def _entries(database: sqlite3.Connection, ids: Sequence[str]) -> list[Entry]:
    """The runs of these ids, in their order, without those that were deleted meanwhile."""
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
