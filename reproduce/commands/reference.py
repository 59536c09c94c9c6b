"""The reference of settings: what `--set` accepts in a table, and a page about every component.

    print(*lines("table8", "small"), sep="\\n")    # invoke settings table8 --scale small
    page()                                        # docs/settings.md, which `invoke docs` writes

The docstring under a field contains its meaning and its source. In `The decay rate (section 7.1).` the source
is in parentheses; `byol/configs/byol.py.` is nothing but a source. A field that a class declares again with a
source alone keeps the meaning from its base class.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reproduce.commands.options import field_docs
from reproduce.data.augmentation import Augmentation, Patches, SmallCrops
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.methods.method import Method
from reproduce.nn.heads import Heads
from reproduce.nn.optimizers import LARC, LARS, SGD, Adam
from reproduce.nn.weights import Weights
from reproduce.overrides import full_name, paths_of, settable
from reproduce.plan import BASELINES, Request, components
from reproduce.protocols.protocol import Protocol
from reproduce.runs import output
from reproduce.settings import Settings, field_types
from reproduce.site import PROJECT
from reproduce.spec import Evaluate, Pretrain

PLACE = re.compile(
    r"[Ss]ection \d|Table \d+\b(?!'s)|(\w+'s )?App\. \w|[Pp]rotocol sheet|[\w-]*/[\w./-]+|[\w-]+\.(py|yaml)"
)
"""Place that a setting comes from: a part of a paper, or a file of a repository."""
OWN_CODE = re.compile(r"`?reproduce/")
"""Beginning of a reference to our own code, which is not a source."""
CONSTANT = re.compile(r"\b(SOURCE|BASE)\b")
"""Constant of a module that contains a source."""
SHOWN = 4
"""Maximum number of values printed for a setting that varies within a table."""
INDENT = 4 * " "
"""Indentation of the meaning below a setting."""


class Meaning(NamedTuple):
    """Meaning and source of a setting, from the docstring under its field."""

    doc: str
    source: str


NOTHING = Meaning("", "")


@dataclass(frozen=True)
class Setting:
    """A setting as the reference prints it."""

    name: str
    value: str
    kind: str
    meaning: Meaning


# A table


def lines(table: str, scale: str, baselines: str = BASELINES[0]) -> Iterator[str]:
    """Yield the lines that list what `--set` accepts in a table: four columns, with the meaning below.

    Raises:
        NotFoundError: the table, the scale or the kind of baselines does not exist.
        NotHereError: the table has no such baselines.
    """
    built = Request(table=table, scale=scale, baselines=baselines).build()
    found = list(_of_runs([ours.spec for _, _, ours in built.measured()]))
    if not found:
        yield f"{built} runs nothing: it has no settings."
        return
    heads = Setting("SETTING", "VALUE", "TYPE", Meaning("", "SOURCE"))
    widths = [max(len(_cells(each)[column]) for each in (heads, *found)) for column in range(3)]
    wide = max(60, output.width()) - len(INDENT)
    for each in (heads, *found):
        cells = [cell.ljust(width) for cell, width in zip(_cells(each), widths, strict=True)]
        yield "  ".join((*cells, each.meaning.source)).rstrip()
        yield from (f"{INDENT}{line}" for line in textwrap.wrap(each.meaning.doc, wide))
    example = f"--set {found[0].name}={found[0].value.split(' | ')[0]}"
    yield ""
    yield f"{len(found)} settings of {built} at {scale} scale. Change one by name: {example}."


def _cells(each: Setting) -> tuple[str, str, str]:
    return each.name, each.value, each.kind


def _of_runs(runs: Iterable[Evaluate]) -> Iterator[Setting]:
    """Yield each setting of the runs by its full name, with the values that occur."""
    values: dict[str, dict[str, None]] = {}
    places: dict[str, tuple[Evaluate, str]] = {}
    for run in runs:
        own, paths = dict(run.leaves()), paths_of(run)
        by_name = {full_name(path, paths): path for path in paths}
        for name in settable(run):
            places.setdefault(name, (run, by_name[name]))
            values.setdefault(name, {})[written(own[by_name[name]])] = None
    for name, (run, path) in places.items():
        shown = " | ".join(list(values[name])[:SHOWN]) + (" | ..." if len(values[name]) > SHOWN else "")
        owner, key = _owner(run, path)
        yield Setting(name, shown, kind(field_types(owner)[key]), meanings(owner)[key])


def _owner(run: Settings, path: str) -> tuple[type[Settings], str]:
    """Return the class that declares the setting at a dotted path, and its field."""
    *parts, key = path.split(".")
    for part in parts:
        run = getattr(run, part)
    return type(run), key


# The page


def page() -> str:
    """Return the page about every component and its settings, in Markdown."""
    methods = components("reproduce.methods", Method)
    data = components("reproduce.data", Dataset, DetectionDataset)
    protocols = components("reproduce.protocols", Protocol)
    parts = [
        INTRODUCTION,
        *_group("Pretraining", {each.name: each for each in (Pretrain, LARS, SGD, Adam, LARC)}),
        *_group("Methods", {**methods, Heads.name: Heads}),
        *_group("Augmentation", {each.name: each for each in (Augmentation, SmallCrops, Patches)}),
        *_group("Evaluation", {"evaluate": Evaluate, Weights.name: Weights}),
        *_group("Protocols", protocols),
        *_group("Data sets", data),
    ]
    return "\n".join(parts)


INTRODUCTION = """\
# Settings

`invoke docs` writes this page from the docstrings of the code.

`--set key=value` changes a setting of every run that has it. `invoke settings table8` lists the keys and
values of one table at one scale; this page lists every component with its defaults.

A key is the path of the setting: `optimizer.base_lr`, `method.tau`, `protocol.epochs`,
`evaluation.dataset.size`. Settings of the pretraining itself have no prefix: `epochs`, `batch_size`. Commas
separate numbers that belong together: `augmentation.crop_scale=.5,1`.
"""


def _group(title: str, classes: Mapping[str, type[Settings]]) -> Iterator[str]:
    """Yield the section about some components."""
    yield f"## {title}\n"
    for name, each in classes.items():
        yield f"### {name}\n"
        yield f"{_summary(each)} (`{Path(inspect.getfile(each)).relative_to(PROJECT)}`)\n"
        yield "| setting | default | type | meaning | source |"
        yield "| --- | --- | --- | --- | --- |"
        defaults = {field.name: field.default for field in fields(each)}  # type: ignore[arg-type]
        for key, hint in field_types(each).items():
            shown = "required" if defaults[key] is MISSING else _code(written(defaults[key]))
            about = meanings(each)[key]
            yield f"| `{key}` | {shown} | {_cell(kind(hint))} | {_cell(about.doc)} | {_cell(about.source)} |"
        yield ""


def _summary(each: type[Settings]) -> str:
    """Return the first paragraph of a class's docstring on one line."""
    return " ".join((inspect.getdoc(each) or "").split("\n\n")[0].split())


def _code(text: str) -> str:
    return f"`{text}`" if text else "empty"


def _cell(text: str) -> str:
    """Return a text as a cell of a Markdown table, with its special characters escaped."""
    return re.sub(r"(?<!`)([|*<>])", r"\\\1", text)


# A setting in words


def written(value: object) -> str:
    """Return a value as `--set` accepts it."""
    if isinstance(value, Settings):
        return value.name
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:.15g}"
        return short if float(short) == value else repr(value)
    return str(value)


WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
"""Types in words."""


def kind(hint: Any) -> str:
    """Return a type in words."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if hint in WORDS:
        return WORDS[hint]
    if origin is Literal:
        return " or ".join(map(str, kinds))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if each is type(None) else kind(each) for each in kinds)
    if origin is tuple and typing.get_origin(kinds[0]) is Literal:
        return f"any of {', '.join(map(str, typing.get_args(kinds[0])))}"
    if origin is tuple:
        number = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        return f"{number}{kind(kinds[0])}s"
    return getattr(hint, "name", "") or re.sub(r"\B([A-Z])", r" \1", hint.__name__).lower()


def meanings(owner: type[Settings]) -> dict[str, Meaning]:
    """Return the meaning and the source of each setting of a class, from the nearest class that has it."""
    found = dict.fromkeys(field_types(owner), NOTHING)
    for each in reversed([each for each in owner.__mro__ if issubclass(each, Settings)][:-1]):
        for key, (doc, source) in _declared(each).items():
            if key in found:
                found[key] = Meaning(doc or found[key].doc, source or found[key].source)
    return found


def _declared(each: type[Settings]) -> dict[str, Meaning]:
    """Return the meaning and the source of what a class itself declares."""
    constants = vars(sys.modules[each.__module__])
    return {
        key: split(CONSTANT.sub(lambda name: constants.get(name[0], name[0]), text))
        for key, text in field_docs(Path(inspect.getfile(each)), each.__name__).items()
    }


def split(text: str) -> Meaning:
    """Return the meaning and the source of a setting from its docstring on one line."""
    if text.startswith("Choice: "):
        return Meaning("", text[0].lower() + text[1:].removesuffix("."))
    first, rest = _first_part(text)
    if PLACE.match(first) and not OWN_CODE.match(first):
        return Meaning(rest[:1].upper() + rest[1:], first)
    for inside in re.finditer(r" \(((?:[^()]|\([^()]*\))*)\)", text):
        if PLACE.search(inside[1]) and not OWN_CODE.match(inside[1]):
            return Meaning(text[: inside.start()] + text[inside.end() :], inside[1])
    return Meaning(text, "")


def _first_part(text: str) -> tuple[str, str]:
    """Split a text after its first clause: at a colon, semicolon or period outside parentheses."""
    found = re.match(r"((?:[^():;.]|\([^()]*\)|\.(?!\s|$)|(?<=App)\.)*)(?:[:;.]\s*|$)(.*)", text)
    return (found[1], found[2]) if found else (text, "")
