"""Progress of the runs of a command: live lines on a terminal, plain lines in a log or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from reproduce import messages
from reproduce.commands import live
from reproduce.commands.live import Line, Live
from reproduce.commands.time_left import Expected, TimeLeft
from reproduce.plan import Job
from reproduce.runs.progress import FETCHED
from reproduce.tracking.tags import title

SPEAK_EVERY = 60.0
"""Seconds between two lines about a run under way, if no terminal can show live lines."""

Makespan = Callable[[Mapping[str, float]], float]
"""Function that returns the seconds until all runs are done, from the seconds of each by id."""


class Console:
    """Progress of the runs.

    Args:
        todo: the runs, upstream first.
        reused: number of finished runs.
        expect: returns the forecasts of the runs and their makespan; called only if a terminal shows them.
    """

    def __init__(
        self, todo: list[Job], reused: int, expect: Callable[[], tuple[list[Expected], Makespan]]
    ) -> None:
        self._specs = {job.spec.id: job.spec for job in todo}
        self._ended = 0
        self._live: Live | None = None
        self._since: dict[str, float] = {}
        self._first: dict[tuple[str, str], tuple[float, int]] = {}
        self._rates: dict[str, float] = {}
        self._spoken: dict[str, float] = {}
        self.attached: set[str] = set()
        """Runs that other processes execute."""
        print(f"{messages.counted(len(todo), 'run')} to do, {reused} reused.", flush=True)
        if live.possible():
            self._left = TimeLeft(*expect())
            self._live = Live(len(todo), self._left)

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.__exit__()

    def watch(self, event: dict[str, Any]) -> None:
        """Show one event of a run."""
        spec_id, kind = event["id"], event["event"]
        if kind in ("attached", "started"):
            self._since[spec_id] = time.monotonic()
        if kind == "attached":
            self.attached.add(spec_id)
            queued = event["state"] == "queued"
            before = f"attached to {event['who']}{' (queued)' if queued else ''}: "
            self._line(Line(before, self._title(spec_id), ""))
            if not queued:
                self._begin(spec_id, "in another process")
        elif kind == "starting":
            self._begin(spec_id, "starting a worker")
        elif kind == "started":
            self._begin(spec_id, "starting")
        elif kind == "doing":
            self._begin(spec_id, event["what"])
        elif kind == "submitted":
            self._line(Line(f"submitted to {event['who']}: ", "", messages.counted(event["num"], "run")))
        elif kind == "freed":
            self._freed(spec_id, event)
        elif kind == "progress":
            self._progress(spec_id, event)
        elif kind == "skipped":
            self._drop(spec_id, ended=True, failed=True)
        elif kind in ("finished", "failed"):
            self._end(spec_id, event)

    def _begin(self, spec_id: str, doing: str) -> None:
        if self._live:
            self._live.begin(spec_id, self._title(spec_id), doing)

    def _drop(self, spec_id: str, *, ended: bool = False, failed: bool = False) -> None:
        """Remove a run from the live lines."""
        if self._live:
            if ended:
                self._left.end(spec_id, None if failed else time.monotonic())
            else:
                self._left.restart(spec_id)
            self._live.drop(spec_id, ended=ended, failed=failed)

    def _freed(self, spec_id: str, event: dict[str, Any]) -> None:
        """Show that the owner of a run is gone."""
        self.attached.discard(spec_id)
        for unit in [unit for run, unit in self._first if run == spec_id]:
            del self._first[spec_id, unit]
        self._drop(spec_id)
        reason = f" ({event['reason']})" if event["reason"] else ""
        self._line(Line(f"taken over from {event['who']}{reason}: ", self._title(spec_id), ""))

    def _end(self, spec_id: str, event: dict[str, Any]) -> None:
        """Show the last event of a run: its duration, or why it failed."""
        self._ended += 1
        failed, rate = event["event"] == "failed", self._rates.pop(spec_id, None)
        self._drop(spec_id, ended=True, failed=failed)
        if failed:
            how = f"FAILED: {event['reason']}"
        else:
            took = messages.clock(time.monotonic() - self._since.get(spec_id, time.monotonic()))
            speed = f", {messages.rate(rate)} images/s" if rate else ""
            how = f"{took}{speed}" + (f", by {event['who']}" if "who" in event else "")
        line = Line(f"[{self._ended}/{len(self._specs)}] ", self._title(spec_id), f": {how}")
        self._line(line, "red" if failed else "green")

    def _progress(self, spec_id: str, event: dict[str, Any]) -> None:
        now, unit = time.monotonic(), event["unit"]
        # The first event, as a resumed run begins in the middle. Another stage counts from zero again.
        since, before = self._first.setdefault((spec_id, unit), (now, event["done"]))
        if event["done"] < before:
            since, before = self._first[spec_id, unit] = now, event["done"]
        rate = (event["done"] - before) / (now - since) if now > since else 0.0
        if rate and unit == "images":
            self._rates[spec_id] = rate
        if self._live:
            if unit != FETCHED and event["total"]:
                self._left.progress(spec_id, event["done"] / event["total"], now)
            speed = f"{messages.rate(rate)} {unit}/s" if rate else ""
            self._live.note(spec_id, self._title(spec_id), event["note"], speed)
        elif now - self._spoken.get(spec_id, self._since.get(spec_id, now)) > SPEAK_EVERY:
            self._spoken[spec_id] = now
            left = f", {messages.clock((event['total'] - event['done']) / rate)} left" if rate else ""
            after = f": {event['note']}, {messages.rate(rate)} {unit}/s{left}"
            self._line(Line("", self._title(spec_id), after))

    def _title(self, spec_id: str) -> str:
        return title(self._specs[spec_id])

    def _line(self, line: Line, style: str = "") -> None:
        line = Line(*map(messages.from_here, line))
        if self._live:
            self._live.line(line, style)
        else:
            print(line, flush=True)
