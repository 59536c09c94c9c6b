"""Linear classifiers on an encoder's features, trained with SGD on augmented views.

The protocols of ImageNet share them. Classifiers with different learning rates or schedules are trained side
by side, in one pass over the data: a batch passes through the backbone once, and one matrix product gives the
logits of all classifiers. For the n features x of a batch, labels y and p = softmax(x W^T + b)

    r = (p - onehot(y)) / n,    dL/dW = r^T x,    dL/db = sum of the rows of r,    dL/dx = r W

is the gradient of the mean cross-entropy L, so no graph is kept. Five classifiers of 1000 classes on 2048
features take 3 tensors of 41 MB (weights, velocities, gradient) and, at batch 1024, logits of 20 MB.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from reproduce.data import views
from reproduce.data.ahead import ahead
from reproduce.data.dataset import Dataset
from reproduce.lazy import F, torch
from reproduce.messages import InvalidError
from reproduce.nn import distributed, seeds
from reproduce.nn.keeper import Keeper
from reproduce.runs import cores, encoder_file
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.data.augmentation import Augmentation
    from reproduce.nn.encoder import Encoder
    from reproduce.nn.features import Split

CHUNK = 4096
"""Images whose logits by all classifiers are in memory together."""


class Classifiers:
    """Linear classifiers with the same initial weights, each trained by SGD with its own learning rate.

    Each is the classifier that training it alone would yield, up to the rounding of a matrix product.
    `weight` is (num, classes, d) and `bias` (num, classes), float32.
    """

    def __init__(
        self,
        num: int,
        *,
        num_classes: int,
        num_features: int,
        seed: int,
        device: torch.device,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
    ) -> None:
        """Create `num` classifiers.

        The initial weights come from a generator on the CPU, so they do not depend on the device. They are
        drawn as in dm-haiku's Linear (haiku/_src/basic.py), which byol/eval_experiment.py uses: from a normal
        distribution with standard deviation 1 / sqrt(d), truncated at two of them. Biases are 0. Momentum and
        decay are torch.optim.SGD's.
        """
        initial, deviation = torch.empty(num_classes, num_features), num_features**-0.5
        torch.nn.init.trunc_normal_(
            initial,
            std=deviation,
            a=-2 * deviation,
            b=2 * deviation,
            generator=seeds.generator("classifier", seed),
        )
        self.weight = initial.to(device).repeat(num, 1, 1)
        self.bias = torch.zeros(num, num_classes, device=device)
        self._velocities = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self._gradient = torch.empty_like(self.weight)
        self._momentum, self._nesterov, self._weight_decay = momentum, nesterov, weight_decay

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state from which training resumes: the tensors themselves, not copies."""
        return {
            "weight": self.weight,
            "bias": self.bias,
            "by weight": self._velocities[0],
            "by bias": self._velocities[1],
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `state_dict` returned."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def logits(self, x: Tensor) -> Tensor:
        """Map features (n, d) to logits (n, num, classes)."""
        return torch.addmm(self.bias.flatten(), x, self.weight.flatten(0, 1).T).view(-1, *self.bias.shape)

    def residual(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy of each classifier, and its gradient by the logits.

        Args:
            x: features, (n, d) float32.
            y: labels, (n,) int64.

        Returns:
            The cross-entropies, (num,), and the gradients, (n, num, classes).
        """
        log_p, rows = self.logits(x).log_softmax(dim=2), torch.arange(len(x), device=x.device)
        losses = log_p[rows, :, y].mean(dim=0).neg()
        residual = log_p.exp_()
        residual[rows, :, y] -= 1
        return losses, residual.div_(len(x))

    def by_features(self, residual: Tensor) -> Tensor:
        """Return the gradient of the summed losses by the features, (n, d)."""
        return residual.flatten(1) @ self.weight.flatten(0, 1)

    def update(self, x: Tensor, residual: Tensor, rates: Sequence[float]) -> None:
        """Take one step of SGD along the gradient that `residual` gives on x.

        A classifier whose rate is 0 does not change.
        """
        # Without waiting for the GPU, as `torch.tensor(rates, device=...)` would.
        step = torch.tensor(rates).to(x.device, non_blocking=True).view(-1, 1)
        torch.mm(residual.flatten(1).T, x, out=self._gradient.flatten(0, 1))
        self._move(self.weight, self._gradient, self._velocities[0], step[..., None])
        self._move(self.bias, residual.sum(dim=0), self._velocities[1], step)

    def _move(self, parameter: Tensor, gradient: Tensor, velocity: Tensor, step: Tensor) -> None:
        """Update v <- momentum v + g, then w <- w - step (g + momentum v), or w - step v without Nesterov.

        It overwrites `gradient`.
        """
        if self._weight_decay:
            gradient.add_(parameter, alpha=self._weight_decay)
        velocity.mul_(self._momentum).add_(gradient)
        parameter.addcmul_(
            gradient.add_(velocity, alpha=self._momentum) if self._nesterov else velocity, step, value=-1
        )

    def top1(self, x: Tensor, y: Tensor) -> list[float]:
        """Return the top-1 of each classifier as a fraction, or NaN if its logits are not finite."""
        right = torch.zeros(len(self.bias), dtype=torch.int64, device=x.device)
        finite = torch.ones_like(self.bias[:, 0], dtype=torch.bool)
        for some, labels in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
            logits = self.logits(some)
            right += (logits.argmax(dim=2) == labels[:, None]).sum(dim=0)
            finite &= logits.isfinite().all(dim=2).all(dim=0)
        return torch.where(finite, right.double() / len(x), math.nan).tolist()

    def measure(self, index: int, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return `top1` and `top5` of one classifier on features x, (n, d), with labels y, (n,).

        Raises:
            FloatingPointError: a logit is not finite.
        """
        return accuracies(F.linear(x, self.weight[index], self.bias[index]), y)


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return `top1` and `top5` as fractions.

    Args:
        logits: (n, num_classes). They must be finite, since the largest of NaNs would look like a prediction.
        labels: (n,) int64.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    if not logits.isfinite().all():
        raise FloatingPointError(
            "The linear classifier's outputs are not finite: its learning rate is too high for the features."
        )
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == labels[:, None]  # (n, 5)
    return {"top1": right[:, 0].double().mean().item(), "top5": right.any(dim=1).double().mean().item()}


class Batch(NamedTuple):
    """Images of one step."""

    views: Tensor
    """Views of this process's share, normalised, (m, 3, size, size) float32 on the device."""
    labels: Tensor
    """Labels of the images of all processes, (n,) int64 on the device."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Augmented views of labelled images in batches, in an order that depends on the seed and the epoch.

    An epoch consists of as few batches of nearly equal size as `batch_size` allows. The last one is thus not
    a small remainder, whose gradient would be noisy and whose single image BatchNorm could not normalise.
    Each process takes a contiguous share of each batch.
    """

    dataset: Dataset
    split: Split
    augmentation: Augmentation
    batch_size: int
    """Maximum number of images per step over all devices."""
    seed: int
    site: Site
    device: torch.device

    @property
    def num_steps(self) -> int:
        """Number of batches of an epoch."""
        return math.ceil(len(self.split.indices) / self.batch_size)

    @property
    def smallest_batch(self) -> int:
        """Number of images of the smallest batch."""
        return len(self.split.indices) // self.num_steps

    @property
    def digest(self) -> str:
        """Digest of the images, and of which of them are shown with which labels.

        The digest of the images is `Images.digest`.
        """
        chosen = {"indices": self.split.indices, "labels": self.split.labels}
        return f"{self.split.images.digest} {encoder_file.digest(chosen)}"

    @contextmanager
    def batches(self, epochs: int, first: int = 0) -> Iterator[Iterator[Batch]]:
        """Provide the batches of `epochs` epochs, from step `first` on; steps count from 0 over all epochs.

        The processes that decode and the batches prepared ahead are kept from one epoch to the next.
        """
        with ahead(self._batches(epochs, first), self.device, tensors=lambda batch: batch) as batches:
            yield batches

    def _batches(self, epochs: int, first: int) -> Generator[Batch]:
        from reproduce.data.images import Whole, found_in

        planned: deque[Tensor] = deque()  # rows of the batches that are requested, for all processes

        def mine(epoch: int) -> list[Tensor]:
            order = torch.randperm(
                len(self.split.indices), generator=seeds.generator("classifier order", self.seed, epoch)
            )
            parts = torch.tensor_split(order, self.num_steps)[max(0, first - epoch * self.num_steps) :]
            planned.extend(parts)
            return [self.split.indices[part[slice(*bounds(len(part)))]] for part in parts]

        requested = (mine(epoch) for epoch in range(first // self.num_steps, epochs))
        workers = cores.decoders(self.site.workers, self.device.type)
        shape = Whole(self.augmentation.least(self.dataset.size, num_views=1))
        for step, found in enumerate(found_in(self.split.images, requested, shape, workers), first):
            part = planned.popleft()
            (view,) = views.sample_originals(
                found.images.on(self.device),
                found.indices,
                augmentation=self.augmentation,
                size=self.dataset.size,
                seed=self.seed,
                epoch=step // self.num_steps,
                num_views=1,
            ).views
            normalised = views.normalise(view, self.dataset.mean, self.dataset.std).contiguous(
                memory_format=torch.channels_last
            )
            yield Batch(normalised, self.split.labels[part].to(self.device, non_blocking=True))


def bounds(n: int) -> tuple[int, int]:
    """Return the range of the n rows that this process computes; see `share`."""
    return share(n, distributed.rank(), distributed.world_size())


def share(n: int, rank: int, processes: int) -> tuple[int, int]:
    """Return the first of n rows that process `rank` of `processes` computes, and the one after the last.

    Shares are contiguous, in rank order, and differ by at most one row. A process without a share still
    computes one of the rows, since all must take part in the gathering.
    """
    begin = n * rank // processes
    return begin, max(n * (rank + 1) // processes, begin + 1)


def gathered(x: Tensor, n: int) -> Tensor:
    """Return all n rows in order on every process, without gradients.

    Args:
        x: rows of this process's `bounds`.
    """
    processes = distributed.world_size()
    if processes == 1:
        return x
    most = math.ceil(n / processes)
    everyone = distributed.gather(F.pad(x, (0, 0, 0, most - len(x))))
    counts = [n * (rank + 1) // processes - n * rank // processes for rank in range(processes)]
    return torch.cat([rows[:count] for rows, count in zip(torch.split(everyone, most), counts, strict=True)])


def some_of(split: Split, rows: Tensor, what: str) -> Split:
    """Return the labelled images of `split` in these rows, in ascending order.

    Args:
        what: name of the part, for messages.
    """
    rows = rows.sort().values
    return split._replace(
        title=f"{what} of {split.title}", indices=split.indices[rows], labels=split.labels[rows]
    )


def hold_out(split: Split, count: int, seed: int, among: Tensor | None = None) -> tuple[Split, Tensor]:
    """Return `count` labelled images of `split` that the seed draws, and the rows of all others, (n,).

    Args:
        among: rows to draw from, (m,). None for all.

    Raises:
        ValueError: there are fewer images, or all would be held out.
    """
    rows = torch.arange(len(split.indices)) if among is None else among
    rest = len(split.indices) - count
    if count > len(rows) or rest < 1:
        limit = min(len(rows), len(split.indices) - 1)
        raise InvalidError(
            f"num_held_out is {count}, but {split.title} has only {limit} labelled images to hold out."
        )
    drawn = rows[torch.randperm(len(rows), generator=seeds.generator("held out", seed))[:count]]
    others = torch.ones(len(split.indices), dtype=torch.bool)
    others[drawn] = False
    return some_of(split, drawn, "the held-out part"), others.nonzero().flatten()


class Labelled(NamedTuple):
    """Features and their labels, on the device."""

    x: Tensor
    """(n, d) float32."""
    y: Tensor
    """(n,) int64."""


def labelled_features(
    encoder: Encoder, dataset: Dataset, split: Split, site: Site, device: torch.device
) -> Labelled:
    """Return pooled features of un-augmented centre crops, as `features.extract` computes them."""
    from reproduce.nn import features

    return Labelled(
        features.extract(encoder, dataset, split, site, device).to(device), split.labels.to(device)
    )


def fit(
    classifiers: Classifiers,
    names: Sequence[str],
    encoder: Encoder,
    stream: Stream,
    rates: Callable[[int], Sequence[float]],
    *,
    epochs: int,
    held_out: Labelled | None,
    watch: Watch,
) -> list[float]:
    """Train all `classifiers` on a frozen encoder.

    It resumes from the newest checkpoint in the folder of `watch`, with the same numbers.

    Args:
        names: names of the classifiers, such as `lr 0.1`, for the record.
        rates: returns the learning rate of each classifier at a step, counted from 0 over all epochs.

    Returns:
        The top-1 of each classifier on the held-out images. Empty without held-out images. NaN for a
        classifier whose loss was not finite, which is excluded from the comparison.

    Raises:
        FloatingPointError: no classifier's loss stayed finite.
        Interrupted: the run received a stop request. A checkpoint contains its progress.
        ValueError: the checkpoint is from another encoder or from other images.
    """
    scores: list[float] = []
    sound = [True] * len(names)
    total = torch.zeros(len(names), device=stream.device)
    first_epoch = first_index = 0
    kept = keeper(encoder, stream, watch)
    if kept.saved is not None:
        classifiers.load_state_dict(kept.saved["classifiers"])
        total.copy_(kept.saved["total"])
        scores, sound = kept.saved["scores"], kept.saved["sound"]
        first_epoch, first_index = kept.saved["epoch"], kept.saved["step"]
        _tag_diverged(names, sound, watch)
    start = first_epoch * stream.num_steps + first_index
    with kept.interruptible() as due, stream.batches(epochs, start) as batches:
        for epoch in range(first_epoch, epochs):
            for index in range(first_index if epoch == first_epoch else 0, stream.num_steps):
                batch = next(batches)
                x = gathered(_frozen(encoder, batch.views), len(batch.labels))
                losses, residual = classifiers.residual(x, batch.labels)
                classifiers.update(x, residual, rates(epoch * stream.num_steps + index))
                total += losses
                watch.report(progress(stream, epoch, index, epochs))
                if last := index + 1 == stream.num_steps:
                    scores, sound = _end_of_epoch(
                        classifiers,
                        names,
                        (total / stream.num_steps).tolist(),
                        sound,
                        held_out,
                        watch,
                        (epoch + 1) * stream.num_steps,
                    )
                    total.zero_()
                if due():
                    done = {
                        "epoch": epoch + last,
                        "step": 0 if last else index + 1,
                        "scores": scores,
                        "sound": sound,
                        "total": total,
                    }
                    kept.save(
                        {"classifiers": classifiers.state_dict(), **done}, epoch, index + 1, stream.num_steps
                    )
    return scores


def keeper(encoder: Encoder, stream: Stream, watch: Watch) -> Keeper:
    """Return the keeper of the checkpoints of a training on `stream` that starts from `encoder`.

    Raises:
        ValueError: there is a checkpoint from another encoder or from other images.
    """
    # Only if needed: the digest of a million files takes a while.
    wanted = watch.folder is not None and distributed.main_process()
    about = {"encoder": encoder.digest, "choice of images": stream.digest} if wanted else {}
    return Keeper(watch, about, seconds=stream.site.checkpoint_seconds)


def _end_of_epoch(
    classifiers: Classifiers,
    names: Sequence[str],
    losses: Sequence[float],
    sound: Sequence[bool],
    held_out: Labelled | None,
    watch: Watch,
    step: int,
) -> tuple[list[float], list[bool]]:
    """Record the epoch's mean losses and, with held-out images, the scores.

    Returns:
        The scores, and which classifiers still have finite losses.

    Raises:
        FloatingPointError: no classifier has.
    """
    finite = [was and math.isfinite(loss) for was, loss in zip(sound, losses, strict=True)]
    if finite != sound:
        _tag_diverged(names, finite, watch)
    if not any(finite):
        raise diverged(names)
    scores: list[float] = []
    measured = {f"loss/{name}": loss for name, loss in zip(names, losses, strict=True)}
    if held_out is not None:
        scores = [
            top if good else math.nan for top, good in zip(classifiers.top1(*held_out), finite, strict=True)
        ]
        measured |= {f"held_out_top1/{name}": score for name, score in zip(names, scores, strict=True)}
    watch.record.log(step, measured)
    return scores, finite


def _tag_diverged(names: Sequence[str], sound: Sequence[bool], watch: Watch) -> None:
    """Tag the run with the names of the classifiers that diverged, if any."""
    if not all(sound):
        watch.record.tag(
            "diverged", ", ".join(name for name, good in zip(names, sound, strict=True) if not good)
        )


def progress(stream: Stream, epoch: int, index: int, epochs: int) -> Progress:
    """Return the progress after batch number `index` of epoch number `epoch`, both from 0.

    Args:
        epochs: number of epochs of the training.
    """
    n = len(stream.split.indices)
    return Progress(
        epoch * n + n * (index + 1) // stream.num_steps, epochs * n, "images", f"epoch {epoch + 1}/{epochs}"
    )


def diverged(names: Sequence[str]) -> FloatingPointError:
    """Return the error of a training in which all classifiers diverged."""
    return FloatingPointError(
        f"No classifier's loss stayed finite ({', '.join(names)}): lower learning rates may help."
    )


def best(scores: Sequence[float], names: Sequence[str]) -> int:
    """Return the index of the highest score, the first of equal ones; NaNs do not count.

    Raises:
        FloatingPointError: all scores are NaN.
    """
    racing = [index for index, score in enumerate(scores) if math.isfinite(score)]
    if not racing:
        raise diverged(names)
    return max(racing, key=lambda index: scores[index])


def _frozen(encoder: Encoder, images: Tensor) -> Tensor:
    """Return features of a frozen encoder, (n, d) float32."""
    from reproduce.nn import features

    with features.inference(encoder, images.device):
        parts = [encoder.backbone(some).float() for some in torch.split(images, features.CHUNK)]
    return torch.cat(parts)
