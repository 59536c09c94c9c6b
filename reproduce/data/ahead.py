"""Items that a thread prepares ahead of the caller, on a GPU in a stream of its own.

    with ahead(prepared(), device, tensors=lambda batch: batch.views) as batches:
        for batch in batches:
            step(batch)

The items, their order and the place of an exception are those of the plain iterator. On a GPU, the stream of
the caller waits for the work that was queued for an item, and the thread waits until the step on the item
before the newest is done, so that memory holds few items however far the caller is ahead of the GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from reproduce.lazy import torch

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

T = TypeVar("T")

NAME = "prepare-ahead"
"""Name of the thread."""
DEPTH = {"cpu": 0, "cuda": 2}
"""Items prepared ahead, by type of device. On a CPU, the caller needs the cores."""


@contextmanager
def ahead(
    source: Generator[T],
    device: torch.device,
    *,
    tensors: Callable[[T], Iterable[Tensor]] = lambda item: (),
) -> Iterator[Iterator[T]]:
    """Provide the items of `source`, up to `DEPTH` of them prepared ahead inside the block.

    At the end of the block `source` is closed, after at most one item that is being prepared.

    Args:
        source: used by the thread alone.
        device: device on which items are prepared. With a depth of 0, each is prepared when the caller asks
            for it, without a thread.
        tensors: function that returns the tensors of an item that are on a GPU.
    """
    depth = DEPTH.get(device.type, 0)
    if not depth:
        try:
            yield source
        finally:
            source.close()
        return
    thread = _Thread(source, depth, device, tensors)
    try:
        yield thread
    finally:
        thread.close()


@cache
def _stream_of(gpu: int) -> Any:
    """Return the stream for all items on a GPU: memory that one stream has used does not serve another."""
    return torch.cuda.Stream(gpu, priority=-1)  # type: ignore[no-untyped-call]


class _Ended:
    """The end of the items."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Thread(Generic[T]):
    """An iterator whose items a thread prepares."""

    def __init__(
        self,
        source: Generator[T],
        depth: int,
        device: torch.device,
        tensors: Callable[[T], Iterable[Tensor]],
    ) -> None:
        self._source, self._tensors = source, tensors
        # Kernels of the next batch are short: on the GPU they go before those of the step.
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = _stream_of(torch.cuda.current_device() if device.index is None else device.index)
        self._ready: SimpleQueue[tuple[T, Any] | _Ended] = SimpleQueue()
        self._places: SimpleQueue[Any] = SimpleQueue()
        """One for each item that may be prepared: None, or an event of the GPU to wait for."""
        self._closing = False
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        for _ in range(depth):
            self._places.put(None)
        self._thread = threading.Thread(target=self._work, name=NAME, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        found = self._ready.get()
        if isinstance(found, _Ended):
            self._ready.put(found)
            raise found.error or StopIteration
        item, prepared = found
        if self._stream is None:
            self._places.put(None)
            return item
        current = torch.cuda.current_stream(self._stream.device)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(current)  # the steps on all items before this one
        self._places.put(done)
        current.wait_event(prepared)
        for tensor in self._tensors(item):
            # Its memory is used again only when the step is done, not when it is freed here.
            tensor.record_stream(current)
        return item

    def close(self) -> None:
        """End the thread, and `source` with it."""
        self._closing = True
        self._places.put(None)
        self._thread.join()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                self._prepare()
        except BaseException as raised:  # the caller raises it
            error = raised
        try:
            self._source.close()
        except BaseException as raised:
            error = error or raised
        self._ready.put(_Ended(error))

    def _prepare(self) -> None:
        """Prepare an item for each place until the items end or the block does."""
        while True:
            free = self._places.get()
            if self._closing:
                return
            if free is not None:
                free.synchronize()
            try:
                item = next(self._source)
            except StopIteration:
                return
            self._ready.put((item, self._stream.record_event() if self._stream is not None else None))
