"""JPEG files that look like photographs to a decoder, in a folder that every data set of folders reads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

QUALITY = 90
DIFFERENT = 128
"""Number of different images. Further files are links to them: each is decoded as if it were its own."""
CLASSES = 10


def folder(
    root: Path, *, train: int, val: int = CLASSES, width: int, height: int, noise: float = 2.0
) -> Path:
    """Write `train` and `val` images of CLASSES classes below `root`, and return it.

    Args:
        width, height: size of the images in pixels.
        noise: standard deviation of the grey levels that are added, which decides the size of the files.
    """
    kept = root / "different"
    kept.mkdir(parents=True)
    count = min(DIFFERENT, train)
    with ThreadPoolExecutor() as threads:
        for number in range(count):
            threads.submit(_write, kept / f"{number}.jpg", number, width, height, noise)
    for split, total in (("train", train), ("val", val)):
        for label in range(CLASSES):
            (root / split / f"n{label:08}").mkdir(parents=True)
        for number in range(total):
            name = f"n{number % CLASSES:08}"
            os.link(kept / f"{number % count}.jpg", root / split / name / f"{name}_{number}.jpg")
    return root


def _write(path: Path, seed: int, width: int, height: int, noise: float) -> None:
    """Write an image of smooth colours and grey noise."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(256, size=(6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + draw.normal(scale=noise, size=(height, width, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
