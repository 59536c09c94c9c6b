"""Runs that share the GPU of a scheduler's job: real processes without a scheduler, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Home

from reproduce.plan import Job, Request, jobs
from reproduce.runs import cores, environment
from reproduce.runs import lease as leases
from reproduce.runs.lease import Lease
from reproduce.worker import FAILED, INTERRUPTED, digest_of_list

pytestmark = pytest.mark.slow

OURS = {"table": "table4", "rows": "Ours*", "changes": ("epochs=15", "num_train=200", "warmup_epochs=1")}


class Node(Home):
    """A node with a job of a scheduler."""

    def submit(self, wanted: Sequence[Job]) -> Path:
        """Return a list of runs."""
        lines = [json.dumps({"request": job.request.dumps(), "id": job.spec.id}) + "\n" for job in wanted]
        path = self.runs / "slurm" / digest_of_list("".join(lines)) / "jobs.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(lines))
        return path

    def begin(self, path: Path, element: int, num: int) -> subprocess.Popen[str]:
        """Start an element of array 7."""
        job = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(element)}
        return subprocess.Popen(
            [sys.executable, "-m", "reproduce.resources.together", str(path), str(element), str(num)],
            cwd=ROOT,
            env=self.environment | job,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lease(self, job: Job) -> Lease:
        found = leases.read(self.runs / job.spec.id, job.spec.id)
        assert found is not None
        return found


@pytest.fixture
def node(place: Home) -> Node:
    return Node(place.folder, 'device = "cpu"\nheartbeat = 0.5\ncheckpoint_seconds = 0\n')


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_run_stops_no_other_and_an_interrupted_one_resumes(node: Node) -> None:
    """The third run of the list belongs to the next element, which is not started."""
    wanted = [job for job in jobs([Request(**OURS, seeds=3)]) if not job.spec.needs()]
    first, second, third = wanted
    path = node.submit(wanted)
    begun = node.begin(path, 0, 2)

    def trains(job: Job) -> bool:
        found = leases.read(node.runs / job.spec.id, job.spec.id)
        return bool(found and found.state == "running" and found.progress and found.progress.done)

    until(lambda: trains(first) and trains(second))
    assert not (node.runs / third.spec.id).exists()
    variables = psutil.Process(node.lease(first).pid).environ()
    assert variables[environment.SHARING] == variables[cores.PROCESSES] == "2"

    os.kill(node.lease(first).pid, signal.SIGKILL)
    until(lambda: node.lease(first).state == "failed")
    assert node.lease(first).reason == "its process ended with signal 9"
    assert (node.lease(second).state, node.lease(second).job) == ("running", "7_0")
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(60) == INTERRUPTED
    assert (node.lease(second).state, node.lease(second).reason) == ("interrupted", "SIGTERM")

    again = node.begin(path, 0, 2)
    until(lambda: node.lease(second).state == "running")
    assert psutil.Process(node.lease(second).pid).environ()[environment.SHARING] == "1"
    printed, errors = again.communicate(timeout=120)
    assert again.returncode == FAILED
    assert f"Run {first.spec.id} failed when this job ran before." in errors
    assert printed.count('"event": "started"') == printed.count('"event": "finished"') == 1
    assert node.lease(second).state == "finished"


def test_a_run_that_fails_stops_no_other_and_neither_is_repeated(node: Node) -> None:
    """The evaluation has no encoder."""
    short = OURS | {"changes": ("epochs=2", "num_train=100", "warmup_epochs=1")}
    (one, _), (_, without) = jobs([Request(**short)]), jobs([Request(**OURS)])
    path = node.submit([without, one])
    done = node.begin(path, 0, 4)
    printed, _ = done.communicate(timeout=120)
    assert done.returncode == FAILED
    assert printed.count('"event": "finished"') == 1
    assert node.lease(one).state == "finished"
    assert (node.lease(without).state, node.lease(without).job) == ("failed", "7_0")
    assert "needs run" in node.lease(without).reason

    again = node.begin(path, 0, 4)
    printed, errors = again.communicate(timeout=60)
    assert (again.returncode, printed) == (FAILED, "")
    assert errors.splitlines() == [
        f"Run {without.spec.id} failed when this job ran before.",
        f"Run {one.spec.id} finished when this job ran before.",
    ]
