"""Dispersive losses on the embeddings: Brownian diffusive, singular value and uniformity loss.

Symbols are the paper's (section 3.2). p are the predictions of one view, (n, d), un-normalised. n hat is unit
noise, one vector for each image, shared by its K views. "The batch" is always the whole batch over all
processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproduce.lazy import F, torch
from reproduce.nn import distributed, seeds

if TYPE_CHECKING:
    from torch import Tensor


def unit_noise(n: int, d: int, *, seed: int, step: int, device: torch.device) -> Tensor:
    """Return n hat, a unit vector for each of this process's `n` images, uniform on the sphere, (n, d).

    The noise of the whole batch is drawn on the CPU from (`seed`, `step`) alone. It is then cut to this
    process's images, so it depends neither on the device nor on the number of processes.
    """
    noise = torch.randn(n * distributed.world_size(), d, generator=seeds.generator("noise", seed, step))
    local = noise[distributed.rank() * n : (distributed.rank() + 1) * n]
    local = F.normalize(local, dim=1)
    # From pageable memory, the copy may wait for the GPU.
    return (local.pin_memory() if device.type == "cuda" else local).to(device, non_blocking=True)


def brownian_loss(p: Tensor, noise: Tensor) -> Tensor:
    """Return L_b of one view, Eq. 4: the mean over images of <n hat, p hat>.

    Its sign does not matter, since the noise is symmetric.
    """
    return (noise * F.normalize(p, dim=1)).sum(dim=1).mean()


def singular_value_loss(p: Tensor) -> Tensor:
    """Return L_s of one view, Eq. 5 and 6: || S - I ||_F^2 with S the covariance over the whole batch.

    p is not normalised: with unit-norm p and d = 128 the loss could only lie between 126 and 128, and
    lambda_s would have no effect. The predictions of all processes are gathered with their gradients, since S
    is rank-deficient if there are fewer images than dimensions.
    """
    p = distributed.gather(p)
    centred = p - p.mean(dim=0)
    covariance = centred.T @ centred / (len(p) - 1)
    return (covariance - torch.eye(p.shape[1], device=p.device)).square().sum()


def uniformity_loss(p: Tensor, t: float) -> Tensor:
    """Return the uniformity loss over the whole batch.

    It is log of the mean over pairs of exp(-t ||p hat_i - p hat_j||^2) (Wang and Isola; ssnl/align_uniform).
    """
    x = F.normalize(distributed.gather(p), dim=1)
    return torch.pdist(x).square().mul(-t).exp().mean().log()
