"""The connection to a site's MLflow store, a sqlite file, a database or a server: opened when it is first
needed, made if need be.

    connection = Connection(site, retry_seconds=RETRY_SECONDS)
    for run in connection.search(Wanted(tags={"complete": ids})):
        run.info.status, run.data.metrics
    connection.retrying(lambda: connection.client.set_tag(run_id, "note", "..."))     # again and again while
    the store is away

The only module that imports mlflow, and only to write, or to read what `ledger.py` cannot, such as a server:
the import and the opening of the store take 3 CPU-seconds.
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
"""The beginning of our experiments' names."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What the UI takes an experiment for: training, not traces of language models."""
MAX_METRICS, MAX_PARAMS = 1000, 100
"""MLflow's limits for one batch."""


class Connection:
    """MLflow's store, as far as it is the same whatever is kept in it.

    Args:
        patience: for how many seconds `retrying` waits for a store that does not answer; 0: it says so at
            once, in one line.
    """

    def __init__(self, site: Site, retry_seconds: float) -> None:
        self.uri = site.store
        scheme = self.uri.partition(":")[0] if ":" in self.uri else "file"
        if scheme == "file":
            raise InvalidError(
                f"The tracking store is '{self.uri}', a folder, which MLflow no longer writes. Set MLFLOW_TRACKING_URI or tracking_uri in "
                "the site file to a database (sqlite:////path/mlflow.db) or a server (http://host:port), or leave both empty."
            )
        self.server = scheme in ("http", "https")
        self.file = Path(self.uri.removeprefix("sqlite:///")).absolute() if scheme == "sqlite" else None
        """None: it is no sqlite file."""
        self.artifacts = site.runs.absolute() / "artifacts"
        """Where the artifacts of a store lie that is no server."""
        self._runs = site.runs
        self._retry_seconds = retry_seconds

    @property
    def absent(self) -> bool:
        """Whether it is a file that is not there yet."""
        return self.file is not None and not self.file.exists()

    @cached_property
    def client(self) -> Any:
        """MLflow's client, the store created if need be."""
        if self.server:
            self.check_server()
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # The patience is ours: by itself, MLflow would try seven times and wait two minutes for each answer,
        # and nobody could stop it.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        self.create()
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(
            logging.CRITICAL
        )  # what it logs, with its traceback, it raises, too
        return MlflowClient(self.uri)

    def create(self) -> None:
        """Creates the sqlite store, once however many processes ask for it: the file appears when its tables
        are complete."""
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
        """What reads a sqlite file, which is there, without mlflow; None: only MLflow's client can read this
        store."""
        return None if self.file is None else SqliteReader.open(self.file)

    def experiments(self, name: str = "") -> list[str]:
        """The ids of our experiments, or of the one of that name; none where there is no store yet."""
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
        """The id of our experiment of that name, created if need be."""
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
        """Active runs, the newest first; where a tag may have several values, the newest first of each.

        Args:
            experiments: ids of those that are looked through; None: all of ours.
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
        """Writes measurements, params and tags in as few batches as MLflow allows."""
        from mlflow.entities import Metric, Param, RunTag

        for batch in _chunks(points, MAX_METRICS):
            self.client.log_batch(run_id, metrics=[Metric(*point) for point in batch])
        for items in _chunks(list((params or {}).items()), MAX_PARAMS):
            self.client.log_batch(run_id, params=[Param(key, value) for key, value in items])
        for items in _chunks(list((tags or {}).items()), MAX_PARAMS):
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in items])

    def log_document(self, run_id: str, name: str, content: object) -> None:
        """Adds plain data to a run's artifacts."""
        self.client.log_text(run_id, json.dumps(content, indent=2) + "\n", name)

    def retrying(self, action: Callable[[], T]) -> T:
        """Does it, again and again while the store is away.

        Raises:
            UnreachableError: it was for as long as this store has patience.
            ConnectionError: it does not do it, and this store has no patience.
            OSError: the disk of the store is full.
        """

        def attempt() -> T:
            if self.server:
                self.check_server()
            with self.disk_errors():
                return action()

        with nullcontext() if self._retry_seconds else self.one_line_errors():
            return retrying(attempt, unreachable=self.unreachable, seconds=self._retry_seconds)

    def unreachable(self, error: Exception) -> bool:
        """Whether the store may take the same a while later."""
        return unreachable(error, file=self.file is not None)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Says in one line that the store's file cannot grow, which MLflow says in many."""
        try:
            yield
        except Exception as error:
            if self.file is None or not (problem := disk_full(error)) or isinstance(error, OSError):
                raise
            raise OSError(
                f"The tracking store {self.file} cannot be written ({problem}): make room, and the same command goes on from the last "
                "checkpoint."
            ) from error

    @contextmanager
    def one_line_errors(self) -> Iterator[None]:
        """Says in one line, for a command, what MLflow says in many: its store is full, locked or may only be
        read, or breaks off."""
        try:
            with self.disk_errors():
                yield
        except Exception as error:
            if not of_mlflow(error):
                raise
            raise ConnectionError(
                f"The tracking store {self.uri} does not do what is asked of it: {in_short(error)}"
            ) from error

    def check_server(self, seconds: float = 10) -> None:
        """Raises ConnectionError where no server answers, at once: MLflow itself would go on trying."""
        address = urlsplit(self.uri)
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), timeout=seconds).close()
        except OSError as error:
            raise ConnectionError(
                f"No tracking server answers at {self.uri} ({error}). Start it, or set another MLFLOW_TRACKING_URI."
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Between looking for a run and claiming it, no other process of this machine may do the same."""
        import filelock

        self._runs.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._runs / "tracking.lock"):
            yield


def of_mlflow(error: BaseException) -> bool:
    """Whether an exception is one of MLflow's, which need not be imported for this."""
    return hasattr(error, "get_http_status_code")


def _filters(wanted: Wanted) -> Iterator[str]:
    """The same in MLflow's language, which has no IN for tags: one filter for each combination of their
    values."""
    fixed = [
        f"attributes.{name} = '{value}'"
        for name, value in (("run_id", wanted.run_id), ("status", wanted.status))
        if value
    ]
    fixed += [f"tags.{key} LIKE '{beginning}%'" for key, beginning in wanted.begins.items()]
    fixed += [f"tags.{key} IS NOT NULL" for key in wanted.there] + [
        f"tags.{key} IS NULL" for key in wanted.absent
    ]
    for values in itertools.product(*wanted.tags.values()):
        yield " and ".join(
            (*(f"tags.{key} = '{value}'" for key, value in zip(wanted.tags, values, strict=True)), *fixed)
        )


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
