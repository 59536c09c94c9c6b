"""The settings that `--set key=value` changes, and the value that its text represents.

    apply, change = override(runs, "tau=0.996")
    apply(runs[0])      # the same run with that setting
    change              # 'method.tau=0.996', the full name

A key may be short: it means the setting of the pretraining that ends in it, or else one of the evaluation.
After `evaluation.` it means a setting of the evaluation alone.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.nn.weights import GEOMETRY, Weights
from reproduce.spec import Evaluate, Pretrain

EVALUATION = "evaluation."
"""Prefix of a key that means the evaluation's data set where the pretraining has one, too."""
MOST_VALUES = 1_000
"""Maximum number of values of one setting, such as the learning rates of a grid."""
ORIGIN = ("encoder.url", "encoder.sha256")
"""Settings of a given encoder that name its file: a run must not be recorded under another file."""


def override(runs: list[Evaluate], change: str) -> tuple[Callable[[Evaluate], Evaluate], str]:
    """Return a function that applies one `key=value` to a run, and the change by its full name.

    A key means one thing among `runs`: where it names a setting of any pretraining, settings of evaluations
    stay unchanged.

    Raises:
        NotFoundError: no run has such a setting.
        InvalidError: `change` has another form, the key is ambiguous, or the setting does not accept that
            value.
    """
    key, text = parsed(change)
    meant = [(run, path) for run in runs for path in settings_named(key, run)[:1]]
    if not meant:
        names = {name for run in runs for name in settable(run)}
        if not key.startswith(EVALUATION):  # these would repeat the names of the pretraining's data set
            names = {name for name in names if not name.startswith(EVALUATION)}
        raise NotFoundError(unknown("setting", key, sorted(names)))
    first, path = min(meant, key=lambda each: _rank(*each))
    if path in ORIGIN:
        raise InvalidError(
            f"--set cannot change the evaluated file ({key}): choose it with --checkpoint or --add-row."
        )

    def apply(run: Evaluate) -> Evaluate:
        paths = settings_named(key, run)
        if paths and _rank(run, paths[0]) == _rank(first, path):
            for each in paths:
                value = parse(text, run.field_type(each), key)
                try:
                    run = run.replace(each, value)
                except ValueError as error:  # the setting's own check refuses the user's value
                    raise InvalidError(str(error)) from None
        return run

    return apply, f"{full_name(path, paths_of(first))}={text}"


def parsed(change: str) -> tuple[str, str]:
    """Return the key and the text of `key=value`.

    Raises:
        InvalidError: `change` has another form or cannot be printed, or its key is the seed.
    """
    if not change.isprintable():
        raise InvalidError(f"--set needs key=value in printable characters, not {change!r:.80}.")
    key, equals, text = (part.strip() for part in change.partition("="))
    if not equals or not key:
        raise InvalidError(f"--set needs key=value, such as epochs=5, not '{change:.80}'.")
    if key.split(".")[-1] == "seed":
        raise InvalidError("--set cannot change the seed: --seeds N runs seeds 0 to N - 1.")
    return key, text


def check_once(changes: Sequence[str]) -> None:
    """Raise InvalidError if the last of some changes, given by full names, sets what an earlier one set."""
    *before, last = changes
    key = last.partition("=")[0]
    for earlier in before:
        if earlier.partition("=")[0] == key:
            raise InvalidError(f"--set gives {key} twice, in {earlier} and {last}: give it once.")


def paths_of(run: Evaluate) -> list[str]:
    """Return the dotted paths of all settings of a run."""
    return [path for path, _ in run.leaves()]


def full_name(path: str, paths: Collection[str]) -> str:
    """Return the key of --set that can mean only the setting at `path`, one of a run's `paths`."""
    return f"{EVALUATION}{path}" if f"encoder.{path}" in paths else path.removeprefix("encoder.")


def settable(run: Evaluate) -> Iterator[str]:
    """Yield the full name of each setting that has a value of its own and that --set may change."""
    paths = paths_of(run)
    for path in paths:
        has_settings = any(other.startswith(f"{path}.") for other in paths)
        if path.split(".")[-1] != "seed" and path not in ORIGIN and not has_settings:
            yield full_name(path, paths)


def _rank(run: Evaluate, path: str) -> int:
    """Return 0 for a setting of a pretraining, 1 of a given encoder, 2 of an evaluation; the lowest wins."""
    if not path.startswith("encoder."):
        return 2
    return 0 if isinstance(run.encoder, Pretrain) else 1


def settings_named(key: str, run: Evaluate) -> list[str]:
    """Return the paths in `run` that `key` means.

    A setting of the pretraining comes first, then one of the evaluation. A full path means itself; otherwise
    `key` means the shortest path that ends in it. A setting of the data set belongs to pretraining and
    evaluation together if both use the same data set. The same holds for what an encoder expects of its
    images (GEOMETRY) if the evaluation shows it such images. After EVALUATION a key means a setting of the
    evaluation alone.

    Raises:
        InvalidError: several settings of the same depth have that name, or the name of another one ends in
            it.
    """
    alone = key.startswith(EVALUATION)
    key = key.removeprefix(EVALUATION)
    paths = [path for path in paths_of(run) if not (alone and path.startswith("encoder."))]
    found = _nearest(key, paths)
    if not found:
        return []
    if found[0] not in (key, f"encoder.{key}"):
        found += [path for path in paths if path.endswith(f"_{key}")]
    if len(found) > 1:
        everything = paths_of(run)
        names = dict.fromkeys(full_name(path, everything) for path in found)
        raise InvalidError(f"'{key}' may mean {' or '.join(names)}: use one of these.")
    return _together(found[0], run)


def _nearest(key: str, paths: list[str]) -> list[str]:
    """Return the shortest of the `paths` that end in `key`: of the encoder, else the protocol, else any."""
    for part in ("encoder.", "protocol.", ""):
        inside = [path for path in paths if path.startswith(part)]
        exact = [path for path in inside if path in (key, part + key)]
        ending = exact or [path for path in inside if path.endswith(f".{key}")]
        if ending:
            depth = min(path.count(".") for path in ending)
            return [path for path in ending if path.count(".") == depth]
    return []


def _together(path: str, run: Evaluate) -> list[str]:
    """Return the paths that change with the one at `path`, which comes first."""
    values = dict(run.leaves())
    own = path.removeprefix("encoder.")
    if isinstance(run.encoder, Pretrain) and path.startswith("encoder.dataset."):
        follows = own.removeprefix("dataset.") in GEOMETRY and values.get(own) == values[path]
        return [path, own] if follows or run.dataset == run.encoder.dataset else [path]
    if isinstance(run.encoder, Weights) and own in GEOMETRY:
        pair = {each: values[each] for each in (f"encoder.{own}", f"dataset.{own}") if each in values}
        return list(pair) if len(set(pair.values())) == 1 else [path]
    return [path]


def parse(text: str, hint: Any, key: str) -> Any:
    """Return the value that `text` represents in a setting of type `hint`.

    Numbers, true and false, none, words, and tuples with commas are understood.

    Raises:
        InvalidError: `text` is not such a value.
    """
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        for kind in kinds:
            if text == str(kind):
                return kind
        raise InvalidError(f"{key} is '{text}': choose one of {', '.join(map(str, kinds))}.")
    if origin in (typing.Union, types.UnionType):
        if type(None) in kinds and text.lower() == "none":
            return None
        return parse(text, next(kind for kind in kinds if kind is not type(None)), key)
    if origin is tuple:
        items = [item for item in text.strip("()").split(",") if item.strip()]
        if len(items) > MOST_VALUES:
            raise InvalidError(f"{key} has {len(items)} values: at most {MOST_VALUES} are expected.")
        each = [kinds[0]] * len(items) if kinds[-1] is Ellipsis else list(kinds)
        if len(each) != len(items):
            raise InvalidError(f"{key} needs {len(each)} values separated by commas, not '{text}'.")
        return tuple(parse(item.strip(), kind, key) for item, kind in zip(items, each, strict=True))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise InvalidError(f"{key} must be true or false, not '{text}'.")
        return text.lower() == "true"
    if hint in (int, float):
        return _number(text, hint, key)
    if hint is str:
        return text
    raise InvalidError(
        f"{key} cannot be set to '{text}' from the command line; set one of its own settings, such as "
        f"{key}.NAME=VALUE."
    )


def _number(text: str, kind: type[int] | type[float], key: str) -> int | float:
    """Return a finite number; see `parse`."""
    try:
        number = kind(text) if text.isascii() and "_" not in text else math.nan
        finite = math.isfinite(number)
    except (ValueError, OverflowError):  # OverflowError: a whole number of hundreds of digits
        finite = False
    if not finite:
        wanted = "a whole number" if kind is int else "a number"
        raise InvalidError(f"{key} must be {wanted}, not '{text:.80}'.")
    return number
