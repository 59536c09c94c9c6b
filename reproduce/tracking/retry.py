"""Retries for a tracking store that does not answer for a while.

    retrying(lambda: client.set_tag(...), unreachable=unreachable, seconds=RETRY_SECONDS)
    with giving_up_after(SHORT_TIMEOUT):            # MLflow itself would retry for minutes
        client.log_batch(...)

The module also decides which errors are temporary and worth a retry.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from reproduce.messages import age, first_line
from reproduce.runs import interrupt

T = TypeVar("T")

RETRY_SECONDS = 600.0
"""Seconds that a run with nothing else to do waits for its store. Servers and databases restart within
minutes. A longer outage needs a person, and a GPU should not stay idle meanwhile: nothing is lost, and the
next command resumes."""
PAUSE = 5.0
"""Seconds between two attempts of a run that waits."""
EVERY = 30.0
"""Seconds between two attempts of a run that continues to work, because each attempt delays it."""
SHORT_TIMEOUT = 2
"""Seconds that such an attempt waits for an answer. A slower server receives the measurements at the end of
the run."""
UPLOAD = 600
"""Maximum number of seconds for a server to store a file."""
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP status codes of errors that may be temporary; MLflow reports 500 even if no server answers."""
FULL = ("database or disk is full", "disk I/O error")
"""SQLite's messages for a file that cannot grow because the disk is full or a quota is reached."""

logger = logging.getLogger(__name__)


class UnreachableError(ConnectionError):
    """The store did not answer within the waiting time."""


def unreachable(error: Exception, *, file: bool) -> bool:
    """Return whether an error may be temporary: the store does not answer, or its database is locked.

    Args:
        file: True if the store is a local file, for which MLflow reports 503 whatever the problem is.
    """
    if isinstance(error, ConnectionError):
        return True
    status = getattr(error, "get_http_status_code", None)  # recognises MLflow's exceptions without an import
    return status is not None and ("database is locked" in str(error) if file else status() in TRANSIENT)


def disk_full(error: Exception) -> str:
    """Return SQLite's message if its file cannot grow, or "" if the problem is a different one."""
    return next((words for words in FULL if words in str(error)), "")


def retrying(action: Callable[[], T], *, unreachable: Callable[[Exception], bool], seconds: float) -> T:
    """Run `action`, and repeat it while the store is unreachable; a stop request ends the wait at once.

    Raises:
        UnreachableError: the store was still unreachable after `seconds`.
        Exception: any other exception of `action`; if `seconds` is 0, also that of an unreachable store.
    """
    deadline, warned = time.monotonic() + seconds, False
    while True:
        try:
            return action()
        except Exception as error:
            if seconds == 0 or isinstance(error, UnreachableError) or not unreachable(error):
                raise
            if time.monotonic() >= deadline:
                raise UnreachableError(
                    f"The tracking store did not answer for {age(seconds)} ({in_short(error)}). Nothing is "
                    "lost: start the store, and the same command resumes."
                ) from error
            if not warned:
                logger.warning(
                    "The tracking store does not answer (%s); retrying for up to %s.",
                    in_short(error),
                    age(seconds),
                )
                warned = True
        _wait(PAUSE)


@contextmanager
def giving_up_after(seconds: int) -> Iterator[None]:
    """Make MLflow ask a server once and wait at most `seconds` for its answer, inside the block."""
    # MLflow reads these at each request.
    hasty = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in hasty}
    os.environ.update(hasty)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def in_short(error: BaseException) -> str:
    """Return the first line of an exception, without the exception's name."""
    return (first_line(error) or type(error).__name__)[:200]


def _wait(seconds: float) -> None:
    """Sleep, but not past a stop request, even where such requests are deferred."""
    deadline = time.monotonic() + seconds
    with interrupt.deferred() as stop_reason:
        while (left := deadline - time.monotonic()) > 0:
            if reason := stop_reason():
                interrupt.stop(reason)
            time.sleep(min(0.1, left))
