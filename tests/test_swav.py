"""SwAV: codes, the loss, the queue, frozen prototypes, and whole runs against plain ones."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
import torch.nn.functional as F
from test_loop import check, check_log, trained
from torch import Tensor, nn
from toys import CPU, PRETRAIN, Notes, Toy, batch, on_two_processes

from configs import baselines, evaluate, scales
from reproduce import train
from reproduce.commands import doctor
from reproduce.data.augmentation import Augmentation, SmallCrops
from reproduce.methods.swav import SwAV, share
from reproduce.nn import backbones, cost
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import LARC
from reproduce.nn.prototypes import PrototypeNetwork, Prototypes, sinkhorn
from reproduce.runs import checkpoint
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
    limit = sinkhorn(torch.tensor([[0.1, 0.0], [0.05, 0.0]], dtype=torch.float64), epsilon=0.05, iterations=50)
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


def test_scores_of_bfloat16_embeddings_are_products_in_float32() -> None:
    prototypes = Prototypes(8, 5)
    prototypes.normalise()
    z = normal(6, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prototypes(z)
        codes = sinkhorn(found, **OFFICIAL)
    assert found.dtype == codes.dtype == torch.float32
    expected = plain.unit(z.double()) @ plain.unit(prototypes.weight.detach().double()).T
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codes.double(), sinkhorn(expected, **OFFICIAL), rtol=1e-4, atol=1e-6)


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
    swav_loss = pytest.importorskip("lightly.loss.swav_loss")
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
    return network.double().train()  # type: ignore[no-any-return]


def views(method: SwAV, n: int = 8) -> list[Tensor]:
    sizes = [16, 16] + [10] * (method.num_views - 2)
    return [normal(n, 3, size, size, seed=view) for view, size in enumerate(sizes)]


def back_propagate(method: SwAV, network: PrototypeNetwork, step: Any) -> float:
    method.before_step(network, step)
    total = 0.0
    for part in method.parts(network, step):
        part.loss.backward()  # type: ignore[no-untyped-call]
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
    expected.backward()  # type: ignore[no-untyped-call]
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
        part.loss.backward()  # type: ignore[no-untyped-call]
        parts.append(part.loss.item())
    assert len(parts) == method.num_parts == 4
    assert [method.passes(view) for view in range(4)] == [4.0, 4.0, 3.0, 3.0]
    assert [TINY.passes(view) for view in range(2)] == [3.0, 3.0]

    other.prototypes.normalise()
    s = [other.online(view).p for view in step.views]
    expected = loss_of([official_codes(each.detach(), 3) for each in s[:2]], s)
    expected.backward()  # type: ignore[no-untyped-call]
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
            part.loss.backward()  # type: ignore[no-untyped-call]
            del part
    return most


def test_memory_does_not_grow_with_the_views_crop_by_crop() -> None:
    flat = replace(TINY, crop_by_crop=True)
    assert peak(replace(flat, num_views=6)) < 1.05 * peak(flat)
    assert peak(replace(TINY, num_views=6)) > 2.5 * peak(TINY)


# Broken variants


def learned(method: SwAV, *, normalise: bool = True, unit: bool = True) -> tuple[float, float]:
    """Train embeddings of 32 points in pairs; return the loss and the share of prototypes that are used.

    Both views of a point are noisy copies of it. A linear layer stands for the backbone.
    """
    torch.manual_seed(0)
    points, (f, c) = torch.randn(32, 6), (nn.Linear(6, 4, bias=False), nn.Linear(4, 8, bias=False))
    optimizer = torch.optim.SGD([*f.parameters(), *c.parameters()], lr=0.2, momentum=0.9)
    value = math.nan
    for step in range(300):
        if normalise:
            with torch.no_grad():
                c.weight.copy_(F.normalize(c.weight, dim=1))
        draw = torch.Generator().manual_seed(step)
        z = [f(points + 0.1 * torch.randn(32, 6, generator=draw)) for _ in range(2)]
        s = [c(F.normalize(each, dim=1) if unit else each) for each in z]
        codes = [sinkhorn(each, epsilon=method.epsilon, iterations=method.iterations) for each in s]
        loss = loss_of(codes, s)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value = loss.item()
    used = torch.softmax(s[0].detach() / 0.1, dim=1).mean(dim=0)
    entropy = -(used * used.clamp(min=1e-12).log()).sum().item()
    return value, math.exp(entropy) / 8


def test_print_variants() -> None:
    print(learned(SwAV()), learned(SwAV(iterations=0)), learned(SwAV(), normalise=False), learned(SwAV(), unit=False))
