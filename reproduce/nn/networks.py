"""The networks that methods train: an online network and, for some, a target network.

    online:  z = g(f(v)),  p = h(z)    trained; without a predictor, p = z
    target:  z' = g'(f'(v))            xi <- tau xi + (1 - tau) theta after each step

theta and xi are the parameters of f and g and of f' and g'. The source is google-deepmind/deepmind-research
byol/byol_experiment.py, for a constant tau facebookresearch/moco moco/builder.py. The target starts as a copy
of the online network (BYOL draws it separately and notes no difference). Like BYOL's target it normalises
with the statistics of the batch, as in training. Its running statistics come from its own forward passes and
are not averaged.

If `mixed`, the backbones compute in bfloat16. Features, heads and losses are always in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from reproduce.nn import distributed, schedules
from reproduce.nn.compiled import Compiled
from reproduce.nn.maps import Level, Maps

if TYPE_CHECKING:
    from torch import Tensor

Joint = Literal["none", "heads", "all"]
"""Networks in which the views of one forward pass share the statistics of their BatchNorms.

`none`: each view passes all networks by itself. `heads`: each view passes the backbone by itself, then the
heads see all views as one batch (htdt/self-supervised methods). `all`: the backbone sees all views of one
size as one batch, too (google-research/simclr model.py; facebookresearch/swav src/resnet50.py).
"""


class Outputs(NamedTuple):
    """Embeddings of V views of n images by the online network, un-normalised."""

    z: Tensor
    """Projections, (V n, d): all images of the first view, then all images of the second, ..."""
    p: Tensor
    """Predictions in the same order, (V n, d); without a predictor they are z."""


class Passing(nn.Module):
    """A network whose views pass a backbone first."""

    backbone: nn.Module
    mixed: bool = False
    """If true, autocast to bfloat16 covers the backbone."""
    compiled: Compiled | None = None
    """The compiled backbone; None to run it eagerly."""
    levels: tuple[Level, ...] = ()
    """Maps that the backbone returns, in this order, in place of pooled features."""

    @property
    def passed(self) -> nn.Module | Maps:
        """The function that views pass: the backbone, or the one that returns its maps."""
        return Maps(self.backbone, self.levels) if self.levels else self.backbone

    def _features(self, view: Tensor) -> Tensor:
        """Return f(v), (n, num_features), in float32 even if `mixed` has the backbone compute in bfloat16."""
        with torch.autocast(view.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            found: Tensor = (self.compiled or self.backbone)(view)
        return found.float() if self.mixed else found

    def maps(self, view: Tensor) -> tuple[Tensor, ...]:
        """Return the map of each of `levels`, (n, channels, height, width), in float32, too."""
        with torch.autocast(view.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            found: tuple[Tensor, ...] = (self.compiled or self.passed)(view)
        return tuple(each.float() for each in found) if self.mixed else found


class Online(Passing):
    """Backbone f, projector g and, if the method has one, predictor h."""

    recompute: bool = False
    """If true, the backward pass computes the activations of one view's backbone at a time, a second time.

    Memory is then that of one view, for one more forward pass. The gradient is the same, bit for bit, since
    the backbone's BatchNorms see the same batch again. With one view, or with `joint` = `all`, the backbone
    has only one pass and nothing changes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module | None = None,
        *,
        joint: Joint = "none",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.predictor = nn.Identity() if predictor is None else predictor
        self.joint = joint

    def forward(self, *views: Tensor) -> Outputs:
        """Return z and p of the views, each (n, 3, size, size) with a size of its own."""
        if self.joint == "none":
            return _stacked([self._heads(features) for features in self._one_by_one(views)])
        if self.joint == "heads":
            return self._heads(_rows(list(self._one_by_one(views))))
        features: dict[int, Tensor] = {}  # by the number of the view
        for size in dict.fromkeys(view.shape[-1] for view in views):
            which = [index for index, view in enumerate(views) if view.shape[-1] == size]
            of_size = self._features(_rows([views[index] for index in which]))
            features |= zip(which, of_size.chunk(len(which)), strict=True)
        return self._heads(_rows([features[index] for index in range(len(views))]))

    def _one_by_one(self, views: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Yield f(v) of each view; with `recompute`, only v and f(v) are kept for the backward pass."""
        recompute = self.recompute and len(views) > 1 and torch.is_grad_enabled()
        for view in views:
            if recompute:
                yield checkpoint(
                    self._features,
                    view,
                    use_reentrant=False,
                    preserve_rng_state=False,  # a backbone draws nothing
                    context_fn=lambda: (nullcontext(), _statistics_kept(self.backbone)),
                )
            else:
                yield self._features(view)

    def _heads(self, features: Tensor) -> Outputs:
        z = self.projector(features)
        return Outputs(z, self.predictor(z))


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of `module` in the block, which passes a batch for the second time.

    They are averaged with a momentum of 0. A BatchNorm that does not track them would save other tensors for
    the backward pass than the first time, which `checkpoint` refuses.
    """
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        if counters:
            torch._foreach_copy_(counters, counts)


def _stacked(outputs: list[Outputs]) -> Outputs:
    """Return the outputs of single views as those of all views."""
    z, p = zip(*outputs, strict=True)
    return Outputs(_rows(z), _rows(p))


def _rows(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Return the rows of all tensors; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


class Target(Passing):
    """Backbone f' and projector g', without gradients: (n, 3, size, size) -> z', (n, d)."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.projector = copy.deepcopy(projector)
        self.requires_grad_(False)

    def forward(self, view: Tensor) -> Tensor:
        """Return the projections z' of one view, (n, d), un-normalised."""
        z: Tensor = self.projector(self._features(view))
        return z


class Network(nn.Module):
    """The online network and, if asked for, its target. A DistributedDataParallel may wrap `online`."""

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module | None = None,
        *,
        with_target: bool = False,
        joint: Joint = "none",
    ) -> None:
        """Create the networks; `backbone`, `projector` and `predictor` become the online network."""
        super().__init__()
        self.online: nn.Module = Online(backbone, projector, predictor, joint=joint)
        self.target = Target(backbone, projector) if with_target else None

    @torch.no_grad()
    def project(self, view: Tensor) -> Tensor:
        """Return the target's z' of one view, (n, d)."""
        assert self.target is not None, "this network has no target"
        z: Tensor = self.target(view)
        return z

    def follow(self, tau: float, *, step: int, num_steps: int) -> dict[str, float]:
        """Move the target towards the online network after an optimiser step, and return the rate used.

        Args:
            tau: decay rate at the first step, which rises to 1 at the last.
            step: number of the optimiser step of `num_steps`, from 0.
        """
        return self.follow_at(schedules.target_decay(step, base=tau, num_steps=num_steps))

    @torch.no_grad()
    def follow_at(self, rate: float) -> dict[str, float]:
        """Move the target as `follow` does, at the decay rate `rate`, and return it."""
        assert self.target is not None, "this network has no target"
        online = distributed.unwrapped(self.online)
        followed = [*online.backbone.parameters(), *online.projector.parameters()]
        torch._foreach_lerp_(list(self.target.parameters()), followed, 1 - rate)
        return {"tau": rate}
