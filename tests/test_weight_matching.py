"""Which network a file contains: names of other libraries, networks that the tensors do not tell apart, and
tensors that are not weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from reproduce import plan
from reproduce.nn import backbones, weight_layouts
from reproduce.nn.weight_matching import Match, choose, followers

Tensors = dict[str, torch.Tensor]


def with_statistics(network: nn.Module) -> nn.Module:
    """Return the network in eval mode after one batch, so that its running statistics are not those of a new
    one."""
    network.train()(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return network.eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@cache
def torchvision_resnet(name: str) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(getattr(models, name)())


def state(name: str, prefix: str = "") -> Tensors:
    """Return the tensors of a torchvision network without its classifier."""
    tensors = torchvision_resnet(name).state_dict()
    return {prefix + key: value for key, value in tensors.items() if not key.startswith("fc.")}


def loaded(match: Match, tensors: Tensors) -> nn.Module:
    with torch.device("meta"):
        network: nn.Module = backbones.build(match.backbone)
    network.load_state_dict(match.state(tensors), assign=True)
    return network.eval()


def assert_computes(match: Match, tensors: Tensors, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The chosen backbone with the tensors of the file computes the features of the original network."""
    with torch.no_grad():
        ours, theirs = loaded(match, tensors)(images()), network(images())
    torch.testing.assert_close(ours, theirs.flatten(1), rtol=1e-4, atol=1e-5)


# Networks written out with the names of other libraries


class HuggingFace(nn.Module):
    """Hugging Face's ResNetModel in short: its names, and the computation of a ResNet."""

    def __init__(self, depths: tuple[int, ...], *, bottleneck: bool) -> None:
        super().__init__()
        self.embedder = nn.ModuleDict({"embedder": self.conv(3, 64, 7, 2)})
        self.encoder = nn.ModuleDict({"stages": nn.ModuleList()})
        inputs = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            outputs = 4 * width if bottleneck else width
            layers = nn.ModuleList()
            for index in range(depth):
                stride = 2 if stage and not index else 1
                block = nn.ModuleDict()
                if stride != 1 or inputs != outputs:
                    block["shortcut"] = self.conv(inputs, outputs, 1, stride)
                block["layer"] = nn.ModuleList(
                    [
                        self.conv(inputs, width, 1, 1),
                        self.conv(width, width, 3, stride),
                        self.conv(width, outputs, 1, 1),
                    ]
                    if bottleneck
                    else [self.conv(inputs, outputs, 3, stride), self.conv(outputs, outputs, 3, 1)]
                )
                layers.append(block)
                inputs = outputs
            stages: Any = self.encoder["stages"]
            stages.append(nn.ModuleDict({"layers": layers}))

    @staticmethod
    def conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.ModuleDict:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        return nn.ModuleDict({"convolution": convolution, "normalization": nn.BatchNorm2d(outputs)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def apply(part: Any, x: torch.Tensor) -> torch.Tensor:
            return part["normalization"](part["convolution"](x))

        x = nn.functional.max_pool2d(apply(self.embedder["embedder"], x).relu(), 3, 2, 1)
        for stage in self.encoder["stages"]:
            for block in stage["layers"]:
                y, last = x, len(block["layer"]) - 1
                for index, part in enumerate(block["layer"]):
                    y = apply(part, y).relu() if index < last else apply(part, y)
                x = (y + (apply(block["shortcut"], x) if "shortcut" in block else x)).relu()
        return x.mean(dim=(2, 3))


class Cifar(nn.Module):
    """A ResNet-18 for CIFAR as kuangliu's, with `shortcut` in its blocks and no max pooling."""

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            layer = nn.ModuleList()
            for index in range(2):
                stride = 2 if stage > 1 and not index else 1
                block = nn.Module()
                block.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
                block.bn1 = nn.BatchNorm2d(width)
                block.conv2, block.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
                block.shortcut = nn.Sequential()
                if stride != 1 or inputs != width:
                    block.shortcut.append(nn.Conv2d(inputs, width, 1, stride, bias=False))
                    block.shortcut.append(nn.BatchNorm2d(width))
                layer.append(block)
                inputs = width
            self.add_module(f"layer{stage}", layer)
        self.linear = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
                x = (y + block.shortcut(x)).relu()
        return x.mean(dim=(2, 3))


@cache
def hugging_face(*depths: int) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(HuggingFace(depths, bottleneck=depths[0] == 3))


@cache
def cifar(padding: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(Cifar(padding))


def renamed(network: nn.Module, prefix: str = "") -> Tensors:
    """Return the tensors of a `Cifar` network by torchvision's names."""
    return {
        prefix + name.replace("shortcut", "downsample"): value
        for name, value in network.state_dict().items()
        if not name.startswith("linear.")
    }


@pytest.mark.parametrize(
    ("depths", "name"),
    [((2, 2, 2, 2), "resnet18"), pytest.param((3, 4, 6, 3), "resnet50", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("prefix", ["resnet.", ""])
def test_hugging_faces_resnet_is_read(depths: tuple[int, ...], name: str, prefix: str) -> None:
    network = hugging_face(*depths)
    tensors = {prefix + key: value for key, value in network.state_dict().items()} | {
        "classifier.1.weight": torch.ones(10, 512)
    }
    match = choose(tensors, shown="x.safetensors")
    assert (match.backbone, match.prefix) == (name, prefix)
    assert match.layout.title == "Hugging Face's ResNetModel"
    assert match.unused(tensors) == ["classifier.1.weight"]
    assert_computes(match, tensors, network)


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)], ids=["18", "50"]
)
def test_a_sequential_of_torchvisions_modules_is_read(name: str) -> None:
    sequential = nn.Sequential(*list(torchvision_resnet(name).children())[:-1])
    tensors = {f"backbone.{key}": value for key, value in sequential.state_dict().items()} | {
        f"projection_head.layers.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()
    }
    match = choose(tensors, shown="x.ckpt")
    assert (match.backbone, match.prefix) == (name, "backbone.")
    assert len(match.unused(tensors)) == 2
    assert_computes(match, tensors, sequential)


def test_a_sequential_without_a_module_for_pooling_has_none() -> None:
    network = torchvision_cifar()
    sequential = nn.Sequential(*(part for part in network.children() if not isinstance(part, nn.Identity)))
    tensors = {f"f.{key}": value for key, value in sequential.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"where NAME is resnet18_cifar \(.*\) or resnet18_cifar_pad2 \(.*\)\.$"
    ):
        choose(tensors, shown="x.pth")
    match = choose(tensors, shown="x.pth", backbone="resnet18_cifar")
    assert_computes(match, tensors, sequential)
    with pytest.raises(ValueError, match=r"^x.pth does not fit resnet18_3x3: "):
        choose(tensors, shown="x.pth", backbone="resnet18_3x3")


def torchvision_cifar(padding: int = 1) -> nn.Module:
    """Return torchvision's ResNet-18 changed for CIFAR, as solo-learn and lightly do."""
    torch.manual_seed(0)
    network = models.resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
    network.maxpool, network.fc = nn.Identity(), nn.Identity()
    return with_statistics(network)


WRAPPED = {
    "timm": lambda tensors: tensors | {"fc.weight": torch.ones(2, 512), "fc.bias": torch.ones(2)},
    "DDP": lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
    "torch.compile": lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()},
    "both": lambda tensors: {f"module._orig_mod.net.{name}": value for name, value in tensors.items()},
    "Lightning": lambda tensors: {
        f"state_dict.model.backbone.{name}": value for name, value in tensors.items()
    },
    "VISSL": lambda tensors: {
        f"classy_state_dict.base_model.model.trunk._feature_blocks.{name}": value
        for name, value in tensors.items()
    },
    "MMSelfSup": lambda tensors: (
        {f"state_dict.online_net.0.{name}": value for name, value in tensors.items()}
        | {f"state_dict.target_net.0.{name}": value * 2 for name, value in tensors.items()}
    ),
    "slashes": lambda tensors: {f"backbone/{name}": value for name, value in tensors.items()},
}


@pytest.mark.parametrize("layout", WRAPPED)
def test_torchvisions_names_are_found_under_any_prefix(layout: str) -> None:
    tensors = WRAPPED[layout](state("resnet18"))
    match = choose(tensors, shown="x.pth")
    assert match.backbone == "resnet18"
    for name, value in match.state(tensors).items():
        assert torch.equal(value, torchvision_resnet("resnet18").state_dict()[name])


def test_every_resnet_is_looked_for_under_every_naming() -> None:
    with torch.device("meta"):
        built = {name: backbones.build(name) for name in backbones.names()}
    resnets = {name: network for name, network in built.items() if hasattr(network, "conv1")}
    assert set(resnets) == set(weight_layouts.RESNETS)
    unpooled = {name for name, network in resnets.items() if isinstance(network.maxpool, nn.Identity)}
    assert unpooled == set(weight_layouts.UNPOOLED)


# What the tensors do not tell


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("names", ["torchvision", "shortcut"])
def test_a_stem_for_small_images_fits_three_backbones_and_the_named_one_computes_the_same(
    padding: int, names: str
) -> None:
    network = cifar(padding)
    tensors = renamed(network, "backbone.") if names == "torchvision" else network.state_dict()
    with pytest.raises(
        ValueError, match=r"^solo\.ckpt fits several backbones, and its tensors do not"
    ) as asked:
        choose(tensors, shown="solo.ckpt")
    assert str(asked.value).endswith(
        "choose one with --backbone NAME, where NAME is "
        "resnet18_3x3 (with max pooling, as in htdt/self-supervised) or "
        "resnet18_cifar (without max pooling, as in lightly's and SimCLR's networks for CIFAR) or "
        "resnet18_cifar_pad2 (without max pooling and with a padding of 2, as in solo-learn's for CIFAR)."
    )
    right = {1: "resnet18_cifar", 2: "resnet18_cifar_pad2"}[padding]
    assert_computes(choose(tensors, shown="solo.ckpt", backbone=right), tensors, network)
    for wrong in {"resnet18_3x3", "resnet18_cifar", "resnet18_cifar_pad2"} - {right}:
        other = loaded(choose(tensors, shown="solo.ckpt", backbone=wrong), tensors)
        with torch.no_grad():
            assert not torch.allclose(other(images()), network(images()), rtol=1e-2)


def test_backbones_with_the_same_tensors_say_how_they_differ() -> None:
    shapes: dict[tuple[object, ...], list[str]] = {}
    for name in backbones.names():
        with torch.device("meta"):
            each = backbones.build(name).state_dict()
        shapes.setdefault(tuple((key, value.shape) for key, value in each.items()), []).append(name)
    alike = {name for names in shapes.values() if len(names) > 1 for name in names}
    assert alike == set(backbones.SAME_TENSORS)


def plus_one(tensors: Tensors) -> Tensors:
    return {name: value + 1 for name, value in tensors.items()}


SMALL: Tensors = dict(backbones.build("small", seed=3).state_dict())


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_tensors_of_another_type_are_compared_with_the_network_that_has_their_names(
    kind: torch.dtype,
) -> None:
    tensors = {name: value.to(kind) for name, value in state("resnet18").items()}
    name = str(kind).removeprefix("torch.")
    with pytest.raises(
        ValueError, match=rf"does not fit resnet18: .* type \(conv1\.weight is {name}, not floating"
    ):
        choose(tensors, shown="odd.pth")


def test_each_network_of_a_file_is_shown_with_every_backbone_that_fits() -> None:
    one = dict(backbones.build("resnet18_cifar", seed=0).state_dict())
    with pytest.raises(ValueError, match="contains several networks") as refused:
        choose(under("student.", one) | under("teacher.", plus_one(one)), shown="two.pth")
    fitting = "resnet18_3x3 or resnet18_cifar or resnet18_cifar_pad2"
    assert f"'student.' ({fitting}) or 'teacher.' ({fitting})" in str(refused.value)


def test_two_networks_of_one_kind_are_refused_with_their_prefixes() -> None:
    tensors = under("student.module.backbone.", SMALL) | under("teacher.backbone.", plus_one(SMALL))
    with pytest.raises(
        ValueError,
        match=r"^dino\.pth contains several networks: choose one with --prefix NAME, where NAME is "
        r"'student\.module\.backbone\.' \(small\) or 'teacher\.backbone\.' \(small\)\.$",
    ):
        choose(tensors, shown="dino.pth")
    for wanted in ("teacher", "teacher.", "teacher.backbone", "teacher.backbone."):
        match = choose(tensors, shown="dino.pth", prefix=wanted)
        assert match.prefix == "teacher.backbone."
        assert torch.equal(match.state(tensors)["stem.0.weight"], SMALL["stem.0.weight"] + 1)
    with pytest.raises(ValueError, match=r"^dino\.pth contains several networks"):
        choose(tensors, shown="dino.pth", prefix="backbone")
    with pytest.raises(
        ValueError,
        match=r"^dino\.pth contains a backbone under 'student\.module\.backbone\.' and "
        r"'teacher\.backbone\.', but not under the prefix 'assistant'\.$",
    ):
        choose(tensors, shown="dino.pth", prefix="assistant")


def test_two_networks_of_two_kinds_are_refused_too_and_a_backbone_chooses() -> None:
    tensors = under("student.", SMALL) | under("teacher.", state("resnet18"))
    with pytest.raises(
        ValueError, match=r"where NAME is 'student\.' \(small\) or 'teacher\.' \(resnet18\)\.$"
    ):
        choose(tensors, shown="two.pth")
    assert choose(tensors, shown="two.pth", prefix="teacher").backbone == "resnet18"
    assert choose(tensors, shown="two.pth", backbone="resnet18").prefix == "teacher."


def test_a_network_without_a_prefix_can_be_chosen_next_to_one_with_a_prefix() -> None:
    tensors = SMALL | under("ema.", plus_one(SMALL))
    with pytest.raises(ValueError, match=r"where NAME is '\.' \(small\) or 'ema\.' \(small\)\.$"):
        choose(tensors, shown="x.pth")
    assert choose(tensors, shown="x.pth", prefix=".").prefix == ""
    assert choose(tensors, shown="x.pth", prefix="ema").prefix == "ema."


def test_copies_of_one_network_are_one_and_followers_are_left_out() -> None:
    copies = under("model.", SMALL) | under("state_dict.", SMALL)
    assert choose(copies, shown="x.pth").prefix == "model."
    tensors = under("encoder_k.", plus_one(SMALL)) | under("encoder_q.", SMALL)
    match = choose(tensors, shown="x.pth")
    assert (match.prefix, followers(match, tensors)) == ("encoder_q.", ["encoder_k."])
    assert choose(tensors, shown="x.pth", prefix="encoder_k").prefix == "encoder_k."
    rounded = under("half.", {name: value.half() for name, value in SMALL.items()})
    with pytest.raises(ValueError, match="several networks"):
        choose(rounded | under("model.", SMALL), shown="x.pth")
    alone = under("target.", SMALL)
    assert choose(alone, shown="x.pth").prefix == "target."
    both = under("momentum_a.", SMALL) | under("momentum_b.", plus_one(SMALL))
    with pytest.raises(ValueError, match="several networks"):
        choose(both, shown="x.pth")


@pytest.mark.parametrize("prefix", sorted({each.prefix for each in plan.released().values()}))
def test_the_prefix_of_every_release_still_names_one_network(prefix: str) -> None:
    for outer in ("", "state_dict.", "classy_state_dict.base_model.model.trunk."):
        tensors = under(f"{outer}{prefix}", SMALL) | {f"{outer}module.queue": torch.ones(1)}
        if "encoder" in prefix:
            tensors |= under(f"{outer}module.encoder_k.", plus_one(SMALL))
        match = choose(tensors, backbone="small", prefix=prefix, shown="x.pth")
        assert match.prefix == f"{outer}{prefix}"


# Tensors that are not weights


def quantised(value: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # old files still have such tensors
        return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


def not_weights() -> list[Any]:
    value = SMALL["blocks.0.conv1.weight"]
    cases = (
        ((value * 100).to(torch.int64), "int64, not floating-point of 16 to 64 bits"),
        (value > 0, "bool, not floating-point"),
        (value.to(torch.complex64), "complex64, not floating-point"),
        (value.to(torch.float8_e4m3fn), "float8_e4m3fn, not floating-point"),
        (quantised(value), "qint8, not floating-point"),
        (value.to("meta"), r"without values \(device meta\)"),
        (value.to_sparse(), r"sparse \(torch\.sparse_coo\)"),
        (value[:, :1], r"\(16, 1, 3, 3\), not \(16, 16, 3, 3\)"),
    )
    return [pytest.param(bad, says, id=says[:12]) for bad, says in cases]


@pytest.mark.parametrize(("bad", "says"), not_weights())
def test_the_type_of_a_tensor_is_checked_as_its_shape_is(bad: torch.Tensor, says: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^x\.pth does not fit small: of its 54 tensors, 1 have another shape or type "
        rf"\(blocks\.0\.conv1\.weight is {says}",
    ):
        choose(SMALL | {"blocks.0.conv1.weight": bad}, shown="x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.conv2.weight", "stem.1.running_var"])
def test_values_that_are_not_finite_are_refused_by_name(name: str, value: float) -> None:
    broken = SMALL[name].clone()
    broken.view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"^x\.pth contains values that are not finite, in net\.{name}: "):
        choose(under("net.", SMALL | {name: broken}), shown="x.pth")
    # Nothing reads a head.
    choose(SMALL | {"head.weight": broken}, shown="x.pth")


@pytest.mark.parametrize("counter", [torch.tensor([3]), torch.tensor(3.0), torch.tensor(3, device="meta")])
def test_an_odd_counter_does_not_matter(counter: torch.Tensor) -> None:
    tensors = SMALL | {"stem.1.num_batches_tracked": counter}
    network = backbones.build("small", seed=0)
    network.load_state_dict(choose(tensors, shown="x.pth").state(tensors), strict=False)
    assert torch.equal(network.state_dict()["stem.0.weight"], SMALL["stem.0.weight"])


def shapes_of(name: str, **options: Any) -> Tensors:
    with torch.device("meta"):
        network: nn.Module = getattr(models, name)(**options)
    return network.state_dict()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (shapes_of("resnet34"), "a ResNet-34"),
        (shapes_of("resnet101"), "a ResNet-101"),
        (shapes_of("resnext50_32x4d"), "a ResNeXt"),
        (shapes_of("wide_resnet50_2"), "a wide ResNet"),
        (shapes_of("vit_b_32"), "a vision transformer"),
        ({"conv1.0.weight": torch.ones(32, 3, 3, 3)}, "a ResNet whose stem has several convolutions"),
        ({"stages.0.blocks.0.norm1.weight": torch.ones(64)}, "a pre-activation ResNet"),
        ({"res2.0.conv1.weight": torch.ones(64, 64, 1, 1)}, "a ResNet with Detectron2's names"),
        (
            {"backbone.0.weight": torch.ones(64, 3, 3, 3), "backbone.2.0.conv1.weight": torch.ones(1)},
            r"a ResNet in an nn\.Sequential without its first ReLU",
        ),
    ],
    ids=["34", "101", "next", "wide", "vit", "deep", "preact", "d2", "lightly"],
)
def test_another_network_is_called_by_its_name(tensors: Tensors, says: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^x\.pth contains {says}.*, which is not one of the backbones\. Known: small, "
    ):
        choose(tensors, shown="x.pth")


def test_a_name_with_control_characters_stays_on_one_line() -> None:
    with pytest.raises(ValueError, match="does not fit") as refused:
        choose({"a\nb\x1b[2J": torch.ones(1)}, shown="x.pth")
    assert str(refused.value).isprintable()
