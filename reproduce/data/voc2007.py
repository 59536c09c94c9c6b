"""VOC2007: 5 011 trainval and 4 952 test photographs with 20 classes, several of them an image
(host.robots.ox.ac.uk/pascal/VOC/voc2007).

Layout: `voc.py`. An image has one target for each class (protocol sheet, 5): 1 where an object of the class
is there, 0 where all of them are difficult, -1 where there is none. Reading the annotations of a split takes
1 to 2 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data import voc
from reproduce.data.dataset import Dataset
from reproduce.data.folders import check_files
from reproduce.messages import InvalidError, NotFoundError, UserError, unknown
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
"""Where a classifier learns: each class needs a positive image."""
SPLITS = (*TRAIN_SPLITS, "val", "test")


@dataclass(frozen=True, kw_only=True)
class VOC2007(Dataset, name="voc2007"):
    """VOC2007 at 224 px."""

    size: int = 224
    """facebookresearch/vissl, the geometry of ImageNet."""
    resize: int = 256
    """The same."""
    canvas: int = 448
    """Choice: twice `size`, as for ImageNet."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """ImageNet's: an encoder sees what it was trained with."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """The same."""

    pretrain_split: str = "trainval"
    """5 011 images."""
    train_split: str = "trainval"
    """The same (facebookresearch/vissl, the VOC07 benchmark of its linear SVMs)."""
    test_split: str = "test"
    """4 952 images (the same)."""

    splits: ClassVar[tuple[str, ...]] = SPLITS
    title: ClassVar[str] = "VOC2007"
    published: ClassVar[Mapping[str, int]] = {"trainval": 5_011, "test": 4_952}

    def check_root(self, site: Site) -> None:
        folder = voc.find(site.root(KEY, LAYOUT, SOURCE), YEAR, SOURCE)
        for place in (
            "JPEGImages",
            "Annotations",
            *(f"ImageSets/Main/{split}.txt" for split in (self.train_split, self.test_split)),
        ):
            if not (folder / place).exists():
                raise NotFoundError(f"{folder / place} does not exist. Layout: {LAYOUT}. Get it: {SOURCE}.")

    def load(self, split: str, site: Site) -> Files:
        return read(site.root(KEY, LAYOUT, SOURCE), split, cache_gb=site.cache_gb)


def read(root: Path, split: str, *, cache_gb: float = 0.0) -> Files:
    """The images of a split of `root`, which is the folder VOC2007, or holds it, or holds the VOCdevkit; in
    the order of the list.

    Raises:
        LookupError: there is no such split, or a folder or the list is not there.
        ValueError: an image or its annotation is missing or broken, or a class has no positive image to learn
            from.
    """
    from reproduce.data.images import Files

    if split not in SPLITS:
        raise NotFoundError(unknown("split", split, SPLITS))
    folder = voc.find(root, YEAR, SOURCE)
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    ids = voc.read_ids(path)
    names = [f"{name}.jpg" for name in ids]
    check_files(folder / "JPEGImages", names, path, layout=LAYOUT, source=SOURCE)
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
    """1 the class is there, 0 only as difficult, -1 it is not; (images, classes)."""
    import numpy as np

    targets = np.full((len(ids), len(voc.CLASSES)), -1, np.int8)
    for row, name in enumerate(ids):
        for each in voc.read_annotation(folder / f"{name}.xml").objects:
            column = voc.CLASSES.index(each.name)
            targets[row, column] = max(targets[row, column], 0 if each.difficult else 1)
    return targets


def _check_positives(targets: NDArray[np.int8], path: Path) -> None:
    bare = [name for name, there in zip(voc.CLASSES, (targets == 1).any(axis=0), strict=True) if not there]
    if bare:
        raise InvalidError(
            f"{path} names no positive image of {', '.join(bare)}: each class needs one to learn from."
        )


def download(site: Site) -> Path:
    """Fetches trainval and test into the root of the site, checksums verified; does nothing where they are
    there already.

    Raises:
        LookupError: the root is not set.
    """
    from torchvision import datasets

    root = site.data[KEY] if KEY in site.data else site.root(KEY, LAYOUT, SOURCE)
    root.mkdir(parents=True, exist_ok=True)
    for split in ("trainval", "test"):
        try:
            read(root, split)
        except UserError:
            datasets.VOCDetection(root, year="2007", image_set=split, download=True)
    return root
