"""The tracking store: which runs are finished, what is known of the others, and the record that each run
leaves.

    store = Store(site)
    store.finished([spec.id])                     # {spec id: Finished(run_id, metrics)}
    with store.start(spec, scale="smoke") as run:
        run.log(step, {"loss": 0.3})
        run.finish({"top1": 0.81})

MLflow's own status says FINISHED after an exception and RUNNING for ever after a kill. Here a run is finished
when it carries the tag `complete`, the last thing that is written; `recording.py` sets the status for every
way in which a run can end, and `mark_dead_runs` for those whose process is gone. What a run's tags are and
say is in `tags.py`; how MLflow is reached, in `connection.py`.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reproduce.messages import InvalidError, NotFoundError
from reproduce.report.observe import Finished
from reproduce.runs import interrupt, lease
from reproduce.runs.journal import Point, points
from reproduce.runs.lease import Held, one_line
from reproduce.site import Site
from reproduce.spec import Evaluate, Spec
from reproduce.tracking import tags
from reproduce.tracking.connection import EXPERIMENTS, Connection, of_mlflow
from reproduce.tracking.portable import ENVIRONMENT, PortableRun, travels
from reproduce.tracking.recording import Run
from reproduce.tracking.sqlite import Wanted
from reproduce.tracking.tags import (
    COMPLETE,
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

if TYPE_CHECKING:
    from reproduce.report.filled import Filled


class AlreadyRunningError(RuntimeError):
    """Another process that is alive does this very run, as its record says.

    Whoever has the run's lease meets it only where the other one works in another folder of runs, whose
    leases are not seen from here: unlike `lease.BusyError`, it names nothing that could be waited for, and
    the run fails.
    """


class Store:
    """The tracking store of a site; opened when it is first asked for something that needs it.

    Args:
        patience: for how many seconds `start`, its runs, `finished` and `download` wait for a store that does
            not answer: `RETRY_SECONDS` of patience.py for whoever does a run, 0 for a command, which says it at
                once.
    """

    def __init__(self, site: Site, *, retry_seconds: float = 0.0) -> None:
        self._site = site
        self.connection = Connection(site, retry_seconds)
        self.uri = self.connection.uri

    def finished(self, ids: Iterable[str]) -> dict[str, Finished]:
        """The finished runs among the specs named by `ids`; of a spec that has several, the one that ended
        last."""
        found = self.connection.retrying(lambda: self._newest_finished(ids))
        return {
            spec_id: Finished(
                spec_id=spec_id, run_id=found[spec_id].info.run_id, metrics=tags.final(found[spec_id])
            )
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
        """Begins the record of `spec`, or goes on with the one that an earlier attempt left unfinished, and
        sends what that one could not.

        Args:
            labels: further tags.
            parent_run_id: the record under which this one is shown; of an evaluation, by default its finished
                pretraining run.
            hold: the lease of the run, without which nothing is written; None: there is none.

        Raises:
            AlreadyRunningError: a process that is alive on this machine does this run.
            LostError: the lease is somebody else's.
        """
        if (
            parent_run_id is None
            and isinstance(spec, Evaluate)
            and (parent := self.finished([spec.encoder.id]))
        ):
            parent_run_id = parent[spec.encoder.id].run_id
        first = (
            tags.first_tags(spec, scale)
            | dict(labels or {})
            | ({PARENT: parent_run_id} if parent_run_id else {})
        )
        first[OWNER] = json.dumps(tags.me(self._site.runs, hold))
        run_id, attempt = self.connection.retrying(lambda: self._claim(spec, scale, first, hold))
        run = Run(self.connection, spec, run_id, self._site.runs / spec.id, hold)
        run.describe(attempt)
        return run

    def _claim(self, spec: Spec, scale: str, first: Mapping[str, str], hold: Held | None) -> tuple[str, int]:
        """A record for `spec` that this process owns, and which attempt it is. Called again after a failure,
        it finds its own."""
        with self.connection.lock():
            if hold is not None:
                hold.check()
            experiment = self.connection.experiment(scale)
            earlier = self._resumable(spec.id, experiment)
            if earlier is None:
                return self.connection.client.create_run(
                    experiment, run_name=tags.title(spec), tags=first
                ).info.run_id, 1
            run_id = earlier.info.run_id
            self.connection.log_batches(
                run_id, tags=first
            )  # the owner first: until then `mark_dead_runs` would take the run for a dead one's
            self.connection.client.update_run(run_id, status="RUNNING")
            if REASON in earlier.data.tags:
                self.connection.client.delete_tag(run_id, REASON)
            return run_id, self._attempts(run_id) + 1

    def mark_dead_runs(self) -> list[str]:
        """Marks the runs whose process is gone as killed, or as its lease says that they ended, and returns
        their MLflow ids.

        A process on another machine can be seen from here by its lease alone, where both have the same folder
        of runs; else its runs are left as they are.

        Raises:
            ConnectionError: the store does not answer, or cannot be written.
            OSError: there is no room in it.
        """
        dead: list[str] = []
        with self.connection.one_line_errors():
            if not self.connection.experiments():
                return dead
        with self.connection.one_line_errors(), self.connection.lock():
            for status in (
                "RUNNING",
                "FINISHED",
            ):  # FINISHED without its completion tag: killed between the two
                for run in self.connection.search(Wanted(status=status, there=(SPEC,), absent=(COMPLETE,))):
                    if tags.alive(run, self._site.runs) is False and not self._finished_since(run):
                        state, reason = tags.ending(run, self._site.runs)
                        self.connection.client.set_tag(run.info.run_id, REASON, reason)
                        self.connection.client.set_terminated(
                            run.info.run_id, status="FAILED" if state == "failed" else "KILLED"
                        )
                        dead.append(run.info.run_id)
        return dead

    def _finished_since(self, run: Any) -> bool:
        """Whether a run whose owner is gone has finished since it was read: its lease says so after its
        record does."""
        return COMPLETE in self.connection.client.get_run(run.info.run_id).data.tags

    def status(self) -> list[RunState]:
        """Every run and its true state, the newest first; changes nothing."""
        return [tags.state_of(run, self._site.runs) for run in self.connection.search(Wanted(there=(SPEC,)))]

    def record_of(self, spec_id: str) -> Record | None:
        """The newest finished run of the spec, else its newest; None: there is none."""
        runs = list(self.connection.search(Wanted(tags={SPEC: [spec_id]})))
        finished = [run for run in runs if COMPLETE in run.data.tags]
        return next((self._record(run) for run in (*finished, *runs)), None)

    def records(self, ids: Iterable[str]) -> dict[str, Record]:
        """What is known of the specs named by `ids`: of each its newest finished run, else one that goes on,
        else its newest."""
        known: dict[str, list[Record]] = {}
        for run in self.connection.search(Wanted(tags={SPEC: sorted(set(ids))})):
            known.setdefault(run.data.tags[SPEC], []).append(self._record(run))
        order = {"finished": 0, "running": 1}
        return {
            spec_id: min(known[spec_id], key=lambda record: order.get(record.state.state, 2))
            for spec_id in sorted(known)
        }

    def newest_finished(self, kind: str, scale: str, limit: int) -> list[Record]:
        """The newest finished runs of a kind, `pretrain` or `evaluate`, at a scale, the newest first, at most
        `limit` of them."""
        wanted = Wanted(tags={"kind": [kind], SCALE: [scale]}, there=(COMPLETE,))
        return [self._record(run) for run in self.connection.search(wanted, limit=limit)]

    def unfinished(self) -> list[Record]:
        """Every record of a run that is not finished, the newest first."""
        return [
            self._record(run) for run in self.connection.search(Wanted(there=(SPEC,), absent=(COMPLETE,)))
        ]

    def evaluated(self, digests: Iterable[str]) -> set[tuple[str, str]]:
        """The encoders of those digests that were evaluated, each with the id of the spec that did it,
        finished or not."""
        wanted = Wanted(tags={"encoder_digest": sorted(set(digests))}, there=(SPEC,))
        return {
            (run.data.tags["encoder_digest"], run.data.tags[SPEC]) for run in self.connection.search(wanted)
        }

    def delete(self, run_id: str) -> bool:
        """Deletes an unfinished record that nobody writes, and says whether it did; MLflow can restore what
        it deletes."""
        with self.connection.lock():
            run = self.connection.client.get_run(run_id)
            if tags.state_of(run, self._site.runs).state in ("finished", "running"):
                return False
            if run.info.lifecycle_stage == "active":
                self.connection.client.delete_run(run_id)
        return True

    def named(self, name: str) -> Record:
        """The run that a user names: by a spec id, its beginning, or MLflow's own name of the run.

        Raises:
            LookupError: there is no such run, or runs of several specs begin so.
        """
        if not re.fullmatch(r"[0-9a-f]{4,12}|[0-9a-f]{32}", name):
            raise NotFoundError(
                f"'{name}' is no run's id: 4 to 12 hexadecimal digits, as `invoke status` and `--dry-run` print, or MLflow's 32."
            )
        wanted = Wanted(run_id=name, there=(SPEC,)) if len(name) == 32 else Wanted(begins={SPEC: name})
        runs = list(self.connection.search(wanted))
        ids = sorted({run.data.tags[SPEC] for run in runs})
        if not ids:
            raise NotFoundError(
                f"There is no run '{name}' in {self.uri}: `invoke status` lists those that there are."
            )
        if len(ids) > 1:
            raise NotFoundError(
                f"'{name}' may mean {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}: give more digits."
            )
        if len(name) == 32:
            return self._record(runs[0])
        found = self.record_of(ids[0])
        assert found is not None
        return found

    def _record(self, run: Any) -> Record:
        return tags.record_of(run, self._site.runs, self.uri if self.connection.server else "")

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric in order of steps; where a resumed run repeated a step, the value that it
        logged last."""
        return [(metric.step, metric.value) for metric in self._points(run_id, key)]

    def download(self, run_id: str, name: str, folder: Path) -> Path:
        """Copies the artifact `name` of a run into `folder` and returns where it is.

        Raises:
            LookupError: the run has none, as one that was imported without its encoder.
            ConnectionError: the server does not answer.
        """

        def fetch() -> Path:
            try:
                return Path(self.connection.client.download_artifacts(run_id, name, str(folder)))
            except Exception as error:
                if not (of_mlflow(error) or isinstance(error, OSError)):
                    raise
                if self.connection.server:
                    self.connection.check_server()  # a server that does not answer may well have it
                raise NotFoundError(
                    f"The tracking store has no {name} of its run {run_id} ({one_line(error)})."
                ) from None

        folder.mkdir(parents=True, exist_ok=True)
        return self.connection.retrying(fetch)

    def portable(self, spec_id: str) -> PortableRun:
        """The whole record of the spec's finished run, but for its encoder and pictures; the newest where
        there are several.

        Raises:
            LookupError: none is finished, or its settings are not in the store.
        """
        run = self._newest_finished([spec_id]).get(spec_id)
        if run is None:
            raise NotFoundError(f"There is no finished run {spec_id} in {self.uri}.")
        run_id, found = run.info.run_id, run.data.tags
        with tempfile.TemporaryDirectory() as folder:

            def artifact(name: str) -> Any:
                return json.loads(self.download(run_id, name, Path(folder)).read_text(encoding="utf-8"))

            names = (file.path for file in self.connection.client.list_artifacts(run_id))
            return PortableRun(
                spec_id=spec_id,
                name=run.info.run_name,
                started=run.info.start_time,
                ended=run.info.end_time,
                settings=artifact(SETTINGS),
                tags={key: value for key, value in found.items() if travels(key, OF_THIS_STORE)},
                params=dict(run.data.params),
                final=tags.final(run),
                histories={
                    key: tuple((each.step, each.value, each.timestamp) for each in self._points(run_id, key))
                    for key in run.data.metrics
                    if not key.startswith(FINAL)
                },
                environments={name: artifact(name) for name in names if ENVIRONMENT.fullmatch(name)},
            )

    def adopt(self, run: PortableRun, source: str) -> Finished | None:
        """Adds the record of a run that was done elsewhere, unless the spec has a finished run here; the
        completion tag comes last.

        What an earlier attempt left half-written is deleted first.

        Args:
            source: where it comes from, for the tag `imported`.

        Returns:
            The finished run that was here already and stays as it is; None: the record was added.

        Raises:
            ValueError: the store refuses something in the record.
        """
        with self.connection.lock(), interrupt.deferred():
            here = self._newest_finished([run.spec_id]).get(run.spec_id)
            if here is not None:
                return Finished(spec_id=run.spec_id, run_id=here.info.run_id, metrics=tags.final(here))
            try:
                self._adopt(run, source, self.connection.experiment(run.scale))
            except Exception as error:
                if not of_mlflow(error):
                    raise
                raise InvalidError(
                    f"{self.uri} does not take the record of run {run.spec_id}: {one_line(error)}"
                ) from None
        return None

    def log_table(self, filled: Filled, paths: Sequence[Path]) -> str:
        """Records a table's means and files as one run for each table, scale and set of changes, so that the
        UI can compare tables.

        Writes nothing when nothing changed since the last time.

        Args:
            paths: the rendered files.

        Returns:
            The MLflow id of the run.

        Raises:
            ConnectionError: the store does not answer, or cannot be written.
            OSError: there is no room in it.
        """
        with self.connection.one_line_errors():
            return self.connection.retrying(lambda: self._log_table(filled, paths))

    def _log_table(self, filled: Filled, paths: Sequence[Path]) -> str:
        name = " ".join((filled.table, filled.scale, *filled.changes)).replace(
            "'", ""
        )  # it stands in a filter
        values = tags.cell_means(filled)
        digest = tags.table_digest(values, paths)
        with self.connection.lock():  # two commands that end at once make one record
            run = next(
                self.connection.search(
                    Wanted(tags={TABLE: [name]}), self.connection.experiments("tables"), limit=1
                ),
                None,
            )
            if run is not None and run.data.tags.get(DIGEST) == digest:
                return str(run.info.run_id)
            if run is not None:
                run_id, known = run.info.run_id, run.data.metrics
            else:
                experiment = self.connection.experiment("tables")
                labels = {TABLE: name, SCALE: filled.scale, "title": filled.title}
                run_id, known = (
                    self.connection.client.create_run(experiment, run_name=name, tags=labels).info.run_id,
                    {},
                )
            # A cell that has become empty must not keep its old number, and MLflow cannot delete one.
            self.connection.log_batches(run_id, points(dict.fromkeys(known, math.nan) | values, 0))
            for path in paths:
                self.connection.client.log_artifact(run_id, str(path))
            self.connection.client.set_terminated(run_id)
            self.connection.client.set_tag(run_id, DIGEST, digest)
        return str(run_id)

    def described(self) -> str:
        """Where the store is, without the password that an address may hold, and whether it is there; nothing
        is opened or made."""
        parts = urlsplit(self.uri)
        address = (
            parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            if "@" in parts.netloc
            else self.uri
        )
        if self.connection.file is not None:
            return f"{address}, {'which the first run makes' if self.connection.absent else 'which is there'}"
        if not self.connection.server:
            return f"{address}, a database, which is not asked"
        try:
            self.connection.check_server()
        except ConnectionError:
            return f"{address}, where no server answers: start it, or set another MLFLOW_TRACKING_URI"
        return f"{address}, where a server answers"

    @property
    def keeps_artifacts_here(self) -> bool:
        """Whether encoders and reports that are logged lie in the site's runs."""
        return not self.connection.server

    def ui_command(self, port: int = 5000) -> tuple[list[str], dict[str, str]]:
        """The command that serves MLflow's UI over this store on 127.0.0.1, and what it needs in its
        environment.

        Raises:
            LookupError: the store is a server already; the message says where.
        """
        if self.connection.server:
            raise NotFoundError(f"The tracking store is a server: open {self.uri} in a browser.")
        self.connection.create()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.uri]
        command += ["--default-artifact-root", self.connection.artifacts.as_uri()]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        # With job execution the server is ten processes and 1.85 GB instead of two and 0.5 GB.
        return command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def pages(self, port: int) -> dict[str, str]:
        """The address of each experiment's runs in that UI, by the experiment's name; the UI itself opens at
        language models."""
        if self.connection.absent:
            return {}
        found = self.connection.client.search_experiments(filter_string=f"name LIKE '{EXPERIMENTS}%'")
        return {
            each.name: f"http://127.0.0.1:{port}/#/experiments/{each.experiment_id}/runs" for each in found
        }

    def _resumable(self, spec_id: str, experiment: str) -> Any:
        """The newest unfinished record of the spec that nobody owns, or None.

        Raises:
            AlreadyRunningError: a process that is alive owns one.
        """
        free = []
        for run in self.connection.search(
            Wanted(tags={SPEC: [spec_id]}, absent=(COMPLETE, IMPORTED)), [experiment]
        ):
            alive = tags.alive(run, self._site.runs)
            if run.info.status in ("RUNNING", "FINISHED") and alive and not tags.is_mine(run):
                raise AlreadyRunningError(
                    f"Run {spec_id} is being executed by {tags.who(run)}: wait for it, or stop it first."
                )
            if run.info.status != "RUNNING" or alive is not None:
                free.append(run)
        return free[0] if free else None

    def _newest_finished(self, ids: Iterable[str]) -> dict[str, Any]:
        """The finished run of each spec that has one: of several, the one that ended last."""
        found: dict[str, Any] = {}
        for run in self.connection.search(Wanted(tags={COMPLETE: sorted(set(ids))})):
            before = found.setdefault(run.data.tags[COMPLETE], run)
            if (run.info.end_time or 0) > (before.info.end_time or 0):
                found[run.data.tags[COMPLETE]] = run
        return found

    def _points(self, run_id: str, key: str) -> list[Any]:
        """A metric in order of steps, without what a resumed run logged again later."""
        latest: dict[int, Any] = {}
        for metric in self.connection.client.get_metric_history(run_id, key):
            if metric.step not in latest or metric.timestamp >= latest[metric.step].timestamp:
                latest[metric.step] = metric
        return [latest[step] for step in sorted(latest)]

    def _adopt(self, run: PortableRun, source: str, experiment: str) -> None:
        """Writes the record of a run that has none here."""
        for left in self.connection.search(
            Wanted(tags={SPEC: [run.spec_id]}, there=(IMPORTED,)), [experiment]
        ):
            if tags.alive(left, self._site.runs) is False or tags.is_mine(left):
                self.connection.client.delete_run(left.info.run_id)
        parent = self._newest_finished([run.needs]).get(run.needs) if run.needs else None
        labels = {key: value for key, value in run.tags.items() if travels(key, OF_THIS_STORE)}
        labels |= {SPEC: run.spec_id, OWNER: json.dumps(lease.process()), IMPORTED: source} | (
            {PARENT: parent.info.run_id} if parent else {}
        )
        run_id = self.connection.client.create_run(
            experiment, start_time=run.started, run_name=run.name, tags=labels
        ).info.run_id
        logged = [
            Point(key, value, at, step)
            for key, history in run.histories.items()
            for step, value, at in history
        ]
        final = [Point(FINAL + key, value, run.ended, 0) for key, value in run.final.items()]
        self.connection.log_batches(run_id, logged + final, params=run.params)
        for name, content in {SETTINGS: run.settings, **run.environments}.items():
            self.connection.log_document(run_id, name, content)
        self.connection.client.set_terminated(run_id, end_time=run.ended)
        self.connection.client.set_tag(run_id, COMPLETE, run.spec_id)

    def _attempts(self, run_id: str) -> int:
        """How many attempts the run's artifacts tell of."""
        return sum(
            file.path.startswith("environment") for file in self.connection.client.list_artifacts(run_id)
        )
