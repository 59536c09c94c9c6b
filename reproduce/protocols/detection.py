"""Base of the two detection protocols, which fine-tune an encoder inside a detector and score the detector.

A protocol contains the settings. An *engine* trains and tests the detector. The setting `engine` is the name
of a module in `reproduce/detection`; the protocol imports that module when it first needs it and calls three
functions of it:

    check(site)                              raise LookupError if the engine cannot run on this machine
    check_for(protocol, backbone, dataset)   raise ValueError if it cannot run with these settings anywhere
    fine_tune(protocol, encoder, dataset, train, test, site, device, seed, watch)
                                             train, test and return {"ap": ..., ...} as fractions

Settings are given for a batch of 16 images, as in the sources. With another `batch_size`, the learning rate
scales in proportion and the schedule in inverse proportion (`Schedule`).
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from reproduce.data import inventory
from reproduce.data.detection import DetectionDataset
from reproduce.messages import InvalidError
from reproduce.nn import distributed
from reproduce.protocols.protocol import Protocol
from reproduce.runs.progress import Watch
from reproduce.settings import (
    Count,
    CountOrZero,
    Fraction,
    Limits,
    Momentum,
    NotNegative,
    Pixels,
    Positive,
    Settings,
)
from reproduce.site import Site

if TYPE_CHECKING:
    import torch

    from reproduce.nn.encoder import Encoder

logger = logging.getLogger(__name__)

REFERENCE_BATCH = 16
"""Images per step for which rates and iterations are given (both sources)."""
ENGINES = {"detectron2": "Detectron2", "torchvision": ""}
"""Name of what each engine needs beyond the suite's own requirements, as printed."""
ORDER_HINT = (
    "If --set changes both, put {} before iterations for a shorter training and after it for a longer one."
)
"""Advice on changing two settings that depend on each other: each --set is checked in turn."""


class Schedule(NamedTuple):
    """Schedule of a training, scaled to its batch."""

    lr: float
    iterations: int
    drops: tuple[int, ...]
    """Iterations at which the rate is multiplied by `gamma`."""
    warmup_iterations: int


@dataclass(frozen=True, kw_only=True)
class Detection(Protocol):
    """Settings of both detection protocols. A subclass adds values and the architecture."""

    engine: Literal["detectron2", "torchvision"] = "detectron2"
    """Engine that trains the detector: the paper's, or torchvision's. torchvision's needs no extra
    installation but differs in many details, so its numbers cannot replace the paper's."""

    batch_size: Count = REFERENCE_BATCH
    """Images per step over all devices."""
    base_lr: Positive
    """Peak learning rate at a batch of 16."""
    iterations: Count
    """Training steps at a batch of 16."""
    drops: tuple[Count, ...]
    """Steps at which the rate falls, at a batch of 16."""
    gamma: Fraction = 0.1
    """Factor by which the rate falls at each drop."""
    warmup_iterations: CountOrZero
    """Steps of linear warm-up at a batch of 16."""
    warmup_factor: Fraction = 1e-3
    """Fraction of the peak rate at which warm-up starts (detectron2/config/defaults.py)."""
    momentum: Momentum = 0.9
    """Momentum of SGD (detectron2/config/defaults.py)."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of all parameters but those of normalisation (detectron2/config/defaults.py)."""
    norm_weight_decay: NotNegative = 0.0
    """Weight decay of the normalisation parameters (detectron2/config/defaults.py)."""

    train_sizes: tuple[Pixels, ...]
    """Shorter side of a training image in pixels, drawn per image from these."""
    test_size: Pixels = 800
    """Shorter side of a test image in pixels (detectron2/config/defaults.py)."""
    max_size: Pixels = 1333
    """Maximum of the longer side in pixels (detectron2/config/defaults.py)."""
    flip: Fraction = 0.5
    """Probability of flipping a training image horizontally (detectron2/config/defaults.py)."""
    group: Count = 2
    """Images of the same orientation that are shown together: the share of one of 8 GPUs
    (detectron2/data/common.py)."""

    freeze_at: Annotated[int, Limits(0, 5)] = 0
    """Number of backbone stages that are not trained; 0 trains all (facebookresearch/moco
    detection/configs/Base-RCNN-C4-BN.yaml)."""
    norm: str = "SyncBN"
    """Normalisation layers: BatchNorm over all devices, in which every position of every image has equal
    weight. This was the default of detectron2/config/defaults.py until 2020-11, when MoCo's numbers were
    published. Since then it is `naiveSyncBN`, the mean of the devices' statistics, which is the same on
    one device."""
    precise_bn_iterations: CountOrZero = 200
    """Batches used after training to compute BatchNorm's test statistics; 0 skips this step
    (detectron2/config/defaults.py, enabled)."""
    stride_in_1x1: bool = False
    """Position of a bottleneck's stride: True for its first convolution, False for the 3x3 one, as in
    torchvision (moco's ...24k_moco.yaml)."""

    anchor_sizes: tuple[Pixels, ...] = (32, 64, 128, 256, 512)
    """Sides of square anchors in pixels (detectron2/config/defaults.py)."""
    rpn_train_top: tuple[Count, Count]
    """Proposals per training image before and after non-maximum suppression."""
    rpn_test_top: tuple[Count, Count]
    """Proposals per test image before and after non-maximum suppression."""
    rois: Count = 512
    """Proposals per image on which the heads are trained (detectron2/config/defaults.py)."""
    box_resolution: Pixels
    """Side of the feature grid pooled for a box."""
    score_threshold: Fraction = 0.05
    """Minimum score of a detection that is kept (detectron2/config/defaults.py)."""
    max_detections: Count = 100
    """Maximum number of detections per test image (detectron2/config/defaults.py)."""

    takes: ClassVar[type[Settings]] = DetectionDataset
    masks: ClassVar[bool]
    """True if the detector also predicts masks."""
    fpn: ClassVar[bool]
    """True if the backbone is a feature pyramid, False if it is C4."""
    benchmark: ClassVar[Literal["voc", "coco"]]
    """Benchmark whose rules score the detections."""

    @classmethod
    def accepts(cls, dataset: type[Settings]) -> bool:
        return issubclass(dataset, DetectionDataset) and dataset.benchmark == cls.benchmark

    @property
    def shared_batch(self) -> int:
        return self.batch_size if self.engine == "detectron2" else 0

    def check(self) -> None:
        for key in ("train_sizes", "anchor_sizes"):
            if not getattr(self, key):
                raise ValueError(f"{self.name}.{key} is empty: one or more sizes are expected.")
        if list(self.drops) != sorted(set(self.drops)) or any(
            not 0 < drop < self.iterations for drop in self.drops
        ):
            raise ValueError(
                f"{self.name} needs ascending drops between 0 and iterations, "
                f"not {self.drops} with {self.iterations} iterations. " + ORDER_HINT.format("drops")
            )
        if self.warmup_iterations > self.iterations:
            raise ValueError(
                f"{self.name} needs warmup_iterations <= iterations, "
                f"not {self.warmup_iterations} of {self.iterations}. "
                + ORDER_HINT.format("warmup_iterations")
            )

    @property
    def caveat(self) -> str:
        parts = []
        if self.engine != "detectron2":
            parts.append(
                "Detection uses torchvision's models, a different protocol from Detectron2's: "
                "its numbers cannot replace Detectron2's."
            )
        if self.batch_size != REFERENCE_BATCH:
            schedule = self.schedule
            parts.append(
                f"Detection uses a batch of {self.batch_size} images in place of {REFERENCE_BATCH}: by the "
                f"linear rule, the learning rate is {schedule.lr:g}, for {schedule.iterations} iterations."
            )
        return " ".join(parts)

    @property
    def length(self) -> int:
        return self.schedule.iterations

    @property
    def schedule(self) -> Schedule:
        """Schedule scaled to the batch by the linear rule.

        Detectron2 scales in the same way for other numbers of GPUs (engine/defaults.py, auto_scale_workers).
        """
        scale = self.batch_size / REFERENCE_BATCH
        return Schedule(
            lr=self.base_lr * scale,
            iterations=max(1, round(self.iterations / scale)),
            drops=tuple(round(drop / scale) for drop in self.drops),
            warmup_iterations=round(self.warmup_iterations / scale),
        )

    def rate(self, iteration: int) -> float:
        """Return the learning rate at step `iteration`, counted from 0.

        Follows detectron2/solver/lr_scheduler.py, WarmupMultiStepLR.
        """
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
        """Fine-tune and test a detector; return average precisions as fractions.

        Checkpoints are written to the folder of `watch`, and an interrupted run resumes from them.

        Raises:
            LookupError: The engine is not available.
            ValueError: The images cannot be used for training or testing.
            FloatingPointError: The loss is not finite.
        """
        main = distributed.main_process()
        train, found = inventory.load(dataset, dataset.train_split, site, main=main)
        test, also = inventory.load(dataset, dataset.test_split, site, main=main)
        facts = found.tags(dataset.train_split) | also.tags(dataset.test_split)
        watch.record.facts(facts)
        watch = replace(watch, about=inventory.contents(facts))
        if oddities := (*train.oddities, *test.oddities):
            logger.warning("%s", " ".join(oddities))
            watch.record.tag("data_oddities", " ".join(oddities))
        if all(each.crowd or each.difficult for picture in test.pictures for each in picture.instances):
            raise InvalidError(
                f"{test.origin}: no image of {dataset.test_split} shows an object that counts, "
                "so there is nothing to measure."
            )
        measured: dict[str, float] = self._engine.fine_tune(
            self, encoder, dataset, train, test, site, device, seed, watch
        )
        return measured

    @property
    def _engine(self) -> Any:
        """Module of the engine; the docstring of this file lists its functions."""
        return importlib.import_module(f"reproduce.detection.{self.engine}")
