"""The figures of a filled table, from its numbers and from the measurements of its runs.

    filled = illustrate(table, filled, seeds, finished, store.histories)

A number that is missing is left out of its figure, and the caption names it with the reason. A figure without
numbers is not drawn; `Filled.not_drawn` has the reason. Curves are those of the first finished seed, and each
of their points was logged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from reproduce.messages import counted
from reproduce.report.drawing import LARGEST, SMALLEST, Drawing, Grid, Panel, Series, Strip
from reproduce.report.filled import Filled, FilledCell, FilledRow, Illustration
from reproduce.report.markup import literal, plain
from reproduce.report.observe import Finished
from reproduce.report.plots import Agreement, Classes, Curves, HeatMaps, Plane, Plot, Views
from reproduce.report.record import Records, no_records
from reproduce.report.stats import printed
from reproduce.report.table import Column, Table
from reproduce.spec import Evaluate, Pretrain

History = Sequence[tuple[int, float]]
"""Steps and values of a measurement, in order of steps."""
Histories = Callable[[Collection[str], Collection[str]], Mapping[str, Mapping[str, History]]]
"""Function that returns the histories of runs by run id and name. It takes the ids of the runs in the
tracking store, and names; a `*` at the end of a name stands for any text."""

MOST_POINTS = 100
"""Maximum number of points of a curve: the first, the last and points at equal distances between them."""
DIGITS = 6
"""Significant digits of the points of a curve."""
SPEED = "images_per_second"
"""Measurement of pretraining, over all devices of the run."""
DASH, ILLEGIBLE = "–", "?"
"""Texts of cells without a number: nothing is known, and the paper has a number that cannot be read."""
MISSING, HOUR = "missing", 3600
HIGHEST = 45
"""Maximum number of names on a vertical axis."""
MANY = 12
"""Maximum number of cells that an alternative text lists."""


class NothingToDrawError(Exception):
    """A figure has no numbers; the message is the reason, as markup."""


@dataclass(frozen=True)
class _Material:
    """Everything that the figures of one table are made from."""

    table: Table
    filled: Filled
    seeds: int
    finished: Mapping[str, Finished]
    histories: Mapping[str, Mapping[str, History]]
    records: Records

    def row(self, label: str) -> FilledRow | None:
        """Return a row by its label; None if `--rows` left it out."""
        return next((row for row in self.filled.rows if row.label == label), None)

    def cell(self, label: str, key: str) -> FilledCell | None:
        row = self.row(label)
        return None if row is None else row.cells.get(key)


def no_histories(
    runs: Collection[str], names: Collection[str]
) -> Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]:
    """Return no history of any run."""
    return {}


def illustrate(
    table: Table,
    filled: Filled,
    seeds: int,
    finished: Mapping[str, Finished],
    histories: Histories,
    records: Records = no_records,
) -> Filled:
    """Return the table with its figures.

    Args:
        finished: finished runs by spec id, pretrainings included.
        records: returns the records of runs, which have their numbers of devices.
    """
    wanted = sorted({name for plot in table.figures for name in _names(plot)})
    runs = sorted(set(sources(table, seeds, finished).values()))
    found = histories(runs, wanted) if runs and wanted else {}
    material = _Material(table, filled, seeds, finished, found, records)
    figures, not_drawn = [], []
    for plot in table.figures:
        try:
            drawing, notes, alternative = _drawn(plot, material)
        except NothingToDrawError as error:
            not_drawn.append(f"{plot.title}: {error}.")
            continue
        caption = " ".join([f"{plot.title} ({filled.scale} scale).", *filter(None, [plot.note, *notes])])
        figures.append(
            Illustration(
                name=f"{table.name}-{plot.name}", title=caption, alternative=alternative, drawing=drawing
            )
        )
    return replace(filled, figures=tuple(figures), not_drawn=tuple(not_drawn))


def sources(table: Table, seeds: int, finished: Mapping[str, Finished]) -> dict[str, str]:
    """Return the ids of the runs whose histories the figures show, by `<figure> <row>`."""
    return {
        f"{plot.name} {label}": run
        for plot in table.figures
        if _names(plot)
        for label in dict.fromkeys(plot.rows())
        if (run := _run_of(table, plot, label, seeds, finished))
    }


def _names(plot: Plot) -> list[str]:
    """Return the names of the measurements that a figure shows."""
    if isinstance(plot, Curves):
        return [curve.metric for curve in plot.curves]
    if isinstance(plot, Classes):
        return [f"{prefix}*" for prefix in plot.parts]
    return [SPEED] if isinstance(plot, Views) else []


def _run_of(table: Table, plot: Plot, label: str, seeds: int, finished: Mapping[str, Finished]) -> str | None:
    """Return the id of the run whose history a figure shows for a row: the first finished seed's.

    It is the evaluation for average precision by class, and the pretraining otherwise.
    """
    for spec in _evaluations(table, plot, label, seeds):
        shown = spec if isinstance(plot, Classes) else spec.encoder
        if spec.id in finished and shown.id in finished:
            return finished[shown.id].run_id
    return None


def _evaluations(table: Table, plot: Plot, label: str, seeds: int) -> Iterator[Evaluate]:
    """Yield the evaluations behind a row, by seed: those of the figure's columns, or of any."""
    keys = set(plot.columns())
    for row, column, ours in table.measured():
        has_history = isinstance(plot, Classes) or isinstance(ours.spec.encoder, Pretrain)
        if row.label == label and (not keys or column.key in keys) and has_history:
            yield from ours.runs(seeds)


def _drawn(plot: Plot, material: _Material) -> tuple[Drawing, list[str], str]:
    """Return a figure, the sentences of its caption after the note, and its alternative text.

    Raises:
        NothingToDrawError: it has no numbers.
    """
    for kind, draw in DRAWERS.items():
        if isinstance(plot, kind):
            done: tuple[Drawing, list[str], str] = draw(plot, material)
            return done
    raise TypeError(f"{type(plot).__name__} is not a kind of figure")


# Numbers of the table
# ------------------------------------------------------------------------------------------------------------


def _agreement(plot: Agreement, material: _Material) -> tuple[Drawing, list[str], str]:
    filled = material.filled
    panels, words, number = [], [], 0
    own = any(_is_own(row) for row in filled.rows)
    for unit, group in _by_unit(filled.columns):
        series: list[Series] = []
        for column in group:
            cells = [(row, row.cells[column.key]) for row in filled.rows]
            both = [(row, cell) for row, cell in cells if cell.paper is not None and cell.value is not None]
            if not both:
                continue
            whole = any(cell.interval for _, cell in both)
            style = len({each.style for each in series})
            for open_points in (True, False):
                some = [cell for row, cell in both if open_points == (own and not _is_own(row))]
                ends = [cell.interval or (cell.value or 0.0, cell.value or 0.0) for cell in some]
                if some:
                    series.append(
                        Series(
                            label=_heading(column),
                            style=style,
                            x=tuple(float(cell.paper or 0) for cell in some),
                            y=tuple(cell.value or 0.0 for cell in some),
                            low=tuple(low for low, _ in ends) if whole else (),
                            high=tuple(high for _, high in ends) if whole else (),
                            dashed=open_points,
                        )
                    )
            number += len(both)
            words.append(_pairs(column, both, filled.scale))
        if series:
            alone = f"{_heading(group[0])}, " if len(group) == 1 else ""
            panels.append(
                Panel(
                    kind="points",
                    x_title=f"{alone}paper{_unit(unit)}",
                    y_title=f"{alone}ours{_unit(unit)}",
                    series=tuple(series),
                    diagonal=filled.scale == "paper",
                )
            )
    if number < 2:
        raise NothingToDrawError(f"at least two cells with both numbers are needed, and there are {number}")
    notes = ["On the line, both are equal." if filled.scale == "paper" else _not_comparable(filled.scale)]
    if own:
        notes.append("Filled points are MSBReg's (ours in the table), open ones the other rows'.")
    if any(series.low for panel in panels for series in panel.series):
        notes.append(f"Bars are {100 * (1 - filled.alpha):.10g} % intervals over training seeds.")
    words = [f"{counted(number, 'cell')}.", *words]
    return Drawing(strips=(Strip(panels=tuple(panels)),)), notes, " ".join(words)


def _is_own(row: FilledRow) -> bool:
    """Return True for a row of the method that the paper proposes."""
    return row.label.startswith("Ours")


def _pairs(column: Column, both: Sequence[tuple[FilledRow, FilledCell]], scale: str) -> str:
    """Return the paper's number and ours in each cell, or their ranges, as a sentence."""
    digits = column.digits

    def pair(row: FilledRow, cell: FilledCell) -> str:
        return f"{_name(row)} {cell.paper} and {printed(cell.value or 0.0, digits)}"

    name = plain(_heading(column))
    if len(both) <= MANY:
        return f"{name}, paper and ours: {'; '.join(pair(*each) for each in both)}."
    papers, ours = ([key(cell) for _, cell in both] for key in (_paper, _ours))
    words = (
        f"{name}: paper {min(papers):g} to {max(papers):g}, ours {printed(min(ours), digits)} to "
        f"{printed(max(ours), digits)}."
    )
    if scale == "paper":
        row, cell = max(both, key=lambda each: abs(_ours(each[1]) - _paper(each[1])))
        words += f" Furthest apart: {pair(row, cell)}."
    return words


def _paper(cell: FilledCell) -> float:
    return float(cell.paper or math.nan)


def _ours(cell: FilledCell) -> float:
    return math.nan if cell.value is None else cell.value


def _by_unit(columns: Iterable[Column]) -> Iterator[tuple[str, list[Column]]]:
    """Yield the columns in per cent together, then each other column alone."""
    rest = sorted(columns, key=lambda column: column.unit != "%")
    for unit, group in groupby(rest, lambda column: column.unit if column.unit == "%" else column.key):
        yield ("%" if unit == "%" else ""), list(group)


def _heat_maps(plot: HeatMaps, material: _Material) -> tuple[Drawing, list[str], str]:
    filled = material.filled
    xs, ys = (tuple(dict.fromkeys(place[axis] for place in plot.cells.values())) for axis in (0, 1))
    at = {place: label for label, place in plot.cells.items()}
    strips, words, lost = [], [], False
    for column in filled.columns:
        cells = {(x, y): material.cell(at[x, y], column.key) for x in xs for y in ys if (x, y) in at}
        sides: dict[str, dict[tuple[str, str], tuple[float | None, str]]] = {"paper": {}, "ours": {}}
        for place, cell in cells.items():
            paper = None if cell is None else cell.paper
            unread = cell is not None and paper is None and "egible" in (cell.paper_note or "")
            lost = lost or unread
            sides["paper"][place] = (
                None if paper is None else float(paper),
                paper or (ILLEGIBLE if unread else DASH),
            )
            ours = None if cell is None else cell.value
            sides["ours"][place] = (ours, DASH if ours is None else printed(ours, column.digits))
        if filled.scale == "paper":
            sides["ours − paper"] = {
                place: _difference(sides["ours"][place][0], sides["paper"][place][0], column.digits)
                for place in cells
            }
        panels = []
        for side, numbers in sides.items():
            if all(value is None for value, _ in numbers.values()):
                continue
            nothing: tuple[float | None, str] = (None, DASH)
            lines = [[numbers.get((x, y), nothing) for x in xs] for y in ys]
            panels.append(
                Panel(
                    kind="grid",
                    title=f"{column.title}, {side}",
                    x_title=plot.x_title,
                    y_title=plot.y_title,
                    x_names=xs,
                    y_names=ys,
                    grid=Grid(
                        colours="rising" if side in ("paper", "ours") else "around zero",
                        values=tuple(tuple(value for value, _ in line) for line in lines),
                        texts=tuple(tuple(text for _, text in line) for line in lines),
                    ),
                )
            )
            words.append(_extremes(f"{plain(column.title)}, {side}", numbers, plot))
        if panels:
            strips.append(Strip(panels=tuple(panels)))
    if not any(panel.title.endswith("ours") for strip in strips for panel in strip.panels):
        raise NothingToDrawError("no cell of ours is filled")
    notes = ["Each map has its own range of colours; lighter is higher."]
    if filled.scale != "paper":
        notes.append(_not_comparable(filled.scale) + " The difference is drawn at paper scale only.")
    notes.append(
        f"{DASH} is a missing number or a row that is left out"
        + (f", {ILLEGIBLE} an illegible one." if lost else ".")
    )
    return Drawing(strips=tuple(strips)), notes, " ".join(words)


def _difference(ours: float | None, paper: float | None, digits: int) -> tuple[float | None, str]:
    if ours is None or paper is None:
        return None, DASH
    text = printed(ours - paper, digits)
    return ours - paper, text if text.startswith("-") or float(text) == 0 else f"+{text}"


def _extremes(name: str, numbers: Mapping[tuple[str, str], tuple[float | None, str]], plot: HeatMaps) -> str:
    """Return the largest and the smallest number of a heat map with their places, as a sentence."""
    known = {place: (value, text) for place, (value, text) in numbers.items() if value is not None}

    def place_of(x: str, y: str) -> str:
        return f"{plain(plot.x_title)} {x}, {plain(plot.y_title)} {y}"

    (least, (_, low)), *_ = sorted(known.items(), key=lambda each: each[1][0])
    *_, (most, (_, high)) = sorted(known.items(), key=lambda each: each[1][0])
    gaps = [place_of(*place) for place in numbers if place not in known]
    words = f"{name}: from {low} ({place_of(*least)}) to {high} ({place_of(*most)})"
    if len(gaps) > MANY:
        return f"{words}; {len(gaps)} of {len(numbers)} {MISSING}."
    return f"{words}; {MISSING}: {'; '.join(gaps)}." if gaps else f"{words}."


def _views(plot: Views, material: _Material) -> tuple[Drawing, list[str], str]:
    filled = material.filled
    column = next((each for each in filled.columns if each.key == plot.column), None)
    if column is None:
        raise NothingToDrawError("its column is left out")
    devices = _devices(plot, material)
    views = sorted({number for line in plot.lines.values() for number in line})
    found: dict[str, list[Series]] = {"paper": [], "ours": [], "hours": []}
    words = []
    for style, (name, line) in enumerate(plot.lines.items()):
        points: dict[str, dict[int, float]] = {"paper": {}, "ours": {}, "hours": {}}
        for number, label in line.items():
            cell = material.cell(label, plot.column)
            if cell is not None and cell.paper is not None:
                points["paper"][number] = float(cell.paper)
            if cell is not None and cell.value is not None:
                points["ours"][number] = cell.value
                if label in devices and (hours := _hours(plot, label, material)) is not None:
                    points["hours"][number] = hours * devices[label][0]
        for side, values in points.items():
            if not values:
                continue
            found[side].append(
                Series(
                    label=name,
                    style=style,
                    x=tuple(float(views.index(number)) for number in values),
                    y=tuple(_short(value) for value in values.values()),
                )
            )
            # Times differ from machine to machine. Without them, the reports of equal runs are equal.
            if side != "hours":
                shown = ", ".join(
                    f"{printed(value, column.digits)} at K = {number}" for number, value in values.items()
                )
                words.append(f"{plain(name)}, {side}: {shown}.")
    if not found["ours"]:
        raise NothingToDrawError("no cell of ours is filled")
    kinds = {kind for _, kind in devices.values()}
    if len(kinds) > 1:
        found["hours"] = []
    longest = max((max(series.y) for series in found["hours"]), default=0.0)
    if longest < 1:
        found["hours"] = [
            replace(series, y=tuple(_short(60 * hours) for hours in series.y)) for series in found["hours"]
        ]
    titles = {
        "paper": column.title,
        "ours": column.title,
        "hours": f"{next(iter(kinds), '')}-{'hours' if longest >= 1 else 'minutes'}",
    }
    heads = {"paper": "paper", "ours": "ours", "hours": "cost of training"}
    panels = tuple(
        Panel(
            kind="lines",
            title=heads[side],
            x_title="$K$",
            y_title=titles[side],
            x_names=tuple(map(str, views)),
            series=tuple(each),
        )
        for side, each in found.items()
        if each
    )
    notes = [_not_comparable(filled.scale)] if filled.scale != "paper" and found["paper"] else []
    notes.append(
        "The cost of training is that of one run, by its logged images per second and its number of devices. "
        f"{filled.table}.json has the numbers."
        if found["hours"]
        else "The cost of training is not drawn: the runs have not logged their speed and one kind of device."
    )
    return Drawing(strips=(Strip(panels=panels),)), notes, " ".join(words)


def _devices(plot: Views, material: _Material) -> dict[str, tuple[float, str]]:
    """Return the number and the kind of devices of the pretraining behind each row, where they are known.

    Runs that share a GPU divide it.
    """
    runs = {}
    for label in plot.rows():
        if material.row(label) and _run_of(material.table, plot, label, material.seeds, material.finished):
            specs = _evaluations(material.table, plot, label, material.seeds)
            runs[label] = next(spec.encoder.id for spec in specs if spec.encoder.id in material.finished)
    known = material.records(runs.values())
    found = {}
    for label, spec_id in runs.items():
        record = known.get(spec_id)
        if record and record.devices:
            found[label] = (record.devices / record.sharing, "GPU" if record.kind == "GPU" else "core")
    return found


def _hours(plot: Views, label: str, material: _Material) -> float | None:
    """Return the duration of a pretraining in hours by its logged speed; None if that is not known."""
    run = _run_of(material.table, plot, label, material.seeds, material.finished)
    points = material.histories.get(run or "", {}).get(SPEED, ())
    spec = next(_evaluations(material.table, plot, label, material.seeds)).encoder
    if not points or not isinstance(spec, Pretrain) or any(not value > 0 for _, value in points):
        return None
    seconds, before = 0.0, 0
    for step, images_per_second in points:
        seconds += (step - before) * spec.batch_size / images_per_second
        before = step
    return seconds / HOUR


def _plane(plot: Plane, material: _Material) -> tuple[Drawing, list[str], str]:
    filled = material.filled
    columns = {column.key: column for column in filled.columns}
    if plot.x not in columns or plot.y not in columns:
        raise NothingToDrawError("one of its columns is left out")
    panels, words, missing = [], [], []
    for side, number in (("paper", _paper), ("ours", _ours)):
        series = []
        for style, (label, name) in enumerate(plot.lines.items()):
            row = material.row(label)
            if row is None:
                continue
            x, y = number(row.cells[plot.x]), number(row.cells[plot.y])
            if not (math.isfinite(x) and math.isfinite(y)):
                missing += [f"{name} ({side})"]
                continue
            text = number(row.cells[plot.text]) if plot.text in columns else math.nan
            digits = columns[plot.text].digits if plot.text in columns else 0
            shown = printed(text, digits) if math.isfinite(text) else ""
            series.append(Series(label=name, style=style, x=(x,), y=(y,), texts=(shown,)))
            also = f", {plain(columns[plot.text].title)} {shown}" if shown else ""
            words.append(f"{plain(name)}, {side}: {plain(columns[plot.x].title)} {x:.4g}, ")
            words[-1] += f"{plain(columns[plot.y].title)} {y:.4g}{also}."
        if series:
            panels.append(
                Panel(
                    kind="points",
                    title=side,
                    x_title=columns[plot.x].title,
                    y_title=columns[plot.y].title,
                    series=tuple(series),
                )
            )
    if not panels or panels[-1].title != "ours":
        raise NothingToDrawError("no row of ours has both numbers")
    notes = [_not_comparable(filled.scale)] if filled.scale != "paper" and len(panels) > 1 else []
    if plot.text in columns:
        notes.append(f"The number at a point is {columns[plot.text].title}.")
    notes += [f"Missing: {', '.join(missing)}."] if missing else []
    return Drawing(strips=(Strip(panels=tuple(panels)),)), notes, " ".join(words)


# Measurements of the runs
# ------------------------------------------------------------------------------------------------------------


def _curves(plot: Curves, material: _Material) -> tuple[Drawing, list[str], str]:
    strips, words = [], []
    absent = {curve.metric: curve.title for curve in plot.curves}
    without: dict[str, str] = {}
    for title, lines in plot.strips.items():
        runs = {}
        for label in lines:
            row = material.row(label)
            if row is None:
                continue
            run = _run_of(material.table, plot, label, material.seeds, material.finished)
            if run is None:
                without[_name(row)] = _why(row)
            else:
                runs[label] = material.histories.get(run, {})
        panels = []
        for curve in plot.curves:
            series = []
            for style, (label, name) in enumerate(lines.items()):
                logged = runs.get(label, {}).get(curve.metric, ())
                shown = [(step, 100 * value) for step, value in logged] if curve.percent else logged
                points = _thinned(shown, curve.log, plot.log_x)
                if not points:
                    continue
                xs, ys = zip(*points, strict=True)
                series.append(
                    Series(label=name, style=style, x=tuple(map(float, xs)), y=tuple(map(_short, ys)))
                )
                words.append(_course(f"{plain(title)}, {plain(name)}", plain(curve.heading), points))
            if series:
                absent.pop(curve.metric, None)
                panels.append(
                    Panel(
                        kind="lines",
                        title=curve.heading,
                        x_title=plot.x_title,
                        series=tuple(series),
                        log_x=plot.log_x,
                        log_y=curve.log,
                    )
                )
        if panels:
            strips.append(Strip(title=title, panels=tuple(panels)))
    if not strips:
        raise NothingToDrawError(
            f"no finished pretraining of these rows has logged {literal(', '.join(absent))}"
        )
    if len(plot.curves) == 1:
        side = (replace(strip.panels[0], title=strip.title, y_title=plot.curves[0].title) for strip in strips)
        strips = [Strip(panels=tuple(side))]
    notes = [f"Not logged by these runs: {', '.join(absent.values())}."] if absent else []
    if without:
        by_reason = ((why, [name for name in without if without[name] == why]) for why in _once(without))
        listed = "; ".join(f"{', '.join(names)} ({why.rstrip('.')})" for why, names in by_reason)
        notes.append(f"Not drawn: {literal(listed)}.")
    if material.seeds > 1:
        notes.append("Curves are those of the first finished seed.")
    return Drawing(strips=tuple(strips)), notes, " ".join(words)


def _once(reasons: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(reasons.values()))


def _why(row: FilledRow) -> str:
    """Return why a row has no finished run, in words."""
    return next(
        (cause for cell in row.cells.values() for cause in cell.causes), "its run is not in the store"
    )


def _course(name: str, title: str, points: History) -> str:
    """Return how a curve begins and ends, as a sentence."""
    (first, begin), (last, end) = points[0], points[-1]
    return f"{name}: {title} {begin:.3g} at {first}, {end:.3g} at {last}."


def _thinned(points: History, log_y: bool, log_x: bool) -> list[tuple[int, float]]:
    """Return at most MOST_POINTS points of a curve that can be drawn."""
    kept = [
        (step, value)
        for step, value in points
        if math.isfinite(value)
        and abs(value) <= LARGEST
        and not (log_y and value < SMALLEST)
        and not (log_x and step < 1)
    ]
    if len(kept) <= MOST_POINTS:
        return kept
    places = sorted({round(index * (len(kept) - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)})
    return [kept[place] for place in places]


def _classes(plot: Classes, material: _Material) -> tuple[Drawing, list[str], str]:
    strips, words = list[Strip](), []
    for prefix, title in plot.parts.items():
        found: dict[str, dict[str, float]] = {}
        for label in plot.lines:
            run = _run_of(material.table, plot, label, material.seeds, material.finished)
            if material.row(label) is None or run is None:
                continue
            logged = material.histories.get(run, {})
            found[label] = {
                key.removeprefix(prefix): points[-1][1]
                for key, points in logged.items()
                if key.startswith(prefix) and points and math.isfinite(points[-1][1])
            }
        names = sorted({name for values in found.values() for name in values}, reverse=True)
        series = tuple(
            Series(
                label=plot.lines[label],
                style=list(plot.lines).index(label),
                x=tuple(_short(100 * value) for value in values.values()),
                y=tuple(float(names.index(name)) for name in values),
            )
            for label, values in found.items()
            if values
        )
        if series:
            strips.append(Strip(panels=tuple(_by_columns(title, names, series))))
            words += [
                f"{plain(title)}, {plain(plot.lines[label])}: "
                + ", ".join(f"{name} {100 * values[name]:.1f}" for name in sorted(values))
                + "."
                for label, values in found.items()
                if values
            ]
    if not strips:
        raise NothingToDrawError("no finished run of ours has logged average precision by class")
    if all(len(strip.panels) == 1 for strip in strips):
        strips = [Strip(panels=tuple(strip.panels[0] for strip in strips))]
    return Drawing(strips=tuple(strips)), [], " ".join(words)


def _by_columns(title: str, names: Sequence[str], series: Sequence[Series]) -> Iterator[Panel]:
    """Yield the points over named places in panels of at most HIGHEST names, in order from the top left."""
    count = math.ceil(len(names) / HIGHEST)
    high = math.ceil(len(names) / count)
    for top in range(len(names), 0, -high):
        low = max(0, top - high)
        inside = [[at for at, y in enumerate(each.y) if low <= y < top] for each in series]
        yield Panel(
            kind="points",
            title=title,
            x_title="%",
            y_names=tuple(map(literal, names[low:top])),
            series=tuple(
                replace(each, x=tuple(each.x[i] for i in at), y=tuple(each.y[i] - low for i in at))
                for each, at in zip(series, inside, strict=True)
                if at
            ),
        )


# Words
# ------------------------------------------------------------------------------------------------------------


def _heading(column: Column) -> str:
    """Return the name of a column with its group, as markup."""
    return f"{column.group} {column.title}".strip()


def _unit(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _name(row: FilledRow) -> str:
    """Return the label of a row, which is unique, as plain text."""
    return row.label


def _not_comparable(scale: str) -> str:
    return f"The paper's numbers are not at {scale} scale, so the two are not comparable."


def _short(value: float) -> float:
    """Return a number of a curve with the digits that a drawing can show."""
    return float(f"{value:.{DIGITS}g}")


DRAWERS: Mapping[type[Plot], Callable[..., tuple[Drawing, list[str], str]]] = {
    Agreement: _agreement,
    HeatMaps: _heat_maps,
    Views: _views,
    Plane: _plane,
    Curves: _curves,
    Classes: _classes,
}
"""Function for each kind of figure."""
