"""The whole pretraining over the training step on ready views: what decoding, views, probes and files cost.

    python -m bench pretraining                  # about 2 minutes on two CPU cores; at least .90 of the step
    python -m bench.bench_pretraining --part at_once    # one of PARTS alone

The pretraining is `pretrain` of `reproduce/train.py` with the defaults of the site file. It reads JPEG files
of the sizes of Imagenette or ImageNet, which are made first, in a temporary folder. Its images/s are those of
all epochs after the first, so they include every wait for images, views, probes and checkpoints. The step is
the complete `train_step` on views that are drawn already. Rounds of both take turns.

On a GPU there are two more parts. Several runs at once are real processes on one GPU. Their images/s are
added up while all of them train, without their first epochs. The time outside of training is that of a run of
the worker from the start of its process to its end, less its images at its usual speed.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import pictures
from bench.command import options
from bench.compare import PROJECT, machine, prepare, record
from configs import pretrain as recipes
from reproduce import train
from reproduce.data.folder import Folder
from reproduce.data.images import Whole
from reproduce.messages import counted
from reproduce.methods.method import Method
from reproduce.plan import Request
from reproduce.runs.progress import Progress, Silent
from reproduce.site import Site
from reproduce.spec import Pretrain

LEARNING_RATE = 1e-3
IMAGENETTE, IMAGENET = {"width": 213, "height": 160}, {"width": 500, "height": 375}
"""Usual sizes of the images in pixels."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of the comparison."""

    backbone: str
    size: int
    """Side of a view in pixels."""
    batch_size: int
    num_views: int
    steps: int
    """Steps of an epoch."""
    epochs: int
    """Epochs of a round. The first is not measured."""
    rounds: int
    cached: bool = True
    """True if the decoded images stay in memory, as those of Imagenette do and those of ImageNet do not."""
    bar: float | None = None

    def spec(self, device: torch.device, seed: int = 0) -> Pretrain:
        """Return a run of the full method on a folder of images."""
        run = recipes.msbreg(recipes.stl10, num_views=self.num_views, batch_size=self.batch_size)
        return replace(
            run,
            dataset=Folder(size=self.size, resize=self.size * 8 // 7, canvas=2 * self.size),
            backbone=self.backbone,
            epochs=self.epochs,
            optimizer=replace(run.optimizer, warmup_epochs=0),
            precision="float32" if device.type == "cpu" else "bfloat16",
            seed=seed,
        )

    def site(self, images: Path, runs: Path, device: torch.device) -> Site:
        """Return a site with its defaults, except for what the case needs."""
        site = Site(runs=runs, device=device.type, data={"folder": images})
        return site if self.cached else replace(site, cache_gb=0.0)

    def images(self, root: Path) -> Path:
        """Write the images of an epoch below `root`."""
        kind: Any = IMAGENETTE if self.cached else IMAGENET
        return pictures.folder(root, train=self.steps * self.batch_size, **kind)

    def __str__(self) -> str:
        return f"{self.backbone}, {self.size} px, batch {self.batch_size}, K = {self.num_views}"


SMALL = Case(
    backbone="resnet18_3x3", size=64, batch_size=512, num_views=2, steps=18, epochs=5, rounds=2, bar=0.9
)
ON_CPU = (replace(SMALL, batch_size=16, steps=10, epochs=3, rounds=2),)
ON_GPU = (
    SMALL,
    replace(SMALL, num_views=4),
    replace(SMALL, batch_size=256, steps=36, bar=0.85),
    replace(SMALL, batch_size=256, steps=36, num_views=4, bar=0.85),
    Case(
        backbone="resnet50",
        size=224,
        batch_size=128,
        num_views=4,
        steps=16,
        epochs=3,
        rounds=1,
        cached=False,
        bar=0.95,
    ),
)
QUICK = (Case(backbone="small", size=16, batch_size=4, num_views=2, steps=5, epochs=2, rounds=1),)
"""Case that shows that the benchmark runs; its number means nothing."""
AT_ONCE, NUM_AT_ONCE, BAR_AT_ONCE = replace(SMALL, batch_size=256, steps=36, epochs=6), 4, 1.4
BAR_OUTSIDE = 0.05
OUTSIDE = Request(
    table="table8",
    scale="small",
    rows="BYOL",
    changes=("epochs=40", "optimizer.warmup_epochs=4"),
)
"""Run of about a minute on an H200."""
SPEED = re.compile(r"^epoch .* ([0-9.,]+) images/s$", re.MULTILINE)
"""The line of an epoch in the log of a run."""
TRAIN, VAL = 9_469, 3_925
"""Images of Imagenette."""


def measure(quick: bool = False, part: str = "") -> list[dict[str, Any]]:
    """Return the records of one part of the benchmark, or of all parts that this device has."""
    device = prepare()
    if quick:
        return whole(QUICK, device)
    if device.type == "cpu":
        return whole(ON_CPU, device)
    return [found for name in ([part] if part else PARTS) for found in PARTS[name](device)]


# The pretraining over the step


def whole(cases: tuple[Case, ...], device: torch.device) -> list[dict[str, Any]]:
    """Return one record for each case."""
    found = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            found.append(_over_the_step(case, Path(folder), device))
    return found


def _over_the_step(case: Case, folder: Path, device: torch.device) -> dict[str, Any]:
    images, ratios, speeds = case.images(folder / "images"), list[float](), list[tuple[float, float]]()
    step = ready_step(case, case.site(images, folder / "ready", device), device)
    for number in range(case.rounds):
        alone = case.batch_size * case.steps / _seconds(step, case.steps, device)
        marks = run(case, case.site(images, folder / f"runs{number}", device), device)
        trained = speed(marks)
        ratios.append(trained / alone)
        speeds.append((trained, alone))
    first, second = (statistics.median(column) for column in zip(*speeds, strict=True))
    detail = f"{first:.0f} over {second:.0f} images/s; {_machine(device)}; {counted(case.rounds, 'round')}"
    return record(
        "pretraining",
        f"{case}: pretraining over step",
        statistics.median(ratios),
        unit="x",
        detail=detail,
        at_least=case.bar,
    )


def run(
    case: Case, site: Site, device: torch.device, seed: int = 0, method: Method | None = None
) -> list[tuple[float, int]]:
    """Pretrain, and return the time and the number of images seen at the end of each epoch.

    Args:
        method: another method than that of the case.
    """
    marks: list[tuple[float, int]] = []

    def report(progress: Progress) -> None:
        if progress.done % (case.batch_size * case.steps) == 0:  # all its work is done: the loss was read
            marks.append((time.perf_counter(), progress.done))

    spec = case.spec(device, seed)
    spec = spec if method is None else replace(spec, method=method)
    train.pretrain(spec, site, site.runs / spec.id, device, Silent(), report)
    return marks


def speed(marks: list[tuple[float, int]]) -> float:
    """Return the images/s after the first epoch."""
    (began, before), (ended, after) = marks[0], marks[-1]
    return (after - before) / (ended - began)


def ready_step(case: Case, site: Site, device: torch.device) -> Any:
    """Return a function that executes a step on views of the first images."""
    spec = case.spec(device)
    images = spec.dataset.load(spec.dataset.pretrain_split, site)
    network, optimizer = train.start(spec, device, len(images), compile_=site.compile)
    pixels, sizes, which = images.read(range(case.batch_size), Whole())
    batch = train.draw_batch(spec, pixels.to(device), sizes, which)
    meter = train.Meter()
    return lambda: train.train_step(spec, network, optimizer, meter, batch, lr=LEARNING_RATE)


def _seconds(step: Any, count: int, device: torch.device) -> float:
    """Return the seconds of `count` steps after one more, on a GPU from idle to idle."""
    step()
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _machine(device: torch.device) -> str:
    threads = "" if device.type == "cpu" else f", {os.cpu_count()} cores"
    return f"{machine(device)}{threads}"


# Several runs at once


def at_once(device: torch.device) -> list[dict[str, Any]]:
    """Return the record of several processes on one GPU over one process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = AT_ONCE.images(folder / "images")
        (alone,) = _processes(1, images, folder / "alone")
        several = _processes(NUM_AT_ONCE, images, folder / "several")
    began, ended = max(marks[0][0] for marks in several), min(marks[-1][0] for marks in several)
    title = f"{AT_ONCE}: {NUM_AT_ONCE} runs at once over one"
    if ended <= began:
        return [record("pretraining", title, None, unit="x", detail="the runs did not overlap")]
    total = sum(_between(marks, began, ended) for marks in several) / (ended - began)
    detail = f"{total:.0f} over {speed(alone):.0f} images/s; {_machine(device)}"
    return [record("pretraining", title, total / speed(alone), unit="x", detail=detail, at_least=BAR_AT_ONCE)]


def _processes(count: int, images: Path, runs: Path) -> list[list[tuple[float, int]]]:
    """Return the marks of `count` processes that train at the same time."""
    command = [sys.executable, "-m", "bench.bench_pretraining", "--one"]
    started = [
        subprocess.Popen(
            [*command, str(images), str(runs / str(seed)), str(seed)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(count)
    ]
    printed = [process.communicate()[0] for process in started]
    if failed := [process.returncode for process in started if process.returncode]:
        raise RuntimeError(f"{len(failed)} of {count} runs at once failed with exit code {failed[0]}.")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def _between(marks: list[tuple[float, int]], began: float, ended: float) -> float:
    """Return the images that a run saw between two times, with a steady speed within each epoch."""

    def seen(at: float) -> float:
        for (before, first), (after, last) in itertools.pairwise(marks):
            if before <= at <= after:
                return first + (last - first) * (at - before) / (after - before)
        return marks[-1][1]

    return seen(ended) - seen(began)


# Time outside of training


def outside(device: torch.device) -> list[dict[str, Any]]:
    """Return the record of the share of a whole run in which it does not train."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures.folder(folder / "images", train=TRAIN, val=VAL, width=213, height=160)
        site = folder / "site.toml"
        site.write_text(
            f'runs = "{folder}/runs"\nreports = "{folder}/reports"\n[data]\nimagenette = "{folder}/images"\n'
        )
        environment = {**os.environ, "MSBREG_SITE": str(site)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        # The first command creates the tracking store, once for all runs.
        command = [sys.executable, "-m", "invoke", "status"]
        subprocess.run(command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, check=False)
        spec = OUTSIDE.specs()[0]
        assert isinstance(spec, Pretrain)
        command = [sys.executable, "-m", "reproduce.worker", OUTSIDE.dumps(), spec.id]
        began = time.perf_counter()
        subprocess.run(command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - began
        log = (folder / "runs" / spec.id / "log.txt").read_text(encoding="utf-8")
    # The speed of an epoch leaves out probes. Few epochs have a checkpoint.
    usual = statistics.median(float(found.replace(",", "")) for found in SPEED.findall(log))
    training = spec.epochs * (TRAIN // spec.batch_size) * spec.batch_size / usual
    return [
        record(
            "pretraining",
            "BYOL, 40 epochs of Imagenette: time outside of training over all time",
            1 - training / wall,
            unit="x",
            detail=f"{wall - training:.1f} of {wall:.1f} s; {usual:.0f} images/s; {_machine(device)}",
            at_most=BAR_OUTSIDE,
        )
    ]


PARTS = {
    "small": lambda device: whole(ON_GPU[:-1], device),
    "large": lambda device: whole(ON_GPU[-1:], device),
    "at_once": at_once,
    "outside": outside,
}
"""Parts on a GPU, by name."""


if __name__ == "__main__":
    asked = options("bench.bench_pretraining", __doc__, parts=PARTS, inner="--one", num=3)
    if asked.inner:
        pictures_of, runs_of, number = asked.inner
        here = prepare()
        case_site = AT_ONCE.site(Path(pictures_of), Path(runs_of), here)
        print(json.dumps(run(AT_ONCE, case_site, here, seed=int(number))))
    else:
        print(json.dumps(measure(quick=asked.quick, part=asked.part)))
