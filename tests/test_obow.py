"""OBoW: bags of words and the loss by hand, the words' queue, whole runs on one and two processes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from test_loop import Left, check, check_log, trained
from test_simsiam import PlainSGD
from torch import Tensor, nn
from toys import CPU, PRETRAIN, Notes, Toy, batch, on_two_processes

from configs import baselines, scales
from configs.evaluate import linear
from reproduce.commands import disk, forecast
from reproduce.data.augmentation import Augmentation, Patches, SmallCrops
from reproduce.data.imagenet import ImageNet
from reproduce.messages import InvalidError
from reproduce.methods.obow import OBoW, divergence
from reproduce.nn import backbones, cost, seeds
from reproduce.nn.maps import FROM_THE_END, Maps
from reproduce.nn.optimizers import SGD
from reproduce.nn.words import AVERAGED, BORDER, Words
from reproduce.resources import memory
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.train import pretrain

HOW: dict[str, Any] = {"inverse_temperature": 1.0, "decay": 0.99}


def generator(step: int = 0) -> torch.Generator:
    return seeds.generator("words", 0, step, 0)


# The loss


@pytest.mark.parametrize("num_views", [1, 3])
def test_the_loss_of_a_right_prediction_is_0_and_of_an_equal_one_log_k(num_views: int) -> None:
    y = torch.randn(4, 8192).softmax(dim=1)
    assert divergence(y, y.log().repeat(num_views, 1)).item() == pytest.approx(0, abs=1e-6)
    one_hot = nn.functional.one_hot(torch.tensor([3, 0, 5000]), 8192).float()
    equal = torch.zeros(num_views * 3, 8192)
    assert divergence(one_hot, equal).item() == pytest.approx(9.010913, abs=1e-5)


def test_the_second_view_of_an_image_has_the_target_of_the_first() -> None:
    y = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    logits = torch.cat([y, y]).log()  # both images of the first view, then of the second
    assert divergence(y, logits).item() == pytest.approx(0, abs=1e-6)
    assert divergence(y, logits[[0, 0, 1, 1]]).item() > 0.1


# Bags of words


def two_words() -> Words:
    """Return the words 0 and 2 in one dimension."""
    words = Words(2, 1)
    words.rows.copy_(torch.tensor([[0.0], [2.0]]))
    return words


def framed(*inner: Tensor) -> Tensor:
    """Return maps with one channel and a border that must not count."""
    padded = [nn.functional.pad(each, (1, 1, 1, 1), value=math.nan) for each in inner]
    return torch.stack(padded)[:, None]


def test_bags_by_hand() -> None:
    """A place on a word has the odds 1 : exp(-delta 4 / d), here 3 : 1; d is .99 x .5."""
    zeros, both = torch.zeros(3, 3), torch.zeros(3, 3)
    both[2, 1] = 2
    words = two_words()
    delta = 0.495 * math.log(3) / 4
    y = words.bags(framed(zeros, both), inverse_temperature=delta, decay=0.99, generator=generator())
    torch.testing.assert_close(y, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))


def test_the_mean_distance_moves_before_it_is_used_and_is_kept_at_the_end_of_the_step() -> None:
    """Places at 1 are 1 from both words, at 4 they are 4 from the nearer: the mean is 2.5."""
    words = two_words()
    features = framed(torch.ones(3, 3), torch.full((3, 3), 4.0))
    y = words.bags(features, inverse_temperature=0.1, decay=0.8, generator=generator())
    assert words.distance.item() == 0.5
    words.advance(0)
    d = 0.8 * 0.5 + 0.2 * 2.5
    assert words.distance.item() == pytest.approx(d)
    odds = math.exp(0.1 * (16 - 4) / d)
    torch.testing.assert_close(y, torch.tensor([[0.5, 0.5], [1 / (1 + odds), odds / (1 + odds)]]))


def test_a_new_word_is_the_mean_of_3_x_3_places_and_replaces_the_oldest_after_the_step() -> None:
    words = Words(4, 1)
    start = words.rows.clone()
    assert (start >= 0).all()
    for step in range(3):
        maps = [torch.arange(9.0).view(3, 3) + 100 * step + 10 * image for image in range(2)]
        words.bags(framed(*maps), **HOW, generator=generator(step))
        expected = words.rows.clone()
        words.advance(step)
        place = 2 * step % 4
        expected[place : place + 2] = torch.tensor([[4.0], [14.0]]) + 100 * step
        assert torch.equal(words.rows, expected)


def test_the_places_of_new_words_are_uniform_and_follow_from_the_stream() -> None:
    n = 600
    grid = torch.arange(20.0).view(4, 5)  # 2 x 3 averages of 3 x 3 places
    drawn = []
    for step in (0, 0, 1):
        words = Words(n, 1)
        words.bags(framed(*[grid] * n), **HOW, generator=generator(step))
        words.advance(0)
        drawn.append(words.rows.flatten())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    values, counts = drawn[0].round().int().unique(return_counts=True)
    assert values.tolist() == [6, 7, 8, 11, 12, 13]
    assert counts.sub(n / 6).abs().max() < 5 * math.sqrt(n * 5 / 36)


def test_words_start_as_normal_numbers_without_the_negative_ones() -> None:
    torch.manual_seed(0)
    rows = Words(500, 100).rows
    assert (rows == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert rows.square().mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_map_without_3_x_3_places_inside_its_border_is_refused() -> None:
    Words(2, 1).bags(torch.zeros(1, 1, 5, 6), **HOW, generator=generator())
    with pytest.raises(InvalidError, match=r"a map is only 6 x 4: .* so that maps are at least 5 x 5\.$"):
        Words(2, 1).bags(torch.zeros(1, 1, 6, 4), **HOW, generator=generator())


# Settings


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^obow\.num_crops is 8, but of 8 views the student has only 7"):
        OBoW(num_crops=8)
    for levels in ((), ("conv5", "conv5")):
        with pytest.raises(ValueError, match=r"^obow\.levels is .*: at least one level"):
            OBoW(levels=levels)
    OBoW().check_for(batch_size=256)
    with pytest.raises(ValueError, match=r"^obow\.num_words is 8192, which is not a multiple of 96: "):
        OBoW().check_for(batch_size=96)


@pytest.mark.parametrize("name", backbones.names())
def test_views_whose_maps_are_too_small_are_refused_before_anything_starts(name: str) -> None:
    with torch.device("meta"):
        backbone = backbones.build(name)
    for level in ("conv4", "conv5"):
        method, network = OBoW(levels=(level,)), cost.network(name)
        assert network is not None
        least = network.least_size(AVERAGED + 2 * BORDER, FROM_THE_END[level])
        method.check_side(least, backbone=name)
        with pytest.raises(
            ValueError, match=f"{level} of {name} have from {least} pixels on: set .* {least}"
        ):
            method.check_side(least - 1, backbone=name)
        for size, side in ((least, 5), (least - 1, 4)):
            (found,) = Maps(backbone, method.levels)(torch.zeros(2, 3, size, size, device="meta"))
            assert found.shape[2:] == (side, side)


def test_levels_that_fit_smaller_views_are_suggested() -> None:
    run = replace(TOY, dataset=Toy(num_train=26, size=32, resize=32, canvas=32))
    with pytest.raises(ValueError, match="maps") as refused:
        run.check_for()
    assert str(refused.value) == (
        "dataset.size is 32, but obow needs maps of at least 5 x 5, which conv4 and conv5 of small have from "
        "33 pixels on: set dataset.size to at least 33, or method.levels to conv4."
    )
    run.replace("method.levels", ("conv4",)).check_for()
    OBoW().check_side(8, backbone="unknown")  # the first step finds it


def test_crops_are_one_part_and_patches_another() -> None:
    assert OBoW().view_groups == ((1, 2), (3, 4, 5, 6, 7))
    assert OBoW(num_views=2, num_crops=1).view_groups == ((1,),)
    assert [OBoW().num_parts, OBoW(num_views=3).num_parts] == [2, 1]
    assert sum(OBoW().passes(view) for view in range(8)) == 1 + 7 * 3


# The recipe


def test_the_rate_is_that_of_the_official_schedule() -> None:
    """A linear warm-up by step, then a cosine by epoch from .03 to .00003 over 190 epochs (solver.py)."""
    run, steps = baselines.obow_imagenet(), 5004

    def rate(epoch: int, index: int) -> float:
        settings, step = run.optimizer, epoch * steps + index
        return settings.rate(step, batch_size=256, num_views=8, steps_per_epoch=steps, epochs=run.epochs)

    assert rate(0, 0) == 0
    assert rate(7, 1251) == pytest.approx(0.03 * 7.25 / 10)
    assert rate(10, 0) == rate(10, steps - 1) == pytest.approx(0.03)
    assert rate(105, 17) == pytest.approx((0.03 + 0.00003) / 2)
    last = (1 + math.cos(math.pi * 189 / 190)) / 2
    assert rate(199, steps - 1) == pytest.approx(0.00003 + 0.02997 * last)


@pytest.mark.parametrize(
    ("scale", "sizes", "map_side"),
    [
        ("paper", [224, 160, 160, 96, 96, 96, 96, 96], 7),
        ("small", [96, 69, 69, 42, 42, 42, 42, 42], 6),
        ("smoke", [32, 23, 23, 14, 14, 14, 14, 14], 8),
    ],
)
def test_views_and_maps_of_each_scale(scale: str, sizes: list[int], map_side: int) -> None:
    run: Any = getattr(scales, scale)(linear(baselines.obow_imagenet())).encoder
    run.check_for(num_images=10_000)
    views = range(run.method.num_views)
    assert [run.augmentation.size_of_view(view, run.dataset.size) for view in views] == sizes
    with torch.device("meta"):
        backbone = backbones.build(run.backbone)
        *_, last = Maps(backbone, run.method.levels)(torch.zeros(2, 3, sizes[0], sizes[0]))
    assert last.shape[2:] == (map_side, map_side)


def test_views_that_are_not_its_patches_are_refused() -> None:
    run = baselines.obow_imagenet()
    with pytest.raises(ValueError, match=r"^The last 6 of the 8 views of obow are patches, .*num_whole to 2"):
        run.replace("method.num_crops", 1).check_for()
    for crops, views in ((7, 8), (2, 3)):
        with pytest.raises(ValueError, match=rf"^None of the {views} views of obow is a patch, .*es to none"):
            replace(run, method=OBoW(num_crops=crops, num_views=views)).check_for()
    with pytest.raises(
        ValueError, match=r"^The last 5 of the 8 views of obow are patches, .* has no patches"
    ):
        run.replace("augmentation.patches", None).check_for()


# Whole runs


class PlainNorm(nn.Module):
    """Batch normalisation over all rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=0)
        return self.weight * centred / (centred.square().mean(dim=0) + 1e-5).sqrt() + self.bias


class PlainOBoW(plain.PlainMethod):
    """The order of the official code: predictions, the teacher, targets, new words; all crops at once."""

    def network(self, backbone: Any, num_images: int) -> Any:
        module = nn.Module()
        widths = [{"conv4": 32, "conv5": 64}[level] for level in self.settings.levels]
        module.target = nn.ModuleDict({"backbone": copy.deepcopy(backbone)})
        heads = [
            nn.Sequential(nn.Linear(c, 128, bias=False), PlainNorm(128), nn.ReLU(), nn.Linear(128, 64))
            for c in widths
        ]
        module.online = nn.ModuleDict({"backbone": backbone, "heads": nn.ModuleList(heads)})
        module.words = nn.ModuleList(nn.Module() for _ in widths)
        for words, c in zip(module.words, widths, strict=True):
            words.register_buffer("rows", torch.randn(self.settings.num_words, c).clamp(min=0))
            words.register_buffer("distance", torch.tensor(0.5))
        return module

    def loss(self, network: Any, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        s = self.settings
        weights = [
            plain.unit(head(plain.unit(words.rows.clone())))
            for head, words in zip(network.online["heads"], network.words, strict=True)
        ]
        kinds = [views[1 : 1 + s.num_crops], views[1 + s.num_crops :]]
        features = [network.online["backbone"](torch.cat(kind)) for kind in kinds if kind]
        with torch.no_grad():
            alpha = 1 - (1 - s.tau) * (math.cos(math.pi * at.step / at.num_steps) + 1) / 2
            online = dict(network.online["backbone"].named_parameters())
            for name, xi in network.target["backbone"].named_parameters():
                xi.copy_(alpha * xi + (1 - alpha) * online[name])
            y = self.targets(network, views[0], at)
        terms = {
            f"L_{level}": sum(
                plain.mean(
                    [
                        (torch.xlogy(y_i, y_i) - y_i * torch.log_softmax(s.scale * f_i @ w.T, dim=0)).sum()
                        for f_i, y_i in zip(f, y[index].repeat(len(f) // len(y[index]), 1), strict=True)
                    ]
                )
                for f in features
            )
            for index, (level, w) in enumerate(zip(s.levels, weights, strict=True))
        }
        return {"loss": plain.mean(list(terms.values()))} | terms

    def targets(self, network: Any, view: Tensor, at: plain.Step) -> list[Tensor]:
        backbone, found = network.target["backbone"], []
        features = backbone.stem(view)
        for number, block in enumerate(backbone.blocks):
            features = block(features)
            for level, words in enumerate(network.words):
                if self.settings.levels[level] == ("conv3", "conv4", "conv5")[number]:
                    found.append(self.bags(words, features, at, level))
            if f"conv{3 + number}" == max(self.settings.levels):
                break  # the official teacher, too, ends at its highest level
        return found

    def bags(self, words: Any, features: Tensor, at: plain.Step, level: int) -> Tensor:
        s, (n, _, height, width) = self.settings, features.shape
        inside = [(row, column) for row in range(1, height - 1) for column in range(1, width - 1)]
        t = torch.stack([features[:, :, row, column] for row, column in inside], dim=1)
        distances = (t[:, :, None] - words.rows).square().sum(dim=3)  # (n, places, K)
        nearest = distances.min(dim=2).values.mean()
        words.distance.copy_(s.distance_decay * words.distance + (1 - s.distance_decay) * nearest)
        further = distances - distances.min(dim=2, keepdim=True).values
        codes = torch.exp(-s.inverse_temperature / words.distance * further)
        bags = (codes / codes.sum(dim=2, keepdim=True)).max(dim=1).values

        squares = [(row, column) for row in range(2, height - 2) for column in range(2, width - 2)]
        draw = seeds.generator("words", self.spec.seed, at.step, level)
        for image, place in enumerate(torch.randint(len(squares), (n,), generator=draw).tolist()):
            row, column = squares[place]
            square = features[image, :, row - 1 : row + 2, column - 1 : column + 2]
            words.rows[(at.step * n + image) % s.num_words] = square.mean(dim=(1, 2))
        return bags / bags.sum(dim=1, keepdim=True)

    def after(self, network: Any, at: plain.Step) -> dict[str, float]:
        share = (math.cos(math.pi * (at.step + 1) / at.num_steps) + 1) / 2
        return {"tau": 1 - (1 - self.settings.tau) * share}


def falling(spec: Any, at: plain.Step) -> float:
    """Return the base rate, a tenth of it in the second epoch."""
    return float(spec.optimizer.base_lr) * (0.1 if at.epoch else 1)


TOY = replace(
    PRETRAIN,
    method=OBoW(
        num_views=5,
        num_words=24,
        inverse_temperature=5.0,
        distance_decay=0.7,
        scale=2.0,
        tau=0.6,
    ),
    dataset=Toy(num_train=26, size=48, resize=48, canvas=48),
    augmentation=Augmentation(
        first=Augmentation(central=0.9, jitter=0.0, grey=0.0),
        small=SmallCrops(size=10, num_large=1),
        patches=Patches(size=8, canvas=24, jitter=3, num_whole=3, shared=True),
    ),
    optimizer=SGD(base_lr=0.05, batch_scaling="none", weight_decay=0.02, momentum=0.8, drops=(0.5,)),
    epochs=2,
    batch_size=8,
    seed=1,
)
ONE_LEVEL = replace(
    TOY,
    method=replace(TOY.method, levels=("conv5",), num_views=3),
    augmentation=replace(TOY.augmentation, patches=None),
    seed=27,
)


def plain_run(spec: Any = TOY) -> plain.Trained:
    def optimizer(parameters: Any, settings: Any) -> PlainSGD:
        return PlainSGD(parameters, settings, peak=0.0)

    return plain.train(spec, Site(), method=PlainOBoW(spec), optimizer=optimizer, rate=falling)


@pytest.mark.parametrize("spec", [TOY, ONE_LEVEL], ids=["crops and patches", "crops and one level"])
def test_a_run_ends_where_the_plain_loop_ends(tmp_path: Path, spec: Any) -> None:
    found, expected = trained(spec, tmp_path), plain_run(spec)
    check(found, expected)
    check_log(list(found.logged.values()), expected.logged)


def runs(folder: Path) -> list[Left]:
    return [trained(spec, folder / spec.id) for spec in (TOY, ONE_LEVEL)]


@pytest.mark.slow
def test_two_processes_end_where_the_plain_loop_ends(tmp_path: Path) -> None:
    expected = [plain_run(spec) for spec in (TOY, ONE_LEVEL)]
    for of_process in on_two_processes(runs, tmp_path, tmp_path):
        for found, values in zip(of_process, expected, strict=True):
            check(found, values)
            check_log(list(found.logged.values()), values.logged)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_resumes_with_a_part_of_the_words_renewed_ends_bit_equal(tmp_path: Path) -> None:
    whole = trained(TOY, tmp_path / "whole")

    def report(progress: Progress) -> None:
        if progress.done == 2 * 8:
            interrupt.ask("a test")

    site = Site(runs=tmp_path)
    with pytest.raises(Interrupted, match="a test"):
        pretrain(TOY, site, tmp_path / "stopped" / "run", CPU, Notes(), report)
    state = checkpoint.latest(tmp_path / "stopped" / "run", TOY.id)
    assert state is not None
    rows, start = state["network"]["words.1.rows"], plain.initial(TOY, PlainOBoW(TOY), 26).words[1].rows
    assert (rows != start).any(dim=1).tolist() == [True] * 16 + [False] * 8
    resumed = trained(TOY, tmp_path / "stopped")
    assert all(torch.equal(resumed.network[name], value) for name, value in whole.network.items())


def test_the_teacher_has_no_gradient_and_the_encoder_is_the_students_backbone(tmp_path: Path) -> None:
    network: Any = TOY.method.network(backbones.build("small", seed=0), num_images=26, batch_size=8)
    step = batch([torch.randn(8, 3, size, size) for size in (48, 10, 10, 8, 8)])
    for part in TOY.method.parts(network, step):
        part.loss.backward()
        assert part.embeddings.shape == (8, 64)
    assert all(each.grad is None for each in network.target.parameters())
    found = trained(TOY, tmp_path)
    assert {name.split(".")[0] for name in found.encoder} == {"backbone"}


# Sizes


def test_a_checkpoint_contains_words_heads_and_teacher_and_the_forecast_counts_them() -> None:
    run = replace(TOY, method=OBoW(), dataset=ImageNet(), backbone="resnet50")
    found = disk.sizes(run, {})
    assert forecast._sizes(run) == found
    fewer = disk.sizes(run.replace("method.num_words", 4096), {})
    assert found.checkpoint - fewer.checkpoint == 4 * 4096 * (1024 + 2048)
    one = run.replace("method.levels", ("conv4",))
    assert forecast._sizes(one) == disk.sizes(one, {})


def test_the_memory_of_a_step_contains_the_words_in_their_heads_and_the_predictions() -> None:
    """With one image on each GPU, hardly anything but words and heads grows with the number of words."""

    def growth(devices: int) -> int:
        runs = (baselines.obow_imagenet().replace("method.num_words", number) for number in (4096, 8192))
        fewer, more = (memory.estimate(run, devices) for run in runs)
        assert fewer is not None
        assert more is not None
        return more.num_bytes - fewer.num_bytes

    words = 4 * 4096 * (1024 + 2048)
    activations = 4 * 4096 * sum(width + 2 * 4096 + 3 * 2048 for width in (1024, 2048))
    assert growth(256) == pytest.approx(words + activations, rel=0.01)
    of_two_crops = 4 * 4096 * 2 * 2 * 2  # p and y at two levels
    assert growth(1) - growth(256) >= 255 * of_two_crops
