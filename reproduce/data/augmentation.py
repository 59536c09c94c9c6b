"""Settings of the distribution of augmented views (paper, section 7.3 and Table 9).

`views.py` computes the views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from reproduce import identity
from reproduce.settings import (
    Count,
    CountOrZero,
    Fraction,
    Limits,
    NotNegative,
    Pixels,
    Positive,
    PositiveFraction,
    Ratio,
    Settings,
)

GRID = 3
"""Places of patches along each axis of a crop."""
MARGIN = 2
"""Pixels of a crop for each pixel of its view, along an axis, that a reduced image keeps at least."""
COVERING = {"small": "small crops", "draft": "draft", "patches": "patches"}
"""Settings that only the distribution of all views can have, in words."""


def divisor(width: int, height: int, least: tuple[float, float] | None) -> int:
    """Return the largest of 8, 4, 2 and 1 by which the sides of a JPEG may be divided when it is decoded.

    Args:
        least: pixels that the square root of its area and its shorter side keep (`Augmentation.least`); None
            to decode it whole.
    """
    if least is None:
        return 1
    for number in (8, 4, 2):
        if math.sqrt(width * height) >= number * least[0] and min(width, height) >= number * least[1]:
            return number
    return 1


@dataclass(frozen=True, kw_only=True)
class SmallCrops(Settings, name="small_crops"):
    """The small crops of multi-crop (section 4.4; facebookresearch/swav scripts/swav_400ep_pretrain.sh)."""

    size: Pixels = 96
    """Side of a small view in pixels (section 4.4), next to large views of 224."""
    crop_scale: tuple[PositiveFraction, PositiveFraction] = (0.05, 0.14)
    """Area of a small crop relative to the image (SwAV; the paper gives none). The range of the large crops
    begins where this one ends."""
    num_large: Count = 2
    """Number of views of the ordinary size, which come first (section 4.4)."""

    def check(self) -> None:
        _check_range("small_crops.crop_scale", self.crop_scale)


@dataclass(frozen=True, kw_only=True)
class Patches(Settings, name="patches"):
    """The patches of PIRL and OBoW: parts of one random crop of the image, which is resized first.

    The crop has `canvas` x `canvas` pixels and GRID x GRID places. Place (i, j) starts at row
    i s + U{0, ..., jitter} and column j s + U{0, ..., jitter}, with s = (canvas - size - jitter) // 2. Each
    image has its own random order of the places. Its patches are the first ones in this order. Defaults are
    PIRL's. They are from the files that the fields name, OBoW's from valeoai/obow obow/datasets.py.
    """

    size: Pixels = 64
    """Side of a patch in pixels, next to views of 224 (facebookresearch/vissl img_patches_tensor.py). 96 in
    OBoW."""
    canvas: Pixels = 255
    """Side in pixels to which the crop is resized before patches are cut from it (facebookresearch/vissl
    img_pil_to_patches_and_image.py). 256 in OBoW."""
    jitter: CountOrZero = 20
    """Largest shift of a patch from the first pixel of its place, along each axis, in pixels
    (facebookresearch/vissl img_patches_tensor.py, whose 21 is excluded). 24 in OBoW, included."""
    crop_scale: tuple[PositiveFraction, PositiveFraction] = (0.6, 1.0)
    """Area of the crop relative to the image (facebookresearch/vissl img_pil_to_patches_and_image.py,
    valeoai/obow obow/datasets.py)."""
    num_whole: Count = 1
    """Number of views that are not patches, which come first. 3 in OBoW."""
    shared: bool = False
    """If true, the crop is flipped and its colours change once, before the patches are cut, as in OBoW. If
    false, each patch has its own flip and colours, as in PIRL (facebookresearch/vissl
    pirl_jigsaw_4node_resnet50.yaml)."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur of patches, which neither PIRL nor OBoW has (valeoai/obow
    obow/datasets.py)."""

    def check(self) -> None:
        _check_range("patches.crop_scale", self.crop_scale)
        if self.size + self.jitter > self.canvas:
            raise ValueError(
                f"patches.size + patches.jitter is {self.size + self.jitter}, but the canvas has only "
                f"{self.canvas} pixels: set canvas to at least {self.size + self.jitter}."
            )

    @property
    def step(self) -> int:
        """Pixels from the start of a place to the start of the next."""
        return (self.canvas - self.size - self.jitter) // (GRID - 1)


@dataclass(frozen=True, kw_only=True)
class Augmentation(Settings, name="augmentation"):
    """The distribution of views.

    Probabilities and ranges are Table 9's unless a field names another source.
    """

    crop_scale: tuple[PositiveFraction, PositiveFraction] = (0.08, 1.0)
    """Area of a crop relative to the image (google-deepmind/deepmind-research byol/utils/augmentations.py).
    STL-10 uses .2-1."""
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Width over height of a crop, drawn log-uniformly (byol/utils/augmentations.py)."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    jitter: Fraction = 0.8
    """Probability of colour jitter. Its four parts are applied in random order."""
    brightness: NotNegative = 0.4
    """Strength of the brightness jitter: factors from 1 - .4 to 1 + .4."""
    contrast: NotNegative = 0.4
    """Strength of the contrast jitter: factors from 1 - .4 to 1 + .4."""
    saturation: NotNegative = 0.2
    """Strength of the saturation jitter: factors from 1 - .2 to 1 + .2."""
    hue: Annotated[float, Limits(0, 0.5)] = 0.1
    """Largest hue shift, as a fraction of the colour circle."""
    grey: Fraction = 0.2
    """Probability of a greyscale view."""
    blur: Fraction = 1.0
    """Probability of a Gaussian blur (Table 9). BYOL's T' uses .1."""
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Range of the blur's sigma in pixels of the view, uniform, at every view size. The kernel shrinks with
    the view (byol/utils/augmentations.py; see `blur_radius`)."""
    solarize: Fraction = 0.2
    """Probability of inverting values above one half (Table 9). BYOL's T uses 0."""
    every_second: Augmentation | None = None
    """Distribution of views 1, 3, ... where it differs, as with BYOL's T and T'. None if all K views share
    one distribution (errata, Table 9)."""
    small: SmallCrops | None = identity.added_later(None, "0.2")
    """Size and crop area of the last views in multi-crop; their other settings are unchanged. None if all K
    views have one size."""
    resampling: Literal["bicubic", "bilinear"] = identity.added_later("bicubic", "0.2")
    """Filter that resizes a crop, antialiased in both cases. Bilinear is the default of torchvision's
    RandomResizedCrop (facebookresearch/moco main_moco.py, facebookresearch/simsiam main_simsiam.py,
    facebookresearch/swav src/multicropdataset.py). BYOL, SimCLR, Barlow Twins, VICReg and W-MSE are
    bicubic."""
    colour_first: bool = identity.added_later(False, "0.2")
    """If true, the whole image is jittered and greyed, then cropped (htdt/self-supervised
    datasets/transforms.py). The contrast jitter then uses the mean of the whole image. Views cost more time,
    as images are larger than they are."""

    photometric: Fraction = identity.added_later(0.0, "0.2")
    """Probability of four further colour operations, all of them or none, after the jitter and before the
    greyscale: posterise, sharpness, solarise and auto-contrast (facebookresearch/vissl
    img_pil_random_photometric.py). PIRL has .66. The other `solarize` is independent of it."""
    central: Fraction = identity.added_later(0.0, "0.2")
    """Side of a central square crop relative to the shorter side of the image, rounded to whole pixels. 0 for
    random crops. OBoW's teacher sees 224 pixels of 256 (valeoai/obow obow/datasets.py)."""
    first: Augmentation | None = identity.added_later(None, "0.2")
    """Distribution of view 0 where it differs, as that of OBoW's teacher does. None if it does not."""
    patches: Patches | None = identity.added_later(None, "0.2")
    """Geometry of the last views if they are patches of one crop. Their other settings are unchanged, except
    for the blur. None if no view is a patch."""
    draft: bool = identity.added_later(False, "0.2")
    """If true, a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled decoding), which is
    faster. It must keep, along each axis, at least two pixels of the smallest possible crop for each pixel of
    its view. The pixels of its views change. At 224 px and crops from .08 of the area on, only images of more
    than 13 megapixels are so large."""

    def check(self) -> None:
        for key in ("crop_scale", "crop_ratio", "blur_sigma"):
            _check_range(f"augmentation.{key}", getattr(self, key))
        if self.every_second is not None and self.every_second.every_second is not None:
            raise ValueError(
                "augmentation.every_second has its own every_second, but at most two can alternate."
            )
        if self.first is not None and self.first.every_second is not None:
            raise ValueError("augmentation.first has its own every_second, but it covers only view 0.")
        for key, other in (("every_second", self.every_second), ("first", self.first)):
            if other is not None and other.first is not None:
                raise ValueError(
                    f"augmentation.{key} has its own first, but only augmentation.first covers view 0."
                )
            for inner, title in COVERING.items():
                if other is not None and getattr(other, inner):
                    raise ValueError(
                        f"augmentation.{key} has its own {title}, but augmentation.{inner} covers all views."
                    )

    def least(self, size: int, num_views: int) -> tuple[float, float] | None:
        """Return the size that a JPEG decoded at a fraction keeps, or None if it is decoded whole.

        A crop of the share s of an image's area A and the ratio r has the sides sqrt(A s r) and
        sqrt(A s / r). If none fits, it is the largest central crop with a ratio in range.

        Args:
            size: side of an ordinary view in pixels.

        Returns:
            The square root of the area, and the shorter side, in pixels.
        """
        if not self.draft:
            return None
        area, shorter = 0.0, 0.0
        for view in range(num_views):
            own, kept = self.of_view(view), MARGIN * self.size_of_crop(view, size)
            if own.central:
                shorter = max(shorter, kept / own.central)
                continue
            low, high = own.crop_ratio
            area = max(area, kept / math.sqrt(own.crop_scale[0] * min(low, 1 / high)))
            shorter = max(shorter, kept / min(1, 1 / low, high))
        return area, shorter

    def of_view(self, view: int) -> Augmentation:
        """Return the distribution of view number `view`, counted from 0.

        Patches have the crop area of theirs, and alternate with nothing.
        """
        if self.first is not None and view == 0:
            return self.first
        if self.patches is not None and view >= self.patches.num_whole:
            return replace(self, crop_scale=self.patches.crop_scale, blur=self.patches.blur, central=0.0)
        own = self.every_second if self.every_second is not None and view % 2 else self
        if self.small is None or view < self.small.num_large:
            return own
        return replace(own, crop_scale=self.small.crop_scale, central=0.0)

    def size_of_view(self, view: int, size: int) -> int:
        """Return the side of view number `view` in pixels; an ordinary view has `size`."""
        if self.patches is not None and view >= self.patches.num_whole:
            return self.patches.size
        return size if self.small is None or view < self.small.num_large else self.small.size

    def size_of_crop(self, view: int, size: int) -> int:
        """Return the side to which the crop of view number `view` is resized: that of a patch's canvas."""
        if self.patches is not None and view >= self.patches.num_whole:
            return self.patches.canvas
        return self.size_of_view(view, size)

    def crop_only(self) -> Augmentation:
        """Return the distribution of the same crops without flips and changes of colours."""
        return replace(self, flip=0.0, jitter=0.0, photometric=0.0, grey=0.0, blur=0.0, solarize=0.0)

    def pairs(self) -> Augmentation:
        """Return the distribution for pairs of ordinary views: all of one size, and view 0 as the others."""
        return replace(self, first=None, small=None, patches=None)


def _check_range(where: str, limits: tuple[float, float]) -> None:
    low, high = limits
    if low > high:
        raise ValueError(f"{where} is {limits}: a range (low, high) with low <= high is expected.")


CROP_AND_FLIP = Augmentation(jitter=0.0, grey=0.0, blur=0.0, solarize=0.0)
"""Random resized crop and flip only: the training views of classifiers."""
