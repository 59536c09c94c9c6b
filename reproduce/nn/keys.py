"""Settings of the keys that queries are compared with, and of the queue that keeps them.

MoCo and Wang and Isola's runs share them (facebookresearch/moco moco/builder.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from reproduce.nn import cost
from reproduce.nn.heads import Head
from reproduce.settings import Count, Fraction, Limits, Settings

if TYPE_CHECKING:
    from reproduce.nn.key_network import MomentumContrast


@dataclass(frozen=True, kw_only=True)
class Keys(Settings, name="keys"):
    """Rules by which keys are made and kept as negatives."""

    queue: Count = 65536
    """K: keys of earlier steps that are kept, over all devices (facebookresearch/moco main_moco.py)."""
    momentum: Fraction = 0.999
    """m: decay rate of the key network, the same in all steps (facebookresearch/moco main_moco.py)."""
    group: Annotated[int, Limits(2)] = 32
    """Images that share the statistics of BatchNorm.

    They are the images of one GPU: 256 on 8 (facebookresearch/moco README.md), 128 on 4
    (ssnl/moco_align_uniform README.md, HobbitLong/CMC README.md).
    """

    def smaller(self, scale: Literal["smoke", "small"]) -> Keys:
        """Return keys for a smaller data set: a shorter queue and a faster key network.

        The small scale has lightly's values for Imagenette (lightly-ai/lightly imagenette_benchmark.py). The
        values of the smoke scale are choices. Its groups divide batches of 8 and of 16 images. Its queue is
        short, because the first steps, which push queries away from random rows, make all embeddings alike.
        """
        if scale == "small":
            return replace(self, queue=4096, momentum=0.99)
        return replace(self, queue=64, momentum=0.99, group=4)

    def check_for(self, *, batch_size: int, num_images: int | None) -> None:
        """Raise ValueError if the queue or the groups do not fit the batch or the data set."""
        if self.queue % batch_size:
            raise ValueError(
                f"keys.queue is {self.queue}, which is not a multiple of batch_size {batch_size}: choose "
                f"{max(1, self.queue // batch_size) * batch_size}, for example."
            )
        if num_images is not None and self.queue > num_images:
            raise ValueError(
                f"keys.queue is {self.queue}, but the data set has only {num_images} images. Such a queue "
                "always contains a key of the query's own image: choose a much shorter one."
            )
        if batch_size % self.group or batch_size == self.group:
            raise ValueError(
                f"keys.group is {self.group}, but batch_size {batch_size} does not consist of two or more "
                "such groups, so a key would share the statistics of BatchNorm with its query: choose a "
                "smaller divisor of the batch."
            )

    def network(self, backbone: Any, head: Head, *, num_queues: int = 1) -> MomentumContrast:
        """Return the query network around `backbone`, its key network and the queues."""
        from reproduce.nn.key_network import MomentumContrast

        projector = head.build(backbone.num_features)
        return MomentumContrast(
            backbone, projector, dim=head.output, num_rows=self.queue, num_queues=num_queues
        )

    def layout(self, num_features: int, head: Head, *, num_queues: int = 1) -> cost.Layout:
        """Return the sizes of what `network` adds to a backbone with `num_features` features."""
        rows = cost.FLOAT * num_queues * self.queue * head.output
        return cost.Layout(cost.head(num_features, head), has_target=True, kept=rows)
