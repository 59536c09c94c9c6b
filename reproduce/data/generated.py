"""Write the files of synthetic data sets on first use, with the same bytes on every machine.

A folder appears complete or not at all. Images are binary PPM whatever the extension of their names, so
neither pixels nor sizes depend on the version of an encoder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from reproduce.data import voc
from reproduce.data.scenes import SIDE, Placed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return `folder`; the first process that needs it fills it with `write`."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                unfinished = folder.with_suffix(".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                write(unfinished)
                os.sync()  # after a crash of the machine, no file of a complete folder is empty
                unfinished.rename(folder)
    return folder


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an RGB image, (height, width, 3), as binary PPM."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PPM")


def save_montages(
    folder: Path, names: Iterable[str], montages: Iterable[tuple[NDArray[np.uint8], list[Placed]]]
) -> None:
    """Write images and annotations into the folder of one of VOC's years."""
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for name, (pixels, objects) in zip(names, montages, strict=True):
        save(folder / "JPEGImages" / f"{name}.jpg", pixels)
        (folder / "Annotations" / f"{name}.xml").write_text(_annotation(folder.name, name, objects))


def _annotation(year: str, name: str, objects: Iterable[Placed]) -> str:
    """Return the XML of one montage in VOC's format: box coordinates count from 1 and are inclusive."""
    lines = ["<annotation>", f"\t<folder>{year}</folder>", f"\t<filename>{name}.jpg</filename>"]
    lines += [
        f"\t<size><width>{2 * SIDE}</width><height>{2 * SIDE}</height><depth>3</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    for label, difficult, (left, top, right, bottom) in objects:
        box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        lines += [
            "\t<object>",
            f"\t\t<name>{voc.CLASSES[label]}</name>",
            "\t\t<pose>Unspecified</pose>",
            "\t\t<truncated>0</truncated>",
        ]
        lines += [
            f"\t\t<difficult>{int(difficult)}</difficult>",
            f"\t\t<bndbox>{box}</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def save_list(path: Path, names: Iterable[str], end: str = "\n") -> None:
    """Write one of VOC's lists of images.

    Args:
        end: line ending; VOC's release and copies of it differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}{end}" for name in names), newline="")
