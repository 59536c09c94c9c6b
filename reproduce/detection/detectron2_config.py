"""A protocol's settings under the names of Detectron2's config, as plain values.

Nothing of Detectron2 is imported here. Values that are not set remain those of detectron2/config/defaults.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from reproduce.messages import InvalidError

if TYPE_CHECKING:
    from reproduce.data.detection import DetectionDataset
    from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
    from reproduce.protocols.detection import Detection

C4_HEADS = "Res5HeadsWithNorm"
"""Name of the heads that `detectron2_modules.py` registers."""
SMALL_STEM, SMALL_STEM_FPN = "resnet_3x3", "resnet_3x3_fpn"
"""Names of the backbones that `detectron2_modules.py` registers."""
HEADS = {"4conv1fc": (4, 1), "2fc": (0, 2)}
"""Numbers of convolutions and fully connected layers of the box head (detectron2 configs/Misc/,
mask_rcnn_R_50_FPN_3x_syncbn.yaml and configs/Base-RCNN-FPN.yaml)."""
STAGES = ("res2", "res3", "res4", "res5")
"""Detectron2's names of the stages of a ResNet after the stem."""


class ResNet(NamedTuple):
    """A backbone of `nn/backbones.py` in Detectron2's terms."""

    depth: int
    channels: int
    """Output channels of the first stage (detectron2/config/defaults.py, RES2_OUT_CHANNELS)."""
    small_stem: bool
    """True for a 3x3 convolution with stride 1 in place of the 7x7 one with stride 2. All features are then
    twice as wide and high."""


RESNETS = {
    "resnet50": ResNet(50, 256, False),
    "resnet18": ResNet(18, 64, False),
    "resnet18_3x3": ResNet(18, 64, True),
}

NORMS = ("SyncBN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN", "BN", "FrozenBN", "GN")
"""Normalisations that Detectron2 has for convolutions (detectron2/layers/batch_norm.py), except LN, which is
not used in ResNets."""


def resnet(backbone: str) -> ResNet:
    """Return what Detectron2 must build for a backbone.

    Raises:
        ValueError: The backbone is not a ResNet that Detectron2 can build.
    """
    if backbone not in RESNETS:
        raise InvalidError(
            f"The engine detectron2 needs a ResNet ({', '.join(RESNETS)}), not the backbone '{backbone}': "
            "`--set protocol.engine=torchvision` accepts any."
        )
    return RESNETS[backbone]


def settings(
    protocol: Detection, backbone: str, dataset: DetectionDataset, *, device: str, seed: int
) -> dict[str, Any]:
    """Return the settings of Detectron2's config by their dotted names.

    They are every value that differs from Detectron2's defaults or that a source of the protocol gives.

    Raises:
        ValueError: Detectron2 does not support the backbone, or a setting's value.
    """
    network = resnet(backbone)
    if protocol.norm not in NORMS:
        raise InvalidError(
            f"norm is '{protocol.norm}', but the engine detectron2 trains with one of {', '.join(NORMS)}."
        )
    stages = len(STAGES) + 1 if protocol.fpn else len(STAGES)
    if protocol.freeze_at > stages:
        raise InvalidError(
            f"freeze_at is {protocol.freeze_at}, but the backbone has only {stages} stages to freeze, "
            "including the stem."
        )
    return {
        **_network(protocol, network, dataset, device),
        **(_pyramid(protocol, network) if protocol.fpn else _c4(protocol, network)),
        **(_heads(cast("COCOMaskRCNN", protocol)) if protocol.masks else {"MODEL.MASK_ON": False}),
        **_images(protocol),
        **_solver(protocol),
        "SEED": seed,
    }


def _network(protocol: Detection, network: ResNet, dataset: DetectionDataset, device: str) -> dict[str, Any]:
    """Return the values that both architectures share. Pixels range from 0 to 255."""
    return {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.DEVICE": device,
        "MODEL.PIXEL_MEAN": [255 * value for value in dataset.mean],
        "MODEL.PIXEL_STD": [255 * value for value in dataset.std],
        "MODEL.BACKBONE.FREEZE_AT": protocol.freeze_at,
        "MODEL.RESNETS.DEPTH": network.depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": network.channels,
        "MODEL.RESNETS.NORM": protocol.norm,
        "MODEL.RESNETS.STRIDE_IN_1X1": protocol.stride_in_1x1,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": protocol.rpn_train_top[0],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": protocol.rpn_train_top[1],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": protocol.rpn_test_top[0],
        "MODEL.RPN.POST_NMS_TOPK_TEST": protocol.rpn_test_top[1],
        "MODEL.ROI_HEADS.NUM_CLASSES": len(dataset.classes),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": protocol.rois,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": protocol.score_threshold,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": protocol.box_resolution,
        "TEST.DETECTIONS_PER_IMAGE": protocol.max_detections,
    }


def _c4(protocol: Detection, network: ResNet) -> dict[str, Any]:
    """Return the values of a C4 detector (moco detection/train_net.py).

    Proposals come from the last stage but one. The last stage is the head of each box.
    """
    return {
        "MODEL.BACKBONE.NAME": SMALL_STEM if network.small_stem else "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res4"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(protocol.anchor_sizes)],
        "MODEL.RPN.IN_FEATURES": ["res4"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
        "MODEL.ROI_HEADS.NAME": C4_HEADS,
    }


def _pyramid(protocol: Detection, network: ResNet) -> dict[str, Any]:
    """Return the values of a feature pyramid over all stages (detectron2 configs/Base-RCNN-FPN.yaml).

    One more level contains every other value of the last. Detectron2 names a level by the logarithm of its
    stride: p2 to p6, or p1 to p5 behind the small stem.
    """
    first = 1 if network.small_stem else 2
    levels = [f"p{first + number}" for number in range(len(STAGES) + 1)]
    if len(protocol.anchor_sizes) != len(levels):
        raise InvalidError(
            f"{protocol.name} needs one anchor size for each of {len(levels)} levels, "
            f"not {protocol.anchor_sizes}."
        )
    return {
        "MODEL.BACKBONE.NAME": SMALL_STEM_FPN if network.small_stem else "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": list(STAGES),
        "MODEL.FPN.IN_FEATURES": list(STAGES),
        "MODEL.FPN.NORM": protocol.norm,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[size] for size in protocol.anchor_sizes],
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.ROI_HEADS.IN_FEATURES": levels[:-1],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    }


def _heads(protocol: COCOMaskRCNN) -> dict[str, Any]:
    """Return the values of the box and mask heads, with BatchNorm in both.

    Source: detectron2 configs/Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml.
    """
    convolutions, connected = HEADS[protocol.box_head]
    return {
        "MODEL.MASK_ON": True,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": convolutions,
        "MODEL.ROI_BOX_HEAD.NUM_FC": connected,
        "MODEL.ROI_BOX_HEAD.NORM": protocol.norm,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": protocol.mask_resolution,
        "MODEL.ROI_MASK_HEAD.NORM": protocol.norm,
    }


def _images(protocol: Detection) -> dict[str, Any]:
    """Return the values that describe how images are shown.

    The config has no value for the probability of a flip; `detectron2_training.py` passes it to the mapper.
    """
    return {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TRAIN": protocol.train_sizes,
        "INPUT.MAX_SIZE_TRAIN": protocol.max_size,
        "INPUT.MIN_SIZE_TEST": protocol.test_size,
        "INPUT.MAX_SIZE_TEST": protocol.max_size,
        "INPUT.RANDOM_FLIP": "horizontal" if protocol.flip else "none",
    }


def _solver(protocol: Detection) -> dict[str, Any]:
    """Return the values of the schedule, scaled to the batch."""
    schedule = protocol.schedule
    return {
        "SOLVER.IMS_PER_BATCH": protocol.batch_size,
        "SOLVER.BASE_LR": schedule.lr,
        "SOLVER.MAX_ITER": schedule.iterations,
        "SOLVER.STEPS": schedule.drops,
        "SOLVER.GAMMA": protocol.gamma,
        "SOLVER.WARMUP_ITERS": schedule.warmup_iterations,
        "SOLVER.WARMUP_FACTOR": protocol.warmup_factor,
        "SOLVER.MOMENTUM": protocol.momentum,
        "SOLVER.WEIGHT_DECAY": protocol.weight_decay,
        "SOLVER.WEIGHT_DECAY_NORM": protocol.norm_weight_decay,
        "TEST.PRECISE_BN.ENABLED": protocol.precise_bn_iterations > 0,
        "TEST.PRECISE_BN.NUM_ITER": protocol.precise_bn_iterations,
    }
