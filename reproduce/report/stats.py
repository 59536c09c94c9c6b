"""Statistics of a cell and of a column: pure functions of numbers that never average over missing values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Rank = Literal["best", "second", ""]


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


def ranks(values: Sequence[float | None], better: Literal["higher", "lower", ""]) -> list[Rank]:
    """Mark the best and the second best values.

    Equal values have the same rank. Missing values have none, nor does a single value.
    """
    present = {value for value in values if value is not None}
    if not better or sum(value is not None for value in values) < 2:
        return [""] * len(values)
    ordered = sorted(present, reverse=better == "higher")
    names: dict[float | None, Rank] = {ordered[0]: "best"}
    if len(ordered) > 1:
        names[ordered[1]] = "second"
    return [names.get(value, "") for value in values]
