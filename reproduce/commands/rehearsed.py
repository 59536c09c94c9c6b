"""Speeds that `invoke rehearse` measured, by the shape of a run and the name of the device.

    measured = read(site)
    measured.seconds(spec, 4, "NVIDIA H100", site, count)   # summed over four devices; None if unknown

Runs of one *shape* take the same time per step: everything that decides the cost of a step is equal. The
seed, the rates, the number of epochs and the weights of a loss are left out. The terms of the losses cost a
few per cent of a step, even together (`bench/bench_step.py`). Needs neither torch nor numpy.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from reproduce.data.augmentation import Augmentation
from reproduce.data.dataset import Dataset
from reproduce.messages import first_line, from_here, unprintable, visible
from reproduce.nn import compiled, cost
from reproduce.plan import Job
from reproduce.protocols.detection import Detection
from reproduce.protocols.linear import LinearEvaluation
from reproduce.runs.cores import Share
from reproduce.runs.files import read_regular, write_atomic
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec

logger = logging.getLogger(__name__)

FILE = "rehearsed.json"
"""Name of the file in the folder of runs."""
VERSION = 2
"""Version of the file; one of another version is ignored."""
LARGEST = 10_000_000
"""Maximum size of the file in bytes."""
LARGEST_NUMBER = 1e15
"""Largest number of a measurement."""

WORKERS, OPEN = "workers", "auto"
"""Fact of a shape with the number of decoders, and its value if the number is unknown until a run starts."""

Kind = Literal["pretraining", "encoder", "classifier"]
Limit = Literal["data", "launch", "GPU", "CPU"]
Count = Callable[[Spec, str], int | None]
"""Function that returns the number of images of a split that a run reads, or None if it is unknown."""


@dataclass(frozen=True)
class Shape:
    """Everything that decides the cost of a step."""

    kind: Kind
    """Steps of a pretraining, forward passes of an encoder, or steps of a linear classifier."""
    facts: tuple[tuple[str, str], ...]

    def without(self, key: str) -> Shape:
        """Return the shape without one of its facts."""
        return Shape(self.kind, tuple(fact for fact in self.facts if fact[0] != key))

    def __str__(self) -> str:
        facts = dict(self.facts)
        if self.kind == "classifier":
            return f"linear classifier of {facts['features']} features, {facts['images']} images a step"
        image = f"{facts['backbone']} at {facts['sizes' if self.kind == 'pretraining' else 'size']} px"
        if self.kind == "encoder":
            return f"encoder {image}, images of {facts['image']}"
        method = f"{facts['method']} K={facts['method.num_views']}"
        return f"{method}, {image}, {facts['images']} images a step, {facts['precision']}"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Result of a rehearsal."""

    seconds: float
    """Seconds of a step."""
    images: int
    """Images of a step on one device."""
    steps: int
    """Number of steps that were timed."""
    limit: Limit
    """Resource that the step waits for."""
    memory: int | None = None
    """Maximum bytes of tensors on the GPU; None on a CPU."""
    busy: float | None = None
    """Share of the time in which the GPU computes; None if it is unknown."""
    commit: str = ""
    """Commit of the code."""
    first: float = 0.0
    """Seconds before the end of the first step, but for one step: network, first batch, compilation."""
    at: str = ""
    """Time of the measurement, ISO 8601."""


class Measured(dict[tuple[Shape, str], Measurement]):
    """Measurements by shape and name of the device."""

    def find(self, shape: Shape, device: str) -> Measurement | None:
        """Return the measurement of a shape on a device, or None.

        If the shape leaves the number of decoders open, the newest one with any number is returned.
        """
        found = self.get((shape, device))
        if found or dict(shape.facts).get(WORKERS) != OPEN:
            return found
        alike = (
            each
            for (other, name), each in self.items()
            if name == device and other.without(WORKERS) == shape.without(WORKERS)
        )
        return max(alike, key=lambda each: each.at, default=None)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices, each once."""
        return tuple(dict.fromkeys(device for _, device in self))

    def seconds(self, spec: Spec, devices: int, device: str, site: Site, count: Count) -> float | None:
        """Return the seconds of a run, summed over its devices; None if a part of it was not rehearsed.

        Its start is left out.

        Args:
            devices: number of devices that share its images.
            device: name of the device.
            site: site as the run sees it (`seen_by`).
        """
        found = {shape.kind: self.find(shape, device) for shape in shapes(spec, site, devices)}
        if not found or None in found.values():
            return None
        steps = {kind: each for kind, each in found.items() if each is not None}
        if isinstance(spec, Pretrain):
            images = count(spec, spec.dataset.pretrain_split)
            if images is None:
                return None
            num_steps = spec.epochs * (images // spec.batch_size)
            return num_steps * steps["pretraining"].seconds * devices
        train, test = (count(spec, split) for split in (spec.dataset.train_split, spec.dataset.test_split))
        passes = None if train is None or test is None else spec.protocol.passes(train, test)
        if train is None or passes is None:
            return None
        total = passes * steps["encoder"].seconds / steps["encoder"].images
        if isinstance(spec.protocol, LinearEvaluation):
            per_epoch = math.ceil(train / spec.protocol.batch_size)
            total += spec.protocol.epochs * per_epoch * steps["classifier"].seconds
        return total

    def start(self, spec: Spec, devices: int, device: str, site: Site) -> float:
        """Return the seconds of a run before its first step ends, summed over its devices.

        Args:
            devices, device, site: see `seconds`.
        """
        found = (self.find(shape, device) for shape in shapes(spec, site, devices))
        return devices * math.fsum(each.first for each in found if each)

    def save(self, site: Site) -> Path:
        """Write the file, and return its path.

        Raises:
            OSError: it cannot be written.
        """
        entries = [
            {"kind": shape.kind, "facts": dict(shape.facts), "device": device, **asdict(each)}
            for (shape, device), each in self.items()
        ]
        text = json.dumps({"version": VERSION, "measured": entries}, indent=1)
        return write_atomic(site.runs / FILE, text + "\n")


def read(site: Site) -> Measured:
    """Return all measurements; a broken file is ignored with a warning."""
    path = site.runs / FILE
    try:
        content = json.loads(read_regular(path, LARGEST)[0])
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']!r:.60}, not {VERSION}")
        return Measured(map(_entry, content["measured"]))
    except FileNotFoundError:
        return Measured()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = visible(first_line(error), keep="") or type(error).__name__
        why = f"an entry lacks {why}" if isinstance(error, KeyError) else why
        logger.warning(
            "%s",
            from_here(
                f"{path} is ignored, since it cannot be read ({why:.100}): `invoke rehearse` replaces it."
            ),
        )
        return Measured()


def _entry(plain: Mapping[str, Any]) -> tuple[tuple[Shape, str], Measurement]:
    """Return a measurement from its form in the file.

    Raises:
        TypeError, ValueError, KeyError, AttributeError: the form is wrong.
    """
    fields = dict(plain)
    kind, facts, device = fields.pop("kind"), fields.pop("facts"), fields.pop("device")
    found = Measurement(**fields)
    _check_number(found.seconds, 1e-9)
    for number in (found.images, found.steps):
        _check_number(number, 1)
    for each in (found.first, found.memory, found.busy):
        if each is not None:
            _check_number(each, 0)
    if kind not in get_args(Kind) or found.limit not in get_args(Limit):
        raise ValueError(f"kind {kind!r} with the limit {found.limit!r}")
    for text in (device, found.commit, found.at, *facts.keys(), *facts.values()):
        if type(text) is not str or unprintable(text):
            raise ValueError(f"a text is {text!r}")
    return (Shape(kind, tuple(facts.items())), device), found


def _check_number(number: Any, least: float) -> None:
    """Raise ValueError unless a number of a measurement is between `least` and LARGEST_NUMBER."""
    if type(number) not in (int, float) or not least <= number <= LARGEST_NUMBER:
        raise ValueError(f"a number is {number!r:.60}")


def now() -> str:
    """Return the time of a measurement."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# The shapes of a run


def seen_by(job: Job, share: Share, site: Site, *, gpu: bool) -> Site:
    """Return the site as a run sees it: `workers` is the number of its decoders, `compile` true or false.

    `workers` is OPEN if the number is unknown until the run starts.

    Args:
        share: cores of the run (`readiness.cores_of`).
        gpu: True if it uses GPUs.
    """
    number = share.decoders(site.workers, "cuda" if gpu else "cpu")
    site = replace(site, workers=OPEN if number is None else number)
    spec, devices = job.spec, job.devices(site)
    if not isinstance(spec, Pretrain):
        return site
    images = spec.dataset.num_images(spec.dataset.pretrain_split)
    whole = None if images is None else spec.operations(images)
    decided = compiled.wanted(
        site.compile,
        gpu=gpu,
        operations=compiled.mine(whole, devices=devices),
        synchronised=devices > 1
        and spec.method.batchnorm_images(spec.batch_size) > spec.batch_size // devices,
    )
    return replace(site, compile=decided)


def shapes(spec: Spec, site: Site, devices: int) -> tuple[Shape, ...]:
    """Return what must be measured to forecast a run; empty if it cannot be rehearsed (`why_not`).

    Args:
        site: site as the run sees it (`seen_by`). Its settings that change speeds are part of a shape.
        devices: number of devices that share its images.
    """
    if why_not(spec):
        return ()
    if isinstance(spec, Pretrain):
        return (_pretraining(spec, site, devices),)
    encoder = Shape("encoder", tuple(_encoder(spec, site)))
    if not isinstance(spec.protocol, LinearEvaluation):
        return (encoder,)
    network = cost.network(spec.encoder.backbone)
    assert network is not None, "see why_not"
    facts = (("features", str(network.num_features)), ("images", str(spec.protocol.batch_size)))
    return encoder, Shape("classifier", facts)


def why_not(spec: Spec) -> str:
    """Return why a run cannot be rehearsed, or "" if it can be."""
    if isinstance(spec, Pretrain):
        return ""
    if isinstance(spec.protocol, Detection):
        return "the first steps of a detector show neither its data nor its tests"
    if not isinstance(spec.dataset, Dataset) or spec.protocol.passes(1000, 1000) is None:
        return "its passes through the encoder are unknown"
    if cost.network(spec.encoder.backbone) is None:
        return f"the layers of {spec.encoder.backbone} are unknown"
    return ""


def in_memory(spec: Pretrain, site: Site) -> bool:
    """Return True if steps read decoded images: they are stored so, or all of them fit in `cache_gb`."""
    dataset = spec.dataset
    num_images, (width, height) = dataset.num_images(dataset.pretrain_split), dataset.typical
    fits = num_images is not None and 3 * width * height * num_images <= site.cache_gb * 1e9
    return dataset.raw or fits


def _pretraining(spec: Pretrain, site: Site, devices: int) -> Shape:
    dataset, augmentation, method = spec.dataset, spec.augmentation, spec.method
    views = [augmentation.size_of_view(view, dataset.size) for view in range(method.num_views)]
    facts = {
        "backbone": spec.backbone,
        "precision": spec.precision,
        "images": str(spec.batch_size // devices),
        "sizes": "+".join(map(str, sorted(set(views), reverse=True))),
        "method": method.name,
        **{f"method.{key}": str(value) for key, value in method.leaves() if not _has_floats(value)},
        **{f"augmentation.{key}": text for key, text in _costs(augmentation)},
        "optimizer": spec.optimizer.name,
        "image": _size(dataset),
        "read": "from memory" if in_memory(spec, site) else "from files",
        WORKERS: str(site.workers),
        "compile": str(site.compile),
    }
    if method.num_parts == 1:
        facts["recompute"] = str(site.recompute)
    return Shape("pretraining", tuple(facts.items()))


def _encoder(spec: Evaluate, site: Site) -> Iterator[tuple[str, str]]:
    dataset = spec.dataset
    assert isinstance(dataset, Dataset), "see why_not"
    yield "backbone", spec.encoder.backbone
    yield "size", str(dataset.size)
    yield "resize", f"{dataset.resize} {dataset.test_resampling}"
    yield "image", _size(dataset)
    yield WORKERS, str(site.workers)


def _size(dataset: Dataset) -> str:
    width, height = dataset.typical
    return f"{width} x {height} px{', not compressed' if dataset.raw else ''}"


def _costs(augmentation: Augmentation) -> Iterator[tuple[str, str]]:
    """Yield the settings that decide the cost of a view: a probability as 0 or not 0, and no ranges."""
    for key, value in augmentation.leaves():
        if isinstance(value, float):
            yield key, "not 0" if value else "0"
        elif not _has_floats(value):
            yield key, str(value)


def _has_floats(value: object) -> bool:
    """Return True for a number that is not whole, and for a tuple that contains one."""
    return isinstance(value, float) or (isinstance(value, tuple) and any(map(_has_floats, value)))
