"""From what the user asked for to the runs that it takes: build the table, bring it to a scale, change settings, list its runs.

A request is plain data, so that a worker on another machine can build the same table again and find its run by id. Here alone `reproduce`
looks upward, to `tables` and `configs`, by the names in a request.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from reproduce.nn import backbones
from reproduce.report.table import Table
from reproduce.spec import Evaluate, Pretrain, Spec, unknown

SCALES = ("smoke", "small", "paper")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One table as the command line asks for it."""

    table: str
    """A module of `tables/`."""
    scale: str = "smoke"
    seeds: int = 1
    rows: str = "*"
    columns: str = "*"
    changes: tuple[str, ...] = ()
    """`key=value`, each of which changes a setting of every run that has it."""

    def build(self) -> Table:
        """The table at its scale, cut and changed as asked.

        Raises:
            LookupError: an unknown table, scale, row, column or setting; the message names the nearest.
            ValueError, TypeError: a setting does not take the value; a backbone that there is not is such a value.
        """
        if self.table not in table_names():
            raise LookupError(unknown("table", self.table, table_names()))
        if self.scale not in SCALES:
            raise LookupError(unknown("scale", self.scale, SCALES))
        if self.seeds < 1:
            raise ValueError(f"--seeds is {self.seeds}: at least one seed is needed.")
        table: Table = importlib.import_module(f"tables.{self.table}").table()
        scales = importlib.import_module("configs.scales")
        paper, table = table, table.map(getattr(scales, self.scale), scale=self.scale)
        replaced = [old.spec.dataset != new.spec.dataset for (*_, old), (*_, new) in zip(paper.measured(), table.measured(), strict=True)]
        table = replace(table, stand_in=scales.STAND_INS[self.scale] if any(replaced) else "")
        table = table.select(self.rows, self.columns)
        for change in self.changes:
            table = _changed(table, change)
        known = backbones.names()
        for _, _, ours in table.measured():
            if ours.spec.encoder.backbone not in known:
                raise ValueError(unknown("backbone", ours.spec.encoder.backbone, known))
        return table

    def specs(self) -> tuple[Spec, ...]:
        """Every run that the table needs, upstream first."""
        return self.build().specs(self.seeds)

    def dumps(self) -> str:
        """The request as one line of JSON, for a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Request:
        """The request that `dumps` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "changes": tuple(fields["changes"])})


def requests(tables: typing.Iterable[str], *, changes: tuple[str, ...] = (), **fields: Any) -> list[Request]:
    """A request for each of the tables, each with those of the changes whose setting its runs have.

    Args:
        fields: of every request.

    Raises:
        LookupError: an unknown table, scale, row or column, or a setting that no table has; the message names the nearest.
        ValueError, TypeError: a setting does not take the value.
    """
    made = [Request(table=table, **fields) for table in tables]
    for request in made:
        request.build()
    for change in changes:
        problems = []
        for index, request in enumerate(made):
            changed = replace(request, changes=(*request.changes, change))
            try:
                changed.build()
            except LookupError as problem:
                problems.append(problem)
            else:
                made[index] = changed
        if len(problems) == len(made):
            raise problems[0]
    for job in jobs(made):
        _check_warmup(job.spec)
    return made


def _check_warmup(spec: Spec) -> None:
    """Raises ValueError where the learning rate would never reach its peak; here, as one change may need another to make sense."""
    if isinstance(spec, Pretrain) and 0 < spec.epochs < spec.optimizer.warmup_epochs:
        raise ValueError(f"epochs is {spec.epochs}, less than the warm-up's {spec.optimizer.warmup_epochs}: set warmup_epochs too.")


def table_names() -> list[str]:
    """The modules of `tables/` in the order of their numbers."""
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module("tables").__path__)]
    return sorted(names, key=lambda name: (len(name), name))


def _changed(table: Table, change: str) -> Table:
    """The table with one `key=value` applied wherever its runs have that setting."""
    key, equals, text = change.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key:
        raise ValueError(f"--set takes key=value, such as epochs=5, not '{change}'.")
    if key.split(".")[-1] == "seed":
        raise ValueError("The seed is not set by --set: --seeds N runs seeds 0 to N - 1.")
    runs = [ours.spec for _, _, ours in table.measured()]
    paths = [path for run in runs for path in settings_named(key, run)[:1]]
    if not paths:
        raise LookupError(unknown("setting", key, sorted({path for run in runs for path in _settable(run)})))

    def apply(run: Evaluate) -> Evaluate:
        for path in settings_named(key, run):
            run = run.replace(path, parse(text, run.field_type(path), key))
        return run

    return table.map(apply, changes=(*table.changes, f"{paths[0].removeprefix('encoder.')}={text}"))


def _settable(run: Evaluate) -> Iterator[str]:
    """The settings that have a value of their own and are not the seed, as one would write them."""
    paths = [path for path, _ in run.leaves()]
    for path in paths:
        if path.split(".")[-1] != "seed" and not any(other.startswith(f"{path}.") for other in paths):
            yield path.removeprefix("encoder.")


def settings_named(key: str, run: Evaluate) -> list[str]:
    """The paths in `run` that `key` means: a setting of the pretraining first, else one of the evaluation.

    A full path is itself; otherwise the shortest path that ends in `key` is meant. A setting of the data set is one of pretraining and of
    evaluation alike where both use the same.

    Raises:
        ValueError: several settings of the same depth have that name.
    """
    paths = [path for path, _ in run.leaves()]
    for part in ("encoder.", "protocol.", ""):
        inside = [path for path in paths if path.startswith(part)]
        exact = [path for path in inside if path in (key, part + key)]
        ending = exact or [path for path in inside if path.endswith(f".{key}")]
        if not ending:
            continue
        depth = min(path.count(".") for path in ending)
        nearest = [path for path in ending if path.count(".") == depth]
        if len(nearest) > 1:
            raise ValueError(f"'{key}' may mean {' or '.join(path.removeprefix('encoder.') for path in nearest)}: give one of these.")
        if nearest[0].startswith("encoder.dataset.") and run.dataset == run.encoder.dataset:
            nearest.append(nearest[0].removeprefix("encoder."))
        return nearest
    return []


def parse(text: str, hint: Any, key: str) -> Any:
    """The value that `text` stands for in a setting of type `hint`: numbers, true/false, none, words, comma-separated tuples.

    Raises:
        ValueError: it is not one.
    """
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if text in kinds:
            return text
        raise ValueError(f"{key} is '{text}': choose one of {', '.join(map(str, kinds))}.")
    if origin in (typing.Union, types.UnionType):
        if type(None) in kinds and text.lower() == "none":
            return None
        return parse(text, next(kind for kind in kinds if kind is not type(None)), key)
    if origin is tuple:
        items = [item for item in text.strip("()").split(",") if item.strip()]
        each = [kinds[0]] * len(items) if kinds[-1] is Ellipsis else list(kinds)
        if len(each) != len(items):
            raise ValueError(f"{key} takes {len(each)} values separated by commas, not '{text}'.")
        return tuple(parse(item.strip(), kind, key) for item, kind in zip(items, each, strict=True))
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint in (int, float):
        try:
            number = hint(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{key} takes {'a whole number' if hint is int else 'a number'}, not '{text}'.")
        return number
    if hint is str:
        return text
    raise ValueError(f"{key} cannot be set to '{text}' from the command line; set one of its own settings, such as {key}.NAME=VALUE.")


@dataclass(frozen=True)
class Job:
    """One run to do, and the request by which a worker finds it."""

    spec: Spec
    request: Request


def jobs(requests: typing.Iterable[Request]) -> list[Job]:
    """Every run of the requests, upstream first, each once."""
    return list({job.spec.id: job for job in _all_jobs(requests)}.values())


def _all_jobs(requests: typing.Iterable[Request]) -> Iterator[Job]:
    for request in requests:
        for spec in request.specs():
            yield Job(spec, request)
