"""The pages over all tables of a scale: `report.html`, `index.html`, and `runs/<id>.html` for each run.

    runs = Runs(tables, records)
    report(tables, entries, runs, "small", reports / "small")

`report.html` is one file without scripts. The same tables and records give the same bytes. The page of a run
has its settings, measurements and environment, and names the cells that use it.
"""

from __future__ import annotations

import html as html_entities
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from reproduce.messages import clock, counted, table_command
from reproduce.report import figures, markup, register, render
from reproduce.report.claim import PaperVerdict
from reproduce.report.deviations import CHOICES
from reproduce.report.display import display
from reproduce.report.document import BANNERS, FIGURES, PDF
from reproduce.report.filled import Filled, Illustration
from reproduce.report.record import RunRecord, cost
from reproduce.report.register import Entry
from reproduce.report.stats import printed
from reproduce.report.table import ADDED, baselines_in
from reproduce.report.verdicts import JudgedClaim, Verdict

REPORT, RUNS = "report.html", "runs"
"""Names of the report and of the folder with the pages of runs."""
SIDES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("paper", get_args(PaperVerdict)),
    ("ours", get_args(Verdict)),
)
"""Verdicts on the paper's numbers and on ours, in the order of the scoreboard."""
MOST_POINTS = 200
"""Maximum number of points of a curve."""
WIDE = 8
"""Number of columns beyond which a table is printed on a page in landscape format."""
SYSTEM = "system/"
"""Prefix of measurements of the machine, whose curves come last."""


@dataclass(frozen=True)
class Use:
    """A cell that a run is behind."""

    table: str
    name: str
    """Name of the table in print."""
    row: str
    column: str
    """Title of the column, as markup."""
    seed: int
    command: str
    """Command that executes the run if it is missing; empty if it needs a file of the user's."""


class Runs:
    """The runs behind the tables of a scale, with what is known of each.

    Args:
        records: records by id; None for a run that the store does not have.
    """

    def __init__(self, tables: Sequence[Filled], records: Mapping[str, RunRecord | None]) -> None:
        self.records = records
        self.uses: dict[str, list[Use]] = {spec_id: [] for spec_id in sorted({*records, *cited(tables)})}
        self.evaluations: dict[str, list[str]] = {}
        """Evaluations of each pretraining's encoder."""
        for spec_id, use in _uses(tables):
            needs = getattr(records.get(spec_id), "needs", "")
            for each in (spec_id, needs) if needs else (spec_id,):
                self.uses.setdefault(each, []).append(use)
            if needs and spec_id not in self.evaluations.setdefault(needs, []):
                self.evaluations[needs].append(spec_id)

    def title(self, spec_id: str) -> str:
        """Return the title of a run; its id if it has no record."""
        record = self.records.get(spec_id)
        return record.title if record else spec_id


def cited(tables: Iterable[Filled]) -> list[str]:
    """Return the ids of the runs behind the tables' numbers, each once."""
    return list(dict.fromkeys(spec_id for spec_id, _ in _uses(tables)))


def _uses(tables: Iterable[Filled]) -> Iterator[tuple[str, Use]]:
    for filled in tables:
        titles = {column.key: f"{column.group} {column.title}".strip() for column in filled.columns}
        settings = [change for change in filled.changes if "=" in change and not change.startswith(ADDED)]
        added = len(settings) < len(filled.changes)
        baselines = baselines_in(filled.changes)
        settings = [change for change in settings if not change.startswith("baselines=")]
        for row in filled.rows:
            for key, cell in row.cells.items():
                for seed, spec_id in zip(cell.seeds, cell.runs, strict=True):
                    command = table_command(
                        filled.table, row.label, key, filled.scale, seed + 1, baselines, settings
                    )
                    yield (
                        spec_id,
                        Use(
                            filled.table,
                            filled.name,
                            row.label,
                            titles[key],
                            seed,
                            "" if added and row.added else command,
                        ),
                    )


# The report and the index
# ------------------------------------------------------------------------------------------------------------


def report(tables: Sequence[Filled], found: Sequence[Entry], runs: Runs, scale: str, folder: Path) -> str:
    """Return every table of a scale with its figures, the claims, the deviations, cost and environment."""
    environment = render.environment()
    return environment.get_template("report.html").render(
        scale=scale,
        banner=_banner(tables, scale),
        parts=[_part(filled, folder) for filled in tables],
        board=scoreboard(found, tables),
        counts=_sentences(found),
        choices=CHOICES,
        spent=_spent(runs),
        facts=list(_environment(runs)),
        commits=_commits(runs),
        num_runs=len(runs.uses),
        code=_with_code,
    )


def index(tables: Sequence[Filled], found: Sequence[Entry], scale: str) -> str:
    """Return the front page: the scoreboard, and one card for each table."""
    cards = [
        {
            "filled": filled,
            "summary": render.cell_counts(filled),
            "sided": display(filled).sided,
            "paper": render.tally(claim.paper for claim in filled.claims),
            "ours": render.tally(claim.ours for claim in filled.claims),
        }
        for filled in tables
    ]
    return (
        render.environment()
        .get_template("index.html")
        .render(
            cards=cards,
            scale=scale,
            banner=_banner(tables, scale),
            board=scoreboard(found, tables),
            counts=_sentences(found),
        )
    )


def with_pdf(front: str, *, exists: bool) -> str:
    """Return the front page with a link to the report as a PDF, or without one if it does not exist."""
    link, claims = f' <a href="{PDF}">PDF</a>', '<a href="claims.html">Claims</a>'
    front = front.replace(link, "", 1)
    return front.replace(claims, claims + link, 1) if exists else front


def scoreboard(found: Sequence[Entry], tables: Sequence[Filled]) -> dict[str, Any]:
    """Return the number of claims by table and verdict; verdicts that no claim has are left out."""
    claims = [claim for entry in found for claim in entry.claims]
    heads = [
        (side, verdict)
        for side, verdicts in SIDES
        for verdict in verdicts
        if any(getattr(claim, side) == verdict for claim in claims)
        and (side == "ours" or _of_a_paper(claims))
    ]
    names = {"paper": "on the paper's numbers", "ours": "on ours" if _of_a_paper(claims) else "verdicts"}
    rendered = {filled.table for filled in tables}
    lines = [
        {
            "name": entry.name,
            "table": entry.table if entry.table in rendered else "",
            "numbers": [_count(entry.claims, *head) for head in heads],
        }
        for entry in found
    ]
    return {
        "heads": heads,
        "spans": [(names[side], sum(head[0] == side for head in heads)) for side, _ in SIDES],
        "lines": lines,
        "total": [_count(claims, *head) for head in heads],
    }


def _of_a_paper(claims: Iterable[JudgedClaim]) -> bool:
    """Return True if a claim is decided by printed numbers; tables that are not the paper's have none."""
    return any(claim.paper != "open" for claim in claims)


def _sentences(found: Sequence[Entry]) -> list[str]:
    """Return how many claims hold on the paper's numbers, if there are any, and how ours come out."""
    claims = [claim for entry in found for claim in entry.claims]
    if not claims or _of_a_paper(claims):
        return register.counts(found) if claims else []
    return [register.counts(found)[1].removeprefix("On ours, ")]


def _banner(tables: Iterable[Filled], scale: str) -> str:
    """Return the sentence on the use of the scale, unless it would speak of a paper that no table is from."""
    own = scale != "smoke" and not any(filled.number for filled in tables)
    return "" if own else BANNERS.get(scale, "")


def _count(claims: Iterable[JudgedClaim], side: str, verdict: str) -> int:
    return sum(getattr(claim, side) == verdict for claim in claims)


def _part(filled: Filled, folder: Path) -> dict[str, Any]:
    """Return one table for the template, with the drawings of its figures."""
    shown = display(filled)
    drawn = {figure.name: _svg(figure, folder) for figure in filled.figures}
    width = len(shown.sub_columns) + len(shown.fact_titles)
    return {"filled": filled, "shown": shown, "figures": drawn, "wide": width > WIDE}


def _svg(figure: Illustration, folder: Path) -> Any:
    """Return a figure's drawing for a page, without the head of a file; empty if it is missing."""
    from markupsafe import Markup

    path = folder / FIGURES / f"{figure.name}.svg"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    return Markup(figures.inline(text)) if "<svg" in text else ""  # noqa: S704 (drawn here)


def _with_code(text: str) -> Any:
    """Return markup as HTML, with the text between backticks as code."""
    from markupsafe import Markup

    found = markup.with_code(text, markup.html, lambda code: f"<code>{html_entities.escape(code)}</code>")
    return Markup(found)  # noqa: S704 (both functions escape)


def _spent(runs: Runs) -> list[str]:
    """Return sentences on the hours and the energy of the runs, each with the number that is unknown."""
    if not runs.uses:
        return ["No run is behind these tables."]
    spent = cost([runs.records.get(spec_id) for spec_id in runs.uses])
    known = [f"{hours_of(hours)} {_unit(kind)}" for kind, hours in spent.hours.items()]
    num = f"of {counted(spent.num_runs, 'run')}"
    lines = [f"Hours: {', '.join(known) or 'unknown'}{_unknown(spent.unknown_hours, num, bool(known))}."]
    energy = "unknown" if spent.kwh is None else f"{printed(spent.kwh, 3)} kWh"
    lines.append(
        f"Energy of the GPUs: {energy}{_unknown(spent.unknown_kwh, num, spent.kwh is not None)}. It is the "
        "power of the run's GPUs, or of every GPU that its process saw if the record does not name them, "
        "between the first and the last sample. Runs that share a GPU divide its hours and its energy."
    )
    return lines


def _unknown(number: int, of: str, some: bool) -> str:
    if not number:
        return ""
    return f"; unknown for {number} {of}" if some else f" for {number} {of}"


def _unit(kind: str) -> str:
    return "GPU-hours" if kind == "GPU" else "core-hours"


def hours_of(hours: float) -> str:
    """Return hours with one decimal, or with two digits if they are less than one: `12.3`, `0.042`."""
    return printed(hours, 1) if hours >= 1 else f"{hours:.2g}"


def _environment(runs: Runs) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yield each fact about where the runs were executed, with its values and their numbers of runs."""
    environments = [
        record.environment
        for spec_id in runs.uses
        if (record := runs.records.get(spec_id)) is not None and record.environment
    ]
    for title, key in (("Device", "device"), ("Python", "python"), ("Platform", "platform")):
        yield title, _counted(str(each.get(key, "not recorded")) for each in environments)
    versions = [dict(each.get("packages") or {}) for each in environments]
    for package in sorted({name for each in versions for name in each}):
        yield package, _counted(str(each.get(package, "not recorded")) for each in versions)


def _commits(runs: Runs) -> list[tuple[str, bool, int]]:
    """Return each commit, True if the code had uncommitted changes, and the number of its runs."""
    known = (record for spec_id in runs.uses if (record := runs.records.get(spec_id)) is not None)
    counts = Counter((record.commit, record.dirty) for record in known)
    return [(commit, dirty, counts[commit, dirty]) for commit, dirty in sorted(counts)]


def _counted(values: Iterable[str]) -> list[tuple[str, int]]:
    return sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))


# Pages of runs
# ------------------------------------------------------------------------------------------------------------


def pages(runs: Runs, scale: str) -> dict[str, Callable[[], str]]:
    """Return a function for each run that returns its page, by the path in the reports of the scale."""

    def page_of(spec_id: str) -> Callable[[], str]:
        return lambda: page(spec_id, runs, scale)

    return {f"{RUNS}/{spec_id}.html": page_of(spec_id) for spec_id in runs.uses}


def page(spec_id: str, runs: Runs, scale: str) -> str:
    """Return the page of one run."""
    record = runs.records.get(spec_id)
    commands = [use.command for use in runs.uses[spec_id] if use.command]
    settings = sorted(record.settings) if record else []
    curves = [(name, curve(name, points)) for name, points in _histories(record)]
    return (
        render.environment()
        .get_template("run.html")
        .render(
            spec_id=spec_id,
            scale=scale,
            record=record,
            title=runs.title(spec_id),
            uses=runs.uses[spec_id],
            command=commands[0] if commands else "",
            first=[(path, record.settings[path]) for path in settings if path in record.changed]
            if record
            else [],
            rest=[(path, record.settings[path]) for path in settings if path not in record.changed]
            if record
            else [],
            final=[(name, f"{value:.6g}") for name, value in record.final.items()] if record else [],
            curves=[each for each in curves if not each[0].startswith(SYSTEM)],
            machine=[each for each in curves if each[0].startswith(SYSTEM)],
            facts=list(_facts(record)) if record else [],
            needs=[(record.needs, runs.title(record.needs))] if record and record.needs else [],
            evaluations=[(each, runs.title(each)) for each in runs.evaluations.get(spec_id, [])],
        )
    )


def _histories(record: RunRecord | None) -> Iterator[tuple[str, Sequence[tuple[int, float]]]]:
    """Yield the measurements of a run that have two finite values at least, by name."""
    for name, points in record.histories.items() if record else ():
        finite = [(step, value) for step, value, _ in points if math.isfinite(value)]
        if len(finite) > 1:
            yield name, finite


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Yield where, how long and with which code and data a run was executed."""
    environment = record.environment
    yield "Duration", clock((record.ended - record.started) / 1000)
    yield "Attempts", str(record.attempts or "not recorded")
    hours = record.hours
    yield "Cost", "unknown" if hours is None else f"{hours_of(hours)} {_unit(record.kind)}"
    yield "Energy of the GPUs", "unknown" if record.kwh is None else f"{printed(record.kwh, 3)} kWh"
    yield "Commit", record.commit + (" with uncommitted changes" if record.dirty else "")
    for key in ("device", "processes", "threads", "python", "platform"):
        if environment.get(key) is not None:
            yield key.capitalize(), str(environment[key])
    yield from ((name, str(version)) for name, version in sorted((environment.get("packages") or {}).items()))
    yield from ((name.replace("_", " ").capitalize(), value) for name, value in record.facts.items())


def curve(name: str, points: Sequence[tuple[int, float]]) -> Any:
    """Return a small drawing of a measurement over its steps as inline SVG, with the numbers at its ends.

    Of many points, an even choice is drawn that includes both ends.
    """
    from markupsafe import Markup

    width, height, top = 240, 90, 4
    count = len(points)
    if count > MOST_POINTS:
        points = [points[round(at * (count - 1) / (MOST_POINTS - 1))] for at in range(MOST_POINTS)]
    values = [value for _, value in points]
    low, high, start, end = min(values), max(values), points[0][0], points[-1][0]
    spots = " ".join(
        f"{_share(step, start, end) * width:.1f},{top + (1 - _share(value, low, high)) * height:.1f}"
        for step, value in points
    )
    words = (
        f"{name} over {count} steps, from {values[0]:.4g} at step {start} to {values[-1]:.4g} at step {end}; "
        f"drawn between {low:.4g} and {high:.4g}."
    )
    label = html_entities.escape(words)
    return Markup(  # noqa: S704 (numbers, and a text that is escaped)
        f'<svg viewBox="0 0 {width} {height + 2 * top}" role="img" aria-label="{label}">'
        f'<path d="M0 {height + top}H{width}" class="axis"/>'
        f'<polyline points="{spots}" class="line"/></svg>'
        f"<figcaption>{html_entities.escape(name)}: {values[0]:.4g} → {values[-1]:.4g} "
        f'<span class="range">(step {start} to {end}; {low:.4g} to {high:.4g})</span></figcaption>'
    )


def _share(value: float, low: float, high: float) -> float:
    """Return the place of a value between two others, from 0 to 1; the middle if they are equal."""
    return (value - low) / (high - low) if high > low else 0.5
