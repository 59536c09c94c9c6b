r"""Text of the tables in each output format; this module alone escapes characters.

Titles, labels and notes are plain Unicode with mathematics between dollar signs: `Ours, $K = 4$`,
`$\mathcal{L}_b$`, `$5 \times 10^{-4}$`. `\$` is a dollar sign. Text that was not written as markup (a reason,
a setting) goes through `literal` first.
"""

from __future__ import annotations

import html as html_entities
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from reproduce.messages import unknown, visible

SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "theta": "θ",
    "lambda": "λ", "mu": "μ", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ",
    "ell": "ℓ", "infty": "∞", "pm": "±", "times": "×", "cdot": "·", "ldots": "…", "le": "≤", "leq": "≤",
    "ge": "≥", "geq": "≥", "ne": "≠", "approx": "≈", "sim": "∼", "in": "∈", "to": "→", "rightarrow": "→",
    "checkmark": "✓", "dagger": "†", "ddagger": "‡", "log": "log", "exp": "exp", "prime": "′",
}  # fmt: skip
"""Commands without an argument, each with its Unicode character."""

OPEN, CLOSE, SCRIPTS = "{", "}", "_^"

FONTS = ("mathcal", "mathrm", "mathbf", "text", "hat")
"""Commands with one argument."""

ASCII_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
    "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
"""LaTeX of ASCII characters; after a line break, a bare `[` or `*` would be its argument."""

UNICODE_TEX = {
    "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$",
    "≥": r"$\geq$", "≠": r"$\neq$", "≈": r"$\approx$", "→": r"$\rightarrow$", "∞": r"$\infty$",
    "∈": r"$\in$", "†": r"$\dagger$", "‡": r"$\ddagger$", "✓": r"$\checkmark$", "✗": r"$\times$",
    "✔": r"$\checkmark$", "✘": r"$\times$", "…": r"\ldots{}", "°": r"$^{\circ}$", "²": "$^{2}$",
    "³": "$^{3}$", "‘": "`", "’": "'", "“": "``", "”": "''", "\u00a0": "~", "\u202f": r"\,", "§": r"\S{}",
    "½": "$1/2$", "µ": r"$\mu$",
    **{sign: rf"$\{name}$" for name, sign in SYMBOLS.items() if len(sign) == 1 and "α" <= sign <= "ω"},
}  # fmt: skip

TEX_ACCENTS = set("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""Combining accents of the letters that pdflatex accepts unchanged in its default encodings."""

LONGEST = 24
"""Number of characters above which a word may be broken across lines."""

FORMULA = re.compile(r"[=+\-@＝＋－＠\t\r\n]")
"""Beginning of a text that spreadsheets execute (owasp.org, CSV Injection), in wide characters too."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
"""A number, which may begin with a sign."""

MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


@dataclass(frozen=True)
class _Format:
    """Rules of one output format for prose and for the pieces of mathematics."""

    prose: Callable[[str], str]
    character: Callable[[str], str]
    symbol: Callable[[str], str]
    font: Callable[[str, str], str]
    """(command, content) -> text."""
    script: Callable[[str, str], str]
    """(`_` or `^`, content) -> text."""
    math: Callable[[str], str]
    """Wrapper of one whole formula."""


def literal(text: str) -> str:
    """Return markup that prints `text` unchanged; runs of white space become one space."""
    return " ".join(text.split()).replace("$", r"\$")


def plain(text: str) -> str:
    """Return Unicode without tags, for attributes and terminals."""
    return _translate(visible(text), _PLAIN)


def markdown(text: str) -> str:
    """Return GitHub Markdown that is safe inside a table's cell."""
    return _translate(visible(text), _MARKDOWN)


def html(text: str) -> str:
    """Return HTML with every character of the text escaped."""
    return _translate(visible(text), _HTML)


def csv(value: Any) -> Any:
    """Return a field of a CSV file: a text that a spreadsheet would take for a formula gets an apostrophe.

    A number and a text that is one stay as they are.
    """
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if FORMULA.match(value) and not NUMBER.fullmatch(value) else visible(value)


def tex(text: str, *, breaks: bool = False) -> str:
    """Return LaTeX for pdflatex with the package amssymb; a letter and its accent become one character.

    Args:
        breaks: True if a line may end within a long word, such as a path or an address.
    """
    return _translate(visible(unicodedata.normalize("NFC", text)), _TEX_WITH_BREAKS if breaks else _TEX)


def with_code(text: str, words: Callable[[str], str], code: Callable[[str], str]) -> str:
    """Return `text` translated by `words`, and the parts of it between backticks by `code`."""
    pieces = text.split("`")
    return "".join(code(piece) if index % 2 else words(piece) for index, piece in enumerate(pieces))


def _translate(text: str, form: _Format) -> str:
    """Return `text` with every piece written as the format requires.

    Raises:
        ValueError: dollar signs or braces do not pair, or a command is not in the vocabulary.
    """
    pieces = re.split(r"(?<!\\)\$", text)
    if len(pieces) % 2 == 0:
        raise ValueError(f"The dollar signs do not pair in {text!r}; write \\$ for a dollar sign.")
    done = []
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            done.append(form.prose(piece.replace(r"\$", "$")))
        else:
            tokens = iter(re.findall(r"\\[A-Za-z]+ ?|\\.|.", piece))
            done.append(form.math(_sequence(tokens, form, piece, nested=False)))
    return "".join(done)


def _sequence(tokens: Iterator[str], form: _Format, formula: str, *, nested: bool) -> str:
    """Return the formula up to its end or, if `nested`, up to its closing brace."""
    done: list[str] = []
    for token in tokens:
        if token == CLOSE:
            if not nested:
                raise ValueError(f"A closing brace has no opening brace in ${formula}$.")
            return "".join(done)
        done.append(_item(token, tokens, form, formula))
    if nested:
        raise ValueError(f"A brace is not closed in ${formula}$.")
    return "".join(done)


def _item(token: str, tokens: Iterator[str], form: _Format, formula: str) -> str:
    """Return one token, with its argument if it takes one."""
    if token == OPEN:
        return _sequence(tokens, form, formula, nested=True)
    if token in SCRIPTS:
        return form.script(token, _argument(tokens, form, formula))
    if not token.startswith("\\"):
        return form.character(token)
    command = token[1:].rstrip(" ")
    if command in FONTS:
        return form.font(command, _argument(tokens, form, formula))
    if command in SYMBOLS:
        # LaTeX does not print the space that ends a command. The other formats print it, as the author sees
        # it in the source.
        return form.symbol(command) + (form.character(" ") if token.endswith(" ") else "")
    if command in ("%", "$", "#", "&", "_"):
        return form.prose(command)
    if command in (",", ";", ""):
        return form.character(" ")
    raise ValueError(unknown("command", command, (*SYMBOLS, *FONTS)))


def _argument(tokens: Iterator[str], form: _Format, formula: str) -> str:
    """Return the next token with its own argument."""
    token = next(tokens, None)
    if token is None:
        raise ValueError(f"An argument is missing at the end of ${formula}$.")
    return _item(token, tokens, form, formula)


def _look(command: str, content: str) -> str:
    """Return a letter in another font, in Unicode."""
    if command == "hat":
        return f"{content}\u0302"
    if command == "mathcal":
        letters = {"B": "ℬ", "E": "ℰ", "F": "ℱ", "H": "ℋ", "I": "ℐ", "L": "ℒ", "M": "ℳ", "R": "ℛ"}
        return "".join(letters.get(c, chr(0x1D49C + ord(c) - ord("A"))) for c in re.sub("<.*?>", "", content))
    return content


def _sign(character: str) -> str:
    """Return the mathematical form of a character: a hyphen becomes a minus."""
    return {"-": "−", "'": "′"}.get(character, character)


def _escape_markdown(text: str) -> str:
    return MARKDOWN_SPECIAL.sub(r"\\\1", html_entities.escape(text, quote=False))


def _escape_tex(text: str) -> str:
    separate = re.sub("-(?=-)", "-\0", text)  # otherwise LaTeX joins two hyphens into a dash
    return "".join("{}" if character == "\0" else _tex_character(character) for character in separate)


def _escape_tex_with_breaks(text: str) -> str:
    """Return prose in which a line may end within a long word: after each sign, or after many letters."""

    def breakable(word: re.Match[str]) -> str:
        pieces = re.findall(rf"[^\W_]{{1,{LONGEST}}}[\W_]?|[\W_]", word.group())
        return r"\allowbreak{}".join(map(_escape_tex, pieces))

    return "".join(
        breakable(word) if len(word.group()) > LONGEST else _escape_tex(word.group())
        for word in re.finditer(r"\S+|\s+", text)
    )


def _tex_character(character: str) -> str:
    """Return one character; accented Latin letters stay, and a code point replaces what LaTeX lacks."""
    if character in ASCII_TEX:
        return ASCII_TEX[character]
    if character in UNICODE_TEX:
        return UNICODE_TEX[character]
    decomposed = unicodedata.normalize("NFD", character)
    letter, accents = decomposed[0], decomposed[1:]
    if (
        letter.isascii() and letter.isprintable() and set(accents) <= TEX_ACCENTS
    ) or character in "ßæœøłÆŒØŁ":
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"


def _html_character(character: str) -> str:
    """Return one character of a formula; variables are italic."""
    return (
        f"<i>{character}</i>"
        if character.isascii() and character.isalpha()
        else html_entities.escape(_sign(character))
    )


def _html_font(command: str, content: str) -> str:
    if command in ("mathrm", "text"):
        return re.sub("</?i>", "", content)
    return _look(command, content) if command != "mathbf" else f"<b>{content}</b>"


def _tex_font(command: str, content: str) -> str:
    """Return letters in another font; `\\text` needs amsmath, so it becomes upright mathematics."""
    return rf"\{command}{{{content}}}" if command != "text" else rf"\mathrm{{{content.replace(' ', '~')}}}"


def _tex_math_character(character: str) -> str:
    """Return one character of a formula, as a command if LaTeX has one for it."""
    return {"%": r"\%", "&": r"\&", "#": r"\#"}.get(character) or (
        character
        if character.isascii() and character.isprintable()
        else UNICODE_TEX.get(character, _tex_character(character)).strip("$")
    )


_PLAIN = _Format(
    prose=str,
    character=_sign,
    symbol=SYMBOLS.__getitem__,
    font=_look,
    script=lambda sign, content: f"{sign}{content}",
    math=str,
)
_MARKDOWN = _Format(
    prose=_escape_markdown,
    character=lambda character: _escape_markdown(_sign(character)),
    symbol=SYMBOLS.__getitem__,
    font=_look,
    script=lambda sign, content: f"<sub>{content}</sub>" if sign == "_" else f"<sup>{content}</sup>",
    math=str,
)
_HTML = _Format(
    prose=html_entities.escape,
    character=_html_character,
    symbol=SYMBOLS.__getitem__,
    font=_html_font,
    script=lambda sign, content: f"<sub>{content}</sub>" if sign == "_" else f"<sup>{content}</sup>",
    math=lambda content: f'<span class="math">{content}</span>',
)
_TEX = _Format(
    prose=_escape_tex,
    character=_tex_math_character,
    symbol=lambda name: rf"\{name} ",
    font=_tex_font,
    script=lambda sign, content: f"{sign}{{{content}}}",
    math=lambda content: f"${re.sub(' (?=[_^} ])', '', content.strip())}$",
)
_TEX_WITH_BREAKS = replace(_TEX, prose=_escape_tex_with_breaks)
