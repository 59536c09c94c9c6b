"""The user's encoders and released ones on the command line: `invoke evaluate`, `--add-row`, `--baselines
released`, and `--set` with them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from toys import fill_from

from configs import released
from reproduce import plan, worker
from reproduce.commands import make
from reproduce.commands.options import Options
from reproduce.nn import backbones, weight_files
from reproduce.nn.encoder import Encoder
from reproduce.nn.weights import Weights
from reproduce.overrides import settings_named
from reproduce.plan import Evaluation, Request, table_names
from reproduce.protocols.detection import Detection
from reproduce.report.filled import from_json, to_json
from reproduce.report.observe import Finished
from reproduce.report.table import Table
from reproduce.site import PROJECT, Site
from reproduce.spec import Evaluate, Pretrain

if TYPE_CHECKING:
    from conftest import Home

MINE = Weights(
    backbone="small",
    sha256="3f" * 32,
    size=32,
    resize=32,
    canvas=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
FILE = "file 3f3f3f3f3f3f"
TAKE_ROWS = ("table3", "table4", "table5", "table10")
TAKE_RELEASED = ("table2", "table3", "table4", "table5", "table10")


def knn(**fields: Any) -> Evaluation:
    return replace(Evaluation(weights=MINE, protocol="knn", dataset="stl10"), **fields)


def runs(table: Table, suited: Callable[[Evaluate], bool] = lambda run: True) -> list[Evaluate]:
    return [ours.spec for _, _, ours in table.measured() if suited(ours.spec)]


def of_weights(run: Evaluate) -> bool:
    return isinstance(run.encoder, Weights)


# One evaluation


def test_an_evaluation_shows_the_encoder_the_images_that_it_expects() -> None:
    run = knn(weights=released.SWAV_800).build()
    settings = dict(run.leaves())
    assert (run.encoder, run.protocol.name, run.dataset.name, run.seed) == (
        released.SWAV_800,
        "knn",
        "stl10",
        0,
    )
    assert [settings[f"dataset.{key}"] for key in ("size", "resize", "canvas")] == [224, 256, 448]
    assert settings["dataset.std"] == (0.228, 0.224, 0.225)
    drawn = dict(knn(weights=released.SWAV_800, dataset="synthetic_folder").build().leaves())
    assert (drawn["dataset.size"], drawn["dataset.std"]) == (32, (0.228, 0.224, 0.225))


def test_its_id_follows_from_the_content_the_protocol_and_the_data_set() -> None:
    others = [
        knn(weights=replace(MINE, sha256="40" * 32)),
        knn(protocol="weighted_knn"),
        knn(dataset="imagenette"),
        knn(changes=("k=7",)),
        knn(changes=("encoder.mean=0.4,0.4,0.4",)),
    ]
    ids = [request.specs()[0].id for request in (knn(), *others)]
    assert len(set(ids)) == len(ids)
    assert knn(changes=("k=5",)).specs()[0].id == ids[0]
    assert [spec.seed for spec in knn(protocol="svm", dataset="voc2007", seeds=3).specs()] == [0, 1, 2]
    assert [spec.id for spec in knn(seeds=3).specs()] == [ids[0]]  # its result does not depend on the seed


def test_what_the_encoder_expects_changes_together_with_what_it_is_shown() -> None:
    both = knn(changes=("encoder.mean=0.4,0.4,0.4", "std=0.1,0.2,0.3")).build()
    assert both.encoder.mean == dict(both.dataset.leaves())["mean"] == (0.4, 0.4, 0.4)
    assert both.encoder.std == dict(both.dataset.leaves())["std"] == (0.1, 0.2, 0.3)
    shown = knn(changes=("dataset.resize=96", "dataset.canvas=96", "dataset.size=64")).build()
    assert (shown.encoder.size, dict(shown.dataset.leaves())["size"]) == (32, 64)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"protocol": "knnn"}, "There is no protocol 'knnn'. Did you mean 'knn'? Known: "),
        ({"dataset": "imagenete"}, "There is no data set 'imagenete'. Did you mean 'imagenet"),
        (
            {"dataset": "voc0712"},
            "knn needs a data set with one or more labels for each image, which voc0712 does not have: "
            "choose one of folder, imagenet, imagenet100",
        ),
        (
            {"protocol": "voc_detection", "dataset": "coco2017"},
            "voc_detection needs a data set with boxes by the rules of VOC, which coco2017 does not have: "
            "choose one of synthetic_voc0712, voc0712.",
        ),
        ({"changes": ("protocol.kk=3",)}, "There is no setting 'protocol.kk'. Did you mean 'protocol.k'?"),
        ({"changes": ("k=many",)}, "k must be a whole number, not 'many'."),
        ({"changes": ("backbone=resnet19",)}, "There is no backbone 'resnet19'. Did you mean 'resnet18'?"),
        ({"changes": ("seed=1",)}, "--set cannot change the seed"),
        ({"seeds": 0}, "--seeds is 0: at least one seed is needed."),
        ({"dataset": "folder"}, "folder needs --set dataset.root=FOLDER. Layout: "),
        (
            {"protocol": "svm", "dataset": "imagenette"},
            "svm needs a data set with several labels for each image, which imagenette does not have: choose "
            "one of synthetic_voc2007, voc2007.",
        ),
        (
            {"protocol": "linear_sgd", "dataset": "imagenette"},
            "num_held_out is 10009, but the train split of imagenette has 9469 images: choose a lower number",
        ),
        (
            {"protocol": "semi", "dataset": "synthetic_folder", "changes": ("num_held_out=1200",)},
            "num_held_out is 1200, but the train split of synthetic_folder has 1200 images: choose a lower",
        ),
        ({"changes": ("k=5001",)}, "k is 5001, but the train split of stl10 has 5000 images: choose a lower"),
        (
            {"protocol": "weighted_knn", "dataset": "synthetic_stl10", "changes": ("ks=20,501",)},
            "ks is (20, 501), but the train split of synthetic_stl10 has 500 images: choose a lower number",
        ),
        (
            {"protocol": "alignment"},
            "alignment needs an encoder's projector and augmentation, which only the pretraining runs of "
            "this suite have: choose another protocol.",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_what_would_work(fields: dict[str, Any], says: str) -> None:
    with pytest.raises((LookupError, ValueError)) as refused:
        knn(**fields).build()
    assert str(refused.value.args[0]).startswith(says)


@pytest.mark.slow
def test_a_worker_finds_the_runs_of_both_kinds_of_request_from_their_text() -> None:
    one = knn(seeds=2, changes=("k=3",))
    table = Request(
        table="table4",
        rows="Mine,Ours*",
        baselines="released",
        added=(("Mine", MINE), ("SwAV", released.SWAV_800)),
    )
    for request in (one, table):
        assert plan.loads(request.dumps()) == request
        assert "\n" not in request.dumps()
        for spec in request.specs():
            assert worker.find(plan.loads(request.dumps()), spec.id) == spec
    with pytest.raises(
        LookupError,
        match=r"^the evaluation by knn on stl10 has no run 0123456789ab with the code on this machine",
    ):
        worker.find(one, "0123456789ab")
    code = (
        "import sys; from reproduce.plan import loads; "
        "print(*(spec.id for text in sys.argv[1:] for spec in loads(text).specs()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, one.dumps(), table.dumps()],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [spec.id for request in (one, table) for spec in request.specs()]


def test_a_released_encoder_is_named_without_regard_to_case_and_a_file_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan.weights_of("SwAV_800") == (released.SWAV_800, None)
    with pytest.raises(
        LookupError, match=r"^There is no file or released encoder 'swav_80'\. Did you mean 'swav_800'\?"
    ):
        plan.weights_of("swav_80")
    with pytest.raises(ValueError, match="'swav_800' is a resnet50, not a resnet18"):
        plan.weights_of("swav_800", "resnet18")
    with pytest.raises(
        ValueError, match=r"^'swav_800' has its network under 'module\.', not under 'teacher'"
    ):
        plan.weights_of("swav_800", prefix="teacher")
    with pytest.raises(ValueError, match=r" is a folder: pass the file of weights in it\.$"):
        plan.weights_of(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.save(backbones.build("small", seed=0).state_dict(), "swav_800")
    found, path = plan.weights_of("swav_800")
    assert (found.backbone, found.sha256, path) == (
        "small",
        weight_files.sha256(tmp_path / "swav_800"),
        Path("swav_800"),
    )


def two_networks(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return a file with a student and a teacher, and the teacher's tensors."""
    teacher = dict(backbones.build("small", seed=2).state_dict())
    path = folder / "two.pth"
    torch.save({"student": backbones.build("small", seed=1).state_dict(), "teacher": teacher}, path)
    return path, teacher


def test_a_plan_asks_what_the_run_would_ask_and_each_way_of_choosing_works(tmp_path: Path) -> None:
    path, _ = two_networks(tmp_path)
    fields: dict[str, Any] = {"protocol": "knn", "dataset": "synthetic_folder"}
    with pytest.raises(ValueError, match=r"several networks: choose one with --prefix NAME"):
        plan.evaluation(str(path), **fields)
    by_option, _ = plan.evaluation(str(path), prefix="teacher", **fields)
    by_setting, _ = plan.evaluation(str(path), changes=("encoder.prefix=teacher.",), **fields)
    for request in (by_option, by_setting):
        (line,) = make.remarks({request.weights.sha256: path}, [request])
        assert line.startswith(
            f"{path}: small under 'teacher.'; 54 of 108 tensors are not used (student.stem"
        )
    assert by_option.build().id == by_setting.build().id
    named, _ = plan.evaluation(str(path), prefix="teacher", changes=("backbone=small",), **fields)
    assert named.build().encoder == by_option.weights
    wrong, _ = plan.evaluation(str(path), "small", "teacher", changes=("encoder.prefix=student",), **fields)
    (line,) = make.remarks({wrong.weights.sha256: path}, [wrong])
    assert line.startswith(f"{path}: small under 'student.'; ")
    with pytest.raises(ValueError, match=rf"^{path} does not fit resnet50"):
        plan.evaluation(str(path), "resnet50", **fields)


# Rows for the user's encoders


@pytest.mark.parametrize("scale", plan.SCALES)
@pytest.mark.parametrize("name", TAKE_ROWS)
def test_an_added_row_is_measured_as_the_others_at_every_scale(name: str, scale: str) -> None:
    plain = Request(table=name, scale=scale)
    request = replace(plain, added=(("Mine", MINE), ("SwAV here", released.SWAV_800)))
    table, before = request.build(), plain.build()
    assert [row.label for row in table.rows] == [*(row.label for row in before.rows), "Mine", "SwAV here"]
    mine = table.rows[-2]
    assert (mine.added, mine.rule_before, table.rows[-1].rule_before) == (True, True, False)
    assert mine.note == f"Added here: {FILE}, backbone small."
    assert table.changes == (f"row Mine={FILE}", "row SwAV here=deepcluster/swav_800ep_pretrain.pth.tar")
    theirs = {key: cell for key, cell in before.rows[-1].cells.items() if cell.ours}
    assert {key for key, cell in mine.cells.items() if cell.ours} == set(theirs)
    for key, cell in theirs.items():
        ours = mine.cells[key].ours
        assert ours is not None
        assert cell.ours is not None
        assert (ours.metric, ours.spec.encoder) == (cell.ours.metric, MINE)
        assert ours.spec.dataset.name == cell.ours.spec.dataset.name
        # At small, the images and anchors of a detector go with the backbone's stem (tests/test_tables.py).
        assert ours.spec.protocol == cell.ours.spec.protocol or (
            scale == "small" and isinstance(ours.spec.protocol, Detection)
        )
    assert {spec.id for spec in plain.specs()} < {spec.id for spec in request.specs()}


def test_an_added_row_can_be_chosen_filled_judged_and_written() -> None:
    request = Request(table="table4", rows="Mine", added=(("Mine", MINE),))
    table = request.build()
    (spec,) = request.specs()
    metrics = {"top1_20": 0.5, "top1_200": 0.25, "majority_20": 0.1, "majority_200": 0.1}
    filled = fill_from(table, 1, {spec.id: Finished(spec_id=spec.id, run_id="r", metrics=metrics)}, {})
    (row,) = filled.rows
    assert [row.cells[key].value for key in ("top1_20", "top1_200")] == [50.0, 25.0]
    assert row.cells["top1_20"].paper is None
    assert {claim.ours for claim in filled.claims} == {"not judged"}
    assert [claim.paper for claim in filled.claims] == list(Request(table="table4").build().judge_paper())
    assert from_json(json.loads(json.dumps(to_json(filled)))) == filled
    assert f"Changed settings: row Mine={FILE}." in filled.caption
    assert "Pretrained on ;" not in filled.caption


def test_an_added_row_that_is_left_out_changes_nothing() -> None:
    added = (("Mine", MINE), ("Other", MINE))
    table = Request(table="table4", rows="BYOL,Other", added=added, changes=("epochs=1",)).build()
    assert table.changes == (f"row Other={FILE}", "epochs=1")
    request = Request(table="table4", rows="BYOL", baselines="trained")
    assert replace(request, added=added).build().notes == request.build().notes


def test_a_table_names_rows_that_were_not_trained_here_and_states_no_training_if_there_is_none() -> None:
    request = Request(table="table4", rows="SwAV*,Mine", baselines="trained", added=(("Mine", MINE),))
    of_both = " ".join(request.build().notes)
    assert "each with its own recipe. Not trained here: Mine. Our verdicts" in of_both
    assert "Views × epochs at smoke scale: SwAV (with multi-crop) (2 large" in of_both
    assert "; Mine" not in of_both
    plain = Request(table="table5").build().notes
    for rows in ("Mine", "BoWNet", "BoWNet,Mine"):
        assert replace(request, table="table5", rows=rows).build().notes == plain


def test_the_network_of_each_added_row_can_be_named(tmp_path: Path) -> None:
    two, _ = two_networks(tmp_path)
    small, cifar = tmp_path / "small.pth", tmp_path / "a=b.pth"
    torch.save(backbones.build("resnet18_cifar", seed=0).state_dict(), cifar)
    torch.save(backbones.build("small", seed=0).state_dict(), small)

    def added(*rows: str, **options: tuple[str, ...]) -> dict[str, tuple[str, str]]:
        orders, _ = Options(add_row=rows, **options).orders(["table4"])
        assert isinstance(orders[0], Request)
        return {label: (weights.backbone, weights.prefix) for label, weights in orders[0].added}

    with pytest.raises(
        ValueError, match=r"fits several backbones.*--backbone NAME, where NAME is resnet18_3x3"
    ):
        added(f"Mine={cifar}")
    assert added(f"Mine={cifar}", backbone=("resnet18_cifar",)) == {"Mine": ("resnet18_cifar", "")}
    rows = (f"K = 8={cifar}", f"Teacher={two}", f"Small={small}")
    chosen = added(*rows, backbone=("K = 8=resnet18_3x3",), prefix=("Teacher=teacher",))
    assert chosen == {
        "K = 8": ("resnet18_3x3", ""),
        "Teacher": ("small", "teacher."),
        "Small": ("small", ""),
    }
    for options, says in (
        ({"backbone": ("Min=resnet18",)}, "There is no added row 'Min'. Did you mean 'Mine'? Known: Mine."),
        ({"backbone": ("small", "Mine=small")}, "--backbone was given twice for the row 'Mine'."),
        ({"backbone": ("resnet81",)}, "There is no backbone 'resnet81'. Did you mean"),
    ):
        with pytest.raises((LookupError, ValueError)) as refused:
            added(f"Mine={small}", **options)
        assert str(refused.value).startswith(says)
    with pytest.raises(
        ValueError, match=r"^--prefix describes the file of an added row: give --add-row, too\.$"
    ):
        added(prefix=("teacher",))
    with pytest.raises(ValueError, match=r"\(--set backbone=NAME changes that of the runs\)\.$"):
        added(backbone=("resnet18",))


def test_a_row_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(
        ValueError, match=rf"^table8 accepts no added row: --add-row is for {', '.join(TAKE_ROWS)}\. Or use"
    ):
        Request(table="table8", added=(("Mine", MINE),)).build()
    with pytest.raises(ValueError, match=r"^table4 has a row 'VICReg' already"):
        Request(table="table4", added=(("VICReg", MINE),)).build()
    with pytest.raises(ValueError, match=r"^table4 has a row 'Mine' already"):
        Request(table="table4", added=(("Mine", MINE), ("Mine", released.SWAV_800))).build()
    for text in ("Mine", "Mine=", "=file", " = "):
        with pytest.raises(ValueError, match=r"^--add-row needs LABEL=FILE, such as 'Mine=encoder.pth', not"):
            plan.added_row(text)
    assert plan.added_row(" My best = a=b.pth ") == ("My best", "a=b.pth")


def test_the_label_and_the_file_of_an_added_row_may_hold_equals_signs(tmp_path: Path) -> None:
    path = tmp_path / "lr=.2.pth"
    path.touch()
    assert plan.added_row(f"Ours (K = 8)={path}") == ("Ours (K = 8)", str(path))
    assert plan.added_row("Ours (K = 8) = SwAV_800") == ("Ours (K = 8)", "SwAV_800")
    assert plan.added_row("Two\n lines=a.pth") == ("Two lines", "a.pth")


def test_the_label_of_an_added_row_is_made_of_composed_letters_and_visible_characters() -> None:
    assert plan.added_row("Zoe\u0301=a.pth") == ("Zo\u00e9", "a.pth")
    assert plan.added_row("zero\u200bwidth \u202eright\x07=a.pth") == ("zerowidth right", "a.pth")
    assert plan.added_row(f"{100 * 'a'}=a.pth") == (100 * "a", "a.pth")


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("*", "--add-row needs a label without * and ?, which --rows expands, not '*'."),
        ("Ours (K=?)", "--add-row needs a label without * and ?, which --rows expands, not 'Ours (K=?)'."),
        ("\u200b", "--add-row needs a label of 1 to 100 printable characters, not ''."),
        ("caf\udce9", r"--add-row needs a label of 1 to 100 printable characters, not 'caf\udce9'."),
        (101 * "a", f"--add-row needs a label of 1 to 100 printable characters, not '{79 * 'a'}."),
    ],
)
def test_a_label_that_no_table_can_print_or_select_is_refused(label: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the whole message is compared
        plan.added_row(f"{label}={tmp_path / 'a.pth'}")
    assert str(caught.value) == said


@pytest.mark.parametrize("key", ["url", "encoder.sha256"])
def test_a_run_is_never_recorded_as_one_of_another_file(key: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^--set cannot change the evaluated file \({key}\): choose it with --checkpoint or --add-row",
    ):
        plan.Evaluation(
            weights=MINE, protocol="weighted_knn", dataset="imagenette", changes=(f"{key}=https://x/y",)
        ).build()


def test_a_standard_deviation_of_zero_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"^weights\.std is 0\.0: a value above 0 is expected\.$"):
        plan.Evaluation(
            weights=MINE, protocol="weighted_knn", dataset="imagenette", changes=("encoder.std=0,1,1",)
        ).build()


# Released baselines


@pytest.mark.parametrize("name", TAKE_RELEASED)
def test_released_baselines_fill_quoted_cells_and_change_no_other_run(name: str) -> None:
    plain, request = Request(table=name), Request(table=name, baselines="released")
    before, after = plain.build(), request.build()
    assert after.changes == ("baselines=released",)
    assert {spec.id for spec in plain.specs()} < {spec.id for spec in request.specs()}
    for old, new in zip(before.rows, after.rows, strict=True):
        for key, cell in new.cells.items():
            quoted = old.cells[key]
            assert cell.paper == quoted.paper
            if quoted.ours or not quoted.released:
                assert cell.ours == quoted.ours
            else:
                assert cell.ours is not None
                assert isinstance(cell.ours.spec.encoder, Weights)
        filled_here = any(cell.ours and not old.cells[key].ours for key, cell in new.cells.items())
        assert ("evaluated here" in new.note) == filled_here


@pytest.mark.slow
def test_options_go_to_the_tables_that_can_take_them() -> None:
    made = plan.requests(table_names(), baselines="released", added=(("Mine", MINE),), changes=("epochs=20",))
    assert {request.table for request in made if request.baselines == "released"} == set(TAKE_RELEASED)
    assert {request.table for request in made if request.added} == set(TAKE_ROWS)


def test_options_that_no_table_asked_for_can_take_are_refused_and_a_row_is_asked_for_alone() -> None:
    with pytest.raises(
        ValueError,
        match="^table8 has no quoted row whose encoder was released: "
        rf".* is for {', '.join(TAKE_RELEASED)}\.$",
    ):
        plan.requests(["table8", "table9"], baselines="released")
    with pytest.raises(
        LookupError, match=r"There is no kind of baselines 'releasd'\. Did you mean 'released'"
    ):
        plan.requests(["table3"], baselines="releasd")
    (one,) = plan.requests(["table4"], added=(("Mine", MINE),), rows="Mine")
    assert [row.label for row in one.build().rows] == ["Mine"]


# --set with weights


def test_a_key_of_pretraining_leaves_the_evaluations_of_released_encoders_alone() -> None:
    plain = Request(table="table3", baselines="released", added=(("Mine", MINE),))
    for change in ("epochs=7", "batch_size=128", "backbone=resnet18"):
        changed = replace(plain, changes=(change,))
        assert runs(changed.build(), of_weights) == runs(plain.build(), of_weights)
        assert {run.encoder.id for run in runs(changed.build())} & {
            run.encoder.id for run in runs(plain.build())
        } == {run.encoder.id for run in runs(plain.build(), of_weights)}


def test_a_key_of_the_evaluation_reaches_every_row() -> None:
    changed = Request(
        table="table3", baselines="released", changes=("protocol.batch_size=77", "encoder_lr=0.125")
    ).build()
    assert {dict(run.leaves())["protocol.batch_size"] for run in runs(changed)} == {77}
    assert {dict(run.leaves())["protocol.encoder_lr"] for run in runs(changed)} == {0.125}


def test_without_a_pretraining_the_key_is_the_evaluations() -> None:
    table = Request(
        table="table4", rows="Mine", added=(("Mine", MINE),), changes=("temperature=0.5",)
    ).build()
    assert {dict(run.leaves())["protocol.temperature"] for run in runs(table)} == {0.5}
    only = Request(table="table3", rows="Mine", added=(("Mine", MINE),), changes=("batch_size=77",)).build()
    assert {dict(run.leaves())["protocol.batch_size"] for run in runs(only)} == {77}


def test_a_key_of_weights_reaches_them_alone() -> None:
    changed = Request(table="table4", baselines="released", changes=("prefix=trunk.",)).build()
    assert {run.encoder.prefix for run in runs(changed) if isinstance(run.encoder, Weights)} == {"trunk."}
    assert all(isinstance(run.encoder, Pretrain) or run.encoder.prefix for run in runs(changed))
    assert settings_named("std", knn().build()) == ["encoder.std", "dataset.std"]
    assert settings_named("prefix", knn().build()) == ["encoder.prefix"]


# The command line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("evaluate", "--protocol", "knn", "--dataset", "stl10", "--checkpoint", "nothing.pth"),
            "There is no file or released encoder 'noth",
        ),
        (("evaluate", "--dataset", "stl10", "--checkpoint", "swav_800"), "--protocol is missing. Known: "),
        (("evaluate", "--protocol", "knn", "--checkpoint", "swav_800"), "--dataset is missing. Known: "),
        (
            ("evaluate", "--protocol", "knn", "--dataset", "stl10"),
            "--checkpoint is missing: give a file or a released encoder (",
        ),
        (
            ("evaluate", "--protocol", "knn", "--dataset", "stl10", "--checkpoint", "README.md"),
            "README.md is a text, not a file of weights; it begins with '# MSBReg",
        ),
        (
            ("table4", "--add-row", "Mine"),
            "--add-row needs LABEL=FILE, such as 'Mine=encoder.pth', not 'Mine'.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_ends_in_one_line_and_code_2(arguments: tuple[str, ...], says: str, home: Home) -> None:
    done = home.invoke(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(says)
    assert not home.runs.exists()


@pytest.mark.slow
def test_a_file_is_evaluated_once_wherever_it_lies_and_fills_a_row(home: Home) -> None:
    network, path = backbones.build("small", seed=5).eval(), home.folder / "mine.pth"
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path
    )
    fewer = ("num_train=400", "num_val=100")
    settings = [word for change in fewer for word in ("--set", change)]

    done = home.invoke(
        "evaluate",
        "--checkpoint",
        str(path),
        "--protocol",
        "weighted_knn",
        "--dataset",
        "synthetic_folder",
        *settings,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    spec = knn(
        weights=weight_files.describe(path),
        protocol="weighted_knn",
        dataset="synthetic_folder",
        changes=fewer,
    ).build()
    protocol: Any = spec.protocol
    expected = protocol.run(
        Encoder(spec.encoder.backbone, network), spec.dataset, Site(runs=home.runs), torch.device("cpu"), 0
    )
    assert f"top1_20 {100 * expected['top1_20']:.2f} %" in done.stdout
    assert f"top1_200 {100 * expected['top1_200']:.2f} %" in done.stdout
    assert "\n1 run done, 0 reused, 0 missing, in " in done.stdout

    moved = path.rename(home.folder / "elsewhere")
    table = home.invoke("table4", "--rows", "Mine", "--add-row", f"Mine={moved}", *settings)
    assert table.returncode == 0, table.stdout + table.stderr
    said, summary = table.stdout.splitlines()[:2]
    assert said == f"{moved}: small under 'state_dict.module.'."
    assert summary.startswith("0 runs done, 1 reused, 0 missing, in ")
    (row,) = json.loads((home.reports / "smoke" / "table4.json").read_text())["rows"]
    assert row["label"] == "Mine"
    assert row["cells"]["top1_20"]["value"] == pytest.approx(100 * expected["top1_20"], abs=1e-9)
    for ending in ("md", "tex", "html", "csv"):
        assert "Mine" in (home.reports / "smoke" / f"table4.{ending}").read_text()
