"""The engine of the paper: Detectron2, as an installed package or as a source folder.

The site file names the source folder, which does not need to be built. Config, data and weights enter through
Detectron2's own interfaces (`detectron2_config.py`, `detectron2_formats.py`, `conversion.py`). Its trainer
and hooks train (`detectron2_training.py`), and its evaluators score. Detectron2 is imported only by functions
of these files, when a run needs it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.detection import conversion, record
from reproduce.detection import detectron2_config as config
from reproduce.detection import detectron2_formats as formats
from reproduce.detection.examples import decoders
from reproduce.detection.predictions import Predicted
from reproduce.lazy import torch
from reproduce.messages import NotFoundError
from reproduce.nn import distributed, seeds
from reproduce.runs import checkpoint, environment
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reproduce.data.detection import Annotated, DetectionDataset
    from reproduce.nn.encoder import Encoder
    from reproduce.protocols.detection import Detection

INSTALL = (
    "git clone https://github.com/facebookresearch/detectron2 ../detectron2"
    " && .venv/bin/pip install -r requirements-detectron2.txt",
    'and, in configs/site.toml above [data]: detectron2 = "../detectron2"',
)
"""Instructions that install Detectron2: a command, and a line of the site file."""
REQUIREMENTS = {
    "pycocotools": "pycocotools",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "omegaconf": "omegaconf",
    "yacs": "yacs",
    "tabulate": "tabulate",
    "termcolor": "termcolor",
    "cloudpickle": "cloudpickle",
    "packaging": "packaging",
    "yaml": "PyYAML",
}
"""Packages that these two protocols make Detectron2 import, by module, with their names on PyPI. Of its other
requirements (setup.py), the protocols use none."""
WEIGHTS, KEYS, CONFIG, VOC = "weights.pth", "detectron2_weights.txt", "detectron2_config.yaml", "voc"
"""Names of files: the encoder's tensors, the list of where each of them went, the whole config, and a folder
of annotations to measure by."""
PARITY = 1e-4
"""Maximum relative error of res4, above which the features are not the encoder's. Rounding gives 1e-6; a
stride in the wrong convolution gives .2."""
PARITY_SIDE = 256
"""Side of the part of an image that is compared, in pixels."""
DATASET = "msbreg_test"
"""Name of the test data in Detectron2's catalog."""
AGREEMENT = {"voc": 5e-3, "coco": 1e-3}
"""Maximum difference between our average precision and Detectron2's, above which the log contains a warning.
On VOC, Detectron2 rounds boxes and scores."""

logger = logging.getLogger(__name__)


def check(site: Site) -> None:
    """Check that Detectron2 is available. This is quick: it looks for files and imports nothing.

    Raises:
        LookupError: Detectron2, or one of its requirements from PyPI, is missing. The message contains the
            commands that install it.
    """
    folder = site.detectron2
    if folder is None and not _installed("detectron2"):
        raise NotFoundError(
            "Detectron2 is missing: there is neither an installed package nor a source folder. Get it:",
            *INSTALL,
        )
    if folder is not None and not (folder / "detectron2" / "config" / "defaults.py").is_file():
        raise NotFoundError(
            "The folder that `detectron2` names in the site file is not Detectron2's source "
            "(detectron2/config/ is missing). Get it:",
            *INSTALL,
        )
    if missing := [package for module, package in REQUIREMENTS.items() if not _installed(module)]:
        raise NotFoundError(
            f"Detectron2 is available, but its requirements are missing: {', '.join(missing)}. "
            "Get them: .venv/bin/pip install -r requirements-detectron2.txt"
        )


def _installed(module: str) -> bool:
    """Return True if a module is installed. A folder that merely has its name is found, but has no origin."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def check_for(protocol: Detection, backbone: str, dataset: DetectionDataset) -> None:
    """Check that Detectron2 supports the backbone and the settings. The result is the same on every machine.

    Raises:
        ValueError: It does not. The message names what it supports.
    """
    if "+" in dataset.test_split:
        raise ValueError(
            f"test_split is {dataset.test_split}, but Detectron2 measures on a single list of VOC, "
            "such as 2007_test."
        )
    config.settings(protocol, backbone, dataset, device="cpu", seed=0)


def fine_tune(
    protocol: Detection,
    encoder: Encoder,
    dataset: DetectionDataset,
    train: Annotated,
    test: Annotated,
    site: Site,
    device: torch.device,
    seed: int,
    watch: Watch,
) -> dict[str, float]:
    """Fine-tune and test with Detectron2; return `protocol.metrics` as fractions, by its own evaluation.

    Checkpoints are in the subfolder `detectron2` of the run's folder. A run that is started again resumes
    from the newest.

    Raises:
        LookupError: Detectron2 is missing.
        ValueError: Detectron2 does not support the backbone or a setting, no image can be trained on, or an
            image is broken or has another size than annotated.
        FloatingPointError: The loss is not finite.
        RuntimeError: The detector's features are not the encoder's.
    """
    from reproduce.detection import detectron2_training as training

    values = config.settings(protocol, encoder.architecture, dataset, device=str(device), seed=seed)
    check(site)
    if dataset.benchmark == "voc":
        formats.check_voc(test, dataset.test_split)
    elif distributed.main_process():
        formats.check_coco(test)
    devices = [device] if device.type == "cuda" else []
    with _folder(watch) as folder, _log_to_stderr(), torch.random.fork_rng(devices=devices):
        _import(site)
        _join_processes()
        cfg = _config(values)
        if distributed.main_process():
            watch.record.tag("detectron2", version(site))
            _save_text(watch, CONFIG, cfg.dump())
            if dataset.benchmark == "voc":
                formats.write_voc(test, dataset.test_split, folder / VOC)
        model = _detector(cfg, seed)
        prepare = partial(_first_weights, model, encoder, dataset, train, folder, watch)
        trained_on = protocol.schedule.iterations * protocol.batch_size
        shown = trained_on + len(test.pictures)
        training.train(
            model,
            cfg,
            protocol,
            train,
            folder,
            prepare,
            seed=seed,
            workers=decoders(site),
            watch=watch.part(0, shown),
        )
        results, found = _test(model, cfg, dataset, test, folder / VOC, site, watch.part(trained_on, shown))
        return _metrics(protocol, test, results, found, watch)


def version(site: Site) -> str:
    """Return Detectron2's version, and the commit of its source folder if that is a checkout."""
    import detectron2

    name = str(detectron2.__version__)
    commit = environment.commit_of(site.detectron2) if site.detectron2 else environment.UNKNOWN
    return name if commit == environment.UNKNOWN else f"{name} {commit}"


def _import(site: Site) -> None:
    """Import Detectron2 from where the site names it.

    A source folder is on the import path only during the import.
    """
    from reproduce.detection import detectron2_modules

    before = list(sys.path)
    if site.detectron2 is not None:
        sys.path.insert(0, str(site.detectron2))
    try:
        importlib.import_module("detectron2")
    finally:
        sys.path[:] = before
    detectron2_modules.register()


def _join_processes() -> None:
    """Pass Detectron2 the group of torchrun's processes on this machine."""
    from detectron2.utils import comm

    if distributed.world_size() > 1:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())))


def _config(values: Mapping[str, Any]) -> Any:
    """Return Detectron2's config with these values, frozen."""
    from detectron2.config import get_cfg

    if values["MODEL.DEVICE"] == "cpu" and distributed.world_size() > 1:  # torch's SyncBN needs a GPU
        values = {name: "naiveSyncBN" if value == "SyncBN" else value for name, value in values.items()}
    cfg = get_cfg()
    cfg.merge_from_list([part for pair in values.items() for part in pair])
    cfg.freeze()
    return cfg


def _detector(cfg: Any, seed: int) -> Any:
    """Return the detector on its device, with the initial weights that `seed` determines."""
    from detectron2.modeling import build_model

    torch.manual_seed(seeds.seed("detection weights", seed))
    return build_model(cfg)


def _first_weights(
    model: Any,
    encoder: Encoder,
    dataset: DetectionDataset,
    images: Annotated,
    folder: Path,
    watch: Watch,
    checkpointer: Any,
) -> None:
    """Load the encoder into the detector by Detectron2's checkpointer, and check that the features agree.

    Raises:
        RuntimeError: A tensor of the encoder is not used, or the detector's features are not the encoder's.
    """
    content = conversion.file(encoder.backbone.state_dict())
    if distributed.main_process():
        torch.save(content, folder / WEIGHTS)
    distributed.agreed(True)  # the other processes wait for the file
    checkpointer.load(str(folder / WEIGHTS), checkpointables=[])
    unused = [
        *checkpointer.incompatible.unexpected_keys,
        *(name for name, *_ in checkpointer.incompatible.incorrect_shapes),
    ]
    missing = set(checkpointer.incompatible.missing_keys)
    names = list(model.state_dict())
    matched = [name for name in names if name not in missing and conversion.matches(name, content["model"])]
    listing = _listing(matched, [name for name in names if name not in matched], unused)
    error = parity(model, encoder, dataset, images)
    if distributed.main_process():
        logger.info(listing)
        _save_text(watch, KEYS, listing)
        watch.record.tag("res4_parity", f"{error:.1e}")
    if unused:
        raise RuntimeError(
            f"{len(unused)} of the encoder's tensors have no place in the detector, such as {unused[0]}."
        )
    if not error <= PARITY:
        raise RuntimeError(
            f"On an image, the detector's res4 differs from the encoder's layer3 by {error:.1e} of its norm, "
            f"more than {PARITY:g}: usually stride_in_1x1 is not the encoder's, or the encoder was trained "
            "with another mean and std than the data set's."
        )


def _listing(matched: Sequence[str], initial: Sequence[str], unused: Sequence[str]) -> str:
    """Return a text, one name per line, of the tensors that come from the encoder, and of all others."""
    parts = {
        "from the encoder": matched,
        "with their initial values": initial,
        "of the encoder, not used": unused,
    }
    return "\n".join(
        line
        for title, part in parts.items()
        for line in (f"{len(part)} tensors {title}", *(f"  {name}" for name in part))
    )


def parity(model: Any, encoder: Encoder, dataset: DetectionDataset, images: Annotated) -> float:
    """Return the relative error of the detector's res4 against the encoder's layer3 on part of an image.

    Each network uses its own normalisation. NaN if the shapes differ.
    """
    from reproduce.data.detection import pixels
    from reproduce.nn.stages import stages

    part = pixels(images.trainable[0])[:PARITY_SIDE, :PARITY_SIDE]
    shown = torch.tensor(part).permute(2, 0, 1)[None].float()  # (1, 3, height, width)
    theirs = copy.deepcopy(getattr(model.backbone, "bottom_up", model.backbone)).cpu().eval()
    ours = copy.deepcopy(encoder.backbone).cpu().eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (dataset.mean, dataset.std))
    with torch.no_grad():
        features = theirs((shown - model.pixel_mean.cpu()) / model.pixel_std.cpu())["res4"]
        wanted = (shown / 255 - mean) / std
        for stage in stages(ours)[:4]:
            wanted = stage.module(wanted)
    if features.shape != wanted.shape:
        return math.nan
    return float((features - wanted).norm() / wanted.norm())


class _Collector:
    """One of Detectron2's evaluators, which collects the detections."""

    def __init__(self, num_images: int, masks: bool, watch: Watch) -> None:
        self._num_images, self._masks, self._watch = num_images, masks, watch
        self.reset()

    def reset(self) -> None:
        self.predicted: list[Predicted] = []

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            self.predicted.append(_predicted(given["image_id"], output["instances"].to("cpu"), self._masks))
        done = min(self._num_images, len(self.predicted) * distributed.world_size())
        self._watch.report(Progress(done, self._num_images, "images", "testing"))

    def evaluate(self) -> None:
        """Gather the detections of all processes in the first. Returns no numbers."""
        from detectron2.utils import comm

        self.predicted = [each for part in comm.gather(self.predicted) for each in part]


def _predicted(image: int | str, instances: Any, masks: bool) -> Predicted:
    """Return the detections of one image, with masks in the benchmark's encoding."""
    import numpy as np
    from pycocotools import mask

    encoded = None
    if masks:
        arrays = [each.numpy().astype("uint8") for each in instances.pred_masks]
        encoded = tuple(mask.encode(np.asfortranarray(each)) for each in arrays)
    return Predicted(
        id=image,
        boxes=instances.pred_boxes.tensor.numpy().astype("float64"),
        scores=instances.scores.numpy().astype("float64"),
        labels=instances.pred_classes.numpy().astype("int64"),
        masks=encoded,
    )


def _test(
    model: Any, cfg: Any, dataset: DetectionDataset, test: Annotated, voc: Path, site: Site, watch: Watch
) -> tuple[dict[str, Any], list[Predicted]]:
    """Return Detectron2's results, in per cent, and all detections.

    On all processes but the first, both are incomplete.

    Args:
        voc: folder of VOC's annotations; see `detectron2_formats.metadata`.
    """
    from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
    from detectron2.evaluation import (
        COCOEvaluator,
        DatasetEvaluators,
        PascalVOCDetectionEvaluator,
        inference_on_dataset,
    )

    from reproduce.detection.detectron2_training import Readable, mapped

    masks, map_one = cfg.MODEL.MASK_ON, DatasetMapper(cfg, is_train=False)
    loader = build_detection_test_loader(
        [formats.dictionary(picture, masks=False) for picture in test.pictures],
        mapper=partial(mapped, map_one),
        num_workers=decoders(site),
    )
    MetadataCatalog.pop(DATASET, None)
    MetadataCatalog.get(DATASET).set(**formats.metadata(dataset, test, voc))
    try:
        if dataset.benchmark == "voc":
            theirs = PascalVOCDetectionEvaluator(DATASET)
        else:
            theirs = COCOEvaluator(DATASET, ("bbox", "segm") if masks else ("bbox",), use_fast_impl=False)
        found = _Collector(len(test.pictures), masks, watch)
        with contextlib.closing(Readable(loader)) as shown:
            results = inference_on_dataset(model, shown, DatasetEvaluators([theirs, found]))
    finally:
        MetadataCatalog.pop(DATASET, None)
    return dict(results), found.predicted


def _metrics(
    protocol: Detection, test: Annotated, results: Mapping[str, Any], found: Sequence[Predicted], watch: Watch
) -> dict[str, float]:
    """Return the metrics on every process, after the first has recorded the details and a picture."""
    from detectron2.utils import comm

    measured: dict[str, float] = {}
    if distributed.main_process():
        measured = formats.measured(
            results, protocol.metrics, num_found=sum(len(each.scores) for each in found)
        )
        scores = record.tested(protocol, test, found, watch)
        difference = max(abs(each.ap - measured[f"{prefix}ap"]) for prefix, each in scores.items())
        watch.record.log(protocol.schedule.iterations, {"scoring_difference": difference})
        log = logger.warning if difference > AGREEMENT[protocol.benchmark] else logger.info
        log("Our average precision differs from Detectron2's by at most %.2g.", difference)
    everyone: list[dict[str, float]] = comm.all_gather(measured)
    return everyone[0]


@contextlib.contextmanager
def _folder(watch: Watch) -> Iterator[Path]:
    """Yield the folder of weights and checkpoints: in the run's folder, or a temporary one."""
    if watch.folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = watch.folder / checkpoint.DETECTRON2
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _save_text(watch: Watch, name: str, text: str) -> None:
    """Write a text as an artifact of the run."""
    if watch.folder is not None:
        path = watch.folder / name
        path.write_text(text + "\n")
        watch.record.artifact(path)


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Redirect Detectron2's log, ours and the output of the benchmark's tools to standard error.

    Standard error is the run's log.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", __name__)]
    before = [(each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.INFO if distributed.main_process() else logging.WARNING)
        each.propagate = False
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for each, (level, propagate) in zip(loggers, before, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
            each.propagate = propagate
