"""A run as typed, frozen settings: one pretraining or one evaluation, down to one augmentation probability.

Everything that can change a result is a field of a `Settings` class, and nothing else is (`settings.py`). A
run is named by the hash of all its settings (`identity.py`).

    run = Pretrain(method=MSBReg(num_views=4), dataset=STL10(), backbone="resnet18_3x3", ...)
    run.id                                   # '5f0c2a9d1e77'
    run.replace("method.lambda_b", 0.25)     # a changed copy, with another id

Imports only the standard library: building every table of the paper imports neither torch nor mlflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from reproduce import identity
from reproduce.data.augmentation import GRID, Augmentation
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.methods.method import Method
from reproduce.nn import cost
from reproduce.nn.optimizers import LARC, LARS, SGD, Adam
from reproduce.nn.weights import Weights
from reproduce.protocols.protocol import Protocol
from reproduce.settings import CountOrZero, Limits, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class Pretrain(Settings, name="pretrain"):
    """One self-supervised pretraining run."""

    method: Method
    """A method of `reproduce/methods`: its settings, losses and target network."""
    dataset: Dataset
    """A data set of `reproduce/data`: its pretraining split, without labels."""
    backbone: str
    """Name of a function in `reproduce/nn/backbones.py`."""
    augmentation: Augmentation
    """Distribution of views (`reproduce/data/views.py`)."""
    optimizer: LARS | SGD | Adam | LARC
    """Optimiser with its rate, decay and warm-up."""
    epochs: CountOrZero
    """Passes over the images; 0 leaves the random initialisation."""
    batch_size: Annotated[int, Limits(2)] = 512
    """Images per step over all devices (section 7.1); each image yields K views."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone's arithmetic in training (autocast).

    Parameters, heads, losses, the optimiser and every evaluation stay in float32.
    """
    zero_init: bool | None = identity.added_later(None, "0.2")
    """Initial scale 0 of the last BatchNorm of each residual block, so that the block starts as its shortcut.

    None for the backbone's own: 0 in `resnet50`, 1 in the others. 0 in the official code of SimCLR, SimSiam,
    Barlow Twins and VICReg; 1 in that of MoCo, Wang and Isola, SwAV and W-MSE's small runs.
    """
    seed: Seed = 0
    """Source of the initialisation, the order of images, the views and the noise."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the data set that the run reads."""
        return (self.dataset.pretrain_split,)

    def check_for(self, num_images: int | None = None) -> None:
        """Raise ValueError if the settings do not fit each other or the data set.

        Args:
            num_images: images of the data set, at least one batch; None if they are not counted yet.
        """
        self._check_large_views()
        self._check_patches()
        self._check_colours()
        if num_images is not None:
            self._check_warm_up(num_images // self.batch_size)
        self.method.check_side(self.dataset.size, backbone=self.backbone)
        self.method.check_for(batch_size=self.batch_size, num_images=num_images)
        self._check_groups()

    def _check_large_views(self) -> None:
        small, method = self.augmentation.small, self.method
        if small is None:
            return
        if small.num_large > method.num_views:
            raise ValueError(
                f"small.num_large is {small.num_large}, but {method.name} has only {method.num_views} views: "
                f"set it to at most {method.num_views}."
            )
        if small.num_large < method.least_large:
            raise ValueError(
                f"small.num_large is {small.num_large}, but {method.name} needs at least "
                f"{method.least_large} large views: set it to {method.least_large}."
            )

    def _check_patches(self) -> None:
        patches, method = self.augmentation.patches, self.method
        if method.num_patches is not None:
            expected = method.num_views - method.num_patches
            if expected < 1:
                raise ValueError(
                    f"num_views is {method.num_views}, but {method.name} has {method.num_patches} patches "
                    f"after other views: set it to at least {method.num_patches + 1}."
                )
            if not method.num_patches and patches is not None:
                raise ValueError(
                    f"None of the {expected} views of {method.name} is a patch, but the augmentation has "
                    "patches: set augmentation.patches to none, or let the method have them."
                )
            if method.num_patches and (patches is None or patches.num_whole != expected):
                found = "no patches" if patches is None else f"patches.num_whole {patches.num_whole}"
                raise ValueError(
                    f"The last {method.num_patches} of the {method.num_views} views of {method.name} are "
                    f"patches, but the augmentation has {found}: set patches.num_whole to {expected}."
                )
        if patches is None:
            return
        fewest, most = max(1, method.least_large, method.num_views - GRID**2), method.num_views - 1
        if not fewest <= patches.num_whole <= most:
            raise ValueError(
                f"patches.num_whole is {patches.num_whole}, but {method.name} has {method.num_views} views "
                f"and a crop has {GRID**2} patches: set it to a number from {fewest} to {most}."
            )
        small = self.augmentation.small
        if small is not None and small.num_large > patches.num_whole:
            raise ValueError(
                f"small.num_large is {small.num_large}, but only the first {patches.num_whole} views are not "
                f"patches: set it to at most {patches.num_whole}."
            )

    def _check_colours(self) -> None:
        every, second, first = self.augmentation, self.augmentation.every_second, self.augmentation.first
        for key, own in (("", every), ("every_second.", second), ("first.", first)):
            if own is None or not own.colour_first:
                continue
            if own.photometric:
                raise ValueError(
                    f"augmentation.{key}photometric is {own.photometric}, but with colour_first it would see "
                    "images of different sizes in one tensor: set it to 0, or colour_first to False."
                )
            if own.patches is not None and not own.patches.shared:
                raise ValueError(
                    "augmentation.colour_first is True, but each patch has its own colours: set it to False, "
                    "or patches.shared to True."
                )

    def _check_warm_up(self, steps_per_epoch: int) -> None:
        asked, num_steps = self.optimizer.warmup_steps, self.epochs * steps_per_epoch
        if 0 < num_steps < asked:
            raise ValueError(
                f"warmup_steps is {asked}, but the run of {self.method.name} on {self.dataset.name} has only "
                f"{num_steps} steps: set epochs to at least {math.ceil(asked / steps_per_epoch)}, or "
                f"warmup_steps to at most {num_steps}."
            )

    def _check_groups(self) -> None:
        group = self.method.batchnorm_images(self.batch_size)
        if self.batch_size % group:
            raise ValueError(
                f"batch_size is {self.batch_size}, but {self.method.name} has BatchNorm over groups of "
                f"{group} images: choose a multiple of {group}, or a group that divides the batch."
            )

    def operations(self, num_images: int) -> float | None:
        """Return the operations of the run in its backbones, or None if they are unknown.

        Args:
            num_images: images of the data set.
        """
        network = cost.network(self.backbone)
        if network is None:
            return None
        views = (
            self.method.passes(view)
            * network.operations(self.augmentation.size_of_view(view, self.dataset.size))
            for view in range(self.method.num_views)
        )
        return self.epochs * num_images * math.fsum(views)

    def needs(self) -> tuple[Pretrain, ...]:
        """Return the runs that must be finished before this one can start."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Evaluate(Settings, name="evaluate"):
    """One evaluation of one encoder.

    The encoder's settings are nested, so the id follows from everything upstream.
    """

    encoder: Pretrain | Weights
    """The pretraining run that makes the encoder, or the file that contains it."""
    protocol: Protocol
    """An evaluation of `reproduce/protocols`."""
    dataset: Dataset | DetectionDataset
    """A data set of `reproduce/data`: its labelled train and test splits."""
    seed: Seed = 0
    """Source of the initialisation and the order of images when the protocol trains."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the data set that the run reads, each once."""
        return tuple(dict.fromkeys((self.dataset.train_split, self.dataset.test_split)))

    def needs(self) -> tuple[Pretrain, ...]:
        """Return the runs that must be finished before this one can start."""
        return (self.encoder,) if isinstance(self.encoder, Pretrain) else ()

    def at_seeds(self, seeds: int) -> tuple[Evaluate, ...]:
        """Return the evaluation at seeds 0 to `seeds` - 1.

        A pretraining gets the seed of its evaluation; released weights have none, so a deterministic protocol
        evaluates them only once.
        """
        encoder = self.encoder
        if not isinstance(encoder, Pretrain):
            seeds = 1 if self.protocol.deterministic else seeds
            return tuple(replace(self, seed=seed) for seed in range(seeds))
        return tuple(replace(self, encoder=replace(encoder, seed=seed), seed=seed) for seed in range(seeds))


Spec = Pretrain | Evaluate
