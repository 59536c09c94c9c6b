"""The launcher of a cluster: the script for sbatch, and tables made by a real Slurm of one node.

This file starts and stops that Slurm.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import skips
from conftest import Home
from waiting import free_ports, limited, until

from reproduce import site as sites
from reproduce.launch import slurm
from reproduce.plan import Job, Request, jobs
from reproduce.runs import lease as leases
from reproduce.runs import squeue
from reproduce.site import Site, Slurm
from reproduce.spec import Pretrain, Spec
from reproduce.tracking.store import Store

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun")
SEARCH = f"{os.environ['PATH']}:/usr/sbin"
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A Slurm of one node with two CPUs and a GPU by name only, with its own folders and ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that Slurm's commands need."""
        return {"SLURM_CONF": str(self.file), "PATH": SEARCH}

    def start(self, controller: int, daemon: int) -> None:
        """Start the daemons on these ports."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.file.write_text(CONFIGURATION.format(folder=self.folder, controller=controller, daemon=daemon))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(64))
        places = {
            "key-file": key,
            "socket": "munge.socket",
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "munge.seed",
        }
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            *(f"--{option}={self.folder / name}" for option, name in places.items()),
        )
        until((self.folder / "munge.socket").exists, "the start of munged")
        self._daemon("slurmctld", "-D", "-f", str(self.file))
        self._daemon("slurmd", "-D", "-N", "localhost", "-f", str(self.file))
        until(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), "the start of Slurm")

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("wb")
        self._daemons.append(
            subprocess.Popen(command, env={**os.environ, **self.environment}, stdout=log, stderr=log)
        )

    def ask(self, *command: str) -> str:
        """Return the output of one of Slurm's commands."""
        return subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60
        ).stdout

    def queue(self) -> dict[str, str]:
        """Return the jobs that are waiting or running, and their states."""
        return dict(
            line.split()
            for line in self.ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        )

    def stop(self) -> None:
        """End everything, in the end by force."""
        self.ask("scancel", "--user", getpass.getuser())
        try:
            until(lambda: not self.queue(), "the end of the jobs")
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in reversed(self._daemons):
                daemon.wait(30)
            for process in self.processes():
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Return all processes of this cluster."""
        return [process for process in psutil.process_iter() if str(self.folder) in _environment(process)]


def _environment(process: psutil.Process) -> str:
    try:
        return process.environ().get("SLURM_CONF", "")
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster; skipped only if the user is not root or Slurm is not installed."""
    if os.geteuid():
        pytest.skip(skips.NOT_ROOT)
    if lacking := [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]:
        pytest.skip(f"a cluster needs {', '.join(lacking)}")
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        with free_ports(2) as ports:
            made.start(*ports)
            yield made
    finally:
        made.stop()
    assert not made.processes()


class LoginNode(Home):
    """A home from which jobs are submitted to a cluster."""

    cluster: Cluster

    @property
    def environment(self) -> dict[str, str]:
        """Variables with a squeue that counts its calls."""
        bin = self.folder / "bin"
        if not bin.exists():
            bin.mkdir()
            (bin / "squeue").write_text(
                f'#!/bin/sh\necho >> "{self.folder}/asked"\nexec {shutil.which("squeue")} "$@"\n'
            )
            (bin / "squeue").chmod(0o755)
        return super().environment | self.cluster.environment | {"PATH": f"{bin}:{SEARCH}"}

    @property
    def num_asked(self) -> int:
        return len((self.folder / "asked").read_text().splitlines())

    def lease(self, spec_id: str) -> leases.Lease | None:
        return leases.read(self.runs / spec_id, spec_id)

    def running(self, spec_id: str) -> bool:
        """Return True if a run trains or evaluates right now."""
        found = self.lease(spec_id)
        return bool(found and found.state == "running" and found.alive)

    def submit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `invoke` to its end."""
        return self.invoke(*arguments, "--launcher", "slurm", **environment)


def metrics(home: Home, specs: Sequence[Spec]) -> list[dict[str, float]]:
    """Return the measurements of runs, without their speed."""
    found = Store(Site(runs=home.runs)).finished([spec.id for spec in specs])
    return [
        {name: value for name, value in found[spec.id].metrics.items() if name != "images_per_second"}
        for spec in specs
    ]


@pytest.fixture
def login(cluster: Cluster, template: Path, tmp_path: Path) -> LoginNode:
    """Return a login node whose folder has a name that must be quoted, and a cluster that is polled often."""
    made = LoginNode(tmp_path / "50% of it", 'device = "cpu"\nheartbeat = 1\n[slurm]\npoll = 2\n')
    made.cluster = cluster
    made.runs.mkdir()
    shutil.copy(template, made.runs)
    return made


# What sbatch is given


def jobs_of(table: str, **fields: str) -> list[Job]:
    return jobs([Request(table=table, **fields)])


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def starts(script: str) -> str:
    (line,) = [line for line in script.splitlines() if line.startswith("srun ")]
    return line


def test_the_text_says_what_the_site_asks_for_and_evaluations_wait_for_their_pretrainings(
    tmp_path: Path,
) -> None:
    asked = Slurm(
        partition="gpu",
        account="me",
        qos="high",
        time="1-00:00:00",
        gpu_type="a100",
        cpus_per_gpu=6,
        memory="32G",
        max_at_once=3,
    )
    site = Site(
        runs=tmp_path,
        devices=4,
        slurm=replace(asked, grace=300, extra=("--constraint=nvlink",), setup=("module load cuda",)),
    )
    pretraining, evaluation = slurm.scripts(jobs_of("table8"), site)
    assert not list(tmp_path.iterdir())
    said = options(pretraining)
    assert {
        "--partition=gpu",
        "--account=me",
        "--qos=high",
        "--time=1-00:00:00",
        "--array=0-11%3",
        "--signal=B:USR1@300",
    } <= set(said)
    assert {
        "--nodes=1",
        "--gpus-per-node=a100:4",
        "--cpus-per-task=24",
        "--mem=128G",
        "--requeue",
        "--constraint=nvlink",
    } <= set(said)
    assert not [option for option in said if option.startswith("--dependency")]
    assert "\nmodule load cuda\n" in pretraining
    assert "-m torch.distributed.run --standalone --nproc-per-node=4 -m reproduce.worker --list " in starts(
        pretraining
    )
    said = options(evaluation)
    assert {
        "--array=0-11%3",
        "--gpus-per-node=a100:1",
        "--cpus-per-task=6",
        "--mem=32G",
        "--dependency=afterany:ARRAY1",
    } <= set(said)
    assert f"{shlex.quote(sys.executable)} -m reproduce.worker --list " in starts(evaluation)


def test_devices_beyond_one_node_meet_on_the_first_of_several(tmp_path: Path) -> None:
    site = Site(runs=tmp_path, devices=16, slurm=Slurm(gpus="gres"))
    pretraining, evaluation = slurm.scripts(jobs_of("table4"), site)
    assert {"--nodes=2", "--ntasks-per-node=1", "--gres=gpu:8"} <= set(options(pretraining))
    assert {"--nodes=1", "--gres=gpu:1"} <= set(options(evaluation))
    assert starts(pretraining).startswith("srun --nodes=2 --ntasks=2 ")
    assert "--nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d" in starts(pretraining)
    with pytest.raises(
        slurm.SubmitError,
        match=r"^devices is 9, which 2 nodes of 8 \(slurm.gpus_per_node\) cannot share equally: "
        r"use a multiple of 2\.$",
    ):
        slurm.scripts(jobs_of("table4"), replace(site, devices=9))
    with pytest.raises(slurm.SubmitError, match="a GPU of one machine"):
        slurm.scripts(jobs_of("table4"), replace(site, device="cuda:1"))


def test_a_detector_takes_as_many_devices_as_a_pretraining(tmp_path: Path) -> None:
    texts = slurm.scripts(jobs_of("table10", scale="small"), Site(runs=tmp_path, devices=2))
    assert ["--gpus-per-node=2" in options(text) for text in texts] == [True, True]
    assert "--dependency=afterany:ARRAY1" in options(texts[1])
    smoke = slurm.scripts(jobs_of("table10"), Site(runs=tmp_path, devices=2))
    assert ["--gpus-per-node=2" in options(text) for text in smoke] == [True, False], (
        "torchvision's engine runs in one process"
    )


def test_more_runs_than_an_array_holds_take_several(tmp_path: Path) -> None:
    texts = slurm.scripts(jobs_of("table8"), Site(runs=tmp_path, device="cpu", slurm=Slurm(array_size=5)))
    assert [next(option for option in options(text) if option.startswith("--array")) for text in texts] == [
        *("--array=0-4", "--array=0-4", "--array=0-1"),
        *("--array=0-4", "--array=0-4", "--array=0-1"),
    ]
    assert "--dependency=afterany:ARRAY1:ARRAY2:ARRAY3" in options(texts[-1])
    assert not [option for text in texts for option in options(text) if "gpu" in option]


def test_runs_that_share_a_gpu_are_one_element_of_an_array(tmp_path: Path) -> None:
    """Table 8 has twelve pretrainings and twelve evaluations."""
    asked = Slurm(array_size=2, cpus_per_gpu=8, memory="64G")
    wanted = jobs_of("table8", scale="small")

    def arrays(**fields: Any) -> list[str]:
        texts = slurm.scripts(wanted, Site(**{"runs": tmp_path, "runs_per_gpu": 5, "slurm": asked} | fields))
        return [option for text in texts for option in options(text) if option.startswith("--array")]

    assert arrays() == ["--array=0-1", "--array=0-0"] * 2, "elements of 5, 5 and 2 runs, at most 2 an array"
    assert arrays(runs_per_gpu=1, slurm=Slurm()) == ["--array=0-11"] * 2
    assert arrays(device="cpu", slurm=Slurm()) == arrays(slurm=Slurm(gpus="none")) == ["--array=0-11"] * 2
    assert arrays(devices=2, slurm=Slurm()) == ["--array=0-11", "--array=0-2"]
    assert arrays(runs_per_gpu=99, slurm=Slurm(max_at_once=3)) == ["--array=0-0%3"] * 2
    pretraining, *_, evaluation = slurm.scripts(
        wanted, Site(runs=tmp_path, runs_per_gpu=5, slurm=asked, jobs=9)
    )
    assert {"--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=8", "--mem=64G"} <= set(
        options(pretraining)
    )
    assert "--dependency=afterany:ARRAY1:ARRAY2" in options(evaluation)
    assert starts(pretraining).endswith('/jobs.jsonl "$SLURM_ARRAY_TASK_ID" 5 &')
    assert " -m reproduce.resources.together " in starts(pretraining)
    alone = slurm.scripts(wanted[:1], Site(runs=tmp_path, runs_per_gpu=5))
    assert alone == slurm.scripts(wanted[:1], Site(runs=tmp_path, runs_per_gpu=1))


def test_the_memory_of_a_known_gpu_decides_how_many_runs_share_it(template: Path, tmp_path: Path) -> None:
    shutil.copy(template, tmp_path)
    wanted = [job for job in jobs_of("table8", scale="small") if isinstance(job.spec, Pretrain)]

    def elements(**fields: Any) -> int:
        (text,) = slurm.scripts(wanted, Site(runs=tmp_path, jobs=9, slurm=Slurm(**fields)))
        (option,) = [option for option in options(text) if option.startswith("--array=0-")]
        return int(option.removeprefix("--array=0-")) + 1

    assert [elements(gpu_type=name) for name in ("", "a100", "h100")] == [12, 12, 3]
    assert elements(gpu_type="a100", gpu_memory="80G") == 3
    assert elements(gpu_type="h100", gpus="none") == 12
    assert elements(gpu_type="h100", gpu_memory="1G") == 12


def test_similar_runs_of_one_scale_share_a_gpu_the_longest_first(tmp_path: Path) -> None:
    """Shared are runs that start together: evaluations wait for other arrays than the pretrainings."""
    wanted = [job for scale in ("small", "paper") for job in jobs_of("table8", scale=scale)]
    pretrainings = [job for job in wanted if isinstance(job.spec, Pretrain)]
    groups: list[list[Job]] = []

    def submit(part: Sequence[Job], after: Sequence[str], together: int) -> str:
        assert together == 4
        groups.append(list(part))
        return str(len(groups))

    slurm._submit(wanted, Site(runs=tmp_path, runs_per_gpu=4), {}, submit)
    assert [len(group) for group in groups] == [12] * 4
    for group in groups:
        assert len({job.request.scale for job in group}) == len({type(job.spec) for job in group}) == 1
    views = [job.spec.method.num_views for job in groups[0] if isinstance(job.spec, Pretrain)]
    assert views == sorted(views, reverse=True)
    assert len(set(views)) > 1
    assert {job.spec.id for group in groups[:2] for job in group} == {job.spec.id for job in pretrainings}


def test_a_script_is_bash_that_quotes_its_paths(tmp_path: Path) -> None:
    for text in slurm.scripts(jobs_of("table4"), Site(runs=tmp_path / "it's 50% $HOME", devices=16)):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert f"--output=\"{tmp_path}/it's 50%% $HOME/slurm/" in text
        listed = shlex.split(starts(text))
        assert listed[listed.index("--list") + 1].startswith(f"{tmp_path}/it's 50% $HOME/slurm/")
    with pytest.raises(slurm.SubmitError, match="a batch script cannot contain"):
        slurm.scripts(jobs_of("table4"), Site(runs=tmp_path / "a\nb"))


# The table [slurm]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('partitoin = "gpu"', r"There is no key of \[slurm\] 'partitoin'\. Did you mean 'partition'\?"),
        ('partition = "gpu; rm -rf /"', r"slurm\.partition is 'gpu; rm -rf /': letters, digits"),
        ('account = "me\\n#SBATCH --uid=0"', r"slurm\.account is "),
        ('gpus = "gers"', r"slurm\.gpus: .* Did you mean 'gres'\?"),
        ('memory = "32 GB"', r"slurm\.memory is '32 GB': a number with K, M, G or T"),
        ('gpu_memory = "0G"', r"slurm\.gpu_memory is '0G': a number with M, G or T is expected, such as 80G"),
        ('time = "a day"', r"slurm\.time is 'a day': minutes, hours:minutes:seconds"),
        (
            'time = "3"',
            r"slurm\.time is '3', but runs are stopped 120 s .* earlier: no run would make progress",
        ),
        ("poll = 0", r"slurm\.poll is 0: at least 0\.1 is expected"),
        ("gpus_per_node = 1.5", r"slurm\.gpus_per_node is 1\.5: a whole number is expected"),
        ('extra = "--constraint=a"', r"slurm\.extra is '--constraint=a': a list of strings"),
        ('extra = ["constraint=a"]', r"slurm\.extra contains 'constraint=a': an option of sbatch"),
        ('setup = ["a\\nb"]', r"slurm\.setup contains 'a\\nb': each entry must be a single line"),
    ],
)
def test_what_cannot_be_asked_for_is_named(
    content: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site.toml"
    file.write_text(f"[slurm]\n{content}\n")
    monkeypatch.setenv("MSBREG_SITE", str(file))
    with pytest.raises(ValueError, match=says):
        sites.load()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("5", 300), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86_400), ("1-2:30", 95_400), ("1-0:0:5", 86_405)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time: str, seconds: int) -> None:
    """See sbatch(1), --time."""
    assert sites._seconds(time) == seconds


def test_the_table_of_the_example_is_that_of_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    example = sites.PROJECT / "configs" / "site.example.toml"
    monkeypatch.setenv("MSBREG_SITE", str(example))
    assert sites.load().slurm == Slurm()
    table = example.read_text().partition("[slurm]")[2].partition("[data]")[0]
    assert set(re.findall(r"^# (\w+) = ", table, re.MULTILINE)) == {field.name for field in fields(Slurm)}


# Where there is no cluster


def test_without_slurm_one_line_says_so_and_no_run_is_queued(home: Home, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = home.invoke("table4", "--rows", "Ours*", "--launcher", "slurm", PATH=str(tmp_path / "bin"))
    assert (done.returncode, done.stderr) == (
        2,
        "sbatch is not available on this machine: submit from a login node of the cluster.\n",
    )
    assert not list(home.runs.glob("*/lease.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "bin"))
        with pytest.raises(LookupError, match="squeue is not available on this machine"):
            squeue.queued(["1"])
    assert squeue.queued([]) == {}


# A real cluster


@pytest.mark.slow
def test_a_refused_submission_is_one_line_and_leaves_nothing(login: LoginNode) -> None:
    login.site_file.write_text(login.site_file.read_text() + 'partition = "nowhere"\n')
    done = login.submit("table4", "--rows", "Ours*")
    assert done.returncode == 2
    assert done.stderr.startswith("Slurm refused 1 run: ")
    assert "nvalid partition" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(login.runs.glob("*/lease.json"))
    assert not login.cluster.queue()


@pytest.mark.slow
def test_the_queue_is_asked_for_many_jobs_at_once_and_forgotten_ones_are_not_in_it(
    login: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in login.cluster.environment.items():
        monkeypatch.setenv(key, value)
    script = login.folder / "script.sh"
    script.write_text("#!/bin/bash\nsleep 100\n")
    array = login.cluster.ask(
        "sbatch", "--parsable", "--hold", "--array=0-3", "--output=/dev/null", str(script)
    ).strip()
    login.cluster.ask("scancel", f"{array}_1")
    asked = [f"{array}_0", f"{array}_1", f"{array}_3", "999999", "888888_1"]
    assert squeue.queued(asked) == {f"{array}_0": "PENDING", f"{array}_3": "PENDING"}
    login.cluster.ask("scancel", array)
    assert squeue.queued(asked) == squeue.queued(["999999"]) == {}
    broken = login.folder / "broken.conf"
    broken.write_text("NotAKey=1\n")
    monkeypatch.setenv("SLURM_CONF", str(broken))
    with pytest.raises(RuntimeError, match=r"^squeue did not answer: "):
        squeue.queued(asked)


@pytest.mark.slow
def test_evaluations_wait_for_what_an_earlier_command_has_queued(
    login: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that has left the queue unseen keeps no other command away."""
    for key, value in login.cluster.environment.items():
        monkeypatch.setenv(key, value)
    script = login.folder / "script.sh"
    script.write_text("#!/bin/bash\nsleep 100\n")
    pretraining, evaluation = jobs_of("table4", rows="Ours*")
    held = login.cluster.ask("sbatch", "--parsable", "--hold", "--output=/dev/null", str(script)).strip()
    gone = login.cluster.ask("sbatch", "--parsable", "--hold", "--output=/dev/null", str(script)).strip()
    login.cluster.ask("scancel", gone)
    leases.queue(login.runs / pretraining.spec.id, pretraining.spec.id, job=held, heartbeat=1)
    leases.queue(login.runs / evaluation.spec.id, evaluation.spec.id, job=gone, heartbeat=1)
    started = login.start("table4", "--rows", "Ours*", "--launcher", "slurm")
    until(
        lambda: bool((found := login.lease(evaluation.spec.id)) and found.job not in ("", gone)),
        "the submission",
    )
    lease = login.lease(evaluation.spec.id)
    assert lease is not None
    array = lease.job.partition("_")[0]
    assert f"Dependency=afterany:{held}" in login.cluster.ask("scontrol", "show", "job", array)
    until(
        lambda: bool((found := login.lease(pretraining.spec.id)) and found.job == held),
        "the lease of the pretraining",
    )
    started.send_signal(signal.SIGINT)
    printed, _ = started.communicate(timeout=60)
    assert f"`scancel {held} {array}` cancels them" in printed
    login.cluster.ask("scancel", held, array)
    until(lambda: not login.cluster.queue(), "the end of the jobs")


@pytest.mark.slow
def test_a_table_is_made_by_two_arrays_and_completed_after_a_cancelled_and_a_killed_job(
    login: LoginNode,
) -> None:
    changes = ("epochs=1", "num_train=200", "num_val=100", "protocol.epochs=50")
    asked = ("table8", "--rows", "BYOL*", *(part for change in changes for part in ("--set", change)))
    specs = Request(table="table8", rows="BYOL*", changes=changes).specs()
    pretrainings = [spec for spec in specs if isinstance(spec, Pretrain)]
    begun = time.monotonic()
    first = login.start(*asked, "--launcher", "slurm")
    until(lambda: login.running(pretrainings[0].id), "the start of the first run")
    lease = login.lease(pretrainings[0].id)
    assert lease is not None
    os.kill(lease.pid, signal.SIGKILL)
    array, _, index = lease.job.partition("_")
    assert index == "0"
    login.cluster.ask("scancel", f"{array}_3")
    printed, errors = first.communicate(timeout=400)
    assert first.returncode == 1, printed + errors
    assert login.num_asked <= (time.monotonic() - begun) / 2 + 3, (
        "squeue is asked every two seconds, for all jobs at once"
    )
    assert f"submitted to Slurm as array {array}: 4 runs" in printed
    assert printed.count("submitted to Slurm as array") == printed.count(": 4 runs\n") == 2
    assert f"failed: {pretrainings[3].id}" in printed
    assert f"Slurm job {array}_3 ended without a result" in printed
    assert f"Slurm job {array}_0 ended without a result (log: {login.runs}/slurm/" in printed
    assert f"needs run {pretrainings[0].id}, which failed: Slurm job {array}_0" in printed
    assert "4 runs done, 0 reused, 4 missing" in printed

    second = login.submit(*asked)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "4 runs done, 4 reused, 0 missing" in second.stdout
    assert second.stdout.count(": 2 runs") == 2
    assert not login.cluster.queue()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return the output of a process up to the line that contains `text`."""
    assert process.stdout is not None
    printed = ""
    with limited(process):
        while text not in printed:
            line = process.stdout.readline()
            assert line, f"no {text!r} in:\n{printed}"
            printed += line
    return printed


@pytest.mark.slow
def test_a_job_outlives_whoever_submitted_it_and_goes_on_after_its_time_limit(
    login: LoginNode, template: Path, tmp_path: Path
) -> None:
    """The signal that Slurm sends before the limit is sent by hand, because the shortest limit is a minute.

    The lease of the evaluation is removed, as if the first command had been killed before it wrote the lease:
    two jobs are queued for one run.
    """
    asked = ("table4", "--rows", "Ours*", "--set", "epochs=4", "--set", "warmup_epochs=1")
    pretraining, evaluation = Request(
        table="table4", rows="Ours*", changes=("epochs=4", "warmup_epochs=1")
    ).specs()
    first = login.start(*asked, "--launcher", "slurm")
    until(lambda: login.running(pretraining.id), "the start of the run")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(60)
    (login.runs / evaluation.id / leases.FILE).unlink()

    second = login.start(*asked, "--launcher", "slurm")
    lease = login.lease(pretraining.id)
    assert lease is not None
    printed = read_until(second, "submitted to Slurm as array ")
    assert f"attached to Slurm job {lease.job}: " in printed
    until(
        lambda: bool((now := login.lease(pretraining.id)) and now.progress and now.progress.done),
        "the first progress",
    )
    login.cluster.ask("scancel", "--signal=USR1", "--batch", lease.job)
    until(
        lambda: bool((now := login.lease(pretraining.id)) and now.state == "interrupted"),
        "the end of the run",
    )
    second.send_signal(signal.SIGINT)
    assert "The same command attaches to them; `scancel " in read_until(second, "continue")
    assert second.wait(30) == 128 + signal.SIGINT

    third = login.submit(*asked)
    assert third.returncode == 0, third.stdout + third.stderr
    assert f"attached to Slurm job {lease.job}: " in third.stdout
    assert "2 runs done (2 of them by other processes), 0 reused, 0 missing" in third.stdout
    (log,) = login.runs.glob(f"slurm/*/{lease.job}.txt")
    assert log.read_text().count('"event": "started"') == 2, "it was requeued, and started again"
    until(lambda: not login.cluster.queue(), "the end of the second job of the evaluation")
    with sqlite3.connect(login.runs / "mlflow.db") as store:
        assert store.execute(
            "SELECT count(*) FROM tags WHERE key = 'spec_id' AND value = ?", (evaluation.id,)
        ).fetchone() == (1,)

    alone = Home(tmp_path / "alone")
    alone.runs.mkdir()
    shutil.copy(template, alone.runs)
    assert alone.invoke(*asked).returncode == 0
    assert metrics(login, [pretraining, evaluation]) == metrics(alone, [pretraining, evaluation])


@pytest.mark.slow
def test_two_runs_share_the_gpu_of_a_job_which_is_requeued_and_outlives_a_killed_run(
    login: LoginNode,
) -> None:
    """The GPU is a name; torch uses the CPU."""
    site = login.site_file.read_text().replace('device = "cpu"', 'device = "auto"\nruns_per_gpu = 2')
    login.site_file.write_text(site)
    changes = ("epochs=24", "num_train=200", "warmup_epochs=1")
    asked = ("table4", "--rows", "Ours*", "--seeds", "2", *(f"--set={change}" for change in changes))
    wanted = Request(table="table4", rows="Ours*", changes=changes, seeds=2).specs()
    one, two = (spec.id for spec in wanted if isinstance(spec, Pretrain))

    def lease(spec_id: str) -> leases.Lease:
        found = login.lease(spec_id)
        assert found is not None
        return found

    def train() -> bool:
        found = [login.lease(spec_id) for spec_id in (one, two)]
        return all(each and each.state == "running" and each.progress for each in found)

    first = login.start(*asked, "--launcher", "slurm")
    until(train, "the first progress")
    name = lease(one).job
    assert name == lease(two).job
    array, _, element = name.partition("_")
    assert (element, set(login.cluster.queue())) == ("0", {name, f"{int(array) + 1}_0"})
    login.cluster.ask("scancel", "--signal=USR1", "--batch", name)
    until(lambda: {lease(one).state, lease(two).state} == {"interrupted"}, "the end of both runs")

    until(train, "the progress after the time limit")
    os.kill(lease(one).pid, signal.SIGKILL)
    printed, errors = first.communicate(timeout=400)
    assert first.returncode == 1, printed + errors
    assert f"its process ended with signal 9, in Slurm job {name}" in printed
    assert "2 runs done, 0 reused, 2 missing" in printed
    (log,) = login.runs.glob(f"slurm/*/{name}.txt")
    assert log.read_text().count('"event": "started"') == 4
    assert (lease(one).state, lease(two).state) == ("failed", "finished")
