"""The baselines' pretraining runs, with the recipe behind each number that the paper quotes.

    simclr_imagenet(200)                                  # a cell of Table 2
    barlow_twins_imagenet(1000)                           # the encoder of Tables 3, 4, 5 and 10

Facts come from the official code and the papers that the docstrings name. Precision is bfloat16 in all runs,
a choice, as in `pretrain.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from configs.pretrain import imagenet, imagenet100
from reproduce.data.augmentation import Augmentation
from reproduce.methods.moco import MoCo
from reproduce.methods.wang_isola import WangIsola
from reproduce.nn.heads import Head
from reproduce.nn.keys import Keys
from reproduce.nn.optimizers import SGD
from reproduce.spec import Pretrain

# One group of functions for each method, in the order of their names.

# MoCo, and Wang and Isola

MOCO_V1_VIEWS: Final = Augmentation(
    crop_scale=(0.2, 1.0), jitter=1.0, saturation=0.4, hue=0.4, blur=0.0, solarize=0.0, resampling="bilinear"
)
"""Views of MoCo v1 (facebookresearch/moco main_moco.py; HobbitLong/CMC train_moco_ins.py).

Their code greys a view before the colour jitter, and ours after it. The two differ little: the jitter of a
grey view changes its brightness and contrast.
"""
MOCO_V2_VIEWS: Final = Augmentation(
    crop_scale=(0.2, 1.0), saturation=0.4, blur=0.5, solarize=0.0, resampling="bilinear"
)
"""Views of MoCo v2 (facebookresearch/moco main_moco.py, --aug-plus)."""


def moco_imagenet100() -> Pretrain:
    """Pretrain MoCo v1 with a ResNet-50 on ImageNet-100 (Table 1: 72.80 top-1, 91.64 top-5).

    Wang and Isola trained it for their Table 5, with a modified HobbitLong/CMC
    (ssnl/moco_align_uniform README.md). These are its train_moco_ins.py's defaults with the command of its
    README, whose result there is 73.4. That the printed run had them unchanged is not confirmed. The rate of
    .03 is that of 128 images.

    240 epochs are 30 million images, each seen once by the query network and once by the key network.
    """
    return _wang_isola_run(MoCo(temperature=0.07, head=Head(widths=(128,)), keys=Keys(queue=16384)))


def moco_v2_imagenet(epochs: int, *, symmetric: bool) -> Pretrain:
    """Pretrain MoCo v2 with a ResNet-50 on ImageNet.

    With the symmetric loss, the top-1 is 67.4, 69.9 and 71.0 for 100, 200 and 400 epochs (Table 2; Chen and
    He, Exploring Simple Siamese Representation Learning, Table 4 and appendix C). Without it, 67.5 and 71.1
    for 200 and 800 epochs (facebookresearch/moco README.md).

    Both runs of the latter are in Table 5: detection of 82.4 AP50 after 200 epochs
    (facebookresearch/moco detection/README.md), classification of 86.4 on VOC2007 after 800. Table 10 has 800
    epochs, too. The epochs of the classification and of Table 10 are not stated.

    An epoch is 1.28 million images. A step of the symmetric loss costs twice as much as one without.
    """
    return replace(
        imagenet(epochs)(MoCo(symmetric=symmetric)),
        augmentation=MOCO_V2_VIEWS,
        optimizer=SGD(base_lr=0.03, by_epoch=True),
        batch_size=256,
        zero_init=False,
    )


def wang_isola_imagenet100() -> Pretrain:
    """Pretrain Wang and Isola's method with a ResNet-50 on ImageNet-100 (Table 1: 74.60 top-1, 92.74 top-5).

    The settings are those of `moco_imagenet100`, whose number is from the same table and code, and so is
    what is not confirmed. Wang and Isola's later code has a queue of 65 536 and 200 epochs, and reaches 75.62
    (ssnl/moco_align_uniform README.md). The cost is that of `moco_imagenet100`.
    """
    return _wang_isola_run(WangIsola(keys=Keys(queue=16384)))


def _wang_isola_run(method: MoCo | WangIsola) -> Pretrain:
    """Return the run of `method` behind Table 5 of Wang and Isola (HobbitLong/CMC train_moco_ins.py)."""
    return replace(
        imagenet100(method),
        backbone="resnet50",
        augmentation=MOCO_V1_VIEWS,
        optimizer=SGD(base_lr=0.03, batch_scaling="none", drops=(120 / 240, 160 / 240, 200 / 240)),
        epochs=240,
        batch_size=128,
        zero_init=False,
    )
