"""Data sets from files: they are read exactly, and an error names the faulty file."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from skips import shared
from toys import centre_crops, originals

from reproduce.data import imagefolder, stl10
from reproduce.data.imagenet import ImageNet
from reproduce.data.imagenet100 import ImageNet100, read_classes
from reproduce.data.imagenette import Imagenette
from reproduce.data.images import CentreCrop, Files, Whole, batches, planes
from reproduce.data.shared_memory import PIECE
from reproduce.data.stl10 import STL10
from reproduce.site import Site


def photograph(seed, height, width):
    """Return an image that is smooth enough for JPEG to preserve, (height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def folder_of(root, classes=("n01", "n02"), splits=("train", "val"), per_class=3):
    """An ImageFolder of lossless images of several sizes."""
    for split in splits:
        for label, name in enumerate(classes):
            for index in range(per_class):
                save(
                    root / split / name / f"{name}_{index}.png",
                    photograph(100 * label + index, 20 + index % 5, 30 - 2 * (index % 5)),
                )
    return root


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "images")


# ---- files in class folders


def test_images_are_sorted_by_class_and_name_whatever_the_order_on_disk(tmp_path):
    for name in ("b/2.png", "a/10.png", "b/1.JPEG", "a/9.png", "a/B.Jpg"):
        save(tmp_path / name, photograph(0, 8, 8), format="PNG")
    images = imagefolder.read(tmp_path)
    expected = ["a/10.png", "a/9.png", "a/B.Jpg", "b/1.JPEG", "b/2.png"]
    assert [images.name(index) for index in range(5)] == [str(tmp_path / name) for name in expected]
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.labels.dtype == np.int64
    assert images.classes == ("a", "b")
    assert len(images) == 5


def test_names_need_not_be_ascii(tmp_path):
    save(tmp_path / "Äpfel" / "größe 1.png", photograph(0, 8, 8))
    images = imagefolder.read(tmp_path)
    assert images.name(0) == str(tmp_path / "Äpfel" / "größe 1.png")
    assert originals(images, [0])[0].shape == (1, 3, 8, 8)


def test_images_are_read_whole_at_their_own_sizes_one_after_the_other(tmp_path):
    pictures = [photograph(1, 24, 24), photograph(2, 10, 40), photograph(3, 1, 7)]
    for index, pixels in enumerate(pictures):
        save(tmp_path / "a" / f"{index}.png", pixels)
    images = imagefolder.read(tmp_path)
    batch = images.read([2, 0, 1], Whole())
    assert batch.pixels.dtype == torch.uint8
    assert batch.sizes.tolist() == [[1, 7], [24, 24], [10, 40]]
    expected = np.concatenate([pictures[index].transpose(2, 0, 1).ravel() for index in (2, 0, 1)])
    assert np.array_equal(batch.pixels, expected)
    for plane, index in zip(planes(batch), (2, 0, 1), strict=True):
        assert np.array_equal(plane.permute(1, 2, 0), pictures[index])


def test_images_of_one_size_are_one_tensor_in_every_batch(tmp_path):
    for index in range(2):
        save(tmp_path / "a" / f"{index}.png", photograph(index, 12, 17))
    pixels, sizes = originals(imagefolder.read(tmp_path), [1, 0])
    assert pixels.shape == (2, 3, 12, 17)
    assert np.array_equal(pixels[1].permute(1, 2, 0), photograph(0, 12, 17))
    assert sizes.tolist() == [[12, 17]] * 2


def test_a_large_jpeg_is_decoded_at_its_full_size(tmp_path):
    save(tmp_path / "a" / "x.jpg", photograph(2, 1000, 1300), quality=95)
    pixels, _ = originals(imagefolder.read(tmp_path), [0])
    with Image.open(tmp_path / "a" / "x.jpg") as image:
        assert np.array_equal(pixels[0].permute(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(70, 70), (71, 90), (133, 100), (50, 41)])
def test_a_centre_crop_is_that_of_torchvision(tmp_path, height, width, resampling):
    from torchvision import transforms

    pixels = photograph(3, height, width)
    save(tmp_path / "a" / "x.png", pixels)
    wanted = transforms.Compose(
        [transforms.Resize(70, transforms.InterpolationMode(resampling)), transforms.CenterCrop(64)]
    )
    crop = centre_crops(imagefolder.read(tmp_path), [0], 70, 64, resampling)
    assert np.array_equal(crop[0].permute(1, 2, 0), np.asarray(wanted(Image.fromarray(pixels))))


def test_a_squashed_image_is_two_resizes_of_torchvision(tmp_path):
    from torchvision import transforms

    pixels = photograph(3, 133, 100)
    save(tmp_path / "a" / "x.png", pixels)
    wanted = transforms.Compose([transforms.Resize(70), transforms.Resize((64, 64))])
    squashed = imagefolder.read(tmp_path).read([0], CentreCrop(70, 64, "bilinear", squash=True)).pixels
    assert np.array_equal(squashed[0].permute(1, 2, 0), np.asarray(wanted(Image.fromarray(pixels))))


def test_a_centre_crop_of_the_images_own_size_is_the_image(tmp_path):
    pixels = photograph(4, 32, 32)
    save(tmp_path / "a" / "x.png", pixels)
    assert np.array_equal(centre_crops(imagefolder.read(tmp_path), [0], 32, 32)[0].permute(1, 2, 0), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_images_of_other_modes_are_converted_to_rgb(tmp_path, mode):
    image = Image.fromarray(photograph(5, 16, 16)).convert(mode)
    path = tmp_path / "a" / ("x.tiff" if mode == "CMYK" else "x.png")
    path.parent.mkdir()
    image.save(path)
    canvas, _ = originals(imagefolder.read(tmp_path), [0])
    assert np.array_equal(canvas[0].permute(1, 2, 0), np.asarray(image.convert("RGB")))
    if mode == "L":
        assert np.array_equal(canvas[0, 0], canvas[0, 2])


def test_sixteen_bits_are_refused_since_a_conversion_would_cut_them(tmp_path):
    save(tmp_path / "a" / "x.png", np.full((8, 8), 40000, np.uint16))
    with pytest.raises(
        ValueError, match=r"a/x\.png cannot be decoded: its pixels are I;16B?, more than 8 bits"
    ):
        originals(imagefolder.read(tmp_path), [0])


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_an_error_that_names_it_from_every_process(folder, ending, keep, workers):
    before = psutil.Process().children()
    path = folder / "train" / "n02" / f"n02_9.{ending}"
    save(path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    images = imagefolder.read(folder / "train")
    stream = batches(images, np.arange(len(images)), 3, workers=workers)
    assert next(stream).indices.tolist() == [0, 1, 2]
    next(stream)
    with pytest.raises(ValueError, match=rf"^{path} cannot be decoded: .*\. Get it again\.$"):
        next(stream)
    assert set(psutil.Process().children()) <= set(before)


def test_a_file_that_vanished_after_the_scan_is_named(folder):
    images = imagefolder.read(folder / "train")
    (folder / "train" / "n01" / "n01_1.png").unlink()
    with pytest.raises(ValueError, match=r"n01_1\.png cannot be decoded"):
        centre_crops(images, [0, 1], 16, 16)


def test_an_index_outside_of_the_split_is_an_error(folder):
    images = imagefolder.read(folder / "train")
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"Image {index} does not exist: the split has 6"):
            originals(images, [0, index])


def test_an_empty_class_is_an_error(folder):
    (folder / "train" / "n03").mkdir()
    (folder / "train" / "n03" / ".DS_Store").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train/n03 is empty"):
        imagefolder.read(folder / "train")


@pytest.mark.parametrize(("has", "lacks"), [("train", "val"), ("val", "train")])
def test_a_class_of_one_split_alone_is_an_error(folder, has, lacks):
    save(folder / has / "n03" / "x.png", photograph(0, 8, 8))
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=rf"{has}/n03 is missing in .*/{lacks} "):
            imagefolder.load(folder, split)


def test_what_is_not_an_image_is_an_error_and_no_silent_skip(folder):
    (folder / "train" / "n01" / "n01_7.png.part").write_bytes(b"half a download")
    with pytest.raises(ValueError, match=r"n01_7\.png\.part is not an image"):
        imagefolder.read(folder / "train")


def test_images_that_are_not_sorted_into_classes_are_an_error(tmp_path):
    save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", photograph(0, 8, 8))
    with pytest.raises(ValueError, match=r"ILSVRC2012_val_00000001\.JPEG is not in a class folder"):
        imagefolder.read(tmp_path / "val")


def test_no_images_no_folder_and_no_such_split_are_told_apart(folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no class folders with images"):
        imagefolder.read(folder / "empty")
    with pytest.raises(LookupError, match="does not exist"):
        imagefolder.read(folder / "nowhere")
    with pytest.raises(LookupError, match=r"no split 'test'.*Known: train, val"):
        imagefolder.load(folder, "test")


def test_the_digest_sees_a_lost_a_cut_and_a_renamed_file_and_not_the_place(tmp_path):
    first, second = folder_of(tmp_path / "a"), folder_of(tmp_path / "b")
    digest = imagefolder.read(first / "train").digest
    assert imagefolder.read(second / "train").digest == digest
    assert imagefolder.read(first / "train", ["n01"]).digest != digest
    path = second / "train" / "n02" / "n02_2.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert imagefolder.read(second / "train").digest != digest
    path.write_bytes(content)
    assert imagefolder.read(second / "train").digest == digest
    path.rename(path.with_name("n02_3.png"))
    assert imagefolder.read(second / "train").digest != digest


def test_the_digest_sees_the_names_the_labels_and_the_targets_of_files_of_one_size(tmp_path):
    for name in ("a", "ab", "b", "bb"):
        (tmp_path / name).write_text("1")

    def digest(names=(b"ab", b"b"), labels=(0, 1), targets=None):
        targets = None if targets is None else np.array(targets, np.int8)
        return Files(tmp_path, names, labels, ("cat", "dog"), targets=targets).digest

    assert digest() == digest()
    others = [
        digest(names=(b"a", b"bb")),
        digest(labels=(1, 0)),
        digest(targets=((1, 0), (0, 1))),
        digest(targets=((1, 0), (1, 1))),
    ]
    assert len({digest(), *others}) == 5


# ---- batches


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(x, y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("shape", [{}, {"crop": CentreCrop(18, 16)}])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_batches_are_the_same_bytes_whatever_the_workers_and_the_memory(tmp_path, shape, cache_gb):
    root = folder_of(tmp_path, per_class=40)
    order = np.random.default_rng(0).permutation(80)[:75]
    plain = imagefolder.read(root / "train")
    expected = [
        plain.read(order[begin : begin + 70], CentreCrop(18, 16) if shape else Whole()) for begin in (0, 70)
    ]
    for workers in (0, 2):
        images = imagefolder.read(root / "train", cache_gb=cache_gb)
        for _ in range(2):  # with a cache, the second epoch comes from it
            assert same(list(batches(images, order, 70, workers=workers, **shape)), expected)
    assert [len(batch.sizes) for batch in expected] == [70, 5]
    assert len(expected[0].sizes) > PIECE
    assert expected[0].indices.tolist() == order[:70].tolist()


def num_bytes(folder):
    """Return the size of all decoded images of a folder."""
    return sum(Image.open(path).width * Image.open(path).height * 3 for path in folder.rglob("*.png"))


def test_a_split_that_fits_is_decoded_once_and_only_where_asked(folder):
    images = imagefolder.read(folder / "train", cache_gb=num_bytes(folder / "train") / 1e9)
    before = images.read([4, 1, 3], Whole())
    shutil.rmtree(folder)
    after = images.read([3, 1], Whole())
    assert after.sizes.tolist() == before.sizes[[2, 1]].tolist()
    assert all(torch.equal(planes(after)[row], planes(before)[2 - row]) for row in range(2))
    assert same(list(batches(images, [4, 1], 2, workers=2)), [images.read([4, 1], Whole())])
    with pytest.raises(ValueError, match="cannot be decoded"):
        originals(images, [0])
    with pytest.raises(ValueError, match="cannot be decoded"):
        centre_crops(images, [1], 16, 16)  # another shape, which does not fit in the cache


def test_workers_decode_only_what_is_not_in_memory(folder):
    images = imagefolder.read(folder / "train", cache_gb=1)
    expected = imagefolder.read(folder / "train").read(np.arange(6), Whole())
    originals(images, [0, 2, 3])
    for name in ("n01/n01_0.png", "n01/n01_2.png", "n02/n02_0.png"):
        (folder / "train" / name).unlink()
    assert same(list(batches(images, np.arange(6), 6, workers=1)), [expected])


def test_a_split_that_does_not_fit_is_decoded_each_time(folder):
    images = imagefolder.read(folder / "train", cache_gb=(num_bytes(folder / "train") - 1) / 1e9)
    originals(images, [0])
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="cannot be decoded"):
        originals(images, [0])


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_has_its_limit_where_sampled_images_are_smaller_than_others(tmp_path, workers):
    # 64 images of 300 bytes are sampled, so 65 of them seem to fit. The 65th takes 4 800 bytes.
    sampled = np.linspace(0, 64, 64).astype(int).tolist()
    (large,) = set(range(65)) - set(sampled)
    for index in range(65):
        side = 40 if index == large else 10
        save(tmp_path / "a" / f"{index:02}.png", photograph(index, side, side))
    images = imagefolder.read(tmp_path, cache_gb=65 * 300 / 1e9)
    order = np.array([large, *sampled])
    expected = imagefolder.read(tmp_path).read(order, Whole())
    for _ in range(2):
        assert same(list(batches(images, order, 65, workers=workers)), [expected])
        assert images.missing(order, Whole()).tolist() == order[-15:].tolist()


def test_what_is_handed_out_does_not_change_the_memory(folder):
    images = imagefolder.read(folder / "train", cache_gb=1)
    canvas, _ = originals(images, [0])
    kept = canvas.clone()
    canvas.zero_()
    assert torch.equal(originals(images, [0])[0], kept)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_stops_early_leaves_nothing_running(folder, workers):
    before = psutil.Process().children()
    images = imagefolder.read(folder / "train")
    stream = batches(images, np.arange(6), 1, workers=workers)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert set(psutil.Process().children()) <= set(before)


def test_the_copy_for_a_worker_holds_no_pixels(folder, stl):
    images = imagefolder.read(folder / "train", cache_gb=1)
    canvas, _ = originals(images, np.arange(6))
    copy = pickle.dumps(images)
    assert len(copy) < 3000 < canvas.numel()
    assert torch.equal(originals(pickle.loads(copy), np.arange(6))[0], canvas)
    binary = stl10.read(stl, "test")
    originals(binary, [0])
    copy = pickle.dumps(binary)
    assert len(copy) < 3000
    assert torch.equal(originals(pickle.loads(copy), [3])[0], originals(binary, [3])[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_no_global_random_numbers(folder, workers):
    before = torch.get_rng_state()
    list(batches(imagefolder.read(folder / "train"), np.arange(6), 6, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"batch_size": 0}])
def test_impossible_batches_are_refused_at_the_call(folder, wrong):
    with pytest.raises(ValueError, match="Batches"):
        batches(imagefolder.read(folder / "train"), [0], **{"batch_size": 1, **wrong})


def test_a_crop_that_is_larger_than_the_resized_image_is_refused():
    with pytest.raises(ValueError, match="centre crop needs size <= resize"):
        CentreCrop(8, 9)


# ---- STL-10


def stl_pixels(split, count):
    return np.stack([photograph(1000 * len(split) + index, 96, 96) for index in range(count)])


def stl_files(root, place="stl10_binary"):
    """Write the binary release.

    An image is its red, green and blue plane, each column by column. Labels are 1 to 10.
    """
    folder = root / place
    folder.mkdir(parents=True)
    for split, count in (("train", 20), ("test", 10), ("unlabeled", 3)):
        with (folder / f"{split}_X.bin").open("wb") as file:
            for image in stl_pixels(split, count):
                for channel in range(3):
                    for column in range(96):
                        file.write(bytes(image[:, column, channel]))
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes(1 + index % 10 for index in range(count)))
    (folder / "class_names.txt").write_text(
        "airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n"
    )
    return root


@pytest.fixture(scope="module")
def stl_template(tmp_path_factory):
    return stl_files(tmp_path_factory.mktemp("stl"))


@pytest.fixture
def stl(stl_template, tmp_path):
    return Path(shutil.copytree(stl_template, tmp_path / "stl"))


def test_stl10_images_stand_upright(stl):
    images = stl10.read(stl, "train")
    canvas, sizes = originals(images, [7, 0])
    assert np.array_equal(canvas.permute(0, 2, 3, 1), stl_pixels("train", 20)[[7, 0]])
    assert sizes.tolist() == [[96, 96], [96, 96]]
    assert images.labels.tolist() == [index % 10 for index in range(20)]
    assert images.classes[9] == "truck"


def test_stl10_is_what_torchvision_reads(stl, monkeypatch):
    from torchvision import datasets

    # The checksums are those of the real release.
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    for split in ("train", "test", "unlabeled", "train+unlabeled"):
        ours, theirs = stl10.read(stl, split), datasets.STL10(stl, split)
        assert ours.labels.tolist() == np.asarray(theirs.labels).astype(np.int8).tolist()
        assert np.array_equal(originals(ours, np.arange(len(ours)))[0], theirs.data)


def test_unlabelled_stl10_images_come_last_with_label_minus_one(stl):
    images = stl10.read(stl, "train+unlabeled")
    assert images.labels.tolist() == [index % 10 for index in range(20)] + [-1] * 3
    canvas, _ = originals(images, [22, 3])
    assert np.array_equal(canvas[0].permute(1, 2, 0), stl_pixels("unlabeled", 3)[2])
    assert np.array_equal(canvas[1].permute(1, 2, 0), stl_pixels("train", 20)[3])
    assert images.name(22).endswith("unlabeled_X.bin, image 2")
    assert stl10.read(stl, "unlabeled").labels.tolist() == [-1] * 3


def test_stl10_images_and_crops_are_those_of_the_same_image_in_a_file(stl, tmp_path):
    save(tmp_path / "a" / "x.png", stl_pixels("test", 10)[4])
    binary, file = stl10.read(stl, "test"), imagefolder.read(tmp_path, ["a"])
    assert torch.equal(centre_crops(binary, [4], 70, 64), centre_crops(file, [0], 70, 64))
    assert torch.equal(originals(binary, [4])[0], originals(file, [0])[0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shape", [{}, {"crop": CentreCrop(70, 64)}])
def test_stl10_batches_are_in_order(stl, shape, workers):
    order = [5, 22, 0, 13, 21]
    images = stl10.read(stl, "train+unlabeled")
    got = torch.cat([batch.pixels for batch in batches(images, order, 2, workers=workers, **shape)])
    assert torch.equal(got, centre_crops(images, order, 70, 64) if shape else originals(images, order)[0])


def test_the_folder_itself_and_a_missing_list_of_names_will_do(tmp_path):
    stl_files(tmp_path, place="here")
    (tmp_path / "here" / "class_names.txt").unlink()
    assert stl10.read(tmp_path / "here", "test").classes == stl10.CLASSES


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "train_X.bin",
            lambda content: content[:-1],
            r"train_X\.bin has 552959 bytes, not a multiple of 27648",
        ),
        (
            "train_X.bin",
            lambda content: content[:-27648],
            r"train_y\.bin has 20 labels for the 19 images of train_X\.bin",
        ),
        ("train_X.bin", lambda content: b"", r"train_X\.bin has 0 bytes"),
        ("train_y.bin", lambda content: content[:-1], r"train_y\.bin has 19 labels for the 20 images"),
        (
            "train_y.bin",
            lambda content: b"\0" + content[1:],
            r"train_y\.bin has the label 0 for image 0; labels are 1 to 10",
        ),
        (
            "train_y.bin",
            lambda content: content[:-1] + b"\x0b",
            r"train_y\.bin has the label 11 for image 19",
        ),
        (
            "train_y.bin",
            lambda content: content.replace(b"\4", b"\5"),
            r"train_y\.bin has no label 4: the class 'cat' has no images",
        ),
        ("unlabeled_X.bin", lambda content: content[:1000], r"unlabeled_X\.bin has 1000 bytes"),
    ],
)
def test_a_damaged_stl10_file_is_named(stl, file, change, message):
    path = stl / "stl10_binary" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        stl10.read(stl, "train+unlabeled")


def test_a_missing_stl10_file_and_split_say_what_would_work(stl):
    (stl / "stl10_binary" / "test_y.bin").unlink()
    with pytest.raises(LookupError, match=r"test_y\.bin does not exist\. .*invoke download --dataset stl10"):
        stl10.read(stl, "test")
    with pytest.raises(LookupError, match=r"no split 'val'.*Known: train, test, unlabeled"):
        stl10.read(stl, "val")


def test_the_stl10_digest_sees_files_and_labels(stl):
    digest = stl10.read(stl, "train").digest
    assert digest == stl10.read(stl, "train").digest
    assert digest != stl10.read(stl, "train+unlabeled").digest
    path = stl / "stl10_binary" / "train_y.bin"
    path.write_bytes(path.read_bytes()[::-1])
    assert stl10.read(stl, "train").digest != digest


# ---- data sets in the site's roots


@pytest.mark.parametrize(
    "dataset", [ImageNet(), ImageNet100(), Imagenette(), STL10()], ids=lambda dataset: dataset.name
)
def test_a_missing_root_says_key_layout_and_source(dataset, tmp_path):
    key = "imagenet" if dataset.name == "imagenet100" else dataset.name
    with pytest.raises(LookupError, match=rf"'{key}' is not set.*\[data\].*Layout: .*train.* Get it: .*http"):
        dataset.load("train", Site())
    with pytest.raises(LookupError, match=f"'{key}' is {tmp_path / 'no'}, which is not a folder"):
        dataset.load("train", Site(data={key: tmp_path / "no"}))


@pytest.mark.parametrize(
    ("dataset", "size", "resize", "resampling", "mean", "std"),
    [
        (STL10(), 64, 70, "bicubic", (0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
        (ImageNet100(), 224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (ImageNet(), 224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (Imagenette(), 64, 70, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_test_images_and_normalisation_are_those_of_the_sources(dataset, size, resize, resampling, mean, std):
    assert (dataset.size, dataset.resize, dataset.test_resampling) == (size, resize, resampling)
    assert (dataset.mean, dataset.std) == (mean, std)
    assert dataset.canvas >= dataset.size


def test_settings_are_made_without_numpy_and_torch():
    names = "imagenet imagenet100 imagenette stl10"
    code = f"import sys; from reproduce.data import {names.replace(' ', ', ')}; "
    code += "print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture
def whole_stl(tmp_path):
    """Write black images and labels of the release's sizes; the files of images take no space on the disk."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for part, count in STL10.published.items():
        with (folder / f"{part}_X.bin").open("wb") as file:
            file.truncate(count * 3 * 96 * 96)
        if part != "unlabeled":
            (folder / f"{part}_y.bin").write_bytes(bytes(range(1, 11)) * (count // 10))
    return tmp_path


def test_stl10_loads_by_its_root(whole_stl):
    site, dataset = Site(data={"stl10": whole_stl}), STL10()
    dataset.check_root(site)
    sizes = [
        len(dataset.load(split, site))
        for split in (dataset.pretrain_split, dataset.train_split, dataset.test_split)
    ]
    assert sizes == [105_000, 5_000, 8_000]


def cut(path, num_images):
    """Cut a file at the boundary of an image."""
    with path.open("r+b") as file:
        file.truncate(num_images * 3 * 96 * 96)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "unlabeled_X.bin",
            lambda path: cut(path, 99_999),
            r"unlabeled_X\.bin has 99999 images, but STL-10's has 100000: it is truncated",
        ),
        (
            "train_X.bin",
            lambda path: cut(path, 4_000),
            r"train_X\.bin has 4000 images, but STL-10's has 5000",
        ),
        (
            "test_X.bin",
            lambda path: cut(path, 13_000),
            r"test_X\.bin has 13000 images, but STL-10's has 8000: it belongs to something else",
        ),
        (
            "test_y.bin",
            lambda path: path.write_bytes(path.read_bytes()[:-10]),
            r"test_y\.bin has 7990 labels for the 8000 images",
        ),
        (
            "train_y.bin",
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
            r"train_y\.bin has 501 images of the class 'airplane', but STL-10's has 500 of each",
        ),
        (
            "class_names.txt",
            lambda path: path.write_text("bird\ncat\nbird\n"),
            r"class_names\.txt has 2 different names in 3, not one for each of the 10 classes",
        ),
    ],
)
def test_an_stl10_file_of_another_size_is_refused_before_anything_starts(whole_stl, file, change, message):
    change(whole_stl / "stl10_binary" / file)
    site = Site(data={"stl10": whole_stl})
    with pytest.raises(ValueError, match=rf"{message}.*invoke download --dataset stl10"):
        STL10().check_root(site)
    split = "test" if file.startswith("test") else "train+unlabeled"
    with pytest.raises(ValueError, match=message):
        STL10().load(split, site)


def fake_imagenet(root, classes):
    """Create class folders that link to one and the same image."""
    save(root / "x.png", photograph(0, 8, 8))
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            os.link(root / "x.png", root / split / name / f"{name}_1.png")
    return root


def test_imagenet_loads_by_its_root(tmp_path):
    site = Site(data={"imagenet": fake_imagenet(tmp_path, [f"n{number:08}" for number in range(1000)])})
    images = ImageNet().load("val", site)
    assert images.labels.tolist() == list(range(1000))
    assert originals(images, [999])[0].shape == (1, 3, 8, 8)


def test_imagenet_has_a_thousand_classes_or_is_something_else(folder):
    with pytest.raises(ValueError, match="has 2 classes, not 1000"):
        ImageNet().load("train", Site(data={"imagenet": folder}))


def class_list(folder, classes):
    """Write the list and return its SHA-256."""
    folder.mkdir(exist_ok=True)
    content = "".join(f"{name}\n" for name in classes).encode()
    (folder / "imagenet100.txt").write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_imagenet100_takes_the_classes_of_the_list_in_the_order_of_their_names(tmp_path):
    root = fake_imagenet(tmp_path / "imagenet", ["n01", "n02", "n03", "n04"])
    dataset = ImageNet100(class_list_sha256=class_list(tmp_path / "lists", ["n04", "n01", "n02"]))
    images = dataset.load("train", Site(data={"imagenet": root, "imagenet100_classes": tmp_path / "lists"}))
    assert images.classes == ("n01", "n02", "n04")
    assert [Path(images.name(index)).name for index in range(len(images))] == [
        "n01_1.png",
        "n02_1.png",
        "n04_1.png",
    ]
    assert images.labels.tolist() == [0, 1, 2]


def test_imagenet100_finds_its_list_in_the_root_and_a_lost_class_in_either_split(tmp_path):
    root = fake_imagenet(tmp_path, ["n01", "n02"])
    dataset, site = (
        ImageNet100(class_list_sha256=class_list(tmp_path, ["n02", "n01"])),
        Site(data={"imagenet": root}),
    )
    assert len(dataset.load("val", site)) == 2
    shutil.rmtree(root / "val" / "n02")
    with pytest.raises(ValueError, match="val has no folder 'n02', but that class"):
        dataset.load("train", site)


def test_another_class_list_is_refused_and_line_ends_are_told_from_classes(tmp_path):
    sha256 = class_list(tmp_path, ["n04", "n01"])
    path = tmp_path / "imagenet100.txt"
    assert read_classes(path, sha256) == ("n01", "n04")
    for content in (b"n04\r\nn01\r\n", b"n04\nn01"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError,
            match=rf"imagenet100\.txt has SHA-256 .*but {sha256} is expected\. Only its line endings differ",
        ):
            read_classes(path, sha256)
    path.write_bytes(b"n04\nn02\n")
    with pytest.raises(ValueError, match="It is another list"):
        read_classes(path, sha256)
    path.unlink()
    with pytest.raises(LookupError, match=r"does not exist\. Get it: https"):
        read_classes(path, sha256)


def test_the_default_class_list_is_that_of_the_paper():
    classes = read_classes(shared("lists", "imagenet100.txt"), ImageNet100().class_list_sha256)
    assert len(set(classes)) == 100
    assert "n02869837" in classes


@pytest.mark.parametrize("release", ["", "imagenette2-160"])
def test_imagenette_is_found_in_the_folder_that_torchvision_unpacks(tmp_path, release):
    fake_imagenet(tmp_path / release, [f"n{number}" for number in range(10)])
    images = Imagenette().load("train", Site(data={"imagenette": tmp_path}))
    assert len(images.classes) == 10
    assert images.name(0) == str(tmp_path / release / "train" / "n0" / "n0_1.png")


@pytest.mark.slow
def test_real_photographs_grey_ones_among_them(tmp_path):
    """A few images of each class, as Pillow decodes them, in RGB."""
    with tarfile.open(shared("imagenette96.tar.gz")) as file:
        for member in file.getmembers()[::25]:
            content = file.extractfile(member)
            if content is not None and "/train/" in member.name:
                path = tmp_path / Path(member.name).parent.name / Path(member.name).name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content.read())
    images = imagefolder.read(tmp_path)
    canvas, sizes = originals(images, np.arange(len(images)))
    assert (sizes == 96).all()
    grey = 0
    for index in range(len(images)):
        with Image.open(images.name(index)) as image:
            grey += image.mode == "L"
            assert np.array_equal(canvas[index].permute(1, 2, 0), np.asarray(image.convert("RGB")))
    assert grey > 0
    order = np.arange(len(images))
    crop = CentreCrop(70, 64)
    ours, theirs = (list(batches(images, order, 150, crop=crop, workers=workers)) for workers in (2, 0))
    assert same(ours, theirs)
