"""`augmentation.draft`: large JPEG files are decoded at a fraction that keeps twice the pixels of a view."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import PRETRAIN

from reproduce.data.augmentation import Augmentation, SmallCrops
from reproduce.data.draws import CROP_TRIES, crop_boxes
from reproduce.data.images import Files, Whole, found_in, planes

QUARTER = Augmentation(draft=True, crop_scale=(0.25, 1.0), crop_ratio=(1.0, 1.0))
"""The smallest crop of an image has half its side, so views of 16 px need images of 64 px."""


def file(folder: Path, name: str, height: int, width: int) -> bytes:
    pixels = np.random.default_rng(height).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(folder / name, quality=95)
    return name.encode()


def test_limits_by_hand() -> None:
    assert QUARTER.least(16, 2) == (64, 32)
    assert replace(QUARTER, crop_scale=(0.04, 1.0)).least(16, 2) == pytest.approx((160, 32))
    assert replace(QUARTER, crop_ratio=(0.25, 1.0)).least(16, 1) == pytest.approx((128, 32))
    assert replace(QUARTER, crop_ratio=(0.25, 0.5)).least(16, 1) == pytest.approx((128, 64))
    odd = replace(QUARTER, every_second=Augmentation(crop_scale=(0.01, 1.0), crop_ratio=(1.0, 1.0)))
    assert [odd.least(16, num_views) for num_views in (1, 2)] == [(64, 32), (pytest.approx(320), 32)]
    small = replace(QUARTER, small=SmallCrops(size=8, crop_scale=(0.01, 0.25)))
    assert [small.least(16, num_views) for num_views in (2, 3)] == [(64, 32), (pytest.approx(160), 32)]
    assert replace(QUARTER, draft=False).least(16, 2) is None


@pytest.mark.parametrize(
    ("height", "width", "divisor"),
    [(512, 512, 8), (511, 512, 4), (256, 256, 4), (160, 160, 2), (127, 127, 1), (64, 2000, 2), (63, 2000, 1)],
)
def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_keeps_enough(
    tmp_path: Path, height: int, width: int, divisor: int
) -> None:
    files = Files(tmp_path, [file(tmp_path, "x.jpg", height, width)], [0], ["a"])
    batch = files.read([0], Whole(QUARTER.least(16, 2)))
    expected = [-(-height // divisor), -(-width // divisor)]
    assert batch.sizes.tolist() == [expected]
    assert list(batch.pixels.shape[2:]) == expected
    whole = files.read([0], Whole()).pixels
    assert list(whole.shape[2:]) == [height, width]
    mean = torch.nn.functional.adaptive_avg_pool2d(whole.float(), expected)
    assert (batch.pixels.float() - mean).abs().mean() < 4, "the fraction is a smaller picture of the same"


def test_no_possible_crop_falls_below_twice_its_view() -> None:
    random = np.random.default_rng(0)
    n, size = 2000, 32
    own = Augmentation(draft=True)
    limits = own.least(size, 2)
    assert limits is not None
    sizes = np.exp(random.uniform(np.log(64), np.log(6000), (n, 2))).astype(np.int64)
    divisors = [
        next((d for d in (8, 4, 2) if np.sqrt(h * w) >= d * limits[0] and min(h, w) >= d * limits[1]), 1)
        for h, w in sizes.tolist()
    ]
    reduced = [-(-side // d) for d, row in zip(divisors, sizes, strict=True) for side in row.tolist()]
    chosen = np.array(divisors) > 1
    assert len(set(divisors)) == 4
    extremes = np.where(random.random((n, CROP_TRIES)) < 0.5, 0.0, np.nextafter(1, 0))
    boxes = crop_boxes(
        np.array(reduced).reshape(-1, 2),
        np.zeros((n, CROP_TRIES)),
        extremes,
        np.zeros(n),
        np.zeros(n),
        own.crop_scale,
        own.crop_ratio,
    )
    assert boxes[chosen, 2:].min() >= 2 * size
    assert boxes[chosen, 2:].min(axis=1).min() < 3 * size, "the limit is close"


def test_other_files_stay_whole_and_memory_and_processes_change_no_byte(tmp_path: Path) -> None:
    names = [file(tmp_path, f"{side}.{kind}", side, side) for side in (512, 300) for kind in ("jpg", "png")]
    shape = Whole(QUARTER.least(16, 2))
    plain = Files(tmp_path, names, [0] * 4, ["a"]).read(range(4), shape)
    assert plain.sizes[:, 0].tolist() == [64, 512, 75, 300]
    for cache_gb, workers in ((1.0, 0), (0.0, 2)):
        files = Files(tmp_path, names, [0] * 4, ["a"], cache_gb)
        for found in found_in(files, [[np.arange(4)]] * 2, shape, workers):
            assert all(map(torch.equal, planes(found.batch()), planes(plain)))


def test_it_is_a_setting_of_the_run_that_old_names_do_not_contain() -> None:
    assert (
        replace(PRETRAIN, augmentation=Augmentation()).id == PRETRAIN.replace("augmentation.draft", False).id
    )
    assert PRETRAIN.replace("augmentation.draft", True).id != PRETRAIN.id
    with pytest.raises(
        ValueError, match=r"every_second has its own draft, but augmentation\.draft covers all"
    ):
        Augmentation(every_second=QUARTER)
