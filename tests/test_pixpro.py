"""PixPro: positive pairs and propagation by hand, whole runs against plain ones, sizes, recipes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
import torch.nn.functional as F
from test_loop import TOLERANCE, check, check_log, error, toy, trained
from test_resources import saved_for_backward
from torch import Tensor, nn
from toys import CPU, Notes, Toy, batch, on_two_processes

from configs.baselines import pixpro_imagenet
from configs.evaluate import linear
from configs.scales import small, smoke
from reproduce.commands import disk, forecast
from reproduce.data import draws
from reproduce.data.augmentation import SmallCrops
from reproduce.methods.pixpro import PixPro, Places, consistency
from reproduce.nn import backbones, cost
from reproduce.nn.heads import Head
from reproduce.nn.places import PlaceOnline, Propagation, at_places
from reproduce.resources.memory import estimate
from reproduce.runs import interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.train import pretrain

METHOD = PixPro(tau=0.9, head=Head(widths=(16, 8)))


# Positive pairs

SQUARE = (201, 201)
"""Height and width of an image whose pixels are 1/200 apart along both axes."""


def places(box: tuple[int, ...], size: tuple[int, int] = SQUARE, flip: bool = False, side: int = 7) -> Places:
    """Return the places of one view with a map of `side` x `side`."""
    return Places.of(
        torch.tensor([box]), torch.tensor([flip]), torch.tensor([size]), shape=(side, side), device=CPU
    )


def pairs(one: Places, other: Places, distance: float = 0.7) -> list[tuple[int, int]]:
    (positive,) = one.near(other, distance)
    return [(i, j) for i, j in positive.nonzero().tolist()]


def test_of_a_square_crop_seen_twice_the_equal_places_are_positive() -> None:
    """Neighbours lie at 1 / sqrt 2 = .7071 of the diagonal."""
    crop = places((10, 30, 64, 64))
    assert pairs(crop, crop) == [(place, place) for place in range(49)]
    assert len(pairs(crop, crop, 0.7072)) == 49 + 4 * 42


def test_of_a_4_to_3_crop_seen_twice_neighbours_in_a_column_are_positive_too() -> None:
    crop = places((10, 30, 64, 85))  # 63 and 84 between the first and the last pixel
    found = pairs(crop, crop)
    assert len(found) == 49 + 2 * 42 == 133
    assert {j - i for i, j in found} == {-7, 0, 7}


def test_distances_are_relative_to_the_sides_of_the_image() -> None:
    """A whole image of 4 : 3 seen twice is a square from 0 to 1."""
    whole = places((0, 0, 64, 85), size=(64, 85))
    assert len(pairs(whole, whole)) == 49


def test_in_a_mirrored_view_left_and_right_are_exchanged() -> None:
    box = (10, 30, 64, 64)
    found = pairs(places(box), places(box, flip=True))
    assert found == [(7 * row + col, 7 * row + 6 - col) for row in range(7) for col in range(7)]
    assert pairs(places(box, flip=True), places(box, flip=True)) == [(place, place) for place in range(49)]


def test_the_larger_view_decides_and_views_apart_have_no_pair() -> None:
    """The quarter's 2 x 2 centres are 1/8 and 3/8, the whole's 1/4 and 3/4; its diagonal is sqrt 2 / 2."""
    whole, quarter = places((0, 0, 201, 201), side=2), places((0, 0, 101, 101), side=2)
    assert whole.centres[0].tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    # All four are sqrt 2 / 8 from the first centre, and those below or to the right .395 from the next.
    assert pairs(whole, quarter) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 3), (2, 2), (2, 3)]
    assert pairs(quarter, whole) == sorted((j, i) for i, j in pairs(whole, quarter))
    assert pairs(places((0, 0, 64, 64)), places((120, 120, 64, 64))) == []


def test_an_image_of_one_column_has_places_too() -> None:
    strip = places((0, 0, 50, 1), size=(50, 1), side=2)
    assert strip.centres.isfinite().all()
    assert (0, 0) in pairs(strip, strip)


# The loss


def vectors(*shape: int, seed: int = 1) -> Tensor:
    """Return random numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_loss_of_two_pairs_by_hand_and_an_image_without_a_pair_counts_0() -> None:
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2).expand(2, -1, -1, -1)
    x = torch.tensor([[0.6, 1.0], [0.8, 0.0]]).view(1, 2, 1, 2).expand(2, -1, -1, -1)
    positive = torch.tensor([[[True, False], [True, False]], [[False, False], [False, False]]])
    # The cosines of both places of y with the first of x are .6 and .8.
    assert consistency(y, x, positive).item() == pytest.approx((0.7 + 0) / 2, abs=1e-6)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_propagation_place_by_place(exponent: float) -> None:
    torch.manual_seed(0)
    propagation = Propagation(5, exponent=exponent).double()
    x = vectors(2, 5, 2, 3)
    expected = torch.zeros_like(x)
    for image, row, col in np.ndindex(2, 2, 3):
        for other_row, other_col in np.ndindex(2, 3):
            here, there = x[image, :, row, col], x[image, :, other_row, other_col]
            weight = max(float(F.cosine_similarity(here, there, dim=0)), 0) ** exponent
            value = propagation.transform.weight @ there + propagation.transform.bias
            expected[image, :, row, col] += weight * value / value.norm()
    torch.testing.assert_close(propagation(x), expected)


def test_orthogonal_places_do_not_mix() -> None:
    propagation = Propagation(4, exponent=2.0)
    x = torch.eye(4).view(1, 4, 2, 2)
    alone = propagation.transform(torch.eye(4))
    torch.testing.assert_close(propagation(x).flatten(2)[0].T, F.normalize(alone, dim=1))


def test_a_head_on_a_map_is_a_1x1_convolution_and_accepts_pooled_features() -> None:
    torch.manual_seed(0)
    head, features = Head(widths=(6, 3)).build(4), vectors(2, 4, 2, 3).float()
    first, norm, _, last = head
    x = F.conv2d(features, first.weight[:, :, None, None], first.bias)
    x = F.relu(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True))
    expected = F.conv2d(x, last.weight[:, :, None, None], last.bias)
    torch.testing.assert_close(at_places(head, features), expected)
    pooled = features.mean(dim=(2, 3))
    torch.testing.assert_close(head.eval()(pooled), at_places(head, pooled[:, :, None, None])[:, :, 0, 0])


# Whole runs


class PlainOnline(nn.Module):
    """Parameters under the names of a checkpoint."""

    def __init__(self, backbone: Any, projector: Any, dim: int) -> None:
        super().__init__()
        self.backbone, self.projector, self.predictor = backbone, projector, nn.Module()
        self.predictor.transform = nn.Linear(dim, dim)


def plain_places(part: Any, view: Tensor) -> Tensor:
    """Return x of each place, (n, d, height, width), by 1x1 convolutions."""
    features = part.backbone.blocks(part.backbone.stem(view))
    first, norm, _, last = part.projector
    x = F.conv2d(features, first.weight[:, :, None, None], first.bias)
    norm.num_batches_tracked += 1
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.momentum)
    return F.conv2d(F.relu(x), last.weight[:, :, None, None], last.bias)


def plain_propagated(predictor: Any, x: Tensor, exponent: float) -> Tensor:
    """Return y of each place of one image, (places, d), from x, (places, d)."""
    values = plain.unit(x @ predictor.transform.weight.T + predictor.transform.bias)
    cosines = plain.unit(x) @ plain.unit(x).T
    return torch.where(cosines > 0, cosines, 0.0) ** exponent @ values


def plain_bins(box: list[int], flip: bool, size: list[int], side: int) -> tuple[list[Any], float]:
    """Return the centres of the places from corners, as official code has them, and the diagonal."""
    (top, left, h, w), (height, width) = box, size
    x0, x1 = left / (width - 1), (left + w - 1) / (width - 1)
    y0, y1 = top / (height - 1), (top + h - 1) / (height - 1)
    if flip:
        x0, x1 = x1, x0
    wide, high = (x1 - x0) / side, (y1 - y0) / side
    centres = [(y0 + (r + 0.5) * high, x0 + (c + 0.5) * wide) for r in range(side) for c in range(side)]
    return centres, math.sqrt(wide**2 + high**2)


class PlainPixPro(plain.PlainMethod):
    """Both directions at once, image by image and pair by pair."""

    ahead = 1
    """Steps by which the target's rate is ahead of the step."""

    def network(self, backbone: Any, num_images: int) -> Any:
        module, dim = nn.Module(), self.settings.head.output
        module.online = PlainOnline(backbone, self.settings.head.build(backbone.num_features), dim)
        module.target = nn.Module()
        module.target.backbone = copy.deepcopy(module.online.backbone)
        module.target.projector = copy.deepcopy(module.online.projector)
        return module

    def loss(self, network: Any, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        s, K = self.settings, len(views)
        with torch.no_grad():
            targets = [plain_places(network.target, view) for view in views]
        online = [plain_places(network.online, view) for view in views]
        drawn = [self.drawn(at, view) for view in range(K)]
        total: Any = 0.0
        for n in range(len(at.images)):
            bins = [
                plain_bins(boxes[n], flips[n], [20, 24], x.shape[2])
                for (boxes, flips), x in zip(drawn, online, strict=True)
            ]
            for a in range(K):
                y = plain.unit(
                    plain_propagated(network.online.predictor, online[a][n].flatten(1).T, s.exponent)
                )
                for b in range(K):
                    diagonal = max(bins[a][1], bins[b][1])
                    near = [
                        (i, j)
                        for i, here in enumerate(bins[a][0])
                        for j, there in enumerate(bins[b][0])
                        if a != b and math.dist(here, there) / diagonal < s.distance
                    ]
                    if near:
                        cosines = y @ plain.unit(targets[b][n].flatten(1).T).T
                        total = total + cosines[tuple(zip(*near, strict=True))].mean() / len(at.images)
        loss = -4 * total / (K * (K - 1))
        return {"loss": loss, "L_pixpro": loss}

    def drawn(self, at: plain.Step, view: int) -> tuple[list[list[int]], list[bool]]:
        """Return the boxes and flips of the images' views."""
        found = draws.draw(
            self.spec.augmentation.of_view(view),
            np.array([[20, 24]] * len(at.images)),
            np.array(at.images),
            seed=self.spec.seed,
            epoch=at.epoch,
            view=view,
        )
        return found.box.tolist(), found.flip.tolist()

    def after(self, network: Any, at: plain.Step) -> dict[str, float]:
        share = (math.cos(math.pi * (at.step + self.ahead) / at.num_steps) + 1) / 2
        tau, online = 1 - (1 - self.settings.tau) * share, dict(network.online.named_parameters())
        with torch.no_grad():
            for name, xi in network.target.named_parameters():
                xi.copy_(tau * xi + (1 - tau) * online[name])
        return {"tau": tau}


class LateTarget(PlainPixPro):
    ahead = 0


def of_maps(method: PixPro, seed: int, **changed: Any) -> Pretrain:
    """Return two epochs of two steps whose maps have 2 x 2 places, on images of 20 x 24 pixels."""
    return replace(toy(method, seed), dataset=Toy(num_train=18, size=16, resize=16, canvas=20), **changed)


TOY = of_maps(METHOD, seed=59)
THREE = of_maps(
    replace(METHOD, num_views=3, exponent=1.5),
    seed=111,
    epochs=1,
    optimizer=replace(TOY.optimizer, warmup_epochs=0),
    augmentation=replace(TOY.augmentation, small=SmallCrops(size=8, crop_scale=(0.1, 0.3))),
)
"""Two views with 2 x 2 places, and one with a single place."""


@cache
def plain_run(spec: Pretrain, method: type[PlainPixPro] = PlainPixPro) -> plain.Trained:
    return plain.train(spec, Site(), method=method(spec))


@pytest.mark.slow
def test_a_run_ends_where_the_plain_loop_ends(tmp_path: Path) -> None:
    for spec in (TOY, THREE):
        found, expected = trained(spec, tmp_path / spec.id), plain_run(spec)
        check(found, expected)
        check_log(list(found.logged.values()), expected.logged)
    assert error(trained(TOY, tmp_path / TOY.id).network, plain_run(TOY, LateTarget))[0] > 4 * TOLERANCE


def run_of_each(folder: Path) -> Any:
    return trained(TOY, folder)


@pytest.mark.slow
def test_two_processes_end_where_the_plain_loop_ends(tmp_path: Path) -> None:
    expected = plain_run(TOY)
    for found in on_two_processes(run_of_each, tmp_path, tmp_path):
        check(found, expected)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_stopped_in_an_epoch_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = trained(TOY, tmp_path / "whole")

    def report(progress: Progress) -> None:
        if progress.done == 3 * 8:
            interrupt.ask("a test")

    with pytest.raises(Interrupted, match="a test"):
        pretrain(TOY, Site(runs=tmp_path), tmp_path / "stopped" / "run", CPU, Notes(), report)
    resumed = trained(TOY, tmp_path / "stopped")
    assert list(resumed.logged) == [4]
    assert all(torch.equal(resumed.network[name], value) for name, value in whole.network.items())
    assert all(torch.equal(resumed.encoder[name], value) for name, value in whole.encoder.items())


def test_the_target_starts_as_a_copy_and_its_last_step_leaves_it() -> None:
    torch.manual_seed(0)
    network: Any = METHOD.network(backbones.build("small"), num_images=1, batch_size=4)
    online = dict(network.online.named_parameters())
    assert all(torch.equal(online[name], xi) for name, xi in network.target.named_parameters())
    with torch.no_grad():
        for parameter in online.values():
            parameter += 1
    before = copy.deepcopy(network.target.state_dict())
    last = batch([torch.zeros(4, 3, 16, 16)] * 2, step=9, num_steps=10)
    assert METHOD.after_step(network, last) == {"tau": 1.0}
    assert all(torch.equal(network.target.state_dict()[name], xi) for name, xi in before.items())


def test_the_loss_is_in_float32_after_a_backbone_in_bfloat16() -> None:
    torch.manual_seed(0)
    network: Any = METHOD.network(backbones.build("small"), num_images=1, batch_size=4)
    network.online.mixed = network.target.mixed = True
    views = [torch.randn(4, 3, 16, 16).bfloat16() for _ in range(2)]
    step = replace(batch(views), boxes=[torch.tensor([[0, 0, 20, 20]] * 4)] * 2)
    parts = list(METHOD.parts(network, step))
    assert [part.loss.dtype for part in parts] == [torch.float32] * 2
    assert network.online(views[0]).z.shape == (4, 8, 2, 2)


# Sizes and recipes


def test_the_files_of_a_run_are_as_large_as_forecast() -> None:
    for run in (smoke(linear(pixpro_imagenet())).encoder, pixpro_imagenet()):
        assert isinstance(run, Pretrain)
        assert forecast._sizes(run) == disk.sizes(run, {})


def test_the_outputs_of_the_heads_are_those_that_autograd_keeps_at_each_place() -> None:
    """The similarities of the places and their lengths are left out, as is what the BatchNorm averages.

    The last unit vectors are kept by the loss.
    """
    method = PixPro(head=Head(widths=(16, 8)))
    layout = method.layout(64)
    torch.manual_seed(0)
    online: Any = PlaceOnline(nn.Identity(), method.head.build(64), Propagation(8, exponent=2.0))

    class Heads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(online._heads(x).p, dim=1)

    heads = Heads()
    heads.online = online
    kept = saved_for_backward(heads, torch.randn(32, 64, 4, 4).to(memory_format=torch.channels_last))
    outputs = layout.projector.outputs + layout.predictor.outputs - 8
    similarities, lengths = 3 * 16, 2 * 3
    assert kept == 4 * (32 * 16 * (outputs + similarities + lengths) + 2 * 16)


def test_the_estimate_of_memory_counts_the_heads_at_each_place() -> None:
    run = pixpro_imagenet()
    network = cost.network("resnet50")
    assert network is not None
    assert [network.places(size) for size in (224, 96)] == [49, 9]
    found, narrow = estimate(run), estimate(run.replace("method.head.widths", (4095, 256)))
    assert found is not None
    assert narrow is not None
    parameters = 2048 + 256 + 3
    # In place of one number after each of two layers: at 49 places of 1024 images. Weights, gradients,
    # momentum and target have a number each for a parameter.
    assert found.num_bytes - narrow.num_bytes == 4 * (1024 * 49 * 2 + 4 * parameters + 2 * 2)


def test_the_rates_are_those_of_the_official_code() -> None:
    run, steps = pixpro_imagenet(100), 1251
    assert (run.batch_size, run.zero_init) == (1024, True)

    def rate(step: int) -> float:
        return run.optimizer.rate(step, batch_size=1024, num_views=2, steps_per_epoch=steps, epochs=100)

    warm, T = 5 * steps, 95 * steps
    for step in (0, 1, warm - 1, warm):
        assert rate(step) == pytest.approx(4 / 100 * (99 * step / warm + 1), rel=1e-12)
    for step in (warm + 1, 50 * steps, 100 * steps - 1):
        falling = 1e-6 + (4 - 1e-6) * (1 + math.cos(math.pi * (step - warm) / T)) / 2
        assert rate(step) == pytest.approx(falling, rel=1e-9)


def test_views_are_resampled_bilinearly_and_maps_have_16_places_below_paper_scale() -> None:
    run = pixpro_imagenet()
    assert [run.augmentation.of_view(view).resampling for view in range(2)] == ["bilinear"] * 2
    assert [run.augmentation.of_view(view).solarize for view in range(2)] == [0.0, 0.2]
    for scale in (small, smoke):
        scaled: Any = scale(linear(run))
        network = cost.network(scaled.encoder.backbone)
        assert network is not None
        assert network.places(scaled.encoder.dataset.size) == 16
