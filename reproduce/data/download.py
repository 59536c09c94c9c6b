"""Download public data sets.

torchvision fetches the files. A data set can be downloaded if its module has a function `download(site)`.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import reproduce.data
from reproduce.messages import NotFoundError, unknown
from reproduce.site import Site


def download(dataset: str, site: Site) -> str:
    """Fetch `dataset` into its root and return a line that names the root.

    An empty name returns a line that lists the data sets that can be fetched.

    Raises:
        LookupError: the data set cannot be fetched, or its root is not set.
    """
    found = available()
    if not dataset:
        return (
            f"These data sets can be downloaded: {', '.join(found)}. A table that uses another data set "
            "prints how to get it if it is missing."
        )
    if dataset not in found:
        raise NotFoundError(unknown("data set to fetch", dataset, found))
    path: Path = importlib.import_module(f"reproduce.data.{dataset}").download(site)
    return f"{dataset} is in {path}."


def available() -> list[str]:
    """Return the names of the modules of data sets that can be fetched."""
    names = [
        module.name for module in pkgutil.iter_modules(reproduce.data.__path__) if module.name != "download"
    ]
    return [name for name in names if hasattr(importlib.import_module(f"reproduce.data.{name}"), "download")]
