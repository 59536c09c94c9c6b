"""Schedules of the learning rate, its drops and the target decay, step by step.

They follow google-deepmind/deepmind-research byol/utils/schedules.py. Steps and epochs count from 0: `step`
optimiser steps are done before step number `step`. Only the standard library is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmUp:
    """A linear rise of the learning rate to its peak."""

    steps: int = 0
    """Steps of the warm-up."""
    start: float = 0.0
    """Rate of step 0, relative to the peak."""
    inclusive: bool = False
    """True if the last step of the warm-up has the peak rate; otherwise the first step after it does."""

    def rate(self, step: int, peak: float) -> float:
        """Return the learning rate of step `step` < `steps`."""
        rising = self.steps - self.inclusive
        if step >= rising:
            return peak
        return peak * (self.start * (rising - step) + step) / rising


def cosine_rate(
    step: int, *, peak: float, warm_up: WarmUp, num_steps: int, final: float = 0.0, stride: int = 1
) -> float:
    """Return the learning rate of step `step` of `num_steps`: a warm-up to `peak`, then a cosine.

    Step `num_steps`, the first after the end, would have `final` x `peak`. A run that is shorter than its
    warm-up never reaches the peak.

    Args:
        stride: steps with the same rate after the warm-up, counted from step 0; those of an epoch if the
            cosine falls by epoch.
    """
    if step < warm_up.steps:
        return warm_up.rate(step, peak)
    fallen = max(step - step % stride - warm_up.steps, 0)
    return peak * (final + (1 - final) * _cosine_decay(fallen, num_steps - warm_up.steps))


def dropping_rate(
    step: int, *, peak: float, warm_up: WarmUp, num_steps: int, drops: Sequence[float], factor: float
) -> float:
    """Return the learning rate of step `step` of `num_steps`: a warm-up to `peak`, then a staircase.

    Args:
        drops: parts of the run after which the rate is multiplied by `factor`.
    """
    if step < warm_up.steps:
        return warm_up.rate(step, peak)
    return peak * factor ** sum(step >= round(drop * num_steps) for drop in drops)


def learning_rate(step: int, *, peak: float, warmup_steps: int, num_steps: int) -> float:
    """Return the learning rate of step `step` of `num_steps`: linear from 0 to `peak`, then a cosine to 0.

    The first step of a warm-up has the rate 0 and step `warmup_steps` has `peak`. Step `num_steps`, the first
    after the end, would have 0. A run that is shorter than its warm-up never reaches the peak.
    """
    return cosine_rate(step, peak=peak, warm_up=WarmUp(warmup_steps), num_steps=num_steps)


def drops(epoch: int, *, num_drops: int, num_epochs: int) -> int:
    """Return how often the rate has dropped before epoch `epoch` of `num_epochs`.

    The `num_drops` drops are at equally spaced epochs, rounded. Two drops in 28 epochs come after 9 and after
    19 epochs, in 84 after 28 and after 56.
    """
    return sum(epoch >= round(num_epochs * drop / (num_drops + 1)) for drop in range(1, num_drops + 1))


def target_decay(step: int, *, base: float, num_steps: int) -> float:
    """Return tau of step `step` of `num_steps`, which rises from `base` to 1.

    It is 1 - (1 - base) (cos(pi step / num_steps) + 1) / 2.
    """
    return 1 - (1 - base) * _cosine_decay(step, num_steps)


def _cosine_decay(step: int, num_steps: int) -> float:
    """Return half a cosine from 1 at step 0 to 0 at `num_steps`, and 0 after that."""
    return (1 + math.cos(math.pi * step / num_steps)) / 2 if step < num_steps else 0.0
