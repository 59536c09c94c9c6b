"""`invoke unlock`: a run is freed only if its owner is gone, and the owner notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Home
from test_lease import LEASE, RUN

from reproduce.commands import unlock as command
from reproduce.messages import UserError
from reproduce.runs import lease
from reproduce.runs.claims import Claims
from reproduce.runs.lease import BusyError, LostError
from reproduce.site import Site

OTHER = "0123fedcba98"
FAR = LEASE | {"heartbeat": 0.2}
"""The lease of a process on another machine."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "runs" / RUN).mkdir(parents=True)
    return Site(runs=tmp_path / "runs", heartbeat=0.2)


def put(site: Site, *, age: float = 0.0, **fields: Any) -> Path:
    """Write a lease that was renewed `age` seconds ago; return its path."""
    path = site.runs / RUN / lease.FILE
    path.write_text(json.dumps(FAR | fields))
    beat = path.stat().st_mtime - age
    os.utime(path, (beat, beat))
    return path


def unlocked(site: Site, name: str = RUN, *, force: bool = False) -> list[str]:
    return list(command.unlock(site, name, force=force))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "'' is not the id of a run: up to 12 of the digits 0-9 and a-f are expected."),
        ("../x", "'../x' is not the id of a run: "),
        ("ABC", "'ABC' is not the id of a run: "),
        ("fff", "has no run 'fff': `invoke status` lists the runs that exist."),
        ("0123", f"begin with '0123': {RUN}, {OTHER}."),
        (RUN, f"Run {RUN} has no lease, so nothing keeps it from being executed."),
    ],
)
def test_what_cannot_be_freed_is_named(name: str, says: str, site: Site) -> None:
    (site.runs / OTHER).mkdir()
    (site.runs / "fff").mkdir()
    with pytest.raises(UserError) as caught:
        unlocked(site, name)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_that_ended_is_free_already(site: Site) -> None:
    with lease.take(site.runs / RUN, RUN, heartbeat=10.0) as held:
        held.finished()
    (line,) = unlocked(site, "0")
    assert line.startswith(f"Run {RUN} is free already: its last owner, process {os.getpid()} on ")
    assert line.endswith(", left it finished.")


def test_a_live_owner_on_this_machine_keeps_its_run_unless_forced(site: Site) -> None:
    with lease.take(site.runs / RUN, RUN, heartbeat=1000.0) as held:
        with pytest.raises(
            UserError, match=rf"stays locked: process {os.getpid()} on .* exists\. Stop it, or"
        ):
            unlocked(site)
        os.utime(site.runs / RUN / lease.FILE, (2e9 + 1e9, 2e9 + 1e9))
        with pytest.raises(UserError, match=r"stays locked: process \d+ on .* exists\."):
            unlocked(site)
        held.check()
        (line,) = unlocked(site, force=True)
        assert line.startswith(f"Run {RUN} is free: it belonged to process {os.getpid()} on ")
        with pytest.raises(LostError, match="freed by hand, from process"):
            held.check()
    lease.take(site.runs / RUN, RUN, heartbeat=10.0)


def test_an_owner_on_another_machine_keeps_its_run_while_it_is_heard_of(site: Site) -> None:
    put(site, heartbeat=3600.0, age=2.2 * 3600)
    with pytest.raises(
        UserError, match=r"stays locked: process 7 on elsewhere sent a heartbeat 2 h ago\. Stop"
    ):
        unlocked(site)
    put(site, heartbeat=3600.0, age=3.5 * 3600)
    assert unlocked(site)[-1].startswith(f"Run {RUN} is free: it belonged to process 7 on elsewhere.")


def test_a_heartbeat_in_the_future_is_watched(site: Site) -> None:
    path = put(site, age=-9e6)
    with pytest.raises(BusyError):
        lease.take(path.parent, RUN, heartbeat=10.0)
    assert list(Claims(site).doubtful()) == [RUN]
    watching, free = unlocked(site)
    assert watching == f"Watching the lease of run {RUN} for a heartbeat, for up to 1 s ..."
    assert free.startswith(f"Run {RUN} is free: it belonged to process 7 on elsewhere. ")
    assert Claims(site).doubtful() == {}
    found = lease.read(path.parent, RUN)
    assert found is not None
    assert (found.state, found.reason) == ("interrupted", "freed by hand, from process 7 on elsewhere")
    lease.take(path.parent, RUN, heartbeat=10.0)


def test_an_owner_that_renews_its_lease_meanwhile_keeps_its_run(site: Site) -> None:
    put(site, age=-9e6, heartbeat=60.0)
    lines = command.unlock(site, RUN, force=False)
    next(lines)  # it watches for minutes
    timer = threading.Timer(0.1, lambda: put(site))
    timer.start()
    with pytest.raises(
        UserError, match=r"stays locked: process 7 on elsewhere has just renewed its lease\.$"
    ):
        next(lines)
    timer.join()


def test_a_lease_that_cannot_be_read_is_set_aside(site: Site) -> None:
    path = site.runs / RUN / lease.FILE
    path.mkdir()
    (path / "mine").touch()
    assert unlocked(site)[-1].startswith(f"Run {RUN} is free: it belonged to an unknown process. ")
    (moved,) = path.parent.glob(f"{lease.FILE}.unreadable-*")
    assert (moved / "mine").exists()
    assert not os.path.lexists(path)


def test_a_queued_run_is_freed_when_its_job_has_left_the_queue(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)
    put(site, state="queued", job="12_3")
    for answer, says in (
        ("echo '12_3|PENDING'", "Slurm job 12_3 is in the queue (PENDING)."),
        ("echo 'no controller' >&2; exit 1", "is unknown (squeue did not answer: no controller)."),
    ):
        squeue.write_text(f"#!/bin/sh\n{answer}\n")
        squeue.chmod(0o755)
        with pytest.raises(UserError) as caught:
            unlocked(site)
        assert says in str(caught.value)
    squeue.write_text("#!/bin/sh\n")
    assert unlocked(site)[-1].startswith(f"Run {RUN} is free: it belonged to Slurm job 12_3.")


def test_the_task_frees_a_run_that_status_and_gc_show_as_locked(place: Home) -> None:
    (folder := place.runs / RUN).mkdir()
    put(Site(runs=place.runs), age=-9e6)
    for task in ("status", "gc"):
        shown = place.invoke(task)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert (
            "process 7 on elsewhere (its last heartbeat lies 104 days in the future; if no process executes"
            in shown.stdout
        )
        assert RUN in shown.stdout
    done = place.invoke("unlock", "01")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"Run {RUN} is free: ")
    assert "locked" not in place.invoke("status").stdout
    (folder / lease.FILE).unlink()
    for arguments in (("unlock", "01"), ("unlock", "zz"), ("unlock", "f")):
        refused = place.invoke(*arguments)
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)


def test_unlock_loads_neither_torch_nor_mlflow() -> None:
    code = "import sys, reproduce.commands.unlock; print({'torch', 'mlflow', 'pandas'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "set()"
