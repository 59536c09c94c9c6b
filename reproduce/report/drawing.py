"""A drawing as plain data: panels with their numbers, which `tableN.json` contains and `figures.py` draws.

    drawing = from_json(data)
    check(drawing)

The same drawing gives the same file, on each machine and without a tracking store. Text is markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MOST_STRIPS, MOST_PANELS, MOST_SERIES, MOST_POINTS, MOST_NAMES = 12, 6, 24, 2000, 200
"""Maximum numbers of a drawing's parts, each within the one before; a file from elsewhere may contain any."""
LARGEST = 1e12
"""Largest number that is drawn."""
SMALLEST = 1e-30
"""Smallest number on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points with one colour, marker and dash."""

    label: str
    """Name in the legend."""
    style: int
    """Number of its colour, marker and dash."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    """Lower ends of the intervals of `y`; empty if the points have none."""
    high: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    """Text next to each point; empty if the points have none."""
    dashed: bool = False
    """True for a dashed line with open markers, as the paper's numbers have."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A heat map, line by line from the top."""

    colours: Literal["rising", "around zero"]
    values: tuple[tuple[float | None, ...], ...]
    """None where a number is missing."""
    texts: tuple[tuple[str, ...], ...]
    """Digits in each cell; a word or a dash where the number is missing."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    kind: Literal["lines", "points", "grid"]
    title: str = ""
    x_title: str = ""
    y_title: str = ""
    x_names: tuple[str, ...] = ()
    """Names of the places 0, 1, ... on the axis, in place of numbers."""
    y_names: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    grid: Grid | None = None
    log_x: bool = False
    log_y: bool = False
    diagonal: bool = False
    """True for a line where both axes have the same number."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Panels side by side, with one legend."""

    title: str = ""
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A whole figure."""

    strips: tuple[Strip, ...]


def from_json(data: Mapping[str, Any]) -> Drawing:
    """Return the drawing whose fields were written to a file.

    Raises:
        KeyError, TypeError: another version wrote the data.
    """
    strips = (
        Strip(title=strip["title"], panels=tuple(_panel(panel) for panel in strip["panels"]))
        for strip in data["strips"]
    )
    return Drawing(strips=tuple(strips))


def _panel(data: Mapping[str, Any]) -> Panel:
    series = tuple(Series(**_tuples(each)) for each in data["series"])
    grid = data["grid"] and Grid(
        **data["grid"]
        | {key: tuple(tuple(line) for line in data["grid"][key]) for key in ("values", "texts")}
    )
    return Panel(**_tuples(data) | {"series": series, "grid": grid})


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def check(drawing: Drawing) -> None:
    """Raise ValueError for a drawing whose parts do not fit together, so that it cannot be drawn."""
    _most(drawing.strips, MOST_STRIPS)
    for strip in drawing.strips:
        _most(strip.panels, MOST_PANELS)
        for panel in strip.panels:
            _check_panel(panel)


def _check_panel(panel: Panel) -> None:
    if (panel.kind == "grid") != (panel.grid is not None) or (panel.grid is None) != bool(panel.series):
        raise ValueError(f"a figure's panel of the kind '{panel.kind}' has other parts")
    if panel.grid is not None:
        wanted = [len(panel.x_names)] * len(panel.y_names)
        for lines in (panel.grid.values, panel.grid.texts):
            if [len(line) for line in lines] != wanted:
                raise ValueError("a heat map has cells without names")
        _check_numbers((value for line in panel.grid.values for value in line if value is not None), False)
    _most(panel.x_names or ("",), MOST_NAMES)
    _most(panel.y_names or ("",), MOST_NAMES)
    _most(panel.series or ("",), MOST_SERIES)
    for series in panel.series:
        _most(series.x, MOST_POINTS)
        for each in (series.y, series.low or series.x, series.high or series.x, series.texts or series.x):
            if len(each) != len(series.x):
                raise ValueError(f"the points of '{series.label}' have different numbers of coordinates")
        if not 0 <= series.style < MOST_SERIES or bool(series.low) != bool(series.high):
            raise ValueError(f"'{series.label}' has an unknown style or half an interval")
        _check_numbers(series.x, panel.log_x)
        _check_numbers((*series.y, *series.low, *series.high), panel.log_y)


def _most(parts: Sequence[object], most: int) -> None:
    if not 1 <= len(parts) <= most:
        raise ValueError(f"a figure has {len(parts)} parts where 1 to {most} are drawn")


def _check_numbers(numbers: Iterable[float], log: bool) -> None:
    for number in numbers:
        if not math.isfinite(number) or abs(number) > LARGEST or (log and number < SMALLEST):
            raise ValueError(f"a figure has the number {number}")
