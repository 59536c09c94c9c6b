"""Semi-supervised classification: shared passes, and whole networks against autograd.

All numbers of epochs of a frozen encoder share one pass. One process and two give the same numbers.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import (
    CPU,
    PRETRAIN,
    READ,
    Notes,
    Toy,
    centre_crops,
    encoder,
    images_read,
    on_two_processes,
    originals,
)

from reproduce.commands.make import _cannot_start
from reproduce.data import views
from reproduce.data.synthetic import SyntheticSTL10
from reproduce.nn import features, seeds
from reproduce.nn.classifiers import Classifiers
from reproduce.nn.encoder import Encoder
from reproduce.plan import Job, Request
from reproduce.protocols.knn import NearestNeighbours
from reproduce.protocols.semi import SemiSupervised
from reproduce.readiness import RefusedError
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site
from reproduce.spec import Evaluate

pytestmark = pytest.mark.usefixtures("one_thread")
LIST = Toy().subset
FROZEN = SemiSupervised(classifier_lr=2.0, epochs=(2, 5, 3), batch_size=16, num_held_out=30)
TOY = Toy()
TUNED = replace(FROZEN, classifier_lr=0.5, encoder_lr=0.02, epochs=(1, 2))


def measure(
    protocol: SemiSupervised, dataset: Toy = TOY, seed: int = 5, notes: Notes | None = None
) -> dict[str, float]:
    return protocol.run(encoder(), dataset, Site(), CPU, seed, Watch(record=notes or Notes()))


# Which images


@pytest.mark.parametrize("protocol", [FROZEN, TUNED])
def test_the_list_trains_other_train_images_choose_and_the_test_split_is_measured_once(
    protocol: SemiSupervised,
) -> None:
    READ.clear()
    right = measure(protocol)
    assert tuple(right) == protocol.metrics == ("top1", "top5", "epochs", "held_out_top1")
    passes = max(protocol.epochs) if protocol is FROZEN else sum(protocol.epochs)
    assert Counter(images_read("train")) == dict.fromkeys(LIST, passes)
    assert {len(batch) for batch in READ["train"]} == {15, 16}  # 46 in three batches
    held_out = READ["train crops"]
    # They are read once, or once for each number of epochs that has a training of its own.
    assert all(batch == held_out[0] for batch in held_out)
    assert len(held_out[0]) == len(set(held_out[0])) == 30
    assert not set(held_out[0]) & set(LIST)
    assert all(index % 7 for index in held_out[0]), "those without a label are of no use"
    assert sorted(images_read("test crops")) == list(range(60))
    wrong = measure(protocol, Toy(shift=1))
    assert (right["epochs"], right["held_out_top1"]) == (wrong["epochs"], wrong["held_out_top1"])


@pytest.mark.parametrize(
    "protocol", [replace(FROZEN, epochs=(2,), num_held_out=0), replace(TUNED, epochs=(1,), num_held_out=0)]
)
def test_one_number_of_epochs_needs_nothing_held_out(protocol: SemiSupervised) -> None:
    READ.clear()
    assert tuple(measure(protocol)) == protocol.metrics == ("top1", "top5")
    assert "train crops" not in READ


# A frozen encoder


def test_all_numbers_of_epochs_in_one_pass_are_each_trained_alone() -> None:
    together = Notes()
    found = measure(FROZEN, notes=together)
    scores = {}
    for epochs in FROZEN.epochs:
        alone = Notes()
        measured = measure(replace(FROZEN, epochs=(epochs,)), notes=alone)
        losses, held_out = f"loss/epochs {epochs}", f"held_out_top1/epochs {epochs}"
        assert together.of(losses)[:epochs] == pytest.approx(alone.of(losses), rel=1e-5)
        assert together.of(held_out)[:epochs] == alone.of(held_out)
        assert set(together.of(held_out)[epochs:]) <= {alone.of(held_out)[-1]}, (
            "when its epochs are over it stays as it is"
        )
        scores[epochs] = alone.of(held_out)[-1]
        if epochs == found["epochs"]:
            assert measured == found
    assert found["held_out_top1"] == max(scores.values()) == scores[int(found["epochs"])]
    assert scores[2] != scores[5]


# The whole network


def reference(protocol: SemiSupervised, epochs: int, seed: int) -> tuple[list[float], nn.Module, nn.Linear]:
    """Train with autograd and one torch optimiser of two parameter groups.

    Return the mean loss of each epoch, and the trained networks.
    """
    network: Any = copy.deepcopy(encoder().backbone).requires_grad_(True).train(protocol.batchnorm == "train")
    split = features.labelled(Toy(), "train", Site())
    rows = torch.tensor([split.indices.tolist().index(index) for index in LIST])
    linear = nn.Linear(64, 6)
    initial = Classifiers(
        1, num_classes=6, num_features=64, seed=seed, device=CPU, momentum=0.9, nesterov=True, weight_decay=0
    )
    linear.load_state_dict({"weight": initial.weight[0], "bias": torch.zeros(6)})
    peaks = (protocol.encoder_lr, protocol.classifier_lr)
    groups = [{"params": list(module.parameters())} for module in (network, linear)]
    optimizer = torch.optim.SGD(
        groups, lr=1.0, momentum=0.9, nesterov=True, weight_decay=protocol.weight_decay
    )
    means, step, per_epoch = [], 0, 3
    for epoch in range(epochs):
        losses = []
        for part in torch.randperm(
            len(rows), generator=seeds.generator("classifier order", seed, epoch)
        ).tensor_split(per_epoch):
            which = split.indices[rows[part]]
            pixels, sizes = originals(split.images, which)
            sampled = views.sample(
                pixels,
                sizes,
                which,
                augmentation=protocol.augmentation,
                size=16,
                seed=seed,
                epoch=epoch,
                view=0,
            )
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (Toy().mean, Toy().std))
            loss = F.cross_entropy(linear(network((sampled - mean) / std)), split.labels[rows[part]])
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * (1 + math.cos(math.pi * step / (epochs * per_epoch))) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
        means.append(sum(losses) / len(losses))
    return means, network.eval(), linear


@pytest.mark.parametrize(("batchnorm", "weight_decay"), [("train", 0.0), ("eval", 1e-2)])
def test_an_encoder_that_is_trained_is_that_of_a_plain_loop(batchnorm: str, weight_decay: float) -> None:
    protocol, notes = replace(TUNED, batchnorm=batchnorm, weight_decay=weight_decay), Notes()
    found = measure(protocol, notes=notes)
    held_out = {}
    for epochs in protocol.epochs:
        losses, network, linear = reference(protocol, epochs, seed=5)
        assert notes.of(f"loss/epochs {epochs}") == pytest.approx(losses, rel=1e-3)
        held_out[epochs] = notes.of(f"held_out_top1/epochs {epochs}")[0]
        if epochs == found["epochs"]:
            test = Toy().load("test", Site())
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (Toy().mean, Toy().std))
            with torch.no_grad():
                logits = linear(network((centre_crops(test, range(60), 16, 16) / 255 - mean) / std))
            assert found["top1"] == pytest.approx(
                (logits.argmax(1) == torch.tensor(test.labels)).double().mean().item(), abs=1.01 / 60
            )
    assert found["held_out_top1"] == max(held_out.values()) == held_out[int(found["epochs"])]


@pytest.mark.parametrize("protocol", [FROZEN, TUNED])
def test_the_encoder_that_is_given_stays_as_it_was(protocol: SemiSupervised) -> None:
    network = encoder()
    network.backbone.requires_grad_(False)
    before = copy.deepcopy(network.backbone.state_dict())
    protocol.run(network, Toy(), Site(), CPU, 5)
    assert all(torch.equal(before[key], value) for key, value in network.backbone.state_dict().items())
    assert not network.backbone.training
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in network.backbone.parameters()
    )


def test_the_seed_decides_everything() -> None:
    notes = [Notes() for _ in range(3)]
    assert measure(TUNED, seed=1, notes=notes[0]) == measure(TUNED, seed=1, notes=notes[1])
    measure(TUNED, seed=2, notes=notes[2])
    assert notes[0].logged == notes[1].logged
    assert notes[0].logged != notes[2].logged


@pytest.mark.parametrize(("protocol", "passes"), [(FROZEN, 5), (TUNED, 3)])
def test_it_tells_how_far_it_is(protocol: SemiSupervised, passes: int) -> None:
    told: list[Progress] = []
    protocol.run(encoder(), Toy(), Site(), CPU, 0, Watch(report=told.append))
    assert [progress.done for progress in told] == sorted({progress.done for progress in told})
    assert len(told) == 3 * passes
    assert told[-1].done == told[-1].total == 46 * passes


def test_a_training_that_diverges_is_out_of_the_race() -> None:
    notes = Notes()
    with pytest.raises(
        FloatingPointError, match=r"^No classifier's loss stayed finite \(epochs 1, epochs 2\)"
    ):
        measure(replace(TUNED, encoder_lr=1e30), notes=notes)
    assert notes.tags == {"labelled_images": "46", "diverged": "epochs 1, epochs 2"}
    with pytest.raises(
        FloatingPointError, match=r"^No classifier's loss stayed finite \(epochs 2, epochs 5, epochs 3\)"
    ):
        measure(replace(FROZEN, classifier_lr=3e38))


# What cannot be


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (
            [i for i in LIST if i % 7 not in (2, 5)],
            "contains 31 images, but none of 2 of the 6 classes: b, e.$",
        ),
        ([*LIST, LIST[0]], "contains 47 images, but only 46 different ones.$"),
        ([*LIST, 7, 14], "contains 48 images, 2 of them without a label.$"),
        ([*LIST, 5000], "contains 47 images, 1 of them without a label.$"),
    ],
)
def test_a_list_that_does_not_fit_is_an_error_before_any_work(subset: list[int], message: str) -> None:
    no_encoder: Any = None
    with pytest.raises(
        ValueError, match=f"^The list 1percent of the train split of toy_of_classifiers {message}"
    ):
        FROZEN.run(no_encoder, Toy(subset=tuple(subset)), Site(), CPU, 0)


def test_images_to_hold_out_must_be_outside_of_the_list() -> None:
    no_encoder: Any = None
    with pytest.raises(
        ValueError,
        match=r"^num_held_out is 75, but the train split of toy_of_classifiers has only 74 labelled images",
    ):
        replace(FROZEN, num_held_out=75).run(no_encoder, Toy(), Site(), CPU, 0)


def test_batchnorm_over_one_image_is_an_error_up_front_and_frozen_statistics_take_it() -> None:
    one = replace(TUNED, batchnorm="eval", batch_size=1, epochs=(1,))
    with pytest.raises(ValueError, match=r"batch_size is 1, .* batchnorm=train needs at least 2\.$"):
        replace(one, batchnorm="train")
    assert math.isfinite(measure(one)["top1"])
    replace(one, encoder_lr=0.0, batchnorm="train")  # a frozen encoder has no batch statistics
    with pytest.raises(
        ValueError,
        match=r"makes batches of 1 images with batch_size=2: .* batchnorm=train needs at least 2\.$",
    ):
        measure(replace(TUNED, batch_size=2, epochs=(1,)), Toy(subset=LIST[:17]))
    short = Toy(subset=LIST[:17])
    # 17 images in batches of at most 16 are split into 9 and 8, not 16 and 1.
    assert math.isfinite(measure(replace(TUNED, epochs=(1,)), short)["top1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_held_out": 0},
            "one of 3 numbers of epochs by held-out train images: num_held_out must be at least 1, not 0",
        ),
        ({"epochs": ()}, "one or more different numbers of epochs"),
        ({"epochs": (3, 3)}, "different numbers of epochs"),
        ({"epochs": (0, 3)}, "epochs is 0: at least 1"),
        ({"classifier_lr": 0.0}, "classifier_lr is 0.0: a value above 0"),
        ({"encoder_lr": -1.0}, "encoder_lr is -1.0: at least 0"),
        ({"batch_size": 0}, "batch_size is 0: at least 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0: at least 0"),
        ({"momentum": 0.0}, "above 0 with nesterov"),
    ],
)
def test_settings_that_make_no_sense_are_errors_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        replace(FROZEN, **changes)
    assert "\n" not in str(caught.value)


def test_a_missing_list_is_found_before_anything_starts(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    pretraining = PRETRAIN
    runs = [
        Evaluate(encoder=pretraining, protocol=protocol, dataset=SyntheticSTL10())
        for protocol in (FROZEN, NearestNeighbours())
    ]
    todo = [Job(run, Request(table="table1")) for run in runs]
    ((blocked, why),) = _cannot_start(todo, site).items()
    assert blocked == runs[0].id
    assert "1percent" in why.remedies[0]
    with pytest.raises(RefusedError, match="1percent"):
        _cannot_start(todo[:1], site)
    assert not list(tmp_path.iterdir())


# Stopped and begun again

SITE = Site()
EACH_STEP = Site(checkpoint_seconds=0)
"""A site at which an evaluation writes a checkpoint after each step."""


def struck(
    protocol: SemiSupervised,
    folder: Path,
    stop_at: int,
    strike: Callable[[], Any],
    notes: Notes,
    network: Encoder | None = None,
    *,
    site: Site = SITE,
) -> Any:
    """Return what the protocol measures, or let its interruption through.

    `strike` is called after step number `stop_at`, counted from 1.
    """
    steps = itertools.count(1)
    watch = Watch(notes, lambda progress: strike() if next(steps) == stop_at else None, folder)
    return protocol.run(network or encoder(), Toy(), site, CPU, 5, watch)


@pytest.mark.parametrize(
    "protocol",
    [
        FROZEN,
        TUNED,
        pytest.param(replace(TUNED, batchnorm="eval", num_held_out=0, epochs=(2,)), marks=pytest.mark.slow),
    ],
)
def test_a_training_that_is_stopped_goes_on_to_the_same_numbers(
    protocol: SemiSupervised, tmp_path: Path
) -> None:
    whole, parts = Notes(), Notes()
    found = measure(protocol, notes=whole)
    # In the middle of an epoch, at its end, which is also that of the first training, and in the next one.
    for stop_at in (2, 1, 2):
        with pytest.raises(Interrupted, match="a test"):
            struck(protocol, tmp_path, stop_at, lambda: interrupt.ask("a test"), parts)
    assert checkpoint.newest(tmp_path, "") == pytest.approx(5 / 3)
    assert struck(protocol, tmp_path, 0, lambda: None, parts) == found
    assert parts.logged == whole.logged
    assert parts.tags == whole.tags


@pytest.mark.slow
def test_the_best_training_and_the_lost_ones_are_kept_too(tmp_path: Path) -> None:
    """The first training is the best, and one diverges. A kill in the last one must not change that."""
    protocol = replace(TUNED, epochs=(2, 1, 3), encoder_lr=1e-6)
    whole, parts = Notes(), Notes()
    found = measure(protocol, notes=whole)
    assert found["epochs"] == 2, "the others would be chosen anyway, and this test shows nothing"
    with pytest.raises(ZeroDivisionError):
        struck(protocol, tmp_path, 15, lambda: 1 / 0, parts, site=EACH_STEP)
    assert struck(protocol, tmp_path, 0, lambda: None, parts, site=EACH_STEP) == found
    assert parts.logged == whole.logged
    state = checkpoint.latest(tmp_path, "")
    assert state is not None
    checkpoint.save(tmp_path, "", state | {"lost": ["epochs 1"]}, 7)
    struck(protocol, tmp_path, 0, lambda: None, parts)
    assert parts.tags["diverged"] == "epochs 1"


# One process and two

SLOW = replace(TUNED, batch_size=9, encoder_lr=1e-3, classifier_lr=0.1)
"""Settings with rates at which rounding does not grow. With higher ones, the order of additions may change
the sign of a ReLU's input close to 0."""
TWO = (replace(FROZEN, batch_size=9), SLOW, replace(SLOW, batchnorm="eval"))
"""Protocols that split 46 images into batches of 8 and 7, so that the shares of two processes differ."""


def everything() -> list[object]:
    """Return what this process measures and records."""
    found: list[object] = []
    for protocol in TWO:
        notes = Notes()
        found += [
            measure(protocol, notes=notes),
            *(notes.of(f"loss/epochs {epochs}") for epochs in protocol.epochs),
        ]
    return found


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    first, second = on_two_processes(everything, tmp_path)
    assert first == second
    for ours, theirs in zip(everything(), first, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)
