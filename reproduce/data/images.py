"""Decode the images of one split by index or in batches, from files (`Files`) or raw planes (`Planes`).

    images = STL10().load("train", site)
    for pixels, sizes, indices in batches(images, order, 256, workers=site.workers):
        ...  # pixels: (256, 3, 96, 96) uint8, or one image after the other if their sizes differ

An image is decoded once for all its views: whole, in RGB, at its own size. Decoded images stay in memory if
the whole split fits. They then lie in one flat tensor, from which views are made without a copy (`found_in`).
The bytes do not depend on the cache or on the number of workers.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import signal
import statistics
import threading
import warnings
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from reproduce.data import decoding, shared_memory
from reproduce.data.augmentation import divisor
from reproduce.data.originals import Originals
from reproduce.data.shared_memory import PIECE
from reproduce.data.sources import shown, state
from reproduce.messages import InvalidError, size
from reproduce.runs import cores
from reproduce.settings import Resampling

SAMPLED = 64
"""Images whose sizes are read to estimate the memory of a whole split."""
AHEAD = 2
"""Batches prepared ahead of the caller."""

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Decoded images, in the order of the request."""

    pixels: torch.Tensor
    """(n, 3, height, width) uint8 if all have one size. Otherwise the red, green and blue plane of each image
    in turn, (3 height_1 width_1 + 3 height_2 width_2 + ...,) uint8."""
    sizes: torch.Tensor
    """(n, 2) int64, height and width of the original images in pixels; of what is decoded if a whole JPEG is
    decoded at a fraction of its size."""
    indices: torch.Tensor
    """(n,) int64, indices in the split."""


class Found(NamedTuple):
    """Images in memory, in the order of the request."""

    images: Originals
    """Their pixels, which the cache may own: not to be changed."""
    sizes: NDArray[np.int64]
    """Height and width of the original images in pixels, (n, 2); see `Batch`."""
    indices: NDArray[np.int64]
    """Indices in the split, (n,)."""
    cached: bool = False
    """True if the pixels lie in the memory of the whole split. It is filled from the start, in any order of
    the images, and what is filled no longer changes."""

    @staticmethod
    def of(batch: Batch) -> Found:
        """Return the images of a batch, in its memory."""
        sizes = batch.sizes.numpy()
        shapes = np.empty_like(sizes)
        shapes[:] = batch.pixels.shape[2:] if batch.pixels.ndim > 1 else sizes
        return Found(Originals.of(batch.pixels, shapes), sizes, batch.indices.numpy())

    def batch(self) -> Batch:
        """Return the images as a batch, which the caller may change."""
        images = self.images.packed() if self.cached else self.images
        one = bool(len(images.sizes)) and images.one_size
        pixels = images.values.view(-1, 3, *images.sizes[0].tolist()) if one else images.values
        return Batch(pixels, torch.from_numpy(self.sizes), torch.tensor(self.indices))


@dataclass(frozen=True)
class Whole:
    """The whole image at its own size, or a JPEG at a fraction of it.

    A fraction changes the pixels of the views, which are then resampled twice. So it is a setting of the run.
    """

    least: tuple[float, float] | None = None
    """If given, a JPEG is decoded at the smallest of 1/8, 1/4 and 1/2 of its sides for which the square root
    of its area and its shorter side keep these numbers of pixels (`Augmentation.least`)."""

    def reduce(self, image: Image.Image) -> None:
        """Make an image that is not decoded yet decode at the fraction; only JPEG files have one."""
        number = divisor(*image.size, self.least)
        if number > 1:
            image.draft(None, (image.width // number, image.height // number))

    def cut(self, image: Image.Image) -> Image.Image:
        """Return the image in RGB."""
        return _rgb(image)


@dataclass(frozen=True)
class CentreCrop:
    """A resize of the shorter side to `resize` pixels, then a centre crop of `size` x `size` pixels."""

    resize: int
    size: int
    resampling: Resampling = "bicubic"
    """Filter of the resize, antialiased in both cases."""
    squash: bool = False
    """If true, the whole image is resized a second time, to `size` x `size` pixels, in place of the crop."""

    def __post_init__(self) -> None:
        if self.size > self.resize:
            raise InvalidError(
                f"A centre crop needs size <= resize, but size is {self.size} and resize is {self.resize}."
            )

    def cut(self, image: Image.Image) -> Image.Image:
        """Return the crop of one image, rounded as torchvision does."""
        width, height = image.size
        shorter = min(width, height)
        whole = (int(self.resize * width / shorter), int(self.resize * height / shorter))
        image = _resized(_rgb(image), whole, self.resampling)
        if self.squash:
            return _resized(image, (self.size, self.size), self.resampling)
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))


Shape = Whole | CentreCrop


def _rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB; grey, palette and CMYK images are converted."""
    decoding.eight_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(image: Image.Image, size: tuple[int, int], resampling: Resampling = "bicubic") -> Image.Image:
    """Return the image resized to (width, height), or the image itself if it has that size."""
    return image if image.size == size else image.resize(size, Image.Resampling[resampling.upper()])


class _Store:
    """Decoded images of a split in one shape, one after the other as they come, up to a number of bytes."""

    def __init__(self, num_images: int, most: int) -> None:
        try:
            self.values = torch.empty(most, dtype=torch.uint8)
        except RuntimeError:
            raise InvalidError(
                f"{size(most)} of memory for decoded images are not available. Lower `cache_gb` in the site "
                "file."
            ) from None
        self.end = 0
        """Number of values that are filled."""
        self.starts = np.zeros(num_images, np.int64)
        """Place of the first value of each image."""
        self.shapes = np.zeros((num_images, 2), np.int64)
        """Height and width of each image as it is stored."""
        self.sizes = np.zeros((num_images, 2), np.int64)
        """Height and width of each original image."""
        self.filled = np.zeros(num_images, np.bool_)
        self._lock = threading.Lock()

    def put(self, batch: Batch) -> None:
        """Store copies of the images that fit."""
        found = Found.of(batch)
        starts, lengths = found.images.starts.tolist(), found.images.lengths.tolist()
        with self._lock:
            for row, index in enumerate(found.indices.tolist()):
                start, end = self.end, self.end + lengths[row]
                if self.filled[index] or end > len(self.values):
                    continue
                self.values[start:end] = found.images.values[starts[row] : starts[row] + lengths[row]]
                self.starts[index], self.end = start, end
                self.shapes[index], self.sizes[index] = found.images.sizes[row], found.sizes[row]
                self.filled[index] = True  # last, so that another thread never reads an incomplete image

    def find(self, indices: NDArray[np.int64]) -> Found:
        """Return images that are all stored."""
        images = Originals(self.values, self.starts[indices], self.shapes[indices])
        return Found(images, self.sizes[indices], indices, cached=True)


def planes(batch: Batch) -> list[torch.Tensor]:
    """Return each image of a batch, (3, height, width) uint8, in the memory of the batch."""
    if batch.pixels.ndim > 1:
        return list(batch.pixels)
    sizes = batch.sizes.tolist()
    parts = batch.pixels.split_with_sizes([3 * height * width for height, width in sizes])
    return [part.view(3, *size) for part, size in zip(parts, sizes, strict=True)]


class Images(ABC):
    """The images of one split, in the same order on every machine."""

    labels: NDArray[np.int64]
    """(n,), indices into `classes`; -1 for an image that is unlabelled or has several labels in `targets`."""
    classes: tuple[str, ...]
    targets: NDArray[np.int8] | None = None
    """(n, classes) for a data set with several labels per image: 1 if the class is present, -1 if it is
    absent, 0 if it does not count (difficult). None for other data sets."""

    def __init__(self, labels: ArrayLike, classes: Sequence[str], cache_gb: float = 0.0) -> None:
        """Create the images of a split.

        Args:
            labels: see the attribute.
            classes: names of the classes.
            cache_gb: 10^9 bytes of memory for decoded images, at most. A shape is cached if the whole split
                fits next to the shapes that are cached already. The size of whole images is estimated from
                some of them. Images that do not fit after all are decoded each time.
        """
        self.labels = np.array(labels, np.int64)
        self.labels.setflags(write=False)
        self.classes = tuple(classes)
        self.cache_gb = cache_gb
        self._stores: dict[Shape, _Store | None] = {}
        self._estimates: dict[Shape, int] = {}
        self._choosing = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is large and not needed, so that worker processes that are not forked get little.

        These are the decoded images and the states of the files.
        """
        left_out = ("_stores", "_choosing", "states")
        return {key: value for key, value in vars(self).items() if key not in left_out}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _stores={}, _choosing=threading.Lock())

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the location of the image, for messages."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """Open the image in any mode, at its original size; a broken image may raise any exception."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of names, file sizes and labels.

        It is cheap to compute and differs if a file was lost, added or truncated.
        """

    def paths(self) -> Iterator[bytes]:
        """Yield the files of the images in order; none for images that are not in files."""
        yield from ()

    @cached_property
    def states(self) -> NDArray[np.int64]:
        """State (`sources.State`) of each of these files, (files, 3).

        Raises:
            ValueError: a file is missing or empty, or is not a regular file. The message names it.
        """
        # Read here rather than in the scan: 1.28 million stat calls take seconds, or minutes on a network
        # file system.
        found = array("q")
        for path in self.paths():
            found.extend(state(path))
        return np.frombuffer(found, np.int64).reshape(-1, 3) if found else np.empty((0, 3), np.int64)

    @property
    def signature(self) -> str:
        """SHA-256 of the states of the files: it also differs if a file was replaced by one of its size."""
        return _sha256(self.states.astype("<i8").tobytes())

    def read(self, indices: ArrayLike, shape: Shape) -> Batch:
        """Return copies of the images at `indices`, (n,), from memory if they are cached.

        Raises:
            IndexError: the split has no such image.
            ValueError: an image is broken or has more than 8 bits per channel. The message names it.
        """
        return self.find(indices, shape).batch()

    def find(self, indices: ArrayLike, shape: Shape) -> Found:
        """Return the images at `indices`, (n,), where they are if they are cached; raises as `read`."""
        chosen = self._chosen(indices)
        missing = self.missing(chosen, shape)
        return self.joined(chosen, shape, [self.decode(missing, shape)] if len(missing) else [])

    def joined(self, indices: NDArray[np.int64], shape: Shape, decoded: Sequence[Batch]) -> Found:
        """Return the images at `indices`, those in `decoded` and the cached ones, and cache the former."""
        store = self._store(shape)
        if store is not None:
            for batch in decoded:
                store.put(batch)
            if store.filled[indices].all():
                return store.find(indices)
        parts = [Found.of(batch) for batch in decoded or [_batch(indices[:0], [], [])]]
        there = np.concatenate([part.indices for part in parts])
        if np.array_equal(there, indices):
            return parts[0] if len(parts) == 1 else _joined(parts)
        if store is not None:
            parts.append(store.find(np.setdiff1d(indices, there)))
        return _ordered(parts, indices)

    def decode(self, indices: NDArray[np.int64], shape: Shape) -> Batch:
        """Decode the images at `indices`, (n,), bypassing the cache."""
        images, sizes = list[torch.Tensor](), list[list[int]]()
        for index in indices.tolist():
            try:
                with self.open(index) as image:
                    if isinstance(shape, Whole):
                        shape.reduce(image)
                    sizes.append([image.height, image.width])
                    images.append(_planes(shape.cut(image)))
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
                raise decoding.fault(self.name(index), error) from error
        return _batch(indices, images, sizes)

    def missing(self, indices: ArrayLike, shape: Shape) -> NDArray[np.int64]:
        """Return the elements of `indices` that `read` would have to decode."""
        chosen, store = self._chosen(indices), self._store(shape)
        return chosen if store is None else chosen[~store.filled[chosen]]

    def _chosen(self, indices: ArrayLike) -> NDArray[np.int64]:
        chosen = np.asarray(indices, np.int64)
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(wrong):
            raise IndexError(f"Image {wrong[0]} does not exist: the split has {len(self)}, counted from 0.")
        return chosen

    def _store(self, shape: Shape) -> _Store | None:
        """Return the cache for `shape`, or None if the split does not fit in memory."""
        with self._choosing:
            if shape not in self._stores:
                kept = sum(len(store.values) for store in self._stores.values() if store)
                free = int(self.cache_gb * 1e9) - kept
                need = self.estimate(shape)
                # Photographs differ, so their estimate gets a margin of a tenth, if there is so much memory.
                most = min(free, need + need // 10)
                self._stores[shape] = _Store(len(self), most) if need <= free else None
            return self._stores[shape]

    def keeps(self, shape: Shape) -> bool:
        """Return True if images in this shape are cached."""
        return self._store(shape) is not None

    def estimate(self, shape: Shape) -> int:
        """Return the size in bytes of all images, estimated from the headers of `SAMPLED` whole ones."""
        if isinstance(shape, CentreCrop):
            return len(self) * 3 * shape.size**2
        if shape not in self._estimates:
            self._estimates[shape] = self._estimate(shape)
        return self._estimates[shape]

    def typical(self) -> tuple[int, int]:
        """Return a width and a height whose product is the mean area of some images; 0 and 0 without any."""
        sizes = self._sampled(Whole())
        if not sizes:
            return 0, 0
        width, height = (statistics.mean(sides) for sides in zip(*sizes, strict=True))
        scale = math.sqrt(statistics.mean(map(math.prod, sizes)) / (width * height))
        return round(scale * width), round(scale * height)

    def _estimate(self, shape: Whole) -> int:
        found = [3 * width * height for width, height in self._sampled(shape)]
        return len(self) * sum(found) // max(1, len(found))

    def _sampled(self, shape: Whole) -> list[tuple[int, int]]:
        """Return the widths and heights at which `SAMPLED` images are decoded, from their headers."""
        some = np.linspace(0, len(self) - 1, min(len(self), SAMPLED)).astype(np.int64).tolist()
        found = []
        for index in some:
            with suppress(Exception), self.open(index) as image:  # a broken one raises when it is decoded
                shape.reduce(image)
                found.append(image.size)
        return found


class Names:
    """Many short byte strings in two flat arrays.

    Every worker would copy a list of 2.4 million strings.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self.text = bytearray()
        """All strings, concatenated."""
        self.ends = array("q")
        """End of each string in `text`."""
        for name in names:
            self.append(name)

    def append(self, name: bytes) -> None:
        self.text += name
        self.ends.append(len(self.text))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        end = self.ends[index]
        return bytes(self.text[self.ends[index - 1] if index else 0 : end])

    def repeated(self, key: Callable[[bytes], bytes] = bytes) -> tuple[int, int] | None:
        """Return the indices of two strings with the same key, or None if all keys differ.

        A set of 2.4 million strings would take 0.3 GB, so their hashes are compared first.
        """
        hashes = np.fromiter((hash(key(self[index])) for index in range(len(self))), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        candidates = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        pairs = [(int(order[place]), int(order[place + 1])) for place in candidates]
        same = [pair for pair in pairs if key(self[pair[0]]) == key(self[pair[1]])]
        return min(same, key=lambda pair: pair[1], default=None)


class Files(Images):
    """Images with one file each."""

    def __init__(
        self,
        folder: Path,
        names: Iterable[bytes] | Names,
        labels: ArrayLike,
        classes: Sequence[str],
        cache_gb: float = 0.0,
        targets: NDArray[np.int8] | None = None,
    ) -> None:
        """Create the images from paths relative to `folder`.

        Args:
            names: paths as the file system spells them.
            targets: see `Images.targets`.
            labels, classes, cache_gb: see `Images`.
        """
        super().__init__(labels, classes, cache_gb)
        self._folder = os.fsencode(folder) + b"/"
        self.names = names if isinstance(names, Names) else Names(names)
        assert len(self.names) == len(self), "one label for each name"
        if targets is not None:
            assert targets.shape == (len(self), len(self.classes)), "one target for each image and class"
            self.targets = targets.astype(np.int8)
            self.targets.setflags(write=False)

    def name(self, index: int) -> str:
        return shown(self._path(index))

    def open(self, index: int) -> Image.Image:
        return decoding.opened(os.fsdecode(self._path(index)))

    def paths(self) -> Iterator[bytes]:
        return (self._path(index) for index in range(len(self)))

    @cached_property
    def digest(self) -> str:
        parts = [
            bytes(self.names.text),
            np.array(self.names.ends, "<i8").tobytes(),
            self.states[:, 0].astype("<i8").tobytes(),
            self.labels.astype("<i8").tobytes(),
        ]
        return _sha256(*parts, *([] if self.targets is None else [self.targets.tobytes()]))

    def _path(self, index: int) -> bytes:
        return self._folder + self.names[index]


class Planes(Images):
    """RGB images of one size as raw bytes in memory-mapped files, in STL-10's format.

    An image is its red, green and blue planes, each stored column by column.
    """

    HEAD = 2**20
    """Bytes at the beginning of each file that enter the digest."""

    def __init__(
        self,
        paths: Sequence[Path],
        side: int,
        labels: ArrayLike,
        classes: Sequence[str],
        cache_gb: float = 0.0,
    ) -> None:
        """Create the images from consecutive files.

        Args:
            paths: files in order.
            side: side of the images in pixels.
            labels, classes, cache_gb: see `Images`.
        """
        super().__init__(labels, classes, cache_gb)
        self._paths = tuple(paths)
        self._side = side
        self._ends = np.cumsum([path.stat().st_size // (3 * side**2) for path in paths])
        assert self._ends[-1] == len(self), "one label for each image"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the maps, which pickling would copy as arrays."""
        return {key: value for key, value in super().__getstate__().items() if key != "_maps"}

    def name(self, index: int) -> str:
        part, row = self._locate(index)
        return f"{self._paths[part]}, image {row}"

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self._gather(np.array([index]))[0].transpose(1, 2, 0))

    def paths(self) -> Iterator[bytes]:
        return (os.fsencode(path) for path in self._paths)

    @cached_property
    def digest(self) -> str:
        parts: list[bytes] = []
        for path in self._paths:
            with path.open("rb") as file:
                parts += [path.name.encode(), path.stat().st_size.to_bytes(8, "little"), file.read(self.HEAD)]
        return _sha256(*parts, self.labels.astype("<i8").tobytes())

    def decode(self, indices: NDArray[np.int64], shape: Shape) -> Batch:
        if not isinstance(shape, Whole):
            return super().decode(indices, shape)
        sizes = torch.full((len(indices), 2), self._side)
        return Batch(torch.from_numpy(self._gather(indices)), sizes, torch.tensor(indices))

    def find(self, indices: ArrayLike, shape: Shape) -> Found:
        if not isinstance(shape, Whole):
            return super().find(indices, shape)
        # Not cached: the system caches the file itself, and a second copy would waste memory.
        return Found.of(self.decode(self._chosen(indices), shape))

    def missing(self, indices: ArrayLike, shape: Shape) -> NDArray[np.int64]:
        return super().missing(indices, shape) if not isinstance(shape, Whole) else np.empty(0, np.int64)

    def _store(self, shape: Shape) -> _Store | None:
        return super()._store(shape) if not isinstance(shape, Whole) else None

    @cached_property
    def _maps(self) -> tuple[NDArray[np.uint8], ...]:
        side = self._side
        return tuple(
            np.memmap(path, np.uint8, "r").reshape(-1, 3, side, side).transpose(0, 1, 3, 2)
            for path in self._paths
        )

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the file and the image's index in it."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - (int(self._ends[part - 1]) if part else 0)

    def _gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return pixels, (n, 3, side, side), row by row as in `Images`."""
        pixels = np.empty((len(indices), 3, self._side, self._side), np.uint8)
        for row, index in enumerate(indices.tolist()):
            part, place = self._locate(index)
            pixels[row] = self._maps[part][place]
        return pixels


def _sha256(*parts: bytes) -> str:
    """Return the SHA-256 of the parts.

    Each part comes after its length, so two different lists of parts never agree.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _planes(image: Image.Image) -> torch.Tensor:
    """Return the planes of an RGB image, (3, height, width) uint8."""
    planes = torch.empty(3, image.height, image.width, dtype=torch.uint8)
    for plane, band in zip(planes.numpy(), image.split(), strict=True):
        plane[:] = np.asarray(band)
    return planes


def _batch(
    indices: NDArray[np.int64], images: Sequence[torch.Tensor], sizes: Sequence[Sequence[int]]
) -> Batch:
    """Return a batch of copies of the images, (3, height, width) each."""
    if len({image.shape for image in images}) == 1:
        pixels = torch.stack(list(images))
    else:
        pixels = torch.cat([torch.empty(0, dtype=torch.uint8), *(image.flatten() for image in images)])
    return Batch(pixels, torch.tensor(sizes, dtype=torch.int64).view(-1, 2), torch.tensor(indices))


def _joined(parts: Sequence[Found]) -> Found:
    """Return copies of the images of all parts, each of which has its pixels alone and in order."""
    sizes = np.concatenate([part.sizes for part in parts])
    shapes = np.concatenate([part.images.sizes for part in parts])
    values = torch.cat([part.images.values for part in parts])
    return Found(Originals.of(values, shapes), sizes, np.concatenate([part.indices for part in parts]))


def _ordered(parts: Sequence[Found], indices: NDArray[np.int64]) -> Found:
    """Return copies of the images at `indices`, each of which is in one of the parts."""
    places = {index: (part, row) for part in parts for row, index in enumerate(part.indices.tolist())}
    chosen = [places[index] for index in indices.tolist()]
    sizes = np.stack([part.sizes[row] for part, row in chosen])
    shapes = np.stack([part.images.sizes[row] for part, row in chosen])
    values = torch.cat([part.images.image(row).flatten() for part, row in chosen])
    return Found(Originals.of(values, shapes), sizes, indices)


def batches(
    images: Images,
    order: ArrayLike,
    batch_size: int,
    *,
    crop: CentreCrop | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield the images at `order`, (n,), in batches of `batch_size`; the last batch may be smaller.

    Args:
        crop: centre crops, which all images then are; None for whole images.
        workers: number of processes that decode. With 0, one thread of this process decodes `AHEAD` batches
            ahead.

    Raises:
        ValueError: an image is broken. The error names it and is raised in place of its batch.
    """
    if batch_size < 1 or workers < 0:
        raise InvalidError(
            f"Batches need batch_size >= 1 and workers >= 0, but they are {batch_size} and {workers}."
        )
    flat = np.asarray(order, np.int64)
    return in_parts(
        images,
        [flat[begin : begin + batch_size] for begin in range(0, len(flat), batch_size)],
        Whole() if crop is None else crop,
        workers,
    )


def in_parts(images: Images, parts: Sequence[ArrayLike], shape: Shape, workers: int = 0) -> Iterator[Batch]:
    """Yield batches of any sizes above 0; each of `parts` is one batch of indices, (n,).

    Everything else is as in `batches`.
    """
    pieces = sum(-(-len(np.asarray(part)) // PIECE) for part in parts)
    return (part.batch() for part in found_in(images, [parts], shape, min(workers, pieces)))


def found_in(
    images: Images, epochs: Iterable[Sequence[ArrayLike]], shape: Shape, workers: int = 0
) -> Iterator[Found]:
    """Yield the images of each part of each epoch, without copying those that are cached.

    An epoch is requested when the one before it is being decoded, so nothing waits between them. Processes
    that decode live until the end, or until everything is cached.

    Args:
        epochs: the parts of each epoch, each of them indices, (n,); no image twice in an epoch.
        shape, workers: see `batches`.

    Raises:
        ValueError: as in `batches`.
    """
    stretches = ([np.asarray(part, np.int64) for part in parts] for parts in epochs)
    for parts in stretches:
        if workers and images.keeps(shape):
            missing = sum(len(images.missing(part, shape)) for part in parts)
            number = min(workers, -(-missing // PIECE))
            yield from _decoded(images, parts, shape, number)
        else:  # all epochs are alike
            every = chain(parts, chain.from_iterable(stretches))
            number = workers if parts and len(images.missing(parts[0], shape)) else 0
            yield from _decoded(images, every, shape, number)


def _decoded(
    images: Images, parts: Iterable[NDArray[np.int64]], shape: Shape, workers: int
) -> Iterator[Found]:
    """Return an iterator over images that so many processes decode, or as many as fit in shared memory."""
    if not workers:
        return _ahead(images, parts, shape)
    free, image = shared_memory.free(cores.sharing()), images.estimate(shape) // len(images)
    number, piece = shared_memory.fitting(free, image, workers)
    if number < workers:
        logger.warning("%s", shared_memory.few(number, image, workers, free or 0))
    elif number > cores.usable():
        logger.warning("%s", cores.many(number))
    return _by_processes(images, parts, shape, number, piece) if number else _ahead(images, parts, shape)


def _ahead(images: Images, parts: Iterable[NDArray[np.int64]], shape: Shape) -> Iterator[Found]:
    """Yield images that one thread decodes while the caller works on earlier ones.

    Pillow decodes without holding the interpreter's lock.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
    try:
        waiting: deque[Future[Found] | NDArray[np.int64]] = deque()

        def first() -> Found:
            part = waiting.popleft()
            return images.find(part, shape) if isinstance(part, np.ndarray) else part.result()

        for part in parts:
            decode = len(images.missing(part, shape)) or not images.keeps(shape)
            waiting.append(thread.submit(images.find, part, shape) if decode else part)
            if len(waiting) > AHEAD:
                yield first()
        while waiting:
            yield first()
    finally:
        # A caller that stops early waits for at most one batch, not for all that are queued.
        thread.shutdown(cancel_futures=True)


class _Pieces(Dataset[Any]):
    """The work of a worker process: decode the images of one piece.

    A broken image is returned as an exception, so that the parent process can raise it as one line.
    """

    def __init__(self, images: Images, shape: Shape) -> None:
        self._images, self._shape = images, shape

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch | InvalidError:
        try:
            return self._images.decode(indices, self._shape)
        except InvalidError as error:
            return error


def _by_processes(
    images: Images, parts: Iterable[NDArray[np.int64]], shape: Shape, workers: int, piece: int
) -> Iterator[Found]:
    """Yield images; worker processes decode those that are not cached, `piece` of them at once."""
    planned: deque[tuple[NDArray[np.int64], int]] = deque()  # parts that have begun, and their pieces

    def pieces() -> Iterator[NDArray[np.int64]]:
        for part in parts:
            missing = images.missing(part, shape)
            cut = [missing[begin : begin + piece] for begin in range(0, len(missing), piece)]
            planned.append((part, len(cut)))
            yield from cut

    sampler: Any = pieces()
    # With its default generator the loader draws from torch's global one, and the number of workers would
    # change the results of a run.
    generator = torch.Generator()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # `_decoded` has a warning of its own
    decoded = iter(
        DataLoader(
            _Pieces(images, shape),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=shared_memory.PREFETCHED,
            generator=generator,
            worker_init_fn=ignore_signals,
        )
    )
    try:
        # The loader requests pieces ahead of those that it returns, so the next part is always planned.
        while planned:
            part, number = planned.popleft()
            got = [_copied(next(decoded)) for _ in range(number)]
            yield images.joined(part, shape, got)
    finally:
        # Ends the workers now. An iterator that a traceback or the garbage collector keeps alive would end
        # them seconds later.
        del decoded


def ignore_signals(worker: int) -> None:
    """Make a worker end only with its parent process, or when its parent sends a signal.

    A terminal and torchrun send signals to the whole process group. The current step must still get its
    images.
    """
    blocked = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    threading.Thread(target=_obey, args=(blocked, os.getppid()), daemon=True).start()


def _obey(signals: Sequence[signal.Signals], parent: int) -> None:
    """End this process when `parent` sends one of the signals."""
    while signal.sigwaitinfo(signals).si_pid != parent:
        pass
    os._exit(0)


def _copied(result: Batch | InvalidError) -> Batch:
    """Return a copy in memory of this process alone; shared memory could not hold a whole batch."""
    if isinstance(result, InvalidError):
        raise result
    return Batch(*(each.clone() for each in result))
