"""The places of runs: a run must not depend on its neighbours, and a GPU executes one for each share."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from reproduce import plan
from reproduce.launch import local
from reproduce.plan import Request
from reproduce.readiness import RefusedError
from reproduce.site import Site


def test_a_run_on_a_cpu_has_one_thread_however_many_runs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for num_jobs in (1, 24):
        for jobs in (0, 1, 3):
            slots = local._places(Site(jobs=jobs, device="cpu"), num_jobs)
            assert {slot["OMP_NUM_THREADS"] for slot in slots} == {"1"}
            assert len(slots) == min(jobs or local._cores(), num_jobs)


def test_each_gpu_takes_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in local._places(Site(), 24)] == ["2", "5"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in local._places(Site(), 1)] == ["2"]
    assert len(local._places(Site(device="cuda:1"), 24)) == 1
    assert (local._gpus_of(Site(device="cuda:1")), local._gpus_of(Site(device="cuda:2"))) == (["5"], [])
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in local._places(Site(jobs=3), 24)] == ["2", "5"]


def test_runs_share_a_gpu_if_the_site_file_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The memory of these GPUs is unknown, so none is shared by itself."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    wanted = plan.jobs([Request(table="table8", rows="BYOL", columns="acc")])

    def shares(**site: Any) -> set[Fraction]:
        return set(local._shares(wanted, Site(**site)).values())

    assert shares() == shares(jobs=2) == shares(devices=2) == {1}
    assert shares(runs_per_gpu=4) == {Fraction(1, 4)}
    assert shares(jobs=3) == {Fraction(1, 2)}, "three runs at once on two GPUs"
    assert shares(device="cpu", runs_per_gpu=4) == shares(device="cpu", jobs=9) == {1}
    assert [local.at_once(Site(runs_per_gpu=number)) for number in ("auto", 1, 4)] == [2, 2, 8]
    assert local.at_once(Site(runs_per_gpu=4, jobs=3)) == 3
    assert local.at_once(Site(runs_per_gpu=4, device="cpu")) == local._cores()


def test_a_run_on_several_gpus_has_them_all_and_needs_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,7")
    places = local._places(Site(devices=3, jobs=1), 24)
    assert local._merged(places)["CUDA_VISIBLE_DEVICES"] == "0,1,4"
    with pytest.raises(RefusedError, match=r"^devices is 8, but only 4 GPUs"):
        local._places(Site(devices=8), 24)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(local._places(Site(devices=2, jobs=3), 24)) == 6


def test_workers_use_the_place_of_whoever_started_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Relative names must mean the same files for the command and for its workers.

    Workers run in the project's folder, the command possibly elsewhere.
    """
    (tmp_path / "site.toml").write_text('runs = "elsewhere"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSBREG_SITE", "site.toml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    (slot,) = local._places(Site(device="cpu"), 1)
    assert slot["MSBREG_SITE"] == str(tmp_path / "site.toml")
    assert slot["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / 'here.db'}"


def test_a_run_of_several_processes_has_ended_when_all_of_them_have(tmp_path: Path) -> None:
    """The next run needs their devices.

    The output of torchrun goes to the run's log, because it prints a traceback whenever a run is stopped.
    """
    events: Queue[Any] = Queue()
    worker = local._Worker((0, 1), {}, events, tmp_path)
    ended, later = {"event": "finished", "id": "0123456789ab"}, {"event": "progress", "id": "0123456789ab"}
    prints = "; ".join(f"print({json.dumps(json.dumps(event))}, flush=True)" for event in (ended, later))
    still_there = f"import sys; {prints}; sys.stdin.read()"
    with local._log(tmp_path / "0123456789ab") as log:
        worker._run(["-c", f"{still_there}; sys.exit('stopped')"], log)
    assert events.get(timeout=60) == (worker, later)
    worker.close()
    assert [events.get(timeout=60) for _ in range(2)] == [(worker, ended), (worker, None)]
    assert (tmp_path / "0123456789ab" / "log.txt").read_text() == "stopped\n"


def test_a_run_that_a_process_got_at_its_end_goes_to_another_and_one_that_cannot_start_fails(
    tmp_path: Path,
) -> None:
    """A process that received a stop request reports a failed run, and gets the next one before it ends.

    What it prints before it reads its run's name is in the run's log.
    """
    events: Queue[Any] = Queue()
    (job, *_) = plan.jobs([Request(table="table8", rows="BYOL")])
    worker = local._Worker((0,), {"MSBREG_SITE": "/nowhere/site.toml"}, events, tmp_path)
    worker._run(["-c", "pass"])
    assert events.get(timeout=60) == (worker, None)
    worker.give(job)
    assert worker.died() == {"event": "busy", "id": job.spec.id}
    worker.give(job)
    assert events.get(timeout=60) == (worker, None)
    assert worker.died() == {
        "event": "failed",
        "id": job.spec.id,
        "reason": "its process ended with exit code 1",
    }
    assert "/nowhere/site.toml" in (tmp_path / job.spec.id / "log.txt").read_text()
