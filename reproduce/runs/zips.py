"""Zip archives whose directory and content are limited before they are read.

    with zips.opened(file, most=1_000) as archive:      # a directory of about that many files
        zips.check_inflated(archive)                    # its files are not far larger than the archive
        content = zips.read(archive, name)              # not a byte more than its directory states

A few kilobytes can stand for gigabytes of zeros, and a directory alone can fill the memory.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

from reproduce.messages import grouped, size

ENTRY = 200
"""Maximum mean number of bytes of a file's entry in a directory: 46 and its name."""
END, DIRECTORY = 22, 5
"""Bytes of the last record of a zip, and the place of the directory's size in what `zipfile` reads of it."""
RATIO = 10
"""Maximum size of all files relative to the archive. Weights are noise, which loses a tenth."""
LEAST = 200_000_000
"""Number of bytes that an archive of any size may unpack to."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Methods of compression that can be unpacked in pieces of limited size."""


def opened(file: Path | BinaryIO, *, most: int) -> zipfile.ZipFile:
    """Return an archive that is open for reading.

    Args:
        most: maximum number of files, estimated from the size of the directory.

    Raises:
        zipfile.BadZipFile: the file is not a complete zip, or its directory is larger.
        OSError: the file cannot be read.
    """
    if isinstance(file, Path):
        with file.open("rb") as stream:
            _check_directory(stream, most)
    else:
        _check_directory(file, most)
    return zipfile.ZipFile(file)


def _check_directory(file: BinaryIO, most: int) -> None:
    # The library's own reading, since a zip can have several ends. Without one, opening it fails.
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[DIRECTORY] > most * ENTRY:
        raise zipfile.BadZipFile(
            f"its directory has {size(end[DIRECTORY])}, more than that of {grouped(most)} files"
        )


def check_inflated(archive: zipfile.ZipFile) -> None:
    """Check the sizes in the directory.

    Raises:
        zipfile.BadZipFile: the files are far larger than the archive, or compressed by an unusual method.
    """
    infos = archive.infolist()
    if odd := [info for info in infos if info.compress_type not in METHODS]:
        raise zipfile.BadZipFile(f"it uses the compression method {odd[0].compress_type}")
    assert archive.fp is not None, "it is open"
    there, found = archive.fp.seek(0, os.SEEK_END), sum(info.file_size for info in infos)
    if found > max(LEAST, RATIO * there):
        raise zipfile.BadZipFile(f"its {size(there)} unpack to {size(found)}")


def read(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a file, of at most the size in the directory; `check_inflated` has passed.

    `ZipFile.read` unpacks up to 2 GB before it compares what it has with that size.

    Raises:
        zipfile.BadZipFile, zlib.error, EOFError: the file is broken.
        RuntimeError: it is encrypted.
    """
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)
