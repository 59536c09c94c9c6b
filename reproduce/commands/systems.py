"""README's table of the paper's systems: trained here, evaluated as released, or quoted and why.

    from reproduce.commands.systems import written
    text = written(readme)

It is generated from the cells of `tables/`, so it cannot differ from what the commands do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from reproduce.plan import Request, table_names
from reproduce.report.table import Cell, Table

MARK, END = "<!-- systems -->", "<!-- /systems -->"
"""Lines of README.md around the table."""
HEAD = ("systems of Tables {}", "our number next to the paper's")
OURS = "MSBReg"
"""Name of the rows whose label is `Ours`."""
ALWAYS = "trained, in every table"
BY = {
    "trained": "`--baselines trained` trains the method here",
    "released": "`--baselines released` evaluates encoders that the authors released",
}
"""Origin of our number in a quoted row, by the attribute of its cells."""


@dataclass
class System:
    """A system of the paper, over all tables with its rows."""

    always: bool = False
    """True if it is trained without an option."""
    offers: set[str] = field(default_factory=set)
    """Keys of `BY` with a run in at least one cell."""
    reasons: dict[str, None] = field(default_factory=dict)
    """Reasons why it is not trained, in their order."""

    def add(self, cell: Cell) -> None:
        """Add a cell of one of its rows."""
        self.always |= cell.ours is not None
        if cell.trained is not None and not isinstance(cell.trained, str):
            self.offers.add("trained")
        elif isinstance(cell.trained, str):
            self.reasons[cell.trained] = None
        if cell.released is not None:
            self.offers.add("released")

    @property
    def text(self) -> str:
        """Second column of the table."""
        if self.always:
            return ALWAYS
        found = "; ".join(BY[key] for key in BY if key in self.offers)
        if "trained" in self.offers:
            return found
        return ". ".join(filter(None, [found, "Quoted: " + " ".join(self.reasons)]))


def written(readme: str) -> str:
    """Return the text of README.md with the newest table between its marks."""
    before, _, rest = readme.partition(MARK)
    _, _, after = rest.partition(END)
    return f"{before}{MARK}\n{table()}\n{END}{after}"


def table() -> str:
    """Return the table as Markdown: a line for all systems whose numbers have the same origin."""
    tables = [each for each in map(_built, table_names()) if _has_quoted_rows(each)]
    systems: dict[str, System] = {}
    for each in tables:
        for row in each.rows:
            for cell in row.cells.values():
                systems.setdefault(_name(row.label), System()).add(cell)
    lines: dict[str, list[str]] = {}
    for name, system in systems.items():
        lines.setdefault(system.text, []).append(name)
    ordered = sorted(lines, key=lambda text: (text != ALWAYS, "Quoted" in text, text))
    cells = [(", ".join(sorted(lines[text], key=str.lower)), text) for text in ordered]
    head = HEAD[0].format(_listed(each.number for each in tables)), HEAD[1]
    return "\n".join(f"| {first} | {second} |" for first, second in (head, ("---", "---"), *cells))


def _built(name: str) -> Table:
    return Request(table=name, scale="paper").build()


def _has_quoted_rows(table: Table) -> bool:
    """Return True if the table is the paper's and has rows that an option fills."""
    return bool(table.number) and any(
        cell.trained is not None or cell.released is not None
        for row in table.rows
        for cell in row.cells.values()
        if cell.ours is None
    )


def _name(label: str) -> str:
    """Return the system of a row: `SwAV (with multi-crop)` is SwAV, `MoCo-v2` is MoCo v2."""
    name = re.sub(r" \(.*\)$", "", label).replace("-v", " v")
    return OURS if name == "Ours" else name


def _listed(numbers: Iterable[str]) -> str:
    """Return numbers of tables in words: 1 to 5 and 10."""
    found = sorted(map(int, numbers))
    spans = list(_spans(found))
    return " and ".join(f"{first} to {last}" if last > first else str(first) for first, last in spans)


def _spans(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of neighbouring numbers."""
    start = numbers[0]
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        if following != number + 1:
            yield start, number
            start = following or start
