"""Instance segmentation on COCO 2017: Mask R-CNN with a feature pyramid, 1x schedule.

Sources: section 8.4; protocol sheet, 11. The detector is trained on train2017 and measured on val2017 by
COCO's average precision of boxes and masks. The paper gives the schedule. Everything else follows the
transfer recipe of its sources (DenseCL, PixPro, VISSL): nothing is frozen, and BatchNorm over all devices is
also used in the pyramid and in the heads.

At paper scale, training takes 90 000 iterations of 16 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from reproduce.protocols.detection import Detection
from reproduce.settings import Pixels


@dataclass(frozen=True, kw_only=True)
class COCOMaskRCNN(Detection, name="coco_mask_rcnn"):
    """Settings of the fine-tuning on COCO; the schedule is the paper's."""

    base_lr: float = 0.05
    """Peak learning rate at a batch of 16 (section 8.4; VICReg, the source of the schedule, uses .04)."""
    iterations: int = 90_000
    """Training steps at a batch of 16 (section 8.4)."""
    drops: tuple[int, ...] = (60_000, 80_000)
    """Steps at which the rate falls, at a batch of 16 (section 8.4)."""
    warmup_iterations: int = 50
    """Steps of linear warm-up at a batch of 16 (section 8.4)."""
    train_sizes: tuple[int, ...] = tuple(range(640, 801, 32))
    """Shorter side of a training image in pixels, drawn per image (detectron2 configs/Base-RCNN-FPN.yaml and
    configs/common of the 1x schedule)."""
    rpn_train_top: tuple[int, int] = (2_000, 1_000)
    """Proposals per training image: before suppression on each level, after it over all levels (detectron2
    configs/Base-RCNN-FPN.yaml)."""
    rpn_test_top: tuple[int, int] = (1_000, 1_000)
    """Proposals per test image, counted in the same way (detectron2 configs/Base-RCNN-FPN.yaml)."""
    box_resolution: int = 7
    """Side of the feature grid pooled for a box (detectron2 configs/Base-RCNN-FPN.yaml)."""
    mask_resolution: Pixels = 14
    """Side of the feature grid pooled for a mask, which the mask head doubles (detectron2
    configs/Base-RCNN-FPN.yaml)."""
    box_head: Literal["4conv1fc", "2fc"] = "4conv1fc"
    """Layers of the box head, which no source specifies for the paper: four convolutions and one fully
    connected layer with BatchNorm (DenseCL, PixPro), or two fully connected layers."""

    wants: ClassVar[str] = "boxes and masks by the rules of COCO"
    masks: ClassVar[bool] = True
    fpn: ClassVar[bool] = True
    benchmark: ClassVar[Literal["voc", "coco"]] = "coco"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")
