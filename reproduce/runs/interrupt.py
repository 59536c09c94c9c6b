"""How a run is told to stop: by Ctrl-C, by SIGTERM, or by whoever notices that nobody waits for it any more.

    listen()                         # once, in the main thread
    with deferred() as asked:       # a request waits here ...
        for ...:
            train_a_step()
            if reason := asked():    # ... until somebody looks, who saves what is done and goes
                save()
                stop(reason)

Elsewhere a request ends the run at once: there is nothing to save, or it is saved already.
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
"""Seconds within which a signal is an echo of the one before it: a Ctrl-C comes from the terminal and again
from torchrun."""
ELSEWHERE = "another process of the run was told to stop"
"""The reason of the others where several processes stop together."""


class Interrupted(KeyboardInterrupt):
    """The run was told to stop; the message says by what. No `Exception`, so that what handles failures lets
    it through."""


class _Request:
    """What is asked of this process."""

    def __init__(self) -> None:
        self.reason = ""
        """Why to stop, until somebody looks; empty: go on."""
        self.asked = ""
        """The reason of whoever asked without a signal, until the handler takes it."""
        self.last = -math.inf
        """When the last signal came, by the monotonic clock."""
        self.depth = 0
        """How many `deferred` it is inside of."""
        self.listening = False


_request = _Request()


def listen() -> None:
    """From now on SIGINT and SIGTERM raise `Interrupted`: at once, or inside of `deferred` when somebody
    looks; a second one at once.

    Raises:
        ValueError: this is not the main thread.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _received)
    _request.listening = True


def ask(reason: str) -> None:
    """Tells this process to stop as a signal would, from any thread; before `listen`, only whoever looks
    learns of it."""
    if not _request.listening:
        _request.reason = reason
        return
    _request.asked = reason
    # The main thread decides, as it alone knows where it is; and it may wait in a system call, which only a
    # signal of its own ends.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[Callable[[], str]]:
    """Inside, what is yielded says why to stop (empty: go on); whoever looks saves and calls `stop`. It may
    be nested.

    Raises:
        Interrupted: a second signal came; or it ends, by an error too, and nobody has stopped for the first.
    """
    _request.depth += 1
    try:
        yield lambda: _request.reason
    except Exception as error:  # which may come of the request: a signal reaches the processes of a group, not this one alone
        if reason := _left():
            raise Interrupted(reason) from error
        raise
    except BaseException:
        _left()
        raise
    if reason := _left():
        stop(reason)


def stop(reason: str) -> NoReturn:
    """Ends the run.

    Raises:
        Interrupted: always, with the reason.
    """
    raise Interrupted(reason)


def _left() -> str:
    """Out of one `deferred`; the reason that nobody has stopped for, if it was the outermost."""
    _request.depth -= 1
    if _request.depth:
        return ""
    reason, _request.reason = _request.reason, ""
    return reason


def _received(signum: int, frame: object) -> None:
    """The handler of both signals, which Python calls in the main thread."""
    reason, _request.asked = _request.asked or signal.Signals(signum).name, ""
    now = time.monotonic()
    if now - _request.last < ECHO:
        return
    _request.last = now
    if _request.depth and not _request.reason:
        _request.reason = reason
        return
    stop(_request.reason or reason)
