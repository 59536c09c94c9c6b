"""The data set of generated images that a rehearsed pretraining reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data.dataset import Dataset
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.data.images import Images


@dataclass(frozen=True, kw_only=True)
class StandIn(Dataset, name="rehearsal"):
    """A data set's geometry with generated images."""

    files: tuple[str, ...]
    """Paths of the images."""
    total: int
    """Number of images."""
    ready: bool
    """True if the images are decoded in advance."""

    title: ClassVar[str] = "generated photographs"

    def load(self, split: str, site: Site) -> Images:
        from reproduce.commands.photographs import Generated

        return Generated(tuple(map(Path, self.files)), self.total, ready=self.ready)
