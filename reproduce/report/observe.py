"""Finished runs -> the numbers of a table, one for each row, column and seed; and the same as a tidy pandas
frame.

    observe(measured, seeds, finished, reasons)      # one cell: [Observation(seed=0, value=0.8156, ...), ...]
    frame(table, seeds, finished, reasons)           # the whole table, for a notebook

Values are fractions, as runs log them. Only `frame` imports pandas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from reproduce.report.table import Measured, Table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a finished run left in the tracking store."""

    spec_id: str
    run_id: str
    """The tracking store's name of the run."""
    metrics: Mapping[str, float]
    """Final values by name; accuracies are fractions."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One seed's number in one cell, or why there is none."""

    seed: int
    spec: str
    """The id of the evaluation's settings."""
    run: str | None
    """The tracking store's name of the finished run; None: not finished."""
    value: float | None
    reason: str | None
    """Why `value` is None."""


def observe(
    measured: Measured, seeds: int, finished: Mapping[str, Finished], reasons: Mapping[str, str]
) -> list[Observation]:
    """The numbers behind one cell, one for each of the seeds 0 to `seeds` - 1.

    Args:
        finished: finished runs by spec id.
        reasons: why a run is not finished, by spec id; a spec in neither mapping has not been run yet.
    """
    return [
        _observation(measured.metric, seed, spec.id, finished, reasons)
        for seed, spec in enumerate(measured.runs(seeds))
    ]


def frame(
    table: Table, seeds: int, finished: Mapping[str, Finished], reasons: Mapping[str, str]
) -> pd.DataFrame:
    """One line for each row, column and seed that a run of ours fills: row, column, metric, seed, spec, run,
    value, reason."""
    import pandas as pd

    lines = [
        {"row": row.label, "column": column.key, "metric": ours.metric, **asdict(observation)}
        for row, column, ours in table.measured()
        for observation in observe(ours, seeds, finished, reasons)
    ]
    columns = ["row", "column", "metric", "seed", "spec", "run", "value", "reason"]
    return pd.DataFrame(lines, columns=columns).astype({"seed": "int64", "value": "float64"})


def _observation(
    metric: str, seed: int, spec: str, finished: Mapping[str, Finished], reasons: Mapping[str, str]
) -> Observation:
    """One seed's number; a metric that the run lacks or that is not finite is missing, with the reason."""
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
