"""The facts besides the settings that may explain a number: versions, code and machine.

Every run records them.
"""

from __future__ import annotations

import contextlib
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
SHARING = "MSBREG_RUNS_PER_GPU"
"""Environment variable by which a launcher gives a run the number of runs that share its GPU."""
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
        "gpus": _gpus(torch) if gpu else [],
        "runs_per_gpu": sharing() if gpu else 1,
        "processes": distributed.get_world_size() if distributed and distributed.is_initialized() else 1,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
    }


def sharing() -> int:
    """Return the number of runs that share the GPU of this process, itself included."""
    found = os.environ.get(SHARING, "")
    return int(found) if found.isdecimal() and int(found) else 1


def _gpus(torch: Any) -> list[dict[str, Any]]:
    """Return the GPUs that the run uses on this machine, each with its number in the driver and its UUID.

    The number is that in the names of MLflow's measurements, which follows neither CUDA_VISIBLE_DEVICES nor
    CUDA's order. It is None if the driver does not know the UUID, such as that of a part of a GPU.
    """
    found = []
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    first = 0 if processes > 1 else torch.cuda.current_device()
    for number in range(first, first + processes):
        # Older versions of torch have no UUID. A fact about the machine is worth no run.
        with contextlib.suppress(Exception):
            uuid = f"GPU-{torch.cuda.get_device_properties(number).uuid}"
            found.append({"index": _index(uuid), "uuid": uuid[:12]})
    return found


def _index(uuid: str) -> int | None:
    """Return the driver's number of a GPU, or None if it does not know it."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)))
    except Exception:  # nvidia-ml-py is optional
        return None


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
