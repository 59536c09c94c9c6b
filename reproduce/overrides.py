"""What `--set key=value` means: which setting of which runs, and the value that its text stands for.

    apply, told = override(runs, "tau=0.996")       # a function from a run to the same run with that setting,
    and its full name

A key may be short: the setting of pretraining that ends in it is meant, else one of the evaluation; after
`evaluation.` one of the latter.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.nn.weights import GEOMETRY, Weights
from reproduce.spec import Evaluate, Pretrain

EVALUATION = "evaluation."
"""What a key begins with that means the evaluation's data set where pretraining has one, too."""
ORIGIN = ("encoder.url", "encoder.sha256")
"""Settings of an encoder from elsewhere that say which file it is: a run must not be recorded as one of
another file."""


def override(runs: list[Evaluate], change: str) -> tuple[Callable[[Evaluate], Evaluate], str]:
    """What one `key=value` does to a run, and how a caption tells it.

    A key means one thing among `runs`: where it names a setting of any pretraining, those of evaluations stay
    as they are.

    Raises:
        LookupError: no run has such a setting.
        ValueError: it is not of that form, or does not take that value.
    """
    key, equals, text = change.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key:
        raise InvalidError(f"--set takes key=value, such as epochs=5, not '{change}'.")
    if key.split(".")[-1] == "seed":
        raise InvalidError("The seed is not set by --set: --seeds N runs seeds 0 to N - 1.")
    meant = [(run, path) for run in runs for path in settings_named(key, run)[:1]]
    if not meant:
        raise NotFoundError(
            unknown("setting", key, sorted({path for run in runs for path in _settable(run)}))
        )
    first, path = min(meant, key=lambda each: _rank(*each))
    if path in ORIGIN:
        raise InvalidError(
            f"Which file is evaluated is not set by --set ({key}): --checkpoint or --add-row names it."
        )

    def apply(run: Evaluate) -> Evaluate:
        paths = settings_named(key, run)
        if paths and _rank(run, paths[0]) == _rank(first, path):
            for each in paths:
                value = parse(text, run.field_type(each), key)
                try:
                    run = run.replace(each, value)
                except (ValueError, TypeError) as error:  # the setting's own check refuses the user's value
                    raise InvalidError(str(error)) from None
        return run

    return apply, f"{_told(path, first)}={text}"


def _told(path: str, run: Evaluate) -> str:
    """A path as it is written where it can mean nothing else."""
    paths = [each for each, _ in run.leaves()]
    return f"{EVALUATION}{path}" if f"encoder.{path}" in paths else path.removeprefix("encoder.")


def _rank(run: Evaluate, path: str) -> int:
    """Whose setting it is: 0 that of a pretraining, 1 of weights from elsewhere, 2 of an evaluation. In a
    table the lowest is meant."""
    if not path.startswith("encoder."):
        return 2
    return 0 if isinstance(run.encoder, Pretrain) else 1


def _settable(run: Evaluate) -> Iterator[str]:
    """The settings that have a value of their own and that --set may change, as one would write them."""
    paths = [path for path, _ in run.leaves()]
    for path in paths:
        if (
            path.split(".")[-1] != "seed"
            and path not in ORIGIN
            and not any(other.startswith(f"{path}.") for other in paths)
        ):
            yield path.removeprefix("encoder.")


def settings_named(key: str, run: Evaluate) -> list[str]:
    """The paths in `run` that `key` means: a setting of the pretraining first, else one of the evaluation.

    A full path is itself; otherwise the shortest path that ends in `key` is meant. A setting of the data set
    is one of pretraining and of evaluation alike where both use the same; so is what an encoder expects of
    its images (GEOMETRY) where it sees such ones. After EVALUATION a key means the evaluation's alone.

    Raises:
        ValueError: several settings of the same depth have that name.
    """
    alone = key.startswith(EVALUATION)
    key = key.removeprefix(EVALUATION)
    paths = [path for path, _ in run.leaves() if not (alone and path.startswith("encoder."))]
    for part in ("encoder.", "protocol.", ""):
        inside = [path for path in paths if path.startswith(part)]
        exact = [path for path in inside if path in (key, part + key)]
        ending = exact or [path for path in inside if path.endswith(f".{key}")]
        if not ending:
            continue
        depth = min(path.count(".") for path in ending)
        nearest = [path for path in ending if path.count(".") == depth]
        if len(nearest) > 1:
            raise InvalidError(
                f"'{key}' may mean {' or '.join(path.removeprefix('encoder.') for path in nearest)}: give one of these."
            )
        if nearest[0].startswith("encoder.dataset.") and isinstance(run.encoder, Pretrain):
            values, own = dict(run.leaves()), nearest[0].removeprefix("encoder.")
            follows = own.removeprefix("dataset.") in GEOMETRY and values.get(own) == values[nearest[0]]
            if follows or run.dataset == run.encoder.dataset:
                nearest.append(own)
        if isinstance(run.encoder, Weights) and (expected := nearest[0].removeprefix("encoder.")) in GEOMETRY:
            shown = {
                path: value
                for path, value in run.leaves()
                if path in (f"encoder.{expected}", f"dataset.{expected}")
            }
            if len(set(shown.values())) == 1:
                nearest = list(shown)
        return nearest
    return []


def parse(text: str, hint: Any, key: str) -> Any:
    """The value that `text` stands for in a setting of type `hint`: numbers, true/false, none, words,
    comma-separated tuples.

    Raises:
        ValueError: it is not one.
    """
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if text in kinds:
            return text
        raise InvalidError(f"{key} is '{text}': choose one of {', '.join(map(str, kinds))}.")
    if origin in (typing.Union, types.UnionType):
        if type(None) in kinds and text.lower() == "none":
            return None
        return parse(text, next(kind for kind in kinds if kind is not type(None)), key)
    if origin is tuple:
        items = [item for item in text.strip("()").split(",") if item.strip()]
        each = [kinds[0]] * len(items) if kinds[-1] is Ellipsis else list(kinds)
        if len(each) != len(items):
            raise InvalidError(f"{key} takes {len(each)} values separated by commas, not '{text}'.")
        return tuple(parse(item.strip(), kind, key) for item, kind in zip(items, each, strict=True))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise InvalidError(f"{key} takes true or false, not '{text}'.")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            number = hint(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InvalidError(
                f"{key} takes {'a whole number' if hint is int else 'a number'}, not '{text}'."
            )
        return number
    if hint is str:
        return text
    raise InvalidError(
        f"{key} cannot be set to '{text}' from the command line; set one of its own settings, such as {key}.NAME=VALUE."
    )
