"""Lists, annotations and images that are wrong in a way that still can be read.

Each is an error on one line that names the file, or is counted and reported. None changes a number silently.
"""

import ast
import gzip
import hashlib
import io
import json
import logging
import struct
import tarfile
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import CPU, Notes, web_server

from reproduce.data import (
    coco2017,
    decoding,
    detection,
    imagefolder,
    imagenette,
    inaturalist2018,
    lists,
    places205,
    stl10,
    voc,
    voc0712,
    voc2007,
)
from reproduce.data.coco2017 import CATEGORIES, COCO2017
from reproduce.data.detection import Picture
from reproduce.data.download import faults
from reproduce.data.folders import check_files
from reproduce.data.imagenet100 import read_classes
from reproduce.data.images import CentreCrop, Files, batches
from reproduce.data.voc0712 import VOC0712
from reproduce.data.voc2007 import VOC2007
from reproduce.messages import InvalidError
from reproduce.runs.progress import Watch
from reproduce.site import Site


def picture(path, grey=0):
    """Write an image of 8 x 6 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (grey, grey, grey)).save(path, format="PPM")


# ---- lists of images and of classes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"n01_1.JPEG\nn02_1.JPEG\nn01_1.JPEG\n", r"line 3: n01_1\.JPEG is already on a line before it"),
        (b"n01_1.JPEG\nn01/n01_1.png\n", r"line 2: n01/n01_1\.png is already on a line before it"),
        (b"/n01/n01_1.JPEG\n", r"line 1: '/n01/n01_1\.JPEG' is not the name of an image"),
        (b"n01_1.JPEG\n../n01/n01_1.JPEG\n", r"line 2: '\.\./n01/n01_1\.JPEG' is not the name of an image"),
        (b"n01\\n01_1.JPEG\n", r"line 1: 'n01\\n01_1\.JPEG' is not the name of an image"),
        (b"n01_1.JPEG\nn02_1.JP\nn0", r"line 3: 'n0' is not the name of an image"),
    ],
)
def test_a_list_names_each_image_once_and_inside_of_the_data_set(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"list\.txt, {message}"):
        lists.read(tmp_path / "list.txt")


def test_a_byte_order_mark_and_spaces_do_not_belong_to_a_name(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfn01_1.JPEG \r\n\t\r\n n01_2.JPEG")
    assert lists.read(tmp_path / "list.txt") == {
        b"n01/n01_1": b"n01_1.JPEG",
        b"n01/n01_2": b"n01_2.JPEG",
    }
    (tmp_path / "trainval.txt").write_bytes(b"\xef\xbb\xbf000005\r\n000007")
    assert voc.read_ids(tmp_path / "trainval.txt") == ("000005", "000007")


def test_a_listed_name_with_two_files_is_ambiguous(tmp_path):
    (tmp_path / "list.txt").write_text("n01_1.JPEG\n")
    images = Files(Path("/data"), [b"n01/n01_1.JPEG", b"n01/n01_1.png"], [0, 0], ["n01"])
    with pytest.raises(
        ValueError,
        match=r"names n01_1\.JPEG, but .* two such images, /data/n01/n01_1\.JPEG and /data/n01/n01_1\.png",
    ):
        lists.indices(images, tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"n01\nn02\nn01\n", "line 3: n01 is already on line 1"),
        (b"n01\n../n02\n", r"line 2: '\.\./n02' is not the name of a class"),
        (b"n01\n..\n", r"line 2: '\.\.' is not the name of a class"),
        (b"n01 n02\n", "line 1: 'n01 n02' is not the name of a class"),
        (b"n01\n\xff\n", "line 2: '\ufffd' is not the name of a class"),
    ],
)
def test_a_class_list_of_ones_own_names_each_class_once(tmp_path, content, message):
    path = tmp_path / "imagenet100.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"imagenet100\.txt, {message}"):
        read_classes(path, hashlib.sha256(content).hexdigest())


def test_a_cut_class_list_is_counted(tmp_path):
    path, whole = tmp_path / "imagenet100.txt", b"n01\nn02\nn03\n"
    path.write_bytes(whole[:8])
    with pytest.raises(ValueError, match=r"It is another list or a part of it, of 2 lines: get an exact"):
        read_classes(path, hashlib.sha256(whole).hexdigest())


def test_a_list_that_is_shorter_than_its_folder_was_cut(tmp_path):
    """Of a release of three images, one may have the list of two and two images, but not all three images."""
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "images" / name)
    ask = {"layout": "", "source": "a server", "published": 3}
    check_files(tmp_path / "images", ["a.jpg", "b.jpg"], tmp_path / "list.txt", **ask)
    picture(tmp_path / "images" / "c.jpg")
    with pytest.raises(
        ValueError,
        match=r"list\.txt names 2 images, the published one 3, but .*images has 3 files",
    ):
        check_files(tmp_path / "images", ["a.jpg", "b.jpg"], tmp_path / "list.txt", **ask)
    check_files(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg"], tmp_path / "list.txt", **ask)


# ---- class folders


@pytest.fixture
def folder(tmp_path):
    """Two classes with two images each, in both splits, named as in ImageNet."""
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            for number in (1, 2):
                picture(tmp_path / split / name / f"{name}_{number}.JPEG")
    return tmp_path


def test_one_folder_under_two_labels_is_refused(folder):
    for split in ("train", "val"):
        (folder / split / "n03").symlink_to("n01")
    with pytest.raises(ValueError, match=r"train/n03 and .*train/n01 are the same folder"):
        imagefolder.load(folder, "val")


def test_one_folder_as_both_splits_is_refused(tmp_path):
    picture(tmp_path / "train" / "n01" / "1.png")
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(ValueError, match=r"val/n01 and .*train/n01 are the same folder: .*in both splits"):
        imagefolder.load(tmp_path, "train")


@pytest.mark.parametrize("other", ["MÖWE", unicodedata.normalize("NFD", "möwe")])
def test_classes_that_differ_only_in_spelling_are_refused(tmp_path, other):
    for split in ("train", "val"):
        for name in ("möwe", other):
            picture(tmp_path / split / name / "1.png")
    with pytest.raises(ValueError, match=r"has the classes '.*' and '.*', which differ only in case or in"):
        imagefolder.load(tmp_path, "train")


def test_an_image_of_imagenet_in_two_classes_has_two_labels(folder):
    picture(folder / "train" / "n02" / "n01_2.JPEG")
    assert len(imagefolder.load(folder, "train")) == 5  # names of others may repeat
    for split, name, ending in (("train", "n01440764_7", "png"), ("val", "ILSVRC2012_val_00000293", "JPEG")):
        picture(folder / split / "n01" / f"{name}.JPEG")
        imagefolder.load(folder, split)
        picture(folder / split / "n02" / f"{name}.{ending}")
        with pytest.raises(
            ValueError, match=rf"n01/{name}\.JPEG and .*n02/{name}\.{ending} are one image of ImageNet: keep"
        ):
            imagefolder.load(folder, split)


# ---- VOC


@pytest.fixture
def devkit(tmp_path):
    """VOC2007 and VOC2012 with one image in each list."""
    for year, split, name in (
        ("2007", "trainval", "000005"),
        ("2007", "test", "000001"),
        ("2012", "trainval", "2008_000008"),
    ):
        release = tmp_path / f"VOC{year}"
        picture(release / "JPEGImages" / f"{name}.jpg")
        for place in ("Annotations", "ImageSets/Main"):
            (release / place).mkdir(parents=True, exist_ok=True)
        objects = "".join(
            f"<object><name>{each}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>7</xmax><ymax>6</ymax>"
            "</bndbox></object>"
            for each in voc.CLASSES
        )
        size = "<size><width>8</width><height>6</height></size>"
        (release / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        (release / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "annotation>",
            "annotations>",
            "it holds 20 objects, but 0 where VOC has them, as <object> below .*its root is <annotations>",
        ),
        ("object>", "Object>", "it holds 20 objects, but 0 where VOC has them"),
        (
            "</size>",
            "</size><list><object></object></list>",
            "it holds 21 objects, but 20 where VOC has them",
        ),
    ],
)
def test_objects_in_another_place_are_not_overlooked(devkit, old, new, message):
    path = devkit / "VOC2007" / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"000001\.xml: {message}"):
        voc2007.read(devkit, "test")
    with pytest.raises(ValueError, match=rf"000001\.xml: {message}"):
        voc0712.read(devkit, "2007_test")


def test_an_annotation_of_voc_has_a_maximum_size_and_any_depth(devkit):
    path = devkit / "VOC2007" / "Annotations" / "000001.xml"
    path.write_text(f"<annotation>{'<a>' * 140_000}{'</a>' * 140_000}</annotation>")
    with pytest.raises(InvalidError, match=rf"^{path}: the <size/width> of <annotation> is '', not a number"):
        voc0712.read(devkit, "2007_test")
    with path.open("r+b") as file:
        file.truncate(2**40)  # a hole, which takes no space
    with pytest.raises(InvalidError, match=rf"^{path} cannot be read \(Larger than 1000000 bytes\)"):
        voc0712.read(devkit, "2007_test")


def test_an_image_of_voc_without_objects_is_reported(devkit):
    path = devkit / "VOC2007" / "Annotations" / "000001.xml"
    path.write_text("<annotation><size><width>8</width><height>6</height></size></annotation>")
    with pytest.raises(ValueError, match=r"000001\.xml has no <object> below <annotation>, but every image"):
        voc2007.read(devkit, "test")
    assert voc0712.read(devkit, "2007_test").oddities == (
        "2007_test: 1 of 1 images show no object, such as image 000001. They are tested, but not trained on.",
    )
    assert voc0712.read(devkit, "2007_trainval+2012_trainval").oddities == ()


@pytest.mark.parametrize("dataset", [VOC2007(), VOC0712()], ids=lambda dataset: dataset.name)
def test_an_image_to_train_on_and_to_test_is_known_before_anything_starts(devkit, dataset):
    site = Site(data={"voc": devkit})
    dataset.check_root(site)
    path = devkit / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    path.write_text("000001\n000005\n")
    with pytest.raises(
        ValueError, match=r"test\.txt names 000005, and so does .*trainval\.txt: 1 image would be trained on"
    ):
        dataset.check_root(site)
    path.write_text("000001\n000001\n")
    with pytest.raises(ValueError, match=r"test\.txt, line 2: 000001 is already on line 1"):
        dataset.check_root(site)


# ---- Places205 and iNaturalist 2018


@pytest.fixture
def places(tmp_path):
    (tmp_path / "images256").mkdir()
    (tmp_path / "trainvalsplit_places205").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a/x/1.jpg 0\nb/y/1.jpg 1\na/x/1.jpg 0\n", r" names a/x/1\.jpg twice"),
        (
            b"a/x/1.jpg 0\na/x/1.jpg 1\n",
            r", line 2: '.* 1' has another label than .* a/x before it, 0",
        ),
        (
            b"b/y/1.jpg 1\na/x/1.jpg 0\nb/y/2.jpg 0",
            r", line 3: .* another label than .* b/y before it, 1",
        ),
        (b"a/x/1.jpg 0\n/b/y/1.jpg 1\n", r", line 2: '/b/y/1\.jpg 1' is not a path and a label"),
        (b"a/x/1.jpg 0\na/../../y.jpg 1\n", r", line 2: 'a/\.\./\.\./y\.jpg 1' is not a path and a label"),
        (b"a\\x\\1.jpg 0\n", r", line 1: 'a\\x\\1\.jpg 0' is not a path and a label"),
        (b"a/x/1.jpg " + b"0" * 5000, ", line 1: .* is not a path and a label"),
        (b"a/x/1.jpg 0\nb/y/1.jpg 1\n", " names 2 images, but Places205's has 3: it is not complete"),
    ],
)
def test_a_list_of_places_names_each_image_once_with_the_label_of_its_folder(places, content, message):
    (places / "trainvalsplit_places205" / "train_places205.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train_places205\.csv{message}"):
        places205.read(places, "train", num_classes=2, num_images=3)


def test_a_list_of_places_may_begin_with_a_byte_order_mark(places):
    path = places / "trainvalsplit_places205" / "train_places205.csv"
    path.write_bytes(b"\xef\xbb\xbfa/x/1.jpg 0\r\n\r\nb/y/1.jpg\t1")
    images = places205.read(places, "train", num_classes=2, num_images=2)
    assert [images.names[index] for index in range(2)] == [b"a/x/1.jpg", b"b/y/1.jpg"]


def inat(root, **values):
    """Write three images of two species."""
    names = ("A/5/a.jpg", "A/5/b.jpg", "B/9/c.jpg")
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": label} for number, label in enumerate((5, 5, 9))
        ],
        "categories": [{"id": 5, "name": "Corvus"}, {"id": 9, "name": "Amanita"}],
    }
    (root / "val2018.json").write_text(json.dumps(changed(content, values)))
    return inaturalist2018.read(root, "val", num_classes=2, num_images=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images__1__file_name": "A/5/a.jpg"}, r"the images 0 and 1 have the same file, A/5/a\.jpg"),
        (
            {"annotations__1__category_id": 9},
            r"A/5/a\.jpg and A/5/b\.jpg are in one folder, but",
        ),
        (
            {"images__2__file_name": "../B/9/c.jpg"},
            r"image 2 has the file name '\.\./B/9/c\.jpg', which",
        ),
        (
            {"images__2__file_name": "/B/9/c.jpg"},
            "image 2 has the file name '/B/9/c.jpg', which is not",
        ),
        ({"images__2__file_name": "B\\9\\c.jpg"}, "image 2 has the file name .*, which is not valid"),
        ({"images__2__file_name": "\ud800.jpg"}, "image 2 has the file name .*, which is not valid"),
        ({"images__2__file_name": 7}, "image 2 has the file name 7, which is not valid"),
        ({"annotations__2__image_id": True}, "annotation number 3 refers to image True, not one of the 3"),
        (
            {"annotations__2__category_id": "9"},
            r"the image B/9/c\.jpg refers to category '9', not one",
        ),
        ({"images__2__id": "2"}, "the image id '2' is not a whole number of at least 0"),
    ],
)
def test_an_image_of_inaturalist_has_one_file_and_one_label(tmp_path, change, message):
    assert inat(tmp_path).labels.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=rf"val2018\.json: {message}.*Get it: https"):
        inat(tmp_path, **change)


def test_a_cut_table_of_inaturalist_is_counted(tmp_path):
    inat(tmp_path)
    with pytest.raises(ValueError, match=r"val2018\.json: it has 3 images, not 24426"):
        inaturalist2018.read(tmp_path, "val", num_classes=2, num_images=24_426)


# ---- COCO


def changed(content, values):
    """Set `table__row__key` to values; None removes the key."""
    for place, value in values.items():
        table, row, key = place.split("__")
        content[table][int(row)][key] = value
        if value is None:
            del content[table][int(row)][key]
    return content


def coco(root, split="val2017", **values):
    """Write two images of 8 x 6 pixels with two objects each, with the changes of `changed`."""
    polygon = [[1, 1, 5, 1, 5, 4]]
    content = {
        "images": [{"id": id_, "file_name": f"{id_:012}.jpg", "width": 8, "height": 6} for id_ in (1, 2)],
        "annotations": [
            {
                "id": id_,
                "image_id": 1 + id_ % 2,
                "category_id": 18,
                "iscrowd": 0,
                "bbox": [1, 1, 4, 3],
                "area": 6,
                "segmentation": polygon,
            }
            for id_ in (1, 2, 3, 4)
        ],
        "categories": [{"id": id_, "name": name} for id_, name in CATEGORIES.items()],
    }
    changed(content, values)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for row in content["images"]:
        picture(root / split / str(row["file_name"]))
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations__1__area": None}, "annotation 2 of image 1 has no area"),
        ({"annotations__1__category_id": True}, "annotation 2 of image 1 has the category True"),
        ({"annotations__1__category_id": None}, "annotation 2 of image 1 has no category_id"),
        ({"annotations__1__image_id": True}, "annotation 2 refers to image True, not one of the 2"),
        ({"annotations__1__image_id": "1"}, "annotation 2 refers to image '1', not one of the 2"),
        ({"annotations__1__id": None}, "annotation number 2 has no id"),
        ({"annotations__1__iscrowd": "0"}, "annotation 2 of image 1 has iscrowd '0', not 0 or 1"),
        ({"annotations__1__bbox": {"x": 1}}, "annotation 2 of image 1 has the bbox {'x': 1}, not left"),
        (
            {"annotations__1__segmentation": {"size": [6.0, 8.0], "counts": [48]}},
            r"annotation 2 of image 1 has a run-length encoding of height and width \[6\.0, 8\.0\], but",
        ),
        (
            {"annotations__1__segmentation": {"size": [6, 8]}},
            "annotation 2 of image 1 has a run-length encoding that does not add up",
        ),
        ({"images__1__file_name": "000000000001.jpg"}, "the images 1 and 2 have the same file, 000000000001"),
        ({"images__1__file_name": "val2017\\2.jpg"}, "image 2 has the file name .*, which is not valid"),
        ({"images__1__file_name": "a/2.jpg"}, "image 2 has the file name 'a/2.jpg', which is not valid"),
        ({"images__1__file_name": None}, "image 2 has no file_name"),
        ({"images__1__height": None}, r"image 2 \(000000000002\.jpg\) has no height"),
        ({"categories__1__name": "bicycle "}, "not COCO's 80: 2 is 'bicycle ', not 'bicycle'"),
        ({"categories__1__id": 91}, r"not COCO's 80: 2 \(bicycle\) is missing in the file"),
    ],
)
def test_an_odd_row_of_coco_is_named(tmp_path, change, message):
    root = coco(tmp_path)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    changed(content, change)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"instances_val2017\.json: .*{message}"):
        coco2017.read(root, "val2017")


def test_objects_of_coco_that_do_not_count_are_counted_and_named(tmp_path):
    read = coco2017.read(
        coco(
            tmp_path,
            annotations__0__segmentation=[],
            annotations__1__segmentation=None,
            annotations__2__segmentation=[[1, 1, 5, 1]],
            annotations__3__bbox=[1, 1, 40, 3],
            images__0__width=9,
        ),
        "val2017",
    )
    assert read.oddities == (
        "val2017: 3 objects without a polygon of at least three points, such as annotation 1. They are not "
        "trained on; box AP counts them, mask AP does not.",
        "val2017: 1 of 2 images show no object, such as image 2. They are tested, but not trained on.",
        "val2017: 1 of 1 boxes reach beyond their image, such as image 1. Training clips them, and the "
        "benchmark counts them as annotated.",
    )
    flat = coco2017.read(coco(tmp_path, annotations__3__bbox=[1, 1, 4, 0]), "val2017")
    assert flat.oddities == (
        "val2017: 1 of 4 boxes have no area, such as image 1. They are not trained on, and the benchmark "
        "counts them.",
    )
    assert coco2017.read(coco(tmp_path), "val2017").oddities == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools and NumPy 2
def test_an_object_without_iscrowd_is_no_crowd_and_one_without_a_mask_counts_for_boxes(tmp_path):
    """One of four objects is found. Average precision is 26 of 101 points: precision 1 up to a recall of 1/4.

    Mask AP leaves out the two objects without a mask: recall 1/2, so 51 of 101 points.
    """
    from pycocotools import mask

    from reproduce.detection import scoring
    from reproduce.detection.predictions import Predicted

    root = coco(
        tmp_path,
        annotations__0__iscrowd=None,
        annotations__1__iscrowd=None,
        annotations__1__segmentation=None,
        annotations__3__segmentation=[],
    )
    images = coco2017.read(root, "val2017")
    whole = coco2017.read(coco(tmp_path / "whole"), "val2017")
    outline = mask.merge(mask.frPyObjects([[1, 1, 5, 1, 5, 4]], 6, 8))
    nothing = np.empty((0, 4)), np.empty(0), np.empty(0, np.int64), ()
    found = [
        Predicted(1, *nothing),
        Predicted(2, np.array([[1.0, 1, 5, 4]]), np.array([0.9]), np.array([16]), (outline,)),
    ]
    assert images.classes[16] == "dog"
    assert scoring.coco(images, found, "bbox").ap == pytest.approx(26 / 101)
    assert scoring.coco(images, found, "segm").ap == pytest.approx(51 / 101)
    assert scoring.coco(whole, found, "segm").ap == pytest.approx(26 / 101)


@pytest.mark.slow
def test_a_run_logs_what_is_odd_about_its_images(tmp_path, caplog):
    from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN

    coco(tmp_path, "train2017", annotations__0__segmentation=[])
    coco(tmp_path, **{f"annotations__{row}__segmentation": [] for row in range(4)})
    record, site = Notes(), Site(data={"coco": tmp_path}, runs=tmp_path / "runs")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match="no image of val2017 shows an object that counts"),
    ):
        COCOMaskRCNN(engine="torchvision").run(None, COCO2017(), site, CPU, 0, Watch(record))
    said = record.tags["data_oddities"]
    assert said in caplog.text
    assert "train2017: 1 object without a polygon" in said
    assert "val2017: 4 objects without a polygon of at least three points, such as annotation 1" in said


def test_a_file_that_detectron2_cannot_score_by_is_known_before_anything_is_trained(tmp_path):
    from reproduce.detection.detectron2_formats import check_coco

    check_coco(coco2017.read(coco(tmp_path), "val2017"))
    images = coco2017.read(coco(tmp_path, annotations__2__iscrowd=None), "val2017")
    with pytest.raises(ValueError, match=r"json: the annotation 3 has no iscrowd.*Set it to 0, COCO's"):
        check_coco(images)
    images = coco2017.read(coco(tmp_path, annotations__2__segmentation=None), "val2017")
    with pytest.raises(ValueError, match=r"json: the annotation 3 has no polygon"):
        check_coco(images)


# ---- images


def deep_png(channels):
    """Return a PNG with 16 bits per channel, which Pillow itself cannot write."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = (b"\0" + struct.pack(f">{8 * channels}H", *range(0, 8 * channels * 256, 256))) * 6

    def chunk(name, data=b""):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 6, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def deep_tiff():
    """Return a TIFF in RGB with 16 bits per channel."""
    pixels = bytes(8 * 6 * 3 * 2)
    where = 8 + len(pixels) + 2 + 12 * 9 + 4  # of the three numbers of bits, after the nine tags
    tags = [(256, 3, 1, 8), (257, 3, 1, 6), (258, 3, 3, where), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 1, len(pixels))]
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return head + entries + bytes(4) + struct.pack("<HHH", 16, 16, 16)


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


DEEP = {
    "grey.png": deep_png(1),
    "grey-alpha.png": deep_png(2),
    "rgb.png": deep_png(3),
    "rgba.png": deep_png(4),
    "rgb.tif": deep_tiff(),
    "rgb.ppm": b"P6 8 6 65535\n" + bytes(8 * 6 * 6),
    "grey.pgm": b"P5 8 6 65535\n" + bytes(8 * 6 * 2),
    "float.tif": saved(Image.new("F", (8, 6)), format="TIFF"),
    "integer.tif": saved(Image.new("I", (8, 6)), format="TIFF"),
}


@pytest.mark.parametrize("name", DEEP)
def test_an_image_of_more_than_8_bits_is_refused_wherever_it_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(DEEP[name])
    with Image.open(tmp_path / name) as image:
        assert image.size == (8, 6)
        image.load()  # Pillow reads it
    message = (
        rf"{name} cannot be decoded: its pixels are .*, more than 8 bits per channel, but 8 bits are needed"
    )
    images = Files(tmp_path, [name.encode()], [0], ["a"])
    for shape in ({}, {"crop": CentreCrop(8, 6)}):
        with pytest.raises(InvalidError, match=message):
            next(batches(images, [0], 1, **shape))
    with pytest.raises(InvalidError, match=message):
        detection.pixels(Picture(tmp_path / name, 1, 8, 6, ()))


def test_a_fault_in_a_decoding_process_is_a_line_for_the_user_too(tmp_path):
    (tmp_path / "rgb.png").write_bytes(DEEP["rgb.png"])
    images = Files(tmp_path, [b"rgb.png"], [0], ["a"])
    with pytest.raises(InvalidError, match=r"rgb\.png cannot be decoded: its pixels are RGB;16B"):
        next(batches(images, [0], 1, workers=1))


@pytest.mark.parametrize(
    ("mode", "name"), [("P", "a.png"), ("LA", "a.png"), ("CMYK", "a.jpg"), ("L", "a.bmp"), ("RGB", "a.webp")]
)
def test_images_of_8_bits_in_other_modes_are_read(tmp_path, mode, name):
    Image.new("RGB", (8, 6), (9, 9, 9)).convert(mode).save(tmp_path / name)
    assert next(batches(Files(tmp_path, [name.encode()], [0], ["a"]), [0], 1)).pixels.shape[1] == 3
    assert detection.pixels(Picture(tmp_path / name, 1, 8, 6, ())).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it is empty\. Get it again"),
        (b"<!DOCTYPE html>\n<html>Please log in</html>", "it is text, not an image. Get it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a Git LFS pointer, .*`git lfs pull`.*"),
        (gzip.compress(b"an image", mtime=0), r"it is compressed by gzip: unpack it with `gunzip`"),
        (b"PK\x03\x04" + bytes(40), r"it is a zip archive: unpack it with `unzip`"),
        (b"\xff\xd8\xff\xe0" + bytes(40), r".*\. Get it again"),
    ],
)
def test_a_file_that_is_not_an_image_is_named_for_what_it_is(tmp_path, content, message):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InvalidError, match=rf"^{tmp_path}/a\.jpg cannot be decoded: {message}\.?$") as caught:
        next(batches(Files(tmp_path, [b"a.jpg"], [0], ["a"]), [0], 1))
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidError, match=message):
        detection.pixels(Picture(tmp_path / "a.jpg", 1, 8, 6, ()))


def refused(path, message):
    """Check that both readers of images refuse a file on one line."""
    line = rf"^{path} cannot be decoded: [^\n]*{message}"
    with pytest.raises(InvalidError, match=line):
        next(batches(Files(path.parent, [path.name.encode()], [0], ["a"]), [0], 1))
    with pytest.raises(InvalidError, match=line):
        detection.pixels(Picture(path, 1, 8, 6, ()))


def test_an_image_of_too_many_pixels_is_refused_by_its_header_and_not_called_broken(tmp_path):
    """A PNG of 60 000 x 60 000 pixels has 10 MB and takes 11 GB; Pillow's own limit is half of its error."""
    assert decoding.MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + struct.pack(">I", zlib.crc32(chunk))
    pixels = b"IDAT" + zlib.compress(bytes(1_000_000))
    (tmp_path / "a.png").write_bytes(head + struct.pack(">I", len(pixels) - 4) + pixels + bytes(4))
    refused(tmp_path / "a.png", r"Image size \(3600000000 pixels\).*Make it smaller\.")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.JPEG", {"format": "PNG"}),  # as one of ImageNet's
        ("a.jpg", {"format": "GIF"}),
        ("a.jpg", {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (8, 6))]}),
        ("a.png", {"format": "TIFF"}),
        ("a.jpeg", {"format": "WEBP", "lossless": True}),
        ("a.bmp", {"format": "BMP"}),
        ("a.png", {"format": "PPM"}),
    ],
)
def test_an_image_is_read_by_its_content_whatever_its_extension(tmp_path, name, options):
    (tmp_path / name).write_bytes(saved(Image.new("RGB", (8, 6), (9, 9, 9)), **options))
    read = next(batches(Files(tmp_path, [name.encode()], [0], ["a"]), [0], 1)).pixels
    assert read.shape == (1, 3, 6, 8)
    assert (read == 9).all()
    assert (detection.pixels(Picture(tmp_path / name, 1, 8, 6, ())) == 9).all()


def test_no_other_format_is_read_and_no_program_is_started_to_read_one(tmp_path):
    """Pillow passes EPS to Ghostscript."""
    page = saved(Image.new("RGB", (8, 6)), format="EPS")
    Image.open(io.BytesIO(page))
    (tmp_path / "a.jpg").write_bytes(page)
    refused(tmp_path / "a.jpg", r"it is PostScript, which is not read: convert it")
    (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", (8, 6)), format="PCX"))
    refused(tmp_path / "a.png", "it is not an image in one of the formats JPEG, PNG, PPM, ")


def test_every_image_of_the_suite_is_opened_with_a_list_of_formats():
    calls = [
        (path.name, [keyword.arg for keyword in node.keywords])
        for path in (Path(__file__).parent.parent / "reproduce").rglob("*.py")
        if "Image.open" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert calls
    assert all("formats" in keywords for _, keywords in calls), calls


# ---- downloads


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with web_server("imagenette2-160.tgz") as state:
        yield state


COUNTS = {"train": 20, "val": 10}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A release of ten classes: its archive and its MD5."""
    root = tmp_path_factory.mktemp("release")
    for split, count in COUNTS.items():
        for index in range(count):
            picture(root / "imagenette2-160" / split / f"n{index % 10}" / f"{split}_{index}.JPEG")
    with tarfile.open(root / "archive.tgz", "w:gz") as file:
        file.add(root / "imagenette2-160", "imagenette2-160")
    content = (root / "archive.tgz").read_bytes()
    return content, hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.mark.slow
def test_a_download_fetches_what_is_missing_and_nothing_else(server, archive, tmp_path):
    server["content"], md5 = archive

    def fetch():
        """Fetch, and return whether the server was asked."""
        before = len(server["asked"])
        assert imagenette.fetch(tmp_path, server["url"], md5, COUNTS) == tmp_path
        return len(server["asked"]) > before

    assert [fetch(), fetch()] == [True, False]
    lost = tmp_path / "imagenette2-160" / "train" / "n3" / "train_13.JPEG"
    lost.unlink()  # as after an interrupted unpacking: the folder is there, but not complete
    assert not fetch()  # the archive is still there
    assert lost.is_file()
    lost.unlink()
    path = tmp_path / "imagenette2-160.tgz"
    path.write_bytes(path.read_bytes()[:100])  # as after an interrupted download
    assert fetch()
    assert lost.is_file()


@pytest.mark.slow
def test_a_complete_copy_elsewhere_in_the_root_is_not_fetched_and_an_incomplete_one_is_named(
    server, archive, tmp_path
):
    server["content"], md5 = archive
    for split, count in COUNTS.items():
        for index in range(count):
            picture(tmp_path / split / f"n{index % 10}" / f"{split}_{index}.JPEG")
    imagenette.fetch(tmp_path, server["url"], md5, COUNTS)
    assert server["asked"] == []
    (tmp_path / "train" / "n3" / "train_13.JPEG").unlink()
    with pytest.raises(ValueError, match=rf"{tmp_path} is not complete, though imagenette2-160 was unpacked"):
        imagenette.fetch(tmp_path, server["url"], md5, COUNTS)


@pytest.mark.slow
def test_a_server_that_fails_is_one_line_and_the_next_call_continues(server, archive, tmp_path):
    content, md5 = archive

    def attempt(url=server["url"]):
        with faults("imagenette"):
            imagenette.fetch(tmp_path, url, md5, COUNTS)

    with pytest.raises(InvalidError, match=r"imagenette is not complete: HTTP Error 404: Not Found\. Once"):
        attempt()
    with pytest.raises(InvalidError, match=r"is not complete: its server cannot be reached \(.*refused"):
        attempt("http://127.0.0.1:1/imagenette2-160.tgz")
    server["content"], server["length"] = content[:500], len(content)
    with pytest.raises(InvalidError, match="the archive from the server is cut or another one, as its"):
        attempt()
    server["content"], server["length"] = content, None
    attempt()
    assert len(imagefolder.load(tmp_path / "imagenette2-160", "train")) == 20


def test_a_failure_of_the_disk_or_of_an_archive_is_one_line_and_one_of_our_code_is_not():
    for error, message in (
        (OSError(28, "No space left on device"), r"is not complete: \[Errno 28\] No space left on device"),
        (tarfile.ReadError("unexpected end of data"), r"cannot be unpacked \(unexpected end of data\)"),
        (EOFError("Compressed file ended"), r"cannot be unpacked \(Compressed file ended\)"),
    ):
        with pytest.raises(InvalidError, match=message), faults("stl10"):
            raise error
    with pytest.raises(RuntimeError, match="ours"), faults("stl10"):
        raise RuntimeError("ours")


@pytest.mark.slow
def test_a_complete_stl10_is_verified_and_not_fetched_even_if_the_root_is_its_folder(tmp_path, monkeypatch):
    from torchvision import datasets

    counts = {"train": 20, "test": 10, "unlabeled": 3}
    files = {}
    for part, count in counts.items():
        files[f"{part}_X.bin"] = bytes(count * 3 * 96 * 96)
        if part != "unlabeled":
            files[f"{part}_y.bin"] = bytes(1 + index % 10 for index in range(count))
    sums = [[name, hashlib.md5(each, usedforsecurity=False).hexdigest()] for name, each in files.items()]
    monkeypatch.setattr(datasets.STL10, "train_list", sums)
    monkeypatch.setattr(datasets.STL10, "test_list", [])
    monkeypatch.setattr(datasets.STL10, "url", "http://127.0.0.1:1/stl10_binary.tar.gz")
    monkeypatch.setattr(stl10.STL10, "published", counts)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    site = Site(data={"stl10": tmp_path})
    assert stl10.download(site) == tmp_path
    (tmp_path / "test_X.bin").write_bytes(b"\1" + files["test_X.bin"][1:])  # the size is the same
    with pytest.raises(InvalidError, match="its server cannot be reached"), faults("stl10"):
        stl10.download(site)
