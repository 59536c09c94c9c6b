"""Operations of a fine-tuning, counted from its layers like those of a backbone (`nn/cost.py`).

    operations(VOCDetection(), network("resnet50"))   # 9.7e17: training, a multiply-add counts as two

Only convolutions and fully connected layers are counted. The steps between them (selection of proposals,
suppression) take additional time. The test is not counted either, as its images are few compared with those
of the training. The count needs neither torch nor an engine.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, cast

from reproduce.detection.detectron2_config import HEADS

if TYPE_CHECKING:
    from reproduce.nn.cost import Conv, Network
    from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
    from reproduce.protocols.detection import Detection

ASPECT = 4 / 3
"""Ratio of a photograph's longer to its shorter side."""
FORWARD_AND_BACKWARD = 3
"""Number of forward passes that cost as much as one training step."""
WIDTH, DENSE = 256, 1024
"""Channels of Detectron2's pyramid and heads, and of their fully connected layers
(detectron2/config/defaults.py)."""
POSITIVE = 1 / 4
"""Maximum fraction of an image's proposals that show an object (detectron2/config/defaults.py). Only these
get a mask."""


def operations(protocol: Detection, network: Network) -> float:
    """Return the operations of training a detector, including those of precise BatchNorm statistics."""
    # Side of a square with as many pixels as an image.
    side = ASPECT**0.5 * statistics.mean(protocol.train_sizes)
    passes = FORWARD_AND_BACKWARD * protocol.schedule.iterations + protocol.precise_bn_iterations
    return passes * protocol.batch_size * (_fpn if protocol.fpn else _c4)(protocol, network, side)


def _c4(protocol: Detection, network: Network, side: float) -> float:
    """Return the operations of a forward pass of one image of `side` x `side` pixels through a C4 detector.

    Its last stage is the head of each box.
    """
    coarsest = max(layer.reduction for layer in network.layers)
    features = [layer for layer in network.layers if layer.reduction < coarsest]
    channels = max(layer.outputs for layer in features)
    proposals = _convolution(channels, channels, 3, 2 * side / coarsest)
    head = _layers(
        [layer for layer in network.layers if layer.reduction == coarsest],
        coarsest * protocol.box_resolution / 2,
    )
    return _layers(features, side) + proposals + protocol.rois * head


def _fpn(protocol: Detection, network: Network, side: float) -> float:
    """Return the operations of a forward pass of one image through a detector with a pyramid.

    The pyramid covers all stages and one more level. It has heads for boxes and for masks.
    """
    settings, stages = cast("COCOMaskRCNN", protocol), network.layers[1:]
    wide = protocol.engine == "detectron2"
    width = WIDTH if wide else max(32, network.num_features // 8)  # as in `detector.py`
    dense = DENSE if wide else 4 * width
    channels = {
        layer.reduction: max(each.outputs for each in stages if each.reduction == layer.reduction)
        for layer in stages
    }
    pyramid = sum(
        _convolution(outputs, width, 1, side / reduction) for reduction, outputs in channels.items()
    )
    pyramid += sum(_convolution(width, width, 3, side / reduction) for reduction in channels)
    proposals = sum(
        _convolution(width, width, 3, side / reduction) for reduction in (*channels, 2 * max(channels))
    )
    convolutions, connected = HEADS[settings.box_head]
    resolution, mask = protocol.box_resolution, settings.mask_resolution
    box_head = convolutions * _convolution(width, width, 3, resolution)
    box_head += 2 * dense * (width * resolution**2 + (connected - 1) * dense)
    mask_head = 4 * _convolution(width, width, 3, mask) + _convolution(width, width, 2, mask)
    return (
        network.operations(round(side))
        + pyramid
        + proposals
        + protocol.rois * (box_head + POSITIVE * mask_head)
    )


def _layers(layers: list[Conv], side: float) -> float:
    return sum(
        _convolution(layer.inputs, layer.outputs, layer.kernel, side / layer.reduction) for layer in layers
    )


def _convolution(inputs: int, outputs: int, kernel: int, side: float) -> float:
    """Return the operations of a convolution with an output of `side` x `side` positions."""
    return 2 * inputs * outputs * (kernel * side) ** 2
