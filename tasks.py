"""The command line: `invoke --list` lists every task, `invoke --help TASK` its options.

Each table of the paper has a task, which is found by listing `tables/`. A task imports what it needs when it
runs; its options are in `reproduce/commands/options.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import invoke.main
from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import Task

PROJECT = Path(__file__).resolve().parent
sys.path.insert(0, str(PROJECT))

from reproduce import __version__  # noqa: E402
from reproduce.commands import options as given  # noqa: E402
from reproduce.commands.options import ENCODER, PLANNED, Options  # noqa: E402
from reproduce.commands.program import (  # noqa: E402
    CommandLine,
    Part,
    command,
    finish,
    one_line,
    parts,
    start,
    stoppable,
    store,
)

FILES = sorted((PROJECT / "tables").glob("[!_]*.py"), key=lambda path: (len(path.stem), path.stem))
"""The tables' files in the paper's order."""


def table_task(table: str, part: Part) -> Task[Any]:
    """Return the task that makes a table or a part of it."""

    def run(c: Context, options: Options) -> None:
        start(c, options, table)

    run.__doc__ = part.doc
    return command(Options, name=part.name, aliases=part.aliases, columns=part.columns)(run)


@command(Options, *(name for name in given.names(Options) if name not in ("rows", "columns")))
def tables(c: Context, options: Options) -> None:
    """Make every table: run what is missing, render all."""
    start(c, options, *(path.stem for path in FILES))


@command(Options, "scale", "seeds", "set", "baselines", "add_row", "backbone", "prefix")
def reports(c: Context, options: Options) -> None:
    """Render every table from finished runs; start nothing."""
    start(c, replace(options, render_only=True), *(path.stem for path in FILES))


@command(given.EvaluateOptions, *ENCODER, "seeds", "set", *PLANNED)
def evaluate(c: Context, options: given.EvaluateOptions) -> None:
    """Evaluate an encoder of your own by one protocol on one data set.

    Example: `invoke evaluate --checkpoint encoder.pth --protocol weighted_knn --dataset imagenette`.
    """
    start(c, options)


@command(given.PretrainOptions, "method", "dataset", "scale", "seeds", "set", *PLANNED)
def pretrain(c: Context, options: given.PretrainOptions) -> None:
    """Pretrain an encoder by one method on one data set, and print how to evaluate it.

    Example: `invoke pretrain --method msbreg --dataset folder --set dataset.root=/my/images`.
    """
    start(c, options)


@command(given.StatusOptions)
def status(c: Context, options: given.StatusOptions) -> None:
    """List the runs and their states, and the progress and time left of those under way."""
    from reproduce.commands import status

    with one_line(ConnectionError):
        for line in status.lines(*store(), options.chosen()):
            print(line)


@command(given.TableOptions, "table", "scale")
def show(c: Context, options: given.TableOptions) -> None:
    """Print a table's report in the terminal, and count its claims by verdict."""
    from reproduce.commands import show

    with one_line(ConnectionError):
        print("\n".join(show.show(options.table, options.scale, *store())))


@command(given.SeedsOptions)
@stoppable()
def seeds(c: Context, options: given.SeedsOptions) -> None:
    """Plan the seeds that would decide the most claims for the fewest hours; --apply executes the plan."""
    from reproduce.commands import make, seeds
    from reproduce.runs import output

    request, most, budget = options.request(), options.num_seeds(), options.hours()
    request.build()
    if request.scale == "smoke":
        print(seeds.SMOKE)
        return
    site, opened = store()
    with one_line(OSError, code=make.FAILED), one_line(ConnectionError):
        found = seeds.propose(request, most, budget, site, opened)
        print("\n".join(found.lines(output.width())), flush=True)
        if options.apply and found.requests and not c.config.run.dry:
            finish(make.produce(list(found.requests), site))


@command(
    given.TableOptions,
    *("table", "row", "column", "scale", "seeds", "set", "baselines", "add_row", "backbone", "prefix"),
)
def why(c: Context, options: given.TableOptions) -> None:
    """Explain a cell's number: its runs, settings, data, code and MLflow pages, or how to fill it."""
    from reproduce.commands import why

    request = options.request()
    request.build()
    site, opened = store()
    with one_line(ConnectionError):
        for line in why.why(request, opened, site):
            print(line)


@command(given.DiffOptions)
def diff(c: Context, options: given.DiffOptions) -> None:
    """Print the settings in which two runs differ, and both runs' final metrics."""
    from reproduce.commands import why

    _, opened = store()
    with one_line(ConnectionError):
        for line in why.difference(options.first, options.second, opened):
            print(line)


@command(given.TableOptions, "table", "scale", "baselines")
def settings(c: Context, options: given.TableOptions) -> None:
    """List what --set can change in a table: name, value, type, source and meaning of each setting."""
    from reproduce.commands import reference

    print("\n".join(reference.lines(options.table, options.scale, options.baselines)))


@command(given.RedoOptions, "run", "rows", "columns", "scale", "seeds", "set", "baselines", "only", "dry_run")
def redo(c: Context, options: given.RedoOptions) -> None:
    """Have a finished run, and the evaluations of its encoder, executed again by the next command."""
    from reproduce.commands import redo

    request, (site, opened) = options.request(), store()
    with one_line(ConnectionError, OSError):
        chosen = redo.choose(request or options.run, site, opened, only=options.only)
        print("\n".join(chosen.lines()), flush=True)
        if not (options.dry_run or c.config.run.dry):
            print("\n".join(redo.mark(chosen, site, opened)))


@command(given.VerifyOptions)
def verify(c: Context, options: given.VerifyOptions) -> None:
    """Check records, encoders and reports; print each fault, which status repeats, and exit with 1."""
    from reproduce.commands import verify

    with one_line(ConnectionError, OSError):
        found = verify.verify(*store(), data=options.data)
    print("\n".join(found.lines()))
    finish(found.code)


@command(given.GcOptions)
def gc(c: Context, options: given.GcOptions) -> None:
    """List old files and records that no table and no finished run refers to; --delete removes them."""
    from reproduce.commands import gc

    site, opened = store()
    delete, older_than = options.delete and not c.config.run.dry, options.seconds()
    with one_line(ConnectionError, OSError):
        found = gc.find(site, opened, older_than)
        lines, num_left = gc.remove(found) if delete else (list(found.lines()), 0)
    print("\n".join(lines))
    finish(1 if num_left else 0)


@command(given.UnlockOptions)
def unlock(c: Context, options: given.UnlockOptions) -> None:
    """Free a run that no process executes although its lease says so, such as after a clock was set."""
    from reproduce import site as sites
    from reproduce.commands import unlock

    with one_line(OSError):
        for line in unlock.unlock(sites.load(), options.run, force=options.force):
            print(line, flush=True)


@command(given.ExportOptions)
def export(c: Context, options: given.ExportOptions) -> None:
    """Write the reports and the records of all runs behind them to one file: --file msbreg.zip."""
    from reproduce.commands import archive
    from reproduce.site import user_path

    file = user_path(options.file)
    with one_line(OSError):
        print(archive.export(file, options.scale, *store(), encoders=options.encoders))


@command(given.ImportOptions, name="import")
@stoppable()
def receive(c: Context, options: given.ImportOptions) -> None:
    """Add the runs and reports of an exported file to this site; existing ones stay unchanged."""
    from reproduce.commands import receive
    from reproduce.site import user_path

    with one_line(OSError):
        received = receive.receive(user_path(options.file), *store())
    print(received)
    finish(received.code)


@command(given.DoctorOptions)
def doctor(c: Context, options: given.DoctorOptions) -> None:
    """Print what this machine has and what each table needs at each scale; start nothing."""
    from reproduce import readiness
    from reproduce.commands import doctor

    requests, card = doctor.requests(options.table, options.scale, options.baselines), options.card()
    site, opened = store()
    readiness.launcher(site)
    print("\n".join(doctor.report(requests, site, opened, card)))


@command(given.RehearseOptions, "table", "scale", "rows", "columns", "set", "baselines")
def rehearse(c: Context, options: given.RehearseOptions) -> None:
    """Measure the speed of each distinct shape of run by some real steps; forecasts then use it.

    Example: `invoke rehearse --scale small table8`. The runs' own data are not needed.
    """
    from reproduce.commands import rehearse

    requests, (site, _) = options.requests(), store()
    words, environment = rehearse.command(requests, site)
    if c.config.run.dry:
        print("\n".join(rehearse.planned(requests, site)))
        return
    sys.stdout.flush()
    os.execvpe(words[0], words, {**os.environ, **environment})  # noqa: S606 (it replaces this process)


@command(given.UiOptions)
def ui(c: Context, options: given.UiOptions) -> None:
    """Serve the MLflow UI of the project's store on 127.0.0.1 until Ctrl-C."""
    from reproduce.commands import ui
    from reproduce.runs import output

    port, (_, opened) = options.number(), store()
    with one_line(ConnectionError, OSError):
        if not opened.connection.server:
            ui.check_port(port)
        print("\n".join(ui.addresses(opened, port, options.table)), flush=True)
        if opened.connection.server:
            return
        server, environment = opened.ui_command(port)
    if output.unread():  # the addresses were all that was wanted
        return
    os.execvpe(server[0], server, {**os.environ, **environment})  # noqa: S606 (it replaces this process)


@command(given.DownloadOptions)
def download(c: Context, options: given.DownloadOptions) -> None:
    """Download a public data set into its root, which is set in configs/site.toml."""
    from reproduce import site as sites
    from reproduce.data.download import download

    with one_line(OSError):
        print(download(options.dataset, sites.load()))


@command(given.DocsOptions)
def docs(c: Context, options: given.DocsOptions) -> None:
    """Write docs/settings.md, deviations.md and speed.md, and the table of systems in README.md."""
    from reproduce import site as sites
    from reproduce.commands import deviations, pictures, reference, speed, systems

    pages = {"settings.md": reference.page, "deviations.md": deviations.page, "speed.md": speed.page}
    for name, page in pages.items():
        (PROJECT / "docs" / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")
    readme = PROJECT / "README.md"
    readme.write_text(systems.written(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print(readme.name)
    if options.pictures:
        for path in pictures.take(sites.load().reports, PROJECT / "docs"):
            print(path.relative_to(PROJECT))


@command(given.TestOptions)
def test(c: Context, options: given.TestOptions) -> None:
    """Run the tests on up to four cores; .ci/run checks everything."""
    # The tests of a file share what is costly to set up; tests/conftest.py orders the files.
    spread = ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder"]
    module("pytest", *spread, *(["-m", "not slow"] if options.fast else []))


@command(given.BenchOptions)
def bench(c: Context, options: given.BenchOptions) -> None:
    """Measure ratios: training step over backbone, views/s, memory in K; write reports/bench.json."""
    module("bench", *([options.only] if options.only else []))


def module(name: str, *arguments: str) -> None:
    """Run a module in the project's folder and end with its exit code."""
    finish(subprocess.run([sys.executable, "-m", name, *arguments], cwd=PROJECT, check=False).returncode)


TABLES = [table_task(path.stem, part) for path in FILES for part in parts(path)]
MAKE = [tables, reports, pretrain, evaluate, show, seeds, status, why, diff, settings]
KEEP = [redo, verify, gc, unlock, export, receive, doctor, rehearse, ui, download, docs, test, bench]
namespace = Collection(*TABLES, *MAKE, *KEEP)
invoke.main.program.__class__ = CommandLine  # `invoke` creates its program before it reads this file


def main() -> None:
    """Run the tasks as a program of their own."""
    CommandLine(__version__, namespace, name="msbreg", binary="msbreg").run()
