"""The paper's evaluations of a pretrained encoder (section 8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeVar

from reproduce.data.coco2017 import COCO2017
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.data.imagenet import ImageNet
from reproduce.data.inaturalist2018 import INaturalist2018
from reproduce.data.places205 import Places205
from reproduce.data.voc0712 import VOC0712
from reproduce.data.voc2007 import VOC2007
from reproduce.nn.weights import Weights, geometry
from reproduce.protocols.alignment import AlignmentUniformity
from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
from reproduce.protocols.knn import NearestNeighbours, WeightedNeighbours
from reproduce.protocols.linear import LinearEvaluation
from reproduce.protocols.linear_sgd import LinearSGD
from reproduce.protocols.semi import SemiSupervised
from reproduce.protocols.svm import LinearSVM
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.spec import Evaluate, Pretrain

AnyDataset = TypeVar("AnyDataset", bound=Dataset | DetectionDataset)


def linear(encoder: Pretrain) -> Evaluate:
    """Evaluate a linear classifier on frozen features: `top1`, `top5`.

    Section 8.1; htdt/self-supervised eval/sgd.py.
    """
    return Evaluate(encoder=encoder, protocol=LinearEvaluation(), dataset=encoder.dataset)


def knn5(encoder: Pretrain) -> Evaluate:
    """Evaluate a majority vote of the 5 nearest neighbours: `top1`.

    Table 1; htdt/self-supervised eval/knn.py.
    """
    return Evaluate(encoder=encoder, protocol=NearestNeighbours(k=5), dataset=encoder.dataset)


def alignment(encoder: Pretrain) -> Evaluate:
    """Measure Wang and Isola's two losses: `alignment` and `uniformity`, and the same with `_features`.

    The former are on projections, the latter on features (Table 12; ssnl/align_uniform).
    """
    return Evaluate(encoder=encoder, protocol=AlignmentUniformity(), dataset=encoder.dataset)


def imagenet_linear(encoder: Pretrain | Weights) -> Evaluate:
    """Evaluate a linear classifier on ImageNet (Tables 2 and 7): `top1`, `top5`.

    The protocol is BYOL's, since section 8.1 leaves it open (protocol sheet, 2).
    """
    return Evaluate(encoder=encoder, protocol=LinearSGD(), dataset=seen_by(encoder, ImageNet()))


def semi(encoder: Pretrain | Weights, labels: Literal["1percent", "10percent"]) -> Evaluate:
    """Evaluate semi-supervised classification with 1 % or 10 % of ImageNet's labels: `top1`, `top5`.

    Table 3, section 8.2. With 1 % the encoder is frozen and the classifier's rate is 2.0. With 10 % the
    classifier's rate is .25 and the encoder's is 2.5e-4.
    """
    frozen = SemiSupervised(labels="1percent", classifier_lr=2.0, encoder_lr=0.0)
    tuned = SemiSupervised(labels="10percent", classifier_lr=0.25, encoder_lr=2.5e-4)
    protocol = {"1percent": frozen, "10percent": tuned}[labels]
    return Evaluate(encoder=encoder, protocol=protocol, dataset=seen_by(encoder, ImageNet()))


def knn(encoder: Pretrain | Weights) -> Evaluate:
    """Evaluate weighted votes of 20 and of 200 neighbours: `top1_20`, `top1_200`.

    Table 4, section 8.3; protocol sheet, 4.
    """
    return Evaluate(encoder=encoder, protocol=WeightedNeighbours(), dataset=seen_by(encoder, ImageNet()))


def voc07(encoder: Pretrain | Weights) -> Evaluate:
    """Evaluate one linear SVM for each class of VOC2007: `map`.

    Table 5, section 8.4; protocol sheet, 5.
    """
    return Evaluate(encoder=encoder, protocol=LinearSVM(), dataset=seen_by(encoder, VOC2007()))


def places205(encoder: Pretrain | Weights) -> Evaluate:
    """Evaluate a linear classifier on Places205 with the paper's schedule: `top1`, `top5`.

    Table 5, section 8.4.
    """
    return Evaluate(encoder=encoder, protocol=_transfer(epochs=28), dataset=seen_by(encoder, Places205()))


def inaturalist2018(encoder: Pretrain | Weights) -> Evaluate:
    """Evaluate a linear classifier on iNaturalist 2018 with the paper's schedule: `top1`, `top5`.

    Table 5, section 8.4.
    """
    return Evaluate(
        encoder=encoder, protocol=_transfer(epochs=84), dataset=seen_by(encoder, INaturalist2018())
    )


def voc_detection(encoder: Pretrain | Weights) -> Evaluate:
    """Fine-tune and measure a Faster R-CNN on VOC07+12: `ap50`, `ap75`, `ap`.

    Table 5, section 8.4; protocol sheet, 11.
    """
    return Evaluate(encoder=encoder, protocol=VOCDetection(), dataset=seen_by(encoder, VOC0712()))


def coco_mask_rcnn(encoder: Pretrain | Weights) -> Evaluate:
    """Fine-tune and measure a Mask R-CNN on COCO 2017: `box_ap`, `mask_ap`, ...

    Table 10, section 8.4; protocol sheet, 11.
    """
    return Evaluate(encoder=encoder, protocol=COCOMaskRCNN(), dataset=seen_by(encoder, COCO2017()))


def _transfer(epochs: int) -> LinearSGD:
    """Return the classifier of section 8.4: rate .2 at batch 256, divided by 10 twice, at equal distances.

    There is only one rate, so no images are held out to choose it.
    """
    return LinearSGD(
        base_lrs=(0.2,),
        epochs=epochs,
        batch_size=256,
        weight_decay=1e-4,
        nesterov=False,
        num_drops=2,
        num_held_out=0,
    )


def seen_by(encoder: Pretrain | Weights, dataset: AnyDataset) -> AnyDataset:
    """Return `dataset` with the image size and the normalisation with which `encoder` was trained.

    Images for a detector keep their size.
    """
    trained_on = encoder.dataset if isinstance(encoder, Pretrain) else encoder
    return replace(dataset, **geometry(trained_on, dataset))
