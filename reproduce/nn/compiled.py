"""The backbones of a pretraining, compiled by torch.compile (`compile` of the site).

    compiled.compile_backbones(network, "auto", operations=6e16, device=device)
    train_step(...)                        # the first step compiles, in one to two minutes
    compiled.facts(network)                # {"compiled": "inductor"}, which the run records
    compiled.seconds(network)              # 87.3, which its images/s leave out

Only training uses the compiled code: a backbone in eval mode, such as that of a probe, runs eagerly. Tensors
keep their names and memory formats, so a checkpoint of a compiled run resumes eagerly, and the other way
round. Kernels are fused, so sums have another order: numbers agree within rounding. In bfloat16 the fused
kernels round where the single ones do.

CUDA graphs (`mode="reduce-overhead"`) are not offered. The gradients of K backward passes are accumulated.
A graph would leave the first of them in its own memory and overwrite it in its next replay.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import distributed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reproduce.nn.maps import Maps

TAG, BACKEND, EAGER = "compiled", "inductor", "no"
"""Tag of a run about its last process, its value if the backbones were compiled, and if they were not."""
EARLY_BACKWARD = "force_non_lazy_backward_lowering"
"""Switch of torch by which both passes are compiled before either runs."""
SHAPES = 256
"""Maximum number of compilations of one network in a process, which may execute many runs. Beyond torch's 8,
further shapes would run eagerly without a word."""
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"emulate_precision_casts": True}
"""Options of inductor: in bfloat16, the values inside a fused kernel are rounded as between single ones."""
SPEED = 1e14
"""Operations per second of a fast GPU: 737 images/s of a ResNet-50 at 224 px with K = 4, on one H200. Each of
the four views takes 4 forward passes of 8.2e9 operations. A slower GPU has more to gain."""
GAIN = 1 - 1 / 1.28
"""Share of the time that compilation saves: a step there took 1.28 times as long as the compiled backbone."""
COST = 120.0
"""Seconds of compilation at most. A ResNet-18 takes 95 s on a CPU, and a GPU one to two minutes."""
COMPILERS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "cuda": ("a C compiler", "CC", ("gcc", "clang", "cc")),
    "cpu": ("a C++ compiler", "CXX", ("g++", "clang++")),
}
"""Compiler that a device needs: name, environment variable that chooses one, and the usual programs."""

logger = logging.getLogger(__name__)


class Compiled:
    """A function that passes views through a backbone, with compiled code if the backbone is in training.

    It is not an `nn.Module`, so the network that keeps it has the same tensors as without it.
    """

    def __init__(self, backbone: nn.Module | Maps, *, optional: bool, backend: str = BACKEND) -> None:
        """Prepare the compilation, which the first call executes.

        Args:
            backbone: the backbone, or the function that returns its maps.
            optional: True if the backbone runs eagerly should the compilation fail; False to raise the error.
            backend: backend of torch.compile.
        """
        import torch._dynamo
        from torch._functorch import config

        # Both passes are compiled before either runs, so that a failure leaves nothing half done.
        setattr(config, EARLY_BACKWARD, True)
        torch._dynamo.config.recompile_limit = SHAPES
        self._backbone, self._optional = backbone, optional
        # One compilation for each size of views. A compilation for any size would be slower.
        self._compiled: Any = torch.compile(
            backbone, backend=backend, dynamic=False, options=OPTIONS if backend == BACKEND else None
        )
        self.backend = backend
        """Backend of torch.compile."""
        self.failed = False
        """True if the compilation failed and the backbone runs eagerly."""
        self._before = _compiling()

    @property
    def seconds(self) -> float:
        """Seconds of compilation in this process since this object was made."""
        return _compiling() - self._before

    def __call__(self, view: Tensor) -> Any:
        """Return f(v), (n, num_features), or the maps of v.

        Raises:
            InvalidError: the compilation failed and is not optional.
        """
        if self.failed or not self._backbone.training:
            return self._backbone(view)
        try:
            return self._compiled(view)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = _first_line(error)
            if not self._optional:
                raise InvalidError(
                    f'The backbone cannot be compiled: {reason}. compile = "auto" in the site file runs it '
                    "eagerly."
                ) from error
            logger.warning("The backbone runs eagerly, because its compilation failed: %s.", reason)
            self.failed = True
            return self._backbone(view)


def compile_backbones(
    network: Any,
    asked: bool | str,
    *,
    operations: float | None,
    device: torch.device,
    backend: str = BACKEND,
) -> None:
    """Compile the backbones of the online and the target network, if that is asked for or worth it.

    "auto" compiles on a GPU if the run is long enough. It does not if BatchNorm is synchronised between
    processes: each of its layers would end a compiled piece.

    Args:
        network: the network on its device, with its final BatchNorms, before DistributedDataParallel.
        asked: True, False, or "auto".
        operations: operations of the whole run in its backbones, on this device; None if unknown. They are
            the same when it resumes, so that it ends with the same numbers.
        backend: backend of torch.compile.

    Raises:
        InvalidError: `asked` is True, and a compiler is missing.
    """
    synchronised = _is_synchronised(network.online.backbone)
    if not wanted(asked, gpu=device.type == "cuda", operations=operations, synchronised=synchronised):
        return
    if missing := lacking(device):
        if asked is True:
            raise InvalidError(
                f'compile is true, but {missing} is missing: install it, or set compile to "auto" in the '
                "site file."
            )
        logger.warning("The backbone runs eagerly, because %s is missing to compile it.", missing)
        return
    for part in (network.online, network.target):
        if part is not None:
            part.compiled = Compiled(part.passed, optional=asked == "auto", backend=backend)


def wanted(asked: bool | str, *, gpu: bool, operations: float | None, synchronised: bool) -> bool:
    """Return True if the backbones of a run are to be compiled.

    With "auto", they are if a compiled run ends earlier than an eager one, as far as its settings show.

    Args:
        asked: True, False, or "auto".
        gpu: True if the run uses GPUs.
        operations: see `compile_backbones`.
        synchronised: True if BatchNorm is synchronised between processes.
    """
    if asked != "auto":
        return bool(asked)
    return gpu and not synchronised and operations is not None and GAIN * operations / SPEED > COST


def mine(operations: float | None, *, devices: int) -> float | None:
    """Return the operations of a run on each of the devices that share its images; None if they are unknown.

    Args:
        operations: operations of the whole run in its backbones.
    """
    return None if operations is None else operations / devices


def _is_synchronised(backbone: nn.Module) -> bool:
    from reproduce.nn import sync_batchnorm

    kinds = (sync_batchnorm.SyncBatchNorm, torch.nn.SyncBatchNorm)
    return any(isinstance(module, kinds) for module in backbone.modules())


def lacking(device: torch.device) -> str:
    """Return what this machine lacks to compile for a device, or "" if it has everything."""
    from torch._functorch import config

    if not hasattr(config, EARLY_BACKWARD):
        return "the version of torch in requirements.txt"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    name, variable, programs = COMPILERS[device.type]
    if os.environ.get(variable) or any(map(shutil.which, programs)):
        return ""
    return f"{name} ({' or '.join(programs)})"


def facts(network: Any) -> dict[str, str]:
    """Return the tags of a run after the first step of a process, which replace those of an earlier one."""
    compiled = distributed.unwrapped(network.online).compiled
    return {TAG: EAGER if compiled is None or compiled.failed else compiled.backend}


def seconds(network: Any) -> float:
    """Return the seconds that the compilation of a network has taken so far; 0 if it runs eagerly."""
    compiled: Compiled | None = distributed.unwrapped(network.online).compiled
    return 0.0 if compiled is None else compiled.seconds


def _compiling() -> float:
    """Return the seconds that torch.compile has taken in this process."""
    from torch._dynamo import utils

    return float(utils.calculate_time_spent()["total_wall_time"])


def _first_line(error: BaseException) -> str:
    """Return the first line of the innermost reason of a failed compilation."""
    reason = getattr(error, "inner_exception", error)
    text = str(reason).strip() or type(reason).__name__
    return text.splitlines()[0].rstrip(".")
