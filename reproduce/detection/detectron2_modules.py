"""Layers that Detectron2 lacks, registered under the names of `detectron2_config.py`.

Detectron2 may be missing, so its subclasses are created only on demand.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from reproduce.detection.detectron2_config import C4_HEADS


@cache
def register() -> None:
    """Add these parts to Detectron2's registries, once. Detectron2 must be on the import path."""
    from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY

    heads = _heads()
    heads.__name__ = C4_HEADS
    ROI_HEADS_REGISTRY.register(heads)
    BACKBONE_REGISTRY.register(resnet_3x3)
    BACKBONE_REGISTRY.register(resnet_3x3_fpn)


def _heads() -> Any:
    """Return the class of a C4 detector's heads with a normalisation after the last stage, as in MoCo.

    Source: facebookresearch/moco detection/train_net.py. The class also supports the last stage of a
    ResNet-18; Detectron2's own only builds that of deeper networks.
    """
    from detectron2.layers import get_norm
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
    from detectron2.modeling.roi_heads import Res5ROIHeads
    from torch import nn

    class Heads(Res5ROIHeads):  # type: ignore[misc]
        @classmethod
        def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
            values = cfg.MODEL.RESNETS
            if values.DEPTH == 18:
                # (n, 256, side, side) -> (n, 512, side / 2, side / 2)
                blocks = ResNet.make_stage(
                    BasicBlock,
                    2,
                    stride_per_block=[2, 1],
                    in_channels=256,
                    out_channels=512,
                    norm=values.NORM,
                )
                stage, channels = nn.Sequential(*blocks), 512
            else:
                stage, channels = super()._build_res5_block(cfg)
            stage.add_module("norm", get_norm(values.NORM, channels))
            return stage, channels

    return Heads


def resnet_3x3(cfg: Any, input_shape: Any) -> Any:
    """Return a ResNet-18 whose first convolution is 3x3 with stride 1, followed by max pooling.

    It is `resnet18_3x3` of `nn/backbones.py`.
    """
    from detectron2.layers import Conv2d, get_norm
    from detectron2.modeling.backbone.resnet import BasicStem, ResNet

    values = cfg.MODEL.RESNETS
    stem = BasicStem(
        in_channels=input_shape.channels, out_channels=values.STEM_OUT_CHANNELS, norm=values.NORM
    )
    stem.conv1 = Conv2d(
        input_shape.channels,
        values.STEM_OUT_CHANNELS,
        kernel_size=3,
        padding=1,
        bias=False,
        norm=get_norm(values.NORM, values.STEM_OUT_CHANNELS),
    )
    stem.stride = 2  # that of the pooling alone
    stages = ResNet.make_default_stages(values.DEPTH, norm=values.NORM)
    return ResNet(stem, stages, out_features=values.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def resnet_3x3_fpn(cfg: Any, input_shape: Any) -> Any:
    """Return a pyramid over `resnet_3x3`, with one more level on top of the last.

    The last level may have any name; Detectron2's pyramid expects it to be p5.
    """
    from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

    values, top = cfg.MODEL.FPN, LastLevelMaxPool()
    top.in_feature = cfg.MODEL.ROI_HEADS.IN_FEATURES[-1]
    return FPN(
        bottom_up=resnet_3x3(cfg, input_shape),
        in_features=values.IN_FEATURES,
        out_channels=values.OUT_CHANNELS,
        norm=values.NORM,
        top_block=top,
        fuse_type=values.FUSE_TYPE,
    )
