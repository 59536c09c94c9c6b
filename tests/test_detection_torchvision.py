"""The engine of the smoke scale: training images, the detectors around a backbone, exact resuming.

Images are 32 x 32 px of noise with one or two bright rectangles. Their colour, red or green, is the class.
Sixty small steps learn them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from pycocotools import mask as encoding
from torch import nn
from toys import CPU, PRETRAIN, Notes, encoder
from waiting import limited

from reproduce.data.detection import Annotated, DetectionDataset, Instance, Picture
from reproduce.detection import detector as models
from reproduce.detection import examples, record
from reproduce.detection import torchvision as engine
from reproduce.detection.cost import operations
from reproduce.evaluate import evaluate
from reproduce.nn import backbones, cost
from reproduce.nn.stages import stages
from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site
from reproduce.spec import Evaluate

pytestmark = pytest.mark.slow  # torchvision or pycocotools and pictures: seconds in all

SIDE = 32
RUN, OTHER = "0123456789ab", "ba9876543210"
SITE = Site()
SMALL: Any = {
    "engine": "torchvision",
    "batch_size": 4,
    "base_lr": 0.4,  # .1 at a batch of 4
    "warmup_iterations": 2,
    "train_sizes": (SIDE,),
    "test_size": SIDE,
    "max_size": 64,
    "rpn_train_top": (60, 20),
    "rpn_test_top": (60, 20),
    "rois": 16,
    "precise_bn_iterations": 8,
}
# 60 steps of 4 images
VOC = VOCDetection(**SMALL, iterations=15, drops=(12,), anchor_sizes=(8, 16), box_resolution=4)
COCO = COCOMaskRCNN(
    **SMALL, iterations=15, drops=(12,), anchor_sizes=(4, 8, 16, 24), box_resolution=4, mask_resolution=4
)
CLASSES = ("red", "green")


class Rectangles(DetectionDataset, name="rectangles"):
    """A data set of rectangles of two colours."""

    classes = CLASSES
    splits = ("train", "test", "one+two", "three")
    benchmark = "coco"


DATA = Rectangles(mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2), train_split="train", test_split="test")


def annotated(folder: Path, count: int, seed: int) -> Annotated:
    """Write `count` images to `folder`, with COCO's annotations of them."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pictures, objects = [], list[dict[str, Any]]()
    for number in range(1, 1 + count):
        array = random.integers(0, 80, (SIDE, SIDE, 3), np.uint8)
        instances = []
        for half in range(1 + number % 2):
            label = int(random.integers(2))
            w, h = random.integers(9, 15, 2).tolist()
            x, y = 16 * half + int(random.integers(17 - w)), int(random.integers(SIDE - h))
            array[y : y + h, x : x + w, label] = 230
            outline = [float(each) for each in (x, y, x + w, y, x + w, y + h, x, y + h)]
            instances.append(Instance(label, (x, y, x + w, y + h), segmentation=[outline]))
            row = {
                "image_id": number,
                "category_id": 1 + label,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
            objects.append(row | {"id": len(objects) + 1, "segmentation": [outline]})
        path = folder / f"{number}.png"
        Image.fromarray(array).save(path)
        pictures.append(Picture(path, number, SIDE, SIDE, tuple(instances)))
    images = [
        {"id": each.id, "file_name": each.file.name, "width": SIDE, "height": SIDE} for each in pictures
    ]
    categories = [{"id": 1 + label, "name": name} for label, name in enumerate(CLASSES)]
    origin = folder / "instances.json"
    origin.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return Annotated(tuple(pictures), CLASSES, (1, 2), origin, f"{count} images of seed {seed}")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Annotated, Annotated]:
    folder = tmp_path_factory.mktemp("rectangles")
    return annotated(folder / "train", 40, 0), annotated(folder / "test", 16, 1)


def picture_of(*instances: Instance, width: int = 10, height: int = 8) -> Picture:
    return Picture(Path("image.png"), 1, width, height, instances)


# What is trained on


def test_boxes_are_clipped_and_crowds_and_what_has_no_area_are_left_out() -> None:
    picture = picture_of(
        Instance(4, (-2, 1, 5, 20)),
        Instance(1, (0, 0, 5, 5), crowd=True),
        Instance(2, (3, 3, 3, 6)),
        Instance(3, (12, 2, 15, 6)),
        Instance(0, (1, 2, 3, 4.5), difficult=True),
    )
    found = examples.target(picture, masks=False)
    assert found["boxes"].tolist() == [[0, 1, 5, 8], [1, 2, 3, 4.5]]
    assert found["labels"].tolist() == [5, 1]
    crowded = picture_of(Instance(1, (0, 0, 5, 5), crowd=True), Instance(1, (-5, -5, 0, 0)))
    assert examples.usable([picture, crowded], masks=False) == (picture,)


def test_masks_are_polygons_that_are_filled_and_encodings_that_are_decoded() -> None:
    inside = np.zeros((8, 10), np.uint8)
    inside[2:5, 1:4] = 1
    inside[6:8, 7:9] = 1
    # The last polygon has no area and is not a box.
    corners = [
        [1, 2, 4, 2, 4, 5, 1, 5],
        [7, 6, 9, 6, 9, 8, 7, 8],
        [0, 0, 9, 9],
    ]
    columns = inside.T.reshape(-1)
    ends = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff([0, *ends, len(columns)]).tolist()
    given: tuple[Any, ...] = (
        corners,
        encoding.encode(np.asfortranarray(inside)),
        {"size": [8, 10], "counts": counts},
    )
    picture = picture_of(
        *(Instance(0, (1, 2, 9, 8), segmentation=each) for each in given),
        Instance(0, (1, 2, 9, 8), segmentation=[[1, 1]]),
    )
    found = examples.target(picture, masks=True)
    assert found["masks"].dtype == torch.uint8
    assert np.array_equal(found["masks"], np.stack([inside] * 3))
    assert len(examples.target(picture, masks=False)["boxes"]) == 4


def test_a_mirror_moves_pixels_boxes_and_masks_alike() -> None:
    image = torch.arange(3 * 2 * 4.0).view(3, 2, 4)
    mask = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0]]], dtype=torch.uint8)
    before = {"boxes": torch.tensor([[0.0, 0, 2, 1]]), "labels": torch.tensor([1]), "masks": mask}
    mirrored, after = examples.flipped(image, before)
    assert mirrored[0].tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]
    assert after["boxes"].tolist() == [[2, 0, 4, 1]]
    assert after["masks"].tolist() == [[[0, 0, 1, 1], [0, 0, 0, 0]]]
    assert before["boxes"].tolist() == [[0, 0, 2, 1]]


def test_an_image_has_channels_first_values_up_to_1_and_is_turned_as_its_camera_was_held(
    tmp_path: Path,
) -> None:
    grey, exif = tmp_path / "grey.png", Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.fromarray(np.array([[0, 51], [255, 102], [0, 0]], np.uint8)).save(grey, exif=exif)
    found = examples.pixels(Picture(grey, 1, 3, 2, ()))
    assert found.shape == (3, 2, 3)
    torch.testing.assert_close(found[2], torch.tensor([[0, 1, 0], [0, 0.4, 0.2]]))


# Backbones in stages

SHAPES = {
    "small": ([16, 16, 32, 64], [2, 2, 4, 8]),
    "resnet18": ([64, 64, 128, 256, 512], [4, 4, 8, 16, 32]),
    "resnet18_3x3": ([64, 64, 128, 256, 512], [2, 2, 4, 8, 16]),
    "resnet18_cifar": ([64, 64, 128, 256, 512], [1, 1, 2, 4, 8]),
    "resnet18_cifar_pad2": ([64, 64, 128, 256, 512], [1, 1, 2, 4, 8]),
    "resnet50": ([64, 256, 512, 1024, 2048], [4, 4, 8, 16, 32]),
}


@pytest.mark.parametrize("name", backbones.names())
def test_stages_one_after_the_other_are_the_backbone(name: str) -> None:
    backbone = backbones.build(name, seed=0).train()
    backbone.bn1.eval() if hasattr(backbone, "bn1") else backbone.blocks[0].eval()
    modes = [module.training for module in backbone.modules()]
    values = {key: value.clone() for key, value in backbone.state_dict().items()}
    found = stages(backbone)
    channels, strides = SHAPES[name]
    margin = 2 if name.endswith("pad2") else 0
    assert [each.channels for each in found] == channels
    assert [each.stride for each in found] == strides
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, values[key]) for key, value in backbone.state_dict().items())
    backbone.eval()
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, expected = images, backbone(images)
        for each, stride in zip(found, strides, strict=True):
            features = each.module(features)
            assert features.shape[2:] == (-(-(64 + margin) // stride), -(-(32 + margin) // stride))
    assert torch.equal(features.mean(dim=(2, 3)), expected) or torch.allclose(
        features.mean(dim=(2, 3)), expected, rtol=1e-6
    )


def test_a_network_without_stages_is_named() -> None:
    with pytest.raises(ValueError, match=r"A Linear has no stages; .* small do"):
        stages(nn.Linear(2, 2))


# Detectors


def built(protocol: Any, backbone: str = "small") -> Any:
    return models.build(protocol, backbones.build(backbone, seed=0), DATA, num_classes=2, seed=0)


@pytest.mark.parametrize("protocol", [VOC, COCO], ids=["c4", "fpn"])
def test_normalisation_has_a_decay_of_its_own_and_every_parameter_is_in_one_group(protocol: Any) -> None:
    detector = built(replace(protocol, weight_decay=1e-3, norm_weight_decay=1e-5))
    others, norms = models.parameter_groups(
        detector, replace(protocol, weight_decay=1e-3, norm_weight_decay=1e-5)
    )
    assert (others["weight_decay"], norms["weight_decay"]) == (1e-3, 1e-5)
    named = {id(parameter): name for name, parameter in detector.named_parameters()}
    assert sorted(id(parameter) for group in (others, norms) for parameter in group["params"]) == sorted(
        named
    )
    # BatchNorm2d has a one-dimensional weight and bias; every other weight has two or more dimensions, every
    # other bias has a weight next to it.
    shapes = {name: parameter.dim() for name, parameter in detector.named_parameters()}
    expected = {name for name in shapes if shapes[name.rsplit(".", 1)[0] + ".weight"] == 1}
    assert {named[id(parameter)] for parameter in norms["params"]} == expected
    assert len(expected) > 10


def test_a_resnet50_has_detectron2s_widths() -> None:
    assert models._width(2048) == 256


@pytest.mark.parametrize(("backbone", "width"), [("small", 32), ("resnet18", 64)])
def test_the_pyramid_is_as_wide_in_proportion(backbone: str, width: int) -> None:
    sizes = (4, 8, 16, 24) if backbone == "small" else (8, 16, 32, 64, 128)
    detector = built(replace(COCO, anchor_sizes=sizes), backbone).eval()
    with torch.no_grad():
        levels = detector.backbone(torch.zeros(1, 3, 128, 128))
    assert {level.shape[1] for level in levels.values()} == {width}
    assert [level.shape[2] for level in levels.values()] == (
        [64, 32, 16, 8] if backbone == "small" else [32, 16, 8, 4, 2]
    )
    convolutions = [
        module for module in detector.roi_heads.box_head.modules() if isinstance(module, nn.Conv2d)
    ]
    dense = [module for module in detector.roi_heads.box_head.modules() if isinstance(module, nn.Linear)]
    assert (len(convolutions), len(dense)) == (4, 1)
    other = built(replace(COCO, anchor_sizes=sizes, box_head="2fc"), backbone).roi_heads.box_head
    assert [module.out_features for module in other.modules() if isinstance(module, nn.Linear)] == [
        4 * width
    ] * 2
    assert not [module for module in other.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(
    ("backbone", "levels"), [("resnet18", [0, 1, 2, 3, 3]), ("resnet18_3x3", [0, 2, 3, 3, 3])]
)
def test_a_box_of_224_pixels_is_pooled_at_a_stride_of_16(backbone: str, levels: list[int]) -> None:
    pool = built(replace(COCO, anchor_sizes=(8, 16, 32, 64, 128)), backbone).roi_heads.box_roi_pool
    boxes = torch.tensor([[0.0, 0, side, side] for side in (40, 112, 224, 448, 900)])
    assert pool.map_levels([boxes]).tolist() == levels
    assert pool.scales[levels[2]] == 1 / 16


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (replace(VOC, stride_in_1x1=True), "stride_in_1x1 is True"),
        (replace(VOC, norm="GN"), "norm is 'GN'"),
        (replace(VOC, freeze_at=4), "freeze_at is 4, but the backbone has only 3 stages"),
        (replace(COCO, anchor_sizes=(8, 16)), "anchor_sizes has 2 sizes, but the pyramid needs 4"),
    ],
)
def test_a_setting_that_torchvision_does_not_have_is_named(changed: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        built(changed)


@pytest.mark.parametrize("norm", ["SyncBN", "naiveSyncBN", "BN"])
def test_every_norm_that_is_batchnorm_in_one_process_is_taken(norm: str) -> None:
    assert built(replace(VOC, norm=norm)).roi_heads.box_head.norm.training


def test_settings_arrive_where_torchvision_reads_them() -> None:
    protocol = replace(
        VOC, rpn_test_top=(50, 10), score_threshold=0.2, max_detections=3, train_sizes=(24, 40), test_size=48
    )
    detector = built(protocol).train()
    assert (detector.rpn.pre_nms_top_n(), detector.rpn.post_nms_top_n()) == (60, 20)
    assert detector.rpn.anchor_generator.sizes == ((8, 16),)
    assert detector.roi_heads.fg_bg_sampler.batch_size_per_image == 16
    assert (detector.roi_heads.score_thresh, detector.roi_heads.detections_per_img) == (0.2, 3)
    assert detector.roi_heads.box_roi_pool.scales == [1 / 4]
    # detectron2/config/defaults.py: suppression, overlaps, samples
    assert (detector.rpn.nms_thresh, detector.roi_heads.nms_thresh) == (0.7, 0.5)
    assert [
        (each.high_threshold, each.low_threshold)
        for each in (detector.rpn.proposal_matcher, detector.roi_heads.proposal_matcher)
    ] == [
        (0.7, 0.3),
        (0.5, 0.5),
    ]
    samplers = (detector.rpn.fg_bg_sampler, detector.roi_heads.fg_bg_sampler)
    assert [(each.batch_size_per_image, each.positive_fraction) for each in samplers] == [
        (256, 0.5),
        (16, 0.25),
    ]
    assert detector.transform.min_size == (24, 40)
    shown, _ = models.test_mode(detector, protocol).transform([torch.rand(3, 20, 30)])
    assert (detector.rpn.pre_nms_top_n(), detector.rpn.post_nms_top_n()) == (50, 10)
    assert shown.image_sizes == [torch.Size([42, 64])]  # 48 x 72 would exceed 64


@pytest.mark.parametrize(("protocol", "tolerance"), [(VOC, 0.05), (COCO, 0.3)], ids=["c4", "fpn"])
def test_the_operations_of_a_step_are_those_that_torch_counts(protocol: Any, tolerance: float) -> None:
    """Count an image of 96 x 128 pixels.

    Our count assumes the maximum number of objects with masks; here there are three.
    """
    from torch.utils.flop_counter import FlopCounterMode

    sized = replace(
        protocol,
        train_sizes=(96,),
        max_size=128,
        iterations=1,
        drops=(),
        warmup_iterations=0,
        precise_bn_iterations=0,
    )
    detector = built(replace(sized, batch_size=1)).train()
    boxes = torch.tensor([[5.0, 5, 40, 60], [50, 20, 90, 80], [10, 70, 60, 90]])
    target = {
        "boxes": boxes,
        "labels": torch.tensor([1, 2, 1]),
        "masks": torch.ones(3, 96, 128, dtype=torch.uint8),
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector([torch.rand(3, 96, 128)], [target])
    network = cost.network("small")
    assert network is not None
    forward = operations(replace(sized, batch_size=16), network) / 16 / 3
    assert forward == pytest.approx(counter.get_total_flops(), rel=tolerance)


# Training


def fitted(protocol: Any, train: Annotated, watch: Watch | None = None, seed: int = 0) -> Any:
    detector = built(protocol)
    engine.fit(detector, protocol, train, SITE, CPU, seed, watch or Watch())
    return detector


@pytest.mark.parametrize(
    "protocol", [pytest.param(VOC, id="voc"), pytest.param(COCO, id="coco", marks=pytest.mark.slow)]
)
def test_a_detector_learns_and_the_encoder_is_left_as_it_was(
    protocol: Any, splits: tuple[Annotated, Annotated], tmp_path: Path, one_thread: None
) -> None:
    train, test = splits
    given, notes, reported = encoder(), Notes(), list[Progress]()
    before = {key: value.clone() for key, value in given.backbone.state_dict().items()}
    watch = Watch(notes, reported.append, tmp_path)
    measured = engine.fine_tune(protocol, given, DATA, train, test, SITE, CPU, 0, watch)
    assert set(measured) == set(protocol.metrics)
    untrained = models.test_mode(built(protocol), protocol)
    for prefix, scores in record.scores(
        protocol, test, engine.detect(untrained, test, SITE, CPU, Watch())
    ).items():
        assert measured[f"{prefix}ap50"] > max(0.15, 10 * scores.ap50)
    assert all(torch.equal(value, before[key]) for key, value in given.backbone.state_dict().items())
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in given.backbone.parameters()
    )
    assert sorted(notes.logged) == [20, 40, 60]
    # The other terms grow at first, with the number of correct proposals.
    found = notes.of("loss_objectness")
    assert found[-1] < found[0]
    assert len(notes.of("loss_mask")) == (3 if protocol.masks else 0)
    assert [each.done for each in reported if each.note != "testing"] == list(range(4, 241, 4))
    assert reported[-1] == Progress(240 + 16, 240 + 16, "images", "testing")  # trained on, then tested
    assert notes.artifacts == [tmp_path / record.PICTURE]
    assert Image.open(tmp_path / record.PICTURE).size > (SIDE, SIDE)


def test_the_rate_warms_up_and_drops_as_computed_by_hand(splits: tuple[Annotated, Annotated]) -> None:
    protocol = replace(
        VOC, batch_size=16, base_lr=0.02, iterations=40, drops=(30,), warmup_iterations=10, warmup_factor=1e-3
    )
    rates = {0: 2e-5, 5: 0.01001, 10: 0.02, 29: 0.02, 30: 0.002}
    assert {step: protocol.rate(step) for step in rates} == pytest.approx(rates)
    single = replace(
        protocol, batch_size=1, iterations=3, drops=(2,), warmup_iterations=2, precise_bn_iterations=0
    )
    notes = Notes()
    fitted(single, splits[0], Watch(notes))
    warming, fallen = 0.02 / 16 * (0.001 + 0.999 * 19 / 32), 0.02 / 16 * 0.1
    assert notes.of("lr") == pytest.approx([warming, fallen, fallen])  # steps 20, 40 and 48, counted from 1


def test_frozen_stages_keep_weights_and_statistics(splits: tuple[Annotated, Annotated]) -> None:
    protocol = replace(
        VOC, freeze_at=2, batch_size=16, iterations=2, drops=(), warmup_iterations=0, precise_bn_iterations=1
    )
    before, after = built(protocol).state_dict(), fitted(protocol, splits[0]).state_dict()
    moved = {
        key.split(".")[3]
        for key in before
        if key.startswith("backbone.trunk.stages") and not torch.equal(before[key], after[key])
    }
    assert moved == {"2"}


def test_precise_statistics_are_means_over_batches(splits: tuple[Annotated, Annotated]) -> None:
    protocol = replace(
        VOC, batch_size=16, iterations=1, drops=(), warmup_iterations=0, flip=0.0, precise_bn_iterations=3
    )
    detector = fitted(protocol, splits[0])
    stem, norm = detector.backbone.trunk.stages[0][:2]
    means, variances = [], []
    for batch in engine.batches(protocol, splits[0], SITE, 0, 1, 4):
        with torch.no_grad():
            values = stem((torch.stack([image for image, _ in batch]) - 0.2) / 0.2).transpose(0, 1).flatten(1)
        means.append(values.mean(dim=1))
        variances.append(values.var(dim=1))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(dim=0), rtol=1e-4, atol=1e-5)


def mirrored(flip: float, iteration: int) -> list[bool]:
    """Return which of 200 images a step mirrors, with their boxes."""
    shown: list[bool] = []

    def detector(
        images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        for image, target in zip(images, targets, strict=True):
            shown.append(bool(image[0, 0, -1]))
            assert target["boxes"].tolist() == [[3, 0, 4, 2] if shown[-1] else [0, 0, 1, 2]]
        return {}

    image = torch.zeros(3, 2, 4)
    image[:, :, 0] = 1
    target = {"boxes": torch.tensor([[0.0, 0, 1, 2]]), "labels": torch.tensor([1])}
    engine._losses(detector, replace(VOC, flip=flip), [(image, target)] * 200, CPU, 0, iteration)
    return shown


def test_training_images_are_mirrored_with_the_probability_of_the_protocol_and_alike_in_the_same_step() -> (
    None
):
    assert not any(mirrored(0.0, 0))
    assert all(mirrored(1.0, 0))
    assert 0.15 < sum(mirrored(0.25, 0)) / 200 < 0.35
    assert mirrored(0.5, 7) == mirrored(0.5, 7) != mirrored(0.5, 8)


def test_a_mask_is_where_it_is_at_least_as_likely_as_not() -> None:
    (found,) = engine._encoded(torch.tensor([[[[0.0, 0.49, 0.5], [0.51, 1.0, 0.2]]]]))
    assert encoding.decode(dict(found)).tolist() == [[0, 0, 1], [1, 1, 0]]


def test_a_loss_that_is_not_finite_names_its_step(splits: tuple[Annotated, Annotated]) -> None:
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+: loss = .*loss_classifier = "):
        fitted(replace(VOC, base_lr=1e12, warmup_iterations=0), splits[0])


def test_an_evaluation_reads_each_split_once_and_tells_what_it_is(tmp_path: Path) -> None:
    read: list[str] = []

    class Counted(Rectangles, name="counted_rectangles"):
        def load(self, split: str, site: Site) -> Annotated:
            read.append(split)
            return annotated(site.runs / split, 8, len(split))

    protocol = replace(VOC, iterations=1, drops=(), warmup_iterations=0, precise_bn_iterations=1)
    given, notes = encoder(), Notes()
    dataset = Counted(train_split="one+two", test_split="three")
    evaluate(
        Evaluate(encoder=PRETRAIN, protocol=protocol, dataset=dataset),
        given,
        Site(runs=tmp_path),
        CPU,
        Watch(notes),
    )
    assert read == ["one+two", "three"]
    assert notes.tags == {
        "data_digest_one_two": "8 images of seed 7",
        "data_digest_three": "8 images of seed 5",
        "num_images_one_two": "8",
        "num_images_three": "8",
        "encoder_digest": given.digest,
    }


def test_images_without_an_object_that_counts_are_refused_before_anything_is_trained(
    splits: tuple[Annotated, Annotated],
) -> None:
    class Hard(Rectangles, name="hard_rectangles"):
        def load(self, split: str, site: Site) -> Annotated:
            pictures = tuple(
                each._replace(instances=tuple(one._replace(difficult=True) for one in each.instances))
                for each in splits[1].pictures
            )
            return splits[0] if split == "train" else replace(splits[1], pictures=pictures)

    reported = list[Progress]()
    with pytest.raises(
        ValueError,
        match=r"instances\.json: no image of test shows an object that counts, "
        "so there is nothing to measure",
    ):
        VOC.run(
            encoder(),
            Hard(train_split="train", test_split="test"),
            SITE,
            CPU,
            0,
            Watch(report=reported.append),
        )
    assert not reported


def test_a_checkpoint_of_other_images_is_refused(splits: tuple[Annotated, Annotated], tmp_path: Path) -> None:
    protocol = replace(
        VOC, batch_size=16, iterations=1, drops=(), warmup_iterations=0, precise_bn_iterations=0
    )
    fitted(protocol, splits[0], Watch(folder=tmp_path))
    with pytest.raises(
        ValueError,
        match=r"^The checkpoint in .* is from a training with another list of images: delete it to start "
        r"from scratch\.$",
    ):
        fitted(protocol, splits[1], Watch(folder=tmp_path))


def test_several_processes_are_refused(splits: tuple[Annotated, Annotated]) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ValueError, match="one process, not in 2: use engine=detectron2"):
            engine.fine_tune(VOC, encoder(), DATA, *splits, SITE, CPU, 0, Watch())
    finally:
        torch.distributed.destroy_process_group()


def test_splits_of_other_classes_and_images_without_objects_are_named(
    splits: tuple[Annotated, Annotated],
) -> None:
    train, test = splits
    with pytest.raises(ValueError, match="trains on 2 classes and tests on 1"):
        engine.fine_tune(VOC, encoder(), DATA, train, replace(test, classes=("red",)), SITE, CPU, 0, Watch())
    empty = replace(train, pictures=tuple(each._replace(instances=()) for each in train.pictures))
    with pytest.raises(ValueError, match=f"^{re.escape(str(train.origin))}: no training image has an object"):
        fitted(VOC, empty)


SHORT = replace(COCO, iterations=6, drops=(5,))
"""Protocol of 24 steps of 4 images."""


def measure(
    folder: Path, data: Path, report: Any = lambda progress: None, site: Site = SITE
) -> tuple[dict[str, float], dict[str, float]]:
    """Fine-tune with checkpoints in `folder`; return average precisions and the last logged values."""
    train, test, notes = annotated(data / "train", 12, 0), annotated(data / "test", 6, 1), Notes()
    measured = engine.fine_tune(
        SHORT, encoder(), DATA, train, test, site, CPU, 3, Watch(notes, report, folder)
    )
    return measured, notes.logged[24]


def test_a_training_does_not_continue_from_the_checkpoint_of_another_run(
    splits: tuple[Annotated, Annotated], tmp_path: Path
) -> None:
    """Another seed: the same images and tensors, so nothing but the name of the run differs."""
    protocol = replace(VOC, iterations=1, drops=(), warmup_iterations=1)

    def strike(progress: Progress) -> None:
        interrupt.ask("a test")

    with pytest.raises(Interrupted, match="a test"):
        fitted(protocol, splits[0], Watch(Notes(), strike, tmp_path, spec_id=RUN), seed=1)
    assert checkpoint.newest(tmp_path, RUN) == 1
    found = fitted(protocol, splits[0], Watch(Notes(), folder=tmp_path, spec_id=OTHER))
    wanted = fitted(protocol, splits[0])
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in wanted.state_dict().items())
    assert checkpoint.newest(tmp_path, RUN) == 1, "the other's file stays"


def test_a_training_that_is_told_to_stop_goes_on_to_the_same_bits(
    splits: tuple[Annotated, Annotated], tmp_path: Path
) -> None:
    protocol, steps, notes = (
        replace(VOC, iterations=2, drops=(1,), warmup_iterations=1),
        itertools.count(1),
        Notes(),
    )

    def strike(progress: Progress) -> None:
        if next(steps) in (3, 5):
            interrupt.ask("a test")

    watch = Watch(notes, strike, tmp_path)
    for done in (3, 5):
        with pytest.raises(Interrupted, match="a test"):
            fitted(protocol, splits[0], watch)
        assert checkpoint.newest(tmp_path, "") == done
    parts, whole = fitted(protocol, splits[0], watch), fitted(protocol, splits[0])
    assert checkpoint.newest(tmp_path, "") == 8
    assert list(notes.logged) == [8], "what was measured before is not measured again"
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_numbers(tmp_path: Path, one_thread: None) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from test_detection_torchvision import Site, measure\n"
        "measure(Path(sys.argv[3]), Path(sys.argv[4]), lambda progress: print(progress.done, flush=True),\n"
        "        Site(checkpoint_seconds=0))\n"  # a checkpoint after each step
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(ROOT),
        str(ROOT / "tests"),
        str(tmp_path / "killed"),
        str(tmp_path / "data"),
    ]
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ) as process,
        limited(process),
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 4 * 10:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    resumed_at: list[int] = []
    resumed = measure(
        tmp_path / "killed", tmp_path / "data", lambda progress: resumed_at.append(progress.done)
    )
    assert 4 * 9 < resumed_at[0] < 4 * 24
    whole = measure(tmp_path / "whole", tmp_path / "data")
    assert json.dumps(resumed) == json.dumps(whole)  # equal to the last bit, where NaN equals NaN
    # This is what happens after a kill in the middle of the test.
    tested_again, _ = measure(tmp_path / "whole", tmp_path / "data")
    assert json.dumps(tested_again) == json.dumps(whole[0])
