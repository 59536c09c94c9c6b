"""The decoded images of a batch in flat memory, each at its own size.

They need not be neighbours: the images of a batch may lie anywhere in the memory of a whole split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reproduce.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Ints = NDArray[np.int64]


class Originals(NamedTuple):
    """Images in one tensor of bytes."""

    values: Tensor
    """Red, green and blue plane of each image in turn, (values,) uint8. It may contain further images."""
    starts: Ints
    """Place of the first value of each image, (n,)."""
    sizes: Ints
    """Height and width of each image, (n, 2)."""

    @staticmethod
    def of(pixels: Tensor, sizes: Ints) -> Originals:
        """Return images of one size, (n, 3, height, width), or images one after the other, (values,)."""
        lengths = 3 * sizes.prod(axis=1)
        return Originals(pixels.flatten(), lengths.cumsum() - lengths, sizes)

    @property
    def lengths(self) -> Ints:
        """Number of values of each image, (n,)."""
        lengths: Ints = 3 * self.sizes.prod(axis=1)
        return lengths

    @property
    def on_cpu(self) -> bool:
        return self.values.device.type == "cpu"

    @property
    def one_size(self) -> bool:
        """True if all images have the same height and width."""
        return bool((self.sizes == self.sizes[:1]).all())

    def image(self, index: int) -> Tensor:
        """Return one image, (3, height, width) uint8, in the same memory."""
        start, (height, width) = int(self.starts[index]), self.sizes[index].tolist()
        return self.values[start : start + 3 * height * width].view(3, height, width)

    def stacked(self, of: Ints, out: Tensor | None = None) -> Tensor | None:
        """Return copies of the images `of`, (m, 3, height, width), in one operation.

        None if sizes differ, or if an image does not start at a multiple of the length of all.
        """
        if not len(self.sizes) or not self.one_size:
            return None
        height, width = self.sizes[0].tolist()
        length = 3 * height * width
        if (self.starts % length).any():
            return None
        whole = self.values[: len(self.values) // length * length].view(-1, 3, height, width)
        rows = torch.from_numpy(self.starts[of] // length).to(whole.device, non_blocking=True)
        return torch.index_select(whole, 0, rows, out=out)

    def packed(self, *, pinned: bool = False) -> Originals:
        """Return copies of the images one after the other, without further images.

        Args:
            pinned: use memory that a GPU can copy from without this process; the images are on the CPU.
        """
        import numpy as np

        lengths = self.lengths
        values = torch.empty(int(lengths.sum()), dtype=torch.uint8, pin_memory=pinned)
        packed = Originals(values, lengths.cumsum() - lengths, self.sizes)
        if not len(lengths):
            return packed
        rows = np.arange(len(lengths))
        out = values.view(len(rows), 3, *self.sizes[0].tolist()) if self.one_size else None
        if out is None or self.stacked(rows, out) is None:
            ranges = zip(self.starts.tolist(), lengths.tolist(), strict=True)
            torch.cat([self.values[start : start + length] for start, length in ranges], out=values)
        return packed

    def on(self, device: torch.device) -> Originals:
        """Return the images on a device, alone; a GPU copies them while this process continues."""
        if device.type == "cpu":
            return self
        alone = self if len(self.values) == self.lengths.sum() and self.values.is_pinned() else None
        packed = alone or self.packed(pinned=True)
        return packed._replace(values=packed.values.to(device, non_blocking=True))
