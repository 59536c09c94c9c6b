"""What tests may lack, and the skips that CI accepts.

    MSBREG_SKIPS=listed pytest    # as .ci/run does: a skip that LISTED does not accept on this machine fails

A test is skipped only if something optional is missing. A package that is present and broken is an error.
`.ci/run` installs everything that is not on the list. On a fresh machine without real data and without
Detectron2's source, it therefore accepts the skips for these two reasons and no other.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MSBREG_SHARED_DATA") or ROOT.parent / "shared" / "data")
"""Real data: samples of COCO, VOC and Imagenette, and lists of images."""
SWITCH, LISTED_ONLY = "MSBREG_SKIPS", "listed"
"""Variable that makes a skip a failure unless it is listed, and its value."""
GIVEN = os.environ.get(SWITCH, "")

NO_DATA = "no real data: neither MSBREG_SHARED_DATA nor ../shared/data is a folder"
NO_DETECTRON2 = "no Detectron2: neither a package, nor the site file's folder, nor ../detectron2"
NOT_ROOT = "only root can start a cluster"
NO_GIT = "not a git repository"


@dataclass(frozen=True)
class Listed:
    """A skip that is accepted on some machines."""

    reason: str
    """Reason that pytest prints."""
    accepted: Callable[[], bool]
    """True on a machine that lacks the thing; elsewhere a skip for this reason is a failure."""


LISTED = (
    # Their terms do not allow to publish them with the project. Generated images cover the same code.
    Listed(NO_DATA, lambda: not SHARED.is_dir()),
    # No package index offers it. torchvision's engine and the conversion of files are tested without it.
    Listed(NO_DETECTRON2, lambda: no_detectron2()),
    # slurmd needs root. The scripts and the launcher are tested without a cluster.
    Listed(NOT_ROOT, lambda: os.geteuid() != 0),
    # As in an archive of a release. There is no .gitignore to check then.
    Listed(NO_GIT, lambda: not (ROOT / ".git").exists()),
)


def shared(*names: str) -> Path:
    """Return a file or folder of the real data.

    The test is skipped if there are none. If only a part is missing, the skip is not listed.
    """
    if not SHARED.is_dir():
        pytest.skip(NO_DATA)
    path = SHARED.joinpath(*names)
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path


def optional(module: str) -> Any:
    """Return a module of an optional package; the test is skipped if the package is not installed.

    Raises:
        ImportError: the package is installed and broken.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return importlib.import_module(module)


def detectron2_source() -> Path | None:
    """Return Detectron2's source: the site file's folder, or one next to the project; None if missing."""
    from reproduce import site

    beside = ROOT.parent / "detectron2"
    return site.load().detectron2 or (beside if beside.is_dir() else None)


def no_detectron2() -> bool:
    """Return True if there is neither its source nor the package."""
    return detectron2_source() is None and importlib.util.find_spec("detectron2") is None


def strict(value: str = GIVEN) -> bool:
    """Return True if a skip that is not listed is a failure.

    Raises:
        UsageError: the switch has another value.
    """
    if value not in ("", LISTED_ONLY):
        raise pytest.UsageError(f"{SWITCH} is '{value}': '{LISTED_ONLY}' is expected, or no value.")
    return bool(value)


def check(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure unless it is listed and accepted on this machine."""
    if not (strict() and report.skipped and isinstance(report.longrepr, tuple)):
        return
    path, line, _ = report.longrepr
    reason = reason_of(report)
    if not any(each.reason == reason and each.accepted() for each in LISTED):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: skipped, which tests/skips.py does not accept here: {reason}"


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the reason of a skip."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")
