"""iNaturalist 2018: 437 513 training and 24 426 validation photographs of 8 142 species.

Source: github.com/visipedia/inat_comp, 2018. The images of both splits are one archive of 120 GB, which
`invoke download` does not fetch. Layout: `train2018.json` and `val2018.json`, which name the files under
`train_val2018/`. Reading the list of train takes 4 s and, for that time, 0.5 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data import json_tables
from reproduce.data.dataset import Dataset
from reproduce.data.json_tables import Row
from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.settings import Resampling
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.data.images import Files

KEY = "inaturalist2018"
LAYOUT = "train2018.json, val2018.json and train_val2018/<group>/<class>/*.jpg"
SOURCE = (
    "https://github.com/visipedia/inat_comp/tree/master/2018 "
    "(train_val2018.tar.gz, 120 GB, and the two JSON files)"
)
SPLITS = ("train", "val")
NUM_CLASSES = 8142


@dataclass(frozen=True, kw_only=True)
class INaturalist2018(Dataset, name="inaturalist2018"):
    """iNaturalist 2018 at 224 px."""

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

    title: ClassVar[str] = "iNaturalist 2018"
    short: ClassVar[str] = "iNat18"
    published: ClassVar[Mapping[str, int]] = {"train": 437_513, "val": 24_426}
    typical: ClassVar[tuple[int, int]] = (
        800,
        600,
    )  # a longer side of at most 800 (inat_comp, 2018/README.md)

    def check_root(self, site: Site) -> None:
        site.root(KEY, LAYOUT, SOURCE, holds=(*(f"{split}2018.json" for split in SPLITS), "train_val2018"))

    def load(self, split: str, site: Site) -> Files:
        root = site.root(KEY, LAYOUT, SOURCE)
        return read(root, split, num_images=self.published.get(split), cache_gb=site.cache_gb)

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
        return (site.root(KEY, LAYOUT, SOURCE) / f"{split}2018.json",)


def read(
    root: Path,
    split: str,
    *,
    num_classes: int = NUM_CLASSES,
    num_images: int | None = None,
    cache_gb: float = 0.0,
) -> Files:
    """Read a split of `root`, in the order of its JSON file.

    Labels follow the ids of the categories in ascending order.

    Args:
        num_classes: expected number of categories.
        num_images: expected number of images. None for any.
        cache_gb: see `Images`.

    Raises:
        LookupError: the split or its JSON file does not exist.
        ValueError: the JSON file is invalid. The message names the file and the image, annotation or
            category.
    """
    from reproduce.data.images import Files

    if split not in SPLITS:
        raise NotFoundError(unknown("split", split, SPLITS))
    path = root / f"{split}2018.json"
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist. Layout: {LAYOUT}. Get it: {SOURCE}.")
    with json_tables.faults(path, SOURCE):
        names, labels, classes = _joined(json_tables.parse(path), num_classes)
        if num_images not in (None, len(names)):
            raise InvalidError(f"it has {len(names)} images, not {num_images}")
    return Files(root, names, labels, classes, cache_gb)


def _joined(content: Row, num_classes: int) -> tuple[list[bytes], list[int], list[str]]:
    """Return file names, labels and class names, from the three tables of a JSON file."""
    categories = json_tables.by_id(json_tables.table(content, "categories"), "category")
    if len(categories) != num_classes:
        raise InvalidError(f"it has {len(categories)} categories, not {num_classes}")
    label_of = {category: label for label, category in enumerate(sorted(categories))}
    images = json_tables.by_id(json_tables.table(content, "images"), "image")
    if not images:
        raise InvalidError("it has no images")
    names = json_tables.file_names(images)
    labels = dict.fromkeys(images, -1)
    for number, row in enumerate(json_tables.table(content, "annotations"), start=1):
        image = json_tables.reference(row, "image_id", images, f"annotation number {number}", "image")
        category = json_tables.reference(
            row, "category_id", categories, f"the image {names[image]}", "category"
        )
        if labels[image] >= 0:
            raise InvalidError(f"the image {names[image]} has two annotations")
        labels[image] = label_of[category]
    _check_complete(names, labels, categories, label_of)
    _check_folders(names, labels)
    titles = [json_tables.value(categories[each], "name", f"category {each}") for each in label_of]
    return [name.encode() for name in names.values()], list(labels.values()), [str(each) for each in titles]


def _check_complete(
    names: Mapping[int, str],
    labels: Mapping[int, int],
    categories: Mapping[int, Row],
    label_of: Mapping[int, int],
) -> None:
    """Raise ValueError if an image has no label or a category has no image."""
    unlabelled = [image for image, label in labels.items() if label < 0]
    if unlabelled:
        raise InvalidError(
            f"{len(unlabelled)} of {len(names)} images lack an annotation; the first is "
            f"{names[unlabelled[0]]}"
        )
    present = set(labels.values())
    empty = [category for category, label in label_of.items() if label not in present]
    if empty:
        raise InvalidError(
            f"{len(empty)} of {len(categories)} categories lack images; the first is "
            f"{empty[0]} ({categories[empty[0]].get('name')})"
        )


def _check_folders(names: Mapping[int, str], labels: Mapping[int, int]) -> None:
    """Raise ValueError if the images of one folder have two labels: each species has a folder of its own."""
    first: dict[str, int] = {}
    for image, name in names.items():
        folder = name.rpartition("/")[0]
        other = first.setdefault(folder, image)
        if labels[other] != labels[image]:
            raise InvalidError(f"{names[other]} and {name} are in one folder, but have different categories")
