"""What a backbone costs, counted from its layers without torch, whose import takes seconds: operations of an
image, bytes of its files.

    network("resnet50").operations(224)           # 8.2e9, forward, a multiply-add as two
    siamese(network("small"), Heads())            # bytes of its encoder and of a checkpoint

Kept beside `backbones.py` by a test that counts the same with torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from reproduce.nn.heads import Heads

FLOAT, COUNTER = 4, 8
"""Bytes of a float32, and of the counter of batches that each BatchNorm keeps."""


class Conv(NamedTuple):
    """A convolution without bias and the BatchNorm behind it."""

    inputs: int
    outputs: int
    kernel: int
    reduction: int
    """Pixels of the image's side from one place of what it returns to the next."""


class Network(NamedTuple):
    """A backbone as its convolutions; all else is nearly free."""

    layers: tuple[Conv, ...]

    @property
    def num_features(self) -> int:
        """Of what it returns."""
        return self.layers[-1].outputs

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(conv.inputs * conv.outputs * conv.kernel**2 + 2 * conv.outputs for conv in self.layers)

    @property
    def buffers(self) -> int:
        """Bytes of the BatchNorms' running statistics."""
        return sum(2 * FLOAT * conv.outputs + COUNTER for conv in self.layers)

    def operations(self, size: int) -> float:
        """Of the forward pass of an image of `size` x `size` pixels, a multiply-add as two; the backward pass
        takes twice as many."""
        return float(
            sum(
                2 * conv.inputs * conv.outputs * (conv.kernel * -(-size // conv.reduction)) ** 2
                for conv in self.layers
            )
        )


class Sizes(NamedTuple):
    """Of the files of a pretraining run."""

    encoder: int
    checkpoint: int
    """Both networks and the optimiser's momentum."""


def network(backbone: str) -> Network | None:
    """The backbone of `backbones.py` of that name; None: its layers are not known here."""
    if backbone == "small":
        return Network(
            (Conv(3, 16, 3, 2), *_basic(16, 16, 2, 1), *_basic(16, 32, 4, 2), *_basic(32, 64, 8, 2))
        )
    if backbone in ("resnet18", "resnet18_3x3"):
        wide = backbone == "resnet18"
        return Network(
            (
                Conv(3, 64, 7, 2) if wide else Conv(3, 64, 3, 1),
                *_stages((2, 2, 2, 2), 4 if wide else 2, bottleneck=False),
            )
        )
    if backbone == "resnet50":
        return Network((Conv(3, 64, 7, 2), *_stages((3, 4, 6, 3), 4, bottleneck=True)))
    return None


def _stages(depths: Iterable[int], reduction: int, *, bottleneck: bool) -> Iterable[Conv]:
    """torchvision's four stages of a ResNet whose stem, pooling included, reduces an image's side by
    `reduction`."""
    inputs = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            reduction *= stride
            width = 64 * 2**stage
            yield from (_bottleneck if bottleneck else _basic)(inputs, width, reduction, stride)
            inputs = 4 * width if bottleneck else width


def _basic(inputs: int, outputs: int, reduction: int, stride: int) -> Iterable[Conv]:
    """Two 3x3 convolutions, and a 1x1 on the shortcut where the shape changes."""
    if stride != 1 or inputs != outputs:
        yield Conv(inputs, outputs, 1, reduction)
    yield from (Conv(inputs, outputs, 3, reduction), Conv(outputs, outputs, 3, reduction))


def _bottleneck(inputs: int, width: int, reduction: int, stride: int) -> Iterable[Conv]:
    """1x1, 3x3 (which has the stride, as torchvision's) and 1x1 to four times the width, and a 1x1 on the
    shortcut likewise."""
    if stride != 1 or inputs != 4 * width:
        yield Conv(inputs, 4 * width, 1, reduction)
    yield from (
        Conv(inputs, width, 1, reduction // stride),
        Conv(width, width, 3, reduction),
        Conv(width, 4 * width, 1, reduction),
    )


def siamese(backbone: Network, heads: Heads) -> Sizes:
    """The files of a run that trains a backbone, a projector and a predictor, with a target for the first two
    (`nn/siamese.py`)."""
    projector, predictor = (_head(inputs, heads) for inputs in (backbone.num_features, heads.output))
    statistics = (2 * FLOAT * heads.hidden + COUNTER) if heads.norm == "batchnorm" else 0
    encoder = FLOAT * (backbone.parameters + projector) + backbone.buffers + statistics
    online = encoder + FLOAT * predictor + statistics
    return Sizes(encoder, online + encoder + FLOAT * (backbone.parameters + projector + predictor))


def _head(inputs: int, heads: Heads) -> int:
    """Parameters of the two layers and the normalisation between them."""
    return (
        inputs * heads.hidden + heads.hidden + 2 * heads.hidden + heads.hidden * heads.output + heads.output
    )
