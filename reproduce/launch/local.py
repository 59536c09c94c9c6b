"""Runs on this machine: one worker process for each GPU, or for each core of a CPU.

A worker does one run after the other, so that it imports torch once. It runs in a session of its own and stops when its standard input
ends, so no process outlives the command that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Queue
from threading import Thread
from typing import Any, Literal

from reproduce import environment
from reproduce.plan import Job
from reproduce.site import PROJECT, Site, site_file

GRACE = 10.0
"""Seconds that a worker has to stop before it is killed."""

MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
"""Keeps freed memory in the process: fresh pages from the system cost a small CPU step a fifth of its time."""

Watch = Callable[[dict[str, Any]], None]


def launch(jobs: list[Job], site: Site, watch: Watch) -> dict[str, str]:
    """Does the runs, each as soon as those that it needs are finished.

    Args:
        jobs: upstream first; what they need is among them or finished.
        watch: called with each event of a worker (`started`, `progress`, `finished`, `failed`).

    Returns:
        Why each run that did not finish has none, by id.
    """
    slots = _slots(site, len(jobs))
    events: Queue[tuple[_Worker, dict[str, Any] | None]] = Queue()
    waiting, unfinished = list(jobs), {job.spec.id for job in jobs}
    failed: dict[str, str] = {}
    workers = [_Worker(environment, events) for environment in slots]
    try:
        while waiting or any(worker.job for worker in workers):
            for worker in workers:
                if worker.job is None and (job := _next(waiting, unfinished, failed)):
                    worker.give(job)
            if not any(worker.job for worker in workers):
                break
            worker, event = events.get()
            if event is None:
                event = worker.died()
            if event is None:
                continue
            if event["event"] in ("finished", "failed"):
                worker.job = None
                unfinished.discard(event["id"])
            if event["event"] == "failed":
                failed[event["id"]] = f"{event['reason']} (log: runs/{event['id']}/log.txt)"
            watch(event)
    finally:
        for worker in workers:
            worker.stop()
    return failed


def at_once(site: Site) -> int:
    """How many runs go on at the same time where there are as many."""
    return len(_slots(site, sys.maxsize))


def device(site: Site) -> tuple[Literal["GPU", "CPU"], str]:
    """What each run takes one of, a GPU or a core, and its name as runs record it; finds out without torch."""
    gpus = [site.device.removeprefix("cuda:")] if site.device.startswith("cuda:") else _gpus() if site.device in ("auto", "cuda") else []
    if not gpus:
        return "CPU", environment.processor()
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={gpus[0]}"]
        return "GPU", subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "GPU", ""


def _next(waiting: list[Job], unfinished: set[str], failed: dict[str, str]) -> Job | None:
    """Takes the first job whose needs are done; jobs whose needs failed are failed with them."""
    for job in list(waiting):
        needs = {spec.id for spec in job.spec.needs()}
        if broken := needs & set(failed):
            waiting.remove(job)
            unfinished.discard(job.spec.id)
            first = sorted(broken)[0]
            failed[job.spec.id] = f"needs run {first}, which failed: {failed[first]}"
        elif not needs & unfinished:
            waiting.remove(job)
            return job
    return None


def _slots(site: Site, num_jobs: int) -> list[dict[str, str]]:
    """The environment of each worker: a GPU of its own, or one thread of the CPU.

    One thread, however many cores are free: sums depend on how they are shared out, and a run must not depend on what runs beside it.
    """
    places = {"MSBREG_SITE": str(site_file().resolve()) if site_file().exists() else "", "MLFLOW_TRACKING_URI": site.store}
    if site.device.startswith("cuda:"):
        return [places]
    gpus = _gpus() if site.device in ("auto", "cuda") else []
    count = max(1, min(site.jobs or len(gpus) or _cores(), num_jobs))
    if gpus:
        return [places | {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(count)]
    return [places | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | MEMORY] * count


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs that this process may use, without importing torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(index) for index, line in enumerate(filter(None, listed.stdout.splitlines())) if line.startswith("GPU")]


@dataclass(eq=False)
class _Worker:
    """One worker process, started again if it dies."""

    environment: dict[str, str]
    events: Queue[tuple[_Worker, dict[str, Any] | None]]
    job: Job | None = None
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def give(self, job: Job) -> None:
        """Starts `job` on this worker."""
        self.job = job
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "reproduce.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=PROJECT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
            Thread(target=self._read, args=(self.process,), daemon=True).start()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"request": job.request.dumps(), "id": job.spec.id}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It died between two runs: the reader reports it.

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # a killed process may leave half a line
                self.events.put((self, json.loads(line)))
        process.wait()
        self.events.put((self, None))

    def died(self) -> dict[str, Any] | None:
        """The event for the run that was lost with the process, if there was one."""
        assert self.process is not None
        code, self.process = self.process.returncode, None
        if self.job is None:
            return None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"event": "failed", "id": self.job.spec.id, "reason": f"its process ended with {how}"}

    def stop(self) -> None:
        """Ends the process: by the end of its input, by force where that is not enough."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
