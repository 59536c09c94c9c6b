"""A folder of one's own images, in one folder per class, named by its content.

    --dataset folder --set dataset.root=/my/images      # train/<class>/* and val/<class>/*

A pretraining reads `train` alone, so its folder needs no `val`.
The path of the folder is not a setting. `named` replaces it by a digest of every name and byte, so copies of
the same images at different places are one data set, and a changed image makes another one. The path is kept
in a file of `<runs>/data`, in which workers look it up. That file is safe to delete: the next command that
receives the path writes it again.

The first command reads every byte. Later ones compare sizes and times of folders and files (`inventory.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data import inventory
from reproduce.data.dataset import Dataset
from reproduce.messages import InvalidError, NotFoundError, unprintable
from reproduce.runs.files import write_atomic
from reproduce.site import Site, user_path

if TYPE_CHECKING:
    from reproduce.data.images import Files

KEY = "folder"
LAYOUT = "train/<class>/* and val/<class>/*"
SOURCE = "--set dataset.root=FOLDER names any other folder with that layout"
ROOT = "dataset.root"
"""Key of --set that names the folder."""
SHA256 = re.compile("[0-9a-f]{64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Folder(Dataset, name="folder"):
    """A folder of one's own images at 224 px."""

    content: str = ""
    """SHA-256 of the names and the bytes of all images, which `--set dataset.root=FOLDER` fills in. Empty for
    the root in the site file, whatever its content."""
    size: int = 224
    """Side of a view and of a test crop. Choice: ImageNet's (`imagenet.py`). An evaluation replaces it by the
    encoder's, and a pretraining by its scale's."""
    resize: int = 256
    """Shorter side of a test image. Choice: ImageNet's (`imagenet.py`)."""
    canvas: int = 448
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels. Choice: ImageNet's (pytorch/vision
    references/classification/presets.py)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels. Choice: ImageNet's (pytorch/vision
    references/classification/presets.py)."""

    title: ClassVar[str] = "a folder of one's own"
    most_checked: ClassVar[int] = 1_000_000

    def check(self) -> None:
        super().check()
        if self.content and not SHA256.fullmatch(self.content):
            raise ValueError(
                f"{self.name}.content is '{self.content:.80}': the 64 hexadecimal digits of a SHA-256 are "
                f"expected, or --set {ROOT}=FOLDER, which finds them."
            )

    @property
    def label(self) -> str:
        return f"{self.name} {self.content[:12]}".strip()

    def folders(self, site: Site) -> Mapping[str, str]:
        root = _kept(self.content, site) if self.content else None
        return {KEY: str(root)} if root else super().folders(site)

    def check_root(self, site: Site) -> None:
        if not self.content:
            site.root(KEY, LAYOUT, SOURCE, holds=("train",))
            return
        again = f"pass the folder again with --set {ROOT}=FOLDER"
        if KEY not in (places := self.folders(site)):
            raise NotFoundError(f"The images of {self.label} have no known place on this machine: {again}.")
        root = Path(places[KEY])
        if not root.is_dir():
            raise NotFoundError(f"The images of {self.label} were in {root}, which does not exist: {again}.")
        if (found := identified(root, site)) != self.content:
            raise InvalidError(
                f"The images in {root} are no longer those of {self.label} but of folder {found[:12]}: "
                f"restore them, or {again} to use them as they are."
            )

    def load(self, split: str, site: Site) -> Files:
        from reproduce.data import imagefolder

        if self.content:
            self.check_root(site)
            root = Path(self.folders(site)[KEY])
        else:
            root = site.root(KEY, LAYOUT, SOURCE)
        found = _splits(root)
        if split in self.splits and split not in found:
            raise NotFoundError(f"{root} lacks {split}, which this run reads. Layout: {LAYOUT}.")
        return imagefolder.load(root, split, cache_gb=site.cache_gb, splits=found)


def named(path: str, site: Site, splits: Sequence[str] = Folder.splits) -> str:
    """Return the content of the user's folder, as a setting of `Folder`, and keep its path for the runs.

    Args:
        path: as the user wrote it. Empty for the root in the site file.
        splits: splits that the folder must have.

    Raises:
        LookupError: the folder does not exist or lacks a split, or none is named.
        ValueError: it contains something else than images in class folders. The message names it.
        OSError: the path cannot be written.
    """
    if path:
        root = _absolute(path)
        missing = [split for split in splits if not (root / split).is_dir()]
        if not root.is_dir() or missing:
            lacks = f"lacks {' and '.join(missing)}" if root.is_dir() else "is not a folder"
            raise NotFoundError(f"{ROOT} is {root}, which {lacks}. Layout: {_layout(splits)}.")
    else:
        root = _absolute(str(site.root(KEY, _layout(splits), SOURCE, holds=splits)))
    content = identified(root, site)
    if _kept(content, site) != root:
        write_atomic(_place(content, site), json.dumps({"content": content, "root": str(root)}))
    return content


def identified(root: Path, site: Site) -> str:
    """Return the SHA-256 of the names, labels and bytes of a folder's images.

    Bytes are read again only if a size or a time has changed.

    Raises:
        LookupError, ValueError: see `imagefolder.load`.
        OSError: a folder cannot be read.
    """
    there, unnamed = replace(site, data={**site.data, KEY: root}), Folder()
    digests = []
    for split in _splits(root):
        found = inventory.known(unnamed, split, there)
        if found is None or not found.content:
            logger.info("Reading the images in %s", root / split)
            found, _ = inventory.verify(unnamed, split, there)
        digests += [found.digest, found.content]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _splits(root: Path) -> tuple[str, ...]:
    """Return the splits of a folder: `train`, and `val` if it exists."""
    return tuple(split for split in Folder.splits if split != "val" or (root / split).exists())


def _layout(splits: Sequence[str]) -> str:
    """Return the layout of a folder that must have these splits."""
    return " and ".join(f"{split}/<class>/*" for split in splits)


def _absolute(path: str) -> Path:
    """Return the folder that a user's path names, without links, so that one folder has one path."""
    if character := unprintable(path):
        raise InvalidError(f"{ROOT} contains {character!r}: rename the folder.")
    return Path(os.path.realpath(user_path(path)))


def _place(content: str, site: Site) -> Path:
    """Return the file that contains the path of a folder with this content."""
    return site.runs / inventory.FOLDER / f"{KEY}-{content[:12]}.json"


def _kept(content: str, site: Site) -> Path | None:
    """Return the path that was kept for a folder with this content, or None."""
    try:
        kept = json.loads(_place(content, site).read_bytes())
        return Path(kept["root"]) if kept["content"] == content else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
