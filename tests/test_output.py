"""What is printed never stops a command: terminals that cannot show a character, readers that go away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import INVOKE, ROOT, Home

PRINTING = """
import os, sys
from reproduce.runs import output
output.prepare()
print(sys.argv[1])
for number in range(20_000):
    print("another line", number)
sys.stderr.write("end, code %d\\n" % output.code())
"""
"""A process that prints more than any buffer holds, and then its exit code."""


def printing(text: bytes = b"x", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Print `text` first, with these variables."""
    return subprocess.run(
        [sys.executable.encode(), b"-c", PRINTING.encode(), text],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "λ τ=.95 – é".encode()),
        ("latin-1", b"\\u03bb \\u03c4=.95 \\u2013 \xe9"),
        ("ascii:strict", rb"\u03bb \u03c4=.95 \u2013 \xe9"),
    ],
)
def test_a_character_that_the_terminal_cannot_show_is_printed_as_its_number(
    encoding: str, shown: bytes
) -> None:
    done = printing("λ τ=.95 – é".encode(), PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, shown)
    assert done.stderr == b"end, code 0\n"


def test_a_name_that_is_not_utf8_is_printed_with_its_byte() -> None:
    assert printing(b"caf\xe9.pth").stdout.splitlines()[0] == rb"caf\udce9.pth"


def test_what_controls_a_terminal_is_printed_by_its_number_except_by_a_live_display() -> None:
    code = """
import sys
from reproduce.runs import output
output.prepare()
print("a\\x1b[2Jb\\u202ec\\td\\re")
sys.stdout.write("\\r 50 %\\r 99 %\\n")
output.Drawing(sys.stdout).write("\\x1b[1mbold\\u202e\\r\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode().split("\n") == [
        "a[U+001B][2Jb[U+202E]c\td[U+000D]e",
        "\r 50 %[U+000D] 99 %",
        "\x1b[1mbold[U+202E]\r",
        "",
    ]


def piped(command: str, **variables: str) -> tuple[bytes, bytes, int]:
    """What a shell's pipeline prints, and the exit code of its first command."""
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}", "-", sys.executable, PRINTING, *INVOKE],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        check=False,
    )
    return done.stdout, done.stderr, done.returncode


def test_a_reader_that_goes_away_ends_the_printing_and_not_the_command() -> None:
    assert piped('"$1" -c "$2" first | head -1') == (b"first\n", b"end, code 0\n", 0)


def test_a_command_that_would_serve_for_ever_notices_that_its_reader_has_left() -> None:
    code = """
import sys, time
from reproduce.runs import output
output.prepare()
print("first", flush=True)
end = time.monotonic() + 60
while not output.unread() and time.monotonic() < end:
    pass
sys.exit(0 if output.unread() else 1)
"""
    assert piped(f"\"$1\" -c '{code}' | head -1") == (b"first\n", b"", 0)
    once = "from reproduce.runs import output; output.prepare(); print(output.unread())"
    assert piped(f'"$1" -c "{once}" | cat') == (b"False\n", b"", 0)


def test_an_output_that_cannot_be_written_is_one_line_and_a_failure() -> None:
    said = b"The output cannot be written (No space left on device).\n"
    assert piped('"$1" -c "$2" first > /dev/full') == (b"", said + b"end, code 1\n", 0)


def test_what_a_closed_output_would_print_is_not_written_into_the_next_file(tmp_path: Path) -> None:
    code = PRINTING.replace("print(sys.argv[1])", 'file = open(sys.argv[1], "w"); print("lost")')
    command = f"\"$1\" -c '{code}' {tmp_path}/file {{}}"
    assert piped(command.format(">&-")) == (b"", b"end, code 0\n", 0)
    assert piped(command.format(">&- 2>&- <&-")) == (b"", b"", 0)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("command", ['"${@:3}" --list', '"${@:3}" settings table8', '"${@:3}" --help table8'])
def test_a_command_whose_reader_goes_away_ends_quietly(command: str) -> None:
    out, error, code = piped(f"{command} | head -1")
    assert (out.count(b"\n"), error, code) == (1, b"", 0)
    said = b"The output cannot be written (No space left on device).\n"
    assert piped(f"{command} > /dev/full")[1:] == (said, 1)


@pytest.mark.slow
def test_a_table_goes_on_when_its_terminal_shows_no_greek_and_its_reader_goes_away(place: Home) -> None:
    table = '"${@:3}" table8 --rows "Ours (K=4)" --set epochs=0'
    variables = place.environment | {"PYTHONIOENCODING": "ascii"}
    assert piped(f"{table} | head -1", **variables) == (b"2 runs to do, 0 reused.\n", b"", 0)
    assert (place.reports / "smoke" / "table8.md").is_file()
    out, error, code = piped('"${@:3}" status | head -1', **variables)
    assert (out.count(b"\n"), error, code) == (1, b"", 0)
    out, error, code = piped('"${@:3}" status', **variables)
    assert (out.count(rb"K4 \u03bbs0 \u03bbb0 "), error, code) == (2, b"", 0)
