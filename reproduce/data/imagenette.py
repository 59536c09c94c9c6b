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
from reproduce.messages import InvalidError, UserError
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Files

KEY = "imagenette"
LAYOUT = "train/<wnid>/* and val/<wnid>/*"
SOURCE = "`invoke download --dataset imagenette` (99 MB), or https://github.com/fastai/imagenette"
RELEASE = "imagenette2-160"
"""Folder in the archive. Its images have shorter sides of 160 px; decoded, they take 1.4 GB of memory."""
URL = f"https://s3.amazonaws.com/fast-ai-imageclas/{RELEASE}.tgz"
MD5 = "e793b78cc4c9e9a4ccc0c1155377a412"
"""MD5 of the archive (torchvision/datasets/imagenette.py)."""


@dataclass(frozen=True, kw_only=True)
class Imagenette(Dataset, name="imagenette"):
    """Imagenette at 64 px."""

    size: int = 64
    """Side of a view and of a test crop. Choice: STL-10's (htdt/self-supervised datasets/stl10.py), so that a
    run takes minutes."""
    resize: int = 70
    """Shorter side of a test image. Choice: STL-10's (htdt/self-supervised datasets/stl10.py)."""
    canvas: int = 96
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels: ImageNet's (pytorch/vision references/classification/presets.py)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels: ImageNet's (pytorch/vision
    references/classification/presets.py)."""

    title: ClassVar[str] = "Imagenette"
    short: ClassVar[str] = "INette"
    published: ClassVar[Mapping[str, int]] = {"train": 9_469, "val": 3_925}
    typical: ClassVar[tuple[int, int]] = (213, 160)  # those of RELEASE

    def check_root(self, site: Site) -> None:
        root = site.root(KEY, LAYOUT, SOURCE)
        within = _release(root).relative_to(root)
        site.root(KEY, LAYOUT, SOURCE, holds=(str(within / "train"), str(within / "val")))

    def load(self, split: str, site: Site) -> Files:
        from reproduce.data import imagefolder

        root = _release(site.root(KEY, LAYOUT, SOURCE))
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


def _release(root: Path) -> Path:
    """Return the folder with `train` and `val`: the root, or the folder that the archive has in it."""
    within = root / RELEASE
    return within if (within / "train").is_dir() and not (root / "train").is_dir() else root


def download(site: Site) -> Path:
    """Fetch the 160 px release into the root, with its checksum verified, unless it is there already.

    Raises:
        LookupError: the root is not set.
        ValueError: the root has another, incomplete copy.
    """
    root = site.data[KEY] if KEY in site.data else site.root(KEY, LAYOUT, SOURCE)
    return fetch(root, URL, MD5, Imagenette.published)


def fetch(root: Path, url: str, md5: str, counts: Mapping[str, int]) -> Path:
    """Fetch and unpack a release into `root`, unless `root` has `counts` images of each split.

    The archive is fetched once. It is unpacked again over what an interrupted unpacking left, which
    torchvision's own class would take for complete.

    Raises:
        ValueError: the root has another, incomplete copy.
    """
    from torchvision.datasets import utils

    if not _is_complete(root, counts):
        root.mkdir(parents=True, exist_ok=True)
        utils.download_and_extract_archive(url, root, md5=md5)
        if not _is_complete(root, counts):
            raise InvalidError(
                f"{_release(root)} is not complete, though {RELEASE} was unpacked into {root}: move `train` "
                "and `val` elsewhere, or remove other files from them."
            )
    return root


def _is_complete(root: Path, counts: Mapping[str, int]) -> bool:
    from reproduce.data import imagefolder

    try:
        return all(len(imagefolder.load(_release(root), split)) == number for split, number in counts.items())
    except UserError:
        return False
