"""Pictures of a pretraining for a person to look at: the views of a few images, and their nearest neighbours.

The same images give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reproduce.runs.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

IMAGES, NEIGHBOURS = 8, 8
"""Images in a picture, one in a row, and neighbours of each."""
VIEWS, NEAREST = "views.png", "neighbours.png"
"""Names of the files."""
SIDE = 96
"""Side of a picture below which images are enlarged, in pixels."""
MARGIN, TEXT = 6, 12
"""Space around an image, and height of the letters, in pixels."""
FRAME = 3
"""Width of the frame around an image, in pixels."""
PAPER, INK, RIGHT = (250, 250, 250), (0, 0, 0), (0, 114, 178)
"""Colours; the blue of a right neighbour differs from the others for every kind of sight (Wong, 2011)."""


def grid(path: Path, rows: Sequence[Sequence[Tensor]], names: Sequence[Sequence[str]] = ()) -> Path:
    """Write a picture with one row for each of `rows`, and return `path`.

    With names, the first image of a row has a dark frame, and those with its name have a blue one.

    Args:
        rows: images (3, side, side) uint8, whose sides may differ.
        names: class of each image, as the text below it; empty if unknown.

    Raises:
        OSError: the file cannot be written.
    """
    side = max(image.shape[-1] for row in rows for image in row)
    scale = max(1, SIDE // side)
    step, line = side * scale + MARGIN, TEXT + MARGIN if any(map(any, names)) else 0
    columns = max(map(len, rows))
    whole = Image.new("RGB", (columns * step + MARGIN, len(rows) * (step + line) + MARGIN), PAPER)
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(TEXT)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            x, y = MARGIN + j * step, MARGIN + i * (step + line)
            tile = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
            width = tile.width * scale
            whole.paste(tile.resize((width, width), Image.Resampling.NEAREST), (x, y))
            right = names and names[i][j] and names[i][j] == names[i][0]
            if names and (j == 0 or right):
                corners = (x - FRAME, y - FRAME, x + width + FRAME - 1, y + width + FRAME - 1)
                pen.rectangle(corners, outline=RIGHT if j else INK, width=FRAME)
            if line:
                pen.text(
                    (x, y + step - MARGIN), _short(names[i][j], step - MARGIN, font), fill=INK, font=font
                )
    content = io.BytesIO()
    whole.save(content, format="PNG")
    write_atomic(path, content.getbuffer())
    return path


def _short(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the longest beginning of `text` that fits `width` pixels."""
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
