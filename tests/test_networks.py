"""The online network for any number of views, and the target network that follows it."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from reproduce.nn import backbones
from reproduce.nn.heads import Head, Heads
from reproduce.nn.networks import Network, Online
from reproduce.nn.optimizers import parameters_of

HEADS = Heads(hidden=16, output=8)

# Several views.

SIZES = (32, 16, 32, 16)


def networks():
    torch.manual_seed(0)
    return backbones.build("small").double(), HEADS.projector(64).double(), HEADS.predictor().double()


def four_views():
    return [torch.randn(4, 3, size, size, dtype=torch.float64) for size in SIZES]


def plain(joint, f, g, h, views):
    """Return z and p of each view, written out for views of SIZES."""
    if joint == "none":
        z = [g(f(view)) for view in views]
        return z, [h(each) for each in z]
    if joint == "heads":
        features = torch.cat([f(view) for view in views])
    else:
        large = f(torch.cat([views[0], views[2]]))
        small = f(torch.cat([views[1], views[3]]))
        features = torch.cat([large[:4], small[:4], large[4:], small[4:]])
    z = g(features)
    return z.split(4), h(z).split(4)


@pytest.mark.parametrize("joint", ["none", "heads", "all"])
def test_views_share_the_statistics_of_a_batch_where_the_method_says_so(joint):
    f, g, h = networks()
    views = four_views()
    found = Online(copy.deepcopy(f), copy.deepcopy(g), copy.deepcopy(h), joint=joint)(*views)
    z, p = plain(joint, f, g, h, views)
    for expected, stacked in ((z, found.z), (p, found.p)):
        torch.testing.assert_close(stacked, torch.cat(list(expected)))


def test_the_three_ways_differ_and_move_the_statistics_as_often_as_a_network_is_passed():
    f, g, h = networks()
    views = four_views()
    outputs, passes = [], {}
    for joint in ("none", "heads", "all"):
        network = Online(copy.deepcopy(f), copy.deepcopy(g), copy.deepcopy(h), joint=joint)
        outputs.append(network(*views).p)
        passes[joint] = [
            network.backbone.stem[1].num_batches_tracked.item(),
            network.projector[1].num_batches_tracked.item(),
        ]
    assert passes == {"none": [4, 4], "heads": [4, 1], "all": [2, 1]}
    assert not any(torch.allclose(one, other) for one, other in itertools.pairwise(outputs))


def test_one_view_is_the_same_in_all_ways():
    f, g, h = networks()
    view = four_views()[0]
    found = [Online(f, g, h, joint=joint)(view) for joint in ("none", "heads", "all")]
    for other in found[1:]:
        assert torch.equal(other.z, found[0].z)
        assert torch.equal(other.p, found[0].p)


def test_without_a_predictor_p_is_z_and_nothing_is_saved_of_it():
    f, g, _ = networks()
    network = Network(f, g)
    z, p = network.online(*four_views())
    assert torch.equal(z, p)
    assert {key.split(".")[0] for key in network.online.state_dict()} == {"backbone", "projector"}
    assert network.target is None
    assert {key.split(".")[0] for key in network.state_dict()} == {"online"}


@pytest.mark.parametrize("joint", ["none", "heads", "all"])
def test_heads_see_the_features_of_a_bfloat16_backbone_in_float32(joint):
    f, g, h = (module.float() for module in networks())
    views = [view.float() for view in four_views()]

    def rounded(images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return f(images).float()

    network = Online(f, g, h, joint=joint)
    network.mixed = True
    found = network(*views)
    z, p = plain(joint, rounded, g, h, views)
    assert torch.equal(found.z, torch.cat(list(z)))
    assert torch.equal(found.p, torch.cat(list(p)))
    assert not torch.equal(rounded(views[0]), f(views[0]))


# The target.


def target_network():
    torch.manual_seed(0)
    return Network(backbones.build("small"), HEADS.projector(64), HEADS.predictor(), with_target=True)


def test_the_target_starts_as_a_copy_without_gradients_or_predictor():
    network = target_network()
    view = torch.randn(4, 3, 32, 32)
    z = network.project(view)
    torch.testing.assert_close(z, network.online.projector(network.online.backbone(view)))
    assert not z.requires_grad
    assert not any(parameter.requires_grad for parameter in network.target.parameters())
    assert not hasattr(network.target, "predictor")
    trained = {id(parameter) for group in parameters_of(network) for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in network.online.parameters()}


def test_the_target_follows_by_the_moving_average_of_each_parameter():
    network = target_network()
    with torch.no_grad():
        for parameter in network.online.parameters():
            parameter.add_(torch.randn_like(parameter))
    online = dict(network.online.named_parameters())
    # tau at step 1 of 3 from .9: 1 - .1 (cos(pi/3) + 1) / 2 = .925.
    expected = {
        name: 0.925 * xi + (1 - 0.925) * online[name] for name, xi in network.target.named_parameters()
    }
    assert network.follow(0.9, step=1, num_steps=3) == {"tau": pytest.approx(0.925)}
    for name, xi in network.target.named_parameters():
        torch.testing.assert_close(xi.data, expected[name].data)


def test_the_target_normalises_with_the_batch_and_keeps_running_statistics_of_its_own():
    network = target_network().train()
    view = 3 + torch.randn(8, 3, 32, 32)
    z = network.project(view)
    # The running statistics, which the first pass changed, have no effect.
    torch.testing.assert_close(network.project(view), z)
    moved = network.target.backbone.stem[1].running_mean.clone()
    assert moved.abs().max() > 0.1
    network.follow(0.5, step=0, num_steps=2)
    assert torch.equal(network.target.backbone.stem[1].running_mean, moved)
    assert not network.online.backbone.stem[1].running_mean.any()


def test_the_target_may_follow_at_a_constant_rate():
    network = target_network()
    start = [xi.clone() for xi in network.target.parameters()]
    with torch.no_grad():
        for parameter in network.online.parameters():
            parameter.add_(1)
    for step in range(1, 3):
        assert network.follow_at(0.9) == {"tau": 0.9}
        for xi, before in zip(network.target.parameters(), start, strict=True):
            # The distance of 1 shrinks to .9, then to .81.
            torch.testing.assert_close(xi.data, before + 1 - 0.9**step)


def test_the_target_follows_a_head_that_normalises_last():
    head = Head(widths=(8, 4), bias=False, last_bias=False, last_norm="scale")
    network = Network(backbones.build("small", seed=0), head.build(64), with_target=True)
    nn.init.constant_(network.online.projector[-1].weight, 3.0)
    network.follow_at(0.5)
    assert network.target.projector[-1].weight.tolist() == [2.0] * 4
