r"""Text of the tables in each output format; every character is escaped here and nowhere else.

Titles, labels and notes are plain Unicode with mathematics between dollar signs: `Ours, $K = 4$`,
`$\mathcal{L}_b$`, `$5 \times 10^{-4}$`. `\$` is a dollar sign. Text that was not written as markup (a reason,
a setting) goes through `literal` first.
"""

from __future__ import annotations

import html as html_entities
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reproduce.messages import unknown

SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "theta": "θ", "lambda": "λ", "mu": "μ", "xi": "ξ",
    "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "ell": "ℓ", "infty": "∞", "pm": "±", "times": "×", "cdot": "·",
    "ldots": "…", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "approx": "≈", "sim": "∼", "in": "∈", "to": "→",
    "rightarrow": "→", "checkmark": "✓", "dagger": "†", "ddagger": "‡", "log": "log", "exp": "exp", "prime": "′",
}  # fmt: skip
"""Commands without an argument, and how they look."""

OPEN, CLOSE, SCRIPTS = "{", "}", "_^"

FONTS = ("mathcal", "mathrm", "mathbf", "text", "hat")
"""Commands with one argument."""

ASCII_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
"""`[` and `*` would otherwise be arguments of a line break before them."""

UNICODE_TEX = {
    "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$",
    "≈": r"$\approx$", "→": r"$\rightarrow$", "∞": r"$\infty$", "∈": r"$\in$", "†": r"$\dagger$", "‡": r"$\ddagger$", "✓": r"$\checkmark$",
    "✗": r"$\times$", "✔": r"$\checkmark$", "✘": r"$\times$", "…": r"\ldots{}", "°": r"$^{\circ}$", "²": "$^{2}$", "³": "$^{3}$",
    "‘": "`", "’": "'", "“": "``", "”": "''", "\u00a0": "~", "\u202f": r"\,", "§": r"\S{}", "½": "$1/2$", "µ": r"$\mu$",
    **{letter: rf"$\{name}$" for name, letter in SYMBOLS.items() if len(letter) == 1 and "α" <= letter <= "ω"},
}  # fmt: skip

TEX_ACCENTS = set("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""Combining accents of the letters that pdflatex reads as they stand, in its default encodings."""

MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


@dataclass(frozen=True)
class _Format:
    """How one output format writes prose and the pieces of mathematics."""

    prose: Callable[[str], str]
    character: Callable[[str], str]
    symbol: Callable[[str], str]
    font: Callable[[str, str], str]
    """(command, content) -> text."""
    script: Callable[[str, str], str]
    """(`_` or `^`, content) -> text."""
    math: Callable[[str], str]
    """Wraps one whole formula."""


def literal(text: str) -> str:
    """Text that is not markup, as markup that prints as it stands; runs of white space become one space."""
    return " ".join(text.split()).replace("$", r"\$")


def plain(text: str) -> str:
    """Unicode without any tags, for attributes and terminals."""
    return _translate(text, _PLAIN)


def markdown(text: str) -> str:
    """GitHub Markdown that is safe inside a table's cell."""
    return _translate(text, _MARKDOWN)


def html(text: str) -> str:
    """HTML with every character of the text escaped."""
    return _translate(text, _HTML)


def tex(text: str) -> str:
    """LaTeX for pdflatex with the package amssymb."""
    return _translate(text, _TEX)


def _translate(text: str, form: _Format) -> str:
    """Every piece of `text` as the format writes it.

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
    """The formula up to its end, or up to the brace that closes it where `nested`."""
    done: list[str] = []
    for token in tokens:
        if token == CLOSE:
            if not nested:
                raise ValueError(f"A brace closes that was not opened in ${formula}$.")
            return "".join(done)
        done.append(_item(token, tokens, form, formula))
    if nested:
        raise ValueError(f"A brace is not closed in ${formula}$.")
    return "".join(done)


def _item(token: str, tokens: Iterator[str], form: _Format, formula: str) -> str:
    """One token, with its argument where it takes one."""
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
        # The space that ends a command is not printed by LaTeX; in the other formats it is what the author
        # sees in the source.
        return form.symbol(command) + (form.character(" ") if token.endswith(" ") else "")
    if command in ("%", "$", "#", "&", "_"):
        return form.prose(command)
    if command in (",", ";", ""):
        return form.character(" ")
    raise ValueError(unknown("command", command, (*SYMBOLS, *FONTS)))


def _argument(tokens: Iterator[str], form: _Format, formula: str) -> str:
    """The next token with what belongs to it."""
    token = next(tokens, None)
    if token is None:
        raise ValueError(f"An argument is missing at the end of ${formula}$.")
    return _item(token, tokens, form, formula)


def _look(command: str, content: str) -> str:
    """A letter in another font, in Unicode."""
    if command == "hat":
        return f"{content}\u0302"
    if command == "mathcal":
        letters = {"B": "ℬ", "E": "ℰ", "F": "ℱ", "H": "ℋ", "I": "ℐ", "L": "ℒ", "M": "ℳ", "R": "ℛ"}
        return "".join(letters.get(c, chr(0x1D49C + ord(c) - ord("A"))) for c in re.sub("<.*?>", "", content))
    return content


def _sign(character: str) -> str:
    """A hyphen is a minus in mathematics."""
    return {"-": "−", "'": "′"}.get(character, character)


def _escape_markdown(text: str) -> str:
    return MARKDOWN_SPECIAL.sub(r"\\\1", html_entities.escape(text, quote=False))


def _escape_tex(text: str) -> str:
    separate = re.sub("-(?=-)", "-\0", text)  # or LaTeX would join two hyphens into a dash
    return "".join("{}" if character == "\0" else _tex_character(character) for character in separate)


def _tex_character(character: str) -> str:
    """One character; accented Latin letters stand as they are, and what LaTeX lacks is named by its code
    point."""
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
    """Variables are italic."""
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
    """`\\text` needs amsmath, so it is upright mathematics with its spaces kept."""
    return rf"\{command}{{{content}}}" if command != "text" else rf"\mathrm{{{content.replace(' ', '~')}}}"


def _tex_math_character(character: str) -> str:
    """Characters of a formula; what stands for a command of its own is written as that command."""
    return {"%": r"\%", "&": r"\&", "#": r"\#"}.get(character) or (
        character if character.isascii() else UNICODE_TEX.get(character, _tex_character(character)).strip("$")
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
