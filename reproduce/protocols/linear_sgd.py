"""Linear evaluation with augmented views and SGD, as on ImageNet (protocol sheet, 2 and 6).

The protocol is BYOL's on ImageNet and section 8.4's on other data sets. A linear classifier is trained on the
pooled features of a frozen encoder. Its images are cropped and flipped differently in each epoch. One pass
over the data tries several learning rates, each with a classifier of its own. The classifier that is best on
images held out of the train split is measured on the test split, once.

The backbone sees each training image once per epoch, however many rates are tried. 80 epochs of ImageNet are
10^8 forward passes. Ten epochs of the 1 080 training images of the smoke scale take 3 s on a CPU core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reproduce.data.augmentation import CROP_AND_FLIP, Augmentation
from reproduce.data.dataset import Dataset
from reproduce.nn import classifiers, schedules
from reproduce.nn.classifiers import Classifiers, Stream
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Watch
from reproduce.settings import Count, CountOrZero, Momentum, NotNegative, Positive
from reproduce.site import Site

if TYPE_CHECKING:
    import torch

    from reproduce.nn.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class LinearSGD(Protocol, name="linear_sgd"):
    """Settings of the linear evaluation with SGD.

    The defaults are BYOL's on ImageNet (its App. C.1 and google-deepmind/deepmind-research
    byol/configs/eval.py).
    """

    base_lrs: tuple[Positive, ...] = (0.4, 0.3, 0.2, 0.1, 0.05)
    """Learning rates to try, one classifier each; the best on the held-out images is measured. The peak rate
    is base_lr x batch_size / 256 (byol/utils/schedules.py)."""
    epochs: Count = 80
    """Passes over the train split (byol/configs/eval.py)."""
    batch_size: Count = 1024
    """Maximum number of images per step over all devices (BYOL's App. C.1). The batches of an epoch are
    nearly equal in size."""
    momentum: Momentum = 0.9
    """Momentum of SGD (byol/configs/eval.py)."""
    nesterov: bool = True
    """Nesterov momentum in place of the classical one (byol/configs/eval.py)."""
    weight_decay: NotNegative = 0.0
    """Weight decay of weights and biases, added to the gradient (byol/configs/eval.py uses none)."""
    num_drops: CountOrZero = 0
    """Number of times that the rate is divided by 10, at equally spaced epochs (section 8.4). If 0, the rate
    follows a cosine down to 0 (byol/utils/schedules.py)."""
    num_held_out: CountOrZero = 10_009
    """Train images that select the rate and are not trained on (BYOL's App. C.1). May be 0 with a single
    rate."""
    augmentation: Augmentation = CROP_AND_FLIP
    """Augmentation of the training views."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("top1", "top5", "lr", "held_out_top1") if self.num_held_out else ("top1", "top5")

    @property
    def length(self) -> int:
        return self.epochs

    def check(self) -> None:
        if not self.base_lrs or len(set(self.base_lrs)) < len(self.base_lrs):
            raise ValueError(f"linear_sgd needs one or more different base_lrs, not {self.base_lrs}.")
        if len(self.base_lrs) > 1 and not self.num_held_out:
            raise ValueError(
                f"linear_sgd selects one of {len(self.base_lrs)} base_lrs by held-out train images: "
                "num_held_out must be at least 1, not 0; with one rate it may be 0."
            )
        if self.nesterov and not self.momentum:
            raise ValueError("linear_sgd needs a momentum above 0 with nesterov, not 0.")
        if self.num_drops >= self.epochs:
            raise ValueError(
                f"linear_sgd needs num_drops from 0 to epochs - 1, not {self.num_drops} with {self.epochs} "
                "epochs."
            )

    def rates(self, step: int, steps_per_epoch: int) -> list[float]:
        """Return the learning rate of each classifier at step `step` of the training, counted from 0."""
        peaks = [base_lr * self.batch_size / 256 for base_lr in self.base_lrs]
        if self.num_drops:
            dropped = schedules.drops(
                step // steps_per_epoch, num_drops=self.num_drops, num_epochs=self.epochs
            )
            return [peak / 10**dropped for peak in peaks]
        num_steps = self.epochs * steps_per_epoch
        return [
            schedules.learning_rate(step, peak=peak, warmup_steps=0, num_steps=num_steps) for peak in peaks
        ]

    @property
    def least_images(self) -> tuple[int, str]:
        return self.num_held_out + 1, "num_held_out"

    def passes(self, num_train: int, num_test: int) -> float | None:
        return self.epochs * (num_train - self.num_held_out) + self.num_held_out + num_test

    def run(
        self,
        encoder: Encoder,
        dataset: Dataset,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Return `top1` and `top5`, and with held-out images also `lr` and `held_out_top1`.

        `lr` is the selected value of `base_lrs`, `held_out_top1` its accuracy on the held-out images. If
        several rates are equally good, the first is selected. With fewer than 5 classes, `top5` is 1.

        Raises:
            FloatingPointError: No classifier kept a finite loss. A single one that did not is only excluded.
            ValueError: The train split has too few images to hold out `num_held_out`.
        """
        from reproduce.nn import features

        train, test = features.train_and_test(dataset, site)
        held_out, rows = classifiers.hold_out(train, self.num_held_out, seed)
        stream = Stream(
            dataset=dataset,
            split=classifiers.some_of(train, rows, "the training part"),
            augmentation=self.augmentation,
            batch_size=self.batch_size,
            seed=seed,
            site=site,
            device=device,
        )
        backbone: Any = encoder.backbone
        trained = Classifiers(
            len(self.base_lrs),
            num_classes=train.num_classes,
            num_features=backbone.num_features,
            seed=seed,
            device=device,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
        names = [f"lr {base_lr:g}" for base_lr in self.base_lrs]
        scores = classifiers.fit(
            trained,
            names,
            encoder,
            stream,
            lambda step: self.rates(step, stream.num_steps),
            epochs=self.epochs,
            held_out=classifiers.labelled_features(encoder, dataset, held_out, site, device)
            if self.num_held_out
            else None,
            watch=watch,
        )
        chosen = classifiers.best(scores, names) if scores else 0
        x, y = classifiers.labelled_features(encoder, dataset, test, site, device)
        measured = trained.measure(chosen, x, y)
        return measured | ({"lr": self.base_lrs[chosen], "held_out_top1": scores[chosen]} if scores else {})
