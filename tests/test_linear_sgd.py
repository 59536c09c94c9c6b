"""Linear evaluation with SGD: against autograd and torch.optim, and a sweep against its single rates.

One process and two give the same numbers.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CPU, READ, Notes, Toy, encoder, images_read, on_two_processes, originals

from reproduce.data import views
from reproduce.data.augmentation import CROP_AND_FLIP
from reproduce.nn import classifiers, features, schedules, seeds
from reproduce.nn.classifiers import Classifiers, Stream
from reproduce.nn.encoder import Encoder
from reproduce.protocols.linear_sgd import LinearSGD
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site

pytestmark = pytest.mark.usefixtures("one_thread")
TOY = Toy()
SWEEP = LinearSGD(base_lrs=(1.0, 30.0, 10.0), epochs=3, batch_size=25, num_held_out=24)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_classifiers(num: int, *, nesterov: bool = True, weight_decay: float = 0.0) -> Classifiers:
    return Classifiers(
        num,
        num_classes=4,
        num_features=7,
        seed=3,
        device=CPU,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )


def measure(
    protocol: LinearSGD, dataset: Toy = TOY, seed: int = 5, notes: Notes | None = None
) -> dict[str, float]:
    return protocol.run(encoder(), dataset, Site(), CPU, seed, Watch(record=notes or Notes()))


# The maths


def test_a_step_by_hand() -> None:
    """Two images, two classes, weights 0: p is 1/2 everywhere.

    So r = (-1/4, 1/4) for y = 0 and (1/4, -1/4) for y = 1.
    """
    found = Classifiers(
        2, num_classes=2, num_features=2, seed=0, device=CPU, momentum=0.5, nesterov=True, weight_decay=0.0
    )
    found.weight.zero_()
    x, y = torch.tensor([[4.0, 0.0], [0.0, 8.0]]), torch.tensor([0, 1])
    losses, residual = found.residual(x, y)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    assert residual.tolist() == [[[-0.25, 0.25]] * 2, [[0.25, -0.25]] * 2]
    found.update(x, residual, [1.0, 0.0])
    # The gradient is r^T x = ((-1, 2), (1, -2)). The first Nesterov step is 1 + momentum times it.
    assert found.weight.tolist() == [[[1.5, -3.0], [-1.5, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert found.bias.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(("nesterov", "weight_decay"), [(True, 0.0), (False, 1e-2), (True, 1e-2)])
def test_each_classifier_is_the_one_that_autograd_and_torch_train_alone(
    nesterov: bool, weight_decay: float
) -> None:
    rates = (0.5, 0.05, 0.2)
    ours = some_classifiers(len(rates), nesterov=nesterov, weight_decay=weight_decay)
    alone = [nn.Linear(7, 4) for _ in rates]
    for linear, weight, bias in zip(alone, ours.weight, ours.bias, strict=True):
        linear.load_state_dict({"weight": weight, "bias": bias})
    theirs = [
        torch.optim.SGD(
            linear.parameters(), lr=1.0, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay
        )
        for linear in alone
    ]
    for step in range(30):
        x, y = drawn(9, 7, seed=step), torch.arange(9) % 4
        losses, residual = ours.residual(x, y)
        ours.update(x, residual, [rate * 0.9**step for rate in rates])
        for which, (linear, optimizer) in enumerate(zip(alone, theirs, strict=True)):
            loss = F.cross_entropy(linear(x), y)
            assert losses[which].item() == pytest.approx(loss.item(), rel=1e-5)
            optimizer.param_groups[0]["lr"] = rates[which] * 0.9**step
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for which, linear in enumerate(alone):
        torch.testing.assert_close(ours.weight[which], linear.weight.data, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.bias[which], linear.bias.data, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours.weight[0], ours.weight[1], atol=1e-2)


def test_the_gradient_by_the_features_is_that_of_autograd() -> None:
    ours, x, y = some_classifiers(3), drawn(5, 7, seed=1).requires_grad_(), torch.arange(5) % 4
    losses = [
        F.cross_entropy(F.linear(x, weight, bias), y)
        for weight, bias in zip(ours.weight, ours.bias, strict=True)
    ]
    (expected,) = torch.autograd.grad(sum(losses), x)
    torch.testing.assert_close(ours.by_features(ours.residual(x.detach(), y)[1]), expected)


def test_all_classifiers_start_from_the_weights_that_the_seed_draws() -> None:
    def first(seed: int) -> torch.Tensor:
        return Classifiers(
            2,
            num_classes=50,
            num_features=400,
            seed=seed,
            device=CPU,
            momentum=0.9,
            nesterov=True,
            weight_decay=0.0,
        ).weight

    weight = first(1)
    assert torch.equal(weight[0], weight[1])
    assert torch.equal(weight, first(1))
    assert not torch.equal(weight, first(2))
    # Cut at two of 1 / sqrt(400), which leaves .88 of the standard deviation.
    assert weight.abs().max() <= 2 / 20
    assert weight[0].std().item() == pytest.approx(0.8796 / 20, rel=0.02)


def test_accuracies_of_several_classifiers_and_none_where_logits_are_not_finite() -> None:
    ours = some_classifiers(3)
    ours.weight.zero_()
    ours.bias[0, 1] = ours.bias[1, 2] = 1.0
    ours.bias[2, 0] = math.nan
    top1 = ours.top1(drawn(5, 7, seed=1), torch.tensor([1, 1, 1, 2, 0]))
    assert top1[:2] == [0.6, 0.2]
    assert math.isnan(top1[2])
    assert classifiers.best([math.nan, 0.5, 0.75, 0.75], ["a", "b", "c", "d"]) == 2
    with pytest.raises(
        FloatingPointError,
        match=r"^No classifier's loss stayed finite \(a, b\): lower learning rates may help\.$",
    ):
        classifiers.best([math.nan, math.nan], ["a", "b"])


# Schedules


@pytest.mark.parametrize(
    ("num_drops", "num_epochs", "after"),
    [(2, 28, [9, 19]), (2, 84, [28, 56]), (0, 5, []), (1, 2, [1]), (2, 4, [1, 3]), (3, 4, [1, 2, 3])],
)
def test_the_rate_drops_at_equally_spaced_epochs(num_drops: int, num_epochs: int, after: list[int]) -> None:
    found = [
        schedules.drops(epoch, num_drops=num_drops, num_epochs=num_epochs) for epoch in range(num_epochs)
    ]
    assert found == [sum(epoch >= drop for drop in after) for epoch in range(num_epochs)]


def test_rates_of_places205_as_section_84_has_them() -> None:
    protocol = LinearSGD(base_lrs=(0.2,), epochs=28, batch_size=256, num_drops=2, num_held_out=0)
    by_epoch = [protocol.rates(epoch * 10 + step, 10)[0] for epoch in range(28) for step in (0, 9)]
    assert by_epoch == pytest.approx([0.2] * 18 + [0.02] * 20 + [0.002] * 18)


def test_rates_of_byol_fall_by_a_cosine_from_a_peak_that_grows_with_the_batch() -> None:
    protocol = LinearSGD(base_lrs=(0.4, 0.1), epochs=2)
    assert protocol.rates(0, 4) == [1.6, 0.4]
    assert protocol.rates(2, 4) == pytest.approx(
        [1.6 * (1 + math.sqrt(0.5)) / 2, 0.4 * (1 + math.sqrt(0.5)) / 2]
    )
    assert protocol.rates(4, 4) == pytest.approx([0.8, 0.2])
    assert protocol.rates(8, 4) == [0, 0]


# Batches


def a_stream(n: int, batch_size: int) -> Stream:
    split = features.labelled(Toy(), "train", Site())
    kept = classifiers.some_of(split, torch.arange(n), "a part")
    return Stream(
        dataset=Toy(),
        split=kept,
        augmentation=CROP_AND_FLIP,
        batch_size=batch_size,
        seed=0,
        site=Site(),
        device=CPU,
    )


def batches_of(stream: Stream, epochs: int, first: int = 0) -> list[classifiers.Batch]:
    with stream.batches(epochs, first) as batches:
        return list(batches)


@pytest.mark.parametrize(("workers", "starts"), [(0, range(10)), (2, (0, 4))])
def test_batches_from_any_step_on_are_those_of_the_whole_training(
    workers: int, starts: Iterable[int]
) -> None:
    whole = batches_of(a_stream(10, 4), 3)
    assert len(whole) == 9
    stream = replace(a_stream(10, 4), site=Site(workers=workers))
    for first in starts:
        found = batches_of(stream, 3, first)
        assert len(found) == 9 - first
        for batch, expected in zip(found, whole[first:], strict=True):
            assert all(map(torch.equal, batch, expected))


def test_the_batches_of_all_epochs_are_decoded_by_the_same_processes() -> None:
    before, seen = set(psutil.Process().children()), set[psutil.Process]()
    with replace(a_stream(40, 40), site=Site(workers=1)).batches(4) as batches:
        for _ in batches:
            seen |= set(psutil.Process().children()) - before
    assert len(seen) == 1
    assert not set(psutil.Process().children()) & seen


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(65, 64, [33, 32]), (64, 64, [64]), (10, 64, [10]), (10, 3, [3, 3, 2, 2]), (7, 3, [3, 2, 2])],
)
def test_an_epoch_is_cut_into_batches_of_nearly_equal_size(n: int, batch_size: int, sizes: list[int]) -> None:
    stream = a_stream(n, batch_size)
    READ.clear()
    found = batches_of(stream, 1)
    assert [len(batch.labels) for batch in found] == sizes
    assert (stream.num_steps, stream.smallest_batch) == (len(sizes), min(sizes))
    assert sorted(images_read("train")) == stream.split.indices.tolist()  # each image once


def test_orders_and_views_differ_from_epoch_to_epoch_and_follow_from_the_seed() -> None:
    stream = a_stream(10, 64)
    (first, second), (again,), (other,) = (
        batches_of(of, epochs) for of, epochs in ((stream, 2), (stream, 1), (replace(stream, seed=1), 1))
    )
    assert torch.equal(first.views, again.views)
    assert torch.equal(first.labels, again.labels)
    for different in (second, other):
        assert not torch.equal(first.views.sort(dim=0).values, different.views.sort(dim=0).values)
        assert sorted(first.labels.tolist()) == sorted(different.labels.tolist())
        assert first.labels.tolist() != different.labels.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 11])
def test_shares_are_contiguous_and_nearly_equal(n: int, world_size: int) -> None:
    found = [range(*classifiers.share(n, rank, world_size)) for rank in range(world_size)]
    assert all(rows and rows[-1] < n for rows in found), "every process has something to compute"
    if n >= world_size:
        assert [row for rows in found for row in rows] == list(range(n))
        assert max(map(len, found)) - min(map(len, found)) <= 1


# The protocol


def reference(lr: float, protocol: LinearSGD, seed: int, decay: float = 0.0) -> list[float]:
    """Return the mean loss of each epoch at one rate, with autograd and torch's optimiser.

    The training follows the text of the protocol.
    """
    dataset, network = Toy(), encoder()
    split = features.labelled(dataset, "train", Site())
    _, rows = classifiers.hold_out(split, protocol.num_held_out, seed)
    linear = nn.Linear(64, 6)
    initial = Classifiers(
        1, num_classes=6, num_features=64, seed=seed, device=CPU, momentum=0.9, nesterov=True, weight_decay=0
    )
    linear.load_state_dict({"weight": initial.weight[0], "bias": torch.zeros(6)})
    optimizer = torch.optim.SGD(linear.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=decay)
    means, step, per_epoch = [], 0, math.ceil(len(rows) / protocol.batch_size)
    for epoch in range(protocol.epochs):
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
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (dataset.mean, dataset.std))
            loss = F.cross_entropy(linear(network.backbone((sampled - mean) / std)), split.labels[rows[part]])
            optimizer.param_groups[0]["lr"] = (
                lr * 25 / 256 * (1 + math.cos(math.pi * step / (3 * per_epoch))) / 2
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
        means.append(sum(losses) / len(losses))
    return means


def test_the_whole_sweep_is_that_of_a_plain_loop_for_each_rate() -> None:
    notes = Notes()
    measure(SWEEP, notes=notes)
    for lr in SWEEP.base_lrs:
        assert notes.of(f"loss/lr {lr:g}") == pytest.approx(reference(lr, SWEEP, seed=5), rel=1e-4)


def test_a_sweep_measures_what_the_chosen_rate_measures_alone() -> None:
    notes = Notes()
    found = measure(SWEEP, notes=notes)
    assert tuple(found) == SWEEP.metrics == ("top1", "top5", "lr", "held_out_top1")
    held_out = {lr: notes.of(f"held_out_top1/lr {lr:g}") for lr in SWEEP.base_lrs}
    assert (
        found["held_out_top1"] == max(values[-1] for values in held_out.values()) == held_out[found["lr"]][-1]
    )
    for lr in SWEEP.base_lrs:
        alone = Notes()
        measured = measure(replace(SWEEP, base_lrs=(lr,)), notes=alone)
        assert alone.of(f"held_out_top1/lr {lr:g}") == held_out[lr]
        assert alone.of(f"loss/lr {lr:g}") == pytest.approx(notes.of(f"loss/lr {lr:g}"), rel=1e-5)
        if lr == found["lr"]:
            assert measured == found
    assert found["top1"] > 0.4  # chance is a sixth


def test_the_test_split_is_measured_once_and_chooses_nothing() -> None:
    READ.clear()
    right = measure(SWEEP)
    assert sorted(images_read("test crops")) == list(range(60))
    assert "test" not in READ
    found = [right, *(measure(SWEEP, Toy(shift=shift)) for shift in range(1, 6))]
    assert {(one["lr"], one["held_out_top1"]) for one in found} == {(right["lr"], right["held_out_top1"])}
    assert sum(one["top1"] for one in found) == pytest.approx(1), (
        "the predictions are the same, and each is right for one of the six classes of its image"
    )


def test_held_out_images_train_nothing_and_every_other_labelled_one_does_once_an_epoch() -> None:
    READ.clear()
    measure(SWEEP)
    (held_out,) = READ["train crops"]
    labelled = {index for index in range(140) if index % 7}
    trained = Counter(images_read("train"))
    assert len(held_out) == 24
    assert set(trained) == labelled - set(held_out)
    assert set(trained.values()) == {SWEEP.epochs}
    assert {len(batch) for batch in READ["train"]} == {24}  # 96 in four equal batches, not 25, 25, 25 and 21


def test_one_rate_needs_nothing_held_out() -> None:
    READ.clear()
    protocol = LinearSGD(base_lrs=(0.4,), epochs=2, batch_size=64, num_held_out=0)
    assert tuple(measure(protocol)) == protocol.metrics == ("top1", "top5")
    assert "train crops" not in READ
    assert len(set(READ["train"][0] + READ["train"][1])) == 120


def test_the_seed_decides_everything_and_the_encoder_stays_as_it_was() -> None:
    network = encoder()
    network.backbone.train()
    before = copy.deepcopy(network.backbone.state_dict())
    first = SWEEP.run(network, Toy(), Site(), CPU, 1)
    assert all(torch.equal(before[key], value) for key, value in network.backbone.state_dict().items())
    assert network.backbone.training
    state = torch.random.get_rng_state()
    notes = [Notes() for _ in range(3)]
    assert measure(SWEEP, seed=1, notes=notes[0]) == measure(SWEEP, seed=1, notes=notes[1]) == first
    measure(SWEEP, seed=2, notes=notes[2])
    assert notes[0].logged == notes[1].logged
    assert notes[0].logged != notes[2].logged
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_rate_that_diverges_is_out_of_the_race_and_the_record_says_so() -> None:
    notes = Notes()
    found = measure(replace(SWEEP, base_lrs=(3e38, 0.1)), notes=notes)
    assert found == measure(replace(SWEEP, base_lrs=(0.1,)))
    assert notes.tags == {"diverged": "lr 3e+38"}
    assert math.isnan(notes.of("held_out_top1/lr 3e+38")[-1])
    for rates, held_out in (((3e38, 2e38), 24), ((3e38,), 0)):
        with pytest.raises(FloatingPointError, match=r"^No classifier's loss stayed finite \(lr 3e\+38"):
            measure(replace(SWEEP, base_lrs=rates, num_held_out=held_out))


def test_it_tells_how_far_it_is() -> None:
    told: list[Progress] = []
    SWEEP.run(encoder(), Toy(), Site(), CPU, 0, Watch(report=told.append))
    assert [progress.done for progress in told] == [24 * (step + 1) for step in range(12)]
    assert {(progress.total, progress.unit) for progress in told} == {(288, "images")}
    assert told[-1].note == "epoch 3/3"


def test_more_held_out_images_than_there_are_is_an_error_before_any_work() -> None:
    no_encoder: Any = None
    with pytest.raises(
        ValueError,
        match=r"^num_held_out is 120, but the train split of toy_of_classifiers has only 119 labelled images",
    ):
        replace(SWEEP, num_held_out=120).run(no_encoder, Toy(), Site(), CPU, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_held_out": 0},
            "one of 3 base_lrs by held-out train images: num_held_out must be at least 1, not 0",
        ),
        ({"num_held_out": -1}, "num_held_out is -1: at least 0"),
        ({"base_lrs": ()}, "one or more different base_lrs"),
        ({"base_lrs": (0.1, 0.2, 0.1)}, "different base_lrs"),
        ({"base_lrs": (0.1, 0.0)}, "base_lrs is 0.0: a value above 0"),
        ({"epochs": 0}, "epochs is 0: at least 1"),
        ({"batch_size": 0}, "batch_size is 0: at least 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1: at least 0"),
        ({"momentum": 0.0}, "above 0 with nesterov"),
        ({"momentum": 1.0}, "momentum is 1.0: a value below 1"),
        ({"num_drops": -1}, "num_drops is -1: at least 0"),
        ({"num_drops": 3}, "from 0 to epochs - 1"),
    ],
)
def test_settings_that_make_no_sense_are_errors_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        replace(SWEEP, **changes)
    assert "\n" not in str(caught.value)


# Stopped and begun again

SITE = Site()
EACH_STEP = Site(checkpoint_seconds=0)
"""A site at which an evaluation writes a checkpoint after each step."""


def struck(
    protocol: LinearSGD,
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


@pytest.mark.parametrize("base_lrs", [(1.0, 30.0, 10.0), (3e38, 0.1)])
def test_a_sweep_that_is_stopped_goes_on_to_the_same_numbers(
    base_lrs: tuple[float, ...], tmp_path: Path
) -> None:
    protocol = replace(SWEEP, base_lrs=base_lrs)
    whole, parts = Notes(), Notes()
    found = measure(protocol, notes=whole)
    for stop_at, name in (
        (2, "epoch-00000-step-000002-of-000004"),
        (2, "epoch-00001"),
        (3, "epoch-00001-step-000003-of-000004"),
    ):
        with pytest.raises(Interrupted, match="a test"):
            struck(protocol, tmp_path, stop_at, lambda: interrupt.ask("a test"), parts)
        assert (tmp_path / f"{name}.pt").exists()
    assert struck(protocol, tmp_path, 0, lambda: None, parts) == found
    assert str(parts.logged) == str(whole.logged)  # compared as text, because NaN does not equal itself
    assert parts.tags == whole.tags
    checkpoint.discard(tmp_path, "")
    assert not list(tmp_path.iterdir())


def test_what_is_killed_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    found = measure(SWEEP)
    with pytest.raises(ZeroDivisionError):
        struck(SWEEP, tmp_path, 6, lambda: 1 / 0, Notes())
    assert not list(tmp_path.iterdir()), "a training of seconds writes none"
    with pytest.raises(ZeroDivisionError):
        struck(SWEEP, tmp_path, 6, lambda: 1 / 0, Notes(), site=EACH_STEP)
    assert checkpoint.newest(tmp_path, "") == 5 / 4
    assert struck(SWEEP, tmp_path, 0, lambda: None, Notes(), site=EACH_STEP) == found


def test_a_checkpoint_of_another_encoder_or_of_other_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        struck(SWEEP, tmp_path, 2, lambda: interrupt.ask("a test"), Notes())
    with pytest.raises(
        ValueError,
        match=r"^The checkpoint in .* is from a training with another encoder: "
        r"delete it to start from scratch\.$",
    ):
        struck(SWEEP, tmp_path, 0, lambda: None, Notes(), replace(encoder(), digest="0123"))
    with pytest.raises(ValueError, match=r"with another choice of images: delete it"):
        struck(replace(SWEEP, num_held_out=25), tmp_path, 0, lambda: None, Notes())


def test_nothing_is_written_for_a_run_that_another_process_has_taken_over(tmp_path: Path) -> None:
    def hold() -> None:
        raise Interrupted("lost")

    with pytest.raises(Interrupted, match="lost"):
        SWEEP.run(
            encoder(),
            Toy(),
            Site(),
            CPU,
            5,
            Watch(report=lambda progress: interrupt.ask("a test"), folder=tmp_path, hold=hold),
        )
    assert not list(tmp_path.iterdir())


# One process and two

TWO = (replace(SWEEP, batch_size=19), LinearSGD(base_lrs=(0.4,), epochs=2, batch_size=1, num_held_out=115))


def everything() -> tuple[list[object], list[list[int]]]:
    """Return what this process measures and records, and its first batches.

    The second protocol has batches of one image, so one of two processes gets none.
    """
    READ.clear()
    found: list[object] = []
    for protocol in TWO:
        notes = Notes()
        found += [measure(protocol, notes=notes), notes.logged[max(notes.logged)]]
    return found, READ["train"][:6]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    (first, first_read), (second, second_read) = on_two_processes(everything, tmp_path)
    one, one_read = everything()
    assert first == second
    for ours, theirs in zip(one, first, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)
    assert [a + b for a, b in zip(first_read, second_read, strict=True)] == one_read
    assert {len(share) for share in first_read + second_read} <= {8, 9}
