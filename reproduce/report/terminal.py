"""A filled table as plain text that fits a terminal: `invoke show`.

    print("\\n".join(lines(filled, width=80)))

Rows have the labels that `--rows` accepts; a long one takes several lines. Columns that do not fit are left
out, from the right, and a line counts them. Facts, notes and emphasis are left out; the report has them.
Needs neither pandas nor jinja2.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from reproduce.messages import counted
from reproduce.report import markup
from reproduce.report.display import Display, Shown, display
from reproduce.report.filled import Filled

GAP = "  "
"""Space between two columns."""
ELLIPSIS = "…"
SHORTEST_LABEL = 8
"""Minimum columns of the terminal for the label of a row; the maximum is half of the terminal."""


@dataclass(frozen=True)
class _Block:
    """A column with its halves."""

    group: str
    heading: str
    least: int
    """Minimum width: that of the heading, and of the group's if it has no other column."""
    halves: tuple[tuple[str, ...], ...]
    """Texts of each half: the side, then one for each row."""

    @property
    def widths(self) -> list[int]:
        """Width of each half; the first one makes room for the headings."""
        widths = [max(map(width_of, half)) for half in self.halves]
        gaps = len(GAP) * (len(widths) - 1)
        widths[0] += max(0, self.least - sum(widths) - gaps)
        return widths

    @property
    def width(self) -> int:
        """Width of the column."""
        return sum(self.widths) + len(GAP) * (len(self.halves) - 1)


def lines(filled: Filled, width: int) -> Iterator[str]:
    """Yield the table: its title, the headings, and one line for each row.

    Args:
        width: columns of the terminal. A label of SHORTEST_LABEL and one column are printed even if they are
            wider.
    """
    shown = display(filled)
    labels = [markup.plain(shown.row_title), *(line.name for line in shown.lines)]
    blocks = _blocks(shown)
    label_width = min(max(map(width_of, labels)), max(SHORTEST_LABEL, width // 2))
    fitting, used = 0, label_width
    for block in blocks:
        used += len(GAP) + block.width
        fitting += used <= width
    if blocks and not fitting:
        fitting, room = 1, width - len(GAP) - blocks[0].width
        label_width = min(label_width, max(SHORTEST_LABEL, room))
    yield cut(f"{filled.table} ({filled.scale}): {markup.plain(filled.title)}", width)
    yield from _grid(shown, [wrapped(label, label_width) for label in labels], blocks[:fitting], label_width)
    if fitting < len(blocks):
        yield f"{counted(len(blocks) - fitting, 'column')} of {len(blocks)} left out: too wide."


def _blocks(shown: Display) -> list[_Block]:
    """Return the columns with the texts of their halves."""
    blocks = []
    columns = {sub.column.key: sub.column.group for sub in shown.sub_columns}
    sizes = Counter(columns.values())
    for _, members in groupby(range(len(shown.sub_columns)), lambda at: shown.sub_columns[at].column.key):
        places = list(members)
        sub = shown.sub_columns[places[0]]
        halves = tuple(
            (
                shown.sub_columns[at].side if shown.sided else "",
                *(_text(line.cells[at]) for line in shown.lines),
            )
            for at in places
        )
        group, heading = markup.plain(sub.column.group), markup.plain(sub.heading)
        alone = sizes[sub.column.group] == 1
        least = max(width_of(heading), width_of(group) if alone else 0)
        blocks.append(_Block(group, heading, least, halves))
    return blocks


def _text(cell: Shown) -> str:
    """Return a number with its spread and the sign of its comparison with the paper's."""
    spread = f" ± {cell.std} ({cell.n})" if cell.std else ""
    return f"{cell.number}{spread}{f' {cell.against}' if cell.against else ''}"


def _grid(
    shown: Display, labels: Sequence[list[str]], blocks: Sequence[_Block], label_width: int
) -> Iterator[str]:
    """Yield the lines of headings and of rows; a rule separates them.

    Args:
        labels: lines of each label, that of the headings first.
    """
    if any(block.group for block in blocks):
        spans = []
        for group, members in groupby(blocks, lambda block: block.group):
            span = list(members)
            room = sum(block.width for block in span) + len(GAP) * (len(span) - 1)
            spans.append(padded(cut(group, room), room))
        yield GAP.join([padded("", label_width), *spans]).rstrip()
    headings = [padded(block.heading, block.width, right=True) for block in blocks]
    rule = "-" * (label_width + sum(len(GAP) + block.width for block in blocks))
    yield GAP.join([padded("" if shown.sided else labels[0][0], label_width), *headings]).rstrip()
    for number, (label, *more) in enumerate(labels):
        if number == 0 and not shown.sided:
            yield rule
            continue
        if number > 1 and shown.lines[number - 1].rule_before:
            yield rule
        halves = (
            padded(half[number], room, right=True)
            for block in blocks
            for half, room in zip(block.halves, block.widths, strict=True)
        )
        yield GAP.join([padded(label, label_width), *halves]).rstrip()
        yield from more
        if number == 0:
            yield rule


def width_of(text: str) -> int:
    """Return the columns that a text takes in a terminal: wide characters take two, combining ones none."""
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def cut(text: str, width: int) -> str:
    """Return a text that takes at most `width` columns; one that was cut ends with an ellipsis."""
    if width_of(text) <= width:
        return text
    kept, used = "", width_of(ELLIPSIS)
    for character in text:
        used += _width(character)
        if used > width:
            break
        kept += character
    return kept.rstrip() + ELLIPSIS


def wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines of at most `width` columns, at least 2; a longer word is broken."""
    found, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if width_of(joined) <= width:
            line = joined
            continue
        found += [line] if line else []
        line = ""
        for character in word:
            if width_of(line + character) > width:
                found.append(line)
                line = ""
            line += character
    return [*found, line]


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return a text with spaces up to `width` columns.

    Args:
        right: the spaces come first, so that the text is aligned to the right.
    """
    space = " " * (width - width_of(text))
    return f"{space}{text}" if right else f"{text}{space}"
