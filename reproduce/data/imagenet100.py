"""ImageNet-100: 126 689 training and 5 000 validation photographs, ImageNet's images of 100 classes.

The classes are those of HobbitLong/CMC `imagenet100.txt`; htdt/self-supervised (W-MSE),
ssnl/moco_align_uniform and solo-learn use the same ones. The data set needs the ImageNet root, and the list
there or in a separate folder (`imagenet100_classes`). No image is copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data import lists
from reproduce.data.dataset import Dataset
from reproduce.messages import InvalidError
from reproduce.settings import Resampling
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.data.images import Images

LIST = "imagenet100.txt"
WNID = re.compile(r"\w+", re.ASCII)
"""Names of classes; ImageNet's are n and eight digits."""
SOURCE = "https://raw.githubusercontent.com/HobbitLong/CMC/master/imagenet100.txt"


@dataclass(frozen=True, kw_only=True)
class ImageNet100(Dataset, name="imagenet100"):
    """ImageNet-100 at 224 px."""

    class_list_sha256: str = "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"
    """SHA-256 of `imagenet100.txt` (HobbitLong/CMC)."""
    size: int = 224
    """Side of a view and of a test crop (htdt/self-supervised datasets/imagenet.py)."""
    resize: int = 256
    """Shorter side of a test image (htdt/self-supervised README.md)."""
    test_resampling: Resampling = "bilinear"
    """Filter of that resize: torchvision's default, which the protocol names for it (htdt/self-supervised
    README.md)."""
    canvas: int = 448
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels (htdt/self-supervised datasets/imagenet.py)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels (htdt/self-supervised datasets/imagenet.py)."""

    title: ClassVar[str] = "ImageNet-100"
    short: ClassVar[str] = "IN100"
    published: ClassVar[Mapping[str, int]] = {"train": 126_689, "val": 5_000}
    roots: ClassVar[tuple[str, ...]] = ("imagenet", "imagenet100_classes")

    def check_root(self, site: Site) -> None:
        self._root(site, holds=("train", "val"))
        self._classes(site)

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import imagefolder

        return imagefolder.load(self._root(site), split, classes=self._classes(site), cache_gb=site.cache_gb)

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
        return (self._list(site),)

    def _root(self, site: Site, holds: tuple[str, ...] = ()) -> Path:
        layout, source = (
            "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG",
            "https://image-net.org/download-images (ILSVRC 2012)",
        )
        return site.root("imagenet", layout, source, holds)

    def _classes(self, site: Site) -> tuple[str, ...]:
        return read_classes(self._list(site), self.class_list_sha256)

    def _list(self, site: Site) -> Path:
        if "imagenet100_classes" in site.data:
            return site.root("imagenet100_classes", LIST, SOURCE) / LIST
        return self._root(site) / LIST


def read_classes(path: Path, sha256: str) -> tuple[str, ...]:
    """Return the classes (wnids) of a list with one class per line, sorted.

    Raises:
        LookupError: the file does not exist.
        ValueError: its bytes do not match `sha256`, a line is not the name of a folder, or a class is listed
            twice.
    """
    classes: dict[str, int] = {}
    for number, line in lists.numbered(lists.verified(path, sha256, SOURCE).splitlines()):
        name = line.decode(errors="replace")
        if not WNID.fullmatch(name):
            raise InvalidError(
                f"{path}, line {number}: '{name:.80}' is not the name of a class, such as n02869837."
            )
        if name in classes:
            raise InvalidError(f"{path}, line {number}: {name} is already on line {classes[name]}.")
        classes[name] = number
    return tuple(sorted(classes))
