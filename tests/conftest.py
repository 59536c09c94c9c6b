"""A place of its own for runs and reports, and the real command line there."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import skips
from waiting import free_ports

# Before torch is imported: threads that wait for each other over tiny tensors take minutes where the cores
# are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Half a million objects are imported and stay: looking through them for garbage, again and again, takes
# seconds.
gc.disable()

ROOT = Path(__file__).parent.parent
INVOKE = (sys.executable, "-m", "invoke")


def pytest_configure() -> None:
    skips.strict()  # a wrong value ends here


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    skips.check(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    skips.check(report)
    return report


def pytest_sessionfinish() -> None:
    """Processes of a test that its time limit ended would be waited for."""
    for process in multiprocessing.active_children():
        process.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(map(skips.reason_of, terminalreporter.getreports("skipped")))
    for reason, number in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {number}: {reason}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests come first, then those of many, so that no process is alone with one of them at the
    end."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def weight(tests: list[pytest.Item]) -> tuple[float, int]:
        return sum(test.get_closest_marker("slow") is not None for test in tests) / len(tests), len(tests)

    items[:] = [item for tests in sorted(files.values(), key=weight, reverse=True) for item in tests]


def pytest_collection_finish() -> None:
    """What is there by now is never looked through; what the tests make is."""
    gc.freeze()
    gc.enable()


@dataclass
class Home:
    """Runs and reports in `folder`; two runs at once, so that each takes one thread on a machine with two
    cores. Pretraining writes a checkpoint after each epoch, however short."""

    folder: Path
    site: str = 'device = "cpu"\njobs = 2\ncheckpoint_seconds = 0\n'

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.site_file = self.folder / "site.toml"
        self.site_file.write_text(f'runs = "{self.runs}"\nreports = "{self.reports}"\n{self.site}')

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    @property
    def environment(self) -> dict[str, str]:
        """Without what a developer's shell may have set and a test must not see."""
        private = ("MLFLOW_", "MSBREG_", "OMP_", "MKL_", "INVOKE_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(private)}
        return kept | {"MSBREG_SITE": str(self.site_file), "OMP_NUM_THREADS": "1"}

    def invoke(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs `invoke` to its end."""
        return subprocess.run(
            [*INVOKE, *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Starts `invoke` in a process group of its own, as a shell does."""
        return subprocess.Popen(
            [*INVOKE, *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file here with its size and time of writing."""
        found = {path: path.stat() for path in self.folder.rglob("*") if path.is_file()}
        return {
            str(path.relative_to(self.folder)): (stat.st_size, stat.st_mtime_ns)
            for path, stat in found.items()
        }


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home(tmp_path / "home")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an empty tracking store, which takes seconds to create: tests copy it, those of other
    processes (pytest-xdist) too."""
    from reproduce.site import Site
    from reproduce.tracking.store import Store

    folder = tmp_path_factory.getbasetemp()
    # With pytest-xdist, each process has its own folder inside the one that all of them share.
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Store(Site(runs=folder / "template")).ui_command()  # which creates it, once however many ask for it
    return folder / "template" / "mlflow.db"


@pytest.fixture
def place(template: Path, home: Home) -> Home:
    """A home with a store and no runs."""
    home.runs.mkdir()
    shutil.copy(template, home.runs)
    return home


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A port for the servers of a module, one after the other."""
    with free_ports() as (number,):
        yield number


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Whatever the environment says: the order of a sum depends on the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
