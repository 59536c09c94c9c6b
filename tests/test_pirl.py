"""PIRL: its two losses by hand, its heads, whole runs against plain steps, on one and two processes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from test_loop import Left, check_log, trained
from test_moco import in_groups
from test_npid import check_run, plain_nce
from torch import Tensor, nn
from toys import CPU, PRETRAIN, Notes, Toy, batch, on_two_processes

from configs.baselines import pirl_imagenet
from configs.evaluate import linear
from configs.scales import small
from reproduce.commands import disk, forecast
from reproduce.data.augmentation import Augmentation, Patches
from reproduce.data.imagenet import ImageNet
from reproduce.methods.pirl import PIRL
from reproduce.nn import backbones, seeds
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import SGD
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.train import build_network, pretrain

METHOD = PIRL(
    lambda_patches=0.3,
    negatives=12,
    temperature=0.3,
    head=Head(widths=(8,)),
    patch_head=Head(widths=(6,)),
    batchnorm_group=4,
)


# The losses and the heads


def views(n: int) -> list[Tensor]:
    """Return an image of 16 px and nine patches of 8 px, of n images."""
    return [torch.randn(n, 3, 16, 16), *(torch.randn(n, 3, 8, 8) for _ in range(9))]


def network_of(method: PIRL, *, num_images: int = 20, batch_size: int = 4) -> Any:
    torch.manual_seed(0)
    return method.network(backbones.build("small"), num_images=num_images, batch_size=batch_size)


def test_the_first_losses_if_all_products_are_equal() -> None:
    """Both are log(1 + M) + M log(1 + 1/M), 11.373507 for the official M."""
    method = PIRL()
    network = network_of(method)
    for layer in (network.online.projector[0], network.online.patch_head.joint):
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.bias)
    network.bank.rows.fill_(128**-0.5)
    patches, image = method.parts(network, batch(views(4)))
    assert patches.terms["L_patches"].item() == pytest.approx(11.373507, abs=1e-5)
    assert image.terms["L_image"].item() == pytest.approx(11.373507, abs=1e-5)
    assert patches.loss.item() == image.loss.item() == pytest.approx(11.373507 / 2, abs=1e-5)


def test_the_rows_start_at_length_1_and_follow_the_image_alone() -> None:
    network = network_of(METHOD)
    before = network.bank.rows.clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(20))
    step = replace(batch(views(4)), indices=torch.tensor([17, 3, 0, 9]))
    for part in METHOD.parts(network, step):
        part.loss.backward()  # type: ignore[no-untyped-call]
        image = part.embeddings
    assert torch.equal(network.bank.rows, before), "they move after the step"
    METHOD.after_step(network, step)
    changed = (network.bank.rows != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == [0, 3, 9, 17]
    halfway = plain.unit((before[step.indices] + plain.unit(image)) / 2)
    torch.testing.assert_close(network.bank.rows[step.indices], halfway)


def test_each_part_has_gradients_in_its_own_head_and_reaches_the_other() -> None:
    """Each head's gradient is 0 in the other's part and not missing, as processes could not exchange it."""
    network = network_of(METHOD)
    heads = (network.online.patch_head, network.online.projector)
    for part, (own, other) in zip(METHOD.parts(network, batch(views(4))), (heads, heads[::-1]), strict=True):
        network.zero_grad()
        part.loss.backward()  # type: ignore[no-untyped-call]
        assert all(weight.grad.abs().max() > 0 for weight in own.parameters())
        assert all(not weight.grad.any() for weight in other.parameters())


def test_the_order_of_patches_counts_and_an_image_has_its_own() -> None:
    network = network_of(METHOD).online.eval()
    _, *patches = views(4)
    z = network(*patches).z
    permuted = network(*reversed(patches)).z
    assert (z - permuted).abs().max() > 0.01
    alone = network(*(patch[2:3] for patch in patches)).z
    torch.testing.assert_close(alone[0], z[2])


# Whole runs


class Concatenated(nn.Module):
    """Concatenates the outputs of the nine patches of each image, which are neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x) // 9, -1)


class PlainPIRL(plain.PlainMethod):
    """Both losses from probabilities, patches image by image, and rows that move one by one."""

    z: float | None = None

    def network(self, backbone: Any, num_images: int) -> Any:
        s = self.settings
        module, patch_head = nn.Module(), nn.Module()
        module.online = nn.ModuleDict(
            {"backbone": backbone, "projector": s.head.build(backbone.num_features), "patch_head": patch_head}
        )
        patch_head.each = s.patch_head.build(backbone.num_features)
        patch_head.joint = nn.Linear(9 * s.patch_head.output, s.head.output)
        module.bank = nn.Module()
        bound = math.sqrt(3 / s.head.output)
        rows = torch.empty(num_images, s.head.output).uniform_(-bound, bound)
        module.bank.register_buffer("rows", plain.unit(rows))
        module.bank.register_buffer("log_z", torch.tensor(math.nan))
        return module

    def h(self, network: Any, v: Tensor, purpose: str, at: plain.Step) -> Tensor:
        shape = len(at.images), self.settings.negatives
        generator = seeds.generator(purpose, self.spec.seed, at.step)
        drawn = torch.randint(len(network.bank.rows), shape, generator=generator)
        rows, indices = network.bank.rows, torch.tensor(at.images)
        loss, self.z = plain_nce(rows, v, indices, drawn, self.settings.temperature, self.z)
        return loss

    def loss(self, network: Any, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        s, (image, *patches) = self.settings, views
        online = network.online
        head = nn.Sequential(online["patch_head"].each, Concatenated(), online["patch_head"].joint)
        of_patches = nn.ModuleDict({"backbone": online["backbone"], "projector": head})
        u = in_groups(of_patches, torch.stack(patches, dim=1).flatten(0, 1), 9 * s.batchnorm_group)
        self.v = plain.unit(in_groups(online, image, s.batchnorm_group))
        first = self.h(network, plain.unit(u), "negatives of patches", at)
        second = self.h(network, self.v, "negatives", at)
        assert self.z is not None
        network.bank.log_z.fill_(math.log(self.z))
        loss = s.lambda_patches * first + (1 - s.lambda_patches) * second
        return {"loss": loss, "L_patches": first, "L_image": second}

    def after(self, network: Any, at: plain.Step) -> dict[str, float]:
        with torch.no_grad():
            for index, v in zip(at.images, self.v, strict=True):
                row, m = network.bank.rows[index], self.settings.momentum
                row.copy_(plain.unit((m * row + (1 - m) * v)[None])[0])
        return {}


class PlainSGD:
    """Momentum, and decay of all weights but vectors."""

    def __init__(self, parameters: dict[str, nn.Parameter], settings: Any) -> None:
        self.parameters, self.settings = parameters, settings
        self.m: dict[str, Any] = dict.fromkeys(parameters, 0)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for name, w in self.parameters.items():
            assert w.grad is not None, name
            decay = self.settings.weight_decay if w.ndim > 1 else 0
            self.m[name] = self.settings.momentum * self.m[name] + w.grad + decay * w
            w -= rate * self.m[name]


def by_epoch(spec: Pretrain, at: plain.Step) -> float:
    """Return a cosine to a thousandth that falls once per epoch."""
    cosine = (1 + math.cos(math.pi * at.epoch / spec.epochs)) / 2
    return float(spec.optimizer.base_lr * spec.batch_size / 256 * (0.001 + 0.999 * cosine))


TOY = replace(
    PRETRAIN,
    method=METHOD,
    dataset=Toy(num_train=26, size=12, canvas=20),
    augmentation=Augmentation(patches=Patches(size=2, canvas=9, jitter=1)),
    optimizer=SGD(
        base_lr=0.64,
        weight_decay=0.02,
        exempt_vectors=True,
        momentum=0.8,
        by_epoch=True,
        final_ratio=0.001,
    ),
    epochs=2,
    batch_size=8,
    seed=0,
)


def plain_run(spec: Pretrain = TOY) -> plain.Trained:
    return plain.train(spec, Site(), method=PlainPIRL(spec), optimizer=PlainSGD, rate=by_epoch)


def test_a_run_ends_where_the_plain_loop_ends(tmp_path: Path) -> None:
    found, expected = trained(TOY, tmp_path), plain_run()
    check_run(found, expected)
    check_log(list(found.logged.values()), expected.logged)


def run_of_each(folder: Path) -> Left:
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
    moved = state["network"]["bank.rows"] != build_network(TOY, 26).bank.rows
    assert moved.any(dim=1).sum() == 16, "the images of two steps"
    resumed = trained(TOY, tmp_path / "stopped")
    assert all(torch.equal(resumed.network[name], value) for name, value in whole.network.items())


# Settings and sizes


def test_the_recipe_has_the_official_rates_and_smaller_scales_keep_the_proportions() -> None:
    run = pirl_imagenet()
    place: Any = {"batch_size": 1024, "num_views": 10, "steps_per_epoch": 1251, "epochs": 800}
    rates = [run.optimizer.rate(epoch * 1251 + 700, **place) for epoch in (0, 400, 799)]
    assert rates == pytest.approx([0.12, (0.12 + 0.00012) / 2, 0.00012], rel=5e-3)
    assert run.method.batchnorm_images(1024) == 32
    encoder: Any = small(linear(run)).encoder
    patches = encoder.augmentation.patches
    assert (encoder.dataset.size, patches.size, patches.canvas, patches.jitter) == (128, 37, 146, 11)


def test_views_without_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^The last 9 of the 10 views of pirl are patches, but "):
        replace(TOY, augmentation=Augmentation()).check_for()


def test_a_batch_of_broken_groups_is_refused_before_anything_starts() -> None:
    replace(TOY, batch_size=3).check_for()  # a smaller batch is one group
    with pytest.raises(
        ValueError, match=r"^batch_size is 10, but pirl .* groups of 4 .* a multiple of 4, or"
    ):
        replace(TOY, batch_size=10).check_for()


def test_a_checkpoint_contains_a_row_for_each_image_and_the_head_of_patches() -> None:
    run = replace(TOY, method=PIRL(), dataset=ImageNet(), backbone="resnet50")
    found = disk.sizes(run, {})
    assert forecast._sizes(run) == found
    without = disk.sizes(replace(run, dataset=Toy(num_train=1)), {})
    assert found.checkpoint - without.checkpoint == 4 * 128 * 1_281_166  # 656 MB
    assert found.encoder == without.encoder


def test_the_layout_counts_the_trained_parameters_of_both_heads() -> None:
    online = network_of(METHOD).online
    layout = METHOD.layout(64)
    for block, module in ((layout.projector, online.projector), (layout.predictor, online.patch_head)):
        assert block.parameters == sum(weight.numel() for weight in module.parameters())


def test_the_memory_is_that_of_the_image_or_of_its_patches() -> None:
    assert PIRL().view_groups == ((1, 2, 3, 4, 5, 6, 7, 8, 9), (0,))
