"""A memory bank with a row for each image, and noise-contrastive estimation against its rows.

Sources: zhirongw/lemniscate.pytorch @ f7cfe29 lib/NCEAverage.py, lib/NCECriterion.py, lib/LinearAverage.py;
facebookresearch/vissl vissl/losses/nce_loss.py.

    P(j | v) = exp(v . m_j / T) / Z
    h(v, i) = -log( P(i | v) / (P(i | v) + M / N) ) - sum_j log( (M / N) / (P(j | v) + M / N) )

m_j is the row of image j of N. The M negatives j are drawn uniformly with replacement, and the image itself
is not excluded. Z is N times the mean of the exponentials of the first loss, over all processes; it stays.
The official code also adds 1e-7 to M / N in the denominators. On ImageNet, with M = 4096, its loss is .128
larger and its gradient differs by .003 %.

Gradients flow through v alone. With s = v . m_j / T - log Z - log(M / N), a positive costs softplus(-s) and a
negative softplus(s), which no exponential can overflow.

After the step, the row of each image becomes m_i <- (m m_i + (1 - m) v_i) hat. Rows and Z belong to the state
of the network, so a checkpoint contains them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from reproduce.nn import cost, distributed, seeds
from reproduce.nn.networks import Network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class Bank(nn.Module):
    """One row for each image of the data set, the same in all processes."""

    rows: Tensor
    """(num_images, dim); of about unit length, and exactly so once the image has been seen."""
    log_z: Tensor
    """log Z, a scalar; NaN before the first loss."""

    def __init__(self, num_images: int, dim: int, *, unit: bool = False) -> None:
        """Draw the rows from torch's global random state, uniform in +- sqrt(3 / dim).

        Args:
            unit: True if they are then normalised.
        """
        super().__init__()
        bound = math.sqrt(3 / dim)
        rows = torch.empty(num_images, dim).uniform_(-bound, bound)
        self.register_buffer("rows", F.normalize(rows, dim=1) if unit else rows)
        self.register_buffer("log_z", torch.tensor(math.nan))

    def nce(self, v: Tensor, indices: Tensor, negatives: Tensor, *, temperature: float) -> Tensor:
        """Return the mean over images of h(v, i).

        Args:
            v: unit vectors, (n, dim).
            indices: numbers of their images, (n,), on the device of the rows.
            negatives: numbers of the M images that each is compared with, (n, M).
        """
        num_negatives = negatives.shape[1]
        compared = torch.cat([indices[:, None], negatives], dim=1)
        logits = Products.apply(v, self.rows, compared) / temperature  # (n, 1 + M)
        self._estimate(logits)
        logits = logits - self.log_z - math.log(num_negatives / len(self.rows))
        return (F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1:]).sum(dim=1)).mean()

    @torch.no_grad()
    def _estimate(self, logits: Tensor) -> None:
        """Set log Z from the first logits, without a look at the device."""
        mean = logits.logsumexp(dim=(0, 1), keepdim=True).flatten() - math.log(logits.numel())
        everywhere = distributed.gather(mean)
        log_z = everywhere.logsumexp(dim=0) - math.log(len(everywhere)) + math.log(len(self.rows))
        self.log_z.copy_(torch.where(self.log_z.isnan(), log_z, self.log_z))

    @torch.no_grad()
    def renew(self, indices: Tensor, v: Tensor, *, momentum: float) -> None:
        """Move the rows of images towards their newest vectors, and normalise them.

        Autograd may still need the old rows: call it after the backward pass.

        Args:
            indices: numbers of this process's images, (n,), on the device of the rows.
            v: their unit vectors, (n, dim).
            momentum: m, the weight of the old row.
        """
        indices, v = distributed.gather(indices), distributed.gather(v.detach().to(self.rows.dtype))
        moved = momentum * self.rows[indices] + (1 - momentum) * v
        self.rows.index_copy_(0, indices, F.normalize(moved, dim=1))


class Products(torch.autograd.Function):
    """Products of each vector with its rows: (n, dim), (N, dim) and (n, m) row numbers -> (n, m).

    Both passes compute block after block of vectors, in the one of two ways that needs less memory: all rows
    times the vectors of a block, or the rows of each vector. Gradients flow to the vectors alone.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, rows: Tensor, compared: Tensor) -> Tensor:
        ctx.save_for_backward(rows, compared)
        found = v.new_empty(compared.shape)
        for block in _blocks(rows, compared):
            if _all_rows(rows, compared):
                found[block] = (v[block] @ rows.T).gather(1, compared[block])
            else:
                found[block] = torch.einsum("nd,nmd->nm", v[block], rows[compared[block]])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, compared = ctx.saved_tensors
        found = gradient.new_empty(len(gradient), rows.shape[1])
        for block in _blocks(rows, compared):
            of_block = gradient[block]
            if _all_rows(rows, compared):
                of_rows = of_block.new_zeros(len(of_block), len(rows))
                found[block] = of_rows.scatter_add_(1, compared[block], of_block) @ rows
            else:
                found[block] = torch.einsum("nm,nmd->nd", of_block, rows[compared[block]])
        return found, None, None


def _all_rows(rows: Tensor, compared: Tensor) -> bool:
    """Return True if the products with all rows are fewer numbers than the rows of each vector."""
    return len(rows) <= compared.shape[1] * rows.shape[1]


def _blocks(rows: Tensor, compared: Tensor) -> Iterator[slice]:
    """Yield slices of the vectors; each needs at most `cost.BLOCK` numbers, or is a single vector."""
    each = cost.products(len(rows), compared.shape[1], rows.shape[1])
    size = max(1, cost.BLOCK // each)
    return (slice(first, first + size) for first in range(0, len(compared), size))


class BankNetwork(Network):
    """An online network and a bank that follows its embeddings."""

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, *, num_images: int, dim: int, unit: bool = False
    ) -> None:
        """Create the networks, then a bank of `num_images` rows with `dim` dimensions (see `Bank`)."""
        super().__init__(backbone, projector)
        self.bank = Bank(num_images, dim, unit=unit)
        self._newest: tuple[Tensor, Tensor] | None = None

    def keep(self, indices: Tensor, v: Tensor) -> None:
        """Keep the unit vectors of this step, (n, dim), for the end of the step."""
        self._newest = indices, v.detach()

    def advance(self, momentum: float) -> None:
        """End a step: move the rows of its images towards what was kept."""
        assert self._newest is not None, "no embeddings were kept in this step"
        self.bank.renew(*self._newest, momentum=momentum)
        self._newest = None


def negatives(
    num_images: int, count: int, *, indices: Tensor, seed: int, step: int, purpose: str = "negatives"
) -> Tensor:
    """Return the numbers of the images that this process's images are compared with, (n, count).

    They are uniform over the data set and follow from purpose, seed and step, on any number of processes.

    Args:
        num_images: images of the data set.
        indices: numbers of this process's images, (n,), on the device of the result.
        purpose: name of a random stream; a step with two losses has one for each.
    """
    n = len(indices)
    generator = torch.Generator(indices.device).manual_seed(seeds.seed(purpose, seed, step))
    drawn = torch.randint(
        num_images, (n * distributed.world_size(), count), generator=generator, device=indices.device
    )
    return drawn[distributed.rank() * n :][:n]
