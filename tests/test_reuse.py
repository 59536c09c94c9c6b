"""Finished runs count only for the data that are here; what says so, and what is executed again.

The encoder is trained for one epoch on 20 noise images, or not at all. The nearest neighbour of a test image
is the training image with the same pixels, if there is one: an evaluation on the complete data scores 100 %.
"""

from __future__ import annotations

import gc
import io
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from test_cli import HEAVY, imported
from toys import ended, image_folder

from reproduce import worker
from reproduce.commands.forecast import forecast
from reproduce.commands.make import _cannot_start
from reproduce.data.augmentation import Augmentation
from reproduce.data.dataset import Dataset
from reproduce.data.imagenette import Imagenette
from reproduce.data.synthetic import SyntheticFolder
from reproduce.methods.byol import BYOL
from reproduce.nn.heads import Heads
from reproduce.nn.optimizers import LARS
from reproduce.plan import Job, Request, jobs
from reproduce.protocols.knn import NearestNeighbours
from reproduce.readiness import RefusedError, blocked
from reproduce.report.counts import incomplete
from reproduce.report.filled import fill
from reproduce.report.latex import table as tex
from reproduce.report.observe import Finished, frame
from reproduce.report.render import html, markdown
from reproduce.runs import garbage, interrupt, journal
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.journal import Result
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking.reuse import NOT_HERE, Reuse, choose
from reproduce.tracking.store import Store
from reproduce.tracking.tags import ENCODER, TRAINED

if TYPE_CHECKING:
    from conftest import Home

NETTE = Imagenette(size=16, resize=16, canvas=16)
UNTRAINED = Pretrain(
    method=BYOL(heads=Heads(hidden=32, output=16)),
    dataset=NETTE,
    backbone="small",
    augmentation=Augmentation(),
    optimizer=LARS(base_lr=0.5, warmup_epochs=0),
    epochs=0,
    batch_size=10,
)
TRAINED_ON_IT = replace(UNTRAINED, epochs=1)


def knn(encoder: Pretrain, dataset: Dataset = NETTE) -> Evaluate:
    return Evaluate(encoder=encoder, protocol=NearestNeighbours(k=1), dataset=dataset)


def save(path: Path, seed: int) -> None:
    """Write noise that follows from the seed; every file has the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path, format="ppm")


def unpack(root: Path, *, complete: bool) -> None:
    """Write the data set; while it is incomplete, no test image is among the training images."""
    for label in range(10):
        save(root / "val" / f"n{label}" / "a.ppm", label)
        save(root / "train" / f"n{label}" / "b.ppm", 100 + label)
        if complete:
            save(root / "train" / f"n{label}" / "c.ppm", label)


def perform(site: Site, *specs: Pretrain | Evaluate) -> None:
    for spec in specs:
        worker.perform(spec, "small", site, None)


def chosen(site: Site, *specs: Pretrain | Evaluate) -> Reuse:
    return choose(Store(site), specs, site)


def actions(site: Site, *specs: Pretrain | Evaluate) -> list[tuple[str, str]]:
    request = Request(table="table8", scale="small")
    found = forecast([Job(spec, request) for spec in specs], lambda todo: {}, Store(site), site)
    return [(step.action, step.why) for step in found.steps]


@pytest.fixture
def site(place: Home, tmp_path: Path) -> Site:
    """A site with a store and an incomplete Imagenette."""
    unpack(tmp_path / "data", complete=False)
    return Site(runs=place.runs, device="cpu", data={"imagenette": tmp_path / "data"})


def test_an_evaluation_of_incomplete_data_is_executed_again_when_they_are_complete(site: Site) -> None:
    run, evaluation = UNTRAINED, knn(UNTRAINED)
    gc.set_threshold(*garbage.USUAL[:2], garbage.RARELY)  # as in a process that has just been started
    perform(site, run, evaluation)
    assert gc.get_threshold() == garbage.USUAL, "a run leaves garbage that must be found"
    before = chosen(site, evaluation)
    assert (len(before.finished), before.changed, before.unchecked) == (2, {}, {})
    assert before.finished[evaluation.id].metrics["top1"] < 1
    assert before.finished[evaluation.id].facts["num_images_train"] == "10"

    unpack(site.data["imagenette"], complete=True)
    had = "imagenette's train split had 10 images, now it has 20"
    found = chosen(site, evaluation)
    assert (found.finished, found.changed) == ({}, {run.id: had, evaluation.id: had})
    assert found.remarks() == [f"2 finished runs not reused: {had}."]
    assert actions(site, run, evaluation)[0] == ("run", f"not reused: {had}; starts from scratch")
    assert [action for action, _ in actions(site, run, evaluation)] == ["run", "run"]

    perform(site, run, evaluation)
    after = chosen(site, evaluation)
    assert (after.finished[evaluation.id].metrics["top1"], after.changed) == (1.0, {})
    assert [action for action, _ in actions(site, run, evaluation)] == ["reuse", "reuse"]
    records = Store(site).every_finished([run.id, evaluation.id])
    assert [len(each) for each in records.values()] == [2, 2], "the old records stay"

    perform(site, run, evaluation)  # both are finished: nothing happens
    assert Store(site).every_finished([run.id, evaluation.id]) == records


def test_runs_are_reused_while_their_data_are_away_and_when_they_are_back(site: Site, tmp_path: Path) -> None:
    evaluation, root = knn(UNTRAINED), site.data["imagenette"]
    perform(site, UNTRAINED, evaluation)
    root.rename(tmp_path / "away")
    found = chosen(site, evaluation)
    assert (len(found.finished), set(found.unchecked.values())) == (2, {NOT_HERE})
    assert found.remarks() == [f"2 finished runs reused unchecked: {NOT_HERE}."]
    assert [(action, why.partition("; ")[2]) for action, why in actions(site, UNTRAINED, evaluation)] == [
        ("reuse", NOT_HERE)
    ] * 2
    perform(site, evaluation)
    for place in (tmp_path / "away", root):  # a root of another name, then the old one
        if place == root:
            (tmp_path / "away").rename(root)
        moved = replace(site, data={"imagenette": place})
        found = chosen(moved, evaluation)
        assert (len(found.finished), found.unchecked) == (2, {})
    assert len(Store(site).every_finished([evaluation.id])[evaluation.id]) == 1


def test_a_replaced_file_of_the_same_size_and_time_counts(site: Site) -> None:
    """Training images become the test images: from other noise to 100 %."""
    evaluation, root = knn(UNTRAINED), site.data["imagenette"]
    perform(site, UNTRAINED, evaluation)
    assert chosen(site, evaluation).finished[evaluation.id].metrics["top1"] < 1
    for label in range(10):
        path = root / "train" / f"n{label}" / "b.ppm"
        time = path.stat().st_mtime_ns
        save(path, label)
        os.utime(path, ns=(time, time))
    says = "imagenette's train split has the same names and sizes, but other content now"
    assert chosen(site, evaluation).changed[UNTRAINED.id] == says
    perform(site, UNTRAINED, evaluation)
    # The encoder is untrained and the same, and its features of the old images are in the cache.
    assert chosen(site, evaluation).finished[evaluation.id].metrics["top1"] == 1.0


def test_broken_data_are_not_those_of_a_run_and_a_run_from_before_content_and_counts_is_compared(
    site: Site,
) -> None:
    run = UNTRAINED
    perform(site, run)
    facts = dict(chosen(site, run).finished[run.id].facts)
    with Store(site).start(run.replace("seed", 1), scale="small") as old:
        old.tag("data_digest", facts["data_digest"])
        old.finish({"loss": 0.5})
    assert chosen(site, run.replace("seed", 1)).changed == {}
    broken = site.data["imagenette"] / "train" / "n3" / "zero.ppm"
    broken.touch()
    says = f"imagenette's train split is broken: {broken} is empty (0 bytes). Get it again"
    assert chosen(site, run).changed == {run.id: says}
    broken.unlink()
    assert chosen(site, run).changed == {}
    unpack(site.data["imagenette"], complete=True)
    assert chosen(site, run.replace("seed", 1)).changed == {
        run.replace("seed", 1).id: "imagenette's train split has other images now, 20"
    }


def test_a_kill_between_a_pretraining_and_its_evaluation_leaves_no_number_of_the_old_encoder(
    site: Site,
) -> None:
    """The evaluation's own data, synthetic ones, never change."""
    run = TRAINED_ON_IT
    evaluation = knn(run, SyntheticFolder(num_train=40, num_val=20))
    perform(site, run, evaluation)
    first = chosen(site, evaluation).finished
    unpack(site.data["imagenette"], complete=True)
    had = "imagenette's train split had 10 images, now it has 20"
    assert chosen(site, evaluation).changed[evaluation.id] == f"its pretraining is not reused: {had}"
    perform(site, run)  # and here the command is killed
    second = chosen(site, evaluation)
    assert second.finished[run.id].facts[TRAINED] != first[run.id].facts[TRAINED]
    assert second.changed == {evaluation.id: f"its pretraining was executed again: {had}"}
    perform(site, evaluation)
    third = chosen(site, evaluation).finished
    assert third[evaluation.id].facts[ENCODER] == third[run.id].facts[TRAINED]

    # The old data return: the old runs count again, and a new evaluation gets the old encoder.
    shutil.rmtree(site.data["imagenette"])
    unpack(site.data["imagenette"], complete=False)
    assert chosen(site, evaluation).finished == first
    another = replace(evaluation, protocol=NearestNeighbours(k=3))
    perform(site, another)
    facts = chosen(site, another).finished[another.id].facts
    assert facts[ENCODER] == first[evaluation.id].facts[ENCODER]


def test_an_encoder_that_was_made_again_of_the_same_data_has_other_evaluations_unless_it_is_the_same(
    site: Site,
) -> None:
    """A GPU may return another encoder for the same data."""
    run, evaluation, store = UNTRAINED, knn(UNTRAINED), Store(site)

    def pretrained(encoder: str) -> None:
        with store.start(run, scale="small") as record:
            record.facts({TRAINED: encoder})
            record.finish({})

    pretrained("first")
    with store.start(evaluation, scale="small") as record:
        record.facts({ENCODER: "first"})
        record.finish({"top1": 0.5})
    for encoder, changed in (
        ("first", {}),
        ("second", {evaluation.id: "its pretraining was executed again, with another encoder"}),
        ("first", {}),
    ):
        pretrained(encoder)
        assert chosen(site, evaluation).changed == changed


@pytest.mark.parametrize(("fact", "kept"), [("of these data", True), ("of others", False)])
def test_a_result_that_was_not_recorded_is_used_only_for_its_data(fact: str, kept: bool, site: Site) -> None:
    """As a process leaves it that is killed between its last two steps."""
    evaluation = knn(UNTRAINED)
    unpack(site.data["imagenette"], complete=True)
    perform(site, UNTRAINED)
    digest = chosen(site, UNTRAINED).finished[UNTRAINED.id].facts["data_digest"]
    facts = {"data_digest_train": digest if kept else fact}
    (site.runs / evaluation.id).mkdir()
    journal.keep_result(site.runs / evaluation.id, evaluation.id, Result({"top1": 0.125}, "", facts))
    perform(site, evaluation)
    assert Store(site).finished([evaluation.id])[evaluation.id].metrics["top1"] == (0.125 if kept else 1.0)


class Stopping(io.StringIO):
    """Events of a run, which is interrupted after its first step."""

    def write(self, event: str) -> int:
        if '"progress"' in event:
            interrupt.ask("a test")
        return super().write(event)


def test_a_plan_says_that_the_data_of_a_checkpoint_have_changed(site: Site) -> None:
    run, root = replace(UNTRAINED, epochs=2), site.data["imagenette"]
    evaluation = knn(run)
    with pytest.raises(Interrupted, match="a test"):
        worker.perform(run, "small", site, Stopping())
    store, todo = (
        Store(site),
        [Job(each, Request(table="table8", scale="small")) for each in (run, evaluation)],
    )
    assert blocked(todo, site, store=store) == {}

    unpack(root, complete=True)
    found = blocked(todo, site, store=store)
    assert [str(each) for each in found.values()] == [
        "lacks the data of its checkpoint",
        f"run {run.id}, which it needs, lacks the data of its checkpoint",
    ]
    assert found[run.id].problem.why == (
        f"Run {run.id} was interrupted and cannot resume: imagenette's train split had 10 images, now it has "
        f"20. Restore those data, or move the files epoch-*.pt out of {site.runs / run.id} to start from "
        "scratch."
    )
    with pytest.raises(ValueError, match="was trained on other images than those of imagenette"):
        perform(site, run)
    assert set(blocked(todo, site, store=store)) == {run.id, evaluation.id}, "the refusal changes no record"

    for path in (site.runs / run.id).glob("epoch-*.pt"):
        path.unlink()
    assert blocked(todo, site, store=store) == {}
    perform(site, run, evaluation)
    assert chosen(site, evaluation).finished[evaluation.id].metrics["top1"] == 1.0


# What is said before a run, and in the report


def test_the_paper_scale_refuses_other_data_than_the_published(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "imagenet", train=1, val=1, classes=1000)
    site = Site(runs=tmp_path / "runs", device="cpu", data={"imagenet": root})
    request = Request(
        table="table4", scale="paper", rows="Ours*", changes=("precision=float32", "batch_size=8")
    )
    with pytest.raises(RefusedError) as refused:
        _cannot_start(jobs([request]), site)
    says = (
        "At paper scale the data must be as published, but the root has "
        "1 000 of 1 281 167 images of ImageNet's train split: complete it, or use another scale."
    )
    assert str(refused.value) == says


def test_what_a_worker_would_refuse_is_known_before_it_starts(tmp_path: Path) -> None:
    site = Site(
        runs=tmp_path / "runs",
        device="cpu",
        data={"imagenette": image_folder(tmp_path / "imagenette", train=3)},
    )
    request = Request(table="table8", scale="small", rows="BYOL")
    reduced = {each.problem.why for each in blocked(jobs([request]), site).values()}
    assert reduced == {
        "Pretraining in bfloat16 needs a GPU, which runs do not have here: use one, or "
        "--set precision=float32."
    }
    large = replace(request, changes=("precision=float32", "batch_size=64"))
    assert {each.problem.why for each in blocked(jobs([large]), site).values()} == {
        "batch_size needs at least 64 images, but imagenette's train split has 30: set a smaller one with "
        "--set batch_size."
    }
    small = replace(request, changes=("precision=float32", "batch_size=10"))
    assert blocked(jobs([small]), site) == {}
    neighbours = Request(
        table="table4", scale="small", rows="Ours*", changes=("precision=float32", "batch_size=10")
    )
    assert {each.problem.why for each in blocked(jobs([neighbours]), site).values()} == {
        "ks needs at least 200 images, but imagenette's train split has 30: set a smaller one with --set ks."
    }


def problem(root: Path) -> str:
    """Return what a table lacks whose data are at `root`, in words."""
    request = Request(table="table8", scale="small", rows="BYOL", changes=("precision=float32",))
    site = Site(runs=root.parent / "runs", device="cpu", data={"imagenette": root})
    (says,) = {each.problem.why for each in blocked(jobs([request]), site).values()}
    return says


def test_a_root_that_is_not_a_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"is {tmp_path / 'file'}, which is not a folder. Layout: " in problem(tmp_path / "file")


def check_as_nobody(root: Path, says: str) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    assert problem(root) == says


@pytest.mark.parametrize("closed", ["", "train", "train/n00000003"])
def test_a_folder_that_must_not_be_read_is_named(closed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = image_folder(Path(folder) / "imagenette")
        (root / closed).chmod(0)
        named = root / (closed or "imagenette2-160/train")  # where the layout is looked at first
        says = f"{named} cannot be read (Permission denied)."
        assert ended(check_as_nobody, root, says) == 0
        (root / closed).chmod(0o755)


def test_a_caption_counts_the_images_of_the_runs_in_every_format() -> None:
    table = Request(table="table8", scale="small", rows="BYOL").build()
    pretrain, evaluation = table.specs(1)

    def finished(train: int) -> Mapping[str, Finished]:
        facts = {"num_images": str(train), "num_images_train": str(train), "num_images_val": "3925"}
        return {
            spec.id: Finished(spec_id=spec.id, run_id="r", metrics={"top1": 0.5}, facts=facts)
            for spec in (pretrain, evaluation)
        }

    for train, says in ((250, True), (9_469, False)):
        runs = finished(train)
        filled = fill(table, 1, frame(table, 1, runs, {}), incomplete(table.specs(1), runs))
        for render in (markdown, tex, html):
            sentence = "Not the published data: 250 of 9 469 images of Imagenette's train split."
            text = re.sub(r"\s+", " ", unescape(render(filled)))
            assert (sentence in text) == says, render


@pytest.mark.slow
def test_the_command_line_says_what_changed_and_a_finished_table_needs_neither_torch_nor_mlflow(
    home: Home, tmp_path: Path
) -> None:
    unpack(tmp_path / "data", complete=False)
    home.site_file.write_text(f'{home.site_file.read_text()}[data]\nimagenette = "{tmp_path / "data"}"\n')
    tiny = ("epochs=0", "batch_size=10", "precision=float32", "protocol.epochs=1", "backbone=small")
    changes = (word for each in tiny for word in ("--set", each))
    command = ("table8", "--scale", "small", "--rows", "BYOL", *changes)
    first = home.invoke(*command)
    assert (first.returncode, first.stderr) == (0, ""), first.stdout
    shortfall = "10 of 9 469 images of Imagenette's train split; 10 of 3 925 images of Imagenette's val split"
    assert f"Not the published data: {shortfall}." in first.stdout
    assert f"Not the published data: {shortfall}." in (home.reports / "small" / "table8.md").read_text()
    assert not imported(home, *command) & HEAVY

    unpack(tmp_path / "data", complete=True)
    planned = home.invoke(*command, "--dry-run")
    had = "imagenette's train split had 10 images, now it has 20"
    assert f"not reused: {had}" in planned.stdout
    second = home.invoke(*command)
    assert f"2 finished runs not reused: {had}." in second.stdout
    assert "2 runs done, 0 reused, 0 missing" in second.stdout
