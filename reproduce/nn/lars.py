"""LARS: SGD with momentum and a separate learning rate for each layer (You et al., 2017).

The order of operations and the exclusions are those of google-deepmind/deepmind-research
byol/utils/optimizers.py. For a weight w with gradient g:

    u <- g + weight_decay w
    u <- u trust_coefficient ||w|| / ||u||      (unchanged if either norm is 0: a zero weight can move)
    m <- momentum m + u
    w <- w - lr m

Biases and normalisation parameters skip the first two lines. All weights are updated together, and no norm is
copied from the device to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling; see the top of this file."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.0,
        weight_decay: float,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
    ) -> None:
        """Create the optimiser. A group is exempt from decay and trust ratio if its `exempt` is True.

        The training loop sets each group's `lr` before each step.
        """
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
            "exempt": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Afterwards the gradients of weights include the decay.
        """
        assert closure is None, "this optimiser evaluates no closure"
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            updates = [parameter.grad for parameter in weights]
            momenta = [self._momentum(parameter) for parameter in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            if group["exempt"]:
                torch._foreach_add_(momenta, updates)
            else:
                # In place, which saves a copy of the network in each step.
                torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                trust = trust_ratios(weights, updates, group["trust_coefficient"])
                torch._foreach_addcmul_(momenta, updates, trust)
            torch._foreach_add_(weights, momenta, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Return the running sum m of one parameter, which is zero before its first update."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum


def trust_ratios(weights: list[Tensor], updates: list[Tensor], trust_coefficient: float) -> list[Tensor]:
    """Return trust_coefficient ||w|| / ||u|| for each weight and its update, a scalar tensor each.

    The ratio is 1 if either norm is 0.
    """
    weight_norms = torch.stack(torch._foreach_norm(weights))
    update_norms = torch.stack(torch._foreach_norm(updates))
    ratios = torch.where(
        (weight_norms > 0) & (update_norms > 0), trust_coefficient * weight_norms / update_norms, 1.0
    )
    return list(ratios.unbind())
