"""The Slurm jobs that are still in the queue, from one call of `squeue`.

    queued(["123_4", "125"])      # {"123_4": "RUNNING"}: 125 has left the queue, with or without success

Unlike `sacct`, `squeue` works without accounting.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from reproduce.messages import NotFoundError, age

TIMEOUT = 60.0
"""Seconds to wait for an answer; a busy controller takes a while."""
UNKNOWN_JOB = "Invalid job id"
"""Error message of squeue if the controller has forgotten all requested jobs."""


def queued(jobs: Iterable[str]) -> dict[str, str]:
    """Return the jobs that squeue lists, of any user, with their states, such as PENDING or RUNNING.

    A requeued job is listed throughout. A job that has ended is not listed once its processes are gone.

    Args:
        jobs: job ids in squeue's notation: `123`, or `123_4` for an element of an array.

    Raises:
        LookupError: this machine has no squeue.
        RuntimeError: squeue did not answer, so the jobs' states are unknown.
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
    """Return the output of squeue for jobs and arrays, one line for each element."""
    command = ["squeue", "--noheader", "--array", f"--jobs={','.join(ids)}", "--format=%i|%T"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
        )
    except OSError:
        raise NotFoundError(
            "squeue is not available on this machine: run the command on a login node of the cluster."
        ) from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"squeue did not answer within {age(TIMEOUT)}: Slurm's controller may be down."
        ) from None
    if done.returncode and UNKNOWN_JOB not in done.stderr:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"squeue did not answer: {said}")
    return done.stdout
