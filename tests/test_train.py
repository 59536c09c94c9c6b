"""Facts that a run records about its origin when it resumes from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import on_two_processes

from reproduce.plan import Request
from reproduce.runs import checkpoint
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.train import _batches, pretrain

CHANGES = ("num_train=64", "num_val=20")


class Notes:
    """A record that keeps tags and steps."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.steps: list[int] = []

    def log(self, step: int, metrics: Any) -> None:
        self.steps.append(step)

    def flush(self) -> None:
        """Do nothing: no measurement waits."""

    def tag(self, name: str, value: str) -> None:
        self.tags[name] = value

    def facts(self, values: Mapping[str, str]) -> None:
        self.tags |= values


def settings(epochs: int = 1) -> Pretrain:
    spec = Request(table="table8", rows="BYOL", changes=(f"epochs={epochs}", *CHANGES)).specs()[0]
    assert isinstance(spec, Pretrain)
    return spec


def train(site: Site, epochs: int = 1) -> Notes:
    notes = Notes()
    pretrain(settings(epochs), site, site.runs / "run", torch.device("cpu"), notes, lambda progress: None)
    return notes


def test_a_run_that_goes_on_at_another_commit_says_so(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    first = train(site)
    assert (first.steps, "resumed_from_commit" in first.tags) == ([2], False)
    state = checkpoint.latest(site.runs / "run", settings().id)
    assert state is not None
    checkpoint.save(site.runs / "run", settings().id, state | {"commit": "0123abcd"}, state["epoch"])
    again = train(site)
    assert again.steps == []
    assert again.tags["resumed_from_commit"] == "0123abcd"
    assert again.tags["data_digest"] == first.tags["data_digest"]


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    train(site)
    next(tmp_path.glob("synthetic/*/train/*/*.ppm")).unlink()
    with pytest.raises(
        ValueError,
        match=r"The checkpoint in .* was trained on other images than those of synthetic_folder",
    ):
        train(site)


def views_of_an_epoch(folder: Path) -> list[torch.Tensor]:
    """Return what this process is shown from the second step of epoch 1 on.

    For each step these are the indices, then both views.
    """
    spec = Request(table="table8", rows="BYOL", changes=("batch_size=16", "epochs=2", *CHANGES)).specs()[0]
    assert isinstance(spec, Pretrain)
    site, dataset = Site(runs=folder), spec.dataset
    images = dataset.load(dataset.pretrain_split, site)
    shown = _batches(spec, site, images, torch.device("cpu"), first=5)
    return [tensor for batch in islice(shown, 3) for tensor in (batch.indices, *batch.views)]


@pytest.mark.slow
def test_two_processes_see_the_images_and_views_of_one(tmp_path: Path) -> None:
    alone = views_of_an_epoch(tmp_path)
    assert len(alone) == 3 * 3
    for whole, *shares in zip(alone, *on_two_processes(views_of_an_epoch, tmp_path, tmp_path), strict=True):
        assert torch.equal(torch.cat(shares), whole)
