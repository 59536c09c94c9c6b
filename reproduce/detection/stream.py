"""The order in which images are shown to a detector that is fine-tuned: a stream without end that can be
entered anywhere.

A batch is a function of the seed and its number alone, so a run that goes on after a kill sees what it would
have seen, and runs on one process or on several see the same batches. As in Detectron2's loader
(detectron2/data/samplers, detectron2/data/common.py) the images are permuted anew each time round, and
landscape and portrait ones are gathered apart, so that little of a batch is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from reproduce.data.detection import Picture
from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import seeds

Shown = tuple[int, int]
"""How many images were shown before (over all processes), and which picture is shown: the first decides its
augmentation."""


def shown(pictures: Sequence[Picture], *, group: int, seed: int) -> Iterator[Shown]:
    """Places in `pictures`, without end; each run of `group` of them has one orientation.

    Raises:
        ValueError: there is no picture.
    """
    if not pictures:
        raise InvalidError("There is no image with an object to train on.")
    waiting: tuple[list[int], list[int]] = ([], [])
    position = 0
    for index in _permuted(len(pictures), seed):
        bucket = waiting[pictures[index].width > pictures[index].height]
        bucket.append(index)
        if len(bucket) == group:
            for each in bucket:
                yield position, each
                position += 1
            bucket.clear()


def share(
    pictures: Sequence[Picture],
    *,
    batch_size: int,
    group: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Shown]:
    """This process's part of every batch from number `start` on: `batch_size / world_size` images a batch.

    Args:
        batch_size: images per step over all processes.
        group: images of one orientation that belong together, where a batch holds whole groups; one process
            has them all or shares them.

    Raises:
        ValueError: the processes cannot share a batch equally.
    """
    if batch_size % world_size:
        raise InvalidError(f"batch_size is {batch_size}, which {world_size} processes cannot share equally.")
    mine = batch_size // world_size
    together = (
        group if batch_size % group == 0 else 1
    )  # whatever the number of processes: they see the same batches
    stream = shown(pictures, group=together, seed=seed)
    for each in islice(stream, start * batch_size, None):
        if rank * mine <= each[0] % batch_size < (rank + 1) * mine:
            yield each


def _permuted(num: int, seed: int) -> Iterator[int]:
    """Every place from 0 to `num` - 1 once, in another order each time round."""
    turn = 0
    while True:
        yield from torch.randperm(num, generator=seeds.generator("detection order", seed, turn)).tolist()
        turn += 1
