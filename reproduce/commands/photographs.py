"""Generated photographs in the place of a data set, for `invoke rehearse`.

files = Photographs(folder).files(500, 375)
Generated(files, 1_281_167)          # a split with as many images as ImageNet's
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from reproduce.data import decoding
from reproduce.data.images import Found, Images, Shape, Whole
from reproduce.data.originals import Originals

FILES, DISTINCT = 256, 16
"""Number of generated files, and of different photographs; the other files are shifted copies."""
QUALITY = 95
"""Quality of the JPEG files, which are about as large as ImageNet's: 110 kB at 500 x 375 pixels."""


class Photographs:
    """Generated JPEG files by the size of the image, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def files(self, width: int, height: int) -> tuple[Path, ...]:
        """Return the files of images of a size, which are written on first use."""
        folder = self._folder / f"{width}x{height}"
        paths = tuple(folder / f"{number:03}.jpg" for number in range(FILES))
        if not folder.exists():
            folder.mkdir(parents=True)
            random = np.random.default_rng(0)
            photographs = [photograph(width, height, random) for _ in range(DISTINCT)]
            for number, path in enumerate(paths):
                shift = tuple(random.integers((height, width)))
                pixels = np.roll(photographs[number % DISTINCT], shift, axis=(0, 1))
                Image.fromarray(pixels).save(path, quality=QUALITY)
        return paths

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty folder, which is removed after the block."""
        folder = self._folder / "run"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def photograph(width: int, height: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image with structures of every size, as in photographs, (height, width, 3).

    An octave of noise has an amplitude proportional to the size of its structures, so the power falls with
    the square of the frequency.
    """
    pixels = np.full((height, width, 3), 128.0, np.float32)
    for cell in (64, 32, 16, 8, 4, 2, 1):
        rows, columns = height // cell + 2, width // cell + 2
        noise = random.normal(0, 6 * cell**0.5, (rows, columns, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel])
            pixels[..., channel] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
    return pixels.clip(0, 255).astype(np.uint8)


class Generated(Images):
    """A split of as many images as the real one; image i is the file i modulo their number."""

    def __init__(
        self, files: tuple[Path, ...], num_images: int, *, ready: bool = False, cache_gb: float = 0.0
    ) -> None:
        """Create the images.

        Args:
            ready: True to decode each file once, now, as if all images were in memory.
            cache_gb: see `Images`.
        """
        super().__init__(np.zeros(num_images, np.int64), ("any",), cache_gb)
        self._files = files
        self._decoded = Found.of(self.decode(np.arange(len(files)), Whole())) if ready else None

    def name(self, index: int) -> str:
        return str(self._files[index % len(self._files)])

    def open(self, index: int) -> Image.Image:
        return decoding.opened(self._files[index % len(self._files)])

    @property
    def digest(self) -> str:
        return ""

    def find(self, indices: ArrayLike, shape: Shape) -> Found:
        if self._decoded is None or not isinstance(shape, Whole):
            return super().find(indices, shape)
        chosen = np.asarray(indices, np.int64)
        images, files = self._decoded.images, chosen % len(self._files)
        shown = Originals(images.values, images.starts[files], images.sizes[files])
        return Found(shown, self._decoded.sizes[files], chosen, cached=True)

    def missing(self, indices: ArrayLike, shape: Shape) -> NDArray[np.int64]:
        return super().missing(indices, shape) if self._decoded is None else np.empty(0, np.int64)
