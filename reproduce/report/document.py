r"""Every table of a scale as one document: `report.tex`, and `report.pdf` by pdflatex if it is installed.

    write(tables, entries, "small", reports / "small")
    line = typeset(reports / "small")

The same tables give the same bytes, also of the PDF: it contains neither a date nor a path. pdflatex works on
copies in a temporary folder. It cannot start programs, and reads and writes no files outside of that folder
and of TeX's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduce.messages import counted
from reproduce.report import latex, markup, register
from reproduce.report.deviations import CHOICES
from reproduce.report.display import display
from reproduce.report.filled import SMOKE_WITHOUT_PAPER, Filled
from reproduce.report.origin import Origin
from reproduce.report.register import Entry
from reproduce.report.render import cell_counts, tally
from reproduce.runs.files import write_atomic

TEX, PDF = "report.tex", "report.pdf"
FIGURES = "figures"
"""Folder of the figures next to the document."""
LINE = 480.0
"""Width of a line of the document, in pt."""
PASSES = 2
"""Number of runs of pdflatex: the second one knows the page numbers of the first."""
LONGEST_PASS = 120
"""Maximum number of seconds of one run of pdflatex."""
FIXED: Mapping[str, str] = {
    "SOURCE_DATE_EPOCH": "0",
    "FORCE_SOURCE_DATE": "1",
    "openin_any": "p",
    "openout_any": "p",
    "max_print_line": "1000",
}
"""Environment of pdflatex: the date, and access to no file outside of its folder ("paranoid")."""
BANNERS: Mapping[str, str] = {
    "smoke": SMOKE_WITHOUT_PAPER,
    "small": "Smaller data, networks and budgets stand in for the paper's; the captions name them.",
    "paper": "The paper's data, networks and budgets.",
}
"""Sentence on the use of a scale, printed at the top."""
PREAMBLE = r"""\documentclass[a4paper]{article}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs,amssymb,graphicx}
\usepackage[hidelinks,bookmarksopen,pdfusetitle=false]{hyperref}
\pdfsuppressptexinfo=-1 \pdfinfoomitdate=1 \pdftrailerid{}
\input{glyphtounicode}\pdfgentounicode=1
\setcounter{secnumdepth}{0}
\setlength{\parindent}{0pt}\setlength{\parskip}{4pt plus 1pt}
\raggedbottom
"""


def write(tables: Sequence[Filled], found: Sequence[Entry], of: Origin, scale: str, folder: Path) -> Path:
    """Write `report.tex` and return its path; a `report.pdf` of other tables is deleted.

    Args:
        found: the register of claims.
        of: origin of the runs.
        folder: the reports of the scale.
    """
    text = document(tables, found, of, scale)
    path = folder / TEX
    if _text(path) != text:
        (folder / PDF).unlink(missing_ok=True)
    return write_atomic(path, text, durable=True)


def document(tables: Sequence[Filled], found: Sequence[Entry], of: Origin, scale: str) -> str:
    """Return the whole document."""
    title = f"MSBReg: reproduced tables, {markup.tex(scale)} scale"
    banner = markup.tex(BANNERS.get(scale, ""))
    lines = [
        "% Typeset it by pdflatex, twice; it needs the folder of figures next to it.",
        PREAMBLE.rstrip(),
        rf"\hypersetup{{pdftitle={{{title}}}}}",
        r"\begin{document}",
        rf"{{\LARGE\bfseries {title}\par}}\medskip",
        r"\fbox{\parbox{\dimexpr\linewidth-2\fboxsep-2\fboxrule}{\raggedright",
        rf"\textbf{{Scale: {markup.tex(scale)}.}} {banner}}}}}",
        *_scoreboard(tables, found),
    ]
    for filled in tables:
        lines += _section(filled)
    lines += [
        r"\section{Deviations from the paper}",
        "The paper leaves settings open. These choices concern several tables; the notes on a table contain",
        "those that concern it alone.",
        r"\begin{itemize}\setlength{\itemsep}{2pt}\raggedright",
        *(rf"\item {_with_code(choice)}" for choice in CHOICES),
        r"\end{itemize}",
        *_origin(of),
        r"\end{document}",
    ]
    return "\n".join(lines) + "\n"


def _scoreboard(tables: Sequence[Filled], found: Sequence[Entry]) -> list[str]:
    """Return how the claims come out: over all tables, and table by table."""
    rendered = {filled.table: filled for filled in tables}
    lines = [r"\section{Claims}"]
    lines += [markup.tex(sentence) + r"\par" for sentence in register.counts(found)] if found else []
    if not found:
        return [*lines, "No table has a claim."]
    lines += [
        r"{\footnotesize\setlength{\tabcolsep}{4pt}",
        r"\begin{tabular}{@{}lrp{.27\linewidth}p{.42\linewidth}@{}}",
        r"\toprule",
        r"Table & Cells filled & On the paper's numbers & On ours \\",
        r"\midrule",
    ]
    for entry in found:
        name, cells = markup.tex(entry.name), "not rendered"
        if entry.table in rendered:
            filled = rendered[entry.table]
            name = rf"\hyperref[{latex.label(filled)}]{{{name}}}"
            cells = cell_counts(filled)
        sides = ([claim.paper for claim in entry.claims], [claim.ours for claim in entry.claims])
        lines.append(" & ".join([name, cells, *(rf"\raggedright {tally(side)}" for side in sides)]))
        lines[-1] += r"\tabularnewline"
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _origin(of: Origin) -> list[str]:
    """Return the cost of the runs, their commits and their environment."""
    facts = [
        (
            "Commit",
            [(commit + (" with uncommitted changes" if dirty else ""), n) for commit, dirty, n in of.commits],
        )
    ]
    facts += [(title, list(values)) for title, values in of.facts]
    lines = [r"\section{Cost}", *(markup.tex(markup.literal(line)) + r"\par" for line in of.spent)]
    if not of.commits:
        return lines
    lines += [r"\section{Environment}", f"As the {counted(of.num_runs, 'run')} recorded it.", r"\par\medskip"]
    lines += [r"\begingroup\footnotesize\raggedright\setlength{\parskip}{1pt}"]
    for title, values in facts:
        shown = "; ".join(f"{value} ({counted(number, 'run')})" for value, number in values)
        lines.append(
            rf"\hangindent=9em\hangafter=1\makebox[9em][l]{{{markup.tex(markup.literal(title))}}}"
            rf"{markup.tex(markup.literal(shown), breaks=True)}\par"
        )
    return [*lines, r"\endgroup"]


def _section(filled: Filled) -> list[str]:
    """Return one table with its notes, claims and figures; nothing floats away from its section."""
    shown = display(filled)
    return [
        rf"\clearpage\section{{{markup.tex(filled.name)}}}\label{{{latex.label(filled)}}}",
        rf"{{\raggedright {markup.tex(filled.body, breaks=True)}\par}}",
        r"\begingroup\centering\medskip",
        *(text for part in latex.floats(shown, LINE) for text in (*part, r"\par\medskip")),
        r"\par\endgroup",
        *latex.notes(filled, shown, r"\textbf{Notes.}"),
        *_figures(filled),
    ]


def _figures(filled: Filled) -> list[str]:
    """Return the figures whose files exist when the document is typeset, each with its caption."""
    lines = []
    for figure in filled.figures:
        if file := figure_file(figure.name):
            title = rf"\par\footnotesize {markup.tex(figure.title, breaks=True)}\par"
            lines += [
                rf"\IfFileExists{{{file}}}{{\begin{{center}}",
                rf"\includegraphics[width=124mm,height=.88\textheight,keepaspectratio]{{{file}}}",
                rf"{title}\end{{center}}}}{{}}",
            ]
    return lines


def figure_file(name: str) -> str:
    """Return the path of a figure relative to the document; empty for a name that no figure can have."""
    return f"{FIGURES}/{name}.png" if re.fullmatch(r"[\w-]+", name, re.ASCII) else ""


def _with_code(text: str) -> str:
    """Return markup as LaTeX, with the text between backticks as code."""

    def words(piece: str) -> str:
        return markup.tex(piece, breaks=True)

    return markup.with_code(text, words, lambda code: rf"\texttt{{{words(code)}}}")


# The PDF
# ------------------------------------------------------------------------------------------------------------


def sources(folder: Path) -> dict[str, Path]:
    """Return the files from which the PDF is made, by their names relative to the document."""
    text = _text(folder / TEX)
    figures = sorted(set(re.findall(rf"\\IfFileExists{{({FIGURES}/[\w-]+\.png)}}", text, re.ASCII)))
    return {name: folder / name for name in (TEX, *figures) if (folder / name).is_file()}


def typeset(folder: Path) -> str:
    """Write `report.pdf` from `report.tex`, and return "", or one line that explains why there is none.

    Raises:
        OSError: the PDF cannot be written.
    """
    program = shutil.which("pdflatex")
    if program is None:
        return _without("pdflatex is not installed")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for file, path in sources(folder).items():
            (work / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, work / file)
        command = [program, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", TEX]
        for _ in range(PASSES):
            try:
                done = subprocess.run(
                    command,
                    cwd=work,
                    env={**os.environ, **FIXED},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=LONGEST_PASS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return _without(f"pdflatex needed more than {counted(LONGEST_PASS, 'second')}")
            except OSError as error:
                return _without(f"pdflatex cannot be started ({error.strerror})")
            if done.returncode:
                return _without(f"pdflatex stopped: {_problem(done.stdout)}")
        write_atomic(folder / PDF, (work / PDF).read_bytes(), durable=True)
    return ""


def _without(reason: str) -> str:
    return f"{PDF} is not made: {reason}. {TEX} has the same content."


def _problem(output: bytes) -> str:
    """Return the first error that pdflatex printed, on one line."""
    lines = output.decode("utf-8", "replace").splitlines()
    found = next((line.removeprefix("!").strip() for line in lines if line.startswith("!")), "")
    return "".join(each if each.isprintable() else " " for each in found).rstrip(".") or "it printed no error"


def _text(path: Path) -> str:
    """Return the content of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, ValueError):
        return ""
