"""JPEG files that look like photographs to a decoder, in a folder that every data set of folders reads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from reproduce.commands.photographs import QUALITY, photograph

DIFFERENT = 128
"""Number of different images. Further files are links to them: each is decoded as if it were its own."""
CLASSES = 10


def folder(root: Path, *, train: int, val: int = CLASSES, width: int, height: int) -> Path:
    """Write `train` and `val` images of CLASSES classes below `root`, and return it.

    Args:
        width, height: size of the images in pixels.
    """
    kept = root / "different"
    kept.mkdir(parents=True)
    count = min(DIFFERENT, train)
    with ThreadPoolExecutor() as threads:
        for number in range(count):
            threads.submit(_write, kept / f"{number}.jpg", number, width, height)
    for split, total in (("train", train), ("val", val)):
        for label in range(CLASSES):
            (root / split / f"n{label:08}").mkdir(parents=True)
        for number in range(total):
            name = f"n{number % CLASSES:08}"
            os.link(kept / f"{number % count}.jpg", root / split / name / f"{name}_{number}.jpg")
    return root


def _write(path: Path, seed: int, width: int, height: int) -> None:
    pixels = photograph(width, height, np.random.default_rng(seed))
    Image.fromarray(pixels).save(path, quality=QUALITY)
