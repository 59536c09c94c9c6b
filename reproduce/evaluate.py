"""Evaluation of one encoder by one protocol."""

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
    """Run the protocol of `spec` and return what it measures. Accuracies are fractions.

    Args:
        watch: receives progress, and facts about the run: the digests of the data and of the encoder.

    Raises:
        ValueError: The data do not fit the protocol.
    """
    dataset = spec.dataset
    if distributed.main_process():
        # Annotations of objects take long to read, so detection tags their digests when it reads them.
        if isinstance(dataset, Dataset):
            for split in (dataset.train_split, dataset.test_split):
                watch.tag_data(split, dataset.load(split, site).digest)
        watch.record.tag("encoder_digest", encoder.digest)
    return spec.protocol.run(encoder, dataset, site, device, spec.seed, watch)
