"""Download public data sets.

torchvision fetches the files. A data set can be downloaded if its module has a function `download(site)`. It
fetches nothing that is complete, and what it leaves behind is complete or was never here.
"""

from __future__ import annotations

import importlib
import pkgutil
import socket
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import reproduce.data
from reproduce.messages import InvalidError, NotFoundError, first_line, unknown
from reproduce.site import Site

TIMEOUT = 60
"""Seconds without an answer after which a server counts as unreachable."""
CORRUPTED = "File not found or corrupted"
"""Beginning of torchvision's RuntimeError for an archive with another MD5 (torchvision/datasets/utils.py)."""


def download(dataset: str, site: Site) -> str:
    """Fetch `dataset` into its root and return a line that names the root.

    An empty name returns a line that lists the data sets that can be fetched.

    Raises:
        LookupError: the data set cannot be fetched, or its root is not set.
        ValueError: a server, the archive or the disk failed. The next call continues.
    """
    found = available()
    if not dataset:
        return (
            f"These data sets can be downloaded: {', '.join(found)}. A table that uses another data set "
            "prints how to get it if it is missing."
        )
    if dataset not in found:
        raise NotFoundError(unknown("data set to fetch", dataset, found))
    module = importlib.import_module(f"reproduce.data.{dataset}")
    with faults(dataset):
        path: Path = module.download(site)
    return f"{dataset} is in {path}."


def available() -> list[str]:
    """Return the names of the modules of data sets that can be fetched."""
    names = [
        module.name for module in pkgutil.iter_modules(reproduce.data.__path__) if module.name != "download"
    ]
    return [name for name in names if hasattr(importlib.import_module(f"reproduce.data.{name}"), "download")]


@contextmanager
def faults(dataset: str) -> Iterator[None]:
    """Turn a failure of a server, an archive or the disk into one line. A server that hangs counts as failed.

    Raises:
        ValueError: the block failed.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not first_line(error).startswith(CORRUPTED):
            raise
        raise InvalidError(
            f"{dataset} is not complete: {_reason(error)}. Once that is solved, the same command fetches and "
            "unpacks what is missing."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    """Return why a download or its unpacking failed, without a period."""
    if isinstance(error, RuntimeError):
        return "the archive from the server is cut or another one, as its MD5 shows"
    if isinstance(error, (EOFError, tarfile.TarError, zlib.error)):
        return f"its archive cannot be unpacked ({first_line(error)})"
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        return f"its server cannot be reached ({first_line(error.reason)})"
    return first_line(error).rstrip(".") or type(error).__name__
