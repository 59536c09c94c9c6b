"""Batch normalisation over the images of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reproduce.nn import distributed

if TYPE_CHECKING:
    from torch import Tensor


def sync_batchnorm(module: nn.Module) -> nn.Module:
    """Return `module` with BatchNorm over the images of all processes.

    Call it when `module` is on its device, before wrapping it in DistributedDataParallel.
    """
    if distributed.world_size() == 1:
        return module
    if all(tensor.is_cuda for tensor in module.state_dict().values()):
        synced: nn.Module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return synced
    return converted(module)


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the images of all processes on a CPU; torch's own needs a GPU.

    Each process sends its mean, its sum of squared deviations from the mean, and its number of values. These
    are combined without cancellation (Chan et al., 1979).
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"SyncBatchNorm needs (n, channels, ...), but the shape is {tuple(input.shape)}."
            )

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (n, channels, ...); in eval mode with the running statistics, like BatchNorm."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean, variance, count = _statistics(x)
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = self.weight * scale
        shape = (1, -1) + (1,) * (input.dim() - 2)
        y = (x - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics; `variance` is the unbiased one, as in BatchNorm."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and biased variance of each channel over all processes, and the values per channel.

    Args:
        x: (n, channels, ...).
    """
    others = [dim for dim in range(x.dim()) if dim != 1]
    local_mean = x.mean(dim=others, keepdim=True)
    local_deviations = (x - local_mean).square().sum(dim=others)
    local_counts = torch.full_like(local_deviations, x.numel() // x.shape[1])
    means, deviations, counts = distributed.gather(
        torch.stack([local_mean.flatten(), local_deviations, local_counts])[None]
    ).unbind(1)
    count = int(counts[:, 0].sum())
    mean = (counts * means).sum(dim=0) / count
    variance = (deviations + counts * (means - mean).square()).sum(dim=0) / count
    return mean, variance, count


def converted(module: nn.Module, create: Callable[..., _BatchNorm] = SyncBatchNorm) -> nn.Module:
    """Return `module` with each BatchNorm replaced by another, keeping parameters and buffers.

    Args:
        create: class of the new BatchNorms, or a function with the same arguments.
    """
    for name, child in module.named_children():
        setattr(module, name, converted(child, create))
    if not isinstance(module, _BatchNorm) or isinstance(module, SyncBatchNorm):
        return module
    other = create(module.num_features, eps=module.eps, momentum=module.momentum, affine=module.affine)
    other.train(module.training)
    # The same tensors, so that references to them, such as an optimiser's, stay valid.
    other._parameters, other._buffers = module._parameters, module._buffers
    return other
