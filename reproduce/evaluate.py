"""Evaluation of a frozen encoder by one protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from reproduce.data.dataset import Dataset
from reproduce.nn import distributed, encoder
from reproduce.protocols.protocol import Protocol
from reproduce.site import Site
from reproduce.spec import Evaluate


def evaluate(spec: Evaluate, site: Site, encoder_folder: Path, device: torch.device, tag: Callable[[str, str], None]) -> dict[str, float]:
    """What the protocol of `spec` measures of the encoder in `encoder_folder`; accuracies are fractions.

    Args:
        tag: takes facts about the run, the digests of the data, as (name, value).

    Raises:
        LookupError: the encoder's file is missing.
        ValueError: it is broken, or the data do not fit the protocol.
    """
    dataset = cast(Dataset, spec.dataset)
    if distributed.main_process():
        for split in (dataset.train_split, dataset.test_split):
            tag(f"data_digest_{split}", dataset.load(split, site).digest)
    frozen = encoder.load(spec.encoder, encoder_folder, device)
    return cast(Protocol, spec.protocol).run(frozen, dataset, site, device, spec.seed)
