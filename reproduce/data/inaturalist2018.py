"""iNaturalist 2018: 437 513 training and 24 426 validation photographs of 8 142 species.

Source: github.com/visipedia/inat_comp, 2018. The images of both splits are one archive of 120 GB, which
`invoke download` does not fetch. Layout: `train2018.json` and `val2018.json`, which name the files under
`train_val2018/`. Reading the list of train takes 2 s and, for that time, 0.5 GB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from reproduce.data.dataset import Dataset
from reproduce.messages import InvalidError, NotFoundError, unknown
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
    canvas: int = 448
    """Side of the canvas. Choice: twice `size`, as for ImageNet."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels: ImageNet's, which the encoder was trained with."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels: ImageNet's, which the encoder was trained with."""

    title: ClassVar[str] = "iNaturalist 2018"
    published: ClassVar[Mapping[str, int]] = {"train": 437_513, "val": 24_426}

    def check_root(self, site: Site) -> None:
        site.root(KEY, LAYOUT, SOURCE, holds=(*(f"{split}2018.json" for split in SPLITS), "train_val2018"))

    def load(self, split: str, site: Site) -> Files:
        return read(site.root(KEY, LAYOUT, SOURCE), split, cache_gb=site.cache_gb)

    def beside(self, split: str, site: Site) -> Iterable[Path]:
        return (site.root(KEY, LAYOUT, SOURCE) / f"{split}2018.json",)


def read(root: Path, split: str, *, num_classes: int = NUM_CLASSES, cache_gb: float = 0.0) -> Files:
    """Read a split of `root`, in the order of its JSON file.

    Labels follow the ids of the categories in ascending order.

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
    try:
        content = json.loads(path.read_bytes())
        names, labels, classes = _joined(content, num_classes)
    except json.JSONDecodeError as error:
        raise InvalidError(f"{path} is not JSON: {error}. Get it: {SOURCE}.") from None
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path} is not text: {error}. Get it: {SOURCE}.") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidError(
            f"{path} is not a list of images, annotations and categories ({error!r}). Get it: {SOURCE}."
        ) from None
    except ValueError as error:
        raise InvalidError(f"{path}: {error}. Get it: {SOURCE}.") from None
    return Files(root, names, labels, classes, cache_gb)


def _joined(
    content: Mapping[str, list[dict[str, Any]]], num_classes: int
) -> tuple[list[bytes], list[int], list[str]]:
    """Return file names, labels and class names, from the three tables of a JSON file."""
    categories = _by_id(content["categories"], "category")
    if len(categories) != num_classes:
        raise InvalidError(f"it has {len(categories)} categories, not {num_classes}")
    label_of = {category: label for label, category in enumerate(sorted(categories))}
    images = _by_id(content["images"], "image")
    if not images:
        raise InvalidError("it has no images")
    labels = dict.fromkeys(images, -1)
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in images:
            raise InvalidError(f"an annotation refers to image {image}, which does not exist")
        if category not in label_of:
            raise InvalidError(
                f"the image {images[image]['file_name']} has the category {category}, which does not exist"
            )
        if labels[image] >= 0:
            raise InvalidError(f"the image {images[image]['file_name']} has two annotations")
        labels[image] = label_of[category]
    _check_complete(images, labels, categories, label_of)
    names = [image["file_name"].encode() for image in images.values()]
    return names, list(labels.values()), [str(categories[category]["name"]) for category in label_of]


def _by_id(rows: Iterable[dict[str, Any]], kind: str) -> dict[int, dict[str, Any]]:
    """Return the rows of a table by id.

    Raises:
        ValueError: two rows have the same id.
    """
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["id"] in found:
            raise InvalidError(f"more than one {kind} has the id {row['id']}")
        found[row["id"]] = row
    return found


def _check_complete(
    images: Mapping[int, dict[str, Any]],
    labels: Mapping[int, int],
    categories: Mapping[int, dict[str, Any]],
    label_of: Mapping[int, int],
) -> None:
    """Raise ValueError if an image has no label or a category has no image."""
    unlabelled = [image for image, label in labels.items() if label < 0]
    if unlabelled:
        raise InvalidError(
            f"{len(unlabelled)} of {len(images)} images lack an annotation; the first is "
            f"{images[unlabelled[0]]['file_name']}"
        )
    present = set(labels.values())
    empty = [category for category, label in label_of.items() if label not in present]
    if empty:
        raise InvalidError(
            f"{len(empty)} of {len(categories)} categories lack images; the first is "
            f"{empty[0]} ({categories[empty[0]]['name']})"
        )
