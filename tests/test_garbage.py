"""The search for garbage is spared where there is none, and the objects of a run are searched as usual."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT, Home

PROCESS = """
import atexit, gc, weakref

class Network:
    pass

def dropped():
    network = Network()
    network.own = network
    return weakref.ref(network)

atexit.register(lambda: print("at the end", bool(gc.get_objects())))
usual = gc.get_threshold()

from reproduce.runs import garbage

garbage.spare()
print("imports", gc.get_threshold()[2] > usual[2], gc.get_freeze_count())
garbage.resume()
imported = gc.get_freeze_count()
print("work", gc.get_threshold() == usual, imported > 0)
network = dropped()
garbage.resume()
print("again", gc.get_freeze_count() == imported)
gc.collect()
print("collected", network() is None)
"""


def test_a_process_searches_what_its_runs_made_and_nothing_when_it_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "imports True 0",
        "work True True",
        "again True",
        "collected True",
        "at the end False",
    ]


@pytest.mark.parametrize("arguments", [("invoke", "--list"), ("reproduce.worker",)])
def test_commands_and_workers_end_without_a_search(arguments: tuple[str, ...], home: Home) -> None:
    started = (
        "import atexit, gc, runpy, sys; "
        "atexit.register(lambda: print(bool(gc.get_objects()), file=sys.stderr)); "
        f"sys.argv = {list(arguments)}; runpy.run_module({arguments[0]!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", started],
        cwd=ROOT,
        env=home.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "False\n"
