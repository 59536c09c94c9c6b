"""A finished run's record as plain data, which every tracking store can export and import.

    run = store.portable(spec_id)              # from one store
    data = to_json(run)                        # to a file and back
    store.adopt(from_json(data, where), source)

It contains nothing of the store that it comes from: upstream runs are named by their ids, and tags about a
process or about MLflow itself are left out.
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
"""Step, value, and time of logging in milliseconds since 1970."""
SCALE, COMMIT = "scale", "mlflow.source.git.commit"
ENVIRONMENT = re.compile(r"environment(-[0-9]{1,6})?\.json")
"""Artifacts that describe where a run was executed, one for each attempt."""
NAME = re.compile(r"[\w .:/-]{1,250}")
"""Names of tags, settings and metrics that MLflow accepts."""
OF_THE_MACHINE = ("images_per_second",)
"""Final values that depend on the machine rather than the result, and so differ between any two trainings."""


@dataclass(frozen=True, kw_only=True)
class PortableRun:
    """All that a finished run left, except its encoder and pictures."""

    spec_id: str
    name: str
    """Name of the run in the MLflow UI."""
    started: int
    """Start, in milliseconds since 1970."""
    ended: int
    """End, in milliseconds since 1970."""
    settings: Mapping[str, Any]
    """Spec in the form of `identity.canonical`; `spec_id` is its hash."""
    tags: Mapping[str, str]
    """Scale, commit, digests of the data, and other tags of the run."""
    params: Mapping[str, str]
    """Settings in the form of the MLflow UI."""
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
        """Id of the pretraining run whose encoder this run evaluates; None if it needs none."""
        encoder = self.settings.get("encoder", {})
        return identity.digest_of_plain(encoder) if encoder.get("component") == Pretrain.name else None

    def agrees(self, final: Mapping[str, float]) -> bool:
        """Return whether another run has the same final values, speed aside; NaN equals NaN."""
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
    """Return whether a tag belongs to a run in every store.

    The store's `own` tags do not, nor do MLflow's, except for the commit.
    """
    return tag == COMMIT or not (tag in own or tag.startswith("mlflow."))


def to_json(run: PortableRun) -> dict[str, Any]:
    """Return the record for a file: in a fixed order, with null for values that are not numbers."""
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
    """Return the record in data that were written with `to_json` and read back from a file.

    Args:
        where: name of the file for error messages.

    Raises:
        ValueError: the data are not a record, or the id is not the hash of the settings.
    """
    names = {field.name for field in fields(PortableRun)}
    if not isinstance(data, dict) or set(data) != names:
        raise InvalidError(
            f"{where} is not a record of a run: exactly the keys {', '.join(sorted(names))} are expected."
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
        raise InvalidError(f"{where} is not a record that this version can read: {error}.") from None
    return run


def _check(run: PortableRun) -> None:
    """Raise ValueError if a record with the right types contradicts itself."""
    found = identity.digest_of_plain(run.settings)
    if found != run.spec_id:
        raise InvalidError(f"its id is {run.spec_id}, but its settings are those of run {found}")
    if run.settings.get("component") not in (Pretrain.name, Evaluate.name):
        raise InvalidError("its settings are neither a pretraining's nor an evaluation's")
    if not isinstance(run.settings.get("encoder", {}), dict):
        raise InvalidError("its settings describe no encoder")
    if not re.fullmatch(r"[a-z]{1,20}", run.tags.get(SCALE, "")):
        raise InvalidError(f"its tag '{SCALE}' is not a scale")
    if odd := [name for name in run.environments if not ENVIRONMENT.fullmatch(name)]:
        raise InvalidError(f"'{odd[0]}' is not a name of an environment")


def _of(kind: type[V], value: object) -> V:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"it contains {str(value)[:60]!r} in place of a {kind.__name__}")
    return value


def _by_name(data: object, read: Callable[[object], V]) -> dict[str, V]:
    """Return a mapping with its names checked and each of its values read."""
    for name in _of(dict, data):
        if not NAME.fullmatch(name) or ".." in name.split("/") or name.startswith("/"):
            raise InvalidError(f"'{name[:60]}' is not a name of a tag, setting or metric")
    return {name: read(value) for name, value in _of(dict, data).items()}


def _text(value: object) -> str:
    text = _of(str, value)
    text.encode()  # half a character, which JSON can express, raises UnicodeEncodeError
    return text


def _whole(value: object) -> int:
    number = _of(int, value)
    if not 0 <= number < 2**63:
        raise InvalidError(f"it contains {number} in place of a step or a time")
    return number


def _number_out(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number_in(value: object) -> float:
    if value is None:
        return math.nan
    number = float(_of(int, value)) if isinstance(value, int) else _of(float, value)
    if not math.isfinite(number):
        raise InvalidError(f"it contains {number} in place of a number or null")
    return number


def _points(value: object) -> tuple[Point, ...]:
    points = []
    for point in _of(list, value):
        if len(_of(list, point)) != 3:
            raise InvalidError(f"{str(point)[:60]} is not a step, a value and a time")
        step, measured, time = point
        points.append((_whole(step), _number_in(measured), _whole(time)))
    return tuple(points)
