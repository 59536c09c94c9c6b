"""The cores of this machine, and how many of them decode images for one run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROCESSES = "MSBREG_PROCESSES"
"""Environment variable with the number of training processes that share the cores, set by the launcher."""
CGROUPS = Path("/sys/fs/cgroup")
"""Folder in which Linux shows the limits of groups of processes."""


class Share(NamedTuple):
    """The cores of a machine, and the training processes that share them with one run."""

    cores: int | None
    """Number of cores; None if it is unknown until the run starts."""
    processes: int
    """Number of training processes on these cores, those of the run included."""
    per_device: int = 1
    """Number of runs that share a device with the run, itself included."""

    def decoders(self, workers: int | str, device: str) -> int | None:
        """Return the number of processes that decode for each training process; 0 for one thread in it.

        None if it is unknown until the run starts.

        Args:
            workers: `workers` of the site file.
            device: type of the run's device, `cpu` or `cuda`.
        """
        if workers != "auto":
            return int(workers)
        # A CPU trains as fast as it can: a process that decodes would take its core.
        if device == "cpu":
            return 0
        return None if self.cores is None else max(1, self.cores // self.processes - 1)


def usable(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of cores that this process may use.

    It respects the affinity, the limit of a container, and the cores of a Slurm job on this node.

    Args:
        cgroups, membership: folder of the limits, and the file with the groups of this process.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    limits = [int(job)] if job.isdecimal() else []
    return max(1, int(min([affinity, *limits, *_quotas(cgroups, membership)])))


def sharing() -> int:
    """Return the number of training processes that share the cores with this one, itself included.

    Without a launcher on this machine, they are those that torchrun started here.
    """
    for name in (PROCESSES, "LOCAL_WORLD_SIZE"):
        if (text := os.environ.get(name, "")).isdecimal():
            return max(1, int(text))
    return 1


def decoders(workers: int | str, device: str) -> int:
    """Return the number of processes that decode for this one; 0 for one thread in it.

    Args:
        workers: `workers` of the site file.
        device: type of the run's device, `cpu` or `cuda`.
    """
    found = Share(usable(), sharing()).decoders(workers, device)
    assert found is not None, "the number of cores is known here"
    return found


def few(number: int) -> str:
    """Return the warning of a run on a GPU with so few decoders."""
    who = "process" if number else "thread"
    return (
        f"One {who} decodes the images of this run, and the GPU may wait for it (cores: {usable()}, training "
        f"processes on them: {sharing()}). Give the run more cores, or set `workers` in the site file."
    )


def many(number: int) -> str:
    """Return the warning of a run with more decoders than cores."""
    return (
        f"{number} processes decode the images of this run, but more than one for each core ({usable()}) do "
        "not help: lower `workers` in the site file."
    )


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Yield the limits of this process's control groups, in cores, for both versions of cgroups."""
    for group in _groups(membership):
        for folder in (cgroups / group, *(cgroups / group).parents):
            if not folder.is_relative_to(cgroups):
                break
            try:
                quota, period = (folder / "cpu.max").read_text().split()
            except (OSError, ValueError):
                try:
                    quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                    period = (folder / "cpu.cfs_period_us").read_text().strip()
                except OSError:
                    continue
            if quota.isdecimal() and period.isdecimal() and int(period):  # max and -1 mean no limit
                yield int(quota) / int(period)


def _groups(membership: Path) -> Iterator[str]:
    """Yield the folders of this process's groups, relative to the folder of the limits."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield group.lstrip("/")
        elif "cpu" in controllers.split(","):
            yield f"{controllers}/{group.lstrip('/')}"
            yield f"cpu/{group.lstrip('/')}"
