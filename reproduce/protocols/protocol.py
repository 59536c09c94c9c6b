"""The contract between a protocol and the evaluation loop.

A protocol is one evaluation: its settings, and a `run` that measures an encoder with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from reproduce.data.dataset import Dataset
from reproduce.runs.progress import Watch
from reproduce.settings import Settings
from reproduce.site import Site

if TYPE_CHECKING:
    import torch

    from reproduce.nn.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Protocol(Settings):
    """Base class of the evaluations. An evaluation leaves the encoder unchanged."""

    takes: ClassVar[type[Settings]] = Dataset
    """Class of data sets that the protocol runs on."""
    wants: ClassVar[str] = "one or more labels for each image"
    """Description of what such a data set provides, for error messages."""
    needs_projector: ClassVar[bool] = False
    """True if the encoder needs its projector and augmentation, which encoders from elsewhere lack."""

    deterministic: ClassVar[bool] = False
    """True if the seed of an evaluation changes nothing, so that a given encoder is evaluated once."""

    @classmethod
    def accepts(cls, dataset: type[Settings]) -> bool:
        """Return True if the protocol runs on data sets of this class."""
        return issubclass(dataset, cls.takes)

    @property
    def shared_batch(self) -> int:
        """Images per step if training may use as many devices as a pretraining, else 0.

        The devices share the images of a step equally. 0 means that the evaluation is too short to need them.
        """
        return 0

    @property
    def length(self) -> int:
        """Total that the checkpoints count towards: epochs, or iterations of a detector.

        0 if the protocol writes no checkpoints.
        """
        return 0

    @property
    def caveat(self) -> str:
        """Remarks that a table's caption must make about these numbers, in full sentences, or "" if none."""
        return ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Keys of the dictionary that `run` returns. Most protocols set this as a class attribute."""
        raise NotImplementedError

    @property
    def requirement(self) -> str:
        """Name of what `check_data` looks for, or "" if the protocol needs nothing else."""
        return ""

    @property
    def least_images(self) -> tuple[int, str]:
        """Least number of training images, and the setting that decides it."""
        return 1, ""

    def passes(self, num_train: int, num_test: int) -> float | None:
        """Return how many images go forward through the encoder, for time estimates, or None if unknown.

        An image that also goes backward counts as three.

        Args:
            num_train: images of the train split.
            num_test: images of the test split.
        """
        return None

    def check_for(self, dataset: Any, backbone: str) -> None:
        """Check that the protocol can evaluate encoders with this backbone on `dataset`.

        The check gives the same result on every machine. Most protocols can evaluate every data set of a
        class that they accept, if its train split has enough images.

        Raises:
            ValueError: The protocol cannot. The message names what would work.
        """
        least, setting = self.least_images
        known = dataset.num_images(dataset.train_split) if setting else None
        if known is not None and known < least:
            raise ValueError(
                f"{setting} is {getattr(self, setting)}, but the {dataset.train_split} split of "
                f"{dataset.name} has {known} images: choose a lower number with --set."
            )

    def check_data(self, dataset: Any, site: Site, *, fetch: bool = True) -> None:
        """Check, before anything starts, that everything the protocol needs besides the images is available.

        Most protocols need nothing else.

        Args:
            fetch: download missing files now. If False, files that can be downloaded count as available.

        Raises:
            LookupError, ValueError: Something is missing or wrong. The message explains how to get it.
        """

    def run(
        self,
        encoder: Encoder,
        dataset: Any,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Measure `encoder` on the labelled splits of `dataset`. Accuracies are fractions.

        Every process of a run calls this method and gets the same numbers. They do not depend on the number
        of processes. Nothing is ever selected on the test split.

        Args:
            seed: determines the initialisation, the order of the images and the augmented views of everything
                that the protocol trains.
            watch: receives progress and measurements.

        Raises:
            ValueError: The data set and the settings do not fit together. Raised before any work starts if
                this can be known by then.
        """
        raise NotImplementedError
