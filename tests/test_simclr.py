"""SimCLR's loss by hand and against lightly's, with values and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import skips
import torch
from torch import Tensor
from toys import batch

from configs import baselines
from reproduce.methods.simclr import SimCLR, contrastive_loss
from reproduce.nn import backbones


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_of_equal_views_by_hand() -> None:
    """The other view has the similarity 2, the other image's views have 0: log(1 + 2 e^-2)."""
    z = rows([1, 0], [0, 1])
    assert contrastive_loss(z, 3 * z, temperature=0.5).item() == pytest.approx(0.2395448, abs=1e-7)


def test_the_loss_of_other_views_by_hand() -> None:
    found = contrastive_loss(rows([1, 0], [0, 1]), rows([1, 1], [-1, 1]), temperature=0.5)
    assert found.item() == pytest.approx(0.5359694, abs=1e-7)


def test_an_image_is_compared_with_2n_minus_1_others() -> None:
    z = torch.ones(8, 3, dtype=torch.float64)
    assert contrastive_loss(z, z, temperature=0.1).item() == pytest.approx(math.log(2 * 8 - 1))


def test_values_and_gradients_are_those_of_lightly() -> None:
    lightly = skips.optional("lightly.loss")
    z1, z2 = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for loss in (lambda *z: contrastive_loss(*z, temperature=0.3), lightly.NTXentLoss(temperature=0.3)):
        z = [z1.clone().requires_grad_(), z2.clone().requires_grad_()]
        value = loss(*z)
        found.append([value, *torch.autograd.grad(value, z)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


class Rows(torch.nn.Module):
    """A network whose views are its embeddings."""

    def forward(self, *views: Tensor) -> Rows:
        self.z = torch.cat(views)
        return self


def parts_of(method: SimCLR, *views: Tensor) -> tuple[float, float]:
    """Return the loss that is minimised and the term that is logged."""
    network = torch.nn.Module()
    network.online = Rows()
    (part,) = method.parts(network, batch(list(views)))  # type: ignore[arg-type]
    return part.loss.item(), part.terms["L_simclr"].item()


def test_the_official_loss_is_twice_the_mean() -> None:
    z = rows([1, 0], [0, 1])
    assert parts_of(SimCLR(temperature=0.5), z, z) == pytest.approx((0.4790895, 0.2395448), abs=1e-6)
    assert parts_of(SimCLR(temperature=0.5, loss_scale=1.0), z, z)[0] == pytest.approx(0.2395448, abs=1e-6)


def test_more_views_are_compared_in_pairs() -> None:
    """The pairs have the losses of the hand-computed cases above: one equal pair, two others."""
    z, other = rows([1, 0], [0, 1]), rows([1, 1], [-1, 1])
    method = SimCLR(num_views=3, temperature=0.5, loss_scale=1.0)
    assert parts_of(method, z, z, other)[0] == pytest.approx((0.2395448 + 2 * 0.5359694) / 3, abs=1e-6)


def test_without_negatives_the_embeddings_collapse() -> None:
    """The known broken variant: the numerator alone is smallest where all embeddings are equal.

    SimCLR's loss there is log(2 n - 1), and its gradient pushes the images apart.
    """
    draw = torch.Generator().manual_seed(0)
    shift = torch.ones(8, 4, dtype=torch.float64)
    spreads = []
    for negatives in (True, False):
        z = (shift + 0.3 * torch.randn(8, 4, generator=draw, dtype=torch.float64)).requires_grad_()
        optimizer = torch.optim.SGD([z], lr=4.0)
        for _ in range(150):
            optimizer.zero_grad()
            views = z, z.roll(1, 0)  # without negatives, nothing keeps different images apart
            if negatives:
                loss = contrastive_loss(z, z, temperature=0.5)
            else:
                loss = -torch.cosine_similarity(*views).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        spreads.append(torch.nn.functional.normalize(z.detach(), dim=1).std(dim=0).mean().item())
    assert spreads[0] > 0.4  # 1 / sqrt(4) is the spread of uniform directions
    assert spreads[1] < 0.05


@pytest.mark.parametrize(
    ("run", "widths"),
    [
        (baselines.simclr_imagenet(200), (2048, 2048, 128)),
        (baselines.simclr_1000_imagenet(), (2048, 128)),
    ],
)
def test_the_official_projector_and_rate(run: object, widths: tuple[int, ...]) -> None:
    assert run.method.head.widths == widths  # type: ignore[attr-defined]
    optimizer = run.optimizer  # type: ignore[attr-defined]
    assert optimizer.peak_lr(4096, 2) == pytest.approx(0.3 * 4096 / 256)
    network: Any = SimCLR(head=run.method.head).network(  # type: ignore[attr-defined]
        backbones.build("small", seed=0), num_images=8, batch_size=8
    )
    layers = list(network.online.projector)
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == list(widths)
    assert all(layer.bias is None for layer in linear)
    assert linear[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (layers[-1].weight is not None, layers[-1].bias) == (True, None)


def test_the_rate_of_the_stl10_run_by_hand() -> None:
    """205 steps an epoch: the warm-up ends at step 500, the rate drops at epochs 1950 and 1975."""
    run = baselines.simclr_stl10()

    def rate(step: int) -> float:
        return run.optimizer.rate(step, batch_size=512, num_views=2, steps_per_epoch=205, epochs=2000)

    assert [rate(step) for step in (0, 249, 499, 500)] == pytest.approx([4e-6, 1e-3, 2e-3, 2e-3])
    edges = [205 * 1950 - 1, 205 * 1950, 205 * 1975 - 1, 205 * 1975]
    assert [rate(step) for step in edges] == pytest.approx([2e-3, 4e-4, 4e-4, 8e-5])


def test_smaller_scales_keep_what_fits_a_resnet18() -> None:
    v2 = baselines.simclr_imagenet(100).method
    stl10 = baselines.simclr_stl10().method
    assert isinstance(v2, SimCLR)
    assert isinstance(stl10, SimCLR)
    assert v2.smaller("small").head.widths == (1024, 1024, 128)
    assert v2.smaller("smoke").head.widths == (128, 128, 32)
    assert stl10.smaller("small") == stl10
