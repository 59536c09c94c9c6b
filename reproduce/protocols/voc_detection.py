"""Object detection on VOC07+12: Faster R-CNN with a C4 backbone.

Sources: section 8.4; protocol sheet, 11; facebookresearch/moco detection/. The encoder provides the first
four stages of the detector. Its fifth stage, followed by one more normalisation, is the head of each box. The
detector is trained on the trainval images of 2007 and 2012. It is measured on the test images of 2007 by
VOC2007's own average precision (11 points) at ten overlaps from .5 to .95. The sources report the mean of
five runs: `--seeds 5`.

At paper scale, training takes 24 000 iterations of 16 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from reproduce.protocols.detection import Detection

BASE = "facebookresearch/moco detection/configs/Base-RCNN-C4-BN.yaml"
"""Config file that SOURCE is based on."""
SOURCE = "facebookresearch/moco detection/configs/pascal_voc_R_50_C4_24k.yaml"
"""Config file of the paper's schedule."""


@dataclass(frozen=True, kw_only=True)
class VOCDetection(Detection, name="voc_detection"):
    """Settings of the fine-tuning on VOC. Values without a source are from MoCo's config file."""

    base_lr: float = 0.02
    """Peak learning rate at a batch of 16 (section 8.4 and SOURCE)."""
    iterations: int = 24_000
    """Training steps at a batch of 16 (SOURCE; section 8.4 takes everything but the rate from it)."""
    drops: tuple[int, ...] = (18_000, 22_000)
    """Steps at which the rate falls, at a batch of 16 (SOURCE)."""
    warmup_iterations: int = 100
    """Steps of linear warm-up at a batch of 16 (SOURCE)."""
    train_sizes: tuple[int, ...] = tuple(range(480, 801, 32))
    """Shorter side of a training image in pixels, drawn per image (SOURCE)."""
    rpn_train_top: tuple[int, int] = (12_000, 2_000)
    """Proposals per training image before and after suppression (detectron2/config/defaults.py)."""
    rpn_test_top: tuple[int, int] = (6_000, 1_000)
    """Proposals per test image before and after suppression (BASE)."""
    box_resolution: int = 14
    """Side of the feature grid pooled for a box, which the fifth stage halves
    (detectron2/config/defaults.py)."""

    wants: ClassVar[str] = "boxes by the rules of VOC"
    masks: ClassVar[bool] = False
    fpn: ClassVar[bool] = False
    benchmark: ClassVar[Literal["voc", "coco"]] = "voc"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("ap50", "ap75", "ap")
