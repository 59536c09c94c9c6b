"""Files of weights: those that are read, extras included, and what every other file is called."""

from __future__ import annotations

import argparse
import bz2
import collections
import datetime
import enum
import gzip
import io
import json
import lzma
import pathlib
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reproduce.messages import InvalidError
from reproduce.nn import backbones, weight_files
from reproduce.nn.weight_formats import EXTRAS, Extra, folder_kind, read
from reproduce.runs import zips

VALUES = torch.arange(6.0).reshape(2, 3)


def saved(content: object, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


class Unknown:
    """A class that no list contains."""


class Phase(enum.Enum):
    TRAIN = 1


def module_of(name: str, **classes: type) -> types.ModuleType:
    """Return a module in which a pickle finds its classes: the library itself may not be installed."""
    module = types.ModuleType(name)
    for key, each in classes.items():
        each.__module__, each.__qualname__ = name, key
        setattr(module, key, each)
    return module


# Objects that are saved next to the weights

HARMLESS: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.03, milestones=[1, 2], path=pathlib.Path("/data")),
    "numpy scalars": {"best": np.float64(71.2), "epoch": np.int64(3), "done": np.bool_(True)},
    "numpy arrays": {"history": np.arange(4.0), "state": ("MT19937", np.arange(3, dtype=np.uint32))},
    "numpy types": [np.float32, np.dtype("int64")],
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("c"), pathlib.PureWindowsPath("C:/d")],
    "collections": [
        collections.OrderedDict(a=1),
        collections.Counter("aab"),
        collections.defaultdict(list, a=[1]),
        collections.deque([1, 2], maxlen=5),
    ],
    "torch": [torch.float16, torch.Size([2]), torch.device("cpu"), torch.__version__],
    "times": [datetime.datetime(2024, 1, 2), datetime.timedelta(seconds=3), datetime.date(2024, 1, 2)],
    "others": [types.SimpleNamespace(a=1), {1, 2}, frozenset(), slice(1, 2), 1 + 2j, b"bytes", 10**30, None],
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("extra", list(HARMLESS))
def test_weights_are_read_next_to_harmless_objects(extra: str, legacy: bool, tmp_path: Path) -> None:
    content = {"args": HARMLESS[extra], "state_dict": {"a": VALUES}, "after": 1}
    path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert torch.equal(read(path)["state_dict.a"], VALUES)


def test_settings_of_libraries_that_are_not_installed_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = type("AttributeDict", (dict,), {})
    config = type("DictConfig", (), {})
    parsing = module_of("pytorch_lightning.utilities.parsing", AttributeDict=attributes)
    dictconfig = module_of("omegaconf.dictconfig", DictConfig=config)
    for module in (parsing, dictconfig):
        parts = module.__name__.split(".")
        for end in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType("package"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    omega = config()
    omega.__dict__.update(_content={"lr": 0.1}, _parent=None)
    path = saved(
        {"hyper_parameters": attributes(lr=0.1, cfg=omega), "state_dict": {"a": VALUES}}, tmp_path / "x.ckpt"
    )
    monkeypatch.undo()
    assert list(read(path)) == ["state_dict.a"]


def test_a_stand_in_keeps_nothing_and_calls_nothing() -> None:
    extra = Extra(print, "x", key=1)
    extra.__setstate__({"a": 1})
    assert vars(extra) == {}
    names = [name for each in EXTRAS.values() for name in each]
    assert len(set(names)) == len(names)
    harmful = ("eval", "exec", "getattr", "import", "open", "system", "compile", "apply", "reduce")
    assert not [name for name in names for word in harmful if word in name.rpartition(".")[2]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (Unknown(), r"contains test_weight_formats\.Unknown, which cannot be read without executing code"),
        (Phase.TRAIN, r"contains test_weight_formats\.Phase, which cannot"),
        (print, r"contains print, which cannot"),
        (torch.nn.Linear(2, 2), r"contains torch\.nn\.modules\.linear\.Linear, which cannot"),
    ],
    ids=["class", "enum", "function", "model"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_any_other_object_is_named_and_nobody_is_told_to_run_it(
    content: object, says: str, legacy: bool, tmp_path: Path
) -> None:
    path = saved(
        {"extra": content, "a": VALUES}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(ValueError, match=says) as refused:
        read(path)
    assert "weights_only" not in str(refused.value)
    assert "torch.save(model.state_dict(), FILE)" in str(refused.value)
    assert str(refused.value).isprintable()


# What a file is


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def in_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(saved({"a": VALUES}, path.parent / "inner.pth"), "checkpoint.pth")
    return path


def in_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


def scripted(path: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):  # deprecated, and still around
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    return path


def half(path: Path) -> Path:
    whole = saved({"a": torch.ones(1000)}, path).read_bytes()
    return written(path, whole[: len(whole) // 2])


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102400\n"
INDEX = json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
MODEL = pickle.dumps({"model": {"a": np.ones(2)}, "__author__": "x"})

KINDS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "lfs": ("x.pth", lambda p: written(p, POINTER), r"is a Git LFS pointer, .* `git lfs pull`"),
    "annex": ("x.pth", lambda p: written(p, b"/annex/objects/MD5-s1--x\n"), "is a git-annex pointer, "),
    "readme": ("x.pth", lambda p: written(p, b"# My model\n\nhello"), "is a text, .* with '# My model'"),
    "latin": ("x.txt", lambda p: written(p, "Größe λ\n".encode() * 900), "is a text, .* with 'Größe λ'"),
    "page": ("x.pth", lambda p: written(p, b"\n<!DOCTYPE html>"), "is a web page, not a file of weights"),
    "json": ("x.json", lambda p: written(p, b'{"a": 1}'), "is JSON, not a file of weights"),
    "index": ("x.json", lambda p: written(p, INDEX), "is the index of a checkpoint in several files"),
    "empty": ("x.pth", lambda p: written(p, b""), "is empty"),
    "gzip": ("x.pth.gz", lambda p: written(p, gzip.compress(MODEL)), "is compressed by gzip: .*`gunzip`"),
    "bzip2": ("x.bz2", lambda p: written(p, bz2.compress(MODEL)), "is compressed by bzip2: "),
    "xz": ("x.xz", lambda p: written(p, lzma.compress(MODEL)), "is compressed by xz: "),
    "tar": ("x.pth.tar", in_tar, r"is a tar archive: unpack it with `tar xf`"),
    "pickle": ("x.pkl", lambda p: written(p, MODEL), "is a plain pickle, such as those of Detectron2's"),
    "script": ("x.pt", scripted, r"is a TorchScript program, .* torch\.jit\.load"),
    "export": ("x.pt2", lambda p: in_zip(p, "m/archive_format"), r"is a program of torch\.export"),
    "npz": ("x.npz", lambda p: (np.savez(p, a=np.ones(2)), p)[1], r"is an archive of NumPy arrays \(\.npz\)"),
    "npy": ("x.npy", lambda p: (np.save(p, np.ones(2)), p)[1], "is a NumPy array"),
    "keras": ("x.keras", lambda p: in_zip(p, "config.json", "model.weights.h5"), "is a model of Keras"),
    "hdf5": ("x.h5", lambda p: written(p, b"\x89HDF\r\n\x1a\n" + bytes(99)), "is an HDF5 file"),
    "onnx": ("x.bin", lambda p: written(p, b"\x08\x08\x12\x07pytorch\x1a\x052.0.0"), "is an ONNX model"),
    "flax": ("x.msgpack", lambda p: written(p, b"\x81\xa6params\x81\xa6conv_1\x81"), "is a msgpack file"),
    "zip": ("x.zip", lambda p: in_zip(p, "README.md"), r"is an archive with 0 files of weights \(none\)"),
    "cut": ("x.pth", half, "is broken, because its end is missing"),
    "cut early": ("x.pth", lambda p: written(p, b"PK\x03"), "is broken, because its end is missing"),
    "noise": ("x.pth", lambda p: written(p, bytes(range(200, 256))), "begins with the bytes c8 c9 ca cb cc"),
    "arrays": (
        "x.pth",
        lambda p: saved({"model": {"a": np.ones(2)}}, p),
        "contains objects that are not tensors, such as NumPy arrays",
    ),
    "list": ("x.pth", lambda p: saved([VALUES], p), "contains a list of tensors without names"),
    "numbers": ("x.pth", lambda p: saved({"epoch": 3}, p), "contains a dict without tensors"),
    "twice": (
        "x.pth",
        lambda p: saved({"a.b": VALUES, "a": {"b": VALUES + 1}}, p),
        r"contains two tensors with the name a\.b",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_called_what_it_is(kind: str, tmp_path: Path) -> None:
    name, make, says = KINDS[kind]
    with pytest.raises(ValueError, match=says) as refused:
        read(make(tmp_path / name))
    assert str(refused.value).isprintable()
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (".metadata", r"is a folder, a checkpoint of torch\.distributed: .* dcp_to_torch FOLDER FILE"),
        ("saved_model.pb", "is a folder, a SavedModel of TensorFlow"),
        ("model.safetensors", r"is a folder, a model of Hugging Face: pass model\.safetensors in it"),
        ("notes.txt", "is a folder: pass the file of weights in it"),
    ],
)
def test_a_folder_is_called_what_it_is(file: str, says: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    with pytest.raises(ValueError, match=says):
        weight_files.describe(tmp_path)
    assert folder_kind(tmp_path).startswith("is a folder")


@pytest.mark.parametrize("length", [0x8B1F, 0x280, 0xA681, 0x6342 + 0x10000])
def test_safetensors_are_known_by_their_form_whatever_their_first_bytes_look_like(
    length: int, tmp_path: Path
) -> None:
    """The header's length is made of the bytes with which gzip, a pickle or msgpack begin."""
    path = tmp_path / "x.safetensors"
    save_file({"a": VALUES}, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + size].ljust(length), content[8 + size :]
    written(path, length.to_bytes(8, "little") + header + tensors)
    assert torch.equal(read(path)["a"], VALUES)


@pytest.mark.slow
def test_a_checkpoint_of_torch_distributed_is_read_after_the_advised_conversion(tmp_path: Path) -> None:
    """The advice works."""
    import torch.distributed.checkpoint as dcp

    network = backbones.build("small", seed=0)
    with warnings.catch_warnings(action="ignore"):  # one process
        dcp.save(network.state_dict(), checkpoint_id=tmp_path / "dcp")
    advised = folder_kind(tmp_path / "dcp").split("`")[1]
    command = (
        advised.replace("FOLDER", str(tmp_path / "dcp")).replace("FILE", str(tmp_path / "x.pth")).split()
    )
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    assert weight_files.describe(tmp_path / "x.pth").backbone == "small"


def test_tensors_are_found_in_nested_dicts_and_in_lists_of_dicts(tmp_path: Path) -> None:
    content = {"models": [{"a": VALUES}, {"a": VALUES + 1, "n": 3}], "b": {"c": {0: VALUES}}, "d": [VALUES]}
    tensors = read(saved(content, tmp_path / "x.pth"))
    assert list(tensors) == ["models.0.a", "models.1.a", "b.c.0"]
    assert torch.equal(tensors["models.1.a"], VALUES + 1)


# Small files that stand for a lot


def nested(value: object, num_keys: int, levels: int) -> dict[str, Any]:
    """Return dicts in each other, each of which contains the one below it `num_keys` times."""
    found = {"a": value}
    for _ in range(levels):
        found = {str(number): found for number in range(num_keys)}
    return found


def test_a_dict_at_several_places_counts_at_each_of_them_until_there_are_too_many(tmp_path: Path) -> None:
    """Thirty levels of two stand for 2^30 tensors, and of twenty for more than there are atoms."""
    shared = {"a": VALUES}
    assert list(read(saved({"online": shared, "target": shared}, tmp_path / "x.pth"))) == [
        "online.a",
        "target.a",
    ]
    assert len(read(saved(nested(VALUES, 2, 9), tmp_path / "x.pth"))) == 2**9
    with pytest.raises(InvalidError, match=r"contains a dict without tensors"):  # they are too deep
        read(saved(nested(VALUES, 2, 30), tmp_path / "x.pth"))
    for leaf in (VALUES, 3):
        with pytest.raises(
            InvalidError, match=r"more than 100 000 tensors and dicts.*\.state_dict\(\), FILE"
        ):
            read(saved(nested(leaf, 20, 30), tmp_path / "x.pth"))


def test_a_name_has_a_maximum_length_and_a_composed_key_is_not_written_out(tmp_path: Path) -> None:
    long = "k" * 300
    with pytest.raises(InvalidError, match=r"a name of more than 1000 characters, (k{100}\.\.\.):"):
        read(saved({long: {long: {long: {long: VALUES}}}}, tmp_path / "x.pth"))
    pair: tuple[Any, ...] = ()
    for _ in range(18):
        pair = (pair, pair)
    assert list(read(saved({pair: {"a": VALUES}, 10**100: VALUES}, tmp_path / "x.pth"))) == [
        "tuple.a",
        "int",
    ]


def test_a_tensor_that_repeats_its_values_to_any_size_is_not_compared(tmp_path: Path) -> None:
    endless = torch.ones(1).expand(10**7, 10**7)
    with pytest.raises(InvalidError, match=r"two tensors with the name a\.b"):
        read(saved({"a.b": endless, "a": {"b": torch.ones(1).expand(10**7, 10**7)}}, tmp_path / "x.pth"))
    assert list(read(saved({"a.b": endless, "a": {"b": endless}}, tmp_path / "x.pth"))) == ["a.b"]


def with_size(path: Path, size: int) -> Path:
    """Change the size of the last file in a zip's directory, where readers look it up."""
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24
    content[place : place + 4] = size.to_bytes(4, "little")
    return written(path, content)


def zeros(path: Path, name: str, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip with 30 MB of zeros, which take 30 kB."""
    with zipfile.ZipFile(path, "w", method) as archive, archive.open(name, "w") as file:
        for _ in range(30):
            file.write(bytes(1_000_000))
    return path


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "x/data.pkl"])
def test_an_archive_that_unpacks_to_gigabytes_is_refused_by_its_directory(name: str, tmp_path: Path) -> None:
    path = with_size(in_zip(tmp_path / "x.pth", name), 4_000_000_000)
    with pytest.raises(
        InvalidError, match=r"is broken \(its 1\d\d B unpack to 4 GB\): copy or download it again"
    ):
        read(path)


def test_an_archive_is_not_unpacked_further_than_its_directory_states(tmp_path: Path) -> None:
    path = with_size(zeros(tmp_path / "x.zip", "weights.pth"), 1_000)
    tracemalloc.start()
    with pytest.raises(InvalidError, match=r"cannot be unpacked \(Bad CRC-32 for file 'weights\.pth'\)"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    with pytest.raises(InvalidError, match=r"is broken \(it uses the compression method 12\)"):
        read(zeros(path, "weights.pth", zipfile.ZIP_BZIP2))


def test_the_directory_of_an_archive_has_a_maximum_size(tmp_path: Path) -> None:
    path = in_zip(tmp_path / "x.zip", *map(str, range(100)))
    with zips.opened(path, most=100) as archive:
        assert len(archive.namelist()) == 100
    with pytest.raises(zipfile.BadZipFile, match=r"its directory has 4\.79 kB, more than that of 10 files"):
        zips.opened(path, most=10)


def test_numpy_arrays_are_recognised_when_they_are_saved_by_torch() -> None:
    stream = io.BytesIO()
    torch.save(np.ones(2), stream)
    assert stream.getvalue()[:2] == b"PK"


def test_the_tensors_of_safetensors_have_one_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    names = [f"{number:02}.weight" for number in range(30)]
    save_file({name: torch.zeros(2) for name in reversed(names)}, path)
    assert list(read(path)) == names
