"""The processes that decode the images of a run, their speed, and the limit of a pretraining: data or GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reproduce.commands import forecast
from reproduce.data import shared_memory
from reproduce.data.dataset import Dataset
from reproduce.messages import UserError, counted, rate, size
from reproduce.plan import Job
from reproduce.runs import cores
from reproduce.site import Site
from reproduce.spec import Pretrain

if TYPE_CHECKING:
    from reproduce.plan import Request
    from reproduce.spec import Spec
    from reproduce.tracking.store import Store

SAMPLED = 48
"""Images that are decoded to measure the speed."""


def chosen(site: Site, device: str, at_once: int) -> str:
    """Return what decodes the images of each run, in words.

    Args:
        device: type of the device of runs, `cpu` or `cuda`.
        at_once: runs on one device that are executed at the same time.
    """
    if site.launcher != "local":
        share = site.slurm.cpus_per_gpu
        if site.workers == "auto" and not share:
            return "chosen on the node, from the cores of the job: set slurm.cpus_per_gpu"
        number, where = cores.shared(site.workers, device, share, 1), f"{counted(share, 'core')} for each GPU"
    else:
        number = _number(site, device, at_once)
        where = f"{counted(cores.usable(), 'core')}, {counted(at_once, 'run')} at once"
    who = f"{number} process{'es' if number > 1 else ''} for each run" if number else "one thread in each run"
    given = "" if site.workers == "auto" else f"workers = {site.workers}; "
    warning = ""
    if number <= 1 and device != "cpu":
        warning = ". A GPU may wait for it: use more cores or fewer runs at once, or set `workers`"
    return f"{who} ({given}{where}){warning}"


class Speed(NamedTuple):
    """The speed of decoding the images of a split on one core."""

    per_second: float
    """Images per second."""
    in_memory: int
    """Estimated bytes of all decoded images."""
    image: int
    """Mean bytes of a decoded image."""


def speed(dataset: Dataset, split: str, site: Site) -> Speed | None:
    """Return the speed of decoding, or None if an image of the sample cannot be decoded."""
    from reproduce.data.images import Whole

    try:
        images = dataset.load(split, site)
        some = np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).astype(np.int64)
        for index in some:  # reads the files: a disk is not faster with more processes
            images.decode(np.array([index]), Whole())
        began = time.process_time()
        num_bytes = sum(images.decode(np.array([index]), Whole()).pixels.numel() for index in some)
        seconds = time.process_time() - began
    except (UserError, OSError):
        return None
    return Speed(len(some) / seconds, len(images) * num_bytes // len(some), num_bytes // len(some))


def limits(
    dataset: Dataset,
    specs: Mapping[Request, Iterable[Spec]],
    site: Site,
    store: Store,
    device: str,
    at_once: int,
) -> str:
    """Return how fast the images of a data set are decoded, and what limits its pretrainings, in words.

    Empty if no run of these pretrains on it.

    Args:
        device, at_once: see `chosen`.
    """
    jobs = {
        spec.id: Job(spec, request)
        for request, needed in specs.items()
        for spec in needed
        if isinstance(spec, Pretrain) and spec.dataset.name == dataset.name
    }
    found = speed(dataset, dataset.pretrain_split, site) if jobs else None
    if found is None:
        return ""
    each = f"a core decodes {rate(found.per_second)} images/s"
    wanted = _number(site, device, at_once) if site.launcher == "local" else 0
    free = shared_memory.free(max(at_once, site.devices))
    number = max(1, shared_memory.fitting(free, found.image, wanted).workers)
    if number < wanted:
        each += f", and shared memory ({size(free or 0)} of {shared_memory.FOLDER} for a run) limits the "
        each += f"decoders of a run to {number} of {wanted} (--shm-size of a container)"
    if found.in_memory <= site.cache_gb * 1e9:
        return f"{each}, once for each run: {size(found.in_memory, 2)} stay in memory (cache_gb)"
    if site.launcher != "local" or device == "cpu":
        return each
    total = number * found.per_second
    needed_speed = _fastest(jobs.values(), forecast.Hours(store, site))
    text = f"{each}, {number} of a run {rate(total)}"
    if needed_speed is None:
        return text
    limit = "the GPU is the limit" if total >= needed_speed else "the data are the limit, set `workers`"
    return f"{text}; its fastest pretraining takes about {rate(needed_speed)} images/s: {limit}"


def _number(site: Site, device: str, at_once: int) -> int:
    return cores.shared(site.workers, device, cores.usable(), max(at_once, site.devices))


def _fastest(jobs: Iterable[Job], hours_of: forecast.Hours) -> float | None:
    """Return the largest number of images per second of these pretrainings by the forecast, or None."""
    speeds = []
    for job in jobs:
        spec = job.spec
        assert isinstance(spec, Pretrain), "only these read images for training"
        images = hours_of.counting(job)(spec, spec.dataset.pretrain_split)
        try:
            found = hours_of.of(job)
        except (UserError, OSError):  # the store is unreachable, which the line about it says
            return None
        if images is not None and found is not None:
            speeds.append(spec.epochs * images / found.seconds)
    return max(speeds, default=None)
