"""Decoders and the shared memory through which they return images."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from reproduce.data import shared_memory
from reproduce.data.images import Files, Whole, found_in
from reproduce.runs import cores

PHOTOGRAPH = 3 * 500 * 375
CONTAINER = 64 * 2**20
"""Bytes of shared memory that a container has by default."""


@pytest.mark.parametrize(
    ("available", "workers", "expected"),
    [
        (None, 15, (15, 16)),
        (10**9, 15, (15, 16)),
        (200_000_000, 15, (15, 5)),  # half of it is 177 photographs, for 2 x 15 + 1 pieces
        (CONTAINER, 15, (15, 1)),  # 59 photographs
        (CONTAINER, 3, (3, 8)),
        (16_000_000, 15, (6, 1)),  # 14 photographs, for 2 x 6 + 1 pieces
        (2_000_000, 15, (0, 1)),  # a single one
        (0, 1, (0, 1)),
    ],
)
def test_pieces_and_then_decoders_are_fewer_by_hand(
    available: int | None, workers: int, expected: tuple[int, int]
) -> None:
    assert shared_memory.fitting(available, PHOTOGRAPH, workers) == expected


def test_the_training_processes_of_a_machine_share_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    assert shared_memory.free(3) == 33
    monkeypatch.undo()
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "missing")
    assert shared_memory.free(1) is None


@pytest.mark.parametrize(("free", "alive"), [(10**9, 2), (10_000, 2), (7000, 1), (2000, 0)])
def test_the_bytes_are_the_same_with_any_shared_memory_and_no_batch_stays_in_it(
    free: int, alive: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    random = np.random.default_rng(0)
    for index in range(40):  # 960 bytes each
        pixels = random.integers(0, 256, (16, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    images = Files(tmp_path, [f"{index:02}.png".encode() for index in range(40)], [0] * 40, ["a"])
    parts = np.array_split(random.permutation(40), 2)
    monkeypatch.delenv(cores.PROCESSES, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    before, seen = set(psutil.Process().children()), set[psutil.Process]()
    with caplog.at_level(logging.WARNING):
        for found, part in zip(found_in(images, [parts], Whole(), 2), parts, strict=True):
            seen |= set(psutil.Process().children()) - before
            assert not found.images.values.is_shared()
            assert torch.equal(found.batch().pixels, images.decode(part, Whole()).pixels)
    assert len(seen) == alive
    # 2 x 2 + 1 images of 960 bytes, in half of what is free
    assert ("2 decoders would need 9.6 kB of shared memory" in caplog.text) == (alive < 2)


def test_more_decoders_than_cores_have_one_warning_of_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images = Files(tmp_path, [b"a.png"] * 4, [0] * 4, ["a"], 0.0)
    said = (
        "2 processes decode the images of this run, but more than one for each core (1) do not help: lower "
        "`workers` in the site file."
    )
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    for workers, expected in ((1, []), (2, [said])):
        caplog.clear()
        assert len(list(found_in(images, [[np.arange(4)]], Whole(), workers))) == 1
        assert caplog.messages == expected
    assert [each for each in recwarn if "DataLoader" in str(each.message)] == []
