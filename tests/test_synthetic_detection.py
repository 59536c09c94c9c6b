"""The detection data of the smoke scale.

They have the same bytes on every machine and the layouts of the real data, and their masks fit the drawings.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from waiting import joined

from reproduce.data import coco2017, polygons, scenes, voc
from reproduce.data.detection import Annotated
from reproduce.data.synthetic import (
    SyntheticFolder,
    SyntheticINaturalist2018,
    SyntheticPlaces205,
    SyntheticSTL10,
    SyntheticVOC2007,
)
from reproduce.data.synthetic_detection import SyntheticCOCO2017, SyntheticVOC0712, _run_lengths
from reproduce.site import Site

pytestmark = pytest.mark.slow  # torchvision or pycocotools and pictures: seconds in total

VOC = SyntheticVOC0712(num_trainval=30, num_test=24)
COCO = SyntheticCOCO2017(num_train=120, num_val=80)

GOLDEN_VOC = "41c61c7c4806c5fda8263ab759c298738b7a56e46720e2f3e8a6a6e097fcbe0b"
"""SHA-256 of the names and bytes of the files in VOC's layout. It changes only with the generator's
`version`."""
GOLDEN_COCO = "6a247fc408ef5792f64c2fabee5c192d2ab3e622cfa58267065b21e28ad2e375"
"""SHA-256 of the names and bytes of the files in COCO's layout."""

L_SHAPE = ((0.0, 0.0), (4.0, 0.0), (4.0, 1.0), (1.0, 1.0), (1.0, 3.0), (0.0, 3.0))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def read(site: Site) -> dict[str, Annotated]:
    """Return the data that the real readers return for the files, by split."""
    return {
        split: dataset.load(split, site)
        for dataset in (VOC, COCO)
        for split in (dataset.train_split, dataset.test_split)
    }


def content(site: Site, split: str) -> dict[str, Any]:
    return json.loads((COCO.folder(site) / "annotations" / f"instances_{split}.json").read_text())


def labels(found: Annotated) -> Counter[int]:
    return Counter(each.label for picture in found.pictures for each in picture.instances)


# Polygons


def test_area_and_bounds_of_an_l_shape() -> None:
    assert polygons.area(L_SHAPE) == polygons.area(L_SHAPE[::-1]) == 6
    assert polygons.bounds(L_SHAPE) == (0, 0, 4, 3)


def test_what_reaches_beyond_the_rectangle_is_cut_off() -> None:
    diamond = ((2.0, -1.0), (5.0, 2.0), (2.0, 5.0), (-1.0, 2.0))
    octagon = polygons.clipped(diamond, width=4, height=4)
    assert set(octagon) == {(1, 0), (3, 0), (4, 1), (4, 3), (3, 4), (1, 4), (0, 3), (0, 1)}
    assert polygons.area(octagon) == 16 - 4 * 0.5
    assert polygons.area(polygons.clipped(L_SHAPE, width=2.5, height=2)) == 2.5 + 1
    assert polygons.clipped(L_SHAPE, width=9, height=9) == L_SHAPE


def test_two_pieces_have_their_area_together() -> None:
    lying_u = (
        (1.0, 0.0),
        (1.0, 1.0),
        (-1.0, 1.0),
        (-1.0, 2.0),
        (1.0, 2.0),
        (1.0, 3.0),
        (-2.0, 3.0),
        (-2.0, 0.0),
    )
    assert polygons.area(polygons.clipped(lying_u, width=4, height=4)) == 2


# Drawings with outlines


def test_an_outline_encloses_the_pixels_of_its_object() -> None:
    """A pixel is covered exactly if at least two of its four drawn points are inside the outline."""
    drawn = scenes._draw(60, seed=3, stream=5)
    axis = (np.arange(64) + 0.5) / 2
    for covered, outline, label in zip(drawn.covered, drawn.outlines, drawn.labels.tolist(), strict=True):
        assert len(outline) == (4 if scenes.CLASSES[label].startswith("square") else 12)
        points = crossed_an_odd_number_of_times(outline, axis[None, :], axis[:, None])
        assert np.array_equal(points.reshape(32, 2, 32, 2).sum(axis=(1, 3)) >= 2, covered)


def test_masks_and_areas_are_those_of_what_is_seen() -> None:
    """Masks agree with COCO's tools.

    At 32 px the bars of a cross are five pixels wide, so some pixels on the edge differ.
    """
    drawn = scenes._draw(60, seed=3, stream=5)
    seen = [polygons.clipped(outline, width=32, height=32) for outline in drawn.outlines]
    overlaps = [
        iou(rasterised(each, 32, 32), covered) for each, covered in zip(seen, drawn.covered, strict=True)
    ]
    assert min(overlaps) > 0.86
    assert np.mean(overlaps) > 0.95
    assert [polygons.area(each) for each in seen] == pytest.approx(drawn.covered.sum(axis=(1, 2)), rel=0.12)


def test_a_montage_has_its_outlines_where_the_scenes_are() -> None:
    """A single scene is shown at twice its size, several in quarters of the image."""
    drawn = scenes._draw(177, seed=3, stream=5)  # 60 times 1 + 2 + 3, less 1 and 2 of images 40 and 80
    tinted = {}
    for index, scene in enumerate(drawn.scenes):
        halved = scene.copy()
        for channel in scenes.TINTS[index // 10 % 8]:
            halved[:, :, channel] //= 2
        tinted[halved.tobytes()] = index
    images = scenes.outlined(90, seed=3, stream=5)
    found = set()
    for pixels, objects in images:
        for label, outline, crowd in objects:
            if crowd is None:
                scale = 2 if len(objects) == 1 else 1
                left, top = (
                    (0, 0) if scale == 2 else (32 * int(min(c) // 32) for c in zip(*outline, strict=True))
                )
                index = tinted[
                    pixels[top : top + 32 * scale : scale, left : left + 32 * scale : scale].tobytes()
                ]
                mask = np.zeros((64, 64), bool)
                mask[top : top + 32 * scale, left : left + 32 * scale] = (
                    drawn.covered[index].repeat(scale, 0).repeat(scale, 1)
                )
                assert iou(rasterised(outline, 64, 64), mask) > 0.86
                assert label == index % 80
                found.add(index)
    crowds = sum(each.crowd is not None for _, objects in images for each in objects)
    assert crowds > 0
    assert len(found) + crowds == sum(len(objects) for _, objects in images)


def test_a_crowd_is_its_scene_four_times() -> None:
    for pixels, objects in scenes.outlined(200, seed=0, stream=60):
        for _, outline, crowd in objects:
            if crowd is None:
                continue
            assert outline == ()
            side = 64 if len(objects) == 1 else 32
            top, left = (side * (int(ends.min()) // side) for ends in crowd.nonzero())
            for image in (pixels, crowd):
                four = image[top : top + side, left : left + side]
                once = four[: side // 2, : side // 2]
                assert np.array_equal(four, np.tile(once, (2, 2, 1)[: four.ndim]))
            assert crowd.sum() == crowd[top : top + side, left : left + side].sum()


def test_other_sizes_and_numbers_of_families_can_be_drawn() -> None:
    images = scenes.outlined(40, seed=0, stream=0, families=2, side=48)
    assert {pixels.shape for pixels, _ in images} == {(96, 96, 3)}
    assert {each.label for _, objects in images for each in objects} == set(range(20))
    assert (
        max(end for _, objects in images for each in objects for point in each.outline for end in point) <= 96
    )


# The layout of VOC


def test_voc_files_are_those_of_the_golden_digest(site: Site, read: dict[str, Annotated]) -> None:
    assert digest(VOC.folder(site)) == GOLDEN_VOC


def test_voc_has_every_class_and_difficult_objects_in_train_and_test(read: dict[str, Annotated]) -> None:
    train, test = read[VOC.train_split], read[VOC.test_split]
    assert (len(train.pictures), len(test.pictures)) == (60, 24)
    for found in (train, test):
        assert set(labels(found)) == set(range(20))
        assert any(each.difficult for picture in found.pictures for each in picture.instances)
        easy = {each.label for picture in found.pictures for each in picture.instances if not each.difficult}
        assert easy == set(range(20))
        assert {len(picture.instances) for picture in found.pictures} == {1, 2, 3}


def test_voc_boxes_are_those_of_the_montages(read: dict[str, Annotated]) -> None:
    """Boxes, which the reader counts from 0, are the generator's own."""
    drawn = scenes.montage(30, seed=0, stream=50) + scenes.montage(30, seed=0, stream=52)
    for picture, (pixels, objects) in zip(read[VOC.train_split].pictures, drawn, strict=True):
        assert [(each.label, each.difficult, each.box) for each in picture.instances] == [
            tuple(each) for each in objects
        ]
        with Image.open(picture.file) as image:
            assert np.array_equal(np.asarray(image), pixels)
            assert image.size == (picture.width, picture.height) == (64, 64)


def test_voc_lists_are_disjoint_and_the_test_list_ends_its_lines_as_the_release_does(
    site: Site, read: dict[str, Annotated]
) -> None:
    lists = sorted(VOC.folder(site).glob("VOC*/ImageSets/Main/*.txt"))
    assert [str(path.relative_to(VOC.folder(site))) for path in lists] == [
        "VOC2007/ImageSets/Main/test.txt",
        "VOC2007/ImageSets/Main/trainval.txt",
        "VOC2012/ImageSets/Main/trainval.txt",
    ]
    assert [b"\r\n" in path.read_bytes() for path in lists] == [True, False, False]
    assert len({name for path in lists for name in path.read_text().split()}) == 84
    assert voc.read_ids(lists[2])[0] == "2008_000001"


# The layout of COCO


def test_coco_files_are_those_of_the_golden_digest(site: Site, read: dict[str, Annotated]) -> None:
    assert digest(COCO.folder(site)) == GOLDEN_COCO


def test_coco_has_every_class_in_train_and_val_crowds_and_images_without_an_object(
    read: dict[str, Annotated],
) -> None:
    train, val = read["train2017"], read["val2017"]
    assert (len(train.pictures), len(val.pictures)) == (120, 80)
    for found in (train, val):
        assert found.classes[0] == "person"
        assert found.category_ids == coco2017.CATEGORY_IDS
        single = {each.label for picture in found.pictures for each in picture.instances if not each.crowd}
        assert single == set(range(80))
        assert any(each.crowd for picture in found.pictures for each in picture.instances)
        assert not found.pictures[39].instances
        assert len(found.trainable) < len(found.pictures)


def test_coco_json_has_the_real_tables_and_ids(site: Site, read: dict[str, Annotated]) -> None:
    train, val = content(site, "train2017"), content(site, "val2017")
    for found in (train, val):
        assert list(found) == ["info", "licenses", "images", "annotations", "categories"]
        ids = [row["id"] for row in found["categories"]]
        assert (len(ids), ids[0], ids[-1]) == (80, 1, 90)
        assert set(range(1, 91)) - set(ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
        assert {row["category_id"] for row in found["annotations"]} == set(ids)
        assert len({row["id"] for row in found["annotations"]}) == len(found["annotations"])
        assert {row["license"] for row in found["images"]} <= {row["id"] for row in found["licenses"]}
    names = {row["id"]: row["name"] for row in train["categories"]}
    assert [names[number] for number in (1, 18, 44, 90)] == ["person", "dog", "bottle", "toothbrush"]
    assert not {row["id"] for row in train["images"]} & {row["id"] for row in val["images"]}
    assert {row["file_name"] for row in train["images"]} == {f"{number:012}.jpg" for number in range(1, 121)}


def test_coco_says_what_the_montages_show(site: Site, read: dict[str, Annotated]) -> None:
    """Masks are as pycocotools decodes them; areas and boxes agree with the masks."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in content(site, "val2017")["annotations"]:  # the last object first, in both
        rows.setdefault(row["image_id"], []).append(row)
    for picture, (pixels, objects) in zip(
        read["val2017"].pictures, scenes.outlined(80, seed=0, stream=61), strict=True
    ):
        with Image.open(picture.file) as image:
            assert np.array_equal(np.asarray(image), pixels)
        assert [each.label for each in picture.instances] == [each.label for each in objects[::-1]]
        for each, row, instance in zip(
            objects[::-1], rows.get(int(picture.id), []), picture.instances, strict=True
        ):
            assert instance.crowd == (each.crowd is not None) == bool(row["iscrowd"])
            x, y, width, height = row["bbox"]
            assert instance.box == (x, y, x + width, y + height)
            assert 0 <= x < x + width <= 64
            assert 0 <= y < y + height <= 64
            if each.crowd is not None:
                mask = decoded(rle.frPyObjects(row["segmentation"], 64, 64))
                assert np.array_equal(mask, each.crowd)
                assert row["area"] == mask.sum()
                assert rle.toBbox(rle.frPyObjects(row["segmentation"], 64, 64)).tolist() == [
                    x,
                    y,
                    width,
                    height,
                ]
            else:
                (polygon,) = row["segmentation"]
                mask = rasterised(tuple(zip(polygon[::2], polygon[1::2], strict=True)), 64, 64)
                assert polygon == [round(value, 2) for value in polygon]
                assert row["area"] == pytest.approx(mask.sum(), rel=0.1)
                assert (min(polygon[::2]), min(polygon[1::2])) == (x, y)
                assert (max(polygon[::2]), max(polygon[1::2])) == pytest.approx((x + width, y + height))


def test_run_lengths_go_down_the_columns_and_begin_outside() -> None:
    assert _run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert _run_lengths(np.array([[False, True, True], [False, False, True]])) == [2, 1, 1, 2]


# Settings and first use


def test_the_ids_of_the_other_synthetic_sets_are_what_they_were() -> None:
    found = [
        cls().id
        for cls in (
            SyntheticFolder,
            SyntheticSTL10,
            SyntheticVOC2007,
            SyntheticPlaces205,
            SyntheticINaturalist2018,
        )
    ]
    assert found == ["28ac4b6990f4", "e56e4679f2de", "747f7fb8b116", "6b13f944f886", "09e801e8aba9"]


def test_too_few_images_for_every_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_trainval and num_test >= 20.*but they are 30 and 19"):
        SyntheticVOC0712(num_trainval=30, num_test=19)
    with pytest.raises(ValueError, match=r"num_train and num_val >= 80.*but they are 79 and 80"):
        SyntheticCOCO2017(num_train=79, num_val=80)


@pytest.mark.parametrize("dataset", [VOC, COCO])
def test_the_fewest_images_allowed_have_every_class(dataset: SyntheticVOC0712 | SyntheticCOCO2017) -> None:
    number = len(dataset.classes)
    if isinstance(dataset, SyntheticVOC0712):
        shown = {
            each.label
            for _, objects in scenes.montage(number, seed=0, stream=51)
            for each in objects
            if not each.difficult
        }
    else:
        shown = {
            each.label
            for _, objects in scenes.outlined(number, seed=0, stream=61)
            for each in objects
            if each.crowd is None
        }
    assert shown == set(range(number))


def test_an_unknown_split_is_named_with_those_that_there_are(site: Site, read: dict[str, Annotated]) -> None:
    with pytest.raises(LookupError, match=r"'test2017'.*val2017"):
        COCO.load("test2017", site)
    with pytest.raises(LookupError, match=r"'2012_test'.*2012_trainval"):
        VOC.load("2012_test", site)


def load(site: Site, results: Any) -> None:
    results.put(VOC.load(VOC.train_split, site).digest)


def test_two_processes_generate_one_whole_folder(tmp_path: Path, read: dict[str, Annotated]) -> None:
    site, fork = Site(runs=tmp_path), multiprocessing.get_context("fork")
    results: Any = fork.Queue()
    processes = [fork.Process(target=load, args=(site, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [read[VOC.train_split].digest] * 2
    for process in processes:
        joined(process)
    assert {path.suffix for path in (tmp_path / "synthetic").iterdir()} == {"", ".lock"}
    assert digest(VOC.folder(site)) == GOLDEN_VOC


# Helpers


def digest(folder: Path) -> str:
    """Return the SHA-256 of the names and bytes of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(
            f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes()
        )
    return found.hexdigest()


def crossed_an_odd_number_of_times(
    outline: polygons.Polygon, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return True if a ray from each point to the right leaves the polygon."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (ax, ay), (bx, by) in zip(outline, (*outline[1:], outline[0]), strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (bx - ax) * (y - ay) / (by - ay))
    return inside


def rasterised(outline: polygons.Polygon, height: int, width: int) -> NDArray[np.bool_]:
    """Return a polygon as COCO's own tools fill it."""
    flat = [float(end) for point in outline for end in point]
    return decoded(rle.merge(rle.frPyObjects([flat], height, width)))


def decoded(mask: Any) -> NDArray[np.bool_]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with numpy 2
        return np.asarray(rle.decode(mask), dtype=bool)


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())
