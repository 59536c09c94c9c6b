"""Peak memory of training with K = 2, 4 and 8 views.

    python -m bench memory          # about 2 minutes on two CPU cores; K = 8 at most 10 % above K = 2

Each K trains for a few steps in a fresh process: it draws the views and runs the full method's `train_step`
of `reproduce/train.py` on a ResNet-18 at 64 px. The measure includes everything that training holds at its
peak: weights, target, momentum, gradients, activations and the K views. On a GPU it is torch's peak of
allocated memory. On a CPU it is the process's peak of resident memory, less its memory before the network
existed.

Views pass through the network one at a time, so only the views themselves and their projections multiply with
K.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from bench.command import options
from bench.compare import in_fresh_process, machine, prepare, record, resident_peak
from configs import pretrain
from reproduce.nn import backbones
from reproduce.spec import Pretrain
from reproduce.train import Meter, draw_batch, start, train_step

BAR = 1.10
NUM_VIEWS = (2, 4, 8)
STEPS = 3
"""Number of steps. From the second on, the optimiser has its momentum, and the views of the last step still
exist while new ones are drawn."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One backbone at STL-10's 64 px."""

    backbone: str
    batch_size: int
    bar: float | None = None

    def spec(self, num_views: int, device: torch.device) -> Pretrain:
        """Return the full method on STL-10."""
        run = pretrain.msbreg(pretrain.stl10, num_views=num_views, batch_size=self.batch_size)
        return replace(
            run, backbone=self.backbone, precision="float32" if device.type == "cpu" else "bfloat16"
        )


ON_CPU = (Case(backbone="resnet18", batch_size=64, bar=BAR),)
ON_GPU = (
    Case(backbone="resnet18_3x3", batch_size=512, bar=BAR),
    Case(backbone="resnet18", batch_size=512, bar=BAR),
)
QUICK = (Case(backbone="small", batch_size=4),)


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Return for each backbone one record for K = 4 and one for K = 8, both over K = 2."""
    device = prepare()
    on_device = ON_CPU if device.type == "cpu" else ON_GPU
    return [each for case in (QUICK if quick else on_device) for each in _records(case, device)]


def _records(case: Case, device: torch.device) -> list[dict[str, Any]]:
    peaks = {
        num_views: in_fresh_process("bench_memory", case.backbone, case.batch_size, num_views)
        for num_views in NUM_VIEWS
    }
    return [
        record(
            "memory",
            f"{case.backbone}, 64 px, batch {case.batch_size}: peak at K = {num_views} over K = 2",
            peaks[num_views] / peaks[2],
            unit="x",
            detail=f"{peaks[num_views] / 2**20:.0f} MiB over {peaks[2] / 2**20:.0f} MiB; {machine(device)}",
            at_most=case.bar if num_views == max(NUM_VIEWS) else None,
        )
        for num_views in NUM_VIEWS[1:]
    ]


def peak(case: Case, num_views: int) -> int:
    """Return the peak bytes of training with `num_views` views in this process."""
    device = prepare()
    spec = case.spec(num_views, device)
    side = spec.dataset.canvas
    pixels = torch.randint(256, (case.batch_size, 3, side, side), dtype=torch.uint8, device=device)
    sizes, indices = torch.full((case.batch_size, 2), side), torch.arange(case.batch_size)
    backbones.build(case.backbone)  # loads torchvision
    before = psutil.Process().memory_info().rss
    network, optimizer = start(spec, device)
    meter = Meter()
    for step in range(STEPS):
        batch = draw_batch(spec, pixels, sizes, indices, epoch=step, step=step, steps_per_epoch=STEPS)
        train_step(spec, network, optimizer, meter, batch, lr=1e-3)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak() - before


if __name__ == "__main__":
    asked = options("bench.bench_memory", __doc__, inner="--peak", num=3)
    if asked.inner:
        name, images, views = asked.inner
        print(peak(Case(backbone=name, batch_size=int(images)), int(views)))
    else:
        print(json.dumps(measure(quick=asked.quick)))
