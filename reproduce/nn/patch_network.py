"""A network with a head for images and one for their patches, and a memory bank.

Source: facebookresearch/vissl vissl/models/heads/siamese_concat_view.py, vissl/models/base_ssl_model.py.

    z = g(f(image))
    z = L(g_p(f(patch 1)), g_p(f(patch 2)), ...)

L is linear and takes the concatenated outputs. The patches of all images pass the backbone f as one batch,
so its BatchNorms normalise over all of them.

    z = network.online(image).z         # (n, d)
    z = network.online(*patches).z      # (n, d)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from reproduce.nn.bank import BankNetwork
from reproduce.nn.networks import Online, Outputs

if TYPE_CHECKING:
    from torch import Tensor


class PatchHead(nn.Module):
    """g_p and L: features of the patches of n images, (V n, num_features) -> (n, d)."""

    def __init__(self, each: nn.Module, *, width: int, num_patches: int, dim: int) -> None:
        """Create the head around `each`, g_p, whose output has `width` dimensions."""
        super().__init__()
        self.each = each
        self.joint = nn.Linear(num_patches * width, dim)
        self.num_patches = num_patches

    def forward(self, features: Tensor) -> Tensor:
        """Return z from all images of the first patch, then all images of the second, ..."""
        z: Tensor = self.joint(torch.cat(self.each(features).chunk(self.num_patches), dim=1))
        return z


class PatchOnline(Online):
    """The trained network; a forward pass takes an image, or its patches."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, patch_head: PatchHead) -> None:
        super().__init__(backbone, projector)
        self.patch_head = patch_head

    def forward(self, *views: Tensor) -> Outputs:
        """Return z, (n, d), as `z` and `p`; the views are one image or all patches, (n, 3, size, size)."""
        if len(views) == 1:
            z = self.projector(self._features(views[0])) + _nothing(self.patch_head)
        else:
            z = self.patch_head(self._features(torch.cat(views))) + _nothing(self.projector)
        return Outputs(z, z)


def _nothing(module: nn.Module) -> Tensor:
    """Return 0, as a function of all parameters of `module`.

    DistributedDataParallel synchronises only gradients of parameters that the last backward pass reaches.
    """
    return 0 * torch.stack([parameter.sum() for parameter in module.parameters()]).sum()


class PatchNetwork(BankNetwork):
    """A network for images and patches, and a bank whose initial rows have the length 1."""

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, patch_head: PatchHead, *, num_images: int, dim: int
    ) -> None:
        """Create the networks, then a bank of `num_images` rows with `dim` dimensions."""
        super().__init__(backbone, projector, num_images=num_images, dim=dim, unit=True)
        self.online = PatchOnline(backbone, projector, patch_head)
