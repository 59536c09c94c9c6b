"""The page of deviations from the paper: `docs/deviations.md`, generated from the notes of the tables.

    from reproduce.commands.deviations import page
    text = page()

Notes of tables, rows and cells are read from `tables/`, so the page cannot differ from the reports. Choices
that concern several tables are listed in `report/deviations.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from reproduce.plan import SCALES, Request, table_names
from reproduce.report.deviations import CHOICES
from reproduce.report.markup import literal, markdown, with_code
from reproduce.report.table import Cell, Table

HEAD = """# Deviations from the paper

The paper leaves settings open, contradicts itself in places, and some cells of its scan cannot be read. This
page lists what this suite does in each case. It is generated: `invoke docs` writes it from the notes of the
tables, which every report prints too. Do not edit it by hand.

The paper's numbers are always stored as printed. A doubt about a number is a footnote, never a correction.
"""
MANY = 4
"""Maximum number of cells that are listed by name; more are counted."""


def page() -> str:
    """Return the page as Markdown; tables that are not the paper's are left out."""
    built = {scale: [Request(table=name, scale=scale).build() for name in table_names()] for scale in SCALES}
    tables = {scale: [each for each in found if each.number] for scale, found in built.items()}
    blocks = [HEAD.strip(), "## In several tables", _bullets(CHOICES)]
    blocks += ["## Below paper scale", _bullets(_stand_ins(tables))]
    for table in tables["paper"]:
        blocks += [_heading(table), markdown(table.title)]
        lines = [*_notes(table), *_failing_claims(table), *_missing_numbers(table)]
        blocks.append(_bullets(lines) if lines else "Nothing deviates.")
    return "\n\n".join(blocks) + "\n"


def _bullets(texts: Iterable[str]) -> str:
    """Return texts, which are markup, as a list."""
    return "\n".join(f"- {_with_code(text)}" for text in texts)


def _with_code(text: str) -> str:
    """Return markup as Markdown, with the text between backticks as code."""
    return with_code(text, markdown, lambda code: f"`{code}`")


def _heading(table: Table) -> str:
    return f"## Table{'' if table.number.isdigit() else 's'} {table.number}"


def _stand_ins(tables: Mapping[str, list[Table]]) -> Iterator[str]:
    """Yield what replaces the paper's data, networks and protocols at each scale, and what is left out."""
    for scale in SCALES:
        sentences: dict[str, None] = {}
        for paper, table in zip(tables["paper"], tables[scale], strict=True):
            caveats = [ours.spec.protocol.caveat for *_, ours in table.measured()]
            left_out = [table.cell(row.label, column.key).why_not_ours for row, column, _ in paper.measured()]
            sentences |= dict.fromkeys([table.stand_in, *caveats, *left_out])
        yield from (f"{scale.capitalize()} scale: {sentence}" for sentence in sentences if sentence)


def _notes(table: Table) -> Iterator[str]:
    """Yield the notes of the table, of its rows and of the paper's numbers."""
    yield from table.notes
    names = _names(table)
    for row in table.rows:
        if row.note:
            yield f"{names[row.label]}: {row.note}"
    yield from _by_text(table, lambda cell: cell.paper.note if cell.paper and cell.paper.value else "")


def _failing_claims(table: Table) -> Iterator[str]:
    """Yield the paper's sentences that its own printed numbers contradict."""
    for claim, verdict in zip(table.claims, table.judge_paper(), strict=True):
        if verdict == "fails":
            yield f"Fails on the paper's own numbers ({claim.source}): {claim.text}"


def _missing_numbers(table: Table) -> Iterator[str]:
    """Yield the reasons why cells lack the paper's number or ours."""
    yield from _by_text(table, lambda cell: cell.paper.note if cell.paper and not cell.paper.value else "")
    yield from _by_text(table, lambda cell: cell.why_not_ours)


def _by_text(table: Table, text_of: Callable[[Cell], str]) -> Iterator[str]:
    """Yield each text of the table's cells once, with the cells that have it."""
    names = _names(table)
    columns = {column.key: f"{column.group} {column.title}".strip() for column in table.columns}
    places: dict[str, list[str]] = {}
    for row in table.rows:
        for key, cell in row.cells.items():
            if text := text_of(cell):
                places.setdefault(text, []).append(f"{names[row.label]}, {columns[key]}")
    for text, where in places.items():
        yield f"{'; '.join(where) if len(where) <= MANY else f'{len(where)} cells'}: {text}"


def _names(table: Table) -> dict[str, str]:
    """Return the name of each row: as shown, or its label if several rows show the same name."""
    shown = {row.label: row.shown or literal(row.label) for row in table.rows}
    unique = len(set(shown.values())) == len(shown)
    return shown if unique else {label: literal(label) for label in shown}
