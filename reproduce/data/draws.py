"""Random parameters of the augmented views, from a hash in place of a generator with a state.

Every uniform number is a hash of (seed, epoch, view, image index, slot). So the view of an image depends
neither on the batch, the order, the worker nor the process that makes it. The hash is SplitMix64's output
function (Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014), applied once
for each part of the counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reproduce.data.augmentation import GRID

if TYPE_CHECKING:
    from reproduce.data.augmentation import Augmentation, Patches

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CROP_TRIES = 10
"""Attempts of torchvision's RandomResizedCrop before it falls back to a central crop."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BITS, SHARPNESS, THRESHOLDS = (4, 8), (0.1, 1.9), (0, 256)
"""Ranges of the further colour operations: bits of a value that posterise keeps, factor of the sharpness, and
level from which solarise inverts (facebookresearch/vissl pil_photometric_transforms_lib.py). The first and
the last are whole numbers, both ends included."""
_ORDERS = np.array(list(permutations(range(4))))
_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, SplitMix64's increment

# Slot of each number. Add new ones in free slots: renumbering would change every view of every run.
(
    _FLIP,
    _TOP,
    _LEFT,
    _JITTER,
    _ORDER,
    _BRIGHTNESS,
    _CONTRAST,
    _SATURATION,
    _HUE,
    _GREY,
    _BLUR,
    _SIGMA,
    _SOLARIZE,
    _SHIFT_TOP,
    _SHIFT_LEFT,
    _PLACES,
) = range(16)
_AREAS, _RATIOS = slice(16, 16 + CROP_TRIES), slice(32, 32 + CROP_TRIES)
_PHOTOMETRIC, _BITS, _SHARPNESS, _THRESHOLD = range(26, 30)
_NUM_SLOTS = 48


@dataclass(frozen=True)
class Draws:
    """Random parameters of one view of n images."""

    box: Ints
    """Top, left, height and width of the crop in pixels of the original image, (n, 4)."""
    flip: Bools
    jitter: Bools
    order: Ints
    """Order of the four parts of the jitter, a permutation of BRIGHTNESS ... HUE, (n, 4)."""
    factors: Floats
    """Factors of BRIGHTNESS, CONTRAST and SATURATION, (n, 3); 1 leaves the image unchanged."""
    hue: Floats
    """Hue shift in turns of the colour circle."""
    grey: Bools
    blur: Bools
    sigma: Floats
    """Standard deviation of the blur in pixels."""
    solarize: Bools
    photometric: Bools
    """True for images with the four further colour operations, whose parameters follow."""
    bits: Ints
    """Bits of a value that posterise keeps; 8 leaves the image unchanged."""
    sharpness: Floats
    """Factor of the sharpness; 1 leaves the image unchanged."""
    threshold: Ints
    """Level of 0 to 255 from which solarise inverts; 256 leaves the image unchanged."""

    def take(self, rows: Ints | slice) -> Draws:
        """Return the parameters of the images `rows`, in that order."""
        return Draws(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def joined(parts: Sequence[Draws]) -> Draws:
        """Concatenate the parameters of all parts."""
        return Draws(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(Draws)
            }
        )

    @property
    def hue_place(self) -> Ints:
        """Number of parts of the jitter before the hue shift, (n,); -1 for images without jitter."""
        return np.where(self.jitter, (self.order == HUE).argmax(axis=1), -1)

    def blends(self) -> Floats:
        """Return the jitter without its hue shift as factors of (image, its grey, its mean grey), (3, 3, n).

        The first axis is the order of the three remaining parts.
        """
        parts = self.order[self.order != HUE].reshape(-1, 3)
        own = np.take_along_axis(self.factors, parts, axis=1)
        return np.stack([own, (1 - own) * (parts == SATURATION), (1 - own) * (parts == CONTRAST)]).transpose(
            2, 0, 1
        )


def draw(
    augmentation: Augmentation, sizes: Ints, indices: Ints, *, seed: int, epoch: int, view: int
) -> Draws:
    """Draw the parameters of view number `view` of the images `indices`.

    Args:
        sizes: height and width of the original images, (n, 2).
        indices: numbers of the images in their data set, (n,).
    """
    u = uniforms(indices, seed=seed, epoch=epoch, view=view)

    def between(slot: int, low: float, high: float) -> Floats:
        return low + (high - low) * u[:, slot]

    strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    factors = [
        between(_BRIGHTNESS + part, max(0.0, 1 - strength), 1 + strength)
        for part, strength in enumerate(strengths)
    ]
    return Draws(
        box=_boxes(augmentation, sizes, u),
        flip=u[:, _FLIP] < augmentation.flip,
        jitter=u[:, _JITTER] < augmentation.jitter,
        order=_ORDERS[(u[:, _ORDER] * len(_ORDERS)).astype(np.int64)],
        factors=np.stack(factors, axis=1),
        hue=between(_HUE, -augmentation.hue, augmentation.hue),
        grey=u[:, _GREY] < augmentation.grey,
        blur=u[:, _BLUR] < augmentation.blur,
        sigma=between(_SIGMA, *augmentation.blur_sigma),
        solarize=u[:, _SOLARIZE] < augmentation.solarize,
        photometric=u[:, _PHOTOMETRIC] < augmentation.photometric,
        bits=_whole(u[:, _BITS], *BITS),
        sharpness=between(_SHARPNESS, *SHARPNESS),
        threshold=_whole(u[:, _THRESHOLD], *THRESHOLDS),
    )


def draw_place(patches: Patches, indices: Ints, *, seed: int, epoch: int, view: int) -> Ints:
    """Draw the first row and column in the canvas of view number `view`, a patch of each image, (n, 2).

    The order of an image's places belongs to its first patch, the shift in the place to each patch.

    Args:
        indices: numbers of the images in their data set, (n,).
    """
    first = uniforms(indices, seed=seed, epoch=epoch, view=patches.num_whole)
    own = uniforms(indices, seed=seed, epoch=epoch, view=view)
    place = orders(first[:, _PLACES], GRID**2)[:, view - patches.num_whole]
    shift = _whole(own[:, [_SHIFT_TOP, _SHIFT_LEFT]], 0, patches.jitter)
    return np.stack([place // GRID, place % GRID], axis=1) * patches.step + shift


def patch_boxes(crops: Ints, flips: Bools, places: Ints, patches: Patches) -> Ints:
    """Return top, left, height and width of patches in pixels of the original images, rounded, (n, 4).

    Args:
        crops: boxes that were resized to the canvas, (n, 4).
        flips: True for canvases that were mirrored before the cut, (n,).
        places: first row and column of each patch in its canvas, (n, 2).
    """
    first = places.copy()
    first[flips, 1] = patches.canvas - patches.size - places[flips, 1]
    low, extent = crops[:, :2], crops[:, 2:]
    begin, end = (np.rint(low + extent * each / patches.canvas) for each in (first, first + patches.size))
    begin = np.minimum(begin, low + extent - 1)
    return np.concatenate([begin, (end - begin).clip(min=1)], axis=1).astype(np.int64)


def orders(u: Floats, num: int) -> Ints:
    """Return a permutation of 0 ... `num` - 1 for each uniform u in [0, 1), (n,) -> (n, num).

    All are equally likely. The digits of u, to the bases num, num - 1, ..., 1, choose one of the remaining
    numbers after the other.
    """
    order, rows, u = np.tile(np.arange(num), (len(u), 1)), np.arange(len(u)), u.copy()
    for place in range(num):
        u *= num - place
        digit = u.astype(np.int64)
        u -= digit
        chosen = order[rows, place + digit]
        order[rows, place + digit] = order[:, place]
        order[:, place] = chosen
    return order


def _whole(u: Floats, low: int, high: int) -> Ints:
    """Return a whole number from `low` to `high` for each uniform number in [0, 1), all equally likely."""
    return low + np.floor(u * (high - low + 1)).astype(np.int64)


def _boxes(augmentation: Augmentation, sizes: Ints, u: Floats) -> Ints:
    """Return the crop of each image, (n, 4), from its uniform numbers."""
    if augmentation.central:
        return square_boxes(sizes, augmentation.central)
    scale, ratio = augmentation.crop_scale, augmentation.crop_ratio
    return crop_boxes(sizes, u[:, _AREAS], u[:, _RATIOS], u[:, _TOP], u[:, _LEFT], scale, ratio)


def crop_boxes(
    sizes: Ints,
    areas: Floats,
    ratios: Floats,
    top: Floats,
    left: Floats,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Ints:
    """Compute torchvision's RandomResizedCrop.make_params for n images at once.

    Args:
        sizes: height and width, (n, 2).
        areas, ratios: uniform in [0, 1), one for each attempt, (n, CROP_TRIES).
        top, left: uniform in [0, 1), (n,).
        scale: range of the crop's area relative to the image.
        ratio: range of the crop's width over its height, log-uniform.

    Returns:
        Top, left, height and width of each crop, (n, 4).
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    aspect = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * ratios)
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows, first = np.arange(len(sizes)), fits.argmax(axis=1)
    h, w = h[rows, first], w[rows, first]
    boxes = np.stack(
        [np.floor(top * (height[:, 0] - h + 1)), np.floor(left * (width[:, 0] - w + 1)), h, w], axis=1
    )
    return np.where(fits.any(axis=1, keepdims=True), boxes, _central_boxes(sizes, ratio)).astype(np.int64)


def square_boxes(sizes: Ints, share: float) -> Ints:
    """Return central squares whose side is `share` of the shorter side, rounded to whole pixels, (n, 4)."""
    side = np.rint(share * sizes.min(axis=1)).astype(np.int64).clip(min=1)
    top, left = (sizes - side[:, None]).T // 2
    return np.stack([top, left, side, side], axis=1)


def _central_boxes(sizes: Ints, ratio: tuple[float, float]) -> Floats:
    """Return the largest central crops with a ratio in range, (n, 4)."""
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    h = np.where(width / height < ratio[0], np.rint(width / ratio[0]), height)
    w = np.where(width / height > ratio[1], np.rint(height * ratio[1]), width)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)


def uniforms(indices: Ints, *, seed: int, epoch: int, view: int) -> Floats:
    """Return independent uniform numbers in [0, 1) with 53 bits, one per image and slot, (n, 48).

    Args:
        indices: numbers of the images in their data set, (n,).
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, view):
        key = _hash(key, np.array([part % 2**64], dtype=np.uint64))
    images = _hash(key, indices.astype(np.uint64))
    bits = _hash(images[:, None], np.arange(_NUM_SLOTS, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hash(key: NDArray[np.uint64], counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's output number `counter` from the state `key`, modulo 2^64."""
    x: NDArray[np.uint64] = key + (counter + np.uint64(1)) * _GAMMA
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
