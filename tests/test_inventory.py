"""The record of the images that are here: what it notices, at which size of a split, and what it names."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from toys import PRETRAIN, image_folder

from reproduce.commands import disk, forecast
from reproduce.commands.verify_data import verify_data
from reproduce.data import dataset as datasets
from reproduce.data import imagefolder, inventory
from reproduce.data.coco2017 import COCO2017
from reproduce.data.imagenette import Imagenette
from reproduce.data.stl10 import STL10
from reproduce.data.synthetic import SyntheticFolder, SyntheticSTL10, SyntheticVOC2007
from reproduce.data.voc2007 import VOC2007
from reproduce.methods.npid import NPID
from reproduce.readiness import Counts
from reproduce.site import Site

NETTE = Imagenette()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with Imagenette: 3 training images and 2 others of each class, which nothing has changed
    lately."""
    monkeypatch.setattr(inventory, "JUST_NOW", 0)
    root = image_folder(tmp_path / "imagenette", train=3, val=2)
    return Site(runs=tmp_path / "runs", data={"imagenette": root})


def test_a_memory_bank_has_a_row_for_each_image_that_is_here(site: Site) -> None:
    run = replace(PRETRAIN, method=NPID(), dataset=NETTE)
    row, published = 4 * 128, 9_469
    before = disk.sizes(run, {}, site).checkpoint
    assert before == forecast._sizes(run, site).checkpoint == forecast._sizes(run).checkpoint
    inventory.load(NETTE, "train", site)
    found = disk.sizes(run, {}, site).checkpoint
    assert found == forecast._sizes(run, site).checkpoint == before - (published - 30) * row


def first(site: Site) -> Path:
    """The first image of the train split."""
    return site.data["imagenette"] / "train" / "n00000000" / "0.ppm"


def add(path: Path) -> None:
    shutil.copy(path, path.with_name("new.ppm"))


def add_class(path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(path.parent, path.parents[2] / split / "n00000099")


def rewrite(path: Path) -> None:
    """Change one byte in place, and restore the time of writing."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xee")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, 11)


@pytest.mark.parametrize(
    ("change", "images", "other_digest", "other_content"),
    [
        (add, 31, True, True),
        (Path.unlink, 29, True, True),
        (truncate, 30, True, True),
        (rewrite, 30, False, True),
        (os.utime, 30, False, False),
        (lambda path: path.chmod(0o600), 30, False, False),
    ],
    ids=["added", "removed", "truncated", "same size and time", "touched", "permissions"],
)
def test_a_change_of_any_file_is_noticed_and_what_it_changed_is_known(
    change: Callable[[Path], None], images: int, other_digest: bool, other_content: bool, site: Site
) -> None:
    _, before = inventory.load(NETTE, "train", site)
    assert inventory.known(NETTE, "train", site) == before
    assert inventory.known(NETTE, "val", site) is None
    change(first(site))
    assert inventory.known(NETTE, "train", site) is None
    after = inventory.here(NETTE, "train", site)
    assert after is not None
    assert (after.num_images, after.digest != before.digest) == (images, other_digest)
    assert (after.content != before.content) == other_content
    assert inventory.known(NETTE, "train", site) == after


def test_a_new_class_is_noticed_although_no_folder_of_images_changed(site: Site) -> None:
    root = site.data["imagenette"]
    site = replace(site, data={"imagenette": root / ".." / root.name})
    inventory.load(NETTE, "train", site)
    add_class(first(site))
    assert inventory.known(NETTE, "train", site) is None
    with pytest.raises(ValueError, match=r"imagenette has 11 classes, not 10"):
        inventory.here(NETTE, "train", site)


def test_a_root_in_another_layout_is_noticed(site: Site) -> None:
    """Images at the top of the root have precedence over those of the folder that torchvision unpacks."""
    root = site.data["imagenette"]
    inside = image_folder(root / "imagenette2-160", train=1, val=1)
    for split in ("train", "val"):
        (root / split).rename(root / f"other {split}")
    assert inventory.load(NETTE, "train", site)[1].num_images == 10
    for split in ("train", "val"):
        (root / f"other {split}").rename(root / split)
    after = inventory.here(NETTE, "train", site)
    assert after is not None
    assert after.num_images == 30
    assert inside.is_dir()


def test_of_a_large_split_only_the_folders_are_checked_and_a_replaced_file_takes_a_reading(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.Dataset, "most_checked", 29)
    monkeypatch.setattr(inventory, "MOST_BYTES", 29 * 14)
    _, before = inventory.load(NETTE, "train", site)
    assert before.content == "", "too large to be read by a run"
    rewrite(first(site))
    assert inventory.known(NETTE, "train", site) == before
    verified = [str(each) for each in verify_data(site)]
    assert verified[0].startswith("imagenette, train: 30 images, content ")
    assert verified[0].endswith(
        ", its content recorded for the first time; "
        "not as published: 30 of 9 469 images of Imagenette's train split"
    )
    known = inventory.known(NETTE, "train", site)
    assert known is not None
    assert inventory.load(NETTE, "train", site)[1] == known, "a run records what was verified"
    rewrite(first(site).with_name("1.ppm"))
    assert inventory.load(NETTE, "train", site)[1].content == "", "it lists the states of all files"
    add(first(site))
    assert inventory.known(NETTE, "train", site) is None


def test_verification_finds_a_byte_that_no_state_of_a_file_shows(site: Site) -> None:
    """A failing disk changes neither sizes nor times: the record is edited to that effect."""
    assert [each.good for each in verify_data(site)] == [True, True]
    assert all(" as recorded" in str(each) for each in verify_data(site))
    (path,) = (site.runs / inventory.FOLDER).glob("imagenette-train-*.json")
    known = inventory.known(NETTE, "train", site)
    assert known is not None
    path.write_text(path.read_text().replace(known.content, "0" * 64))
    train, val = verify_data(site)
    assert (train.good, val.good) == (False, True)
    assert "other content than recorded, with the same names and sizes: runs on that are not reused" in str(
        train
    )
    first(site).write_bytes(b"")
    assert (
        str(next(verify_data(site))) == f"imagenette, train: {first(site)} is empty (0 bytes). Get it again."
    )


def test_data_that_changed_a_moment_ago_are_not_recorded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next change may get the same time, and would go unnoticed."""
    monkeypatch.setattr(inventory, "JUST_NOW", 3600 * 10**9)
    inventory.load(NETTE, "train", site)
    assert inventory.known(NETTE, "train", site) is None


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1}', '{"version": 0}', "[" * 100_000])
def test_a_record_that_cannot_be_read_is_taken_again(content: str, site: Site) -> None:
    _, before = inventory.load(NETTE, "train", site)
    (path,) = (site.runs / inventory.FOLDER).iterdir()
    path.write_text(content)
    assert inventory.known(NETTE, "train", site) is None
    assert inventory.here(NETTE, "train", site) == before


def test_the_same_images_elsewhere_have_the_same_digests(site: Site, tmp_path: Path) -> None:
    _, before = inventory.load(NETTE, "train", site)
    moved = replace(site, data={"imagenette": tmp_path / "moved"})
    shutil.copytree(site.data["imagenette"], tmp_path / "moved")
    assert inventory.known(NETTE, "train", moved) is None
    assert inventory.here(NETTE, "train", moved) == before
    assert inventory.known(NETTE, "train", site) == before, "both places are recorded"


def test_generated_images_are_counted_but_not_recorded(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    dataset = SyntheticFolder(num_train=20, num_val=10)
    _, found = inventory.load(dataset, "train", site)
    assert (found.num_images, found.content, found.tags("train")["num_images_train"]) == (20, "", "20")
    assert inventory.here(dataset, "train", site) is None
    assert not (tmp_path / inventory.FOLDER).exists()


def test_labels_and_annotations_belong_to_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "JUST_NOW", 0)
    monkeypatch.setattr(STL10, "published", {"train": 20, "test": 10, "unlabeled": 10})
    scenes = SyntheticSTL10(num_train=20, num_test=10, num_unlabeled=10)
    voc = SyntheticVOC2007(num_trainval=60, num_test=60)
    generated = Site(runs=tmp_path / "generated")
    scenes.load("train", generated)
    voc.load("test", generated)
    site = Site(
        runs=tmp_path / "runs", data={"stl10": scenes.folder(generated), "voc": voc.folder(generated)}
    )
    listed = next(site.data["voc"].rglob("test.txt"))
    cases = [
        (STL10(), "train", 20, site.data["stl10"] / "train_y.bin"),
        (STL10(), "train+unlabeled", 30, site.data["stl10"] / "unlabeled_X.bin"),
        (VOC2007(), "test", 60, listed),
        (VOC2007(), "test", 60, next(site.data["voc"].rglob(f"{listed.read_text().split()[0]}.xml"))),
    ]
    for dataset, split, images, file in cases:
        _, before = inventory.load(dataset, split, site)
        assert before.num_images == Counts(site).of(dataset, split) == images
        os.utime(file)
        assert inventory.known(dataset, split, site) is None, file
        assert inventory.here(dataset, split, site) == before


def test_published_numbers_add_up_over_the_parts_of_a_split() -> None:
    assert inventory.published(STL10(), "train+unlabeled") == 105_000
    assert inventory.published(COCO2017(), "val2017") == 5_000
    assert inventory.shortfall(STL10(), "test", 8_000) == ""
    assert inventory.shortfall(STL10(), "test", 7_999) == "7 999 of 8 000 images of STL-10's test split"
    more = "8 001 images in STL-10's test split in place of the published 8 000"
    assert inventory.shortfall(STL10(), "test", 8_001) == more
    assert inventory.shortfall(SyntheticFolder(), "train", 3) == ""


# Files that are not images


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "x.JPEG")
    return "x.JPEG is a FIFO, not an image"


def folder_named_like_an_image(folder: Path) -> str:
    (folder / "x.JPEG").mkdir()
    return "x.JPEG is a folder, not an image"


def dangling(folder: Path) -> str:
    (folder / "x.JPEG").symlink_to("nowhere")
    return "x.JPEG is a link to nothing, not an image"


def empty(folder: Path) -> str:
    (folder / "x.JPEG").touch()
    return "x.JPEG is empty (0 bytes). Get it again."


def latin(folder: Path) -> str:
    (folder / os.fsdecode(b"caf\xe9.JPEG")).touch()
    return r"caf\xe9.JPEG is empty (0 bytes)"


@pytest.mark.parametrize("spoil", [fifo, folder_named_like_an_image, dangling, empty, latin])
def test_what_is_not_an_image_is_named_before_anything_starts_and_never_opened(
    spoil: Callable[[Path], str], site: Site
) -> None:
    says = spoil(first(site).parent)
    found = Counts(site).of(NETTE, "train")
    assert isinstance(found, str)
    assert says in found
    assert found.encode().count(b"\n") == 0


def test_a_socket_in_place_of_a_listed_image_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    images = imagefolder.read(site.data["imagenette"] / "train")
    first(site).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(first(site).parent)  # an address has at most 107 bytes
        server.bind("0.ppm")
        with pytest.raises(ValueError, match=r"0\.ppm is a socket, not a file: move it elsewhere\.$"):
            _ = images.digest


def test_a_real_image_with_a_name_that_is_not_utf8_is_read(site: Site) -> None:
    shutil.copy(first(site), os.fsencode(first(site).parent) + b"/caf\xe9.ppm")
    images, found = inventory.load(NETTE, "train", site)
    assert found.num_images == 31
    assert inventory.known(NETTE, "train", site) == found
    (index,) = [index for index in range(31) if "caf" in images.name(index)]
    assert images.name(index).endswith(r"caf\xe9.ppm")
    assert images.open(index).size == (1, 1)
