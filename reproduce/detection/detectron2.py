"""The engine of the paper: Detectron2, an installed package or a source folder that the site names and that
needs no building.

Config, data and weights go in by Detectron2's own doors (`detectron2_config.py`, `detectron2_formats.py`,
`conversion.py`), its trainer and hooks train (`detectron2_training.py`), its evaluators score. Only functions
here and in those files import it, when a run needs it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.detection import conversion, record
from reproduce.detection import detectron2_config as config
from reproduce.detection import detectron2_formats as formats
from reproduce.detection.predictions import Predicted
from reproduce.lazy import torch
from reproduce.messages import NotFoundError
from reproduce.nn import distributed, seeds
from reproduce.runs import checkpoint
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reproduce.data.detection import Annotated, DetectionDataset
    from reproduce.nn.encoder import Encoder
    from reproduce.protocols.detection import Detection

GET = (
    "git clone https://github.com/facebookresearch/detectron2 ../detectron2 && .venv/bin/pip install -r requirements-detectron2.txt",
    'and, in configs/site.toml above [data]: detectron2 = "../detectron2"',
)
"""What gets it: a command, and a line of the site file."""
NEEDS = {
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
"""The packages that these two protocols make Detectron2 import, and their names on PyPI; of its others
(setup.py) they use none."""
WEIGHTS, KEYS, CONFIG, VOC = "weights.pkl", "detectron2_weights.txt", "detectron2_config.yaml", "voc"
"""Files: the encoder's tensors; which of them went where; the whole config; a folder of annotations to
measure by."""
PARITY = 1e-4
"""Relative error of res4 above which the features are not the encoder's; rounding gives 1e-6, a stride in the
wrong convolution .2."""
SIDE = 256
"""Of the part of an image that is compared, in pixels."""
DATA = "msbreg_test"
"""What Detectron2's evaluators know the test data by."""
AGREEMENT = {"voc": 5e-3, "coco": 1e-3}
"""How far our average precision may be from Detectron2's, which on VOC rounds boxes and scores; beyond, the
log has a warning."""

logger = logging.getLogger(__name__)


def check(site: Site) -> None:
    """Quick: looks for files, imports nothing.

    Raises:
        LookupError: Detectron2 is not here, or what it needs from PyPI is not; the message has the lines that
            get it.
    """
    if (
        site.detectron2 is not None
        and not (site.detectron2 / "detectron2" / "config" / "defaults.py").is_file()
    ):
        raise NotFoundError(
            _how(
                "The folder that `detectron2` names in the site file is not Detectron2's source (detectron2/config/ is missing)."
            )
        )
    if site.detectron2 is None and not _installed("detectron2"):
        raise NotFoundError(_how("Detectron2 is not here, neither installed nor as a source folder."))
    if missing := [package for module, package in NEEDS.items() if not _installed(module)]:
        raise NotFoundError(
            f"Detectron2 is here, but not what it needs: {', '.join(missing)}. Get it: .venv/bin/pip install -r requirements-detectron2.txt"
        )


def _how(problem: str) -> str:
    return "\n    ".join((f"{problem} Get it:", *GET))


def _installed(module: str) -> bool:
    """A folder that merely has the name is found without an origin."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def check_for(protocol: Detection, backbone: str, dataset: DetectionDataset) -> None:
    """Check, on any machine, that Detectron2 has the backbone and takes the settings.

    Raises:
        ValueError: it does not; the message names what it takes.
    """
    if "+" in dataset.test_split:
        raise ValueError(
            f"test_split is {dataset.test_split}, but Detectron2 measures on one list of VOC, such as 2007_test."
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
    """The average precisions of `protocol.metrics`, as fractions, by Detectron2's own evaluation.

    Checkpoints lie in the folder `detectron2` of the run's own; a run that is started again goes on from the
    newest.

    Raises:
        LookupError: Detectron2 is not here.
        ValueError: Detectron2 has no such backbone or setting; there is nothing to train on; an image is
            broken or of another size.
        FloatingPointError: the loss is no longer finite.
        RuntimeError: the detector's features are not the encoder's.
    """
    from reproduce.detection import detectron2_training as training

    values = config.settings(protocol, encoder.architecture, dataset, device=str(device), seed=seed)
    check(site)
    if dataset.benchmark == "voc":
        formats.check_voc(test, dataset.test_split)
    elif distributed.main_process():
        formats.check_coco(test)
    devices = [device] if device.type == "cuda" else []
    with _folder(watch) as folder, _on_stderr(), torch.random.fork_rng(devices=devices):
        _import(site)
        _join_processes()
        cfg = _config(values)
        if distributed.main_process():
            watch.record.tag("detectron2", version(site))
            _leave(watch, CONFIG, cfg.dump())
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
            workers=site.workers,
            watch=watch.part(0, shown),
        )
        results, found = _tested(model, cfg, dataset, test, folder / VOC, site, watch.part(trained_on, shown))
        return _concluded(protocol, test, results, found, watch)


def version(site: Site) -> str:
    """Detectron2's version, and the commit of its source folder where that is a checkout."""
    import detectron2

    folder, name = site.detectron2, str(detectron2.__version__)
    if folder is None or not (folder / ".git").exists():
        return name
    asked = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return f"{name} {asked.stdout.strip()}".strip()


def _import(site: Site) -> None:
    """Imports Detectron2 from where the site says; the source folder is on the import path no longer than
    that."""
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
    """Tells Detectron2 which of torchrun's processes are on this machine."""
    from detectron2.utils import comm

    if distributed.world_size() > 1:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size())))


def _config(values: Mapping[str, Any]) -> Any:
    """Detectron2's config with these values, frozen."""
    from detectron2.config import get_cfg

    if values["MODEL.DEVICE"] == "cpu" and distributed.world_size() > 1:  # torch's own then needs a GPU
        values = {name: "naiveSyncBN" if value == "SyncBN" else value for name, value in values.items()}
    cfg = get_cfg()
    cfg.merge_from_list([part for pair in values.items() for part in pair])
    cfg.freeze()
    return cfg


def _detector(cfg: Any, seed: int) -> Any:
    """The detector on its device with the initial weights that `seed` decides."""
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
    """Loads the encoder into the detector by Detectron2's checkpointer, and checks that it is the encoder."""
    content = conversion.file(encoder.backbone.state_dict())
    if distributed.main_process():
        (folder / WEIGHTS).write_bytes(pickle.dumps(content))
    distributed.agreed(True)  # the others wait for the file
    checkpointer.load(str(folder / WEIGHTS), checkpointables=[])
    unused = [
        *checkpointer.incompatible.unexpected_keys,
        *(name for name, *_ in checkpointer.incompatible.incorrect_shapes),
    ]
    missing = set(checkpointer.incompatible.missing_keys)
    matched = [
        name
        for name in model.state_dict()
        if name not in missing and conversion.matches(name, content["model"])
    ]
    listing = _listing(matched, [name for name in model.state_dict() if name not in matched], unused)
    error = parity(model, encoder, dataset, images)
    if distributed.main_process():
        logger.info(listing)
        _leave(watch, KEYS, listing)
        watch.record.tag("res4_parity", f"{error:.1e}")
    if unused:
        raise RuntimeError(
            f"{len(unused)} of the encoder's tensors have no place in the detector, such as {unused[0]}."
        )
    if not error <= PARITY:
        raise RuntimeError(
            f"The detector's res4 differs from the encoder's layer3 by {error:.1e} of it on an image, more than {PARITY:g}: usually "
            "stride_in_1x1 is not the encoder's, or the data set's mean and std are not what it was trained with."
        )


def _listing(matched: Sequence[str], initial: Sequence[str], unused: Sequence[str]) -> str:
    """Which of the detector's tensors come from the encoder, one a line."""
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
    """The relative error of the detector's res4 against the encoder's layer3, each with its own
    normalisation, on part of an image."""
    from reproduce.data.detection import pixels
    from reproduce.nn.stages import stages

    shown = (
        torch.tensor(pixels(images.trainable[0])[:SIDE, :SIDE]).permute(2, 0, 1)[None].float()
    )  # (1, 3, height, width)
    theirs = copy.deepcopy(getattr(model.backbone, "bottom_up", model.backbone)).cpu().eval()
    ours = copy.deepcopy(encoder.backbone).cpu().eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (dataset.mean, dataset.std))
    with torch.no_grad():
        features = theirs((shown - model.pixel_mean.cpu()) / model.pixel_std.cpu())["res4"]
        wanted = (shown / 255 - mean) / std
        for stage in stages(ours)[:4]:
            wanted = stage.module(wanted)
        return (
            float((features - wanted).norm() / wanted.norm())
            if features.shape == wanted.shape
            else float("nan")
        )


class _Found:
    """Collects what is found, as one of Detectron2's evaluators."""

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
        """Gathers the images of all processes in the first; gives no numbers."""
        from detectron2.utils import comm

        self.predicted = [each for part in comm.gather(self.predicted) for each in part]


def _predicted(image: int | str, instances: Any, masks: bool) -> Predicted:
    """What Detectron2 found in an image, masks as the benchmark encodes them."""
    import numpy as np
    from pycocotools import mask

    encoded = (
        [mask.encode(np.asfortranarray(each.numpy().astype("uint8"))) for each in instances.pred_masks]
        if masks
        else None
    )
    return Predicted(
        id=image,
        boxes=instances.pred_boxes.tensor.numpy().astype("float64"),
        scores=instances.scores.numpy().astype("float64"),
        labels=instances.pred_classes.numpy().astype("int64"),
        masks=None if encoded is None else tuple(encoded),
    )


def _tested(
    model: Any, cfg: Any, dataset: DetectionDataset, test: Annotated, voc: Path, site: Site, watch: Watch
) -> tuple[dict[str, Any], list[Predicted]]:
    """Detectron2's results, in per cent, and what was found; on the first process, the others have neither.

    Args:
        voc: as of `detectron2_formats.metadata`.
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
        num_workers=site.workers,
    )
    MetadataCatalog.pop(DATA, None)
    MetadataCatalog.get(DATA).set(**formats.metadata(dataset, test, voc))
    try:
        tasks = ("bbox", "segm") if masks else ("bbox",)
        theirs = (
            PascalVOCDetectionEvaluator(DATA)
            if dataset.benchmark == "voc"
            else COCOEvaluator(DATA, tasks, use_fast_impl=False)
        )
        found = _Found(len(test.pictures), masks, watch)
        with contextlib.closing(Readable(loader)) as shown:
            results = inference_on_dataset(model, shown, DatasetEvaluators([theirs, found]))
    finally:
        MetadataCatalog.pop(DATA, None)
    return dict(results), found.predicted


def _concluded(
    protocol: Detection, test: Annotated, results: Mapping[str, Any], found: Sequence[Predicted], watch: Watch
) -> dict[str, float]:
    """The metrics on every process; by class and by size and as a picture for the record."""
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
        log("Our average precision differs from Detectron2's by %.2g at most.", difference)
    everyone: list[dict[str, float]] = comm.all_gather(measured)
    return everyone[0]


@contextlib.contextmanager
def _folder(watch: Watch) -> Iterator[Path]:
    """Where weights and checkpoints lie: in the run's folder, or in one that is gone afterwards."""
    if watch.folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = watch.folder / checkpoint.DETECTRON2
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _leave(watch: Watch, name: str, text: str) -> None:
    """A text as an artifact of the run."""
    if watch.folder is not None:
        path = watch.folder / name
        path.write_text(text + "\n")
        watch.record.artifact(path)


@contextlib.contextmanager
def _on_stderr() -> Iterator[None]:
    """Detectron2's and our log go to standard error, which is the run's log; so does what the benchmark's
    tools print."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    talking = [logging.getLogger(name) for name in ("detectron2", "fvcore", __name__)]
    before = [(each.level, each.propagate) for each in talking]
    for each in talking:
        each.addHandler(handler)
        each.setLevel(logging.INFO if distributed.main_process() else logging.WARNING)
        each.propagate = False
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for each, (level, propagate) in zip(talking, before, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
            each.propagate = propagate
