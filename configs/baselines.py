"""The baselines' pretraining runs, with the recipe behind each number that the paper quotes.

    simclr_imagenet(200)                                  # a cell of Table 2
    barlow_twins_imagenet(1000)                           # the encoder of Tables 3, 4, 5 and 10

Facts come from the official code and the papers that the docstrings name. Precision is bfloat16 in all runs,
a choice, as in `pretrain.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from configs.pretrain import imagenet, imagenet100, stl10
from reproduce.data.augmentation import Augmentation, Patches, SmallCrops
from reproduce.methods.barlow_twins import BarlowTwins
from reproduce.methods.la import LA
from reproduce.methods.moco import MoCo
from reproduce.methods.npid import NPID
from reproduce.methods.obow import OBoW
from reproduce.methods.pcl import PCL
from reproduce.methods.pirl import PIRL
from reproduce.methods.pixpro import PixPro
from reproduce.methods.simclr import SimCLR
from reproduce.methods.simsiam import SimSiam
from reproduce.methods.swav import SwAV
from reproduce.methods.vicreg import VICReg
from reproduce.methods.wang_isola import WangIsola
from reproduce.methods.wmse import WMSE
from reproduce.nn.heads import Head
from reproduce.nn.keys import Keys
from reproduce.nn.optimizers import LARC, LARS, SGD, Adam
from reproduce.spec import Pretrain

# One group of functions for each method, in the order of their names.

# Barlow Twins


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
        zero_init=True,
    )


# LA


def la_imagenet() -> Pretrain:
    """Pretrain LA with a ResNet-50 on ImageNet for 200 epochs, at batch 128.

    Table 4 prints 49.4 with 200 neighbours, for embeddings of 128 dimensions. The rate drops at steps
    1 522 000 and 1 895 857 of 2 001 800, in the epochs 152 and 189 (neuroailab/LocalAggregation
    exp_configs/la_final.json `res50_LA`). Decay spares BatchNorm (param_setter.py there); it spares the
    head's bias as well here. That ResNet-50 has pre-activations (model/resnet_model.py there), and ours has
    not. 200 epochs are 256 million images, each seen once, and 190 times 10 clusterings of the memory bank.
    """
    return replace(
        imagenet(200)(LA()),
        augmentation=MOCO_V1_VIEWS,
        optimizer=SGD(
            base_lr=0.03,
            batch_scaling="none",
            drops=(1_522_000 / 2_001_800, 1_895_857 / 2_001_800),
            exempt_vectors=True,
        ),
        batch_size=128,
        zero_init=False,
    )


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


# NPID


def npid_imagenet() -> Pretrain:
    """Pretrain NPID with a ResNet-50 on ImageNet for 200 epochs, at batch 256.

    Table 4 prints 46.5 with 200 neighbours. The README has 46.8 (zhirongw/lemniscate.pytorch README.md), and
    all settings are those of its command and of main.py. Both numbers classify embeddings of 128 dimensions.
    BatchNorm sees all 256 images, a choice: the authors' GPUs normalise their own images, and how many GPUs
    there were is not stated. 200 epochs are 256 million images, each seen once.
    """
    return replace(
        imagenet(200)(NPID()),
        augmentation=MOCO_V1_VIEWS,
        optimizer=SGD(base_lr=0.03, drops=(120 / 200, 160 / 200)),
        batch_size=256,
        zero_init=False,
    )


# OBoW


OBOW_VIEWS: Final = Augmentation(
    crop_scale=(0.08, 0.6),
    saturation=0.4,
    blur=0.5,
    solarize=0.0,
    resampling="bilinear",
    first=Augmentation(
        central=224 / 256, jitter=0.0, grey=0.0, blur=0.0, solarize=0.0, resampling="bilinear"
    ),
    small=SmallCrops(size=160, crop_scale=(0.08, 0.6), num_large=1),
    patches=Patches(size=96, canvas=256, jitter=24, num_whole=3, shared=True),
)
"""Views of OBoW (valeoai/obow obow/datasets.py, config/ImageNetFull/ResNet50_OBoW_full.yaml).

The teacher sees the centre of 224 pixels of 256, or its mirror image. The student sees two crops of 160
pixels and five patches of 96.
"""


def obow_imagenet() -> Pretrain:
    """Pretrain OBoW on ImageNet for 200 epochs at batch 256: a ResNet-50, 8 views.

    The quoted rows are this run: linear top-1 73.8 (valeoai/obow README.md), top-5 82.9 and 90.7 with 1 % and
    10 % of the labels (Table 3), 89.3 and 56.8 on VOC2007 and Places205, detection of 82.9, 64.8 and 57.9
    (Table 5), box and mask AP 40.8 and 36.4 on COCO (Table 10). The settings are those of
    config/ImageNetFull/ResNet50_OBoW_full.yaml. The rate rises by step and falls by epoch (obow/solver.py).

    200 epochs are 256 million images. An image costs 2.3 times as much as one view of 224 pixels, for a
    forward and a backward pass, and the heads' 2 x 8192 words a tenth of a step.
    """
    return replace(
        imagenet(200)(OBoW()),
        augmentation=OBOW_VIEWS,
        optimizer=SGD(base_lr=0.03, warmup_epochs=10, final_ratio=0.001, by_epoch=True),
        batch_size=256,
        zero_init=False,
    )


# PCL


def pcl_imagenet(version: Literal["v1", "v2"] = "v1") -> Pretrain:
    """Pretrain PCL on ImageNet for 200 epochs at batch 256 (salesforce/PCL README.md, main_pcl.py).

    Table 4's 54.5 with 20 neighbours is quoted for 200 epochs. The version of that row is not stated; v1 is a
    choice, as for the released encoder. Linear top-1 is 61.5 for v1 and 67.6 for v2 (README.md). v2 differs
    by MoCo v2's head, views and cosine. An epoch is 1.28 million images. Each is seen by the query network
    once, and by the key network once and, to be clustered, as a centre crop.
    """
    if version == "v1":
        method, views = PCL(), MOCO_V1_VIEWS
        optimizer = SGD(base_lr=0.03, drops=(120 / 200, 160 / 200))
    else:
        method, views = PCL(head=Head(widths=(2048, 128), norm="none")), MOCO_V2_VIEWS
        optimizer = SGD(base_lr=0.03, by_epoch=True)
    return replace(
        imagenet(200)(method),
        augmentation=views,
        optimizer=optimizer,
        batch_size=256,
        zero_init=False,
    )


# PIRL


PIRL_VIEWS: Final = Augmentation(
    jitter=1.0,
    saturation=0.4,
    hue=0.2,
    photometric=0.66,
    blur=0.0,
    solarize=0.0,
    resampling="bilinear",
    patches=Patches(),
)
"""An image and the nine patches of another crop, each with its own colours and flip (facebookresearch/vissl
pirl_jigsaw_4node_resnet50.yaml)."""


def pirl_imagenet(epochs: int = 800) -> Pretrain:
    """Pretrain PIRL with a ResNet-50 on ImageNet, at batch 1024.

    The quoted rows are of 800 epochs: classification of 81.1 on VOC2007 and 49.8 on Places205, detection of
    80.7, 59.7 and 54.0 (Table 5). Source: facebookresearch/vissl pirl_jigsaw_4node_resnet50.yaml, with which
    the paper's network was trained (projects/PIRL/README.md). Its linear top-1 is 64.29, and 62.55 after 200
    epochs (MODEL_ZOO.md).

    The peak rate is .12. 800 epochs are 1.02 billion images, each seen once as a whole and once as nine
    patches of 64 px, which cost three quarters as much.
    """
    return replace(
        imagenet(epochs)(PIRL()),
        augmentation=PIRL_VIEWS,
        optimizer=SGD(base_lr=0.03, exempt_vectors=True, by_epoch=True, final_ratio=0.001),
        batch_size=1024,
        zero_init=False,
    )


# PixPro


def pixpro_imagenet(epochs: int = 400) -> Pretrain:
    """Pretrain PixPro on ImageNet, at batch 1024 (zdaxie/PixPro tools/pixpro_base_r50_400ep.sh).

    The quoted row is a run of 400 epochs: detection on VOC of 83.8, 67.7 and 60.2 (Table 5). 100 epochs have
    83.0, 66.5 and 58.8 (README.md). Neither has an instance branch. The rate rises in 5 epochs from 1/100 of
    its peak of 4 and falls along a cosine to 1e-6 (contrast/lr_scheduler.py). 400 epochs are 512 million
    images, each seen twice.
    """
    views = _two_distributions().replace("resampling", "bilinear")
    return replace(
        imagenet(epochs)(PixPro()),
        augmentation=views.replace("every_second.resampling", "bilinear"),
        optimizer=LARS(
            base_lr=1.0,
            scale_with_views=False,
            weight_decay=1e-5,
            warmup_epochs=5,
            warmup_start=0.01,
            final_ratio=2.5e-7,
        ),
        batch_size=1024,
        zero_init=True,
    )


# Shared by several methods


STRONG_COLOURS: Final = Augmentation(
    brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5, solarize=0.0
)
"""Distribution of SimCLR's views (google-research/simclr data_util.py), which W-MSE uses on ImageNet, too."""
HTDT_STL10_VIEWS: Final = Augmentation(
    crop_scale=(0.2, 1.0), saturation=0.4, grey=0.1, blur=0.0, solarize=0.0, colour_first=True
)
"""Views of SimCLR and W-MSE on STL-10. Colours change before the crop (htdt/self-supervised
datasets/transforms.py)."""


def _htdt_adam(epochs: int) -> Adam:
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


def _two_distributions() -> Augmentation:
    """Return BYOL's T and T', which Barlow Twins, VICReg and PixPro share."""
    return Augmentation(blur=1.0, solarize=0.0, every_second=Augmentation(blur=0.1, solarize=0.2))


# SimCLR


def simclr_imagenet(epochs: int) -> Pretrain:
    """Pretrain SimCLR on ImageNet with a projector of three layers, at batch 4096.

    Table 2's top-1 is 66.5, 68.3 and 69.8 for 100, 200 and 400 epochs. These are the SimSiam authors' runs
    (arXiv 2011.10566, Table 4), with SimCLR v2's projector (appendix C). Everything else is SimCLR's. An
    epoch is 1.28 million images, each seen twice.
    """
    return _simclr_imagenet(epochs, SimCLR().head.replace("widths", (2048, 2048, 128)))


def simclr_1000_imagenet() -> Pretrain:
    """Pretrain SimCLR on ImageNet for 1000 epochs, at batch 4096 (google-research/simclr).

    The quoted rows are this run: top-1 48.3 and 65.6 with 1 % and 10 % of the labels (Table 3), box and mask
    AP 39.7 and 35.8 on COCO (Table 10). It sees 1.28 billion images, each twice.
    """
    return _simclr_imagenet(1000, SimCLR().head)


def simclr_stl10() -> Pretrain:
    """Pretrain SimCLR on STL-10 as the W-MSE authors do: 2000 epochs at batch 512 with Adam.

    Table 1's 90.51 and 85.68 (5-NN) are their ResNet-18 (htdt/self-supervised README.md). The table's caption
    says ResNet-50. The views pass the backbone one by one and the projector together. 2000 epochs are 210
    million images, each seen twice.
    """
    head = Head(widths=(1024, 128), last_norm="affine")
    return replace(
        stl10(SimCLR(temperature=0.5, loss_scale=1.0, joint="heads", head=head)),
        augmentation=HTDT_STL10_VIEWS,
        optimizer=_htdt_adam(2000),
        epochs=2000,
        zero_init=False,
    )


def _simclr_imagenet(epochs: int, head: Head) -> Pretrain:
    """Return SimCLR's run on ImageNet (google-research/simclr README.md, run.py, data_util.py).

    The peak rate is .075 times the square root of 4096, which is also .3 x 4096 / 256. The square root is
    better at smaller batches, and the smaller scales have them. The weight decay of 1e-6 is the paper's
    (arXiv 2002.05709); the README's command has 1e-4. Vectors have the rate of weights. It is set so that the
    smoke scale lowers it (`LARS.smaller`).
    """
    return replace(
        imagenet(epochs)(SimCLR(head=head)),
        augmentation=STRONG_COLOURS,
        optimizer=LARS(
            base_lr=0.075,
            vector_lr=0.075,
            batch_scaling="sqrt",
            scale_with_views=False,
            weight_decay=1e-6,
        ),
        batch_size=4096,
        zero_init=True,
    )


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


# VICReg


def vicreg_imagenet(epochs: int = 1000) -> Pretrain:
    """Pretrain VICReg on ImageNet, at batch 2048 (facebookresearch/vicreg main_vicreg.py).

    The quoted rows are runs of 1000 epochs: linear top-1 73.2, 54.8 and 69.5 with 1 % and 10 % of the labels
    (Table 3), 64.5 and 62.8 with 20 and 200 neighbours (Table 4). The base rate of .2 belongs to 1000 epochs;
    100 epochs have .3 (README.md). Vectors have the rate of weights. It is set so that the smoke scale lowers
    it (`LARS.smaller`). 1000 epochs are 1.28 billion images, each seen twice.
    """
    base_lr = 0.3 if epochs <= 100 else 0.2
    return replace(
        imagenet(epochs)(VICReg()),
        augmentation=_two_distributions(),
        optimizer=LARS(
            base_lr=base_lr,
            vector_lr=base_lr,
            scale_with_views=False,
            weight_decay=1e-6,
            final_ratio=1e-3,
        ),
        batch_size=2048,
        zero_init=True,
    )


# W-MSE


def wmse_stl10() -> Pretrain:
    """Pretrain W-MSE 4 on STL-10 for 2000 epochs at batch 256: a ResNet-18, four views.

    The paper's top-1 is 91.75, with 5-NN 88.59 (Table 1). All settings are the official code's
    (htdt/self-supervised README.md, cfg.py). 2000 epochs over 105 000 images are 210 million images, each
    seen four times.
    """
    return replace(
        stl10(WMSE()),
        augmentation=HTDT_STL10_VIEWS,
        optimizer=_htdt_adam(2000),
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
        augmentation=replace(STRONG_COLOURS, colour_first=True),
        optimizer=_htdt_adam(240),
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
        augmentation=STRONG_COLOURS,
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
