"""The options of the tasks, and the meaning of their texts.

    body = with_options(function, Options, ("scale", "seeds"))    # a task's body with these options
    helped(body, Options)                                         # the help of each option, with its default

The line under each field is the help that `invoke --help TASK` prints. Imports only the standard library: a
task imports what it needs when it runs.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.messages import InvalidError, NotFoundError, unknown

if TYPE_CHECKING:
    from reproduce.commands.make import Limits
    from reproduce.commands.status import Filter
    from reproduce.nn.weights import Weights
    from reproduce.plan import Order, Request
    from reproduce.resources.cards import Card
    from reproduce.site import Site

DIGEST = re.compile("[0-9a-f]{12}")
"""A plan's digest, as `--dry-run` prints it."""
WHOLE = re.compile(r"\d{1,9}", re.ASCII)
"""A whole number; longer ones are mistakes, and Python refuses to read thousands of digits."""
HOURS = re.compile(r"\d+(\.\d*)?|\.\d+", re.ASCII)
"""A number of hours."""
AGE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?) ?([smhdw]?)", re.ASCII)
"""A span of time with its unit."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds in each unit of a span of time."""
PLANNED = ("dry_run", "verbose", "on", "apply", "max_gpu_hours", "jobs", "launcher")
"""Fields that ask for a plan, bind what starts to it, or choose where it starts."""
ENCODER = ("checkpoint", "protocol", "dataset", "backbone", "prefix")
"""Fields that name one evaluation."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options as the command line passes them: texts, lists of texts and flags."""

    scale: str = "smoke"
    """Scale of the runs: smoke (synthetic data on a CPU, minutes), small (public data on one GPU, hours) or
    paper (the paper's settings on 8 GPUs)."""
    seeds: str = "1"
    """Number of seeds that each cell averages: seeds 0 to N - 1."""
    rows: str = "*"
    """Glob of row labels, such as 'Ours*'; only the matching rows are made. Commas separate several globs."""
    columns: str = "*"
    """Glob of column keys; only the matching columns are made. Commas separate several globs."""
    set: tuple[str, ...] = ()
    """Setting as key=value, such as epochs=5 or method.tau=0.996; it changes every run that has this setting.
    `invoke settings TABLE` lists the keys."""
    baselines: str = "quoted"
    """Numbers of other methods: quoted from the paper, released (evaluate the encoders that their authors
    released) or trained (train the methods here)."""
    add_row: tuple[str, ...] = ()
    """Row for an encoder of your own as LABEL=FILE, such as Mine=encoder.pth. Some tables do not accept
    one."""
    backbone: tuple[str, ...] = ()
    """Network of the file of --add-row, such as resnet18_cifar; LABEL=NAME is for one of several
    rows, and may be repeated. Default: the one that its tensors fit."""
    prefix: tuple[str, ...] = ()
    """Prefix of the network in the file of --add-row, such as teacher; LABEL=PREFIX is for one of several
    rows, and may be repeated. Default: the one under which it fits."""
    dry_run: bool = False
    """Start nothing. Print the runs with their actions and the reasons, the estimated hours and disk, and the
    digest of the plan."""
    verbose: bool = False
    """With --dry-run: list each run, and not only groups of them."""
    on: str = ""
    """With --dry-run: estimate the hours for another card, such as h100 or rtx4090; --jobs is the number of
    runs at once. Default: the devices of this site."""
    apply: str = ""
    """Digest of a plan, as --dry-run prints it: run this plan and refuse any other. Default: any plan."""
    max_gpu_hours: str = ""
    """Number of hours: refuse to start if the plan needs more GPU-hours (core-hours without a GPU), or if the
    estimate is unknown. Default: no limit."""
    jobs: str = ""
    """Number of runs at once. Default: `jobs` of the site file, else one per GPU, or one per core without a
    GPU."""
    launcher: str = ""
    """Place where runs start: local or slurm. Default: `launcher` of the site file, else local."""
    render_only: bool = False
    """Render from finished runs; start nothing."""

    def orders(self, tables: Iterable[str]) -> tuple[list[Order], dict[str, Path]]:
        """Return the requests for these tables, and the user's files by SHA-256 that their runs read.

        Raises:
            UserError: an option does not fit the tables; see `plan.requests` and `plan.weights_of`.
        """
        from reproduce import plan

        rows = self.added()
        requests = plan.requests(
            tables,
            scale=self.scale,
            seeds=self.num_seeds(),
            rows=self.rows,
            columns=self.columns,
            changes=self.set,
            baselines=self.baselines,
            added=tuple((label, weights) for label, weights, _ in rows),
        )
        return [*requests], {weights.sha256: path for _, weights, path in rows if path}

    def added(self) -> list[tuple[str, Weights, Path | None]]:
        """Return the label, the encoder and the file of each added row; None for a released encoder.

        Raises:
            UserError: a row, a backbone or a prefix does not fit; see `plan.weights_of`.
        """
        from reproduce import plan

        if len(self.add_row) > plan.MOST_ADDED:
            raise InvalidError(
                f"--add-row is given {len(self.add_row)} times: at most {plan.MOST_ADDED} are expected."
            )
        added = [plan.added_row(text) for text in self.add_row]
        labels = [label for label, _ in added]
        backbones = _by_row("backbone", self.backbone, labels)
        prefixes = _by_row("prefix", self.prefix, labels)
        return [
            (label, *plan.weights_of(given, backbones.get(label, ""), prefixes.get(label, "")))
            for label, given in added
        ]

    def num_seeds(self) -> int:
        """Return the value of --seeds.

        Raises:
            InvalidError: `seeds` is not a whole number.
        """
        return _whole("seeds", self.seeds)

    def limits(self) -> Limits:
        """Return what --apply and --max-gpu-hours allow.

        Raises:
            InvalidError: `apply` is not a digest, `max_gpu_hours` is not a number, or `render_only`
                forbids them.
        """
        from reproduce.commands.make import Limits

        if self.apply and not DIGEST.fullmatch(self.apply):
            raise InvalidError(
                f"--apply needs the 12 hexadecimal digits that --dry-run prints last, not '{self.apply}'."
            )
        if self.max_gpu_hours and not HOURS.fullmatch(self.max_gpu_hours):
            raise InvalidError(f"--max-gpu-hours must be a number, such as 0.5, not '{self.max_gpu_hours}'.")
        vain = [f"--{name.replace('_', '-')}" for name in PLANNED if getattr(self, name)]
        if self.render_only and vain:
            raise InvalidError(f"--render-only starts nothing: leave it out, or {' and '.join(vain)}.")
        return Limits(self.apply, float(self.max_gpu_hours) if self.max_gpu_hours else None)

    def card(self) -> Card | None:
        """Return the card that --on names, or None if it was not given.

        Raises:
            InvalidError: the command is not a dry run.
            NotFoundError: the card is unknown.
        """
        from reproduce.resources import cards

        if not self.on:
            return None
        found = cards.find(self.on)
        if not self.dry_run:
            raise InvalidError(f"--on {self.on} only estimates the hours on an {found.title}: add --dry-run.")
        return found

    def applied_to(self, site: Site) -> Site:
        """Return the site with the changes that --jobs and --launcher make.

        Raises:
            InvalidError: `jobs` is not a whole number above 0.
            NotFoundError: the launcher does not exist.
        """
        from reproduce import readiness

        if self.jobs:
            if not WHOLE.fullmatch(self.jobs) or int(self.jobs) == 0:
                raise InvalidError(f"--jobs must be a whole number of at least 1, not '{self.jobs}'.")
            number = int(self.jobs)
            site = replace(site, jobs=number, slurm=replace(site.slurm, max_at_once=number))
        if self.launcher:
            site = replace(site, launcher=self.launcher)
        readiness.launcher(site)
        return site


def _whole(option: str, value: str, bound: str = "") -> int:
    """Return the value of an option that is a whole number.

    Args:
        bound: the numbers that are accepted, for the message.

    Raises:
        InvalidError: it is not.
    """
    if not WHOLE.fullmatch(value):
        raise InvalidError(f"--{option} must be a whole number{bound}, not '{value}'.")
    return int(value)


def _only(option: str, values: Collection[str]) -> str:
    """Return the value of an option that may be given once, or "".

    Raises:
        InvalidError: it was given several times.
    """
    if len(values) > 1:
        raise InvalidError(f"--{option} was given {len(values)} times: one checkpoint has one.")
    return next(iter(values), "")


def _by_row(option: str, values: Collection[str], labels: Collection[str]) -> dict[str, str]:
    """Return the values of an option by the labels of the added rows.

    Args:
        values: `VALUE` for every row, or `LABEL=VALUE` for one.

    Raises:
        InvalidError: no row is added, or a row has two values.
        NotFoundError: no added row has the label.
    """
    if values and not labels:
        hint = " (--set backbone=NAME changes that of the runs)" if option == "backbone" else ""
        raise InvalidError(f"--{option} describes the file of an added row: give --add-row, too{hint}.")
    found: dict[str, str] = {}
    for text in values:
        label, equals, value = text.rpartition("=")
        label = " ".join(label.split())
        if equals and label not in labels:
            raise NotFoundError(unknown("added row", label, labels))
        for each in [label] if equals else labels:
            if each in found:
                raise InvalidError(f"--{option} was given twice for the row '{each}'.")
            found[each] = value.strip()
    return found


def _located(dataset: str, changes: tuple[str, ...], *, to_pretrain: bool = False) -> tuple[str, ...]:
    """Return the changes with the content of the user's folder of images in place of its path."""
    if dataset != "folder":
        return changes  # the site file is not needed
    from reproduce import plan
    from reproduce import site as sites

    return plan.located(dataset, changes, sites.load(), to_pretrain=to_pretrain)


@dataclass(frozen=True, kw_only=True)
class RehearseOptions(Options):
    """Options of `invoke rehearse`."""

    table: tuple[str, ...] = ()
    """Table whose runs are rehearsed, such as table8; names after the task are tables, too. Default: every
    table."""

    def requests(self) -> list[Request]:
        """Return the requests for the tables.

        Raises:
            UserError: an option does not fit the tables; see `plan.requests`.
        """
        from reproduce import plan

        for name in self.table:
            if name not in plan.table_names():
                raise NotFoundError(unknown("table", name, plan.table_names()))
        orders, _ = self.orders(tuple(dict.fromkeys(self.table)) or plan.table_names())
        return [order for order in orders if isinstance(order, plan.Request)]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """Options of `invoke evaluate`."""

    checkpoint: str = ""
    """File that torch.save or safetensors wrote, or a released encoder of configs/released.py, such as
    swav_800."""
    protocol: str = ""
    """Evaluation of reproduce/protocols by name, such as weighted_knn, linear_sgd, semi or svm."""
    dataset: str = ""
    """Data set of reproduce/data by name, such as imagenette or synthetic_folder. `folder` is one of
    your own: --set dataset.root=/my/images, with train/<class>/* and val/<class>/*."""
    backbone: tuple[str, ...] = ()
    """Network of the checkpoint, such as resnet18_cifar. Default: the one that its tensors fit."""
    prefix: tuple[str, ...] = ()
    """Prefix of the network in the checkpoint, such as teacher. Default: the one under which it fits."""
    set: tuple[str, ...] = ()
    """Setting as key=value, such as protocol.epochs=5, encoder.mean=.5,.5,.5 or dataset.size=96."""

    def orders(self, tables: Iterable[str] = ()) -> tuple[list[Order], dict[str, Path]]:
        """Return the request for the evaluation, and the user's file by SHA-256 if it reads one.

        Raises:
            UserError: an option is missing or does not fit; see `plan.evaluation`.
        """
        from reproduce import plan

        if not any((self.checkpoint, self.protocol, self.dataset)):
            raise InvalidError(
                "evaluate needs --checkpoint FILE --protocol NAME --dataset NAME, such as "
                "`invoke evaluate --checkpoint encoder.pth --protocol weighted_knn --dataset imagenette`."
            )
        changes = _located(self.dataset, self.set)
        request, path = plan.evaluation(
            self.checkpoint,
            _only("backbone", self.backbone),
            _only("prefix", self.prefix),
            protocol=self.protocol,
            dataset=self.dataset,
            seeds=self.num_seeds(),
            changes=changes,
            typed=None if changes == self.set else self.set,
        )
        return [request], {request.weights.sha256: path} if path else {}


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(Options):
    """Options of `invoke pretrain`."""

    method: str = ""
    """Method of reproduce/methods by name, such as msbreg, byol or simclr."""
    dataset: str = ""
    """Data set of reproduce/data by name, such as imagenette or synthetic_folder. `folder` is one of
    your own: --set dataset.root=/my/images, with train/<class>/*."""
    scale: str = "smoke"
    """Scale of the network and the epochs: smoke, small or paper. Smoke and small replace ImageNet,
    ImageNet-100 and STL-10 as in the tables."""
    seeds: str = "1"
    """Number of encoders to train: seeds 0 to N - 1."""
    set: tuple[str, ...] = ()
    """Setting as key=value, such as epochs=5, batch_size=64, method.num_views=8 or dataset.size=96."""

    def orders(self, tables: Iterable[str] = ()) -> tuple[list[Order], dict[str, Path]]:
        """Return the request for the pretraining.

        Raises:
            UserError: an option is missing or does not fit; see `plan.Pretraining.build`.
        """
        from reproduce import plan

        if not any((self.method, self.dataset)):
            raise InvalidError(
                "pretrain needs --method NAME --dataset NAME, such as "
                "`invoke pretrain --method msbreg --dataset synthetic_folder`."
            )
        changes = _located(self.dataset, self.set, to_pretrain=True)
        request = plan.Pretraining(
            method=self.method,
            dataset=self.dataset,
            scale=self.scale,
            seeds=self.num_seeds(),
            changes=changes,
            typed=None if changes == self.set else self.set,
        )
        request.build()
        return [request], {}


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """Options of a task about one table."""

    table: str
    """Table, such as table8."""
    row: str = "*"
    """Label of a row, or a glob."""
    column: str = "*"
    """Key of a column, or a glob."""

    def request(self) -> Request:
        """Return the request for the chosen cells.

        Raises:
            UserError: `seeds` is not a whole number, or an added row does not fit.
        """
        from reproduce.plan import Request

        return Request(
            table=self.table,
            rows=self.row,
            columns=self.column,
            scale=self.scale,
            seeds=self.num_seeds(),
            changes=self.set,
            baselines=self.baselines,
            added=tuple((label, weights) for label, weights, _ in self.added()),
        )


@dataclass(frozen=True, kw_only=True)
class SeedsOptions:
    """Options of `invoke seeds`."""

    table: str
    """Table, such as table8."""
    scale: str = "smoke"
    """Scale of the runs: small or paper. At smoke scale claims are not judged."""
    seeds: str = "20"
    """Maximum number of seeds of a cell; claims that need more are left out."""
    budget: str = ""
    """Number of GPU-hours (core-hours without a GPU) that the plan may take. Default: no limit."""
    set: tuple[str, ...] = ()
    """Setting as key=value, as in the command of the table."""
    baselines: str = "quoted"
    """Numbers of other methods: quoted, released or trained, as in the command of the table."""
    apply: bool = False
    """Execute the commands of the plan."""

    def request(self) -> Request:
        """Return the request for the whole table."""
        from reproduce.plan import Request

        return Request(table=self.table, scale=self.scale, changes=self.set, baselines=self.baselines)

    def num_seeds(self) -> int:
        """Return the value of --seeds.

        Raises:
            InvalidError: `seeds` is not a whole number.
        """
        return _whole("seeds", self.seeds)

    def hours(self) -> float | None:
        """Return the value of --budget, or None if it was not given.

        Raises:
            InvalidError: `budget` is not a number.
        """
        if self.budget and not HOURS.fullmatch(self.budget):
            raise InvalidError(f"--budget must be a number of hours, such as 0.5, not '{self.budget}'.")
        return float(self.budget) if self.budget else None


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Options of `invoke status`."""

    scale: str = ""
    """Scale of the listed runs: smoke, small, paper, or custom for `invoke evaluate`. Default: all."""
    state: str = ""
    """State of the listed runs: running, finished, failed, interrupted, superseded, queued, or locked (its
    owner may be gone). Default: all."""
    table: str = ""
    """Table whose runs are listed, such as table8, with any seed, but without changes by --set. Default:
    all runs."""
    limit: str = ""
    """Maximum number of listed runs, 0 or more, the newest first. Default: no limit."""

    def chosen(self) -> Filter:
        """Return the filter of the listed runs.

        Raises:
            InvalidError: `limit` is not a whole number.
        """
        from reproduce.commands.status import Filter

        limit = _whole("limit", self.limit, ", 0 or more") if self.limit else None
        return Filter(scale=self.scale, state=self.state, table=self.table, limit=limit)


@dataclass(frozen=True, kw_only=True)
class DiffOptions:
    """Options of `invoke diff`."""

    first: str
    """Id of a run, or its beginning."""
    second: str
    """Id of another run, or its beginning."""


@dataclass(frozen=True, kw_only=True)
class RedoOptions(Options):
    """Options of `invoke redo`."""

    run: str
    """Id of a finished run, or its beginning; or a table, such as table8, with --rows."""
    rows: str = ""
    """Glob of row labels, for a table: all runs of the matching rows. Commas separate several globs."""
    only: bool = False
    """Leave finished evaluations of the encoder as they are."""
    dry_run: bool = False
    """Mark nothing; list what would be marked."""

    def request(self) -> Request | None:
        """Return the request for the rows of a table, or None if a run is named.

        Raises:
            InvalidError: a table is named without --rows, or a run with an option of tables.
        """
        from reproduce.plan import Request, table_named, table_names

        of_table = (
            self.rows,
            self.columns != "*",
            self.scale != "smoke",
            self.seeds != "1",
            self.baselines != "quoted",
            *self.set,
        )
        table, part = table_named(self.run)
        if table not in table_names():
            if any(of_table):
                raise InvalidError(
                    f"'{self.run}' is not a table: --rows, --columns, --scale, --seeds, --set and "
                    "--baselines belong to a table, such as `invoke redo table8 --rows BYOL`."
                )
            return None
        if not self.rows:
            raise InvalidError(
                f"All of {self.run}? Name its rows, such as `invoke redo {self.run} --rows BYOL`; "
                "--rows '*' means all of them."
            )
        return Request(
            table=table,
            rows=self.rows,
            columns=part if self.columns == "*" else self.columns,
            scale=self.scale,
            seeds=self.num_seeds(),
            changes=self.set,
            baselines=self.baselines,
        )


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of `invoke verify`."""

    data: bool = False
    """Read every byte of the data sets, too; ImageNet takes many minutes."""


@dataclass(frozen=True, kw_only=True)
class GcOptions:
    """Options of `invoke gc`."""

    delete: bool = False
    """Remove what is listed."""
    older_than: str = ""
    """Age, such as 7d or 12h, or 0: list everything that is older, also runs that could be resumed. Default:
    30d, and no run that could be resumed."""

    def seconds(self) -> float | None:
        """Return the value of --older-than in seconds, or None if it was not given.

        Raises:
            InvalidError: `older_than` is not a number with a unit.
        """
        if not self.older_than:
            return None
        found = AGE.fullmatch(self.older_than)
        if not found or not (found[2] or float(found[1]) == 0):
            raise InvalidError(
                "--older-than must be a number with a unit, such as 7d (days), 12h (hours) or 30m (minutes), "
                f"or 0, not '{self.older_than}'."
            )
        return float(found[1]) * UNITS[found[2] or "s"]


@dataclass(frozen=True, kw_only=True)
class UnlockOptions:
    """Options of `invoke unlock`."""

    run: str
    """Id of a run, or its beginning."""
    force: bool = False
    """Free the run even if its owner seems to be alive; that process stops before it writes again."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `invoke export`."""

    file: str = ""
    """Archive to write, such as msbreg.zip; an existing file is never overwritten."""
    scale: str = ""
    """Scale of the reports: smoke, small or paper. Default: every scale that has reports."""
    encoders: bool = False
    """Include the encoders of the pretraining runs."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `invoke import`."""

    file: str = ""
    """Archive that `invoke export` wrote, such as msbreg.zip."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of `invoke doctor`."""

    table: str = ""
    """Table, such as table5. Default: all."""
    scale: str = ""
    """Scale: smoke, small or paper. Default: all."""
    baselines: str = "quoted"
    """Numbers of other methods: quoted, released or trained, as in the command of a table."""
    on: str = ""
    """Card for which hours are estimated, such as h100 or rtx4090. Default: the devices of this site."""

    def card(self) -> Card | None:
        """Return the card that --on names, or None if it was not given.

        Raises:
            NotFoundError: the card is unknown.
        """
        from reproduce.resources import cards

        return cards.find(self.on) if self.on else None


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """Options of `invoke ui`."""

    port: str = "5000"
    """Port on 127.0.0.1."""
    table: str = ""
    """Table whose addresses are printed, such as table11. Default: every table with runs."""

    def number(self) -> int:
        """Return the number of the port.

        Raises:
            InvalidError: `port` is not the number of a port.
        """
        if not (WHOLE.fullmatch(self.port) and 0 < int(self.port) < 65536):
            raise InvalidError(f"--port must be a number from 1 to 65535, not '{self.port}'.")
        return int(self.port)


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Options of `invoke download`."""

    dataset: str = ""
    """Data set: stl10, imagenette, voc2007 or voc0712. Default: list the data sets that can be downloaded."""


@dataclass(frozen=True, kw_only=True)
class DocsOptions:
    """Options of `invoke docs`."""

    pictures: bool = False
    """Take the pictures again, too, from the rendered reports (with Chromium)."""


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """Options of `invoke test`."""

    fast: bool = False
    """Run only the tests that take under a minute together."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `invoke bench`."""

    only: str = ""
    """Name of a file of bench/, such as views. Default: all."""


REPEATABLE = None
"""Default of a parameter that may be given several times: invoke starts with an empty list."""


def names(options: type) -> tuple[str, ...]:
    """Return the names of all fields of a class of options."""
    return tuple(field.name for field in fields(options))


def with_options(
    function: Callable[..., None], options: type[Any], chosen: Iterable[str], **defaults: str
) -> Callable[..., None]:
    """Return the body of a task: `function`, where fields of a class of options are parameters.

    A field `table` accepts every name of a table's tasks, such as `ablation-grid`.

    Args:
        function: called with the context and an instance of `options`.
        options: a dataclass, such as `Options`.
        chosen: names of the fields that the task accepts; the others keep their defaults.
        defaults: defaults of the task that replace those of the class.
    """

    @functools.wraps(function)
    def body(c: object, **given: Any) -> None:
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        function(c, options(**_named(frozen)))

    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    known = inspect.signature(options).parameters
    parameters = [inspect.Parameter("c", either)]
    for name in chosen:
        default = defaults.get(name, known[name].default)
        parameters.append(known[name].replace(kind=either, default=REPEATABLE if default == () else default))
    parameters.sort(key=lambda each: each.default is not inspect.Parameter.empty)  # required ones first
    vars(body)["__signature__"] = inspect.Signature(parameters)
    return body


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options with the table, and the columns of its part, that a task's name means."""
    if not values.get("table"):
        return dict(values)
    from reproduce.plan import table_named

    table, columns = table_named(values["table"])
    part = {"column": columns} if values.get("column") == "*" else {}
    return {**values, "table": table, **part}


def repeatable(body: Callable[..., None]) -> list[str]:
    """Return the names of a body's parameters that may be given several times."""
    return [each.name for each in inspect.signature(body).parameters.values() if each.default is REPEATABLE]


def helped(body: Callable[..., None], options: type[Any]) -> dict[str, str]:
    """Return the help of each parameter of a task's body, with its default."""
    docs: dict[str, str] = {}
    for each in reversed(options.__mro__[:-1]):
        docs |= field_docs(Path(inspect.getfile(each)), each.__name__)
    parameters = list(inspect.signature(body).parameters.values())[1:]
    return {
        each.name: f"{docs[each.name]} {_default(each.default, docs[each.name])}".strip()
        for each in parameters
    }


def _default(default: object, doc: str) -> str:
    if default is inspect.Parameter.empty:
        return "Required."
    if "Default:" in doc:
        return ""
    if default is REPEATABLE:
        return "May be repeated."
    if isinstance(default, bool):
        return "Default: off."
    return f"Default: {default or 'none'}."


def field_docs(file: Path, name: str) -> dict[str, str]:
    """Return the docstring under each field of a class, on one line, as the source file contains it."""
    found = {}
    for field, below in itertools.pairwise(_classes(file)[name].body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            doc = below.value if isinstance(below, ast.Expr) else None
            if isinstance(doc, ast.Constant) and isinstance(doc.value, str):
                found[field.target.id] = " ".join(doc.value.split())
    return found


@functools.cache
def _classes(file: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
