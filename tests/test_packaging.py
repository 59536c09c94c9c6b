"""`pip install -e .`: the metadata name what exists, and the command msbreg is the command line."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import skips

ROOT = Path(__file__).parent.parent
CONTENT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = CONTENT["tool"]["setuptools"]
TESTS = "# Tests and checks; pages are tested in Chromium."
"""The comment of requirements.txt below which nothing is needed for runs."""
TOOLS = {"pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "selenium", "ruff", "mypy"}
PACKAGES = ("reproduce", "configs", "tables")
OLDEST = 77
"""The first setuptools that reads pyproject.toml as it is (`license` as an expression)."""


def can_build() -> bool:
    """Report whether this environment has pip and a setuptools that is new enough."""
    if not all(importlib.util.find_spec(name) for name in ("pip", "setuptools")):
        return False
    return int(importlib.metadata.version("setuptools").partition(".")[0]) >= OLDEST


needs_setuptools = pytest.mark.skipif(not can_build(), reason=f"no pip, or no setuptools from {OLDEST} on")


def pinned(text: str) -> list[str]:
    """Return the requirements in a file's text."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_dependencies_are_the_requirements_without_the_tools_of_tests() -> None:
    needed, comment, tools = (ROOT / "requirements.txt").read_text(encoding="utf-8").partition(TESTS)
    assert comment
    assert CONTENT["project"]["dependencies"] == pinned(needed)
    assert {line.partition("==")[0] for line in pinned(tools)} == TOOLS


def normalised(requirement: str) -> str:
    """Return a pinned requirement with the name as package indexes spell it."""
    name, _, version = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def test_the_lock_file_has_every_requirement_and_hashes_of_all_that_is_installed() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = [entry.replace("\\\n", " ") for entry in re.split(r"\n(?=\w)", text)[1:]]
    locked: dict[str, list[str]] = {}
    for entry in entries:
        found = re.fullmatch(
            r"([\w.-]+==[\w.]+)( ;[^\n]+?)?((?: +--hash=sha256:[0-9a-f]{64})+)((?:\n +#.*)*)\n?", entry
        )
        assert found, entry
        name, version = found[1].split("==")
        locked.setdefault(name, []).append(version)
        assert len(locked[name]) == 1 or found[2], f"{name} is there twice without a condition"
        assert "://" not in entry
    needed, beside = (
        [normalised(line).split("==") for line in pinned((ROOT / file).read_text(encoding="utf-8"))]
        for file in ("requirements.txt", "requirements-detectron2.txt")
    )
    assert {name: locked.get(name) for name, _ in needed} == {name: [version] for name, version in needed}
    shared = {name: [version] for name, version in beside if name in locked}
    assert {name: locked[name] for name in shared} == shared, "both files can be installed together"


def test_the_build_system_reads_the_file() -> None:
    assert CONTENT["build-system"]["requires"] == [f"setuptools>={OLDEST}"]


def test_the_version_is_stated_once() -> None:
    from reproduce import __version__

    assert "version" in CONTENT["project"]["dynamic"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "reproduce.__version__"}
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [__version__]


def test_the_optional_dependencies_are_files() -> None:
    for entry in SETUPTOOLS["dynamic"]["optional-dependencies"].values():
        assert pinned((ROOT / entry["file"]).read_text(encoding="utf-8"))


def test_the_one_entry_point_is_the_command_line() -> None:
    assert CONTENT["project"]["scripts"] == {"msbreg": "tasks:main"}
    assert SETUPTOOLS["py-modules"] == ["tasks"]
    assert callable(importlib.import_module("tasks").main)


def test_every_folder_of_code_is_a_package_and_all_other_files_are_its_data() -> None:
    globs = [
        f"{package.replace('.', '/')}/{glob}"
        for package, given in SETUPTOOLS["package-data"].items()
        for glob in given
    ]
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if "__pycache__" in path.parts or path.is_dir() or path.name == "site.toml":
                continue
            if path.suffix == ".py":
                assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks __init__.py"
            else:
                name = path.relative_to(ROOT).as_posix()
                assert any(fnmatchcase(name, glob) for glob in globs), f"{name} is not in package-data"


@needs_setuptools
def test_setuptools_finds_every_package() -> None:
    include = SETUPTOOLS["packages"]["find"]["include"]
    code = f"from setuptools import find_packages; print(*find_packages({str(ROOT)!r}, include={include!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")}
    assert set(done.stdout.split()) == {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_git_has_every_file_of_the_packages() -> None:
    """A pattern of .gitignore, such as that of the folder of runs, must not match a package."""
    if not (ROOT / ".git").exists():
        pytest.skip(skips.NO_GIT)
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    files = [str(path) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    done = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(files),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, ""), "git ignores these files"


@needs_setuptools
@pytest.mark.slow
def test_an_editable_installation_works_in_any_folder(tmp_path: Path) -> None:
    """Of a copy, with the setuptools of this environment and without the network."""
    copy, prefix = tmp_path / "copy", tmp_path / "prefix"
    copy.mkdir()
    for name in (
        *PACKAGES,
        "tasks.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements-detectron2.txt",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "site.toml"))
        else:
            shutil.copy(source, copy / name)
    install = [
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--prefix",
        str(prefix),
    ]
    subprocess.run([sys.executable, *install, "-e", str(copy)], check=True, capture_output=True, timeout=120)
    (script,) = prefix.glob("bin/msbreg")
    (packages,) = prefix.glob("lib/python*/site-packages")
    # A prefix is not on the path of this Python, so its .pth files are read by hand.
    start = f"import site; site.addsitedir({str(packages)!r})\n"

    def python(code: str, *arguments: str) -> str:
        command = [sys.executable, "-c", start + code, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert python("import tasks; print(tasks.__file__)").strip() == str(copy / "tasks.py")
    assert "table8" in python(script.read_text(encoding="utf-8"), "--list")
