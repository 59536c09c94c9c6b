"""Fetching the public data sets that torchvision knows how to fetch: those whose file here has a
`download(site)`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import reproduce.data
from reproduce.messages import NotFoundError, unknown
from reproduce.site import Site


def download(dataset: str, site: Site) -> str:
    """Fetches `dataset` into its root of the site and says where it is; with an empty name, says what can be
    fetched.

    Raises:
        LookupError: there is no such data set to fetch, or its root is not set.
    """
    found = available()
    if not dataset:
        return f"Can be fetched: {', '.join(found)}. What the others need is said when a table asks for them."
    if dataset not in found:
        raise NotFoundError(unknown("data set to fetch", dataset, found))
    path: Path = importlib.import_module(f"reproduce.data.{dataset}").download(site)
    return f"{dataset} is in {path}."


def available() -> list[str]:
    """The data sets that can be fetched, by the names of their files."""
    names = [
        module.name for module in pkgutil.iter_modules(reproduce.data.__path__) if module.name != "download"
    ]
    return [name for name in names if hasattr(importlib.import_module(f"reproduce.data.{name}"), "download")]
