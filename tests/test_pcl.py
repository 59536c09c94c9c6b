"""PCL: its loss by hand and in plain steps, its clusterings, whole runs on one and two processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from test_loop import TOLERANCE, Left, check, check_log, error, trained
from test_moco import PlainMoCo, PlainSGD, Twins, plain_contrastive, rate
from torch import Tensor, nn
from toys import CPU, PRETRAIN, Notes, Toy, batch, centre_crops, on_two_processes

from configs.baselines import pcl_imagenet
from configs.evaluate import linear
from configs.scales import small, smoke
from reproduce import train
from reproduce.commands import disk, forecast
from reproduce.data.imagenet import ImageNet
from reproduce.methods.pcl import PCL
from reproduce.nn import backbones, centroids, seeds
from reproduce.nn.centroids import Clusterings, concentration
from reproduce.nn.heads import Head
from reproduce.nn.keys import Keys
from reproduce.nn.optimizers import SGD
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Pretrain

METHOD = PCL(
    temperature=0.3,
    clusters=(7, 10),
    negatives=3,
    cluster_epoch=1,
    iterations=10,
    restarts=2,
    head=Head(widths=(8,)),
    keys=Keys(queue=16, momentum=0.9, group=4),
)
TOY = replace(
    PRETRAIN,
    method=METHOD,
    dataset=Toy(num_train=26, size=16, canvas=20),
    optimizer=SGD(base_lr=0.2, batch_scaling="none", drops=(2 / 3,), weight_decay=0.02, momentum=0.8),
    epochs=3,
    batch_size=8,
    seed=4,
)


# The concentration of a cluster


def test_the_concentration_by_hand() -> None:
    """Mean distances 3 and 1 in clusters of two, and a cluster of one, which takes the larger phi.

    The percentiles of (3, 1, 3) are 1.4 and 3.
    """
    labels, distances = torch.tensor([0, 1, 0, 1, 2]), torch.tensor([4.0, 1.0, 16.0, 1.0, 9.0])
    found = concentration(labels, distances, 3, temperature=0.2)
    assert found.tolist() == pytest.approx([0.2 * 3 * share / 7.4 for share in (3, 1.4, 3)], rel=1e-12)


def test_a_larger_cluster_has_a_smaller_phi_at_the_same_distance() -> None:
    """1 / log 12 and 1 / log 16; the percentiles lie a tenth of the way from either to the other."""
    labels = torch.tensor([0] * 2 + [1] * 6)
    found = concentration(labels, torch.ones(8), 2, temperature=1.0)
    two, six = 1 / math.log(12), 1 / math.log(16)
    limits = [0.9 * two + 0.1 * six, 0.9 * six + 0.1 * two]
    assert found.tolist() == pytest.approx([2 * limit / (two + six) for limit in limits], rel=1e-12)


def plain_concentration(
    labels: NDArray[np.int64], distances: NDArray[np.float64], k: int, temperature: float
) -> NDArray[np.float64]:
    """Return phi, cluster by cluster."""
    phi: list[float] = []
    for cluster in range(k):
        members = distances[labels == cluster]
        phi.append(np.sqrt(members).mean() / math.log(len(members) + 10) if len(members) > 1 else math.nan)
    filled = np.nan_to_num(phi, nan=np.nanmax(phi))
    clipped = np.clip(filled, np.percentile(filled, 10), np.percentile(filled, 90))
    return np.asarray(temperature * clipped / clipped.mean())


def test_the_concentration_is_that_of_single_clusters() -> None:
    """Some of the 40 clusters are empty, and some have one image."""
    draw = np.random.default_rng(0)
    labels, distances = draw.integers(0, 40, 90), draw.uniform(0, 2, 90)
    assert {0, 1} < set(np.bincount(labels, minlength=40))
    found = concentration(torch.from_numpy(labels), torch.from_numpy(distances), 40, temperature=0.2)
    assert found.tolist() == pytest.approx(plain_concentration(labels, distances, 40, 0.2).tolist())
    assert found.mean().item() == pytest.approx(0.2)


# The loss


def clusterings(labels: list[int], rows: Tensor, phi: list[float]) -> Clusterings:
    """Return one clustering with this content."""
    made = Clusterings((len(rows),), num_images=len(labels), dim=rows.shape[1]).double()
    made.labels.copy_(torch.tensor([labels]))
    made.centroids.copy_(rows)
    made.phi.copy_(torch.tensor(phi))
    return made


def test_the_loss_of_equal_logits_is_the_log_of_their_number() -> None:
    made = Clusterings((50, 60), num_images=8, dim=4)
    q = plain.unit(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    loss = made.loss(q, torch.arange(8), negatives=15, group=4, seed=0, step=0)
    assert loss.item() == pytest.approx(math.log(4 + 15))


def test_centroids_of_a_group_by_hand() -> None:
    """Two images of one cluster have its centroid twice; the only other cluster is a negative of both."""
    e1, e2 = torch.eye(2, dtype=torch.float64)
    made = clusterings([0, 0], torch.stack([e1, e2]), [0.5, 0.25])
    arguments: dict[str, Any] = {"negatives": 1, "group": 2, "seed": 0, "step": 0}
    found = made.loss(torch.stack([e1, e1]), torch.arange(2), **arguments)
    assert found.item() == pytest.approx(math.log(2 + math.exp(-2)), rel=1e-12)
    found = made.loss(torch.stack([e2, e2]), torch.arange(2), **arguments)
    assert found.item() == pytest.approx(math.log(2 + math.exp(4)), rel=1e-12)


def test_images_of_another_group_are_not_compared() -> None:
    """With two groups of two, the centroids of one are drawn for the other only as negatives."""
    rows = torch.eye(6, dtype=torch.float64)
    made = clusterings([0, 1, 2, 3], rows, [1.0] * 6)
    q = rows[[0, 1, 2, 3]]
    found = made.loss(q, torch.arange(4), negatives=4, group=2, seed=0, step=0)
    assert found.item() == pytest.approx(math.log(math.e + 5) - 1, rel=1e-12)
    reordered = made.loss(q[[2, 0, 3, 1]], torch.tensor([2, 0, 3, 1]), negatives=4, group=2, seed=0, step=0)
    assert reordered.item() == pytest.approx(found.item(), rel=1e-12)


def test_negatives_are_other_clusters_each_once_and_follow_from_seed_step_and_clustering() -> None:
    own = torch.arange(40).view(10, 4) % 9

    def drawn(seed: int, step: int, clustering: int) -> Tensor:
        return centroids.others(own, 20, 11, seed=seed, step=step, clustering=clustering)

    found = drawn(1, 2, 0)
    assert torch.equal(found, drawn(1, 2, 0))
    for other in (drawn(2, 2, 0), drawn(1, 3, 0), drawn(1, 2, 1)):
        assert not torch.equal(found, other)
    for mine, others in zip(own.tolist(), found.tolist(), strict=True):
        assert len(set(others)) == 11
        assert not set(others) & set(mine)


def test_negatives_are_uniform() -> None:
    own = torch.tensor([[3, 7]]).repeat(4000, 1)
    counts = centroids.others(own, 10, 2, seed=0, step=0, clustering=0).flatten().bincount(minlength=10)
    assert counts[[3, 7]].tolist() == [0, 0]
    assert counts.sum() == 8000
    assert counts[counts > 0].sub(1000).abs().max() < 5 * math.sqrt(1000)


# The plain method


class PlainPCL(PlainMoCo):
    """scikit-learn's clusters of single images' keys, phi cluster by cluster, a loss image by image."""

    def network(self, backbone: Any, num_images: int) -> Twins:
        network, clusters = super().network(backbone, num_images), self.settings.clusters
        network.clusterings = nn.Module()
        labels = torch.zeros(len(clusters), num_images, dtype=torch.int64)
        network.clusterings.register_buffer("labels", labels)
        network.clusterings.register_buffer("centroids", torch.zeros(sum(clusters), 8))
        network.clusterings.register_buffer("phi", torch.ones(sum(clusters)))
        return network

    def embedder(self, network: Twins) -> Any:
        return network.target

    def embeddings(self, network: Twins) -> NDArray[np.float64]:
        dataset: Any = self.spec.dataset
        images, embedder = dataset.load("train", Site()), self.embedder(network)
        crops = centre_crops(images, range(26), dataset.resize, dataset.size, dataset.test_resampling)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (dataset.mean, dataset.std))
        inputs = (crops / 255 - mean) / std
        embedder.eval()
        with torch.no_grad():
            rows = [embedder["projector"](embedder["backbone"](x[None])) for x in inputs]
        embedder.train()
        return np.asarray(plain.unit(torch.cat(rows).double()).numpy())

    def before_epoch(self, network: Twins, at: plain.Step) -> None:
        if at.epoch < self.settings.cluster_epoch:
            return
        s, x = self.settings, self.embeddings(network)
        means, phis = [], []
        for m, k in enumerate(s.clusters):
            draw, found = seeds.generator("clusters", self.spec.seed, m), []
            for _ in range(s.restarts):
                start = x[torch.randperm(len(x), generator=draw)[:k].numpy()]
                kmeans = KMeans(k, init=start, n_init=1, max_iter=s.iterations, tol=0, algorithm="lloyd")
                found.append(kmeans.fit(x))
            best = min(found, key=lambda each: each.inertia_)
            distances = np.square(x - best.cluster_centers_[best.labels_]).sum(axis=1)
            network.clusterings.labels[m] = torch.from_numpy(best.labels_)
            means.append(best.cluster_centers_)
            phis.append(self.concentration(best.labels_.astype(np.int64), distances, k))
        network.clusterings.centroids.copy_(self.prototypes(torch.from_numpy(np.concatenate(means))))
        network.clusterings.phi.copy_(torch.from_numpy(np.concatenate(phis)))

    def prototypes(self, means: Tensor) -> Tensor:
        return plain.unit(means)

    def concentration(
        self, labels: NDArray[np.int64], distances: NDArray[np.float64], k: int
    ) -> NDArray[np.float64]:
        return plain_concentration(labels, distances, k, self.settings.temperature)

    def groups(self, n: int) -> list[range]:
        size = self.settings.keys.group
        return [range(first, first + size) for first in range(0, n, size)]

    def prototype_loss(self, network: Twins, q: Tensor, at: plain.Step) -> Tensor:
        s, found, first = self.settings, network.clusterings, 0
        losses = []
        for m, k in enumerate(s.clusters):
            ranks = torch.rand(2, k, generator=seeds.generator("centroids", self.spec.seed, at.step, m))
            c, phi = found.centroids[first : first + k], found.phi[first : first + k]
            first += k
            for number, group in enumerate(self.groups(len(q))):
                own = [int(found.labels[m, at.images[i]]) for i in group]
                free = [cluster for cluster in range(k) if cluster not in own]
                drawn = sorted(free, key=lambda cluster: -ranks[number, cluster])[: s.negatives]
                for i, positive in zip(group, own, strict=True):
                    shares = [(q[i] @ c[j] / phi[j]).exp() for j in [*own, *drawn]]
                    losses.append(-((q[i] @ c[positive] / phi[positive]).exp() / sum(shares)).log())
        return plain.mean(losses)

    def loss(self, network: Twins, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        ((q, k),) = self.pairs(network, views, at)
        terms = {"L_moco": plain_contrastive(q, k, network.queues[0].rows, self.settings.temperature)}
        if at.epoch >= self.settings.cluster_epoch:
            terms["L_proto"] = self.prototype_loss(network, q, at)
        return {"loss": sum(terms.values(), torch.zeros(())), **terms}


def plain_rate(spec: Pretrain, at: plain.Step) -> float:
    """Return the base rate, a tenth of it in the third epoch."""
    optimizer: Any = spec.optimizer
    return float(optimizer.base_lr) * (0.1 if at.epoch == 2 else 1)


def plainly(spec: Pretrain, method: type[PlainPCL] = PlainPCL) -> plain.Trained:
    """Train the toy with the plain loop."""
    return plain.train(spec, Site(), method=method(spec), optimizer=PlainSGD, rate=plain_rate)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """The real run of the toy."""
    return trained(TOY, tmp_path_factory.mktemp("run"))


def test_a_run_ends_where_the_plain_loop_ends(run: Left) -> None:
    expected = plainly(TOY)
    check(run, expected)
    check_log(list(run.logged.values()), expected.logged)
    assert ["L_proto" in step for step in run.logged.values()] == 3 * [False] + 6 * [True]


def run_of_each(folder: Path) -> Left:
    return trained(TOY, folder)


@pytest.mark.slow
def test_two_processes_end_where_the_plain_loop_ends(tmp_path: Path) -> None:
    """Groups, their negatives and the clusters of all images are those of one process."""
    expected = plainly(TOY)
    for found in on_two_processes(run_of_each, tmp_path, tmp_path):
        check(found, expected)
        check_log(list(found.logged.values()), expected.logged)


class ClustersOfTheQueryNetwork(PlainPCL):
    def embedder(self, network: Twins) -> Any:
        return network.online


class CentroidsAreMeans(PlainPCL):
    """Centroids inside the sphere."""

    def prototypes(self, means: Tensor) -> Tensor:
        return means


class AllTemperaturesAreEqual(PlainPCL):
    def concentration(
        self, labels: NDArray[np.int64], distances: NDArray[np.float64], k: int
    ) -> NDArray[np.float64]:
        return np.full(k, self.settings.temperature)


class SquaredDistances(PlainPCL):
    def concentration(
        self, labels: NDArray[np.int64], distances: NDArray[np.float64], k: int
    ) -> NDArray[np.float64]:
        return super().concentration(labels, np.square(distances), k)


class ClustersStay(PlainPCL):
    """The clusters of the first time serve all epochs."""

    def before_epoch(self, network: Twins, at: plain.Step) -> None:
        if at.epoch == self.settings.cluster_epoch:
            super().before_epoch(network, at)


@pytest.mark.parametrize(
    "broken",
    [
        ClustersOfTheQueryNetwork,
        CentroidsAreMeans,
        AllTemperaturesAreEqual,
        SquaredDistances,
        ClustersStay,
    ],
)
def test_a_broken_variant_ends_elsewhere(run: Left, broken: type[PlainPCL]) -> None:
    assert error(run.network, plainly(TOY, broken))[0] > 4 * TOLERANCE


# State


def test_a_run_that_resumes_within_an_epoch_keeps_its_clusters_and_ends_bit_equal(
    tmp_path: Path, run: Left
) -> None:
    stops = iter((5, 7))

    def until(step: int | None) -> dict[str, Tensor]:
        def report(progress: Progress) -> None:
            if step and progress.done == step * TOY.batch_size:
                interrupt.ask("a test")

        try:
            train.pretrain(TOY, Site(runs=tmp_path), tmp_path / "run", CPU, Notes(), report)
        except Interrupted:
            assert step
        state = checkpoint.latest(tmp_path / "run", TOY.id)
        assert state is not None
        found: dict[str, Tensor] = state["network"]
        return found

    first, second = (until(stop) for stop in stops)
    assert not torch.equal(first["clusterings.phi"], second["clusterings.phi"]), "of two epochs"
    last = until(None)
    assert last.keys() == run.network.keys()
    for name, value in run.network.items():
        assert torch.equal(last[name], value), name


def test_clusters_are_those_of_the_key_network_in_eval_mode_which_returns_to_training() -> None:
    network: Any = METHOD.network(backbones.build("small", seed=0), num_images=5, batch_size=8).train()
    crops = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shares = [(torch.tensor([4, 0]), crops[[4, 0]]), (torch.tensor([1, 3, 2]), crops[[1, 3, 2]])]
    found = network.embed(shares)
    assert all(module.training for module in network.modules())
    network.eval()
    torch.testing.assert_close(found, plain.unit(network.project(crops)))


def test_a_step_before_the_first_clustering_has_moco_s_loss_alone() -> None:
    network: Any = METHOD.network(backbones.build("small", seed=0), num_images=26, batch_size=8)
    views = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(view)) for view in range(2)]
    (part,) = METHOD.parts(network, batch(views))
    assert part.terms.keys() == {"L_moco"}
    (later,) = METHOD.parts(network, replace(batch(views), epoch=1))
    assert later.terms.keys() == {"L_moco", "L_proto"}
    assert later.loss.item() == pytest.approx(part.loss.item() + later.terms["L_proto"].item())


# Sizes and settings


def test_a_checkpoint_contains_the_clusterings_and_the_forecast_counts_them() -> None:
    run = replace(TOY, method=PCL(), dataset=ImageNet(), backbone="resnet50")
    found = disk.sizes(run, {})
    assert forecast._sizes(run) == found
    without = disk.sizes(run.replace("method.clusters", (25000,)), {})
    # Two labels of 8 bytes for each image; 150 000 centroids of 128 numbers, and as many temperatures.
    assert found.checkpoint - without.checkpoint == 2 * 8 * 1_281_167 + 150_000 * 129 * 4
    assert found.encoder == without.encoder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clusters": (7, 26)}, "pcl.clusters contains 26, but the data set has only 26 images"),
        ({"negatives": 4}, "pcl.negatives is 4, but 7 clusters may be only 3 without those of a group of 4"),
        ({"keys": Keys(queue=20, group=4)}, "keys.queue is 20, which is not a multiple"),
    ],
    ids=["as many clusters as images", "more negatives than clusters", "the queue"],
)
def test_settings_that_do_not_fit_are_refused_by_name(changes: dict[str, Any], says: str) -> None:
    METHOD.check_for(batch_size=8, num_images=26)
    with pytest.raises(ValueError, match=says):
        replace(METHOD, **changes).check_for(batch_size=8, num_images=26)


def test_a_method_without_clusterings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pcl.clusters is \(\): at least one"):
        PCL(clusters=())


RECIPES: dict[str, Callable[[], Pretrain]] = {"v1": pcl_imagenet, "v2": lambda: pcl_imagenet("v2")}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_their_batch_and_data_at_every_scale(name: str) -> None:
    """The images: ImageNet, Imagenette's training set, the smoke scale's scenes."""
    run = RECIPES[name]()
    found = [(run, 1_281_167)]
    for scale, number in ((small, 9_469), (smoke, 1_200)):
        smaller: Any = scale(linear(run))
        found.append((smaller.encoder, number))
    assert [run.method.passes(view) for view in range(2)] == [3, 2], "a query; a key and a centre crop"
    for spec, number in found:
        spec.method.check_for(batch_size=spec.batch_size, num_images=number)
        assert spec.epochs > spec.method.cluster_epoch > 0
        shares = [round(number / clusters, 1) for clusters in spec.method.clusters]
        assert shares == pytest.approx([51.2, 25.6, 12.8], rel=0.03), "images for each cluster"


def test_rates_of_the_recipes_by_hand() -> None:
    rates = [rate(pcl_imagenet(), epoch) for epoch in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 3e-3, 3e-3, 3e-4, 3e-4])
    run = pcl_imagenet("v2")
    assert [rate(run, epoch) for epoch in (0, 100, 150)] == pytest.approx(
        [0.03, 0.015, 0.015 * (1 - math.sqrt(0.5))]
    )


# Learning
