"""Small coloured scenes, generated on first use: the data of the smoke scale.

A scene shows one textured object on a shaded background. Its class is the pair (shape, texture): five shapes, stripes or checks. Colours,
position, size and rotation are random and say nothing about the class, so neither raw pixels nor colour statistics get far, while an encoder
that has learned to ignore colour and place does.

The scenes are written in the layouts of the real data sets (ImageFolder, STL-10 binary with its unlabelled split), and the real loaders read
them. Only +, -, x, / and square roots of IEEE doubles enter, so the bytes are the same on every machine.
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

SHAPES = ("disc", "cross")
TEXTURES = ("stripes", "checks", "dots", "rings", "plain")
CLASSES = tuple(f"{shape}_{texture}" for shape in SHAPES for texture in TEXTURES)


@dataclass(frozen=True, kw_only=True)
class _Synthetic(Dataset):
    """What both layouts share."""

    size: int = 32
    resize: int = 32
    canvas: int = 32
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
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

    num_train: int = 2000
    num_val: int = 1000

    title: ClassVar[str] = "synthetic scenes (ImageFolder)"

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import imagefolder

        return imagefolder.load(self._generated(site), split, num_classes=len(CLASSES), cache_gb=site.cache_gb)

    def _write(self, folder: Path) -> None:
        from PIL import Image

        for stream, (split, count) in enumerate((("train", self.num_train), ("val", self.num_val))):
            labels, scenes = draw(count, 32, seed=self.data_seed, stream=stream)
            for index, (label, scene) in enumerate(zip(labels, scenes, strict=True)):
                path = folder / split / CLASSES[label] / f"{index:05}.ppm"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(scene).save(path)


@dataclass(frozen=True, kw_only=True)
class SyntheticSTL10(_Synthetic, name="synthetic_stl10"):
    """The scenes at 96 px in STL-10's binary files: labelled train and test, and an unlabelled split with label -1."""

    num_unlabeled: int = 1500
    num_train: int = 500
    num_test: int = 1000

    title: ClassVar[str] = "synthetic scenes (STL-10 layout)"
    pretrain_split: ClassVar[str] = "train+unlabeled"
    test_split: ClassVar[str] = "test"

    def load(self, split: str, site: Site) -> Images:
        from reproduce.data import stl10

        return stl10.read(self._generated(site), split, cache_gb=site.cache_gb)

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for stream, (split, count) in enumerate((("train", self.num_train), ("test", self.num_test), ("unlabeled", self.num_unlabeled))):
            labels, scenes = draw(count, 96, seed=self.data_seed, stream=10 + stream)
            scenes.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # channels, columns, rows
            if split != "unlabeled":
                (labels + 1).astype("uint8").tofile(folder / f"{split}_y.bin")
        (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def draw(count: int, side: int, *, seed: int, stream: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """`count` scenes of `side` x `side` pixels.

    Args:
        stream: scenes of different streams are independent.

    Returns:
        Labels (count,), each class equally often, and RGB scenes (count, side, side, 3).
    """
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=[seed, stream]))
    labels = np.arange(count) % len(CLASSES)
    chunks = [_scenes(labels[start : start + 256], side, random) for start in range(0, count, 256)]
    return labels, np.concatenate(chunks)


def _scenes(labels: NDArray[np.int64], side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """One scene for each label, (n, side, side, 3)."""
    import numpy as np

    n, fine = len(labels), 2 * side  # drawn at twice the size and averaged: soft edges

    def uniform(low: float, high: float, *shape: int) -> NDArray[np.float64]:
        return low + (high - low) * random.random((n, *shape))

    axis = (np.arange(fine) + 0.5) / fine
    x = axis[None, None, :] - uniform(0.3, 0.7)[:, None, None]
    y = axis[None, :, None] - uniform(0.3, 0.7)[:, None, None]
    radius = uniform(0.28, 0.42)[:, None, None]
    cos, sin = _direction(random, n)
    u, v = (cos * x + sin * y) / radius, (cos * y - sin * x) / radius  # the object's own axes, in units of its radius

    shape, texture = labels // len(TEXTURES), labels % len(TEXTURES)
    inside = _shapes(u, v, shape)
    cos, sin = _direction(random, n)
    frequency = uniform(1.3, 1.7)[:, None, None] 
    along, across = (cos * u + sin * v + uniform(4, 5)[:, None, None]) * frequency, (cos * v - sin * u + uniform(4, 5)[:, None, None]) * frequency
    bright = _textures(along, across, u, v, texture, frequency)

    cos, sin = _direction(random, n)
    shade = (cos * (axis[None, None, :] - 0.5) + sin * (axis[None, :, None] - 0.5))[..., None] + 0.5
    light, dark, here, there = (uniform(*level)[:, None] + uniform(-0.12, 0.12, 3) for level in ((0.65, 0.95), (0.05, 0.3), (0.3, 0.6), (0.3, 0.6)))
    back = here[:, None, None] * (1 - shade) + there[:, None, None] * shade
    colour = np.where(bright[..., None], light[:, None, None], dark[:, None, None])
    scene = np.where(inside[..., None], colour, back)
    scene = scene.reshape(n, side, 2, side, 2, 3).mean(axis=(2, 4)) + uniform(-0.06, 0.06, side, side, 3)
    return np.floor(np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8)


def _textures(along, across, u, v, which, frequency):
    import numpy as np

    a, b = along % 1 - 0.5, across % 1 - 0.5
    stripes = a < 0
    checks = (a < 0) ^ (b < 0)
    dots = a * a + b * b < 0.14
    rings = np.sqrt(u * u + v * v) * frequency % 1 < 0.5
    plain = along == along
    return np.choose(which[:, None, None], [stripes, checks, dots, rings, plain][:len(TEXTURES)])


def _direction(random: np.random.Generator, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of `n` random angles, (n, 1, 1) each, from a random point by a square root alone."""
    import numpy as np

    point = random.random((n, 2)) - 0.5
    length = np.sqrt(point[:, :1] * point[:, :1] + point[:, 1:] * point[:, 1:]) + 1e-9
    return (point[:, :1] / length)[..., None], (point[:, 1:] / length)[..., None]


def _shapes(u: NDArray[np.float64], v: NDArray[np.float64], which: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each point lies inside the shape `which` (n,) of radius 1; u and v are (n, rows, columns)."""
    import numpy as np

    far = np.maximum(np.abs(u), np.abs(v))
    distance = u * u + v * v
    disc, square = distance < 0.85, far < 0.82
    triangle = (v > -0.62) & (v < 1.0 - 1.732 * np.abs(u))
    cross = (np.minimum(np.abs(u), np.abs(v)) < 0.30) & (far < 0.98)
    ring = (distance < 1.0) & (distance > 0.30)
    return np.choose(which[:, None, None], [square, cross])
