"""Where runs are put: a run must not depend on what runs beside it, and one GPU takes one run at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from reproduce.launch import local
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
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in local._places(Site(jobs=3), 24)] == ["2", "5", "2"]


def test_a_run_on_several_gpus_has_them_all_and_needs_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,7")
    places = local._places(Site(devices=3, jobs=1), 24)
    assert local._together(places)["CUDA_VISIBLE_DEVICES"] == "0,1,4"
    with pytest.raises(ValueError, match=r"^devices is 8, but 4 GPU"):
        local._places(Site(devices=8), 24)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(local._places(Site(devices=2, jobs=3), 24)) == 6


def test_workers_use_the_place_of_whoever_started_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers run in the project's folder, the command may run elsewhere: relative names must not come to mean other files."""
    (tmp_path / "site.toml").write_text('runs = "elsewhere"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSBREG_SITE", "site.toml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    (slot,) = local._places(Site(device="cpu"), 1)
    assert slot["MSBREG_SITE"] == str(tmp_path / "site.toml")
    assert slot["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / 'here.db'}"
