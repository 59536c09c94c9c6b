"""A table as data: what the paper printed in each cell, which run gives our number, and what the paper claims
about it.

    Table(name="table8", title=..., columns=(Column(key="acc", ...),), rows=(Row(label="BYOL", ...), ...),
    claims=(Claim(...), ...))

A table is a plan: `table.specs(seeds)` are the runs that fill it. Text in titles, labels and notes is plain
Unicode, with mathematics between dollar signs (`$\\lambda_b$`); each renderer escapes and translates it in
one place. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from reproduce.messages import NotFoundError, unknown
from reproduce.nn.weights import Weights
from reproduce.spec import Evaluate, Pretrain, Spec


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measured quantity."""

    key: str
    """For `--columns`, the JSON and the claims."""
    title: str
    group: str = ""
    """A heading over neighbouring columns, such as the data set's name."""
    unit: str = "%"
    """`%`: values are fractions inside and printed times 100; empty: printed as they are."""
    digits: int = 2
    """Decimals of our own numbers; the paper's are printed as they stand there."""
    better: Literal["higher", "lower", ""] = "higher"
    """Which extreme is bold; empty: none."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A number exactly as the paper printed it, or why it has none."""

    value: str | None
    """Digits as printed, such as `74.60`; None: no number stands there, and `note` says why."""
    note: str = ""
    """A dagger's text, a doubt (with its source), or the reason why there is no number. Printed as a
    footnote."""

    def __post_init__(self) -> None:
        if self.value is None:
            assert self.note, "a missing number needs its reason"
        else:
            float(self.value)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number of ours: a metric of an evaluation, one run for each seed."""

    spec: Evaluate
    metric: str
    """A key of what the protocol's `run` returns."""

    def runs(self, seeds: int) -> tuple[Evaluate, ...]:
        """The evaluation at seeds 0 to `seeds` - 1; pretraining and evaluation share the seed. Released
        weights have none."""
        encoder = self.spec.encoder
        if not isinstance(encoder, Pretrain):
            return tuple(replace(self.spec, seed=seed) for seed in range(seeds))
        return tuple(
            replace(self.spec, encoder=replace(encoder, seed=seed), seed=seed) for seed in range(seeds)
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The paper's number beside ours; either may be absent."""

    paper: Reported | None = None
    ours: Measured | None = None
    released: Measured | None = None
    """What takes the place of a missing `ours` where released encoders are evaluated (`--baselines
    released`)."""
    why_not_ours: str = ""
    """Why this suite runs nothing for the cell, where it does not."""
    setting: float | None = None
    """A setting of ours that stands beside the paper's in place of a measurement (Table 9): printed as our
    number, with no runs."""

    def __post_init__(self) -> None:
        assert self.ours is None or self.setting is None, "a cell of ours is measured or a setting, not both"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    label: str
    """Unique in the table; `--rows` and the claims find the row by it."""
    cells: Mapping[str, Cell]
    """By column key; a column without a cell here has neither number."""
    shown: str = ""
    """What is printed as the row's name where the label repeats what stands in `facts`; empty: the label."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Descriptive columns by title, such as the backbone or the batch size; the same titles in every row."""
    note: str = ""
    """Printed as a footnote of the row."""
    added: bool = False
    """Whether the row is ours, not the paper's; printed with a mark."""
    rule_before: bool = False
    """A horizontal rule above the row."""


class MissingNumberError(LookupError):
    """A claim asked for a number that is not there."""


Values = Callable[[str, str], float]
"""(row label, column key) -> the number in that cell as printed (81.56), or raises MissingNumberError."""


Verdict = Literal["holds", "fails", "open"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence with which the paper reads its own table, as a predicate."""

    text: str
    """The sentence, in our words, close to the paper's."""
    holds: Callable[[Values], bool]
    source: str = ""
    """Where the paper says it, such as `section 4.5`."""

    def judge(self, values: Values) -> Verdict:
        """`open` where a number that the claim needs is missing."""
        try:
            return "holds" if self.holds(values) else "fails"
        except MissingNumberError:
            return "open"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper."""

    name: str
    """The module's name and the task's: `table8`."""
    number: str
    """As the paper numbers it: `8`, or `6 and 13`."""
    title: str
    """What the table shows, in one sentence."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    """Footnotes to the table as a whole (errata, choices)."""
    row_title: str = "Method"
    measure: Callable[[Weights], Mapping[str, Measured]] | None = None
    """What an added row of a user's encoder measures, by column key; None: the columns are not of one encoder
    but of several."""
    scale: str = "paper"
    changes: tuple[str, ...] = ()
    """`key=value` of every setting changed from the command line."""
    left_out: str = ""
    """What `--rows` and `--columns` cut away, in words."""
    whole: Table | None = None
    """The table before the cut: the claims on the paper's own numbers are judged on it."""
    stand_in: str = ""
    """What stands in for the paper's data or network at this scale, in a sentence for the caption."""

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        assert len(set(labels)) == len(labels), f"{self.name}: row labels repeat"
        keys = {column.key for column in self.columns}
        for row in self.rows:
            assert set(row.cells) <= keys, f"{self.name}: {row.label} has cells outside the columns"
            assert list(row.facts) == list(self.rows[0].facts), (
                f"{self.name}: {row.label} has other facts than the first row"
            )

    def cell(self, label: str, key: str) -> Cell:
        """The cell at a row's label and a column's key; an empty one where the row has none."""
        return next(row for row in self.rows if row.label == label).cells.get(key, Cell())

    def measured(self) -> Iterator[tuple[Row, Column, Measured]]:
        """Every cell that a run of ours fills."""
        for row in self.rows:
            for column in self.columns:
                ours = row.cells.get(column.key, Cell()).ours
                if ours is not None:
                    yield row, column, ours

    def specs(self, seeds: int) -> tuple[Spec, ...]:
        """Every run that the table needs, upstream first, each once."""
        found: dict[str, Spec] = {}
        for _, _, ours in self.measured():
            for run in ours.runs(seeds):
                needed: tuple[Spec, ...] = (*run.needs(), run)
                found |= {spec.id: spec for spec in needed if spec.id not in found}
        return tuple(found.values())

    def map(self, change: Callable[[Evaluate], Evaluate | str], **fields: object) -> Table:
        """The same table with `change` applied to the evaluation of every cell, and `fields` replaced.

        Where `change` returns a text, nothing is run for the cell any more, and the text says why.
        """

        def changed(cell: Cell) -> Cell:
            if cell.ours is None:
                return cell
            spec = change(cell.ours.spec)
            if isinstance(spec, str):
                return replace(cell, ours=None, why_not_ours=spec)
            return replace(cell, ours=replace(cell.ours, spec=spec))

        rows = tuple(
            replace(row, cells={key: changed(cell) for key, cell in row.cells.items()}) for row in self.rows
        )
        return replace(self, rows=rows, **fields)  # type: ignore[arg-type]

    def select(self, rows: str = "*", columns: str = "*") -> Table:
        """The rows whose label and the columns whose key match a glob (comma-separated globs: any of them).

        Raises:
            LookupError: a glob matches nothing; the message names what is there.
        """
        kept_rows = tuple(
            row for row in self.rows if row.label in _matching("row", rows, [row.label for row in self.rows])
        )
        kept_columns = tuple(
            column
            for column in self.columns
            if column.key in _matching("column", columns, [c.key for c in self.columns])
        )
        if len(kept_rows) == len(self.rows) and len(kept_columns) == len(self.columns):
            return self
        keys = {column.key for column in kept_columns}
        trimmed = tuple(
            replace(row, cells={key: cell for key, cell in row.cells.items() if key in keys})
            for row in kept_rows
        )
        whole = self.whole or self
        cut = {"rows": (len(kept_rows), len(whole.rows)), "columns": (len(kept_columns), len(whole.columns))}
        left_out = " and ".join(
            f"{total - kept} of {total} {kind}" for kind, (kept, total) in cut.items() if kept < total
        )
        return replace(self, rows=trimmed, columns=kept_columns, left_out=left_out, whole=whole)

    def values(self, number: Callable[[str, str], float | None]) -> Values:
        """What a claim asks for its numbers; `number` gives the one of a cell that the table has, or None.

        The result raises MissingNumberError for a number that is not there and for a row or column that was
        cut away, and LookupError for one that the table never had.
        """
        whole = self.whole or self

        def look_up(label: str, key: str) -> float:
            for kind, asked, known in (
                ("row", label, [r.label for r in whole.rows]),
                ("column", key, [c.key for c in whole.columns]),
            ):
                if asked not in known:
                    raise LookupError(f"A claim of {self.name}: {unknown(kind, asked, known)}")
            here = label in {row.label for row in self.rows} and key in {
                column.key for column in self.columns
            }
            found = number(label, key) if here else None
            if found is None:
                raise MissingNumberError(f"{self.name} has no number in row '{label}', column '{key}'.")
            return found

        return look_up

    def judge_paper(self) -> tuple[Verdict, ...]:
        """Every claim on the paper's own printed numbers, whatever was cut away."""
        whole = self.whole or self

        def printed(label: str, key: str) -> float | None:
            paper = whole.cell(label, key).paper
            return None if paper is None or paper.value is None else float(paper.value)

        return tuple(claim.judge(whole.values(printed)) for claim in self.claims)


def _matching(kind: str, globs: str, names: list[str]) -> set[str]:
    """The names that one of the comma-separated `globs` matches; brackets are literal, and a name given
    exactly matches itself."""
    if globs in names:
        return {globs}
    found: set[str] = set()
    for glob in (part.strip() for part in globs.split(",")):
        matched = {name for name in names if fnmatchcase(name, glob.replace("[", "[[]"))}
        if not matched:
            raise NotFoundError(unknown(kind, glob, names))
        found |= matched
    return found
