"""Texts for users: one line for each mistake, without secrets; counts, durations and sizes in words."""

from __future__ import annotations

import base64
import difflib
import re
import shlex
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus

LONGEST = 500
"""Maximum number of characters of a reason."""
HIDDEN = "***"
"""Sign in place of a secret."""
ADDRESS = re.compile(r"\w[\w+.-]*://[^\s'\"<>`]+")
"""An address in a text."""
SECRET_OPTION = re.compile(
    r"(?<=[?&;#])([^=&;#\s]*(?:pass|pwd|token|secret|key|auth|sig|cred)[^=&;#\s]*=)([^&;#\s'\"<>`]*)",
    re.IGNORECASE,
)
"""An option of an address, such as `?password=...`, and its secret value."""
NO_PORT = re.compile(r"^((?:\w[\w+.-]*://)?(?:\[[^]/?#]*\]|[^][:/?#]*):)(?!//|\d*(?:[/?#]|$))([^/?#]+)")
"""An address with text in place of its port, such as the password if the host was forgotten."""
DAY = 86400
"""Seconds of a day."""
SHORTEST_SECRET = 4
"""Minimum characters of a secret that is hidden without its address: a shorter one is in every text."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line breaks, signs that change the direction of text (Unicode's Bidi_Control), and
halves of characters."""


class UserError(Exception):
    """A mistake in a command, the site file or the data; the message is one line for the user.

    Line breaks and control characters in it, such as those of a name in a file, are shown by number.
    Instructions to copy can follow, each on a line of its own.

    A mistake in a table, a config or a component is a programming error: it raises another exception, which
    is shown with its traceback.
    """

    def __init__(self, message: str = "", *instructions: str) -> None:
        super().__init__("\n    ".join(visible(line, keep="") for line in (message, *instructions)))


class InvalidError(UserError, ValueError):
    """Something exists, but its content or its value does not work."""


class NotFoundError(UserError, LookupError):
    """Something that was requested does not exist."""


def reason_of(error: BaseException) -> str:
    """Return an exception as a reason on one line.

    A message for users and the source of a stop request are given without the type.
    """
    text = first_line(error)
    if not text:
        return type(error).__name__
    text = text if isinstance(error, UserError | KeyboardInterrupt) else f"{type(error).__name__}: {text}"
    return visible(without_secrets(text)[:LONGEST])


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


def unprintable(text: str) -> str:
    """Return the first character of a text that would garble a terminal or a report, or "" if none would."""
    found = UNPRINTABLE.search(text)
    return found[0] if found else ""


def visible(text: str, keep: Container[str] = "\n\t") -> str:
    """Return a text with a number, such as `[U+202E]`, in place of each character that would garble it.

    Args:
        keep: characters that stay as they are.
    """
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else f"[U+{ord(found[0]):04X}]", text)


def public(address: str) -> str:
    """Return an address as texts show it: without user and password, and with `***` for secret options.

    A port that is not a number is also `***`: it is the password if the host was forgotten.
    """
    return NO_PORT.sub(rf"\1{HIDDEN}", _without_login(address))


def without_secrets(text: str, address: str = "", *secrets: str) -> str:
    """Return a text in which every address is public, and every secret is `***`.

    Args:
        address: address whose password is hidden wherever it stands, as written, decoded or encoded.
        secrets: further secrets.
    """
    login = _login(address).removesuffix("@")
    user, _, password = login.partition(":")
    known = {password or (login if address.startswith("http") else ""), *secrets}
    known |= {found[2] for found in SECRET_OPTION.finditer(address)}
    known |= {found[2] for found in NO_PORT.finditer(_without_login(address))}
    forms = {form for secret in known for form in _forms(secret)}
    if password:
        forms.add(base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())
    if public(address) != address:
        text = text.replace(address, public(address))
    text = ADDRESS.sub(lambda found: _without_login(found[0]), text)
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= SHORTEST_SECRET:
            text = text.replace(form, HIDDEN)
    return text


def _without_login(address: str) -> str:
    """Return an address without user and password, and with `***` for secret options."""
    login = _login(address)
    start = address.find("://") + 3 if "://" in address else 0
    return SECRET_OPTION.sub(rf"\1{HIDDEN}", address[:start] + address[start + len(login) :])


def _login(address: str) -> str:
    """Return the user and the password of an address, with the @ that follows; empty if it has none.

    A password may contain characters that an address must encode.
    """
    rest = address.partition("://")[2] if "://" in address else address
    authority = re.match(r"[^/?#]*", rest)
    end = authority.end() if authority else 0
    if "@" in rest[:end]:
        return rest[: rest.rindex("@", 0, end) + 1]
    unencoded = ":" in rest[:end] and not rest.startswith("[")
    return rest[: rest.rindex("@") + 1] if unencoded and "@" in rest else ""


def _forms(secret: str) -> set[str]:
    """Return a secret as written, decoded and encoded, and each of these in quotes."""
    decoded = {secret, unquote(secret), unquote_plus(secret)}
    encode: tuple[Callable[[str], str], ...] = (quote, partial(quote, safe=""), quote_plus)
    forms = decoded | {encoded(form) for form in decoded for encoded in encode}
    return forms | {repr(form)[1:-1] for form in forms}


def unknown(kind: str, asked: str, known: Iterable[str]) -> str:
    """Return one line for a name that does not exist: the name, the nearest one, and all that exist."""
    known = list(known)
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There is no {kind} '{asked:.80}'.{hint} Known: {', '.join(known) or 'none'}."


def counted(number: int, word: str) -> str:
    """Return a number of things: `1 run`, `2 runs`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def enumerated(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: `a`, `a and b`, or `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def grouped(number: int) -> str:
    """Return a number with its digits in groups of three: `9 469`."""
    return f"{number:,}".replace(",", " ")


def clock(seconds: float) -> str:
    """Return a duration as `12 s`, `3:05`, `2:04:09` or, over two days, `3.4 days`."""
    if round(seconds) > 2 * DAY:
        days = seconds / DAY
        return f"{days:.1f} days" if days < 9.95 else f"{days:.0f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def hours(seconds: float) -> str:
    """Return a cost in hours of a device, with two digits: `140`, `2.4`, `under 0.01`.

    A cost is never in days, as budgets are in hours.
    """
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
    return f"{seconds / DAY:.0f} days"


def rate(per_second: float) -> str:
    """Return a rate as `1,204`, `38` or `0.4`; a detector on a CPU takes seconds per image."""
    return f"{per_second:,.0f}" if per_second >= 10 or not per_second else f"{per_second:.1f}"


def table_command(
    table: str, rows: str, columns: str, scale: str, seeds: int, baselines: str, changes: Iterable[str]
) -> str:
    """Return the command that fills cells of a table, without the options that have their usual values."""
    given = {"--rows": rows, "--columns": columns, "--scale": scale, "--seeds": str(seeds)}
    usual = {"--rows": "*", "--columns": "*", "--scale": "smoke", "--seeds": "1", "--baselines": "quoted"}
    words = ["invoke", table]
    for option, value in (given | {"--baselines": baselines}).items():
        words += [option, value] if value != usual[option] else []
    words += [word for change in changes for word in ("--set", change)]
    return shlex.join(words)
