"""Checks whether runs can start on this machine, and what they lack."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reproduce.data import inventory
from reproduce.data.dataset import Dataset
from reproduce.data.inventory import AnyDataset
from reproduce.data.sources import shown
from reproduce.messages import NotFoundError, UserError, counted, enumerated, grouped, size, unknown
from reproduce.nn import distributed
from reproduce.plan import Job
from reproduce.protocols.protocol import Protocol
from reproduce.resources import memory
from reproduce.resources.memory import Peak
from reproduce.resources.sharing import USABLE
from reproduce.runs.checkpoint import DETECTRON2
from reproduce.runs.cores import Share
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec
from reproduce.tracking.tags import title

if TYPE_CHECKING:
    from reproduce.tracking.store import Store


MARGIN = 1.3
"""Ratio of an estimated peak to the memory of a GPU up to which a run starts: estimates may be wrong."""
GPU_MEMORY = "GPU memory"
"""Name of what a run lacks whose peak exceeds the memory of its GPU."""


class RefusedError(UserError):
    """The request cannot be started on this machine; the message names what would work."""


def blocked(
    todo: Sequence[Job],
    site: Site,
    *,
    fetch: bool = True,
    counts: Counts | None = None,
    store: Store | None = None,
) -> dict[str, Blocked]:
    """Return the runs of `todo` that cannot start, each with all that it lacks.

    A run is blocked if it lacks something, if it needs a blocked run, or if only blocked runs need it. What a
    worker would refuse before its first step is found here, as far as settings, site and numbers of images
    decide it.

    Args:
        todo: the runs, upstream first.
        fetch: see `missing`.
        counts: numbers of images that the caller needs too.
        store: records of interrupted runs, whose checkpoints must be of the data that are used now. None to
            leave that to the worker.
    """
    counts = counts or Counts(site)
    paused = _stranded(todo, site, store) if store else {}
    wanted = {
        job.spec.id: (job.spec.dataset, job.spec.protocol if isinstance(job.spec, Evaluate) else None)
        for job in todo
    }
    card = gpu_memory(site)
    peaks = memory.peaks(todo, site, store) if card else {}
    lacking = {each: tuple(missing(*each, site, fetch=fetch)) for each in dict.fromkeys(wanted.values())}
    found: dict[str, Blocked] = {}
    for job in todo:
        problems = (
            *lacking[wanted[job.spec.id]],
            _problem_of_devices(job, site),
            too_large(job.spec, job.devices(site), site, card, peaks.get(job.spec.id)),
            counts.problem(job.spec, job.request.scale),
            paused.get(job.spec.id),
        )
        by_name: dict[str, Missing] = {}
        for problem in filter(None, problems):
            by_name.setdefault(problem.name, problem)
        if by_name:
            found[job.spec.id] = Blocked(tuple(by_name.values()))
    for job in todo:
        for needed in job.spec.needs():
            if needed.id in found:
                through = f"run {needed.id}, which it needs,"
                found.setdefault(job.spec.id, Blocked(found[needed.id].problems, through))
    vain = in_vain([job.spec for job in todo], found)
    return found | {
        spec_id: Blocked(found[first].problems, f"every run that needs it is blocked: run {first}")
        for spec_id, first in vain.items()
    }


def _stranded(todo: Iterable[Job], site: Site, store: Store) -> dict[str, Missing]:
    """Return the problem of each run whose checkpoint is from other data, by id."""
    from reproduce.tracking.reuse import stranded

    found = {}
    for spec_id, differs in stranded(store, (job.spec for job in todo), site).items():
        folder = site.runs / spec_id
        files = f"folder {DETECTRON2}" if (folder / DETECTRON2).is_dir() else "files epoch-*.pt"
        found[spec_id] = Missing(
            "the data of its checkpoint",
            f"Run {spec_id} was interrupted and cannot resume: {differs}. Restore those data, or move the "
            f"{files} out of {folder} to start from scratch.",
        )
    return found


def _problem_of_devices(job: Job, site: Site) -> Missing | None:
    return _uneven(job, site) or _split_group(job, site) or _no_gpu(job, site) or _imprecise(job, site)


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


def _split_group(job: Job, site: Site) -> Missing | None:
    """Return the problem of a batch whose groups for BatchNorm would be split among the devices, or None."""
    spec, devices = job.spec, job.devices(site)
    if not isinstance(spec, Pretrain):
        return None
    batch, group = spec.batch_size, spec.method.batchnorm_images(spec.batch_size)
    groups = batch // group
    if group >= batch or batch % group or groups % devices == 0:
        return None
    fitting = ", ".join(str(number) for number in range(1, groups + 1) if groups % number == 0)
    return Missing(
        f"groups for BatchNorm that {devices} devices can share",
        f"A batch of {batch} images has {groups} groups of {group} for BatchNorm, and {devices} devices "
        f"would split one: set `devices` in the site file to one of {fitting}.",
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


def _imprecise(job: Job, site: Site) -> Missing | None:
    """Return the problem of a precision that the site's devices do not support, or None."""
    if not isinstance(job.spec, Pretrain) or job.spec.precision == "float32":
        return None
    if launcher(site).device(site)[0] == "GPU" and (site.launcher != "local" or _torch_has_cuda()):
        return None
    return Missing(
        f"a GPU for {job.spec.precision}",
        f"Pretraining in {job.spec.precision} needs a GPU, which runs do not have here: use one, or "
        "--set precision=float32.",
    )


def gpu_memory(site: Site) -> int | None:
    """Return the memory of a GPU of the site in bytes; None without one, or if the launcher does not know."""
    known = getattr(launcher(site), "memory", None)
    return known(site) if known else None


def cores_of(jobs: Sequence[Job], site: Site) -> dict[str, Share]:
    """Return the share of a machine's cores that the launcher gives each run, by id."""
    known = getattr(launcher(site), "cores_of", None)
    return known(jobs, site) if known else {job.spec.id: Share(None, job.devices(site)) for job in jobs}


def too_large(spec: Spec, devices: int, site: Site, card: int | None, peak: Peak | None) -> Missing | None:
    """Return the problem of a pretraining that does not fit in the memory of a GPU, or None.

    Args:
        devices: number of GPUs of the run.
        card: memory of each; None if it is unknown.
        peak: peak of the run on each; None if it is unknown.
    """
    if not isinstance(spec, Pretrain) or card is None or peak is None:
        return None
    needed = peak.on(card)
    if needed <= card * (1 if peak.recorded else MARGIN):
        return None
    what = f"Run {spec.id} ({title(spec)}) at batch {spec.batch_size}"
    source = "as a comparable run recorded" if peak.recorded else "estimated"
    remedies = ", or ".join(_remedies(spec, devices, site, card))
    return Missing(
        GPU_MEMORY,
        f"{what} needs {size(needed)} of memory on each GPU ({source}), which has {size(card)}: "
        f"{remedies or 'use a larger GPU'}.",
    )


def _remedies(spec: Pretrain, devices: int, site: Site, card: int) -> Iterator[str]:
    """Yield the settings with which a pretraining fits in the usable memory of each GPU, in words."""

    def fits(run: Pretrain, num: int, *, recompute: bool = site.recompute) -> bool:
        found = memory.estimate(run, num, replace(site, recompute=recompute))
        return found is not None and found.on(card) <= USABLE * card

    batch = spec.batch_size
    parts = [part for part in range(2, batch // 2 + 1) if batch % part == 0]
    if num := next((num for num in parts if num > devices and fits(spec, num)), 0):
        yield f"set devices to {num} in the site file, which changes no number"
    if spec.method.recomputes and not site.recompute and fits(spec, devices, recompute=True):
        yield "set recompute to true in the site file, which changes no number"
    smaller = (batch // part for part in parts)
    if other := next((each for each in smaller if fits(replace(spec, batch_size=each), devices)), 0):
        yield f"--set batch_size={other}, which is another run"


def tight(todo: Iterable[Job], site: Site, store: Store) -> list[str]:
    """Return a line if pretrainings may not fit in the memory of a GPU although they are not refused.

    A number as `runs_per_gpu` in the site file is obeyed, but the line says what it needs.
    """
    card, jobs = gpu_memory(site), [job for job in todo if isinstance(job.spec, Pretrain)]
    if card is None:
        return []
    found = memory.peaks(jobs, site, store)
    asked = site.runs_per_gpu if isinstance(site.runs_per_gpu, int) else 1
    needs = {
        job.spec.id: num * found[job.spec.id].on(card, num)
        for job in jobs
        for num in (asked if job.devices(site) == 1 else 1,)
        if job.spec.id in found
    }
    if not needs or max(needs.values()) <= card:
        return []
    largest = max(needs, key=needs.__getitem__)
    others = sum(num_bytes > card for num_bytes in needs.values()) - 1
    more = f"; the same holds for {counted(others, 'other run')}" if others else ""
    what = f"{asked} runs such as {largest} at a time (runs_per_gpu)" if asked > 1 else f"Run {largest}"
    return [f"{what} may need {size(needs[largest])} of a GPU, which has {size(card)}{more}."]


@cache
def _torch_has_cuda() -> bool:
    """Return True unless PyTorch is a build for CPUs.

    A file of it is read, as its import takes seconds.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    version = Path(found.origin).with_name("version.py")
    return not re.search(r"^cuda\b.*= None$", version.read_text(encoding="utf-8"), re.MULTILINE)


class Counts:
    """Numbers of images of the splits on this machine, each counted once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._known: dict[str, int | str | None] = {}

    def of(self, dataset: AnyDataset, split: str) -> int | str | None:
        """Return the number of images of a split, why it cannot be read, or None if images are generated."""
        key = inventory.key(dataset, split, self._site)
        if key not in self._known:
            try:
                self._known[key] = inventory.count(dataset, split, self._site)
            except (UserError, OSError) as error:
                self._known[key] = in_words(error)
        return self._known[key]

    def problem(self, spec: Spec, scale: str) -> Missing | None:
        """Return the problem of a run whose splits cannot be read or do not fit its settings, or None.

        At paper scale, splits must have exactly the published images.
        """
        dataset = spec.dataset
        for split in spec.splits:
            found = self.of(dataset, split)
            if isinstance(found, str):
                return Missing(dataset.name, found)
            if scale == "paper" and (phrase := self.shortfall(dataset, split)):
                return Missing(
                    dataset.name,
                    f"At paper scale the data must be as published, but the root has {phrase}: "
                    "complete it, or use another scale.",
                )
            if found is None and isinstance(dataset, Dataset):
                found = dataset.num_images(split)  # of generated images
            least, setting = _least_images(spec, split)
            if found is not None and found < least:
                return Missing(
                    "enough images",
                    f"{setting} needs at least {grouped(least)} images, but {dataset.name}'s {split} split "
                    f"has {grouped(found)}: set a smaller one with --set {setting}.",
                )
            if found is not None and isinstance(spec, Pretrain):
                try:
                    spec.check_for(found)
                except ValueError as error:
                    return Missing("settings that fit the images", str(error))
        return None

    def shortfall(self, dataset: AnyDataset, split: str) -> str:
        """Return a phrase about a split that has not exactly the published images; otherwise empty."""
        found = self.of(dataset, split)
        return inventory.shortfall(dataset, split, found if isinstance(found, int) else None)

    def shortfalls(self, specs: Iterable[Spec]) -> list[str]:
        """Return these phrases for all splits that the runs read."""
        found = dict.fromkeys(self.shortfall(spec.dataset, split) for spec in specs for split in spec.splits)
        return [phrase for phrase in found if phrase]


def _least_images(spec: Spec, split: str) -> tuple[int, str]:
    """Return the least number of images of a split that a run needs, and the setting that decides it."""
    if isinstance(spec, Pretrain):
        return spec.batch_size, "batch_size"
    return spec.protocol.least_images if split == spec.dataset.train_split else (1, "")


def in_words(error: Exception) -> str:
    """Return why something cannot be read, as one sentence; an OSError names a file and a cause."""
    if isinstance(error, UserError) or not isinstance(error, OSError):
        return str(error)
    return f"{shown(error.filename or 'A folder of the data')} cannot be read ({error.strerror or error})."


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

    problems: tuple[Missing, ...]
    """All that the run lacks, at least one."""
    through: str = ""
    """Another run that has the problems, as the subject of a sentence; empty if this run has them."""

    @property
    def problem(self) -> Missing:
        """The first problem, for a short reason."""
        return self.problems[0]

    @property
    def remedies(self) -> tuple[str, ...]:
        """Description of each problem, and of what would solve it."""
        return tuple(each.why for each in self.problems)

    def __str__(self) -> str:
        return f"{self.through} lacks {enumerated([each.name for each in self.problems])}".strip()


def missing(
    dataset: AnyDataset, protocol: Protocol | None, site: Site, *, fetch: bool = True
) -> Iterator[Missing]:
    """Yield what a run on `dataset` by `protocol` lacks on this machine, checked one by one.

    Args:
        fetch: True to fetch a missing list now; False to assume that it can be fetched.
    """
    try:
        dataset.check_root(site)
    except (UserError, OSError) as error:
        yield Missing(dataset.name, in_words(error))
        fetch = False  # a list is of no use without the images
    if protocol is not None:
        try:
            protocol.check_data(dataset, site, fetch=fetch)
        except (UserError, OSError) as error:
            yield Missing(protocol.requirement or protocol.name, in_words(error))


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
