"""Views of photographs of several sizes: each crop is resampled once, as torchvision resamples it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skips import SHARED, shared
from test_views import INTERPOLATIONS, PLAIN, one_by_one
from torchvision.transforms.v2 import functional as tv

from reproduce.data import draws, views
from reproduce.data.augmentation import Augmentation
from reproduce.data.images import Files, batches

GREY_LEVEL = 1 / 255
SIZES = ((375, 500), (500, 333), (96, 128), (40, 40), (7, 300), (640, 480), (130, 130), (200, 150))
"""Heights and widths of the drawn photographs."""


def photograph(height: int, width: int, seed: int) -> torch.Tensor:
    """Return waves of all lengths, the short ones weaker as in photographs, (3, height, width) uint8."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(height).view(-1, 1).square() + torch.fft.rfftfreq(width).square()
    waves = torch.randn(3, height, width // 2 + 1, 2, generator=generator)
    spectrum = torch.view_as_complex(waves) / (frequency.sqrt() + 0.5 / max(height, width))
    x = torch.fft.irfft2(spectrum, s=(height, width))
    return (127.5 + 50 * x / x.std()).clamp(0, 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def photographs() -> list[torch.Tensor]:
    return [photograph(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def arguments(images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pixels, sizes and indices of the images."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    return torch.cat([image.flatten() for image in images]), sizes, 11 * torch.arange(len(images))


def direct(image: torch.Tensor, box: Sequence[int], size: int, resampling: str) -> torch.Tensor:
    """Return torchvision's crop of an image, (3, size, size) from 0 to 1.

    With values of 8 bits, torchvision would also clamp between the horizontal and the vertical pass. Bicubic
    crops of photographs then differ by up to 16 grey levels, where white meets black.
    """
    x = image.float() / 255
    return tv.resized_crop(x, *box, [size, size], INTERPOLATIONS[resampling], antialias=True).clamp(0, 1)


def energy(x: torch.Tensor) -> float:
    """Return the mean square of the differences between neighbours."""
    return float(x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean())


@pytest.mark.parametrize("resampling", INTERPOLATIONS)
@pytest.mark.parametrize(("area", "size"), [(0.08, 224), (0.25, 224), (0.25, 64), (1.0, 224), (1.0, 32)])
def test_a_crop_of_a_photograph_is_that_of_torchvision(
    photographs: list[torch.Tensor], area: float, size: int, resampling: str
) -> None:
    plain = PLAIN.replace("crop_scale", (area, area)).replace("resampling", resampling)
    sampled = views.sample_all(
        *arguments(photographs),
        augmentation=plain.replace("flip", 0.5),
        size=size,
        seed=0,
        epoch=0,
        num_views=2,
    )
    assert 0 < sum(int(flips.sum()) for flips in sampled.flips) < 2 * len(photographs)
    for view, boxes, flips in zip(*sampled, strict=True):
        for image, got, box, flip in zip(photographs, view, boxes.tolist(), flips, strict=True):
            expected = direct(image, box, size, resampling)
            expected = expected.flip(2) if flip else expected
            assert float((got - expected).abs().max()) < 0.1 * GREY_LEVEL
            assert energy(got) == pytest.approx(energy(expected), rel=1e-3)
            if (
                resampling == "bilinear"
            ):  # whose values need no clamp: both passes of 8 bits round to half a level
                rounded = tv.resized_crop(
                    image, *box, [size, size], INTERPOLATIONS[resampling], antialias=True
                )
                rounded = rounded.flip(2) if flip else rounded
                assert float((255 * got - rounded.float()).abs().max()) < 1.01


def test_real_photographs_in_files_keep_the_detail_of_a_direct_crop(tmp_path: Path) -> None:
    found = sorted(path for name in ("coco", "voc") for path in shared(name).rglob("*.jpg"))[:8]
    names = [bytes(path.relative_to(SHARED)) for path in found]
    images = Files(SHARED, names, np.zeros(len(names)), ["any"])
    decoded = [tv.pil_to_tensor(Image.open(path).convert("RGB")) for path in found]
    (batch,) = batches(images, range(len(names)), len(names))
    for area in (0.08, 0.25):
        plain = PLAIN.replace("crop_scale", (area, area))
        sampled = views.sample_all(*batch, augmentation=plain, size=224, seed=0, epoch=0, num_views=1)
        for image, got, box in zip(decoded, sampled.views[0], sampled.boxes[0].tolist(), strict=True):
            expected = direct(image, box, 224, "bicubic")
            assert float((got - expected).abs().max()) < 0.1 * GREY_LEVEL
            assert energy(got) == pytest.approx(energy(expected), rel=1e-3)


@pytest.mark.parametrize("colour_first", [False, True], ids=["crop first", "colour first"])
def test_a_whole_view_of_a_photograph_is_the_operations_one_after_the_other(
    photographs: list[torch.Tensor], colour_first: bool
) -> None:
    augmentation = Augmentation(grey=0.4, blur=0.6, solarize=0.5, contrast=0.8, colour_first=colour_first)
    pixels, sizes, indices = arguments(photographs)
    for view in range(3):
        got = views.sample(
            pixels, sizes, indices, augmentation=augmentation, size=48, seed=1, epoch=2, view=view
        )
        drawn = draws.draw(augmentation, sizes.numpy(), indices.numpy(), seed=1, epoch=2, view=view)
        for i, image in enumerate(photographs):
            expected = one_by_one(image, drawn, i, 48, augmentation)
            # Solarisation inverts from one half on, so rounding may tear a value there.
            away = (expected - 0.5).abs() > 1e-3 if drawn.solarize[i] else torch.ones_like(expected).bool()
            torch.testing.assert_close(got[i][away], expected[away], atol=4e-4, rtol=0)


@pytest.mark.parametrize("colour_first", [False, True], ids=["crop first", "colour first"])
def test_products_of_padded_crops_are_the_views_made_one_by_one(
    photographs: list[torch.Tensor], colour_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, on the CPU: crops are gathered and padded, then resized by products."""
    how = {"augmentation": Augmentation(colour_first=colour_first), "size": 64, "seed": 0, "epoch": 0}
    one_by_one = views.sample_all(*arguments(photographs), **how, num_views=2)
    monkeypatch.setattr(views, "_resize_each_", views._resize_together_)
    monkeypatch.setattr(views, "padded", gathered)
    together = views.sample_all(*arguments(photographs), **how, num_views=2)
    for one, other in zip(one_by_one.views, together.views, strict=True):
        torch.testing.assert_close(other, one, atol=2e-4, rtol=0)


def gathered(images: views.Originals, of: draws.Ints, boxes: draws.Ints) -> torch.Tensor:
    out = images.values.new_empty(len(of), 3, *boxes[:, 2:].max(axis=0).tolist())
    return views.gather_(out, images, of, boxes)


def test_gathered_boxes_are_the_copied_ones(photographs: list[torch.Tensor]) -> None:
    pixels, sizes, _ = arguments(photographs)
    images = views.Originals.of(pixels, sizes.numpy())
    of, boxes = np.array([4, 0, 2]), np.array([[3, 100, 4, 60], [10, 20, 30, 40], [0, 0, 96, 128]])
    found, expected = gathered(images, of, boxes), views.padded(images, of, boxes)
    assert found.shape == expected.shape == (3, 3, 96, 128)
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        part = photographs[of[row]][:, top : top + height, left : left + width]
        assert torch.equal(found[row, :, :height, :width], part)
        assert torch.equal(expected[row, :, :height, :width], part)


@pytest.mark.parametrize("colour_first", [False, True], ids=["crop first", "colour first"])
def test_a_view_depends_on_neither_the_batch_nor_the_threads(
    photographs: list[torch.Tensor], colour_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {
        "augmentation": Augmentation(colour_first=colour_first),
        "size": 64,
        "seed": 0,
        "epoch": 0,
        "view": 0,
    }
    pixels, sizes, indices = arguments(photographs)
    whole = views.sample(pixels, sizes, indices, **how)
    alone = [
        views.sample(image.flatten(), sizes[row : row + 1], indices[row : row + 1], **how)
        for row, image in enumerate(photographs)
    ]
    torch.testing.assert_close(torch.cat(alone), whole, atol=2e-4, rtol=0)
    before = torch.get_num_threads()
    try:
        for threads, chunk in itertools.product((1, 3), (2**16, 2**20)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(views, "CPU_CHUNK", chunk)
            torch.testing.assert_close(views.sample(pixels, sizes, indices, **how), whole, atol=1e-5, rtol=0)
    finally:
        torch.set_num_threads(before)


def test_views_of_files_do_not_depend_on_memory_and_workers(
    photographs: list[torch.Tensor], tmp_path: Path
) -> None:
    names = [f"{index}.png" for index in range(len(photographs))]
    for name, image in zip(names, photographs, strict=True):
        tv.to_pil_image(image).save(tmp_path / name)
    how = {"augmentation": Augmentation(), "size": 32, "seed": 0, "epoch": 0, "view": 0}
    pixels, sizes, _ = arguments(photographs)
    expected = views.sample(pixels, sizes, torch.arange(len(names)), **how)
    for cache_gb, workers in ((0.0, 0), (1.0, 2), (1e-3, 1)):
        images = Files(tmp_path, [name.encode() for name in names], np.zeros(len(names)), ["any"], cache_gb)
        for _ in range(2):
            (batch,) = batches(images, range(len(names)), len(names), workers=workers)
            assert torch.equal(views.sample(*batch, **how), expected)
