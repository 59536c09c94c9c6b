"""The id of a run: a hash of every setting that can change its numbers.

`digest(settings)` agrees across processes, machines and Python versions. Defaults are hashed too, so a
changed default is a changed experiment. Only a setting declared with `added_later` is left out while it has
its default, so that runs from before it existed keep their ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from typing import Any

ADDED_LATER = "added_later"
NAME_ONLY = "name_only"
LENGTH = 12
"""Hexadecimal digits of an id: 48 bits. The chance of a clash among 10 000 runs is below 1e-6."""
ID = re.compile(f"[0-9a-f]{{{LENGTH}}}")
"""A whole id."""


def added_later(default: Any, version: str) -> Any:
    """Return a dataclass field that did not exist before `version`.

    It enters the id only if it differs from `default`.
    """
    return dataclasses.field(default=default, metadata={ADDED_LATER: version})


def name_only() -> Any:
    """Return a dataclass field for a text that only names something in titles, such as the name of a file.

    It is not a setting: it enters neither the id nor a comparison, and `--set` cannot change it.
    """
    return dataclasses.field(default="", compare=False, metadata={NAME_ONLY: True})


def digest(settings: object) -> str:
    """Return the id of frozen settings.

    It is the first 12 hexadecimal digits of the SHA-256 of their canonical JSON.

    Raises:
        TypeError: a value is not a frozen dataclass with a `name`, a tuple, a number, a string or None. The
            message names it.
    """
    return digest_of_plain(canonical(settings))


def digest_of_plain(data: object) -> str:
    """Return the id of settings that are `canonical` JSON data already, such as a record read from a file.

    Raises:
        TypeError, ValueError: the data cannot be written as JSON.
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def canonical(value: object, where: str = "settings") -> Any:
    """Return `value` as plain JSON data.

    Args:
        where: path of the value, for error messages.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}, but only finite numbers can be part of an id.")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, tuple):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        name = getattr(type(value), "name", None)
        if not isinstance(name, str):
            raise TypeError(
                f"{where} is a {type(value).__name__}, which has no name: "
                'declare it as `class X(Settings, name="x")`.'
            )
        fields = {"component": name}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if NAME_ONLY in field.metadata or (ADDED_LATER in field.metadata and item == field.default):
                continue
            fields[field.name] = canonical(item, f"{where}.{field.name}")
        return fields
    raise TypeError(
        f"{where} is a {type(value).__name__}, but only frozen settings, tuples, numbers, strings and None "
        "can be part of an id."
    )
