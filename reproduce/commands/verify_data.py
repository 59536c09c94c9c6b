"""Comparison of every byte of the data sets with what was recorded: `invoke verify --data`.

    for checked in verify_data(site):
        print(checked)

Reads each split of each data set whose root is set: Imagenette takes a second, ImageNet many minutes. The
result is recorded, so later runs record the content of large data sets too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from reproduce.data import inventory
from reproduce.data.inventory import AnyDataset, Inventory
from reproduce.messages import UserError, grouped
from reproduce.plan import real_data_sets
from reproduce.readiness import in_words
from reproduce.site import Site


class Checked(NamedTuple):
    """One split."""

    good: bool
    """False if it is broken, or differs from its record."""
    title: str
    """Data set and split."""
    text: str
    """The result, in words."""

    def __str__(self) -> str:
        return f"{self.title}: {self.text}"


def verify_data(site: Site) -> Iterator[Checked]:
    """Yield the result for each split of the data sets whose roots are set, as soon as it is known."""
    for dataset in real_data_sets():
        for split in inventory.used_splits(dataset) if inventory.has_root(dataset, site) else ():
            yield _checked(dataset, split, site)


def _checked(dataset: AnyDataset, split: str, site: Site) -> Checked:
    title = f"{dataset.name}, {split}"
    try:
        found, before = inventory.verify(dataset, split, site)
    except (UserError, OSError) as error:
        return Checked(False, title, in_words(error))
    shortfall = inventory.shortfall(dataset, split, found.num_images)
    text = f"{grouped(found.num_images)} images, content {found.content[:12]}, {_change(found, before)}"
    same = before is None or (found.digest == before.digest and before.content in ("", found.content))
    return Checked(same, title, f"{text}{f'; not as published: {shortfall}' if shortfall else ''}")


def _change(found: Inventory, before: Inventory | None) -> str:
    """Return how a split differs from its record, in words."""
    if before is None:
        return "recorded for the first time"
    if found.digest != before.digest:
        return f"other images than recorded ({grouped(before.num_images)}): runs on those are not reused"
    if before.content and found.content != before.content:
        return "other content than recorded, with the same names and sizes: runs on that are not reused"
    return "as recorded" if before.content else "its content recorded for the first time"
