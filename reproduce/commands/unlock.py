"""Free a run whose lease keeps it although its owner is gone (`invoke unlock`).

A lease is judged by its process on this machine, by its heartbeats, or by the scheduler's queue. A run is
taken from a live owner only with `--force`; the owner then notices it before it writes again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from reproduce import identity
from reproduce.messages import InvalidError, NotFoundError, age
from reproduce.runs import lease as leases
from reproduce.runs import processes, squeue
from reproduce.runs.lease import MISSED, Lease
from reproduce.site import Site

BEGINNING = re.compile("[0-9a-f]{1,12}")
LOOK = 0.2
"""Seconds between two looks at a lease that is watched."""
LONGEST_WATCH = 60.0
"""Maximum number of seconds for which a lease is watched."""


def unlock(site: Site, name: str, *, force: bool) -> Iterator[str]:
    """Free a run, and yield what is done, one line at a time.

    Args:
        name: id of the run, or its beginning.
        force: free the run even if its owner seems to be alive.

    Raises:
        LookupError: the run does not exist, or it has no lease.
        ValueError: several ids begin with `name`, or the owner is alive.
        OSError: the lease cannot be changed.
    """
    spec_id = _named(site, name)
    folder = site.runs / spec_id
    seen, found = leases.mark(folder), leases.read(folder, spec_id)
    if found is None:
        raise NotFoundError(f"Run {spec_id} has no lease, so nothing keeps it from being executed.")
    if found.state in ("finished", "failed", "interrupted"):
        yield f"Run {spec_id} is free already: its last owner, {found.owner}, left it {found.state}."
        return
    if not force:
        if found.alive and (found.state == "unreadable" or (found.ahead and not _here(found))):
            seconds = min(LONGEST_WATCH, MISSED * (site.heartbeat if not found.pid else found.heartbeat))
            yield f"Watching the lease of run {spec_id} for a heartbeat, for up to {age(seconds)} ..."
            if _changes(folder, seen, seconds):
                seen, found = leases.mark(folder), leases.read(folder, spec_id)
                owner = found.owner if found else "its owner"
                raise InvalidError(f"Run {spec_id} stays locked: {owner} has just renewed its lease.")
        elif alive := _alive(found):
            raise InvalidError(
                f"Run {spec_id} stays locked: {found.owner} {alive}. Stop it, or use --force if it is gone."
            )
    if not leases.free(folder, spec_id, seen):
        raise InvalidError(f"Run {spec_id} stays locked: its lease has just changed.")
    yield f"Run {spec_id} is free: it belonged to {found.owner}. The same command as before resumes it."


def _named(site: Site, name: str) -> str:
    """Return the id of the only local run whose id begins with `name`."""
    if not BEGINNING.fullmatch(name):
        raise InvalidError(
            f"'{name}' is not the id of a run: up to 12 of the digits 0-9 and a-f are expected."
        )
    folders = site.runs.iterdir() if site.runs.is_dir() else ()
    found = sorted(
        path.name for path in folders if identity.ID.fullmatch(path.name) and path.name.startswith(name)
    )
    if not found:
        raise NotFoundError(f"{site.runs} has no run '{name}': `invoke status` lists the runs that exist.")
    if len(found) > 1:
        raise InvalidError(f"Several runs in {site.runs} begin with '{name}': {', '.join(found)}.")
    return found[0]


def _here(lease: Lease) -> bool:
    """Return True if the process that took the lease still exists on this machine, even suspended."""
    here = lease.host == processes.this_host()
    return here and processes.process_alive(lease.host, lease.pid, lease.started)


def _alive(lease: Lease) -> str:
    """Return why the owner of a lease counts as alive, in words, or "" if it is gone.

    Raises:
        ValueError: the scheduler does not answer.
    """
    if lease.state == "queued":
        try:
            state = squeue.queued([lease.job]).get(lease.job)
        except (LookupError, RuntimeError) as error:
            raise InvalidError(
                f"Run {lease.spec_id} stays locked: whether {lease.owner} waits is unknown ({error}). "
                "Use --force if it is gone."
            ) from None
        return f"is in the queue ({state})" if state else ""
    if _here(lease):
        return "exists"
    return f"sent a heartbeat {age(lease.age)} ago" if lease.alive else ""


def _changes(folder: Path, seen: tuple[int, int, int] | None, seconds: float) -> bool:
    """Return True if the lease's file changes within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(LOOK)
        if leases.mark(folder) != seen:
            return True
    return False
