"""Drawings as files: SVG for pages and print, PNG for Markdown and MLflow.

    svg, png = files("table8-curves", drawing, alternative)

The same drawing gives the same bytes on every machine: text is paths of the fonts that matplotlib contains,
and the user's own settings of matplotlib do not count. In the SVG, text and axes have `currentColor`, and the
background is transparent, so a page can include it in either colour scheme. As a file of its own it follows
the reader's scheme. The PNG is dark on white.

Lines differ in colour, in marker and in dash; the first four colours are those of Okabe and Ito (Color
universal design, 2008). Heat maps are cividis and, around zero, blue to orange; the colour-blind can
distinguish both. This module alone imports matplotlib.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from reproduce.report.drawing import Drawing, Grid, Panel, Series, Strip
from reproduce.report.markup import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = ("svg", "png")
WIDTH = 4.7
"""Inches: 450 pixels of a page, so that text is readable where a screen has 400 pixels."""
INK, INK_IN_THE_DARK, PAPER = "#1d1d1f", "#e8e6e1", "#ffffff"
"""Colours of text and axes, and the background of the PNG."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a67c00", "#808080", INK)
"""Colours of lines and points, with a contrast of 3 on white and on the pages' black."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (6, 1, 1, 1, 1, 1)))
DARK_TEXT, LIGHT_TEXT = "#000000", "#ffffff"
"""Colours of digits on the colours of a heat map."""
DIVERGING = ("#0072b2", "#f7f7f7", "#d55e00")
"""Colours below zero, at zero and above."""
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "mathtext.fontset": "dejavusans",
    "mathtext.default": "it",
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.titlepad": 4,
    "axes.labelpad": 2,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.unicode_minus": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "msbreg",
}
DOTS = 220
"""Pixels of the PNG for each inch."""
LINE, GRID_LINE, STRIP_TITLE, LEGEND_LINE, NAME_LINE = 1.35, 1.6, 0.2, 0.16, 0.125
"""Inches: heights of a strip of lines and of a strip of heat maps, of a title, of a line of the legend, and
of a name on the vertical axis."""
WIDEST = 1.9
"""Points: width of the first line of a panel; the next ones are narrower."""
STEPS = (1, 2, 2.5, 5, 10)
"""Leading digits of the distance between two ticks."""
MARKED = 8
"""Number of points of a long line that have markers."""


def files(name: str, drawing: Drawing, alternative: str) -> dict[str, bytes]:
    """Return the figure by the ending of its file.

    Args:
        name: name of the figure, which makes the ids in the SVG distinct on a page.
        alternative: its content in words.
    """
    with _matplotlib():
        figure = _figure(drawing)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=DOTS, facecolor=PAPER, metadata={"Software": None})
    return {"svg": _page_svg(svg.getvalue().decode(), name, alternative).encode(), "png": png.getvalue()}


def inline(svg: str) -> str:
    """Return the element of an SVG file, for inclusion in an HTML page."""
    return svg[svg.index("<svg") :].strip()


@contextmanager
def _matplotlib() -> Iterator[None]:
    """Use our settings and the fonts that matplotlib contains, whatever this machine has."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in SETTINGS.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        _use_own_fonts()
        yield


@cache
def _use_own_fonts() -> None:
    """Let matplotlib find no fonts but its own: another version of a font has other outlines."""
    import matplotlib
    from matplotlib import font_manager

    manager, folder = font_manager.fontManager, matplotlib.get_data_path()
    manager.ttflist = [font for font in manager.ttflist if font.fname.startswith(folder)]
    manager._findfont_cached.cache_clear()  # type: ignore[attr-defined]


def _figure(drawing: Drawing) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    legends = [_legend(strip) for strip in drawing.strips]
    # A legend that the next strip repeats is drawn once, below the last of them.
    shown = [
        legend if index + 1 == len(legends) or legends[index + 1].keys() != legend.keys() else {}
        for index, legend in enumerate(legends)
    ]
    heights = [_height(strip, legend) for strip, legend in zip(drawing.strips, shown, strict=True)]
    ends = _shared_ends(drawing)
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.04, hspace=0.03)  # type: ignore[union-attr,call-arg]
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, strip, legend in zip(parts, drawing.strips, shown, strict=True):
        part.set_facecolor("none")
        axes = part.subplots(1, _places(strip), squeeze=False)[0]
        for each in axes[len(strip.panels) :]:
            each.set_axis_off()
        before = ""
        for each, panel in zip(axes, strip.panels, strict=False):
            _panel(each, panel, before)
            before = panel.y_title
            if panel.kind == "lines" and not panel.x_names:
                each.set_xlim(*ends)
        if strip.title:
            part.suptitle(_text(strip.title), fontsize=7.5, fontweight="bold", x=0.01, ha="left")
        if len(legend) > 1:
            part.legend(
                [_handle(series, strip.panels[0].kind) for series in legend.values()],
                [_text(label) for label in legend],
                loc="outside lower center",
                ncols=_legend_columns(legend),
                handlelength=2.6,
                columnspacing=1.2,
                borderpad=0.1,
                labelspacing=0.3,
            )
    return figure


def _shared_ends(drawing: Drawing) -> tuple[float, float]:
    """Return the ends of the horizontal axis that all curves of a drawing share, with a margin."""
    panels = [panel for strip in drawing.strips for panel in strip.panels if panel.kind == "lines"]
    xs = [x for panel in panels for series in panel.series for x in series.x]
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    if any(panel.log_x for panel in panels):
        return low / 1.15, high * 1.15
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _places(strip: Strip) -> int:
    """Return the number of panels for which a strip has room: a lone one does not fill the width."""
    return max(len(strip.panels), 2) if strip.panels[0].kind == "grid" else len(strip.panels)


def _legend(strip: Strip) -> dict[str, Series]:
    """Return the lines of a strip by their labels."""
    return {series.label: series for panel in strip.panels for series in panel.series}


def _legend_columns(legend: dict[str, Series]) -> int:
    longest = max(len(plain(label)) for label in legend)
    return max(1, min(len(legend), 4, int(92 / (longest + 9))))


def _height(strip: Strip, legend: dict[str, Series]) -> float:
    """Return the inches of a strip."""
    lines = -(-len(legend) // _legend_columns(legend)) if len(legend) > 1 else 0
    names = max(len(panel.y_names) for panel in strip.panels)
    body = LINE + (0.35 if len(strip.panels) < 3 else 0) + (0.7 if len(strip.panels) == 1 else 0)
    if strip.panels[0].kind == "grid":
        body = 0.75 + 0.17 * names
    elif names:
        body = 0.6 + NAME_LINE * names
    return body + (STRIP_TITLE if strip.title else 0.0) + LEGEND_LINE * lines


def _panel(axes: Axes, panel: Panel, before: str) -> None:
    """Draw a panel; `before` is the title of the vertical axis to its left, which is not repeated."""
    if panel.title:
        axes.set_title(_text(panel.title))
    axes.set_xlabel(_text(panel.x_title))
    if panel.y_title != before:
        axes.set_ylabel(_text(panel.y_title))
    if panel.grid is not None:
        _grid(axes, panel, panel.grid)
        return
    axes.grid(visible=True, color=INK, alpha=0.13, linewidth=0.5)
    axes.set_axisbelow(True)
    for number, series in enumerate(panel.series):
        _series(axes, panel, series, number)
    _scales(axes, panel)
    if panel.diagonal:
        # After the limits: the line must not widen them.
        axes.axline((0, 0), slope=1, color=INK, linewidth=0.7, alpha=0.6, zorder=1)


def _scales(axes: Axes, panel: Panel) -> None:
    """Set logarithmic axes, named places and few ticks."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if panel.log_x:
        axes.set_xscale("log")
    elif panel.x_names:
        axes.set_xticks(range(len(panel.x_names)), [_text(name) for name in panel.x_names])
        axes.set_xlim(-0.4, len(panel.x_names) - 0.6)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        if max(max(map(abs, series.x)) for series in panel.series) >= 10_000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.log_y:
        axes.set_yscale("log")
    elif panel.y_names:
        axes.set_yticks(range(len(panel.y_names)), [_text(name) for name in panel.y_names], fontsize=6.5)
        axes.set_ylim(-0.7, len(panel.y_names) - 0.3)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        if max(max(map(abs, series.y)) for series in panel.series) >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(0.08)
    if panel.series[0].texts and not panel.log_x:
        axes.margins(0.25, 0.3)
    if panel.y_names and (least := min(min(series.x) for series in panel.series)) >= 0:
        most = max(max(series.x) for series in panel.series)
        axes.set_xlim(left=min(least, -0.03 * most))


def _series(axes: Axes, panel: Panel, series: Series, number: int) -> None:
    """Draw a series so that it stays visible where the next one covers it: wider, or with an open marker."""
    colour, marker, dash = _look(series)
    line = panel.kind == "lines"
    is_open = series.dashed or (panel.y_names and number % 2 == 1)
    axes.plot(
        series.x,
        series.y,
        color=colour,
        linestyle=dash if line else "none",
        marker=marker,
        markevery=-(-len(series.x) // MARKED) if line and len(series.x) > 2 * MARKED else 1,
        linewidth=max(1.0, WIDEST - 0.3 * number),
        markerfacecolor="none" if is_open else colour,
        markersize=3 if line else 5.5 if is_open else 4,
        zorder=3,
    )
    if series.low:
        below = [y - low for y, low in zip(series.y, series.low, strict=True)]
        above = [high - y for y, high in zip(series.y, series.high, strict=True)]
        axes.errorbar(
            series.x, series.y, yerr=(below, above), fmt="none", ecolor=colour, elinewidth=0.8, zorder=2
        )
    for x, y, text in zip(series.x, series.y, series.texts, strict=False):
        # Every second style has its text below, so neighbours do not cover each other's.
        place, side = ((0, 5), "bottom") if series.style % 2 == 0 else ((0, -5), "top")
        axes.annotate(
            _text(text), (x, y), xytext=place, textcoords="offset points", ha="center", va=side, fontsize=7
        )


def _look(series: Series) -> tuple[str, str, Any]:
    """Return the colour, the marker and the dash of a style; no two styles of a legend share all three."""
    turn = series.style // len(COLOURS)
    dash = DASHES[(series.style + turn) % len(DASHES)]
    return (
        COLOURS[series.style % len(COLOURS)],
        MARKERS[(series.style + turn) % len(MARKERS)],
        DASHES[1] if series.dashed else dash,
    )


def _handle(series: Series, kind: str) -> Any:
    """Return the sample of a line, or of a point, for the legend."""
    from matplotlib.lines import Line2D

    colour, marker, dash = _look(series)
    line: Any = dash if kind == "lines" else "none"
    return Line2D([], [], color=colour, marker=marker, linestyle=line, markersize=3.5)


def _grid(axes: Axes, panel: Panel, grid: Grid) -> None:
    """Draw a heat map: rectangles with digits, and outlines where a number is missing."""
    from matplotlib.patches import Rectangle

    known = [value for line in grid.values for value in line if value is not None]
    for y, (values, texts) in enumerate(zip(grid.values, grid.texts, strict=True)):
        for x, (value, text) in enumerate(zip(values, texts, strict=True)):
            face = None if value is None else _colour(value, known, grid)
            axes.add_patch(
                Rectangle(
                    (x + 0.02, y + 0.02),
                    0.96,
                    0.96,
                    facecolor=face or "none",
                    edgecolor="none" if face else INK,
                    linewidth=0.4,
                    linestyle=":" if face is None else "-",
                    clip_on=False,
                )
            )
            axes.text(
                x + 0.5,
                y + 0.52,
                _text(text.replace("-", "−")),
                ha="center",
                va="center",
                fontsize=6.5,
                color=INK if face is None else _readable(face),
            )
    axes.set_xlim(0, len(panel.x_names))
    axes.set_ylim(len(panel.y_names), 0)
    axes.set_xticks([x + 0.5 for x in range(len(panel.x_names))], [_text(each) for each in panel.x_names])
    axes.set_yticks([y + 0.5 for y in range(len(panel.y_names))], [_text(each) for each in panel.y_names])
    axes.tick_params(length=0, labelsize=6.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colour(value: float, known: list[float], grid: Grid) -> tuple[float, float, float]:
    """Return the colour of a number of a heat map as shares of red, green and blue."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    if grid.colours == "around zero":
        most = max(map(abs, known)) or 1.0
        share = 0.5 + value / (2 * most)
        colours: Any = LinearSegmentedColormap.from_list("around zero", DIVERGING)
    else:
        low, high = min(known), max(known)
        share = (value - low) / (high - low) if high > low else 0.5
        colours = matplotlib.colormaps["cividis"]
    red, green, blue, _ = colours(share)
    return float(red), float(green), float(blue)


def _readable(face: tuple[float, float, float]) -> str:
    """Return the colour of digits with the larger contrast (WCAG 2, relative luminance)."""
    linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in face]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return DARK_TEXT if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else LIGHT_TEXT


def _text(markup: str) -> str:
    """Return markup as matplotlib's own mathematics, or as plain text where that lacks a command."""
    from matplotlib.mathtext import MathTextParser

    parts = re.split(r"(?<!\\)\$", markup)
    text = "$".join(
        part if index % 2 else part.replace(r"\$", "$").replace("$", r"\$")
        for index, part in enumerate(parts)
    )
    if len(parts) == 1:
        return text
    try:
        MathTextParser("path").parse(text)
    except ValueError:
        return plain(markup).replace("$", r"\$")
    return text


def _page_svg(svg: str, name: str, alternative: str) -> str:
    """Return an SVG without metadata, with the reader's colours, a text alternative and ids of its own."""
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor")
    style = (
        f"svg:root{{color-scheme:light dark;color:{INK}}}"
        f"@media (prefers-color-scheme:dark){{svg:root{{color:{INK_IN_THE_DARK}}}}}"
    )
    label = html.escape(alternative, quote=True)
    return re.sub(
        r"<svg ([^>]*)>",
        lambda found: f'<svg {found[1]} role="img" aria-label="{label}">\n <style>{style}</style>',
        svg,
        count=1,
    )
