"""Decode the images of one split by index or in batches, from files (`Files`) or raw planes (`Planes`).

    images = STL10().load("train", site)
    for pixels, sizes, indices in batches(images, order, 256, canvas=96, workers=site.workers):
        ...  # pixels: (256, 3, 96, 96) uint8

An image is decoded once for all its views: whole, in RGB, squashed to a square canvas. The views are crops of
the canvas. Decoded images stay in memory if the whole split fits. The bytes do not depend on the cache or on
the number of workers.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from reproduce.data import decoding
from reproduce.data.sources import shown, state
from reproduce.messages import InvalidError
from reproduce.settings import Resampling

PIECE = 64
"""Images that a worker decodes at once: few, so that the pieces in flight fit in the shared memory of a
container."""
AHEAD = 2
"""Batches prepared ahead of the caller."""


class Batch(NamedTuple):
    """Decoded images, in the order of the request."""

    pixels: torch.Tensor
    """(n, 3, side, side) uint8."""
    sizes: torch.Tensor
    """(n, 2) int64, height and width of the original images in pixels. Crops use them to undo the
    squashing."""
    indices: torch.Tensor
    """(n,) int64, indices in the split."""


@dataclass(frozen=True)
class Canvas:
    """The whole image, squashed to `side` x `side` pixels (bicubic, antialiased)."""

    side: int

    def cut(self, image: Image.Image) -> Image.Image:
        """Return the canvas of one image."""
        # A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least twice the canvas in
        # both directions. The resize below then makes up for the decoder's simpler filter (Pillow's
        # `reducing_gap` of 2).
        image.draft("RGB", (2 * self.side, 2 * self.side))
        return _resized(_rgb(image), (self.side, self.side))


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

    @property
    def side(self) -> int:
        """Side of the crop, in pixels."""
        return self.size

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


Shape = Canvas | CentreCrop


def _rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB; grey, palette and CMYK images are converted."""
    decoding.eight_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(image: Image.Image, size: tuple[int, int], resampling: Resampling = "bicubic") -> Image.Image:
    """Return the image resized to (width, height), or the image itself if it has that size."""
    return image if image.size == size else image.resize(size, Image.Resampling[resampling.upper()])


class _Store:
    """Decoded images of a split in one shape.

    The system allocates the memory of an image only when the image is stored.
    """

    def __init__(self, num_images: int, side: int) -> None:
        self.pixels = np.empty((num_images, 3, side, side), np.uint8)
        self.sizes = np.empty((num_images, 2), np.int64)
        self.filled = np.zeros(num_images, np.bool_)

    def put(self, indices: NDArray[np.int64], pixels: NDArray[np.uint8], sizes: NDArray[np.int64]) -> None:
        self.pixels[indices], self.sizes[indices] = pixels, sizes
        self.filled[indices] = True  # last, so that another thread never reads an incomplete image


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
            cache_gb: 10^9 bytes of memory for decoded images. A shape is cached if the whole split fits next
                to the shapes that are cached already.
        """
        self.labels = np.array(labels, np.int64)
        self.labels.setflags(write=False)
        self.classes = tuple(classes)
        self.cache_gb = cache_gb
        self._stores: dict[Shape, _Store | None] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is large and not needed, so that worker processes that are not forked get little.

        These are the decoded images and the states of the files.
        """
        kept = {key: value for key, value in vars(self).items() if key not in ("_stores", "states")}
        return kept | {"_stores": {}}

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
        """Return the images at `indices`, (n,), from memory if they are cached.

        Raises:
            IndexError: the split has no such image.
            ValueError: an image is broken or has more than 8 bits per channel. The message names it.
        """
        chosen = self._chosen(indices)
        store = self._store(shape)
        if store is None:
            return _batch(chosen, *self.decode(chosen, shape))
        missing = chosen[~store.filled[chosen]]
        if len(missing):
            store.put(missing, *self.decode(missing, shape))
        return _batch(chosen, store.pixels[chosen], store.sizes[chosen])

    def decode(self, indices: NDArray[np.int64], shape: Shape) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Decode pixels, (n, 3, side, side), and original heights and widths, (n, 2), bypassing the cache."""
        pixels = np.empty((len(indices), 3, shape.side, shape.side), np.uint8)
        sizes = np.empty((len(indices), 2), np.int64)
        for row, index in enumerate(indices.tolist()):
            try:
                with self.open(index) as image:
                    sizes[row] = image.height, image.width
                    pixels[row] = np.asarray(shape.cut(image)).transpose(2, 0, 1)
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
                raise decoding.fault(self.name(index), error) from error
        return pixels, sizes

    def missing(self, indices: ArrayLike, shape: Shape) -> NDArray[np.int64]:
        """Return the elements of `indices` that `read` would have to decode."""
        chosen, store = self._chosen(indices), self._store(shape)
        return chosen if store is None else chosen[~store.filled[chosen]]

    def keep(self, batch: Batch, shape: Shape) -> None:
        """Cache images that another process decoded, if they fit."""
        store = self._store(shape)
        if store is not None:
            store.put(batch.indices.numpy(), batch.pixels.numpy(), batch.sizes.numpy())

    def _chosen(self, indices: ArrayLike) -> NDArray[np.int64]:
        chosen = np.asarray(indices, np.int64)
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(wrong):
            raise IndexError(f"Image {wrong[0]} does not exist: the split has {len(self)}, counted from 0.")
        return chosen

    def _store(self, shape: Shape) -> _Store | None:
        """Return the cache for `shape`, or None if it does not fit in memory."""
        if shape not in self._stores:
            used = sum(store.pixels.nbytes for store in self._stores.values() if store is not None)
            fits = used + len(self) * 3 * shape.side**2 <= self.cache_gb * 1e9
            self._stores.setdefault(shape, _Store(len(self), shape.side) if fits else None)
        return self._stores[shape]


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
        return Image.open(os.fsdecode(self._path(index)))

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

    def decode(self, indices: NDArray[np.int64], shape: Shape) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if shape != Canvas(self._side):
            return super().decode(indices, shape)
        return self._gather(indices), np.full((len(indices), 2), self._side, np.int64)

    def read(self, indices: ArrayLike, shape: Shape) -> Batch:
        if shape != Canvas(self._side):
            return super().read(indices, shape)
        # Not cached: the system caches the file itself, and a second copy would waste memory.
        chosen = self._chosen(indices)
        return _batch(chosen, *self.decode(chosen, shape))

    def missing(self, indices: ArrayLike, shape: Shape) -> NDArray[np.int64]:
        return super().missing(indices, shape) if shape != Canvas(self._side) else np.empty(0, np.int64)

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


def _batch(indices: NDArray[np.int64], pixels: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Batch:
    return Batch(torch.from_numpy(pixels), torch.from_numpy(sizes), torch.tensor(indices))


def batches(
    images: Images,
    order: ArrayLike,
    batch_size: int,
    *,
    canvas: int | None = None,
    crop: CentreCrop | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield the images at `order`, (n,), in batches of `batch_size`; the last batch may be smaller.

    Args:
        canvas: side in pixels of whole images squashed to squares. Exclusive with `crop`.
        crop: centre crops, which all images then are.
        workers: number of processes that decode. With 0, one thread of this process decodes `AHEAD` batches
            ahead.

    Raises:
        ValueError: an image is broken. The error names it and is raised in place of its batch.
    """
    if batch_size < 1 or workers < 0:
        raise InvalidError(
            f"Batches need batch_size >= 1 and workers >= 0, but they are {batch_size} and {workers}."
        )
    shape: Shape
    if canvas is not None and crop is None:
        shape = Canvas(canvas)
    elif crop is not None and canvas is None:
        shape = crop
    else:
        raise InvalidError(f"Batches need either canvas or crop, but canvas is {canvas} and crop is {crop}.")
    flat = np.asarray(order, np.int64)
    return in_parts(
        images,
        [flat[begin : begin + batch_size] for begin in range(0, len(flat), batch_size)],
        shape,
        workers,
    )


def in_parts(images: Images, parts: Sequence[ArrayLike], shape: Shape, workers: int = 0) -> Iterator[Batch]:
    """Yield batches of any sizes above 0; each of `parts` is one batch of indices, (n,).

    Everything else is as in `batches`.
    """
    chosen = [np.asarray(part, np.int64) for part in parts]
    if workers and any(len(images.missing(part, shape)) for part in chosen):
        return _by_processes(images, chosen, shape, workers)
    return _ahead(images, chosen, shape)


def _ahead(images: Images, parts: Sequence[NDArray[np.int64]], shape: Shape) -> Iterator[Batch]:
    """Yield batches that one thread reads while the caller works on earlier ones.

    Pillow decodes without holding the interpreter's lock.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
    try:
        waiting: deque[Future[Batch]] = deque()
        for part in parts:
            waiting.append(thread.submit(images.read, part, shape))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
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
            return _batch(indices, *self._images.decode(indices, self._shape))
        except InvalidError as error:
            return error


def _by_processes(
    images: Images, parts: Sequence[NDArray[np.int64]], shape: Shape, workers: int
) -> Iterator[Batch]:
    """Yield batches; worker processes decode the images that are not cached."""
    missing = [images.missing(part, shape) for part in parts]
    pieces = [[part[begin : begin + PIECE] for begin in range(0, len(part), PIECE)] for part in missing]
    sampler: Any = [piece for part in pieces for piece in part]
    # With its default generator the loader draws from torch's global one, and the number of workers would
    # change the results of a run.
    generator = torch.Generator()
    decoded = iter(
        DataLoader(
            _Pieces(images, shape),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            generator=generator,
            worker_init_fn=ignore_signals,
        )
    )
    try:
        for part, expected in zip(parts, pieces, strict=True):
            got = [_raised(next(decoded)) for _ in expected]
            for batch in got:
                images.keep(batch, shape)
            if len(part) == sum(len(batch.indices) for batch in got):
                yield Batch(*(torch.cat(tensors) for tensors in zip(*got, strict=True)))
            else:
                yield images.read(part, shape)
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


def _raised(result: Batch | InvalidError) -> Batch:
    if isinstance(result, InvalidError):
        raise result
    return result
