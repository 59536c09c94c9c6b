"""From what the user asked for to the runs that it takes: build the table, bring it to a scale, change
settings, list its runs.

    Request(table="table4", scale="small")                     # a table
    Evaluation(weights=..., protocol="knn", dataset="stl10")   # one evaluation of weights from elsewhere

A request is plain data, so that a worker on another machine can build the same table again and find its run
by id. Here alone `reproduce` looks upward, to `tables` and `configs`, by the names in a request.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.nn import backbones
from reproduce.nn.weights import Weights, geometry
from reproduce.overrides import override
from reproduce.report.markup import literal
from reproduce.report.table import Cell, Row, Table, UnknownMetricError
from reproduce.settings import Settings
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec

SCALES = ("smoke", "small", "paper")
BASELINES = ("quoted", "released")
"""Whether the rows that quote a baseline stay as they are, or are filled by evaluating the encoder that its
authors released."""
CUSTOM = "custom"
"""The scale under which evaluations outside of the tables are recorded: the user's own settings."""
SYNTHETIC = "synthetic_"
"""What the names of data sets begin with whose images are drawn at one size."""
UNKNOWN_FACT = "–"
"""What an added row says in the columns of facts."""
NORMALISATION = ("mean", "std")
"""What an encoder from elsewhere decides even of images that are drawn at one size."""

S = TypeVar("S", bound=Settings)


class NotHereError(InvalidError):
    """A table cannot take an option that others take; the message names these."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One table as the command line asks for it."""

    table: str
    """A module of `tables/`."""
    scale: str = "smoke"
    seeds: int = 1
    rows: str = "*"
    columns: str = "*"
    changes: tuple[str, ...] = ()
    """`key=value`, each of which changes a setting of every run that has it."""
    baselines: str = "quoted"
    """One of BASELINES."""
    added: tuple[tuple[str, Weights], ...] = ()
    """Rows of the user's: a label, and the encoder that fills its cells."""

    def __str__(self) -> str:
        return f"{self.table} at {self.scale} scale"

    def build(self) -> Table:
        """The table at its scale, cut and changed as asked.

        Raises:
            LookupError: an unknown table, scale, row, column or setting; the message names the nearest.
            ValueError, TypeError: a setting does not take the value; a backbone that there is not is such a
                value. Or the table has no released baselines, or takes no added row, or has one of that name.
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
        if self.baselines == "released":
            table = _with_released(table)
        for label, weights in self.added:
            table = _with_row(table, label, weights)
        scales = importlib.import_module("configs.scales")
        paper, table = table, table.map(getattr(scales, self.scale), scale=self.scale)
        before, after = (_datasets(each) for each in (paper, table))
        table = replace(table, stand_in=scales.STAND_INS[self.scale] if after - before else "")
        table = table.select(self.rows, self.columns)
        for change in self.changes:
            table = _changed(table, change)
        for _, _, ours in table.measured():
            _check_backbone(ours.spec)
        return table

    def specs(self) -> tuple[Spec, ...]:
        """Every run that the table needs, upstream first."""
        return self.build().specs(self.seeds)

    def dumps(self) -> str:
        """The request as one line of JSON, for a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Request:
        """The request that `dumps` wrote."""
        fields = json.loads(text)
        added = tuple((label, _weights(plain)) for label, plain in fields.get("added", ()))
        return cls(**{**fields, "changes": tuple(fields["changes"]), "added": added})


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of weights from elsewhere, as the command line asks for it."""

    weights: Weights
    protocol: str
    """The name of a class of `reproduce/protocols`."""
    dataset: str
    """The name of a class of `reproduce/data`."""
    seeds: int = 1
    changes: tuple[str, ...] = ()
    """`key=value`, each of which changes a setting of the run."""

    def __str__(self) -> str:
        return f"the evaluation by {self.protocol} on {self.dataset}"

    @property
    def scale(self) -> str:
        """Under which its runs are recorded."""
        return CUSTOM

    def build(self) -> Evaluate:
        """The evaluation of seed 0: the protocol's settings by default, images as the encoder expects them,
        then the changes.

        Scenes that are drawn at one size keep it, as at the scale smoke.

        Raises:
            LookupError: an unknown protocol, data set or setting; the message names the nearest.
            ValueError, TypeError: a setting does not take the value.
        """
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
                f"{protocol.name} needs a data set with {protocol.wants}, which {dataset.name} is not: {', '.join(sorted(fitting))} are."
            )
        expected = geometry(self.weights, dataset)
        if dataset.name.startswith(SYNTHETIC):
            expected = {key: expected[key] for key in NORMALISATION}
        dataset = replace(dataset, **expected)
        run = Evaluate(encoder=self.weights, protocol=protocol, dataset=dataset)
        for change in self.changes:
            run = override([run], change)[0](run)
        _check_backbone(run)
        _check(run, by_user=True)
        return run

    def specs(self) -> tuple[Spec, ...]:
        """The evaluation at every seed."""
        return self.build().at_seeds(self.seeds)

    def dumps(self) -> str:
        """The request as one line of JSON, for a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Evaluation:
        """The request that `dumps` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "changes": tuple(fields["changes"]), "weights": _weights(fields["weights"])})


Order = Request | Evaluation
"""What a worker is sent with a run's id: either kind of request."""


def loads(text: str) -> Order:
    """The request that `dumps` of either kind wrote."""
    return Request.loads(text) if "table" in json.loads(text) else Evaluation.loads(text)


def _weights(plain: dict[str, Any]) -> Weights:
    """Weights that have been to JSON and back."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
    }
    return Weights(**fields)


def _check_seeds(seeds: int) -> None:
    if seeds < 1:
        raise InvalidError(f"--seeds is {seeds}: at least one seed is needed.")


def _check_backbone(run: Evaluate) -> None:
    """Raises ValueError for a backbone that there is not; here, as settings know no list of backbones."""
    known = backbones.names()
    if run.encoder.backbone not in known:
        raise InvalidError(unknown("backbone", run.encoder.backbone, known))


def _component(kind: str, name: str, package: str, *bases: type[S]) -> Any:
    """The settings of that name in a package, with their defaults.

    Raises:
        LookupError: there are none; the message names the nearest.
    """
    found = components(package, *bases)
    if name not in found:
        raise NotFoundError(unknown(kind, name, found))
    return found[name]()


def components(package: str, *bases: type[S]) -> dict[str, type[S]]:
    """Every settings class of a package's modules that derives from one of `bases`, by its name."""
    return {
        value.name: value
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
        for value in vars(importlib.import_module(f"{package}.{module.name}")).values()
        if isinstance(value, type) and issubclass(value, bases) and "name" in vars(value)
    }


def released() -> dict[str, Weights]:
    """The encoders of `configs/released.py` by their names in lower case, such as `swav_800`."""
    constants = vars(importlib.import_module("configs.released"))
    return {name.lower(): value for name, value in constants.items() if isinstance(value, Weights)}


def weights_of(given: str, backbone: str = "") -> tuple[Weights, Path | None]:
    """The weights that the command line names: a file, described by its content, or a released encoder.

    Returns:
        The weights, and the file that is to be kept (`nn/weights.py`); None: it is fetched.

    Raises:
        LookupError: there is neither.
        ValueError: the file holds no weights, or of another backbone.
    """
    from reproduce.nn import weight_files

    path, known = Path(given).expanduser(), released()
    if path.is_file():
        return weight_files.describe(path, backbone), path
    if given.lower() not in known:
        raise NotFoundError(unknown("file or released encoder", given, known))
    found = known[given.lower()]
    if backbone not in ("", found.backbone):
        raise InvalidError(f"'{given}' is a {found.backbone}, not a {backbone}: leave out --backbone.")
    return found, None


def evaluation(checkpoint: str, backbone: str = "", **fields: Any) -> tuple[Evaluation, Path | None]:
    """The request for an evaluation, and the file of `weights_of`.

    Args:
        fields: of the request.

    Raises:
        LookupError, ValueError, TypeError: as `weights_of` and `Evaluation.build`.
    """
    Evaluation(
        weights=Weights(sha256="any"), **fields
    ).build()  # names and settings first: to read a file takes seconds
    weights, path = weights_of(checkpoint, backbone)
    return Evaluation(weights=weights, **fields), path


def added_row(text: str) -> tuple[str, str]:
    """The label and the file (or released encoder) of a row that the command line adds.

    Both may hold the sign `=`, as in `Ours (K = 8)=lr=.2.pth`: the one is meant after which there is such a
    file, else the first.

    Raises:
        ValueError: it is not of the form `Label=FILE`.
    """
    signs = [place for place, sign in enumerate(text) if sign == "="]
    parts = [(" ".join(text[:place].split()), text[place + 1 :].strip()) for place in signs]
    complete = [(label, given) for label, given in parts if label and given]
    if not complete or not all(parts[0]):
        raise InvalidError(f"--add-row takes LABEL=FILE, such as 'Mine=encoder.pth', not '{text}'.")
    there = (
        part for part in complete if Path(part[1]).expanduser().is_file() or part[1].lower() in released()
    )
    return next(there, complete[0])


def _with_released(table: Table) -> Table:
    """The table with the evaluation of a released encoder wherever it is known and we run nothing else.

    Raises:
        NotHereError: there is no such cell.
    """
    if not _takes_released(table):
        raise NotHereError(
            f"{table.name} has no row whose encoder was released: --baselines released is for {_tables(_takes_released)}."
        )

    def changed(row: Row) -> Row:
        instead = {key: cell.released for key, cell in row.cells.items() if cell.released and not cell.ours}
        if not instead:
            return row
        encoders = (measured.spec.encoder for measured in instead.values())
        files = dict.fromkeys(encoder.title for encoder in encoders if isinstance(encoder, Weights))
        told = f"Ours: the encoder that its authors released ({literal(', '.join(files))}), evaluated here."
        cells = {key: replace(cell, ours=instead.get(key, cell.ours)) for key, cell in row.cells.items()}
        return replace(row, cells=cells, note=f"{row.note} {told}".strip())

    return replace(
        table, rows=tuple(map(changed, table.rows)), changes=(*table.changes, "baselines=released")
    )


def _takes_released(table: Table) -> bool:
    return any(cell.released and not cell.ours for row in table.rows for cell in row.cells.values())


def _tables(suited: Callable[[Table], bool]) -> str:
    """The names of the tables that are suited to something."""
    return (
        ", ".join(name for name in table_names() if suited(importlib.import_module(f"tables.{name}").table()))
        or "no table"
    )


def _with_row(table: Table, label: str, weights: Weights) -> Table:
    """The table with a row for an encoder of the user's below the others.

    Raises:
        NotHereError: the table takes none.
        ValueError: it has a row of that label.
    """
    if table.measure is None:
        raise NotHereError(
            f"{table.name} takes no added row: --add-row is for {_tables(lambda other: other.measure is not None)}. "
            "Or use `invoke evaluate --checkpoint FILE --protocol NAME --dataset NAME`."
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
    return replace(table, rows=(*table.rows, row), changes=(*table.changes, f"row {label}={weights.title}"))


def requests(
    tables: Iterable[str],
    *,
    changes: tuple[str, ...] = (),
    baselines: str = BASELINES[0],
    added: tuple[tuple[str, Weights], ...] = (),
    **fields: Any,
) -> list[Request]:
    """A request for each of the tables, each with what it can take: changes whose setting its runs have,
    released baselines, added rows.

    What none of them can take is an error.

    Args:
        fields: of every request.

    Raises:
        LookupError: an unknown table, scale, row or column, or a setting that no table has; the message names
            the nearest.
        ValueError, TypeError: a setting does not take the value.
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
    """Gives every request an option, but for those whose table answers with a `refusal`.

    Raises:
        Exception: the first refusal, where all do.
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
    """Check that settings fit together, after all changes, as one may need another to make sense.

    Args:
        by_user: the user chose some of the settings; else a mismatch is a mistake in the table.

    Raises:
        ValueError: they do not; an InvalidError if it is the user's mistake.
    """
    if isinstance(spec, Evaluate):
        try:
            spec.protocol.check_for(spec.dataset, spec.encoder.backbone)
        except ValueError as error:
            if by_user:
                raise InvalidError(str(error)) from None
            raise
    elif 0 < spec.epochs < spec.optimizer.warmup_epochs:
        raise InvalidError(
            f"epochs is {spec.epochs}, less than the warm-up's {spec.optimizer.warmup_epochs}: set warmup_epochs too."
        )


def table_names() -> list[str]:
    """The modules of `tables/` in the order of their numbers."""
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module("tables").__path__)]
    return sorted(names, key=lambda name: (len(name), name))


def _datasets(table: Table) -> set[Settings]:
    """What the table's encoders are trained and evaluated on."""
    specs = [ours.spec for *_, ours in table.measured()]
    return {spec.dataset for spec in specs} | {
        spec.encoder.dataset for spec in specs if isinstance(spec.encoder, Pretrain)
    }


def _changed(table: Table, change: str) -> Table:
    """The table with one `key=value` applied wherever its runs have that setting."""
    apply, told = override([ours.spec for _, _, ours in table.measured()], change)
    try:
        return table.map(apply, changes=(*table.changes, told))
    except UnknownMetricError as error:  # with the user's value, the protocol returns other metrics
        raise InvalidError(f"{change}: {error}") from None


@dataclass(frozen=True)
class Job:
    """One run to do, and the request by which a worker finds it."""

    spec: Spec
    request: Order

    def devices(self, site: Site) -> int:
        """GPUs, or processes on a CPU, that the run takes at a site."""
        return site.devices if self.shared_batch else 1

    @property
    def shared_batch(self) -> int:
        """Images of a step that all devices of the run share equally; 0: it takes one device."""
        if isinstance(self.spec, Pretrain):
            return self.spec.batch_size
        return self.spec.protocol.shared_batch


def jobs(requests: Iterable[Order]) -> list[Job]:
    """Every run of the requests, upstream first, each once."""
    return list({job.spec.id: job for job in _all_jobs(requests)}.values())


def _all_jobs(requests: Iterable[Order]) -> Iterator[Job]:
    for request in requests:
        for spec in request.specs():
            yield Job(spec, request)
