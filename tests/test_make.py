"""What can start if some of the data are missing, how an evaluation is printed, and what is rendered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_cli import HEAVY, imported
from toys import image_folder

from reproduce.commands.make import _cannot_start, _printed
from reproduce.plan import Request, jobs
from reproduce.readiness import RefusedError
from reproduce.runs import lease
from reproduce.site import Site

if TYPE_CHECKING:
    from conftest import Home

FLOAT32 = ("precision=float32",)
"""The precision of pretraining on a CPU."""


def test_runs_whose_data_are_missing_wait_and_the_others_start(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "imagenette")
    todo = jobs([Request(table="table1", scale="small", rows="BYOL", changes=FLOAT32)])
    blocked = _cannot_start(todo, Site(runs=tmp_path, data={"imagenette": root}))
    assert {job.spec.id for job in todo if job.spec.dataset.name == "stl10"} == set(blocked)
    assert 0 < len(blocked) < len(todo)
    assert all(
        each.problem.why.startswith("The data root 'stl10' is not set: add `stl10 = ")
        for each in blocked.values()
    )


def test_a_table_without_any_of_its_data_is_refused_with_every_root(tmp_path: Path) -> None:
    todo = jobs([Request(table="table1", scale="small", rows="BYOL")])
    with pytest.raises(RefusedError) as refused:
        _cannot_start(todo, Site(runs=tmp_path))
    assert all(f"The data root '{key}' is not set" in str(refused.value) for key in ("imagenette", "stl10"))


def test_a_table_that_has_numbers_is_not_refused_for_the_rest(tmp_path: Path) -> None:
    todo = jobs([Request(table="table1", scale="small", rows="BYOL")])
    assert set(_cannot_start(todo, Site(runs=tmp_path), measured=True)) == {job.spec.id for job in todo}


def test_a_run_of_another_process_is_followed_although_its_data_are_missing(tmp_path: Path) -> None:
    """The other process may be on another machine that shares the folder of runs; the next run lacks the same
    data."""
    todo, site = jobs([Request(table="table8", scale="small", rows="BYOL")]), Site(runs=tmp_path)
    pretraining, evaluation = (job.spec.id for job in todo)
    with lease.take(site.runs / pretraining, pretraining, heartbeat=10):
        assert set(_cannot_start(todo, site)) == {evaluation}
    with pytest.raises(RefusedError, match="imagenette"):
        _cannot_start(todo, site)


def test_generated_data_need_no_root(tmp_path: Path) -> None:
    assert _cannot_start(jobs([Request(table="table1")]), Site(runs=tmp_path)) == {}


@pytest.mark.parametrize(
    ("name", "values", "printed"),
    [
        ("top1_20", [0.8125], "top1_20 81.25 %"),
        ("held_out_top1", [0.5, 0.75], "held_out_top1 62.50 ± 17.68 % (2)"),
        ("lr", [0.05], "lr 0.0500"),
        ("uniformity", [-2.5], "uniformity -2.5000"),
    ],
)
def test_fractions_are_printed_in_per_cent_and_nothing_else_is(
    name: str, values: list[float], printed: str
) -> None:
    assert _printed(name, values) == printed


def test_an_encoder_is_not_pretrained_for_evaluations_that_cannot_run(tmp_path: Path) -> None:
    site = Site(runs=tmp_path, data={"imagenette": image_folder(tmp_path / "imagenette", train=103)})
    detection = jobs([Request(table="table10", scale="small", changes=FLOAT32)])
    with pytest.raises(RefusedError, match="data root 'coco' is not set"):
        _cannot_start(detection, site)
    ours = Request(table="table4", scale="small", rows="Ours*", changes=FLOAT32)
    both = jobs([Request(table="table10", scale="small", changes=FLOAT32), ours])
    blocked = _cannot_start(both, site)
    free = {job.spec.id for job in both} - set(blocked)
    assert free == {job.spec.id for job in jobs([ours])}


def test_a_report_that_is_up_to_date_is_neither_rendered_nor_written(home: Home) -> None:
    command = ("table8", "--rows", "BYOL", "--render-only")
    assert {"pandas", "jinja2"} <= imported(home, *command)
    before, first = home.files(), home.invoke(*command)
    assert not imported(home, *command) & HEAVY
    assert home.files() == before
    (home.reports / "smoke" / "table8.md").unlink()
    again = home.invoke(*command)
    assert again.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]
    assert set(home.files()) == set(before)
