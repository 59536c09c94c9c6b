"""Training by Detectron2's trainer and hooks, in our order of images, so that a run that is killed goes on as
if it had not been.

Detectron2's own loader begins with another order each time, and whatever it draws at random follows from what
was drawn before. Here the images of a step, how each is augmented and which proposals are looked at follow
from the run's seed and the step's number. Two runs on one CPU thread end with the same bits, whether or not
one of them was interrupted.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.data.detection import Annotated
from reproduce.data.images import ignore_signals
from reproduce.detection import detectron2_formats as formats
from reproduce.detection import record, stream
from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import distributed, seeds
from reproduce.runs import interrupt
from reproduce.runs.checkpoint import FINISHED, LAST
from reproduce.runs.files import synchronise, write_atomic
from reproduce.runs.progress import Progress, Watch

if TYPE_CHECKING:
    from reproduce.protocols.detection import Detection

CHECKPOINTS, FARTHEST = 50, 500
"""Checkpoints of a training, and the most steps between two of them: as much is lost by a kill at most."""


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
    """Trains the model in place, from the newest checkpoint in `folder` if there is one, and ends with
    precise BatchNorm statistics.

    Args:
        prepare: called with the checkpointer where nothing was trained yet, to load the first weights.

    Raises:
        FloatingPointError: the loss is no longer finite.
        Interrupted: the run is told to stop; what it has done is in a checkpoint.
        ValueError: nothing to train on, a broken image, or a checkpoint of a training on other images.
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
    checkpointer = _checkpointer(model, folder, watch, trainer=trainer, images=_SameImages(images))
    loader = _loaders(protocol, cfg, images, seed=seed, workers=workers)
    trainer.register_hooks(_hooks(trainer, build_lr_scheduler(cfg, optimizer), protocol, seed, watch))
    first = 0
    if checkpointer.has_checkpoint():
        checkpointer.resume_or_load("")
        first = trainer.iter + 1
    else:
        prepare(checkpointer)
    if checkpointer.get_checkpoint_file().endswith(FINISHED):  # killed while it was tested
        return
    if first < iterations:
        with contextlib.closing(loader(first)) as shown:
            _steps(trainer, shown, first, checkpointer)
    with contextlib.closing(loader(iterations)) as behind:  # the images that would come next
        _precise_batchnorm(trainer, behind, protocol, seed)
    if distributed.main_process():
        checkpointer.save(FINISHED.removesuffix(".pth"), iteration=iterations - 1)


def mapper(protocol: Detection, cfg: Any) -> Any:
    """Detectron2's mapper of a training image, which turns a dictionary into tensors."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    resize = T.ResizeShortestEdge(protocol.train_sizes, protocol.max_size, "choice")
    flip = [T.RandomFlip(prob=protocol.flip)] if protocol.flip else []
    return DatasetMapper(cfg, is_train=True, augmentations=[resize, *flip])


class Readable:
    """A loader whose broken images are raised here: an error in a process of its own would lose the line that
    names the file.

    The processes that decode live through a signal to the whole group, so that the step under way still ends,
    with a checkpoint.
    """

    def __init__(self, loader: Any) -> None:
        loader.worker_init_fn = partial(_begin_decoding, loader.worker_init_fn)
        self._loader = loader
        self._begun: list[Generator[list[Any]]] = []

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Any]]:
        self._begun.append(self._batches())
        return self._begun[-1]

    def close(self) -> None:
        """Ends the processes that decode, which would otherwise live as long as whoever holds an iterator."""
        for each in self._begun:
            each.close()

    def _batches(self) -> Generator[list[Any]]:
        for batch in self._loader:
            for each in batch:
                if isinstance(each, ValueError):
                    raise each
            yield batch


def _begin_decoding(theirs: Callable[[int], None] | None, worker: int) -> None:
    """What a process that decodes does first: what Detectron2 wants of it, if anything, and what we want."""
    if theirs is not None:
        theirs(worker)
    ignore_signals(worker)


def mapped(map_one: Callable[[Any], Any], each: dict[str, Any]) -> Any:
    """What the mapper makes of a dictionary; a ValueError, not raised, where the image is broken or has not
    its annotated size."""
    try:
        return map_one(each)
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # Pillow's decoders raise all of these
        reason = " ".join(str(error).split()) or type(error).__name__
        return ValueError(f"{each['file_name']} cannot be used: {reason}")


def _loaders(
    protocol: Detection, cfg: Any, images: Annotated, *, seed: int, workers: int
) -> Callable[[int], Readable]:
    """A function that gives Detectron2's loader from a step's number on; a batch is this process's share of a
    step."""
    from detectron2.data import DatasetFromList, build_detection_train_loader

    pairs = formats.trainable(images, masks=protocol.masks)
    if not pairs:  # Detectron2's list of nothing is an error that names nothing
        raise InvalidError(f"{images.origin}: no image that is trained on has an object to learn from.")
    pictures = [picture for picture, _ in pairs]
    shown = _Shown(DatasetFromList([made for _, made in pairs], copy=False), mapper(protocol, cfg), seed)
    share = partial(stream.share, batch_size=protocol.batch_size, group=protocol.group, seed=seed)
    processes = {"rank": distributed.rank(), "world_size": distributed.world_size()}

    def loader(first: int) -> Readable:
        return Readable(
            build_detection_train_loader(
                shown,
                mapper=None,
                sampler=_sampler(partial(share, pictures, start=first, **processes)),
                total_batch_size=protocol.batch_size,
                aspect_ratio_grouping=False,  # the order has it
                num_workers=workers,
                seed=0,  # so that a loader that starts does not draw from the global generator
            )
        )

    return loader


class _Shown:
    """Training images by what `stream.Shown` says of each."""

    def __init__(self, dictionaries: Any, map_one: Any, seed: int) -> None:
        self._dictionaries, self._map, self._seed = dictionaries, map_one, seed

    def __getitem__(self, each: stream.Shown) -> Any:
        import numpy as np

        position, index = each
        np.random.seed(seeds.seed("detection augmentation", self._seed, position))
        return mapped(self._map, self._dictionaries[index])


def _sampler(order: Callable[[], Iterator[stream.Shown]]) -> Any:
    """`order` as the sampler that Detectron2's loader wants."""

    class Order(torch.utils.data.Sampler[stream.Shown]):
        def __iter__(self) -> Iterator[stream.Shown]:
            return order()

    return Order()


def _steps(trainer: Any, shown: Readable, first: int, checkpointer: Any) -> None:
    """Trains from step `first` to the end, after which there is a checkpoint."""
    from detectron2.engine import hooks

    trainer.reset_data_loader(lambda: shown)
    try:
        with interrupt.deferred() as asked:
            trainer.register_hooks(
                [hooks.CallbackHook(after_step=partial(_keep, asked=asked, checkpointer=checkpointer))]
            )
            trainer.train(first, trainer.max_iter)
    except FloatingPointError as error:
        reason = " ".join(str(error).split())
        raise FloatingPointError(
            f"Training fails at step {trainer.iter + 1}: {reason} A lower base_lr may help."
        ) from error


def _hooks(trainer: Any, scheduler: Any, protocol: Detection, seed: int, watch: Watch) -> list[Any]:
    """What happens around a step, in the order of Detectron2's default trainer; the random state is set
    first, for whatever follows."""
    from detectron2.engine import hooks

    found = [
        hooks.CallbackHook(before_step=lambda trainer: _seed_everything(seed, trainer.iter)),
        hooks.IterationTimer(),
        hooks.LRScheduler(trainer.optimizer, scheduler),
    ]
    if distributed.main_process():
        found.append(hooks.CallbackHook(after_step=lambda trainer: _tell(trainer, protocol, watch)))
    return found


def _keep(trainer: Any, asked: Callable[[], str], checkpointer: Any) -> None:
    """Writes a checkpoint now and then, at the end, and where a process is told to stop, which ends all of
    them after the same step."""
    done, period = trainer.iter + 1, max(1, min(FARTHEST, trainer.max_iter // CHECKPOINTS))
    stopping = distributed.anyone(bool(asked()))
    if distributed.main_process() and (stopping or done % period == 0 or done == trainer.max_iter):
        checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
    if stopping:
        distributed.agreed(
            True
        )  # the others wait for the file: torchrun ends all processes as soon as one has ended
        interrupt.stop(asked() or interrupt.ELSEWHERE)


def _precise_batchnorm(trainer: Any, images: Readable, protocol: Detection, seed: int) -> None:
    """BatchNorm's test statistics over other images, by Detectron2's hook. Its proposals are drawn, too, so a
    seed comes first."""
    from detectron2.engine import hooks
    from fvcore.nn.precise_bn import get_bn_modules

    if protocol.precise_bn_iterations and get_bn_modules(trainer.model):  # not with FrozenBN or GN
        _seed_everything(seed, trainer.max_iter)
        hooks.PreciseBN(0, trainer.model, images, protocol.precise_bn_iterations).update_stats()


def _seed_everything(seed: int, iteration: int) -> None:
    """The global generators, from which Detectron2 samples anchors and proposals; each process looks at
    others."""
    import numpy as np

    value = seeds.seed("detection step", seed, iteration, distributed.rank())
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def _tell(trainer: Any, protocol: Detection, watch: Watch) -> None:
    """Detectron2's scalars of this step to the record now and then, and how far the training is."""
    done, iterations = trainer.iter + 1, protocol.schedule.iterations
    latest = {name: value for name, (value, step) in trainer.storage.latest().items() if step == trainer.iter}
    if done % record.LOG_EVERY == 0 or done == iterations:
        watch.record.log(done, {name: float(value) for name, value in latest.items()})
    images = protocol.batch_size
    watch.report(Progress(done * images, iterations * images, "images", f"loss {latest['total_loss']:.3g}"))


class _SameImages:
    """Keeps a training from going on with other images."""

    def __init__(self, images: Annotated) -> None:
        self._digest = images.digest

    def state_dict(self) -> dict[str, str]:
        return {"digest": self._digest}

    def load_state_dict(self, state: dict[str, str]) -> None:
        if state["digest"] != self._digest:
            raise InvalidError(
                "The training images are not those of this run's checkpoint: remove its folder `detectron2` to start anew."
            )


def _checkpointer(model: Any, folder: Path, watch: Watch, **parts: Any) -> Any:
    """Detectron2's checkpointer; the two newest files stay, and the file that names the newest is never
    half-written."""
    from detectron2.checkpoint import DetectionCheckpointer

    class Checkpointer(DetectionCheckpointer):  # type: ignore[misc]
        incompatible: Any = None
        """Names of tensors that did not fit, after `load`."""

        def _load_model(self, checkpoint: Any) -> Any:
            self.incompatible = super()._load_model(checkpoint)
            return self.incompatible

        def save(self, name: str, **extra: Any) -> None:
            watch.hold()
            watch.record.flush()  # a run that goes on from here does not measure again what came before
            super().save(name, **extra)

        def tag_last_checkpoint(self, name: str) -> None:
            last = folder / LAST
            before = last.read_text().strip() if last.exists() else ""
            synchronise(folder / name)
            write_atomic(last, name, durable=True)
            for old in folder.glob("model_*.pth"):
                if old.name not in (before, name):
                    old.unlink(missing_ok=True)

    return Checkpointer(model, str(folder), **parts)
