"""The losses of Eq. 1 and 3 to 7, of section 4.4 and of Wang and Isola.

They are compared with values by hand and with plain formulas, and view by view with all views at once.
"""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import batch

from reproduce.methods.byol import BYOL, pairwise_share
from reproduce.methods.msbreg import MSBReg, centroid, centroid_loss
from reproduce.nn import backbones
from reproduce.nn.dispersion import brownian_loss, singular_value_loss, uniformity_loss, unit_noise
from reproduce.nn.heads import Heads
from reproduce.nn.networks import Outputs

HEADS = Heads(hidden=16, output=8)
CPU = torch.device("cpu")


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


# Values by hand.


def test_eq_1_sums_the_two_directions_and_averages_over_images():
    p = [rows([3, 4], [0, 2]), rows([1, 0], [5, 0])]
    z = [rows([0, 7], [1, 0]), rows([1, 0], [0, -1])]
    # p1 against z2: cosines .6 and -1, distances .8 and 4; p2 against z1: cosines 0 and 1, distances 2 and 0.
    loss = 2 * sum(pairwise_share(p[j], j, z) for j in range(2))
    assert loss.item() == pytest.approx((0.8 + 4) / 2 + (2 + 0) / 2)


def test_the_multi_crop_loss_is_the_mean_over_ordered_pairs_of_different_views():
    targets = [rows([9, 9]), rows([0, 1]), rows([-2, 0])]
    # Squared distances of (1, 0) to the other views' targets: 2 and 4; there are 6 ordered pairs.
    assert pairwise_share(rows([1, 0]), 0, targets).item() == pytest.approx((2 + 4) / 6)


def test_eq_3_measures_the_distance_to_a_centroid_that_is_not_normalised_again():
    centre = centroid([rows([2, 0], [2, 0]), rows([0, 3], [0, 3])])
    assert centre.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert centroid_loss(rows([4, 0], [0, -5]), centre).item() == pytest.approx((0.5 + 2.5) / 2)


def test_eq_4_is_the_mean_over_images_of_the_component_along_the_noise():
    assert brownian_loss(rows([3, 4], [0, -2]), rows([1, 0], [0.6, 0.8])).item() == pytest.approx(
        (0.6 - 0.8) / 2
    )


def test_eq_5_and_6_compare_the_unbiased_covariance_of_the_predictions_as_they_are_with_the_identity():
    # Covariance [[2, 2], [2, 2]]: (2 - 1)^2 twice, 2^2 twice. A shift changes nothing, a factor of 2 makes it
    # [[8, 8], [8, 8]].
    assert singular_value_loss(rows([1, 1], [-1, -1])).item() == pytest.approx(10)
    assert singular_value_loss(rows([6, 1], [4, -1])).item() == pytest.approx(10)
    assert singular_value_loss(rows([2, 2], [-2, -2])).item() == pytest.approx(2 * 49 + 2 * 64)


def test_eq_7_equals_eq_6_by_the_singular_values_of_the_covariance():
    p = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    singular_values = np.linalg.svd(np.cov(p.double().numpy(), rowvar=False), compute_uv=False)
    assert singular_value_loss(p).item() == pytest.approx(((singular_values - 1) ** 2).sum(), rel=1e-5)


def test_uniformity_takes_the_mean_over_pairs_inside_the_logarithm():
    assert uniformity_loss(rows([2, 0], [0, 1]), t=2.0).item() == pytest.approx(-4)
    three = uniformity_loss(rows([2, 0], [0, 1], [-3, 0]), t=2.0).item()  # squared distances 2, 2 and 4
    assert three == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))


# What the errata say about L_s.


def test_white_gaussian_predictions_have_the_expected_singular_value_loss():
    generator = torch.Generator().manual_seed(0)
    losses = torch.stack([singular_value_loss(torch.randn(512, 128, generator=generator)) for _ in range(20)])
    error = (losses.std() / math.sqrt(len(losses))).item()
    assert error < 0.2
    assert losses.mean().item() == pytest.approx(128 * 129 / 511, abs=4 * error)


def test_fewer_images_than_dimensions_cannot_bring_the_singular_value_loss_below_65():
    basis = torch.linalg.qr(
        torch.cat([torch.ones(64, 1), torch.randn(64, 63, generator=torch.Generator().manual_seed(0))], dim=1)
    ).Q
    # 63 of the 128 dimensions have unit variance.
    best = torch.cat([basis[:, 1:] * math.sqrt(63), torch.zeros(64, 65)], dim=1)
    assert singular_value_loss(best).item() == pytest.approx(65, rel=1e-4)


# Values and gradients against plain formulas, differentiated numerically.


def unit(x):
    return x / np.linalg.norm(x)


def plain_brownian(p, noise):
    return sum(noise[i] @ unit(p[i]) for i in range(len(p))) / len(p)


def plain_byol(p, z):
    return sum(((unit(p[i]) - unit(z[i])) ** 2).sum() for i in range(len(p))) / len(p)


def plain_centroid(p, z1, z2):
    return sum(((unit(p[i]) - (unit(z1[i]) + unit(z2[i])) / 2) ** 2).sum() for i in range(len(p))) / len(p)


def plain_singular_value(p):
    mean = sum(p) / len(p)
    covariance = sum(np.outer(x - mean, x - mean) for x in p) / (len(p) - 1)
    return ((covariance - np.eye(p.shape[1])) ** 2).sum()


def plain_uniformity(p):
    pairs = [((unit(p[i]) - unit(p[j])) ** 2).sum() for i in range(len(p)) for j in range(i)]
    return math.log(sum(math.exp(-2 * pair) for pair in pairs) / len(pairs))


LOSSES = {
    "brownian": (lambda p, a, b: brownian_loss(p, a), lambda p, a, b: plain_brownian(p, a)),
    "byol": (lambda p, a, b: 2 * pairwise_share(p, 0, [b, a]), lambda p, a, b: plain_byol(p, a)),
    "centroid": (lambda p, a, b: centroid_loss(p, centroid([a, b])), plain_centroid),
    "singular value": (lambda p, a, b: singular_value_loss(p), lambda p, a, b: plain_singular_value(p)),
    "uniformity": (lambda p, a, b: uniformity_loss(p, t=2.0), lambda p, a, b: plain_uniformity(p)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_agree_with_plain_formulas(name):
    ours, plain = LOSSES[name]
    p, a, b = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1)).unbind()
    p.requires_grad_()
    loss = ours(p, a, b)
    loss.backward()
    x, fixed = p.detach().double().numpy(), (a.double().numpy(), b.double().numpy())
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        gradient[index] = (plain(x + step, *fixed) - plain(x - step, *fixed)) / 2e-5
    assert loss.item() == pytest.approx(plain(x, *fixed), rel=1e-5)
    np.testing.assert_allclose(p.grad.numpy(), gradient, rtol=1e-4, atol=1e-5)


def test_eq_3_has_the_gradient_of_the_mean_distance_over_all_pairs_same_view_pairs_included():
    generator = torch.Generator().manual_seed(2)
    predictions, targets = torch.randn(2, 4, 6, 8, generator=generator)  # K = 4 views of 6 images
    predictions.requires_grad_()
    by_centroid = sum(centroid_loss(p, centroid(list(targets))) for p in predictions) / 4
    distances = [
        (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(dim=1).mean()
        for p in predictions
        for z in targets
    ]
    by_pairs = sum(distances) / 16
    # The spread of the targets, a constant, is the difference.
    assert by_centroid.item() != pytest.approx(by_pairs.item(), rel=1e-2)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, predictions)[0] for loss in (by_centroid, by_pairs))
    )


# One view after the other, as training does it, against all views at once.


def network_and_views(method, seed=0):
    torch.manual_seed(seed)
    network = method.network(backbones.build("small"), num_images=1, batch_size=8)
    for parameter in network.target.parameters():  # a target that has moved away from the online network
        parameter.add_(0.05 * torch.randn_like(parameter))
    return network, [torch.randn(6, 3, 32, 32) for _ in range(method.num_views)]


def gradients(network):
    return {name: parameter.grad for name, parameter in network.online.named_parameters()}


def by_parts(method, network, views, step):
    loss, terms = 0.0, {}
    for part in method.parts(network, batch(views, seed=5, step=step)):
        part.loss.backward()
        loss += part.loss.item()
        for name, value in part.terms.items():
            terms[name] = terms.get(name, 0.0) + value.item()
    return loss, terms, gradients(network)


def check(method, plain_terms, weights):
    """Compare a method's parts with `plain_terms(p, z, noise)`, the terms from all views at once."""
    network, views = network_and_views(method)
    other = copy.deepcopy(network)
    loss, terms, found = by_parts(method, network, views, step=3)
    with torch.no_grad():
        z = [F.normalize(other.target(view), dim=1) for view in views]
    p = [other.online(view).p for view in views]
    expected = plain_terms(p, z, unit_noise(6, 8, seed=5, step=3, device=CPU))
    total = sum(weights[name] * value for name, value in expected.items())
    total.backward()
    assert terms == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4, abs=1e-6
    )
    assert loss == pytest.approx(total.item(), rel=1e-4)
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-3, atol=1e-5 * gradient.norm().item() + 1e-6, msg=name
        )


def mean_over_views(values):
    return torch.stack(list(values)).mean()


def brownian_of(p, noise):
    return mean_over_views((F.normalize(x, dim=1) * noise).sum(dim=1).mean() for x in p)


def singular_value_of(p):
    return mean_over_views((torch.cov(x.T) - torch.eye(8)).square().sum() for x in p)


@pytest.mark.parametrize(("dispersive", "factor"), [("mean", 1), ("sum", 2)])
def test_byol_view_by_view_has_the_gradients_of_the_plain_loss(dispersive, factor):
    def plain(p, z, noise):
        unit_p = [F.normalize(x, dim=1) for x in p]
        log_means = [
            torch.cdist(x, x)[tuple(torch.triu_indices(6, 6, 1))].square().mul(-2).exp().mean().log()
            for x in unit_p
        ]
        return {
            "L_byol": sum((2 - 2 * (unit_p[j] * z[1 - j]).sum(dim=1)).mean() for j in range(2)),
            "L_b": brownian_of(p, noise),
            "L_s": singular_value_of(p),
            "L_uniform": mean_over_views(log_means),
        }

    method = BYOL(
        heads=HEADS, lambda_s=0.04, lambda_b=0.5, lambda_uniform=0.3, uniform_t=2.0, dispersive=dispersive
    )
    check(method, plain, {"L_byol": 1, "L_b": factor * 0.5, "L_s": factor * 0.04, "L_uniform": 0.3})


def test_msbreg_view_by_view_has_the_gradients_of_the_plain_loss_with_one_noise_vector_for_an_images_views():
    def plain(p, z, noise):
        centre = sum(z) / 4
        return {
            "L_c": mean_over_views((F.normalize(x, dim=1) - centre).square().sum(dim=1).mean() for x in p),
            "L_b": brownian_of(p, noise),
            "L_s": singular_value_of(p),
        }

    check(MSBReg(heads=HEADS, lambda_s=0.04), plain, {"L_c": 1, "L_b": 0.5, "L_s": 0.04})


@pytest.mark.parametrize(
    ("method", "attraction", "equal_targets", "ratio"),
    [
        # p, both targets and the noise n are orthogonal unit vectors. The gradients of a view: n / 2 of L_b,
        # -2 z'_j of BYOL's two directions, -(z'_1 + z'_2) / 2 of L_c. The last has length 1 / sqrt 2, with
        # equal targets 1. lambda_b is .5.
        (BYOL(lambda_b=0.5), "L_byol", False, 0.125),
        (BYOL(lambda_b=0.5, dispersive="sum"), "L_byol", False, 0.25),
        (MSBReg(num_views=2, lambda_b=0.5, lambda_s=0), "L_c", False, 0.125 * math.sqrt(8)),
        (MSBReg(num_views=2, lambda_b=0.5, lambda_s=0), "L_c", True, 0.25),
    ],
    ids=["BYOL, mean", "BYOL, sum", "L_c", "L_c of equal targets"],
)
def test_the_gradient_of_l_b_next_to_that_of_the_attraction_at_two_views(
    method, attraction, equal_targets, ratio
):
    noise = unit_noise(1, method.heads.output, seed=5, step=3, device=CPU)
    others = torch.randn(method.heads.output, 3, generator=torch.Generator().manual_seed(0))
    _, p, first, second = torch.linalg.qr(torch.cat([noise.T, others], dim=1)).Q.T.split(1)
    p = p.clone().requires_grad_()
    targets = {0: first, 1: first if equal_targets else second}
    network = SimpleNamespace(
        online=lambda view: Outputs(p, p), project=lambda view: targets[int(view[0, 0, 0, 0])]
    )
    views = [torch.full((1, 3, 1, 1), float(index)) for index in range(2)]
    for part in method.parts(network, batch(views, seed=5, step=3)):
        (towards,) = torch.autograd.grad(part.terms[attraction], p, retain_graph=True)
        (whole,) = torch.autograd.grad(part.loss, p)
        assert ((whole - towards).norm() / towards.norm()).item() == pytest.approx(ratio, rel=1e-4)


def test_byol_without_extra_terms_is_byol():
    method = BYOL(heads=HEADS)
    network, views = network_and_views(method)
    loss, terms, _ = by_parts(method, network, views, step=0)
    assert list(terms) == ["L_byol"]
    assert loss == pytest.approx(terms["L_byol"])


def test_each_part_frees_its_graph_before_the_next_view_goes_forward():
    method = MSBReg(heads=HEADS)
    network, views = network_and_views(method)
    parts = method.parts(network, batch(views))
    first = next(parts)
    first.loss.backward()
    assert not first.embeddings.requires_grad
    with pytest.raises(RuntimeError, match="second time"):
        first.loss.backward()
    assert len(list(parts)) == method.num_parts - 1


# The unit noise of L_b.


def test_noise_follows_from_seed_and_step_and_nothing_else():
    first = unit_noise(4, 8, seed=1, step=2, device=CPU)
    torch.rand(3)
    assert torch.equal(first, unit_noise(4, 8, seed=1, step=2, device=CPU))
    drawn = [unit_noise(4, 8, seed=seed, step=step, device=CPU) for seed in range(3) for step in range(3)]
    assert all(not torch.allclose(a, b) for index, a in enumerate(drawn) for b in drawn[:index])


def test_noise_is_uniform_on_the_sphere():
    noise = unit_noise(20_000, 6, seed=0, step=0, device=CPU)
    torch.testing.assert_close(noise.norm(dim=1), torch.ones(20_000))
    # A component has variance 1/6: its mean is known to .003, and each entry of the second moment about as
    # well.
    assert noise.mean(dim=0).abs().max() < 4 * 0.003
    assert (noise.T @ noise / 20_000 - torch.eye(6) / 6).abs().max() < 4 * 0.002
