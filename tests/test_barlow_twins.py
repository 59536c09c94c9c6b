"""Barlow Twins' loss by hand and against lightly's, with values and gradients."""

from __future__ import annotations

import pytest
import skips
import torch
from torch import Tensor
from toys import batch

from configs import baselines
from reproduce.methods.barlow_twins import BarlowTwins, correlation_terms, standardised

LAMBDA = 0.0051
A = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
"""Uncorrelated dimensions."""
B = torch.tensor([[1, 1], [1, 1], [-1, -1], [-1, -1]], dtype=torch.float64)
"""Equal dimensions."""


def loss(z1: Tensor, z2: Tensor) -> Tensor:
    invariance, redundancy = correlation_terms(standardised(z1), standardised(z2))
    return invariance + LAMBDA * redundancy


@pytest.mark.parametrize(
    ("z1", "z2", "expected"),
    [(A, A, 2e-10), (B, B, 0.0101998), (A, B, 1.0050999)],
    ids=["uncorrelated dimensions", "equal dimensions", "one of two dimensions differs"],
)
def test_the_loss_by_hand(z1: Tensor, z2: Tensor, expected: float) -> None:
    """C is the identity, all ones, and ((1, 1), (0, 0)), each over 1 + 1e-5."""
    assert loss(z1, z2).item() == pytest.approx(expected, rel=1e-4)
    assert loss(5 * z1 + 3, z2 - 7).item() == pytest.approx(expected, rel=1e-4, abs=2e-10)


def test_values_and_gradients_are_those_of_lightly() -> None:
    lightly = skips.optional("lightly.loss")
    z1, z2 = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for function in (loss, lightly.BarlowTwinsLoss(lambda_param=LAMBDA)):
        z = [z1.clone().requires_grad_(), z2.clone().requires_grad_()]
        value = function(*z)
        found.append([value, *torch.autograd.grad(value, z)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_the_rows_of_two_processes_are_all_rows() -> None:
    a, b = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = [correlation_terms(a, b, slice(rank, None, 2)) for rank in range(2)]
    for whole, *of_process in zip(correlation_terms(a, b), *shares, strict=True):
        torch.testing.assert_close(sum(of_process), whole)


class Rows(torch.nn.Module):
    """A network whose views are its embeddings."""

    def forward(self, *views: Tensor) -> Rows:
        self.z = torch.cat(views)
        return self


def test_the_gradient_has_the_official_scale_and_the_terms_do_not() -> None:
    network = torch.nn.Module()
    network.online = Rows()
    (part,) = BarlowTwins().parts(network, batch([A, B]))  # type: ignore[arg-type]
    assert part.loss.item() == pytest.approx(1.0050999 / 16, rel=1e-4)
    assert part.terms["L_invariance"].item() == pytest.approx(1, rel=1e-4)
    assert part.terms["L_redundancy"].item() == pytest.approx(1, rel=1e-4)


def test_without_the_redundancy_term_all_dimensions_become_one() -> None:
    """The known broken variant: with lambda 0, equal dimensions are as good as uncorrelated ones."""
    z = B.repeat(4, 1).requires_grad_()
    invariance, redundancy = correlation_terms(standardised(z), standardised(z))
    assert invariance.item() < 1e-9
    assert torch.autograd.grad(invariance, z, retain_graph=True)[0].abs().max() < 1e-4
    assert redundancy.item() == pytest.approx(2, rel=1e-4)
    noise = 0.1 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    correlations = []
    for weight in (LAMBDA, 0.0):
        z = (B.repeat(4, 1) + noise).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            invariance, redundancy = correlation_terms(standardised(z), standardised(z))
            (invariance + weight * redundancy).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        correlations.append(torch.corrcoef(z.detach().T)[0, 1].item())
    assert abs(correlations[0]) < 0.1
    assert correlations[1] > 0.95


def test_the_official_rates() -> None:
    run = baselines.barlow_twins_imagenet()
    assert run.optimizer.peak_lr(2048, 2) == pytest.approx(1.6)
    assert run.optimizer.vector_lr is not None
    assert run.optimizer.vector_lr * 2048 / 256 == pytest.approx(0.0384)
    assert run.optimizer.rate(
        1000 * 625 - 1, batch_size=2048, num_views=2, steps_per_epoch=625, epochs=1000
    ) == pytest.approx(0.0016, rel=1e-3)
    views = run.augmentation
    assert [(views.of_view(view).blur, views.of_view(view).solarize) for view in range(2)] == [
        (1.0, 0.0),
        (0.1, 0.2),
    ]


def test_smaller_scales_have_narrower_projectors() -> None:
    assert BarlowTwins().smaller("small").head.widths == (2048, 2048, 2048)
    assert BarlowTwins().smaller("smoke").head.widths == (64, 64, 64)
