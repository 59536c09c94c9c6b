"""Checkpoints that are damaged, truncated, killed while being written, or written to a full disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from waiting import joined, received

from reproduce.runs import checkpoint, encoder_file

RUN, OTHER = "0123456789ab", "ba9876543210"
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


def test_the_checkpoint_of_another_run_is_not_used_and_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = checkpoint.save(tmp_path, OTHER, state(9), 9).read_bytes()
    checkpoint.save(tmp_path, OTHER, state(10), 10, step=1, steps=2)
    assert checkpoint.latest(tmp_path, RUN) is None
    assert checkpoint.newest(tmp_path, RUN) == 0
    assert (checkpoint.newest(tmp_path, OTHER), checkpoint.owner(tmp_path / "epoch-00009.pt")) == (
        10.5,
        OTHER,
    )
    assert f"epoch-00009.pt is run {OTHER}'s, not run {RUN}'s: it is not used" in caplog.text
    for epoch in (1, 2, 3, 9):
        checkpoint.save(tmp_path, RUN, state(epoch), epoch)
    assert {path.name for path in tmp_path.iterdir()} == {
        "epoch-00003.pt",
        "epoch-00009.pt",
        f"epoch-00009.pt.of-{OTHER}",
        "epoch-00010-step-000001-of-000002.pt",
    }
    assert_same(checkpoint.latest(tmp_path, RUN), state(9))
    assert (tmp_path / f"epoch-00009.pt.of-{OTHER}").read_bytes() == theirs
    checkpoint.discard(tmp_path, RUN)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"epoch-00009.pt.of-{OTHER}", "epoch-00010-step-000001-of-000002.pt"}
    assert {path.name for path in checkpoint.leftovers(tmp_path)} == left


def test_a_checkpoint_that_names_no_run_is_not_continued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an older version wrote it: the output of `torch.save` and its digest."""
    buffer = io.BytesIO()
    torch.save(state(5), buffer)
    content = buffer.getvalue()
    (tmp_path / "epoch-00005.pt").write_bytes(content + hashlib.sha256(content).digest())
    assert checkpoint.latest(tmp_path, RUN) is None
    assert "epoch-00005.pt names no run, as an older version wrote it: it is not used" in caplog.text
    assert (checkpoint.newest(tmp_path, RUN), checkpoint.newest(tmp_path, "")) == (0, 0)
    checkpoint.save(tmp_path, RUN, state(1), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-00001.pt"]


def test_what_is_not_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "epoch-00003.pt")
    (tmp_path / "epoch-00004.pt").mkdir()
    (tmp_path / "epoch-00005-step-000001-of-000000.pt").touch()
    assert checkpoint.latest(tmp_path, RUN) is None
    assert checkpoint.newest(tmp_path, RUN) == 0
    assert not checkpoint.usable(tmp_path / "epoch-00003.pt", RUN)


def test_a_file_of_another_library_is_sealed_and_still_read_by_it(tmp_path: Path) -> None:
    path = tmp_path / "model_0000001.pth"
    torch.save(STATE, path)
    assert checkpoint.owner(path) is None
    checkpoint.seal(path, RUN)
    assert (checkpoint.usable(path, RUN), checkpoint.usable(path, OTHER)) == (True, False)
    assert_same(torch.load(path, weights_only=True), STATE)
    damage(path, "cut short")
    assert not checkpoint.usable(path, RUN)


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
    while received(receiver) < epochs:
        pass
    os.kill(process.pid or 0, signal.SIGKILL)
    joined(process)
    sender.close()
    last = epochs
    with contextlib.suppress(EOFError):
        while True:
            last = received(receiver)
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
    path = encoder_file.save(tmp_path / "new" / "encoder.safetensors", tensors, spec_id="0123456789ab")
    assert_same(
        dict(sorted(encoder_file.load(path, spec_id="0123456789ab").items())),
        dict(sorted(tensors.items())),
    )
    assert [file.name for file in path.parent.iterdir()] == ["encoder.safetensors"]


def write_encoder(path: Path, order: int) -> None:
    """Write the same tensors in another order and in another layout in memory."""
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    tensors = ENCODER | {"image": image.contiguous(memory_format=torch.channels_last) if order < 0 else image}
    encoder_file.save(path, dict(list(tensors.items())[::order]), spec_id=RUN)


def test_the_same_tensors_are_the_same_bytes_in_any_order_and_in_any_process(tmp_path: Path) -> None:
    write_encoder(tmp_path / "here", 1)
    write_encoder(tmp_path / "again", -1)
    code = "import sys, test_checkpoint as t; t.write_encoder(t.Path(sys.argv[1]), -1)"
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True)
    assert len({(tmp_path / name).read_bytes() for name in ("here", "again", "there")}) == 1
    header = (tmp_path / "here").read_bytes()[8:400]
    assert header.startswith(b'{"__metadata__":{"sha256":"')
    assert load_file(tmp_path / "here").keys() == {*ENCODER, "image"}, "the library reads it, too"


def test_an_encoder_of_another_run_is_refused(tmp_path: Path) -> None:
    path = encoder_file.save(tmp_path / "encoder.safetensors", ENCODER, spec_id="0123456789ab")
    with pytest.raises(ValueError, match="it is the encoder of run 0123456789ab"):
        encoder_file.load(path, spec_id="ba9876543210")


@pytest.mark.parametrize("how", ["flipped bit of a weight", "cut short", "empty"])
def test_a_damaged_encoder_is_refused(how: str, tmp_path: Path) -> None:
    path = encoder_file.save(tmp_path / "encoder.safetensors", ENCODER, spec_id="0123456789ab")
    damage(path, how)
    with pytest.raises(ValueError, match=r"encoder\.safetensors cannot be used, because it"):
        encoder_file.load(path, spec_id="0123456789ab")


def test_an_absent_encoder_says_which_run_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="0123456789ab has not finished on this machine"):
        encoder_file.load(tmp_path / "encoder.safetensors", spec_id="0123456789ab")


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
    assert len({encoder_file.digest(tensors) for tensors in variants}) == len(variants)
    assert encoder_file.digest({"a": one, "b": one.T}) == encoder_file.digest(
        {"b": one.T.contiguous(), "a": one.clone()}
    )
