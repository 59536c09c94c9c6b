"""The maps of a backbone's stages, before they are averaged over space.

    through = Maps(backbone, ("conv4", "conv5"))
    conv4, conv5 = through(images)    # (n, 1024, 14, 14), (n, 2048, 7, 7) of a ResNet-50 at 224 px

The names are those of He et al. (2015), table 1. The average of `conv5` is the output of the backbone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from reproduce.nn.stages import parts

if TYPE_CHECKING:
    from torch import Tensor, nn

Level = Literal["conv4", "conv5"]
"""A stage of a backbone: `conv5` is the last one, `conv4` the one before it."""
FROM_THE_END: dict[str, int] = {"conv4": 2, "conv5": 1}
"""Place of each level among the stages, counted from the last."""


class Maps:
    """A function that passes images through a backbone and returns the maps of some of its stages.

    It is not an `nn.Module`, so a network that keeps it has the same tensors as without it. Stages above the
    highest level are not computed.
    """

    def __init__(self, backbone: nn.Module, levels: tuple[Level, ...]) -> None:
        """Prepare the maps of `levels`, in their order."""
        self._backbone = backbone
        stages = parts(backbone)
        self._places = tuple(len(stages) - FROM_THE_END[level] for level in levels)
        self._stages = stages[: max(self._places) + 1]

    @property
    def training(self) -> bool:
        """True if the backbone is in training."""
        return self._backbone.training

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a map of each level, (n, channels, height, width), from images, (n, 3, size, size)."""
        found: dict[int, Tensor] = {}
        features = images
        for place, stage in enumerate(self._stages):
            features = stage(features)
            found[place] = features
        return tuple(found[place] for place in self._places)


def channels(backbone: nn.Module, level: Level) -> int:
    """Return the number of channels of a level's map."""
    from reproduce.nn.stages import stages

    return stages(backbone)[-FROM_THE_END[level]].channels
