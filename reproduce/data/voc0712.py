"""VOC07+12: photographs of 2007 and 2012 with boxes, 16 551 for training and 4 952 for testing.

The source is host.robots.ox.ac.uk/pascal/VOC. Layout: `voc.py`, with both years below the root `voc`. As in
Detectron2 (detectron2/data/datasets/pascal_voc.py):

- The files contain boxes in pixels that count from 1, both ends inclusive. Boxes here start one pixel
  earlier, so that xmin = 1 and xmax = width cover the image.
- Difficult objects are trained on.
- Boxes that reach outside the image stay as annotated.

Reading the 16 551 annotations takes 5 to 6 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from reproduce.data import detection, voc
from reproduce.data.detection import Annotated, DetectionDataset, Instance, Picture
from reproduce.data.folders import check_files
from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.site import Site

KEY = "voc"
LAYOUT = "VOC2007/ and VOC2012/, each with JPEGImages/*.jpg, Annotations/*.xml and ImageSets/Main/*.txt"
SOURCE = "`invoke download --dataset voc0712` (2.8 GB), or http://host.robots.ox.ac.uk/pascal/VOC"
SPLITS = tuple(voc.COUNTS)
"""Names of the splits; several can be joined with `+`."""
LABELS = {name: label for label, name in enumerate(voc.CLASSES)}


@dataclass(frozen=True, kw_only=True)
class VOC0712(DetectionDataset, name="voc0712"):
    """VOC2007 and VOC2012 for detection."""

    train_split: str = "2007_trainval+2012_trainval"
    """Training split, 5 011 and 11 540 images (facebookresearch/moco
    detection/configs/pascal_voc_R_50_C4_24k.yaml)."""
    test_split: str = "2007_test"
    """Test split, 4 952 images (facebookresearch/moco detection/configs/pascal_voc_R_50_C4_24k.yaml)."""

    splits: ClassVar[tuple[str, ...]] = SPLITS
    title: ClassVar[str] = "VOC07+12"
    short: ClassVar[str] = "VOC0712"
    classes: ClassVar[tuple[str, ...]] = voc.CLASSES
    benchmark: ClassVar[Literal["voc", "coco"]] = "voc"
    published: ClassVar[Mapping[str, int]] = voc.COUNTS
    roots: ClassVar[tuple[str, ...]] = (KEY,)

    def check_root(self, site: Site) -> None:
        root = site.root(KEY, LAYOUT, SOURCE)
        for year, name in _parts(f"{self.train_split}+{self.test_split}"):
            folder = _folder(root, year)
            for place in ("JPEGImages", "Annotations", f"ImageSets/Main/{name}.txt"):
                if not (folder / place).exists():
                    raise NotFoundError(
                        f"{folder / place} does not exist. Layout: {LAYOUT}. Get it: {SOURCE}."
                    )
        folders = {year: _folder(root, year) for year, _ in _parts(f"{self.train_split}+{self.test_split}")}
        voc.check_lists(folders, self.train_split.split("+"), self.test_split.split("+"))

    def load(self, split: str, site: Site) -> Annotated:
        return read(site.root(KEY, LAYOUT, SOURCE), split)

    def count(self, split: str, site: Site) -> int:
        return sum(len(voc.read_ids(voc.list_of(*part))) for part in self._parts(split, site))

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
        return [path for part in self._parts(split, site) for path in voc.sidecars(*part)]

    def _parts(self, split: str, site: Site) -> list[tuple[Path, str]]:
        """Return the folder of the year and the list of each part of a split."""
        root = site.root(KEY, LAYOUT, SOURCE)
        return [(_folder(root, year), name) for year, name in _parts(split)]


def read(root: Path, split: str) -> Annotated:
    """Read a split of `root`, in the order of the lists.

    `root` contains VOC2007 and VOC2012, or the VOCdevkit with both.

    Raises:
        LookupError: the split, a folder or a list does not exist.
        ValueError: an image or its annotation is missing or broken, or an image is in two parts of the split.
    """
    pictures: dict[int | str, Picture] = {}
    for year, name in _parts(split):
        folder = _folder(root, year)
        for picture in _pictures(folder, name):
            if picture.id in pictures:
                raise InvalidError(
                    f"{folder}: image {picture.id} of {year}_{name} is already in the split {split}."
                )
            pictures[picture.id] = picture
    found = tuple(pictures.values())
    return Annotated(
        found,
        voc.CLASSES,
        tuple(range(len(voc.CLASSES))),
        folder,
        detection.digest(found),
        detection.oddities(split, found),
    )


def _parts(split: str) -> list[tuple[str, str]]:
    """Return the (year, split) pairs that a split consists of."""
    parts = split.split("+")
    for part in parts:
        if part not in SPLITS:
            raise NotFoundError(unknown("split", part, SPLITS) + " Join several with '+'.")
    return [(part[:4], part[5:]) for part in parts]


def _folder(root: Path, year: str) -> Path:
    return voc.find(root, f"VOC{year}", SOURCE, itself=False)


def _pictures(folder: Path, split: str) -> Iterator[Picture]:
    """Yield the images of a year's split with their objects."""
    path = voc.list_of(folder, split)
    ids = voc.read_ids(path)
    check_files(
        folder / "JPEGImages",
        [f"{name}.jpg" for name in ids],
        path,
        layout=LAYOUT,
        source=SOURCE,
        published=voc.COUNTS[f"{folder.name.removeprefix('VOC')}_{split}"],
    )
    for name in ids:
        annotated = folder / "Annotations" / f"{name}.xml"
        width, height, objects = voc.read_annotation(annotated)
        if min(width, height) < 1:
            raise InvalidError(
                f"{annotated}: an image cannot have the size {width} x {height}. Get it again."
            )
        yield Picture(
            folder / "JPEGImages" / f"{name}.jpg", name, width, height, tuple(map(_instance, objects))
        )


def _instance(each: voc.Object) -> Instance:
    xmin, ymin, xmax, ymax = each.box
    return Instance(LABELS[each.name], (xmin - 1, ymin - 1, xmax, ymax), difficult=each.difficult)


def download(site: Site) -> Path:
    """Fetch the missing files of both years into the root, with their checksums verified.

    Raises:
        LookupError: the root is not set.
        ValueError: the root has another, incomplete copy.
    """
    root = site.data[KEY] if KEY in site.data else site.root(KEY, LAYOUT, SOURCE)
    splits = ("2007_trainval", "2007_test", "2012_trainval")
    return voc.fetch(root, splits, lambda split: len(read(root, split).pictures))
