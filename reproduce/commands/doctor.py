"""A check of this machine, and of what each table needs at each scale: `invoke doctor`.

    for line in report(requests("table5", ""), site, Store(site)):
        print(line)

Nothing is started, written or fetched. Data are checked as before a run (`readiness.py`): the folders and
lists of a data set, and its number of images, but not every image. Takes several seconds, most of them to
import torch and torchvision, and longer if ImageNet must be listed.
"""

from __future__ import annotations

import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple

from reproduce import plan
from reproduce.commands import decoders, forecast, rehearsed
from reproduce.commands.disk import CHECKPOINTS, disk_needed, num_parameters, sizes, weightless
from reproduce.data import inventory, lists
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.data.inventory import AnyDataset
from reproduce.lazy import torch
from reproduce.messages import InvalidError, UserError, counted, enumerated, hours, size
from reproduce.nn import distributed
from reproduce.nn.cost import Sizes
from reproduce.plan import BASELINES, SCALES, SYNTHETIC, Job, Request, real_data_sets, table_names
from reproduce.protocols.detection import Detection
from reproduce.protocols.protocol import Protocol
from reproduce.readiness import (
    GPU_MEMORY,
    Counts,
    cores_of,
    gpu_memory,
    in_vain,
    launcher,
    missing,
    too_large,
)
from reproduce.resources import memory
from reproduce.resources.sharing import runs_per_gpu
from reproduce.runs import environment, output
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec

if TYPE_CHECKING:
    from reproduce.resources.cards import Card
    from reproduce.tracking.store import Store

WIDTH = 120
"""Maximum number of columns of a line."""
LABEL = 18
"""Number of columns before a line's text."""
AVAILABLE = "available"
"""Text for an entry that lacks nothing."""
DETECTRON2 = "Detectron2"
"""Label of the line about the engine of detection."""
REHEARSED = "rehearsed"
"""Label of the line about measured speeds."""
DECODING = "decoding"
"""Label of the line about the processes that decode images."""
GPU, DISK = "GPU", "disk"
"""Names of what can be missing besides data and engines; lines with these labels describe them."""
PAPER_GPUS = 8
"""Number of the paper's GPUs, of 16 GB each: "8 V100 16GB GPUs" (section 7.1)."""


class Need(NamedTuple):
    """The checked needs of one table at one scale."""

    num_runs: int
    startable: int
    """Number of runs that lack nothing, do not need a run that lacks something, and are not needed only by
    such runs."""
    missing: tuple[str, ...]
    """Names of what the other runs lack."""
    available: tuple[str, ...]
    """Names of what the runs need and have, except the packages of requirements.txt."""
    disk: int
    """Estimated number of bytes."""
    hours: str = ""
    """Estimated hours of all runs with the kind of device; empty without runs, or if they are unknown."""


@dataclass(frozen=True, eq=False)
class Machine:
    """Properties of the machine, each determined once for all tables."""

    site: Site
    store: Store
    sizes: dict[object, Sizes] = field(default_factory=dict)
    """Sizes of files by network, filled by `disk.sizes`."""
    card: Card | None = None
    """Card for which hours are estimated; None for the devices of the site."""

    @cached_property
    def counts(self) -> Counts:
        """Numbers of images of the data sets."""
        return Counts(self.site)

    @cached_property
    def device(self) -> str:
        """Device of runs: `cpu`, `cuda`, ...; empty if the site's device is not available."""
        try:
            return distributed.device(self.site.device).type
        except InvalidError:
            return ""

    @cached_property
    def gpus(self) -> tuple[str, ...]:
        """GPUs that torch can use, each with its memory."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.cuda.get_device_properties(index) for index in range(count)]
        return tuple(f"{each.name}, {size(each.total_memory)}" for each in found)

    @cached_property
    def free_disk(self) -> int:
        """Free bytes on the disk of the folder of runs, which need not exist yet."""
        place = self.site.runs.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    @cached_property
    def hours_of(self) -> forecast.Hours:
        """Estimates for its devices, or for the card."""
        return forecast.Hours(None, self.site, self.card, self.counts)

    @cached_property
    def at_once(self) -> int:
        """Number of runs that are executed at the same time."""
        from reproduce.launch.local import at_once

        return at_once(self.site)

    @cached_property
    def gpu_memory(self) -> int | None:
        """Memory of a GPU that runs may use in bytes; None without one, or if it is unknown."""
        return gpu_memory(self.site)

    def has_memory(self, spec: Spec) -> bool:
        """Return False if a run is refused because a GPU has too little memory for it."""
        devices = self.site.devices if isinstance(spec, Pretrain) else 1
        peak = memory.estimate(spec, devices, self.site)
        return too_large(spec, devices, self.site, self.gpu_memory, peak) is None

    def has_gpu(self, spec: Spec) -> bool | None:
        """Return True if the GPU that a run needs is available, or None if it needs none."""
        if isinstance(spec, Pretrain) and spec.precision == "bfloat16":
            if self.site.launcher != "local":
                return bool(launcher(self.site).device(self.site)[0] == "GPU")
            return self.device not in ("", "cpu")
        return None if self.device else False

    @cache  # noqa: B019 (a machine lives as long as its report)
    def lacks(self, dataset: Dataset | DetectionDataset, protocol: Protocol | None) -> tuple[str, ...]:
        """Return the names of what a run on `dataset` by `protocol` lacks."""
        return tuple(each.name for each in missing(dataset, protocol, self.site, fetch=False))


def requests(table: str, scale: str, baselines: str = BASELINES[0]) -> list[Request]:
    """Return the tables to report on, in the paper's order, each at its scales.

    Args:
        table, scale: the only table or scale; empty for all.
        baselines: one of BASELINES; tables without such rows are as without it.

    Raises:
        LookupError: the table or scale does not exist; the message names the nearest.
        ValueError: no table has such baselines.
    """
    names, scales = [table] if table else table_names(), [scale] if scale else SCALES
    made = {at: plan.requests(names, scale=at, baselines=baselines) for at in scales}
    found = [made[at][index] for index in range(len(names)) for at in scales]
    for request in found:
        request.build()
    return found


def report(requests: Iterable[Request], site: Site, store: Store, card: Card | None = None) -> Iterator[str]:
    """Yield the lines of the report: the machine, the data, the tables of `requests`, the next step.

    Args:
        card: card for which hours are estimated; None for the devices of the site.
    """
    machine, requests = Machine(site, store, card=card), list(requests)
    specs = {request: request.specs() for request in requests}
    needed = {spec for runs in specs.values() for spec in runs}
    everything = len({request.table for request in requests}) > 1
    detects = any(isinstance(spec, Evaluate) and isinstance(spec.protocol, Detection) for spec in needed)
    yield "Machine"
    for label, text in _machine(machine, specs):
        if everything or detects or label != DETECTRON2:
            yield from _entry(label, text)
        if label == GPU and (peaks := _memory(specs, machine)):
            yield from _entry(GPU_MEMORY, peaks)
    names = {name for spec in needed for name in (spec.dataset.name, *_requirement(spec))}
    data = list(_data(machine, specs, None if everything else names))
    if data:
        yield from ("", "Data")
    for label, text in data:
        yield from _entry(label, text)
    yield from (
        "",
        *_wrapped(
            "Tables: runs that can start, disk and hours for all runs, missing and available needs. "
            f"{_rule(machine)}"
        ),
    )
    needs = {
        request: need(specs[request], machine, request.scale)._replace(
            hours=_hours([Job(spec, request) for spec in specs[request]], machine)
        )
        for request in requests
    }
    for request, found in needs.items():
        # One line, however long.
        yield f"  {f'{request.table:<9}{request.scale}':<{LABEL - 1}} {_state(found)}"
    yield ""
    yield from _wrapped(_ready(needs, specs, machine))
    yield from _wrapped(_next(needs))


def need(specs: Iterable[Spec], machine: Machine, scale: str = "") -> Need:
    """Return what the runs of `specs`, upstream first, need and lack on this machine.

    Args:
        scale: scale of the runs; at paper scale the data must be as published.
    """
    lacking: dict[str, list[str]] = {}
    required: dict[str, None] = {}
    specs = list(specs)
    for spec in specs:
        names = list(machine.lacks(spec.dataset, spec.protocol if isinstance(spec, Evaluate) else None))
        if problem := machine.counts.problem(spec, scale):
            names.append(problem.name)
        has_gpu = machine.has_gpu(spec)
        if has_gpu is False:
            names.append(GPU)
        if not machine.has_memory(spec):
            names.append(GPU_MEMORY)
        required |= dict.fromkeys([*_required(spec, machine.site), *([GPU] if has_gpu else [])])
        for needed in spec.needs():
            names += lacking[needed.id]
        lacking[spec.id] = names
    lacking |= {
        spec_id: lacking[first]
        for spec_id, first in in_vain(specs, {each for each, names in lacking.items() if names}).items()
    }
    everything = [name for names in lacking.values() for name in names]
    space = disk(specs, machine)
    if space > machine.free_disk:
        everything.append(DISK)
    return Need(
        num_runs=len(specs),
        startable=sum(not names for names in lacking.values()),
        missing=tuple(dict.fromkeys(everything)),
        available=tuple(name for name in required if name not in everything),
        disk=space,
    )


def _requirement(spec: Spec) -> tuple[str, ...]:
    """Return what a run's protocol requires in addition to the images, by the names of `missing`."""
    return (spec.protocol.requirement,) if isinstance(spec, Evaluate) and spec.protocol.requirement else ()


def _required(spec: Spec, site: Site) -> Iterator[str]:
    """Yield what a run reads and what its protocol requires, by the names of `missing`.

    Generated and fetched data are left out.
    """
    if spec.dataset.name.startswith(SYNTHETIC):
        return
    yield spec.dataset.name
    requirement = spec.protocol.requirement if isinstance(spec, Evaluate) else ""
    if requirement and (requirement != lists.KEY or _subsets(site) == AVAILABLE):
        yield requirement


# The machine and its data


def _machine(machine: Machine, specs: Mapping[Request, Sequence[Spec]]) -> Iterator[tuple[str, str]]:
    import psutil

    found, memory = environment.record(), psutil.virtual_memory()
    packages = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "torchvision", "mlflow"))
    processor = environment.processor()
    yield "Python", f"{found['python']}, {packages}"
    yield GPU, _gpu(machine)
    free = size(memory.available)
    yield "CPU", f"{found['cores']} cores ({processor}), {size(memory.total)} of memory, {free} free"
    shares = cores_of([Job(spec, request) for request, runs in specs.items() for spec in runs], machine.site)
    yield DECODING, decoders.chosen(shares.values(), machine.site, machine.device or "cpu")
    features = size(machine.site.features_gb * 1e9)
    shared = f"shared features take up to {features} (features_gb)"
    kept = shared if machine.site.features_gb else "features are not kept (features_gb)"
    yield DISK, f"{size(machine.free_disk)} free in {machine.site.runs}; {kept}"
    yield "tracking", machine.store.described()
    yield REHEARSED, _rehearsed(machine, specs)
    yield DETECTRON2, _detectron2(machine.site)
    found_latex = shutil.which("pdflatex") is not None
    yield "pdflatex", AVAILABLE if found_latex else "missing; optional, typesets the reports' .tex files"


def _gpu(machine: Machine) -> str:
    listed = "; ".join(machine.gpus) or "none that torch can use"
    if not machine.device:
        return (
            f"{listed}; the site's device is '{machine.site.device}', so no run can start: "
            "set it to auto or cpu"
        )
    if machine.device != "cpu":
        return listed
    unused = "; the site's device is cpu, so runs do not use it" if machine.gpus else ""
    return (
        f"{listed}{unused}. Pretraining in bfloat16, the default at the small and paper scales, needs a GPU; "
        "--set precision=float32 works without one"
    )


def _memory(specs: Mapping[Request, Iterable[Spec]], machine: Machine) -> str:
    """Return the largest estimate of each scale's pretrainings, and how many share a GPU; may be empty."""
    site, card = machine.site, machine.gpu_memory
    largest: dict[str, int] = {}
    shared: dict[str, int] = {}
    for request, runs in specs.items():
        for spec in runs:
            job, scale = Job(spec, request), request.scale
            found = memory.estimate(spec, job.devices(site), site)
            if isinstance(spec, Pretrain) and found is not None:
                number = runs_per_gpu(job, site, gpus=1, card=card, peak=found)
                largest[scale] = max(found.on(card or 0), largest.get(scale, 0))
                shared[scale] = max(number, shared.get(scale, 0))
    if not largest:
        return ""
    known = ", ".join(f"{size(found)} at {scale}" for scale, found in largest.items())
    gpus = "its GPU" if site.devices == 1 else f"each of its {site.devices} GPUs"
    text = f"estimated peak of a pretraining: up to {known}, on {gpus}"
    if card is None:
        return text
    numbers = ", ".join(f"{number} at {scale}" for scale, number in shared.items())
    return f"{text}; runs that share a GPU: up to {numbers} (runs_per_gpu)"


def _rehearsed(machine: Machine, specs: Mapping[Request, Sequence[Spec]]) -> str:
    """Return the devices whose speed was measured, and how much of that holds for these runs, in words."""
    measured = rehearsed.read(machine.site)
    if not measured:
        return "nothing, so hours assume a speed; `invoke rehearse --scale NAME` measures it"
    counts = Counter(device for _, device in measured)
    parts = [f"{counted(number, 'shape')} of runs on {device}" for device, number in counts.items()]
    wanted = {spec.id: Job(spec, request) for request, runs in specs.items() for spec in runs}
    used, total = machine.hours_of.coverage(list(wanted.values()))
    remedy = "" if used else ". None holds for the keys of this site file: `invoke rehearse` measures again"
    return f"{'; '.join(parts)}; {used} of the {counted(total, 'shape')} of these tables{remedy}"


def _detectron2(site: Site) -> str:
    from reproduce.detection import detectron2

    try:
        detectron2.check(site)
    except (UserError, OSError) as error:
        return str(error)
    if site.detectron2 is None:
        return f"{AVAILABLE}, the installed package"
    commit = environment.commit_of(site.detectron2)[:12]
    return f"{AVAILABLE}, the source folder {site.detectron2}, commit {commit}"


def _data(
    machine: Machine, specs: Mapping[Request, Sequence[Spec]], names: Container[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield each data set of real images and separate lists.

    Args:
        specs: the runs of each table.
        names: names of those that are needed; None for all.
    """
    site = machine.site
    for dataset in real_data_sets():
        if names is not None and dataset.name not in names:
            continue
        problems = [each.why for each in missing(dataset, None, site, fetch=False)]
        text = " ".join(problems) or _counted(dataset, machine.counts)
        if text.startswith(AVAILABLE) and isinstance(dataset, Dataset):
            where = machine.site, machine.store, machine.device or "cpu"
            text = "; ".join(filter(None, (text, decoders.limits(dataset, specs, *where))))
        yield dataset.name, text
    if names is None or lists.KEY in names:
        yield lists.KEY, _subsets(site)


def _counted(dataset: AnyDataset, counts: Counts) -> str:
    """Return that a data set is available, with its images compared with the published ones."""
    used = inventory.used_splits(dataset)
    found = [counts.of(dataset, split) for split in used]
    if problems := [each for each in found if isinstance(each, str)]:
        return " ".join(dict.fromkeys(problems))
    if other := [phrase for split in used if (phrase := counts.shortfall(dataset, split))]:
        return f"{AVAILABLE}, but not as published: {'; '.join(other)}"
    return AVAILABLE


def _subsets(site: Site) -> str:
    try:
        paths = [lists.of_imagenet(name, site, fetch=False) for name in lists.SHA256]
    except (UserError, OSError) as error:
        return str(error)
    if all(path.is_file() for path in paths):
        return AVAILABLE
    return "not set: the first run that needs SimCLR's lists of labelled images fetches them, once"


def disk(specs: Iterable[Spec], machine: Machine) -> int:
    """Return the estimated bytes that the runs of `specs` leave behind or occupy for a time, by `_rule`."""

    def files(run: Pretrain) -> Sizes:
        return sizes(run, machine.sizes, machine.site)

    def parameters(backbone: str) -> int:
        return num_parameters(weightless(backbone))

    return disk_needed(specs, machine.store, machine.at_once, files, parameters)


# The tables


def _state(need: Need) -> str:
    if not need.num_runs:
        return "runs nothing"
    state = f"missing: {', '.join(need.missing)}" if need.missing else "ready"
    if need.available:
        state += f"; available: {', '.join(need.available)}"
    return f"{need.startable:>3} of {need.num_runs:<3}  {size(need.disk):>12}  {need.hours:>18}  {state}"


def _hours(wanted: list[Job], machine: Machine) -> str:
    """Return the hours that the runs take from the start, or "" if they are unknown.

    They come from rehearsals and operations. Finished runs are compared by `--dry-run` only.
    """
    seconds = [step.seconds for step in forecast.fresh(wanted, machine.hours_of, machine.site)]
    known = [each for each in seconds if each is not None]
    complete = known and len(known) == len(seconds)
    return f"{hours(math.fsum(known))} {machine.hours_of.device}-hours" if complete else ""


def _rule(machine: Machine) -> str:
    on = ""
    if machine.card:
        on = f" Hours are those on {machine.card.title}, within a factor of two for long runs in bfloat16."
    twice = ""
    if machine.store.keeps_artifacts_here:
        twice = ", twice (in its run's folder and as an MLflow artifact)"
    return (
        "Hours and disk are estimates that ignore finished runs. Disk is the sum of the encoder of each "
        f"pretraining{twice}, and of {CHECKPOINTS} checkpoints for each of the runs that are executed at the "
        f"same time, up to {machine.at_once} on this machine. Logs, the tracking database and the images of "
        f"the smoke scale add about {size(2e8)} in all. At the paper scale, the paper used {PAPER_GPUS} GPUs "
        "of 16 GB."
        f"{on}"
    )


def _ready(needs: dict[Request, Need], specs: dict[Request, tuple[Spec, ...]], machine: Machine) -> str:
    """Return how many tables lack nothing at each scale, and the disk for all of them; tables share runs."""
    parts = []
    for scale in dict.fromkeys(request.scale for request in needs):
        found = {request: need for request, need in needs.items() if request.scale == scale}
        runs = {spec.id: spec for request in found for spec in specs[request]}
        ready = sum(not need.missing for need in found.values())
        parts.append(f"{ready} of {len(found)} at {scale} ({size(disk(runs.values(), machine))} for all)")
    return f"Ready tables: {', '.join(parts)}."


def _next(needs: dict[Request, Need]) -> str:
    """Return all that tables lack at the smallest scale with missing needs, the most frequent first."""
    for scale in dict.fromkeys(request.scale for request in needs):
        waiting = Counter(
            name for request, need in needs.items() if request.scale == scale for name in need.missing
        )
        if waiting:
            named = [(f"a {name}" if name == GPU else name, count) for name, count in waiting.most_common()]
            (first, count), *others = named
            parts = [f"{counted(count, 'table')} at {scale} {'lacks' if count == 1 else 'lack'} {first}"]
            parts += [f"{count} {'lacks' if count == 1 else 'lack'} {name}" for name, count in others]
            whose = "their lines above name the remedies" if others else "its line above names the remedy"
            return f"Next: {enumerated(parts)}; {whose}."
    return "Next: nothing is missing; `invoke tables --scale NAME` executes all unfinished runs."


def _entry(label: str, text: str) -> Iterator[str]:
    """Yield a label and its text: the first line wrapped, the other lines, which are commands, unchanged."""
    indent = " " * (LABEL + 2)
    first, *others = text.splitlines()
    yield from _wrapped(first, f"  {label:<{LABEL - 1}} ", indent)
    yield from (f"{indent}{line}" for line in others)


def _wrapped(text: str, first: str = "", indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        min(WIDTH, output.width(WIDTH)),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
