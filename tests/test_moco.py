"""MoCo and Wang and Isola's method: losses, queue, shuffled keys and whole runs.

Losses are compared with values by hand, with lightly's and with plain formulas; runs with a plain loop.
"""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import skips
import torch
import torch.nn.functional as F
from test_loop import TOLERANCE, Left, check, check_log, error, trained
from torch import Tensor, nn
from toys import CPU, PRETRAIN, Notes, Toy, batch, on_two_processes

from configs.baselines import moco_imagenet100, moco_v2_imagenet, wang_isola_imagenet100
from configs.evaluate import linear
from configs.scales import small, smoke
from reproduce import train
from reproduce.commands import disk
from reproduce.evaluate import evaluate
from reproduce.methods.moco import MoCo
from reproduce.methods.wang_isola import WangIsola, alignment, uniformity
from reproduce.nn import backbones, cost, seeds
from reproduce.nn.heads import Head
from reproduce.nn.key_network import contrastive_loss
from reproduce.nn.keys import Keys
from reproduce.nn.optimizers import SGD
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site
from reproduce.spec import Pretrain

E1, E2 = torch.eye(2, dtype=torch.float64)


def random_units(*sizes: int) -> list[Tensor]:
    """Return matrices of unit rows with 5 dimensions, in float64."""
    draw = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(n, 5, generator=draw, dtype=torch.float64), dim=1) for n in sizes]


# Values by hand


def test_the_contrastive_loss_by_hand() -> None:
    q, queue = E1[None], torch.stack([E2, -E1])
    assert contrastive_loss(q, q, queue, 0.2).item() == pytest.approx(
        math.log(1 + math.exp(-5) + math.exp(-10)), rel=1e-12
    )


def test_the_contrastive_loss_of_equal_logits_is_the_log_of_their_number() -> None:
    q = E1.expand(3, 2)
    assert contrastive_loss(q, q, E1.expand(6, 2), 0.07).item() == pytest.approx(math.log(7), rel=1e-12)


def test_alignment_and_uniformity_by_hand() -> None:
    q = torch.stack([E1, E2])
    assert alignment(q, q).item() == 0
    assert alignment(q, q.flip(0)).item() == 2
    # Squared distances to the queue: 0 and 4, 2 and 2; between the queries: 2.
    value = math.log((1 + math.exp(-12) + 3 * math.exp(-6)) / 5)
    assert uniformity(q, torch.stack([E1, -E1]), t=3.0).item() == pytest.approx(value, rel=1e-12)
    assert value == pytest.approx(-1.6020231)


# Other implementations


def same_gradients(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> None:
    """Compare two losses of unnormalised queries, value and gradient, in float64."""
    z = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for loss_of in (ours, theirs):
        inputs = z.clone().requires_grad_()
        loss = loss_of(inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), inputs.grad))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_the_contrastive_loss_is_that_of_lightly(temperature: float) -> None:
    lightly = skips.optional("lightly.loss")
    k, queue = random_units(6, 9)
    theirs = lightly.NTXentLoss(temperature=temperature, memory_bank_size=(9, 5))
    theirs.memory_bank.bank = queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.int64)
    same_gradients(
        lambda z: contrastive_loss(F.normalize(z, dim=1), k, queue, temperature), lambda z: theirs(z, k)
    )


def test_without_a_queue_alignment_and_uniformity_are_those_of_lightly() -> None:
    losses = skips.optional("lightly.loss.hypersphere_loss")
    (k,), none = random_units(6), torch.zeros(0, 5, dtype=torch.float64)

    def ours(z: Tensor) -> Tensor:
        q = F.normalize(z, dim=1)
        return alignment(q, k) + (uniformity(q, none, 3.0) + uniformity(k, none, 3.0)) / 2

    same_gradients(ours, lambda z: losses.HypersphereLoss(t=3.0)(z, k))


def test_uniformity_is_that_of_all_pairs() -> None:
    (queue,) = random_units(9)

    def theirs(z: Tensor) -> Tensor:
        q = plain.unit(z)
        return plain_uniformity(q, queue, 3.0)

    same_gradients(lambda z: uniformity(F.normalize(z, dim=1), queue, 3.0), theirs)


# The plain method


class Twins(nn.Module):
    """The query network, the key network and the queues, by the names of a checkpoint."""

    def __init__(self, backbone: Any, settings: Any) -> None:
        super().__init__()
        head = settings.head.build(backbone.num_features)
        self.online = nn.ModuleDict({"backbone": backbone, "projector": head})
        self.target = copy.deepcopy(self.online)
        self.queues = nn.ModuleList()
        for _ in range(2 if getattr(settings, "symmetric", False) else 1):
            queue = nn.Module()
            queue.register_buffer("rows", plain.unit(torch.randn(settings.keys.queue, settings.head.output)))
            self.queues.append(queue)


def in_groups(network: Any, view: Tensor, group: int) -> Tensor:
    """Return the embeddings of a view; each group of images passes the network by itself.

    The running statistics become the mean of those that each group alone would leave.
    """
    buffers = dict(network.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    outputs, left = [], []
    for images in view.split(group):
        for name, buffer in buffers.items():
            buffer.data.copy_(before[name])  # autograd does not need them
        outputs.append(network["projector"](network["backbone"](images)))
        left.append({name: buffer.clone() for name, buffer in buffers.items()})
    for name, buffer in buffers.items():
        if buffer.is_floating_point():
            buffer.data.copy_(torch.stack([each[name] for each in left]).mean(dim=0))
    return torch.cat(outputs)


def plain_contrastive(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the mean over images of -log of the share of the positive."""
    positive = ((q * k).sum(1) / temperature).exp()
    return -(positive / (positive + (q @ queue.T / temperature).exp().sum(1))).log().mean()


def plain_uniformity(q: Tensor, queue: Tensor, t: float) -> Tensor:
    """Return the log of the mean over all pairs, one by one."""
    pairs = [x - y for x in q for y in queue] + [q[i] - q[j] for j in range(len(q)) for i in range(j)]
    return torch.stack([(-t * pair.square().sum()).exp() for pair in pairs]).mean().log()


class PlainMoCo(plain.PlainMethod):
    """MoCo, one direction after the other, with all views at once."""

    def network(self, backbone: Any, num_images: int) -> Twins:
        return Twins(backbone, self.settings)

    def permutation(self, n: int, at: plain.Step, direction: int) -> Tensor:
        return seeds.shuffled(n, self.spec.seed, at.step, direction)

    def keys(self, network: Twins, view: Tensor, at: plain.Step, direction: int) -> Tensor:
        order = self.permutation(len(view), at, direction)
        k = torch.empty(len(view), self.settings.head.output)
        with torch.no_grad():
            k[order] = plain.unit(in_groups(network.target, view[order], self.settings.keys.group))
        return k

    def pairs(self, network: Twins, views: list[Tensor], at: plain.Step) -> list[tuple[Tensor, Tensor]]:
        """Return the queries and keys of each direction, and keep the keys."""
        directions = ((0, 1), (1, 0))[: len(network.queues)]
        found = []
        for direction, (query, key) in enumerate(directions):
            q = plain.unit(in_groups(network.online, views[query], self.settings.keys.group))
            found.append((q, self.keys(network, views[key], at, direction)))
        self.made = [k for _, k in found]
        return found

    def loss(self, network: Twins, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        pairs = self.pairs(network, views, at)
        losses = [
            plain_contrastive(q, k, queue.rows, self.settings.temperature)
            for (q, k), queue in zip(pairs, network.queues, strict=True)
        ]
        return {"loss": plain.mean(losses), "L_moco": plain.mean(losses)}

    def enqueue(self, network: Twins, at: plain.Step) -> None:
        for queue, keys in zip(network.queues, self.made, strict=True):
            for number, k in enumerate(keys):
                queue.rows.data[(at.step * len(keys) + number) % len(queue.rows)] = k

    def after(self, network: Twins, at: plain.Step) -> dict[str, float]:
        self.enqueue(network, at)
        m, query = self.settings.keys.momentum, dict(network.online.named_parameters())
        with torch.no_grad():
            for name, parameter in network.target.named_parameters():
                parameter.copy_(m * parameter + (1 - m) * query[name])
        return {"tau": m}


class PlainWangIsola(PlainMoCo):
    def loss(self, network: Twins, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        ((q, k),) = self.pairs(network, views, at)
        s = self.settings
        align = (q - k).square().sum(1).mean()
        uniform = plain_uniformity(q, network.queues[0].rows, s.uniform_t)
        total = s.lambda_align * align + s.lambda_uniform * uniform
        return {"loss": total, "L_align": align, "L_uniform": uniform}


class PlainSGD:
    """SGD with momentum, whose decay is part of the gradient."""

    def __init__(self, parameters: dict[str, nn.Parameter], settings: Any) -> None:
        self.parameters, self.settings = parameters, settings
        self.v = {name: torch.zeros_like(w) for name, w in parameters.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for name, w in self.parameters.items():
            assert w.grad is not None
            gradient = w.grad + self.settings.weight_decay * w
            self.v[name] = self.settings.momentum * self.v[name] + gradient
            w.copy_(w - rate * self.v[name])


def plain_rate(spec: Pretrain, at: plain.Step) -> float:
    """Return a tenth of the base rate in the second epoch if there are drops, else a cosine by epoch."""
    optimizer: Any = spec.optimizer
    if optimizer.drops:
        return float(optimizer.base_lr * (0.1 if at.epoch == 1 else 1))
    return float(optimizer.base_lr * 8 / 256 * (1 + math.cos(math.pi * at.epoch / spec.epochs)) / 2)


def toy(method: Any, optimizer: SGD, seed: int) -> Pretrain:
    """Return two epochs of three steps with 8 of 26 images each, in two groups."""
    return replace(
        PRETRAIN,
        method=method,
        dataset=Toy(num_train=26, size=16, canvas=20),
        optimizer=replace(optimizer, weight_decay=0.02, momentum=0.8),
        epochs=2,
        batch_size=8,
        seed=seed,
    )


WITH_DROPS = SGD(base_lr=0.2, batch_scaling="none", drops=(0.5,))
TOYS = {
    "v1": toy(
        MoCo(temperature=0.3, head=Head(widths=(8,)), keys=Keys(queue=16, momentum=0.9, group=4)),
        WITH_DROPS,
        seed=2,
    ),
    "v2, symmetric": toy(
        MoCo(
            symmetric=True,
            head=Head(widths=(16, 8), norm="none"),
            keys=Keys(queue=24, momentum=0.9, group=4),
        ),
        SGD(base_lr=0.2 * 32, by_epoch=True),
        seed=5,
    ),
    "Wang and Isola": toy(
        WangIsola(head=Head(widths=(8,)), keys=Keys(queue=16, momentum=0.9, group=4)), WITH_DROPS, seed=55
    ),
}
V1, V2, WANG_ISOLA = TOYS.values()


def plainly(spec: Pretrain, method: type[PlainMoCo] | None = None) -> plain.Trained:
    """Train a toy with the plain loop."""
    kind = method or (PlainMoCo if isinstance(spec.method, MoCo) else PlainWangIsola)
    return plain.train(spec, Site(), method=kind(spec), optimizer=PlainSGD, rate=plain_rate)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    """The real run of each toy."""
    return {name: trained(spec, tmp_path_factory.mktemp("run")) for name, spec in TOYS.items()}


@pytest.mark.parametrize("name", TOYS)
def test_a_run_ends_where_the_plain_loop_ends(runs: dict[str, Left], name: str) -> None:
    expected = plainly(TOYS[name])
    check(runs[name], expected)
    check_log(list(runs[name].logged.values()), expected.logged)


def all_trained(folder: Path) -> list[Left]:
    """Pretrain all toys, one after the other."""
    return [trained(spec, folder / spec.id) for spec in TOYS.values()]


@pytest.mark.slow
def test_two_processes_end_where_the_plain_loop_ends(tmp_path: Path) -> None:
    """The gradients of six steps, the running statistics and the queue are those of one process."""
    for of_process in on_two_processes(all_trained, tmp_path, tmp_path):
        for spec, found in zip(TOYS.values(), of_process, strict=True):
            expected = plainly(spec)
            check(found, expected)
            check_log(list(found.logged.values()), expected.logged)


# Broken variants: the comparison notices them.


class KeysAreTheirOwnNegatives(PlainMoCo):
    """The keys of a step join the queue before the logits are computed."""

    def pairs(self, network: Twins, views: list[Tensor], at: plain.Step) -> list[tuple[Tensor, Tensor]]:
        found = super().pairs(network, views, at)
        self.enqueue(network, at)
        return found


class KeysAreNotShuffled(PlainMoCo):
    """A key shares the statistics of its groups with the queries of the same images."""

    def permutation(self, n: int, at: plain.Step, direction: int) -> Tensor:
        return torch.arange(n)


class KeysAreLeftShuffled(PlainMoCo):
    """The keys are compared with queries of other images."""

    def keys(self, network: Twins, view: Tensor, at: plain.Step, direction: int) -> Tensor:
        k = super().keys(network, view, at, direction)
        return k[self.permutation(len(view), at, direction)]


class TheQueueIsNotCyclic(PlainMoCo):
    """The first rows are replaced again and again."""

    def enqueue(self, network: Twins, at: plain.Step) -> None:
        super().enqueue(network, replace(at, step=0))


class TheKeyNetworkIsTheQueryNetwork(PlainMoCo):
    """A decay rate of 0."""

    def after(self, network: Twins, at: plain.Step) -> dict[str, float]:
        left = super().after(network, at)
        network.target.load_state_dict(network.online.state_dict())
        return left


@pytest.mark.parametrize(
    "broken",
    [
        KeysAreTheirOwnNegatives,
        KeysAreNotShuffled,
        KeysAreLeftShuffled,
        TheQueueIsNotCyclic,
        TheKeyNetworkIsTheQueryNetwork,
    ],
)
def test_a_broken_variant_ends_elsewhere(runs: dict[str, Left], broken: type[PlainMoCo]) -> None:
    assert error(runs["v1"].network, plainly(V1, broken))[0] > 4 * TOLERANCE


@pytest.mark.parametrize("group", [2, 8])
def test_other_groups_of_batchnorm_end_elsewhere(runs: dict[str, Left], group: int) -> None:
    other = V1.replace("method.keys.group", group)
    assert error(runs["v1"].network, plainly(other))[0] > 4 * TOLERANCE


# Shuffled keys


def test_no_group_of_keys_has_the_images_of_a_group_of_queries() -> None:
    """With 256 images in groups of 32, as at paper scale."""
    queries = {frozenset(images.tolist()) for images in torch.arange(256).split(32)}
    for step in range(100):
        order = seeds.shuffled(256, 0, step, 0)
        assert not queries & {frozenset(images.tolist()) for images in order.split(32)}


def test_keys_are_permuted_by_seed_step_and_direction_and_put_back() -> None:
    """The key network is watched; its weights do not depend on the order, only its groups do."""
    network: Any = V2.method.network(backbones.build("small", seed=0), num_images=26, batch_size=8).eval()
    view = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = F.normalize(network.project(view), dim=1)
    seen: list[Tensor] = []
    network.target.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for direction, seed, step in ((0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        torch.testing.assert_close(network.keys(view, direction, seed=seed, step=step), expected)
    assert torch.equal(seen[0], seen[1])
    assert not any(torch.equal(seen[i], seen[j]) for j in range(1, 5) for i in range(1, j))
    for images in seen:
        assert not torch.equal(images, view)
        assert torch.equal(images.flatten(1).sum(1).sort().values, view.flatten(1).sum(1).sort().values)


# The queue


def test_a_step_compares_with_the_queue_before_it_and_queues_its_keys_after_it() -> None:
    method = V2.method
    network: Any = method.network(backbones.build("small", seed=0), num_images=26, batch_size=8)
    views = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(view)) for view in range(2)]
    before = [network.queue(direction).clone() for direction in range(2)]
    step = batch(views, seed=3, step=4)  # after 32 keys the next rows of 24 are 8 to 15
    assert len(list(method.parts(network, step))) == 2
    for direction in range(2):
        assert torch.equal(network.queue(direction), before[direction])
    keys = [network.keys(views[1 - direction], direction, seed=3, step=4) for direction in range(2)]
    method.after_step(network, step)
    for direction in range(2):
        rows = network.queue(direction)
        assert torch.equal(rows[8:16], keys[direction])
        assert torch.equal(rows[:8], before[direction][:8])
        assert torch.equal(rows[16:], before[direction][16:])
    assert not torch.equal(keys[0], keys[1])


@pytest.mark.parametrize("name", ["v2, symmetric", "Wang and Isola"])
def test_a_run_that_resumes_with_a_part_of_the_queue_filled_ends_bit_equal(
    tmp_path: Path, runs: dict[str, Left], name: str
) -> None:
    spec, stops = TOYS[name], iter((1, 4))

    def until(step: int | None) -> None:
        def report(progress: Progress) -> None:
            if step and progress.done == step * spec.batch_size:
                interrupt.ask("a test")

        train.pretrain(spec, Site(runs=tmp_path), tmp_path / "run", CPU, Notes(), report)

    for stop in stops:
        with pytest.raises(Interrupted, match="a test"):
            until(stop)
    until(None)
    state = checkpoint.latest(tmp_path / "run", spec.id)
    assert state is not None
    assert state["network"].keys() == runs[name].network.keys()
    assert "queues.0.rows" in state["network"]
    for key, value in runs[name].network.items():
        assert torch.equal(state["network"][key], value), key


# Memory


def test_the_graph_of_a_direction_is_freed_before_the_next() -> None:
    """Memory is that of one view."""
    network: Any = V2.method.network(backbones.build("small", seed=0), num_images=26, batch_size=8)
    made: list[weakref.ref[Tensor]] = []
    network.online.backbone.register_forward_hook(lambda *values: made.append(weakref.ref(values[2])))
    parts = V2.method.parts(network, batch([torch.randn(8, 3, 16, 16) for _ in range(2)]))
    for _ in range(2):
        part = next(parts)
        part.loss.backward()  # type: ignore[no-untyped-call]
        del part
        gc.collect()
    assert len(made) == 2
    assert made[0]() is None


# Settings


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (Keys(queue=20, group=4), "keys.queue is 20, which is not a multiple of batch_size 8: choose 16"),
        (Keys(queue=4, group=4), "not a multiple of batch_size 8: choose 8"),
        (Keys(queue=64, group=4), "keys.queue is 64, but the data set has only 26 images"),
        (Keys(queue=24, group=8), "keys.group is 8, but batch_size 8 does not consist of two or more"),
        (Keys(queue=24, group=3), "keys.group is 3, but batch_size 8 does not consist of two or more"),
    ],
    ids=["part of a batch", "less than a batch", "more than the images", "one group", "part of a group"],
)
@pytest.mark.parametrize("method", [MoCo, WangIsola])
def test_keys_that_do_not_fit_are_refused_by_name(method: Any, keys: Keys, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        method(keys=keys).check_for(batch_size=8, num_images=26)


def test_a_third_view_is_refused() -> None:
    for method in (MoCo, WangIsola):
        with pytest.raises(ValueError, match="num_views is 3: at most 2 is expected"):
            method(num_views=3)


RECIPES: dict[str, Callable[[], Pretrain]] = {
    "moco v1": moco_imagenet100,
    "moco v2": lambda: moco_v2_imagenet(200, symmetric=False),
    "moco v2, symmetric": lambda: moco_v2_imagenet(200, symmetric=True),
    "wang and isola": wang_isola_imagenet100,
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_their_batch_and_data_at_every_scale(name: str) -> None:
    """The images: ImageNet and ImageNet-100, Imagenette's training set, the smoke scale's scenes."""
    run = RECIPES[name]()
    images = 1_281_167 if run.dataset.name == "imagenet" else 126_689
    found = [(run, images)]
    for scale, number in ((small, 9_469), (smoke, 1_200)):
        smaller: Any = scale(linear(run))
        found.append((smaller.encoder, number))
    for spec, number in found:
        spec.method.check_for(batch_size=spec.batch_size, num_images=number)
        assert spec.method.batchnorm_images(spec.batch_size) == (4 if number == 1_200 else 32)
        assert spec.zero_init is (None if number == 1_200 else False)


@pytest.mark.parametrize("name", RECIPES)
def test_the_files_of_a_run_are_as_large_as_those_of_the_built_network(name: str) -> None:
    run = replace(RECIPES[name](), backbone="small").replace("method.keys.queue", 512)
    network = cost.network("small")
    assert network is not None
    layout = run.method.layout(network.num_features)
    assert layout is not None
    assert cost.sizes(network, layout) == disk.sizes(run, {})


def test_passes_count_a_query_as_three_and_a_key_as_one() -> None:
    found = {name: [recipe().method.passes(view) for view in range(2)] for name, recipe in RECIPES.items()}
    assert found == {
        "moco v1": [3, 1],
        "moco v2": [3, 1],
        "moco v2, symmetric": [4, 4],
        "wang and isola": [3, 1],
    }


def rate(run: Pretrain, epoch: int) -> float:
    """Return the rate at the beginning of an epoch of 10 steps."""
    shape = {"batch_size": run.batch_size, "num_views": 2, "steps_per_epoch": 10, "epochs": run.epochs}
    assert run.optimizer.rate(10 * epoch, **shape) == run.optimizer.rate(10 * epoch + 9, **shape)
    return run.optimizer.rate(10 * epoch, **shape)


def test_rates_of_the_recipes_by_hand() -> None:
    for run in (moco_imagenet100(), wang_isola_imagenet100()):
        rates = [rate(run, epoch) for epoch in (0, 119, 120, 159, 160, 199, 200, 239)]
        assert rates == pytest.approx([0.03, 0.03, 3e-3, 3e-3, 3e-4, 3e-4, 3e-5, 3e-5])
    run = moco_v2_imagenet(200, symmetric=False)
    assert [rate(run, epoch) for epoch in (0, 100, 150)] == pytest.approx(
        [0.03, 0.015, 0.015 * (1 - math.sqrt(0.5))]
    )


# Learning


@pytest.fixture(scope="module")
def smoke_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs at smoke scale, whose images are drawn once."""
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "moco v2"])
def test_at_smoke_scale_the_encoder_is_better_than_its_initialisation(smoke_runs: Path, name: str) -> None:
    """Two seeds and 3 000 test images: encoders of two seeds differ by up to .03."""
    run: Any = smoke(linear(RECIPES[name]())).replace("dataset.num_val", 3000)
    site = Site(runs=smoke_runs)

    def top1(seed: int, epochs: int) -> float:
        encoder = replace(run.encoder, seed=seed, epochs=epochs)
        folder = smoke_runs / encoder.id
        train.pretrain(encoder, site, folder, CPU, Notes(), lambda progress: None)
        spec = replace(run, encoder=encoder, seed=seed)
        return evaluate(spec, train.load_encoder(encoder, folder, CPU), site, CPU, Watch())["top1"]

    before, after = (sum(top1(seed, epochs) for seed in (0, 1)) / 2 for epochs in (0, run.encoder.epochs))
    assert after > before + 0.02, (before, after)
