"""Two processes agree with one: noise, gathered losses, synchronised BatchNorm, gradients of a whole step.

The two real processes are started once for the whole file. They share only one file each with this process,
which contains their results.
"""

import functools
import os
import socket
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from toys import batch

from reproduce.methods.msbreg import MSBReg
from reproduce.nn import backbones, dispersion, distributed, sync_batchnorm
from reproduce.nn.heads import Heads

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


def norm_and_input(dims):
    """Return a BatchNorm in float64 and values that are far from 0 relative to their spread.

    A sum of squares would lose its digits on them.
    """
    torch.manual_seed(2)
    norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(3).double()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
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
        for dims in (0, 2):
            norm, x, weights = norm_and_input(dims)
            synced = sync_batchnorm.sync_batchnorm(norm)
            mine = share(x, rank).clone().requires_grad_()
            y = synced(mine)
            (y * share(weights, rank)).sum().backward()
            evaluated = synced.eval()(mine)
            left = (y, mine.grad, *(p.grad for p in synced.parameters()), *synced.buffers(), evaluated)
            found[f"norm{dims}"] = [tensor.detach() for tensor in left]
        network, views = network_and_views()
        keys = list(network.state_dict())
        network = sync_batchnorm.sync_batchnorm(network)
        found["synced"] = sum(
            isinstance(module, sync_batchnorm.SyncBatchNorm) for module in network.modules()
        )
        found["same keys"] = list(network.state_dict()) == keys
        network.online = DistributedDataParallel(network.online)
        found["step"] = step_gradients(network, [share(view, rank) for view in views])
        with torch.no_grad():
            for parameter in network.online.parameters():
                parameter.add_(1)
        found["tau"] = network.follow(0.5, step=0, num_steps=10)
        found["target"] = list(network.target.parameters())
    assert not torch.distributed.is_initialized()
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of both processes, in the order of their ranks."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, args=(port, folder), nprocs=WORLD)
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


@pytest.mark.parametrize("dims", [0, 2])
def test_synchronised_batchnorm_is_batchnorm_over_the_whole_batch(found, dims):
    norm, x, weights = norm_and_input(dims)
    x.requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    evaluated = norm.eval()(x)
    close = {"rtol": 1e-9, "atol": 1e-10}
    parts = list(zip(*(one[f"norm{dims}"] for one in found), strict=True))
    for whole, shares in zip((y, x.grad), parts[:2], strict=True):
        torch.testing.assert_close(torch.cat(shares), whole.detach(), **close)
    for whole, shares in zip((p.grad for p in norm.parameters()), parts[2:4], strict=True):
        torch.testing.assert_close(sum(shares), whole, **close)
    for whole, shares in zip(norm.buffers(), parts[4:7], strict=True):
        assert torch.equal(*shares)
        torch.testing.assert_close(shares[0], whole, **close)
    torch.testing.assert_close(torch.cat(parts[7]), evaluated.detach(), **close)


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
