"""Self-supervised pretraining, from the first batch to the encoder: the one training loop of every method.

All randomness follows from the spec's seed and from counters (epoch, image, view, step), never from the state
of a generator. A resumed run therefore ends with the weights of an uninterrupted one, and any number of
processes sees the same batches, views and noise.

Checkpoints are as far apart as the site says, and follow a step, which need not end an epoch. A thread writes
them from a copy. One is also written at the end, and after the current step if the run receives a stop
request.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from reproduce.data import inventory, views
from reproduce.data.ahead import ahead
from reproduce.data.images import CentreCrop, Images, Whole, batches, found_in
from reproduce.data.inventory import Inventory
from reproduce.data.originals import Originals
from reproduce.data.resident import Resident
from reproduce.messages import InvalidError, reason_of
from reproduce.methods.method import Batch, Epoch, Part
from reproduce.nn import backbones, collapse, compiled, distributed, probe_pictures, seeds
from reproduce.nn.encoder import FILE, Encoder
from reproduce.nn.group_batchnorm import average_statistics, group_batchnorm
from reproduce.nn.keeper import Checkpoints
from reproduce.nn.probe import Watching, spectrum
from reproduce.runs import checkpoint, cores, encoder_file, environment
from reproduce.runs.progress import Progress, Record, epoch_note, log_epoch
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.tracking.tags import PER_GPU, per_gpu

if TYPE_CHECKING:
    from torch import Tensor

LOG_EVERY = 50
"""Steps between two logged points. The last step of an epoch is always logged."""

logger = logging.getLogger(__name__)


def pretrain(
    spec: Pretrain,
    site: Site,
    folder: Path,
    device: torch.device,
    record: Record,
    report: Callable[[Progress], None],
    hold: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train the encoder of `spec` and write it to `folder`.

    Args:
        site: settings that do not change any number, such as the time between checkpoints.
        folder: folder of the checkpoints. Training resumes from the newest intact one of this run.
        record: receives the measurements.
        report: called after every step.
        hold: called before a checkpoint or the encoder is written. It raises if another process has taken
            over the run.

    Returns:
        The measurements of the last epoch: loss, its terms, std and rank of the embeddings, images/s. On a
        GPU also the peak of the memory of its tensors in 10^9 bytes, without CUDA's own.

    Raises:
        FloatingPointError: The loss is not finite.
        Interrupted: The run received a stop request. A checkpoint contains the work done so far.
        ValueError: A batch is larger than the data set, or the checkpoint was trained on other images.
    """
    # Set up: check the settings against the images and this machine, build the network and the optimiser.
    method, dataset = spec.method, spec.dataset
    images, found = inventory.load(dataset, dataset.pretrain_split, site, main=distributed.main_process())
    _check(spec, device, len(images))
    steps_per_epoch = len(images) // spec.batch_size
    num_steps = spec.epochs * steps_per_epoch

    network, optimizer = start(spec, device, len(images), recompute=site.recompute, compile_=site.compile)
    if device.type == "cuda":  # which must be initialised, as it is now
        torch.cuda.reset_peak_memory_stats(device)
    meter = Meter()

    # Resume from the run's newest intact checkpoint, if there is one.
    first_epoch, first_index, measured = 0, 0, dict[str, float]()
    saved = checkpoint.latest(folder, spec.id)
    if saved is not None:
        if distributed.main_process() and _other_images(saved, found):
            raise InvalidError(
                f"The checkpoint in {folder} was trained on other images than those of {dataset.name}: "
                "remove its files epoch-*.pt to start from scratch."
            )
        if saved["commit"] != environment.code()[0]:
            record.tag("resumed_from_commit", saved["commit"])
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        first_epoch, first_index, measured = saved["epoch"], saved["step"], saved["measured"]
        meter.load_state_dict(saved["meter"], device)
    record.facts(found.tags())  # after the check, so the record of a refused checkpoint keeps its data
    if distributed.world_size() > 1:  # only now, as checkpoints contain the network without this wrapper
        # Buffers are equal after each step. Within one, rank 0's would overwrite those of the others.
        network.online = DistributedDataParallel(network.online, broadcast_buffers=False)

    watching = _watching(spec, site, images, device)
    if watching and num_steps and saved is None:
        meter.leave_out(_draw_views(spec, images, watching, folder, record))

    # Loop over epochs and steps: train, log, probe, report, save.
    checkpoints = Checkpoints(folder, spec.id, seconds=site.checkpoint_seconds, record=record, hold=hold)

    def save_if_due(epoch: int, measured: dict[str, float]) -> None:
        """Save a checkpoint before the first step of an epoch if one is due; a stop request ends the run."""
        if checkpoints.due(whole=False):
            state = _state(network, optimizer, meter, epoch, 0, measured, found)
            checkpoints.save(state, epoch, 0, steps_per_epoch)

    shown = _batches(spec, site, images, device, first_epoch * steps_per_epoch + first_index)
    decoders = cores.decoders(site.workers, device.type)
    with (
        watching.decoding(decoders) if watching else nullcontext(),
        checkpoints.interruptible() as due,
        ahead(shown, device, tensors=lambda batch: batch.views) as prepared,
    ):
        for epoch in range(first_epoch, spec.epochs):
            first = first_index if epoch == first_epoch else 0
            if first == 0:
                may_stop = partial(save_if_due, epoch, measured)
                method.before_epoch(network, _epoch(spec, site, images, device, epoch, may_stop))
            for index in range(first, steps_per_epoch):
                # Train.
                step, last = epoch * steps_per_epoch + index, index + 1 == steps_per_epoch
                lr = spec.optimizer.rate(
                    step,
                    batch_size=spec.batch_size,
                    num_views=method.num_views,
                    steps_per_epoch=steps_per_epoch,
                    epochs=spec.epochs,
                )
                batch = next(prepared)
                followed = train_step(spec, network, optimizer, meter, batch, lr=lr)
                if (epoch, index) == (first_epoch, first_index):
                    record.facts(compiled.facts(network))
                    meter.leave_out(compiled.seconds(network))

                # Log and report.
                if (step + 1) % LOG_EVERY == 0 or last:
                    measured = meter.read(step) | {"lr": lr, **followed}
                    record.log(step + 1, measured)
                if watching and last:
                    trained = (step + 1 - first_epoch * steps_per_epoch - first_index, num_steps)
                    meter.leave_out(_probe(spec, network, watching, folder, record, step + 1, *trained))
                seen, total = (step + 1) * spec.batch_size, num_steps * spec.batch_size
                report(Progress(seen, total, "images", epoch_note(epoch + 1, spec.epochs, measured)))
                if last and distributed.main_process():
                    log_epoch(epoch + 1, spec.epochs, measured)

                # Save a checkpoint if one is due, at the end, and before a stop, which `save` makes.
                end = step + 1 == num_steps
                if due(last) or end:
                    done = (epoch + 1, 0) if last else (epoch, index + 1)
                    state = _state(network, optimizer, meter, *done, measured, found)
                    checkpoints.save(state, epoch, index + 1, steps_per_epoch, last=end)

    # Save the encoder.
    online = distributed.unwrapped(network.online)
    if distributed.main_process():
        hold()
        encoder_of(spec, online).save(folder)
        if watching and (folder / probe_pictures.NEAREST).is_file():
            _upload(folder / probe_pictures.NEAREST, record)
    if device.type == "cuda":
        record.tag(PER_GPU, per_gpu(spec, distributed.world_size(), recompute=site.recompute))
        measured = measured | {"peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    return measured


def _watching(spec: Pretrain, site: Site, images: Images, device: torch.device) -> Watching | None:
    """Return the probe of this run, or None if this process does not measure."""
    if not distributed.main_process():
        return None
    passes = sum(spec.method.passes(view) for view in range(spec.method.num_views))
    watching = Watching(site.probe_every, spec.dataset, images, device, passes=passes)
    return watching if watching.on else None


def _draw_views(spec: Pretrain, images: Images, watching: Watching, folder: Path, record: Record) -> float:
    """Record the views that some images have in the first epoch, and return the seconds it took."""
    began = time.perf_counter()
    try:
        (folder / probe_pictures.NEAREST).unlink(missing_ok=True)  # of an earlier run of these settings
        which = watching.chosen.held_out[: probe_pictures.IMAGES]
        pixels, sizes, indices = images.decode(which, _shape(spec))
        sampled = views.sample_all(
            pixels,
            sizes,
            indices,
            augmentation=spec.augmentation,
            size=spec.dataset.size,
            seed=spec.seed,
            epoch=0,
            num_views=spec.method.num_views,
        )
        rows = list(zip(*((view * 255).round().byte() for view in sampled.views), strict=True))
        probe_pictures.grid(folder / probe_pictures.VIEWS, rows)
    except Exception as error:  # a picture is worth no run
        logger.warning("The picture of the views is missing: %s", reason_of(error))
    else:
        _upload(folder / probe_pictures.VIEWS, record)
    return time.perf_counter() - began


def _probe(
    spec: Pretrain,
    network: Any,
    watching: Watching,
    folder: Path,
    record: Record,
    step: int,
    trained: int,
    num_steps: int,
) -> float:
    """Measure the network if that is due after `step` steps, and return the seconds it took.

    After the last step, the spectrum is recorded, too, and the neighbours of some images are drawn. None of
    these numbers comes from an evaluation: they are not among the final values.

    Args:
        trained: steps of this process; others were taken before it resumed.
    """
    end, steps_per_epoch = step == num_steps, num_steps // spec.epochs
    done = trained / (trained + num_steps - step)
    if not watching.due(step // steps_per_epoch, done=done, seen=trained * spec.batch_size):
        return 0.0
    before, measured, eigenvalues = watching.spent, dict[str, float](), list[float]()
    with watching.counted():
        try:
            measured = watching.measure(encoder_of(spec, distributed.unwrapped(network.online)))
            if end and watching.newest is not None:
                eigenvalues = spectrum(watching.newest.embeddings)
                pictures = watching.shown(probe_pictures.IMAGES, probe_pictures.NEIGHBOURS)
                probe_pictures.grid(folder / probe_pictures.NEAREST, *pictures)
        except Exception as error:  # such as a full disk; a probe is worth no run
            watching.newest = None
            logger.warning("The probe after step %d is missing: %s", step, reason_of(error))
        if eigenvalues:
            record.flush()
        for index, value in enumerate(eigenvalues, start=1):
            record.log(index, {"spectrum": value})
        if measured:
            record.log(step, measured)
    return watching.spent - before


def _upload(path: Path, record: Record) -> None:
    """Record a picture; if that fails, the log says so and the run continues."""
    try:
        record.artifact(path)
    except Exception as error:
        logger.warning("%s is not in the record: %s", path.name, reason_of(error))


def _check(spec: Pretrain, device: torch.device, num_images: int) -> None:
    """Raise InvalidError if the settings do not fit the images, the number of processes or the device."""
    batch_size, processes = spec.batch_size, distributed.world_size()
    if spec.precision == "bfloat16" and device.type == "cpu":
        raise InvalidError("precision is bfloat16, which needs a GPU: on a CPU, --set precision=float32.")
    if num_images < batch_size:
        raise InvalidError(
            f"batch_size is {batch_size}, but {spec.dataset.name} has only {num_images} images "
            "to pretrain on."
        )
    if batch_size % processes:
        raise InvalidError(
            f"batch_size {batch_size} does not divide into {processes} equal shares: "
            "set another `devices` in the site file."
        )
    try:
        spec.check_for(num_images)
    except ValueError as error:
        raise InvalidError(str(error)) from None


def _other_images(saved: Mapping[str, Any], found: Inventory) -> bool:
    """Return True if a checkpoint was trained on other images, or on other content where both are known."""
    before, now = saved.get("content", ""), found.content  # older checkpoints have only the digest
    return bool(saved["data"] != found.digest or (before and now and before != now))


def build_network(spec: Pretrain, num_images: int = 1) -> Any:
    """Return the network of a pretraining run with the initial weights that follow from its seed.

    Args:
        num_images: images of the data set. They do not change the encoder.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seeds.seed("weights", spec.seed))
        backbone = backbones.build(spec.backbone)
        if spec.zero_init is not None:
            backbones.zero_last_batchnorms(backbone, spec.zero_init)
        return spec.method.network(backbone, num_images=num_images, batch_size=spec.batch_size)


def encoder_of(spec: Pretrain, online: Any, digest: str = "") -> Encoder:
    """Return the encoder that is part of the online network of the run of `spec`."""
    return Encoder(
        spec.backbone,
        online.backbone,
        online.projector,
        spec.id,
        digest,
        augmentation=spec.augmentation,
    )


def load_encoder(spec: Pretrain, folder: Path, device: torch.device) -> Encoder:
    """Return the encoder that the run of `spec` wrote to `folder`, in eval mode on `device`.

    Raises:
        LookupError: The file does not exist.
        ValueError: The file is broken or belongs to another run.
    """
    online = build_network(spec).online
    tensors = encoder_file.load(folder / FILE, spec_id=spec.id)
    for part in ("backbone", "projector"):
        prefix = f"{part}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        getattr(online, part).load_state_dict(state)
    online.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return encoder_of(spec, online, encoder_file.digest(tensors))


def start(
    spec: Pretrain,
    device: torch.device,
    num_images: int = 1,
    *,
    recompute: bool = False,
    compile_: bool | str = False,
) -> tuple[Any, torch.optim.Optimizer]:
    """Return the network of `spec` with initial weights, ready to train on `device`, and its optimiser.

    Args:
        num_images: images of the data set.
        recompute: True if a method whose loss couples the views keeps the activations of one view at a time.
        compile_: see `compile` of the site.

    Raises:
        InvalidError: the backbones are to be compiled, and a compiler is missing.
    """
    network: Any = build_network(spec, num_images).to(device=device, memory_format=torch.channels_last)
    network = group_batchnorm(
        network, batch_size=spec.batch_size, group=spec.method.batchnorm_images(spec.batch_size)
    ).train()
    network.online.recompute = recompute and spec.method.num_parts == 1
    for part in (network.online, network.target):
        if part is not None:
            part.mixed = spec.precision == "bfloat16"
    mine = compiled.mine(spec.operations(num_images), devices=distributed.world_size())
    compiled.compile_backbones(network, compile_, operations=mine, device=device)
    return network, spec.optimizer.build(network.online)


def train_step(
    spec: Pretrain, network: Any, optimizer: torch.optim.Optimizer, meter: Meter, batch: Batch, *, lr: float
) -> dict[str, float]:
    """Execute one step: loss, gradients, optimiser step, and what follows, such as the target network.

    The forward and backward passes of the loss run part by part.

    Returns:
        What the method logs besides its loss.
    """
    method = spec.method
    method.before_step(network, batch)
    parts = method.parts(network, batch)
    for part in _backward(network, parts, method.num_parts):
        meter.add(part)
    method.before_update(network, batch)
    spec.optimizer.set_rates(optimizer, lr, peak=spec.optimizer.peak_lr(spec.batch_size, method.num_views))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average_statistics(network)
    meter.count(spec.batch_size)
    return method.after_step(network, batch)


class Meter:
    """Sums over the steps since the last reading. They stay on the device until they are read."""

    def __init__(self) -> None:
        self._embeddings: Tensor | None = None
        self._start()

    def _start(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._images = 0
        self._since = time.perf_counter()

    def add(self, part: Part) -> None:
        """Add one part of one step."""
        for name, value in {"loss": part.loss, **part.terms}.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._embeddings = part.embeddings

    def leave_out(self, seconds: float) -> None:
        """Leave out time in which nothing was trained, such as that of a probe, from images/s."""
        self._since += seconds

    def count(self, images: int) -> None:
        """Count a finished step of `images` images."""
        self._steps += 1
        self._images += images

    def read(self, step: int) -> dict[str, float]:
        """Return the means over the steps since the last reading, and start again from zero.

        The result also contains the state of the newest embeddings, and images/s.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        assert self._embeddings is not None
        means = {name: distributed.mean(total / self._steps) for name, total in self._sums.items()}
        if not math.isfinite(means["loss"]):
            terms = ", ".join(f"{name} = {value:g}" for name, value in means.items())
            raise FloatingPointError(
                f"The loss is not finite at step {step + 1}: {terms}. A lower base_lr or a longer warm-up "
                "may help."
            )
        state = collapse.measure(distributed.gather(self._embeddings))
        rate = self._images / (time.perf_counter() - self._since)
        self._start()
        return means | state | {"images_per_second": rate}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of every process since the last reading. All processes must call this together."""
        return {
            "sums": {  # (processes,) each
                name: distributed.gather(total.reshape(1)) for name, total in self._sums.items()
            },
            "steps": self._steps,
            "images": self._images,
            "seconds": time.perf_counter() - self._since,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from what `state_dict` returned.

        If the number of processes has changed, each gets the mean of the sums, as only their mean is read.
        """
        same = {len(total) == distributed.world_size() for total in state["sums"].values()} == {True}
        self._sums = {
            name: (total[distributed.rank()] if same else total.mean()).to(device)
            for name, total in state["sums"].items()
        }
        self._steps, self._images = state["steps"], state["images"]
        self._since = time.perf_counter() - state["seconds"]


def _batches(
    spec: Pretrain, site: Site, images: Images, device: torch.device, first: int = 0
) -> Generator[Batch]:
    """Yield this process's share of each batch of the run from step number `first` on, ready on `device`.

    A batch is cut into contiguous shares in the order of the ranks, so gathered rows are in the same order as
    with one process.
    """
    steps = len(images) // spec.batch_size
    workers = cores.decoders(site.workers, device.type)
    if workers <= 1 and device.type != "cpu" and distributed.main_process():
        logger.warning("%s", cores.few(workers))

    def shares(epoch: int) -> Tensor:
        order = torch.randperm(len(images), generator=seeds.generator("order", spec.seed, epoch))
        share = spec.batch_size // distributed.world_size()
        return order[: steps * spec.batch_size].view(steps, -1, share)[:, distributed.rank()]

    epochs = (
        list(shares(epoch)[max(0, first - epoch * steps) :])
        for epoch in range(first // steps if steps else 0, spec.epochs)
    )
    shape, on_device = _shape(spec), Resident(device)
    for step, found in enumerate(found_in(images, epochs, shape, workers), first):
        place = {"epoch": step // steps, "step": step, "steps_per_epoch": steps}
        yield batch_of(spec, on_device(found), torch.from_numpy(found.indices), **place)


def _shape(spec: Pretrain) -> Whole:
    """Return how the images of a run are decoded."""
    return Whole(spec.augmentation.least(spec.dataset.size, spec.method.num_views))


def draw_batch(
    spec: Pretrain,
    pixels: Tensor,
    sizes: Tensor,
    which: Tensor,
    *,
    epoch: int = 0,
    step: int = 0,
    steps_per_epoch: int = 1,
) -> Batch:
    """Return the K normalised views of this process's images in the run's precision, and the step's place.

    Args:
        pixels: whole images in either form (`views.sample`), on the device of the run.
        sizes: heights and widths of the images, (n, 2).
        which: numbers of the images, (n,).
    """
    originals = Originals.of(pixels, sizes.numpy())
    return batch_of(spec, originals, which, epoch=epoch, step=step, steps_per_epoch=steps_per_epoch)


def batch_of(
    spec: Pretrain, originals: Originals, which: Tensor, *, epoch: int, step: int, steps_per_epoch: int
) -> Batch:
    """Return the batch of `draw_batch`, from images anywhere in one tensor.

    With multi-crop, the sizes of the views differ. Autocast would round a float32 view to bfloat16 in the
    first layer of both networks anyway. Rounding here gives the same numbers with half the memory.
    """
    method, dataset, augmentation = spec.method, spec.dataset, spec.augmentation
    sampled = views.sample_originals(
        originals,
        which.numpy(),
        augmentation=augmentation,
        size=dataset.size,
        seed=spec.seed,
        epoch=epoch,
        num_views=method.num_views,
    )
    dtype = torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
    return Batch(
        views=[
            views.normalise(view, dataset.mean, dataset.std).to(dtype, memory_format=torch.channels_last)
            for view in sampled.views
        ],
        indices=which,
        boxes=sampled.boxes,
        flips=sampled.flips,
        sizes=torch.from_numpy(originals.sizes),
        seed=spec.seed,
        epoch=epoch,
        step=step,
        steps_per_epoch=steps_per_epoch,
        num_steps=spec.epochs * steps_per_epoch,
    )


def _epoch(
    spec: Pretrain,
    site: Site,
    images: Images,
    device: torch.device,
    number: int,
    may_stop: Callable[[], None],
) -> Epoch:
    """Return what a method sees before epoch `number`."""
    dataset = spec.dataset
    # Every process has this many batches of crops; the first processes may have one more.
    common = math.ceil(len(images) // distributed.world_size() / spec.batch_size)

    def centre_crops() -> Iterator[tuple[Tensor, Tensor]]:
        mine = range(distributed.rank(), len(images), distributed.world_size())
        crop = CentreCrop(dataset.resize, dataset.size, dataset.test_resampling)
        workers = cores.decoders(site.workers, device.type)
        decoded = batches(images, mine, spec.batch_size, crop=crop, workers=workers)
        for index, (pixels, _, which) in enumerate(decoded):
            if index < common:
                may_stop()
            yield which, views.normalise(pixels.to(device).float() / 255, dataset.mean, dataset.std)

    return Epoch(number=number, seed=spec.seed, images=centre_crops, may_stop=may_stop)


def _backward(network: Any, parts: Iterator[Part], num_parts: int) -> Iterator[Part]:
    """Yield each part after its forward and backward pass.

    Only the last part synchronises gradients between processes.
    """
    for index in range(num_parts):
        alone = distributed.world_size() > 1 and index + 1 < num_parts
        with network.online.no_sync() if alone else nullcontext():
            part = next(parts)
            part.loss.backward()  # type: ignore[no-untyped-call]
        yield part


def _state(
    network: Any,
    optimizer: torch.optim.Optimizer,
    meter: Meter,
    epoch: int,
    step: int,
    measured: dict[str, float],
    found: Inventory,
) -> dict[str, Any]:
    """Return what a run needs to resume after `epoch` epochs and `step` steps of the next.

    All processes must call this together.
    """
    weights = {key.replace("online.module.", "online."): value for key, value in network.state_dict().items()}
    return {
        "network": weights,
        "optimizer": optimizer.state_dict(),
        "meter": meter.state_dict(),
        "epoch": epoch,
        "step": step,
        "measured": measured,
        "data": found.digest,
        "content": found.content,
        "commit": environment.code()[0],
    }
