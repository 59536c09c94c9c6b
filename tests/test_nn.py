"""Backbones, LARS, schedules and the measures of collapse."""

import io
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import PRETRAIN

from reproduce.nn import backbones, collapse, schedules, seeds
from reproduce.nn.lars import LARS
from reproduce.nn.optimizers import parameters_of
from reproduce.train import build_network

# Backbones.


@pytest.mark.parametrize(
    ("name", "size", "num_parameters"),
    [
        # torchvision's documented sizes, less the classifier: 11 689 512 - 513 000 and 25 557 032 - 2 049
        # 000.
        ("resnet18", 64, 11_176_512),
        ("resnet18_3x3", 32, 11_176_512 - 3 * 64 * (49 - 9)),
        ("resnet18_cifar", 32, 11_176_512 - 3 * 64 * (49 - 9)),
        ("resnet18_cifar_pad2", 32, 11_176_512 - 3 * 64 * (49 - 9)),
        ("resnet50", 64, 23_508_032),
        ("small", 32, 77_392),
    ],
)
def test_backbones_pool_images_to_features(name, size, num_parameters):
    network = backbones.build(name, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
    assert network(torch.randn(2, 3, size, size)).shape == (2, network.num_features)


def test_the_3x3_stem_keeps_the_resolution_until_max_pooling():
    network = backbones.build("resnet18_3x3", seed=0)
    assert network.conv1(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 64, 64)
    assert network.maxpool(torch.zeros(1, 64, 64, 64)).shape == (1, 64, 32, 32)


def test_the_3x3_stem_starts_uniform_within_one_over_the_root_of_its_27_inputs():
    weight = backbones.build("resnet18_3x3", seed=0).conv1.weight
    bound = 27**-0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_stems_for_cifar_keep_the_resolution_or_the_padding_adds_two_pixels():
    for name, side in (("resnet18_cifar", 32), ("resnet18_cifar_pad2", 34)):
        network = backbones.build(name, seed=0)
        assert network.maxpool(network.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, side, side)


def test_only_the_bottlenecks_start_as_their_shortcuts():
    assert all(not block.bn3.weight.any() for block in backbones.build("resnet50", seed=0).layer1)
    assert all(block.bn2.weight.all() for block in backbones.build("resnet18", seed=0).layer1)


@pytest.mark.parametrize(("name", "num_blocks"), [("small", 3), ("resnet18", 8), ("resnet50", 16)])
def test_the_last_batchnorm_of_every_residual_block_can_start_at_0_or_1(name, num_blocks):
    with torch.device("meta"):
        network = backbones.build(name)
    network.to_empty(device="cpu")
    norms = [module.weight for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for zero in (True, False):
        for weight in norms:
            nn.init.constant_(weight, 0.5)
        backbones.zero_last_batchnorms(network, zero)
        changed = [weight for weight in norms if (weight != 0.5).all()]
        assert len(changed) == num_blocks
        assert all((weight == 1 - zero).all() for weight in changed)


def test_a_small_block_with_a_last_scale_of_0_is_its_shortcut():
    network = backbones.build("small", seed=0)
    backbones.zero_last_batchnorms(network, True)
    x = torch.randn(2, 16, 4, 4).relu()
    assert torch.equal(network.blocks[0](x), x)


@pytest.mark.parametrize("backbone", ["small", "resnet50"])
@pytest.mark.parametrize("zero", [None, False, True])
def test_a_run_chooses_whether_its_blocks_start_as_their_shortcuts(backbone, zero):
    network = build_network(replace(PRETRAIN, backbone=backbone, zero_init=zero))
    online, target = network.online.backbone, network.target.backbone
    last = online.blocks[0].bn2 if backbone == "small" else online.layer1[0].bn3
    assert last.weight.all() == {None: backbone == "small", False: True, True: False}[zero]
    for theta, xi in zip(online.parameters(), target.parameters(), strict=True):
        assert torch.equal(theta, xi)


def test_a_seed_decides_the_weights_and_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (backbones.build("small", seed=seed).stem[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert torch.equal(torch.rand(1), expected)


def test_an_unknown_backbone_is_named_with_the_nearest():
    with pytest.raises(
        LookupError,
        match=r"backbone 'resnet8'\. Did you mean 'resnet18'\? Known: small, resnet18, resnet18_3x3, "
        r"resnet18_cifar, resnet18_cifar_pad2, resnet50",
    ):
        backbones.build("resnet8")
    with pytest.raises(LookupError, match="no backbone 'build'"):
        backbones.build("build")


@pytest.mark.slow
def test_names_need_no_torch_and_the_small_backbone_no_torchvision():
    program = (
        "import sys; from reproduce.nn import backbones; "
        "assert 'small' in backbones.names(); assert 'torch' not in sys.modules; "
        "backbones.build('small'); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# LARS.


def plain_lars(weights, momenta, lr, decay, momentum, trust):
    """Take one step by the formulas of the paper's reference, one parameter at a time."""
    for w, m in zip(weights, momenta, strict=True):
        u = w.grad
        if w.ndim > 1:
            u = u + decay * w
            w_norm, u_norm = w.square().sum().sqrt(), u.square().sum().sqrt()
            if w_norm > 0 and u_norm > 0:
                u = trust * w_norm / u_norm * u
        m.copy_(momentum * m + u)
        w -= lr * m


def test_lars_by_hand():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([2.0]))
    optimizer = LARS(
        parameters_of(nn.ParameterList([weight, bias])),
        lr=0.5,
        weight_decay=0.5,
        momentum=0.9,
        trust_coefficient=0.01,
    )
    weight.grad, bias.grad = torch.tensor([[-1.5, 0.0]]), torch.tensor([1.0])
    optimizer.step()
    # u = (-1.5, 0) + .5 (3, 4) = (0, 2); its ratio is .01 x 5 / 2 = .025, so m = (0, .05). The bias has
    # neither decay nor ratio.
    torch.testing.assert_close(weight.data, torch.tensor([[3.0, 4.0 - 0.5 * 0.05]]))
    torch.testing.assert_close(bias.data, torch.tensor([2.0 - 0.5]))
    weight.grad, bias.grad = -0.5 * weight.data, torch.tensor([1.0])
    optimizer.step()
    # Now the decayed gradient is 0, and only .9 of the momentum moves the weight.
    torch.testing.assert_close(weight.data, torch.tensor([[3.0, 4.0 - 0.5 * 0.05 * 1.9]]))
    torch.testing.assert_close(bias.data, torch.tensor([2.0 - 0.5 - 0.5 * 1.9]))


def mixed_parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (4,), (5, 4), (5,), (2, 5)]
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    weights[4].data.zero_()  # a weight of norm 0 must still move
    return weights, generator


def test_lars_agrees_with_a_plain_loop():
    weights, generator = mixed_parameters()
    others = [weight.detach().clone() for weight in weights]
    momenta = [torch.zeros_like(weight) for weight in weights]
    optimizer = LARS(
        parameters_of(nn.ParameterList(weights)), weight_decay=1e-2, momentum=0.9, trust_coefficient=1e-2
    )
    for step in range(4):
        for weight, other in zip(weights, others, strict=True):
            other.grad = (
                torch.zeros_like(other)
                if step == 2 and other.ndim == 1
                else torch.randn(other.shape, generator=generator)
            )
            weight.grad = other.grad.clone()
        for group in optimizer.param_groups:
            group["lr"] = 0.3 / (step + 1)
        optimizer.step()
        plain_lars(others, momenta, 0.3 / (step + 1), 1e-2, 0.9, 1e-2)
        assert others[4].any()
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(weight.data, other)


def test_lars_leaves_a_parameter_without_gradient_alone():
    weights, _ = mixed_parameters()
    before = [weight.detach().clone() for weight in weights]
    weights[0].grad = torch.ones_like(weights[0])
    LARS(parameters_of(nn.ParameterList(weights)), lr=1.0, weight_decay=0.1).step()
    assert [torch.equal(weight, start) for weight, start in zip(weights, before, strict=True)] == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_lars_resumes_bit_for_bit_from_a_file_of_plain_tensors_and_numbers():
    def run(weights, optimizer, steps):
        for step in steps:
            for index, weight in enumerate(weights):
                weight.grad = torch.randn(weight.shape, generator=seeds.generator("test", step, index))
            optimizer.step()

    def optimizer_of(weights):
        return LARS(parameters_of(nn.ParameterList(weights)), lr=0.1, weight_decay=1e-2)

    whole, _ = mixed_parameters()
    run(whole, optimizer_of(whole), range(4))
    first, _ = mixed_parameters()
    optimizer = optimizer_of(first)
    run(first, optimizer, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = [nn.Parameter(weight.detach().clone()) for weight in first]
    resumed = optimizer_of(second)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(second, resumed, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


# Schedules.


def test_the_learning_rate_warms_up_linearly_and_falls_by_a_cosine_to_0():
    rates = [schedules.learning_rate(step, peak=8.0, warmup_steps=2, num_steps=6) for step in range(7)]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([0, 4, 8, 4 * (1 + half), 4, 4 * (1 - half), 0])


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert schedules.learning_rate(0, peak=0.5, warmup_steps=0, num_steps=3) == 0.5


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    assert [schedules.learning_rate(step, peak=1.0, warmup_steps=4, num_steps=2) for step in range(2)] == [
        0,
        0.25,
    ]


def test_the_targets_decay_rate_rises_by_a_cosine_from_tau_to_1():
    rates = [schedules.target_decay(step, base=0.96, num_steps=4) for step in range(5)]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([0.96, 1 - 0.02 * (1 + half), 0.98, 1 - 0.02 * (1 - half), 1])


# Collapse.


def test_uniform_embeddings_have_std_1_and_nearly_full_rank():
    embeddings = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)) * 7
    measured = collapse.measure(embeddings)
    assert measured == {"std": pytest.approx(1, abs=0.01), "rank": pytest.approx(16, abs=0.1)}


def test_embeddings_that_are_all_the_same_have_std_0_and_rank_1():
    measured = collapse.measure(torch.tensor([[1.0, -2.0, 5.0]]).repeat(10, 1))
    assert measured == {"std": pytest.approx(0, abs=1e-6), "rank": pytest.approx(1, abs=1e-3)}


def test_collapse_by_hand():
    # Directions (1, 0), (1, 0), (0, 1), (0, 1): each dimension has std 1/2. Singular values sqrt(10) = 3.162
    # and sqrt(40) twice that.
    embeddings = torch.tensor([[1.0, 0], [3, 0], [0, 2], [0, 6]])
    entropy = math.log(3) / 3 + 2 / 3 * math.log(3 / 2)
    assert collapse.measure(embeddings) == {
        "std": pytest.approx(math.sqrt(2) / 2),
        "rank": pytest.approx(math.exp(entropy)),
    }


def test_fewer_embeddings_than_dimensions_bound_the_rank():
    assert collapse.measure(torch.eye(3, 50))["rank"] == pytest.approx(3, rel=1e-5)


def test_zero_embeddings_have_no_rank_and_broken_ones_no_measure():
    assert collapse.measure(torch.zeros(4, 3)) == {"std": 0, "rank": 0}
    assert all(
        math.isnan(value) for value in collapse.measure(torch.tensor([[1.0, math.nan], [0, 1]])).values()
    )


# Seeds.


def test_every_counter_of_a_key_matters():
    # torch's CPU generator itself ignores all but the low 32 bits of a seed.
    keys = [
        ("a",),
        ("b",),
        ("a", 0),
        ("a", 1),
        ("a", 1 << 32),
        ("a", 0, 0),
        ("a", 0, 1),
        ("a", 1, 0),
        ("a", 11),
        ("a", -1),
    ]
    first = [torch.rand(1, generator=seeds.generator(*key)).item() for key in keys]
    assert len(set(first)) == len(keys)
    assert first == [torch.rand(1, generator=seeds.generator(*key)).item() for key in keys]


def test_seeds_are_the_same_on_every_machine():
    # printf 'noise 0 7' | b2sum -l 32
    assert seeds.seed("noise", 0, 7).to_bytes(4, "little").hex() == "b9f774c8"


def test_a_permutation_follows_from_its_counters_and_its_purpose():
    keys = [((0, 1), "keys"), ((0, 2), "keys"), ((1, 1), "keys"), ((0, 1), "split")]
    found = [seeds.shuffled(64, *counters, purpose=purpose) for counters, purpose in keys]
    assert all(sorted(each.tolist()) == list(range(64)) for each in found)
    assert len({tuple(each.tolist()) for each in found}) == len(keys)
    assert torch.equal(found[0], seeds.shuffled(64, 0, 1))
