"""OBoW: a student predicts a teacher's bags of visual words (Gidaris et al., 2021, arXiv 2012.11552).

Source: valeoai/obow @ 3758504 obow/builder_obow.py, main_obow.py, config/.

View 0 is the teacher's, and the others are the student's: first crops, then patches. At each level l, the
words in the teacher's map of view 0 are a distribution y_l over K words c_lk, without gradient. The student
predicts it from f, the pooled features of one of its views, with weights w_lk = head_l(c_lk):

    p_l = softmax_k(kappa f . w_lk)
    L = sum over crops and patches of the mean over views of the mean over levels of KL(y_l || p_l)

The mean over images is left out. f is not normalised, and w_lk are unit vectors. The teacher is a moving
average of the student's backbone. `nn/words.py` contains y, the heads, and the words, which are renewed in
each step.

The official network normalises over all crops as one batch, and over all patches as another, on all
processes. Each of the two is a part of the loss. The teacher's view is a third batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost
from reproduce.nn.maps import FROM_THE_END
from reproduce.settings import Count, Fraction, Limits, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.words import WordNetwork

HIDDEN: Final = 2
"""Units of a head's hidden layer for each feature (obow builder_obow.py `num_channels_hidden`)."""


LEAST: Final = 5
"""Places along each side of a map: a border of one, and 3 that are averaged (obow builder_obow.py)."""


@dataclass(frozen=True, kw_only=True)
class OBoW(Method, name="obow"):
    """Settings of OBoW."""

    num_views: int = 8
    """One view of the teacher, 2 crops and 5 patches (obow config/ImageNetFull/ResNet50_OBoW_full.yaml)."""
    num_crops: Count = 2
    """Views after the first that are crops; those after them are patches
    (obow config/ImageNetFull/ResNet50_OBoW_full.yaml)."""
    levels: tuple[Literal["conv4", "conv5"], ...] = ("conv4", "conv5")
    """Maps of the teacher that words describe (obow config/ImageNetFull/ResNet50_OBoW_full.yaml)."""
    num_words: Annotated[int, Limits(2, 2**20)] = 8192
    """K of each level, a multiple of the batch (obow config/ImageNetFull/ResNet50_OBoW_full.yaml)."""
    inverse_temperature: Positive = 15.0
    """delta: inverse temperature of the words, before its division by the mean distance to the nearest word
    (obow config/ImageNetFull/ResNet50_OBoW_full.yaml `inv_delta`). 10 for a ResNet-18."""
    distance_decay: Fraction = 0.99
    """Decay rate of the mean distance (obow builder_obow.py)."""
    scale: Positive = 8.0
    """kappa (obow config/ImageNetFull/ResNet50_OBoW_full.yaml `kappa`). 5 for a ResNet-18."""
    tau: Fraction = 0.99
    """Decay rate of the teacher at the first step, which rises to 1 (obow
    config/ImageNetFull/ResNet50_OBoW_full.yaml `alpha`, `alpha_cosine`)."""

    def check(self) -> None:
        if self.num_crops >= self.num_views:
            raise ValueError(
                f"obow.num_crops is {self.num_crops}, but of {self.num_views} views the student has only "
                f"{self.num_views - 1}: set it to at most {self.num_views - 1}."
            )
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"obow.levels is {self.levels}: at least one level is expected, each once.")

    @property
    def num_patches(self) -> int | None:
        return self.num_views - 1 - self.num_crops

    @property
    def view_groups(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the views that share the statistics of BatchNorm: the crops, then any patches."""
        crops = tuple(range(1, 1 + self.num_crops))
        patches = tuple(range(1 + self.num_crops, self.num_views))
        return (crops, patches) if patches else (crops,)

    @property
    def num_parts(self) -> int:
        return len(self.view_groups)

    @property
    def recomputes(self) -> bool:
        return False  # the views of a part share the statistics of BatchNorm

    def passes(self, view: int) -> float:
        return 3.0 if view else 1.0  # the teacher's view has no backward pass

    def layout(self, num_features: int) -> Layout:
        hidden = HIDDEN * num_features
        widths = [num_features // (2 if level == "conv4" else 1) for level in self.levels]
        heads = sum(width * hidden + 2 * hidden + (hidden + 1) * num_features for width in widths)
        # Words, both hidden layers, and w before and after its normalisation, with the gradient of one part.
        of_words = sum(width + 2 * hidden + 3 * num_features for width in widths)
        predicted = len(widths) * 2 * self.num_words  # the logarithm of p, and y
        return cost.Layout(
            cost.Block(0),
            cost.Block(heads, outputs=predicted),
            has_target=True,
            kept=cost.FLOAT * sum(self.num_words * width + 1 for width in widths),
            per_step=cost.FLOAT * self.num_words * of_words,
        )

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return OBoW with fewer words, a choice, and otherwise with the settings of a ResNet-18.

        Those are from obow config/ImageNet20/ResNet18_OBoW_full.yaml. At smoke scale, the map of the last
        stage is too small to cut its border, and conv4 is the only level.
        """
        of_resnet18 = replace(self, inverse_temperature=10.0, scale=5.0)
        if scale == "small":
            return replace(of_resnet18, num_words=1024)
        return replace(of_resnet18, num_words=128, levels=("conv4",))

    def side(self, scale: Literal["smoke", "small"]) -> int | None:
        """Return 96 at small scale, where the map of conv5 is 6 x 6; at 64 it would be 4 x 4."""
        return 96 if scale == "small" else None

    def check_for(self, *, batch_size: int, num_images: int | None = None) -> None:
        """Raise ValueError if the words are not a multiple of the batch."""
        if self.num_words % batch_size:
            raise ValueError(
                f"obow.num_words is {self.num_words}, which is not a multiple of {batch_size}: each of the "
                f"{batch_size} images of a step replaces one word. Choose a multiple of batch_size."
            )

    def check_side(self, side: int, *, backbone: str) -> None:
        """Raise ValueError if a map of the teacher's view is too small to contain a new word."""
        network = cost.network(backbone)
        if network is None:  # the first step refuses a map that is too small (`nn/words.py`)
            return
        least = {level: network.least_size(LEAST, stage) for level, stage in FROM_THE_END.items()}
        needed = max(least[level] for level in self.levels)
        if side < needed:
            fitting = ",".join(level for level in least if side >= least[level])
            raise ValueError(
                f"dataset.size is {side}, but obow needs maps of at least {LEAST} x {LEAST}, which "
                f"{' and '.join(self.levels)} of {backbone} have from {needed} pixels on: set dataset.size "
                f"to at least {needed}{f', or method.levels to {fitting}' if fitting else ''}."
            )

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> WordNetwork:
        from reproduce.nn.words import WordNetwork

        return WordNetwork(
            backbone,
            levels=self.levels,
            num_words=self.num_words,
            hidden=HIDDEN * backbone.num_features,
        )

    def parts(self, network: WordNetwork, batch: Batch) -> Iterator[Part]:
        y = network.targets(
            batch.views[0],
            inverse_temperature=self.inverse_temperature,
            decay=self.distance_decay,
            seed=batch.seed,
            step=batch.step,
        )
        for group, w in zip(self.view_groups, network.weights(self.num_parts), strict=True):
            f = network.online(*(batch.views[view] for view in group)).z  # (views of the group x n, dim)
            losses = [divergence(y_l, self.scale * f @ w_l.T) for y_l, w_l in zip(y, w, strict=True)]
            terms = {f"L_{level}": loss for level, loss in zip(self.levels, losses, strict=True)}
            yield Part(torch.stack(losses).mean(), terms, f[: batch.num_images].detach())

    def after_step(self, network: WordNetwork, batch: Batch) -> dict[str, float]:
        """Queue the new words, and move the teacher.

        The official code moves the teacher before the targets of the next step, at that step's rate.
        """
        network.advance(batch.step)
        return network.follow(self.tau, step=batch.step + 1, num_steps=batch.num_steps)


def divergence(y: Tensor, logits: Tensor) -> Tensor:
    """Return the mean of KL(y || softmax(logits)) over views and images.

    Args:
        y: distributions, (n, K).
        logits: predictions of V views, (V n, K): all images of the first view, then of the second, ...
    """
    expected = y.repeat(len(logits) // len(y), 1)
    return F.kl_div(F.log_softmax(logits, dim=1), expected, reduction="batchmean")
