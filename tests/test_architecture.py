"""The shape of the code: imports point down, importing does nothing, and the map of the project is true.

The order of the modules stands in docstrings: `reproduce/__init__.py` lists the layers, the `__init__.py` of
each package lists its modules. A module that its package does not list is a component, such as a method or a
data set: the tests below hold it to the same rules without a word here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import reproduce
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.methods.method import Method
from reproduce.protocols.protocol import Protocol
from reproduce.settings import Settings

ROOT = Path(__file__).parent.parent
LISTED = re.compile(r"^    ( *)(\w+)(\.py|/) +(\S.*)$", re.MULTILINE)
"""A line of a map: indentation, name, kind, description."""
ROOT_MODULES = 12
"""Most modules at the root of `reproduce`, which must fit on one screen."""
STANDARD_LIBRARY_ONLY = (
    "reproduce.identity",
    "reproduce.messages",
    "reproduce.settings",
    "reproduce.site",
    "reproduce.runs.progress",
    "reproduce.runs.interrupt",
    "reproduce.runs.files",
)
ONLY_IN = {
    "mlflow": ("reproduce.tracking.connection",),
    "pandas": ("reproduce.report.observe",),
    "jinja2": ("reproduce.report.render",),
    "matplotlib": ("reproduce.report.figures",),
}
"""The one module that may import a heavy package."""
SIBLINGS: dict[str, tuple[type[Settings], ...]] = {
    "reproduce.methods": (Method,),
    "reproduce.protocols": (Protocol,),
    "reproduce.data": (Dataset, DetectionDataset),
}
READS_THE_REAL_LAYOUT = {
    "reproduce.data.synthetic": {
        f"reproduce.data.{name}" for name in ("stl10", "voc2007", "places205", "inaturalist2018")
    },
    "reproduce.data.synthetic_detection": {f"reproduce.data.{name}" for name in ("voc0712", "coco2017")},
}
"""The real loaders read synthetic data, so the smoke scale tests them."""


def name_of(path: Path) -> str:
    """Return the name of the module in a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(path): path
    for folder in ("reproduce", "configs", "tables")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
FILES["tasks"] = ROOT / "tasks.py"
PACKAGES = sorted(name for name, path in FILES.items() if path.name == "__init__.py" and name != "reproduce")
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}


@cache
def imports(name: str, *, everywhere: bool = True) -> frozenset[str]:
    """Return the modules that a file imports: inside functions and for type checkers too, unless not
    `everywhere`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not everywhere:
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not everywhere:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            assert node.module is not None
            ours = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update({module if module in FILES else str(node.module) for module in ours})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(TREES[name])
    return frozenset(found)


def packages_of(name: str) -> set[str]:
    return {module.split(".")[0] for module in imports(name)}


def listed(name: str) -> list[str]:
    """Return the modules and packages that the docstring of a package lists, from the top of its page."""
    found = []
    for indent, each, _, _ in LISTED.findall(ast.get_docstring(TREES[name], clean=True) or ""):
        inside = name if name != "reproduce" or indent else ""
        if each != "reproduce":
            found.append(f"{inside}.{each}".lstrip("."))
    return found


PAGE = listed("reproduce")
"""The layers, from the top."""


def layer(name: str) -> int:
    """Return the number of a module's layer, counted from the top of the page."""
    fits = [number for number, each in enumerate(PAGE) if name == each or name.startswith(f"{each}.")]
    assert len(fits) == 1, f"{name} has {len(fits)} lines on the page of reproduce/__init__.py: give it one"
    return fits[0]


MODULES = [name for name, path in FILES.items() if path.name != "__init__.py" or "import " in TEXTS[name]]
NAMES = sorted(set(FILES) - {"reproduce"})


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_down(name: str) -> None:
    for module in imports(name) & set(NAMES):
        assert layer(module) >= layer(name), f"{name} imports {module}, which is above it"


@pytest.mark.parametrize("package", PACKAGES)
def test_inside_a_package_imports_point_down_its_page(package: str) -> None:
    """Components, which the page does not list, may import what is listed; nothing listed imports them."""
    page = listed(package)
    own = {name for name in FILES if name.rpartition(".")[0] == package}
    assert set(page) <= own, f"{package} lists what does not exist: {sorted(set(page) - own)}"
    assert len(set(page)) == len(page)
    for name in own | {package}:
        for module in imports(name) & own:
            if name in page:
                assert module in page[page.index(name) + 1 :], (
                    f"{name} imports {module}, which is not below it"
                )
            else:
                assert module in page, f"{name} imports {module}, which {package} does not list"


def test_no_module_needs_itself() -> None:
    """Imports inside functions and for type checkers count too."""
    graph = {name: set(imports(name) & set(FILES)) - {name} for name in FILES}
    while free := [name for name, needs in graph.items() if not needs & set(graph)]:
        for name in free:
            del graph[name]
    assert not graph, f"these import each other: {sorted(graph)}"


def test_the_map_names_every_layer_once_and_the_readme_shows_it() -> None:
    own = {name for name in FILES if name.count(".") == 1 and name.startswith("reproduce.")}
    assert {*PAGE} == own | {"tasks", "configs", "tables"}
    assert sum(FILES[name].name != "__init__.py" for name in own) <= ROOT_MODULES
    lines = inspect.cleandoc(reproduce.__doc__ or "").splitlines()
    shown = "\n".join(
        line.removeprefix("    ") for line in lines if LISTED.match(line) or line == "    reproduce/"
    )
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8"), f"README, Layout, is to show:\n{shown}"


def test_the_map_lists_files_and_folders_as_what_they_are() -> None:
    for name in ("reproduce", *PACKAGES):
        for indent, each, kind, _ in LISTED.findall(inspect.getdoc(importlib.import_module(name)) or ""):
            place = ROOT / (Path(*name.split(".")) if name != "reproduce" or indent else "") / f"{each}{kind}"
            assert place.is_dir() if kind == "/" else place.is_file(), place


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_the_bottom_needs_the_standard_library_only(name: str) -> None:
    assert packages_of(name) <= set(sys.stdlib_module_names) | {"reproduce"}
    assert {module for module in imports(name) if module.startswith("reproduce")} <= set(
        STANDARD_LIBRARY_ONLY
    )


@pytest.mark.parametrize("name", MODULES)
def test_a_heavy_package_is_imported_by_one_module_and_not_when_that_is_imported(name: str) -> None:
    for package, owners in ONLY_IN.items():
        if package in packages_of(name):
            assert name in owners
            assert package not in {module.split(".")[0] for module in imports(name, everywhere=False)}


@pytest.mark.parametrize("package", SIBLINGS)
def test_siblings_do_not_import_each_other(package: str) -> None:
    names = [
        module.name
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
    ]
    siblings = {name for name in names if defines(name, SIBLINGS[package])}
    assert len(siblings) > 1
    for name in siblings:
        others = (imports(name) & siblings) - {name}
        allowed = READS_THE_REAL_LAYOUT.get(name, set())
        assert others <= allowed, f"{name} imports {others}: what they share belongs in nn/ or a base"


def defines(name: str, bases: tuple[type[Settings], ...]) -> bool:
    """Report whether a module defines a component: a class with a name of its own on top of one of
    `bases`."""
    own = (value for value in vars(importlib.import_module(name)).values() if inspect.isclass(value))
    return any(issubclass(cls, bases) and cls.__module__ == name and "name" in vars(cls) for cls in own)


def test_there_are_no_utils() -> None:
    assert not [
        name for name in FILES if name.split(".")[-1] in ("utils", "util", "helpers", "misc", "common")
    ]


IMPORT_ALL = """
import logging, os, signal, sys, threading, warnings
import filelock, jinja2, numpy, PIL.Image, psutil, torch, torchvision
opened = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
FILES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir")
PROCESSES = ("socket.connect", "subprocess.Popen", "os.fork", "os.exec")
def hook(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        opened.append(str(arguments[0]))
    elif event in FILES or event in PROCESSES:
        opened.append(f"{event} {arguments}")
def state():
    return {
        "handlers": len(logging.root.handlers), "level": logging.root.level,
        "signals": [signal.getsignal(n) for n in (2, 15)], "threads": threading.active_count(),
        "environment": dict(os.environ), "warnings": list(warnings.filters),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "random": (torch.random.get_rng_state().sum().item(), numpy.random.get_state()[1].sum()),
        "cuda": torch.cuda.is_initialized(), "path": list(sys.path), "folder": os.getcwd(),
    }
sys.path.insert(0, sys.argv[1])
sys.addaudithook(hook)
before = state()
for name in sys.argv[2:]:
    __import__(name)
    after = state()
    if name == "tasks":
        after["path"] = before["path"]  # a command line may be started anywhere
    assert after == before, (name, [key for key in before if before[key] != after[key]])
assert not opened, opened
assert not {"mlflow", "pandas", "matplotlib"} & set(sys.modules)
print("quiet")
"""


@pytest.mark.slow
def test_importing_a_module_does_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-B", "-c", IMPORT_ALL, str(ROOT), *MODULES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("quiet\n", "")
    assert not list(tmp_path.iterdir())


def test_files_that_define_settings_import_without_torch() -> None:
    """The test finds them by their text: building every table must not wait for torch."""
    with_settings = [name for name in MODULES if re.search(r"\(\w+, name=", TEXTS[name]) and name != "tasks"]
    assert len(with_settings) > 10
    code = f"""
import importlib, sys
for name in {with_settings!r}:
    importlib.import_module(name)
print(*sorted(sys.modules))
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "torchvision", "numpy", "PIL", "mlflow", "pandas", "sklearn"} & set(loaded)
