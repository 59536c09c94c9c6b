"""The online probe: its numbers by hand, and that it changes nothing in a run."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_contracts import METHODS, with_all_terms
from toys import CPU, PRETRAIN, READ, Arrays, Notes, Toy, encoder, on_two_processes

from reproduce.data.augmentation import Patches
from reproduce.data.images import Batch as ImageBatch
from reproduce.data.images import Images, Shape
from reproduce.messages import InvalidError
from reproduce.methods.byol import BYOL
from reproduce.methods.method import Method, Part
from reproduce.nn import probe, probe_pictures
from reproduce.nn.encoder import FILE
from reproduce.nn.probe import Watching
from reproduce.runs import checkpoint, encoder_file, interrupt
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.train import Meter, pretrain


@dataclass(frozen=True, kw_only=True)
class Odd(Toy, name="toy_of_probes"):
    """Images whose labels are those of a list, in turn."""

    labels: tuple[int, ...] = (0,)

    def load(self, split: str, site: Site) -> Images:
        return Arrays(split, [self.labels[i % len(self.labels)] for i in range(self.num_train)], seed=2)


FITTING: dict[str, dict[str, Any]] = {
    "la": {"neighbours": 20, "clusters": 5},
    "pcl": {"clusters": (24, 47)},
}
"""Sizes of methods that must not exceed the number of images."""


def spec_of(method: Method, num_train: int = 66) -> Pretrain:
    patches = None
    if method.num_patches:
        patches = Patches(size=8, canvas=20, jitter=2, num_whole=method.num_views - method.num_patches)
    return replace(
        PRETRAIN,
        method=replace(method, **FITTING.get(method.name, {})),
        dataset=Toy(num_train=num_train, size=20 if method.name == "obow" else 16, resize=20, canvas=20),
        augmentation=replace(PRETRAIN.augmentation, patches=patches),
        epochs=2,
        batch_size=16,
    )


def watching(labels: tuple[int, ...], num_images: int, every: int | str = 1) -> Watching:
    dataset = Odd(num_train=num_images, labels=labels)
    return Watching(every, dataset, dataset.load("train", Site()), CPU, passes=8.0)


# Numbers by hand


def test_rankme_and_the_spectrum_by_hand() -> None:
    z = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # singular values 3 and 1
    assert probe.rankme(z) == pytest.approx(4 / 3**0.75, rel=1e-5)  # exp of the entropy of 3/4 and 1/4
    assert probe.rankme(torch.ones(4, 3)) == pytest.approx(1, abs=1e-3)
    assert probe.rankme(torch.zeros(4, 3)) == 0
    centre = torch.tensor([[5.0, 5.0]])
    z = centre + torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert probe.spectrum(z) == pytest.approx([0.8, 0.2])
    assert probe.spectrum(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])) == pytest.approx([1.0])
    assert probe.spectrum(torch.ones(4, 3)) == []


def test_neighbours_by_cosine_vote_and_of_labels_that_tie_the_smallest_wins() -> None:
    bank = torch.tensor([[0.0, 9.0], [1.0, 0.0], [5.0, 5.0], [2.0, 0.0]])
    rows = probe.nearest(torch.tensor([[1.0, 0.1]]), bank, 20)
    assert rows.tolist() == [[1, 3, 2, 0]]
    assert probe.vote(torch.tensor([[2, 1, 1, 2], [0, 2, 2, 1]]), 3).tolist() == [1, 2]


def test_top1_of_the_probe_is_the_share_of_images_with_the_label_of_their_neighbours() -> None:
    found = watching((0, 1, 2, 3, 4, 5), 60)
    network = encoder()
    measured = found.measure(network)
    assert found.newest is not None
    held_out, bank = (found.images.labels[part] for part in found.chosen)
    right = 0
    for feature, label in zip(found.newest.held_out, held_out, strict=True):
        cosines = torch.cosine_similarity(feature[None].double(), found.newest.bank.double())
        near = [int(bank[row]) for row in cosines.argsort(descending=True, stable=True)[:20]]
        right += max(sorted(set(near)), key=near.count) == label
    assert (len(held_out), len(bank)) == (10, 15)
    assert measured["probe/top1"] == pytest.approx(right / 10)
    sigma = torch.linalg.svdvals(found.newest.embeddings.double())
    p = sigma / sigma.sum() + 1e-7
    assert measured["probe/rankme"] == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)
    assert found.newest.embeddings.shape == (25, 128)


@pytest.mark.parametrize(
    ("labels", "num_images", "keys"),
    [
        ((0,), 30, {"probe/rankme", "probe/top1"}),
        ((-1,), 30, {"probe/rankme"}),
        ((-1, -1, -1, 4), 40, {"probe/rankme", "probe/top1"}),
        ((1, 0), 2, {"probe/rankme", "probe/top1"}),
    ],
    ids=["one class", "no labels", "some labels", "two images"],
)
def test_odd_data_have_a_probe(labels: tuple[int, ...], num_images: int, keys: set[str]) -> None:
    found = watching(labels, num_images)
    measured = found.measure(encoder())
    assert set(measured) == keys
    assert not set(found.chosen.held_out) & set(found.chosen.bank)
    assert all(math.isfinite(value) for value in measured.values())
    if "probe/top1" in keys:
        assert (found.images.labels[found.chosen.bank] >= 0).all()
    assert len(found.shown(8, 8)[0][0]) == 1 + min(8, len(found.chosen.bank))


def test_a_single_image_has_no_probe_and_a_diverged_network_no_numbers() -> None:
    assert not watching((0,), 1).on
    network = encoder()
    with torch.no_grad():
        next(network.backbone.parameters()).fill_(math.nan)
    found = watching((0, 1), 30)
    assert found.measure(network) == {}
    assert found.newest is None


# When it is due


def test_probes_are_as_far_apart_as_the_site_says_and_the_last_epoch_has_one() -> None:
    found = watching((0,), 30, every=3)
    due = [epoch for epoch in range(1, 9) if found.due(epoch, done=epoch / 8, seen=30 * epoch)]
    assert due == [3, 6, 8]
    assert not watching((0,), 1000, every=0).on
    assert not watching((0,), 199, every="auto").on


def test_automatic_probes_keep_to_three_per_cent_and_leave_enough_for_the_last_one() -> None:
    found, due = watching((0,), 1000, every="auto"), list[int]()
    found._last = cost = 11.0
    for epoch in range(1, 11):  # of 100 s each
        found._began = time.perf_counter() - 100 * epoch
        if found.due(epoch, done=epoch / 10, seen=1000 * epoch):
            due.append(epoch)
            found.spent += cost
    # 11 s are 3 % of 367 s. After two probes, 3 % of 1000 s are too little for a third.
    assert due == [4, 10]
    found._last = 100.0  # the machine was busy
    assert not found.due(9, done=0.9, seen=9000)
    assert found.due(10, done=1, seen=10_000)


def test_the_first_automatic_probe_is_estimated_by_its_forward_passes() -> None:
    found = watching((0,), 1200, every="auto")  # 200 held-out images and 300 in the bank
    assert tuple(map(len, found.chosen)) == (200, 300)
    # 8 passes an image: 500 images cost 1.5 x 500 / 8 of the time of a training image, 0.8 s of 10 s.
    for seconds, expected in ((10.0, False), (100.0, True)):
        found._began = time.perf_counter() - seconds
        assert found.due(4, done=1, seen=round(1200 * seconds / 10)) is expected


def decoded_after(
    monkeypatch: pytest.MonkeyPatch, found: Watching, ready: Callable[[], Any], threads: int
) -> list[str]:
    """Let threads decode the images of a probe, each piece after a call of `ready`.

    Returns:
        The names of the threads, one for each decoded piece.
    """
    monkeypatch.setitem(probe.THREADS, "cpu", threads)
    names, decode = list[str](), found.images.decode

    def decode_later(indices: np.ndarray, shape: Shape) -> ImageBatch:
        ready()
        names.append(threading.current_thread().name)
        return decode(indices, shape)

    monkeypatch.setattr(found.images, "decode", decode_later)
    return names


def test_threads_decode_the_images_next_to_training_and_the_numbers_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, plain, found = encoder(), watching((0, 1, 2), 260), watching((0, 1, 2), 260, every="auto")
    measured = plain.measure(network)
    gate = threading.Event()
    names = decoded_after(monkeypatch, found, gate.wait, threads=3)
    found._began = time.perf_counter() - 10_000  # so long that a probe of any cost is due
    with found.decoding(8):
        assert not found.due(3, done=0.5, seen=10**9)
        assert not found.due(6, done=1, seen=10**9), "the time until the first piece is unknown"
        gate.set()
        wait(found._pieces)
        assert found.due(6, done=0.5, seen=10**9)
        assert found.measure(network) == measured
    assert torch.equal(found._pixels(), plain._pixels())
    assert len(names) == 7  # pieces of 16 among 44 held-out images and 65 in the bank
    assert all(name.startswith("probe") for name in names)


def test_a_probe_at_the_end_counts_the_decoding_that_remains() -> None:
    found = watching((0,), 260, every="auto")
    found._began = time.perf_counter() - 100  # 3 % of it are 3 s
    for since, expected in ((1.0, True), (4.0, False)):
        # One of two pieces is decoded, so as much time remains as has passed.
        found._pieces, found._decoding_since = [Future(), Future()], time.perf_counter() - since
        found._pieces[0].set_result(None)  # type: ignore[arg-type]
        assert not found.due(9, done=0.9, seen=10**9)
        assert found.due(10, done=1, seen=10**9) is expected


def test_the_threads_end_with_training_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = watching((0,), 260, every=1)
    last = threading.Event()
    names = decoded_after(monkeypatch, found, last.wait, threads=2)

    def fail() -> None:
        with found.decoding(8):
            found._pieces[-1].add_done_callback(lambda piece: last.set())  # called when it is cancelled
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(names) <= 2, "what has begun is finished, and the rest is cancelled"
    assert not [each.name for each in threading.enumerate() if each.name.startswith("probe")]


def test_an_image_that_a_thread_finds_broken_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(probe.THREADS, "cpu", 2)
    decode = Arrays.decode

    def broken(self: Images, indices: np.ndarray, shape: Shape) -> ImageBatch:
        if threading.current_thread().name.startswith("probe"):
            raise InvalidError("a.jpg cannot be decoded")
        return decode(self, indices, shape)

    spec = spec_of(with_all_terms(BYOL))
    whole = left(spec, tmp_path / "whole", 1)
    assert any(whole["probe"].values())
    monkeypatch.setattr(Arrays, "decode", broken)
    assert_equal(whole, left(spec, tmp_path / "broken", 1))
    assert "The probe after step 8 is missing: a.jpg cannot be decoded" in caplog.text


@pytest.mark.parametrize("value", [-1, "often", 1.5, True])
def test_a_wrong_number_of_epochs_is_refused(value: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from reproduce import site

    file = tmp_path / "site.toml"
    file.write_text(f"probe_every = {str(value).lower() if isinstance(value, bool) else repr(value)}\n")
    monkeypatch.setenv("MSBREG_SITE", str(file))
    with pytest.raises(ValueError, match=r"probe_every is .* expected"):
        site.load()


def test_images_per_second_do_not_count_the_time_of_a_probe() -> None:
    meter = Meter()
    meter.add(Part(torch.tensor(1.0), {}, torch.eye(2)))
    meter.count(5000)
    meter._since -= 1000
    meter.leave_out(900.0)
    assert meter.read(0)["images_per_second"] == pytest.approx(50, rel=0.02)


# It changes nothing


def left(spec: Pretrain, folder: Path, every: int, record: Any = None, stop_at: int = 0) -> dict[str, Any]:
    """Pretrain, and return everything that the run leaves behind except its measured speed.

    Args:
        stop_at: step after which the run receives a stop request, to resume in a second call.
    """
    notes = record or Notes()
    site, run = Site(runs=folder, probe_every=every), folder / "run"

    def report(progress: Progress) -> None:
        if progress.done == stop_at * spec.batch_size:
            interrupt.ask("test")

    torch.manual_seed(3)
    try:
        measured = pretrain(spec, site, run, CPU, notes, report)
    except interrupt.Interrupted:
        measured = {}
    torch.distributed.is_initialized() and torch.distributed.barrier()
    state = checkpoint.latest(run, spec.id)
    assert state is not None
    state["meter"].pop("seconds")
    return {
        "network": state["network"],
        "optimizer": state["optimizer"]["state"],
        "meter": state["meter"],
        "place": (state["epoch"], state["step"]),
        "saved": comparable(state["measured"]),
        "encoder": encoder_file.load(run / FILE, spec_id=spec.id) if measured else {},
        "measured": comparable(measured),
        "random": torch.get_rng_state(),
        "probe": {
            step: {k: v for k, v in each.items() if k.startswith(("probe", "spec"))}
            for step, each in notes.logged.items()
        },
    }


def comparable(measured: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in measured.items() if key != "images_per_second"}


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            if key != "probe":
                assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
        assert one.stride() == other.stride(), place
    else:
        assert one == other, place


@pytest.mark.parametrize("cls", METHODS)
def test_a_run_with_a_probe_ends_bit_for_bit_where_it_ends_without(cls: type[Method], tmp_path: Path) -> None:
    spec = spec_of(with_all_terms(cls))
    READ.clear()
    without, read = left(spec, tmp_path / "without", 0), dict(READ)
    READ.clear()
    notes = Notes()
    with_it = left(spec, tmp_path / "with", 1, notes)
    assert_equal(without, with_it)
    assert read == READ  # nothing passes through the cache of the images
    assert not any(without["probe"].values())
    assert {"probe/top1", "probe/rankme"} == {
        key for step in (4, 8) for key in notes.logged[step] if key.startswith("probe")
    }
    assert "spectrum" in notes.logged[1]
    assert sum(each.get("spectrum", 0) for each in notes.logged.values()) == pytest.approx(1)
    assert [path.name for path in notes.artifacts] == ["views.png", "neighbours.png"]


def both_ways(folder: Path) -> list[dict[str, Any]]:
    spec = spec_of(with_all_terms(BYOL))
    return [left(spec, folder / str(every), every) for every in (0, 1)]


@pytest.mark.slow
def test_two_processes_end_where_they_end_without_a_probe(tmp_path: Path) -> None:
    first, second = on_two_processes(both_ways, tmp_path, tmp_path)
    for without, with_it in (first, second):
        assert_equal(without, with_it)
    measured = first[1]["probe"]
    assert set(measured[4]) >= {"probe/top1", "probe/rankme"}


def test_a_run_that_stops_and_resumes_ends_where_it_ends_without_a_probe(tmp_path: Path) -> None:
    spec = spec_of(with_all_terms(BYOL))
    whole = left(spec, tmp_path / "whole", 0)
    stopped = left(spec, tmp_path / "parts", 1, stop_at=6)
    assert stopped["place"] == (1, 2)
    notes = Notes()
    assert_equal(whole, left(spec, tmp_path / "parts", 1, notes))
    assert [path.name for path in notes.artifacts] == ["neighbours.png"]


class Refuses(Notes):
    """A record that takes no files."""

    def artifact(self, path: Path) -> None:
        raise ConnectionError("the server is gone")


def test_a_picture_that_cannot_be_recorded_does_not_fail_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert left(spec_of(with_all_terms(BYOL)), tmp_path, 1, Refuses())["measured"]
    assert "views.png is not in the record: " in caplog.text
    assert "neighbours.png is not in the record: " in caplog.text


def test_the_same_run_draws_the_same_pictures(tmp_path: Path) -> None:
    spec = spec_of(with_all_terms(BYOL))
    for name in ("a", "b"):
        left(spec, tmp_path / name, 2)
    for name in (probe_pictures.VIEWS, probe_pictures.NEAREST):
        one, other = (tmp_path / run / "run" / name for run in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()
    with Image.open(tmp_path / "a" / "run" / probe_pictures.VIEWS) as image:
        assert image.size == (2 * 102 + 6, 8 * 102 + 6)  # K views of eight images, 16 pixels shown as 96


def test_the_query_and_the_neighbours_of_its_class_are_framed(tmp_path: Path) -> None:
    rows = [[torch.full((3, 96, 96), 128, dtype=torch.uint8)] * 3]
    path = probe_pictures.grid(tmp_path / "picture.png", rows, [["cat", "dog", "cat"]])
    with Image.open(path) as image:
        frames = [image.getpixel((6 + 102 * column - 1, 50)) for column in range(3)]
    assert frames == [probe_pictures.INK, probe_pictures.PAPER, probe_pictures.RIGHT]
