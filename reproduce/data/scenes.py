"""Small coloured scenes, the images of the synthetic data sets.

A scene shows one textured object on a shaded background. Its class is the pair (shape, texture): a square or
a cross, with one of five textures. Colours, position, size, rotation and the texture's phase are random and
independent of the class. On ten classes, 5-NN is right for a fifth of the images on raw pixels, and for fewer
on colour histograms. A montage shows several scenes; its classes are the scenes' in a family of colours.

Only +, -, x, / and square roots of IEEE doubles are used, so the bytes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from reproduce.data.polygons import Point, Polygon, clipped
from reproduce.settings import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHAPES = ("square", "cross")
TEXTURES = ("stripes", "checks", "dots", "grid", "rings")
SIDE = 32
"""Side of a scene, in pixels."""
CLASSES = tuple(f"{shape}_{texture}" for shape in SHAPES for texture in TEXTURES)
Scenes = Annotated[int, Limits(len(CLASSES), 10**6)]
"""Number of images in a split. Each class has one, and a million of them fit on a disk."""
SQUARE = 0.82
"""Half the side of a square, in units of an object's size."""
CROSS = (0.30, 0.98)
"""Half the width and half the length of a cross's bars, in units of an object's size."""
TINTS = ((2,), (0,), (1,), (0, 2), (1, 2), (0, 1), (), (0, 1, 2))
"""Channels that each family of colours halves, in montages: blue in the first, red in the second, ..."""
FAMILIES = 2
"""Families of colours in a `montage`."""
DIFFICULT = 0.15
"""Fraction of a montage's objects that are marked as difficult."""
CROWDS = 0.05
"""Fraction of an outlined montage's objects that are groups."""
EMPTY = 40
"""Interval of outlined montages that show nothing: one in `EMPTY`."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, counted from 0, the last two exclusive."""


class Placed(NamedTuple):
    """An object of a montage."""

    label: int
    difficult: bool
    box: Box


class Outlined(NamedTuple):
    """An object of an outlined montage, or a group of four."""

    label: int
    outline: Polygon
    """Outline of the visible part of an object. Empty for a group."""
    crowd: NDArray[np.bool_] | None
    """Pixels of a group, (rows, columns) of the image. None for an object."""


class Drawn(NamedTuple):
    """Scenes, and the positions of their objects."""

    labels: NDArray[np.int64]
    """(n,), every class equally often."""
    scenes: NDArray[np.uint8]
    """(n, side, side, 3)"""
    boxes: NDArray[np.int64]
    """(n, 4), as in `Box`."""
    covered: NDArray[np.bool_]
    """(n, side, side), True for pixels that the object covers at least half."""
    outlines: list[Polygon]
    """Outlines in pixels of the scene; they may reach beyond it."""


def draw(count: int, *, seed: int, stream: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Draw `count` scenes.

    Args:
        stream: number of the random stream. Scenes of different streams are independent.

    Returns:
        Labels (count,), every class equally often, and RGB scenes (count, SIDE, SIDE, 3).
    """
    drawn = _draw(count, seed=seed, stream=stream)
    return drawn.labels, drawn.scenes


def montage(count: int, *, seed: int, stream: int) -> list[tuple[NDArray[np.uint8], list[Placed]]]:
    """Draw `count` images with one, two, three, one, ... scenes.

    A single scene fills the image. Several take a quarter each, and the rest is grey. Class `label + 10
    family` is the class `label` of the scenes with half of the blue (family 0) or half of the red (family 1).
    The 20 classes have equally many objects. About DIFFICULT of the objects are difficult, but never a
    class's first.

    Returns:
        For each image its pixels, (2 SIDE, 2 SIDE, 3), and its objects.
    """
    import numpy as np

    numbers = 1 + np.arange(count) % 3
    drawn = _tinted(int(numbers.sum()), FAMILIES, seed=seed, stream=stream)
    random = np.random.Generator(np.random.Philox(key=[seed, 1000 + stream]))
    difficult = _some(DIFFICULT, len(drawn.labels), FAMILIES, random)
    images = []
    for chosen, places, grey in _layout(numbers, SIDE, random):
        objects = []
        for index, (scale, x, y) in zip(chosen, places, strict=True):
            left, top, right, bottom = (scale * int(end) for end in drawn.boxes[index])
            objects.append(
                Placed(
                    int(drawn.labels[index]),
                    bool(difficult[index]),
                    (x + left, y + top, x + right, y + bottom),
                )
            )
        images.append((_shown(drawn.scenes[chosen], places, grey, SIDE), objects))
    return images


def outlined(
    count: int, *, seed: int, stream: int, families: int = len(TINTS), side: int = SIDE
) -> list[tuple[NDArray[np.uint8], list[Outlined]]]:
    """Draw `count` images as `montage` does, in more families of colours, with outlines in place of boxes.

    Counted from 1, every image whose number is a multiple of EMPTY shows nothing. About CROWDS of the objects
    are groups, but never a class's first: four copies of the scene at half its size.

    Args:
        families: number of families of colours. There are ten times as many classes.
        side: side in pixels of a scene that takes a quarter of the image; even.

    Returns:
        For each image its pixels, (2 side, 2 side, 3), and its objects.
    """
    import numpy as np

    numbers = 1 + np.arange(count) % 3
    numbers[EMPTY - 1 :: EMPTY] = 0
    drawn = _tinted(int(numbers.sum()), families, seed=seed, stream=stream, side=side)
    random = np.random.Generator(np.random.Philox(key=[seed, 1000 + stream]))
    crowd = _some(CROWDS, len(drawn.labels), families, random)
    drawn.scenes[crowd] = np.tile(drawn.scenes[crowd, ::2, ::2], (1, 2, 2, 1))
    drawn.covered[crowd] = np.tile(drawn.covered[crowd, ::2, ::2], (1, 2, 2))
    images = []
    for chosen, places, grey in _layout(numbers, side, random):
        objects = []
        for index, place in zip(chosen, places, strict=True):
            outline = (
                () if crowd[index] else _moved(clipped(drawn.outlines[index], width=side, height=side), place)
            )
            group = _shown(drawn.covered[[index]], [place], np.False_, side) if crowd[index] else None
            objects.append(Outlined(int(drawn.labels[index]), outline, group))
        images.append((_shown(drawn.scenes[chosen], places, grey, side), objects))
    return images


Place = tuple[int, int, int]
"""Magnification of a scene, and its left and top in the montage."""


def _tinted(count: int, families: int, *, seed: int, stream: int, side: int = SIDE) -> Drawn:
    """Draw scenes with the classes of all families, each equally often."""
    import numpy as np

    drawn = _draw(count, seed=seed, stream=stream, side=side)
    family = np.arange(count) // len(CLASSES) % families
    for number, channels in enumerate(TINTS[:families]):
        for channel in channels:
            drawn.scenes[family == number, :, :, channel] //= 2
    return drawn._replace(labels=drawn.labels + len(CLASSES) * family)


def _some(share: float, count: int, families: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Choose about `share` of `count` objects, (count,), but never a class's first."""
    import numpy as np

    return (random.random(count) < share) & (np.arange(count) >= families * len(CLASSES))


def _layout(
    numbers: NDArray[np.int64], side: int, random: np.random.Generator
) -> Iterator[tuple[list[int], list[Place], np.uint8]]:
    """Yield for each image the indices of its scenes, their places, and the grey around them.

    Args:
        numbers: number of scenes of each image.
    """
    import numpy as np

    order = np.argsort(random.random(int(numbers.sum())), kind="stable")
    greys = 64 + (128 * random.random(len(numbers))).astype(np.uint8)
    quarters = np.argsort(random.random((len(numbers), 4)), axis=1, kind="stable")
    for chosen, free, grey in zip(
        np.split(order, np.cumsum(numbers)[:-1]), quarters.tolist(), greys, strict=True
    ):
        places = [(1, side * (quarter % 2), side * (quarter // 2)) for quarter in free[: len(chosen)]]
        yield chosen.tolist(), [(2, 0, 0)] if len(chosen) == 1 else places, grey


def _shown(scenes: NDArray[Any], places: list[Place], rest: np.generic, side: int) -> NDArray[Any]:
    """Return an image, (2 side, 2 side, ...), with scenes, (n, side, side, ...), at their places.

    The image is `rest` elsewhere.
    """
    import numpy as np

    image = np.full((2 * side, 2 * side, *scenes.shape[3:]), rest, scenes.dtype)
    for scene, (scale, x, y) in zip(scenes, places, strict=True):
        image[y : y + scale * side, x : x + scale * side] = scene.repeat(scale, axis=0).repeat(scale, axis=1)
    return image


def _moved(outline: Polygon, place: Place) -> Polygon:
    """Convert an outline from pixels of the scene to pixels of the montage."""
    scale, left, top = place
    return tuple((scale * x + left, scale * y + top) for x, y in outline)


def _draw(count: int, *, seed: int, stream: int, side: int = SIDE) -> Drawn:
    """Draw `count` scenes, and locate their objects."""
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=[seed, stream]))
    labels = np.arange(count) % len(CLASSES)
    parts = [_scenes(labels[start : start + 256], random, side) for start in range(0, count, 256)]
    labels, scenes, boxes, covered = (
        np.concatenate(arrays) for arrays in zip(*(part[:4] for part in parts), strict=True)
    )
    return Drawn(labels, scenes, boxes, covered, [outline for part in parts for outline in part.outlines])


def _scenes(labels: NDArray[np.int64], random: np.random.Generator, side: int) -> Drawn:
    """Draw one scene for each label."""
    import numpy as np

    n, fine = len(labels), 2 * side  # drawn at twice the size and averaged: soft edges

    def uniform(low: float, high: float, *shape: int) -> NDArray[np.float64]:
        return low + (high - low) * random.random((n, *shape))

    axis = (np.arange(fine) + 0.5) / fine
    x, y = axis[None, None, :], axis[None, :, None]
    across, down, angle = uniform(0.3, 0.7, 1, 1), uniform(0.3, 0.7, 1, 1), uniform(0, 1, 2)
    u, v = _turned(x - across, y - down, angle)
    radius = uniform(0.28, 0.42, 1, 1)
    u, v = u / radius, v / radius  # the object's own axes, in units of its size
    shapes = labels // len(TEXTURES)
    inside = _inside(u, v, shapes)
    cos, sin = _direction(angle)
    placed = np.concatenate([across, down, radius * cos, radius * sin], axis=1)[..., 0] * side

    along, aside = _turned(u, v, uniform(0, 1, 2))
    frequency = uniform(1.3, 1.7, 1, 1)
    along, aside = along * frequency + uniform(8, 9, 1, 1), aside * frequency + uniform(8, 9, 1, 1)
    bright = _texture(along, aside, labels % len(TEXTURES))

    shade = _turned(x - 0.5, y - 0.5, uniform(0, 1, 2))[0][..., None] + 0.5
    greys = ((0.65, 0.95), (0.05, 0.3), (0.3, 0.6), (0.3, 0.6))
    light, dark, here, there = (uniform(*grey, 1, 1, 1) + uniform(-0.12, 0.12, 1, 1, 3) for grey in greys)
    scene = np.where(
        inside[..., None], np.where(bright[..., None], light, dark), here * (1 - shade) + there * shade
    )
    scene = _quartets(scene) / 4 + uniform(-0.03, 0.03, side, side, 3)
    pixels: NDArray[np.uint8] = np.floor(np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8)
    outlines = [
        _outline(shape, *where) for shape, where in zip(shapes.tolist(), placed.tolist(), strict=True)
    ]
    return Drawn(labels, pixels, _boxes(inside), _quartets(inside.astype(np.uint8)) >= 2, outlines)


def _quartets(fine: NDArray[Any]) -> NDArray[Any]:
    """Sum the four points of each pixel; values at twice the size -> (n, side, side, ...)."""
    sums: NDArray[Any] = fine[:, ::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, ::2] + fine[:, 1::2, 1::2]
    return sums


def _outline(shape: int, x: float, y: float, cos: float, sin: float) -> Polygon:
    """Return the corners of one object, in the units of its centre (x, y).

    Args:
        cos, sin: first axis of the object, whose length is the object's size.
    """
    near, far = CROSS
    quadrant: tuple[Point, ...] = (((SQUARE, SQUARE),), ((far, near), (near, near), (near, far)))[shape]
    corners = []
    for _ in range(4):
        corners += [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in quadrant]
        cos, sin = -sin, cos  # a quarter turn
    return tuple(corners)


def _boxes(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the bounding boxes, (n, 4), of the objects, (n, 2 SIDE, 2 SIDE).

    Boxes are in pixels of the scene and include partly covered pixels.
    """
    import numpy as np

    ends = []
    for other in (1, 2):  # columns, then rows
        covered: NDArray[np.bool_] = np.any(inside, axis=other)
        ends += [covered.argmax(axis=1) // 2, (covered.shape[1] - covered[:, ::-1].argmax(axis=1) + 1) // 2]
    left, right, top, bottom = ends
    return np.stack([left, top, right, bottom], axis=1)


def _turned(
    x: NDArray[np.float64], y: NDArray[np.float64], angle: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotate coordinates, (n, rows, columns).

    Args:
        angle: a point, (n, 2); the angle is its direction from (1/2, 1/2), so that no sine is needed.
    """
    cos, sin = _direction(angle)
    return cos * x + sin * y, cos * y - sin * x


def _direction(angle: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cosine and sine, (n, 1, 1)."""
    import numpy as np

    a, b = angle[:, 0, None, None] - 0.5, angle[:, 1, None, None] - 0.5
    length = np.sqrt(a * a + b * b) + 1e-9
    return a / length, b / length


def _inside(u: NDArray[np.float64], v: NDArray[np.float64], shape: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return True if each point, (n, rows, columns), is inside the object; `shape` (n,) indexes SHAPES."""
    import numpy as np

    u, v = np.abs(u), np.abs(v)
    near, far = np.minimum(u, v), np.maximum(u, v)
    return np.choose(shape[:, None, None], [far < SQUARE, (near < CROSS[0]) & (far < CROSS[1])])


def _texture(
    along: NDArray[np.float64], across: NDArray[np.float64], texture: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return True if the texture is bright, which it is on about half of the area.

    One period is 1. `texture` (n,) indexes TEXTURES.
    """
    import numpy as np

    a, b = along % 1 - 0.5, across % 1 - 0.5
    rings = np.sqrt((along - 8.5) * (along - 8.5) + (across - 8.5) * (across - 8.5)) % 1 < 0.5
    patterns = [
        a < 0,
        (a < 0) ^ (b < 0),
        a * a + b * b < 0.09,
        np.minimum(np.abs(a), np.abs(b)) < 0.11,
        rings,
    ]
    return np.choose(texture[:, None, None], patterns)
