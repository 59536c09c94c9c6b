"""The facts besides the settings that may explain a number: versions, code and machine.

Every run records them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from reproduce.site import PROJECT

PACKAGES = ("torch", "torchvision", "numpy", "mlflow", "scikit-learn", "pandas", "pillow", "safetensors")
"""Packages whose version can explain a number."""
UNKNOWN = "unknown"
"""Commit of code that is not the top of a repository which git can read."""


def record() -> dict[str, Any]:
    """Return the environment of this process as plain data.

    torch is queried only if it is loaded, as it is in every process that trains.
    """
    commit, dirty = code()
    torch = sys.modules.get("torch")
    gpu = bool(torch and torch.cuda.is_available())
    distributed = torch.distributed if torch and torch.distributed.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "device": torch.cuda.get_device_name() if torch and gpu else processor(),
        "kind": "GPU" if gpu else "CPU",
        "processes": distributed.get_world_size() if distributed and distributed.is_initialized() else 1,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
    }


@cache
def code() -> tuple[str, bool | None]:
    """Return the project's commit and whether the working tree differs from it.

    Reports are ignored, because runs write them. The commit is `unknown` if it cannot be read, or if it does
    not contain this file: what a copy without .git consists of cannot be told.
    """
    commit = commit_of(PROJECT)
    contained = _git(PROJECT, "cat-file", "-e", f"HEAD:{Path(__file__).relative_to(PROJECT).as_posix()}")
    changes = _git(PROJECT, "status", "--porcelain", "--untracked-files=normal", "--", ".", ":!reports")
    if commit == UNKNOWN or contained is None or changes is None:
        return UNKNOWN, None
    return commit, bool(changes)


def commit_of(folder: Path) -> str:
    """Return the commit of the repository or worktree whose top is `folder`, or `unknown`.

    The commit of a repository around the folder says nothing about its content.
    """
    top, commit = _git(folder, "rev-parse", "--show-toplevel"), _git(folder, "rev-parse", "HEAD")
    if top and commit and Path(top).resolve() == folder.resolve():
        return commit
    return UNKNOWN


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints in a folder, or None if it fails or is not installed.

    Variables such as GIT_DIR, which a hook sets, name another repository and are left out.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if key.startswith("GIT_CONFIG") or not key.startswith("GIT_")
    }
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=kept, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return os.fsdecode(done.stdout).strip()


def process_memory() -> float:
    """Return the memory of this process in megabytes (1e6 bytes), which MLflow's collectors do not sample."""
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Return the processor's name."""
    try:
        listed = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        listed = None
    return listed[1] if listed else platform.processor() or platform.machine()
