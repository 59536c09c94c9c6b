"""What every engine leaves in a run's record beside its metrics, so that the record is the same whichever
trained the detector."""

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
"""Steps between two logged points, as Detectron2's writers (detectron2/engine/defaults.py)."""
PICTURE = "detections.png"
"""The file with a few test images and what was found in them."""


def scores(protocol: Detection, test: Annotated, found: Sequence[Predicted]) -> dict[str, Scores]:
    """Our average precisions by the benchmark's rules, by what the names of their metrics begin with."""
    from reproduce.detection import scoring

    if protocol.benchmark == "voc":
        return {"": scoring.voc(test, found)}
    return {"box_": scoring.coco(test, found, "bbox")} | (
        {"mask_": scoring.coco(test, found, "segm")} if protocol.masks else {}
    )


def tested(
    protocol: Detection, test: Annotated, found: Sequence[Predicted], watch: Watch
) -> dict[str, Scores]:
    """Records average precision by class and by size, and a picture where the run has a folder; returns
    `scores`."""
    from reproduce.detection import picture, scoring

    ours = scores(protocol, test, found)
    for prefix, each in ours.items():
        watch.record.log(protocol.schedule.iterations, scoring.details(each, prefix))
    if watch.folder is not None:
        watch.record.artifact(picture.draw(test, found, watch.folder / PICTURE))
    return ours
