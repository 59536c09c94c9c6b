"""The base class of all settings: frozen, typed, checked and named by their content.

Everything that can change a result is a field of a `Settings` class, and nothing else is. Where data are
stored, how many workers load them and where the run is logged belong to the site (`site.py`). Imports only
the standard library.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from reproduce import identity
from reproduce.messages import unknown

S = TypeVar("S", bound="Settings")


class Settings:
    """Base class of all settings: `@dataclass(frozen=True, kw_only=True) class X(Settings, name="x")`.

    `name` identifies the component in every id, so a run keeps its id when the class is moved or renamed.
    Values are checked against the annotations at construction. A whole number given for a float becomes a
    float; any other value of a wrong type raises a TypeError that names the setting.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name

    def __post_init__(self) -> None:
        for key, hint in field_types(type(self)).items():
            object.__setattr__(self, key, _checked(getattr(self, key), hint, f"{self.name}.{key}"))
        self.check()

    def check(self) -> None:
        """Raise ValueError for values of the right type that make no sense; called once, at construction."""

    @property
    def id(self) -> str:
        """Name of these settings: 12 hexadecimal digits."""
        return identity.digest(self)

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yield every setting as (dotted path, value); the value of nested settings is their own name."""
        for key in field_types(type(self)):
            value, path = getattr(self, key), f"{prefix}{key}"
            if isinstance(value, Settings):
                yield path, value.name
                yield from value.leaves(f"{path}.")
            else:
                yield path, value

    def changed(self) -> Iterator[tuple[str, Any]]:
        """Yield the settings that differ from the defaults of the class, or have none, as `leaves` does."""
        cls: Any = type(self)
        defaults = _defaults(cls).items()
        yield from (leaf for leaf in self.leaves() if leaf not in defaults)

    def replace(self, path: str, value: Any) -> Self:
        """Return a copy in which the setting at the dotted `path` is `value`.

        Raises:
            LookupError: The setting does not exist; the message names the nearest.
            TypeError, ValueError: The setting does not accept the value.
        """
        key, _, rest = path.partition(".")
        if key not in field_types(type(self)):
            raise LookupError(unknown("setting", path, [name for name, _ in self.leaves()]))
        if rest:
            child = getattr(self, key)
            if not isinstance(child, Settings):
                raise LookupError(
                    f"'{key}' of {self.name} has no settings of its own, so there is no '{path}'."
                )
            value = child.replace(rest, value)
        return dataclasses.replace(self, **{key: value})  # type: ignore[type-var]

    def field_type(self, path: str) -> Any:
        """Return the declared type of the setting at the dotted `path`."""
        key, _, rest = path.partition(".")
        return getattr(self, key).field_type(rest) if rest else field_types(type(self))[key]


def field_types(cls: Any) -> dict[str, Any]:
    """Return the fields of a settings class with their resolved annotations, in order of declaration."""
    return _field_types(cls)  # typed: a type checker refuses a class as the argument of a cached function


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def _defaults(cls: Any) -> dict[str, Any]:
    """Return the defaults of a settings class by dotted path."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if isinstance(field.default, Settings):
            found |= {field.name: field.default.name, **dict(field.default.leaves(f"{field.name}."))}
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
    return found


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return `value` if it fits the annotation `hint`, a whole number as a float if a float is expected.

    Raises:
        TypeError: The value has a wrong type.
        ValueError: The value is not one of the choices of a Literal.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        for option in options:
            if type(value) is option:
                return value
        for option in options:
            try:
                return _checked(value, option, where)
            except TypeError:
                continue
    elif origin is tuple:
        kinds = typing.get_args(hint)
        if isinstance(value, tuple):
            if len(kinds) == 2 and kinds[1] is Ellipsis:
                return tuple(_checked(item, kinds[0], where) for item in value)
            if len(kinds) == len(value):
                return tuple(_checked(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    elif origin is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise ValueError(f"{where} is {value!r}: choose one of {', '.join(map(str, typing.get_args(hint)))}.")
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is type(None):
        if value is None:
            return None
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    raise TypeError(f"{where} is {value!r}: a {expected} is expected, not a {type(value).__name__}.")
