"""The record of one run while it is written: what it measures, its files, and how it ends.

    with Store(site).start(spec, scale="smoke") as run:     # tracking, which finds or makes the record
        run.log(step, {"loss": 0.3})
        run.tag("data_digest_train", digest)
        run.finish({"top1": 0.81})

What a run measures goes through a file in its folder (`journal.py`), so that a store that does not answer
costs nothing; MLflow ignores what is sent twice. MLflow's own status says FINISHED after an exception: here
it is set for every way in which the block can end, and the tag `complete` is the last thing that is written.
A request to stop (`interrupt.py`) waits for what is being written.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from reproduce import identity
from reproduce.runs import environment, interrupt, journal
from reproduce.runs.journal import Journal, Point, points
from reproduce.runs.lease import Held, LostError, one_line
from reproduce.spec import Spec
from reproduce.tracking import tags
from reproduce.tracking.connection import Connection
from reproduce.tracking.retry import EVERY, SHORT_TIMEOUT, UPLOAD, giving_up_after, in_short
from reproduce.tracking.tags import ATTEMPTS, COMPLETE, DEVICE, FINAL, REASON, SETTINGS

FLUSH_EVERY = 10.0
"""Seconds for which measurements wait to be written together: one write takes 55 ms whatever is in it."""
FLUSH_AT = 500
"""Measurements that are written without waiting longer."""
REFUSED = "INVALID_PARAMETER_VALUE"
"""MLflow's word for what it never takes."""

logger = logging.getLogger(__name__)


class Run:
    """The record of one run while it is written; made by `Store.start`, used in a `with`."""

    def __init__(
        self, connection: Connection, spec: Spec, run_id: str, folder: Path, hold: Held | None
    ) -> None:
        self.spec = spec
        self.run_id = run_id
        self._connection = connection
        self._hold = hold
        self._folder = folder
        self._journal = Journal(self._folder)
        self._measured: list[Point] = []
        self._flushed = time.monotonic()
        self._next = -math.inf
        """When to try to send again, after a failure."""
        self._complete = False
        environment.load()  # the next reading of the processor's load is the mean since this one

    def describe(self, attempt: int) -> None:
        """Sends what an earlier attempt could not, then the settings, and the environment of this attempt,
        the first being 1."""
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
                self._connection.log_batches(
                    self.run_id, tags={DEVICE: str(found["device"]), ATTEMPTS: str(attempt)}
                )

        try:
            self._connection.retrying(describe)
        except BaseException as error:
            self._stop(error)
            raise

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Measurements at a step; written together with others every few seconds, by `flush` and at the
        end."""
        self._measured += points(metrics, step)
        if len(self._measured) >= FLUSH_AT or time.monotonic() - self._flushed > FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Puts what waits on disk, with the load of the machine now, and sends it; a store that does not
        answer gets it later.

        Call it before a checkpoint, so that no step is missing after a kill.

        Raises:
            LostError: the run is somebody else's now.
            OSError: there is no room, here or in the store.
        """
        self._keep()
        self._flushed = time.monotonic()
        self._send()

    def artifact(self, path: Path, name: str = "") -> None:
        """Adds a file to the run's artifacts, as `name` (`folder/file` at will; by default the file's
        own)."""
        target = PurePosixPath(name or path.name)
        parent = None if target.parent == PurePosixPath() else str(target.parent)
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / target.name  # MLflow keeps a file's name, whatever it is wanted to be
            link.symlink_to(path.resolve(strict=True))

            def upload() -> None:
                self._check()
                with giving_up_after(UPLOAD):
                    self._connection.client.log_artifact(self.run_id, str(link), parent)

            self._connection.retrying(upload)

    def tag(self, name: str, value: str) -> None:
        """Sets a tag of the run; a store that does not answer gets it later."""
        self._check()
        self._journal.add(tags={name: value})
        self._send()

    def text(self, content: str, name: str) -> None:
        """Adds a text to the run's artifacts."""

        def upload() -> None:
            self._check()
            with interrupt.deferred():
                self._connection.client.log_text(self.run_id, content, name)

        self._connection.retrying(upload)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Records the final values and that the run is finished; the completion tag comes last.

        Raises:
            LostError: the run is somebody else's now.
            UnreachableError: the store did not answer for as long as it is waited for; what was measured waits on
                disk.
            OSError: there is no room, here or in the store.
        """
        now = (
            journal.now()
        )  # once, so that an attempt that failed half-way is not recorded beside the one that did not

        def complete() -> None:
            with interrupt.deferred():
                self._keep()
                self._deliver()
                self._connection.log_batches(
                    self.run_id, points({FINAL + key: value for key, value in metrics.items()}, 0, now)
                )
                with self._guard():
                    self._connection.client.set_terminated(self.run_id)
                    self._connection.client.set_tag(self.run_id, COMPLETE, self.spec.id)
                self._complete = True
                self._journal.remove()
                journal.drop_result(self._folder)

        self._connection.retrying(complete)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._complete and not isinstance(
            error, LostError
        ):  # what is somebody else's now is not touched
            self._stop(error)

    def _stop(self, error: BaseException | None) -> None:
        """Records that the run ended without having finished; a store that does not answer is not waited for,
        as `mark_dead_runs` makes up for it."""
        if isinstance(error, MemoryError):
            traceback.clear_frames(
                error.__traceback__
            )  # what filled the memory is still held by those that have failed
        killed = isinstance(error, KeyboardInterrupt)
        reason = "ended without finish()" if error is None else one_line(error)
        try:
            with interrupt.deferred(), giving_up_after(SHORT_TIMEOUT):
                self._save_what_is_left()
                if self._connection.server:
                    self._connection.check_server(SHORT_TIMEOUT)
                with self._guard():
                    self._connection.client.set_tag(self.run_id, REASON, reason)
                    if error is not None and not killed:
                        self._connection.client.log_text(
                            self.run_id, "".join(traceback.format_exception(error)), "error.txt"
                        )
                    self._connection.client.set_terminated(
                        self.run_id, status="KILLED" if killed else "FAILED"
                    )
        except (Exception, LostError) as failure:
            if error is None:
                raise
            # The first error matters more than that its record failed; `status` and `mark_dead_runs` see that
            # the process is gone.
            logger.warning(
                "Run %s (%s) could not be marked as ended: %s", self.spec.id, reason, one_line(failure)
            )

    def _save_what_is_left(self) -> None:
        """The last measurements, on disk at least; whatever is wrong with them must not keep the run from
        being marked."""
        for save in (self._keep, self._deliver):
            try:
                save()
            except Exception as failure:
                logger.warning(
                    "Run %s: its last measurements are not in the store: %s", self.spec.id, one_line(failure)
                )

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
        load = points(
            {f"system/{key}": value for key, value in environment.load().items()}, self._measured[-1].step
        )
        with interrupt.deferred():
            self._journal.add([*self._measured, *load])
            self._measured.clear()

    def _send(self) -> None:
        """Sends what waits on disk, unless the store did not answer a moment ago: whoever measures goes on
        measuring."""
        if time.monotonic() < self._next:
            return
        try:
            with giving_up_after(SHORT_TIMEOUT):
                if self._connection.server:
                    self._connection.check_server(SHORT_TIMEOUT)
                with self._connection.disk_errors():
                    self._deliver()
        except Exception as error:
            if not self._connection.unreachable(error):
                raise
            if self._next == -math.inf:
                logger.warning(
                    "The tracking store does not answer (%s); what is measured waits in %s.",
                    in_short(error),
                    self._folder,
                )
            self._next = time.monotonic() + EVERY
        else:
            if self._next != -math.inf:
                logger.warning("The tracking store answers again; it has all that waited.")
            self._next = -math.inf

    def _deliver(self) -> None:
        """Sends what waits on disk, all of it or an exception. What the store refuses is put aside, so that
        later attempts are not."""
        waiting = self._journal.read()
        if not waiting:
            return
        self._check()
        with interrupt.deferred():
            try:
                self._connection.log_batches(self.run_id, waiting.points, tags=waiting.tags)
            except Exception as error:
                if getattr(error, "error_code", "") == REFUSED:
                    kept = self._journal.set_aside()
                    raise ValueError(
                        f"The tracking store refuses what was measured, now in {kept}: {one_line(error)}"
                    ) from error
                raise
            self._journal.sent(waiting)
