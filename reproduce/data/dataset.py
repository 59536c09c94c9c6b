"""What every data set says about itself. One file of this folder holds one data set: its settings and how its
splits are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reproduce.messages import NotFoundError
from reproduce.settings import Settings
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Images


@dataclass(frozen=True, kw_only=True)
class Dataset(Settings):
    """Base class: the geometry and normalisation that training views and test images share."""

    size: int
    """Side of a training view and of a test crop, in pixels."""
    resize: int
    """Shorter side of a test image before the centre crop, in pixels; bicubic."""
    canvas: int
    """Side of the square to which an image is decoded before its views are cropped from it, in pixels."""
    mean: tuple[float, float, float]
    """Of the RGB channels, for values from 0 to 1."""
    std: tuple[float, float, float]
    """Of the RGB channels, for values from 0 to 1."""

    pretrain_split: str = "train"
    """Pretraining reads these images; labels are not used."""
    train_split: str = "train"
    """Labelled; classifiers and neighbours come from it."""
    test_split: str = "val"
    """Labelled; only ever measured on."""

    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    """All that there are."""
    title: ClassVar[str]
    """As printed in captions."""
    published: ClassVar[Mapping[str, int]] = {}
    """Images of each split where that is known without looking, for estimates of time; a field `num_<split>`
    says it too."""

    def check(self) -> None:
        if not 0 < self.size <= self.resize or self.canvas < 1:
            raise ValueError(
                f"{self.name} takes 0 < size <= resize and canvas >= 1, not size={self.size}, resize={self.resize}, canvas={self.canvas}."
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"{self.name} takes std > 0 for each channel, not {self.std}.")
        for key in ("pretrain_split", "train_split", "test_split"):
            if getattr(self, key) not in self.splits:
                raise ValueError(
                    f"{self.name} takes {key} of {', '.join(self.splits)}, not '{getattr(self, key)}'."
                )

    def check_root(self, site: Site) -> None:
        """Raises LookupError where `site` does not say where the files are, or a folder or list of their
        layout is not there.

        Only folders and lists are looked for, not every image; data that are generated need no root.
        """

    def load(self, split: str, site: Site) -> Images:
        """The images of `split`.

        Raises:
            LookupError: the root is not set or not there, or there is no such split.
            ValueError: a file is broken; the message names it.
        """
        raise NotImplementedError

    def check_subset(self, name: str, site: Site, *, fetch: bool = True) -> None:
        """Finds out, before anything starts, whether `labelled_subset` has its list; fetches it where it is
        to be fetched.

        Args:
            fetch: False: nothing is fetched, and what would be counts as here.

        Raises:
            LookupError: there is no such list, or it cannot be had; the message says how to get it.
            ValueError: its bytes are not those that were published.
        """
        raise NotFoundError(
            f"{self.title} has no list of labelled images '{name}': ImageNet, Imagenette and the synthetic folder have."
        )

    def labelled_subset(self, name: str, site: Site) -> NDArray[np.int64]:
        """The images of the train split whose labels semi-supervised classification may use: indices (n,),
        ascending.

        Args:
            name: `1percent` or `10percent`.

        Raises:
            LookupError: as `check_subset`.
            ValueError: an image of the list is not there; the message names it and says how many are not.
        """
        self.check_subset(name, site)
        raise NotImplementedError
