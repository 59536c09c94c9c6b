"""LARC without clipping: a separate learning rate for each parameter around SGD with momentum.

The order of operations is that of NVIDIA/apex apex/parallel/LARC.py with `clip=False`, as SwAV uses it
(facebookresearch/swav main_swav.py). For a parameter w, weight or vector, with gradient g:

    u <- (g + weight_decay w) trust_coefficient ||w|| / (||g|| + weight_decay ||w|| + 1e-8)
    m <- momentum m + u
    w <- w - lr m

If ||w|| or ||g|| is 0, u is g: no decay either. LARS (`lars.py`) divides by ||g + weight_decay w|| instead,
and exempts vectors. All parameters are updated together, and no norm is copied from the device to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-8
"""Summand of the denominator (NVIDIA/apex apex/parallel/LARC.py)."""


class LARC(torch.optim.Optimizer):
    """Layer-wise adaptive rate control; see the top of this file."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.0,
        weight_decay: float,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
    ) -> None:
        """Create the optimiser. The training loop sets each group's `lr` before each step."""
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Afterwards the gradients include the decay.
        """
        assert closure is None, "this optimiser evaluates no closure"
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            updates = [parameter.grad for parameter in weights]
            momenta = [self._momentum(parameter) for parameter in weights]
            decay = group["weight_decay"]
            trust = trust_ratios(weights, updates, decay, group["trust_coefficient"])  # of g without decay
            torch._foreach_add_(updates, weights, alpha=decay)  # in place, which saves a copy of the network
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_addcmul_(momenta, updates, trust)
            torch._foreach_add_(weights, momenta, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Return the running sum m of one parameter, which is zero before its first update."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum


def trust_ratios(
    weights: list[Tensor], gradients: list[Tensor], decay: float, trust_coefficient: float
) -> list[Tensor]:
    """Return the factor of g + decay w for each parameter w and its gradient g, a scalar tensor each.

    It is 1 for a zero parameter, which has no decay. It is 0 for a zero gradient, so that the parameter does
    not decay.
    """
    weight_norms = torch.stack(torch._foreach_norm(weights))
    gradient_norms = torch.stack(torch._foreach_norm(gradients))
    ratios = trust_coefficient * weight_norms / (gradient_norms + decay * weight_norms + EPSILON)
    ratios = torch.where(weight_norms == 0, 1.0, ratios)
    return list(torch.where(gradient_norms == 0, 0.0, ratios).unbind())
