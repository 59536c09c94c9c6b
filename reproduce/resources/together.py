"""Several runs at once in one job of a scheduler, which share its GPU.

    python -m reproduce.resources.together FILE ELEMENT NUM

FILE is a scheduler's list, ELEMENT the number of the job in its array, and NUM the maximum number of runs in
each job. The lines NUM * ELEMENT and following (from 0) are executed, each by a `reproduce.worker --list` of
its own. A run that fails stops no other. A stop request reaches all of them. The exit code is 143 if a run
was interrupted, else 1 if one failed, else 0.

A requeued job resumes the interrupted runs. It does not repeat those that finished or failed in it before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from reproduce import site as sites
from reproduce.messages import UserError
from reproduce.runs import cores, environment, output, processes
from reproduce.runs import lease as leases
from reproduce.site import Site
from reproduce.worker import FAILED, INTERRUPTED, listed

ENDED = ("finished", "failed")
"""States of runs that the job does not execute again."""


class Together:
    """The processes of the runs of a job."""

    def __init__(self, site: Site, job: str) -> None:
        self._site, self._job = site, job
        self._running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        """Id of each run and its process, by the number of the process."""
        self._stopped = False

    def stop(self, *_: object) -> None:
        """Pass a stop request on; a handler of signals."""
        self._stopped = True
        for number in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGTERM)

    def execute(self, path: Path, indices: Iterable[int]) -> int:
        """Execute the runs on these lines of a list, and return the exit code of the job."""
        orders = listed(path)
        ids = {index: orders[index][1] for index in indices if index < len(orders)}
        ended = {index: self._state(spec_id) for index, spec_id in ids.items()}
        for index, state in ended.items():
            if state in ENDED:
                print(f"Run {ids[index]} {state} when this job ran before.", file=sys.stderr, flush=True)
        starting = [index for index, state in ended.items() if state not in ENDED]
        for index in starting:
            self._start(path, index, ids[index], len(starting))
        if self._stopped:  # perhaps while a process started
            self.stop()
        codes = [FAILED for state in ended.values() if state == "failed"]
        while self._running:
            codes.append(self._next())
        return max(codes, default=0)  # INTERRUPTED is the largest

    def _state(self, spec_id: str) -> str:
        """Return how a run ended when this job ran before; "" if it has not ended."""
        found = leases.read(self._site.runs / spec_id, spec_id)
        return found.state if found and found.job == self._job and found.state in ENDED else ""

    def _start(self, path: Path, index: int, spec_id: str, num: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "reproduce.worker", "--list", str(path), str(index)],
            env=os.environ | {environment.SHARING: str(num), cores.PROCESSES: str(num)},
        )
        self._running[process.pid] = spec_id, process

    def _next(self) -> int:
        """Wait for the next run to end, and return 0, FAILED or INTERRUPTED."""
        # A process that has ended keeps its number until its `wait`, so `stop` never reaches another process.
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        spec_id, process = self._running.pop(ended.si_pid)
        code = process.wait()
        if code == 0:
            return 0
        if code in (INTERRUPTED, -signal.SIGTERM) or (code < 0 and self._stopped):
            return INTERRUPTED
        # A killed process has recorded nothing, and the job stays in the queue for the other runs.
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = f"its process ended with {how}"
        with contextlib.suppress(OSError):  # the other runs continue
            leases.fail(self._site.runs / spec_id, spec_id, job=self._job, reason=reason)
        return FAILED


def main() -> int:
    """Run the command line of this module and return the exit code."""
    output.prepare()
    path, element, num = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    together = Together(sites.load(), processes.job_of_environment())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, together.stop)
    try:
        return together.execute(path, range(num * element, num * (element + 1)))
    except UserError as error:
        print(error, file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
