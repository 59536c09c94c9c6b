"""The maps of a backbone's stages, and the networks that use them in place of pooled features."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from reproduce.nn import backbones
from reproduce.nn.compiled import Compiled
from reproduce.nn.maps import FROM_THE_END, Level, Maps, channels
from reproduce.nn.networks import Online, Target

LAST: dict[str, tuple[str, str]] = {"small": ("blocks.1", "blocks.2")}
"""Names of the modules whose outputs are conv4 and conv5, where they are not torchvision's."""


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", backbones.names())
def test_maps_are_the_outputs_of_the_stages_and_the_last_one_pools_to_the_features(name: str) -> None:
    backbone = backbones.build(name, seed=0).eval()
    seen: dict[str, Tensor] = {}
    modules = dict(backbone.named_modules())
    for level, module in zip(("conv4", "conv5"), LAST.get(name, ("layer3", "layer4")), strict=True):
        modules[module].register_forward_hook(
            lambda _, __, output, level=level: seen.update({level: output.clone()})
        )
    with torch.no_grad():
        features = backbone(images())
        expected = dict(seen)
        found = dict(zip(("conv5", "conv4"), Maps(backbone, ("conv5", "conv4"))(images()), strict=True))
    for level, values in expected.items():
        assert torch.equal(found[level], values), level
        assert values.shape[1] == channels(backbone, level)  # type: ignore[arg-type]
    torch.testing.assert_close(found["conv5"].mean(dim=(2, 3)), features)


def test_stages_above_the_highest_level_are_not_computed() -> None:
    backbone = backbones.build("small", seed=0).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    Maps(backbone, ("conv4",))(images())
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("blocks.1.") for name in moved)
    assert not any(name.startswith("blocks.2.") for name in moved)


def test_every_level_has_a_place() -> None:
    assert set(get_args(Level)) == set(FROM_THE_END)


def test_networks_with_maps_have_the_tensors_of_those_without() -> None:
    online: Any = Online(backbones.build("small", seed=0), nn.Linear(64, 4))
    target: Any = Target(online.backbone, online.projector)
    before = [list(each.state_dict()) for each in (online, target)]
    online.levels = target.levels = ("conv5",)
    assert [list(each.state_dict()) for each in (online, target)] == before
    (expected,) = Maps(online.backbone, ("conv5",))(images())
    for each in (online, target):
        (found,) = each.maps(images())
        assert torch.equal(found, expected)
        each.mixed = True
        (rounded,) = each.maps(images())
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, expected), "the backbone computed in bfloat16"
        torch.testing.assert_close(rounded, expected, rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_compiled_maps_have_the_gradients_of_eager_ones() -> None:
    gradients = []
    for backend in ("", "aot_eager"):
        through: Any = Maps(backbones.build("small", seed=0).double().train(), ("conv4", "conv5"))
        backbone = through._backbone
        if backend:
            through = Compiled(through, optional=False, backend=backend)
        conv4, conv5 = through(images().double())
        (conv4.square().mean() + conv5.mean()).backward()
        gradients.append([each.grad for each in backbone.parameters()])
        assert not backend or not through.failed
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
