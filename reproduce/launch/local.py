"""Runs on this machine: as many at once as there are GPUs, or cores of a CPU, or as the site's `jobs` says.

A worker does one run after the other, so that it imports torch once; a run that takes several devices has
processes of its own, started by torchrun. Workers run in sessions of their own and stop when their standard
input ends, so no process outlives the command that started it. Runs that somebody else does, here or on
another machine, are waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal

from reproduce.launch import variables
from reproduce.plan import Job
from reproduce.readiness import RefusedError
from reproduce.runs import environment
from reproduce.runs.claims import POLL, Claims
from reproduce.site import PROJECT, Site

GRACE = 30.0
"""Seconds that workers have to write their checkpoints and stop before they are killed."""

GPU = "CUDA_VISIBLE_DEVICES"

ENDS = ("finished", "failed", "busy")
"""Events after which a worker has no run."""

Watch = Callable[[dict[str, Any]], None]


def launch(jobs: list[Job], site: Site, watch: Watch) -> dict[str, str]:
    """Does the runs, each as soon as those that it needs are finished, and waits for those that somebody else
    does.

    Args:
        jobs: upstream first; what they need is among them or finished.
        watch: called with each event of a run (`attached`, `started`, `progress`, `finished`, `failed`,
            `freed`).

    Returns:
        Why each run that did not finish has none, by id.

    Raises:
        RefusedError: a run takes more devices than there are.
        KeyboardInterrupt: it was told to stop, and no process is left.
    """
    return _Launch(jobs, site, watch).run()


def at_once(site: Site) -> int:
    """How many runs of one device go on at the same time where there are as many."""
    return site.jobs or len(_places(site, sys.maxsize))


def device(site: Site) -> tuple[Literal["GPU", "CPU"], str]:
    """What each run takes one of, a GPU or a core, and its name as runs record it; finds out without
    torch."""
    gpus = _gpus_of(site)
    if not gpus:
        return "CPU", environment.processor()
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={gpus[0]}"]
        return "GPU", subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "GPU", ""


class _Launch:
    """Who does what at the moment."""

    def __init__(self, jobs: list[Job], site: Site, watch: Watch) -> None:
        self._watch = watch
        self._devices = {job.spec.id: job.devices(site) for job in jobs}
        self._places = _places(site, sum(self._devices.values()))
        self._free = list(range(len(self._places)))
        self._most = site.jobs or len(self._places)
        self._waiting, self._unfinished = list(jobs), {job.spec.id for job in jobs}
        self._failed: dict[str, str] = {}
        self._events: Queue[tuple[_Worker, dict[str, Any] | None]] = Queue()
        self._idle: dict[int, _Worker] = {}
        self._busy: list[_Worker] = []
        self._claims = Claims(site)
        self._runs = site.runs
        self._attached: dict[str, Job] = {}
        self._looked = -float("inf")

    def run(self) -> dict[str, str]:
        """As `launch`."""
        try:
            while self._waiting or self._busy or self._attached:
                self._attach()
                self._start()
                if self._busy or self._attached:
                    self._next()
        except KeyboardInterrupt:
            print(
                "Interrupted: what runs here writes a checkpoint and stops; the same command goes on from there.",
                flush=True,
            )
            raise
        finally:
            _stop([*self._busy, *self._idle.values()])
        return self._failed

    def _attach(self) -> None:
        """Leaves to others what they do already, and takes back what they have left."""
        if time.monotonic() - self._looked < POLL:
            return
        self._looked = time.monotonic()
        for event in self._claims.poll():
            self._tell(event)
        self._follow(list(self._waiting))

    def _follow(self, jobs: Sequence[Job]) -> None:
        """Of these waiting jobs, attaches to those that somebody does."""
        claimed = self._claims.leases([job.spec.id for job in jobs])
        for job in jobs:
            if job.spec.id in claimed:
                self._waiting.remove(job)
                self._attached[job.spec.id] = job
                self._tell(self._claims.follow(job.spec.id, claimed[job.spec.id]))

    def _start(self) -> None:
        """Starts jobs in their order as long as one can start and there is room for the first that can: a
        wide one is not overtaken."""
        while (
            len(self._busy) < self._most
            and (job := self._ready())
            and (taken := self._room(self._devices[job.spec.id]))
        ):
            self._claims.release(job.spec.id)
            self._waiting.remove(job)
            self._free = [place for place in self._free if place not in taken]
            worker = self._idle.pop(taken[0], None) if len(taken) == 1 else None
            _stop(
                [self._idle.pop(place) for place in taken if place in self._idle]
            )  # an idle worker keeps its GPU's memory
            worker = worker or _Worker(
                tuple(taken), _together([self._places[place] for place in taken]), self._events, self._runs
            )
            self._busy.append(worker)
            worker.give(job)

    def _ready(self) -> Job | None:
        """The first job whose needs are done; jobs whose needs failed are failed with them."""
        for job in list(self._waiting):
            needs = {spec.id for spec in job.spec.needs()}
            if broken := needs & self._failed.keys():
                first = min(broken)
                self._waiting.remove(job)
                self._unfinished.discard(job.spec.id)
                self._failed[job.spec.id] = f"needs run {first}, which failed: {self._failed[first]}"
            elif not needs & self._unfinished:
                return job
        return None

    def _room(self, num: int) -> list[int]:
        """So many free places, each on a device of its own; empty: there are not as many."""
        found: dict[str, int] = {}
        for place in self._free:
            found.setdefault(self._places[place].get(GPU, str(place)), place)
        return list(found.values())[:num] if len(found) >= num else []

    def _next(self) -> None:
        """Waits for an event of a worker, but no longer than until others are to be looked at."""
        try:
            worker, event = self._events.get(timeout=POLL if self._attached or self._waiting else None)
        except Empty:
            return
        if event is None:
            event = worker.died()
        if event is None:
            return
        if event["event"] == "started":
            worker.ending = False
        if event["event"] in ENDS:
            job, worker.job = worker.job, None
            self._busy.remove(worker)
            self._free = sorted((*self._free, *worker.places))
            if worker.serves:
                self._idle[worker.places[0]] = worker
            if event["event"] == "busy":  # somebody was faster, or the process was about to end
                assert job is not None
                self._waiting.insert(0, job)
                self._follow([job])
                return
        self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        """Notes what an event changes, and passes it on."""
        kind, spec_id = event["event"], event["id"]
        job = self._attached.pop(spec_id, None) if kind in ("finished", "failed", "freed") else None
        if kind == "freed":
            assert job is not None
            self._waiting.insert(0, job)
        elif kind in ("finished", "failed"):
            self._unfinished.discard(spec_id)
        if kind == "failed":
            self._failed[spec_id] = f"{event['reason']} (log: runs/{spec_id}/log.txt)"
        self._watch(event)


def _places(site: Site, most: int) -> list[dict[str, str]]:
    """The environment of each process: a GPU of its own, or one thread of the CPU.

    Args:
        most: as many are needed at the most.

    Raises:
        RefusedError: there are fewer GPUs than a run takes.
    """
    gpus = _gpus_of(site)
    own = variables(site, gpus=bool(gpus))
    if gpus and len(gpus) < site.devices:
        raise RefusedError(
            f"devices is {site.devices}, but {len(gpus)} GPU can be used here: set it to at most that in the site file."
        )
    if site.device.startswith("cuda:"):
        return [own]
    count = max(
        1, min(site.jobs * (1 if gpus else site.devices) or len(gpus) or _cores(), most), site.devices
    )
    if gpus:
        return [own | {GPU: gpus[index % len(gpus)]} for index in range(count)]
    return [own] * count


def _together(places: Sequence[dict[str, str]]) -> dict[str, str]:
    """The environment of a run on several places."""
    gpus = [place[GPU] for place in places if GPU in place]
    return places[0] | ({GPU: ",".join(gpus)} if gpus else {})


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus_of(site: Site) -> list[str]:
    """The GPUs that runs of a site may use; empty: they take cores."""
    if site.device.startswith("cuda:"):
        return [site.device.removeprefix("cuda:")]
    return _gpus() if site.device in ("auto", "cuda") else []


def _gpus() -> list[str]:
    """The GPUs that this process may use, without importing torch."""
    if GPU in os.environ:
        return [name for name in os.environ[GPU].split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        str(index)
        for index, line in enumerate(filter(None, listed.stdout.splitlines()))
        if line.startswith("GPU")
    ]


@dataclass(eq=False)
class _Worker:
    """A process for runs of one device, started again if it dies; or the processes of one run on several."""

    places: tuple[int, ...]
    environment: dict[str, str]
    events: Queue[tuple[_Worker, dict[str, Any] | None]]
    runs: Path = PROJECT / "runs"
    job: Job | None = None
    process: subprocess.Popen[str] | None = field(default=None, repr=False)
    ending: bool = False
    """Whether the process may have ended before it got the job: one that has done a run may be told to stop,
    and has not begun this one."""

    @property
    def serves(self) -> bool:
        """Whether it takes one run after the other."""
        return len(self.places) == 1

    def give(self, job: Job) -> None:
        """Starts `job` on this worker."""
        self.job = job
        if not self.serves:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(self.places)}"]
            with _log(self.runs / job.spec.id) as log:
                self._run(
                    [*torchrun, "-m", "reproduce.worker", "--leash", job.request.dumps(), job.spec.id], log
                )
            return
        self.ending = self.process is not None
        if self.process is None:
            self._run(["-m", "reproduce.worker"])
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"request": job.request.dumps(), "id": job.spec.id}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It died between two runs: the reader reports it.

    def _run(self, arguments: Sequence[str], log: Any = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=PROJECT,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        end: dict[str, Any] | None = None
        for line in process.stdout:
            if not line.endswith("\n"):  # a killed process may leave half a line
                continue
            event = json.loads(line)
            if event["event"] in ENDS and not self.serves:
                end = event  # the other processes of the run may still be there, on devices that the next run is to have
            else:
                self.events.put((self, event))
        process.wait()
        if end:
            self.events.put((self, end))
        self.events.put((self, None))

    def died(self) -> dict[str, Any] | None:
        """The event for the run that was lost with the process, if there was one; `busy` for one that another
        process is to do."""
        assert self.process is not None
        code, self.process = self.process.returncode, None
        if self.job is None:
            return None
        if self.ending:
            return {"event": "busy", "id": self.job.spec.id}
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"event": "failed", "id": self.job.spec.id, "reason": f"its process ended with {how}"}

    def ask(self) -> None:
        """Lets the process end, by the end of its input."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def kill(self) -> None:
        """Ends the process, and those that it has started, by force."""
        import psutil

        if self.process is None or self.process.poll() is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (
                *psutil.Process(self.process.pid).children(recursive=True),
                psutil.Process(self.process.pid),
            ):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


def _log(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """The log of a run, for what torchrun says; the terminal, where no log can be written: then the run, too,
    says why."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / "log.txt").open("a")
    except OSError:
        return contextlib.nullcontext()


def _stop(workers: Sequence[_Worker]) -> None:
    """Ends workers: all are asked, and those that are not gone in time, or when it is asked again, are
    killed."""
    for worker in workers:
        worker.ask()
    deadline = time.monotonic() + GRACE
    try:
        for worker in workers:
            if worker.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.kill()
