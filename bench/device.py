"""First measurements on a new GPU: its benchmarks and a first table on Imagenette, within nine minutes.

    python -m bench.device                    # writes bench/results/<card>.json and <card>.zip
    python -m bench.device --out FOLDER       # writes both there
    python -m bench.device --only lightly     # single parts; the results of the same commit are kept
    python -m bench.device --quick            # tiny cases and no table, in less than a minute on a CPU

Each part is a process of its own with a budget, and all budgets together are more than nine minutes. A part
that fails is named in the result, and so is one that no longer fits in the time; the others still run, and
`--only` measures it later. Records are printed as they come. Results of `--quick` only show that the parts
run. They are in bench/results/quick, which git ignores.

The table needs the images of Imagenette (`imagenette` under [data] in the site file): three rows of Table 8
at small scale, those of docs/small-scale.md, several at once on the GPU. `invoke export` writes its report
and the records of its runs to the archive. `invoke docs` shows the results in docs/speed.md.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # `python bench/device.py` finds only this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.__main__ import lines
from bench.command import WRONG_USE, Parser
from bench.compare import PROJECT, prepare
from reproduce import site as sites
from reproduce.messages import unknown
from reproduce.runs import environment
from reproduce.runs.files import write_atomic

RESULTS = PROJECT / "bench" / "results"
QUICK_RESULTS = RESULTS / "quick"
"""Folders of the results, and of those of `--quick`."""
SECONDS = 540.0
"""Seconds for all parts together."""
GRACE = 15.0
"""Seconds for a part that has used up its budget to save its work, before it is killed."""
AT_ONCE = 3
"""Runs of the table at the same time."""
ROWS = "BYOL,Ours (K=4),Ours (K=4) + L_b + L_s"
SETTINGS = ("batch_size=256", "epochs=40", "tau=0.99", "optimizer.warmup_epochs=4")
"""Rows and settings of the first result in docs/small-scale.md."""
OF_CELL = ("row", "column", "unit", "paper", "value", "runs", "reason")
"""Columns of the table's CSV file that a result contains."""
KEPT = ("device", "kind", "cores", "python", "packages", "commit", "dirty")
"""Facts about the machine and the code that a result contains."""


@dataclass(frozen=True)
class Part:
    """A process that prints records as its last line, as a benchmark does."""

    name: str
    module: str
    options: tuple[str, ...] = ()
    seconds: float = 60.0
    """Budget in seconds."""

    def command(self) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", self.module, *self.options]


TABLE = Part("table8", "invoke", seconds=290)
EXPORT_SECONDS = 30.0
ON_GPU = (
    Part("small", "bench.bench_pretraining", ("--part", "small"), 100),
    TABLE,
    Part("step", "bench.bench_step", ("--part", "eager"), 50),
    Part("at_once", "bench.bench_pretraining", ("--part", "at_once"), 75),
    Part("compiled", "bench.bench_step", ("--part", "compiled"), 200),
    Part("large", "bench.bench_pretraining", ("--part", "large"), 90),
    Part("outside", "bench.bench_pretraining", ("--part", "outside"), 100),
    Part("lightly", "bench.bench_lightly", seconds=90),
)
"""Parts on a GPU, the most important first: the last ones may not fit in the time."""
QUICK = (
    Part("step", "bench.bench_step", ("--quick",), 30),
    Part("pretraining", "bench.bench_pretraining", ("--quick",), 30),
)
LEAST = 0.5
"""Share of its budget that a part needs to be started."""


class Session:
    """The parts that are done, and the time that is left."""

    def __init__(self, out: Path, seconds: float = SECONDS, *, quick: bool = False) -> None:
        """Write results to the folder `out`.

        Args:
            seconds: budget of all parts together.
            quick: True for tiny cases, whose results are in a file of their own.
        """
        self._out, self._began, self._total, self._quick = out, time.monotonic(), seconds, quick
        about = environment.record()
        self.result: dict[str, Any] = {key: about[key] for key in KEPT} | {
            "records": [],
            "table8": [],
            "failed": {},
            "skipped": {},
        }

    def resume(self) -> None:
        """Keep what earlier parts of the same commit have measured, but nothing of tiny cases."""
        if self._quick:
            return
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if all(before.get(key) == self.result[key] for key in KEPT):
            self.result |= {key: before[key] for key in ("records", "table8", "failed", "skipped")}

    @property
    def path(self) -> Path:
        """File of the result, named after the card."""
        kind = ".quick" if self._quick else ""
        return self._out / f"{_file_name(self.result['device'])}{kind}.json"

    @property
    def left(self) -> float:
        """Seconds that are left for further parts."""
        return self._total - (time.monotonic() - self._began)

    def measure(self, part: Part) -> None:
        """Run a part and keep its records, in place of earlier ones."""
        printed = self.process(part.name, part.command(), part.seconds)
        if printed is None:
            return
        try:
            records: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])
        except (ValueError, IndexError):
            self._note("failed", part.name, "it printed no records")
            return
        print("\n".join(lines(records)), flush=True)
        cases = [record["case"] for record in records]
        kept = [record for record in self.result["records"] if record["case"] not in cases]
        self.result["records"] = kept + records
        self.save()

    def process(
        self, name: str, command: list[str], seconds: float, *, kept: float = 0.0, shown: bool = False
    ) -> str | None:
        """Return what a command prints, or None if it is skipped or fails, with the reason in the result.

        Args:
            seconds: budget of the command.
            kept: seconds that are kept for another command.
            shown: True to print its output as it comes, and to return an empty text.
        """
        for earlier in (self.result["failed"], self.result["skipped"]):
            earlier.pop(name, None)
        budget = min(seconds, self.left - kept)
        if budget < LEAST * seconds:
            left = f"{max(0.0, budget):.0f} s are left"
            self._note("skipped", name, f"{left}, and it may take {seconds:.0f} s")
            return None
        print(f"{name} ...", flush=True)
        try:
            # A session of its own, so that a signal reaches all its processes.
            process = subprocess.Popen(
                command,
                cwd=PROJECT,
                stdout=None if shown else subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self._note("failed", name, str(error))
            return None
        try:
            printed, _ = process.communicate(timeout=budget)
        except subprocess.TimeoutExpired:
            _stop(process)
            self._note("failed", name, f"it took longer than {budget:.0f} s")
            return None
        except BaseException:
            _stop(process)
            raise
        if process.returncode:
            self._note("failed", name, f"exit code {process.returncode}; its last words are above")
            return None
        return printed or ""

    def skip(self, name: str, reason: str) -> None:
        """Note that a part is not run."""
        self._note("skipped", name, reason)

    def save(self) -> None:
        """Write the result as it is now."""
        self.result["seconds"] = round(time.monotonic() - self._began)
        self._out.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self.result, indent=1) + "\n")

    def _note(self, kind: str, name: str, reason: str) -> None:
        print(f"{name}: {kind}, {reason}", flush=True)
        self.result[kind][name] = reason
        self.save()


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process and its children; a run first writes a checkpoint."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.communicate(timeout=GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _file_name(card: str) -> str:
    """Return the name of a device as that of a file: `NVIDIA H200` is `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") or "unknown"


def table(session: Session) -> None:
    """Train and evaluate the rows of a first result, and export them."""
    site, name = sites.load(), TABLE.name
    if "imagenette" not in site.data or not site.data["imagenette"].is_dir():
        session.skip(name, "the site file names no folder with the images of Imagenette")
        return
    changes = [word for change in SETTINGS for word in ("--set", change)]
    invoke = [sys.executable, "-m", "invoke"]
    asked = [name, "--scale", "small", "--rows", ROWS, "--jobs", str(AT_ONCE), *changes]
    # Time for the export is kept, also if the table is not complete.
    kept = EXPORT_SECONDS + GRACE
    done = session.process(name, [*invoke, *asked], TABLE.seconds, kept=kept, shown=True)
    report = site.reports / "small" / f"{name}.csv"
    if done is not None and report.is_file():  # otherwise it may be an earlier one
        with report.open(encoding="utf-8", newline="") as file:
            cells = list(csv.DictReader(file))
        session.result[name] = [{key: cell[key] for key in OF_CELL} for cell in cells]
    archive = session.path.with_suffix(".zip")
    archive.unlink(missing_ok=True)
    session.process(
        "export", [*invoke, "export", "--scale", "small", "--file", str(archive)], EXPORT_SECONDS, shown=True
    )


def _budgets(parts: tuple[Part, ...]) -> str:
    """Return the names of parts with their budgets."""
    return ", ".join(f"{part.name} {part.seconds:.0f}" for part in parts)


def main(arguments: list[str]) -> int:
    """Run the command line of this module; the exit code is 1 if a part failed."""
    parts = f"Parts, with their budgets in seconds: {_budgets(ON_GPU)}.\nWith --quick: {_budgets(QUICK)}."
    parser = Parser("bench.device", f"{__doc__}\n{parts}")
    parser.add_argument("--quick", action="store_true", help="tiny cases and no table, on any device")
    parser.add_argument("--only", default="", metavar="PARTS", help="parts, separated by commas")
    parser.add_argument("--out", type=Path, help="folder of the result")
    asked = parser.parse_args(arguments)
    device = prepare()
    if device.type == "cpu" and not asked.quick:
        print("torch finds no GPU on this machine. --quick runs tiny cases on the CPU.", file=sys.stderr)
        return WRONG_USE
    known = {part.name: part for part in (QUICK if asked.quick else ON_GPU)}
    chosen = asked.only.split(",") if asked.only else list(known)
    for name in chosen:
        if name not in known:
            print(unknown("part", name, list(known)), file=sys.stderr)
            return WRONG_USE
    out = asked.out or (QUICK_RESULTS if asked.quick else RESULTS)
    session = Session(out.resolve(), quick=asked.quick)
    if asked.only:
        session.resume()
    for name in chosen:
        if name == TABLE.name:
            table(session)
        else:
            session.measure(known[name])
    if asked.quick:
        session.skip(TABLE.name, "--quick trains no table")
    session.save()
    print(session.path)
    return 1 if session.result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
