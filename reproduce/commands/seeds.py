"""The seeds that would decide the most claims for the fewest hours: `invoke seeds`.

    found = propose(Request(table="table8", scale="small"), 20, None, site, store)
    print("\\n".join(found.lines(width=100)))
    found.requests                       # the commands, which `--apply` executes

A claim is judged on the seeds that all of its cells have. An inconclusive one needs about the number of seeds
that the report states for its effect and spread. One with a single seed has no spread, so its first step is
FEW_SEEDS seeds. Either way all cells of the claim get the same seeds, which are then compared seed by seed.

The plan takes the claims one after the other: next is the one whose new runs decide the most claims per
hour, by the hours of the forecast. A run that several claims need counts once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, get_args

from reproduce.commands.forecast import Forecast, forecast
from reproduce.messages import InvalidError, counted, hours
from reproduce.plan import Job, Request, jobs
from reproduce.readiness import Blocked, Counts, blocked
from reproduce.report import markup, terminal
from reproduce.report.claim import Claim
from reproduce.report.display import EFFECT_DIGITS
from reproduce.report.filled import Filled, fill, numbers
from reproduce.report.observe import Finished, frame, observe
from reproduce.report.stats import MOST_SEEDS, printed
from reproduce.report.table import Measured, Table
from reproduce.report.verdicts import FEW_SEEDS, Effect, JudgedClaim, Verdict, seeds_to_decide
from reproduce.site import Site
from reproduce.spec import Spec

if TYPE_CHECKING:
    from reproduce.tracking.store import Store

SMOKE = (
    "Claims are not judged at smoke scale, so no seeds would decide them: use --scale small or --scale paper."
)
SHORTEST_CLAIM = 24
"""Minimum columns of the terminal for the text of a claim."""
SLACK = 1e-6
"""Seconds by which a plan may exceed its budget, for sums of binary fractions."""

Place = tuple[str, str]
"""(row label, column key)."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An undecided claim with what it needs."""

    text: str
    """The claim, as markup."""
    verdict: Verdict
    effect: Effect | None
    seeds: int
    """Number of seeds that all of its cells have."""
    needed: int | None
    """Number of seeds that would decide, or that give a first spread; None above MOST_SEEDS."""
    cells: tuple[Place, ...] = ()
    runs: tuple[str, ...] = ()
    """Ids of the runs that would be started for it."""
    why_not: str = ""
    """Why it is left out, such as a blocked run; empty if it can be planned."""


class Choice(NamedTuple):
    """A claim of the plan with what it adds to the claims before it."""

    candidate: Candidate
    runs: tuple[str, ...]
    """Runs that no claim before it needs."""
    seconds: float | None
    """Their seconds, summed over devices; None if they are unknown."""


def plan(
    candidates: Sequence[Candidate], seconds: Mapping[str, float | None], budget: float | None = None
) -> tuple[list[Choice], list[Candidate]]:
    """Return the claims in the order in which they are decided, and those that the budget leaves out.

    Next is always the claim whose new runs decide the most claims per second; of equal ones, the one with the
    fewest seconds, then the first. If the seconds of any run are unknown, runs are counted instead.

    Args:
        seconds: seconds of each run, summed over devices; None if they are unknown.
        budget: maximum number of seconds of all runs; None for any number. Runs of unknown length exceed it.
    """
    known = all(seconds[run] is not None for each in candidates for run in each.runs)
    chosen: list[Choice] = []
    waiting, started, spent = list(candidates), set[str](), 0.0
    while waiting:
        options = []
        for place, each in enumerate(waiting):
            runs = tuple(run for run in each.runs if run not in started)
            added = _sum(seconds[run] for run in runs)
            if budget is not None and (added is None or spent + added > budget + SLACK):
                continue
            after = started.union(runs)
            decided = sum(after.issuperset(other.runs) for other in waiting)
            cost = added if known and added is not None else float(len(runs))
            rate = decided / cost if cost else math.inf
            options.append(((-rate, cost, place), Choice(each, runs, added)))
        if not options:
            break
        (_, _, place), choice = min(options, key=lambda option: option[0])
        del waiting[place]
        chosen.append(choice)
        started.update(choice.runs)
        spent += choice.seconds or 0.0
    return chosen, waiting


def _sum(seconds: Iterable[float | None]) -> float | None:
    """Return the sum, or None if a part of it is unknown."""
    found = list(seconds)
    return None if None in found else math.fsum(each or 0.0 for each in found)


def commands(chosen: Iterable[Candidate], request: Request, table: Table) -> list[Request]:
    """Return the requests for the cells of these claims, those with the most seeds first.

    A request has one number of seeds for all its cells. Claims with the same number share one if their rows
    need the same columns. A request whose cells have more seeds in another one is left out.
    """
    by_seeds: dict[int, set[Place]] = {}
    for each in chosen:
        by_seeds.setdefault(each.needed or 0, set()).update(each.cells)
    found: list[tuple[Request, set[Place]]] = []
    for seeds in sorted(by_seeds, reverse=True):
        rows_by_columns: dict[tuple[str, ...], list[str]] = {}
        for row in table.rows:
            keys = tuple(each.key for each in table.columns if (row.label, each.key) in by_seeds[seeds])
            if keys:
                rows_by_columns.setdefault(keys, []).append(row.label)
        for keys, labels in rows_by_columns.items():
            cells = {(label, key) for label in labels for key in keys}
            if any(cells <= others for _, others in found):
                continue
            columns = "*" if len(keys) == len(table.columns) else ",".join(keys)
            found += [
                (replace(request, rows=rows, columns=columns, seeds=seeds), cells)
                for rows in globs(labels, table)
            ]
    return [each for each, _ in found]


def globs(labels: Sequence[str], table: Table) -> list[str]:
    """Return values of `--rows` that match these rows only: one for all, or one for each.

    A comma separates globs, so that of a label becomes a question mark.
    """
    if len(labels) == len(table.rows):
        return ["*"]
    if len(labels) == 1:
        return list(labels)
    glob = ",".join(label.replace(",", "?") for label in labels)
    return [glob] if [row.label for row in table.select(glob).rows] == [*labels] else list(labels)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The plan for a table, ready to be printed and executed."""

    request: Request
    judged: tuple[JudgedClaim, ...]
    """The claims, each on the seeds that all of its cells have."""
    chosen: tuple[Choice, ...]
    left_out: tuple[Candidate, ...]
    """Undecided claims that the plan leaves out, each with its reason."""
    requests: tuple[Request, ...]
    """Requests whose runs are the plan."""
    costs: Forecast | None
    """Forecast of these requests; None without any."""
    problems: tuple[str, ...]
    """Descriptions of what blocked runs lack."""
    cells: Mapping[Place, int]
    """Number of seeds that each cell of ours has after the plan."""
    alpha: float
    """Significance level of the table's verdicts."""

    def lines(self, width: int) -> Iterator[str]:
        """Yield the lines to print.

        Args:
            width: columns of the terminal, to which the texts of claims are cut.
        """
        counts = Counter(each.ours for each in self.judged)
        tally = ", ".join(f"{counts[each]} {each}" for each in get_args(Verdict) if counts[each])
        yield f"{self.request}: {counted(len(self.judged), 'claim')}{f': {tally}' if tally else ''}."
        if counts["open"] and not all(self.cells.values()):
            yield f"Open claims lack a number: `{self._command(seeds=1)}` makes the first seed of every cell."
        if not self.chosen and not self.left_out:
            yield "No claim waits for more seeds."
            return
        if self.chosen:
            yield from ("", *self._choices(width))
        if self.left_out:
            yield from ("", "Left out:", *self._left_out(width))
        yield from self.problems
        if self.costs is not None:
            yield from ("", "Commands (a run that several of them need counts once):")
            yield from (f"  {each.command()}" for each in self.requests)
            yield f"{counted(len(self.costs.todo), 'run')} to start."
            yield from self.costs.estimates()
            yield from ("", *self._whole_table())

    def _choices(self, width: int) -> Iterator[str]:
        """Yield the claims of the plan, one line each, and what the seeds mean."""
        device = self.costs.device if self.costs else ""
        heads = ("claim", "effect", "seeds now", "needed", "new runs", f"{device}-hours")
        rows = [
            (
                _effect(each.effect),
                str(each.seeds),
                _number(each),
                str(len(runs)),
                "unknown" if seconds is None else hours(seconds) if runs else "0",
            )
            for each, runs, seconds in self.chosen
        ]
        texts = [markup.plain(each.text) for each, *_ in self.chosen]
        yield from _grid(heads, texts, rows, width)
        if any(seconds is None for *_, seconds in self.chosen):
            yield "The hours of some runs are unknown, so the order is by the number of runs."
        if first := [each.needed for each, *_ in self.chosen if each.verdict == "direction only"]:
            yield (
                "At first: one seed has no spread, so it is unknown how many decide. After "
                f"{first[0]} seeds, run `{_words_of_seeds(self.request)}` again."
            )
        if any(each.verdict == "inconclusive" for each, *_ in self.chosen):
            yield "Needed: about that many seeds decide if the effect and its spread stay as they are."
            yield f"Judging a claim again is a second look: false verdicts exceed the level, {self.alpha:g}."

    def _left_out(self, width: int) -> Iterator[str]:
        heads = ("claim", "effect", "seeds now", "needed", "new runs", "because")
        rows = [
            (
                _effect(each.effect),
                str(each.seeds),
                _number(each),
                str(len(each.runs)) if each.runs else "",
                each.why_not,
            )
            for each in self.left_out
        ]
        yield from _grid(heads, [markup.plain(each.text) for each in self.left_out], rows, width)

    def _whole_table(self) -> Iterator[str]:
        """Yield which command renders the whole table, and what a part of it shows."""
        after, most = min(self.cells.values()), max(self.cells.values())
        if after == most:
            yield f"Every cell then has {counted(after, 'seed')}. The whole table: `{self._command(after)}`."
            return
        full = sum(seeds == most for seeds in self.cells.values())
        yield (
            f"Only {full} of {counted(len(self.cells), 'cell')} then have {counted(most, 'seed')}: with "
            f"--seeds {most} the whole table shows the others as empty. Each command writes a report of its "
            "own rows."
        )
        if after:
            seeds = counted(after, "seed")
            yield f"The whole table with the {seeds} that every cell has: `{self._command(after)}`."

    def _command(self, seeds: int) -> str:
        rendered = " --render-only" if seeds <= min(self.cells.values(), default=0) else ""
        return replace(self.request, seeds=seeds).command() + rendered


def _effect(effect: Effect | None) -> str:
    """Return an effect with its interval."""
    if effect is None:
        return ""
    value = printed(effect.value, EFFECT_DIGITS)
    if effect.low is None or effect.high is None:
        return value
    low, high = (printed(end, EFFECT_DIGITS) for end in (effect.low, effect.high))
    return f"{value} [{low}, {high}]"


def _number(candidate: Candidate) -> str:
    """Return the number of seeds that a claim needs, as far as it is known."""
    if candidate.needed is None:
        return f"> {MOST_SEEDS}"
    return f"{candidate.needed}{' at first' if candidate.verdict == 'direction only' else ''}"


def _grid(
    heads: Sequence[str], texts: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Iterator[str]:
    """Yield a heading and one line for each claim; its text is cut so that the line fits."""
    columns = [[head, *cells] for head, *cells in zip(heads[1:], *rows, strict=True)]
    widths = [max(map(terminal.width_of, column)) for column in columns]
    room = max(SHORTEST_CLAIM, width - sum(widths) - len(terminal.GAP) * len(widths))
    room = min(room, max(map(terminal.width_of, texts)))
    for text, *cells in zip((heads[0], *texts), *columns, strict=True):
        aligned = (
            terminal.padded(cell, to, right=cell[:1] not in ("", *"abcdefghijklmnopqrstuvwxyz"))
            for cell, to in zip(cells, widths, strict=True)
        )
        yield terminal.GAP.join([terminal.padded(terminal.cut(text, room), room), *aligned]).rstrip()


def _words_of_seeds(request: Request) -> str:
    """Return the command that makes the next plan."""
    return replace(request, seeds=1).command().replace("invoke ", "invoke seeds ", 1)


def propose(request: Request, most: int, budget: float | None, site: Site, store: Store) -> Proposal:
    """Return the plan for a table at a scale at which claims are judged.

    Args:
        request: the whole table; its number of seeds is not used.
        most: maximum number of seeds of a cell.
        budget: maximum number of hours of a GPU or core; None for any number.

    Raises:
        LookupError, ValueError: see `Request.build`.
        InvalidError: `most` is less than 2.
        ConnectionError: the tracking store does not answer.
    """
    from reproduce.tracking.reuse import choose

    if most < 2:
        raise InvalidError(f"--seeds is {most}: a spread needs at least 2 seeds.")
    request = replace(request, seeds=most)
    table = request.build()
    finished = choose(store, table.specs(most), site).finished
    have = _seeds(table, most, finished)
    judged, candidates = _judged(table, have, most, finished)

    # What the candidates need, and its hours.
    counts = Counts(site)
    runs = {place: ours.runs(most) for place, ours in _measured(table).items()}
    wanted = [
        _upstream_first(spec for cell in each.cells for spec in runs.get(cell, ())[: each.needed])
        if not each.why_not
        else ()
        for each in candidates
    ]
    everything = {spec.id: Job(spec, request) for each in wanted for spec in each}
    made = _forecast(list(everything.values()), site, store, counts)
    steps = {step.spec.id: step for step in made.steps}
    for place, (each, needs) in enumerate(zip(candidates, wanted, strict=True)):
        stuck = any(steps[spec.id].action == "blocked" for spec in needs)
        candidates[place] = replace(
            each,
            runs=tuple(spec.id for spec in needs if steps[spec.id].starts),
            why_not=each.why_not or ("a run cannot start" if stuck else ""),
        )

    # The plan, and its commands.
    seconds = {step.spec.id: step.seconds for step in made.todo}
    possible = [each for each in candidates if not each.why_not]
    chosen, beyond = plan(possible, seconds, None if budget is None else 3600 * budget)
    requests = commands((each.candidate for each in chosen), replace(request, seeds=1), table)
    planned = dict(have)
    for candidate, *_ in chosen:
        for cell in planned.keys() & set(candidate.cells):
            planned[cell] = max(planned[cell], candidate.needed or 0)
    return Proposal(
        request=replace(request, seeds=1),
        judged=judged,
        chosen=tuple(chosen),
        left_out=(
            *(replace(each, why_not=_beyond(each, seconds, budget, made.device)) for each in beyond),
            *(each for each in candidates if each.why_not),
        ),
        requests=tuple(requests),
        costs=_forecast(jobs(requests), site, store, counts) if requests else None,
        problems=made.problems,
        cells=planned,
        alpha=table.alpha,
    )


def _beyond(
    candidate: Candidate, seconds: Mapping[str, float | None], budget: float | None, device: str
) -> str:
    """Return why the budget leaves a claim out."""
    total = _sum(seconds[run] for run in candidate.runs)
    needs = "unknown" if total is None else hours(total)
    return f"beyond the budget of {budget:g} {device}-hours: {needs} alone"


def _measured(table: Table) -> dict[Place, Measured]:
    return {(row.label, column.key): ours for row, column, ours in table.measured()}


def _seeds(table: Table, most: int, finished: Mapping[str, Finished]) -> dict[Place, int]:
    """Return the number of seeds, counted from seed 0 without a gap, that each cell of ours has."""
    found = {}
    for place, ours in _measured(table).items():
        values = [seen.value for seen in observe(ours, most, finished, {})]
        found[place] = values.index(None) if None in values else most
    return found


def _judged(
    table: Table, have: Mapping[Place, int], most: int, finished: Mapping[str, Finished]
) -> tuple[tuple[JudgedClaim, ...], list[Candidate]]:
    """Return every claim on the seeds that all of its cells have, and the undecided ones.

    Args:
        have: number of seeds of each cell of ours.
        most: maximum number of seeds of a cell.
    """
    tables: dict[int, Filled] = {}
    judged, candidates = [], []
    for place, claim in enumerate(table.claims):
        cells = tuple(dict.fromkeys(claim.cells()))
        seeds = min((have[cell] for cell in cells if cell in have), default=0)
        shown = max(seeds, 1)
        if shown not in tables:
            tables[shown] = fill(table, shown, frame(table, shown, finished, {}))
        found = tables[shown].claims[place]
        judged.append(found)
        if found.ours not in ("inconclusive", "direction only"):
            continue
        needed = _needed(claim, found, tables[shown], table, seeds, most)
        too_many = needed is None or needed > most
        candidates.append(
            Candidate(
                text=claim.text,
                verdict=found.ours,
                effect=found.effect,
                seeds=seeds,
                needed=needed,
                cells=cells,
                why_not=f"more than {most} seeds (--seeds)" if too_many else "",
            )
        )
    return tuple(judged), candidates


def _needed(
    claim: Claim, judged: JudgedClaim, filled: Filled, table: Table, seeds: int, most: int
) -> int | None:
    """Return the number of seeds for an undecided claim; None above MOST_SEEDS."""
    if judged.ours == "direction only":
        return min(FEW_SEEDS, most)
    tested = [each for each in filled.claims if each.effect is not None and each.ours != "direction only"]
    return seeds_to_decide(claim, numbers(table, filled.rows, seeds), table.alpha, len(tested))


def _upstream_first(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """Return every run with the runs that it needs, each once."""
    return tuple({each.id: each for spec in specs for each in (*spec.needs(), spec)}.values())


def _forecast(wanted: Sequence[Job], site: Site, store: Store, counts: Counts) -> Forecast:
    def lacking(todo: list[Job]) -> Mapping[str, Blocked]:
        return blocked(todo, site, fetch=False, counts=counts, store=store)

    return forecast(wanted, lacking, store, site, counts)
