"""K augmented views of a batch (paper, section 7.3 and Table 9), as tensor operations on its device.

    canvas (n, 3, S, S) uint8  ->  sample(..., view=0)  ->  (n, 3, size, size) float32, from 0 to 1

An image is decoded once and squashed onto a square canvas. Each of its views is a crop of that canvas,
jittered, greyed, blurred and solarised with its own parameters. A crop is drawn in the geometry of the
original image and its box is then mapped to the canvas, so aspect ratios are those of the original. Views are
antialiased exactly. Resampling is out = Wy @ image @ Wx^T with the widened bicubic or bilinear weights of PIL
and torchvision (antialias=True), whether a crop shrinks a lot or a little. The flip is Wx read backwards.

With `colour_first` the canvas is jittered and greyed before the crop, once for each view. Squashing an image
does not change the mean that the contrast jitter needs.

The operations and their order are those of google-deepmind/deepmind-research byol/utils/augmentations.py. The
parts of the colour jitter are defined as in torchvision and in the PyTorch code that later papers share.
(BYOL's own brightness is additive, its contrast uses a mean for each channel, and its saturation is HSV's.)
Parameters come from `draws.py`: the same (seed, epoch, image index, view) gives the same view whatever the
batch, the workers or the processes.

Expect 10 000 to 18 000 views/s per core at 32 px from a canvas of 32, and 3 000 to 4 000 at 64 px from a
canvas of 96 (`bench/bench_views.py`). At 224 px from a canvas of 448 expect about 140, and twice as many
small crops of 96 px. Bilinear views take as long. With `colour_first`, views take about a fifth longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from reproduce.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.data.augmentation import Augmentation
    from reproduce.data.draws import Bools, Draws, Floats, Ints

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey (torchvision's rgb_to_grayscale, and BYOL's)."""
CPU_CHUNK, GPU_CHUNK = 2**20, 2**27
"""Values of the images that are processed together: on a CPU few enough for its caches, on a GPU for its
memory."""


def sample(
    canvas: Tensor,
    sizes: Tensor,
    indices: Tensor,
    *,
    augmentation: Augmentation,
    size: int,
    seed: int,
    epoch: int,
    view: int,
) -> Tensor:
    """Return view number `view` of each image.

    Args:
        canvas: images, each squashed onto a square of side S, (n, 3, S, S) uint8.
        sizes: height and width of each original image in pixels, (n, 2) integers. Best on the CPU, where they
            are read.
        indices: numbers of the images in their data set, (n,) integers. Best on the CPU, too.
        augmentation: distribution of the views.
        size: side of a view in pixels. Small crops have their own (`Augmentation.size_of_view`).
        seed: seed of the run.
        epoch, view: counted from 0. With the seed and an image's number they determine its view.

    Returns:
        (n, 3, size, size) float32 from 0 to 1, on the canvas's device.

    Raises:
        ValueError: the canvas is not (n, 3, S, S) uint8, or the number of sizes or of indices is not n.
    """
    return _sample(canvas, sizes, indices, augmentation, size, seed, epoch, [view]).views[0]


class Sampled(NamedTuple):
    """The views of a batch and where they were cut. Each list has one item per view."""

    views: list[Tensor]
    """(n, 3, size, size) float32 from 0 to 1, on the canvas's device. With multi-crop, sizes differ."""
    boxes: list[Tensor]
    """Top, left, height and width of the crops in pixels of the original images, (n, 4) int64, on the CPU."""
    flips: list[Tensor]
    """True for views that are mirrored from left to right, (n,) bool, on the CPU."""


def sample_all(
    canvas: Tensor,
    sizes: Tensor,
    indices: Tensor,
    *,
    augmentation: Augmentation,
    size: int,
    seed: int,
    epoch: int,
    num_views: int,
) -> Sampled:
    """Return views 0 to `num_views` - 1 of each image, each as `sample` returns it, and their crops.

    Views of one form are made in one pass: a small batch takes half the time of K passes. Large views are
    bit-equal to those of a run without small crops.
    """
    return _sample(canvas, sizes, indices, augmentation, size, seed, epoch, range(num_views))


def _sample(
    canvas: Tensor,
    sizes: Tensor,
    indices: Tensor,
    augmentation: Augmentation,
    size: int,
    seed: int,
    epoch: int,
    views: Sequence[int],
) -> Sampled:
    from reproduce.data.draws import Draws, draw

    _check(canvas, sizes, indices)
    shapes, which = _array(sizes), _array(indices)
    drawn = {
        view: draw(augmentation.of_view(view), shapes, which, seed=seed, epoch=epoch, view=view)
        for view in views
    }
    forms = {view: Form.of_view(augmentation, view, size) for view in views}
    made: dict[int, Tensor] = {}
    for form in dict.fromkeys(forms.values()):
        some = [view for view in views if forms[view] == form]
        together = apply(canvas, shapes, Draws.joined([drawn[view] for view in some]), form)
        made |= zip(some, together.chunk(len(some)), strict=True)
    return Sampled(
        [made[view] for view in views],
        [torch.from_numpy(drawn[view].box) for view in views],
        [torch.from_numpy(drawn[view].flip) for view in views],
    )


class Form(NamedTuple):
    """Settings that views share if they are made in one pass."""

    size: int
    """Side of the views in pixels."""
    resampling: Literal["bicubic", "bilinear"]
    colour_first: bool

    @staticmethod
    def of_view(augmentation: Augmentation, view: int, size: int) -> Form:
        """Return the form of view number `view`, if an ordinary view has the side `size`."""
        own = augmentation.of_view(view)
        return Form(augmentation.size_of_view(view, size), own.resampling, own.colour_first)


def normalise(x: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Return (x - mean) / std for each of the RGB channels of x, (n, 3, height, width)."""
    shift, scale = (
        torch.tensor(values, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for values in (mean, std)
    )
    return x.sub(shift).div_(scale)


def apply(canvas: Tensor, sizes: Ints, drawn: Draws, form: Form) -> Tensor:
    """Return the views that `drawn` describes: one of each image, then a second of each, and so on.

    All have the same form. Other arguments and the result are as for `sample`. Images are sorted by the
    position of the hue shift in their jitter. An operation before or after the hue shift, or on images
    without jitter, then works on a slice of the batch rather than a scattered subset, and the costly hue
    shift is one call.
    """
    order = drawn.hue_place.argsort(kind="stable")[::-1].copy()
    drawn, sizes = drawn.take(order), sizes[order % max(1, len(canvas))]
    where, size = torch.from_numpy(order).to(canvas.device), form.size
    out = torch.empty(len(order), 3, size, size, device=canvas.device)

    def work(chunks: list[slice]) -> None:
        x = torch.empty(0, 3, size, size, device=canvas.device)
        scratch, coloured = Scratch(canvas.device), Scratch(canvas.device)
        for rows in chunks:
            x = x[: rows.stop - rows.start] if len(x) else torch.empty_like(out[rows])
            some, parameters = canvas.index_select(0, where[rows] % len(canvas)), drawn.take(rows)
            if form.colour_first:
                (whole,) = coloured.tensors(some.shape)
                some = _colour_(torch.mul(some, 1 / 255, out=whole), parameters, scratch)
            _views_(x, some, sizes[rows], parameters, form, scratch)
            out.index_copy_(0, where[rows], x)

    threads = torch.get_num_threads() if canvas.device.type == "cpu" else 1
    limit = CPU_CHUNK if canvas.device.type == "cpu" else GPU_CHUNK
    _in_threads(work, _chunks(len(order), limit // (3 * max(size, canvas.shape[-1]) ** 2), threads), threads)
    return out


def _in_threads(work: Callable[[list[slice]], None], chunks: list[slice], threads: int) -> None:
    """Distribute the chunks to `threads` threads, each of which works alone.

    The threads that torch starts inside each operation would wait for each other a hundred times per chunk,
    and for milliseconds whenever another process occupies one of the cores.
    """
    if threads == 1 or len(chunks) < 2:
        work(chunks)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, [chunks[i::threads] for i in range(threads)]))
    finally:
        # A number that one thread sets for itself is also the default of threads that start later.
        torch.set_num_threads(threads)


def _chunks(n: int, most: int, threads: int) -> list[slice]:
    """Split 0 ... n into pieces of at most `most` images (or one), equally many for each thread."""
    count = threads * math.ceil(n / (threads * max(1, most)))
    step = math.ceil(n / max(1, count))
    return [slice(start, min(n, start + step)) for start in range(0, n, max(1, step))]


def _views_(x: Tensor, canvas: Tensor, sizes: Ints, drawn: Draws, form: Form, scratch: Scratch) -> None:
    """Fill x with the views of images that are sorted by descending `drawn.hue_place`.

    Images without jitter come last. With `form.colour_first` the canvas is jittered and greyed already.
    """
    kernel = KERNELS[form.resampling]
    resample(canvas, _crops(drawn, sizes, x.shape[-1], canvas, kernel), x, scratch, kernel)
    if not form.colour_first:
        _colour_(x, drawn, scratch)
    _replace(x, drawn.blur, lambda some, on: blur_(some, _like(some, drawn.sigma[on]), scratch))
    _replace(x, drawn.solarize, lambda some, _: solarize_(some))
    x.clamp_(0, 1)


class Scratch:
    """Memory for the temporaries of an operation, reused by the next operation.

    On a CPU, fresh memory from the system costs several times the arithmetic done in it. Recently used memory
    is in the cache.
    """

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.empty(0, device=device)

    def tensors(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Return an uninitialised float32 tensor of each shape; the next call returns the same memory."""
        lengths = [math.prod(shape) for shape in shapes]
        if len(self._memory) < sum(lengths):
            self._memory = torch.empty(sum(lengths), device=self._memory.device)
        parts = self._memory[: sum(lengths)].split_with_sizes(lengths)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class Kernel(NamedTuple):
    """A resampling kernel, symmetric around 0."""

    support: int
    """Distance from which the kernel is 0, in pixels of the canvas or of the view, whichever are larger."""
    at: Callable[[Tensor], Tensor]
    """Value at the distances t >= 0."""


def resample(canvas: Tensor, crops: Crops, out: Tensor, scratch: Scratch, kernel: Kernel) -> Tensor:
    """Compute out = Wy @ image @ Wx^T for each channel, with the weights of `weights_`.

    Bicubic weights overshoot at edges. Values outside of 0 to 1 are clamped, as in 8-bit pipelines.

    Args:
        canvas: (n, 3, S, S), uint8 from 0 to 255 or float32 from 0 to 1.
        crops: positions of the crops on the canvas.
        out: (n, 3, size, size), from 0 to 1.
    """
    n, channels, size, side = len(canvas), canvas.shape[1], out.shape[-1], canvas.shape[-1]
    weights, pixels, rows = scratch.tensors((n, 2, size, side), canvas.shape, (n, channels, side, size))
    weights_(weights, crops, kernel)
    pixels.copy_(canvas)
    _both_sides(weights[:, 0], pixels, weights[:, 1], rows, out)
    if canvas.dtype == torch.uint8:
        out.mul_(1 / 255)
    return out.clamp_(0, 1)


def _both_sides(left: Tensor, x: Tensor, right: Tensor, rows: Tensor, out: Tensor) -> None:
    """Compute out = left @ x @ right^T for each image and channel.

    The shapes are (n, p, q), (n, c, q, r), (n, s, r) -> (n, c, p, s); `rows` is (n, c, q, s).
    """
    torch.bmm(x.flatten(1, 2), right.transpose(1, 2), out=rows.flatten(1, 2))
    torch.matmul(left.unsqueeze(1), rows, out=out)


class Crops(NamedTuple):
    """Positions of crops on the canvas, in its pixels.

    Index 0 of the second axis is vertical, index 1 horizontal.
    """

    start: Tensor
    """Start of the first output pixel, (n, 2)."""
    step: Tensor
    """Distance from one output pixel to the next, (n, 2); negative if the output is mirrored."""
    low: Tensor
    high: Tensor
    """Ends of the crop, (n, 2)."""
    reach: int
    """Number of canvas pixels that the widest kernel covers."""


def weights_(out: Tensor, crops: Crops, kernel: Kernel) -> Tensor:
    """Compute the matrices that resize a crop's `side` pixels to `size` pixels, antialiased.

    The kernel is widened by the shrinkage (Pillow, src/libImaging/Resample.c, which torchvision's
    antialias=True follows). A pixel that the border of the crop cuts counts for the part inside. Pixels
    outside do not count, as if the crop were cut out first.

    Args:
        out: (n, 2, size, side), vertical and horizontal.
    """
    size, side = out.shape[-2:]
    start, step, low, high = (values.view(-1, 2, 1, 1) for values in crops[:4])
    widening, reach = step.abs().clamp_(min=1), min(crops.reach, side)
    centre = start + (torch.arange(size, dtype=out.dtype, device=out.device).view(-1, 1) + 0.5) * step
    first = (centre - kernel.support * widening + 0.5).floor_().clamp_(0, side - reach)
    pixel = first + torch.arange(reach, dtype=out.dtype, device=out.device)  # (n, 2, size, reach)
    inside = (torch.minimum(pixel + 1, high) - torch.maximum(pixel, low)).clamp_(0, 1)
    weights = kernel.at((pixel + (0.5 - centre)).abs_().div_(widening)).mul_(inside)
    weights.div_(weights.sum(dim=3, keepdim=True))
    return out.zero_().scatter_(3, pixel.long(), weights)


def _keys(t: Tensor) -> Tensor:
    """Return Keys's cubic convolution kernel with a = -1/2 at the distances t >= 0.

    It has no branches: with v = max(2 - t, 0) and u = max(1 - t, 0) it is v^2 (v - 1) / 2 + u^2 (1 - 2u).
    """
    v, u = (2 - t).clamp_(min=0), (1 - t).clamp_(min=0)
    return v.square().mul_(v - 1).mul_(0.5).add_(u.square().mul_(1 - 2 * u))


def _triangle(t: Tensor) -> Tensor:
    """Return the kernel of linear interpolation at the distances t >= 0."""
    return (1 - t).clamp_(min=0)


KERNELS = {"bicubic": Kernel(2, _keys), "bilinear": Kernel(1, _triangle)}
"""Kernel of each `Augmentation.resampling`."""


def blend_(x: Tensor, factors: Tensor, scratch: Scratch) -> Tensor:
    """Set x <- own x + grey luma(x) + mean (mean of luma(x) over the image), clamped to [0, 1].

    Brightness of strength f is (f, 0, 0), contrast (f, 0, 1 - f), saturation (f, 1 - f, 0).

    Args:
        x: (n, 3, height, width).
        factors: own, grey and mean, (3, n).
    """
    own, grey, mean = factors[..., None, None, None].unbind(0)
    luma = luminance(x, scratch)
    constant = luma.mean(dim=(2, 3), keepdim=True).mul_(mean)
    return x.mul_(own).add_(luma.mul_(grey).add_(constant)).clamp_(0, 1)


def luminance(x: Tensor, scratch: Scratch) -> Tensor:
    """Return the luminance, (n, 3, height, width) -> (n, 1, height, width)."""
    red, green, blue = x.split_with_sizes([1, 1, 1], dim=1)
    (luma,) = scratch.tensors(red.shape)
    return torch.mul(red, LUMA[0], out=luma).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def to_grey_(x: Tensor, scratch: Scratch) -> Tensor:
    """Set all three channels of x, (n, 3, height, width), to the luminance."""
    return x.copy_(luminance(x, scratch).expand_as(x))


def shift_hue_(x: Tensor, shift: Tensor, scratch: Scratch) -> Tensor:
    """Turn the hue of HSV by `shift` circles, (n,); x (n, 3, height, width) is from 0 to 1.

    Saturation and value are unchanged, so only maximum, minimum and hue are needed. With the hue h in [0, 6),
    the position of each channel between minimum and maximum is a trapezium. With c(t) = t clamped to [1, 2],
    red's is c(|h - 3|) - 1, green's 2 - c(|h - 2|) and blue's 2 - c(|h - 4|).
    """
    red, green, blue = x.unbind(dim=1)
    low, chroma, high, hue, other, third = scratch.tensors(*[red.shape] * 6)
    torch.minimum(torch.minimum(red, green, out=low), blue, out=low)
    torch.maximum(torch.maximum(red, green, out=high), blue, out=high)
    torch.sub(high, low, out=chroma)
    # h chroma is green - blue if red is the maximum, 2 chroma + blue - red if green is, and
    # 4 chroma + red - green if blue is.
    torch.sub(red, green, out=other).add_(chroma, alpha=4)
    torch.sub(blue, red, out=hue).add_(chroma, alpha=2)
    hue.lerp_(other, torch.sub(high, green, out=third).sign_())
    torch.sub(green, blue, out=other)
    torch.lerp(other, hue, torch.sub(high, red, out=third).sign_(), out=hue)
    hue.div_(torch.clamp(chroma, min=1e-20, out=third))  # for grey, chroma and differences are 0, so h = 0
    hue.add_(6 * shift.view(-1, 1, 1))
    hue.sub_(torch.mul(hue, 1 / 6, out=third).floor_(), alpha=6)
    torch.add(low, chroma, alpha=2, out=high)
    low.sub_(chroma)
    torch.addcmul(low, torch.sub(hue, 3, out=third).abs_().clamp_(1, 2), chroma, out=red)
    torch.addcmul(high, torch.sub(hue, 2, out=third).abs_().clamp_(1, 2), chroma, value=-1, out=green)
    torch.addcmul(high, torch.sub(hue, 4, out=third).abs_().clamp_(1, 2), chroma, value=-1, out=blue)
    return x


def blur_radius(size: int) -> int:
    """Return half the width of the blur's kernel: 11, so 23 pixels, at 224; 3 at 64; 1 at 32.

    byol/utils/augmentations.py and google-research/simclr data_util.py make the kernel a tenth of the image
    (rounded up to an odd number) and keep sigma in pixels from .1 to 2. At small sizes the short kernel keeps
    the blur small: at 32 px it cannot spread farther than a mean of three pixels. W-MSE
    (htdt/self-supervised) and solo-learn's settings for CIFAR do not blur at all.
    """
    return size // 20


def blur_(x: Tensor, sigma: Tensor, scratch: Scratch) -> Tensor:
    """Blur each image with its own sigma, (n,), by two products with banded matrices.

    The image is mirrored at its border (torchvision's gaussian_blur; BYOL's darkens the border with zeros).

    Args:
        x: (n, 3, size, size).
    """
    n, _, size, _ = x.shape
    radius = blur_radius(size)
    distance = torch.arange(radius + 1, dtype=x.dtype, device=x.device)
    taps = (-0.5 * (distance / sigma.view(-1, 1)).square()).exp_()
    taps = F.threshold(taps, 1e-12, 0)  # denormal float32 products would be a hundred times slower
    taps /= 2 * taps.sum(dim=1, keepdim=True) - taps[:, :1]
    matrix, rows = scratch.tensors((n, size, size), x.shape)
    torch.mm(taps, _bands(size, radius, x.device), out=matrix.flatten(1))
    _both_sides(matrix, x, matrix, rows, x)
    return x


@cache
def _bands(size: int, radius: int, device: torch.device) -> Tensor:
    """Count how often output pixel i uses input pixel j at each distance, (radius + 1, size * size).

    Images are mirrored at both borders.
    """
    pixel = torch.arange(-radius, size + radius)
    mirrored = (size - 1) - ((size - 1) - pixel.abs()).abs()
    distance = (torch.arange(size).view(-1, 1) - pixel).abs()
    bands = torch.zeros(radius + 1, size, size)
    output, source = (distance <= radius).nonzero(as_tuple=True)
    bands.index_put_(
        (distance[output, source], output, mirrored[source]), torch.ones(len(output)), accumulate=True
    )
    return bands.view(radius + 1, -1).to(device)


def solarize_(x: Tensor) -> Tensor:
    """Invert values of at least one half, for x from 0 to 1: 1/2 - |x - 1/2|."""
    return x.sub_(0.5).abs_().neg_().add_(0.5)


def _crops(drawn: Draws, sizes: Ints, size: int, canvas: Tensor, kernel: Kernel) -> Crops:
    """Map the crops from the original images to the canvas."""
    import numpy as np

    scale = canvas.shape[-1] / sizes
    low, extent = drawn.box[:, :2] * scale, drawn.box[:, 2:] * scale
    high, step = low + extent, extent / size
    reach = math.ceil(2 * kernel.support * max(1.0, step.max()))
    mirrored = np.stack([np.zeros_like(drawn.flip), drawn.flip], axis=1)
    start, step = np.where(mirrored, high, low), np.where(mirrored, -step, step)
    first, stride, lower, upper = _like(canvas, np.stack([start, step, low, high])).unbind(0)
    return Crops(first, stride, lower, upper, reach)


def _colour_(x: Tensor, drawn: Draws, scratch: Scratch) -> Tensor:
    """Jitter and grey images that are sorted as for `_views_`, (n, 3, height, width) from 0 to 1."""
    _jitter_(x, drawn, scratch)
    _replace(x, drawn.grey, lambda some, _: to_grey_(some, scratch))
    return x


def _jitter_(x: Tensor, drawn: Draws, scratch: Scratch) -> None:
    """Apply the colour jitter to images that are sorted as for `_views_`."""
    jittered = int(drawn.jitter.sum())
    # Numbers of images whose blend i comes before their hue shift.
    before = [int((drawn.hue_place > i).sum()) for i in range(3)]
    blends = _like(x, drawn.blends())
    for i, count in enumerate(before):
        if count:
            blend_(x[:count], blends[i, :, :count], scratch)
    if jittered:
        shift_hue_(x[:jittered], _like(x, drawn.hue[:jittered]), scratch)
    for i, count in enumerate(before):
        if count < jittered:
            blend_(x[count:jittered], blends[i, :, count:jittered], scratch)


def _replace(x: Tensor, mask: Bools, operation_: Callable[[Tensor, Ints], Tensor]) -> None:
    """Apply the in-place operation_(images, their rows) to the images under `mask`, (n,)."""
    on = mask.nonzero()[0]
    if len(on) == len(x):
        operation_(x, on)
    elif len(on):
        where = torch.from_numpy(on).to(x.device)
        x.index_copy_(0, where, operation_(x.index_select(0, where), on))


def _like(x: Tensor, values: Floats) -> Tensor:
    """Return `values` as float32 on the device of x."""
    return torch.from_numpy(values).to(x.device, torch.float32)


def _array(values: Tensor) -> Ints:
    """Return `values` as 64-bit integers of NumPy."""
    return values.detach().cpu().to(torch.int64).numpy()


def _check(canvas: Tensor, sizes: Tensor, indices: Tensor) -> None:
    n, shape = len(canvas), tuple(canvas.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or canvas.dtype != torch.uint8:
        raise ValueError(f"The canvas is {shape} {canvas.dtype}, but views need (n, 3, S, S) torch.uint8.")
    if tuple(sizes.shape) != (n, 2) or tuple(indices.shape) != (n,):
        raise ValueError(
            f"{n} images need sizes ({n}, 2) and indices ({n},), but they are {tuple(sizes.shape)} and "
            f"{tuple(indices.shape)}."
        )
