"""Processes fight for one run while others suspend and kill them, and the history shows one owner at a time.

    MSBREG_HISTORY=120 pytest tests/test_lease_history.py      # seconds; 15 by default

Each process takes the run whenever it is free, and appends a line before and after everything that only the
owner may do. Half of them seem to be on another machine, so their death is judged by their heartbeats. The
checker is a function of the lines, with tests of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import ROOT

from reproduce.runs import lease

SECONDS = float(os.environ.get("MSBREG_HISTORY", "15"))
SEED = int(os.environ.get("MSBREG_HISTORY_SEED", "0"))
NUM_PROCESSES = 4
PAUSES = (0.05, 0.4, 0.9)
"""Seconds for which a process is suspended; its run is free after 0.3."""
CONTENDER = """
import os, random, socket, sys, time
from pathlib import Path
from reproduce.runs import lease

folder, host, end, draw = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), random.Random(sys.argv[4])
if host:
    socket.gethostname = lambda: host
history = os.open(folder / "history", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(what, held):
    os.write(history, f"{what} {held.token}\\n".encode())

while time.time() < end:
    try:
        held = lease.take(folder, "0123456789ab", heartbeat=0.1)
    except lease.BusyError:
        time.sleep(0.02)
        continue
    note("taken", held)
    try:
        with held:
            for _ in range(draw.randrange(1, 40)):
                with held.guard():
                    note("enters", held)
                    time.sleep(draw.random() * 0.01)
                    note("leaves", held)
                note("checks", held)
                held.check()
                note("checked", held)
                time.sleep(0.01)
    except lease.LostError:
        note("lost", held)
"""
Line = tuple[str, str]
"""Event, and the owner's token."""


def violations(history: Iterable[Line]) -> list[str]:
    """Return what no history of a lease may contain, in words.

    The events of an owner are `taken`; `enters` and `leaves`, of a section that no other owner may overlap;
    `checks` and `checked`, before and after a check that it owns the run; and `lost`. A killed process leaves
    no further line, so another owner may enter the section that it has left open.
    """
    found = []
    owners: list[str] = []
    """Tokens in the order of their first section or check."""
    inside = ""
    late: dict[str, int] = {}
    """Number of owners when the check of a token began."""
    for number, (event, token) in enumerate(history, start=1):
        superseded = token in owners[:-1]
        if event == "enters":
            if superseded:
                found.append(f"line {number}: {token} enters after a later owner")
            inside = token
        elif event == "leaves":
            if inside != token:
                found.append(f"line {number}: {token} leaves a section in which {inside or 'none'} is")
            inside = ""
        elif event == "checks":
            late[token] = superseded
        elif event == "checked" and late[token]:
            found.append(f"line {number}: {token} passes a check that began after a later owner")
        if event in ("enters", "checks") and token not in owners:
            owners.append(token)
    return found


def owner(folder: Path) -> int:
    """Return the number of the process that has the lease; 0 if none has had it yet."""
    with contextlib.suppress(FileNotFoundError):
        return int(json.loads((folder / lease.FILE).read_text())["pid"])
    return 0


def history(*words: str) -> list[Line]:
    """Return the lines of a history in short: `a(` enters, `a)` leaves, `a?` checks, `a!` is checked."""
    events = {"(": "enters", ")": "leaves", "?": "checks", "!": "checked"}
    return [(events[word[1]], word[0]) for word in words]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a( a) a? a! b( b) a?", ""),
        ("a( b( b)", ""),  # a was killed
        ("a( a) a? b( a! b)", ""),  # the check began before
        ("a( b( a) b)", "line 3: a leaves a section in which b is"),
        ("a( a) b( b) a( a)", "line 5: a enters after a later owner"),
        ("a( a) b( b) a? a!", "line 6: a passes a check that began after a later owner"),
        ("a( a) b( a? a! b)", "line 5: a passes a check that began after a later owner"),
    ],
)
def test_the_checker_finds_what_no_history_may_contain(words: str, says: str) -> None:
    found = violations(history(*words.split()))
    assert found[:1] == ([says] if says else [])


@pytest.mark.slow
def test_a_run_has_one_owner_at_a_time_while_processes_are_suspended_and_killed(tmp_path: Path) -> None:
    draw, end = random.Random(SEED), time.time() + SECONDS
    starts = 0

    def start(index: int) -> subprocess.Popen[bytes]:
        nonlocal starts
        starts += 1
        host = "elsewhere" if index % 2 else ""
        arguments = [str(tmp_path), host, str(end), str(SEED + starts)]
        return subprocess.Popen([sys.executable, "-c", CONTENDER, *arguments], cwd=ROOT)

    processes = [start(index) for index in range(NUM_PROCESSES)]
    stops = kills = 0
    while time.time() < end - 1:
        time.sleep(draw.random() * 0.3)  # the nemesis strikes at any time
        index = draw.randrange(NUM_PROCESSES)
        if draw.random() < 0.8:
            index = next((i for i, each in enumerate(processes) if each.pid == owner(tmp_path)), index)
        if draw.random() < 0.8:
            processes[index].send_signal(signal.SIGSTOP)
            time.sleep(draw.choice(PAUSES))
            processes[index].send_signal(signal.SIGCONT)
            stops += 1
        else:
            processes[index].kill()
            processes[index].wait()
            processes[index] = start(index)
            kills += 1
    codes = [process.wait(60) for process in processes]
    assert codes == [0] * NUM_PROCESSES
    lines = [
        (event, token) for event, token in map(str.split, (tmp_path / "history").read_text().splitlines())
    ]
    owners = {token for event, token in lines if event == "enters"}
    lost = sum(event == "lost" for event, _ in lines)
    print(f"{len(owners)} owners, {lost} of them superseded; {stops} suspensions, {kills} kills")
    assert violations(lines) == []
    assert len(owners) > 3
    assert lost > 0
    lease.take(tmp_path, "0123456789ab", heartbeat=1.0)
