"""Tables and single evaluations: execute the missing runs, then render the table or print the metrics."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reproduce.commands.console import Console
from reproduce.commands.pages import records_of
from reproduce.commands.time_left import Expected
from reproduce.messages import clock, counted, from_here
from reproduce.nn import weight_files
from reproduce.nn.weights import GEOMETRY, Weights
from reproduce.plan import Evaluation, Job, Order, Pretraining, Request, jobs, registered
from reproduce.readiness import Counts, RefusedError, blocked, launcher, tight
from reproduce.report.counts import incomplete
from reproduce.runs import output
from reproduce.runs.claims import Claims
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking.errors import StoreError
from reproduce.tracking.retry import RETRY_SECONDS
from reproduce.tracking.tags import title

if TYPE_CHECKING:
    from reproduce.commands.forecast import Forecast
    from reproduce.readiness import Blocked
    from reproduce.report.filled import Filled
    from reproduce.report.observe import Finished
    from reproduce.report.record import Records
    from reproduce.report.table import Table
    from reproduce.resources.cards import Card
    from reproduce.tracking.store import Store

FRACTIONS = ("top", "majority", "map", "held_out", "ap", "box_ap", "mask_ap")
"""Prefixes of metrics that are printed in per cent."""
COMPLETE, FAILED, INCOMPLETE, INTERRUPTED = 0, 1, 3, 128
"""Exit codes: every cell that has a run is filled; a run failed; some cells are empty; interrupted, to which
the number of the signal is added."""


class Limits(NamedTuple):
    """Limits that the command line sets to what may start."""

    digest: str = ""
    """Digest of the only plan that may run, as `--dry-run` prints it. Empty if any plan may run."""
    most_hours: float | None = None
    """Maximum number of GPU-hours (core-hours without a GPU). None if any number may start."""


NO_LIMITS = Limits()


def produce(
    requests: list[Request], site: Site, *, render_only: bool = False, limits: Limits = NO_LIMITS
) -> int:
    """Execute the unfinished runs that the tables need, render every table, and print a summary.

    If all requests are for one table, it is printed, too.

    Args:
        render_only: start nothing; cells without a finished run stay empty.

    Returns:
        The exit code.

    Raises:
        RefusedError: no run can start because its data are missing, or the limits forbid the plan.
        ConnectionError: the tracking store does not answer.
        OSError: the reports cannot be written.
    """
    _check(requests, site, limits)
    done = _carry_out(jobs(requests), site, render_only=render_only)
    print(done.summary(), flush=True)
    shown = len({request.table for request in requests}) == 1
    rendered = [_render(request, site, done, shown=shown) for request in requests]
    for request, (table, filled, paths) in zip(requests, rendered, strict=True):
        # A part of a table would empty the cells that it lacks.
        if done.finished and not done.unasked and not table.left_out:
            _log(table, filled, paths, done.store, request.command())
    _typeset(requests, site, told=not shown)
    return done.code


def evaluate(request: Evaluation, site: Site, *, limits: Limits = NO_LIMITS) -> int:
    """Execute one evaluation unless it is finished, and print its metrics as means over its seeds.

    Returns:
        The exit code.

    Raises:
        RefusedError: the evaluation cannot start because its data are missing, or the limits forbid the plan.
    """
    _check([request], site, limits)
    done = _carry_out(jobs([request]), site)
    measured = [run.metrics for run in done.finished.values()]
    print(title(request.build()))
    if measured:
        print("  ".join(_printed(name, [metrics[name] for metrics in measured]) for name in measured[0]))
    print(done.summary())
    return done.code


def pretrain(request: Pretraining, site: Site, *, limits: Limits = NO_LIMITS) -> int:
    """Execute one pretraining unless it is finished, and print where its encoders are and what uses them.

    Returns:
        The exit code.

    Raises:
        RefusedError: the pretraining cannot start because its data are missing, or the limits forbid the
            plan.
    """
    from reproduce.nn.encoder import FILE

    _check([request], site, limits)
    if replaced := request.stand_in():
        print(replaced)
    done = _carry_out(jobs([request]), site)
    specs = [job.spec for job in done.wanted if job.spec.id in done.finished]
    files = {spec.id: site.runs / spec.id / FILE for spec in specs}
    print(title(request.build()))
    for spec in specs:
        place = files[spec.id] if files[spec.id].exists() else "in the tracking store"
        print(from_here(f"seed {spec.seed}: run {spec.id}, encoder {place}"))
    here = [spec for spec in specs if files[spec.id].exists()]
    if here and isinstance(here[0], Pretrain):
        print(from_here(f"to evaluate it: {_evaluation_of(here[0], files[here[0].id], site)}"))
    print(done.summary())
    return done.code


def _evaluation_of(spec: Pretrain, file: Path, site: Site) -> str:
    """Return a command that evaluates an encoder on the data set on which it was trained."""
    dataset = spec.dataset
    roots = dataset.folders(site).values() if dataset.name == "folder" else ()
    # An evaluation needs test images, too.
    changes = [f"dataset.root={root if (Path(root) / 'val').is_dir() else 'FOLDER'}" for root in roots]
    assumed = Weights(sha256="any", **weight_files.GEOMETRY_OF.get(spec.backbone, {}))
    # Resize and canvas come before the size, which must fit them.
    for key in sorted(GEOMETRY, key="size".__eq__):
        value = getattr(dataset, key)
        if value != getattr(assumed, key):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            changes.append(f"encoder.{key}={text}")
    options = {"checkpoint": str(file), "backbone": spec.backbone, "protocol": "knn", "dataset": dataset.name}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    return shlex.join(["invoke", "evaluate", *words, *(word for each in changes for word in ("--set", each))])


def remarks(files: Mapping[str, Path], requests: Iterable[Order]) -> list[str]:
    """Return one line for each encoder of the user's `files`: what is taken, and what is left out.

    Args:
        files: paths by SHA-256.

    Raises:
        ValueError: a file does not fit the settings of its encoder.
        OSError: a file cannot be read.
    """
    return [weight_files.remark(files[weights.sha256], weights) for weights in _given(files, requests)]


def keep(files: Mapping[str, Path], requests: Iterable[Order], site: Site) -> None:
    """Copy the user's `files`, given by SHA-256, to where the runs of `requests` look for them.

    Raises:
        ValueError: a file has changed since it was read.
        OSError: a file cannot be copied.
    """
    for weights in _given(files, requests):
        weight_files.keep(files[weights.sha256], weights, site)


def _given(files: Mapping[str, Path], requests: Iterable[Order]) -> list[Weights]:
    """Return the encoders of the user's files, each once."""
    encoders = [job.spec.encoder for job in jobs(requests) if isinstance(job.spec, Evaluate)]
    given = [each for each in encoders if isinstance(each, Weights) and each.sha256 in files]
    return list(dict.fromkeys(given))


def _printed(name: str, values: list[float]) -> str:
    """Return a metric over the seeds: `top1 81.20 %`, `top1 81.20 ± 0.31 % (3)`."""
    from reproduce.report import stats

    factor, digits, unit = (100, 2, " %") if name.startswith(FRACTIONS) else (1, 4, "")
    scaled = [factor * value for value in values]
    std = stats.sample_std(scaled)
    spread = "" if std is None else f" ± {std:.{digits}f}"
    count = f" ({len(values)})" if len(values) > 1 else ""
    return f"{name} {stats.mean(scaled):.{digits}f}{spread}{unit}{count}"


@dataclass(frozen=True)
class _Outcome:
    """Results of the runs that were requested."""

    wanted: list[Job]
    finished: dict[str, Finished]
    missing: dict[str, str]
    """Why a result is missing, by id."""
    failed: dict[str, str]
    """Entries of `missing` whose runs were tried."""
    ran: int
    """Number of runs that finished during this command."""
    attached: int
    """Number of these that other processes executed."""
    started: float
    store: Store
    records: Records
    """Function that returns the records of runs, for their pages."""
    unasked: str = ""
    """Why the store could not be asked after the runs; empty if it could."""

    @property
    def code(self) -> int:
        """The exit code."""
        if self.failed or self.unasked:
            return FAILED
        return INCOMPLETE if self.missing else COMPLETE

    def summary(self) -> str:
        """Return one line on what happened, one on incomplete data, and one for each run that failed."""
        reused, took = len(self.finished) - self.ran, clock(time.monotonic() - self.started)
        others = f" ({self.attached} of them by other processes)" if self.attached else ""
        ran = f"{counted(self.ran, 'run')} done{others}"
        lines = [f"{ran}, {reused} reused, {len(self.missing)} missing, in {took}."]
        if self.unasked:
            lines.append(f"What these runs recorded is unknown: {self.unasked}")
        if other_data := incomplete([job.spec for job in self.wanted], self.finished):
            lines.append(f"Not the published data: {'; '.join(other_data)}.")
        for job in self.wanted:
            if job.spec.id in self.failed:
                lines.append(f"failed: {job.spec.id} {title(job.spec)}: {self.failed[job.spec.id]}")
        return from_here("\n".join(lines))


def _carry_out(wanted: list[Job], site: Site, *, render_only: bool = False) -> _Outcome:
    """Execute the runs that are not finished.

    Raises:
        RefusedError: no run can start on this machine, and no evaluation is finished.
    """
    from reproduce.tracking.reuse import choose
    from reproduce.tracking.store import Store

    started = time.monotonic()
    launch = launcher(site).launch
    store = Store(site)
    found = choose(store, [job.spec for job in wanted], site)
    finished = found.finished
    for line in found.remarks():
        print(line)
    todo = [job for job in wanted if job.spec.id not in finished]
    reasons: dict[str, str] = {}
    attached: set[str] = set()
    unasked = ""
    measured = any(isinstance(job.spec, Evaluate) and job.spec.id in finished for job in wanted)
    lacking = {} if render_only else _cannot_start(todo, site, measured=measured, store=store)
    blocked = {spec_id: each.problem.why for spec_id, each in lacking.items()}
    todo = [job for job in todo if job.spec.id not in blocked]
    if lacking:
        print("\n".join(_remedies(lacking)))
    if todo and not render_only:
        _make_folder(site)
        store.mark_dead_runs()
        for line in tight(todo, site, store):
            print(line)
        with Console(todo, len(finished), partial(_expected, todo, store, site)) as console:
            reasons = launch(todo, site, console.watch)
            attached = console.attached
        # After hours of runs, wait for a server that is restarting, unless all runs failed: they have waited.
        succeeded = any(job.spec.id not in reasons for job in todo)
        store = Store(site, retry_seconds=RETRY_SECONDS if succeeded else 0.0)
        try:
            found = choose(store, [job.spec for job in wanted], site)
        except StoreError as error:
            unasked = str(error)
        finished = found.finished
    known = found.changed | blocked | reasons
    missing = {
        job.spec.id: known.get(job.spec.id, unasked or "no finished run with these settings")
        for job in wanted
        if job.spec.id not in finished
    }
    ran = sum(job.spec.id in finished for job in todo)
    # A run that was killed after its record was complete is finished.
    failed = {spec_id: reason for spec_id, reason in reasons.items() if spec_id not in finished}
    attached &= finished.keys()
    return _Outcome(
        wanted,
        finished,
        missing,
        failed,
        ran,
        len(attached),
        started,
        store,
        records_of(store, site),
        unasked,
    )


def _expected(
    todo: list[Job], store: Store, site: Site
) -> tuple[list[Expected], Callable[[Mapping[str, float]], float]]:
    """Return the forecasts of the runs, and a function that returns when all are done."""
    from reproduce.commands import forecast

    steps = forecast.to_run(todo, store, site)
    return [
        Expected(step.spec, step.estimate and step.estimate.seconds / step.devices, step.left)
        for step in steps
    ], partial(forecast.makespan_of, steps, launcher(site).at_once(site))


def _make_folder(site: Site) -> None:
    """Create the folder of runs.

    Raises:
        RefusedError: it cannot be created.
    """
    try:
        site.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"The folder of runs {site.runs} cannot be created ({error.strerror}): set another `runs` in the "
            "site file."
        ) from None


def show_plan(
    requests: Iterable[Order],
    site: Site,
    limits: Limits = NO_LIMITS,
    *,
    verbose: bool = False,
    card: Card | None = None,
) -> int:
    """Print the plan: what happens to each run, what it costs, and a scheduler's scripts; start nothing.

    Args:
        verbose: True to list each run of a large group.
        card: card for which hours are estimated; None for the devices of this site.

    Raises:
        RefusedError: the limits forbid this plan.
    """
    from reproduce.commands import forecast

    requests = list(requests)
    made = _forecast(requests, site, card)
    print("\n".join(made.lines(verbose=verbose)), flush=True)
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
    """Raise RefusedError if the limits forbid what the requests need."""
    if limits != NO_LIMITS:
        from reproduce.commands import forecast

        forecast.check(_forecast(requests, site), *limits)


def _forecast(requests: Iterable[Order], site: Site, card: Card | None = None) -> Forecast:
    from reproduce.commands import forecast
    from reproduce.tracking.store import Store

    wanted, counts, opened = jobs(requests), Counts(site), Store(site)
    return forecast.forecast(
        wanted,
        lambda todo: blocked(todo, site, fetch=False, counts=counts, store=opened),
        opened,
        site,
        counts,
        card,
    )


def _cannot_start(
    todo: list[Job], site: Site, *, measured: bool = False, store: Store | None = None
) -> dict[str, Blocked]:
    """Return why runs cannot start on this machine, by id; runs that other processes execute are left out.

    Each data set and protocol is checked once.

    Args:
        measured: True if an evaluation is finished already, so that there are numbers to show.
        store: see `blocked`.

    Raises:
        RefusedError: no run can start, and there is nothing to show.
    """
    claimed = Claims(site).leases(job.spec.id for job in todo)
    free = [job for job in todo if job.spec.id not in claimed]
    found = blocked(free, site, store=store)
    if todo and len(found) == len(todo) and not measured:
        raise RefusedError(" ".join(_remedies(found)))
    return found


def _remedies(lacking: Mapping[str, Blocked]) -> list[str]:
    """Return what would solve each problem of runs that cannot start, each once."""
    return list(dict.fromkeys(remedy for each in lacking.values() for remedy in each.remedies))


def _typeset(requests: Iterable[Request], site: Site, *, told: bool) -> None:
    """Write the PDF of each scale if its tables changed.

    Args:
        told: print one line that explains why there is none.

    Raises:
        OSError: the PDF cannot be written.
    """
    from reproduce.report.publish import publish_pdf

    for scale in dict.fromkeys(request.scale for request in requests):
        problem = publish_pdf(site.reports / scale)
        if problem and told:
            print(problem, flush=True)


def _log(table: Table, filled: Filled, paths: list[Path], store: Store, command: str) -> None:
    """Record a table's numbers and files, unless another command has rendered and recorded it since."""
    from reproduce.report import publish, render

    report, folder = next(path for path in paths if path.suffix == ".json"), paths[0].parent
    with tempfile.TemporaryDirectory() as copies:
        with publish.locked(folder):
            if report.read_text(encoding="utf-8") != render.json(filled):
                return
            pictures = [path for path in render.figure_paths(filled, folder) if path.suffix == ".png"]
            copied = [Path(shutil.copy(path, copies)) for path in (*paths, *pictures)]
        store.log_table(filled, copied, table, command)


def _render(request: Request, site: Site, done: _Outcome, *, shown: bool) -> tuple[Table, Filled, list[Path]]:
    """Write one table's reports if they changed, and print one line on their content and place.

    Args:
        shown: print the table, too.

    Raises:
        OSError: the reports cannot be written.
    """
    from reproduce.report import render, terminal
    from reproduce.report.publish import publish

    table, folder = request.build(), site.reports / request.scale
    reasons = {spec_id: site.without_places(reason) for spec_id, reason in done.missing.items()}
    try:
        filled, paths = publish(
            table,
            request.seeds,
            done.finished,
            reasons,
            folder,
            request.dumps(),
            partial(registered, request.scale),
            None if done.unasked else done.store.histories,
            records=done.records,
        )
    except OSError as error:
        raise OSError(
            f"The reports of {request.table} cannot be written in {folder} "
            f"({os.strerror(error.errno or 0)}). No finished run is lost: the same command renders them once "
            "the folder is writable."
        ) from error
    if shown:
        print("\n".join(terminal.lines(filled, output.width())))
    page = next(path for path in paths if path.suffix == ".md")
    print(from_here(f"{render.summary(filled)}: {page}"), flush=True)
    return table, filled, paths
