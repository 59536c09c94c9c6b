"""The images of one split: decoded by index or in batches, from files (`Files`) or from raw planes
(`Planes`).

    images = STL10().load("train", site)
    for pixels, sizes, indices in batches(images, order, 256, canvas=96, workers=site.workers):
        ...  # pixels: (256, 3, 96, 96) uint8

An image is decoded once for all its views: whole, in RGB, squashed to a square canvas whose crops the views
are. Decoded images stay in memory where the whole split fits; the bytes are the same with and without, and
whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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

from reproduce.messages import InvalidError

PIECE = 64
"""Images that a worker decodes at once: small, so that the pieces under way fit in the shared memory of a
container."""
AHEAD = 2
"""Batches prepared before they are asked for."""


class Batch(NamedTuple):
    """Decoded images, in the order asked for."""

    pixels: torch.Tensor
    """(n, 3, side, side) uint8."""
    sizes: torch.Tensor
    """(n, 2) int64, height and width of the original images in pixels: what the squashing of a canvas is
    undone with."""
    indices: torch.Tensor
    """(n,) int64, in the split."""


@dataclass(frozen=True)
class Canvas:
    """The whole image, squashed to `side` x `side` pixels (bicubic, antialiased)."""

    side: int

    def cut(self, image: Image.Image) -> Image.Image:
        """The canvas of one image."""
        # A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size where that leaves twice the canvas in both
        # directions; the resize below then makes up for the simpler filter of the decoder (Pillow's
        # `reducing_gap` of 2).
        image.draft("RGB", (2 * self.side, 2 * self.side))
        return _resized(_rgb(image), (self.side, self.side))


@dataclass(frozen=True)
class CentreCrop:
    """The shorter side resized to `resize` pixels (bicubic, antialiased), then the `size` x `size` pixels in
    the middle."""

    resize: int
    size: int

    def __post_init__(self) -> None:
        if self.size > self.resize:
            raise InvalidError(
                f"A centre crop of {self.size} pixels needs a shorter side of at least as many, not resize {self.resize}."
            )

    @property
    def side(self) -> int:
        """Of the result, in pixels."""
        return self.size

    def cut(self, image: Image.Image) -> Image.Image:
        """The crop of one image; roundings are torchvision's."""
        width, height = image.size
        shorter = min(width, height)
        image = _resized(
            _rgb(image), (int(self.resize * width / shorter), int(self.resize * height / shorter))
        )
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))


Shape = Canvas | CentreCrop


def _rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; grey, palette and CMYK images are converted."""
    if image.mode[0] in "IF":
        raise InvalidError(f"its mode is {image.mode}, more than 8 bits a channel")
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at (width, height), itself where it has that size already."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


class _Store:
    """Decoded images of a split at one shape; memory is taken up only as they are put in."""

    def __init__(self, num_images: int, side: int) -> None:
        self.pixels = np.empty((num_images, 3, side, side), np.uint8)
        self.sizes = np.empty((num_images, 2), np.int64)
        self.filled = np.zeros(num_images, np.bool_)

    def put(self, indices: NDArray[np.int64], pixels: NDArray[np.uint8], sizes: NDArray[np.int64]) -> None:
        self.pixels[indices], self.sizes[indices] = pixels, sizes
        self.filled[indices] = True  # last, so that another thread never reads what is not there yet


class Images(ABC):
    """The images of one split, in an order that is the same on every machine."""

    labels: NDArray[np.int64]
    """(n,), an index into `classes`; -1 where the image is unlabelled, or has several labels in `targets`."""
    classes: tuple[str, ...]
    targets: NDArray[np.int8] | None = None
    """(n, classes) of a data set with several labels an image: 1 the class is there, -1 it is not, 0 it does
    not count (difficult)."""

    def __init__(self, labels: ArrayLike, classes: Sequence[str], cache_gb: float = 0.0) -> None:
        """`cache_gb`: decoded images stay in memory while all shapes of the whole split together fit in it,
        in 10^9 bytes."""
        self.labels = np.array(labels, np.int64)
        self.labels.setflags(write=False)
        self.classes = tuple(classes)
        self.cache_gb = cache_gb
        self._stores: dict[Shape, _Store | None] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoded images: worker processes that are not forked get a small copy."""
        return {key: value for key, value in vars(self).items() if key != "_stores"} | {"_stores": {}}

    @abstractmethod
    def name(self, index: int) -> str:
        """Where the image is, for messages."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """The image in any mode, at its original size; may raise anything where it is broken."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over names, file sizes and labels: cheap, and different where a file was lost, added or
        cut."""

    def canvas(self, indices: ArrayLike, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole images squashed to squares: (n, 3, side, side) uint8, and (n, 2) int64, the original heights
        and widths in pixels.

        Raises:
            ValueError: an image is broken; the message names it.
        """
        batch = self.read(indices, Canvas(side))
        return batch.pixels, batch.sizes

    def test_crop(self, indices: ArrayLike, resize: int, size: int) -> torch.Tensor:
        """Centre crops, (n, 3, size, size) uint8, of images whose shorter side is resized to `resize` pixels.

        Raises:
            ValueError: an image is broken; the message names it.
        """
        return self.read(indices, CentreCrop(resize, size)).pixels

    def read(self, indices: ArrayLike, shape: Shape) -> Batch:
        """The images at `indices`, (n,), from memory where they are there.

        Raises:
            IndexError: there is no such image.
            ValueError: an image is broken; the message names it.
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
        """Pixels, (n, 3, side, side), and original heights and widths, (n, 2), without a look into memory."""
        pixels = np.empty((len(indices), 3, shape.side, shape.side), np.uint8)
        sizes = np.empty((len(indices), 2), np.int64)
        for row, index in enumerate(indices.tolist()):
            try:
                with self.open(index) as image:
                    sizes[row] = image.height, image.width
                    pixels[row] = np.asarray(shape.cut(image)).transpose(2, 0, 1)
            except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more
                raise InvalidError(f"{self.name(index)} cannot be decoded: {error}. Get it again.") from error
        return pixels, sizes

    def missing(self, indices: ArrayLike, shape: Shape) -> NDArray[np.int64]:
        """Those of `indices` that `read` would have to decode."""
        chosen, store = self._chosen(indices), self._store(shape)
        return chosen if store is None else chosen[~store.filled[chosen]]

    def keep(self, batch: Batch, shape: Shape) -> None:
        """Takes in images that another process decoded, where they fit."""
        store = self._store(shape)
        if store is not None:
            store.put(batch.indices.numpy(), batch.pixels.numpy(), batch.sizes.numpy())

    def _chosen(self, indices: ArrayLike) -> NDArray[np.int64]:
        chosen = np.asarray(indices, np.int64)
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(wrong):
            raise IndexError(f"There is no image {wrong[0]}: the split has {len(self)}, counted from 0.")
        return chosen

    def _store(self, shape: Shape) -> _Store | None:
        """The memory for `shape`, None where it does not fit."""
        if shape not in self._stores:
            used = sum(store.pixels.nbytes for store in self._stores.values() if store is not None)
            fits = used + len(self) * 3 * shape.side**2 <= self.cache_gb * 1e9
            self._stores.setdefault(shape, _Store(len(self), shape.side) if fits else None)
        return self._stores[shape]


class Names:
    """Many short byte strings in two flat arrays: a list of 2.4 million strings would be copied by every
    worker."""

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self.text = bytearray()
        """All of them, one after the other."""
        self.ends = array("q")
        """Where each ends."""
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


class Files(Images):
    """One file for each image."""

    def __init__(
        self,
        folder: Path,
        names: Iterable[bytes] | Names,
        labels: ArrayLike,
        classes: Sequence[str],
        cache_gb: float = 0.0,
        targets: NDArray[np.int8] | None = None,
    ) -> None:
        """`names`: paths relative to `folder`, as the file system spells them; the rest as in `Images`."""
        super().__init__(labels, classes, cache_gb)
        self._folder = os.fsencode(folder) + b"/"
        self.names = names if isinstance(names, Names) else Names(names)
        assert len(self.names) == len(self), "as many names as labels"
        if targets is not None:
            assert targets.shape == (len(self), len(self.classes)), "a target for each image and class"
            self.targets = targets.astype(np.int8)
            self.targets.setflags(write=False)

    def name(self, index: int) -> str:
        return os.fsdecode(self._path(index))

    def open(self, index: int) -> Image.Image:
        return Image.open(self.name(index))

    @cached_property
    def digest(self) -> str:
        # The size of each file is asked for here, not in the scan: 1.28 million questions take seconds, on a
        # network file system minutes.
        sizes = np.array([self._num_bytes(index) for index in range(len(self))], "<i8")
        parts = [
            bytes(self.names.text),
            np.array(self.names.ends, "<i8").tobytes(),
            sizes.tobytes(),
            self.labels.astype("<i8").tobytes(),
        ]
        return _sha256(*parts, *([] if self.targets is None else [self.targets.tobytes()]))

    def _num_bytes(self, index: int) -> int:
        """Of one file; a ValueError that names it where it is not there."""
        try:
            return os.stat(self._path(index)).st_size  # noqa: PTH116 (bytes)
        except OSError as error:
            raise InvalidError(
                f"{self.name(index)} belongs to the data set and cannot be found ({error.strerror}). Get it again."
            ) from None

    def _path(self, index: int) -> bytes:
        return self._folder + self.names[index]


class Planes(Images):
    """RGB images of one size as raw bytes in memory-mapped files: red, green, blue planes, each column by
    column (STL-10)."""

    HEAD = 2**20
    """Bytes at the begin of each file that enter the digest."""

    def __init__(
        self,
        paths: Sequence[Path],
        side: int,
        labels: ArrayLike,
        classes: Sequence[str],
        cache_gb: float = 0.0,
    ) -> None:
        """`paths`: files that follow one another; `side`: of the images, in pixels."""
        super().__init__(labels, classes, cache_gb)
        self._paths = tuple(paths)
        self._side = side
        self._ends = np.cumsum([path.stat().st_size // (3 * side**2) for path in paths])
        assert self._ends[-1] == len(self), "as many labels as images"

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, which would be copied as arrays."""
        return {key: value for key, value in super().__getstate__().items() if key != "_maps"}

    def name(self, index: int) -> str:
        part, row = self._locate(index)
        return f"{self._paths[part]}, image {row}"

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self._gather(np.array([index]))[0].transpose(1, 2, 0))

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
        chosen = self._chosen(
            indices
        )  # the system's own cache of the file is the memory: a second copy would be waste
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
        """The file and the image's number in it."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - (int(self._ends[part - 1]) if part else 0)

    def _gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, 3, side, side), row by row as everybody else has them."""
        pixels = np.empty((len(indices), 3, self._side, self._side), np.uint8)
        for row, index in enumerate(indices.tolist()):
            part, place = self._locate(index)
            pixels[row] = self._maps[part][place]
        return pixels


def _sha256(*parts: bytes) -> str:
    """Of the parts, each after its length, so that no two lists of parts agree."""
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
    crop: tuple[int, int] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """The images at `order`, (n,), in batches of `batch_size`, the last one smaller where n is no multiple of
    it.

    Args:
        canvas: the side of whole images squashed to squares, in pixels; this or `crop`.
        crop: `resize` and `size` of centre crops, in pixels.
        workers: processes that decode; 0: one thread of this process, `AHEAD` batches ahead.

    Raises:
        ValueError: an image is broken; raised, with its name, in place of the batch that it belongs to.
    """
    if batch_size < 1 or workers < 0:
        raise InvalidError(f"Batches take batch_size >= 1 and workers >= 0, not {batch_size} and {workers}.")
    if (canvas is None) == (crop is None):
        raise InvalidError(
            f"Batches are of canvases or of crops, one of the two: canvas is {canvas}, crop is {crop}."
        )
    shape = Canvas(canvas) if canvas is not None else CentreCrop(*crop)  # type: ignore[misc]
    flat = np.asarray(order, np.int64)
    return in_parts(
        images,
        [flat[begin : begin + batch_size] for begin in range(0, len(flat), batch_size)],
        shape,
        workers,
    )


def in_parts(images: Images, parts: Sequence[ArrayLike], shape: Shape, workers: int = 0) -> Iterator[Batch]:
    """As `batches`, for batches of any sizes above 0: each of `parts` is one, (n,) indices."""
    chosen = [np.asarray(part, np.int64) for part in parts]
    if workers and any(len(images.missing(part, shape)) for part in chosen):
        return _by_processes(images, chosen, shape, workers)
    return _ahead(images, chosen, shape)


def _ahead(images: Images, parts: Sequence[NDArray[np.int64]], shape: Shape) -> Iterator[Batch]:
    """Batches read in one thread while the caller works on those before; Pillow decodes without the
    interpreter's lock."""
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
        thread.shutdown(
            cancel_futures=True
        )  # whoever stops asking waits for one batch at most, not for those ahead of it


class _Pieces(Dataset[Any]):
    """What a worker process does: decode the images of one piece. A broken image comes back as the error, to
    be raised in one line."""

    def __init__(self, images: Images, shape: Shape) -> None:
        self._images, self._shape = images, shape

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch | ValueError:
        try:
            return _batch(indices, *self._images.decode(indices, self._shape))
        except ValueError as error:
            return ValueError(str(error))


def _by_processes(
    images: Images, parts: Sequence[NDArray[np.int64]], shape: Shape, workers: int
) -> Iterator[Batch]:
    """Batches whose images, as far as they are not in memory, are decoded in worker processes."""
    missing = [images.missing(part, shape) for part in parts]
    pieces = [[part[begin : begin + PIECE] for begin in range(0, len(part), PIECE)] for part in missing]
    sampler: Any = [piece for part in pieces for piece in part]
    own = (
        torch.Generator()
    )  # else the loader draws from torch's global one, and the number of workers would move a run
    pictures = _Pieces(images, shape)
    decoded = iter(
        DataLoader(
            pictures,
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            generator=own,
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
        del decoded  # ends the workers now: an iterator left in a traceback or to the garbage collector ends them seconds later


def ignore_signals(worker: int) -> None:
    """For a worker: it ends with the process that it decodes for, or when that one says so.

    A signal to the whole group, as a terminal and torchrun send it, must leave the step under way its images.
    """
    heard = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    threading.Thread(target=_obey, args=(heard, os.getppid()), daemon=True).start()


def _obey(heard: Sequence[signal.Signals], parent: int) -> None:
    """Ends this process when `parent` sends one of the signals."""
    while signal.sigwaitinfo(heard).si_pid != parent:
        pass
    os._exit(0)


def _raised(result: Batch | ValueError) -> Batch:
    if isinstance(result, ValueError):
        raise result
    return result
