"""Multi-crop: the small views, their crops, the loss over their pairs, and a training step on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import batch

from configs import evaluate, pretrain, scales
from reproduce import train
from reproduce.data.augmentation import Augmentation, SmallCrops
from reproduce.data.dataset import Dataset
from reproduce.data.views import sample, sample_all
from reproduce.methods.byol import BYOL
from reproduce.nn import backbones
from reproduce.nn.heads import Heads
from reproduce.runs.progress import Silent
from reproduce.site import Site
from reproduce.spec import Pretrain

SMALL = SmallCrops(size=14)
LARGE = Augmentation(crop_scale=(0.14, 1.0))
MULTI = Augmentation(crop_scale=(0.14, 1.0), small=SMALL)
HOW = {"seed": 3, "epoch": 2}


def images(n: int) -> dict[str, torch.Tensor]:
    pixels = torch.randint(
        0, 256, (n, 3, 45, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return {"pixels": pixels, "sizes": torch.tensor([[45, 60]] * n), "indices": torch.arange(n) * 5}


def at(scale: str, run: Pretrain) -> Pretrain:
    """Return the pretraining of `run` at another scale."""
    changed = getattr(scales, scale)(evaluate.imagenet_linear(run)).encoder
    assert isinstance(changed, Pretrain)
    return changed


# Views


def test_the_first_two_views_are_large_and_the_others_small() -> None:
    views = sample_all(**images(5), augmentation=MULTI, size=32, **HOW, num_views=8).views
    assert [tuple(view.shape) for view in views] == [(5, 3, 32, 32)] * 2 + [(5, 3, 14, 14)] * 6


def test_large_views_are_to_the_bit_those_of_a_run_without_small_crops() -> None:
    plain = sample_all(**images(12), augmentation=LARGE, size=32, **HOW, num_views=2).views
    multi = sample_all(**images(12), augmentation=MULTI, size=32, **HOW, num_views=8).views
    assert all(torch.equal(one, other) for one, other in zip(plain, multi[:2], strict=True))


def test_a_small_view_is_that_view_of_small_crops_alone_at_their_size() -> None:
    together = sample_all(**images(12), augmentation=MULTI, size=32, **HOW, num_views=8).views
    alike = LARGE.replace("crop_scale", (0.05, 0.14))
    for view in range(2, 8):
        alone = sample(**images(12), augmentation=MULTI, size=32, **HOW, view=view)
        assert torch.equal(alone, sample(**images(12), augmentation=alike, size=14, **HOW, view=view))
        torch.testing.assert_close(together[view], alone, atol=1e-5, rtol=0)


def test_views_show_as_much_of_the_image_as_was_asked_for() -> None:
    # In an image whose pixels contain their own row and column, a view's slope shows how many of them its
    # crop has.
    n, high, wide = 40, 180, 240
    rows = torch.arange(high, dtype=torch.uint8).view(-1, 1).expand(high, wide)
    columns = torch.arange(wide, dtype=torch.uint8).expand(high, wide)
    image = torch.stack([rows, columns, torch.zeros_like(rows)])
    plain = (
        MULTI.replace("flip", 0)
        .replace("jitter", 0)
        .replace("grey", 0)
        .replace("blur", 0)
        .replace("solarize", 0)
    )
    views = sample_all(
        image.expand(n, -1, -1, -1),
        torch.tensor([[high, wide]] * n),
        torch.arange(n),
        augmentation=plain,
        size=32,
        **HOW,
        num_views=8,
    ).views
    for some, (low, most), most_seen in ((views[:2], (0.14, 1.0), 0.7), (views[2:], (0.05, 0.14), 0.13)):
        together = 255 * torch.cat(some)
        pixels = together.shape[-1]
        middle, steps = slice(3, pixels - 3), pixels - 7
        rows, columns = together[:, 0, middle, pixels // 2], together[:, 1, pixels // 2, middle]
        height, width = ((values[:, -1] - values[:, 0]) / steps * pixels for values in (rows, columns))
        area, ratio = height * width / (high * wide), width / height
        assert low * 0.97 < area.min() < low * 1.25
        assert most_seen < area.max() < most * 1.03
        assert 0.75 * 0.97 < ratio.min() < 0.85
        assert 1.2 < ratio.max() < 4 / 3 * 1.03


def test_small_crops_take_turns_between_two_distributions_like_large_ones() -> None:
    both = MULTI.replace("every_second", LARGE.replace("blur", 0.1))
    assert [both.of_view(view).blur for view in range(5)] == [1.0, 0.1, 1.0, 0.1, 1.0]
    assert [both.of_view(view).crop_scale for view in range(5)] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 3


# Settings


def test_runs_without_small_crops_keep_the_names_that_they_had_before_there_were_any() -> None:
    assert Augmentation().id == "e70d183184a0"
    assert Augmentation(crop_scale=(0.2, 1.0), every_second=Augmentation(blur=0.1)).id == "b826e3cc3037"
    different = (LARGE, MULTI, MULTI.replace("small.size", 15), MULTI.replace("small.num_large", 1))
    assert len({augmentation.id for augmentation in different}) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmallCrops(size=0), r"size is 0: at least 1"),
        (lambda: SmallCrops(num_large=0), r"num_large is 0: at least 1"),
        (
            lambda: SmallCrops(crop_scale=(0.2, 0.1)),
            r"small_crops\.crop_scale is \(0\.2, 0\.1\): a range",
        ),
        (
            lambda: SmallCrops(crop_scale=(0.2, 1.5)),
            r"small_crops\.crop_scale is 1\.5: at most 1",
        ),
        (
            lambda: Augmentation(every_second=MULTI),
            r"every_second has its own small crops, but augmentation\.small covers all views",
        ),
    ],
)
def test_small_crops_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("scale", "large", "small", "areas"),
    [
        ("paper", 224, 96, [(0.14, 1.0), (0.05, 0.14)]),
        ("small", 64, 28, [(0.14, 1.0), (0.05, 0.14)]),
        ("smoke", 32, 14, [(0.2, 1.0), (0.07, 0.2)]),
    ],
)
def test_every_scale_has_two_large_and_six_small_crops_and_the_peak_rate_of_byol(
    scale: str, large: int, small: int, areas: list[tuple[float, float]]
) -> None:
    run, plain = at(scale, pretrain.byol_multicrop(200)), at(scale, pretrain.byol_imagenet(200))
    method, dataset, augmentation = run.method, run.dataset, run.augmentation
    assert isinstance(method, BYOL)
    assert isinstance(dataset, Dataset)
    assert isinstance(augmentation, Augmentation)
    views = range(method.num_views)
    assert [augmentation.size_of_view(view, dataset.size) for view in views] == [large] * 2 + [small] * 6
    assert [augmentation.of_view(view).crop_scale for view in views] == areas[:1] * 2 + areas[1:] * 6
    assert run.optimizer.peak_lr(run.batch_size, 8) == pytest.approx(
        plain.optimizer.peak_lr(plain.batch_size, 2)
    )
    changed = {"method.num_views", "optimizer.base_lr", "optimizer.scale_with_views"}
    before, after = dict(plain.leaves()), dict(run.leaves())
    assert {
        path for path in after if after[path] != before.get(path) and not path.startswith("augmentation.")
    } == changed


def test_the_peak_rate_at_paper_scale_is_section_7_1s_for_two_views() -> None:
    run = pretrain.byol_multicrop(100)
    assert run.optimizer.peak_lr(run.batch_size, 8) == pytest.approx(0.6)


# Loss and training


def loss_of_section_4_4(network: Any, views: list[torch.Tensor]) -> torch.Tensor:
    """Return the loss of all views at once, term by term.

    It is twice the mean of || p hat_i - z hat'_j ||^2 over images and over the ordered pairs i != j.
    """
    unit_p = [p / p.norm(dim=1, keepdim=True) for _, p in map(network.online, views)]
    with torch.no_grad():
        unit_z = [z / z.norm(dim=1, keepdim=True) for z in map(network.target, views)]
    pairs = [(i, j) for i in range(len(views)) for j in range(len(views)) if i != j]
    assert len(pairs) == len(views) * (len(views) - 1)
    return 2 * torch.stack([(unit_p[i] - unit_z[j]).pow(2).sum(dim=1).mean() for i, j in pairs]).mean()


def test_eight_views_of_two_sizes_one_after_the_other_have_the_loss_and_the_gradients_of_the_formula() -> (
    None
):
    method = BYOL(num_views=8, heads=Heads(hidden=16, output=8))
    torch.manual_seed(0)
    network: Any = method.network(backbones.build("small"), num_images=1, batch_size=8).double().train()
    for parameter in network.target.parameters():  # a target that has moved away from the online network
        parameter.add_(0.05 * torch.randn_like(parameter))
    other = copy.deepcopy(network)
    views = [torch.randn(6, 3, size, size, dtype=torch.float64) for size in [32] * 2 + [14] * 6]
    found = 0.0
    for part in method.parts(network, batch(views)):
        part.loss.backward()
        found += part.loss.item()
    expected = loss_of_section_4_4(other, views)
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() > 0.1
    for mine, theirs in zip(network.online.parameters(), other.online.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_training_draws_eight_views_and_logs_the_loss_of_their_pairs(tmp_path: Path) -> None:
    run = (
        at("smoke", pretrain.byol_multicrop(100))
        .replace("epochs", 1)
        .replace("dataset.num_train", 40)
        .replace("dataset.num_val", 20)
    )
    site, cpu = Site(runs=tmp_path), torch.device("cpu")
    measured = train.pretrain(run, site, tmp_path / "run", cpu, Silent(), lambda progress: None)
    assert isinstance(run.dataset, Dataset)
    images = run.dataset.load("train", site)
    (shown,) = train._batches(run, site, images, cpu)
    views = shown.views
    assert [view.shape[-1] for view in views] == [32] * 2 + [14] * 6
    network, _ = train.start(run, cpu)
    assert measured["loss"] == pytest.approx(loss_of_section_4_4(network, views).item(), rel=1e-4)
