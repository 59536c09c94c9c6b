"""The optimisers and their learning rates, against hand values and plain loops over the parameters."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Notes

from configs.scales import small, smoke
from reproduce import plan
from reproduce.nn import larc, lars, seeds
from reproduce.nn.encoder import FILE
from reproduce.nn.optimizers import LARC, LARS, SGD, Adam, Optimizer, parameters_of
from reproduce.plan import Request
from reproduce.runs import encoder_file, interrupt
from reproduce.runs.progress import Progress
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.train import pretrain

CPU = torch.device("cpu")
SETTINGS = (
    LARS(base_lr=0.3, weight_decay=1e-2, trust_coefficient=1e-2),
    SGD(base_lr=0.3, weight_decay=1e-2),
    SGD(base_lr=0.3, weight_decay=1e-2, exempt_vectors=True),
    Adam(base_lr=0.3, weight_decay=1e-2),
    Adam(base_lr=0.3, weight_decay=1e-2, beta1=0.5, beta2=0.9, epsilon=1e-3),
    LARC(base_lr=0.3, weight_decay=1e-2, trust_coefficient=1e-2),
)
NAMES = ("lars", "sgd", "sgd-exempt", "adam", "adam-other-betas", "larc")
EVERY = pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)


class Tiny(nn.Module):
    """An online network: weights, vectors, a weight of norm 0 and a predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 5))
        self.predictor = nn.Linear(5, 2)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            self.backbone[2].weight.zero_()


def give_gradients(network: nn.Module, step: int) -> None:
    for index, parameter in enumerate(network.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=seeds.generator("test", step, index))


# The update, by hand


def one_step(optimizer: torch.optim.Optimizer, w: Tensor, g: Tensor) -> Tensor:
    """Return how far a step of rate 1 moves w."""
    parameter = optimizer.param_groups[0]["params"][0]
    before = w.clone()
    parameter.grad = g.clone()
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    return before - parameter.detach()


def test_the_trust_ratios_of_lars_and_larc_by_hand() -> None:
    """||w|| = 5 and ||g|| = 1; u = g + .1 w = (-.3, 1.2) has norm 1.2369."""
    w, g = torch.tensor([[3.0, 4.0]]), torch.tensor([[-0.6, 0.8]])
    u = torch.tensor([[-0.3, 1.2]])
    of_lars = lars.LARS([nn.Parameter(w.clone())], weight_decay=0.1, trust_coefficient=1e-3)
    of_larc = larc.LARC([nn.Parameter(w.clone())], weight_decay=0.1, trust_coefficient=1e-3)
    torch.testing.assert_close(one_step(of_lars, w, g), 0.0040423 * u, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one_step(of_larc, w, g), 0.0033333 * u, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("w", "g"),
    [((0.0, 0.0), (-0.6, 0.8)), ((3.0, 4.0), (0.0, 0.0))],
    ids=["zero weight", "zero gradient"],
)
def test_larc_takes_the_plain_gradient_without_decay_if_a_norm_is_0(
    w: tuple[float, float], g: tuple[float, float]
) -> None:
    weight, gradient = torch.tensor([w]), torch.tensor([g])
    optimizer = larc.LARC([nn.Parameter(weight.clone())], weight_decay=0.1)
    torch.testing.assert_close(one_step(optimizer, weight, gradient), gradient)


def test_larc_does_not_hide_a_gradient_that_is_not_finite() -> None:
    optimizer = larc.LARC([nn.Parameter(torch.tensor([[3.0, 4.0]]))], weight_decay=0.1)
    assert one_step(optimizer, torch.tensor([[3.0, 4.0]]), torch.tensor([[math.nan, 0.0]])).isnan().all()


def test_the_first_step_of_adam_by_hand() -> None:
    """The corrected means of one gradient u are u and u^2, so the step is the sign of u; .5 w turns it."""
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(2.0)
    optimizer = Adam(base_lr=1.0, weight_decay=0.5).build(network)
    moved = one_step(optimizer, torch.tensor([[2.0]]), torch.tensor([[-0.5]]))
    torch.testing.assert_close(moved, torch.tensor([[1.0]]))


# The update, by plain loops


def plain_update(settings: Any, w: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> None:
    """Take one step of one parameter by the published formulas."""
    vector, decay = w.ndim <= 1, settings.weight_decay
    if isinstance(settings, Adam):
        u = g + decay * w
        state["t"] = state.get("t", 0) + 1
        state["m"] = settings.beta1 * state.get("m", 0) + (1 - settings.beta1) * u
        state["v"] = settings.beta2 * state.get("v", 0) + (1 - settings.beta2) * u * u
        m = state["m"] / (1 - settings.beta1 ** state["t"])
        v = state["v"] / (1 - settings.beta2 ** state["t"])
        w -= lr * m / (v.sqrt() + settings.epsilon)
        return
    w_norm, g_norm = w.square().sum().sqrt(), g.square().sum().sqrt()
    if isinstance(settings, LARS):
        u = g if vector else g + decay * w
        u_norm = u.square().sum().sqrt()
        if not vector and w_norm > 0 and u_norm > 0:
            u = settings.trust_coefficient * w_norm / u_norm * u
    elif isinstance(settings, LARC):
        u = g
        if w_norm > 0 and g_norm > 0:
            trust = settings.trust_coefficient * w_norm / (g_norm + decay * w_norm + 1e-8)
            u = trust * (g + decay * w)
    else:
        u = g if vector and settings.exempt_vectors else g + decay * w
    state["m"] = settings.momentum * state.get("m", 0) + u
    w -= lr * state["m"]


@EVERY
def test_an_optimiser_agrees_with_a_plain_loop(settings: Any) -> None:
    network = Tiny()
    optimizer = settings.build(network)
    others = [parameter.detach().clone() for parameter in network.parameters()]
    states: list[dict[str, Any]] = [{} for _ in others]
    for step in range(5):
        lr = 0.3 / (step + 1)
        give_gradients(network, step)
        if step == 2:
            network.predictor.bias.grad = torch.zeros_like(network.predictor.bias)
        for parameter, other, state in zip(network.parameters(), others, states, strict=True):
            assert parameter.grad is not None
            plain_update(settings, other, parameter.grad.clone(), state, lr)
        settings.set_rates(optimizer, lr, peak=9.0)
        optimizer.step()
    for parameter, other in zip(network.parameters(), others, strict=True):
        torch.testing.assert_close(parameter.detach(), other)


@EVERY
def test_a_parameter_without_gradient_keeps_its_value_and_its_momentum(settings: Any) -> None:
    """SwAV freezes its prototypes in this way: no update, no decay, no step of the momentum."""
    network, free = Tiny(), Tiny()
    frozen, alone = settings.build(network), settings.build(free)
    for step in range(4):
        give_gradients(network, step)
        give_gradients(free, step)
        if step in (0, 2):  # before the first gradient, and with a momentum
            network.predictor.weight.grad = free.predictor.weight.grad = None
        before = network.predictor.weight.detach().clone()
        for optimizer in (frozen, alone):
            settings.set_rates(optimizer, 0.1, peak=0.1)
        frozen.step()
        if step in (1, 3):
            alone.step()
        assert torch.equal(network.predictor.weight, before) is (step in (0, 2))
    # The steps without gradient left no trace in its state either.
    torch.testing.assert_close(network.predictor.weight, free.predictor.weight)


@EVERY
def test_an_optimiser_resumes_bit_for_bit_from_a_file_of_plain_tensors_and_numbers(settings: Any) -> None:
    settings = replace(settings, constant=("predictor",), vector_lr=0.02)

    def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            give_gradients(network, step)
            settings.set_rates(optimizer, 0.1 / (step + 1), peak=0.1)
            optimizer.step()

    whole, first, second = Tiny(), Tiny(), Tiny()
    train(whole, settings.build(whole), range(4))
    optimizer = settings.build(first)
    train(first, optimizer, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second.load_state_dict(first.state_dict())
    resumed = settings.build(second)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(second, resumed, range(2, 4))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


# Groups of parameters


def rates(settings: Optimizer, network: nn.Module, lr: float, peak: float) -> dict[str, float]:
    """Return the rate of each parameter by name."""
    optimizer = settings.build(network)
    settings.set_rates(optimizer, lr, peak=peak)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(parameter)]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert len(found) == len(names), "each parameter is in one group"
    return found


@EVERY
def test_all_parameters_have_the_step_s_rate_unless_a_setting_says_otherwise(settings: Any) -> None:
    assert set(rates(settings, Tiny(), lr=0.25, peak=1.0).values()) == {0.25}


@EVERY
def test_a_constant_predictor_keeps_the_peak_rate(settings: Any) -> None:
    found = rates(replace(settings, constant=("predictor",)), Tiny(), lr=0.25, peak=1.0)
    assert {name for name, rate in found.items() if rate == 1.0} == {"predictor.weight", "predictor.bias"}
    assert set(found.values()) == {0.25, 1.0}


@EVERY
def test_vectors_have_a_base_rate_of_their_own(settings: Any) -> None:
    """Barlow Twins: .2 for weights and .0048 for biases and normalisation parameters, at any step."""
    settings = replace(settings, base_lr=0.2, vector_lr=0.0048, constant=("predictor",))
    found = rates(settings, Tiny(), lr=0.8, peak=1.6)
    expected = {
        "backbone.0.weight": 0.8,
        "backbone.1.weight": 0.8 * 0.024,
        "backbone.1.bias": 0.8 * 0.024,
        "backbone.2.weight": 0.8,
        "backbone.2.bias": 0.8 * 0.024,
        "predictor.weight": 1.6,
        "predictor.bias": 1.6 * 0.024,
    }
    assert found == pytest.approx(expected)


def test_a_constant_part_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(
        LookupError, match=r"part of the online network 'predicter'\. Did you mean 'predictor'\?"
    ):
        SGD(base_lr=0.1, constant=("predicter",)).build(Tiny())


def test_frozen_parameters_are_in_no_group() -> None:
    network = Tiny()
    network.predictor.requires_grad_(False)
    trained = [parameter for group in parameters_of(network) for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {
        id(parameter) for parameter in network.backbone.parameters()
    }


def test_a_checkpoint_of_groups_without_the_newer_key_still_resumes() -> None:
    network, settings = Tiny(), LARS(base_lr=0.1)
    state = settings.build(network).state_dict()
    for group in state["param_groups"]:
        del group["constant"]
    optimizer = settings.build(network)
    optimizer.load_state_dict(state)
    settings.set_rates(optimizer, 0.25, peak=1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


# Schedules: each recipe in full, ten steps an epoch


def half_cosine(part: float) -> float:
    return (1 + math.cos(math.pi * part)) / 2


SIMCLR = LARS(base_lr=0.3, scale_with_views=False)
SQRT = LARS(base_lr=0.075, batch_scaling="sqrt", scale_with_views=False)
MOCO_V1 = SGD(base_lr=0.03, drops=(0.6, 0.8))
MOCO_V2 = SGD(base_lr=0.03, by_epoch=True)
SIMSIAM = SGD(base_lr=0.05, by_epoch=True, constant=("predictor",))
SWAV = LARC(base_lr=0.3, warmup_epochs=10, warmup_start=0.3 / 4.8, warmup_inclusive=True, final_ratio=0.001)
SWAV_256 = LARC(base_lr=0.6, final_ratio=0.001)
BARLOW_TWINS = LARS(base_lr=0.2, vector_lr=0.0048, scale_with_views=False, final_ratio=0.001)
VICREG = LARS(base_lr=0.2, scale_with_views=False, final_ratio=0.001)
W_MSE = Adam(
    base_lr=2e-3,
    warmup_steps=500,
    warmup_start=1 / 500,
    warmup_inclusive=True,
    drops=(1950 / 2000, 1975 / 2000),
    drop_factor=0.2,
)
W_MSE_IMAGENET = LARS(base_lr=0.1, batch_scaling="sqrt", scale_with_views=False)
WANG_ISOLA = replace(MOCO_V1, base_lr=0.06)
CMC = replace(WANG_ISOLA, drops=(120 / 240, 160 / 240, 200 / 240))
PIRL = SGD(base_lr=0.03, exempt_vectors=True, final_ratio=0.001, by_epoch=True)
LOCAL_AGGREGATION = SGD(base_lr=0.03, batch_scaling="none", drops=(160 / 200, 190 / 200))
OBOW = SGD(base_lr=0.03, warmup_epochs=10, by_epoch=True, final_ratio=0.001)
PIXPRO = LARS(
    base_lr=1.0,
    scale_with_views=False,
    warmup_epochs=5,
    warmup_start=0.01,
    final_ratio=1e-6 / 4,
    weight_decay=1e-5,
)

SCHEDULES: dict[str, tuple[Optimizer, int, int, dict[int, float]]] = {
    # the settings, the printed batch, epochs, and the rate at some steps of ten to an epoch
    "SimCLR": (
        SIMCLR,
        4096,
        100,
        {0: 0, 1: 0.048, 50: 2.4, 100: 4.8, 550: 2.4, 999: 4.8 * half_cosine(899 / 900)},
    ),
    "SimCLR sqrt": (SQRT, 4096, 100, {0: 0, 50: 2.4, 100: 4.8, 999: 4.8 * half_cosine(899 / 900)}),
    "MoCo v1": (MOCO_V1, 256, 200, {0: 0.03, 1199: 0.03, 1200: 0.003, 1599: 0.003, 1600: 3e-4, 1999: 3e-4}),
    "MoCo v2": (
        MOCO_V2,
        256,
        200,
        {
            0: 0.03,
            9: 0.03,
            10: 0.03 * half_cosine(1 / 200),
            1000: 0.015,
            1009: 0.015,
            1999: 0.03 * half_cosine(0.995),
        },
    ),
    "SimSiam 512": (SIMSIAM, 512, 100, {0: 0.1, 9: 0.1, 500: 0.05, 509: 0.05, 999: 0.1 * half_cosine(0.99)}),
    "SimSiam 256": (SIMSIAM, 256, 100, {0: 0.05, 500: 0.025}),
    "SwAV 4096": (
        SWAV,
        4096,
        100,
        # numpy's linspace(.3, 4.8, 100): a step of 4.5 / 99
        {
            0: 0.3,
            33: 1.8,
            99: 4.8,
            100: 4.8,
            550: 0.0048 + 0.9990 * 2.4,
            999: 0.0048 + 4.7952 * half_cosine(899 / 900),
        },
    ),
    "SwAV 256": (
        SWAV_256,
        256,
        200,
        {0: 0.6, 1000: 0.3003, 1999: 0.0006 + 0.5994 * half_cosine(1999 / 2000)},
    ),
    "Barlow Twins": (
        BARLOW_TWINS,
        2048,
        1000,
        {0: 0, 50: 0.8, 100: 1.6, 5050: 0.8008, 9999: 0.0016 + 1.5984 * half_cosine(9899 / 9900)},
    ),
    "VICReg": (VICREG, 2048, 1000, {0: 0, 100: 1.6, 5050: 0.8008}),
    "VICReg 100": (replace(VICREG, base_lr=0.3), 2048, 100, {0: 0, 100: 2.4}),
    "VICReg 128": (replace(VICREG, base_lr=0.8), 128, 100, {100: 0.4}),
    "W-MSE": (
        W_MSE,
        256,
        2000,
        {
            0: 4e-6,
            1: 8e-6,
            249: 1e-3,
            499: 2e-3,
            500: 2e-3,
            19499: 2e-3,
            19500: 4e-4,
            19749: 4e-4,
            19750: 8e-5,
            19999: 8e-5,
        },
    ),
    "W-MSE ImageNet": (W_MSE_IMAGENET, 1024, 100, {0: 0, 100: 3.2, 550: 1.6}),
    "Wang & Isola": (WANG_ISOLA, 128, 200, {0: 0.03, 1199: 0.03, 1200: 0.003, 1600: 3e-4}),
    "cmc": (
        CMC,
        128,
        240,
        {0: 0.03, 1199: 0.03, 1200: 0.003, 1600: 3e-4, 1999: 3e-4, 2000: 3e-5, 2399: 3e-5},
    ),
    "PIRL": (
        PIRL,
        1024,
        200,
        {0: 0.12, 9: 0.12, 1000: 0.00012 + 0.11988 / 2, 1999: 0.00012 + 0.11988 * half_cosine(0.995)},
    ),
    "LA": (LOCAL_AGGREGATION, 128, 200, {0: 0.03, 1599: 0.03, 1600: 0.003, 1899: 0.003, 1900: 3e-4}),
    "OBoW": (OBOW, 256, 210, {0: 0, 50: 0.015, 100: 0.03, 109: 0.03, 1100: 0.01501500, 1109: 0.015015}),
    "PixPro": (
        PIXPRO,
        1024,
        105,
        {0: 0.04, 25: 2.02, 50: 4, 550: 2.0000005, 1049: 1e-6 + (4 - 1e-6) * half_cosine(0.999)},
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_of_each_recipe_by_hand(name: str) -> None:
    settings, batch_size, epochs, expected = SCHEDULES[name]
    found = {
        step: settings.rate(step, batch_size=batch_size, num_views=2, steps_per_epoch=10, epochs=epochs)
        for step in expected
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_paper_s_peak_rate_grows_with_the_number_of_views_and_the_others_do_not() -> None:
    assert LARS(base_lr=0.5).peak_lr(512, 4) == 0.5 * 2 * 4
    assert SGD(base_lr=0.5).peak_lr(512, 4) == 1
    assert Adam(base_lr=0.5).peak_lr(512, 4) == 0.5


@pytest.mark.parametrize("inclusive", [False, True])
def test_a_run_that_is_as_long_as_its_warm_up_ends_before_or_at_the_peak(inclusive: bool) -> None:
    settings = SGD(base_lr=1.0, warmup_steps=4, warmup_inclusive=inclusive)
    found = [
        settings.rate(step, batch_size=256, num_views=2, steps_per_epoch=2, epochs=2) for step in range(4)
    ]
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 1] if inclusive else [0, 0.25, 0.5, 0.75])


def test_a_warm_up_of_one_step() -> None:
    for inclusive, first in ((False, 0.25), (True, 1.0)):
        settings = SGD(base_lr=1.0, warmup_steps=1, warmup_start=0.25, warmup_inclusive=inclusive)
        found = [
            settings.rate(step, batch_size=256, num_views=2, steps_per_epoch=4, epochs=1) for step in range(2)
        ]
        assert found == [first, 1.0]


def test_a_final_ratio_of_1_keeps_the_peak_rate() -> None:
    settings = SGD(base_lr=0.4, final_ratio=1.0)
    assert {
        settings.rate(step, batch_size=256, num_views=2, steps_per_epoch=3, epochs=2) for step in range(6)
    } == {0.4}


# Settings


@pytest.mark.parametrize("drops", [(0.8, 0.6), (0.6, 0.6)])
def test_drops_that_do_not_increase_are_refused(drops: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"sgd\.drops is .*: increasing parts of the run are expected"):
        SGD(base_lr=0.1, drops=drops)


def test_the_warm_up_is_in_epochs_or_in_steps() -> None:
    with pytest.raises(ValueError, match="warmup_epochs is 1 and warmup_steps is 5: set one of them to 0"):
        plan.requests(["table8"], changes=("warmup_steps=5",))
    for changes in (both := ("warmup_steps=5", "warmup_epochs=0"), both[::-1]):
        (made,) = plan.requests(["table8"], changes=changes)
        assert made.specs()[0].optimizer.warmup_steps == 5


def test_new_settings_leave_the_ids_of_finished_runs_alone() -> None:
    """The ids of two optimisers as version 0.1 had them."""
    assert LARS(base_lr=0.4).id == "ca7f5cda4ae3"
    assert LARS(base_lr=0.4, warmup_epochs=1, trust_coefficient=0.01).id == "54787b338901"


def test_settings_need_no_torch() -> None:
    program = (
        "import sys; from reproduce.nn.optimizers import LARC, LARS, SGD, Adam; "
        "LARC(base_lr=1).rate(1, batch_size=2, num_views=2, steps_per_epoch=2, epochs=2); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# The scales


def evaluation(optimizer: Optimizer, dataset: str = "table8") -> Any:
    run = next(each for _, _, each in Request(table=dataset, scale="paper").build().measured()).spec
    return run.replace("encoder.optimizer", optimizer)


@pytest.mark.parametrize("settings", [MOCO_V1, W_MSE, SWAV, SQRT], ids=["sgd", "adam", "larc", "lars"])
def test_the_small_scale_keeps_the_optimiser(settings: Optimizer) -> None:
    scaled = small(evaluation(settings))
    assert not isinstance(scaled, str)
    assert scaled.encoder.optimizer == settings


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (MOCO_V2, {"base_lr": 0.48}),
        (replace(MOCO_V2, vector_lr=0.01), {"base_lr": 0.48, "vector_lr": 0.16}),
        (SWAV, {"base_lr": 1.2, "warmup_epochs": 1}),  # a quarter of the peak
        (SGD(base_lr=0.1, batch_scaling="sqrt"), {"base_lr": 0.4}),
        # Adam: twice the rate.
        (W_MSE, {"base_lr": 4e-3, "warmup_steps": 50}),
        (replace(W_MSE, warmup_steps=3), {"base_lr": 4e-3, "warmup_steps": 1}),
        # LARS: a quarter of the peak, ten times the trust, at most 1/200 of the rate for vectors.
        (SIMCLR, {"base_lr": 1.2, "trust_coefficient": 0.01, "warmup_epochs": 1}),
        (SQRT, {"trust_coefficient": 0.01, "warmup_epochs": 1}),
        (BARLOW_TWINS, {"base_lr": 0.8, "vector_lr": 0.004, "trust_coefficient": 0.01, "warmup_epochs": 1}),
    ],
)
def test_the_smoke_scale_fits_the_rates_to_a_sixteenth_of_the_batch(
    settings: Optimizer, changed: dict[str, float]
) -> None:
    scaled = smoke(evaluation(settings)).encoder.optimizer
    assert type(scaled) is type(settings)
    before, after = dict(settings.leaves()), dict(scaled.leaves())
    assert {key: value for key, value in after.items() if value != before[key]} == pytest.approx(changed)


def test_the_smoke_scale_keeps_the_peak_rate_of_sgd() -> None:
    run = evaluation(MOCO_V2).replace("encoder.batch_size", 256)
    scaled = smoke(run).encoder
    assert scaled.batch_size == 16
    assert scaled.optimizer.peak_lr(16, 2) == pytest.approx(0.03)


# Training


def run(settings: Any, epochs: int = 2) -> Pretrain:
    changes = (f"epochs={epochs}", "warmup_epochs=0", "batch_size=8", "num_train=32", "num_val=20")
    spec = Request(table="table8", rows="BYOL", changes=changes).specs()[0]
    assert isinstance(spec, Pretrain)
    return replace(spec, optimizer=settings)


def trained(spec: Pretrain, folder: Path, stop_after: int = 0) -> tuple[Notes, dict[str, Tensor]]:
    """Train, with a stop and a resumption after some steps; return the log and the encoder's tensors."""
    notes, site = Notes(), Site(runs=folder.parent)

    def report(progress: Progress) -> None:
        if progress.done == stop_after * spec.batch_size:
            interrupt.ask("a test")

    if stop_after:
        with pytest.raises(interrupt.Interrupted, match="a test"):
            pretrain(spec, site, folder, CPU, notes, report)
    pretrain(spec, site, folder, CPU, notes, lambda progress: None)
    return notes, encoder_file.load(folder / FILE, spec_id=spec.id)


@pytest.mark.parametrize(
    "settings",
    [
        SGD(base_lr=0.5, drops=(0.5,), constant=("predictor",), warmup_steps=2),
        Adam(base_lr=1e-3, warmup_steps=3, warmup_start=1 / 3, warmup_inclusive=True),
        LARC(base_lr=30.0, final_ratio=0.1, vector_lr=0.5, by_epoch=True),
    ],
    ids=["sgd", "adam", "larc"],
)
def test_a_stopped_run_resumes_bit_for_bit_and_logs_the_rate(settings: Optimizer, tmp_path: Path) -> None:
    spec = run(settings)
    notes, whole = trained(spec, tmp_path / "whole")
    resumed_notes, resumed = trained(spec, tmp_path / "resumed", stop_after=3)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    # The last steps of both epochs are logged: 4 and 8 steps are done.
    expected = [
        settings.rate(step, batch_size=8, num_views=spec.method.num_views, steps_per_epoch=4, epochs=2)
        for step in (3, 7)
    ]
    assert notes.of("lr") == resumed_notes.of("lr") == expected


def test_a_warm_up_of_more_steps_than_the_run_has_is_refused(tmp_path: Path) -> None:
    spec = run(SGD(base_lr=0.1, warmup_steps=9))
    says = (
        r"^warmup_steps is 9, but the run of .* has only 8 steps: set epochs to at least 3, or warmup_steps "
    )
    with pytest.raises(ValueError, match=says + r"to at most 8\.$"):
        trained(spec, tmp_path / "run")
    assert trained(replace(spec, epochs=0), tmp_path / "untrained")[0].logged == {}
