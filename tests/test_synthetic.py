"""The smoke scale's scenes: the same bytes everywhere, in the layouts of the real data, with classes that only a trained eye finds."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from reproduce.data import stl10, synthetic
from reproduce.data.synthetic import CLASSES, SIDE, SyntheticFolder, SyntheticSTL10, draw
from reproduce.site import Site

ROOT = Path(__file__).parent.parent

GOLDEN = "a7bc390c3aef3816d9f073b53cbeb2990d9218b7e542b6acaf826b8ebf69fba6"
"""The SHA-256 of the labels and pixels of `draw(30, seed=0, stream=0)`; it changes with the generator's `version` alone."""

FOLDER = SyntheticFolder(num_train=40, num_val=20)
STL = SyntheticSTL10(num_unlabeled=15, num_train=30, num_test=20)
CHANCE = 1 / len(CLASSES)


def digest(labels: NDArray[np.int64], scenes: NDArray[np.uint8]) -> str:
    return hashlib.sha256(labels.astype("<i8").tobytes() + scenes.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def scenes() -> dict[str, tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Enough scenes to measure how hard they are; about 2 s."""
    return {"train": draw(1000, seed=0, stream=0), "test": draw(500, seed=0, stream=1)}


# The same bytes everywhere


def test_the_scenes_are_those_of_the_golden_digest() -> None:
    assert digest(*draw(30, seed=0, stream=0)) == GOLDEN


def test_another_process_draws_the_same_scenes() -> None:
    code = "import hashlib; from reproduce.data.synthetic import draw; labels, scenes = draw(30, seed=3, stream=1); "
    code += "print(hashlib.sha256(labels.astype('<i8').tobytes() + scenes.tobytes()).hexdigest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(*draw(30, seed=3, stream=1))


def test_drawing_touches_no_global_random_state() -> None:
    before = np.random.get_state()[1].tobytes()  # type: ignore[union-attr, index]
    draw(10, seed=0, stream=0)
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[union-attr, index]


def test_seeds_and_streams_give_other_scenes_and_no_scene_comes_twice() -> None:
    drawn = [draw(20, seed=seed, stream=stream)[1] for seed, stream in ((0, 0), (0, 1), (0, 10), (1, 0))]
    assert len({scene.tobytes() for batch in drawn for scene in batch}) == 4 * 20


def test_scenes_are_small_rgb_images_and_classes_are_equally_many() -> None:
    labels, pixels = draw(10 * len(CLASSES), seed=0, stream=0)
    assert (pixels.shape, pixels.dtype) == ((len(labels), SIDE, SIDE, 3), np.uint8)
    assert Counter(labels.tolist()) == dict.fromkeys(range(len(CLASSES)), 10)
    assert all(pixels.min(axis=(1, 2, 3)) < 128)
    assert all(pixels.max(axis=(1, 2, 3)) > 128)


def test_classes_are_the_pairs_of_shape_and_texture() -> None:
    assert len(set(CLASSES)) == len(synthetic.SHAPES) * len(synthetic.TEXTURES) == 10
    assert tuple(f"{shape}_{texture}" for shape in synthetic.SHAPES for texture in synthetic.TEXTURES) == CLASSES


# The layouts of the real data


def test_the_folder_is_an_image_folder(site: Site) -> None:
    train, val = FOLDER.load("train", site), FOLDER.load("val", site)
    assert train.classes == val.classes == tuple(sorted(CLASSES))
    assert (len(train), len(val)) == (40, 20)
    folder = FOLDER.folder(site)
    assert {path.name for path in folder.iterdir()} == {"train", "val"}
    labels, drawn = draw(40, seed=0, stream=0)
    for label, scene, index in zip(labels, drawn, range(40), strict=True):
        (path,) = (folder / "train").glob(f"*/{index:05}.*")
        assert path.parent.name == CLASSES[label]
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), scene)  # nothing is lost in the file


def test_the_binary_files_have_an_unlabelled_split(site: Site) -> None:
    together, train, test = (STL.load(split, site) for split in (STL.pretrain_split, STL.train_split, STL.test_split))
    assert (len(together), len(train), len(test)) == (45, 30, 20)
    assert sorted(set(np.asarray(together.labels).tolist())) == [-1, *range(len(CLASSES))]
    assert (np.asarray(together.labels) == -1).sum() == 15
    assert min(np.asarray(train.labels).tolist()) == 0
    assert Counter(np.asarray(test.labels).tolist()) == dict.fromkeys(range(len(CLASSES)), 2)
    assert train.classes == CLASSES
    sizes = {path.name: path.stat().st_size for path in STL.folder(site).glob("*_X.bin")}
    assert sizes == {f"{split}_X.bin": count * 3 * 96 * 96 for split, count in (("train", 30), ("test", 20), ("unlabeled", 15))}


def test_the_binary_files_hold_upright_scenes(site: Site) -> None:
    """Read by the description of the format: channel by channel, each column after column."""
    STL.load("train", site)
    raw = np.fromfile(STL.folder(site) / "train_X.bin", dtype=np.uint8).reshape(-1, 3, 96, 96)
    upright = raw.transpose(0, 3, 2, 1)
    _, drawn = draw(30, seed=0, stream=10)
    assert np.array_equal(upright[:, ::3, ::3], drawn)
    assert np.array_equal(upright[:, 2::3, 1::3], drawn)


def test_the_real_loader_reads_the_same_pixels(site: Site) -> None:
    ours = STL.load("train", site)
    direct = stl10.read(STL.folder(site), "train", cache_gb=0)
    assert np.array_equal(np.asarray(ours.labels), np.asarray(direct.labels))


def test_an_unknown_split_is_named_with_those_that_there_are(site: Site) -> None:
    for dataset, known in ((FOLDER, "train, val"), (STL, "train")):
        with pytest.raises(LookupError, match=rf"'valid'.*{known}"):
            dataset.load("valid", site)


# Generated on first use


def test_each_set_of_settings_has_a_folder_of_its_own(site: Site) -> None:
    folders = {FOLDER.replace(path, value).folder(site) for path, value in (("num_train", 41), ("data_seed", 1), ("version", 99))}
    assert len({*folders, FOLDER.folder(site)}) == 4
    assert all(folder.name.startswith("synthetic_folder-") for folder in folders)


def test_a_second_load_writes_nothing(site: Site) -> None:
    FOLDER.load("train", site)
    before = {path: path.stat().st_mtime_ns for path in FOLDER.folder(site).rglob("*")}
    FOLDER.load("val", site)
    assert {path: path.stat().st_mtime_ns for path in FOLDER.folder(site).rglob("*")} == before


def test_what_a_killed_process_left_unfinished_is_written_anew(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    unfinished = FOLDER.folder(site).with_suffix(".unfinished")
    stray = unfinished / "train" / CLASSES[0] / "99999.ppm"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half")
    assert len(FOLDER.load("train", site)) == 40
    assert not unfinished.exists()


def load(site: Site, results: Any) -> None:
    results.put(len(FOLDER.load("train", site)))


def test_two_processes_generate_once(tmp_path: Path) -> None:
    site, fork = Site(runs=tmp_path), multiprocessing.get_context("fork")
    results: Any = fork.Queue()
    processes = [fork.Process(target=load, args=(site, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [40, 40]
    for process in processes:
        process.join()
    assert {path.suffix for path in (tmp_path / "synthetic").iterdir()} == {"", ".lock"}


# Hard enough


def accuracy(train: NDArray[np.float64], test: NDArray[np.float64], scenes: dict[str, Any]) -> float:
    classifier = KNeighborsClassifier(n_neighbors=5).fit(train, scenes["train"][0])
    return float(classifier.score(test, scenes["test"][0]))


def test_nearest_neighbours_of_raw_pixels_do_poorly(scenes: dict[str, Any]) -> None:
    train, test = (scenes[split][1].reshape(len(scenes[split][1]), -1) / 255 for split in ("train", "test"))
    assert accuracy(train, test, scenes) < 3 * CHANCE  # measured: .24


def test_colour_says_nothing_of_the_class(scenes: dict[str, Any]) -> None:
    """The mean and the deviation of each channel; the area of a shape may show a little in them."""
    train, test = (
        np.concatenate([scenes[split][1].mean(axis=(1, 2)), scenes[split][1].std(axis=(1, 2))], axis=1) for split in ("train", "test")
    )
    assert accuracy(train, test, scenes) < 2 * CHANCE


def test_position_says_nothing_of_the_class(scenes: dict[str, Any]) -> None:
    """Where a scene differs most from its median colour: the object's centre of mass."""

    def centres(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        away = np.abs(pixels - np.median(pixels, axis=(1, 2), keepdims=True)).sum(axis=3)
        axis = np.arange(SIDE)
        total = away.sum(axis=(1, 2))
        return np.stack([(away.sum(axis=1) * axis).sum(axis=1) / total, (away.sum(axis=2) * axis).sum(axis=1) / total], axis=1)

    assert accuracy(centres(scenes["train"][1]), centres(scenes["test"][1]), scenes) < 1.6 * CHANCE
