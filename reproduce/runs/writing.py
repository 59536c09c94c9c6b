"""A thread that writes checkpoints while training continues, and the copy of the state that it writes.

    copy, writer = Copy(), Writer()
    with writer:                            # at the end of the block, a write under way is finished
        for ...:
            train_a_step()
            writer.check()                  # raises the error of a write that failed
            if due and not writer.busy:
                state, complete = copy.take(network.state_dict())
                writer.start(lambda: (complete(), save(state)))

At most one write is under way, so the memory of one copy suffices for all.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from reproduce.lazy import torch
from reproduce.messages import reason_of

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class Copy:
    """A copy of a training's state on the CPU, whose memory serves the next copy, too."""

    def __init__(self) -> None:
        self._memory: dict[tuple[object, ...], Tensor] = {}
        """Memory of each tensor, by its place in the state."""

    def take(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
        """Return a copy of `state`, and a function that waits until the copy is complete.

        Steps that follow do not change it. Tensors of a GPU are copied into pinned memory, in the stream of
        the step: the next step starts after the copy, and this process waits for neither.

        Args:
            state: dicts, lists, tuples, tensors, numbers, strings and None. The previous copy is overwritten.
        """
        devices: set[torch.device] = set()
        copied = self._taken(state, (), devices)
        events = []
        for device in devices:
            # A thread that waits for a blocking event leaves its core to others.
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            events.append(event)

        def wait() -> None:
            for event in events:
                event.synchronize()

        return copied, wait

    def _taken(self, value: Any, place: tuple[object, ...], devices: set[torch.device]) -> Any:
        """Return a copy of a part of the state, and add the GPUs that still copy to `devices`."""
        if isinstance(value, Mapping):
            copied: Any = copy.copy(value)  # with the attributes of a state dict
            for key, item in value.items():
                copied[key] = self._taken(item, (*place, key), devices)
            return copied
        if type(value) in (list, tuple):
            return type(value)(
                self._taken(item, (*place, index), devices) for index, item in enumerate(value)
            )
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_cuda:
            devices.add(value.device)
        return self._memory_for(value, place).copy_(value.detach(), non_blocking=True)

    def _memory_for(self, value: Tensor, place: tuple[object, ...]) -> Tensor:
        """Return memory for a copy of a tensor, with its shape, type and strides."""
        known = self._memory.get(place)
        if known is None or (known.shape, known.dtype, known.stride()) != (
            value.shape,
            value.dtype,
            value.stride(),
        ):
            known = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._memory[place] = known
        return known


class Writer:
    """A thread that does one piece of work at a time, whose errors are raised in the caller's thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """True while a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], object]) -> None:
        """Do `work` in the thread, after the write that is under way.

        Raises:
            BaseException: the previous write failed with this error; `work` is not begun.
        """
        self.wait()
        # Not a daemon: a second stop request ends the training at once, but not in the middle of a file.
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of the last write if it failed, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the write that is under way, and raise its error if it fails."""
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # also a lost lease, which is not an Exception
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()
        if error is None:
            self.check()
        elif self._error is not None:  # the error of the training matters more
            logger.warning("A checkpoint is missing: %s", reason_of(self._error))
            self._error = None
