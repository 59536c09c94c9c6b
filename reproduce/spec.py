"""What decides a number: frozen, typed settings, from the whole run down to one augmentation probability.

Everything that can move a result is a field of a `Settings` class, and nothing else is: where data lie, how
many workers load them and where the run is logged belong to the site (`site.py`). A run is named by the hash
of all its settings (`identity.py`).

    run = Pretrain(method=MSBReg(num_views=4), dataset=STL10(), backbone="resnet18_3x3", ...)
    run.id                                   # '5f0c2a9d1e77'
    run.replace("method.lambda_b", 0.25)     # a changed copy, with another id

Standard library only: building every table of the paper imports neither torch nor mlflow.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from reproduce.data.augmentation import Augmentation
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.methods.method import Method
from reproduce.nn.weights import Weights
from reproduce.protocols.protocol import Protocol
from reproduce.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class LARS(Settings, name="lars"):
    """Layer-wise adaptive rate scaling with a warm-up and a cosine decay (paper, section 7.1)."""

    base_lr: float
    """Peak rate = base_lr x batch_size / 256 x K (section 7.1)."""
    scale_with_views: bool = True
    """Whether the peak rate has the factor K of section 7.1 (BYOL's own schedule has none)."""
    weight_decay: float = 1e-5
    """Section 7.1; biases and normalisation parameters are exempt."""
    momentum: float = 0.9
    """google-deepmind/deepmind-research byol/configs/byol.py."""
    trust_coefficient: float = 1e-3
    """google-deepmind/deepmind-research byol/utils/optimizers.py."""
    warmup_epochs: int = 10
    """Linear, from 0 (section 7.1)."""

    def peak_lr(self, batch_size: int, num_views: int) -> float:
        """The learning rate after warm-up, for `batch_size` images per step over all devices."""
        return self.base_lr * batch_size / 256 * (num_views if self.scale_with_views else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Settings, name="pretrain"):
    """One self-supervised pretraining run."""

    method: Method
    """A method of `reproduce/methods`: its settings, losses and target network."""
    dataset: Dataset
    """A data set of `reproduce/data`; its pretraining split is used, labels are not."""
    backbone: str
    """A function of `reproduce/nn/backbones.py`."""
    augmentation: Augmentation
    """The distribution of views (`reproduce/data/views.py`)."""
    optimizer: LARS
    """Rate, decay and warm-up."""
    epochs: int
    """Passes over the images; 0 leaves the random initialisation."""
    batch_size: int = 512
    """Images per step over all devices (section 7.1); each gives K views."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the backbone's arithmetic (autocast); parameters, heads' losses and the optimiser stay in
    float32."""
    seed: int = 0
    """Initialisation, order of images, views and noise all follow from it."""

    def check(self) -> None:
        if self.epochs < 0 or self.batch_size < 2:
            raise ValueError(
                f"pretrain takes epochs >= 0 and batch_size >= 2, not {self.epochs} and {self.batch_size}."
            )

    def needs(self) -> tuple[Pretrain, ...]:
        """The runs that must be finished before this one can start."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Settings, name="evaluate"):
    """One evaluation of one encoder. The encoder's settings are nested, so its id follows from everything
    upstream."""

    encoder: Pretrain | Weights
    """The pretraining run that leaves it behind, or where it comes from."""
    protocol: Protocol
    """An evaluation of `reproduce/protocols`."""
    dataset: Dataset | DetectionDataset
    """The data set whose labelled train and test splits are used."""
    seed: int = 0
    """Initialisation and order of images of what the protocol trains."""

    def needs(self) -> tuple[Pretrain, ...]:
        """The runs that must be finished before this one can start."""
        return (self.encoder,) if isinstance(self.encoder, Pretrain) else ()


Spec = Pretrain | Evaluate
