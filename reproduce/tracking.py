"""The MLflow store: which runs are finished, and the record that each run leaves.

    store = Store(site)
    store.finished([spec.id])                     # {spec id: Finished(run_id, metrics)}
    with store.start(spec, scale="smoke") as run:
        run.log(step, {"loss": 0.3})
        run.finish({"top1": 0.81})

MLflow's own status says FINISHED after an exception and RUNNING for ever after a kill. Here a run is finished when it carries the tag
`complete`, the last thing that is written; `start` sets the status for every way in which a run can end, and `reap` for those whose process
is gone. What a run measures goes through a file in its folder (`journal.py`), so that a store that does not answer costs nothing; MLflow
ignores what is sent twice. What a run's tags are and say is in `entry.py`. The only module that imports mlflow, and only to write, or to
read what `ledger.py` cannot, such as a server: the import and the opening of the store take 3 CPU-seconds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar
from urllib.parse import urlsplit

from reproduce import entry, environment, identity, journal, lease
from reproduce.entry import (
    ATTEMPTS,
    COMPLETE,
    DEVICE,
    DIGEST,
    FINAL,
    IMPORTED,
    OF_THIS_STORE,
    OWNER,
    PARENT,
    REASON,
    SCALE,
    SETTINGS,
    SPEC,
    TABLE,
    Record,
    RunState,
)
from reproduce.journal import Journal, Point
from reproduce.lease import Held, LostError, in_a_line
from reproduce.ledger import Ledger, Wanted
from reproduce.patience import EVERY, HASTE, UPLOAD, away, giving_up_after, in_short, no_room, patiently
from reproduce.portable import ENVIRONMENT, PortableRun, travels
from reproduce.results import Finished
from reproduce.site import Site
from reproduce.spec import Evaluate, Spec

if TYPE_CHECKING:
    from reproduce.report.filled import Filled

T = TypeVar("T")

EXPERIMENTS = "msbreg/"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What the UI takes an experiment for: training, not traces of language models."""
FLUSH_EVERY = 10.0
"""Seconds for which measurements wait to be written together: one write takes 55 ms whatever is in it."""
FLUSH_AT = 500
"""Measurements that are written without waiting longer."""
MAX_METRICS, MAX_PARAMS = 1000, 100
"""MLflow's limits for one batch."""
LONGEST = 200
"""Characters of a row's label in the name of a metric, of which MLflow takes 250."""
REFUSED = "INVALID_PARAMETER_VALUE"
"""MLflow's word for what it never takes."""
logger = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """Another process that is alive does this very run."""


class Terminated(SystemExit):
    """SIGTERM, as an exception: the run ends as killed, the process with exit code 143."""


class Store:
    """The tracking store of a site; opened when it is first asked for something that needs it.

    Args:
        patience: for how many seconds `start`, its runs, `finished` and `download` wait for a store that does not answer: `PATIENCE` of
            patience.py for whoever does a run, 0 for a command, which says it at once.
    """

    def __init__(self, site: Site, *, patience: float = 0.0) -> None:
        self._site = site
        self._patience = patience
        self.uri = site.store
        scheme = self.uri.partition(":")[0] if ":" in self.uri else "file"
        if scheme == "file":
            raise ValueError(
                f"The tracking store is '{self.uri}', a folder, which MLflow no longer writes. Set MLFLOW_TRACKING_URI or tracking_uri in "
                "the site file to a database (sqlite:////path/mlflow.db) or a server (http://host:port), or leave both empty."
            )
        self._server = scheme in ("http", "https")
        self._file = Path(self.uri.removeprefix("sqlite:///")).absolute() if scheme == "sqlite" else None

    def finished(self, ids: Iterable[str]) -> dict[str, Finished]:
        """The finished runs among the specs named by `ids`; of a spec that has several, the one that ended last."""
        found = self._patiently(lambda: self._newest_finished(ids, self._experiments()))
        return {
            spec_id: Finished(spec_id=spec_id, run_id=found[spec_id].info.run_id, metrics=entry.final(found[spec_id]))
            for spec_id in sorted(found)
        }

    def start(
        self,
        spec: Spec,
        *,
        scale: str,
        labels: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        hold: Held | None = None,
    ) -> Run:
        """Begins the record of `spec`, or goes on with the one that an earlier attempt left unfinished, and sends what that one could not.

        Args:
            labels: further tags.
            parent_run_id: the record under which this one is shown; of an evaluation, by default its finished pretraining run.
            hold: the lease of the run, without which nothing is written; None: there is none.

        Raises:
            BusyError: a process that is alive on this machine does this run.
            LostError: the lease is somebody else's.
        """
        if parent_run_id is None and isinstance(spec, Evaluate) and (parent := self.finished([spec.encoder.id])):
            parent_run_id = parent[spec.encoder.id].run_id
        tags = entry.first_tags(spec, scale) | dict(labels or {}) | ({PARENT: parent_run_id} if parent_run_id else {})
        tags[OWNER] = json.dumps(entry.me(self._site.runs, hold))
        run_id, attempt = self._patiently(lambda: self._claim(spec, scale, tags, hold))
        run = Run(self, spec, run_id, hold)
        try:
            run._describe(attempt)
        except BaseException as error:
            run._stop(error)
            raise
        return run

    def _claim(self, spec: Spec, scale: str, tags: Mapping[str, str], hold: Held | None) -> tuple[str, int]:
        """A record for `spec` that this process owns, and which attempt it is. Called again after a failure, it finds its own."""
        with self._lock():
            if hold is not None:
                hold.check()
            experiment = self._experiment(scale)
            earlier = self._resumable(spec.id, experiment)
            if earlier is None:
                return self._client.create_run(experiment, run_name=entry.title(spec), tags=tags).info.run_id, 1
            run_id = earlier.info.run_id
            self._log_batches(run_id, tags=tags)  # the owner first: until then `reap` would take the run for a dead one's
            self._client.update_run(run_id, status="RUNNING")
            if REASON in earlier.data.tags:
                self._client.delete_tag(run_id, REASON)
            return run_id, self._attempts(run_id) + 1

    def reap(self) -> list[str]:
        """Marks the runs whose process is gone as killed, or as its lease says that they ended, and returns their MLflow ids.

        A process on another machine can be seen from here by its lease alone, where both have the same folder of runs; else its runs are
        left as they are.

        Raises:
            ConnectionError: the store does not answer, or cannot be written.
            OSError: there is no room in it.
        """
        dead: list[str] = []
        with self._in_a_line():
            experiments = self._experiments()
        if not experiments:
            return dead
        with self._in_a_line(), self._lock():
            for status in ("RUNNING", "FINISHED"):  # FINISHED without its completion tag: killed between the two
                for run in self._search(experiments, Wanted(status=status, there=(SPEC,), absent=(COMPLETE,))):
                    if entry.alive(run, self._site.runs) is False and not self._finished_since(run):
                        state, reason = entry.ending(run, self._site.runs)
                        self._client.set_tag(run.info.run_id, REASON, reason)
                        self._client.set_terminated(run.info.run_id, status="FAILED" if state == "failed" else "KILLED")
                        dead.append(run.info.run_id)
        return dead

    def _finished_since(self, run: Any) -> bool:
        """Whether a run whose owner is gone has finished since it was read: its lease says so after its record does."""
        return COMPLETE in self._client.get_run(run.info.run_id).data.tags

    def status(self) -> list[RunState]:
        """Every run and its true state, the newest first; changes nothing."""
        return [entry.state_of(run, self._site.runs) for run in self._search(self._experiments(), Wanted(there=(SPEC,)))]

    def record_of(self, spec_id: str) -> Record | None:
        """The newest finished run of the spec, else its newest; None: there is none."""
        runs = list(self._search(self._experiments(), Wanted(tags={SPEC: [spec_id]})))
        finished = [run for run in runs if COMPLETE in run.data.tags]
        return next((self._record(run) for run in (*finished, *runs)), None)

    def records(self, ids: Iterable[str]) -> dict[str, Record]:
        """What is known of the specs named by `ids`: of each its newest finished run, else one that goes on, else its newest."""
        known: dict[str, list[Record]] = {}
        for run in self._search(self._experiments(), Wanted(tags={SPEC: sorted(set(ids))})):
            known.setdefault(run.data.tags[SPEC], []).append(self._record(run))
        order = {"finished": 0, "running": 1}
        return {spec_id: min(known[spec_id], key=lambda record: order.get(record.state.state, 2)) for spec_id in sorted(known)}

    def newest_finished(self, kind: str, scale: str, limit: int) -> list[Record]:
        """The newest finished runs of a kind, `pretrain` or `evaluate`, at a scale, the newest first, at most `limit` of them."""
        wanted = Wanted(tags={"kind": [kind], SCALE: [scale]}, there=(COMPLETE,))
        return [self._record(run) for run in self._search(self._experiments(), wanted, limit=limit)]

    def unfinished(self) -> list[Record]:
        """Every record of a run that is not finished, the newest first."""
        return [self._record(run) for run in self._search(self._experiments(), Wanted(there=(SPEC,), absent=(COMPLETE,)))]

    def evaluated(self, digests: Iterable[str]) -> set[tuple[str, str]]:
        """The encoders of those digests that were evaluated, each with the id of the spec that did it, finished or not."""
        wanted = Wanted(tags={"encoder_digest": sorted(set(digests))}, there=(SPEC,))
        return {(run.data.tags["encoder_digest"], run.data.tags[SPEC]) for run in self._search(self._experiments(), wanted)}

    def delete(self, run_id: str) -> bool:
        """Deletes an unfinished record that nobody writes, and says whether it did; MLflow can restore what it deletes."""
        with self._lock():
            run = self._client.get_run(run_id)
            if entry.state_of(run, self._site.runs).state in ("finished", "running"):
                return False
            if run.info.lifecycle_stage == "active":
                self._client.delete_run(run_id)
        return True

    def named(self, name: str) -> Record:
        """The run that a user names: by a spec id, its beginning, or MLflow's own name of the run.

        Raises:
            LookupError: there is no such run, or runs of several specs begin so.
        """
        if not re.fullmatch(r"[0-9a-f]{4,12}|[0-9a-f]{32}", name):
            raise LookupError(
                f"'{name}' is no run's id: 4 to 12 hexadecimal digits, as `invoke status` and `--dry-run` print, or MLflow's 32."
            )
        experiments = self._experiments()
        wanted = Wanted(run_id=name, there=(SPEC,)) if len(name) == 32 else Wanted(begins={SPEC: name})
        runs = list(self._search(experiments, wanted))
        ids = sorted({run.data.tags[SPEC] for run in runs})
        if not ids:
            raise LookupError(f"There is no run '{name}' in {self.uri}: `invoke status` lists those that there are.")
        if len(ids) > 1:
            raise LookupError(f"'{name}' may mean {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}: give more digits.")
        if len(name) == 32:
            return self._record(runs[0])
        found = self.record_of(ids[0])
        assert found is not None
        return found

    def _record(self, run: Any) -> Record:
        return entry.record_of(run, self._site.runs, self.uri if self._server else "")

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric in order of steps; where a resumed run repeated a step, the value that it logged last."""
        return [(metric.step, metric.value) for metric in self._points(run_id, key)]

    def download(self, run_id: str, name: str, folder: Path) -> Path:
        """Copies the artifact `name` of a run into `folder` and returns where it is.

        Raises:
            LookupError: the run has none, as one that was imported without its encoder.
            ConnectionError: the server does not answer.
        """
        from mlflow.exceptions import MlflowException

        def fetch() -> Path:
            try:
                return Path(self._client.download_artifacts(run_id, name, str(folder)))
            except (MlflowException, OSError) as error:
                if self._server:
                    self._knock()  # a server that does not answer may well have it
                raise LookupError(f"The tracking store has no {name} of its run {run_id} ({in_a_line(error)}).") from None

        folder.mkdir(parents=True, exist_ok=True)
        return self._patiently(fetch)

    def portable(self, spec_id: str) -> PortableRun:
        """The whole record of the spec's finished run, but for its encoder and pictures; the newest where there are several.

        Raises:
            LookupError: none is finished, or its settings are not in the store.
        """
        run = self._newest_finished([spec_id], self._experiments()).get(spec_id)
        if run is None:
            raise LookupError(f"There is no finished run {spec_id} in {self.uri}.")
        run_id, tags = run.info.run_id, run.data.tags
        with tempfile.TemporaryDirectory() as folder:

            def artifact(name: str) -> Any:
                return json.loads(self.download(run_id, name, Path(folder)).read_text(encoding="utf-8"))

            names = (file.path for file in self._client.list_artifacts(run_id))
            return PortableRun(
                spec_id=spec_id,
                name=run.info.run_name,
                started=run.info.start_time,
                ended=run.info.end_time,
                settings=artifact(SETTINGS),
                tags={key: value for key, value in tags.items() if travels(key, OF_THIS_STORE)},
                params=dict(run.data.params),
                final=entry.final(run),
                histories={
                    key: tuple((each.step, each.value, each.timestamp) for each in self._points(run_id, key))
                    for key in run.data.metrics
                    if not key.startswith(FINAL)
                },
                environments={name: artifact(name) for name in names if ENVIRONMENT.fullmatch(name)},
            )

    def adopt(self, run: PortableRun, source: str) -> Finished | None:
        """Adds the record of a run that was done elsewhere, unless the spec has a finished run here; the completion tag comes last.

        What an earlier attempt left half-written is deleted first.

        Args:
            source: where it comes from, for the tag `imported`.

        Returns:
            The finished run that was here already and stays as it is; None: the record was added.

        Raises:
            ValueError: the store refuses something in the record.
        """
        from mlflow.exceptions import MlflowException

        with self._lock(), _undisturbed():
            experiments = self._experiments()
            here = self._newest_finished([run.spec_id], experiments).get(run.spec_id)
            if here is not None:
                return Finished(spec_id=run.spec_id, run_id=here.info.run_id, metrics=entry.final(here))
            try:
                self._adopt(run, source, self._experiment(run.scale))
            except MlflowException as error:
                raise ValueError(f"{self.uri} does not take the record of run {run.spec_id}: {in_a_line(error)}") from None
        return None

    def log_table(self, filled: Filled, paths: Sequence[Path]) -> str:
        """Records a table's means and files as one run for each table, scale and set of changes, so that the UI can compare tables.

        Writes nothing when nothing changed since the last time.

        Args:
            paths: the rendered files.

        Returns:
            The MLflow id of the run.

        Raises:
            ConnectionError: the store does not answer, or cannot be written.
            OSError: there is no room in it.
        """
        with self._in_a_line():
            return self._patiently(lambda: self._log_table(filled, paths))

    def _log_table(self, filled: Filled, paths: Sequence[Path]) -> str:
        name = " ".join((filled.table, filled.scale, *filled.changes)).replace("'", "")  # it stands in a filter
        values = _cell_means(filled)
        digest = _table_digest(values, paths)
        with self._lock():  # two commands that end at once make one record
            run = next(self._search(self._experiments("tables"), Wanted(tags={TABLE: [name]}), limit=1), None)
            if run is not None and run.data.tags.get(DIGEST) == digest:
                return str(run.info.run_id)
            if run is not None:
                run_id, known = run.info.run_id, run.data.metrics
            else:
                experiment = self._experiment("tables")
                tags = {TABLE: name, SCALE: filled.scale, "title": filled.title}
                run_id, known = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id, {}
            # A cell that has become empty must not keep its old number, and MLflow cannot delete one.
            now, shown = _now(), dict.fromkeys(known, math.nan) | values
            self._log_batches(run_id, [Point(key, _storable(value), now, 0) for key, value in shown.items()])
            for path in paths:
                self._client.log_artifact(run_id, str(path))
            self._client.set_terminated(run_id)
            self._client.set_tag(run_id, DIGEST, digest)
        return str(run_id)

    def described(self) -> str:
        """Where the store is, without the password that an address may hold, and whether it is there; nothing is opened or made."""
        parts = urlsplit(self.uri)
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else self.uri
        if self._file is not None:
            return f"{address}, {'which is there' if self._file.exists() else 'which the first run makes'}"
        if not self._server:
            return f"{address}, a database, which is not asked"
        try:
            self._knock()
        except ConnectionError:
            return f"{address}, where no server answers: start it, or set another MLFLOW_TRACKING_URI"
        return f"{address}, where a server answers"

    @property
    def keeps_artifacts_here(self) -> bool:
        """Whether encoders and reports that are logged lie in the site's runs."""
        return not self._server

    def ui_command(self, port: int = 5000) -> tuple[list[str], dict[str, str]]:
        """The command that serves MLflow's UI over this store on 127.0.0.1, and what it needs in its environment.

        Raises:
            LookupError: the store is a server already; the message says where.
        """
        if self._server:
            raise LookupError(f"The tracking store is a server: open {self.uri} in a browser.")
        self._create()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.uri]
        command += ["--default-artifact-root", self._artifacts.as_uri(), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        # With job execution the server is ten processes and 1.85 GB instead of two and 0.5 GB.
        return command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def pages(self, port: int) -> dict[str, str]:
        """The address of each experiment's runs in that UI, by the experiment's name; the UI itself opens at language models."""
        if self._file is not None and not self._file.exists():
            return {}
        found = self._client.search_experiments(filter_string=f"name LIKE '{EXPERIMENTS}%'")
        return {each.name: f"http://127.0.0.1:{port}/#/experiments/{each.experiment_id}/runs" for each in found}

    @property
    def _artifacts(self) -> Path:
        return self._site.runs.absolute() / "artifacts"

    @cached_property
    def _client(self) -> Any:
        """MLflow's client, the store created if need be."""
        if self._server:
            self._knock()
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # The patience is ours: by itself, MLflow would try seven times and wait two minutes for each answer, and nobody could stop it.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        self._create()
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs, with its traceback, it raises, too
        return MlflowClient(self.uri)

    def _knock(self, seconds: float = 10) -> None:
        """Raises ConnectionError where no server answers, at once: MLflow itself would go on trying."""
        address = urlsplit(self.uri)
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), timeout=seconds).close()
        except OSError as error:
            raise ConnectionError(
                f"No tracking server answers at {self.uri} ({error}). Start it, or set another MLFLOW_TRACKING_URI."
            ) from None

    def _patiently(self, action: Callable[[], T]) -> T:
        """Does it, again and again while the store is away.

        Raises:
            AwayError: it was for as long as this store has patience.
            ConnectionError: it does not do it, and this store has no patience.
            OSError: the disk of the store is full.
        """

        def attempt() -> T:
            if self._server:
                self._knock()
            with self._room():
                return action()

        with nullcontext() if self._patience else self._in_a_line():
            return patiently(attempt, away=self._away, seconds=self._patience)

    def _away(self, error: Exception) -> bool:
        """Whether the store may take the same a while later."""
        return away(error, file=self._file is not None)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Says in one line that the store's file cannot grow, which MLflow says in many."""
        try:
            yield
        except Exception as error:
            if self._file is None or not (problem := no_room(error)) or isinstance(error, OSError):
                raise
            raise OSError(
                f"The tracking store {self._file} cannot be written ({problem}): make room, and the same command goes on from the last "
                "checkpoint."
            ) from error

    @contextmanager
    def _in_a_line(self) -> Iterator[None]:
        """Says in one line, for a command, what MLflow says in many: its store is full, locked or may only be read, or breaks off."""
        try:
            with self._room():
                yield
        except Exception as error:
            if not hasattr(error, "get_http_status_code"):  # one of MLflow's, which need not be imported for this
                raise
            raise ConnectionError(f"The tracking store {self.uri} does not do what is asked of it: {in_short(error)}") from error

    def _create(self) -> None:
        """Creates the sqlite store, once however many processes ask for it: the file appears when its tables are complete."""
        if self._file is None or self._file.exists():
            return
        import filelock

        self._file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{self._file}.lock"):
            if self._file.exists():
                return
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            for talkative in ("alembic", "mlflow.store.db.utils"):
                logging.getLogger(talkative).setLevel(logging.WARNING)
            draft = self._file.with_name(f".{self._file.name}.draft")
            draft.unlink(missing_ok=True)
            SqlAlchemyStore(f"sqlite:///{draft}", self._artifacts.as_uri()).engine.dispose()  # type: ignore[no-untyped-call]
            draft.replace(self._file)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Between looking for a run and claiming it, no other process of this machine may do the same."""
        import filelock

        self._site.runs.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._site.runs / "tracking.lock"):
            yield

    def _experiment(self, name: str) -> str:
        """The id of our experiment of that name, created if need be."""
        from mlflow.exceptions import MlflowException

        name = EXPERIMENTS + name
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if self._server else (self._artifacts / name).as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=location, tags=KIND))
            except MlflowException:  # another process was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _experiments(self, name: str = "") -> list[str]:
        """The ids of our experiments, or of the one of that name; none where there is no store yet."""
        if self._file is not None and not self._file.exists():
            return []
        if self._ledger is not None:
            found = self._ledger.experiments(EXPERIMENTS)
        else:
            listed = self._client.search_experiments(filter_string=f"name LIKE '{EXPERIMENTS}%'")
            found = {each.name: each.experiment_id for each in listed}
        return [experiment for each, experiment in found.items() if name in ("", each.removeprefix(EXPERIMENTS))]

    @cached_property
    def _ledger(self) -> Ledger | None:
        """What reads a sqlite file, which is there, without mlflow; None: only MLflow's client can read this store."""
        return None if self._file is None else Ledger.of(self._file)

    def _search(self, experiments: Sequence[str], wanted: Wanted, limit: int | None = None) -> Iterator[Any]:
        """Active runs of the experiments, the newest first; where a tag may have several values, the newest first of each."""
        if not experiments:
            return
        if self._ledger is not None:
            yield from self._ledger.search(experiments, wanted, limit)
            return
        for condition in _filters(wanted):
            token, left = None, limit
            while left is None or left > 0:
                page = self._client.search_runs(
                    experiments, condition, max_results=min(left or 500, 500), order_by=["attributes.start_time DESC"], page_token=token
                )
                yield from page
                left = None if left is None else left - len(page)
                token = page.token
                if not token:
                    break

    def _resumable(self, spec_id: str, experiment: str) -> Any:
        """The newest unfinished record of the spec that nobody owns, or None.

        Raises:
            BusyError: a process that is alive owns one.
        """
        free = []
        for run in self._search([experiment], Wanted(tags={SPEC: [spec_id]}, absent=(COMPLETE, IMPORTED))):
            alive = entry.alive(run, self._site.runs)
            if run.info.status in ("RUNNING", "FINISHED") and alive and not entry.is_mine(run):
                raise BusyError(f"Run {spec_id} is being done by {entry.who(run)}: wait for it, or stop it first.")
            if run.info.status != "RUNNING" or alive is not None:
                free.append(run)
        return free[0] if free else None

    def _newest_finished(self, ids: Iterable[str], experiments: Sequence[str]) -> dict[str, Any]:
        """The finished run of each spec that has one: of several, the one that ended last."""
        found: dict[str, Any] = {}
        for run in self._search(experiments, Wanted(tags={COMPLETE: sorted(set(ids))})):
            before = found.setdefault(run.data.tags[COMPLETE], run)
            if (run.info.end_time or 0) > (before.info.end_time or 0):
                found[run.data.tags[COMPLETE]] = run
        return found

    def _points(self, run_id: str, key: str) -> list[Any]:
        """A metric in order of steps, without what a resumed run logged again later."""
        latest: dict[int, Any] = {}
        for metric in self._client.get_metric_history(run_id, key):
            if metric.step not in latest or metric.timestamp >= latest[metric.step].timestamp:
                latest[metric.step] = metric
        return [latest[step] for step in sorted(latest)]

    def _adopt(self, run: PortableRun, source: str, experiment: str) -> None:
        """Writes the record of a run that has none here."""
        for left in self._search([experiment], Wanted(tags={SPEC: [run.spec_id]}, there=(IMPORTED,))):
            if entry.alive(left, self._site.runs) is False or entry.is_mine(left):
                self._client.delete_run(left.info.run_id)
        parent = self._newest_finished([run.needs], self._experiments()).get(run.needs) if run.needs else None
        tags = {key: value for key, value in run.tags.items() if travels(key, OF_THIS_STORE)}
        tags |= {SPEC: run.spec_id, OWNER: json.dumps(lease.process()), IMPORTED: source} | ({PARENT: parent.info.run_id} if parent else {})
        run_id = self._client.create_run(experiment, start_time=run.started, run_name=run.name, tags=tags).info.run_id
        logged = [Point(key, value, at, step) for key, points in run.histories.items() for step, value, at in points]
        final = [Point(FINAL + key, value, run.ended, 0) for key, value in run.final.items()]
        self._log_batches(run_id, logged + final, params=run.params)
        for name, content in {SETTINGS: run.settings, **run.environments}.items():
            self._client.log_text(run_id, _document(content), name)
        self._client.set_terminated(run_id, end_time=run.ended)
        self._client.set_tag(run_id, COMPLETE, run.spec_id)

    def _attempts(self, run_id: str) -> int:
        """How many attempts the run's artifacts tell of."""
        return sum(file.path.startswith("environment") for file in self._client.list_artifacts(run_id))

    def _log_batches(
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
            self._client.log_batch(run_id, metrics=[Metric(*point) for point in batch])
        for items in _chunks(list((params or {}).items()), MAX_PARAMS):
            self._client.log_batch(run_id, params=[Param(key, value) for key, value in items])
        for items in _chunks(list((tags or {}).items()), MAX_PARAMS):
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in items])


class Run:
    """The record of one run while it is written; made by `Store.start`, used in a `with`."""

    def __init__(self, store: Store, spec: Spec, run_id: str, hold: Held | None = None) -> None:
        self.spec = spec
        self.run_id = run_id
        self._store = store
        self._hold = hold
        self._folder = store._site.runs / spec.id
        self._journal = Journal(self._folder)
        self._measured: list[Point] = []
        self._flushed = time.monotonic()
        self._next = -math.inf
        """When to try to send again, after a failure."""
        self._complete = False
        self._restore_sigterm = False
        environment.load()  # the next reading of the processor's load is the mean since this one

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Measurements at a step; written together with others every few seconds, by `flush` and at the end."""
        now = _now()
        self._measured += [Point(key, _storable(value), now, step) for key, value in metrics.items()]
        if len(self._measured) >= FLUSH_AT or time.monotonic() - self._flushed > FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Puts what waits on disk, with the load of the machine now, and sends it; a store that does not answer gets it later.

        Call it before a checkpoint, so that no step is missing after a kill.

        Raises:
            LostError: the run is somebody else's now.
            OSError: there is no room, here or in the store.
        """
        self._keep()
        self._flushed = time.monotonic()
        self._send()

    def artifact(self, path: Path, name: str = "") -> None:
        """Adds a file to the run's artifacts, as `name` (`folder/file` at will; by default the file's own)."""
        target = PurePosixPath(name or path.name)
        parent = None if target.parent == PurePosixPath() else str(target.parent)
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / target.name  # MLflow keeps a file's name, whatever it is wanted to be
            link.symlink_to(path.resolve(strict=True))

            def upload() -> None:
                self._check()
                with giving_up_after(UPLOAD):
                    self._store._client.log_artifact(self.run_id, str(link), parent)

            self._store._patiently(upload)

    def tag(self, name: str, value: str) -> None:
        """Sets a tag of the run; a store that does not answer gets it later."""
        self._check()
        self._journal.add(tags={name: value})
        self._send()

    def text(self, content: str, name: str) -> None:
        """Adds a text to the run's artifacts."""

        def upload() -> None:
            self._check()
            with _undisturbed():
                self._store._client.log_text(self.run_id, content, name)

        self._store._patiently(upload)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Records the final values and that the run is finished; the completion tag comes last.

        Raises:
            LostError: the run is somebody else's now.
            AwayError: the store did not answer for as long as it is waited for; what was measured waits on disk.
            OSError: there is no room, here or in the store.
        """
        now = _now()  # once, so that an attempt that failed half-way is not recorded beside the one that did not

        def complete() -> None:
            with _undisturbed():
                self._keep()
                self._deliver()
                self._store._log_batches(self.run_id, [Point(FINAL + key, _storable(value), now, 0) for key, value in metrics.items()])
                with self._guard():
                    self._store._client.set_terminated(self.run_id)
                    self._store._client.set_tag(self.run_id, COMPLETE, self.spec.id)
                self._complete = True
                self._journal.remove()
                journal.drop_result(self._folder)

        self._store._patiently(complete)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
            self._restore_sigterm = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not self._complete and not isinstance(error, LostError):  # what is somebody else's now is not touched
                self._stop(error)
        finally:
            if self._restore_sigterm:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _stop(self, error: BaseException | None) -> None:
        """Records that the run ended without having finished; a store that does not answer is not waited for, as `reap` makes up for it."""
        if isinstance(error, MemoryError):
            traceback.clear_frames(error.__traceback__)  # what filled the memory is still held by those that have failed
        killed = isinstance(error, (KeyboardInterrupt, Terminated))
        reason = "ended without finish()" if error is None else in_a_line(error)
        try:
            with _undisturbed(), giving_up_after(HASTE):
                self._save_what_is_left()
                if self._store._server:
                    self._store._knock(HASTE)
                with self._guard():
                    self._store._client.set_tag(self.run_id, REASON, reason)
                    if error is not None and not killed:
                        self._store._client.log_text(self.run_id, "".join(traceback.format_exception(error)), "error.txt")
                    self._store._client.set_terminated(self.run_id, status="KILLED" if killed else "FAILED")
        except (Exception, LostError) as failure:
            if error is None:
                raise
            # The first error matters more than that its record failed; `status` and `reap` see that the process is gone.
            logger.warning("Run %s (%s) could not be marked as ended: %s", self.spec.id, reason, in_a_line(failure))

    def _save_what_is_left(self) -> None:
        """The last measurements, on disk at least; whatever is wrong with them must not keep the run from being marked."""
        for save in (self._keep, self._deliver):
            try:
                save()
            except Exception as failure:
                logger.warning("Run %s: its last measurements are not in the store: %s", self.spec.id, in_a_line(failure))

    def _describe(self, attempt: int) -> None:
        """Sends what an earlier attempt could not, then the settings, and the environment of this attempt."""
        found = environment.record()

        def describe() -> None:
            with _undisturbed():
                self._check()
                self._deliver()
                self._store._log_batches(self.run_id, params=entry.shown_settings(self.spec))
                if attempt == 1:
                    self._store._client.log_text(self.run_id, _document(identity.canonical(self.spec)), SETTINGS)
                name = "environment.json" if attempt == 1 else f"environment-{attempt}.json"
                self._store._client.log_text(self.run_id, _document(found), name)
                self._store._log_batches(self.run_id, tags={DEVICE: str(found["device"]), ATTEMPTS: str(attempt)})

        self._store._patiently(describe)

    def _check(self) -> None:
        """Raises LostError where the run is somebody else's now."""
        if self._hold is not None:
            self._hold.check()

    def _guard(self) -> AbstractContextManager[None]:
        """Inside, the run is ours and nobody can take it."""
        return nullcontext() if self._hold is None else self._hold.guard()

    def _keep(self) -> None:
        """Puts the measurements that wait in memory on disk, with the load of the machine now."""
        if not self._measured:
            return
        self._check()
        now, step = _now(), self._measured[-1].step
        load = [Point(f"system/{key}", value, now, step) for key, value in environment.load().items()]
        with _undisturbed():
            self._journal.add([*self._measured, *load])
            self._measured.clear()

    def _send(self) -> None:
        """Sends what waits on disk, unless the store did not answer a moment ago: whoever measures goes on measuring."""
        if time.monotonic() < self._next:
            return
        try:
            with giving_up_after(HASTE):
                if self._store._server:
                    self._store._knock(HASTE)
                with self._store._room():
                    self._deliver()
        except Exception as error:
            if not self._store._away(error):
                raise
            if self._next == -math.inf:
                logger.warning("The tracking store does not answer (%s); what is measured waits in %s.", in_short(error), self._folder)
            self._next = time.monotonic() + EVERY
        else:
            if self._next != -math.inf:
                logger.warning("The tracking store answers again; it has all that waited.")
            self._next = -math.inf

    def _deliver(self) -> None:
        """Sends what waits on disk, all of it or an exception. What the store refuses is put aside, so that later attempts are not."""
        waiting = self._journal.read()
        if not waiting:
            return
        self._check()
        with _undisturbed():
            try:
                self._store._log_batches(self.run_id, waiting.points, tags=waiting.tags)
            except Exception as error:
                if getattr(error, "error_code", "") == REFUSED:
                    kept = self._journal.set_aside()
                    raise ValueError(f"The tracking store refuses what was measured, now in {kept}: {in_a_line(error)}") from error
                raise
            self._journal.sent(waiting)


def _filters(wanted: Wanted) -> Iterator[str]:
    """The same in MLflow's language, which has no IN for tags: one filter for each combination of their values."""
    fixed = [f"attributes.{name} = '{value}'" for name, value in (("run_id", wanted.run_id), ("status", wanted.status)) if value]
    fixed += [f"tags.{key} LIKE '{beginning}%'" for key, beginning in wanted.begins.items()]
    fixed += [f"tags.{key} IS NOT NULL" for key in wanted.there] + [f"tags.{key} IS NULL" for key in wanted.absent]
    for values in itertools.product(*wanted.tags.values()):
        yield " and ".join((*(f"tags.{key} = '{value}'" for key, value in zip(wanted.tags, values, strict=True)), *fixed))


def _document(content: object) -> str:
    """Plain data as the artifacts that hold them."""
    return json.dumps(content, indent=2) + "\n"


def _storable(value: float) -> float:
    """A number as MLflow can keep it: an infinity, which it would turn into 1.8e308, becomes NaN."""
    value = float(value)
    return value if math.isfinite(value) else math.nan


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _cell_means(filled: Filled) -> dict[str, float]:
    """A table's numbers by `row/column`, the row's label in the characters that MLflow takes."""
    values: dict[str, float] = {}
    slugs: set[str] = set()
    for row in filled.rows:
        slug = re.sub(r"[^\w.]+", " ", row.label).strip(" .")[:LONGEST] or "row"
        while slug in slugs:  # two labels that differ in symbols alone
            slug += " again"
        slugs.add(slug)
        values |= {f"{slug}/{key}": cell.value for key, cell in row.cells.items() if cell.value is not None}
    return values


def _table_digest(values: Mapping[str, float], paths: Sequence[Path]) -> str:
    total = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in sorted(paths):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(128 + signum)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets what is under way be written before Ctrl-C or SIGTERM takes effect; a second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def remember(signum: int, frame: FrameType | None) -> None:
        pending.append(signum)
        if len(pending) > 1:
            restore()
            signal.raise_signal(signum)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.getsignal(number)
        signal.signal(number, remember)
    try:
        yield
    finally:
        restore()
        if pending:
            signal.raise_signal(pending[0])
