"""Identity of a process: its machine, its number and its start; the scheduler's job that it belongs to.

    process()                                # {"host": ..., "pid": ..., "started": ...}, of this process
    process_alive(host, pid, started)        # of another process on this machine

Numbers are reused, so a process is identified by its start, too.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

NUMBERS, MACHINES = Path("/proc/self/ns/pid"), "pid:[4026531836]"
"""Link that names the PID namespace of this process on Linux, and its target outside all containers."""


def this_host() -> str:
    """Return the name of this machine; in a container, also of its PID namespace.

    Several containers may share a machine and its name.
    """
    try:
        numbers = str(NUMBERS.readlink())
    except OSError:  # not Linux
        numbers = MACHINES
    return socket.gethostname() if numbers == MACHINES else f"{socket.gethostname()} {numbers}"


def process() -> dict[str, Any]:
    """Return `host`, `pid` and start time (`started`), which together identify this process uniquely."""
    import psutil

    return {"host": this_host(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def process_alive(host: str, pid: int, started: float, *, heard: bool | None = None) -> bool:
    """Return True if a process of this machine is still alive.

    Args:
        heard: True if its last heartbeat is recent. Then a start time that differs is accepted, because the
            clock may have been set since. False if heartbeats are missing; then a suspended process counts as
            gone. None if it sends no heartbeats.
    """
    import psutil

    assert host == this_host()
    try:
        found = psutil.Process(pid)
        same = abs(found.create_time() - started) < 2  # seconds; the clock is adjusted slightly all the time
        gone = (
            psutil.STATUS_ZOMBIE,
            psutil.STATUS_DEAD,
            *((psutil.STATUS_STOPPED,) if heard is False else ()),
        )
        return bool((same or heard) and found.status() not in gone)
    except psutil.NoSuchProcess:
        return False


def job_of_environment() -> str:
    """Return the Slurm job of this process in squeue's notation, or "" if there is none."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")
