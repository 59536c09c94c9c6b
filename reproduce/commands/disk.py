"""The disk that runs need: encoders that are kept, and checkpoints that exist for a time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from reproduce.data import inventory
from reproduce.lazy import torch
from reproduce.nn import backbones
from reproduce.nn.cost import FLOAT, Sizes
from reproduce.protocols.detection import Detection
from reproduce.site import Site
from reproduce.spec import Pretrain, Spec

if TYPE_CHECKING:
    from reproduce.tracking.store import Store

CHECKPOINTS = 3
"""Number of files that a run needs space for: `checkpoint.save` keeps two while a thread writes the third."""
HEADS = 22_000_000
"""Number of parameters that Detectron2 adds to a backbone. torchvision's documentation counts 44.4 million
for a Mask R-CNN, including 23.5 million of the ResNet-50; the box head of four convolutions has 1.3 million
more."""


def disk_needed(
    specs: Iterable[Spec],
    store: Store,
    at_once: int,
    files: Callable[[Pretrain], Sizes],
    parameters: Callable[[str], int],
) -> int:
    """Return the bytes that runs leave behind or occupy for a time.

    Args:
        at_once: number of runs that are executed at the same time.
        files: function that returns the sizes of a pretraining's files.
        parameters: function that returns the number of parameters of a backbone.
    """
    copies = 2 if store.keeps_artifacts_here else 1
    kept, temporary = 0, []
    for spec in specs:
        if isinstance(spec, Pretrain):
            found = files(spec)
            kept += copies * found.encoder
            temporary.append(CHECKPOINTS * found.checkpoint)
        elif isinstance(spec.protocol, Detection):
            temporary.append(
                CHECKPOINTS * detector_checkpoint(parameters(spec.encoder.backbone), spec.protocol)
            )
    return kept + sum(heapq.nlargest(at_once, temporary))


def sizes(run: Pretrain, known: dict[object, Sizes], site: Site | None = None) -> Sizes:
    """Return the sizes of a pretraining run's files.

    Args:
        known: sizes of other runs, to which these are added. One network is built for all methods that differ
            only in fractions, which are rates and weights: no layer has two and a half units.
        site: site whose images a memory bank has rows for; None for the published number.
    """
    method, states = run.method, run.optimizer.num_states
    images = inventory.number(run.dataset, run.dataset.pretrain_split, site) or 1
    leaves = tuple(leaf for leaf in method.leaves() if not isinstance(leaf[1], float))
    shape = (run.backbone, method.name, leaves, states, images)
    if shape not in known:
        with torch.device("meta"):
            network: Any = method.network(
                weightless(run.backbone), num_images=images, batch_size=run.batch_size
            )
        known[shape] = Sizes(
            _num_bytes(network.online.backbone) + _num_bytes(network.online.projector),
            _num_bytes(network) + states * FLOAT * num_parameters(network.online),
        )
    return known[shape]


def detector_checkpoint(parameters: int, protocol: Detection) -> int:
    """Return the bytes of a detector's parameters and its optimiser's momentum.

    torchvision's heads are as narrow as the backbone.

    Args:
        parameters: number of parameters of the backbone.
    """
    return 2 * FLOAT * (parameters + (HEADS if protocol.engine == "detectron2" else parameters))


@cache
def weightless(backbone: str) -> torch.nn.Module:
    """Return a backbone whose tensors have shapes but no values."""
    with torch.device("meta"):
        module: torch.nn.Module = backbones.build(backbone)
        return module


def _num_bytes(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
