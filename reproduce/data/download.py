"""Download public data sets.

torchvision fetches the files. A data set can be downloaded if its module has a function `download(site)`.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import reproduce.data
from reproduce.data.dataset import Dataset
from reproduce.messages import NotFoundError, UserError, first_line, unknown
from reproduce.settings import Settings
from reproduce.site import Site


def download(dataset: str, site: Site) -> str:
    """Fetch `dataset` into its root and return a line that names the root.

    An empty name returns a line that lists the data sets that can be fetched.

    A complete data set is not fetched again.

    Raises:
        LookupError: the data set cannot be fetched, or its root is not set.
        ConnectionError: the download failed.
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
    if _complete(module, site):
        return f"{dataset} is complete in {site.data[module.KEY]}: nothing was fetched."
    try:
        path: Path = module.download(site)
    except (OSError, RuntimeError) as error:  # torchvision raises the latter for a broken file
        reason = getattr(error, "reason", None) or first_line(error)
        raise ConnectionError(
            f"{dataset} cannot be fetched ({reason}). The same command tries again; or get it by hand: "
            f"{module.SOURCE.rpartition(' or ')[2]}."
        ) from None
    return f"{dataset} is in {path}."


def _complete(module: ModuleType, site: Site) -> bool:
    """Return whether all images of a data set that can be downloaded are in its root."""
    name = module.__name__.rpartition(".")[2]
    own = (each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Settings))
    dataset: Any = next(each for each in own if vars(each).get("name") == name)()
    try:
        for split in {value for key, value in dataset.leaves() if key.endswith("_split")}:
            loaded = dataset.load(split, site)
            if isinstance(dataset, Dataset) and len(loaded) != (dataset.num_images(split) or len(loaded)):
                return False
    except (UserError, OSError):
        return False
    return True


def available() -> list[str]:
    """Return the names of the modules of data sets that can be fetched."""
    names = [
        module.name for module in pkgutil.iter_modules(reproduce.data.__path__) if module.name != "download"
    ]
    return [name for name in names if hasattr(importlib.import_module(f"reproduce.data.{name}"), "download")]
