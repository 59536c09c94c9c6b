"""A folder of the user's images: named by its content, found by workers, refused once it has changed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from toys import image_folder

from configs import pretrain
from reproduce import plan
from reproduce.data import folder
from reproduce.data.folder import Folder
from reproduce.nn.weights import Weights
from reproduce.plan import Evaluation, Pretraining, Request
from reproduce.readiness import blocked
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.tracking.sqlite import Wanted
from reproduce.tracking.store import Store
from reproduce.tracking.tags import SOURCE, title

if TYPE_CHECKING:
    from conftest import Home

MINE = Weights(backbone="small", sha256="3f" * 32, file="mine.pth", size=32, resize=32, canvas=32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four and two images of each of two classes."""
    return image_folder(tmp_path / "images", train=4, val=2, classes=2)


def site(tmp_path: Path) -> Site:
    return Site(runs=tmp_path / "runs")


def knn(root: Path, site: Site) -> Evaluation:
    changes = plan.located("folder", (f"dataset.root={root}", "k=3"), site)
    return Evaluation(weights=MINE, protocol="knn", dataset="folder", changes=changes)


def test_copies_are_one_data_set_and_a_changed_or_renamed_image_makes_another(
    root: Path, tmp_path: Path
) -> None:
    here, copy = site(tmp_path), tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, copy)
    first = knn(root, here).build()
    assert knn(copy, here).build().id == first.id
    assert knn(copy, replace(here, runs=tmp_path / "other runs")).build().id == first.id
    assert str(tmp_path) not in json.dumps(dict(first.leaves()), default=str)
    ids = {first.id}
    image = copy / "val" / "n00000001" / "1.ppm"
    image.write_bytes(image.read_bytes()[:-1] + b"\x07")  # of the same size
    ids.add(knn(copy, here).build().id)
    image.rename(image.with_name("2.ppm"))
    ids.add(knn(copy, here).build().id)
    assert len(ids) == 3
    assert knn(root, here).build().id == first.id


def test_a_change_of_one_byte_with_the_old_size_and_time_is_another_content(
    root: Path, tmp_path: Path
) -> None:
    here, image = site(tmp_path), root / "train" / "n00000000" / "0.ppm"
    before = folder.named(str(root), here)
    state = image.stat()
    image.write_bytes(image.read_bytes()[:-1] + b"\x63")
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert folder.named(str(root), here) != before


def test_the_images_are_found_by_their_content_until_they_move_or_change(root: Path, tmp_path: Path) -> None:
    here = site(tmp_path)
    dataset = Folder(content=folder.named(str(root), here), size=8, resize=8, canvas=8)
    assert len(dataset.load("train", here)) == 8
    assert len(dataset.load("val", here)) == 4
    with pytest.raises(LookupError, match=rf"^The images of {dataset.label} have no known place"):
        dataset.check_root(replace(here, runs=tmp_path / "other runs"))
    job = plan.jobs([knn(root, here)])
    assert blocked(job, here) == {}
    (root / "train" / "n00000000" / "0.ppm").unlink()
    with pytest.raises(
        ValueError, match=rf"^The images in {root} are no longer those of {dataset.label} but"
    ):
        dataset.load("val", here)
    (only,) = blocked(job, here).values()
    assert "--set dataset.root=FOLDER" in only.problem.why
    root.rename(tmp_path / "moved")
    with pytest.raises(LookupError, match=rf"were in {root}, which does not exist: pass the folder again"):
        dataset.check_root(here)


def test_the_root_of_the_site_file_is_the_folder_if_none_is_named(root: Path, tmp_path: Path) -> None:
    there = replace(site(tmp_path), data={"folder": root})
    assert plan.located("folder", (), there) == plan.located("folder", (f"root={root}",), there)
    with pytest.raises(LookupError, match=r"^The data root 'folder' is not set"):
        plan.located("folder", (), site(tmp_path))
    assert plan.located("stl10", ("k=3",), site(tmp_path)) == ("k=3",)


def test_a_pretraining_needs_no_test_images(root: Path, tmp_path: Path) -> None:
    here, both = site(tmp_path), plan.located("folder", (f"root={root}",), site(tmp_path))
    shutil.move(root / "val", tmp_path / "elsewhere")
    with pytest.raises(LookupError, match=r"which lacks val\. Layout: train/<class>/\* and val/<class>/\*"):
        plan.located("folder", (f"root={root}",), here)
    changes = plan.located("folder", (f"root={root}",), here, to_pretrain=True)
    assert changes != both, "other images, another content"
    job = plan.jobs([Pretraining(method="byol", dataset="folder", changes=(*changes, "batch_size=4"))])
    assert blocked(job, here) == {}
    assert len(job[0].spec.dataset.load("train", here)) == 8
    with pytest.raises(LookupError, match=r"images lacks val, which this run reads"):
        job[0].spec.dataset.load("val", here)
    shutil.move(tmp_path / "elsewhere", root / "val")
    assert plan.located("folder", (f"root={root}",), here, to_pretrain=True) == both


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("root=/nowhere",), "dataset.root is /nowhere, which is not a folder. Layout: train/<class>/*"),
        (("root=/proc",), "dataset.root is /proc, which lacks train and val. Layout: "),
        (("root=/a", "dataset.root=/b"), "--set gives dataset.root twice, /a and /b: give it once."),
    ],
    ids=str,
)
def test_a_folder_that_cannot_be_read_is_refused_in_one_line(
    changes: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    with pytest.raises((LookupError, ValueError)) as refused:
        plan.located("folder", changes, site(tmp_path))
    assert str(refused.value).startswith(says)


def test_a_request_without_a_content_or_with_a_wrong_one_is_refused() -> None:
    for changes, says in (((), "folder needs --set dataset.root=FOLDER"), (("content=abc",), "the 64 hexa")):
        with pytest.raises(ValueError, match=says):
            Pretraining(method="msbreg", dataset="folder", changes=changes).build()


# The name of the user's file


def test_the_name_of_a_file_is_in_titles_and_in_no_id(root: Path, tmp_path: Path) -> None:
    named, unnamed = MINE, replace(MINE, file="")
    assert (named.id, named) == (unnamed.id, unnamed)
    assert "file" not in dict(named.leaves())
    request = Request(table="table4", rows="Mine", added=(("Mine", named),))
    assert plan.loads(request.dumps()).build().changes == ("row Mine=mine.pth 3f3f3f3f3f3f",)  # type: ignore[union-attr]
    (spec,) = request.specs()
    assert title(spec) == "mine.pth 3f3f3f3f3f3f → weighted_knn on synth"
    evaluation = knn(root, site(tmp_path))
    found = plan.loads(evaluation.dumps())
    assert isinstance(found, Evaluation)
    assert found.weights.file == "mine.pth"
    content = dict(found.build().leaves())["dataset.content"]
    assert title(found.build()).endswith(f" → knn k3 on folder {content[:12]}")


# invoke pretrain


@pytest.mark.parametrize("scale", plan.SCALES)
@pytest.mark.parametrize(
    ("method", "dataset", "row"),
    [("msbreg", "stl10", pretrain.msbreg(pretrain.stl10)), ("byol", "imagenet100", None)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pretraining_of_a_table_is_the_same_run(
    method: str, dataset: str, row: Pretrain | None, scale: str
) -> None:
    request = Pretraining(method=method, dataset=dataset, scale=scale, seeds=2)
    assert plan.loads(request.dumps()) == request
    ids = {spec.id for spec in Request(table="table1", scale=scale, seeds=2).specs()}
    assert {spec.id for spec in request.specs()} < ids
    assert row is None or scale != "paper" or request.build() == row


@pytest.mark.parametrize("scale", plan.SCALES)
@pytest.mark.parametrize("dataset", ["imagenette", "synthetic_folder", "stl10"])
def test_every_method_can_be_pretrained_on_every_kind_of_data_set(dataset: str, scale: str) -> None:
    from reproduce.methods.method import Method

    small_views = scale == "paper" and dataset != "imagenette"
    for method in plan.components("reproduce.methods", Method):
        if method == "obow" and small_views:
            with pytest.raises(
                ValueError, match=r"obow needs maps of at least 5 x 5, .* set dataset\.size to"
            ):
                Pretraining(method=method, dataset=dataset, scale=scale).build()
            continue
        run = Pretraining(method=method, dataset=dataset, scale=scale, changes=("epochs=600",)).build()
        assert (run.method.name, run.epochs) == (method, 600)
        assert run.dataset.name == dataset or (dataset, scale) == ("stl10", "smoke")
        assert run.backbone == "small" or scale != "smoke"


def test_the_settings_of_a_pretraining_are_its_own(root: Path, tmp_path: Path) -> None:
    changes = plan.located("folder", (f"root={root}", "num_views=8", "dataset.size=24"), site(tmp_path))
    run = Pretraining(method="msbreg", dataset="folder", changes=changes).build()
    assert (run.method.num_views, run.dataset.size, run.dataset.resize) == (8, 24, 32)
    for fields, says in (
        ({"method": "msbregg"}, "There is no method 'msbregg'. Did you mean 'msbreg'?"),
        ({"dataset": "imagenete"}, "There is no data set 'imagenete'. Did you mean"),
        ({"dataset": "voc0712"}, "pretrain needs a data set of whole images, but voc0712 has boxes: choose"),
        ({"changes": ("epoch=3",)}, "There is no setting of a pretraining 'epoch'. Did you mean 'epochs'?"),
        ({"changes": ("protocol.epochs=3",)}, "There is no setting of a pretraining 'protocol.epochs'."),
        ({"changes": ("size=3",)}, "'size' may mean dataset.size or batch_size: use one of these."),
        ({"changes": ("seed=3",)}, "--set cannot change the seed"),
        ({"scale": "tiny"}, "There is no scale 'tiny'."),
    ):
        with pytest.raises((LookupError, ValueError)) as refused:
            replace(Pretraining(method="msbreg", dataset="synthetic_folder"), **fields).build()
        assert str(refused.value).startswith(says)


@pytest.mark.slow
def test_an_encoder_is_trained_on_a_folder_and_evaluated_by_the_printed_command(
    place: Home, tmp_path: Path
) -> None:
    root = image_folder(tmp_path / "my images", train=40, val=5, classes=3)
    command = ["pretrain", "--method", "msbreg", "--dataset", "folder", "--set", f"dataset.root={root}"]
    done = place.invoke(*command, "--set", "epochs=0", "--set", "std=.2,.2,.2")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("to evaluate it: "))
    words = shlex.split(line.removeprefix("to evaluate it: "))
    assert words[-4:] == ["--set", f"dataset.root={root}", "--set", "encoder.std=0.2,0.2,0.2"]
    evaluated = place.invoke(*words[1:])
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "1 run done, 0 reused" in evaluated.stdout
    store = Store(Site(runs=place.runs))
    made = {
        run.data.tags["kind"]: run.data.tags[SOURCE]
        for run in store.connection.search(Wanted(present=(SOURCE,)))
    }
    assert shlex.split(made["evaluate"]) == words, "the command that the user typed makes the run again"
    assert made["pretrain"].endswith(f" --set '{command[-1]}' --set epochs=0 --set std=.2,.2,.2")
    plan_of = place.invoke(*words[1:], "--dry-run").stdout
    assert f"Changed settings: dataset.root={root}, std=0.2,0.2,0.2." in plan_of
    copy = shutil.copytree(root, tmp_path / "copy")
    again = place.invoke(*(word.replace(str(root), str(copy)) for word in words[1:]))
    assert "0 runs done, 1 reused" in again.stdout, again.stdout + again.stderr
    status = place.invoke("status").stdout
    assert re.search(r" encoder.safetensors [0-9a-f]{12} → knn k5 on folder ", status)
    assert str(root) not in status
