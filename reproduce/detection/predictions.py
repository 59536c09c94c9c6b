"""What a detector finds in an image, whichever engine ran it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Predicted:
    """The detections of one image, in the image's own pixels."""

    id: int | str
    """Of the picture."""
    boxes: NDArray[np.float64]
    """(n, 4): left, top, right, bottom as in `data/detection.py`."""
    scores: NDArray[np.float64]
    """(n,), from 0 to 1."""
    labels: NDArray[np.int64]
    """(n,), places in the classes."""
    masks: tuple[Mapping[str, Any], ...] | None = None
    """(n,), COCO's compressed run-length encodings (`pycocotools.mask.encode`); None: boxes only."""
