"""K augmented views of a batch (paper, section 7.3 and Table 9), as tensor operations on its device.

    pixels of n images, uint8  ->  sample(..., view=0)  ->  (n, 3, size, size) float32, from 0 to 1

An image is decoded once, at its own size. Each of its views is a crop of these pixels, resized once, then
jittered, greyed, blurred and solarised with its own parameters. A crop has the pixels of torchvision's
`resized_crop` with antialias=True, whose bicubic and bilinear weights are PIL's.

There are two ways to resize. Images of one small size are resized together: out = Wy @ image @ Wx^T with the
widened weights as matrices, and the flip is Wx read backwards. Of all other images only the crop is read. On
a CPU `torch.nn.functional.interpolate` resizes one crop after the other. On a GPU, crops of similar size are
copied into one tensor and resized together.

With `colour_first` the whole image is jittered and greyed before the crop, once for each view.

Patches are cut from one crop of the image after it is resized, so that their pixels are those of the official
code. They share its flip and colours, or have their own.

The operations and their order are those of google-deepmind/deepmind-research byol/utils/augmentations.py. The
parts of the colour jitter are defined as in torchvision and in the PyTorch code that later papers share.
(BYOL's own brightness is additive, its contrast uses a mean for each channel, and its saturation is HSV's.)
Parameters come from `draws.py`: the same (seed, epoch, image index, view) gives the same view whatever the
batch, the workers or the processes.

Expect 30 000 views/s per core at 32 px from images of 32 px, 5 000 at 64 px from 96 px, 3 700 at 64 px from
213 x 160 px and 320 at 224 px from 500 x 375 px (`bench/bench_views.py`). Bilinear views are a little faster.
With `colour_first`, views take up to a fifth longer from small images, and up to twice as long from
photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from reproduce.data.originals import Originals
from reproduce.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.data.augmentation import Augmentation, Patches
    from reproduce.data.draws import Bools, Draws, Floats, Ints

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey (torchvision's rgb_to_grayscale, and BYOL's)."""
CPU_CHUNK, GPU_CHUNK = 2**20, 2**27
"""Values of the images that are processed together: on a CPU few enough for its caches, on a GPU for its
memory."""
SMALL = 128
"""Longer side in pixels up to which images of one size are resized whole and together."""


def sample(
    pixels: Tensor,
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
        pixels: images of one size, (n, 3, height, width) uint8, or the values of all images one after the
            other, (3 height_1 width_1 + 3 height_2 width_2 + ...,) uint8.
        sizes: height and width of each image in pixels, (n, 2) integers. Best on the CPU, where they are
            read.
        indices: numbers of the images in their data set, (n,) integers. Best on the CPU, too.
        augmentation: distribution of the views.
        size: side of a view in pixels. Small crops and patches have their own (`Augmentation.size_of_view`).
        seed: seed of the run.
        epoch, view: counted from 0. With the seed and an image's number they determine its view.

    Returns:
        (n, 3, size, size) float32 from 0 to 1, on the device of the pixels.

    Raises:
        ValueError: the pixels are not those of n images of these sizes, or the number of indices is not n.
    """
    images, which = _originals(pixels, sizes, indices)
    return _sample(images, which, augmentation, size, seed, epoch, [view]).views[0]


class Sampled(NamedTuple):
    """The views of a batch and where they were cut. Each list has one item per view."""

    views: list[Tensor]
    """(n, 3, size, size) float32 from 0 to 1, on the device of the pixels. With multi-crop and patches, sizes
    differ."""
    boxes: list[Tensor]
    """Top, left, height and width of the crops in pixels of the original images, (n, 4) int64, on the CPU.
    Those of patches are rounded."""
    flips: list[Tensor]
    """True for views that are mirrored from left to right, (n,) bool, on the CPU."""


def sample_all(
    pixels: Tensor,
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
    images, which = _originals(pixels, sizes, indices)
    return _sample(images, which, augmentation, size, seed, epoch, range(num_views))


def sample_originals(
    images: Originals,
    indices: Ints,
    *,
    augmentation: Augmentation,
    size: int,
    seed: int,
    epoch: int,
    num_views: int,
) -> Sampled:
    """Return the views of `sample_all`, of images anywhere in one tensor, which are not copied before.

    Args:
        images: the images, on the device of the views.
        indices: numbers of the images in their data set, (n,).
    """
    return _sample(images, indices, augmentation, size, seed, epoch, range(num_views))


def _sample(
    images: Originals,
    which: Ints,
    augmentation: Augmentation,
    size: int,
    seed: int,
    epoch: int,
    views: Sequence[int],
) -> Sampled:
    from reproduce.data.draws import Draws, draw

    patches = augmentation.patches
    whole = [view for view in views if patches is None or view < patches.num_whole]
    drawn = {
        view: draw(augmentation.of_view(view), images.sizes, which, seed=seed, epoch=epoch, view=view)
        for view in whole
    }
    forms = {view: Form.of_view(augmentation, view, size) for view in whole}
    made: dict[int, Tensor] = {}
    for form in dict.fromkeys(forms.values()):
        some = [view for view in whole if forms[view] == form]
        together = apply(images, Draws.joined([drawn[view] for view in some]), form)
        made |= zip(some, together.chunk(len(some)), strict=True)
    boxes = {view: drawn[view].box for view in whole}
    flips = {view: drawn[view].flip for view in whole}
    if patches is not None and len(whole) < len(views):
        cut = [view for view in views if view >= patches.num_whole]
        for each in _patches(images, which, augmentation, patches, seed, epoch, cut):
            made[each.view], boxes[each.view], flips[each.view] = each.pixels, each.box, each.flip
    return Sampled(
        [made[view] for view in views],
        [torch.from_numpy(boxes[view]) for view in views],
        [torch.from_numpy(flips[view]) for view in views],
    )


class _Patch(NamedTuple):
    """One patch of each image."""

    view: int
    pixels: Tensor
    box: Ints
    flip: Bools


def _patches(
    images: Originals,
    which: Ints,
    augmentation: Augmentation,
    patches: Patches,
    seed: int,
    epoch: int,
    views: Sequence[int],
) -> Iterator[_Patch]:
    """Yield the patches `views`. Each image is cropped and resized to the canvas once for all of them."""
    from reproduce.data.draws import Draws, draw, draw_place, patch_boxes

    key = {"seed": seed, "epoch": epoch}
    own = augmentation.of_view(patches.num_whole)
    before, after = (own, own.crop_only()) if patches.shared else (own.crop_only(), own)
    crop = draw(before, images.sizes, which, **key, view=patches.num_whole)
    drawn = [draw(after, images.sizes, which, **key, view=view) for view in views]
    places = [draw_place(patches, which, **key, view=view) for view in views]

    # The canvases of a large batch are made in turns.
    canvas, size = patches.canvas, patches.size
    form = Form(canvas, own.resampling, own.colour_first and patches.shared)
    out = images.values.new_empty(len(views), len(which), 3, size, size, dtype=torch.float32)
    for rows in _chunks(len(which), GPU_CHUNK // (3 * canvas**2), threads=1):
        some = Originals(images.values, images.starts[rows], images.sizes[rows])
        canvases = apply(some, crop.take(rows), form)
        together = Draws.joined([each.take(rows) for each in drawn])
        out[:, rows] = cut(canvases, [each[rows] for each in places], together, size).view_as(out[:, rows])
    for view, each, place, pixels in zip(views, drawn, places, out, strict=True):
        box = patch_boxes(crop.box, crop.flip, place, patches)
        yield _Patch(view, pixels, box, crop.flip if patches.shared else each.flip)


def cut(canvases: Tensor, places: Sequence[Ints], drawn: Draws, size: int) -> Tensor:
    """Return patches of the canvases with the flips and colours that `drawn` describes.

    Args:
        canvases: (n, 3, canvas, canvas) float32 from 0 to 1.
        places: first row and column of the first patch of each canvas, of the second, and so on, (n, 2) each.
        drawn: parameters of the patches, in the order of the result.

    Returns:
        (patches n, 3, size, size) float32 from 0 to 1: one patch of each canvas, then a second, and so on.
    """
    import numpy as np

    n, on_cpu = len(canvases), canvases.device.type == "cpu"
    whole = Originals.of(canvases, np.full((n, 2), canvases.shape[-1]))
    of = np.tile(np.arange(n), len(places))
    boxes = np.concatenate([np.concatenate(places), np.full((len(of), 2), size)], axis=1)
    out = canvases.new_empty(len(of), 3, size, size)
    threads, limit = (torch.get_num_threads(), CPU_CHUNK) if on_cpu else (1, GPU_CHUNK)
    order = _by_hue(drawn)
    chunks = [order[rows] for rows in _chunks(len(order), limit // (3 * size**2), threads)]

    def fill_(x: Tensor, rows: Ints, parameters: Draws, scratch: Scratch, coloured: Scratch) -> None:
        x.copy_(padded(whole, of[rows], boxes[rows]))
        _replace(x, parameters.flip, lambda some, _: some.copy_(some.flip(3)))

    _fill_and_colour_(out, drawn, chunks, fill_, threads)
    return out


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
    shift, scale = (_constants(values, x.dtype, x.device) for values in (mean, std))
    return x.sub(shift).div_(scale)


@cache
def _constants(values: tuple[float, float, float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number for each channel; a GPU would wait for each copy of them."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, 3, 1, 1)


def apply(images: Originals, drawn: Draws, form: Form) -> Tensor:
    """Return the views that `drawn` describes: one of each image, then a second of each, and so on.

    All have the same form. The result is as for `sample`. Images that are processed together are sorted by
    the position of the hue shift in their jitter. An operation before or after the hue shift, or on images
    without jitter, then works on a slice rather than a scattered subset. The costly hue shift is one call.
    """
    import numpy as np

    device, size, small = images.values.device, form.size, _small(images)
    of = np.arange(len(drawn.flip)) % max(1, len(images.sizes))  # number of each view's image
    out = torch.empty(len(of), 3, size, size, device=device)
    threads = torch.get_num_threads() if images.on_cpu else 1
    limit = CPU_CHUNK if images.on_cpu else GPU_CHUNK
    if small:
        side = max(size, int(images.sizes.max(initial=0)))
        order = _by_hue(drawn)
        chunks = [order[rows] for rows in _chunks(len(order), limit // (3 * side**2), threads)]
    else:
        windows = images.sizes[of] if form.colour_first else drawn.box[:, 2:]
        chunks = _alike(windows, size, limit // 3, threads)
        chunks = [rows[_by_hue(drawn.take(rows))] for rows in chunks]

    def fill_(x: Tensor, rows: Ints, parameters: Draws, scratch: Scratch, coloured: Scratch) -> None:
        together = small or not images.on_cpu
        resize_ = _resize_together_ if together else _resize_each_
        resize_(x, images, of[rows], parameters, form, scratch, coloured)

    _fill_and_colour_(out, drawn, chunks, fill_, threads, coloured_before=form.colour_first)
    return out


def _by_hue(drawn: Draws) -> Ints:
    """Return the rows of `drawn` by descending position of the hue shift, as `_colour_` needs them."""
    return drawn.hue_place.argsort(kind="stable")[::-1]


def _fill_and_colour_(
    out: Tensor,
    drawn: Draws,
    chunks: list[Ints],
    fill_: Callable[[Tensor, Ints, Draws, Scratch, Scratch], None],
    threads: int,
    *,
    coloured_before: bool = False,
) -> None:
    """Fill rows of `out` in chunks: geometry by `fill_`, then colours, blur and solarisation.

    Args:
        out: (n, 3, size, size).
        chunks: rows of each chunk, sorted by `_by_hue`.
        fill_: function that fills a tensor with the rows of `out` that it is given, with their parameters.
        coloured_before: True if `fill_` has jittered and greyed the images.
    """

    def work(chunks: list[Ints]) -> None:
        memory = out.new_empty(max(map(len, chunks), default=0), *out.shape[1:])
        scratch, coloured = Scratch(out.device), Scratch(out.device)
        for rows in chunks:
            x, parameters = memory[: len(rows)], drawn.take(rows)
            fill_(x, rows, parameters, scratch, coloured)
            if not coloured_before:
                _colour_(x, parameters, scratch)
            _blur_and_solarize_(x, parameters, scratch)
            where = torch.from_numpy(rows.copy()).to(out.device, non_blocking=True)
            out.index_copy_(0, where, x.clamp_(0, 1))

    _in_threads(work, chunks, threads)


def _small(images: Originals) -> bool:
    """Return True if the images have one size of at most `SMALL` pixels."""
    return images.one_size and int(images.sizes.max(initial=0)) <= SMALL


def _in_threads(work: Callable[[list[Ints]], None], chunks: list[Ints], threads: int) -> None:
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


def _alike(windows: Ints, size: int, limit: int, threads: int) -> list[Ints]:
    """Split images into groups of similar windows, at least one for each thread; return their rows.

    Squares of the longest side of a group have at most `limit` pixels together, unless it is one image.

    Args:
        windows: height and width of what is resized to `size` pixels, (n, 2).
    """
    import numpy as np

    sides = windows.max(axis=1).clip(min=size)
    groups: list[Ints] = []
    order, begin = np.lexsort((windows[:, 0], sides))[::-1], 0
    while begin < len(order):
        count = min(limit // int(sides[order[begin]]) ** 2, math.ceil(len(order) / threads))
        groups.append(order[begin : begin + max(1, count)])
        begin += max(1, count)
    return groups


def _resize_each_(
    x: Tensor, images: Originals, of: Ints, drawn: Draws, form: Form, scratch: Scratch, coloured: Scratch
) -> None:
    """Fill x with the crops of the images `of`, one after the other."""
    pictures = _coloured(images, of, drawn, scratch, coloured) if form.colour_first else None
    for row, (top, left, height, width) in enumerate(drawn.box.tolist()):
        image = images.image(int(of[row])) if pictures is None else pictures[row]
        crop = image[None, :, top : top + height, left : left + width].float()
        view = F.interpolate(crop, size=x.shape[2:], mode=form.resampling, antialias=True)[0]
        x[row] = view.flip(2) if drawn.flip[row] else view
    if pictures is None:
        x.mul_(1 / 255)
    x.clamp_(0, 1)  # see `resample`


def _resize_together_(
    x: Tensor, images: Originals, of: Ints, drawn: Draws, form: Form, scratch: Scratch, coloured: Scratch
) -> None:
    """Fill x with the crops of the images `of`, by products of matrices.

    Small images are copied whole, of others only the crop.
    """
    kernel, box = KERNELS[form.resampling], drawn.box
    if form.colour_first:
        pixels = _coloured(images, of, drawn, scratch, coloured)
    elif _small(images):
        pixels = whole(images, of)
    else:
        pixels, box = padded(images, of, box), box * (0, 0, 1, 1)
    resample(pixels, _crops(box, drawn.flip, x, kernel), x, scratch, kernel)


def _coloured(images: Originals, of: Ints, drawn: Draws, scratch: Scratch, coloured: Scratch) -> Tensor:
    """Return the images `of` jittered and greyed, (m, 3, height, width) from 0 to 1; see `whole`."""
    pixels, sizes, share = whole(images, of), images.sizes[of], None
    (x,) = coloured.tensors(pixels.shape)
    if (sizes != sizes[:1]).any():
        height, width = _like(x, sizes.T.astype("float64")).view(2, -1, 1, 1, 1)
        rows, columns = (torch.arange(extent, device=x.device) for extent in x.shape[2:])
        share = ((rows.view(-1, 1) < height) & (columns < width)).float().div_(height * width)
    return _colour_(torch.mul(pixels, 1 / 255, out=x), drawn, scratch, share)


def whole(images: Originals, of: Ints) -> Tensor:
    """Return the images `of` in one tensor, (m, 3, height, width) uint8, padded as in `padded`."""
    import numpy as np

    stacked = images.stacked(of)
    if stacked is not None:
        return stacked
    sizes = images.sizes[of]
    return padded(images, of, np.concatenate([np.zeros_like(sizes), sizes], axis=1))


def padded(images: Originals, of: Ints, boxes: Ints) -> Tensor:
    """Return boxes of the images `of` in one tensor, (m, 3, height, width) uint8.

    It is as high as the highest and as wide as the widest box. Arbitrary values fill the rest.

    Args:
        boxes: top, left, height and width of each box, (m, 4).
    """
    out = images.values.new_empty(len(of), 3, *boxes[:, 2:].max(axis=0, initial=1).tolist())
    if not images.on_cpu:
        return gather_(out, images, of, boxes)
    for each, image, (top, left, height, width) in zip(out, of.tolist(), boxes.tolist(), strict=True):
        each[:, :height, :width] = images.image(image)[:, top : top + height, left : left + width]
    return out


def gather_(out: Tensor, images: Originals, of: Ints, boxes: Ints) -> Tensor:
    """Fill `out` as in `padded`, in few operations whatever the number of boxes.

    Pixels outside of a box repeat its last row and column.
    """
    import numpy as np

    numbers = np.concatenate([images.starts[of, None], images.sizes[of], boxes], axis=1)
    start, high, wide, top, left, height, width = (
        values.view(-1, 1, 1)
        for values in torch.from_numpy(numbers.T.copy()).to(out.device, non_blocking=True)
    )
    rows, columns = (torch.arange(extent, device=out.device) for extent in out.shape[2:])
    row, column = torch.minimum(rows.view(-1, 1), height - 1), torch.minimum(columns, width - 1)
    place = (start + (top + row) * wide + left) + column  # (m, height, width), of the red plane
    for channel in range(3):
        out[:, channel] = images.values.take(place)
        place += high * wide
    return out


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
    """Distance from which the kernel is 0, in pixels of the image or of the view, whichever are larger."""
    at: Callable[[Tensor], Tensor]
    """Value at the distances t >= 0."""


def resample(pixels: Tensor, crops: Crops, out: Tensor, scratch: Scratch, kernel: Kernel) -> Tensor:
    """Compute out = Wy @ image @ Wx^T for each channel, with the weights of `weights_`.

    Bicubic weights overshoot at edges. Values outside of 0 to 1 are clamped, as in 8-bit pipelines.

    Args:
        pixels: (n, 3, height, width), uint8 from 0 to 255 or float32 from 0 to 1.
        crops: positions of the crops in the images.
        out: (n, 3, size, size), from 0 to 1.
    """
    (n, channels, height, width), size = pixels.shape, out.shape[-1]
    weights, values, rows = scratch.tensors(
        (n, 2, size, max(height, width)), pixels.shape, (n, channels, height, size)
    )
    weights_(weights, crops, kernel)
    values.copy_(pixels)
    _both_sides(weights[:, 0, :, :height], values, weights[:, 1, :, :width], rows, out)
    if pixels.dtype == torch.uint8:
        out.mul_(1 / 255)
    return out.clamp_(0, 1)


def _both_sides(left: Tensor, x: Tensor, right: Tensor, rows: Tensor, out: Tensor) -> None:
    """Compute out = left @ x @ right^T for each image and channel.

    The shapes are (n, p, q), (n, c, q, r), (n, s, r) -> (n, c, p, s); `rows` is (n, c, q, s).
    """
    torch.bmm(x.flatten(1, 2), right.transpose(1, 2), out=rows.flatten(1, 2))
    torch.matmul(left.unsqueeze(1), rows, out=out)


class Crops(NamedTuple):
    """Positions of crops, in pixels of the image.

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
    """Number of image pixels that the widest kernel covers."""


def weights_(out: Tensor, crops: Crops, kernel: Kernel) -> Tensor:
    """Compute the matrices that resize a crop's `side` pixels to `size` pixels, antialiased.

    The kernel is widened by the shrinkage (Pillow, src/libImaging/Resample.c, which torchvision's
    antialias=True follows). Pixels outside of the crop do not count, as if the crop were cut out first.

    Args:
        out: (n, 2, size, side), vertical and horizontal. The longer side of the images is `side`.
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


def blend_(x: Tensor, factors: Tensor, scratch: Scratch, share: Tensor | None = None) -> Tensor:
    """Set x <- own x + grey luma(x) + mean (mean of luma(x) over the image), clamped to [0, 1].

    Brightness of strength f is (f, 0, 0), contrast (f, 0, 1 - f), saturation (f, 1 - f, 0).

    Args:
        x: (n, 3, height, width).
        factors: own, grey and mean, (3, n).
        share: weight of each pixel in the mean, (n, 1, height, width). None if all count equally.
    """
    own, grey, mean = factors[..., None, None, None].unbind(0)
    luma = luminance(x, scratch)
    if share is None:
        constant = luma.mean(dim=(2, 3), keepdim=True)
    else:
        constant = luma.mul(share).sum(dim=(2, 3), keepdim=True)
    constant.mul_(mean)
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


def photometric_(x: Tensor, bits: Tensor, sharpness: Tensor, threshold: Tensor) -> Tensor:
    """Posterise, sharpen, solarise and stretch the contrast of each image, as PIL does with 8 bits.

    Values are rounded to levels of 0 to 255 before, as PIL's are after each operation. From there on, the
    levels are exactly those of PIL: ImageOps.posterize, ImageEnhance.Sharpness, ImageOps.solarize and
    ImageOps.autocontrast.

    Args:
        x: (n, 3, height, width) from 0 to 1.
        bits: bits that posterise keeps, (n,).
        sharpness: factors of the sharpness, (n,).
        threshold: levels from which solarise inverts, (n,).
    """
    bits, sharpness, threshold = (values.view(-1, 1, 1, 1) for values in (bits, sharpness, threshold))
    x.mul_(255).round_()
    x.sub_(x.remainder(torch.exp2(8 - bits)))
    sharpen_(x, sharpness)
    torch.where(x < threshold, x, 255 - x, out=x)
    return stretch_(x).mul_(1 / 255)


def sharpen_(x: Tensor, factor: Tensor) -> Tensor:
    """Set levels x, whole numbers from 0 to 255, to smooth + factor (x - smooth), rounded down and clamped.

    `smooth` is the rounded mean of 3 x 3 pixels, in which the middle one counts five times. Pixels at the
    border are their own.

    Args:
        factor: (n, 1, 1, 1).
    """
    inner = x[:, :, 1:-1, 1:-1]
    if not inner.numel():
        return x
    smooth = F.avg_pool2d(x, 3, stride=1, divisor_override=1).add_(inner, alpha=4).div_(13).round_()
    # Not in one operation with a single rounding, which could differ from PIL's.
    inner.sub_(smooth).mul_(factor).add_(smooth)
    return x.floor_().clamp_(0, 255)


def stretch_(x: Tensor) -> Tensor:
    """Map the levels of each channel linearly, so that the lowest becomes 0 and the highest 255.

    Levels are rounded down. A channel with a single level is unchanged.
    """
    low, high = (values.flatten(0, 1).double().view(-1, 1) for values in (x.amin((2, 3)), x.amax((2, 3))))
    level = torch.arange(256, dtype=torch.float64, device=x.device)
    scale = level[-1] / (high - low).clamp_(min=1)  # `255 / x` would be 255 times a rounded 1 / x
    new = (level * scale).add_(-low * scale).trunc_().clamp_(0, 255)
    new = torch.where(high > low, new, level).float().view(*x.shape[:2], 256)
    for channel in range(x.shape[1]):  # one after the other, for the memory of their places
        place = x[:, channel].flatten(1).long()
        x[:, channel] = new[:, channel].gather(1, place).view_as(x[:, channel])
    return x


def _crops(box: Ints, flip: Bools, out: Tensor, kernel: Kernel) -> Crops:
    """Return the crops `box` of images, (n, 4), which are resized to the height and width of `out`."""
    import numpy as np

    low, extent = box[:, :2].astype(np.float64), box[:, 2:].astype(np.float64)
    high, step = low + extent, extent / out.shape[-1]
    reach = math.ceil(2 * kernel.support * max(1.0, step.max(initial=0)))
    mirrored = np.stack([np.zeros_like(flip), flip], axis=1)
    start, step = np.where(mirrored, high, low), np.where(mirrored, -step, step)
    first, stride, lower, upper = _like(out, np.stack([start, step, low, high])).unbind(0)
    return Crops(first, stride, lower, upper, reach)


def _colour_(x: Tensor, drawn: Draws, scratch: Scratch, share: Tensor | None = None) -> Tensor:
    """Jitter and grey images, (n, 3, height, width) from 0 to 1, sorted by descending `drawn.hue_place`.

    Images without jitter come last.

    Args:
        share: see `blend_`.
    """
    assert share is None or not drawn.photometric.any(), "see Pretrain.check_for"
    _jitter_(x, drawn, scratch, share)
    _replace(
        x,
        drawn.photometric,
        lambda some, on: photometric_(
            some, *(_like(some, each[on]) for each in (drawn.bits, drawn.sharpness, drawn.threshold))
        ),
    )
    _replace(x, drawn.grey, lambda some, _: to_grey_(some, scratch))
    return x


def _jitter_(x: Tensor, drawn: Draws, scratch: Scratch, share: Tensor | None) -> None:
    """Apply the colour jitter to images that are sorted as for `_colour_`."""
    jittered = int(drawn.jitter.sum())
    # Numbers of images whose blend i comes before their hue shift.
    before = [int((drawn.hue_place > i).sum()) for i in range(3)]
    blends = _like(x, drawn.blends())

    def blend(i: int, rows: slice) -> None:
        blend_(x[rows], blends[i, :, rows], scratch, None if share is None else share[rows])

    for i, count in enumerate(before):
        if count:
            blend(i, slice(0, count))
    if jittered:
        shift_hue_(x[:jittered], _like(x, drawn.hue[:jittered]), scratch)
    for i, count in enumerate(before):
        if count < jittered:
            blend(i, slice(count, jittered))


def _blur_and_solarize_(x: Tensor, drawn: Draws, scratch: Scratch) -> None:
    _replace(x, drawn.blur, lambda some, on: blur_(some, _like(some, drawn.sigma[on]), scratch))
    _replace(x, drawn.solarize, lambda some, _: solarize_(some))


def _replace(x: Tensor, mask: Bools, operation_: Callable[[Tensor, Ints], Tensor]) -> None:
    """Apply the in-place operation_(images, their rows) to the images under `mask`, (n,)."""
    on = mask.nonzero()[0]
    if len(on) == len(x):
        operation_(x, on)
    elif len(on):
        where = torch.from_numpy(on).to(x.device, non_blocking=True)
        x.index_copy_(0, where, operation_(x.index_select(0, where), on))


def _like(x: Tensor, values: Floats | Ints) -> Tensor:
    """Return `values` as float32 on the device of x.

    A GPU does not make this process wait: CUDA has read memory that is not pinned before the call returns.
    """
    return torch.from_numpy(values).to(x.device, torch.float32, non_blocking=True)


def _array(values: Tensor) -> Ints:
    """Return `values` as 64-bit integers of NumPy."""
    return values.detach().cpu().to(torch.int64).numpy()


def _originals(pixels: Tensor, sizes: Tensor, indices: Tensor) -> tuple[Originals, Ints]:
    """Return the images of `sample` and their numbers, checked."""
    shapes, which = _array(sizes), _array(indices)
    _check(pixels, shapes, which)
    return Originals.of(pixels, shapes), which


def _check(pixels: Tensor, sizes: Ints, indices: Ints) -> None:
    n, shape = len(indices), tuple(pixels.shape)
    if sizes.shape != (n, 2):
        raise ValueError(f"{n} images need sizes ({n}, 2), but they are {sizes.shape}.")
    together = len(shape) == 4 and shape[:2] == (n, 3) and bool((sizes == shape[2:]).all())
    one_by_one = len(shape) == 1 and shape[0] == 3 * sizes.prod(axis=1).sum()
    if pixels.dtype != torch.uint8 or not (together or one_by_one):
        raise ValueError(
            f"The pixels are {shape} {pixels.dtype}, but views of {n} images need torch.uint8, "
            f"({n}, 3, height, width) or {3 * sizes.prod(axis=1).sum()} values, as their sizes say."
        )
