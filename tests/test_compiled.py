"""`compile`: a compiled backbone trains like an eager one, within rounding, and only where it is asked for.

A network of two convolutions and, for a whole run, the backbone `small` are compiled on the CPU, which takes
half a minute on one core.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# Inductor imports it, which fails once another test has looked for pip in the same process.
import setuptools  # noqa: F401
import torch
from test_train import Notes, settings
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from toys import CPU, batch, on_two_processes

from reproduce import train
from reproduce.messages import InvalidError
from reproduce.methods.barlow_twins import BarlowTwins
from reproduce.methods.method import Method
from reproduce.methods.moco import MoCo
from reproduce.methods.msbreg import MSBReg
from reproduce.nn import compiled, distributed
from reproduce.nn.compiled import Compiled, compile_backbones
from reproduce.nn.encoder import FILE
from reproduce.nn.group_batchnorm import group_batchnorm
from reproduce.plan import Request
from reproduce.runs import checkpoint, encoder_file, interrupt
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Pretrain

NUM_IMAGES = 8
GPU = torch.device("cuda")
CLOSE = 1e-11
"""Largest difference over the largest value of a tensor in float64: sums have another order."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of this session for compiled code, so that no test depends on earlier ones."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("inductor")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder


def views(*sizes: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    made = (torch.randn(NUM_IMAGES, 3, size, size, generator=draw, dtype=torch.float64) for size in sizes)
    return [view.contiguous(memory_format=torch.channels_last) for view in made]


class Tiny(nn.Sequential):
    """Two convolutions with BatchNorm: a network that compiles in seconds."""

    num_features = 4

    def __init__(self) -> None:
        convolutions = [
            part
            for width in (3, 4)
            for part in (nn.Conv2d(width, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        ]
        super().__init__(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def start(method: Method, compile_: bool, backend: str = "aot_eager") -> Any:
    """Return a network in float64, in which a sum's order does not change the sign of a ReLU's input.

    Args:
        backend: `inductor` as in a run, or `aot_eager`, which traces and differentiates without compiling.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = method.network(Tiny(), num_images=NUM_IMAGES, batch_size=NUM_IMAGES)
    network.to(dtype=torch.float64, memory_format=torch.channels_last)
    network = group_batchnorm(
        network, batch_size=NUM_IMAGES, group=method.batchnorm_images(NUM_IMAGES)
    ).train()
    compile_backbones(network, compile_, operations=None, device=CPU, backend=backend)
    return network


def step(
    method: Method, compile_: bool, *sizes: int, recompute: bool = False, backend: str = "aot_eager"
) -> dict[str, Any]:
    """Return loss, gradients and buffers after the passes of a step with this process's images."""
    network, world = start(method, compile_, backend), distributed.world_size()
    network.online.recompute = recompute
    share = NUM_IMAGES // world
    mine = [view[distributed.rank() * share :][:share] for view in views(*sizes)]
    if world > 1:
        network.online = DistributedDataParallel(network.online, broadcast_buffers=False)
    parts = train._backward(network, method.parts(network, batch(mine)), method.num_parts)
    loss = torch.stack([part.loss.detach() for part in parts])
    inner = distributed.unwrapped(network.online)
    assert compiled.facts(network) == {"compiled": backend if compile_ else "no"}
    gradients = {f"gradient of {name}": each.grad for name, each in inner.named_parameters()}
    return {"loss": loss, **gradients, **dict(network.named_buffers())}


def check_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    apart = {
        name: float((value - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-3))
        for name, value in found.items()
    }
    assert {name: value for name, value in apart.items() if value > CLOSE} == {}


ONE_BY_ONE = MSBReg(num_views=4).smaller("smoke")
COUPLED = BarlowTwins().smaller("smoke")
GROUPED = replace(MoCo().smaller("smoke"), keys=replace(MoCo().smaller("smoke").keys, group=4))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "small"), [("inductor", 16), ("aot_eager", 8)])
def test_views_of_one_or_two_sizes_have_the_gradients_of_an_eager_step(backend: str, small: int) -> None:
    sizes = (16, 16, small, small)
    check_close(step(ONE_BY_ONE, True, *sizes, backend=backend), step(ONE_BY_ONE, False, *sizes))


@pytest.mark.slow
def test_activations_that_are_computed_twice_give_the_gradients_of_an_eager_step() -> None:
    check_close(step(COUPLED, True, 16, 16, recompute=True), step(COUPLED, False, 16, 16))


def of_process() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return compiled and eager steps: BatchNorm over all images, which breaks the graph, and over groups."""
    return [(step(method, True, 16, 16), step(method, False, 16, 16)) for method in (COUPLED, GROUPED)]


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_an_eager_step(tmp_path: Path) -> None:
    for results in on_two_processes(of_process, tmp_path):
        for found, expected in results:
            check_close(found, expected)


@pytest.mark.slow
def test_a_backbone_in_eval_mode_runs_eagerly_and_its_tensors_keep_their_names() -> None:
    eager, network = (start(COUPLED, asked) for asked in (False, True))
    for each in (eager, network):
        each.online(*views(16, 16))
    assert list(network.state_dict()) == list(eager.state_dict())
    eager.load_state_dict(network.state_dict())
    for each in (eager, network):
        each.eval()
    assert torch.equal(network.online(*views(16)).z, eager.online(*views(16)).z)


def test_a_process_compiles_every_shape_of_its_runs() -> None:
    """Torch's own limit is 8 for each network, after which it runs eagerly without a word."""
    network = Compiled(nn.Conv2d(3, 2, 3), optional=False, backend="aot_eager")
    counts = torch._dynamo.utils.counters["stats"]
    for size in range(8, 20):
        before, seconds = counts["unique_graphs"], network.seconds
        network(torch.zeros(1, 3, size, size))
        assert counts["unique_graphs"] == before + 1, size
        after = network.seconds
        assert after > seconds
        network(torch.zeros(1, 3, size, size))
        assert network.seconds == after, "nothing was compiled"


def trained(site: Site, *, stop: bool) -> Notes:
    """Train a run of two epochs, to the end of the first if `stop`, and return its record."""
    notes = Notes()

    def ask(progress: Progress) -> None:
        if stop:
            interrupt.ask("a test")

    with pytest.raises(interrupt.Interrupted) if stop else nullcontext():
        train.pretrain(settings(2), site, site.runs / "run", CPU, notes, ask)
    return notes


@pytest.mark.slow
def test_a_compiled_run_resumes_eagerly_and_an_eager_one_compiled(tmp_path: Path) -> None:
    """The seconds for its images/s, which the checkpoint contains, are without those of the compilation."""
    encoders = []
    for index, order in enumerate([(False, False), (True, False), (False, True)]):
        site = Site(runs=tmp_path / str(index), device="cpu", probe_every=1)
        began, before = time.perf_counter(), compiled._compiling()
        notes = [trained(replace(site, compile=order[0]), stop=True)]
        took, compilation = time.perf_counter() - began, compiled._compiling() - before
        saved = checkpoint.latest(site.runs / "run", settings(2).id)
        assert saved is not None
        assert 0 < saved["meter"]["seconds"] <= took - compilation
        assert (compilation > 0) is order[0]
        notes.append(trained(replace(site, compile=order[1]), stop=False))
        assert [note.tags["compiled"] for note in notes] == ["inductor" if asked else "no" for asked in order]
        encoders.append(encoder_file.load(site.runs / "run" / FILE, spec_id=settings(2).id))
    eager, *others = encoders
    for other in others:
        assert other.keys() == eager.keys()
        apart = [(other[name] - eager[name]).double().norm() for name in eager]
        assert sum(apart) < 1e-4 * sum(value.double().norm() for value in eager.values())


def test_only_long_runs_on_a_gpu_are_worth_a_compilation() -> None:
    network = start(COUPLED, False)
    enough = compiled.COST * compiled.SPEED / compiled.GAIN
    cases = [(True, 1.01, True), (True, 0.99, False), (False, 100.0, False)]
    for gpu, factor, expected in cases:
        found = compiled.wanted("auto", gpu=gpu, operations=factor * enough, synchronised=False)
        assert found is expected
    assert not compiled.wanted("auto", gpu=True, operations=None, synchronised=False)
    assert not compiled.wanted("auto", gpu=True, operations=100 * enough, synchronised=True)
    assert compiled.wanted(True, gpu=False, operations=None, synchronised=True)
    network.online.backbone[1] = nn.SyncBatchNorm(4)
    compile_backbones(network, "auto", operations=100 * enough, device=GPU)
    assert network.online.compiled is None


def test_only_a_compilation_that_was_asked_for_must_succeed() -> None:
    network = start(COUPLED, False)
    for asked in (True, "auto"):
        compile_backbones(network, asked, operations=1e20, device=GPU)
        assert network.online.compiled._optional is (asked == "auto")


def test_only_the_work_of_one_device_counts() -> None:
    """A long run that many devices share does not earn a compilation on each."""
    assert compiled.mine(800.0, devices=4) == 200
    assert compiled.mine(None, devices=4) is None


@pytest.mark.parametrize(
    ("scale", "num_images", "expected"), [("paper", 126_689, True), ("small", 9_469, False)]
)
def test_a_run_at_paper_scale_is_long_enough_and_one_of_minutes_is_not(
    scale: Any, num_images: int, expected: bool
) -> None:
    spec = Request(table="table8", scale=scale, rows="BYOL").specs()[0]
    assert isinstance(spec, Pretrain)
    operations = spec.operations(num_images)
    assert operations is not None
    assert (compiled.GAIN * operations / compiled.SPEED > compiled.COST) is expected


def test_a_machine_without_a_compiler_is_refused_if_asked_and_runs_eagerly_if_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(InvalidError) as caught:
        start(COUPLED, True)
    assert str(caught.value) == (
        "compile is true, but a C++ compiler (g++ or clang++) is missing: install it, or set compile to "
        '"auto" in the site file.'
    )
    network = start(COUPLED, False)
    compile_backbones(network, "auto", operations=1e20, device=GPU)
    assert caplog.messages == [
        "The backbone runs eagerly, because a C compiler (gcc or clang or cc) is missing to compile it."
    ]
    assert network.online.compiled is None


@pytest.mark.slow
def test_a_failed_compilation_changes_nothing_but_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    backbone = start(COUPLED, False).online.backbone
    eager, (view,) = copy.deepcopy(backbone), views(16)
    with config.patch({"cpp.cxx": ("/bin/false",), "fx_graph_cache": False}):
        run = Compiled(backbone, optional=True)
        found = [run(view), run(view)]
        with pytest.raises(InvalidError, match=r'^The backbone cannot be compiled: .*\. compile = "auto" in'):
            Compiled(backbone, optional=False)(view)
    assert all(map(torch.equal, found, [eager(view), eager(view)]))
    assert all(map(torch.equal, backbone.state_dict().values(), eager.state_dict().values()))
    (message,) = (record.message for record in caplog.records if record.name == compiled.__name__)
    assert message.startswith("The backbone runs eagerly, because its compilation failed: ")
