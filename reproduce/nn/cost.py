"""Cost of a backbone: operations and memory per image and bytes of its files, counted from its layers.

    network("resnet50").operations(224)           # 8.2e9, forward, a multiply-add as two
    network("resnet50").activations(224, 2)       # 43e6 bytes for the backward pass, in bfloat16
    sizes(network("small"), siamese(64, Heads()))   # bytes of its encoder and of a checkpoint

It does not need torch, whose import takes seconds. A test counts the same with torch, so that this file and
`backbones.py` agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from reproduce.nn.heads import Head, Heads

SMALL_STEMS = {"resnet18_3x3": (2, 0), "resnet18_cifar": (1, 0), "resnet18_cifar_pad2": (1, 2)}
"""ResNet-18 with a 3x3 stem: the reduction by max pooling, and the pixels that the padding adds."""
FLOAT, COUNTER, INDEX = 4, 8, 8
"""Bytes of a float32, of the counter of batches in each BatchNorm, and of an index of max pooling."""
VECTORS = {"none": 0, "scale": 1, "fixed": 0, "affine": 2}
"""Trained vectors of a normalisation after the last layer."""
BLOCK = 2**26
"""Maximum number of temporary float32 numbers of a loss over a bank (`nn/bank.py`): 268 MB."""
HIDDEN_NORMS = {"batchnorm": "affine", "none": "none"}
"""Normalisation between two layers, by the names of those after the last."""


class Conv(NamedTuple):
    """A convolution without bias, and the BatchNorm after it."""

    inputs: int
    outputs: int
    kernel: int
    reduction: int
    """Ratio of the image's side to that of the output."""
    kept: int = 2
    """Outputs that the backward pass needs: those of the convolution and of the BatchNorm.

    The second is also that of the ReLU, which works in place, and the input of the next convolution. A
    shortcut keeps one, since the sum of two branches needs neither.
    """


class Network(NamedTuple):
    """A backbone as its convolutions; everything else is almost free."""

    layers: tuple[Conv, ...]
    margin: int = 0
    """Pixels that the padding of the first convolution adds to the side of its output."""
    pooled: bool = False
    """True if a max pooling of stride 2 follows the first convolution."""

    @property
    def num_features(self) -> int:
        """Number of features that the backbone returns."""
        return self.layers[-1].outputs

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(conv.inputs * conv.outputs * conv.kernel**2 + 2 * conv.outputs for conv in self.layers)

    @property
    def buffers(self) -> int:
        """Size of the BatchNorms' running statistics in bytes."""
        return sum(2 * FLOAT * conv.outputs + COUNTER for conv in self.layers)

    def places(self, size: int) -> int:
        """Return the places of the last map of an image of `size` x `size` pixels."""
        return int((-(-(size + self.margin) // self.layers[-1].reduction)) ** 2)

    def least_size(self, side: int, stage: int) -> int:
        """Return the smallest side of an image whose map after a stage has at least the side `side`.

        Args:
            stage: number of the stage, counted from the last one, which is 1.
        """
        reduction = sorted({conv.reduction for conv in self.layers})[-stage]
        return (side - 1) * reduction + 1 - self.margin

    def operations(self, size: int) -> float:
        """Return the operations of the forward pass of an image of `size` x `size` pixels.

        A multiply-add counts as two. The backward pass takes twice as many.
        """
        side = size + self.margin
        return float(
            sum(
                2 * conv.inputs * conv.outputs * (conv.kernel * -(-side // conv.reduction)) ** 2
                for conv in self.layers
            )
        )

    def activations(self, size: int, bytes_each: int) -> int:
        """Return the bytes of an image of `size` x `size` pixels that the backward pass needs.

        The image itself is left out.

        Args:
            bytes_each: bytes of a number: 4 for float32, 2 for bfloat16.
        """
        side = size + self.margin
        outputs = sum(conv.kept * conv.outputs * (-(-side // conv.reduction)) ** 2 for conv in self.layers)
        if not self.pooled:
            return bytes_each * outputs
        stem = self.layers[0]
        pooled = stem.outputs * (-(-side // (2 * stem.reduction))) ** 2
        return bytes_each * (outputs + pooled) + INDEX * pooled


class Block(NamedTuple):
    """A part of a network, such as a head, a queue or prototypes."""

    parameters: int
    """Number of trained parameters."""
    buffers: int = 0
    """Size in bytes of what is saved and not trained."""
    outputs: int = 0
    """Numbers of an embedding's layers that the backward pass needs."""


class Layout(NamedTuple):
    """Layers and buffers of a method around a backbone."""

    projector: Block
    predictor: Block = Block(0)
    has_target: bool = False
    """True if a target network follows the backbone and the projector."""
    at_places: bool = False
    """True if the heads see each place of the backbone's last map in place of pooled features."""
    kept: int = 0
    """Size of queues and other buffers in bytes."""
    kept_per_image: int = 0
    """Size of a bank's row in bytes; a bank has one for each image of the data set."""
    per_step: int = 0
    """Bytes of activations that do not depend on the number of images, such as those of a head of words."""
    compared: int = 0
    """Rows of the bank with which the loss compares an embedding."""


class Sizes(NamedTuple):
    """Sizes in bytes of the files of a pretraining run."""

    encoder: int
    checkpoint: int
    """Size of both networks and the optimiser's state."""


def head(inputs: int, head: Head) -> Block:
    """Return the size of a head with `inputs` input dimensions."""
    parameters = buffers = outputs = 0
    last = len(head.widths) - 1
    for index, (before, width) in enumerate(zip((inputs, *head.widths), head.widths, strict=False)):
        bias = head.last_bias if index == last else head.bias
        norm = head.last_norm if index == last else HIDDEN_NORMS[head.norm]
        parameters += before * width + bias * width + VECTORS[norm] * width
        buffers += (2 * FLOAT * width + COUNTER) * (norm != "none")
        outputs += width * (1 + (norm != "none"))
    return Block(parameters, buffers, outputs)


def propagation(dim: int) -> Block:
    """Return the size of pixel propagation over places of `dim` channels (`nn/places.py`).

    Of the outputs, five have `dim` numbers: unit vectors, values, unit values, their sums and unit sums. The
    similarities of the places are left out.
    """
    return Block(dim * dim + dim, outputs=5 * dim)


def network(backbone: str) -> Network | None:
    """Return the backbone of that name in `backbones.py`, or None if its layers are unknown."""
    if backbone == "small":
        return Network(
            (Conv(3, 16, 3, 2), *_basic(16, 16, 2, 1), *_basic(16, 32, 4, 2), *_basic(32, 64, 8, 2))
        )
    if backbone == "resnet18":
        return Network((Conv(3, 64, 7, 2), *_stages((2, 2, 2, 2), 4, bottleneck=False)), pooled=True)
    if backbone in SMALL_STEMS:
        reduction, margin = SMALL_STEMS[backbone]
        layers = (Conv(3, 64, 3, 1), *_stages((2, 2, 2, 2), reduction, bottleneck=False))
        return Network(layers, margin, pooled=reduction == 2)
    if backbone == "resnet50":
        return Network((Conv(3, 64, 7, 2), *_stages((3, 4, 6, 3), 4, bottleneck=True)), pooled=True)
    return None


def _stages(depths: Iterable[int], reduction: int, *, bottleneck: bool) -> Iterable[Conv]:
    """Yield the convolutions of torchvision's four ResNet stages.

    Args:
        reduction: ratio of the image's side to that of the stem's output, pooling included.
    """
    inputs = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            reduction *= stride
            width = 64 * 2**stage
            yield from (_bottleneck if bottleneck else _basic)(inputs, width, reduction, stride)
            inputs = 4 * width if bottleneck else width


def _basic(inputs: int, outputs: int, reduction: int, stride: int) -> Iterable[Conv]:
    """Yield two 3x3 convolutions, and a 1x1 on the shortcut if the shape changes."""
    if stride != 1 or inputs != outputs:
        yield Conv(inputs, outputs, 1, reduction, kept=1)
    yield from (Conv(inputs, outputs, 3, reduction), Conv(outputs, outputs, 3, reduction))


def _bottleneck(inputs: int, width: int, reduction: int, stride: int) -> Iterable[Conv]:
    """Yield a 1x1, a 3x3 and a 1x1 convolution to four times the width.

    As in torchvision, the 3x3 has the stride. A 1x1 on the shortcut comes first if the shape changes.
    """
    if stride != 1 or inputs != 4 * width:
        yield Conv(inputs, 4 * width, 1, reduction, kept=1)
    yield from (
        Conv(inputs, width, 1, reduction // stride),
        Conv(width, width, 3, reduction),
        Conv(width, 4 * width, 1, reduction),
    )


def sizes(backbone: Network, layout: Layout, *, num_states: int = 1, num_images: int = 0) -> Sizes:
    """Return the sizes of the files of a run.

    Args:
        num_states: tensors that the optimiser keeps for each parameter: 1 is a momentum.
        num_images: images of the data set.
    """
    followed = backbone.parameters + layout.projector.parameters
    trained = followed + layout.predictor.parameters
    encoder = FLOAT * followed + backbone.buffers + layout.projector.buffers
    online = encoder + FLOAT * layout.predictor.parameters + layout.predictor.buffers
    target = encoder if layout.has_target else 0
    kept = layout.kept + num_images * layout.kept_per_image
    return Sizes(encoder, online + target + kept + FLOAT * num_states * trained)


def products(num_rows: int, compared: int, dim: int) -> int:
    """Return the temporary numbers that the products of a vector with rows of a bank need.

    They are the products with all rows or, if these are fewer numbers, the rows that it is compared with.

    Args:
        num_rows: rows of the bank.
        compared: number of rows that the vector is compared with.
        dim: length of a row.
    """
    return min(num_rows, compared * dim)


def comparisons(layout: Layout, *, images: int, batch_size: int, num_images: int) -> int:
    """Return the bytes that a loss over a bank needs in a step; 0 without a bank.

    Each process draws the negatives of the whole batch. For its own images, it keeps the numbers of the rows,
    and about four numbers for each product. Everything that is kept for an image counts as its row.

    Args:
        images: images of a step on each device.
        batch_size: images of a step over all devices.
        num_images: images of the data set.
    """
    if not layout.compared:
        return 0
    listed = INDEX * batch_size + (INDEX + 4 * FLOAT) * images
    each = products(num_images, layout.compared, layout.kept_per_image // FLOAT)
    return layout.compared * listed + FLOAT * max(each, min(images * each, BLOCK))


def siamese(num_features: int, heads: Heads) -> Layout:
    """Return the layout of a projector and a predictor with a target network (`nn/networks.py`)."""
    return Layout(_mlp(num_features, heads), _mlp(heads.output, heads), has_target=True)


def _mlp(inputs: int, heads: Heads) -> Block:
    """Return the two layers and the normalisation between them."""
    first = inputs * heads.hidden + heads.hidden + (heads.norm != "ws") * 2 * heads.hidden
    parameters = first + heads.hidden * heads.output + heads.last_bias * heads.output
    buffers = (2 * FLOAT * heads.hidden + COUNTER) if heads.norm == "batchnorm" else 0
    return Block(parameters, buffers, 2 * heads.hidden + heads.output)
