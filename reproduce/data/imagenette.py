"""Imagenette: 9 469 training and 3 925 validation photographs of 10 easily distinguished ImageNet classes.

It stands in for ImageNet-100 where a run must take minutes (github.com/fastai/imagenette). Every release
works: `train/<wnid>/` and `val/<wnid>/` with images in any format and of 96 px or more. The digest that a run
records shows which release it used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data import lists
from reproduce.data.dataset import Dataset
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Files

KEY = "imagenette"
LAYOUT = "train/<wnid>/* and val/<wnid>/*"
SOURCE = "`invoke download --dataset imagenette` (99 MB), or https://github.com/fastai/imagenette"
RELEASE = "imagenette2-160"
"""Folder that torchvision unpacks. Its images have shorter sides of 160 px, enough for the canvas."""


@dataclass(frozen=True, kw_only=True)
class Imagenette(Dataset, name="imagenette"):
    """Imagenette at 64 px."""

    size: int = 64
    """Side of a view and of a test crop. Choice: STL-10's (htdt/self-supervised datasets/stl10.py), so that a
    run takes minutes."""
    resize: int = 70
    """Shorter side of a test image. Choice: STL-10's (htdt/self-supervised datasets/stl10.py)."""
    canvas: int = 96
    """Side of the canvas. Choice: STL-10's image size, 1.5 x `size`; the whole set takes 0.4 GB of memory."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels: ImageNet's (pytorch/vision references/classification/presets.py)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels: ImageNet's (pytorch/vision
    references/classification/presets.py)."""

    title: ClassVar[str] = "Imagenette"
    published: ClassVar[Mapping[str, int]] = {"train": 9_469, "val": 3_925}

    def check_root(self, site: Site) -> None:
        unpacked = f"{RELEASE}/" if (site.root(KEY, LAYOUT, SOURCE) / RELEASE / "train").is_dir() else ""
        site.root(KEY, LAYOUT, SOURCE, holds=(f"{unpacked}train", f"{unpacked}val"))

    def load(self, split: str, site: Site) -> Files:
        from reproduce.data import imagefolder

        root = site.root(KEY, LAYOUT, SOURCE)
        if (root / RELEASE).is_dir() and not (root / "train").is_dir():
            root = root / RELEASE
        return imagefolder.load(root, split, num_classes=10, cache_gb=site.cache_gb)

    def check_subset(self, name: str, site: Site, *, fetch: bool = True) -> None:
        lists.of_imagenet(name, site, fetch=fetch)

    def labelled_subset(self, name: str, site: Site) -> NDArray[np.int64]:
        """Return the indices of the images of ImageNet's list that are in this train split, (n,), ascending.

        A release contains only some images of its classes and puts some of them into `val`. Images of `val`
        are never used.
        """
        path = lists.of_imagenet(name, site)
        return lists.indices_there(self.load(self.train_split, site), path)


def download(site: Site) -> Path:
    """Fetch the 160 px release into the root, with its checksum verified, unless it is there already.

    Raises:
        LookupError: the root is not set.
    """
    from torchvision import datasets

    root = site.data[KEY] if KEY in site.data else site.root(KEY, LAYOUT, SOURCE)
    root.mkdir(parents=True, exist_ok=True)
    datasets.Imagenette(root, size="160px", download=True)
    return root
