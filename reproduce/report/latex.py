r"""Filled tables as LaTeX for pdflatex: a bare `tabular`, a complete table, and the parts of a document.

    tabular(filled)     the numbers alone, to put into a table of one's own
    table(filled)       a float with a caption, and the notes and claims as text after it

A complete table that is wider than a page of LaTeX's article class is split by columns into panels, one below
the other. If a panel is still wider than the line, graphicx shrinks it to the line. Panels that do not fit
one page continue in a further float.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from reproduce.report import markup
from reproduce.report.display import Display, Line, Shown, SubColumn, display
from reproduce.report.filled import Filled

PACKAGES = "booktabs,amssymb,graphicx"
"""Packages of a complete table."""
LINE = 345.0
"""Width of a line in LaTeX's article class at 10 pt, in pt: panels are made for it."""
CHARACTER = 5.2
"""Estimated width of a character at 10 pt, in pt; a digit has 5.0."""
GAP = 8.0
"""Space between two columns, in pt: twice the length \\tabcolsep."""
LABEL = 210.0
"""Width in pt above which the label of a row is wrapped; the paper's tables have shorter ones."""
SIZES = (("normalsize", 1.0), ("small", 0.92), ("footnotesize", 0.85))
"""Sizes of type that a table may have, each with its width relative to the first."""
SPREAD = 0.75
"""Width of a spread over the seeds relative to the number before it, which is set larger."""
HIGHEST = 36
"""Maximum number of lines of a float; a single panel with more lines is shrunk to the height of a page."""


def tabular(filled: Filled) -> str:
    """Return the whole table as a bare `tabular`, without caption, notes and the numbers of reasons."""
    shown = display(filled)
    lines = (replace(line, cells=tuple(replace(cell, why="") for cell in line.cells)) for line in shown.lines)
    shown = replace(shown, lines=tuple(lines))
    body = _tabular(shown, range(len(shown.sub_columns)))
    packages = "booktabs,amssymb" if any(r"\checkmark" in line for line in body) else "booktabs"
    return "\n".join([_usage(filled, packages, f"{filled.table}.tabular"), *body]) + "\n"


def table(filled: Filled) -> str:
    r"""Return a `table` environment for `\input`, followed by the notes and the claims.

    The notes can be longer than a page, so they are outside of the float.
    """
    shown, name = display(filled), label(filled)
    first, *further = floats(shown)
    lines = [
        _usage(filled, PACKAGES, filled.table),
        r"\begin{table}[htbp]",
        r"\centering\setlength{\belowcaptionskip}{8pt}",
        rf"\caption{{{caption(filled)}}}",
        rf"\label{{{name}}}",
        *first,
        r"\end{table}",
    ]
    for each in further:
        lines += [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"Table~\ref{{{name}}}, continued.\par\vspace{{8pt}}",
        ]
        lines += [*each, r"\end{table}"]
    lines += notes(filled, shown, rf"\textbf{{Notes on Table~\ref{{{name}}}.}}")
    return "\n".join(lines) + "\n"


def label(filled: Filled) -> str:
    """Return the name by which a document refers to the table."""
    return "tab:" + "-".join(re.sub(r"[^A-Za-z0-9]", "", part) for part in (filled.scale, filled.table))


def caption(filled: Filled) -> str:
    """Return what the table shows and under which conditions."""
    head = rf"\textbf{{{markup.tex(filled.head)}}} " if filled.head else ""
    return f"{head}{markup.tex(filled.body)}"


def _usage(filled: Filled, packages: str, file: str) -> str:
    """Return the comment on the first line: the table's name and how to include the file."""
    usage = rf"Needs \usepackage{{{packages}}}; include it by \input{{{file}}}."
    return f"% {_comment(markup.plain(filled.head))} {usage}" if filled.head else f"% {usage}"


def _comment(text: str) -> str:
    """Return `text` on one line, so that a comment cannot end before it does."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


# The numbers
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """Columns of a table in panels, by index, and the size of their type."""

    panels: tuple[tuple[int, ...], ...]
    size: str


def floats(shown: Display, line: float = LINE) -> list[list[str]]:
    """Return the numbers, centred, in parts that each fit a page; a part contains one or more panels.

    Args:
        line: width of a line in pt for which the panels are made.
    """
    split = _split(shown, line)
    size = rf"\{split.size}" if split.size != "normalsize" else ""
    lines = len(shown.lines) + 3
    at_once = max(HIGHEST // lines, 1)
    parts = []
    for start in range(0, len(split.panels), at_once):
        part = [rf"\setlength{{\tabcolsep}}{{4pt}}{size}"]
        for index, columns in enumerate(split.panels[start : start + at_once]):
            part += [r"\par\vspace{10pt}"] if index else []
            part += _shrunk(_tabular(shown, columns), too_high=lines > HIGHEST)
        parts.append(part)
    return parts


def _shrunk(body: list[str], *, too_high: bool) -> list[str]:
    """Return a `tabular` that is shrunk to the line where it is wider, and to a page where it is higher."""
    width = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    found = [width, *body[:-1], body[-1] + "}"]
    if too_high:
        height = r"\resizebox*{!}{\ifdim\totalheight>.65\textheight.65\textheight\else\totalheight\fi}{%"
        found = [height, *found[:-1], found[-1] + "}"]
    return found


def _split(shown: Display, line: float) -> _Split:
    """Return the panels of a table, as few as fit the line, of about the same width."""
    left = [(shown.row_title, *shown.fact_titles), *((row.label, *row.facts) for row in shown.lines)]
    labels, *facts = (max(map(_width, column)) + GAP for column in zip(*left, strict=True))
    names = min(labels, LABEL + GAP) + sum(facts)
    widths = [_column_width(shown, index) for index in range(len(shown.sub_columns))]
    for size, factor in SIZES:
        if (names + sum(widths)) * factor <= line:
            return _Split((tuple(range(len(widths))),), size)
    size, factor = SIZES[-1]
    room = line / factor - names
    units = list(_units(shown, widths, room))
    sums = sorted({sum(widths[unit[0] : each[-1] + 1]) for unit in units for each in units})
    fewest = len(_packed(units, widths, room))
    even = next((most for most in sums if len(_packed(units, widths, most)) == fewest), room)
    return _Split(tuple(map(tuple, _packed(units, widths, min(even, room)))), size)


def _width(text: str) -> float:
    """Return the estimated width of markup at 10 pt, in pt."""
    return CHARACTER * len(markup.plain(text).replace("_", "").replace("^", ""))


def _column_width(shown: Display, index: int) -> float:
    """Return the estimated width of a sub-column, with its share of the title above both halves."""
    sub = shown.sub_columns[index]
    halves = sum(other.column.key == sub.column.key for other in shown.sub_columns)
    cells = [line.cells[index] for line in shown.lines]
    numbers = (_width(cell.number) + _width(f" {cell.against}" if cell.against else "") for cell in cells)
    spreads = (SPREAD * CHARACTER * len(f"  ± {cell.std} ({cell.n})") if cell.std else 0.0 for cell in cells)
    widest = max((number + spread for number, spread in zip(numbers, spreads, strict=True)), default=0.0)
    side = _width(sub.side) if shown.sided else 0.0
    return max(widest, side, _width(sub.heading) / halves) + GAP


def _units(shown: Display, widths: Sequence[float], room: float) -> Iterator[list[int]]:
    """Yield the columns that stay together: those under one heading or, if that is too wide, each column."""
    indices = range(len(shown.sub_columns))

    def by_key(index: int) -> str:
        return shown.sub_columns[index].column.key

    def by_group(index: int) -> str:
        return shown.sub_columns[index].column.group or by_key(index)

    for _, members in groupby(indices, by_group):
        group = list(members)
        if sum(widths[index] for index in group) <= room:
            yield group
        else:
            yield from (list(halves) for _, halves in groupby(group, by_key))


def _packed(units: Sequence[Sequence[int]], widths: Sequence[float], most: float) -> list[list[int]]:
    """Return the units in panels whose columns have at most that width, in order; a wider one is alone."""
    found: list[list[int]] = [[]]
    for unit in units:
        if found[-1] and sum(widths[index] for index in (*found[-1], *unit)) > most:
            found.append([])
        found[-1] += unit
    return found


def _tabular(shown: Display, columns: Sequence[int]) -> list[str]:
    """Return a `tabular` of the names of the rows and of those columns."""
    part = replace(
        shown,
        sub_columns=tuple(shown.sub_columns[index] for index in columns),
        lines=tuple(
            replace(line, cells=tuple(line.cells[index] for index in columns)) for line in shown.lines
        ),
    )
    left = 1 + len(part.fact_titles)
    label = f"p{{{LABEL:g}pt}}" if any(map(_is_long, part.lines)) else "l"
    return [
        rf"\begin{{tabular}}{{{label}{'c' * len(part.fact_titles)}{'r' * len(part.sub_columns)}}}",
        r"\toprule",
        *_head(part, left),
        r"\midrule",
        *(line for row in part.lines for line in _row(row, part.sub_columns)),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _is_long(line: Line) -> bool:
    return _width(line.label) > LABEL


def _head(shown: Display, left: int) -> list[str]:
    """Return the lines above the body: groups if there are any, the columns, and the sides."""
    lines = []
    for spans in (shown.groups, shown.headings):
        if spans:
            cells = [rf"\multicolumn{{{width}}}{{c}}{{{markup.tex(text)}}}" for text, width in spans]
            lines.append(" & " * left + " & ".join(cells) + r" \\")
            lines.append(_rules(spans, left))
    names = [markup.tex(text) for text in (shown.row_title, *shown.fact_titles)]
    sides = (sub.side if shown.sided else "" for sub in shown.sub_columns)
    lines.append(" & ".join([*names, *sides]).rstrip() + r" \\")
    return lines


def _rules(spans: Iterable[tuple[str, int]], left: int) -> str:
    """Return a short rule under every heading."""
    rules, start = [], left + 1
    for text, width in spans:
        if text:
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return "".join(rules)


def _row(line: Line, columns: Sequence[SubColumn]) -> list[str]:
    keys = {sub.column.key for sub in columns}
    runs = "; ".join(f"{key} {' '.join(ids)}" for key, ids in line.runs if key in keys)
    long = _is_long(line)
    label = (r"\raggedright{}" if long else "") + markup.tex(line.label, breaks=long)
    names = [label + _marks(line.marks), *map(markup.tex, line.facts)]
    row = " & ".join([*names, *map(_cell, line.cells)]) + r" \\"
    comment = [f"% runs: {_comment(runs)}"] if runs else []
    return [*comment, *([r"\midrule"] if line.rule_before else []), row]


def _cell(cell: Shown) -> str:
    around = {"bold": r"\textbf{%s}", "underline": r"\underline{%s}", "": "%s"}[cell.emphasis]
    spread = rf"{{\scriptsize\ $\pm$ {markup.tex(cell.std)} ({cell.n})}}" if cell.std else ""
    # The mark has no width, so the digits of a column stay aligned.
    return (
        around % _number(cell.number)
        + spread
        + (rf"\ {markup.tex(cell.against)}" if cell.against else "")
        + (rf"\rlap{{{_marks(marks)}}}" if (marks := (*cell.marks, *filter(None, [cell.why]))) else "")
    )


def _number(number: str) -> str:
    return f"$-${number[1:]}" if number.startswith("-") else markup.tex(number)


def _marks(marks: Sequence[str]) -> str:
    return rf"$^{{\mathrm{{{','.join(marks)}}}}}$" if marks else ""


# The text below
# ------------------------------------------------------------------------------------------------------------


def notes(filled: Filled, shown: Display, title: str) -> list[str]:
    """Return the footnotes, the remarks and the claims as paragraphs that can break across pages.

    Args:
        title: LaTeX of the first paragraph.
    """
    paragraphs = [f"{_marks((mark,))}~{markup.tex(text, breaks=True)}" for mark, text in shown.footnotes]
    paragraphs += [markup.tex(remark, breaks=True) for remark in (*shown.remarks, *shown.empty_cells)]
    if filled.claims:
        paragraphs.append(
            r"\textbf{Claims}" + (", on the paper's numbers / on ours:" if shown.sided else ":")
        )
    if shown.verdicts:
        paragraphs.append(markup.tex(shown.verdicts, breaks=True))
    for claim, why in shown.claims:
        paper = rf"\textit{{{claim.paper}}} / " if shown.sided else ""
        source = f" ({markup.tex(claim.source, breaks=True)})" if claim.source else ""
        shown_why = rf" \textit{{{markup.tex(why, breaks=True)}}}" if why else ""
        paragraphs.append(
            rf"\hangindent=9.5em\hangafter=1\makebox[9.5em][l]{{{paper}\textit{{{claim.ours}}}}}"
            f"{markup.tex(claim.text, breaks=True)}{source}{shown_why}"
        )
    if not paragraphs:
        return []
    return [
        r"\par\medskip",
        r"\begingroup",
        r"\footnotesize\setlength{\parindent}{0pt}\setlength{\parskip}{2pt}\raggedright",
        "\n\n".join([title, *paragraphs]),
        r"\par\endgroup",
        r"\medskip",
    ]
