"""Run the benchmarks, print their results and write `reports/bench.json`, as `invoke bench` does.

    python -m bench                # every bench_*.py of this folder, each in its own process
    python -m bench step memory    # only these
    python -m bench step --quick   # tiny settings: shows that a benchmark runs; its numbers mean nothing

Every benchmark compares two things in one run. As its last line it prints a JSON list of the return values of
`compare.record`. The exit code is 1 if a benchmark fails and 2 if a name is unknown. A result that misses its
bar is printed but is not an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.command import WRONG_USE, Parser
from reproduce import site as sites
from reproduce.messages import unknown

FOLDER = Path(__file__).resolve().parent
FAILED = 1
NAME = 13
"""Columns of a benchmark's name."""


def names() -> list[str]:
    """Return the names of all benchmarks, such as `step` for `bench_step.py`."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def run(name: str, options: list[str]) -> list[dict[str, Any]]:
    """Run one benchmark and return its records.

    Raises:
        subprocess.CalledProcessError: the benchmark failed. Its standard error has been shown.
    """
    command = [sys.executable, "-m", f"bench.bench_{name}", *options]
    done = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=True)
    records: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return records


def lines(records: list[dict[str, Any]]) -> list[str]:
    """Return a readable table, with one line for each record and one for its details."""
    width = max(len(record["case"]) for record in records)
    return [line for record in records for line in (_line(record, width), f"{'':{NAME}}{record['detail']}")]


def _line(record: dict[str, Any], width: int) -> str:
    value = "-" if record["value"] is None else f"{record['value']:.2f} {record['unit']}"
    verdict = {True: f"holds (bar {record['bar']})", False: f"FAILS (bar {record['bar']})", None: ""}[
        record["holds"]
    ]
    return f"{record['bench']:{NAME}}{record['case']:{width}}  {value:>8}  {verdict}".rstrip()


def main(arguments: list[str]) -> int:
    """Run the command line of this module and return its exit code."""
    parser = Parser("bench", f"{__doc__}\nBenchmarks: {', '.join(names())}.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny settings, whose numbers mean nothing")
    given = parser.parse_args(arguments)
    asked, options = given.names or names(), ["--quick"] if given.quick else []
    for wrong in set(asked) - set(names()):
        print(unknown("benchmark", wrong, names()), file=sys.stderr)
        return WRONG_USE
    records, failed = list[dict[str, Any]](), list[str]()
    for name in asked:
        try:
            found = run(name, options)
        except subprocess.CalledProcessError as error:
            print(f"{name:{NAME}}failed with exit code {error.returncode}", file=sys.stderr)
            failed.append(name)
        else:
            records += found
            print("\n".join(lines(found)), flush=True)
    path = sites.load().reports / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")
    print(path)
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
