"""Further colour operations of PIRL: levels are exactly those of PIL, one operation after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from test_drawn import split_mix
from test_views import PLAIN, batch, chi_square, draw, images
from torchvision.transforms.v2 import functional as tv

from reproduce.data import draws
from reproduce.data.augmentation import Augmentation
from reproduce.data.views import photometric_, sample, sharpen_, stretch_

ALL = replace(PLAIN, photometric=1.0)
"""Crops, and the four operations on all of them."""
SHAPES = ((1, 1), (1, 7), (2, 9), (3, 3), (9, 2), (16, 12), (24, 24))


def some(height: int, width: int, seed: int) -> torch.Tensor:
    """Return an image, (3, height, width) uint8, dark in every second case and with a constant channel."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    image = image // 3 + 40 if seed % 2 else image
    image[1] = image[1] if seed % 3 else 77
    return image


def by_pil(image: torch.Tensor, *operations: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Return the image after PIL's operations, (3, height, width) uint8."""
    x = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    for operation in operations:
        x = operation(x)
    return torch.from_numpy(np.array(x)).permute(2, 0, 1)


def chain(bits: int, sharpness: float, threshold: int) -> tuple[Callable[[Image.Image], Image.Image], ...]:
    """Return the operations of facebookresearch/vissl img_pil_random_photometric.py, in its order."""
    return (
        lambda x: ImageOps.posterize(x, bits),
        lambda x: ImageEnhance.Sharpness(x).enhance(sharpness),
        lambda x: ImageOps.solarize(x, threshold),
        ImageOps.autocontrast,
    )


def levels(x: torch.Tensor) -> torch.Tensor:
    """Return the levels of values from 0 to 1, which lie at whole levels."""
    rounded = (255 * x).round()
    torch.testing.assert_close(255 * x, rounded, atol=1e-3, rtol=0)
    return rounded.to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_operation_is_that_of_pil(shape: tuple[int, int]) -> None:
    for seed in range(12):
        image = some(*shape, seed)
        x, factor = image[None].float(), 0.1 + 1.8 * seed / 12
        sharper = sharpen_(x.clone(), torch.tensor(factor, dtype=torch.float32).view(1, 1, 1, 1))
        assert torch.equal(sharper[0].byte(), by_pil(image, chain(8, factor, 256)[1]))
        assert torch.equal(stretch_(x.clone())[0].byte(), by_pil(image, ImageOps.autocontrast))


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("threshold", [0, 1, 100, 128, 255, 256])
def test_the_four_together_are_those_of_pil(bits: int, threshold: int) -> None:
    pixels = torch.stack([some(14, 11, seed) for seed in range(6)])
    factors = torch.tensor([0.1, 0.5, 1.0, 1.3, 1.75, 1.9])
    found = photometric_(
        pixels.float() / 255, torch.full((6,), float(bits)), factors, torch.full((6,), float(threshold))
    )
    for got, image, factor in zip(levels(found), pixels, factors.tolist(), strict=True):
        assert torch.equal(got, by_pil(image, *chain(bits, factor, threshold)))


def test_hand_cases() -> None:
    """Levels 183 = 0b10110111 and 51 = 0b110011 are 176 and 48 with 4 bits.

    From level 128 on, solarise makes 55 of 200; stretched, (55, 60, 100) is (0, 5 / 45, 1) of 255.
    """
    one = torch.ones(1)

    def of(values: list[float], bits: float, threshold: float) -> list[float]:
        x = torch.tensor(values).view(1, 1, 1, -1).expand(1, 3, 1, -1) / 255
        found = photometric_(x.clone(), bits * one, one, threshold * one)
        return levels(found)[0, 2, 0].tolist()

    assert of([183, 183], 4, 256) == [176, 176]
    assert of([175.6, 175.6], 4, 256) == [176, 176]
    assert of([183, 51, 0], 4, 256) == [255, int(255 * 48 / 176), 0]
    assert of([200, 60, 100], 8, 128) == [0, int(255 * 5 / 45), 255]
    spot = torch.zeros(1, 1, 3, 3)
    spot[..., 1, 1] = 130  # smooth: 5 x 130 / 13 = 50; halfway from 50 to 130 is 90
    assert sharpen_(spot, torch.full((1, 1, 1, 1), 0.5))[0, 0, 1].tolist() == [0, 90, 0]


def test_a_view_has_them_after_the_jitter_and_before_the_greyscale() -> None:
    """Whole images at their own size keep their levels; a jitter of factor 1 does not change them."""
    n, side = 40, 16
    whole = replace(ALL, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), photometric=0.7, grey=0.5)
    found = sample(**batch(n, side), augmentation=whole, size=side, seed=0, epoch=0, view=0)
    drawn = draws_of(whole, n, side)
    assert 0 < drawn.photometric.sum() < n
    assert 0 < (drawn.photometric & drawn.grey).sum() < drawn.photometric.sum()
    for i, image in enumerate(images(n, side)):
        x = image
        if drawn.photometric[i]:
            x = by_pil(x, *chain(int(drawn.bits[i]), float(drawn.sharpness[i]), int(drawn.threshold[i])))
        expected = x.float() / 255
        expected = tv.rgb_to_grayscale(expected, 3) if drawn.grey[i] else expected
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=0)


def draws_of(augmentation: Augmentation, n: int, side: int) -> draws.Draws:
    return draws.draw(augmentation, np.full((n, 2), side), np.arange(n) * 7, seed=0, epoch=0, view=0)


def test_the_jitter_comes_first() -> None:
    n, side = 30, 32
    both = replace(ALL, jitter=1.0, grey=0.5)
    args, how = batch(n, side), {"size": side, "seed": 0, "epoch": 0, "view": 0}
    found = sample(**args, augmentation=both, **how)
    expected = sample(**args, augmentation=replace(both, photometric=0.0, grey=0.0), **how)
    drawn = draws_of(both, n, side)
    expected = photometric_(
        expected, *(torch.from_numpy(each).float() for each in (drawn.bits, drawn.sharpness, drawn.threshold))
    )
    on = torch.from_numpy(drawn.grey).view(-1, 1, 1, 1)
    expected = torch.where(on, tv.rgb_to_grayscale(expected, 3), expected)
    # Rounding may tear a value that lies between two levels.
    assert ((found - expected).abs() > 1e-5).float().mean() < 0.01


def test_parameters_have_the_ranges_of_the_official_code() -> None:
    n = 20_000
    found = draw(replace(PLAIN, photometric=0.66), n)
    assert abs(found.photometric.mean() - 0.66) < 5 * (0.66 * 0.34 / n) ** 0.5
    assert np.abs(np.bincount(found.bits, minlength=9)[4:] / n - 0.2).max() < 5 * (0.16 / n) ** 0.5
    assert set(found.bits.tolist()) == {4, 5, 6, 7, 8}
    assert set(found.threshold.tolist()) == set(range(257))
    assert chi_square((found.threshold + 0.5) / 257) < 60
    assert chi_square((found.sharpness - 0.1) / 1.8) < 60


def test_the_parameters_by_hand() -> None:
    state = 0
    for part in (0, 0, 0, 11):
        state = split_mix(state, part)
    u = [(split_mix(state, slot) >> 11) / 2**53 for slot in range(26, 30)]
    found = draw(replace(PLAIN, photometric=0.5), 12)
    assert bool(found.photometric[11]) == (u[0] < 0.5)
    assert (found.bits[11], found.threshold[11]) == (4 + int(5 * u[1]), int(257 * u[3]))
    assert found.sharpness[11] == pytest.approx(0.1 + 1.8 * u[2], abs=1e-12)
