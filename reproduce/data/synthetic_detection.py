"""Detection data sets of the smoke scale: montages of coloured scenes, generated on first use.

The montages (`scenes.py`) are written in the layouts of VOC07+12 and of COCO 2017 and read by their readers.
Some objects are difficult, and some groups are crowds. Images are 64 x 64 px; an object takes much of the
image or of a quarter of it. Writing a data set takes two to three seconds, once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from reproduce.data import coco2017, generated, polygons, voc, voc0712
from reproduce.data.detection import Annotated, DetectionDataset
from reproduce.data.scenes import Outlined, Scenes, montage, outlined
from reproduce.messages import InvalidError
from reproduce.settings import Seed
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class _Synthetic(DetectionDataset):
    """Base class of both layouts."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of the RGB channels, close to the scenes' own."""
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    """Standard deviation of the RGB channels, close to the scenes' own."""
    data_seed: Seed = 0
    """Seed of the generator. The splits are independent draws."""
    version: Literal[1] = 1
    """Version of the generator. It changes when the montages do, and every id changes with it."""

    def folder(self, site: Site) -> Path:
        """Return the folder of the montages of these settings."""
        return site.runs / "synthetic" / f"{self.name}-{self.id}"

    def _generated(self, site: Site) -> Path:
        """Return the folder of the montages; the first process that needs it writes it."""
        return generated.once(self.folder(site), self._write)

    def _write(self, folder: Path) -> None:
        raise NotImplementedError

    def _check_counts(self, **counts: int) -> None:
        """Raise ValueError if a split could have no object of a class."""
        if min(counts.values()) < len(self.classes):
            names, given = (" and ".join(map(str, each)) for each in (counts, counts.values()))
            raise InvalidError(
                f"{self.name} needs {names} >= {len(self.classes)}, so that every class has an object, "
                f"but they are {given}."
            )


@dataclass(frozen=True, kw_only=True)
class SyntheticVOC0712(_Synthetic, name="synthetic_voc0712"):
    """Montages of one to three scenes in the layout of VOC2007 and VOC2012.

    The 20 classes are those of the scenes in two families of colours.
    """

    num_trainval: Scenes = 300
    """Number of images in `trainval` of each year. In both together, each class has 60 objects."""
    num_test: Scenes = 200
    """Number of images in `test` of 2007. Each class has 19 or 20 objects, about 3 of them difficult."""

    train_split: str = "2007_trainval+2012_trainval"
    test_split: str = "2007_test"

    splits: ClassVar[tuple[str, ...]] = voc0712.SPLITS
    title: ClassVar[str] = "synthetic scenes (VOC07+12 layout)"
    short: ClassVar[str] = "synthVOC0712"
    classes: ClassVar[tuple[str, ...]] = voc.CLASSES
    benchmark: ClassVar[Literal["voc", "coco"]] = "voc"

    def check(self) -> None:
        super().check()
        self._check_counts(num_trainval=self.num_trainval, num_test=self.num_test)

    def load(self, split: str, site: Site) -> Annotated:
        return voc0712.read(self._generated(site), split)

    def _write(self, folder: Path) -> None:
        splits = (
            ("2007", "trainval", "{:06}", range(1, 1 + self.num_trainval)),
            ("2007", "test", "{:06}", range(1 + self.num_trainval, 1 + self.num_trainval + self.num_test)),
            # VOC names an image of 2012 by the year of its photograph.
            ("2012", "trainval", "2008_{:06}", range(1, 1 + self.num_trainval)),
        )
        for stream, (year, split, form, ids) in enumerate(splits):
            names = [form.format(each) for each in ids]
            within = folder / f"VOC{year}"
            generated.save_montages(
                within, names, montage(len(names), seed=self.data_seed, stream=50 + stream)
            )
            generated.save_list(
                within / "ImageSets" / "Main" / f"{split}.txt", names, end="\r\n" if split == "test" else "\n"
            )


@dataclass(frozen=True, kw_only=True)
class SyntheticCOCO2017(_Synthetic, name="synthetic_coco2017"):
    """Montages of one to three scenes in COCO's layout.

    Some images have no object, and some objects are crowds. The 80 classes are those of the scenes in eight
    families of colours.
    """

    num_train: Scenes = 640
    """Number of images in `train2017`. Each class has 15 or 16 objects."""
    num_val: Scenes = 240
    """Number of images in `val2017`. Each class has 5 or 6 objects."""

    train_split: str = "train2017"
    test_split: str = "val2017"

    splits: ClassVar[tuple[str, ...]] = coco2017.SPLITS
    title: ClassVar[str] = "synthetic scenes (COCO layout)"
    short: ClassVar[str] = "synthCOCO"
    classes: ClassVar[tuple[str, ...]] = coco2017.CLASSES
    benchmark: ClassVar[Literal["voc", "coco"]] = "coco"

    def check(self) -> None:
        super().check()
        self._check_counts(num_train=self.num_train, num_val=self.num_val)

    def load(self, split: str, site: Site) -> Annotated:
        return coco2017.read(self._generated(site), split)

    def _write(self, folder: Path) -> None:
        (folder / "annotations").mkdir(parents=True)
        for stream, (split, first, count) in enumerate(
            (("train2017", 1, self.num_train), ("val2017", 1 + self.num_train, self.num_val))
        ):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for number, (pixels, objects) in enumerate(
                outlined(count, seed=self.data_seed, stream=60 + stream), start=first
            ):
                file, (height, width, _) = f"{number:012}.jpg", pixels.shape
                generated.save(folder / split / file, pixels)
                images.append(
                    {"license": 1, "file_name": file, "height": height, "width": width, "id": number}
                )
                for each in objects:
                    annotations.append(_annotation(each) | {"image_id": number, "id": 1 + len(annotations)})
            # Reversed, since readers must match images and annotations by id, not by order.
            rows = {"images": images[::-1], "annotations": annotations[::-1]}
            (folder / "annotations" / f"instances_{split}.json").write_text(
                json.dumps(HEADER | rows | {"categories": CATEGORIES})
            )


HEADER = {
    "info": {"description": "Synthetic scenes in the layout of COCO 2017", "version": "1.0", "year": 2017},
    "licenses": [{"id": 1, "name": "None needed", "url": ""}],
}
CATEGORIES = [{"supercategory": "scene", "id": id, "name": name} for id, name in coco2017.CATEGORIES.items()]


def _annotation(each: Outlined) -> dict[str, Any]:
    """Return the annotation of one object.

    Its segmentation is a polygon with two decimals, like COCO's, or the run lengths of a crowd's pixels.
    """
    segmentation: list[list[float]] | dict[str, list[int]]
    if each.crowd is None:
        outline = tuple((round(x, 2), round(y, 2)) for x, y in each.outline)
        segmentation, area = [[end for point in outline for end in point]], round(polygons.area(outline), 4)
        left, top, right, bottom = polygons.bounds(outline)
    else:
        segmentation, area = (
            {"counts": _run_lengths(each.crowd), "size": list(each.crowd.shape)},
            int(each.crowd.sum()),
        )
        (top, bottom), (left, right) = (_ends(each.crowd, axis) for axis in (0, 1))
    return {
        "segmentation": segmentation,
        "area": area,
        "iscrowd": int(each.crowd is not None),
        "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
        "category_id": coco2017.CATEGORY_IDS[each.label],
    }


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of the runs of pixels outside, inside, outside, ..., column by column.

    This is COCO's format (cocodataset/cocoapi common/maskApi.h).
    """
    runs = [(inside, len(list(run))) for inside, run in groupby(mask.T.ravel().tolist())]
    return [0] * runs[0][0] + [length for _, length in runs]


def _ends(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """Return the first row (axis 0) or column (axis 1) with a pixel, and the one after the last."""
    places = mask.nonzero()[axis].tolist()
    return min(places), max(places) + 1
