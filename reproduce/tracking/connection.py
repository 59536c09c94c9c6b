"""The connection to a site's MLflow store: a sqlite file, a database or a server.

    connection = Connection(site, retry_seconds=RETRY_SECONDS)
    for run in connection.search(Wanted(tags={"complete": ids})):
        run.info.status, run.data.metrics
    connection.retrying(lambda: connection.client.set_tag(run_id, "note", "..."))   # while it is unreachable

Every question and every write passes here, and each error of MLflow becomes a StoreError of one line. The
connection is opened when it is first needed, and a missing sqlite file is created. This is the only module
that imports mlflow, and only to write, or to read what `sqlite.py` cannot read, such as a server: the import
and the opening of the store take 3 CPU-seconds.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from reproduce.messages import InvalidError
from reproduce.runs import kinds
from reproduce.runs.journal import Point
from reproduce.site import Site
from reproduce.tracking import places
from reproduce.tracking.address import parse, spellings
from reproduce.tracking.errors import StoreError, check_answer, translated
from reproduce.tracking.retry import ANSWER, ANSWER_IN_A_RUN, held, retrying, variables
from reproduce.tracking.sqlite import SqliteReader, Wanted

T = TypeVar("T")

logger = logging.getLogger(__name__)

EXPERIMENTS = "msbreg/"
"""Prefix of the names of this project's experiments."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag that makes the UI show an experiment as training, not as traces of language models."""
MAX_METRICS, MAX_PARAMS = 1000, 100
"""Maximum number of metrics, and of params, in one batch (MLflow's limits)."""
LOCK_SECONDS = 60.0
"""Minimum number of seconds to wait for another process that claims a run or creates the store."""
EXISTS = "RESOURCE_ALREADY_EXISTS"
"""MLflow's error code for an experiment that another process has created."""


class Split(NamedTuple):
    """A split of a data set as MLflow shows it."""

    name: str
    digest: str
    split: str
    context: str
    """`training` or `evaluation`."""


class Connection:
    """MLflow's store, independent of what is kept in it.

    Args:
        retry_seconds: seconds for which `retrying` retries while the store is unreachable; with 0 the first
            failure raises an error of one line.
    """

    def __init__(self, site: Site, retry_seconds: float) -> None:
        self.address = parse(site.store)
        self.server = self.address.server
        self.file = self.address.file
        """Path of the sqlite file; None if the store is something else."""
        self.artifacts = site.runs.absolute() / "artifacts"
        """Folder of the artifacts, unless the store is a server."""
        self.without_secrets = site.without_secrets
        self._runs = site.runs
        self._retry_seconds = retry_seconds
        self._lock_seconds = max(LOCK_SECONDS, retry_seconds)

    @property
    def absent(self) -> bool:
        """True if the store is a file that does not exist yet.

        Raises:
            StoreError: its path leads to something that is not a database.
        """
        if self.file is None:
            return False
        try:
            found = self.file.stat()
        except FileNotFoundError:
            return True
        except OSError as error:
            raise StoreError(f"The tracking store {self.file} cannot be opened ({error.strerror}).") from None
        if not stat.S_ISREG(found.st_mode):
            kind = kinds.by_mode(found.st_mode)
            raise StoreError(
                f"The tracking store {self.file} is {kind}: set the path of a file, such as "
                "sqlite:////path/mlflow.db."
            )
        if not found.st_size:
            raise StoreError(
                f"The tracking store {self.file} is an empty file: restore a copy, or delete it, and the "
                "next run creates the store."
            )
        return False

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Give MLflow login and timeouts inside the block; raise StoreError in place of its errors."""
        # `retrying` retries instead of MLflow, which would try seven times, wait two minutes for each answer,
        # or as long as the server wants, and ignore stop requests.
        patience = {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_IN_A_RUN if self._retry_seconds else ANSWER),
            "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
        }
        unset = {name: value for name, value in patience.items() if name not in os.environ}
        with variables({**unset, **self.address.login}), translated(self.address, self.without_secrets):
            yield

    @cached_property
    def client(self) -> Any:
        """MLflow's client, whose methods raise StoreError; creates the store if necessary."""
        if self.server:
            self.check_server()
        if package := self.address.missing_driver:
            raise InvalidError(
                f"The tracking store {self.address.shown} needs a package that is not installed: "
                f"`pip install '{package}'`, or set another store."
            )
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self.create()
        from mlflow.tracking import MlflowClient

        if not self.server:
            from mlflow.store.db import utils

            utils.MAX_RETRY_COUNT = 1  # MLflow would try to open a database ten times, for two minutes
        # It logs, with a traceback, what it raises anyway.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        with self.asking():
            client = MlflowClient(self.uri())
        if self.file is not None and self.reader is not None:
            former = places.settle(self.file, self.artifacts, EXPERIMENTS)
            if former:
                logger.warning(
                    "The tracking store was moved or copied: its artifacts were in %s and are now in %s.",
                    former,
                    self.artifacts,
                )
        return _Client(client, self)

    def uri(self, file: Path | None = None) -> str:
        """Return the address for MLflow, of another file if one is given.

        Raises:
            StoreError: this version of SQLAlchemy cannot open a file with this path.
        """
        file = file or self.file
        if file is None:
            return self.address.uri
        from sqlalchemy.engine import make_url

        for spelling in spellings(file):
            if make_url(spelling).database == str(file):
                return spelling
        raise StoreError(f"The tracking store {file} cannot be opened: its path must not contain '?' or '%'.")

    def create(self) -> None:
        """Create the sqlite store, only once even if several processes ask for it.

        The file appears when its tables are complete.
        """
        if self.file is None or not self.absent:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with held(self.file.with_name(f"{self.file.name}.lock"), self._lock_seconds):
            if not self.absent:
                return
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            for talkative in ("alembic", "mlflow.store.db.utils"):
                logging.getLogger(talkative).setLevel(logging.WARNING)
            draft = self.file.with_name(f".{self.file.name}.draft")
            draft.unlink(missing_ok=True)
            with self.asking():
                store = SqlAlchemyStore(self.uri(draft), self.artifacts.as_uri())  # type: ignore[no-untyped-call]
                store.engine.dispose()
            draft.replace(self.file)

    @cached_property
    def reader(self) -> SqliteReader | None:
        """Reader of the sqlite file, which must exist; None if only MLflow's client can read the store."""
        return None if self.file is None else SqliteReader.open(self.file)

    def experiments(self, name: str = "") -> list[str]:
        """Return the ids of this project's experiments, or of the one named `name`.

        There are none before the store exists. One that was deleted in MLflow is restored, because all of its
        runs would otherwise be executed again.
        """
        if self.absent:
            return []
        found = self._listed() if self.reader is None else self.reader.experiments(EXPERIMENTS)
        wanted = {
            each: experiment
            for each, experiment in found.items()
            if name in ("", each.removeprefix(EXPERIMENTS))
        }
        for each, (experiment, active) in wanted.items():
            if not active:
                self._restore(each, experiment)
        return [experiment for experiment, _ in wanted.values()]

    def _listed(self) -> dict[str, tuple[str, bool]]:
        """Return the experiments as MLflow's client lists them; see `SqliteReader.experiments`."""
        client = self.client
        from mlflow.entities import ViewType

        listed = client.search_experiments(
            view_type=ViewType.ALL, filter_string=f"name LIKE '{EXPERIMENTS}%'"
        )
        return {each.name: (each.experiment_id, each.lifecycle_stage == "active") for each in listed}

    def _restore(self, name: str, experiment: str) -> None:
        """Restore an experiment that was deleted in MLflow, with its runs."""
        self.client.restore_experiment(experiment)
        logger.warning(
            "The experiment %s was deleted in MLflow and is restored with its runs. To set its runs aside, "
            "rename it.",
            name,
        )

    def experiment(self, name: str) -> str:
        """Return the id of this project's experiment with that name, which is created if necessary."""
        name = EXPERIMENTS + name
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if self.server else (self.artifacts / name).as_uri()
            try:
                return str(self.client.create_experiment(name, artifact_location=location, tags=KIND))
            except StoreError as error:
                if error.code != EXISTS:
                    raise
                found = self.client.get_experiment_by_name(name)  # another process was faster
        if found.lifecycle_stage != "active":
            self._restore(name, found.experiment_id)
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
        model_id: str | None = None,
        data: Split | None = None,
    ) -> None:
        """Write measurements, params and tags in as few batches as MLflow allows.

        Args:
            model_id: logged model that the measurements are about.
            data: split of a data set that they were taken on.
        """
        from mlflow.entities import Metric, Param, RunTag

        about = (model_id, data.name, data.digest) if data else (model_id,)
        for batch in _chunks(points, MAX_METRICS):
            self.client.log_batch(run_id, metrics=[Metric(*point, *about) for point in batch])
        for items in _chunks(list((params or {}).items()), MAX_PARAMS):
            self.client.log_batch(run_id, params=[Param(key, value) for key, value in items])
        for items in _chunks(list((tags or {}).items()), MAX_PARAMS):
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in items])

    def log_data(self, run_id: str, splits: Sequence[Split]) -> None:
        """Add splits of data sets to what a run read; MLflow ignores those that it has already."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(each.name, each.digest, "local", json.dumps({"split": each.split})),
                [InputTag("mlflow.data.context", each.context)],
            )
            for each in splits
        ]
        self.client.log_inputs(run_id, inputs)

    def log_model_input(self, run_id: str, model_id: str) -> None:
        """Record that a run used a logged model."""
        from mlflow.entities import LoggedModelInput

        self.client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

    def create_model(
        self, run_id: str, name: str, *, tags: Mapping[str, str], params: Mapping[str, str]
    ) -> str:
        """Create the logged model of an encoder whose file is an artifact of its run; return MLflow's id."""
        from mlflow.entities import LoggedModelOutput

        experiment = self.client.get_run(run_id).info.experiment_id
        model = self.client.create_logged_model(
            experiment, name, run_id, dict(tags), dict(params), model_type="encoder"
        )
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    @staticmethod
    def collectors() -> list[Callable[[], Any]]:
        """Return the classes of MLflow's collectors of system metrics: processor, disk, network, GPUs."""
        from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

        # One that cannot read a value would log a line each time.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        return [
            cpu_monitor.CPUMonitor,
            disk_monitor.DiskMonitor,
            network_monitor.NetworkMonitor,
            gpu_monitor.GPUMonitor,
        ]

    def log_document(self, run_id: str, name: str, content: object) -> None:
        """Add plain data to a run's artifacts."""
        self.client.log_text(run_id, json.dumps(content, indent=2) + "\n", name)

    def retrying(self, action: Callable[[], T]) -> T:
        """Run `action`, and repeat it while the store is unreachable.

        Raises:
            UnreachableError: the store was unreachable for `retry_seconds`.
            StoreError: the store refuses, is damaged, or cannot grow; or `retry_seconds` is 0 and it is
                unreachable.
        """

        def attempt() -> T:
            if self.server:
                self.check_server()
            return action()

        return retrying(attempt, seconds=self._retry_seconds)

    def check_server(self, seconds: float = 10) -> None:
        """Raise StoreError at once if no server answers; MLflow itself would retry."""
        try:
            socket.create_connection((self.address.host, self.address.port), timeout=seconds).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: the host's name is too long
            raise StoreError(
                f"No tracking server answers at {self.address.shown} ({error}). Start it, or set another "
                "MLFLOW_TRACKING_URI.",
                temporary=True,
            ) from None

    def check_health(self, seconds: float = 5) -> None:
        """Raise StoreError unless an MLflow server answers; mlflow is not imported."""
        from http import client

        address = urlsplit(self.address.uri)
        kind = client.HTTPSConnection if address.scheme == "https" else client.HTTPConnection
        self.check_server(seconds)
        with translated(self.address, self.without_secrets):
            server = kind(self.address.host, self.address.port, timeout=seconds)
            server.request("GET", f"{address.path}/health", headers=self.address.authorization)
            answer = server.getresponse()
            check_answer(answer.status, answer.read(100), self.address)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes of this machine from claiming a run, from the search for it to the claim."""
        self._runs.mkdir(parents=True, exist_ok=True)
        with held(self._runs / "tracking.lock", self._lock_seconds):
            yield


class _Client:
    """MLflow's client with the login of its server, and with errors of one line."""

    def __init__(self, client: Any, connection: Connection) -> None:
        self._client, self._connection = client, connection

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        @functools.wraps(method)
        def ask(*arguments: Any, **options: Any) -> Any:
            with self._connection.asking():
                return method(*arguments, **options)

        return ask


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
