"""The plan of a command: every run with its action, hours, disk, and a digest of the plan.

    made = forecast(jobs(requests), partial(blocked, site=site), Store(site), site)
    print("\\n".join(made.lines()))
    made.digest                                    # '3f0c2a9d1e77', the argument of `--apply`

Each run is listed once, with the reason of its action. Hours come from comparable finished runs in the store
that took one attempt on a device of the same name. Without any, they come from what `invoke rehearse`
measured on such a device, then from the number of operations, at an assumed speed (`SPEEDS`). If that is
unknown too, the hours are unknown. The hours on another card (`--on`) are those here, or on any known card,
times the ratio of the cards' speeds (`cards.py`), or follow from the operations. Needs neither torch nor
pandas.
"""

from __future__ import annotations

import hashlib
import heapq
import importlib
import itertools
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from reproduce.commands import rehearsed
from reproduce.commands.rehearsed import Count, Measured
from reproduce.commands.status import progress
from reproduce.data import inventory
from reproduce.data.dataset import Dataset
from reproduce.detection import cost as detectors
from reproduce.messages import NotFoundError, clock, counted, hours, size
from reproduce.methods.method import Method
from reproduce.nn import cost
from reproduce.overrides import full_name
from reproduce.plan import Job, components
from reproduce.protocols.detection import Detection
from reproduce.readiness import Blocked, Counts, RefusedError, cores_of, launcher
from reproduce.report.counts import incomplete
from reproduce.resources import cards
from reproduce.resources.cards import Card
from reproduce.runs import checkpoint
from reproduce.runs.claims import Claims
from reproduce.runs.cores import Share
from reproduce.runs.lease import Lease
from reproduce.runs.progress import RATE
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec
from reproduce.tracking import tags

if TYPE_CHECKING:
    from reproduce.tracking.reuse import Reuse
    from reproduce.tracking.store import Store
    from reproduce.tracking.tags import Record

NEWEST = 200
"""Maximum number of finished runs of each kind and scale that are searched; a store may contain thousands."""
ALIKE = 20
"""Number of the newest comparable runs whose median is used."""
MAX_NAMED = 3
"""Number of settings that are named if the nearest finished run differs in more."""
MOST_LISTED = 3
"""Maximum number of runs of one action and reason that a plan lists one by one without --verbose."""
NEAREST = re.compile(r"(?P<before>.*); the nearest(?: of the newest \d+)? differs in (?P<settings>.*)")
"""The reason of a run whose nearest finished run differs in some settings."""
NEEDED = re.compile(r"run [0-9a-f]{12}, which it needs,")
"""A run that another one needs, in the reason of the latter."""
RUN_ID = re.compile(r"run [0-9a-f]{12}")
"""A run in the reason of another run."""
SPEEDS = {"GPU": 18e12, "CPU": 20e9}
"""Operations per second, assumed without finished runs; they may be wrong by a factor of three.

GPU: NVIDIA's ResNet-50 trains on 5 816 images/s on eight V100 in mixed precision
(NVIDIA/DeepLearningExamples, June 2019), each image 3 x 8.2e9 operations. CPU: one core of a small cloud
machine at the smoke scale, including everything around the network: 19 200 views of MSBReg, 25e6 operations
each, in 22 s."""
START = {"GPU": 10.0, "CPU": 3.0}
"""Seconds of a run outside of its work, assumed without finished runs that show them: process, libraries,
record, images, encoder.

CPU: a linear evaluation at the smoke scale takes 3 s on a small cloud machine, its passes .2 s. GPU: of a
pretraining of 77 s at the small scale on one H200, 15 s were outside of training, 40 checkpoints included."""
SHORT = 600.0
"""Maximum seconds of a finished pretraining that shows its start: in others, an error of 2 % in images/s
exceeds it."""
TRUSTED = 10
"""Ratio of an estimate to its start from which on the work decides it."""
ALIKE_IN = (
    "backbone",
    "precision",
    "dataset.size",
    "augmentation.small.size",
    "augmentation.patches.size",
    "augmentation.patches.num_whole",
)
"""Settings that two pretrainings must share to take the same time per view."""

Action = Literal["reuse", "attach", "resume", "run", "blocked"]


class Estimate(NamedTuple):
    """The duration of a run alone on its GPU or core."""

    seconds: float
    source: Literal["finished runs", "rehearsed", "FLOPs"]
    on: str = ""
    """Device that the source is about: of a rehearsal its own, of another card the measured one."""
    start: float = 0.0
    """Seconds before its first step ends, which a resumed run spends again; a part of `seconds`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run and its action."""

    spec: Spec
    action: Action
    why: str
    left: float = 1.0
    """Fraction of its work that remains, if it is started."""
    devices: int = 1
    """Number of GPUs or cores that it uses at once."""
    estimate: Estimate | None = None
    """Estimate of the whole run on one device, of a blocked one too; None if it is unknown, or if nothing is
    to be done."""

    @property
    def starts(self) -> bool:
        """True if the run would be started."""
        return self.action in ("resume", "run")

    @property
    def seconds(self) -> float | None:
        """Remaining seconds, summed over its devices; None if they are unknown or nothing is to be done."""
        if self.estimate is None:
            return None
        return self.estimate.start + self.left * (self.estimate.seconds - self.estimate.start)

    @property
    def trusted(self) -> bool:
        """True if an estimate from a card's datasheet is right within a factor of two.

        That was measured for ResNets in half precision. A run of seconds depends on its start.
        """
        if self.estimate is None or self.estimate.source != "FLOPs":
            return False
        long = self.estimate.seconds >= TRUSTED * self.estimate.start
        return long and isinstance(self.spec, Pretrain) and self.spec.precision == "bfloat16"

    def __str__(self) -> str:
        return f"{self.action:<7}  {self.spec.id}  {tags.title(self.spec)}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All steps, upstream first, and their total cost."""

    steps: tuple[Step, ...]
    device: Literal["GPU", "CPU"]
    """Kind of device that each run uses: a GPU or a core."""
    at_once: int
    """Number of one-device runs that are executed at the same time."""
    disk: int | None
    """Bytes that the runs leave behind or occupy for a time; None if unknown."""
    changes: tuple[str, ...] = ()
    """Settings that the command changed, by their full names, such as `optimizer.base_lr=0.1`."""
    problems: tuple[str, ...] = ()
    """Descriptions of what the blocked runs lack, and of what would provide it."""
    other_data: tuple[str, ...] = ()
    """A phrase for each split that does not have exactly the published images."""
    card: Card | None = None
    """Card of the estimates if it is not this machine's."""
    memory: tuple[int, ...] = ()
    """Bytes that the runs need on a GPU, each as far as it was rehearsed on any."""

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that identify the runs and their actions, in order."""
        text = json.dumps([(step.spec.id, step.action) for step in self.steps])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def todo(self) -> tuple[Step, ...]:
        """Steps that would be started."""
        return tuple(step for step in self.steps if step.starts)

    @property
    def blocked(self) -> tuple[Step, ...]:
        """Steps that cannot start."""
        return tuple(step for step in self.steps if step.action == "blocked")

    @property
    def hours(self) -> float | None:
        """Hours of a GPU or core; None if they are unknown for some run."""
        if any(step.seconds is None for step in self.todo):
            return None
        return math.fsum(step.seconds or 0.0 for step in self.todo) / 3600

    def lines(self, *, verbose: bool = True) -> Iterator[str]:
        """Yield the lines that `--dry-run` prints.

        Args:
            verbose: True for a line about each run; False for one about each group of more than MOST_LISTED.
        """
        yield from map(str, self.steps) if verbose else _grouped(self.steps)
        yield from self.problems
        counts = Counter(step.action for step in self.steps)
        parts = [f"{counts[action]} {word}" for action, word in ACTIONS.items() if counts[action]]
        yield f"{counted(len(self.steps), 'run')}: {', '.join(parts) or 'none'}."
        if self.other_data:
            yield f"Not the published data: {'; '.join(self.other_data)}."
        if self.changes:
            yield f"Changed settings: {', '.join(self.changes)}."
        if self.todo:
            yield from self.estimates()
        if self.blocked:
            yield from self._blocked()
        if self.card:
            yield from self._about(self.card)
        yield f"Plan {self.digest}: --apply {self.digest} runs exactly this plan."

    def estimates(self) -> Iterator[str]:
        """Yield the lines on hours, their origin, wall time and disk of the runs that would be started."""
        yield f"{self.device}-hours: {_hours_in_words(self.todo)}. {self._wall_time(self.todo)}."
        yield from self._sources(self.todo)
        if attached := sum(step.action == "attach" for step in self.steps):
            yield f"  Not counted: {counted(attached, 'run')} of other processes."
        yield f"Disk: {'unknown' if self.disk is None else size(self.disk, digits=2)}."

    def _blocked(self) -> Iterator[str]:
        """Yield the lines on hours of the runs that cannot start."""
        cost = _hours_in_words(self.blocked)
        hours_of_all = f"{cost} {self.device}-hours" if cost[0].isdigit() else f"{self.device}-hours {cost}"
        every = self._wall_time((*self.todo, *self.blocked))
        every = every.replace("Wall time", "Wall time with them") if self.todo else every
        yield f"Blocked: {counted(len(self.blocked), 'run')}, {hours_of_all}. {every}."
        yield from self._sources(self.blocked)

    def _wall_time(self, steps: Sequence[Step]) -> str:
        """Return the time until all of these steps are done, in words."""
        at_once = min(self.at_once, sum(step.devices for step in steps))
        one_each = all(step.devices == 1 for step in steps)
        parallel = f"{counted(at_once, 'run' if one_each else self.device)} at once"
        known = all(step.estimate for step in steps)
        return f"Wall time: {clock(makespan(steps, at_once)) if known else 'unknown'}, {parallel}"

    def _sources(self, steps: Sequence[Step]) -> Iterator[str]:
        """Yield one line for each origin of the hours of these steps."""
        counts = Counter(
            (step.estimate.source, step.estimate.on, bool(self.card) and step.trusted)
            for step in steps
            if step.estimate
        )
        for source, on, trusted in sorted(counts, key=lambda key: (ORIGINS.index(key[0]), key[1:])):
            number = counts[source, on, trusted]
            if self.card and source == "FLOPs":
                how = "; within a factor of two" if trusted else ", roughly"
                yield f"  {number} estimated for {self.card.title} from its datasheet{how}."
            elif self.card:
                what = "finished runs" if source == "finished runs" else "a rehearsal"
                yield f"  {number} scaled to {self.card.title} from {what} on {on}."
            elif source == "FLOPs":
                speed = f"{SPEEDS[self.device]:.1e} per second"
                yield f"  {number} estimated roughly, from FLOPs at an assumed {speed}."
            elif source == "rehearsed":
                yield f"  {number} rehearsed on {on}."
            else:
                yield f"  {number} estimated from comparable finished runs."
        if unknown := [step.spec for step in steps if not step.estimate]:
            yield f"  {len(unknown)} unknown: {', '.join(sorted({_kind(spec) for spec in unknown}))}."

    def _about(self, card: Card) -> Iterator[str]:
        """Yield the lines on what a card lacks for the plan."""
        if large := [each for each in self.memory if each > card.memory]:
            yield (
                f"{card.title} has {size(card.memory)}, but {counted(len(large), 'run')} needed up to "
                f"{size(max(large))} when rehearsed: `devices` in the site file shares a batch among several."
            )
        specs = [step.spec for step in (*self.todo, *self.blocked)]
        halves = any(isinstance(spec, Pretrain) and spec.precision == "bfloat16" for spec in specs)
        if halves and not card.bfloat16:
            yield (
                f"{card.title} has no bfloat16, the precision of this plan, in hardware. The estimates are "
                "those of float16, so these runs take several times longer."
            )


def _hours_in_words(steps: Sequence[Step]) -> str:
    """Return the hours of steps, or for how many they are unknown and what the others need."""
    known = [step.seconds or 0.0 for step in steps if step.estimate]
    num_unknown = len(steps) - len(known)
    if not num_unknown:
        return hours(math.fsum(known))
    if not known:
        return "unknown"
    others = "the other one needs" if len(known) == 1 else f"the other {len(known)} need"
    return f"unknown for {num_unknown} of {len(steps)} runs; {others} {hours(math.fsum(known))}"


ACTIONS: dict[Action, str] = {
    "reuse": "finished",
    "attach": "executed by other processes",
    "resume": "to resume",
    "run": "to run",
    "blocked": "blocked",
}
"""Words for the actions in the line that counts them."""
ORIGINS = ("finished runs", "rehearsed", "FLOPs")
"""Origins of an estimate, the most trusted first."""


def forecast(
    wanted: Sequence[Job],
    blocked: Callable[[list[Job]], Mapping[str, Blocked]],
    store: Store,
    site: Site,
    counts: Counts | None = None,
    card: Card | None = None,
) -> Forecast:
    """Return what the real command would do with the runs `wanted`, upstream first, and what that costs.

    Args:
        blocked: function that returns the unfinished runs that cannot start.
        counts: numbers of images that `blocked` looked up.
        card: card for which hours are estimated; None for the devices of this site.

    Raises:
        ConnectionError: the tracking server does not answer.
    """
    from reproduce.tracking.reuse import choose

    where, counts = launcher(site), counts or Counts(site)
    found = choose(store, [job.spec for job in wanted], site)
    records = store.records((job.spec.id for job in wanted), found.finished)
    claimed = Claims(site).leases(job.spec.id for job in wanted)
    unfinished = [job for job in wanted if job.spec.id not in found.finished]
    lacking = blocked([job for job in unfinished if job.spec.id not in claimed])
    hours_of = Hours(store, site, card, counts)
    hours_of.prepare(wanted)
    memory: list[int] = []
    steps = []
    for job in wanted:
        spec_id = job.spec.id
        step = action(
            job.spec,
            records.get(spec_id),
            claimed.get(spec_id),
            lacking.get(spec_id),
            site.runs / spec_id,
            found,
        )
        step = replace(step, devices=job.devices(site))
        if step.starts:
            step = replace(step, why=step.why or nearest(step.spec, hours_of.past(job)))
        if step.starts or step.action == "blocked":
            step = replace(step, estimate=hours_of.of(job))
            memory += hours_of.memory(job)
        steps.append(step)
    at_once = (site.jobs or 1) * site.devices if card else where.at_once(site)
    blocking = [lacking[step.spec.id] for step in steps if step.action == "blocked"]
    problems = dict.fromkeys(remedy for each in blocking for remedy in each.remedies)
    disk = _disk([step.spec for step in steps if step.starts], store, at_once)
    changes = {
        change: None for request in {job.request: None for job in wanted} for change in request.changed()
    }
    other_data = (
        *incomplete([job.spec for job in wanted], found.finished),
        *counts.shortfalls(job.spec for job in unfinished),
    )
    return Forecast(
        steps=tuple(steps),
        device=hours_of.device,
        at_once=at_once,
        disk=disk,
        changes=tuple(changes),
        problems=tuple(problems),
        other_data=tuple(dict.fromkeys(other_data)),
        card=card,
        memory=tuple(memory),
    )


def to_run(todo: Sequence[Job], store: Store, site: Site) -> list[Step]:
    """Return the steps of runs that are to be executed, with their estimates, to follow them."""
    hours_of = Hours(store, site)
    hours_of.prepare(todo)
    steps = []
    for job in todo:
        found = _checkpoint(job.spec, site.runs / job.spec.id)
        steps.append(
            Step(
                spec=job.spec,
                action="resume" if found else "run",
                why="",
                left=found[1] if found else 1.0,
                devices=job.devices(site),
                estimate=hours_of.of(job),
            )
        )
    return steps


def fresh(wanted: Sequence[Job], hours_of: Hours, site: Site) -> list[Step]:
    """Return the steps of runs as if none of them had begun, with their estimates."""
    hours_of.prepare(wanted)
    return [
        Step(spec=job.spec, action="run", why="", devices=job.devices(site), estimate=hours_of.of(job))
        for job in wanted
    ]


class Hours:
    """Estimates for the devices of a site, or for another card."""

    def __init__(
        self, store: Store | None, site: Site, card: Card | None = None, counts: Counts | None = None
    ) -> None:
        """Read what is known about the devices.

        Args:
            store: source of finished runs to compare with; None to compare with none.
            card: card for which hours are estimated; None for the devices of the site.
            counts: numbers of images that the caller needs too.
        """
        self._counts = counts or Counts(site)
        self.device, self._model = launcher(site).device(site)
        if card:
            self.device = "GPU"
        self._store, self._site, self._card = store, site, card
        self._measured = rehearsed.read(site)
        self._past: dict[tuple[str, str], Past] = {}
        self._shares: dict[str, Share] = {}
        gpus = [name for name in self._measured.devices if cards.of_device(name)]
        if not self._model and self.device == "GPU" and len(gpus) == 1:  # a cluster's, where it rehearsed
            self._model = gpus[0]

    def past(self, job: Job) -> Past:
        """Return the finished runs of a run's kind and scale, the newest first."""
        key = job.spec.name, job.request.scale
        if key not in self._past:
            self._past[key] = Past(self._store.newest_finished(*key, NEWEST) if self._store else ())
        return self._past[key]

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Find out how these runs would be executed, at once: the store is asked about all of them."""
        if not self._measured:
            return
        if self._card:  # on another machine, whose cores are unknown
            self._shares |= {job.spec.id: Share(None, job.devices(self._site)) for job in jobs}
        else:
            self._shares |= cores_of(jobs, self._site)

    def site_of(self, job: Job) -> Site:
        """Return the site as a run sees it."""
        if not self._measured:
            return self._site
        if job.spec.id not in self._shares:
            self.prepare([job])
        return rehearsed.seen_by(job, self._shares[job.spec.id], self._site, gpu=self.device == "GPU")

    def coverage(self, jobs: Sequence[Job]) -> tuple[int, int]:
        """Return how many shapes of these runs were rehearsed on these devices, and how many there are."""
        self.prepare(jobs)
        needed = {
            shape
            for job in jobs
            for site in [self.site_of(job)]
            for shape in rehearsed.shapes(job.spec, site, job.devices(site))
        }
        on = [self._model]
        if self._card:
            on = [name for name in self._measured.devices if cards.of_device(name)]
        known = (shape for shape in needed if any(self._measured.find(shape, name) for name in on))
        return sum(1 for _ in known), len(needed)

    def memory(self, job: Job) -> list[int]:
        """Return the bytes that a run needs on a GPU, or [] if it was rehearsed on none."""
        site = self.site_of(job)
        needed = rehearsed.shapes(job.spec, site, job.devices(site)) if self._measured else ()
        found = [self._measured.find(shape, name) for shape in needed for name in self._measured.devices]
        known = [each.memory for each in found if each and each.memory is not None]
        return [max(known)] if known else []

    def counting(self, job: Job) -> Count:
        """Return the function that counts a run's images: those here if it can start with them.

        Otherwise, the published ones count, since the run waits for other data.
        """
        problem = self._counts.problem(job.spec, job.request.scale)
        return num_images if problem else self._count

    def _count(self, spec: Spec, split: str) -> int | None:
        found = self._counts.of(spec.dataset, split)
        return found if isinstance(found, int) else num_images(spec, split)

    def of(self, job: Job) -> Estimate | None:
        """Return the estimate of a whole run, or None if it is unknown."""
        given = (
            job.spec,
            self.past(job),
            self._measured,
            job.devices(self._site),
            self.site_of(job),
            self.counting(job),
        )
        if self._card:
            return estimate_on(self._card, *given)
        return estimate(job.spec, given[1], self.device, self._model, *given[2:])


def _grouped(steps: Iterable[Step]) -> Iterator[str]:
    """Yield the lines about the steps, one for a large group with the same action and reason.

    The settings in which the nearest finished runs differ are those of the whole group, without values. A
    reason that contains the id of a run is the same for every run.
    """
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        found = NEAREST.fullmatch(step.why)
        general = RUN_ID.sub("a run", NEEDED.sub("the pretraining that each needs", step.why))
        why = found["before"] if found else general
        groups.setdefault((step.action, why), []).append(step)
    large = False
    for (action, why), members in groups.items():
        if len(members) <= MOST_LISTED or action == "attach":
            yield from map(str, members)
            continue
        large = True
        parts = dict.fromkeys(
            part.partition(": ")[0]
            for step in members
            if (found := NEAREST.fullmatch(step.why))
            for part in found["settings"].split("; ")
        )
        names = [part for part in parts if not part.startswith("and ")]
        more = " and others" if len(names) < len(parts) else ""
        nearest = f"; the nearest differ in {', '.join(names)}{more}" if names else ""
        yield f"{action:<7}  {counted(len(members), 'run')}: {why}{nearest}"
    if large:
        yield "--verbose lists each run."


def check(made: Forecast, digest: str, most_hours: float | None) -> None:
    """Refuse a plan that the command line does not allow.

    Args:
        digest: digest of the only plan that may run; empty for any.
        most_hours: maximum number of hours of a GPU or core; None for any number.

    Raises:
        RefusedError: the plan has another digest, takes more hours, or takes an unknown number of hours.
    """
    if digest and digest != made.digest:
        raise RefusedError(
            f"Plan {digest} was requested, but the plan is {made.digest} now. "
            f"Check it with --dry-run, then use --apply {made.digest}."
        )
    if most_hours is None:
        return
    if made.hours is None:
        unknown = sum(step.estimate is None for step in made.todo)
        raise RefusedError(
            f"--max-gpu-hours is {most_hours:g}, but the hours of {unknown} of "
            f"{counted(len(made.todo), 'run')} are unknown: leave the option out, or exclude those runs with "
            "--rows or --columns."
        )
    if made.hours > most_hours:
        raise RefusedError(
            f"--max-gpu-hours is {most_hours:g}, but the estimate for this plan is "
            f"{hours(3600 * made.hours)} {made.device}-hours: allow more, or select fewer runs with --rows, "
            "--columns or --seeds."
        )


# The action of a run


def action(
    spec: Spec,
    record: Record | None,
    lease: Lease | None,
    blocked: Blocked | None,
    folder: Path,
    reuse: Reuse,
) -> Step:
    """Return the action of a run, and the reason if its record and its folder reveal it.

    Args:
        record: the store's record of it; None if there is none.
        lease: lease of its owner; None if it has none.
        folder: folder of its checkpoints.
        reuse: the finished runs that are reused.
    """
    if record and spec.id in reuse.finished:
        unchecked = f"; {reuse.unchecked[spec.id]}" if spec.id in reuse.unchecked else ""
        return Step(spec=spec, action="reuse", why=f"finished {_finished(record)}{unchecked}")
    if lease:
        return Step(spec=spec, action="attach", why=_attached(lease))
    if blocked:
        return Step(spec=spec, action="blocked", why=str(blocked))
    before = f"not reused: {reuse.changed[spec.id]}" if spec.id in reuse.changed else _earlier(record)
    found = _checkpoint(spec, folder)
    if found is None:
        return Step(spec=spec, action="run", why=f"{before}; starts from scratch" if before else "")
    name, left = found
    return Step(spec=spec, action="resume", why=f"from {name}{f'; {before}' if before else ''}", left=left)


def _earlier(record: Record | None) -> str:
    """Return how an unfinished run ended, or which process executes it with another folder of runs."""
    if record is None:
        return ""
    state = record.state
    if state.state == "running":
        return f"started by {state.reason}, with another folder of runs"
    return f"{state.state}: {state.reason}"


def _attached(lease: Lease) -> str:
    """Return the owner of a run and its progress, in words."""
    if lease.state != "running":
        return f"{lease.who} waits in the queue"
    told = progress(lease)
    return f"{lease.who} executes it{f': {told}' if told else ''}"


def _checkpoint(spec: Spec, folder: Path) -> tuple[str, float] | None:
    """Return the newest checkpoint in words and the fraction of work that remains; None if there is none."""
    total = _length(spec)
    done = min(checkpoint.newest(folder, spec.id), total)
    if not done:
        return None
    unit = "iteration" if isinstance(spec, Evaluate) and isinstance(spec.protocol, Detection) else "epoch"
    return f"the checkpoint of {unit} {round(done, 2):.10g} of {total}", 1 - done / total


def _finished(record: Record) -> str:
    """Return when and with which code a run finished."""
    when = f"{record.ended.astimezone():%Y-%m-%d}" if record.ended else "at an unknown time"
    return f"{when}, commit {record.commit[:7]}{' with uncommitted changes' if record.dirty else ''}"


def _length(spec: Spec) -> int:
    """Return the number of epochs or iterations, in the unit of checkpoints; 0 if the run has none."""
    if isinstance(spec, Pretrain):
        return spec.epochs
    return spec.protocol.length


class Past(tuple["Record", ...]):
    """Finished runs of a kind, the newest first, prepared for comparison with each run of a plan."""

    @cached_property
    def _shared(self) -> frozenset[tuple[str, str]]:
        """Settings that all runs share."""
        return frozenset.intersection(*(frozenset(record.settings.items()) for record in self))

    @cached_property
    def _own(self) -> list[frozenset[tuple[str, str]]]:
        """Other settings of each run."""
        return [frozenset(record.settings.items()) - self._shared for record in self]

    def nearest(self, ours: Mapping[str, str]) -> Record | None:
        """Return the run with the fewest `_differences` from these settings, or None without any run.

        The newest of several is returned.
        """
        if not self:
            return None
        apart = self._shared.symmetric_difference(ours.items())  # few, so each comparison is short
        counts = [len({key for key, value in apart ^ own if value != "none"}) for own in self._own]
        return self[counts.index(min(counts))]


def nearest(spec: Spec, past: Past) -> str:
    """Return why a run is not reused: the finished run that differs in the fewest settings, in words.

    Args:
        past: finished runs of its kind, the newest first; of several nearest ones the newest is named.
    """
    ours = tags.settings(spec)
    like = past.nearest(ours)
    if like is None:
        return "no finished run with these settings, and none of this kind at this scale"
    same = set(spec.later()) - like.settings.keys()  # an earlier version had no such settings
    found = {key: pair for key, pair in _differences(ours, like.settings).items() if key not in same}
    first = itertools.islice(found.items(), MAX_NAMED)
    paths = ours.keys() | like.settings
    named = [f"{full_name(key, paths)}: {theirs}, here {here}" for key, (theirs, here) in first]
    if not named:
        return (
            "no finished run with this id; the nearest has the same settings under another id, "
            "from another version of the code"
        )
    more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    among = f" of the newest {NEWEST}" if len(past) == NEWEST else ""
    return f"no finished run with these settings; the nearest{among} differs in {'; '.join(named)}{more}"


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the settings that differ, as (theirs, ours).

    A setting that a run lacks counts as "none", because a setting that was added later is missing.
    """
    keys = dict.fromkeys((*ours, *theirs))
    pairs = {key: (theirs.get(key, "none"), ours.get(key, "none")) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


# The duration of a run


def estimate(
    spec: Spec,
    past: Sequence[Record],
    device: str,
    model: str,
    measured: Measured | None = None,
    devices: int = 1,
    site: Site | None = None,
    count: Count | None = None,
) -> Estimate | None:
    """Return the duration of `spec` from start to end, or None if it is unknown.

    Args:
        past: finished runs of its kind, the newest first.
        device: `GPU` or `CPU`.
        model: name of the device.
        measured: measurements of rehearsals; None for none.
        devices: number of devices that share its images.
        site: site as the run sees it (`rehearsed.seen_by`); None for the defaults.
        count: numbers of images; None for the published ones.
    """
    count, start = count or num_images, _start(past, device, model)
    found = _measured_on(model, spec, past, measured or Measured(), devices, site or Site(), count, start)
    if found:
        return found
    operations = _operations(spec, count)
    if operations is None:
        return None
    return Estimate(devices * start + operations / SPEEDS[device], "FLOPs", start=devices * start)


def estimate_on(
    card: Card,
    spec: Spec,
    past: Sequence[Record],
    measured: Measured,
    devices: int,
    site: Site,
    count: Count | None = None,
) -> Estimate | None:
    """Return the duration of `spec` on a card, or None if it is unknown.

    What was measured on the card itself comes first, then what was measured on another known card.

    Args:
        past, measured, devices, site, count: see `estimate`.
    """
    count = count or num_images
    names = dict.fromkeys((*(record.device for record in past), *measured.devices))
    known = [(other, name) for name in names if (other := cards.of_device(name))]
    for other, name in sorted(known, key=lambda pair: pair[0] != card):
        start = _start(past, "GPU", name)
        found = _measured_on(name, spec, past, measured, devices, site, count, start)
        if found:
            ratio = other.speed / card.speed
            scaled = found.start + ratio * (found.seconds - found.start)
            return Estimate(scaled, found.source, name, found.start)
    operations = _operations(spec, count)
    if operations is None:
        return None
    start = devices * START["GPU"]
    return Estimate(start + operations / card.speed, "FLOPs", start=start)


def num_images(spec: Spec, split: str) -> int | None:
    """Return the published number of images of a split that a run reads, or None if it is unknown."""
    return _num_images(tags.settings(spec), split)


def _measured_on(
    model: str,
    spec: Spec,
    past: Sequence[Record],
    measured: Measured,
    devices: int,
    site: Site,
    count: Count,
    start: float,
) -> Estimate | None:
    """Return the duration by finished runs on a device or by a rehearsal there, or None without both.

    Args:
        start: seconds of a run outside of its work.
    """
    ours = tags.settings(spec)
    here = count(spec, spec.dataset.pretrain_split) if isinstance(spec, Pretrain) else None
    usable = _usable(past, model)
    scaled = (_scaled(ours, record, isinstance(spec, Pretrain), here, start) for record in usable)
    found = list(itertools.islice((each for each in scaled if each is not None), ALIKE))
    if found:
        usual = statistics.median(found)
        return Estimate(usual, "finished runs", start=min(start, usual))
    seconds = measured.seconds(spec, devices, model, site, count) if measured else None
    if seconds is None:
        return None
    start = max(devices * start, measured.start(spec, devices, model, site))
    return Estimate(start + seconds, "rehearsed", model, start)


def _usable(past: Iterable[Record], model: str) -> Iterator[Record]:
    """Yield the finished runs that took one attempt on a device of this name."""
    for record in past:
        if record.device == model and record.attempts == 1 and record.ended:
            yield record


def _seconds(record: Record) -> float:
    """Return the seconds of a finished run."""
    assert record.ended is not None
    return (record.ended - record.state.started).total_seconds()


def _start(past: Iterable[Record], device: str, model: str) -> float:
    """Return the seconds of a run outside of its work, by the shortest finished one on a device, or START.

    Args:
        past: finished runs of its kind.
        device: `GPU` or `CPU`.
        model: name of the device.
    """
    shortest = min((each for each in _usable(past, model) if each.sharing == 1), key=_seconds, default=None)
    if shortest is None:
        return START[device]
    took, rate = _seconds(shortest), shortest.state.metrics.get(RATE)
    if shortest.is_pretraining and took <= SHORT and rate:
        images = _images_of(shortest)
        if images is not None:
            return max(0.0, took - float(shortest.settings["epochs"]) * images / rate)
    return min(START[device], took)


def _operations(spec: Spec, count: Count) -> float | None:
    """Return the operations of a run in the backbone, or None if they are unknown."""
    return _pretraining(spec, count) if isinstance(spec, Pretrain) else _evaluation(spec, count)


def _scaled(
    ours: Mapping[str, str], record: Record, pretraining: bool, num_images: int | None, start: float
) -> float | None:
    """Return the seconds of a finished run, scaled to ours, or None if the two are not comparable.

    Runs that shared a GPU divide its time.

    Args:
        num_images: images of our pretraining; None if they are unknown.
        start: seconds of each run outside of its work.
    """
    theirs, seconds = record.settings, _seconds(record) / record.sharing
    if not pretraining:
        keys = {key for key in (*ours, *theirs) if key.startswith(("protocol", "dataset"))}
        keys.add("encoder.backbone")
        return seconds if all(ours.get(key) == theirs.get(key) for key in keys) else None
    if any(ours.get(key, "none") != theirs.get(key, "none") for key in ALIKE_IN):
        return None
    our_images, their_images = _images_to_compare(ours, record, num_images)
    our_work, their_work = _work(ours), _work(theirs)
    if our_images is None or not their_images or our_work is None or not their_work:
        return None
    start = min(start, seconds)
    return start + (seconds - start) * (our_work * our_images) / (their_work * their_images)


def _images_to_compare(
    ours: Mapping[str, str], record: Record, num_images: int | None
) -> tuple[int | None, int | None]:
    """Return the numbers of images of two pretrainings, theirs as it was recorded or published.

    If one is unknown, (1, 1) for the same data set.

    Args:
        num_images: see `_scaled`.
    """
    theirs, number = record.settings, _images_of(record)
    data = [{(key, each[key]) for key in each if key.startswith("dataset")} for each in (ours, theirs)]
    unknown = num_images is None or number is None
    return (1, 1) if unknown and data[0] == data[1] else (num_images, number)


def _images_of(record: Record) -> int | None:
    """Return the number of images of a finished pretraining, as it was recorded or published."""
    recorded = record.digests.get(inventory.NUM_IMAGES, "")
    if recorded.isdecimal():
        return int(recorded)
    return _num_images(record.settings, record.settings["dataset.pretrain_split"])


def _work(settings: Mapping[str, str]) -> float | None:
    """Return the forward passes on each image that cost as much as a pretraining, or None if unknown.

    The passes of a view are the mean of those that the method has with these switches and otherwise with its
    defaults.
    """
    switches = tuple(
        (key.removeprefix("method."), value == "True")
        for key, value in settings.items()
        if key.startswith("method.") and value in ("True", "False")
    )
    passes = _mean_passes(settings["method"], switches)
    return passes and float(settings["epochs"]) * float(settings["method.num_views"]) * passes


@cache
def _mean_passes(method: str, switches: tuple[tuple[str, bool], ...]) -> float | None:
    """Return the forward passes that a step on one view costs, on average; None for an unknown method.

    Args:
        switches: values of the method's settings that are true or false.
    """
    known = components("reproduce.methods", Method)
    if method not in known:
        return None
    made = known[method]()  # type: ignore[call-arg]  # each method has default settings
    names = {name for name, _ in made.leaves()}
    for name, value in switches:
        made = made.replace(name, value) if name in names else made
    return statistics.mean(made.passes(view) for view in range(made.num_views))


def _num_images(settings: Mapping[str, str], split: str) -> int | None:
    """Return the number of images of a split of a run's data set, or None if it cannot be looked up."""
    published = _published(settings["dataset"])
    counts = [published.get(part) or int(settings.get(f"dataset.num_{part}", 0)) for part in split.split("+")]
    return sum(counts) if all(counts) else None


@cache
def _published(dataset: str) -> Mapping[str, int]:
    """Return the published sizes of a data set's splits.

    Only the data set's own module is imported, because some others take seconds.
    """
    try:
        module = importlib.import_module(f"reproduce.data.{dataset}")
    except ModuleNotFoundError:  # synthetic scenes share a module; their settings contain the sizes
        return {}
    found = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Dataset)
    ]
    return next((value.published for value in found if getattr(value, "name", "") == dataset), {})


def _pretraining(spec: Pretrain, count: Count) -> float | None:
    """Return the operations of a pretraining in the backbone, or None if they are unknown."""
    images = count(spec, spec.dataset.pretrain_split)
    return None if images is None else spec.operations(images)


def _evaluation(spec: Evaluate, count: Count) -> float | None:
    """Return the operations of an evaluation's passes through the encoder, or of a detector's training."""
    network, dataset = cost.network(spec.encoder.backbone), spec.dataset
    if network is None:
        return None
    if isinstance(spec.protocol, Detection):
        return detectors.operations(spec.protocol, network)
    if not isinstance(dataset, Dataset):
        return None
    counts = [count(spec, split) for split in (dataset.train_split, dataset.test_split)]
    if counts[0] is None or counts[1] is None:
        return None
    passes = spec.protocol.passes(counts[0], counts[1])
    return None if passes is None else passes * network.operations(dataset.size)


def makespan(steps: Iterable[Step], at_once: int) -> float:
    """Return the seconds until all steps are done if the launcher executes them.

    Each step starts as soon as its needs are done and its devices are free. A step on several devices takes
    its time divided by their number, and is not overtaken while it waits for them.
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


def makespan_of(steps: Iterable[Step], at_once: int, seconds: Mapping[str, float]) -> float:
    """Return the seconds until those of the steps are done that need these seconds each, by id."""
    return makespan(
        [
            replace(
                step,
                left=1.0,
                estimate=Estimate(seconds[step.spec.id] * step.devices, "finished runs"),
            )
            for step in steps
            if step.spec.id in seconds
        ],
        at_once,
    )


def _disk(specs: Iterable[Spec], store: Store, at_once: int) -> int | None:
    """Return the bytes that the runs leave behind or occupy for a time, by the rule of `invoke doctor`.

    None if a network's size is unknown.
    """
    from reproduce.commands import disk

    try:
        return disk.disk_needed(specs, store, at_once, _sizes, _parameters)
    except LookupError:
        return None


def _sizes(run: Pretrain) -> cost.Sizes:
    network = _network(run.backbone)
    layout = run.method.layout(network.num_features)
    if layout is None:
        raise NotFoundError(f"The sizes of {run.method.name}'s heads are unknown until they are built.")
    images = run.dataset.num_images(run.dataset.pretrain_split) or 0
    return cost.sizes(network, layout, num_states=run.optimizer.num_states, num_images=images)


def _parameters(backbone: str) -> int:
    return _network(backbone).parameters


def _network(backbone: str) -> cost.Network:
    found = cost.network(backbone)
    if found is None:
        raise NotFoundError(f"The layers of {backbone} are unknown until it is built.")
    return found


def _kind(spec: Spec) -> str:
    """Return the kind of a run, for the list of runs whose duration is unknown."""
    work = "pretraining" if isinstance(spec, Pretrain) else spec.protocol.name
    return f"{work} on {spec.dataset.name}"
