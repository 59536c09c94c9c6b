"""A training step of each method over its backbone and heads alone, and over lightly's step.

    python -m bench methods       # about 9 minutes on two CPU cores; at most 1.15 on a ResNet-18 at 64 px

The first comparison is the cost of a method's loss, queue, codes or whitening, and of its optimiser. Both
sides pass the same views through the same networks, forward and, where the method trains, backward. The
second comparison needs lightly (lightly-ai/lightly, MIT): the same backbone with lightly's heads, its loss
and torch's SGD. A ratio below 1 means that ours is faster.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from bench.bench_step import LEARNING_RATE, random_batch
from bench.command import options
from bench.compare import in_turns, machine, prepare, record
from configs import baselines, pretrain, scales
from configs.evaluate import linear
from reproduce.methods.method import Batch
from reproduce.nn import backbones
from reproduce.nn.heads import Head
from reproduce.spec import Pretrain
from reproduce.train import Meter, start, train_step

BAR = 1.15
ROUNDS = 5
FIRST_EPOCH = {"la": "npid_epochs", "pcl": "cluster_epoch"}
"""Setting with the first epoch that has the whole loss, by method."""
Loss = Callable[[nn.Module, list[Tensor]], Tensor]
"""Function of a backbone and the views of a step."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method in the setting of the comparison."""

    title: str
    run: Callable[[], Pretrain]
    """Function that returns the recipe at paper scale."""
    theirs: Callable[[int], tuple[list[nn.Module], Loss]] | None = None
    """Function of the number of features that returns lightly's heads and the loss that they take part in."""

    def spec(self, quick: bool, device: torch.device) -> Pretrain:
        """Return the run at small scale, on a ResNet-18 at 64 px; in float32 with 64 images on a CPU."""
        run = scales.small(linear(self.run()))
        assert not isinstance(run, str)
        assert isinstance(run.encoder, Pretrain)
        spec, on_cpu = run.encoder, device.type == "cpu"
        if spec.method.name == "wmse":  # sub-batches of 64 images
            spec = spec.replace("method.w_size", 64).replace("method.head", Head(widths=(1024, 32)))
        if spec.method.name == "obow":  # the last map is too small here
            spec = spec.replace("method.levels", ("conv4",))
        if spec.method.name in FIRST_EPOCH:  # the batch is of epoch 0, which has another loss
            spec = spec.replace(f"method.{FIRST_EPOCH[spec.method.name]}", 0)
        return replace(
            spec,
            backbone="small" if quick else "resnet18",
            batch_size=64 if on_cpu else 512,
            precision="float32" if on_cpu else "bfloat16",
        )


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Return one record for each method, and one for each method of lightly."""
    device = prepare()
    return [found for case in (CASES[:1] if quick else CASES) for found in _records(case, quick, device)]


def _records(case: Case, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    spec, rounds = case.spec(quick, device), 1 if quick else ROUNDS
    network, optimizer = start(spec, device, num_images=9469)
    batch = _batch(spec, device)
    meter = Meter()

    def step() -> None:
        train_step(spec, network, optimizer, meter, batch, lr=LEARNING_RATE)

    alone = networks_alone(network, step)
    over_networks = in_turns(step, alone, rounds=rounds, device=device)
    bar = None if quick else BAR
    found = [_record(f"{case.title}: step over networks alone", over_networks, device, bar)]
    if case.theirs:
        title, installed = f"{case.title}: step over lightly's", find_spec("lightly") is not None
        if not installed:
            return [*found, record("methods", title, None, unit="x", detail="lightly is not installed")]
        over_theirs = in_turns(step, lightly_step(case, spec, batch, device), rounds=rounds, device=device)
        found.append(_record(title, over_theirs, device, None))
    return found


def _batch(spec: Pretrain, device: torch.device) -> Batch:
    """Return noise in the shapes of the run's views."""
    size, num_views = spec.dataset.size, spec.method.num_views
    sizes = [spec.augmentation.size_of_view(view, size) for view in range(num_views)]
    batch = random_batch(num_views, spec.batch_size, size, device)
    return replace(
        batch, views=[view[..., :side, :side] for view, side in zip(batch.views, sizes, strict=True)]
    )


def networks_alone(network: Any, step: Callable[[], None]) -> Callable[[], None]:
    """Return a function that repeats the passes of `step` through the networks, and nothing else.

    One step is executed to see them. A pass of the online network with gradients is followed by its backward
    pass, from a gradient of random numbers.
    """
    passes: list[tuple[nn.Module, tuple[Tensor, ...], bool]] = []

    def seen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passes.append((module, inputs, torch.is_grad_enabled()))

    parts = [part for part in (network.online, network.target) if part is not None]
    handles = [part.register_forward_pre_hook(seen) for part in parts]
    step()
    for handle in handles:
        handle.remove()

    def alone() -> None:
        for module, inputs, trained in passes:
            with torch.set_grad_enabled(trained):
                outputs = module(*inputs)
            if trained:
                outputs.p.backward(torch.ones_like(outputs.p))
        network.online.zero_grad(set_to_none=True)

    return alone


def lightly_step(case: Case, spec: Pretrain, batch: Batch, device: torch.device) -> Callable[[], None]:
    """Return a step of lightly's method on the same views."""
    assert case.theirs is not None
    backbone = backbones.build(spec.backbone, seed=0).to(device, memory_format=torch.channels_last)
    heads, loss_of = case.theirs(backbone.num_features)
    network = nn.ModuleList([backbone, *heads]).to(device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss_of(backbone, batch.views).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _simclr(features: int) -> tuple[list[nn.Module], Loss]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    projector, criterion = SimCLRProjectionHead(features, 1024, 128), NTXentLoss(temperature=0.1)

    def loss(backbone: nn.Module, views: list[Tensor]) -> Tensor:
        first, second = projector(backbone(torch.cat(views))).chunk(2)
        return criterion(first, second)  # type: ignore[no-any-return]

    return [projector], loss


def _moco(features: int) -> tuple[list[nn.Module], Loss]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum

    projector = MoCoProjectionHead(features, 2048, 128)
    followers: list[nn.Module] = []
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))

    def loss(backbone: nn.Module, views: list[Tensor]) -> Tensor:
        if not followers:
            followers.extend(copy.deepcopy(part).requires_grad_(False) for part in (backbone, projector))
        update_momentum(backbone, followers[0], m=0.99)
        update_momentum(projector, followers[1], m=0.99)
        query = projector(backbone(views[0]))
        order = torch.randperm(len(views[1]))
        with torch.no_grad():
            keys = followers[1](followers[0](views[1][order]))[order.argsort()]
        return criterion(query, keys)  # type: ignore[no-any-return]

    return [projector], loss


def _simsiam(features: int) -> tuple[list[nn.Module], Loss]:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

    projector, predictor = SimSiamProjectionHead(features, 2048, 2048), SimSiamPredictionHead(2048, 512, 2048)
    criterion = NegativeCosineSimilarity()

    def loss(backbone: nn.Module, views: list[Tensor]) -> Tensor:
        z = [projector(backbone(view)) for view in views]
        p = [predictor(each) for each in z]
        return (criterion(p[0], z[1].detach()) + criterion(p[1], z[0].detach())) / 2  # type: ignore[no-any-return]

    return [projector, predictor], loss


def _swav(features: int) -> tuple[list[nn.Module], Loss]:
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

    projector, prototypes = SwaVProjectionHead(features, 2048, 128), SwaVPrototypes(128, 3000)
    criterion = SwaVLoss()

    def loss(backbone: nn.Module, views: list[Tensor]) -> Tensor:
        prototypes.normalize()
        sizes = dict.fromkeys(view.shape[-1] for view in views)
        by_size = [torch.cat([view for view in views if view.shape[-1] == size]) for size in sizes]
        z = nn.functional.normalize(projector(torch.cat([backbone(each) for each in by_size])), dim=1)
        scores = prototypes(z).chunk(len(views))
        return criterion(list(scores[:2]), list(scores[2:]))  # type: ignore[no-any-return]

    return [projector, prototypes], loss


def _barlow_twins(features: int) -> tuple[list[nn.Module], Loss]:
    from lightly.loss import BarlowTwinsLoss
    from lightly.models.modules import BarlowTwinsProjectionHead

    return _two_views(BarlowTwinsProjectionHead(features, 2048, 2048), BarlowTwinsLoss())


def _vicreg(features: int) -> tuple[list[nn.Module], Loss]:
    from lightly.loss import VICRegLoss
    from lightly.models.modules.heads import VICRegProjectionHead

    return _two_views(VICRegProjectionHead(features, 2048, 2048), VICRegLoss())


def _two_views(projector: nn.Module, criterion: nn.Module) -> tuple[list[nn.Module], Loss]:
    """Return a method whose loss compares the projections of two views."""

    def loss(backbone: nn.Module, views: list[Tensor]) -> Tensor:
        z: list[Tensor] = [projector(backbone(view)) for view in views]
        return criterion(*z)  # type: ignore[no-any-return]

    return [projector], loss


def _wmse(features: int) -> tuple[list[nn.Module], Loss]:
    from lightly.loss.wmse_loss import WMSELoss

    projector = nn.Sequential(
        nn.Linear(features, 1024), nn.BatchNorm1d(1024), nn.ReLU(inplace=True), nn.Linear(1024, 32)
    )
    criterion = WMSELoss(embedding_dim=32, w_size=64, num_samples=4)

    def loss(backbone: nn.Module, views: list[Tensor]) -> Tensor:
        return criterion(projector(torch.cat([backbone(view) for view in views])))  # type: ignore[no-any-return]

    return [projector], loss


CASES = (
    Case(title="BYOL", run=lambda: pretrain.byol(pretrain.imagenet100)),
    Case(title="MSBReg, K = 4", run=lambda: pretrain.msbreg(pretrain.imagenet100)),
    Case(title="SimCLR", run=lambda: baselines.simclr_1000_imagenet(), theirs=_simclr),
    Case(title="MoCo v2", run=lambda: baselines.moco_v2_imagenet(200, symmetric=False), theirs=_moco),
    Case(title="Wang and Isola", run=baselines.wang_isola_imagenet100),
    Case(title="SimSiam", run=lambda: baselines.simsiam_imagenet(100), theirs=_simsiam),
    Case(title="SwAV, two views", run=lambda: baselines.swav_two_views_imagenet(100), theirs=_swav),
    Case(title="SwAV, multi-crop", run=lambda: baselines.swav_imagenet(100), theirs=_swav),
    Case(title="Barlow Twins", run=lambda: baselines.barlow_twins_imagenet(1000), theirs=_barlow_twins),
    Case(title="VICReg", run=lambda: baselines.vicreg_imagenet(1000), theirs=_vicreg),
    Case(title="W-MSE 4", run=baselines.wmse_imagenet100, theirs=_wmse),
    Case(title="NPID", run=baselines.npid_imagenet),
    Case(title="LA", run=baselines.la_imagenet),
    Case(title="PCL", run=baselines.pcl_imagenet),
    Case(title="PIRL", run=baselines.pirl_imagenet),
    Case(title="OBoW", run=baselines.obow_imagenet),
    Case(title="PixPro", run=baselines.pixpro_imagenet),
)


def _record(title: str, found: Any, device: torch.device, bar: float | None) -> dict[str, Any]:
    times = f"{1000 * found.first:.1f} ms over {1000 * found.second:.1f} ms"
    return record("methods", title, found.ratio, unit="x", detail=f"{times}; {machine(device)}", at_most=bar)


if __name__ == "__main__":
    print(json.dumps(measure(quick=options("bench.bench_methods", __doc__).quick)))
