"""Filled tables as files: `tableN.md`, `.tex`, `.tabular.tex`, `.html`, `.csv` and `.json`.

    write(filled, reports / "smoke")
    read_all(reports / "smoke")

The same filled table gives the same bytes. Only `html` imports jinja2. `publish.py` calls `write`
when something changed.
"""

from __future__ import annotations

import csv as csv_files
import io
import json as json_files
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from reproduce.messages import InvalidError, counted, first_line, visible
from reproduce.report import figures, latex, markup
from reproduce.report.display import DASH, Display, Line, Shown, display, evidence
from reproduce.report.filled import Filled, loads, to_json
from reproduce.report.observe import natural
from reproduce.report.verdicts import JudgedClaim, Verdict
from reproduce.runs.files import atomic

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from jinja2 import Environment

FORMATS = ("md", "tex", "tabular.tex", "html", "csv", "json")
FIGURES = "figures"
OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")
"""Options of the command line in a text, which no line break may cut."""
"""Folder of the figures in that of the reports."""
INDEX = "index.html"


def paths(table: str, folder: Path) -> list[Path]:
    """Return the files of a table, one for each format."""
    return [folder / f"{table}.{ending}" for ending in FORMATS]


def rendered(filled: Filled) -> dict[str, str]:
    """Return the table's text in every format, by the ending of its file.

    Raises:
        ValueError: the table comes from a file, and a text in it is not markup.
    """
    writers: dict[str, Callable[[Filled], str]] = {
        "md": markdown,
        "tex": latex.table,
        "tabular.tex": latex.tabular,
        "html": html,
        "csv": csv,
        "json": json,
    }
    return {ending: writers[ending](filled) for ending in FORMATS}


def write(filled: Filled, folder: Path) -> list[Path]:
    """Write the table in every format into `folder` (the reports of one scale), and return the files.

    Its figures are written, too, and those that it no longer has are deleted. No file is replaced before all
    of them are written.
    """
    files = paths(filled.table, folder)
    pictures = (
        content
        for figure in filled.figures
        for content in figures.files(figure.name, figure.drawing, figure.alternative).values()
    )
    drawn = figure_paths(filled, folder)
    with ExitStack() as drafts:
        for path, text in zip(files, rendered(filled).values(), strict=True):
            drafts.enter_context(atomic(path, durable=True)).write_bytes(text.encode())
        for path, content in zip(drawn, pictures, strict=True):
            drafts.enter_context(atomic(path, durable=True)).write_bytes(content)
    for ending in figures.ENDINGS:
        for path in (folder / FIGURES).glob(f"{filled.table}-*.{ending}"):
            if path not in drawn:
                path.unlink(missing_ok=True)
    return files


def figure_paths(filled: Filled, folder: Path) -> list[Path]:
    """Return the files of a table's figures, in their order."""
    return [
        folder / FIGURES / f"{figure.name}.{ending}"
        for figure in filled.figures
        for ending in figures.ENDINGS
    ]


def tables_in(folder: Path) -> list[Path]:
    """Return the `.json` of every table in `folder`, in natural order."""
    found = (path for path in folder.glob("[!.]*.json") if path.is_file())
    return sorted(found, key=lambda path: natural(path.stem))


def read(path: Path) -> Filled:
    """Return the table in a `.json` that every format can show.

    Raises:
        ValueError: the file cannot be read, is damaged, or has another table's name; the message is one line.
    """
    try:
        return checked(path.read_bytes(), path.stem, str(path))
    except OSError as error:
        raise InvalidError(f"{path} cannot be read ({error.strerror}): render the table again.") from None


def checked(text: bytes, table: str, where: str) -> Filled:
    """Return the table in a report's text, after rendering it in memory.

    Args:
        table: name of the table that it must contain.
        where: the file's name in error messages.

    Raises:
        ValueError: see `read`.
    """
    filled = loads(text, where)
    if filled.table != table:
        raise InvalidError(f"{where} contains {filled.table!r:.60}, another table: render the table again.")
    try:
        rendered(filled)
    except (ValueError, RecursionError) as error:
        problem = first_line(error)
        raise InvalidError(f"{where} cannot be shown ({problem}): render the table again.") from None
    return filled


def read_all(folder: Path) -> list[Filled]:
    """Return every table whose `.json` is in `folder`; a damaged one is left out with a warning."""
    tables = []
    for path in tables_in(folder):
        try:
            tables.append(read(path))
        except ValueError as error:
            logger.warning("Left out of the index: %s", error)
    return tables


def summary(filled: Filled) -> str:
    """Return one line for the terminal: how many cells are filled, and the verdicts on the claims."""
    claims = tally(claim.ours for claim in filled.claims)
    line = f"{filled.table} ({filled.scale}): {cell_counts(filled)} cells filled"
    return f"{line}; claims: {claims}" if claims else line


def json(filled: Filled) -> str:
    """Return the table for programs; each figure is on one line."""
    data = to_json(filled)
    figures = data.pop("figures")
    lines = [json_files.dumps(figure, ensure_ascii=False, allow_nan=False) for figure in figures]
    joined = "".join(f"\n    {line}," for line in lines).removesuffix(",") + "\n  " * bool(lines)
    text = json_files.dumps(data, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    return f'{text},\n  "figures": [{joined}]\n}}\n'


def csv(filled: Filled) -> str:
    """Return one CSV line for each cell.

    Numbers are as printed but not rounded to the column's decimals. An empty field is a missing value. A text
    that a spreadsheet would execute begins with an apostrophe.
    """
    file = io.StringIO()
    lines = csv_files.writer(file, lineterminator="\n")
    lines.writerow(
        (
            *("row", "column", "unit", "paper", "paper_note", "value", "std", "low", "high"),
            *("n", "seeds", "runs", "against", "reason"),
        )
    )
    for row in filled.rows:
        for column in filled.columns:
            cell = row.cells[column.key]
            seeds, runs = " ".join(map(str, cell.seeds)), " ".join(cell.runs)
            low, high = cell.interval or (None, None)
            n = len(cell.seeds)
            ours = (cell.value, cell.std, low, high, n, seeds, runs, cell.against, cell.reason)
            fields = (row.label, column.key, column.unit, cell.paper, cell.paper_note, *ours)
            lines.writerow(map(markup.csv, fields))
    return file.getvalue()


# Markdown
# ------------------------------------------------------------------------------------------------------------


def markdown(filled: Filled) -> str:
    """Return GitHub Markdown: the caption, the table in aligned columns, and the notes."""
    shown = display(filled)
    head = f"**{filled.head}** " if filled.head else ""
    blocks = [f"{head}{markup.markdown(filled.body)}".rstrip(), _markdown_table(shown)]
    if shown.footnotes:
        blocks.append(
            "<br>\n".join(
                f"{_markdown_marks((mark,))} {markup.markdown(text)}" for mark, text in shown.footnotes
            )
        )
    blocks += [markup.markdown(remark) for remark in (*shown.remarks, *shown.empty_cells)]
    if filled.claims:
        blocks += ["**Claims**", *([markup.markdown(shown.verdicts)] if shown.verdicts else [])]
        blocks.append("\n".join(_markdown_claim(claim, why, shown) for claim, why in shown.claims))
    for figure in filled.figures:
        alternative = markup.markdown(markup.literal(figure.alternative))
        blocks.append(f"![{alternative}]({FIGURES}/{figure.name}.png)")
        blocks.append(markup.markdown(figure.title))
    blocks += [f"Not drawn. {markup.markdown(reason)}" for reason in filled.not_drawn]
    if runs := [
        f"- {markup.markdown(markup.literal(line.name))}: {_runs(line, '`{}`')}"
        for line in shown.lines
        if line.runs
    ]:
        blocks += ["**Runs** (seeds in order)", "\n".join(runs)]
    return "\n\n".join(blocks) + "\n"


def _markdown_claim(claim: JudgedClaim, why: str, shown: Display) -> str:
    source = f" ({markup.markdown(claim.source)})" if claim.source else ""
    paper = f"on the paper's numbers: **{claim.paper}**; on ours: " if shown.sided else ""
    shown_why = f" ({markup.markdown(why)})" if why else ""
    return f"- {markup.markdown(claim.text)}{source} — {paper}**{claim.ours}**{shown_why}"


def _markdown_table(shown: Display) -> str:
    heads = [markup.markdown(text) for text in (shown.row_title, *shown.fact_titles)]
    heads += [
        markup.markdown(f"{sub.column.group} {sub.heading}".strip())
        + (f", {sub.side}" if shown.sided else "")
        for sub in shown.sub_columns
    ]
    body = [
        [
            markup.markdown(line.distinct) + _markdown_marks(line.marks),
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
    around = {"bold": "**{}**", "underline": "<u>{}</u>", "": "{}"}[cell.emphasis]
    return (
        around.format(cell.number)
        + (f" ± {cell.std} ({cell.n})" if cell.std else "")
        + (f" {cell.against}" if cell.against else "")
        + _markdown_marks((*cell.marks, *filter(None, [cell.why])))
    )


def _markdown_marks(marks: Sequence[str]) -> str:
    return f"<sup>{markup.markdown(','.join(marks))}</sup>" if marks else ""


# HTML
# ------------------------------------------------------------------------------------------------------------


def html(filled: Filled) -> str:
    """Return one self-contained page."""
    return environment().get_template("table.html").render(filled=filled, shown=display(filled))


@cache
def environment() -> Environment:
    """Return the templates of this folder.

    Every value is escaped and without control characters, and text goes through `markup.html`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )

    def text(value: str) -> Any:
        shown = OPTION.sub(r'<span class="option">\1</span>', markup.html(value))
        return Markup(shown)  # noqa: S704  markup.html escapes every character

    environment.filters |= {
        "text": text,
        "plain": markup.plain,
        "evidence": evidence,
        "counted": counted,
        "number": lambda number: number.replace("-", "−"),
    }
    environment.globals |= {"formats": FORMATS, "dash": DASH}
    return environment


def cell_counts(filled: Filled) -> str:
    """Return how many cells are filled: `12 of 24`."""
    cells = [cell for row in filled.rows for cell in row.cells.values()]
    return f"{sum(cell.value is not None for cell in cells)} of {len(cells)}"


# Shared
# ------------------------------------------------------------------------------------------------------------


def _runs(line: Line, around: str) -> str:
    """Return the runs of a row by column key, one for each seed."""
    return "; ".join(f"{key} {' '.join(map(around.format, ids))}" for key, ids in line.runs)


def tally(verdicts: Iterable[str]) -> str:
    """Return `5 hold, 1 fails, 2 open`, or `3 supported, 4 not judged`; empty without claims."""
    counts = Counter(verdicts)
    plural = {"holds": "hold", "fails": "fail"}
    return ", ".join(
        f"{counts[verdict]} {verdict if counts[verdict] == 1 else plural.get(verdict, verdict)}"
        for verdict in dict.fromkeys(("holds", "fails", *get_args(Verdict)))
        if verdict in counts
    )
