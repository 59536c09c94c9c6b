"""W-MSE: the embeddings of each view are whitened, then compared between views.

Sources: Ermolov et al., Whitening for Self-Supervised Representation Learning (arXiv 2007.06346), section 3;
htdt/self-supervised methods/w_mse.py, methods/whitening.py, for ImageNet tf2/whitening.py.

A random permutation divides the n images of a step into sub-batches of w_size images, the same for all d
views (in this file V = d, the number of views). The rows of a view in a sub-batch are whitened on their own:

    w = L^-1 (z - mu),  L L^T = Sigma    mu and Sigma: mean and covariance of the sub-batch's rows
    L_wmse = 2 / (V (V - 1)) sum_{i < j} mean (2 - 2 cos(w_i, w_j))

The loss is the mean over w_iter permutations. Gradients flow through both views of a pair and through the
whitening.

The permutation is that of the whole batch and follows from the run's seed and the step. All embeddings are
gathered, so the number of processes does not matter. The official TensorFlow loss for ImageNet cuts the views
in order, into sub-batches of 2 x 128 rows. The images of a batch are in random order anyway, so with one
permutation a step that is the same loss.

The loss couples the views with gradients on all sides, so the activations of all V views are in memory. With
`joint` not `all`, `recompute` in the site file keeps those of one view and takes one more forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, Self

from reproduce.lazy import F, torch
from reproduce.methods.method import Batch, Method, Part
from reproduce.nn import cost, distributed, seeds
from reproduce.nn.heads import Head
from reproduce.settings import Count

if TYPE_CHECKING:
    from torch import Tensor

    from reproduce.nn.cost import Layout
    from reproduce.nn.networks import Network


@dataclass(frozen=True, kw_only=True)
class WMSE(Method, name="wmse"):
    """Settings of W-MSE."""

    num_views: int = 4
    """V: 4 in the paper's rows "W-MSE 4", where it is called d; 2 in "W-MSE 2"."""
    w_size: Count = 256
    """Images of a sub-batch, over all processes; at least twice the embedding's dimensions.

    README.md: 256 for 128 dimensions, 128 for 64. The covariance of fewer rows is close to singular.
    """
    w_iter: Count = 1
    """Permutations of a step (README.md: 1 for 4 views, 4 for 2 views on STL-10)."""
    head: Head = Head(widths=(1024, 128))
    """Projector (model.py; README.md: 128 dimensions for STL-10 and ImageNet-100)."""
    joint: Literal["heads", "all"] = "heads"
    """Networks in which the views share BatchNorm statistics.

    heads: each view passes the backbone by itself (methods/w_mse.py). all: the backbone sees all views as one
    batch, as in SimCLR's code, which the ImageNet runs use.
    """

    @property
    def num_parts(self) -> int:
        return 1

    @property
    def recomputes(self) -> bool:
        return self.joint != "all"

    def layout(self, num_features: int) -> Layout:
        return cost.Layout(cost.head(num_features, self.head))

    def smaller(self, scale: Literal["smoke", "small"]) -> Self:
        """Return W-MSE with fewer dimensions, and sub-batches of twice as many images.

        From the paper's 128 dimensions that is 64 at small scale. At smoke scale it is 8, the most that a
        batch of 16 images allows. The head then has torch's own initial weights: LARS hardly moves smaller
        ones in so few steps.
        """
        factor = 2 if scale == "small" else 16
        narrower = self.head.narrower(factor)
        if scale == "small":
            head = replace(self.head, widths=(*self.head.widths[:-1], narrower.output))
        else:
            head = replace(narrower, weight_std=0.0)
        return replace(self, head=head, w_size=max(1, self.w_size // factor))

    def check_for(self, *, batch_size: int, num_images: int | None = None) -> None:
        """Raise ValueError if sub-batches have too few rows, or do not fit into the batch."""
        if self.w_size < 2 * self.head.output:
            raise ValueError(
                f"wmse.w_size is {self.w_size}, too few rows to whiten {self.head.output} dimensions: at "
                f"least {2 * self.head.output} are needed. Increase it or reduce the last of head.widths."
            )
        if batch_size % self.w_size:
            raise ValueError(
                f"batch_size {batch_size} does not divide into sub-batches of wmse.w_size {self.w_size} "
                "images: use a multiple of w_size."
            )

    def network(self, backbone: Any, *, num_images: int, batch_size: int) -> Network:
        from reproduce.nn.networks import Network

        return Network(backbone, self.head.build(backbone.num_features), joint=self.joint)

    def parts(self, network: Network, batch: Batch) -> Iterator[Part]:
        z = network.online(*batch.views).z
        # (V n, d) of this process -> (V, n, d) of all processes
        views = z.unflatten(0, (len(batch.views), -1))
        everyone = distributed.gather(views.transpose(0, 1)).transpose(0, 1)
        try:
            losses = [
                whitened_loss(everyone, sub_batches)
                for sub_batches in self.draws(everyone.shape[1], seed=batch.seed, step=batch.step)
            ]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise FloatingPointError(
                f"The covariance of {self.w_size} embeddings is not positive definite at step "
                f"{batch.step + 1}: they have collapsed or are not finite. A lower base_lr or a longer "
                "warm-up may help."
            ) from None
        loss = torch.stack(losses).mean()
        yield Part(loss, {"L_wmse": loss}, views[0].detach())

    def draws(self, num_images: int, *, seed: int, step: int) -> Iterator[Tensor]:
        """Yield w_iter divisions of the batch: numbers of images, (sub-batches, w_size).

        Args:
            num_images: images of the step over all processes.
            seed: seed of the run.
            step: number of the step.
        """
        for draw in range(self.w_iter):
            order = seeds.shuffled(num_images, seed, step, draw, purpose="whitening")
            yield order.view(-1, self.w_size)


def whitened_loss(views: Tensor, sub_batches: Tensor) -> Tensor:
    """Return the mean over pairs of views and over images of 2 - 2 cos of their whitened rows.

    Args:
        views: embeddings of V views, (V, n, d).
        sub_batches: numbers of the images that are whitened together, (sub-batches, w_size).

    Raises:
        LinAlgError: a covariance is not positive definite.
    """
    rows = views[:, sub_batches.to(views.device, non_blocking=True)]  # (V, sub-batches, w_size, d)
    w = F.normalize(whitened(rows), dim=-1)
    pairs = [2 - 2 * (w[i] * w[j]).sum(dim=-1).mean() for i, j in combinations(range(len(w)), 2)]
    return torch.stack(pairs).mean()


def whitened(x: Tensor) -> Tensor:
    """Return rows with mean 0 and covariance 1: L^-1 (x - mu), (..., n, d) -> (..., n, d).

    L is the Cholesky factor of the covariance, which divides by n - 1 (methods/whitening.py).

    Raises:
        LinAlgError: a covariance is not positive definite.
    """
    centred = x - x.mean(dim=-2, keepdim=True)
    covariance = centred.mT @ centred / (x.shape[-2] - 1)
    factor = torch.linalg.cholesky(covariance)
    w: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
    return w
