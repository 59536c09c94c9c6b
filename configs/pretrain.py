"""The paper's pretraining runs: a method on a data set, with the settings of sections 7.1 to 7.3.

    byol(imagenet100)                                       # Table 8's first row
    msbreg(stl10, num_views=8)                              # Table 1's last row
    msbreg(imagenet100, num_views=4, lambda_b=0.0)          # an ablation
    msbreg(imagenet(300), heads=WIDE)                       # Tables 2 to 5

A data set is a recipe: a function that takes a method and adds the settings that the paper fixes for the data
set. All runs used "8 V100 16GB GPUs" (section 7.1). The paper does not state GPU-hours. A run costs K / 2
times as much as a two-view run with the same epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from reproduce.data.augmentation import Augmentation, SmallCrops
from reproduce.data.imagenet import ImageNet
from reproduce.data.imagenet100 import ImageNet100
from reproduce.data.stl10 import STL10
from reproduce.methods.byol import BYOL
from reproduce.methods.method import Method
from reproduce.methods.msbreg import MSBReg
from reproduce.nn.heads import Heads
from reproduce.nn.optimizers import LARS
from reproduce.spec import Pretrain

Recipe = Callable[[Method], Pretrain]
"""Function from a method to its run on a data set, with the settings that the paper fixes there."""

TAU: Final = 0.99
"""Initial decay rate of the target in all runs with the paper's settings; a choice.

The paper does not state it. Section 1 calls the time constant of the lagged network "typically thousands to
tens of thousands of time steps". BYOL has .99 for up to 300 epochs (google-deepmind/deepmind-research
byol/configs/byol.py). The protocol of the small runs has .99 for any number of epochs (htdt/self-supervised
cfg.py).
"""
WIDE: Final = Heads(hidden=2048, output=256)
"""Heads of the ImageNet runs, with the sizes that section 7.2 ascribes to BYOL.

BYOL's own hidden layer has 4096.
"""
PRECISION: Final = "bfloat16"
"""Precision of all runs; a choice. The paper does not state it, and its V100 GPUs do not support bfloat16.

Parameters, heads, losses, the optimiser and evaluations stay in float32.
"""


def imagenet100(method: Method) -> Pretrain:
    """Pretrain a ResNet-18 on ImageNet-100 (sections 7.1 and 7.2).

    The base rate is .4, so the peak is 1.6 / 3.2 / 6.4 for K = 2 / 4 / 8. Section 10 gives 300 epochs for the
    same numbers; section 7.1's 320 are used. GPU-hours are not stated. 320 epochs over 126 689 images are 41
    million images, each seen K times.
    """
    return Pretrain(
        method=method,
        dataset=ImageNet100(),
        backbone="resnet18",
        augmentation=Augmentation(),
        optimizer=LARS(base_lr=0.4),
        epochs=320,
        precision=PRECISION,
    )


def stl10(method: Method) -> Pretrain:
    """Pretrain a ResNet-18 on STL-10 (sections 7.1 and 7.2).

    The base rate is .5, so the peak is 2 / 4 / 8 for K = 2 / 4 / 8 at batch 512. The stem for 64 px images
    and the smallest crop are those of htdt/self-supervised (model.py, cfg.py). The paper follows its
    protocol. GPU-hours are not stated. 320 epochs over 105 000 images are 34 million images, each seen K
    times.
    """
    return Pretrain(
        method=method,
        dataset=STL10(),
        backbone="resnet18_3x3",
        augmentation=Augmentation(crop_scale=(0.2, 1.0)),
        optimizer=LARS(base_lr=0.5),
        epochs=320,
        precision=PRECISION,
    )


def imagenet(epochs: int) -> Recipe:
    """Return the recipe that pretrains a ResNet-50 on ImageNet (sections 7.1 and 7.2).

    The base rate is .15, so the peak is .6 / 1.2 for K = 2 / 4 at batch 512. Tables 2 and 7 use 100, 200 and
    300 epochs. GPU-hours are not stated. An epoch is 1.28 million images, each seen K times.
    """

    def recipe(method: Method) -> Pretrain:
        return Pretrain(
            method=method,
            dataset=ImageNet(),
            backbone="resnet50",
            augmentation=Augmentation(),
            optimizer=LARS(base_lr=0.15),
            epochs=epochs,
            precision=PRECISION,
        )

    return recipe


def msbreg(
    recipe: Recipe,
    *,
    num_views: int = 4,
    lambda_s: float = 4e-3,
    lambda_b: float = 0.5,
    tau: float = TAU,
    heads: Heads = Heads(),
    batch_size: int = 512,
) -> Pretrain:
    """Pretrain MSBReg (section 3.2) with the lambda_s and lambda_b of section 4.5.

    The paper's top-1 for K = 4 and 8 is 80.38 and 81.56 on ImageNet-100, 93.00 and 93.19 on STL-10 (Table 1).
    """
    method = MSBReg(num_views=num_views, lambda_s=lambda_s, lambda_b=lambda_b, tau=tau, heads=heads)
    return replace(recipe(method), batch_size=batch_size)


def byol(
    recipe: Recipe,
    *,
    lambda_s: float = 0.0,
    lambda_b: float = 0.0,
    lambda_uniform: float = 0.0,
    tau: float = TAU,
    heads: Heads = Heads(),
    batch_size: int = 512,
) -> Pretrain:
    """Pretrain BYOL as the paper does: MSBReg's settings with two views and BYOL's loss (section 3.1).

    The paper's top-1 is 71.56 (Table 1) and 71.92 (Table 8) on ImageNet-100, 89.50 on STL-10 (Table 1).
    """
    method = BYOL(lambda_s=lambda_s, lambda_b=lambda_b, lambda_uniform=lambda_uniform, tau=tau, heads=heads)
    return replace(recipe(method), batch_size=batch_size)


def msbreg_imagenet(epochs: int) -> Pretrain:
    """Pretrain MSBReg at K = 4 on ImageNet (Tables 2 to 5 and 7).

    The paper's top-1 is 70.7, 73.8 and 74.6 for 100, 200 and 300 epochs (Table 2).
    """
    return msbreg(imagenet(epochs), num_views=4, heads=WIDE)


def byol_imagenet(epochs: int) -> Pretrain:
    """Pretrain BYOL on ImageNet as the paper does.

    The paper's top-1 is 65.9, 70.1 and 72.3 for 100, 200 and 300 epochs (Table 7).
    """
    return byol(imagenet(epochs), heads=WIDE)


def byol_multicrop(epochs: int) -> Pretrain:
    """Pretrain BYOL with multi-crop on ImageNet (section 4.4): 2 views of 224 px and V = 6 of 96 px.

    All pairs of views are compared. The paper's top-1 is 65.8, 68.7 and 70.3 for 100, 200 and 300 epochs
    (Table 7). An epoch sees 2 x 224^2 + 6 x 96^2 pixels of an image, 1.55 times as many as with two views.

    The area of the large crops is also SwAV's. The peak rate is that of two views, .6: the loss is still a
    mean over pairs, and section 7.1's factor K is for views of the same kind. SwAV uses the same rate with
    and without small crops (facebookresearch/swav scripts/: swav_400ep_pretrain.sh,
    swav_400ep_2x224_pretrain.sh).
    """
    run = byol_imagenet(epochs)
    return replace(
        run,
        method=run.method.replace("num_views", 8),
        augmentation=run.augmentation.replace("crop_scale", (0.14, 1.0)).replace("small", SmallCrops()),
        optimizer=run.optimizer.times(2).replace("scale_with_views", False),
    )


class Preset(NamedTuple):
    """Settings of BYOL that depend on its number of epochs."""

    base_lr: float
    weight_decay: float
    tau: float
    """Initial decay rate of the target."""


PRESETS: Final = {
    100: Preset(base_lr=0.45, weight_decay=1e-6, tau=0.99),
    300: Preset(base_lr=0.3, weight_decay=1e-6, tau=0.99),
    1000: Preset(base_lr=0.2, weight_decay=1.5e-6, tau=0.996),
}
"""BYOL's presets by epochs (google-deepmind/deepmind-research byol/configs/byol.py)."""


def byol_tuned_imagenet(epochs: int) -> Pretrain:
    """Pretrain BYOL with its own settings on ImageNet, at batch 4096.

    The settings are those of a whole preset: that of 100 epochs for up to 100, that of 300 for up to 400, and
    that of 1000 beyond. The rows that quote BYOL are such runs: 66.5, 70.6 and 73.2 for 100, 200 and 400
    epochs (Table 2).
    """
    if epochs <= 100:
        preset = PRESETS[100]
    elif epochs <= 400:
        preset = PRESETS[300]
    else:
        preset = PRESETS[1000]
    return _byol_preset(imagenet(epochs), preset, epochs=epochs, batch_size=4096)


def byol_tuned_imagenet100() -> Pretrain:
    """Pretrain BYOL with its own settings on ImageNet-100, for solo-learn's 400 epochs at batch 256.

    This run is not in the paper. The paper's baseline is weak: solo-learn's ResNet-18 reaches 80.2. Epochs
    and batch size come from solo-learn's scripts/pretrain/imagenet-100/byol.yaml. Its LARS clips the trust
    ratio and ours does not, so the rest is BYOL's 300-epoch preset. solo-learn's initial tau is the same.
    """
    return _byol_preset(imagenet100, PRESETS[300], epochs=400)


def byol_tuned_stl10() -> Pretrain:
    """Pretrain BYOL with its own settings on STL-10, for W-MSE's 2000 epochs at batch 256.

    This run is not in the paper. The paper's baseline is weak: W-MSE's BYOL reaches 91.99 and 88.64 in 2000
    epochs (htdt/self-supervised README.md). W-MSE uses Adam, so these settings differ: they are BYOL's
    1000-epoch preset.
    """
    return _byol_preset(stl10, PRESETS[1000], epochs=2000)


def _byol_preset(recipe: Recipe, preset: Preset, *, epochs: int, batch_size: int = 256) -> Pretrain:
    """Return `recipe` for BYOL with its heads, its optimiser and its two distributions of views, T and T'.

    The last layers of its heads have no bias. Source: google-deepmind/deepmind-research byol/.
    """
    run = recipe(BYOL(tau=preset.tau, heads=Heads(hidden=4096, output=256, last_bias=False)))
    ours = run.augmentation
    return replace(
        run,
        augmentation=replace(
            ours, blur=1.0, solarize=0.0, every_second=replace(ours, blur=0.1, solarize=0.2)
        ),
        optimizer=LARS(base_lr=preset.base_lr, scale_with_views=False, weight_decay=preset.weight_decay),
        epochs=epochs,
        batch_size=batch_size,
    )
