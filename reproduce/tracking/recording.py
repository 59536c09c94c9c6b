"""The record of one run while it is written: its measurements, its files, and how it ends.

    with Store(site).start(spec, scale="smoke") as run:     # finds or creates the record
        run.log(step, {"loss": 0.3})
        run.tag("data_digest_train", digest)
        run.finish({"top1": 0.81})

Measurements pass through a file in the run's folder (`journal.py`), so a store that does not answer costs
nothing; MLflow ignores what is sent twice. MLflow's own status is FINISHED even after an exception. Here the
status is set for every way in which the block can end, and the tag `complete` is written last. A stop request
(`interrupt.py`) waits until the current write is done.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from reproduce import identity
from reproduce.data import inventory
from reproduce.data.inventory import DIGEST
from reproduce.messages import reason_of
from reproduce.runs import environment, interrupt, journal
from reproduce.runs.journal import Journal, Point, points
from reproduce.runs.lease import Held, LostError
from reproduce.spec import Evaluate, Pretrain, Spec
from reproduce.tracking import tags
from reproduce.tracking.connection import Connection, Split
from reproduce.tracking.errors import StoreError, in_short, temporary
from reproduce.tracking.monitor import Monitor
from reproduce.tracking.retry import EVERY, SHORT_TIMEOUT, UPLOAD, giving_up_after
from reproduce.tracking.tags import (
    ATTEMPTS,
    COMPLETE,
    DEVICE,
    FINAL,
    MODEL,
    REASON,
    SETTINGS,
    SHARING,
    SHORT_NAMES,
    SPEC,
    TRAINED,
)

FLUSH_EVERY = 10.0
"""Seconds for which measurements are collected: one write takes 55 ms, however many it contains."""
FLUSH_AT = 500
"""Number of waiting measurements that triggers a write."""
REFUSED = "INVALID_PARAMETER_VALUE"
"""MLflow's error code for a request that it will never accept."""

SHOWN = (*SHORT_NAMES, "dataset", "seed")
"""Settings of a pretraining that its logged model shows."""
LONGEST_DIGEST = 36
"""Maximum characters of a data set's digest in MLflow."""

logger = logging.getLogger(__name__)


def splits_of(spec: Spec, facts: Mapping[str, str]) -> list[Split]:
    """Return the splits of data whose digests are among a run's facts; the last is the one it measured on."""
    found = []
    for split in spec.splits:
        if digest := facts.get(inventory.tag(DIGEST, "" if isinstance(spec, Pretrain) else split)):
            training = isinstance(spec, Pretrain) or split == spec.dataset.train_split
            context = "training" if training else "evaluation"
            found.append(
                Split(
                    f"{spec.dataset.label} {split}",
                    digest[:LONGEST_DIGEST],
                    split,
                    context,
                )
            )
    return found


class Run:
    """The record of one run while it is written; `Store.start` makes it, for use in a `with` block."""

    def __init__(
        self,
        connection: Connection,
        spec: Spec,
        run_id: str,
        folder: Path,
        hold: Held | None,
        *,
        started: int,
        model_id: str = "",
    ) -> None:
        """Write nothing yet.

        Args:
            started: start of the record, in milliseconds since 1970.
            model_id: logged model of the encoder that is evaluated; empty if there is none.
        """
        self.spec = spec
        self.run_id = run_id
        self._connection = connection
        self._hold = hold
        self._folder = folder
        self._journal = Journal(self._folder, spec.id, self._guard)
        self._measured: list[Point] = []
        self._flushed = time.monotonic()
        self._next = -math.inf
        """Time of the next attempt to send, after a failure."""
        self._complete = False
        self.recorded: dict[str, str] = {}
        """Facts that this attempt recorded."""
        self._started = started
        self._model_id = model_id
        self._monitor: Monitor | None = None

    def describe(self, attempt: int) -> None:
        """Send what an earlier attempt could not send, then the settings and the environment of this attempt.

        Args:
            attempt: number of this attempt; the first is 1.
        """
        found = environment.record()

        def describe() -> None:
            with interrupt.deferred():
                self._check()
                self._deliver()
                self._connection.log_batches(self.run_id, params=tags.shown_settings(self.spec))
                if attempt == 1:
                    self._connection.log_document(self.run_id, SETTINGS, identity.canonical(self.spec))
                name = "environment.json" if attempt == 1 else f"environment-{attempt}.json"
                self._connection.log_document(self.run_id, name, found)
                facts = {DEVICE: str(found["device"]), ATTEMPTS: str(attempt)}
                shared = {SHARING: str(found["runs_per_gpu"])} if found["runs_per_gpu"] > 1 else {}
                self._connection.log_batches(self.run_id, tags=facts | shared)

        try:
            self._connection.retrying(describe)
        except BaseException as error:
            self._stop(error)
            raise

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record measurements at a step.

        They are written together: every few seconds, by `flush`, and at the end.
        """
        self._measured += points(metrics, step)
        if len(self._measured) >= FLUSH_AT or time.monotonic() - self._flushed > FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write all waiting measurements to disk, with the samples of the machine's load, and send them.

        If the store does not answer, they are sent later. Call it before a checkpoint, so that no step is
        missing after a kill.

        Raises:
            LostError: another process owns the run now.
            OSError: the local disk is full.
            StoreError: the disk of the store is full.
        """
        self._keep()
        self._flushed = time.monotonic()
        self._send()

    def artifact(self, path: Path, name: str = "") -> None:
        """Add a file to the run's artifacts.

        Args:
            name: name of the artifact, optionally `folder/file`; by default the file's own name.
        """
        target = PurePosixPath(name or path.name)
        parent = None if target.parent == PurePosixPath() else str(target.parent)
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / target.name  # MLflow always keeps a file's name
            link.symlink_to(path.resolve(strict=True))

            def upload() -> None:
                self._check()
                with giving_up_after(UPLOAD):
                    self._connection.client.log_artifact(self.run_id, str(link), parent)

            self._connection.retrying(upload)

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run; if the store does not answer, it is sent later."""
        self.facts({name: value})

    def facts(self, values: Mapping[str, str]) -> None:
        """Set tags of the run; if the store does not answer, they are sent later."""
        self._check()
        self.recorded |= values
        self._journal.add(tags=values)
        self._send()

    def text(self, content: str, name: str) -> None:
        """Add a text to the run's artifacts."""

        def upload() -> None:
            self._check()
            with interrupt.deferred():
                self._connection.client.log_text(self.run_id, content, name)

        self._connection.retrying(upload)

    def model(self, name: str, digest: str) -> None:
        """Show the encoder that this pretraining made, an artifact of the run, as a logged model in the UI.

        Args:
            name: name of the artifact.
            digest: digest of its tensors.
        """
        if self._model_id:  # of an earlier attempt
            return
        method = self.spec.method.name if isinstance(self.spec, Pretrain) else ""
        facts = {SPEC: self.spec.id, TRAINED: digest, "artifact": f"{name} of run {self.run_id}"}

        def create() -> str:
            self._check()
            return self._connection.create_model(
                self.run_id,
                f"{method} {self.spec.id}",
                tags=facts,
                params={key: value for key, value in tags.shown_settings(self.spec).items() if key in SHOWN},
            )

        with self._optional("The encoder is not shown as a model"):
            self._model_id = self._connection.retrying(create)
            self.facts({MODEL: self._model_id})

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Record the final values, and that the run is finished; the completion tag comes last.

        Raises:
            LostError: another process owns the run now.
            UnreachableError: the store did not answer within the waiting time; the measurements wait on disk.
            OSError: the local disk is full.
            StoreError: the disk of the store is full.
        """
        # Taken once, so that a retry repeats the same measurements instead of adding others.
        now = journal.now()
        self._stop_monitor()

        def complete() -> None:
            with interrupt.deferred():
                self._keep()
                self._deliver()
                self._send_final(points({FINAL + key: value for key, value in metrics.items()}, 0, now))
                with self._guard():
                    self._connection.client.set_terminated(self.run_id)
                    self._connection.client.set_tag(self.run_id, COMPLETE, self.spec.id)
                self._complete = True
                self._journal.remove()
                journal.drop_result(self._folder)

        self._connection.retrying(complete)

    def _send_final(self, final: list[Point]) -> None:
        """Send the final values, linked to the model and the data set that they are about."""
        facts = {**self._connection.client.get_run(self.run_id).data.tags, **self.recorded}
        splits = splits_of(self.spec, facts)
        measured_on = splits[-1] if splits else None
        if self._model_id or measured_on:
            with self._optional("Final values are not linked to their model and data"):
                if self._model_id and isinstance(self.spec, Evaluate):
                    self._connection.log_model_input(self.run_id, self._model_id)
                self._connection.log_batches(
                    self.run_id, final, model_id=self._model_id or None, data=measured_on
                )
                return
        self._connection.log_batches(self.run_id, final)

    @contextmanager
    def _optional(self, problem: str) -> Iterator[None]:
        """Log a warning if the store refuses what only its UI shows, such as a server of an older version."""
        try:
            yield
        except StoreError as error:
            if error.temporary:
                raise
            logger.warning("Run %s: %s: %s", self.spec.id, problem, error)

    def __enter__(self) -> Self:
        self._monitor = Monitor(self._connection.collectors(), self._started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_monitor()
        # After a LostError the record belongs to another process.
        if not self._complete and not isinstance(error, LostError):
            self._stop(error)

    def _stop(self, error: BaseException | None) -> None:
        """Record that the run ended unfinished.

        If the store does not answer, nothing waits for it: `mark_dead_runs` marks the run later.
        """
        if isinstance(error, MemoryError):
            traceback.clear_frames(error.__traceback__)  # frees the memory that the failed frames still hold
        killed = isinstance(error, KeyboardInterrupt)
        reason = "ended without finish()" if error is None else reason_of(error)
        reason = self._connection.without_secrets(reason)
        try:
            with interrupt.deferred(), giving_up_after(SHORT_TIMEOUT):
                self._save_what_is_left()
                if self._connection.server:
                    self._connection.check_server(SHORT_TIMEOUT)
                with self._guard():
                    self._connection.client.set_tag(self.run_id, REASON, reason)
                    if error is not None and not killed:
                        trace = self._connection.without_secrets("".join(traceback.format_exception(error)))
                        self._connection.client.log_text(self.run_id, trace, "error.txt")
                    self._connection.client.set_terminated(
                        self.run_id, status="KILLED" if killed else "FAILED"
                    )
        except (Exception, LostError) as failure:
            if error is None:
                raise
            # The first error matters more than a failure to record it. `status` and `mark_dead_runs` see that
            # the process is gone.
            logger.warning(
                "Run %s (%s) could not be marked as ended: %s", self.spec.id, reason, reason_of(failure)
            )

    def _save_what_is_left(self) -> None:
        """Write the last measurements at least to disk.

        A problem with them must not keep the run from being marked.
        """
        for save in (self._keep, self._deliver):
            try:
                save()
            except Exception as failure:
                logger.warning(
                    "Run %s: its last measurements are not in the store: %s", self.spec.id, reason_of(failure)
                )

    def _check(self) -> None:
        """Raise LostError if another process owns the run now."""
        if self._hold is not None:
            self._hold.check()

    def _guard(self) -> AbstractContextManager[None]:
        """Keep the lease inside the block, so that no other process can take over the run."""
        return nullcontext() if self._hold is None else self._hold.guard()

    def _stop_monitor(self) -> None:
        """Sample no longer, and keep the samples so far."""
        if self._monitor is not None:
            self._monitor.stop()
            self._measured += self._monitor.take()
            self._monitor = None

    def _keep(self) -> None:
        """Write the measurements in memory to disk, with the samples of the machine's load."""
        if self._monitor is not None:
            self._measured += self._monitor.take()
        if not self._measured:
            return
        self._check()
        with interrupt.deferred():
            self._journal.add(self._measured)
            self._measured.clear()

    def _send(self) -> None:
        """Send what waits on disk, unless the store did not answer a moment ago.

        A run continues to measure while its store is unreachable.
        """
        if time.monotonic() < self._next:
            return
        try:
            with giving_up_after(SHORT_TIMEOUT):
                if self._connection.server:
                    self._connection.check_server(SHORT_TIMEOUT)
                self._deliver()
        except Exception as error:
            if not temporary(error):
                raise
            if self._next == -math.inf:
                logger.warning(
                    "The tracking store does not answer (%s); measurements wait in %s.",
                    in_short(error),
                    self._folder,
                )
            self._next = time.monotonic() + EVERY
        else:
            if self._next != -math.inf:
                logger.warning("The tracking store answers again and has received all waiting measurements.")
            self._next = -math.inf

    def _deliver(self) -> None:
        """Send everything that waits on disk, or raise.

        What the store refuses is set aside, so that later attempts are not refused too.
        """
        waiting = self._journal.read()
        if not waiting:
            return
        self._check()
        with interrupt.deferred():
            try:
                self._connection.log_batches(self.run_id, waiting.points, tags=waiting.tags)
                if splits := splits_of(self.spec, waiting.tags):
                    with self._optional("Its data sets are not shown"):
                        self._connection.log_data(self.run_id, splits)
            except StoreError as error:
                if error.code == REFUSED:
                    kept = self._journal.set_aside()
                    raise ValueError(
                        f"The tracking store refuses these measurements, now in {kept}: {error.original}"
                    ) from error
                raise
            self._journal.sent(waiting)
