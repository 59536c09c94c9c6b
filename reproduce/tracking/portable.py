"""A finished run's record as plain data, which any tracking store can give and take.

    run = store.portable(spec_id)              # from one store
    data = to_json(run)                        # to a file and back
    store.adopt(from_json(data, where), source)

It holds nothing of the store that it comes from: upstream runs are named by their ids, and tags that tell of
a process or of MLflow itself stay behind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from reproduce import identity
from reproduce.messages import InvalidError
from reproduce.spec import Evaluate, Pretrain

V = TypeVar("V")

Point = tuple[int, float, int]
"""Step, value, and when it was logged, in milliseconds since 1970."""
SCALE, COMMIT = "scale", "mlflow.source.git.commit"
ENVIRONMENT = re.compile(r"environment(-[0-9]{1,6})?\.json")
"""The artifacts that say where a run was done, one for each attempt."""
NAME = re.compile(r"[\w .:/-]{1,250}")
"""Of a tag, setting or metric: what MLflow takes."""
OF_THE_MACHINE = ("images_per_second",)
"""Final values that tell of the machine and not of the result: no two trainings have the same."""


@dataclass(frozen=True, kw_only=True)
class PortableRun:
    """What a finished run left, but for its encoder and pictures."""

    spec_id: str
    name: str
    """As the MLflow UI shows it."""
    started: int
    """Milliseconds since 1970."""
    ended: int
    """The same."""
    settings: Mapping[str, Any]
    """The spec as `identity.canonical` makes it, of which `spec_id` is the hash."""
    tags: Mapping[str, str]
    """Scale, commit, digests of the data and what else the run was tagged with."""
    params: Mapping[str, str]
    """The settings as the MLflow UI shows them."""
    final: Mapping[str, float]
    """Final values by name."""
    histories: Mapping[str, tuple[Point, ...]]
    """Measurements by name, in order of steps, each step once."""
    environments: Mapping[str, Mapping[str, Any]]
    """Versions, code and machine of each attempt, by the artifact's name."""

    @property
    def scale(self) -> str:
        return self.tags[SCALE]

    @property
    def is_pretraining(self) -> bool:
        return bool(self.settings["component"] == Pretrain.name)

    @property
    def needs(self) -> str | None:
        """The id of the pretraining run whose encoder this one evaluates; None: it needs none."""
        encoder = self.settings.get("encoder", {})
        return identity.digest_of_plain(encoder) if encoder.get("component") == Pretrain.name else None

    def agrees(self, final: Mapping[str, float]) -> bool:
        """Whether another run's final values are the same, speed aside; a value that is not a number equals
        another."""
        mine, theirs = (
            {
                key: None if math.isnan(value) else value
                for key, value in each.items()
                if key not in OF_THE_MACHINE
            }
            for each in (self.final, final)
        )
        return mine == theirs


def travels(tag: str, own: tuple[str, ...]) -> bool:
    """Whether a tag belongs to a run in every store: neither one of the store's `own` nor, but for the
    commit, one of MLflow's."""
    return tag == COMMIT or not (tag in own or tag.startswith("mlflow."))


def to_json(run: PortableRun) -> dict[str, Any]:
    """The record for a file: everything in a fixed order, null for a value that is not a number."""
    data = asdict(run)
    for key in ("tags", "params", "environments"):
        data[key] = dict(sorted(data[key].items()))
    data["final"] = {key: _number_out(value) for key, value in sorted(run.final.items())}
    data["histories"] = {
        key: [(step, _number_out(value), time) for step, value, time in points]
        for key, points in sorted(run.histories.items())
    }
    return data


def from_json(data: object, where: str) -> PortableRun:
    """The inverse of `to_json`, after the data have been to a file and back.

    Args:
        where: what an error calls the file.

    Raises:
        ValueError: the data are no record, or their id is not the hash of their settings.
    """
    names = {field.name for field in fields(PortableRun)}
    if not isinstance(data, dict) or set(data) != names:
        raise InvalidError(
            f"{where} is no record of a run: it must have {', '.join(sorted(names))}, and nothing else."
        )
    try:
        run = PortableRun(
            spec_id=_of(str, data["spec_id"]),
            name=_text(data["name"]),
            started=_whole(data["started"]),
            ended=_whole(data["ended"]),
            settings=_of(dict, data["settings"]),
            tags=_by_name(data["tags"], _text),
            params=_by_name(data["params"], _text),
            final=_by_name(data["final"], _number_in),
            histories=_by_name(data["histories"], _points),
            environments=_by_name(data["environments"], lambda value: _of(dict, value)),
        )
        _check(run)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidError(f"{where} is no record that this version can read: {error}.") from None
    return run


def _check(run: PortableRun) -> None:
    """Raises ValueError for a record that is of the right types and contradicts itself."""
    found = identity.digest_of_plain(run.settings)
    if found != run.spec_id:
        raise InvalidError(f"it says that it is run {run.spec_id}, and its settings are those of {found}")
    if run.settings.get("component") not in (Pretrain.name, Evaluate.name):
        raise InvalidError("its settings are of no run")
    if not isinstance(run.settings.get("encoder", {}), dict):
        raise InvalidError("its settings name no encoder")
    if not re.fullmatch(r"[a-z]{1,20}", run.tags.get(SCALE, "")):
        raise InvalidError(f"its tag '{SCALE}' is no scale")
    if odd := [name for name in run.environments if not ENVIRONMENT.fullmatch(name)]:
        raise InvalidError(f"'{odd[0]}' is no name of an environment")


def _of(kind: type[V], value: object) -> V:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{str(value)[:60]!r} stands where a {kind.__name__} belongs")
    return value


def _by_name(data: object, read: Callable[[object], V]) -> dict[str, V]:
    """A mapping with each of its values read, and with names that a store takes."""
    for name in _of(dict, data):
        if not NAME.fullmatch(name) or ".." in name.split("/") or name.startswith("/"):
            raise InvalidError(f"'{name[:60]}' is no name of a tag, setting or metric")
    return {name: read(value) for name, value in _of(dict, data).items()}


def _text(value: object) -> str:
    text = _of(str, value)
    text.encode()  # half a character, as JSON can spell it, is a UnicodeEncodeError
    return text


def _whole(value: object) -> int:
    number = _of(int, value)
    if not 0 <= number < 2**63:
        raise InvalidError(f"{number} stands where a step or a time belongs")
    return number


def _number_out(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number_in(value: object) -> float:
    if value is None:
        return math.nan
    number = float(_of(int, value)) if isinstance(value, int) else _of(float, value)
    if not math.isfinite(number):
        raise InvalidError(f"{number} stands where a number or null belongs")
    return number


def _points(value: object) -> tuple[Point, ...]:
    points = []
    for point in _of(list, value):
        if len(_of(list, point)) != 3:
            raise InvalidError(f"{str(point)[:60]} is no step, value and time")
        step, measured, time = point
        points.append((_whole(step), _number_in(measured), _whole(time)))
    return tuple(points)
