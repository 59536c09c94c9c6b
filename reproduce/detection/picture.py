"""A picture of a few test images with their detections: one PNG for a person to look at.

Detections are drawn in solid lines, with one colour per class, and with their mask, class and score.
Annotations are drawn in dashed white lines. The same images and detections give the same bytes.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reproduce.data.detection import Annotated, Box, Picture, pixels
from reproduce.detection.predictions import Predicted
from reproduce.messages import InvalidError
from reproduce.runs.files import write_atomic

COLUMNS = 3
"""Images per row of the grid."""
LONGER = 512
"""Longer side of every image in the grid, in pixels. Synthetic images are enlarged to it, so that text on
them is legible."""
PIXELATED = 4
"""Enlargement from which an image shows its pixels. A filter would only blur them."""
MARGIN = 12
"""Space around each image, in pixels."""
TEXT = 15
"""Height of the letters, in pixels."""
GOLDEN = 0.618034
"""Distance between the hues of consecutive classes, as a fraction of the circle. It keeps both few and many
classes distinct."""
OPACITY = 0.4
"""Opacity of masks, from 0 to 1."""
DASH = 6
"""Length of a dash and of a gap, in pixels."""
WHITE, BLACK, PAPER = (255, 255, 255), (0, 0, 0), (250, 250, 250)

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]


class Drawn(NamedTuple):
    """One detection that is drawn."""

    label: int
    score: float
    box: Box
    mask: Any
    """COCO's run-length encoding, or None."""


def draw(
    images: Annotated, predicted: Sequence[Predicted], path: Path, *, count: int = 6, threshold: float = 0.5
) -> Path:
    """Draw the first `count` images that have an object in a grid, and return `path`.

    Args:
        threshold: minimum score of a detection that is drawn. If none of an image's detections reaches it,
            the best one is drawn.

    Raises:
        ValueError: No image has an object, or an image cannot be decoded.
        OSError: The file cannot be written.
    """
    chosen = [picture for picture in images.pictures if picture.instances][:count]
    if not chosen:
        raise InvalidError("No image has an object to draw.")
    found = {each.id: each for each in predicted}
    tiles = [_tile(picture, _shown(found.get(picture.id), threshold), images.classes) for picture in chosen]
    _write(path, _grid(tiles))
    return path


def colour(label: int) -> Colour:
    """Return the colour of a class in RGB."""
    red, green, blue = colorsys.hsv_to_rgb(
        label * GOLDEN % 1, 0.75 if label % 2 else 0.9, 1.0 if label % 3 else 0.85
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _shown(found: Predicted | None, threshold: float) -> list[Drawn]:
    """Return the detections to draw, by descending score."""
    if found is None or not len(found.scores):
        return []
    order = np.argsort(-found.scores, kind="stable")
    best = [int(index) for index in order if found.scores[index] >= threshold] or [int(order[0])]
    return [
        Drawn(
            int(found.labels[index]),
            float(found.scores[index]),
            tuple(found.boxes[index].tolist()),
            found.masks[index] if found.masks else None,
        )
        for index in best
    ]


def _tile(picture: Picture, shown: Sequence[Drawn], classes: Sequence[str]) -> Image.Image:
    """Return one image with its detections, and a line of text below it."""
    photograph = Image.fromarray(pixels(picture))
    scale = LONGER / max(photograph.size)
    width, height = (max(1, round(side * scale)) for side in photograph.size)
    enlarged = photograph.resize(
        (width, height), Image.Resampling.NEAREST if scale >= PIXELATED else Image.Resampling.LANCZOS
    )
    tile = _masked(enlarged, shown)
    pen = ImageDraw.Draw(tile)
    for instance in picture.instances:
        _dashed(pen, _scaled(instance.box, scale, tile.size))
    boxes = [_scaled(each.box, scale, tile.size) for each in shown]
    for each, box in reversed(list(zip(shown, boxes, strict=True))):  # the best one on top
        pen.rectangle(box, outline=colour(each.label), width=2)
    _captions(
        pen,
        tile.size,
        [(f"{classes[each.label]} {each.score:.2f}", colour(each.label)) for each in shown],
        boxes,
    )
    return _captioned(tile, f"{picture.id}: {len(shown)} found, {len(picture.instances)} annotated (dashed)")


def _masked(image: Image.Image, shown: Sequence[Drawn]) -> Image.Image:
    """Return the image under its translucent masks, the best detection's on top."""
    from pycocotools import mask as encoding

    for each in reversed(shown):
        if each.mask is not None:
            there: NDArray[np.uint8] = encoding.decode(dict(each.mask))
            stencil = Image.fromarray(there * round(255 * OPACITY)).resize(
                image.size, Image.Resampling.BILINEAR
            )
            image.paste(colour(each.label), mask=stencil)
    return image


def _scaled(box: Box, scale: float, size: tuple[int, int]) -> Rectangle:
    """Return a box in the pixels of the tile, with both corners inside it."""
    left, top, right, bottom = (round(side * scale) for side in box)
    width, height = size
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, min(max(right - 1, left), width - 1), min(max(bottom - 1, top), height - 1)


def _dashed(pen: ImageDraw.ImageDraw, box: Rectangle) -> None:
    """Draw white dashes with black gaps, so that one of the two is visible on any background."""
    left, top, right, bottom = box
    for start in range(left, right + 1, DASH):
        ink = WHITE if (start - left) // DASH % 2 == 0 else BLACK
        for y in (top, bottom):
            pen.line((start, y, min(start + DASH - 1, right), y), fill=ink)
    for start in range(top, bottom + 1, DASH):
        ink = WHITE if (start - top) // DASH % 2 == 0 else BLACK
        for x in (left, right):
            pen.line((x, start, x, min(start + DASH - 1, bottom)), fill=ink)


def _captions(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    captions: Sequence[tuple[str, Colour]],
    boxes: Sequence[Rectangle],
) -> None:
    """Draw each caption at its box if there is space, the best detection's first.

    A caption without space is left out; the colour of its box still shows the class.
    """
    taken: list[Rectangle] = []
    for (text, ground), box in zip(captions, boxes, strict=True):
        width, height = round(_font().getlength(text)) + 6, TEXT + 5
        for place in _places(box, width, height, size):
            if not any(_overlap(place, other) for other in taken):
                taken.append(place)
                pen.rectangle(place, fill=ground)
                ink = BLACK if 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2] > 128 else WHITE
                pen.text((place[0] + 3, place[1] + height // 2), text, fill=ink, font=_font(), anchor="lm")
                break


def _places(box: Rectangle, width: int, height: int, size: tuple[int, int]) -> list[Rectangle]:
    """Return possible places of a caption, the best first: on the box, in it, below it.

    A place that would exceed the right edge of the image is moved to the left.
    """
    left, top, right, bottom = box
    corners = [
        (left, top - height),
        (left, top),
        (right - width, top),
        (left, bottom - height),
        (left, bottom + 1),
        (left, top + height),
    ]
    moved = [(max(0, min(x, size[0] - width - 1)), y) for x, y in corners if 0 <= y < size[1] - height]
    return [(x, y, x + width, y + height) for x, y in moved]


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _captioned(tile: Image.Image, text: str) -> Image.Image:
    """Return the tile with a line of text below it."""
    width = max(tile.width, round(_font().getlength(text)))
    whole = Image.new("RGB", (width, tile.height + 2 * TEXT), PAPER)
    whole.paste(tile)
    ImageDraw.Draw(whole).text((0, tile.height + TEXT), text, fill=BLACK, font=_font(), anchor="lm")
    return whole


def _grid(tiles: Sequence[Image.Image]) -> Image.Image:
    rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    width = max(sum(tile.width + MARGIN for tile in row) for row in rows) + MARGIN
    heights = [max(tile.height for tile in row) for row in rows]
    whole = Image.new("RGB", (width, sum(heights) + MARGIN * (len(rows) + 1)), PAPER)
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = MARGIN
        for tile in row:
            whole.paste(tile, (x, y))
            x += tile.width + MARGIN
        y += height + MARGIN
    return whole


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's built-in font, so that no font has to be installed."""
    return ImageFont.load_default(TEXT)


def _write(path: Path, image: Image.Image) -> None:
    """Write the file atomically, so that a killed run leaves no partial picture."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_atomic(path, content.getbuffer())
