"""Features of whole splits, for the protocols.

They are computed in eval mode without gradients and in float32, whatever the encoder was trained in. They are
in the order of the split on every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from reproduce.data import views
from reproduce.data.dataset import Dataset
from reproduce.data.images import CentreCrop, Whole, batches, found_in
from reproduce.lazy import F, torch
from reproduce.messages import InvalidError
from reproduce.nn import distributed, feature_cache
from reproduce.runs import cores
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.data.images import Images
    from reproduce.nn.encoder import Encoder

CHUNK = 256
"""Images that pass through the backbone together."""


class Split(NamedTuple):
    """The labelled images of one split; unlabelled ones are left out."""

    title: str
    """Name for messages, such as `the train split of stl10`."""
    images: Images
    indices: Tensor
    """Indices of the labelled images, (n,) int64, ascending."""
    labels: Tensor
    """Labels of these images, (n,) int64 from 0 to num_classes - 1."""
    num_classes: int


class Pairs(NamedTuple):
    """Outputs of an encoder for two augmented views of each image.

    Each tensor is (n, d) float32 on the CPU.
    """

    projections: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor]


def train_and_test(dataset: Dataset, site: Site) -> tuple[Split, Split]:
    """Return the labelled images of the two splits that an evaluation uses.

    Raises:
        ValueError: a split has no labelled image, or the two have different classes.
    """
    train, test = (labelled(dataset, name, site) for name in (dataset.train_split, dataset.test_split))
    ours, theirs = train.images.classes, test.images.classes
    if ours != theirs:
        odd = sorted(set(ours) ^ set(theirs)) or "none, but the order differs"
        raise InvalidError(
            f"{train.title} has {len(ours)} classes and {test.title} {len(theirs)}. They must be the same; "
            f"only in one of them: {odd}."
        )
    missing = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if missing:
        names = ", ".join(ours[label] for label in missing)
        raise InvalidError(f"{test.title} has classes without a labelled image in {train.title}: {names}.")
    return train, test


def labelled(dataset: Dataset, name: str, site: Site) -> Split:
    """Return the labelled images of the split `name`.

    Raises:
        ValueError: the split has no labelled images.
    """
    images, title = dataset.load(name, site), f"the {name} split of {dataset.name}"
    labels = torch.tensor(images.labels)
    indices = (labels >= 0).nonzero().flatten()
    if len(indices) == 0:
        raise InvalidError(
            f"{title} has {len(labels)} images without labels, but an evaluation needs labelled images."
        )
    return Split(title, images, indices, labels[indices], len(images.classes))


def extract(
    encoder: Encoder,
    dataset: Dataset,
    split: Split,
    site: Site,
    device: torch.device,
    *,
    squash: bool = False,
) -> Tensor:
    """Return pooled features of the un-augmented images of `split`, (n, num_features) float32 on the CPU.

    The tensor belongs to the caller. If the digests of encoder and images are known, the features are kept on
    disk (`feature_cache.py`). Every evaluation of the same images then reads what the first one computed, to
    the last bit. A split with fewer indices, such as held-out images, is cached separately.

    Args:
        squash: true for whole images, squashed to squares, in place of centre crops.

    Raises:
        FloatingPointError: a feature is not finite.
    """

    def rows() -> Iterator[Tensor]:
        mine = split.indices[shares(len(split.indices))]
        workers = cores.decoders(site.workers, device.type)
        for batch in batches(
            split.images, mine, CHUNK, crop=crop_of(dataset, squash=squash), workers=workers
        ):
            pixels = batch.pixels.pin_memory() if device.type == "cuda" else batch.pixels
            crops = pixels.to(device, non_blocking=True).float() / 255
            yield encoder.backbone(views.normalise(crops, dataset.mean, dataset.std))

    def compute() -> Tensor:
        with inference(encoder, device):
            return _finite(in_order(len(split.indices), rows()), split.title)

    return feature_cache.once(
        lambda: content(encoder, dataset, split, device, squash=squash),
        num_rows=len(split.indices),
        site=site,
        device=device,
        compute=compute,
    )


def crop_of(dataset: Dataset, *, squash: bool) -> CentreCrop:
    """Return how the test images of `dataset` are cut; `squash` as in `extract`."""
    return CentreCrop(dataset.resize, dataset.size, dataset.test_resampling, squash)


def content(
    encoder: Encoder, dataset: Dataset, split: Split, device: torch.device, *, squash: bool = False
) -> dict[str, Any] | None:
    """Return everything that determines the features of `split`, apart from the code.

    None if a digest is unknown. Causes that only change the last bits, such as the model of a GPU or the
    number of threads, are left out.
    """
    import hashlib

    import PIL

    if not encoder.digest or not split.images.digest:
        return None
    return {
        "encoder": encoder.digest,
        "backbone": encoder.architecture,
        # The digest covers names and sizes, which are the same for synthetic scenes of every seed.
        "dataset": dataset.id,
        "images": split.images.digest,
        "files": split.images.signature,
        "indices": hashlib.sha256(split.indices.numpy().data).hexdigest(),
        "crop": [dataset.resize, dataset.size, dataset.test_resampling, squash],
        "normalisation": [dataset.mean, dataset.std],
        "device": device.type,
        "torch": str(torch.__version__),
        "pillow": PIL.__version__,
    }


def extract_pairs(encoder: Encoder, dataset: Dataset, site: Site, device: torch.device, seed: int) -> Pairs:
    """Return the outputs of `encoder` for two augmented views of each image of the test split.

    The views are drawn from the encoder's own augmentation and `seed`. Neither is a small crop or a patch.

    Raises:
        FloatingPointError: a value is not finite.
        ValueError: the split has fewer than two images, or this suite did not pretrain the encoder.
    """
    if encoder.augmentation is None or encoder.projector is None:
        raise InvalidError(
            "Projections of augmented views need an encoder with projector and augmentation, "
            "from a pretraining run of this suite."
        )
    projector, augmentation = encoder.projector, encoder.augmentation.pairs()
    images = dataset.load(dataset.test_split, site)
    title = f"the {dataset.test_split} split of {dataset.name}"
    if len(images) < 2:
        raise InvalidError(f"{title} has {len(images)} images, but distances need at least 2.")
    widths: list[int] = []

    def rows() -> Iterator[Tensor]:
        workers = cores.decoders(site.workers, device.type)
        parts = torch.split(shares(len(images)), CHUNK)
        shape = Whole(augmentation.least(dataset.size, num_views=2))
        for found in found_in(images, [parts], shape, workers):
            outputs = []
            both = views.sample_originals(
                found.images.on(device),
                found.indices,
                augmentation=augmentation,
                size=dataset.size,
                seed=seed,
                epoch=0,
                num_views=2,
            )
            for sampled in both.views:
                features = encoder.backbone(views.normalise(sampled, dataset.mean, dataset.std))
                outputs += [projector(features).float(), features.float()]
            widths[:] = [output.shape[1] for output in outputs]
            yield torch.cat(outputs, dim=1)

    with inference(encoder, device):
        together = _finite(in_order(len(images), rows()), title)
    z1, h1, z2, h2 = torch.split(together, widths, dim=1)
    return Pairs((z1, z2), (h1, h2))


@contextmanager
def inference(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """Switch to eval mode without gradients for the duration of the block, then restore all modes."""
    parts = [part for part in (encoder.backbone, encoder.projector) if part is not None]
    modules = [module for part in parts for module in part.modules()]
    training = [module.training for module in modules]
    for part in parts:
        part.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def shares(num_rows: int, chunk: int = CHUNK) -> Tensor:
    """Return the rows that this process computes, in order.

    Chunks of `chunk` rows are dealt to the processes in turn. The chunks do not depend on the number of
    processes, so neither do the values, to the last bit. A process without a chunk in the last round computes
    the last row again, since all processes must take part in the gathering.
    """
    step, offset = chunk * distributed.world_size(), chunk * distributed.rank()
    starts = range(offset, num_rows + offset, step)
    return torch.cat(
        [torch.arange(min(start, num_rows - 1), min(start + chunk, num_rows)) for start in starts]
    )


def in_order(num_rows: int, mine: Iterable[Tensor], chunk: int = CHUNK) -> Tensor:
    """Return all rows in order on every process, (num_rows, d) float32 on the CPU.

    Each process contributes the chunks that `shares` assigns to it.

    Args:
        mine: this process's chunks, each (at most `chunk`, d), on any device.
    """
    step = chunk * distributed.world_size()
    everyone = (
        (first, distributed.gather(F.pad(rows.float(), (0, 0, 0, chunk - len(rows)))))
        for first, rows in zip(range(0, num_rows, step), mine, strict=True)
    )
    result = torch.empty(0, 0)
    # One chunk later: the copy waits for the GPU, which computes a chunk while the CPU decodes the next.
    for (first, rows), _ in pairwise(chain(everyone, [(num_rows, result)])):
        if first == 0:
            result = torch.empty(num_rows, rows.shape[1])
        result[first : first + step] = rows[: num_rows - first].cpu()
    return result


def _finite(x: Tensor, title: str) -> Tensor:
    """Return `x`, or raise FloatingPointError if a value is not finite.

    A classifier or a vote on NaN would give a number that looks like a result.
    """
    if not all(extreme.isfinite() for extreme in x.aminmax()):
        raise FloatingPointError(f"The features of {title} are not all finite: the encoder has diverged.")
    return x
