"""The paper's pretraining runs: a method on a data set, with the settings of sections 7.1 to 7.3.

    byol(imagenet100)                                       # Table 8's first row
    msbreg(stl10, num_views=8)                              # Table 1's last row
    msbreg(imagenet100, num_views=4, lambda_b=0.0)          # an ablation
    msbreg(imagenet(300), heads=WIDE, tau=SHORT)            # Tables 2 to 5

A data set is a recipe: a function that adds to a method what the paper fixes for that data set. All runs took
"8 V100 16GB GPUs" (section 7.1); the paper gives no GPU-hours. A run costs K / 2 times a two-view run of the
same epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from reproduce.data.augmentation import Augmentation, SmallCrops
from reproduce.data.imagenet import ImageNet
from reproduce.data.imagenet100 import ImageNet100
from reproduce.data.stl10 import STL10
from reproduce.methods.byol import BYOL
from reproduce.methods.method import Method
from reproduce.methods.msbreg import MSBReg
from reproduce.nn.heads import Heads
from reproduce.spec import LARS, Pretrain

Recipe = Callable[[Method], Pretrain]
"""A method -> its run on a data set, at the settings that the paper fixes there."""

TAU: Final = 0.996
"""The target's initial decay rate for more than 300 epochs (google-deepmind/deepmind-research
byol/configs/byol.py); not in the paper."""
SHORT: Final = 0.99
"""The same for up to 300 epochs (the same file)."""
WIDE: Final = Heads(hidden=2048, output=256)
"""The heads of the ImageNet runs: the sizes that section 7.2 ascribes to BYOL, whose own hidden layer has
4096."""
PRECISION: Final = "bfloat16"
"""A choice: the paper does not say, and its V100 GPUs have no bfloat16. Parameters, losses and the optimiser
stay in float32."""


def imagenet100(method: Method) -> Pretrain:
    """ImageNet-100 with a ResNet-18 (sections 7.1 and 7.2): base rate .4, so the peak is 1.6 / 3.2 / 6.4 for
    K = 2 / 4 / 8.

    GPU-hours: not stated; 320 epochs over 126 689 images are 41 million images, each seen K times. Section 10
    says 300 epochs for the same numbers; section 7.1's 320 are used.
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
    """STL-10 with a ResNet-18 (sections 7.1 and 7.2): base rate .5, so the peak is 2 / 4 / 8 for K = 2 / 4 /
    8 at batch 512.

    The stem for 64 px images and the smallest crop are those of htdt/self-supervised (model.py, cfg.py),
    whose protocol the paper follows. GPU-hours: not stated; 320 epochs over 105 000 images are 34 million
    images, each seen K times.
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
    """ImageNet with a ResNet-50 (sections 7.1 and 7.2): base rate .15, so the peak is .6 / 1.2 for K = 2 / 4
    at batch 512.

    GPU-hours: not stated; an epoch is 1.28 million images, each seen K times. Tables 2 and 7 are of 100, 200
    and 300 epochs.
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
    """MSBReg (section 3.2), lambda_s and lambda_b at the defaults of section 4.5.

    The paper's top-1: ImageNet-100 80.38 and 81.56, STL-10 93.00 and 93.19, for K = 4 and 8 (Table 1).
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
    """BYOL as the paper trains it: the settings of MSBReg with two views and BYOL's loss (section 3.1).

    The paper's top-1: ImageNet-100 71.56 (Table 1) and 71.92 (Table 8), STL-10 89.50 (Table 1).
    """
    method = BYOL(lambda_s=lambda_s, lambda_b=lambda_b, lambda_uniform=lambda_uniform, tau=tau, heads=heads)
    return replace(recipe(method), batch_size=batch_size)


def msbreg_imagenet(epochs: int) -> Pretrain:
    """MSBReg at K = 4 on ImageNet (Tables 2 to 5 and 7); the paper's top-1: 70.7, 73.8 and 74.6 for 100, 200
    and 300 epochs (Table 2)."""
    return msbreg(imagenet(epochs), num_views=4, tau=SHORT, heads=WIDE)


def byol_imagenet(epochs: int) -> Pretrain:
    """BYOL on ImageNet as the paper trains it; its top-1: 65.9, 70.1 and 72.3 for 100, 200 and 300 epochs
    (Table 7)."""
    return byol(imagenet(epochs), tau=SHORT, heads=WIDE)


def byol_multicrop(epochs: int) -> Pretrain:
    """BYOL with multi-crop on ImageNet (section 4.4): two views of 224 px and V = 6 of 96 px, whose pairs are
    all compared.

    The paper's top-1: 65.8, 68.7 and 70.3 for 100, 200 and 300 epochs (Table 7). An epoch makes 2 x 224^2 + 6
    x 96^2 pixels of an image: 1.55 times those of two views.

    The large crops' area is SwAV's too. The peak rate is that of two views, .6: the loss is still a mean over
    pairs, and section 7.1's factor K is for views that are alike. SwAV has one rate with small crops and
    without (facebookresearch/swav scripts/: swav_400ep_pretrain.sh, swav_400ep_2x224_pretrain.sh).
    """
    run = byol_imagenet(epochs)
    return replace(
        run,
        method=run.method.replace("num_views", 8),
        augmentation=run.augmentation.replace("crop_scale", (0.14, 1.0)).replace("small", SmallCrops()),
        optimizer=replace(run.optimizer, base_lr=2 * run.optimizer.base_lr, scale_with_views=False),
    )


def byol_tuned_imagenet(epochs: int) -> Pretrain:
    """BYOL with its own settings on ImageNet, batch 4096: the preset of byol/configs/byol.py that is nearest
    in epochs.

    Its rate and decay are those for 100, for 300 (here also 200 and 400) and for 1000 epochs; its initial tau
    is .99 up to 300 epochs and .996 beyond. The rows that quote BYOL are of such runs: 66.5, 70.6 and 73.2
    for 100, 200 and 400 epochs (Table 2).
    """
    base_lr, weight_decay = (0.45, 1e-6) if epochs <= 100 else (0.3, 1e-6) if epochs <= 400 else (0.2, 1.5e-6)
    tau = SHORT if epochs <= 300 else TAU
    return _byol_preset(
        imagenet(epochs), base_lr=base_lr, weight_decay=weight_decay, tau=tau, epochs=epochs, batch_size=4096
    )


def byol_tuned_imagenet100() -> Pretrain:
    """BYOL with its own settings on ImageNet-100: the 300-epoch preset of byol/configs/byol.py, for
    solo-learn's 400 epochs at batch 256.

    Not in the paper, whose baseline is weak: solo-learn's ResNet-18 reaches 80.2. Epochs, batch size and the
    initial tau are from its scripts/pretrain/imagenet-100/byol.yaml; its LARS clips the trust ratio and ours
    does not, so the rate is the preset's.
    """
    return _byol_preset(imagenet100, base_lr=0.3, weight_decay=1e-6, tau=0.99, epochs=400)


def byol_tuned_stl10() -> Pretrain:
    """BYOL with its own settings on STL-10: the 1000-epoch preset of byol/configs/byol.py, for W-MSE's 2000
    epochs at batch 256.

    Not in the paper, whose baseline is weak: W-MSE's BYOL reaches 91.99 and 88.64 in 2000 epochs
    (htdt/self-supervised README.md), with Adam, so the settings are not the same.
    """
    return _byol_preset(stl10, base_lr=0.2, weight_decay=1.5e-6, tau=0.996, epochs=2000)


def _byol_preset(
    recipe: Recipe, *, base_lr: float, weight_decay: float, tau: float, epochs: int, batch_size: int = 256
) -> Pretrain:
    """`recipe` with the heads, the optimiser and the two distributions T and T' of
    google-deepmind/deepmind-research byol/."""
    run = recipe(BYOL(tau=tau, heads=Heads(hidden=4096, output=256)))
    ours = run.augmentation
    assert isinstance(ours, Augmentation)
    return replace(
        run,
        augmentation=replace(
            ours, blur=1.0, solarize=0.0, every_second=replace(ours, blur=0.1, solarize=0.2)
        ),
        optimizer=LARS(base_lr=base_lr, scale_with_views=False, weight_decay=weight_decay),
        epochs=epochs,
        batch_size=batch_size,
    )
