"""The three scales, as functions from an evaluation at paper scale to the same evaluation at another.

smoke: embedded synthetic data in the real layouts, a small residual network at 32 px, minutes on two CPU cores.
small: real public photographs on one GPU, hours; Imagenette stands in for ImageNet-100 and ImageNet.
paper: as printed.

The method's own settings (K, the lambdas, the normalisation of the heads) are the same at every scale; that is what the tables compare.
"""

from __future__ import annotations

import math
from dataclasses import replace

from reproduce.data.views import Augmentation
from reproduce.spec import Evaluate, Pretrain, Settings

STAND_INS = {
    "smoke": "Synthetic scenes stand in for every data set and a small network for the backbone.",
    "small": "Imagenette (10 classes of ImageNet) stands in for ImageNet-100, at 64 px.",
    "paper": "",
}
"""What a reader must know of a scale's numbers, for the caption of each table whose data it replaces."""
CROPS = (0.2, 1.0)
"""Area of a crop at smoke scale, relative to the image's."""


def paper(run: Evaluate) -> Evaluate:
    """As printed."""
    return run


def small(run: Evaluate) -> Evaluate:
    """Real photographs at 64 px with a ResNet-18: Imagenette for the ImageNet family, STL-10 as it is."""
    return replace(run, encoder=_small_pretrain(run.encoder), dataset=_small_dataset(run.dataset))


def smoke(run: Evaluate) -> Evaluate:
    """Synthetic data at 32 px, a small network, a few epochs."""
    return replace(run, encoder=_smoke_pretrain(run.encoder), dataset=_smoke_dataset(run.dataset))


def _small_dataset(dataset: Settings) -> Settings:
    from reproduce.data.imagenette import Imagenette

    return dataset if dataset.name == "stl10" else Imagenette()


def _small_pretrain(run: Pretrain) -> Pretrain:
    return replace(run, dataset=_small_dataset(run.dataset), backbone="resnet18_3x3", precision="bfloat16")


def _smoke_dataset(dataset: Settings) -> Settings:
    from reproduce.data.synthetic import SyntheticFolder, SyntheticSTL10

    return SyntheticSTL10() if dataset.name == "stl10" else SyntheticFolder()


def _smoke_pretrain(run: Pretrain) -> Pretrain:
    """A sixteenth of the batch and an eightieth of the epochs: some 150 steps, in which a rate of the paper's would hardly move a weight.

    So the base rate is 4 times and the trust coefficient 10 times the paper's, and the target follows faster. The heads are a quarter as
    wide, which keeps the singular value loss of white predictions, d (d + 1) / (n - 1): 34 with d = 32 and n = 32, 32 with the paper's 128
    and 512.
    """
    heads = run.method.heads  # type: ignore[attr-defined]
    narrow = replace(heads, hidden=heads.hidden // 4, output=heads.output // 4)
    optimizer = replace(run.optimizer, base_lr=4 * run.optimizer.base_lr, trust_coefficient=0.01, warmup_epochs=1)
    return replace(
        run,
        method=run.method.replace("tau", 0.95).replace("heads", narrow),
        dataset=_smoke_dataset(run.dataset),
        backbone="small",
        augmentation=_wider_crops(run.augmentation),
        optimizer=optimizer,
        epochs=math.ceil(min(run.epochs, 320) / 80),
        batch_size=run.batch_size // 16,
        precision="float32",
    )


def _wider_crops(augmentation: Settings) -> Settings:
    """Crops of at least a fifth of the image, as on STL-10: a twelfth of 32 x 32 pixels shows nothing."""
    assert isinstance(augmentation, Augmentation)
    other = augmentation.every_second
    wider = None if other is None else replace(other, crop_scale=CROPS)
    return replace(augmentation, crop_scale=CROPS, every_second=wider)
