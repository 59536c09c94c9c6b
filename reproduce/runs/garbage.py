"""Python's search for garbage, which finds none in torch and MLflow and takes seconds among their objects.

    garbage.spare()     # at the start of a process: no search of everything during imports, none at its end
    garbage.resume()    # once a process has imported what it needs, before it works for long

A run's own objects are searched as usual.
"""

from __future__ import annotations

import atexit
import gc

USUAL = gc.get_threshold()
RARELY = 1000
"""Searches of the young objects before one of all objects, in place of 10."""


def spare() -> None:
    """Search only young objects from now on, and nothing when the process ends."""
    gc.set_threshold(*USUAL[:2], RARELY)
    # The first function that is registered is the last one called.
    atexit.register(gc.freeze)


def resume() -> None:
    """Search as usual again, except what has been imported by now."""
    if gc.get_threshold() != USUAL:
        gc.freeze()
        gc.set_threshold(*USUAL)
