"""The contract between a method and the training loop.

One file of this folder contains one method: its settings, its network and its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from reproduce.settings import Limits, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reproduce.nn.cost import Layout


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step as a method sees it: the views of this process's images, and the place of the step."""

    views: list[Tensor]
    """K normalised views, (images of this process, 3, size, size), each of its own size."""
    indices: Tensor
    """Numbers of the images in their data set, (images of this process,), on the CPU."""
    boxes: list[Tensor]
    """Crop of each view in pixels of the original images: top, left, height and width, (images, 4)."""
    flips: list[Tensor]
    """True for each image that a view shows mirrored, (images,)."""
    sizes: Tensor
    """Heights and widths of the original images in pixels, (images, 2), on the CPU like boxes and flips."""
    seed: int
    """Seed of the run."""
    epoch: int
    """Number of the epoch, from 0."""
    step: int
    """Optimiser steps before this one."""
    steps_per_epoch: int
    """Steps of each epoch."""
    num_steps: int
    """Steps of the whole run."""

    @property
    def num_images(self) -> int:
        """Number of images of this process."""
        return len(self.views[0])


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch as a method sees it before the first step."""

    number: int
    """Number of the epoch, from 0."""
    seed: int
    """Seed of the run."""
    images: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    """Function that yields this process's share of all images, not augmented: their numbers, (n,), and their
    normalised centre crops, (n, 3, size, size)."""


class Part(NamedTuple):
    """A share of the loss with a backward pass of its own."""

    loss: Tensor
    """Share of the method's loss; the gradients of all shares add up to the gradient of the loss."""
    terms: dict[str, Tensor]
    """Share of each term before its weight lambda, for the log; the shares add up to L_c, L_s, ..."""
    embeddings: Tensor
    """Embeddings that are watched for collapse, (rows of this process, d)."""


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """Base class of the methods. The training loop does not know any loss function.

    A step calls `before_step`, then back-propagates each part that `parts` yields, then calls
    `before_update`, the optimiser and `after_step`.
    """

    num_views: Annotated[int, Limits(2, 1000)]
    """K, the views of each image that one step uses."""

    least_large: ClassVar[int] = 1
    """Minimum number of large views with multi-crop."""

    @property
    def num_patches(self) -> int | None:
        """Number of the last views that must be patches, or 0; None if the method takes any views."""
        return None

    @property
    def num_parts(self) -> int:
        """Number of parts that `parts` yields.

        K if views can go forward and backward one at a time, 1 if the loss couples them.
        """
        raise NotImplementedError

    @property
    def view_groups(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the views whose activations exist at the same time, for each part of the loss.

        A view without a backward pass is in no group.
        """
        trained = tuple(view for view in range(self.num_views) if self.passes(view) >= 3)
        return tuple((view,) for view in trained) if self.num_parts >= len(trained) else (trained,)

    @property
    def recomputes(self) -> bool:
        """True if `recompute` in the site file has the method keep the activations of one view at a time."""
        return self.num_parts == 1

    def passes(self, view: int) -> float:
        """Return the forward passes of a backbone that cost as much as a step on view number `view`.

        Forward and backward pass of the online network count as 3, a forward pass of the target network as 1.
        """
        return 3.0

    def layout(self, num_features: int) -> Layout | None:
        """Return the sizes of what is trained around a backbone, for forecasts; None if they are unknown.

        Args:
            num_features: features that the backbone returns.
        """
        return None

    def batchnorm_images(self, batch_size: int) -> int:
        """Return how many images of a step share the statistics of BatchNorm; `batch_size` is all of them."""
        return batch_size

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return the same method with sizes that fit the smaller data set of a scale.

        Sizes are the widths of the heads, the length of a queue, or the decay rate of a target. K and the
        weights of the loss stay, since they are what the tables compare.
        """
        return self

    def side(self, scale: Literal["smoke", "small"]) -> int | None:
        """Return the side in pixels that ordinary views need at a smaller scale, or None for the scale's own.

        The evaluations of its encoders have images of this side, too.
        """
        return None

    def check_for(self, *, batch_size: int, num_images: int | None = None) -> None:
        """Raise ValueError if the settings do not fit the batch or the data set.

        Args:
            batch_size: images per step over all devices.
            num_images: images of the data set; None if they are not counted yet.
        """

    def check_side(self, side: int, *, backbone: str) -> None:
        """Raise ValueError if ordinary views are too small for what the method takes from its networks.

        Args:
            side: side of an ordinary view in pixels.
            backbone: name of a function in `reproduce/nn/backbones.py`.
        """

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> nn.Module:
        """Return the module around `backbone` that is trained.

        The optimiser trains its attribute `online`. Its attribute `target` follows, or is None. Queues and
        banks are registered buffers with the rows of all processes, so that checkpoints contain them.

        Args:
            num_images: images of the data set.
            batch_size: images per step over all devices.
        """
        raise NotImplementedError

    def before_epoch(self, network: Any, epoch: Epoch) -> None:
        """Prepare an epoch, such as by clustering all images.

        A run that resumes within an epoch does not call it again: results belong in buffers of `network`.
        """

    def before_step(self, network: Any, batch: Batch) -> None:
        """Prepare a step, such as by normalising prototypes."""

    def parts(self, network: Any, batch: Batch) -> Iterator[Part]:
        """Yield the loss of one step in shares, each computed when the caller asks for it.

        The caller back-propagates a part before it asks for the next. Only the activations of one part exist
        at a time, so memory does not grow with K.

        Args:
            network: the module that `network` returned.
        """
        raise NotImplementedError

    def before_update(self, network: Any, batch: Batch) -> None:
        """Change the gradients before the optimiser uses them, such as by dropping those of frozen layers."""

    def after_step(self, network: Any, batch: Batch) -> dict[str, float]:
        """Update what follows the optimiser, such as a target network, and return values for the log.

        Args:
            network: the module that `network` returned.
            batch: the step that is done.
        """
        return {}
