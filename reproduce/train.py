"""Self-supervised pretraining, from the first batch to the encoder: the one training loop of every method.

Everything random follows from the spec's seed and from counters (epoch, image, view, step), never from a
generator's state, so a run that is resumed ends with the weights of one that was not interrupted, and any
number of processes sees the same batches, views and noise.

Checkpoints are written after whole epochs, and after the step under way when the run is told to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from reproduce.data import views
from reproduce.data.images import Batch, Images, batches
from reproduce.messages import InvalidError
from reproduce.methods.method import Part
from reproduce.nn import backbones, collapse, distributed, schedules, seeds
from reproduce.nn.encoder import FILE, Encoder
from reproduce.nn.lars import LARS, parameters_of
from reproduce.nn.sync_batchnorm import sync_batchnorm
from reproduce.runs import checkpoint, environment, interrupt
from reproduce.runs.progress import Progress, Record
from reproduce.site import Site
from reproduce.spec import Pretrain

if TYPE_CHECKING:
    from torch import Tensor

LOG_EVERY = 50
"""Steps between two logged points; the last step of an epoch is always logged."""


def pretrain(
    spec: Pretrain,
    site: Site,
    folder: Path,
    device: torch.device,
    record: Record,
    report: Callable[[Progress], None],
    hold: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Trains the encoder of `spec` and writes it to `folder`.

    Args:
        site: says how often checkpoints are written, among other things that move no number.
        folder: holds the checkpoints; training goes on from the newest that is whole.
        record: takes what is measured.
        report: called after every step.
        hold: called before a checkpoint or the encoder is written; raises when another process has taken the
            run over.

    Returns:
        The measurements of the last epoch: loss, its terms, std and rank of the embeddings, images/s.

    Raises:
        FloatingPointError: the loss is no longer finite.
        Interrupted: the run is told to stop; what it has done is in a checkpoint.
        ValueError: a batch is larger than the data set, or the checkpoint was trained on other images.
    """
    method, dataset = spec.method, spec.dataset
    images = dataset.load(dataset.pretrain_split, site)
    if spec.precision == "bfloat16" and device.type == "cpu":
        raise InvalidError("precision is bfloat16, which is for GPUs: on a CPU, --set precision=float32.")
    steps_per_epoch = len(images) // spec.batch_size
    if steps_per_epoch == 0:
        raise InvalidError(
            f"batch_size is {spec.batch_size}, but {spec.dataset.name} has only {len(images)} images to pretrain on."
        )
    if spec.batch_size % distributed.world_size():
        raise InvalidError(
            f"batch_size {spec.batch_size} does not divide into {distributed.world_size()} equal shares: set another `devices`."
        )
    num_steps, warmup_steps = spec.epochs * steps_per_epoch, spec.optimizer.warmup_epochs * steps_per_epoch
    peak_lr = spec.optimizer.peak_lr(spec.batch_size, method.num_views)

    digest = images.digest if distributed.main_process() else ""
    record.tag("data_digest", digest)
    network, optimizer = start(spec, device)
    meter = Meter()
    first_epoch, first_index, measured = 0, 0, dict[str, float]()
    saved = checkpoint.latest(folder)
    if saved is not None:
        if distributed.main_process() and saved["data"] != digest:
            raise InvalidError(
                f"The images of {dataset.name} are not those that the checkpoint in {folder} was trained on: remove it to start anew."
            )
        if saved["commit"] != environment.code()[0]:
            record.tag("resumed_from_commit", saved["commit"])
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        first_epoch, measured = saved["epoch"], saved["measured"]
        if "step" in saved:  # older ones are of whole epochs only
            first_index = saved["step"]
            meter.load_state_dict(saved["meter"], device)
    if distributed.world_size() > 1:
        network.online = DistributedDataParallel(network.online)

    with interrupt.deferred() as asked:
        for epoch in range(first_epoch, spec.epochs):
            first = first_index if epoch == first_epoch else 0
            for index, (canvas, sizes, which) in enumerate(
                _batches(spec, site, images, epoch, steps_per_epoch, first), first
            ):
                step, last = epoch * steps_per_epoch + index, index + 1 == steps_per_epoch
                lr = schedules.learning_rate(
                    step, peak=peak_lr, warmup_steps=warmup_steps, num_steps=num_steps
                )
                batch = draw_views(spec, canvas.to(device, non_blocking=True), sizes, which, epoch)
                followed = train_step(
                    spec, network, optimizer, meter, batch, step=step, num_steps=num_steps, lr=lr
                )
                if (step + 1) % LOG_EVERY == 0 or last:
                    measured = meter.read(step) | {"lr": lr, **followed}
                    record.log(step + 1, measured)
                report(
                    Progress(
                        (step + 1) * spec.batch_size,
                        num_steps * spec.batch_size,
                        "images",
                        f"epoch {epoch + 1}/{spec.epochs}",
                    )
                )
                stopping = distributed.anyone(bool(asked()))
                if stopping or (
                    last and ((epoch + 1) % site.checkpoint_every == 0 or epoch + 1 == spec.epochs)
                ):
                    done = (epoch + 1, 0) if last else (epoch, index + 1)
                    state = _state(network, optimizer, meter, *done, measured, digest)
                    if distributed.main_process():
                        hold()
                        record.flush()  # a run that is resumed from this checkpoint does not measure again what came before
                        checkpoint.save(folder, state, done[0], step=done[1], steps=steps_per_epoch)
                if stopping:
                    distributed.agreed(
                        True
                    )  # the others wait for the file: torchrun ends all processes as soon as one has ended
                    interrupt.stop(asked() or interrupt.ELSEWHERE)
    online = distributed.unwrapped(network.online)
    if distributed.main_process():
        hold()
        encoder_of(spec, online).save(folder)
    return measured


def build_network(spec: Pretrain) -> Any:
    """Build the network of a pretraining run with the initial weights that follow from its seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed("weights", spec.seed))
        return spec.method.network(backbones.build(spec.backbone))


def encoder_of(spec: Pretrain, online: Any, digest: str = "") -> Encoder:
    """Return the encoder in the online network of the run of `spec`."""
    return Encoder(
        spec.backbone,
        online.backbone,
        online.projector,
        spec.id,
        digest,
        augmentation=spec.augmentation,
        precision=spec.precision,
    )


def load_encoder(spec: Pretrain, folder: Path, device: torch.device) -> Encoder:
    """Return the encoder that the run of `spec` left in `folder`, in eval mode on `device`.

    Raises:
        LookupError: the file does not exist.
        ValueError: the file is broken or belongs to another run.
    """
    online = build_network(spec).online
    tensors = checkpoint.load_encoder(folder / FILE, spec_id=spec.id)
    for part in ("backbone", "projector"):
        getattr(online, part).load_state_dict(
            {
                key.removeprefix(f"{part}."): value
                for key, value in tensors.items()
                if key.startswith(f"{part}.")
            }
        )
    online.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return encoder_of(spec, online, checkpoint.digest(tensors))


def start(spec: Pretrain, device: torch.device) -> tuple[Any, LARS]:
    """The network of `spec` with its initial weights, ready to train on `device`, and its optimiser."""
    network: Any = build_network(spec).to(device=device, memory_format=torch.channels_last)
    network = sync_batchnorm(network).train()
    optimizer = LARS(
        parameters_of(network.online),
        weight_decay=spec.optimizer.weight_decay,
        momentum=spec.optimizer.momentum,
        trust_coefficient=spec.optimizer.trust_coefficient,
    )
    return network, optimizer


def train_step(
    spec: Pretrain,
    network: Any,
    optimizer: LARS,
    meter: Meter,
    batch: list[Tensor],
    *,
    step: int,
    num_steps: int,
    lr: float,
) -> dict[str, float]:
    """Step `step` (from 0) of `num_steps`: the loss forward and backward, part by part, the optimiser's step,
    the target's update.

    Args:
        batch: the K views of this process's images, as `draw_views` makes them.

    Returns:
        What the method wants logged beside its loss.
    """
    method = spec.method
    parts = method.parts(network, batch, seed=spec.seed, step=step)
    for part in _backward(network, parts, method.num_parts, batch[0].device, spec.precision):
        meter.add(part)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    meter.count(spec.batch_size)
    return method.after_step(network, step=step, num_steps=num_steps)


class Meter:
    """Sums what the parts of the steps measured since it was last read; stays on the device until then."""

    def __init__(self) -> None:
        self._embeddings: Tensor | None = None
        self._start()

    def _start(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._since = time.perf_counter()

    def add(self, part: Part) -> None:
        """One part of one step."""
        for name, value in {"loss": part.loss, **part.terms}.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._embeddings = part.embeddings

    def count(self, images: int) -> None:
        """The end of a step of `images` images."""
        self._steps += 1
        self._images += images

    def read(self, step: int) -> dict[str, float]:
        """Means over the steps since the last reading, the state of the newest embeddings, images/s; starts
        anew.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        assert self._embeddings is not None
        means = {name: distributed.mean(total / self._steps) for name, total in self._sums.items()}
        if not math.isfinite(means["loss"]):
            terms = ", ".join(f"{name} = {value:g}" for name, value in means.items())
            raise FloatingPointError(
                f"The loss is no longer finite at step {step + 1}: {terms}. A lower base_lr or a longer warm-up may help."
            )
        state = collapse.measure(distributed.gather(self._embeddings))
        rate = self._images / (time.perf_counter() - self._since)
        self._start()
        return means | state | {"images_per_second": rate}

    def state_dict(self) -> dict[str, Any]:
        """What it has summed since it was last read, of every process; all of them must ask."""
        sums = {
            name: distributed.gather(total.reshape(1)).cpu() for name, total in self._sums.items()
        }  # (processes,)
        return {
            "sums": sums,
            "steps": self._steps,
            "images": self._images,
            "seconds": time.perf_counter() - self._since,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from what `state_dict` gave. Another number of processes shares the sums alike, as only
        their mean is read."""
        alike = {len(total) == distributed.world_size() for total in state["sums"].values()} == {True}
        self._sums = {
            name: (total[distributed.rank()] if alike else total.mean()).to(device)
            for name, total in state["sums"].items()
        }
        self._steps, self._images = state["steps"], state["images"]
        self._since = time.perf_counter() - state["seconds"]


def _batches(
    spec: Pretrain, site: Site, images: Images, epoch: int, steps: int, first: int
) -> Iterator[Batch]:
    """This process's share of the epoch's batches from number `first` on: canvases (uint8), original sizes
    and image indices.

    A batch is cut into contiguous shares, in the order of the ranks, so that gathered rows are in the order
    of one process.
    """
    order = torch.randperm(len(images), generator=seeds.generator("order", spec.seed, epoch))[
        : steps * spec.batch_size
    ]
    share = spec.batch_size // distributed.world_size()
    mine = order.view(steps, distributed.world_size(), share)[first:, distributed.rank()].reshape(-1)
    canvas = spec.dataset.canvas
    yield from batches(images, mine, share, canvas=canvas, workers=site.workers)


def draw_views(spec: Pretrain, canvas: Tensor, sizes: Tensor, which: Tensor, epoch: int) -> list[Tensor]:
    """The K normalised views of a batch, each (images, 3, size, size) in the run's precision; in multi-crop
    their sizes differ.

    Autocast would round a float32 view to bfloat16 in the first layer of both networks: the numbers are the
    same, the memory is half.
    """
    method, dataset, augmentation = spec.method, spec.dataset, spec.augmentation
    sampled = views.sample_all(
        canvas,
        sizes,
        which,
        augmentation=augmentation,
        size=dataset.size,
        seed=spec.seed,
        epoch=epoch,
        num_views=method.num_views,
    )
    dtype = torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
    return [
        views.normalise(view, dataset.mean, dataset.std).to(dtype, memory_format=torch.channels_last)
        for view in sampled
    ]


def _backward(
    network: Any, parts: Iterator[Part], num_parts: int, device: torch.device, precision: str
) -> Iterator[Part]:
    """Forward and backward of one part after the other; only the last synchronises gradients between
    processes."""
    for index in range(num_parts):
        alone = distributed.world_size() > 1 and index + 1 < num_parts
        with network.online.no_sync() if alone else nullcontext():
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                part = next(parts)
            part.loss.backward()  # type: ignore[no-untyped-call]
        yield part


def _state(
    network: Any,
    optimizer: LARS,
    meter: Meter,
    epoch: int,
    step: int,
    measured: dict[str, float],
    digest: str,
) -> dict[str, Any]:
    """What a run needs to go on after `epoch` epochs and `step` steps of the next; every process must ask."""
    weights = {key.replace("online.module.", "online."): value for key, value in network.state_dict().items()}
    return {
        "network": weights,
        "optimizer": optimizer.state_dict(),
        "meter": meter.state_dict(),
        "epoch": epoch,
        "step": step,
        "measured": measured,
        "data": digest,
        "commit": environment.code()[0],
    }
