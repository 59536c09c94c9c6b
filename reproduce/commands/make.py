"""Makes tables and single evaluations: finds what is finished, runs the rest, prints or renders, and says
what happened."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reproduce.commands.console import Console
from reproduce.messages import clock, counted
from reproduce.nn import weight_files
from reproduce.nn.weights import Weights
from reproduce.plan import Evaluation, Job, Order, Request, jobs
from reproduce.readiness import RefusedError, blocked, launcher
from reproduce.runs.claims import Claims
from reproduce.site import PROJECT, Site
from reproduce.spec import Evaluate
from reproduce.tracking.retry import RETRY_SECONDS
from reproduce.tracking.tags import title

if TYPE_CHECKING:
    from reproduce.commands.forecast import Forecast
    from reproduce.report.filled import Filled
    from reproduce.report.observe import Finished
    from reproduce.report.table import Table
    from reproduce.tracking.store import Store

SPEAK_EVERY = 60.0
"""Seconds between two lines about a run under way, where there is no terminal for a bar."""
FRACTIONS = ("top", "majority", "map", "held_out", "ap", "box_ap", "mask_ap")
"""What the names of metrics begin with that are printed in per cent."""
COMPLETE, FAILED, INCOMPLETE, INTERRUPTED = 0, 1, 3, 128
"""Exit codes: every cell that has a run is filled; a run failed; some cells are empty; and, with the number
of its signal, interrupted."""


class Limits(NamedTuple):
    """What the command line allows to be started."""

    digest: str = ""
    """Of the only plan that may be run, as `--dry-run` prints it; empty: any."""
    most_hours: float | None = None
    """Of a GPU, or of a core where there is none; None: any number."""


NO_LIMITS = Limits()


def produce(
    requests: list[Request], site: Site, *, render_only: bool = False, limits: Limits = NO_LIMITS
) -> int:
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
            weight_files.keep(files[encoder.sha256], encoder, site)


def _printed(name: str, values: list[float]) -> str:
    """A metric over the seeds: `top1 81.20 %`, `top1 81.20 ± 0.31 % (3)`."""
    from reproduce.report import stats

    factor, digits, unit = (100, 2, " %") if name.startswith(FRACTIONS) else (1, 4, "")
    scaled = [factor * value for value in values]
    std = stats.sample_std(scaled)
    spread = "" if std is None else f" ± {std:.{digits}f}"
    return f"{name} {stats.mean(scaled):.{digits}f}{spread}{unit}" + (
        f" ({len(values)})" if len(values) > 1 else ""
    )


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
        lines = [
            f"{counted(self.ran, 'run')} done{others}, {reused} reused, {len(self.missing)} missing, in {clock(seconds)}."
        ]
        failed = [job for job in self.wanted if job.spec.id in self.failed]
        return "\n".join(
            lines + [f"failed: {job.spec.id} {title(job.spec)}: {self.failed[job.spec.id]}" for job in failed]
        )


def _carry_out(wanted: list[Job], site: Site, *, render_only: bool = False) -> _Outcome:
    """Does the runs that are not finished.

    Raises:
        RefusedError: none can start here, and no evaluation is finished.
    """
    from reproduce.tracking.store import Store

    started = time.monotonic()
    launch = launcher(site).launch
    store = Store(site)
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
        store.mark_dead_runs()
        with Console(todo, len(finished)) as console:
            reasons = launch(todo, site, console.watch)
            attached = console.attached
        store = Store(
            site, retry_seconds=RETRY_SECONDS
        )  # after hours of runs, a server that restarts just now is waited for
        finished = store.finished([job.spec.id for job in wanted])
    unfinished = [job.spec.id for job in wanted if job.spec.id not in finished]
    missing = {
        spec_id: (blocked | reasons).get(spec_id, "no finished run with these settings")
        for spec_id in unfinished
    }
    ran = sum(job.spec.id in finished for job in todo)
    failed = {
        spec_id: reason for spec_id, reason in reasons.items() if spec_id not in finished
    }  # killed after its record was complete
    return _Outcome(wanted, finished, missing, failed, ran, len(attached & finished.keys()), started, store)


def show_plan(requests: Iterable[Order], site: Site, limits: Limits = NO_LIMITS) -> int:
    """Prints what becomes of each run that the requests need, what that takes, and what a scheduler would be
    given; starts nothing.

    Raises:
        RefusedError: the limits forbid this plan.
    """
    from reproduce.commands import forecast

    requests = list(requests)
    made = _forecast(requests, site)
    print("\n".join(made.lines()), flush=True)
    scripts = getattr(launcher(site), "scripts", None)
    starting = {step.spec.id for step in made.todo}
    if scripts and starting:
        print(
            "\n".join(["", *scripts([job for job in jobs(requests) if job.spec.id in starting], site)]),
            flush=True,
        )
    forecast.check(made, *limits)
    return COMPLETE


def _check(requests: Iterable[Order], site: Site, limits: Limits) -> None:
    """Raises RefusedError where the limits forbid what the requests need."""
    if limits != NO_LIMITS:
        from reproduce.commands import forecast

        forecast.check(_forecast(requests, site), *limits)


def _forecast(requests: Iterable[Order], site: Site) -> Forecast:
    from reproduce.commands import forecast
    from reproduce.tracking.store import Store

    wanted = jobs(requests)
    return forecast.forecast(wanted, lambda todo: blocked(todo, site, fetch=False), Store(site), site)


def _cannot_start(todo: list[Job], site: Site, *, measured: bool = False) -> dict[str, str]:
    """The runs that cannot start here and that nobody else does, and what would help: asked once for each
    data set and protocol.

    Args:
        measured: whether an evaluation is finished already, so that there are numbers to show.

    Raises:
        RefusedError: all runs are among them, and there is nothing to show.
    """
    claimed = Claims(site).leases(job.spec.id for job in todo)
    found = {
        spec_id: each.problem.why
        for spec_id, each in blocked([job for job in todo if job.spec.id not in claimed], site).items()
    }
    if todo and len(found) == len(todo) and not measured:
        raise RefusedError(" ".join(dict.fromkeys(found.values())))
    return found


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
            f"The reports of {request.table} cannot be written in {site.reports / request.scale} ({os.strerror(error.errno or 0)}). No finished run is "
            "lost: once they can, the same command renders them."
        ) from error
    shown = next(path for path in paths if path.suffix == ".md")
    print(
        f"{render.summary(filled)}: {shown.relative_to(PROJECT) if shown.is_relative_to(PROJECT) else shown}",
        flush=True,
    )
    return table, filled, paths
