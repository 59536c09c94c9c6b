"""The images of a split as bytes on a GPU, which then needs only the numbers of a batch's images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproduce.lazy import torch
from reproduce.runs import environment

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.data.images import Found
    from reproduce.data.originals import Originals

SHARE = 0.1
"""Maximum share of the device's free memory for the images of all runs on it; the rest is for training."""


class Resident:
    """A copy of the cached images on a device, which follows the cache as that is filled."""

    def __init__(self, device: torch.device, free: int | None = None) -> None:
        """Reserve nothing yet.

        Args:
            free: free bytes on the device. None to look; a CPU then gets no copy.
        """
        self._device, self._free = device, free
        self._values: Tensor | None = None
        self._copied = 0

    def __call__(self, found: Found) -> Originals:
        """Return the images on the device, from the copy if they are cached and it fits."""
        cache = found.images.values
        if not found.cached or not self._fits(len(cache)):
            return found.images.on(self._device)
        if self._values is None:
            self._values = torch.empty(len(cache), dtype=torch.uint8, device=self._device)
        end = int((found.images.starts + found.images.lengths).max(initial=0))
        if end > self._copied:  # everything before the end is filled: see `Found.cached`
            new = cache[self._copied : end]
            new = new.pin_memory() if self._device.type == "cuda" else new
            self._values[self._copied : end].copy_(new, non_blocking=True)
            self._copied = end
        return found.images._replace(values=self._values)

    def _fits(self, size: int) -> bool:
        if self._free is None:
            gpu = self._device.type == "cuda"
            self._free = torch.cuda.mem_get_info(self._device)[0] if gpu else 0
        return environment.sharing() * size <= SHARE * self._free  # each of these runs may keep a copy
