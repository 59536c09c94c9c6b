"""Order of the training images of a detector: an endless stream that can be entered anywhere.

A batch is a function of the seed and of its number alone. A run that resumes after a kill therefore sees the
images that it would have seen, and any number of processes sees the same batches. As in Detectron2's loader
(detectron2/data/samplers, detectron2/data/common.py), every pass over the images has a new permutation.
Landscape and portrait images are grouped apart, so that little of a batch is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from reproduce.data.detection import Picture
from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import seeds

Shown = tuple[int, int]
"""Number of images shown before this one (over all processes), which determines its augmentation, and its
index in the pictures."""


def shown(pictures: Sequence[Picture], *, group: int, seed: int) -> Iterator[Shown]:
    """Yield indices of `pictures` without end. Each group of `group` images has one orientation.

    Raises:
        ValueError: `pictures` is empty.
    """
    if not pictures:
        raise InvalidError("No image has an object to train on.")
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
    """Yield this process's share of every batch from number `start` on.

    The share of a batch is `batch_size / world_size` images.

    Args:
        batch_size: images per step over all processes.
        group: images of one orientation that stay together, if a batch consists of whole groups. One process
            gets a whole group, or several processes share it.

    Raises:
        ValueError: The processes cannot share a batch equally.
    """
    if batch_size % world_size:
        raise InvalidError(f"batch_size is {batch_size}, which {world_size} processes cannot share equally.")
    mine = batch_size // world_size
    # This does not depend on the number of processes, so that any number of them sees the same batches.
    together = group if batch_size % group == 0 else 1
    stream = shown(pictures, group=together, seed=seed)
    for each in islice(stream, start * batch_size, None):
        if rank * mine <= each[0] % batch_size < (rank + 1) * mine:
            yield each


def _permuted(num: int, seed: int) -> Iterator[int]:
    """Yield every index from 0 to `num` - 1 once per pass, in a different order in each pass."""
    turn = 0
    while True:
        yield from torch.randperm(num, generator=seeds.generator("detection order", seed, turn)).tolist()
        turn += 1
