"""A training step over the backbone alone: the cost of the method, its heads, LARS and the moving average.

    python -m bench step          # about 2 minutes on two CPU cores; at most 1.10 on a ResNet-18 at 64 px

Both sides pass the same K views through the same modules in the same mode: K forward passes of the target's
backbone, K forward and backward passes of the online one. The step is the complete `train_step` of
`reproduce/train.py`. Neither side draws views, which `bench_views.py` measures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.command import options
from bench.compare import Comparison, in_turns, machine, prepare, record
from configs import pretrain
from reproduce.methods.method import Batch
from reproduce.spec import Pretrain
from reproduce.train import Meter, start, train_step

BAR, BAR_COMPILED = 1.10, 1.08
PARTS = ("eager", "compiled")
"""Cases that may be measured alone."""
LEARNING_RATE = 1e-3
"""Learning rate. Its value does not change the time of a step; a small one keeps the weights almost
unchanged."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of the comparison."""

    backbone: str
    size: int
    """Side of a view in pixels."""
    batch_size: int
    num_views: int
    rounds: int
    bar: float | None = None
    compiled: bool = False
    """True to compile the backbones of both sides (`compile` of the site)."""

    def spec(self, device: torch.device) -> Pretrain:
        """Return the full method, with every term of the loss."""
        run = pretrain.msbreg(pretrain.stl10, num_views=self.num_views, batch_size=self.batch_size)
        return replace(
            run, backbone=self.backbone, precision="float32" if device.type == "cpu" else "bfloat16"
        )

    def __str__(self) -> str:
        setting = f"{self.backbone}, {self.size} px, batch {self.batch_size}, K = {self.num_views}"
        return f"{setting}: step over {'compiled ' if self.compiled else ''}backbone alone"


ON_CPU = (
    Case(backbone="resnet18", size=64, batch_size=64, num_views=2, rounds=9, bar=BAR),
    Case(backbone="small", size=32, batch_size=32, num_views=4, rounds=100),
)
ON_GPU = (
    Case(backbone="resnet18", size=64, batch_size=512, num_views=2, rounds=30, bar=BAR),
    Case(backbone="resnet18_3x3", size=64, batch_size=512, num_views=4, rounds=30),
    Case(
        backbone="resnet50",
        size=224,
        batch_size=128,
        num_views=4,
        rounds=20,
        bar=BAR_COMPILED,
        compiled=True,
    ),
)
QUICK = (Case(backbone="small", size=8, batch_size=4, num_views=2, rounds=1),)
"""Case that shows that the benchmark runs; its number means nothing."""


def measure(quick: bool = False, part: str = "") -> list[dict[str, Any]]:
    """Return one record for each case.

    Args:
        part: one of PARTS for those cases alone; empty for both.
    """
    device = prepare()
    cases = QUICK if quick else ON_CPU if device.type == "cpu" else ON_GPU
    chosen = [case for case in cases if part in ("", "compiled" if case.compiled else "eager")]
    return [_record(case, compare(case, device), device) for case in chosen]


def compare(case: Case, device: torch.device) -> Comparison:
    """Time the training step and the backbone alone, in turns."""
    spec = case.spec(device)
    network, optimizer = start(spec, device, compile_=case.compiled)
    batch = random_batch(case.num_views, case.batch_size, case.size, device)
    direction = torch.randn(case.batch_size, network.online.backbone.num_features, device=device)
    meter = Meter()

    def step() -> None:
        train_step(spec, network, optimizer, meter, batch, lr=LEARNING_RATE)

    return in_turns(
        step,
        lambda: backbone_alone(network, batch.views, direction, spec.precision),
        rounds=case.rounds,
        device=device,
    )


def random_batch(num_views: int, batch_size: int, size: int, device: torch.device) -> Batch:
    """Return the first step of a run, with noise in the shape, type and memory format of views."""
    noise = (torch.randn(batch_size, 3, size, size, device=device) for _ in range(num_views))
    return Batch(
        views=[view.contiguous(memory_format=torch.channels_last) for view in noise],
        indices=torch.arange(batch_size),
        boxes=[torch.zeros(batch_size, 4, dtype=torch.int64)] * num_views,
        flips=[torch.zeros(batch_size, dtype=torch.bool)] * num_views,
        sizes=torch.full((batch_size, 2), size),
        seed=0,
        epoch=0,
        step=0,
        steps_per_epoch=100,
        num_steps=100,
    )


def backbone_alone(network: Any, views: list[Tensor], direction: Tensor, precision: str) -> None:
    """Run K forward passes of the target's backbone, then K forward and backward passes of the online one.

    Args:
        direction: gradient of the features, (images, num_features), with any values.
    """
    online, target = (part.compiled or part.backbone for part in (network.online, network.target))
    with torch.no_grad(), _autocast(direction.device, precision):
        for view in views:
            target(view)
    for view in views:
        with _autocast(direction.device, precision):
            features = online(view)
        features.backward(direction.to(features.dtype))
    network.online.zero_grad(set_to_none=True)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _record(case: Case, found: Comparison, device: torch.device) -> dict[str, Any]:
    times = f"{1000 * found.first:.1f} ms over {1000 * found.second:.1f} ms"
    detail = f"{times}; {machine(device)}; median of {case.rounds} rounds"
    return record("step", str(case), found.ratio, unit="x", detail=detail, at_most=case.bar)


if __name__ == "__main__":
    asked = options("bench.bench_step", __doc__, parts=PARTS)
    print(json.dumps(measure(quick=asked.quick, part=asked.part)))
