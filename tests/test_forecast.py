"""The lines of `--dry-run` about runs, hours and disk; refusals of `--apply` and `--max-gpu-hours`."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toys import image_folder
from waiting import joined

from configs.pretrain import byol, imagenet100, msbreg, stl10
from configs.scales import smoke
from reproduce.commands import doctor
from reproduce.commands.forecast import (
    Estimate,
    Forecast,
    Hours,
    Past,
    Step,
    check,
    estimate,
    estimate_on,
    forecast,
    makespan,
    nearest,
)
from reproduce.commands.rehearsed import Measured, Measurement, shapes
from reproduce.data.synthetic import SyntheticFolder
from reproduce.detection.cost import operations
from reproduce.messages import clock, hours
from reproduce.nn import backbones, cost
from reproduce.nn.cost import Conv, Network
from reproduce.nn.heads import Heads
from reproduce.nn.weights import Weights
from reproduce.plan import Job, Request, jobs
from reproduce.protocols.alignment import AlignmentUniformity
from reproduce.protocols.detection import Detection
from reproduce.protocols.knn import NearestNeighbours
from reproduce.protocols.linear_sgd import LinearSGD
from reproduce.protocols.protocol import Protocol
from reproduce.protocols.semi import SemiSupervised
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.readiness import RefusedError, blocked
from reproduce.resources.cards import find
from reproduce.runs import checkpoint, lease, processes
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec
from reproduce.tracking import tags
from reproduce.tracking.store import Store
from reproduce.tracking.tags import Record, RunState

if TYPE_CHECKING:
    from conftest import Home

fork = multiprocessing.get_context("fork")

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
SMALL_FORWARD = 2 * 3_125_248
"""Operations of the small network at 32 px: multiply-adds of the stem 110 592, of the blocks 1 179 648, 917
504 and 917 504."""


def tiny(epochs: int = 4, **fields: Any) -> Pretrain:
    """Return BYOL at smoke scale with K = 2."""
    run = smoke(
        Evaluate(encoder=byol(imagenet100), protocol=NearestNeighbours(), dataset=byol(imagenet100).dataset)
    ).encoder
    return replace(cast(Pretrain, run), epochs=epochs, **fields)


def evaluation(encoder: Pretrain, k: int = 5) -> Evaluate:
    return Evaluate(encoder=encoder, protocol=NearestNeighbours(k=k), dataset=encoder.dataset)


def finished(spec: Spec, seconds: float = 60, **fields: Any) -> Record:
    """Return the record of a finished run, in the store's form."""
    state = RunState(
        spec_id=spec.id,
        run_id="0" * 32,
        name="",
        scale="smoke",
        state="finished",
        reason="",
        started=START,
        metrics={},
    )
    known: dict[str, Any] = {
        "commit": "abc1234def",
        "dirty": False,
        "digests": {},
        "address": "",
        "device": "Chip",
        "attempts": 1,
    }
    known |= {"host": "here", "settings": tags.settings(spec), "ended": START + timedelta(seconds=seconds)}
    return Record(state=state, **(known | fields))


# What a network costs, without torch


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "resnet50" else name
        for name in backbones.names()
    ],
)
def test_every_backbone_costs_what_torch_counts(name: str) -> None:
    found = cost.network(name)
    assert found is not None, f"{name} has no layers in reproduce/nn/cost.py"
    with torch.device("meta"):
        network = backbones.build(name).eval()
        for size in (32, 64, 96):
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, 3, size, size))
            assert found.operations(size) == counter.get_total_flops()
    assert found.num_features == network.num_features
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    "heads",
    [Heads(), Heads(hidden=64, output=16, norm="layernorm"), Heads(norm="ws", last_bias=False)],
    ids=["batchnorm", "layernorm", "ws, without the last bias"],
)
def test_the_files_of_a_run_are_as_large_as_doctor_finds_by_building_them(heads: Heads) -> None:
    for backbone in ("small", "resnet18"):
        network = cost.network(backbone)
        assert network is not None
        run = replace(byol(imagenet100, heads=heads), backbone=backbone)
        layout = run.method.layout(network.num_features)
        assert layout is not None
        assert cost.sizes(network, layout) == doctor.sizes(run, {})


def test_the_small_network_counted_by_hand() -> None:
    network = cost.network("small")
    assert network is not None
    assert network.operations(32) == SMALL_FORWARD
    assert network.parameters == 77_392


def test_protocols_say_how_many_images_go_through_the_encoder() -> None:
    assert NearestNeighbours().passes(100, 10) == 110
    assert AlignmentUniformity().passes(100, 10) == 20
    assert LinearSGD(epochs=3, num_held_out=20).passes(100, 10) == 3 * 80 + 20 + 10
    assert SemiSupervised(epochs=(2, 5), num_held_out=20).passes(1000, 10) == 5 * 10 + 20 + 10
    assert (
        SemiSupervised(epochs=(2, 5), num_held_out=20, encoder_lr=0.1).passes(1000, 10)
        == 3 * 7 * 10 + 2 * 20 + 10
    )


# The nearest finished run


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ([], "no finished run with these settings, and none of this kind at this scale"),
        ([tiny(epochs=6)], "the nearest differs in epochs: 6, here 4"),
        ([tiny(epochs=6, seed=1), tiny(seed=2)], "the nearest differs in seed: 2, here 0"),
        ([tiny(seed=3), tiny(seed=2)], "the nearest differs in seed: 3, here 0"),
        (
            [tiny(epochs=6, seed=1, batch_size=64, backbone="resnet18", precision="bfloat16")],
            "the nearest differs in backbone: resnet18, here small; epochs: 6, here 4; "
            "batch_size: 64, here 32; and 2 more",
        ),
    ],
    ids=["none", "one setting", "fewest", "newest of several", "many"],
)
def test_the_nearest_finished_run_is_told_by_what_differs(others: list[Pretrain], says: str) -> None:
    assert (
        nearest(tiny(), Past(finished(run) for run in others)).removeprefix(
            "no finished run with these settings; "
        )
        == says
    )


def test_a_setting_that_older_runs_lack_is_no_difference_while_it_has_its_default() -> None:
    older = finished(tiny(epochs=6))
    later = ("augmentation.small", "augmentation.draft")
    settings = {key: value for key, value in older.settings.items() if key not in later}
    past = Past([replace(older, settings=settings)])
    assert nearest(tiny(), past).endswith("differs in epochs: 6, here 4")
    assert "draft: none, here True" in nearest(tiny().replace("augmentation.draft", True), past)


# Hours


def test_a_pretraining_takes_what_finished_ones_took_for_a_view() -> None:
    """60 s for 4 epochs of K = 2, of which 3 s are assumed to be the start: so 3 + 57 x (8 x 4) / (4 x 2) for
    8 epochs of K = 4."""
    ours = tiny(epochs=8).replace("method.num_views", 4)
    assert estimate(ours, [finished(tiny())], "CPU", "Chip") == Estimate(231, "finished runs", start=3)
    three = [finished(tiny(seed=seed), seconds) for seed, seconds in enumerate((60, 90, 1000))]
    assert estimate(ours, three, "CPU", "Chip") == Estimate(351, "finished runs", start=3)


def test_images_of_another_data_set_count_by_their_number() -> None:
    """The smoke scale's folder has 1 200 training scenes, its STL-10 500 + 700, in this test 3 500 + 700."""
    other = smoke(
        Evaluate(encoder=byol(stl10), protocol=NearestNeighbours(), dataset=byol(stl10).dataset)
    ).encoder
    ours = (
        cast(Pretrain, other)
        .replace("dataset.num_train", 3500)
        .replace("epochs", 4)
        .replace("augmentation", tiny().augmentation)
    )
    expected = Estimate(3 + 57 * 4200 / 1200, "finished runs", start=3)
    assert estimate(ours, [finished(tiny())], "CPU", "Chip") == expected


@pytest.mark.parametrize(
    ("runs", "start"),
    [
        ([(tiny(), 60, 100.0)], 12),
        ([(tiny(), 60, 100.0), (tiny(seed=1), 500, 100.0)], 12),
        ([(tiny(), 60, 60.0)], 0),
        ([(tiny(), 60, None)], 3),
        ([(tiny(epochs=100), 1260, 100.0)], 3),
        ([(tiny(), 2, None)], 2),
    ],
    ids=["shown", "by the shortest", "never negative", "no speed", "too long", "shorter"],
)
def test_what_a_run_does_besides_its_work_comes_from_the_shortest_finished_one(
    runs: list[tuple[Pretrain, float, float | None]], start: float
) -> None:
    """4 epochs of 1 200 images at 100 images/s take 48 of 60 s."""
    past = []
    for spec, seconds, rate in runs:
        record = finished(spec, seconds)
        metrics = {} if rate is None else {"images_per_second": rate}
        past.append(replace(record, state=replace(record.state, metrics=metrics)))
    found = estimate(tiny(backbone="resnet18"), past, "CPU", "Chip")
    assert found is not None
    assert (found.source, found.start) == ("FLOPs", start)
    assert estimate(tiny(), [replace(past[0], device="Another")], "GPU", "Chip").start == 10  # type: ignore[union-attr]


def test_a_run_of_seconds_takes_as_long_as_its_start_on_any_card() -> None:
    """Four evaluations at the smoke scale, one after the other. None is within a factor of two."""
    steps = [step(evaluation(tiny(seed=seed))) for seed in range(4)]
    plan = replace(made(*steps), card=find("h100"), at_once=1)
    plan = replace(
        plan,
        steps=tuple(
            replace(each, estimate=estimate_on(find("h100"), each.spec, (), Measured(), 1, Site()))
            for each in steps
        ),
    )
    lines = list(plan.lines())
    assert "GPU-hours: 0.011. Wall time: 40 s, 1 run at once." in lines
    assert "  4 estimated for NVIDIA H100 from its datasheet, roughly." in lines


@pytest.mark.parametrize(
    "record",
    [
        finished(tiny(), device="Another"),
        finished(tiny(), device=""),
        finished(tiny(), attempts=2),
        finished(tiny(), attempts=None),
        finished(tiny(), ended=None),
        finished(tiny(backbone="resnet18")),
        finished(tiny().replace("dataset.size", 16)),
        finished(tiny(epochs=0)),
    ],
    ids=[
        "other device",
        "device not recorded",
        "resumed",
        "attempts not recorded",
        "no end",
        "other backbone",
        "other size",
        "no epochs",
    ],
)
def test_times_that_do_not_compare_are_not_used(record: Record) -> None:
    """The estimate comes from FLOPs instead.

    4 passes (online forward and backward, target) x 4 epochs x 1 200 images x 2 views at 20e9 per second.
    """
    found = estimate(tiny(), [record], "CPU", "Chip")
    assert found is not None
    assert found.source == "FLOPs"
    assert found.seconds == pytest.approx(3 + 4 * 4 * 1200 * 2 * SMALL_FORWARD / 20e9)


def test_an_evaluation_takes_what_the_same_one_of_another_encoder_took() -> None:
    ours = evaluation(tiny(seed=1))
    assert estimate(ours, [finished(evaluation(tiny(epochs=9)), 7)], "CPU", "Chip") == Estimate(
        7, "finished runs", start=3
    )
    other = estimate(ours, [finished(evaluation(tiny(), k=20), 7)], "CPU", "Chip")
    assert other is not None
    assert other[:3] == (pytest.approx(3 + (1200 + 1000) * SMALL_FORWARD / 20e9), "FLOPs", "")


def test_the_published_sizes_of_real_data_give_an_estimate_at_paper_scale() -> None:
    """ImageNet-100 has 126 689 images; a ResNet-18 with a 7x7 stem takes 1.81e9 multiply-adds at 224 px
    (torchvision's documentation)."""
    run = msbreg(imagenet100)
    found = estimate(run, [], "GPU", "any")
    assert found is not None
    assert found.seconds == pytest.approx(4 * 320 * 126_689 * 4 * 2 * 1.81e9 / 18e12, rel=0.01)


def test_hours_count_the_images_on_this_machine(tmp_path: Path) -> None:
    """Of Imagenette's 9 469 and 3 925 images, 600 and 200 are here, and a rehearsal took 1 s a step."""
    root = image_folder(tmp_path / "images", train=60, val=20, classes=10)
    other = Site(runs=tmp_path / "runs", device="cpu")
    site = replace(other, data={"imagenette": root})
    table = Request(table="table8", scale="small", rows="BYOL", changes=("batch_size=100", "epochs=3"))
    pretraining, linear = jobs([table])
    run = cast(Pretrain, pretraining.spec)
    passes = [linear.spec.protocol.passes(*each) for each in ((600, 200), (9469, 3925))]  # type: ignore[union-attr]
    for job, ratio in ((pretraining, 600 / 9469), (linear, passes[0] / passes[1])):
        (here, published) = (Hours(None, each).of(job) for each in (site, other))
        assert here is not None
        assert published is not None
        assert here.start == published.start == 3
        assert here.seconds - here.start == pytest.approx(ratio * (published.seconds - published.start))
        on = [Hours(None, each, find("h100")).of(job) for each in (site, other)]
        assert on[0] is not None
        assert on[1] is not None
        assert on[0].start == on[1].start == 10
        assert on[0].seconds - on[0].start == pytest.approx(ratio * (on[1].seconds - on[1].start))

    (large, *_) = jobs([replace(table, changes=("batch_size=601", "epochs=3"))])
    too_few, published = (Hours(None, each).of(large) for each in (site, other))
    assert too_few == published, "a run that needs more images than are here"

    count, number = Hours(None, site).counting(pretraining), {"num_images": "9469"}
    (shape,) = shapes(run, site, 1)
    measured = Measured({(shape, "Chip"): Measurement(seconds=1.0, images=100, steps=20, limit="CPU")})
    past = [finished(run, 94.69, digests=number)]
    found = [estimate(run, each, "CPU", "Chip", measured, 1, site, count) for each in ([], past)]
    assert [each and (each.source, each.seconds) for each in found] == [
        ("rehearsed", 3 + 3 * 6),
        ("finished runs", pytest.approx(3 + (94.69 - 3) * 600 / 9469)),
    ]


class Quiet(Protocol, name="quiet"):
    """A protocol that does not report its passes through the encoder."""


def test_what_nobody_knows_is_not_invented() -> None:
    for table in ("table1", "table10"):
        known = next(job.spec for job in jobs([Request(table=table)]) if isinstance(job.spec, Evaluate))
        assert estimate(known, [], "CPU", "Chip") is not None
        assert (
            estimate(replace(known, encoder=Weights(backbone="resnet101", sha256="0")), [], "CPU", "Chip")
            is None
        )
    silent = replace(known, protocol=Quiet(), dataset=SyntheticFolder())
    assert estimate(silent, [], "CPU", "Chip") is None


def step(spec: Spec, seconds: float | None = None, action: Any = "run", **fields: Any) -> Step:
    return Step(
        spec=spec,
        action=action,
        why="",
        estimate=None if seconds is None else Estimate(seconds, "finished runs"),
        **fields,
    )


def test_the_wall_time_respects_what_comes_first_and_how_many_go_on_at_once() -> None:
    """Two pretrainings of 10 and 20 s, an evaluation of 5 s after each."""
    one, two = tiny(), tiny(seed=1)
    steps = [step(one, 10), step(evaluation(one), 5), step(two, 20), step(evaluation(two), 5)]
    assert [makespan(steps, at_once) for at_once in (1, 2, 9)] == [40, 25, 25]
    assert makespan([step(one, 10, left=0.25), step(evaluation(one), 5)], 2) == 7.5
    wide = [step(one, 16, devices=8), step(evaluation(one), 5), step(two, 24, devices=8)]
    assert makespan(wide, 8) == 2 + 5 + 3, (
        "the second pretraining waits for eight devices, one of which the evaluation has"
    )
    assert makespan(wide, 9) == 2 + 5, "beside it there is room for eight"
    assert makespan([*wide, step(tiny(seed=2), 4)], 8) == 2 + 5 + 3 + 4, (
        "seven devices are free, but a short run does not overtake the one that waits for eight"
    )


# The digest and its check


def made(*steps: Step) -> Forecast:
    return Forecast(steps=steps, device="GPU", at_once=2, disk=10**9)


def test_the_digest_covers_runs_their_fates_and_their_order_and_nothing_else() -> None:
    one, two = step(tiny()), step(tiny(seed=1))
    others = [(one,), (two, one), (one, replace(two, action="reuse")), (one, step(tiny(seed=2)))]
    digests = {made(*steps).digest for steps in ((one, two), *others)}
    assert len(digests) == 5
    assert all(re.fullmatch("[0-9a-f]{12}", digest) for digest in digests)
    assert (
        made(replace(one, why="other words", left=0.5), step(tiny(seed=1), 50)).digest
        == made(one, two).digest
    )


def test_what_is_not_allowed_is_refused_in_one_line() -> None:
    plan = made(step(tiny(), 3600), step(tiny(seed=1), 3600, left=0.5), step(tiny(seed=2), action="reuse"))
    assert plan.hours == 1.5
    check(plan, "", None)
    check(plan, plan.digest, 1.5)
    with pytest.raises(
        RefusedError,
        match=r"^Plan 0123456789ab was requested, but the plan is "
        rf"{plan.digest} now\. .*--apply {plan.digest}\.$",
    ):
        check(plan, "0123456789ab", None)
    with pytest.raises(
        RefusedError, match=r"^--max-gpu-hours is 1\.4, but the estimate for this plan is 1\.5 GPU-hours: "
    ):
        check(plan, plan.digest, 1.4)
    unknown = made(step(tiny(), 3600), step(tiny(seed=1)))
    assert unknown.hours is None
    with pytest.raises(RefusedError, match="but the hours of 1 of 2 runs are unknown: "):
        check(unknown, "", 1e9)


def test_the_summary_counts_adds_up_and_says_what_is_not_known() -> None:
    lines = list(
        made(step(tiny(), 7200), step(evaluation(tiny()), 1800), step(tiny(seed=1), action="attach")).lines()
    )[3:]
    assert lines[:4] == [
        "3 runs: 1 executed by other processes, 2 to run.",
        "GPU-hours: 2.5. Wall time: 2:30:00, 2 runs at once.",
        "  2 estimated from comparable finished runs.",
        "  Not counted: 1 run of other processes.",
    ]
    unknown = list(made(step(tiny(), 7200), step(evaluation(tiny()))).lines())[2:]
    assert (
        unknown[1]
        == "GPU-hours: unknown for 1 of 2 runs; the other one needs 2. Wall time: unknown, 2 runs at once."
    )
    assert "  1 unknown: knn on synthetic_folder." in unknown


def test_what_is_blocked_has_hours_of_its_own() -> None:
    """One run of 4 days cannot start, and the evaluation of 30 min after it; another of 2 h can."""
    waiting = (step(tiny(), 4 * 86400, "blocked"), step(evaluation(tiny()), 1800, "blocked"))
    lines = list(made(*waiting).lines())
    assert lines[2:-1] == [
        "2 runs: 2 blocked.",
        "Blocked: 2 runs, 96 GPU-hours. Wall time: 4.0 days, 2 runs at once.",
        "  2 estimated from comparable finished runs.",
    ]
    plan = made(step(tiny(seed=1), 7200), *waiting[:1], step(evaluation(tiny()), action="blocked"))
    assert plan.hours == 2, "the limit of hours is about what would start"
    assert list(plan.lines())[4:-1] == [
        "GPU-hours: 2. Wall time: 2:00:00, 1 run at once.",
        "  1 estimated from comparable finished runs.",
        "Disk: 1 GB.",
        "Blocked: 2 runs, GPU-hours unknown for 1 of 2 runs; the other one needs 96. "
        "Wall time with them: unknown, 2 runs at once.",
        "  1 estimated from comparable finished runs.",
        "  1 unknown: knn on synthetic_folder.",
    ]


def test_a_plan_on_another_card_says_where_its_hours_come_from() -> None:
    half = tiny(precision="bfloat16")
    sources = [Estimate(3600, "FLOPs"), Estimate(3600, "rehearsed", "NVIDIA H200")]
    steps = [
        replace(step(each), estimate=source) for each, source in zip((half, tiny()), sources, strict=True)
    ]
    lines = list(replace(made(*steps), card=find("t4")).lines())[3:-1]
    assert lines[:3] == [
        "GPU-hours: 2. Wall time: 1:00:00, 2 runs at once.",
        "  1 scaled to NVIDIA T4 from a rehearsal on NVIDIA H200.",
        "  1 estimated for NVIDIA T4 from its datasheet; within a factor of two.",
    ]
    assert lines[-1].startswith("NVIDIA T4 has no bfloat16, ")
    large = replace(made(*steps), card=find("t4"), memory=(10**9, 21 * 10**9, 17 * 10**9))
    assert any(
        line.startswith("NVIDIA T4 has 16 GB, but 2 runs needed up to 21 GB when rehearsed: ")
        for line in large.lines()
    )
    assert not any("bfloat16" in line for line in replace(made(*steps), card=find("h100")).lines())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (12, "12 s"),
        (185, "3:05"),
        (7449, "2:04:09"),
        (172_800, "48:00:00"),
        (172_801, "2.0 days"),
        (293_760, "3.4 days"),
        (859_000, "9.9 days"),
        (860_000, "10 days"),
        (34_560_000, "400 days"),
    ],
)
def test_a_time_over_two_days_is_in_days_and_a_cost_is_not(seconds: float, words: str) -> None:
    assert clock(seconds) == words
    assert "days" not in hours(seconds)


def test_a_large_group_is_one_line_and_a_small_one_is_listed() -> None:
    """Four runs differ from their nearest ones in K or the epochs; two wait for one run; one is attached."""
    stem = "no finished run with these settings"
    differ = [
        "epochs: 2, here 4",
        "method.num_views: 2, here 8",
        "epochs: 2, here 9",
        "seed: 1, here 0; and 2 more",
    ]
    steps = [
        replace(step(tiny(seed=number)), why=f"{stem}; the nearest differs in {each}")
        for number, each in enumerate(differ)
    ]
    blocked = [
        replace(step(tiny(seed=10 + k), action="blocked"), why=f"run {k:012x}, which it needs, lacks disk")
        for k in range(4)
    ]
    attached = [replace(step(tiny(seed=20 + k), action="attach"), why="the same") for k in range(4)]
    few = [replace(step(tiny(seed=30 + k), action="reuse"), why="finished") for k in range(3)]
    plan = made(*steps, *blocked, *attached, *few)
    assert list(plan.lines(verbose=False))[:10] == [
        f"run      4 runs: {stem}; the nearest differ in epochs, method.num_views, seed and others",
        "blocked  4 runs: the pretraining that each needs lacks disk",
        *map(str, attached),
        *map(str, few),
        "--verbose lists each run.",
    ]
    assert list(plan.lines(verbose=True))[:15] == [*map(str, plan.steps)]
    assert made(*steps).digest == made(*(replace(each, why="") for each in steps)).digest


# Real records


def attempt(spec: Spec, site: Site, at: Any) -> None:
    """Start a run, report it, and wait to be killed."""
    with (
        lease.take(site.runs / spec.id, spec.id, heartbeat=10) as held,
        Store(site).start(spec, scale="smoke", hold=held),
    ):
        at.put(os.getpid())
        signal.pause()


def steps_of(wanted: list[Job], site: Site) -> list[Step]:
    return list(forecast(wanted, lambda todo: blocked(todo, site, fetch=False), Store(site), site).steps)


@pytest.mark.slow
def test_every_fate_is_told_from_the_store_and_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.tracking  # noqa: F401, forked processes need not import it again

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    site = Site(runs=tmp_path / "runs", device="cpu", jobs=1)
    (reused, killed, running, failed, new), at = [tiny(seed=seed) for seed in range(5)], fork.Queue()
    request = Request(table="table8")
    wanted = [Job(spec, request) for spec in (reused, killed, running, failed, new)]
    assert {each.why for each in steps_of(wanted, site)} == {
        "no finished run with these settings, and none of this kind at this scale"
    }
    assert not site.runs.exists()

    with Store(site).start(reused, scale="smoke") as run:
        run.finish({})
    with pytest.raises(ValueError, match="no luck"), Store(site).start(failed, scale="smoke"):
        raise ValueError("no luck")
    forked = [fork.Process(target=attempt, args=(spec, site, at)) for spec in (killed, running)]
    try:
        for process in forked:
            process.start()
            at.get(timeout=60)
        forked[0].kill()
        joined(forked[0])
        checkpoint.save(site.runs / killed.id, killed.id, {"epoch": 3}, 3)
        found = dict(
            zip(("reused", "killed", "running", "failed", "new"), steps_of(wanted, site), strict=True)
        )
    finally:
        for process in forked:
            process.kill()
            joined(process)
    record = Store(site).records([reused.id])[reused.id]
    assert (record.attempts, record.device) == (1, Store(site).records([killed.id])[killed.id].device)
    assert record.ended is not None
    host = processes.this_host()
    assert {name: each.action for name, each in found.items()} == {
        "reused": "reuse",
        "killed": "resume",
        "running": "attach",
        "failed": "run",
        "new": "run",
    }
    assert found["reused"].why.startswith(
        f"finished {record.ended.astimezone():%Y-%m-%d}, commit {record.commit[:7]}"
    )
    gone = f"its process {forked[0].pid} on {host} is gone"
    assert found["killed"].why == f"from the checkpoint of epoch 3 of 4; interrupted: {gone}"
    assert found["killed"].left == 0.25
    assert found["running"].why == f"process {forked[1].pid} on {host} executes it"
    assert found["failed"].why == "failed: ValueError: no luck; starts from scratch"
    assert found["new"].why == "no finished run with these settings; the nearest differs in seed: 0, here 4"
    assert {each.estimate.source for each in found.values() if each.estimate} == {"finished runs"}

    with Store(site).start(killed, scale="smoke") as run:
        run.finish({})
    assert Store(site).records([killed.id])[killed.id].attempts == 2


def test_what_lacks_data_is_blocked_and_so_is_all_that_hangs_on_it(tmp_path: Path) -> None:
    site = Site(runs=tmp_path / "runs", device="cpu")
    found = steps_of(jobs([Request(table="table8", scale="small", rows="BYOL")]), site)
    assert [(each.action, each.why) for each in found] == [
        ("blocked", "lacks imagenette and a GPU for bfloat16"),
        ("blocked", "lacks imagenette"),
    ]
    site = replace(site, data={"imagenette": image_folder(tmp_path / "imagenette", train=103)})
    detection = steps_of(
        jobs([Request(table="table10", scale="small", changes=("precision=float32",))]), site
    )
    waiting = {each.spec.id: each.why for each in detection if isinstance(each.spec, Evaluate)}
    for each in detection:
        if isinstance(each.spec, Pretrain):
            assert each.action == "blocked"
            assert re.fullmatch(r"every run that needs it is blocked: run (\w+) lacks coco2017\b.*", each.why)
            assert each.why.split()[8] in waiting


def test_the_operations_of_a_detector_are_those_counted_by_hand() -> None:
    """3072 pixels, as 48 x 64; the last layer is the head of ten boxes of 14 x 14 places, 7 x 7 behind it."""
    layers = (Conv(3, 4, 3, 2), Conv(4, 8, 3, 4), Conv(8, 16, 1, 8))
    protocol = VOCDetection(
        train_sizes=(40, 56), iterations=5, drops=(), warmup_iterations=0, rois=10, precise_bn_iterations=2
    )
    stem, second = 2 * 3 * 4 * 9 * 3072 / 4, 2 * 4 * 8 * 9 * 3072 / 16
    proposals, heads = 2 * 8 * 8 * 9 * 3072 / 16, 10 * 2 * 8 * 16 * 7 * 7
    images = 16 * (3 * 5 + 2)
    assert operations(protocol, Network(layers)) == pytest.approx(
        images * (stem + second + proposals + heads)
    )


@pytest.mark.parametrize(("table", "seconds"), [("table5", 35), ("table10", 74)])
def test_the_hours_of_a_detector_at_the_scale_smoke_are_as_long_as_it_took(
    table: str, seconds: float
) -> None:
    """Measured on one core of two, both at work: 34 and 36 s, twice 74 s."""
    spec = next(
        spec
        for spec in Request(table=table).specs()
        if isinstance(spec, Evaluate) and isinstance(spec.protocol, Detection)
    )
    found = estimate(spec, (), "CPU", "")
    assert found is not None
    assert found.source == "FLOPs"
    assert seconds / 2 < found.seconds < seconds * 2


def test_a_batch_that_the_devices_cannot_share_is_known_before_anything_starts(tmp_path: Path) -> None:
    wanted = jobs([Request(table="table8", rows="BYOL")])
    site = Site(runs=tmp_path / "runs", device="cpu", devices=3)
    lacks = "lacks a batch that 3 devices can share"
    assert [each.why for each in steps_of(wanted, site)] == [
        lacks,
        f"run {wanted[0].spec.id}, which it needs, {lacks}",
    ]
    assert {each.problem.why for each in blocked(wanted, site).values()} == {
        "A batch of 32 images does not divide into 3 equal shares: set another `devices` in the site file."
    }
    assert [each.action for each in steps_of(wanted, replace(site, devices=4))] == ["run", "run"]


def test_a_group_that_the_devices_would_split_is_known_before_anything_starts(tmp_path: Path) -> None:
    changes = ("batch_size=24", "method.keys.group=8", "method.keys.queue=48")
    wanted = jobs([Request(table="table4", rows="PCL", baselines="trained", changes=changes)])
    site = Site(runs=tmp_path / "runs", device="cpu", devices=2)
    assert {each.problem.why for each in blocked(wanted, site).values()} == {
        "A batch of 24 images has 3 groups of 8 for BatchNorm, and 2 devices would split one: set `devices` "
        "in the site file to one of 1, 3."
    }
    assert not blocked(wanted, replace(site, devices=3))


def _pretraining(spec: Spec) -> Pretrain:
    encoder = spec.encoder if isinstance(spec, Evaluate) else spec
    assert isinstance(encoder, Pretrain)
    return encoder


@pytest.mark.parametrize(
    ("rows", "change", "says"),
    [
        (
            "SimCLR,MoCo",
            "epochs=1",
            "warmup_steps is 50, but the run of simclr on synthetic_stl10 has only 37 steps: set epochs to "
            "at least 2, or warmup_steps to at most 37.",
        ),
        (
            "MoCo,SimCLR",
            "keys.queue=1208",
            "keys.queue is 1208, but the data set has only 1200 images. Such a queue always contains a key "
            "of the query's own image: choose a much shorter one.",
        ),
    ],
)
def test_settings_that_do_not_fit_the_number_of_images_are_known_before_anything_starts(
    tmp_path: Path, rows: str, change: str, says: str
) -> None:
    """The smoke scale's sets have 1200 images: 37 batches of 32, and 151 of MoCo's 8 make the queue."""
    request = Request(table="table1", rows=rows, baselines="trained", changes=(change,))
    refused, other = rows.lower().split(",")
    site, wanted = Site(runs=tmp_path / "runs", device="cpu"), jobs([request])
    actions = {(_pretraining(step.spec).method.name, step.action) for step in steps_of(wanted, site)}
    assert actions == {(refused, "blocked"), (other, "run")}
    assert {each.problem.why for each in blocked(wanted, site).values()} == {says}


# The command line


@pytest.mark.slow
def test_a_plan_is_applied_only_as_it_was_looked_at(home: Home) -> None:
    arguments = ("table8", "--rows", "BYOL")
    planned = home.invoke(*arguments, "--dry-run").stdout.splitlines()[-1].split()[1].rstrip(":")
    other = home.invoke("table8", "--rows", "BYOL + L_s", "--apply", planned)
    assert (other.returncode, other.stdout, other.stderr.count("\n")) == (2, "", 1)
    assert other.stderr.startswith(f"Plan {planned} was requested, but the plan is ")
    dear = home.invoke(*arguments, "--apply", planned, "--max-gpu-hours", "0.0001")
    assert (dear.returncode, dear.stdout, dear.stderr.count("\n")) == (2, "", 1)
    expected = "--max-gpu-hours is 0.0001, but the estimate for this plan is under 0.01 CPU-hours"
    assert dear.stderr.startswith(expected)
    looked = home.invoke(*arguments, "--apply", planned, "--max-gpu-hours", "1", "--dry-run")
    assert (looked.returncode, looked.stderr) == (0, "")
    assert not home.runs.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--apply", "now"),
            "--apply needs the 12 hexadecimal digits that --dry-run prints last, not 'now'.",
        ),
        pytest.param(
            ("--max-gpu-hours", "few"),
            "--max-gpu-hours must be a number, such as 0.5, not 'few'.",
            marks=pytest.mark.slow,
        ),
        (
            ("--max-gpu-hours", "1", "--render-only"),
            "--render-only starts nothing: leave it out, or --max-gpu-hours.",
        ),
    ],
    ids=["apply", "hours", "render only"],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], says: str, home: Home) -> None:
    done = home.invoke("table8", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{says}\n")
