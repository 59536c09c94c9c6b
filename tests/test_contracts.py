"""Contracts that every component keeps.

The tests find each method, protocol, data set, table, backbone and launcher, so a new file is tested without
a change to this one.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import pytest
import torch
from toys import CPU, PRETRAIN, batch

import reproduce
from reproduce.data.augmentation import Augmentation
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.data.synthetic import SyntheticFolder, SyntheticVOC2007
from reproduce.data.synthetic_detection import SyntheticCOCO2017, SyntheticVOC0712
from reproduce.methods.method import Method
from reproduce.methods.msbreg import MSBReg
from reproduce.nn import backbones
from reproduce.nn.encoder import Encoder
from reproduce.nn.heads import Head, Heads
from reproduce.nn.optimizers import LARC, LARS, SGD, Adam, Optimizer
from reproduce.nn.weights import Weights
from reproduce.plan import SCALES, Request, table_names
from reproduce.protocols.detection import ENGINES, Detection
from reproduce.protocols.protocol import Protocol
from reproduce.protocols.svm import LinearSVM
from reproduce.settings import Limits, Settings, field_types, limited_types
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.train import build_network, encoder_of, start

ROOT = Path(__file__).parent.parent
C = TypeVar("C")


def modules(package: str) -> list[ModuleType]:
    """Return every module of a package."""
    found = importlib.import_module(package)
    return [
        importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(found.__path__)
    ]


def classes(module: ModuleType, base: type[C]) -> list[type[C]]:
    """Return the public classes that a module defines on top of `base`."""
    own = (value for key, value in vars(module).items() if inspect.isclass(value) and not key.startswith("_"))
    return [
        cls for cls in own if issubclass(cls, base) and cls is not base and cls.__module__ == module.__name__
    ]


def components(package: str, base: type[C]) -> list[type[C]]:
    """Return the classes on top of `base` that the modules of a package define."""
    return [cls for module in modules(package) for cls in classes(module, base)]


MODULES = [module.name for module in pkgutil.walk_packages(reproduce.__path__, "reproduce.")]
METHODS = components("reproduce.methods", Method)
PROTOCOLS = [cls for cls in components("reproduce.protocols", Protocol) if "name" in vars(cls)]
SEVERAL_LABELS = (LinearSVM,)
"""Protocols for data sets with several labels for each image."""
DATASETS = components("reproduce.data", Dataset)
WITH_BOXES = components("reproduce.data", DetectionDataset)
EVERY_COMPONENT = sorted(
    {cls for name in MODULES for cls in classes(importlib.import_module(name), Settings)},
    key=lambda cls: cls.__qualname__,
)


def test_components_are_found() -> None:
    assert {"BYOL", "MSBReg"} <= {cls.__name__ for cls in METHODS}
    assert {"LinearEvaluation", "NearestNeighbours", "AlignmentUniformity"} <= {
        cls.__name__ for cls in PROTOCOLS
    }
    names = {cls.__name__ for cls in DATASETS}
    assert {
        "STL10",
        "ImageNet",
        "ImageNet100",
        "Imagenette",
        "VOC2007",
        "Places205",
        "INaturalist2018",
    } <= names
    assert {
        f"Synthetic{layout}" for layout in ("Folder", "STL10", "VOC2007", "Places205", "INaturalist2018")
    } <= names
    assert {"VOC0712", "COCO2017", "SyntheticVOC0712", "SyntheticCOCO2017"} <= {
        cls.__name__ for cls in WITH_BOXES
    }


def test_no_two_components_share_a_name_and_each_has_its_own() -> None:
    bases = (Method, Protocol, Dataset, Detection, DetectionDataset, Optimizer)
    named = [cls for cls in EVERY_COMPONENT if cls not in bases]
    assert all("name" in vars(cls) for cls in named), (
        "a component without a name of its own would take its parent's"
    )
    assert not {name: number for name, number in Counter(cls.name for cls in named).items() if number > 1}


@pytest.mark.parametrize("cls", EVERY_COMPONENT)
def test_a_component_is_frozen_takes_keywords_and_says_what_it_is(cls: type[Settings]) -> None:
    assert is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), (
        "a dataclass without a docstring gets its signature"
    )
    assert all(field.kw_only for field in fields(cls))


def documented(name: str) -> Iterator[tuple[str, bool]]:
    """Yield (Class.field, has a docstring) for the settings that a file defines."""
    for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(name)))):
        if not isinstance(node, ast.ClassDef) or "dataclass" not in "".join(
            map(ast.unparse, node.decorator_list)
        ):
            continue
        following = [*node.body[1:], ast.Pass()]
        for statement, after in zip(node.body, following, strict=True):
            if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation):
                said = (
                    isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and isinstance(after.value.value, str)
                )
                yield f"{name}.{node.name}.{ast.unparse(statement.target)}", said


@pytest.mark.parametrize(
    "package", ["reproduce.methods", "reproduce.protocols", "reproduce.detection", "reproduce.nn"]
)
def test_each_setting_has_a_line_with_its_source(package: str) -> None:
    for module in modules(package):
        if classes(module, Settings):
            assert not [field for field, said in documented(module.__name__) if not said]


def with_all_terms(cls: type[Method], norm: Literal["batchnorm", "layernorm", "ws"] = "batchnorm") -> Method:
    """Return the method at its smallest, with all terms of its loss and with tiny heads if it has heads."""
    method = cls().smaller("smoke")
    names = {field.name for field in fields(method)}
    changes: dict[str, Any] = {name: 0.1 for name in names if name.startswith("lambda_")}
    if "heads" in names:
        changes["heads"] = Heads(hidden=16, output=8, norm=norm)
    return replace(method, **changes)


@pytest.mark.parametrize("norm", ["batchnorm", "layernorm", "ws"])
@pytest.mark.parametrize("cls", METHODS)
def test_a_method_trains_every_parameter_of_its_network_part_by_part(
    cls: type[Method], norm: Literal["batchnorm", "layernorm", "ws"]
) -> None:
    method = with_all_terms(cls, norm)
    network: Any = method.network(backbones.build("small", seed=0), num_images=64, batch_size=16).train()
    draw = torch.Generator().manual_seed(0)
    views = [torch.randn(16, 3, 32, 32, generator=draw) for _ in range(method.num_views)]
    parts = []
    for part in method.parts(network, batch(views, seed=1, step=2)):
        part.loss.backward()
        assert part.embeddings.shape[0] == 16
        assert not part.embeddings.requires_grad
        parts.append(part)
    assert len(parts) == method.num_parts
    assert all(math.isfinite(part.loss.item()) for part in parts)
    assert all(value.shape == () for part in parts for value in part.terms.values())
    assert len({tuple(part.terms) for part in parts}) == 1
    for name, parameter in network.online.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all()
    trained = {id(parameter) for parameter in network.online.parameters()}
    assert not [
        name
        for name, parameter in network.named_parameters()
        if id(parameter) not in trained and parameter.grad is not None
    ]

    again = [part.loss.item() for part in method.parts(network, batch(views, seed=1, step=2))]
    assert again == [part.loss.item() for part in parts]  # the noise follows from seed and step


@pytest.mark.parametrize("cls", METHODS)
def test_a_step_in_bfloat16_is_in_float32_outside_of_the_backbones(cls: type[Method]) -> None:
    spec = PRETRAIN.replace("method", with_all_terms(cls)).replace("precision", "bfloat16")
    network, _ = start(replace(spec, batch_size=16), CPU, 64)
    convolutions: list[torch.dtype] = []
    heads: list[torch.dtype] = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: convolutions.append(output.dtype))
        elif name.startswith(("online.projector", "online.predictor", "target.projector")):
            module.register_forward_hook(
                lambda module, inputs, output: heads.extend([inputs[0].dtype, output.dtype])
            )
    draw = torch.Generator().manual_seed(0)
    views = [torch.randn(16, 3, 32, 32, generator=draw) for _ in range(spec.method.num_views)]
    for part in spec.method.parts(network, batch(views, seed=1)):
        assert not torch.is_autocast_enabled("cpu")
        part.loss.backward()
        assert {part.loss.dtype, part.embeddings.dtype} == {torch.float32}
        assert {term.dtype for term in part.terms.values()} == {torch.float32}
    assert set(convolutions) == {torch.bfloat16}
    assert set(heads) == {torch.float32}
    assert {parameter.grad.dtype for parameter in network.online.parameters()} == {torch.float32}


def test_nothing_but_the_training_of_backbones_leaves_float32() -> None:
    found = [path for path in (ROOT / "reproduce").rglob("*.py") if "autocast(" in path.read_text("utf-8")]
    assert found == [ROOT / "reproduce" / "nn" / "networks.py"]


@pytest.mark.parametrize("cls", METHODS)
def test_what_follows_the_optimiser_says_how_and_moves(cls: type[Method]) -> None:
    method = with_all_terms(cls)
    network: Any = method.network(backbones.build("small", seed=0), num_images=64, batch_size=16)
    step = batch([torch.randn(16, 3, 32, 32) for _ in range(method.num_views)])
    assert len(list(method.parts(network, step))) == method.num_parts
    with torch.no_grad():
        for parameter in network.online.parameters():
            parameter.add_(1.0)
    before = (
        [parameter.clone() for parameter in network.target.parameters()]
        if getattr(network, "target", None) is not None
        else []
    )
    logged = method.after_step(network, step)
    assert all(isinstance(value, float) and math.isfinite(value) for value in logged.values())
    assert bool(logged) == bool(before)
    for old, new in zip(before, network.target.parameters() if before else (), strict=True):
        assert not torch.equal(old, new)


@pytest.mark.parametrize("scale", ["smoke", "small"])
@pytest.mark.parametrize("cls", METHODS)
def test_a_method_is_the_same_at_a_smaller_scale_but_for_its_sizes(
    cls: type[Method], scale: Literal["smoke", "small"]
) -> None:
    method = cls()
    smaller = method.smaller(scale)
    assert type(smaller) is cls
    compared = ("num_views", "lambda_", "heads.norm")
    assert not [
        path
        for path, value in smaller.leaves()
        if path.startswith(compared) and value != dict(method.leaves())[path]
    ]


def limits_in(hint: Any) -> list[Limits | None]:
    """The limits of each number in a type, None for a number without."""
    if get_origin(hint) is Annotated:
        return [get_args(hint)[1]]
    if hint in (int, float):
        return [None]
    return [each for part in get_args(hint) for each in limits_in(part)] if hint is not bool else []


@pytest.fixture(scope="module")
def examples() -> dict[type[Settings], Settings]:
    """One value of each component: its defaults, or what a table has."""
    specs = [spec for table in table_names() for spec in Request(table=table).specs()]
    inside = [*specs, *(getattr(spec, key) for spec in specs for key in field_types(type(spec)))]
    found = {type(each): each for each in inside if isinstance(each, Settings)}
    found[Weights] = Weights(sha256="a")
    found |= {cls: cls(base_lr=0.1) for cls in (SGD, Adam, LARC)}
    found[Head] = Head(widths=(8, 8))
    for cls in EVERY_COMPONENT:
        if "name" in vars(cls) and cls not in found:
            found[cls] = cls()
    return found


@pytest.mark.parametrize("cls", EVERY_COMPONENT)
def test_every_number_of_a_component_has_limits(cls: type[Settings]) -> None:
    found = {key: limits_in(hint) for key, hint in limited_types(cls).items()}
    assert not [key for key, limits in found.items() if None in limits], "see the types in settings.py"


@pytest.mark.parametrize("cls", [cls for cls in EVERY_COMPONENT if "name" in vars(cls)])
def test_a_number_that_makes_no_sense_is_refused_at_construction(
    cls: type[Settings], examples: dict[type[Settings], Settings]
) -> None:
    for key, hint in limited_types(cls).items():
        value, limits = getattr(examples[cls], key), limits_in(hint)
        for wrong in (-1, 0, math.nan, math.inf, -math.inf, 1e39, 10**20):
            if not limits or (wrong in (0, 10**20) and wrong in (limits[0] or ())):
                continue
            place = len(value) - 1 if isinstance(value, tuple) else 0
            changed = (*value[:place], wrong) if isinstance(value, tuple) else wrong
            with pytest.raises((ValueError, TypeError), match=rf"^{cls.name}\.{key} is "):
                examples[cls].replace(key, changed)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, SyntheticFolder, Site]:
    """Return an untrained encoder and a little data set for it."""
    dataset, site = SyntheticFolder(num_train=220, num_val=30), Site(runs=tmp_path_factory.mktemp("scenes"))
    spec = Pretrain(
        method=MSBReg(heads=Heads(hidden=16, output=8)),
        dataset=dataset,
        backbone="small",
        augmentation=Augmentation(),
        optimizer=LARS(base_lr=0.5),
        epochs=0,
        batch_size=32,
    )
    online = build_network(spec).online
    return encoder_of(spec, online), dataset, site


FEW_STEPS = {
    **{
        "engine": "torchvision",
        "batch_size": 4,
        "iterations": 1,
        "drops": (),
        "warmup_iterations": 0,
        "precise_bn_iterations": 1,
    },
    **{"train_sizes": (64,), "test_size": 64, "rpn_train_top": (50, 20), "rpn_test_top": (50, 20), "rois": 8},
}
"""Settings of a detector that is trained for one step."""


@pytest.mark.slow
@pytest.mark.parametrize("cls", PROTOCOLS)
def test_a_protocol_measures_what_it_says(
    cls: type[Protocol], scenes: tuple[Encoder, SyntheticFolder, Site]
) -> None:
    encoder, one_label, site = scenes
    several = cls in SEVERAL_LABELS
    dataset: Any = SyntheticVOC2007(num_trainval=120, num_test=60) if several else one_label
    small = {"k": 5, "epochs": 5, "batch_size": 64, "num_held_out": 20}
    required: dict[str, Any] = {field.name: small[field.name] for field in fields(cls) if field.name in small}
    if isinstance(getattr(cls, "epochs", None), tuple):
        required["epochs"] = (2, 5)
    if several:
        required["costs"] = (0.1, 1.0)
    if issubclass(cls, Detection):
        dataset = (
            SyntheticCOCO2017(num_train=80, num_val=80)
            if cls.masks
            else SyntheticVOC0712(num_trainval=20, num_test=20)
        )
        required = FEW_STEPS | {"anchor_sizes": (8, 16, 32, 48) if cls.fpn else (16, 32, 48)}
    protocol = cls(**required)
    measured = protocol.run(encoder, dataset, site, torch.device("cpu"), 0)
    assert set(measured) == set(protocol.metrics)
    assert all(isinstance(value, float) and math.isfinite(value) for value in measured.values())
    assert all(0 <= value <= 1 for key, value in measured.items() if key.startswith(("top", "map")))
    again = 1 if protocol.deterministic else 0
    assert protocol.run(encoder, dataset, site, torch.device("cpu"), again) == measured


def test_a_given_encoder_is_evaluated_once_if_the_seed_changes_nothing() -> None:
    for name, seeds in (("table4", 1), ("table2", 3)):
        found = Request(table=name, scale="paper", baselines="released").build()
        runs = [ours.runs(3) for *_, ours in found.measured() if isinstance(ours.spec.encoder, Weights)]
        assert runs
        assert {tuple(run.seed for run in each) for each in runs} == {tuple(range(seeds))}, name


def test_every_detection_engine_is_called_alike() -> None:
    engines = [importlib.import_module(f"reproduce.detection.{engine}") for engine in ENGINES]
    for function in ("check", "check_for", "fine_tune"):
        assert len({str(inspect.signature(getattr(engine, function))) for engine in engines}) == 1


@pytest.mark.parametrize("cls", DATASETS)
def test_a_data_set_describes_itself(cls: type[Dataset]) -> None:
    dataset = cls()
    assert dataset.title
    assert dataset.size <= dataset.resize
    assert dataset.size <= dataset.canvas
    assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))
    assert dataset.test_split not in (dataset.train_split, dataset.pretrain_split)
    for key in ("pretrain_split", "train_split", "test_split"):
        with pytest.raises(
            ValueError,
            match=rf"^{cls.name} has no {key} 'tset'\. Known: {re.escape(', '.join(cls.splits))}\.$",
        ):
            replace(dataset, **{key: "tset"})


UNSET = r"^The data root '(\w+)' is not set: add `\1 = .* under \[data\] in .*\. Layout: .*\. Get it: .*\.$"


@pytest.mark.parametrize("cls", DATASETS)
def test_a_data_set_is_there_or_says_what_is_missing_and_where_to_get_it(
    cls: type[Dataset], tmp_path: Path
) -> None:
    small = {field.name: 30 for field in fields(cls) if field.name.startswith("num_")}
    dataset, site = cls(**small), Site(runs=tmp_path)
    if small:
        for split in (dataset.pretrain_split, dataset.train_split, dataset.test_split):
            assert len(dataset.load(split, site)) >= 30
        return
    for split in (dataset.pretrain_split, dataset.test_split):
        with pytest.raises(LookupError, match=UNSET):
            dataset.load(split, site)
    with pytest.raises(LookupError) as caught:
        dataset.load(dataset.train_split, site)
    key = str(caught.value).split("'")[1]
    with pytest.raises(LookupError, match=rf"^The data root '{key}' is .*nowhere, which is not a folder"):
        dataset.load(dataset.train_split, Site(runs=tmp_path, data={key: tmp_path / "nowhere"}))


@pytest.mark.parametrize("cls", WITH_BOXES)
def test_a_data_set_with_boxes_describes_itself(cls: type[DetectionDataset]) -> None:
    dataset = cls()
    assert dataset.title
    assert len(set(dataset.classes)) == len(dataset.classes) > 1
    assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))
    assert dataset.test_split != dataset.train_split
    for key in ("train_split", "test_split"):
        with pytest.raises(
            ValueError, match=rf"^{cls.name} has no {key} 'tset'\. Known: {', '.join(cls.splits)}\.$"
        ):
            replace(dataset, **{key: "tset"})


@pytest.mark.parametrize("cls", WITH_BOXES)
def test_a_data_set_with_boxes_is_there_or_says_what_is_missing(
    cls: type[DetectionDataset], tmp_path: Path
) -> None:
    small = {field.name: len(cls.classes) for field in fields(cls) if field.name.startswith("num_")}
    dataset, site = cls(**small), Site(runs=tmp_path)
    for split in (dataset.train_split, dataset.test_split):
        if small:
            read = dataset.load(split, site)
            assert read.classes == dataset.classes
            assert len(set(read.category_ids)) == len(read.classes)
            assert len({picture.id for picture in read.pictures}) == len(read.pictures) > 1
            assert all(picture.file.is_file() for picture in read.pictures)
            assert {each.label for picture in read.trainable for each in picture.instances} == set(
                range(len(read.classes))
            )
            assert read.origin.exists()
            assert dataset.load(split, site).digest == read.digest
            continue
        with pytest.raises(LookupError, match=UNSET) as caught:
            dataset.load(split, site)
        key = str(caught.value).split("'")[1]
        with pytest.raises(LookupError, match=rf"^The data root '{key}' is .*nowhere, which is not a folder"):
            dataset.check_root(Site(runs=tmp_path, data={key: tmp_path / "nowhere"}))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", table_names())
def test_a_table_can_be_planned_at_every_scale(table: str, scale: str) -> None:
    request = Request(table=table, scale=scale)
    built = request.build()
    assert (built.name, built.scale) == (table, scale)
    specs = request.specs()
    assert len({spec.id for spec in specs}) == len(specs)
    for spec in specs:
        json.dumps(dict(spec.leaves()), default=str)
        assert isinstance(spec, (Pretrain, Evaluate))
    for _, _, ours in built.measured():
        assert ours.spec.encoder.backbone in backbones.names()
        assert ours.metric in ours.spec.protocol.metrics
        assert type(ours.spec.protocol) in PROTOCOLS
        assert type(ours.spec.dataset) in (*DATASETS, *WITH_BOXES)
        assert isinstance(ours.spec.encoder, Weights) or type(ours.spec.encoder.method) in METHODS
    before = Request(table=table, scale="paper").build()
    for row in built.rows:
        for key, cell in row.cells.items():
            emptied = cell.ours is None and before.cell(row.label, key).ours is not None
            assert not emptied or cell.why_not_ours, (
                f"{row.label}, {key} is not run at the scale {scale} and does not say why"
            )


@pytest.mark.parametrize("name", backbones.names())
def test_a_backbone_pools_images_to_the_features_that_it_names(name: str) -> None:
    backbone = backbones.build(name, seed=0).eval()
    with torch.no_grad():
        pooled = backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert pooled.shape == (2, backbone.num_features)
    assert pooled.isfinite().all()


@pytest.mark.parametrize("module", modules("reproduce.launch"), ids=lambda module: module.__name__)
def test_a_launcher_without_jobs_has_no_failures(module: ModuleType, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    site = Site(runs=tmp_path, device="cpu")
    assert module.launch([], site, events.append) == {}
    assert module.device(site)[0] == "CPU"
    assert module.at_once(site) >= 1
    assert events == []
    assert not list(tmp_path.iterdir())
