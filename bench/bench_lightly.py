"""BYOL's training step and its views, ours against lightly's (lightly-ai/lightly, MIT) if it is installed.

    pip install lightly           # not in requirements.txt: nothing else uses it
    python -m bench lightly       # about 2 minutes on two CPU cores

Both steps train the same backbone with heads of the same width on the same two views. Lightly's step follows
its BYOL example and its ImageNet benchmark (examples/pytorch/byol.py, benchmarks/imagenet/resnet50/byol.py),
with its own LARS. Both pipelines draw views of BYOL's T and T' from decoded images and return normalised
float32 tensors, on one core. On a GPU, the whole pretraining from JPEG files is compared, too: `pretrain`
with the defaults of the site file, and lightly's step in bfloat16 with a DataLoader of WORKERS processes.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import bench_pretraining
from bench.bench_step import LEARNING_RATE, random_batch
from bench.command import options
from bench.compare import Comparison, in_turns, machine, prepare, record
from configs import pretrain
from reproduce.data.augmentation import Augmentation
from reproduce.methods.byol import BYOL
from reproduce.nn import backbones
from reproduce.nn.heads import Heads
from reproduce.spec import Pretrain
from reproduce.train import Meter, draw_batch, start, train_step

STEP, VIEWS = (
    "BYOL step: ours over lightly's, {}, 64 px, batch {}",
    "BYOL views/s: ours over lightly's, 64 px from {} px",
)
SIZE, SIDE, WORKERS = 64, 96, 16
WHOLE, BAR = "BYOL pretraining from JPEG files: ours over lightly's, {}", 4.0
T = Augmentation(blur=1.0, solarize=0.0)
T_AND_T_PRIME = replace(T, every_second=replace(T, blur=0.1, solarize=0.2))
"""Defaults of lightly's BYOLTransform, which are BYOL's."""


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Return one record for the step, one for the views and, on a GPU, one for the whole pretraining."""
    device = prepare()
    backbone, images, rounds = ("small", 4, 1) if quick else ("resnet18", 64, 7)
    step, views = STEP.format(backbone, images), VIEWS.format(SIDE)
    if find_spec("lightly") is None:
        return [
            record("lightly", case, None, unit="x", detail="lightly is not installed")
            for case in (step, views)
        ]
    spec = replace(
        pretrain.byol(pretrain.stl10, batch_size=images),
        backbone=backbone,
        precision="float32",
        augmentation=T_AND_T_PRIME,
    )
    steps, pipelines = _steps(spec, rounds, device), _pipelines(spec, rounds)
    rates = [2 * images / seconds for seconds in (pipelines.first, pipelines.second)]
    return [
        record(
            "lightly",
            step,
            steps.ratio,
            unit="x",
            detail=f"{1000 * steps.first:.1f} over {1000 * steps.second:.1f} ms; {machine(device)}",
        ),
        record(
            "lightly",
            views,
            1 / pipelines.ratio,
            unit="x",
            detail=f"{rates[0]:.0f} over {rates[1]:.0f} views/s; one CPU core",
        ),
        *([] if quick or device.type == "cpu" else [_whole(device)]),
    ]


def _whole(device: torch.device) -> dict[str, Any]:
    """Compare the images/s of whole pretrainings after their first epoch."""
    case = bench_pretraining.SMALL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = case.images(folder / "images")
        spec = replace(pretrain.byol(pretrain.stl10, batch_size=case.batch_size), augmentation=T_AND_T_PRIME)
        site = case.site(images, folder / "runs", device)
        ours = bench_pretraining.speed(bench_pretraining.run(case, site, device, method=spec.method))
        theirs = _lightly_speed(spec, images / "train", case.epochs // 2, device)
    return record(
        "lightly",
        WHOLE.format(case),
        ours / theirs,
        unit="x",
        detail=f"{ours:.0f} over {theirs:.0f} images/s, {WORKERS} workers; {machine(device)}",
        at_least=BAR,
    )


def _lightly_speed(spec: Pretrain, images: Path, epochs: int, device: torch.device) -> float:
    """Return the images/s of lightly's BYOL after its first epoch."""
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    transform = BYOLTransform(BYOLView1Transform(input_size=SIZE), BYOLView2Transform(input_size=SIZE))
    loader = DataLoader(
        ImageFolder(str(images), transform=transform),
        batch_size=spec.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        pin_memory=True,
        persistent_workers=True,
    )
    assert isinstance(spec.method, BYOL)
    backbone = backbones.build(spec.backbone, seed=0).to(device, memory_format=torch.channels_last)
    views = [torch.empty(0, device=device)] * 2
    step = lightly_step(backbone, spec.method.heads, views)
    began, seen = 0.0, 0
    for epoch in range(epochs + 1):
        for drawn, _ in loader:
            views[:] = [
                view.to(device, non_blocking=True, memory_format=torch.channels_last) for view in drawn
            ]
            with torch.autocast(device.type, dtype=torch.bfloat16):
                step()
            seen += spec.batch_size * (epoch > 0)
        torch.cuda.synchronize(device)
        began = began or time.perf_counter()
    return seen / (time.perf_counter() - began)


def _steps(spec: Pretrain, rounds: int, device: torch.device) -> Comparison:
    """Compare our step with lightly's, in float32."""
    network, optimizer = start(spec, device)
    batch = random_batch(2, spec.batch_size, SIZE, device)
    meter = Meter()

    def ours() -> None:
        train_step(spec, network, optimizer, meter, batch, lr=LEARNING_RATE)

    assert isinstance(spec.method, BYOL)
    backbone = backbones.build(spec.backbone, seed=0).to(device, memory_format=torch.channels_last)
    return in_turns(
        ours, lightly_step(backbone, spec.method.heads, batch.views), rounds=rounds, device=device
    )


def lightly_step(backbone: Any, heads: Heads, views: list[Tensor]) -> Callable[[], None]:
    """Return a step of lightly's BYOL on two views."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, get_weight_decay_parameters, update_momentum
    from lightly.utils.lars import LARS
    from lightly.utils.scheduler import cosine_schedule

    device = views[0].device
    projector = BYOLProjectionHead(backbone.num_features, heads.hidden, heads.output).to(device)
    predictor = BYOLPredictionHead(heads.output, heads.hidden, heads.output).to(device)
    online = nn.Sequential(backbone, projector)
    target = copy.deepcopy(online)
    deactivate_requires_grad(target)
    weights, exempt = get_weight_decay_parameters([online, predictor])
    groups = [{"params": weights}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = LARS(groups, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-5)
    criterion = NegativeCosineSimilarity()

    def step() -> None:
        update_momentum(online, target, m=cosine_schedule(0, 100, 0.99, 1.0))
        with torch.no_grad():
            targets = [target(view) for view in views]
        predictions = [predictor(online(view)) for view in views]
        loss = 0.5 * (criterion(predictions[0], targets[1]) + criterion(predictions[1], targets[0]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _pipelines(spec: Pretrain, rounds: int) -> Comparison:
    """Compare our two views of each image of a batch with lightly's, on one core."""
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from PIL import Image

    n = spec.batch_size
    coarse = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    pixels = (255 * nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")).to(torch.uint8)
    sizes, indices = torch.full((n, 2), SIDE), torch.arange(n)
    images = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in pixels]
    transform = BYOLTransform(BYOLView1Transform(input_size=SIZE), BYOLView2Transform(input_size=SIZE))
    return in_turns(
        lambda: draw_batch(spec, pixels, sizes, indices),
        lambda: [transform(image) for image in images],
        rounds=rounds,
        device=torch.device("cpu"),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(quick=options("bench.bench_lightly", __doc__).quick)))
