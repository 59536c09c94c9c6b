"""A queue of earlier keys, which are the negatives of MoCo's loss (facebookresearch/moco moco/builder.py).

The rows are the same in all processes and belong to the state of the network, so a checkpoint contains them.
The next place follows from the step counter, which costs no look at the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from reproduce.messages import InvalidError
from reproduce.nn import distributed

if TYPE_CHECKING:
    from torch import Tensor


class Queue(nn.Module):
    """Rows of which the oldest are replaced by the keys of each step."""

    rows: Tensor
    """(num_rows, dim); random unit vectors until they are replaced."""

    def __init__(self, num_rows: int, dim: int) -> None:
        """Create the rows from torch's global random state, as the initial weights are."""
        super().__init__()
        self.register_buffer("rows", self.initial(num_rows, dim))

    @staticmethod
    def initial(num_rows: int, dim: int) -> Tensor:
        """Return the rows before the first step, (num_rows, dim)."""
        return F.normalize(torch.randn(num_rows, dim), dim=1)

    @torch.no_grad()
    def push(self, keys: Tensor, at: int) -> None:
        """Write the keys of all processes, in the order of their ranks, to the rows from number `at` on.

        Autograd may still need the old rows: call it after the backward pass.

        Args:
            keys: (images of this process, dim), normalised if the queue's rows are.
            at: number of keys that were pushed before, such as step x images per step. The last row is
                followed by the first.

        Raises:
            InvalidError: the number of rows is not a multiple of the number of keys, so that a part of a
                batch would stay longer than the rest.
        """
        number = len(keys) * distributed.world_size()
        if len(self.rows) % number:
            raise InvalidError(
                f"A queue of {len(self.rows)} rows does not hold whole batches of {number} keys: choose a "
                "multiple of the batch."
            )
        gathered = distributed.gather(keys.detach().to(self.rows.dtype))
        places = torch.arange(at, at + number, device=self.rows.device) % len(self.rows)
        self.rows.index_copy_(0, places, gathered)
