"""The facts besides the settings that may explain a number: versions, code and machine.

Every run records them. `load` measures how busy the machine is.
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


def record() -> dict[str, Any]:
    """Return the environment of this process as plain data.

    torch is queried only if it is loaded, as it is in every process that trains.
    """
    commit, dirty = code()
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "device": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
    }


@cache
def code() -> tuple[str, bool | None]:
    """Return the project's commit and whether the working tree differs from it.

    Reports are ignored, because runs write them. Outside a repository the commit is `unknown`.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", ":!reports"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None


def load() -> dict[str, float]:
    """Return how busy the machine is now, under the metric names of MLflow's own monitor.

    That monitor would need a thread and a query every ten seconds. Percentages are from 0 to 100, megabytes
    are 1e6 bytes. The processor's load is the mean since the last call.
    """
    import psutil

    memory, megabyte = psutil.virtual_memory(), 1e6
    measured = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / megabyte,
        "system_memory_usage_percentage": memory.percent,
        "process_memory_usage_megabytes": psutil.Process().memory_info().rss / megabyte,
    }
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        measured["gpu_0_memory_usage_megabytes"] = (total - free) / megabyte
        measured["gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
        # NVIDIA's management library may be absent or forbidden, which must not stop a run.
        with contextlib.suppress(Exception):
            measured["gpu_0_utilization_percentage"] = torch.cuda.utilization()
    return measured


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
