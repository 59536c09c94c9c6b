"""Runs as jobs of a Slurm cluster: one array per shape of resources, evaluations after their pretrainings.

    launcher = "slurm"        # in the site file, with the cluster's options in its table [slurm]

A job is `srun python -m reproduce.worker --list runs/slurm/<digest>/jobs.jsonl INDEX`, with torchrun in place
of python for several devices. Runs that share a GPU are one job, whose process starts a worker for each
(`resources/together.py`). Slurm warns the script before the time limit: the run writes a checkpoint and
stops, and the job is requeued. After a failure or `scancel` it is not requeued. Lists, scripts and logs stay
in `runs/slurm`, because a job may start from them again at any time.

The lease, not this launcher, keeps a run from being executed twice; the job takes the lease when it starts.
The lease with the state *queued* is written once sbatch has returned a number; it only saves other commands
from submitting the run again. A command that is killed between these two leaves jobs that no lease names.
These jobs still run, and are then found by the leases that they take. If a second command has submitted the
same runs before that, its jobs end at once if their run has an owner or is finished.
"""

from __future__ import annotations

import contextlib
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
from reproduce.messages import age, counted
from reproduce.plan import Job
from reproduce.resources import cards, sharing
from reproduce.runs import lease as leases
from reproduce.runs.claims import POLL, Claims
from reproduce.runs.cores import Share
from reproduce.runs.files import write_atomic
from reproduce.runs.lease import Lease
from reproduce.site import PROJECT, Site
from reproduce.spec import Pretrain
from reproduce.worker import digest_of_list

FOLDER = "slurm"
"""Subfolder of the folder of runs with the lists, scripts and logs of jobs."""
TIMEOUT = 300.0
"""Seconds to wait for sbatch, which retries on its own if the controller is busy."""

Watch = Callable[[dict[str, Any]], None]
Submit = Callable[[Sequence[Job], Sequence[str], int], str]
"""Function that submits jobs to start after some other Slurm jobs have ended, with so many runs in each; it
returns the array's number."""
UNITS = {"M": 10**6, "G": 10**9, "T": 10**12}
"""Bytes in the units of `gpu_memory`."""


class SubmitError(ConnectionError):
    """Slurm refused the jobs; the message gives the reason and the jobs that it accepted before."""


def launch(jobs: list[Job], site: Site, watch: Watch) -> dict[str, str]:
    """Submit the runs that no other process executes, and wait for all; the jobs do not need this process.

    Args:
        jobs: the runs, upstream first; whatever they need is among them or finished.
        watch: called with each event of a run (`attached`, `started`, `progress`, `finished`, `failed`,
            `freed`), and with `submitted` for each array, with the id of its first run.

    Returns:
        The reason of each run that did not finish, by id.

    Raises:
        SubmitError: Slurm refused the jobs, or is not available.
        KeyboardInterrupt: the command received a stop request; submitted jobs continue.
    """
    return _Launch(jobs, site, watch).run() if jobs else {}


def scripts(jobs: Sequence[Job], site: Site) -> list[str]:
    """Return the scripts that `launch` would pass to sbatch if no other process executed these runs.

    There is one script per array; ARRAY1 stands for the number of the first.

    Raises:
        SubmitError: the site's settings do not work on a cluster.
    """
    texts: list[str] = []

    def note(part: Sequence[Job], after: Sequence[str], together: int) -> str:
        texts.append(_script(part, after, site, together))
        return f"ARRAY{len(texts)}"

    _submit(jobs, site, {}, note)
    return texts


def at_once(site: Site) -> int:
    """Return the maximum number of one-device runs at the same time, if the site limits it.

    With `runs_per_gpu` = `auto`, each job counts as one run: several small ones share its time.
    """
    shared = site.runs_per_gpu if isinstance(site.runs_per_gpu, int) and _gpus(site) else 1
    return site.slurm.max_at_once * (site.devices if site.devices > 1 else shared) or sys.maxsize


def device(site: Site) -> tuple[Literal["GPU", "CPU"], str]:
    """Return the kind of device that each run uses; its model is unknown until the run starts."""
    return ("GPU" if _gpus(site) else "CPU"), ""


def memory(site: Site) -> int | None:
    """Return the memory of a GPU in bytes as the table [slurm] gives it; None if it is unknown."""
    if not _gpus(site):
        return None
    if given := site.slurm.gpu_memory:
        return int(given[:-1]) * UNITS[given[-1]]
    card = cards.of_type(site.slurm.gpu_type)
    return int(card.memory) if card else None


def cores_of(jobs: Sequence[Job], site: Site) -> dict[str, Share]:
    """Return the share of a node's cores that each run has in its job, by id.

    Without `slurm.cpus_per_gpu`, a job with a GPU has as many as Slurm chooses.
    """
    found, together = {}, _together(jobs, site)
    for job in jobs:
        devices, num = job.devices(site), together[job.spec.id]
        on_node = devices // _nodes(devices, site)
        found[job.spec.id] = Share(_cpus(devices, site) or None, on_node * num, num)
    return found


class _Launch:
    """The state of a launch: waiting jobs, and the runs that are followed."""

    def __init__(self, jobs: list[Job], site: Site, watch: Watch) -> None:
        self._site, self._watch = site, watch
        self._waiting, self._unfinished = list(jobs), {job.spec.id: job for job in jobs}
        self._failed: dict[str, str] = {}
        self._claims = Claims(site)
        self._jobs: dict[str, str] = {}
        """Id in squeue's notation of the job that executes a run; empty if the process is not a Slurm job."""

    def run(self) -> dict[str, str]:
        """See `launch`."""
        try:
            while self._waiting or len(self._claims):
                self._give_up()
                self._attach()
                if self._ready():
                    # Look and submit under a lock, so that two commands at once submit each run only once.
                    with _lock(self._site):
                        self._attach()
                        self._send(self._ready())
                for event in self._claims.poll():
                    self._handle(event)
                if self._waiting or len(self._claims):
                    time.sleep(POLL)
        except KeyboardInterrupt:
            if arrays := _arrays(name for spec_id, name in self._jobs.items() if spec_id in self._claims):
                numbers = " ".join(arrays)
                print(
                    f"The Slurm jobs {numbers} continue. The same command attaches to them; "
                    f"`scancel {numbers}` cancels them."
                )
            raise
        return self._failed

    def _give_up(self) -> None:
        """Fail the waiting jobs whose needs have failed."""
        for job in list(self._waiting):
            if broken := {spec.id for spec in job.spec.needs()} & self._failed.keys():
                self._waiting.remove(job)
                self._fail(job.spec.id, _needed(min(broken), self._failed))

    def _attach(self) -> None:
        """Follow the runs that other processes execute."""
        claimed = self._claims.leases([job.spec.id for job in self._waiting])
        for job in [job for job in self._waiting if job.spec.id in claimed]:
            self._watch(self._follow(job, claimed[job.spec.id]))
        for job in self._waiting:
            self._claims.release(job.spec.id)

    def _follow(self, job: Job, lease: Lease) -> dict[str, Any]:
        """Follow a waiting job that another process executes; return the event that announces it."""
        self._waiting.remove(job)
        self._jobs[job.spec.id] = lease.job
        return self._claims.follow(job.spec.id, lease)

    def _ready(self) -> list[Job]:
        """Return the waiting jobs that can be queued: their needs are finished, queued or ready too."""
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
        """Submit jobs and follow them."""
        queued = {
            spec_id: name for spec_id, name in self._jobs.items() if name and spec_id in self._unfinished
        }
        before = set(queued.values())

        def submit(part: Sequence[Job], after: Sequence[str], together: int) -> str:
            with _uninterrupted():
                taken = _arrays(set(self._jobs.values()) - before)
                array = _sbatch(part, after, self._site, together, taken=taken)
                for index, job in enumerate(part):
                    self._note(job, f"{array}_{index // together}")
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
        """Record in a run's lease that it is queued, and follow it."""
        folder = self._site.runs / job.spec.id
        # If a process outside Slurm was faster, the job will notice and end.
        with contextlib.suppress(leases.BusyError):
            leases.queue(folder, job.spec.id, job=name, heartbeat=self._site.heartbeat)
        lease = leases.read(folder, job.spec.id)
        assert lease is not None
        # As queued, so that the start of a job that runs already is an event too.
        self._follow(job, replace(lease, state="queued", progress=None))

    def _handle(self, event: dict[str, Any]) -> None:
        """Apply an event to the state, and pass it on."""
        kind, spec_id = event["event"], event["id"]
        if kind == "freed" and not self._jobs[spec_id]:
            self._waiting.append(self._unfinished[spec_id])  # its process is gone, so Slurm may take it
            self._watch(event)
        elif kind == "freed":  # not submitted again: a cancelled job was cancelled on purpose
            job, why = self._jobs[spec_id], f" ({event['reason']})" if event["reason"] else ""
            self._fail(spec_id, f"Slurm job {job} ended without a result{why}{self._log(job)}")
        elif kind == "failed":
            broken = {spec.id for spec in self._unfinished[spec_id].spec.needs()} & self._failed.keys()
            log = f"{event['reason']} (log: {self._site.runs / spec_id}/log.txt)"
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
        """Return where a job's own output is, in words, or "" if the job never started."""
        found = next(self._site.runs.glob(f"{FOLDER}/*/{name}.txt"), None)
        return f" (log: {found})" if found else ""


def _needed(first: str, failed: dict[str, str]) -> str:
    return f"needs run {first}, which failed: {failed[first]}"


def _submit(jobs: Sequence[Job], site: Site, queued: dict[str, str], submit: Submit) -> None:
    """Submit jobs, upstream first, one array per shape of resources and number of runs that share a GPU.

    A job waits until the jobs before it have ended, with or without success. Otherwise a pretraining that
    fails or is cancelled would keep the evaluations of the other pretrainings in the queue for ever. Its own
    evaluation starts, finds no encoder and reports that. A requeued job has not ended.

    Args:
        queued: job ids, in squeue's notation, of the runs that other commands have submitted, by run id.
    """
    _check(site)
    nums = _together(jobs, site)
    own: dict[str, str] = {}
    rest = list(jobs)
    while rest:
        ids = {job.spec.id for job in rest}
        now = [job for job in rest if not {spec.id for spec in job.spec.needs()} & ids]
        rest = [job for job in rest if job not in now]
        groups: dict[tuple[Any, ...], list[Job]] = {}
        for job in now:
            waits = any(spec.id in own or spec.id in queued for spec in job.spec.needs())
            num = nums[job.spec.id]
            alike = (job.request.scale, type(job.spec).__name__) if num > 1 else ()
            groups.setdefault((num, job.devices(site), waits, *alike), []).append(job)
        for (most, *_), group in groups.items():
            needs = {spec.id for job in group for spec in job.spec.needs()}
            after = sorted({own.get(each) or queued[each] for each in needs if each in own or each in queued})
            num = min(most, len(group))
            ordered = sorted(group, key=_length) if num > 1 else group
            for part in _parts(ordered, site.slurm.array_size * num):
                array = submit(part, after, num)
                own |= {job.spec.id: array for job in part}


def _together(jobs: Sequence[Job], site: Site) -> dict[str, int]:
    """Return how many runs such as each of these share the GPU of a job, by id."""
    gpus = 1 if _gpus(site) else 0  # there are as many as jobs, so `jobs` makes no runs share one
    return sharing.of_jobs(jobs, replace(site, jobs=0), gpus=gpus, card=memory(site))


def _length(job: Job) -> tuple[str, str, int]:
    """Return a key that sorts runs of similar length together, the longest first.

    A job keeps its GPU until its last run has ended.
    """
    spec = job.spec
    if isinstance(spec, Pretrain):
        return spec.dataset.name, "", -spec.epochs * spec.method.num_views
    return spec.dataset.name, spec.protocol.name, 0


def _parts(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _check(site: Site) -> None:
    """Raise SubmitError if the site's settings do not work on a cluster."""
    if site.device.startswith("cuda:"):
        raise SubmitError(
            f"device is {site.device!r}, a GPU of one machine: for the launcher slurm, use auto, cuda or cpu."
        )
    nodes = _nodes(site.devices, site)
    if site.devices % nodes:
        full = site.slurm.gpus_per_node
        raise SubmitError(
            f"devices is {site.devices}, which {nodes} nodes of {full} (slurm.gpus_per_node) cannot share "
            f"equally: use a multiple of {nodes}."
        )


def _nodes(devices: int, site: Site) -> int:
    """Return the number of nodes that this number of devices needs."""
    return -(-devices // site.slurm.gpus_per_node)


def _gpus(site: Site) -> bool:
    """Return True if jobs request GPUs."""
    return site.device != "cpu" and site.slurm.gpus != "none"


def _list(jobs: Sequence[Job]) -> str:
    """Return the content of the file for the worker's --list: one line per run."""
    return "".join(json.dumps({"request": job.request.dumps(), "id": job.spec.id}) + "\n" for job in jobs)


def _folder(jobs: Sequence[Job], site: Site) -> Path:
    """Return the folder of an array's list.

    Its name is a digest of the list, so a list never changes while a job may read it.
    """
    return site.runs.absolute() / FOLDER / digest_of_list(_list(jobs))


def _script(jobs: Sequence[Job], after: Sequence[str], site: Site, together: int) -> str:
    """Return the batch script of jobs that request the same resources.

    Args:
        together: maximum number of runs that share the GPU of each job.
    """
    options = "\n".join(f"#SBATCH {option}" for option in _options(jobs, after, site, together))
    setup = "".join(f"{line}\n" for line in site.slurm.setup)
    return f"""#!/bin/bash
{options}

{setup}# Slurm sends USR1 when the time limit is near: the run writes a checkpoint, and the job is requeued.
near() {{ requeue=yes; scancel --signal=TERM "$SLURM_JOB_ID"; }}
requeue=
trap near USR1
trap : TERM  # from scancel; the run receives it too, and the script waits for its end

{_command(jobs, site, together)} &
while wait $!; kill -0 $! 2>/dev/null; do :; done  # a signal ends the wait, not the run
code=0; wait $! || code=$?
if [ -n "$requeue" ] && [ "$code" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def _options(jobs: Sequence[Job], after: Sequence[str], site: Site, together: int) -> list[str]:
    """Return the options for sbatch, each from a setting of the site, in Slurm's notation."""
    slurm, folder = site.slurm, _folder(jobs, site)
    devices = jobs[0].devices(site)
    nodes = _nodes(devices, site)
    share = devices // nodes
    kind = "pretrain" if isinstance(jobs[0].spec, Pretrain) else "evaluate"
    at_once = f"%{slurm.max_at_once}" if slurm.max_at_once else ""
    requests = {"gpus-per-node": "--gpus-per-node=", "gres": "--gres=gpu:", "none": ""}
    gpus = requests[slurm.gpus] if _gpus(site) else ""
    cpus = _cpus(devices, site)
    return [
        f"--job-name=msbreg-{kind}",
        f"--array=0-{(len(jobs) - 1) // together}{at_once}",
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


def _command(jobs: Sequence[Job], site: Site, together: int) -> str:
    """Return the command of a job's script: one worker, several workers, or torchrun on each node."""
    devices = jobs[0].devices(site)
    nodes, cpus = _nodes(devices, site), _cpus(devices, site)
    share = f"--nproc-per-node={devices // nodes}"
    srun = f"srun --nodes={nodes} --ntasks={nodes} --kill-on-bad-exit=1" + (
        f" --cpus-per-task={cpus}" if cpus else ""
    )
    listed = shlex.quote(str(_folder(jobs, site) / "jobs.jsonl"))
    worker = f'-m reproduce.worker --list {listed} "$SLURM_ARRAY_TASK_ID"'
    start = f"{srun} {shlex.quote(sys.executable)}"
    if together > 1:
        return f'{start} -m reproduce.resources.together {listed} "$SLURM_ARRAY_TASK_ID" {together}'
    if devices == 1:
        return f"{start} {worker}"
    if nodes == 1:
        return f"{start} -m torch.distributed.run --standalone {share} {worker}"
    return (
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        f"{start} -m torch.distributed.run --nnodes={nodes} {share} --rdzv-backend=c10d "
        '--rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" '
        '--rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 10000))" '
        f"{worker}"
    )


def _cpus(devices: int, site: Site) -> int:
    """Return the number of cores on each node; 0 leaves it to Slurm.

    srun needs the option too: since Slurm 22.05 it does not take the number from sbatch.
    """
    share = devices // _nodes(devices, site)
    return share * (site.slurm.cpus_per_gpu or (0 if _gpus(site) else 1))


def _times(memory: str, num: int) -> str:
    """Return a memory size such as `32G` multiplied by a number."""
    unit = memory.lstrip("0123456789")
    return f"{int(memory.removesuffix(unit)) * num}{unit}"


def _quoted(path: Path | str) -> str:
    """Return a path in the form that sbatch reads in a script, quoted if necessary."""
    text = str(path)
    if not text.isprintable() or '"' in text or "\\" in text:
        raise SubmitError(
            f"The path {text!r} contains a character that a batch script cannot contain: use another folder."
        )
    return text if text == shlex.quote(text) else f'"{text}"'


def _sbatch(
    jobs: Sequence[Job], after: Sequence[str], site: Site, together: int, *, taken: Sequence[str]
) -> str:
    """Submit an array and return its number.

    Args:
        together: see `_script`.
        taken: numbers of arrays that the message of a refusal names.

    Raises:
        SubmitError: Slurm refused the array.
    """
    folder = _folder(jobs, site)
    for name, text in (("jobs.jsonl", _list(jobs)), ("script.sh", _script(jobs, after, site, together))):
        write_atomic(folder / name, text, durable=True)  # jobs outlive a crash of this machine
    command = ["sbatch", "--parsable", "--export=ALL", str(folder / "script.sh")]
    # Inside an allocation, sbatch would read Slurm's own variables as options of each job. SLURM_CONF locates
    # Slurm.
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
            "sbatch is not available on this machine: submit from a login node of the cluster."
        ) from None
    except subprocess.TimeoutExpired:
        raise SubmitError(
            f"sbatch did not answer within {age(TIMEOUT)}: Slurm's controller may be down."
            f"{_already_taken(taken)}"
        ) from None
    if done.returncode:
        lines = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        said = lines[-1].removeprefix("sbatch: error: ").rstrip(".")
        raise SubmitError(
            f"Slurm refused {counted(len(jobs), 'run')}: {said}. Check [slurm] in the site "
            f"file.{_already_taken(taken)}"
        )
    return done.stdout.strip().splitlines()[-1].partition(";")[0]


def _already_taken(taken: Sequence[str]) -> str:
    """Return a sentence about the arrays that Slurm accepted before it refused one."""
    numbers = " ".join(taken)
    return f" Slurm accepted {numbers} before; `scancel {numbers}` cancels them." if taken else ""


def _arrays(names: Iterable[str]) -> list[str]:
    """Return the numbers of the arrays that jobs belong to."""
    return sorted({name.partition("_")[0] for name in names if name})


def _lock(site: Site) -> filelock.BaseFileLock:
    """Return the lock of processes that are about to submit."""
    folder = site.runs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / "lock")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the block ends, so that Slurm never has jobs that are not recorded."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
