"""The number of images of each split on disk, and their digests, kept with the site's runs.

    images, found = inventory.load(dataset, "train", site)   # in a run: reads the split, updates the record
    found.num_images, found.digest, found.content
    inventory.here(dataset, "train", site)                   # in a command: the record if nothing changed

A record is a file of `<runs>/data`, one for each split and root, because a root may be read-only. It holds as
long as the size and times of each folder and file are those of the record. In splits of more files than the
data set's `most_checked` only those of the folders and lists are compared. The times include the one that
only the system sets (ctime), so a replaced file is noticed even if its size and time of writing are the same.
What changed is listed again, which takes torch and seconds; the check alone takes hundredths of a second.

`digest` covers names, sizes and labels, `content` every byte. The latter is computed by the first run that
reads a split of at most `MOST_BYTES`, and for any split by `invoke verify --data`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import time
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.data.sources import shown, state
from reproduce.messages import InvalidError, UserError, grouped
from reproduce.runs.files import write_atomic
from reproduce.site import Site

FOLDER = "data"
"""Folder of the records, in the folder of runs."""
VERSION = 1
"""Version of the records; those of another version are ignored."""
MOST_BYTES = 3_200_000_000
"""Maximum bytes of a split that a run reads for their digest: those of STL-10, 2.9 GB, take a few seconds."""
JUST_NOW = 2_000_000_000
"""Nanoseconds before a reading within which a change may have the same time as a later one."""
BLOCK = 2**20
"""Bytes that are read at once."""
DIGEST, CONTENT, NUM_IMAGES = PREFIXES = ("data_digest", "data_content", "num_images")
"""Beginnings of the names of the tags that record the data of a run."""

AnyDataset = Dataset | DetectionDataset


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The images of one split."""

    num_images: int
    digest: str
    """SHA-256 of names, sizes and labels (`Images.digest`), or of the annotations (`Annotated.digest`)."""
    content: str = ""
    """SHA-256 of every byte of the images, lists and annotations; empty if unknown."""
    width: int = 0
    height: int = 0
    """Typical width and height of an image in pixels (`Images.typical`); 0 if unknown, as those of a data set
    with boxes."""

    def tags(self, split: str = "") -> dict[str, str]:
        """Return the tags with which a run records its data.

        Args:
            split: split of an evaluation; empty for a pretraining, which has one.
        """
        values = {DIGEST: self.digest, CONTENT: self.content, NUM_IMAGES: str(self.num_images)}
        return {tag(prefix, split): value for prefix, value in values.items() if value}


def tag(prefix: str, split: str = "") -> str:
    """Return the name of a tag; `split` is empty for a pretraining."""
    return f"{prefix}_{split.replace('+', '_')}" if split else prefix  # MLflow refuses + in a name


def contents(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the known digests of content among a run's tags, by what they belong to, in words."""
    return {
        name.replace("data_", "").replace("_", " of ", 1): value
        for name, value in tags.items()
        if name.startswith(CONTENT)
    }


@dataclass(frozen=True, kw_only=True)
class _Record:
    """An inventory, and the state of the folders and files from which it was taken."""

    inventory: Inventory
    num_bytes: int
    signature: str
    """SHA-256 of the states of all files."""
    folders: Mapping[str, list[int]]
    """Times of each folder: of its last write and of its last change of state."""
    checked: list[str]
    """Files whose states are checked each time: all of a split that is not large, else those besides the
    images."""
    checked_signature: str
    """SHA-256 of the states of these."""

    @property
    def holds(self) -> bool:
        """True if no folder and no checked file has changed."""
        try:
            return (
                all(_times(path) == times for path, times in self.folders.items())
                and _signature(map(state, self.checked)) == self.checked_signature
            )
        except (OSError, UserError):
            return False


def load(dataset: AnyDataset, split: str, site: Site, *, main: bool = True) -> tuple[Any, Inventory]:
    """Read a split and take its inventory, as a run does; return both.

    Args:
        main: False in all processes of a run but the first, which only read the split.

    Raises:
        LookupError, ValueError: see the `load` of the data set; or a file is empty, or is not a file.
    """
    if not main:
        images = dataset.load(split, site)
        return images, Inventory(num_images=len(images), digest="")
    return _load(dataset, split, site, most_bytes=MOST_BYTES)


def verify(dataset: AnyDataset, split: str, site: Site) -> tuple[Inventory, Inventory | None]:
    """Read every byte of a split, however large; return its inventory and the one recorded before.

    The new one is recorded.

    Raises:
        LookupError, ValueError: the split is missing, or cannot be read.
        OSError: a folder cannot be read.
    """
    before = _read(_path(dataset, split, site))
    dataset.check_root(site)
    _, found = _load(dataset, split, site, most_bytes=math.inf, trusting=False)
    return found, before.inventory if before else None


def has_root(dataset: AnyDataset, site: Site) -> bool:
    """Return True if the site names a folder of a data set; generated images have none."""
    return bool(_roots(dataset, site))


def known(dataset: AnyDataset, split: str, site: Site) -> Inventory | None:
    """Return the recorded inventory if nothing has changed since; None if it is unknown.

    It imports neither torch nor numpy.
    """
    record = _read(_path(dataset, split, site)) if _roots(dataset, site) else None
    return record.inventory if record is not None and record.holds else None


def as_recorded(dataset: AnyDataset, split: str, site: Site) -> Inventory | None:
    """Return the inventory of the last reading without a look at the files; None without a record.

    It serves estimates, which need a split often and not to the last image.
    """
    path = _path(dataset, split, site)
    try:
        return _inventory(path, path.stat().st_mtime_ns) if _roots(dataset, site) else None
    except OSError:
        return None


def number(dataset: Dataset, split: str, site: Site | None) -> int | None:
    """Return the number of images of a split as last recorded here, else as published; None if unknown.

    Args:
        site: site of the record; None to leave it out.
    """
    found = as_recorded(dataset, split, site) if site else None
    return found.num_images if found else dataset.num_images(split)


@lru_cache
def _inventory(path: Path, changed: int) -> Inventory | None:
    """Return the inventory in a record that was written at a time."""
    record = _read(path)
    return record.inventory if record else None


def here(dataset: AnyDataset, split: str, site: Site) -> Inventory | None:
    """Return the inventory of a split, from its record or by reading it; None if its images are generated.

    Raises:
        LookupError, ValueError: the split is missing, or cannot be read.
        OSError: a folder cannot be read.
    """
    dataset.check_root(site)
    if not _roots(dataset, site):
        return None
    return known(dataset, split, site) or load(dataset, split, site)[1]


def count(dataset: AnyDataset, split: str, site: Site) -> int | None:
    """Return the number of images of a split on disk; None if its images are generated.

    Raises:
        LookupError, ValueError, OSError: see `here`.
    """
    if not _roots(dataset, site):
        return None
    found = known(dataset, split, site)
    return found.num_images if found else dataset.count(split, site)


def used_splits(dataset: AnyDataset) -> tuple[str, ...]:
    """Return the splits of a data set that runs read with its default settings."""
    keys = ("pretrain_split", "train_split", "test_split")
    return tuple(dict.fromkeys(getattr(dataset, key) for key in keys if hasattr(dataset, key)))


def key(dataset: AnyDataset, split: str, site: Site) -> str:
    """Return a text that splits with the same images share."""
    return _path(dataset, split, site).name


def published(dataset: AnyDataset, split: str) -> int | None:
    """Return the published number of images of a split; None if it is unknown."""
    counts = [dataset.published.get(part, 0) for part in split.split("+")]
    return sum(counts) if all(counts) else None


def shortfall(dataset: AnyDataset, split: str, found: int | None) -> str:
    """Return a phrase about a split that has not exactly the published images; empty if it has them.

    Args:
        found: number of its images; None if it is unknown.
    """
    expected = published(dataset, split)
    if found is None or expected is None or found == expected:
        return ""
    whose = f"{dataset.title}'s {split} split"
    if found < expected:
        return f"{grouped(found)} of {grouped(expected)} images of {whose}"
    return f"{grouped(found)} images in {whose} in place of the published {grouped(expected)}"


def _roots(dataset: AnyDataset, site: Site) -> dict[str, str]:
    """Return the folders of a data set by their keys; empty for generated images, or if none is set."""
    return dict(dataset.folders(site))


def _path(dataset: AnyDataset, split: str, site: Site) -> Path:
    """Return the path of the record of a split; of one split in two roots there are two records."""
    place = hashlib.sha256(json.dumps(_roots(dataset, site), sort_keys=True).encode()).hexdigest()[:8]
    return site.runs / FOLDER / f"{dataset.name}-{split}-{place}.json"


def _load(
    dataset: AnyDataset, split: str, site: Site, *, most_bytes: float, trusting: bool = True
) -> tuple[Any, Inventory]:
    """Read a split, take its inventory and record it.

    Args:
        most_bytes: maximum size of a split whose content is read.
        trusting: take the content from the record if all files are in the same state.
    """
    started = time.time_ns()
    images: Any = dataset.load(split, site)
    roots = _roots(dataset, site)
    if not roots:
        return images, Inventory(num_images=len(images), digest=images.digest)
    path = _path(dataset, split, site)
    sidecars = [str(each) for each in dataset.sidecars(split, site)]
    record, changed = _taken(images, sidecars, roots.values(), dataset.most_checked)
    if isinstance(dataset, Dataset):
        width, height = images.typical()
        record = replace(record, inventory=replace(record.inventory, width=width, height=height))
    before = _read(path) if trusting else None
    if before and (before.signature, before.inventory.digest) == (record.signature, images.digest):
        record = replace(record, inventory=replace(record.inventory, content=before.inventory.content))
    if not record.inventory.content and record.num_bytes <= most_bytes:
        content = _content(images, sidecars)
        record = replace(record, inventory=replace(record.inventory, content=content))
    # A later change could have the same time as one of the last seconds, so nothing is recorded then.
    if changed < started - JUST_NOW:
        with suppress(OSError):  # without the record, the next command reads the split again
            write_atomic(path, json.dumps({"version": VERSION, "split": split, **asdict(record)}))
    return images, record.inventory


def _taken(images: Any, sidecars: list[str], roots: Iterable[str], most_checked: int) -> tuple[_Record, int]:
    """Return the record of a split that was just read, without its content, and the time of its last change.

    The time is in nanoseconds.

    Args:
        most_checked: maximum number of files whose states are checked each time.
    """
    of_images, of_others = [tuple(map(int, each)) for each in images.states], list(map(state, sidecars))
    states = [*of_images, *of_others]
    few = len(states) <= most_checked
    folders = {os.path.dirname(path) for path in (*map(os.fsdecode, images.paths()), *sidecars)}  # noqa: PTH120
    times = {path: _times(path) for path in sorted(_with_parents(folders, roots))}
    record = _Record(
        inventory=Inventory(num_images=len(images), digest=images.digest),
        num_bytes=sum(each[0] for each in states),
        signature=_signature(states),
        folders=times,
        checked=[*(map(os.fsdecode, images.paths()) if few else ()), *sidecars],
        checked_signature=_signature(states if few else of_others),
    )
    return record, max(each[-1] for each in (*states, *times.values()))


def _with_parents(folders: Iterable[str], roots: Iterable[str]) -> set[str]:
    """Return the folders and those above them up to their root: a new folder changes the one above it."""
    found, tops = set(folders), set(roots)
    for folder in tuple(found):
        above = folder
        while above not in tops and any(above.startswith(f"{top}{os.sep}") for top in tops):
            above = os.path.dirname(above)  # noqa: PTH120 (thousands of folders)
            found.add(above)
    return found


def _times(folder: str) -> list[int]:
    """Return the times of a folder's last write and of its last change of state, in nanoseconds."""
    found = os.stat(folder)  # noqa: PTH116 (thousands of folders)
    return [found.st_mtime_ns, found.st_ctime_ns]


def _signature(states: Iterable[tuple[int, ...]]) -> str:
    numbers = array("q", itertools.chain.from_iterable(states))
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _content(images: Any, sidecars: list[str]) -> str:
    """Return the SHA-256 of the content of all files in order, each after its size.

    Raises:
        ValueError: a file cannot be read. The message names it.
    """
    total = hashlib.sha256()
    for path in (*images.paths(), *sidecars):
        try:
            with open(path, "rb") as file:  # noqa: PTH123 (bytes)
                total.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
                while block := file.read(BLOCK):
                    total.update(block)
        except OSError as error:
            raise InvalidError(f"{shown(path)} cannot be read ({error.strerror}). Get it again.") from None
    return total.hexdigest()


def _read(path: Path) -> _Record | None:
    """Return the record in a file; None if there is none that this version wrote."""
    try:
        content = json.loads(path.read_bytes())
        if content.pop("version") != VERSION:
            return None
        content.pop("split")
        record = _Record(**content | {"inventory": Inventory(**content["inventory"])})
        return record if _is_sound(record) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_sound(record: _Record) -> bool:
    """Return True if each value of a record that was read from a file has its type."""
    found = record.inventory
    numbers = (found.num_images, record.num_bytes, *itertools.chain.from_iterable(record.folders.values()))
    texts = (found.digest, found.content, record.signature, record.checked_signature, *record.folders)
    return (
        all(type(number) is int for number in numbers)
        and all(type(text) is str for text in (*texts, *record.checked))
        and isinstance(record.checked, list)
        and all("\0" not in path for path in (*record.folders, *record.checked))
    )
