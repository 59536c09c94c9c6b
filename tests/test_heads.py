"""Heads of any number of layers, as the methods' papers and code have them, and their sizes without torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from reproduce.nn import backbones, cost
from reproduce.nn.heads import Head, Heads
from reproduce.nn.networks import Network
from reproduce.nn.queue import Queue
from reproduce.nn.standardized import StandardizedLinear

SIMCLR = Head(widths=(12, 5), bias=False, last_bias=False, last_norm="scale", weight_std=0.01)
SIMSIAM = Head(widths=(12, 12, 12), bias=False, last_bias=False, last_norm="fixed")
MOCO1 = Head(widths=(5,))
MOCO2 = Head(widths=(8, 5), norm="none")
VICREG = Head(widths=(16, 16, 16), last_bias=False)
WMSE = Head(widths=(16, 5), last_norm="affine")
LINEAR, NORM, RELU = nn.Linear, nn.BatchNorm1d, nn.ReLU


@pytest.mark.parametrize(
    ("head", "layers", "num_parameters"),
    [
        (SIMCLR, [LINEAR, NORM, RELU, LINEAR, NORM], 8 * 12 + 2 * 12 + 12 * 5 + 5),
        (SIMSIAM, [LINEAR, NORM, RELU] * 2 + [LINEAR, NORM], 8 * 12 + 2 * 12 + 12 * 12 + 2 * 12 + 12 * 12),
        (MOCO1, [LINEAR], 8 * 5 + 5),
        (MOCO2, [LINEAR, RELU, LINEAR], 8 * 8 + 8 + 8 * 5 + 5),
        (VICREG, [LINEAR, NORM, RELU] * 2 + [LINEAR], (8 + 16) * 16 + 6 * 16 + 16 * 16),
        (WMSE, [LINEAR, NORM, RELU, LINEAR, NORM], 8 * 16 + 16 + 2 * 16 + 16 * 5 + 5 + 2 * 5),
    ],
    ids=["SimCLR", "SimSiam", "MoCo v1", "MoCo v2", "VICReg", "W-MSE"],
)
def test_a_head_has_the_layers_of_its_method(head, layers, num_parameters):
    built = head.build(8)
    assert [type(layer) for layer in built] == layers
    assert built(torch.randn(4, 8)).shape == (4, head.output)
    assert sum(parameter.numel() for parameter in built.parameters()) == num_parameters
    assert all(parameter.requires_grad for parameter in built.parameters())
    # The same, and the size of what is not trained, without torch.
    found = cost.head(8, head)
    assert found.parameters == num_parameters
    assert found.buffers == sum(buffer.nbytes for buffer in built.buffers())


def test_the_last_normalisation_may_have_a_scale_alone_or_nothing_to_train():
    x = 5 + 3 * torch.randn(64, 8)
    for head in (SIMCLR, SIMSIAM):
        built = head.build(8)
        scale = 1
        if head is SIMCLR:
            nn.init.constant_(built[-1].weight, 7.0)
            scale = 7
        z = built(x)
        torch.testing.assert_close(z.mean(dim=0), torch.zeros(head.output), atol=1e-4, rtol=0)
        # The eps of BatchNorm makes small values smaller: SimCLR's first weights are.
        assert (z.std(dim=0, correction=0) / scale).max() <= 1.001
        assert not any(name.endswith("bias") for name, _ in built[-1].named_parameters())


def test_initial_weights_are_torchs_or_normal():
    torch.manual_seed(0)
    built = Head(widths=(400, 300), weight_std=0.01).build(200)
    for layer in (built[0], built[3]):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert layer.weight.abs().max() > 0.03  # a uniform distribution of that spread ends at .0173
        assert not layer.bias.any()
    torch.manual_seed(0)
    built = Head(widths=(400,)).build(200)
    torch.manual_seed(0)
    assert torch.equal(built[0].weight, nn.Linear(200, 400).weight)


def test_standardised_weights_by_hand():
    """Rows (1, 3) and (0, 4) have means 2 and 2 and deviations 1 and 2: both become (-1, 1)."""
    layer = Heads(hidden=2, output=3, norm="ws").projector(2)[0]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 3.0], [0.0, 4.0]]))
        layer.bias.copy_(torch.tensor([0.5, 10.0]))
    found = layer(torch.tensor([[5.0, 7.0], [1.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[2.5, 12.0], [-0.5, 9.0]]), rtol=1e-4, atol=0)
    # A row's loss does not change if the row is shifted or scaled, so its gradient is orthogonal to both.
    found[:, 0].square().sum().backward()
    row, gradient = layer.weight[0], layer.weight.grad[0]
    assert gradient.sum().item() == pytest.approx(0, abs=1e-4)
    assert (gradient @ row).item() == pytest.approx(0, abs=1e-2)


def test_heads_with_standardised_weights_have_no_other_normalisation():
    heads = Heads(hidden=6, output=3, norm="ws", last_bias=False)
    for built, inputs in ((heads.projector(8), 8), (heads.predictor(), 3)):
        assert [type(layer) for layer in built] == [StandardizedLinear, RELU, LINEAR]
        assert built[-1].bias is None
        assert built(torch.randn(1, inputs)).shape == (1, 3)


def test_a_narrower_head_keeps_its_form_and_a_unit():
    assert SIMCLR.narrower(4) == replace(SIMCLR, widths=(3, 1))
    assert SIMCLR.narrower(100).widths == (1, 1)
    assert VICREG.output == 16


def test_a_head_needs_a_layer_and_every_layer_a_unit():
    with pytest.raises(ValueError, match="at least one layer"):
        Head(widths=())
    with pytest.raises(ValueError, match=r"head\.widths is 0: at least 1"):
        Head(widths=(8, 0))


@pytest.mark.parametrize("with_target", [False, True])
def test_the_files_of_a_run_are_counted_without_torch(with_target):
    backbone, queue = backbones.build("small"), Queue(6, 5)
    predictor = Head(widths=(4, 5))
    network = Network(backbone, SIMCLR.build(64), predictor.build(5), with_target=with_target)
    saved = [tensor.nbytes for tensor in (*network.state_dict().values(), queue.rows)]
    encoder = [*backbone.state_dict().values(), *network.online.projector.state_dict().values()]
    momentum = sum(parameter.nbytes for parameter in network.online.parameters())
    small = cost.network("small")
    assert small is not None
    layout = cost.Layout(cost.head(64, SIMCLR), cost.head(5, predictor), with_target, kept=4 * 6 * 5)
    for moments in (1, 2):
        found = cost.sizes(small, layout, num_states=moments)
        assert found.encoder == sum(tensor.nbytes for tensor in encoder)
        assert found.checkpoint == sum(saved) + moments * momentum
