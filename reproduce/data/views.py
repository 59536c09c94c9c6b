"""K augmented views of a batch (paper, section 7.3 and Table 9)."""

from __future__ import annotations

from dataclasses import dataclass

from reproduce.spec import Settings


@dataclass(frozen=True, kw_only=True)
class Augmentation(Settings, name="augmentation"):
    """The distribution of views. Probabilities and ranges are Table 9's unless said otherwise."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of a crop relative to the image's (google-deepmind/deepmind-research byol/utils/augmentations.py; STL-10: .2-1)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop, log-uniform (the same file)."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of colour jittering; its four parts are applied in random order."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """Fraction of the colour circle."""
    grey: float = 0.2
    """Probability of dropping the colour."""
    blur: float = 1.0
    """Probability of a Gaussian blur (Table 9; BYOL's T' has .1)."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """In pixels, uniform (byol/utils/augmentations.py)."""
    solarize: float = 0.2
    """Probability of inverting values above one half (Table 9; BYOL's T has 0)."""
    every_second: Augmentation | None = None
    """The distribution of views 1, 3, ... where it is another one, as in BYOL's T and T'; None: all K views alike (errata, Table 9)."""
