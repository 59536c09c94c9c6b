"""The name of a run: a hash of every setting that can move its number.

`digest(settings)` agrees across processes, machines and Python versions. Defaults are hashed too, so that a
changed default is a changed experiment; only a setting declared with `added_later` is left out while it has
its default, so that runs finished before it existed keep their names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

ADDED_LATER = "added_later"
LENGTH = 12
"""Hexadecimal digits of an id: 48 bits, a clash among 10 000 runs has a chance below 1e-6."""


def added_later(default: Any, version: str) -> Any:
    """A dataclass field that did not exist before `version`: it enters the id only when it differs from
    `default`."""
    return dataclasses.field(default=default, metadata={ADDED_LATER: version})


def digest(settings: object) -> str:
    """The id of frozen settings: the first 12 hexadecimal digits of the SHA-256 of their canonical JSON.

    Raises:
        TypeError: something other than frozen dataclasses with a `name`, tuples, numbers, strings and None is
            inside; the message names it.
    """
    return digest_of_plain(canonical(settings))


def digest_of_plain(data: object) -> str:
    """The id of settings that are `canonical` JSON data already, such as a record's that was read from a
    file.

    Raises:
        TypeError, ValueError: JSON has no such data.
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def canonical(value: object, where: str = "settings") -> Any:
    """`value` as plain JSON data; `where` is the path that an error names."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}: only finite numbers have an identity.")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, tuple):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        name = getattr(type(value), "name", None)
        if not isinstance(name, str):
            raise TypeError(
                f'{where} is a {type(value).__name__}, which has no name: declare it as `class X(Settings, name="x")`.'
            )
        fields = {"component": name}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if ADDED_LATER in field.metadata and item == field.default:
                continue
            fields[field.name] = canonical(item, f"{where}.{field.name}")
        return fields
    raise TypeError(
        f"{where} is a {type(value).__name__}: only frozen settings, tuples, numbers, strings and None have an identity."
    )
