"""The tracking store: finished runs, the state of all others, and the record that each run leaves.

    store = Store(site)
    store.finished([spec.id])                     # {spec id: Finished(run_id, metrics)}
    with store.start(spec, scale="smoke") as run:
        run.log(step, {"loss": 0.3})
        run.finish({"top1": 0.81})

MLflow's own status is FINISHED after an exception, and RUNNING for ever after a kill. Here a run is finished
when it has the tag `complete`, which is written last. `recording.py` sets the status for every way in which a
run can end, and `mark_dead_runs` for runs whose process is gone. `tags.py` describes the tags of a run, and
`connection.py` reaches MLflow.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reproduce.messages import InvalidError, NotFoundError, reason_of
from reproduce.report.markup import plain
from reproduce.report.observe import Finished
from reproduce.runs import interrupt, processes
from reproduce.runs.journal import Point, points
from reproduce.runs.lease import Held
from reproduce.site import Site
from reproduce.spec import Evaluate, Spec
from reproduce.tracking import about, tags, uses, views
from reproduce.tracking.about import Purpose
from reproduce.tracking.connection import EXPERIMENTS, Connection
from reproduce.tracking.errors import NOT_FOUND, StoreError
from reproduce.tracking.portable import ENVIRONMENT, PortableRun, travels
from reproduce.tracking.recording import Run
from reproduce.tracking.sqlite import Wanted
from reproduce.tracking.tags import (
    COMPLETE,
    DIGEST,
    FINAL,
    GROUP,
    IMPORTED,
    MODEL,
    NOTE,
    NUMBERS,
    OF_TABLE,
    OF_THIS_STORE,
    OWNER,
    PARENT,
    REASON,
    SCALE,
    SETTINGS,
    SOURCE,
    SOURCE_TYPE,
    SPEC,
    SUPERSEDED,
    TABLE,
    TABLES,
    USER,
    Record,
    RunState,
)

if TYPE_CHECKING:
    from reproduce.report.filled import Filled
    from reproduce.report.table import Table


ABSENT = (None, errno.ENOENT, errno.ENOTDIR)
"""Error numbers of an artifact that does not exist; MLflow's own error has none."""


QUIET = "ignore:starlette.middleware.wsgi is deprecated"
"""Python's filter of a warning of MLflow's server, which prints a line of source code."""
LONGEST_VIEW = 5000
"""Maximum characters of a saved view: databases limit a tag of an experiment."""


class Page(NamedTuple):
    """Addresses of an experiment in the UI."""

    runs: str
    """Address of the plain list of runs."""
    views: Mapping[str, str]
    """Addresses of the saved views, by key."""


class AlreadyRunningError(RuntimeError):
    """Another live process executes this run, according to its record.

    The owner of the run's lease sees this error only if the other process uses another folder of runs, whose
    leases are not visible from here. Unlike `lease.BusyError`, it names nothing to wait for, and the run
    fails.
    """


class Store:
    """The tracking store of a site, opened when it is first needed.

    Args:
        retry_seconds: seconds for which `start`, its runs, `finished` and `download` retry while the store is
            unreachable: `retry.RETRY_SECONDS` for processes that execute runs, 0 for commands, which report
            the problem at once.
    """

    def __init__(self, site: Site, *, retry_seconds: float = 0.0) -> None:
        self._site = site
        self.connection = Connection(site, retry_seconds)
        self.address = self.connection.address.shown
        """Address of the store for texts, without a password."""

    def finished(self, ids: Iterable[str]) -> dict[str, Finished]:
        """Return the finished runs of the specs with these ids; of several, the one that ended last."""
        return {spec_id: runs[0] for spec_id, runs in self.every_finished(ids).items()}

    def every_finished(self, ids: Iterable[str]) -> dict[str, list[Finished]]:
        """Return all finished runs of the specs with these ids, those that ended last first."""
        found = self.connection.retrying(lambda: self._every_finished(ids))
        return {spec_id: [tags.finished(run) for run in found[spec_id]] for spec_id in sorted(found)}

    def start(
        self,
        spec: Spec,
        *,
        scale: str,
        labels: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        hold: Held | None = None,
        purpose: Purpose | None = None,
    ) -> Run:
        """Start the record of `spec`, or continue the unfinished one of an earlier attempt.

        Measurements that the attempt could not send are sent.

        Args:
            labels: further tags.
            parent_run_id: record under which this one is shown; for an evaluation, by default its finished
                pretraining run.
            hold: lease of the run, without which nothing is written; None if there is none.
            purpose: what asks for the run, for its description in the UI.

        Raises:
            AlreadyRunningError: a live process on this machine executes this run.
            LostError: another process has the lease.
        """
        if (
            parent_run_id is None
            and isinstance(spec, Evaluate)
            and (parent := self.finished([spec.encoder.id]))
        ):
            parent_run_id = parent[spec.encoder.id].run_id
        tables = self.connection.retrying(lambda: self.connection.experiment("tables"))
        first = (
            tags.first_tags(spec, scale)
            | about.shown(spec, scale, purpose, tables)
            | dict(labels or {})
            | ({PARENT: parent_run_id} if parent_run_id else {})
        )
        first[OWNER] = json.dumps(tags.me(self._site.runs, hold))
        record, attempt = self.connection.retrying(lambda: self._claim(spec, scale, first, hold))
        model_id = record.data.tags.get(MODEL, "")
        if isinstance(spec, Evaluate) and parent_run_id:
            model_id = self.connection.retrying(lambda: self._model(str(parent_run_id)))
        run = Run(
            self.connection,
            spec,
            record.info.run_id,
            self._site.runs / spec.id,
            hold,
            started=record.info.start_time,
            model_id=model_id,
        )
        run.describe(attempt)
        return run

    def _model(self, run_id: str) -> str:
        """Return MLflow's id of the logged model of a pretraining; empty if it has none."""
        found = self.connection.search(Wanted(run_id=run_id))
        return next((str(run.data.tags.get(MODEL, "")) for run in found), "")

    def _claim(self, spec: Spec, scale: str, first: Mapping[str, str], hold: Held | None) -> tuple[Any, int]:
        """Return a record for `spec` that this process owns, and the number of this attempt.

        If it is called again after a failure, it finds its own record.
        """
        with self.connection.lock():
            if hold is not None:
                hold.check()
            experiment = self.connection.experiment(scale)
            earlier = self._resumable(spec.id, experiment)
            if earlier is None:
                return self.connection.client.create_run(experiment, run_name=tags.title(spec), tags=first), 1
            run_id = earlier.info.run_id
            # The owner first: until then `mark_dead_runs` would consider the run dead.
            self.connection.log_batches(run_id, tags=first)
            self.connection.client.update_run(run_id, status="RUNNING")
            if REASON in earlier.data.tags:
                self.connection.client.delete_tag(run_id, REASON)
            return earlier, self._attempts(run_id) + 1

    def mark_dead_runs(self) -> list[str]:
        """Mark runs whose process is gone as killed, or as their lease records, and return their MLflow ids.

        A process on another machine is visible only through its lease, in a shared folder of runs. Without
        one, its runs are left unchanged.

        Raises:
            StoreError: the store does not answer, or cannot be written.
        """
        dead: list[str] = []
        if not self.connection.experiments():
            return dead
        with self.connection.lock():
            # FINISHED without the completion tag means that the process was killed between the two.
            for status in ("RUNNING", "FINISHED"):
                for run in self.connection.search(Wanted(status=status, present=(SPEC,), absent=(COMPLETE,))):
                    if tags.alive(run, self._site.runs) is False and not self._finished_since(run):
                        state, reason = tags.ending(run, self._site.runs)
                        self.connection.client.set_tag(run.info.run_id, REASON, reason)
                        self.connection.client.set_terminated(
                            run.info.run_id, status="FAILED" if state == "failed" else "KILLED"
                        )
                        dead.append(run.info.run_id)
        return dead

    def _finished_since(self, run: Any) -> bool:
        """Return True if a run whose owner is gone has finished since it was read.

        The lease records the end after the record does.
        """
        return COMPLETE in self.connection.client.get_run(run.info.run_id).data.tags

    def status(self) -> list[RunState]:
        """Return every run and its true state, the newest first, without any change."""
        return [
            tags.state_of(run, self._site.runs) for run in self.connection.search(Wanted(present=(SPEC,)))
        ]

    def record_of(self, spec_id: str, chosen: Finished | None = None) -> Record | None:
        """Return the newest finished run of the spec, or else its newest run, or None if there is none.

        Args:
            chosen: a finished run that is preferred.
        """
        runs = list(self.connection.search(Wanted(tags={SPEC: [spec_id]})))
        finished = [run for run in runs if tags.is_finished(run)]
        if chosen:
            finished.sort(key=lambda run: run.info.run_id != chosen.run_id)
        return next((self._record(run) for run in (*finished, *runs)), None)

    def records(self, ids: Iterable[str], chosen: Mapping[str, Finished] | None = None) -> dict[str, Record]:
        """Return one record for each known spec among `ids`.

        It is the newest finished run, or else one that is running, or else the newest of the others.

        Args:
            chosen: finished runs by spec id that are preferred to others.
        """
        preferred = {run.run_id for run in (chosen or {}).values()}
        known: dict[str, list[Record]] = {}
        for run in self.connection.search(Wanted(tags={SPEC: sorted(set(ids))})):
            known.setdefault(run.data.tags[SPEC], []).append(self._record(run))
        order = {"finished": 0, "running": 1, "superseded": 3}
        return {
            spec_id: min(
                known[spec_id],
                key=lambda record: (
                    record.state.run_id not in preferred,
                    order.get(record.state.state, 2),
                ),
            )
            for spec_id in sorted(known)
        }

    def newest_finished(self, kind: str, scale: str, limit: int) -> list[Record]:
        """Return the newest finished runs of a kind at a scale, the newest first.

        Args:
            kind: `pretrain` or `evaluate`.
            limit: maximum number of runs.
        """
        wanted = Wanted(tags={"kind": [kind], SCALE: [scale]}, present=(COMPLETE,), absent=(SUPERSEDED,))
        return [self._record(run) for run in self.connection.search(wanted, limit=limit)]

    def complete(self) -> list[Record]:
        """Return the finished run of each spec that has one, as `finished` does."""
        wanted = Wanted(present=(SPEC, COMPLETE), absent=(SUPERSEDED,))
        known = {run.info.run_id: self._record(run) for run in self.connection.search(wanted)}
        finished = self.finished(record.state.spec_id for record in known.values())
        return [known[run.run_id] for run in finished.values() if run.run_id in known]

    def evaluations(self, pretraining: Record) -> list[Record]:
        """Return the finished evaluations of a pretraining run's encoder; an evaluation has none."""
        if not pretraining.is_pretraining:
            return []
        wanted = Wanted(tags={"kind": [Evaluate.name]}, present=(COMPLETE,), absent=(SUPERSEDED,))
        found: dict[str, Record] = {}
        for run in self.connection.search(wanted):
            record = self._record(run)
            # A record from before a setting existed lacks it, but names the record that it evaluated.
            if (
                pretraining.state.run_id == run.data.tags.get(PARENT)
                or record.encoder == pretraining.settings
            ):
                found.setdefault(record.state.spec_id, record)
        return list(found.values())

    def supersede(self, spec_id: str, note: str) -> None:
        """Mark every finished run of the spec, so that the spec counts as not finished.

        Args:
            note: reason and time, in words.
        """
        with self.connection.lock():
            for run in list(self.connection.search(Wanted(tags={COMPLETE: [spec_id]}, absent=(SUPERSEDED,)))):
                self.connection.client.set_tag(run.info.run_id, SUPERSEDED, note)

    def superseded(self, ids: Iterable[str]) -> set[str]:
        """Return those of the specs that have a finished run which `supersede` marked."""
        wanted = Wanted(tags={COMPLETE: sorted(set(ids))}, present=(SUPERSEDED,))
        return {run.data.tags[COMPLETE] for run in self.connection.search(wanted)}

    def unfinished(self) -> list[Record]:
        """Return every record of an unfinished run, the newest first."""
        return [
            self._record(run) for run in self.connection.search(Wanted(present=(SPEC,), absent=(COMPLETE,)))
        ]

    def evaluated(self, digests: Iterable[str]) -> set[tuple[str, str]]:
        """Return the pairs of an encoder's digest and the id of a spec that evaluated it, finished or not."""
        wanted = Wanted(tags={"encoder_digest": sorted(set(digests))}, present=(SPEC,))
        return {
            (run.data.tags["encoder_digest"], run.data.tags[SPEC]) for run in self.connection.search(wanted)
        }

    def delete(self, run_id: str) -> bool:
        """Delete an unfinished record that no process writes, and return whether it was deleted.

        MLflow can restore it.
        """
        with self.connection.lock():
            run = self.connection.client.get_run(run_id)
            if tags.state_of(run, self._site.runs).state not in ("interrupted", "failed"):
                return False
            if run.info.lifecycle_stage == "active":
                self.connection.client.delete_run(run_id)
        return True

    def named(self, name: str) -> Record:
        """Return the run that a user names by a spec id, the beginning of one, or MLflow's own id.

        Raises:
            LookupError: no such run exists, or the ids of several specs begin like this.
        """
        if not re.fullmatch(r"[0-9a-f]{4,12}|[0-9a-f]{32}", name):
            raise NotFoundError(
                f"'{name}' is not a run's id: use 4 to 12 hexadecimal digits, as printed by "
                "`invoke status` and `--dry-run`, or MLflow's 32."
            )
        wanted = Wanted(run_id=name, present=(SPEC,)) if len(name) == 32 else Wanted(begins={SPEC: name})
        runs = list(self.connection.search(wanted))
        ids = sorted({run.data.tags[SPEC] for run in runs})
        if not ids:
            raise NotFoundError(
                f"{self.address} has no run '{name}': `invoke status` lists the runs that exist."
            )
        if len(ids) > 1:
            more = ", ..." if len(ids) > 5 else ""
            raise NotFoundError(f"'{name}' could be {', '.join(ids[:5])}{more}: give more digits.")
        if len(name) == 32:
            return self._record(runs[0])
        found = self.record_of(ids[0])
        assert found is not None
        return found

    def _record(self, run: Any) -> Record:
        return tags.record_of(run, self._site.runs, self.address if self.connection.server else "")

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric in order of steps.

        If a resumed run repeated a step, the value is the one that was logged last.
        """
        return [(metric.step, metric.value) for metric in self._points(run_id, key)]

    def histories(
        self, runs: Collection[str], names: Collection[str]
    ) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Return (step, value) of measurements by run and name, as `history` does for one.

        Args:
            runs: ids of runs in this store.
            names: names; a `*` at the end of one stands for any text.
        """
        return self.connection.retrying(lambda: self._histories(runs, names))

    def _histories(
        self, runs: Collection[str], names: Collection[str]
    ) -> dict[str, dict[str, list[tuple[int, float]]]]:
        if not runs or self.connection.absent:
            return {}
        if self.connection.reader is not None:
            return self.connection.reader.histories(runs, names)

        def wanted(key: str) -> bool:
            return any(key.startswith(name[:-1]) if name.endswith("*") else key == name for name in names)

        return {
            run: {
                key: self.history(run, key)
                for key in self.connection.client.get_run(run).data.metrics
                if wanted(key)
            }
            for run in sorted(runs)
        }

    def download(self, run_id: str, name: str, folder: Path) -> Path:
        """Copy the artifact `name` of a run into `folder` and return its path.

        Raises:
            LookupError: the run has no such artifact; for example, it was imported without its encoder.
            StoreError: the store does not answer.
            OSError: the file cannot be read or written.
        """

        def fetch() -> Path:
            try:
                return Path(self.connection.client.download_artifacts(run_id, name, str(folder)))
            except OSError as error:  # a StoreError too
                absent = error.code in NOT_FOUND if isinstance(error, StoreError) else error.errno in ABSENT
                if not absent:
                    raise
                raise NotFoundError(
                    f"The tracking store has no {name} of its run {run_id} ({reason_of(error)})."
                ) from None

        folder.mkdir(parents=True, exist_ok=True)
        return self.connection.retrying(fetch)

    def portable(self, spec_id: str) -> PortableRun:
        """Return the whole record of the spec's newest finished run, except its encoder and pictures.

        Raises:
            LookupError: no run is finished, or its settings are not in the store.
        """
        run = self._newest_finished([spec_id]).get(spec_id)
        if run is None:
            raise NotFoundError(f"{self.address} has no finished run {spec_id}.")
        run_id, found = run.info.run_id, run.data.tags
        reader = self.connection.reader
        here = reader.artifacts(run_id) if reader is not None else None
        with tempfile.TemporaryDirectory() as folder:

            def artifact(name: str) -> Any:
                path = here / name if here is not None else Path()
                if not path.is_file():
                    path = self.download(run_id, name, Path(folder))
                return json.loads(path.read_text(encoding="utf-8"))

            if reader is not None and here is not None:  # a file of this machine is read without MLflow
                names = [path.name for path in here.iterdir()]
                points = reader.points(run_id)
            else:
                names = [file.path for file in self.connection.client.list_artifacts(run_id)]
                points = {
                    key: [(each.step, each.value, each.timestamp) for each in self._points(run_id, key)]
                    for key in run.data.metrics
                }
            return PortableRun(
                spec_id=spec_id,
                name=run.info.run_name,
                started=run.info.start_time,
                ended=run.info.end_time,
                settings=artifact(SETTINGS),
                tags={key: value for key, value in found.items() if travels(key, OF_THIS_STORE)},
                params=dict(run.data.params),
                final=tags.final(run),
                histories={key: tuple(points[key]) for key in sorted(points) if not key.startswith(FINAL)},
                environments={name: artifact(name) for name in names if ENVIRONMENT.fullmatch(name)},
            )

    def adopt(self, run: PortableRun, source: str) -> Finished | None:
        """Add the record of a run from another store, unless this store has a finished run of the spec.

        The completion tag is written last. What an earlier attempt left half-written is deleted first.

        Args:
            source: origin of the record, for the tag `imported`.

        Returns:
            The finished run that this store has already, which is unchanged; None if the record was added.

        Raises:
            ValueError: the store refuses a part of the record.
        """
        with self.connection.lock(), interrupt.deferred():
            here = self._newest_finished([run.spec_id]).get(run.spec_id)
            if here is not None:
                return tags.finished(here)
            try:
                self._adopt(run, source, self.connection.experiment(run.scale))
            except StoreError as error:
                if error.temporary or not error.original:
                    raise
                raise InvalidError(
                    f"{self.address} refuses the record of run {run.spec_id}: {error.original}"
                ) from None
        return None

    def log_table(
        self, filled: Filled, paths: Sequence[Path], table: Table | None = None, command: str = ""
    ) -> str:
        """Record a table's numbers, verdicts and files as one run, and the paper's numbers as another.

        There is one run per table, scale and set of changes, and one of the paper's numbers per table, so
        that the UI can compare them. The saved views of the table are written, too. Nothing is written if
        nothing changed since the last call.

        Args:
            paths: the rendered files.
            table: the table, for its views; None to write none.
            command: command that makes the table.

        Returns:
            The MLflow id of the run of our numbers.

        Raises:
            StoreError: the store does not answer, or cannot be written.
        """
        return self.connection.retrying(lambda: self._log_table(filled, paths, table, command))

    def _log_table(self, filled: Filled, paths: Sequence[Path], table: Table | None, command: str) -> str:
        name = " ".join((filled.table, filled.scale, *filled.changes)).replace("'", "")  # used in a filter
        shown = f"Table {filled.number}" if filled.number else filled.table
        title = ", ".join((shown, "ours", filled.scale, *filled.changes))
        values, verdicts = tags.cell_values(filled), tags.cell_verdicts(filled)
        digest = tags.table_digest(title, values, paths)
        with self.connection.lock():  # two commands that end at the same time write one record
            run = self._of_table(name)
            if run is not None and run.data.tags.get(DIGEST) == digest:
                return str(run.info.run_id)
            printed = tags.paper_values(filled)
            if filled.number and printed:
                self._log_numbers(
                    f"{filled.table} of the paper", f"{shown}, paper", "paper", filled, printed, command
                )
            run_id = self._log_numbers(name, title, "ours", filled, values, command)
            known_tags = {} if run is None else run.data.tags
            for key in {key for key in known_tags if key.startswith("verdict/")} - verdicts.keys():
                self.connection.client.delete_tag(run_id, key)
            self.connection.log_batches(run_id, tags=verdicts)
            for path in paths:
                self.connection.client.log_artifact(run_id, str(path))
            self.connection.client.set_terminated(run_id)
            if table is not None:
                self._log_views("tables", {table.name: views.of_records(table, [*printed] or [*values])})
                if not table.changes:
                    self._log_views(filled.scale, views.of_table(table))
                self._tag_runs(filled.scale, uses.groups([table]))
            self.connection.client.set_tag(run_id, DIGEST, digest)
        return run_id

    def _of_table(self, name: str) -> Any:
        """Return the record of a table's numbers, or None."""
        found = self.connection.search(
            Wanted(tags={TABLE: [name]}), self.connection.experiments("tables"), limit=1
        )
        return next(found, None)

    def _log_numbers(
        self, name: str, title: str, whose: str, filled: Filled, values: Mapping[str, float], command: str
    ) -> str:
        """Write a table's numbers, ours or the paper's, to their record, and return its MLflow id."""
        run, client = self._of_table(name), self.connection.client
        labels = {
            TABLE: name,
            OF_TABLE: filled.table,
            NUMBERS: whose,
            "title": plain(filled.title),
            NOTE: plain(filled.caption),
            USER: tags.user(),
        } | ({SOURCE: command, SOURCE_TYPE: "LOCAL"} if command else {})
        if whose == "ours":
            labels[SCALE] = filled.scale
        else:
            labels[NOTE] = f"The numbers that the paper printed. {plain(filled.title)}"
        if run is None:
            experiment = self.connection.experiment("tables")
            run = client.create_run(experiment, run_name=title, tags=labels)
        elif run.info.run_name != title:
            client.update_run(run.info.run_id, name=title)
        run_id, known = str(run.info.run_id), dict(run.data.metrics)
        # A cell that has become empty must not keep its old number, which MLflow cannot delete.
        wanted = dict.fromkeys(known, math.nan) | dict(values)
        changed = {key: value for key, value in wanted.items() if repr(known.get(key)) != repr(value)}
        self.connection.log_batches(run_id, points(changed, 0), tags=labels)
        # Later numbers, which are the same unless a table was corrected, leave its end as it is.
        if whose == "paper" and (run is None or run.info.status == "RUNNING"):
            client.set_terminated(run_id)
        return run_id

    def save_views(self, tables: Mapping[str, Sequence[Table]]) -> None:
        """Write the saved views of the UI, and which tables use each run, where they are missing or differ.

        Args:
            tables: every table at each scale that has runs.

        Raises:
            StoreError: the store does not answer, or cannot be written.
        """
        for scale, known in tables.items():
            with self.connection.lock():
                self._log_views(scale, views.of_experiment(known))
                self._tag_runs(scale, uses.groups(known))

    def _log_views(self, scale: str, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Write views as tags of an experiment."""
        experiment = self.connection.experiment(scale)
        known = self.connection.client.get_experiment(experiment).tags
        for key, view in wanted.items():
            text = json.dumps(view, separators=(",", ":"))
            if known.get(views.tag(key)) != text and len(text) <= LONGEST_VIEW:
                self.connection.client.set_experiment_tag(experiment, views.tag(key), text)

    def _tag_runs(self, scale: str, groups: Mapping[str, str]) -> None:
        """Record in each run of an experiment which tables use it.

        Args:
            groups: tables by group of runs, in the form of the tag.
        """
        wanted = Wanted(tags={GROUP: sorted(groups)}, present=(SPEC,))
        for run in list(self.connection.search(wanted, self.connection.experiments(scale))):
            known = run.data.tags.get(TABLES, "")
            found = uses.joined(known, groups[run.data.tags[GROUP]])
            if found != known:
                self.connection.client.set_tag(run.info.run_id, TABLES, found)

    def described(self) -> str:
        """Return the address of the store, without a password, and its state; open and create nothing."""
        try:
            state = self._state()
        except StoreError as error:
            return str(error)
        return f"{self.address}, {state}"

    def _state(self) -> str:
        """Return the state of the store in words.

        Raises:
            StoreError: the sqlite file cannot be read, or the server does not answer as one of MLflow.
        """
        if self.connection.file is not None:
            if self.connection.absent:
                return "created by the first run"
            known = self.connection.reader is not None
            return "which exists" if known else "which exists and has the tables of another MLflow version"
        if package := self.connection.address.missing_driver:
            return f"a database, for which `pip install '{package}'` is missing"
        if not self.connection.server:
            return "a database, which is not checked"
        self.connection.check_health()
        return "a server that answers"

    @property
    def keeps_artifacts_here(self) -> bool:
        """True if logged encoders and reports are stored in the site's folder of runs."""
        return not self.connection.server

    def ui_command(self, port: int = 5000) -> tuple[list[str], dict[str, str]]:
        """Return the command that serves MLflow's UI for this store on 127.0.0.1, and its environment.

        Raises:
            LookupError: the store is a server already; the message names its address.
        """
        if self.connection.server:
            raise NotFoundError(f"The tracking store is a server: open {self.address} in a browser.")
        self.connection.create()
        command = [sys.executable, "-m", "mlflow", "server"]
        command += ["--default-artifact-root", self.connection.artifacts.as_uri()]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        return command, {
            # Every user of the machine can read a command line, and the address may contain a password.
            "MLFLOW_BACKEND_STORE_URI": self.connection.uri(),
            # With job execution the server would be ten processes and 1.85 GB instead of two and 0.5 GB.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Starlette warns about the adapter that MLflow uses. The user's own filters take precedence.
            "PYTHONWARNINGS": ",".join(filter(None, (QUIET, os.environ.get("PYTHONWARNINGS", "")))),
        }

    def served(self, port: int) -> str:
        """Return the address of the UI: the tracking server if there is one, else 127.0.0.1."""
        return self.address if self.connection.server else f"http://127.0.0.1:{port}"

    def pages(self, port: int) -> dict[str, Page]:
        """Return the pages of each experiment in the UI, by the experiment's name.

        They are on the tracking server if there is one, else on 127.0.0.1.
        """
        if self.connection.absent:
            return {}
        server = self.served(port)
        found = self.connection.client.search_experiments(filter_string=f"name LIKE '{EXPERIMENTS}%'")
        return {
            each.name.removeprefix(EXPERIMENTS): Page(
                views.address(server, each.experiment_id),
                {
                    tag.removeprefix(views.TAG): views.address(
                        server, each.experiment_id, tag.removeprefix(views.TAG)
                    )
                    for tag in each.tags
                    if tag.startswith(views.TAG)
                },
            )
            for each in found
        }

    def _resumable(self, spec_id: str, experiment: str) -> Any:
        """Return the newest unfinished record of the spec that no process owns, or None.

        Raises:
            AlreadyRunningError: a live process owns a record.
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
        """Return the finished run of each spec that has one; of several, the one that ended last."""
        return {spec_id: runs[0] for spec_id, runs in self._every_finished(ids).items()}

    def _every_finished(self, ids: Iterable[str]) -> dict[str, list[Any]]:
        """Return the finished runs of each spec that has any, those that ended last first."""
        found: dict[str, list[Any]] = {}
        for run in self.connection.search(Wanted(tags={COMPLETE: sorted(set(ids))}, absent=(SUPERSEDED,))):
            if tags.is_finished(run):
                found.setdefault(run.data.tags[COMPLETE], []).append(run)
        for runs in found.values():
            runs.sort(key=lambda run: run.info.end_time or 0, reverse=True)
        return found

    def _points(self, run_id: str, key: str) -> list[Any]:
        """Return the points of a metric in order of steps; of a repeated step, the one logged last."""
        latest: dict[int, Any] = {}
        for metric in self.connection.client.get_metric_history(run_id, key):
            if metric.step not in latest or metric.timestamp >= latest[metric.step].timestamp:
                latest[metric.step] = metric
        return [latest[step] for step in sorted(latest)]

    def _adopt(self, run: PortableRun, source: str, experiment: str) -> None:
        """Write the record of a run that this store lacks."""
        for left in self.connection.search(
            Wanted(tags={SPEC: [run.spec_id]}, present=(IMPORTED,)), [experiment]
        ):
            if tags.alive(left, self._site.runs) is False or tags.is_mine(left):
                self.connection.client.delete_run(left.info.run_id)
        parent = self._newest_finished([run.needs]).get(run.needs) if run.needs else None
        labels = {key: value for key, value in run.tags.items() if travels(key, OF_THIS_STORE)}
        labels |= {SPEC: run.spec_id, OWNER: json.dumps(processes.process()), IMPORTED: source} | (
            {PARENT: parent.info.run_id} if parent else {}
        )
        labels[NOTE] = about.imported(run.name, source)
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
        """Return the number of attempts, from the run's artifacts."""
        return sum(
            file.path.startswith("environment") for file in self.connection.client.list_artifacts(run_id)
        )
