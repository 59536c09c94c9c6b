"""The bottom lines of a terminal: one for each run under way, and one for all.

    with Live(num_runs, time_left) as live:
        live.begin(spec_id, title)
        live.note(spec_id, "epoch 3/4, loss 0.41", rate=1074.0)
        live.line(Line("[1/2] ", "byol K=2", ": 12 s"), style="green")    # scrolls away above them

Only this module imports rich. `NO_COLOR` switches colours off, and lines are cut to the terminal's width.
"""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from reproduce import messages
from reproduce.runs import output

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from reproduce.commands.time_left import TimeLeft

SHORTEST = 16
"""Minimum columns of a title; columns to its right are left out before it becomes shorter."""
BAR = 16
"""Columns of the bar."""
WIDE = 60
"""Minimum columns of a terminal with a bar."""
RESERVED = 3
"""Columns at the right end that stay empty, where a terminal shows `^C`."""
FORECAST = " (forecast)"
"""Words behind a time that no speed was measured for yet."""
DUMB = ("dumb", "unknown", "")
"""Values of TERM of terminals that cannot move the cursor."""


def possible() -> bool:
    """Return True if standard error is a terminal that can move the cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in DUMB


class Line(NamedTuple):
    """A line about a run; a terminal that is too narrow cuts its title."""

    before: str
    title: str
    after: str

    def __str__(self) -> str:
        return f"{self.before}{self.title}{self.after}"


@dataclass
class _Row:
    """A run under way."""

    title: str
    note: str = ""
    rate: str = ""
    waiting_since: float | None = None
    """Time since when the run does what the note describes; None if the note is about its progress."""


class Live:
    """The lines of the runs under way; use it in a `with` block."""

    def __init__(self, num_runs: int, time_left: TimeLeft) -> None:
        from rich.console import Console
        from rich.live import Live as Display

        self._num_runs, self._time_left = num_runs, time_left
        self._ended = self._failed = 0
        self._rows: dict[str, _Row] = {}
        self._lock = threading.RLock()
        drawing: Any = output.Drawing(sys.stderr)
        self._console = Console(file=drawing, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        self._to_stdout = not sys.stdout.isatty()
        self._display = Display(
            console=self._console,
            get_renderable=self._rendered,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._display.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()

    def begin(self, spec_id: str, title: str, doing: str) -> None:
        """Show a run that does not report its progress yet."""
        with self._lock:
            row = self._rows.setdefault(spec_id, _Row(title))
            row.note, row.rate, row.waiting_since = doing, "", time.monotonic()

    def note(self, spec_id: str, title: str, note: str, rate: str) -> None:
        """Show the progress of a run."""
        with self._lock:
            row = self._rows.setdefault(spec_id, _Row(title))
            row.note, row.rate, row.waiting_since = note, rate, None

    def drop(self, spec_id: str, *, ended: bool = False, failed: bool = False) -> None:
        """Remove a run, and count it if it has ended."""
        with self._lock:
            self._rows.pop(spec_id, None)
            self._ended += ended
            self._failed += failed

    def line(self, line: Line, style: str = "") -> None:
        """Print a line above the others; a failure is printed whole, on several lines if necessary."""
        from rich.text import Text

        if self._to_stdout:
            print(line, flush=True)
            return
        width, line = self._console.width, Line(*map(self._encodable, line))
        if "FAILED" in line.after:
            indent = " " * len(line.before)
            text = textwrap.fill(
                str(line), width, subsequent_indent=indent, break_long_words=True, break_on_hyphens=False
            )
        else:
            room = max(width - len(line.before) - _cells(line.after), SHORTEST)
            text = self._fitted(f"{line.before}{self._fitted(line.title, room)}{line.after}", width)
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _rendered(self) -> Group:
        """Return the lines as they are now."""
        from rich.console import Group

        with self._lock:
            width = self._console.width - RESERVED
            most = max(self._console.height - 3, 1)
            shown = list(self._rows.items())[:most]
            lines = self._table(shown, width)
            if hidden := len(self._rows) - len(shown):
                lines.append(self._text(f"and {messages.counted(hidden, 'other run')}", width))
            return Group(*lines, self._summary(width))

    def _table(self, rows: list[tuple[str, _Row]], width: int) -> list[Text]:
        """Return one line for each run: its title, and columns as far as there is space."""
        cells = [self._columns(spec_id, row) for spec_id, row in rows]
        widths = [max((_cells(line[place]) for line in cells), default=0) for place in range(3)]
        order = [0, 2, 1]  # the note first, then the time left
        kept: list[int] = []
        for place in order:
            if widths[place] and width - sum(widths[each] + 2 for each in (*kept, place)) >= SHORTEST:
                kept.append(place)
        kept.sort()
        room = width - sum(widths[place] + 2 for place in kept)
        titles = [self._encodable(row.title) for _, row in rows]
        room = min(room, max((_cells(title) for title in titles), default=0))
        lines = []
        for title, line in zip(titles, cells, strict=True):
            parts = [_padded(self._fitted(title, room), room), *_pick(line, kept, widths)]
            lines.append(self._text("  ".join(parts), width))
        return lines

    def _columns(self, spec_id: str, row: _Row) -> tuple[str, str, str]:
        """Return the note, the speed and the time left of a run; empty if unknown."""
        note, rate, left = row.note, row.rate, self._time_left.of(spec_id)
        if row.waiting_since is not None:
            note, rate = f"{note}, {messages.clock(time.monotonic() - row.waiting_since)}", ""
        if left is None:
            return note, rate, ""
        origin = "" if self._time_left.has_speed(spec_id) else FORECAST
        return note, rate, f"{messages.clock(left)} left{origin}"

    def _summary(self, width: int) -> Text:
        """Return the line for all runs."""
        share = self._time_left.share
        full, empty = ("━", "─") if self._can("━─") else ("#", "-")
        bar = BAR if width >= WIDE else 0
        done = int(share * bar)
        left = self._time_left.of_all()
        words = "time left unknown" if left is None else f"{messages.clock(left)} left"
        if left is not None and not self._time_left.is_measured:
            words += FORECAST
        failed = f", {self._failed} failed" if self._failed else ""
        ended = f"{self._ended} of {messages.counted(self._num_runs, 'run')} ended{failed}"
        text = self._text(f"{full * done}{empty * (bar - done)}  {ended}  {words}".lstrip(), width)
        text.stylize("red" if self._failed else "green", 0, done)
        text.stylize("dim", done, bar)
        return text

    def _text(self, text: str, width: int) -> Text:
        from rich.text import Text

        return Text(self._fitted(self._encodable(text), width), no_wrap=True, overflow="crop")

    def _fitted(self, text: str, width: int) -> str:
        """Return a text of at most `width` columns, with a sign where it was cut."""
        from rich.cells import cell_len, set_cell_size

        if cell_len(text) <= width:
            return text
        sign = "…" if self._can("…") else "~"
        return set_cell_size(text, max(width - 1, 0)).rstrip() + sign

    def _encodable(self, text: str) -> str:
        """Return a text with numbers in place of characters that the terminal cannot or must not show."""
        return (
            messages.visible(text, keep="").encode(self._encoding, "backslashreplace").decode(self._encoding)
        )

    def _can(self, text: str) -> bool:
        return self._encodable(text) == text


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def _pick(line: tuple[Any, ...], kept: list[int], widths: list[int]) -> list[str]:
    """Return the columns that there is space for: notes to the left, numbers to the right."""
    return [
        _padded(line[place], widths[place]) if place == 0 else line[place].rjust(widths[place])
        for place in kept
    ]
