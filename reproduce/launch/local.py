"""Runs on this machine: by default one or several small ones on each GPU, or one on each core without a GPU.

A worker executes one run after the other, so that it imports torch only once. Runs that share a GPU have a
worker each. A run on several devices has processes of its own, started by torchrun. Workers run in sessions
of their own and stop when their standard input closes, so no process outlives the command that started it.
The launcher waits for runs that other processes execute, here or on another machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal

from reproduce.launch import variables
from reproduce.messages import counted
from reproduce.plan import Job
from reproduce.readiness import RefusedError
from reproduce.resources import sharing
from reproduce.runs import cores, environment
from reproduce.runs.claims import POLL, Claims
from reproduce.runs.cores import Share
from reproduce.site import PROJECT, Site
from reproduce.spec import Spec

GRACE = 30.0
"""Seconds for workers to write their checkpoints and stop, before they are killed."""

GPU = "CUDA_VISIBLE_DEVICES"

ENDS = ("finished", "failed", "busy")
"""Events after which a worker is free."""

Watch = Callable[[dict[str, Any]], None]


def launch(jobs: list[Job], site: Site, watch: Watch) -> dict[str, str]:
    """Execute the runs, each once the runs that it needs are finished, and wait for those of other processes.

    Args:
        jobs: the runs, upstream first; whatever they need is among them or finished.
        watch: called with each event of a run (`attached`, `starting`, `started`, `doing`, `progress`,
            `finished`, `failed`, `skipped`, `freed`).

    Returns:
        The reason of each run that did not finish, by id.

    Raises:
        RefusedError: a run needs more devices than there are.
        KeyboardInterrupt: the command received a stop request; no process is left.
    """
    return _Launch(jobs, site, watch).run()


def at_once(site: Site) -> int:
    """Return the number of one-device runs that are executed at the same time, as forecasts count them.

    With `runs_per_gpu` = `auto` that is one on each GPU: several small ones share its time.
    """
    if site.jobs:
        return site.jobs
    shared = site.runs_per_gpu if isinstance(site.runs_per_gpu, int) and _gpus_of(site) else 1
    return shared * len(_places(site, sys.maxsize))


def device(site: Site) -> tuple[Literal["GPU", "CPU"], str]:
    """Return the kind of device that each run uses, a GPU or a core, and its name as runs record it.

    It is found without importing torch.
    """
    gpus = _gpus_of(site)
    if not gpus:
        return "CPU", environment.processor()
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={gpus[0]}"]
        return "GPU", subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "GPU", ""


def memory(site: Site) -> int | None:
    """Return the memory in bytes of the smallest GPU that runs may use; None if it is unknown."""
    gpus = tuple(_gpus_of(site))
    return _memory(gpus) if gpus else None


@cache
def _memory(gpus: tuple[str, ...]) -> int | None:
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(
            [*command, f"--id={','.join(gpus)}"], capture_output=True, text=True, timeout=30, check=True
        )
        return min(int(line) for line in listed.stdout.splitlines()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):  # such as a share of a GPU (MIG)
        return None


def cores_of(jobs: Sequence[Job], site: Site) -> dict[str, Share]:
    """Return the share of this machine's cores that each run has, by id.

    It is that of a launch with enough runs for all devices. A launch of fewer gives each run more.
    """
    return _cores_of(jobs, site, _shares(jobs, site), _num_places(site, _gpus_of(site), sys.maxsize))


def _cores_of(
    jobs: Sequence[Job], site: Site, shares: Mapping[str, Fraction], num_places: int
) -> dict[str, Share]:
    """Return the share of the cores that each run has in a launch with so many places, by id.

    Args:
        shares: share of a device that each run takes.
    """
    total, found = _cores(), {}
    for job in jobs:
        devices, together = job.devices(site), shares[job.spec.id].denominator
        processes = max(num_places, devices) * together
        if site.jobs:
            processes = min(processes, site.jobs * devices)
        found[job.spec.id] = Share(total, processes, together)
    return found


class _Launch:
    """The state of a launch: waiting jobs, workers, and the runs of other processes."""

    def __init__(self, jobs: list[Job], site: Site, watch: Watch) -> None:
        self._watch = watch
        self._devices = {job.spec.id: job.devices(site) for job in jobs}
        self._places = _places(site, sum(self._devices.values()))
        self._shares = _shares(jobs, site)
        self._cores = _cores_of(jobs, site, self._shares, len(self._places))
        self._room = sharing.Room(len(self._places))
        self._most = site.jobs or sys.maxsize
        self._waiting, self._unfinished = list(jobs), {job.spec.id for job in jobs}
        self._failed: dict[str, str] = {}
        self._events: Queue[tuple[_Worker, dict[str, Any] | None]] = Queue()
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self._claims = Claims(site)
        self._runs = site.runs
        self._attached: dict[str, Job] = {}
        self._looked = -float("inf")

    def run(self) -> dict[str, str]:
        """See `launch`."""
        try:
            while self._waiting or self._busy or self._attached:
                self._attach()
                self._start()
                if self._busy or self._attached:
                    self._next()
        except KeyboardInterrupt:
            print(
                "Interrupted: the runs of this command stop at a checkpoint; it resumes them.",
                flush=True,
            )
            raise
        finally:
            _stop([*self._busy, *self._idle])
        return self._failed

    def _attach(self) -> None:
        """Follow the runs that other processes execute, and reclaim the ones that they gave up."""
        if time.monotonic() - self._looked < POLL:
            return
        self._looked = time.monotonic()
        for event in self._claims.poll():
            self._handle(event)
        self._follow(list(self._waiting))

    def _follow(self, jobs: Sequence[Job]) -> None:
        """Attach to those of these waiting jobs that another process executes."""
        claimed = self._claims.leases([job.spec.id for job in jobs])
        for job in jobs:
            if job.spec.id in claimed:
                self._waiting.remove(job)
                self._attached[job.spec.id] = job
                self._handle(self._claims.follow(job.spec.id, claimed[job.spec.id]))

    def _start(self) -> None:
        """Start jobs in order, as long as enough devices are free for the first that is ready.

        A job that waits for several devices, or for a whole one, is not overtaken by later ones.
        """
        while len(self._busy) < self._most and (job := self._ready()) and (taken := self._free_places(job)):
            self._claims.release(job.spec.id)
            self._waiting.remove(job)
            worker = self._worker(job, taken)
            self._busy.append(worker)
            self._watch({"event": "starting", "id": job.spec.id})
            worker.give(job)

    def _ready(self) -> Job | None:
        """Return the first job whose needs are finished; fail the jobs whose needs have failed."""
        for job in list(self._waiting):
            needs = {spec.id for spec in job.spec.needs()}
            if broken := needs & self._failed.keys():
                first = min(broken)
                self._waiting.remove(job)
                self._unfinished.discard(job.spec.id)
                self._failed[job.spec.id] = f"needs run {first}, which failed: {self._failed[first]}"
                self._watch({"event": "skipped", "id": job.spec.id, "reason": self._failed[job.spec.id]})
            elif not needs & self._unfinished:
                return job
        return None

    def _free_places(self, job: Job) -> list[int]:
        """Return the places for a job, each on a different device, or none if there are too few.

        An evaluation prefers a place with a worker that waits, whose libraries are loaded.
        """
        num, places = self._devices[job.spec.id], self._room.having(self._shares[job.spec.id])
        if num == 1 and job.spec.needs():
            warm = [worker.places[0] for worker in self._suited(job)]
            places.sort(key=lambda place: warm.index(place) if place in warm else len(warm))
        return places[:num] if len(places) >= num else []

    def _suited(self, job: Job) -> list[_Worker]:
        """Return the idle workers that may execute a job, those that used its encoder last first."""
        share, encoder = self._shares[job.spec.id], _encoder(job.spec)
        suited = [worker for worker in self._idle if worker.share == share]
        return sorted(suited, key=lambda worker: worker.encoder != encoder)

    def _worker(self, job: Job, places: list[int]) -> _Worker:
        """Return the worker that executes a job on these places, after taking its share of them."""
        share = self._shares[job.spec.id]
        self._room.take(places, share)
        worker = next((each for each in self._suited(job) if each.places == tuple(places)), None)
        if worker:
            self._idle.remove(worker)
        surplus = [each for place in places for each in self._surplus(place)]
        self._idle = [each for each in self._idle if each not in surplus]
        _stop(surplus)  # they would keep memory of their GPU
        own = _merged([self._places[place] for place in places])
        processes = self._cores[job.spec.id].processes
        return worker or _Worker(
            tuple(places),
            own | {environment.SHARING: str(share.denominator), cores.PROCESSES: str(processes)},
            self._events,
            self._runs,
            share=share,
        )

    def _surplus(self, place: int) -> list[_Worker]:
        """Return the idle workers of a device that have no room next to its runs."""
        room, surplus = self._room.free(place), []
        for worker in self._idle:
            if worker.places == (place,):
                if worker.share > room:
                    surplus.append(worker)
                else:
                    room -= worker.share
        return surplus

    def _next(self) -> None:
        """Wait for an event of a worker, at most until the leases are due to be read again."""
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
            self._room.give_back(worker.places, worker.share)
            if worker.serves:
                self._idle.append(worker)
            if event["event"] == "busy":  # another process was faster, or this one was about to end
                assert job is not None
                self._waiting.insert(0, job)
                self._follow([job])
                return
        self._handle(event)

    def _handle(self, event: dict[str, Any]) -> None:
        """Apply an event to the state, and pass it on."""
        kind, spec_id = event["event"], event["id"]
        job = self._attached.pop(spec_id, None) if kind in ("finished", "failed", "freed") else None
        if kind == "freed":
            assert job is not None
            self._waiting.insert(0, job)
        elif kind in ("finished", "failed"):
            self._unfinished.discard(spec_id)
        if kind == "failed":
            self._failed[spec_id] = f"{event['reason']} (log: {self._runs / spec_id}/log.txt)"
        self._watch(event)


def _places(site: Site, most: int) -> list[dict[str, str]]:
    """Return the environment of the runs on each GPU, or on each core, where a run has one thread.

    Args:
        most: maximum number of places that are needed.

    Raises:
        RefusedError: there are fewer GPUs than a run needs.
    """
    gpus = _gpus_of(site)
    own = variables(site, gpus=bool(gpus))
    if gpus and len(gpus) < site.devices:
        raise RefusedError(
            f"devices is {site.devices}, but only {counted(len(gpus), 'GPU')} can be used on this machine: "
            f"set devices to {len(gpus)} or less in the site file."
        )
    if site.device.startswith("cuda:"):
        return [own]
    count = _num_places(site, gpus, most)
    return [own | {GPU: gpu} for gpu in gpus[:count]] if gpus else [own] * count


def _num_places(site: Site, gpus: Sequence[str], most: int) -> int:
    """Return the number of GPUs, or of cores without any, that runs use at the same time.

    Args:
        most: maximum number of places that are needed.
    """
    if site.device.startswith("cuda:"):
        return 1
    per_job = 1 if gpus else site.devices
    wanted = site.jobs * per_job or len(gpus) or _cores()
    count = max(1, min(wanted, most), site.devices)
    return min(count, len(gpus)) if gpus else count


def _shares(jobs: Sequence[Job], site: Site) -> dict[str, Fraction]:
    """Return the share of each of its devices that a run takes, by id; a run on cores takes all of them."""
    together = sharing.of_jobs(jobs, site, gpus=len(_gpus_of(site)), card=memory(site))
    return {spec_id: Fraction(1, num) for spec_id, num in together.items()}


def _merged(places: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the environment of a run on several places."""
    gpus = [place[GPU] for place in places if GPU in place]
    return places[0] | ({GPU: ",".join(gpus)} if gpus else {})


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return cores.usable()


def _gpus_of(site: Site) -> list[str]:
    """Return the GPUs that runs of a site may use, or none if runs use cores."""
    if site.device.startswith("cuda:"):
        index = int(site.device.removeprefix("cuda:"))
        return _gpus()[index : index + 1]
    return _gpus() if site.device in ("auto", "cuda") else []


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, without importing torch."""
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
    """A process for runs on one device, restarted if it dies; or the processes of one run on several."""

    places: tuple[int, ...]
    environment: dict[str, str]
    events: Queue[tuple[_Worker, dict[str, Any] | None]]
    runs: Path = PROJECT / "runs"
    job: Job | None = None
    share: Fraction = Fraction(1)
    """Share of its device that its runs take, each the same."""
    encoder: str = ""
    """Id of the pretraining that it executed last, or that of the encoder that it evaluated last."""
    process: subprocess.Popen[str] | None = field(default=None, repr=False)
    ending: bool = False
    """True if the process may have ended before it received the job: after a run, a stop request ends it
    before the next."""

    @property
    def serves(self) -> bool:
        """True if the worker takes one run after the other."""
        return len(self.places) == 1

    def give(self, job: Job) -> None:
        """Start `job` on this worker."""
        self.job, self.encoder = job, _encoder(job.spec)
        if not self.serves:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(self.places)}"]
            with _log(self.runs / job.spec.id) as log:
                self._run(
                    [*torchrun, "-m", "reproduce.worker", "--leash", job.request.dumps(), job.spec.id], log
                )
            return
        self.ending = self.process is not None
        if self.process is None:
            # Until the process redirects its errors to the log of each run, those of libraries go there, too.
            with _log(self.runs / job.spec.id) as log:
                self._run(["-m", "reproduce.worker"], log)
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"request": job.request.dumps(), "id": job.spec.id}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process died between two runs; the reader reports it

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
            if not line.endswith("\n"):  # a killed process may leave an incomplete line
                continue
            event = json.loads(line)
            if event["event"] in ENDS and not self.serves:
                end = event  # held back: the run's other processes may still occupy devices of the next run
            else:
                self.events.put((self, event))
        process.wait()
        if end:
            self.events.put((self, end))
        self.events.put((self, None))

    def died(self) -> dict[str, Any] | None:
        """Return the event for the run that was lost with the process; None if it had no run.

        The event is `busy` if another process is to execute the run.
        """
        assert self.process is not None
        code, self.process = self.process.returncode, None
        if self.job is None:
            return None
        if self.ending:
            return {"event": "busy", "id": self.job.spec.id}
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"event": "failed", "id": self.job.spec.id, "reason": f"its process ended with {how}"}

    def close(self) -> None:
        """Close the input of the process, which then ends."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def kill(self) -> None:
        """Kill the process and its descendants."""
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


def _encoder(spec: Spec) -> str:
    """Return the id of the encoder that a run trains or evaluates."""
    return next((needed.id for needed in spec.needs()), spec.id)


def _log(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """Return the log of a run, for what its processes print; the terminal if no log can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / "log.txt").open("a")
    except OSError:
        return contextlib.nullcontext()


def _stop(workers: Sequence[_Worker]) -> None:
    """Close all workers, then kill those that are still alive after GRACE or on a second request."""
    for worker in workers:
        worker.close()
    deadline = time.monotonic() + GRACE
    try:
        for worker in workers:
            if worker.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.kill()
