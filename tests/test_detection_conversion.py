"""Inputs and outputs of Detectron2 that can be tested without it: names, config, records, results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from skips import shared
from torch import Tensor

from reproduce.commands.forecast import action
from reproduce.data import coco2017
from reproduce.data.coco2017 import COCO2017
from reproduce.data.detection import Annotated, Instance, Picture
from reproduce.data.voc0712 import VOC0712
from reproduce.detection import conversion, detectron2
from reproduce.detection.detectron2_config import settings
from reproduce.detection.detectron2_formats import (
    check_coco,
    check_voc,
    dictionary,
    measured,
    metadata,
    trainable,
    write_voc,
)
from reproduce.nn import backbones
from reproduce.nn.stages import stages
from reproduce.nn.weights import Weights
from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.runs import checkpoint
from reproduce.site import Site
from reproduce.spec import Evaluate
from reproduce.tracking.reuse import Reuse

ROOT = Path(__file__).parent.parent
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet18_3x3": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def lively(name: str) -> Any:
    """Return a backbone whose BatchNorms all differ from each other and from the identity."""
    draw = torch.Generator().manual_seed(0)
    backbone = backbones.build(name, seed=0).eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=draw)
            module.bias.data.normal_(0, 0.1, generator=draw)
            module.running_mean.normal_(0, 0.1, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
    return backbone


class Detectron2ResNet:
    """A ResNet in eval mode, computed only from tensors under Detectron2's names."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        blocks: tuple[int, ...],
        stride_in_1x1: bool = False,
    ) -> None:
        self.tensors = tensors
        self.blocks, self.stride_in_1x1 = blocks, stride_in_1x1

    def convolved(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        scale, shift, mean, variance = (
            self.tensors[f"{name}.norm.{part}"].view(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def block(self, x: Tensor, name: str, stride: int) -> Tensor:
        has = [f"{name}.{part}.weight" in self.tensors for part in ("conv3", "shortcut")]
        strides = (1, stride, 1) if has[0] and not self.stride_in_1x1 else (stride, 1, 1)
        y = x
        for number in range(1, 4 if has[0] else 3):
            y = self.convolved(y, f"{name}.conv{number}", strides[number - 1])
            if number < (3 if has[0] else 2):
                y = F.relu(y)
        return F.relu(y + (self.convolved(x, f"{name}.shortcut", stride) if has[1] else x))

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features of the stem and of res2 to res5."""
        x = F.relu(
            self.convolved(x, "stem.conv1", 2 if self.tensors["stem.conv1.weight"].shape[-1] == 7 else 1)
        )
        found = [F.max_pool2d(x, 3, 2, padding=1)]
        for stage, count in enumerate(self.blocks, start=2):
            x = found[-1]
            for number in range(count):
                x = self.block(x, f"res{stage}.{number}", 2 if stage > 2 and number == 0 else 1)
            found.append(x)
        return found


# Names and values


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv3.weight", "res2.0.conv3.weight"),
        ("layer3.5.bn2.num_batches_tracked", "res4.5.conv2.norm.num_batches_tracked"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer2.0.downsample.1.bias", "res3.0.shortcut.norm.bias"),
    ],
)
def test_a_tensor_gets_the_name_that_detectron2_gives_it(ours: str, theirs: str) -> None:
    assert conversion.renamed(ours) == theirs


def test_a_resnet50_has_318_tensors_and_its_classifier_is_dropped() -> None:
    tensors = backbones.build("resnet50", seed=0).state_dict()
    content = conversion.file(tensors | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})
    names = list(content["model"])
    assert len(set(names)) == 318
    assert Counter(name.split(".")[0] for name in names) == {
        "stem": 6,
        "res2": 60,
        "res3": 78,
        "res4": 114,
        "res5": 60,
    }
    assert sum(name.endswith("num_batches_tracked") for name in names) == 53
    assert content["matching_heuristics"] is True
    assert content["__author__"] != "Caffe2"
    assert all(type(value) is torch.Tensor for value in content["model"].values())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "resnet50" else name for name in BLOCKS]
)
def test_a_resnet_under_detectron2s_names_computes_what_ours_does(name: str) -> None:
    backbone = lively(name)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    theirs = Detectron2ResNet(conversion.converted(backbone.state_dict()), BLOCKS[name])
    with torch.no_grad():
        x, found = images, theirs.features(images)
        for stage, features in zip(stages(backbone), found, strict=True):
            x = stage.module(x)
            assert features.shape == x.shape
            assert (features - x).norm() < 1e-5 * x.norm()
        assert (x.mean(dim=(2, 3)) - backbone(images)).norm() < 1e-5 * x.norm()


def test_the_stride_in_the_wrong_convolution_is_an_error_that_the_parity_check_sees() -> None:
    backbone = lively("resnet50")
    tensors = conversion.converted(backbone.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        right = Detectron2ResNet(tensors, BLOCKS["resnet50"]).features(images)[3]
        wrong = Detectron2ResNet(tensors, BLOCKS["resnet50"], stride_in_1x1=True).features(images)[3]
    assert wrong.shape == right.shape
    assert (wrong - right).norm() / right.norm() > 100 * detectron2.PARITY


def test_a_name_matches_behind_what_it_is_a_part_of_and_only_whole() -> None:
    ours = {"res4.0.conv1.weight", "stem.conv1.weight"}
    assert conversion.matches("backbone.bottom_up.res4.0.conv1.weight", ours)
    assert conversion.matches("stem.conv1.weight", ours)
    assert not conversion.matches("backbone.xres4.0.conv1.weight", ours)
    assert not conversion.matches("roi_heads.box_head.conv1.weight", ours)


# The config


VOC_VALUES = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": False,
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "Res5HeadsWithNorm",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MAX_ITER": 24000,
    "SOLVER.STEPS": (18000, 22000),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 100,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "SEED": 3,
}
"""Values of facebookresearch/moco detection/configs/Base-RCNN-C4-BN.yaml, pascal_voc_R_50_C4_24k.yaml and
...24k_moco.yaml."""
COCO_VALUES = VOC_VALUES | {
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "SOLVER.BASE_LR": 0.05,
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": (60000, 80000),
    "SOLVER.WARMUP_ITERS": 50,
}
"""Values of section 8.4 of the paper; the rest are those of detectron2 configs/Base-RCNN-FPN.yaml and
Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml."""
PIXELS = {"MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53], "MODEL.PIXEL_STD": [58.395, 57.12, 57.375]}


@pytest.mark.parametrize(
    ("protocol", "dataset", "wanted"),
    [(VOCDetection(), VOC0712(), VOC_VALUES), (COCOMaskRCNN(), COCO2017(), COCO_VALUES)],
)
def test_the_config_has_the_values_of_the_sources(
    protocol: Any, dataset: Any, wanted: dict[str, Any]
) -> None:
    found = settings(protocol, "resnet50", dataset, device="cpu", seed=3)
    for name, values in PIXELS.items():
        assert found.pop(name) == pytest.approx(values)
    assert found == wanted


def test_the_pyramid_of_a_small_stem_is_one_level_lower_and_a_resnet18_is_narrow() -> None:
    found = settings(COCOMaskRCNN(box_head="2fc"), "resnet18_3x3", COCO2017(), device="cuda:1", seed=0)
    assert found["MODEL.RPN.IN_FEATURES"] == ["p1", "p2", "p3", "p4", "p5"]
    assert found["MODEL.ROI_HEADS.IN_FEATURES"] == ["p1", "p2", "p3", "p4"]
    assert (found["MODEL.RESNETS.DEPTH"], found["MODEL.RESNETS.RES2_OUT_CHANNELS"]) == (18, 64)
    assert (found["MODEL.ROI_BOX_HEAD.NUM_CONV"], found["MODEL.ROI_BOX_HEAD.NUM_FC"]) == (0, 2)
    assert found["MODEL.DEVICE"] == "cuda:1"


def test_rate_and_schedule_follow_the_batch() -> None:
    found = settings(VOCDetection(batch_size=2), "resnet50", VOC0712(), device="cpu", seed=0)
    assert (found["SOLVER.IMS_PER_BATCH"], found["SOLVER.BASE_LR"]) == (2, 0.0025)
    assert (found["SOLVER.MAX_ITER"], found["SOLVER.STEPS"], found["SOLVER.WARMUP_ITERS"]) == (
        192000,
        (144000, 176000),
        800,
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_sizes": ()}, "coco_mask_rcnn.train_sizes is empty: one or more sizes are expected."),
        ({"anchor_sizes": ()}, "anchor_sizes is empty"),
        ({"rpn_test_top": (1000, 0)}, "rpn_test_top is 0: at least 1 is expected"),
        ({"rois": 0}, "rois is 0: at least 1"),
        ({"mask_resolution": 0}, "mask_resolution is 0: at least 1"),
        ({"gamma": -0.1}, "gamma is -0.1: at least 0 is"),
        ({"score_threshold": 2.0}, "score_threshold is 2.0: at most 1 is"),
        ({"precise_bn_iterations": -1}, "precise_bn_iterations is -1: at least 0"),
        (
            {"iterations": 100},
            "If --set changes both, put drops before iterations for a shorter training "
            "and after it for a longer one",
        ),
        (
            {"iterations": 20, "drops": ()},
            "not 50 of 20. If --set changes both, put warmup_iterations before",
        ),
    ],
)
def test_a_value_that_no_engine_takes_is_named(changed: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        COCOMaskRCNN(**changed)


def test_what_detectron2_has_not_is_refused_in_a_line() -> None:
    with pytest.raises(
        ValueError,
        match=r"^The engine detectron2 needs a ResNet \(resnet50, .*'small': "
        "`--set protocol.engine=torchvision`",
    ):
        settings(VOCDetection(), "small", VOC0712(), device="cpu", seed=0)
    with pytest.raises(ValueError, match="needs one anchor size for each of 5 levels"):
        settings(COCOMaskRCNN(anchor_sizes=(8, 16)), "resnet50", COCO2017(), device="cpu", seed=0)
    with pytest.raises(
        ValueError, match=r"^norm is 'BN2', but the engine detectron2 trains with one of SyncBN, "
    ):
        settings(VOCDetection(norm="BN2"), "resnet50", VOC0712(), device="cpu", seed=0)
    with pytest.raises(ValueError, match=r"^freeze_at is 5, but the backbone has only 4 stages"):
        settings(VOCDetection(freeze_at=5), "resnet50", VOC0712(), device="cpu", seed=0)
    assert (
        settings(COCOMaskRCNN(freeze_at=5), "resnet50", COCO2017(), device="cpu", seed=0)[
            "MODEL.BACKBONE.FREEZE_AT"
        ]
        == 5
    )


# Records


TRIANGLE = [10.0, 10.0, 30.0, 10.0, 10.0, 40.0]


def picture(*instances: Instance) -> Picture:
    return Picture(Path("a/000001.jpg"), 7, 50, 60, instances)


def test_a_dictionary_is_in_detectron2s_standard_format() -> None:
    made = dictionary(
        picture(
            Instance(3, (10.0, 10.0, 30.0, 40.0), difficult=True, segmentation=[TRIANGLE]),
            Instance(
                4, (0.0, 0.0, 50.0, 60.0), crowd=True, segmentation={"size": [60, 50], "counts": [3000]}
            ),
        ),
        masks=True,
    )
    assert made == {
        "file_name": str(Path("a/000001.jpg")),
        "image_id": 7,
        "height": 60,
        "width": 50,
        "annotations": [
            {
                "bbox": [10.0, 10.0, 30.0, 40.0],
                "bbox_mode": 0,
                "category_id": 3,
                "iscrowd": 0,
                "segmentation": [TRIANGLE],
            },
            {"bbox": [0.0, 0.0, 50.0, 60.0], "bbox_mode": 0, "category_id": 4, "iscrowd": 1},
        ],
    }


def test_without_a_polygon_an_object_is_left_out_where_masks_are_learnt_and_kept_where_they_are_not() -> None:
    two_points = Instance(3, (10.0, 10.0, 30.0, 40.0), segmentation=[[10.0, 10.0, 30.0, 40.0]])
    assert dictionary(picture(two_points), masks=True)["annotations"] == []
    (kept,) = dictionary(picture(two_points), masks=False)["annotations"]
    assert "segmentation" not in kept
    with pytest.raises(ValueError, match=r"1\.jpg: an object that is not a crowd has a run-length encoding"):
        dictionary(
            picture(Instance(3, (0, 0, 1, 1), segmentation={"size": [60, 50], "counts": "x"})), masks=True
        )


def test_images_with_nothing_to_learn_from_are_not_trained_on() -> None:
    crowd = picture(Instance(3, (0, 0, 9, 9), crowd=True, segmentation={"size": [60, 50], "counts": [3000]}))
    unusable, usable = (
        picture(Instance(3, (0, 0, 9, 9), segmentation=[[1.0, 1.0]])),
        picture(Instance(3, (0, 0, 9, 9), segmentation=[TRIANGLE])),
    )
    both = picture(*crowd.instances, *unusable.instances)
    images = Annotated(
        (picture(), crowd, unusable, both, usable), ("a",) * 4, (1, 2, 3, 4), Path("x.json"), ""
    )
    assert [each for each, _ in trainable(images, masks=True)] == [usable]
    assert [each for each, _ in trainable(images, masks=False)] == [unusable, both, usable]


def test_real_coco_images_become_dictionaries() -> None:
    images = COCO2017().load("train2017", Site(data={"coco": shared("coco")}))
    made = [each for _, each in trainable(images, masks=True)]
    assert len(made) == len(images.trainable) <= 80
    annotations = [each for one in made for each in one["annotations"]]
    assert {each["iscrowd"] for each in annotations} == {0, 1}
    assert max(each["category_id"] for each in annotations) < 80
    polygons = [polygon for each in annotations if not each["iscrowd"] for polygon in each["segmentation"]]
    assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    assert all(Path(one["file_name"]).is_file() for one in made)


def test_a_real_voc_image_becomes_a_dictionary(tmp_path: Path) -> None:
    source, folder = shared("voc", "VOCdevkit", "VOC2007"), tmp_path / "VOC2007"
    for name in ("JPEGImages", "Annotations"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(source / name)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("000001\n")
    images = VOC0712().load("2007_test", Site(data={"voc": tmp_path}))
    made = dictionary(images.pictures[0], masks=False)
    dog = {"bbox": [47.0, 239.0, 195.0, 371.0], "bbox_mode": 0, "category_id": 11, "iscrowd": 0}
    person = {"bbox": [7.0, 11.0, 352.0, 498.0], "bbox_mode": 0, "category_id": 14, "iscrowd": 0}
    assert (made["image_id"], made["height"], made["width"]) == ("000001", 500, 353)
    assert made["annotations"] == [dog, person]  # xmin 48, ymin 240, xmax 195, ymax 371, counted from 1
    known = metadata(VOC0712(), images, tmp_path / "voc")
    assert (known["dirname"], known["year"], known["split"]) == (str(tmp_path / "voc"), 2007, "test")
    assert known["thing_classes"][11] == "dog"


def test_cocos_evaluation_is_told_its_file_and_its_numbers(tmp_path: Path) -> None:
    (file := tmp_path / "instances_val2017.json").write_text("{}")
    known = metadata(COCO2017(), Annotated((), coco2017.CLASSES, coco2017.CATEGORY_IDS, file, ""), tmp_path)
    assert known["json_file"] == str(file)
    assert known["thing_dataset_id_to_contiguous_id"][90] == 79
    assert len(known["thing_dataset_id_to_contiguous_id"]) == 80


# What the evaluators read

LEFT_OUT = (
    "<object><name> cat </name>"
    "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8.0</ymax></bndbox></object>"
)
"""XML of an object without a pose, and without flags that it is truncated or difficult, which the development
kit's own reader accepts."""


def voc_of(root: Path, *objects: str) -> Annotated:
    """Return VOC2007's test split with one image for each of `objects`. The list has a blank line."""
    folder = root / "VOC2007"
    for place in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / place).mkdir(parents=True)
    for number, text in enumerate(objects):
        (folder / "JPEGImages" / f"{number}.jpg").touch()
        size = "<size><width>12</width><height>10</height></size>"
        (folder / "Annotations" / f"{number}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n\n".join(map(str, range(len(objects)))))
    return VOC0712().load("2007_test", Site(data={"voc": root}))


def test_what_the_evaluator_of_voc_reads_says_what_ours_does_and_all_that_it_asks_for(tmp_path: Path) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>12</xmax><ymax>10</ymax></bndbox>"
    hard = f"<object><name>dog</name><difficult>1</difficult>{box}</object>"
    images = voc_of(tmp_path, LEFT_OUT + hard, "")
    check_voc(images, "2007_test")
    write_voc(images, "2007_test", tmp_path / "voc")
    assert (tmp_path / "voc" / "ImageSets" / "Main" / "test.txt").read_text() == "0\n1\n"
    found = [
        ElementTree.parse(tmp_path / "voc" / "Annotations" / f"{number}.xml").getroot() for number in range(2)
    ]
    texts = [
        [[part.text for part in each.iter() if not len(part)] for each in root.findall("object")]
        for root in found
    ]
    cat = ["cat", "Unspecified", "0", "0", "2", "3", "9", "8"]
    assert texts == [[cat, ["dog", "Unspecified", "0", "1", "1", "1", "12", "10"]], []]
    assert [part.tag for part in found[0][0]] == ["name", "pose", "truncated", "difficult", "bndbox"]


def test_what_the_evaluator_of_voc_cannot_measure_is_known_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"VOC2007: a box of the image 1 has fractions of pixels"):
        check_voc(
            voc_of(tmp_path / "fractions", LEFT_OUT, LEFT_OUT.replace("<xmin>2", "<xmin>2.5")), "2007_test"
        )
    images = voc_of(tmp_path / "classes", LEFT_OUT)
    check_voc(images, "2007_test")
    with pytest.raises(
        ValueError,
        match=r"no image of 2012_val shows an object that counts of aeroplane, bicycle, .*: "
        "the rules after 2007",
    ):
        check_voc(images, "2012_val")


@pytest.mark.parametrize("polygons", [[], [[1, 1]], [[1, 1, 5, 5], [0, 0, 4, 0, 4, 4]]])
def test_masks_that_the_evaluator_of_coco_cannot_read_are_known_before_anything_is_trained(
    polygons: Any, tmp_path: Path
) -> None:
    rows = [
        {"id": 3, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 4]]},
        {"id": 4, "iscrowd": 1, "segmentation": {"size": [5, 5], "counts": [25]}},
    ]
    images = Annotated((), coco2017.CLASSES, coco2017.CATEGORY_IDS, tmp_path / "instances.json", "")
    images.origin.write_text(json.dumps({"annotations": rows}))
    check_coco(images)
    images.origin.write_text(
        json.dumps({"annotations": [*rows, {"id": 7, "iscrowd": 0, "segmentation": polygons}]})
    )
    with pytest.raises(
        ValueError,
        match=r"instances\.json: the annotation 7 has no polygon, or one of fewer than three points",
    ):
        check_coco(images)


# Results


def test_results_in_per_cent_become_fractions_under_our_names() -> None:
    results = {
        "bbox": {"AP": 40.0, "AP50": 60.0, "AP75": 43.5, "APs": 1.0},
        "segm": {"AP": 36.0, "AP50": 57.0, "AP75": 38.5},
    }
    assert measured(results, COCOMaskRCNN().metrics, num_found=9) == pytest.approx(
        {
            "box_ap": 0.4,
            "box_ap50": 0.6,
            "box_ap75": 0.435,
            "mask_ap": 0.36,
            "mask_ap50": 0.57,
            "mask_ap75": 0.385,
        }
    )
    assert measured(results, VOCDetection().metrics, num_found=9) == pytest.approx(
        {"ap50": 0.6, "ap75": 0.435, "ap": 0.4}
    )


def test_nothing_found_is_zero_and_no_number_is_an_error() -> None:
    nothing = {"bbox": dict.fromkeys(("AP", "AP50", "AP75"), float("nan"))}
    assert measured(nothing, ("ap", "ap50"), num_found=0) == {"ap": 0.0, "ap50": 0.0}
    with pytest.raises(
        ValueError, match="returned NaN for bbox/AP: the images show no object to measure it on"
    ):
        measured(nothing, ("ap",), num_found=5)
    with pytest.raises(ValueError, match="returned bbox/AP, bbox/AP50, bbox/AP75, but not segm/AP"):
        measured(nothing, ("mask_ap",), num_found=5)
    with pytest.raises(ValueError, match="returned nothing at all, but not segm/AP"):
        measured({}, ("mask_ap",), num_found=5)


# Whether Detectron2 is available


def test_a_folder_that_is_not_detectron2_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="is not Detectron2's source") as caught:
        detectron2.check(Site(detectron2=tmp_path))
    assert str(caught.value).splitlines()[1:] == [f"    {line}" for line in detectron2.INSTALL]
    assert str(tmp_path) not in str(caught.value), "the reason stands in reports"
    in_a_report = " ".join(str(caught.value).split())
    assert "requirements-detectron2.txt and, in configs/site.toml above [data]: detectron2 = " in in_a_report


def test_what_gets_it_is_there() -> None:
    requirements, example = (
        (ROOT / "requirements-detectron2.txt").read_text(),
        (ROOT / "requirements.txt").read_text(),
    )
    assert all(line in requirements for line in detectron2.INSTALL)
    pinned = {line.split("==")[0] for line in (requirements + example).splitlines() if "==" in line}
    assert set(detectron2.REQUIREMENTS.values()) <= pinned


def test_looking_for_it_imports_nothing_and_needs_what_it_imports(tmp_path: Path) -> None:
    (tmp_path / "detectron2" / "config").mkdir(parents=True)
    (tmp_path / "detectron2" / "config" / "defaults.py").write_text("raise RuntimeError('imported')\n")
    code = """
import sys
from pathlib import Path
from reproduce.detection import detectron2
from reproduce.site import Site
detectron2.REQUIREMENTS["no_such_module"] = "no-such-package"
try:
    detectron2.check(Site(detectron2=Path(sys.argv[1])))
except LookupError as error:
    print(error)
print(sorted({"torch", "numpy", "detectron2"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    reason, imported = done.stdout.splitlines()
    assert reason.startswith("Detectron2 is available, but its requirements are missing: ")
    assert "no-such-package. Get them: .venv/bin/pip install -r requirements-detectron2.txt" in reason
    assert imported == "[]"


@pytest.mark.parametrize(
    ("last", "told", "left"),
    [
        ("model_0000499.pth", "the checkpoint of iteration 500 of 24000", 1 - 500 / 24_000),
        ("model_final.pth", "the checkpoint of iteration 24000 of 24000", 0.0),
    ],
)
def test_a_plan_says_how_far_detectron2_is(last: str, told: str, left: float, tmp_path: Path) -> None:
    spec = Evaluate(encoder=Weights(sha256="0"), protocol=VOCDetection(), dataset=VOC0712())
    assert action(spec, None, None, None, tmp_path, Reuse()).action == "run"
    (folder := tmp_path / checkpoint.DETECTRON2).mkdir()
    (folder / last).write_bytes(b"x")
    checkpoint.seal(folder / last, spec.id)
    (folder / checkpoint.LAST).write_text(last)
    found = action(spec, None, None, None, tmp_path, Reuse())
    assert (found.action, found.why) == ("resume", f"from {told}")
    assert found.left == pytest.approx(left)


def test_a_finished_runs_checkpoints_of_detectron2_do_not_stay(tmp_path: Path) -> None:
    (folder := tmp_path / checkpoint.DETECTRON2).mkdir()
    (folder / "model_final.pth").write_bytes(b"x")
    (tmp_path / "log.txt").write_text("kept")
    checkpoint.discard(tmp_path, "0123456789ab")
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
