"""NPID: its loss by hand and in plain steps, its memory bank, whole runs on one and two processes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from test_loop import Left, check, check_log, trained
from test_simsiam import PlainSGD
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from toys import CPU, PRETRAIN, Notes, Toy, batch, on_two_processes

from configs import baselines
from reproduce.commands import disk, forecast
from reproduce.data.imagenet import ImageNet
from reproduce.methods.npid import NPID
from reproduce.nn import backbones, bank, cost, seeds
from reproduce.nn.bank import Bank
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import SGD
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.train import pretrain

METHOD = NPID(negatives=12, temperature=0.3, head=Head(widths=(8,)))


# The loss and the bank


@pytest.mark.parametrize(("num_negatives", "expected"), [(4096, 9.317888), (32_000, 11.373507)])
def test_the_first_loss_if_all_products_are_equal(num_negatives: int, expected: float) -> None:
    """log(1 + M) + M log(1 + 1/M), in whichever of the two ways the products are computed."""
    v = torch.full((2, 128), 128**-0.5)
    for num_images in (1000, 200_000):
        rows = Bank(num_images, 128)
        rows.rows.fill_(128**-0.5)
        drawn = torch.zeros(2, num_negatives, dtype=torch.int64)
        loss = rows.nce(v, torch.tensor([3, 7]), drawn, temperature=0.07)
        assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("num_images", [20, 200], ids=["all rows at once", "the rows of each vector"])
def test_the_loss_is_that_of_the_probabilities(num_images: int) -> None:
    torch.manual_seed(0)
    module = Bank(num_images, 5).double()
    v = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    indices, drawn = torch.arange(6), torch.randint(num_images, (6, 7))
    losses = [module.nce(plain.unit(v), indices, drawn, temperature=0.5) for _ in range(2)]
    assert losses[0].item() == losses[1].item(), "Z stays"
    expected = plain_nce(module.rows, plain.unit(v), indices, drawn, 0.5, None)[0]
    torch.testing.assert_close(losses[1], expected)
    (mine,) = torch.autograd.grad(losses[1], v)
    (theirs,) = torch.autograd.grad(expected, v)
    torch.testing.assert_close(mine, theirs)
    other = plain.unit(torch.randn(6, 5, dtype=torch.float64))
    z = math.exp(module.log_z.item())
    again = module.nce(other, indices, drawn, temperature=0.5)
    torch.testing.assert_close(again, plain_nce(module.rows, other, indices, drawn, 0.5, z)[0])


@pytest.mark.parametrize("num_images", [20, 200], ids=["all rows at once", "the rows of each vector"])
def test_blocks_of_vectors_have_the_products_and_gradients_of_all_at_once(
    num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    rows, weights = torch.randn(num_images, 5, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    v = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    compared = torch.randint(num_images, (7, 6))
    compared[:, 3] = compared[:, 2]  # a row that is drawn twice counts twice
    found = []
    for block in (cost.BLOCK, 2 * min(num_images, 6 * 5), 1):
        monkeypatch.setattr(cost, "BLOCK", block)
        products = bank.Products.apply(v, rows, compared)  # type: ignore[no-untyped-call]
        (gradient,) = torch.autograd.grad((products * weights).sum(), v)
        found.append((products.detach(), gradient))
    expected = (
        (v[:, None] * rows[compared]).sum(dim=2).detach(),
        (weights[:, :, None] * rows[compared]).sum(1),
    )
    for products_and_gradient in found:
        torch.testing.assert_close(products_and_gradient, expected)


def test_a_row_moves_halfway_towards_its_vector_and_no_other_moves() -> None:
    module = Bank(5, 3)
    before = module.rows.clone()
    assert before.abs().max() <= 1  # sqrt(3 / 3)
    v = torch.eye(3)[:2]
    module.renew(torch.tensor([4, 1]), v, momentum=0.5)
    for row, vector in ((4, v[0]), (1, v[1])):
        torch.testing.assert_close(module.rows[row], plain.unit((before[row] + vector)[None] / 2)[0])
    assert torch.equal(module.rows[[0, 2, 3]], before[[0, 2, 3]])


def test_negatives_are_uniform_and_follow_from_seed_and_step() -> None:
    indices = torch.arange(500)
    drawn = [
        bank.negatives(10, 100, indices=indices, seed=seed, step=step)
        for seed, step in ((1, 2), (1, 2), (1, 3), (2, 2))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])
    counts = drawn[0].flatten().bincount(minlength=10)
    assert counts.sub(5000).abs().max() < 5 * math.sqrt(5000 * 0.9)


# Whole runs


def plain_nce(
    rows: Tensor, v: Tensor, indices: Tensor, drawn: Tensor, temperature: float, z: float | None
) -> tuple[Tensor, float]:
    """Return the mean of h and Z, from probabilities; without Z, it is that of these products."""
    n, num_negatives = drawn.shape
    exponentials = [
        [(v[i] @ rows[j] / temperature).exp() for j in [int(indices[i]), *drawn[i].tolist()]]
        for i in range(n)
    ]
    if z is None:
        z = len(rows) * torch.stack([e for each in exponentials for e in each]).mean().item()
    share, losses = num_negatives / len(rows), []
    for positive, *others in exponentials:
        loss = -(positive / z / (positive / z + share)).log()
        losses.append(loss - sum((share / (other / z + share)).log() for other in others))
    return torch.stack(losses).mean(), z


class PlainNPID(plain.PlainMethod):
    """NCE from probabilities, and rows that move one by one."""

    z: float | None = None

    def network(self, backbone: Any, num_images: int) -> Any:
        module = nn.Module()
        projector = self.settings.head.build(backbone.num_features)
        module.online = nn.ModuleDict({"backbone": backbone, "projector": projector})
        module.bank = nn.Module()
        bound = math.sqrt(3 / self.settings.head.output)
        module.bank.register_buffer("rows", torch.empty(num_images, 8).uniform_(-bound, bound))
        module.bank.register_buffer("log_z", torch.tensor(math.nan))
        return module

    def loss(self, network: Any, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        (view,) = views
        self.v = plain.unit(network.online["projector"](network.online["backbone"](view)))
        indices, generator = torch.tensor(at.images), seeds.generator("negatives", self.spec.seed, at.step)
        shape = len(indices), self.settings.negatives
        drawn = torch.randint(len(network.bank.rows), shape, generator=generator)
        loss, self.z = plain_nce(network.bank.rows, self.v, indices, drawn, self.settings.temperature, self.z)
        network.bank.log_z.fill_(math.log(self.z))
        return {"loss": loss}

    def after(self, network: Any, at: plain.Step) -> dict[str, float]:
        with torch.no_grad():
            for index, v in zip(at.images, self.v, strict=True):
                row = network.bank.rows[index]
                m = self.settings.momentum
                row.copy_(plain.unit((m * row + (1 - m) * v)[None])[0])
        return {}


def dropped(spec: Pretrain, at: plain.Step) -> float:
    """Return the base rate, a tenth of it in the second epoch."""
    return float(spec.optimizer.base_lr) * (0.1 if at.epoch else 1)


TOY = replace(
    PRETRAIN,
    method=METHOD,
    dataset=Toy(num_train=26, size=8, canvas=20),
    optimizer=SGD(base_lr=0.05, batch_scaling="none", weight_decay=0.02, momentum=0.8, drops=(0.5,)),
    epochs=2,
    batch_size=8,
    seed=0,
)


def plain_run() -> plain.Trained:
    def optimizer(parameters: Any, settings: Any) -> PlainSGD:
        return PlainSGD(parameters, settings, peak=0.0)

    return plain.train(TOY, Site(), method=PlainNPID(TOY), optimizer=optimizer, rate=dropped)


def check_run(found: Left, expected: plain.Trained) -> None:
    """Compare as `check` does, and log Z, which has no value before the first step."""
    found, expected = (
        replace(found, network={**found.network}),
        replace(expected, network={**expected.network}),
    )
    values = [each.network.pop("bank.log_z") for each in (found, expected)]
    torch.testing.assert_close(*values)
    check(found, expected)


def test_a_run_ends_where_the_plain_loop_ends(tmp_path: Path) -> None:
    found, expected = trained(TOY, tmp_path), plain_run()
    check_run(found, expected)
    check_log(list(found.logged.values()), expected.logged)


def run_of_each(folder: Path) -> Any:
    return trained(TOY, folder)


@pytest.mark.slow
def test_two_processes_end_where_the_plain_loop_ends(tmp_path: Path) -> None:
    expected = plain_run()
    for found in on_two_processes(run_of_each, tmp_path, tmp_path):
        check_run(found, expected)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_resumes_with_a_part_of_the_bank_renewed_ends_bit_equal(tmp_path: Path) -> None:
    whole = trained(TOY, tmp_path / "whole")

    def report(progress: Progress) -> None:
        if progress.done == 2 * 8:
            interrupt.ask("a test")

    site = Site(runs=tmp_path)
    with pytest.raises(Interrupted, match="a test"):
        pretrain(TOY, site, tmp_path / "stopped" / "run", CPU, Notes(), report)
    state = checkpoint.latest(tmp_path / "stopped" / "run", TOY.id)
    assert state is not None
    lengths = state["network"]["bank.rows"].norm(dim=1)
    assert ((lengths - 1).abs() < 1e-6).sum() == 16, "the images of two steps"
    resumed = trained(TOY, tmp_path / "stopped")
    assert all(torch.equal(resumed.network[name], value) for name, value in whole.network.items())


def test_the_rows_are_those_of_the_images_of_the_step() -> None:
    torch.manual_seed(0)
    network: Any = METHOD.network(backbones.build("small"), num_images=20, batch_size=4)
    step = replace(batch([torch.randn(4, 3, 16, 16)]), indices=torch.tensor([17, 3, 0, 9]))
    before = network.bank.rows.clone()
    (part,) = METHOD.parts(network, step)
    part.loss.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(network.bank.rows, before), "they move after the step"
    METHOD.after_step(network, step)
    changed = (network.bank.rows != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == [0, 3, 9, 17]


# The recipe


def test_the_rate_of_the_recipe_drops_at_epochs_120_and_160() -> None:
    run = baselines.npid_imagenet()
    rates = [
        run.optimizer.rate(
            10 * epoch, batch_size=run.batch_size, num_views=1, steps_per_epoch=10, epochs=run.epochs
        )
        for epoch in (0, 119, 120, 159, 160, 199)
    ]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])


# Sizes


def peak_bytes(work: Callable[[], None], trace: Path) -> int:
    """Return the most bytes of tensors on the CPU that exist at once while `work` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    recorded.export_chrome_trace(str(trace))
    events = [each for each in json.loads(trace.read_text())["traceEvents"] if each.get("name") == "[memory]"]
    changes = (each["args"]["Bytes"] for each in sorted(events, key=lambda each: float(each["ts"])))
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize(("num_images", "block"), [(20_000, 2**17), (200_000, 2**17), (200_000, 2**26)])
def test_a_loss_needs_about_the_memory_that_is_estimated(
    num_images: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "BLOCK", block)
    module, indices = Bank(num_images, 32), torch.arange(64)
    v = plain.unit(torch.randn(64, 32)).requires_grad_()

    def step() -> None:
        drawn = bank.negatives(num_images, 1000, indices=indices, seed=0, step=0)
        loss = module.nce(v, indices, drawn, temperature=0.07)
        loss.backward()  # type: ignore[no-untyped-call]

    layout = cost.Layout(cost.Block(0), kept_per_image=4 * 32, compared=1001)
    estimated = cost.comparisons(layout, images=64, batch_size=64, num_images=num_images)
    assert peak_bytes(step, tmp_path / "trace.json") == pytest.approx(estimated, rel=0.35)


def test_a_checkpoint_contains_a_row_for_each_image_and_the_forecast_counts_them() -> None:
    run = replace(TOY, method=NPID(), dataset=ImageNet(), backbone="resnet50")
    found = disk.sizes(run, {})
    assert forecast._sizes(run) == found
    without = disk.sizes(replace(run, dataset=Toy(num_train=1)), {})
    assert found.checkpoint - without.checkpoint == 4 * 128 * 1_281_166  # 656 MB
    assert found.encoder == without.encoder
