"""Stop requests to a run: Ctrl-C, SIGTERM, or a call of `ask`, for example when the parent process is gone.

    listen()                             # once, in the main thread
    with deferred() as stop_reason:      # stop requests are held back here ...
        for ...:
            train_a_step()
            if reason := stop_reason():  # ... until the caller checks, saves its state and stops
                save()
                stop(reason)

Outside `deferred` a stop request ends the run at once: there is nothing to save, or it is saved already.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

ECHO = 2.0
"""Seconds within which a second signal counts as an echo: torchrun repeats the terminal's Ctrl-C."""
ELSEWHERE = "another process of the run received a stop request"
"""Reason that the other processes of a run give when they stop together with one that received a stop
request."""


class Interrupted(KeyboardInterrupt):
    """The run received a stop request; the message names its source.

    It is not an `Exception`, so code that handles failures lets it through.
    """


class _Request:
    """The stop request of this process, if there is one."""

    def __init__(self) -> None:
        self.reason = ""
        """Reason of a deferred request, until the caller checks; empty if there is none."""
        self.asked = ""
        """Reason that was passed to `ask`, until the signal handler takes it."""
        self.last = -math.inf
        """Time of the last signal, by the monotonic clock."""
        self.depth = 0
        """Number of `deferred` blocks that are open."""
        self.listening = False


_request = _Request()


def listen() -> None:
    """Make SIGINT and SIGTERM raise `Interrupted` from now on.

    Inside `deferred` the first signal waits until the caller checks; a second one raises at once.

    Raises:
        ValueError: this is not the main thread.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _received)
    _request.listening = True


def ask(reason: str) -> None:
    """Request a stop of this process, as a signal would, from any thread.

    Before `listen`, only a caller that checks inside `deferred` sees the request.
    """
    if not _request.listening:
        _request.reason = reason
        return
    _request.asked = reason
    # Only the main thread knows whether it is inside `deferred`. It may also be blocked in a system call,
    # which only a signal to this thread ends.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[Callable[[], str]]:
    """Hold back stop requests inside the block; blocks may be nested.

    The block receives a function that returns the reason of a request, or "" if there is none. The caller
    checks it, saves its state and calls `stop`.

    Raises:
        Interrupted: a second signal arrived; or the block ended, with or without an error, before the caller
            acted on the first.
    """
    _request.depth += 1
    try:
        yield lambda: _request.reason
    except Exception as error:
        # The request may have caused the error: a signal reaches all processes of a group.
        if reason := _left():
            raise Interrupted(reason) from error
        raise
    except BaseException:
        _left()
        raise
    if reason := _left():
        stop(reason)


def stop(reason: str) -> NoReturn:
    """End the run.

    Raises:
        Interrupted: always, with the reason.
    """
    raise Interrupted(reason)


def _left() -> str:
    """Leave one `deferred` block; return the reason of a pending request if it was the outermost."""
    _request.depth -= 1
    if _request.depth:
        return ""
    reason, _request.reason = _request.reason, ""
    return reason


def _received(signum: int, frame: object) -> None:
    """Handle both signals; Python calls this in the main thread."""
    reason, _request.asked = _request.asked or signal.Signals(signum).name, ""
    now = time.monotonic()
    if now - _request.last < ECHO:
        return
    _request.last = now
    if _request.depth and not _request.reason:
        _request.reason = reason
        return
    stop(_request.reason or reason)
