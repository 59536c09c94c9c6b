"""Shares of GPUs: the number of runs at a time on each, and the free parts.

A run with a share of 1 / n of a GPU leaves the rest to others, which may have another n. On a GPU of which
half is free, one run of n = 2 or two of n = 4 may start. A run on several GPUs takes them whole, as does a
run that keeps a GPU busy by itself.

    runs_per_gpu(job, site, gpus=2, card=141_000_000_000, peak=Peak(2_700_000_000))    # 4
    of_jobs(jobs, site, gpus=2, card=141_000_000_000)                    # such numbers of all jobs, by id
    room = Room(2)
    room.take([0], Fraction(1, 4))
    room.having(Fraction(1, 2))                                          # [1, 0], the emptiest first
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from reproduce.data.dataset import Dataset
from reproduce.nn import cost
from reproduce.plan import Job
from reproduce.resources.memory import Peak, evaluated, peaks
from reproduce.site import Site
from reproduce.spec import Pretrain, Spec

MOST = 4
"""Maximum number of runs that share a GPU with `runs_per_gpu = "auto"`. At small scale one run keeps an H200
busy for 64 to 78 % of the time and takes 2 % of its memory."""
USABLE = Fraction(9, 10)
"""Part of a GPU's memory that the estimated peaks of its runs may fill."""
BUSY = 3e12
"""Operations of a step on one view above which a run keeps a GPU busy by itself, measured on one H200.

A ResNet-18 of 3x3 stem at 64 px with batch 512 has 2.3e12 and leaves the GPU waiting for a third of the time.
A ResNet-50 at 224 px with batch 128 has 4.2e12 and does not."""


def runs_per_gpu(job: Job, site: Site, *, gpus: int, card: int | None, peak: Peak | None) -> int:
    """Return how many runs such as this one share a GPU at a time.

    If `jobs` in the site file asks for more runs than there are GPUs, they share them at least so far.

    Args:
        gpus: number of GPUs.
        card: memory of each in bytes; None if it is unknown.
        peak: peak memory of the run; None if it is unknown.
    """
    if job.devices(site) > 1:
        return 1
    if isinstance(site.runs_per_gpu, int):
        return site.runs_per_gpu
    least, work = max(1, -(-site.jobs // gpus)), _operations(job.spec)
    if card is None or peak is None or work is None or work > BUSY:
        return least
    fitting = (num for num in range(MOST, 1, -1) if num * peak.on(card, num) <= USABLE * card)
    return max(least, next(fitting, 1))


def of_jobs(jobs: Sequence[Job], site: Site, *, gpus: int, card: int | None) -> dict[str, int]:
    """Return how many runs such as each of these share a GPU at a time, by id.

    Args:
        gpus: number of GPUs; 0 if runs use cores, which are not shared.
        card: memory of each in bytes; None if it is unknown.
    """
    found: dict[str, Peak] = {}
    if not gpus:
        return {job.spec.id: 1 for job in jobs}
    if card and site.runs_per_gpu == "auto":
        from reproduce.tracking.store import Store

        found = peaks(jobs, site, Store(site))
    return {
        job.spec.id: runs_per_gpu(job, site, gpus=gpus, card=card, peak=found.get(job.spec.id))
        for job in jobs
    }


def _operations(spec: Spec) -> float | None:
    """Return the operations of a step on one view, the largest, or None if they are unknown.

    An evaluation counts as if it trained the encoder, as some do.
    """
    if isinstance(spec, Pretrain):
        network, method = cost.network(spec.backbone), spec.method
        if network is None:
            return None
        return max(
            spec.batch_size
            * method.passes(view)
            * network.operations(spec.augmentation.size_of_view(view, spec.dataset.size))
            for view in range(method.num_views)
        )
    network = cost.network(spec.encoder.backbone)
    if network is None or not isinstance(spec.dataset, Dataset):
        return None
    return 3 * evaluated(spec) * network.operations(spec.dataset.size)


class Room:
    """The free parts of the devices of a machine, each between 0 and 1."""

    def __init__(self, num: int) -> None:
        self._free = [Fraction(1)] * num

    def having(self, share: Fraction) -> list[int]:
        """Return the numbers of the devices with this much room, the emptiest first."""
        found = [place for place, free in enumerate(self._free) if free >= share]
        return sorted(found, key=lambda place: -self._free[place])

    def free(self, place: int) -> Fraction:
        """Return the free part of a device."""
        return self._free[place]

    def take(self, places: Iterable[int], share: Fraction) -> None:
        """Give a run its share of each of these devices."""
        for place in places:
            assert self._free[place] >= share
            self._free[place] -= share

    def give_back(self, places: Iterable[int], share: Fraction) -> None:
        """Free the share of a run that has ended."""
        for place in places:
            self._free[place] += share
            assert self._free[place] <= 1
