"""Milliseconds per step of LARS and of the target's moving average, against a loop over the parameters.

    python -m bench optim          # about 30 s on a CPU; below 1 ours is faster

The loop does the same as common PyTorch implementations. For each parameter in turn it computes decay, two
norms, the trust ratio by `torch.where`, momentum and update; then the average. Both keep all numbers on the
device. Rounds of the two alternate and each keeps its best, so that a busy moment of the machine does not
affect only one. On a CPU both are limited by memory bandwidth for large networks, and by the number of calls
for small ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.command import options
from bench.compare import machine, prepare, record
from reproduce.nn import backbones
from reproduce.nn.heads import Heads
from reproduce.nn.lars import LARS
from reproduce.nn.networks import Network
from reproduce.nn.optimizers import parameters_of

CASES = (("small", Heads()), ("resnet18", Heads()), ("resnet50", Heads(hidden=2048, output=256)))
ROUNDS = 7
SECONDS_PER_ROUND = 0.3
DECAY, MOMENTUM, TRUST, RATE, TAU = 1e-5, 0.9, 1e-3, 1e-3, 0.99


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Return for each backbone one record of LARS and one of the moving average."""
    device, rounds = prepare(), 1 if quick else ROUNDS
    cases = CASES[:1] if quick else CASES
    return [each for name, heads in cases for each in _records(name, heads, device, rounds)]


def _records(name: str, heads: Heads, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    lars, average = {}, {}
    for kind in ("ours", "loop"):
        backbone = backbones.build(name, seed=0)
        projector, predictor = heads.projector(backbone.num_features), heads.predictor()
        network = Network(backbone, projector, predictor, with_target=True).to(device)
        for parameter in network.online.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        lars[kind] = _ours(network) if kind == "ours" else _loop(list(network.online.parameters()))
        average[kind] = _follow(network) if kind == "ours" else _loop_average(network)
    return [
        _record(f"{name}: {title} over a loop", _best(runs, device, rounds), device)
        for title, runs in (("LARS", lars), ("average", average))
    ]


def _record(case: str, seconds: dict[str, float], device: torch.device) -> dict[str, Any]:
    detail = f"{1000 * seconds['ours']:.2f} over {1000 * seconds['loop']:.2f} ms; {machine(device)}"
    return record("optim", case, seconds["ours"] / seconds["loop"], unit="x", detail=detail)


def _ours(network: Network) -> Callable[[], None]:
    return LARS(
        parameters_of(network.online), lr=RATE, weight_decay=DECAY, momentum=MOMENTUM, trust_coefficient=TRUST
    ).step


def _follow(network: Network) -> Callable[[], Any]:
    return lambda: network.follow(TAU, step=0, num_steps=100)


def _loop(parameters: list[nn.Parameter]) -> Callable[[], None]:
    momenta = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step() -> None:
        for w, m in zip(parameters, momenta, strict=True):
            update: Tensor = w.grad
            if w.ndim > 1:
                update = update.add(w, alpha=DECAY)
                w_norm, u_norm = w.norm(), update.norm()
                one = torch.ones_like(w_norm)
                update = update.mul(
                    torch.where(w_norm > 0, torch.where(u_norm > 0, TRUST * w_norm / u_norm, one), one)
                )
            m.mul_(MOMENTUM).add_(update)
            w.add_(m, alpha=-RATE)

    return step


def _loop_average(network: Network) -> Callable[[], None]:
    online: Any = network.online
    assert network.target is not None
    pairs = list(
        zip(
            network.target.parameters(),
            [*online.backbone.parameters(), *online.projector.parameters()],
            strict=True,
        )
    )

    @torch.no_grad()
    def step() -> None:
        for xi, theta in pairs:
            xi.mul_(TAU).add_(theta, alpha=1 - TAU)

    return step


def _best(steps: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    """Return the fewest seconds per step of each over alternating rounds, after a warm-up round."""
    times = [{kind: _seconds(step, device) for kind, step in steps.items()} for _ in range(rounds + 1)]
    return {kind: min(found[kind] for found in times[1:]) for kind in steps}


def _seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Return the mean seconds of as many steps as fit in SECONDS_PER_ROUND, at least one."""
    begin, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begin < SECONDS_PER_ROUND:
        step()
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count


if __name__ == "__main__":
    print(json.dumps(measure(quick=options("bench.bench_optim", __doc__).quick)))
