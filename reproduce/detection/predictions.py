"""The detections of one image, in the same form for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Predicted:
    """The detections of one image, in that image's own pixels."""

    id: int | str
    """Identifier of the picture."""
    boxes: NDArray[np.float64]
    """Boxes, (n, 4): left, top, right, bottom as in `data/detection.py`."""
    scores: NDArray[np.float64]
    """Scores, (n,), from 0 to 1."""
    labels: NDArray[np.int64]
    """Labels, (n,): indices into the classes."""
    masks: tuple[Mapping[str, Any], ...] | None = None
    """Masks, (n,): COCO's compressed run-length encodings (`pycocotools.mask.encode`). None if only boxes are
    predicted."""
