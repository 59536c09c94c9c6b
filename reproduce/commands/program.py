"""The invoke side of the command line: tasks from functions, errors on one line, the order of `--list`.

@command(Options, "scale", "seeds")
def reports(c: Context, options: Options) -> None: ...
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit, ParseError
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext
from invoke.program import Program
from invoke.tasks import Task

from reproduce.commands.options import Options, helped, names, repeatable, with_options
from reproduce.messages import UserError, unknown
from reproduce.runs import garbage, output

if TYPE_CHECKING:
    from reproduce.site import Site
    from reproduce.tracking.store import Store

WRONG_USE = 2
"""Exit code of a command that cannot be understood."""
REST = {"rehearse": "--table"}
"""Tasks that accept names after them, and the option that receives each of these."""
WITHOUT_VALUE = ("--help", "-h", "--dry", "-R", "--echo", "-e")
"""Options that such a task, and invoke after it, accept without a value."""

Body = Callable[..., None]


class Verbatim(str):
    """An alias that keeps its underscores: invoke replaces them with dashes in every name that is truthy."""

    def __bool__(self) -> bool:
        return False


class CommandLine(Program):
    """A program whose `--list` keeps the order of the collection, and whose mistakes are one line.

    invoke's own list is sorted by name. A second value of an option would be taken for the name of a task.
    """

    def parse_tasks(self) -> None:
        """Read the tasks and their options.

        Raises:
            Exit: an option or a task does not exist, lacks a value, or an option is given twice.
        """
        output.prepare()
        garbage.spare()
        if self.core.unparsed[1:2] in (["--help"], ["-h"]):  # else a task takes it for its first argument
            self.core[0].args.help.value, self.core.unparsed = self.core.unparsed[0], []
        self.core.unparsed = _with_rest(self.core.unparsed)
        problem = ""
        try:
            super().parse_tasks()
        except ParseError as error:
            problem = _problem(error, self.parser.contexts)
        problem = _wrong_values(self.core.unparsed, self.parser.contexts) or problem
        if problem:
            raise Exit(problem, WRONG_USE)

    def parse_cleanup(self) -> None:
        """Print lists and help, and end if nothing else was requested."""
        try:
            super().parse_cleanup()
        except Exit as end:
            raise Exit(end.message, end.code or output.code()) from None

    def _make_pairs(
        self, coll: Collection, ancestors: list[str] | None = None
    ) -> list[tuple[str, str | None]]:
        places = {name: place for place, name in enumerate(coll.tasks)}
        pairs = super()._make_pairs(coll, ancestors)
        return sorted(pairs, key=lambda pair: places.get(pair[0].split()[0], len(places)))


class CommandTask(Task[Any]):
    """A task whose repeatable options need a value like all others; invoke ignores one without a value."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the arguments of the task's body."""
        arguments = super().get_arguments(ignore_unknown_help)
        for each in arguments:
            if each.kind is list:
                each.raw_value = None  # otherwise the empty list counts as a value
        return arguments


def _with_rest(tokens: list[str]) -> list[str]:
    """Return the words of a command line, in which the names after a task of REST are values of its option.

    Otherwise invoke would take them for tasks, and start them. Each option of such a task needs a value.
    """
    place = next((number for number, token in enumerate(tokens) if token in REST), None)
    if place is None:
        return tokens
    found, rest = tokens[: place + 1], iter(tokens[place + 1 :])
    for token in rest:
        if not token.startswith("-"):
            found += [REST[tokens[place]], token]
        elif "=" in token or token in WITHOUT_VALUE:
            found.append(token)
        else:
            found += [token, *itertools.islice(rest, 1)]
    return found


def _problem(error: ParseError, tasks: Mapping[str, ParserContext]) -> str:
    """Return one line for what invoke's parser did not understand."""
    text, task = str(error), error.context
    if found := re.match(r"Flag <Argument: (\w+)", text):
        return f"--{found[1].replace('_', '-')} needs a value."
    if found := re.match("No idea what '(.*)' is!", text, re.DOTALL):
        if found[1].startswith("-") and task is not None:
            return unknown(f"option of {task.name or 'invoke'}", found[1], task.flags)
        return unknown("option or task" if found[1].startswith("-") else "task", found[1], tasks)
    if task is not None and task.missing_positional_args:
        needed = " and ".join(f"--{each.name}" for each in task.missing_positional_args)
        return f"{task.name} needs {needed}: `invoke --help {task.name}` describes it."
    return text


def _wrong_values(tokens: Iterable[str], tasks: Mapping[str, ParserContext]) -> str:
    """Return one line if a task has two values for an option that accepts one, or an empty one, else "".

    An empty value would count as none, as in `--max-gpu-hours "$UNSET"`.
    """
    task: ParserContext | None = None
    given: set[str | None] = set()
    rest = iter(tokens)
    for token in rest:
        flag, inline, value = token.partition("=")
        if task is not None and flag in task.flags:
            option = task.flags[flag]
            if option.takes_value and option.kind is not list:
                if option.name in given:
                    return f"{flag} is given twice: give it once."
                given.add(option.name)
            if option.takes_value and not inline:
                value = next(rest, "")
            if option.takes_value and not value and option.default == "":
                return f"{flag} needs a value."
        elif task is not None and not given.issuperset(each.name for each in task.positional_args):
            given.add(next(each.name for each in task.positional_args if each.name not in given))
        elif token in tasks:
            task, given = tasks[token], set()
    return ""


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
        body, help = one_line()(_heard(function)), {}
        if options is not None:
            body = with_options(body, options, chosen or names(options), **defaults)
            help = helped(body, options)
        return CommandTask(
            body,
            name=name,
            aliases=tuple(map(Verbatim, aliases)),
            iterable=repeatable(body),
            auto_shortflags=False,
            help=help,
        )

    return made


def _heard(function: Body) -> Body:
    """Return a function that ends with exit code FAILED if its output was lost."""

    @functools.wraps(function)
    def body(*given: Any) -> None:
        function(*given)
        finish(output.code())

    return body


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
    """Make tables, or the evaluation or pretraining that the options name; --dry-run prints the plan."""
    from reproduce.commands import make
    from reproduce.plan import Evaluation, Pretraining, Request

    plan_only = options.dry_run or c.config.run.dry
    limits, card = options.limits(), replace(options, dry_run=plan_only).card()
    orders, files = options.orders(tables)
    site = options.applied_to(store()[0])
    if files and not options.render_only:
        with one_line(OSError):
            print("\n".join(make.remarks(files, orders)), flush=True)
            if not plan_only:
                make.keep(files, orders, site)
    with one_line(OSError, code=make.FAILED), one_line(ConnectionError):
        if plan_only:
            finish(make.show_plan(orders, site, limits, verbose=options.verbose, card=card))
        elif isinstance(orders[0], Evaluation):
            finish(make.evaluate(orders[0], site, limits=limits))
        elif isinstance(orders[0], Pretraining):
            finish(make.pretrain(orders[0], site, limits=limits))
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
