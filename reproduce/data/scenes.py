"""Small coloured scenes: what the synthetic data sets show.

A scene shows one textured object on a shaded background. Its class is the pair (shape, texture): a square or a cross, with one of five
textures. Colours, position, size, rotation and the texture's phase are random and say nothing about the class: of ten classes, 5-NN gets a
fifth right on raw pixels and less on colour histograms.

Only +, -, x, / and square roots of IEEE doubles enter, so the bytes are the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHAPES = ("square", "cross")
TEXTURES = ("stripes", "checks", "dots", "grid", "rings")
SIDE = 32
"""Of a scene, in pixels."""
CLASSES = tuple(f"{shape}_{texture}" for shape in SHAPES for texture in TEXTURES)
FAMILIES = 2
"""Of colours, in montages: less blue, less red."""
DIFFICULT = 0.15
"""The share of a montage's objects that are marked as difficult."""

Box = tuple[int, int, int, int]
"""left, top, right and bottom in pixels, counted from 0, the last two outside."""


class Placed(NamedTuple):
    """An object of a montage."""

    label: int
    difficult: bool
    box: Box


def draw(count: int, *, seed: int, stream: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """`count` scenes.

    Args:
        stream: scenes of different streams are independent.

    Returns:
        Labels (count,), each class equally often, and RGB scenes (count, SIDE, SIDE, 3).
    """
    labels, scenes, _ = _draw(count, seed=seed, stream=stream)
    return labels, scenes


def montage(count: int, *, seed: int, stream: int) -> list[tuple[NDArray[np.uint8], list[Placed]]]:
    """`count` images of one, two, three, one, ... scenes: one fills the image, more take quarters of it, the rest is grey.

    Class `label + 10 family` is the class `label` of the scenes with half of the blue (family 0) or half of the red (family 1). Each of
    the 20 classes has as many objects. About DIFFICULT of them are difficult, but never a class's first.

    Returns:
        For each image its pixels, (2 SIDE, 2 SIDE, 3), and its objects.
    """
    import numpy as np

    numbers = 1 + np.arange(count) % 3
    total = int(numbers.sum())
    labels, scenes, boxes = _draw(total, seed=seed, stream=stream)
    family = np.arange(total) // len(CLASSES) % FAMILIES
    for each, channel in ((0, 2), (1, 0)):
        scenes[family == each, :, :, channel] //= 2
    random = np.random.Generator(np.random.Philox(key=[seed, 1000 + stream]))
    difficult = (random.random(total) < DIFFICULT) & (np.arange(total) >= FAMILIES * len(CLASSES))
    columns = ((labels + len(CLASSES) * family).tolist(), difficult.tolist(), map(tuple, boxes.tolist()))
    objects = [Placed(*values) for values in zip(*columns, strict=True)]

    order = np.argsort(random.random(total), kind="stable")
    greys = 64 + (128 * random.random(count)).astype(np.uint8)
    quarters = np.argsort(random.random((count, 4)), axis=1, kind="stable")
    images = []
    for chosen, places, grey in zip(np.split(order, np.cumsum(numbers)[:-1]), quarters.tolist(), greys, strict=True):
        images.append(_arranged(scenes[chosen], [objects[index] for index in chosen], places, grey))
    return images


def _arranged(
    scenes: NDArray[np.uint8], objects: list[Placed], quarters: list[int], grey: np.uint8
) -> tuple[NDArray[np.uint8], list[Placed]]:
    """One image: a single scene at twice its size, or each scene in its quarter."""
    import numpy as np

    if len(scenes) == 1:
        left, top, right, bottom = objects[0].box
        return scenes[0].repeat(2, axis=0).repeat(2, axis=1), [objects[0]._replace(box=(2 * left, 2 * top, 2 * right, 2 * bottom))]
    pixels, placed = np.full((2 * SIDE, 2 * SIDE, 3), grey, np.uint8), []
    for scene, each, quarter in zip(scenes, objects, quarters, strict=False):
        y, x = SIDE * (quarter // 2), SIDE * (quarter % 2)
        pixels[y : y + SIDE, x : x + SIDE] = scene
        left, top, right, bottom = each.box
        placed.append(each._replace(box=(x + left, y + top, x + right, y + bottom)))
    return pixels, placed


def _draw(count: int, *, seed: int, stream: int) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """What `draw` returns, and the boxes of the objects, (count, 4) as in `Box`."""
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=[seed, stream]))
    labels = np.arange(count) % len(CLASSES)
    parts = [_scenes(labels[start : start + 256], random) for start in range(0, count, 256)]
    scenes, boxes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return labels, scenes, boxes


def _scenes(labels: NDArray[np.int64], random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One scene for each label, (n, SIDE, SIDE, 3), and the box of its object, (n, 4)."""
    import numpy as np

    n, fine = len(labels), 2 * SIDE  # drawn at twice the size and averaged: soft edges

    def uniform(low: float, high: float, *shape: int) -> NDArray[np.float64]:
        return low + (high - low) * random.random((n, *shape))

    axis = (np.arange(fine) + 0.5) / fine
    x, y = axis[None, None, :], axis[None, :, None]
    u, v = _turned(x - uniform(0.3, 0.7, 1, 1), y - uniform(0.3, 0.7, 1, 1), uniform(0, 1, 2))
    radius = uniform(0.28, 0.42, 1, 1)
    u, v = u / radius, v / radius  # the object's own axes, in units of its size
    inside = _inside(u, v, labels // len(TEXTURES))

    along, across = _turned(u, v, uniform(0, 1, 2))
    frequency = uniform(1.3, 1.7, 1, 1)
    along, across = along * frequency + uniform(8, 9, 1, 1), across * frequency + uniform(8, 9, 1, 1)
    bright = _texture(along, across, labels % len(TEXTURES))

    shade = _turned(x - 0.5, y - 0.5, uniform(0, 1, 2))[0][..., None] + 0.5
    greys = ((0.65, 0.95), (0.05, 0.3), (0.3, 0.6), (0.3, 0.6))
    light, dark, here, there = (uniform(*grey, 1, 1, 1) + uniform(-0.12, 0.12, 1, 1, 3) for grey in greys)
    scene = np.where(inside[..., None], np.where(bright[..., None], light, dark), here * (1 - shade) + there * shade)
    scene = (scene[:, ::2, ::2] + scene[:, ::2, 1::2] + scene[:, 1::2, ::2] + scene[:, 1::2, 1::2]) / 4 + uniform(
        -0.03, 0.03, SIDE, SIDE, 3
    )
    pixels: NDArray[np.uint8] = np.floor(np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels, _boxes(inside)


def _boxes(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The smallest boxes, (n, 4), around the objects (n, 2 SIDE, 2 SIDE), in pixels of the scene that are at least partly covered."""
    import numpy as np

    ends = []
    for other in (1, 2):  # columns, then rows
        covered: NDArray[np.bool_] = np.any(inside, axis=other)
        ends += [covered.argmax(axis=1) // 2, (covered.shape[1] - covered[:, ::-1].argmax(axis=1) + 1) // 2]
    left, right, top, bottom = ends
    return np.stack([left, top, right, bottom], axis=1)


def _turned(x: NDArray[np.float64], y: NDArray[np.float64], angle: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates (n, rows, columns) on turned axes; the angle is that of a point (n, 2) as seen from (1/2, 1/2), so it takes no sine."""
    import numpy as np

    a, b = angle[:, 0, None, None] - 0.5, angle[:, 1, None, None] - 0.5
    length = np.sqrt(a * a + b * b) + 1e-9
    cos, sin = a / length, b / length
    return cos * x + sin * y, cos * y - sin * x


def _inside(u: NDArray[np.float64], v: NDArray[np.float64], shape: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each point (n, rows, columns) lies in the object; `shape` (n,) indexes SHAPES."""
    import numpy as np

    u, v = np.abs(u), np.abs(v)
    near, far = np.minimum(u, v), np.maximum(u, v)
    chosen: NDArray[np.bool_] = np.choose(shape[:, None, None], [far < 0.82, (near < 0.30) & (far < 0.98)])
    return chosen


def _texture(along: NDArray[np.float64], across: NDArray[np.float64], texture: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the texture is bright, about half of the area; one period is 1; `texture` (n,) indexes TEXTURES."""
    import numpy as np

    a, b = along % 1 - 0.5, across % 1 - 0.5
    rings = np.sqrt((along - 8.5) * (along - 8.5) + (across - 8.5) * (across - 8.5)) % 1 < 0.5
    patterns = [a < 0, (a < 0) ^ (b < 0), a * a + b * b < 0.09, np.minimum(np.abs(a), np.abs(b)) < 0.11, rings]
    bright: NDArray[np.bool_] = np.choose(texture[:, None, None], patterns)
    return bright
