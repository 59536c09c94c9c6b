"""Places205: 2 448 873 training and 20 500 validation photographs of 205 kinds of places.

The images are not freely redistributable: places.csail.mit.edu requires a form to be filled in first. Layout
of the release at 256 px: `trainvalsplit_places205/{train,val}_places205.csv` with lines
`a/abbey/gsun_0003586c3eedd97457b2d729ebfe18b5.jpg 0`, and the images under
`data/vision/torralba/deeplearning/images256/` (open-mmlab/mmselfsup
configs/benchmarks/classification/_base_/datasets/places205.py). Reading the list of train takes 5 s and 0.25
GB.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data import lists
from reproduce.data.dataset import Dataset
from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.settings import Resampling
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Files, Names

KEY = "places205"
LISTS = "trainvalsplit_places205"
IMAGES = ("data/vision/torralba/deeplearning/images256", "images256")
"""Folders of the images: as the archive unpacks them, or only the last part of that path."""
LAYOUT = f"{LISTS}/train_places205.csv, {LISTS}/val_places205.csv and {IMAGES[0]}/"
SOURCE = (
    "http://places.csail.mit.edu/downloadData.html (Places205, images of 256 px and the train and val lists)"
)
SPLITS = ("train", "val")
NUM_CLASSES = 205
MAX_DIGITS = 30
"""Digits of a label from which a line counts as something else; Python refuses numbers of thousands."""


@dataclass(frozen=True, kw_only=True)
class Places205(Dataset, name="places205"):
    """Places205 at 224 px."""

    size: int = 224
    """Side of a view and of a test crop (facebookresearch/vissl, the geometry of ImageNet)."""
    resize: int = 256
    """Shorter side of a test image (facebookresearch/vissl, the geometry of ImageNet)."""
    test_resampling: Resampling = "bilinear"
    """Filter of that resize: torchvision's default (facebookresearch/vissl)."""
    canvas: int = 448
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels: ImageNet's, which the encoder was trained with."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels: ImageNet's, which the encoder was trained with."""

    title: ClassVar[str] = "Places205"
    short: ClassVar[str] = "Places"
    published: ClassVar[Mapping[str, int]] = {"train": 2_448_873, "val": 20_500}
    typical: ClassVar[tuple[int, int]] = (256, 256)  # those of the release

    def check_root(self, site: Site) -> None:
        _images_folder(site.root(KEY, LAYOUT, SOURCE))
        site.root(KEY, LAYOUT, SOURCE, holds=[f"{LISTS}/{split}_places205.csv" for split in SPLITS])

    def load(self, split: str, site: Site) -> Files:
        root = site.root(KEY, LAYOUT, SOURCE)
        return read(root, split, num_images=self.published.get(split), cache_gb=site.cache_gb)

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
        return (site.root(KEY, LAYOUT, SOURCE) / LISTS / f"{split}_places205.csv",)


def read(
    root: Path,
    split: str,
    *,
    num_classes: int = NUM_CLASSES,
    num_images: int | None = None,
    cache_gb: float = 0.0,
) -> Files:
    """Read a split of `root`, in the order of its list.

    It does not check that each file exists, which would take minutes.

    Args:
        num_classes: expected number of classes.
        num_images: expected number of images. None for any.
        cache_gb: see `Images`.

    Raises:
        LookupError: the split, the folder of images or the list does not exist.
        ValueError: a line is not `path label`, an image is listed twice, a folder has two labels, a label is
            not from 0 to num_classes - 1, a class has no images, or images are missing.
    """
    from reproduce.data.images import Files

    if split not in SPLITS:
        raise NotFoundError(unknown("split", split, SPLITS))
    folder, path = _images_folder(root), root / LISTS / f"{split}_places205.csv"
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist. Layout: {LAYOUT}. Get it: {SOURCE}.")
    names, labels = _read_list(path, num_classes)
    if num_images not in (None, len(names)):
        raise InvalidError(
            f"{path} names {len(names)} images, but Places205's has {num_images}: it is not complete, or "
            f"another list. Get it: {SOURCE}."
        )
    return Files(folder, names, labels, _classes(names, labels, num_classes, path), cache_gb)


def _images_folder(root: Path) -> Path:
    for place in IMAGES:
        if (root / place).is_dir():
            return root / place
    raise NotFoundError(f"{root} has no folder {' or '.join(IMAGES)}. Layout: {LAYOUT}. Get it: {SOURCE}.")


def _read_list(path: Path, num_classes: int) -> tuple[Names, NDArray[np.int64]]:
    """Read the names and labels, (n,), of a list.

    It reads line by line, because the whole list as Python strings would take a gigabyte.
    """
    import numpy as np

    from reproduce.data.images import Names

    names, labels = Names(), array("q")
    label_of: dict[bytes, int] = {}
    with path.open("rb") as file:
        for number, line in lists.numbered(file):
            fields = line.split()
            if not _is_labelled(fields):
                raise InvalidError(
                    f"{path}, line {number}: '{_shown(line)}' is not a path and a label, "
                    "such as 'a/abbey/x.jpg 0'."
                )
            name, label = fields[0], int(fields[1])
            if label >= num_classes:
                raise InvalidError(
                    f"{path}, line {number}: the label of '{_shown(line)}' is not in 0 to {num_classes - 1}."
                )
            folder = name.rpartition(b"/")[0]
            if label_of.setdefault(folder, label) != label:
                raise InvalidError(
                    f"{path}, line {number}: '{_shown(line)}' has another label than the images of "
                    f"{_shown(folder)} before it, {label_of[folder]}."
                )
            names.append(name)
            labels.append(label)
    if repeated := names.repeated():
        raise InvalidError(f"{path} names {_shown(names[repeated[0]])} twice.")
    return names, np.array(labels, np.int64)


def _is_labelled(fields: list[bytes]) -> bool:
    """Return True if the fields of a line are a path below the folder of images and a number."""
    if len(fields) != 2:
        return False
    parts = fields[0].split(b"/")
    inside = len(parts) > 1 and not {b"", b".", b".."} & set(parts)
    return inside and fields[1].isdigit() and len(fields[1]) < MAX_DIGITS


def _classes(names: Names, labels: NDArray[np.int64], num_classes: int, path: Path) -> tuple[str, ...]:
    """Return the names of the classes: the folders of their first images, such as `a/abbey`."""
    import numpy as np

    present, first = np.unique(labels, return_index=True)
    if len(present) < num_classes:
        absent = min(set(range(num_classes)) - set(present.tolist()))
        raise InvalidError(
            f"{path} has no image of class {absent}: it has {len(present)} of the {num_classes} classes."
        )
    return tuple(names[index].rpartition(b"/")[0].decode(errors="replace") for index in first)


def _shown(line: bytes) -> str:
    return f"{line.strip().decode(errors='replace'):.80}"
