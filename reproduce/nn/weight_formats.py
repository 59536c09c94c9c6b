"""The tensors of a file of weights, or one line that says what the file is instead.

    read(path)      # tensors by their dotted names; from torch.save, safetensors, or a zip with one of them

`torch.load` with `weights_only=True` or safetensors reads the tensors. Objects that are often saved
with them, such as an `argparse.Namespace` or a NumPy scalar, are replaced by an empty `Extra` (EXTRAS).
Nothing else is ever unpickled, and no code of a file is executed.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from reproduce.lazy import torch
from reproduce.messages import InvalidError, grouped
from reproduce.runs import kinds, zips

if TYPE_CHECKING:
    from torch import Tensor

HEAD = 4096
"""Bytes at the beginning of a file that tell its kind."""
ARCHIVED = (".pth", ".pt", ".tar", ".torch", ".ckpt", ".safetensors")
"""Extensions that identify the file of weights in a zip archive."""
DEPTH = 10
"""Maximum depth of nested dicts that are searched for tensors."""
MOST_VISITED = 100_000
"""Maximum number of tensors and dicts that are visited. One that a file contains at several places counts at
each, so a few dicts that contain each other could stand for any number."""
LONGEST_PATH = 1_000
"""Maximum number of characters of a tensor's name with those of the dicts around it."""
MOST_FILES = 200_000
"""Maximum number of files in a zip archive; torch.save writes one for each tensor."""
SHOWN = 3
"""Maximum number of names that a message lists."""
LONGEST_NAME = 100
"""Maximum number of characters of a name in a message."""
TORCH_PICKLE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Beginning of a file that torch.save wrote before 1.6 (torch/serialization.py, MAGIC_NUMBER)."""
ZIP = b"PK\x03\x04"
"""Beginning of a zip archive, which torch.save writes since 1.6."""
CUT = "is broken, because its end is missing: copy or download it again"
STATE_DICT = "save its state dict with torch.save(model.state_dict(), FILE) where its code is installed"

OTHER_STARTS: Mapping[bytes, tuple[str, str]] = {
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as Keras writes", "convert its arrays to a state dict of torch"),
    b"\x93NUMPY": ("a NumPy array", "convert the arrays of the network to a state dict of torch"),
    b"GGUF": ("a GGUF file of a language model", "a ResNet is needed"),
    b"\x89PNG": ("a PNG image", "pass a file of weights"),
    b"\xff\xd8\xff": ("a JPEG image", "pass a file of weights"),
    b"%PDF": ("a PDF document", "pass a file of weights"),
}
"""Kinds of files by their first bytes, each with what would work, next to those of `runs/kinds.py`."""
FOLDERS: Mapping[str, tuple[str, str]] = {
    ".metadata": (
        "a checkpoint of torch.distributed",
        "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE` converts it",
    ),
    "saved_model.pb": ("a SavedModel of TensorFlow", "convert its arrays to a state dict of torch"),
    "_METADATA": ("a checkpoint of JAX (Orbax)", "convert its arrays to a state dict of torch"),
    "model.safetensors": ("a model of Hugging Face", "pass model.safetensors in it"),
    "pytorch_model.bin": ("a model of Hugging Face", "pass pytorch_model.bin in it"),
}
"""Kinds of folders by a file in them, each with what would work."""


class Extra:
    """Stand-in for an object next to the weights; it takes what the pickle gives it and keeps nothing."""

    def __new__(cls, *values: object, **named: object) -> Extra:
        return super().__new__(cls)

    def __init__(self, *values: object, **named: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _mapping(*values: object) -> OrderedDict[str, Any]:
    """Return an empty dict, in place of one that is created by a call."""
    return OrderedDict()


def _list(*values: object) -> list[Any]:
    """Return an empty list, in place of a sequence that is created by a call."""
    return []


EXTRAS: Mapping[Callable[..., Any], tuple[str, ...]] = {
    Extra: (
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"builtins.{name}" for name in ("bool", "dict", "float", "frozenset", "int")),
        *(f"builtins.{name}" for name in ("list", "object", "range", "slice", "str", "tuple")),
        *(
            f"{package}.multiarray.{name}"
            for package in ("numpy.core", "numpy._core")
            for name in ("scalar", "_reconstruct")
        ),
        *(f"numpy.{name}" for name in ("dtype", "ndarray", "bool", "bool_")),
        *(f"numpy.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
        *(f"numpy.float{bits}" for bits in (16, 32, 64)),
        *(
            f"pathlib{inner}.{kind}"
            for inner in ("", "._local")
            for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        ),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        "decimal.Decimal",
        "fractions.Fraction",
        "torch.torch_version.TorchVersion",
        "typing.Any",
        "uuid.UUID",
        *(f"omegaconf.{kind}config.{kind.title()}Config" for kind in ("dict", "list")),
        *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
        *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
    ),
    OrderedDict: (
        "easydict.EasyDict",
        "fvcore.common.config.CfgNode",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "yacs.config.CfgNode",
    ),
    _mapping: ("collections.defaultdict",),
    _list: ("collections.deque",),
}
"""Objects of these names are replaced: by an empty `Extra`, or by a dict or list that keeps its items."""


def read(path: Path, shown: str = "") -> dict[str, Tensor]:
    """Read all tensors of a file to the CPU, by their dotted names through nested dicts.

    The file may have one of torch's formats or be safetensors, or be a zip archive with one such file.

    Args:
        shown: name of the file in messages. Empty for its path.

    Raises:
        ValueError: the file is broken or contains something else. The message says what it is.
    """
    shown = shown or str(path)
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(0)
        if problem := _other_kind(head, path.suffix.lower()):
            raise InvalidError(f"{shown} {problem}.")
        content: BinaryIO = file
        if head.startswith(ZIP):
            content = _from_zip(file, shown)
        content.seek(0)
        try:
            state = _deserialised(content)
        except Exception as error:  # a broken file may raise anything
            raise InvalidError(_read_failure(error, shown)) from None
    tensors: dict[str, Tensor] = {}
    for name, value in _leaves(state, shown):
        if not isinstance(value, torch.Tensor):
            continue
        if name in tensors and not _same(tensors[name], value):
            raise InvalidError(f"{shown} contains two tensors with the name {printable(name)}.")
        tensors[name] = value
    if not tensors:
        raise InvalidError(_without_tensors(state, shown))
    return tensors


def folder_kind(path: Path) -> str:
    """Return what a folder is, and what would work, as the rest of a sentence."""
    for name, (kind, remedy) in FOLDERS.items():
        if (path / name).exists():
            return f"is a folder, {kind}: {remedy}"
    return "is a folder: pass the file of weights in it"


def listed(names: Iterable[str], count: int = SHOWN) -> str:
    """Return the first few names and how many more there are, or `none`."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(printable, names[:count])) + more or "none"


def printable(name: str) -> str:
    """Return a name from a file, fit for one line of a terminal."""
    shown = name if name.isprintable() else repr(name)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[:LONGEST_NAME]}..."


def _other_kind(head: bytes, suffix: str) -> str:
    """Return what a file is and what would work, or "" if its first bytes are those of weights."""
    if not head:
        return "is empty: a file of weights is expected"
    if _is_safetensors(head) or head.startswith((ZIP, TORCH_PICKLE)):
        return ""  # the length at the beginning of safetensors may look like any other beginning
    if ZIP.startswith(head) or TORCH_PICKLE.startswith(head):
        return CUT
    if found := kinds.by_content(head) or kinds.by_content(head, OTHER_STARTS):
        return f"is {': '.join(found)}"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it with `tar xf`, and pass the file of weights in it"
    if _is_text(head):
        return _text_kind(head.decode(errors="replace"))
    if head[4:8] == b"TFL3":
        return "is a model of TensorFlow Lite: convert its arrays to a state dict of torch"
    # A protobuf with the version of the format, then the producer (onnx/onnx.proto, ModelProto).
    if suffix == ".onnx" or (head[:1] == b"\x08" and re.match(rb"..\x12.[a-z]", head, re.DOTALL)):
        return "is an ONNX model: export the state dict of the network that it was made from"
    if suffix == ".pb":
        return "is a graph of TensorFlow: convert its arrays to a state dict of torch"
    if re.match(rb"[\x81-\x8f\xde\xdf].{0,4}?[\xa1-\xbf\xd9][\w/]", head, re.DOTALL):
        return "is a msgpack file, as Flax writes: convert its arrays to a state dict of torch"
    if re.match(rb"\x80[\x02-\x05]", head):
        return (
            "is a plain pickle, such as those of Detectron2's model zoo, and a pickle can execute code: "
            "convert it with the tools of its project to a state dict that torch.save or safetensors writes"
        )
    return f"is not a file of torch.save or safetensors; it begins with the bytes {head[:8].hex(' ')}"


def _is_safetensors(head: bytes) -> bool:
    """Return True if a file begins as safetensors: a length of 8 bytes, then JSON."""
    return head[8:9] == b"{" and head[5:8] == bytes(3)


def _is_text(head: bytes) -> bool:
    """Return True if the beginning of a file is printable text."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else the head ends within a character
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)


def _text_kind(text: str) -> str:
    """Return what a text is and what would work."""
    start = text.lstrip()
    if start[:1] == "<":
        return "is a web page, not a file of weights: open it in a browser to find out more"
    if start[:1] in ("{", "["):
        if '"weight_map"' in text:
            return "is the index of a checkpoint in several files: save their tensors to one file"
        return "is JSON, not a file of weights"
    line = next(iter(start.splitlines()), "")
    return f"is a text, not a file of weights; it begins with '{line[:60]}'"


def _from_zip(file: BinaryIO, shown: str) -> BinaryIO:
    """Return the stream of torch's format or of safetensors: the zip file itself, or the only one in it.

    Raises:
        ValueError: the file is cut short, is another kind of zip archive, or contains none or several.
    """
    if not zipfile.is_zipfile(file):
        raise InvalidError(f"{shown} {CUT}.")
    try:
        archive = zips.opened(file, most=MOST_FILES)
        zips.check_inflated(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        reason = printable(str(error))
        raise InvalidError(f"{shown} is broken ({reason}): copy or download it again.") from None
    with archive:
        names = archive.namelist()
        ends = {name.rpartition("/")[2] for name in names}
        if "constants.pkl" in ends:
            raise InvalidError(
                f"{shown} is a TorchScript program, which contains code: load it with torch.jit.load where "
                "it was made, and save its state dict with torch.save(program.state_dict(), FILE)."
            )
        if "data.pkl" in ends:
            return file
        if any(name.startswith("serialized_exported_program") for name in ends) or "archive_format" in ends:
            raise InvalidError(f"{shown} is a program of torch.export: {STATE_DICT}.")
        if any(name.endswith(".npy") for name in names):
            raise InvalidError(
                f"{shown} is an archive of NumPy arrays (.npz): convert them to a state dict of torch."
            )
        if "model.weights.h5" in ends:
            raise InvalidError(f"{shown} is a model of Keras: convert its arrays to a state dict of torch.")
        found = [name for name in names if name.endswith(ARCHIVED) and not name.startswith("__MACOSX")]
        if len(found) != 1:
            raise InvalidError(
                f"{shown} is an archive with {len(found)} files of weights ({listed(found)}): "
                "unpack it and pass one of them."
            )
        try:
            return io.BytesIO(zips.read(archive, found[0]))
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            EOFError,
            OSError,
        ) as error:
            raise InvalidError(
                f"{shown} cannot be unpacked ({printable(str(error))}): unpack it, and pass the file."
            ) from None


def _deserialised(content: BinaryIO) -> Any:
    """Return the content of a stream in one of torch's formats or in safetensors."""
    head = content.read(9)
    content.seek(0)
    if _is_safetensors(head):
        from safetensors.torch import load as deserialise

        return dict(sorted(deserialise(content.read()).items()))  # its order differs from call to call
    replaced: list[Any] = [(instead, name) for instead, names in EXTRAS.items() for name in names]
    with (
        warnings.catch_warnings(action="ignore"),  # about old formats, which torch reads anyway
        torch.serialization.safe_globals(replaced),
    ):
        return torch.load(content, map_location="cpu", weights_only=True)


def _read_failure(error: Exception, shown: str) -> str:
    """Return the error of a reader of files as one line."""
    text = str(error)
    if code := re.search(r"GLOBAL ([\w.]+)", text):
        found = printable(code[1])
        return (
            f"{shown} contains {found}, which cannot be read without executing code; only tensors and plain "
            f"settings are read. If it is a whole model, {STATE_DICT}; else save the tensors without it."
        )
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        return (
            f"{shown} contains objects that cannot be read without executing code, or it is broken; only "
            f"tensors and plain settings are read. If it is a whole model, {STATE_DICT}."
        )
    reason = printable(text.strip().partition("\n")[0])
    return f"{shown} is broken or not a file of weights ({type(error).__name__}: {reason})."


def _without_tensors(state: object, shown: str) -> str:
    """Return one line for a file without named tensors."""
    if isinstance(state, list | tuple) and any(isinstance(value, torch.Tensor) for value in state):
        return f"{shown} contains a {type(state).__name__} of tensors without names: {STATE_DICT}."
    if isinstance(state, Mapping) and any(isinstance(value, Extra) for _, value in _leaves(state, shown)):
        kinds = "objects that are not tensors, such as NumPy arrays"
        return f"{shown} contains {kinds}: convert the arrays of the network to a state dict of torch."
    return (
        f"{shown} contains a {type(state).__name__} without tensors: a state dict, or a dict that contains "
        "one, is expected."
    )


def _same(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors have the same values; False if one repeats its values to any size."""
    if one is other:
        return True
    stored = all(
        each.layout == torch.strided
        and not each.is_meta
        and each.numel() * each.element_size() <= each.untyped_storage().nbytes()
        for each in (one, other)
    )
    return stored and torch.equal(one, other)


def _leaves(state: object, shown: str) -> Iterator[tuple[str, object]]:
    """Yield the tensors and the stand-ins in nested dicts, and in lists of dicts, with their dotted names.

    Raises:
        ValueError: the file contains too many of them, or one with too long a name.
    """
    visited = 0
    kept: dict[int, list[tuple[str, object]]] = {}
    pending: list[tuple[str, object, int]] = [("", state, 0)]
    while pending:
        path, value, depth = pending.pop()
        if isinstance(value, torch.Tensor | Extra):
            yield path, value
            continue
        if isinstance(value, Mapping) and depth >= DEPTH:
            continue
        if id(value) not in kept:
            kept[id(value)] = _children(value)
        visited += len(kept[id(value)])
        if visited > MOST_VISITED:
            raise InvalidError(
                f"{shown} contains more than {grouped(MOST_VISITED)} tensors and dicts, counted at each "
                f"place that has them: {STATE_DICT}."
            )
        for key, child in reversed(kept[id(value)]):
            name = f"{path}.{key}" if path else key
            if len(name) > LONGEST_PATH:
                raise InvalidError(
                    f"{shown} contains a name of more than {LONGEST_PATH} characters, {printable(name)}: "
                    f"{STATE_DICT}."
                )
            pending.append((name, child, depth + 1))


def _children(value: object) -> list[tuple[str, object]]:
    """Return what a dict or a list contains and may contain tensors, by key or position."""
    if isinstance(value, Mapping):
        inner = (Mapping, list, tuple, torch.Tensor, Extra)
        return [(_key(key), each) for key, each in value.items() if isinstance(each, inner)]
    if isinstance(value, list | tuple):
        return [(str(index), each) for index, each in enumerate(value) if isinstance(each, Mapping)]
    return []


def _key(key: object) -> str:
    """Return a key of a dict as part of a name; a composed one, which may be huge, by its kind alone."""
    plain = isinstance(key, str | float | bool) or (isinstance(key, int) and key.bit_length() < 64)
    return str(key) if plain else type(key).__name__
