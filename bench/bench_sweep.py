"""A sweep of five learning rates over one learning rate: the cost of four more classifiers.

    python -m bench sweep          # about 1 minute on one CPU core; at most 1.15

Both sides are an epoch of `classifiers.fit`, which trains the classifiers of ImageNet's protocols. An epoch
draws the views, runs one forward pass of the frozen backbone per batch, and computes logits, gradients and
updates of all classifiers. Images are decoded in advance and none are held out.

On a CPU the backbones are the smoke scale's and a ResNet-18 at 64 px. On a GPU a ResNet-50 at 224 px sends
batches of 1024 to classifiers of 1000 classes, as on ImageNet.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.command import options
from bench.compare import in_turns, machine, prepare, record
from configs import pretrain
from reproduce.data.dataset import Dataset
from reproduce.data.imagenet import ImageNet
from reproduce.data.images import Batch, Found, Images, Shape
from reproduce.nn import backbones, classifiers
from reproduce.nn.classifiers import Classifiers, Stream
from reproduce.nn.encoder import Encoder
from reproduce.nn.features import Split
from reproduce.protocols.linear_sgd import LinearSGD
from reproduce.runs.progress import Watch
from reproduce.site import Site

BAR = 1.15
SWEEP = LinearSGD()
ALONE = replace(SWEEP, base_lrs=SWEEP.base_lrs[-1:])


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of the comparison."""

    backbone: str
    size: int
    """Side of a view and of a canvas, in pixels."""
    num_classes: int
    batch_size: int
    num_batches: int
    rounds: int
    bar: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"

    def __str__(self) -> str:
        setting = f"{self.backbone}, {self.size} px, batch {self.batch_size}, {self.num_classes} classes"
        return f"{setting}: 5 rates over 1"


ON_CPU = (
    Case(backbone="small", size=32, num_classes=10, batch_size=64, num_batches=15, rounds=15, bar=BAR),
    Case(backbone="resnet18_3x3", size=64, num_classes=100, batch_size=64, num_batches=2, rounds=5, bar=BAR),
)
ON_GPU = (
    Case(
        backbone="resnet50",
        size=224,
        num_classes=1000,
        batch_size=1024,
        num_batches=5,
        rounds=5,
        bar=BAR,
        precision="bfloat16",
    ),
)
QUICK = (Case(backbone="small", size=8, num_classes=3, batch_size=4, num_batches=1, rounds=1),)
"""Case that shows that the benchmark runs; its number means nothing."""


class Noise(Images):
    """Images of random pixels that are decoded already."""

    def __init__(self, case: Case) -> None:
        super().__init__(
            np.arange(case.batch_size * case.num_batches) % case.num_classes,
            [str(i) for i in range(case.num_classes)],
        )
        self._pixels = torch.randint(256, (case.batch_size, 3, case.size, case.size), dtype=torch.uint8)

    def name(self, index: int) -> str:
        return str(index)

    def open(self, index: int) -> Image.Image:
        raise NotImplementedError

    @property
    def digest(self) -> str:
        return ""

    def find(self, indices: Any, shape: Shape) -> Found:
        which: NDArray[np.int64] = np.asarray(indices)
        return Found.of(
            Batch(
                self._pixels[which % len(self._pixels)],
                torch.full((len(which), 2), self._pixels.shape[-1]),
                torch.tensor(which),
            )
        )


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Return one record for each case."""
    device = prepare()
    on_device = ON_CPU if device.type == "cpu" else ON_GPU
    return [_record(case, device) for case in (QUICK if quick else on_device)]


def _record(case: Case, device: torch.device) -> dict[str, Any]:
    found = in_turns(
        epoch(case, SWEEP, device), epoch(case, ALONE, device), rounds=case.rounds, device=device
    )
    first, second = (1000 * seconds / case.num_batches for seconds in (found.first, found.second))
    per_batch = f"{first:.1f} ms per batch over {second:.1f} ms"
    detail = f"{per_batch}; {machine(device)}; median of {case.rounds} rounds"
    return record("sweep", str(case), found.ratio, unit="x", detail=detail, at_most=case.bar)


def epoch(case: Case, protocol: LinearSGD, device: torch.device) -> Callable[[], Any]:
    """Return a function that trains for an epoch with the rates of `protocol`."""
    spec = replace(pretrain.byol_imagenet(100), backbone=case.backbone, precision=case.precision)
    backbone = (
        backbones.build(case.backbone, seed=0)
        .to(device=device, memory_format=torch.channels_last)
        .eval()
        .requires_grad_(False)
    )
    images = Noise(case)
    indices = torch.arange(len(images))
    dataset: Dataset = replace(ImageNet(), size=case.size, resize=case.size, canvas=case.size)
    stream = Stream(
        dataset=dataset,
        split=Split("noise", images, indices, torch.tensor(images.labels), case.num_classes),
        augmentation=protocol.augmentation,
        batch_size=case.batch_size,
        seed=0,
        site=Site(),
        device=device,
    )
    trained = Classifiers(
        len(protocol.base_lrs),
        num_classes=case.num_classes,
        num_features=backbone.num_features,
        seed=0,
        device=device,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )
    names = [f"lr {lr:g}" for lr in protocol.base_lrs]
    encoder = Encoder(spec.backbone, backbone)

    def run() -> None:
        rates = protocol.rates(0, stream.num_steps)
        classifiers.fit(
            trained, names, encoder, stream, lambda step: rates, epochs=1, held_out=None, watch=Watch()
        )

    return run


if __name__ == "__main__":
    print(json.dumps(measure(quick=options("bench.bench_sweep", __doc__).quick)))
