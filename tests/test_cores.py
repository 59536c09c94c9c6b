"""The number of decoders: cores, limits of a container or a job, and the runs at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from reproduce.runs import cores
from reproduce.runs.cores import Share


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 cores without any other limit."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    for name in ("SLURM_CPUS_ON_NODE", cores.PROCESSES, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "self").write_text("0::/jobs/mine\n")
    return tmp_path


def found(machine: Path) -> int:
    return cores.usable(machine / "cgroup", machine / "self")


def limit(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_a_limit_all_cores_are_usable(machine: Path) -> None:
    assert found(machine) == 16
    limit(machine / "cgroup" / "jobs", cpu__max="max 100000\n")
    assert found(machine) == 16
    (machine / "self").unlink()
    assert found(machine) == 16


@pytest.mark.parametrize(("quota", "expected"), [("400000", 4), ("250000", 2), ("50000", 1)])
def test_the_limit_of_a_container_counts_also_if_it_is_of_a_group_around(
    machine: Path, quota: str, expected: int
) -> None:
    limit(machine / "cgroup" / "jobs" / "mine", cpu__max="max 100000\n")
    limit(machine / "cgroup" / "jobs", cpu__max=f"{quota} 100000\n")
    assert found(machine) == expected


def test_the_first_version_of_control_groups_is_read_too(machine: Path) -> None:
    (machine / "self").write_text("4:memory:/a\n1:cpu,cpuacct:/docker/1\n")
    limit(machine / "cgroup" / "cpu,cpuacct", cpu__cfs_quota_us="300000\n", cpu__cfs_period_us="100000\n")
    assert found(machine) == 3
    limit(machine / "cgroup" / "cpu,cpuacct", cpu__cfs_quota_us="-1\n")
    assert found(machine) == 16


def test_a_job_of_slurm_has_its_own_cores(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert found(machine) == 6


@pytest.mark.parametrize(
    ("number", "processes", "expected"), [(16, 1, 15), (16, 2, 7), (16, 8, 1), (16, 40, 1), (1, 1, 1)]
)
def test_each_run_on_a_gpu_gets_its_share_less_itself(number: int, processes: int, expected: int) -> None:
    share = Share(number, processes)
    assert share.decoders("auto", "cuda") == expected
    assert share.decoders("auto", "cpu") == 0
    assert [share.decoders(each, "cuda") for each in (0, 3)] == [0, 3]
    open_ = Share(None, processes)
    assert [open_.decoders(each, "cuda") for each in ("auto", 3)] == [None, 3]


def test_the_launcher_counts_for_more_than_torchrun(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.sharing() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores.sharing() == 4
    monkeypatch.setenv(cores.PROCESSES, "8")
    assert cores.sharing() == 8
