"""The online and the target network of BYOL (paper, section 3.1).

    online:  p  = h(g(f(v)))        trained
    target:  z' = g'(f'(v))         xi <- tau xi + (1 - tau) theta after each step

theta and xi are the parameters of f and g and of f' and g'. The source is google-deepmind/deepmind-research
byol/byol_experiment.py. The target starts as a copy of the online network (BYOL draws it separately and notes
no difference). Like BYOL's target it normalises with the statistics of the batch, as in training. Its running
statistics come from its own forward passes and are not averaged.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reproduce.nn import distributed, schedules
from reproduce.nn.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor


class Online(nn.Module):
    """Backbone f, projector g and predictor h: (n, 3, size, size) -> p, (n, d)."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.predictor = predictor

    def forward(self, view: Tensor) -> Tensor:
        """Return the predictions p of one view, (n, d), un-normalised."""
        p: Tensor = self.predictor(self.projector(self.backbone(view)))
        return p


class Target(nn.Module):
    """Backbone f' and projector g', without gradients: (n, 3, size, size) -> z', (n, d)."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.projector = copy.deepcopy(projector)
        self.requires_grad_(False)

    def forward(self, view: Tensor) -> Tensor:
        """Return the projections z' of one view, (n, d), un-normalised."""
        z: Tensor = self.projector(self.backbone(view))
        return z


class Siamese(nn.Module):
    """The online and the target network. A DistributedDataParallel may wrap `online`."""

    def __init__(self, backbone: Any, heads: Heads) -> None:
        """Create both networks; `backbone` has `num_features` and becomes part of the online network."""
        super().__init__()
        projector, predictor = heads.projector(backbone.num_features), heads.predictor()
        self.online: nn.Module = Online(backbone, projector, predictor)
        self.target = Target(backbone, projector)

    @torch.no_grad()
    def project(self, view: Tensor) -> Tensor:
        """Return z' of one view in float32, (n, d)."""
        z: Tensor = self.target(view)
        return z.float()

    @torch.no_grad()
    def follow(self, tau: float, *, step: int, num_steps: int) -> dict[str, float]:
        """Move the target towards the online network after an optimiser step, and return the rate used.

        Args:
            tau: decay rate at the first step, which rises to 1 at the last.
            step: number of the optimiser step of `num_steps`, from 0.
        """
        rate = schedules.target_decay(step, base=tau, num_steps=num_steps)
        online = distributed.unwrapped(self.online)
        followed = [*online.backbone.parameters(), *online.projector.parameters()]
        torch._foreach_lerp_(list(self.target.parameters()), followed, 1 - rate)
        return {"tau": rate}
