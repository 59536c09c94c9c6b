"""Everything that an engine adds to a run's record besides the metrics, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reproduce.runs.progress import Watch

if TYPE_CHECKING:
    from reproduce.data.detection import Annotated
    from reproduce.detection.predictions import Predicted
    from reproduce.detection.scoring import Scores
    from reproduce.protocols.detection import Detection

LOG_EVERY = 20
"""Steps between two logged points, as in Detectron2's writers (detectron2/engine/defaults.py)."""
PICTURE = "detections.png"
"""Name of the file with a few test images and their detections."""


def scores(protocol: Detection, test: Annotated, found: Sequence[Predicted]) -> dict[str, Scores]:
    """Return our average precisions by the benchmark's rules, keyed by the prefix of their metrics' names."""
    from reproduce.detection import scoring

    if protocol.benchmark == "voc":
        return {"": scoring.voc(test, found)}
    ours = {"box_": scoring.coco(test, found, "bbox")}
    if protocol.masks:
        ours["mask_"] = scoring.coco(test, found, "segm")
    return ours


def tested(
    protocol: Detection, test: Annotated, found: Sequence[Predicted], watch: Watch
) -> dict[str, Scores]:
    """Record average precision by class and by size, and return `scores`.

    If the run has a folder, a picture of some detections is recorded too.
    """
    from reproduce.detection import picture, scoring

    ours = scores(protocol, test, found)
    for prefix, each in ours.items():
        watch.record.log(protocol.schedule.iterations, scoring.details(each, prefix))
    if watch.folder is not None:
        watch.record.artifact(picture.draw(test, found, watch.folder / PICTURE))
    return ours
