"""Makes tables and single evaluations: finds what is finished, runs the rest, prints or renders, and says what happened."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from reproduce.attach import Others
from reproduce.data.dataset import Dataset
from reproduce.entry import title
from reproduce.nn import weights
from reproduce.patience import PATIENCE
from reproduce.plan import Evaluation, Job, Order, Request, jobs
from reproduce.progress import FETCHED
from reproduce.protocols.protocol import Protocol
from reproduce.site import PROJECT, Site
from reproduce.spec import Evaluate, Pretrain, Settings, Spec, Weights, unknown

if TYPE_CHECKING:
    from reproduce.forecast import Forecast
    from reproduce.report.filled import Filled
    from reproduce.report.table import Table
    from reproduce.results import Finished
    from reproduce.tracking import Store

SPEAK_EVERY = 60.0
"""Seconds between two lines about a run under way, where there is no terminal for a bar."""
FRACTIONS = ("top", "majority", "map", "held_out", "ap", "box_ap", "mask_ap")
"""What the names of metrics begin with that are printed in per cent."""
COMPLETE, FAILED, INCOMPLETE, INTERRUPTED = 0, 1, 3, 128
"""Exit codes: every cell that has a run is filled; a run failed; some cells are empty; and, with the number of its signal, interrupted."""


class RefusedError(Exception):
    """What was asked cannot be started on this machine; the message says what would work."""


class Limits(NamedTuple):
    """What the command line allows to be started."""

    digest: str = ""
    """Of the only plan that may be run, as `--dry-run` prints it; empty: any."""
    most_hours: float | None = None
    """Of a GPU, or of a core where there is none; None: any number."""


NO_LIMITS = Limits()


def produce(requests: list[Request], site: Site, *, render_only: bool = False, limits: Limits = NO_LIMITS) -> int:
    """Runs what the tables need and is not finished, renders every table, prints a summary.

    Args:
        render_only: start nothing; cells without a finished run stay empty.

    Returns:
        The exit code.

    Raises:
        RefusedError: no run can be started, as the data that they need are not here; or the limits forbid it.
        ConnectionError: the tracking store does not answer.
        OSError: the reports cannot be written.
    """
    _check(requests, site, limits)
    done = _carry_out(jobs(requests), site, render_only=render_only)
    print(done.summary(), flush=True)
    rendered = [_render(request, site, done) for request in requests]
    for table, filled, paths in rendered:
        if done.finished and not table.left_out:  # a cut table would empty the cells that it leaves out
            done.store.log_table(filled, paths)
    return done.code


def evaluate(request: Evaluation, site: Site, *, limits: Limits = NO_LIMITS) -> int:
    """Does one evaluation unless it is finished, and prints what it measured, as the mean over its seeds.

    Returns:
        The exit code.

    Raises:
        RefusedError: it cannot be started, as the data that it needs are not here; or the limits forbid it.
    """
    _check([request], site, limits)
    done = _carry_out(jobs([request]), site)
    measured = [run.metrics for run in done.finished.values()]
    print(title(request.build()))
    if measured:
        print("  ".join(_printed(name, [metrics[name] for metrics in measured]) for name in measured[0]))
    print(done.summary())
    return done.code


def keep(files: Mapping[str, Path], requests: Iterable[Order], site: Site) -> None:
    """Copies the user's `files`, by SHA-256, to where the runs of `requests` look for them.

    Raises:
        ValueError: a file does not fit the settings of its encoder.
        OSError: it cannot be copied.
    """
    encoders = {job.spec.encoder for job in jobs(requests) if isinstance(job.spec, Evaluate)}
    for encoder in encoders:
        if isinstance(encoder, Weights) and encoder.sha256 in files:
            weights.keep(files[encoder.sha256], encoder, site)


def _printed(name: str, values: list[float]) -> str:
    """A metric over the seeds: `top1 81.20 %`, `top1 81.20 ± 0.31 % (3)`."""
    from reproduce.report import stats

    factor, digits, unit = (100, 2, " %") if name.startswith(FRACTIONS) else (1, 4, "")
    scaled = [factor * value for value in values]
    std = stats.sample_std(scaled)
    spread = "" if std is None else f" ± {std:.{digits}f}"
    return f"{name} {stats.mean(scaled):.{digits}f}{spread}{unit}" + (f" ({len(values)})" if len(values) > 1 else "")


@dataclass(frozen=True)
class _Outcome:
    """What came of the runs that were wanted."""

    wanted: list[Job]
    finished: dict[str, Finished]
    missing: dict[str, str]
    """Why there is no result, by id."""
    failed: dict[str, str]
    """Those of them that were tried."""
    ran: int
    """How many were done just now."""
    attached: int
    """How many of these somebody else did."""
    started: float
    store: Store

    @property
    def code(self) -> int:
        """The exit code."""
        return FAILED if self.failed else INCOMPLETE if self.missing else COMPLETE

    def summary(self) -> str:
        """What happened, in a line, and a line for each run that failed."""
        reused, seconds = len(self.finished) - self.ran, time.monotonic() - self.started
        others = f" ({self.attached} of them by others)" if self.attached else ""
        lines = [f"{counted(self.ran, 'run')} done{others}, {reused} reused, {len(self.missing)} missing, in {clock(seconds)}."]
        failed = [job for job in self.wanted if job.spec.id in self.failed]
        return "\n".join(lines + [f"failed: {job.spec.id} {title(job.spec)}: {self.failed[job.spec.id]}" for job in failed])


def _carry_out(wanted: list[Job], site: Site, *, render_only: bool = False) -> _Outcome:
    """Does the runs that are not finished.

    Raises:
        RefusedError: none can start here, and no evaluation is finished.
    """
    from reproduce import tracking

    started = time.monotonic()
    launch = launcher(site).launch
    store = tracking.Store(site)
    finished = store.finished([job.spec.id for job in wanted])
    todo = [job for job in wanted if job.spec.id not in finished]
    reasons: dict[str, str] = {}
    attached: set[str] = set()
    measured = any(isinstance(job.spec, Evaluate) and job.spec.id in finished for job in wanted)
    blocked = {} if render_only else _cannot_start(todo, site, measured=measured)
    todo = [job for job in todo if job.spec.id not in blocked]
    if blocked:
        print("\n".join(dict.fromkeys(blocked.values())))
    if todo and not render_only:
        store.reap()
        with _Console(todo, len(finished)) as console:
            reasons = launch(todo, site, console.watch)
            attached = console.attached
        store = tracking.Store(site, patience=PATIENCE)  # after hours of runs, a server that restarts just now is waited for
        finished = store.finished([job.spec.id for job in wanted])
    unfinished = [job.spec.id for job in wanted if job.spec.id not in finished]
    missing = {spec_id: (blocked | reasons).get(spec_id, "no finished run with these settings") for spec_id in unfinished}
    ran = sum(job.spec.id in finished for job in todo)
    failed = {spec_id: reason for spec_id, reason in reasons.items() if spec_id not in finished}  # killed after its record was complete
    return _Outcome(wanted, finished, missing, failed, ran, len(attached & finished.keys()), started, store)


def show_plan(requests: Iterable[Order], site: Site, limits: Limits = NO_LIMITS) -> int:
    """Prints what becomes of each run that the requests need, what that takes, and what a scheduler would be given; starts nothing.

    Raises:
        RefusedError: the limits forbid this plan.
    """
    from reproduce import forecast

    requests = list(requests)
    made = _forecast(requests, site)
    print("\n".join(made.lines()), flush=True)
    scripts = getattr(launcher(site), "scripts", None)
    starting = {step.spec.id for step in made.todo}
    if scripts and starting:
        print("\n".join(["", *scripts([job for job in jobs(requests) if job.spec.id in starting], site)]), flush=True)
    forecast.check(made, *limits)
    return COMPLETE


def _check(requests: Iterable[Order], site: Site, limits: Limits) -> None:
    """Raises RefusedError where the limits forbid what the requests need."""
    if limits != NO_LIMITS:
        from reproduce import forecast

        forecast.check(_forecast(requests, site), *limits)


def _forecast(requests: Iterable[Order], site: Site) -> Forecast:
    from reproduce import forecast, tracking

    wanted = jobs(requests)
    return forecast.forecast(wanted, lambda todo: blocked(todo, site, fetch=False), tracking.Store(site), site)


def _cannot_start(todo: list[Job], site: Site, *, measured: bool = False) -> dict[str, str]:
    """The runs that cannot start here and that nobody else does, and what would help: asked once for each data set and protocol.

    Args:
        measured: whether an evaluation is finished already, so that there are numbers to show.

    Raises:
        RefusedError: all runs are among them, and there is nothing to show.
    """
    claimed = Others(site).claims(job.spec.id for job in todo)
    found = {spec_id: each.problem.why for spec_id, each in blocked([job for job in todo if job.spec.id not in claimed], site).items()}
    if todo and len(found) == len(todo) and not measured:
        raise RefusedError(" ".join(dict.fromkeys(found.values())))
    return found


def blocked(todo: Sequence[Job], site: Site, *, fetch: bool = True) -> dict[str, Blocked]:
    """The runs of `todo`, upstream first, that lack something, need a run that does, or would be done for such runs alone.

    Args:
        fetch: as of `missing`.
    """
    wanted = {job.spec.id: (job.spec.dataset, job.spec.protocol if isinstance(job.spec, Evaluate) else None) for job in todo}
    problems = {each: next(missing(*each, site, fetch=fetch), None) for each in dict.fromkeys(wanted.values())}
    found = {spec_id: Blocked(problem) for spec_id, each in wanted.items() if (problem := problems[each])}
    found = {job.spec.id: Blocked(uneven) for job in todo if (uneven := _uneven(job, site))} | found
    for job in todo:
        for needed in job.spec.needs():
            if needed.id in found:
                found.setdefault(job.spec.id, Blocked(found[needed.id].problem, f"run {needed.id}, which it needs,"))
    vain = in_vain([job.spec for job in todo], found)
    return found | {spec_id: Blocked(found[first].problem, f"only runs such as {first} need it, which") for spec_id, first in vain.items()}


def _uneven(job: Job, site: Site) -> Missing | None:
    """A batch that the site's devices cannot share equally."""
    devices, batch = job.devices(site), job.shared_batch
    if batch % devices == 0:
        return None
    return Missing(
        f"a batch that {devices} devices can share",
        f"A batch of {batch} images does not divide into {devices} equal shares: set another `devices` in the site file"
        f"{'' if isinstance(job.spec, Pretrain) else ', or --set protocol.batch_size'}.",
    )


def in_vain(specs: Sequence[Spec], blocked: Container[str]) -> dict[str, str]:
    """The pretrainings among `specs` that only blocked evaluations wait for, with the first of these: hours of training would fill no cell.

    Args:
        blocked: ids of runs that cannot start.
    """
    waiting: dict[str, list[str]] = {spec.id: [] for spec in specs}
    for spec in specs:
        for needed in spec.needs():
            waiting.get(needed.id, []).append(spec.id)
    return {spec_id: ids[0] for spec_id, ids in waiting.items() if ids and spec_id not in blocked and all(each in blocked for each in ids)}


class Missing(NamedTuple):
    """Something that a run lacks on this machine."""

    name: str
    """A data set, or what a protocol asks for."""
    why: str
    """What is wrong with it, and what would get it."""


class Blocked(NamedTuple):
    """Why a run cannot start."""

    problem: Missing
    through: str = ""
    """Another run that has the problem, as the subject of a sentence; empty: it has it itself."""

    def __str__(self) -> str:
        return f"{self.through} lacks {self.problem.name}".strip()


def missing(dataset: Settings, protocol: Settings | None, site: Site, *, fetch: bool = True) -> Iterator[Missing]:
    """What a run on `dataset` by `protocol` lacks on this machine; each thing is looked for when it is asked for.

    Args:
        fetch: whether a list that is to be fetched is fetched now; else it counts as here.
    """
    try:
        cast(Dataset, dataset).check_root(site)
    except (LookupError, ValueError, OSError) as error:
        yield Missing(dataset.name, str(error))
    if protocol is not None:
        asking = cast(Protocol, protocol)
        try:
            asking.check_data(cast(Dataset, dataset), site, fetch=fetch)
        except (LookupError, ValueError, OSError) as error:
            yield Missing(asking.requirement or asking.name, str(error))


def launcher(site: Site) -> Any:
    """The module of the site's launcher.

    Raises:
        LookupError: there is no such launcher.
    """
    package = importlib.import_module("reproduce.launch")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    if site.launcher not in names:
        raise LookupError(unknown("launcher", site.launcher, names))
    return importlib.import_module(f"reproduce.launch.{site.launcher}")


def _render(request: Request, site: Site, done: _Outcome) -> tuple[Table, Filled, list[Path]]:
    """Writes one table's reports, and says in a line what is in them and where they are.

    Raises:
        OSError: they cannot be written.
    """
    from reproduce.report import render
    from reproduce.report.filled import fill

    table = request.build()
    reasons = {spec_id: site.without_places(reason) for spec_id, reason in done.missing.items()}
    filled = fill(table, request.seeds, done.finished, reasons)
    try:
        paths = render.write(filled, site.reports / request.scale)
        render.write_index(site.reports / request.scale)
    except OSError as error:
        raise OSError(
            f"The reports of {request.table} cannot be written in {site.reports / request.scale} ({error.strerror}). No finished run is "
            "lost: once they can, the same command renders them."
        ) from error
    shown = next(path for path in paths if path.suffix == ".md")
    print(f"{render.summary(filled)}: {shown.relative_to(PROJECT) if shown.is_relative_to(PROJECT) else shown}", flush=True)
    return table, filled, paths


def counted(number: int, word: str) -> str:
    """A number of things: `1 run`, `2 runs`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """A duration as `12 s`, `3:05` or `2:04:09`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def _speed(rate: float) -> str:
    """`1,204`, `38`, `0.4`: a detector on a CPU takes seconds for an image."""
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"


class _Console:
    """Shows how the runs go: a progress bar on a terminal, plain lines in a log."""

    def __init__(self, todo: list[Job], reused: int) -> None:
        self._specs = {job.spec.id: job.spec for job in todo}
        self._work = {job.spec.id: _views(job.spec) for job in todo}
        self._done: dict[str, float] = {}
        self._ended = 0
        self._lively = sys.stderr.isatty()
        self._since: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        self._first: dict[tuple[str, str], tuple[float, int]] = {}
        self._spoken: dict[str, float] = {}
        self.attached: set[str] = set()
        """Runs that somebody else does."""
        print(f"{counted(len(todo), 'run')} to do, {reused} reused.", flush=True)

    def __enter__(self) -> _Console:
        from tqdm import tqdm  # type: ignore[import-untyped]

        layout = "{desc} {percentage:3.0f}%|{bar:24}| {elapsed} gone, {remaining} left"
        self._bar = tqdm(total=sum(self._work.values()), bar_format=layout, disable=not self._lively, file=sys.stderr, dynamic_ncols=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def watch(self, event: dict[str, Any]) -> None:
        """One event of a run."""
        spec_id, kind = event["id"], event["event"]
        if kind in ("attached", "started"):
            self._since[spec_id] = time.monotonic()
        if kind == "attached":
            self.attached.add(spec_id)
            self._line(f"attached to {event['who']}{', queued' if event['state'] == 'queued' else ''}: {title(self._specs[spec_id])}")
        elif kind == "submitted":
            self._line(f"submitted to {event['who']}: {counted(event['num'], 'run')}")
        elif kind == "freed":
            self.attached.discard(spec_id)
            self._rates.pop(spec_id, None)
            self._line(f"taken over from {event['who']}{', ' + event['reason'] if event['reason'] else ''}: {title(self._specs[spec_id])}")
        elif kind == "progress":
            self._progress(spec_id, event)
        elif kind in ("finished", "failed"):
            self._ended += 1
            rate = self._rates.pop(spec_id, None)
            self._advance(spec_id, 1.0)
            took = clock(time.monotonic() - self._since.get(spec_id, time.monotonic()))
            speed = f", {_speed(rate)} images/s" if rate else ""
            how = f"{took}{speed}{', by ' + event['who'] if 'who' in event else ''}" if kind == "finished" else f"FAILED: {event['reason']}"
            self._line(f"[{self._ended}/{len(self._specs)}] {title(self._specs[spec_id])}: {how}")

    def _progress(self, spec_id: str, event: dict[str, Any]) -> None:
        now, unit = time.monotonic(), event["unit"]
        since, before = self._first.setdefault((spec_id, unit), (now, event["done"]))  # a resumed run begins in the middle
        rate = (event["done"] - before) / (now - since) if now > since else 0.0
        if rate and unit == "images":
            self._rates[spec_id] = rate
        if unit != FETCHED:
            self._advance(spec_id, event["done"] / event["total"])
        if not self._lively and now - self._spoken.get(spec_id, self._since.get(spec_id, now)) > SPEAK_EVERY:
            self._spoken[spec_id] = now
            left = f", {clock((event['total'] - event['done']) / rate)} left" if rate else ""
            self._line(f"{title(self._specs[spec_id])}: {event['note']}, {_speed(rate)} {unit}/s{left}")

    def _advance(self, spec_id: str, fraction: float) -> None:
        done = self._work[spec_id] * fraction
        self._bar.set_description_str(f"{self._ended}/{len(self._specs)} runs, {_speed(sum(self._rates.values()))} images/s", refresh=False)
        self._bar.update(done - self._done.get(spec_id, 0.0))
        self._done[spec_id] = done

    def _line(self, text: str) -> None:
        self._bar.write(text, file=sys.stdout) if self._lively else print(text, flush=True)


def _views(spec: Spec) -> float:
    """How much work a run is, in views per training image; an evaluation counts as a little."""
    return float(spec.epochs * spec.method.num_views) if isinstance(spec, Pretrain) else 1.0  # type: ignore[attr-defined]
