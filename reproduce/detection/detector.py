"""Faster R-CNN and Mask R-CNN of torchvision's parts around a backbone of ours.

C4 (`voc_detection`): the features are those of the last stage but one, the last stage is the head of each
box, with a BatchNorm behind it. FPN (`coco_mask_rcnn`): a pyramid over all stages, with BatchNorm in it and
in the heads.

What the protocol has no setting for is the same in torchvision and in Detectron2
(detectron2/config/defaults.py: overlaps of .7 and .3, of .5, 256 anchors of an image, half of them objects, a
quarter of its proposals; suppression at .7 and .5; weights 10, 10, 5, 5), or torchvision's: rounded anchors,
RoIAlign with `aligned=False`, smooth L1 with beta 1/9, initial weights.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from reproduce.messages import InvalidError
from reproduce.nn import seeds
from reproduce.nn.stages import Stage, stages

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.data.detection import DetectionDataset
    from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
    from reproduce.protocols.detection import Detection

NORMS = ("SyncBN", "naiveSyncBN", "BN")
"""The norms that are BatchNorm where there is one process."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Of anchors, height to width (detectron2/config/defaults.py)."""
CANONICAL = {"canonical_scale": 224, "canonical_level": 4}
"""A box of 224 pixels is pooled from features of stride 16 (detectron2/modeling/poolers.py)."""
NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build(
    protocol: Detection, backbone: nn.Module, dataset: DetectionDataset, *, num_classes: int, seed: int
) -> Any:
    """A detector with a copy of `backbone`, and with heads whose weights `seed` decides: torchvision's
    GeneralizedRCNN on the CPU.

    In training it maps images and targets (`examples.py`) to named losses; in eval mode images to boxes,
    labels from 1, scores and masks.

    Raises:
        ValueError: torchvision has no such detector; the message names the setting.
    """
    _check(protocol)
    own = copy.deepcopy(backbone).cpu().to(memory_format=torch.contiguous_format).requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed("detection weights", seed))
        return (_pyramid if protocol.fpn else _c4)(protocol, stages(own), dataset, 1 + num_classes)


def test_mode(detector: Any, protocol: Detection) -> Any:
    """The detector as it measures: at the size of test images. It does not train after that."""
    detector.transform.min_size = (protocol.test_size,)
    return detector.eval()


def parameter_groups(detector: nn.Module, protocol: Detection) -> list[dict[str, Any]]:
    """The parameters that are trained, those of normalisation apart, each with its weight decay."""
    norms = [
        p
        for module in detector.modules()
        if isinstance(module, NORMALISATION)
        for p in module.parameters(recurse=False)
    ]
    known = {id(parameter) for parameter in norms}
    others = [parameter for parameter in detector.parameters() if id(parameter) not in known]
    groups = ((others, protocol.weight_decay), (norms, protocol.norm_weight_decay))
    return [
        {"params": [p for p in params if p.requires_grad], "weight_decay": decay} for params, decay in groups
    ]


class Trunk(nn.Module):
    """The first stages of a backbone, of which the first `freeze_at` are not trained, nor their
    statistics."""

    def __init__(self, parts: list[Stage], freeze_at: int) -> None:
        super().__init__()
        if not 0 <= freeze_at <= len(parts):
            raise InvalidError(
                f"freeze_at is {freeze_at}, but the backbone has {len(parts)} stages that can be frozen, the stem included."
            )
        self.stages = nn.ModuleList(part.module for part in parts)
        self.frozen = self.stages[:freeze_at].requires_grad_(False)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(n, 3, h, w) -> the features of each stage, (n, channels, h / stride, w / stride)."""
        features = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        return features


class C4(nn.Module):
    """The last features of a trunk."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w) -> one level."""
        return OrderedDict([("0", self.trunk(images)[-1])])


class LastStage(nn.Module):
    """The head of a box: the backbone's last stage, one more norm, the mean over places
    (`Res5ROIHeadsExtraNorm`)."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage.module
        self.norm = nn.BatchNorm2d(stage.channels)

    def forward(self, pooled: Tensor) -> Tensor:
        """(boxes, channels, side, side) -> (boxes, last channels)."""
        features: Tensor = self.norm(self.stage(pooled)).mean(dim=(2, 3))
        return features


class Pyramid(nn.Module):
    """A feature pyramid with BatchNorm over all stages but the stem, and a coarser level on top."""

    def __init__(self, trunk: Trunk, channels: list[int], width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.fpn = FeaturePyramidNetwork(
            channels, width, extra_blocks=LastLevelMaxPool(), norm_layer=nn.BatchNorm2d
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w) -> levels of (n, width, h / stride, w / stride), the finest first."""
        features = self.trunk(images)[1:]
        levels: dict[str, Tensor] = self.fpn(
            OrderedDict((str(level), each) for level, each in enumerate(features))
        )
        return levels


def _check(protocol: Detection) -> None:
    """Raises ValueError for a setting that torchvision does not have."""
    if protocol.stride_in_1x1:
        raise InvalidError(
            "stride_in_1x1 is True, but the stride of torchvision's bottlenecks is in the 3x3 convolution: set it to False."
        )
    if protocol.norm not in NORMS:
        raise InvalidError(
            f"norm is '{protocol.norm}', but the engine torchvision trains with {' or '.join(NORMS)}, the same on one process."
        )


def _c4(protocol: Detection, parts: list[Stage], dataset: DetectionDataset, num_labels: int) -> Any:
    *first, last = parts
    backbone = C4(Trunk(first, protocol.freeze_at))
    stride = first[-1].stride
    heads = _heads(
        protocol,
        box_roi_pool=_pool([stride], protocol.box_resolution),
        box_head=LastStage(last),
        box_predictor=FastRCNNPredictor(last.channels, num_labels),
    )
    proposals = _proposals(protocol, first[-1].channels, (protocol.anchor_sizes,))
    return GeneralizedRCNN(backbone, proposals, heads, _transform(protocol, dataset, stride))


def _pyramid(protocol: Detection, parts: list[Stage], dataset: DetectionDataset, num_labels: int) -> Any:
    settings, levels = cast("COCOMaskRCNN", protocol), parts[1:]
    if len(protocol.anchor_sizes) != len(levels) + 1:
        raise InvalidError(
            f"anchor_sizes has {len(protocol.anchor_sizes)} sizes, but the pyramid has {len(levels) + 1} levels, one for each."
        )
    width = _width(levels[-1].channels)
    strides = [level.stride for level in levels]
    side = protocol.box_resolution
    num_convs, num_dense = (4, 1) if settings.box_head == "4conv1fc" else (0, 2)
    heads = _heads(
        protocol,
        box_roi_pool=_pool(strides, side),
        box_head=FastRCNNConvFCHead(
            (width, side, side), [width] * num_convs, [4 * width] * num_dense, norm_layer=nn.BatchNorm2d
        ),
        box_predictor=FastRCNNPredictor(4 * width, num_labels),
        mask_roi_pool=_pool(strides, settings.mask_resolution),
        mask_head=MaskRCNNHeads(width, [width] * 4, dilation=1, norm_layer=nn.BatchNorm2d),
        mask_predictor=MaskRCNNPredictor(width, width, num_labels),
    )
    backbone = Pyramid(Trunk(parts, protocol.freeze_at), [level.channels for level in levels], width)
    proposals = _proposals(protocol, width, tuple((size,) for size in protocol.anchor_sizes))
    return GeneralizedRCNN(backbone, proposals, heads, _transform(protocol, dataset, 2 * strides[-1]))


def _width(channels: int) -> int:
    """Of the pyramid and the heads: the 256 of a ResNet-50, whose last stage has 2048 channels, in
    proportion, but at least 32."""
    return max(32, channels // 8)


def _proposals(protocol: Detection, channels: int, sizes: tuple[tuple[int, ...], ...]) -> Any:
    """The network that proposes boxes; `sizes` are those of the anchors of each level."""
    (train_before, train_after), (test_before, test_after) = protocol.rpn_train_top, protocol.rpn_test_top
    return RegionProposalNetwork(
        AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes)),
        RPNHead(channels, len(sizes[0]) * len(ASPECT_RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": train_before, "testing": test_before},
        post_nms_top_n={"training": train_after, "testing": test_after},
        nms_thresh=0.7,
    )


def _heads(protocol: Detection, **parts: Any) -> Any:
    """What is done with each proposal."""
    return RoIHeads(
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=protocol.rois,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=protocol.score_threshold,
        nms_thresh=0.5,
        detections_per_img=protocol.max_detections,
        **parts,
    )


def _pool(strides: list[int], side: int) -> Any:
    """RoIAlign from levels of these strides. torchvision would guess them from the first batch, wrongly where
    that is mostly padding."""
    pool = MultiScaleRoIAlign(
        [str(level) for level in range(len(strides))], side, sampling_ratio=2, **CANONICAL
    )
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])), **CANONICAL)
    return pool


def _transform(protocol: Detection, dataset: DetectionDataset, multiple: int) -> Any:
    """Normalisation, resizing to one of the training sizes, padding to a multiple of the coarsest level's
    stride."""
    return GeneralizedRCNNTransform(
        protocol.train_sizes,
        protocol.max_size,
        list(dataset.mean),
        list(dataset.std),
        size_divisible=multiple,
    )
