"""Progress on a real terminal and in a pipe, and the time left, by hand-made events and by a real run."""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import ROOT, Home

from reproduce.commands.time_left import Expected, TimeLeft
from reproduce.plan import Request
from reproduce.runs.progress import epoch_note, log_epoch
from reproduce.spec import Spec

WIDTH = 80
BYOL = Request(table="table8", rows="BYOL")
PLAY = """
import json, sys, time
from reproduce.commands.console import Console
from reproduce.commands.time_left import Expected
from reproduce.plan import Request, jobs
from reproduce.runs import output
output.prepare()
todo = jobs([Request(table="table8", rows="BYOL")])
expect = lambda: ([Expected(job.spec, 60.0) for job in todo], lambda left: sum(left.values()))
with Console(todo, 3, expect) as console:
    for line in sys.argv[1].splitlines():
        console.watch(json.loads(line))
        time.sleep(0.3)
"""
"""A command that shows events that are given to it, slowly enough to be drawn."""


class Screen:
    """What a terminal shows after some output, as far as our output uses it."""

    def __init__(self, width: int) -> None:
        self.lines, self.row, self.column, self.width = [""], 0, 0, width
        self.longest = 0

    def feed(self, text: str) -> None:
        """Apply text with control sequences."""
        for sequence, number, kind, letter in re.findall(r"(\x1b\[\??(\d*)[\d;]*([A-Za-z]))|(.|\n)", text):
            if sequence:
                if kind == "A":
                    self.row = max(self.row - int(number or 1), 0)
                elif kind == "K":
                    self.lines[self.row] = ""
                else:
                    assert kind in "mlh", sequence
            elif letter == "\r":
                self.column = 0
            elif letter == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
                self.column += 1
                self.longest = max(self.longest, self.column)


class Terminal:
    """A process in a pseudo-terminal."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], width: int = WIDTH) -> None:
        pid, self._file = pty.fork()
        if pid == 0:
            os.chdir(ROOT)
            os.execve(arguments[0], arguments, {"TERM": "xterm-256color", **environment})
        self._pid, self.output = pid, ""
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def until(self, found: Callable[[str], object], seconds: float = 100.0) -> None:
        """Read until something is found in the output or the process has ended."""
        end, raw = time.monotonic() + seconds, b""
        while not found(self.output):
            assert time.monotonic() < end, self.output
            if not select.select([self._file], [], [], 1.0)[0]:
                continue
            try:
                read = os.read(self._file, 65536)
            except OSError:  # the other side was closed
                read = b""
            if not read:
                return
            raw += read
            self.output = raw.decode(errors="ignore")

    def type(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self._file, keys)

    def end(self) -> int:
        """Read until the process ends, and return its exit code."""
        before, self.output = self.output, ""
        self.until(lambda _: False)
        self.output = before + self.output
        _, status = os.waitpid(self._pid, 0)
        os.close(self._file)
        return os.waitstatus_to_exitcode(status)

    def screen(self, width: int = WIDTH) -> Screen:
        """Return the screen after all output."""
        screen = Screen(width)
        screen.feed(self.output)
        return screen


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without what changes a terminal."""
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    return kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **changes}


def events() -> str:
    """Return events of BYOL's two runs of Table 8: the first finishes, the second fails."""
    first, second = (spec.id for spec in BYOL.specs())
    at = {"unit": "images", "total": 4000, "event": "progress", "id": first}
    made = [
        {"event": "starting", "id": first},
        {"event": "started", "id": first},
        {"event": "doing", "id": first, "what": "loading images and network"},
        {**at, "done": 1000, "note": epoch_note(1, 4, {})},
        {**at, "done": 2000, "note": epoch_note(2, 4, {"loss": 0.41253})},
        {"event": "finished", "id": first},
        {"event": "started", "id": second},
        {
            "event": "failed",
            "id": second,
            "reason": f"ValueError: {'a reason of many words ' * 6}\x1b[31m\u202eends here",
        },
    ]
    return "\n".join(json.dumps(event) for event in made)


@functools.cache
def played(width: int = WIDTH, **changes: str) -> Terminal:
    """Return the terminal after the events."""
    terminal = Terminal([sys.executable, "-c", PLAY, events()], environment(**changes), width)
    assert terminal.end() == 0, terminal.output
    return terminal


@pytest.mark.parametrize("width", [WIDTH, 50])
def test_a_terminal_shows_what_each_run_does_and_keeps_what_became_of_it(width: int) -> None:
    terminal = played(width)
    for shown in ("starting a worker, ", "epoch 1/4", "left (forecast)"):
        assert shown in terminal.output
    screen = terminal.screen(width)
    assert screen.longest <= width, "a line is wrapped"
    lines = [line.rstrip() for line in screen.lines if line.strip()]
    assert lines[0] == "2 runs to do, 3 reused."
    assert lines[1].startswith("[1/2] byol · synth 4ep · s0: ")
    assert re.search(r": \d+ s, [\d,]+ images/s$", lines[1])
    assert lines[2].startswith("[2/2] byol → linear · synth")
    failure = " ".join(" ".join(lines[2:]).split())
    assert failure.endswith("a reason of many words [U+001B][31m[U+202E]ends here")
    assert "ended" not in "".join(lines), "the live lines stay behind"


def test_a_run_under_way_has_its_epoch_loss_speed_and_time_left_on_one_line_of_80_columns() -> None:
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", played().output)
    (line, *_) = re.findall(r"[^\r\n]*epoch 2/4[^\r\n]*", drawn)
    assert re.fullmatch(
        r"byol · synth 4ep · s0 +epoch 2/4, loss 0\.4125  [\d,]+ images/s  \d.* left *",
        line.replace("\r", ""),
    ), line
    assert len(line) <= WIDTH
    # A run that waits has the forecast of its time left.
    assert re.search(r"byol · synth 4ep · s0 +loading images and network, 0 s +\d.* left \(forecast\)", drawn)
    assert re.search(r"━━━━─+  0 of 2 runs ended  \S+( s)? left", drawn), "a quarter of all work is done"
    assert re.search(r"1 of 2 runs ended  ", drawn)


def test_failed_runs_are_red_and_finished_ones_green_unless_no_colour_is_wanted() -> None:
    colours = played().output
    assert re.search(r"\x1b\[32m\[1/2\]", colours)
    assert re.search(r"\x1b\[31m\[2/2\]", colours)
    assert not re.search(r"\x1b\[[\d;]*3[0-9][\d;]*m", played(NO_COLOR="1").output)


def test_the_width_of_a_table_is_that_of_the_terminal() -> None:
    code = "from reproduce.runs import output; output.prepare(); print(output.width(), output.width(116))"
    for width, changes, shown in ((50, {}, "50 50"), (50, {"COLUMNS": "70"}, "70 70")):
        terminal = Terminal([sys.executable, "-c", code], environment(**changes), width)
        assert terminal.end() == 0
        assert terminal.screen().lines[0].strip() == shown
    piped = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(COLUMNS="wide"),
        capture_output=True,
        check=False,
    )
    assert piped.stdout == b"110 116\n"


def test_a_dumb_terminal_and_a_pipe_get_plain_lines() -> None:
    dumb = played(TERM="dumb").output.replace("\r\n", "\n")
    assert "\x1b" not in dumb
    piped = subprocess.run(
        [sys.executable, "-c", PLAY, events()],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert piped.stderr == ""
    first, one, two = piped.stdout.splitlines()
    assert first == "2 runs to do, 3 reused."
    assert re.fullmatch(r"\[1/2\] byol · synth 4ep · s0: \d+ s, [\d,]+ images/s", one)
    assert re.fullmatch(r"\[2/2\] byol → linear .*: FAILED: ValueError: a reason .*\[U\+202E\]ends here", two)
    assert [re.sub(r"[\d,]+ images", "", line) for line in dumb.splitlines()] == [
        re.sub(r"[\d,]+ images", "", line) for line in piped.stdout.splitlines()
    ]


def test_a_terminal_without_the_signs_of_titles_gets_their_numbers_and_is_not_wrapped() -> None:
    terminal = played(PYTHONIOENCODING="ascii")
    assert r"byol \xb7 synth" in terminal.output
    assert terminal.output.isascii()
    assert terminal.screen().longest <= WIDTH


@pytest.mark.slow
def test_a_real_run_that_is_interrupted_says_so_on_a_line_of_its_own(place: Home) -> None:
    invoke = [sys.executable, "-m", "invoke", "table8", "--rows", "BYOL", "--set", "epochs=400"]
    terminal = Terminal(invoke, environment(**place.environment))
    terminal.until(lambda shown: "epoch 2/400, loss " in shown)
    terminal.type(b"\x03")
    assert terminal.end() == 130
    screen = terminal.screen()
    assert [line.rstrip() for line in screen.lines if line.strip()] == [
        "2 runs to do, 0 reused.",
        "Interrupted: the runs of this command stop at a checkpoint; it resumes them.",
    ]
    assert screen.longest <= WIDTH
    (log,) = place.runs.glob("*/log.txt")
    first = log.read_text().splitlines()[0]
    assert re.fullmatch(r"epoch 1/400: loss [\d.]+, L_byol [\d.]+, .*, [\d,]+ images/s", first)


# The time left, by hand

(PRETRAINING, _) = BYOL.specs()


def tiny(seed: int = 0) -> Spec:
    """Return BYOL's pretraining."""
    return PRETRAINING.replace("seed", seed)


def left_of(expected: Expected, *points: tuple[float, float]) -> list[float | None]:
    """Return the time left after each point (time, share)."""
    left = TimeLeft([expected], lambda seconds: sum(seconds.values()))
    found = []
    for now, share in points:
        left.progress(expected.spec.id, share, now)
        found.append(left.of_all())
    return found


def test_a_forecast_gives_way_to_the_measured_speed_without_a_jump() -> None:
    """The forecast is 100 s, the run takes 200 s. After 2 %, both count alike: 98 % of 150 s remain."""
    found = left_of(Expected(tiny(), 100.0), *((200 * share, share) for share in (0.0, 0.02, 0.5, 1.0)))
    assert found == pytest.approx([100.0, 0.98 * 150, 0.5 * (2 + 100) / 0.52, 0.0])
    fine = left_of(Expected(tiny(), 100.0), *((200 * k / 1000, k / 1000) for k in range(1001)))
    steps = [abs(after - before) for before, after in itertools.pairwise(fine) if after and before]
    assert max(steps) < 5
    assert all(each is not None and each >= 0 for each in fine)


def test_a_resumed_run_is_measured_from_where_it_resumed() -> None:
    """10 s for a tenth of the work: four tenths remain."""
    assert left_of(Expected(tiny()), (5.0, 0.5), (15.0, 0.6)) == [None, pytest.approx(40.0)]
    half = TimeLeft([Expected(tiny(), 100.0, 0.5)], lambda seconds: sum(seconds.values()))
    assert half.of_all() == pytest.approx(50.0)


def test_another_stage_of_a_run_is_measured_by_itself() -> None:
    """Training, whose forecast was 100 s, has ended; a fifth of the test took 1 s."""
    points = ((0.0, 0.0), (90.0, 1.0), (91.0, 0.1), (92.0, 0.3))
    assert left_of(Expected(tiny(), 100.0), *points)[1:] == [0.0, None, pytest.approx(0.7 / 0.2)]


def test_a_waiting_run_is_corrected_by_the_finished_ones_of_its_kind() -> None:
    """The first took about twice its forecast. A tenth of a run counts for the forecast of the other."""
    one, two = tiny(), tiny(seed=1)
    left = TimeLeft([Expected(one, 100.0), Expected(two, 50.0)], lambda seconds: math.fsum(seconds.values()))
    assert (left.of_all(), left.is_measured, left.share) == (150.0, False, 0.0)
    left.progress(one.id, 0.0, 0.0)
    left.end(one.id, 200.0)
    ratio = (0.02 * 100 + 200) / 1.02 / 100
    assert left.of_all() == pytest.approx(50 * (ratio + 0.1) / 1.1)
    assert (left.is_measured, left.share) == (True, 0.5)


def test_a_time_that_is_unknown_for_one_run_is_unknown_for_all() -> None:
    left = TimeLeft([Expected(tiny(), 100.0), Expected(tiny(seed=1))], lambda seconds: sum(seconds.values()))
    assert left.of_all() is None
    left.end(tiny(seed=1).id)
    assert left.of_all() == 100.0


def test_a_line_of_the_log_has_what_was_measured(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log_epoch(3, 320, {"loss": 0.412345, "L_c": 0.3, "images_per_second": 1204.4})
    assert capfd.readouterr().err == "epoch 3/320: loss 0.4123, L_c 0.3, 1,204 images/s\n"
    assert epoch_note(3, 320, {}) == "epoch 3/320"
