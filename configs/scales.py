"""The three scales, as functions from an evaluation at paper scale to the same evaluation at another scale.

    smoke   synthetic data in the real layouts, a small residual network at 32 px; minutes on two CPU cores
    small   real public photographs, Imagenette in place of ImageNet-100 and ImageNet; hours on one GPU
    paper   the settings of the paper

The tables compare methods, so K, the lambdas and the normalisation of the heads are the same at every scale.
The sizes of a method that must fit the data set are chosen by the method itself: `Method.smaller`. So are the
rates of an optimiser that must fit the number of steps: `Optimizer.smaller`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Final, Literal

from configs.evaluate import AnyDataset, seen_by
from reproduce.data.augmentation import Augmentation
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.data.imagenette import Imagenette
from reproduce.methods.method import Method
from reproduce.nn.optimizers import LARS
from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
from reproduce.protocols.detection import Detection
from reproduce.protocols.linear_sgd import LinearSGD
from reproduce.protocols.protocol import Protocol
from reproduce.protocols.semi import SemiSupervised
from reproduce.protocols.svm import LinearSVM
from reproduce.spec import Evaluate, Pretrain

STAND_INS = {
    "smoke": "Synthetic scenes stand in for every data set and a small network for the backbone.",
    "small": (
        "Imagenette (10 classes of ImageNet) stands in for ImageNet and ImageNet-100, at 64 px, "
        "and a ResNet-18 for the backbone."
    ),
    "paper": "",
}
"""Sentence for the caption of each table whose data a scale replaces."""
NO_STAND_IN = (
    "{} has no small stand-in: run the cell at paper scale, which reads the data set from its root in the "
    "site file."
)
"""Reason why the small scale leaves a cell empty."""
SMALLER: Final[tuple[Literal["smoke"], Literal["small"]]] = ("smoke", "small")
"""Scales at which methods choose sizes of their own."""
CROPS = (0.2, 1.0)
"""Area of a crop at smoke scale, relative to the area of the image."""
SMALL_CROPS = (0.07, 0.2)
"""Relative area of multi-crop's small crops at smoke scale: 8 to 14 of 32 pixels, resized to 14.

As in the paper, the largest small crop is as large as the smallest large one.
"""
LARGEST_BATCH = 1024
"""Largest batch of pretraining below paper scale, where a data set has only a few batches of BYOL's 4096."""


def paper(run: Evaluate) -> Evaluate:
    """Return the run unchanged."""
    return run


def small(run: Evaluate) -> Evaluate | str:
    """Return the run on real photographs with a ResNet-18, or the reason why there is none.

    Imagenette at 64 px replaces ImageNet and ImageNet-100. STL-10, VOC and COCO stay. Weights from elsewhere
    keep their network and see images of the size on which they were trained.
    """
    if run.dataset.name in ("places205", "inaturalist2018"):
        return NO_STAND_IN.format(run.dataset.title)
    encoder = _small_pretrain(run.encoder) if isinstance(run.encoder, Pretrain) else run.encoder
    dataset = seen_by(encoder, _small_dataset(run.dataset))
    return replace(
        run, encoder=encoder, dataset=dataset, protocol=_small_protocol(run.protocol, encoder.backbone)
    )


def smoke(run: Evaluate) -> Evaluate:
    """Return the run on synthetic data at 32 px, with a small network and a few epochs.

    Weights from elsewhere keep their network and their normalisation.
    """
    dataset = _smoke_dataset(run.dataset) if isinstance(run.dataset, Dataset) else _smoke_scenes(run.dataset)
    if isinstance(run.encoder, Pretrain):
        encoder = _smoke_pretrain(run.encoder)
        dataset = large_enough(run.encoder.method, dataset, "smoke")
        return replace(
            run, encoder=encoder, dataset=dataset, protocol=_smoke_protocol(run.protocol, encoder.backbone)
        )
    protocol = _smoke_protocol(run.protocol, run.encoder.backbone)
    return replace(
        run, dataset=replace(dataset, mean=run.encoder.mean, std=run.encoder.std), protocol=protocol
    )


def _small_dataset(dataset: AnyDataset) -> AnyDataset | Imagenette:
    return dataset if dataset.name in ("stl10", "voc2007", "voc0712", "coco2017") else Imagenette()


def _small_pretrain(run: Pretrain) -> Pretrain:
    dataset = large_enough(run.method, _small_dataset(run.dataset), "small")
    return replace(
        run,
        method=run.method.smaller("small"),
        optimizer=run.optimizer.smaller("small"),
        dataset=dataset,
        backbone="resnet18_3x3",
        augmentation=resized(run.augmentation, run.dataset, dataset),
        precision="bfloat16",
        batch_size=min(run.batch_size, LARGEST_BATCH),
    )


def _small_protocol(protocol: Protocol, backbone: str) -> Protocol:
    """Return the protocol at small scale: a quarter of the iterations for a detector.

    A backbone with a 3x3 stem halves an image one time less. With images and anchors of half the side, it has
    the same grids as other backbones.
    """
    if not isinstance(protocol, Detection):
        return _held_out(protocol, 947)
    shorter = replace(
        protocol, iterations=protocol.iterations // 4, drops=tuple(drop // 4 for drop in protocol.drops)
    )
    if not backbone.endswith("_3x3"):
        return shorter
    return replace(
        shorter,
        train_sizes=tuple(size // 2 for size in protocol.train_sizes),
        test_size=protocol.test_size // 2,
        max_size=protocol.max_size // 2,
        anchor_sizes=tuple(size // 2 for size in protocol.anchor_sizes),
    )


def _held_out(protocol: Protocol, count: int) -> Protocol:
    """Return `protocol` with `count` images held out, a tenth of the train split, if it holds any out."""
    if isinstance(protocol, (LinearSGD, SemiSupervised)) and protocol.num_held_out:
        return replace(protocol, num_held_out=count)
    return protocol


def _smoke_dataset(dataset: Dataset) -> Dataset:
    from reproduce.data import synthetic

    layouts: dict[str, Callable[[], Dataset]] = {
        "stl10": synthetic.SyntheticSTL10,
        "voc2007": synthetic.SyntheticVOC2007,
        "places205": synthetic.SyntheticPlaces205,
        "inaturalist2018": synthetic.SyntheticINaturalist2018,
    }
    return layouts.get(dataset.name, synthetic.SyntheticFolder)()


def _smoke_scenes(dataset: DetectionDataset) -> DetectionDataset:
    from reproduce.data import synthetic_detection

    if dataset.benchmark == "voc":
        return synthetic_detection.SyntheticVOC0712()
    return synthetic_detection.SyntheticCOCO2017()


def _smoke_protocol(protocol: Protocol, backbone: str) -> Protocol:
    """Return the protocol at smoke scale.

    The batch is a sixteenth, but at least 64 images. The epochs are an eighth if each covers the whole train
    split. An SVM stops at a tenth of the iterations; its largest costs reach that limit.
    """
    if isinstance(protocol, (LinearSGD, SemiSupervised)):
        crops = replace(protocol.augmentation, crop_scale=CROPS)
        protocol = replace(protocol, batch_size=max(64, protocol.batch_size // 16), augmentation=crops)
    if isinstance(protocol, LinearSGD):
        protocol = replace(protocol, epochs=math.ceil(protocol.epochs / 8))
    if isinstance(protocol, LinearSVM):
        protocol = replace(protocol, max_iterations=protocol.max_iterations // 10)
    if isinstance(protocol, Detection):
        protocol = _smoke_detection(protocol, backbone)
    return _held_out(protocol, 120)


def _smoke_detection(protocol: Detection, backbone: str) -> Detection:
    """Return the protocol with torchvision's detectors, on images of 64 px and with few proposals.

    A step takes .2 s on a CPU core. The learning rate fits the few steps. A pyramid needs an anchor size for
    each level, and the small backbone has one level less than a ResNet.
    """
    shared = replace(
        protocol,
        engine="torchvision",
        base_lr=0.1,
        warmup_iterations=20,
        train_sizes=(64,),
        test_size=64,
        max_size=128,
        rpn_train_top=(100, 50),
        rpn_test_top=(100, 50),
        box_resolution=6,
        max_detections=20,
        precise_bn_iterations=20,
    )
    if not isinstance(shared, COCOMaskRCNN):
        return replace(shared, iterations=200, drops=(150,), anchor_sizes=(16, 32, 48), rois=32)
    return replace(
        shared,
        iterations=200,
        drops=(160,),
        anchor_sizes=(8, 16, 32, 48) if backbone == "small" else (8, 16, 32, 48, 64),
        rois=16,
        mask_resolution=7,
        box_head="2fc",
        score_threshold=0.001,
    )


def _smoke_pretrain(run: Pretrain) -> Pretrain:
    """Return the pretraining with a sixteenth of the batch and an eightieth of the epochs.

    ImageNet's base rate of LARS, .15 in place of ImageNet-100's .4, belongs to epochs of ten times as many
    steps. The same scenes stand in for both, so both have the same rate at this scale. A rate that grows with
    the square root of the batch is of other origin; W-MSE keeps it, and SimCLR, whose vectors have a rate of
    their own, learns more with the larger one. Blocks start with the backbone's own scale: in some 150
    steps, those that start at 0 hardly leave their shortcut.
    """
    optimizer, imagenet = run.optimizer, run.dataset.name == "imagenet"
    if imagenet and isinstance(optimizer, LARS):
        kept = optimizer.batch_scaling == "sqrt" and optimizer.vector_lr is None
        optimizer = optimizer.times(1.0 if kept else 0.4 / 0.15)
    dataset = large_enough(run.method, _smoke_dataset(run.dataset), "smoke")
    return replace(
        run,
        method=run.method.smaller("smoke"),
        dataset=dataset,
        backbone="small",
        augmentation=_wider_crops(resized(run.augmentation, run.dataset, dataset)),
        optimizer=optimizer.smaller("smoke"),
        epochs=math.ceil(min(run.epochs, 320) / 80),
        batch_size=min(run.batch_size, LARGEST_BATCH) // 16,
        precision="float32",
        zero_init=None,
    )


def _wider_crops(augmentation: Augmentation) -> Augmentation:
    """Return `augmentation` with crops of at least a fifth of the image, as on STL-10.

    A twelfth of 32 x 32 pixels is too small to show anything. Small crops that may be larger than that begin
    there, too. Crops for patches are large enough.
    """

    def wider(other: Augmentation | None) -> Augmentation | None:
        return None if other is None else replace(other, crop_scale=CROPS)

    small = augmentation.small
    if small is not None:
        low, high = small.crop_scale
        small = replace(small, crop_scale=SMALL_CROPS if high <= CROPS[0] else (max(low, CROPS[0]), high))
    return replace(
        augmentation,
        crop_scale=CROPS,
        every_second=wider(augmentation.every_second),
        first=wider(augmentation.first),
        small=small,
    )


def large_enough(method: Method, dataset: AnyDataset, scale: str) -> AnyDataset:
    """Return `dataset` with images as large as the method needs them at a scale.

    Test images are resized in the same ratio.
    """
    needed = side(method, scale)
    if needed is None or not isinstance(dataset, Dataset):
        return dataset
    resize = round(needed * dataset.resize / dataset.size)
    return replace(dataset, size=needed, resize=resize, canvas=max(resize, dataset.canvas))


def side(method: Method, scale: str) -> int | None:
    """Return the side in pixels that a method needs at a scale, or None for the scale's own."""
    return next((method.side(name) for name in SMALLER if name == scale), None)


def resized(augmentation: Augmentation, before: Dataset, after: Dataset) -> Augmentation:
    """Return `augmentation` with small crops and patches of the same size relative to the views.

    Sizes are rounded up: multi-crop's small crops have 3 / 7 of a view. The shifts of patches are rounded
    down: patches of different places, which PIRL keeps apart, then overlap by one pixel at most.

    Args:
        before: the data set for which the sizes in `augmentation` were chosen.
        after: the data set on which the run is to be trained.
    """

    def scaled(side: int) -> Fraction:
        return Fraction(side * after.size, before.size)

    small, patches = augmentation.small, augmentation.patches
    if small is not None:
        small = replace(small, size=math.ceil(scaled(small.size)))
    if patches is not None:
        patches = replace(
            patches,
            size=math.ceil(scaled(patches.size)),
            canvas=math.ceil(scaled(patches.canvas)),
            jitter=math.floor(scaled(patches.jitter)),
        )
    return replace(augmentation, small=small, patches=patches)
