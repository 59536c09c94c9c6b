"""Filled tables -> files: `tableN.md`, `.tex`, `.html`, `.csv`, `.json`, and `index.html` over all tables of
a scale.

    write(filled, reports / "smoke")
    write_index(reports / "smoke")

The same filled table gives the same bytes. Only `html` and `index` import jinja2.
"""

from __future__ import annotations

import csv as csv_files
import io
import json as json_files
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.report import markup
from reproduce.report.display import DASH, Display, Line, Shown, display
from reproduce.report.filled import Filled, loads, to_json
from reproduce.report.table import Verdict
from reproduce.runs.files import write_atomic

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from jinja2 import Environment

FORMATS = ("md", "tex", "html", "csv", "json")


def write(filled: Filled, folder: Path) -> list[Path]:
    """Writes the table in every format into `folder` (the reports of one scale); returns the files."""
    writers: dict[str, Callable[[Filled], str]] = {
        "md": markdown,
        "tex": tex,
        "html": html,
        "csv": csv,
        "json": json,
    }
    return [write_atomic(folder / f"{filled.table}.{ending}", writers[ending](filled)) for ending in FORMATS]


def write_index(folder: Path) -> Path:
    """Writes `index.html` over every table whose `.json` lies in `folder`, and returns it; warns of a `.json`
    that it cannot read."""
    tables = []
    for path in sorted(folder.glob("*.json"), key=_natural):
        try:
            tables.append(loads(path.read_bytes(), str(path)))
        except ValueError as error:
            logger.warning("Left out of the index: %s", error)
    return write_atomic(folder / "index.html", index(tables))


def summary(filled: Filled) -> str:
    """One line for the terminal: how many cells have a number of ours, and how the claims fare on it."""
    claims = _tally(claim.ours for claim in filled.claims)
    return f"{filled.table} ({filled.scale}): {_cell_counts(filled)} cells have a number of ours{f'; claims: {claims}' if claims else ''}"


def json(filled: Filled) -> str:
    """The table for programs."""
    return json_files.dumps(to_json(filled), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def csv(filled: Filled) -> str:
    """One line for each cell. Numbers are as printed, not rounded to the column's decimals; an empty field is
    a missing value."""
    file = io.StringIO()
    lines = csv_files.writer(file, lineterminator="\n")
    lines.writerow(
        ("row", "column", "unit", "paper", "paper_note", "value", "std", "n", "seeds", "runs", "reason")
    )
    for row in filled.rows:
        for column in filled.columns:
            cell = row.cells[column.key]
            seeds, runs = " ".join(map(str, cell.seeds)), " ".join(cell.runs)
            ours = (cell.value, cell.std, len(cell.seeds), seeds, runs, cell.reason)
            lines.writerow((row.label, column.key, column.unit, cell.paper, cell.paper_note, *ours))
    return file.getvalue()


# Markdown
# ------------------------------------------------------------------------------------------------------------------------------


def markdown(filled: Filled) -> str:
    """GitHub Markdown: the caption, the table in aligned columns, and the notes."""
    shown = display(filled)
    blocks = [f"**{filled.head}** {markup.markdown(filled.body)}".rstrip(), _markdown_table(shown)]
    if shown.footnotes:
        blocks.append(
            "<br>\n".join(
                f"{_markdown_marks((mark,))} {markup.markdown(text)}" for mark, text in shown.footnotes
            )
        )
    blocks += [markup.markdown(remark) for remark in shown.remarks]
    if filled.claims:
        claims = (
            f"- {markup.markdown(claim.text)}{f' ({markup.markdown(claim.source)})' if claim.source else ''} — "
            f"on the paper's numbers: **{claim.paper}**; on ours: **{claim.ours}**"
            for claim in filled.claims
        )
        blocks += ["**Claims**", "\n".join(claims)]
    if runs := [
        f"- {markup.markdown(line.label)}: {_runs(line, '`{}`')}" for line in shown.lines if line.runs
    ]:
        blocks += ["**Runs** (seeds in order)", "\n".join(runs)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(shown: Display) -> str:
    heads = [markup.markdown(text) for text in (shown.row_title, *shown.fact_titles)]
    heads += [
        f"{markup.markdown(f'{sub.column.group} {sub.heading}'.strip())}, {sub.side}"
        for sub in shown.sub_columns
    ]
    body = [
        [
            markup.markdown(line.label) + _markdown_marks(line.marks),
            *map(markup.markdown, line.facts),
            *map(_markdown_cell, line.cells),
        ]
        for line in shown.lines
    ]
    widths = [max(3, *map(len, column)) for column in zip(heads, *body, strict=True)]
    right = [False] + [False] * len(shown.fact_titles) + [True] * len(shown.sub_columns)
    rule = [
        f"{'-' * (width - 1)}:" if to_right else "-" * width
        for width, to_right in zip(widths, right, strict=True)
    ]

    def line_of(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(aligned)} |"

    return "\n".join(map(line_of, (heads, rule, *body)))


def _markdown_cell(cell: Shown) -> str:
    around = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}[cell.rank]
    return (
        around.format(cell.number)
        + (f" ± {cell.std} ({cell.n})" if cell.std else "")
        + _markdown_marks(cell.marks)
    )


def _markdown_marks(marks: Sequence[str]) -> str:
    return f"<sup>{markup.markdown(','.join(marks))}</sup>" if marks else ""


# LaTeX
# ---------------------------------------------------------------------------------------------------------------------------------


def tex(filled: Filled) -> str:
    r"""A `table` environment for `\input`, with booktabs, amssymb and graphicx (which shrinks a table that is
    too wide)."""
    shown = display(filled)
    left = 1 + len(shown.fact_titles)
    lines = [
        f"% {markup.plain(filled.head)} Needs \\usepackage{{booktabs,amssymb,graphicx}}; include it by \\input{{{filled.table}}}.",
        r"\begin{table}[tbp]",
        r"\centering\setlength{\belowcaptionskip}{8pt}",
        rf"\caption{{\textbf{{{markup.tex(filled.head)}}} {markup.tex(filled.body)}}}",
        rf"\label{{tab:{filled.scale}-{filled.table}}}",
        *([r"\setlength{\tabcolsep}{4pt}"] if len(shown.sub_columns) > 6 else []),
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'c' * len(shown.fact_titles)}{'r' * len(shown.sub_columns)}}}",
        r"\toprule",
        *_tex_head(shown, left),
        r"\midrule",
        *(line for row in shown.lines for line in _tex_row(row)),
        r"\bottomrule",
        r"\end{tabular}}",
        *_tex_notes(filled, shown),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex_head(shown: Display, left: int) -> list[str]:
    """The lines above the body: groups where there are any, the columns, and whose number it is."""
    lines = []
    for spans in (shown.groups, shown.headings):
        if spans:
            cells = [rf"\multicolumn{{{width}}}{{c}}{{{markup.tex(text)}}}" for text, width in spans]
            lines.append(" & " * left + " & ".join(cells) + r" \\")
            lines.append(_tex_rules(spans, left))
    names = [markup.tex(text) for text in (shown.row_title, *shown.fact_titles)]
    lines.append(" & ".join([*names, *(sub.side for sub in shown.sub_columns)]) + r" \\")
    return lines


def _tex_rules(spans: Iterable[tuple[str, int]], left: int) -> str:
    """A short rule under every heading."""
    rules, start = [], left + 1
    for text, width in spans:
        if text:
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return "".join(rules)


def _tex_row(line: Line) -> list[str]:
    names = [markup.tex(line.label) + _tex_marks(line.marks), *map(markup.tex, line.facts)]
    row = " & ".join([*names, *map(_tex_cell, line.cells)]) + r" \\"
    comment = [f"% runs: {_runs(line, '{}')}"] if line.runs else []
    return [*comment, *([r"\midrule"] if line.rule_before else []), row]


def _tex_cell(cell: Shown) -> str:
    around = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}[cell.rank]
    spread = rf"{{\scriptsize\ $\pm$ {markup.tex(cell.std)} ({cell.n})}}" if cell.std else ""
    # The mark has no width, so that the digits of a column stay aligned.
    return (
        around % _tex_number(cell.number)
        + spread
        + (rf"\rlap{{{_tex_marks(cell.marks)}}}" if cell.marks else "")
    )


def _tex_number(number: str) -> str:
    return f"$-${number[1:]}" if number.startswith("-") else markup.tex(number)


def _tex_marks(marks: Sequence[str]) -> str:
    return rf"$^{{\mathrm{{{','.join(marks)}}}}}$" if marks else ""


def _tex_notes(filled: Filled, shown: Display) -> list[str]:
    """What stands under the table, as wide as the line."""
    notes = [f"{_tex_marks((mark,))}~{markup.tex(text)}" for mark, text in shown.footnotes]
    notes += [markup.tex(remark) for remark in shown.remarks]
    if filled.claims:
        notes.append(r"\textbf{Claims}, on the paper's numbers / on ours:")
    notes += [
        rf"\makebox[6.5em][l]{{\textit{{{claim.paper}}} / \textit{{{claim.ours}}}}}\parbox[t]{{\dimexpr\linewidth-6.5em}}"
        rf"{{\raggedright {markup.tex(claim.text)}{f' ({markup.tex(claim.source)})' if claim.source else ''}\strut}}"
        for claim in filled.claims
    ]
    if not notes:
        return []
    return [
        r"\par\medskip",
        r"\begin{minipage}{\linewidth}",
        r"\footnotesize\setlength{\parindent}{0pt}\setlength{\parskip}{2pt}",
        "\n\n".join(notes),
        r"\end{minipage}",
    ]


# HTML
# ----------------------------------------------------------------------------------------------------------------------------------


def html(filled: Filled) -> str:
    """One self-contained page."""
    return _environment().get_template("table.html").render(filled=filled, shown=display(filled))


def index(tables: Sequence[Filled]) -> str:
    """One page over the tables of a scale."""
    entries = [
        {
            "filled": filled,
            "shown": display(filled),
            "summary": _cell_counts(filled),
            "claims": {
                "paper": _tally(claim.paper for claim in filled.claims),
                "ours": _tally(claim.ours for claim in filled.claims),
            },
        }
        for filled in tables
    ]
    scales = sorted({filled.scale for filled in tables})
    return _environment().get_template("index.html").render(entries=entries, scale=", ".join(scales))


@cache
def _environment() -> Environment:
    """The templates of this folder: every value is escaped, and text goes through `markup.html`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def text(value: str) -> Any:
        return Markup(markup.html(value))  # noqa: S704  markup.html escapes every character

    environment.filters |= {
        "text": text,
        "plain": markup.plain,
        "number": lambda number: number.replace("-", "−"),
    }
    environment.globals |= {"formats": FORMATS, "dash": DASH}
    return environment


def _cell_counts(filled: Filled) -> str:
    cells = [cell for row in filled.rows for cell in row.cells.values()]
    return f"{sum(cell.value is not None for cell in cells)} of {len(cells)}"


# Shared
# --------------------------------------------------------------------------------------------------------------------------------


def _runs(line: Line, around: str) -> str:
    """The runs of a row by column key, one for each seed."""
    return "; ".join(f"{key} {' '.join(map(around.format, ids))}" for key, ids in line.runs)


def _tally(verdicts: Iterable[Verdict]) -> str:
    """`5 hold, 1 fails, 2 open`; empty for no claims."""
    counts = Counter(verdicts)
    words: dict[Verdict, tuple[str, str]] = {
        "holds": ("holds", "hold"),
        "fails": ("fails", "fail"),
        "open": ("open", "open"),
    }
    return ", ".join(
        f"{counts[verdict]} {names[counts[verdict] != 1]}"
        for verdict, names in words.items()
        if counts[verdict]
    )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts table10 behind table9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
