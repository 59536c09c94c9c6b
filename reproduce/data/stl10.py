"""STL-10: 5 000 training, 8 000 test and 100 000 unlabelled images of 96 x 96 pixels.

It reads the binary release (cs.stanford.edu/~acoates/stl10) as torchvision unpacks it:
`stl10_binary/{train,test}_{X,y}.bin`, `unlabeled_X.bin`, `class_names.txt`. Images are memory-mapped, never
read as a whole, so loading takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reproduce.data.dataset import Dataset
from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from reproduce.data.images import Images, Planes

KEY = "stl10"
FOLDER = "stl10_binary"
LAYOUT = f"{FOLDER}/train_X.bin, train_y.bin, test_X.bin, test_y.bin, unlabeled_X.bin"
SOURCE = "`invoke download --dataset stl10` (2.6 GB), or https://cs.stanford.edu/~acoates/stl10"
PARTS = ("train", "test", "unlabeled")
SPLITS = {
    "train": ("train",),
    "test": ("test",),
    "unlabeled": ("unlabeled",),
    "train+unlabeled": ("train", "unlabeled"),
}
"""Files of each split, in order."""
NAMES = "class_names.txt"
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96
"""Side of an image, in pixels."""
NUM_BYTES = 3 * SIDE**2
"""Size of an image in bytes."""


@dataclass(frozen=True, kw_only=True)
class STL10(Dataset, name="stl10"):
    """STL-10 at 64 px; pretraining also reads the unlabelled images."""

    size: int = 64
    """Side of a view and of a test crop (htdt/self-supervised datasets/stl10.py)."""
    resize: int = 70
    """Shorter side of a test image, whose resize is bicubic (htdt/self-supervised datasets/stl10.py)."""
    canvas: int = SIDE
    """No effect: views are cropped from images at their own sizes. It is part of the names of runs."""
    mean: tuple[float, float, float] = (0.43, 0.42, 0.39)
    """Mean of the RGB channels (htdt/self-supervised datasets/stl10.py)."""
    std: tuple[float, float, float] = (0.27, 0.26, 0.27)
    """Standard deviation of the RGB channels (htdt/self-supervised datasets/stl10.py)."""

    pretrain_split: str = "train+unlabeled"
    """Split for pretraining, 105 000 images (htdt/self-supervised datasets/stl10.py)."""
    test_split: str = "test"
    """Split for testing, 8 000 images (htdt/self-supervised datasets/stl10.py)."""

    splits: ClassVar[tuple[str, ...]] = tuple(SPLITS)
    title: ClassVar[str] = "STL-10"
    short: ClassVar[str] = "STL10"
    published: ClassVar[Mapping[str, int]] = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
    typical: ClassVar[tuple[int, int]] = (SIDE, SIDE)
    raw: ClassVar[bool] = True

    def check_root(self, site: Site) -> None:
        folder = f"{FOLDER}/" if (site.root(KEY, LAYOUT, SOURCE) / FOLDER).is_dir() else ""
        images, labels = (
            (f"{folder}{part}_X.bin" for part in PARTS),
            (f"{folder}{part}_y.bin" for part in ("train", "test")),
        )
        check_files(site.root(KEY, LAYOUT, SOURCE, holds=(*images, *labels)), self.published)

    def load(self, split: str, site: Site) -> Images:
        root = site.root(KEY, LAYOUT, SOURCE)
        return read(root, split, counts=self.published, cache_gb=site.cache_gb)

    def sidecars(self, split: str, site: Site) -> Iterable[Path]:
        folder = _folder(site.root(KEY, LAYOUT, SOURCE))
        labels = (folder / f"{part}_y.bin" for part in SPLITS[split])
        return [path for path in (*labels, folder / NAMES) if path.is_file()]


def check_files(root: Path, counts: Mapping[str, int]) -> None:
    """Check the sizes of all files and the labels, which takes milliseconds.

    Args:
        counts: see `read`.

    Raises:
        LookupError, ValueError: see `read`.
    """
    folder = _folder(root)
    classes = _classes(folder)
    for part in PARTS:
        _labels(folder, part, _num_images(folder, part, counts), classes, counts)


def read(root: Path, split: str, *, counts: Mapping[str, int] | None = None, cache_gb: float = 0.0) -> Planes:
    """Read a split of `root`, which contains the folder `stl10_binary` or is that folder.

    Unlabelled images have the label -1.

    Args:
        counts: number of images of each part, equally many of each class. None for any.
        cache_gb: see `Images`.

    Raises:
        LookupError: the split or a file does not exist.
        ValueError: a file is truncated or has another number of images, a label does not belong to a class,
            or a class has no images. The message names the file.
    """
    import numpy as np

    from reproduce.data.images import Planes

    if split not in SPLITS:
        raise NotFoundError(unknown("split", split, SPLITS))
    folder, counts = _folder(root), counts or {}
    classes = _classes(folder)
    labels = [
        _labels(folder, part, _num_images(folder, part, counts), classes, counts) for part in SPLITS[split]
    ]
    paths = [folder / f"{part}_X.bin" for part in SPLITS[split]]
    return Planes(paths, SIDE, np.concatenate(labels), classes, cache_gb)


def _folder(root: Path) -> Path:
    return root / FOLDER if (root / FOLDER).is_dir() else root


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes, from the release's own list if it exists."""
    path = folder / NAMES
    if not path.is_file():
        return CLASSES
    names = tuple(path.read_text(encoding="utf-8-sig", errors="replace").split())
    if len(set(names)) != len(CLASSES) or len(names) != len(CLASSES):
        raise InvalidError(
            f"{path} has {len(set(names))} different names in {len(names)}, not one for each of the "
            f"{len(CLASSES)} classes. Get it: {SOURCE}."
        )
    return names


def _num_images(folder: Path, part: str, counts: Mapping[str, int]) -> int:
    """Return the number of images in the file of a part."""
    path = folder / f"{part}_X.bin"
    num_bytes = _existing(path).stat().st_size
    if num_bytes == 0 or num_bytes % NUM_BYTES:
        raise InvalidError(
            f"{path} has {num_bytes} bytes, not a multiple of {NUM_BYTES} (one image): it is truncated. "
            f"Get it: {SOURCE}."
        )
    found = num_bytes // NUM_BYTES
    expected = counts.get(part, found)
    if found != expected:
        problem = "is truncated" if found < expected else "belongs to something else"
        raise InvalidError(
            f"{path} has {found} images, but STL-10's has {expected}: it {problem}. Get it: {SOURCE}."
        )
    return found


def _labels(
    folder: Path, part: str, num_images: int, classes: tuple[str, ...], counts: Mapping[str, int]
) -> NDArray[np.int64]:
    """Return the labels, (num_images,), counted from 0; -1 for `unlabeled`."""
    import numpy as np

    if part == "unlabeled":
        return np.full(num_images, -1, np.int64)
    path = _existing(folder / f"{part}_y.bin")
    labels = np.fromfile(path, np.uint8).astype(np.int64)
    if len(labels) != num_images:
        both = f"{len(labels)} labels for the {num_images} images of {part}_X.bin"
        raise InvalidError(f"{path} has {both}: one of the two is truncated. Get it: {SOURCE}.")
    wrong = np.flatnonzero((labels < 1) | (labels > len(classes)))
    if len(wrong):
        raise InvalidError(
            f"{path} has the label {labels[wrong[0]]} for image {wrong[0]}; labels are 1 to {len(classes)}. "
            f"Get it: {SOURCE}."
        )
    for number, name in enumerate(classes, start=1):
        if number not in labels:
            raise InvalidError(f"{path} has no label {number}: the class '{name}' has no images.")
    each = counts.get(part, 0) // len(classes)
    uneven = np.flatnonzero(np.bincount(labels - 1, minlength=len(classes)) != each)
    if each and len(uneven):
        raise InvalidError(
            f"{path} has {np.count_nonzero(labels == uneven[0] + 1)} images of the class "
            f"'{classes[uneven[0]]}', but STL-10's has {each} of each: the labels are those of something "
            f"else. Get it: {SOURCE}."
        )
    return labels - 1


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist. Layout: {LAYOUT}. Get it: {SOURCE}.")
    return path


def download(site: Site) -> Path:
    """Fetch the release into the root, with its checksums verified, unless it is there already.

    Raises:
        LookupError: the root is not set.
        ValueError: a file differs from the release's after all.
    """
    from torchvision import datasets
    from torchvision.datasets import utils

    release = datasets.STL10
    root = site.data[KEY] if KEY in site.data else site.root(KEY, LAYOUT, SOURCE)
    root.mkdir(parents=True, exist_ok=True)
    files = (*release.train_list, *release.test_list)
    if not all(utils.check_integrity(_folder(root) / name, md5) for name, md5 in files):
        utils.download_and_extract_archive(release.url, root, filename=release.filename, md5=release.tgz_md5)
    check_files(root, STL10.published)
    return root
