"""An online probe: the state of a pretraining, measured while it trains, for curves and not for tables.

    watching = Watching(site.probe_every, dataset, images, device, passes=8.0)
    with watching.decoding(15):                              # next to training
        watching.due(epoch=1, done=0.25, seen=1200)          # by the cost so far
        watching.measure(encoder)                            # {"probe/top1": 0.4, "probe/rankme": 31.2}

A fixed share of the images of the pretraining split is held out from a fixed share of its other images, the
bank. They are the same for every run on these images. The network was trained on both without labels, so
`probe/top1` is not the number of an evaluation and never part of a table.

    probe/top1     fraction of the held-out images whose class wins the vote of their 20 nearest neighbours in
                   the bank, by the cosine of their features; needs labels
    probe/rankme   RankMe of the embeddings of all these images (Garrido et al., RankMe, 2023, Eq. 1)
    spectrum       eigenvalues of the covariance of these embeddings, divided by their sum, largest first

The backbone is the online network's, in eval mode and float32, on centre crops as in evaluations. Embeddings
are its projections. One process measures, and nothing in the network, in a stream of random numbers or in the
cache of images changes. The other processes wait for it in the next step.

Memory: the crops stay in it as bytes, 0.4 GB at most at 224 px.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from reproduce.data import views
from reproduce.data.dataset import Dataset
from reproduce.data.images import Batch, Images
from reproduce.data.shared_memory import PIECE
from reproduce.nn import features, seeds

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.encoder import Encoder

NEIGHBOURS = 20
"""Neighbours that vote; all of them if the bank is smaller."""
MOST_HELD_OUT, MOST_IN_BANK = 500, 2000
"""Maximum numbers of images, which bound the cost on a large data set."""
HELD_OUT, IN_BANK = 6, 4
"""One of so many images is held out, and one of so many is in the bank."""
SHARE = 0.03
"""Maximum share of the time of training that an automatic probe takes."""
LEAST_IMAGES = 200
"""Minimum number of images for an automatic probe; a vote among fewer shows noise."""
MARGIN = 1.5
"""Cost of the first probe relative to its forward passes: decoding, heads and neighbours come on top."""
THREADS = {"cpu": 0, "cuda": 8}
"""Maximum number of threads that decode the images next to training, by type of device. On a CPU, training
needs the cores."""
EPSILON = 1e-7
"""Constant of RankMe (Garrido et al., Eq. 1), for singular values in float32."""


class Chosen(NamedTuple):
    """Numbers of the images of a probe, which do not overlap."""

    held_out: np.ndarray
    bank: np.ndarray


def chosen(images: Images) -> Chosen:
    """Return the images that a probe uses, at least one of each kind if there are two images.

    They are labelled images if the split has any. The choice depends on their number alone.
    """
    candidates = np.flatnonzero(images.labels >= 0)
    if len(candidates) < 2:
        candidates = np.arange(len(images))
    order = candidates[seeds.shuffled(len(candidates), purpose="probe").numpy()]
    held_out = min(MOST_HELD_OUT, -(-len(order) // HELD_OUT))
    bank = min(MOST_IN_BANK, -(-len(order) // IN_BANK), len(order) - held_out)
    return Chosen(order[:held_out], order[held_out : held_out + bank])


class Outputs(NamedTuple):
    """The outputs of an encoder for the images of a probe, on its device."""

    held_out: Tensor
    """Features of the held-out images, (n, num_features) float32."""
    bank: Tensor
    """Features of the bank, (m, num_features) float32."""
    embeddings: Tensor
    """Projections of both, (n + m, d) float32."""


class Watching:
    """The probe of one run: its images, its cost so far, and when it is due."""

    def __init__(
        self, every: int | str, dataset: Dataset, images: Images, device: torch.device, *, passes: float
    ) -> None:
        """Choose the images; nothing is decoded yet.

        Args:
            every: epochs between two probes, 0 for never, or `auto` (`probe_every` of the site).
            passes: forward passes through the backbone, or as much, that training takes for one image.
        """
        self.images, self.chosen = images, chosen(images)
        self._dataset, self._device, self._passes = dataset, device, passes
        fits = len(images) >= LEAST_IMAGES if every == "auto" else len(images) >= 2
        self.every = every if fits else 0
        self._began = time.perf_counter()
        self._last = 0.0
        self.spent = 0.0
        """Seconds that probes took."""
        self._crops: Tensor | None = None
        self._pieces: list[Future[Batch]] = []
        """Parts of the images that threads decode, in order; empty without threads."""
        self._decoding_since = 0.0
        self.newest: Outputs | None = None
        """Outputs of the newest measurement."""

    @property
    def on(self) -> bool:
        """True if this run is probed at all."""
        return self.every != 0

    def due(self, epoch: int, *, done: float, seen: int) -> bool:
        """Return True if the network is to be measured now.

        If automatic, the cost of all probes stays below `SHARE` of the time so far. A probe during training
        leaves enough for the one at the end, which then takes place even if its cost has grown. Only a probe
        at the end waits for threads that still decode, if that costs little enough. The probes of a given
        number of epochs always wait.

        Args:
            epoch: number of finished epochs.
            done: finished share of the training of this process, above 0 and 1 at the end.
            seen: images that this process's training has seen.
        """
        if self.every != "auto":
            return self.on and (done >= 1 or epoch % int(self.every) == 0)
        if done >= 1 and self.spent:
            return True
        remaining = self._seconds_of_decoding()
        if remaining and done < 1:
            return False
        elapsed = time.perf_counter() - self._began
        cost = self._last or self._estimated((elapsed - self.spent) / seen) + remaining
        reserve = 0 if done >= 1 else cost
        return self.spent + cost <= SHARE * elapsed and self.spent + cost + reserve <= SHARE * elapsed / done

    def _estimated(self, seconds_per_image: float) -> float:
        """Return the cost of the first probe, from the time that training takes for an image."""
        return MARGIN * seconds_per_image / self._passes * sum(map(len, self.chosen))

    @contextmanager
    def decoding(self, decoders: int) -> Iterator[None]:
        """Decode the images in threads inside the block, next to training on a GPU.

        The threads end with the block, after at most one piece each. A broken image raises in `measure`.

        Args:
            decoders: number of processes that decode for training.
        """
        threads = min(THREADS.get(self._device.type, 0), max(1, decoders))
        if not threads:
            yield
            return
        # A process that is forked during an import by a thread could never import the same module.
        Image.preinit()
        Image.init()
        together, crop = np.concatenate(self.chosen), features.crop_of(self._dataset, squash=False)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="probe")
        self._decoding_since = time.perf_counter()
        try:
            self._pieces = [
                pool.submit(self.images.decode, together[begin : begin + PIECE], crop)
                for begin in range(0, len(together), PIECE)
            ]
            yield
        finally:
            pool.shutdown(cancel_futures=True)
            self._pieces = []

    def _seconds_of_decoding(self) -> float:
        """Return the estimated time until threads have decoded all images.

        It is 0 without threads, and infinite if no piece is decoded yet.
        """
        decoded = sum(piece.done() for piece in self._pieces)
        if decoded == len(self._pieces):
            return 0.0
        elapsed = time.perf_counter() - self._decoding_since
        return elapsed * (len(self._pieces) - decoded) / decoded if decoded else math.inf

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Add the time of the block, one probe, to the cost; the next one will take as long."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._last = time.perf_counter() - began
            self.spent += self._last

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """Return `probe/rankme`, and `probe/top1` if the images have labels.

        The result is empty if an output is not finite.
        """
        self.newest = None
        outputs = self._outputs(encoder)
        if not all(bool(each.isfinite().all()) for each in outputs):
            return {}
        self.newest = outputs
        held_out, bank = (torch.from_numpy(self.images.labels[part]) for part in self.chosen)
        measured = {"probe/rankme": rankme(outputs.embeddings)}
        if bool((held_out >= 0).all()) and bool((bank >= 0).all()):
            rows = nearest(outputs.held_out, outputs.bank, NEIGHBOURS)
            right = vote(bank[rows], len(self.images.classes)) == held_out
            measured["probe/top1"] = right.double().mean().item()
        return measured

    def _outputs(self, encoder: Encoder) -> Outputs:
        assert encoder.projector is not None
        rows: list[tuple[Tensor, Tensor]] = []
        with features.inference(encoder, self._device):
            for crops in torch.split(self._pixels(), features.CHUNK):
                pixels = crops.to(self._device).float() / 255
                found = encoder.backbone(views.normalise(pixels, self._dataset.mean, self._dataset.std))
                rows.append((found.float(), encoder.projector(found).float()))
        h, z = (torch.cat(parts) for parts in zip(*rows, strict=True))
        number = len(self.chosen.held_out)
        return Outputs(h[:number], h[number:], z)

    def _pixels(self) -> Tensor:
        """Return the centre crops, first of the held-out images, (n + m, 3, size, size) uint8."""
        if self._crops is None:
            # Past the cache of the images, which belongs to training.
            if self._pieces:
                self._crops = torch.cat([piece.result().pixels for piece in self._pieces])
                self._pieces = []
            else:
                crop = features.crop_of(self._dataset, squash=False)
                self._crops = self.images.decode(np.concatenate(self.chosen), crop).pixels
        return self._crops

    def shown(self, num_images: int, num_neighbours: int) -> tuple[list[list[Tensor]], list[list[str]]]:
        """Return the first held-out images of the newest measurement, each with its nearest in the bank.

        Returns:
            For each of them a row of crops, (3, size, size) uint8 each, and the names of their classes. A
            name is empty for an image without a label.
        """
        assert self.newest is not None
        first, crops = len(self.chosen.held_out), self._pixels()
        found = nearest(self.newest.held_out[:num_images], self.newest.bank, num_neighbours)
        together = np.concatenate(self.chosen)
        pictures: list[list[Tensor]] = []
        names: list[list[str]] = []
        for row, neighbours in enumerate(found.tolist()):
            places = [row, *(first + each for each in neighbours)]
            labels = self.images.labels[together[places]].tolist()
            pictures.append(list(crops[places]))
            names.append([self.images.classes[label] if label >= 0 else "" for label in labels])
        return pictures, names


def nearest(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Return the rows of `bank` with the largest cosines to each query, largest first, (n, at most k) int64.

    Of equal cosines, the first row comes first.
    """
    cosines = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    return cosines.sort(dim=1, descending=True, stable=True).indices[:, :k].cpu()


def vote(labels: Tensor, num_classes: int) -> Tensor:
    """Return the label with the most votes in each row of `labels`, (n, k); of labels that tie, the smallest.

    Returns:
        (n,) int64.
    """
    votes: Tensor = F.one_hot(labels, num_classes).sum(dim=1)
    winners: Tensor = votes.argmax(dim=1)  # the first of equal maxima
    return winners


def rankme(embeddings: Tensor) -> float:
    """Return RankMe of embeddings (n, d), from 1 to min(n, d), whose mean is not removed.

    It is exp(- sum p log p) with p = sigma / sum(sigma) + 1e-7, for the singular values sigma. If all
    embeddings are zero, the result is 0.
    """
    values = _squared_singular_values(embeddings.double()).sqrt()
    if not bool(values.any()):
        return 0.0
    return float(torch.special.entr(values / values.sum() + EPSILON).sum().exp())


def spectrum(embeddings: Tensor) -> list[float]:
    """Return the eigenvalues of the covariance of embeddings (n, d) divided by their sum, largest first.

    There are min(n - 1, d): all others are 0 for any n embeddings. The result is empty if all embeddings are
    the same.
    """
    z = embeddings.double()
    values = _squared_singular_values(z - z.mean(dim=0))[: min(len(z) - 1, z.shape[1])]
    total = float(values.sum())
    return [float(value) / total for value in values] if total > 0 else []


def _squared_singular_values(x: Tensor) -> Tensor:
    """Return the squared singular values of x (n, d) float64, largest first, (min(n, d),) on the CPU."""
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(0).clamp(min=0).cpu()
