"""Standard output and standard error that never stop a command.

    output.prepare()     # once, before anything is printed
    output.width()       # columns of the terminal

A terminal that cannot show a character shows its number instead: `\\u03bb` for λ. A character that controls
a terminal or changes the direction of text is printed as `[U+202E]`. A reader that goes away, as
`head` does, ends the printing but not the command. Any other error, such as a full disk, is one line.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from reproduce.messages import visible

FAILED = 1
"""Exit code of a command whose output was lost, although there was a reader."""
TEXT = frozenset("\n\t").union(map(chr, range(0xD800, 0xE000)))
"""Control characters that are printed, with the halves of characters, which no encoding can show."""
DRAWN = TEXT | {"\r", "\x1b"}
"""Control characters of a live display, too."""
WIDTH = 110
"""Columns of a text if the output is not a terminal."""


class Output(io.TextIOWrapper):
    """Standard output or error."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        kept = {key: getattr(stream, key) for key in ("encoding", "line_buffering", "write_through")}
        super().__init__(stream.detach(), errors="backslashreplace", **kept)
        self.lost = ""
        """Error that ended the printing, unless the reader went away; else empty."""
        self.unread = False
        """True if the reader went away."""

    def write(self, text: str) -> int:
        """Write a text without control characters; a bar of progress may return to the line's start."""
        rest = text.lstrip("\r")
        return self.draw(text[: len(text) - len(rest)] + visible(rest, keep=TEXT))

    def draw(self, text: str) -> int:
        """Write a text with the sequences that move a terminal's cursor or colour it."""
        shown = visible(text, keep=DRAWN)
        return self._guarded(lambda: super(Output, self).write(shown)) or len(text)

    def flush(self) -> None:
        self._guarded(super().flush)

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """Call a function that writes. After an error, what is left goes nowhere."""
        try:
            return action()
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            self.unread = isinstance(error, BrokenPipeError)
            if not self.unread:
                self.lost = error.strerror or type(error).__name__
                print(f"The output cannot be written ({self.lost}).", file=sys.stderr)
        return None


class Drawing:
    """Standard output or error for a library that draws on a terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text with its control sequences."""
        return int(getattr(self._stream, "draw", self._stream.write)(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare() -> None:
    """Replace `sys.stdout` and `sys.stderr`; closed ones, and a closed input, lead nowhere from now on.

    A closed one would be given to the next file that is opened, and what is printed written into it.
    """
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:  # Python found it closed
            with contextlib.suppress(OSError):
                os.close(number)
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            setattr(sys, name, os.fdopen(number, mode))
        stream = getattr(sys, name)
        if mode == "w" and isinstance(stream, io.TextIOWrapper) and not isinstance(stream, Output):
            setattr(sys, name, Output(stream))


def width(otherwise: int = WIDTH) -> int:
    """Return the columns of the terminal on standard output, or `otherwise` if it is not a terminal.

    The environment variable COLUMNS takes precedence. `shutil.get_terminal_size` asks `sys.__stdout__`, which
    has no file any more after `prepare`.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdecimal() and int(columns) > 0:
        return int(columns)
    with contextlib.suppress(OSError):
        return os.get_terminal_size(1).columns or otherwise
    return otherwise


def unread() -> bool:
    """Return True if the reader of standard output has gone away."""
    sys.stdout.flush()
    poll = select.poll()
    poll.register(1, 0)
    return getattr(sys.stdout, "unread", False) or any(event & select.POLLERR for _, event in poll.poll(0))


def code() -> int:
    """Return the exit code of a command that succeeded: FAILED if its output was lost."""
    sys.stdout.flush()
    return FAILED if getattr(sys.stdout, "lost", "") else 0
