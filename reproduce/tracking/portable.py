"""A finished run's record as plain data, which every tracking store can export and import.

    run = store.portable(spec_id)              # from one store
    data = to_json(run)                        # to a file and back
    store.adopt(from_json(data, where), source)

It contains nothing of the store that it comes from: upstream runs are named by their ids, and tags about a
process or about MLflow itself are left out.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

from reproduce import identity
from reproduce.messages import InvalidError, unprintable
from reproduce.spec import Evaluate, Pretrain

V = TypeVar("V")

Point = tuple[int, float, int]
"""Step, value, and time of logging in milliseconds since 1970."""
SCALE, KIND, COMMIT = "scale", "kind", "mlflow.source.git.commit"
FINAL = "final/"
"""Prefix of final metrics in a store, which a history must not have."""
ENVIRONMENT = re.compile(r"environment(-[0-9]{1,6})?\.json")
"""Artifacts that describe where a run was executed, one for each attempt."""
LONGEST_NAME, LONGEST_TAG, LONGEST_PARAM = 250, 8000, 6000
"""Maximum characters of a name, of a tag and of a setting; MLflow cuts longer texts without a word."""
NAME = re.compile(rf"[\w .:/-]{{1,{LONGEST_NAME - len(FINAL)}}}")
"""Names of tags, settings and metrics that MLflow accepts."""
TYPED_TAGS = {"attempts": r"[1-9]\d{0,5}", "dirty": "True|False|None", "group": "[0-9a-f]{12}"}
"""Form of the tags that are read as something else than text."""
EARLIEST = 1_483_228_800_000
"""Earliest plausible time, in milliseconds since 1970: 2017, before the methods of the tables existed."""
AHEAD = 86_400_000
"""Maximum milliseconds by which the clock of another machine may be ahead of this one's."""
DEEPEST = 32
"""Maximum number of levels of settings and of an environment."""
OF_THE_MACHINE = ("images_per_second", "peak_memory_gb")
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
        """Return True if another run has the same final values, speed aside; NaN equals NaN."""
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
    """Return True if a tag belongs to a run in every store.

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
            name=_text(data["name"], LONGEST_NAME),
            started=_moment(data["started"]),
            ended=_moment(data["ended"]),
            settings=_plain(_of(dict, data["settings"])),
            tags=_by_name(data["tags"], partial(_text, longest=LONGEST_TAG)),
            params=_by_name(data["params"], partial(_text, longest=LONGEST_PARAM)),
            final=_by_name(data["final"], _number_in),
            histories=_by_name(data["histories"], _points),
            environments=_by_name(data["environments"], lambda value: _plain(_of(dict, value))),
        )
        _check(run)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidError(f"{where} is not a record that this version can read: {error}.") from None
    return run


def check(run: PortableRun) -> None:
    """Raise ValueError if `from_json` would refuse this record on another machine."""
    from_json(json.loads(json.dumps(to_json(run))), f"The record of run {run.spec_id}")


def _check(run: PortableRun) -> None:
    """Raise ValueError if a record with the right types contradicts itself."""
    found = identity.digest_of_plain(run.settings)
    if found != run.spec_id:
        raise InvalidError(f"its id is {run.spec_id:.60}, but its settings are those of run {found}")
    if run.settings.get("component") not in (Pretrain.name, Evaluate.name):
        raise InvalidError("its settings are neither a pretraining's nor an evaluation's")
    if not isinstance(run.settings.get("encoder", {}), dict):
        raise InvalidError("its settings describe no encoder")
    if not re.fullmatch(r"[a-z]{1,20}", run.tags.get(SCALE, "")):
        raise InvalidError(f"its tag '{SCALE}' is not a scale")
    if odd := [name for name in run.environments if not ENVIRONMENT.fullmatch(name)]:
        raise InvalidError(f"'{odd[0]}' is not a name of an environment")
    if run.started > run.ended:
        raise InvalidError(f"it ended {run.started - run.ended} ms before it started")
    if odd := [name for name in run.histories if name.startswith(FINAL)]:
        raise InvalidError(f"'{odd[0]}' is the name of a final value, not of a measurement")
    if not run.final and not run.is_pretraining:
        raise InvalidError("it is an evaluation without a final value")
    _check_tags(run)
    _check_params(run)


def _check_tags(run: PortableRun) -> None:
    """Raise ValueError for a tag that cannot be read back, or that contradicts the settings."""
    for name, form in TYPED_TAGS.items():
        if name in run.tags and not re.fullmatch(form, run.tags[name], re.ASCII):
            raise InvalidError(f"its tag '{name}' is {run.tags[name]!r:.60}")
    if run.tags.get(KIND, run.settings["component"]) != run.settings["component"]:
        raise InvalidError(f"its tag '{KIND}' is {run.tags[KIND]!r:.60}, unlike its settings")


def _check_params(run: PortableRun) -> None:
    """Raise ValueError if a setting in the form of the MLflow UI is not that of the spec."""
    for path, value in _leaves(run.settings):
        shown = run.params.get(path)
        if shown is not None and shown not in (_shown(value), str(value)):
            raise InvalidError(
                f"its setting '{path:.60}' is {shown!r:.60}, but {_shown(value)!r:.60} in its spec"
            )


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting by its dotted path; a component's name has the path of the component."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}", value.get("component")
            yield from _leaves(
                {name: each for name, each in value.items() if name != "component"}, f"{prefix}{key}."
            )
        elif key != "component":
            yield f"{prefix}{key}", value


def _shown(value: object) -> str:
    """Return a setting of a spec as the MLflow UI shows it."""
    if value is None:
        return "none"
    return json.dumps(value) if isinstance(value, list) else str(value)


def _of(kind: type[V], value: object) -> V:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"it contains {str(value)[:60]!r} in place of a {kind.__name__}")
    return value


def _by_name(data: object, read: Callable[[object], V]) -> dict[str, V]:
    """Return a mapping with its names checked and each of its values read."""
    for name in _of(dict, data):
        # MLflow keeps some things in files, and refuses names that a file system would change.
        if not NAME.fullmatch(name) or posixpath.normpath(name) != name or name[:2] in (".", "..", "//", "/"):
            raise InvalidError(f"'{name[:60]}' is not a name of a tag, setting or metric")
    return {name: read(value) for name, value in _of(dict, data).items()}


def _text(value: object, longest: int) -> str:
    text = _of(str, value)
    text.encode()  # half a character, which JSON can express, raises UnicodeEncodeError
    if len(text) > longest:
        raise InvalidError(f"it contains a text of {len(text)} characters, but at most {longest} are stored")
    if odd := unprintable(text):
        raise InvalidError(f"it contains the control character {odd!r} in {text!r:.60}")
    return text


def _plain(value: Any, depth: int = 0) -> Any:
    """Return JSON data that can be written again: not too deep, with finite numbers and whole characters."""
    if depth > DEEPEST:
        raise InvalidError(f"it contains more than {DEEPEST} levels")
    if isinstance(value, dict):
        for key, each in value.items():
            _plain(key)
            _plain(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _plain(each, depth + 1)
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidError(f"it contains {value} in place of a number or null")
    return value


def _whole(value: object) -> int:
    number = _of(int, value)
    if not 0 <= number < 2**63:
        raise InvalidError(f"it contains {number:.3e} in place of a step")
    return number


def _moment(value: object) -> int:
    """Return a time in milliseconds since 1970 that a clock can have shown."""
    number = _of(int, value)
    if not EARLIEST <= number <= time.time() * 1000 + AHEAD:
        raise InvalidError(f"it contains {str(number)[:20]} in place of a time in milliseconds since 1970")
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
        step, measured, at = point
        points.append((_whole(step), _number_in(measured), _moment(at)))
    if any(step >= following for (step, *_), (following, *_) in pairwise(points)):
        raise InvalidError("its steps are not in order, or one is there twice")
    return tuple(points)
