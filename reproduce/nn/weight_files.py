"""Encoders from elsewhere: released checkpoints and files that the user provides.

    load(weights, site, device)    # an `Encoder`; a release is fetched on first use
    describe(path, backbone)       # the `Weights` of a file: its SHA-256 and its backbone
    keep(path, weights, site)      # copies that file to where `load` expects it

A file is kept in `<runs>/weights/<12 digits>/` with its SHA-256 next to it. The digits come from its address
or, if it has none, from its content. The record of a release's SHA-256 stays when the file is deleted:
another download must have the same content. `torch.load` with `weights_only=True` or safetensors reads the
tensors; nothing else is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import filelock

from reproduce.lazy import torch
from reproduce.messages import InvalidError, NotFoundError, unknown
from reproduce.nn import backbones
from reproduce.nn.encoder import Encoder
from reproduce.nn.weights import Weights
from reproduce.runs import checkpoint
from reproduce.runs.files import atomic, remove_drafts, write_atomic
from reproduce.runs.progress import FETCHED, Progress, Watch
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "sha256"
"""Name of the file next to the weights that contains their SHA-256."""
GEOMETRY_OF: Mapping[str, Mapping[str, Any]] = {
    "resnet18_3x3": {"size": 64, "resize": 70, "canvas": 96},
    "small": {"size": 32, "resize": 32, "canvas": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
}
"""Geometry of the images by backbone, where it is not ImageNet's at 224 px: the stem for 64 px images
(htdt/self-supervised datasets/stl10.py) and the smoke scale (`data/synthetic.py`)."""
FOLLOWERS = ("encoder_k", "target", "momentum")
"""Words in the names of networks that follow the trained one. MoCo's key encoder and BYOL's target are
skipped in favour of the network that they follow, as in facebookresearch/moco main_lincls.py and in section
3.1."""
ARCHIVED = (".pth", ".pt", ".tar", ".torch", ".ckpt", ".safetensors")
"""Extensions that identify the file of weights in a zip archive."""
COUNTERS = "num_batches_tracked"
"""Suffix of BatchNorm's counters, which no evaluation reads and which old checkpoints lack."""
TIMEOUT = 60.0
"""Seconds without a byte after which a download fails."""
CHUNK = 1 << 20
"""Bytes that are read at once, one FETCHED."""
SHOWN = 3
"""Maximum number of names that a message lists."""
DEPTH = 10
"""Maximum depth of nested dicts that are searched for tensors."""

logger = logging.getLogger(__name__)


def load(weights: Weights, site: Site, device: torch.device, watch: Watch = Watch()) -> Encoder:
    """Return the encoder of `weights`, in eval mode on `device`, without a projector.

    Args:
        watch: receives the progress of a download, and the tags `weights_missing` and `weights_unused` with
            names of tensors, or `none`.

    Raises:
        LookupError: the file is missing and cannot be fetched. The message explains where to put it.
        ValueError: the file has changed, does not contain weights, or does not fit the backbone.
    """
    path = _fetched(weights, site, watch)
    tensors = read(path, _shown(path, site))
    match = _chosen(weights.backbone, tensors, weights.prefix, _shown(path, site))
    backbone = backbones.build(weights.backbone, seed=0)
    state = {name: tensors[match.prefix + name] for name in match.expected if match.prefix + name in tensors}
    backbone.load_state_dict(state, strict=False)
    absent = [name for name in match.expected if name not in state]
    unused = [
        name
        for name in tensors
        if name.removeprefix(match.prefix) not in state or not name.startswith(match.prefix)
    ]
    for tag, names in (("weights_missing", absent), ("weights_unused", unused)):
        watch.record.tag(tag, _listed(names, 100))
        if names:
            logger.warning("%s: %s", tag, ", ".join(names))
    digest = checkpoint.digest(backbone.state_dict())
    backbone.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Encoder(weights.backbone, backbone, spec_id=weights.id, digest=digest)


def describe(path: Path, backbone: str = "") -> Weights:
    """Return the settings of the file at `path`: the SHA-256 of its content, its backbone, and its images.

    Args:
        backbone: a function of `backbones.py`. Empty for the one that the tensors fit.

    Raises:
        LookupError: the file or the backbone does not exist.
        ValueError: the file contains no weights, or they do not fit.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist.")
    if backbone and backbone not in backbones.names():
        raise NotFoundError(unknown("backbone", backbone, backbones.names()))
    tensors = read(path)
    if not backbone:
        backbone = _inferred(tensors, str(path))
    elif not any(match.fits for match in _matches(backbone, tensors)):
        raise InvalidError(_refusal(_nearest(_matches(backbone, tensors)), backbone, tensors, str(path)))
    return Weights(backbone=backbone, sha256=sha256(path), **GEOMETRY_OF.get(backbone, {}))


def keep(path: Path, weights: Weights, site: Site) -> None:
    """Copy the file at `path`, which `weights` describe, to where `load` expects it.

    Nothing happens if it is there already.

    Raises:
        ValueError: the file does not fit `weights`, or has changed since it was described.
        OSError: the file cannot be read, or there is not enough space for the copy.
    """
    _chosen(weights.backbone, read(path), weights.prefix, str(path))
    target = place(weights, site)
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.parent / "lock"):
        if target.is_file() and sha256(target) == weights.sha256:
            return
        with path.open("rb") as source:
            _written(iter(lambda: source.read(CHUNK), b""), target, weights, str(path))


def place(weights: Weights, site: Site) -> Path:
    """Return the path at which the file of `weights` is kept.

    It depends only on the origin of the file, not on settings such as the normalisation.
    """
    name = hashlib.sha256(weights.url.encode()).hexdigest() if weights.url else weights.sha256
    return site.runs / "weights" / name[:12] / (Path(urlsplit(weights.url).path).name or "weights")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path, shown: str = "") -> dict[str, Tensor]:
    """Read all tensors of a file to the CPU, by their dotted names through nested dicts.

    The file may have one of torch's formats or be safetensors, or be a zip archive with one such file.

    Args:
        shown: name of the file in messages. Empty for its path.

    Raises:
        ValueError: the file is broken or contains something else. The message explains the problem. No code
            of the file is executed.
    """
    shown = shown or str(path)
    with path.open("rb") as file:
        head = file.read(CHUNK)
        file.seek(0)
        _check_head(head, shown)
        content: BinaryIO = file
        if zipfile.is_zipfile(file) and not _is_torch_zip(file):
            content = _unpacked(file, shown)
        content.seek(0)
        try:
            state = _deserialised(content)
        except Exception as error:  # a broken file may raise anything
            raise InvalidError(_read_failure(error, shown)) from None
    tensors = dict(_flat(state))
    if not tensors:
        raise InvalidError(
            f"{shown} contains a {type(state).__name__} without tensors: a state dict, or a dict "
            "that contains one, is expected."
        )
    return tensors


def _fetched(weights: Weights, site: Site, watch: Watch) -> Path:
    """Return the path of the file of `weights`, after checking its content and fetching it if necessary.

    It is fetched once, however many processes need it.
    """
    path = place(weights, site)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.parent / "lock"):
        if not path.is_file():
            _download(weights, path, site, watch)
        found, expected = sha256(path), _expected(weights, path)
        if expected and found != expected:
            raise InvalidError(_other_content(_shown(path, site), found, expected))
        if not expected:  # the user put it there
            read(path, _shown(path, site))
            _record(path, found)
    return path


def _download(weights: Weights, path: Path, site: Site, watch: Watch) -> None:
    """Fetch a release to `path`, completely or not at all."""
    where = f"copy the file to {_shown(path, site)} in the folder of runs"
    if not weights.url:
        raise NotFoundError(
            f"The weights with SHA-256 {weights.sha256} are missing: pass their file to --checkpoint again, "
            f"or {where}."
        )
    address = urlsplit(weights.url)
    if address.scheme != "https" and address.hostname != "127.0.0.1":
        raise InvalidError(f"{weights.url} is not fetched, because it is not an https address: {where}.")
    try:
        with urllib.request.urlopen(weights.url, timeout=TIMEOUT) as answer:  # noqa: S310 (the address is checked above)
            total = int(answer.headers.get("Content-Length") or 0)
            _written(_received(answer, total, watch, path.name), path, weights, weights.url)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise NotFoundError(
            f"{weights.url} cannot be fetched ({reason}): try again with a network connection, or {where}."
        ) from None


def _received(answer: Any, total: int, watch: Watch, name: str) -> Iterator[bytes]:
    """Yield the parts of an answer of `total` bytes, 0 if unknown.

    Raises:
        ConnectionError: the answer ended early.
    """
    done = 0
    while part := answer.read(CHUNK):
        done += len(part)
        yield part
        if total:
            watch.report(Progress(done // CHUNK, math.ceil(total / CHUNK), FETCHED, f"fetching {name}"))
    if total and done != total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _written(parts: Iterable[bytes], path: Path, weights: Weights, source: str) -> None:
    """Write a file to `path` if it has the expected content; its SHA-256 is recorded first.

    The caller holds the lock of the folder.
    """
    remove_drafts(path)
    total = hashlib.sha256()
    with atomic(path, durable=True) as draft:
        with draft.open("wb") as file:
            for part in parts:
                total.update(part)
                file.write(part)
        found, expected = total.hexdigest(), _expected(weights, path)
        if expected and found != expected:
            raise InvalidError(_other_content(source, found, expected))
        if not expected:
            read(draft, source)  # an error page must not become the recorded content
        _record(path, found)


def _expected(weights: Weights, path: Path) -> str:
    """Return the expected SHA-256 of the file: from the settings, or as recorded after the first download.

    Empty if there is neither.
    """
    record = path.with_name(RECORD)
    return weights.sha256 or (record.read_text().split()[0] if record.is_file() else "")


def _record(path: Path, digest: str) -> None:
    """Write the SHA-256 next to the file, in the format of `sha256sum`."""
    write_atomic(path.with_name(RECORD), f"{digest}  {path.name}\n")


def _other_content(source: str, found: str, expected: str) -> str:
    return (
        f"{source} has SHA-256 {found}, but {expected} is expected. Delete a broken file to fetch it again. "
        "A release that has changed is another encoder: pass its file to --checkpoint or --add-row."
    )


def _shown(path: Path, site: Site) -> str:
    """Return the name of a kept file in messages.

    Messages may end up in reports, so it omits the folders of this machine.
    """
    return f"runs/{path.relative_to(site.runs)}"


def _check_head(head: bytes, shown: str) -> None:
    """Raise ValueError if a file obviously does not contain weights."""
    if not head:
        raise InvalidError(f"{shown} is empty: a file of weights is expected.")
    if head.lstrip()[:1] == b"<":
        raise InvalidError(
            f"{shown} is a web page, not a file of weights: open it in a browser to find out more."
        )


def _is_torch_zip(file: BinaryIO) -> bool:
    """Return whether a zip file was written by `torch.save`."""
    with zipfile.ZipFile(file) as archive:
        return any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())


def _unpacked(file: BinaryIO, shown: str) -> BinaryIO:
    """Return the only file of weights in a zip archive.

    Raises:
        ValueError: the archive contains none, or several.
    """
    with zipfile.ZipFile(file) as archive:
        found = [
            name for name in archive.namelist() if name.endswith(ARCHIVED) and not name.startswith("__MACOSX")
        ]
        if len(found) != 1:
            raise InvalidError(
                f"{shown} is an archive with {len(found)} files of weights ({_listed(found)}): "
                "unpack it and pass one of them."
            )
        return io.BytesIO(archive.read(found[0]))


def _deserialised(content: BinaryIO) -> Any:
    """Return the content of a stream in one of torch's formats or in safetensors."""
    head = content.read(9)
    content.seek(0)
    if head[8:] == b"{":  # a length of 8 bytes, then JSON
        from safetensors.torch import load as deserialise

        return deserialise(content.read())
    with warnings.catch_warnings(action="ignore"):  # about old formats, which torch reads anyway
        return torch.load(content, map_location="cpu", weights_only=True)


def _read_failure(error: Exception, shown: str) -> str:
    """Return the error of a reader of files as one line."""
    text = str(error)
    code = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and (code or "Weights only load failed" in text):
        found = code[1] if code else "a pickle"
        return (
            f"{shown} contains {found}, which cannot be read without executing code; only tensors are read. "
            "If you trust the file, load it with torch.load(..., weights_only=False) "
            "and save only its state dict."
        )
    problem = f"{type(error).__name__}: {text.strip().partition(chr(10))[0][:200]}"
    return f"{shown} is broken or not a file of weights ({problem})."


def _flat(state: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts with their dotted names."""
    if isinstance(state, torch.Tensor):
        yield path, state
    elif isinstance(state, Mapping) and depth < DEPTH:
        for key, value in state.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key), depth + 1)


@dataclass(frozen=True)
class _Match:
    """Comparison of a backbone with the tensors whose names begin with `prefix`."""

    prefix: str
    expected: Mapping[str, tuple[int, ...]]
    """Expected shapes by name."""
    missing: tuple[str, ...]
    """Names of missing tensors, except counters."""
    misshapen: tuple[str, ...]
    """Names of tensors with another shape."""
    extra: tuple[str, ...]
    """Names of tensors within the backbone's parts that it does not have, such as those of a deeper network.
    Heads are other parts."""

    @property
    def fits(self) -> bool:
        return self.num_faults == 0

    @property
    def num_faults(self) -> int:
        return len(self.missing) + len(self.misshapen) + len(self.extra)

    @property
    def follows(self) -> bool:
        """True if the network follows the trained one."""
        return any(word in self.prefix for word in FOLLOWERS)


def _matches(backbone: str, tensors: Mapping[str, Tensor]) -> list[_Match]:
    """Return the possible places of the backbone in a file, at least one.

    A place is possible if the name of the backbone's first tensor follows its prefix.
    """
    with torch.device("meta"):
        expected = {
            name: tuple(value.shape) for name, value in backbones.build(backbone, seed=0).state_dict().items()
        }
    first = next(iter(expected))
    prefixes = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    return [_match(prefix, expected, tensors) for prefix in prefixes or [""]]


def _match(prefix: str, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> _Match:
    missing = [name for name in expected if prefix + name not in tensors and not name.endswith(COUNTERS)]
    misshapen = [
        name
        for name, shape in expected.items()
        if prefix + name in tensors and tuple(tensors[prefix + name].shape) != shape
    ]
    parts = {name.partition(".")[0] for name in expected}
    under = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    extra = [name for name in under if name not in expected and name.partition(".")[0] in parts]
    return _Match(prefix, expected, tuple(missing), tuple(misshapen), tuple(extra))


def _nearest(matches: Iterable[_Match]) -> _Match:
    """Return the match with the fewest faults relative to its number of tensors."""
    return min(matches, key=lambda match: match.num_faults / len(match.expected))


def _chosen(backbone: str, tensors: Mapping[str, Tensor], wanted: str, shown: str) -> _Match:
    """Return the place of the backbone in a file.

    Args:
        wanted: prefix in the settings. In a nested dict, the names of outer dicts come before it.

    Raises:
        ValueError: the backbone fits in no place, or in several with different tensors.
    """
    matches = _matches(backbone, tensors)
    candidates = [
        match
        for match in matches
        if match.prefix == wanted or match.prefix.endswith(f".{wanted}") or not wanted
    ]
    fitting = [match for match in candidates if match.fits]
    if not fitting:
        raise InvalidError(_refusal(_nearest(candidates or matches), backbone, tensors, shown, wanted))
    best = [match for match in fitting if not match.follows] or fitting
    if any(not _same(best[0], other, tensors) for other in best[1:]):
        places = " or ".join(match.prefix or "(none)" for match in best)
        raise InvalidError(
            f"{shown} contains several {backbone}: choose one with --set encoder.prefix=NAME, "
            f"where NAME is {places}."
        )
    return best[0]


def _same(one: _Match, other: _Match, tensors: Mapping[str, Tensor]) -> bool:
    names = [name for name in one.expected if not name.endswith(COUNTERS)]
    return all(torch.equal(tensors[one.prefix + name], tensors[other.prefix + name]) for name in names)


def _inferred(tensors: Mapping[str, Tensor], shown: str) -> str:
    """Return the backbone that a file's tensors fit.

    Raises:
        ValueError: they do not fit any backbone.
    """
    nearest: dict[str, _Match] = {}
    for backbone in backbones.names():
        matches = _matches(backbone, tensors)
        if any(match.fits for match in matches):
            return backbone
        nearest[backbone] = _nearest(matches)
    best = _nearest(nearest.values())
    name = next(backbone for backbone, match in nearest.items() if match is best)
    known = f"Known: {', '.join(backbones.names())}."
    raise InvalidError(f"{_refusal(best, name, tensors, shown)} No other backbone fits better. {known}")


def _refusal(
    match: _Match, backbone: str, tensors: Mapping[str, Tensor], shown: str, wanted: str = ""
) -> str:
    """Return one line with the expectations of a backbone and the content of a file."""
    wrong = [
        f"{name} is {tuple(tensors[match.prefix + name].shape)}, not {match.expected[name]}"
        for name in match.misshapen
    ]
    faults = [
        f"{len(names)} {what} ({_listed(names)})"
        for what, names in (
            ("are missing", match.missing),
            ("have another shape", wrong),
            ("are unexpected", match.extra),
        )
        if names
    ]
    if not faults:
        faults = [f"none has the prefix '{wanted}'"]
    found = _listed([f"{name} {tuple(value.shape)}" for name, value in tensors.items()])
    return (
        f"{shown} does not fit {backbone}: of its {len(match.expected)} tensors, {', '.join(faults)}; "
        f"the file contains {len(tensors)}: {found}."
    )


def _listed(names: Iterable[str], count: int = SHOWN) -> str:
    """Return the first few names and how many more there are, or `none`."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more or "none"
