"""What decides a number: frozen, typed settings, from the whole run down to one augmentation probability.

Everything that can move a result is a field of a `Settings` class, and nothing else is: where data lie, how many workers load them and
where the run is logged belong to the site (`site.py`). A run is named by the hash of all its settings (`identity.py`).

    run = Pretrain(method=MSBReg(num_views=4), dataset=STL10(), backbone="resnet18_3x3", ...)
    run.id                                   # '5f0c2a9d1e77'
    run.replace("method.lambda_b", 0.25)     # a changed copy, with another id

Standard library only: building every table of the paper imports neither torch nor mlflow.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from reproduce import identity

S = TypeVar("S", bound="Settings")


class Settings:
    """Base class of all settings: `@dataclass(frozen=True, kw_only=True) class X(Settings, name="x")`.

    `name` is the component's part in every id, so moving or renaming the class renames no run. Values are checked against the annotations
    when the object is made: a whole number given for a float becomes one, anything else of a wrong type is a TypeError that names it.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name

    def __post_init__(self) -> None:
        for key, hint in field_types(type(self)).items():
            object.__setattr__(self, key, _checked(getattr(self, key), hint, f"{self.name}.{key}"))
        self.check()

    def check(self) -> None:
        """Raises ValueError for values that are of the right type and still make no sense; called once, at construction."""

    @property
    def id(self) -> str:
        """The name of these settings: 12 hexadecimal digits."""
        return identity.digest(self)

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Every setting as (dotted path, value), nested settings by their component's name first."""
        for key in field_types(type(self)):
            value, path = getattr(self, key), f"{prefix}{key}"
            if isinstance(value, Settings):
                yield path, value.name
                yield from value.leaves(f"{path}.")
            else:
                yield path, value

    def replace(self, path: str, value: Any) -> Self:
        """A copy in which the setting at the dotted `path` is `value`.

        Raises:
            LookupError: there is no such setting.
            TypeError, ValueError: the setting does not take that value.
        """
        key, _, rest = path.partition(".")
        if key not in field_types(type(self)):
            raise LookupError(unknown("setting", path, [name for name, _ in self.leaves()]))
        if rest:
            child = getattr(self, key)
            if not isinstance(child, Settings):
                raise LookupError(f"'{key}' of {self.name} has no settings of its own, so there is no '{path}'.")
            value = child.replace(rest, value)
        return dataclasses.replace(self, **{key: value})  # type: ignore[type-var]

    def field_type(self, path: str) -> Any:
        """The declared type of the setting at the dotted `path`."""
        key, _, rest = path.partition(".")
        return getattr(self, key).field_type(rest) if rest else field_types(type(self))[key]


def field_types(cls: Any) -> dict[str, Any]:
    """The fields of a settings class and their resolved annotations, in order of declaration."""
    return _field_types(cls)


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def unknown(kind: str, asked: str, known: typing.Iterable[str]) -> str:
    """One line for a name that does not exist: what was asked, the nearest that does, and what would work."""
    known = list(known)
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There is no {kind} '{asked}'.{hint} Known: {', '.join(known) or 'none'}."


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` if it fits the annotation `hint` (a whole number as a float where one is wanted), else TypeError."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        for option in options:
            if type(value) is option:
                return value
        for option in options:
            try:
                return _checked(value, option, where)
            except TypeError:
                continue
    elif origin is tuple:
        kinds = typing.get_args(hint)
        if isinstance(value, tuple):
            if len(kinds) == 2 and kinds[1] is Ellipsis:
                return tuple(_checked(item, kinds[0], where) for item in value)
            if len(kinds) == len(value):
                return tuple(_checked(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    elif origin is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise ValueError(f"{where} is {value!r}: choose one of {', '.join(map(str, typing.get_args(hint)))}.")
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is type(None):
        if value is None:
            return None
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    raise TypeError(f"{where} is {value!r}: a {expected} is expected, not a {type(value).__name__}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LARS(Settings, name="lars"):
    """Layer-wise adaptive rate scaling with a warm-up and a cosine decay (paper, section 7.1)."""

    base_lr: float
    """Peak rate = base_lr x batch_size / 256 x K (section 7.1)."""
    scale_with_views: bool = True
    """Whether the peak rate has the factor K of section 7.1 (BYOL's own schedule has none)."""
    weight_decay: float = 1e-5
    """Section 7.1; biases and normalisation parameters are exempt."""
    momentum: float = 0.9
    """google-deepmind/deepmind-research byol/configs/byol.py."""
    trust_coefficient: float = 1e-3
    """google-deepmind/deepmind-research byol/utils/optimizers.py."""
    warmup_epochs: int = 10
    """Linear, from 0 (section 7.1)."""

    def peak_lr(self, batch_size: int, num_views: int) -> float:
        """The learning rate after warm-up, for `batch_size` images per step over all devices."""
        return self.base_lr * batch_size / 256 * (num_views if self.scale_with_views else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Settings, name="pretrain"):
    """One self-supervised pretraining run."""

    method: Settings
    """A method of `reproduce/methods`: its settings, losses and target network."""
    dataset: Settings
    """A data set of `reproduce/data`; its pretraining split is used, labels are not."""
    backbone: str
    """A function of `reproduce/nn/backbones.py`."""
    augmentation: Settings
    """The distribution of views (`reproduce/data/views.py`)."""
    optimizer: LARS
    """Rate, decay and warm-up."""
    epochs: int
    """Passes over the images; 0 leaves the random initialisation."""
    batch_size: int = 512
    """Images per step over all devices (section 7.1); each gives K views."""
    precision: typing.Literal["float32", "bfloat16"] = "float32"
    """Of the backbone's arithmetic (autocast); parameters, heads' losses and the optimiser stay in float32."""
    seed: int = 0
    """Initialisation, order of images, views and noise all follow from it."""

    def check(self) -> None:
        if self.epochs < 0 or self.batch_size < 2:
            raise ValueError(f"pretrain takes epochs >= 0 and batch_size >= 2, not {self.epochs} and {self.batch_size}.")

    def needs(self) -> tuple[Pretrain, ...]:
        """The runs that must be finished before this one can start."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights(Settings, name="weights"):
    """An encoder that was trained elsewhere: a released checkpoint, or a file of the user's."""

    backbone: str = "resnet50"
    """A function of `reproduce/nn/backbones.py`."""
    url: str = ""
    """Where it is released; empty: a file that is known by its content alone."""
    sha256: str = ""
    """Of the file; empty: none is published, the one of the first download is recorded and holds from then on."""
    prefix: str = ""
    """What the names of the backbone's tensors begin with; empty: whatever it is under which the backbone fits."""
    size: int = 224
    """Side of the images that it was trained on, in pixels; an evaluation shows it images of this size."""
    resize: int = 256
    """Shorter side of a test image before its centre crop, in pixels."""
    canvas: int = 448
    """Side of the square to which an image is decoded before an augmented view is cropped from it, in pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """What it takes an image's channels to be normalised with, for values from 0 to 1 (ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """The same."""

    def check(self) -> None:
        if not self.url and not self.sha256:
            raise ValueError("weights take the url of a release or the sha256 of a file: neither is given.")

    @property
    def title(self) -> str:
        """As printed: the last two parts of the address, as releases share names such as `checkpoint_0099.pth.tar`, or a file's SHA-256."""
        return "/".join(self.url.split("/")[-2:]) or f"file {self.sha256[:12]}"


GEOMETRY = ("size", "resize", "canvas", "mean", "std")
"""The settings of `Weights` that say which images it expects; every data set of whole images has them, one of detection the last two."""


def geometry(expected: Settings, dataset: Settings) -> dict[str, Any]:
    """Those of the settings GEOMETRY that `dataset` has, with their values in `expected`: weights, or another data set."""
    return {key: getattr(expected, key) for key in GEOMETRY if key in field_types(type(dataset))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Settings, name="evaluate"):
    """One evaluation of one encoder. The encoder's settings are nested, so its id follows from everything upstream."""

    encoder: Pretrain | Weights
    """The pretraining run that leaves it behind, or where it comes from."""
    protocol: Settings
    """An evaluation of `reproduce/protocols`."""
    dataset: Settings
    """The data set whose labelled train and test splits are used."""
    seed: int = 0
    """Initialisation and order of images of what the protocol trains."""

    def needs(self) -> tuple[Pretrain, ...]:
        """The runs that must be finished before this one can start."""
        return (self.encoder,) if isinstance(self.encoder, Pretrain) else ()


Spec = Pretrain | Evaluate
