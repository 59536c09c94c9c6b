"""BatchNorm over groups of images is torch's BatchNorm on each group by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reproduce.nn import backbones
from reproduce.nn.group_batchnorm import GroupBatchNorm, average_statistics, group_batchnorm

BATCH, GROUP = 12, 4
AFFINE = {
    "affine": {},
    "scale": {"bias": False},
    "fixed": {"affine": False},
}


def norm_and_batch(kind, num_views, dims):
    """Return a BatchNorm in float64 and V stacked views, far from 0 relative to their spread."""
    torch.manual_seed(0)
    norm = (nn.BatchNorm2d if dims else nn.BatchNorm1d)(3, **AFFINE[kind]).double()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    x = 100 + torch.randn(num_views * BATCH, 3, *(5, 4)[:dims], dtype=torch.float64)
    if dims:
        x = x.contiguous(memory_format=torch.channels_last)
    return norm, x, torch.randn_like(x)


@pytest.mark.parametrize("dims", [0, 2], ids=["vectors", "maps"])
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("kind", AFFINE)
def test_each_group_is_normalised_by_itself(kind, num_views, dims):
    norm, x, weights = norm_and_batch(kind, num_views, dims)
    alone = [copy.deepcopy(norm) for _ in range(BATCH // GROUP)]
    grouped = group_batchnorm(norm, batch_size=BATCH, group=GROUP)
    assert isinstance(grouped, GroupBatchNorm)
    assert grouped.state_dict().keys() == alone[0].state_dict().keys()
    x.requires_grad_()
    y = grouped(x)
    (y * weights).sum().backward()
    if dims:
        assert y.is_contiguous(memory_format=torch.channels_last)

    views = x.detach().view(num_views, BATCH, *x.shape[1:])
    gradients = x.grad.view_as(views)
    for index, plain in enumerate(alone):
        images = slice(index * GROUP, (index + 1) * GROUP)
        mine = views[:, images].flatten(0, 1).clone().requires_grad_()
        expected = plain(mine)
        (expected * weights.view_as(views)[:, images].flatten(0, 1)).sum().backward()
        torch.testing.assert_close(y.view_as(views)[:, images].flatten(0, 1), expected)
        torch.testing.assert_close(gradients[:, images].flatten(0, 1), mine.grad)
    for ours, *theirs in zip(grouped.parameters(), *(plain.parameters() for plain in alone), strict=True):
        torch.testing.assert_close(ours.grad, sum(each.grad for each in theirs))
    for name in ("running_mean", "running_var"):
        theirs = torch.stack([plain.get_buffer(name) for plain in alone])
        torch.testing.assert_close(grouped.get_buffer(name), theirs.mean(dim=0))
    assert grouped.num_batches_tracked == 1


def test_the_running_statistics_by_hand():
    grouped = group_batchnorm(nn.BatchNorm1d(1, momentum=0.5), batch_size=4, group=2)
    grouped(torch.tensor([[0.0], [2], [5], [9]]))
    # Means 1 and 7, unbiased variances 2 and 8; before, the mean was 0 and the variance 1.
    assert grouped.running_mean.item() == 0.5 * 4
    assert grouped.running_var.item() == 0.5 * 1 + 0.5 * 5


def test_an_evaluation_uses_the_running_statistics_for_any_number_of_images():
    norm, x, _ = norm_and_batch("affine", 1, 2)
    grouped = group_batchnorm(copy.deepcopy(norm), batch_size=BATCH, group=GROUP)
    grouped(x)
    norm.load_state_dict(grouped.state_dict())
    torch.testing.assert_close(grouped.eval()(x[:5]), norm.eval()(x[:5]))


def test_a_network_keeps_its_parameters_and_names_and_may_change_values_in_place():
    network = backbones.build("small", seed=0)
    weights, keys = list(network.parameters()), list(network.state_dict())
    grouped = group_batchnorm(network, batch_size=BATCH, group=GROUP)
    assert all(one is other for one, other in zip(weights, grouped.parameters(), strict=True))
    assert list(grouped.state_dict()) == keys
    assert not any(type(module) is nn.BatchNorm2d for module in grouped.modules())
    images = torch.randn(BATCH, 3, 16, 16)
    grouped(images).sum().backward()
    # The images of another group have no effect.
    first = grouped(images)[:GROUP]
    images[GROUP:] += 1
    torch.testing.assert_close(grouped(images)[:GROUP], first)
    average_statistics(grouped)  # with one process nothing is sent


@pytest.mark.parametrize("group", [12, 13])
def test_a_group_of_the_whole_batch_is_batchnorm(group):
    network = backbones.build("small")
    assert group_batchnorm(network, batch_size=12, group=group) is network
    assert not any(isinstance(module, GroupBatchNorm) for module in network.modules())


@pytest.mark.parametrize("group", [1, 5])
def test_a_batch_that_does_not_consist_of_groups_is_refused(group):
    with pytest.raises(ValueError, match=f"batch_size 12 does not divide into groups of {group} images"):
        group_batchnorm(nn.BatchNorm1d(2), batch_size=12, group=group)


def test_a_share_of_another_size_is_refused():
    grouped = group_batchnorm(nn.BatchNorm1d(2), batch_size=12, group=4)
    for rows in (0, 4, 13):
        with pytest.raises(ValueError, match="n a multiple of 12"):
            grouped(torch.zeros(rows, 2))
