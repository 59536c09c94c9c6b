"""One run from start to end, in a process of its own, or in several under torchrun.

    python -m reproduce.worker                      runs named on standard input, until it closes:
                                                    one `{"request": ..., "id": ...}` per line
    python -m reproduce.worker REQUEST ID           one run
    python -m reproduce.worker --leash REQUEST ID   one run, which stops when standard input closes
    python -m reproduce.worker --list FILE INDEX    the run on line INDEX (from 0) of FILE (schedulers)

A run is named by a request (`plan.py`) and its id. The worker builds the request's runs again and finds the
spec; if its code produces other runs, the id is missing and an error reports it. Events go to standard
output, one JSON object per line; everything else goes to the run's log. The exit code of a single run is 0 if
it is finished or another process executes it, 1 if it failed, and 143 if it was interrupted.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import filelock

from reproduce import site as sites
from reproduce.messages import InvalidError, NotFoundError, UserError, reason_of, visible
from reproduce.nn import distributed
from reproduce.nn.weights import Weights
from reproduce.plan import SCALES, Order, Request, loads, registered
from reproduce.runs import (
    checkpoint,
    encoder_file,
    environment,
    garbage,
    interrupt,
    journal,
    output,
    processes,
)
from reproduce.runs import lease as leases
from reproduce.runs.files import atomic, read_regular, write_atomic
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.journal import Result
from reproduce.runs.lease import BusyError, Held, LostError
from reproduce.runs.progress import Progress, Silent, Watch
from reproduce.site import Site
from reproduce.spec import Pretrain, Spec
from reproduce.tracking.retry import RETRY_SECONDS

if TYPE_CHECKING:
    import torch

    from reproduce.nn.encoder import Encoder
    from reproduce.report.observe import Finished
    from reproduce.tracking.about import Purpose
    from reproduce.tracking.recording import Run
    from reproduce.tracking.store import Store
    from reproduce.tracking.uses import Use

REPORT_EVERY = 0.5
"""Seconds between two progress events."""
FAILED, INTERRUPTED = 1, 128 + signal.SIGTERM
"""Exit codes of a single run."""
FAILURE = "failure.txt"
"""File in which a process other than the first records why it fails, before torchrun stops the others."""
LONGEST_FAILURE = 10_000
"""Maximum number of bytes in that file."""

logger = logging.getLogger(__name__)


def find(request: Order, spec_id: str) -> Spec:
    """Return the spec with this id among the request's specs.

    Raises:
        LookupError: this code produces no such run.
    """
    for spec in request.specs():
        if spec.id == spec_id:
            return spec
    raise NotFoundError(
        f"{request} has no run {spec_id} with the code on this machine: its settings differ from those of "
        "the code that made the request. Check that both are at the same commit."
    )


def purpose_of(request: Order, spec: Spec) -> Purpose:
    """Return what asks for a run, for its description in the UI."""
    from reproduce.tracking import tags, uses
    from reproduce.tracking.about import Purpose

    group = tags.group(spec)
    found = _uses(request.scale).get(group, []) if request.scale in SCALES else []
    if not isinstance(request, Request):
        return Purpose(uses=tuple(found), command=request.command())
    table = request.build()
    found = uses.merged(found, uses.of([table]).get(group, []))
    return Purpose(table=table.name, named=str(table), uses=tuple(found), command=request.command())


@cache
def _uses(scale: str) -> dict[str, list[Use]]:
    """Return the cells of every table at a scale, by the group of the runs that they use."""
    from reproduce.tracking import uses

    return uses.of(registered(scale))


def perform(
    spec: Spec,
    scale: str,
    site: Site,
    events: TextIO | None,
    job: str = "",
    purpose: Purpose | None = None,
) -> None:
    """Execute one run unless it is finished, and record it, as its owner.

    Args:
        job: see `attempt`.
        purpose: what asks for the run, for its description in the UI.

    Raises:
        BusyError: another live process executes the run.
        LookupError: a run that it needs is not finished.
        Interrupted: the run received a stop request; what can be kept is in its folder.
        LostError: another process has taken over the run.
        Exception: training or evaluation failed; the run is already marked as failed.
    """
    from reproduce.tracking.reuse import Reuse, choose
    from reproduce.tracking.store import Store

    folder = site.runs / spec.id
    device = distributed.device(site.device)
    distributed.make_current(device)
    main = distributed.rank() == 0
    with _owned(folder, spec.id, site, main, job) as held:
        store = Store(site, retry_seconds=RETRY_SECONDS)
        send(events, "doing", spec.id, what="reading the tracking store")
        found = choose(store, [spec], site) if main else Reuse()
        if distributed.agreed(spec.id in found.finished):
            if held:
                held.finished()
            return
        needed = found.finished
        for other in spec.needs():
            if not distributed.agreed(other.id in needed):
                why = found.changed.get(other.id, f"it is not finished in {site.public_store}")
                raise NotFoundError(f"Run {spec.id} needs run {other.id}, which it cannot use: {why}.")
        parent = needed[spec.needs()[0].id].run_id if spec.needs() and main else None
        started = partial(store.start, spec, scale=scale, parent_run_id=parent, hold=held, purpose=purpose)
        with started() if main else _nothing() as run:
            reporter = _Reporter(spec.id, events, held)
            what = "images and network" if isinstance(spec, Pretrain) else "images and encoder"
            send(events, "doing", spec.id, what=f"loading {what}")

            def encoder(of: Pretrain | Weights, watch: Watch) -> Encoder:
                return _encoder(of, needed, store, site, device, watch)

            try:
                metrics = _measured(spec, site, device, run, reporter, held, encoder, needed)
            except (Interrupted, RuntimeError) as error:  # RuntimeError: another process is gone
                if main and (reason := _failed_elsewhere(folder, spec.id)):
                    raise RuntimeError(reason) from error
                raise
            if main:
                run.finish(metrics)
                checkpoint.discard(folder, spec.id)
        if held:
            held.finished()


def _measured(
    spec: Spec,
    site: Site,
    device: torch.device,
    run: Run | None,
    reporter: Callable[[Progress], None],
    held: Held | None,
    encoder: Callable[[Pretrain | Weights, Watch], Encoder],
    needed: Mapping[str, Finished],
) -> dict[str, float]:
    """Train or evaluate, and return the final values.

    They are on disk before they are recorded, so no work is lost if the record cannot be written.

    Args:
        run: record of the measurements; None in all processes but the first.
        encoder: function that returns the encoder of an evaluation.
        needed: the finished runs that the spec needs.
    """
    from reproduce.nn.encoder import FILE
    from reproduce.tracking.tags import TRAINED

    folder, record, hold = site.runs / spec.id, run or Silent(), held.check if held else lambda: None
    kept = _kept(spec, site, needed, hold) if distributed.main_process() else None
    garbage.resume()
    commit = environment.code()[0]
    if kept and kept.commit != commit:
        record.tag("resumed_from_commit", kept.commit)
    if distributed.agreed(kept is not None):
        metrics = kept.metrics if kept else {}
    elif isinstance(spec, Pretrain):
        from reproduce.train import pretrain

        metrics = pretrain(spec, site, folder, device, record, reporter, hold=hold)
    else:
        from reproduce.evaluate import evaluate

        watch = Watch(record, reporter, folder, hold=hold, spec_id=spec.id)
        metrics = evaluate(spec, encoder(spec.encoder, watch), site, device, watch)
    if run and held:
        held.check()
        trained = {TRAINED: encoder_file.digest_of(folder / FILE)} if isinstance(spec, Pretrain) else {}
        journal.keep_result(folder, spec.id, kept or Result(metrics, commit, run.recorded | trained))
        if isinstance(spec, Pretrain):
            run.artifact(folder / FILE)
            run.facts(trained)
            run.model(FILE, trained[TRAINED])
    return metrics


def _kept(spec: Spec, site: Site, needed: Mapping[str, Finished], hold: Callable[[], None]) -> Result | None:
    """Return the result of an earlier attempt with the data and the encoder of today, or None.

    Args:
        needed: the finished runs that the spec needs.
        hold: raises if this process has lost the run.
    """
    from reproduce.nn.encoder import FILE
    from reproduce.tracking.reuse import attempted
    from reproduce.tracking.tags import TRAINED

    folder = site.runs / spec.id
    kept = journal.kept_result(folder, spec.id)
    if kept is None:
        return None
    if isinstance(spec, Pretrain) and not _has_encoder(folder, spec.id):
        hold()
        journal.drop_result(folder)  # the next encoder may have other values
        return None
    # The data may have changed since the earlier attempt, and another run may have replaced the encoder.
    if attempted(spec, kept.facts, needed, site):
        return None
    return kept if kept.facts.get(TRAINED, "") in ("", encoder_file.digest_of(folder / FILE)) else None


def _has_encoder(folder: Path, spec_id: str) -> bool:
    """Return True if a run's folder contains its encoder, intact; log a warning if it contains another."""
    from reproduce.nn.encoder import FILE

    try:
        encoder_file.load(folder / FILE, spec_id=spec_id)
    except LookupError:
        return False
    except ValueError as error:
        logger.warning("The result in %s is not used: %s", folder, error)
        return False
    return True


def _is_of_another(folder: Path, wanted: Finished, store: Store) -> bool:
    """Return True if the encoder in a run's folder is that of another run with the same settings.

    The settings were executed more than once if their data changed in between.
    """
    from reproduce.nn.encoder import FILE
    from reproduce.tracking.tags import TRAINED

    found = encoder_file.digest_of(folder / FILE)
    if TRAINED in wanted.facts:
        return found not in ("", wanted.facts[TRAINED])
    others = store.every_finished([wanted.spec_id])[wanted.spec_id]
    return any(found and each.facts.get(TRAINED) == found for each in others)


def _write_failure(folder: Path, spec_id: str, reason: str) -> None:
    """Write why a process other than the first fails, for the first one."""
    write_atomic(folder / FAILURE, json.dumps({"spec_id": spec_id, "reason": reason}))


def _failed_elsewhere(folder: Path, spec_id: str) -> str:
    """Return the reason why another process of the run failed, or "" if none did.

    A file that is broken or belongs to another run is ignored.
    """
    try:
        content = json.loads(read_regular(folder / FAILURE, LONGEST_FAILURE)[0])
        named, reason = content["spec_id"], content["reason"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
    if named != spec_id or not isinstance(reason, str):
        return ""
    return f"another process of the run failed, {visible(reason, keep='')}"


def _encoder(
    spec: Pretrain | Weights,
    needed: Mapping[str, Finished],
    store: Store,
    site: Site,
    device: torch.device,
    watch: Watch,
) -> Encoder:
    """Return the encoder of a pretraining run, or one from released weights.

    If it was trained on another machine, it is fetched from the tracking store.
    """
    from reproduce.nn import weight_files
    from reproduce.nn.encoder import FILE
    from reproduce.train import load_encoder

    if isinstance(spec, Weights):
        return weight_files.load(spec, site, device, watch)
    folder = site.runs / spec.id
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.rank() == 0:
        with filelock.FileLock(folder / "fetch.lock"):
            if not (folder / FILE).exists() or _is_of_another(folder, needed[spec.id], store):
                try:
                    fetched = store.download(needed[spec.id].run_id, FILE, folder / "fetched")
                except LookupError:
                    raise NotFoundError(
                        f"The encoder of run {spec.id} is neither on this machine nor in the tracking store. "
                        f"`invoke redo {spec.id}` has it trained again by the next command. If the run was "
                        "imported, import an archive that was exported with --encoders instead."
                    ) from None
                try:
                    encoder_file.load(fetched, spec_id=spec.id)
                except ValueError as error:
                    raise InvalidError(
                        f"The tracking store has a wrong file for {spec.id}: {error}"
                    ) from None
                with atomic(folder / FILE, durable=True) as draft:
                    fetched.replace(draft)
    distributed.agreed(True)  # the other processes wait for the file
    return load_encoder(spec, folder, device)


@contextmanager
def _owned(folder: Path, spec_id: str, site: Site, main: bool, job: str) -> Iterator[Held | None]:
    """Own the run inside the block; the first of its processes holds the lease."""
    held, busy = None, None
    if main:
        try:
            lost = partial(interrupt.ask, "another process has taken it over")
            held = leases.take(folder, spec_id, heartbeat=site.heartbeat, job=job, lost=lost)
            (folder / FAILURE).unlink(missing_ok=True)
        except BusyError as error:
            busy = error
    if distributed.agreed(busy is not None):
        raise busy or SystemExit(0)  # the run's other processes end silently
    if held is None:
        yield None
        return
    with held:
        try:
            yield held
        except Interrupted:
            held.check()  # LostError is more specific
            raise


@contextmanager
def _nothing() -> Iterator[Any]:
    yield None


class _Reporter:
    """Sends progress events, at most one per REPORT_EVERY seconds, and updates the lease."""

    def __init__(self, spec_id: str, events: TextIO | None, held: Held | None) -> None:
        self._id, self._events, self._held, self._last = spec_id, events, held, 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._held:
            self._held.report(progress)
        if self._events and (now - self._last > REPORT_EVERY or progress.done == progress.total):
            self._last = now
            send(self._events, "progress", self._id, **progress._asdict())


def send(events: TextIO | None, event: str, spec_id: str, **fields: Any) -> None:
    """Write an event as one JSON line.

    A broken pipe means that the parent process is gone: request a stop.
    """
    if events is None:
        return
    try:
        events.write(json.dumps({"event": event, "id": spec_id, **fields}) + "\n")
        events.flush()
    except BrokenPipeError:
        interrupt.ask("the command that started it is gone")


def serve(site: Site, events: TextIO) -> None:
    """Execute the runs named on standard input, one after the other, and report how each ended.

    When standard input closes, the parent process is gone or requests a stop: the current run is interrupted.
    """
    lines: queue.Queue[str] = queue.Queue()
    working, ended = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(_input(), lines, working, ended), daemon=True).start()
    while line := lines.get():
        order = json.loads(line)
        working.set()
        if ended.is_set():  # before `working` was set, so nothing would interrupt the run
            return
        code = attempt(order["request"], order["id"], site, events)
        working.clear()
        _free_gpu()
        if code == INTERRUPTED:
            return


def _free_gpu() -> None:
    """Return memory that the last run no longer uses to the GPU, which other processes may share."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()  # networks and optimisers refer to themselves
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def attempt(request: str, spec_id: str, site: Site, events: TextIO | None, job: str = "") -> int:
    """Execute one run, and report how it ended as an event and as an exit code.

    Args:
        events: stream for events; None in all processes of the run but the first.
        job: scheduler's job that was submitted for this run; empty if there is none.
    """
    folder = site.runs / spec_id
    send(events, "started", spec_id)
    try:
        order = loads(request)
        with _logged(folder, site):
            spec = find(order, spec_id)
            perform(spec, order.scale, site, events, job, purpose_of(order, spec))
    except (BusyError, LostError):
        send(events, "busy", spec_id)
        return 0
    except Interrupted as error:
        # If another process failed, the signal followed that failure, which is then the reason.
        reason = _failed_elsewhere(folder, spec_id) if events else ""
        send(events, "failed", spec_id, reason=reason or f"interrupted: {error}")
        return FAILED if reason else INTERRUPTED
    except Exception as error:
        reason = site.without_secrets(reason_of(error))
        if events is None:
            _write_failure(folder, spec_id, reason)
        send(events, "failed", spec_id, reason=reason)
        return FAILED
    send(events, "finished", spec_id)
    return 0


def _input() -> TextIO:
    """Return standard input for a thread to read, and replace `sys.stdin`.

    A process that is forked meanwhile, for example to decode images, closes `sys.stdin`. If that were this
    stream, it would wait for ever for a thread that it does not have.
    """
    given, sys.stdin = sys.stdin, Path(os.devnull).open()  # noqa: SIM115 (open until the process ends)
    return given


def _listen(
    orders: TextIO, lines: queue.Queue[str], working: threading.Event, ended: threading.Event
) -> None:
    """Pass lines on; at the end of input, interrupt the current run."""
    for line in orders:
        if line.endswith("\n"):  # a parent that was killed may leave an incomplete line
            lines.put(line)
    ended.set()
    lines.put("")
    if working.is_set():
        interrupt.ask("the command that started it has stopped")


def _leash(leash: TextIO) -> None:
    """Interrupt the run at the end of input."""
    leash.read()
    interrupt.ask("the command that started it has stopped")


@contextmanager
def _logged(folder: Path, site: Site) -> Iterator[None]:
    """Send standard error to the run's log inside the block, and the traceback of a failure too."""
    folder.mkdir(parents=True, exist_ok=True)
    console = os.dup(2)
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except (BusyError, SystemExit):
            raise  # the log belongs to the run's owner
        except BaseException:
            sys.stderr.write(site.without_secrets(traceback.format_exc()))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(console, 2)
            os.close(console)


def _once(arguments: Sequence[str], site: Site, events: TextIO) -> int:
    """Execute the run that the command line names, and return the exit code."""
    # Only --list names the job. Inside an allocation, the launcher `local` runs in a job that was not
    # submitted for this run and does not resume it.
    job = ""
    if arguments[0] == "--leash":
        arguments = arguments[1:]
        threading.Thread(target=_leash, args=(_input(),), daemon=True).start()
    if arguments[0] == "--list":
        path, index = Path(arguments[1]), int(arguments[2])
        arguments, job = _line(path, listed(path), index), processes.job_of_environment()
    request, spec_id = arguments
    with distributed.processes(site.device):
        return attempt(request, spec_id, site, events if distributed.main_process() else None, job)


def digest_of_list(text: str) -> str:
    """Return the name of the folder of a scheduler's list of runs, which is a digest of the list."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def listed(path: Path) -> list[tuple[str, str]]:
    """Return the request and the id of each run of a scheduler's list.

    Raises:
        LookupError: the list does not exist.
        ValueError: the list is not the one that was submitted.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"The list of runs {path} does not exist: submit the runs again.") from None
    except ValueError:
        text = ""
    if digest_of_list(text) != path.parent.name:
        raise InvalidError(
            f"The list of runs {path} has changed since it was submitted: submit the runs again."
        )
    orders = [json.loads(line) for line in text.splitlines()]
    return [(order["request"], order["id"]) for order in orders]


def _line(path: Path, orders: Sequence[tuple[str, str]], index: int) -> tuple[str, str]:
    """Return line `index` of a scheduler's list.

    Raises:
        LookupError: the list has no such line.
    """
    if not 0 <= index < len(orders):
        raise NotFoundError(
            f"The list of runs {path} has {len(orders)} lines, but line {index} is requested."
        )
    return orders[index]


def main() -> int:
    """Run the command line of this module and return the exit code."""
    garbage.spare()
    interrupt.listen()
    output.prepare()
    site = sites.load()
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not look like an event
    try:
        if len(sys.argv) > 1:
            return _once(sys.argv[1:], site, events)
        serve(site, events)
    except UserError as error:
        print(error, file=sys.stderr)
        return FAILED
    except Interrupted:
        return INTERRUPTED if len(sys.argv) > 1 else 0
    return 0


if __name__ == "__main__":
    distributed.leave(main())
