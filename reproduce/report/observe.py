"""Finished runs as numbers: one tidy pandas frame, the statistics of every cell, and `runs.csv`.

    observe(measured, seeds, finished, reasons)      # one cell: [Observation(seed=0, value=0.8156, ...), ...]
    runs = frame(table, seeds, finished, reasons)    # the whole table: one row per run and metric
    statistics(runs, {"acc": 100})                   # {("BYOL", "acc"): Statistics(mean=81.56, ...)}
    write_runs(runs, "table8", reports / "smoke")    # the frames of all tables of a scale, as runs.csv

The columns of the frame and of `runs.csv`:

    table, scale        where the number is printed: `table8`, `smoke`
    row, column         the row's label and the column's key, as `--rows` and `--columns` accept them
    metric, seed        which number of the run, such as `top1`; the seed of pretraining and evaluation
    value               the number as the run logged it: accuracies are fractions; empty if it is missing
    spec, run           the id of the evaluation's settings; the run's id in the tracking store
    reason              why `value` is missing
    encoder.method, encoder.method.num_views, ..., dataset.size, protocol, protocol.epochs, ...

The last line represents the settings of the run, one column each, by the full path that MLflow shows too.
Columns that begin with `encoder.` belong to the encoder (its pretraining, or its weights), the rest to the
evaluation. The name of a component is in the column of its path: `encoder.method` is `msbreg`, `protocol` is
`linear`. A setting that is None is `none`, and a tuple is JSON text. A setting that a run does not have is
empty. Only `frame` and `write_runs` import pandas.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from reproduce.report import markup, stats
from reproduce.report.table import Measured, Table
from reproduce.runs.files import write_atomic
from reproduce.spec import Evaluate

if TYPE_CHECKING:
    import pandas as pd

    Frame: TypeAlias = pd.DataFrame

logger = logging.getLogger(__name__)

RUNS = "runs.csv"
"""Name of the file that contains the frames of all tables of a scale."""
COLUMNS = ("table", "scale", "row", "column", "metric", "seed", "value", "spec", "run", "reason")
"""Columns of the frame before those of the settings."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Result of a finished run, as the tracking store contains it."""

    spec_id: str
    run_id: str
    """Id of the run in the tracking store."""
    metrics: Mapping[str, float]
    """Final values by name; accuracies are fractions."""
    facts: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Facts that the run recorded about its data and its encoder, by the names of the tags."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One seed's number in one cell, or why it is missing."""

    seed: int
    spec: str
    """Id of the evaluation's settings."""
    run: str | None
    """Id of the finished run in the tracking store; None if the run is not finished."""
    value: float | None
    reason: str | None
    """Why `value` is None."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Numbers of one cell over its seeds."""

    mean: float | None
    """None if a seed is missing."""
    std: float | None
    """Sample standard deviation; None if a seed is missing or there is only one."""
    values: Mapping[int, float]
    """Number of each seed that has one."""
    finished: Mapping[int, str]
    """Id of the evaluation's settings by seed, for each seed that is finished."""
    missing: Mapping[int, str]
    """Why the value is missing, by seed."""


def observe(
    measured: Measured, seeds: int, finished: Mapping[str, Finished], reasons: Mapping[str, str]
) -> list[Observation]:
    """Return the numbers behind one cell, one for each of the seeds 0 to `seeds` - 1.

    Args:
        finished: finished runs by spec id.
        reasons: why a run is not finished, by spec id; a spec in neither mapping has not been run yet.
    """
    return [
        _observation(measured.metric, seed, spec.id, finished, reasons)
        for seed, spec in enumerate(measured.runs(seeds))
    ]


def frame(table: Table, seeds: int, finished: Mapping[str, Finished], reasons: Mapping[str, str]) -> Frame:
    """Return one row per run and metric, with the columns that this module's docstring lists.

    Rows follow the table's rows and columns, then the seeds. The columns of settings are sorted by name.
    """
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for row, column, ours in table.measured():
        place = {"table": table.name, "scale": table.scale, "row": row.label, "column": column.key}
        observations = observe(ours, seeds, finished, reasons)
        for spec, observation in zip(ours.runs(seeds), observations, strict=True):
            lines.append({**place, "metric": ours.metric, **asdict(observation), **_settings(spec)})
    # Objects, so that whole numbers stay whole next to runs that lack the setting.
    runs = pd.DataFrame(lines, columns=_in_order({key for line in lines for key in line}), dtype=object)
    return runs.astype({"seed": "int64", "value": "float64"})


def statistics(runs: Frame, factors: Mapping[str, float]) -> dict[tuple[str, str], Statistics]:
    """Return the statistics of every cell by (row, column).

    Sums are exact, so they do not depend on the order of the seeds. Nothing averages over missing seeds.

    Args:
        runs: the frame of one table.
        factors: what values are multiplied by before they are averaged, by column.
    """
    scaled = runs.assign(value=runs["value"] * runs["column"].map(factors))
    return {cell: _statistics(group) for cell, group in scaled.groupby(["row", "column"], sort=False)}


def write_runs(runs: Frame | None, table: str, folder: Path) -> None:
    """Replace the rows of a table in `runs.csv`; the rows of the other tables stay.

    Tables are in natural order. Texts that a spreadsheet would execute begin with an apostrophe. The caller
    locks the file against other writers.

    Args:
        runs: the table's frame; None if no run fills the table.
        folder: the reports of one scale.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / RUNS
    if runs is None and not rows_of(path, table):
        return
    import pandas as pd

    kept = _read(path)
    blocks = {name: block for name, block in kept.groupby("table") if name != table}
    if runs is not None:  # the other rows were written like these
        texts = [key for key in runs if not pd.api.types.is_numeric_dtype(runs[key])]
        fields = {key: pd.Series(map(markup.csv, runs[key]), runs.index, object) for key in texts}
        blocks[table] = runs.assign(**fields)
    merged = pd.concat([kept[:0], *(blocks[name] for name in sorted(blocks, key=natural))])
    used = {key for key in merged if merged[key].notna().any()}
    write_atomic(path, merged[_in_order(used)].to_csv(index=False, lineterminator="\n"), durable=True)


def rows_of(path: Path, table: str) -> list[dict[str, str]]:
    """Return the rows of a table in `runs.csv` without empty fields; none if the file cannot be read.

    Needs no pandas, so that a command can check the file quickly.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("table") == table]
    except (OSError, ValueError, csv.Error):
        return []
    return [{str(key): str(value) for key, value in row.items() if value} for row in rows]


def natural(name: str) -> list[tuple[int, str]]:
    """Return the key that sorts table10 behind table9."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]


def _observation(
    metric: str, seed: int, spec: str, finished: Mapping[str, Finished], reasons: Mapping[str, str]
) -> Observation:
    """Return one seed's number; it is missing if the run lacks the metric or the value is not finite."""
    if spec not in finished:
        return Observation(
            seed=seed, spec=spec, run=None, value=None, reason=reasons.get(spec, "not run yet")
        )
    run = finished[spec]
    value = run.metrics.get(metric)
    reason = None
    if value is None:
        reason = f"the finished run has no metric '{metric}', only {', '.join(sorted(run.metrics)) or 'none'}"
    elif not math.isfinite(value):
        value, reason = None, f"the run's '{metric}' is {value}"
    return Observation(seed=seed, spec=spec, run=run.run_id, value=value, reason=reason)


def _settings(spec: Evaluate) -> dict[str, Any]:
    """Return every setting by its full path; the evaluation's seed has a column already."""
    return {path: _plain(value) for path, value in spec.leaves() if path != "seed"}


def _plain(value: Any) -> Any:
    """Return a setting as one field of a CSV file; an empty text is an empty field."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return json.dumps(value)
    return None if value == "" else value


def _in_order(columns: set[str]) -> list[str]:
    """Return the columns in their fixed order, then those of settings by name."""
    return [*COLUMNS, *sorted(columns - {*COLUMNS})]


def _statistics(group: Frame) -> Statistics:
    """Return the statistics of the rows of one cell."""
    missing, finished = group[group["value"].isna()], group[group["run"].notna()]
    values = group["value"].tolist() if missing.empty else []
    return Statistics(
        mean=stats.mean(values) if values else None,
        std=stats.sample_std(values),
        values=dict(_pairs(group[group["value"].notna()], "value")),
        finished=dict(_pairs(finished, "spec")),
        missing=dict(_pairs(missing, "reason")),
    )


def _pairs(group: Frame, column: str) -> Iterator[tuple[int, Any]]:
    """Yield (seed, field of `column`)."""
    return zip(group["seed"].tolist(), group[column].tolist(), strict=True)


def _read(path: Path) -> Frame:
    """Return `runs.csv` as text, so that no number changes; warn and return no rows if it is broken."""
    import pandas as pd

    nothing = pd.DataFrame(columns=[*COLUMNS], dtype=object)
    if not path.exists():
        return nothing
    try:
        found = pd.read_csv(path, dtype=object, keep_default_na=False, na_values=[""], encoding="utf-8")
        if tuple(found.columns[: len(COLUMNS)]) != COLUMNS:
            raise ValueError(f"it does not begin with the columns {', '.join(COLUMNS)}")
    except ValueError as error:  # pandas' own errors are ValueErrors, too
        logger.warning("%s is not a file that `invoke reports` wrote (%s): it is replaced.", path, error)
        return nothing
    return found
