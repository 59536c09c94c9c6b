"""Folders, devices and the tracking store of this machine.

Nothing here can change a number beyond rounding, which `device`, `devices` and `compile` do.

`load()` reads `configs/site.toml`, or the file that `MSBREG_SITE` points to. Every key has a default, so a
site file is needed only for real data. See `configs/site.example.toml`.
"""

from __future__ import annotations

import codecs
import math
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from reproduce.messages import InvalidError, NotFoundError, first_line, public, unknown, without_secrets

PROJECT = Path(__file__).resolve().parent.parent
ASKED_BY = ("gpus-per-node", "gres", "none")
"""Ways to request GPUs from a cluster."""
REPLACED = {
    "checkpoint_every": "checkpoints are now as far apart as 'checkpoint_seconds' says, whose default is 60"
}
"""Keys of earlier versions, and what replaces them."""
KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a string"),
    "int | str": ((int, str), 'a whole number or "auto"'),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "bool | str": ((bool, str), 'true, false or "auto"'),
    "Path": ((str,), "a path in quotes"),
}
"""Types of a value in the site file, and their description, by the type of its field."""
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Environment variables that contain a secret of the tracking server."""
LARGEST = 10**9
"""Maximum of whole numbers: beyond it, a value is a typing error."""
MOST_WORKERS = 1024
"""Maximum number of processes that decode for one run, above the cores of any machine."""
EARLIEST = 60
"""Maximum number of seconds by which Slurm may send the signal too early (sbatch(1), --signal)."""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Options of jobs on a cluster: the table [slurm]. Empty strings and zeros leave the choice to Slurm."""

    partition: str = ""
    """Partitions, separated by commas."""
    account: str = ""
    """Account that is charged."""
    qos: str = ""
    """Quality of service."""
    time: str = ""
    """Time limit of one job, in the notation of `sbatch --time`, such as 1-12:00:00. A longer run is requeued
    and resumes."""
    gpus: str = "gpus-per-node"
    """Way to request GPUs, one of ASKED_BY: `--gpus-per-node=4`, `--gres=gpu:4`, or not at all."""
    gpu_type: str = ""
    """GPU type, such as a100; empty for any."""
    gpus_per_node: int = 8
    """Number of GPUs in one node; a larger `devices` uses several nodes."""
    cpus_per_gpu: int = 0
    """Cores for each GPU, or for each process on a CPU."""
    memory: str = ""
    """Memory of the node for each GPU or process, such as 32G; runs that share a GPU share it."""
    gpu_memory: str = ""
    """Memory of one GPU in powers of 1000, such as 80G; empty to take that of `gpu_type`, if it is known."""
    max_at_once: int = 0
    """Maximum number of jobs of one array at the same time; 0 for any number."""
    array_size: int = 1000
    """Maximum number of elements of one array, the cluster's MaxArraySize minus one. More runs need several
    arrays."""
    grace: int = 120
    """Seconds before the time limit at which a run receives a stop request and writes its checkpoint."""
    poll: float = 30.0
    """Seconds between two calls of squeue, which asks for all jobs at once."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch, passed unchanged, such as --constraint=a100."""
    setup: tuple[str, ...] = ()
    """Lines of shell, such as `module load cuda`, executed unchanged on the node at the start of each
    job."""

    def __post_init__(self) -> None:
        for key in ("partition", "account", "qos", "gpu_type"):
            if not re.fullmatch(r"[\w.,@+-]*", getattr(self, key), re.ASCII):
                raise InvalidError(
                    f"slurm.{key} is {getattr(self, key)!r}: letters, digits and any of . , @ + - _ are "
                    "expected."
                )
        if not re.fullmatch(r"(\d+[KMGT]?)?", self.memory, re.ASCII):
            raise InvalidError(
                f"slurm.memory is {self.memory!r}: a number with K, M, G or T is expected, such as 32G."
            )
        if not re.fullmatch(r"([1-9]\d*[MGT])?", self.gpu_memory, re.ASCII):
            raise InvalidError(
                f"slurm.gpu_memory is {self.gpu_memory!r}: a number with M, G or T is expected, such as 80G."
            )
        if self.gpus not in ASKED_BY:
            raise InvalidError(f"slurm.gpus: {unknown('way to request GPUs', self.gpus, ASKED_BY)}")
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
                raise InvalidError(f"slurm.{key} contains {broken[0]!r}: each entry must be a single line.")
        if wrong := [line for line in self.extra if not line.startswith("-")]:
            raise InvalidError(
                f"slurm.extra contains {wrong[0]!r}: an option of sbatch is expected, such as "
                "--constraint=a100."
            )
        if self.time and _seconds(self.time) <= (earliest := self.grace + EARLIEST):
            raise InvalidError(
                f"slurm.time is {self.time!r}, but runs are stopped {self.grace} s (slurm.grace) to "
                f"{earliest} s earlier: no run would make progress. Set a longer time, or a shorter grace."
            )


def _seconds(time: str) -> int:
    """Return the seconds of a time limit in Slurm's notation.

    The notation is minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, ...

    Raises:
        ValueError: `time` is not in this notation.
    """
    found = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", time, re.ASCII)
    if not found:
        raise InvalidError(
            f"slurm.time is {time!r}: minutes, hours:minutes:seconds or days-hours:minutes:seconds are "
            "expected."
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
    """Folders and preferences of one machine."""

    runs: Path = PROJECT / "runs"
    """Checkpoints, logs, generated data and the default tracking store; costly to delete."""
    reports: Path = PROJECT / "reports"
    """Rendered tables, one folder for each scale."""
    tracking_uri: str = ""
    """MLflow server or database; empty for `sqlite:///<runs>/mlflow.db`. The environment variable
    MLFLOW_TRACKING_URI takes precedence."""
    device: str = "auto"
    """Device of runs: `cpu`, `cuda`, `cuda:1`, ...; `auto` for the GPU if there is one."""
    launcher: str = "local"
    """Name of a module of `reproduce/launch`."""
    jobs: int = 0
    """Maximum number of runs at the same time; 0 for `runs_per_gpu` on each GPU, or one on each core without
    a GPU."""
    runs_per_gpu: int | str = "auto"
    """Number of one-device runs that share a GPU at a time; `auto` for several small ones, as far as memory
    allows, and one of those that keep a GPU busy (`resources/sharing.py`). On a cluster, they share a job."""
    devices: int = 1
    """GPUs, or processes on a CPU, for each pretraining and each Detectron2 fine-tuning; other evaluations
    use one."""
    heartbeat: float = 10.0
    """Seconds between two heartbeats of a run's owner, which counts as dead after three missing ones."""
    workers: int | str = "auto"
    """Processes that decode images for one run; 0 for one thread in the run's own process; `auto` for the
    cores of a run on a GPU but one (`runs/cores.py`), and for 0 on a CPU."""
    checkpoint_seconds: float = 60.0
    """Maximum number of seconds of training that a kill can lose, but for the time that it takes to write a
    checkpoint; 0 for a checkpoint after each epoch of a pretraining and each step of an evaluation."""
    probe_every: int | str = "auto"
    """Epochs between two online probes of a pretraining (`nn/probe.py`), which change nothing in the run; 0
    for no probe and no pictures; `auto` to spend at most 3 % of the time of training on them."""
    recompute: bool = False
    """True if methods whose loss couples all views keep the activations of one view at a time, for one more
    forward pass. No number changes."""
    compile: bool | str = "auto"
    """True if torch.compile compiles the backbones of pretrainings (`nn/compiled.py`), which takes one to two
    minutes; numbers change within rounding. `auto` on a GPU for runs that are long enough to gain from it."""
    cache_gb: float = 4.0
    """Maximum size of decoded images, in 10^9 bytes, for which a data set is kept in memory."""
    features_gb: float = 20.0
    """Maximum size of the extracted features in `<runs>/features`, in 10^9 bytes; 0 to keep none. The folder
    is safe to delete."""
    detectron2: Path | None = None
    """Detectron2's source folder, which need not be built; None for the installed package, if there is
    one."""
    slurm: Slurm = Slurm()
    """Options of jobs on a cluster, for the launcher `slurm`."""
    data: Mapping[str, Path] = field(default_factory=dict)
    """Root folder of each data set, by its key under [data]."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device, re.ASCII):
            raise InvalidError(f"device is {self.device!r}: auto, cpu, cuda or cuda:0, ... is expected.")
        if self.probe_every != "auto" and not (isinstance(self.probe_every, int) and self.probe_every >= 0):
            raise InvalidError(
                f"probe_every is {self.probe_every!r}: a number of epochs, 0 for never, or auto is expected."
            )
        shared = self.runs_per_gpu
        if shared != "auto" and not (isinstance(shared, int) and shared >= 1):
            raise InvalidError(
                f"runs_per_gpu is {shared!r}: a number of runs of at least 1, or auto is expected."
            )
        if self.workers != "auto" and not (
            isinstance(self.workers, int) and 0 <= self.workers <= MOST_WORKERS
        ):
            raise InvalidError(
                f"workers is {self.workers!r}: a number of processes up to {MOST_WORKERS}, 0 for none, or "
                "auto is expected."
            )
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise InvalidError(f"compile is {self.compile!r}: true, false or auto is expected.")
        if self.devices < 1:
            raise InvalidError(f"devices is {self.devices}: at least 1 is expected.")
        if not 0 < self.heartbeat < math.inf:
            raise InvalidError(f"heartbeat is {self.heartbeat}: a number of seconds above 0 is expected.")
        for key in ("jobs", "checkpoint_seconds", "cache_gb", "features_gb"):
            if not 0 <= getattr(self, key) < math.inf:  # nan is not
                raise InvalidError(
                    f"{key} is {getattr(self, key)}: a finite number of at least 0 is expected."
                )

    @property
    def store(self) -> str:
        """Tracking URI in force, which may contain a password: texts show `public_store`.

        The relative path of a sqlite file is resolved against the project's folder, or against the current
        folder if the environment names the file.
        """
        from_environment = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        given = from_environment or self.tracking_uri.strip() or f"sqlite:///{self.runs / 'mlflow.db'}"
        file = given.removeprefix("sqlite:///")
        if file == given:
            return given
        relative = from_environment and not Path(file).is_absolute()
        return f"sqlite:///{(_current_folder() if relative else PROJECT) / file}"

    @property
    def public_store(self) -> str:
        """Tracking URI in force as texts show it."""
        return public(self.store)

    def without_secrets(self, text: str) -> str:
        """Return `text` without the password of the tracking store, in any form."""
        secrets = [os.environ.get(name, "") for name in SECRETS]
        return without_secrets(text, self.store, *secrets)

    def without_places(self, text: str) -> str:
        """Return `text` without secrets, and with this machine's folders replaced by their names.

        A report names no machine, so it is the same on the next one.
        """
        names = {str(path): f"<{key}>" for key, path in self.data.items()} | {
            str(self.runs): "runs",
            str(self.reports): "reports",
        }
        store = dict.fromkeys((self.public_store, self.public_store.rstrip("/")), "the tracking store")
        names |= store | {str(site_file()): site_file().name, str(PROJECT): "."}
        if self.detectron2:
            names[str(self.detectron2)] = "<detectron2>"
        # The innermost folder first.
        places = sorted((place for place in names if len(place) > 1), key=len, reverse=True)
        return re.sub(
            rf"(?<![\w.-])({'|'.join(map(re.escape, places))})(?![\w-])",
            lambda found: names[found[1]],
            self.without_secrets(text),
        )

    def folders(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the root folders of those keys that are set."""
        return {key: str(self.data[key]) for key in keys if key in self.data}

    def root(self, key: str, layout: str, source: str, holds: Iterable[str] = ()) -> Path:
        """Return the folder of the data set `key`.

        Args:
            layout: required content of the folder, in words.
            source: the command or page that provides it.
            holds: files and folders that must be in it; each is checked, and nothing is listed.

        Raises:
            LookupError: the key is not set, the folder does not exist, or its content is incomplete; the
                message names what would work.
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


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:
        raise InvalidError("The current folder was deleted: change to another one.") from None


def site_file() -> Path:
    """Return the path of the site file in force, which need not exist.

    Raises:
        ValueError: MSBREG_SITE is not a path.
    """
    return user_path(os.environ.get("MSBREG_SITE") or str(PROJECT / "configs" / "site.toml"))


def _shown(path: Path) -> str:
    """Return a path relative to the project if possible: reports quote it, and name no machine's folders."""
    return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)


def user_path(text: str) -> Path:
    """Return the path that a user wrote, with `~` expanded.

    Raises:
        ValueError: `~name` does not name a user, or the path contains a null byte.
    """
    if "\0" in text:
        raise InvalidError(f"'{text!r:.80}' is not a path: it contains a null byte.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = text[1:].partition("/")[0]
        problem = f"the user '{user}' does not exist" if user else "HOME is not set"
        raise InvalidError(f"'{text:.80}' is not a path: {problem}.") from None


def user_file(text: str) -> Path | None:
    """Return the file whose path a user wrote, or None if it does not exist.

    Raises:
        ValueError: the path is not one, or its folder cannot be read.
    """
    path = user_path(text)
    try:
        return path if path.is_file() else None
    except OSError as error:
        raise InvalidError(f"'{text:.80}' cannot be read ({error.strerror}).") from None


def load() -> Site:
    """Return the site of this machine.

    Raises:
        ValueError: the file is not TOML or cannot be read, a key is unknown or in the wrong table, or a value
            has the wrong type or is not a folder.
    """
    path = site_file()
    try:
        text = _decoded(path, path.read_bytes())
    except FileNotFoundError:
        if os.environ.get("MSBREG_SITE"):
            raise InvalidError(f"MSBREG_SITE points to {path}, which does not exist.") from None
        return Site()
    except OSError as error:
        raise InvalidError(f"{path!s:.80} cannot be read ({error.strerror}).") from None
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise InvalidError(f"{path} is not valid TOML: {first_line(error):.200}.") from None
    for table, keys in {"": content, "data": content.get("data"), "slurm": content.get("slurm")}.items():
        if isinstance(keys, dict):
            _check_keys(path, text, table, keys)
    values = {key: _value(path, key, value) for key, value in content.items()}
    with _named(path):
        return Site(**values)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the site file in the error about a value that is checked inside the block."""
    try:
        yield
    except InvalidError as error:
        raise InvalidError(f"{path}: {error}") from None


def data_roots() -> list[str]:
    """Return the keys that [data] may have: those of the example file."""
    example = (PROJECT / "configs" / "site.example.toml").read_text(encoding="utf-8")
    return re.findall(r'^# (\w+) = "', example.partition("\n[data]\n")[2], re.MULTILINE)


def _decoded(path: Path, content: bytes) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark; editors write both.

    Raises:
        ValueError: the file has another encoding.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "not UTF-8"
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidError(f"{path}, line {line}: the file is {kind}. Save it as UTF-8.") from None


def _check_keys(path: Path, text: str, table: str, keys: Iterable[str]) -> None:
    """Raise InvalidError if a table of the site file has a key of another table, or an unknown one.

    Args:
        text: content of the file.
        table: name of the table; "" for the keys above all tables.
    """
    known = {
        "": [entry.name for entry in fields(Site)],
        "slurm": [entry.name for entry in fields(Slurm)],
        "data": data_roots(),
    }
    for key in keys:
        if key in known[table]:
            continue
        place = f"{path}{_line_of(text, table, key)}"
        if key in REPLACED:
            raise InvalidError(f"{place}: '{key}' was replaced: {REPLACED[key]}.")
        for other, names in known.items():
            if key in names:
                where = f"below [{other}]" if other else "at the beginning of the file"
                here = f"below [{table}]" if table else "outside of the tables"
                raise InvalidError(f"{place}: '{key}' belongs {where}, but is {here}: move it.")
        kind = {"": "key", "slurm": "key of [slurm]", "data": "data root"}[table]
        raise InvalidError(f"{place}: {unknown(kind, key, known[table])}")


def _line_of(text: str, table: str, key: str) -> str:
    """Return `, line 7` for a key of a table, or "" if it is not at the beginning of a line."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            current = header[1].strip("\"'")
        if current == table and re.match(rf"""\s*(["']?){re.escape(key)}\1\s*[.=]""", line):
            return f", line {number}"
        if current == key and header:  # a table that does not exist
            return f", line {number}"
    return ""


def _value(path: Path, key: str, value: Any) -> Any:
    """Return the value of a key in the form of its field; relative paths start at the project's folder."""
    kinds = {entry.name: str(entry.type) for entry in fields(Site)}
    if key == "data":
        if not isinstance(value, dict) or not all(isinstance(root, str) for root in value.values()):
            raise InvalidError(f"{path}: [data] maps names to folders, each a string.")
        return {name: _folder(path, f"data.{name}", root) for name, root in value.items()}
    if key == "slurm":
        if not isinstance(value, dict):
            raise InvalidError(f"{path}: slurm must be a table of its own, [slurm].")
        values = {name: _slurm_value(path, name, each) for name, each in value.items()}
        with _named(path):
            return Slurm(**values)
    kind = kinds[key].removesuffix(" | None")
    if kind == "Path" and isinstance(value, str):
        folder = _folder(path, key, value)
        if key in ("runs", "reports"):
            _check_place(path, key, folder)
        return folder
    return _typed(path, key, value, kind)


def _folder(path: Path, key: str, value: str) -> Path:
    """Return the folder that a key of the site file names.

    Raises:
        ValueError: the value is empty, names a user who does not exist, or contains a variable.
    """
    if not value.strip():
        raise InvalidError(f"{path}: {key} is empty: leave out the key for its default.")
    try:
        folder = PROJECT / user_path(value)
    except InvalidError as error:
        raise InvalidError(f"{path}: {key}: {error}") from None
    if re.search(r"\$\{?\w", value) and not folder.exists():
        raise InvalidError(
            f"{path}: {key} is {value!r}: variables are not replaced. Write the path itself, or ~ "
            "for your home folder."
        )
    return folder


def _check_place(path: Path, key: str, folder: Path) -> None:
    """Raise InvalidError if a folder cannot be created, because a file is in its place or above it."""
    try:
        existing = next(each for each in (folder, *folder.parents) if each.exists())
    except OSError as error:
        raise InvalidError(f"{path}: {key} is {folder!s:.80}: {error.strerror}.") from None
    if not existing.is_dir():
        raise InvalidError(f"{path}: {key} is {folder}, but {existing} is a file: a folder is expected.")


def _slurm_value(path: Path, key: str, value: Any) -> Any:
    """Return the value of a key of the table [slurm] in the form of its field."""
    kinds = {entry.name: str(entry.type) for entry in fields(Slurm)}
    if not kinds[key].startswith("tuple"):
        return _typed(path, f"slurm.{key}", value, kinds[key])
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise InvalidError(f"{path}: slurm.{key} is {value!r}: a list of strings is expected.")
    return tuple(value)


def _typed(path: Path, key: str, value: Any, kind: str) -> Any:
    """Return `value` if it has the type that its field expects.

    Raises:
        ValueError: `value` has another type.
    """
    wanted, words = KINDS[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and not kind.startswith("bool")):
        written = str(value).lower() if isinstance(value, bool) else repr(value)
        raise InvalidError(f"{path}: {key} is {without_secrets(written):.200}: {words} is expected.")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InvalidError(f"{path}: {key} is {str(value)[:20]}: at most {LARGEST} is expected.")
    return value
