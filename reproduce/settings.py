"""The base class of all settings: frozen, typed, checked and named by their content.

Everything that can change a result is a field of a `Settings` class, and nothing else is. Where data are
stored, how many workers load them and where the run is logged belong to the site (`site.py`). Imports only
the standard library.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from reproduce import identity
from reproduce.messages import unknown

S = TypeVar("S", bound="Settings")

LARGEST = 10**9
"""Maximum of whole numbers without a maximum of their own: beyond it, a value is a typing error."""
FLOAT32 = 3e38
"""Maximum of numbers without a maximum of their own: beyond it, float32 overflows."""


@dataclass(frozen=True)
class Limits:
    """Smallest and largest value of a number. They are part of its type: `Annotated[int, Limits(1)]`."""

    low: float
    high: float = LARGEST
    excluded: tuple[float, ...] = ()
    """Limits that are not values themselves."""

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and number not in self.excluded

    def expected(self, number: float) -> str:
        """Return what is expected instead of a number that lies outside."""
        if number >= self.high:
            return f"{'a value below' if self.high in self.excluded else 'at most'} {self.high:.15g}"
        return f"{'a value above' if self.low in self.excluded else 'at least'} {self.low}"


Count = Annotated[int, Limits(1)]
"""Number of things of which there must be one."""
CountOrZero = Annotated[int, Limits(0)]
"""Number of things that may be absent."""
Width = Annotated[int, Limits(1, 2**16)]
"""Width of a layer."""
Pixels = Annotated[int, Limits(1, 2**14)]
"""Side of an image or of a part of it."""
Seed = Annotated[int, Limits(0, 2**63 - 1)]
"""Seed of random numbers."""
Positive = Annotated[float, Limits(0, FLOAT32, excluded=(0,))]
"""Learning rate or temperature."""
Inverse = Annotated[float, Limits(0, 100, excluded=(0,))]
"""Factor t of a squared distance in exp(-t || x - y ||^2), for unit vectors; with a larger one, the mean of
exp(-t ||.||^2) can be 0 in double precision."""
Ratio = Annotated[float, Limits(0.001, 1000)]
"""Width over height; beyond these limits, arithmetic with the sides of a crop overflows."""
NotNegative = Annotated[float, Limits(0, FLOAT32)]
"""Weight of a term of a loss, decay or strength, which 0 switches off."""
Resampling = Literal["bicubic", "bilinear"]
"""Filter of a resize."""
Fraction = Annotated[float, Limits(0, 1)]
"""Probability, decay rate of an average or share."""
Momentum = Annotated[float, Limits(0, 1, excluded=(1,))]
"""Momentum of an optimiser."""
PositiveFraction = Annotated[float, Limits(0, 1, excluded=(0,))]
"""Share that is not empty."""
Channels = tuple[Fraction, Fraction, Fraction]
"""Mean of each RGB channel, for values from 0 to 1."""
Deviations = tuple[PositiveFraction, PositiveFraction, PositiveFraction]
"""Standard deviation of each RGB channel, for values from 0 to 1."""


class Settings:
    """Base class of all settings: `@dataclass(frozen=True, kw_only=True) class X(Settings, name="x")`.

    `name` identifies the component in every id, so a run keeps its id when the class is moved or renamed.
    Values are checked against the annotations at construction. A whole number given for a float becomes a
    float; any other value of a wrong type raises a TypeError that names the setting. A number must lie within
    the limits of its type, such as `Count` or `Positive`.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name

    def __post_init__(self) -> None:
        for key, hint in limited_types(type(self)).items():
            object.__setattr__(self, key, _checked(getattr(self, key), hint, f"{self.name}.{key}"))
        self.check()

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other; called once, at construction."""

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

    def later(self, prefix: str = "") -> Iterator[str]:
        """Yield the paths of settings that earlier versions lacked and that have their default here."""
        fields: Any = dataclasses.fields(self)  # type: ignore[arg-type]
        for field in fields:
            value, path = getattr(self, field.name), f"{prefix}{field.name}"
            if identity.ADDED_LATER in field.metadata and value == field.default:
                yield path
            elif isinstance(value, Settings):
                yield from value.later(f"{path}.")

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
    """Return the settings of a class with their types, in order of declaration."""
    return _field_types(cls)  # typed: a type checker refuses a class as the argument of a cached function


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = (field for field in dataclasses.fields(cls) if identity.NAME_ONLY not in field.metadata)
    return {field.name: hints[field.name] for field in fields}


def limited_types(cls: Any) -> dict[str, Any]:
    """Return `field_types` in which numbers have their limits.

    A field that is declared again, for another default, keeps the limits of the base class.
    """
    return _limited_types(cls)


@cache
def _limited_types(cls: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for each in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        types_alone, limited = typing.get_type_hints(each), typing.get_type_hints(each, include_extras=True)
        for key in vars(each).get("__annotations__", ()):
            if not limited[key] == types_alone[key] == plain.get(key):
                found[key] = limited[key]
            plain[key] = types_alone[key]
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


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
        ValueError: The value is not one of the choices of a Literal, or not within the limits of a number.
    """
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind, limits = typing.get_args(hint)
        value = _checked(value, kind, where)
        if value not in limits:
            raise ValueError(f"{where} is {value}: {limits.expected(value)} is expected.")
        return value
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
        if not abs(value) <= sys.float_info.max:  # nan is not
            raise ValueError(f"{where} is {value}: a finite number is expected.")
        return float(value)
    elif hint is type(None):
        if value is None:
            return None
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    raise TypeError(f"{where} is {value!r}: a {expected} is expected, not a {type(value).__name__}.")
