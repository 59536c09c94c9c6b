"""Statistics of a column and of a cell: pure functions of numbers, which never average over what is
missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Rank = Literal["best", "second", ""]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; exact summation, so the order of the values does not matter.

    Raises:
        ValueError: there are no values (the mean of nothing is not 0).
    """
    if not values:
        raise ValueError("The mean of no values was asked for.")
    return math.fsum(values) / len(values)


def sample_std(values: Sequence[float]) -> float | None:
    """The sample standard deviation (divided by n - 1); None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def ranks(values: Sequence[float | None], better: Literal["higher", "lower", ""]) -> list[Rank]:
    """Which values are the best and the second best; equal values rank alike, missing ones and a lone one not
    at all."""
    present = {value for value in values if value is not None}
    if not better or sum(value is not None for value in values) < 2:
        return [""] * len(values)
    ordered = sorted(present, reverse=better == "higher")
    names: dict[float | None, Rank] = {ordered[0]: "best"}
    if len(ordered) > 1:
        names[ordered[1]] = "second"
    return [names.get(value, "") for value in values]
