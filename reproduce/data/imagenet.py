"""ImageNet (ILSVRC 2012): 1 281 167 training and 50 000 validation photographs of 1000 classes.

The images are not freely redistributable: a download needs an account at image-net.org. Layout:
`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, with the validation images sorted into class folders, as
`torchvision.datasets.ImageNet` leaves them. Scanning the folders takes seconds, or longer on a network file
system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data import lists
from reproduce.data.dataset import Dataset
from reproduce.settings import Resampling
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Files


@dataclass(frozen=True, kw_only=True)
class ImageNet(Dataset, name="imagenet"):
    """ImageNet at 224 px."""

    size: int = 224
    """Side of a view and of a test crop (google-deepmind/deepmind-research byol/utils/dataset.py)."""
    resize: int = 256
    """Shorter side of a test image, as in the protocols of the paper's baselines (facebookresearch/moco
    main_lincls.py)."""
    test_resampling: Resampling = "bilinear"
    """Filter of that resize: torchvision's default, as in main_lincls.py. BYOL's own code is bicubic
    (google-deepmind/deepmind-research byol/utils/dataset.py)."""
    canvas: int = 448
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels (pytorch/vision references/classification/presets.py)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels (pytorch/vision references/classification/presets.py)."""

    title: ClassVar[str] = "ImageNet"
    short: ClassVar[str] = "IN1k"
    published: ClassVar[Mapping[str, int]] = {"train": 1_281_167, "val": 50_000}

    def check_root(self, site: Site) -> None:
        self._root(site, holds=("train", "val"))

    def load(self, split: str, site: Site) -> Files:
        from reproduce.data import imagefolder

        return imagefolder.load(self._root(site), split, num_classes=1000, cache_gb=site.cache_gb)

    def check_subset(self, name: str, site: Site, *, fetch: bool = True) -> None:
        lists.of_imagenet(name, site, fetch=fetch)

    def labelled_subset(self, name: str, site: Site) -> NDArray[np.int64]:
        path = lists.of_imagenet(name, site)
        return lists.indices(self.load(self.train_split, site), path)

    def _root(self, site: Site, holds: tuple[str, ...] = ()) -> Path:
        layout, source = (
            "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG",
            "https://image-net.org/download-images (ILSVRC 2012)",
        )
        return site.root("imagenet", layout, source, holds)
