"""Checkpoints of the evaluations that train for long: classifiers, fine-tunings, detectors."""

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
"""Seconds between two checkpoints of an evaluation, at least: a kill costs little more, and one of seconds
writes none."""


class Keeper:
    """Keeps what a training of hours has done: a checkpoint at the end of a step, every `EVERY` seconds and
    when the run is told to stop.

    keeper = Keeper(watch, {"data": digest})
    if saved := keeper.saved: ...
    with keeper.interruptible() as due:
        for step in range(...):
            ...
            if due():
                keeper.save({"weights": weights}, epoch, step + 1, num_steps)
    """

    def __init__(self, watch: Watch, about: Mapping[str, str]) -> None:
        """Looks for the newest checkpoint in the folder of `watch`, without which none is kept.

        Args:
            about: digests of what the training depends on, by name; those of the first process count.

        Raises:
            ValueError: the checkpoint is of a training on something else.
        """
        self._watch, self._about = watch, dict(about)
        self._last, self._stop = time.monotonic(), ""
        self.saved = checkpoint.latest(watch.folder) if watch.folder is not None else None
        """The state that was saved; None: there is none."""
        if self.saved is not None and distributed.main_process():
            wrong = [
                name
                for name, digest in self._about.items()
                if self.saved.get("about", {}).get(name) != digest
            ]
            if wrong:
                raise InvalidError(
                    f"The checkpoint in {watch.folder} is of a training with another {' and another '.join(wrong)}: "
                    "remove it to start anew."
                )

    @contextmanager
    def interruptible(self) -> Iterator[Callable[[], bool]]:
        """Inside, a request to stop waits until a step is done; what is yielded says after each whether to
        call `save`.

        Raises:
            Interrupted: as `interrupt.deferred`.
        """
        with interrupt.deferred() as asked:

            def due() -> bool:
                self._stop = asked()
                if distributed.anyone(bool(self._stop)):
                    self._stop = self._stop or interrupt.ELSEWHERE
                return bool(self._stop) or time.monotonic() - self._last > EVERY

            yield due

    def save(self, state: Mapping[str, Any], epoch: int, step: int, steps: int) -> None:
        """Writes a checkpoint after `step` of the `steps` steps of epoch number `epoch`, from 0, and ends the
        run if it is told to stop.

        Raises:
            Interrupted: the run is told to stop.
            OSError: the file cannot be written; the checkpoints before it are intact.
        """
        folder = self._watch.folder
        if folder is not None and distributed.main_process():
            self._watch.hold()
            self._watch.record.flush()  # a run that goes on from here does not measure again what came before
            done = (epoch, step) if step < steps else (epoch + 1, 0)
            checkpoint.save(folder, {**state, "about": self._about}, done[0], step=done[1], steps=steps)
        self._last = time.monotonic()
        if self._stop:
            distributed.agreed(
                True
            )  # the others wait for the file: torchrun ends all processes as soon as one has ended
            interrupt.stop(self._stop)
