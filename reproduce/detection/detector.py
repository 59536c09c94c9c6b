"""Faster R-CNN and Mask R-CNN built from torchvision's parts around one of our backbones.

C4 (`voc_detection`): features come from the last stage but one. The last stage, followed by a BatchNorm, is
the head of each box. FPN (`coco_mask_rcnn`): a pyramid over all stages, with BatchNorm in the pyramid and in
the heads.

Values for which the protocol has no setting are of two kinds:

- the same in torchvision and Detectron2 (detectron2/config/defaults.py): overlaps of .7 and .3, and of .5;
  256 anchors per image, half of them objects; a quarter of an image's proposals objects; suppression at .7
  and .5; weights 10, 10, 5, 5;
- torchvision's own: rounded anchors, RoIAlign with `aligned=False`, smooth L1 with beta 1/9, initial weights.
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
"""Normalisations that equal BatchNorm with a single process."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Ratios of an anchor's height to its width (detectron2/config/defaults.py)."""
CANONICAL = {"canonical_scale": 224, "canonical_level": 4}
"""Reference of the pooling: a box of 224 pixels is pooled from features of stride 16
(detectron2/modeling/poolers.py)."""
NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build(
    protocol: Detection, backbone: nn.Module, dataset: DetectionDataset, *, num_classes: int, seed: int
) -> Any:
    """Build a detector with a copy of `backbone` and with heads whose weights `seed` determines.

    The result is torchvision's GeneralizedRCNN on the CPU. In training mode it maps images and targets
    (`examples.py`) to named losses. In eval mode it maps images to boxes, labels from 1, scores and masks.

    Raises:
        ValueError: torchvision has no such detector. The message names the setting.
    """
    _check(protocol)
    own = copy.deepcopy(backbone).cpu().to(memory_format=torch.contiguous_format).requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed("detection weights", seed))
        return (_pyramid if protocol.fpn else _c4)(protocol, stages(own), dataset, 1 + num_classes)


def test_mode(detector: Any, protocol: Detection) -> Any:
    """Prepare the detector for testing, at the size of test images. It cannot be trained afterwards."""
    detector.transform.min_size = (protocol.test_size,)
    return detector.eval()


def parameter_groups(detector: nn.Module, protocol: Detection) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups, normalisation apart, each with its weight decay."""
    layers = [module for module in detector.modules() if isinstance(module, NORMALISATION)]
    norms = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    known = {id(parameter) for parameter in norms}
    others = [parameter for parameter in detector.parameters() if id(parameter) not in known]
    groups = ((others, protocol.weight_decay), (norms, protocol.norm_weight_decay))
    return [
        {"params": [p for p in params if p.requires_grad], "weight_decay": decay} for params, decay in groups
    ]


class Trunk(nn.Module):
    """The first stages of a backbone. The first `freeze_at` of them keep their weights and statistics."""

    def __init__(self, parts: list[Stage], freeze_at: int) -> None:
        super().__init__()
        if not 0 <= freeze_at <= len(parts):
            raise InvalidError(
                f"freeze_at is {freeze_at}, but the backbone has only {len(parts)} stages to freeze, "
                "including the stem."
            )
        self.stages = nn.ModuleList(part.module for part in parts)
        self.frozen = self.stages[:freeze_at].requires_grad_(False)

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of each stage: (n, 3, h, w) -> (n, channels, h / stride, w / stride)."""
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
        """Return a single level of features: (n, 3, h, w) -> (n, channels, h / stride, w / stride)."""
        return OrderedDict([("0", self.trunk(images)[-1])])


class LastStage(nn.Module):
    """Head of a box: the backbone's last stage, one more norm, and the mean over positions.

    Follows Detectron2's `Res5ROIHeadsExtraNorm`.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage.module
        self.norm = nn.BatchNorm2d(stage.channels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return one vector per box: (boxes, channels, side, side) -> (boxes, last channels)."""
        return torch.mean(self.norm(self.stage(pooled)), dim=(2, 3))


class Pyramid(nn.Module):
    """A feature pyramid with BatchNorm over all stages but the stem, and a coarser level on top."""

    def __init__(self, trunk: Trunk, channels: list[int], width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.fpn = FeaturePyramidNetwork(
            channels, width, extra_blocks=LastLevelMaxPool(), norm_layer=nn.BatchNorm2d
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels, finest first: (n, 3, h, w) -> (n, width, h / stride, w / stride) each."""
        features = self.trunk(images)[1:]
        levels: dict[str, Tensor] = self.fpn(
            OrderedDict((str(level), each) for level, each in enumerate(features))
        )
        return levels


def _check(protocol: Detection) -> None:
    """Raise ValueError for a setting that torchvision does not have."""
    if protocol.stride_in_1x1:
        raise InvalidError(
            "stride_in_1x1 is True, but the stride of torchvision's bottlenecks is in the 3x3 convolution: "
            "set it to False."
        )
    if protocol.norm not in NORMS:
        raise InvalidError(
            f"norm is '{protocol.norm}', but the engine torchvision trains with {' or '.join(NORMS)}, "
            "which are the same in one process."
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
            f"anchor_sizes has {len(protocol.anchor_sizes)} sizes, but the pyramid needs {len(levels) + 1}, "
            "one for each level."
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
    """Return the channels of the pyramid and the heads.

    A ResNet-50, whose last stage has 2048 channels, has 256. Other backbones have a proportional number, at
    least 32.
    """
    return max(32, channels // 8)


def _proposals(protocol: Detection, channels: int, sizes: tuple[tuple[int, ...], ...]) -> Any:
    """Return the network that proposes boxes.

    Args:
        sizes: anchor sizes of each level, in pixels.
    """
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
    """Return the heads, which classify and refine each proposal."""
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
    """Return a RoIAlign over levels with these strides.

    torchvision would infer the strides from the first batch, and would get them wrong if that is mostly
    padding.
    """
    pool = MultiScaleRoIAlign(
        [str(level) for level in range(len(strides))], side, sampling_ratio=2, **CANONICAL
    )
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])), **CANONICAL)
    return pool


def _transform(protocol: Detection, dataset: DetectionDataset, multiple: int) -> Any:
    """Return the transform of an image: normalisation, resizing to a training size, padding.

    Padding goes to a multiple of the coarsest level's stride.
    """
    return GeneralizedRCNNTransform(
        protocol.train_sizes,
        protocol.max_size,
        list(dataset.mean),
        list(dataset.std),
        size_divisible=multiple,
    )
