"""Images in flat memory: their views are the same bytes wherever they lie, and none is copied before."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from toys import CPU

from reproduce.data import views
from reproduce.data.augmentation import Augmentation
from reproduce.data.images import Files, Found, Whole, batches, found_in
from reproduce.data.originals import Originals
from reproduce.data.resident import SHARE, Resident
from reproduce.runs import environment

NUM = 40
SIZES = {"one size": [(20, 24)] * 3, "many sizes": [(20, 24), (31, 17), (40, 40)], "large": [(140, 150)] * 3}


@pytest.fixture(params=SIZES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for index in range(NUM):
        height, width = SIZES[request.param][index % 3]
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(
            tmp_path / f"{index:02}.png"
        )
    return tmp_path


def images(folder: Path, cache_gb: float) -> Files:
    names = [f"{index:02}.png".encode() for index in range(NUM)]
    return Files(folder, names, [0] * NUM, ["a"], cache_gb)


def epochs() -> list[list[np.ndarray]]:
    """Return two epochs of three batches, in two orders."""
    return [np.array_split(np.random.default_rng(seed).permutation(NUM)[:36], 3) for seed in (1, 2)]


def views_of(originals: Originals, indices: np.ndarray, **changes: object) -> list[torch.Tensor]:
    return views.sample_originals(
        originals,
        indices,
        augmentation=Augmentation(**changes),
        size=16,
        seed=3,
        epoch=1,
        num_views=2,
    ).views


@pytest.mark.parametrize("colour_first", [False, True])
@pytest.mark.parametrize(("cache_gb", "workers"), [(0.0, 2), (1.0, 0), (1.0, 2)])
def test_views_are_the_same_bytes_with_any_memory_and_any_number_of_decoders(
    folder: Path, cache_gb: float, workers: int, colour_first: bool
) -> None:
    plain, stored = images(folder, 0.0), images(folder, cache_gb)
    on_device = Resident(CPU, free=10**12)
    found = list(found_in(stored, epochs(), Whole(), workers))
    assert len(found) == 6
    for each, part in zip(found, chain(*epochs()), strict=True):
        assert np.array_equal(each.indices, part)
        pixels, sizes, indices = plain.read(part, Whole())
        expected = views.sample_all(
            pixels,
            sizes,
            indices,
            augmentation=Augmentation(colour_first=colour_first),
            size=16,
            seed=3,
            epoch=1,
            num_views=2,
        ).views
        for originals in (each.images, on_device(each)):
            got = views_of(originals, each.indices, colour_first=colour_first)
            assert all(map(torch.equal, got, expected))


def test_cached_images_are_not_copied(folder: Path) -> None:
    stored = images(folder, 1.0)
    found = list(found_in(stored, epochs(), Whole()))
    assert {each.images.values.data_ptr() for each in found} == {found[0].images.values.data_ptr()}
    assert all(each.cached for each in found)
    assert [each.cached for each in found_in(images(folder, 0.0), epochs(), Whole())] == [False] * 6


def test_a_batch_taken_from_the_memory_of_a_split_is_that_of_the_files(folder: Path) -> None:
    plain, stored = images(folder, 0.0), images(folder, 1.0)
    for _ in range(2):
        for ours, theirs in zip(
            batches(stored, epochs()[0][0], 5), batches(plain, epochs()[0][0], 5), strict=True
        ):
            assert ours.pixels.shape == theirs.pixels.shape
            assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("runs", [1, 4])
def test_a_copy_on_the_device_follows_the_memory_and_keeps_to_its_share(
    folder: Path, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that share a device share the memory for their copies, too."""
    monkeypatch.setenv(environment.SHARING, str(runs))
    stored = images(folder, 1.0)
    size = len(stored.find([0], Whole()).images.values)
    roomy, tight = (Resident(CPU, free=int(runs * size / SHARE) + extra) for extra in (20, -20))
    places = set()
    for each in found_in(stored, epochs(), Whole()):
        copied = roomy(each)
        places.add(copied.values.data_ptr())
        for row in range(len(each.indices)):
            assert torch.equal(copied.image(row), each.images.image(row))
        assert tight(each).values.data_ptr() == each.images.values.data_ptr()
    assert len(places) == 1
    assert places != {stored.find([0], Whole()).images.values.data_ptr()}


def test_images_are_found_and_packed_among_others(folder: Path) -> None:
    found = images(folder, 1.0).find(np.arange(7), Whole())
    some = Found(
        found.images._replace(starts=found.images.starts[[5, 2]], sizes=found.images.sizes[[5, 2]]),
        found.sizes[[5, 2]],
        found.indices[[5, 2]],
    ).images
    box = np.array([[2, 3, 9, 8], [0, 1, 11, 12], [4, 0, 5, 6]])
    crops = views.gather_(torch.empty(3, 3, 11, 12, dtype=torch.uint8), some, np.array([1, 0, 1]), box)
    for crop, of, (top, left, height, width) in zip(crops, (1, 0, 1), box.tolist(), strict=True):
        assert torch.equal(
            crop[:, :height, :width], some.image(of)[:, top : top + height, left : left + width]
        )
    packed = some.packed()
    assert torch.equal(packed.values, torch.cat([some.image(row).flatten() for row in range(2)]))
    assert packed.starts.tolist() == [0, some.lengths[0]]


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_decoders_live_through_the_epochs_or_until_all_is_cached(folder: Path, cache_gb: float) -> None:
    before, alive = set(psutil.Process().children()), []
    for _ in found_in(images(folder, cache_gb), [*epochs(), *epochs()], Whole(), 2):
        alive.append({child.pid for child in set(psutil.Process().children()) - before})
    assert not set(psutil.Process().children()) - before
    if cache_gb:
        assert alive[-3:] == [set()] * 3, "the last epoch is in memory"
    else:
        assert len(alive[0]) == 2
        assert alive[:-1] == [alive[0]] * 11
