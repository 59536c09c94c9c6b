"""Values that a type allows, and files that a crash, an editor or an attacker may have left: for hypothesis.

    @few
    @given(strategies.files([valid]))    # any bytes at all, and valid files that were damaged
    def test_...

`MSBREG_EXAMPLES=100` tries a hundred times as many examples, other ones each time.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.internal.conjecture import providers

MORE = int(os.environ.get("MSBREG_EXAMPLES", "1"))
"""Factor of the number of examples."""

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"msbreg-hypothesis-{os.getuid()}")
# Hypothesis also draws constants of the project's modules. Which of them are imported depends on the tests
# before these, and so would the examples.
providers._get_local_constants = lambda: providers._local_constants


def examples(number: int) -> settings:
    """Return the settings of a test of this many examples, the same ones each time."""
    return settings(
        max_examples=number * MORE,
        derandomize=MORE == 1,
        database=None,
        deadline=None,
        print_blob=MORE > 1,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


# Values
# ------------------------------------------------------------------------------------------------------------

PRINTABLE = st.text(
    st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"), include_characters=" ")
)
"""Text that a terminal shows."""
WORDS = st.text("abcXYZ019_ .-", min_size=1, max_size=12)
NAMES = st.text("abcxyz_019", min_size=1, max_size=12)
TEXTS = st.text(st.characters(), max_size=40)
"""Any text, with line breaks, control characters and halves of characters."""
IDS = st.text("0123456789abcdef", min_size=12, max_size=12)
SHA256 = st.text("0123456789abcdef", min_size=64, max_size=64)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
MOMENTS = st.integers(1_500_000_000_000, 1_750_000_000_000)
"""Times in milliseconds since 1970."""
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(max_size=10),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8), each, max_size=4),
    max_leaves=12,
)
"""What JSON can express."""

# Files
# ------------------------------------------------------------------------------------------------------------

ODD = (
    *("null", "true", "false", "0", "-1", "1.5", "1e-320", "1e308", "1e999", "-1e999", "NaN", "-Infinity"),
    *(str(2**31), str(2**63), str(2**64), "9" * 400, "-" + "9" * 400, "9" * 5000),
    *('""', '" "', '"0"', '"\\u0000"', '"\\ud800"', '"a\\nb"', '"\\u001b[31m"', '"\\u202e"', '"\u2028"'),
    *('"../../x"', '"/"', '"~nobody/x"', json.dumps("x" * 300), json.dumps("x" * 10_000)),
    *("[]", "{}", "[[]]", "[null]", '{"a": 1}', '["a", "b", "c", "d"]', "[1, 2, 3, 4]", "[" * 3000),
)
"""Values, as JSON writes them, that are seldom expected."""
SNIPPETS = (
    b"\n", b"\r\n", b"\r", b"\0", b" ", b"\xef\xbb\xbf", b"\xff\xfe", b"\x80", b'"', b"'", b"\\",
    b"{", b"}", b"[", b"]", b",", b":", b"=", b"#", b"/", b"..", b"-", b"<", b"&",
    b"9" * 30, b"1e999", b"nan", b"\x1b[2J", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\x85", b"\x1c",
    "\u202e".encode(), "\u00b2".encode(), "\u0663".encode(),
)  # fmt: skip
"""Bytes that mean something to a parser."""


@st.composite
def damaged(draw: Any, valid: Sequence[bytes]) -> bytes:
    """Return a valid file after one to three accidents."""
    content = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        accident = draw(st.sampled_from(ACCIDENTS))
        if accident == "cut":
            content = content[:start]
        elif accident == "hole":
            content = content[:start] + content[end:]
        elif accident == "twice":
            content = content[:end] + content[start:]
        elif accident == "splice":
            content = content[:start] + draw(st.sampled_from(valid))[end:]
        elif accident == "snippet":
            content = content[:start] + draw(st.sampled_from(SNIPPETS)) + content[start:]
        elif accident == "byte":
            content = content[:start] + draw(st.binary(min_size=1, max_size=1)) + content[start + 1 :]
        elif accident == "zeros":
            content = content[:start] + bytes(end - start) + content[end:]
        elif accident == "crlf":
            content = content.replace(b"\n", b"\r\n")
        elif accident == "mark":
            content = b"\xef\xbb\xbf" + content
        else:
            content = content.decode("utf-8", "replace").encode("utf-16")
    return content


ACCIDENTS = ("cut", "hole", "twice", "splice", "snippet", "byte", "zeros", "crlf", "mark", "utf-16")


@st.composite
def edited(draw: Any, valid: Sequence[bytes]) -> bytes:
    """Return a valid JSON file, or JSON lines, in which one value is another, missing, or there twice."""
    lines = draw(st.sampled_from(valid)).decode().strip().split("\n")
    try:
        content = [json.loads(line) for line in lines]
    except ValueError:
        content = [json.loads("\n".join(lines))]
    number = draw(st.integers(0, len(content) - 1))
    holder: Any = content
    key: Any = number
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 5)):
        holder = holder[key]
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    action = draw(st.sampled_from(("odd", "odd", "odd", "drop", "add", "twice")))
    odd = draw(st.sampled_from(ODD) | PLAIN.map(json.dumps))
    if action == "drop" and holder is not content:
        del holder[key]
    elif action == "twice" and isinstance(holder, dict):
        holder[MARK] = None
        odd = f"{json.dumps(key)}: {odd}"
    elif action == "add" and isinstance(holder, dict):
        holder[draw(st.sampled_from(("age", "x", "", "a\nb", "\ud800")))] = MARK
    else:
        holder[key] = MARK
    text = "\n".join(map(json.dumps, content)) + "\n"
    return text.replace(f'"{MARK}": null', odd).replace(f'"{MARK}"', odd).encode("utf-8", "surrogatepass")


MARK = "@ here @"


def files(valid: Sequence[bytes], *, is_json: bool = True) -> st.SearchStrategy[bytes]:
    """Return files that are damaged, edited if they are JSON, or anything at all."""
    some = st.binary(max_size=60) | st.sampled_from([b"", b"null", b"[]", b"{}", b"[" * 100_000, b"9" * 5000])
    return damaged(valid) | edited(valid) | edited(valid) | some if is_json else damaged(valid) | some


# Settings
# ------------------------------------------------------------------------------------------------------------


def of_type(hint: Any) -> st.SearchStrategy[Any]:
    """Return the values of a setting of a type."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        kind, limits = kinds
        if kind is int:
            return st.integers(math.ceil(limits.low), math.floor(limits.high)).filter(limits.__contains__)
        return st.floats(limits.low, limits.high).filter(limits.__contains__)
    if origin is typing.Literal:
        return st.sampled_from(kinds)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(of_type(kind) for kind in kinds if not isinstance(kind, type) or kind in SIMPLE)
    if origin is tuple and kinds[-1] is Ellipsis:
        return st.lists(of_type(kinds[0]), max_size=5).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of_type, kinds))
    return SIMPLE[hint]


SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    float: FINITE,
    bool: st.booleans(),
    str: WORDS.map(str.strip),
    type(None): st.none(),
}
