"""A tracking store that does not answer for a while: what counts as that, how long is waited for it, and what
never gets better.

retrying(lambda: client.set_tag(...), unreachable=unreachable, seconds=RETRY_SECONDS)      # again and again, until it works
with giving_up_after(SHORT_TIMEOUT):                                             # MLflow itself would go on trying
for minutes
    client.log_batch(...)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from reproduce.runs import interrupt

T = TypeVar("T")

RETRY_SECONDS = 600.0
"""Seconds that a run with nothing else to do waits for its store. Servers and databases restart within
minutes; what takes longer is for
somebody to see to, and a GPU should not stand idle for it: nothing is lost, and the next call goes on."""
PAUSE = 5.0
"""Seconds between two attempts meanwhile."""
EVERY = 30.0
"""Seconds between two attempts while the run has other things to do, which each attempt delays."""
SHORT_TIMEOUT = 2
"""Seconds that such an attempt waits for an answer. A server that takes longer gets the measurements at the
end."""
UPLOAD = 600
"""Seconds that a server may take to store a file before it answers."""
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP's words for `later, perhaps`; MLflow says 500 too where nothing answers at all."""
FULL = ("database or disk is full", "disk I/O error")
"""SQLite's words for a file that cannot grow: the disk is full, or a quota or a limit is reached."""

logger = logging.getLogger(__name__)


class UnreachableError(ConnectionError):
    """The store did not answer for as long as was waited for it."""


def unreachable(error: Exception, *, file: bool) -> bool:
    """Whether a store that failed so may do the same a while later: it does not answer, or others keep its
    database locked.

    Args:
        file: the store is a file of this machine, of which MLflow says 503 whatever is wrong with it.
    """
    if isinstance(error, ConnectionError):
        return True
    status = getattr(
        error, "get_http_status_code", None
    )  # of MLflow's exceptions, which need not be imported for this
    return status is not None and ("database is locked" in str(error) if file else status() in TRANSIENT)


def disk_full(error: Exception) -> str:
    """What SQLite says where its file cannot grow; empty: something else is wrong."""
    return next((words for words in FULL if words in str(error)), "")


def retrying(action: Callable[[], T], *, unreachable: Callable[[Exception], bool], seconds: float) -> T:
    """Does it, again and again while the store is away; being told to stop ends the waiting at once.

    Raises:
        UnreachableError: it still was after `seconds`.
        Exception: as `action`; where `seconds` is 0, that of a store that is away too.
    """
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            return action()
        except Exception as error:
            if seconds == 0 or isinstance(error, UnreachableError) or not unreachable(error):
                raise
            if time.monotonic() >= deadline:
                raise UnreachableError(
                    f"The tracking store did not answer for {seconds:.0f} s ({in_short(error)}). Nothing is lost: "
                    "start it, and the same command goes on from here."
                ) from error
            if not told:
                logger.warning(
                    "The tracking store does not answer (%s); waiting for it, %.0f s at most.",
                    in_short(error),
                    seconds,
                )
                told = True
        _wait(PAUSE)


@contextmanager
def giving_up_after(seconds: int) -> Iterator[None]:
    """Inside, MLflow asks a server once and waits so long for its answer."""
    hasty = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }  # read at each request
    before = {name: os.environ.get(name) for name in hasty}
    os.environ.update(hasty)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def in_short(error: BaseException) -> str:
    """The first line of an exception, without its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _wait(seconds: float) -> None:
    """Sleeps, but not past a request to stop, even where such requests wait to be looked at."""
    deadline = time.monotonic() + seconds
    with interrupt.deferred() as asked:
        while (left := deadline - time.monotonic()) > 0:
            if reason := asked():
                interrupt.stop(reason)
            time.sleep(min(0.1, left))
