"""The entry of a run in the tracking store: its tags, its title and its true state.

    tags.title(spec)                    # "K4 λs.01 λb.5 · STL10 · s0"
    tags.state_of(run, runs).state      # "interrupted", although MLflow shows RUNNING: its process is gone
    tags.cell_values(filled)            # {"MSBReg K 4/top1": 81.2}, for the entry of a table

An entry is a run as MLflow's client or `sqlite.py` returns it. MLflow's own status is FINISHED after an
exception and stays RUNNING after a kill. A run is finished if it has the tag `complete`; every other state
follows from its owner and its lease. Does not import mlflow.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reproduce import identity
from reproduce.data import inventory
from reproduce.messages import unprintable
from reproduce.nn.weights import Weights
from reproduce.report.observe import Finished
from reproduce.runs import environment, lease, place, processes
from reproduce.runs.lease import Held, Lease
from reproduce.spec import Evaluate, Pretrain, Spec

if TYPE_CHECKING:
    from reproduce.methods.method import Method
    from reproduce.report.filled import Filled, FilledCell

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
"""Names of tags. `complete` contains the spec's id again, so that one condition finds a finished run."""
SUPERSEDED = "superseded"
"""Tag of a finished run that no table uses any more because `invoke redo` asked for another: the time, in
words."""
IMPORTED = "imported"
"""Tag of a run that was executed elsewhere: the origin of its record."""
OF_THIS_STORE = (SPEC, COMPLETE, OWNER, REASON, IMPORTED, SUPERSEDED, "model_id")
"""Tags that each store gives a run itself; an archive does not contain them."""
DEVICE, ATTEMPTS = "device", "attempts"
"""Tags that make the times of finished runs comparable: the device, and the number of attempts."""
SHARING = "runs_per_gpu"
"""Tag of a run that shared its GPU: the number of runs, itself included."""
PER_GPU = "per_gpu"
"""Tag that makes the peak memory of finished runs comparable: images of a step on each GPU."""
PARENT = "mlflow.parentRunId"
NOTE, USER = "mlflow.note.content", "mlflow.user"
SOURCE, SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"
"""Tags that fill the description and the columns of MLflow's UI."""
TABLES = "tables"
"""Tag with the tables that use a run, as `/table8/table11/`, so that a filter finds one by `/table8/`."""
MODEL = "model_id"
"""Tag with MLflow's id of the logged model that a pretraining made."""
OF_TABLE, NUMBERS = "of_table", "numbers"
"""Tags of a table's record: name of the table, and `ours` or `paper`."""
ENCODER, TRAINED = "encoder_digest", "trained_encoder_digest"
"""Tags with the digest of an encoder's tensors: of the one that an evaluation measured, and of the one that a
pretraining made."""
ENCODER_FILE = "encoder_file"
"""Tag with the name of the user's file that an evaluation measured."""
FACTS = (ENCODER, TRAINED, PARENT)
"""Tags of a finished run that, with those of its data, decide whether it is reused (`reuse.py`)."""
SETTINGS = "spec.json"
"""Artifact that contains the spec."""
FINAL = "final/"
"""Prefix of final metrics, which keeps them apart from those of training.

A resumed run repeats steps of training in the histories of the latter.
"""
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
"""Axes of the tables: settings of the pretraining run by the short names that the MLflow UI shows."""
OURS, WEIGHTS = "msbreg", ("lambda_s", "lambda_b")
"""Name of the paper's method, and the settings of it that every title shows."""
USUAL_EPOCHS = 320
"""Epochs that a title leaves out: those of the paper's ablations (section 7.1)."""
LATEST = 1e12
"""Maximum of a process's start, in seconds since 1970."""
LONGEST = 200
"""Maximum characters of a row's label in the name of a metric; MLflow accepts 250 in all."""
GREEK = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "kappa": "κ"},
    **{"lambda": "λ", "mu": "μ", "nu": "ν", "rho": "ρ", "sigma": "σ", "tau": "τ", "omega": "ω"},
}
"""Signs for the first word of a setting's name, in titles: `lambda_s = .004` is shown as `λs.004`."""


State = Literal["finished", "superseded", "running", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One line of `invoke status`."""

    spec_id: str
    run_id: str
    name: str
    scale: str
    state: State
    """True state, which may differ from MLflow's status: a run without a process is interrupted."""
    reason: str
    """Reason for the failure or the interruption, or the process that executes the run."""
    started: datetime
    metrics: Mapping[str, float]
    """Final values by name."""
    group: str = ""
    """Name that the seeds of one experiment share."""

    def __str__(self) -> str:
        values = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        started = f"{self.started.astimezone():%Y-%m-%d %H:%M}"
        columns = (
            f"{self.state:<11}",
            self.spec_id,
            f"{self.scale:<5}",
            started,
            self.name,
            self.reason or values,
        )
        return "  ".join(columns).rstrip()


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything that the store contains about one run."""

    state: RunState
    settings: dict[str, str]
    """Every setting by its dotted path, as text."""
    commit: str
    dirty: bool
    """True if the code had uncommitted changes."""
    digests: dict[str, str]
    """Digests of the data and of the encoder, and numbers of images, by the names of their tags."""
    address: str
    """Address of the run's page: on the server, or below the address that `invoke ui` serves."""
    ended: datetime | None
    """End of the run; None if it has not ended, or if its process is gone."""
    device: str
    """Name of the processor or GPU of the last attempt; empty if not recorded."""
    attempts: int | None
    """Number of attempts; more than one if the run was resumed, None if not recorded."""
    host: str
    """Machine of the process that owns or owned the run."""
    imported: bool = False
    """True if the run was executed elsewhere; its encoder may not be here."""
    sharing: int = 1
    """Number of runs that shared its GPU, itself included."""
    per_gpu: str = ""
    """Images of a step on each GPU, as `per_gpu` writes them; empty if the run recorded no peak memory."""

    @property
    def is_pretraining(self) -> bool:
        """True if the run trained an encoder."""
        return "protocol" not in self.settings

    @property
    def encoder(self) -> dict[str, str]:
        """Settings of the encoder that an evaluation used, as in the record of its own run."""
        prefix = "encoder."
        return {
            key.removeprefix(prefix): value for key, value in self.settings.items() if key.startswith(prefix)
        }


def record_of(run: Any, runs: Path, server: str) -> Record:
    """Return the content of an entry.

    Args:
        run: the entry.
        runs: the folder of runs, in which its lease may be.
        server: the address of the tracking server; empty if the store is a file, which `invoke ui` serves.
    """
    tags, settings = run.data.tags, dict(run.data.params)
    prefix = "encoder." if tags.get("kind") == Evaluate.name else ""
    for short, path in SHORT_NAMES.items():  # the store has the axes of the tables twice
        if prefix + path != short and prefix + path in settings:
            settings.pop(short, None)
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return Record(
        state=state_of(run, runs),
        settings=settings,
        commit=tags.get("commit", "unknown"),
        dirty=tags.get("dirty") == "True",
        digests={
            key: value
            for key, value in sorted(tags.items())
            if "_digest" in key or key.startswith(inventory.PREFIXES)
        },
        address=f"{server}/{page}" if server else f"/{page} of `invoke ui`",
        ended=datetime.fromtimestamp(run.info.end_time / 1000, UTC) if run.info.end_time else None,
        device=tags.get(DEVICE, ""),
        attempts=int(tags[ATTEMPTS]) if tags.get(ATTEMPTS, "").isdecimal() else None,
        host=str(owner(run).get("host", "")),
        imported=IMPORTED in tags,
        sharing=int(tags[SHARING]) if re.fullmatch(r"[1-9]\d{0,3}", tags.get(SHARING, "")) else 1,
        per_gpu=tags.get(PER_GPU, ""),
    )


def per_gpu(spec: Pretrain, devices: int, *, recompute: bool) -> str:
    """Return the images of a step on each of `devices` GPUs, and the site's way to compute them, in words."""
    return f"{spec.batch_size // devices} images{', recomputed' if recompute else ''}"


def title(spec: Spec | Weights) -> str:
    """Return a run's name in lists, such as `K8 λs.004 λb.5 · IN100 · s0`.

    Names in a list differ at their beginning.

    It begins with the method, except for MSBReg, and with the number of views if that is not the method's
    own. The settings of the method follow that differ from those of its class, at the scale where the fewest
    differ; MSBReg's two weights are always shown. Epochs are shown unless they are the paper's. The title of
    an evaluation contains its protocol behind the method: `K8 λs.004 λb.5 → linear · IN100 · s0`.
    """
    if isinstance(spec, Weights):
        return spec.title
    if isinstance(spec, Evaluate):
        settings = dict(spec.protocol.leaves())
        words = [spec.protocol.name]
        if "k" in settings:
            words.append(f"k{settings['k']}")
        if "labels" in settings:
            words.append(settings["labels"])
        if not isinstance(spec.encoder, Pretrain) or spec.dataset != spec.encoder.dataset:
            words += ["on", _data(spec)]
        if isinstance(spec.encoder, Weights):
            return f"{spec.encoder.title} → {' '.join(words)}"
        return _pretraining(spec.encoder, f" → {' '.join(words)}")
    return _pretraining(spec)


def _pretraining(spec: Pretrain, evaluation: str = "") -> str:
    """Return the title of a pretraining, with that of an evaluation of its encoder behind the method."""
    epochs = "" if spec.epochs == USUAL_EPOCHS else f" {spec.epochs}ep"
    method = f"{' '.join(_method(spec.method))}{evaluation}"
    return " · ".join((method, f"{_data(spec)}{epochs}", f"s{spec.seed}"))


def _method(method: Method) -> Iterator[str]:
    """Yield the words of a title about the method."""
    names = _short_names([path for path, _ in method.leaves()])
    changed = dict(method.changed())
    scales: tuple[Literal["smoke", "small"], ...] = ("smoke", "small")
    for scale in scales:
        with contextlib.suppress(TypeError):  # a setting of the class has no default
            cls: Any = type(method)
            usual = dict(cls().smaller(scale).leaves())
            differing = {path: value for path, value in method.leaves() if usual.get(path, path) != value}
            changed = min(changed, differing, key=len)
    always = WEIGHTS if method.name == OURS else ()
    if method.name != OURS:
        yield method.name
    if method.name == OURS or "num_views" in changed:
        yield f"K{method.num_views}"
    for path, value in method.leaves():
        if path != "num_views" and (path in changed or path in always):
            name = names[path]
            yield f"{name}{'' if name[0] in GREEK.values() and '_' not in name else '='}{_short(value)}"


def _data(spec: Spec) -> str:
    """Return a data set as a title shows it."""
    return spec.dataset.label


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the shortest tail of each dotted path that means no other path, with Greek letters as signs."""
    names = {}
    for path in paths:
        parts = path.split(".")
        tails = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        tail = next(tail for tail in tails if sum(f".{each}".endswith(f".{tail}") for each in paths) == 1)
        word, _, rest = tail.partition("_")
        names[path] = f"{GREEK[word]}{rest}" if word in GREEK else tail
    return names


def _short(value: object) -> str:
    """Return the value of a setting as a title shows it: `.004`, `4`, `layernorm`, `1,2.5`."""
    if isinstance(value, tuple):
        return ",".join(map(_short, value))
    return f"{value:g}".removeprefix("0") or "0" if isinstance(value, float) else str(value)


def group(spec: Spec) -> str:
    """Return the name that the seeds of one experiment share: the id of its seed 0."""
    spec = spec.replace("seed", 0)
    pretrained = isinstance(spec, Evaluate) and isinstance(spec.encoder, Pretrain)
    return (spec.replace("encoder.seed", 0) if pretrained else spec).id


def first_tags(spec: Spec, scale: str) -> dict[str, str]:
    """Return every tag that a run has from its start; its settings are params."""
    commit, dirty = environment.code()
    pretrain = spec.encoder if isinstance(spec, Evaluate) else spec
    method = pretrain.method.name if isinstance(pretrain, Pretrain) else pretrain.name
    given = isinstance(spec, Evaluate) and isinstance(spec.encoder, Weights) and spec.encoder.file
    return {
        SPEC: spec.id,
        GROUP: group(spec),
        SCALE: scale,
        "kind": spec.name,
        "method": method,
        "commit": commit,
        "dirty": str(dirty),
        "mlflow.source.git.commit": commit,
        USER: user(),
    } | ({ENCODER_FILE: str(given)} if given else {})


def user() -> str:
    """Return the name of this process's user, or the user's number if the system has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for the user
        return str(os.getuid())


def settings(spec: Spec) -> dict[str, str]:
    """Return every setting by its dotted path, as text, as in a `Record`."""
    return {key: _text(value) for key, value in spec.leaves()}


def shown_settings(spec: Spec) -> dict[str, str]:
    """Return every setting by its dotted path and every axis of the tables by its short name, as text."""
    values = dict(spec.leaves())
    prefix = "encoder." if isinstance(spec, Evaluate) else ""
    short = {name: values[prefix + path] for name, path in SHORT_NAMES.items() if prefix + path in values}
    return {key: _text(value) for key, value in (short | values).items()}


def _text(value: object) -> str:
    """Return a setting as MLflow shows it; numbers stay numbers for its plots."""
    if value is None:
        return "none"
    return json.dumps(identity.canonical(value)) if isinstance(value, tuple) else str(value)


def me(runs: Path, hold: Held | None) -> dict[str, Any]:
    """Return the marks of this process, which no later process can have, and of its lease."""
    return processes.process() | ({} if hold is None else {"token": hold.token, "place": place.place(runs)})


def owner(run: Any) -> dict[str, Any]:
    """Return the marks of the process that owns an MLflow run, as `me` made them; empty if it has none."""
    try:
        owner = json.loads(run.data.tags.get(OWNER, "{}"))
    except (ValueError, RecursionError):  # the tag was edited
        return {}
    return owner if isinstance(owner, dict) and _is_owner(owner) else {}


def _is_owner(fields: Mapping[str, Any]) -> bool:
    """Return True if the fields of a tag are the marks of a process."""
    host, pid, started = fields.get("host"), fields.get("pid"), fields.get("started")
    return (
        isinstance(host, str)
        and not unprintable(host)
        and isinstance(pid, int)
        and 0 < pid <= lease.LARGEST_PID
        and isinstance(started, int | float)
        and abs(started) < LATEST
    )


def is_mine(run: Any) -> bool:
    """Return True if this process owns an MLflow run."""
    return processes.process().items() <= owner(run).items()


def who(run: Any) -> str:
    """Return the process that owns an MLflow run, in words."""
    named = owner(run)
    return f"process {named['pid']} on {named['host']}" if named else "unknown process"


def lease_of(run: Any, runs: Path) -> Lease | None:
    """Return the lease of an MLflow run.

    None if it cannot be read, or if the run was started in another folder than `runs`.
    """
    named = owner(run).get("place")
    if not named or not (runs / place.FILE).exists() or place.place(runs) != named:
        return None
    found = lease.read(runs / run.data.tags[SPEC], run.data.tags[SPEC])
    return None if found is None or found.state == "unreadable" else found


def alive(run: Any, runs: Path) -> bool | None:
    """Return True if the process that owns an MLflow run still exists.

    None if it is on another machine and its lease is not in this folder of runs.
    """
    named, leased = owner(run), lease_of(run, runs)
    if leased is not None:
        return leased.token == named.get("token") and leased.alive
    if named.get("host") != processes.this_host():
        return None
    return processes.process_alive(named["host"], named["pid"], named["started"])


def ending(run: Any, runs: Path) -> tuple[Literal["interrupted", "failed"], str]:
    """Return the end of an MLflow run that its process left unfinished, and the reason.

    The lease may contain the reason even if the store could not record it.
    """
    leased = lease_of(run, runs)
    if leased is not None and leased.token == owner(run).get("token"):
        if leased.state == "failed":
            return "failed", leased.reason
        if leased.state == "interrupted":
            return "interrupted", leased.reason
    return "interrupted", f"its {who(run)} is gone"


def is_finished(run: Any) -> bool:
    """Return True if an MLflow run counts as finished.

    It is complete, its two tags name the same spec, since tags can be edited in the UI, and no `invoke redo`
    has replaced it.
    """
    tags = run.data.tags
    return COMPLETE in tags and tags[COMPLETE] == tags.get(SPEC) and SUPERSEDED not in tags


def state_of(run: Any, runs: Path) -> RunState:
    """Return the true state of an MLflow run, from its tags, its lease and its process."""
    tags, status = run.data.tags, run.info.status
    state: State
    reason = tags.get(REASON, "")
    if COMPLETE in tags and SUPERSEDED in tags:
        state, reason = "superseded", tags[SUPERSEDED]
    elif is_finished(run):
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
        group=tags.get(GROUP, ""),
    )


def finished(run: Any) -> Finished:
    """Return the result of a finished MLflow run."""
    found = run.data.tags
    return Finished(
        spec_id=found[COMPLETE],
        run_id=run.info.run_id,
        metrics=final(run),
        facts={
            key: value for key, value in found.items() if key in FACTS or key.startswith(inventory.PREFIXES)
        },
    )


def final(run: Any) -> dict[str, float]:
    """Return the final metrics of an MLflow run, by name without the prefix."""
    metrics = run.data.metrics
    return {key.removeprefix(FINAL): metrics[key] for key in sorted(metrics) if key.startswith(FINAL)}


def cell_values(filled: Filled) -> dict[str, float]:
    """Return a table's numbers by `row/column`: mean, `/low` and `/high` of its interval, and `/n` seeds.

    `/difference` is ours minus the paper's number. A row's label is in characters that MLflow accepts.
    """
    values: dict[str, float] = {}
    for name, cell in _cells(filled):
        if cell.value is not None:
            values[name] = cell.value
            if cell.seeds:
                values[f"{name}/n"] = len(cell.seeds)
            if cell.interval is not None:
                values |= dict(zip((f"{name}/low", f"{name}/high"), cell.interval, strict=True))
            if cell.paper is not None:
                # Decimal numbers: 80.00 - 71.92 is 8.08, not 8.079999999999998.
                values[f"{name}/difference"] = float(Decimal(str(cell.value)) - Decimal(cell.paper))
    return values


def paper_values(filled: Filled) -> dict[str, float]:
    """Return the paper's numbers in a table under the names of ours."""
    return {name: float(cell.paper) for name, cell in _cells(filled) if cell.paper is not None}


def cell_verdicts(filled: Filled) -> dict[str, str]:
    """Return the verdicts on a table's numbers against the paper's, by `verdict/row/column`."""
    return {f"verdict/{name}": cell.against for name, cell in _cells(filled) if cell.against}


def _cells(filled: Filled) -> Iterator[tuple[str, FilledCell]]:
    """Yield each cell with its name in MLflow."""
    slugs: set[str] = set()
    for row in filled.rows:
        slug = re.sub(r"[^\w.]+", " ", row.label).strip(" .")[:LONGEST] or "row"
        while slug in slugs:  # two labels that differ only in symbols
            slug += " again"
        slugs.add(slug)
        for key, cell in row.cells.items():
            yield f"{slug}/{key}", cell


def table_digest(title: str, values: Mapping[str, float], paths: Sequence[Path]) -> str:
    """Return a digest that changes if a number of a table, one of its files or its record's name changes."""
    total = hashlib.sha256(json.dumps([title, values], sort_keys=True).encode())
    for path in sorted(paths):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
