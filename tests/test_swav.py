"""SwAV: codes, the loss, the queue, frozen prototypes, and whole runs against plain ones."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plain
import pytest
import skips
import torch
import torch.nn.functional as F
from test_loop import check, check_log, trained
from torch import Tensor, nn
from toys import CPU, PRETRAIN, Notes, Toy, batch, on_two_processes

from configs import baselines, evaluate, scales
from reproduce import train
from reproduce.commands.disk import sizes
from reproduce.data.augmentation import Augmentation, SmallCrops
from reproduce.messages import InvalidError
from reproduce.methods.swav import SwAV, share
from reproduce.nn import backbones, cost
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import LARC
from reproduce.nn.prototypes import PrototypeNetwork, Prototypes, sinkhorn
from reproduce.plan import requests
from reproduce.runs import checkpoint, interrupt
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain

OFFICIAL = {"epsilon": 0.05, "iterations": 3}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(n: int, num_prototypes: int, seed: int = 0) -> Tensor:
    """Return the scores of random unit embeddings with random unit prototypes."""
    z, c = normal(n, 8, seed=seed), normal(num_prototypes, 8, seed=1000)
    return F.normalize(z, dim=1) @ F.normalize(c, dim=1).T


def loss_of(codes: list[Tensor], of_views: list[Tensor], temperature: float = 0.1) -> Tensor:
    """Return L as the sum of the views' shares."""
    shares = [
        share(codes, s, view, num_views=len(of_views), temperature=temperature)
        for view, s in enumerate(of_views)
    ]
    return torch.stack(shares).sum()


# Codes


def test_codes_by_hand() -> None:
    equal = sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), **OFFICIAL)
    torch.testing.assert_close(equal, torch.full((2, 2), 0.5))
    found = sinkhorn(torch.tensor([[0.1, 0.0], [0.05, 0.0]], dtype=torch.float64), **OFFICIAL)
    expected = torch.tensor([[0.622358, 0.377642], [0.377439, 0.622561]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    limit = sinkhorn(
        torch.tensor([[0.1, 0.0], [0.05, 0.0]], dtype=torch.float64), epsilon=0.05, iterations=50
    )
    assert limit[0].tolist() == pytest.approx([0.622459, 0.377541], abs=1e-6)


def official_codes(s: Tensor, iterations: int) -> Tensor:
    """Return the codes by the paper's steps, in which both sums are also divided by their numbers."""
    q = torch.exp(s / 0.05).T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("iterations", [1, 2, 3, 7])
def test_codes_are_those_of_the_papers_steps(iterations: int) -> None:
    s = scores(12, 5)
    found = sinkhorn(s, epsilon=0.05, iterations=iterations)
    torch.testing.assert_close(found, official_codes(s, iterations), rtol=1e-11, atol=0)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(12, dtype=torch.float64))


def test_codes_of_unit_vectors_are_finite_in_float32_and_close_to_those_in_float64() -> None:
    s = scores(512, 300)
    s[0], s[1] = 1.0, -1.0
    torch.testing.assert_close(
        sinkhorn(s.float(), **OFFICIAL).double(), sinkhorn(s, **OFFICIAL), rtol=1e-4, atol=1e-7
    )


def test_without_iterations_codes_are_the_softmax_of_each_image() -> None:
    s = scores(6, 4)
    torch.testing.assert_close(sinkhorn(s, epsilon=0.05, iterations=0), torch.softmax(s / 0.05, dim=1))


def test_codes_do_not_enter_the_gradient_and_leave_the_scores_as_they_are() -> None:
    s = scores(6, 4).requires_grad_()
    before = s.detach().clone()
    assert not sinkhorn(s, **OFFICIAL).requires_grad
    assert torch.equal(s, before)


# The loss


@pytest.mark.parametrize("num_views", [2, 8])
def test_the_loss_of_equal_scores_is_the_log_of_the_number_of_prototypes(num_views: int) -> None:
    zero = torch.zeros(4, 3000, dtype=torch.float64)
    codes = [sinkhorn(zero, **OFFICIAL)] * 2
    assert loss_of(codes, [zero] * num_views).item() == pytest.approx(math.log(3000), rel=1e-12)


def test_the_loss_of_three_views_by_hand() -> None:
    """Codes are one-hot. Each of 2 codes is predicted by 2 views."""
    codes = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    of_views = [torch.tensor([[0.1 * x, 0.0]]) for x in (1, 2, 3)]  # logits x and 0

    def first(x: float) -> float:
        return math.log(1 + math.exp(-x))

    def second(x: float) -> float:
        return math.log(1 + math.exp(x))

    expected = (first(2) + first(3)) / 2 / 2 + (second(1) + second(3)) / 2 / 2
    assert loss_of(codes, of_views).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("with_queue", [False, True], ids=["no queue", "queue"])
@pytest.mark.parametrize("num_small", [0, 3])
def test_the_loss_and_its_gradients_are_lightlys(num_small: int, with_queue: bool) -> None:
    swav_loss = skips.optional("lightly.loss.swav_loss")
    of_views = [scores(12, 7, seed=seed) for seed in range(2 + num_small)]
    queues = [scores(24, 7, seed=50 + seed) for seed in range(2)] if with_queue else None
    theirs = [s.clone().requires_grad_() for s in of_views]
    expected = swav_loss.SwaVLoss()(theirs[:2], theirs[2:], queues)
    expected.backward()

    mine = [s.clone().requires_grad_() for s in of_views]
    together = mine[:2] if queues is None else [torch.cat(both) for both in zip(queues, mine, strict=False)]
    found = loss_of([sinkhorn(s, **OFFICIAL)[-12:] for s in together], mine)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-14)


# A step


TINY = SwAV(head=Head(widths=(16, 8)), num_prototypes=12)


def network_of(method: SwAV) -> PrototypeNetwork:
    torch.manual_seed(0)
    network = method.network(backbones.build("small"), num_images=64, batch_size=8)
    return network.double().train()


def views(method: SwAV, n: int = 8) -> list[Tensor]:
    sizes = [16, 16] + [10] * (method.num_views - 2)
    return [normal(n, 3, size, size, seed=view) for view, size in enumerate(sizes)]


def back_propagate(method: SwAV, network: PrototypeNetwork, step: Any) -> float:
    method.before_step(network, step)
    total = 0.0
    for part in method.parts(network, step):
        part.loss.backward()
        total += part.loss.item()
    return total


def test_prototypes_have_length_1_before_each_forward_pass() -> None:
    network = network_of(TINY)
    weight = network.prototypes.weight.detach().clone()
    assert (weight.norm(dim=1) - 1).abs().min() > 1e-3
    TINY.before_step(network, batch(views(TINY)))
    torch.testing.assert_close(network.prototypes.weight.detach(), plain.unit(weight))


def test_all_crops_of_one_size_share_the_backbones_statistics_and_all_crops_the_projectors() -> None:
    method = replace(TINY, num_views=4)
    network, step = network_of(method), batch(views(method))
    other = copy.deepcopy(network)
    found = back_propagate(method, network, step)

    other.prototypes.normalise()
    large, small = (torch.cat(step.views[:2]), torch.cat(step.views[2:]))
    features = torch.cat([other.online.backbone(large), other.online.backbone(small)])
    z = plain.unit(other.online.projector(features)).chunk(4)
    s = [each @ other.prototypes.weight.T for each in z]
    codes = [official_codes(each.detach(), 3) for each in s[:2]]
    terms = [
        -(codes[i] * torch.log_softmax(s[v] / 0.1, dim=1)).sum(dim=1).mean() / 2 / 3
        for i in range(2)
        for v in range(4)
        if v != i
    ]
    assert len(terms) == 6
    expected = torch.stack(terms).sum()
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-10)
    for mine, theirs in zip(network.online.parameters(), other.online.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-10)
    for one, another in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, another)


def test_frozen_prototypes_have_neither_a_gradient_nor_decay_nor_a_momentum() -> None:
    network = network_of(TINY)
    settings = LARC(base_lr=1.0, weight_decay=0.1)
    optimizer = settings.build(network.online)
    settings.set_rates(optimizer, 1.0, peak=1.0)
    first = batch(views(TINY))
    back_propagate(TINY, network, first)
    before = network.prototypes.weight.detach().clone()
    assert network.prototypes.weight.grad is not None
    TINY.before_update(network, first)
    optimizer.step()
    assert torch.equal(network.prototypes.weight, before)
    assert network.prototypes.weight not in optimizer.state
    later = replace(first, epoch=1)
    TINY.before_update(network, later)
    assert network.prototypes.weight.grad is None, "the first step has dropped it"
    back_propagate(TINY, network, later)
    TINY.before_update(network, later)
    optimizer.step()
    assert not torch.equal(network.prototypes.weight, before)


QUEUED = replace(TINY, queue=24, queue_epoch=1)


def test_a_queue_begins_at_its_epoch_and_is_used_once_it_is_full() -> None:
    """24 rows hold 3 batches of 8. Epoch 1 begins with step 10, so step 13 is the first to use the queue."""
    network = network_of(QUEUED)
    rows = [queue.get_buffer("rows") for queue in network.queues]
    start, written = [each.clone() for each in rows], list[list[Tensor]]()
    weights = copy.deepcopy(network.online.state_dict())
    for number in range(8, 15):
        step = replace(
            batch([normal(8, 3, 16, 16, seed=2 * number + view) for view in range(2)]),
            step=number,
            epoch=number // 10,
            steps_per_epoch=10,
        )
        network.online.load_state_dict(weights)
        QUEUED.before_step(network, step)
        (part,) = QUEUED.parts(network, step)

        other = network_of(TINY)
        other.online.load_state_dict(weights)
        other.prototypes.normalise()
        z, s = (of_all.detach().chunk(2) for of_all in other.online(*step.views))
        together = list(s)
        if number >= 13:
            newest = [torch.cat([pair[view] for pair in written[-3:]]) for view in range(2)]
            together = [torch.cat([q @ other.prototypes.weight.T, x]) for q, x in zip(newest, s, strict=True)]
        expected = loss_of([official_codes(x, 3)[-8:] for x in together], list(s))
        assert part.loss.item() == pytest.approx(expected.item(), rel=1e-10)
        if number == 13:
            alone = loss_of([official_codes(x, 3) for x in s], list(s))
            assert abs(alone.item() - expected.item()) > 1e-3

        before = [each.clone() for each in rows]
        QUEUED.after_step(network, step)
        if number < 10:
            assert all(torch.equal(one, other) for one, other in zip(rows, start, strict=True))
            continue
        written.append([plain.unit(each) for each in z])
        place = 8 * (number - 10) % 24
        for view in range(2):
            before[view][place : place + 8] = written[-1][view]
            torch.testing.assert_close(rows[view], before[view])


def test_a_queue_of_other_than_whole_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"swav\.queue is 24, which does not hold whole batches of 16"):
        QUEUED.check_for(batch_size=16)
    for fitting in (8, 24):
        QUEUED.check_for(batch_size=fitting)
    TINY.check_for(batch_size=16)


def test_a_single_prototype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^swav\.num_prototypes is 1: at least 2 is expected\.$"):
        SwAV(num_prototypes=1)


def test_views_that_get_codes_are_large() -> None:
    """With one large view, the second code would be that of a small crop."""
    run = baselines.swav_imagenet(100)
    run.check_for()
    run.replace("augmentation.small.num_large", 8).check_for()
    for number, says in (
        (1, "small.num_large is 1, but swav needs at least 2 large views: set it to 2."),
        (9, "small.num_large is 9, but swav has only 8 views: set it to at most 8."),
    ):
        changes = (f"small.num_large={number}",)
        with pytest.raises(InvalidError) as refused:
            requests(["table2"], rows="SwAV*", baselines="trained", changes=changes)
        assert str(refused.value) == says
    requests(["table7"], changes=("small.num_large=1",))  # a method without codes


def test_batchnorm_sees_groups_of_512_images_or_the_whole_batch() -> None:
    assert [SwAV().batchnorm_images(batch_size) for batch_size in (4096, 256)] == [512, 256]


# One crop after the other


def test_crop_by_crop_has_the_codes_of_a_first_pass_and_a_part_for_each_view() -> None:
    method = replace(TINY, num_views=4, crop_by_crop=True)
    network, step = network_of(method), batch(views(method))
    other = copy.deepcopy(network)
    parts = []
    method.before_step(network, step)
    for part in method.parts(network, step):
        part.loss.backward()
        parts.append(part.loss.item())
    assert len(parts) == method.num_parts == 4
    assert [method.passes(view) for view in range(4)] == [4.0, 4.0, 3.0, 3.0]
    assert [TINY.passes(view) for view in range(2)] == [3.0, 3.0]

    other.prototypes.normalise()
    s = [other.online(view).p for view in step.views]
    expected = loss_of([official_codes(each.detach(), 3) for each in s[:2]], s)
    expected.backward()
    assert sum(parts) == pytest.approx(expected.item(), rel=1e-10)
    for mine, theirs in zip(network.online.parameters(), other.online.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-10)


def peak(method: SwAV) -> int:
    """Return the largest number of bytes that a step keeps for its backward passes at one time."""
    network, step = network_of(method), batch([normal(8, 3, 16, 16, seed=v) for v in range(method.num_views)])
    alive = most = 0

    class Saved:
        """A tensor that is kept for a backward pass; it is counted until that is done."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal alive, most
            self.tensor, self.size = tensor, tensor.nbytes
            alive += self.size
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        for part in method.parts(network, step):
            part.loss.backward()
            del part
    return most


def test_memory_does_not_grow_with_the_views_crop_by_crop() -> None:
    flat = replace(TINY, crop_by_crop=True)
    assert peak(replace(flat, num_views=6)) < 1.05 * peak(flat)
    assert peak(replace(TINY, num_views=6)) > 2.5 * peak(TINY)


# Broken variants


@dataclass
class Learned:
    """The end of a short training."""

    loss: float
    used: float
    """The exponential of the mean prediction's entropy, relative to the number of prototypes."""
    longest: float
    """Length of the longest prototype after the last step."""


def learned(*, iterations: int = 3, normalise: bool = True, unit: bool = True) -> Learned:
    """Train a linear layer on two noisy copies of each of 32 points, which lie on one side of the origin."""
    torch.manual_seed(0)
    points = torch.randn(32, 6) + 1
    f, c = nn.Linear(6, 4, bias=False), nn.Linear(4, 8, bias=False)
    optimizer = torch.optim.SGD([*f.parameters(), *c.parameters()], lr=0.2, momentum=0.9)
    for step in range(150):
        if normalise:
            with torch.no_grad():
                c.weight.copy_(F.normalize(c.weight, dim=1))
        draw = torch.Generator().manual_seed(step)
        z = [f(points + 0.1 * torch.randn(32, 6, generator=draw)) for _ in range(2)]
        s = [c(F.normalize(each, dim=1) if unit else each) for each in z]
        loss = loss_of([sinkhorn(each, epsilon=0.05, iterations=iterations) for each in s], s)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    used = torch.softmax(s[0].detach() / 0.1, dim=1).mean(dim=0)
    entropy = -(used * used.clamp(min=1e-12).log()).sum()
    return Learned(loss.item(), math.exp(entropy) / 8, c.weight.norm(dim=1).max().item())


def test_three_iterations_use_all_prototypes_and_none_collapse_to_a_few() -> None:
    balanced, broken = learned(), learned(iterations=0)
    assert balanced.loss < 0.5 * math.log(8)
    assert balanced.used > 0.9
    assert broken.used < 0.4
    assert broken.loss < 0.1 * balanced.loss, "the loss alone looks better"


def test_prototypes_of_any_length_grow_in_place_of_being_predicted() -> None:
    assert learned().longest < 1.2
    broken = learned(normalise=False)
    assert broken.longest > 3
    assert broken.used < 0.8


def test_embeddings_of_any_length_end_in_a_loss_that_is_not_finite() -> None:
    """facebookresearch/swav issue 67."""
    assert math.isnan(learned(unit=False).loss)
    prototypes, z = Prototypes(8, 5), normal(6, 8).float()
    torch.testing.assert_close(prototypes(z), prototypes(100 * z))


# Whole runs


class PlainSwAV(plain.PlainMethod):
    """The loss over all pairs, queues as lists of rows, and prototypes that are frozen by hand."""

    def network(self, backbone: Any, num_images: int) -> nn.Module:
        s, network = self.settings, nn.Module()
        projector = s.head.build(backbone.num_features)
        prototypes = nn.Linear(s.head.output, s.num_prototypes, bias=False)
        network.online = nn.ModuleDict(
            {"backbone": backbone, "projector": projector, "predictor": prototypes}
        )
        network.queues = nn.ModuleList()
        for _ in range(2 if s.queue else 0):
            network.queues.append(nn.Module())
            network.queues[-1].register_buffer("rows", plain.unit(torch.randn(s.queue, s.head.output)))
        self.earlier: list[list[Tensor]] = [[], []]
        return network

    def before(self, network: Any, at: plain.Step) -> None:
        c = network.online["predictor"].weight
        with torch.no_grad():
            c.copy_(plain.unit(c))

    def loss(self, network: Any, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        s, c = self.settings, network.online["predictor"].weight
        backbone, projector = network.online["backbone"], network.online["projector"]
        if s.crop_by_crop:
            with torch.no_grad():  # the first pass moves the running statistics, too
                for view in views[:2]:
                    projector(backbone(view))
            of_views = [plain.unit(projector(backbone(view))) for view in views]
        else:
            features = [backbone(torch.cat(views[:2])), backbone(torch.cat(views[2:]))]
            of_views = list(plain.unit(projector(torch.cat(features))).chunk(len(views)))
        self.newest = [each.detach() for each in of_views[:2]]
        full = s.queue > 0 and len(self.earlier[0]) >= s.queue
        terms = []
        for i in range(2):
            rows = torch.stack([*self.earlier[i][-s.queue :], *self.newest[i]]) if full else self.newest[i]
            codes = official_codes((rows @ c.T).detach(), s.iterations)[-len(views[0]) :]
            terms += [
                -(codes * torch.log_softmax(of_views[v] @ c.T / s.temperature, 1)).sum(1).mean()
                for v in range(len(views))
                if v != i
            ]
        loss = plain.mean(terms)
        return {"loss": loss, "L_swav": loss}

    def between(self, network: Any, at: plain.Step) -> None:
        if at.epoch < self.settings.frozen_epochs:
            network.online["predictor"].weight.grad = None

    def after(self, network: Any, at: plain.Step) -> dict[str, float]:
        s = self.settings
        if s.queue and at.epoch >= s.queue_epoch:
            for view, queue in enumerate(network.queues):
                self.earlier[view] += [*self.newest[view]]
                for place in range(len(self.earlier[view])):
                    queue.rows[place % s.queue] = self.earlier[view][place]
        return {}


class PlainLARC:
    """LARC, one parameter after the other, vectors too; a parameter without a gradient stays as it is."""

    def __init__(self, parameters: dict[str, nn.Parameter], settings: Any) -> None:
        self.parameters, self.settings = parameters, settings
        self.m: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        s = self.settings
        for name, w in self.parameters.items():
            if w.grad is None:
                continue
            u, of_w, of_g = w.grad, w.square().sum().sqrt(), w.grad.square().sum().sqrt()
            if of_w > 0 and of_g > 0:
                u = (
                    s.trust_coefficient
                    * of_w
                    / (of_g + s.weight_decay * of_w + 1e-8)
                    * (u + s.weight_decay * w)
                )
            self.m[name] = s.momentum * self.m.get(name, torch.zeros_like(w)) + u
            w.copy_(w - rate * self.m[name])


def rate_of_swav(spec: Pretrain, at: plain.Step) -> float:
    """Return the rate after a warm-up that includes its end, then along a cosine to a share of the peak."""
    s: Any = spec.optimizer
    peak, warmup = s.base_lr * spec.batch_size / 256, s.warmup_epochs * at.steps_per_epoch
    if at.step < warmup:
        return float(peak * (s.warmup_start + (1 - s.warmup_start) * at.step / (warmup - 1)))
    cosine = (1 + math.cos(math.pi * (at.step - warmup) / (at.num_steps - warmup))) / 2
    return float(peak * (s.final_ratio + (1 - s.final_ratio) * cosine))


def toy(method: SwAV, seed: int) -> Pretrain:
    """Return two epochs of three steps with 8 of 26 images each: 2 views of 12 px and a small one of 8."""
    return replace(
        PRETRAIN,
        method=method,
        dataset=Toy(num_train=26, size=12, canvas=20),
        augmentation=Augmentation(resampling="bilinear", small=SmallCrops(size=8, crop_scale=(0.1, 0.4))),
        optimizer=LARC(
            base_lr=8.0,
            weight_decay=0.1,
            momentum=0.8,
            trust_coefficient=0.02,
            warmup_epochs=1,
            warmup_start=0.25,
            warmup_inclusive=True,
            final_ratio=0.1,
        ),
        epochs=2,
        batch_size=8,
        seed=seed,
    )


OF_TOYS = replace(TINY, num_views=3, head=Head(widths=(32, 8)), queue=8, queue_epoch=1)
TOYS = {
    "all views at once": toy(OF_TOYS, seed=80),
    "crop by crop": toy(replace(OF_TOYS, crop_by_crop=True), seed=69),
}


def plainly(spec: Pretrain) -> plain.Trained:
    return plain.train(spec, Site(), method=PlainSwAV(spec), optimizer=PlainLARC, rate=rate_of_swav)


@pytest.mark.parametrize("name", TOYS)
def test_a_run_ends_where_the_plain_loop_ends(name: str, tmp_path: Path) -> None:
    spec = TOYS[name]
    found, expected = trained(spec, tmp_path), plainly(spec)
    check(found, expected)
    check_log(list(found.logged.values()), expected.logged)
    rates = [0.25 * share for share in (0.25, 0.625, 1, 1, 0.775, 0.325)]
    assert [logged["lr"] for logged in found.logged.values()] == pytest.approx(rates)


def all_trained(folder: Path) -> list[Any]:
    """Pretrain all toys, one after the other."""
    return [trained(spec, folder / spec.id) for spec in TOYS.values()]


@pytest.mark.slow
def test_two_processes_end_where_the_plain_loop_ends(tmp_path: Path) -> None:
    for of_process in on_two_processes(all_trained, tmp_path, tmp_path):
        for spec, found in zip(TOYS.values(), of_process, strict=True):
            expected = plainly(spec)
            check(found, expected)
            check_log(list(found.logged.values()), expected.logged)


class StruckError(Exception):
    """The run is ended from outside."""


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_stopped_with_a_queue_half_full_ends_bit_equal(tmp_path: Path) -> None:
    """The queue of 16 rows begins with step 3 and has 8 new rows after it; step 5 uses it."""
    method = replace(OF_TOYS, queue=16)
    spec, site = replace(TOYS["all views at once"], method=method), Site(runs=tmp_path)

    def run(name: str, stop_at: int = 0) -> None:
        def report(progress: Any) -> None:
            if progress.done == stop_at * spec.batch_size:
                interrupt.ask("a test")

        train.pretrain(spec, site, tmp_path / name, CPU, Notes(), report)

    run("whole")
    with pytest.raises(interrupt.Interrupted):
        run("struck", stop_at=4)
    half = checkpoint.latest(tmp_path / "struck", spec.id)
    assert half is not None
    initial = train.build_network(spec).state_dict()["queues.0.rows"]
    rows = half["network"]["queues.0.rows"]
    assert torch.equal(rows[8:], initial[8:])
    assert not torch.isclose(rows[:8], initial[:8]).all(dim=1).any()
    run("struck")
    whole, struck = (checkpoint.latest(tmp_path / name, spec.id) for name in ("whole", "struck"))
    assert whole is not None
    assert struck is not None
    assert whole["network"].keys() == struck["network"].keys()
    for name, value in whole["network"].items():
        assert torch.equal(value, struck["network"][name]), name
    without = replace(spec, method=replace(method, queue=0))
    train.pretrain(without, site, tmp_path / "without", CPU, Notes(), lambda progress: None)
    other = checkpoint.latest(tmp_path / "without", without.id)
    assert other is not None
    weight = "online.projector.0.weight"
    assert not torch.equal(other["network"][weight], whole["network"][weight]), "the queue was not used"


# Recipes


def at(scale: str, run: Pretrain) -> Evaluate:
    scaled: Any = getattr(scales, scale)(evaluate.imagenet_linear(run))
    return scaled


def test_recipes_have_the_official_rates() -> None:
    for run in (baselines.swav_imagenet(100), baselines.swav_two_views_imagenet(100)):
        of_run = {
            "batch_size": 4096,
            "num_views": run.method.num_views,
            "steps_per_epoch": 312,
            "epochs": 100,
        }
        rates = [run.optimizer.rate(step, **of_run) for step in (0, 3119, 3120, 31200)]
        assert rates == pytest.approx([0.3, 4.8, 4.8, 0.0048])
    run = baselines.swav_256_imagenet(200)
    of_run = {"batch_size": 256, "num_views": 8, "steps_per_epoch": 5004, "epochs": 200}
    assert [run.optimizer.rate(step, **of_run) for step in (0, 200 * 5004)] == pytest.approx([0.6, 0.0006])
    run.method.check_for(batch_size=run.batch_size)


@pytest.mark.parametrize(
    ("scale", "large", "small"), [("paper", 224, 96), ("small", 64, 28), ("smoke", 32, 14)]
)
def test_multi_crop_has_two_large_and_six_small_views(scale: str, large: int, small: int) -> None:
    encoder = at(scale, baselines.swav_imagenet(100)).encoder
    assert isinstance(encoder, Pretrain)
    sizes = [
        encoder.augmentation.size_of_view(view, encoder.dataset.size)
        for view in range(encoder.method.num_views)
    ]
    assert sizes == [large] * 2 + [small] * 6
    encoder.method.check_for(batch_size=encoder.batch_size)


@pytest.mark.parametrize("queue", [0, 24])
def test_the_files_of_a_run_are_as_large_as_its_layout(queue: int) -> None:
    backbone = cost.network("small")
    assert backbone is not None
    run = replace(baselines.swav_256_imagenet(100), backbone="small", method=replace(TINY, queue=queue))
    layout = run.method.layout(backbone.num_features)
    assert layout is not None
    assert cost.sizes(backbone, layout) == sizes(run, {})


@pytest.mark.slow
def test_multi_crop_at_smoke_scale_is_better_than_its_random_initialisation(tmp_path: Path) -> None:
    run, site = at("smoke", baselines.swav_imagenet(400)), Site(runs=tmp_path)
    top1, top5 = [], []
    for epochs in (run.encoder.epochs, 0):
        encoder = replace(run.encoder, epochs=epochs)
        folder = tmp_path / encoder.id
        train.pretrain(encoder, site, folder, CPU, Notes(), lambda progress: None)
        found = run.protocol.run(train.load_encoder(encoder, folder, CPU), run.dataset, site, CPU, 0)
        top1.append(found["top1"])
        top5.append(found["top5"])
    assert top1[0] > top1[1] + 0.02
    assert top5[0] > top5[1] + 0.06
