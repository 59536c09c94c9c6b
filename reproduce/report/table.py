"""A table as data: the numbers that the paper printed, the runs that give ours, and the paper's claims.

    Table(name="table8", title=..., columns=(Column(key="acc", ...),), rows=(Row(label="BYOL", ...), ...),
          claims=(Claim(...), ...))

A table is a plan: `table.specs(seeds)` returns the runs that fill it. A mistake in a table raises an error at
its construction, before anything runs. Text in titles, labels and notes is plain Unicode, with mathematics
between dollar signs (`$\\lambda_b$`); each renderer escapes and translates it in one place. Imports only the
standard library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from reproduce.messages import NotFoundError, unknown
from reproduce.nn.weights import Weights
from reproduce.report.claim import Claim, MissingNumberError, PaperVerdict
from reproduce.report.plots import Plot
from reproduce.spec import Evaluate, Spec


@dataclass(frozen=True)
class Margin:
    """Largest difference from the paper's numbers that counts as none, declared before anything is run."""

    value: float
    """In the units of print."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measured quantity."""

    key: str
    """Name for `--columns`, the JSON and the claims; unique in the table."""
    title: str
    group: str = ""
    """Heading over neighbouring columns, such as the name of the data set."""
    unit: str = "%"
    """`%` for fractions, which are printed times 100; empty for values that are printed as they are."""
    digits: int = 2
    """Decimals of our own numbers; the paper's are printed with its own digits."""
    better: Literal["higher", "lower", ""] = "higher"
    """Extreme that is printed in bold; none if empty."""
    margin: Margin | None = None
    """Difference from the paper's number that counts as none; None if no spread over seeds is published for
    this protocol, so that none can be declared."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A number exactly as the paper printed it, or the reason why it printed none."""

    value: str | None
    """Digits as printed, such as `74.60`; None if the paper has no number there, for the reason in `note`."""
    note: str = ""
    """Footnote: a dagger's text, a doubt with its source, or the reason for a missing number."""
    emphasis: Literal["bold", "underline", ""] = ""
    """Emphasis as printed."""

    def __post_init__(self) -> None:
        if self.value is not None:
            float(self.value)
        elif not self.note:
            raise ValueError("Reported(value=None) needs a note: the reason why the paper has no number.")


RESERVED = ("claims", "index", "report", "runs")
"""Names of the reports' files that are not a table's."""


BASELINES, ADDED = "baselines=", "row "
"""Beginnings of the changes that set nothing: the choice of baselines, and a row of the user."""


class UnknownMetricError(LookupError):
    """A cell shows a metric that its protocol does not return."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number of ours: a metric of an evaluation, one run for each seed."""

    spec: Evaluate
    metric: str
    """One of `spec.protocol.metrics`."""

    def __post_init__(self) -> None:
        protocol = self.spec.protocol
        if self.metric not in protocol.metrics:
            kind = f"metric of {protocol.name}"
            raise UnknownMetricError(unknown(kind, self.metric, protocol.metrics))

    def runs(self, seeds: int) -> tuple[Evaluate, ...]:
        """Return the evaluation at seeds 0 to `seeds` - 1."""
        return self.spec.at_seeds(seeds)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The paper's number and ours; either may be absent."""

    paper: Reported | None = None
    ours: Measured | None = None
    released: Measured | None = None
    """Replacement for a missing `ours` with `--baselines released`: the encoder that the authors released."""
    trained: Measured | str | None = None
    """Replacement for a missing `ours` with `--baselines trained`: the method, trained in this suite, or the
    reason why it is not trained."""
    why_not_ours: str = ""
    """Reason why this suite runs nothing for the cell, if that is so."""
    setting: float | None = None
    """Setting of ours that is printed as our number, in place of a measurement (Table 9); it has no runs."""

    def __post_init__(self) -> None:
        if self.ours is not None and self.setting is not None:
            raise ValueError("A cell of ours is a measurement or a setting, not both: leave out one.")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    label: str
    """Name for `--rows` and the claims; unique in the table."""
    cells: Mapping[str, Cell]
    """Cells by column key; a column without a cell has neither number."""
    shown: str = ""
    """Printed name of the row, if the label repeats the text of `facts`; the label if empty."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Descriptive columns by title, such as the backbone or the batch size; the same titles in every row."""
    note: str = ""
    """Footnote of the row."""
    recipe: str = ""
    """Footnote of the row with `--baselines trained`: the recipe, and where it is not that of the printed
    number."""
    added: bool = False
    """Mark of a row that is ours, in a table of the paper."""
    rule_before: bool = False
    """Horizontal rule above the row."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper, or one of your own."""

    name: str
    """Name of the module and of the task: `table8`."""
    number: str = ""
    """Number in the paper: `8`, or `6 and 13`; empty if the table is not from the paper."""
    title: str
    """Content of the table, in one sentence."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    figures: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    """Footnotes to the table as a whole (errata, choices)."""
    row_title: str = "Method"
    alpha: float = 0.05
    """Significance level of the verdicts, between 0 and 1; intervals have a confidence of 1 - alpha."""
    measure: Callable[[Weights], Mapping[str, Measured]] | None = None
    """Cells of an added row for a user's encoder, by column key; None if a row needs several encoders."""
    scale: str = "paper"
    changes: tuple[str, ...] = ()
    """`key=value` of every setting that the command line changed."""
    left_out: str = ""
    """Rows and columns that `--rows` and `--columns` left out, in words."""
    whole: Table | None = None
    """The table before the selection: the claims are judged on all of the paper's numbers."""
    stand_in: str = ""
    """Replacement of the paper's data or network at this scale, as a sentence for the caption."""

    def __str__(self) -> str:
        """Return the name in messages: `Table 8`, or that of its task if it is not from the paper."""
        several = "" if self.number.isdigit() else "s"
        return f"Table{several} {self.number}" if self.number else self.name

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(
                f"{self.name}: alpha is {self.alpha}; a significance level lies between 0 and 1."
            )
        labels, keys = [row.label for row in self.rows], [column.key for column in self.columns]
        self._check_unique("row label", labels)
        self._check_unique("column key", keys)
        for row in self.rows:
            for key in row.cells:
                if key not in keys:
                    raise LookupError(f"{self.name}, row '{row.label}': {unknown('column', key, keys)}")
            if list(row.facts) != list(self.rows[0].facts):
                first = ", ".join(self.rows[0].facts) or "none"
                raise ValueError(
                    f"{self.name}, row '{row.label}': its facts are {', '.join(row.facts) or 'none'}, "
                    f"the first row's are {first}. All rows need the same."
                )
        self._check_unique("figure", [plot.name for plot in self.figures])
        if self.whole is None:
            self._check_claims()
            self._check_figures()

    def _check_unique(self, kind: str, names: Iterable[str]) -> None:
        repeated = [name for name, number in Counter(names).items() if number > 1]
        if repeated:
            raise ValueError(f"{self.name} has more than one {kind} '{repeated[0]}': each must be unique.")

    def _check_claims(self) -> None:
        """Raise LookupError for a claim about an unknown row or column."""
        labels, keys = [row.label for row in self.rows], [column.key for column in self.columns]
        for claim in self.claims:
            for label, key in claim.cells():
                for kind, asked, known in (("row", label, labels), ("column", key, keys)):
                    if asked not in known:
                        raise LookupError(f"A claim of {self.name}: {unknown(kind, asked, known)}")

    def _check_figures(self) -> None:
        """Raise LookupError for a figure of an unknown row or column."""
        labels, keys = [row.label for row in self.rows], [column.key for column in self.columns]
        for plot in self.figures:
            for kind, named, known in (("row", plot.rows(), labels), ("column", plot.columns(), keys)):
                for asked in named:
                    if asked not in known:
                        raise LookupError(
                            f"The figure '{plot.name}' of {self.name}: {unknown(kind, asked, known)}"
                        )

    def check_name(self, module: str) -> None:
        """Raise ValueError unless the table has the name of its module: `table8` in tables/table8.py."""
        if self.name in RESERVED:
            raise ValueError(
                f"tables/{module}.py: the reports have a file '{self.name}' of their own: rename it."
            )
        if self.name != module:
            raise ValueError(f"tables/{module}.py returns a table named '{self.name}': name it '{module}'.")

    def cell(self, label: str, key: str) -> Cell:
        """Return the cell at a row's label and a column's key, or an empty one if the row has none."""
        return next(row for row in self.rows if row.label == label).cells.get(key, Cell())

    def measured(self) -> Iterator[tuple[Row, Column, Measured]]:
        """Yield every cell that a run of ours fills."""
        for row in self.rows:
            for column in self.columns:
                ours = row.cells.get(column.key, Cell()).ours
                if ours is not None:
                    yield row, column, ours

    def specs(self, seeds: int) -> tuple[Spec, ...]:
        """Return every run that the table needs, upstream first, each once."""
        found: dict[str, Spec] = {}
        for _, _, ours in self.measured():
            for run in ours.runs(seeds):
                needed: tuple[Spec, ...] = (*run.needs(), run)
                found |= {spec.id: spec for spec in needed if spec.id not in found}
        return tuple(found.values())

    def map(self, change: Callable[[Evaluate], Evaluate | str], **fields: Any) -> Table:
        """Return the table with `change` applied to the evaluation of every cell, and `fields` replaced.

        If `change` returns a text, nothing runs for the cell, and the text is the reason.
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
        return replace(self, rows=rows, **fields)

    def select(self, rows: str = "*", columns: str = "*") -> Table:
        """Return the rows whose label and the columns whose key match a glob, or one of several with commas.

        Raises:
            NotFoundError: A glob matches nothing; the message lists the names.
        """
        labels = _matching("row", rows, [row.label for row in self.rows])
        keys = _matching("column", columns, [column.key for column in self.columns])
        kept_rows = tuple(row for row in self.rows if row.label in labels)
        kept_columns = tuple(column for column in self.columns if column.key in keys)
        if len(kept_rows) == len(self.rows) and len(kept_columns) == len(self.columns):
            return self
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

    def printed(self, label: str, key: str) -> float:
        """Return the paper's number in a cell, also of a row or column that was left out.

        Raises:
            MissingNumberError: the paper has none there.
        """
        paper = (self.whole or self).cell(label, key).paper
        if paper is None or paper.value is None:
            raise MissingNumberError(f"The paper has no number in row '{label}', column '{key}'.")
        return float(paper.value)

    def judge_paper(self) -> tuple[PaperVerdict, ...]:
        """Judge every claim on the paper's own printed numbers, those of rows that were left out too."""
        return tuple(claim.judge(self.printed) for claim in self.claims)


def settings_in(changes: Iterable[str]) -> list[str]:
    """Return the settings among a table's changes: neither the choice of baselines nor an added row."""
    return [change for change in changes if not change.startswith((BASELINES, ADDED))]


def baselines_in(changes: Iterable[str]) -> str:
    """Return the choice of `--baselines` among a table's changes."""
    chosen = (change.removeprefix(BASELINES) for change in changes if change.startswith(BASELINES))
    return next(chosen, "quoted")


def _matching(kind: str, globs: str, names: list[str]) -> set[str]:
    """Return the names that one of the comma-separated `globs` matches.

    Brackets are literal, and a name that is given exactly matches itself.
    """
    if globs in names:
        return {globs}
    found: set[str] = set()
    for glob in (part.strip() for part in globs.split(",")):
        matched = {name for name in names if fnmatchcase(name, glob.replace("[", "[[]"))}
        if not matched:
            raise NotFoundError(unknown(kind, glob, names))
        found |= matched
    return found
