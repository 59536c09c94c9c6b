"""Linear SVMs: average precision by hand, the protocol against scikit-learn's own search.

Real photographs are tested too, if available.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch
from skips import shared
from toys import CPU, Notes, Pictures, encoder, on_two_processes
from waiting import limited

from reproduce.data.dataset import Dataset
from reproduce.data.images import Images
from reproduce.data.voc2007 import VOC2007
from reproduce.nn import features, seeds
from reproduce.protocols.svm import LinearSVM, average_precision, several_labels
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parent.parent
CLASSES = ("red", "green", "blue")


class Coloured(Pictures):
    """Noise in which a class, difficult or not, makes a channel brighter by a random amount."""

    def __init__(self, targets: np.ndarray, seed: int) -> None:
        random = np.random.default_rng(seed)
        bright = np.where(targets < 0, 0, random.integers(10, 90, targets.shape))
        pixels = (random.integers(0, 160, (len(targets), 16, 16, 3)) + bright[:, None, None]).astype(np.uint8)
        super().__init__(pixels, [-1] * len(targets), CLASSES)
        self.targets = targets


@dataclass(frozen=True, kw_only=True)
class Toy(Dataset, name="toy_of_svms"):
    """Images of three classes, often several per image, some of them difficult.

    A test may change the targets of one image or of a class.
    """

    size: int = 16
    resize: int = 16
    canvas: int = 16
    mean: tuple[float, float, float] = (0.4, 0.4, 0.4)
    std: tuple[float, float, float] = (0.3, 0.3, 0.3)
    single: bool = False
    positives_of_blue: tuple[int, int] = (99, 99)
    """Maximum number of positives in train and in test."""

    train_split: ClassVar[str] = "trainval"
    test_split: ClassVar[str] = "test"
    splits: ClassVar[tuple[str, ...]] = ("train", "trainval", "test")

    def load(self, split: str, site: Site) -> Images:
        test = split == "test"
        random = np.random.default_rng(test)
        targets = random.choice(np.array([1, 0, -1], np.int8), (50 if test else 70, 3), p=(0.3, 0.1, 0.6))
        blue = (targets[:, 2] == 1).nonzero()[0]
        targets[blue[self.positives_of_blue[test] :], 2] = 0
        images = Coloured(targets, seed=10 + test)
        if self.single:
            images.targets = None
        return images


# Average precision


def envelope(scores: list[float], positive: list[bool]) -> float:
    """Compute the definition in exact fractions.

    For each positive image, take the best precision of the thresholds that reach its recall.
    """
    thresholds = sorted(set(scores), reverse=True)
    chosen = [
        [p for s, p in zip(scores, positive, strict=True) if s >= threshold] for threshold in thresholds
    ]
    points = [(sum(above), Fraction(sum(above), len(above))) for above in chosen]
    levels = range(1, sum(positive) + 1)
    return float(
        sum(max(precision for found, precision in points if found >= level) for level in levels) / len(levels)
    )


def eleven_points(positive: list[bool]) -> float:
    """Return VOC2007's own measure for images in the order of their scores.

    It is the mean of the best precisions at recalls 0, .1, ..., 1.
    """
    points = [
        (Fraction(sum(positive[:n]), sum(positive)), Fraction(sum(positive[:n]), n))
        for n in range(1, len(positive) + 1)
    ]
    return float(
        sum(max(precision for recall, precision in points if recall >= Fraction(r, 10)) for r in range(11))
        / 11
    )


def ranked(marks: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels for images in the order of their scores, + or -."""
    return np.arange(len(marks), 0, -1.0), np.array([mark == "+" for mark in marks])


@pytest.mark.parametrize(
    ("marks", "all_point", "plain", "eleven"),
    [
        # Precision falls from one positive to the next, so the envelope changes nothing.
        ("+-+", (1 + 2 / 3) / 2, (1 + 2 / 3) / 2, (6 * 1 + 5 * 2 / 3) / 11),
        ("+++--", 1, 1, 1),
        ("----+", 1 / 5, 1 / 5, 1 / 5),
        ("+--+---+", (1 + 2 / 4 + 3 / 8) / 3, (1 + 2 / 4 + 3 / 8) / 3, (4 * 1 + 3 * 2 / 4 + 4 * 3 / 8) / 11),
        # Precision rises: 1/2, then 2/3 at a higher recall, which counts for both.
        ("-++", 2 / 3, (1 / 2 + 2 / 3) / 2, 2 / 3),
        # 1, 2/4, 3/5: the second takes 3/5 from the third.
        ("+--++", (1 + 3 / 5 + 3 / 5) / 3, (1 + 2 / 4 + 3 / 5) / 3, (4 * 1 + 7 * 3 / 5) / 11),
        # 1/3, 2/4, 3/5, 4/9: the first three have 3/5.
        (
            "--+++---+",
            (3 * 3 / 5 + 4 / 9) / 4,
            (1 / 3 + 2 / 4 + 3 / 5 + 4 / 9) / 4,
            (8 * 3 / 5 + 3 * 4 / 9) / 11,
        ),
    ],
)
def test_average_precision_of_hand_computed_rankings(
    marks: str, all_point: float, plain: float, eleven: float
) -> None:
    from sklearn.metrics import (
        average_precision_score,  # imported late: the import takes seconds, in every process of the tests
    )

    scores, positive = ranked(marks)
    assert average_precision(scores, positive) == pytest.approx(all_point, rel=1e-14)
    assert average_precision_score(positive, scores) == pytest.approx(plain, rel=1e-14)
    assert eleven_points(positive.tolist()) == pytest.approx(eleven, rel=1e-14)
    assert len({all_point, plain, eleven}) > 1 or all_point in (1, 1 / 5), (
        "at least one of the three measures differs from the others"
    )


def test_images_that_tie_pass_the_threshold_together_in_any_order() -> None:
    """1 of 1, then 2 of 4 as three tie, then 3 of 5.

    The precisions are 1, 1/2 and 3/5, and the envelope is 1, 3/5, 3/5.
    """
    scores, positive = np.array([2.0, 1, 1, 1, 0]), np.array([True, False, True, False, True])
    random = np.random.default_rng(0)
    for order in (random.permutation(5) for _ in range(20)):
        assert average_precision(scores[order], positive[order]) == pytest.approx(
            (1 + 3 / 5 + 3 / 5) / 3, rel=1e-14
        )
    # A classifier without information reaches the share of positives.
    assert average_precision(np.zeros(8), np.arange(8) < 2) == 2 / 8


@pytest.mark.parametrize("levels", [3, 10, 10**9])
def test_average_precision_is_the_definition_and_never_below_scikit_learns(levels: int) -> None:
    from sklearn.metrics import average_precision_score

    random, equal, above = np.random.default_rng(levels), 0, 0
    for _ in range(150):
        n = int(random.integers(1, 25))
        scores, positive = random.integers(0, levels, n) / 7, random.random(n) < 0.4
        positive[random.integers(n)] = True
        ours, plain = average_precision(scores, positive), average_precision_score(positive, scores)
        assert ours == pytest.approx(envelope(scores.tolist(), positive.tolist()), rel=1e-12)
        precision = [
            (positive & (scores >= s)).sum() / (scores >= s).sum()
            for s in sorted(set(scores[positive]), reverse=True)
        ]
        if precision == sorted(precision, reverse=True):
            assert ours == pytest.approx(plain, rel=1e-12)
            equal += 1
        else:
            assert ours > plain
            above += 1
    assert min(equal, above) > 10


# The protocol


def independent(
    settings: LinearSVM,
    rows: tuple[np.ndarray, np.ndarray],
    targets: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> Any:
    """Yield (AP, C) of each class by scikit-learn's own grid search on features of any length."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    x, x_test = (
        row.astype(np.float64) / (np.linalg.norm(row.astype(np.float64), axis=1)[:, None] + 1e-5)
        for row in rows
    )
    svm = LinearSVC(
        class_weight={1: settings.positive_weight, -1: 1},
        tol=settings.tolerance,
        max_iter=settings.max_iterations,
        dual=True,
        random_state=seeds.seed("svm", seed),
    )
    for y, y_test in zip(targets[0].T, targets[1].T, strict=True):
        search = GridSearchCV(svm, {"C": settings.costs}, scoring="average_precision", cv=settings.folds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            search.fit(x, [1 if target == 1 else -1 for target in y])
        scores = search.decision_function(x_test[y_test != 0])
        yield envelope(scores.tolist(), (y_test[y_test != 0] == 1).tolist()), search.best_params_["C"]


def features_and_targets(dataset: Dataset, site: Site, *, squash: bool = False) -> tuple[Any, Any]:
    """Return the features and the targets of both splits."""
    splits = [several_labels(dataset, name, site) for name in (dataset.train_split, dataset.test_split)]
    rows = tuple(
        features.extract(encoder(), dataset, split, site, CPU, squash=squash).numpy() for split, _ in splits
    )
    return rows, tuple(targets for _, targets in splits)


def check_against_scikit_learn(settings: LinearSVM, dataset: Dataset, site: Site) -> dict[str, float]:
    """Run the protocol, compare its numbers, and return its measurements of the classes."""
    notes, said = Notes(), list[Progress]()
    measured = settings.run(encoder(), dataset, site, CPU, 3, Watch(notes, said.append))
    logged = notes.logged[0]
    rows, targets = features_and_targets(dataset, site, squash=settings.geometry == "squash")
    names, expected = dataset.load("test", site).classes, list(independent(settings, rows, targets, 3))
    for name, (precision, cost) in zip(names, expected, strict=True):
        assert logged[f"ap/{name}"] == pytest.approx(precision, rel=1e-12)
        assert logged[f"cost/{name}"] == cost
        assert 0 < logged[f"cross_validated_ap/{name}"] <= 1
    assert measured == {
        "map": pytest.approx(sum(precision for precision, _ in expected) / len(names), rel=1e-12)
    }
    assert [step.done for step in said] == list(range(1, len(names) + 1))
    assert settings.run(encoder(), dataset, site, CPU, 3) == measured
    return logged


def test_the_protocol_is_scikit_learns_grid_search_class_by_class() -> None:
    logged = check_against_scikit_learn(LinearSVM(costs=(0.01, 1.0, 100.0)), Toy(), Site())
    assert len({logged[f"cost/{name}"] for name in CLASSES}) > 1, "the data tell the costs apart"


def test_the_svms_may_see_squashed_images() -> None:
    svm = LinearSVM(costs=(0.01, 1.0), geometry="squash")
    squashed = check_against_scikit_learn(svm, Toy(resize=20), Site())
    assert squashed != check_against_scikit_learn(replace(svm, geometry="crop"), Toy(resize=20), Site())


def test_difficult_objects_are_negative_in_training_and_do_not_count_at_test() -> None:
    (x, x_test), (targets, test_targets) = features_and_targets(Toy(), Site())
    svm, y, y_test = LinearSVM(costs=(0.1, 1.0)), targets[:, 0], test_targets[:, 0]
    assert (y == 0).sum() > 3
    assert (y_test == 0).sum() > 3
    fitted = svm.measure(x, y, x_test, y_test, 0)
    assert svm.measure(x, np.where(y == 0, -1, y), x_test, y_test, 0) == fitted
    assert svm.measure(x, y, x_test[y_test != 0], y_test[y_test != 0], 0) == fitted
    assert (
        svm.measure(x, y, x_test, np.where(y_test == 0, -1, y_test), 0).average_precision
        != fitted.average_precision
    )


def test_of_costs_that_tie_the_first_is_taken() -> None:
    x = np.array([[1.0, 0.1]] * 6 + [[0.1, 1.0]] * 9)  # any C separates them
    y = np.array([1] * 6 + [-1] * 9, np.int8)
    for costs in ((5.0, 1.0, 10.0), (1.0, 5.0)):
        fitted = LinearSVM(costs=costs).measure(x, y, x, y, 0)
        assert (fitted.average_precision, fitted.cost, fitted.cross_validated) == (1, costs[0], 1)


def test_fits_that_do_not_converge_are_counted_not_shouted() -> None:
    notes = Notes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearSVM(costs=(1.0, 10.0), max_iterations=1).run(encoder(), Toy(), Site(), CPU, 0, Watch(notes))
    assert notes.logged[0]["unconverged_fits"] == 3 * (2 * 3 + 1)  # classes x (costs x folds + the last fit)


def test_the_solver_draws_from_the_seed() -> None:
    (x, x_test), (targets, test_targets) = features_and_targets(Toy(), Site())
    after_one_pass = LinearSVM(costs=(1.0,), max_iterations=1)
    first, again, other = (
        after_one_pass.measure(x, targets[:, 0], x_test, test_targets[:, 0], seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.cross_validated != other.cross_validated


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Toy(single=True),
            "several labels for each image, such as voc2007; "
            "the trainval split of toy_of_svms has one for each",
        ),
        (
            Toy(positives_of_blue=(0, 9)),
            "trainval split of toy_of_svms has 0 images with blue and 70 without it: 3 folds need at least 3",
        ),
        (
            Toy(positives_of_blue=(2, 9)),
            "trainval split of toy_of_svms has 2 images with blue and 68 without it: 3 folds need at least 3",
        ),
        (Toy(positives_of_blue=(9, 0)), "the test split of toy_of_svms has no image with blue that counts"),
    ],
)
def test_data_that_do_not_fit_are_an_error_in_one_line_before_any_work(dataset: Toy, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LinearSVM().run(None, dataset, Site(), CPU, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"costs": ()},
        {"costs": (1.0, 1.0)},
        {"costs": (0.0, 1.0)},
        {"folds": 1},
        {"max_iterations": 0},
        {"positive_weight": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^svm( needs |\.\w+ is 0|\.folds is 1: at least 2 )"):
        LinearSVM(**wrong)


def test_an_encoder_that_diverged_gives_no_numbers() -> None:
    network = encoder()
    with torch.no_grad():
        next(network.backbone.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="split of toy_of_svms are not all finite"):
        LinearSVM().run(network, Toy(), Site(), CPU, 0)


# Many processes

QUICK = LinearSVM(costs=(0.1, 10.0, 1000.0), max_iterations=100)


def numbers() -> dict[str, float]:
    """Return the numbers of the toy images, including those of each class."""
    notes = Notes()
    return QUICK.run(encoder(), Toy(), Site(), CPU, 5, Watch(notes)) | notes.logged[0]


@pytest.mark.slow
def test_classes_at_once_give_the_numbers_of_one_after_the_other() -> None:
    one_by_one, before = numbers(), set(multiprocessing.active_children())
    assert one_by_one["unconverged_fits"] > 0, "the solver's generator has its say in the numbers"
    torch.set_num_threads(2)
    assert numbers() == one_by_one
    assert set(multiprocessing.active_children()) <= before, "the processes are gone with the run"


@pytest.mark.slow
def test_two_processes_of_a_run_give_the_numbers_of_one(tmp_path: Path) -> None:
    one = numbers()
    assert on_two_processes(numbers, tmp_path) == [one, one]


SCRIPT = """
import multiprocessing
import sys
import numpy as np
from reproduce.protocols import svm
if __name__ == "__main__":
    random = np.random.default_rng(0)
    x, y = random.random((400, 64), np.float32), np.where(np.arange(400) % 9, -1, 1).astype(np.int8)
    easy = svm.LinearSVM(costs=(0.01,))
    endless = svm.LinearSVM(costs=(1e6,), max_iterations=10**9, tolerance=1e-300)
    tasks = [(easy, x, y, x, y, 0), (easy, x, y, x, y, 0)]
    tasks += [(endless, x, y[: int(sys.argv[1])], x, y, 0), (endless, x, y, x, y, 0)]
    for fitted in svm._fits(tasks, jobs=2):
        print(sorted(process.pid for process in multiprocessing.active_children()), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False])
def test_no_process_outlives_a_run_that_is_killed_or_fails(kill: bool, tmp_path: Path) -> None:
    """Check that all processes end with the run.

    Two processes fit an easy class each. Then one of them is given too few targets, or both fit until the run
    is killed.
    """
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), "400" if kill else "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        with limited(run):
            pids = json.loads(run.stdout.readline())
        assert len(pids) == 2 or not kill, "the process that is to fail may have failed by now"
        if kill:
            children = [psutil.Process(pid) for pid in pids]
            run.kill()
            _, alive = psutil.wait_procs(children, timeout=30)
            assert not alive
            return
        _, errors = run.communicate(timeout=30)
        assert pids
        assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert run.returncode == 1
    assert "Found input variables with inconsistent numbers of samples" in errors
    assert errors.rstrip().endswith("ended without a result: its error is above, or memory ran out.")


# Real photographs


def devkit(root: Path) -> Path:
    """Return VOC2012's photographs as a VOC2007 of two halves.

    Each class appears at least twice in trainval and once in test. Skips if the photographs are missing.
    """
    source = shared("voc", "VOCdevkit", "VOC2012")
    folder = root / "VOCdevkit" / "VOC2007"
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for part in ("Annotations", "JPEGImages"):
        (folder / part).symlink_to(source / part, target_is_directory=True)
    names = sorted(path.stem for path in (source / "JPEGImages").iterdir())
    (lists / "val.txt").write_text("\r\n".join(names))
    there = VOC2007().load("val", Site(data={"voc": root})).targets == 1
    halves = (np.random.default_rng(seed).random(len(names)) < 0.6 for seed in range(10_000))
    train = next(
        half for half in halves if there[half].sum(axis=0).min() >= 2 and there[~half].any(axis=0).all()
    )
    for split, chosen in (("trainval", train), ("test", ~train)):
        (lists / f"{split}.txt").write_text(
            "\r\n".join(name for name, mine in zip(names, chosen, strict=True) if mine)
        )
    return root


@pytest.mark.slow
def test_real_photographs_from_xml_to_map(tmp_path: Path) -> None:
    dataset = VOC2007(size=32, resize=36, canvas=32)
    site = Site(runs=tmp_path, data={"voc": devkit(tmp_path / "data")})
    targets = dataset.load("test", site).targets
    assert targets is not None
    assert (targets == 0).any(), "some objects are difficult"
    logged = check_against_scikit_learn(LinearSVM(costs=(0.1, 10.0), folds=2), dataset, site)
    assert len([name for name in logged if name.startswith("ap/")]) == 20
