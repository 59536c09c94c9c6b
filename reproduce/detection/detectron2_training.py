"""Training by Detectron2's trainer and hooks, with our order of images, so that runs resume exactly.

Detectron2's own loader starts with a different order each time, and its random draws depend on the draws
before. Here the images of a step, their augmentation and the sampled proposals follow from the run's seed and
the step's number. Two runs on one CPU thread end with the same bits, even if one of them was interrupted.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.data import decoding
from reproduce.data.detection import Annotated
from reproduce.data.images import ignore_signals
from reproduce.detection import detectron2_formats as formats
from reproduce.detection import record, stream
from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import distributed, seeds
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.checkpoint import FINISHED, LAST
from reproduce.runs.files import write_atomic
from reproduce.runs.progress import Progress, Watch

if TYPE_CHECKING:
    from reproduce.protocols.detection import Detection

CHECKPOINTS, MAX_STEPS = 50, 500
"""Checkpoints per training, and the maximum number of steps between two of them, which is the most that a
kill can lose."""


def train(
    model: Any,
    cfg: Any,
    protocol: Detection,
    images: Annotated,
    folder: Path,
    prepare: Callable[[Any], None],
    *,
    seed: int,
    workers: int,
    watch: Watch,
) -> None:
    """Train the model in place, resuming from the run's newest checkpoint in `folder` if there is one.

    The training ends with precise BatchNorm statistics.

    Args:
        prepare: called with the checkpointer to load the first weights, if nothing has been trained yet.

    Raises:
        FloatingPointError: The loss is not finite.
        Interrupted: The run received a stop request. A checkpoint contains the work done so far.
        ValueError: No image can be trained on, an image is broken, or the checkpoint was trained on other
            images.
    """
    from detectron2.engine import SimpleTrainer, create_ddp_model
    from detectron2.solver import build_lr_scheduler, build_optimizer

    iterations = protocol.schedule.iterations
    optimizer = build_optimizer(cfg, model)
    devices = None if cfg.MODEL.DEVICE == "cpu" else [torch.cuda.current_device()]
    trainer = SimpleTrainer(
        create_ddp_model(model, broadcast_buffers=False, device_ids=devices), (), optimizer
    )
    trainer.max_iter = iterations
    checkpointer = _checkpointer(model, folder, watch, trainer=trainer, images=_SameImages(images, watch))
    loader = _loaders(protocol, cfg, images, seed=seed, workers=workers)
    trainer.register_hooks(_hooks(trainer, build_lr_scheduler(cfg, optimizer), protocol, seed, watch))
    first = 0
    newest = _newest(folder, watch.spec_id)
    if newest is not None:
        checkpointer.load(str(newest))
        first = trainer.iter + 1
    else:
        prepare(checkpointer)
    if newest is not None and newest.name == FINISHED:  # the run was killed during its test
        return
    if first < iterations:
        with contextlib.closing(loader(first)) as shown:
            _steps(trainer, shown, first, checkpointer)
    with contextlib.closing(loader(iterations)) as following:  # the images that would come next
        _precise_batchnorm(trainer, following, protocol, seed)
    if distributed.main_process():
        checkpointer.save(FINISHED.removesuffix(".pth"), iteration=iterations - 1)


def mapper(protocol: Detection, cfg: Any) -> Any:
    """Return Detectron2's mapper of training images, which turns a dictionary into tensors."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    resize = T.ResizeShortestEdge(protocol.train_sizes, protocol.max_size, "choice")
    flip = [T.RandomFlip(prob=protocol.flip)] if protocol.flip else []
    return DatasetMapper(cfg, is_train=True, augmentations=[resize, *flip])


class Readable:
    """A loader that raises the errors of broken images in this process.

    If a decoding process raised the error, the line that names the file would be lost. The decoding processes
    ignore signals to the whole group, so that the current step can still end, with a checkpoint.
    """

    def __init__(self, loader: Any) -> None:
        loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)
        self._loader = loader
        self._iterators: list[Generator[list[Any]]] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Any]]:
        self._iterators.append(self._batches())
        return self._iterators[-1]

    def close(self) -> None:
        """End the decoding processes, which would otherwise live as long as any reference to an iterator."""
        for iterator in self._iterators:
            iterator.close()

    def _batches(self) -> Generator[list[Any]]:
        for batch in self._loader:
            for each in batch:
                if isinstance(each, InvalidError):
                    raise each
            yield batch


def _init_worker(theirs: Callable[[int], None] | None, worker: int) -> None:
    """Initialise a decoding process: first Detectron2's part, if any, then ours."""
    if theirs is not None:
        theirs(worker)
    ignore_signals(worker)


def mapped(map_one: Callable[[Any], Any], each: dict[str, Any]) -> Any:
    """Return the mapper's result for a dictionary.

    If the image is broken or does not have its annotated size, an InvalidError is returned, not raised.
    """
    from PIL.Image import DecompressionBombError

    try:
        # Detectron2 would read any format, and cut the values of deeper images without a word.
        with decoding.opened(each["file_name"]) as image:
            decoding.eight_bits(image)
        return map_one(each)
    # Pillow's decoders raise all of these.
    except (OSError, SyntaxError, ValueError, struct.error, DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return InvalidError(f"{each['file_name']} cannot be used: {reason}")


def _loaders(
    protocol: Detection, cfg: Any, images: Annotated, *, seed: int, workers: int
) -> Callable[[int], Readable]:
    """Return a function that returns Detectron2's loader from a given step on.

    A batch of the loader is this process's share of a step.
    """
    from detectron2.data import DatasetFromList, build_detection_train_loader

    pairs = formats.trainable(images, masks=protocol.masks)
    if not pairs:  # Detectron2's own error for an empty list names no file
        raise InvalidError(f"{images.origin}: no training image has an object to learn from.")
    pictures = [picture for picture, _ in pairs]
    shown = _TrainingImages(
        DatasetFromList([made for _, made in pairs], copy=False), mapper(protocol, cfg), seed
    )
    share = partial(stream.share, batch_size=protocol.batch_size, group=protocol.group, seed=seed)
    processes = {"rank": distributed.rank(), "world_size": distributed.world_size()}

    def loader(first: int) -> Readable:
        return Readable(
            build_detection_train_loader(
                shown,
                mapper=None,
                sampler=_sampler(partial(share, pictures, start=first, **processes)),
                total_batch_size=protocol.batch_size,
                aspect_ratio_grouping=False,  # our order already groups by orientation
                num_workers=workers,
                seed=0,  # without it, a new loader would draw one from the global generator
            )
        )

    return loader


class _TrainingImages:
    """Training images, indexed by the entries of the stream: `stream.Shown`."""

    def __init__(self, dictionaries: Any, map_one: Any, seed: int) -> None:
        self._dictionaries, self._map, self._seed = dictionaries, map_one, seed

    def __getitem__(self, each: stream.Shown) -> Any:
        import numpy as np

        position, index = each
        np.random.seed(seeds.seed("detection augmentation", self._seed, position))
        return mapped(self._map, self._dictionaries[index])


def _sampler(order: Callable[[], Iterator[stream.Shown]]) -> Any:
    """Return `order` as a sampler for Detectron2's loader."""

    class Order(torch.utils.data.Sampler[stream.Shown]):
        def __iter__(self) -> Iterator[stream.Shown]:
            return order()

    return Order()


def _steps(trainer: Any, shown: Readable, first: int, checkpointer: Any) -> None:
    """Train from step `first` to the end, after which there is a checkpoint."""
    from detectron2.engine import hooks

    trainer.reset_data_loader(lambda: shown)
    try:
        with interrupt.deferred() as stop_reason:
            save = partial(_save_if_due, stop_reason=stop_reason, checkpointer=checkpointer)
            trainer.register_hooks([hooks.CallbackHook(after_step=save)])
            trainer.train(first, trainer.max_iter)
    except FloatingPointError as error:
        reason = " ".join(str(error).split())
        raise FloatingPointError(
            f"Training failed at step {trainer.iter + 1}: {reason} A lower base_lr may help."
        ) from error


def _hooks(trainer: Any, scheduler: Any, protocol: Detection, seed: int, watch: Watch) -> list[Any]:
    """Return the hooks around a step, in the order of Detectron2's default trainer.

    The random state is set first, before anything draws from it.
    """
    from detectron2.engine import hooks

    found = [
        hooks.CallbackHook(before_step=lambda trainer: _seed_everything(seed, trainer.iter)),
        hooks.IterationTimer(),
        hooks.LRScheduler(trainer.optimizer, scheduler),
    ]
    if distributed.main_process():
        found.append(hooks.CallbackHook(after_step=lambda trainer: _report(trainer, protocol, watch)))
    return found


def _save_if_due(trainer: Any, stop_reason: Callable[[], str], checkpointer: Any) -> None:
    """Write a checkpoint if one is due, at the end, and if any process received a stop request.

    A stop request ends all processes after the same step.
    """
    done, period = trainer.iter + 1, max(1, min(MAX_STEPS, trainer.max_iter // CHECKPOINTS))
    stopping = distributed.anyone(bool(stop_reason()))
    if distributed.main_process() and (stopping or done % period == 0 or done == trainer.max_iter):
        checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
    if stopping:
        # All processes wait for the file: torchrun ends them all as soon as one has ended.
        distributed.agreed(True)
        interrupt.stop(stop_reason() or interrupt.ELSEWHERE)


def _precise_batchnorm(trainer: Any, images: Readable, protocol: Detection, seed: int) -> None:
    """Compute BatchNorm's test statistics over further images, by Detectron2's hook.

    The hook samples proposals too, so the random state is set first.
    """
    from detectron2.engine import hooks
    from fvcore.nn.precise_bn import get_bn_modules

    if protocol.precise_bn_iterations and get_bn_modules(trainer.model):  # FrozenBN and GN have none
        _seed_everything(seed, trainer.max_iter)
        hooks.PreciseBN(0, trainer.model, images, protocol.precise_bn_iterations).update_stats()


def _seed_everything(seed: int, iteration: int) -> None:
    """Seed the global generators, from which Detectron2 samples anchors and proposals.

    Each process gets a different state.
    """
    import numpy as np

    value = seeds.seed("detection step", seed, iteration, distributed.rank())
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def _report(trainer: Any, protocol: Detection, watch: Watch) -> None:
    """Report the progress of the training, and log Detectron2's scalars of this step at intervals."""
    done, iterations = trainer.iter + 1, protocol.schedule.iterations
    latest = {name: value for name, (value, step) in trainer.storage.latest().items() if step == trainer.iter}
    if done % record.LOG_EVERY == 0 or done == iterations:
        watch.record.log(done, {name: float(value) for name, value in latest.items()})
    images = protocol.batch_size
    watch.report(Progress(done * images, iterations * images, "images", f"loss {latest['total_loss']:.3g}"))


class _SameImages:
    """Checkpointed digests of the images, so that a training does not resume with other images."""

    def __init__(self, images: Annotated, watch: Watch) -> None:
        self._digests = {**watch.about, "digest": images.digest}

    def state_dict(self) -> dict[str, str]:
        return self._digests

    def load_state_dict(self, state: dict[str, str]) -> None:
        before = {**self._digests, **state}  # older checkpoints lack what `watch` knows
        if before != self._digests:
            raise InvalidError(
                "The checkpoint was trained on other images than this run's: "
                "remove the run's folder `detectron2` to start from scratch."
            )


def _newest(folder: Path, spec_id: str) -> Path | None:
    """Return the run's newest intact checkpoint in `folder`, or None if there is none.

    The file that LAST names comes first, then the others, because a crash may have damaged the newest. Every
    process reads the same files and returns the same path.
    """
    last = folder / LAST
    named = [folder / last.read_text(errors="replace").strip()] if last.is_file() else []
    others = sorted(folder.glob("model_*.pth"), reverse=True)
    return next((path for path in [*named, *others] if checkpoint.usable(path, spec_id)), None)


def _checkpointer(model: Any, folder: Path, watch: Watch, **parts: Any) -> Any:
    """Return Detectron2's checkpointer with four changes.

    Each file is sealed with the id of the run, only the two newest of the run are kept, and the file that
    names the newest one is written atomically. Nothing but tensors and plain values is read from a file.
    """
    from detectron2.checkpoint import DetectionCheckpointer

    class Checkpointer(DetectionCheckpointer):  # type: ignore[misc]
        incompatible: Any = None
        """Names of tensors that did not fit, after `load`."""

        def _load_file(self, name: str) -> dict[str, Any]:
            # Detectron2's own executes the code in a file with the extension .pkl.
            return dict(torch.load(name, map_location="cpu", weights_only=True))

        def _load_model(self, content: Any) -> Any:
            self.incompatible = super()._load_model(content)
            return self.incompatible

        def save(self, name: str, **extra: Any) -> None:
            watch.hold()
            watch.record.flush()  # a resumed run does not repeat the measurements before its checkpoint
            checkpoint.move_foreign(folder / f"{name}.pth", watch.spec_id)
            super().save(name, **extra)

        def tag_last_checkpoint(self, name: str) -> None:
            last = folder / LAST
            before = last.read_text(errors="replace").strip() if last.is_file() else ""
            checkpoint.seal(folder / name, watch.spec_id)
            write_atomic(last, name, durable=True)
            for old in folder.glob("model_*.pth"):
                if old.name not in (before, name) and checkpoint.owner(old) in (watch.spec_id, None):
                    old.unlink(missing_ok=True)

    return Checkpointer(model, str(folder), **parts)
