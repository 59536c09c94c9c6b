"""Images and their objects in the format of torchvision's detectors.

The choice of training objects follows Detectron2 (detectron2/data/detection_utils.py). Crowds are left out,
boxes are clipped to the image and must have an area, and a mask needs a polygon of at least three points.
VOC's difficult objects are trained on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from reproduce.data import detection
from reproduce.data.detection import Box, Instance, Picture
from reproduce.lazy import torch
from reproduce.nn import distributed
from reproduce.runs import cores
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

AHEAD = 2
"""Number of batches prepared in advance."""

T = TypeVar("T")


def pixels(picture: Picture) -> Tensor:
    """Return the image in RGB, (3, height, width) float32 from 0 to 1.

    Raises:
        ValueError: The file is broken; see `pixels` in `data/detection.py`.
    """
    return torch.tensor(detection.pixels(picture)).permute(2, 0, 1).float() / 255


def target(picture: Picture, *, masks: bool) -> dict[str, Tensor]:
    """Return the training target of an image.

    Args:
        masks: include masks.

    Returns:
        `boxes` (n, 4) float32 in pixels, `labels` (n,) int64 from 1 (0 is the background), and with masks
        `masks` (n, height, width) uint8.
    """
    learnt = _learnt(picture, masks)
    boxes = torch.tensor([_clipped(each.box, picture) for each in learnt], dtype=torch.float32)
    labels = torch.tensor([1 + each.label for each in learnt], dtype=torch.int64)
    found = {"boxes": boxes.view(-1, 4), "labels": labels}
    if masks:
        found["masks"] = torch.stack([_mask(each, picture) for each in learnt])
    return found


def usable(pictures: Iterable[Picture], *, masks: bool) -> tuple[Picture, ...]:
    """Return the images that have at least one object to train on."""
    return tuple(picture for picture in pictures if _learnt(picture, masks))


def flipped(image: Tensor, found: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mirror image of an image and its target."""
    left, top, right, bottom = found["boxes"].unbind(1)
    width = image.shape[-1]
    mirrored = dict(found) | {"boxes": torch.stack([width - right, top, width - left, bottom], dim=1)}
    if "masks" in found:
        mirrored["masks"] = found["masks"].flip(-1)
    return image.flip(-1), mirrored


def prepared(
    groups: Iterable[Sequence[Picture]], work: Callable[[Picture], T], threads: int
) -> Iterator[list[T]]:
    """Yield the results of `work` for each group of images, computed a few groups ahead of the caller.

    Threads suffice, because Pillow decodes without the interpreter's lock.
    """
    with ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="decode") as pool:
        waiting: deque[list[Future[T]]] = deque()
        for group in groups:
            waiting.append([pool.submit(work, picture) for picture in group])
            if len(waiting) > AHEAD:
                yield [each.result() for each in waiting.popleft()]
        while waiting:
            yield [each.result() for each in waiting.popleft()]


def decoders(site: Site) -> int:
    """Return the number of threads or processes that decode images for this process; 0 for itself."""
    return cores.decoders(site.workers, distributed.device(site.device).type)


def _learnt(picture: Picture, masks: bool) -> list[Instance]:
    """Return the objects of an image that are trained on."""

    def fits(each: Instance) -> bool:
        left, top, right, bottom = _clipped(each.box, picture)
        return not each.crowd and left < right and top < bottom and (not masks or bool(_outlines(each)))

    return [each for each in picture.instances if fits(each)]


def _clipped(box: Box, picture: Picture) -> Box:
    """Return the part of a box that lies in the image."""
    left, top, right, bottom = box
    width, height = float(picture.width), float(picture.height)
    return (
        min(max(left, 0), width),
        min(max(top, 0), height),
        min(max(right, 0), width),
        min(max(bottom, 0), height),
    )


def _outlines(instance: Instance) -> Any:
    """Return an object's polygons of at least three points, or its run-length encoding.

    The result is empty if the object has no mask.
    """
    given = instance.segmentation
    if isinstance(given, Mapping):
        return given
    return [polygon for polygon in given or () if detection.is_polygon(polygon)]


def _mask(instance: Instance, picture: Picture) -> Tensor:
    """Return the pixels of an object, (height, width) uint8."""
    from pycocotools import mask

    encoded = _outlines(instance)
    if not (isinstance(encoded, Mapping) and isinstance(encoded["counts"], (str, bytes))):
        encoded = mask.frPyObjects(encoded, picture.height, picture.width)
    return torch.from_numpy(mask.decode(mask.merge(encoded) if isinstance(encoded, list) else encoded))
