"""Data sets of the smoke scale: small coloured scenes (`scenes.py`), generated on first use.

Each data set is written in the layout of a real one and read by its reader: ImageFolder, STL-10's binary
files with the unlabelled split, VOC2007's annotations, the lists of Places205, the JSON files of iNaturalist
2018. Writing one takes about a second, once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from reproduce.data import generated, lists, voc
from reproduce.data.dataset import Dataset
from reproduce.data.scenes import CLASSES, SIDE, Scenes, draw, montage
from reproduce.messages import NotFoundError, unknown
from reproduce.runs.files import write_atomic
from reproduce.settings import Seed
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Files, Images

PERCENT = {"1percent": 1, "10percent": 10}
"""Lists of labelled images that the synthetic folder has, and the per cent of each class in them."""
GROUPS = ("Plantae", "Insecta", "Aves", "Fungi", "Mammalia")
"""Names of folders in iNaturalist 2018's layout."""
PLACES = (
    "a/abbey",
    "a/airport_terminal",
    "b/bakery/shop",
    "b/bridge",
    "c/castle",
    "c/church/outdoor",
    "h/harbor",
    "l/library/indoor",
    "m/mountain",
    "v/valley",
)
"""Names of folders in Places205's layout, one for each class of the scenes."""


@dataclass(frozen=True, kw_only=True)
class _Synthetic(Dataset):
    """Base class of all layouts."""

    size: int = SIDE
    """Side of a view and of a test crop: the whole scene."""
    resize: int = SIDE
    """Shorter side of a test image: test crops cut nothing off."""
    canvas: int = SIDE
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of the RGB channels, close to the scenes' own."""
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    """Standard deviation of the RGB channels, close to the scenes' own."""
    data_seed: Seed = 0
    """Seed of the generator. Training, test and unlabelled scenes are independent draws."""
    version: Literal[1] = 1
    """Version of the generator. It changes when the scenes do, and every id changes with it."""

    typical: ClassVar[tuple[int, int]] = (SIDE, SIDE)

    def folder(self, site: Site) -> Path:
        """Return the folder of the scenes of these settings."""
        return site.runs / "synthetic" / f"{self.name}-{self.id}"

    def _generated(self, site: Site) -> Path:
        """Return the folder of the scenes; the first process that needs it writes it."""
        return generated.once(self.folder(site), self._write)

    def _write(self, folder: Path) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SyntheticFolder(_Synthetic, name="synthetic_folder"):
    """The scenes as an ImageFolder, in place of ImageNet and its subsets.

    The folders are `train/<class>/` and `val/<class>/`.
    """

    num_train: Scenes = 1200
    """Number of scenes in `train/`."""
    num_val: Scenes = 1000
    """Number of scenes in `val/`."""

    title: ClassVar[str] = "synthetic scenes (ImageFolder)"
    short: ClassVar[str] = "synth"

    def load(self, split: str, site: Site) -> Files:
        from reproduce.data import imagefolder

        return imagefolder.load(
            self._generated(site), split, num_classes=len(CLASSES), cache_gb=site.cache_gb
        )

    def check_subset(self, name: str, site: Site, *, fetch: bool = True) -> None:
        if name not in PERCENT:
            raise NotFoundError(unknown("list of labelled images", name, PERCENT))

    def labelled_subset(self, name: str, site: Site) -> NDArray[np.int64]:
        """Return the indices of the first images of each class, at least one, (n,), ascending.

        The list is written next to the scenes on its first use.
        """
        self.check_subset(name, site)
        images = self.load(self.train_split, site)
        path = self.folder(site).with_suffix(f".{name}.txt")
        if not path.is_file():
            write_atomic(path, "".join(f"{line}\n" for line in self._listed(PERCENT[name])))
        return lists.indices(images, path)

    def _listed(self, percent: int) -> Iterable[str]:
        """Yield the lines of a list: each class's first `percent` per cent, rounded, but at least one."""
        for label, name in enumerate(CLASSES):
            scenes = range(label, self.num_train, len(CLASSES))
            for index in scenes[: max(1, (len(scenes) * percent + 50) // 100)]:
                yield f"{name}/{index:05}.ppm"

    def _write(self, folder: Path) -> None:
        for stream, (split, count) in enumerate((("train", self.num_train), ("val", self.num_val))):
            labels, scenes = draw(count, seed=self.data_seed, stream=stream)
            for index, (label, scene) in enumerate(zip(labels, scenes, strict=True)):
                generated.save(folder / split / CLASSES[label] / f"{index:05}.ppm", scene)


@dataclass(frozen=True, kw_only=True)
class SyntheticSTL10(_Synthetic, name="synthetic_stl10"):
    """The scenes, enlarged to 96 px, in STL-10's binary files.

    There are a labelled train and test split, and an unlabelled split with label -1.
    """

    num_unlabeled: Scenes = 700
    """Number of unlabelled scenes. With the labelled ones, pretraining has as many as in the ImageFolder."""
    num_train: Scenes = 500
    """Number of labelled scenes for training: a tenth of STL-10's."""
    num_test: Scenes = 1000
    """Number of test scenes: an eighth of STL-10's."""

    pretrain_split: str = "train+unlabeled"
    test_split: str = "test"

    splits: ClassVar[tuple[str, ...]] = ("train", "test", "unlabeled", "train+unlabeled")
    title: ClassVar[str] = "synthetic scenes (STL-10 layout)"
    short: ClassVar[str] = "synthSTL10"
    typical: ClassVar[tuple[int, int]] = (96, 96)
    raw: ClassVar[bool] = True

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import stl10

        return stl10.read(self._generated(site), split, cache_gb=site.cache_gb)

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for stream, (split, count) in enumerate(
            (("train", self.num_train), ("test", self.num_test), ("unlabeled", self.num_unlabeled))
        ):
            labels, scenes = draw(count, seed=self.data_seed, stream=10 + stream)
            enlarged = scenes.repeat(96 // SIDE, axis=1).repeat(96 // SIDE, axis=2)
            enlarged.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # channels, columns, rows
            if split != "unlabeled":
                (labels + 1).astype("uint8").tofile(folder / f"{split}_y.bin")
        (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))


@dataclass(frozen=True, kw_only=True)
class SyntheticVOC2007(_Synthetic, name="synthetic_voc2007"):
    """Montages of one to three scenes at 64 px in VOC2007's layout.

    Images have several classes, and some objects are difficult. The 20 classes are those of the scenes in two
    families of colours. An image with one scene shows it at twice its size.
    """

    num_trainval: Scenes = 400
    """Number of images in `trainval`. The first half of them is `train`, the other half `val`."""
    num_test: Scenes = 400
    """Number of images in `test`."""

    pretrain_split: str = "trainval"
    train_split: str = "trainval"
    test_split: str = "test"

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "trainval", "test")
    title: ClassVar[str] = "synthetic scenes (VOC2007 layout)"
    short: ClassVar[str] = "synthVOC07"
    typical: ClassVar[tuple[int, int]] = (2 * SIDE, 2 * SIDE)
    multi_label = True

    def check(self) -> None:
        super().check()
        if min(self.num_trainval, self.num_test) < len(voc.CLASSES):
            raise ValueError(
                f"{self.name} needs num_trainval and num_test >= {len(voc.CLASSES)}, so that every class "
                f"has an image, but they are {self.num_trainval} and {self.num_test}."
            )

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import voc2007

        return voc2007.read(self._generated(site), split, cache_gb=site.cache_gb)

    def _write(self, folder: Path) -> None:
        folder = folder / "VOC2007"
        names = [f"{1 + index:06}" for index in range(self.num_trainval + self.num_test)]
        trainval, test = names[: self.num_trainval], names[self.num_trainval :]
        generated.save_montages(folder, trainval, montage(len(trainval), seed=self.data_seed, stream=20))
        generated.save_montages(folder, test, montage(len(test), seed=self.data_seed, stream=21))
        half = len(trainval) // 2
        for split, ids in (
            ("train", trainval[:half]),
            ("val", trainval[half:]),
            ("trainval", trainval),
            ("test", test),
        ):
            generated.save_list(
                folder / "ImageSets" / "Main" / f"{split}.txt", ids, end="\r\n" if split == "test" else "\n"
            )


@dataclass(frozen=True, kw_only=True)
class SyntheticPlaces205(_Synthetic, name="synthetic_places205"):
    """The scenes in Places205's layout, with ten classes."""

    num_train: Scenes = 800
    """Number of scenes in `train`."""
    num_val: Scenes = 400
    """Number of scenes in `val`."""

    title: ClassVar[str] = "synthetic scenes (Places205 layout)"
    short: ClassVar[str] = "synthPlaces"

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import places205

        return places205.read(self._generated(site), split, num_classes=len(PLACES), cache_gb=site.cache_gb)

    def _write(self, folder: Path) -> None:
        (folder / "trainvalsplit_places205").mkdir(parents=True)
        for stream, (split, count) in enumerate((("train", self.num_train), ("val", self.num_val))):
            labels, scenes = draw(count, seed=self.data_seed, stream=30 + stream)
            lines = []
            for index, (label, scene) in enumerate(zip(labels.tolist(), scenes, strict=True)):
                name = f"{PLACES[label]}/gsun_{split}{index:05}.jpg"
                generated.save(
                    folder / "data" / "vision" / "torralba" / "deeplearning" / "images256" / name, scene
                )
                lines.append(f"{name} {label}\n")
            (folder / "trainvalsplit_places205" / f"{split}_places205.csv").write_text("".join(lines))


@dataclass(frozen=True, kw_only=True)
class SyntheticINaturalist2018(_Synthetic, name="synthetic_inaturalist2018"):
    """The scenes in iNaturalist 2018's layout, with ten species."""

    num_train: Scenes = 800
    """Number of scenes in `train`."""
    num_val: Scenes = 400
    """Number of scenes in `val`."""

    title: ClassVar[str] = "synthetic scenes (iNaturalist 2018 layout)"
    short: ClassVar[str] = "synthiNat18"

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import inaturalist2018

        return inaturalist2018.read(
            self._generated(site), split, num_classes=len(CLASSES), cache_gb=site.cache_gb
        )

    def _write(self, folder: Path) -> None:
        groups = [GROUPS[label % len(GROUPS)] for label in range(len(CLASSES))]
        categories = [
            {"id": label, "name": name, "supercategory": groups[label]} for label, name in enumerate(CLASSES)
        ]
        for stream, (split, count) in enumerate((("train", self.num_train), ("val", self.num_val))):
            labels, scenes = draw(count, seed=self.data_seed, stream=40 + stream)
            images, annotations = [], []
            for index, (label, scene) in enumerate(zip(labels.tolist(), scenes, strict=True)):
                number = stream * self.num_train + index + 1
                name = f"train_val2018/{groups[label]}/{label}/{number:06}.jpg"
                generated.save(folder / name, scene)
                images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
                annotations.append({"id": number, "image_id": number, "category_id": label})
            annotations.reverse()  # readers must match annotations and images by id, not by order
            content = {"images": images, "annotations": annotations, "categories": categories}
            (folder / f"{split}2018.json").write_text(json.dumps(content))
