"""Checkpoints of long evaluations: classifiers, fine-tunings, detectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reproduce.messages import InvalidError
from reproduce.nn import distributed
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.progress import Watch

EVERY = 60.0
"""Minimum seconds between two checkpoints of an evaluation. A kill costs little more than this, and an
evaluation of seconds writes no checkpoint."""


class Keeper:
    """Keeper of the progress of a training that takes hours.

    It saves a checkpoint at the end of a step, every `EVERY` seconds and when the run receives a stop
    request.

        keeper = Keeper(watch, {"data": digest})
        if saved := keeper.saved: ...
        with keeper.interruptible() as due:
            for step in range(...):
                ...
                if due():
                    keeper.save({"weights": weights}, epoch, step + 1, num_steps)
    """

    def __init__(self, watch: Watch, about: Mapping[str, str]) -> None:
        """Find the run's newest checkpoint in the folder of `watch`; without a folder, none is kept.

        Checkpoints of other runs are skipped.

        Args:
            about: digests of everything that the training depends on, by name. Only rank 0's count.

        Raises:
            ValueError: the checkpoint comes from a training on something else.
        """
        self._watch, self._about = watch, {**watch.about, **about}
        self._last, self._stop = time.monotonic(), ""
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

    @contextmanager
    def interruptible(self) -> Iterator[Callable[[], bool]]:
        """Defer stop requests until a step is done, for the duration of the block.

        It yields a function to call after each step. The function returns whether to call `save`.

        Raises:
            Interrupted: see `interrupt.deferred`.
        """
        with interrupt.deferred() as stop_reason:

            def due() -> bool:
                self._stop = stop_reason()
                if distributed.anyone(bool(self._stop)):
                    self._stop = self._stop or interrupt.ELSEWHERE
                return bool(self._stop) or time.monotonic() - self._last > EVERY

            yield due

    def save(self, state: Mapping[str, Any], epoch: int, step: int, steps: int) -> None:
        """Write a checkpoint, then end the run if it has received a stop request.

        Args:
            epoch: number of the current epoch, from 0.
            step: number of steps of the epoch that are done.
            steps: number of steps of an epoch.

        Raises:
            Interrupted: the run has received a stop request.
            OSError: the file cannot be written. Earlier checkpoints are intact.
        """
        folder = self._watch.folder
        if folder is not None and distributed.main_process():
            self._watch.hold()
            self._watch.record.flush()  # a run that resumes from here does not repeat earlier measurements
            done = (epoch, step) if step < steps else (epoch + 1, 0)
            kept = {**state, "about": self._about}
            checkpoint.save(folder, self._watch.spec_id, kept, done[0], step=done[1], steps=steps)
        self._last = time.monotonic()
        if self._stop:
            # The other ranks wait for the file: torchrun ends all processes as soon as one has ended.
            distributed.agreed(True)
            interrupt.stop(self._stop)
