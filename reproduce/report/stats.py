"""Statistics of cells, contrasts and columns: pure functions that never average over missing values.

The unit of replication is the training seed. Cells with the same seeds are compared seed by seed, because a
seed decides the order of images, the views and the noise of every row; else as Welch does. Intervals and
tests are those of Student's t. scipy is imported where two seeds or more are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_SEEDS = 1000
"""Maximum number of seeds of a cell: with more, a plan takes minutes, and the number is a typing error."""


def printed(number: float, digits: int) -> str:
    """Return a number as text with its decimals; a rounded zero has no sign. No other code does this."""
    text = f"{number:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean. The summation is exact, so the order of the values does not matter.

    Raises:
        ValueError: `values` is empty (the mean of nothing is not 0).
    """
    if not values:
        raise ValueError("The mean of no values was requested.")
    return math.fsum(values) / len(values)


def sample_std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (divided by n - 1), or None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


@dataclass(frozen=True)
class Sample:
    """Numbers of one cell."""

    values: Mapping[int, float]
    """By seed."""
    trainings: bool = True
    """False if the seeds are evaluations of one encoder, or the number is quoted: then it has no spread over
    trainings, and its mean counts as a constant."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(list(self.values.values()))


@dataclass(frozen=True)
class Estimate:
    """A weighted sum of means with its standard error over training seeds."""

    effect: float
    error: float | None
    """Standard error; None without a spread: no number of ours, or one with a single seed."""
    degrees: float
    """Degrees of freedom of `error`."""
    n: int
    """Smallest number of training seeds of a number of ours; 0 if there is none of ours."""

    def interval(self, alpha: float) -> tuple[float, float] | None:
        """Return the interval of confidence 1 - alpha, or None without a spread."""
        if self.error is None:
            return None
        half = quantile(1 - alpha / 2, self.degrees) * self.error if self.error else 0.0
        return self.effect - half, self.effect + half

    def p_above(self, margin: float, *, or_equal: bool = False) -> float:
        """Return the p-value of "the sum is at most the margin": small if the sum is above it.

        Without any variation between the seeds, the value is 0 or 1.
        """
        assert self.error is not None, "an estimate without a spread has no p-value"
        if not self.error:
            gap = self._gap(margin)
            return 0.0 if gap > 0 or (or_equal and gap == 0) else 1.0
        return tail((self.effect - margin) / self.error, self.degrees)

    def p_below(self, margin: float, *, or_equal: bool = False) -> float:
        """Return the p-value of "the sum is above the margin": small if the sum is short of it.

        Args:
            or_equal: a sum equal to the margin is not short of it.
        """
        assert self.error is not None, "an estimate without a spread has no p-value"
        if not self.error:
            gap = self._gap(margin)
            return 0.0 if gap < 0 or (not or_equal and gap == 0) else 1.0
        return tail((margin - self.effect) / self.error, self.degrees)

    def _gap(self, margin: float) -> float:
        """Return the effect minus the margin, 0 if they differ only by rounding: 64.1 - 62.1 is 2."""
        gap = self.effect - margin
        return math.copysign(_without_noise(abs(gap), self.effect), gap)


def estimate(weighted: Sequence[tuple[float, Sample]]) -> Estimate:
    """Return the estimate of a weighted sum of cells.

    Cells with the same seeds are paired: the sum is formed for each seed, and its spread over the seeds
    counts. Cells with different seeds are independent: variances add, and the degrees of freedom are those of
    Welch and Satterthwaite.
    """
    effect = math.fsum(weight * sample.mean for weight, sample in weighted)
    ours = [(weight, sample.values) for weight, sample in weighted if sample.trainings]
    n = min((len(values) for _, values in ours), default=0)
    if n < 2:
        return Estimate(effect, None, 0.0, n)
    seeds = ours[0][1].keys()
    if all(values.keys() == seeds for _, values in ours):
        sums = [math.fsum(weight * values[seed] for weight, values in ours) for seed in sorted(seeds)]
        return Estimate(effect, _without_noise(_spread(sums), effect) / math.sqrt(n), n - 1.0, n)
    parts = [
        (weight**2 * _spread(list(values.values())) ** 2 / len(values), values) for weight, values in ours
    ]
    variance = math.fsum(part for part, _ in parts)
    if not variance:
        return Estimate(effect, 0.0, n - 1.0, n)
    degrees = variance**2 / math.fsum(part**2 / (len(values) - 1) for part, values in parts)
    return Estimate(effect, math.sqrt(variance), degrees, n)


def _spread(values: Sequence[float]) -> float:
    spread = sample_std(values)
    assert spread is not None
    return spread


def _without_noise(spread: float, effect: float) -> float:
    """Return 0 for a spread, or a distance, that is only the rounding of binary fractions."""
    return 0.0 if spread <= 1e-9 * max(1.0, abs(effect)) else spread


def quantile(probability: float, degrees: float) -> float:
    """Return the quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def tail(t: float, degrees: float) -> float:
    """Return the probability that Student's t exceeds `t`."""
    from scipy.special import stdtr

    return float(stdtr(degrees, -t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number by Holm's method, in the same order."""
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def seeds_needed(found: Estimate, margin: float, alpha: float) -> int | None:
    """Return about how many paired seeds would decide at this effect and spread, or None above MOST_SEEDS.

    The interval of that many seeds ends at the margin.

    Args:
        alpha: significance level; the number of seeds grows as it becomes smaller.
    """
    if found.error is None or found.effect == margin:
        return None
    spread = found.error * math.sqrt(found.n)
    for n in range(2, MOST_SEEDS + 1):
        if quantile(1 - alpha / 2, n - 1) * spread / math.sqrt(n) < abs(found.effect - margin):
            return n
    return None
