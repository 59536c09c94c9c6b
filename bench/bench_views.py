"""Views per second: our batched augmentation against torchvision v2, on tensors and on PIL images.

    python -m bench views          # about 50 s on an idle machine; at least 3 at 32 and at 64 px

All three apply the paper's Table 9 to the same images, which are already decoded, and return float32 tensors
from 0 to 1. None of them batches, normalises or moves its result. Ours runs with two
threads. The other two process image by image on one core and are credited with twice that rate, as if two
workers scaled perfectly and returned their results for free. The tensor pipeline works on uint8, which
torchvision recommends for speed. The PIL pipeline is also timed, without a bar, with Pillow's own
GaussianBlur, as in MoCo's loader. That blur uses box filters, so the views are not the same; it is faster
than torchvision's, which converts to a tensor.

Two more records of each case have no bar. They compare our default with views that are bilinear or coloured
before the crop.

Rounds alternate and each candidate keeps its best, so that a busy moment of the machine does not affect only
one. The ratios still need an idle machine. The ratios of views per CPU-second, in the details, hardly do, as
they ignore how well two threads share the cores.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from bench.command import options
from bench.compare import record
from reproduce.data.augmentation import Augmentation
from reproduce.data.views import blur_radius, sample

CASES = ((32, 32), (64, 96))
"""Side of a view and side of the square images."""
PHOTOGRAPHS = ((64, (160, 213), 128), (224, (375, 500), 24))
"""Side of a view, sides of the images, half of which are upright, and their number."""
BATCH = 256
ROUNDS = 7
IMAGES_PER_ROUND = 128
"""Images per round of the pipelines that process image by image."""
THREADS = 2
BAR = 3
APPROXIMATE = "torchvision v2 on PIL images with Pillow's blur"
VIEWS_PER_ROUND = 4
"""Views of each image per round of our pipeline."""


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Return for each case one record over each of the other pipelines, then one for each of our variants."""
    if quick:
        return _records(8, _images(2, 8, 8), None)
    return [
        *(each for size, side in CASES for each in _records(size, _images(BATCH, side, side))),
        *(each for size, sides, n in PHOTOGRAPHS for each in _records(size, _photographs(n, *sides), None)),
        *(each for size, side in CASES for each in _variants(size, _images(BATCH, side, side))),
        *(each for size, sides, n in PHOTOGRAPHS for each in _variants(size, _photographs(n, *sides))),
    ]


def _records(size: int, images: list[Tensor], bar: float | None = BAR) -> list[dict[str, Any]]:
    some = images[:IMAGES_PER_ROUND]
    pil = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in some]
    others: dict[str, Callable[[], Rate]] = {
        "torchvision v2 on tensors": lambda: _one_by_one(_torchvision_pipeline(size), some),
        "torchvision v2 on PIL images": lambda: _one_by_one(_torchvision_pipeline(size), pil),
        APPROXIMATE: lambda: _one_by_one(_pillow_blur_pipeline(size), pil),
    }
    one, two = "ours with one thread", "ours with two threads"
    rates = _best({one: lambda: _ours(images, size, 1), two: lambda: _ours(images, size, THREADS), **others})
    return [
        _record(f"{_case(size, images)}: views/s over {name}", rates[one], rates[two], rates[name], bar)
        for name in others
    ]


def _variants(size: int, images: list[Tensor]) -> list[dict[str, Any]]:
    default = Augmentation()
    variants = {
        "bilinear": replace(default, resampling="bilinear"),
        "colours first": replace(default, colour_first=True),
    }
    rates = _best(
        {
            "default": lambda: _ours(images, size, 1),
            **{name: partial(_ours, images, size, 1, each) for name, each in variants.items()},
        }
    )
    return [
        record(
            "views",
            f"{_case(size, images)}: {name} over the default",
            rates[name].cpu / rates["default"].cpu,
            unit="x",
            detail=f"{rates[name].cpu:.0f} over {rates['default'].cpu:.0f} views per CPU-second, one thread",
        )
        for name in variants
    ]


def _case(size: int, images: list[Tensor]) -> str:
    high, wide = images[0].shape[1:]
    return f"{size} px from {wide} px" if high == wide else f"{size} px from {wide} x {high} px"


def _record(case: str, one: Rate, ours: Rate, other: Rate, bar: float | None) -> dict[str, Any]:
    bar = None if case.endswith(APPROXIMATE) else bar
    rates = f"{ours.wall:.0f} ({one.wall:.0f} with one thread) over {THREADS} x {other.wall:.0f} views/s"
    detail = f"{rates}; {ours.cpu / other.cpu:.2f} x in views per CPU-second"
    return record("views", case, ours.wall / (THREADS * other.wall), unit="x", detail=detail, at_least=bar)


class Rate(NamedTuple):
    """Views per second of wall-clock time, and of the CPU time of all threads."""

    wall: float
    cpu: float


def _best(candidates: dict[str, Callable[[], Rate]]) -> dict[str, Rate]:
    """Return the highest of ROUNDS alternating rates of each, after a warm-up round."""
    rounds = [{name: run() for name, run in candidates.items()} for _ in range(ROUNDS + 1)][1:]
    return {
        name: Rate(max(r[name].wall for r in rounds), max(r[name].cpu for r in rounds)) for name in candidates
    }


def _ours(images: list[Tensor], size: int, threads: int, augmentation: Augmentation | None = None) -> Rate:
    augmentation = augmentation or Augmentation()
    sizes, indices = torch.tensor([image.shape[1:] for image in images]), torch.arange(len(images))
    pixels = torch.cat([image.flatten() for image in images])

    def run() -> None:
        for view in range(VIEWS_PER_ROUND):
            sample(pixels, sizes, indices, augmentation=augmentation, size=size, seed=0, epoch=0, view=view)

    return _rate(run, VIEWS_PER_ROUND * len(images), threads)


def _one_by_one(pipeline: Callable[[Any], Tensor], images: list[Any]) -> Rate:
    return _rate(lambda: [pipeline(image) for image in images], len(images), threads=1)


def _rate(run: Callable[[], object], num_views: int, threads: int) -> Rate:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    rate = Rate(num_views / (time.perf_counter() - wall), num_views / (time.process_time() - cpu))
    torch.set_num_threads(before)
    return rate


def _torchvision_pipeline(size: int) -> Callable[[Any], Tensor]:
    a = Augmentation()
    blur = v2.GaussianBlur(2 * blur_radius(size) + 1, a.blur_sigma)
    return v2.Compose([*_crop_and_colour(a, size), v2.RandomApply([blur], a.blur), *_solarize_and_convert(a)])


def _pillow_blur_pipeline(size: int) -> Callable[[Any], Tensor]:
    a = Augmentation()
    return v2.Compose(
        [
            *_crop_and_colour(a, size),
            v2.RandomApply([_PillowBlur(a.blur_sigma)], a.blur),
            *_solarize_and_convert(a),
        ]
    )


class _PillowBlur(v2.Transform):
    """Pillow's Gaussian blur, as in the loader of facebookresearch/moco."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.low, self.high = sigma

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return inpt.filter(
            ImageFilter.GaussianBlur(self.low + (self.high - self.low) * float(torch.rand(())))
        )


def _crop_and_colour(a: Augmentation, size: int) -> list[v2.Transform]:
    return [
        v2.RandomResizedCrop(size, a.crop_scale, a.crop_ratio, v2.InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(a.flip),
        v2.RandomApply([v2.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)], a.jitter),
        v2.RandomGrayscale(a.grey),
    ]


def _solarize_and_convert(a: Augmentation) -> list[v2.Transform]:
    return [v2.RandomSolarize(128, a.solarize), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


def _images(n: int, height: int, width: int) -> list[Tensor]:
    """Return n smooth random images with some noise, (3, height, width) uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return list((smooth * 235 + 20 * torch.rand(n, 3, height, width, generator=generator)).to(torch.uint8))


def _photographs(n: int, height: int, width: int) -> list[Tensor]:
    """Return n such images, every second one upright."""
    images = _images(n, height, width)
    return [image.mT.contiguous() if index % 2 else image for index, image in enumerate(images)]


if __name__ == "__main__":
    print(json.dumps(measure(quick=options("bench.bench_views", __doc__).quick)))
