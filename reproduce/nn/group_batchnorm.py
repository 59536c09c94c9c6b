"""Batch normalisation over groups of images, as on one GPU of a run with many.

Some methods were trained without synchronised BatchNorm, so that each GPU normalised its own images: MoCo in
groups of 32 (facebookresearch/moco README.md: 256 images on 8 GPUs; moco/builder.py shuffles the keys for
that reason), SwAV over all 512 images of 8 GPUs (facebookresearch/swav main_swav.py, `syncbn_process_group`).
Here a group is a setting of the method. The result depends neither on the number of devices nor on their
memory.

    network = group_batchnorm(network, batch_size=256, group=32)
    loss.backward(); optimizer.step()
    average_statistics(network)             # the running statistics of all processes are equal again

A group consists of neighbouring images of the batch. Parameters and buffers have the names of BatchNorm's, so
the encoder of such a run fits the plain network.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reproduce.messages import InvalidError
from reproduce.nn import distributed
from reproduce.nn.sync_batchnorm import converted, sync_batchnorm

if TYPE_CHECKING:
    from torch import Tensor


def group_batchnorm(module: nn.Module, *, batch_size: int, group: int) -> nn.Module:
    """Return `module` with BatchNorm over groups of images; it replaces `sync_batchnorm`.

    A group of the whole batch, or a larger one, is BatchNorm over the images of all processes.

    Args:
        batch_size: images per step over all processes.
        group: images that are normalised together. Each lies on one process.

    Raises:
        InvalidError: the groups do not fit into the batch or into the share of a process.
    """
    if group >= batch_size:
        return sync_batchnorm(module)
    if group < 2 or batch_size % group:
        raise InvalidError(
            f"batch_size {batch_size} does not divide into groups of {group} images for BatchNorm: choose a "
            "multiple of the group, and at least 2 images for a group."
        )
    if batch_size % (distributed.world_size() * group):
        groups = batch_size // group
        fitting = ", ".join(str(number) for number in range(1, groups + 1) if not groups % number)
        raise InvalidError(
            f"BatchNorm over groups of {group} images needs whole groups on each device, but batch_size "
            f"{batch_size} has {groups} groups for {distributed.world_size()} devices: set `devices` in the "
            f"site file to one of {fitting}."
        )
    share = batch_size // distributed.world_size()
    return converted(module, partial(GroupBatchNorm, share=share, group=group))


class GroupBatchNorm(_BatchNorm):
    """Batch normalisation over each group of images; in eval mode BatchNorm with the running statistics."""

    def __init__(self, num_features: int, *, share: int, group: int, **options: Any) -> None:
        """Create it for `share` images on each process, a multiple of `group`."""
        super().__init__(num_features, **options)
        self.share = share
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (V share, channels, ...): V stacked views of the process's images, in one order.

        The views of one image belong to the same group. The running statistics move once, by the mean of the
        groups' means and of their unbiased variances.
        """
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        assert self.running_mean is not None
        num_groups = self.share // self.group
        means = self.running_mean.new_zeros(num_groups, self.num_features)
        variances = torch.zeros_like(means)
        if num_groups == 1:
            y = self._normalised(input, means[0], variances[0])
        else:
            # All groups of the first view, then of the second, ...
            pieces = list(torch.split(input, self.group))
            for index in range(num_groups):
                views = pieces[index::num_groups]
                x = torch.cat(views) if len(views) > 1 else views[0]
                x = self._normalised(x, means[index], variances[index])
                pieces[index::num_groups] = torch.split(x, self.group) if len(views) > 1 else [x]
            y = torch.cat(pieces)
        self._track(means.mean(dim=0), variances.mean(dim=0))
        return y

    def _normalised(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Return x, (images, channels, ...), normalised over itself.

        With a momentum of 1, torch writes the statistics of `x` to `mean` and `variance`.
        """
        return F.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        whole = not self.training or (len(input) > 0 and len(input) % self.share == 0)
        if input.dim() < 2 or not whole:
            raise ValueError(
                f"GroupBatchNorm needs (n, channels, ...) with n a multiple of {self.share}, the images of a "
                f"process, but the shape is {tuple(input.shape)}."
            )

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


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Replace the running statistics of each GroupBatchNorm by their mean over the processes.

    All processes must call this together after each step. Moving averages are linear, so the result is that
    of one process.
    """
    norms = [each for each in module.modules() if isinstance(each, GroupBatchNorm)]
    if distributed.world_size() == 1 or not norms:
        return
    statistics = [norm.get_buffer(name) for norm in norms for name in ("running_mean", "running_var")]
    total = torch.cat(statistics)
    torch.distributed.all_reduce(total)
    total /= distributed.world_size()
    torch._foreach_copy_(statistics, torch.split(total, [len(each) for each in statistics]))
