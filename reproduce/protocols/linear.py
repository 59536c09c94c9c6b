"""Linear evaluation on cached features (protocol sheet, 1; htdt/self-supervised eval/sgd.py).

A linear classifier is trained on the pooled features of the train split, without augmentation or
normalisation. It is measured on the test split after its last epoch. This takes about 1 s for 1 000 images of
64 features on a CPU. ImageNet-100 needs 63 500 steps, with all features in the device's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reproduce.data.dataset import Dataset
from reproduce.lazy import F, torch
from reproduce.nn import seeds
from reproduce.nn.classifiers import accuracies
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Watch
from reproduce.settings import Count, NotNegative, Positive
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class LinearEvaluation(Protocol, name="linear"):
    """Settings of the linear evaluation. The defaults are those of eval/sgd.py."""

    lr: Positive = 1e-2
    """Learning rate of Adam in the first epoch."""
    last_lr: Positive = 1e-6
    """Learning rate that the decay would reach after the last epoch. It falls by a constant factor after each
    epoch."""
    weight_decay: NotNegative = 5e-6
    """Weight decay of weights and biases, added to the gradient."""
    epochs: Count = 500
    """Passes over the train split (eval/sgd.py, newest version; an earlier one has 300)."""
    batch_size: Count = 1000
    """Images per step. The last batch of an epoch may be smaller."""

    metrics = ("top1", "top5")

    def check(self) -> None:
        if self.last_lr > self.lr:
            raise ValueError(f"linear needs last_lr <= lr, but last_lr={self.last_lr} and lr={self.lr}.")

    def passes(self, num_train: int, num_test: int) -> float | None:
        return num_train + num_test

    def run(
        self,
        encoder: Encoder,
        dataset: Dataset,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Return `top1` and `top5`. With fewer than 5 classes, `top5` is 1."""
        from reproduce.nn import features

        train, test = features.train_and_test(dataset, site)
        x = features.extract(encoder, dataset, train, site, device)
        weight, bias = self.fit(x.to(device), train.labels.to(device), train.num_classes, seed)
        x = features.extract(encoder, dataset, test, site, device)
        return accuracies(F.linear(x.to(device), weight, bias), test.labels.to(device))

    def fit(self, x: Tensor, y: Tensor, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Train a classifier and return its parameters after the last epoch.

        The initial weights and the order of the images come from a generator on the CPU, so they do not
        depend on the device.

        Args:
            x: features, (n, d) float32.
            y: labels, (n,) int64 from 0 to num_classes - 1.

        Returns:
            Weight (num_classes, d) and bias (num_classes,).
        """
        generator = seeds.generator("classifier", seed)
        bound = x.shape[1] ** -0.5  # the initialisation of nn.Linear
        weight, bias = (
            ((2 * torch.rand(shape, generator=generator) - 1) * bound).to(x.device).requires_grad_()
            for shape in ((num_classes, x.shape[1]), (num_classes,))
        )
        optimizer = torch.optim.Adam([weight, bias], lr=self.lr, weight_decay=self.weight_decay, fused=True)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(
            optimizer, gamma=(self.last_lr / self.lr) ** (1 / self.epochs)
        )
        for _ in range(self.epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device, non_blocking=True)
            for batch in torch.split(order, self.batch_size):
                loss = F.cross_entropy(F.linear(x[batch], weight, bias), y[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
            scheduler.step()
        return weight.detach(), bias.detach()
