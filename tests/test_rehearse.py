"""`invoke rehearse`: which runs share a shape, what is measured, and what the forecasts make of it."""

from __future__ import annotations

import fcntl
import json
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from PIL import Image
from waiting import limited

from configs.pretrain import byol, imagenet100, msbreg
from configs.scales import smoke
from reproduce.commands import rehearsed, trial
from reproduce.commands.forecast import Estimate, Past, Step, estimate, estimate_on, num_images
from reproduce.commands.photographs import Photographs
from reproduce.commands.program import _with_rest
from reproduce.commands.rehearse import FOLDER, LOCK, _workplace, remedies, shapes_of, trials
from reproduce.commands.rehearsed import Measured, Measurement, shapes
from reproduce.messages import NotFoundError
from reproduce.nn import cost
from reproduce.plan import Request, jobs
from reproduce.protocols.knn import NearestNeighbours
from reproduce.protocols.linear import LinearEvaluation
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.resources.cards import CARDS, find, of_device
from reproduce.runs.cores import Share
from reproduce.runs.files import write_atomic
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec

if TYPE_CHECKING:
    from conftest import Home

SITE = Site(runs=Path("/nowhere"), device="cpu")


def tiny(**fields: Any) -> Pretrain:
    """Return BYOL at smoke scale with K = 2: 1 200 scenes of 32 px, batches of 32."""
    run = byol(imagenet100)
    small = smoke(Evaluate(encoder=run, protocol=NearestNeighbours(), dataset=run.dataset)).encoder
    return replace(cast(Pretrain, small), **fields)


def linear(encoder: Pretrain, **fields: Any) -> Evaluate:
    return Evaluate(encoder=encoder, protocol=LinearEvaluation(**fields), dataset=encoder.dataset)


def made(seconds: float, images: int, **fields: Any) -> Measurement:
    known: dict[str, Any] = {"seconds": seconds, "images": images, "steps": 20, "limit": "CPU"}
    return Measurement(**(known | fields))


# Shapes


@pytest.mark.parametrize(
    ("spec", "site", "devices", "same"),
    [
        (tiny(seed=5, epochs=9), SITE, 1, True),
        (tiny().replace("method.lambda_s", 0.1).replace("method.tau", 0.5), SITE, 1, True),
        (tiny().replace("optimizer.base_lr", 0.3).replace("augmentation.flip", 0.2), SITE, 1, True),
        (tiny().replace("dataset.num_train", 1300), SITE, 1, True),
        (tiny(batch_size=64), SITE, 2, True),
        (tiny(), SITE, 2, False),
        (tiny(batch_size=64), SITE, 1, False),
        (tiny().replace("method.num_views", 4), SITE, 1, False),
        (tiny().replace("method.heads.hidden", 64), SITE, 1, False),
        (tiny().replace("dataset.size", 16), SITE, 1, False),
        (tiny().replace("augmentation.blur", 0.0), SITE, 1, False),
        (tiny(backbone="resnet18"), SITE, 1, False),
        (tiny(precision="bfloat16"), SITE, 1, False),
        (tiny(), replace(SITE, workers=2), 1, False),
        (tiny(), replace(SITE, cache_gb=0.001), 1, False),
        (tiny(), replace(SITE, recompute=True), 1, True),
    ],
)
def test_what_a_step_costs_makes_a_shape_and_nothing_else(
    spec: Pretrain, site: Site, devices: int, same: bool
) -> None:
    """3.7 MB of decoded scenes do not fit in 1 MB, so their shape reads files. BYOL has a part for each view,
    so `recompute` does not concern it."""
    assert (shapes(spec, site, devices) == shapes(tiny(), SITE, 1)) is same


@pytest.mark.parametrize(
    ("epochs", "devices", "asked", "gpu", "expected"),
    [
        (320, 1, "auto", True, True),
        (40, 1, "auto", True, False),
        (320, 8, "auto", True, False),
        (320, 1, "auto", False, False),
        (320, 1, False, True, False),
        (40, 8, True, False, True),
    ],
)
def test_a_run_that_compiles_has_another_shape(
    epochs: int, devices: int, asked: Any, gpu: bool, expected: bool
) -> None:
    """Compilation must save two minutes of a GPU's 1e14 operations per second, at 22 % of the time: 5.5e16
    operations. K = 8 on Imagenette has 320 epochs of 9 469 images, 8 views of 4 passes of 1.12e9
    operations: 1.09e17."""
    small = Request(table="table8", scale="small", rows="Ours (K=8)*", changes=(f"epochs={epochs}",))
    job = jobs([small])[0]
    seen = rehearsed.seen_by(job, Share(16, 1), replace(SITE, devices=devices, compile=asked), gpu=gpu)
    (shape,) = shapes(job.spec, seen, devices)
    assert dict(shape.facts)["compile"] == str(expected)


def test_the_runs_of_table_8_are_three_pretrainings_an_encoder_and_a_classifier() -> None:
    found = {shape for job in jobs([Request(table="table8")]) for shape in shapes(job.spec, SITE, 1)}
    assert sorted(shape.kind for shape in found) == ["classifier", "encoder", *3 * ["pretraining"]]
    views = {dict(shape.facts).get("method.num_views") for shape in found}
    assert views == {None, "2", "4", "8"}


def test_evaluations_share_the_passes_of_an_encoder_and_detectors_are_not_rehearsed() -> None:
    knn = Evaluate(encoder=tiny(), protocol=NearestNeighbours(), dataset=tiny().dataset)
    other = Evaluate(encoder=tiny(seed=1), protocol=NearestNeighbours(k=20), dataset=tiny().dataset)
    assert shapes(knn, SITE, 1) == shapes(other, SITE, 1) == shapes(linear(tiny()), SITE, 1)[:1]
    specs: tuple[Spec, ...] = Request(table="table5").specs()
    detection = [
        each for each in specs if isinstance(each, Evaluate) and isinstance(each.protocol, VOCDetection)
    ]
    assert detection
    assert all(shapes(each, SITE, 1) == () for each in detection)
    assert "detector" in rehearsed.why_not(detection[0])


# What the measurements say


def test_the_seconds_of_a_run_counted_by_hand() -> None:
    """A pretraining of 4 epochs has 4 x 37 steps. The evaluation has 2 200 images, 256 in .5 s, and its
    classifier 10 epochs of 2 steps (1 200 images in batches of 1 000) of .25 s."""
    run = tiny(epochs=4)
    evaluation = linear(run, epochs=10)
    encoder, classifier = shapes(evaluation, SITE, 1)
    measured = Measured({(shapes(run, SITE, 1)[0], "Chip"): made(0.5, 32), (encoder, "Chip"): made(0.5, 256)})
    assert measured.seconds(run, 1, "Chip", SITE, num_images) == 4 * 37 * 0.5
    assert measured.seconds(run, 1, "Another", SITE, num_images) is None
    assert measured.seconds(run, 2, "Chip", SITE, num_images) is None, "nothing was measured for 16 images"
    assert measured.seconds(evaluation, 1, "Chip", SITE, num_images) is None, (
        "its classifier was not measured"
    )
    measured[classifier, "Chip"] = made(0.25, 1000)
    seconds = measured.seconds(evaluation, 1, "Chip", SITE, num_images)
    assert seconds == pytest.approx(2200 * 0.5 / 256 + 10 * 2 * 0.25)
    measured[shapes(run, SITE, 2)[0], "Chip"] = made(0.3, 16)
    assert measured.seconds(run, 2, "Chip", SITE, num_images) == pytest.approx(4 * 37 * 0.3 * 2), (
        "both devices count"
    )


def test_a_number_of_decoders_that_is_unknown_here_is_that_of_the_newest_rehearsal() -> None:
    """Such as on the login node of a cluster, where `auto` stays open. A number that is known must agree."""
    by_number = {number: shapes(tiny(), replace(SITE, workers=number), 1)[0] for number in (3, 7)}
    old, new = made(0.5, 32, at="2026-01-01"), made(0.2, 32, at="2026-01-02")
    measured = Measured({(by_number[7], "GPU"): new, (by_number[3], "GPU"): old, (by_number[3], "B"): old})
    (open_,) = shapes(tiny(), SITE, 1)
    assert dict(open_.facts)["workers"] == "auto"
    assert [measured.find(open_, name) for name in ("GPU", "B", "C")] == [new, old, None]
    assert measured.find(by_number[3], "GPU") is old
    assert measured.find(shapes(tiny(), replace(SITE, workers=1), 1)[0], "GPU") is None
    assert measured.find(shapes(tiny(batch_size=64), SITE, 1)[0], "GPU") is None


def test_finished_runs_are_trusted_most_then_rehearsals_then_operations() -> None:
    from test_forecast import finished

    run = tiny(epochs=4)
    measured = Measured({(shapes(run, SITE, 1)[0], "Chip"): made(0.5, 32)})
    past = Past([finished(tiny(epochs=4, seed=1), 60)])
    assert estimate(run, past, "CPU", "Chip", measured, 1, SITE) == Estimate(60, "finished runs", start=3)
    assert estimate(run, (), "CPU", "Chip", measured, 1, SITE) == Estimate(77, "rehearsed", "Chip", 3)
    found = estimate(run, (), "CPU", "Another", measured, 1, SITE)
    assert found is not None
    assert (found.source, found.on) == ("FLOPs", "")


def test_a_run_starts_once_and_again_if_it_resumes() -> None:
    """Its first step took 90 s more than a later one, on each of two devices: it may have been compiled."""
    run = tiny(epochs=4)
    measured = Measured({(shapes(run, SITE, 2)[0], "Chip"): made(0.25, 16, first=90)})
    found = estimate(run, (), "CPU", "Chip", measured, 2, SITE)
    assert found == Estimate(2 * (90 + 4 * 37 * 0.25), "rehearsed", "Chip", start=180)
    half = Step(spec=run, action="resume", why="", left=0.5, devices=2, estimate=found)
    assert half.seconds == 2 * (90 + 2 * 37 * 0.25)


@pytest.mark.parametrize(
    ("seconds", "ready", "busy", "gpu", "expected"),
    [
        (1.0, 1.0, None, False, "CPU"),
        (1.2, 1.0, None, False, "data"),
        (1.0, 1.0, 0.97, True, "GPU"),
        (1.0, 1.0, 0.5, True, "launch"),
        (1.5, 1.0, 0.5, True, "data"),
        (1.0, 1.0, None, True, "GPU"),
    ],
)
def test_what_a_step_waits_for(
    seconds: float, ready: float, busy: float | None, gpu: bool, expected: str
) -> None:
    assert trial.limit(seconds, ready, busy, gpu=gpu) == expected


def test_kernels_that_overlap_count_once() -> None:
    assert trial.covered([(5, 6), (0, 2), (1, 3), (1.5, 2)]) == 4
    assert trial.covered([]) == 0


def test_what_would_fit_is_tried_in_the_order_of_what_it_takes() -> None:
    tried = [(site.devices, site.recompute) for site in remedies(tiny(batch_size=24), SITE)]
    assert tried == [(2, False), (4, False), (8, False)], "12, 6 and 3 images a device"
    coupled = next(
        job.spec
        for job in jobs([Request(table="table1", rows="SimCLR,W-MSE 4", baselines="trained")])
        if isinstance(job.spec, Pretrain) and job.spec.method.num_parts == 1
    )
    tried = [(site.devices, site.recompute) for site in remedies(replace(coupled, batch_size=8), SITE)]
    assert tried == [(1, True), (2, True), (4, True)]


# The file


def test_the_file_keeps_every_measurement(tmp_path: Path) -> None:
    site = replace(SITE, runs=tmp_path)
    assert rehearsed.read(site) == {}
    measured = Measured(
        {
            (shapes(tiny(), SITE, 1)[0], "Chip"): made(0.5, 32),
            (shapes(tiny(), SITE, 1)[0], "NVIDIA H100"): made(0.1, 32, limit="GPU", memory=10**9, busy=0.9),
        }
    )
    measured.save(site)
    assert rehearsed.read(site) == measured


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"seconds": 0.5', '"seconds": -1'),
        lambda text: text.replace('"seconds": 0.5', '"seconds": "x"'),
        lambda text: text.replace('"limit": "CPU"', '"limit": "luck"'),
        lambda text: text.replace('"steps"', '"paces"'),
        lambda text: text.replace('"first": 0.0', '"first": -1'),
        lambda text: text.replace('"version": 2', '"version": 1'),
        lambda text: "[]",
    ],
    ids=["cut", "negative", "text", "limit", "field", "first", "version", "list"],
)
def test_a_broken_file_is_one_line_and_ignored(
    change: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = replace(SITE, runs=tmp_path)
    path = Measured({(shapes(tiny(), SITE, 1)[0], "Chip"): made(0.5, 32)}).save(site)
    write_atomic(path, change(path.read_text()))
    with caplog.at_level(logging.WARNING):
        assert rehearsed.read(site) == {}
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert record.getMessage().startswith(f"{path} is ignored")
    assert "invoke rehearse" in record.getMessage()


def test_a_broken_entry_is_named_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = replace(SITE, runs=tmp_path)
    path = Measured({(shapes(tiny(), SITE, 1)[0], "Chip"): made(0.5, 32)}).save(site)
    write_atomic(path, path.read_text().replace('"facts"', '"fact"'))
    assert rehearsed.read(site) == {}
    assert "cannot be read (an entry lacks 'facts'): " in caplog.text


# Cards


def test_the_hours_on_a_card_counted_by_hand() -> None:
    """Table 8's MSBReg on ImageNet-100: 320 epochs of 126 689 images, four views, four passes of 3.63e9
    operations; a T4 moves 320 GB/s, so 6.4e12 operations per second. The start takes 10 s."""
    run = msbreg(imagenet100)
    network = cost.network("resnet18")
    assert network is not None
    found = estimate_on(find("T4"), run, (), Measured(), 1, SITE)
    assert found is not None
    assert found.source == "FLOPs"
    assert found.seconds == pytest.approx(
        10 + run.epochs * 126_689 * 4 * 4 * network.operations(224) / 6.4e12
    )


def test_what_was_measured_on_a_card_is_scaled_to_another() -> None:
    """An H200 has 4.8 TB/s, an A100 of 40 GB 1.555 TB/s. What was measured on the card itself is not
    scaled, nor are the 19 s before the first step's end."""
    run = tiny(epochs=4)
    (shape,) = shapes(run, SITE, 1)
    h200, a100 = "NVIDIA H200", "NVIDIA A100-SXM4-40GB"
    measured = Measured({(shape, "Chip"): made(9.0, 32), (shape, h200): made(0.1, 32, first=19)})
    seconds = 4 * 37 * 0.1
    found = estimate_on(find("a100-40"), run, (), measured, 1, SITE)
    assert found == Estimate(pytest.approx(seconds * 4.8 / 1.555 + 19), "rehearsed", h200, 19)
    measured[shape, a100] = made(0.4, 32)
    assert estimate_on(find("a100-40"), run, (), measured, 1, SITE) == Estimate(
        pytest.approx(10 + 4 * 37 * 0.4), "rehearsed", a100, 10
    )


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("H100", "h100"),
        ("nvidia h100", "h100"),
        ("a100-80", "a100-80"),
        ("NVIDIA A100 80 GB", "a100-80"),
        ("RTX 4090", "rtx4090"),
        ("GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("3090", "rtx3090"),
        ("l4", "l4"),
    ],
)
def test_a_card_has_names_in_any_case(asked: str, name: str) -> None:
    assert find(asked).name == name


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla V100-SXM2-32GB", None),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200 MIG 1c.3g.71gb", None),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A10", None),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("Tesla T4", "t4"),
        ("AMD EPYC 7B13", None),
    ],
)
def test_a_device_is_the_card_whose_name_its_driver_reports(device: str, name: str | None) -> None:
    found = of_device(device)
    assert (found.name if found else None) == name


def test_an_unknown_card_is_one_line_with_the_known_ones() -> None:
    with pytest.raises(
        NotFoundError, match=r"^There is no card 'h10'\. Did you mean 'h100'\? Known: v100, "
    ) as error:
        find("h10")
    assert all(card.name in str(error.value) for card in CARDS)


@pytest.mark.parametrize(
    ("asked", "named"),
    [("a100", "a100-40, a100-80"), ("NVIDIA A100", "a100-40, a100-80"), ("rtx", "rtx3090, rtx4090")],
)
def test_a_card_of_several_sizes_is_one_line_with_them(asked: str, named: str) -> None:
    with pytest.raises(NotFoundError) as error:
        find(asked)
    assert str(error.value) == f"There are several cards '{asked}': give one of {named}."


def test_every_card_follows_an_article() -> None:
    """`an NVIDIA H100`, wherever its title stands in a sentence."""
    assert all(card.title.startswith("NVIDIA ") for card in CARDS)


def test_no_card_is_faster_than_its_peak_and_each_has_a_source() -> None:
    assert all(0 < card.speed <= card.peak and card.source.startswith("NVIDIA ") for card in CARDS)


# What is measured


def test_a_cpu_says_at_once_that_it_measures_no_pretraining_in_bfloat16() -> None:
    """A run without steps has no speed, either."""
    wanted = trials(jobs([Request(table="table8", scale="paper", rows="BYOL")]), SITE, gpu=False)
    assert [shape.kind for shape in shapes_of(wanted)] == ["encoder", "classifier"]
    assert {run.why_not for run in wanted} == {
        "",
        "their precision, bfloat16, needs a GPU: --set precision=float32",
    }
    wanted = trials(jobs([Request(table="table8", scale="paper", rows="BYOL")]), SITE, gpu=True)
    assert "pretraining" in {shape.kind for shape in shapes_of(wanted)}
    none = trials(jobs([Request(table="table8", rows="BYOL", changes=("epochs=0",))]), SITE, gpu=False)
    assert [run.why_not for run in none] == ["they have no steps", ""]


@pytest.mark.parametrize(
    ("seconds", "images"), [(1e-4, 20 * 256), (0.02, 3 * 256), (0.0799, 250), (0.15, 133), (10.0, 16)]
)
def test_an_encoder_is_timed_for_a_third_of_a_minute_at_most(seconds: float, images: int) -> None:
    """A ResNet-50 at 224 px takes .15 s an image on one core, 38 s for a chunk of 256."""
    assert trial.affordable(seconds) == images


def test_a_rehearsal_keeps_the_file_of_its_lock(tmp_path: Path) -> None:
    """A process that has opened the file before would otherwise hold another lock than the next one."""
    site = replace(SITE, runs=tmp_path)
    with _workplace(site):
        opened = (tmp_path / LOCK).open()
    with _workplace(site), opened, pytest.raises(BlockingIOError):
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)


# The images


def test_photographs_are_as_large_as_those_of_imagenet(tmp_path: Path) -> None:
    """Its training images take 138 GB (image-net.org), 108 kB each."""
    files = Photographs(tmp_path).files(500, 375)
    with Image.open(files[0]) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))
    mean = sum(path.stat().st_size for path in files) / len(files)
    assert 0.8 * 108e3 < mean < 1.2 * 108e3


# The command line


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["rehearse", "table2", "table8"], ["rehearse", "--table", "table2", "--table", "table8"]),
        (
            ["rehearse", "--scale", "paper", "table2", "--set=epochs=2"],
            ["rehearse", "--scale", "paper", "--table", "table2", "--set=epochs=2"],
        ),
        (["rehearse", "--table", "table2"], ["rehearse", "--table", "table2"]),
        (["table2", "--scale", "small"], ["table2", "--scale", "small"]),
        (["rehearse", "--help"], ["rehearse", "--help"]),
        (["rehearse", "--dry", "table8"], ["rehearse", "--dry", "--table", "table8"]),
    ],
)
def test_names_after_the_task_are_tables_to_rehearse_and_not_tasks(given: list[str], read: list[str]) -> None:
    assert _with_rest(given) == read


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rehearse", "table99"), "There is no table 'table99'. Did you mean 'table9'? Known: table1, "),
        (("table8", "--on", "h100"), "--on h100 only estimates the hours on an NVIDIA H100: add --dry-run."),
        (
            ("table8", "--on", "h10", "--dry-run"),
            "There is no card 'h10'. Did you mean 'h100'? Known: v100, ",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], says: str, home: Home) -> None:
    done = home.invoke(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(says)


@pytest.mark.slow
def test_a_rehearsal_fills_the_file_and_changes_the_plan_and_nothing_else(home: Home) -> None:
    arguments = ("table8", "--rows", "BYOL", "--set", "epochs=1")  # less than the steps of a rehearsal
    done = home.invoke("rehearse", *arguments, "--table", "table8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("table8 at smoke scale: ") == 1
    assert "3 shapes of 2 runs on " in done.stdout
    assert done.stdout.count(" images/s, ") == 3
    assert done.stdout.splitlines()[-1].startswith("table8 at smoke scale: 2 runs: ")
    assert {path.name for path in home.runs.iterdir()} == {rehearsed.FILE, LOCK}
    entries = json.loads((home.runs / rehearsed.FILE).read_text())["measured"]
    assert [each["steps"] for each in entries] == 3 * [trial.STEPS]
    assert entries[0]["first"] > 0, "the network is built"
    device = entries[0]["device"]
    planned = home.invoke(*arguments, "--dry-run").stdout
    assert f"  2 rehearsed on {device}." in planned
    told = " ".join(home.invoke("doctor", "--table", "table8", "--scale", "smoke").stdout.split())
    assert f"3 shapes of runs on {device}; 3 of the 5 shapes of these tables pdflatex" in told
    home.site_file.write_text(home.site_file.read_text() + "workers = 1\n")
    told = " ".join(home.invoke("doctor", "--table", "table8", "--scale", "smoke").stdout.split())
    assert "; 1 of the 5 shapes of these tables" in told, "the classifier reads no images"


@pytest.mark.slow
def test_an_interrupted_rehearsal_leaves_what_it_measured(home: Home) -> None:
    process = home.start("rehearse", "table8")
    assert process.stdout is not None
    lines = []
    with limited(process):
        for line in process.stdout:
            lines.append(line)
            if line.startswith("2/"):
                break
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + signal.SIGINT, "")
    assert rest.endswith("Interrupted: what was measured is kept.\n")
    assert not (home.runs / FOLDER).exists()
    assert {path.name for path in home.runs.iterdir()} == {rehearsed.FILE, LOCK}
    assert json.loads((home.runs / rehearsed.FILE).read_text())["measured"]
