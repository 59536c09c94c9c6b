"""Figures of a table as data: what each shows, like the claims.

    Table(..., figures=(Agreement(), HeatMaps(name="lambdas", title=..., x_title=..., cells={...})))

A figure names rows by their labels and columns by their keys. `illustrate.py` looks up the numbers, and
`figures.py` draws. Text is markup. Imports only the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""Names of figures, which become part of the names of files."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The part that all figures share."""

    name: str
    """Name in the table, such as `curves`: its files are `figures/table8-curves.svg` and `.png`."""
    title: str
    """Caption, without a full stop at its end."""
    note: str = ""
    """Full sentences after the caption."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"A figure is named {self.name!r}: use lower-case words with hyphens.")

    def rows(self) -> Iterator[str]:
        """Yield the label of every row that the figure names."""
        return iter(())

    def columns(self) -> Iterator[str]:
        """Yield the key of every column that the figure names."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class Agreement(Plot):
    """The paper's numbers against ours, over all cells that have both."""

    name: str = "agreement"
    title: str = "The paper's numbers against ours, over all cells that have both"


@dataclass(frozen=True, kw_only=True)
class HeatMaps(Plot):
    """Each column as heat maps over two settings: the paper's numbers, ours, and the difference."""

    x_title: str
    y_title: str
    cells: Mapping[str, tuple[str, str]]
    """Value of both settings, x and y, by the label of the row."""

    def rows(self) -> Iterator[str]:
        yield from self.cells


@dataclass(frozen=True, kw_only=True)
class Views(Plot):
    """A column over the number of views K, and the GPU-hours of the trainings."""

    column: str
    lines: Mapping[str, Mapping[int, str]]
    """Label of the row by K, for each line; a line has a name."""

    def rows(self) -> Iterator[str]:
        for line in self.lines.values():
            yield from line.values()

    def columns(self) -> Iterator[str]:
        yield self.column


@dataclass(frozen=True, kw_only=True)
class Plane(Plot):
    """Rows as points over two columns; a third column is written at each point."""

    x: str
    y: str
    text: str
    lines: Mapping[str, str]
    """Name of each row by its label."""

    def rows(self) -> Iterator[str]:
        yield from self.lines

    def columns(self) -> Iterator[str]:
        yield from (self.x, self.y, self.text)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One measurement of pretraining over the steps."""

    metric: str
    """Name in the tracking store."""
    title: str
    log: bool = False
    """True for a logarithmic axis."""
    percent: bool = False
    """True for a share that is drawn in per cent."""

    @property
    def heading(self) -> str:
        """Title with its unit."""
        return f"{self.title} (%)" if self.percent else self.title


@dataclass(frozen=True, kw_only=True)
class Curves(Plot):
    """Measurements of the pretrainings behind some rows."""

    curves: tuple[Curve, ...]
    strips: Mapping[str, Mapping[str, str]]
    """Rows that share axes: the name of each by its label, for each title."""
    x_title: str = "step"
    log_x: bool = False
    """True for a logarithmic axis."""

    def rows(self) -> Iterator[str]:
        for strip in self.strips.values():
            yield from strip


@dataclass(frozen=True, kw_only=True)
class Classes(Plot):
    """Average precision by class of the detectors behind some rows."""

    parts: Mapping[str, str]
    """Title of the panel by the prefix of its metrics in the tracking store, such as `box_ap_class/`."""
    column: str
    """Key of a column whose evaluations logged them."""
    lines: Mapping[str, str] = field(default_factory=dict)
    """Name of each row by its label."""

    def rows(self) -> Iterator[str]:
        yield from self.lines

    def columns(self) -> Iterator[str]:
        yield self.column
