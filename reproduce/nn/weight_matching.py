"""Which backbone is in a file of tensors, and where; what the tensors do not tell is asked.

    match = choose(tensors, shown="encoder.pth")    # raises if several networks fit
    match.state(tensors)                            # the state dict of the backbone

Two networks in a file must be told apart by a prefix, and two backbones with the same tensors by a name. A
network that follows the trained one (FOLLOWERS) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from reproduce.lazy import torch
from reproduce.messages import InvalidError
from reproduce.nn import backbones
from reproduce.nn.weight_formats import listed, printable
from reproduce.nn.weight_layouts import LAYOUTS, Layout, unknown_network

if TYPE_CHECKING:
    from torch import Tensor

FOLLOWERS = ("encoder_k", "target", "momentum")
"""Words in the names of networks that follow the trained one. MoCo's key encoder and BYOL's target are
skipped in favour of the network that they follow, as in facebookresearch/moco main_lincls.py and in section
3.1. The output says so."""
COUNTERS = "num_batches_tracked"
"""Suffix of BatchNorm's counters, which no evaluation reads and which old checkpoints lack."""
NEAR = 0.1
"""Maximum share of faults of a network that is a backbone with a few wrong tensors."""
NO_PREFIX = "."
"""Prefix in the settings that means tensors without any."""


class Expected(NamedTuple):
    """A tensor that a backbone needs."""

    shape: tuple[int, ...]
    counter: bool
    """True for a counter of BatchNorm."""


@dataclass(frozen=True)
class Match:
    """Comparison of a backbone with the tensors whose names begin with `prefix`."""

    backbone: str
    layout: Layout
    prefix: str
    expected: Mapping[str, Expected]
    """Tensors of the backbone by its own names."""
    missing: tuple[str, ...]
    """Names of missing tensors in the file, except counters."""
    wrong: tuple[str, ...]
    """Tensors with another shape or type, each with what it is and should be."""
    extra: tuple[str, ...]
    """Names of tensors within the backbone's parts that it does not have, such as those of a deeper network.
    Heads are other parts."""
    num_of_other_types: int
    """Number of tensors among `wrong` whose shape is right."""

    @property
    def share_of_faults(self) -> float:
        """Number of faults relative to the number of tensors."""
        return (len(self.missing) + len(self.wrong) + len(self.extra)) / len(self.expected)

    @property
    def share_of_other_shapes(self) -> float:
        """The same without tensors whose shape is right: their type tells nothing about the network."""
        return self.share_of_faults - self.num_of_other_types / len(self.expected)

    @property
    def fits(self) -> bool:
        return self.share_of_faults == 0

    @property
    def follows(self) -> bool:
        """True if the network follows the trained one."""
        return any(word in self.prefix for word in FOLLOWERS)

    def name(self, ours: str) -> str:
        """Return the name in the file of a tensor of the backbone."""
        return self.prefix + self.layout.theirs(ours)

    def state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the backbone by its own names; counters may be missing or left out."""
        named = ((name, tensors.get(self.name(name)), each) for name, each in self.expected.items())
        return {
            name: tensor
            for name, tensor, each in named
            if tensor is not None and not (each.counter and (tensor.shape != each.shape or tensor.is_meta))
        }

    def unused(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Return the names of the tensors that the backbone does not use."""
        used = {self.name(name) for name in self.expected}
        return [name for name in tensors if name not in used]

    def check_values(self, tensors: Mapping[str, Tensor], shown: str) -> None:
        """Raise InvalidError if a value is not finite, which would make every feature meaningless."""
        broken = [
            self.name(name) for name, value in self.state(tensors).items() if not torch.isfinite(value).all()
        ]
        if broken:
            raise InvalidError(
                f"{shown} contains values that are not finite, in {listed(broken)}: pass a checkpoint from "
                "before the training diverged."
            )


def choose(tensors: Mapping[str, Tensor], *, backbone: str = "", prefix: str = "", shown: str) -> Match:
    """Return the only place and the only backbone that fit a file.

    Args:
        backbone: name of the backbone. Empty for the one that fits.
        prefix: prefix of its tensors, or some parts of it. Empty for the one under which it fits.
        shown: name of the file in messages.

    Raises:
        ValueError: nothing fits, a value is not finite, or several networks fit. The message lists them, and
            names the options that choose.
    """
    names = [backbone] if backbone else backbones.names()
    every = [match for name in names for match in matches(name, tensors)]
    within = _within([match for match in every if match.fits], prefix)
    if not within:
        raise InvalidError(_refusal(every, tensors, backbone, prefix, shown))
    places = _places(within, tensors, keep_followers=bool(prefix))
    if len(places) > 1:
        raise InvalidError(_several_places(places, shown))
    (fitting,) = places
    if len(fitting) > 1:
        raise InvalidError(_several_backbones(fitting, shown))
    fitting[0].check_values(tensors, shown)
    return fitting[0]


def followers(chosen: Match, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of the networks that follow the chosen one."""
    if chosen.follows:
        return []
    return [match.prefix for match in matches(chosen.backbone, tensors) if match.fits and match.follows]


def matches(backbone: str, tensors: Mapping[str, Tensor]) -> list[Match]:
    """Return the possible places of the backbone in a file, at least one.

    A place is possible if the name of the backbone's first tensor follows its prefix.
    """
    expected = _expected(backbone)
    first, found = next(iter(expected)), []
    for layout in LAYOUTS:
        if layout.fits(backbone):
            theirs = layout.theirs(first)
            found += [
                _match(backbone, layout, name.removesuffix(theirs), tensors)
                for name in tensors
                if name == theirs or name.endswith((f".{theirs}", f"/{theirs}"))
            ]
    return found or [_match(backbone, LAYOUTS[0], "", tensors)]


@cache
def _expected(backbone: str) -> Mapping[str, Expected]:
    with torch.device("meta"):
        state = backbones.build(backbone, seed=0).state_dict()
    return {name: Expected(tuple(value.shape), name.endswith(COUNTERS)) for name, value in state.items()}


def _match(backbone: str, layout: Layout, prefix: str, tensors: Mapping[str, Tensor]) -> Match:
    expected = _expected(backbone)
    theirs = {layout.theirs(name): each for name, each in expected.items()}
    needed = {prefix + name: each.shape for name, each in theirs.items() if not each.counter}
    missing = [name for name in needed if name not in tensors]
    wrong = [
        f"{printable(name)} is {fault}"
        for name, shape in needed.items()
        if name in tensors and (fault := _fault(tensors[name], shape))
    ]
    parts = {name.partition(".")[0] for name in theirs}
    under = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    extra = [prefix + name for name in under if name not in theirs and name.partition(".")[0] in parts]
    shaped = sum(name in tensors and tuple(tensors[name].shape) == shape for name, shape in needed.items())
    num_of_other_types = shaped - (len(needed) - len(missing) - len(wrong))
    return Match(
        backbone, layout, prefix, expected, tuple(missing), tuple(wrong), tuple(extra), num_of_other_types
    )


def _fault(tensor: Tensor, shape: tuple[int, ...]) -> str:
    """Return what is wrong with a tensor of weights, or "" if nothing is."""
    if tuple(tensor.shape) != shape:
        return f"{tuple(tensor.shape)}, not {shape}"
    if tensor.is_meta:
        return "without values (device meta)"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"{str(tensor.dtype).removeprefix('torch.')}, not floating-point of 16 to 64 bits"
    return ""


def _within(matching: list[Match], wanted: str) -> list[Match]:
    """Return the matches under the wanted prefix, or under one that contains its parts."""
    if not wanted:
        return matching
    if wanted == NO_PREFIX:
        return [match for match in matching if not match.prefix]
    wanted = wanted if wanted.endswith(("/", ".")) else f"{wanted}."
    exact = [match for match in matching if match.prefix == wanted]
    return exact or [match for match in matching if f".{wanted}" in f".{match.prefix}"]


def _places(
    fitting: list[Match], tensors: Mapping[str, Tensor], *, keep_followers: bool
) -> list[list[Match]]:
    """Return the matches of each network in a file; two copies of the same values are one.

    Args:
        keep_followers: False to leave out networks that follow another one.
    """
    trained = [match for match in fitting if keep_followers or not match.follows] or fitting
    places: dict[str, list[Match]] = {}
    for match in trained:
        places.setdefault(match.prefix, []).append(match)
    different: list[list[Match]] = []
    for place in places.values():
        if not any(_same(place[0], other[0], tensors) for other in different):
            different.append(place)
    return different


def _same(one: Match, other: Match, tensors: Mapping[str, Tensor]) -> bool:
    """Return True if two places have the same backbone with the same values."""
    pairs = (
        (tensors[one.name(name)], tensors[other.name(name)])
        for name, each in one.expected.items()
        if not each.counter
    )
    return one.backbone == other.backbone and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def _several_places(places: Iterable[Sequence[Match]], shown: str) -> str:
    found = [
        f"'{printable(place[0].prefix) or NO_PREFIX}' ({' or '.join(match.backbone for match in place)})"
        for place in places
    ]
    return (
        f"{shown} contains several networks: choose one with --prefix NAME, where NAME is "
        f"{' or '.join(found)}."
    )


def _several_backbones(fitting: Iterable[Match], shown: str) -> str:
    found = [f"{match.backbone} ({backbones.SAME_TENSORS[match.backbone]})" for match in fitting]
    return (
        f"{shown} fits several backbones, and its tensors do not tell which: choose one with "
        f"--backbone NAME, where NAME is {' or '.join(found)}."
    )


def _refusal(
    every: list[Match], tensors: Mapping[str, Tensor], backbone: str, prefix: str, shown: str
) -> str:
    """Return one line with the expectations of a backbone and the content of a file."""
    known = f"Known: {', '.join(backbones.names())}."
    if prefix and (fitting := [match for match in every if match.fits]):
        places = dict.fromkeys(f"'{printable(match.prefix) or NO_PREFIX}'" for match in fitting)
        what = backbone or "a backbone"
        return f"{shown} contains {what} under {' and '.join(places)}, but not under the prefix '{prefix}'."
    best = min(every, key=lambda match: (match.share_of_other_shapes, match.share_of_faults))
    if best.share_of_faults > NEAR and (family := unknown_network(tensors)):
        return f"{shown} contains {family}, which is not {backbone or 'one of the backbones'}. {known}"
    faults = ", ".join(_faults(best))
    found = listed(f"{printable(name)} {tuple(value.shape)}" for name, value in tensors.items())
    better = "" if backbone else f" No other backbone fits better. {known}"
    names = f" with the names of {best.layout.title}" if best.layout.title else ""
    return (
        f"{shown} does not fit {best.backbone}{names}: of its {len(best.expected)} tensors, {faults}; "
        f"the file contains {len(tensors)}: {found}.{better}"
    )


def _faults(match: Match) -> Iterator[str]:
    for names, what in (
        (match.missing, "are missing"),
        (match.wrong, "have another shape or type"),
        (match.extra, "are unexpected"),
    ):
        if names:
            yield f"{len(names)} {what} ({listed(names)})"
