"""What a run's entry in the tracking store holds, and what it says: its tags and title, and the truth about
its state.

    tags.title(spec)                       # "msbreg K=4 λs=.004 λb=.5 stl10 320 epochs seed 0"
    tags.state_of(run, runs).state         # "interrupted", though MLflow says RUNNING: its process is gone
    tags.cell_means(filled)                # {"MSBReg K 4/top1": 81.2}, of the entry that each table has
    beside its runs

An entry is a run as MLflow's client or `sqlite.py` give it. MLflow's own status says FINISHED after an
exception and RUNNING for ever after a kill; a run is finished when it carries the tag `complete`, and what
else is true follows from its owner and its lease. Imports no mlflow.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reproduce import identity
from reproduce.nn.weights import Weights
from reproduce.runs import environment, lease
from reproduce.runs.lease import Held, Lease
from reproduce.spec import Evaluate, Pretrain, Spec

if TYPE_CHECKING:
    from reproduce.report.filled import Filled

SPEC, COMPLETE, OWNER, REASON, GROUP, SCALE, TABLE, DIGEST = (
    "spec_id",
    "complete",
    "owner",
    "reason",
    "group",
    "scale",
    "table",
    "digest",
)
"""Tags. `complete` holds the spec's id again, so that one condition finds a finished run."""
IMPORTED = "imported"
"""The tag of a run that was done elsewhere: where its record comes from."""
OF_THIS_STORE = (SPEC, COMPLETE, OWNER, REASON, IMPORTED)
"""Tags that every store gives a run anew."""
DEVICE, ATTEMPTS = "device", "attempts"
"""Tags by which the time of a finished run can be compared: what it ran on, and whether it is that of one
attempt alone."""
PARENT = "mlflow.parentRunId"
SETTINGS = "spec.json"
"""The artifact that holds the spec."""
FINAL = "final/"
"""Prefix of final metrics: their histories are not mixed with those of training, whose steps a resumed run
repeats."""
SHORT_NAMES = {
    "K": "method.num_views",
    "lambda_s": "method.lambda_s",
    "lambda_b": "method.lambda_b",
    "lambda_uniform": "method.lambda_uniform",
    "norm": "method.heads.norm",
    "method": "method",
    "backbone": "backbone",
    "epochs": "epochs",
    "batch_size": "batch_size",
}
"""Axes of the tables by the name that the MLflow UI shows, of the pretraining run."""
LONGEST = 200
"""Characters of a row's label in the name of a metric, of which MLflow takes 250."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A line of `invoke status`."""

    spec_id: str
    run_id: str
    name: str
    scale: str
    state: Literal["finished", "running", "interrupted", "failed"]
    """What is true, not what MLflow's status says: a run whose process is gone is interrupted."""
    reason: str
    """Why it failed or was interrupted, or which process runs it."""
    started: datetime
    metrics: Mapping[str, float]
    """Final values."""

    def __str__(self) -> str:
        values = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        started = f"{self.started.astimezone():%Y-%m-%d %H:%M}"
        line = f"{self.state:<11}  {self.spec_id}  {self.scale:<5}  {started}  {self.name}  {self.reason or values}"
        return line.rstrip()


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the store knows of one run."""

    state: RunState
    settings: dict[str, str]
    """Every setting by its dotted path, as text."""
    commit: str
    dirty: bool
    """Whether the code had changes that were not committed."""
    digests: dict[str, str]
    """Of the data and of the encoder that an evaluation used, by the names of their tags."""
    address: str
    """Of its page: on the server, or below the address that `invoke ui` serves."""
    ended: datetime | None
    """None: it has not, or its process is gone."""
    device: str
    """The processor or GPU of its last attempt, by its name; empty: not recorded."""
    attempts: int | None
    """More than one: it was resumed. None: not recorded."""
    host: str
    """The machine of the process that owns it, or did."""


def record_of(run: Any, runs: Path, server: str) -> Record:
    """All that an entry says.

    Args:
        server: the address of the store; empty: it is no server, and its page is on the one that `invoke ui`
            starts.
    """
    tags, settings = run.data.tags, dict(run.data.params)
    prefix = "encoder." if tags.get("kind") == Evaluate.name else ""
    for short, path in SHORT_NAMES.items():  # the axes of the tables stand there twice
        if prefix + path != short and prefix + path in settings:
            settings.pop(short, None)
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return Record(
        state=state_of(run, runs),
        settings=settings,
        commit=tags.get("commit", "not known"),
        dirty=tags.get("dirty") == "True",
        digests={key: value for key, value in sorted(tags.items()) if "_digest" in key},
        address=f"{server}/{page}" if server else f"/{page} of `invoke ui`",
        ended=datetime.fromtimestamp(run.info.end_time / 1000, UTC) if run.info.end_time else None,
        device=tags.get(DEVICE, ""),
        attempts=int(tags[ATTEMPTS]) if ATTEMPTS in tags else None,
        host=str(owner(run).get("host", "")),
    )


def title(spec: Spec | Weights) -> str:
    """A run's name in the UI: `msbreg K=4 λs=.004 λb=.5 stl10 320 epochs seed 0`; of an evaluation, `linear:
    ` and that."""
    if isinstance(spec, Evaluate):
        settings = dict(spec.protocol.leaves())
        words = [spec.protocol.name]
        if "k" in settings:
            words.append(f"k={settings['k']}")
        if "labels" in settings:
            words.append(settings["labels"])
        if not isinstance(spec.encoder, Pretrain) or spec.dataset != spec.encoder.dataset:
            words += ["on", spec.dataset.name]
        return f"{' '.join(words)}: {title(spec.encoder)}"
    if isinstance(spec, Weights):
        return spec.title
    settings = dict(spec.method.leaves())
    words = [spec.method.name]
    for sign, key in {"K": "num_views", "λs": "lambda_s", "λb": "lambda_b", "λu": "lambda_uniform"}.items():
        if settings.get(key):
            words.append(f"{sign}={settings[key]:g}".replace("=0.", "=."))
    if settings.get("heads.norm", "batchnorm") != "batchnorm":
        words.append(settings["heads.norm"])
    return " ".join((*words, spec.dataset.name, f"{spec.epochs} epochs", f"seed {spec.seed}"))


def group(spec: Spec) -> str:
    """What the seeds of one experiment share: the id of its seed 0."""
    spec = spec.replace("seed", 0)
    pretrained = isinstance(spec, Evaluate) and isinstance(spec.encoder, Pretrain)
    return (spec.replace("encoder.seed", 0) if pretrained else spec).id


def first_tags(spec: Spec, scale: str) -> dict[str, str]:
    """Every tag that a run has from its start."""
    commit, dirty = environment.code()
    own = {SPEC: spec.id, GROUP: group(spec), SCALE: scale, "commit": commit, "dirty": str(dirty)}
    return shown_settings(spec) | own | {"kind": spec.name, "mlflow.source.git.commit": commit}


def settings(spec: Spec) -> dict[str, str]:
    """Every setting by its dotted path, as text, as in a `Record`."""
    return {key: _text(value) for key, value in spec.leaves()}


def shown_settings(spec: Spec) -> dict[str, str]:
    """Every setting by its dotted path and every axis of the tables by its short name, as text."""
    values = dict(spec.leaves())
    prefix = "encoder." if isinstance(spec, Evaluate) else ""
    short = {name: values[prefix + path] for name, path in SHORT_NAMES.items() if prefix + path in values}
    return {key: _text(value) for key, value in (short | values).items()}


def _text(value: object) -> str:
    """A setting as MLflow shows it; numbers stay numbers for its plots."""
    if value is None:
        return "none"
    return json.dumps(identity.canonical(value)) if isinstance(value, tuple) else str(value)


def me(runs: Path, hold: Held | None) -> dict[str, Any]:
    """This process, such that no later one can be taken for it, and its lease."""
    return lease.process() | ({} if hold is None else {"token": hold.token, "place": lease.place(runs)})


def owner(run: Any) -> dict[str, Any]:
    owner: dict[str, Any] = json.loads(run.data.tags.get(OWNER, "{}"))
    return owner


def is_mine(run: Any) -> bool:
    """Whether this process owns an MLflow run."""
    return lease.process().items() <= owner(run).items()


def who(run: Any) -> str:
    return f"process {owner(run).get('pid')} on {owner(run).get('host')}"


def lease_of(run: Any, runs: Path) -> Lease | None:
    """The lease of an MLflow run, if the folder of runs that it lies in is `runs`, as seen from here."""
    named = owner(run).get("place")
    if not named or not (runs / lease.PLACE).exists() or lease.place(runs) != named:
        return None
    return lease.read(runs / run.data.tags[SPEC])


def alive(run: Any, runs: Path) -> bool | None:
    """Whether the process that owns an MLflow run still is there; None: it is on another machine, and no
    lease here tells of it."""
    named, leased = owner(run), lease_of(run, runs)
    if leased is not None:
        return leased.token == named["token"] and leased.alive
    if named.get("host") != lease.this_host():
        return None
    return lease.process_alive(named["host"], named["pid"], named["started"])


def ending(run: Any, runs: Path) -> tuple[Literal["interrupted", "failed"], str]:
    """How an MLflow run that its process left unfinished ended, and why: its lease may know what could not be
    recorded."""
    leased = lease_of(run, runs)
    if leased is not None and leased.token == owner(run)["token"]:
        if leased.state == "failed":
            return "failed", leased.reason
        if leased.state == "interrupted":
            return "interrupted", leased.reason
    return "interrupted", f"its {who(run)} is gone"


def state_of(run: Any, runs: Path) -> RunState:
    """The truth about an MLflow run, from its tags, its lease and its process."""
    tags, status = run.data.tags, run.info.status
    state: Literal["finished", "running", "interrupted", "failed"]
    reason = tags.get(REASON, "")
    if COMPLETE in tags:
        state = "finished"
    elif status in ("FAILED", "KILLED"):
        state, reason = "failed" if status == "FAILED" else "interrupted", reason or ending(run, runs)[1]
    elif status == "RUNNING" and alive(run, runs) is not False:
        state, reason = "running", who(run)
    else:
        state, reason = ending(run, runs)
    return RunState(
        spec_id=tags[SPEC],
        run_id=run.info.run_id,
        name=run.info.run_name,
        scale=tags.get(SCALE, ""),
        state=state,
        reason=reason,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        metrics=final(run) if state == "finished" else {},
    )


def final(run: Any) -> dict[str, float]:
    """The final metrics of an MLflow run, by their own names."""
    metrics = run.data.metrics
    return {key.removeprefix(FINAL): metrics[key] for key in sorted(metrics) if key.startswith(FINAL)}


def cell_means(filled: Filled) -> dict[str, float]:
    """A table's numbers by `row/column`, the row's label in the characters that MLflow takes."""
    values: dict[str, float] = {}
    slugs: set[str] = set()
    for row in filled.rows:
        slug = re.sub(r"[^\w.]+", " ", row.label).strip(" .")[:LONGEST] or "row"
        while slug in slugs:  # two labels that differ in symbols alone
            slug += " again"
        slugs.add(slug)
        values |= {f"{slug}/{key}": cell.value for key, cell in row.cells.items() if cell.value is not None}
    return values


def table_digest(values: Mapping[str, float], paths: Sequence[Path]) -> str:
    """What changes when a table's numbers or one of its files does."""
    total = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in sorted(paths):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
