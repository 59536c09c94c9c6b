"""VICReg's loss by hand and against lightly's, with values and gradients."""

from __future__ import annotations

import pytest
import skips
import torch
from torch import Tensor
from toys import batch

from configs import baselines
from reproduce.methods.vicreg import VICReg, covariance_loss, variance_loss

A = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
"""Uncorrelated dimensions, with an unbiased variance of 4/3."""
B = torch.tensor([[1, 1], [1, 1], [-1, -1], [-1, -1]], dtype=torch.float64)
"""Equal dimensions: the covariance is 4/3."""
ZEROS = torch.zeros(4, 2, dtype=torch.float64)


class Rows(torch.nn.Module):
    """A network whose views are its embeddings."""

    def forward(self, *views: Tensor) -> Rows:
        self.z = torch.cat(views)
        return self


def loss(*views: Tensor, **settings: float) -> Tensor:
    """Return the loss in float32, as in training."""
    network = torch.nn.Module()
    network.online = Rows()
    method = VICReg(num_views=len(views), **settings)  # type: ignore[arg-type]
    (part,) = method.parts(network, batch(list(views)))  # type: ignore[arg-type]
    return part.loss


@pytest.mark.parametrize(
    ("z1", "z2", "expected"),
    [(A, A, 0), (B, B, 3.5555556), (ZEROS, ZEROS, 24.75), (A, B, 25 + 16 / 9)],
    ids=["uncorrelated dimensions", "equal dimensions", "all zero", "two views"],
)
def test_the_loss_by_hand(z1: Tensor, z2: Tensor, expected: float) -> None:
    """B's covariance term is 1/2 (2 (4/3)^2) = 16/9. A and B differ by 2 in 2 of 8 entries: s is 1."""
    assert loss(z1, z2).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_values_and_gradients_are_those_of_lightly() -> None:
    lightly = skips.optional("lightly.loss")
    draw = torch.Generator().manual_seed(0)
    z1, z2 = 0.8 * torch.randn(2, 7, 5, generator=draw, dtype=torch.float64) + 1

    def ours(x: Tensor, y: Tensor) -> Tensor:
        variance = (variance_loss(x) + variance_loss(y)) / 2
        return 25 * (x - y).square().mean() + 25 * variance + covariance_loss(x) + covariance_loss(y)

    found = []
    for function in (ours, lightly.VICRegLoss(), loss):
        z = [z1.clone().requires_grad_(), z2.clone().requires_grad_()]
        value = function(*z)
        found.append([value, *torch.autograd.grad(value, z)])
    assert variance_loss(z1) > 0.01, "the hinge must be open"
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close([each.double() for each in found[2]], found[1], rtol=1e-4, atol=1e-5)


def test_the_rows_of_two_processes_are_all_rows() -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = [covariance_loss(z, slice(rank, None, 2)) for rank in range(2)]
    torch.testing.assert_close(sum(shares), covariance_loss(z))


def test_the_covariance_is_torchs() -> None:
    z = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5
    covariance = torch.cov(z.T)
    expected = covariance.square().sum() - covariance.diagonal().square().sum()
    torch.testing.assert_close(covariance_loss(z), expected / 4)


def test_without_variance_and_covariance_the_embeddings_collapse() -> None:
    """The known broken variant: invariance alone shrinks the difference of views, and nothing else grows."""
    draw = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(6, 4, generator=draw)
    x = torch.randn(32, 6, generator=draw)
    views = [x + 0.3 * torch.randn(32, 6, generator=draw) for _ in range(2)]
    spreads = []
    for mu, nu in ((25.0, 1.0), (0.0, 0.0)):
        w = weight.clone().requires_grad_()
        optimizer = torch.optim.SGD([w], lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            loss(*(view @ w for view in views), lambda_variance=mu, lambda_covariance=nu).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        spreads.append((x @ w.detach()).std(dim=0).mean().item())
    assert spreads[0] > 0.7
    assert spreads[1] < 0.05


def test_three_views_are_the_mean_over_pairs_and_views() -> None:
    """A, A, B: the pairs differ by 0, 1 and 1; one of three views has a covariance term of 16/9."""
    assert loss(A, A, B).item() == pytest.approx(25 * 2 / 3 + 2 * 16 / 9 / 3, rel=1e-5)


@pytest.mark.parametrize(("epochs", "peak"), [(1000, 1.6), (100, 2.4)])
def test_the_official_rates(epochs: int, peak: float) -> None:
    optimizer = baselines.vicreg_imagenet(epochs).optimizer
    assert optimizer.peak_lr(2048, 2) == pytest.approx(peak)


def test_smaller_scales_have_narrower_expanders() -> None:
    assert VICReg().smaller("small").head.widths == (2048, 2048, 2048)
    assert VICReg().smaller("smoke").head.widths == (64, 64, 64)
