"""Open image files, and name their faults: other formats, too many pixels, more than 8 bits per channel."""

from __future__ import annotations

import errno
import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.messages import InvalidError, first_line
from reproduce.runs import kinds

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Formats that are read, by Pillow's names. Pillow knows about 40; EPS among them starts Ghostscript. The
data sets contain JPEG and PNG, the latter under the extension .JPEG, too. A folder of one's own may contain
each (`imagefolder.ENDINGS`), and pictures of the web are sometimes GIF with the extension .jpg. Pillow reads
MPO, several JPEGs in one file as some phones write, as JPEG."""
MOST_PIXELS = 178_956_970
"""Maximum number of pixels of an image: the one at which Pillow raises an error (PIL/Image.py, twice
MAX_IMAGE_PIXELS)."""
DRAWINGS: Mapping[bytes, tuple[str, str]] = dict.fromkeys(
    (b"%!PS", b"\xc5\xd0\xd3\xc6"), ("PostScript, which is not read", "convert it, for instance to a PNG")
)
"""Formats of drawings by the first bytes of a file, each with what would work."""
TEXT = frozenset(string.printable.encode())
"""Bytes of a text in English, or of a web page."""
MAX_VALUE = 255
"""Largest value of a channel of 8 bits."""
DEEP_MODES = ("I", "F")
"""First letters of Pillow's modes with 16 or 32 bits per channel."""


def opened(file: str | Path) -> Image.Image:
    """Return the image in a file of one of the FORMATS, not decoded yet.

    A file of another format, or with more than MOST_PIXELS, raises an exception of Pillow's (see `fault`).
    """
    from PIL import Image

    return Image.open(file, formats=FORMATS)


def eight_bits(image: Image.Image) -> Image.Image:
    """Return the image itself after checking that its file has at most 8 bits per channel.

    Pillow opens a file with 16 bits per channel and several channels as one with 8 bits, without a word, and
    cuts the values of grey ones in a conversion to RGB.

    Raises:
        ValueError: the file has more bits.
    """
    tiles = getattr(image, "tile", ())  # an image in memory has none
    codecs = [tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args for tile in tiles]
    deep = [codec for codec in codecs if isinstance(codec, str) and ";16" in codec]
    scaled = [tile for tile in tiles if tile.codec_name == "ppm" and tile.args[1] > MAX_VALUE]
    if image.mode[0] in DEEP_MODES or deep or scaled:
        raise InvalidError(
            f"its pixels are {(*deep, image.mode)[0]}, more than 8 bits per channel, but 8 bits are needed. "
            "Convert it, for instance to an 8-bit PNG."
        )
    return image


def fault(name: str, error: Exception) -> InvalidError:
    """Return the error of an image that cannot be decoded, as one line that names the file and its kind.

    Args:
        name: path of the file.
        error: exception of the decoder.
    """
    return InvalidError(f"{name} cannot be decoded: {_reason(name, error)}")


def _reason(name: str, error: Exception) -> str:
    """Return what is wrong with the file and what helps, in sentences that follow a colon."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, InvalidError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the memory does not suffice. Lower `workers` or `cache_gb` in the site file."
    if isinstance(error, OSError) and error.errno is not None:  # from the system, not from Pillow
        again = " Get it again." if error.errno == errno.ENOENT else ""
        return f"{error.strerror}.{again}"
    if isinstance(error, Image.DecompressionBombError):
        return f"{first_line(error).rstrip('.')}. Make it smaller."
    if isinstance(error, UnidentifiedImageError):  # its message is the path once more
        return _kind(name) or f"it is not an image in one of the formats {', '.join(FORMATS)}. Get it again."
    return f"{first_line(error) or type(error).__name__}. Get it again."


def _kind(name: str) -> str:
    """Return what the file is in place of an image, and what helps; empty if that is not known."""
    try:
        with Path(name).open("rb") as file:
            head = file.read(kinds.HEAD)
    except OSError:
        return ""
    if not head:
        return "it is empty. Get it again."
    if found := kinds.by_content(head) or kinds.by_content(head, DRAWINGS):
        kind, remedy = found
        return f"it is {kind}: {remedy}."
    return "it is text, not an image. Get it again." if set(head) <= TEXT else ""
