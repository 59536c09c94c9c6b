"""The settings of an optimiser: its rate over the run, its decay, and the groups of parameters.

    settings = SGD(base_lr=0.03)
    optimizer = settings.build(network.online)
    peak = settings.peak_lr(batch_size, num_views)
    lr = settings.rate(step, batch_size=..., num_views=..., steps_per_epoch=..., epochs=...)
    settings.set_rates(optimizer, lr, peak=peak)         # before each step

The rate warms up to its peak and then follows a cosine, or drops at given points of the run (`schedules.py`).
Imports torch only when an optimiser is built.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from reproduce.identity import added_later
from reproduce.lazy import torch
from reproduce.messages import NotFoundError, unknown
from reproduce.nn import schedules
from reproduce.settings import (
    CountOrZero,
    Fraction,
    Momentum,
    NotNegative,
    Positive,
    PositiveFraction,
    Settings,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optimizer(Settings):
    """Base class of the optimisers: the schedule of the rate."""

    base_lr: Positive
    """Base learning rate; `batch_scaling` makes it the peak rate."""
    batch_scaling: Literal["linear", "sqrt", "none"] = added_later("linear", "0.2")
    """Peak rate for B images per step.

    linear: base_lr x B / 256. sqrt: base_lr x the square root of B. none: base_lr. SimCLR has .3 for linear
    and .075 for sqrt (google-research/simclr run.py).
    """
    warmup_epochs: CountOrZero = 0
    """Epochs of a linear warm-up."""
    warmup_steps: CountOrZero = added_later(0, "0.2")
    """Steps of the warm-up, in place of `warmup_epochs`; W-MSE has 500 (htdt/self-supervised train.py)."""
    warmup_start: Fraction = added_later(0.0, "0.2")
    """Rate of the first step of a warm-up, relative to the peak.

    SwAV starts at .3 of 4.8 (facebookresearch/swav main_swav.py).
    """
    warmup_inclusive: bool = added_later(False, "0.2")
    """True if the last step of the warm-up has the peak rate, as in SwAV and W-MSE.

    Otherwise the first step after the warm-up is the first with the peak rate.
    """
    drops: tuple[PositiveFraction, ...] = added_later((), "0.2")
    """Parts of the run after which the rate drops.

    MoCo's are .6 and .8, which are epochs 120 and 160 of 200 (facebookresearch/moco main_moco.py).
    They replace the cosine: with drops, `final_ratio` and `by_epoch` have no effect.
    """
    drop_factor: PositiveFraction = added_later(0.1, "0.2")
    """Factor of the rate at each drop (facebookresearch/moco main_moco.py)."""
    final_ratio: Fraction = added_later(0.0, "0.2")
    """Rate at the end of the cosine, relative to the peak; 1 keeps the peak rate.

    Barlow Twins ends at .001 (facebookresearch/barlowtwins main.py).
    """
    by_epoch: bool = added_later(False, "0.2")
    """True if the cosine falls once per epoch, as in MoCo v2 (facebookresearch/moco main_moco.py)."""
    vector_lr: Positive | None = added_later(None, "0.2")
    """Base rate of biases and normalisation parameters; none if it is `base_lr`.

    Barlow Twins has .0048 for them and .2 for weights (facebookresearch/barlowtwins main.py).
    """
    constant: tuple[str, ...] = added_later((), "0.2")
    """Parts of the online network that keep the peak rate from the first step to the last.

    SimSiam's is the predictor (facebookresearch/simsiam main_simsiam.py).
    """

    num_states: ClassVar[int] = 1
    """Tensors that the optimiser keeps for each parameter: a momentum."""

    def check(self) -> None:
        """Raise ValueError if the drops do not increase."""
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError(f"{self.name}.drops is {self.drops}: increasing parts of the run are expected.")

    def peak_lr(self, batch_size: int, num_views: int) -> float:
        """Return the learning rate after warm-up.

        Args:
            batch_size: images per step over all devices.
            num_views: views of each image.
        """
        if self.batch_scaling == "linear":
            return self.base_lr * batch_size / 256
        return self.base_lr * (math.sqrt(batch_size) if self.batch_scaling == "sqrt" else 1)

    def rate(self, step: int, *, batch_size: int, num_views: int, steps_per_epoch: int, epochs: int) -> float:
        """Return the learning rate of step `step`, from 0, for parameters without a rate of their own."""
        warm_up = schedules.WarmUp(
            steps=self.warmup_steps or self.warmup_epochs * steps_per_epoch,
            start=self.warmup_start,
            inclusive=self.warmup_inclusive,
        )
        peak, num_steps = self.peak_lr(batch_size, num_views), epochs * steps_per_epoch
        if self.drops:
            return schedules.dropping_rate(
                step,
                peak=peak,
                warm_up=warm_up,
                num_steps=num_steps,
                drops=self.drops,
                factor=self.drop_factor,
            )
        return schedules.cosine_rate(
            step,
            peak=peak,
            warm_up=warm_up,
            num_steps=num_steps,
            final=self.final_ratio,
            stride=steps_per_epoch if self.by_epoch else 1,
        )

    def build(self, online: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of the trained parameters of `online`.

        It changes nothing before `set_rates` has set its rates.

        Raises:
            NotFoundError: `online` has no part of a name in `constant`.
        """
        raise NotImplementedError

    def set_rates(self, optimizer: torch.optim.Optimizer, lr: float, *, peak: float) -> None:
        """Set the rate of each group of parameters for the next step.

        Args:
            optimizer: what `build` returned.
            lr: the step's `rate`.
            peak: the run's `peak_lr`.
        """
        for group in optimizer.param_groups:
            # A group from a checkpoint of version 0.1 has no "constant".
            rate = peak if group.get("constant", False) else lr
            if group["exempt"] and self.vector_lr is not None:
                rate *= self.vector_lr / self.base_lr
            group["lr"] = rate

    def times(self, factor: float) -> Self:
        """Return a copy with all base rates multiplied by `factor`."""
        vector_lr = None if self.vector_lr is None else factor * self.vector_lr
        return replace(self, base_lr=factor * self.base_lr, vector_lr=vector_lr)

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return the same optimiser for the fewer steps and the smaller batch of a scale.

        At smoke scale the batch is a sixteenth, in about 150 steps. The peak rate stays, and the warm-up is
        at most one epoch or a tenth of its steps.
        """
        if scale == "small":
            return self
        kept = self.times({"linear": 16.0, "sqrt": 4.0, "none": 1.0}[self.batch_scaling])
        return replace(
            kept, warmup_epochs=min(self.warmup_epochs, 1), warmup_steps=math.ceil(self.warmup_steps / 10)
        )


@dataclass(frozen=True, kw_only=True)
class LARS(Optimizer, name="lars"):
    """Layer-wise adaptive rate scaling with a warm-up and a cosine decay (paper, section 7.1).

    The learning rate is outside the momentum, as in BYOL and Barlow Twins. SimCLR's own code has it inside
    (google-research/simclr lars_optimizer.py): m <- momentum m + rate x trust ratio x update. The two are
    equal while the rate is constant. Where it rises or falls, SimCLR's updates follow a little later.
    """

    base_lr: Positive
    """Peak rate = base_lr x batch_size / 256 x K (section 7.1)."""
    scale_with_views: bool = True
    """Factor K in the peak rate (section 7.1); BYOL's own schedule does not have it."""
    weight_decay: NotNegative = 1e-5
    """Section 7.1. Biases and normalisation parameters are exempt."""
    momentum: Momentum = 0.9
    """google-deepmind/deepmind-research byol/configs/byol.py."""
    trust_coefficient: Positive = 1e-3
    """google-deepmind/deepmind-research byol/utils/optimizers.py."""
    warmup_epochs: CountOrZero = 10
    """Epochs of a linear warm-up from 0 (section 7.1)."""

    def peak_lr(self, batch_size: int, num_views: int) -> float:
        """Return the learning rate after warm-up, for `batch_size` images per step over all devices."""
        return super().peak_lr(batch_size, num_views) * (num_views if self.scale_with_views else 1)

    def build(self, online: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of the trained parameters of `online`."""
        from reproduce.nn import lars

        return lars.LARS(
            parameters_of(online, self.constant),
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            trust_coefficient=self.trust_coefficient,
        )

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return the same optimiser for the fewer steps and the smaller batch of a scale.

        The paper's learning rate would hardly move a weight in the 150 steps or so of the smoke scale. There
        the trust coefficient is 10 times the paper's, and the peak rate a quarter. A sixteenth of the batch
        with 4 times the base rate has that peak rate.

        A trust coefficient has no effect on vectors. If they have a rate of their own, it is at most 1/200 of
        the weights', a choice: with more, the losses that couple views hardly learn anything.
        """
        if scale == "small":
            return self
        faster = self.times({"linear": 4.0, "sqrt": 1.0, "none": 0.25}[self.batch_scaling])
        vector_lr = None if faster.vector_lr is None else min(faster.vector_lr, faster.base_lr / 200)
        return replace(faster, vector_lr=vector_lr, trust_coefficient=0.01, warmup_epochs=1, warmup_steps=0)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer, name="sgd"):
    """Stochastic gradient descent with momentum; the decay is added to the gradient."""

    weight_decay: NotNegative = 1e-4
    """facebookresearch/moco main_moco.py; applies to all parameters."""
    exempt_vectors: bool = False
    """True if biases and normalisation parameters have no decay, as in PIRL.

    MoCo and SimSiam decay all parameters (facebookresearch/moco main_moco.py).
    """
    momentum: Momentum = 0.9
    """facebookresearch/moco main_moco.py."""

    def build(self, online: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of the trained parameters of `online`."""
        groups = parameters_of(online, self.constant)
        for group in groups:
            group["weight_decay"] = 0.0 if self.exempt_vectors and group["exempt"] else self.weight_decay
        return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, foreach=True)


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer, name="adam"):
    """Adam (Kingma and Ba, 2015); the decay of all parameters is added to the gradient."""

    batch_scaling: Literal["linear", "sqrt", "none"] = added_later("none", "0.2")
    """W-MSE's rates are not scaled (htdt/self-supervised cfg.py)."""
    weight_decay: NotNegative = 1e-6
    """htdt/self-supervised cfg.py."""
    beta1: Momentum = 0.9
    """Decay rate of the mean of gradients; torch's default (htdt/self-supervised train.py)."""
    beta2: Momentum = 0.999
    """Decay rate of the mean of squared gradients; torch's default (htdt/self-supervised train.py)."""
    epsilon: Positive = 1e-8
    """Summand of the denominator; torch's default (htdt/self-supervised train.py)."""

    num_states: ClassVar[int] = 2

    def build(self, online: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of the trained parameters of `online`."""
        return torch.optim.Adam(
            parameters_of(online, self.constant),
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return the same optimiser for the fewer steps of a scale.

        In the 150 steps or so of the smoke scale, twice the rate teaches more, a choice.
        """
        smaller = super().smaller(scale)
        return smaller if scale == "small" else smaller.times(2)


@dataclass(frozen=True, kw_only=True)
class LARC(Optimizer, name="larc"):
    """Layer-wise adaptive rate control without clipping around SGD, as in SwAV; no parameter is exempt.

    SwAV's rate of 4.8 for 4096 images is a base rate of .3, and that of .6 for 256 images one of .6.
    """

    weight_decay: NotNegative = 1e-6
    """facebookresearch/swav main_swav.py; applies to all parameters."""
    momentum: Momentum = 0.9
    """facebookresearch/swav main_swav.py."""
    trust_coefficient: Positive = 1e-3
    """facebookresearch/swav main_swav.py."""

    def build(self, online: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of the trained parameters of `online`."""
        from reproduce.nn import larc

        return larc.LARC(
            parameters_of(online, self.constant),
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            trust_coefficient=self.trust_coefficient,
        )

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return the same optimiser for the fewer steps and the smaller batch of a scale.

        With its peak rate, SwAV collapses in the 70 steps or fewer of the smoke scale. A sixteenth of the
        batch with 4 times the base rate has a quarter of that rate. Of 4096 images, 1024 count
        (`configs/scales.py`), so that 4.8 becomes .3.
        """
        smaller = super().smaller(scale)
        return smaller if scale == "small" else smaller.times(0.25)


def parameters_of(module: nn.Module, constant: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return the trained parameters of `module` in groups: weights and exempt parameters.

    The exempt ones are biases and normalisation parameters (vectors). LARS exempts them from decay and trust
    ratio; other optimisers may give them a rate of their own.

    Args:
        constant: parts of `module` whose parameters are in two more groups, with a constant rate.

    Raises:
        NotFoundError: `module` has no part of a name in `constant`.
    """
    parts = [name for name, _ in module.named_children()]
    for name in constant:
        if name not in parts:
            raise NotFoundError(unknown("part of the online network", name, parts))
    return [
        {
            "params": [
                parameter
                for name, parameter in module.named_parameters()
                if parameter.requires_grad
                and (parameter.ndim <= 1) is exempt
                and (name.split(".")[0] in constant) is fixed
            ],
            "exempt": exempt,
            "constant": fixed,
        }
        for fixed in ((False, True) if constant else (False,))
        for exempt in (False, True)
    ]
