"""Checkpoints that are damaged, truncated, killed while being written, or written to a full disk."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import signal
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reproduce.runs import checkpoint

RUN = "0123456789ab"
fork = multiprocessing.get_context("fork")

STATE: dict[str, Any] = {
    "network": OrderedDict(
        weight=torch.arange(6.0).reshape(2, 3),
        count=torch.tensor(7),
        half=torch.tensor([0.5], dtype=torch.bfloat16),
    ),
    "optimizer": {
        "state": {0: {"momentum": torch.tensor([1e-30, -1.0])}, 1: {}},
        "groups": [{"lr": 0.1, "params": [0, 1]}],
    },
    "epoch": 3,
    "measured": {"loss": 1 / 3, "name": "naïve", "nothing": None, "flag": True, "pair": (1, 2.5)},
}


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "weights": torch.full((1000,), float(epoch))}


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for item, twin in zip(one, other, strict=True):
            assert_same(item, twin)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def test_nested_states_come_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, RUN, STATE, 3)
    assert_same(checkpoint.latest(tmp_path, RUN), STATE)


def test_torch_itself_reads_a_checkpoint(tmp_path: Path) -> None:
    assert_same(torch.load(checkpoint.save(tmp_path, RUN, STATE, 3), weights_only=True), STATE)


def test_no_folder_and_an_empty_one_have_no_state(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent", RUN) is None
    assert checkpoint.latest(tmp_path, RUN) is None


def test_the_newest_epochs_stay_and_the_newest_is_read(tmp_path: Path) -> None:
    (tmp_path / ".epoch-00001.pt.99.tmp").write_bytes(b"left by a killed process")
    (tmp_path / "encoder.safetensors").write_bytes(b"not ours to remove")
    for epoch in (9, 10, 99_999, 100_000):
        checkpoint.save(tmp_path, RUN, state(epoch), epoch, keep=3)
    assert {path.name for path in tmp_path.iterdir()} == {
        "epoch-00010.pt",
        "epoch-99999.pt",
        "epoch-100000.pt",
        "encoder.safetensors",
    }
    assert_same(checkpoint.latest(tmp_path, RUN), state(100_000))


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped bit of a weight":
        content[content.index(np.float32(2.0).tobytes())] ^= 1
    elif how == "flipped bit of the digest":
        content[-1] ^= 1
    elif how == "cut short":
        del content[-100:]
    else:
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["flipped bit of a weight", "flipped bit of the digest", "cut short", "empty"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path, RUN, state(1), 1)
    damage(checkpoint.save(tmp_path, RUN, state(2), 2), how)
    with caplog.at_level(logging.WARNING):
        assert_same(checkpoint.latest(tmp_path, RUN), state(1))
    assert "epoch-00002.pt is broken" in caplog.text
    damage(tmp_path / "epoch-00001.pt", "cut short")
    assert checkpoint.latest(tmp_path, RUN) is None


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (np.float64(0.5), r"state\['a'\]\[1\] is a float64"),
        (Path("x"), r"state\['a'\]\[1\] is a \w+Path"),
        ({1, 2}, "is a set"),
    ],
)
def test_what_could_not_be_read_back_is_refused_when_it_is_saved(
    bad: object, named: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=named):
        checkpoint.save(tmp_path, RUN, {"a": [0, bad]}, 1)
    assert list(tmp_path.iterdir()) == []


def save_with_little_room(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        checkpoint.save(folder, RUN, {"weights": torch.zeros(100_000)}, 2)
    except OSError as error:
        os._exit(7 if "epoch-00002.pt cannot be written" in str(error) and "intact" in str(error) else 1)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, RUN, state(1), 1)
    process = fork.Process(target=save_with_little_room, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 7
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00001.pt"]
    assert_same(checkpoint.latest(tmp_path, RUN), state(1))


def save_for_ever(folder: Path, saved: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    for epoch in range(1_000_000):
        checkpoint.save(folder, RUN, {"epoch": epoch, "weights": torch.full((200_000,), float(epoch))}, epoch)
        saved.send(epoch)


@pytest.mark.parametrize("epochs", [1, 4, 9])
def test_kill_9_while_saving_loses_nothing_that_was_saved(
    epochs: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=save_for_ever, args=(tmp_path, sender))
    process.start()
    while receiver.recv() < epochs:
        pass
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    sender.close()
    last = epochs
    with contextlib.suppress(EOFError):
        while True:
            last = receiver.recv()
    found = checkpoint.latest(tmp_path, RUN)
    assert found is not None
    assert found["epoch"] in (last, last + 1)
    assert torch.equal(found["weights"], torch.full((200_000,), float(found["epoch"])))
    assert caplog.text == ""
    checkpoint.save(tmp_path, RUN, state(10**6), 10**6, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-1000000.pt"]


ENCODER = {
    "backbone.weight": torch.arange(12.0).reshape(3, 4),
    "backbone.steps": torch.tensor(5),
    "projector.bias": torch.ones(2).bfloat16(),
}


def test_an_encoder_comes_back_with_its_values(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(4, 3)
    tensors = ENCODER | {"a": shared, "b": shared, "c": shared.T}
    path = checkpoint.save_encoder(tmp_path / "new" / "encoder.safetensors", tensors, spec_id="0123456789ab")
    assert_same(
        dict(sorted(checkpoint.load_encoder(path, spec_id="0123456789ab").items())),
        dict(sorted(tensors.items())),
    )
    assert [file.name for file in path.parent.iterdir()] == ["encoder.safetensors"]


def test_an_encoder_of_another_run_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save_encoder(tmp_path / "encoder.safetensors", ENCODER, spec_id="0123456789ab")
    with pytest.raises(ValueError, match="from run 0123456789ab, but run ba9876543210's is expected"):
        checkpoint.load_encoder(path, spec_id="ba9876543210")


@pytest.mark.parametrize("how", ["flipped bit of a weight", "cut short", "empty"])
def test_a_damaged_encoder_is_refused(how: str, tmp_path: Path) -> None:
    path = checkpoint.save_encoder(tmp_path / "encoder.safetensors", ENCODER, spec_id="0123456789ab")
    damage(path, how)
    with pytest.raises(ValueError, match=r"encoder\.safetensors is broken"):
        checkpoint.load_encoder(path, spec_id="0123456789ab")


def test_an_absent_encoder_says_which_run_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="0123456789ab has not finished on this machine"):
        checkpoint.load_encoder(tmp_path / "encoder.safetensors", spec_id="0123456789ab")


def test_an_encoder_s_digest_depends_on_values_names_types_and_shapes() -> None:
    one = torch.tensor([[1.0, 2.0]])
    variants = [
        {"a": one},
        {"b": one},
        {"a": one.T},
        {"a": one.half()},
        {"a": one + 1},
        {"a": one.view(torch.int32)},
    ]
    assert len({checkpoint.digest(tensors) for tensors in variants}) == len(variants)
    assert checkpoint.digest({"a": one, "b": one.T}) == checkpoint.digest(
        {"b": one.T.contiguous(), "a": one.clone()}
    )
