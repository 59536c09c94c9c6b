"""The contract between a method and the training loop.

One file of this folder contains one method: its settings, its network and its loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from reproduce.settings import Limits, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn


class Part(NamedTuple):
    """A share of the loss with a backward pass of its own."""

    loss: Tensor
    """Share of the method's loss; the gradients of all shares add up to the gradient of the loss."""
    terms: dict[str, Tensor]
    """Share of each term before its weight lambda, for the log; the shares add up to L_c, L_s, ..."""
    embeddings: Tensor
    """Embeddings that are watched for collapse, (images of this process, d)."""


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """Base class of the methods. The training loop does not know any loss function."""

    num_views: Annotated[int, Limits(2, 1000)]
    """K, the views of each image that one step uses."""

    @property
    def num_parts(self) -> int:
        """Number of parts that `parts` yields.

        K if views can go forward and backward one at a time, 1 if the loss couples them.
        """
        raise NotImplementedError

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return the same method with sizes that fit the smaller data set of a scale.

        Sizes are the widths of the heads, the length of a queue, or the decay rate of a target. K and the
        weights of the loss stay, since they are what the tables compare.
        """
        return self

    def network(self, backbone: nn.Module) -> nn.Module:
        """Return the module around `backbone` that is trained.

        The optimiser trains its attribute `online`. Its attribute `target` follows, or is None.
        """
        raise NotImplementedError

    def parts(self, network: Any, views: list[Tensor], *, seed: int, step: int) -> Iterator[Part]:
        """Yield the loss of one step in shares, each computed when the caller asks for it.

        The caller back-propagates a part before it asks for the next. Only the activations of one part exist
        at a time, so memory does not grow with K.

        Args:
            network: the module that `network` returned.
            views: K tensors, (images of this process, 3, size, size), each of its own size.
            seed: the seed of the run.
            step: optimiser steps before this one.
        """
        raise NotImplementedError

    def after_step(self, network: Any, *, step: int, num_steps: int) -> dict[str, float]:
        """Update what follows the optimiser, such as a target network, and return values for the log.

        Args:
            network: the module that `network` returned.
            step: the optimiser's step that is done, from 0.
            num_steps: steps of the whole run.
        """
        return {}
