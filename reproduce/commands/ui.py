"""The addresses that `invoke ui` prints: each experiment's runs, and the saved views of the tables."""

from __future__ import annotations

from reproduce.messages import NotFoundError, unknown
from reproduce.plan import SCALES, registered, table_names
from reproduce.tracking.store import Store
from reproduce.tracking.views import OVER_ALL, PRETRAINING, charts


def addresses(store: Store, port: int, table: str = "") -> list[str]:
    """Write the saved views that are missing, and return one line for each address.

    Args:
        table: table whose addresses are returned; empty for all.

    Raises:
        NotFoundError: the table does not exist.
    """
    if table and table not in table_names():
        raise NotFoundError(unknown("table", table, table_names()))
    pages = store.pages(port)
    store.save_views({scale: registered(scale) for scale in SCALES if scale in pages})
    lines = []
    for name, page in store.pages(port).items():
        keys = [table] if table else [OVER_ALL, PRETRAINING, *table_names()]
        found = {key: page.views[key] for key in keys if key in page.views}
        if not table or not found:
            lines.append(f"msbreg/{name}: {page.runs}")
        lines += [f"msbreg/{name}, {key}: {address}" for key, address in found.items()]
        lines += [
            f"msbreg/{name}, {key}, charts: {charts(address)}" for key, address in found.items() if table
        ]
    return lines
