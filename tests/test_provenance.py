"""The commit that runs record: that of the project's own repository, or unknown."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reproduce.runs import environment

ROOT = Path(__file__).parent.parent
NEEDED = ("__init__.py", "messages.py", "site.py", "runs/__init__.py", "runs/environment.py")
"""Modules that say which code this is."""
UNKNOWN = "('unknown', None)"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "protocol.file.allow=always")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def repository(folder: Path) -> Path:
    """A repository that contains everything that the folder contains."""
    folder.mkdir(exist_ok=True)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=all")
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project as an archive contains it, in a folder of its own."""
    folder = tmp_path / "around" / "copy"
    for name in NEEDED:
        (folder / "reproduce" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "reproduce" / name, folder / "reproduce" / name)
    return folder


def recorded(folder: Path, **variables: str) -> str:
    """What a process of the project in `folder` records."""
    code = "from reproduce.runs import environment; print(environment.code())"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_copy_without_a_repository_has_no_commit(copy: Path) -> None:
    assert recorded(copy) == UNKNOWN


def test_the_repository_around_a_copy_is_not_the_projects(copy: Path) -> None:
    repository(copy.parent)
    assert recorded(copy) == UNKNOWN, "its commit contains the copy"
    (copy.parent / ".gitignore").write_text("*\n")
    git(copy.parent, "rm", "-r", "--quiet", "--cached", "copy")
    git(copy.parent, "commit", "--quiet", "--message=none")
    assert recorded(copy) == UNKNOWN, "its commit is clean, as it ignores the copy"


def test_a_repository_that_does_not_contain_the_code_says_nothing_about_it(copy: Path) -> None:
    (copy / ".gitignore").write_text("*\n")
    repository(copy)
    assert recorded(copy) == UNKNOWN


def test_a_clone_has_its_commit_until_a_file_differs(copy: Path) -> None:
    commit = git(repository(copy), "rev-parse", "HEAD")
    assert recorded(copy) == f"('{commit}', False)"
    git(copy, "config", "status.showUntrackedFiles", "no")
    (copy / "reproduce" / "new.py").touch()
    assert recorded(copy) == f"('{commit}', True)"


def test_a_worktree_and_a_submodule_have_commits_of_their_own(copy: Path, tmp_path: Path) -> None:
    first = git(repository(copy), "rev-parse", "HEAD")
    git(copy, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "worktree"))
    git(tmp_path / "worktree", "commit", "--quiet", "--allow-empty", "--message=second")
    second = git(tmp_path / "worktree", "rev-parse", "HEAD")
    assert recorded(tmp_path / "worktree") == f"('{second}', False)"
    outer = repository(tmp_path / "outer")
    git(outer, "submodule", "--quiet", "add", str(copy), "inner")
    assert recorded(outer / "inner") == f"('{first}', False)"


def test_the_variables_of_a_hook_name_another_repository(copy: Path, tmp_path: Path) -> None:
    other = repository(tmp_path / "other")
    variables = {"GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(copy)}
    assert recorded(copy, **variables) == UNKNOWN
    commit = git(repository(copy), "rev-parse", "HEAD")
    assert recorded(copy, **variables) == f"('{commit}', False)"


def test_without_git_or_a_readable_repository_the_commit_is_unknown(copy: Path) -> None:
    repository(copy)
    assert recorded(copy, PATH="/nowhere") == UNKNOWN
    (copy / ".git" / "index").write_bytes(b"broken")
    assert recorded(copy) == UNKNOWN, "its changes cannot be listed, so nothing says that there are none"


def test_a_folder_reached_by_a_link_is_the_same_folder(copy: Path, tmp_path: Path) -> None:
    commit = git(repository(copy), "rev-parse", "HEAD")
    (tmp_path / "link").symlink_to(copy)
    assert environment.commit_of(tmp_path / "link") == commit
    assert environment.commit_of(copy / "reproduce") == environment.UNKNOWN
