"""One run from start to end, in a process of its own.

    python -m reproduce.worker REQUEST ID      one run, then exit (how a scheduler starts it)
    python -m reproduce.worker                 runs named on standard input, one `{"request": ..., "id": ...}` a line, until it ends

A run is named by a request (`plan.py`) and its id: the worker builds the request's runs again and finds the spec. If its code would make
another run, the id is not there and it says so. Events go to standard output, one JSON object a line; everything else to the run's log.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import filelock

from reproduce import site as sites
from reproduce.plan import Order, loads
from reproduce.progress import Silent, Watch
from reproduce.site import Site
from reproduce.spec import Pretrain, Spec, Weights

if TYPE_CHECKING:
    import torch

    from reproduce.nn.encoder import Encoder
    from reproduce.results import Finished
    from reproduce.tracking import Store

REPORT_EVERY = 0.5
"""Seconds between two progress events."""


class Interrupted(KeyboardInterrupt):
    """The run was told to stop (SIGINT, SIGTERM, or its parent is gone)."""


def find(request: Order, spec_id: str) -> Spec:
    """The spec of that id among the request's.

    Raises:
        LookupError: this code makes no such run.
    """
    for spec in request.specs():
        if spec.id == spec_id:
            return spec
    raise LookupError(
        f"{request} has no run {spec_id} with the code here: its settings differ from those of "
        "whoever asked. Check that both are at the same commit."
    )


def perform(spec: Spec, scale: str, site: Site, events: TextIO) -> None:
    """Does one run unless it is finished, and records it.

    Raises:
        LookupError: a run that it needs is not finished.
        Exception: whatever went wrong in training or evaluation, after the run was marked as failed.
    """
    from reproduce import checkpoint, tracking
    from reproduce.nn import distributed

    folder = site.runs / spec.id
    folder.mkdir(parents=True, exist_ok=True)
    device = distributed.device(site.device)
    main = distributed.rank() == 0
    with filelock.FileLock(folder / "lock") if main else _nothing():
        store = tracking.Store(site)
        if distributed.agreed(main and bool(store.finished([spec.id]))):
            return
        needed = store.finished([other.id for other in spec.needs()])
        for other in spec.needs():
            if other.id not in needed:
                raise LookupError(f"Run {spec.id} needs run {other.id}, which is not finished in {site.store}.")
        parent = needed[spec.needs()[0].id].run_id if spec.needs() else None
        with store.start(spec, scale=scale, parent_run_id=parent) if main else _nothing() as run:
            record, reporter = run if main else Silent(), _Reporter(spec.id, events if main else None)
            if isinstance(spec, Pretrain):
                from reproduce.nn.encoder import FILE
                from reproduce.train import pretrain

                metrics = pretrain(spec, site, folder, device, record, reporter)
                if main:
                    run.artifact(folder / FILE)
            else:
                from reproduce.evaluate import evaluate

                watch = Watch(record, reporter, folder)
                encoder = _encoder(spec.encoder, needed, store, site, device, watch)
                metrics = evaluate(spec, encoder, site, device, watch)
            if main:
                run.finish(metrics)
                checkpoint.discard(folder)


def _encoder(
    spec: Pretrain | Weights, needed: Mapping[str, Finished], store: Store, site: Site, device: torch.device, watch: Watch
) -> Encoder:
    """The encoder of a pretraining run, fetched from the tracking store if it was trained on another machine, or one from elsewhere."""
    from reproduce.nn import distributed, weights
    from reproduce.nn.encoder import FILE, load

    if isinstance(spec, Weights):
        return weights.load(spec, site, device, watch)
    folder = site.runs / spec.id
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.rank() == 0:
        with filelock.FileLock(folder / "fetch.lock"):
            if not (folder / FILE).exists():
                try:
                    fetched = store.download(needed[spec.id].run_id, FILE, folder / "fetched")
                except LookupError:
                    raise LookupError(
                        f"The encoder of run {spec.id} is neither here nor in the tracking store, as after an import without encoders: "
                        "import an archive that was exported with --encoders."
                    ) from None
                fetched.replace(folder / FILE)
    distributed.agreed(True)  # the others wait for the file
    return load(spec, folder, device)


@contextmanager
def _nothing() -> Iterator[Any]:
    yield None


class _Reporter:
    """Sends progress events, but not more often than anybody can read."""

    def __init__(self, spec_id: str, events: TextIO | None) -> None:
        self._id, self._events, self._last = spec_id, events, 0.0

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        if self._events and (now - self._last > REPORT_EVERY or progress.done == progress.total):
            self._last = now
            send(self._events, "progress", self._id, **progress._asdict())


def send(events: TextIO, event: str, spec_id: str, **fields: Any) -> None:
    """One event as a line of JSON.

    Raises:
        Interrupted: nobody reads it any more, so whoever started this process is gone.
    """
    try:
        events.write(json.dumps({"event": event, "id": spec_id, **fields}) + "\n")
        events.flush()
    except BrokenPipeError:
        raise Interrupted("its parent process is gone") from None


def serve(site: Site, events: TextIO) -> None:
    """Does the runs named on standard input, one after the other, and says how each ended.

    When standard input ends, whoever started this process is gone or wants it to stop: the run under way is interrupted.
    """
    asked: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while line := asked.get():
        order = json.loads(line)
        send(events, "started", order["id"])
        try:
            request = loads(order["request"])
            with _logged(site.runs / order["id"]):
                perform(find(request, order["id"]), request.scale, site, events)
        except Interrupted:
            send(events, "failed", order["id"], reason="interrupted")
            return
        except Exception as error:
            send(events, "failed", order["id"], reason=f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0])
        else:
            send(events, "finished", order["id"])


def _listen(asked: queue.Queue[str]) -> None:
    """Passes lines on; at the end of input, interrupts the run under way."""
    for line in sys.stdin:
        asked.put(line)
    asked.put("")
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """What is written to standard error meanwhile goes to the run's log, and so does the traceback of a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    console = os.dup(2)
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os.dup2(console, 2)
            os.close(console)


def _stop(signum: int, frame: object) -> NoReturn:
    raise Interrupted(signal.Signals(signum).name)


def main() -> None:
    """The command line of this module."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    site = sites.load()
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not look like an event
    if len(sys.argv) == 1:
        try:
            serve(site, events)
        except Interrupted:
            return
    else:
        from reproduce.nn import distributed

        request = loads(sys.argv[1])
        with distributed.processes(site.device):
            perform(find(request, sys.argv[2]), request.scale, site, events)


if __name__ == "__main__":
    main()
