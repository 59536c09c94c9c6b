"""From a request to its runs: build the table, adapt it to a scale, change settings, list the runs.

    Request(table="table4", scale="small")                     # a table
    Evaluation(weights=..., protocol="knn", dataset="stl10")   # one evaluation of a given encoder
    Pretraining(method="msbreg", dataset="stl10")              # one pretraining

A request is plain data. A worker on another machine builds the same table from it and finds its run by id.
Only this module looks up to `tables` and `configs`, by the names in a request.
"""

from __future__ import annotations

import importlib
import json
import logging
import pkgutil
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.data.inventory import AnyDataset
from reproduce.messages import InvalidError, NotFoundError, reason_of, table_command, unknown
from reproduce.nn import backbones
from reproduce.nn.weights import Weights, geometry
from reproduce.overrides import EVALUATION, check_once, override, parsed, settings_named
from reproduce.report.markup import literal
from reproduce.report.stats import MOST_SEEDS
from reproduce.report.table import Cell, Measured, Row, Table, UnknownMetricError
from reproduce.settings import Settings
from reproduce.site import Site, user_file, user_path
from reproduce.spec import Evaluate, Pretrain, Spec

logger = logging.getLogger(__name__)

SCALES = ("smoke", "small", "paper")
BASELINES = ("quoted", "released", "trained")
"""Sources of the rows that quote a baseline: the paper's numbers, evaluations of the released encoders, or
runs of this suite."""
CUSTOM = "custom"
"""Scale under which evaluations outside the tables are recorded: the user chooses the settings."""
SYNTHETIC = "synthetic_"
"""Prefix of data sets whose images are drawn at one size."""
LONGEST_LABEL = 100
"""Maximum number of characters in the label of an added row."""
MOST_ADDED = 100
"""Maximum number of added rows: the file of each is read first."""
UNKNOWN_FACT = "–"
"""Content of an added row in the columns of facts."""
ROOT_KEYS = ("root", "dataset.root")
"""Keys of --set that name the user's folder of images."""
CONTENT_KEYS = ("content", "dataset.content")
"""Keys of --set that name a folder of images by its content."""
NORMALISATION = ("mean", "std")
"""Settings that a given encoder decides even for images that are drawn at one size."""

S = TypeVar("S", bound=Settings)


class NotHereError(InvalidError):
    """A table does not accept an option that other tables accept; the message names them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A table as the command line asks for it."""

    table: str
    """Module of `tables/`."""
    scale: str = "smoke"
    seeds: int = 1
    rows: str = "*"
    columns: str = "*"
    changes: tuple[str, ...] = ()
    """Changes as `key=value`; each changes a setting of every run that has it."""
    baselines: str = "quoted"
    """One of BASELINES."""
    added: tuple[tuple[str, Weights], ...] = ()
    """The user's rows: a label, and the encoder that fills its cells."""

    def __str__(self) -> str:
        return f"{self.table} at {self.scale} scale"

    def build(self) -> Table:
        """Return the table at its scale, selected and changed as requested.

        Raises:
            NotFoundError: the table, scale, row, column or setting does not exist; the message names the
                nearest.
            InvalidError: a setting does not accept its value or has two, or the backbone does not exist.
            NotHereError: the table has no such baselines, or accepts no added row.
        """
        if self.table not in table_names():
            raise NotFoundError(unknown("table", self.table, table_names()))
        if self.scale not in SCALES:
            raise NotFoundError(unknown("scale", self.scale, SCALES))
        if self.baselines not in BASELINES:
            raise NotFoundError(unknown("kind of baselines", self.baselines, BASELINES))
        _check_seeds(self.seeds)
        table: Table = importlib.import_module(f"tables.{self.table}").table()
        table.check_name(self.table)
        if self.baselines != BASELINES[0]:
            table = _with_baselines(table, self.baselines)
        for label, weights in self.added:
            table = _with_row(table, label, weights)
        scales = importlib.import_module("configs.scales")
        paper, table = table, table.map(getattr(scales, self.scale), scale=self.scale)
        before, after = (_datasets(each) for each in (paper, table))
        table = replace(table, stand_in=scales.STAND_INS[self.scale] if after - before else "")
        table = table.select(self.rows, self.columns)
        labels = {row.label for row in table.rows}
        added = [f"row {label}={weights.title}" for label, weights in self.added if label in labels]
        table = replace(table, changes=(*table.changes, *added))
        named: list[str] = []
        for change in self.changes:
            table = _changed(table, change)
            named.append(table.changes[-1])
            check_once(named)
        for _, _, ours in table.measured():
            _check_backbone(ours.spec)
        if self.baselines == "trained":
            table = replace(table, notes=(*table.notes, *_budgets(table)))
        return table

    def specs(self) -> tuple[Spec, ...]:
        """Return every run that the table needs, upstream first."""
        return self.build().specs(self.seeds)

    def changed(self) -> tuple[str, ...]:
        """Return the changes that the caption prints, settings by their full names."""
        return self.build().changes

    def command(self) -> str:
        """Return the command that makes this request, without the user's rows."""
        return table_command(
            self.table, self.rows, self.columns, self.scale, self.seeds, self.baselines, self.changes
        )

    def dumps(self) -> str:
        """Return the request as one line of JSON, for a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Request:
        """Return the request that `dumps` wrote."""
        fields = json.loads(text)
        added = tuple((label, _weights(plain)) for label, plain in fields.get("added", ()))
        return cls(**{**fields, "changes": tuple(fields["changes"]), "added": added})


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of a given encoder, as the command line asks for it."""

    weights: Weights
    protocol: str
    """Name of a class of `reproduce/protocols`."""
    dataset: str
    """Name of a class of `reproduce/data`."""
    seeds: int = 1
    changes: tuple[str, ...] = ()
    """Changes as `key=value`; each changes a setting of the run."""
    typed: tuple[str, ...] | None = None
    """Changes as the user typed them, with the path of a folder in place of its content. None if they are
    `changes`."""
    checkpoint: str = ""
    """Encoder as the user typed it: a path, or the name of a release. Empty if unknown."""
    backbone: str = ""
    """Network of the encoder as the user typed it."""
    prefix: str = ""
    """Prefix of the encoder's tensors as the user typed it."""

    def __str__(self) -> str:
        return f"the evaluation by {self.protocol} on {self.dataset}"

    @property
    def scale(self) -> str:
        """Scale under which the runs are recorded."""
        return CUSTOM

    def build(self) -> Evaluate:
        """Return the evaluation of seed 0.

        The protocol has its default settings and the images are as the encoder expects them; then the changes
        apply. Scenes that are drawn at one size keep it, as at smoke scale.

        Raises:
            NotFoundError: the protocol, data set or setting does not exist; the message names the nearest.
            InvalidError: a setting does not accept its value, or the protocol does not accept the data set.
        """
        return self._build()[0]

    def changed(self) -> tuple[str, ...]:
        """Return the changes, settings by their full names, and a folder by its path."""
        return _as_typed(self._build()[1], self.typed)

    def _build(self) -> tuple[Evaluate, tuple[str, ...]]:
        from reproduce.data.dataset import Dataset
        from reproduce.data.detection import DetectionDataset
        from reproduce.protocols.protocol import Protocol

        _check_seeds(self.seeds)
        protocol = _component("protocol", self.protocol, "reproduce.protocols", Protocol)
        dataset: Any = _component("data set", self.dataset, "reproduce.data", Dataset, DetectionDataset)
        if not protocol.accepts(type(dataset)):
            fitting = [
                name
                for name, other in components("reproduce.data", protocol.takes).items()
                if protocol.accepts(other)
            ]
            raise InvalidError(
                f"{protocol.name} needs a data set with {protocol.wants}, which {dataset.name} does not "
                f"have: "
                f"choose one of {', '.join(sorted(fitting))}."
            )
        expected = geometry(self.weights, dataset)
        if dataset.name.startswith(SYNTHETIC):
            expected = {key: expected[key] for key in NORMALISATION}
        dataset = replace(dataset, **expected)
        run = Evaluate(encoder=self.weights, protocol=protocol, dataset=dataset)
        names: list[str] = []
        for change in self.changes:
            apply, name = override([run], change)
            run = apply(run)
            names.append(name)
            check_once(names)
        _check_backbone(run)
        _check_named(run.dataset)
        _check(run, by_user=True)
        return run, tuple(names)

    def specs(self) -> tuple[Spec, ...]:
        """Return the evaluation at every seed."""
        return self.build().at_seeds(self.seeds)

    def command(self) -> str:
        """Return the command that makes this request, as the user typed it."""
        given = self.checkpoint or self.weights.url or self.weights.file or "FILE"
        network = {"--backbone": self.backbone, "--prefix": self.prefix}
        options = {"--checkpoint": given, **{key: value for key, value in network.items() if value}}
        options |= {"--protocol": self.protocol, "--dataset": self.dataset}
        return _line("evaluate", options, self.seeds, self.changes if self.typed is None else self.typed)

    def dumps(self) -> str:
        """Return the request as one line of JSON, for a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Evaluation:
        """Return the request that `dumps` wrote."""
        fields = _read(text)
        return cls(**{**fields, "weights": _weights(fields["weights"])})


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One pretraining, as the command line asks for it."""

    method: str
    """Name of a class of `reproduce/methods`."""
    dataset: str
    """Name of a class of `reproduce/data`."""
    scale: str = "smoke"
    seeds: int = 1
    changes: tuple[str, ...] = ()
    """Changes as `key=value`; each changes a setting of the run."""
    typed: tuple[str, ...] | None = None
    """Changes as the user typed them, with the path of a folder in place of its content. None if they are
    `changes`."""

    def __str__(self) -> str:
        return f"the pretraining by {self.method} on {self.dataset} at {self.scale} scale"

    def build(self) -> Pretrain:
        """Return the pretraining of seed 0, with the settings of `configs/methods.py`, then the changes.

        Raises:
            NotFoundError: the method, data set, scale or setting does not exist; the message names the
                nearest.
            InvalidError: a setting does not accept its value, or the data set has no pretraining split.
        """
        return self._build()[0]

    def changed(self) -> tuple[str, ...]:
        """Return the changes, settings by their full names, and a folder by its path."""
        return _as_typed(self._build()[1], self.typed)

    def _build(self) -> tuple[Pretrain, tuple[str, ...]]:
        from reproduce.methods.method import Method

        _check_seeds(self.seeds)
        if self.scale not in SCALES:
            raise NotFoundError(unknown("scale", self.scale, SCALES))
        method = _component("method", self.method, "reproduce.methods", Method)
        dataset = _component("data set", self.dataset, "reproduce.data", Dataset, DetectionDataset)
        if not isinstance(dataset, Dataset):
            fitting = sorted(components("reproduce.data", Dataset))
            raise InvalidError(
                f"pretrain needs a data set of whole images, but {dataset.name} has boxes: choose one of "
                f"{', '.join(fitting)}."
            )
        run: Pretrain = importlib.import_module("configs.methods").run(method, dataset, self.scale)
        # `override` changes evaluations. This one only carries the pretraining and has few names of its own.
        carrier = importlib.import_module("configs.evaluate").knn5(run)
        names: list[str] = []
        for change in self.changes:
            key, _ = parsed(change)
            if not any(path.startswith("encoder.") for path in settings_named(key, carrier)[:1]):
                known = (path for path, _ in run.leaves() if path != "seed")
                raise NotFoundError(unknown("setting of a pretraining", key, sorted(known)))
            apply, name = override([carrier], change)
            carrier = apply(carrier)
            names.append(name)
            check_once(names)
        run = carrier.encoder
        _check_backbone(carrier)
        _check_named(run.dataset)
        _check(run, by_user=True)
        return run, tuple(names)

    def specs(self) -> tuple[Spec, ...]:
        """Return the pretraining at every seed."""
        run = self.build()
        return tuple(replace(run, seed=seed) for seed in range(self.seeds))

    def stand_in(self) -> str:
        """Return a sentence about data that the scale replaces; empty if it replaces none."""
        if self.build().dataset.name == self.dataset:
            return ""
        text: str = importlib.import_module("configs.scales").STAND_INS[self.scale]
        return text

    def command(self) -> str:
        """Return the command that makes this request, as the user typed it."""
        options = {"--method": self.method, "--dataset": self.dataset, "--scale": self.scale}
        return _line("pretrain", options, self.seeds, self.changes if self.typed is None else self.typed)

    def dumps(self) -> str:
        """Return the request as one line of JSON, for a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Pretraining:
        """Return the request that `dumps` wrote."""
        return cls(**_read(text))


def _read(text: str) -> dict[str, Any]:
    """Return the fields of a request that `dumps` wrote, with tuples of changes."""
    fields: dict[str, Any] = json.loads(text)
    typed = fields.get("typed")
    return {
        **fields,
        "changes": tuple(fields["changes"]),
        "typed": None if typed is None else tuple(typed),
    }


def _as_typed(names: tuple[str, ...], typed: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return changes by their full names, with the folder as the user typed it in place of its content.

    Args:
        typed: changes as the user typed them; None if they are those of `names`.
    """
    if typed is None:
        return names
    pairs = [parsed(change) for change in typed]
    root = [f"dataset.root={value}" for key, value in pairs if key.removeprefix(EVALUATION) in ROOT_KEYS]
    others = [name for name in names if name.partition("=")[0] not in CONTENT_KEYS]
    return (*root, *others)


def _line(task: str, options: Mapping[str, str], seeds: int, changes: Iterable[str]) -> str:
    """Return a command line, without the options that have their usual values."""
    words = ["invoke", task, *(word for pair in options.items() for word in pair)]
    words += ["--seeds", str(seeds)] if seeds != 1 else []
    return shlex.join([*words, *(word for change in changes for word in ("--set", change))])


Order = Request | Evaluation | Pretraining
"""Any kind of request; a worker receives one with the id of its run."""


def loads(text: str) -> Order:
    """Return the request that `dumps` of any kind wrote."""
    fields = json.loads(text)
    if "table" in fields:
        return Request.loads(text)
    return Pretraining.loads(text) if "method" in fields else Evaluation.loads(text)


def located(
    dataset: str, changes: tuple[str, ...], site: Site, *, to_pretrain: bool = False
) -> tuple[str, ...]:
    """Return the changes with the content of the user's folder of images in place of its path.

    Changes for another data set stay as they are.

    Args:
        to_pretrain: True if the folder needs no test images.

    Raises:
        UserError: the folder does not exist, contains something else than images, or is named twice.
    """
    from reproduce.data import folder

    if dataset != folder.Folder.name:
        return changes
    keys = [parsed(change)[0].removeprefix(EVALUATION) for change in changes]
    paths = [parsed(change)[1] for change, key in zip(changes, keys, strict=True) if key in ROOT_KEYS]
    if len(paths) > 1:
        raise InvalidError(f"--set gives {folder.ROOT} twice, {paths[0]} and {paths[1]}: give it once.")
    if not paths and any(key in CONTENT_KEYS for key in keys):
        return changes
    try:
        splits = folder.Folder.splits[:1] if to_pretrain else folder.Folder.splits
        content = folder.named(paths[0] if paths else "", site, splits)
    except OSError as error:
        raise InvalidError(f"{folder.ROOT}: {error.filename or error} cannot be read or written.") from None
    others = (change for change, key in zip(changes, keys, strict=True) if key not in ROOT_KEYS)
    return (f"dataset.content={content}", *others)


def _check_named(dataset: Settings) -> None:
    """Raise InvalidError if a folder of images is not named by its content."""
    from reproduce.data import folder

    if isinstance(dataset, folder.Folder) and not dataset.content:
        raise InvalidError(f"{dataset.name} needs --set {folder.ROOT}=FOLDER. Layout: {folder.LAYOUT}.")


def _weights(plain: dict[str, Any]) -> Weights:
    """Return the weights that `dumps` wrote as part of a request."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
    }
    return Weights(**fields)


def _check_seeds(seeds: int) -> None:
    if seeds < 1:
        raise InvalidError(f"--seeds is {seeds}: at least one seed is needed.")
    if seeds > MOST_SEEDS:
        raise InvalidError(f"--seeds is {seeds}: at most {MOST_SEEDS} are expected.")


def _check_backbone(run: Evaluate) -> None:
    """Raise InvalidError if the backbone does not exist; a settings class has no list of backbones."""
    known = backbones.names()
    if run.encoder.backbone not in known:
        raise InvalidError(unknown("backbone", run.encoder.backbone, known))


def _component(kind: str, name: str, package: str, *bases: type[S]) -> Any:
    """Return the settings of that name in a package, with their defaults.

    Raises:
        NotFoundError: the name is missing or does not exist; the message names the nearest.
    """
    found = components(package, *bases)
    if not name:
        raise NotFoundError(f"--{kind.replace(' ', '')} is missing. Known: {', '.join(found)}.")
    if name not in found:
        raise NotFoundError(unknown(kind, name, found))
    return found[name]()


def real_data_sets() -> list[AnyDataset]:
    """Return every data set of real images with its default settings, by name."""
    known: dict[str, Callable[[], AnyDataset]] = {
        **components("reproduce.data", Dataset),
        **components("reproduce.data", DetectionDataset),
    }
    return [cls() for name, cls in sorted(known.items()) if not name.startswith(SYNTHETIC)]


def components(package: str, *bases: type[S]) -> dict[str, type[S]]:
    """Return every settings class of a package's modules that derives from one of `bases`, by name."""
    return {
        value.name: value
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
        for value in vars(importlib.import_module(f"{package}.{module.name}")).values()
        if isinstance(value, type) and issubclass(value, bases) and "name" in vars(value)
    }


def released() -> dict[str, Weights]:
    """Return the encoders of `configs/released.py` by their names in lower case, such as `swav_800`."""
    constants = vars(importlib.import_module("configs.released"))
    return {name.lower(): value for name, value in constants.items() if isinstance(value, Weights)}


def weights_of(given: str, backbone: str = "", prefix: str = "") -> tuple[Weights, Path | None]:
    """Return the weights that the command line names.

    They are those of a file, described by its content, or of a released encoder.

    Args:
        backbone: network of the file; "" for the one that fits.
        prefix: prefix of its tensors, if the file contains several networks.

    Returns:
        The weights, and the file to keep (`nn/weights.py`), or None if a run downloads it.

    Raises:
        NotFoundError: neither a file nor a released encoder has that name.
        InvalidError: the file contains no weights, weights of another backbone, or several networks.
    """
    from reproduce.nn import weight_files
    from reproduce.nn.weight_formats import folder_kind

    known = released()
    if not given:
        raise NotFoundError(
            f"--checkpoint is missing: give a file or a released encoder ({', '.join(known)})."
        )
    if path := user_file(given):
        try:
            return weight_files.describe(path, backbone, prefix), path
        except OSError as error:
            raise InvalidError(f"{path} cannot be read ({error.strerror}).") from None
    if given.lower() not in known:
        if (folder := user_path(given)).is_dir():
            raise InvalidError(f"{folder} {folder_kind(folder)}.")
        raise NotFoundError(unknown("file or released encoder", given, known))
    found = known[given.lower()]
    if backbone not in ("", found.backbone):
        raise InvalidError(f"'{given}' is a {found.backbone}, not a {backbone}: leave out --backbone.")
    if prefix not in ("", found.prefix):
        raise InvalidError(
            f"'{given}' has its network under '{found.prefix}', not under '{prefix}': leave out --prefix."
        )
    return found, None


def evaluation(
    checkpoint: str, backbone: str = "", prefix: str = "", **fields: Any
) -> tuple[Evaluation, Path | None]:
    """Return the request for an evaluation, and the file of `weights_of`.

    Args:
        checkpoint: a file or a released encoder.
        backbone: network of the file; "" for the one that fits.
        prefix: prefix of its tensors, if the file contains several networks.
        fields: fields of the request; its changes may name the backbone and the prefix, too.

    Raises:
        UserError: see `weights_of` and `Evaluation.build`.
    """
    # Names and settings first: reading a file takes seconds.
    draft = Weights(sha256="any")
    changed = dict(Evaluation(weights=draft, **fields).build().encoder.leaves())
    named = {key: changed[key] for key in ("backbone", "prefix") if changed[key] != getattr(draft, key)}
    weights, path = weights_of(
        checkpoint, backbone or named.get("backbone", ""), prefix or named.get("prefix", "")
    )
    named = {"checkpoint": checkpoint, "backbone": backbone, "prefix": prefix}
    return Evaluation(weights=weights, **named, **fields), path


def added_row(text: str) -> tuple[str, str]:
    """Return the label and the file (or released encoder) of a row that the command line adds.

    Both may contain the sign `=`, as in `Ours (K = 8)=lr=.2.pth`. The text is split at the sign that precedes
    the name of an existing file, or else at the first sign.

    Raises:
        InvalidError: `text` does not have the form `LABEL=FILE`, or the label cannot be one.
    """
    signs = [place for place, sign in enumerate(text) if sign == "="]
    parts = [(" ".join(text[:place].split()), text[place + 1 :].strip()) for place in signs]
    complete = [(_printable(label), given) for label, given in parts if label and given]
    if not complete or not all(parts[0]):
        raise InvalidError(f"--add-row needs LABEL=FILE, such as 'Mine=encoder.pth', not '{text}'.")
    existing = (part for part in complete if user_file(part[1]) or part[1].lower() in released())
    label, given = next(existing, complete[0])
    if not label or not label.isprintable() or len(label) > LONGEST_LABEL:
        raise InvalidError(
            f"--add-row needs a label of 1 to {LONGEST_LABEL} printable characters, not {label!r:.80}."
        )
    if set(label) & {"*", "?"}:
        raise InvalidError(f"--add-row needs a label without * and ?, which --rows expands, not '{label}'.")
    return label, given


def _printable(label: str) -> str:
    """Return a label with composed letters, which LaTeX needs, and without invisible characters."""
    visible = (each for each in label if unicodedata.category(each) not in ("Cc", "Cf"))
    return unicodedata.normalize("NFC", "".join(visible))


def _with_baselines(table: Table, kind: str) -> Table:
    """Return the table with runs in the cells of quoted rows.

    Args:
        kind: `released` for evaluations of released encoders, `trained` for methods that this suite trains.

    Raises:
        NotHereError: the table has no such cell.
    """
    takes = _takes_released if kind == "released" else _takes_trained
    if not takes(table):
        what = "whose encoder was released" if kind == "released" else "whose method can be trained here"
        raise NotHereError(
            f"{table.name} has no quoted row {what}: --baselines {kind} is for {_tables(takes)}."
        )
    changed = _released_row if kind == "released" else _trained_row
    return replace(table, rows=tuple(map(changed, table.rows)), changes=(*table.changes, f"baselines={kind}"))


def _released_row(row: Row) -> Row:
    """Return the row with evaluations of its released encoder."""
    instead = {key: cell.released for key, cell in row.cells.items() if cell.released and not cell.ours}
    if not instead:
        return row
    encoders = (measured.spec.encoder for measured in instead.values())
    files = dict.fromkeys(encoder.title for encoder in encoders if isinstance(encoder, Weights))
    note = f"Ours: the encoder that its authors released ({literal(', '.join(files))}), evaluated here."
    cells = {key: replace(cell, ours=instead.get(key, cell.ours)) for key, cell in row.cells.items()}
    return replace(row, cells=cells, note=f"{row.note} {note}".strip())


def _trained_row(row: Row) -> Row:
    """Return the row with its method trained here, or with the reason why it is not."""

    def changed(cell: Cell) -> Cell:
        if cell.ours or cell.trained is None:
            return cell
        if isinstance(cell.trained, str):
            return replace(cell, why_not_ours=cell.trained)
        return replace(cell, ours=cell.trained, why_not_ours="")

    cells = {key: changed(cell) for key, cell in row.cells.items()}
    return replace(row, cells=cells, note=f"{row.note} {row.recipe}".strip())


def _takes_released(table: Table) -> bool:
    return any(cell.released and not cell.ours for row in table.rows for cell in row.cells.values())


def _takes_trained(table: Table) -> bool:
    return any(
        isinstance(cell.trained, Measured) and not cell.ours
        for row in table.rows
        for cell in row.cells.values()
    )


def _budgets(table: Table) -> Iterator[str]:
    """Yield the notes on a table with trained baselines: who trained them, each row's budget, and its images.

    A table that trains nothing has none. Rows of given encoders are named as exceptions.
    """
    budgets: dict[str, dict[str, None]] = {}
    given: dict[str, None] = {}
    for row, _, ours in table.measured():
        encoder = ours.spec.encoder
        if isinstance(encoder, Pretrain):
            budgets.setdefault(row.label, {})[f"{_views(encoder)} × {encoder.epochs}"] = None
        else:
            given[literal(row.label)] = None
    if not budgets:
        return
    but = f" Not trained here: {', '.join(given)}." if given else ""
    quoted = "; a row that stays quoted counts with its printed number" if table.scale == "paper" else ""
    yield (
        "The rows with a number of ours are trained and evaluated by this suite, each with its own recipe."
        f"{but} Our verdicts on the claims compare these runs alone{quoted}."
    )
    rows = "; ".join(f"{literal(label)} {', '.join(found)}" for label, found in budgets.items())
    yield (
        f"Views × epochs at {table.scale} scale: {rows}. An epoch with $K$ large views costs about $K / 2$ "
        "times as much as one of the same method with two; small crops and patches cost less."
    )
    yield from _larger_images(table)


def _larger_images(table: Table) -> Iterator[str]:
    """Yield the note on the rows whose methods need larger images than the scale has, if there are any."""
    scales = importlib.import_module("configs.scales")
    larger: dict[str, int] = {}
    others: set[int] = set()
    for row, _, ours in table.measured():
        encoder = ours.spec.encoder
        if not isinstance(encoder, Pretrain):
            continue
        side = encoder.dataset.size
        if side == scales.side(encoder.method, table.scale):
            larger[row.label] = side
        else:
            others.add(side)
    if larger and others != set(larger.values()):
        rows = ", ".join(f"{literal(label)} {side}" for label, side in larger.items())
        rest = f"; {', '.join(map(str, sorted(others)))} in other rows" if others else ""
        yield (
            f"Side of images in pixels, in pretraining and classification: {rows}, as the method "
            f"requires{rest}."
        )


def _views(encoder: Pretrain) -> str:
    """Return the number of views of an image; with multi-crop or patches, of each kind."""
    number, small, patches = (
        encoder.method.num_views,
        encoder.augmentation.small,
        encoder.augmentation.patches,
    )
    whole = number if patches is None else min(number, patches.num_whole)
    large = whole if small is None else min(whole, small.num_large)
    kinds = {"large": large, "small": whole - large, "patches": number - whole}
    if large == number:
        return str(number)
    return f"({' + '.join(f'{count} {kind}' for kind, count in kinds.items() if count)})"


def _tables(suited: Callable[[Table], bool]) -> str:
    """Return the names of the tables that `suited` accepts, as a list in words."""
    return (
        ", ".join(name for name in table_names() if suited(importlib.import_module(f"tables.{name}").table()))
        or "no table"
    )


def _with_row(table: Table, label: str, weights: Weights) -> Table:
    """Return the table with a row for the user's encoder below the others.

    Raises:
        NotHereError: the table accepts no added row.
        InvalidError: the table has a row with that label.
    """
    if table.measure is None:
        raise NotHereError(
            f"{table.name} accepts no added row: --add-row is for "
            f"{_tables(lambda other: other.measure is not None)}. Or use `invoke evaluate --checkpoint FILE "
            "--protocol NAME --dataset NAME`."
        )
    if label in {row.label for row in table.rows}:
        raise InvalidError(f"{table.name} has a row '{label}' already: give the added one another label.")
    row = Row(
        label=label,
        shown=literal(label),
        cells={key: Cell(ours=measured) for key, measured in table.measure(weights).items()},
        facts=dict.fromkeys(table.rows[0].facts, UNKNOWN_FACT),
        note=f"Added here: {literal(weights.title)}, backbone {literal(weights.backbone)}.",
        added=True,
        rule_before=not table.rows[-1].added,
    )
    return replace(table, rows=(*table.rows, row))


def requests(
    tables: Iterable[str],
    *,
    changes: tuple[str, ...] = (),
    baselines: str = BASELINES[0],
    added: tuple[tuple[str, Weights], ...] = (),
    **fields: Any,
) -> list[Request]:
    """Return a request for each table with the options that it accepts.

    These are changes whose setting its runs have, trained or released baselines, and added rows. An option
    that no table accepts is an error.

    Args:
        tables: names of tables.
        changes: changes as `key=value`.
        baselines: one of BASELINES.
        added: the user's rows.
        fields: the other fields of every request.

    Raises:
        NotFoundError: a table, scale, row or column does not exist, or no table has the setting; the message
            names the nearest.
        InvalidError: a setting does not accept its value.
        NotHereError: no table accepts the added rows or has such baselines.
    """
    made = [Request(table=table, **fields) for table in tables]
    if added:
        _where_possible(made, NotHereError, lambda request: replace(request, added=added))
    if baselines != BASELINES[0]:
        _where_possible(made, NotHereError, lambda request: replace(request, baselines=baselines))
    for request in made:
        request.build()
    for change in changes:
        _where_possible(made, NotFoundError, partial(_with_change, change))
    for job in jobs(made):
        _check(job.spec, by_user=bool(job.request.changes))
    return made


def _with_change(change: str, request: Request) -> Request:
    return replace(request, changes=(*request.changes, change))


def _where_possible(
    made: list[Request], refusal: type[Exception], option: Callable[[Request], Request]
) -> None:
    """Give every request an option, except those whose table raises a `refusal`.

    Raises:
        Exception: the first refusal, if all tables raise one.
    """
    problems = []
    for index, request in enumerate(made):
        changed = option(request)
        try:
            changed.build()
        except refusal as problem:
            problems.append(problem)
        else:
            made[index] = changed
    if len(problems) == len(made):
        raise problems[0]


def _check(spec: Spec, *, by_user: bool) -> None:
    """Check that the settings fit together after all changes, since one may make sense only with another.

    Args:
        spec: a run.
        by_user: the user chose some of the settings; otherwise a mismatch is a mistake in the table.

    Raises:
        ValueError: the settings do not fit together; an InvalidError if it is the user's mistake.
    """
    if isinstance(spec, Pretrain):
        _check_warm_up(spec)
    try:
        if isinstance(spec, Pretrain):
            spec.check_for()
        else:
            _check_evaluation(spec)
    except ValueError as error:
        if by_user:
            raise InvalidError(str(error)) from None
        raise


def _check_warm_up(spec: Pretrain) -> None:
    optimizer = spec.optimizer
    if 0 < spec.epochs < optimizer.warmup_epochs:
        raise InvalidError(
            f"epochs is {spec.epochs}, less than the warm-up's {optimizer.warmup_epochs}: set "
            "warmup_epochs too."
        )
    if optimizer.warmup_epochs and optimizer.warmup_steps:
        raise InvalidError(
            f"warmup_epochs is {optimizer.warmup_epochs} and warmup_steps is {optimizer.warmup_steps}: set "
            "one of them to 0."
        )


def _check_evaluation(spec: Evaluate) -> None:
    if spec.protocol.needs_projector and isinstance(spec.encoder, Weights):
        raise ValueError(
            f"{spec.protocol.name} needs an encoder's projector and augmentation, which only the "
            "pretraining runs of this suite have: choose another protocol."
        )
    spec.protocol.check_for(spec.dataset, spec.encoder.backbone)


@cache
def registered(scale: str) -> tuple[Table, ...]:
    """Return every table of `tables/` at a scale; one whose code has a mistake is left out with a warning."""
    found = []
    for name in table_names():
        try:
            found.append(Request(table=name, scale=scale).build())
        except Exception as error:  # a mistake in a table that was not asked for
            logger.warning("Left out of the register of claims: %s (%s)", name, reason_of(error))
    return tuple(found)


def table_names() -> list[str]:
    """Return the modules of `tables/` in the order of their numbers."""
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module("tables").__path__)]
    return sorted(names, key=lambda name: (len(name), name))


def table_named(name: str) -> tuple[str, str]:
    """Return the table that a task's name means, and the glob of its columns if it is that of a part.

    A name that no task of a table has is returned as it is.
    """
    if name in table_names():
        return name, "*"
    for table in table_names():
        module = importlib.import_module(f"tables.{table}")
        for part, (columns, _) in getattr(module, "PARTS", {}).items():
            if name in (part, part.replace("-", "_")):
                return table, columns
        if name in getattr(module, "ALIASES", ()):
            return table, "*"
    return name, "*"


def _datasets(table: Table) -> set[Settings]:
    """Return the data sets on which the table's encoders are trained and evaluated."""
    specs = [ours.spec for *_, ours in table.measured()]
    return {spec.dataset for spec in specs} | {
        spec.encoder.dataset for spec in specs if isinstance(spec.encoder, Pretrain)
    }


def _changed(table: Table, change: str) -> Table:
    """Return the table with one `key=value` applied to the runs that have that setting.

    Raises:
        NotFoundError: no run of the table has the setting, or the table runs nothing.
        InvalidError: see `override`; or with the value, a protocol no longer returns a metric of the table.
    """
    runs = [ours.spec for _, _, ours in table.measured()]
    if not runs:
        key, _ = parsed(change)
        what = f"The chosen part of {table}" if table.left_out else str(table)
        raise NotFoundError(
            f"{what} runs nothing: it has no setting '{key}' or any other that --set could change."
        )
    apply, name = override(runs, change)
    try:
        return table.map(apply, changes=(*table.changes, name))
    except UnknownMetricError as error:
        raise InvalidError(f"{change}: {error}") from None


@dataclass(frozen=True)
class Job:
    """A run, and the request by which a worker finds it."""

    spec: Spec
    request: Order

    def devices(self, site: Site) -> int:
        """Return the number of GPUs, or of processes on a CPU, that the run uses at a site."""
        return site.devices if self.shared_batch else 1

    @property
    def shared_batch(self) -> int:
        """Images of a step that all devices of the run share equally, or 0 if it uses one device."""
        if isinstance(self.spec, Pretrain):
            return self.spec.batch_size
        return self.spec.protocol.shared_batch


def jobs(requests: Iterable[Order]) -> list[Job]:
    """Return every run of the requests once, upstream first."""
    return list({job.spec.id: job for job in _all_jobs(requests)}.values())


def _all_jobs(requests: Iterable[Order]) -> Iterator[Job]:
    for request in requests:
        for spec in request.specs():
            yield Job(spec, request)
