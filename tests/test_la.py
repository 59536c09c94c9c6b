"""LA: its loss by hand and in plain steps, its clusters, whole runs on one and two processes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from test_loop import Left, check, check_log, trained
from test_npid import dropped, plain_nce
from test_resources import saved_for_backward
from test_simsiam import PlainSGD
from torch import Tensor, nn
from toys import CPU, PRETRAIN, Notes, Toy, on_two_processes

from configs import baselines
from reproduce.commands import disk, forecast
from reproduce.data.imagenet import ImageNet
from reproduce.methods.la import LA
from reproduce.methods.method import Epoch
from reproduce.methods.npid import NPID
from reproduce.nn import aggregation, seeds
from reproduce.nn.aggregation import AggregationNetwork
from reproduce.nn.bank import Bank
from reproduce.nn.heads import Head
from reproduce.nn.optimizers import SGD
from reproduce.runs import checkpoint, interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.train import pretrain

METHOD = LA(
    neighbours=10,
    clusters=6,
    clusterings=3,
    iterations=4,
    npid_epochs=1,
    negatives=12,
    temperature=0.3,
    head=Head(widths=(8,)),
)


def clustered(num_images: int, dim: int, clusterings: int = 2) -> AggregationNetwork:
    """Return a bank with clusters around an empty network, in float64."""
    return AggregationNetwork(
        nn.Identity(), nn.Identity(), num_images=num_images, dim=dim, clusterings=clusterings
    ).double()


# The loss


def test_the_loss_by_hand() -> None:
    """All rows are alike but row 4999, which is not among the nearest of its own image."""
    network = clustered(5000, 2)
    network.bank.rows.copy_(torch.tensor([1.0, 0.0]))
    network.bank.rows[4999] = torch.tensor([-1.0, 0.0])
    v = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    def loss(image: int) -> float:
        return network.aggregation(v, torch.tensor([image]), neighbours=4096, temperature=0.07).item()

    nearest = aggregation.nearest_rows(v, network.bank.rows, 4096).flatten().tolist()
    assert loss(nearest[0]) == pytest.approx(math.log(4096) - 1e-7 * 4096, abs=1e-6), "only itself is close"
    assert loss(4999) == pytest.approx(-math.log(1e-7)), "no row is close, not even its own"
    network.labels[1, nearest[7]] = network.labels[1, nearest[0]]
    assert loss(nearest[0]) == pytest.approx(math.log(2048), abs=1e-3), "one clustering is enough"
    network.labels[0] = 0
    assert loss(4999) == pytest.approx(-math.log(1 + 1e-7), abs=1e-12), "all are in one cluster"


def plain_aggregation(
    rows: Tensor, labels: Tensor, v: Tensor, images: list[int], neighbours: int, temperature: float
) -> Tensor:
    """Return the mean of L, from exponentials of one image after the other."""
    losses = []
    for x, image in zip(v, images, strict=True):
        products = rows @ x
        background = sorted(range(len(rows)), key=lambda j: -products[j].item())[:neighbours]
        close = [j for j in background if any(each[j] == each[image] for each in labels.tolist())]
        p = (products / temperature).exp()
        losses.append(-(p[close].sum() / p[background].sum() + 1e-7).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("block", [7, 1000], ids=["3 blocks", "1 block"])
def test_the_loss_is_that_of_the_probabilities(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 9 neighbours, a block of 7 rows has fewer than there are to find."""
    monkeypatch.setattr(aggregation, "BLOCK", block)
    torch.manual_seed(0)
    network = clustered(20, 4, clusterings=3)
    network.labels.copy_(torch.randint(8, (3, 20)))
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    images = [4, 0, 19, 7, 8, 11]
    found = network.aggregation(plain.unit(x), torch.tensor(images), neighbours=9, temperature=0.2)
    expected = plain_aggregation(network.bank.rows, network.labels, plain.unit(x), images, 9, 0.2)
    torch.testing.assert_close(found, expected)
    (mine,) = torch.autograd.grad(found, x)
    (theirs,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(mine, theirs)


def test_no_temperature_overflows() -> None:
    network = clustered(20, 4).float()
    x = torch.randn(6, 4, requires_grad=True)
    indices = torch.arange(6)
    loss = network.aggregation(plain.unit(x), indices, neighbours=9, temperature=1e-4)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite()
    assert gradient.isfinite().all()


# The bank and its clusters


def test_the_bank_starts_as_that_of_npid_with_normalised_rows() -> None:
    torch.manual_seed(0)
    rows = Bank(5, 3, unit=True).rows
    torch.manual_seed(0)
    torch.testing.assert_close(rows, plain.unit(Bank(5, 3).rows))


def test_clusterings_differ_and_follow_from_the_seed_and_the_bank() -> None:
    torch.manual_seed(0)
    network = clustered(40, 4, clusterings=3)
    assert network.labels.tolist() == [list(range(40))] * 3, "each image by itself"
    found = []
    for seed in (1, 1, 2):
        network.cluster(6, iterations=3, seed=seed)
        found.append(network.labels.clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert len({tuple(labels) for labels in found[0].tolist()}) == 3
    network.bank.rows.neg_()
    network.bank.rows[:20] = network.bank.rows[0]
    network.cluster(6, iterations=3, seed=1)
    assert (network.labels[:, :20] == network.labels[:, :1]).all(), "equal rows share each cluster"


def test_the_first_clusters_are_made_after_the_epochs_of_npid_with_all_iterations() -> None:
    torch.manual_seed(0)
    network = clustered(300, 4, METHOD.clusterings)
    found, calls = [], list[int]()
    for number in (0, 1):

        def may_stop(number: int = number) -> None:
            calls.append(number)

        METHOD.before_epoch(network, Epoch(number=number, seed=3, images=lambda: iter(()), may_stop=may_stop))
        found.append(network.labels.clone())
    assert calls == [1] * METHOD.iterations * METHOD.clusterings, "a stop request waits for an iteration"
    assert found[0].tolist() == [list(range(300))] * METHOD.clusterings
    for iterations, alike in ((METHOD.iterations, True), (METHOD.iterations - 1, False)):
        network.cluster(METHOD.clusters, iterations=iterations, seed=3)
        assert torch.equal(network.labels, found[1]) is alike


# Whole runs


def plain_clusters(rows: Tensor, k: int, iterations: int, seed: int) -> Tensor:
    """Return the number of each row's cluster after Lloyd's iterations from k of the rows."""
    start = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:k]
    centroids, labels = rows[start], list[int]()
    for iteration in range(iterations + 1):
        if iteration:
            members = [[row for row, label in zip(rows, labels, strict=True) if label == c] for c in range(k)]
            assert all(members), "a cluster is empty"
            centroids = torch.stack([torch.stack(each).mean(dim=0) for each in members])
        labels = [int((centroids - row).square().sum(dim=1).argmin()) for row in rows]
    return torch.tensor(labels)


class PlainLA(plain.PlainMethod):
    """NCE from probabilities in the first epochs, then local aggregation image by image."""

    z: float | None = None

    def network(self, backbone: Any, num_images: int) -> Any:
        module = nn.Module()
        projector = self.settings.head.build(backbone.num_features)
        module.online = nn.ModuleDict({"backbone": backbone, "projector": projector})
        module.bank = nn.Module()
        bound = math.sqrt(3 / self.settings.head.output)
        rows = torch.empty(num_images, self.settings.head.output).uniform_(-bound, bound)
        module.bank.register_buffer("rows", plain.unit(rows))
        module.bank.register_buffer("log_z", torch.tensor(math.nan))
        module.register_buffer("labels", torch.arange(num_images).repeat(self.settings.clusterings, 1))
        return module

    def before_epoch(self, network: Any, at: plain.Step) -> None:
        s = self.settings
        if at.epoch < s.npid_epochs:
            return
        for number in range(s.clusterings):
            seed = seeds.seed("clusters", self.spec.seed, number)
            network.labels[number] = plain_clusters(network.bank.rows, s.clusters, s.iterations, seed)

    def loss(self, network: Any, views: list[Tensor], at: plain.Step) -> dict[str, Tensor]:
        (view,), s, rows = views, self.settings, network.bank.rows
        self.v = plain.unit(network.online["projector"](network.online["backbone"](view)))
        if at.epoch >= s.npid_epochs:
            loss = plain_aggregation(rows, network.labels, self.v, at.images, s.neighbours, s.temperature)
            return {"loss": loss, "L_la": loss}
        indices, generator = torch.tensor(at.images), seeds.generator("negatives", self.spec.seed, at.step)
        drawn = torch.randint(len(rows), (len(indices), s.negatives), generator=generator)
        loss, self.z = plain_nce(rows, self.v, indices, drawn, s.temperature, self.z)
        network.bank.log_z.fill_(math.log(self.z))
        return {"loss": loss, "L_npid": loss}

    def after(self, network: Any, at: plain.Step) -> dict[str, float]:
        with torch.no_grad():
            for index, v in zip(at.images, self.v, strict=True):
                row = network.bank.rows[index]
                m = self.settings.momentum
                row.copy_(plain.unit((m * row + (1 - m) * v)[None])[0])
        return {}


TOY = replace(
    PRETRAIN,
    method=METHOD,
    dataset=Toy(num_train=26, size=8, canvas=20),
    optimizer=SGD(base_lr=0.05, batch_scaling="none", weight_decay=0.02, momentum=0.8, drops=(0.5,)),
    epochs=2,
    batch_size=8,
    seed=0,
)


def plain_run() -> plain.Trained:
    def optimizer(parameters: Any, settings: Any) -> PlainSGD:
        return PlainSGD(parameters, settings, peak=0.0)

    return plain.train(TOY, Site(), method=PlainLA(TOY), optimizer=optimizer, rate=dropped)


def check_run(found: Left, expected: plain.Trained) -> None:
    """Compare as `check` does, log Z, which has no value before the first step, and all clusters."""
    found, expected = (
        replace(found, network={**found.network}),
        replace(expected, network={**expected.network}),
    )
    for name in ("bank.log_z", "labels"):
        torch.testing.assert_close(found.network.pop(name), expected.network.pop(name))
    check(found, expected)


def test_a_run_ends_where_the_plain_loop_ends(tmp_path: Path) -> None:
    found, expected = trained(TOY, tmp_path), plain_run()
    check_run(found, expected)
    check_log(list(found.logged.values()), expected.logged)


def run_of_each(folder: Path) -> Any:
    return trained(TOY, folder)


@pytest.mark.slow
def test_two_processes_end_where_the_plain_loop_ends(tmp_path: Path) -> None:
    expected = plain_run()
    for found in on_two_processes(run_of_each, tmp_path, tmp_path):
        check_run(found, expected)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_resumes_within_an_epoch_keeps_its_clusters_and_ends_bit_equal(tmp_path: Path) -> None:
    whole = trained(TOY, tmp_path / "whole")

    def report(progress: Progress) -> None:
        if progress.done == 5 * 8:
            interrupt.ask("a test")

    with pytest.raises(Interrupted, match="a test"):
        pretrain(TOY, Site(runs=tmp_path), tmp_path / "stopped" / "run", CPU, Notes(), report)
    state = checkpoint.latest(tmp_path / "stopped" / "run", TOY.id)
    assert state is not None
    again = clustered(26, 8, METHOD.clusterings).float()
    again.bank.rows.copy_(state["network"]["bank.rows"])
    again.cluster(METHOD.clusters, iterations=METHOD.iterations, seed=TOY.seed)
    assert not torch.equal(again.labels, state["network"]["labels"]), "the bank has moved since"
    resumed = trained(TOY, tmp_path / "stopped")
    assert all(torch.equal(resumed.network[name], value) for name, value in whole.network.items())


# The recipe


def test_the_recipe_has_the_steps_and_the_rates_of_its_source() -> None:
    """LocalAggregation exp_configs/la_final.json `res50_LA`: `train_num_steps` and `lr_boundaries`."""
    run = baselines.la_imagenet()
    steps_per_epoch = 1_281_167 // run.batch_size
    assert run.epochs * steps_per_epoch == 2_001_800
    assert run.optimizer.exempt_vectors
    steps = (0, 1_521_999, 1_522_000, 1_895_856, 1_895_857, 2_001_799)
    rates = [
        run.optimizer.rate(
            step, batch_size=128, num_views=1, steps_per_epoch=steps_per_epoch, epochs=run.epochs
        )
        for step in steps
    ]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])


# Sizes


def test_a_checkpoint_contains_a_row_and_all_labels_of_each_image_and_the_forecast_counts_them() -> None:
    run = replace(TOY, method=LA(), dataset=ImageNet(), backbone="resnet50")
    found = disk.sizes(run, {})
    assert forecast._sizes(run) == found
    without = disk.sizes(replace(run, dataset=Toy(num_train=1)), {})
    assert found.checkpoint - without.checkpoint == (4 * 128 + 8 * 10) * 1_281_166  # 758 MB
    assert found.encoder == without.encoder


def test_smaller_scales_have_the_temperature_and_the_negatives_of_npid() -> None:
    for scale in ("smoke", "small"):
        ours, npid = LA().smaller(scale), NPID().smaller(scale)
        assert (ours.negatives, ours.temperature) == (npid.negatives, npid.temperature)


@pytest.mark.parametrize(
    ("message", "method"),
    [
        ("la.neighbours is 4096, but the memory bank has only 4000 rows", LA(clusters=9)),
        ("la.clusters is 30000, .* choose at most 4000", LA(neighbours=9)),
    ],
)
def test_the_bank_has_a_row_for_each_neighbour_and_cluster(message: str, method: LA) -> None:
    method.check_for(batch_size=8)
    method.check_for(batch_size=8, num_images=30_000)
    with pytest.raises(ValueError, match=message):
        method.check_for(batch_size=8, num_images=4000)


class Loss(nn.Module):
    """The loss of the first images as a layer."""

    def __init__(self, network: AggregationNetwork, neighbours: int) -> None:
        super().__init__()
        self.network, self.neighbours = network, neighbours

    def forward(self, v: Tensor) -> Tensor:
        indices = torch.arange(len(v))
        return self.network.aggregation(v, indices, neighbours=self.neighbours, temperature=0.07)


def test_the_estimate_of_memory_counts_the_neighbours_that_the_loss_keeps() -> None:
    network = clustered(200, 128).float()
    method = LA(neighbours=100, negatives=5)
    kept = saved_for_backward(Loss(network, 100), plain.unit(torch.randn(16, 128)).requires_grad_())
    outputs = method.layout(64).projector.outputs - 128  # those of the head
    assert kept == pytest.approx(4 * 16 * outputs, rel=0.05)
    assert method.layout(64).compared == 1 + 5, "the rows that NPID's loss compares with"
    assert replace(method, npid_epochs=0).layout(64).compared == 0
