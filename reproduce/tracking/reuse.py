"""Choice of the finished runs that are reused: their data are those of this machine.

    found = choose(store, specs, site)
    found.finished["5f0c2a9d1e77"]        # the newest finished run with these data
    found.changed["0a1b2c3d4e5f"]         # "imagenette's train split had 250 images, now it has 9 469"
    found.unchecked["0a1b2c3d4e5f"]       # "its data are not here to compare": reused

A run recorded digests of its splits (`inventory.Inventory`). They are compared with the splits on disk; a
run from before a digest existed is compared without it. A run whose data are missing, or must not be read,
is reused. An evaluation counts only if its pretraining counts, and if it measured the
encoder of the pretraining that is reused: a pretraining that was executed again, for other data, has other
evaluations. Nothing is deleted. If earlier data return, the runs on them count again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from reproduce.data import inventory
from reproduce.data.inventory import DIGEST, AnyDataset, Inventory
from reproduce.messages import NotFoundError, UserError, counted, grouped, reason_of
from reproduce.report.counts import tag_of
from reproduce.report.observe import Finished
from reproduce.runs import checkpoint
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec
from reproduce.tracking.tags import ENCODER, PARENT, TRAINED

if TYPE_CHECKING:
    from reproduce.tracking.store import Store

NOT_HERE = "its data are not here to compare"
"""Reason why a reused run was not compared with data."""


@dataclass(frozen=True)
class Reuse:
    """The finished runs of some specs, by id."""

    finished: dict[str, Finished] = field(default_factory=dict)
    """Runs that are reused."""
    changed: dict[str, str] = field(default_factory=dict)
    """Why no finished run of a spec is reused: what differs, in words."""
    unchecked: dict[str, str] = field(default_factory=dict)
    """Why a run that is reused was not compared."""

    def remarks(self) -> list[str]:
        """Return one line for each reason for which runs are not reused, or were not compared."""
        lines = [f"{runs} not reused: {reason}." for reason, runs in _tally(self.changed)]
        return lines + [f"{runs} reused unchecked: {reason}." for reason, runs in _tally(self.unchecked)]


def _tally(reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each reason once, with the number of its runs in words."""
    for reason in dict.fromkeys(reasons.values()):
        yield reason, counted(sum(each == reason for each in reasons.values()), "finished run")


def choose(store: Store, specs: Iterable[Spec], site: Site) -> Reuse:
    """Return which finished runs of the specs, and of the runs that these need, are reused.

    Raises:
        ConnectionError: the tracking store does not answer.
    """
    wanted = {each.id: each for spec in specs for each in (*spec.needs(), spec)}
    candidates, data, found = store.every_finished(wanted), _Data(site), Reuse()
    for spec_id, runs in candidates.items():
        spec = wanted[spec_id]
        if isinstance(spec, Pretrain):
            _decide(spec_id, runs, [data.judged(spec, run.facts) for run in runs], found)
    for spec_id, runs in candidates.items():
        spec = wanted[spec_id]
        if isinstance(spec, Evaluate):
            verdicts = [
                data.judged(spec, run.facts).also(_of_encoder(spec, run, candidates, data, found))
                for run in runs
            ]
            _decide(spec_id, runs, verdicts, found)
    return found


def attempted(spec: Spec, facts: Mapping[str, str], needed: Mapping[str, Finished], site: Site) -> str:
    """Return what differs between the data of an unfinished attempt and those on disk; empty if nothing.

    Args:
        facts: what the attempt recorded about its data and its encoder.
        needed: the finished runs that the spec needs, as far as they exist.
    """
    if differs := _Data(site).judged(spec, facts).differs:
        return differs
    for pretrain in spec.needs():
        encoders = facts.get(ENCODER), needed[pretrain.id].facts.get(TRAINED) if pretrain.id in needed else ""
        if all(encoders) and encoders[0] != encoders[1]:
            return f"it measured another encoder than that of run {pretrain.id}"
    return ""


def stranded(store: Store, specs: Iterable[Spec], site: Site) -> dict[str, str]:
    """Return the unfinished runs that cannot resume because their data or encoder changed: what differs.

    Raises:
        ConnectionError: the tracking store does not answer.
    """
    paused = {spec.id: spec for spec in specs if checkpoint.newest(site.runs / spec.id, spec.id)}
    if not paused:
        return {}
    needed = choose(store, paused.values(), site).finished
    # The checkpoint is that of the newest unfinished record, which each attempt continues.
    facts = {record.state.spec_id: record.digests for record in reversed(store.unfinished())}
    differences = {
        spec_id: attempted(spec, facts.get(spec_id, {}), needed, site) for spec_id, spec in paused.items()
    }
    return {spec_id: differs for spec_id, differs in differences.items() if differs}


@dataclass(frozen=True)
class _Verdict:
    """The verdict on a finished run, which counts unless its data differ."""

    differs: str = ""
    """The difference from the data on disk, in words; empty if none is known."""
    unknown: str = ""
    """Why nothing could be compared; empty if it could."""

    def also(self, other: _Verdict) -> _Verdict:
        """Return the verdict on a run to which both verdicts apply."""
        return _Verdict(self.differs or other.differs, self.unknown or other.unknown)


def _decide(spec_id: str, runs: Sequence[Finished], verdicts: Sequence[_Verdict], found: Reuse) -> None:
    """Enter the first run that counts, or why none does."""
    for run, verdict in zip(runs, verdicts, strict=True):
        if not verdict.differs:
            found.finished[spec_id] = run
            if verdict.unknown:
                found.unchecked[spec_id] = verdict.unknown
            return
    found.changed[spec_id] = verdicts[0].differs


def _of_encoder(
    spec: Evaluate,
    run: Finished,
    candidates: Mapping[str, Sequence[Finished]],
    data: _Data,
    found: Reuse,
) -> _Verdict:
    """Return the verdict on the encoder of a finished evaluation.

    An imported one whose pretraining was not imported has none to compare.
    """
    pretrain, parent = spec.encoder, run.facts.get(PARENT)
    if not isinstance(pretrain, Pretrain) or not parent:
        return _Verdict()
    of_parent = next((each for each in candidates.get(pretrain.id, ()) if each.run_id == parent), None)
    verdict = data.judged(pretrain, of_parent.facts) if of_parent else _Verdict()
    chosen = found.finished.get(pretrain.id)
    if verdict.differs:
        happened = "was executed again" if chosen else "is not reused"
        return _Verdict(differs=f"its pretraining {happened}: {verdict.differs}")
    if chosen and chosen.run_id != parent:
        encoders = run.facts.get(ENCODER), chosen.facts.get(TRAINED)
        if all(encoders) and encoders[0] != encoders[1]:
            return _Verdict(differs="its pretraining was executed again, with another encoder")
    return verdict


class _Found(NamedTuple):
    """A split as it is on disk."""

    inventory: Inventory | None = None
    """None if it is generated, missing or broken."""
    unknown: str = ""
    """The reason why it cannot be compared; empty if it can."""
    broken: str = ""
    """The fault that makes it unreadable; empty if there is none."""


class _Data:
    """The splits on disk, each looked up once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._known: dict[str, _Found] = {}

    def judged(self, spec: Spec, facts: Mapping[str, str]) -> _Verdict:
        """Return the verdict on a run's own data, by the facts that it recorded."""
        unknown = ""
        for split in spec.splits:
            if tag_of(DIGEST, spec, split) not in facts:
                continue
            found = self._found(spec.dataset, split)
            unknown = unknown or found.unknown
            differs = found.broken
            if found.inventory:
                differs = _difference(spec, split, facts, found.inventory)
            if differs:
                return _Verdict(differs=differs)
        return _Verdict(unknown=unknown)

    def _found(self, dataset: AnyDataset, split: str) -> _Found:
        key = inventory.key(dataset, split, self._site)
        if key not in self._known:
            self._known[key] = self._looked_up(dataset, split)
        return self._known[key]

    def _looked_up(self, dataset: AnyDataset, split: str) -> _Found:
        try:
            dataset.check_root(self._site)
        except (UserError, OSError):
            return _Found(unknown=NOT_HERE)
        try:
            return _Found(inventory.here(dataset, split, self._site))
        except (NotFoundError, OSError) as error:
            return _Found(unknown=f"{NOT_HERE} ({reason_of(error).rstrip('.')})")
        except UserError as error:
            return _Found(broken=f"{dataset.name}'s {split} split is broken: {str(error).rstrip('.')}")


def _difference(spec: Spec, split: str, facts: Mapping[str, str], here: Inventory) -> str:
    """Return what differs between a run's record of a split and the split on disk; empty if nothing."""
    digest, content, before = (facts.get(tag_of(prefix, spec, split)) for prefix in inventory.PREFIXES)
    whose = f"{spec.dataset.name}'s {split} split"
    if digest not in (None, here.digest):
        if before is None or int(before) == here.num_images:
            return f"{whose} has other images now, {grouped(here.num_images)}"
        return f"{whose} had {grouped(int(before))} images, now it has {grouped(here.num_images)}"
    if content and here.content not in ("", content):
        return f"{whose} has the same names and sizes, but other content now"
    return ""
