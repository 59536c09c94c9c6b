"""Retries for a tracking store that does not answer for a while.

    retrying(lambda: client.set_tag(...), seconds=RETRY_SECONDS)
    with giving_up_after(SHORT_TIMEOUT):            # MLflow itself would retry for minutes
        client.log_batch(...)
    with held(path, seconds=60): ...                # waits for a lock, and names its holder

`errors.py` decides which errors are temporary and worth a retry.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from reproduce.messages import age
from reproduce.runs import interrupt
from reproduce.tracking.errors import StoreError, UnreachableError, in_short, temporary
from reproduce.tracking.locks import holders

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
ANSWER = 10
"""Seconds that a command waits for an answer, twice, before it names the problem."""
ANSWER_IN_A_RUN = 30
"""Seconds that a run waits for an answer, twice, before `retrying` repeats the request."""
QUIET = 3.0
"""Seconds of waiting for a lock before a line names its holder; most locks are held for tenths of a
second."""
UPLOAD = 600
"""Maximum number of seconds for a server to store a file."""
logger = logging.getLogger(__name__)


def retrying(action: Callable[[], T], *, seconds: float) -> T:
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
            if seconds == 0 or isinstance(error, UnreachableError) or not temporary(error):
                raise
            if time.monotonic() >= deadline:
                raise UnreachableError(
                    f"The tracking store did not answer for {age(seconds)} ({_sentence(error)}). Nothing is "
                    "lost: once it answers, the same command resumes."
                ) from error
            if not warned:
                logger.warning(
                    "The tracking store does not answer (%s); retrying for up to %s.",
                    _sentence(error),
                    age(seconds),
                )
                warned = True
        _wait(PAUSE)


@contextmanager
def giving_up_after(seconds: int) -> Iterator[None]:
    """Make MLflow ask a server once and wait at most `seconds` for its answer, inside the block."""
    # MLflow reads these at each request.
    with variables({"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}):
        yield


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def held(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock file at `path` inside the block; a longer wait for it is logged with its holder.

    Raises:
        StoreError: another process held the lock for `seconds`.
    """
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=min(QUIET, seconds))
    except filelock.Timeout:
        logger.warning("Waiting for the lock %s, which %s holds.", path, holders(path))
        try:
            lock.acquire(timeout=max(0.0, seconds - QUIET))
        except filelock.Timeout:
            raise StoreError(
                f"The lock {path} is held by {holders(path)}, for {age(seconds)} already: wait until it "
                "ends, or stop it.",
                temporary=True,
            ) from None
    try:
        yield
    finally:
        lock.release()


def _sentence(error: Exception) -> str:
    """Return an error for use inside a sentence."""
    return in_short(error).rstrip(".")


def _wait(seconds: float) -> None:
    """Sleep, but not past a stop request, even where such requests are deferred."""
    deadline = time.monotonic() + seconds
    with interrupt.deferred() as stop_reason:
        while (left := deadline - time.monotonic()) > 0:
            if reason := stop_reason():
                interrupt.stop(reason)
            time.sleep(min(0.1, left))
