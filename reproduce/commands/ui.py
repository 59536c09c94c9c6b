"""The addresses that `invoke ui` prints: each experiment's runs, and the saved views of the tables.

check_port(5000)                               # before anything is printed
for line in addresses(store, 5000, "table11"):
print(line)
"""

from __future__ import annotations

import errno
import os
import socket

from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.plan import SCALES, registered, table_names
from reproduce.tracking.store import Store
from reproduce.tracking.views import OVER_ALL, PRETRAINING, charts

MOST_PORTS = 100
"""Maximum number of ports after one in use that are tried, to name a free one."""


def check_port(port: int) -> None:
    """Raise InvalidError if the server cannot use a port; the message names one that is free."""
    problem = _problem(port)
    if problem is None:
        return
    others = range(port + 1, min(port + MOST_PORTS, 65535) + 1)
    free = next((other for other in others if _problem(other) is None), None)
    hint = "choose another with --port" if free is None else f"use --port {free}"
    state = "is in use" if problem == errno.EADDRINUSE else f"cannot be used ({os.strerror(problem)})"
    raise InvalidError(f"Port {port} {state}: {hint}.")


def _problem(port: int) -> int | None:
    """Return the error number of an attempt to use a port, or None."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno
    return None


def addresses(store: Store, port: int, table: str = "") -> list[str]:
    """Write the saved views that are missing, and return one line for each address, or one that has none.

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
        known = [OVER_ALL, PRETRAINING, *table_names()]
        keys = [key for key in sorted(page.views) if key == table or key.startswith(f"{table}-")]
        found = {key: page.views[key] for key in (keys if table else known) if key in page.views}
        if found or not table:
            lines.append(f"msbreg/{name}: {page.runs}")
        lines += [f"msbreg/{name}, {key}: {address}" for key, address in found.items()]
        lines += [
            f"msbreg/{name}, {key}, charts: {charts(address)}" for key, address in found.items() if table
        ]
    what = f"no runs of {table} yet" if table else "no runs yet"
    return lines or [f"{what}: {store.served(port)}"]
