"""VOC2007, Places205, iNaturalist 2018 and the lists of labelled images are read exactly.

An error names the faulty file.
"""

import gzip
import hashlib
import json
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skips import shared
from toys import originals, web_server
from waiting import thread_joined

from reproduce.data import imagefolder, inaturalist2018, lists, places205, voc, voc2007
from reproduce.data.download import available
from reproduce.data.imagenet import ImageNet
from reproduce.data.imagenet100 import ImageNet100
from reproduce.data.imagenette import Imagenette
from reproduce.data.images import Files, Names, Whole
from reproduce.data.inaturalist2018 import INaturalist2018
from reproduce.data.places205 import Places205
from reproduce.data.synthetic import SyntheticFolder, SyntheticPlaces205, SyntheticVOC2007
from reproduce.data.voc2007 import VOC2007
from reproduce.nn import features
from reproduce.site import Site


def picture(path, grey=0):
    """Write an image of 8 x 6 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (grey, grey, grey)).save(path, format="PPM")


# ---- VOC2007


def annotation(*objects):
    """Return the XML of an image with objects (class, difficult)."""
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>7.5</xmax><ymax>6</ymax></bndbox>"
    parts = [
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{box}</object>"
        for name, difficult in objects
    ]
    size = "<size><width>8</width><height>6</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(parts)}</annotation>"


EVERY = [(name, 0) for name in voc.CLASSES]
IMAGES = {
    "000005": [*EVERY, ("cat", 1)],
    "000007": [("cat", 1), ("dog", 0), ("dog", 1)],
    "000012": [("bus", 0)],
    "000001": [("sheep", 1), ("sheep", 1), ("cow", 0)],
}
TRAINVAL, TEST = ("000005", "000007", "000012"), ("000001",)


def voc_files(folder):
    """Write a small release to `folder`."""
    for name, objects in IMAGES.items():
        picture(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(*objects))
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, ids in (
        ("trainval", TRAINVAL),
        ("train", TRAINVAL[:2]),
        ("val", TRAINVAL[2:]),
        ("test", TEST),
    ):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    return folder


@pytest.fixture
def release(tmp_path):
    return voc_files(tmp_path / "VOC2007")


def test_voc_targets_follow_the_rule_for_difficult_objects(release):
    images = voc2007.read(release.parent, "trainval")
    cat, dog, cow, bus = (voc.CLASSES.index(name) for name in ("cat", "dog", "cow", "bus"))
    expected = np.full((3, 20), -1)
    expected[0] = 1  # a difficult cat next to one that is not changes nothing
    expected[1, [cat, dog]] = 0, 1
    expected[2, bus] = 1
    assert images.targets.dtype == np.int8
    assert images.targets.tolist() == expected.tolist()
    assert images.labels.tolist() == [-1, -1, -1]
    assert images.classes == tuple(sorted(voc.CLASSES))
    assert [Path(images.name(index)).name for index in range(3)] == ["000005.jpg", "000007.jpg", "000012.jpg"]
    assert images.read([1], Whole()).sizes.tolist() == [[6, 8]]
    assert voc2007.read(release.parent, "test").targets[0, cow] == 1
    with pytest.raises(ValueError, match="read-only"):
        images.targets[0, 0] = 0


def test_an_annotation_keeps_size_order_and_boxes(release):
    found = voc.read_annotation(release / "Annotations" / "000007.xml")
    box = (1.0, 2.0, 7.5, 6.0)
    assert found == (8, 6, (("cat", True, box), ("dog", False, box), ("dog", True, box)))


def test_an_object_without_a_word_on_its_difficulty_is_not_difficult(release):
    path = release / "Annotations" / "000007.xml"
    path.write_text(path.read_text().replace("<difficult>1</difficult>", ""))
    assert [each.difficult for each in voc.read_annotation(path).objects] == [False, False, False]


@pytest.mark.parametrize("place", ["VOC2007", "VOCdevkit/VOC2007", "here"])
def test_voc_is_found_in_its_root_in_the_devkit_and_as_the_root_itself(tmp_path, place):
    voc_files(tmp_path / place)
    root = tmp_path / "here" if place == "here" else tmp_path
    dataset, site = VOC2007(), Site(data={"voc": root})
    dataset.check_root(site)
    assert [len(dataset.load(split, site)) for split in ("train", "val", "trainval", "test")] == [2, 1, 3, 1]
    (tmp_path / "other").mkdir()
    with pytest.raises(
        LookupError,
        match=rf"{tmp_path}/other neither is nor contains VOC2007.*invoke download --dataset voc2007",
    ):
        dataset.check_root(Site(data={"voc": tmp_path / "other"}))
    with pytest.raises(LookupError, match=r"no split 'valid'.*Did you mean 'val'"):
        dataset.load("valid", site)


def test_line_ends_and_blanks_of_a_list_do_not_matter(release):
    (release / "ImageSets" / "Main" / "trainval.txt").write_bytes(b"000005\r\n000007  \r\n\r\n000012")
    assert voc.read_ids(release / "ImageSets" / "Main" / "trainval.txt") == TRAINVAL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"trainval\.txt is empty"),
        (b"\r\n \n", r"trainval\.txt is empty"),
        (b"000005\n000007 -1\n", r"trainval\.txt, line 2: '000007 -1' is not the name of an image"),
        (b"../000005\n", r"trainval\.txt, line 1: '\.\./000005' is not the name"),
        (b"\xff\xfe0\n", r"trainval\.txt, line 1: .* is not the name"),
        (b"000005\n000007\n000005\n", r"trainval\.txt, line 3: 000005 is already on line 1"),
        (
            b"000007\n",
            r"trainval\.txt needs a positive image of every class, but has none of aeroplane, .*, cat, "
            r"chair, .*tvmonitor",
        ),
        (
            b"000005\n000099\n000098\n",
            r"JPEGImages/000099\.jpg does not exist, but .*trainval\.txt names it: 2 of its 3 images are "
            r"missing",
        ),
    ],
)
def test_a_wrong_list_is_named_with_the_line(release, content, message):
    (release / "ImageSets" / "Main" / "trainval.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        voc2007.read(release, "trainval")
    assert "\n" not in str(caught.value)


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: LAUGHS + text.replace("cat", "&c;"), "declares a document type or entities"),
        (lambda text: OUTSIDE + text.replace("cat", "&b;"), "declares a document type or entities"),
        (
            lambda text: '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">' + text,
            "declares a document type or entities",
        ),
        (lambda text: text[:-5], "is not well-formed XML"),
        (lambda text: "", "is not well-formed XML"),
        (lambda text: '<?xml version="1.0" encoding="klingon"?>' + text, "is not well-formed XML"),
        (lambda text: text.replace("cat", "unicorn"), "'unicorn' is not one of the 20 classes"),
        (lambda text: text.replace("<name>cat</name>", ""), "'' is not one of the 20 classes"),
        (
            lambda text: text.replace("<difficult>1", "<difficult>2"),
            "the <difficult> of a cat is '2', not 0 or 1",
        ),
        (lambda text: text.replace("7.5", "nan"), "the <bndbox/xmax> of <object> is 'nan', not a number"),
        (
            lambda text: text.replace("7.5", "0"),
            r"the box of a cat is \(1, 2, 0, 6\): its ends are swapped",
        ),
        (
            lambda text: text.replace("<width>8</width>", ""),
            "the <size/width> of <annotation> is '', not a number",
        ),
    ],
)
def test_a_wrong_annotation_is_named(release, change, message):
    path = release / "Annotations" / "000007.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=rf"^{path}:? .*{message}") as caught:
        voc2007.read(release, "trainval")
    assert "\n" not in str(caught.value)


def test_a_missing_annotation_list_or_folder_is_named(release):
    (release / "Annotations" / "000007.xml").unlink()
    with pytest.raises(
        ValueError, match=r"000007\.xml cannot be read \(No such file or directory\): every image needs"
    ):
        voc2007.read(release, "trainval")
    (release / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(LookupError, match=r"Main/val\.txt does not exist"):
        voc2007.read(release, "val")
    (release / "JPEGImages").rename(release / "images")
    with pytest.raises(LookupError, match=r"JPEGImages does not exist\. Layout"):
        voc2007.read(release, "test")


def test_a_protocol_of_single_labels_refuses_voc(release):
    with pytest.raises(ValueError, match="the trainval split of voc2007 has 3 images without labels"):
        features.train_and_test(VOC2007(), Site(data={"voc": release}))


def test_the_digest_sees_another_target_and_a_lost_file(release):
    digest = voc2007.read(release, "trainval").digest
    assert voc2007.read(release, "trainval").digest == digest
    (release / "Annotations" / "000012.xml").write_text(annotation(("bus", 1)))
    images = voc2007.read(release, "trainval")
    assert images.digest != digest
    again = voc2007.read(release, "trainval")
    (release / "JPEGImages" / "000007.jpg").unlink()
    with pytest.raises(
        ValueError,
        match=r"^\S*/000007\.jpg belongs to the data set but cannot be found \(No such file or directory\)",
    ):
        _ = again.digest


def test_the_official_lists_of_voc2007_have_the_published_counts():
    folder = shared("voc/voc2007_official_ImageSets/Main")
    ids = {split: voc.read_ids(folder / f"{split}.txt") for split in voc2007.SPLITS}
    assert {split: len(names) for split, names in ids.items()} == {
        "train": 2501,
        "val": 2510,
        "trainval": 5011,
        "test": 4952,
    }
    assert set(ids["train"]) | set(ids["val"]) == set(ids["trainval"])
    assert not set(ids["trainval"]) & set(ids["test"])


def test_targets_are_those_of_the_official_lists_of_each_class():
    """Real annotations agree with the lists that the release has for each class.

    The lists contain 1, -1, and 0 for classes with only difficult objects.
    """
    sets, root = shared("voc/voc2007_official_ImageSets/Main"), shared("voc/VOCdevkit")
    images = voc2007.read(root, "test")
    names = [Path(images.name(index)).stem for index in range(len(images))]
    official = np.array(
        [
            [
                dict(map(str.split, (sets / f"{each}_test.txt").read_text().splitlines()))[name]
                for each in voc.CLASSES
            ]
            for name in names
        ]
    )
    assert names == ["000001", "000002", "000003", "000004"]
    assert images.targets.tolist() == official.astype(int).tolist()
    assert (images.targets == 1).any()
    assert images.read([0], Whole()).sizes.tolist() == [[500, 353]]
    with pytest.raises(
        ValueError, match=r"trainval\.txt needs a positive image of every class, but has none of aeroplane"
    ):
        voc2007.read(root, "trainval")  # only one image, a chair


def test_real_annotations_of_another_year_are_read_the_same_way(tmp_path):
    """VOC2012's photographs as a VOC2007.

    Parts of persons have their own boxes and names, but they are not objects.
    """
    source = shared("voc/VOCdevkit/VOC2012")
    root = tmp_path / "VOC2007"
    root.mkdir()
    for name in ("JPEGImages", "Annotations", "ImageSets"):
        (root / name).symlink_to(source / name)
    images = voc2007.read(tmp_path, "trainval")
    assert len(images) == 100
    assert (images.targets == 1).any(axis=0).all()
    texts = [
        (source / "Annotations" / f"{Path(images.name(index)).stem}.xml").read_text() for index in range(100)
    ]
    for column, name in enumerate(voc.CLASSES):
        assert [f"<name>{name}</name>" in text for text in texts] == (images.targets[:, column] >= 0).tolist()


# ---- Places205


@pytest.fixture
def places(tmp_path):
    """Write three classes; `val` has one image of each."""
    for name in ("a/abbey/1.jpg", "a/abbey/2.jpg", "c/church/outdoor/1.jpg", "v/valley/9.jpg"):
        picture(tmp_path / "data" / "vision" / "torralba" / "deeplearning" / "images256" / name)
    folder = tmp_path / "trainvalsplit_places205"
    folder.mkdir()
    (folder / "train_places205.csv").write_text(
        "v/valley/9.jpg 2\na/abbey/1.jpg 0\nc/church/outdoor/1.jpg 1\na/abbey/2.jpg 0\n"
    )
    (folder / "val_places205.csv").write_bytes(
        b"a/abbey/2.jpg 0\r\nc/church/outdoor/1.jpg 1 \r\n\r\nv/valley/9.jpg 2"
    )
    return tmp_path


def test_places_are_read_in_the_order_of_the_list(places):
    images = places205.read(places, "train", num_classes=3)
    assert images.labels.tolist() == [2, 0, 1, 0]
    assert images.classes == ("a/abbey", "c/church/outdoor", "v/valley")
    assert images.name(2) == str(
        places / "data/vision/torralba/deeplearning/images256/c/church/outdoor/1.jpg"
    )
    assert originals(images, [3])[1].tolist() == [[6, 8]]
    val = places205.read(places, "val", num_classes=3)
    assert (val.labels.tolist(), val.classes) == ([0, 1, 2], images.classes)


def test_places_images_may_be_in_the_root(places):
    (places / "data" / "vision" / "torralba" / "deeplearning" / "images256").rename(places / "images256")
    images = places205.read(places, "val", num_classes=3)
    assert images.name(0) == str(places / "images256" / "a/abbey/2.jpg")
    assert len(images.digest) == 64


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a/abbey/1.jpg", r"line 5: 'a/abbey/1\.jpg' is not a path and a label"),
        ("a/abbey/1.jpg -1", r"line 5: 'a/abbey/1\.jpg -1' is not a path and a label"),
        ("a/abbey/1.jpg 1 2", r"line 5: .* is not a path and a label"),
        ("abbey 0", r"line 5: 'abbey 0' is not a path and a label"),
        ("0", r"line 5: '0' is not a path and a label"),
        ("a/abbey/1.jpg 3", r"line 5: the label of 'a/abbey/1\.jpg 3' is not in 0 to 2"),
        ("a/abbey/1.jpg 99999999999999999999", r"line 5: the label of .* is not in 0 to 2"),
    ],
)
def test_a_wrong_line_of_places_is_named(places, line, message):
    path = places / "trainvalsplit_places205" / "train_places205.csv"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=rf"train_places205\.csv, {message}"):
        places205.read(places, "train", num_classes=3)


def test_places_without_a_class_a_file_or_a_folder_say_so(places):
    with pytest.raises(
        ValueError, match=r"train_places205\.csv has no image of class 3: it has 3 of the 205 classes"
    ):
        places205.read(places, "train")
    (places / "data/vision/torralba/deeplearning/images256/v/valley/9.jpg").unlink()
    # The existence of two million files is not checked.
    images = places205.read(places, "train", num_classes=3)
    with pytest.raises(ValueError, match=r"^\S*/v/valley/9\.jpg belongs to the data set but cannot be found"):
        _ = images.digest
    (places / "trainvalsplit_places205" / "val_places205.csv").unlink()
    with pytest.raises(LookupError, match=r"val_places205\.csv does not exist\. Layout: .*Get it: http"):
        places205.read(places, "val", num_classes=3)
    (places / "data").rename(places / "images")
    with pytest.raises(LookupError, match=rf"{places} has no folder data/vision/.* or images256\. Layout"):
        Places205().check_root(Site(data={"places205": places}))
    with pytest.raises(LookupError, match=r"no split 'test'.*Known: train, val"):
        places205.read(places, "test")


def test_names_in_flat_arrays_are_the_names():
    names = [b"a", b"", "ä/ö.jpg".encode(), b"\xff\xfe"]
    flat = Names(names)
    assert [flat[index] for index in range(len(flat))] == names
    with pytest.raises(IndexError):
        flat[4]


# ---- iNaturalist 2018


def inat_content():
    images = [
        {"id": 7, "file_name": "train_val2018/Aves/5/b.jpg"},
        {"id": 3, "file_name": "train_val2018/Fungi/9/a.jpg"},
    ]
    images.append({"id": 4, "file_name": "train_val2018/Aves/5/c.jpg"})
    annotations = [
        {"id": image, "image_id": image, "category_id": category}
        for image, category in ((3, 9), (4, 5), (7, 5))
    ]
    categories = [{"id": 9, "name": "Amanita"}, {"id": 5, "name": "Corvus"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def inat_root(root, content):
    (root / "train2018.json").write_text(json.dumps(content))
    return root


def test_inaturalist_joins_images_and_categories_by_their_ids(tmp_path):
    images = inaturalist2018.read(inat_root(tmp_path, inat_content()), "train", num_classes=2)
    assert images.labels.tolist() == [0, 1, 0]
    assert images.classes == ("Corvus", "Amanita")
    expected = ["train_val2018/Aves/5/b.jpg", "train_val2018/Fungi/9/a.jpg", "train_val2018/Aves/5/c.jpg"]
    assert [images.name(index) for index in range(3)] == [str(tmp_path / name) for name in expected]
    with pytest.raises(ValueError, match=r"Aves/5/b\.jpg belongs to the data set but cannot be found"):
        _ = images.digest


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (
            "annotations",
            lambda rows: rows[:-1],
            r"1 of 3 images lack an annotation; the first is train_val2018/Aves/5/b\.jpg",
        ),
        (
            "annotations",
            lambda rows: [*rows, rows[0]],
            r"the image train_val2018/Fungi/9/a\.jpg has two annotations",
        ),
        (
            "annotations",
            lambda rows: [{**rows[0], "image_id": 8}],
            "annotation number 1 refers to image 8, not one of the 3 in the file",
        ),
        (
            "annotations",
            lambda rows: [{**rows[0], "category_id": 6}],
            r"Fungi/9/a\.jpg refers to category 6, not one of the 2 in the file",
        ),
        (
            "annotations",
            lambda rows: [{"id": 1}],
            "annotation number 1 has no image_id",
        ),
        ("images", lambda rows: [*rows, rows[0]], "more than one image has the id 7"),
        ("images", lambda rows: [], "it has no images"),
        ("images", lambda rows: None, "its table of images is None, not a list"),
        ("categories", lambda rows: rows[1:], "it has 1 categories, not 2"),
        ("categories", lambda rows: [rows[0], rows[0]], "more than one category has the id 9"),
        (
            "categories",
            lambda rows: [*rows, {"id": 1, "name": "Ursus"}],
            r"1 of 3 categories lack images; the first is 1 \(Ursus\)",
        ),
    ],
)
def test_a_wrong_table_of_inaturalist_is_named(tmp_path, table, change, message):
    content = inat_content()
    content[table] = change(content[table])
    num_classes = 3 if "Ursus" in message else 2
    with pytest.raises(ValueError, match=rf"train2018\.json:? .*{message}.*Get it: https"):
        inaturalist2018.read(inat_root(tmp_path, content), "train", num_classes=num_classes)


def test_a_broken_or_missing_file_of_inaturalist_is_named(tmp_path):
    for content in (b'{"images": [', b"[]", b"\xff\xfe\x00"):
        (tmp_path / "train2018.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"train2018\.json: it is .*Get it: https"):
            inaturalist2018.read(tmp_path, "train")
    with pytest.raises(LookupError, match=r"val2018\.json does not exist\. Layout"):
        INaturalist2018().load("val", Site(data={"inaturalist2018": tmp_path}))


# ---- lists of labelled images


def split_of(names, classes):
    """Return a split of files that are never opened, each `class/...`."""
    names, labels = sorted(names), {name.encode(): label for label, name in enumerate(classes)}
    return Files(Path("/nowhere"), names, [labels[name.split(b"/")[0]] for name in names], classes)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """SimCLR's two lists."""
    folder = tmp_path_factory.mktemp("lists")
    (folder / "1percent.txt").write_bytes(shared("lists/1percent.txt").read_bytes())
    (folder / "10percent.txt").write_bytes(gzip.decompress(shared("lists/10percent.txt.gz").read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("name", "count"), [("1percent", 12_811), pytest.param("10percent", 128_116, marks=pytest.mark.slow)]
)
def test_the_lists_of_imagenet_have_the_published_counts(official, tmp_path, name, count):
    path = lists.of_imagenet(name, Site(runs=tmp_path, data={"imagenet_subsets": official}))
    lines = path.read_bytes().split()
    classes = sorted({line.split(b"_")[0].decode() for line in lines})
    names = [line.split(b"_")[0] + b"/" + line for line in lines]
    others = [f"{each}/{each}_x.JPEG".encode() for each in classes]
    images = split_of(names + others, classes)
    chosen = lists.indices(images, path)
    assert (len(classes), len(chosen)) == (1000, count)
    assert (np.diff(chosen) > 0).all()
    assert {images.names[index] for index in chosen.tolist()} == set(names)
    with pytest.raises(
        ValueError,
        match=rf"names {lines[1].decode()}, but the train split does not contain it: 2 of its {count} "
        rf"images are missing",
    ):
        lists.indices(split_of(names[:1] + names[3:] + others, classes), path)
    assert not list(tmp_path.iterdir())  # nothing was fetched


def test_imagenet_needs_every_image_of_its_list(official, tmp_path):
    classes = sorted({line.split("_")[0] for line in (official / "1percent.txt").read_text().split()})
    picture(tmp_path / "x.ppm")
    for split in ("train", "val"):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            os.link(tmp_path / "x.ppm", tmp_path / split / name / f"{name}_0.ppm")
    site = Site(runs=tmp_path / "runs", data={"imagenet": tmp_path, "imagenet_subsets": official})
    ImageNet().check_subset("1percent", site)
    with pytest.raises(
        ValueError,
        match=r"1percent\.txt names n04235860_14959\.JPEG, .*: 12811 of its 12811 images are missing",
    ):
        ImageNet().labelled_subset("1percent", site)


def test_imagenette_takes_what_its_train_split_has_and_nothing_of_val(official, tmp_path):
    """The Imagenette has three listed images of each class, in another format.

    Two of them are in train and one is in val. Train also has an image that the list lacks.
    """
    listed = (official / "1percent.txt").read_text().split()
    classes = sorted({name.split("_")[0] for name in listed})[:10]
    expected = []
    for name in classes:
        first, second, third, *_ = (Path(line).stem for line in listed if line.startswith(name))
        expected += [first, second]
        for split, stems in (("train", [first, second, f"{name}_x"]), ("val", [third])):
            for stem in stems:
                picture(tmp_path / split / name / f"{stem}.png")
    dataset, site = (
        Imagenette(),
        Site(runs=tmp_path / "runs", data={"imagenette": tmp_path, "imagenet_subsets": official}),
    )
    chosen, train = dataset.labelled_subset("1percent", site), dataset.load("train", site)
    assert chosen.dtype == np.int64
    assert sorted(Path(train.name(index)).stem for index in chosen) == sorted(expected)
    for path in (tmp_path / "train" / classes[3]).glob("*_[0-9]*.png"):
        path.unlink()
    with pytest.raises(
        ValueError, match=rf"names no image of the train split in 1 of its 10 classes, such as '{classes[3]}'"
    ):
        dataset.labelled_subset("1percent", site)


@pytest.mark.slow
def test_the_lists_cut_to_the_real_imagenette(official):
    with tarfile.open(shared("imagenette96.tar.gz")) as archive:
        names = [member.name for member in archive if member.isfile()]
    train = [name.partition("/train/")[2].encode() for name in names if "/train/" in name]
    images = split_of(train, sorted({name.split(b"/")[0].decode() for name in train}))
    everywhere = {Path(name).name for name in names}
    assert len(images) == 9469
    for name, count in (("1percent", 93), ("10percent", 909)):
        listed = set((official / f"{name}.txt").read_text().split())
        chosen = lists.indices_there(images, official / f"{name}.txt")
        # The release moved some of ImageNet's train images to val.
        assert len(chosen) == count < len(listed & everywhere)
        assert {Path(images.name(index)).name for index in chosen.tolist()} <= listed
        assert set(images.labels[chosen].tolist()) == set(range(10))


def test_a_list_that_is_not_the_published_one_is_refused(tmp_path):
    site = Site(runs=tmp_path / "runs", data={"imagenet_subsets": tmp_path})
    with pytest.raises(
        LookupError,
        match=r"1percent\.txt does not exist\. Get it: https://.*1percent\.txt \(SHA-256 71e82a48",
    ):
        ImageNet().check_subset("1percent", site)
    (tmp_path / "1percent.txt").write_text("n01440764_1.JPEG\n")
    with pytest.raises(ValueError, match=r"1percent\.txt has SHA-256 .*but 71e82a48.* is expected"):
        Imagenette().labelled_subset("1percent", site)
    with pytest.raises(
        LookupError, match=r"no list of labelled images '5percent'.*Known: 1percent, 10percent"
    ):
        ImageNet().check_subset("5percent", site)
    with pytest.raises(LookupError, match=r"'imagenet_subsets' is .*nowhere, which is not a folder"):
        ImageNet().check_subset("1percent", Site(data={"imagenet_subsets": tmp_path / "nowhere"}))


@pytest.mark.parametrize(
    "dataset", [ImageNet100(), VOC2007(), SyntheticPlaces205()], ids=lambda dataset: dataset.name
)
def test_a_data_set_without_lists_says_which_have_them(dataset, tmp_path):
    for ask in (dataset.check_subset, dataset.labelled_subset):
        with pytest.raises(
            LookupError,
            match=r"has no list of labelled images '1percent'; ImageNet, Imagenette and the synthetic "
            r"folder do",
        ):
            ask("1percent", Site(runs=tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not name any images"),
        (b"n01_1.JPEG\nn02\n", r"line 2: 'n02' is not the name of an image"),
        (b"noclass.JPEG\n", r"line 1: 'noclass\.JPEG' is not the name of an image"),
        (b"n01_1.JPEG\n\xff\n", "line 2: '\ufffd' is not the name of an image"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"list\.txt,? {message}"):
        lists.read(tmp_path / "list.txt")


def test_a_line_is_a_file_name_that_begins_with_its_class_or_a_path(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"n01_1.JPEG\r\n\r\nsquare_dots/00012.ppm\n")
    assert lists.read(tmp_path / "list.txt") == {
        b"n01/n01_1": b"n01_1.JPEG",
        b"square_dots/00012": b"square_dots/00012.ppm",
    }


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with web_server("list.txt", b"n01_1.JPEG\n") as state:
        yield state


def test_a_list_is_fetched_once_by_whoever_comes_first(server, tmp_path):
    path, sha256 = tmp_path / "runs" / "lists" / "list.txt", hashlib.sha256(server["content"]).hexdigest()
    threads = [threading.Thread(target=lists.fetched, args=(server["url"], path, sha256)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread_joined(thread)
    assert path.read_bytes() == b"n01_1.JPEG\n"
    assert server["asked"] == ["/list.txt"]
    assert lists.fetched(server["url"], path, sha256) == path
    assert server["asked"] == ["/list.txt"]


def test_what_a_server_sends_is_checked_before_it_counts(server, tmp_path):
    path = tmp_path / "list.txt"
    sha256, server["content"] = hashlib.sha256(server["content"]).hexdigest(), b"<html>Please log in</html>"
    with pytest.raises(ValueError, match=rf"has SHA-256 .*but {sha256} is expected\. It is another list"):
        lists.fetched(server["url"], path, sha256)
    assert not path.exists()
    server["content"] = b"n01_1.JPEG\n"
    assert lists.fetched(server["url"], path, sha256).read_bytes() == b"n01_1.JPEG\n"


def test_without_a_network_the_error_says_how_to_get_the_list(server, tmp_path):
    server["content"] = b""
    refused = "http://127.0.0.1:1/list.txt"
    for url, why in ((server["url"], "HTTP Error 404"), (refused, "Connection refused")):
        with pytest.raises(
            LookupError,
            match=rf"{url} cannot be fetched \(.*{why}.*SHA-256 abc .*`imagenet_subsets = .* under \[data\]",
        ):
            lists.fetched(url, tmp_path / "list.txt", "abc")
    assert not (tmp_path / "list.txt").exists()


def test_a_list_that_was_fetched_before_needs_no_network(official, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "1percent.txt").write_bytes((official / "1percent.txt").read_bytes())
    assert lists.of_imagenet("1percent", Site(runs=tmp_path)) == tmp_path / "lists" / "1percent.txt"


def test_the_synthetic_folder_lists_one_and_ten_per_cent_of_each_class(tmp_path):
    dataset, site = SyntheticFolder(num_train=290, num_val=20), Site(runs=tmp_path)
    train = dataset.load("train", site)
    one, ten = (dataset.labelled_subset(name, site) for name in ("1percent", "10percent"))
    assert np.bincount(train.labels[one]).tolist() == [1] * 10
    assert np.bincount(train.labels[ten]).tolist() == [3] * 10  # of 29
    assert set(one) < set(ten)
    assert imagefolder.read(dataset.folder(site) / "train").digest == train.digest
    assert {path.name for path in dataset.folder(site).iterdir()} == {"train", "val"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.txt")}
    assert len(before) == 2
    assert dataset.labelled_subset("1percent", site).tolist() == one.tolist()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.txt")} == before
    with pytest.raises(LookupError, match="no list of labelled images '2percent'"):
        dataset.check_subset("2percent", site)


def test_what_can_be_fetched_is_found_by_file():
    assert available() == ["imagenette", "stl10", "voc0712", "voc2007"]


def test_a_montage_of_too_few_images_is_refused():
    with pytest.raises(
        ValueError, match=r"needs num_trainval and num_test >= 20, .* but they are 19 and 400"
    ):
        SyntheticVOC2007(num_trainval=19)
