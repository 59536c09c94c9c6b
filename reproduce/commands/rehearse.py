"""The speed of each distinct shape of run on this machine, from some real steps: `invoke rehearse`.

    shapes_of(trials(jobs(requests), site, gpu=True))   # each shape, with the runs that have it
    command(requests, site)             # a process that measures them and writes <runs>/rehearsed.json

Steps run in a process with the environment of a worker. Nothing is written to the tracking store. Generated
images and unfinished steps are in `<runs>/rehearsal`, which is removed at the end. What a killed rehearsal
left there is removed by the next one.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from reproduce import site as sites
from reproduce.commands import forecast, rehearsed
from reproduce.commands.rehearsed import Measured, Measurement, Shape
from reproduce.launch import variables
from reproduce.lazy import torch
from reproduce.messages import InvalidError, UserError, clock, counted, hours, rate, reason_of, size
from reproduce.plan import Job, Request, jobs
from reproduce.readiness import cores_of, launcher
from reproduce.runs import cores, environment, interrupt, output
from reproduce.runs.cores import Share
from reproduce.site import PROJECT, Site
from reproduce.spec import Pretrain, Spec

if TYPE_CHECKING:
    from reproduce.commands.photographs import Photographs

FOLDER, LOCK = "rehearsal", "rehearsal.lock"
"""Folder of generated images, and the lock of the process that rehearses, in the folder of runs."""
NO_MEMORY = re.compile("out of memory|ALLOC_FAILED")
"""Message of a library that lacks memory outside of torch's allocator."""
MOST_DEVICES = 64
"""Maximum number of devices among which a batch is split to see if a step then fits."""
WRONG_USE, INTERRUPTED = 2, 128
"""Exit codes: nothing can be measured; interrupted, to which the number of the signal is added."""


@dataclass(frozen=True)
class Trial:
    """A run and how it would be executed."""

    job: Job
    site: Site
    """Site as the run sees it (`rehearsed.seen_by`)."""
    share: Share
    """Cores that its decoders have."""
    given: Site
    """Site as its file describes it."""

    gpu: bool
    """True if it uses GPUs."""

    @property
    def why_not(self) -> str:
        """Reason why the run cannot be rehearsed here; "" if it can be."""
        spec = self.job.spec
        if isinstance(spec, Pretrain) and spec.precision == "bfloat16" and not self.gpu:
            return "their precision, bfloat16, needs a GPU: --set precision=float32"
        if isinstance(spec, Pretrain) and not spec.epochs:
            return "they have no steps"
        return rehearsed.why_not(spec)

    @property
    def devices(self) -> int:
        """Number of devices of the run."""
        return self.job.devices(self.site)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes that must be measured to forecast the run."""
        return () if self.why_not else rehearsed.shapes(self.job.spec, self.site, self.devices)


def trials(wanted: Sequence[Job], site: Site, *, gpu: bool) -> list[Trial]:
    """Return how the launcher would execute these runs on a machine such as this one.

    Args:
        gpu: True if runs use GPUs.
    """
    here, shares = cores.usable(), cores_of(wanted, site)
    found = []
    for job in wanted:
        share = shares[job.spec.id]
        share = share._replace(cores=share.cores or here)
        found.append(Trial(job, rehearsed.seen_by(job, share, site, gpu=gpu), share, site, gpu))
    return found


def shapes_of(wanted: Iterable[Trial]) -> dict[Shape, list[Trial]]:
    """Return each distinct shape once, with the runs that have it."""
    found: dict[Shape, list[Trial]] = {}
    for each in wanted:
        for shape in each.shapes:
            found.setdefault(shape, []).append(each)
    return found


def planned(requests: Iterable[Request], site: Site) -> list[str]:
    """Return one line for each shape that would be measured, and for each reason why runs are not."""
    requests = list(requests)
    wanted = trials(jobs(requests), site, gpu=launcher(site).device(site)[0] == "GPU")
    return [
        *(f"{shape}, {counted(len(runs), 'run')}" for shape, runs in shapes_of(wanted).items()),
        *_skipped(requests, wanted),
    ]


def command(requests: Iterable[Request], site: Site) -> tuple[list[str], dict[str, str]]:
    """Return the command line of the process that rehearses, and the variables of its environment.

    Raises:
        NotFoundError: the launcher does not exist.
    """
    gpus = launcher(site).device(site)[0] == "GPU"
    words = [sys.executable, "-m", "reproduce.commands.rehearse", *(each.dumps() for each in requests)]
    return words, variables(site, gpus=gpus) | {"PYTHONPATH": str(PROJECT)}


def rehearse(requests: Sequence[Request], site: Site) -> None:
    """Measure every shape of the requests, print what was found, and keep it in the file.

    Raises:
        InvalidError: the device does not exist, or another process rehearses.
        Interrupted: the process received a stop request. What was measured is kept.
    """
    from reproduce.commands.photographs import Photographs
    from reproduce.nn import distributed

    device = distributed.device(site.device)
    model = environment.record()["device"]
    wanted = trials(jobs(requests), site, gpu=device.type == "cuda")
    found = shapes_of(wanted)
    print(f"{counted(len(found), 'shape')} of {counted(len(wanted), 'run')} on {model}.", flush=True)
    for line in _skipped(requests, wanted):
        print(line, flush=True)
    with _workplace(site) as folder:
        photographs = Photographs(folder)
        measured = rehearsed.read(site)
        for number, (shape, runs) in enumerate(found.items(), 1):
            print(f"{number}/{len(found)}  {shape}, {counted(len(runs), 'run')}", flush=True)
            try:
                made = _measure(shape, runs[0], photographs, device)
            except (ValueError, FloatingPointError) as error:
                print(f"  not rehearsed: {reason_of(error)}", flush=True)
                continue
            if made is None:
                print(f"  {_without_room(runs[0], site, photographs, device, model, measured)}", flush=True)
                continue
            measured[shape, model] = made
            measured.save(site)
            print(f"  {_words(made)}{_duration(runs, measured, model)}", flush=True)
    for line in _tables(requests, site):
        print(line, flush=True)


@contextlib.contextmanager
def _workplace(site: Site) -> Iterator[Path]:
    """Yield an empty folder, which is removed after the block; one process has it at a time.

    Raises:
        InvalidError: another process has it.
    """
    site.runs.mkdir(parents=True, exist_ok=True)
    folder, lock = site.runs / FOLDER, filelock.FileLock(site.runs / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InvalidError(
            f"Another process rehearses in {site.runs}: wait for it, since two at once would slow each other."
        ) from None
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()  # the file stays: a process that has opened it would lock another one than the next


def _measure(shape: Shape, run: Trial, photographs: Photographs, device: Any) -> Measurement | None:
    """Return the measurement of a shape, by a run that has it; None if a step does not fit on the GPU.

    Raises:
        ValueError, FloatingPointError: the settings do not fit a share of the batch, or the loss diverges.
    """
    from reproduce.commands import trial

    if device.type == "cuda":  # what the shape before has left
        gc.collect()
        torch.cuda.empty_cache()
    spec = run.job.spec
    # "auto" stays, as it allows for a failed compilation. It compiles the trial if it compiles the run.
    site = replace(run.site, compile=run.given.compile if run.site.compile else False)
    os.environ[cores.PROCESSES] = str(run.share.processes)  # which share the memory of decoded images, too
    try:
        if isinstance(spec, Pretrain):
            return trial.pretraining(spec, site, run.devices, photographs, device)
        if shape.kind == "encoder":
            return trial.encoder(spec, site, photographs, device)
        return trial.classifier(spec, device)
    except RuntimeError as error:
        if not (isinstance(error, torch.cuda.OutOfMemoryError) or NO_MEMORY.search(str(error))):
            raise
        return None  # outside, where no traceback keeps the tensors alive


def remedies(spec: Spec, site: Site) -> Iterator[Site]:
    """Yield sites on which a run may fit on a GPU, without a change of a number.

    First the activations of one view at a time, if the method couples its views; then more and more devices,
    among which the batch is split.
    """
    if not isinstance(spec, Pretrain):
        return
    if spec.method.num_parts == 1 and not site.recompute:
        site = replace(site, recompute=True)
        yield site
    devices = 2 * site.devices
    while devices <= MOST_DEVICES and spec.batch_size % devices == 0 and spec.batch_size // devices > 1:
        yield replace(site, devices=devices)
        devices *= 2


def _without_room(
    run: Trial, site: Site, photographs: Photographs, device: Any, model: str, measured: Measured
) -> str:
    """Return which settings make a run fit that does not, after trying them; what fits is measured, too."""
    total = size(torch.cuda.get_device_properties(device).total_memory)
    for changed in remedies(run.job.spec, site):
        (other,) = trials([run.job], changed, gpu=device.type == "cuda")
        (shape,) = other.shapes
        try:
            made = _measure(shape, other, photographs, device)
        except (ValueError, FloatingPointError):
            continue
        if made is None:
            continue
        measured[shape, model] = made
        measured.save(site)
        names = [f"devices = {changed.devices}"] if changed.devices != site.devices else []
        names += ["recompute = true"] if changed.recompute != site.recompute else []
        return (
            f"does not fit in {total}. With `{'` and `'.join(names)}` in the site file it does, and no "
            f"number changes: {_words(made)}"
        )
    return f"does not fit in {total}, nor with more devices: --set batch_size=N changes it, and the numbers."


def _words(made: Measurement) -> str:
    """Return a measurement in words."""
    parts = [f"{rate(made.images / made.seconds)} images/s", f"{made.seconds:.3g} s a step"]
    parts += [] if made.memory is None else [f"{size(made.memory)} of memory"]
    parts += [] if made.busy is None else [f"GPU busy {100 * made.busy:.0f} %"]
    return f"{', '.join(parts)}; limit: {made.limit}"


def _duration(runs: Iterable[Trial], measured: Measured, model: str) -> str:
    """Return the wall time of the runs of a shape, in words; empty if it is unknown."""
    found = []
    for run in runs:
        given = run.job.spec, run.devices, model, run.site
        seconds = measured.seconds(*given, forecast.num_images)
        if seconds is not None:
            found.append((measured.start(*given) + seconds) / run.devices)
    if not found:
        return ""
    least, most = clock(min(found)), clock(max(found))
    return f"; {least if least == most else f'{least} to {most}'} a run"


def _skipped(requests: Iterable[Request], wanted: Iterable[Trial]) -> Iterator[str]:
    """Yield one line for each reason why runs are not rehearsed, and for each table without runs."""
    reasons = Counter(why for run in wanted if (why := run.why_not))
    for why, number in reasons.items():
        yield f"not rehearsed: {counted(number, 'run')}, since {why}"
    for request in requests:
        if not request.specs():
            yield f"{request} has no runs."


def _tables(requests: Iterable[Request], site: Site) -> Iterator[str]:
    """Yield what each table takes on as many such devices as the site uses, finished runs included."""
    at_once, hours_of = launcher(site).at_once(site), forecast.Hours(None, site)
    for request in requests:
        steps, kind = forecast.fresh(jobs([request]), hours_of, site), hours_of.device
        known = [step for step in steps if step.estimate]
        if not known:
            continue
        unknown = f", unknown for {len(steps) - len(known)}" if len(known) < len(steps) else ""
        assumed = sum(step.estimate.source == "FLOPs" for step in known if step.estimate)
        rough = f", {assumed} of them estimated roughly" if assumed else ""
        total = hours(math.fsum(step.seconds or 0.0 for step in known))
        places = counted(at_once, "GPU" if kind == "GPU" else "core")
        yield (
            f"{request}: {counted(len(steps), 'run')}{rough}{unknown}: {total} {kind}-hours, "
            f"{clock(forecast.makespan(known, at_once))} on {places}"
        )


def main() -> int:
    """Rehearse the requests of the command line and return the exit code."""
    interrupt.listen()
    output.prepare()
    try:
        rehearse([Request.loads(text) for text in sys.argv[1:]], sites.load())
    except interrupt.Interrupted as error:
        print("Interrupted: what was measured is kept.", flush=True)
        return INTERRUPTED + signal.Signals[str(error)]
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return WRONG_USE
    return output.code()


if __name__ == "__main__":
    sys.exit(main())
