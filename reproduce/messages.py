"""Texts for users: one line for each mistake; counts, durations and sizes in words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

LONGEST = 500
"""Maximum number of characters of a reason."""


class UserError(Exception):
    """A mistake in a command, the site file or the data; the message is one line for the user.

    A mistake in a table, a config or a component is a programming error: it raises another exception, which
    is shown with its traceback.
    """


class InvalidError(UserError, ValueError):
    """Something exists, but its content or its value does not work."""


class NotFoundError(UserError, LookupError):
    """Something that was requested does not exist."""


def reason_of(error: BaseException) -> str:
    """Return an exception as a reason on one line; only a message for users is given without its type."""
    text = first_line(error)
    if not text:
        return type(error).__name__
    return (text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")[:LONGEST]


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message; empty if it has none."""
    return next(iter(str(error).strip().splitlines()), "")


def from_here(text: str) -> str:
    """Return a text in which paths below the current folder are relative to it."""
    try:
        here = str(Path.cwd())
    except OSError:  # the folder was deleted
        return text
    return re.sub(rf"(?<![\w./-]){re.escape(here)}/(?=.)", "", text) if here != "/" else text


def unknown(kind: str, asked: str, known: Iterable[str]) -> str:
    """Return one line for a name that does not exist: the name, the nearest one, and all that exist."""
    known = list(known)
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There is no {kind} '{asked:.80}'.{hint} Known: {', '.join(known) or 'none'}."


def counted(number: int, word: str) -> str:
    """Return a number of things: `1 run`, `2 runs`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """Return a duration as `12 s`, `3:05` or `2:04:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def hours(seconds: float) -> str:
    """Return an estimated duration in hours, with two digits: `140`, `2.4`, `under 0.01`."""
    number = seconds / 3600
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.2g}" if number >= 0.01 else "under 0.01"


def size(num_bytes: float, digits: int = 3) -> str:
    """Return a number of bytes as `312 B`, `4.2 MB` or `1.93 GB`: powers of 1000, significant digits."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while power + 1 < len(units) and float(f"{num_bytes / 1000**power:.{digits}g}") >= 1000:
        power += 1
    return f"{float(f'{num_bytes / 1000**power:.{digits}g}'):g} {units[power]}"


def age(seconds: float) -> str:
    """Return a span of time in its largest unit: `90 s`, `45 min`, `30 h`, `12 days`."""
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def rate(per_second: float) -> str:
    """Return a rate as `1,204`, `38` or `0.4`; a detector on a CPU takes seconds per image."""
    return f"{per_second:,.0f}" if per_second >= 10 or not per_second else f"{per_second:.1f}"
