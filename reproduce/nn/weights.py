"""Settings of an encoder that was trained elsewhere; `weight_files.py` fetches and reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproduce.data.dataset import check_sizes
from reproduce.identity import name_only
from reproduce.settings import Channels, Deviations, Pixels, Settings, field_types


@dataclass(frozen=True, kw_only=True)
class Weights(Settings, name="weights"):
    """An encoder that was trained elsewhere: a released checkpoint, or a file that the user provides."""

    backbone: str = "resnet50"
    """Backbone, a function of `reproduce/nn/backbones.py`."""
    url: str = ""
    """Address of the release. Empty for a file that is identified by its content alone."""
    sha256: str = ""
    """SHA-256 of the file. If empty, the hash of the first download is recorded and enforced afterwards."""
    prefix: str = ""
    """Prefix of the names of the backbone's tensors, or some of its parts. If empty, the prefix under which
    the backbone fits; if `.`, none."""
    size: Pixels = 224
    """Side in pixels of the images that it was trained on. Evaluations use images of this size."""
    resize: Pixels = 256
    """Shorter side of a test image before its centre crop, in pixels."""
    canvas: Pixels = 448
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: Channels = (0.485, 0.456, 0.406)
    """Mean of the RGB channels in its normalisation, for values from 0 to 1 (ImageNet's)."""
    std: Deviations = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels in its normalisation, for values from 0 to 1 (ImageNet's)."""

    file: str = name_only()
    """Name of the user's file, for titles. Empty for a release."""

    def check(self) -> None:
        if not self.url and not self.sha256:
            raise ValueError("weights need the url of a release or the sha256 of a file, but both are empty.")
        check_sizes(self.name, self.size, self.resize, self.canvas)

    @property
    def title(self) -> str:
        """Name in reports: the last two parts of the address, or the file's name and its SHA-256's beginning.

        Releases share names such as `checkpoint_0099.pth.tar`, hence two parts. A file with several networks
        has a title for each.
        """
        place = f" ({self.prefix})" if self.prefix else ""
        return "/".join(self.url.split("/")[-2:]) or f"{self.file or 'file'} {self.sha256[:12]}{place}"


GEOMETRY = ("size", "resize", "canvas", "mean", "std")
"""Settings of `Weights` that describe its images. Every data set of whole images has them; detection data
sets have the last two."""


def geometry(expected: Settings, dataset: Settings) -> dict[str, Any]:
    """Return the settings GEOMETRY that `dataset` has, with the values of `expected`.

    Args:
        expected: weights, or another data set.
    """
    return {key: getattr(expected, key) for key in GEOMETRY if key in field_types(type(dataset))}
