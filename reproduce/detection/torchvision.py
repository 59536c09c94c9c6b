"""The engine that needs no installation: torchvision's detectors in one process.

The encoder's backbone is part of the detector (`detector.py`). The engine honours every setting of the
protocol, but it differs from Detectron2, so its numbers cannot replace Detectron2's. All randomness in a
step follows from the run's seed and the step's number. An interrupted training therefore resumes from its
checkpoint and ends with the numbers of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from reproduce.detection import examples, record, stream
from reproduce.detection.examples import decoders
from reproduce.detection.predictions import Predicted
from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import distributed, seeds
from reproduce.nn.keeper import Keeper
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.data.detection import Annotated, DetectionDataset, Picture
    from reproduce.nn.encoder import Encoder
    from reproduce.protocols.detection import Detection

TESTED_TOGETHER = 8
"""Maximum number of test images per batch. A batch contains images of the same size only, so that none is
padded."""

Batch = Sequence[tuple["Tensor", dict[str, "Tensor"]]]
"""Images and their targets, on the CPU."""


def check(site: Site) -> None:
    """Accept every machine: torchvision is one of the suite's own requirements."""


def check_for(protocol: Detection, backbone: str, dataset: DetectionDataset) -> None:
    """Accept every backbone and all settings."""


def fine_tune(
    protocol: Detection,
    encoder: Encoder,
    dataset: DetectionDataset,
    train: Annotated,
    test: Annotated,
    site: Site,
    device: torch.device,
    seed: int,
    watch: Watch,
) -> dict[str, float]:
    """Fine-tune and test a copy of the encoder's backbone; return `protocol.metrics` as fractions.

    Raises:
        FloatingPointError: The loss is not finite.
        ValueError: The run has several processes, torchvision does not have a setting, an image is broken, no
            image can be trained on, the splits have different classes, or the checkpoint was trained on other
            images.
    """
    from reproduce.detection import detector as models

    if distributed.world_size() > 1:
        raise InvalidError(
            f"The engine torchvision runs in one process, not in {distributed.world_size()}: "
            "use engine=detectron2."
        )
    if train.classes != test.classes:
        raise InvalidError(
            f"{dataset.name} trains on {len(train.classes)} classes and tests on {len(test.classes)}: "
            "they must be the same."
        )
    num_classes = len(train.classes)
    detector = models.build(protocol, encoder.backbone, dataset, num_classes=num_classes, seed=seed)
    detector = detector.to(device)
    trained_on = protocol.schedule.iterations * protocol.batch_size
    shown = trained_on + len(test.pictures)
    fit(detector, protocol, train, site, device, seed, watch.part(0, shown))
    found = detect(models.test_mode(detector, protocol), test, site, device, watch.part(trained_on, shown))
    scores = record.tested(protocol, test, found, watch)
    return {
        f"{prefix}{key}": getattr(each, key)
        for prefix, each in scores.items()
        for key in ("ap", "ap50", "ap75")
    }


def fit(
    detector: Any,
    protocol: Detection,
    train: Annotated,
    site: Site,
    device: torch.device,
    seed: int,
    watch: Watch,
) -> None:
    """Train the detector, resuming from the newest checkpoint in the folder of `watch` if there is one.

    Raises:
        FloatingPointError: The loss is not finite.
        Interrupted: The run received a stop request. A checkpoint contains the work done so far.
        ValueError: No image can be trained on, or the checkpoint was trained on other images.
    """
    from reproduce.detection.detector import parameter_groups

    iterations, size = protocol.schedule.iterations, protocol.batch_size
    optimizer = torch.optim.SGD(
        parameter_groups(detector, protocol), lr=protocol.rate(0), momentum=protocol.momentum
    )
    kept = Keeper(watch, {"list of images": train.digest}, seconds=site.checkpoint_seconds)
    first = _resume(detector, optimizer, kept)
    shown = batches(protocol, train, site, seed, first, iterations + protocol.precise_bn_iterations)
    detector.train()
    with kept.interruptible() as due:
        for iteration, batch in enumerate(islice(shown, iterations - first), first):
            lr = protocol.rate(iteration)
            for group in optimizer.param_groups:
                group["lr"] = lr
            losses = _losses(detector, protocol, batch, device, seed, iteration)
            loss = torch.stack(list(losses.values())).sum()
            measured = {"loss": loss.item()} | {name: each.item() for name, each in losses.items()}
            if not math.isfinite(measured["loss"]):
                terms = ", ".join(f"{name} = {value:g}" for name, value in measured.items())
                raise FloatingPointError(
                    f"The loss is not finite at step {iteration + 1}: {terms}. A lower base_lr may help."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done = iteration + 1
            if done % record.LOG_EVERY == 0 or done == iterations:
                watch.record.log(done, measured | {"lr": lr})
            watch.report(Progress(done * size, iterations * size, "images", f"loss {measured['loss']:.3g}"))
            end = done == iterations  # where there always is one, as the test may be interrupted too
            if due() or end:
                kept.save(_state(detector, optimizer, done), iteration, 1, 1, last=end)
    _precise_batchnorm(detector, protocol, shown, device, seed)


def batches(
    protocol: Detection, train: Annotated, site: Site, seed: int, start: int, stop: int
) -> Iterator[Batch]:
    """Yield the batches number `start` to `stop` - 1 of a training, before augmentation.

    Raises:
        ValueError: No image can be trained on, or an image is broken.
    """
    pictures = examples.usable(train.trainable, masks=protocol.masks)
    if not pictures:
        raise InvalidError(f"{train.origin}: no training image has an object to learn from.")
    shown = stream.share(
        pictures, batch_size=protocol.batch_size, group=protocol.group, seed=seed, start=start
    )
    size = protocol.batch_size
    groups = ([pictures[index] for _, index in islice(shown, size)] for _ in range(start, stop))

    def example(picture: Picture) -> tuple[Tensor, dict[str, Tensor]]:
        return examples.pixels(picture), examples.target(picture, masks=protocol.masks)

    return examples.prepared(groups, example, decoders(site))


def detect(detector: Any, test: Annotated, site: Site, device: torch.device, watch: Watch) -> list[Predicted]:
    """Return the detections of each image, in the order of the images."""
    same_size = [list(some) for _, some in groupby(test.pictures, key=lambda each: (each.width, each.height))]
    groups = [
        some[begin : begin + TESTED_TOGETHER]
        for some in same_size
        for begin in range(0, len(some), TESTED_TOGETHER)
    ]
    found: list[Predicted] = []
    with torch.no_grad():
        for group, images in zip(
            groups, examples.prepared(groups, examples.pixels, decoders(site)), strict=True
        ):
            outputs = detector([image.to(device) for image in images])
            found += [_predicted(each, output) for each, output in zip(group, outputs, strict=True)]
            watch.report(Progress(len(found), len(test.pictures), "images", "testing"))
    return found


def _losses(
    detector: Any, protocol: Detection, batch: Batch, device: torch.device, seed: int, iteration: int
) -> dict[str, Tensor]:
    """Return the terms of the loss of a batch.

    Flips, sizes and the sampled proposals follow from `seed` and `iteration`.
    """
    with _random(device, "detection", seed, iteration):
        flips = (torch.rand(len(batch)) < protocol.flip).tolist()
        images, targets = zip(
            *(examples.flipped(*each) if flip else each for each, flip in zip(batch, flips, strict=True)),
            strict=True,
        )
        moved = [{key: value.to(device) for key, value in target.items()} for target in targets]
        losses: dict[str, Tensor] = detector([image.to(device) for image in images], moved)
        return losses


@contextmanager
def _random(device: torch.device, purpose: str, *counters: int) -> Iterator[None]:
    """Set the global random state from `purpose` and `counters`, and restore the previous one afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seeds.seed(purpose, *counters))
        yield


def _precise_batchnorm(
    detector: Any, protocol: Detection, shown: Iterator[Batch], device: torch.device, seed: int
) -> None:
    """Set BatchNorm's test statistics to their means over the batches that are left in `shown`.

    Follows fvcore/nn/precise_bn.py.
    """
    norms = [
        module
        for module in detector.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if not protocol.precise_bn_iterations:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches in place of a moving average
    with torch.no_grad():
        for number, batch in enumerate(shown, protocol.schedule.iterations):
            _losses(detector, protocol, batch, device, seed, number)


def _resume(detector: Any, optimizer: Any, kept: Keeper) -> int:
    """Restore the newest checkpoint, and return the number of finished steps."""
    if kept.saved is None:
        return 0
    detector.load_state_dict(kept.saved["detector"])
    optimizer.load_state_dict(kept.saved["optimizer"])
    return int(kept.saved["iteration"])


def _state(detector: Any, optimizer: Any, iteration: int) -> dict[str, Any]:
    """Return what a training needs to resume after `iteration` steps."""
    return {"detector": detector.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}


def _predicted(each: Picture, output: dict[str, Tensor]) -> Predicted:
    """Return the detections of one image, with labels from 0 and masks encoded for scoring."""
    arrays = {key: value.cpu().numpy() for key, value in output.items()}
    return Predicted(
        id=each.id,
        boxes=arrays["boxes"].astype("float64"),
        scores=arrays["scores"].astype("float64"),
        labels=arrays["labels"].astype("int64") - 1,
        masks=_encoded(output["masks"]) if "masks" in output else None,
    )


def _encoded(masks: Tensor) -> tuple[dict[str, Any], ...]:
    """Return run-length encodings of the pixels whose probability is at least a half.

    Args:
        masks: probabilities, (n, 1, height, width).
    """
    import numpy as np
    from pycocotools import mask

    inside = (masks[:, 0] >= 0.5).to(torch.uint8).cpu().numpy()
    return tuple(mask.encode(np.asfortranarray(each)) for each in inside)
