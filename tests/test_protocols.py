"""Protocols against hand-computed cases and independent references.

They also run with fewer than 100 images, and on one process as on two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from toys import Pictures, brighter_by_class, on_two_processes, originals

from reproduce.data.augmentation import Augmentation, Patches, SmallCrops
from reproduce.data.dataset import Dataset
from reproduce.data.images import Images
from reproduce.methods.msbreg import MSBReg
from reproduce.nn import features, seeds
from reproduce.nn.encoder import Encoder
from reproduce.nn.optimizers import LARS
from reproduce.protocols import alignment, knn, linear
from reproduce.protocols.protocol import Protocol
from reproduce.settings import Resampling
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.train import build_network, encoder_of

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def arrays(labels: list[int], classes: tuple[str, ...], seed: int) -> Pictures:
    return Pictures(brighter_by_class(labels, noise=60, step=30, seed=seed), labels, classes)


@dataclass(frozen=True, kw_only=True)
class Toy(Dataset, name="toy"):
    """Some images of five classes. Some images of `train` have no label."""

    num_train: int = 600
    num_test: int = 330
    size: int = 16
    resize: int = 16
    canvas: int = 16
    mean: tuple[float, float, float] = (0.5, 0.4, 0.3)
    std: tuple[float, float, float] = (0.2, 0.3, 0.4)
    classes: tuple[str, ...] = ("a", "b", "c", "d", "e")
    test_classes: tuple[str, ...] = ("a", "b", "c", "d", "e")

    test_split: ClassVar[str] = "test"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    def load(self, split: str, site: Site) -> Images:
        if split == "unlabelled":
            return arrays([-1] * 9, self.classes, seed=0)
        if split == "test":
            return arrays(
                [i % len(self.test_classes) for i in range(self.num_test)], self.test_classes, seed=1
            )
        labels = [i % (len(self.classes) + 1) - 1 for i in range(self.num_train // 5 * 6)]
        return arrays(labels, self.classes, seed=2)


def encoder(**changes: object) -> Encoder:
    """Return an encoder that was never trained."""
    settings = {
        "method": MSBReg(),
        "dataset": Toy(),
        "backbone": "small",
        "augmentation": Augmentation(),
        "optimizer": LARS(base_lr=0.1),
    }
    spec = Pretrain(**(settings | {"epochs": 0} | changes))
    online = build_network(spec).online
    return encoder_of(spec, online)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(n: int, num_classes: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points around one centre per class, overlapping. The centres do not depend on the seed."""
    labels = torch.arange(n) % num_classes
    return 0.8 * drawn(num_classes, d, seed=99)[labels] + drawn(n, d, seed=seed), labels


# Nearest neighbours


def brute_force(queries: torch.Tensor, bank: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances and indices by the definition, one query at a time.

    A stable sort keeps equal distances in the order of their indices.
    """
    distances, indices = [], []
    for query in queries.double().numpy():
        squared = ((bank.double().numpy() - query) ** 2).sum(axis=1)
        order = np.argsort(squared, kind="stable")[:k]
        distances.append(squared[order])
        indices.append(order)
    return np.stack(distances), np.stack(indices)


@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (7, 5, 5), (99, 101, 20), (130, 250, 200)])
def test_the_search_is_that_of_brute_force_at_any_size_of_chunk(n: int, m: int, k: int) -> None:
    queries, bank = 3 + drawn(n, 12, seed=1), 3 + drawn(m, 12, seed=2)
    distances, indices = brute_force(queries, bank, k)
    for query_chunk, bank_chunk in ((1024, 8192), (50, 1), (3, 17), (64, 100)):
        squared, found = knn.nearest(queries, bank, k, CPU, query_chunk=query_chunk, bank_chunk=bank_chunk)
        np.testing.assert_array_equal(found.numpy(), indices)
        np.testing.assert_allclose(squared.numpy(), distances, atol=1e-6)


@pytest.mark.parametrize("bank_chunk", [1, 3, 16, 1000])
def test_equally_far_neighbours_come_in_the_order_of_their_indices(bank_chunk: int) -> None:
    copies = drawn(4, 33, seed=3).repeat(10, 1)  # rows i, i + 4, i + 8, ... are the same image
    _, found = knn.nearest(copies[:4], copies, 5, CPU, bank_chunk=bank_chunk)
    assert found.tolist() == [[i, i + 4, i + 8, i + 12, i + 16] for i in range(4)]


def test_a_collapsed_encoder_has_neighbours_too() -> None:
    squared, found = knn.nearest(torch.ones(3, 4), torch.ones(6, 4), 2, CPU)
    assert found.tolist() == [[0, 1]] * 3
    assert squared.tolist() == [[0.0, 0.0]] * 3


def test_distances_keep_their_digits_far_from_the_origin() -> None:
    """In float32, |x|^2 - 2xy + |y|^2 loses distances of 1 at a distance of 10 000 from the origin."""
    bank = torch.tensor([[10_000.0, 0.0], [10_001.0, 0.0], [10_003.0, 0.0]])
    squared, found = knn.nearest(torch.tensor([[10_001.9, 0.0]]), bank, 3, CPU)
    assert found.tolist() == [[1, 2, 0]]
    assert squared[0].tolist() == pytest.approx([0.81, 1.21, 3.61], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num_test", [1, 30, 99, 400])
def test_five_nearest_neighbours_agree_with_scikit_learn(num_test: int) -> None:
    from sklearn.neighbors import (
        KNeighborsClassifier,  # imported late, so that the processes started below do not import it
    )

    x, y = clusters(300, 7, 16, seed=4)
    queries, labels = clusters(num_test, 7, 16, seed=5)
    _, found = knn.nearest(queries, x, 5, CPU)
    ours = knn.majority(y[found], 7)
    reference = KNeighborsClassifier(5, algorithm="brute").fit(x.numpy(), y.numpy())
    np.testing.assert_array_equal(ours.numpy(), reference.predict(queries.numpy()))
    assert knn.accuracy(ours, labels) == pytest.approx(
        reference.score(queries.numpy(), labels.numpy()), abs=1e-12
    )


def test_a_tied_vote_goes_to_the_smallest_label() -> None:
    neighbours = torch.tensor([[3, 1, 3, 1, 2], [2, 0, 1, 3, 4], [4, 4, 0, 0, 4]])
    assert knn.majority(neighbours, 5).tolist() == [1, 0, 4]
    assert knn.majority(neighbours, 5, chunk=1).tolist() == [1, 0, 4]


def test_a_close_neighbour_outvotes_two_far_ones() -> None:
    """Cosines 1 and .5 twice: e^(1/.07) against 2 e^(.5/.07). At T = 10 it is 1.105 against 2.102."""
    bank, labels = (
        torch.tensor([[2.0, 0.0], [0.5, math.sqrt(0.75)], [0.5, -math.sqrt(0.75)]]),
        torch.tensor([0, 1, 1]),
    )
    query, truth = torch.tensor([[3.0, 0.0]]), torch.tensor([0])

    def measure(temperature: float) -> dict[str, float]:
        protocol = knn.WeightedNeighbours(ks=(3,), temperature=temperature)
        return protocol.measure(query.clone(), truth, bank.clone(), labels, 2, CPU)

    assert measure(0.07) == {"top1_3": 1.0, "majority_3": 0.0}
    assert measure(10.0) == {"top1_3": 0.0, "majority_3": 0.0}


def test_a_low_temperature_leaves_the_nearest_neighbour_its_vote() -> None:
    """At T = .001, a cosine of 0 would have a vote e^-1000 times that of a cosine of 1.

    Without relative votes, this would be zero in any arithmetic.
    """
    bank, query = torch.tensor([[0.0, 1.0], [-1.0, 0.5], [-1.0, 0.4]]), torch.tensor([[1.0, 0.0]])
    measured = knn.WeightedNeighbours(ks=(3,), temperature=0.001).measure(
        query, torch.tensor([2]), bank, torch.tensor([2, 1, 1]), 3, CPU
    )
    assert measured == {"top1_3": 1.0, "majority_3": 0.0}


def test_weighted_neighbours_agree_with_a_reference_and_with_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    (x, y), (queries, labels) = clusters(350, 6, 24, seed=6), clusters(80, 6, 24, seed=7)
    measured = knn.WeightedNeighbours().measure(queries.clone(), labels, x.clone(), y, 6, CPU)
    assert (
        tuple(measured)
        == knn.WeightedNeighbours().metrics
        == ("top1_20", "top1_200", "majority_20", "majority_200")
    )

    unit = [(part / part.norm(dim=1, keepdim=True)).double().numpy() for part in (queries, x)]
    similarity = unit[0] @ unit[1].T
    for k in (20, 200):
        right = 0
        for row, label in zip(similarity, labels.tolist(), strict=True):
            votes = np.zeros(6)
            for index in np.argsort(-row, kind="stable")[:k]:
                votes[y[index]] += math.exp(row[index] / 0.07)
            right += int(votes.argmax() == label)
        assert measured[f"top1_{k}"] == right / 80
        reference = KNeighborsClassifier(k, algorithm="brute").fit(unit[1], y.numpy())
        assert measured[f"majority_{k}"] == pytest.approx(reference.score(unit[0], labels.numpy()), abs=1e-12)


# Linear evaluation


def test_the_classifier_is_adams_with_its_rate_falling_after_each_epoch() -> None:
    """Run the same training written as scalars with Adam's published formulas.

    It starts from the same weights and sees the images in the same order.
    """
    protocol = linear.LinearEvaluation(epochs=3, batch_size=3, weight_decay=0.1)
    x, y = drawn(5, 2, seed=8), torch.tensor([0, 1, 1, 0, 1])
    weight, bias = protocol.fit(x, y, 2, seed=1)

    generator = seeds.generator("classifier", 1)
    w = (2 * torch.rand(2, 2, generator=generator) - 1) / math.sqrt(2)
    b = (2 * torch.rand(2, generator=generator) - 1) / math.sqrt(2)
    theta = torch.cat([w, b[:, None]], dim=1).double().numpy()  # the bias is a third column
    inputs, targets = np.concatenate([x.double().numpy(), np.ones((5, 1))], axis=1), np.eye(2)[y.numpy()]
    m, v, step = np.zeros_like(theta), np.zeros_like(theta), 0
    for epoch in range(3):
        lr = 1e-2 * (1e-4) ** (epoch / 3)
        order = torch.randperm(5, generator=generator).numpy()
        for batch in (order[:3], order[3:]):
            scores = np.exp(inputs[batch] @ theta.T)
            error = scores / scores.sum(axis=1, keepdims=True) - targets[batch]
            gradient = error.T @ inputs[batch] / len(batch) + 0.1 * theta
            step += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            theta = theta - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(torch.cat([weight, bias[:, None]], dim=1).numpy(), theta, atol=1e-5)


def test_the_classifier_separates_what_can_be_separated_and_is_repeatable() -> None:
    (x, y), (queries, labels) = clusters(400, 4, 32, seed=9), clusters(200, 4, 32, seed=10)
    protocol = linear.LinearEvaluation(epochs=60, batch_size=100)
    first, second, other = (protocol.fit(x, y, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    measured = linear.accuracies(queries @ first[0].T + first[1], labels)
    assert tuple(measured) == protocol.metrics
    assert measured["top1"] > 0.9
    assert measured["top5"] == 1.0  # four classes


def test_top_five_counts_the_five_best_classes() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(4, 1)
    assert linear.accuracies(logits, torch.tensor([0, 4, 5, 1])) == {"top1": 0.25, "top5": 0.75}


def test_equal_logits_are_not_all_right() -> None:
    logits, labels = torch.zeros(100, 10), torch.arange(100) % 10
    assert linear.accuracies(logits, labels) == {"top1": 0.1, "top5": 0.5}


def test_logits_that_are_not_finite_are_no_result() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        linear.accuracies(torch.full((3, 2), math.nan), torch.zeros(3, dtype=torch.int64))


# Alignment and uniformity


def test_alignment_and_uniformity_of_two_pairs_by_hand() -> None:
    """x = (e1, e2), y = (e1, -e1): distances 0 and 2, mean 1. Within x, the distance is 2, within y 4."""
    x, y = torch.tensor([[1.0, 0], [0, 1]]).double(), torch.tensor([[1.0, 0], [-1, 0]]).double()
    assert alignment.alignment(x, y) == pytest.approx(1.0)
    assert alignment.uniformity(x) == pytest.approx(-4.0)
    assert alignment.uniformity(y) == pytest.approx(-8.0)
    three = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]).double()
    assert alignment.uniformity(three) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))


@pytest.mark.parametrize("chunk", [1, 7, 50, 2048])
def test_uniformity_is_that_of_all_pairs_at_any_size_of_chunk(chunk: int) -> None:
    x = torch.nn.functional.normalize(drawn(50, 8, seed=11).double(), dim=1)
    assert alignment.uniformity(x, chunk=chunk) == pytest.approx(
        torch.pdist(x).square().mul(-2).exp().mean().log().item(), abs=1e-12
    )


def test_a_collapsed_encoder_has_uniformity_zero() -> None:
    assert alignment.uniformity(torch.tensor([[0.6, 0.8]]).double().repeat(9, 1)) == pytest.approx(
        0, abs=1e-12
    )


def test_views_that_do_not_differ_are_perfectly_aligned() -> None:
    still = Augmentation(
        crop_scale=(1, 1), crop_ratio=(1.2, 1.2), flip=0, jitter=0, grey=0, blur=0, solarize=0
    )
    protocol, toy = alignment.AlignmentUniformity(), Toy(num_test=40)
    assert protocol.run(encoder(augmentation=still), toy, Site(), CPU, 0)["alignment"] == pytest.approx(
        0, abs=1e-10
    )
    first, again, other = (protocol.run(encoder(), toy, Site(), CPU, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["alignment"] > 1e-3
    assert first["alignment"] != other["alignment"]


def test_alignment_is_measured_on_ordinary_views() -> None:
    """Not on patches, on small crops, or on a first view of another distribution."""
    special = Augmentation(
        first=Augmentation(central=0.5),
        small=SmallCrops(size=8, num_large=1),
        patches=Patches(size=5, canvas=15, jitter=0),
    )
    pairs = [
        features.extract_pairs(encoder(augmentation=each), Toy(num_test=12), Site(), CPU, 0)
        for each in (Augmentation(), special)
    ]
    for one, other in zip(pairs[0].features, pairs[1].features, strict=True):
        assert torch.equal(one, other)


def test_alignment_is_measured_on_views_of_the_same_image() -> None:
    """Compute the four numbers image by image, from the two views of each."""
    from reproduce.data import views

    toy, network = Toy(num_test=12), encoder()
    images = toy.load("test", Site())
    network.backbone.eval(), network.projector.eval()
    sides: list[dict[str, list[torch.Tensor]]] = [{"": [], "_features": []} for _ in range(2)]
    for index in range(12):
        pixels, sizes = originals(images, [index])
        for view in range(2):
            x = views.sample(
                pixels,
                sizes,
                torch.tensor([index]),
                augmentation=Augmentation(),
                size=16,
                seed=3,
                epoch=0,
                view=view,
            )
            with torch.no_grad():
                h = network.backbone(
                    (x - torch.tensor(toy.mean).view(3, 1, 1)) / torch.tensor(toy.std).view(3, 1, 1)
                )
                sides[view]["_features"].append((h / h.norm()).double())
                z = network.projector(h)
                sides[view][""].append((z / z.norm()).double())
    measured = alignment.AlignmentUniformity().run(network, toy, Site(), CPU, 3)
    for suffix in ("", "_features"):
        x, y = (torch.cat(side[suffix]) for side in sides)
        uniform = [torch.pdist(side).square().mul(-2).exp().mean().log().item() for side in (x, y)]
        assert measured[f"alignment{suffix}"] == pytest.approx(
            (x - y).square().sum(dim=1).mean().item(), rel=1e-4
        )
        assert measured[f"uniformity{suffix}"] == pytest.approx(sum(uniform) / 2, rel=1e-4)


# Features


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
@pytest.mark.parametrize("squash", [False, True])
def test_features_are_those_of_each_image_by_itself_in_eval_mode(
    squash: bool, resampling: Resampling
) -> None:
    toy, network = Toy(num_train=30, test_resampling=resampling), encoder()
    network.backbone.train()
    split = features.labelled(toy, "train", Site())
    extracted = features.extract(network, toy, split, Site(), CPU, squash=squash)
    assert network.backbone.training, "modules are given back as they were"
    assert not extracted.requires_grad

    network.backbone.eval()
    images = toy.load("train", Site())
    labelled = [index for index, label in enumerate(images.labels) if label >= 0]
    assert len(extracted) == len(labelled) == 30
    assert split.labels.tolist() == [images.labels[index] for index in labelled]
    for row, index in enumerate(labelled):
        kernel = Image.Resampling[resampling.upper()]
        resized = images.open(index).resize((19, 16), kernel)
        # The crop begins at round(1.5), which is 2.
        pixels = np.array(resized.resize((16, 16), kernel)) if squash else np.array(resized)[:, 2:18]
        x = (pixels / 255 - toy.mean) / toy.std
        expected = network.backbone(torch.tensor(x, dtype=torch.float32).permute(2, 0, 1)[None])[0]
        torch.testing.assert_close(extracted[row], expected, rtol=1e-4, atol=1e-5)


def test_a_split_without_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="the unlabelled split of toy has 9 images without labels"):
        features.labelled(Toy(), "unlabelled", Site())


def test_splits_of_other_classes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"only in one of them: \['e', 'f'\]"):
        features.train_and_test(Toy(test_classes=("a", "b", "c", "d", "f")), Site())
    with pytest.raises(ValueError, match="without a labelled image in the train split of only_two: c, d, e"):
        features.train_and_test(OnlyTwo(), Site())


class OnlyTwo(Toy, name="only_two"):
    """A data set whose training images have two of the five classes."""

    def load(self, split: str, site: Site) -> Images:
        return arrays([0, 1], self.classes, seed=0) if split == "train" else super().load(split, site)


def test_an_encoder_that_diverged_gives_no_numbers() -> None:
    network = encoder()
    with torch.no_grad():
        next(network.backbone.parameters()).fill_(math.nan)
    for protocol in PROTOCOLS:
        with pytest.raises(FloatingPointError, match="split of toy are not all finite"):
            protocol.run(network, Toy(num_train=200, num_test=10), Site(), CPU, 0)


@pytest.mark.parametrize(
    ("protocol", "k"),
    [
        (knn.NearestNeighbours(k=31), 31),
        (knn.NearestNeighbours(k=10_000), 10_000),
        (knn.WeightedNeighbours(), 200),
    ],
)
def test_more_neighbours_than_images_are_an_error_before_any_work(protocol: Protocol, k: int) -> None:
    no_encoder: Encoder = None
    with pytest.raises(
        ValueError, match=f"asks for {k} neighbours, but the train split of toy has 30 labelled images"
    ):
        protocol.run(no_encoder, Toy(num_train=30), Site(), CPU, 0)


def test_settings_that_make_no_sense_are_errors() -> None:
    with pytest.raises(ValueError, match=r"^knn\.k is 0: at least 1 is expected"):
        knn.NearestNeighbours(k=0)
    with pytest.raises(ValueError, match="different ks"):
        knn.WeightedNeighbours(ks=(20, 20))
    with pytest.raises(ValueError, match=r"temperature is 0\.0: a value above 0 is expected"):
        knn.WeightedNeighbours(temperature=0)
    with pytest.raises(ValueError, match="epochs is 0: at least 1 is expected"):
        linear.LinearEvaluation(epochs=0)
    with pytest.raises(ValueError, match=r"alignment\.t is 0\.0: a value above 0 is expected"):
        alignment.AlignmentUniformity(t=0)


# One process and two

PROTOCOLS: tuple[Protocol, ...] = (
    linear.LinearEvaluation(epochs=20),
    knn.NearestNeighbours(),
    knn.WeightedNeighbours(ks=(5, 200)),
    alignment.AlignmentUniformity(),
)
SIZES = [(n, chunk) for n in (1, 2, 7, 8, 9, 16, 23) for chunk in (1, 4, 8)]


def everything() -> dict[str, object]:
    """Return what one process computes: small matrices in chunks, and each protocol on the toy images.

    The toy images take three chunks to train on and two to test.
    """
    rows = {
        f"{n} rows in chunks of {chunk}": features.in_order(
            n,
            (
                10.0 * part[:, None] + torch.arange(2)
                for part in torch.split(features.shares(n, chunk), chunk)
            ),
            chunk,
        ).tolist()
        for n, chunk in SIZES
    }
    return rows | {protocol.name: protocol.run(encoder(), Toy(), Site(), CPU, 5) for protocol in PROTOCOLS}


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    two, one = on_two_processes(everything, tmp_path), everything()
    for n, chunk in SIZES:
        assert one[f"{n} rows in chunks of {chunk}"] == [[10.0 * row, 10.0 * row + 1] for row in range(n)]
    for protocol in PROTOCOLS:
        metrics = one[protocol.name]
        assert isinstance(metrics, dict)
        assert tuple(metrics) == protocol.metrics
        assert all(math.isfinite(value) for value in metrics.values())
    assert two == [one, one]
