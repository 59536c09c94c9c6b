"""Checkpoints of a training: when one is due, the copy of the state, and the thread that writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from reproduce.messages import InvalidError
from reproduce.nn import distributed
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.progress import Record, Watch
from reproduce.runs.writing import Copy, Writer

DUE, STOP = 1, 2
"""Reasons to save a checkpoint; the higher one counts."""


class Checkpoints:
    """Checkpoints of one training, on all of its processes; rank 0 writes them.

    A checkpoint is due at the end of a step, once `seconds` have passed since the last one began, and when
    the run receives a stop request. Training continues while a thread writes a copy of the state. If that
    takes longer than `seconds`, the next checkpoint waits for its turn.

        checkpoints = Checkpoints(folder, spec.id, seconds=60.0, record=record, hold=hold)
        with checkpoints.interruptible() as due:
            for step in range(...):
                ...
                if due():
                    checkpoints.save({"weights": weights}, epoch, step + 1, num_steps)
    """

    def __init__(
        self, folder: Path | None, spec_id: str, *, seconds: float, record: Record, hold: Callable[[], None]
    ) -> None:
        """Start the clock.

        Args:
            folder: folder of the checkpoints; None to keep none.
            spec_id: id of the run.
            seconds: minimum number of seconds between two checkpoints; 0 for a checkpoint after each step at
                which one may be due, for which training waits if it must.
            record: is flushed before each checkpoint.
            hold: raises if another process has taken over the run.
        """
        self._folder, self._spec_id, self._seconds = folder, spec_id, seconds
        self._record, self._hold = record, hold
        self._last = time.monotonic()
        """Time at which the last checkpoint began."""
        self._stop = ""
        """Reason of a stop request on which all processes have agreed; empty if there is none."""
        self._stop_reason: Callable[[], str] = str
        self._copy, self._writer = Copy(), Writer()

    @contextmanager
    def interruptible(self) -> Iterator[Callable[..., bool]]:
        """Defer stop requests until a step is done, for the duration of the block.

        It yields the method `due`. At its end, the write that is under way is finished.

        Raises:
            Interrupted: see `interrupt.deferred`.
            OSError: the last checkpoint cannot be written.
        """
        with interrupt.deferred() as self._stop_reason, self._writer:
            yield self.due

    def due(self, whole: bool = True) -> bool:
        """Return True if `save` must be called. All processes call this after each step, and agree.

        Args:
            whole: True if the step ends an epoch. With `seconds` = 0, a checkpoint is due only then.

        Raises:
            LostError: another process has taken over the run.
            OSError: the last checkpoint could not be written. Earlier checkpoints are intact.
        """
        self._writer.check()
        reason = self._stop_reason()
        vote = STOP if reason else DUE if self._may_begin(whole) else 0
        decision = distributed.highest(vote)
        self._stop = reason or (interrupt.ELSEWHERE if decision == STOP else "")
        return decision > 0

    def _may_begin(self, whole: bool) -> bool:
        """Return True if it is time for a checkpoint of this process."""
        if self._folder is None or not distributed.main_process():
            return False
        if not self._seconds:
            return whole
        return time.monotonic() - self._last >= self._seconds and not self._writer.busy

    def save(
        self, state: Mapping[str, Any], epoch: int, step: int, steps: int, *, last: bool = False
    ) -> None:
        """Begin to write a checkpoint; end the run, with a complete one, if it has received a stop request.

        Args:
            state: is copied before this returns.
            epoch: number of the current epoch, from 0.
            step: number of steps of the epoch that are done.
            steps: number of steps of an epoch.
            last: True to wait for the file, because no step follows.

        Raises:
            Interrupted: the run has received a stop request.
            LostError: another process has taken over the run.
            OSError: a file cannot be written. Earlier checkpoints are intact.
        """
        if self._folder is not None and distributed.main_process():
            self._writer.wait()
            self._last = time.monotonic()
            self._hold()
            self._record.flush()  # a run that resumes from here does not repeat earlier measurements
            write = partial(
                checkpoint.save,
                self._folder,
                self._spec_id,
                epoch=epoch + (step == steps),
                step=step % steps,
                steps=steps,
                hold=self._hold,
            )
            if last or self._stop:
                write(state=state)
            else:
                copied, complete = self._copy.take(state)
                self._writer.start(lambda: (complete(), write(state=copied)))
        if self._stop:
            # The other ranks wait for the file: torchrun ends all processes as soon as one has ended.
            distributed.agreed(True)
            interrupt.stop(self._stop)


class Keeper(Checkpoints):
    """Keeper of the progress of an evaluation that takes hours: its checkpoints, and the newest of before.

    keeper = Keeper(watch, {"data": digest}, seconds=site.checkpoint_seconds)
    if saved := keeper.saved: ...
    with keeper.interruptible() as due:
        ...                                 # see `Checkpoints`
    """

    def __init__(self, watch: Watch, about: Mapping[str, str], *, seconds: float) -> None:
        """Find the run's newest checkpoint in the folder of `watch`; without a folder, none is kept.

        Checkpoints of other runs are skipped.

        Args:
            about: digests of everything that the training depends on, by name. Only rank 0's count.
            seconds: see `Checkpoints`. An evaluation that is faster writes no checkpoint.

        Raises:
            ValueError: the checkpoint comes from a training on something else.
        """
        super().__init__(watch.folder, watch.spec_id, seconds=seconds, record=watch.record, hold=watch.hold)
        self._about = {**watch.about, **about}
        self.saved = checkpoint.latest(watch.folder, watch.spec_id) if watch.folder is not None else None
        """State of the newest checkpoint. None if there is none."""
        if self.saved is not None and distributed.main_process():
            before = {**watch.about, **self.saved.get("about", {})}  # older ones lack what `watch` knows
            wrong = [name for name, digest in self._about.items() if before.get(name) != digest]
            if wrong:
                raise InvalidError(
                    f"The checkpoint in {watch.folder} is from a training with another "
                    f"{' and another '.join(wrong)}: delete it to start from scratch."
                )

    def save(
        self, state: Mapping[str, Any], epoch: int, step: int, steps: int, *, last: bool = False
    ) -> None:
        """Save a checkpoint with the digests of what the training depends on; see `Checkpoints.save`."""
        super().save({**state, "about": self._about}, epoch, step, steps, last=last)
