"""CI accepts the skips of a list, each on a machine that lacks the thing, and fails on every other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import skips

TESTS = """
import pytest, skips

def test_of_real_data():
    skips.shared("coco")

def test_of_a_cluster():
    pytest.skip(skips.NOT_ROOT)

def test_of_something_else():
    pytest.skip("not today")

def test_of_a_missing_package():
    skips.optional("nowhere.to_be_found")

def test_of_a_broken_package():
    skips.optional("broken.inside")

@pytest.mark.skipif(True, reason="not ever")
def test_that_is_marked(): ...

def test_that_passes(): ...
"""
MODULE = "import pytest; pytest.skip('all of it', allow_module_level=True)"


def outcomes(folder: Path, **variables: str) -> dict[str, str]:
    """Return what pytest prints of each test, by its name."""
    (folder / "test_it.py").write_text(TESTS)
    (folder / "test_module.py").write_text(MODULE)
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken" / "__init__.py").write_text("import a_module_that_is_missing")
    path = os.pathsep.join(map(str, (folder, Path(__file__).parent, skips.ROOT)))
    options = "--continue-on-collection-errors --disable-plugin-autoload -p conftest -p no:cacheprovider -v"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), "-c", os.devnull, folder],
        env={**os.environ, skips.SWITCH: "", "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    module = "FAILED" if "does not accept here: all of it" in done.stdout else "SKIPPED"
    return {"module": module, **dict(re.findall(r"test_it\.py::test_(\w+) ([A-Z]+) ", done.stdout))}


def test_a_skip_is_a_failure_unless_this_machine_lacks_what_the_list_names(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nowhere, empty = (str(tmp_path / name) for name in ("nowhere", "empty"))
    anywhere = outcomes(tmp_path, MSBREG_SHARED_DATA=nowhere)
    assert anywhere == {
        "module": "SKIPPED",
        "of_real_data": "SKIPPED",
        "of_a_cluster": "SKIPPED",
        "of_something_else": "SKIPPED",
        "of_a_missing_package": "SKIPPED",
        "of_a_broken_package": "FAILED",
        "that_is_marked": "SKIPPED",
        "that_passes": "PASSED",
    }
    without_data = outcomes(tmp_path, MSBREG_SHARED_DATA=nowhere, MSBREG_SKIPS="listed")
    assert without_data == dict.fromkeys(anywhere, "FAILED") | {
        "of_real_data": "SKIPPED",
        "of_a_cluster": "SKIPPED" if os.geteuid() else "FAILED",
        "that_is_marked": "ERROR",
        "that_passes": "PASSED",
    }
    with_a_part = outcomes(tmp_path, MSBREG_SHARED_DATA=empty, MSBREG_SKIPS="listed")
    assert with_a_part == without_data | {"of_real_data": "FAILED"}


def test_another_value_of_the_switch_is_refused() -> None:
    assert (skips.strict(""), skips.strict("listed")) == (False, True)
    with pytest.raises(pytest.UsageError, match=r"^MSBREG_SKIPS is 'yes': 'listed' is expected, or no value"):
        skips.strict("yes")
