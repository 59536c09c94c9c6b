"""`invoke doctor` on decoding: how many processes, how fast, and what limits a pretraining."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from toys import image_folder

from reproduce.commands import decoders, rehearsed
from reproduce.commands.rehearsed import Measured, Measurement
from reproduce.data.imagenette import Imagenette
from reproduce.launch import local
from reproduce.plan import Request
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
    ("site", "device", "at_once", "expected"),
    [
        (Site(), "cuda", 2, "7 processes for each run (16 cores, 2 runs at once)"),
        (Site(), "cuda", 1, "15 processes for each run (16 cores, 1 run at once)"),
        (Site(devices=8), "cuda", 1, "1 process for each run (16 cores, 1 run at once). A GPU may wait"),
        (Site(), "cpu", 2, "one thread in each run (16 cores, 2 runs at once)"),
        (Site(workers=3), "cpu", 2, "3 processes for each run (workers = 3; 16 cores, 2 runs at once)"),
        (Site(workers=0), "cuda", 2, "one thread in each run (workers = 0; 16 cores, 2 runs at once). A GPU"),
        (SLURM, "cuda", 2, "7 processes for each run (8 cores for each GPU)"),
        (Site(launcher="slurm"), "cuda", 2, "chosen on the node, from the cores of the job"),
    ],
)
def test_the_number_of_decoders_is_printed_with_its_reason(
    site: Site, device: str, at_once: int, expected: str
) -> None:
    found = decoders.chosen(site, device, at_once)
    assert found.startswith(expected)
    assert len(found) > len(expected) or found == expected


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
        return decoders.limits(Imagenette(), specs, site, Store(site), device, 1)

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
    runs = (spec for needed in specs.values() for spec in needed if isinstance(spec, Pretrain))
    measured = {(shape, device): fast for spec in runs for shape in rehearsed.shapes(spec, small, 1)}
    known = replace(small, runs=tmp_path / "rehearsed")
    known.runs.mkdir()
    Measured(measured).save(known)
    assert text(known, "cuda").endswith("the data are the limit, set `workers`")
    # Images of 3 bytes: of 30 bytes, half may be used, 5 images for 2 decoders.
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=30))
    limited = r"shared memory \(30 B of /dev/shm for a run\) limits the decoders of a run to 2 of 15"
    assert re.search(limited, text(site, "cuda"))
    assert re.search(limited + r".*, 2 of a run \S+; its fastest", text(small, "cuda"))
    assert "shared memory" not in text(small, "cpu")
    other = {request: request.specs() for request in [Request(table="table8", scale="smoke")]}
    assert decoders.limits(Imagenette(), other, small, Store(small), "cuda", 1) == ""
    assert not site.runs.exists(), "nothing is written"
