"""Object detection on VOC07+12: Faster R-CNN with a C4 backbone (section 8.4; protocol sheet, 11;
facebookresearch/moco detection/).

The detector's first four stages are the encoder's, its fifth is the head of each box, with one more
normalisation behind it. Trained on the trainval images of 2007 and 2012, measured on the test images of 2007
by VOC2007's own average precision (11 points) at ten overlaps
from .5 to .95. Sources print the mean of five runs: `--seeds 5`.

At paper scale 24 000 iterations of 16 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from reproduce.protocols.detection import Detection

BASE = "facebookresearch/moco detection/configs/Base-RCNN-C4-BN.yaml"
SOURCE = "facebookresearch/moco detection/configs/pascal_voc_R_50_C4_24k.yaml"


@dataclass(frozen=True, kw_only=True)
class VOCDetection(Detection, name="voc_detection"):
    """Settings; where no source stands, SOURCE's."""

    base_lr: float = 0.02
    """Section 8.4, and SOURCE's."""
    iterations: int = 24_000
    """SOURCE's; section 8.4 takes all but the rate from there."""
    drops: tuple[int, ...] = (18_000, 22_000)
    """SOURCE's."""
    warmup_iterations: int = 100
    """SOURCE's."""
    train_sizes: tuple[int, ...] = tuple(range(480, 801, 32))
    """SOURCE's."""
    rpn_train_top: tuple[int, int] = (12_000, 2_000)
    """detectron2/config/defaults.py."""
    rpn_test_top: tuple[int, int] = (6_000, 1_000)
    """BASE's."""
    box_resolution: int = 14
    """detectron2/config/defaults.py: the fifth stage halves it."""

    wants: ClassVar[str] = "boxes by the rules of VOC"
    masks: ClassVar[bool] = False
    fpn: ClassVar[bool] = False
    benchmark: ClassVar[Literal["voc", "coco"]] = "voc"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("ap50", "ap75", "ap")
