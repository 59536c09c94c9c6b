"""From a request to its runs: which settings `--set` means, what it takes, and which runs come out, in which
order."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from toys import fill_from

from reproduce import plan, worker
from reproduce.commands import forecast
from reproduce.data.augmentation import Augmentation
from reproduce.data.dataset import Dataset
from reproduce.messages import InvalidError
from reproduce.methods.method import Method
from reproduce.nn.optimizers import LARS
from reproduce.overrides import full_name, parse, paths_of, settings_named
from reproduce.plan import SCALES, Request, jobs, table_names
from reproduce.protocols.protocol import Protocol
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking import tags

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Images(Dataset, name="toy_images"):
    size: int = 32
    resize: int = 64
    canvas: int = 64
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Views(Augmentation, name="toy_views"):
    momentum: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Toy(Method, name="toy_method"):
    num_views: int = 2
    tau: float = 0.99
    momentum: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Probe(Protocol, name="toy_protocol"):
    epochs: int = 100
    lr: float = 0.1
    seed_images: int = 5


TRAINED = Pretrain(
    method=Toy(),
    dataset=Images(),
    backbone="small",
    augmentation=Views(every_second=Views()),
    optimizer=LARS(base_lr=0.5),
    epochs=4,
    batch_size=32,
)
RUN = Evaluate(encoder=TRAINED, protocol=Probe(), dataset=Images())
TRANSFER = replace(RUN, dataset=Images(size=64))


def byol(*changes: str, **fields: Any) -> Evaluate:
    """The evaluation of Table 8's first row at the smoke scale."""
    ((_, _, ours),) = Request(table="table8", rows="BYOL", changes=changes, **fields).build().measured()
    return ours.spec


# Which setting is meant


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("epochs", ["encoder.epochs"]),
        ("encoder.epochs", ["encoder.epochs"]),
        ("protocol.epochs", ["protocol.epochs"]),
        ("protocol.lr", ["protocol.lr"]),
        ("tau", ["encoder.method.tau"]),
        ("method.tau", ["encoder.method.tau"]),
        ("base_lr", ["encoder.optimizer.base_lr"]),
        ("blur", ["encoder.augmentation.blur"]),
        ("every_second.blur", ["encoder.augmentation.every_second.blur"]),
        ("resize", ["encoder.dataset.resize", "dataset.resize"]),
        ("dataset.size", ["encoder.dataset.size", "dataset.size"]),
        ("encoder.dataset.size", ["encoder.dataset.size", "dataset.size"]),
        ("backbone", ["encoder.backbone"]),
        ("evaluation.size", ["dataset.size"]),
        ("evaluation.dataset.size", ["dataset.size"]),
        ("evaluation.epochs", ["protocol.epochs"]),
        ("evaluation.backbone", []),
        ("au", []),
        ("method.blur", []),
        ("", []),
    ],
)
def test_a_key_means_the_nearest_setting_of_pretraining_else_of_the_evaluation(
    key: str, paths: list[str]
) -> None:
    assert settings_named(key, RUN) == paths


def test_a_transfers_own_data_set_stays_when_that_of_pretraining_changes() -> None:
    assert settings_named("dataset.size", TRANSFER) == ["encoder.dataset.size"]


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_images_of_a_transfer_change_with_those_that_the_encoder_was_trained_on(scale: str) -> None:
    changes = (
        "canvas=512",
        "dataset.test_split=train",
        "dataset.mean=0.3,0.4,0.5",
    )
    for _, _, ours in Request(table="table5", scale=scale, changes=changes).build().measured():
        trained, shown = dict(ours.spec.encoder.leaves()), dict(ours.spec.dataset.leaves())
        assert trained["dataset.mean"] == shown["mean"] == (0.3, 0.4, 0.5)
        # A detector's images have sizes of their own.
        assert trained["dataset.canvas"] == shown.get("canvas", 512) == 512
        assert trained["dataset.test_split"] == "train" != shown["test_split"], (
            "what is not of the images stays"
        )


def test_the_evaluations_data_set_can_be_changed_alone_and_the_caption_says_so() -> None:
    request = Request(
        table="table5", scale="small", columns="ap*", changes=("evaluation.dataset.test_split=2007_val",)
    )
    table = request.build()
    assert table.changes == ("evaluation.dataset.test_split=2007_val",)
    for _, _, ours in table.measured():
        assert dict(ours.spec.dataset.leaves())["test_split"] == "2007_val"
        assert dict(ours.spec.encoder.leaves())["dataset.test_split"] == "val"
    assert byol("evaluation.train_split=val").encoder.dataset.train_split == "train"
    with pytest.raises(ValueError, match=r"^imagenette has no test_split '2007_val'\. Known: train, val\.$"):
        Request(
            table="table5", scale="small", columns="ap*", changes=("dataset.test_split=2007_val",)
        ).build()


def test_a_name_that_several_settings_share_is_refused_with_both() -> None:
    with pytest.raises(
        ValueError,
        match=r"^'momentum' may mean method\.momentum or augmentation\.momentum or optimizer\.momentum: use",
    ):
        settings_named("momentum", RUN)
    assert settings_named("optimizer.momentum", RUN) == ["encoder.optimizer.momentum"]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("lr", "protocol.lr or optimizer.base_lr or optimizer.vector_lr"),
        ("size", "dataset.size or batch_size"),
    ],
)
def test_a_short_key_that_ends_another_name_is_refused_with_both(key: str, names: str) -> None:
    with pytest.raises(ValueError, match=rf"^'{key}' may mean {names}: use one of these\.$"):
        settings_named(key, RUN)


@pytest.mark.parametrize("key", ["epochs", "batch_size", "protocol.lr", "optimizer.base_lr", "method.tau"])
def test_a_full_name_is_never_refused(key: str) -> None:
    assert len(settings_named(key, RUN)) == 1


def test_every_full_name_means_its_own_setting_in_every_table() -> None:
    for scale in SCALES:
        for table in table_names():
            for _, _, ours in Request(table=table, scale=scale).build().measured():
                paths = paths_of(ours.spec)
                for path in paths:
                    assert path in settings_named(full_name(path, paths), ours.spec)


def test_changed_settings_have_their_full_names() -> None:
    changes = ("base_lr=1", "tau=.9", "evaluation.num_val=900", "protocol.epochs=3")
    full = ("optimizer.base_lr=1", "method.tau=.9", "evaluation.dataset.num_val=900", "protocol.epochs=3")
    request = Request(table="table8", rows="BYOL", changes=changes)
    assert request.changed() == full
    filled = fill_from(request.build(), 1, {}, {})
    assert f"Changed settings: {', '.join(full)}." in filled.caption


def test_a_plan_names_the_settings_of_the_nearest_run_in_full() -> None:
    theirs = byol("protocol.epochs=9", "base_lr=1", "evaluation.num_val=900")
    past = forecast.Past([SimpleNamespace(settings=tags.settings(theirs))])
    assert forecast.nearest(byol(), past).endswith(
        "the nearest differs in optimizer.base_lr: 1.0, here 1.6; protocol.epochs: 9, here 500; "
        "evaluation.dataset.num_val: 900, here 1000"
    )


def test_a_table_without_runs_says_so() -> None:
    with pytest.raises(LookupError, match=r"^Table 9 runs nothing: it has no setting 'epochs'"):
        Request(table="table9", changes=("epochs=1",)).build()
    with pytest.raises(LookupError, match=r"^The chosen part of Table 4 runs nothing: it has no setting 'k'"):
        Request(table="table4", rows="VICReg", changes=("k=1",)).build()


def test_changes_reach_the_runs() -> None:
    before, after = (
        byol(),
        byol(
            "epochs=7",
            "protocol.epochs=9",
            "dataset.size=24",
            "base_lr=1",
            "norm=layernorm",
            "crop_scale=0.5,1",
        ),
    )
    assert (after.encoder.epochs, dict(after.protocol.leaves())["epochs"]) == (7, 9)
    assert dict(after.encoder.dataset.leaves())["size"] == dict(after.dataset.leaves())["size"] == 24
    assert after.encoder.optimizer.base_lr == 1.0
    assert dict(after.encoder.leaves())["method.heads.norm"] == "layernorm"
    assert dict(after.encoder.leaves())["augmentation.crop_scale"] == (0.5, 1.0)
    changed = {
        path for (path, old), (_, new) in zip(before.leaves(), after.leaves(), strict=True) if old != new
    }
    assert changed == {
        "encoder.epochs",
        "encoder.dataset.size",
        "encoder.optimizer.base_lr",
        "encoder.method.heads.norm",
        "encoder.augmentation.crop_scale",
        "protocol.epochs",
        "dataset.size",
    }


def test_the_table_remembers_what_was_changed_by_full_names() -> None:
    table = Request(table="table8", rows="BYOL", changes=("epochs=7", " tau = .9 ")).build()
    assert table.changes == ("epochs=7", "method.tau=.9")
    assert (byol("epochs=9").encoder.epochs, byol("tau=.9").encoder.method.tau) == (9, 0.9)


def test_a_change_to_what_a_setting_is_already_changes_no_id() -> None:
    assert byol("epochs=4").id == byol().id
    assert byol("epochs=5").id != byol().id


def test_only_runs_that_have_the_setting_are_changed() -> None:
    plain = {spec.id for spec in Request(table="table12").specs()}
    changed = {spec.id for spec in Request(table="table12", changes=("lambda_uniform=3",)).specs()}
    methods = {
        spec.encoder.method.name for spec in Request(table="table12").specs() if isinstance(spec, Evaluate)
    }
    assert methods == {"byol", "msbreg"}  # the second has no such setting
    assert plain & changed
    assert plain - changed


# What a setting takes


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("5", int, 5),
        ("-5", int, -5),
        ("5", float, 5.0),
        ("1e-3", float, 0.001),
        ("true", bool, True),
        ("False", bool, False),
        ("resnet18", str, "resnet18"),
        ("layernorm", Literal["batchnorm", "layernorm"], "layernorm"),
        ("none", float | None, None),
        ("None", int | None, None),
        ("0.5", float | None, 0.5),
        ("1,2", tuple[int, int], (1, 2)),
        ("(1, 2)", tuple[float, float], (1.0, 2.0)),
        ("1,2,3,", tuple[int, ...], (1, 2, 3)),
        ("()", tuple[int, ...], ()),
        ("none", tuple[int, ...] | None, None),
        ("4,5", tuple[int, ...] | None, (4, 5)),
    ],
)
def test_text_becomes_a_value_of_the_settings_type(text: str, hint: Any, value: object) -> None:
    parsed = parse(text, hint, "x")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "message"),
    [
        ("five", int, "x must be a whole number, not 'five'."),
        ("5.0", int, "x must be a whole number, not '5.0'."),
        ("", int, "x must be a whole number, not ''."),
        ("fast", float, "x must be a number, not 'fast'."),
        ("nan", float, "x must be a number, not 'nan'."),
        ("inf", float, "x must be a number, not 'inf'."),
        ("-1e999", float | None, "x must be a number, not '-1e999'."),
        ("smooth", Literal["slick", "knobbly"], "x is 'smooth': choose one of slick, knobbly."),
        ("1", tuple[int, int], "x needs 2 values separated by commas, not '1'."),
        ("1,b", tuple[int, int], "x must be a whole number, not 'b'."),
        ("yes", bool, "x must be true or false, not 'yes'."),
        (
            "byol",
            Toy,
            "x cannot be set to 'byol' from the command line; set one of its own settings, such as "
            "x.NAME=VALUE.",
        ),
    ],
)
def test_text_that_is_no_such_value_is_refused(text: str, hint: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the whole message is compared
        parse(text, hint, "x")
    assert str(caught.value).startswith(message)


def test_a_grid_has_a_maximum_length() -> None:
    grid = tuple[float, ...]
    assert len(parse(",".join(map(str, range(1000))), grid, "base_lrs")) == 1000
    with pytest.raises(InvalidError, match=r"^base_lrs has 1001 values: at most 1000 are expected\.$"):
        parse(",".join(map(str, range(1001))), grid, "base_lrs")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"table": "tabel8"},
            "There is no table 'tabel8'. Did you mean 'table8'? Known: table1, table2, table3, table4, ",
        ),
        ({"scale": "smal"}, "There is no scale 'smal'. Did you mean 'small'? Known: smoke, small, paper."),
        ({"seeds": 0}, "--seeds is 0: at least one seed is needed."),
        ({"seeds": 10**6}, "--seeds is 1000000: at most 1000 are expected."),
        ({"rows": "BYOL + L_x"}, "There is no row 'BYOL + L_x'. Did you mean 'BYOL + L_s'?"),
        ({"columns": "accuracy"}, "There is no column 'accuracy'."),
        ({"rows": "BYOL,Ouch*"}, "There is no row 'Ouch*'."),
        ({"changes": ("epoch=5",)}, "There is no setting 'epoch'. Did you mean 'epochs'?"),
        ({"changes": ("method.tua=0.9",)}, "There is no setting 'method.tua'. Did you mean 'method.tau'?"),
        ({"changes": ("epochs",)}, "--set needs key=value, such as epochs=5, not 'epochs'."),
        ({"changes": ("=5",)}, "--set needs key=value, such as epochs=5, not '=5'."),
        ({"changes": ("seed=3",)}, "--set cannot change the seed: --seeds N runs seeds 0 to N - 1."),
        ({"changes": ("encoder.seed=3",)}, "--set cannot change the seed"),
        ({"changes": ("epochs=-1",)}, "pretrain.epochs is -1: at least 0 is expected."),
        ({"changes": ("backbone=resnet19",)}, "There is no backbone 'resnet19'. Did you mean 'resnet18'?"),
        (
            {"changes": ("epochs=1", "pretrain.epochs=2")},
            "There is no setting 'pretrain.epochs'. Did you mean 'protocol.epochs'?",
        ),
        (
            {"changes": ("tau=.9", "epochs=1", "method.tau=.8")},
            "--set gives method.tau twice, in method.tau=.9 and method.tau=.8: give it once.",
        ),
        (
            {"changes": ("epochs=1", "encoder.epochs=1")},
            "--set gives epochs twice, in epochs=1 and epochs=1: give it once.",
        ),
        (
            {"changes": ("epochs=1\x1b",)},
            "--set needs key=value in printable characters, not 'epochs=1\\x1b'.",
        ),
        ({"changes": ("backbone=\udce9",)}, "--set needs key=value in printable characters, not "),
        ({"changes": ("norm=groupnorm",)}, "norm is 'groupnorm': choose one of batchnorm, layernorm, ws."),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_named_with_what_can(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((LookupError, ValueError)) as caught:
        Request(**{"table": "table8", **fields}).build()
    assert str(caught.value.args[0]).startswith(message)
    assert "\n" not in str(caught.value)


# Which runs come out


def test_rows_and_columns_cut_the_runs() -> None:
    assert len(Request(table="table8").specs()) == 24
    assert len(Request(table="table8", rows="BYOL*").specs()) == 8
    assert len(Request(table="table8", rows="BYOL, Ours (K=4)").specs()) == 4
    grid = {
        spec.encoder.method.num_views
        for spec in Request(table="table11", columns="k2,k8").specs()
        if isinstance(spec, Evaluate)
    }
    assert grid == {2, 8}


def test_seeds_are_those_of_pretraining_and_evaluation_alike_and_seed_0_is_the_same_run() -> None:
    one, three = (Request(table="table8", rows="BYOL", seeds=seeds).specs() for seeds in (1, 3))
    assert [spec.seed for spec in three] == [0, 0, 1, 1, 2, 2]
    assert all(spec.encoder.seed == spec.seed for spec in three if isinstance(spec, Evaluate))
    assert [spec.id for spec in three[:2]] == [spec.id for spec in one]
    assert len({spec.id for spec in three}) == 6


@pytest.mark.parametrize(
    "scale", [SCALES[0], *(pytest.param(scale, marks=pytest.mark.slow) for scale in SCALES[1:])]
)
def test_every_run_comes_once_and_after_what_it_needs(scale: str) -> None:
    done: set[str] = set()
    for job in jobs([Request(table=table, scale=scale, seeds=2) for table in table_names()]):
        assert job.spec.id not in done
        assert {spec.id for spec in job.spec.needs()} <= done
        done.add(job.spec.id)
    assert done == {
        spec.id for table in table_names() for spec in Request(table=table, scale=scale, seeds=2).specs()
    }


def test_tables_that_share_a_run_have_it_done_once() -> None:
    ablation, grid = Request(table="table8"), Request(table="table11")
    shared = {spec.id for spec in ablation.specs()} & {spec.id for spec in grid.specs()}
    assert len(shared) == 24
    assert len(jobs([ablation, grid])) == len(ablation.specs()) + len(grid.specs()) - len(shared)


def test_different_settings_never_share_an_id() -> None:
    found = {
        spec.id: spec
        for table in table_names()
        for scale in SCALES
        for spec in Request(table=table, scale=scale).specs()
    }
    for one, other in combinations(found.values(), 2):
        assert one != other


def test_a_job_is_found_again_by_its_request_and_id() -> None:
    for job in jobs([Request(table="table8", rows="BYOL*", changes=("epochs=2",)), Request(table="table12")]):
        assert worker.find(Request.loads(job.request.dumps()), job.spec.id) == job.spec


def test_a_run_that_the_code_does_not_make_is_refused() -> None:
    with pytest.raises(
        LookupError,
        match=r"table8 at smoke scale has no run 0123456789ab with the code on this machine: "
        r".* the same commit",
    ):
        worker.find(Request(table="table8"), "0123456789ab")


def test_a_request_survives_its_text_and_another_process_gives_the_same_ids() -> None:
    request = Request(
        table="table8",
        scale="small",
        seeds=2,
        rows="Ours (K=4)*",
        columns="a*",
        changes=("epochs=5", "crop_scale=0.5,1"),
    )
    assert Request.loads(request.dumps()) == request
    assert "\n" not in request.dumps()
    code = (
        "import sys; from reproduce.plan import Request; "
        "print(*(spec.id for spec in Request.loads(sys.argv[1]).specs()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, request.dumps()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [spec.id for spec in request.specs()]


# Several tables at once


def test_a_change_goes_to_the_tables_that_have_the_setting() -> None:
    made = plan.requests(
        ["table1", "table9", "table6", "table8"],
        changes=("epochs=5", "protocol.k=3", "num_unlabeled=100"),
        seeds=2,
    )
    assert {request.table: request.changes for request in made} == {
        "table1": ("epochs=5", "protocol.k=3", "num_unlabeled=100"),
        "table9": (),
        "table6": ("epochs=5", "num_unlabeled=100"),
        "table8": ("epochs=5",),
    }
    assert all(request.seeds == 2 for request in made)


def test_a_setting_that_no_table_has_is_unknown() -> None:
    with pytest.raises(LookupError, match=r"There is no setting 'epoch'\. Did you mean 'epochs'\?"):
        plan.requests(["table8", "table12"], changes=("epoch=5",))


def test_a_value_that_a_setting_does_not_take_is_no_reason_to_leave_it_out() -> None:
    with pytest.raises(ValueError, match="epochs must be a whole number, not 'five'"):
        plan.requests(["table8", "table9"], changes=("epochs=five",))
    with pytest.raises(ValueError, match="There is no backbone 'resnet19'"):
        plan.requests(["table9", "table8"], changes=("backbone=resnet19",))


def test_changes_that_make_sense_only_together_may_come_in_any_order() -> None:
    """The paper's warm-up is 10 epochs long: 5 epochs alone would never reach the learning rate."""
    both = ("epochs=5", "warmup_epochs=1")
    for changes in (both, both[::-1]):
        (made,) = plan.requests(["table8"], changes=changes, scale="small")
        assert made.specs()[0].epochs == 5
    with pytest.raises(ValueError, match="epochs is 5, less than the warm-up's 10: set warmup_epochs too"):
        plan.requests(["table8"], changes=("epochs=5",), scale="small")


def test_an_engine_that_cannot_take_the_backbone_is_refused_before_anything_is_trained() -> None:
    """Detectron2 has no backbone of the scale smoke, and its pyramid has a level more."""
    engine, others = (
        "protocol.engine=detectron2",
        ("backbone=resnet18_3x3", "protocol.anchor_sizes=4,8,16,32,64"),
    )
    with pytest.raises(
        ValueError, match=r"^The engine detectron2 needs a ResNet .*, not the backbone 'small'"
    ):
        plan.requests(["table10"], changes=(engine,))
    (made,) = plan.requests(["table10"], changes=(engine, *others))
    assert {spec.protocol.engine for spec in made.specs() if isinstance(spec, Evaluate)} == {"detectron2"}
