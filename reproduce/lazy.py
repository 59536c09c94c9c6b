"""`torch`, imported on first use.

A settings class and the maths that it parametrises belong in one file, but building a table must not wait for
torch, whose import takes seconds. Files that define settings therefore use `from reproduce.lazy import
torch`. Functions use it as usual; the import happens when they are first called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _Lazy:
    """Placeholder for a module until one of its names is accessed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
else:
    torch = _Lazy("torch")
    F = _Lazy("torch.nn.functional")

__all__ = ["F", "torch"]
