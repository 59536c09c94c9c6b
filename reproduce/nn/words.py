"""Visual words of a teacher's maps, and the network of a student that predicts them.

Source: valeoai/obow @ 3758504 obow/builder_obow.py.

    y = max over places of softmax_k(-(delta / d) ||t - c_k||^2), divided by its sum
    d <- decay d + (1 - decay) mean over places of min_k ||t - c_k||^2
    w = (L2 ReLU BN L1 c hat) hat

t are the places of a map of the teacher without its border, c_k the K words of this level. d is the mean of
all processes, and moves before the step uses it. Words are a queue: each image of a step adds one word,
which is a random place of its map after 3 x 3 averaging, and the oldest words leave. New words and the moved
d take effect at the end of the step, as the step predicts the old words. Words and d belong to the state of
the network, so a checkpoint contains them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from reproduce.messages import InvalidError
from reproduce.nn import distributed, seeds
from reproduce.nn.maps import Level, channels
from reproduce.nn.networks import Network, Online, Target
from reproduce.nn.queue import Queue

if TYPE_CHECKING:
    from torch import Generator, Tensor

BORDER = 1
"""Width of the border that is cut off each map."""
AVERAGED = 3
"""Side of the square of places whose mean is a new word."""
START = 0.5
"""d before the first step."""


class Words(Queue):
    """The words of one level, and the mean distance to the nearest word; the same in all processes."""

    distance: Tensor
    """d, a scalar."""

    def __init__(self, num_words: int, channels: int) -> None:
        """Draw the words, max(0, normal), from torch's global random state."""
        super().__init__(num_words, channels)
        self.register_buffer("distance", torch.tensor(START))
        self._newest: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def initial(num_rows: int, dim: int) -> Tensor:
        return torch.randn(num_rows, dim).clamp_(min=0)

    @torch.no_grad()
    def bags(
        self, features: Tensor, *, inverse_temperature: float, decay: float, generator: Generator
    ) -> Tensor:
        """Return y of each image, (n, num_words), and keep the new words and the moved d for `advance`.

        Args:
            features: map of this process's images, (n, channels, height, width).
            inverse_temperature: delta.
            decay: weight of the old d.
            generator: source of the places of new words, the same in all processes.

        Raises:
            InvalidError: the map is too small.
        """
        inner = _inner(features)
        places = inner.flatten(2).transpose(1, 2).flatten(0, 1)  # (n places, channels)
        distances = torch.addmm(self.rows.square().sum(dim=1), places, self.rows.T, alpha=-2)
        distances += places.square().sum(dim=1, keepdim=True)
        nearest = distances.amin(dim=1).mean()
        nearest = distributed.gather(nearest[None]).mean()
        distance = decay * self.distance + (1 - decay) * nearest
        self._newest = _sampled(inner, generator), distance
        codes = distances.mul_(-inverse_temperature / distance).softmax(dim=1)
        return F.normalize(codes.view(len(features), -1, len(self.rows)).amax(dim=1), p=1, dim=1)

    @torch.no_grad()
    def advance(self, step: int) -> None:
        """End step number `step`: queue its words, and move d."""
        assert self._newest is not None, "no map was passed in this step"
        words, distance = self._newest
        self.push(words, at=step * len(words) * distributed.world_size())
        self.distance.copy_(distance)
        self._newest = None


def _inner(features: Tensor) -> Tensor:
    """Return a map without its border.

    Raises:
        InvalidError: less than one square of places is left.
    """
    side, least = min(features.shape[2:]), AVERAGED + 2 * BORDER
    if side < least:
        raise InvalidError(
            f"obow cuts the border off each map and averages {AVERAGED} x {AVERAGED} places, but a map is "
            f"only {features.shape[2]} x {features.shape[3]}: choose larger views or lower levels, so that "
            f"maps are at least {least} x {least}."
        )
    return features[:, :, BORDER:-BORDER, BORDER:-BORDER]


def _sampled(inner: Tensor, generator: Generator) -> Tensor:
    """Return a random place of each image's averaged map, (n, channels)."""
    averaged = F.avg_pool2d(inner, AVERAGED, stride=1).flatten(2)  # (n, channels, places)
    n = len(averaged)
    drawn = torch.randint(averaged.shape[2], (n * distributed.world_size(),), generator=generator)
    mine = drawn[distributed.rank() * n :][:n].to(averaged.device, non_blocking=True)
    return averaged[torch.arange(n, device=averaged.device), :, mine]


class WordNorm(nn.Module):
    """Batch normalisation over the words, with a weight and a bias.

    All processes have the same words, so it is not synchronised, and it is not an `nn.BatchNorm1d`, which
    would be. It has no running statistics: nothing uses the head without its words.
    """

    def __init__(self, width: int) -> None:
        """Create it for `width` units."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (num_words, width)."""
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


class WordHead(nn.Sequential):
    """Head that turns words into w, the weights with which a student predicts them."""

    def __init__(self, channels: int, hidden: int, dim: int) -> None:
        """Create the head: (num_words, channels) -> (num_words, dim)."""
        super().__init__(
            nn.Linear(channels, hidden, bias=False),
            WordNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )

    def forward(self, words: Tensor) -> Tensor:
        """Return the w of words of any length, unit vectors."""
        w: Tensor = super().forward(F.normalize(words, dim=1))  # type: ignore[no-untyped-call]
        return F.normalize(w, dim=1)


class Student(Online):
    """The backbone, whose pooled features are the embeddings, and a head for the words of each level."""

    def __init__(self, backbone: nn.Module, heads: Sequence[WordHead]) -> None:
        """Create the student; views of one forward pass share the statistics of BatchNorm."""
        super().__init__(backbone, nn.Identity(), joint="all")
        self.heads = nn.ModuleList(heads)


class Teacher(Target):
    """A follower of the student's backbone, whose outputs are maps."""

    def __init__(self, backbone: nn.Module, levels: tuple[Level, ...]) -> None:
        """Copy the backbone; `levels` are the maps that it returns."""
        super().__init__(backbone, nn.Identity())
        self.levels = levels

    def forward(self, view: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the map of each level, (n, channels, height, width)."""
        return self.maps(view)


class WordNetwork(Network):
    """A student, a teacher that follows its backbone, and the teacher's words of each level."""

    def __init__(
        self, backbone: nn.Module, *, levels: tuple[Level, ...], num_words: int, hidden: int
    ) -> None:
        """Create the heads, then the words of each level.

        Args:
            levels: maps of the teacher that are described by words.
            num_words: words of each level.
            hidden: width of the heads' hidden layer.
        """
        super().__init__(backbone, nn.Identity())
        self.target = Teacher(backbone, levels)
        widths, dim = [channels(backbone, level) for level in levels], cast("int", backbone.num_features)
        self.online = Student(backbone, [WordHead(width, hidden, dim) for width in widths])
        self.words = nn.ModuleList(Words(num_words, width) for width in widths)

    def _words(self) -> Iterator[Words]:
        for words in self.words:
            assert isinstance(words, Words)
            yield words

    @torch.no_grad()
    def targets(
        self, view: Tensor, *, inverse_temperature: float, decay: float, seed: int, step: int
    ) -> list[Tensor]:
        """Return y of each level for this process's images, (n, num_words) each; see `Words.bags`.

        Args:
            view: the teacher's view, (n, 3, size, size).
        """
        assert self.target is not None
        return [
            words.bags(
                features,
                inverse_temperature=inverse_temperature,
                decay=decay,
                generator=seeds.generator("words", seed, step, level),
            )
            for level, (words, features) in enumerate(zip(self._words(), self.target(view), strict=True))
        ]

    def weights(self, times: int) -> Iterator[list[Tensor]]:
        """Yield w of each level `times` times, each for a loss with a backward pass of its own.

        The heads are passed once in each direction. The last backward pass takes the gradients of all.
        """
        heads = distributed.unwrapped(self.online).heads
        whole = [head(words.rows) for head, words in zip(heads, self._words(), strict=True)]
        copies = [w.detach().requires_grad_() for w in whole]
        for _ in range(times - 1):
            yield copies
        for w, copied in zip(whole, copies, strict=True):
            w.register_hook(lambda grad, copied=copied: grad if copied.grad is None else grad + copied.grad)
        yield whole

    def advance(self, step: int) -> None:
        """End step number `step`: queue the words of each level."""
        for words in self._words():
            words.advance(step)
