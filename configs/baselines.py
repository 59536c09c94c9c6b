"""The baselines' pretraining runs, with the recipe behind each number that the paper quotes.

    simclr_imagenet(200)                                  # a cell of Table 2
    barlow_twins_imagenet(1000)                           # the encoder of Tables 3, 4, 5 and 10

Facts come from the official code and the papers that the docstrings name. Precision is bfloat16 in all runs,
a choice, as in `pretrain.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from configs.pretrain import imagenet, imagenet100, stl10
from reproduce.data.augmentation import Augmentation
from reproduce.methods.simsiam import SimSiam
from reproduce.methods.wmse import WMSE
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import LARS, SGD, Adam
from reproduce.spec import Pretrain

# One group of functions for each method, in the order of their names.

# SimSiam

SIMSIAM_VIEWS: Final = Augmentation(
    crop_scale=(0.2, 1.0), saturation=0.4, blur=0.5, solarize=0.0, resampling="bilinear"
)
"""Distribution of SimSiam's views, which is MoCo v2's (facebookresearch/simsiam main_simsiam.py)."""


def simsiam_imagenet(epochs: int) -> Pretrain:
    """Pretrain SimSiam on ImageNet at batch 256: a ResNet-50, two views.

    The paper's top-1 is 68.1, 70.0 and 70.8 for 100, 200 and 400 epochs (Table 2). Those are SimSiam's own
    numbers (its Table 4). Its linear classifier was trained by LARS at batch 4096. The rate is .05, and the
    predictor's is constant (facebookresearch/simsiam main_simsiam.py). 100 epochs of the official code at
    batch 512 have 68.1, too (README.md; 8 V100). An epoch is 1.28 million images, each seen twice.
    """
    return replace(
        imagenet(epochs)(SimSiam()),
        augmentation=SIMSIAM_VIEWS,
        optimizer=SGD(base_lr=0.05, by_epoch=True, constant=("predictor",)),
        batch_size=256,
        zero_init=True,
    )


def simsiam_transfer_imagenet() -> Pretrain:
    """Pretrain SimSiam on ImageNet for 200 epochs with the recipe that is best for detection.

    The rate is .5 and the decay 1e-5 ("SimSiam, optimal" of SimSiam's Table 5). The paper quotes its 82.4,
    63.7 and 57.0 on VOC (Table 5); `simsiam_imagenet(200)` has 82.0, 62.8 and 56.4 there. The predictor's
    rate is constant at .5, too (facebookresearch/simsiam issue 24). Batch 256 and SGD are a choice. They are
    those of Table 2's runs, and with this batch the peak rate is .5. An epoch is 1.28 million images, each
    seen twice.
    """
    run = simsiam_imagenet(200)
    return replace(run, optimizer=run.optimizer.times(10).replace("weight_decay", 1e-5))


# W-MSE


def wmse_stl10() -> Pretrain:
    """Pretrain W-MSE 4 on STL-10 for 2000 epochs at batch 256: a ResNet-18, four views.

    The paper's top-1 is 91.75, with 5-NN 88.59 (Table 1). All settings are the official code's
    (htdt/self-supervised README.md, cfg.py). 2000 epochs over 105 000 images are 210 million images, each
    seen four times.
    """
    return replace(
        stl10(WMSE()),
        augmentation=Augmentation(
            crop_scale=(0.2, 1.0), saturation=0.4, grey=0.1, blur=0.0, solarize=0.0, colour_first=True
        ),
        optimizer=_wmse_adam(2000),
        epochs=2000,
        batch_size=256,
        zero_init=False,
    )


def wmse_imagenet100() -> Pretrain:
    """Pretrain W-MSE 4 on ImageNet-100 for 240 epochs at batch 256: a ResNet-18, four views.

    The paper's top-1 is 79.02, top-5 94.46 and 5-NN 71.32 (Table 1). All settings are the official code's
    (htdt/self-supervised README.md, cfg.py, datasets/imagenet.py). 240 epochs over 126 689 images are 30
    million images, each seen four times.
    """
    return replace(
        imagenet100(WMSE()),
        augmentation=replace(_STRONG_COLOURS, colour_first=True),
        optimizer=_wmse_adam(240),
        epochs=240,
        batch_size=256,
        zero_init=False,
    )


def wmse_imagenet(epochs: int) -> Pretrain:
    """Pretrain W-MSE 4 on ImageNet at batch 1024: a ResNet-50, four views.

    The paper's top-1 is 69.3 and 72.56 for 100 and 400 epochs (Table 2). The official loss for ImageNet fits
    into SimCLR's code (htdt/self-supervised tf2/README.md). Other settings are not published, so they are a
    choice: the network, the views and the optimiser of SimCLR v2 (arXiv 2006.10029, section 3.1;
    google-research/simclr issue 77). The peak rate is .1 times the square root of 1024, 3.2. The warm-up
    takes 5 % of the epochs. An epoch is 1.28 million images, each seen four times.
    """
    head = Head(
        widths=(2048, 2048, 128), bias=False, last_bias=False, last_norm="scale", weight_std=0.01
    )  # google-research/simclr tf2/model.py
    return replace(
        imagenet(epochs)(WMSE(head=head, joint="all")),
        augmentation=_STRONG_COLOURS,
        optimizer=LARS(
            base_lr=0.1,
            batch_scaling="sqrt",
            scale_with_views=False,
            weight_decay=1e-4,
            warmup_epochs=round(epochs / 20),
        ),
        batch_size=1024,
        zero_init=True,
    )


_STRONG_COLOURS = Augmentation(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5, solarize=0.0)
"""Distribution of SimCLR's views (google-research/simclr data_util.py), which W-MSE uses on ImageNet, too."""


def _wmse_adam(epochs: int) -> Adam:
    """Return W-MSE's optimiser: warm-up of 500 steps from 1/500, drops 50 and 25 epochs before the end.

    Source: htdt/self-supervised train.py, cfg.py, README.md.
    """
    return Adam(
        base_lr=2e-3,
        warmup_steps=500,
        warmup_start=1 / 500,
        warmup_inclusive=True,
        drops=((epochs - 50) / epochs, (epochs - 25) / epochs),
        drop_factor=0.2,
    )
