"""The baselines' pretraining runs, with the recipe behind each number that the paper quotes.

    simclr_imagenet(200)                                  # a cell of Table 2
    barlow_twins_imagenet(1000)                           # the encoder of Tables 3, 4, 5 and 10

Facts come from the official code and the papers that the docstrings name. Precision is bfloat16 in all runs,
a choice, as in `pretrain.py`.
"""

from __future__ import annotations

from dataclasses import replace

from configs.pretrain import imagenet, stl10
from reproduce.data.augmentation import Augmentation
from reproduce.methods.barlow_twins import BarlowTwins
from reproduce.methods.simclr import SimCLR
from reproduce.methods.vicreg import VICReg
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import LARS, Adam
from reproduce.spec import Pretrain

# One group of functions for each method, in the order of their names.

# Barlow Twins.


def barlow_twins_imagenet(epochs: int = 1000) -> Pretrain:
    """Pretrain Barlow Twins on ImageNet, at batch 2048 (facebookresearch/barlowtwins main.py).

    The quoted rows are runs of 1000 epochs: linear top-1 73.2 in the paper, 73.5 in the README. 55.0 and 69.7
    with 1 % and 10 % of the labels (Table 3 prints 55.5), 64.8 and 62.9 with 20 and 200 neighbours (Table 4).
    The gradient has the official scale, 1/16 on 16 GPUs; the vectors' rate of .0048 belongs to it. The
    weight decay of 1e-6 is that of the code. 1000 epochs are 1.28 billion images, each seen twice.
    """
    return replace(
        imagenet(epochs)(BarlowTwins()),
        augmentation=_two_distributions(),
        optimizer=LARS(
            base_lr=0.2, vector_lr=0.0048, scale_with_views=False, weight_decay=1e-6, final_ratio=1e-3
        ),
        batch_size=2048,
    )


# SimCLR.


def simclr_imagenet(epochs: int) -> Pretrain:
    """Pretrain SimCLR on ImageNet with a projector of three layers, at batch 4096.

    Table 2's top-1 is 66.5, 68.3 and 69.8 for 100, 200 and 400 epochs. These are the SimSiam authors' runs
    (arXiv 2011.10566, Table 4), with SimCLR v2's projector (appendix C). Everything else is SimCLR's. An
    epoch is 1.28 million images, each seen twice.
    """
    return _simclr_imagenet(epochs, SimCLR().head.replace("widths", (2048, 2048, 128)))


def simclr_1000_imagenet() -> Pretrain:
    """Pretrain SimCLR on ImageNet for 1000 epochs, at batch 4096 (google-research/simclr).

    The quoted rows are this run: 48.3 and 65.6 with 1 % and 10 % of the labels (Table 3); box and mask AP 39.7
    and 35.8 on COCO (Table 10). It sees 1.28 billion images, each twice.
    """
    return _simclr_imagenet(1000, SimCLR().head)


def simclr_stl10() -> Pretrain:
    """Pretrain SimCLR on STL-10 as the W-MSE authors do: 2000 epochs at batch 512 with Adam.

    Table 1's 90.51 and 85.68 (5-NN) are their ResNet-18 (htdt/self-supervised README.md). The table's caption
    says ResNet-50. The views pass the backbone one by one and the projector together. Colours change before
    the crop (datasets/transforms.py). 2000 epochs are 210 million images, each seen twice.
    """
    head = Head(widths=(1024, 128), last_norm="affine")
    return replace(
        stl10(SimCLR(temperature=0.5, loss_scale=1.0, joint="heads", head=head)),
        augmentation=Augmentation(
            crop_scale=(0.2, 1.0), saturation=0.4, grey=0.1, blur=0.0, solarize=0.0, colour_first=True
        ),
        optimizer=Adam(
            base_lr=2e-3,
            warmup_steps=500,
            warmup_start=1 / 500,
            warmup_inclusive=True,
            drops=(1950 / 2000, 1975 / 2000),
            drop_factor=0.2,
        ),
        epochs=2000,
        zero_init=False,
    )


def _simclr_imagenet(epochs: int, head: Head) -> Pretrain:
    """Return SimCLR's run on ImageNet (google-research/simclr README.md, run.py, data_util.py).

    The peak rate is .075 times the square root of 4096, which is also .3 x 4096 / 256. The square root is
    better at smaller batches, and the smaller scales have them. The weight decay of 1e-6 is the paper's
    (arXiv 2002.05709); the README's command has 1e-4.
    """
    return replace(
        imagenet(epochs)(SimCLR(head=head)),
        augmentation=Augmentation(
            brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5, solarize=0.0
        ),
        optimizer=LARS(base_lr=0.075, batch_scaling="sqrt", scale_with_views=False, weight_decay=1e-6),
        batch_size=4096,
    )


# VICReg.


def vicreg_imagenet(epochs: int = 1000) -> Pretrain:
    """Pretrain VICReg on ImageNet, at batch 2048 (facebookresearch/vicreg main_vicreg.py).

    The quoted rows are runs of 1000 epochs: linear top-1 73.2, 54.8 and 69.5 with 1 % and 10 % of the labels
    (Table 3), 64.5 and 62.8 with 20 and 200 neighbours (Table 4). The base rate of .2 belongs to 1000 epochs;
    100 epochs have .3 (README.md). 1000 epochs are 1.28 billion images, each seen twice.
    """
    return replace(
        imagenet(epochs)(VICReg()),
        augmentation=_two_distributions(),
        optimizer=LARS(
            base_lr=0.3 if epochs <= 100 else 0.2,
            scale_with_views=False,
            weight_decay=1e-6,
            final_ratio=1e-3,
        ),
        batch_size=2048,
    )


# Shared by several methods.


def _two_distributions() -> Augmentation:
    """Return BYOL's T and T', which Barlow Twins, VICReg and PixPro share."""
    return Augmentation(blur=1.0, solarize=0.0, every_second=Augmentation(blur=0.1, solarize=0.2))
