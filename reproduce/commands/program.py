"""The invoke side of the command line: tasks from functions, errors on one line, the order of `--list`.

@command(Options, "scale", "seeds")
def reports(c: Context, options: Options) -> None: ...
"""

from __future__ import annotations

import ast
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.program import Program
from invoke.tasks import Task

from reproduce.commands.options import Options, helped, names, repeatable, with_options
from reproduce.messages import UserError

if TYPE_CHECKING:
    from reproduce.site import Site
    from reproduce.tracking.store import Store

WRONG_USE = 2
"""Exit code of a command that cannot be understood."""

Body = Callable[..., None]


class Verbatim(str):
    """An alias that keeps its underscores: invoke replaces them with dashes in every name that is truthy."""

    def __bool__(self) -> bool:
        return False


class InOrder(Program):
    """A program whose `--list` keeps the order of the collection; invoke's own sorts by name."""

    def _make_pairs(
        self, coll: Collection, ancestors: list[str] | None = None
    ) -> list[tuple[str, str | None]]:
        places = {name: place for place, name in enumerate(coll.tasks)}
        pairs = super()._make_pairs(coll, ancestors)
        return sorted(pairs, key=lambda pair: places.get(pair[0].split()[0], len(places)))


class Part(NamedTuple):
    """A task of a table: the whole, or the columns of a part."""

    name: str
    doc: str
    aliases: tuple[str, ...]
    columns: str


def command(
    options: type[Any] | None = None,
    *chosen: str,
    name: str | None = None,
    aliases: Iterable[str] = (),
    **defaults: str,
) -> Callable[[Body], Task[Any]]:
    """Turn a function into a task; a user's mistake ends it with one line and exit code WRONG_USE.

    Args:
        options: class of the task's options; the function is called with the context and an instance of it,
            or with the context alone if None.
        chosen: names of the fields that the task accepts; all fields if empty.
        name: name of the task; the function's by default.
        aliases: other names of the task.
        defaults: defaults of the task that replace those of `options`.
    """

    def made(function: Body) -> Task[Any]:
        body, help = one_line()(function), {}
        if options is not None:
            body = with_options(body, options, chosen or names(options), **defaults)
            help = helped(body, options)
        return Task(
            body,
            name=name,
            aliases=tuple(map(Verbatim, aliases)),
            iterable=repeatable(body),
            auto_shortflags=False,
            help=help,
        )

    return made


@contextmanager
def one_line(*kinds: type[Exception], code: int = WRONG_USE) -> Iterator[None]:
    """End with one line and an exit code after a user's mistake or an error of these kinds."""
    expected: tuple[type[Exception], ...] = (UserError, *kinds)
    try:
        yield
    except expected as error:
        raise Exit(str(error), code) from None


def finish(code: int) -> None:
    """End with an exit code, unless it is 0."""
    if code:
        raise Exit(None, code)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let runs write their checkpoints on Ctrl-C or SIGTERM, then exit with the shell's code for the signal.

    An import completes the record that it is writing.
    """
    from reproduce.runs import interrupt

    interrupt.listen()  # before the slow imports
    try:
        yield
    except interrupt.Interrupted as error:
        from reproduce.commands.make import INTERRUPTED

        raise Exit(None, INTERRUPTED + signal.Signals[str(error)]) from None


def store() -> tuple[Site, Store]:
    """Return this machine's site and its tracking store, which is not open yet."""
    from reproduce import site as sites
    from reproduce.tracking.store import Store

    site = sites.load()
    return site, Store(site)


@stoppable()
def start(c: Context, options: Options, *tables: str) -> None:
    """Make tables, or the one evaluation that the options name; with --dry-run, print the plan."""
    from reproduce.commands import make
    from reproduce.plan import Evaluation, Request

    plan_only = options.dry_run or c.config.run.dry
    limits = options.limits()
    orders, files = options.orders(tables)
    site = options.applied_to(store()[0])
    if files and not options.render_only:
        with one_line(OSError):
            print("\n".join(make.remarks(files, orders)), flush=True)
            if not plan_only:
                make.keep(files, orders, site)
    with one_line(OSError, code=make.FAILED), one_line(ConnectionError):
        if plan_only:
            finish(make.show_plan(orders, site, limits))
        elif isinstance(orders[0], Evaluation):
            finish(make.evaluate(orders[0], site, limits=limits))
        else:
            requests = [order for order in orders if isinstance(order, Request)]
            finish(make.produce(requests, site, render_only=options.render_only, limits=limits))


def parts(table: Path) -> list[Part]:
    """Return the tasks of a table's file: the whole and its parts. The file is read, not imported."""
    tree = ast.parse(table.read_text(encoding="utf-8"))
    values = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    aliases = ast.literal_eval(values["ALIASES"]) if "ALIASES" in values else ()
    named = ast.literal_eval(values["PARTS"]) if "PARTS" in values else {}
    whole = Part(table.stem, ast.get_docstring(tree) or "", tuple(aliases), "*")
    return [
        whole,
        *(Part(name, doc, (name.replace("-", "_"),), columns) for name, (columns, doc) in named.items()),
    ]
