"""One linear SVM per class on frozen features, as on VOC2007 (protocol sheet, 5).

Sources: facebookresearch/vissl vissl/utils/svm_utils/svm_trainer.py and evaluate.py, which agree with
facebookresearch/fair_self_supervision_benchmark tools/svm/train_svm_kfold.py, test_svm.py and svm_helper.py.
As in these, some choices are fixed: penalty l2, squared hinge loss, the dual solver, intercept_scaling 1, and
features divided by their length + 1e-5.

*Choice of C*: each class uses the C with the largest mean over the folds of scikit-learn's average precision;
of those that tie, the first in `costs`. The folds are stratified by that class and not shuffled. The
classifier is then fitted to the whole train split.

*Images*: VICReg's evaluation and PCL's crop the centre of an image. VISSL's and
fair_self_supervision_benchmark's squash the whole image to a square.

*Difficult objects*: an image that shows a class only by difficult objects is a negative in training and in
the folds. At test it does not count for that class.

*Average precision*: at test it is all-point interpolated, `average_precision` below; in the folds it is not
interpolated.

At VOC2007's 5 011 x 2 048, one fit on one core takes .2 to .3 s at C <= .1, .7 s at 1, 1.5 to 3 s at 10, and
3 to 9 s from 50 on, where hard classes end at `max_iterations`. This adds up to 1 to 2 minutes per class, and
20 to 40 for all 20. A run fits classes in as many processes as torch has threads (one if the launcher gives
the run one thread), each with 400 MB. A run on several devices divides the classes among its processes. At
smoke scale, with 400 images of 64 features, all classes take 10 to 20 s on one core.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from reproduce.data.dataset import Dataset
from reproduce.identity import added_later
from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import distributed, seeds
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Progress, Watch
from reproduce.settings import Count, Limits, Positive, Settings
from reproduce.site import Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from reproduce.nn.encoder import Encoder
    from reproduce.nn.features import Split

    Floats = NDArray[np.floating[Any]]
    Targets = NDArray[np.int8]

EPSILON = 1e-5
"""Constant added to the length that features are divided by (normalize_features in both sources)."""


class Fitted(NamedTuple):
    """Result of one class."""

    average_precision: float
    """Average precision on the test split."""
    cost: float
    """Selected value of C."""
    cross_validated: float
    """Mean over the folds of the average precision with that C."""
    unconverged: float
    """Number of this class's fits that ended at `max_iterations`."""


@dataclass(frozen=True, kw_only=True)
class LinearSVM(Protocol, name="svm"):
    """Settings of the SVMs. The defaults are those of the sources above."""

    costs: tuple[Positive, ...] = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
    """Values of C to try. Each class uses the one with the best cross-validated average precision on the
    train split (protocol sheet, 5)."""
    folds: Annotated[int, Limits(2)] = 3
    """Folds of the cross-validation (train_svm_kfold.py)."""
    positive_weight: Positive = 2.0
    """Weight of the images that show the class; all others have weight 1 (svm_trainer.py)."""
    tolerance: Positive = 1e-4
    """Tolerance of the solver (svm_trainer.py)."""
    max_iterations: Count = 2000
    """Maximum number of the solver's passes over the images (train_svm_kfold.py)."""

    geometry: Literal["crop", "squash"] = added_later("crop", "0.2")
    """Part of an image that the encoder sees; the paper does not state it.

    crop: the shorter side is resized to 256 pixels and the centre of 224 x 224 is cropped (VICReg,
    arXiv 2105.04906, appendix C.3; salesforce/PCL). squash: the image is resized so, then to 224 x 224
    (facebookresearch/vissl configs/config/benchmark/linear_image_classification/voc07).
    """

    metrics = ("map",)
    wants = "several labels for each image"

    @classmethod
    def accepts(cls, dataset: type[Settings]) -> bool:
        return issubclass(dataset, Dataset) and dataset.multi_label

    def check(self) -> None:
        if not self.costs or len(set(self.costs)) < len(self.costs):
            raise ValueError(f"svm needs one or more different costs, not {self.costs}.")

    def passes(self, num_train: int, num_test: int) -> float | None:
        return num_train + num_test

    def run(
        self,
        encoder: Encoder,
        dataset: Dataset,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Return `map`, the mean over the classes of the average precision on the test split.

        The record also gets `ap/<class>`, `cost/<class>` and `cross_validated_ap/<class>` for each class, and
        `unconverged_fits`.
        """
        from reproduce.nn import features

        (train, targets), (test, test_targets) = (
            several_labels(dataset, name, site) for name in (dataset.train_split, dataset.test_split)
        )
        self._require(train, targets, test, test_targets)
        x, x_test = (
            features.extract(encoder, dataset, split, site, device, squash=self.geometry == "squash").numpy()
            for split in (train, test)
        )
        tasks = [
            (self, x, y, x_test, y_test, seed) for y, y_test in zip(targets.T, test_targets.T, strict=True)
        ]
        fitted = _fit_classes(tasks, train.images.classes, device, watch)
        for name, found in zip(train.images.classes, fitted, strict=True):
            values = {
                "ap": found.average_precision,
                "cost": found.cost,
                "cross_validated_ap": found.cross_validated,
            }
            watch.record.log(0, {f"{key}/{name}": value for key, value in values.items()})
        watch.record.log(0, {"unconverged_fits": sum(found.unconverged for found in fitted)})
        return {"map": sum(found.average_precision for found in fitted) / len(fitted)}

    def measure(
        self, x: Floats, targets: Targets, x_test: Floats, test_targets: Targets, seed: int
    ) -> Fitted:
        """Choose C for one class, fit its classifier and measure it on the test images.

        Args:
            x: features of the train images, (n, d), of any length.
            targets: 1 if the image shows the class, -1 if not, 0 if it shows only difficult objects of it,
                (n,).
            x_test: features of the test images, (m, d).
            test_targets: targets of the test images, (m,).
            seed: determines the solver's order of images.
        """
        import numpy as np
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import StratifiedKFold, cross_validate
        from threadpoolctl import threadpool_limits

        x, y, scores, unconverged = _unit(x), np.where(targets > 0, 1, -1), [], 0
        folds = list(StratifiedKFold(self.folds).split(x, y))
        # One BLAS thread, so that the number of classes fitted at once does not change a bit. The warning
        # about fits that do not converge is replaced by a count.
        with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for cost in self.costs:
                svm = self._classifier(cost, seed)
                done = cross_validate(
                    svm,
                    x,
                    y,
                    cv=folds,
                    scoring="average_precision",
                    return_estimator=True,
                    error_score="raise",
                )
                scores.append(float(done["test_score"].mean()))
                unconverged += sum(int(fold.n_iter_ >= self.max_iterations) for fold in done["estimator"])
            best = scores.index(max(scores))
            svm = self._classifier(self.costs[best], seed).fit(x, y)
            counts = test_targets != 0
            precision = average_precision(
                svm.decision_function(_unit(x_test[counts])), test_targets[counts] > 0
            )
        return Fitted(
            precision, self.costs[best], scores[best], unconverged + int(svm.n_iter_ >= self.max_iterations)
        )

    def _classifier(self, cost: float, seed: int) -> Any:
        """Return a classifier that is not yet fitted.

        The solver's order of images follows from `seed`; in the sources it is random.
        """
        from sklearn.svm import LinearSVC

        return LinearSVC(
            C=cost,
            penalty="l2",
            loss="squared_hinge",
            dual=True,
            intercept_scaling=1.0,
            class_weight={1: self.positive_weight, -1: 1.0},
            tol=self.tolerance,
            max_iter=self.max_iterations,
            random_state=seeds.seed("svm", seed),
        )

    def _require(self, train: Split, targets: Targets, test: Split, test_targets: Targets) -> None:
        """Raise ValueError if a class cannot be cross-validated or its average precision is undefined."""
        if train.images.classes != test.images.classes:
            odd = sorted(set(train.images.classes) ^ set(test.images.classes))
            raise InvalidError(
                f"{train.title} and {test.title} must have the same classes; only in one of them: "
                f"{odd or 'none, but the order differs'}."
            )
        for name, y, y_test in zip(train.images.classes, targets.T, test_targets.T, strict=True):
            shown = int((y > 0).sum())
            if min(shown, len(y) - shown) < self.folds:
                raise InvalidError(
                    f"{train.title} has {shown} images with {name} and {len(y) - shown} without it: "
                    f"{self.folds} folds need at least {self.folds} of each."
                )
            if not (y_test > 0).any():
                raise InvalidError(
                    f"{test.title} has no image with {name} that counts (difficult ones do not): "
                    "its average precision is undefined."
                )


def several_labels(dataset: Dataset, name: str, site: Site) -> tuple[Split, Targets]:
    """Return all images of the split `name`, labelled or not, and their targets, (n, classes).

    Raises:
        ValueError: The images have one label each.
    """
    from reproduce.nn.features import Split

    images, title = dataset.load(name, site), f"the {name} split of {dataset.name}"
    if images.targets is None:
        raise InvalidError(
            "svm needs a data set with several labels for each image, such as voc2007; "
            f"{title} has one for each."
        )
    split = Split(title, images, torch.arange(len(images)), torch.tensor(images.labels), len(images.classes))
    return split, images.targets


def average_precision(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the all-point interpolated average precision.

    It is the area under the best precision at each recall or any higher one. Each of the P positive images
    raises the recall by 1 / P. It contributes the largest precision of all thresholds that reach its recall
    (calculate_ap in evaluate.py; the VOC devkit since 2010). Images that tie pass a threshold together, as in
    scikit-learn's average precision, so their order does not matter. The sources leave their order to an
    unstable sort.

    Args:
        scores: (n,), higher is more likely.
        positive: (n,), True for at least one image.
    """
    import numpy as np

    assert positive.any()
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True).nonzero()[0]
    found = positive[order].cumsum()[last_of_tie]  # positives at or above each threshold
    best = np.maximum.accumulate((found / (last_of_tie + 1))[::-1])[::-1]
    return float((np.diff(found, prepend=0) * best).sum() / found[-1])


def _unit(x: Floats) -> Floats:
    """Return the rows normalised to about unit length in double precision, as in the sources.

    A row of zeros stays zero.
    """
    import numpy as np

    x = x.astype(np.float64)
    unit: Floats = x / (np.linalg.norm(x, axis=1, keepdims=True) + EPSILON)
    return unit


# Many classes at once


def _fit_classes(
    tasks: Sequence[tuple[Any, ...]], names: Sequence[str], device: torch.device, watch: Watch
) -> list[Fitted]:
    """Fit every class and return all results on every process of a run.

    With n processes, each fits every n-th class. The processes exchange results after each class, because
    collectives time out after minutes: no process waits longer for another than one class takes.
    """
    rank, size = distributed.rank(), distributed.world_size()
    everyone: list[Tensor] = []
    with closing(_fits(tasks[rank::size], jobs=torch.get_num_threads())) as mine:
        for first in range(0, len(tasks), size):
            row = next(mine, None) or Fitted(0.0, 0.0, 0.0, 0.0)  # this process has no class left
            everyone.append(distributed.gather(torch.tensor([row], dtype=torch.float64, device=device)).cpu())
            last = min(first + size, len(tasks)) - 1
            note = f"{names[last]} AP {everyone[-1][last - first, 0]:.3f}"
            watch.report(Progress(last + 1, len(tasks), "classes", note))
    return [Fitted(*row) for row in torch.cat(everyone)[: len(tasks)].tolist()]


def _fits(tasks: Sequence[tuple[Any, ...]], jobs: int) -> Generator[Fitted]:
    """Yield the result of `measure` for each class of `tasks`, in order, fitting `jobs` classes at once.

    The fits run in processes, not threads. The solver draws from one generator for all threads of a process,
    so threads would change each other's results.

    Raises:
        RuntimeError: A process ended without its result.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from (LinearSVM.measure(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks held by torch's threads
    with ExitStack() as ends:
        pipes = []
        for job in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_fit_all, args=(theirs, tasks[job::jobs]), daemon=True)
            process.start()
            theirs.close()
            for end in (process.join, process.kill, ours.close):  # called in reverse order
                ends.callback(end)
            pipes.append(ours)
        for index in range(len(tasks)):
            try:
                yield pipes[index % jobs].recv()
            except EOFError:
                raise RuntimeError(
                    "A process that fits SVMs ended without a result: its error is above, or memory ran out."
                ) from None


def _fit_all(pipe: Connection, tasks: Sequence[tuple[Any, ...]]) -> None:
    """Fit all classes of one process and send the results through the pipe.

    The process ends when its parent does, which closes the other end of the pipe.
    """

    def watch() -> None:
        pipe.poll(None)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    for task in tasks:
        pipe.send(LinearSVM.measure(*task))
