"""Command lines of the benchmarks: a description, and one line for a wrong option.

asked = options("bench.bench_step", __doc__, parts=PARTS)
asked.quick, asked.part, asked.inner
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import NoReturn

WRONG_USE = 2
"""Exit code of a command line that cannot be parsed."""


class Parser(argparse.ArgumentParser):
    """A parser that shows the text of a module as its help."""

    def __init__(self, module: str, text: str | None) -> None:
        """Create a parser without options but `--help`.

        Args:
            module: module that the command executes.
            text: docstring of the module.
        """
        super().__init__(
            prog=f"python -m {module}",
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print a mistake as one line, and exit with WRONG_USE."""
        print(f"{self.prog}: {message}; --help lists the options", file=sys.stderr)
        sys.exit(WRONG_USE)


def options(
    module: str, text: str | None, *, parts: Iterable[str] = (), inner: str = "", num: int = 0
) -> argparse.Namespace:
    """Return the options of a benchmark: `quick`, `part` and `inner`.

    Args:
        module, text: see `Parser`.
        parts: names of the parts that `--part` selects; empty if the benchmark has none.
        inner: option by which the benchmark starts processes of its own; empty if it does not.
        num: number of the values of that option.
    """
    parser = Parser(module, text)
    parser.add_argument("--quick", action="store_true", help="tiny settings, whose numbers mean nothing")
    names = tuple(parts)
    if names:
        parser.add_argument("--part", choices=names, default="", help="one part of a GPU's benchmark alone")
    if inner:
        parser.add_argument(inner, nargs=num, dest="inner", help=argparse.SUPPRESS)
    return parser.parse_args()
