"""Dispersive forces on the embeddings: the Brownian diffusive loss, the singular value loss and the
uniformity loss.

Symbols are the paper's (section 3.2): p are the predictions of one view, (n, d), un-normalised; n hat is unit
noise, one vector for each image, shared by its K views. "The batch" is always the whole batch, over all
processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproduce.lazy import F, torch
from reproduce.nn import distributed, seeds

if TYPE_CHECKING:
    from torch import Tensor


def unit_noise(n: int, d: int, *, seed: int, step: int, device: torch.device) -> Tensor:
    """n hat: a unit vector for each of this process's `n` images, uniform on the sphere, (n, d).

    Drawn for the whole batch on the CPU from (`seed`, `step`) alone and then cut to this process's images, so
    it depends neither on the device nor on the number of processes.
    """
    noise = torch.randn(n * distributed.world_size(), d, generator=seeds.generator("noise", seed, step))
    local = noise[distributed.rank() * n : (distributed.rank() + 1) * n]
    return F.normalize(local, dim=1).to(device)


def brownian_loss(p: Tensor, noise: Tensor) -> Tensor:
    """L_b of one view, Eq. 4: the mean over images of <n hat, p hat>.

    Its sign does not matter, since the noise is symmetric.
    """
    return (noise * F.normalize(p, dim=1)).sum(dim=1).mean()


def singular_value_loss(p: Tensor) -> Tensor:
    """L_s of one view, Eq. 5 and 6: || S - I ||_F^2 with S the covariance over the whole batch, over all
    processes.

    p is not normalised: with unit-norm p and d = 128 the loss could only lie between 126 and 128, and
    lambda_s would do nothing. The predictions of all processes are gathered with their gradients, since fewer
    images than dimensions make S rank-deficient.
    """
    p = distributed.gather(p.float())
    # Autocast would take the product of float32 matrices in bfloat16.
    with torch.autocast(p.device.type, enabled=False):
        centred = p - p.mean(dim=0)
        covariance = centred.T @ centred / (len(p) - 1)
        return (covariance - torch.eye(p.shape[1], device=p.device)).square().sum()


def uniformity_loss(p: Tensor, t: float) -> Tensor:
    """log of the mean over pairs of exp(-t ||p hat_i - p hat_j||^2) (Wang and Isola; ssnl/align_uniform),
    over the whole batch."""
    x = F.normalize(distributed.gather(p.float()), dim=1)
    return torch.pdist(x).square().mul(-t).exp().mean().log()
