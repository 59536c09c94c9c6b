"""VOC07+12 and COCO 2017: boxes, masks and flags agree with the benchmarks; every error is one line.

An error names the faulty file.
"""

import gzip
import hashlib
import json
import shutil
import struct
from array import array
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from skips import shared

from reproduce.data import coco2017, detection, json_tables, voc, voc0712
from reproduce.data.coco2017 import CATEGORIES, CATEGORY_IDS, CLASSES, COCO2017
from reproduce.data.detection import Instance, Picture, pixels
from reproduce.data.voc0712 import VOC0712
from reproduce.messages import InvalidError
from reproduce.site import Site


def image(path, width=8, height=6, **options):
    """Write a JPEG whose pixels differ from row to row and from column to column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.add.outer(np.arange(height) * 8, np.arange(width) * 4)[..., None] + [0, 20, 40]
    Image.fromarray(ramp.astype(np.uint8)).save(path, format="JPEG", quality=95, **options)
    return path


# ---- VOC07+12

PERSON = """<object>
<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>
<name>person</name><difficult>{difficult}</difficult>
<bndbox><xmax>8</xmax><xmin>1</xmin><ymax>6</ymax><ymin>1</ymin></bndbox>
<part><name>hand</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part></object>"""
CAT = """<object><name>cat</name>
<bndbox><xmin>2.5</xmin><ymin>4</ymin><xmax>9</xmax><ymax>4</ymax></bndbox></object>"""
LISTS = {
    ("2007", "trainval"): ("000007", "000005"),
    ("2007", "train"): ("000005",),
    ("2007", "test"): ("000001",),
    ("2012", "trainval"): ("2008_000008",),
}


@pytest.fixture
def devkit(tmp_path):
    """Write small releases of both years; the lines of the lists end in CR LF, as in the release."""
    root = tmp_path / "VOCdevkit"
    for (year, split), names in LISTS.items():
        folder = root / f"VOC{year}"
        for name in names:
            image(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations").mkdir(exist_ok=True)
            objects = PERSON.format(difficult=int(name == "000007")) + (CAT if name != "000001" else "")
            size = "<size><width>8</width><height>6</height></size>"
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_bytes(
            "".join(f"{name}\r\n" for name in names).encode()
        )
    return root


def test_voc_boxes_cover_pixels_from_0_and_parts_are_no_objects(devkit):
    read = voc0712.read(devkit.parent, "2007_trainval+2012_trainval")
    assert [picture.id for picture in read.pictures] == ["000007", "000005", "2008_000008"]
    person, cat = read.pictures[0].instances
    assert person == Instance(14, (0.0, 0.0, 8.0, 6.0), difficult=True)  # the whole image of 8 x 6 pixels
    assert cat == Instance(7, (1.5, 3.0, 9.0, 4.0))  # one pixel high and beyond the right side, as annotated
    assert [each.difficult for picture in read.pictures for each in picture.instances] == [True, *[False] * 5]
    assert {(picture.width, picture.height) for picture in read.pictures} == {(8, 6)}
    assert [picture.file for picture in read.pictures] == [
        devkit / "VOC2007" / "JPEGImages" / "000007.jpg",
        devkit / "VOC2007" / "JPEGImages" / "000005.jpg",
        devkit / "VOC2012" / "JPEGImages" / "2008_000008.jpg",
    ]
    assert read.origin == devkit / "VOC2012"
    assert voc0712.read(devkit.parent, "2007_test").origin == devkit / "VOC2007"
    assert (read.classes, read.category_ids) == (voc.CLASSES, tuple(range(20)))
    assert read.trainable == read.pictures
    assert pixels(read.pictures[0]).shape == (6, 8, 3)


def test_voc_is_found_in_its_root_and_in_the_devkit(devkit):
    dataset = VOC0712()
    for root in (devkit, devkit.parent):
        site = Site(data={"voc": root})
        dataset.check_root(site)
        assert len(dataset.load(dataset.train_split, site).pictures) == 3
        assert len(dataset.load(dataset.test_split, site).pictures) == 1


def test_the_root_of_one_year_is_not_taken_for_both(devkit):
    site = Site(data={"voc": devkit / "VOC2007"})
    with pytest.raises(
        LookupError, match=r"VOC2007 does not contain VOC2007: .*invoke download --dataset voc0712"
    ):
        VOC0712().check_root(site)
    (devkit / "VOC2012" / "ImageSets" / "Main" / "trainval.txt").unlink()
    with pytest.raises(
        LookupError,
        match=r"VOC2012/ImageSets/Main/trainval\.txt does not exist\. Layout: VOC2007/ and VOC2012/",
    ):
        VOC0712().check_root(Site(data={"voc": devkit}))
    shutil.rmtree(devkit / "VOC2012")
    with pytest.raises(
        LookupError,
        match=r"VOCdevkit does not contain VOC2012: ImageSets/Main is missing\. Get it: `invoke download",
    ):
        VOC0712().check_root(Site(data={"voc": devkit}))
    assert len(voc0712.read(devkit, "2007_trainval").pictures) == 2


def test_a_split_is_of_known_parts_that_differ(devkit):
    with pytest.raises(LookupError, match=r"no split '2012_test'\. Did you mean .*Join several with '\+'"):
        voc0712.read(devkit, "2007_trainval+2012_test")
    with pytest.raises(
        ValueError,
        match=r"VOC2007: image 000005 of 2007_train is already in the split 2007_trainval\+2007_train",
    ):
        voc0712.read(devkit, "2007_trainval+2007_train")
    with pytest.raises(LookupError, match=r"Main/val\.txt does not exist"):
        voc0712.read(devkit, "2012_val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("<width>8", "<width>0"),
            r"000005\.xml: an image cannot have the size 0 x 6",
        ),
        (
            lambda text: text.replace("2.5", "inf"),
            r"000005\.xml: the <bndbox/xmin> of <object> is 'inf', not a number",
        ),
        (
            lambda text: text.replace("2.5", "9.5"),
            r"000005\.xml: the box of a cat is \(9\.5, 4, 9, 4\): its ends are swapped",
        ),
        (
            lambda text: text.replace("<name>cat", "<name>unicorn"),
            r"000005\.xml: 'unicorn' is not one of the 20 classes",
        ),
    ],
)
def test_a_wrong_annotation_of_voc_is_named(devkit, change, message):
    path = devkit / "VOC2007" / "Annotations" / "000005.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        voc0712.read(devkit, "2007_trainval")
    assert "\n" not in str(caught.value)


def test_a_lost_file_of_voc_is_named_and_counted(devkit):
    folder = devkit / "VOC2007"
    (folder / "Annotations" / "000005.xml").unlink()
    with pytest.raises(ValueError, match=r"000005\.xml cannot be read .*: every image needs its annotation"):
        voc0712.read(devkit, "2007_trainval")
    for name in LISTS["2007", "trainval"]:
        (folder / "JPEGImages" / f"{name}.jpg").unlink()
    with pytest.raises(
        ValueError,
        match=r"JPEGImages/000007\.jpg does not exist, but .*trainval\.txt names it: 2 of its 2 images",
    ):
        voc0712.read(devkit, "2007_trainval")


def test_real_boxes_of_voc_are_those_of_the_xml(tmp_path):
    """Every annotation agrees with a separate reader.

    The reader takes objects from the children of the root and subtracts 1 from left and top.
    """
    root = shared("voc")
    read = voc0712.read(root, "2012_trainval")
    assert len(read.pictures) == 100
    num_difficult = 0
    for picture in read.pictures:
        tree = ElementTree.parse(root / "VOCdevkit" / "VOC2012" / "Annotations" / f"{picture.id}.xml")
        objects = [child for child in tree.getroot() if child.tag == "object"]
        corners = [
            [float(each.find("bndbox").find(side).text) for side in ("xmin", "ymin", "xmax", "ymax")]
            for each in objects
        ]
        assert [list(each.box) for each in picture.instances] == (np.array(corners) - [1, 1, 0, 0]).tolist()
        assert [voc.CLASSES[each.label] for each in picture.instances] == [
            each.find("name").text for each in objects
        ]
        num_difficult += sum(each.difficult for each in picture.instances)
    texts = "".join(
        path.read_text() for path in (root / "VOCdevkit" / "VOC2012" / "Annotations").glob("*.xml")
    )
    assert num_difficult == texts.count("<difficult>1</difficult>") > 0
    both = voc0712.read(root, "2007_trainval+2012_trainval")
    assert both.pictures[1:] == read.pictures
    assert [pixels(picture).shape for picture in both.pictures[:2]] == [
        (each.height, each.width, 3) for each in both.pictures[:2]
    ]


# ---- COCO 2017

TRIANGLE = [1, 1, 5, 1, 5, 4]
RUNS = {"size": [6, 8], "counts": [10, 4, 34]}


def rows():
    """Return the three tables, unordered.

    One image has no annotation, one has only a crowd, and one has two objects.
    """
    images = [
        {"id": id_, "file_name": f"{id_:012}.jpg", "width": 8, "height": 6, "license": 1}
        for id_ in (30, 4, 17)
    ]
    objects = [
        {
            "id": 908,
            "image_id": 4,
            "category_id": 1,
            "iscrowd": 1,
            "bbox": [0, 1.5, 3, 2.25],
            "segmentation": RUNS,
            "area": 4,
        },
        {
            "id": 7,
            "image_id": 17,
            "category_id": 90,
            "iscrowd": 0,
            "bbox": [1, 2, 0, 3],
            "segmentation": [TRIANGLE, TRIANGLE],
            "area": 6,
        },
        {
            "id": 5,
            "image_id": 17,
            "category_id": 13,
            "iscrowd": 0,
            "bbox": [-2, 0, 20.5, 3],
            "segmentation": [TRIANGLE],
            "area": 6,
        },
    ]
    categories = [
        {"id": id_, "name": name, "supercategory": "thing"} for id_, name in reversed(CATEGORIES.items())
    ]
    return {"info": {}, "images": images, "annotations": objects, "categories": categories}


def coco_files(root, content):
    """Write the val split of a small release to `root`."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    for row in content["images"]:
        image(root / "val2017" / str(row["file_name"]))
    return root


def test_coco_objects_belong_to_images_in_order_of_their_ids(tmp_path):
    read = coco2017.read(coco_files(tmp_path, rows()), "val2017")
    assert [picture.id for picture in read.pictures] == [4, 17, 30]
    crowd, two, none = (picture.instances for picture in read.pictures)
    assert crowd == (Instance(0, (0.0, 1.5, 3.0, 3.75), crowd=True, segmentation=RUNS),)
    assert [each.label for each in two] == [79, CLASSES.index("stop sign")]
    # The first box has no area, the second reaches beyond the image, as annotated.
    assert [each.box for each in two] == [
        (1.0, 2.0, 1.0, 5.0),
        (-2.0, 0.0, 18.5, 3.0),
    ]
    assert [list(map(list, each.segmentation)) for each in two] == [[TRIANGLE, TRIANGLE], [TRIANGLE]]
    assert none == ()
    assert [picture.id for picture in read.trainable] == [17]
    assert read.origin == tmp_path / "annotations" / "instances_val2017.json"
    assert read.pictures[0].file == tmp_path / "val2017" / "000000000004.jpg"
    assert (len(read.classes), read.category_ids[:12], read.category_ids[-1]) == (80, (*range(1, 12), 13), 90)


def test_polygons_of_fewer_than_three_points_are_left_out_and_so_is_an_object_of_no_other(tmp_path):
    content = rows()
    content["annotations"][1]["segmentation"] = [[1, 1, 2, 2], [1, 1, 5, 1, 5, 4, 2], TRIANGLE, []]
    content["annotations"][2]["segmentation"] = [[1, 1, 2, 2]]
    (left,) = coco2017.read(coco_files(tmp_path, content), "val2017").pictures[1].instances
    assert left.label == 79
    assert left.segmentation == [array("d", TRIANGLE)]
    content["annotations"][1]["segmentation"] = []
    assert coco2017.read(coco_files(tmp_path, content), "val2017").trainable == ()


@pytest.mark.parametrize("counts", [":4R1", [0, 4, 44]], ids=["compressed", "from the first pixel on"])
def test_an_encoding_is_kept_as_it_is(tmp_path, counts):
    content, encoding = rows(), {"size": [6, 8], "counts": counts}
    content["annotations"][0]["segmentation"] = encoding
    found = coco2017.read(coco_files(tmp_path, content), "val2017")
    assert found.pictures[0].instances[0].segmentation == encoding


@pytest.mark.parametrize("seed", range(5))
def test_compressed_encodings_are_decoded_as_by_pycocotools(seed):
    from pycocotools import mask

    runs = np.random.default_rng(seed).integers(0, 10 ** np.random.default_rng(seed).integers(1, 5, 30))
    runs[1:] += 1
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
    encoded = mask.encode(np.asfortranarray(pixels[:, None]))["counts"]
    assert coco2017._runs(encoded.decode()) == runs.tolist()


def change(table, index, **values):
    """Return a function that changes one row of the JSON file."""

    def changed(content):
        content[table][index].update(values)

    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            change("annotations", 1, image_id=18),
            "annotation 7 refers to image 18, not one of the 3 in the file",
        ),
        (change("annotations", 1, id=5), "more than one annotation has the id 5"),
        (change("annotations", 1, id=10**30), r"the annotation id 10{30} has more than 63 bits"),
        (change("annotations", 1, id=0), "the annotation id 0 is not a whole number of at least 1"),
        (change("images", 0, id=17), "more than one image has the id 17"),
        (change("images", 0, id="30"), "the image id '30' is not a whole number of at least 0"),
        (
            change("annotations", 2, category_id=12),
            "annotation 5 of image 17 has the category 12, which is not one of COCO's",
        ),
        (
            change("annotations", 2, bbox=[1, 1, -2, 3]),
            r"annotation 5 .*bbox \[1, 1, -2, 3\], not left, top, width and height",
        ),
        (change("annotations", 2, bbox=[1, float("nan"), 2, 3]), r"bbox \[1, nan, 2, 3\], not left"),
        (change("annotations", 2, bbox=[1, 2, 3]), r"bbox \[1, 2, 3\], not left"),
        (change("annotations", 2, bbox=["1", 1, 2, 3]), r"bbox \['1', 1, 2, 3\], not left"),
        (change("annotations", 2, bbox=[10**400, 1, 2, 3]), r"has the bbox \[10000"),
        (change("annotations", 2, iscrowd=2), "annotation 5 of image 17 has iscrowd 2, not 0 or 1"),
        (
            change("annotations", 2, segmentation=[[1, 1, 5, 1, 5, float("inf")]]),
            "annotation 5 .*neither polygons",
        ),
        (
            change("annotations", 2, segmentation=[TRIANGLE, [1, 1, 5e6, 1, 5, 4]]),
            r"annotation 5 .*polygon of 6 coordinates from 1 to 5e\+06: its outline is too long",
        ),
        (change("annotations", 2, segmentation=["11515"]), "annotation 5 .*neither polygons"),
        (
            change("annotations", 2, segmentation=[[1, 1, 5, 1, 5, "4"]]),
            "annotation 5 .*neither polygons",
        ),
        (
            change("annotations", 0, segmentation={"size": [8, 6], "counts": [48]}),
            r"908 .*height and width \[8, 6\], but its image has \[6, 8\]",
        ),
        (
            change("annotations", 0, segmentation={"size": [6, 8], "counts": [10, 4, 35]}),
            "908 .*does not add up to its image's 48 pixels",
        ),
        (
            change("annotations", 0, segmentation={"size": [6, 8], "counts": [10, -4, 42]}),
            "908 .*does not add up",
        ),
        *(
            (change("annotations", 0, segmentation={"size": [6, 8], "counts": text}), f"908 .*{message}")
            for text, message in {
                "": "does not add up to its image's 48 pixels",
                ":4S1": "does not add up to its image's 48 pixels",  # 10, 4, 35
                ":L2R1": "does not add up",  # 10, -4, then 2 more than an earlier run
                ":4R": "compressed run-length encoding that is truncated",
                ":4z1": "compressed run-length encoding with the character 'z'",
                "P" * 1_000_000: "compressed run-length encoding with a run of over 60 bits",
            }.items()
        ),
        (
            change("annotations", 2, area=None),
            "annotation 5 of image 17 has the area None, not a number of pixels",
        ),
        (change("annotations", 2, area=-1), "annotation 5 .*has the area -1, not"),
        (lambda content: content["annotations"][0].pop("area"), "annotation 908 of image 4 has no area"),
        (
            change("images", 1, width=0),
            r"image 4 \(000000000004\.jpg\) has an impossible size: 0 x 6 pixels",
        ),
        (
            change("images", 1, width=60_000, height=60_000),
            r"image 4 .* has an impossible size: 60000 x 60000 pixels",
        ),
        (change("images", 1, height=-6), r"image 4 .* has an impossible size: 8 x -6 pixels"),
        (change("images", 1, width=8.5), r"image 4 .* has an impossible size: 8\.5 x 6 pixels"),
        (
            change("images", 1, file_name="../secret.jpg"),
            r"image 4 has the file name '\.\./secret\.jpg', which is not valid",
        ),
        (
            change("images", 1, file_name="a\nb.jpg"),
            r"image 4 has the file name 'a\\nb\.jpg', which is not valid",
        ),
        (change("images", 1, file_name=""), "image 4 has the file name '', which is not valid"),
        (
            change("categories", 0, name="tooth\npick"),
            r"80 categories are not COCO's 80: 90 is 'tooth\\npick', not",
        ),
        (change("categories", 0, name="toothpick"), "not COCO's 80: 90 is 'toothpick', not 'toothbrush'"),
        (
            lambda content: content["categories"].pop(),
            r"79 categories are not COCO's 80: 1 \(person\) is missing in the file",
        ),
        (lambda content: content["images"].clear(), "it has no images"),
        (
            lambda content: content.pop("annotations"),
            "it has no table of annotations",
        ),
        (lambda content: content["annotations"][0].pop("bbox"), "annotation 908 of image 4 has no bbox"),
        (
            lambda content: content.update(images=[1, 2]),
            "row 1 of its images is 1, not an object",
        ),
        (change("annotations", 2, image_id=[17]), r"annotation 5 refers to image \[17\], not one of the 3"),
    ],
)
def test_a_wrong_row_of_coco_is_named(tmp_path, changed, message):
    root = coco_files(tmp_path, rows())
    content = rows()
    changed(content)
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"^{path}:? .*{message}") as caught:
        coco2017.read(root, "val2017")
    assert "\n" not in str(caught.value)
    assert "cocodataset.org" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not JSON"),
        (b'{"images": [', "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"\xff\xfe{}", "it is not text"),
        (b"9" * 5_000, "it is not JSON"),
        (
            b'{"images": {%s, "5": 1}}' % b", ".join(b'"%d": 0' % number for number in range(100_000)),
            "an object with the id None has the key '5' twice",
        ),
        (b"[%s9]" % (b"8," * 100_000), r"it is \[(8, )+8?,?\.\.\., not an object"),
        (b"[]", r"it is \[\], not an object with images, annotations and categories"),
        (b"17", "it is 17, not an object with images, annotations and categories"),
        (gzip.compress(b"{}", mtime=0), "it is compressed by gzip: unpack it"),
        (b"\xef\xbb\xbf{}", "it begins with a byte order mark"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (
            b'{"images": [{"id": 7, "width": 8, "width": 9}]}',
            "an object with the id 7 has the key 'width' twice",
        ),
    ],
)
def test_a_file_that_is_no_coco_is_named(tmp_path, content, message):
    path = coco_files(tmp_path, rows()) / "annotations" / "instances_val2017.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: {message}.*Get it: https://cocodataset") as caught:
        coco2017.read(tmp_path, "val2017")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sign", "content", "message"),
    [
        (b"{", b'{"categories": [{}, {}, {}]}', "it has about 4 objects, but at most 3 are read"),
        (b"[", b'{"categories": [[], [], []]}', "it has about 4 lists, but at most 3 are read"),
        (b",", b'{"categories": [0, 0, 0, 0, 0]}', "it has about 4 values, but at most 3 are read"),
    ],
)
def test_the_values_of_a_file_are_counted_before_it_is_parsed(tmp_path, monkeypatch, sign, content, message):
    monkeypatch.setitem(json_tables.MOST, sign, (json_tables.MOST[sign][0], 3))
    path = coco_files(tmp_path, rows()) / "annotations" / "instances_val2017.json"
    path.write_bytes(content)
    with pytest.raises(InvalidError, match=rf"^{path}: {message}.*Get it: https://cocodataset"):
        coco2017.read(tmp_path, "val2017")


def test_a_json_file_is_no_larger_than_a_release_and_no_device(tmp_path):
    path = coco_files(tmp_path, rows()) / "annotations" / "instances_val2017.json"
    with path.open("r+b") as file:
        file.truncate(2**40)  # a hole, which takes no space
    with pytest.raises(InvalidError, match=rf"^{path}: it cannot be read \(Larger than 1000000000 bytes\)"):
        coco2017.read(tmp_path, "val2017")
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(LookupError, match=rf"^{path} does not exist"):
        coco2017.read(tmp_path, "val2017")


def test_lost_files_of_coco_are_named_and_counted(tmp_path):
    root = coco_files(tmp_path, rows())
    for id_ in (17, 30):
        (root / "val2017" / f"{id_:012}.jpg").unlink()
    with pytest.raises(
        ValueError,
        match=r"val2017/000000000017\.jpg does not exist, but .*instances_val2017\.json names it: 2 of its 3",
    ):
        coco2017.read(root, "val2017")
    shutil.rmtree(root / "val2017")
    with pytest.raises(LookupError, match=r"val2017 does not exist\. Layout"):
        coco2017.read(root, "val2017")
    with pytest.raises(
        LookupError,
        match=r"instances_train2017\.json does not exist\. Layout: .*Get it: https://cocodataset\.org",
    ):
        coco2017.read(root, "train2017")
    with pytest.raises(LookupError, match=r"no split 'val2014'\. Did you mean 'val2017'"):
        coco2017.read(root, "val2014")
    with pytest.raises(LookupError, match=r"lacks train2017, val2017, annotations/instances_train2017\.json"):
        COCO2017().check_root(Site(data={"coco": root}))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools and NumPy 2
def test_real_coco_is_read_as_by_its_own_interface(capsys):
    from pycocotools import coco as coco_api

    root = shared("coco")
    site, dataset = Site(data={"coco": root}), COCO2017()
    dataset.check_root(site)
    read = dataset.load(dataset.test_split, site)
    api = coco_api.COCO(str(read.origin))
    capsys.readouterr()  # the interface prints
    assert [picture.id for picture in read.pictures] == sorted(api.imgs)
    assert [(each["id"], each["name"]) for each in api.loadCats(sorted(api.cats))] == list(
        zip(CATEGORY_IDS, CLASSES, strict=True)
    )
    for picture in read.pictures:
        given = api.loadAnns(api.getAnnIds(imgIds=picture.id))
        assert [CATEGORY_IDS[each.label] for each in picture.instances] == [
            each["category_id"] for each in given
        ]
        assert [each.crowd for each in picture.instances] == [bool(each["iscrowd"]) for each in given]
        boxes = np.array([each["bbox"] for each in given])
        np.testing.assert_array_equal(
            np.array([each.box for each in picture.instances]),
            np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]],
        )
        for ours, theirs in zip(picture.instances, given, strict=True):
            kept = ours.segmentation if ours.crowd else [polygon.tolist() for polygon in ours.segmentation]
            assert kept == theirs["segmentation"]
        ours, theirs = picture.instances[0], given[0]  # pycocotools accepts the kept encoding
        assert (
            api.annToMask({"segmentation": ours.segmentation, "image_id": picture.id})
            == api.annToMask(theirs)
        ).all()
    assert sum(each.crowd for picture in read.pictures for each in picture.instances) == 5
    assert len(dataset.load(dataset.train_split, site).pictures) == 80
    assert pixels(read.pictures[0]).shape == (read.pictures[0].height, read.pictures[0].width, 3)


# ---- digests


def test_the_digest_does_not_see_the_place_of_the_files(tmp_path):
    first, second = (coco2017.read(coco_files(tmp_path / name, rows()), "val2017") for name in "ab")
    assert first.digest == second.digest
    assert first.pictures != second.pictures


TWO = (
    Picture(
        Path("a.jpg"),
        1,
        8,
        6,
        (
            Instance(3, (0.0, 1.0, 2.0, 3.0), segmentation=[array("d", TRIANGLE)]),
            Instance(4, (0.0, 0.0, 1.0, 1.0)),
        ),
    ),
    Picture(Path("b.jpg"), 2, 8, 6, ()),
)


def test_the_digest_is_the_same_on_every_machine():
    objects = b"[3, false, false, [6], null]\n" + struct.pack("<10d", 0, 1, 2, 3, *TRIANGLE)
    objects += b"[4, false, false, [], null]\n" + struct.pack("<4d", 0, 0, 1, 1)
    expected = hashlib.sha256(b'["a.jpg", 1, 8, 6, 2]\n' + objects + b'["b.jpg", 2, 8, 6, 0]\n').hexdigest()
    assert (
        detection.digest(TWO)
        == expected
        == "281e2b5cca8b321e3a7f2ab1279503f97a824e97b0c78f268c2d5113c237af2d"
    )
    assert detection.digest(TWO) != detection.digest(reversed(TWO))
    as_list = TWO[0].instances[0]._replace(segmentation=[TRIANGLE])
    assert detection.digest(
        [TWO[0]._replace(instances=(as_list, TWO[0].instances[1])), TWO[1]]
    ) == detection.digest(TWO)


@pytest.mark.parametrize(
    "values",
    [
        {"label": 5},
        {"box": (0.0, 1.0, 2.0, 3.5)},
        {"difficult": True},
        {"crowd": True},
        {"segmentation": None},
        {"segmentation": [TRIANGLE[:4], TRIANGLE[4:]]},
        {"segmentation": [[*TRIANGLE[:5], 4.5]]},
        {"segmentation": RUNS},
        {"segmentation": RUNS | {"counts": ":4R1"}},
        {"segmentation": RUNS | {"counts": [10, 5, 33]}},
    ],
)
def test_the_digest_sees_each_change_of_an_object(values):
    changed = TWO[0].instances[0]._replace(**values)
    others = [detection.digest([TWO[0]._replace(instances=(changed, TWO[0].instances[1])), TWO[1]])]
    others += [detection.digest([TWO[0]._replace(instances=(TWO[0].instances[1], changed)), TWO[1]])]
    assert len({detection.digest(TWO), *others}) == 3


@pytest.mark.parametrize("values", [{"file": Path("c.jpg")}, {"id": "1"}, {"width": 9}, {"height": 7}])
def test_the_digest_sees_each_change_of_an_image(values):
    assert detection.digest([TWO[0]._replace(**values), TWO[1]]) != detection.digest(TWO)


def test_an_object_does_not_move_to_the_next_image_unseen():
    only = TWO[0].instances
    moved = [TWO[0]._replace(instances=only[:1]), TWO[1]._replace(instances=only[1:])]
    assert detection.digest(moved) != detection.digest(TWO)


# ---- pixels


def test_pixels_are_rgb_whatever_the_file_is(tmp_path):
    whole = pixels(Picture(image(tmp_path / "a.jpg"), 1, 8, 6, ()))
    assert (whole.dtype, whole.shape) == (np.uint8, (6, 8, 3))
    # Red first: the channels differ by 20 from one to the next.
    assert np.abs(whole[..., 2].astype(int) - whole[..., 0] - 40).max() < 12
    Image.open(tmp_path / "a.jpg").convert("L").save(tmp_path / "grey.png")
    grey = pixels(Picture(tmp_path / "grey.png", 2, 8, 6, ()))
    assert (grey[..., 0] == grey[..., 2]).all()


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a)),
        (9, lambda a: a),  # not an orientation in EXIF
    ],
)
def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[274] = orientation
    upright = pixels(Picture(image(tmp_path / "plain.jpg"), 1, 8, 6, ()))
    expected = turned(upright)
    file = image(tmp_path / "held.jpg", exif=exif.tobytes())
    shown = pixels(Picture(file, 1, expected.shape[1], expected.shape[0], ()))
    assert shown.tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])  # Pillow raises only for the second
@pytest.mark.parametrize("broken", [b"XX*\x00\x08\x00\x00\x00", b"II*\x00\xff\xff\xff\xff"])
def test_exif_that_cannot_be_read_says_nothing(tmp_path, broken, kind):
    Image.open(image(tmp_path / "plain.jpg")).save(tmp_path / "plain", format=kind)
    Image.open(tmp_path / "plain.jpg").save(tmp_path / "broken", format=kind, exif=b"Exif\x00\x00" + broken)
    broken_exif, plain = (pixels(Picture(tmp_path / name, 1, 8, 6, ())) for name in ("broken", "plain"))
    assert broken_exif.tolist() == plain.tolist()


def test_a_broken_photograph_is_named(tmp_path):
    file = image(tmp_path / "a.jpg", 200, 100)
    data = file.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"<html>404</html>"):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"^{file} cannot be decoded: .*Get it again\.$") as caught:
            pixels(Picture(file, 1, 200, 100, ()))
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ValueError, match=rf"^{file} cannot be decoded: .*No such file"):
        pixels(Picture(file, 1, 200, 100, ()))


def test_a_truncated_real_photograph_is_named(tmp_path):
    original = coco2017.read(shared("coco"), "val2017").pictures[0]
    file = tmp_path / original.file.name
    file.write_bytes(original.file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=rf"^{file} cannot be decoded: image file is truncated"):
        pixels(original._replace(file=file))


def test_another_size_than_the_annotated_one_is_told(tmp_path):
    file = image(tmp_path / "a.jpg")
    with pytest.raises(
        ValueError,
        match=rf"^{file} has 8 x 6 pixels, but 6 x 8 in its annotation: boxes and masks would be misplaced",
    ):
        pixels(Picture(file, 1, 6, 8, ()))
