"""The scenes of the smoke scale.

They have the same bytes on every machine and the layouts of the real data, and their classes are hard to tell
apart without training.
"""

from __future__ import annotations

import hashlib
import json
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
from toys import originals
from waiting import joined

from reproduce.data import scenes as drawing
from reproduce.data import stl10, voc
from reproduce.data.scenes import CLASSES, SIDE, draw, montage
from reproduce.data.synthetic import (
    SyntheticFolder,
    SyntheticINaturalist2018,
    SyntheticPlaces205,
    SyntheticSTL10,
    SyntheticVOC2007,
)
from reproduce.site import Site

ROOT = Path(__file__).parent.parent

GOLDEN = "a7bc390c3aef3816d9f073b53cbeb2990d9218b7e542b6acaf826b8ebf69fba6"
"""SHA-256 of the labels and pixels of `draw(30, seed=0, stream=0)`. It changes only with the generator's
`version`."""

MONTAGE = "57b0db837dfe2e67b2b98772b22ac52d988f24af13e0a8c0bfda3c2353a7cf92"
"""SHA-256 of the pixels and objects of `montage(30, seed=0, stream=0)`. It changes only with the generator's
`version`."""

FOLDER = SyntheticFolder(num_train=40, num_val=20)
STL = SyntheticSTL10(num_unlabeled=15, num_train=30, num_test=20)
VOC = SyntheticVOC2007(num_trainval=40, num_test=30)
PLACES = SyntheticPlaces205(num_train=30, num_val=20)
SPECIES = SyntheticINaturalist2018(num_train=30, num_val=20)
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


def test_the_montages_are_those_of_the_golden_digest() -> None:
    digest = hashlib.sha256()
    for pixels, objects in montage(30, seed=0, stream=0):
        digest.update(pixels.tobytes() + repr([tuple(each) for each in objects]).encode())
    assert digest.hexdigest() == MONTAGE


def test_another_process_draws_the_same_scenes() -> None:
    code = "import hashlib; from reproduce.data.scenes import draw; "
    code += "labels, scenes = draw(30, seed=3, stream=1); "
    code += "print(hashlib.sha256(labels.astype('<i8').tobytes() + scenes.tobytes()).hexdigest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(*draw(30, seed=3, stream=1))


def test_drawing_touches_no_global_random_state() -> None:
    before = np.random.get_state()[1].tobytes()
    draw(10, seed=0, stream=0)
    assert np.random.get_state()[1].tobytes() == before


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
    assert len(set(CLASSES)) == len(drawing.SHAPES) * len(drawing.TEXTURES) == 10
    assert tuple(f"{shape}_{texture}" for shape in drawing.SHAPES for texture in drawing.TEXTURES) == CLASSES


# Montages


def tinted(count: int, *, seed: int, stream: int) -> dict[bytes, int]:
    """Return the class of each scene of a montage.

    The first ten scenes have half of their blue, the next ten half of their red, and so on.
    """
    labels, scenes = draw(count, seed=seed, stream=stream)
    known = {}
    for index, (label, scene) in enumerate(zip(labels.tolist(), scenes, strict=True)):
        family = index // 10 % 2
        halved = scene.copy()
        halved[:, :, 0 if family else 2] = scene[:, :, 0 if family else 2] // 2
        known[halved.tobytes()] = label + 10 * family
    return known


def test_a_montage_shows_the_scenes_of_its_objects_each_once() -> None:
    images = montage(60, seed=4, stream=7)
    known = tinted(120, seed=4, stream=7)
    assert [len(objects) for _, objects in images] == [1, 2, 3] * 20
    seen = set()
    for pixels, objects in images:
        assert (pixels.shape, pixels.dtype) == ((2 * SIDE, 2 * SIDE, 3), np.uint8)
        empty = {(y, x) for y in (0, SIDE) for x in (0, SIDE)}
        for label, _, (left, top, right, bottom) in objects:
            y, x = top // SIDE * SIDE, left // SIDE * SIDE
            scene = pixels[y : y + SIDE, x : x + SIDE]
            if len(objects) == 1:
                y, x, scene = 0, 0, pixels[::2, ::2]
                assert all(
                    np.array_equal(scene, pixels[row::2, column::2]) for row in (0, 1) for column in (0, 1)
                )
                empty.clear()
            side = SIDE if len(objects) > 1 else 2 * SIDE
            assert x <= left < right <= x + side
            assert y <= top < bottom <= y + side
            assert known[scene.tobytes()] == label
            seen.add(scene.tobytes())
            empty.discard((y, x))
        assert len(empty) == (4 - len(objects) if len(objects) > 1 else 0)
        assert all(len(set(pixels[y : y + SIDE, x : x + SIDE].flatten().tolist())) == 1 for y, x in empty)
    assert seen == set(known)


def test_boxes_are_drawn_around_what_is_covered_even_in_part() -> None:
    """Objects are drawn at twice the size.

    Rows 10 to 20 are rows 5 to 10 of the scene, columns 33 to 39 are columns 16 to 19.
    """
    inside = np.zeros((2, 2 * SIDE, 2 * SIDE), np.bool_)
    inside[0, 10:21, 33:40] = True
    inside[1, 0, 63] = inside[1, 63, 62] = True
    assert drawing._boxes(inside).tolist() == [[16, 5, 20, 11], [31, 0, 32, 32]]


def test_objects_are_difficult_now_and_then_and_never_the_first_of_a_class() -> None:
    objects = [each for _, objects in montage(200, seed=0, stream=20) for each in objects]
    assert 0.1 < sum(each.difficult for each in objects) / len(objects) < 0.2
    few = [each for _, objects in montage(20, seed=0, stream=20) for each in objects]
    assert {each.label for each in few if not each.difficult} == set(range(20))


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
    together, train, test = (
        STL.load(split, site) for split in (STL.pretrain_split, STL.train_split, STL.test_split)
    )
    assert (len(together), len(train), len(test)) == (45, 30, 20)
    assert sorted(set(np.asarray(together.labels).tolist())) == [-1, *range(len(CLASSES))]
    assert (np.asarray(together.labels) == -1).sum() == 15
    assert min(np.asarray(train.labels).tolist()) == 0
    assert Counter(np.asarray(test.labels).tolist()) == dict.fromkeys(range(len(CLASSES)), 2)
    assert train.classes == CLASSES
    sizes = {path.name: path.stat().st_size for path in STL.folder(site).glob("*_X.bin")}
    assert sizes == {
        f"{split}_X.bin": count * 3 * 96 * 96
        for split, count in (("train", 30), ("test", 20), ("unlabeled", 15))
    }


def test_the_binary_files_hold_upright_scenes(site: Site) -> None:
    """The file is read by the description of its format: channel by channel, column by column."""
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


def test_voc_has_several_targets_an_image_and_some_that_do_not_count(site: Site) -> None:
    trainval, test = (VOC.load(split, site) for split in (VOC.train_split, VOC.test_split))
    assert trainval.targets is not None
    assert test.targets is not None
    assert (trainval.targets.shape, test.targets.shape) == ((40, 20), (30, 20))
    assert (trainval.targets == 1).any(axis=0).all()
    assert (test.targets == 1).any(axis=0).all()
    assert (trainval.targets == 0).any()  # a class that is present only as difficult
    assert set((trainval.targets >= 0).sum(axis=1).tolist()) == {1, 2, 3}


def test_voc_files_say_what_the_montages_show(site: Site) -> None:
    images = VOC.load("trainval", site)
    folder = VOC.folder(site) / "VOC2007"
    for index, (pixels, objects) in enumerate(montage(40, seed=0, stream=20)):
        path = folder / "JPEGImages" / f"{index + 1:06}.jpg"
        assert images.name(index) == str(path)
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), pixels)
        found = voc.read_annotation(folder / "Annotations" / f"{index + 1:06}.xml")
        assert (found.width, found.height) == (64, 64)
        wanted = [
            (voc.CLASSES[label], difficult, (x + 1, y + 1, right, bottom))
            for label, difficult, (x, y, right, bottom) in objects
        ]
        assert list(found.objects) == wanted


def test_voc_lists_are_disjoint_and_one_ends_its_lines_as_the_release_does(site: Site) -> None:
    VOC.load("trainval", site)
    folder = VOC.folder(site) / "VOC2007" / "ImageSets" / "Main"
    ids = {path.stem: path.read_text().split() for path in folder.iterdir()}
    assert ids["train"] + ids["val"] == ids["trainval"]
    assert len({*ids["trainval"], *ids["test"]}) == 70
    assert {path.stem for path in folder.iterdir() if b"\r\n" in path.read_bytes()} == {"test"}


def test_places_and_species_are_the_scenes_in_their_order(site: Site) -> None:
    for dataset, stream in ((PLACES, 30), (SPECIES, 40)):
        for number, (split, count) in enumerate((("train", 30), ("val", 20))):
            images = dataset.load(split, site)
            labels, scenes = draw(count, seed=0, stream=stream + number)
            assert np.array_equal(images.labels, labels)
            assert np.array_equal(originals(images, np.arange(count))[0].permute(0, 2, 3, 1).numpy(), scenes)
            assert len(images.classes) == len(set(images.classes)) == 10


def test_places_and_species_lie_where_the_real_ones_do(site: Site) -> None:
    PLACES.load("train", site)
    folder = PLACES.folder(site)
    lines = (folder / "trainvalsplit_places205" / "val_places205.csv").read_text().splitlines()
    assert lines[:2] == ["a/abbey/gsun_val00000.jpg 0", "a/airport_terminal/gsun_val00001.jpg 1"]
    assert all(
        (folder / "data/vision/torralba/deeplearning/images256" / line.split()[0]).is_file() for line in lines
    )
    SPECIES.load("val", site)
    content = json.loads((SPECIES.folder(site) / "val2018.json").read_text())
    first = content["images"][0]
    assert (first["id"], first["file_name"]) == (31, "train_val2018/Plantae/0/000031.jpg")
    assert [row["image_id"] for row in content["annotations"]] == [row["id"] for row in content["images"]][
        ::-1
    ]


def test_an_unknown_split_is_named_with_those_that_there_are(site: Site) -> None:
    for dataset, known in (
        (FOLDER, "train, val"),
        (STL, "train"),
        (VOC, "train"),
        (PLACES, "train, val"),
        (SPECIES, "train, val"),
    ):
        with pytest.raises(LookupError, match=rf"'valid'.*{known}"):
            dataset.load("valid", site)


# Generated on first use


def test_each_set_of_settings_has_a_folder_of_its_own(site: Site) -> None:
    folders = {
        FOLDER.replace(path, value).folder(site) for path, value in (("num_train", 41), ("data_seed", 1))
    }
    assert len({*folders, FOLDER.folder(site)}) == 3
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
        joined(process)
    assert {path.suffix for path in (tmp_path / "synthetic").iterdir()} == {"", ".lock"}


# Hard enough


def accuracy(train: NDArray[np.float64], test: NDArray[np.float64], scenes: dict[str, Any]) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(n_neighbors=5).fit(train, scenes["train"][0])
    return float(classifier.score(test, scenes["test"][0]))


@pytest.mark.slow
def test_nearest_neighbours_of_raw_pixels_do_poorly(scenes: dict[str, Any]) -> None:
    train, test = (scenes[split][1].reshape(len(scenes[split][1]), -1) / 255 for split in ("train", "test"))
    assert accuracy(train, test, scenes) < 3 * CHANCE  # measured: .24


@pytest.mark.slow
def test_colour_says_nothing_of_the_class(scenes: dict[str, Any]) -> None:
    """The features are each channel's mean and deviation, which depend slightly on the area of a shape."""
    train, test = (
        np.concatenate([scenes[split][1].mean(axis=(1, 2)), scenes[split][1].std(axis=(1, 2))], axis=1)
        for split in ("train", "test")
    )
    assert accuracy(train, test, scenes) < 2 * CHANCE


@pytest.mark.slow
def test_position_says_nothing_of_the_class(scenes: dict[str, Any]) -> None:
    """The feature is the object's centre of mass: the pixels that differ most from the median colour."""

    def centres(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        away = np.abs(pixels - np.median(pixels, axis=(1, 2), keepdims=True)).sum(axis=3)
        axis = np.arange(SIDE)
        total = away.sum(axis=(1, 2))
        return np.stack(
            [(away.sum(axis=1) * axis).sum(axis=1) / total, (away.sum(axis=2) * axis).sum(axis=1) / total],
            axis=1,
        )

    assert accuracy(centres(scenes["train"][1]), centres(scenes["test"][1]), scenes) < 1.6 * CHANCE
