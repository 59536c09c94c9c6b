"""What a command would do and take: each run, once, with what becomes of it and why; hours and disk; a digest
of all that.

    made = forecast(jobs(requests), partial(blocked, site=site), Store(site), site)
    print("\\n".join(made.lines()))
    made.digest                                    # '3f0c2a9d1e77', what `--apply` takes

Hours come from finished runs in the store that were alike, in one attempt, on a device of the same name;
where there are none, from the operations that the settings take, at an assumed speed (`SPEEDS`); else they
are not known, and said so. Needs neither torch nor pandas.
"""

from __future__ import annotations

import hashlib
import heapq
import importlib
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from reproduce.data.dataset import Dataset
from reproduce.detection import cost as detectors
from reproduce.messages import NotFoundError, clock, counted, hours, size
from reproduce.nn import cost
from reproduce.nn.heads import Heads
from reproduce.plan import Job
from reproduce.protocols.detection import Detection
from reproduce.readiness import Blocked, RefusedError, launcher
from reproduce.runs import checkpoint
from reproduce.runs.claims import Claims
from reproduce.runs.lease import Lease
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec
from reproduce.tracking import tags

if TYPE_CHECKING:
    from reproduce.tracking.store import Store
    from reproduce.tracking.tags import Record

NEWEST = 200
"""Finished runs of each kind and scale that are looked at for the nearest and for hours: a store may hold
thousands."""
ALIKE = 20
"""The newest runs that are alike of which the median is taken."""
TOLD = 3
"""Settings that are named where the nearest finished run differs in more."""
SPEEDS = {"GPU": 18e12, "CPU": 20e9}
"""Operations a second, assumed where no finished run says more; rough, a factor of three either way.

GPU: NVIDIA's ResNet-50 trains on 5 816 images/s on eight V100 in mixed precision
(NVIDIA/DeepLearningExamples, June 2019), each image
3 x 8.2e9 operations. CPU: one core of a small cloud machine at the smoke scale, all around the network
included: 19 200 views of MSBReg, 25e6 operations each, in 22 s.
"""
BOTH_NETWORKS = 4
"""Forward passes that a view's work amounts to: online, forward and backward, and the target's. Heads are
left out."""
ALIKE_IN = ("backbone", "precision", "dataset.size", "augmentation.small.size")
"""Settings in which two pretrainings must agree to take the same time for a view."""

Action = Literal["reuse", "attach", "resume", "run", "blocked"]


class Estimate(NamedTuple):
    """How long a run takes alone on its GPU or core."""

    seconds: float
    source: Literal["finished runs", "FLOPs"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run and what becomes of it."""

    spec: Spec
    action: Action
    why: str
    left: float = 1.0
    """The part of its work that is to be done, where it is started."""
    devices: int = 1
    """GPUs or cores that it takes at once."""
    estimate: Estimate | None = None
    """Of the whole run on one of them; None: not known, or nothing is to be done."""

    @property
    def starts(self) -> bool:
        """Whether it would be started."""
        return self.action in ("resume", "run")

    @property
    def seconds(self) -> float | None:
        """Of all its devices together, where it is started; None: not known."""
        return self.left * self.estimate.seconds if self.estimate else None

    def __str__(self) -> str:
        return f"{self.action:<7}  {self.spec.id}  {tags.title(self.spec)}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All steps, upstream first, and what they take together."""

    steps: tuple[Step, ...]
    device: Literal["GPU", "CPU"]
    """What each run takes one of: a GPU, or a core."""
    at_once: int
    """Runs of one device that go on at the same time."""
    disk: int | None
    """Bytes that what is to be done leaves behind and takes meanwhile; None: not known."""
    problems: tuple[str, ...] = ()
    """What the blocked runs lack, and what would get it."""

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that name the runs and what becomes of each, in their order."""
        text = json.dumps([(step.spec.id, step.action) for step in self.steps])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def todo(self) -> tuple[Step, ...]:
        """What would be started."""
        return tuple(step for step in self.steps if step.starts)

    @property
    def hours(self) -> float | None:
        """Of a GPU or core; None: they are not known of every run."""
        seconds = [step.seconds for step in self.todo]
        return None if None in seconds else math.fsum(cast(list[float], seconds)) / 3600

    def lines(self) -> Iterator[str]:
        """What `--dry-run` prints."""
        yield from map(str, self.steps)
        yield from self.problems
        counts = Counter(step.action for step in self.steps)
        told = [f"{counts[action]} {word}" for action, word in ACTIONS.items() if counts[action]]
        yield f"{counted(len(self.steps), 'run')}: {', '.join(told) or 'none'}."
        if self.todo:
            yield from self._estimates()
        yield f"Plan {self.digest}: --apply {self.digest} runs it and no other."

    def _estimates(self) -> Iterator[str]:
        known = [step for step in self.todo if step.estimate]
        seconds = math.fsum(step.seconds or 0.0 for step in known)
        at_once = min(self.at_once, sum(step.devices for step in self.todo))
        one_each = all(step.devices == 1 for step in self.todo)
        runs = f"{at_once} {'run' if one_each else self.device}{'s' if at_once > 1 else ''} at once"
        if len(known) < len(self.todo):
            partly = (
                f"; {hours(seconds)} for the {counted(len(known), 'run')} of which it is" if known else ""
            )
            yield f"{self.device}-hours: not known{partly}. Wall time: not known, {runs}."
        else:
            yield f"{self.device}-hours: {hours(seconds)}. Wall time: {clock(makespan(self.todo, at_once))}, {runs}."
        sources = Counter(step.estimate.source if step.estimate else "" for step in self.todo)
        if sources["finished runs"]:
            yield f"  {sources['finished runs']} estimated from finished runs that are alike."
        if sources["FLOPs"]:
            yield f"  {sources['FLOPs']} estimated from FLOPs, roughly, at an assumed {SPEEDS[self.device]:.1e} a second."
        if sources[""]:
            yield f"  {sources['']} not known: {', '.join(sorted({_kind(step.spec) for step in self.todo if not step.estimate}))}."
        if attached := sum(step.action == "attach" for step in self.steps):
            yield f"  {attached} that somebody else does {'is' if attached == 1 else 'are'} not counted."
        yield f"Disk: {'not known' if self.disk is None else size(self.disk, digits=2)}."


ACTIONS: dict[Action, str] = {
    "reuse": "finished",
    "attach": "done by others",
    "resume": "to resume",
    "run": "to do",
    "blocked": "blocked",
}
"""How the last line counts what becomes of runs."""


def forecast(
    wanted: Sequence[Job], blocked: Callable[[list[Job]], Mapping[str, Blocked]], store: Store, site: Site
) -> Forecast:
    """What the real command would do with the runs `wanted`, upstream first, and what that takes.

    Args:
        blocked: says which of the runs that are not finished cannot start.

    Raises:
        ConnectionError: the tracking server does not answer.
    """
    where = launcher(site)
    records = store.records(job.spec.id for job in wanted)
    claimed = Claims(site).leases(job.spec.id for job in wanted)
    unfinished = [
        job for job in wanted if job.spec.id not in records or records[job.spec.id].state.state != "finished"
    ]
    lacking = blocked([job for job in unfinished if job.spec.id not in claimed])
    past: dict[tuple[str, str], Past] = {}
    device, model = where.device(site)
    steps = []
    for job in wanted:
        spec_id = job.spec.id
        step = action(
            job.spec, records.get(spec_id), claimed.get(spec_id), lacking.get(spec_id), site.runs / spec_id
        )
        step = replace(step, devices=job.devices(site))
        if step.starts:
            key = job.spec.name, job.request.scale
            if key not in past:
                past[key] = Past(store.newest_finished(*key, NEWEST))
            step = _completed(step, past[key], device, model)
        steps.append(step)
    at_once = where.at_once(site)
    problems = dict.fromkeys(lacking[step.spec.id].problem.why for step in steps if step.action == "blocked")
    disk = disk_needed([step.spec for step in steps if step.starts], store, at_once)
    return Forecast(steps=tuple(steps), device=device, at_once=at_once, disk=disk, problems=tuple(problems))


def check(made: Forecast, digest: str, most_hours: float | None) -> None:
    """Refuses what the command line does not allow.

    Args:
        digest: of the only plan that may be run; empty: any.
        most_hours: of a GPU or core; None: any number.

    Raises:
        RefusedError: it is another plan, or takes more hours, or nobody knows how many.
    """
    if digest and digest != made.digest:
        raise RefusedError(
            f"The plan is not {digest}: it is {made.digest} now. Look at it with --dry-run, then --apply {made.digest}."
        )
    if most_hours is None:
        return
    if made.hours is None:
        unknown = sum(step.estimate is None for step in made.todo)
        raise RefusedError(
            f"--max-gpu-hours is {most_hours:g}, and the hours of {unknown} of {len(made.todo)} runs are not known: leave it out, or take "
            "those runs away by --rows or --columns."
        )
    if made.hours > most_hours:
        raise RefusedError(
            f"--max-gpu-hours is {most_hours:g}, and the plan takes some {hours(3600 * made.hours)} {made.device}-hours: allow more, or "
            "take fewer runs by --rows, --columns or --seeds."
        )


# What becomes of a run


def action(
    spec: Spec, record: Record | None, lease: Lease | None, blocked: Blocked | None, folder: Path
) -> Step:
    """What becomes of a run, and why as far as its own record and its folder say it.

    Args:
        record: what the store knows of it; None: nothing.
        lease: of who does it; None: nobody.
        folder: where its checkpoints are.
    """
    state = record.state.state if record else None
    if record and state == "finished":
        return Step(spec=spec, action="reuse", why=f"finished {_finished(record)}")
    if lease:
        return Step(spec=spec, action="attach", why=_attached(lease))
    if blocked:
        return Step(spec=spec, action="blocked", why=str(blocked))
    elsewhere = (
        f"{record.state.reason} began it, with another folder of runs"
        if record and state == "running"
        else ""
    )
    before = elsewhere or (f"{state}, {record.state.reason}" if record else "")
    there = _checkpoint(spec, folder)
    if there is not None:
        told, left = there
        return Step(
            spec=spec, action="resume", why=f"{told} is there{f'; {before}' if before else ''}", left=left
        )
    return Step(spec=spec, action="run", why=f"{before}; it starts anew" if before else "")


def _attached(lease: Lease) -> str:
    """Who does a run, and how far it is."""
    if lease.state != "running":
        return f"{lease.who} waits in the queue"
    if lease.progress is None or not lease.progress.total:
        return f"{lease.who} does it"
    note = f", {lease.progress.note}" if lease.progress.note else ""
    return f"{lease.who} does it: {lease.progress.done / lease.progress.total:.0%}{note}"


def _checkpoint(spec: Spec, folder: Path) -> tuple[str, float] | None:
    """The newest checkpoint in words, and the part of the work behind it; None: there is none."""
    total = _length(spec)
    done = min(checkpoint.newest(folder), total)
    if not done:
        return None
    unit = "iteration" if isinstance(spec, Evaluate) and isinstance(spec.protocol, Detection) else "epoch"
    return f"a checkpoint of {unit} {round(done, 2):.10g} of {total}", 1 - done / total


def _finished(record: Record) -> str:
    when = f"{record.ended.astimezone():%Y-%m-%d}" if record.ended else "at a time not recorded"
    return f"{when}, commit {record.commit[:7]}{' and changed files' if record.dirty else ''}"


def _length(spec: Spec) -> int:
    """What checkpoints count: epochs or iterations; 0: it has none."""
    if isinstance(spec, Pretrain):
        return spec.epochs
    return spec.protocol.length


class Past(tuple["Record", ...]):
    """Finished runs of a kind, the newest first, made ready to be compared with each run of a plan."""

    @cached_property
    def _shared(self) -> frozenset[tuple[str, str]]:
        """The settings that all of them have."""
        return frozenset.intersection(*(frozenset(record.settings.items()) for record in self))

    @cached_property
    def _own(self) -> list[frozenset[tuple[str, str]]]:
        """What each has besides."""
        return [frozenset(record.settings.items()) - self._shared for record in self]

    def nearest(self, ours: Mapping[str, str]) -> Record | None:
        """The run that has the fewest `_differences` from these settings, the newest of several; None: there
        is no run."""
        if not self:
            return None
        apart = self._shared.symmetric_difference(ours.items())  # few, so that each comparison is of few
        counts = [len({key for key, value in apart ^ own if value != "none"}) for own in self._own]
        return self[counts.index(min(counts))]


def _completed(step: Step, past: Past, device: str, model: str) -> Step:
    """A step that is to be done, with its estimate and, where it was never begun, the nearest finished
    run."""
    why = step.why or nearest(step.spec, past)
    return replace(step, why=why, estimate=estimate(step.spec, past, device, model))


def nearest(spec: Spec, past: Past) -> str:
    """Why a run is not reused: the finished run that differs in the fewest settings, the newest of several,
    in words.

    Args:
        past: finished runs of its kind, the newest first.
    """
    ours = tags.settings(spec)
    like = past.nearest(ours)
    if like is None:
        return "no finished run with these settings, nor any of its kind at this scale"
    found = _differences(ours, like.settings)
    told = [f"{key}: {theirs}, here {here}" for key, (theirs, here) in itertools.islice(found.items(), TOLD)]
    if not told:
        return "no finished run with these settings; the nearest has the same under another id, from another version of the code"
    more = f" and {len(found) - TOLD} more" if len(found) > TOLD else ""
    among = f" of the newest {NEWEST}" if len(past) == NEWEST else ""
    return f"no finished run with these settings; the nearest{among} differs in {'; '.join(told)}{more}"


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Settings that differ, as (theirs, ours); one that a run lacks counts as none, since one that was added
    later is missing."""
    keys = dict.fromkeys((*ours, *theirs))
    pairs = {key: (theirs.get(key, "none"), ours.get(key, "none")) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


# How long it takes


def estimate(spec: Spec, past: Sequence[Record], device: str, model: str) -> Estimate | None:
    """How long `spec` takes from its start to its end; None: not known.

    Args:
        past: finished runs of its kind, the newest first.
        device: `GPU` or `CPU`.
        model: its name.
    """
    ours = tags.settings(spec)
    usable = (record for record in past if record.device == model and record.attempts == 1 and record.ended)
    scaled = (_scaled(ours, record, isinstance(spec, Pretrain)) for record in usable)
    found = list(itertools.islice((each for each in scaled if each is not None), ALIKE))
    if found:
        return Estimate(statistics.median(found), "finished runs")
    operations = _pretraining(spec) if isinstance(spec, Pretrain) else _evaluation(spec)
    return None if operations is None else Estimate(operations / SPEEDS[device], "FLOPs")


def _scaled(ours: Mapping[str, str], record: Record, pretraining: bool) -> float | None:
    """The seconds of a finished run in proportion to ours; None: the two are not alike, or cannot be
    compared."""
    theirs = record.settings
    assert record.ended is not None
    seconds = (record.ended - record.state.started).total_seconds()
    if not pretraining:
        keys = {
            key
            for key in (*ours, *theirs)
            if key.startswith(("protocol", "dataset")) or key == "encoder.backbone"
        }
        return seconds if all(ours.get(key) == theirs.get(key) for key in keys) else None
    if any(ours.get(key, "none") != theirs.get(key, "none") for key in ALIKE_IN):
        return None
    works = [_work(settings) for settings in (ours, theirs)]
    same = {key: value for key, value in ours.items() if key.startswith("dataset")} == {
        key: value for key, value in theirs.items() if key.startswith("dataset")
    }
    images = (
        [1, 1]
        if same
        else [_num_images(settings, settings["dataset.pretrain_split"]) for settings in (ours, theirs)]
    )
    if None in images or not works[1] or not images[1]:
        return None
    return seconds * (works[0] * cast(int, images[0])) / (works[1] * images[1])


def _work(settings: Mapping[str, str]) -> float:
    """Views of each image that a pretraining sees."""
    return float(settings["epochs"]) * float(settings["method.num_views"])


def _num_images(settings: Mapping[str, str], split: str) -> int | None:
    """Images of a split of the data set in a run's settings; None: not known without looking."""
    published = _published(settings["dataset"])
    counts = [published.get(part) or int(settings.get(f"dataset.num_{part}", 0)) for part in split.split("+")]
    return sum(counts) if all(counts) else None


@cache
def _published(dataset: str) -> Mapping[str, int]:
    """What a data set says of the sizes of its splits; only its own module is imported, as some of the others
    take seconds."""
    try:
        module = importlib.import_module(f"reproduce.data.{dataset}")
    except ModuleNotFoundError:  # of synthetic scenes, which share a module, the settings say it
        return {}
    found = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Dataset)
    ]
    return next((value.published for value in found if getattr(value, "name", "") == dataset), {})


def _pretraining(spec: Pretrain) -> float | None:
    """Operations of a pretraining with an online and a target network."""
    settings, network = tags.settings(spec), cost.network(spec.backbone)
    images = _num_images(settings, settings.get("dataset.pretrain_split", ""))
    if network is None or images is None:
        return None
    augmentation, size = spec.augmentation, spec.dataset.size
    views = range(spec.method.num_views)
    return (
        BOTH_NETWORKS
        * spec.epochs
        * images
        * math.fsum(network.operations(augmentation.size_of_view(view, size)) for view in views)
    )


def _evaluation(spec: Evaluate) -> float | None:
    """Operations of what an evaluation sends through the encoder, or of a detector's training."""
    network, dataset = cost.network(spec.encoder.backbone), spec.dataset
    if network is None:
        return None
    if isinstance(spec.protocol, Detection):
        return detectors.operations(spec.protocol, network)
    if not isinstance(dataset, Dataset):
        return None
    settings = tags.settings(spec)
    counts = [_num_images(settings, split) for split in (dataset.train_split, dataset.test_split)]
    if counts[0] is None or counts[1] is None:
        return None
    passes = spec.protocol.passes(counts[0], counts[1])
    return None if passes is None else passes * network.operations(dataset.size)


def makespan(steps: Iterable[Step], at_once: int) -> float:
    """Seconds until all is done, where each step starts as soon as what it needs is done and its devices are
    free, as the launcher does it.

    A step on several devices takes its time divided by their number, and is not overtaken while it waits for
    them.
    """
    waiting = {step.spec.id: step for step in steps}
    unfinished = set(waiting)
    running: list[tuple[float, str, int]] = []
    now, free = 0.0, max(at_once, *(step.devices for step in waiting.values()), 1)
    while waiting or running:
        for spec_id, step in list(waiting.items()):
            if {spec.id for spec in step.spec.needs()} & unfinished:
                continue
            if step.devices > free:
                break
            free -= step.devices
            del waiting[spec_id]
            heapq.heappush(running, (now + (step.seconds or 0.0) / step.devices, spec_id, step.devices))
        now, ended, devices = heapq.heappop(running)
        unfinished.discard(ended)
        free += devices
    return now


def disk_needed(specs: Iterable[Spec], store: Store, at_once: int) -> int | None:
    """Bytes that the runs leave behind and take meanwhile, by the rule of `invoke doctor`; None: a network's
    size is not known."""
    from reproduce.commands import disk

    try:
        return disk.disk_needed(specs, store, at_once, _sizes, _parameters)
    except LookupError:
        return None


def _sizes(run: Pretrain) -> cost.Sizes:
    heads = getattr(run.method, "heads", None)
    if not isinstance(heads, Heads):
        raise NotFoundError(f"The heads of {run.method.name} are not known without building them.")
    return cost.siamese(_network(run.backbone), heads)


def _parameters(backbone: str) -> int:
    return _network(backbone).parameters


def _network(backbone: str) -> cost.Network:
    found = cost.network(backbone)
    if found is None:
        raise NotFoundError(f"The layers of {backbone} are not known without building it.")
    return found


def _kind(spec: Spec) -> str:
    """What a run is, where nobody knows how long it takes."""
    return (
        f"pretraining on {spec.dataset.name}"
        if isinstance(spec, Pretrain)
        else f"{spec.protocol.name} on {spec.dataset.name}"
    )
