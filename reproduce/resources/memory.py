"""Peak memory of a run on each of its GPUs, from its settings or from comparable finished runs.

    estimate(spec, devices=1)            # Peak(num_bytes=2.7e9, images=0.9e9), or None if it is unknown
    peaks(jobs, site, store)             # Peak(num_bytes=2.8e9, recorded=True, images=0.9e9) by id
    peak.on(card=80e9, runs=4)           # 3.7e9: what each of four such runs takes of a GPU

The estimate counts what exists at the end of a forward pass: parameters, gradients, optimiser states, the
target, queues, the views of a step and those that are prepared ahead, decoded images, and the activations
that the backward pass needs. Comparisons with the rows of a bank are counted, too. The copy of a data set
that stays on the GPU is counted on its own, since it depends on the GPU. The matrices of a loss over pairs of
images and the workspaces of kernels are left out.

Measured on one H200 with a ResNet-18 of 3x3 stem at 64 px, bfloat16, batch 512, before views were prepared
ahead: 2.11, 2.13 and 2.18 GiB without CUDA's own memory at K = 2, 4 and 8. It needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from reproduce.data import inventory
from reproduce.data.ahead import DEPTH
from reproduce.data.augmentation import divisor
from reproduce.data.dataset import Dataset
from reproduce.data.resident import SHARE
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
"""Bytes for each value of the views that are being made, canvases of patches included: result, temporaries,
and places in the images."""
DECODED = 2
"""Batches of decoded images on a GPU: that of a step, and the next one."""
EVALUATED = 256
"""Images that an evaluation with a frozen encoder passes through it together (`nn/features.py`)."""
NEWEST = 200
"""Maximum number of finished runs of each scale that are searched for comparable ones."""
STORED = Fraction(11, 10)
"""Memory that decoded images get if they stay there, over their estimated size (`Images` reserves it)."""
DECIDING = (
    "backbone",
    "precision",
    "batch_size",
    "optimizer",
    "dataset",
    "dataset.size",
    "dataset.content",
    "dataset.pretrain_split",
    "augmentation.draft",
)
"""Settings that decide the peak, besides those of the method, of small crops and of patches."""
RECORDED = "peak_memory_gb"
"""Final value of a pretraining on a GPU: the maximum of its tensors in 10^9 bytes, on its first GPU."""


class Peak(NamedTuple):
    """The most memory that a run occupies on each of its GPUs."""

    num_bytes: int
    """Bytes, with CUDA's own. A recorded number may contain the copy of all images, an estimate does not."""
    recorded: bool = False
    """True if a comparable finished run recorded it."""
    images: int = 0
    """Bytes of the copy of all images that the run keeps on a GPU with enough memory (`data/resident.py`)."""

    def on(self, card: int, runs: int = 1) -> int:
        """Return the most bytes that each of `runs` such runs occupies on a GPU that they share.

        Args:
            card: memory of the GPU in bytes.
        """
        alone = self.recorded and runs == 1
        return self.num_bytes + (self.images if not alone and runs * self.images <= SHARE * card else 0)


def estimate(spec: Spec, devices: int = 1, site: Site | None = None) -> Peak | None:
    """Return the estimated peak on each of `devices` GPUs, or None if it is unknown.

    It is unknown for detectors, and for networks and methods whose layers are unknown until they are built.

    Args:
        site: site of the run; None for the defaults.
    """
    site = site or Site()
    if isinstance(spec, Pretrain):
        return _pretraining(spec, devices, site)
    network = cost.network(spec.encoder.backbone)
    if network is None or not isinstance(spec.dataset, Dataset):
        return None
    # The upper bound of all protocols: some fine-tune the encoder, in float32.
    images, side = evaluated(spec), spec.dataset.size
    pixels = images * (3 * cost.FLOAT * side**2 + network.activations(side, cost.FLOAT))
    _, width, height = _pictures(spec.dataset, spec.dataset.train_split, site)
    decoded = DECODED * 3 * images * width * height
    return Peak(CUDA + 3 * cost.FLOAT * network.parameters + network.buffers + pixels + decoded)


def evaluated(spec: Evaluate) -> int:
    """Return the images that an evaluation passes through its encoder together."""
    return int(getattr(spec.protocol, "batch_size", EVALUATED)) if spec.protocol.length else EVALUATED


def _pictures(dataset: Dataset, split: str, site: Site) -> tuple[int | None, int, int]:
    """Return the number of images of a split, None if it is unknown, and their typical width and height.

    Those of the images on this machine are used as far as a run or a command has recorded them.
    """
    found = inventory.as_recorded(dataset, split, site)
    if found and found.width:
        return found.num_images, found.width, found.height
    return dataset.num_images(split), *dataset.typical


def _pretraining(spec: Pretrain, devices: int, site: Site) -> Peak | None:
    method, network = spec.method, cost.network(spec.backbone)
    layout = method.layout(network.num_features) if network else None
    if network is None or layout is None:
        return None
    images, each = -(-spec.batch_size // devices), 2 if spec.precision == "bfloat16" else cost.FLOAT
    sides = [spec.augmentation.size_of_view(view, spec.dataset.size) for view in range(method.num_views)]

    trained = network.parameters + layout.projector.parameters + layout.predictor.parameters
    number, width, height = _pictures(spec.dataset, spec.dataset.pretrain_split, site)
    files = cost.sizes(
        network,
        layout,
        num_states=spec.optimizer.num_states,
        num_images=number or 0,
    )
    copies = 2 if devices > 1 else 1  # the gradients, and the buffers in which processes exchange them
    weights = files.checkpoint + copies * cost.FLOAT * trained
    if spec.precision == "bfloat16":
        weights += each * network.parameters  # autocast's copies of the backbone's weights
    values = images * sum(3 * side**2 for side in sides)
    patches = spec.augmentation.patches
    canvases = 0 if patches is None else images * 3 * patches.canvas**2
    views = (1 + DEPTH["cuda"]) * each * values + SCRATCH * min(values + canvases, GPU_CHUNK)

    # JPEG files may be decoded at a fraction of their size.
    part = divisor(width, height, spec.augmentation.least(spec.dataset.size, method.num_views))
    decoded = 3 * (width // part) * (height // part)
    most = int(site.cache_gb * 1e9)
    all_images = decoded * (number or 0)
    copy = min(most, int(STORED * all_images)) if all_images <= most else 0

    # Views that pass the online network, each with a backward pass.
    heads = cost.FLOAT * (layout.projector.outputs + layout.predictor.outputs)
    if layout.at_places:
        copied = cost.FLOAT * network.num_features if each < cost.FLOAT else 0  # the map in float32
        heads = network.places(max(sides)) * (heads + copied)
    activations = 0
    for group in method.view_groups:
        kept = [network.activations(sides[view], each) for view in group]
        alone = site.recompute and method.recomputes
        backbone = max(kept, default=0) if alone else sum(kept)
        activations = max(activations, backbone + len(group) * heads)

    compared = cost.comparisons(layout, images=images, batch_size=spec.batch_size, num_images=number or 0)
    step = views + images * (DECODED * decoded + activations) + compared + layout.per_step
    return Peak(CUDA + weights + step, images=copy)


def peaks(jobs: Iterable[Job], site: Site, store: Store | None = None) -> dict[str, Peak]:
    """Return the peak of each run on each of its GPUs, by id; unknown ones are left out.

    Args:
        store: records of finished runs. If it does not answer, all peaks are estimates.
    """
    past: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    found: dict[str, Peak] = {}
    for job in jobs:
        spec, devices = job.spec, job.devices(site)
        estimated = estimate(spec, devices, site)
        if estimated is not None:
            found[spec.id] = estimated
        if store is None or not isinstance(spec, Pretrain):
            continue
        scale = job.request.scale
        if scale not in past:
            past[scale] = _recorded(store, scale)
        ours = _deciding(settings(spec), per_gpu(spec, devices, recompute=site.recompute))
        if alike := [num_bytes for theirs, num_bytes in past[scale] if theirs == ours]:
            images = estimated.images if estimated else 0
            found[spec.id] = Peak(CUDA + max(alike), recorded=True, images=images)
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
        or key.startswith(("augmentation.small", "augmentation.patches."))  # older runs have no patches
    )
    return (images, *sorted(chosen))


def _is_fraction(text: str) -> bool:
    return re.fullmatch(r"-?\d*\.\d+(e-?\d+)?|-?\d+e-?\d+", text) is not None
