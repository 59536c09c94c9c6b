"""`invoke doctor` on decoding: how many processes, how fast, and what limits a pretraining."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from toys import image_folder

from reproduce.commands import decoders, rehearse, rehearsed
from reproduce.commands.rehearsed import Measured, Measurement
from reproduce.data.imagenette import Imagenette
from reproduce.launch import local
from reproduce.plan import Request, jobs
from reproduce.readiness import cores_of
from reproduce.runs import cores
from reproduce.site import Site, Slurm
from reproduce.spec import Pretrain
from reproduce.tracking.store import Store


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


SLURM = Site(launcher="slurm", slurm=Slurm(cpus_per_gpu=8))


@pytest.mark.parametrize(
    ("site", "gpus", "expected"),
    [
        (Site(), "0,1", "7 decoders for each run (16 cores, 2 runs at once)"),
        (Site(), "0", "15 decoders for each run (16 cores, 1 run at once)"),
        (Site(devices=4), "0,1,2,3", "3 decoders for each device (16 cores, 4 devices at once)"),
        (
            Site(jobs=1, devices=4),
            "0,1,2,3",
            "3 to 15 decoders for each device (16 cores, 1 to 4 devices at once)",
        ),
        (Site(runs_per_gpu=4), "0,1", "1 decoder for each run (16 cores, 8 runs at once). A GPU may wait"),
        (Site(runs_per_gpu=4, jobs=3), "0", "4 decoders for each run (16 cores, 3 runs at once)"),
        (Site(jobs=2), "", "one thread for each run (16 cores, 2 runs at once)"),
        (Site(jobs=2, workers=3), "", "3 decoders for each run (workers = 3; 16 cores, 2 runs at once)"),
        (
            Site(workers=0),
            "0,1",
            "one thread for each run (workers = 0; 16 cores, 2 runs at once). A GPU may wait",
        ),
        (SLURM, "", "7 decoders for each run (8 cores, 1 run at once)"),
        (replace(SLURM, runs_per_gpu=2), "", "3 decoders for each run (8 cores, 2 runs at once)"),
        (Site(launcher="slurm"), "", "chosen on the node, from the cores of the job"),
    ],
)
def test_doctor_the_launcher_and_a_rehearsal_give_a_run_the_same_decoders(
    site: Site, gpus: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher's number is the one that a worker computes with its variables."""
    monkeypatch.setenv(local.GPU, gpus)
    wanted, gpu = jobs([Request(table="table8", scale="small")]), bool(gpus) or site.launcher == "slurm"
    device = "cuda" if gpu else "cpu"
    found = decoders.chosen(cores_of(wanted, site).values(), site, device)
    assert found.startswith(expected)
    assert len(found) > len(expected) or found == expected
    if site.launcher != "local":
        return
    launch = local._Launch(wanted, replace(site, runs=tmp_path), lambda event: None)
    trained, *_ = rehearse.trials(wanted, site, gpu=gpu)
    number = trained.site.workers
    (shape,) = rehearsed.shapes(trained.job.spec, trained.site, trained.devices)
    assert dict(shape.facts)["workers"] == str(number)
    worker = launch._worker(wanted[0], launch._free_places(wanted[0]))
    monkeypatch.setenv(cores.PROCESSES, worker.environment[cores.PROCESSES])
    assert cores.decoders(site.workers, device) == number
    assert re.match(str(number or "one thread"), found)


def test_small_runs_that_share_a_gpu_share_its_cores_and_large_ones_have_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four small runs fit in the 141 GB of an H200; a run at paper scale keeps a GPU busy by itself."""
    monkeypatch.setenv(local.GPU, "0")
    monkeypatch.setattr(local, "_memory", lambda gpus: 141 * 10**9)
    site = Site(runs=tmp_path)

    def text(*scales: str) -> str:
        wanted = jobs([Request(table="table8", scale=scale) for scale in scales])
        trained = [each for each in wanted if isinstance(each.spec, Pretrain)]
        return decoders.chosen(cores_of(trained, site).values(), site, "cuda")

    assert text("small") == "3 decoders for each run (16 cores, 4 runs at once)"
    assert text("paper") == "15 decoders for each run (16 cores, 1 run at once)"
    assert text("small", "paper") == "3 to 15 decoders for each run (16 cores, 1 to 4 runs at once)"


def imagenette(root: Path) -> Site:
    return Site(data={"imagenette": image_folder(root, train=6)}, runs=root / "runs")


def test_the_speed_of_decoding_is_measured_on_the_images_of_a_run(tmp_path: Path) -> None:
    site = imagenette(tmp_path)
    found = decoders.speed(Imagenette(), "train", site)
    assert found is not None
    assert found.in_memory == 60 * 3, "60 images of one pixel"
    assert found.per_second > 1
    for path in (tmp_path / "train").rglob("*.ppm"):
        path.write_bytes(path.read_bytes()[:-1])
    assert decoders.speed(Imagenette(), "train", site) is None


def test_the_limit_of_a_run_follows_from_its_decoders_and_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = imagenette(tmp_path)
    specs = {request: request.specs() for request in [Request(table="table8", scale="small")]}

    def text(site: Site, device: str) -> str:
        monkeypatch.setenv(local.GPU, "0" if device == "cuda" else "")
        return decoders.limits(Imagenette(), specs, site, Store(site), device)

    assert re.fullmatch(
        r"a core decodes \S+ images/s, once for each run: \S+ \S+ stay in memory .*", text(site, "cuda")
    )
    small = Site(data=site.data, runs=site.runs, cache_gb=0)
    assert re.fullmatch(r"a core decodes \S+ images/s", text(small, "cpu"))
    assert re.fullmatch(
        r"a core decodes \S+ images/s, 15 of a run \S+; its fastest pretraining takes about \S+ images/s: "
        "the GPU is the limit",
        text(small, "cuda"),
    )
    # What a rehearsal measured comes before an assumed speed: here, steps of a microsecond.
    device = local.device(small)[1]
    fast = Measurement(seconds=1e-6, images=1, steps=20, limit="CPU")
    runs = [job for job in jobs(specs) if isinstance(job.spec, Pretrain)]
    found = rehearse.shapes_of(rehearse.trials(runs, small, gpu=True))
    measured = {(shape, device): fast for shape in found}
    known = replace(small, runs=tmp_path / "rehearsed")
    known.runs.mkdir()
    Measured(measured).save(known)
    assert text(known, "cuda").endswith("the data are the limit, set `workers`")
    with monkeypatch.context() as patch:  # four on an H200 have a fourth of its time and of the cores each
        patch.setattr(local, "_memory", lambda gpus: 141 * 10**9)
        shared, alone = (
            float(re.search(r"about ([\d,]+)", each)[1].replace(",", ""))  # type: ignore[index]
            for each in (text(small, "cuda"), text(replace(small, runs_per_gpu=1), "cuda"))
        )
        assert shared == pytest.approx(alone / 4, rel=0.01)
        assert ", 3 of a run " in text(small, "cuda")
        assert " images/s next to 3 other runs on its GPU: " in text(small, "cuda")
    # Images of 3 bytes: of 30 bytes, half may be used, 5 images for 2 decoders.
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=30))
    limited = r"shared memory \(30 B of /dev/shm for a run\) limits the decoders of a run to 2 of 15"
    assert re.search(limited, text(site, "cuda"))
    assert re.search(limited + r".*, 2 of a run \S+; its fastest", text(small, "cuda"))
    assert "shared memory" not in text(small, "cpu")
    other = {request: request.specs() for request in [Request(table="table8", scale="smoke")]}
    assert decoders.limits(Imagenette(), other, small, Store(small), "cuda") == ""
    assert not site.runs.exists(), "nothing is written"
