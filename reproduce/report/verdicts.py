"""Verdicts: what our numbers may be said to show, given how far they scatter over the training seeds.

    judge(table.claims, look_up, table.printed, table.alpha)   # every sentence of a table, on our numbers
    compare(sample, paper=80.38, margin=0.5, alpha=0.05)       # a number of ours against the printed one
    emphasis(samples, "higher", digits=2, alpha=0.05)          # a column: the best, and its equals, in bold

A claim is supported if the confidence interval of each of its contrasts lies beyond the margin, and
contradicted if that of one contrast lies short of it, corrected for the number of contrasts. Over the claims
of a table, both are corrected by Holm's method. Pure functions of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reproduce.report.claim import EXACT, Claim, Contrast, PaperVerdict, Values
from reproduce.report.stats import MOST_SEEDS, Estimate, Sample, estimate, holm, printed, seeds_needed

Verdict = Literal["supported", "contradicted", "inconclusive", "direction only", "not judged", "open"]
"""Verdict on our numbers; `open` if one is missing."""
CellVerdict = Literal["reproduced", "not reproduced", "inconclusive", "not comparable"]
"""Verdict on one of our numbers against the paper's."""
Emphasis = Literal["bold", "underline", ""]

FEW_SEEDS = 3
"""Minimum number of seeds for bold numbers."""


@dataclass(frozen=True)
class Absent:
    """The reason why a cell has no number for a verdict."""

    verdict: Literal["not judged", "open"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The contrast that decides a claim, on our numbers."""

    contrast: str
    value: float
    low: float | None
    """Lower end of the confidence interval; None without a spread over trainings."""
    high: float | None
    n: int
    """Number of training seeds."""


@dataclass(frozen=True, kw_only=True)
class JudgedClaim:
    """A sentence about the table, judged on the paper's own numbers and on ours."""

    text: str
    source: str
    paper: PaperVerdict
    ours: Verdict
    reason: str
    """Why our numbers do not decide, or what decides apart from them; empty otherwise."""
    effect: Effect | None
    """None if a claim is open or not judged."""


LookUp = Callable[[str, str], Sample | Absent]
"""(row label, column key) -> our number in that cell, the printed one if it counts as ours, or why not."""


def judge(
    claims: Sequence[Claim],
    look_up: LookUp,
    on_paper: Values,
    alpha: float,
    not_judged: Callable[[Claim], str] = lambda _: "",
) -> tuple[JudgedClaim, ...]:
    """Return every claim with its verdict on the paper's numbers and on ours.

    Args:
        on_paper: the paper's numbers.
        alpha: significance level over all claims.
        not_judged: returns why a claim is not judged on our numbers, or "".
    """
    opened = [_open(claim, look_up, alpha, not_judged(claim)) for claim in claims]
    tested = [index for index, each in enumerate(opened) if isinstance(each, _Tested)]
    adjusted = dict(zip(tested, holm([opened[index].p for index in tested]), strict=True))  # type: ignore[union-attr]
    judged = []
    for index, (claim, each) in enumerate(zip(claims, opened, strict=True)):
        found = each.decided(adjusted[index], alpha, len(tested)) if isinstance(each, _Tested) else each
        judged.append(
            JudgedClaim(text=claim.text, source=claim.source, paper=claim.judge(on_paper), **vars(found))
        )
    return tuple(judged)


def seeds_to_decide(claim: Claim, look_up: LookUp, alpha: float, claims: int) -> int | None:
    """Return about how many seeds would decide an inconclusive claim, as its reason in the report says.

    None if the number is above MOST_SEEDS, or if no number in the claim has a spread.

    Args:
        alpha: significance level over all claims.
        claims: number of the table's claims whose numbers have a spread.
    """
    opened = _open(claim, look_up, alpha)
    return opened.seeds(alpha / claims) if isinstance(opened, _Tested) else None


@dataclass(frozen=True)
class _Decided:
    """The part of a JudgedClaim that our numbers decide."""

    ours: Verdict
    reason: str = ""
    effect: Effect | None = None


@dataclass(frozen=True)
class _Tested:
    """A claim whose numbers have a spread over seeds."""

    pairs: tuple[tuple[Contrast, Estimate], ...]

    @property
    def p_supported(self) -> float:
        """p-value of "some contrast does not exceed its margin"; no correction for their number."""
        return max(map(_p_above, self.pairs))

    @property
    def p_contradicted(self) -> float:
        """p-value of "all contrasts exceed their margins", corrected for their number."""
        return min(1.0, len(self.pairs) * min(map(_p_below, self.pairs)))

    @property
    def p(self) -> float:
        """p-value of the better supported of both directions."""
        return min(1.0, 2 * min(self.p_supported, self.p_contradicted))

    def decided(self, adjusted: float, alpha: float, claims: int) -> _Decided:
        """Return the verdict.

        Args:
            adjusted: `p`, adjusted for the number of claims.
            alpha: significance level over all claims.
            claims: their number.
        """
        weakest = max(self.pairs, key=_p_above)
        if adjusted > alpha:
            return _Decided("inconclusive", self._seeds(alpha / claims), _effect(*weakest, alpha))
        if self.p_supported < self.p_contradicted:
            return _Decided("supported", "", _effect(*weakest, alpha))
        return _Decided("contradicted", "", _effect(*min(self.pairs, key=_p_below), alpha))

    def _seeds(self, alpha: float) -> str:
        """Return about how many seeds would decide, in words."""
        number = self.seeds(alpha)
        if number is None:
            return f"more than {MOST_SEEDS} seeds would be needed to decide at this effect and spread"
        return f"about {number} seeds would decide at this effect and spread"

    def seeds(self, alpha: float) -> int | None:
        """Return about how many seeds would decide, if effects and spreads stayed as they are.

        None if more than MOST_SEEDS would be needed.
        """
        short = [pair for pair in self.pairs if not pair[0].holds_at(pair[1].effect)]
        each_alpha = alpha / len(self.pairs) if short else alpha
        needed = [seeds_needed(found, each.margin, each_alpha) for each, found in short or self.pairs]
        known = [number for number in needed if number is not None]
        if not known or (not short and len(known) < len(needed)):
            return None
        return max(min(known) if short else max(known), self.pairs[0][1].n + 1)


def _p_above(pair: tuple[Contrast, Estimate]) -> float:
    """Return the p-value of "the contrast does not exceed its margin"."""
    contrast, found = pair
    return found.p_above(contrast.margin, or_equal=contrast.or_equal)


def _p_below(pair: tuple[Contrast, Estimate]) -> float:
    """Return the p-value of "the contrast exceeds its margin"."""
    contrast, found = pair
    return found.p_below(contrast.margin, or_equal=contrast.or_equal)


def _open(claim: Claim, look_up: LookUp, alpha: float, not_judged: str = "") -> _Tested | _Decided:
    """Return the claim with its estimates, or its verdict if no test is needed."""
    if not_judged:
        return _Decided("not judged", not_judged)
    cells = {cell: look_up(*cell) for cell in dict.fromkeys(claim.cells())}
    absent = [found for found in cells.values() if isinstance(found, Absent)]
    for each in sorted(absent, key=lambda each: each.verdict):  # `not judged` comes first
        return _Decided(each.verdict, each.reason)
    samples = {cell: found for cell, found in cells.items() if isinstance(found, Sample)}
    pairs = []
    for contrast in claim.contrasts:
        if contrast.terms:
            weights: dict[tuple[str, str], float] = {}
            for term in contrast.terms:  # a cell that occurs twice counts once, with the sum of its weights
                cell = term.row, term.column
                weights[cell] = weights.get(cell, 0.0) + term.weight
            terms = [(weight, samples[cell]) for cell, weight in weights.items() if weight]
            pairs.append((contrast, estimate(terms)))
        elif not contrast.holds_at(0.0):
            return _Decided("contradicted", f"it is not so that {contrast}")
    if not any(found.n for _, found in pairs):
        return _Decided("not judged", "no number in it has a spread over trainings of ours")
    if any(found.n == 1 for _, found in pairs):
        nearest = min(pairs, key=lambda pair: pair[1].effect - pair[0].margin)
        agrees = all(each.holds_at(round(found.effect, EXACT)) for each, found in pairs)
        return _Decided(
            "direction only", f"{'agrees' if agrees else 'disagrees'}, one seed", _effect(*nearest, alpha)
        )
    # A contrast of constants is decided by arithmetic: it has no spread.
    return _Tested(
        tuple((each, found if found.n else replace(found, error=0.0, degrees=1.0)) for each, found in pairs)
    )


def _effect(contrast: Contrast, found: Estimate, alpha: float) -> Effect:
    low, high = found.interval(alpha) or (None, None)
    return Effect(contrast=str(contrast), value=found.effect, low=low, high=high, n=found.n)


def compare(sample: Sample, paper: float, margin: float, alpha: float) -> CellVerdict:
    """Return the verdict on our number against the printed one: two one-sided tests by the interval.

    Args:
        margin: the largest difference that counts as none.
        alpha: significance level.
    """
    interval = estimate([(1.0, sample)]).interval(alpha)
    if interval is None:
        return "inconclusive"
    low, high = interval
    if paper - margin <= low and high <= paper + margin:
        return "reproduced"
    return "not reproduced" if high < paper - margin or low > paper + margin else "inconclusive"


def emphasis(
    samples: Sequence[Sample | None], better: Literal["higher", "lower", ""], digits: int, alpha: float
) -> list[Emphasis]:
    """Return what is emphasised in a column of ours.

    With at least FEW_SEEDS seeds, the best mean and every mean that cannot be told from it are bold: tests by
    seed against the best, adjusted by Holm's method. With fewer, the best printed value is underlined.
    Numbers without a spread over trainings count as constants. A single number has no emphasis.

    Args:
        digits: decimals in print.
        alpha: significance level over the column.
    """
    present = {index: sample for index, sample in enumerate(samples) if sample is not None}
    marks: list[Emphasis] = [""] * len(samples)
    if not better or len(present) < 2:
        return marks
    sign = 1 if better == "higher" else -1
    first = max(present, key=lambda index: sign * present[index].mean)
    if min((len(each.values) for each in present.values() if each.trainings), default=0) < FEW_SEEDS:
        top = printed(present[first].mean, digits)
        for index, sample in present.items():
            marks[index] = "underline" if printed(sample.mean, digits) == top else ""
        return marks
    others = [index for index in present if index != first]
    p_values = []
    for index in others:
        gap = estimate([(sign, present[first]), (-sign, present[index])])
        gap = gap if gap.n else replace(gap, error=0.0, degrees=1.0)
        p_values.append(min(1.0, 2 * gap.p_above(0.0)))
    marks[first] = "bold"
    for index, p in zip(others, holm(p_values), strict=True):
        marks[index] = "bold" if p > alpha else ""
    return marks
