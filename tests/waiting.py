"""Waits that end: for messages, processes, threads and lines of output, and ports that stay free.

A wait that takes longer than its limit fails and names what did not happen. Limits are far longer than what
they wait for; the limit of a whole test is `timeout` in pyproject.toml.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

SECONDS = 300.0


def until(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Poll until the condition is true, which another process or thread makes so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds:.0f} s")
        threading.Event().wait(0.05)


def received(pipe: Connection, seconds: float = SECONDS) -> Any:
    """Return the next message of a pipe.

    Raises:
        EOFError: the other end was closed.
    """
    if not pipe.poll(seconds):
        pytest.fail(f"no message arrived within {seconds:.0f} s")
    return pipe.recv()


def joined(process: BaseProcess, seconds: float = SECONDS) -> int | None:
    """Wait for the end of a process and return its exit code, -n after signal n; kill it at the limit."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"{process.name} did not end within {seconds:.0f} s")
    return process.exitcode


def thread_joined(thread: threading.Thread, seconds: float = SECONDS) -> None:
    """Wait for the end of a thread."""
    thread.join(seconds)
    if thread.is_alive():
        pytest.fail(f"{thread.name} did not end within {seconds:.0f} s")


@contextmanager
def limited(process: subprocess.Popen[Any], seconds: float = SECONDS) -> Iterator[None]:
    """Kill a process that is alive after so many seconds, so that a block that reads its output ends."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def free_ports(num: int = 1) -> Iterator[list[int]]:
    """Yield ports for servers that processes start inside the block.

    A socket is bound to each and never listens. The system therefore gives the port to no other process, but
    a server that asks for this number gets it.
    """
    held = [socket.socket() for _ in range(num)]
    try:
        for each in held:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def answers(process: subprocess.Popen[Any], url: str, seconds: float = SECONDS) -> bool:
    """Wait until a server answers; return False if it ends before."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            if time.monotonic() > deadline:
                pytest.fail(f"{url} did not answer within {seconds:.0f} s")
            threading.Event().wait(0.1)
    return False
