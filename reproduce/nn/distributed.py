"""One run over several processes, started by torchrun.

In a run with one process, every function returns at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from reproduce.lazy import torch
from reproduce.messages import InvalidError, counted

if TYPE_CHECKING:
    from torch import Tensor, nn


def device(name: str) -> torch.device:
    """Return the device of this process; each process of torchrun uses one GPU.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, ..., or `auto` for the GPU if there is one.

    Raises:
        ValueError: torch finds no GPU although one is requested, or torch does not know the device.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(chosen)
    except RuntimeError:
        raise InvalidError(f"Device '{name}' is unknown. Known: auto, cpu, cuda, cuda:1, ...") from None
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise InvalidError(
            f"The device is '{name}', but torch finds no GPU on this machine. 'auto' or 'cpu' would work."
        )
    if (found.index or 0) >= (number := torch.cuda.device_count()):
        raise InvalidError(f"The device is '{name}', but torch finds only {counted(number, 'GPU')}.")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if _started_by_torchrun() else found


def make_current(device: torch.device) -> None:
    """Make a GPU the current one of this process, whose name the record of a run contains."""
    if device.index is not None:
        torch.cuda.set_device(device)


@contextmanager
def processes(name: str) -> Iterator[None]:
    """Join the process group of torchrun, if there is one, for the duration of the block.

    The backend is gloo on a CPU and nccl on GPUs.

    Args:
        name: device as for `device`.
    """
    if not _started_by_torchrun():
        yield
        return
    chosen = device(name)
    make_current(chosen)
    # With GPUs there is a CPU group as well, so that the agreement in each step (`anyone`) does not wait for
    # the GPUs.
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process with an exit code; one of several skips the interpreter's shutdown.

    `DistributedDataParallel` of torch 2.14 keeps the process group after `destroy_process_group`. A thread of
    gloo that releases a tensor during the shutdown aborts the process, and torchrun then stops the others: in
    5 of 48 runs on a busy machine.
    """
    if _started_by_torchrun():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _started_by_torchrun() -> bool:
    """Return True if there are other processes to join."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def world_size() -> int:
    """Return the number of processes of this run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def main_process() -> bool:
    """Return True if this process is rank 0, which writes files and logs."""
    return rank() == 0


def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes in rank order, (n, ...) -> (world_size x n, ...).

    Gradients flow to every process. n must be the same in all processes.
    """
    if world_size() == 1:
        return x
    from reproduce.nn.collectives import Gather

    gathered: Tensor = Gather.apply(x)
    return gathered


def exchange(x: Tensor, permutation: Tensor) -> Tensor:
    """Return this process's rows of the permuted batch, (n, ...) -> (n, ...), without gradient.

    Row i of the permuted batch is row `permutation[i]` of the whole batch over all processes. The inverse
    permutation takes rows that were computed from the result back to their images: see `inverse`.

    Args:
        x: rows of this process; n must be the same in all processes.
        permutation: (world_size x n,), the same in all processes, such as `seeds.shuffled` returns.
    """
    assert len(permutation) == len(x) * world_size(), "the permutation is one of the whole batch"
    mine = permutation[rank() * len(x) :][: len(x)].to(x.device, non_blocking=True)
    with torch.no_grad():
        rows = gather(x.detach())[mine]
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return rows.contiguous(memory_format=torch.channels_last) if channels_last else rows


def inverse(permutation: Tensor) -> Tensor:
    """Return the permutation that undoes another, so that `x[permutation][inverse(permutation)]` is x."""
    return permutation.argsort()


def mean(x: Tensor) -> float:
    """Return the mean of a scalar over the processes, for the log."""
    total = x.detach().to(torch.float64, copy=True)
    if world_size() > 1:
        torch.distributed.all_reduce(total)
    return total.item() / world_size()


def agreed(decision: bool) -> bool:
    """Return the decision of rank 0 on every process; all processes wait for it."""
    if world_size() == 1:
        return decision
    decisions = [decision]
    torch.distributed.broadcast_object_list(decisions, src=0)
    return decisions[0]


def highest(number: int) -> int:
    """Return on every process the highest number of all processes.

    The processes wait for one another, but not for busy GPUs.
    """
    if world_size() == 1:
        return number
    numbers = torch.tensor(number)
    torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX)
    return int(numbers)


def anyone(decision: bool) -> bool:
    """Return True on every process if any process made the decision; see `highest`."""
    return bool(highest(int(decision)))


def from_first(x: Tensor | None, num_rows: int, device: torch.device) -> Tensor:
    """Return rank 0's matrix x, (num_rows, d) float32 on the CPU, on every process.

    Args:
        x: the matrix on rank 0, None on all others.
        device: device of this process, through which the rows travel.
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
    """Return `module` without the DistributedDataParallel around it, if there is one."""
    return getattr(module, "module", module)
