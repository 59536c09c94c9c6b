"""States of the runs: `invoke status`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from reproduce.commands import verify
from reproduce.runs.claims import Claims
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.tracking.store import Store


def lines(site: Site, store: Store) -> Iterator[str]:
    """Yield one line for each queued or doubtful run, for each record, and for each fault that is known.

    Raises:
        ConnectionError: the tracking store does not answer.
    """
    claims = Claims(site)
    queued = claims.queued()
    for state, found in (("queued", queued), ("locked", claims.doubtful())):
        for spec_id, lease in found.items():
            yield f"{state:<11}  {spec_id}  {lease.who}"
    for row in store.status():
        if row.state == "finished" or row.spec_id not in queued:
            yield str(row)
    yield from verify.recalled(site, store)
