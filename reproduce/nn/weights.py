"""Settings of an encoder that was trained elsewhere; `weight_files.py` fetches and reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproduce.settings import Settings, field_types


@dataclass(frozen=True, kw_only=True)
class Weights(Settings, name="weights"):
    """An encoder that was trained elsewhere: a released checkpoint, or a file of the user's."""

    backbone: str = "resnet50"
    """A function of `reproduce/nn/backbones.py`."""
    url: str = ""
    """Where it is released; empty: a file that is known by its content alone."""
    sha256: str = ""
    """Of the file; empty: none is published, the one of the first download is recorded and holds from then
    on."""
    prefix: str = ""
    """What the names of the backbone's tensors begin with; empty: whatever it is under which the backbone
    fits."""
    size: int = 224
    """Side of the images that it was trained on, in pixels; an evaluation shows it images of this size."""
    resize: int = 256
    """Shorter side of a test image before its centre crop, in pixels."""
    canvas: int = 448
    """Side of the square to which an image is decoded before an augmented view is cropped from it, in
    pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """What it takes an image's channels to be normalised with, for values from 0 to 1 (ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """The same."""

    def check(self) -> None:
        if not self.url and not self.sha256:
            raise ValueError("weights take the url of a release or the sha256 of a file: neither is given.")

    @property
    def title(self) -> str:
        """As printed: the last two parts of the address, as releases share names such as
        `checkpoint_0099.pth.tar`, or a file's SHA-256."""
        return "/".join(self.url.split("/")[-2:]) or f"file {self.sha256[:12]}"


GEOMETRY = ("size", "resize", "canvas", "mean", "std")
"""The settings of `Weights` that say which images it expects; every data set of whole images has them, one of
detection the last two."""


def geometry(expected: Settings, dataset: Settings) -> dict[str, Any]:
    """Those of the settings GEOMETRY that `dataset` has, with their values in `expected`: weights, or another
    data set."""
    return {key: getattr(expected, key) for key in GEOMETRY if key in field_types(type(dataset))}
