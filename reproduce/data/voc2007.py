"""VOC2007: 5 011 trainval and 4 952 test photographs with 20 classes, often several per image.

The source is host.robots.ox.ac.uk/pascal/VOC/voc2007. Layout: `voc.py`. An image has one target for each
class (protocol sheet, 5): 1 if it shows an object of the class, 0 if all such objects are difficult, -1 if
there are none. Reading the annotations of a split takes 1 to 2 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data import voc
from reproduce.data.dataset import Dataset
from reproduce.data.folders import check_files
from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.settings import Resampling
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Files

KEY = "voc"
YEAR = "VOC2007"
LAYOUT = f"{YEAR}/JPEGImages/*.jpg, {YEAR}/Annotations/*.xml and {YEAR}/ImageSets/Main/*.txt"
SOURCE = "`invoke download --dataset voc2007` (0.9 GB), or http://host.robots.ox.ac.uk/pascal/VOC/voc2007"
TRAIN_SPLITS = ("train", "trainval")
"""Splits that classifiers are trained on. Each class needs a positive image in them."""
SPLITS = (*TRAIN_SPLITS, "val", "test")


@dataclass(frozen=True, kw_only=True)
class VOC2007(Dataset, name="voc2007"):
    """VOC2007 at 224 px."""

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

    pretrain_split: str = "trainval"
    """Split for pretraining, 5 011 images."""
    train_split: str = "trainval"
    """Split for training classifiers (facebookresearch/vissl, the VOC07 benchmark of its linear SVMs)."""
    test_split: str = "test"
    """Split for testing, 4 952 images (facebookresearch/vissl, the VOC07 benchmark of its linear SVMs)."""

    splits: ClassVar[tuple[str, ...]] = SPLITS
    title: ClassVar[str] = "VOC2007"
    short: ClassVar[str] = "VOC07"
    published: ClassVar[Mapping[str, int]] = {split: voc.COUNTS[f"2007_{split}"] for split in SPLITS}
    roots: ClassVar[tuple[str, ...]] = (KEY,)
    multi_label = True

    def check_root(self, site: Site) -> None:
        folder = self._folder(site)
        for place in (
            "JPEGImages",
            "Annotations",
            *(f"ImageSets/Main/{split}.txt" for split in (self.train_split, self.test_split)),
        ):
            if not (folder / place).exists():
                raise NotFoundError(f"{folder / place} does not exist. Layout: {LAYOUT}. Get it: {SOURCE}.")
        voc.check_lists({"2007": folder}, [f"2007_{self.train_split}"], [f"2007_{self.test_split}"])

    def load(self, split: str, site: Site) -> Files:
        return read(site.root(KEY, LAYOUT, SOURCE), split, cache_gb=site.cache_gb)

    def count(self, split: str, site: Site) -> int:
        return len(voc.read_ids(voc.list_of(self._folder(site), split)))

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
        return voc.sidecars(self._folder(site), split)

    def _folder(self, site: Site) -> Path:
        return voc.find(site.root(KEY, LAYOUT, SOURCE), YEAR, SOURCE)


def read(root: Path, split: str, *, cache_gb: float = 0.0) -> Files:
    """Read a split of `root`, in the order of its list.

    `root` is the folder VOC2007, or contains it or the VOCdevkit.

    Raises:
        LookupError: the split, a folder or the list does not exist.
        ValueError: an image or its annotation is missing or broken, or a training split has a class without a
            positive image.
    """
    from reproduce.data.images import Files

    if split not in SPLITS:
        raise NotFoundError(unknown("split", split, SPLITS))
    folder = voc.find(root, YEAR, SOURCE)
    path = voc.list_of(folder, split)
    ids = voc.read_ids(path)
    names = [f"{name}.jpg" for name in ids]
    check_files(
        folder / "JPEGImages",
        names,
        path,
        layout=LAYOUT,
        source=SOURCE,
        published=voc.COUNTS[f"2007_{split}"],
    )
    targets = _targets(folder / "Annotations", ids)
    if split in TRAIN_SPLITS:
        _check_positives(targets, path)
    return Files(
        folder / "JPEGImages",
        (name.encode() for name in names),
        [-1] * len(ids),
        voc.CLASSES,
        cache_gb,
        targets,
    )


def _targets(folder: Path, ids: tuple[str, ...]) -> NDArray[np.int8]:
    """Return the targets, (images, classes): 1 present, 0 present only as difficult, -1 absent."""
    import numpy as np

    targets = np.full((len(ids), len(voc.CLASSES)), -1, np.int8)
    for row, name in enumerate(ids):
        path = folder / f"{name}.xml"
        objects = voc.read_annotation(path).objects
        if not objects:
            raise InvalidError(
                f"{path} has no <object> below <annotation>, but every image of VOC2007 shows one. Get it "
                "again."
            )
        for each in objects:
            column = voc.CLASSES.index(each.name)
            targets[row, column] = max(targets[row, column], 0 if each.difficult else 1)
    return targets


def _check_positives(targets: NDArray[np.int8], path: Path) -> None:
    present = (targets == 1).any(axis=0)
    absent = [name for name, found in zip(voc.CLASSES, present, strict=True) if not found]
    if absent:
        raise InvalidError(
            f"{path} needs a positive image of every class, but has none of {', '.join(absent)}."
        )


def download(site: Site) -> Path:
    """Fetch trainval and test into the root, with their checksums verified, unless they are there already.

    Raises:
        LookupError: the root is not set.
        ValueError: the root has another, incomplete copy.
    """
    root = site.data[KEY] if KEY in site.data else site.root(KEY, LAYOUT, SOURCE)
    splits = ("2007_trainval", "2007_test")
    return voc.fetch(root, splits, lambda split: len(read(root, split.removeprefix("2007_"))))
