"""Runs that other processes execute, from their leases and a cluster's queue.

A small `squeue` replaces Slurm's.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce import worker
from reproduce.messages import UserError
from reproduce.plan import Request
from reproduce.runs import lease
from reproduce.runs.claims import Claims
from reproduce.runs.progress import Progress
from reproduce.site import Site, Slurm

RUN, OTHER = "0123456789ab", "ba9876543210"


class Queue:
    """The answers of `squeue`, and the number of calls."""

    def __init__(self, folder: Path) -> None:
        self.listed, self.calls = folder / "listed", folder / "calls"
        self.list()
        self.calls.write_text("")
        program = folder / "squeue"
        program.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\ncat {self.listed}\n')
        program.chmod(0o755)

    def list(self, *jobs: str) -> None:
        self.listed.write_text("".join(f"{job}|PENDING\n" for job in jobs))

    def num_calls(self) -> int:
        return len(self.calls.read_text().splitlines())


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Queue(tmp_path / "bin")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(runs=tmp_path / "runs", slurm=Slurm(poll=0.1))


def rewrite(site: Site, spec_id: str, **fields: Any) -> None:
    """Change a lease as its owner would."""
    path = site.runs / spec_id / lease.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def kinds(claims: Claims) -> list[tuple[str, str]]:
    return [(event["id"], event["event"]) for event in claims.poll()]


def test_what_nobody_does_is_not_claimed_and_needs_no_queue(site: Site, squeue: Queue) -> None:
    with pytest.raises(ValueError, match="no luck"), lease.take(site.runs / RUN, RUN, heartbeat=10):
        raise ValueError("no luck")
    assert Claims(site).leases([RUN, OTHER]) == {}
    assert squeue.num_calls() == 0


def test_a_run_of_a_process_is_followed_to_its_end(site: Site) -> None:
    claims = Claims(site)
    with lease.take(site.runs / RUN, RUN, heartbeat=10) as held:
        (claimed,) = claims.leases([RUN]).values()
        assert claims.follow(RUN, claimed)["who"] == held.lease.who
        assert kinds(claims) == []
        rewrite(site, RUN, progress=[1, 4, "images", ""])
        (event,) = claims.poll()
        assert (event["event"], event["done"], event["total"]) == ("progress", 1, 4)
        assert kinds(claims) == [], "nothing has changed"
        held.report(Progress(4, 4, "images", ""))
        held.finished()
    assert kinds(claims) == [(RUN, "finished")]
    assert len(claims) == 0


@pytest.mark.parametrize(
    ("state", "event"), [("failed", "failed"), ("interrupted", "freed"), ("finished", "finished")]
)
def test_how_it_ended_is_told(state: str, event: str, site: Site) -> None:
    claims = Claims(site)
    lease.take(site.runs / RUN, RUN, heartbeat=10)
    claims.follow(RUN, claims.leases([RUN])[RUN])
    rewrite(site, RUN, state=state, reason="ValueError: no luck")
    (found,) = claims.poll()
    assert found["event"] == event
    if event == "failed":
        assert found["reason"].startswith("ValueError: no luck, in process ")


def test_a_queued_run_is_its_jobs_until_that_leaves_the_queue(site: Site, squeue: Queue) -> None:
    lease.queue(site.runs / RUN, RUN, job="7_0", heartbeat=10)
    lease.queue(site.runs / OTHER, OTHER, job="7_1", heartbeat=10)
    squeue.list("7_0", "7_1")
    claims = Claims(site)
    for spec_id, found in claims.leases([RUN, OTHER]).items():
        claims.follow(spec_id, found)
    assert squeue.num_calls() == 1, "one call for all"
    assert kinds(claims) == []
    assert list(claims.queued()) == [RUN, OTHER]
    squeue.list("7_1")
    later = Claims(site)
    assert list(later.leases([RUN, OTHER])) == [OTHER]
    later.release(RUN)
    later.release(OTHER)
    assert lease.read(site.runs / RUN, RUN) is None
    assert lease.read(site.runs / OTHER, OTHER) is not None
    lease.take(site.runs / RUN, RUN, heartbeat=10)


def test_a_run_that_is_put_back_into_the_queue_stays_its_jobs(site: Site, squeue: Queue) -> None:
    squeue.list("7_0")
    with pytest.raises(KeyboardInterrupt), lease.take(site.runs / RUN, RUN, heartbeat=10, job="7_0"):
        raise KeyboardInterrupt("SIGTERM")
    found = lease.read(site.runs / RUN, RUN)
    assert found is not None
    assert (found.state, found.alive) == ("interrupted", False)
    assert list(Claims(site).leases([RUN])) == [RUN]
    squeue.list()
    assert Claims(site).leases([RUN]) == {}


def test_a_queue_that_does_not_answer_takes_no_run_from_its_job(site: Site, squeue: Queue) -> None:
    lease.queue(site.runs / RUN, RUN, job="7_0", heartbeat=10)
    (squeue.listed.parent / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact controller' >&2\nexit 1\n"
    )
    assert list(Claims(site).leases([RUN])) == [RUN]


def test_a_job_in_which_somebody_calls_the_local_launcher_is_not_waited_for_to_do_a_run(
    site: Site, squeue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job stays in the queue for as long as the command that would wait for it."""
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    squeue.list("15")
    request = Request(table="table8", rows="BYOL")
    evaluation = request.specs()[1].id  # whose pretraining is not finished
    assert worker.attempt(request.dumps(), evaluation, site, None) == worker.FAILED
    rewrite(site, evaluation, state="interrupted")
    assert Claims(site).leases([evaluation]) == {}

    listed = json.dumps({"request": request.dumps(), "id": evaluation}) + "\n"
    jobs = tmp_path / worker.digest_of_list(listed) / "jobs.jsonl"
    jobs.parent.mkdir()
    jobs.write_text(listed)
    assert worker._once(["--list", str(jobs), "0"], site, io.StringIO()) == worker.FAILED
    rewrite(site, evaluation, state="interrupted")
    assert Claims(site).leases([evaluation])[evaluation].job == "15", (
        "a job that was submitted for the run resumes it"
    )


def test_a_lease_that_stays_unreadable_is_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = site.runs / RUN
    folder.mkdir(parents=True)
    (folder / lease.FILE).write_text("{")
    claims = Claims(site)
    found = claims.leases([RUN])[RUN]
    assert claims.follow(RUN, found)["who"].startswith("an unknown process (lease.json cannot be read: ")
    assert list(claims.poll()) == []
    assert (list(claims.queued()), list(claims.doubtful())) == ([], [RUN])
    monkeypatch.setattr("reproduce.runs.claims.UNREADABLE", 0.0)
    (event,) = claims.poll()
    assert (event["event"], event["id"]) == ("failed", RUN)
    assert event["reason"].endswith(f"if no process executes the run, `invoke unlock {RUN}` frees it)")
    assert len(claims) == 0


def test_a_lease_that_is_readable_again_is_followed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduce.runs.claims.UNREADABLE", 0.0)
    with lease.take(site.runs / RUN, RUN, heartbeat=10):
        sound = (site.runs / RUN / lease.FILE).read_text()
        claims = Claims(site)
        claims.follow(RUN, claims.leases([RUN])[RUN])
        for text in ("{", sound, "{", sound):
            (site.runs / RUN / lease.FILE).write_text(text)
            assert list(claims.poll()) == []
            assert RUN in claims


@pytest.mark.parametrize(
    ("change", "index", "says"),
    [
        (lambda text: text.replace("table8", "table1"), "0", "has changed since it was submitted: submit"),
        (lambda text: text[:-1], "0", "has changed since it was submitted: submit the runs again."),
        (lambda text: text, "1", "has 1 lines, but line 1 is requested."),
        (lambda text: text, "-1", "has 1 lines, but line -1 is requested."),
    ],
)
def test_a_list_of_jobs_that_is_not_the_submitted_one_starts_nothing(
    change: Callable[[str], str], index: str, says: str, site: Site, tmp_path: Path
) -> None:
    request = Request(table="table8", rows="BYOL")
    listed = json.dumps({"request": request.dumps(), "id": request.specs()[0].id}) + "\n"
    jobs = tmp_path / worker.digest_of_list(listed) / "jobs.jsonl"
    jobs.parent.mkdir()
    with pytest.raises(UserError, match=r"jobs\.jsonl does not exist"):
        worker._once(["--list", str(jobs), index], site, io.StringIO())
    jobs.write_text(change(listed))
    with pytest.raises(UserError) as caught:
        worker._once(["--list", str(jobs), index], site, io.StringIO())
    assert says in str(caught.value)
