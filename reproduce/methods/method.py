"""What the training loop asks of a method. One file of this folder holds one method: its settings and its
losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from reproduce.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn


class Part(NamedTuple):
    """A share of the loss that can be back-propagated by itself."""

    loss: Tensor
    """The gradient of the sum of all parts' losses is the gradient of the method's loss."""
    terms: dict[str, Tensor]
    """The same share of each term before its weight lambda, for the log: summed over the parts they give L_c,
    L_s, ..."""
    embeddings: Tensor
    """(images of this process, d), watched for collapse."""


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """Base class of the methods. The training loop knows no loss function; it asks for three things."""

    num_views: int
    """K, the views of each image that one step uses."""

    def check(self) -> None:
        if self.num_views < 2:
            raise ValueError(
                f"{self.name} needs at least 2 views of each image, not num_views={self.num_views}."
            )

    @property
    def num_parts(self) -> int:
        """How many parts `parts` yields: K where views can go forward and backward one at a time, 1 where the
        loss couples them."""
        raise NotImplementedError

    def network(self, backbone: nn.Module) -> nn.Module:
        """The trained module around `backbone`: `online` is what the optimiser trains, `target` what follows
        it (or None)."""
        raise NotImplementedError

    def parts(self, network: nn.Module, views: list[Tensor], *, seed: int, step: int) -> Iterator[Part]:
        """The loss of one step in shares, each computed when it is asked for.

        Whoever asks back-propagates a part before asking for the next, so that only one part's activations
        exist at a time and memory does not grow with K.

        Args:
            views: K tensors, (images of this process, 3, size, size), each of its own size.
            seed: of the run.
            step: optimiser steps done before this one.
        """
        raise NotImplementedError

    def after_step(self, network: nn.Module, *, step: int, num_steps: int) -> dict[str, float]:
        """Updates what follows the optimiser's step `step` of `num_steps` (a target network); returns what to
        log."""
        return {}
