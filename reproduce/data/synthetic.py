"""Small coloured scenes, generated on first use: the data of the smoke scale.

A scene shows one textured object on a shaded background. Its class is the pair (shape, texture): a square or a cross, with one of five
textures. Colours, position, size, rotation and the texture's phase are random and say nothing about the class: of ten classes, 5-NN gets a
fifth right on raw pixels and less on colour histograms.

The scenes are written in the layouts of the real data sets (ImageFolder, STL-10 binary with its unlabelled split), and the real loaders
read them. Only +, -, x, / and square roots of IEEE doubles enter, so the bytes are the same on every machine.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import filelock

from reproduce.data.dataset import Dataset
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Images

SHAPES = ("square", "cross")
TEXTURES = ("stripes", "checks", "dots", "grid", "rings")
SIDE = 32
"""Of a scene, in pixels."""
CLASSES = tuple(f"{shape}_{texture}" for shape in SHAPES for texture in TEXTURES)


@dataclass(frozen=True, kw_only=True)
class _Synthetic(Dataset):
    """What both layouts share."""

    size: int = SIDE
    """The whole scene."""
    resize: int = SIDE
    """Nothing is cut off for a test."""
    canvas: int = SIDE
    """Scenes are drawn at this size."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """About the scenes' own."""
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    """About the scenes' own."""
    data_seed: int = 0
    """Of the generator; training, test and unlabelled scenes are drawn from it apart."""
    version: int = 1
    """Of the generator: it changes when its scenes do, and with it every id."""

    def folder(self, site: Site) -> Path:
        """Where the scenes of these settings are."""
        return site.runs / "synthetic" / f"{self.name}-{self.id}"

    def _generated(self, site: Site) -> Path:
        """The folder of the scenes, written whole by whoever comes first."""
        folder = self.folder(site)
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    unfinished = folder.with_suffix(".unfinished")
                    shutil.rmtree(unfinished, ignore_errors=True)
                    self._write(unfinished)
                    unfinished.rename(folder)
        return folder

    def _write(self, folder: Path) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SyntheticFolder(_Synthetic, name="synthetic_folder"):
    """The scenes as an ImageFolder, `train/<class>/` and `val/<class>/`, in place of ImageNet and its subsets."""

    num_train: int = 1200
    """Scenes in `train/`."""
    num_val: int = 1000
    """Scenes in `val/`."""

    title: ClassVar[str] = "synthetic scenes (ImageFolder)"

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import imagefolder

        return imagefolder.load(self._generated(site), split, num_classes=len(CLASSES), cache_gb=site.cache_gb)

    def _write(self, folder: Path) -> None:
        from PIL import Image

        for stream, (split, count) in enumerate((("train", self.num_train), ("val", self.num_val))):
            labels, scenes = draw(count, seed=self.data_seed, stream=stream)
            for index, (label, scene) in enumerate(zip(labels, scenes, strict=True)):
                path = folder / split / CLASSES[label] / f"{index:05}.ppm"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(scene).save(path)


@dataclass(frozen=True, kw_only=True)
class SyntheticSTL10(_Synthetic, name="synthetic_stl10"):
    """The scenes, enlarged to 96 px, in STL-10's binary files: labelled train and test, and an unlabelled split with label -1."""

    num_unlabeled: int = 700
    """With the labelled ones, as many to pretrain on as in the other layout."""
    num_train: int = 500
    """A tenth of STL-10's."""
    num_test: int = 1000
    """An eighth of STL-10's."""

    pretrain_split: str = "train+unlabeled"
    test_split: str = "test"

    title: ClassVar[str] = "synthetic scenes (STL-10 layout)"

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import stl10

        return stl10.read(self._generated(site), split, cache_gb=site.cache_gb)

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for stream, (split, count) in enumerate((("train", self.num_train), ("test", self.num_test), ("unlabeled", self.num_unlabeled))):
            labels, scenes = draw(count, seed=self.data_seed, stream=10 + stream)
            enlarged = scenes.repeat(96 // SIDE, axis=1).repeat(96 // SIDE, axis=2)
            enlarged.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # channels, columns, rows
            if split != "unlabeled":
                (labels + 1).astype("uint8").tofile(folder / f"{split}_y.bin")
        (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def draw(count: int, *, seed: int, stream: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """`count` scenes.

    Args:
        stream: scenes of different streams are independent.

    Returns:
        Labels (count,), each class equally often, and RGB scenes (count, SIDE, SIDE, 3).
    """
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=[seed, stream]))
    labels = np.arange(count) % len(CLASSES)
    return labels, np.concatenate([_scenes(labels[start : start + 256], random) for start in range(0, count, 256)])


def _scenes(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.uint8]:
    """One scene for each label, (n, SIDE, SIDE, 3)."""
    import numpy as np

    n, fine = len(labels), 2 * SIDE  # drawn at twice the size and averaged: soft edges

    def uniform(low: float, high: float, *shape: int) -> NDArray[np.float64]:
        return low + (high - low) * random.random((n, *shape))

    axis = (np.arange(fine) + 0.5) / fine
    x, y = axis[None, None, :], axis[None, :, None]
    u, v = _turned(x - uniform(0.3, 0.7, 1, 1), y - uniform(0.3, 0.7, 1, 1), uniform(0, 1, 2))
    radius = uniform(0.28, 0.42, 1, 1)
    u, v = u / radius, v / radius  # the object's own axes, in units of its size
    inside = _inside(u, v, labels // len(TEXTURES))

    along, across = _turned(u, v, uniform(0, 1, 2))
    frequency = uniform(1.3, 1.7, 1, 1)
    along, across = along * frequency + uniform(8, 9, 1, 1), across * frequency + uniform(8, 9, 1, 1)
    bright = _texture(along, across, labels % len(TEXTURES))

    shade = _turned(x - 0.5, y - 0.5, uniform(0, 1, 2))[0][..., None] + 0.5
    greys = ((0.65, 0.95), (0.05, 0.3), (0.3, 0.6), (0.3, 0.6))
    light, dark, here, there = (uniform(*grey, 1, 1, 1) + uniform(-0.12, 0.12, 1, 1, 3) for grey in greys)
    scene = np.where(inside[..., None], np.where(bright[..., None], light, dark), here * (1 - shade) + there * shade)
    scene = (scene[:, ::2, ::2] + scene[:, ::2, 1::2] + scene[:, 1::2, ::2] + scene[:, 1::2, 1::2]) / 4 + uniform(
        -0.03, 0.03, SIDE, SIDE, 3
    )
    pixels: NDArray[np.uint8] = np.floor(np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def _turned(x: NDArray[np.float64], y: NDArray[np.float64], angle: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates (n, rows, columns) on turned axes; the angle is that of a point (n, 2) as seen from (1/2, 1/2), so it takes no sine."""
    import numpy as np

    a, b = angle[:, 0, None, None] - 0.5, angle[:, 1, None, None] - 0.5
    length = np.sqrt(a * a + b * b) + 1e-9
    cos, sin = a / length, b / length
    return cos * x + sin * y, cos * y - sin * x


def _inside(u: NDArray[np.float64], v: NDArray[np.float64], shape: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each point (n, rows, columns) lies in the object; `shape` (n,) indexes SHAPES."""
    import numpy as np

    u, v = np.abs(u), np.abs(v)
    near, far = np.minimum(u, v), np.maximum(u, v)
    chosen: NDArray[np.bool_] = np.choose(shape[:, None, None], [far < 0.82, (near < 0.30) & (far < 0.98)])
    return chosen


def _texture(along: NDArray[np.float64], across: NDArray[np.float64], texture: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the texture is bright, about half of the area; one period is 1; `texture` (n,) indexes TEXTURES."""
    import numpy as np

    a, b = along % 1 - 0.5, across % 1 - 0.5
    rings = np.sqrt((along - 8.5) * (along - 8.5) + (across - 8.5) * (across - 8.5)) % 1 < 0.5
    patterns = [a < 0, (a < 0) ^ (b < 0), a * a + b * b < 0.09, np.minimum(np.abs(a), np.abs(b)) < 0.11, rings]
    bright: NDArray[np.bool_] = np.choose(texture[:, None, None], patterns)
    return bright
