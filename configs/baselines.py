"""The baselines' pretraining runs, with the recipe behind each number that the paper quotes.

    simclr_imagenet(200)                                  # a cell of Table 2
    barlow_twins_imagenet(1000)                           # the encoder of Tables 3, 4, 5 and 10

Facts come from the official code and the papers that the docstrings name. Precision is bfloat16 in all runs,
a choice, as in `pretrain.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from configs.pretrain import imagenet
from reproduce.data.augmentation import Augmentation, SmallCrops
from reproduce.methods.swav import SwAV
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import LARC
from reproduce.spec import Pretrain

# One group of functions for each method, in the order of their names.


# SwAV

SWAV_STD: Final = (0.228, 0.224, 0.225)
"""Standard deviation of each channel (facebookresearch/swav src/multicropdataset.py); .229 elsewhere."""
SWAV_VIEWS: Final = Augmentation(
    crop_scale=(0.14, 1.0),
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    blur=0.5,
    solarize=0.0,
    resampling="bilinear",
)
"""Distribution of SwAV's large views (facebookresearch/swav src/multicropdataset.py, scripts/).

The blur's kernel has 23 pixels there at every view size. Ours shrinks with the view, as BYOL's does.
"""


def swav_imagenet(epochs: int) -> Pretrain:
    """Pretrain SwAV with multi-crop on ImageNet: 2 views of 224 px and 6 of 96 px.

    The top-1 is 72.1, 73.9 and 74.6 for 100, 200 and 400 epochs (Table 2). The encoder of Tables 3, 4, 5 and
    10 has 800 epochs and a top-1 of 75.3. Source: facebookresearch/swav scripts/swav_400ep_pretrain.sh and
    its siblings. An epoch took 220 s on 64 V100 GPUs (its README.md). All views of an image go through the
    network at once: `crop_by_crop` fits on fewer GPUs, but is another network.
    """
    return _swav(SwAV(num_views=8), SWAV_VIEWS.replace("small", SmallCrops()), epochs)


def swav_two_views_imagenet(epochs: int) -> Pretrain:
    """Pretrain SwAV without multi-crop on ImageNet, with the projector of SimSiam's comparison.

    The top-1 is 66.5, 69.1 and 70.7 for 100, 200 and 400 epochs (Table 2; Table 4 of arXiv 2011.10566). That
    projector has three layers (its appendix C). Everything else is a choice: the settings of the official run
    with two layers, which has 70.1 after 400 epochs (facebookresearch/swav
    scripts/swav_400ep_2x224_pretrain.sh). Both views go through the network at once.
    """
    method = SwAV(head=Head(widths=(2048, 2048, 128)))
    return _swav(method, SWAV_VIEWS.replace("crop_scale", (0.08, 1.0)), epochs)


def swav_256_imagenet(epochs: int) -> Pretrain:
    """Pretrain SwAV with multi-crop on ImageNet at batch 256, with a queue.

    This run is not in the paper. The top-1 is 72.7 and 74.3 for 200 and 400 epochs (facebookresearch/swav
    README.md, scripts/swav_400ep_bs256_pretrain.sh). An epoch took 52 minutes on 4 V100 GPUs.
    """
    run = swav_imagenet(epochs)
    return replace(
        run,
        method=run.method.replace("queue", 3840),
        optimizer=LARC(base_lr=0.6, final_ratio=0.001),
        batch_size=256,
    )


def _swav(method: SwAV, views: Augmentation, epochs: int) -> Pretrain:
    """Return SwAV's run on ImageNet at batch 4096: the rate rises from .3 to 4.8 and falls to .0048."""
    run = imagenet(epochs)(method)
    return replace(
        run,
        dataset=run.dataset.replace("std", SWAV_STD),
        augmentation=views,
        optimizer=LARC(
            base_lr=0.3,
            warmup_epochs=10,
            warmup_start=0.3 / 4.8,
            warmup_inclusive=True,
            final_ratio=0.001,
        ),
        batch_size=4096,
        zero_init=False,
    )
