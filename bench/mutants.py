"""Mutation check: change one place of the code at a time, and see if a test fails.

    python -m bench.mutants                               # 40 random places of all packages, a few hours
    python -m bench.mutants --number 10 --seed 3 reproduce/nn reproduce/methods
    python -m bench.mutants --number 200 --list           # only show the mutations
    python -m bench.mutants --tests near                  # stop after the tests that import the module

Each mutation is made in a clone of the last commit. The tests that import the changed module run first, then
the fast part of the suite, then all of it, until one fails. Tests that fail without a mutation, too, notice
nothing: those that failed run once more on an unchanged clone. A mutation that no test notices is a survivor.
It is printed in the end and is either a missing test or a change without effect. The exit code is 1 if any
survives.
"""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.command import Parser
from reproduce.messages import counted

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("reproduce", "configs", "tables", "tasks.py")
SECONDS = 1800
"""Limit of one run of pytest. A mutation that lets it wait for so long has been noticed."""
STAGES = ("near", "fast", "all")
COMPARED = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
CALCULATED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*"}


@dataclass(frozen=True)
class Mutation:
    """The bytes `start` to `end` of a file replaced."""

    path: Path
    line: int
    start: int
    end: int
    new: str
    kind: str

    @cached_property
    def old(self) -> str:
        """Text before the mutation, on one line."""
        return (PROJECT / self.path).read_bytes()[self.start : self.end].decode()

    def apply(self, clone: Path) -> None:
        """Change the file in a clone."""
        file = clone / self.path
        source = file.read_bytes()
        file.write_bytes(source[: self.start] + self.new.encode() + source[self.end :])

    def __str__(self) -> str:
        """Place and change, on one line."""
        old, new = (re.sub(r"\s+", " ", text) for text in (self.old, self.new))
        return f"{self.path}:{self.line}  {self.kind}: {_short(old)} -> {_short(new)}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:28]} ... {text[-27:]}"


class Mutations(ast.NodeVisitor):
    """All single changes of one file that are worth a test.

    Texts, annotations and docstrings stay as they are.
    """

    def __init__(self, path: Path) -> None:
        """Read `path`, relative to the project."""
        self._path = path
        self._source = (PROJECT / path).read_bytes()
        lines = self._source.splitlines(keepends=True)
        self._begins = [sum(map(len, lines[:number])) for number in range(len(lines))]
        self.found: list[Mutation] = []
        self.visit(ast.parse(self._source))

    def _text(self, node: ast.expr | ast.stmt) -> str:
        return ast.get_source_segment(self._source.decode(), node) or ""

    def _add(self, node: ast.expr | ast.stmt, new: str, kind: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._begins[node.lineno - 1] + node.col_offset
        end = self._begins[node.end_lineno - 1] + node.end_col_offset
        self.found.append(Mutation(self._path, node.lineno, start, end, new, kind))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Look into defaults and body, not into annotations and decorators."""
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Look into the value, not into the annotation."""
        if node.value is not None:
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Leave out a call that is a statement."""
        if isinstance(node.value, ast.Constant):
            return
        self._add(node, "pass", "statement")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Leave out an assignment such as `a += b`."""
        self._add(node, "pass", "statement")
        self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        """Negate a condition, unless a type checker is the only one to read it."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._add(node.test, f"not ({self._text(node.test)})", "condition")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Negate the condition of an expression."""
        self._add(node.test, f"not ({self._text(node.test)})", "condition")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Leave out the filter of a comprehension."""
        for condition in node.ifs:
            self._add(condition, "True", "filter")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Change the operator of a comparison to its neighbour or opposite."""
        if len(node.ops) == 1:
            left, right = self._text(node.left), self._text(node.comparators[0])
            self._add(node, f"({left}) {COMPARED[type(node.ops[0])]} ({right})", "comparison")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Exchange `and` and `or`."""
        word = "or" if isinstance(node.op, ast.And) else "and"
        self._add(
            node, "(" + f" {word} ".join(f"({self._text(each)})" for each in node.values) + ")", "logic"
        )
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Leave out a sign or a `not`."""
        self._add(node, f"({self._text(node.operand)})", "sign")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Exchange plus and minus, times and divided by, unless texts are joined."""
        texts = (ast.JoinedStr, ast.List, ast.Tuple)
        literal = any(
            isinstance(side, texts)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
            for side in (node.left, node.right)
        )
        if type(node.op) in CALCULATED and not literal:
            left, right = self._text(node.left), self._text(node.right)
            self._add(node, f"(({left}) {CALCULATED[type(node.op)]} ({right}))", "arithmetic")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Swap the first two arguments, or leave out a keyword."""
        if len(node.args) >= 2 and not any(isinstance(each, ast.Starred) for each in node.args[:2]):
            first, second = node.args[:2]
            between = self._between(first, second)
            self._span(first, second, self._text(second) + between + self._text(first), "swapped")
        if node.keywords and node.keywords[-1].arg and (node.args or len(node.keywords) > 1):
            before = node.keywords[-2] if len(node.keywords) > 1 else None
            last = node.args[-1] if before is None else max([before.value, *node.args], key=_end)
            self._span(last, node.keywords[-1].value, self._text(last), "keyword")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Change a number by one, double it if it is not whole, or turn a truth value."""
        if isinstance(node.value, bool):
            self._add(node, str(not node.value), "constant")
        elif isinstance(node.value, int):
            self._add(node, str(node.value + 1), "constant")
        elif isinstance(node.value, float):
            self._add(node, repr(node.value * 2 or 1.0), "constant")

    def _between(self, first: ast.expr, second: ast.expr) -> str:
        start = self._begins[(first.end_lineno or 1) - 1] + (first.end_col_offset or 0)
        return self._source[start : self._begins[second.lineno - 1] + second.col_offset].decode()

    def _span(self, first: ast.expr, last: ast.expr, new: str, kind: str) -> None:
        start = self._begins[first.lineno - 1] + first.col_offset
        end = self._begins[(last.end_lineno or 1) - 1] + (last.end_col_offset or 0)
        self.found.append(Mutation(self._path, first.lineno, start, end, new, kind))


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def files(asked: Sequence[str]) -> list[Path]:
    """Return the Python files of folders and files, relative to the project.

    Raises:
        SystemExit: one of them does not exist.
    """
    found = list[Path]()
    for name in asked:
        place = PROJECT / name
        if not place.exists():
            raise SystemExit(f"{name} is neither a file nor a folder of the project.")
        found += sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return [path.relative_to(PROJECT) for path in found]


def draw(paths: Sequence[Path], number: int, seed: int) -> list[Mutation]:
    """Return random mutations, no two of the same line.

    A file is drawn by the number of its places, so that each place has the same chance.
    """
    places = [mutation for path in paths for mutation in Mutations(path).found]
    random.Random(seed).shuffle(places)  # noqa: S311
    drawn = dict[tuple[Path, int], Mutation]()
    for mutation in places:
        if len(drawn) < number and _compiles(mutation):
            drawn.setdefault((mutation.path, mutation.line), mutation)
    return list(drawn.values())


def _compiles(mutation: Mutation) -> bool:
    source = (PROJECT / mutation.path).read_bytes()
    try:
        compile(source[: mutation.start] + mutation.new.encode() + source[mutation.end :], "mutant", "exec")
    except SyntaxError:
        return False
    return True


def near(path: Path) -> list[str]:
    """Return the test files that import a module, by the words of their imports."""
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    package, _, name = module.rpartition(".")
    imports = re.compile(
        rf"^\s*(?:import {re.escape(module)}\b|from {re.escape(module)} import"
        rf"|from {re.escape(package)} import [^\n]*\b{re.escape(name)}\b)",
        re.MULTILINE,
    )
    tests = sorted((PROJECT / "tests").glob("test_*.py"))
    return [f"tests/{test.name}" for test in tests if imports.search(test.read_text(encoding="utf-8"))]


class Clone:
    """A clone of the last commit, removed in the end."""

    def __enter__(self) -> Clone:
        """Make the clone."""
        self._folder = tempfile.mkdtemp(prefix="mutant-")
        Path(self._folder).chmod(0o755)  # tests start processes of other users
        self.path = Path(self._folder) / "project"
        subprocess.run(["git", "clone", "--quiet", "--shared", PROJECT, self.path], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def fails(self, options: Sequence[str]) -> list[str]:
        """Run tests and return those that fail, or the reason why none could run."""
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        environment.setdefault("MSBREG_SHARED_DATA", str(PROJECT.parent / "shared" / "data"))
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *options]
        try:
            done = subprocess.run(
                command, cwd=self.path, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return [f"nothing within {SECONDS} s"]
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        return failed or ([f"pytest, exit code {done.returncode}"] if done.returncode not in (0, 5) else [])


def stages(mutation: Mutation, last: str) -> Iterator[list[str]]:
    """Yield the options of pytest for each stage up to `last`."""
    parallel = ["--maxfail=1", "-n", str(os.cpu_count() or 1), "--dist", "loadfile"]
    direct = near(mutation.path)
    if direct:
        yield ["--maxfail=1", *direct]
    if last != "near":
        yield [*parallel, "-m", "not slow"]
    if last == "all":
        yield [*parallel, "-m", "slow"]


def noticed(mutation: Mutation, last: str) -> str:
    """Return the first test that fails, or "" if none does."""
    with Clone() as clone:
        mutation.apply(clone.path)
        for options in stages(mutation, last):
            if failed := clone.fails(options):
                return failed[0]
    return ""


def without_reason(tests: Sequence[str]) -> set[str]:
    """Return the tests that fail on an unchanged clone."""
    named = sorted({test for test in tests if test.startswith("tests/")})
    if not named:
        return set()
    with Clone() as clone:
        return set(clone.fails(named))


def main(arguments: Sequence[str]) -> int:
    """Run the command line of this module and return its exit code."""
    parser = Parser("bench.mutants", __doc__)
    parser.add_argument("where", nargs="*", default=PACKAGES, help="folders and files (all packages)")
    parser.add_argument("--number", type=int, default=40, help="mutations (40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of their choice (0)")
    parser.add_argument("--tests", choices=STAGES, default="all", help="tests that may notice (all)")
    parser.add_argument("--list", action="store_true", help="show the mutations, run nothing")
    asked = parser.parse_args(arguments)
    drawn = draw(files(asked.where), asked.number, asked.seed)
    if asked.list:
        print("\n".join(map(str, drawn)))
        return 0
    by = dict[Mutation, str]()
    for mutation in drawn:
        by[mutation] = noticed(mutation, asked.tests)
        print(f"{mutation}\n    {by[mutation] or 'NOT NOTICED'}", flush=True)
    wrong = without_reason(list(by.values()))
    survivors = [mutation for mutation, test in by.items() if not test or test in wrong]
    print(f"\n{len(drawn) - len(survivors)} of {counted(len(drawn), 'mutation')} noticed.")
    for mutation in survivors:
        print(
            f"not noticed: {mutation}" + (f"  ({by[mutation]} fails without it, too)" if by[mutation] else "")
        )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
