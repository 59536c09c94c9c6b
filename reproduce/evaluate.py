"""Evaluation of one encoder by one protocol."""

from __future__ import annotations

from dataclasses import replace

import torch

from reproduce.data import inventory
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
        watch: receives progress, and facts about the run: the digests of the data and of the encoder, and the
            number of images of each split.

    Raises:
        ValueError: The data do not fit the protocol.
    """
    dataset = spec.dataset
    if distributed.main_process():
        facts = {"encoder_digest": encoder.digest}
        # Annotations of objects take long to read, so detection records its data when it reads them.
        if isinstance(dataset, Dataset):
            for split in (dataset.train_split, dataset.test_split):
                facts |= inventory.load(dataset, split, site)[1].tags(split)
        watch.record.facts(facts)
        watch = replace(watch, about=inventory.contents(facts))
    return spec.protocol.run(encoder, dataset, site, device, spec.seed, watch)
