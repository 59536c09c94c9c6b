"""States of the runs: `invoke status`.

    for line in lines(site, store, Filter(scale="small", state="running")):
        print(line)

Progress and time left of a run under way are those of its last heartbeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from reproduce import messages
from reproduce.commands import verify
from reproduce.messages import NotFoundError, counted, unknown
from reproduce.plan import BASELINES, CUSTOM, SCALES, NotHereError, Request, table_names
from reproduce.runs.claims import Claims
from reproduce.runs.lease import Lease
from reproduce.site import Site
from reproduce.tracking.tags import RunState, State, group

if TYPE_CHECKING:
    from reproduce.tracking.store import Store

STATES = (*get_args(State), "queued", "locked")
"""States that a line may have."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """The runs that are listed; empty fields impose no condition.

    A queued or locked run whose record is missing has an unknown scale, and is listed at every scale.
    """

    scale: str = ""
    state: str = ""
    table: str = ""
    """Table whose rows use the runs, with any seed and any choice of baselines, but without changed settings.
    """
    limit: int | None = None
    """Maximum number of lines about runs, the newest first; None for all."""

    def check(self) -> None:
        """Raise NotFoundError if the scale, the state or the table does not exist."""
        known = {
            "scale": (self.scale, (*SCALES, CUSTOM)),
            "state": (self.state, STATES),
            "table": (self.table, table_names()),
        }
        for kind, (asked, names) in known.items():
            if asked and asked not in names:
                raise NotFoundError(unknown(kind, asked, names))


def lines(site: Site, store: Store, chosen: Filter | None = None) -> Iterator[str]:
    """Yield one line for each queued or doubtful run, for each record, and for each fault that is known.

    Raises:
        NotFoundError: the filter names something that does not exist.
        ConnectionError: the tracking store does not answer.
    """
    chosen = chosen or Filter()
    chosen.check()
    claims, rows = Claims(site), store.status()
    queued = claims.queued()
    groups = _groups(chosen) if chosen.table else None
    seen = {row.spec_id: row for row in rows}
    found = []
    for state, leases in (("queued", queued), ("locked", claims.doubtful())):
        for spec_id, lease in leases.items():
            row = seen.get(spec_id)
            if chosen.state in ("", state) and _fits(row.scale if row else "", row, spec_id, chosen, groups):
                found.append(f"{state:<11}  {spec_id}  {lease.who}")
    running = claims.leases(row.spec_id for row in rows if row.state == "running")
    for row in rows:
        listed = row.state == "finished" or row.spec_id not in queued
        if listed and chosen.state in ("", row.state) and _fits(row.scale, row, row.spec_id, chosen, groups):
            found.append(str(_with_progress(row, running.get(row.spec_id))))
    yield from found[: chosen.limit]
    if more := len(found) - len(found[: chosen.limit]):
        yield f"{counted(more, 'more run')}; --limit is {chosen.limit}."
    yield from verify.recalled(site, store)


def progress(lease: Lease) -> str:
    """Return the progress of a run and its time left, in words; empty if its owner has not reported any."""
    if lease.state != "running" or lease.progress is None or not lease.progress.total:
        return ""
    done = f"{lease.progress.done / lease.progress.total:.0%}"
    left = "" if lease.left is None else f"{messages.clock(lease.left)} left"
    return ", ".join(filter(None, (done, lease.progress.note, left)))


def _with_progress(row: RunState, lease: Lease | None) -> RunState:
    """Return the line of a run with the progress of its owner."""
    told = progress(lease) if row.state == "running" and lease else ""
    return replace(row, reason=f"{told}; {row.reason}") if told else row


def _fits(
    scale: str, row: RunState | None, spec_id: str, chosen: Filter, groups: frozenset[str] | None
) -> bool:
    """Return True if a run has the scale, if known, and belongs to the table that were chosen."""
    if chosen.scale and scale and scale != chosen.scale:
        return False
    return groups is None or spec_id in groups or (row is not None and row.group in groups)


def _groups(chosen: Filter) -> frozenset[str]:
    """Return the groups of a table's runs, which are the ids of seed 0, at the chosen scales."""
    found = set()
    for scale in (chosen.scale,) if chosen.scale in SCALES else SCALES:
        for baselines in BASELINES:
            try:
                request = Request(table=chosen.table, scale=scale, baselines=baselines)
                found |= {group(spec) for spec in request.specs()}
            except NotHereError:
                continue
    return frozenset(found)
