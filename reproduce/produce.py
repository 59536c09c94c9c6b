"""Makes tables: finds what is finished, runs the rest, renders, and says what happened."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from reproduce.data.dataset import Dataset
from reproduce.plan import Job, Request, jobs
from reproduce.site import PROJECT, Site
from reproduce.spec import Pretrain, Spec, unknown
from reproduce.tracking import title

if TYPE_CHECKING:
    from reproduce.results import Finished

SPEAK_EVERY = 60.0
"""Seconds between two lines about a run under way, where there is no terminal for a bar."""
COMPLETE, FAILED, INCOMPLETE = 0, 1, 3
"""Exit codes: every cell that has a run is filled; a run failed; some cells are empty."""


class RefusedError(Exception):
    """What was asked cannot be started on this machine; the message says what would work."""


def produce(requests: list[Request], site: Site, *, render_only: bool = False) -> int:
    """Runs what the tables need and is not finished, renders every table, prints a summary.

    Args:
        render_only: start nothing; cells without a finished run stay empty.

    Returns:
        The exit code.

    Raises:
        RefusedError: no run can be started, as the data that they need are not here.
    """
    from reproduce import tracking

    started = time.monotonic()
    wanted = jobs(requests)
    launch = launcher(site)
    store = tracking.Store(site)
    finished = store.finished([job.spec.id for job in wanted])
    todo = [job for job in wanted if job.spec.id not in finished]
    reasons: dict[str, str] = {}
    blocked = {} if render_only else _without_data(todo, site)
    todo = [job for job in todo if job.spec.id not in blocked]
    if blocked:
        print("\n".join(dict.fromkeys(blocked.values())))
    if todo and not render_only:
        store.reap()
        with _Console(todo, len(finished)) as console:
            reasons = launch(todo, site, console.watch)
        finished = store.finished([job.spec.id for job in wanted])
    unfinished = [job.spec.id for job in wanted if job.spec.id not in finished]
    missing = {spec_id: (blocked | reasons).get(spec_id, "no finished run with these settings") for spec_id in unfinished}
    reports = [_render(request, site, store, finished, missing) for request in requests]
    ran = sum(job.spec.id in finished for job in todo)
    print(_summary(len(finished) - ran, ran, missing, reasons, wanted, time.monotonic() - started))
    print("\n".join(reports))
    return FAILED if reasons else INCOMPLETE if missing else COMPLETE


def show_plan(requests: list[Request], site: Site) -> int:
    """Prints which runs the tables need and which of them are finished; starts nothing."""
    from reproduce import tracking

    wanted = jobs(requests)
    finished = tracking.Store(site).finished([job.spec.id for job in wanted])
    for job in wanted:
        print(f"{'reuse' if job.spec.id in finished else 'run  '}  {job.spec.id}  {tracking.title(job.spec)}")
    print(f"{len(wanted)} runs: {len(finished)} finished, {len(wanted) - len(finished)} to do.")
    return COMPLETE


def _without_data(todo: list[Job], site: Site) -> dict[str, str]:
    """The runs whose data are not here, and what would get them: asked once for each data set, before anything starts.

    Raises:
        RefusedError: all runs are among them.
    """
    problems: dict[str, str] = {}
    for dataset in {job.spec.dataset.id: job.spec.dataset for job in todo}.values():
        try:
            cast(Dataset, dataset).check_root(site)
        except (LookupError, ValueError) as error:
            problems[dataset.id] = str(error)
    blocked = {job.spec.id: problems[job.spec.dataset.id] for job in todo if job.spec.dataset.id in problems}
    for job in todo:
        for needed in job.spec.needs():
            if needed.id in blocked:
                blocked.setdefault(job.spec.id, blocked[needed.id])
    if todo and len(blocked) == len(todo):
        raise RefusedError(" ".join(dict.fromkeys(blocked.values())))
    return blocked


def launcher(site: Site) -> Any:
    """The `launch` function of the site's launcher.

    Raises:
        LookupError: there is no such launcher.
    """
    package = importlib.import_module("reproduce.launch")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    if site.launcher not in names:
        raise LookupError(unknown("launcher", site.launcher, names))
    return importlib.import_module(f"reproduce.launch.{site.launcher}").launch


def _render(request: Request, site: Site, store: Any, finished: dict[str, Finished], missing: dict[str, str]) -> str:
    """Writes one table's reports and its aggregates; returns a line on what is in them and where they are."""
    from reproduce.report import render
    from reproduce.report.filled import fill

    table = request.build()
    filled = fill(table, request.seeds, finished, missing)
    paths = render.write(filled, site.reports / request.scale)
    render.write_index(site.reports / request.scale)
    if finished and not table.left_out:  # a cut table would empty the cells that it leaves out
        store.log_table(filled, paths)
    shown = next(path for path in paths if path.suffix == ".md")
    return f"{render.summary(filled)}: {shown.relative_to(PROJECT) if shown.is_relative_to(PROJECT) else shown}"


def _summary(reused: int, ran: int, missing: dict[str, str], failed: dict[str, str], wanted: Iterable[Job], seconds: float) -> str:
    """What happened, in a line, and a line for each run that failed."""
    lines = [f"{ran} runs done, {reused} reused, {len(missing)} missing, in {clock(seconds)}."]
    lines += [f"failed: {job.spec.id} {title(job.spec)}: {failed[job.spec.id]}" for job in wanted if job.spec.id in failed]
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """A duration as `12 s`, `3:05` or `2:04:09`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest} s"


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
        self._first: dict[str, tuple[float, int]] = {}
        self._spoken: dict[str, float] = {}
        print(f"{len(todo)} runs to do, {reused} reused.", flush=True)

    def __enter__(self) -> _Console:
        from tqdm import tqdm  # type: ignore[import-untyped]

        layout = "{desc} {percentage:3.0f}%|{bar:24}| {elapsed} gone, {remaining} left"
        self._bar = tqdm(total=sum(self._work.values()), bar_format=layout, disable=not self._lively, file=sys.stderr, dynamic_ncols=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def watch(self, event: dict[str, Any]) -> None:
        """One event of a worker."""
        spec_id, kind = event["id"], event["event"]
        if kind == "started":
            self._since[spec_id] = time.monotonic()
        elif kind == "progress":
            self._progress(spec_id, event)
        else:
            self._ended += 1
            rate = self._rates.pop(spec_id, None)
            self._advance(spec_id, 1.0)
            took = clock(time.monotonic() - self._since.get(spec_id, time.monotonic()))
            speed = f", {rate:,.0f} images/s" if rate else ""
            how = took + speed if kind == "finished" else f"FAILED: {event['reason']}"
            self._line(f"[{self._ended}/{len(self._specs)}] {title(self._specs[spec_id])}: {how}")

    def _progress(self, spec_id: str, event: dict[str, Any]) -> None:
        now = time.monotonic()
        since, before = self._first.setdefault(spec_id, (now, event["done"]))  # a resumed run begins in the middle
        if now > since:
            self._rates[spec_id] = (event["done"] - before) / (now - since)
        self._advance(spec_id, event["done"] / event["total"])
        if not self._lively and now - self._spoken.get(spec_id, self._since[spec_id]) > SPEAK_EVERY:
            self._spoken[spec_id] = now
            rate = self._rates.get(spec_id, 0.0)
            left = f", {clock((event['total'] - event['done']) / rate)} left" if rate else ""
            self._line(f"{title(self._specs[spec_id])}: {event['note']}, {rate:,.0f} {event['unit']}/s{left}")

    def _advance(self, spec_id: str, fraction: float) -> None:
        done = self._work[spec_id] * fraction
        self._bar.set_description_str(f"{self._ended}/{len(self._specs)} runs, {sum(self._rates.values()):,.0f} images/s", refresh=False)
        self._bar.update(done - self._done.get(spec_id, 0.0))
        self._done[spec_id] = done

    def _line(self, text: str) -> None:
        self._bar.write(text, file=sys.stdout) if self._lively else print(text, flush=True)


def _views(spec: Spec) -> float:
    """How much work a run is, in views per training image; an evaluation counts as a little."""
    return float(spec.epochs * spec.method.num_views) if isinstance(spec, Pretrain) else 1.0  # type: ignore[attr-defined]
