"""What this machine has, and what each table needs of it at each scale: `invoke doctor`.

    for line in report(requests("table5", ""), site, Store(site)):
        print(line)

Nothing is started, written, fetched or opened. Whether data are here is asked as before a run
(`produce.missing`): of a data set its folders and lists, not every image. Takes some seconds, most of them
the import of torch and torchvision.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reproduce.commands.disk import CHECKPOINTS, disk_needed, num_parameters, sizes, weightless
from reproduce.data import lists
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.lazy import torch
from reproduce.messages import InvalidError, UserError, size, unknown
from reproduce.nn import distributed
from reproduce.nn.cost import Sizes
from reproduce.plan import SCALES, SYNTHETIC, Request, components, table_names
from reproduce.protocols.protocol import Protocol
from reproduce.readiness import in_vain, missing
from reproduce.runs import environment
from reproduce.site import PROJECT, Site
from reproduce.spec import Evaluate, Pretrain, Spec

if TYPE_CHECKING:
    from reproduce.tracking.store import Store

WIDTH = 120
"""Columns of a terminal that lines should fit in."""
LABEL = 18
"""Columns of what stands before a line's text."""
HERE = "here"
"""What is told of that for which nothing is missing."""
GPU, DISK = "GPU", "disk"
"""What is missing beside data and engines, by the labels of the lines that say more."""
PAPER_GPUS = 8
"""Of 16 GB each: "8 V100 16GB GPUs" (section 7.1)."""


class Need(NamedTuple):
    """What one table needs at one scale, as far as it is looked at here."""

    num_runs: int
    startable: int
    """Runs that lack nothing, nor does what they need first, nor all that needs them."""
    missing: tuple[str, ...]
    """Names of what the others lack."""
    here: tuple[str, ...]
    """Names of what any of them needs and has; that the packages of requirements.txt are installed goes
    without saying."""
    disk: int
    """Bytes, an estimate."""


@dataclass(frozen=True, eq=False)
class Machine:
    """What is asked once for all tables."""

    site: Site
    store: Store
    sizes: dict[object, Sizes] = field(default_factory=dict)
    """For `sizes`."""

    @cached_property
    def device(self) -> str:
        """Where a run computes: `cpu`, `cuda`, ...; empty: the site's device is not here."""
        try:
            return distributed.device(self.site.device).type
        except InvalidError:
            return ""

    @cached_property
    def gpus(self) -> tuple[str, ...]:
        """Those that torch can use, each with its memory."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.cuda.get_device_properties(index) for index in range(count)]
        return tuple(f"{each.name}, {size(each.total_memory)}" for each in found)

    @cached_property
    def free_disk(self) -> int:
        """Bytes where runs go, or will go when there are some."""
        place = self.site.runs.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    @cached_property
    def at_once(self) -> int:
        """Runs that go on at the same time."""
        from reproduce.launch.local import at_once

        return at_once(self.site)

    def has_gpu(self, spec: Spec) -> bool | None:
        """Whether the GPU that a run needs is here; None: it needs none."""
        if isinstance(spec, Pretrain) and spec.precision == "bfloat16":
            return self.device not in ("", "cpu")
        return None if self.device else False

    @cache  # noqa: B019 (a machine lives as long as its report)
    def lacks(self, dataset: Dataset | DetectionDataset, protocol: Protocol | None) -> tuple[str, ...]:
        """Names of what a run on `dataset` by `protocol` lacks."""
        return tuple(each.name for each in missing(dataset, protocol, self.site, fetch=False))


def requests(table: str, scale: str) -> list[Request]:
    """The tables to report on, in the paper's order, each at its scales.

    Args:
        table, scale: the only one; empty: all.

    Raises:
        LookupError: there is no such table or scale; the message names the nearest.
    """
    made = [
        Request(table=each, scale=at)
        for each in ([table] if table else table_names())
        for at in ([scale] if scale else SCALES)
    ]
    for request in made:
        request.build()
    return made


def report(requests: Iterable[Request], site: Site, store: Store) -> Iterator[str]:
    """The lines of the report: the machine, the data, the tables of `requests`, what comes next."""
    machine, asked = Machine(site, store), list(requests)
    yield "Machine"
    for label, text in _machine(machine):
        yield from _entry(label, text)
    yield from ("", "Data")
    for label, text in _data(site):
        yield from _entry(label, text)
    yield from (
        "",
        *_wrapped(
            f"Tables: runs that can start, disk for all of them, what is missing and what is here. {_rule(machine)}"
        ),
    )
    specs = {request: request.specs() for request in asked}
    needs = {request: need(specs[request], machine) for request in asked}
    for request, found in needs.items():
        yield f"  {f'{request.table:<9}{request.scale}':<{LABEL - 1}} {_told(found)}"  # one line, however long
    yield ""
    yield from _wrapped(_ready(needs, specs, machine))
    yield from _wrapped(_next(needs))


def need(specs: Iterable[Spec], machine: Machine) -> Need:
    """What the runs of `specs`, upstream first, need and lack on this machine."""
    lacking: dict[str, list[str]] = {}
    asked: dict[str, None] = {}
    specs = list(specs)
    for spec in specs:
        names = list(machine.lacks(spec.dataset, spec.protocol if isinstance(spec, Evaluate) else None))
        has_gpu = machine.has_gpu(spec)
        if has_gpu is False:
            names.append(GPU)
        asked |= dict.fromkeys([*_asked_for(spec, machine.site), *([GPU] if has_gpu else [])])
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
    here = tuple(name for name in asked if name not in everything)
    return Need(
        len(specs),
        sum(not names for names in lacking.values()),
        tuple(dict.fromkeys(everything)),
        here,
        space,
    )


def _asked_for(spec: Spec, site: Site) -> Iterator[str]:
    """What a run reads and what its protocol asks for beside that, by the names of `missing`; nothing that is
    generated or fetched."""
    if spec.dataset.name.startswith(SYNTHETIC):
        return
    yield spec.dataset.name
    requirement = spec.protocol.requirement if isinstance(spec, Evaluate) else ""
    if requirement and (requirement != lists.KEY or _subsets(site) == HERE):
        yield requirement


# What is here


def _machine(machine: Machine) -> Iterator[tuple[str, str]]:
    import psutil

    found, memory = environment.record(), psutil.virtual_memory()
    packages = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "torchvision", "mlflow"))
    processor = environment.processor()
    yield "Python", f"{found['python']}, {packages}"
    yield GPU, _gpu(machine)
    yield (
        "CPU",
        f"{found['cores']} cores ({processor}), {size(memory.total)} of memory, {size(memory.available)} of it free",
    )
    features = machine.site.features_gb
    shared = (
        f"features that evaluations share take up to {features:g} GB of it (features_gb)"
        if features
        else "no features are kept"
    )
    yield DISK, f"{size(machine.free_disk)} free in {machine.site.runs}; {shared}"
    yield "tracking", machine.store.described()
    yield "Detectron2", _detectron2(machine.site)
    yield (
        "pdflatex",
        "here" if shutil.which("pdflatex") else "not here; optional, it typesets the reports' .tex files",
    )


def _gpu(machine: Machine) -> str:
    used = (
        "; the site's device is cpu, so runs do not use it"
        if machine.gpus and machine.device == "cpu"
        else ""
    )
    listed = "; ".join(machine.gpus) or "none that torch can use"
    if not machine.device:
        return f"{listed}; the site's device is '{machine.site.device}', so no run can start: set it to auto or cpu"
    if machine.device == "cpu":
        used += ". Pretraining in bfloat16, as at the scales small and paper, needs one; --set precision=float32 does without"
    return listed + used


def _detectron2(site: Site) -> str:
    from reproduce.detection import detectron2

    try:
        detectron2.check(site)
    except (UserError, OSError) as error:
        return str(error)
    if site.detectron2 is None:
        return "here, the installed package"
    return f"here, the source folder {site.detectron2}, commit {_commit(site.detectron2)}"


def _commit(folder: Path) -> str:
    """The commit of a repository whose top `folder` is."""
    try:
        command = ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"]
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit[:12] if Path(top) == folder.resolve() else "unknown"


def _data(site: Site) -> Iterator[tuple[str, str]]:
    """Each data set of real images, the lists that are not part of one, and the roots that nobody asks
    for."""
    known_data: dict[str, Callable[[], Dataset | DetectionDataset]] = {
        **components("reproduce.data", Dataset),
        **components("reproduce.data", DetectionDataset),
    }
    for name, cls in sorted(known_data.items()):
        if not name.startswith(SYNTHETIC):
            problems = [each.why for each in missing(cls(), None, site, fetch=False)]
            yield name, " ".join(problems) or HERE
    yield lists.KEY, _subsets(site)
    known = data_roots()
    for key in site.data:
        if key not in known:
            yield key, unknown("data root", key, known)


def data_roots() -> list[str]:
    """The keys of the site file's [data], as its example lists them."""
    section = (
        (PROJECT / "configs" / "site.example.toml").read_text(encoding="utf-8").partition("\n[data]\n")[2]
    )
    return re.findall(r'^# (\w+) = "', section, re.MULTILINE)


def _subsets(site: Site) -> str:
    try:
        paths = [lists.of_imagenet(name, site, fetch=False) for name in lists.SHA256]
    except (UserError, OSError) as error:
        return str(error)
    here = all(path.is_file() for path in paths)
    return (
        HERE
        if here
        else "not set: SimCLR's lists of labelled images are fetched, once, by the first run that needs them"
    )


def disk(specs: Iterable[Spec], machine: Machine) -> int:
    """Bytes that the runs of `specs` leave behind and take meanwhile, an estimate; the rule is `_rule`."""

    def files(run: Pretrain) -> Sizes:
        return sizes(run.backbone, run.method, machine.sizes)

    def parameters(backbone: str) -> int:
        return num_parameters(weightless(backbone))

    return disk_needed(specs, machine.store, machine.at_once, files, parameters)


# What is told of the tables


def _told(need: Need) -> str:
    if not need.num_runs:
        return "nothing is run"
    state = f"missing: {', '.join(need.missing)}" if need.missing else "ready"
    if need.here:
        state += f"; here: {', '.join(need.here)}"
    return f"{need.startable:>3} of {need.num_runs:<3}  {size(need.disk):>12}  {state}"


def _rule(machine: Machine) -> str:
    twice = (
        ", twice (in its run's folder and as MLflow's artifact),"
        if machine.store.keeps_artifacts_here
        else ""
    )
    return (
        f"Disk is an estimate that counts nothing as done: the encoder of each pretraining{twice} and {CHECKPOINTS} checkpoints of each "
        f"run that goes on at the same time, here up to {machine.at_once}. Logs, the tracking database and the images of the smoke scale "
        f"come on top, some 0.2 GB in all. For the scale paper, the paper had {PAPER_GPUS} GPUs of 16 GB."
    )


def _ready(needs: dict[Request, Need], specs: dict[Request, tuple[Spec, ...]], machine: Machine) -> str:
    """How many tables lack nothing at each scale, and what all of them take together: tables share runs."""
    parts = []
    for scale in dict.fromkeys(request.scale for request in needs):
        found = {request: need for request, need in needs.items() if request.scale == scale}
        runs = {spec.id: spec for request in found for spec in specs[request]}
        ready = sum(not need.missing for need in found.values())
        parts.append(f"{ready} of {len(found)} at {scale} ({size(disk(runs.values(), machine))} for all)")
    return f"Tables that are ready: {', '.join(parts)}."


def _next(needs: dict[Request, Need]) -> str:
    """What most tables wait for at the smallest scale that lacks something."""
    for scale in dict.fromkeys(request.scale for request in needs):
        waiting = Counter(
            name for request, need in needs.items() if request.scale == scale for name in need.missing
        )
        if waiting:
            ((name, count),) = waiting.most_common(1)
            return f"Next: {name}, which {count} {'table waits' if count == 1 else 'tables wait'} for at {scale}; its line above says how."
    return "Next: nothing is missing; `invoke tables --scale NAME` runs all that is not done."


def _entry(label: str, text: str) -> Iterator[str]:
    """A label and its text, of which the first line is wrapped; the others are commands to be copied."""
    indent = " " * (LABEL + 2)
    first, *others = text.splitlines()
    yield from _wrapped(first, f"  {label:<{LABEL - 1}} ", indent)
    yield from (f"{indent}{line}" for line in others)


def _wrapped(text: str, first: str = "", indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
