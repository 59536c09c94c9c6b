"""Runs that other processes and Slurm jobs execute, followed by means of their leases.

    claims = Claims(site)
    for spec_id, lease in claims.leases(ids).items():    # the owner is alive, or waits in a queue
        claims.follow(spec_id, lease)
    for event in claims.poll(): ...                      # progress, finished, failed or freed

A run is freed when its owner is gone; the caller may then execute it. A run fails if its lease stays
unreadable, because nothing shows when it ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from reproduce.runs import lease as leases
from reproduce.runs import squeue
from reproduce.runs.lease import Lease
from reproduce.site import Site

POLL = 1.0
"""Seconds between two reads of the leases."""
UNREADABLE = 30.0
"""Maximum seconds to follow a run with a lease that cannot be read."""


class Claims:
    """The runs of a site that other processes and a scheduler's jobs execute."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._followed: dict[str, Lease] = {}
        self._queue = _Queue(site)
        self._unreadable_since: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._followed)

    def __contains__(self, spec_id: object) -> bool:
        return spec_id in self._followed

    def leases(self, ids: Iterable[str]) -> dict[str, Lease]:
        """Return the leases of the runs that a process or a scheduler's job executes or will execute."""
        found = {spec_id: lease for spec_id in ids if (lease := self._read(spec_id))}
        self._queue.look((lease.job for lease in found.values()), at_once=True)
        return {spec_id: lease for spec_id, lease in found.items() if self._owned(lease)}

    def queued(self) -> dict[str, Lease]:
        """Return the leases of the runs that wait in a scheduler's queue to start or resume, by run id."""
        return {
            spec_id: lease
            for spec_id, lease in self._all().items()
            if lease.state == "queued" or (lease.job and not lease.alive)
        }

    def doubtful(self) -> dict[str, Lease]:
        """Return the leases that keep a run although its owner may be gone, by run id; see `Lease.doubt`."""
        return {spec_id: lease for spec_id, lease in self._all().items() if lease.doubt}

    def release(self, spec_id: str) -> None:
        """Free a run whose queued job has left the queue; the lease would keep other processes away."""
        found = self._read(spec_id)
        if found and found.state == "queued" and not self._owned(found):
            leases.drop(self._site.runs / spec_id, spec_id, found.job)

    def follow(self, spec_id: str, lease: Lease) -> dict[str, Any]:
        """Start to follow a run, and return the event that announces it."""
        self._followed[spec_id] = lease
        return {"event": "attached", "id": spec_id, "who": lease.who, "state": lease.state}

    def poll(self) -> Iterator[dict[str, Any]]:
        """Yield an event for each change since the last call.

        A run that ended or lost its owner is not followed any further.
        """
        self._queue.look((lease.job for lease in self._followed.values()), at_once=True)
        for spec_id, before in list(self._followed.items()):
            now = self._read(spec_id)
            if now and self._unreadable_for_long(now):
                del self._followed[spec_id]
                yield {"event": "failed", "id": spec_id, "reason": f"it may be executed by {now.who}"}
                continue
            if now and now.state == "unreadable":
                continue
            if now and self._owned(now):
                self._followed[spec_id] = now
                if now.state == "running" and before.state != "running":
                    yield {"event": "started", "id": spec_id}
                if now.progress and now.progress != before.progress:
                    yield {"event": "progress", "id": spec_id, **now.progress._asdict()}
                continue
            del self._followed[spec_id]
            if now and now.state == "finished":
                yield {"event": "finished", "id": spec_id, "who": now.who}
            elif now and now.state == "failed":
                yield {"event": "failed", "id": spec_id, "reason": f"{now.reason}, in {now.who}"}
            else:
                if now:
                    leases.drop(self._site.runs / spec_id, spec_id, now.job)
                yield {
                    "event": "freed",
                    "id": spec_id,
                    "who": before.who,
                    "reason": now.reason if now else "",
                }

    def _read(self, spec_id: str) -> Lease | None:
        return leases.read(self._site.runs / spec_id, spec_id)

    def _all(self) -> dict[str, Lease]:
        """Return the leases of all runs of the site that have an owner."""
        folders = sorted(self._site.runs.iterdir()) if self._site.runs.is_dir() else []
        return self.leases(path.name for path in folders if os.path.lexists(path / leases.FILE))

    def _unreadable_for_long(self, lease: Lease) -> bool:
        """Return True if the lease could not be read for UNREADABLE seconds."""
        if lease.state != "unreadable":
            self._unreadable_since.pop(lease.spec_id, None)
            return False
        now = time.monotonic()
        return now - self._unreadable_since.setdefault(lease.spec_id, now) > UNREADABLE

    def _owned(self, lease: Lease) -> bool:
        """Return True if the run still has an owner; a requeued job has no process now, but will have one."""
        if lease.state in ("finished", "failed"):
            return False
        if lease.job and (lease.state != "running" or not lease.alive):
            return self._queue.has(lease.job)
        return lease.alive


class _Queue:
    """The jobs that a scheduler still lists; the scheduler is asked at most once per interval."""

    def __init__(self, site: Site) -> None:
        self._every = site.slurm.poll
        self._last_query = -float("inf")
        self._known: dict[str, bool] = {}

    def look(self, jobs: Iterable[str], *, at_once: bool = False) -> None:
        """Ask for these jobs together if the interval is over, or, with `at_once`, if one of them is new."""
        wanted = [job for job in jobs if job]
        over = time.monotonic() - self._last_query >= self._every
        if wanted and (over or (at_once and not self._known.keys() >= set(wanted))):
            self._ask(wanted)

    def has(self, job: str) -> bool:
        """Return True if a job was listed when the scheduler was last asked."""
        if job not in self._known:
            self._ask([job])
        return self._known[job]

    def _ask(self, jobs: list[str]) -> None:
        """Ask the scheduler for these jobs; if it does not answer, keep the last answer for each."""
        try:
            listed = squeue.queued(jobs)
            self._known |= {job: job in listed for job in jobs}
        except (LookupError, RuntimeError):
            self._known |= {job: self._known.get(job, True) for job in jobs}
        self._last_query = time.monotonic()
