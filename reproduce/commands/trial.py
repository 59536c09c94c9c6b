"""Some real steps of one shape on this machine, timed: the work of `invoke rehearse`.

    photographs = Photographs(folder)
    pretraining(spec, site, 8, photographs, device)     # 1/8 of the batch, by the real training loop
    encoder(spec, site, photographs, device)            # passes of its network, by the real extraction
    classifier(spec, device)                            # steps of the linear evaluation

The images are generated and have the typical size of the data set's. They are decoded, cut into views and
moved by the code that every run uses. The first steps are left out, since they allocate memory, choose
algorithms and fill queues.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from reproduce.commands.photographs import Generated, Photographs
from reproduce.commands.rehearsed import Limit, Measurement, in_memory, now
from reproduce.data.dataset import Dataset
from reproduce.data.images import Images
from reproduce.nn import backbones, cost, features
from reproduce.nn.encoder import Encoder
from reproduce.nn.features import CHUNK, Split
from reproduce.protocols.linear import LinearEvaluation
from reproduce.runs import environment
from reproduce.runs.progress import Progress, Silent
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.train import pretrain

WARM_UP, STEPS, PROFILED = 8, 20, 3
"""Steps that are left out, that are timed, and that are profiled afterwards on a GPU."""
LONGEST = 60.0
"""Seconds after which no further step is timed, once there are LEAST."""
LEAST = 3
"""Minimum number of timed steps."""
FEW = 16
"""Images of an encoder's warm-up, and the minimum of images that are timed."""
NUM_IMAGES = 100_000
"""Images of a split whose number is unknown in advance."""
NUM_CLASSES = 100
"""Classes of a classifier, those of ImageNet-100: their number is unknown before the images are read."""
CACHED = 1e3
"""10^9 bytes of memory for decoded test images: any number, as they are few."""
WAITS = 1.1
"""Ratio of a step's time to its time with decoded images from which on it waits for the data."""
BUSY = 0.85
"""Share of the time in which a GPU computes, below which it waits for launches."""


def limit(seconds: float, ready: float, busy: float | None, *, gpu: bool) -> Limit:
    """Return what a step waits for.

    Args:
        seconds: time of the step.
        ready: its time if the images are decoded in advance.
        busy: share of the time in which the GPU computes; None if it is unknown.
    """
    if seconds > WAITS * ready:
        return "data"
    if not gpu:
        return "CPU"
    return "launch" if busy is not None and busy < BUSY else "GPU"


def _stand_in(real: Dataset, photographs: Photographs, *, least: int, ready: bool) -> Dataset:
    """Return a data set with the settings of the real one whose splits consist of generated images.

    Args:
        least: minimum number of images of a split.
    """
    files = photographs.files(*real.typical)

    def load(self: Dataset, split: str, site: Site) -> Images:
        return Generated(files, max(least, real.num_images(split) or NUM_IMAGES), ready=ready)

    def folders(self: Dataset, site: Site) -> Mapping[str, str]:
        return {}

    kind: Any = type("StandIn", (type(real),), {"load": load, "folders": folders})
    same: Dataset = kind(**{field.name: getattr(real, field.name) for field in fields(real)})
    return same


# The trials


def pretraining(
    spec: Pretrain, site: Site, devices: int, photographs: Photographs, device: torch.device
) -> Measurement:
    """Return the speed of a pretraining on one of `devices` devices, without what these exchange.

    Args:
        site: site as the run sees it (`rehearsed.seen_by`), but for `compile`, which may be "auto" if the
            run is compiled.

    Raises:
        ValueError: the settings do not fit the share of a batch, or the device.
        torch.cuda.OutOfMemoryError: the step does not fit on the GPU.
    """
    memory = in_memory(spec, site)
    share = replace(spec, batch_size=spec.batch_size // devices)
    timed = _steps(share, site, photographs, device, ready=memory)
    seconds = timed.seconds
    ready = seconds if memory else _steps(share, site, photographs, device, ready=True).seconds
    gpu = device.type == "cuda"
    return Measurement(
        seconds=seconds,
        images=share.batch_size,
        steps=timed.steps,
        limit=limit(seconds, ready, timed.busy, gpu=gpu),
        memory=timed.memory,
        busy=timed.busy,
        first=timed.first,
        commit=environment.code()[0],
        at=now(),
    )


class _Timed(NamedTuple):
    """Times of the steps of one loop."""

    seconds: float
    """Seconds of a step."""
    steps: int
    """Number of steps that were timed."""
    memory: int | None
    """Maximum bytes of tensors on the GPU; None on a CPU."""
    busy: float | None
    """Share of the time in which the GPU computes; None if it is unknown."""
    first: float
    """Seconds from the call of the loop to the end of its first step, but for one step."""


class _DoneError(Exception):
    """All steps are timed: it ends the training loop."""


def _steps(
    spec: Pretrain, site: Site, photographs: Photographs, device: torch.device, *, ready: bool
) -> _Timed:
    """Return the times of the first steps of the real loop, which is left before it saves anything.

    All of them are in the first epoch, whose end would write a line to the log.
    """
    least = (WARM_UP + STEPS + PROFILED + 1) * spec.batch_size
    generated = replace(spec, dataset=_stand_in(spec.dataset, photographs, least=least, ready=ready))
    clock, found = _clock(device), list[_Timed]()

    def report(progress: Progress) -> None:
        try:
            next(clock)
        except StopIteration as end:
            found.append(end.value)
            raise _DoneError from None

    next(clock)
    with photographs.scratch() as folder, contextlib.suppress(_DoneError):
        pretrain(generated, replace(site, probe_every=0), folder, device, Silent(), report)
    return found[0]


def _clock(device: torch.device) -> Generator[None, None, _Timed]:
    """Time the steps of a loop. The caller advances the generator before the first step and after each.

    It waits for the GPU only where a time begins or ends, because a loop launches steps ahead.
    """
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    yield  # the first step may compile, while batches are prepared ahead; the next ones use these up
    _wait(device)
    first = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(WARM_UP - 1):
        yield
        if time.perf_counter() - began > LONGEST / 2:
            break
    _wait(device)
    began, steps = time.perf_counter(), 0
    while steps < STEPS and (steps < LEAST or time.perf_counter() - began < LONGEST):
        yield
        steps += 1
    _wait(device)
    seconds = (time.perf_counter() - began) / steps
    first = max(0.0, first - seconds)
    if not gpu:
        return _Timed(seconds, steps, None, None, first)
    memory = torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            yield
        _wait(device)
    spans = [
        (each.time_range.start, each.time_range.end)
        for each in profiled.events() or ()
        if each.device_type.name == "CUDA"
    ]
    busy = covered(spans) / 1e6 / PROFILED / seconds  # the profiler's times are in microseconds
    return _Timed(seconds, steps, memory, min(busy, 1.0) if spans else None, first)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals: kernels of several streams overlap."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _wait(device: torch.device) -> None:
    """Wait until the GPU has executed everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encoder(spec: Evaluate, site: Site, photographs: Photographs, device: torch.device) -> Measurement:
    """Return the speed of an encoder on test images, from their files, as an evaluation extracts features."""
    dataset = spec.dataset
    assert isinstance(dataset, Dataset), "see rehearsed.why_not"
    files = photographs.files(*dataset.typical)
    network: Any = backbones.build(spec.encoder.backbone)
    network = network.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    tested = Encoder(spec.encoder.backbone, network)

    def seconds(images: Images) -> float:
        indices = torch.arange(len(images))
        split = Split("the rehearsal", images, indices, torch.zeros_like(indices), 1)
        began = time.perf_counter()
        features.extract(tested, dataset, split, replace(site, features_gb=0.0), device)
        return time.perf_counter() - began

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    warm_up = seconds(Generated(files, FEW))
    num = CHUNK if warm_up * CHUNK / FEW < LONGEST / 6 else FEW
    if num == CHUNK:
        seconds(Generated(files, num))
    total = affordable(seconds(Generated(files, num)) / num)
    images, chunk = Generated(files, total, cache_gb=CACHED), min(total, CHUNK)
    passes = total // chunk
    from_files = seconds(images) / passes
    from_memory = seconds(images) / passes
    gpu = device.type == "cuda"
    return Measurement(
        seconds=from_files,
        images=chunk,
        steps=passes,
        limit=limit(from_files, from_memory, None, gpu=gpu),
        memory=torch.cuda.max_memory_allocated(device) if gpu else None,
        commit=environment.code()[0],
        at=now(),
    )


def affordable(seconds: float) -> int:
    """Return how many images an encoder passes in a third of LONGEST: whole chunks, or fewer than one.

    They are passed twice, after the warm-up.

    Args:
        seconds: time of an image.
    """
    most = int(min(LONGEST / 3 / seconds, STEPS * CHUNK))
    return most // CHUNK * CHUNK if most >= CHUNK else max(FEW, most)


def classifier(spec: Evaluate, device: torch.device) -> Measurement:
    """Return the speed of the linear evaluation's classifier on features of random numbers."""
    protocol, network = spec.protocol, cost.network(spec.encoder.backbone)
    assert isinstance(protocol, LinearEvaluation), "see rehearsed.shapes"
    assert network is not None, "see rehearsed.why_not"
    random = torch.Generator().manual_seed(0)
    x = torch.randn(protocol.batch_size, network.num_features, generator=random).to(device)
    y = torch.randint(NUM_CLASSES, (protocol.batch_size,), generator=random).to(device)

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        replace(protocol, epochs=steps).fit(x, y, NUM_CLASSES, 0)
        _wait(device)
        return time.perf_counter() - began

    seconds(WARM_UP)
    gpu = device.type == "cuda"
    return Measurement(
        seconds=seconds(STEPS) / STEPS,
        images=protocol.batch_size,
        steps=STEPS,
        limit="launch" if gpu else "CPU",
        commit=environment.code()[0],
        at=now(),
    )
