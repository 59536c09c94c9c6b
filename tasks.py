"""The command line: `invoke --list` shows every task, `invoke --help TASK` its options.

One task for each table of the paper, found by listing `tables/`; nothing heavy is imported before a task
runs.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task, task

if TYPE_CHECKING:
    from reproduce.commands.make import Limits
    from reproduce.site import Site
    from reproduce.tracking.store import Store

PROJECT = Path(__file__).resolve().parent
sys.path.insert(0, str(PROJECT))

from reproduce.messages import InvalidError, UserError  # noqa: E402 (light: no torch, no mlflow)

WRONG_USE = 2
"""Exit code of a command that cannot be understood."""

SHARED = {
    "scale": "smoke (synthetic data, CPU, minutes), small (real public data, one GPU, hours) or paper (as printed, 8 GPUs)",
    "seeds": "how many seeds each cell averages: seeds 0 to N - 1",
    "set": "change a setting of every run that has it, as key=value, such as epochs=5 or method.tau=0.996 (may be repeated)",
    "dry-run": "print what becomes of each run and why, the hours and the disk that it takes, and the plan's digest; start nothing",
    "apply": "run the plan of this digest, which --dry-run prints, and no other",
    "max-gpu-hours": "start nothing where more hours of a GPU (of a core, where there is none) are estimated, or nobody knows how many",
    "jobs": "runs at once (the site's `jobs`; else one for each GPU, or each core where there is none)",
    "launcher": "where runs start: local or slurm (the site's `launcher`)",
    "render-only": "render from finished runs; start nothing",
    "baselines": "quoted (the default), or released: evaluate the encoders that the quoted methods' authors released",
    "add-row": "a row for an encoder of yours, as LABEL=FILE, such as Mine=encoder.pth (may be repeated); not every table takes one",
}
PLANNED = ("dry-run", "apply", "max-gpu-hours", "jobs", "launcher")
"""Of these, those that ask for a plan, bind what is started to it, or say where it is started."""
CUT = {
    "rows": "only the rows whose label matches this glob, such as 'Ours*' (commas separate several)",
    "columns": "only the columns whose key matches this glob",
}


class Verbatim(str):
    """An alias that keeps its underscores: invoke turns them into dashes in every name that is not empty, and
    this one says that it is."""

    def __bool__(self) -> bool:
        return False


@contextmanager
def stoppable() -> Iterator[None]:
    """In here, Ctrl-C and SIGTERM let runs write their checkpoints, and end this process with the shell's
    code for the signal.

    An import completes the record that it is writing.
    """
    from reproduce.runs import interrupt

    interrupt.listen()  # before anything that takes time is imported
    try:
        yield
    except interrupt.Interrupted as error:
        from reproduce.commands.make import INTERRUPTED

        raise Exit(None, INTERRUPTED + signal.Signals[str(error)]) from None


@stoppable()
def make(
    c: Context,
    tables: list[str],
    *,
    seeds: str,
    add_row: list[str],
    dry_run: bool = False,
    render_only: bool = False,
    apply: str = "",
    max_gpu_hours: str = "",
    jobs: str = "",
    launcher: str = "",
    **fields: Any,
) -> None:
    """Runs and renders `tables`; a mistake in the options ends in one line and exit code 2."""
    from reproduce import plan
    from reproduce.commands import make

    plan_only = dry_run or c.config.run.dry
    with one_line():
        allowed = limits(apply, max_gpu_hours)
        if render_only and any(allowed):
            raise InvalidError("--render-only starts nothing: leave it out, or --apply and --max-gpu-hours.")
        rows = [(label, *plan.weights_of(given)) for label, given in map(plan.added_row, add_row)]
        added = tuple((label, weights) for label, weights, _ in rows)
        requests = plan.requests(tables, seeds=whole(seeds), added=added, **fields)
        site = site_with(jobs, launcher)
        if not (plan_only or render_only):
            make.keep({weights.sha256: path for _, weights, path in rows if path}, requests, site)
    with one_line(OSError, code=make.FAILED), one_line(ConnectionError):
        if plan_only:
            code = make.show_plan(requests, site, allowed)
        else:
            code = make.produce(requests, site, render_only=render_only, limits=allowed)
    if code:
        raise Exit(None, code)


def whole(seeds: str) -> int:
    """The number that --seeds takes.

    Raises:
        ValueError: it is none.
    """
    if not (seeds.isascii() and seeds.isdigit()):
        raise InvalidError(f"--seeds takes a whole number, not '{seeds}'.")
    return int(seeds)


def limits(apply: str, max_gpu_hours: str) -> Limits:
    """What --apply and --max-gpu-hours allow.

    Raises:
        ValueError: one of them is no digest, or no number of hours.
    """
    from reproduce.commands.make import Limits

    if apply and not re.fullmatch("[0-9a-f]{12}", apply):
        raise InvalidError(
            f"--apply takes the 12 hexadecimal digits that --dry-run prints last, not '{apply}'."
        )
    if not re.fullmatch(r"(\d+(\.\d*)?|\.\d+)?", max_gpu_hours, re.ASCII):
        raise InvalidError(f"--max-gpu-hours takes a number, such as 0.5, not '{max_gpu_hours}'.")
    return Limits(apply, float(max_gpu_hours) if max_gpu_hours else None)


@contextmanager
def one_line(*kinds: type[Exception], code: int = WRONG_USE) -> Iterator[None]:
    """A mistake of the user's in here, an error of these kinds, ends in its one line and that exit code."""
    try:
        yield
    except UserError as error:
        raise Exit(str(error), code) from None
    except kinds as error:
        raise Exit(str(error), code) from None


def site_with(jobs: str, launcher: str) -> Site:
    """This machine's site, with what --jobs and --launcher say.

    Raises:
        LookupError: there is no such launcher.
        ValueError: the number of jobs is none.
    """
    from reproduce import readiness

    site, _ = store()
    if jobs and (not (jobs.isascii() and jobs.isdigit()) or int(jobs) == 0):
        raise InvalidError(f"--jobs takes a whole number from 1 on, not '{jobs}'.")
    if jobs:
        site = replace(site, jobs=int(jobs), slurm=replace(site.slurm, max_at_once=int(jobs)))
    if launcher:
        site = replace(site, launcher=launcher)
    readiness.launcher(site)
    return site


def store() -> tuple[Site, Store]:
    """This machine's site and its tracking store, which is not opened yet."""
    from reproduce import site as sites
    from reproduce.tracking.store import Store

    site = sites.load()
    return site, Store(site)


def table_tasks(path: Path) -> list[Task[Any]]:
    """The tasks of one table: the whole, and the parts that its file names; help is read from the file
    without importing it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    aliases, parts = (ast.literal_eval(named[name]) if name in named else () for name in ("ALIASES", "PARTS"))
    whole = table_task(path.stem, path.stem, ast.get_docstring(tree) or "", aliases)
    return [
        whole,
        *(
            table_task(path.stem, name, told, [name.replace("-", "_")], columns)
            for name, (columns, told) in dict(parts).items()
        ),
    ]


def table_task(
    table: str, name: str, told: str, aliases: Iterable[str] = (), columns: str = "*"
) -> Task[Any]:
    """A task that makes a table, or the columns of it that match a glob."""
    default = columns

    def run(
        c: Context,
        scale: str = "smoke",
        seeds: str = "1",
        rows: str = "*",
        columns: str = default,
        set: list[str] = [],  # noqa: B006 (how invoke declares an option that may be repeated)
        baselines: str = "quoted",
        add_row: list[str] = [],  # noqa: B006
        dry_run: bool = False,
        apply: str = "",
        max_gpu_hours: str = "",
        jobs: str = "",
        launcher: str = "",
        render_only: bool = False,
    ) -> None:
        options: dict[str, Any] = {
            "scale": scale,
            "rows": rows,
            "columns": columns,
            "baselines": baselines,
            "changes": tuple(set),
        }
        how: dict[str, Any] = {
            "dry_run": dry_run,
            "apply": apply,
            "max_gpu_hours": max_gpu_hours,
            "render_only": render_only,
        }
        make(c, [table], seeds=seeds, add_row=add_row, jobs=jobs, launcher=launcher, **options, **how)

    run.__doc__ = told
    verbatim = tuple(map(Verbatim, aliases))
    return Task(
        run,
        name=name,
        aliases=verbatim,
        iterable=["set", "add_row"],
        auto_shortflags=False,
        help=SHARED | CUT,
    )


def table_files() -> list[Path]:
    """The files of `tables/` in the order of the paper."""
    files = [path for path in (PROJECT / "tables").glob("*.py") if path.stem != "__init__"]
    return sorted(files, key=lambda path: (len(path.stem), path.stem))


@task(iterable=["set", "add_row"], auto_shortflags=False, help=SHARED)
def tables(
    c: Context,
    scale: str = "smoke",
    seeds: str = "1",
    set: list[str] = [],  # noqa: B006
    baselines: str = "quoted",
    add_row: list[str] = [],  # noqa: B006
    dry_run: bool = False,
    apply: str = "",
    max_gpu_hours: str = "",
    jobs: str = "",
    launcher: str = "",
    render_only: bool = False,
) -> None:
    """Every table: run what is missing, render all."""
    names = [path.stem for path in table_files()]
    options: dict[str, Any] = {"scale": scale, "baselines": baselines, "changes": tuple(set)}
    how: dict[str, Any] = {
        "dry_run": dry_run,
        "apply": apply,
        "max_gpu_hours": max_gpu_hours,
        "render_only": render_only,
    }
    make(c, names, seeds=seeds, add_row=add_row, jobs=jobs, launcher=launcher, **options, **how)


@task(
    iterable=["add_row"],
    auto_shortflags=False,
    help={key: SHARED[key] for key in ("scale", "seeds", "baselines", "add-row")},
)
def reports(
    c: Context,
    scale: str = "smoke",
    seeds: str = "1",
    baselines: str = "quoted",
    add_row: list[str] = [],  # noqa: B006
) -> None:
    """Render every table from finished runs; start nothing."""
    make(
        c,
        [path.stem for path in table_files()],
        seeds=seeds,
        add_row=add_row,
        render_only=True,
        scale=scale,
        baselines=baselines,
    )


EVALUATE = {
    "checkpoint": "a file that torch.save or safetensors wrote, or a released encoder of configs/released.py, such as swav_800",
    "protocol": "an evaluation of reproduce/protocols by its name, such as weighted_knn, linear_sgd, semi or svm",
    "dataset": "a data set of reproduce/data by its name, such as imagenette or synthetic_folder",
    "backbone": "the network that the file is of; empty: the one that its tensors fit",
    "set": "change a setting, as key=value, such as protocol.epochs=5, encoder.mean=.5,.5,.5 or dataset.size=96 (may be repeated)",
}


@task(
    iterable=["set"], auto_shortflags=False, help=EVALUATE | {key: SHARED[key] for key in ("seeds", *PLANNED)}
)
@stoppable()
def evaluate(
    c: Context,
    checkpoint: str = "",
    protocol: str = "",
    dataset: str = "",
    backbone: str = "",
    seeds: str = "1",
    set: list[str] = [],  # noqa: B006
    dry_run: bool = False,
    apply: str = "",
    max_gpu_hours: str = "",
    jobs: str = "",
    launcher: str = "",
) -> None:
    """One encoder of yours by one protocol: --checkpoint encoder.pth --protocol weighted_knn --dataset
    imagenette."""
    from reproduce import plan
    from reproduce.commands import make

    plan_only = dry_run or c.config.run.dry
    with one_line():
        allowed = limits(apply, max_gpu_hours)
        names = {"protocol": protocol, "dataset": dataset}
        request, path = plan.evaluation(checkpoint, backbone, seeds=whole(seeds), changes=tuple(set), **names)
        site = site_with(jobs, launcher)
        if path and not plan_only:
            make.keep({request.weights.sha256: path}, [request], site)
    with one_line(OSError, code=make.FAILED), one_line(ConnectionError):
        code = (
            make.show_plan([request], site, allowed)
            if plan_only
            else make.evaluate(request, site, limits=allowed)
        )
    if code:
        raise Exit(None, code)


@task(auto_shortflags=False)
def status(c: Context) -> None:
    """Every run in the tracking store and its true state: running, finished, failed or interrupted; and those
    in a scheduler's queue."""
    from reproduce.runs.claims import Claims

    with one_line():
        site, opened = store()
    with one_line(ConnectionError):
        queued = Claims(site).queued()
        for spec_id, lease in queued.items():
            print(f"{'queued':<11}  {spec_id}  {lease.who}")
        for row in opened.status():
            if row.state == "finished" or row.spec_id not in queued:
                print(row)


WHY = {
    "table": "a table, such as table8",
    "row": "the row's label, or a glob of it",
    "column": "the column's key, or a glob of it",
}


@task(
    positional=["table"],
    iterable=["set"],
    auto_shortflags=False,
    help=WHY | {key: SHARED[key] for key in ("scale", "seeds", "set")},
)
def why(
    c: Context,
    table: str,
    row: str = "*",
    column: str = "*",
    scale: str = "smoke",
    seeds: str = "1",
    set: list[str] = [],  # noqa: B006
) -> None:
    """Where a cell's number comes from: its runs, settings, data, code and MLflow pages; of an empty one,
    what would fill it."""
    from reproduce import plan
    from reproduce.commands import why

    with one_line():
        request = plan.Request(
            table=table, rows=row, columns=column, scale=scale, seeds=whole(seeds), changes=tuple(set)
        )
        request.build()
        _, opened = store()
    with one_line(ConnectionError):
        for line in why.why(request, opened):
            print(line)


@task(
    positional=["first", "second"],
    auto_shortflags=False,
    help={"first": "a run's id, or its beginning", "second": "another's"},
)
def diff(c: Context, first: str, second: str) -> None:
    """The settings in which two runs differ, and both runs' final metrics."""
    from reproduce.commands import why

    with one_line():
        _, opened = store()
    with one_line(ConnectionError):
        for line in why.difference(first, second, opened):
            print(line)


@task(auto_shortflags=False, help={"delete": "remove what is listed; without it, it is only listed"})
def gc(c: Context, delete: bool = False) -> None:
    """List what no table and no finished run refers to, with its size, age and the reason; --delete removes
    it."""
    from reproduce.commands import gc

    with one_line():
        site, opened = store()
    with one_line(ConnectionError, OSError):
        found = gc.find(site, opened)
        lines, num_left = gc.remove(found) if delete and not c.config.run.dry else (list(found.lines()), 0)
    print("\n".join(lines))
    if num_left:
        raise Exit(None, 1)


EXPORT = {
    "file": "the archive, such as msbreg.zip; one that is there already is not overwritten",
    "scale": "smoke, small or paper; empty: every scale that has reports",
    "encoders": "with the encoders of the pretraining runs",
}


@task(auto_shortflags=False, help=EXPORT)
def export(c: Context, file: str = "", scale: str = "", encoders: bool = False) -> None:
    """The rendered reports and the records of all runs behind them as one file: --file msbreg.zip."""
    from reproduce.commands import archive

    with one_line():
        site, opened = store()
        print(archive.export(Path(file).expanduser(), scale, site, opened, encoders=encoders))


@task(name="import", auto_shortflags=False, help={"file": "what `invoke export` wrote, such as msbreg.zip"})
@stoppable()
def receive(c: Context, file: str = "") -> None:
    """Add the runs and reports of an exported file to this site; what is here stays as it is."""
    from reproduce.commands import archive

    with one_line():
        site, opened = store()
        received = archive.receive(Path(file).expanduser(), site, opened)
    print(received)
    if received.code:
        raise Exit(None, received.code)


@task(
    auto_shortflags=False,
    help={"table": "one table, such as table5; empty: all", "scale": "smoke, small or paper; empty: all"},
)
def doctor(c: Context, table: str = "", scale: str = "") -> None:
    """What this machine has, and what each table needs of it at each scale; starts nothing."""
    from reproduce import readiness
    from reproduce.commands import doctor

    with one_line():
        requests = doctor.requests(table, scale)
        site, opened = store()
        readiness.launcher(site)
    with one_line():
        print("\n".join(doctor.report(requests, site, opened)))


@task(auto_shortflags=False, help={"port": "on 127.0.0.1"})
def ui(c: Context, port: str = "5000") -> None:
    """The MLflow UI over the project's store, on 127.0.0.1, until Ctrl-C."""
    with one_line():
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise InvalidError(f"--port takes a number from 1 to 65535, not '{port}'.")
        _, opened = store()
        command, environment = opened.ui_command(int(port))
    pages = opened.pages(int(port)) or {"no runs yet": f"http://127.0.0.1:{port}"}
    print("\n".join(f"{name}: {address}" for name, address in pages.items()), flush=True)
    os.execvpe(command[0], command, {**os.environ, **environment})  # noqa: S606 (this process becomes the server: nothing is left behind)


@task(
    auto_shortflags=False,
    help={"dataset": "stl10, imagenette, voc2007 or voc0712; empty: say which data sets can be downloaded"},
)
def download(c: Context, dataset: str = "") -> None:
    """Fetch a public data set into its root from configs/site.toml."""
    from reproduce import site as sites
    from reproduce.data.download import download as fetch

    with one_line():
        print(fetch(dataset, sites.load()))


@task(auto_shortflags=False, help={"fast": "only the tests that take under a minute together"})
def test(c: Context, fast: bool = False) -> None:
    """The tests, on up to four cores; everything that CI checks is in .ci/run."""
    # A file's tests share what is costly to set up; tests/conftest.py says in which order files are begun.
    spread = ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder"]
    command = [sys.executable, "-m", "pytest", *spread, *(["-m", "not slow"] if fast else [])]
    raise Exit(None, subprocess.run(command, cwd=PROJECT, check=False).returncode)


@task(auto_shortflags=False, help={"only": "one of the files of bench/, such as views"})
def bench(c: Context, only: str = "") -> None:
    """Ratios that matter: training step over backbone, views/s, memory in K; writes reports/bench.json."""
    raise Exit(
        None,
        subprocess.run(
            [sys.executable, "-m", "bench", *([only] if only else [])], cwd=PROJECT, check=False
        ).returncode,
    )


TASKS = (
    *(each for path in table_files() for each in table_tasks(path)),
    tables,
    reports,
    evaluate,
    status,
    why,
    diff,
    gc,
    export,
    receive,
    doctor,
    ui,
    download,
    test,
    bench,
)
namespace = Collection(*TASKS)
