"""The ids of the runs themselves: what moves one, what moves none, and that those of stored runs stay for
ever.

    PYTHONPATH=. python tests/test_ids.py      # renews tests/golden/ids.json; a line that goes or changes is
    a run that is lost

The rules by which an id is made are tested in test_spec.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from test_spec import has_one_value, other_values, settings_in

from reproduce import identity
from reproduce.nn.weights import Weights
from reproduce.plan import BASELINES, SCALES, Evaluation, NotHereError, Request, components, table_names
from reproduce.settings import Settings, limited_types
from reproduce.site import Site, Slurm, load
from reproduce.spec import Spec

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "ids.json"
PACKAGES = (
    "reproduce",
    *(f"reproduce.{name}" for name in ("data", "detection", "methods", "nn", "protocols")),
)


@cache
def classes() -> dict[str, type[Settings]]:
    """Every component by its name, found by walking the code."""
    found: dict[str, type[Settings]] = {}
    for package in PACKAGES:
        found |= {
            name: cls for name, cls in components(package, Settings).items() if not inspect.isabstract(cls)
        }
    return found


@cache
def runs() -> dict[str, tuple[Request, Spec]]:
    """Every run of every table at every scale, released baselines too, by its id."""
    found: dict[str, tuple[Request, Spec]] = {}
    for scale, table, baselines in itertools.product(SCALES, table_names(), BASELINES):
        request = Request(table=table, scale=scale, baselines=baselines)
        with contextlib.suppress(NotHereError):  # no released baselines
            for spec in request.specs():
                found.setdefault(spec.id, (request, spec))
    return found


def inside(spec: Settings) -> Iterator[Settings]:
    """A run and every component of it, the inner ones first."""
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Settings):
            yield from inside(value)
    yield spec


@cache
def of_every_component() -> tuple[tuple[Request, Spec], ...]:
    """For each scale, a run with each component that the scale has; as few as come of taking the first that
    has a new one."""
    chosen, seen = [], set()
    for request, spec in runs().values():
        here = {(request.scale, component.name) for component in inside(spec)}
        if not here <= seen:
            chosen.append((request, spec))
            seen |= here
    return tuple(chosen)


def test_the_runs_here_have_every_component() -> None:
    """Whatever is added to the suite is tested below, or this fails.

    No table has a folder of the user's, and no row is trained by NPID or PixPro yet.
    """
    assert len(classes()) > 30
    found = {component.name for _, spec in of_every_component() for component in inside(spec)}
    assert found == set(classes()) - {"folder", "npid", "pixpro"}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A run as it was when it was stored."""

    id: str
    table: str
    scale: str
    baselines: str
    settings: dict[str, Any]
    """Its canonical data."""


STORED = (
    [Stored(**each) for each in json.loads(GOLDEN.read_text(encoding="utf-8"))] if GOLDEN.exists() else []
)
EACH = pytest.mark.parametrize("run", STORED, ids=lambda run: f"{run.table}-{run.scale}-{run.id}")
MOST_AT_SMOKE = pytest.mark.parametrize(
    "run",
    [run if run.scale == "smoke" else pytest.param(run, marks=pytest.mark.slow) for run in STORED],
    ids=lambda run: f"{run.table}-{run.scale}-{run.id}",
)


def rebuilt(plain: Any, extended: tuple[str, ...] = ()) -> Any:
    """The settings that canonical data are of, made by today's classes; what they lack has its default.

    Args:
        extended: components that get one more setting, which finished runs do not have.
    """
    if isinstance(plain, list):
        return tuple(rebuilt(item, extended) for item in plain)
    if not isinstance(plain, dict):
        return plain
    name = plain["component"]
    cls = with_one_more(name) if name in extended else classes()[name]
    return cls(**{key: rebuilt(value, extended) for key, value in plain.items() if key != "component"})


# What moves an id


def changed(spec: Settings) -> Iterator[tuple[str, Any, Settings]]:
    """(path, other value, run) for every other value of every setting that makes sense."""
    for path, value, hint in settings_in(spec):
        accepted = [value]
        for other in other_values(value, hint):
            try:
                mutant = spec.replace(path, other)
            except ValueError:
                continue
            if other not in accepted:  # 2 + 2 and 2 x 2, or 2 x 0
                accepted.append(other)
                yield path, other, mutant
        only = has_one_value(path, hint) or value == () or _is_fixed(spec, path)
        assert len(accepted) > 1 or only, f"{spec.name}: no other {path} than {value!r} is accepted"


def _is_fixed(spec: Settings, path: str) -> bool:
    """True if the limits of a number leave one value: a method with exactly two views."""
    *parents, name = path.split(".")
    owner: Any = spec
    for parent in parents:
        owner = getattr(owner, parent)
    limits = getattr(limited_types(type(owner))[name], "__metadata__", ())
    return any(each.low == each.high for each in limits)


@MOST_AT_SMOKE
def test_every_change_of_every_setting_is_another_run(run: Stored) -> None:
    spec = rebuilt(run.settings)
    ids: dict[str, tuple[str, Any]] = {spec.id: ("unchanged", None)}
    for path, other, mutant in changed(spec):
        assert mutant.id not in ids, f"{path} = {other!r} has the id of {ids[mutant.id]}"
        ids[mutant.id] = (path, other)
    paths = {path for path, _ in ids.values()}
    assert len(paths) > 10


@pytest.mark.slow
def test_no_two_runs_of_the_suite_share_an_id() -> None:
    specs = {
        spec
        for scale, table in itertools.product(SCALES, table_names())
        for spec in Request(table=table, scale=scale, seeds=3).specs()
    }
    specs |= {spec for _, spec in runs().values()}
    assert len(specs) > 1500
    assert len({spec.id for spec in specs}) == len(specs)


def test_settings_of_an_evaluation_alone_are_settings() -> None:
    """What `invoke evaluate` makes of its arguments."""
    made = {}
    weights = Weights(sha256="0" * 64)
    for name, other in {
        "": weights,
        "content": Weights(sha256="1" * 64),
        "normalisation": dataclasses.replace(weights, std=(0.2, 0.2, 0.2)),
        "backbone": dataclasses.replace(weights, backbone="resnet18"),
    }.items():
        for protocol in ("knn", "weighted_knn", "linear"):
            made[name, protocol] = (
                Evaluation(weights=other, protocol=protocol, dataset="imagenette").build().id
            )
    assert len(set(made.values())) == len(made)


# What moves none


SITE = """
runs = "/elsewhere/runs"
reports = "/elsewhere/reports"
tracking_uri = "http://127.0.0.1:1"
device = "cuda:1"
launcher = "slurm"
jobs = 7
runs_per_gpu = 3
devices = 8
heartbeat = 3.5
workers = 5
checkpoint_seconds = 9.5
probe_every = 5
recompute = true
compile = true
cache_gb = 0.5
features_gb = 0.25
detectron2 = "/elsewhere/detectron2"
[data]
stl10 = "/elsewhere/stl10"
[slurm]
partition = "gpu"
account = "vision"
qos = "long"
time = "1-00:00:00"
gpus = "gres"
gpu_type = "a100"
gpus_per_node = 4
cpus_per_gpu = 6
memory = "32G"
gpu_memory = "80G"
max_at_once = 3
array_size = 100
grace = 200
poll = 7.5
extra = ["--constraint=a100"]
setup = ["module load cuda"]
"""
"""Another value of every key."""
VARIABLES = re.compile(r'environ(?:\.get\(|\.setdefault\(|\[)"(\w+)"')
OF_PYTHON = {
    "PYTHONHASHSEED": "7",
    "LC_ALL": "C",
    "TZ": "Asia/Tokyo",
    "OMP_NUM_THREADS": "3",
    "CUDA_VISIBLE_DEVICES": "5",
}
ALL_IDS = """
import json, sys
from reproduce import site
from reproduce.plan import SCALES, Request, table_names
site.load()
requests = [Request(table=table, scale=scale) for table in table_names() for scale in SCALES]
print(json.dumps(sorted({spec.id for request in requests for spec in request.specs()})))
"""


def variables() -> set[str]:
    """The environment variables that the code reads, by its text."""
    texts = [
        path.read_text(encoding="utf-8")
        for folder in ("reproduce", "configs", "tables")
        for path in (ROOT / folder).rglob("*.py")
    ]
    return {name for text in texts for name in VARIABLES.findall(text)}


def ids_elsewhere(**environment: str) -> list[str]:
    """The ids of all tables in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_IDS],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_no_key_of_the_site_and_no_variable_moves_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site.toml"
    file.write_text(SITE)
    monkeypatch.setenv("MSBREG_SITE", str(file))
    here = load()
    same = [
        field.name
        for field in dataclasses.fields(Site)
        if getattr(here, field.name) == getattr(Site(), field.name)
    ]
    same += [
        field.name
        for field in dataclasses.fields(Slurm)
        if getattr(here.slurm, field.name) == getattr(Slurm(), field.name)
    ]
    assert not same, f"give {same} other values in SITE"

    assert {"MSBREG_SITE", "SLURM_JOB_ID", "WORLD_SIZE"} <= variables()
    environment = (
        OF_PYTHON
        | dict.fromkeys(variables(), "3")
        | {"MSBREG_SITE": str(file), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    )
    plain = sorted({spec.id for request, spec in runs().values() if request.baselines == BASELINES[0]})
    assert len(plain) > 500
    assert ids_elsewhere(**environment) == plain
    assert ids_elsewhere(PYTHONHASHSEED="random") == plain


# Stored runs


@cache
def with_one_more(name: str) -> Any:
    """The class of a component with a setting that was added later."""
    cls = classes()[name]
    made: Any = types.new_class(
        cls.__name__, (cls,), {"name": name}, partial(_annotate, default=identity.added_later(7, "9.9"))
    )
    return dataclasses.dataclass(frozen=True, kw_only=True)(made)


def _annotate(body: dict[str, Any], default: Any) -> None:
    """Declares `added: int = default` in a class body."""
    body |= {"__annotations__": {"added": int}, "added": default}


def test_the_stored_runs_have_every_component_at_every_scale() -> None:
    def names(plain: Any) -> Iterator[str]:
        for value in plain.values():
            if isinstance(value, dict):
                yield from names(value)
        yield plain["component"]

    here = {(each.scale, name) for each in STORED for name in names(each.settings)}
    wanted = {
        (request.scale, component.name) for request, spec in runs().values() for component in inside(spec)
    }
    assert not wanted - here, "store a run of these: see the head of this file"


@EACH
def test_a_stored_run_keeps_its_id(run: Stored) -> None:
    assert identity.digest_of_plain(run.settings) == run.id, "the file was changed by hand, or the rule was"
    assert rebuilt(run.settings).id == run.id, (
        "a setting was added, or a default changed, that finished runs did not have"
    )
    assert run.id in runs(), f"{run.table} at {run.scale} makes another run now: {rebuilt(run.settings)}"
    assert rebuilt(run.settings) == runs()[run.id][1]


@EACH
def test_a_setting_that_is_added_keeps_it_until_it_has_another_value(run: Stored) -> None:
    present = sorted({component.name for component in inside(rebuilt(run.settings))})
    assert rebuilt(run.settings, tuple(present)).id == run.id
    for name in present:
        extended = rebuilt(run.settings, (name,))
        assert extended.id == run.id
        paths = [path for path, value in extended.leaves() if path.split(".")[-1] == "added" and value == 7]
        assert paths
        for path in paths:
            assert extended.replace(path, 8).id != run.id


def test_a_setting_that_is_added_without_saying_so_moves_it() -> None:
    """What the stored runs are there to find."""
    run = next(run for run in STORED if run.settings["component"] == "pretrain")
    cls = classes()["pretrain"]
    made: Any = types.new_class(cls.__name__, (cls,), {"name": "pretrain"}, partial(_annotate, default=7))
    more = dataclasses.dataclass(frozen=True, kw_only=True)(made)
    fields = {key: rebuilt(value) for key, value in run.settings.items() if key != "component"}
    assert more(**fields).id != run.id


def main() -> None:
    """Stores a run of each component at each scale."""
    made = [
        Stored(spec.id, request.table, request.scale, request.baselines, identity.canonical(spec))
        for request, spec in of_every_component()
    ]
    lines = ",\n".join(json.dumps(dataclasses.asdict(each)) for each in made)
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
