"""Saved views of MLflow's UI: lists with the columns of a table, and its charts, as data.

    views.of_table(table)        # {"table11": {"selectedColumns": ["params.`K`", ...]}, "table11-K2": ...}
    views.tag("table11")         # the experiment's tag that contains the view
    views.address(server, experiment, "table11")

The UI reads a view from a tag of the experiment. MLflow does not document this; `tests/test_ui.py` opens the
views in a browser. A version that does not find a view shows its start page in place of the runs: an address
that must always work is that of `filtered`. Columns and charts follow from the table: the settings in which
its runs differ, and the metrics of its cells.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from reproduce.report.table import Table
from reproduce.tracking.tags import FINAL, NUMBERS, OF_TABLE, SHORT_NAMES, SUPERSEDED, TABLES, shown_settings

TAG = "mlflow.sharedViewState."
"""Prefix of the tags of views."""
OVER_ALL, PRETRAINING = "all", "pretraining"
"""Keys of the view over all evaluations, and of that with the learning curves."""
ALWAYS = ("method", "K", "lambda_s", "lambda_b")
"""Settings that every list shows."""
PROBE = "probe/top1"
"""Measurement of the online probe."""
CURVES = ("loss", "std", "rank", PROBE, "probe/rankme", "lr")
"""Measurements of pretraining whose curves are shown; one that no run has is hidden."""
MOST_RUNS = 100
"""Maximum number of runs in a chart."""
MOST_COLUMNS = 24
"""Maximum number of metrics in the list of a table's records."""
PLANE = 3
"""Least number of values of each axis of a contour chart."""


def tag(key: str) -> str:
    """Return the name of the experiment's tag that contains a view."""
    return TAG + key


def address(server: str, experiment: str, key: str = "") -> str:
    """Return the address of an experiment's runs, in the mode for training, with a view if one is given."""
    query = {"workflowType": "machine_learning"} | ({"viewStateShareKey": key} if key else {})
    return f"{server}/#/experiments/{experiment}/runs?{urlencode(query)}"


def filtered(server: str, experiment: str, condition: str) -> str:
    """Return the address of the runs of an experiment that fulfil a condition, in a plain list."""
    return f"{address(server, experiment)}&{urlencode({'searchFilter': condition}, quote_via=quote)}"


def of_record(table: str) -> str:
    """Return the condition that the records of a table fulfil, ours and the paper's."""
    return f"tags.{OF_TABLE} = '{table}'"


def charts(address: str) -> str:
    """Return the address of a view that shows its charts in place of its list."""
    return f"{address}&compareRunsMode=CHART"


def compared(server: str, experiment: str, runs: Sequence[str]) -> str:
    """Return the address that compares runs."""
    query = {"runs": json.dumps(list(runs)), "experiments": json.dumps([experiment])}
    return f"{server}/#/compare-runs?{urlencode(query)}"


def of_experiment(tables: Iterable[Table]) -> dict[str, dict[str, Any]]:
    """Return the views of the runs of a scale, by key."""
    measured = [table for table in tables if any(table.measured())]
    found = {OVER_ALL: over_all(measured), PRETRAINING: pretraining()}
    for table in measured:
        found |= of_table(table)
    return found


def over_all(tables: Iterable[Table]) -> dict[str, Any]:
    """Return the view of all evaluations: their settings, and the metric that most cells show first."""
    shown = [f"{FINAL}{ours.metric}" for table in tables for *_, ours in table.measured()]
    metrics = sorted(set(shown), key=lambda name: (-shown.count(name), name))
    return _view("tags.kind = 'evaluate'", list(SHORT_NAMES), metrics, _bars(metrics[:1]))


def pretraining() -> dict[str, Any]:
    """Return the view of all pretrainings: their settings and their learning curves."""
    curves = [
        {"type": "LINE", "metricKey": name, "selectedMetricKeys": [name], "xAxisKey": "step"}
        for name in CURVES
    ]
    # Losses of different methods cannot be compared, so the online probe orders the list.
    return _view("tags.kind = 'pretrain'", list(SHORT_NAMES), (PROBE, *CURVES[:3]), curves)


def of_table(table: Table) -> dict[str, dict[str, Any]]:
    """Return the views of a table's evaluations, by key: its axes, its metrics and its charts.

    A contour is the plane of two axes. If the runs differ in a further axis, each of its values has a view of
    its own, such as `table11-K2`. A table without runs has no view.
    """
    measured = [ours for *_, ours in table.measured()]
    metrics = [f"{FINAL}{name}" for name in dict.fromkeys(ours.metric for ours in measured)]
    if not measured:
        return {}
    settings = [shown_settings(ours.spec) for ours in measured]
    varied = [name for name in SHORT_NAMES if len({each[name] for each in settings if name in each}) > 1]
    columns = [name for name in SHORT_NAMES if name in varied or name in ALWAYS]
    condition = f"tags.kind = 'evaluate' AND tags.{TABLES} LIKE '%/{table.name}/%'"
    condition += f" AND tags.{SUPERSEDED} IS NULL"
    drawn = _charts(metrics, varied, settings) + _pairs(table)
    found = {table.name: _view(condition, columns, metrics, drawn, f"Charts of {table}")}
    for name in _further(varied, settings):
        for value in sorted({each[name] for each in settings}, key=float):
            part = [each for each in settings if each[name] == value]
            drawn = _plane(metrics, [axis for axis in varied if axis != name], part) + _bars(metrics)
            found[f"{table.name}-{name}{value}"] = _view(
                f"{condition} AND params.`{name}` = '{value}'",
                columns,
                metrics,
                drawn,
                f"Charts of {table}, {name} = {value}",
            )
    return found


def of_records(table: Table, names: Sequence[str]) -> dict[str, Any]:
    """Return the view of a table's records, ours and the paper's: their numbers, and their differences.

    Args:
        names: metrics of the records, in the order of the table.
    """
    chart: dict[str, Any] = {
        "type": "DIFFERENCE",
        "compareGroups": ["Model metrics"],
        "chartName": "Ours against the paper",
    }
    chart |= {"showChangeFromBaseline": True, "showDifferencesOnly": False}
    found = _view(of_record(table.name), [], names[:MOST_COLUMNS], [chart])
    # The first run is the baseline of the chart: `paper` before `ours`.
    order = {"orderByKey": f"tags.`{NUMBERS}`", "orderByAsc": False}
    return found | order | {"selectedColumns": [f"tags.`{NUMBERS}`", *found["selectedColumns"]]}


def _charts(
    metrics: Sequence[str], varied: Sequence[str], settings: Sequence[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """Return parallel coordinates of the numeric axes, the contour of a plane of two, and ranked bars."""
    axes = _axes(varied, settings)
    found: list[dict[str, Any]] = []
    if axes:
        found.append({"type": "PARALLEL", "selectedParams": axes, "selectedMetrics": list(metrics)})
    return found + _plane(metrics, varied, settings) + _bars(metrics)


def _plane(
    metrics: Sequence[str], varied: Sequence[str], settings: Sequence[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """Return the contour of the first metric over the largest plane of two axes, if there is one."""
    pair = _largest(varied, settings)
    if pair is None:
        return []
    places: Iterable[tuple[str, str, str]] = (
        ("xaxis", pair[0], "PARAM"),
        ("yaxis", pair[1], "PARAM"),
        ("zaxis", metrics[0], "METRIC"),
    )
    return [{"type": "CONTOUR"} | {place: {"key": key, "type": kind} for place, key, kind in places}]


def _axes(varied: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the numeric settings among those that differ; the UI drops the runs that lack an axis."""
    everywhere = [name for name in varied if all(name in each for each in settings)]
    return [name for name in everywhere if all(_is_number(each[name]) for each in settings)]


def _largest(varied: Sequence[str], settings: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
    """Return the two axes that span the largest grid of runs, or None without one."""
    axes = _axes(varied, settings)
    values = {name: {each[name] for each in settings} for name in axes}
    planes = [
        pair
        for pair in itertools.combinations(axes, 2)
        if min(len(values[name]) for name in pair) >= PLANE and _is_grid(pair, settings)
    ]
    return max(planes, key=lambda pair: len(values[pair[0]]) * len(values[pair[1]]), default=None)


def _further(varied: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the axes that tell apart the runs at one point of the plane of a contour."""
    pair = _largest(varied, settings)
    if pair is None:
        return []
    if len({tuple(each[name] for name in pair) for each in settings}) == len(settings):
        return []
    return [name for name in _axes(varied, settings) if name not in pair]


def _is_grid(pair: tuple[str, str], settings: Sequence[Mapping[str, str]]) -> bool:
    """Return True if every value of one axis occurs with every value of the other."""
    found = {tuple(each[name] for name in pair) for each in settings if all(name in each for name in pair)}
    return len(found) == len({x for x, _ in found}) * len({y for _, y in found})


def _pairs(table: Table) -> list[dict[str, Any]]:
    """Return a scatter chart of the metrics of evaluations that fill two columns."""
    by_run: dict[str, list[str]] = {}
    for *_, ours in table.measured():
        by_run.setdefault(ours.spec.id, []).append(f"{FINAL}{ours.metric}")
    pairs = dict.fromkeys(tuple(found) for found in by_run.values() if len(set(found)) == len(found) == 2)
    return [
        {"type": "SCATTER", "xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
        for x, y in pairs
    ]


def _bars(metrics: Iterable[str]) -> list[dict[str, Any]]:
    return [{"type": "BAR", "metricKey": name} for name in metrics]


def _view(
    condition: str,
    params: Sequence[str],
    metrics: Sequence[str],
    drawn: Sequence[dict[str, Any]],
    title: str = "Charts",
) -> dict[str, Any]:
    """Return the state of the UI: runs that fulfil a condition, the best by the first metric first.

    Args:
        title: heading of the charts.
    """
    section = _uuid(condition)
    return {
        "searchFilter": condition,
        "orderByKey": f"metrics.`{metrics[0]}`" if metrics else "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in metrics),
            *(f"params.`{name}`" for name in params),
        ],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [
            {"uuid": _uuid(section, json.dumps(chart)), "deleted": False, "isGenerated": False}
            | {"runsCountToCompare": MOST_RUNS, "metricSectionId": section}
            | chart
            for chart in drawn
        ],
        "compareRunSections": [
            {"uuid": section, "name": title, "display": True, "isReordered": False, "deleted": False}
            | {"isGenerated": False}
        ],
        "isAccordionReordered": True,
    }


def _uuid(*parts: str) -> str:
    """Return a name of a chart or a section, which is the same each time."""
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:32]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
