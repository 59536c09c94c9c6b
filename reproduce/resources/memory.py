"""Peak memory of a run on each of its GPUs, from its settings or from comparable finished runs.

    estimate(spec, devices=1)            # 2.7e9 bytes, or None if it is unknown
    peaks(jobs, site, store)             # Peak(num_bytes=2.8e9, recorded=True) by id

The estimate counts what exists at the end of a forward pass: parameters, gradients, optimiser states, the
target, queues, the views of a step and those that are prepared ahead, decoded images, and the activations
that the backward pass needs. The matrices of a loss over pairs of images, the workspaces of kernels and a
data set that stays on the GPU are left out.

Measured on one H200 with a ResNet-18 of 3x3 stem at 64 px, bfloat16, batch 512, before views were prepared
ahead: 2.11, 2.13 and 2.18 GiB without CUDA's own memory at K = 2, 4 and 8. It needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from reproduce.data.ahead import DEPTH
from reproduce.data.dataset import Dataset
from reproduce.data.views import GPU_CHUNK
from reproduce.nn import cost
from reproduce.plan import Job
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain, Spec
from reproduce.tracking.errors import StoreError
from reproduce.tracking.tags import Record, per_gpu, settings

if TYPE_CHECKING:
    from reproduce.tracking.store import Store

CUDA = 500_000_000
"""Bytes of a GPU that each process occupies besides its tensors: CUDA's context and the loaded kernels."""
SCRATCH = 12
"""Bytes for each value of the views that are being made: result, temporaries, and places in the images."""
DECODED = 2
"""Batches of decoded images on a GPU: that of a step, and the next one."""
EVALUATED = 256
"""Images that an evaluation with a frozen encoder passes through it together (`nn/features.py`)."""
NEWEST = 200
"""Maximum number of finished runs of each scale that are searched for comparable ones."""
DECIDING = ("backbone", "precision", "batch_size", "optimizer", "dataset.size", "dataset.canvas")
"""Settings that decide the peak, besides those of the method and of small crops."""
RECORDED = "peak_memory_gb"
"""Final value of a pretraining on a GPU: the maximum of its tensors in 10^9 bytes, on its first GPU."""


class Peak(NamedTuple):
    """The most memory that a run occupies on each of its GPUs."""

    num_bytes: int
    """Bytes, with CUDA's own."""
    recorded: bool = False
    """True if a comparable finished run recorded it."""


def estimate(spec: Spec, devices: int = 1, *, recompute: bool = False) -> int | None:
    """Return the estimated peak in bytes on each of `devices` GPUs, or None if it is unknown.

    It is unknown for detectors, and for networks and methods whose layers are unknown until they are built.

    Args:
        recompute: as in the site file.
    """
    if isinstance(spec, Pretrain):
        return _pretraining(spec, devices, recompute)
    network = cost.network(spec.encoder.backbone)
    if network is None or not isinstance(spec.dataset, Dataset):
        return None
    # The upper bound of all protocols: some fine-tune the encoder, in float32.
    images, side = evaluated(spec), spec.dataset.size
    pixels = images * (3 * cost.FLOAT * side**2 + network.activations(side, cost.FLOAT))
    decoded = DECODED * 3 * images * spec.dataset.canvas**2
    return CUDA + 3 * cost.FLOAT * network.parameters + network.buffers + pixels + decoded


def evaluated(spec: Evaluate) -> int:
    """Return the images that an evaluation passes through its encoder together."""
    return int(getattr(spec.protocol, "batch_size", EVALUATED)) if spec.protocol.length else EVALUATED


def _pretraining(spec: Pretrain, devices: int, recompute: bool) -> int | None:
    method, network = spec.method, cost.network(spec.backbone)
    layout = method.layout(network.num_features) if network else None
    if network is None or layout is None:
        return None
    images, each = -(-spec.batch_size // devices), 2 if spec.precision == "bfloat16" else cost.FLOAT
    sides = [spec.augmentation.size_of_view(view, spec.dataset.size) for view in range(method.num_views)]

    trained = network.parameters + layout.projector.parameters + layout.predictor.parameters
    files = cost.sizes(network, layout, num_states=spec.optimizer.num_states)
    copies = 2 if devices > 1 else 1  # the gradients, and the buffers in which processes exchange them
    weights = files.checkpoint + copies * cost.FLOAT * trained
    if spec.precision == "bfloat16":
        weights += each * network.parameters  # autocast's copies of the backbone's weights
    values = images * sum(3 * side**2 for side in sides)
    views = (1 + DEPTH["cuda"]) * each * values + SCRATCH * min(values, GPU_CHUNK)
    decoded = DECODED * 3 * images * spec.dataset.canvas**2

    # Views that pass the online network, each with a backward pass.
    kept = [network.activations(side, each) for view, side in enumerate(sides) if method.passes(view) >= 3]
    heads = cost.FLOAT * (layout.projector.outputs + layout.predictor.outputs)
    together = len(kept) if method.num_parts < len(kept) else 1
    backbone = max(kept, default=0) if together == 1 or (recompute and method.recomputes) else sum(kept)
    return CUDA + weights + views + decoded + images * (backbone + together * heads)


def peaks(jobs: Iterable[Job], site: Site, store: Store | None = None) -> dict[str, Peak]:
    """Return the peak of each run on each of its GPUs, by id; unknown ones are left out.

    Args:
        store: records of finished runs. If it does not answer, all peaks are estimates.
    """
    past: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    found: dict[str, Peak] = {}
    for job in jobs:
        spec, devices = job.spec, job.devices(site)
        estimated = estimate(spec, devices, recompute=site.recompute)
        if estimated is not None:
            found[spec.id] = Peak(estimated)
        if store is None or not isinstance(spec, Pretrain):
            continue
        scale = job.request.scale
        if scale not in past:
            past[scale] = _recorded(store, scale)
        ours = _deciding(settings(spec), per_gpu(spec, devices, recompute=site.recompute))
        if alike := [num_bytes for theirs, num_bytes in past[scale] if theirs == ours]:
            found[spec.id] = Peak(CUDA + max(alike), recorded=True)
    return found


def _recorded(store: Store, scale: str) -> list[tuple[tuple[str, ...], int]]:
    """Return the deciding settings and the recorded bytes of finished pretrainings."""
    try:
        records = store.newest_finished(Pretrain.name, scale, NEWEST)
    except StoreError:
        return []
    return [
        (_deciding(record.settings, record.per_gpu), round(record.state.metrics[RECORDED] * 1e9))
        for record in records
        if _measured(record)
    ]


def _measured(record: Record) -> bool:
    return bool(record.per_gpu and record.state.metrics.get(RECORDED, 0) > 0)


def _deciding(settings: Mapping[str, str], images: str) -> tuple[str, ...]:
    """Return the settings that decide the peak of a pretraining.

    Fractions are rates and weights of a loss: no layer has two and a half units.

    Args:
        images: images of a step on each GPU, in the words of `per_gpu`.
    """
    chosen = (
        f"{key}={value}"
        for key, value in settings.items()
        if key in DECIDING
        or (key.split(".")[0] == "method" and not _is_fraction(value))
        or key.startswith("augmentation.small")
    )
    return (images, *sorted(chosen))


def _is_fraction(text: str) -> bool:
    return re.fullmatch(r"-?\d*\.\d+(e-?\d+)?|-?\d+e-?\d+", text) is not None
