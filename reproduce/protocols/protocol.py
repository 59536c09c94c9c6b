"""What the evaluation loop asks of a protocol. One file of this folder holds one evaluation: its settings and
how it is run."""

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
    """Base class of the evaluations of an encoder, which is left as it was."""

    takes: ClassVar[type[Settings]] = Dataset
    """The kind of data set that it is run on."""
    wants: ClassVar[str] = "one or more labels for each image"
    """What such a data set has, in words."""

    @classmethod
    def accepts(cls, dataset: type[Settings]) -> bool:
        """Whether it can be run on data sets of that class."""
        return issubclass(dataset, cls.takes)

    @property
    def shared_batch(self) -> int:
        """Where it trains long enough to take as many devices as a pretraining, the images of a step, which
        these share equally; else 0."""
        return 0

    @property
    def length(self) -> int:
        """What its checkpoints count, from begin to end: epochs, or a detector's iterations; 0: it keeps
        none."""
        return 0

    @property
    def caveat(self) -> str:
        """What a table's caption must say of its numbers, in full sentences; empty: nothing."""
        return ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The keys of what `run` returns; most protocols set it as a class attribute."""
        raise NotImplementedError

    @property
    def requirement(self) -> str:
        """What `check_data` looks for, in a word; empty: nothing."""
        return ""

    def passes(self, num_train: int, num_test: int) -> float | None:
        """Images that go forward through the encoder, for estimates of time; one that goes backward, too,
        counts as three. None: not known.

        Args:
            num_train, num_test: images of the splits.
        """
        return None

    def check_for(self, dataset: Any, backbone: str) -> None:
        """Finds out, on any machine, whether it can evaluate encoders of that backbone on `dataset`; most
        take all that they accept.

        Raises:
            ValueError: it cannot; the message says what would work.
        """

    def check_data(self, dataset: Any, site: Site, *, fetch: bool = True) -> None:
        """Finds out, before anything starts, whether what the protocol needs beside the images of `dataset`
        is there; most need nothing.

        Args:
            fetch: whether what is to be fetched is fetched now; else it counts as here.

        Raises:
            LookupError, ValueError: it is not; the message says how to get it.
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
        """Measures `encoder` on the labelled splits of `dataset`; accuracies are fractions.

        Every process of a run calls it and gets the same numbers, which do not depend on how many processes
        there are. Nothing is ever selected on the test split.

        Args:
            seed: decides the initialisation and the order of images of what the protocol trains, and its
                augmented views.
            watch: follows what takes long.

        Raises:
            ValueError: the data set and the settings do not fit together; raised before any work where it can
                be known.
        """
        raise NotImplementedError
