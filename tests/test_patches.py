"""Patches of one crop, a first view of its own, and central crops: the views of PIRL and OBoW."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from test_crops import arguments, gathered, photograph
from test_drawn import split_mix
from test_views import INTERPOLATIONS, chi_square, coloured
from torchvision.transforms.v2 import functional as tv

from configs import evaluate, methods, scales
from configs.pretrain import byol, imagenet, imagenet100
from configs.pretrain import stl10 as on_stl10
from reproduce import plan
from reproduce.data import draws, views
from reproduce.data.augmentation import Augmentation, Patches, SmallCrops
from reproduce.data.imagenette import Imagenette
from reproduce.data.synthetic import SyntheticFolder
from reproduce.methods.byol import BYOL
from reproduce.methods.swav import SwAV
from reproduce.resources import memory
from reproduce.resources.memory import SCRATCH, estimate
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking import tags

SIZES = ((60, 80), (80, 53), (96, 128), (40, 40), (7, 100))
"""Heights and widths of the drawn photographs."""
COLOURS = Augmentation(grey=0.4, blur=0.0, solarize=0.3, saturation=0.4, hue=0.3, resampling="bilinear")
PIRL = replace(COLOURS, patches=Patches(size=9, canvas=36, jitter=2))
OBOW = replace(
    COLOURS,
    blur=0.5,
    first=Augmentation(jitter=0.0, grey=0.0, blur=0.0, solarize=0.0, central=0.875, resampling="bilinear"),
    small=SmallCrops(size=20, crop_scale=(0.08, 0.6), num_large=1),
    patches=Patches(size=12, canvas=32, jitter=3, num_whole=3, shared=True),
)
BOTH = pytest.mark.parametrize(
    ("augmentation", "num_views"), [(PIRL, 10), (OBOW, 8)], ids=["own colours", "shared colours"]
)
HOW = {"size": 28, "seed": 2, "epoch": 5}


@pytest.fixture(scope="module")
def photographs() -> list[torch.Tensor]:
    return [photograph(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def places(patches: Patches, n: int, view: int) -> np.ndarray:
    return draws.draw_place(patches, np.arange(n), seed=0, epoch=0, view=view)


# Places in the canvas


@pytest.mark.parametrize(
    ("patches", "starts", "shifts"),
    [
        (Patches(), (0, 85, 170), 21),
        (Patches(size=96, canvas=256, jitter=24, num_whole=3), (0, 68, 136), 25),
    ],
    ids=["PIRL", "OBoW"],
)
def test_places_are_those_of_the_official_grids(
    patches: Patches, starts: tuple[int, ...], shifts: int
) -> None:
    """PIRL's cells of 255 / 3 pixels have 21 places along each axis, OBoW's patches 25 at distances of 68."""
    n = 9_000
    found = places(patches, n, patches.num_whole)
    rows, columns = (np.searchsorted(starts, axis, side="right") - 1 for axis in found.T)
    counts = np.bincount(3 * rows + columns, minlength=9)
    assert np.abs(counts / n - 1 / 9).max() < 5 * math.sqrt(8 / 81 / n)
    shift = found - np.array(starts)[np.stack([rows, columns], axis=1)]
    for axis in shift.T:
        assert sorted(set(axis.tolist())) == list(range(shifts))
        assert chi_square((axis + 0.5) / shifts, bins=shifts) < 65
    assert abs(np.corrcoef(shift.T)[0, 1]) < 5 / math.sqrt(n)
    assert found.max() + patches.size <= patches.canvas


def test_patches_of_pirl_lie_in_cells_of_their_own() -> None:
    """Nine patches of an image are in nine cells of 85 pixels."""
    found = np.stack([places(Patches(), 50, view) for view in range(1, 10)], axis=1)
    assert ((found % 85) + 64 <= 85).all()
    cells = (found // 85) @ [3, 1]
    assert (np.sort(cells, axis=1) == np.arange(9)).all()


def test_a_place_by_hand() -> None:
    """Slot 15 of the first patch orders the places, slots 13 and 14 of each patch shift it."""

    def uniform(view: int, slot: int) -> float:
        state = 0
        for part in (4, 2, view, 123):
            state = split_mix(state, part)
        return (split_mix(state, slot) >> 11) / 2**53

    patches = Patches(size=96, canvas=256, jitter=24, num_whole=3)
    u, remaining = uniform(3, 15), list(range(9))
    for view in range(3, 8):
        u *= len(remaining)
        chosen = int(u)
        place, u = remaining[chosen], u - chosen
        remaining[chosen] = remaining[0]  # the first of the remaining ones moves to where the chosen one was
        del remaining[0]
        row, column = divmod(place, 3)
        expected = [68 * row + int(25 * uniform(view, 13)), 68 * column + int(25 * uniform(view, 14))]
        found = draws.draw_place(patches, np.array([123]), seed=4, epoch=2, view=view)
        assert found.tolist() == [expected]


def test_every_order_is_equally_likely() -> None:
    found = draws.orders((np.arange(24) + 0.5) / 24, 4)
    assert {tuple(order) for order in found.tolist()} == set(itertools.permutations(range(4)))
    assert draws.orders(np.array([0.0, 1 - 2.0**-53]), 3).tolist() == [[0, 1, 2], [2, 0, 1]]


# Pixels


@BOTH
@pytest.mark.parametrize("resampling", INTERPOLATIONS)
@pytest.mark.parametrize("one_size", [True, False], ids=["one size", "several sizes"])
def test_a_patch_is_cut_from_the_resized_crop(
    photographs: list[torch.Tensor],
    augmentation: Augmentation,
    num_views: int,
    resampling: Literal["bicubic", "bilinear"],
    one_size: bool,
) -> None:
    """As in the official code: random resized crop, then flip and colours before or after the cut."""
    augmentation, patches = replace(augmentation, resampling=resampling), augmentation.patches
    assert patches is not None
    chosen = [photograph(40, 50, seed) for seed in range(6)] if one_size else photographs
    pixels, sizes, indices = arguments(chosen)
    sampled = views.sample_all(pixels, sizes, indices, augmentation=augmentation, **HOW, num_views=num_views)
    key = {"seed": 2, "epoch": 5}

    def drawn(view: int) -> draws.Draws:
        own = replace(COLOURS, crop_scale=(0.6, 1.0))
        return draws.draw(own, sizes.numpy(), indices.numpy(), **key, view=view)

    crop = drawn(patches.num_whole)
    for view in range(patches.num_whole, num_views):
        own, place = drawn(view), draws.draw_place(patches, indices.numpy(), **key, view=view)
        colours = crop if patches.shared else own
        assert torch.equal(sampled.flips[view], torch.from_numpy(colours.flip))
        for i, image in enumerate(chosen):
            x = tv.resized_crop(
                image.float() / 255,
                *crop.box[i].tolist(),
                [patches.canvas] * 2,
                INTERPOLATIONS[resampling],
                antialias=True,
            ).clamp(0, 1)
            x = finished(x, crop, i) if patches.shared else x
            top, left = place[i].tolist()
            x = x[:, top : top + patches.size, left : left + patches.size]
            x = x if patches.shared else finished(x, own, i)
            # Solarisation inverts from one half on, so rounding may tear a value there.
            away = (x - 0.5).abs() > 1e-3 if colours.solarize[i] else torch.ones_like(x).bool()
            got = sampled.views[view][i]
            torch.testing.assert_close(got[away], x[away], atol=4e-4, rtol=0)


def finished(x: torch.Tensor, drawn: draws.Draws, i: int) -> torch.Tensor:
    x = tv.horizontal_flip(x) if drawn.flip[i] else x
    x = coloured(x, drawn, i)
    return tv.solarize(x, 0.5) if drawn.solarize[i] else x


@pytest.mark.parametrize("shared", [True, False])
def test_boxes_of_patches_are_where_they_show_the_image(shared: bool) -> None:
    """In an image whose values are its own rows and columns, the middle of a patch follows from its box."""
    n, high, wide = 20, 90, 150
    rows = torch.arange(high, dtype=torch.uint8).view(-1, 1).expand(high, wide)
    columns = torch.arange(wide, dtype=torch.uint8).expand(high, wide)
    patches = Patches(size=20, canvas=64, jitter=5, num_whole=1, shared=shared)
    sampled = views.sample_all(
        torch.stack([rows, columns, columns]).expand(n, -1, -1, -1),
        torch.tensor([[high, wide]] * n),
        torch.arange(n),
        augmentation=Augmentation(jitter=0, grey=0, blur=0, solarize=0, patches=patches),
        size=30,
        seed=0,
        epoch=0,
        num_views=10,
    )
    flips = torch.stack(sampled.flips[1:])
    assert 0 < flips.sum() < flips.numel()
    assert bool((flips == flips[0]).all()) == shared
    for view, boxes, flip in zip(sampled.views[1:], sampled.boxes[1:], flips, strict=True):
        top, left, height, width = boxes.float().T
        assert bool((boxes >= 0).all() and (top + height <= high).all() and (left + width <= wide).all())
        middle = 255 * view[..., 9:11, 9:11].mean(dim=(2, 3))
        torch.testing.assert_close(middle[:, 0], top + height / 2 - 0.5, atol=0.6, rtol=0)
        torch.testing.assert_close(middle[:, 1], left + width / 2 - 0.5, atol=0.6, rtol=0)
        assert torch.equal(view[:, 1, 10, 0] > view[:, 1, 10, -1], flip)


@BOTH
def test_a_view_depends_on_neither_the_other_views_nor_the_batch_nor_the_chunks(
    photographs: list[torch.Tensor],
    augmentation: Augmentation,
    num_views: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how: dict[str, Any] = {"augmentation": augmentation, **HOW}
    pixels, sizes, indices = arguments(photographs)
    together = views.sample_all(pixels, sizes, indices, **how, num_views=num_views)
    for view, got in enumerate(together.views):
        alone = views.sample(pixels, sizes, indices, **how, view=view)
        torch.testing.assert_close(alone, got, atol=2e-4, rtol=0)
    for row, image in enumerate(photographs):
        some = slice(row, row + 1)
        one = views.sample_all(image.flatten(), sizes[some], indices[some], **how, num_views=num_views)
        for got, expected in zip(one.views, together.views, strict=True):
            torch.testing.assert_close(got, expected[some], atol=2e-4, rtol=0)
    monkeypatch.setattr(views, "GPU_CHUNK", 2 * 3 * 36 * 36)  # two canvases
    monkeypatch.setattr(views, "CPU_CHUNK", 5 * 3 * 12 * 12)
    chunked = views.sample_all(pixels, sizes, indices, **how, num_views=num_views)
    for name in ("views", "boxes", "flips"):
        for got, expected in zip(getattr(chunked, name), getattr(together, name), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@BOTH
def test_the_path_of_a_gpu_gives_the_same_views(
    photographs: list[torch.Tensor],
    augmentation: Augmentation,
    num_views: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how: dict[str, Any] = {"augmentation": augmentation, **HOW, "num_views": num_views}
    expected = views.sample_all(*arguments(photographs), **how)
    monkeypatch.setattr(views, "_resize_each_", views._resize_together_)
    monkeypatch.setattr(views, "padded", gathered)
    for one, other in zip(
        views.sample_all(*arguments(photographs), **how).views, expected.views, strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


def test_with_colour_first_patches_share_the_colours_of_the_whole_image(
    photographs: list[torch.Tensor],
) -> None:
    """The contrast then has the mean of the whole image."""
    contrast = Augmentation(
        jitter=1, brightness=0, contrast=0.9, saturation=0, hue=0, grey=0, blur=0, solarize=0
    )
    patches = Patches(size=12, canvas=32, jitter=3, shared=True)
    augmentation = replace(contrast, colour_first=True, resampling="bilinear", patches=patches)
    pixels, sizes, indices = arguments(photographs)
    found = views.sample(pixels, sizes, indices, augmentation=augmentation, **HOW, view=3)
    key = {"seed": 2, "epoch": 5}
    crop = draws.draw(replace(contrast, crop_scale=(0.6, 1.0)), sizes.numpy(), indices.numpy(), **key, view=1)
    place = draws.draw_place(patches, indices.numpy(), **key, view=3)
    for i, image in enumerate(photographs):
        x = coloured(image.float() / 255, crop, i)
        x = tv.resized_crop(x, *crop.box[i].tolist(), [32, 32], INTERPOLATIONS["bilinear"], antialias=True)
        x = tv.horizontal_flip(x) if crop.flip[i] else x
        top, left = place[i].tolist()
        torch.testing.assert_close(found[i], x[:, top : top + 12, left : left + 12], atol=4e-4, rtol=0)


def test_a_canvas_without_colours_has_no_operation() -> None:
    always = Augmentation(flip=1, jitter=1, grey=1, blur=1, solarize=1, photometric=1)
    for each, on in ((always, True), (always.crop_only(), False)):
        drawn = draws.draw(each, np.full((9, 2), 40), np.arange(9), seed=0, epoch=0, view=0)
        asked = [values for values in vars(drawn).values() if values.dtype == bool]
        assert len(asked) == 6
        assert all((values == on).all() for values in asked)


def test_patches_leave_the_other_views_as_they_are_to_the_bit(photographs: list[torch.Tensor]) -> None:
    for augmentation, num_whole in ((PIRL, 1), (OBOW, 3)):
        how = {**HOW, "num_views": num_whole}
        plain = views.sample_all(
            *arguments(photographs), augmentation=replace(augmentation, patches=None), **how
        )
        how["num_views"] = num_whole + 5
        more = views.sample_all(*arguments(photographs), augmentation=augmentation, **how)
        assert all(map(torch.equal, plain.views, more.views[:num_whole]))


# View 0, and central crops


def test_view_0_has_its_own_distribution_and_the_others_theirs() -> None:
    two = replace(OBOW, every_second=Augmentation(blur=0.1))
    assert two.of_view(0) == OBOW.first
    assert [two.of_view(view).blur for view in range(1, 8)] == [0.1, 0.5, *[0.0] * 5]
    assert [two.of_view(view).crop_scale for view in (1, 2, 3)] == [(0.08, 0.6)] * 2 + [(0.6, 1.0)]
    assert [two.size_of_view(view, 28) for view in range(8)] == [28, 20, 20, *[12] * 5]
    assert [PIRL.size_of_view(view, 28) for view in range(10)] == [28, *[9] * 9]
    assert replace(COLOURS, central=0.5, patches=Patches()).of_view(1).central == 0


def test_a_central_crop_of_256_pixels_has_the_pixels_of_224() -> None:
    """OBoW's teacher: Resize(256), CenterCrop(224), here without a resize to be exact."""
    teacher = OBOW.first
    assert teacher is not None
    image = photograph(256, 301, 0)
    pixels, sizes, indices = arguments([image])
    sampled = views.sample_all(
        pixels,
        sizes,
        indices,
        augmentation=replace(teacher, flip=0.0),
        size=224,
        seed=0,
        epoch=0,
        num_views=2,
    )
    assert sampled.boxes[0].tolist() == [[16, 38, 224, 224]]
    expected = tv.center_crop(image, [224, 224]).float() / 255
    for view in sampled.views:
        torch.testing.assert_close(view[0], expected, atol=1e-6, rtol=0)


def test_the_side_of_a_central_crop_is_rounded() -> None:
    sizes = np.array([[30, 60], [60, 33], [1, 1], [375, 500]])
    assert draws.square_boxes(sizes, 0.875).tolist() == [
        [2, 17, 26, 26],
        [15, 2, 29, 29],
        [0, 0, 1, 1],
        [23, 86, 328, 328],
    ]


# Settings


def test_runs_without_them_keep_their_names() -> None:
    assert Augmentation().id == "e70d183184a0"
    assert Augmentation(crop_scale=(0.2, 1.0), every_second=Augmentation(blur=0.1)).id == "b826e3cc3037"
    patches = replace(Augmentation(), patches=Patches())
    others = (PIRL, OBOW, patches, patches.replace("patches.shared", True), Augmentation(central=0.5))
    assert len({each.id for each in (Augmentation(), *others, Augmentation(photometric=0.5))}) == 7


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Augmentation(first=OBOW), r"first has its own first, but only augmentation\.first covers"),
        (lambda: Augmentation(every_second=OBOW), r"every_second has its own first, but only augmentation"),
        (lambda: Augmentation(first=PIRL), r"first has its own patches, but augmentation\.patches covers"),
        (
            lambda: Augmentation(every_second=PIRL),
            r"every_second has its own patches, but augmentation\.patches covers all views",
        ),
        (
            lambda: Augmentation(first=Augmentation(small=SmallCrops())),
            r"first has its own small crops, but augmentation\.small covers all views",
        ),
        (
            lambda: Augmentation(first=Augmentation(every_second=Augmentation())),
            r"first has its own every_second, but it covers only view 0",
        ),
        (
            lambda: Patches(size=96, canvas=115),
            r"^patches\.size \+ patches\.jitter is 116, but the canvas has only 115 pixels: set canvas to at",
        ),
        (lambda: Patches(crop_scale=(0.6, 0.5)), r"^patches\.crop_scale is \(0\.6, 0\.5\): a range"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()


def run_of(augmentation: Augmentation, num_views: int) -> Pretrain:
    return replace(byol(imagenet100), method=BYOL(num_views=num_views), augmentation=augmentation)


@dataclass(frozen=True, kw_only=True)
class NinePatches(BYOL):
    """A method whose views are an image and its patches."""

    num_patches = 9


def test_views_of_a_run_must_fit_its_method() -> None:
    run_of(PIRL, 10).check_for()
    run_of(PIRL, 2).check_for()
    run_of(OBOW, 8).check_for()
    only_patches = replace(run_of(OBOW, 8), augmentation=PIRL)
    for run, says in (
        (run_of(PIRL, 11), "patches.num_whole is 1, but byol has 11 views and a crop has 9 patches: "
         "set it to a number from 2 to 10."),
        (run_of(OBOW, 3), "patches.num_whole is 3, but byol has 3 views and a crop has 9 patches: "
         "set it to a number from 1 to 2."),
        (replace(only_patches, method=SwAV(num_views=8)), "patches.num_whole is 1, but swav has 8 views and "
         "a crop has 9 patches: set it to a number from 2 to 7."),
        (run_of(OBOW.replace("small.num_large", 4), 8), "small.num_large is 4, but only the first 3 views "
         "are not patches: set it to at most 3."),
        (run_of(PIRL.replace("colour_first", True), 10), "augmentation.colour_first is True, but each patch "
         "has its own colours: set it to False, or patches.shared to True."),
        (run_of(Augmentation(colour_first=True, photometric=0.5), 2), "augmentation.photometric is 0.5, but "
         "with colour_first it would see images of different sizes in one tensor: set it to 0, or "
         "colour_first to False."),
        (run_of(OBOW.replace("first.colour_first", True).replace("first.photometric", 0.5), 8),
         "augmentation.first.photometric is 0.5, but with colour_first it would see images of different "
         "sizes in one tensor: set it to 0, or colour_first to False."),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\.$") as refused:
            run.check_for()
        assert str(refused.value) == says


def test_a_method_of_patches_needs_them() -> None:
    run = replace(run_of(PIRL, 10), method=NinePatches(num_views=10))
    run.check_for()
    for augmentation, found in ((COLOURS, "no patches"), (OBOW, "patches.num_whole 3")):
        with pytest.raises(ValueError, match=r"patches") as refused:
            replace(run, augmentation=augmentation).check_for()
        assert str(refused.value) == (
            "The last 9 of the 10 views of byol are patches, but the augmentation has "
            f"{found}: set patches.num_whole to 1."
        )
    with pytest.raises(ValueError, match=r"views") as refused:
        run.replace("method.num_views", 9).check_for()
    assert str(refused.value) == (
        "num_views is 9, but byol has 9 patches after other views: set it to at least 10."
    )


def test_a_table_counts_patches_apart_from_large_and_small_views() -> None:
    for augmentation, num_views, says in (
        (COLOURS, 4, "4"),
        (PIRL, 10, "(1 large + 9 patches)"),
        (OBOW, 8, "(1 large + 2 small + 5 patches)"),
    ):
        assert plan._views(run_of(augmentation, num_views)) == says


def test_a_jpeg_keeps_two_pixels_for_each_pixel_of_a_canvas() -> None:
    square = Augmentation(draft=True, crop_scale=(0.25, 1.0), crop_ratio=(1.0, 1.0))
    patches = replace(square, patches=Patches(size=9, canvas=60, jitter=2, crop_scale=(0.36, 1.0)))
    assert patches.least(16, 1) == (64, 32)
    assert patches.least(16, 2) == pytest.approx((200, 120))
    central = replace(square, first=Augmentation(central=0.25))
    assert central.least(16, 2) == (64, 128)


def test_a_canvas_counts_in_the_memory_of_a_gpu() -> None:
    """12 bytes for each of its values, and for those of the views that are being made."""
    run = replace(run_of(PIRL, 10), backbone="small", batch_size=8, precision="float32")
    run = replace(run, dataset=replace(run.dataset, size=32, resize=32))
    found = [estimate(run.replace("augmentation.patches.canvas", canvas)) for canvas in (36, 50)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[1].num_bytes - found[0].num_bytes == SCRATCH * 8 * 3 * (50**2 - 36**2)


def test_runs_from_before_there_were_patches_show_the_memory_of_runs_without_them() -> None:
    run = run_of(COLOURS, 2)
    ours = tags.settings(run)
    older = {key: value for key, value in ours.items() if key not in set(run.later())}
    assert "augmentation.patches" in ours.keys() - older.keys()
    kept = {key: value for key, value in ours.items() if key in older or "patches" not in key}
    assert memory._deciding(kept, "8") == memory._deciding(ours, "8")
    others = (run_of(PIRL, 2), run_of(PIRL.replace("patches.canvas", 37), 2))
    assert len({memory._deciding(tags.settings(each), "8") for each in (run, *others)}) == 3


# Scales


@dataclass(frozen=True, kw_only=True)
class Larger(BYOL, name="larger"):
    """A method whose maps need larger images at the smaller scales."""

    def side(self, scale: Literal["smoke", "small"]) -> int | None:
        return {"small": 128, "smoke": 48}[scale]


OFFICIAL_PIRL = replace(COLOURS, patches=Patches())
OFFICIAL_OBOW = replace(
    OBOW,
    small=SmallCrops(size=160, crop_scale=(0.08, 0.6), num_large=1),
    patches=Patches(size=96, canvas=256, jitter=24, num_whole=3, shared=True),
)


@pytest.mark.parametrize(
    ("scale", "side", "test_side", "pirl", "obow"),
    [
        ("small", 128, 140, (37, 146, 11), (55, 147, 13)),
        ("smoke", 48, 48, (14, 55, 4), (21, 55, 5)),
    ],
)
def test_a_method_s_images_have_the_side_that_it_needs(
    scale: str,
    side: int,
    test_side: int,
    pirl: tuple[int, int, int],
    obow: tuple[int, int, int],
) -> None:
    for augmentation, expected in ((OFFICIAL_PIRL, pirl), (OFFICIAL_OBOW, obow)):
        encoder = replace(imagenet(200)(Larger()), augmentation=augmentation)
        for evaluation in (evaluate.imagenet_linear, evaluate.knn, evaluate.voc07):
            run = getattr(scales, scale)(evaluation(encoder))
            assert isinstance(run, Evaluate)
            assert isinstance(run.encoder, Pretrain)
            assert (run.dataset.size, run.dataset.resize) == (side, test_side)
            assert (run.encoder.dataset.size, run.encoder.dataset.resize) == (side, test_side)
        patches = run.encoder.augmentation.patches
        assert patches is not None
        assert (patches.size, patches.canvas, patches.jitter) == expected
        assert patches.crop_scale == (0.6, 1.0)
        assert patches.step >= patches.size + patches.jitter or augmentation is OFFICIAL_OBOW
        if augmentation.small is not None:
            small = run.encoder.augmentation.small
            assert small is not None
            assert small.size == math.ceil(160 * side / 224)
            assert small.crop_scale == ((0.2, 0.6) if scale == "smoke" else (0.08, 0.6))
            assert run.encoder.augmentation.first == (
                replace(OBOW.first, crop_scale=(0.2, 1.0)) if scale == "smoke" else OBOW.first
            )


def test_other_methods_and_detectors_keep_the_images_of_the_scale() -> None:
    encoder = imagenet(200)(BYOL())
    assert scales.smoke(evaluate.knn(encoder)).dataset.size == 32
    larger = imagenet(200)(Larger())
    detector = scales.smoke(evaluate.voc_detection(larger))
    assert detector.dataset == scales.smoke(evaluate.voc_detection(encoder)).dataset
    for scale, dataset, side in (
        ("smoke", SyntheticFolder(), 48),
        ("small", Imagenette(), 128),
        ("paper", SyntheticFolder(), 32),
    ):
        found = methods.run(Larger(), dataset, scale).dataset
        assert (found.name, found.size) == (dataset.name, side)
    stl = scales.small(evaluate.linear(on_stl10(Larger())))
    assert isinstance(stl, Evaluate)
    assert stl.dataset.size == 128
