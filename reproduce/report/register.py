"""The register of a scale: every sentence of every table, with its verdicts: `claims.md` and `claims.html`.

    write(entries(registered, rendered), "small", reports / "small")

A sentence is registered if a table has a claim for it. A table that is not rendered at this scale takes part
with the paper's own numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from reproduce.report import markup, render
from reproduce.report.display import confidence, evidence
from reproduce.report.filled import Filled
from reproduce.report.table import Table
from reproduce.report.verdicts import JudgedClaim
from reproduce.runs.files import atomic

FILES = ("claims.md", "claims.html")
HEADS = ("Claim", "Source", "Paper", "Ours", "What decides")


@dataclass(frozen=True)
class Entry:
    """The claims of one table."""

    table: str
    name: str
    """Name in print, such as `Table 8`."""
    rendered: bool
    """True if the table has a report at this scale."""
    alpha: float
    """Significance level of the verdicts."""
    claims: tuple[JudgedClaim, ...]


def entries(registered: Sequence[Table], rendered: Mapping[str, Filled]) -> list[Entry]:
    """Return the claims of every table, in the given order; then those of tables that are only rendered.

    Args:
        registered: the tables at the scale of the reports.
        rendered: the reports by the name of their table.
    """
    found = [_entry(table, rendered.get(table.name)) for table in registered]
    known = {table.name for table in registered}
    found += [
        Entry(name, filled.name, True, filled.alpha, filled.claims)
        for name, filled in rendered.items()
        if name not in known
    ]
    return [entry for entry in found if entry.claims]


def _entry(table: Table, filled: Filled | None) -> Entry:
    """Return the claims of a registered table; all are open if it is not rendered."""
    if filled is not None:
        return Entry(table.name, str(table), True, filled.alpha, filled.claims)
    reason = f"the table is not rendered: invoke {table.name} --scale {table.scale}"
    claims = tuple(
        JudgedClaim(
            text=claim.text, source=claim.source, paper=paper, ours="open", reason=reason, effect=None
        )
        for claim, paper in zip(table.claims, table.judge_paper(), strict=True)
    )
    return Entry(table.name, str(table), False, table.alpha, claims)


def write(found: Sequence[Entry], scale: str, folder: Path) -> list[Path]:
    """Write both files into the folder of a scale's reports, and return them."""
    files = [folder / name for name in FILES]
    with ExitStack() as drafts:
        for path, text in zip(files, (markdown(found, scale), html(found, scale)), strict=True):
            drafts.enter_context(atomic(path, durable=True)).write_bytes(text.encode())
    return files


def counts(found: Iterable[Entry]) -> list[str]:
    """Return two sentences: how many registered claims hold on the paper's numbers, and how ours come out."""
    claims = [claim for entry in found for claim in entry.claims]
    holding = sum(claim.paper == "holds" for claim in claims)
    supported = sum(claim.ours == "supported" for claim in claims)
    paper, ours = (render.tally(side) for side in ([c.paper for c in claims], [c.ours for c in claims]))
    return [
        f"On the paper's own numbers, {holding} of {len(claims)} registered claims hold: {paper}.",
        f"On ours, {supported} of {len(claims)} registered claims are supported: {ours}.",
    ]


def markdown(found: Sequence[Entry], scale: str) -> str:
    """Return the register as GitHub Markdown, one table of claims for each table."""
    blocks = [f"# Claims at {scale} scale", *(counts(found) if found else ["No table has a claim."])]
    for entry in found:
        title = f"[{entry.name}]({entry.table}.md)" if entry.rendered else entry.name
        lines = [f"| {' | '.join(HEADS)} |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {' | '.join(markup.markdown(text) for text in _cells(claim))} |" for claim in entry.claims
        ]
        blocks += [f"## {title}", "\n".join(lines)]
    return "\n\n".join([*blocks, _explanation(found)]) + "\n"


def _cells(claim: JudgedClaim) -> tuple[str, str, str, str, str]:
    return claim.text, claim.source, claim.paper, claim.ours, evidence(claim)


def _explanation(found: Sequence[Entry]) -> str:
    levels = sorted({entry.alpha for entry in found if any(claim.effect for claim in entry.claims)})
    named = " or ".join(confidence(alpha) for alpha in levels) or "confidence"
    return (
        "An effect is the contrast that decides the claim on our numbers, in the units of its table, "
        f"with its {named} interval over training seeds."
    )


def html(found: Sequence[Entry], scale: str) -> str:
    """Return the register as one self-contained page."""
    template = render.environment().get_template("claims.html")
    lines = counts(found) if found else ["No table has a claim."]
    return template.render(
        entries=found, scale=scale, counts=lines, heads=HEADS, explanation=_explanation(found)
    )
