"""`recompute`: the activations of one view at a time, with the same gradient bit for bit.

It belongs to the site, so it must not change a number: neither a gradient nor a running statistic, whichever
BatchNorm the network has, in one process or in several.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toys import CPU, PRETRAIN, on_two_processes

from reproduce import train
from reproduce.methods.barlow_twins import BarlowTwins
from reproduce.methods.byol import BYOL
from reproduce.nn import backbones, distributed
from reproduce.nn.group_batchnorm import group_batchnorm
from reproduce.nn.heads import Head
from reproduce.nn.networks import Joint, Online

HEAD = Head(widths=(16, 8), last_norm="affine")
BATCH = 8


def online(joint: Joint) -> Online:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Online(backbones.build("small"), HEAD.build(64), joint=joint)


def views_of(num_views: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, 3, 16, 16, generator=draw) for _ in range(num_views)]


def passed(network: nn.Module, views: list[Tensor]) -> dict[str, Tensor]:
    """Return outputs, gradients and buffers after a pass of the views and one of the first two."""
    z = [network(*part).z for part in (views, views[:2])]
    sum(each.square().mean() + (each[0] * each[-1]).sum() for each in z).backward()
    inner = distributed.unwrapped(network)
    gradients = {f"gradient of {name}": each.grad for name, each in inner.named_parameters()}
    return {"z": z[0].detach(), "z of two": z[1].detach(), **gradients, **dict(inner.named_buffers())}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in found.items() if not torch.equal(value, expected[name])]


def with_and_without(joint: Joint, group: int, *, mixed: bool = False) -> list[dict[str, Tensor]]:
    """Return what `passed` finds without and with `recompute`, in this process's share of the batch."""
    share = BATCH // distributed.world_size()
    views = [view[distributed.rank() * share :][:share] for view in views_of(3)]
    found = []
    for recompute in (False, True):
        network: Any = group_batchnorm(online(joint), batch_size=BATCH, group=group)
        network.recompute, network.mixed = recompute, mixed
        if distributed.world_size() > 1:
            network = DistributedDataParallel(network, broadcast_buffers=False)
        found.append(passed(network, views))
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("group", [BATCH, 4])
@pytest.mark.parametrize("joint", ["none", "heads", "all"])
def test_gradients_and_statistics_are_the_same_bit_for_bit(joint: Joint, group: int, mixed: bool) -> None:
    found, expected = with_and_without(joint, group, mixed=mixed)
    check_equal(found, expected)
    assert found["backbone.stem.1.num_batches_tracked"] == (2 if joint == "all" else 5)


def of_process() -> list[list[dict[str, Tensor]]]:
    """Return the results of two kinds of network: BatchNorm over all images, and over groups of 4."""
    return [with_and_without("none", BATCH), with_and_without("heads", 4)]


@pytest.mark.slow
def test_two_processes_have_the_same_gradients_and_statistics_bit_for_bit(tmp_path: Path) -> None:
    for kinds in on_two_processes(of_process, tmp_path):
        for found, expected in kinds:
            check_equal(found, expected)


class Alive(nn.Module):
    """Counts the outputs of the backbone's first layer that exist at the same time."""

    def __init__(self, network: Online) -> None:
        super().__init__()
        self.now = self.most = 0
        network.backbone.stem[0].register_forward_hook(self.count)  # type: ignore[index, union-attr]

    def count(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(output, self.free)

    def free(self) -> None:
        self.now -= 1


@pytest.mark.parametrize("num_views", [2, 5])
@pytest.mark.parametrize("joint", ["none", "heads"])
def test_the_activations_of_one_view_exist_at_a_time(joint: Joint, num_views: int) -> None:
    most = []
    for recompute in (False, True):
        network = online(joint)
        network.recompute = recompute
        alive = Alive(network)
        network(*views_of(num_views)).z.square().sum().backward()
        assert alive.now == 0
        most.append(alive.most)
    assert most == [num_views, 1]


def saved(network: Online, num_views: int) -> int:
    """Return the bytes that wait for the backward pass."""
    total = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal total
        total += x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        network(*views_of(num_views))
    return total


def test_a_single_view_is_not_computed_twice() -> None:
    network = online("none")
    network.recompute = True
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    network.backbone.register_forward_hook(count)
    network(*views_of(1)).z.square().sum().backward()
    assert passes == 1


def test_nothing_of_a_backbone_waits_for_the_backward_pass() -> None:
    network = online("heads")
    network.recompute = True
    view, features = 4 * BATCH * 3 * 16**2, 4 * BATCH * 64
    assert saved(network, 4) - saved(network, 2) < 2 * (view + 4 * features)
    network.recompute = False
    assert saved(network, 4) - saved(network, 2) > 2 * (view + 100 * features)


@pytest.mark.parametrize(("method", "expected"), [(BarlowTwins(), True), (BYOL(), False)])
def test_methods_that_take_their_views_one_at_a_time_do_not_compute_twice(
    method: Any, expected: bool
) -> None:
    spec = PRETRAIN.replace("method", method.smaller("smoke"))
    assert train.start(spec, CPU, recompute=True)[0].online.recompute is expected
    assert not train.start(spec, CPU)[0].online.recompute
