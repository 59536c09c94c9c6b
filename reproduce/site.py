"""Where data, runs, reports and the tracking store are: everything about a place, nothing that can move a
number.

`load()` reads `configs/site.toml` (or the file that `MSBREG_SITE` names); every key has a default, so the
file is needed only for real data. See `configs/site.example.toml`.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from reproduce.messages import InvalidError, NotFoundError, unknown

PROJECT = Path(__file__).resolve().parent.parent
ASKED_BY = ("gpus-per-node", "gres", "none")
"""How a cluster is asked for GPUs."""
EARLIEST = 60
"""Seconds by which Slurm may send the signal before the time limit earlier than it was told to (sbatch(1),
--signal)."""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """How jobs are asked for on a cluster: the table [slurm]. What is empty, or 0, is left to Slurm's own
    defaults."""

    partition: str = ""
    """Several are separated by commas."""
    account: str = ""
    """Who pays."""
    qos: str = ""
    """The quality of service."""
    time: str = ""
    """Limit of one job, as of `sbatch --time`, such as 1-12:00:00. A run that takes longer is put back into
    the queue, and goes on."""
    gpus: str = "gpus-per-node"
    """One of ASKED_BY: `--gpus-per-node=4`, `--gres=gpu:4`, or not at all."""
    gpu_type: str = ""
    """Such as a100; empty: any."""
    gpus_per_node: int = 8
    """Those that one node has: `devices` beyond them take several nodes."""
    cpus_per_gpu: int = 0
    """Cores for each GPU, or for each process on a CPU."""
    memory: str = ""
    """Of the node, for each GPU or process, such as 32G."""
    max_at_once: int = 0
    """Jobs of one array that run at the same time; 0: any number."""
    array_size: int = 1000
    """Elements of one array at most: the cluster's MaxArraySize less one. More runs take several arrays."""
    grace: int = 120
    """Seconds before the time limit at which a run is told to write its checkpoint and stop."""
    poll: float = 30.0
    """Seconds between two calls of squeue, one for all jobs."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch, each as it stands, such as --constraint=a100."""
    setup: tuple[str, ...] = ()
    """Lines of shell that run on the node before a run starts, as they stand, such as `module load cuda`."""

    def __post_init__(self) -> None:
        for key in ("partition", "account", "qos", "gpu_type"):
            if not re.fullmatch(r"[\w.,@+-]*", getattr(self, key), re.ASCII):
                raise InvalidError(
                    f"slurm.{key} is {getattr(self, key)!r}: letters, digits and any of . , @ + - _ are expected."
                )
        if not re.fullmatch(r"(\d+[KMGT]?)?", self.memory, re.ASCII):
            raise InvalidError(
                f"slurm.memory is {self.memory!r}: a number with K, M, G or T is expected, such as 32G."
            )
        if self.gpus not in ASKED_BY:
            raise InvalidError(f"slurm.gpus: {unknown('way to ask for GPUs', self.gpus, ASKED_BY)}")
        lowest = {
            "gpus_per_node": 1,
            "array_size": 1,
            "grace": 1,
            "poll": 0.1,
            "cpus_per_gpu": 0,
            "max_at_once": 0,
        }
        for key, least in lowest.items():
            if not least <= getattr(self, key) < math.inf:
                raise InvalidError(f"slurm.{key} is {getattr(self, key)}: at least {least} is expected.")
        for key in ("extra", "setup"):
            if broken := [line for line in getattr(self, key) if not line.isprintable()]:
                raise InvalidError(f"slurm.{key} has {broken[0]!r}: each entry is a line of its own.")
        if wrong := [line for line in self.extra if not line.startswith("-")]:
            raise InvalidError(
                f"slurm.extra has {wrong[0]!r}: an option of sbatch is expected, such as --constraint=a100."
            )
        if self.time and _seconds(self.time) <= self.grace + EARLIEST:
            raise InvalidError(
                f"slurm.time is {self.time!r}, and runs are told to stop {self.grace} s (slurm.grace) to {self.grace + EARLIEST} s before: "
                "no run would get anywhere. Set a longer time, or a shorter grace."
            )


def _seconds(time: str) -> int:
    """A time limit in Slurm's notation: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
    days-hours:minutes, ...

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time, re.ASCII)
    if not found:
        raise InvalidError(
            f"slurm.time is {time!r}: minutes, hours:minutes:seconds or days-hours:minutes:seconds are expected."
        )
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None:
        numbers = [*numbers, 0, 0][:3]
    elif len(numbers) < 3:
        numbers = [0, *numbers, 0][:3]
    hours, minutes, seconds = numbers
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True, kw_only=True)
class Site:
    """One machine's places and habits."""

    runs: Path = PROJECT / "runs"
    """Checkpoints, logs, generated data and the default tracking store; costly to delete."""
    reports: Path = PROJECT / "reports"
    """Rendered tables, one folder for each scale."""
    tracking_uri: str = ""
    """An MLflow server or database; empty: `sqlite:///<runs>/mlflow.db`. The variable MLFLOW_TRACKING_URI
    comes first."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto`: the GPU if there is one."""
    launcher: str = "local"
    """A module of `reproduce/launch`."""
    jobs: int = 0
    """Runs at once; 0: one for each GPU, or one for each core where there is none."""
    devices: int = 1
    """GPUs, or processes on a CPU, of one pretraining and of one fine-tuning by Detectron2; other evaluations
    take one."""
    heartbeat: float = 10.0
    """Seconds between two signs of life of whoever does a run; three that are missing mean that it is
    dead."""
    workers: int = 0
    """Processes that decode images for one run; 0: decode in the run's own process."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints of a pretraining run; at most so many are lost by a kill."""
    cache_gb: float = 4.0
    """A data set whose decoded images fit in this is kept in memory."""
    features_gb: float = 20.0
    """Features that were extracted stay in `<runs>/features` up to this size, in 10^9 bytes; 0: none are
    kept. Safe to delete."""
    detectron2: Path | None = None
    """Detectron2's source folder, which needs no building; None: the installed package, if there is one."""
    slurm: Slurm = Slurm()
    """How jobs are asked for on a cluster, for the launcher `slurm`."""
    data: Mapping[str, Path] = field(default_factory=dict)
    """The root of each data set, by the name of its key under [data]."""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise InvalidError(f"checkpoint_every is {self.checkpoint_every}: at least 1 epoch is expected.")
        if self.devices < 1:
            raise InvalidError(f"devices is {self.devices}: at least 1 is expected.")
        if not 0 < self.heartbeat < math.inf:
            raise InvalidError(f"heartbeat is {self.heartbeat}: a number of seconds above 0 is expected.")
        for key in ("jobs", "workers", "cache_gb", "features_gb"):
            if not getattr(self, key) >= 0:  # nan is not
                raise InvalidError(f"{key} is {getattr(self, key)}: at least 0 is expected.")

    @property
    def store(self) -> str:
        """The tracking URI in force. A relative sqlite file is taken from the project, or from here where the
        environment names it."""
        from_environment = os.environ.get("MLFLOW_TRACKING_URI", "")
        given = from_environment or self.tracking_uri or f"sqlite:///{self.runs / 'mlflow.db'}"
        file = given.removeprefix("sqlite:///")
        return given if file == given else f"sqlite:///{(Path.cwd() if from_environment else PROJECT) / file}"

    def without_places(self, text: str) -> str:
        """`text` with the folders of this machine by their names: a report tells of no machine, and is the
        same on the next one."""
        names = {str(path): f"<{key}>" for key, path in self.data.items()} | {
            str(self.runs): "runs",
            str(self.reports): "reports",
        }
        names |= {self.store: "the tracking store", str(site_file()): site_file().name, str(PROJECT): "."}
        if self.detectron2:
            names[str(self.detectron2)] = "<detectron2>"
        places = sorted(
            (place for place in names if len(place) > 1), key=len, reverse=True
        )  # the innermost folder first
        return re.sub(
            rf"(?<![\w.-])({'|'.join(map(re.escape, places))})(?![\w-])", lambda found: names[found[1]], text
        )

    def root(self, key: str, layout: str, source: str, holds: Iterable[str] = ()) -> Path:
        """The folder of the data set `key`.

        Args:
            layout: what the folder must hold, in words.
            source: the command or page that gets it.
            holds: files and folders that must be in it; each is asked whether it is there, and nothing is
                listed.

        Raises:
            LookupError: the key is not set, the folder is not there, or it lacks something; the message says
                what would work.
        """
        if key not in self.data:
            problem = f'is not set: add `{key} = "/path"` under [data] in {_shown(site_file())}'
        elif not self.data[key].is_dir():
            problem = f"is {self.data[key]}, which is not a folder"
        elif lacking := [name for name in holds if not (self.data[key] / name).exists()]:
            problem = f"is {self.data[key]}, which lacks {', '.join(lacking)}"
        else:
            return self.data[key]
        raise NotFoundError(f"The data root '{key}' {problem}. Layout: {layout}. Get it: {source}.")


def site_file() -> Path:
    """The site file in force, whether or not it exists."""
    return Path(os.environ.get("MSBREG_SITE") or PROJECT / "configs" / "site.toml")


def _shown(path: Path) -> str:
    """A file as one would type it in the project's folder: messages may end up in reports, which name no
    machine's places."""
    return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)


def load() -> Site:
    """The site of this machine.

    Raises:
        ValueError: the file is not TOML, or a key is unknown or of a wrong type.
    """
    path = site_file()
    if not path.exists():
        if os.environ.get("MSBREG_SITE"):
            raise InvalidError(f"MSBREG_SITE names {path}, which does not exist.")
        return Site()
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{path} is not valid TOML: {error}.") from None
    return Site(**{key: _value(path, key, value) for key, value in content.items()})


def _value(path: Path, key: str, value: Any) -> Any:
    """One key of the site file as its field wants it; relative paths are taken from the project."""
    kinds = {entry.name: str(entry.type) for entry in fields(Site)}
    if key not in kinds:
        raise InvalidError(f"{path}: {unknown('key', key, kinds)}")
    if key == "data":
        if not isinstance(value, dict) or not all(isinstance(root, str) for root in value.values()):
            raise InvalidError(f"{path}: [data] maps names to folders, each a string.")
        return {name: PROJECT / Path(root).expanduser() for name, root in value.items()}
    if key == "slurm":
        if not isinstance(value, dict):
            raise InvalidError(f"{path}: slurm is a table of its own, [slurm].")
        return Slurm(**{name: _slurm_value(path, name, each) for name, each in value.items()})
    kind = kinds[key].removesuffix(" | None")
    if kind == "Path" and isinstance(value, str):
        return PROJECT / Path(value).expanduser()
    return _typed(path, key, value, kind)


def _slurm_value(path: Path, key: str, value: Any) -> Any:
    """One key of the table [slurm] as its field wants it."""
    kinds = {entry.name: str(entry.type) for entry in fields(Slurm)}
    if key not in kinds:
        raise InvalidError(f"{path}: {unknown('key of [slurm]', key, kinds)}")
    if not kinds[key].startswith("tuple"):
        return _typed(path, f"slurm.{key}", value, kinds[key])
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise InvalidError(f"{path}: slurm.{key} is {value!r}, a list of strings is expected.")
    return tuple(value)


def _typed(path: Path, key: str, value: Any, kind: str) -> Any:
    """`value`, if it is of that kind."""
    wanted = {"str": str, "int": int, "float": (int, float), "Path": str}[kind]
    if not isinstance(value, wanted) or isinstance(value, bool):  # type: ignore[arg-type]
        raise InvalidError(f"{path}: {key} is {value!r}, a {kind} is expected.")
    return value
