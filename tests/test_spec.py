"""Settings and their identities: every setting counts, nothing else does, and names stay what they are."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import runpy
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from reproduce import identity
from reproduce.nn.optimizers import LARS
from reproduce.plan import SCALES, Request, table_names
from reproduce.settings import Fraction, Limits, Momentum, Positive, Settings
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Wheel(Settings, name="wheel"):
    spokes: int = 32
    pressure: float | None = None
    tread: Literal["slick", "knobbly"] = "slick"


@dataclass(frozen=True, kw_only=True)
class Bicycle(Settings, name="bicycle"):
    gears: int
    wheel: Wheel = Wheel()
    weight: float = 9.5
    brakes: bool = True
    ratios: tuple[float, ...] = (1.0, 2.5)
    size: tuple[int, int] = (54, 56)
    owner: str = "Zoë"

    def check(self) -> None:
        if self.gears < 1:
            raise ValueError(f"bicycle needs gears >= 1, not {self.gears}.")


# The canonical text of two settings, written by hand from the rules, and the ids of finished runs with them.
BICYCLE = (
    '{"brakes":true,"component":"bicycle","gears":3,"owner":"Zo\\u00eb","ratios":[1.0,2.5],"size":[54,56],"weight":9.5,'
    '"wheel":{"component":"wheel","pressure":null,"spokes":32,"tread":"slick"}}'
)
WHEEL = '{"component":"wheel","pressure":4.25,"spokes":28,"tread":"knobbly"}'
IDS = {BICYCLE: "c606df5a76e4", WHEEL: "a3fee58ee9a9"}


def test_an_id_is_the_hash_of_the_canonical_text_and_does_not_change() -> None:
    assert Bicycle(gears=3).id == IDS[BICYCLE]
    assert Wheel(spokes=28, pressure=4.25, tread="knobbly").id == IDS[WHEEL]
    for text, stored in IDS.items():
        assert hashlib.sha256(text.encode()).hexdigest()[:12] == stored


# Every setting counts


def settings_in(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every (dotted path, value, type) inside, by the dataclasses' own fields."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        if identity.NAME_ONLY in field.metadata:  # it names something in titles, and is not a setting
            continue
        item, where = getattr(value, field.name), path + field.name
        yield where, item, hints[field.name]
        if dataclasses.is_dataclass(item):
            yield from settings_in(item, f"{where}.")


SPLITS = ("train", "val", "test", "2007_val", "train2017", "val2017")
"""Values to try; a setting that accepts only a few words accepts at least two of them."""


def other_values(value: Any, hint: Any) -> Iterator[Any]:
    """Yield values that differ from `value`, for a setting of that type; some of them may make no sense."""
    if isinstance(value, Settings):
        another = type(f"Other{type(value).__name__}", (type(value),), {}, name=f"other_{value.name}")
        yield another(**{field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif typing.get_origin(hint) is Literal:
        yield from (choice for choice in typing.get_args(hint) if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value - 1, value * 2, value / 2 if isinstance(value, float) else value + 2)
    elif isinstance(value, str):
        yield from (other for other in (f"{value}x", *SPLITS) if other != value)
    elif isinstance(value, tuple):
        kind = typing.get_args(hint)[0] if typing.get_args(hint) else None
        for index, item in enumerate(value):
            yield from ((*value[:index], other, *value[index + 1 :]) for other in other_values(item, kind))
        if not value:
            yield (typing.get_args(hint)[0](1),)
        if typing.get_origin(kind) is Literal:
            yield value[:-1]  # of values that differ, no other one may replace another
    elif value is None:
        for kind in typing.get_args(hint):
            if isinstance(kind, type) and kind is not type(None):
                yield kind() if issubclass(kind, Settings) else kind(1)


def mutated(spec: Settings, path: str, value: Any, hint: Any) -> Settings:
    """Return `spec` with another value at `path`."""
    tried = []
    for other in other_values(value, hint):
        try:
            return spec.replace(path, other)
        except ValueError as problem:
            tried.append(str(problem))
    raise AssertionError(f"No other value of {path} ({value!r}) is accepted: {tried}")


def has_one_value(path: str, hint: Any) -> bool:
    """Return True if a setting accepts a single value.

    It is a choice of one, or an `every_second` or `first` leaves it to the distribution of all views.
    """
    covering = ("every_second", "first", "small", "patches", "draft")
    inside = tuple(f"{part}.{key}" for part in ("every_second", "first") for key in covering)
    return (typing.get_origin(hint) is Literal and len(typing.get_args(hint)) == 1) or path.endswith(inside)


def components(spec: Settings) -> tuple[tuple[str, str], ...]:
    """Return the paths and types of a run's settings, without their values."""
    return tuple((path, type(value).__name__) for path, value, _ in settings_in(spec))


@pytest.mark.slow
@pytest.mark.parametrize("table", table_names())
def test_changing_any_setting_of_a_run_changes_its_id(table: str) -> None:
    specs = [spec for scale in SCALES for spec in Request(table=table, scale=scale).specs()]
    # One run of each kind, as the grid alone would take ten seconds.
    for spec in {components(spec): spec for spec in specs}.values():
        paths = [
            (path, value, hint) for path, value, hint in settings_in(spec) if not has_one_value(path, hint)
        ]
        ids = {mutated(spec, path, value, hint).id for path, value, hint in paths}
        assert spec.id not in ids
        assert len(ids) == len(paths)  # and no two changes come to the same


def test_every_setting_is_listed_once_by_its_path() -> None:
    for table in table_names():
        for spec in Request(table=table).specs():
            listed = [(path, value) for path, value in spec.leaves()]
            assert listed == [
                (path, value.name if isinstance(value, Settings) else value)
                for path, value, _ in settings_in(spec)
            ]


def test_defaults_are_hashed() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Heavier(Settings, name="wheel"):
        spokes: int = 36
        pressure: float | None = None
        tread: Literal["slick", "knobbly"] = "slick"

    assert Heavier().id != Wheel().id
    assert Heavier(spokes=32).id == Wheel().id


def test_a_setting_added_later_counts_only_when_it_is_not_at_its_default() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Lit(Settings, name="wheel"):
        spokes: int = 32
        pressure: float | None = None
        tread: Literal["slick", "knobbly"] = "slick"
        light: bool = identity.added_later(False, "0.2")

    assert Lit().id == Wheel().id
    assert Lit(light=True).id != Wheel().id
    assert Lit(spokes=28).id == Wheel(spokes=28).id


def test_an_evaluation_follows_from_everything_upstream() -> None:
    first, *_, evaluation = Request(table="table8", rows="BYOL").specs()
    assert isinstance(evaluation, Evaluate)
    assert evaluation.needs() == (first,)
    assert isinstance(first, Pretrain)
    assert first.needs() == ()
    later = evaluation.replace("encoder.method.heads.hidden", 513)
    assert later.id != evaluation.id
    assert later.needs()[0].id != first.id


# Nothing else counts


MOVED = """
from dataclasses import dataclass
from typing import Literal
from reproduce.settings import Fraction, Limits, Momentum, Positive, Settings

@dataclass(frozen=True, kw_only=True)
class Rim(Settings, name="wheel"):
    tread: Literal["slick", "knobbly"] = "slick"
    spokes: int = 32
    pressure: float | None = None
"""


def test_a_class_may_move_and_change_its_name_and_the_order_of_its_settings(tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.py"
    moved.write_text(MOVED)
    assert runpy.run_path(str(moved))["Rim"]().id == Wheel().id


def test_another_component_with_the_same_settings_has_another_id() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Hoop(Settings, name="hoop"):
        spokes: int = 32
        pressure: float | None = None
        tread: Literal["slick", "knobbly"] = "slick"

    assert Hoop().id != Wheel().id


def test_a_whole_number_given_for_a_float_is_one() -> None:
    assert Bicycle(gears=3, weight=9).id == Bicycle(gears=3, weight=9.0).id
    assert isinstance(Bicycle(gears=3, weight=9).weight, float)
    assert Bicycle(gears=3, ratios=(1, 2.5)).id == Bicycle(gears=3).id
    assert Wheel(pressure=4).id == Wheel(pressure=4.0).id
    assert Wheel(pressure=0.0).id == Wheel(pressure=-0.0).id


def test_true_is_not_one_and_none_is_not_zero() -> None:
    assert identity.digest((True,)) != identity.digest((1,))
    assert Wheel(pressure=None).id != Wheel(pressure=0.0).id
    assert identity.digest((1, 2)) != identity.digest(((1,), 2))


IDS_OF_TABLE_8 = """
import sys
from reproduce.plan import Request
print(*(spec.id for spec in Request(table="table8", seeds=2).specs()))
assert not {"torch", "numpy", "mlflow", "pandas"} & set(sys.modules)
"""


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_ids_agree_across_processes_and_know_nothing_of_the_site(hash_seed: str, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('runs = "elsewhere"\njobs = 7\nworkers = 3\ndevice = "cuda"\n[data]\nstl10 = "/data"\n')
    environment = {
        "PYTHONHASHSEED": hash_seed,
        "MSBREG_SITE": str(site),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
        "LC_ALL": "C",
    }
    done = subprocess.run(
        [sys.executable, "-c", IDS_OF_TABLE_8],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [spec.id for spec in Request(table="table8", seeds=2).specs()]


def test_no_key_of_the_site_is_a_setting() -> None:
    keys = {field.name for field in dataclasses.fields(Site)}
    for table in table_names():
        for scale in SCALES:
            for spec in Request(table=table, scale=scale).specs():
                assert not keys & {path.split(".")[-1] for path, _ in spec.leaves()}


# What may enter


@dataclass
class Thawed(Settings, name="thawed"):
    spokes: int = 32


@dataclass(frozen=True)
class Nameless:
    spokes: int = 32


@pytest.mark.parametrize(
    "value",
    [
        [1],
        {"a": 1},
        {1},
        frozenset({1}),
        b"1",
        1j,
        Path("runs"),
        object(),
        len,
        Wheel,
        float,
        Thawed(),
        Nameless(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_by_its_place_and_type(value: object) -> None:
    kind = type(value).__name__
    with pytest.raises(TypeError, match=rf"^settings\[1\] is a {kind}[:,]"):
        identity.digest((1, value))

    @dataclass(frozen=True, kw_only=True)
    class Loose(Settings, name="loose"):
        inner: object

    with pytest.raises(TypeError, match=rf"^settings\.inner is a {kind}[:,]"):
        identity.digest(Loose(inner=value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_have_no_identity(value: float) -> None:
    with pytest.raises(TypeError, match=r"^settings\.pressure is -?(nan|inf), but only finite numbers"):
        _ = Wheel(pressure=value).id


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Wheel().spokes = 28


# Wrong values


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gears": "3"}, "bicycle.gears is '3': a int is expected, not a str."),
        ({"gears": 3.0}, "bicycle.gears is 3.0: a int is expected, not a float."),
        ({"gears": True}, "bicycle.gears is True: a int is expected, not a bool."),
        ({"gears": None}, "bicycle.gears is None: a int is expected, not a NoneType."),
        ({"gears": 3, "brakes": 1}, "bicycle.brakes is 1: a bool is expected, not a int."),
        ({"gears": 3, "weight": "9"}, "bicycle.weight is '9': a float is expected, not a str."),
        ({"gears": 3, "weight": True}, "bicycle.weight is True: a float is expected, not a bool."),
        ({"gears": 3, "owner": 5}, "bicycle.owner is 5: a str is expected, not a int."),
        ({"gears": 3, "wheel": "wheel"}, "bicycle.wheel is 'wheel': a Wheel is expected, not a str."),
        (
            {"gears": 3, "ratios": [1.0]},
            "bicycle.ratios is [1.0]: a tuple[float, ...] is expected, not a list.",
        ),
        ({"gears": 3, "ratios": (1.0, "2")}, "bicycle.ratios is '2': a float is expected, not a str."),
        ({"gears": 3, "size": (54,)}, "bicycle.size is (54,): a tuple[int, int] is expected, not a tuple."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_of_a_wrong_type_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Bicycle(**settings)
    assert str(caught.value) == message


def test_a_wrong_choice_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"^wheel\.tread is 'smooth': choose one of slick, knobbly\.$"):
        Wheel(tread="smooth")


def test_an_optional_setting_takes_none_or_a_number() -> None:
    assert Wheel(pressure=None).pressure is None
    with pytest.raises(
        TypeError, match=r"^wheel\.pressure is 'high': a float \| None is expected, not a str\.$"
    ):
        Wheel(pressure="high")


def test_what_makes_no_sense_is_refused_at_construction_and_on_a_changed_copy() -> None:
    with pytest.raises(ValueError, match="gears >= 1, not 0"):
        Bicycle(gears=0)
    with pytest.raises(ValueError, match="gears >= 1, not -2"):
        Bicycle(gears=3).replace("gears", -2)


@dataclass(frozen=True, kw_only=True)
class Bell(Settings, name="bell"):
    volume: Fraction = 0.5
    rings: Annotated[int, Limits(2)] = 2
    loss: Momentum | None = None
    tones: tuple[Positive, ...] = (440.0,)


@dataclass(frozen=True, kw_only=True)
class Horn(Bell, name="horn"):
    volume: float = 1.0
    rings: Annotated[int, Limits(0)] = 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"volume": 1.5}, "volume is 1.5: at most 1 is expected."),
        ({"volume": math.nan}, "volume is nan: a finite number is expected."),
        ({"volume": 10**400}, f"volume is {10**400}: a finite number is expected."),
        ({"rings": 1}, "rings is 1: at least 2 is expected."),
        ({"rings": 10**20}, f"rings is {10**20}: at most 1000000000 is expected."),
        ({"loss": 1}, "loss is 1.0: a value below 1 is expected."),
        ({"tones": (440, 0)}, "tones is 0.0: a value above 0 is expected."),
    ],
)
def test_a_number_outside_its_limits_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^bell\.{re.escape(said)}$"):
        Bell(**wrong)


def test_a_setting_that_is_declared_again_keeps_its_limits_unless_it_has_others() -> None:
    assert (Horn().volume, Horn(volume=0).volume, Horn().rings) == (1.0, 0.0, 0)
    with pytest.raises(ValueError, match=r"^horn\.volume is 2\.0: at most 1 is expected"):
        Horn(volume=2)


def test_the_limits_are_no_part_of_an_id() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Unlimited(Settings, name="bell"):
        volume: float = 0.5
        rings: int = 2
        loss: float | None = None
        tones: tuple[float, ...] = (440.0,)

    assert Unlimited().id == Bell().id


# Changed copies


def test_a_changed_copy_differs_in_one_place() -> None:
    before = Bicycle(gears=3)
    after = before.replace("wheel.spokes", 28)
    assert (after.wheel.spokes, before.wheel.spokes) == (28, 32)
    assert after.replace("wheel.spokes", 32) == before
    assert dict(before.leaves()).keys() == dict(after.leaves()).keys()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gear", "There is no setting 'gear'. Did you mean 'gears'?"),
        ("wheel.spoke", "There is no setting 'spoke'. Did you mean 'spokes'?"),
        ("gears.number", "'gears' of bicycle has no settings of its own, so there is no 'gears.number'."),
    ],
)
def test_a_setting_that_is_not_there_is_named_with_the_nearest(path: str, message: str) -> None:
    with pytest.raises(LookupError) as caught:
        Bicycle(gears=3).replace(path, 1)
    assert str(caught.value).startswith(message)


def test_settings_list_themselves_by_dotted_path() -> None:
    assert list(Bicycle(gears=3).leaves()) == [
        ("gears", 3),
        ("wheel", "wheel"),
        ("wheel.spokes", 32),
        ("wheel.pressure", None),
        ("wheel.tread", "slick"),
        ("weight", 9.5),
        ("brakes", True),
        ("ratios", (1.0, 2.5)),
        ("size", (54, 56)),
        ("owner", "Zoë"),
    ]


def test_settings_list_what_differs_from_their_defaults() -> None:
    assert list(Bicycle(gears=3).changed()) == [("gears", 3)]  # it has no default
    other = Bicycle(gears=3, wheel=Wheel(spokes=28), brakes=False, ratios=(1, 2.5), weight=9.5)
    assert list(other.changed()) == [("gears", 3), ("wheel.spokes", 28), ("brakes", False)]


def test_a_settings_type_is_found_by_its_path() -> None:
    assert Bicycle(gears=3).field_type("wheel.pressure") == float | None
    assert Bicycle(gears=3).field_type("wheel") is Wheel


# The runs of the paper


def test_the_peak_learning_rate_by_hand() -> None:
    assert LARS(base_lr=0.5).peak_lr(512, 4) == 0.5 * 2 * 4
    assert LARS(base_lr=0.5, scale_with_views=False).peak_lr(512, 4) == 0.5 * 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": -1}, "epochs is -1: at least 0 is expected."),
        ({"batch_size": 1}, "batch_size is 1: at least 2 is expected."),
    ],
)
def test_a_pretraining_that_cannot_be_is_refused(wrong: dict[str, int], said: str) -> None:
    run = Request(table="table8", rows="BYOL").specs()[0]
    with pytest.raises(ValueError, match=rf"^pretrain\.{said}$"):
        dataclasses.replace(run, **wrong)
