"""SimSiam: its loss by hand, by lightly and in a plain loop; with its stop-gradient it does not collapse."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import plain
import pytest
import skips
import torch
from test_loop import TOLERANCE, check, error, trained
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toys import CPU, PRETRAIN, Toy, batch, on_two_processes

from configs.baselines import simsiam_imagenet, simsiam_transfer_imagenet
from configs.evaluate import linear
from configs.scales import smoke
from reproduce.commands import doctor
from reproduce.evaluate import evaluate
from reproduce.methods.simsiam import SimSiam, symmetric_loss
from reproduce.nn import backbones, collapse, cost, distributed
from reproduce.nn.group_batchnorm import average_statistics, group_batchnorm
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import SGD
from reproduce.runs import interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress, Silent, Watch
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.train import load_encoder, pretrain

PROJECTOR = Head(widths=(16, 8), bias=False, last_bias=False, last_norm="fixed")
PREDICTOR = Head(widths=(4, 8), bias=False)
METHOD = SimSiam(projector=PROJECTOR, predictor=PREDICTOR)


# The loss


def test_the_loss_by_hand() -> None:
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    # The cosine is 1 / sqrt 2 in each pair of rows, in both directions.
    assert symmetric_loss(torch.cat([p, p]), torch.cat([z, z])).item() == pytest.approx(-1 / math.sqrt(2))
    # Only the first view's predictions are those of the second view's projections.
    loss = symmetric_loss(torch.cat([z, p]), torch.cat([z, 2 * z]))
    assert loss.item() == pytest.approx(-(1 + 1 / math.sqrt(2)) / 2)


def test_the_loss_is_that_of_lightly() -> None:
    lightly = skips.optional("lightly.loss").NegativeCosineSimilarity()
    torch.manual_seed(0)
    p, z = (torch.randn(12, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = symmetric_loss(p, z.detach())
    (p1, p2), (z1, z2) = p.chunk(2), z.detach().chunk(2)
    expected = (lightly(p1, z2) + lightly(p2, z1)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (mine,) = torch.autograd.grad(loss, p)
    (theirs,) = torch.autograd.grad(expected, p)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_z_and_p_are_those_of_one_forward_pass_of_each_view_and_z_is_a_constant() -> None:
    torch.manual_seed(0)
    network: Any = METHOD.network(backbones.build("small"), num_images=1, batch_size=6).double().train()
    other = copy.deepcopy(network)
    views = [torch.randn(6, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    (part,) = METHOD.parts(network, batch(views))
    part.loss.backward()
    assert network.online.backbone.stem[1].num_batches_tracked == 2
    z = [other.online.projector(other.online.backbone(view)) for view in views]
    p = [other.online.predictor(each) for each in z]
    cosines = [(plain.unit(p[i]) * plain.unit(z[1 - i].detach())).sum(dim=1).mean() for i in range(2)]
    loss = -sum(cosines) / 2
    loss.backward()
    assert part.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(part.embeddings, z[0].detach())
    for mine, theirs in zip(network.online.parameters(), other.online.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-4)


# Collapse


def trained_on_noise(stop_gradient: bool) -> float:
    """Return the std of z hat after 200 steps of a small encoder on 64 noisy vectors.

    BatchNorm is in the hidden layers only, as in a row of SimSiam's Table 3, so nothing else spreads z.
    """
    torch.manual_seed(0)
    encoder = Head(widths=(32, 32, 8), bias=False).build(16)
    predictor = PREDICTOR.build(8)
    optimizer = torch.optim.SGD([*encoder.parameters(), *predictor.parameters()], lr=0.3, momentum=0.9)
    images = torch.randn(64, 16)
    for _ in range(200):
        z = torch.cat([encoder(images + torch.randn(64, 16)) for _ in range(2)])
        p = torch.cat([predictor(view) for view in z.chunk(2)])
        loss = symmetric_loss(p, z.detach() if stop_gradient else z)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return collapse.std(z[:64].detach())


def test_without_its_stop_gradient_it_collapses() -> None:
    assert trained_on_noise(stop_gradient=True) > 0.8
    assert trained_on_noise(stop_gradient=False) < 0.1


# Training: the plain loop, a stop in the middle of an epoch, two processes


class PlainSimSiam(plain.PlainMethod):
    """The loss of section 3 with z of the same forward pass."""

    def network(self, backbone: Any, num_images: int) -> Any:
        module = nn.Module()
        projector = self.settings.projector.build(backbone.num_features)
        predictor = self.settings.predictor.build(self.settings.projector.output)
        module.online = nn.ModuleDict({"backbone": backbone, "projector": projector, "predictor": predictor})
        return module

    def loss(self, network: Any, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        z = [network.online["projector"](network.online["backbone"](view)) for view in views]
        p = [network.online["predictor"](each) for each in z]
        one = (plain.unit(p[0]) * plain.unit(z[1].detach())).sum(dim=1).mean()
        two = (plain.unit(p[1]) * plain.unit(z[0].detach())).sum(dim=1).mean()
        return {"loss": -one / 2 - two / 2}


class PlainSGD:
    """Momentum, decay of everything, and the predictor at the peak rate."""

    def __init__(self, parameters: dict[str, nn.Parameter], settings: Any, *, peak: float) -> None:
        self.parameters, self.settings, self.peak = parameters, settings, peak
        self.m: dict[str, Any] = dict.fromkeys(parameters, 0)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for name, w in self.parameters.items():
            assert w.grad is not None, name
            self.m[name] = self.settings.momentum * self.m[name] + w.grad + self.settings.weight_decay * w
            w -= (self.peak if name.startswith("predictor.") else rate) * self.m[name]


def by_epoch(spec: Pretrain, at: plain.Step) -> float:
    """Return a cosine that falls once per epoch."""
    peak = spec.optimizer.base_lr * spec.batch_size / 256
    return peak * (1 + math.cos(math.pi * at.epoch / spec.epochs)) / 2


TOY = replace(
    PRETRAIN,
    method=METHOD,
    dataset=Toy(num_train=26, size=8, canvas=20),
    optimizer=SGD(base_lr=3.2, weight_decay=0.02, momentum=0.8, by_epoch=True, constant=("predictor",)),
    epochs=2,
    batch_size=8,
    seed=59,
)


def plain_run(peak: float) -> plain.Trained:
    """Return the plain run, with the rate of the predictor; its running mean of noise is left out."""
    optimizer = partial(PlainSGD, peak=peak)
    found = plain.train(TOY, Site(), method=PlainSimSiam(TOY), optimizer=optimizer, rate=by_epoch)
    return without_noise(found)


def without_noise(found: Any) -> Any:
    """Drop a running mean of rounding errors: z has mean 0, and so has the predictor's first layer."""
    assert found.network.pop("online.predictor.1.running_mean").abs().max() < 1e-6
    return found


def test_a_run_ends_where_the_plain_loop_ends(tmp_path: Path) -> None:
    found, expected = without_noise(trained(TOY, tmp_path)), plain_run(peak=0.1)
    check(found, expected)
    losses = [[logged["loss"] for logged in steps] for steps in (found.logged.values(), expected.logged)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert [logged["lr"] for logged in found.logged.values()] == pytest.approx([0.1] * 3 + [0.05] * 3)
    assert error(found.network, plain_run(peak=0.098))[0] > 4 * TOLERANCE


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_stopped_in_an_epoch_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = trained(TOY, tmp_path / "whole")

    def report(progress: Progress) -> None:
        if progress.done == 5 * 8:
            interrupt.ask("a test")

    site = Site(runs=tmp_path)
    with pytest.raises(Interrupted, match="a test"):
        pretrain(TOY, site, tmp_path / "stopped" / "run", CPU, Silent(), report)
    resumed = trained(TOY, tmp_path / "stopped")
    assert list(resumed.logged) == [6]
    assert all(torch.equal(resumed.network[name], value) for name, value in whole.network.items())
    assert all(torch.equal(resumed.encoder[name], value) for name, value in whole.encoder.items())


def step_of(rank: int | None) -> tuple[float, dict[str, Tensor | None], dict[str, Tensor]]:
    """Return the loss, the gradients and the buffers of a step; `rank` has half of the batch, None all."""
    torch.manual_seed(0)
    network: Any = METHOD.network(backbones.build("small"), num_images=1, batch_size=8).double().train()
    views = [torch.randn(8, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    network = group_batchnorm(network, batch_size=8, group=METHOD.batchnorm_images(8))
    if rank is not None:
        network.online = DistributedDataParallel(network.online, broadcast_buffers=False)
        views = [view[4 * rank :][:4] for view in views]
    (part,) = METHOD.parts(network, batch(views))
    part.loss.backward()  # type: ignore[no-untyped-call]
    average_statistics(network)
    online = distributed.unwrapped(network.online)
    gradients = {name: parameter.grad for name, parameter in online.named_parameters()}
    return distributed.mean(part.loss), gradients, dict(online.named_buffers())


def step_of_process() -> Any:
    return step_of(distributed.rank())


@pytest.mark.slow
def test_two_processes_have_the_gradients_and_buffers_of_one(tmp_path: Path) -> None:
    expected = step_of(None)
    for found in on_two_processes(step_of_process, tmp_path):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


# Sizes and recipes


def test_the_files_of_a_run_are_as_large_as_forecast() -> None:
    run = smoke(linear(simsiam_imagenet(100))).encoder
    assert isinstance(run, Pretrain)
    network = cost.network(run.backbone)
    assert network is not None
    layout = run.method.layout(network.num_features)
    assert layout is not None
    assert cost.sizes(network, layout) == doctor.sizes(run, {})


def test_a_predictor_that_does_not_fit_z_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^simsiam\.predictor has 8 outputs, but z has 2048 dimensions"):
        SimSiam(predictor=PREDICTOR)


def test_the_rates_of_both_recipes() -> None:
    for run, peak, decay in ((simsiam_imagenet(200), 0.05, 1e-4), (simsiam_transfer_imagenet(), 0.5, 1e-5)):
        assert (run.epochs, run.batch_size, run.zero_init) == (200, 256, True)
        optimizer: Any = run.optimizer
        assert optimizer.peak_lr(run.batch_size, 2) == pytest.approx(peak)
        assert optimizer.weight_decay == pytest.approx(decay)
        network: Any = SimSiam(projector=PROJECTOR, predictor=PREDICTOR).network(
            backbones.build("small"), num_images=1, batch_size=8
        )
        built = optimizer.build(network.online)
        optimizer.set_rates(built, peak / 2, peak=peak)
        rates = {id(w): group["lr"] for group in built.param_groups for w in group["params"]}
        for name, parameter in network.online.named_parameters():
            assert rates[id(parameter)] == pytest.approx(peak / (1 if name.startswith("predictor.") else 2))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_at_smoke_scale_it_learns_more_than_its_initialisation_has(tmp_path: Path) -> None:
    """Two seeds and 3 000 test images: encoders of two seeds differ by up to .03."""
    run: Any = smoke(linear(simsiam_imagenet(400))).replace("dataset.num_val", 3000)
    site = Site(runs=tmp_path)

    def top1(seed: int, epochs: int) -> float:
        encoder, folder = replace(run.encoder, seed=seed, epochs=epochs), tmp_path / f"{seed} {epochs}"
        pretrain(encoder, site, folder, CPU, Silent(), lambda progress: None)
        spec = replace(run, encoder=encoder, seed=seed)
        return evaluate(spec, load_encoder(encoder, folder, CPU), site, CPU, Watch())["top1"]

    before, after = (sum(top1(seed, epochs) for seed in (0, 1)) / 2 for epochs in (0, run.encoder.epochs))
    assert after > before + 0.03, (before, after)
