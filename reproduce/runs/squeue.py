"""Which of some Slurm jobs are still in its queue: one call of `squeue`, which works where accounting
(`sacct`) is off.

queued(["123_4", "125"])      # {"123_4": "RUNNING"}: 125 has left the queue, however it ended
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from reproduce.messages import NotFoundError

TIMEOUT = 60.0
"""Seconds for an answer; a busy controller takes some."""
UNKNOWN_JOB = "Invalid job id"
"""What squeue says, with an error's exit code, where the controller has forgotten all jobs that it was asked
for."""


def queued(jobs: Iterable[str]) -> dict[str, str]:
    """Of `jobs`, those that squeue lists, whoever submitted them, each with its state, such as PENDING or
    RUNNING.

    A job that is put back into the queue is listed all the time; one that has ended is not, once its
    processes are gone.

    Args:
        jobs: as squeue names them: `123`, or `123_4` for an element of an array.

    Raises:
        LookupError: there is no squeue on this machine.
        RuntimeError: it gave no answer, from which nothing follows about the jobs.
    """
    wanted = set(jobs)
    if not wanted:
        return {}
    listed = dict(
        line.split("|", 1)
        for line in _squeue(sorted({job.partition("_")[0] for job in wanted})).splitlines()
        if "|" in line
    )
    return {job: state for job, state in listed.items() if job in wanted}


def _squeue(ids: list[str]) -> str:
    """What squeue prints for jobs and arrays, each element of these on a line of its own."""
    command = ["squeue", "--noheader", "--array", f"--jobs={','.join(ids)}", "--format=%i|%T"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
        )
    except OSError:
        raise NotFoundError(
            "There is no squeue on this machine: ask from one of the cluster's login nodes."
        ) from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"squeue did not answer within {TIMEOUT:.0f} s: Slurm's controller may be down."
        ) from None
    if done.returncode and UNKNOWN_JOB not in done.stderr:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"squeue did not answer: {said}")
    return done.stdout
