"""Evaluation of a frozen encoder by one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from reproduce.data.dataset import Dataset
from reproduce.nn import encoder
from reproduce.protocols.protocol import Protocol
from reproduce.site import Site
from reproduce.spec import Evaluate


def evaluate(spec: Evaluate, site: Site, encoder_folder: Path, device: torch.device) -> dict[str, float]:
    """What the protocol of `spec` measures of the encoder in `encoder_folder`; accuracies are fractions.

    Raises:
        LookupError: the encoder's file is missing.
        ValueError: it is broken, or the data do not fit the protocol.
    """
    frozen = encoder.load(spec.encoder, encoder_folder, device)
    return cast(Protocol, spec.protocol).run(frozen, cast(Dataset, spec.dataset), site, device, spec.seed)
