"""What the two detection protocols share: an encoder is fine-tuned inside a detector and measured by average
precision.

Settings are for a batch of 16 images, as the sources give them; with another `batch_size` the learning rate
grows in proportion and the schedule shrinks (`Schedule`). An engine is a module of `reproduce/detection` with
three functions:

    check(site)                                 # LookupError if the engine cannot run here
    check_for(protocol, backbone, dataset)      # ValueError if it cannot run with these settings anywhere
    fine_tune(protocol, encoder, dataset, train, test, site, device, seed, watch) -> {"ap": ..., ...}
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from reproduce.data.detection import DetectionDataset
from reproduce.messages import InvalidError
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Watch
from reproduce.settings import Settings
from reproduce.site import Site

if TYPE_CHECKING:
    import torch

    from reproduce.nn.encoder import Encoder

REFERENCE_BATCH = 16
"""Images per step for which rates and iterations are given (both sources)."""
ENGINES = {"detectron2": "Detectron2", "torchvision": ""}
"""What each needs that the suite's own requirements do not install, as printed."""
AT_LEAST_1 = (
    *("batch_size", "iterations", "group", "train_sizes", "test_size", "max_size", "anchor_sizes"),
    *("rpn_train_top", "rpn_test_top", "rois", "box_resolution", "max_detections"),
)
"""Settings that are a count or a size, or a tuple of such, which then has one at least."""
FRACTIONS = ("gamma", "warmup_factor", "flip", "score_threshold")
"""Settings from 0 to 1."""
IN_TURN = (
    "Where --set changes both, {} comes before iterations for a shorter training, after it for a longer one."
)


class Schedule(NamedTuple):
    """What an engine trains by, after scaling to the batch."""

    lr: float
    iterations: int
    drops: tuple[int, ...]
    """Iterations at which the rate is multiplied by `gamma`."""
    warmup_iterations: int


@dataclass(frozen=True, kw_only=True)
class Detection(Protocol):
    """Settings of both; a subclass gives the values and the architecture."""

    engine: Literal["detectron2", "torchvision"] = "detectron2"
    """Whose detector: the paper's, or torchvision's, which needs no installation, differs in many details and
    does not stand for it."""

    batch_size: int = REFERENCE_BATCH
    """Images per step over all devices."""
    base_lr: float
    """Peak learning rate at a batch of 16."""
    iterations: int
    """Steps of training at a batch of 16."""
    drops: tuple[int, ...]
    """Steps at which the rate falls, at a batch of 16."""
    gamma: float = 0.1
    """Factor of each fall."""
    warmup_iterations: int
    """Steps of linear warm-up at a batch of 16."""
    warmup_factor: float = 1e-3
    """The rate that warm-up starts from, as a fraction (detectron2/config/defaults.py)."""
    momentum: float = 0.9
    """The same file."""
    weight_decay: float = 1e-4
    """The same file."""
    norm_weight_decay: float = 0.0
    """Of the parameters of normalisation (the same file)."""

    train_sizes: tuple[int, ...]
    """Shorter side of a training image in pixels, one drawn for each."""
    test_size: int = 800
    """Shorter side of a test image (detectron2/config/defaults.py)."""
    max_size: int = 1333
    """Longer side, at most (the same file)."""
    flip: float = 0.5
    """Probability of a horizontal flip of a training image (the same file)."""
    group: int = 2
    """Images of one orientation that are shown together: those of one of 8 GPUs
    (detectron2/data/common.py)."""

    freeze_at: int = 0
    """Stages of the backbone that are not trained; none (facebookresearch/moco
    detection/configs/Base-RCNN-C4-BN.yaml)."""
    norm: str = "SyncBN"
    """BatchNorm over all devices, each place of each image alike (the same file until 2020-11, when MoCo's
    numbers were published; it has since had `naiveSyncBN`, the mean of the devices' statistics: the same on
    one device)."""
    precise_bn_iterations: int = 200
    """Batches from which BatchNorm's test statistics are computed after training, 0: none
    (detectron2/config/defaults.py, enabled)."""
    stride_in_1x1: bool = False
    """Whether a bottleneck's stride is in its first convolution; torchvision's is in the 3x3 one (moco's
    ...24k_moco.yaml)."""

    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Sides of square anchors in pixels (detectron2/config/defaults.py)."""
    rpn_train_top: tuple[int, int]
    """Proposals of a training image before and after non-maximum suppression."""
    rpn_test_top: tuple[int, int]
    """The same of a test image."""
    rois: int = 512
    """Proposals of an image on which the heads are trained (detectron2/config/defaults.py)."""
    box_resolution: int
    """Side of the grid of features that is pooled for a box."""
    score_threshold: float = 0.05
    """Detections below are dropped (detectron2/config/defaults.py)."""
    max_detections: int = 100
    """Of a test image (the same file)."""

    takes: ClassVar[type[Settings]] = DetectionDataset
    masks: ClassVar[bool]
    """Whether masks are predicted."""
    fpn: ClassVar[bool]
    """Whether the backbone is a feature pyramid (else C4)."""
    benchmark: ClassVar[Literal["voc", "coco"]]
    """Whose rules score."""

    @classmethod
    def accepts(cls, dataset: type[Settings]) -> bool:
        return issubclass(dataset, DetectionDataset) and dataset.benchmark == cls.benchmark

    @property
    def shared_batch(self) -> int:
        return self.batch_size if self.engine == "detectron2" else 0

    def check(self) -> None:
        for key in AT_LEAST_1:
            value = getattr(self, key)
            if min(value if isinstance(value, tuple) else [value], default=0) < 1:
                raise ValueError(f"{self.name} takes {key} of at least 1, not {value}.")
        for key in FRACTIONS:
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{self.name} takes {key} from 0 to 1, not {getattr(self, key):g}.")
        for key in ("freeze_at", "precise_bn_iterations"):
            if getattr(self, key) < 0:
                raise ValueError(f"{self.name} takes {key} of at least 0, not {getattr(self, key)}.")
        if (
            not self.base_lr > 0
            or not 0 <= self.momentum < 1
            or min(self.weight_decay, self.norm_weight_decay) < 0
        ):
            raise ValueError(f"{self.name} takes base_lr > 0, 0 <= momentum < 1 and weight decays >= 0.")
        if list(self.drops) != sorted(set(self.drops)) or any(
            not 0 < drop < self.iterations for drop in self.drops
        ):
            raise ValueError(
                f"{self.name} takes drops that ascend between 0 and iterations, not {self.drops} with {self.iterations} iterations. "
                + IN_TURN.format("drops")
            )
        if not 0 <= self.warmup_iterations <= self.iterations:
            raise ValueError(
                f"{self.name} takes 0 <= warmup_iterations <= iterations, not {self.warmup_iterations} of {self.iterations}. "
                + IN_TURN.format("warmup_iterations")
            )

    @property
    def caveat(self) -> str:
        parts = []
        if self.engine != "detectron2":
            parts.append(
                "Detection is by torchvision's models, which are another protocol than Detectron2's: the numbers do not stand for it."
            )
        if self.batch_size != REFERENCE_BATCH:
            schedule = self.schedule
            parts.append(
                f"Detection: batch {self.batch_size} in place of {REFERENCE_BATCH}, so by the linear rule learning rate {schedule.lr:g} "
                f"and {schedule.iterations} iterations."
            )
        return " ".join(parts)

    @property
    def length(self) -> int:
        return self.schedule.iterations

    @property
    def schedule(self) -> Schedule:
        """Scaled to the batch by the linear rule, as Detectron2 does for other numbers of GPUs
        (engine/defaults.py, auto_scale_workers)."""
        scale = self.batch_size / REFERENCE_BATCH
        return Schedule(
            lr=self.base_lr * scale,
            iterations=max(1, round(self.iterations / scale)),
            drops=tuple(round(drop / scale) for drop in self.drops),
            warmup_iterations=round(self.warmup_iterations / scale),
        )

    def rate(self, iteration: int) -> float:
        """The learning rate of the step number `iteration`, from 0 (detectron2/solver/lr_scheduler.py,
        WarmupMultiStepLR)."""
        lr, _, drops, warmup = self.schedule
        lr *= self.gamma ** sum(iteration >= drop for drop in drops)
        if iteration >= warmup:
            return lr
        return lr * (self.warmup_factor + (1 - self.warmup_factor) * iteration / warmup)

    @property
    def requirement(self) -> str:
        return ENGINES[self.engine]

    def check_for(self, dataset: DetectionDataset, backbone: str) -> None:
        self._engine.check_for(self, backbone, dataset)

    def check_data(self, dataset: DetectionDataset, site: Site, *, fetch: bool = True) -> None:
        self._engine.check(site)

    def run(
        self,
        encoder: Encoder,
        dataset: DetectionDataset,
        site: Site,
        device: torch.device,
        seed: int,
        watch: Watch = Watch(),
    ) -> dict[str, float]:
        """Returns average precisions as fractions; checkpoints are kept in the folder of `watch`, and an
        interrupted run goes on from them.

        Raises:
            LookupError: the engine is not here.
            ValueError: the images cannot be trained or measured on.
            FloatingPointError: the loss is no longer finite.
        """
        train, test = dataset.load(dataset.train_split, site), dataset.load(dataset.test_split, site)
        watch.tag_data(dataset.train_split, train.digest)
        watch.tag_data(dataset.test_split, test.digest)
        if all(each.crowd or each.difficult for picture in test.pictures for each in picture.instances):
            raise InvalidError(
                f"{test.origin}: the images of {dataset.test_split} show no object that counts: there is nothing to measure."
            )
        measured: dict[str, float] = self._engine.fine_tune(
            self, encoder, dataset, train, test, site, device, seed, watch
        )
        return measured

    @property
    def _engine(self) -> Any:
        return importlib.import_module(f"reproduce.detection.{self.engine}")
