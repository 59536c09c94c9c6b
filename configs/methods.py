"""Every method on every data set, with the settings of its rows in the tables, for `invoke pretrain`.

    run(MSBReg(), STL10(), "paper")        # Table 1's MSBReg with K = 4
    run(SimSiam(), Imagenette(), "small")  # SimSiam's settings with the small scale's network and epochs

On ImageNet, ImageNet-100 and STL-10 a method has the settings of its row in a table. Where no table trains it
there, it keeps those of its first data set in OWN, and the data set decides the backbone and the epochs. On
every other data set, a run is that on ImageNet-100 with other images. A method without settings here has its
defaults and the paper's settings for the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from configs import baselines, pretrain, scales
from configs.evaluate import linear
from configs.pretrain import Recipe
from reproduce.data.dataset import Dataset
from reproduce.methods.method import Method
from reproduce.nn.weights import geometry
from reproduce.spec import Pretrain

SYNTHETIC: Final = "synthetic_"
"""Prefix of data sets whose images are drawn at one size."""
RECIPES: Final[Mapping[str, Recipe]] = {
    "imagenet100": pretrain.imagenet100,
    "stl10": pretrain.stl10,
    "imagenet": pretrain.imagenet(300),
}
"""The paper's settings by data set. The first are those of every other data set."""
OWN: Final[Mapping[str, Mapping[str, Callable[[], Pretrain]]]] = {
    "msbreg": {
        "imagenet100": partial(pretrain.msbreg, pretrain.imagenet100),
        "stl10": partial(pretrain.msbreg, pretrain.stl10),
        "imagenet": partial(pretrain.msbreg_imagenet, 300),
    },
    "byol": {
        "imagenet100": partial(pretrain.byol, pretrain.imagenet100),
        "stl10": partial(pretrain.byol, pretrain.stl10),
        "imagenet": partial(pretrain.byol_imagenet, 300),
    },
    "barlow_twins": {"imagenet": baselines.barlow_twins_imagenet},
    "la": {"imagenet": baselines.la_imagenet},
    "moco": {
        "imagenet": partial(baselines.moco_v2_imagenet, 800, symmetric=False),
        "imagenet100": baselines.moco_imagenet100,
    },
    "npid": {"imagenet": baselines.npid_imagenet},
    "obow": {"imagenet": baselines.obow_imagenet},
    "pcl": {"imagenet": baselines.pcl_imagenet},
    "pirl": {"imagenet": baselines.pirl_imagenet},
    "pixpro": {"imagenet": baselines.pixpro_imagenet},
    "simclr": {"imagenet": baselines.simclr_1000_imagenet, "stl10": baselines.simclr_stl10},
    "simsiam": {"imagenet": partial(baselines.simsiam_imagenet, 400)},
    "swav": {"imagenet": partial(baselines.swav_imagenet, 800)},
    "vicreg": {"imagenet": baselines.vicreg_imagenet},
    "wang_isola": {"imagenet100": baselines.wang_isola_imagenet100},
    "wmse": {
        "imagenet100": baselines.wmse_imagenet100,
        "stl10": baselines.wmse_stl10,
        "imagenet": partial(baselines.wmse_imagenet, 400),
    },
}
"""The runs of the tables by method and data set; of several, the longest."""


def run(method: Method, dataset: Dataset, scale: str) -> Pretrain:
    """Return the pretraining by a method on a data set at a scale.

    The smoke and small scales replace ImageNet, ImageNet-100 and STL-10 as in the tables. Another data set
    stays and is shown at the size and with the normalisation of the scale's network, unless its images are
    drawn at one size. Images are enlarged for a method that needs it.
    """
    kind = dataset.name if dataset.name in RECIPES else next(iter(RECIPES))
    scaled = getattr(scales, scale)(linear(_paper_run(method, kind))).encoder
    assert isinstance(scaled, Pretrain)
    if dataset.name == kind:
        return scaled
    if dataset.name.startswith(SYNTHETIC):
        dataset = scales.large_enough(method, dataset, scale)
    else:
        dataset = replace(dataset, **geometry(scaled.dataset, dataset))
    views = scales.resized(scaled.augmentation, scaled.dataset, dataset)
    return replace(scaled, dataset=dataset, augmentation=views)


def _paper_run(method: Method, dataset: str) -> Pretrain:
    """Return the run at paper scale on a data set of RECIPES."""
    recipe = RECIPES[dataset](method)
    runs = OWN.get(method.name)
    if runs is None:
        return recipe
    if dataset in runs:
        return runs[dataset]()
    own = next(iter(runs.values()))()
    views = scales.resized(own.augmentation, own.dataset, recipe.dataset)
    return replace(
        own,
        dataset=recipe.dataset,
        backbone=recipe.backbone,
        epochs=recipe.epochs,
        augmentation=views,
        zero_init=None if recipe.backbone != own.backbone else own.zero_init,
    )
