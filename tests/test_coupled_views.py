"""SimCLR, Barlow Twins and VICReg in training: their losses couple all views of a batch.

Each ends where a plain loop with the formula of its paper ends, on one process or two, in one go or resumed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from test_loop import check, check_log, toy, trained
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toys import CPU, Notes, batch, on_two_processes

from configs import baselines
from configs.evaluate import linear
from configs.scales import smoke
from reproduce import train
from reproduce.evaluate import evaluate
from reproduce.methods.barlow_twins import BarlowTwins
from reproduce.methods.method import Method
from reproduce.methods.simclr import SimCLR
from reproduce.methods.vicreg import VICReg
from reproduce.nn import backbones, distributed
from reproduce.nn.encoder import FILE
from reproduce.nn.heads import Head
from reproduce.nn.sync_batchnorm import sync_batchnorm
from reproduce.runs import interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Watch
from reproduce.site import Site
from reproduce.spec import Pretrain

SCALED = Head(widths=(16, 8), bias=False, last_bias=False, last_norm="scale", weight_std=0.01)
AFFINE = Head(widths=(16, 8), last_norm="affine")
WIDE = Head(widths=(16, 16, 12), last_bias=False)
LARS: dict[str, Any] = {"scale_with_views": False, "base_lr": 3.0}
TOYS: dict[str, Pretrain] = {
    "SimCLR": toy(SimCLR(head=SCALED, temperature=0.3), seed=60, **LARS),
    "SimCLR with joint heads": toy(
        SimCLR(num_views=3, head=AFFINE, temperature=0.5, loss_scale=1.0, joint="heads"), seed=43, **LARS
    ),
    "Barlow Twins": toy(
        BarlowTwins(head=WIDE, lambda_redundancy=0.05), seed=42, vector_lr=0.125, final_ratio=0.1, **LARS
    ),
    "VICReg": toy(VICReg(head=WIDE), seed=22, final_ratio=0.1, **LARS),
}


# The plain loop


class OneNetwork(nn.Module):
    """A backbone and a projector, without a target."""

    def __init__(self, backbone: Any, projector: nn.Module) -> None:
        super().__init__()
        self.online = nn.ModuleDict({"backbone": backbone, "projector": projector})


class Coupled(plain.PlainMethod):
    """A method whose loss needs the embeddings of all views."""

    def network(self, backbone: Any, num_images: int) -> OneNetwork:
        return OneNetwork(backbone, self.settings.head.build(backbone.num_features))

    def embeddings(self, network: OneNetwork, views: list[Tensor]) -> list[Tensor]:
        f, g = network.online["backbone"], network.online["projector"]
        return [g(f(view)) for view in views]


class PlainSimCLR(Coupled):
    def embeddings(self, network: OneNetwork, views: list[Tensor]) -> list[Tensor]:
        f, g = network.online["backbone"], network.online["projector"]
        if self.settings.joint == "all":
            return list(g(f(torch.cat(views))).chunk(len(views)))
        return list(g(torch.cat([f(view) for view in views])).chunk(len(views)))

    def loss(self, network: OneNetwork, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        z, losses = [plain.unit(each) for each in self.embeddings(network, views)], []
        for i in range(len(z)):
            for j in range(i):
                losses.append(self.contrast(torch.cat([z[i], z[j]]), len(z[i])))
        L = plain.mean(losses)
        return {"loss": self.settings.loss_scale * L, "L_simclr": L}

    def contrast(self, z: Tensor, n: int) -> Tensor:
        s = torch.exp(z @ z.T / self.settings.temperature)
        shares = [s[i, (i + n) % (2 * n)] / (s[i].sum() - s[i, i]) for i in range(2 * n)]
        return -torch.stack(shares).log().mean()


class PlainBarlowTwins(Coupled):
    def loss(self, network: OneNetwork, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        a, b = (self.standard(z) for z in self.embeddings(network, views))
        C = torch.stack([(a * column[:, None]).mean(dim=0) for column in b.T])
        on = sum((C[i, i] - 1) ** 2 for i in range(len(C)))
        off = sum(C[i, j] ** 2 for i in range(len(C)) for j in range(len(C)) if i != j)
        assert isinstance(on, Tensor)
        assert isinstance(off, Tensor)
        L = on + self.settings.lambda_redundancy * off
        return {"loss": L / 16, "L_invariance": on, "L_redundancy": off}

    def standard(self, z: Tensor) -> Tensor:
        centred = z - z.mean(dim=0)
        return centred / (centred.square().mean(dim=0) + 1e-5).sqrt()


class PlainVICReg(Coupled):
    def loss(self, network: OneNetwork, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        x, y = self.embeddings(network, views)
        s = (x - y).square().mean()
        v = [(1 - (torch.cov(z.T).diagonal() + 1e-4).sqrt()).clamp(min=0).mean() for z in (x, y)]
        c = [torch.cov(z.T).square().fill_diagonal_(0).sum() / z.shape[1] for z in (x, y)]
        variance, covariance = (v[0] + v[1]) / 2, c[0] + c[1]
        return {
            "loss": 25 * s + 25 * variance + covariance,
            "L_invariance": s,
            "L_variance": variance,
            "L_covariance": covariance,
        }


PLAIN: dict[str, type[Coupled]] = {
    "simclr": PlainSimCLR,
    "barlow_twins": PlainBarlowTwins,
    "vicreg": PlainVICReg,
}


class PlainLARS(plain.PlainLARS):
    """LARS whose vectors may have a rate of their own."""

    def step(self, rate: float) -> None:
        s, before = self.settings, {name: w.detach().clone() for name, w in self.parameters.items()}
        super().step(rate)
        if s.vector_lr is None:
            return
        for name, w in self.parameters.items():
            if w.ndim == 1:
                w.data.copy_(before[name] - rate * s.vector_lr / s.base_lr * self.m[name])


def rate(spec: Pretrain, at: plain.Step) -> float:
    """Return section 7.1's rate, which ends at `final_ratio` of the peak."""
    settings: Any = spec.optimizer
    cosine, peak = plain.section_7_1(spec, at), settings.base_lr * spec.batch_size / 256
    if at.step < settings.warmup_epochs * at.steps_per_epoch:
        return cosine
    return float(settings.final_ratio * peak + (1 - settings.final_ratio) * cosine)


def plainly(spec: Pretrain) -> plain.Trained:
    return plain.train(spec, Site(), method=PLAIN[spec.method.name](spec), optimizer=PlainLARS, rate=rate)


@pytest.mark.parametrize("name", TOYS)
def test_a_run_ends_where_the_plain_loop_ends(tmp_path: Path, name: str) -> None:
    found, expected = trained(TOYS[name], tmp_path), plainly(TOYS[name])
    check(found, expected)
    check_log(list(found.logged.values()), expected.logged)


# Resuming


def interrupted(spec: Pretrain, folder: Path, *, after: int) -> None:
    """Stop a run in the middle of an epoch, after so many steps."""

    def report(progress: Any) -> None:
        if progress.done == after * spec.batch_size:
            interrupt.ask("a test")

    with pytest.raises(Interrupted, match="a test"):
        train.pretrain(spec, Site(runs=folder), folder / "run", CPU, Notes(), report)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TOYS)
def test_a_run_that_resumes_in_an_epoch_ends_bit_equal(tmp_path: Path, name: str) -> None:
    spec = TOYS[name]
    whole = trained(spec, tmp_path / "whole")
    interrupted(spec, tmp_path / "struck", after=2)
    interrupted(spec, tmp_path / "struck", after=4)
    resumed = trained(spec, tmp_path / "struck")
    assert list(resumed.logged) == [5, 6]
    assert not [key for key, value in resumed.network.items() if not torch.equal(value, whole.network[key])]
    assert resumed.encoder.keys() == whole.encoder.keys()
    assert (tmp_path / "struck" / "run" / FILE).is_file()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TOYS)
def test_a_run_that_recomputes_activations_ends_bit_equal(tmp_path: Path, name: str) -> None:
    spec = TOYS[name]
    ends = []
    for recompute in (False, True):
        folder = tmp_path / str(recompute)
        site = Site(runs=folder, recompute=recompute)
        train.pretrain(spec, site, folder / "run", CPU, Notes(), lambda progress: None)
        ends.append(train.load_encoder(spec, folder / "run", CPU).backbone.state_dict())
    assert not [key for key, value in ends[0].items() if not torch.equal(value, ends[1][key])]


# Two processes


def step_of(method: Method) -> dict[str, Tensor]:
    """Return loss, gradients and buffers of a step with 8 images, in float64 up to the embeddings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = method.network(backbones.build("small"), num_images=64, batch_size=8).double()
    network = sync_batchnorm(network).train()
    if distributed.world_size() > 1:
        network.online = DistributedDataParallel(network.online, broadcast_buffers=False)
    draw = torch.Generator().manual_seed(1)
    share = 8 // distributed.world_size()
    views = [
        torch.randn(8, 3, 16, 16, generator=draw, dtype=torch.float64)[distributed.rank() * share :][:share]
        for _ in range(method.num_views)
    ]
    (part,) = method.parts(network, batch(views))
    part.loss.backward()  # type: ignore[no-untyped-call]
    inner = distributed.unwrapped(network.online)
    values = {"loss": part.loss, **part.terms}
    return {
        **{name: torch.tensor(distributed.mean(value)) for name, value in values.items()},
        **{f"gradient of {name}": each.grad for name, each in inner.named_parameters()},
        **dict(inner.named_buffers()),
    }


def steps() -> list[dict[str, Tensor]]:
    return [step_of(spec.method) for spec in TOYS.values()]


@pytest.mark.slow
def test_two_processes_have_the_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    alone = steps()
    for found in on_two_processes(steps, tmp_path):
        for of_process, expected in zip(found, alone, strict=True):
            assert of_process.keys() == expected.keys()
            for name, value in expected.items():
                scale = value.abs().max().item()
                torch.testing.assert_close(of_process[name], value, rtol=1e-5, atol=1e-5 * scale + 1e-9)


# Learning


RECIPES = {
    "SimCLR": baselines.simclr_1000_imagenet,
    "SimCLR with three layers": lambda: baselines.simclr_imagenet(400),
    "SimCLR on STL-10": baselines.simclr_stl10,
    "Barlow Twins": baselines.barlow_twins_imagenet,
    "VICReg": baselines.vicreg_imagenet,
}


@pytest.fixture(scope="module")
def smoke_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs at smoke scale, whose images are drawn once."""
    return tmp_path_factory.mktemp("smoke")


def top1(run: Any, folder: Path) -> float:
    """Return the mean linear accuracy of two seeds."""
    found = []
    for each in run.at_seeds(2):
        site, place = Site(runs=folder), folder / each.encoder.id
        train.pretrain(each.encoder, site, place, CPU, Notes(), lambda progress: None)
        found.append(evaluate(each, train.load_encoder(each.encoder, place, CPU), site, CPU, Watch())["top1"])
    return sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", RECIPES)
def test_at_smoke_scale_the_encoder_is_better_than_its_initialisation(smoke_runs: Path, name: str) -> None:
    run: Any = smoke(linear(RECIPES[name]()))
    untrained = replace(run, encoder=replace(run.encoder, epochs=0))
    before, after = top1(untrained, smoke_runs), top1(run, smoke_runs)
    assert after > before + 0.03, (before, after)
