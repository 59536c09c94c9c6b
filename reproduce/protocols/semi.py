"""Semi-supervised classification with 1 % or 10 % of the labels (section 8.2; protocol sheet, 2 and 3).

A linear classifier is trained on the labelled images of a list, which are cropped and flipped differently in
each epoch. With `encoder_lr` 0, the encoder is frozen, as in the paper's setting with 1 %. Otherwise the
encoder is trained too, at its own rate. Each number in `epochs` is one training with its own cosine schedule.
The best one on train images outside the list is measured on the test split, once.

On a frozen encoder, all trainings share one pass over the data. Otherwise each training starts from a fresh
copy of the encoder.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from reproduce.data import lists
from reproduce.data.augmentation import CROP_AND_FLIP, Augmentation
from reproduce.data.dataset import Dataset
from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import classifiers, distributed, schedules
from reproduce.nn.classifiers import Classifiers, Labelled, Stream
from reproduce.nn.keeper import Keeper
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Progress, Watch
from reproduce.settings import Count, CountOrZero, Momentum, NotNegative, Positive
from reproduce.site import Site

if TYPE_CHECKING:
    from reproduce.nn.encoder import Encoder
    from reproduce.nn.features import Split


class Trained(NamedTuple):
    """Result of training for one number of epochs."""

    epochs: int
    encoder: Encoder
    classifier: Classifiers
    place: int
    """Index of the classifier among those that were trained side by side."""
    score: float
    """Top-1 on the held-out images; NaN if no images are held out."""


@dataclass(frozen=True, kw_only=True)
class SemiSupervised(Protocol, name="semi"):
    """Settings of semi-supervised classification.

    The defaults are those of section 8.2, and BYOL's (App. C.2) where the section gives none.
    """

    labels: Literal["1percent", "10percent"] = "1percent"
    """List of labelled images (google-research/simclr imagenet_subsets/)."""
    classifier_lr: Positive = 2.0
    """Peak learning rate of the classifier (section 8.2: 2.0 with 1 %, .25 with 10 %)."""
    encoder_lr: NotNegative = 0.0
    """Peak learning rate of the encoder; 0 freezes it (section 8.2: frozen with 1 %, 2.5e-4 with 10 %)."""
    epochs: tuple[Count, ...] = (30, 50)
    """Passes over the labelled images, one training each; the best on the held-out images is measured (BYOL's
    App. C.2)."""
    batch_size: Count = 1024
    """Maximum number of images per step over all devices (section 8.2). The batches of an epoch are nearly
    equal in size."""
    momentum: Momentum = 0.9
    """Momentum of SGD (section 8.2)."""
    nesterov: bool = True
    """Nesterov momentum in place of the classical one (section 8.2)."""
    weight_decay: NotNegative = 0.0
    """Weight decay (BYOL's App. C.2)."""
    batchnorm: Literal["train", "eval"] = "train"
    """BatchNorm statistics of an encoder that is trained: `train` uses those of the batch
    (byol/eval_experiment.py), `eval` those of pretraining."""
    num_held_out: CountOrZero = 10_009
    """Unlisted train images that select the number of epochs (BYOL's App. C.1). May be 0 with a single
    number."""
    augmentation: Augmentation = CROP_AND_FLIP
    """Augmentation of the training views: random resized crop and flip (BYOL's App. C.2)."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("top1", "top5", "epochs", "held_out_top1") if self.num_held_out else ("top1", "top5")

    @property
    def length(self) -> int:
        return sum(self.epochs) if self.encoder_lr else max(self.epochs)

    def check(self) -> None:
        if not self.epochs or len(set(self.epochs)) < len(self.epochs):
            raise ValueError(f"semi needs one or more different numbers of epochs, not {self.epochs}.")
        if len(self.epochs) > 1 and not self.num_held_out:
            raise ValueError(
                f"semi selects one of {len(self.epochs)} numbers of epochs by held-out train images: "
                "num_held_out must be at least 1, not 0; with one number it may be 0."
            )
        if self.nesterov and not self.momentum:
            raise ValueError("semi needs a momentum above 0 with nesterov, not 0.")
        if self.encoder_lr and self.batchnorm == "train" and self.batch_size < 2:
            raise ValueError(
                "semi.batch_size is 1, but an encoder that is trained with batchnorm=train needs at least 2."
            )

    @property
    def requirement(self) -> str:
        return lists.KEY

    def check_data(self, dataset: Dataset, site: Site, *, fetch: bool = True) -> None:
        dataset.check_subset(self.labels, site, fetch=fetch)

    @property
    def least_images(self) -> tuple[int, str]:
        return self.num_held_out + 1, "num_held_out"

    def passes(self, num_train: int, num_test: int) -> float | None:
        labelled = num_train * int(self.labels.removesuffix("percent")) / 100
        if not self.encoder_lr:
            return max(self.epochs) * labelled + self.num_held_out + num_test
        return 3 * sum(self.epochs) * labelled + len(self.epochs) * self.num_held_out + num_test

    def run(
        self,
        encoder: Encoder,
        dataset: Dataset,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Return `top1` and `top5`, and with held-out images also `epochs` and `held_out_top1`.

        `epochs` is the selected number, `held_out_top1` its accuracy on the held-out images. If several
        numbers are equally good, the first is selected. With fewer than 5 classes, `top5` is 1. `encoder` is
        left unchanged.

        Raises:
            FloatingPointError: No training kept a finite loss. A single one that did not is only excluded.
            LookupError: The list does not exist, or one of its images is missing.
            ValueError: The list, the images and the settings do not fit together.
        """
        from reproduce.nn import features

        train, test = features.train_and_test(dataset, site)
        rows = self._listed(train, dataset, site)
        watch.record.tag("labelled_images", str(len(rows)))
        unlisted = torch.ones(len(train.indices), dtype=torch.bool)
        unlisted[rows] = False
        held_out, _ = classifiers.hold_out(train, self.num_held_out, seed, among=unlisted.nonzero().flatten())
        stream = Stream(
            dataset=dataset,
            split=classifiers.some_of(train, rows, f"the list {self.labels}"),
            augmentation=self.augmentation,
            batch_size=self.batch_size,
            seed=seed,
            site=site,
            device=device,
        )
        best = (self._best_tuned if self.encoder_lr else self._best_frozen)(encoder, stream, held_out, watch)
        x, y = classifiers.labelled_features(best.encoder, dataset, test, site, device)
        measured = best.classifier.measure(best.place, x, y)
        return measured | (
            {"epochs": float(best.epochs), "held_out_top1": best.score} if self.num_held_out else {}
        )

    def _listed(self, train: Split, dataset: Dataset, site: Site) -> torch.Tensor:
        """Return the rows of `train` that the list names, (n,).

        Raises:
            ValueError: The list repeats an image, names an image without a label, or lacks a whole class.
        """
        listed = torch.as_tensor(dataset.labelled_subset(self.labels, site))
        title = f"The list {self.labels} of {train.title}"
        if len(different := set(listed.tolist())) < len(listed):
            raise InvalidError(
                f"{title} contains {len(listed)} images, but only {len(different)} different ones."
            )
        rows = torch.isin(train.indices, listed).nonzero().flatten()
        if len(rows) < len(listed):
            raise InvalidError(
                f"{title} contains {len(listed)} images, {len(listed) - len(rows)} of them without a label."
            )
        missing = sorted(set(range(train.num_classes)) - set(train.labels[rows].tolist()))
        if missing:
            names = [train.images.classes[label] for label in missing[:5]]
            names += ["..."] if len(missing) > 5 else []
            raise InvalidError(
                f"{title} contains {len(listed)} images, but none of {len(missing)} of the "
                f"{train.num_classes} classes: {', '.join(names)}."
            )
        return rows

    def _best_frozen(self, encoder: Encoder, stream: Stream, held_out: Split, watch: Watch) -> Trained:
        """Train for all numbers of epochs in one pass and return the best.

        A classifier whose epochs are over has a rate of 0.
        """
        trained = self._classifiers(len(self.epochs), encoder, stream)
        names = [f"epochs {epochs}" for epochs in self.epochs]
        scores = classifiers.fit(
            trained,
            names,
            encoder,
            stream,
            lambda step: [self._rate(self.classifier_lr, step, epochs, stream) for epochs in self.epochs],
            epochs=max(self.epochs),
            held_out=self._features(encoder, stream, held_out) if self.num_held_out else None,
            watch=watch,
        )
        chosen = classifiers.best(scores, names) if scores else 0
        return Trained(self.epochs[chosen], encoder, trained, chosen, scores[chosen] if scores else math.nan)

    def _best_tuned(self, encoder: Encoder, stream: Stream, held_out: Split, watch: Watch) -> Trained:
        """Run one training after another and return the best.

        Training resumes from the newest checkpoint in the folder of `watch`, if there is one.

        Raises:
            FloatingPointError: No training kept a finite loss.
            Interrupted: The run received a stop request. A checkpoint contains the work done so far.
            ValueError: The batches are too small, or the checkpoint belongs to another encoder or other
                images.
        """
        least = max(distributed.world_size(), 2 if self.batchnorm == "train" else 1)
        if stream.smallest_batch < least:
            raise InvalidError(
                f"{stream.split.title} makes batches of {stream.smallest_batch} images with "
                f"batch_size={self.batch_size}: an encoder that {distributed.world_size()} processes train "
                f"with batchnorm={self.batchnorm} needs at least {least}."
            )
        kept = classifiers.keeper(encoder, stream, watch)
        first, best, lost = self._resumed(kept.saved, encoder, stream)
        if lost:
            watch.record.tag("diverged", ", ".join(lost))
        for number, epochs in list(enumerate(self.epochs))[first:]:
            done = {"number": number, "best": None if best is None else _saved(best), "lost": list(lost)}
            try:
                tuned, classifier = self._tune(encoder, stream, number, watch, kept, done)
                score = math.nan
                if self.num_held_out:
                    score = classifier.top1(*self._features(tuned, stream, held_out))[0]
                    if math.isnan(score):
                        raise classifiers.diverged([f"epochs {epochs}"])
            except FloatingPointError:
                lost.append(f"epochs {epochs}")
                watch.record.tag("diverged", ", ".join(lost))
                continue
            if self.num_held_out:
                watch.record.log(
                    sum(self.epochs[: number + 1]) * stream.num_steps,
                    {f"held_out_top1/epochs {epochs}": score},
                )
            if best is None or score > best.score:
                best = Trained(epochs, tuned, classifier, 0, score)
        if best is None:
            raise classifiers.diverged(lost)
        return best

    def _resumed(
        self, saved: dict[str, Any] | None, encoder: Encoder, stream: Stream
    ) -> tuple[int, Trained | None, list[str]]:
        """Return where a checkpoint left off.

        Returns:
            The index of the training under way, the best of the trainings before it, and the names of those
            that diverged.
        """
        from reproduce.nn.encoder import Encoder

        if saved is None:
            return 0, None, []
        if (best := saved["best"]) is None:
            return saved["number"], None, saved["lost"]
        network, classifier = copy.deepcopy(encoder.backbone), self._classifiers(1, encoder, stream)
        network.load_state_dict(best["network"])
        classifier.load_state_dict(best["classifier"])
        trained = Trained(
            best["epochs"],
            Encoder(encoder.architecture, network),
            classifier,
            0,
            best["score"],
        )
        return saved["number"], trained, saved["lost"]

    def _tune(
        self, encoder: Encoder, stream: Stream, number: int, watch: Watch, kept: Keeper, done: dict[str, Any]
    ) -> tuple[Encoder, Classifiers]:
        """Train a copy of the encoder and a classifier for `epochs[number]` epochs.

        Every process computes the features of its share of a batch, and the gradient of the whole batch's
        loss with respect to them.

        Args:
            kept: the checkpoints. Training resumes from the newest if it belongs to this training.
            done: the part of a checkpoint that describes the previous trainings.

        Raises:
            FloatingPointError: The loss is not finite.
            Interrupted: The run received a stop request. A checkpoint contains the work done so far.
        """
        from reproduce.nn.encoder import Encoder
        from reproduce.nn.sync_batchnorm import sync_batchnorm

        epochs, before = self.epochs[number], sum(self.epochs[:number])
        network: Any = copy.deepcopy(encoder.backbone).requires_grad_(True).train(self.batchnorm == "train")
        if self.batchnorm == "train":
            network = sync_batchnorm(network)
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=self.encoder_lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
        classifier = self._classifiers(1, encoder, stream)
        total = torch.zeros(1, device=stream.device)
        first_epoch = first_index = 0
        if kept.saved is not None and kept.saved["number"] == number:
            network.load_state_dict(kept.saved["network"])
            optimizer.load_state_dict(kept.saved["optimizer"])
            classifier.load_state_dict(kept.saved["classifier"])
            total.copy_(kept.saved["total"])
            first_epoch, first_index = kept.saved["epoch"], kept.saved["step"]
        tuned = network
        if distributed.world_size() > 1:
            network = torch.nn.parallel.DistributedDataParallel(network)
        start = first_epoch * stream.num_steps + first_index
        with kept.interruptible() as due, stream.batches(epochs, start) as batches:
            for epoch in range(first_epoch, epochs):
                for index in range(first_index if epoch == first_epoch else 0, stream.num_steps):
                    batch = next(batches)
                    step, n = epoch * stream.num_steps + index, len(batch.labels)
                    mine = network(batch.views)
                    x = classifiers.gathered(mine.detach(), n)
                    loss, residual = classifier.residual(x, batch.labels)
                    # DistributedDataParallel averages over the processes, but this gradient must be summed.
                    by_features = (
                        classifier.by_features(residual)[slice(*classifiers.bounds(n))]
                        * distributed.world_size()
                    )
                    mine.backward(by_features)
                    optimizer.param_groups[0]["lr"] = self._rate(self.encoder_lr, step, epochs, stream)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    classifier.update(x, residual, [self._rate(self.classifier_lr, step, epochs, stream)])
                    total += loss
                    watch.report(self._progress(classifiers.progress(stream, epoch, index, epochs), number))
                    if last := index + 1 == stream.num_steps:
                        mean = total.item() / stream.num_steps
                        watch.record.log(
                            (before + epoch + 1) * stream.num_steps, {f"loss/epochs {epochs}": mean}
                        )
                        if not math.isfinite(mean):
                            raise classifiers.diverged([f"epochs {epochs}"])
                        total.zero_()
                    if due():
                        models = {
                            "network": tuned.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "classifier": classifier.state_dict(),
                        }
                        place = {"epoch": epoch + last, "step": 0 if last else index + 1, "total": total}
                        kept.save({**done, **models, **place}, before + epoch, index + 1, stream.num_steps)
        return Encoder(encoder.architecture, tuned), classifier

    def _progress(self, one: Progress, number: int) -> Progress:
        """Return the progress of all trainings, given that of training `number`."""
        per_epoch = one.total // self.epochs[number]
        return one._replace(
            done=sum(self.epochs[:number]) * per_epoch + one.done, total=sum(self.epochs) * per_epoch
        )

    def _rate(self, peak: float, step: int, epochs: int, stream: Stream) -> float:
        """Return the rate at step `step` of `epochs` epochs: half a cosine from `peak` to 0, then 0."""
        return schedules.learning_rate(step, peak=peak, warmup_steps=0, num_steps=epochs * stream.num_steps)

    def _classifiers(self, num: int, encoder: Encoder, stream: Stream) -> Classifiers:
        """Return `num` classifiers with their initial weights."""
        backbone: Any = encoder.backbone
        return Classifiers(
            num,
            num_classes=stream.split.num_classes,
            num_features=backbone.num_features,
            seed=stream.seed,
            device=stream.device,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )

    def _features(self, encoder: Encoder, stream: Stream, split: Split) -> Labelled:
        """Return the features and labels of held-out images."""
        return classifiers.labelled_features(encoder, stream.dataset, split, stream.site, stream.device)


def _saved(trained: Trained) -> dict[str, Any]:
    """Return what a checkpoint contains about a finished training."""
    models = {"network": trained.encoder.backbone.state_dict(), "classifier": trained.classifier.state_dict()}
    return {"epochs": trained.epochs, "score": trained.score, **models}
