"""`pretrain` against a plain loop (plain.py): two epochs of three steps end with the same weights.

The seeds are those of 150 whose runs keep the input of every ReLU farthest from 0 (`Trained.margin`). With
others, a rounding error may change the side of one of 100 000 inputs, and the gradient with it. A method that
is compared here needs a seed of its own: `plain.widest_margin` finds it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import plain
import pytest
import torch
from torch import Tensor
from toys import CPU, PRETRAIN, READ, Notes, Toy, centre_crops, encoder, images_read, on_two_processes

from reproduce import train
from reproduce.evaluate import evaluate
from reproduce.methods.byol import BYOL
from reproduce.methods.method import Batch, Epoch
from reproduce.methods.msbreg import MSBReg
from reproduce.nn.encoder import FILE
from reproduce.nn.heads import Heads
from reproduce.nn.residual import SmallResNet
from reproduce.protocols.linear_sgd import LinearSGD
from reproduce.runs import checkpoint, encoder_file, interrupt
from reproduce.runs.progress import Watch
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain

HEADS = Heads(hidden=32, output=8)
TOLERANCE = 1e-3
"""Largest error of a tensor, relative to its movement in training and a hundredth of its length."""
STEPS, STEPS_PER_EPOCH = 6, 3


def toy(method: Any, seed: int, **optimizer: Any) -> Pretrain:
    """Return two epochs of three steps with 8 of 26 images each; the settings are strong, so each counts."""
    strong = {"base_lr": 6.0, "weight_decay": 0.1, "momentum": 0.8, "trust_coefficient": 0.02}
    return replace(
        PRETRAIN,
        method=method,
        dataset=Toy(num_train=26, size=8, canvas=20),
        optimizer=replace(PRETRAIN.optimizer, **{**strong, "warmup_epochs": 1, **optimizer}),
        epochs=2,
        batch_size=8,
        seed=seed,
    )


TOYS = {
    "BYOL with 2 views": toy(
        BYOL(heads=HEADS, tau=0.9, lambda_b=0.5, lambda_s=0.02, lambda_uniform=0.1, uniform_t=2.0), seed=76
    ),
    "MSBReg with 4 views": toy(MSBReg(heads=HEADS, tau=0.9, lambda_s=0.04), seed=70),
}
BYOL_TOY, MSBREG_TOY = TOYS.values()


@dataclass
class Left:
    """A run's results."""

    encoder: dict[str, Tensor]
    """Tensors of the encoder's file."""
    network: dict[str, Tensor]
    """Weights and buffers of the last checkpoint."""
    logged: dict[int, dict[str, float]]
    measured: dict[str, float]


def trained(spec: Pretrain, folder: Path, log_every: int = 1, hold: Any = lambda: None) -> Left:
    """Pretrain in `folder`, with a checkpoint after each epoch, and return what is left."""
    notes, site = Notes(), Site(runs=folder, checkpoint_seconds=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LOG_EVERY", log_every)
        measured = train.pretrain(spec, site, folder / "run", CPU, notes, lambda progress: None, hold)
    torch.distributed.is_initialized() and torch.distributed.barrier()  # rank 0 writes, both read
    state = checkpoint.latest(folder / "run", spec.id)
    assert state is not None
    written = encoder_file.load(folder / "run" / FILE, spec_id=spec.id)
    return Left(written, state["network"], notes.logged, measured)


@pytest.fixture(scope="module", params=TOYS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A toy's settings, its real run and its plain one."""
    spec, folder = TOYS[request.param], tmp_path_factory.mktemp("run")
    return spec, trained(spec, folder), plain.train(spec, Site(runs=folder))


def error(found: dict[str, Tensor], expected: plain.Trained) -> tuple[float, str]:
    """Return the largest error of a tensor, in the unit of TOLERANCE, and its name."""
    assert found.keys() == expected.network.keys()
    errors = {}
    for name, value in expected.network.items():
        scale = (value - expected.initial[name]).float().norm() + 0.01 * value.float().norm()
        errors[name] = ((found[name] - value).float().norm() / scale).item()
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return errors[worst], worst


def check(found: Left, expected: plain.Trained) -> None:
    """Compare weights, running statistics, counts of batches and the encoder's file."""
    assert expected.margin > 1e-5, "a rounding error may change the side of a ReLU: look for another seed"
    worst, name = error(found.network, expected)
    assert worst < TOLERANCE, name
    written = {f"online.{name}": value for name, value in found.encoder.items()}
    assert written.keys() == {f"online.{name}" for name in expected.encoder}
    for name, value in written.items():
        assert torch.equal(value, found.network[name]), f"{name} is not that of the last step"


def check_log(logged: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Compare the loss, its terms, the rate and tau of some steps."""
    assert len(logged) == len(expected)
    for found, values in zip(logged, expected, strict=True):
        assert {name: found[name] for name in values} == pytest.approx(values, rel=2e-5, abs=2e-6)


# The whole loop


def test_a_run_ends_where_the_plain_loop_ends(both: Any) -> None:
    _, found, expected = both
    check(found, expected)


def test_every_step_has_the_loss_the_rate_and_tau_of_the_plain_loop(both: Any) -> None:
    _, found, expected = both
    assert list(found.logged) == [1, 2, 3, 4, 5, 6]
    check_log(list(found.logged.values()), expected.logged)
    check_log([found.measured], expected.logged[-1:])


def test_rates_and_tau_by_hand(both: Any) -> None:
    """The warm-up is one epoch of three steps; the cosine is 0 one step after the last."""
    spec, found, _ = both
    peak = 6 * 8 / 256 * spec.method.num_views  # section 7.1
    rates = [peak * share for share in (0, 1 / 3, 2 / 3, 1, 0.75, 0.25)]
    assert [logged["lr"] for logged in found.logged.values()] == pytest.approx(rates, rel=1e-12)
    half = math.sqrt(3) / 4  # cos(30 degrees) / 2
    taus = [1 - 0.1 * share for share in (1, 0.5 + half, 0.75, 0.5, 0.25, 0.5 - half)]
    assert [logged["tau"] for logged in found.logged.values()] == pytest.approx(taus, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        ({"warmup_epochs": 0}, (1, 0.933013, 0.75, 0.5, 0.25, 0.066987)),
        ({"warmup_epochs": 2}, (0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)),
        ({"warmup_epochs": 3}, (0, 1 / 9, 2 / 9, 3 / 9, 4 / 9, 5 / 9)),
        ({"warmup_epochs": 0, "scale_with_views": False}, (0.5, 0.466506, 0.375, 0.25, 0.125, 0.033494)),
    ],
    ids=["no warm-up", "only warm-up", "a warm-up longer than the run", "no factor K"],
)
def test_rates_of_other_warm_ups_by_hand(
    tmp_path: Path, change: dict[str, Any], shares: tuple[float, ...]
) -> None:
    spec = toy(BYOL(heads=HEADS), seed=0, **change)
    logged = trained(spec, tmp_path).logged.values()
    peak = 6 * 8 / 256 * 2
    assert [one["lr"] for one in logged] == pytest.approx([peak * share for share in shares], rel=1e-4)


def test_an_epoch_is_logged_with_the_means_of_its_losses_and_its_last_rate(tmp_path: Path, both: Any) -> None:
    spec, _, expected = both
    found = trained(spec, tmp_path, log_every=train.LOG_EVERY)
    assert list(found.logged) == [3, 6]
    epochs = []
    for steps in (expected.logged[:STEPS_PER_EPOCH], expected.logged[STEPS_PER_EPOCH:]):
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        epochs.append(means | {name: steps[-1][name] for name in ("lr", "tau")})
    check_log(list(found.logged.values()), epochs)


def all_trained(folder: Path) -> list[Left]:
    """Pretrain all toys, one after the other."""
    return [trained(spec, folder / spec.id) for spec in TOYS.values()]


@pytest.mark.slow
def test_two_processes_end_where_the_plain_loop_ends(tmp_path: Path) -> None:
    for of_process in on_two_processes(all_trained, tmp_path, tmp_path):
        for spec, found in zip(TOYS.values(), of_process, strict=True):
            expected = plain.train(spec, Site())
            check(found, expected)
            check_log(list(found.logged.values()), expected.logged)


class TakenOverError(Exception):
    """Another process has the lease."""


def loses(call: int) -> Any:
    """Return a `hold` that raises at its call number `call`, from 1."""
    calls = iter(range(1, 100))

    def hold() -> None:
        if next(calls) == call:
            raise TakenOverError

    return hold


def test_a_run_that_resumes_ends_where_the_plain_loop_ends(tmp_path: Path, both: Any) -> None:
    spec, _, expected = both
    with pytest.raises(TakenOverError):  # in the second epoch, before its checkpoint
        trained(spec, tmp_path, hold=loses(3))
    resumed = trained(spec, tmp_path)
    assert list(resumed.logged) == [4, 5, 6]
    check(resumed, expected)
    check_log(list(resumed.logged.values()), expected.logged[STEPS_PER_EPOCH:])


@pytest.mark.parametrize(
    ("call", "files"),
    [
        (1, []),
        (2, []),
        (3, ["epoch-00001.pt"]),
        (4, ["epoch-00001.pt"]),
        (5, ["epoch-00001.pt", "epoch-00002.pt"]),
    ],
)
def test_the_lease_is_looked_at_before_each_copy_each_name_of_a_file_and_the_encoder(
    tmp_path: Path, call: int, files: list[str]
) -> None:
    with pytest.raises(TakenOverError):
        trained(BYOL_TOY, tmp_path, hold=loses(call))
    assert sorted(path.name for path in (tmp_path / "run").glob("*")) == files


# Wrong loops: the toy is strong enough and the tolerance small enough to notice one wrong line.


class DecaysVectors(plain.PlainLARS):
    def step(self, rate: float) -> None:
        for parameter in self.parameters.values():
            if parameter.ndim == 1:
                assert parameter.grad is not None
                parameter.grad += self.settings.weight_decay * parameter.detach()
        super().step(rate)


class TauOfTheNextStep(plain.PlainBYOL):
    def after(self, network: plain.Twins, at: plain.Step) -> dict[str, float]:
        return super().after(network, replace(at, step=at.step + 1))


class FollowsAlsoWithBuffers(plain.PlainBYOL):
    def after(self, network: plain.Twins, at: plain.Step) -> dict[str, float]:
        for part in ("backbone", "projector"):
            buffers = dict(network.online[part].named_buffers())
            for name, buffer in network.target[part].named_buffers():
                buffer.copy_(buffers[name])
        return super().after(network, at)


def without_warm_up(spec: Pretrain, at: plain.Step) -> float:
    return plain.section_7_1(spec, replace(at, step=max(at.step, 1)))


def ends_an_epoch_later(spec: Pretrain, at: plain.Step) -> float:
    return plain.section_7_1(spec, replace(at, num_steps=at.num_steps + at.steps_per_epoch))


WRONG_LOOPS: dict[str, dict[str, Any]] = {
    "biases decay": {"optimizer": DecaysVectors},
    "tau of the next step": {"method": TauOfTheNextStep(BYOL_TOY)},
    "running statistics are copied": {"method": FollowsAlsoWithBuffers(BYOL_TOY)},
    "the first rate is not 0": {"rate": without_warm_up},
    "the cosine ends later": {"rate": ends_an_epoch_later},
}
OTHER_SETTINGS: dict[str, Any] = {
    "optimizer.weight_decay": 0.0,
    "optimizer.momentum": 0.79,
    "optimizer.trust_coefficient": 0.0202,
    "method.tau": 0.91,
    "method.lambda_b": 0.51,
    "method.lambda_s": 0.021,
    "method.lambda_uniform": 0.11,
    "method.uniform_t": 2.2,
}


@pytest.fixture(scope="module")
def byol(tmp_path_factory: pytest.TempPathFactory) -> Left:
    return trained(BYOL_TOY, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("name", WRONG_LOOPS)
def test_a_wrong_loop_ends_elsewhere(byol: Left, name: str) -> None:
    assert error(byol.network, plain.train(BYOL_TOY, Site(), **WRONG_LOOPS[name]))[0] > 4 * TOLERANCE


@pytest.mark.parametrize("path", OTHER_SETTINGS)
def test_a_setting_that_differs_a_little_ends_elsewhere(byol: Left, path: str) -> None:
    other = BYOL_TOY.replace(path, OTHER_SETTINGS[path])
    assert error(byol.network, plain.train(other, Site()))[0] > 4 * TOLERANCE


# Seeds and epochs


@contextmanager
def watched() -> Iterator[list[Tensor]]:
    """Yield the inputs of the backbones, in the order of their forward passes."""
    seen: list[Tensor] = []

    def note(module: Any, inputs: Any) -> None:
        if isinstance(module, SmallResNet):
            seen.append(inputs[0].detach().clone())

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass
class Watched:
    """A run of MSBReg as seen from outside."""

    spec: Pretrain
    left: Left
    initial: dict[str, Tensor]
    orders: list[list[int]]
    """Numbers of the images of each epoch, in the order in which they are read."""
    views: list[dict[int, list[Tensor]]]
    """For each epoch, all inputs of the backbones that show an image, by its number."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Watched]:
    """Two runs that differ in `seed` alone."""
    found = []
    for seed in (0, 1):
        spec = replace(MSBREG_TOY, seed=seed)
        READ.clear()
        with watched() as seen:
            left = trained(spec, tmp_path_factory.mktemp("run"))
        batches = [list(batch) for batch in READ["train"]]
        assert len(batches) == STEPS
        assert len(seen) == STEPS * 2 * 4, "K views go through the online and the target network"
        views: list[dict[int, list[Tensor]]] = [{}, {}]
        for step, batch in enumerate(batches):
            for x in seen[step * 8 : step * 8 + 8]:
                for image, view in zip(batch, x, strict=True):
                    views[step // STEPS_PER_EPOCH].setdefault(image, []).append(view)
        orders = [[*chain(*part)] for part in (batches[:STEPS_PER_EPOCH], batches[STEPS_PER_EPOCH:])]
        initial = copy.deepcopy(train.build_network(spec).state_dict())
        found.append(Watched(spec, left, initial, orders, views))
    return found


def are_different(some: dict[int, list[Tensor]], others: dict[int, list[Tensor]]) -> bool:
    """Return True if no view of an image in one epoch is one of its views in the other."""
    both = some.keys() & others.keys()
    assert len(both) >= 20
    return all((a - b).abs().max() > 0.05 for image in both for a in some[image] for b in others[image])


def test_a_run_sees_each_image_of_an_epoch_once_in_the_order_of_its_seed(runs: list[Watched]) -> None:
    for run in runs:
        for epoch, order in enumerate(run.orders):
            assert len(set(order)) == len(order) == 24
            assert order == plain.permutation(26, run.spec.seed, epoch)[:24]


def test_the_views_of_a_run_are_those_of_its_seed_and_epoch(runs: list[Watched]) -> None:
    for run in runs:
        images = run.spec.dataset.load("train", Site())
        for epoch, views in enumerate(run.views):
            for image in run.orders[epoch][:5]:
                expected = [plain.view_of(run.spec, images, image, epoch, view) for view in range(4)]
                for view in views[image]:
                    assert min((view - other).abs().max() for other in expected) < 1e-4
                for other in expected:
                    assert sum(bool((view - other).abs().max() < 1e-4) for view in views[image]) == 2


def test_epochs_differ_in_order_and_views(runs: list[Watched]) -> None:
    for run in runs:
        assert run.orders[0] != run.orders[1]
        assert are_different(*run.views)


def test_seeds_differ_in_initial_weights(runs: list[Watched]) -> None:
    first, second = (run.initial for run in runs)
    for name, value in first.items():
        if value.ndim > 1:
            assert (value - second[name]).norm() > 0.5 * value.norm(), name
    for run in runs:
        expected = plain.initial(run.spec, plain.METHODS["msbreg"](run.spec), 26).state_dict()
        assert run.initial.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in run.initial.items())


def test_seeds_differ_in_order_and_views(runs: list[Watched]) -> None:
    first, second = runs
    for epoch in range(2):
        assert first.orders[epoch] != second.orders[epoch]
        assert are_different(first.views[epoch], second.views[epoch])


def test_seeds_and_steps_differ_in_noise(runs: list[Watched]) -> None:
    """With a rate of 0 nothing but the noise changes L_b of the same predictions."""
    for run in runs:
        images = run.spec.dataset.load("train", Site())
        network = plain.initial(run.spec, plain.METHODS["msbreg"](run.spec), 26)
        batch = plain.views_of(run.spec, images, run.orders[0][:8], epoch=0)
        with torch.no_grad():
            p = [plain.unit(network.predict(view)) for view in batch]
        along = {
            (seed, step): plain.mean([(plain.noise(8, 8, seed, step) * x).sum(1).mean() for x in p]).item()
            for seed in (0, 1)
            for step in (0, 1)
        }
        logged = run.left.logged[1]["L_b"]
        for (seed, step), value in along.items():
            right = (seed, step) == (run.spec.seed, 0)
            assert (logged == pytest.approx(value, rel=1e-4, abs=1e-5)) == right, (seed, step)


def test_seeds_differ_in_evaluation() -> None:
    """The encoder is the same, so what differs is the evaluation."""
    protocol = LinearSGD(base_lrs=(0.4, 0.1), epochs=2, batch_size=32, num_held_out=24)
    specs = Evaluate(encoder=MSBREG_TOY, protocol=protocol, dataset=Toy()).at_seeds(2)
    found = []
    for seed, spec in enumerate(specs):
        assert isinstance(spec.encoder, Pretrain)
        assert (spec.seed, spec.encoder.seed) == (seed, seed)
        READ.clear()
        notes = Notes()
        evaluate(spec, encoder(), Site(), CPU, Watch(record=notes))
        found.append((notes.logged, images_read("train"), READ["train crops"][0]))
    for first, second in zip(*found, strict=True):
        assert first != second


# Hooks


@dataclass(frozen=True, kw_only=True)
class Hooked(BYOL, name="hooked"):
    """BYOL that notes what each hook receives."""

    seen: ClassVar[list[tuple[Any, ...]]] = []

    def before_epoch(self, network: Any, epoch: Epoch) -> None:
        numbers, crops = (torch.cat(each) for each in zip(*epoch.images(), strict=True))
        self.seen.append(("epoch", epoch.number, epoch.seed, numbers.tolist(), crops))

    def before_step(self, network: Any, batch: Batch) -> None:
        place = (batch.seed, batch.epoch, batch.step, batch.steps_per_epoch, batch.num_steps)
        self.seen.append(("step", place, batch.indices.tolist(), [len(box) for box in batch.boxes]))

    def before_update(self, network: Any, batch: Batch) -> None:
        self.seen.append(("update", batch.step, *has_gradients(network)))

    def after_step(self, network: Any, batch: Batch) -> dict[str, float]:
        self.seen.append(("after", batch.step, *has_gradients(network)))
        return super().after_step(network, batch)


def has_gradients(network: Any) -> set[bool]:
    """Return whether the trained parameters have gradients."""
    return {parameter.grad is not None for parameter in network.online.parameters()}


def test_hooks_are_called_in_order_and_see_the_images_and_the_place_of_the_step(tmp_path: Path) -> None:
    spec = toy(Hooked(heads=HEADS), seed=4)
    Hooked.seen.clear()
    trained(spec, tmp_path)
    kinds = [kind for kind, *_ in Hooked.seen]
    assert kinds == 2 * ["epoch", *3 * ["step", "update", "after"]]
    images = spec.dataset.load("train", Site())
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (spec.dataset.mean, spec.dataset.std))
    crops = centre_crops(images, range(26), spec.dataset.resize, spec.dataset.size).float() / 255
    for number, seen in enumerate(each for each in Hooked.seen if each[0] == "epoch"):
        assert seen[1:4] == (number, 4, list(range(26)))
        torch.testing.assert_close(seen[4], (crops - mean) / std)
    steps = [each for each in Hooked.seen if each[0] == "step"]
    assert [each[1] for each in steps] == [(4, step // 3, step, 3, 6) for step in range(6)]
    for epoch in range(2):
        order = plain.permutation(26, spec.seed, epoch)[: 3 * 8]
        assert [image for each in steps[3 * epoch :][:3] for image in each[2]] == list(order)
    assert {tuple(each[3]) for each in steps} == {(8, 8)}
    assert {each[2] for each in Hooked.seen if each[0] == "update"} == {True}
    assert {each[2] for each in Hooked.seen if each[0] == "after"} == {False}


def test_a_run_that_resumes_within_an_epoch_does_not_prepare_the_epoch_again(tmp_path: Path) -> None:
    spec = toy(Hooked(heads=HEADS), seed=4)

    def stop(progress: Any) -> None:
        if progress.done == 4 * 8:
            interrupt.ask("a test")

    site = Site(runs=tmp_path)
    with pytest.raises(interrupt.Interrupted):
        train.pretrain(spec, site, tmp_path / "run", CPU, Notes(), stop)
    Hooked.seen.clear()
    train.pretrain(spec, site, tmp_path / "run", CPU, Notes(), lambda progress: None)
    assert [kind for kind, *_ in Hooked.seen] == 2 * ["step", "update", "after"]
