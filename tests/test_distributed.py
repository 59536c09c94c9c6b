"""Two processes agree with one: noise, gathered losses, synchronised BatchNorm, gradients of a whole step.

The two real processes are started once for the whole file. They share only one file each with this process,
which contains their results.
"""

import functools
import itertools
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from toys import batch, start_fork_server

from reproduce.methods.msbreg import MSBReg
from reproduce.nn import backbones, dispersion, distributed, seeds, sync_batchnorm
from reproduce.nn.group_batchnorm import average_statistics, group_batchnorm
from reproduce.nn.heads import Head, Heads
from reproduce.nn.networks import Network, Outputs
from reproduce.nn.queue import Queue

ROOT = Path(__file__).parent.parent
WORLD = 2
BATCH = 12
METHOD = MSBReg(num_views=3, lambda_s=0.05, heads=Heads(hidden=16, output=8))
CPU = torch.device("cpu")


def share(x, rank):
    """Return the rows of a whole batch that belong to process `rank`."""
    return x[rank * len(x) // WORLD :][: len(x) // WORLD]


def predictions():
    return torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(0))


def network_and_views():
    """Return the network and its views in float64.

    In float32 a ReLU's input close to 0 may change its sign with the order of additions, and the gradients
    with it.
    """
    torch.manual_seed(1)
    network = METHOD.network(backbones.build("small"), num_images=1, batch_size=BATCH)
    sizes = (32, 32, 14)  # views may have different sizes
    return network.double().train(), [
        torch.randn(BATCH, 3, size, size, dtype=torch.float64) for size in sizes
    ]


NORMS = {"affine": {}, "scale": {"bias": False}, "fixed": {"affine": False}}
"""Options of a BatchNorm with all, some or none of its parameters."""


def norm_and_input(dims, kind):
    """Return a BatchNorm in float64 and values that are far from 0 relative to their spread.

    A sum of squares would lose its digits on them.
    """
    torch.manual_seed(2)
    norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(3, **NORMS[kind]).double()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    x = 1000 + torch.randn(BATCH, 3, *(5, 4)[:dims] if dims == 2 else (), dtype=torch.float64)
    return norm, x, torch.randn_like(x)


def step_gradients(network, views):
    """Return the gradients and buffers after one step of training.

    As in training, the step goes view by view and synchronises in the last backward pass.
    """
    parts = METHOD.parts(network, batch(views, seed=4, step=9))
    for index in range(METHOD.num_parts):
        alone = distributed.world_size() > 1 and index + 1 < METHOD.num_parts
        with network.online.no_sync() if alone else nullcontext():
            next(parts).loss.backward()
    gradients = {
        name: parameter.grad for name, parameter in distributed.unwrapped(network.online).named_parameters()
    }
    return gradients, list(network.buffers())


GROUP = 3


def grouped_step(rank=None):
    """Return z, p, gradients and buffers after a step of two forward passes and BatchNorm over groups.

    Views share the statistics of their heads, whose last BatchNorms have no bias and no parameters.

    Args:
        rank: process of which this is the share; None for the whole batch.
    """
    torch.manual_seed(5)
    projector = Head(widths=(8, 6), bias=False, last_bias=False, last_norm="fixed").build(64)
    predictor = Head(widths=(8, 6), last_norm="scale").build(6)
    network = Network(backbones.build("small"), projector, predictor, joint="heads").double().train()
    views = [torch.randn(BATCH, 3, size, size, dtype=torch.float64) for size in (32, 16, 32, 16)]
    weights = torch.randn(4, BATCH, 6, dtype=torch.float64)
    network = group_batchnorm(network, batch_size=BATCH, group=GROUP)
    if rank is not None:
        network.online = DistributedDataParallel(network.online, broadcast_buffers=False)
        views = [share(view, rank) for view in views]
        weights = torch.stack([share(each, rank) for each in weights])
    loss = 0.0
    for index in (0, 2):
        outputs = network.online(*views[index : index + 2])
        assert isinstance(outputs, Outputs)
        # A mean over images, as DistributedDataParallel averages over the processes.
        loss = loss + (outputs.p * weights[index : index + 2].flatten(0, 1)).sum(dim=1).mean()
    loss.backward()
    average_statistics(network)
    online = distributed.unwrapped(network.online)
    rows = [each.detach().view(2, -1, 6) for each in outputs]
    return rows, {name: each.grad for name, each in online.named_parameters()}, dict(online.named_buffers())


def exchanged(rank):
    """Return images and keys of a process that were permuted over the whole batch, and a queue of keys."""
    x = torch.arange(BATCH * 3.0).view(BATCH, 3, 1, 1) + torch.zeros(1, 1, 2, 2)
    mine = share(x, rank).contiguous(memory_format=torch.channels_last).requires_grad_()
    permutation = seeds.shuffled(BATCH, 1, 2)
    images = distributed.exchange(mine, permutation)
    assert not images.requires_grad
    assert images.is_contiguous(memory_format=torch.channels_last)
    keys = distributed.exchange(images.flatten(1), distributed.inverse(permutation))
    torch.manual_seed(0)
    queue = Queue(2 * BATCH, 12)
    queue.push(keys, at=3 * BATCH)
    return images, keys, queue.rows


pytestmark = pytest.mark.slow

LOSSES = {
    "L_s": dispersion.singular_value_loss,
    "L_uniform": functools.partial(dispersion.uniformity_loss, t=2.0),
}
"""Losses over the whole batch."""


def process(rank, port, folder):
    """Compute the results of one of the processes."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with distributed.processes("cpu"):
        found = {
            "rank": distributed.rank(),
            "world_size": distributed.world_size(),
            "main": distributed.main_process(),
        }
        found["mean"] = distributed.mean(torch.tensor(1.0 + 4 * rank))
        found["noise"] = dispersion.unit_noise(BATCH // WORLD, 8, seed=1, step=2, device=CPU)
        for name, loss_of in LOSSES.items():
            p = share(predictions(), rank).clone().requires_grad_()
            loss = loss_of(p)
            loss.backward()
            found[name] = (loss.item(), p.grad)
        for dims, kind in itertools.product((0, 2), NORMS):
            norm, x, weights = norm_and_input(dims, kind)
            synced = sync_batchnorm.sync_batchnorm(norm)
            mine = share(x, rank).clone().requires_grad_()
            y = synced(mine)
            (y * share(weights, rank)).sum().backward()
            evaluated = synced.eval()(mine)
            gradients = [parameter.grad for parameter in synced.parameters()]
            left = ((y, mine.grad, evaluated), gradients, synced.buffers())
            found[dims, kind] = [[tensor.detach() for tensor in tensors] for tensors in left]
        found["groups"] = grouped_step(rank)
        found["exchanged"] = exchanged(rank)
        try:
            group_batchnorm(nn.BatchNorm1d(3), batch_size=18, group=6)
        except ValueError as error:
            found["refused"] = str(error)
        network, views = network_and_views()
        keys = list(network.state_dict())
        network = sync_batchnorm.sync_batchnorm(network)
        found["synced"] = sum(
            isinstance(module, sync_batchnorm.SyncBatchNorm) for module in network.modules()
        )
        found["same keys"] = list(network.state_dict()) == keys
        network.online = DistributedDataParallel(network.online, broadcast_buffers=False)
        found["step"] = step_gradients(network, [share(view, rank) for view in views])
        with torch.no_grad():
            for parameter in network.online.parameters():
                parameter.add_(1)
        found["tau"] = network.follow(0.5, step=0, num_steps=10)
        found["target"] = list(network.target.parameters())
    assert not torch.distributed.is_initialized()
    torch.save(found, folder / f"{rank}.pt")
    distributed.leave(0)


@pytest.fixture(scope="module")
def found(port, tmp_path_factory):
    """The results of both processes, in the order of their ranks."""
    folder = tmp_path_factory.mktemp("processes")
    start_fork_server()
    torch.multiprocessing.start_processes(
        process, args=(port, folder), nprocs=WORLD, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_processes_know_themselves_and_average(found):
    assert [(one["rank"], one["world_size"], one["main"]) for one in found] == [(0, 2, True), (1, 2, False)]
    assert [one["mean"] for one in found] == [3, 3]


def test_noise_is_that_of_one_process(found):
    assert torch.equal(
        torch.cat([one["noise"] for one in found]),
        dispersion.unit_noise(BATCH, 8, seed=1, step=2, device=CPU),
    )


@pytest.mark.parametrize("name", ["L_s", "L_uniform"])
def test_losses_over_the_whole_batch_are_those_of_one_process(found, name):
    p = predictions().requires_grad_()
    loss = LOSSES[name](p)
    loss.backward()
    assert [one[name][0] for one in found] == [pytest.approx(loss.item(), rel=1e-6)] * WORLD
    # DistributedDataParallel averages over the processes, so each must hold the gradient of the sum of both
    # (equal) losses.
    torch.testing.assert_close(torch.cat([one[name][1] for one in found]) / WORLD, p.grad)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dims", [0, 2])
def test_synchronised_batchnorm_is_batchnorm_over_the_whole_batch(found, dims, kind):
    norm, x, weights = norm_and_input(dims, kind)
    x.requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    evaluated = norm.eval()(x)
    close = {"rtol": 1e-9, "atol": 1e-10}
    rows, gradients, buffers = (
        list(zip(*tensors, strict=True)) for tensors in zip(*(one[dims, kind] for one in found), strict=True)
    )
    for whole, shares in zip((y, x.grad, evaluated), rows, strict=True):
        torch.testing.assert_close(torch.cat(shares), whole.detach(), **close)
    for whole, shares in zip((p.grad for p in norm.parameters()), gradients, strict=True):
        torch.testing.assert_close(sum(shares), whole, **close)
    for whole, shares in zip(norm.buffers(), buffers, strict=True):
        assert torch.equal(*shares)
        torch.testing.assert_close(shares[0], whole, **close)


def test_a_step_of_two_processes_has_the_gradients_and_statistics_of_one(found):
    network, views = network_and_views()
    gradients, statistics = step_gradients(network, views)
    for one in found:
        assert one["step"][0].keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                one["step"][0][name], gradient, rtol=1e-4, atol=1e-5 * gradient.norm().item() + 1e-6, msg=name
            )
        torch.testing.assert_close(one["step"][1], statistics)


def test_the_target_follows_an_online_network_inside_distributed_data_parallel(found):
    started, _ = network_and_views()
    for one in found:
        assert one["tau"] == {"tau": 0.5}
        for xi, start in zip(one["target"], started.target.parameters(), strict=True):
            torch.testing.assert_close(xi.data, start.data + 0.5)


def test_every_batchnorm_was_synchronised_and_kept_its_name(found):
    network, _ = network_and_views()
    expected = sum(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in network.modules())
    assert [(one["synced"], one["same keys"]) for one in found] == [(expected, True)] * WORLD


def test_batchnorm_over_groups_has_outputs_gradients_and_statistics_of_one_process(found):
    rows, gradients, buffers = grouped_step()
    for index, whole in enumerate(rows):
        parts = [one["groups"][0][index] for one in found]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    for one in found:
        assert one["groups"][1].keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(one["groups"][1][name], gradient, msg=name)
        torch.testing.assert_close(one["groups"][2], buffers)
    assert buffers["backbone.stem.1.num_batches_tracked"] == 4


def test_groups_that_do_not_fit_the_processes_are_refused_by_name(found):
    for one in found:
        assert one["refused"] == (
            "BatchNorm over groups of 6 images needs whole groups on each device, but batch_size 18 has 3 "
            "groups for 2 devices: set `devices` in the site file to one of 1, 3."
        )


def test_images_are_permuted_over_all_processes_and_their_keys_put_back_and_queued(found):
    permutation = seeds.shuffled(BATCH, 1, 2)
    x = torch.arange(BATCH * 3.0).view(BATCH, 3, 1, 1) + torch.zeros(1, 1, 2, 2)
    images, keys, queues = zip(*(one["exchanged"] for one in found), strict=True)
    assert not torch.equal(x[permutation], x)
    assert torch.equal(torch.cat(images), x[permutation])
    assert torch.equal(torch.cat(keys), x.flatten(1))
    torch.manual_seed(0)
    expected = Queue(2 * BATCH, 12).rows
    expected[BATCH:] = x.flatten(1)
    for rows in queues:
        assert torch.equal(rows, expected)


def test_in_one_process_a_batch_is_permuted_and_put_back():
    x, permutation = torch.randn(5, 2, requires_grad=True), seeds.shuffled(5, 0, 0)
    moved = distributed.exchange(x, permutation)
    assert not moved.requires_grad
    assert torch.equal(moved, x[permutation])
    assert torch.equal(distributed.exchange(moved, distributed.inverse(permutation)), x)


def test_in_one_process_nothing_is_wrapped_or_sent():
    network, _ = network_and_views()
    x = torch.randn(3, 2)
    assert distributed.gather(x) is x
    assert not any(
        isinstance(module, sync_batchnorm.SyncBatchNorm)
        for module in sync_batchnorm.sync_batchnorm(network).modules()
    )
    assert distributed.mean(torch.tensor(2.5)) == 2.5
    assert distributed.unwrapped(network.online) is network.online
    with distributed.processes("cpu"):
        assert distributed.world_size() == 1


def test_a_device_that_is_not_there_is_named():
    assert distributed.device("cpu") == CPU
    with pytest.raises(ValueError, match="Device 'gpu' is unknown"):
        distributed.device("gpu")
    if not torch.cuda.is_available():
        assert distributed.device("auto") == CPU
        with pytest.raises(ValueError, match="'cuda', but torch finds no GPU"):
            distributed.device("cuda")


@pytest.mark.parametrize(("world_size", "last_words"), [(1, "shutdown\n"), (2, "")])
def test_one_of_several_processes_ends_without_the_interpreters_shutdown(world_size, last_words):
    """A thread of gloo that is still alive in the shutdown may abort the process."""
    code = (
        "import atexit; from reproduce.nn import distributed\n"
        "atexit.register(print, 'shutdown'); print('written', end=' '); distributed.leave(143)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "WORLD_SIZE": str(world_size)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "written " + last_words, "")
