"""Base class of data sets with labels.

Each module of this folder defines one data set: its settings, and a reader of its splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.identity import added_later
from reproduce.messages import NotFoundError
from reproduce.settings import Channels, Deviations, Pixels, Resampling, Settings
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Images

MOST_FILES = 50_000
"""Maximum number of files of a split whose states are checked each time; 13 394 take 0.05 s."""


@dataclass(frozen=True, kw_only=True)
class Dataset(Settings):
    """Base class: the geometry and normalisation that training views and test images share."""

    size: Pixels
    """Side of a training view and of a test crop, in pixels."""
    resize: Pixels
    """Shorter side of a test image before the centre crop, in pixels."""
    test_resampling: Resampling = added_later("bicubic", "0.2")
    """Filter that resizes a test image, antialiased in both cases."""
    canvas: Pixels
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: Channels
    """Mean of the RGB channels, for values from 0 to 1."""
    std: Deviations
    """Standard deviation of the RGB channels, for values from 0 to 1."""

    pretrain_split: str = "train"
    """Split for pretraining; its labels are not used."""
    train_split: str = "train"
    """Labelled split that classifiers are trained on and neighbours come from."""
    test_split: str = "val"
    """Labelled split that is only ever evaluated on."""

    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    """Names of all splits."""
    title: ClassVar[str]
    """Name that captions print."""
    short: ClassVar[str] = ""
    """Name in the titles of runs; the data set's own name if empty."""
    published: ClassVar[Mapping[str, int]] = {}
    """Number of images in each split, if known in advance. The images on disk are compared with it, and
    estimates of time use it. A field `num_<split>` serves the latter purpose."""
    typical: ClassVar[tuple[int, int]] = (500, 375)
    """Typical width and height of an image in pixels, for rehearsals: by default a landscape photograph of
    ImageNet or VOC, most of which have a longer side of 500."""
    raw: ClassVar[bool] = False
    """True if the images are stored as pixels, which need no decoding."""
    roots: ClassVar[tuple[str, ...]] = ()
    """Keys of its folders under [data] in the site file; empty for the name of the data set."""
    multi_label: ClassVar[bool] = False
    """True if an image can have several labels."""
    most_checked: ClassVar[int] = MOST_FILES
    """Maximum number of files of a split whose states are checked each time."""

    def check(self) -> None:
        check_sizes(self.name, self.size, self.resize, self.canvas)
        for key in ("pretrain_split", "train_split", "test_split"):
            if getattr(self, key) not in self.splits:
                raise ValueError(
                    f"{self.name} has no {key} '{getattr(self, key)}'. Known: {', '.join(self.splits)}."
                )

    def num_images(self, split: str) -> int | None:
        """Return the number of images of a split, such as `train+unlabeled`; None if unknown in advance."""
        counts = [self.published.get(part) or getattr(self, f"num_{part}", None) for part in split.split("+")]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def label(self) -> str:
        """Name in the titles of runs."""
        return self.short or self.name

    def folders(self, site: Site) -> Mapping[str, str]:
        """Return its folders by their keys; empty for generated images, or if none is set."""
        return site.folders(self.roots or (self.name,))

    def check_root(self, site: Site) -> None:
        """Raise LookupError if the site file names no root, or if a folder or list of the layout is missing.

        Only folders and lists are checked, not every image. Generated data sets need no root.
        """

    def load(self, split: str, site: Site) -> Images:
        """Return the images of `split`.

        Raises:
            LookupError: the root is not set or does not exist, or the split does not exist.
            ValueError: a file is broken. The message names it.
        """
        raise NotImplementedError

    def count(self, split: str, site: Site) -> int:
        """Return the number of images of `split` that are listed here, as cheaply as possible.

        Raises:
            LookupError, ValueError: see `load`; or a file of a split that is not large is empty or not a
                file.
        """
        images = self.load(split, site)
        if len(images) <= self.most_checked:
            _ = images.states  # raises for such a file
        return len(images)

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
        """Return the files besides the images that `split` is read from: lists, labels, annotations."""
        return ()

    def check_subset(self, name: str, site: Site, *, fetch: bool = True) -> None:
        """Check before anything starts that `labelled_subset` will find its list, and fetch it if necessary.

        Args:
            fetch: False to fetch nothing. A list that could be fetched then counts as available.

        Raises:
            LookupError: the list does not exist or cannot be fetched. The message explains how to get it.
            ValueError: the bytes of the list differ from the published ones.
        """
        raise NotFoundError(
            f"{self.title} has no list of labelled images '{name}'; "
            "ImageNet, Imagenette and the synthetic folder do."
        )

    def labelled_subset(self, name: str, site: Site) -> NDArray[np.int64]:
        """Return the indices of the train images whose labels may be used, (n,), ascending.

        Semi-supervised classification uses these labels only.

        Args:
            name: `1percent` or `10percent`.

        Raises:
            LookupError: see `check_subset`.
            ValueError: an image of the list is missing. The message names it and counts the missing ones.
        """
        self.check_subset(name, site)
        raise NotImplementedError


def check_sizes(name: str, size: int, resize: int, canvas: int) -> None:
    """Raise ValueError if images would be smaller than what is cropped from them.

    Args:
        name: name of the settings.
    """
    if size > min(resize, canvas):
        raise ValueError(
            f"{name} needs size <= resize and size <= canvas, but size={size}, resize={resize}, "
            f"canvas={canvas}. If --set changes several, put resize and canvas before a larger size and "
            "after a smaller one."
        )
