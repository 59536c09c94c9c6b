"""The paper's sentences about its tables as contrasts: sums of cells that exceed a margin.

    ours, byol = Number("Ours (K=4)", "acc"), Number("BYOL", "acc")
    Claim(text="K = 4 gains more than 6 points.", contrasts=(ours - byol > 6,), source="section 4.5")
    Claim(text="Ours is the best.", contrasts=best(ours, (byol, other)), source="section 4.5")

A claim holds only if all its contrasts do. A contrast is data, so that it can be tested: its value has a
spread over the seeds (`verdicts.py`). Imports only the standard library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NoReturn

EXACT = 9
"""Decimals to which a contrast and its margin are rounded: 64.1 lies exactly 2 above 62.1, and .92 - .5 is
.42."""


class MissingNumberError(LookupError):
    """A claim needs a number that is missing."""


Values = Callable[[str, str], float]
"""(row label, column key) -> the number in that cell as printed (81.56), or raises MissingNumberError."""

PaperVerdict = Literal["holds", "fails", "open"]
"""Verdict on printed numbers, by arithmetic; `open` if a number is missing."""


@dataclass(frozen=True)
class Term:
    """A cell with its factor."""

    weight: float
    row: str
    column: str


@dataclass(frozen=True)
class Sum:
    """A weighted sum of cells; a comparison with another one or a constant makes a contrast."""

    terms: tuple[Term, ...]

    def __add__(self, other: Sum) -> Sum:
        return Sum((*self.terms, *other.terms))

    def __sub__(self, other: Sum) -> Sum:
        return self + -other

    def __neg__(self) -> Sum:
        return Sum(tuple(replace(term, weight=-term.weight) for term in self.terms))

    def __gt__(self, other: Sum | float) -> Contrast:
        return _contrast(self, other)

    def __ge__(self, other: Sum | float) -> Contrast:
        return _contrast(self, other, or_equal=True)

    def __lt__(self, other: Sum | float) -> Contrast:
        return _contrast(-self, -other)

    def __le__(self, other: Sum | float) -> Contrast:
        return _contrast(-self, -other, or_equal=True)


def Number(row: str, column: str) -> Sum:  # noqa: N802 (reads as the value that it stands for)
    """Return the number in a cell, for arithmetic and comparisons."""
    return Sum((Term(1.0, row, column),))


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A sum of cells that exceeds a margin."""

    terms: tuple[Term, ...]
    """Empty if the contrast compares known facts, such as batch sizes: then 0 is compared with the margin."""
    margin: float = 0.0
    or_equal: bool = False
    """True if a sum equal to the margin is enough."""
    optional: bool = False
    """True if the contrast does not count on the paper's numbers where one of them is missing."""
    fact: str = ""
    """Text of a contrast without cells: `512 is a smaller batch than SimSiam's 256`."""

    def __bool__(self) -> NoReturn:
        raise TypeError("A contrast is not true or false before it is judged: write `a > b, b > c`.")

    def __str__(self) -> str:
        """Return `Ours (K=4) − BYOL > 6`; cells of several columns are followed by their column."""
        if self.fact:
            return self.fact
        several = len({term.column for term in self.terms}) > 1
        text = ""
        for term in sorted(self.terms, key=lambda term: term.weight < 0):  # what is added comes first
            name = f"{term.row} [{term.column}]" if several else term.row
            text += f" {'−' if term.weight < 0 else '+'} {name}"
        margin = f"{self.margin:g}".replace("-", "−")
        return f"{text.strip().removeprefix('+ ')} {'≥' if self.or_equal else '>'} {margin}"

    def value(self, number: Values) -> float:
        """Return the sum on these numbers.

        Raises:
            MissingNumberError: a number is missing.
        """
        return round(sum(term.weight * number(term.row, term.column) for term in self.terms), EXACT)

    def holds_at(self, value: float) -> bool:
        """Return True if a sum with this value exceeds the margin."""
        return value >= self.margin if self.or_equal else value > self.margin


def _contrast(left: Sum, right: Sum | float, *, or_equal: bool = False) -> Contrast:
    if isinstance(right, Sum):
        return Contrast(terms=(left - right).terms, or_equal=or_equal)
    return Contrast(terms=left.terms, margin=round(float(right), EXACT), or_equal=or_equal)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper about its own table."""

    text: str
    """The statement, in our words, close to the paper's."""
    contrasts: tuple[Contrast, ...]
    source: str = ""
    """Place in the paper, such as `section 4.5`."""
    of_the_papers_data: bool = False
    """True if the statement says nothing where other data stand in for the paper's. A statement with a margin
    in points says nothing there either."""

    def __post_init__(self) -> None:
        if not self.contrasts:
            raise ValueError(f"The claim '{self.text:.40}' has no contrasts.")

    @property
    def needs_the_papers_data(self) -> bool:
        """True if the statement says nothing on other data."""
        return self.of_the_papers_data or any(each.margin and each.terms for each in self.contrasts)

    def cells(self) -> Iterator[tuple[str, str]]:
        """Yield (row label, column key) of every cell that the claim speaks of."""
        for contrast in self.contrasts:
            for term in contrast.terms:
                yield term.row, term.column

    def judge(self, number: Values) -> PaperVerdict:
        """Return the verdict on printed numbers; a contrast that fails decides even if others are open."""
        found: set[PaperVerdict] = set()
        for contrast in self.contrasts:
            try:
                found.add("holds" if contrast.holds_at(contrast.value(number)) else "fails")
            except MissingNumberError:
                found |= set() if contrast.optional else {"open"}
        return "fails" if "fails" in found else "open" if "open" in found or not found else "holds"


def best(one: Sum, others: Iterable[Sum]) -> tuple[Contrast, ...]:
    """Return the contrasts of a number that is above all others."""
    return tuple(one > other for other in others)


def lowest(one: Sum, others: Iterable[Sum]) -> tuple[Contrast, ...]:
    """Return the contrasts of a number that is below all others."""
    return tuple(one < other for other in others)


def rising(*numbers: Sum) -> tuple[Contrast, ...]:
    """Return the contrasts of numbers in rising order."""
    return tuple(after > before for before, after in pairwise(numbers))


def within(one: Sum, other: Sum | float, margin: float) -> tuple[Contrast, ...]:
    """Return the contrasts of two numbers that differ by at most a margin (two one-sided tests)."""
    if isinstance(other, Sum):
        return one - other >= -margin, other - one >= -margin
    return one >= other - margin, one <= other + margin


def at_most_below(one: Sum, others: Iterable[Sum], margin: float) -> tuple[Contrast, ...]:
    """Return the contrasts of a number that is at most a margin below each of the others."""
    return tuple(one - other >= -margin for other in others)


def known(difference: float, fact: str) -> Contrast:
    """Return a contrast of known facts, which holds if their difference is above 0.

    Args:
        fact: the comparison in words.
    """
    return Contrast(terms=(), margin=-difference, fact=fact)
