"""Checks whether runs can start on this machine, and what they lack."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.messages import NotFoundError, UserError, unknown
from reproduce.nn import distributed
from reproduce.plan import Job
from reproduce.protocols.protocol import Protocol
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec


class RefusedError(UserError):
    """The request cannot be started on this machine; the message names what would work."""


def blocked(todo: Sequence[Job], site: Site, *, fetch: bool = True) -> dict[str, Blocked]:
    """Return the runs of `todo` that cannot start, each with the reason.

    A run is blocked if it lacks something, if it needs a blocked run, or if only blocked runs need it.

    Args:
        todo: the runs, upstream first.
        fetch: see `missing`.
    """
    wanted = {
        job.spec.id: (job.spec.dataset, job.spec.protocol if isinstance(job.spec, Evaluate) else None)
        for job in todo
    }
    problems = {
        each: next(missing(*each, site, fetch=fetch), None) for each in dict.fromkeys(wanted.values())
    }
    found = {spec_id: Blocked(problem) for spec_id, each in wanted.items() if (problem := problems[each])}
    for problem_of in (_uneven, _no_gpu):
        found = {job.spec.id: Blocked(problem) for job in todo if (problem := problem_of(job, site))} | found
    for job in todo:
        for needed in job.spec.needs():
            if needed.id in found:
                found.setdefault(
                    job.spec.id, Blocked(found[needed.id].problem, f"run {needed.id}, which it needs,")
                )
    vain = in_vain([job.spec for job in todo], found)
    return found | {
        spec_id: Blocked(found[first].problem, f"every run that needs it is blocked: run {first}")
        for spec_id, first in vain.items()
    }


def _uneven(job: Job, site: Site) -> Missing | None:
    """Return the problem of a batch that the site's devices cannot share equally, or None."""
    devices, batch = job.devices(site), job.shared_batch
    if batch % devices == 0:
        return None
    other_batch = "" if isinstance(job.spec, Pretrain) else ", or --set protocol.batch_size"
    return Missing(
        f"a batch that {devices} devices can share",
        f"A batch of {batch} images does not divide into {devices} equal shares: set another `devices` "
        f"in the site file{other_batch}.",
    )


def _no_gpu(job: Job, site: Site) -> Missing | None:
    """Return the problem of a site whose GPU does not exist, or None."""
    if not site.device.startswith("cuda") or launcher(site).device(site)[0] == "GPU":
        return None
    try:  # torch, which takes seconds to import, may find a GPU that nvidia-smi does not list
        distributed.device(site.device)
    except UserError as error:
        return Missing("GPU", str(error))
    return None


def in_vain(specs: Sequence[Spec], blocked: Container[str]) -> dict[str, str]:
    """Return the pretrainings that only blocked evaluations wait for, each with the first of these.

    Hours of such training would fill no cell.

    Args:
        blocked: ids of runs that cannot start.
    """
    waiting: dict[str, list[str]] = {spec.id: [] for spec in specs}
    for spec in specs:
        for needed in spec.needs():
            waiting.get(needed.id, []).append(spec.id)
    return {
        spec_id: ids[0]
        for spec_id, ids in waiting.items()
        if ids and spec_id not in blocked and all(each in blocked for each in ids)
    }


class Missing(NamedTuple):
    """Something that a run lacks on this machine."""

    name: str
    """Name of a data set, or of something that a protocol requires."""
    why: str
    """Description of the problem, and of what would solve it."""


class Blocked(NamedTuple):
    """The reason why a run cannot start."""

    problem: Missing
    through: str = ""
    """Another run that has the problem, as the subject of a sentence; empty if this run has it."""

    def __str__(self) -> str:
        return f"{self.through} lacks {self.problem.name}".strip()


def missing(
    dataset: Dataset | DetectionDataset, protocol: Protocol | None, site: Site, *, fetch: bool = True
) -> Iterator[Missing]:
    """Yield what a run on `dataset` by `protocol` lacks on this machine, checked one by one.

    Args:
        fetch: True to fetch a missing list now; False to assume that it can be fetched.
    """
    try:
        dataset.check_root(site)
    except (UserError, OSError) as error:
        yield Missing(dataset.name, str(error))
    if protocol is not None:
        try:
            protocol.check_data(dataset, site, fetch=fetch)
        except (UserError, OSError) as error:
            yield Missing(protocol.requirement or protocol.name, str(error))


def launcher(site: Site) -> Any:
    """Return the module of the site's launcher.

    Raises:
        LookupError: the launcher does not exist.
    """
    package = importlib.import_module("reproduce.launch")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    if site.launcher not in names:
        raise NotFoundError(unknown("launcher", site.launcher, names))
    return importlib.import_module(f"reproduce.launch.{site.launcher}")
