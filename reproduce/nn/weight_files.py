"""Encoders from elsewhere: released checkpoints and files that the user provides.

    load(weights, site, device)    # an `Encoder`; a release is fetched on first use
    describe(path)                 # the `Weights` of a file: its SHA-256, its backbone and its prefix
    remark(path, weights)          # one line on what is taken from the file
    keep(path, weights, site)      # copies that file to where `load` expects it

A file is kept in `<runs>/weights/<12 digits>/` with its SHA-256 next to it. The digits come from its address
or, if it has none, from its content. The record of a release's SHA-256 stays when the file is deleted:
another download must have the same content.
"""

from __future__ import annotations

import hashlib
import logging
import math
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import filelock

from reproduce.lazy import torch
from reproduce.messages import InvalidError, NotFoundError, counted, unknown
from reproduce.nn import backbones
from reproduce.nn.encoder import Encoder
from reproduce.nn.weight_formats import folder_kind, listed, printable, read
from reproduce.nn.weight_matching import NO_PREFIX, choose, followers
from reproduce.nn.weights import Weights
from reproduce.runs import encoder_file
from reproduce.runs.files import atomic, remove_drafts, write_atomic
from reproduce.runs.progress import FETCHED, Progress, Watch
from reproduce.site import Site

RECORD = "sha256"
"""Name of the file next to the weights that contains their SHA-256."""
GEOMETRY_OF: Mapping[str, Mapping[str, Any]] = {
    "resnet18_3x3": {"size": 64, "resize": 70, "canvas": 96},
    "resnet18_cifar": {"size": 32, "resize": 35, "canvas": 48},
    "resnet18_cifar_pad2": {"size": 32, "resize": 35, "canvas": 48},
    "small": {"size": 32, "resize": 32, "canvas": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
}
"""Geometry of the images by backbone, where it is not ImageNet's at 224 px: the stem for 64 px images
(htdt/self-supervised datasets/stl10.py), half of that for CIFAR's 32 px, and the smoke scale
(`data/synthetic.py`)."""
TIMEOUT = 60.0
"""Seconds without a byte after which a download fails."""
CHUNK = 1 << 20
"""Bytes that are read at once, one FETCHED."""
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
    shown = _shown(path, site)
    tensors = read(path, shown)
    match = choose(tensors, backbone=weights.backbone, prefix=weights.prefix, shown=shown)
    backbone = backbones.build(weights.backbone, seed=0)
    state = match.state(tensors)
    backbone.load_state_dict(state, strict=False)
    absent = [match.name(name) for name in match.expected if name not in state]
    for tag, names in (("weights_missing", absent), ("weights_unused", match.unused(tensors))):
        watch.record.tag(tag, listed(names, 100))
        if names:
            logger.warning("%s: %s", tag, listed(names, 100))
    digest = encoder_file.digest(backbone.state_dict())
    backbone.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Encoder(weights.backbone, backbone, spec_id=weights.id, digest=digest)


def describe(path: Path, backbone: str = "", prefix: str = "") -> Weights:
    """Return the settings of the file at `path`: the SHA-256 of its content, its backbone, and its images.

    Args:
        backbone: a function of `backbones.py`. Empty for the one that the tensors fit.
        prefix: prefix of the backbone's tensors, or some parts of it. Empty for the one under which it fits.

    Raises:
        LookupError: the file or the backbone does not exist.
        ValueError: the file contains no weights, they do not fit, or several networks fit.
    """
    if path.is_dir():
        raise InvalidError(f"{path} {folder_kind(path)}.")
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist.")
    if backbone and backbone not in backbones.names():
        raise NotFoundError(unknown("backbone", backbone, backbones.names()))
    match = choose(read(path), backbone=backbone, prefix=prefix, shown=str(path))
    return Weights(
        backbone=match.backbone,
        sha256=sha256(path),
        prefix=(match.prefix or NO_PREFIX) if prefix else "",
        file=printable(path.name),
        **GEOMETRY_OF.get(match.backbone, {}),
    )


def remark(path: Path, weights: Weights) -> str:
    """Return one line on what `weights` take from the file at `path`, and what they leave out.

    Raises:
        ValueError: the file does not fit `weights`.
        OSError: the file cannot be read.
    """
    tensors = read(path)
    match = choose(tensors, backbone=weights.backbone, prefix=weights.prefix, shown=str(path))
    where = f" under '{printable(match.prefix)}'" if match.prefix else ""
    names = f" with the names of {match.layout.title}" if match.layout.title else ""
    parts = [f"{path}: {match.backbone}{where}{names}"]
    if following := followers(match, tensors):
        parts.append(f"the networks that follow it are left out ({listed(following)})")
    unused = match.unused(tensors)
    if unused:
        parts.append(f"{len(unused)} of {counted(len(tensors), 'tensor')} are not used ({listed(unused)})")
    return f"{'; '.join(parts)}."


def keep(path: Path, weights: Weights, site: Site) -> None:
    """Copy the file at `path`, which `weights` describe, to where `load` expects it.

    Nothing happens if it is there already.

    Raises:
        ValueError: the file has changed since it was described.
        OSError: the file cannot be read, or there is not enough space for the copy.
    """
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
