"""Cost, code and environment of the runs behind a report, in words.

origin([record, ...]).spent        # ("Hours: 12.3 GPU-hours.", "Energy of the GPUs: 1.2 kWh. ...")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from reproduce.messages import counted
from reproduce.report.record import RunRecord, cost
from reproduce.report.stats import printed


@dataclass(frozen=True)
class Origin:
    """Facts about the runs of a report."""

    num_runs: int
    spent: tuple[str, ...]
    """Sentences on the hours and the energy of the runs."""
    commits: tuple[tuple[str, bool, int], ...]
    """Each commit, True if the code had uncommitted changes, and the number of its runs."""
    facts: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    """Each fact about where the runs were executed, with its values and their numbers of runs."""


def origin(records: Sequence[RunRecord | None]) -> Origin:
    """Return the origin of runs; None is a run that the store does not have."""
    known = [record for record in records if record is not None]
    commits = Counter((record.commit, record.dirty) for record in known)
    return Origin(
        num_runs=len(records),
        spent=tuple(_spent(records)),
        commits=tuple((commit, dirty, commits[commit, dirty]) for commit, dirty in sorted(commits)),
        facts=tuple(_environment(known)),
    )


def unit(kind: str) -> str:
    """Return the unit of the hours of a kind of device."""
    return "GPU-hours" if kind == "GPU" else "core-hours"


def hours_of(hours: float) -> str:
    """Return hours with one decimal, or with two digits if they are less than one: `12.3`, `0.042`."""
    return printed(hours, 1) if hours >= 1 else f"{hours:.2g}"


def _spent(records: Sequence[RunRecord | None]) -> Iterator[str]:
    """Yield sentences on the hours and the energy, each with the number of runs for which it is unknown."""
    if not records:
        yield "No run is behind these tables."
        return
    spent = cost(records)
    known = [f"{hours_of(hours)} {unit(kind)}" for kind, hours in spent.hours.items()]
    num = f"of {counted(spent.num_runs, 'run')}"
    yield f"Hours: {', '.join(known) or 'unknown'}{_unknown(spent.unknown_hours, num, bool(known))}."
    energy = "unknown" if spent.kwh is None else f"{printed(spent.kwh, 3)} kWh"
    yield (
        f"Energy of the GPUs: {energy}{_unknown(spent.unknown_kwh, num, spent.kwh is not None)}. It is the "
        "power of the run's GPUs, or of every GPU that its process saw if the record does not name them, "
        "between the first and the last sample. Runs that share a GPU divide its hours and its energy."
    )


def _unknown(number: int, of: str, some: bool) -> str:
    if not number:
        return ""
    return f"; unknown for {number} {of}" if some else f" for {number} {of}"


def _environment(records: Iterable[RunRecord]) -> Iterator[tuple[str, tuple[tuple[str, int], ...]]]:
    """Yield each fact with its values and their numbers of runs."""
    environments = [record.environment for record in records if record.environment]
    for title, key in (("Device", "device"), ("Python", "python"), ("Platform", "platform")):
        yield title, _counted(str(each.get(key, "not recorded")) for each in environments)
    versions = [dict(each.get("packages") or {}) for each in environments]
    for package in sorted({name for each in versions for name in each}):
        yield package, _counted(str(each.get(package, "not recorded")) for each in versions)


def _counted(values: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Return each value with its number, the most frequent first."""
    return tuple(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))
