"""The cells of the tables that use a run, for its description and for the filters of the UI.

    found = uses.of([table])["5f0c2a9d1e77"]       # [Use(table="table8", cells=["BYOL, acc"], ...)]
    uses.as_tag(found)                             # "/table8/"

The tag of a run that a request changed by `--set`, or of the user's row, is another: `/table8 with changes/`.
The filter of the table's saved view does not match it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reproduce.report.table import Table, settings_in
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking import tags

CHANGED = " with changes"
"""End of the name of a table in the tag of a run whose settings are not those of the table."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """The cells of a table that use a run."""

    table: str
    """Name of the table, such as `table8`."""
    named: str
    """Name of the table in words, such as `Table 8`."""
    changed: bool = False
    """True if the settings of the run are not those of the table, or if the cells are in the user's row."""
    cells: list[str] = field(default_factory=list)
    """Row and column of each cell."""

    @property
    def name(self) -> str:
        """Name in the tag."""
        return f"{self.table}{CHANGED if self.changed else ''}"


def of(tables: Iterable[Table]) -> dict[str, list[Use]]:
    """Return the cells that use each run, table by table, by the run's group."""
    found: dict[str, dict[tuple[str, bool], Use]] = {}
    for table in tables:
        with_changes = bool(settings_in(table.changes))
        for row, column, ours in table.measured():
            changed = with_changes or row.added
            used: tuple[Evaluate | Pretrain, ...] = (*ours.spec.needs(), ours.spec)
            for spec in used:
                use = Use(table=table.name, named=str(table), changed=changed)
                known = found.setdefault(tags.group(spec), {})
                known.setdefault((use.table, changed), use).cells.append(f"{row.label}, {column.key}")
    return {group: list(known.values()) for group, known in found.items()}


def merged(known: Sequence[Use], more: Sequence[Use]) -> list[Use]:
    """Return the cells of two requests, each once.

    A run of a table as it is needs no second entry as a run of the table with changes.
    """
    found = {(use.table, use.changed): list(use.cells) for use in known}
    named = {use.table: use.named for use in (*known, *more)}
    for use in more:
        if use.changed and (use.table, False) in found:
            continue
        cells = found.setdefault((use.table, use.changed), [])
        cells += [cell for cell in use.cells if cell not in cells]
    return [
        Use(table=table, named=named[table], changed=changed, cells=cells)
        for (table, changed), cells in found.items()
    ]


def as_tag(uses: Iterable[Use]) -> str:
    """Return the tables in the form of the tag: `/table8/table11/`; empty if there are none."""
    names = dict.fromkeys(use.name for use in uses)
    return f"/{'/'.join(names)}/" if names else ""


def groups(tables: Iterable[Table]) -> dict[str, str]:
    """Return the tables that use the runs of an experiment, in the form of the tag, by the runs' group."""
    return {group: as_tag(found) for group, found in of(tables).items()}


def joined(known: str, more: str) -> str:
    """Return the tables of two values of the tag in one, each once."""
    names = dict.fromkeys(name for name in f"{known}{more}".split("/") if name)
    return f"/{'/'.join(names)}/"
