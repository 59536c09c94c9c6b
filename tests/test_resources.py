"""Memory of GPUs, and shares of them: what autograd keeps, what one H200 showed, allocations by hand."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Home
from PIL import Image
from toys import CPU, recorded

from configs.pretrain import WIDE, byol, imagenet, imagenet100, msbreg, stl10
from reproduce.commands import doctor
from reproduce.data import inventory
from reproduce.data.augmentation import Augmentation
from reproduce.data.folder import Folder, named
from reproduce.data.images import Whole
from reproduce.data.resident import Resident
from reproduce.data.synthetic import SyntheticFolder
from reproduce.data.views import GPU_CHUNK
from reproduce.data.voc0712 import VOC0712
from reproduce.launch import local
from reproduce.methods.barlow_twins import BarlowTwins
from reproduce.methods.method import Method
from reproduce.methods.moco import MoCo
from reproduce.methods.pirl import PIRL
from reproduce.methods.simclr import SimCLR
from reproduce.methods.swav import SwAV
from reproduce.nn import backbones, cost, features
from reproduce.nn.heads import Head, Heads
from reproduce.nn.weights import Weights
from reproduce.plan import Job, Request
from reproduce.protocols.knn import NearestNeighbours
from reproduce.protocols.linear_sgd import LinearSGD
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.readiness import MARGIN, gpu_memory, tight, too_large
from reproduce.resources import memory
from reproduce.resources.memory import CUDA, EVALUATED, Peak, estimate, peaks
from reproduce.resources.sharing import Room, runs_per_gpu
from reproduce.runs import environment
from reproduce.site import Site, Slurm
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking.store import Store
from reproduce.tracking.tags import PER_GPU, per_gpu, title

GB = 10**9
H200 = 141 * GB
REQUEST = Request(table="table8")


def job(spec: Pretrain | Evaluate) -> Job:
    return Job(spec, REQUEST)


# What a run keeps in memory


def saved_for_backward(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Return the bytes of what autograd keeps of a forward pass, parameters, buffers and input left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers(), x)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(x)  # which keeps them alive, so no address is used twice
    assert output.requires_grad
    return sum(num_bytes for address, num_bytes in kept.items() if address not in own)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "resnet50" else name
        for name in backbones.names()
    ],
)
def test_the_activations_of_a_backbone_are_those_that_autograd_keeps(name: str) -> None:
    network = cost.network(name)
    assert network is not None
    backbone, images = backbones.build(name, seed=0).train(), 4
    for size in (32, 64):
        found = saved_for_backward(backbone, torch.randn(images, 3, size, size))
        # The mean and the deviation that each BatchNorm keeps are left out.
        statistics = sum(2 * 4 * conv.outputs for conv in network.layers)
        assert found - statistics == images * network.activations(size, 4)


@pytest.mark.parametrize(
    ("head", "built"),
    [
        (cost.head(8, Head(widths=(16, 16, 4))), Head(widths=(16, 16, 4)).build(8)),
        (cost.siamese(8, Heads(hidden=16, output=4)).projector, Heads(hidden=16, output=4).projector(8)),
    ],
    ids=["three layers", "two layers"],
)
def test_the_outputs_of_a_head_are_those_that_autograd_keeps(head: cost.Block, built: Any) -> None:
    """The last layer's output is kept by the loss."""
    norms = [layer for layer in built if isinstance(layer, torch.nn.BatchNorm1d)]
    kept = saved_for_backward(built, torch.randn(32, 8)) - sum(2 * 4 * norm.num_features for norm in norms)
    assert kept == 32 * 4 * (head.outputs - 4)


def test_the_estimate_of_a_run_by_hand() -> None:
    """The small network at 32 px keeps twice 16 x 16 x 16 numbers in its stem, four times in its first block.

    With a shortcut they are five times 8 x 8 x 32 in the second, and five times 4 x 4 x 64 in the third.
    """
    stem, first, second, third = 2 * 4096, 4 * 4096, 5 * 2048, 5 * 1024
    network = cost.network("small")
    assert network is not None
    assert network.activations(32, 4) == 4 * (stem + first + second + third)

    run = replace(byol(imagenet100), backbone="small", batch_size=8, precision="float32")
    run = replace(run, dataset=replace(run.dataset, size=32, resize=32, canvas=48))
    other = replace(run, dataset=replace(run.dataset, canvas=480))
    layout = run.method.layout(64)
    assert layout is not None
    files = cost.sizes(network, layout, num_states=1)
    trained = 77_392 + layout.projector.parameters + layout.predictor.parameters
    # Three batches of views in float32 exist at a time, and 12 bytes for each value that is being made.
    views, decoded, heads = 2 * 3 * 32 * 32 * (3 * 4 + 12), 2 * 3 * 500 * 375, 4 * 2 * (2 * 512 + 128)
    one = views + decoded + heads + network.activations(32, 4)
    assert estimate(run) == estimate(other) == Peak(CUDA + files.checkpoint + 4 * trained + 8 * one)
    assert estimate(run, 2) == Peak(CUDA + files.checkpoint + 2 * 4 * trained + 4 * one)


@pytest.mark.parametrize(("num_views", "measured"), [(2, 2.11), (4, 2.13), (8, 2.18)])
def test_the_estimate_is_near_to_what_one_h200_showed(num_views: int, measured: float) -> None:
    """ResNet-18 of 3x3 stem at 64 px, bfloat16, batch 512; torch's peak, in GiB."""
    found = estimate(msbreg(stl10, num_views=num_views))
    assert found is not None
    # There, views were ready: of the three batches, one existed, and none was being made.
    prepared = 512 * num_views * 3 * 64**2 * (2 * 2 + 12)
    assert (found.num_bytes - CUDA - prepared) / 2**30 == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(
    ("draft", "last", "num_bytes"),
    [(False, (80, 40), 3 * 3 * 400 * 200 + 3 * 80 * 40), (True, (400, 200), 4 * 3 * 50 * 25)],
    ids=["whole", "at an eighth"],
)
def test_the_estimate_counts_the_pictures_of_ones_own_folder_as_they_are(
    draft: bool, last: tuple[int, int], num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "JUST_NOW", 0)
    site, folder = Site(runs=tmp_path / "runs"), tmp_path / "own" / "train" / "a"
    folder.mkdir(parents=True)
    for number, sides in enumerate([(400, 200)] * 3 + [last]):
        Image.new("RGB", sides, (number, 0, 0)).save(folder / f"{number}.jpg")
    own = Folder(content=named(str(tmp_path / "own"), site, ("train",)), size=8, resize=8, canvas=8)
    views = Augmentation(draft=draft, crop_scale=(0.4, 1.0))
    run = replace(byol(imagenet100), dataset=own, batch_size=4, augmentation=views)

    images, shape = own.load("train", replace(site, cache_gb=1.0)), Whole(views.least(8, 2))
    copied = Resident(CPU, free=10**9)(images.find(range(4), shape)).values
    found, unread = estimate(run, 1, site), estimate(run)
    assert found is not None
    assert unread is not None
    assert len(copied) == num_bytes + num_bytes // 10
    assert found.images == pytest.approx(len(copied), rel=0.01)
    assert unread.images == 0, "the number of its images is unknown"
    typical = 4 * 3 * (62 * 46 if draft else 500 * 375)
    assert unread.num_bytes - found.num_bytes == pytest.approx(2 * (typical - num_bytes), rel=0.01)
    assert (estimate(run, 1, replace(site, cache_gb=1e-6)) or found).images == 0, "they are not kept at all"


def of(method: Method) -> Pretrain:
    return imagenet100(method)


def backbone_of(run: Pretrain, **site: Any) -> float:
    """Return how many views of the backbone's activations an estimate contains."""
    network = cost.network(run.backbone)
    assert network is not None
    half = run.batch_size // 2
    found, other = estimate(run, 1, Site(**site)), estimate(replace(run, batch_size=half), 1, Site(**site))
    assert found is not None
    assert other is not None
    layout, side = run.method.layout(network.num_features), run.dataset.size
    assert layout is not None
    values = half * run.method.num_views * 3 * side**2
    made = 12 * (min(2 * values, GPU_CHUNK) - min(values, GPU_CHUNK))
    views = 3 * 2 * values + made + half * 2 * 3 * 500 * 375
    return (found.num_bytes - other.num_bytes - views) / half / network.activations(side, 2)


def test_only_a_loss_that_couples_all_views_keeps_their_activations() -> None:
    for method in (msbreg(imagenet100, num_views=8).method, MoCo(), SwAV(crop_by_crop=True)):
        assert backbone_of(of(method)) == pytest.approx(1, abs=0.1), method
    assert backbone_of(of(BarlowTwins(num_views=3))) == pytest.approx(3, abs=0.1)
    assert backbone_of(of(SwAV())) == pytest.approx(2, abs=0.1)
    assert backbone_of(of(BarlowTwins(num_views=3)), recompute=True) == pytest.approx(1, abs=0.1)
    assert backbone_of(of(SimCLR(joint="heads")), recompute=True) == pytest.approx(1, abs=0.1)
    assert backbone_of(of(SimCLR(joint="all")), recompute=True) == pytest.approx(2, abs=0.1)


def test_the_parts_of_pirl_keep_the_image_or_its_patches() -> None:
    found = backbone_of(of(PIRL(negatives=1)))
    assert found == pytest.approx(9, abs=0.2), "views of one size: nine patches are nine images"


def test_a_bank_adds_what_its_loss_compares() -> None:
    """With 512 images on each of 2 devices and 100 000 images, a block has all rows for 512 images."""
    run = replace(of(PIRL()), dataset=SyntheticFolder(num_train=100_000), batch_size=1024)
    few, found = estimate(run.replace("method.negatives", 1), 2), estimate(run, 2)
    assert few is not None
    assert found is not None
    listed = 31_999 * (8 * 1024 + (8 + 4 * 4) * 512)
    blocks = 4 * (512 * 100_000 - 512 * 2 * 128)
    assert found.num_bytes - few.num_bytes == listed + blocks


def test_a_detector_and_an_unknown_backbone_have_no_estimate() -> None:
    run = byol(imagenet100)
    detector = Evaluate(encoder=run, protocol=VOCDetection(), dataset=VOC0712())
    assert estimate(detector) is None
    assert estimate(replace(run, backbone="mine")) is None
    assert features.CHUNK == EVALUATED


# Shares


def test_the_free_parts_of_devices_by_hand() -> None:
    room, half, third, quarter = Room(2), Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)
    assert room.having(Fraction(1)) == [0, 1]
    room.take([0], half)
    assert (room.having(half), room.having(Fraction(1))) == ([1, 0], [1]), "the emptiest comes first"
    room.take([0], quarter)
    room.take([0], quarter)
    assert room.having(quarter) == [1], "a half and two quarters fill a device"
    room.take([1], Fraction(1))
    assert room.having(quarter) == []
    room.give_back([1], Fraction(1))
    for _ in range(3):
        room.take([1], third)
    assert room.free(1) == 0, "three thirds are a whole"
    for share in (half, quarter, quarter):
        room.give_back([0], share)
    for _ in range(3):
        room.give_back([1], third)
    room.take([0, 1], Fraction(1))
    assert room.having(Fraction(1, 100)) == []


def shares(spec: Pretrain | Evaluate, card: int | None = H200, gpus: int = 2, **site: Any) -> int:
    return runs_per_gpu(job(spec), Site(**site), gpus=gpus, card=card, peak=estimate(spec))


def test_small_runs_share_a_gpu_as_far_as_its_memory_allows() -> None:
    small = msbreg(stl10, num_views=4)
    assert shares(small) == 4, "3.1 GB each"
    assert shares(small, card=11 * GB) == 3, "9.9 GB may be filled"
    assert shares(small, card=GB) == 1
    assert shares(small, card=None) == 1
    assert shares(Evaluate(encoder=small, protocol=NearestNeighbours(), dataset=small.dataset)) == 4


def test_runs_that_share_a_gpu_fit_with_the_copies_of_their_images() -> None:
    """A copy of 1 GB is kept if those of all runs take at most a tenth of the GPU."""
    peak, recorded = Peak(3 * GB, images=GB), Peak(3 * GB, recorded=True, images=GB)
    on = [(card, runs, peak.on(card * GB, runs) // GB) for card in (40, 39, 9) for runs in (1, 4)]
    assert on == [(40, 1, 4), (40, 4, 4), (39, 1, 4), (39, 4, 3), (9, 1, 3), (9, 4, 3)]
    assert [recorded.on(40 * GB, runs) // GB for runs in (1, 4)] == [3, 4], "its record has its own copy"

    def number(card: float, images: float) -> int:
        peak = Peak(3 * GB, images=int(images * GB))
        return runs_per_gpu(job(byol(stl10)), Site(), gpus=1, card=int(card * GB), peak=peak)

    assert (number(13.4, 0), number(13.4, 0.5)) == (4, 4), "four copies of 0.5 GB are not kept on 13.4 GB"
    assert (number(13.4, 0.3), number(14.7, 0.3)) == (3, 4), "four of 3.3 GB fill nine tenths of 14.7"
    assert number(13.0, 0.4) == 3, "three of 3.4 GB"


def test_a_run_that_keeps_a_gpu_busy_or_is_unknown_has_it_alone() -> None:
    large = replace(imagenet(100)(byol(imagenet100, heads=WIDE).method), batch_size=128)
    assert large.backbone == "resnet50"
    assert shares(large) == 1
    assert shares(Evaluate(encoder=large, protocol=LinearSGD(), dataset=large.dataset)) == 1
    assert shares(replace(byol(stl10), backbone="mine")) == 1
    assert shares(byol(stl10), devices=2) == 1, "a run on several devices takes them whole"


def test_explicit_numbers_are_obeyed() -> None:
    large = imagenet(100)(byol(imagenet100, heads=WIDE).method)
    assert shares(large, runs_per_gpu=3) == 3
    assert shares(byol(stl10), runs_per_gpu=1) == 1
    assert shares(byol(stl10), runs_per_gpu=3, devices=2) == 1
    assert [shares(large, jobs=jobs) for jobs in (0, 1, 2, 3, 5)] == [1, 1, 1, 2, 3], (
        "more runs at once than GPUs share them"
    )


# Runs that do not fit


def test_a_run_that_does_not_fit_is_refused_with_the_settings_that_would_do() -> None:
    big, site = replace(imagenet(100)(byol(imagenet100, heads=WIDE).method), batch_size=4096), Site()
    found = estimate(big)
    assert found is not None
    card = 24 * GB
    problem = too_large(big, 1, site, card, found)
    assert problem is not None
    assert problem.name == "GPU memory"
    assert problem.why == (
        f"Run {big.id} ({title(big)}) at batch 4096 needs 193 GB of memory on each GPU (estimated), "
        "which has 24 GB: set devices to 16 in the site file, which changes no number, or "
        "--set batch_size=256, which is another run."
    )
    usable, smaller = 0.9 * card, replace(big, batch_size=256)
    fitting, larger = [estimate(big, 16), estimate(smaller)], estimate(big, 8)
    assert all(each and each.num_bytes <= usable for each in fitting)
    assert larger
    assert larger.num_bytes > usable

    coupled = of(BarlowTwins(num_views=2))
    needed, recomputed = estimate(coupled), estimate(coupled, 1, Site(recompute=True))
    assert needed is not None
    assert recomputed is not None
    small_card = int(needed.num_bytes / MARGIN) - 10**6
    assert recomputed.num_bytes < 0.9 * small_card
    why = (too_large(coupled, 1, site, small_card, needed) or problem).why
    assert "set recompute to true in the site file, which changes no number" in why
    assert "use a larger GPU" in (too_large(coupled, 1, site, CUDA, needed) or problem).why


def test_an_estimate_has_a_margin_and_a_record_has_none() -> None:
    run, card = byol(stl10), 10 * GB
    within, above = Peak(int(MARGIN * card)), Peak(int(MARGIN * card) + 1)
    assert too_large(run, 1, Site(), card, within) is None
    assert too_large(run, 1, Site(), card, above) is not None
    assert too_large(run, 1, Site(), card, within._replace(recorded=True)) is not None
    assert too_large(run, 1, Site(), card, None) is None
    assert too_large(run, 1, Site(), None, above) is None


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Stand in for nvidia-smi: two GPUs of 1 000 MiB and 2 000 MiB; return the PATH."""
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\ncase "$*" in\n*memory.total*) echo 2000; echo 1000;;\n*) echo Card; echo Card;;\nesac\n'
    )
    script.chmod(0o755)
    path = f"{script.parent}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "11,12")  # in no other test, as what is found is kept
    return path


def test_what_may_not_fit_is_told_in_one_line(card: str, template: Path, tmp_path: Path) -> None:
    shutil.copy(template, tmp_path)
    site = Site(runs=tmp_path)
    assert gpu_memory(site) == 1000 * 2**20
    assert gpu_memory(replace(site, device="cpu")) is gpu_memory(replace(site, launcher="slurm")) is None
    near, seeds = replace(byol(stl10), batch_size=128), (0, 1)
    jobs = [job(replace(near, seed=seed)) for seed in seeds]
    needed = estimate(near)
    assert needed is not None
    assert 1000 * 2**20 < needed.num_bytes < MARGIN * 1000 * 2**20
    (line,) = tight(jobs, site, Store(site))
    assert line == (
        f"Run {jobs[0].spec.id} may need 1.26 GB of a GPU, which has 1.05 GB; the same holds for 1 other run."
    )
    tiny = job(replace(near, batch_size=16, backbone="small"))
    assert tight([tiny], site, Store(site)) == []
    (line,) = tight([tiny], replace(site, runs_per_gpu=9), Store(site))
    assert line.startswith(f"9 runs such as {tiny.spec.id} at a time (runs_per_gpu) may need ")


def test_doctor_shows_peaks_and_shares_and_what_is_too_large(
    card: str, template: Path, tmp_path: Path
) -> None:
    shutil.copy(template, tmp_path)
    site = Site(runs=tmp_path)
    made = doctor.Machine(site, Store(site))
    requests = [Request(table="table2", scale=scale) for scale in ("smoke", "paper")]
    specs = {request: request.specs() for request in requests}
    assert doctor._memory(specs, made) == (
        "estimated peak of a pretraining: up to 530 MB at smoke, 193 GB at paper, on its GPU; "
        "runs that share a GPU: up to 1 at smoke, 1 at paper (runs_per_gpu)"
    )
    assert doctor.GPU_MEMORY in doctor.need(specs[requests[1]], made, "paper").missing
    assert doctor.GPU_MEMORY not in doctor.need(specs[requests[0]], made, "smoke").missing
    alone = doctor.Machine(replace(site, device="cpu", devices=8), Store(site))
    assert doctor._memory(specs, alone).endswith(" at paper, on each of its 8 GPUs")


def test_a_command_refuses_what_does_not_fit_before_it_starts(card: str, home: Home) -> None:
    home.site_file.write_text(f'runs = "{home.runs}"\nreports = "{home.reports}"\n')
    path = Path(card.split(":")[0]) / "nvidia-smi"
    path.write_text(path.read_text().replace("1000", "300"))
    options = ("--rows", "BYOL", "--columns", "acc")
    done = home.invoke("table8", *options, PATH=card, CUDA_VISIBLE_DEVICES="0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "MB of memory on each GPU (estimated), which has 315 MB: use a larger GPU." in done.stderr
    assert not home.runs.exists()


def test_a_run_that_a_clusters_gpus_cannot_hold_is_not_submitted(home: Home) -> None:
    table = 'device = "auto"\nlauncher = "slurm"\n[slurm]\ngpu_memory = "300M"\n'
    home.site_file.write_text(f'runs = "{home.runs}"\nreports = "{home.reports}"\n{table}')
    done = home.invoke("table8", "--rows", "BYOL", "--columns", "acc")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(
        r"Run \w+ \(.*\) .* memory on each GPU \(estimated\), which has 300 MB: use a larger GPU\.",
        done.stderr,
    )
    assert not home.runs.exists()


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("h100", 80 * GB),
        ("nvidia_a100-sxm4-80gb", 80 * GB),
        ("nvidia_a100-pcie-40gb", 40 * GB),
        ("tesla_v100-sxm2-16gb", 16 * GB),
        ("rtx_4090", 24 * GB),
        ("a100", None),
        ("v100", None),
        ("tesla_v100-sxm2-32gb", None),
        ("a100_3g.20gb", None),
        ("nvidia_h200_1g.18gb", None),
        ("gh200", None),
        ("", None),
    ],
)
def test_a_clusters_type_of_gpu_has_a_memory_if_all_of_its_name_have_the_same(
    name: str, num_bytes: int | None
) -> None:
    asked = Site(launcher="slurm", slurm=Slurm(gpu_type=name))
    assert gpu_memory(asked) == num_bytes
    assert gpu_memory(replace(asked, device="cpu")) is None
    assert gpu_memory(replace(asked, slurm=Slurm(gpu_type=name, gpu_memory="48G"))) == 48 * GB


# What finished runs recorded


def test_a_comparable_run_that_recorded_its_peak_replaces_the_estimate(
    template: Path, tmp_path: Path
) -> None:
    shutil.copy(template, tmp_path)
    site = Site(runs=tmp_path)
    store = Store(site)
    ours = replace(msbreg(stl10, num_views=4), backbone="small")
    for run, peak, images in (
        (replace(ours, seed=3), 3.25, 1),
        (replace(ours, seed=5), 9.0, 8),
        (replace(ours, batch_size=64), 8.0, 1),
        (replace(ours, seed=4), None, 1),
    ):
        with store.start(run, scale="smoke") as record:
            record.tag(PER_GPU, per_gpu(run, images, recompute=False))
            record.finish({"loss": 1.0} | ({memory.RECORDED: peak} if peak else {}))
    recorded(store, site, replace(ours, seed=6), {"loss": 1.0})

    alike = replace(ours, epochs=7, seed=1, method=replace(ours.method, lambda_b=0.25))
    alike = replace(alike, dataset=replace(alike.dataset, canvas=120))
    copy = 105_000 * 3 * 96**2 * 11 // 10
    assert peaks([job(alike)], site, store) == {
        alike.id: Peak(CUDA + 3_250_000_000, recorded=True, images=copy)
    }
    fewer = replace(ours, dataset=replace(ours.dataset, pretrain_split="train"))
    for other in (replace(ours, precision="float32"), msbreg(stl10, num_views=2), fewer):
        assert not peaks([job(other)], site, store)[other.id].recorded
    assert not peaks([job(alike)], replace(site, recompute=True), store)[alike.id].recorded
    assert peaks([job(alike)], replace(site, devices=8), store)[alike.id].num_bytes == CUDA + 9 * GB


def test_a_run_names_its_gpus_by_uuid_and_by_number_if_the_driver_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This machine's driver, if there is one, has no GPU with this UUID."""
    uuids = ["00000000-1111-2222", "f3bd5b1c-1111-2222"]
    cuda = SimpleNamespace(
        current_device=lambda: 1, get_device_properties=lambda number: SimpleNamespace(uuid=uuids[number])
    )
    assert environment._gpus(SimpleNamespace(cuda=cuda)) == [{"index": None, "uuid": "GPU-f3bd5b1c"}]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    found = environment._gpus(SimpleNamespace(cuda=cuda))
    assert [gpu["uuid"] for gpu in found] == ["GPU-00000000", "GPU-f3bd5b1c"]
    del cuda.get_device_properties
    assert environment._gpus(SimpleNamespace(cuda=cuda)) == []


# The launcher


def test_an_evaluation_goes_to_the_worker_of_its_encoder_and_a_large_run_gets_a_whole_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "13,14")
    site = Site(runs=tmp_path, runs_per_gpu=2)
    one, two = byol(stl10), byol(imagenet100)
    evaluation = Evaluate(encoder=two, protocol=NearestNeighbours(), dataset=two.dataset)
    launch = local._Launch([job(one), job(two), job(evaluation)], site, lambda event: None)
    half = Fraction(1, 2)

    def idle(place: int, encoder: str) -> local._Worker:
        worker = local._Worker((place,), {}, launch._events, tmp_path, share=half, encoder=encoder)
        launch._idle.append(worker)
        return worker

    fresh, warm = idle(0, one.id), idle(1, two.id)
    assert launch._free_places(job(evaluation)) == [1]
    assert launch._free_places(job(one)) == [0]
    launch._room.take([0], half)
    assert launch._free_places(job(one)) == [1], "a pretraining prefers the emptiest GPU"
    assert launch._worker(job(evaluation), [1]) is warm
    assert launch._idle == [fresh]

    launch._shares[two.id] = Fraction(1)
    assert launch._free_places(job(two)) == [], "neither GPU is free"
    launch._room.give_back([0], half)
    assert launch._free_places(job(two)) == [0]
    worker = launch._worker(job(two), [0])
    assert (worker.places, worker.share, launch._idle) == ((0,), 1, []), "the idle worker has ended"
    assert worker.environment["CUDA_VISIBLE_DEVICES"] == "13"
    assert worker.environment[environment.SHARING] == "1"
    assert launch._room.having(half) == [1]


def test_a_run_that_waits_for_two_gpus_is_not_overtaken_by_one_that_needs_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "13,14")
    wide = byol(stl10)
    weights = Weights(backbone="small", sha256="0" * 64)
    short = Evaluate(encoder=weights, protocol=NearestNeighbours(), dataset=wide.dataset)
    launch = local._Launch([job(wide), job(short)], Site(runs=tmp_path, devices=2), lambda event: None)
    launch._room.take([0], Fraction(1))  # by a run that is under way
    assert (launch._free_places(job(wide)), launch._free_places(job(short))) == ([], [1])
    try:
        launch._start()
        assert launch._busy == []
    finally:
        local._stop(launch._busy)
    assert [each.spec for each in launch._waiting] == [wide, short]
