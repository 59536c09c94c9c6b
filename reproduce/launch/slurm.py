"""Runs as jobs of a Slurm cluster: one array for each shape of resources, evaluations after the pretrainings
that they need.

    launcher = "slurm"        # in the site file, with what the cluster wants in its table [slurm]

A job is `srun python -m reproduce.worker --list runs/slurm/<digest>/jobs.jsonl INDEX`; with several devices,
torchrun in its place. Before the time limit Slurm tells the script, the run writes a checkpoint and stops,
and the job goes back into the queue. It does not after a failure, nor after `scancel`. Lists, scripts and
logs stay in `runs/slurm`, as a job may start from them again at any time.

What keeps a run from being done twice is the lease, which its job takes when it starts, not this launcher.
The lease that says *queued*, written as soon as sbatch has given a number, only spares others the submitting.
Whoever is killed between the two leaves jobs that nobody
knows of: they run and are found by their leases; had a second command submitted the same runs before, its
jobs end at once where a run is taken or finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import filelock

from reproduce.launch import variables
from reproduce.messages import counted
from reproduce.plan import Job
from reproduce.runs import lease as leases
from reproduce.runs.claims import POLL, Claims
from reproduce.runs.files import write_atomic
from reproduce.runs.lease import Lease
from reproduce.site import PROJECT, Site
from reproduce.spec import Pretrain

FOLDER = "slurm"
"""Of the runs' folder: lists, scripts and logs of jobs."""
TIMEOUT = 300.0
"""Seconds for sbatch, which tries again by itself where the controller is busy."""

Watch = Callable[[dict[str, Any]], None]
Submit = Callable[[Sequence[Job], Sequence[str]], str]
"""Submits jobs that start after some others of Slurm's have ended; returns the name of the array."""


class SubmitError(ConnectionError):
    """Slurm does not take the jobs; the message says why, and what it has taken before."""


def launch(jobs: list[Job], site: Site, watch: Watch) -> dict[str, str]:
    """Submits the runs that nobody does, and waits for all of them; the jobs do not need this process.

    Args:
        jobs: upstream first; what they need is among them or finished.
        watch: called with each event of a run (`attached`, `started`, `progress`, `finished`, `failed`,
            `freed`), and with `submitted` for each array, with the id of its first run.

    Returns:
        Why each run that did not finish has none, by id.

    Raises:
        SubmitError: Slurm did not take the jobs, or cannot.
        KeyboardInterrupt: it was told to stop; what was submitted goes on.
    """
    return _Launch(jobs, site, watch).run() if jobs else {}


def scripts(jobs: Sequence[Job], site: Site) -> list[str]:
    """What `launch` would give to sbatch for runs that nobody does, one text for each array; ARRAY1 stands
    for the number of the first.

    Raises:
        SubmitError: the site cannot be had on a cluster.
    """
    texts: list[str] = []

    def note(part: Sequence[Job], after: Sequence[str]) -> str:
        texts.append(_script(part, after, site))
        return f"ARRAY{len(texts)}"

    _submit(jobs, site, {}, note)
    return texts


def at_once(site: Site) -> int:
    """How many runs of one device go on at the same time where there are as many, as far as the site limits
    it."""
    return site.slurm.max_at_once * site.devices or sys.maxsize


def device(site: Site) -> tuple[Literal["GPU", "CPU"], str]:
    """What each run takes one of; of which model is known when it runs."""
    return ("GPU" if _gpus(site) else "CPU"), ""


class _Launch:
    """What waits, and what is followed."""

    def __init__(self, jobs: list[Job], site: Site, watch: Watch) -> None:
        self._site, self._watch = site, watch
        self._waiting, self._unfinished = list(jobs), {job.spec.id: job for job in jobs}
        self._failed: dict[str, str] = {}
        self._claims = Claims(site)
        self._jobs: dict[str, str] = {}
        """What squeue calls the job that does a run; empty: a process does it that is none of Slurm's."""

    def run(self) -> dict[str, str]:
        """As `launch`."""
        try:
            while self._waiting or len(self._claims):
                self._give_up()
                self._attach()
                if self._ready():
                    with _lock(
                        self._site
                    ):  # who looks and submits does so alone: two commands that start together submit a run once
                        self._attach()
                        self._send(self._ready())
                for event in self._claims.poll():
                    self._tell(event)
                if self._waiting or len(self._claims):
                    time.sleep(POLL)
        except KeyboardInterrupt:
            if arrays := _arrays(name for spec_id, name in self._jobs.items() if spec_id in self._claims):
                print(
                    f"Slurm's jobs go on: {' '.join(arrays)}. The same command attaches to them; `scancel {' '.join(arrays)}` cancels them."
                )
            raise
        return self._failed

    def _give_up(self) -> None:
        """Fails the waiting jobs whose needs have failed."""
        for job in list(self._waiting):
            if broken := {spec.id for spec in job.spec.needs()} & self._failed.keys():
                self._waiting.remove(job)
                self._fail(job.spec.id, _needed(min(broken), self._failed))

    def _attach(self) -> None:
        """Leaves to others what they do already."""
        claimed = self._claims.leases([job.spec.id for job in self._waiting])
        for job in [job for job in self._waiting if job.spec.id in claimed]:
            self._watch(self._follow(job, claimed[job.spec.id]))
        for job in self._waiting:
            self._claims.release(job.spec.id)

    def _follow(self, job: Job, lease: Lease) -> dict[str, Any]:
        """Takes a job that somebody does from those that wait; returns the event that says so."""
        self._waiting.remove(job)
        self._jobs[job.spec.id] = lease.job
        return self._claims.follow(job.spec.id, lease)

    def _ready(self) -> list[Job]:
        """The waiting jobs that can be queued: what they need is finished, queued, or ready too."""
        ready: dict[str, Job] = {}
        for job in self._waiting:
            if all(
                spec.id in ready or self._jobs.get(spec.id)
                for spec in job.spec.needs()
                if spec.id in self._unfinished
            ):
                ready[job.spec.id] = job
        return list(ready.values())

    def _send(self, jobs: Sequence[Job]) -> None:
        """Submits jobs, and follows them from then on."""
        queued = {
            spec_id: name for spec_id, name in self._jobs.items() if name and spec_id in self._unfinished
        }
        before = set(queued.values())

        def submit(part: Sequence[Job], after: Sequence[str]) -> str:
            with _uninterrupted():
                array = _sbatch(part, after, self._site, taken=_arrays(set(self._jobs.values()) - before))
                for index, job in enumerate(part):
                    self._note(job, f"{array}_{index}")
            self._watch(
                {
                    "event": "submitted",
                    "id": part[0].spec.id,
                    "who": f"Slurm as array {array}",
                    "num": len(part),
                }
            )
            return array

        _submit(jobs, self._site, queued, submit)

    def _note(self, job: Job, name: str) -> None:
        """Says in the lease of a run that it is queued, and follows it."""
        folder = self._site.runs / job.spec.id
        with contextlib.suppress(
            leases.BusyError
        ):  # a process that is none of Slurm's was faster: the job will find that, and end
            leases.queue(folder, job.spec.id, job=name, heartbeat=self._site.heartbeat)
        lease = leases.read(folder)
        assert lease is not None
        self._follow(
            job, replace(lease, state="queued", progress=None)
        )  # so that its start, even if it was already, is an event

    def _tell(self, event: dict[str, Any]) -> None:
        """Notes what an event changes, and passes it on."""
        kind, spec_id = event["event"], event["id"]
        if kind == "freed" and not self._jobs[spec_id]:
            self._waiting.append(self._unfinished[spec_id])  # its process is gone: Slurm may have it
            self._watch(event)
        elif kind == "freed":  # not submitted again, as whoever cancelled it has meant that
            why = f" ({event['reason']})" if event["reason"] else ""
            self._fail(
                spec_id,
                f"Slurm job {self._jobs[spec_id]} ended without a result{why}{self._log(self._jobs[spec_id])}",
            )
        elif kind == "failed":
            broken = {spec.id for spec in self._unfinished[spec_id].spec.needs()} & self._failed.keys()
            log = f"{event['reason']} (log: runs/{spec_id}/log.txt)"
            self._fail(spec_id, _needed(min(broken), self._failed) if broken else log)
        else:
            if kind == "finished":
                self._unfinished.pop(spec_id)
            self._watch(event)

    def _fail(self, spec_id: str, reason: str) -> None:
        self._unfinished.pop(spec_id)
        self._failed[spec_id] = reason
        self._watch({"event": "failed", "id": spec_id, "reason": reason})

    def _log(self, name: str) -> str:
        """Where a job's own output is; nothing, if it never began."""
        found = next(self._site.runs.glob(f"{FOLDER}/*/{name}.txt"), None)
        return f" (log: runs/{found.relative_to(self._site.runs)})" if found else ""


def _needed(first: str, failed: dict[str, str]) -> str:
    return f"needs run {first}, which failed: {failed[first]}"


def _submit(jobs: Sequence[Job], site: Site, queued: dict[str, str], submit: Submit) -> None:
    """Submits jobs, upstream first, one array for each shape of resources.

    A job waits for others to end in whatever way, not for their success: a pretraining that fails, or is
    cancelled, must not keep the evaluations of the others in the queue for ever. Its own evaluation starts,
    finds nothing and says so. One that is put back into the queue has not ended.

    Args:
        queued: what squeue calls the jobs of runs that others have submitted.
    """
    _check(site)
    own: dict[str, str] = {}
    rest = list(jobs)
    while rest:
        ids = {job.spec.id for job in rest}
        now = [job for job in rest if not {spec.id for spec in job.spec.needs()} & ids]
        rest = [job for job in rest if job not in now]
        groups: dict[tuple[int, bool], list[Job]] = {}
        for job in now:
            groups.setdefault(
                (job.devices(site), any(spec.id in own or spec.id in queued for spec in job.spec.needs())), []
            ).append(job)
        for group in groups.values():
            needs = {spec.id for job in group for spec in job.spec.needs()}
            after = sorted({own.get(each) or queued[each] for each in needs if each in own or each in queued})
            for part in _parts(group, site.slurm.array_size):
                array = submit(part, after)
                own |= {job.spec.id: array for job in part}


def _parts(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _check(site: Site) -> None:
    """Raises SubmitError where the site cannot be had on a cluster."""
    if site.device.startswith("cuda:"):
        raise SubmitError(
            f"device is {site.device!r}, a GPU of one machine: with the launcher slurm it is auto, cuda or cpu."
        )
    nodes = _nodes(site.devices, site)
    if site.devices % nodes:
        full = site.slurm.gpus_per_node
        raise SubmitError(
            f"devices is {site.devices}, which {nodes} nodes of {full} (slurm.gpus_per_node) cannot share equally."
        )


def _nodes(devices: int, site: Site) -> int:
    """As many as so many devices take."""
    return -(-devices // site.slurm.gpus_per_node)


def _gpus(site: Site) -> bool:
    """Whether GPUs are asked for."""
    return site.device != "cpu" and site.slurm.gpus != "none"


def _list(jobs: Sequence[Job]) -> str:
    """What the worker's --list reads: a line for each run."""
    return "".join(json.dumps({"request": job.request.dumps(), "id": job.spec.id}) + "\n" for job in jobs)


def _folder(jobs: Sequence[Job], site: Site) -> Path:
    """Where an array's list is: named by its content, so that nothing in there ever changes while a job may
    read it."""
    return site.runs.absolute() / FOLDER / hashlib.sha256(_list(jobs).encode()).hexdigest()[:12]


def _script(jobs: Sequence[Job], after: Sequence[str], site: Site) -> str:
    """The text for sbatch of jobs that take the same resources."""
    options = "\n".join(f"#SBATCH {option}" for option in _options(jobs, after, site))
    setup = "".join(f"{line}\n" for line in site.slurm.setup)
    return f"""#!/bin/bash
{options}

{setup}# Slurm says by USR1 that the time limit is near: the run writes its checkpoint and stops, and the job goes back into the queue.
near() {{ requeue=yes; scancel --signal=TERM "$SLURM_JOB_ID"; }}
requeue=
trap near USR1
trap : TERM  # of scancel, which the run gets too: its end is waited for

{_command(jobs, site)} &
while wait $!; kill -0 $! 2>/dev/null; do :; done  # a signal ends the wait, not the run
code=0; wait $! || code=$?
if [ -n "$requeue" ] && [ "$code" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def _options(jobs: Sequence[Job], after: Sequence[str], site: Site) -> list[str]:
    """Of sbatch; each is one of the site's, in the form in which Slurm takes it."""
    slurm, folder = site.slurm, _folder(jobs, site)
    devices = jobs[0].devices(site)
    nodes = _nodes(devices, site)
    share = devices // nodes
    kind = "pretrain" if isinstance(jobs[0].spec, Pretrain) else "evaluate"
    at_once = f"%{slurm.max_at_once}" if slurm.max_at_once else ""
    gpus = (
        {"gpus-per-node": "--gpus-per-node=", "gres": "--gres=gpu:", "none": ""}[slurm.gpus]
        if _gpus(site)
        else ""
    )
    cpus = _cpus(devices, site)
    return [
        f"--job-name=msbreg-{kind}",
        f"--array=0-{len(jobs) - 1}{at_once}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        *([f"{gpus}{slurm.gpu_type + ':' if slurm.gpu_type else ''}{share}"] if gpus else []),
        *([f"--mem={_times(slurm.memory, share)}"] if slurm.memory else []),
        *(
            f"--{key}={value}"
            for key in ("partition", "account", "qos", "time")
            if (value := getattr(slurm, key))
        ),
        *([f"--dependency=afterany:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []),
        f"--signal=B:USR1@{slurm.grace}",
        "--requeue",
        f"--chdir={_quoted(PROJECT)}",
        f"--output={_quoted(str(folder).replace('%', '%%') + '/%A_%a.txt')}",
        "--open-mode=append",
        *slurm.extra,
    ]


def _command(jobs: Sequence[Job], site: Site) -> str:
    """What a job's script runs: a worker, or torchrun on each node."""
    devices = jobs[0].devices(site)
    nodes, cpus = _nodes(devices, site), _cpus(devices, site)
    share = f"--nproc-per-node={devices // nodes}"
    srun = f"srun --nodes={nodes} --ntasks={nodes} --kill-on-bad-exit=1" + (
        f" --cpus-per-task={cpus}" if cpus else ""
    )
    worker = f'-m reproduce.worker --list {shlex.quote(str(_folder(jobs, site) / "jobs.jsonl"))} "$SLURM_ARRAY_TASK_ID"'
    start = f"{srun} {shlex.quote(sys.executable)}"
    if devices == 1:
        return f"{start} {worker}"
    if nodes == 1:
        return f"{start} -m torch.distributed.run --standalone {share} {worker}"
    return (
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        f"{start} -m torch.distributed.run --nnodes={nodes} {share} --rdzv-backend=c10d "
        '--rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 10000))" '
        f"{worker}"
    )


def _cpus(devices: int, site: Site) -> int:
    """Cores on each node; 0: as many as Slurm gives. Named to srun too, which does not take them from sbatch
    since Slurm 22.05."""
    share = devices // _nodes(devices, site)
    return share * (site.slurm.cpus_per_gpu or (0 if _gpus(site) else 1))


def _times(memory: str, num: int) -> str:
    """`32G` times a number."""
    unit = memory.lstrip("0123456789")
    return f"{int(memory.removesuffix(unit)) * num}{unit}"


def _quoted(path: Path | str) -> str:
    """A path as sbatch reads it in a script: quoted, if it has to be."""
    text = str(path)
    if not text.isprintable() or '"' in text or "\\" in text:
        raise SubmitError(
            f"The folder {text!r} has a character in its name that cannot stand in a batch script."
        )
    return text if text == shlex.quote(text) else f'"{text}"'


def _sbatch(jobs: Sequence[Job], after: Sequence[str], site: Site, *, taken: Sequence[str]) -> str:
    """Submits an array; returns its number.

    Args:
        taken: numbers of arrays that the message of a refusal is to name.

    Raises:
        SubmitError: Slurm did not take it.
    """
    folder = _folder(jobs, site)
    for name, text in (("jobs.jsonl", _list(jobs)), ("script.sh", _script(jobs, after, site))):
        write_atomic(folder / name, text)
    command = ["sbatch", "--parsable", "--export=ALL", str(folder / "script.sh")]
    # Inside of an allocation, what Slurm has set there would be taken for the options of each job; SLURM_CONF
    # says where Slurm is.
    outside = {
        key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"
    }
    environment = outside | variables(site, gpus=_gpus(site))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment,
        )
    except OSError:
        raise SubmitError(
            "There is no sbatch on this machine: submit from one of the cluster's login nodes."
        ) from None
    except subprocess.TimeoutExpired:
        raise SubmitError(
            f"sbatch did not answer within {TIMEOUT:.0f} s: Slurm's controller may be down.{_besides(taken)}"
        ) from None
    if done.returncode:
        said = (
            (done.stderr.strip() or f"exit code {done.returncode}")
            .splitlines()[-1]
            .removeprefix("sbatch: error: ")
        )
        raise SubmitError(
            f"Slurm did not take {counted(len(jobs), 'run')}: {said.rstrip('.')}. See [slurm] in the site file.{_besides(taken)}"
        )
    return done.stdout.strip().splitlines()[-1].partition(";")[0]


def _besides(taken: Sequence[str]) -> str:
    """What to do with the arrays that Slurm has taken before it refused one."""
    numbers = " ".join(taken)
    return f" What it took before goes on: {numbers}; `scancel {numbers}` cancels it." if taken else ""


def _arrays(names: Iterable[str]) -> list[str]:
    """The arrays that jobs belong to."""
    return sorted({name.partition("_")[0] for name in names if name})


def _lock(site: Site) -> filelock.BaseFileLock:
    """Of whoever is about to submit."""
    folder = site.runs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / "lock")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C comes afterwards: Slurm has taken the jobs or not, but never has jobs that nobody has noted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
