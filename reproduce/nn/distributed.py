"""One run over several processes, started by torchrun: who this process is, what it shares. In one process
every function does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reproduce.lazy import torch
from reproduce.messages import InvalidError

if TYPE_CHECKING:
    from torch import Tensor, nn


def device(name: str) -> torch.device:
    """The device of this process: `cpu`, `cuda`, `cuda:1`, ..., or `auto`, the GPU if there is one.
    Torchrun's processes take one each.

    Raises:
        ValueError: a GPU is asked for where torch finds none, or torch knows no such device.
    """
    chosen = "cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name
    try:
        found = torch.device(chosen)
    except RuntimeError:
        raise InvalidError(f"There is no device '{name}'. Known: auto, cpu, cuda, cuda:1, ...") from None
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise InvalidError(
            f"The device is '{name}', but torch finds no GPU here. 'auto' or 'cpu' would work."
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if _started_by_torchrun() else found


@contextmanager
def processes(name: str) -> Iterator[None]:
    """Inside, this process belongs to the group that torchrun started, if it did; gloo on a CPU, nccl on
    GPUs.

    Args:
        name: of the device, as `device` takes it.
    """
    if not _started_by_torchrun():
        yield
        return
    chosen = device(name)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # On GPUs the CPUs have a group too: what they agree on in each step (`anyone`) must not wait for the
    # GPUs.
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _started_by_torchrun() -> bool:
    """Whether there are other processes to join."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def world_size() -> int:
    """Processes of this run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def main_process() -> bool:
    """Whether this process is the one that writes files and logs."""
    return rank() == 0


def gather(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, (n, ...) -> (world_size x n, ...), with
    gradients to every process.

    n must be the same in all processes.
    """
    if world_size() == 1:
        return x
    from reproduce.nn.collectives import Gather

    gathered: Tensor = Gather.apply(x)
    return gathered


def mean(x: Tensor) -> float:
    """The mean over the processes of a scalar, for the log."""
    total = x.detach().to(torch.float64, copy=True)
    if world_size() > 1:
        torch.distributed.all_reduce(total)
    return total.item() / world_size()


def agreed(decision: bool) -> bool:
    """What the first process decided, on every process, which wait for it."""
    if world_size() == 1:
        return decision
    decisions = [decision]
    torch.distributed.broadcast_object_list(decisions, src=0)
    return decisions[0]


def anyone(decision: bool) -> bool:
    """Whether any process decided so, on every process, which wait for one another; GPUs at work are not
    waited for."""
    if world_size() == 1:
        return decision
    decisions = torch.tensor(int(decision))
    torch.distributed.all_reduce(decisions, op=torch.distributed.ReduceOp.MAX)
    return bool(decisions)


def from_first(x: Tensor | None, num_rows: int, device: torch.device) -> Tensor:
    """The first process's matrix x, (num_rows, d) float32 on the CPU, on every process; the others give None.

    Args:
        device: of this process; rows travel from there to there.
    """
    if world_size() == 1:
        assert x is not None
        return x
    widths = [0 if x is None else x.shape[1]]
    torch.distributed.broadcast_object_list(widths, src=0)
    result = torch.empty(num_rows, widths[0]) if x is None else x
    for rows in torch.split(result, 2**14):
        sent = rows.to(device)
        torch.distributed.broadcast(sent, src=0)
        rows.copy_(sent)
    return result


def unwrapped(module: nn.Module) -> Any:
    """`module` without the DistributedDataParallel around it, if there is one."""
    return getattr(module, "module", module)
