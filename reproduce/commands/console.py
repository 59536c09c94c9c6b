"""Lines and a progress bar that a command prints while runs are under way."""

from __future__ import annotations

import sys
import time
from typing import Any

from reproduce import messages
from reproduce.plan import Job
from reproduce.runs.progress import FETCHED
from reproduce.spec import Pretrain, Spec
from reproduce.tracking.tags import title

SPEAK_EVERY = 60.0
"""Seconds between two lines about a run under way, if no terminal can show a bar."""


class Console:
    """Progress of the runs: a bar on a terminal, plain lines in a log."""

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
        """Runs that other processes execute."""
        print(f"{messages.counted(len(todo), 'run')} to do, {reused} reused.", flush=True)

    def __enter__(self) -> Console:
        from tqdm import tqdm

        layout = "{desc} {percentage:3.0f}%|{bar:24}| {elapsed} elapsed, {remaining} left"
        self._bar = tqdm(
            total=sum(self._work.values()),
            bar_format=layout,
            disable=not self._lively,
            file=sys.stderr,
            dynamic_ncols=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def watch(self, event: dict[str, Any]) -> None:
        """Show one event of a run."""
        spec_id, kind = event["id"], event["event"]
        if kind in ("attached", "started"):
            self._since[spec_id] = time.monotonic()
        if kind == "attached":
            self.attached.add(spec_id)
            queued = " (queued)" if event["state"] == "queued" else ""
            self._line(f"attached to {event['who']}{queued}: {self._title(spec_id)}")
        elif kind == "submitted":
            self._line(f"submitted to {event['who']}: {messages.counted(event['num'], 'run')}")
        elif kind == "freed":
            self.attached.discard(spec_id)
            self._rates.pop(spec_id, None)
            reason = f" ({event['reason']})" if event["reason"] else ""
            self._line(f"taken over from {event['who']}{reason}: {self._title(spec_id)}")
        elif kind == "progress":
            self._progress(spec_id, event)
        elif kind in ("finished", "failed"):
            self._end(spec_id, event)

    def _end(self, spec_id: str, event: dict[str, Any]) -> None:
        """Show the last event of a run: its duration, or why it failed."""
        self._ended += 1
        rate = self._rates.pop(spec_id, None)
        self._advance(spec_id, 1.0)
        if event["event"] == "finished":
            took = messages.clock(time.monotonic() - self._since.get(spec_id, time.monotonic()))
            speed = f", {messages.rate(rate)} images/s" if rate else ""
            how = f"{took}{speed}" + (f", by {event['who']}" if "who" in event else "")
        else:
            how = f"FAILED: {event['reason']}"
        self._line(f"[{self._ended}/{len(self._specs)}] {self._title(spec_id)}: {how}")

    def _progress(self, spec_id: str, event: dict[str, Any]) -> None:
        now, unit = time.monotonic(), event["unit"]
        # The first event, as a resumed run begins in the middle.
        since, before = self._first.setdefault((spec_id, unit), (now, event["done"]))
        rate = (event["done"] - before) / (now - since) if now > since else 0.0
        if rate and unit == "images":
            self._rates[spec_id] = rate
        if unit != FETCHED:
            self._advance(spec_id, event["done"] / event["total"])
        if not self._lively and now - self._spoken.get(spec_id, self._since.get(spec_id, now)) > SPEAK_EVERY:
            self._spoken[spec_id] = now
            left = f", {messages.clock((event['total'] - event['done']) / rate)} left" if rate else ""
            self._line(f"{self._title(spec_id)}: {event['note']}, {messages.rate(rate)} {unit}/s{left}")

    def _advance(self, spec_id: str, fraction: float) -> None:
        done = self._work[spec_id] * fraction
        speed = messages.rate(sum(self._rates.values()))
        self._bar.set_description_str(
            f"{self._ended}/{len(self._specs)} runs, {speed} images/s", refresh=False
        )
        self._bar.update(done - self._done.get(spec_id, 0.0))
        self._done[spec_id] = done

    def _title(self, spec_id: str) -> str:
        return title(self._specs[spec_id])

    def _line(self, text: str) -> None:
        text = messages.from_here(text)
        if self._lively:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)


def _views(spec: Spec) -> float:
    """Return the work of a run in views per training image; an evaluation counts as a little."""
    return float(spec.epochs * spec.method.num_views) if isinstance(spec, Pretrain) else 1.0
