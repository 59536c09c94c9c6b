"""The paper's pretraining runs: a method on a data set, with the settings of sections 7.1 to 7.3.

    byol(imagenet100)                                       # Table 8's first row
    msbreg(stl10, num_views=8)                              # Table 1's last row
    msbreg(imagenet100, num_views=4, lambda_b=0.0)          # an ablation

A data set is a recipe: a function that adds to a method what the paper fixes for that data set. All runs took "8 V100 16GB GPUs" (section
7.1); the paper gives no GPU-hours. A run costs K / 2 times a two-view run of the same epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from reproduce.data.imagenet100 import ImageNet100
from reproduce.data.stl10 import STL10
from reproduce.data.views import Augmentation
from reproduce.methods.byol import BYOL
from reproduce.methods.method import Method
from reproduce.methods.msbreg import MSBReg
from reproduce.nn.heads import Heads
from reproduce.spec import LARS, Pretrain

Recipe = Callable[[Method], Pretrain]
"""A method -> its run on a data set, at the settings that the paper fixes there."""

TAU: Final = 0.996
"""The target's initial decay rate for more than 300 epochs (google-deepmind/deepmind-research byol/configs/byol.py); not in the paper."""
PRECISION: Final = "bfloat16"
"""A choice: the paper does not say, and its V100 GPUs have no bfloat16. Parameters, losses and the optimiser stay in float32."""


def imagenet100(method: Method) -> Pretrain:
    """ImageNet-100 with a ResNet-18 (sections 7.1 and 7.2): base rate .4, so the peak is 1.6 / 3.2 / 6.4 for K = 2 / 4 / 8.

    GPU-hours: not stated; 320 epochs over 126 689 images are 41 million images, each seen K times. Section 10 says 300 epochs for the same
    numbers; section 7.1's 320 are used.
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
    """STL-10 with a ResNet-18 (sections 7.1 and 7.2): base rate .5, so the peak is 2 / 4 / 8 for K = 2 / 4 / 8 at batch 512.

    The stem for 64 px images and the smallest crop are those of htdt/self-supervised (model.py, cfg.py), whose protocol the paper follows.
    GPU-hours: not stated; 320 epochs over 105 000 images are 34 million images, each seen K times.
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


def msbreg(
    recipe: Recipe,
    *,
    num_views: int = 4,
    lambda_s: float = 4e-3,
    lambda_b: float = 0.5,
    heads: Heads = Heads(),
    batch_size: int = 512,
) -> Pretrain:
    """MSBReg (section 3.2), lambda_s and lambda_b at the defaults of section 4.5.

    The paper's top-1: ImageNet-100 80.38 and 81.56, STL-10 93.00 and 93.19, for K = 4 and 8 (Table 1).
    """
    method = MSBReg(num_views=num_views, lambda_s=lambda_s, lambda_b=lambda_b, tau=TAU, heads=heads)
    return replace(recipe(method), batch_size=batch_size)


def byol(
    recipe: Recipe,
    *,
    lambda_s: float = 0.0,
    lambda_b: float = 0.0,
    lambda_uniform: float = 0.0,
    heads: Heads = Heads(),
    batch_size: int = 512,
) -> Pretrain:
    """BYOL as the paper trains it: the settings of MSBReg with two views and BYOL's loss (section 3.1).

    The paper's top-1: ImageNet-100 71.56 (Table 1) and 71.92 (Table 8), STL-10 89.50 (Table 1).
    """
    method = BYOL(lambda_s=lambda_s, lambda_b=lambda_b, lambda_uniform=lambda_uniform, tau=TAU, heads=heads)
    return replace(recipe(method), batch_size=batch_size)


def byol_tuned_imagenet100() -> Pretrain:
    """BYOL with its own settings on ImageNet-100: the 300-epoch preset of byol/configs/byol.py, for solo-learn's 400 epochs at batch 256.

    Not in the paper, whose baseline is weak: solo-learn's ResNet-18 reaches 80.2. Epochs, batch size and the initial tau are from its
    scripts/pretrain/imagenet-100/byol.yaml; its LARS clips the trust ratio and ours does not, so the rate is the preset's.
    """
    return _byol_preset(imagenet100, base_lr=0.3, weight_decay=1e-6, tau=0.99, epochs=400)


def byol_tuned_stl10() -> Pretrain:
    """BYOL with its own settings on STL-10: the 1000-epoch preset of byol/configs/byol.py, for W-MSE's 2000 epochs at batch 256.

    Not in the paper, whose baseline is weak: W-MSE's BYOL reaches 91.99 and 88.64 in 2000 epochs (htdt/self-supervised README.md), with
    Adam, so the settings are not the same.
    """
    return _byol_preset(stl10, base_lr=0.2, weight_decay=1.5e-6, tau=0.996, epochs=2000)


def _byol_preset(recipe: Recipe, *, base_lr: float, weight_decay: float, tau: float, epochs: int) -> Pretrain:
    """`recipe` with the heads, the optimiser and the two distributions T and T' of google-deepmind/deepmind-research byol/."""
    run = recipe(BYOL(tau=tau, heads=Heads(hidden=4096, output=256)))
    ours = run.augmentation
    assert isinstance(ours, Augmentation)
    return replace(
        run,
        augmentation=replace(ours, blur=1.0, solarize=0.0, every_second=replace(ours, blur=0.1, solarize=0.2)),
        optimizer=LARS(base_lr=base_lr, scale_with_views=False, weight_decay=weight_decay),
        epochs=epochs,
        batch_size=256,
    )
