"""The connection to a site's MLflow store: a sqlite file, a database or a server.

    connection = Connection(site, retry_seconds=RETRY_SECONDS)
    for run in connection.search(Wanted(tags={"complete": ids})):
        run.info.status, run.data.metrics
    connection.retrying(lambda: connection.client.set_tag(run_id, "note", "..."))   # while it is unreachable

The connection is opened when it is first needed, and a missing sqlite file is created. This is the only
module that imports mlflow, and only to write, or to read what `sqlite.py` cannot read, such as a server: the
import and the opening of the store take 3 CPU-seconds.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from reproduce.messages import InvalidError
from reproduce.runs.journal import Point
from reproduce.site import Site
from reproduce.tracking.retry import disk_full, in_short, retrying, unreachable
from reproduce.tracking.sqlite import SqliteReader, Wanted

T = TypeVar("T")

EXPERIMENTS = "msbreg/"
"""Prefix of the names of this project's experiments."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag that makes the UI show an experiment as training, not as traces of language models."""
MAX_METRICS, MAX_PARAMS = 1000, 100
"""Maximum number of metrics, and of params, in one batch (MLflow's limits)."""


class Connection:
    """MLflow's store, independent of what is kept in it.

    Args:
        retry_seconds: seconds for which `retrying` retries while the store is unreachable; with 0 the first
            failure raises an error of one line.
    """

    def __init__(self, site: Site, retry_seconds: float) -> None:
        self.uri = site.store
        scheme = self.uri.partition(":")[0] if ":" in self.uri else "file"
        if scheme == "file":
            raise InvalidError(
                f"The tracking store is '{self.uri}', a folder; MLflow no longer writes to folders. Set "
                "MLFLOW_TRACKING_URI, or tracking_uri in the site file, to a database "
                "(sqlite:////path/mlflow.db) or a server (http://host:port), or leave both empty."
            )
        self.server = scheme in ("http", "https")
        self.file = Path(self.uri.removeprefix("sqlite:///")).absolute() if scheme == "sqlite" else None
        """Path of the sqlite file; None if the store is something else."""
        self.artifacts = site.runs.absolute() / "artifacts"
        """Folder of the artifacts, unless the store is a server."""
        self._runs = site.runs
        self._retry_seconds = retry_seconds

    @property
    def absent(self) -> bool:
        """True if the store is a file that does not exist yet."""
        return self.file is not None and not self.file.exists()

    @cached_property
    def client(self) -> Any:
        """MLflow's client; creates the store if necessary."""
        if self.server:
            self.check_server()
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # `retrying` retries instead of MLflow, which would try seven times, wait two minutes for each answer
        # and ignore stop requests.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        self.create()
        from mlflow.tracking import MlflowClient

        # It logs, with a traceback, what it raises anyway.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        return MlflowClient(self.uri)

    def create(self) -> None:
        """Create the sqlite store, only once even if several processes ask for it.

        The file appears when its tables are complete.
        """
        if self.file is None or self.file.exists():
            return
        import filelock

        self.file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{self.file}.lock"):
            if self.file.exists():
                return
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            for talkative in ("alembic", "mlflow.store.db.utils"):
                logging.getLogger(talkative).setLevel(logging.WARNING)
            draft = self.file.with_name(f".{self.file.name}.draft")
            draft.unlink(missing_ok=True)
            SqlAlchemyStore(f"sqlite:///{draft}", self.artifacts.as_uri()).engine.dispose()  # type: ignore[no-untyped-call]
            draft.replace(self.file)

    @cached_property
    def reader(self) -> SqliteReader | None:
        """Reader of the sqlite file, which must exist; None if only MLflow's client can read the store."""
        return None if self.file is None else SqliteReader.open(self.file)

    def experiments(self, name: str = "") -> list[str]:
        """Return the ids of this project's experiments, or of the one named `name`.

        There are none before the store exists.
        """
        if self.absent:
            return []
        if self.reader is not None:
            found = self.reader.experiments(EXPERIMENTS)
        else:
            listed = self.client.search_experiments(filter_string=f"name LIKE '{EXPERIMENTS}%'")
            found = {each.name: each.experiment_id for each in listed}
        return [
            experiment for each, experiment in found.items() if name in ("", each.removeprefix(EXPERIMENTS))
        ]

    def experiment(self, name: str) -> str:
        """Return the id of this project's experiment with that name, which is created if necessary."""
        from mlflow.exceptions import MlflowException

        name = EXPERIMENTS + name
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if self.server else (self.artifacts / name).as_uri()
            try:
                return str(self.client.create_experiment(name, artifact_location=location, tags=KIND))
            except MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def search(
        self, wanted: Wanted, experiments: Sequence[str] | None = None, limit: int | None = None
    ) -> Iterator[Any]:
        """Yield active runs, the newest first; with several values of a tag, the newest first for each value.

        Args:
            experiments: ids of the experiments to search; None for all of this project.
        """
        experiments = self.experiments() if experiments is None else experiments
        if not experiments:
            return
        if self.reader is not None:
            yield from self.reader.search(experiments, wanted, limit)
            return
        for condition in _filters(wanted):
            token, left = None, limit
            while left is None or left > 0:
                page = self.client.search_runs(
                    experiments,
                    condition,
                    max_results=min(left or 500, 500),
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
                yield from page
                left = None if left is None else left - len(page)
                token = page.token
                if not token:
                    break

    def log_batches(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        *,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write measurements, params and tags in as few batches as MLflow allows."""
        from mlflow.entities import Metric, Param, RunTag

        for batch in _chunks(points, MAX_METRICS):
            self.client.log_batch(run_id, metrics=[Metric(*point) for point in batch])
        for items in _chunks(list((params or {}).items()), MAX_PARAMS):
            self.client.log_batch(run_id, params=[Param(key, value) for key, value in items])
        for items in _chunks(list((tags or {}).items()), MAX_PARAMS):
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in items])

    def log_document(self, run_id: str, name: str, content: object) -> None:
        """Add plain data to a run's artifacts."""
        self.client.log_text(run_id, json.dumps(content, indent=2) + "\n", name)

    def retrying(self, action: Callable[[], T]) -> T:
        """Run `action`, and repeat it while the store is unreachable.

        Raises:
            UnreachableError: the store was unreachable for `retry_seconds`.
            ConnectionError: the store refused or was unreachable, and `retry_seconds` is 0.
            OSError: the store's disk is full.
        """

        def attempt() -> T:
            if self.server:
                self.check_server()
            with self.disk_errors():
                return action()

        with nullcontext() if self._retry_seconds else self.one_line_errors():
            return retrying(attempt, unreachable=self.unreachable, seconds=self._retry_seconds)

    def unreachable(self, error: Exception) -> bool:
        """Return whether the error is temporary, so that a later attempt may succeed."""
        return unreachable(error, file=self.file is not None)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Raise an error of one line if the store's file cannot grow; MLflow's has many."""
        try:
            yield
        except Exception as error:
            if self.file is None or not (problem := disk_full(error)) or isinstance(error, OSError):
                raise
            raise OSError(
                f"The tracking store {self.file} cannot be written ({problem}): free some disk space, and "
                "the same command resumes from the last checkpoint."
            ) from error

    @contextmanager
    def one_line_errors(self) -> Iterator[None]:
        """Raise a one-line error, for commands, if the store is full, locked or read-only, or disconnects."""
        try:
            with self.disk_errors():
                yield
        except Exception as error:
            if not of_mlflow(error):
                raise
            raise ConnectionError(
                f"The tracking store {self.uri} refuses a request: {in_short(error)}"
            ) from error

    def check_server(self, seconds: float = 10) -> None:
        """Raise ConnectionError at once if no server answers; MLflow itself would retry."""
        address = urlsplit(self.uri)
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), timeout=seconds).close()
        except OSError as error:
            raise ConnectionError(
                f"No tracking server answers at {self.uri} ({error}). Start it, or set another "
                "MLFLOW_TRACKING_URI."
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes of this machine from claiming a run, from the search for it to the claim."""
        import filelock

        self._runs.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._runs / "tracking.lock"):
            yield


def of_mlflow(error: BaseException) -> bool:
    """Return whether an exception is MLflow's, without importing mlflow."""
    return hasattr(error, "get_http_status_code")


def _filters(wanted: Wanted) -> Iterator[str]:
    """Yield `wanted` in MLflow's filter language, one filter for each combination of tag values.

    The language has no IN for tags.
    """
    fixed = [
        f"attributes.{name} = '{value}'"
        for name, value in (("run_id", wanted.run_id), ("status", wanted.status))
        if value
    ]
    fixed += [f"tags.{key} LIKE '{beginning}%'" for key, beginning in wanted.begins.items()]
    fixed += [f"tags.{key} IS NOT NULL" for key in wanted.present] + [
        f"tags.{key} IS NULL" for key in wanted.absent
    ]
    for values in itertools.product(*wanted.tags.values()):
        yield " and ".join(
            (*(f"tags.{key} = '{value}'" for key, value in zip(wanted.tags, values, strict=True)), *fixed)
        )


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
