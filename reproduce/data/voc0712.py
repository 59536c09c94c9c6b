"""VOC07+12: photographs of 2007 and 2012 with boxes, 16 551 to train on and 4 952 to measure on
(host.robots.ox.ac.uk/pascal/VOC).

Layout: `voc.py`, both years below the root `voc`. As in Detectron2 (detectron2/data/datasets/pascal_voc.py),
a box that is written as pixels counted from 1, both ends inside, begins one pixel earlier here, so that xmin
= 1 and xmax = width cover the image; difficult objects are trained on; boxes that reach outside the image
stay as annotated. Reading the 16 551 annotations takes 5 to 6 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from reproduce.data import detection, voc
from reproduce.data.detection import Annotated, DetectionDataset, Instance, Picture
from reproduce.data.folders import check_files
from reproduce.messages import InvalidError, NotFoundError, UserError, unknown
from reproduce.site import Site

KEY = "voc"
LAYOUT = "VOC2007/ and VOC2012/, each with JPEGImages/*.jpg, Annotations/*.xml and ImageSets/Main/*.txt"
SOURCE = "`invoke download --dataset voc0712` (2.8 GB), or http://host.robots.ox.ac.uk/pascal/VOC"
SPLITS = ("2007_train", "2007_val", "2007_trainval", "2007_test", "2012_train", "2012_val", "2012_trainval")
"""The annotations of 2012's test images were never released. Several are joined by `+`."""
LABELS = {name: label for label, name in enumerate(voc.CLASSES)}


@dataclass(frozen=True, kw_only=True)
class VOC0712(DetectionDataset, name="voc0712"):
    """VOC2007 and VOC2012 for detection."""

    train_split: str = "2007_trainval+2012_trainval"
    """5 011 and 11 540 images (facebookresearch/moco detection/configs/pascal_voc_R_50_C4_24k.yaml)."""
    test_split: str = "2007_test"
    """4 952 images (the same file)."""

    splits: ClassVar[tuple[str, ...]] = SPLITS
    title: ClassVar[str] = "VOC07+12"
    classes: ClassVar[tuple[str, ...]] = voc.CLASSES
    benchmark: ClassVar[Literal["voc", "coco"]] = "voc"

    def check_root(self, site: Site) -> None:
        root = site.root(KEY, LAYOUT, SOURCE)
        for year, name in _parts(f"{self.train_split}+{self.test_split}"):
            folder = _folder(root, year)
            for place in ("JPEGImages", "Annotations", f"ImageSets/Main/{name}.txt"):
                if not (folder / place).exists():
                    raise NotFoundError(
                        f"{folder / place} does not exist. Layout: {LAYOUT}. Get it: {SOURCE}."
                    )

    def load(self, split: str, site: Site) -> Annotated:
        return read(site.root(KEY, LAYOUT, SOURCE), split)


def read(root: Path, split: str) -> Annotated:
    """The images of a split of `root`, which holds VOC2007 and VOC2012 or the VOCdevkit with both; in the
    order of the lists.

    Raises:
        LookupError: there is no such split, or a folder or a list is not there.
        ValueError: an image or its annotation is missing or broken, or is in two parts of the split.
    """
    pictures: dict[int | str, Picture] = {}
    for year, name in _parts(split):
        folder = _folder(root, year)
        for picture in _pictures(folder, name):
            if picture.id in pictures:
                raise InvalidError(
                    f"{folder}: the image {picture.id} of {year}_{name} is in the split {split} already."
                )
            pictures[picture.id] = picture
    found = tuple(pictures.values())
    return Annotated(found, voc.CLASSES, tuple(range(len(voc.CLASSES))), folder, detection.digest(found))


def _parts(split: str) -> list[tuple[str, str]]:
    """The years and their splits that a split is made of."""
    parts = split.split("+")
    for part in parts:
        if part not in SPLITS:
            raise NotFoundError(unknown("split", part, SPLITS) + " Several are joined by '+'.")
    return [(part[:4], part[5:]) for part in parts]


def _folder(root: Path, year: str) -> Path:
    return voc.find(root, f"VOC{year}", SOURCE, itself=False)


def _pictures(folder: Path, split: str) -> Iterator[Picture]:
    """The images of a year's split with their objects."""
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    ids = voc.read_ids(path)
    check_files(folder / "JPEGImages", [f"{name}.jpg" for name in ids], path, layout=LAYOUT, source=SOURCE)
    for name in ids:
        annotated = folder / "Annotations" / f"{name}.xml"
        width, height, objects = voc.read_annotation(annotated)
        if min(width, height) < 1:
            raise InvalidError(
                f"{annotated}: the size of the image is {width} x {height}, which no image has. Get it again."
            )
        yield Picture(
            folder / "JPEGImages" / f"{name}.jpg", name, width, height, tuple(map(_instance, objects))
        )


def _instance(each: voc.Object) -> Instance:
    xmin, ymin, xmax, ymax = each.box
    return Instance(LABELS[each.name], (xmin - 1, ymin - 1, xmax, ymax), difficult=each.difficult)


def download(site: Site) -> Path:
    """Fetches what is missing of both years into the root of the site, checksums verified; does nothing where
    all is there already.

    Raises:
        LookupError: the root is not set.
    """
    from torchvision import datasets

    root = site.data[KEY] if KEY in site.data else site.root(KEY, LAYOUT, SOURCE)
    root.mkdir(parents=True, exist_ok=True)
    for year, name in _parts("2007_trainval+2007_test+2012_trainval"):
        try:
            read(root, f"{year}_{name}")
        except UserError:
            datasets.VOCDetection(root, year=year, image_set=name, download=True)
    return root
