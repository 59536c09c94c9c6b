"""The processes that decode the images of a run, their speed, and the limit of a pretraining: data or GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reproduce.commands import forecast
from reproduce.data import shared_memory
from reproduce.data.dataset import Dataset
from reproduce.messages import UserError, counted, rate, size
from reproduce.plan import Job
from reproduce.readiness import cores_of
from reproduce.runs.cores import Share
from reproduce.site import Site
from reproduce.spec import Pretrain

if TYPE_CHECKING:
    from reproduce.plan import Request
    from reproduce.spec import Spec
    from reproduce.tracking.store import Store

SAMPLED = 48
"""Images that are decoded to measure the speed."""


def chosen(shares: Iterable[Share], site: Site, device: str) -> str:
    """Return what decodes the images of each run, in words.

    Args:
        shares: cores of each run (`readiness.cores_of`).
        device: type of the device of runs, `cpu` or `cuda`.
    """
    found = {share: share.decoders(site.workers, device) for share in shares}
    numbers = [number for number in found.values() if number is not None]
    if not numbers:
        return "chosen on the node, from the cores of the job: set slurm.cpus_per_gpu"
    unit = "run" if site.devices == 1 else "device"
    who = f"{_range(numbers, 'decoder')} for each {unit}" if max(numbers) else f"one thread for each {unit}"
    given = "" if site.workers == "auto" else f"workers = {site.workers}; "
    known = [share.cores for share in found if share.cores]
    where = f"{_range(known, 'core')}, " if known else ""
    where += f"{_range([share.processes for share in found], unit)} at once"
    warning = ""
    if min(numbers) <= 1 and device != "cpu":
        warning = ". A GPU may wait for it: use more cores or fewer runs at once, or set `workers`"
    return f"{who} ({given}{where}){warning}"


def _range(numbers: Sequence[int], noun: str) -> str:
    """Return a number of things, or the smallest and the largest number."""
    least, most = min(numbers), max(numbers)
    return counted(most, noun) if least == most else f"{least} to {counted(most, noun)}"


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
) -> str:
    """Return how fast the images of a data set are decoded, and what limits its pretrainings, in words.

    Empty if no run of these pretrains on it.

    Args:
        device: see `chosen`.
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
    local, shares = site.launcher == "local", cores_of(list(jobs.values()), site)
    wanted = {
        spec_id: (share.decoders(site.workers, device) or 0) if local else 0
        for spec_id, share in shares.items()
    }
    free = {spec_id: shared_memory.free(share.processes) for spec_id, share in shares.items()}
    numbers = {
        spec_id: max(1, shared_memory.fitting(free[spec_id], found.image, number).workers)
        for spec_id, number in wanted.items()
    }
    if limited := [spec_id for spec_id, number in numbers.items() if number < wanted[spec_id]]:
        first = min(limited, key=numbers.__getitem__)
        room = f"{size(free[first] or 0)} of {shared_memory.FOLDER} for a run"
        each += f", and shared memory ({room}) limits the decoders of a run to {numbers[first]} of "
        each += f"{wanted[first]} (--shm-size of a container)"
    if found.in_memory <= site.cache_gb * 1e9:
        return f"{each}, once for each run: {size(found.in_memory, 2)} stay in memory (cache_gb)"
    if not local or device == "cpu":
        return each
    needed = _needed(list(jobs.values()), shares, forecast.Hours(store, site))
    if not needed:
        return each
    # The run that its decoders serve worst.
    worst = max(needed, key=lambda spec_id: needed[spec_id] / numbers[spec_id])
    total, speed_of_run = numbers[worst] * found.per_second, needed[worst]
    others = shares[worst].per_device - 1
    where = f" next to {counted(others, 'other run')} on its GPU" if others else ""
    limit = "the GPU is the limit" if total >= speed_of_run else "the data are the limit, set `workers`"
    return (
        f"{each}, {numbers[worst]} of a run {rate(total)}; its fastest pretraining takes about "
        f"{rate(speed_of_run)} images/s{where}: {limit}"
    )


def _needed(jobs: Sequence[Job], shares: Mapping[str, Share], hours_of: forecast.Hours) -> dict[str, float]:
    """Return the images per second that each device of these pretrainings takes by the forecast, by id.

    Unknown ones are left out. Runs that share a GPU divide its time.
    """
    speeds = {}
    hours_of.prepare(jobs)
    for job in jobs:
        spec = job.spec
        assert isinstance(spec, Pretrain), "only these read images for training"
        images = hours_of.counting(job)(spec, spec.dataset.pretrain_split)
        try:
            found = hours_of.of(job)
        except (UserError, OSError):  # the store is unreachable, which the line about it says
            return {}
        if images is not None and found is not None and found.seconds:
            speeds[spec.id] = spec.epochs * images / found.seconds / shares[spec.id].per_device
    return speeds
