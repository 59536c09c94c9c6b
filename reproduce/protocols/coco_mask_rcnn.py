"""Instance segmentation on COCO 2017: Mask R-CNN with a feature pyramid, 1x schedule (section 8.4; protocol
sheet, 11).

Trained on train2017, measured on val2017 by COCO's average precision of boxes and of masks. The paper gives
the schedule; the rest is the transfer recipe of its sources (DenseCL, PixPro, VISSL): nothing frozen,
BatchNorm over all devices also in the pyramid and in the heads.

At paper scale 90 000 iterations of 16 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from reproduce.protocols.detection import Detection


@dataclass(frozen=True, kw_only=True)
class COCOMaskRCNN(Detection, name="coco_mask_rcnn"):
    """Settings."""

    base_lr: float = 0.05
    """Section 8.4 (VICReg, whose schedule it is: .04)."""
    iterations: int = 90_000
    """Section 8.4."""
    drops: tuple[int, ...] = (60_000, 80_000)
    """Section 8.4."""
    warmup_iterations: int = 50
    """Section 8.4."""
    train_sizes: tuple[int, ...] = tuple(range(640, 801, 32))
    """detectron2 configs/Base-RCNN-FPN.yaml and configs/common of the 1x schedule."""
    rpn_train_top: tuple[int, int] = (2_000, 1_000)
    """detectron2 configs/Base-RCNN-FPN.yaml: before suppression on each level, after it over all."""
    rpn_test_top: tuple[int, int] = (1_000, 1_000)
    """The same."""
    box_resolution: int = 7
    """The same."""
    mask_resolution: int = 14
    """The same; the mask head doubles it."""
    box_head: Literal["4conv1fc", "2fc"] = "4conv1fc"
    """No source fixes the paper's: four convolutions and a fully connected layer with BatchNorm (DenseCL,
    PixPro), or two of the latter."""

    wants: ClassVar[str] = "boxes and masks by the rules of COCO"
    masks: ClassVar[bool] = True
    fpn: ClassVar[bool] = True
    benchmark: ClassVar[Literal["voc", "coco"]] = "coco"

    def check(self) -> None:
        super().check()
        if self.mask_resolution < 1:
            raise ValueError(f"{self.name} takes mask_resolution of at least 1, not {self.mask_resolution}.")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")
