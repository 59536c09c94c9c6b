"""Features on disk: the same bits with and without the cache, and computed once.

Nothing is lost if a process is killed, deletes files or runs at the same time.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from PIL import Image
from toys import CPU, Pictures, Toy, encoder, on_two_processes
from waiting import thread_joined

from reproduce.data.images import Images
from reproduce.data.synthetic import SyntheticFolder
from reproduce.nn import feature_cache, features
from reproduce.nn.encoder import Encoder
from reproduce.nn.features import Split
from reproduce.runs import encoder_file
from reproduce.site import Site

pytestmark = pytest.mark.usefixtures("one_thread")
TOY = Toy()
NUM_IMAGES = 12
ROW = 4 * 64
"""Bytes of the features of one image."""


class Counted(Pictures):
    """Random pictures that count how often each one is opened and can run a function then."""

    def __init__(self, digest: str = "d1", at_open: Callable[[], object] = lambda: None) -> None:
        pixels = np.random.default_rng(len(digest)).integers(0, 256, (NUM_IMAGES, 18, 20, 3), np.uint8)
        super().__init__(pixels, np.arange(NUM_IMAGES) % 2, ("a", "b"))
        self.opened, self.at_open, self._digest = 0, at_open, digest

    def open(self, index: int) -> Image.Image:
        self.opened += 1
        self.at_open()
        return super().open(index)

    @property
    def digest(self) -> str:
        return self._digest


def split_of(images: Images, indices: list[int] | None = None) -> Split:
    chosen = torch.arange(NUM_IMAGES) if indices is None else torch.tensor(indices)
    return Split("some images", images, chosen, torch.tensor(images.labels)[chosen], 2)


def known(change: float = 0.0) -> Encoder:
    """Return an untrained encoder with a digest, whose first weight is changed by `change`."""
    made = encoder()
    with torch.no_grad():
        next(made.backbone.parameters()).view(-1)[0] += change
    made.digest = encoder_file.digest(made.backbone.state_dict())
    return made


def extract(
    site: Site,
    images: Images,
    *,
    network: Encoder | None = None,
    toy: Toy = TOY,
    indices: list[int] | None = None,
    squash: bool = False,
) -> torch.Tensor:
    split = split_of(images, indices)
    return features.extract(network or known(), toy, split, site, CPU, squash=squash)


def files(site: Site) -> list[str]:
    """Return the files in the folder, except the locks."""
    folder = site.runs / "features"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def only_file(site: Site) -> Path:
    (name,) = files(site)
    return site.runs / "features" / name


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(runs=tmp_path / "runs")


def test_what_is_read_is_what_was_computed_to_the_last_bit_and_no_image_is_opened_again(site: Site) -> None:
    images = Counted()
    without = extract(replace(site, features_gb=0.0), images)
    assert not site.runs.exists()
    cold, warm = extract(site, images), extract(site, images)
    assert torch.equal(cold, without)
    assert torch.equal(warm, without)
    assert images.opened == 2 * NUM_IMAGES
    warm.zero_()  # the caller's own: the file on disk does not change
    assert torch.equal(extract(site, images), without)
    assert len(files(site)) == 1


def test_what_is_not_known_by_a_digest_is_not_kept(site: Site) -> None:
    images = Counted()
    extract(site, images, network=encoder())
    extract(site, Counted(digest=""))
    assert images.opened == NUM_IMAGES
    assert files(site) == []


OTHERS = {
    "the encoder's values": {"network": known(0.5)},
    "the images": {"images": Counted("other")},
    "which images": {"indices": [0, 3, 4]},
    "the crop": {"toy": Toy(size=14)},
    "the size before the crop": {"toy": Toy(resize=18)},
    "the filter of the resize": {"toy": Toy(test_resampling="bilinear")},
    "the whole image in place of the crop": {"squash": True},
    "the mean": {"toy": Toy(mean=(0.1, 0.2, 0.3))},
    "the deviation": {"toy": Toy(std=(0.5, 0.6, 0.7))},
}


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_moves_features_has_a_file_of_its_own(other: str, site: Site) -> None:
    changed = {"images": Counted(), **OTHERS[other]}
    first = extract(site, Counted())
    second = extract(site, **changed)
    assert len(files(site)) == 2
    assert second.shape != first.shape or not torch.equal(second, first)
    assert torch.equal(second, extract(replace(site, features_gb=0.0), **changed))


def test_scenes_of_another_seed_are_other_images_though_names_and_sizes_agree(site: Site) -> None:
    one = SyntheticFolder(num_train=20, num_val=20)
    other, network = replace(one, data_seed=1), known()
    splits = [features.labelled(scenes, "val", site) for scenes in (one, other)]
    assert splits[0].images.digest == splits[1].images.digest
    first, second = (
        features.extract(network, scenes, split, site, CPU)
        for scenes, split in zip((one, other), splits, strict=True)
    )
    assert not torch.equal(first, second)


def test_other_versions_of_the_code_and_other_devices_have_other_names(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, toy, made = split_of(Counted()), Toy(), known()
    on_cpu = features.content(made, toy, split, CPU)
    on_gpu = features.content(made, toy, split, torch.device("cuda"))
    assert on_cpu is not None
    assert on_gpu is not None
    assert [key for key in on_cpu if on_cpu[key] != on_gpu[key]] == ["device"]
    extract(site, Counted())
    monkeypatch.setattr(feature_cache, "VERSION", feature_cache.VERSION + 1)
    extract(site, Counted())
    assert len(files(site)) == 2


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def of_other_images(path: Path) -> None:
    other = Site(runs=path.parent / "elsewhere")
    extract(other, Counted("other"))
    shutil.copy(only_file(other), path)
    shutil.rmtree(other.runs)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: os.truncate(path, 3000),
    "empty": lambda path: path.write_bytes(b""),
    "one bit flipped": flipped,
    "no safetensors": lambda path: path.write_bytes(b"\x80\x04" + bytes(4000)),
    "of other images": of_other_images,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_file_is_made_again(damage: str, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    images = Counted()
    first = extract(site, images)
    DAMAGE[damage](only_file(site))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(extract(site, images), first)
    assert f"Features {only_file(site)} are broken" in caplog.text
    assert torch.equal(extract(site, images), first)
    assert images.opened == 2 * NUM_IMAGES


def test_the_least_recently_used_make_room_but_not_those_in_use(site: Site) -> None:
    networks = [known(change) for change in (0.0, 0.1, 0.2, 0.3, 0.4)]
    roomy = replace(site, features_gb=1.0)
    names: list[Path] = []
    for age, network in enumerate(networks[:3]):
        extract(roomy, Counted(), network=network)
        (new,) = set(files(site)) - {path.name for path in names}
        names.append(site.runs / "features" / new)
        os.utime(names[-1], (1000 + age, 1000 + age))
    one = names[0].stat().st_size
    extract(roomy, Counted(), network=networks[0])  # used again, so it is the most recent one
    assert names[0].stat().st_mtime > 1002

    three = replace(site, features_gb=(3 * one + 100) / 1e9)
    extract(three, Counted(), network=networks[3])
    assert [path.exists() for path in names] == [True, False, True]
    with filelock.FileLock(names[2].with_suffix(".lock"), thread_local=False):
        other = threading.Thread(target=extract, args=(three, Counted()), kwargs={"network": networks[4]})
        other.start()
        thread_joined(other)
    assert [path.exists() for path in names] == [False, False, True], (
        "the oldest is in use: the next one goes"
    )
    assert sum(path.stat().st_size for path in site.runs.glob("features/*.safetensors")) <= 3 * one + 100


def test_features_that_are_too_large_alone_are_not_kept_and_remove_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    extract(site, Counted(), indices=[0, 1])
    kept = files(site)
    with caplog.at_level(logging.WARNING):
        extract(replace(site, features_gb=(NUM_IMAGES * ROW - 1) / 1e9), Counted())
    assert files(site) == kept
    assert "are not kept: features_gb in the site file is" in caplog.text


@pytest.mark.parametrize("what", ["features", "."])
def test_a_user_may_delete_everything_while_features_are_computed(what: str, site: Site) -> None:
    extract(site, Counted(), indices=[0])
    images = Counted(at_open=lambda: shutil.rmtree(site.runs / what, ignore_errors=True))
    expected = extract(replace(site, features_gb=0.0), Counted())
    assert torch.equal(extract(site, images), expected)
    assert torch.equal(extract(site, Counted()), expected)


def test_a_folder_that_cannot_be_written_costs_time_only(site: Site) -> None:
    site.runs.mkdir()
    (site.runs / "features").write_text("a file, not a folder")
    images = Counted()
    assert torch.equal(extract(site, images), extract(site, images))
    assert images.opened == 2 * NUM_IMAGES


def test_two_that_want_the_same_at_once_compute_it_once(site: Site) -> None:
    first_is_reading, second_has_asked = threading.Event(), threading.Event()

    def first_reads() -> None:
        first_is_reading.set()
        assert second_has_asked.wait(60)

    images, results = [Counted(at_open=first_reads), Counted()], dict[int, torch.Tensor]()

    def second() -> None:
        assert first_is_reading.wait(60)
        asked = split_of(images[1])
        second_has_asked.set()
        results[1] = features.extract(known(), Toy(), asked, site, CPU)

    other = threading.Thread(target=second)
    other.start()
    results[0] = extract(site, images[0])
    thread_joined(other)
    assert torch.equal(results[0], results[1])
    assert [each.opened for each in images] == [NUM_IMAGES, 0]


KILLED = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import torch
from test_feature_cache import Counted, Site, extract
torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
extract(Site(runs=Path(sys.argv[1])), Counted())
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_writing_leaves_nothing_that_is_read_and_is_cleared_away(site: Site) -> None:
    """The system kills the process when its file exceeds the limit."""
    tests = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(site.runs), str(tests.parent), str(tests)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    (draft,) = files(site)
    assert draft.endswith(".tmp")
    images = Counted()
    expected = extract(replace(site, features_gb=0.0), Counted())
    assert torch.equal(extract(site, images), expected)
    assert images.opened == NUM_IMAGES
    assert only_file(site).suffix == ".safetensors"


def test_what_others_left_half_written_is_cleared_away(site: Site) -> None:
    folder = site.runs / "features"
    folder.mkdir(parents=True)
    (folder / ".0123456789ab.safetensors.999.1.tmp").write_bytes(bytes(100))
    (folder / ".ba9876543210.safetensors.999.1.tmp").write_bytes(bytes(100))
    with filelock.FileLock(folder / "ba9876543210.lock"):
        extract(site, Counted())
    assert [name for name in files(site) if name.endswith(".tmp")] == [
        ".ba9876543210.safetensors.999.1.tmp"
    ], "its writer is at work"


def cold_then_warm(site: Site) -> tuple[int, int, list[str], torch.Tensor, torch.Tensor]:
    """Return the images opened at first and in total, the files then, and the features of both times."""
    images = Counted()
    cold = extract(site, images)
    opened = images.opened
    warm = extract(site, images)
    return opened, images.opened, files(site), cold, warm


@pytest.mark.slow
def test_two_processes_agree_and_one_writes(tmp_path: Path) -> None:
    expected = extract(Site(features_gb=0.0), Counted())
    for cold_opened, warm_opened, written, cold, warm in on_two_processes(
        cold_then_warm, tmp_path, Site(runs=tmp_path / "runs")
    ):
        assert cold_opened == warm_opened > 0
        assert [name.endswith(".safetensors") for name in written] == [True]
        assert torch.equal(cold, expected)
        assert torch.equal(warm, expected)
