"""The prose of the project is plain English: phrases that read as translated stay out.

The phrases are looked for in docstrings, comments and strings of the code, and in the documents.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = [
    *sorted((ROOT / "reproduce").rglob("*.py")),
    *sorted((ROOT / "configs").glob("*.py")),
    *sorted((ROOT / "tables").glob("*.py")),
    *sorted((ROOT / "bench").glob("*.py")),
    ROOT / "tasks.py",
]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "configs" / "site.example.toml",
    ROOT / "reports" / "README.md",
]
OPENINGS = re.compile(r"(Of|What|Whether|Whoever|How|Those|That|Its|Whose|Where|If it|Return whether)\b")
"""First words of a docstring that does not say what the function does or the attribute is."""
PHRASES = re.compile(
    r"\b(is|are|was|were) no (?!longer\b|more\b)[a-z]"
    r"|\b(whoever|whomever|somebody|nobody|everybody|anybody)\b"
    r"|\bof which (it|they)\b"
    r"|\bat will\b"
    r"|\banew\b"
    r"|\b(is|are|was|were|be|being|been) told to\b"
    r"|\b(is|are) told\b"
    r"|\bgoes on\b|\bgo on\b|\bgoing on\b"
    r"|\b(is|are) (not )?here\b(?! to compare)"
    r"|\bpassed over\b"
    r"|\bat the most\b"
    r"|\bdoes (a|the|this|that) run\b"
    r"|\b[Bb]eside\b"
    r"|\bby others\b"
    r"|\bas of `"
    r"|\bin (a|one) line\b",
    re.IGNORECASE,
)
"""Phrases that have a plain equivalent; CONTRIBUTING.md, The English, lists it."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring, of attributes too."""
    for node in ast.walk(tree):
        for statement in (
            getattr(node, "body", None) or () if not isinstance(node, (ast.Lambda, ast.IfExp)) else ()
        ):
            value = getattr(statement, "value", None)
            if (
                isinstance(statement, ast.Expr)
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ):
                yield statement.lineno, value.value


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string, docstrings and the texts of f-strings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def shown(path: Path, line: int, text: str, found: re.Match[str]) -> str:
    around = " ".join(text[max(0, found.start() - 30) : found.end() + 30].split())
    return f"{path.relative_to(ROOT)}:{line}: '{found[0]}' in '{around}'"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_reads_as_english(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    found = [
        shown(path, line, text, match)
        for line, text in (*strings(tree), *comments(source))
        for match in PHRASES.finditer(" ".join(text.split(" ")))
    ]
    found += [
        shown(path, line, text, match)
        for line, text in docstrings(tree)
        if (match := OPENINGS.match(text.strip()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_documents_read_as_english(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [
        shown(path, text[: match.start()].count("\n") + 1, text, match) for match in PHRASES.finditer(text)
    ]
    assert not found, "\n".join(found)
