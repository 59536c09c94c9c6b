"""Encoders from elsewhere: released checkpoints and files of the user's.

    load(weights, site, device)         # an `Encoder`; a release is fetched when it is first needed
    describe(path, backbone)            # the `Weights` of a file, whose content names them and whose tensors
    say which backbone they are of keep(path, weights, site)           # copies that file to where `load`
    looks for it

A file is kept in `<runs>/weights/<12 digits>/`, named by its address or, where it has none, by its content,
with its SHA-256 beside it. The record of a release's SHA-256 stays when the file is deleted: what is fetched
again must be the same. Tensors are read by `torch.load` with `weights_only=True` or from safetensors; nothing
else is ever unpickled.
"""

from __future__ import annotations

import glob
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
from reproduce.runs.files import atomic, write_atomic
from reproduce.runs.progress import FETCHED, Progress, Watch
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "sha256"
"""The file beside the weights that holds their SHA-256."""
GEOMETRY_OF: Mapping[str, Mapping[str, Any]] = {
    "resnet18_3x3": {"size": 64, "resize": 70, "canvas": 96},
    "small": {"size": 32, "resize": 32, "canvas": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
}
"""What a file's images are taken to be by its backbone, where that is not ImageNet at 224 px: the stem for 64
px images (htdt/self-supervised datasets/stl10.py), and the smoke scale's (`data/synthetic.py`)."""
FOLLOWERS = ("encoder_k", "target", "momentum")
"""In the names of networks that follow the trained one: MoCo's key encoder and BYOL's target are passed over
for what they follow, as in facebookresearch/moco main_lincls.py and in section 3.1."""
ARCHIVED = (".pth", ".pt", ".tar", ".torch", ".ckpt", ".safetensors")
"""Endings by which the file of weights in a zip archive is known."""
COUNTERS = "num_batches_tracked"
"""The end of the names of BatchNorm's counters, which no evaluation reads and old checkpoints lack."""
TIMEOUT = 60.0
"""Seconds without a byte after which a download has failed."""
CHUNK = 1 << 20
"""Bytes that are read at once: one FETCHED."""
SHOWN = 3
"""Names that a message lists."""
DEPTH = 10
"""Of nested dicts that are searched for tensors."""

logger = logging.getLogger(__name__)


def load(weights: Weights, site: Site, device: torch.device, watch: Watch = Watch()) -> Encoder:
    """The encoder of `weights`, in eval mode on `device`; it has no projector.

    Args:
        watch: follows a download, and takes the tags `weights_missing` and `weights_unused`: names of
            tensors, or `none`.

    Raises:
        LookupError: the file is not here and cannot be fetched; the message says where to put it.
        ValueError: it is another file than before, not a file of weights, or does not fit the backbone.
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
    """What an evaluation must know of the file at `path`: its content's SHA-256, its backbone, and the images
    that go with that.

    Args:
        backbone: a function of `backbones.py`; empty: the one that the tensors fit.

    Raises:
        LookupError: there is no such file or backbone.
        ValueError: it holds no weights, or they do not fit.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    if backbone and backbone not in backbones.names():
        raise NotFoundError(unknown("backbone", backbone, backbones.names()))
    tensors = read(path)
    if not backbone:
        backbone = _inferred(tensors, str(path))
    elif not any(match.fits for match in _matches(backbone, tensors)):
        raise InvalidError(_refusal(_nearest(_matches(backbone, tensors)), backbone, tensors, str(path)))
    return Weights(backbone=backbone, sha256=sha256(path), **GEOMETRY_OF.get(backbone, {}))


def keep(path: Path, weights: Weights, site: Site) -> None:
    """Copies the file at `path`, which `weights` describe, to where `load` looks for it; does nothing where
    it is there already.

    Raises:
        ValueError: the file does not fit `weights`, or has changed since it was described.
        OSError: it cannot be read, or there is no room for the copy.
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
    """Where the file of `weights` is kept. Settings beside its origin, such as the normalisation, make no
    other file of it."""
    name = hashlib.sha256(weights.url.encode()).hexdigest() if weights.url else weights.sha256
    return site.runs / "weights" / name[:12] / (Path(urlsplit(weights.url).path).name or "weights")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path, shown: str = "") -> dict[str, Tensor]:
    """Every tensor in a file by its dotted name through nested dicts, on the CPU: torch's formats,
    safetensors, or one of them zipped.

    Args:
        shown: the file as messages name it; empty: by its path.

    Raises:
        ValueError: the file is broken, or something else; the message says what. Nothing in it is run.
    """
    shown = shown or str(path)
    with path.open("rb") as file:
        head = file.read(CHUNK)
        file.seek(0)
        _check_head(head, shown)
        content: BinaryIO = file
        if zipfile.is_zipfile(file) and not _by_torch(file):
            content = _unpacked(file, shown)
        content.seek(0)
        try:
            state = _deserialised(content)
        except Exception as error:  # a broken file may raise anything
            raise InvalidError(_why_not_read(error, shown)) from None
    tensors = dict(_flat(state))
    if not tensors:
        raise InvalidError(
            f"{shown} holds no tensors, but a {type(state).__name__}: a state dict, or a dict with one inside, is expected."
        )
    return tensors


def _fetched(weights: Weights, site: Site, watch: Watch) -> Path:
    """The file of `weights` with the content that it must have, fetched if need be, once however many
    processes ask."""
    path = place(weights, site)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.parent / "lock"):
        if not path.is_file():
            _download(weights, path, site, watch)
        found, expected = sha256(path), _expected(weights, path)
        if expected and found != expected:
            raise InvalidError(_other_content(_shown(path, site), found, expected))
        if not expected:  # put here by hand
            read(path, _shown(path, site))
            _record(path, found)
    return path


def _download(weights: Weights, path: Path, site: Site, watch: Watch) -> None:
    """Fetches a release to `path`, whole or not at all."""
    where = f"put the file at {_shown(path, site)} in the run folder by hand"
    if not weights.url:
        raise NotFoundError(
            f"The weights with SHA-256 {weights.sha256} are not here: give their file to --checkpoint again, or {where}."
        )
    address = urlsplit(weights.url)
    if address.scheme != "https" and address.hostname != "127.0.0.1":
        raise InvalidError(f"{weights.url} is not fetched: only https addresses are; {where}.")
    try:
        with urllib.request.urlopen(weights.url, timeout=TIMEOUT) as answer:  # noqa: S310 (the address is checked above)
            total = int(answer.headers.get("Content-Length") or 0)
            _written(_received(answer, total, watch, path.name), path, weights, weights.url)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise NotFoundError(
            f"{weights.url} cannot be fetched ({reason}): try again with a network, or {where}."
        ) from None


def _received(answer: Any, total: int, watch: Watch, name: str) -> Iterator[bytes]:
    """The parts of an answer of `total` bytes (0: not known).

    Raises:
        ConnectionError: it ended early.
    """
    done = 0
    while part := answer.read(CHUNK):
        done += len(part)
        yield part
        if total:
            watch.report(Progress(done // CHUNK, math.ceil(total / CHUNK), FETCHED, f"fetching {name}"))
    if total and done != total:
        raise ConnectionError(f"it ended after {done} of {total} bytes")


def _written(parts: Iterable[bytes], path: Path, weights: Weights, source: str) -> None:
    """Puts a file at `path` if it has the content that it must have; its SHA-256 is recorded first. The
    folder is locked meanwhile."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)  # one writer at a time: a killed one left it
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
            read(draft, source)  # an error page must not become the content that holds from then on
        _record(path, found)


def _expected(weights: Weights, path: Path) -> str:
    """The SHA-256 that the file must have: the one in its settings, else the one recorded when it first came;
    empty: neither."""
    record = path.with_name(RECORD)
    return weights.sha256 or (record.read_text().split()[0] if record.is_file() else "")


def _record(path: Path, digest: str) -> None:
    """Writes the SHA-256 beside the file, in the format of `sha256sum`."""
    write_atomic(path.with_name(RECORD), f"{digest}  {path.name}\n")


def _other_content(source: str, found: str, expected: str) -> str:
    return (
        f"{source} has SHA-256 {found}, but {expected} is expected. A broken file that is deleted is fetched again; a release that has "
        "changed is another encoder: give its file itself to --checkpoint or --add-row."
    )


def _shown(path: Path, site: Site) -> str:
    """A kept file as messages name it, which may end up in reports: without the places of this machine."""
    return f"runs/{path.relative_to(site.runs)}"


def _check_head(head: bytes, shown: str) -> None:
    """Raises ValueError for what is plainly no weights."""
    if not head:
        raise InvalidError(f"{shown} is empty: a file of weights is expected.")
    if head.lstrip()[:1] == b"<":
        raise InvalidError(
            f"{shown} is a web page, not a file of weights: open it in a browser to see what it says."
        )


def _by_torch(file: BinaryIO) -> bool:
    """Whether a zip file is what `torch.save` writes."""
    with zipfile.ZipFile(file) as archive:
        return any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())


def _unpacked(file: BinaryIO, shown: str) -> BinaryIO:
    """The one file of weights in a zip archive.

    Raises:
        ValueError: there is none, or several.
    """
    with zipfile.ZipFile(file) as archive:
        found = [
            name for name in archive.namelist() if name.endswith(ARCHIVED) and not name.startswith("__MACOSX")
        ]
        if len(found) != 1:
            raise InvalidError(
                f"{shown} is an archive with {len(found)} files of weights ({_listed(found)}): unpack it and give one."
            )
        return io.BytesIO(archive.read(found[0]))


def _deserialised(content: BinaryIO) -> Any:
    """What a stream of torch's or of safetensors holds."""
    head = content.read(9)
    content.seek(0)
    if head[8:] == b"{":  # a length of 8 bytes, then JSON
        from safetensors.torch import load as deserialise

        return deserialise(content.read())
    with warnings.catch_warnings(action="ignore"):  # on old formats, which are read all the same
        return torch.load(content, map_location="cpu", weights_only=True)


def _why_not_read(error: Exception, shown: str) -> str:
    """One line for whatever a reader of files raised."""
    text = str(error)
    code = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and (code or "Weights only load failed" in text):
        return (
            f"{shown} holds {code[1] if code else 'a pickle'}, which only running its code would read; tensors alone are read here. If you "
            "trust it, load it with torch.load(..., weights_only=False) and save its state dict by itself."
        )
    return f"{shown} is broken or not a file of weights ({type(error).__name__}: {text.strip().partition(chr(10))[0][:200]})."


def _flat(state: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts by their dotted names."""
    if isinstance(state, torch.Tensor):
        yield path, state
    elif isinstance(state, Mapping) and depth < DEPTH:
        for key, value in state.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key), depth + 1)


@dataclass(frozen=True)
class _Match:
    """How the tensors whose names begin with `prefix` fit a backbone."""

    prefix: str
    expected: Mapping[str, tuple[int, ...]]
    """Shapes by name."""
    missing: tuple[str, ...]
    """Names that are not there, counters aside."""
    misshapen: tuple[str, ...]
    """Names whose tensor has another shape."""
    extra: tuple[str, ...]
    """Names of tensors in its parts that it does not have, as those of a deeper network; heads are other
    parts."""

    @property
    def fits(self) -> bool:
        return self.num_faults == 0

    @property
    def num_faults(self) -> int:
        return len(self.missing) + len(self.misshapen) + len(self.extra)

    @property
    def follows(self) -> bool:
        """Whether it is a network that follows the trained one."""
        return any(word in self.prefix for word in FOLLOWERS)


def _matches(backbone: str, tensors: Mapping[str, Tensor]) -> list[_Match]:
    """Every place in a file where the backbone may be: wherever its first tensor's name ends one; at least
    one."""
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
    """The match with the fewest faults, relative to what it should have."""
    return min(matches, key=lambda match: match.num_faults / len(match.expected))


def _chosen(backbone: str, tensors: Mapping[str, Tensor], wanted: str, shown: str) -> _Match:
    """The place in a file where the backbone is.

    Args:
        wanted: the prefix that the settings ask for; in a nested dict its names come before it.

    Raises:
        ValueError: there is none, or several that differ.
    """
    matches = _matches(backbone, tensors)
    asked = [
        match
        for match in matches
        if match.prefix == wanted or match.prefix.endswith(f".{wanted}") or not wanted
    ]
    fitting = [match for match in asked if match.fits]
    if not fitting:
        raise InvalidError(_refusal(_nearest(asked or matches), backbone, tensors, shown, wanted))
    best = [match for match in fitting if not match.follows] or fitting
    if any(not _same(best[0], other, tensors) for other in best[1:]):
        places = " or ".join(match.prefix or "(none)" for match in best)
        raise InvalidError(
            f"{shown} holds several {backbone}: say which with --set encoder.prefix=NAME, which is {places}."
        )
    return best[0]


def _same(one: _Match, other: _Match, tensors: Mapping[str, Tensor]) -> bool:
    names = [name for name in one.expected if not name.endswith(COUNTERS)]
    return all(torch.equal(tensors[one.prefix + name], tensors[other.prefix + name]) for name in names)


def _inferred(tensors: Mapping[str, Tensor], shown: str) -> str:
    """The backbone that a file's tensors are of.

    Raises:
        ValueError: of none that there is.
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
    raise InvalidError(f"{_refusal(best, name, tensors, shown)} It is the nearest backbone. {known}")


def _refusal(
    match: _Match, backbone: str, tensors: Mapping[str, Tensor], shown: str, wanted: str = ""
) -> str:
    """One line on what a backbone expects and what a file holds."""
    wrong = [
        f"{name} is {tuple(tensors[match.prefix + name].shape)}, not {match.expected[name]}"
        for name in match.misshapen
    ]
    faults = [
        f"{len(names)} {what} ({_listed(names)})"
        for what, names in (
            ("are missing", match.missing),
            ("have another shape", wrong),
            ("are too many", match.extra),
        )
        if names
    ]
    faults += [f"none is under the prefix '{wanted}'"] if not faults else []
    found = _listed([f"{name} {tuple(value.shape)}" for name, value in tensors.items()])
    return (
        f"{shown} does not fit {backbone}: of its {len(match.expected)} tensors, {', '.join(faults)}; "
        f"the file holds {len(tensors)}: {found}."
    )


def _listed(names: Iterable[str], count: int = SHOWN) -> str:
    """The first few names and how many more there are; `none`."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more or "none"
