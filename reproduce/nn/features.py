"""Features of whole splits, for the protocols: in eval mode, without gradients, float32, in the order of the
split on every process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from reproduce.data import views
from reproduce.data.dataset import Dataset
from reproduce.data.images import batches
from reproduce.lazy import F, torch
from reproduce.messages import InvalidError
from reproduce.nn import distributed, feature_cache
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.data.images import Images
    from reproduce.nn.encoder import Encoder

CHUNK = 256
"""Images that go through the backbone together."""


class Split(NamedTuple):
    """The labelled images of one split; unlabelled ones are left out."""

    title: str
    """For messages, such as `the train split of stl10`."""
    images: Images
    indices: Tensor
    """Of the labelled images, (n,) int64, ascending."""
    labels: Tensor
    """Theirs, (n,) int64 from 0 to num_classes - 1."""
    num_classes: int


class Pairs(NamedTuple):
    """What an encoder makes of two augmented views of each image; each tensor (n, d) float32 on the CPU."""

    projections: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor]


def train_and_test(dataset: Dataset, site: Site) -> tuple[Split, Split]:
    """The labelled images of the two splits that an evaluation uses.

    Raises:
        ValueError: a split has no labelled image, or the two do not have the same classes.
    """
    train, test = (labelled(dataset, name, site) for name in (dataset.train_split, dataset.test_split))
    ours, theirs = train.images.classes, test.images.classes
    if ours != theirs:
        odd = sorted(set(ours) ^ set(theirs)) or "none, but the order differs"
        raise InvalidError(
            f"{train.title} has {len(ours)} classes and {test.title} {len(theirs)}; only in one of them: {odd}. They must be the same."
        )
    missing = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if missing:
        names = ", ".join(ours[label] for label in missing)
        raise InvalidError(f"{test.title} has classes without a labelled image in {train.title}: {names}.")
    return train, test


def labelled(dataset: Dataset, name: str, site: Site) -> Split:
    """The labelled images of the split `name`.

    Raises:
        ValueError: there is none.
    """
    images, title = dataset.load(name, site), f"the {name} split of {dataset.name}"
    labels = torch.tensor(images.labels)
    indices = (labels >= 0).nonzero().flatten()
    if len(indices) == 0:
        raise InvalidError(
            f"{title} has {len(labels)} images, none with a label: an evaluation needs labelled images."
        )
    return Split(title, images, indices, labels[indices], len(images.classes))


def extract(encoder: Encoder, dataset: Dataset, split: Split, site: Site, device: torch.device) -> Tensor:
    """Pooled features of the images of `split`, un-augmented; (n, num_features) float32 on the CPU, the
    caller's own.

    Features of an encoder and images whose digests are known are kept on disk (`feature_cache.py`), so that
    every evaluation of the same images reads what the first one computed, to the last bit. A split of fewer
    indices, such as images held out, is another content.

    Raises:
        FloatingPointError: a feature is not finite.
    """

    def rows() -> Iterator[Tensor]:
        mine = split.indices[shares(len(split.indices))]
        for batch in batches(
            split.images, mine, CHUNK, crop=(dataset.resize, dataset.size), workers=site.workers
        ):
            crops = batch.pixels.to(device).float() / 255
            yield encoder.backbone(views.normalise(crops, dataset.mean, dataset.std))

    def compute() -> Tensor:
        with inference(encoder, device):
            return _finite(in_order(len(split.indices), rows()), split.title)

    return feature_cache.once(
        lambda: content(encoder, dataset, split, device),
        num_rows=len(split.indices),
        site=site,
        device=device,
        compute=compute,
    )


def content(encoder: Encoder, dataset: Dataset, split: Split, device: torch.device) -> dict[str, Any] | None:
    """All that decides the features of `split` but the code of this suite; None where a digest is not known.

    What only moves last bits, such as the model of a GPU or the number of threads, is left out: features are
    those of one of them.
    """
    import hashlib

    import PIL

    if not encoder.digest or not split.images.digest:
        return None
    return {
        "encoder": encoder.digest,
        "backbone": encoder.architecture,
        "dataset": dataset.id,  # synthetic scenes of another seed have the same names and sizes, which are all that a digest sees
        "images": split.images.digest,
        "indices": hashlib.sha256(split.indices.numpy().data).hexdigest(),
        "crop": [dataset.resize, dataset.size],
        "normalisation": [dataset.mean, dataset.std],
        "precision": "bfloat16" if _mixed(encoder, device) else "float32",
        "device": device.type,
        "torch": str(torch.__version__),
        "pillow": PIL.__version__,
    }


def extract_pairs(encoder: Encoder, dataset: Dataset, site: Site, device: torch.device, seed: int) -> Pairs:
    """What `encoder` makes of two augmented views of each image of the test split, drawn from its own
    augmentation and `seed`.

    Raises:
        FloatingPointError: a value is not finite.
        ValueError: the split has fewer than two images, or the encoder is not one that was pretrained here.
    """
    if encoder.augmentation is None or encoder.projector is None:
        raise InvalidError(
            "Projections of augmented views need the projector and the augmentation of a pretraining run of this suite."
        )
    projector, augmentation = encoder.projector, encoder.augmentation
    images, title = (
        dataset.load(dataset.test_split, site),
        f"the {dataset.test_split} split of {dataset.name}",
    )
    if len(images) < 2:
        raise InvalidError(f"{title} has {len(images)} images: distances between images need at least 2.")
    widths: list[int] = []

    def rows() -> Iterator[Tensor]:
        for batch in batches(images, shares(len(images)), CHUNK, canvas=dataset.canvas, workers=site.workers):
            canvas, outputs = batch.pixels.to(device), []
            for view in range(2):
                sampled = views.sample(
                    canvas,
                    batch.sizes,
                    batch.indices,
                    augmentation=augmentation,
                    size=dataset.size,
                    seed=seed,
                    epoch=0,
                    view=view,
                )
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
    """Eval mode and no gradients, bfloat16 on a GPU where the encoder was trained in it; afterwards the
    modules are as they were."""
    parts = [part for part in (encoder.backbone, encoder.projector) if part is not None]
    modules = [module for part in parts for module in part.modules()]
    training = [module.training for module in modules]
    for part in parts:
        part.eval()
    try:
        with torch.no_grad(), precision(encoder, device):
            yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def precision(encoder: Encoder, device: torch.device) -> torch.autocast:
    """The arithmetic of the backbone: bfloat16 on a GPU where the encoder was trained in it, else float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_mixed(encoder, device))


def _mixed(encoder: Encoder, device: torch.device) -> bool:
    """Whether the encoder's arithmetic is bfloat16's."""
    return encoder.precision == "bfloat16" and device.type == "cuda"


def shares(num_rows: int, chunk: int = CHUNK) -> Tensor:
    """The rows that this process computes, in order: chunks of `chunk` rows are dealt to the processes in
    turn.

    The chunks are the same ones whatever the number of processes, so the values are too, to the last bit. A
    process that has nothing to do in the last round computes the last row once more, since all must take part
    in the gathering.
    """
    step, offset = chunk * distributed.world_size(), chunk * distributed.rank()
    starts = range(offset, num_rows + offset, step)
    return torch.cat(
        [torch.arange(min(start, num_rows - 1), min(start + chunk, num_rows)) for start in starts]
    )


def in_order(num_rows: int, mine: Iterable[Tensor], chunk: int = CHUNK) -> Tensor:
    """All rows in order, on every process, from the chunks of `shares` that each computes; (num_rows, d)
    float32 on the CPU.

    Args:
        mine: this process's chunks, each (at most `chunk`, d), on any device.
    """
    step = chunk * distributed.world_size()
    result = torch.empty(0, 0)
    for first, rows in zip(range(0, num_rows, step), mine, strict=True):
        padded = F.pad(rows.float(), (0, 0, 0, chunk - len(rows)))
        if first == 0:
            result = torch.empty(num_rows, rows.shape[1])
        result[first : first + step] = distributed.gather(padded)[: num_rows - first].cpu()
    return result


def _finite(x: Tensor, title: str) -> Tensor:
    """`x`, or FloatingPointError: a classifier or a vote on NaN would give a number that looks like a
    result."""
    if not all(extreme.isfinite() for extreme in x.aminmax()):
        raise FloatingPointError(f"The features of {title} are not all finite: the encoder has diverged.")
    return x
