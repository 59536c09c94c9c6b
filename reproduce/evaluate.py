"""Evaluation of an encoder by one protocol."""

from __future__ import annotations

import torch

from reproduce.data.dataset import Dataset
from reproduce.nn import distributed
from reproduce.nn.encoder import Encoder
from reproduce.runs.progress import Watch
from reproduce.site import Site
from reproduce.spec import Evaluate


def evaluate(
    spec: Evaluate, encoder: Encoder, site: Site, device: torch.device, watch: Watch
) -> dict[str, float]:
    """What the protocol of `spec` measures of its encoder; accuracies are fractions.

    Args:
        watch: follows what takes long, and takes facts about the run: the digests of the data and of the
            encoder.

    Raises:
        ValueError: the data do not fit the protocol.
    """
    dataset = spec.dataset
    if distributed.main_process():
        if isinstance(
            dataset, Dataset
        ):  # annotations of objects take long to read: detection tells their digests as it reads them
            for split in (dataset.train_split, dataset.test_split):
                watch.tag_data(split, dataset.load(split, site).digest)
        watch.record.tag("encoder_digest", encoder.digest)
    return spec.protocol.run(encoder, dataset, site, device, spec.seed, watch)
