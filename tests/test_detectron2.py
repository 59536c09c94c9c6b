"""The engine of the paper, tested if Detectron2 is available.

It is an installed package, the source folder that the site file names, or else `../detectron2`:

    MSBREG_SITE=site.toml pytest tests/test_detectron2.py    # site.toml: detectron2 = "/path/to/its/source"
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import skips
import torch
from skips import SHARED, shared
from toys import CPU, Notes, on_two_processes

from reproduce import site as sites
from reproduce.data.coco2017 import COCO2017
from reproduce.data.detection import Annotated, DetectionDataset, Picture
from reproduce.data.synthetic_detection import SyntheticCOCO2017, SyntheticVOC0712
from reproduce.detection import detectron2
from reproduce.detection import detectron2_config as config
from reproduce.detection.predictions import Predicted
from reproduce.detection.record import PICTURE, scores
from reproduce.nn import backbones
from reproduce.nn.encoder import Encoder
from reproduce.protocols.coco_mask_rcnn import COCOMaskRCNN
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.runs import interrupt
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site

SITE = dataclasses.replace(sites.load(), detectron2=skips.detectron2_source())


def lacking() -> str:
    """Return what Detectron2 lacks on this machine; empty if it can be used."""
    try:
        detectron2.check(SITE)
    except LookupError as error:
        return skips.NO_DETECTRON2 if skips.no_detectron2() else str(error).splitlines()[0]
    return ""


LACKING = lacking()
pytestmark = [
    pytest.mark.skipif(bool(LACKING), reason=LACKING),
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
]
"""Marks of all tests in this file. Detectron2's own warnings do not concern us."""

SMALL: dict[str, Any] = {
    "batch_size": 4,
    "iterations": 1,  # at a batch of 16: 4 steps of 4 images
    "drops": (),
    "warmup_iterations": 1,
    "train_sizes": (64, 80),
    "test_size": 64,
    "max_size": 96,
    "rpn_train_top": (100, 40),
    "rpn_test_top": (100, 20),
    "rois": 16,
    "precise_bn_iterations": 2,
}
STEPS = 4
VOC = VOCDetection(**SMALL)
# With 80 classes, an untrained detector has no score as high as .05. A mask takes time.
COCO = COCOMaskRCNN(**SMALL | {"rpn_test_top": (50, 8)}, score_threshold=0.0, max_detections=4)
TINY_VOC = SyntheticVOC0712(num_trainval=20, num_test=20)
TINY_COCO = SyntheticCOCO2017(num_train=80, num_val=80)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a site with Detectron2 and a folder for generated data."""
    detectron2._import(SITE)
    return Site(
        runs=tmp_path_factory.mktemp("runs"), detectron2=SITE.detectron2, data={"coco": SHARED / "coco"}
    )


def encoder(name: str) -> Encoder:
    """Return an untrained encoder whose residual branches have an effect.

    Those of a new ResNet-50 have none, so a wrong stride in them would not be visible.
    """
    backbone = backbones.build(name, seed=0).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.0, generator=draw)
    return Encoder(name, backbone)


class Record(Notes):
    """A record that also keeps the names of artifacts."""

    def __init__(self) -> None:
        super().__init__()
        self.artifacts: list[str] = []

    def artifact(self, path: Path) -> None:
        assert path.stat().st_size
        self.artifacts.append(path.name)


def run(
    protocol: Any,
    dataset: DetectionDataset,
    site: Site,
    folder: Path,
    backbone: str = "resnet18_3x3",
    **watch: Any,
) -> tuple[dict[str, float], Record]:
    """Fine-tune an untrained encoder, and return what was measured and recorded."""
    record = Record()
    folder.mkdir(exist_ok=True)
    train, test = (dataset.load(split, site) for split in (dataset.train_split, dataset.test_split))
    measured = detectron2.fine_tune(
        protocol, encoder(backbone), dataset, train, test, site, CPU, 5, Watch(record, folder=folder, **watch)
    )
    return measured, record


def stop_at(step: int) -> Callable[[Progress], None]:
    """Return a callback that ends the training after `step` steps, like a kill that spares the process."""

    def report(progress: Progress) -> None:
        if progress.note.startswith("loss") and progress.done == 4 * step:
            raise KeyboardInterrupt

    return report


def finished(folder: Path) -> dict[str, Any]:
    """Return the last checkpoint of a training."""
    loaded: dict[str, Any] = torch.load(folder / "detectron2" / "model_final.pth", weights_only=True)
    return loaded


# Config and weights


@pytest.mark.parametrize("backbone", list(config.RESNETS))
@pytest.mark.parametrize(("protocol", "dataset"), [(VOCDetection(), TINY_VOC), (COCOMaskRCNN(), TINY_COCO)])
def test_detectron2_takes_every_value_and_its_features_are_the_encoders(
    protocol: Any, dataset: DetectionDataset, backbone: str, site: Site
) -> None:
    values = config.settings(protocol, backbone, dataset, device="cpu", seed=0)
    model = detectron2._detector(detectron2._config(values), seed=0)
    images = dataset.load(dataset.test_split, site)
    assert not detectron2.parity(model, encoder(backbone), dataset, images) < 0.1, "these are other weights"


def test_the_rest_of_the_config_is_as_the_sources_say(site: Site) -> None:
    cfg = detectron2._config(config.settings(VOCDetection(), "resnet50", TINY_VOC, device="cpu", seed=0))
    assert cfg.MODEL.RPN.IOU_THRESHOLDS == [0.3, 0.7]
    assert cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE == 256
    assert cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS == [0.5]
    assert cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.5
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
    assert not cfg.SOLVER.AMP.ENABLED
    assert not cfg.SOLVER.NESTEROV
    assert not cfg.SOLVER.CLIP_GRADIENTS.ENABLED


@pytest.mark.parametrize(
    ("backbone", "num_tensors"), [("resnet50", 318), ("resnet18", 120), ("resnet18_3x3", 120)]
)
@pytest.mark.parametrize(("protocol", "dataset"), [(VOC, TINY_VOC), (COCO, TINY_COCO)])
def test_every_tensor_of_the_encoder_finds_its_place(
    protocol: Any, dataset: DetectionDataset, backbone: str, num_tensors: int, site: Site, tmp_path: Path
) -> None:
    model, record = first_weights(protocol, dataset, backbone, site, tmp_path)
    listing = (tmp_path / detectron2.KEYS).read_text().splitlines()
    assert f"{num_tensors} tensors from the encoder" in listing
    assert "0 tensors of the encoder, not used" in listing
    assert float(record.tags["res4_parity"]) < 1e-5
    head = "backbone.bottom_up" if protocol.fpn else "roi_heads"
    theirs = model.state_dict()[f"{head}.res5.0.conv1.weight"]
    assert torch.equal(theirs, encoder(backbone).backbone.state_dict()["layer4.0.conv1.weight"])
    assert ("roi_heads.res5.norm.weight" in model.state_dict()) is not protocol.fpn


def test_a_detector_that_is_not_the_encoder_is_not_trained(site: Site, tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"differs from the encoder's layer3 by .* stride_in_1x1 is not the encoder's"
    ):
        first_weights(VOCDetection(stride_in_1x1=True), TINY_VOC, "resnet50", site, tmp_path)


def test_parity_sees_another_normalisation(site: Site, tmp_path: Path) -> None:
    model, _ = first_weights(VOC, TINY_VOC, "resnet18", site, tmp_path)
    images = TINY_VOC.load("2007_test", site)
    assert detectron2.parity(model, encoder("resnet18"), TINY_VOC, images) < 1e-5
    model.pixel_std.mul_(1.01)
    assert detectron2.parity(model, encoder("resnet18"), TINY_VOC, images) > detectron2.PARITY


def first_weights(
    protocol: Any, dataset: DetectionDataset, backbone: str, site: Site, folder: Path
) -> tuple[Any, Record]:
    """Return a detector with the encoder in it, and what was recorded."""
    from reproduce.detection.detectron2_training import _checkpointer

    record = Record()
    cfg = detectron2._config(config.settings(protocol, backbone, dataset, device="cpu", seed=0))
    model = detectron2._detector(cfg, seed=0)
    images = dataset.load(dataset.train_split, site)
    watch = Watch(record, folder=folder)
    detectron2._first_weights(
        model, encoder(backbone), dataset, images, folder, watch, _checkpointer(model, folder, watch)
    )
    return model, record


# Training


@pytest.mark.parametrize(
    ("protocol", "dataset", "backbone"), [(VOC, TINY_VOC, "resnet18_3x3"), (COCO, TINY_COCO, "resnet18")]
)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    protocol: Any, dataset: DetectionDataset, backbone: str, site: Site, tmp_path: Path
) -> None:
    measured, record = run(protocol, dataset, site, tmp_path / "whole", backbone)
    assert set(measured) == set(protocol.metrics)
    assert all(0 <= value <= 1 for value in measured.values())
    assert record.logged[STEPS]["lr"] == pytest.approx(protocol.rate(STEPS - 1))
    assert {"total_loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} <= set(
        record.logged[STEPS]
    )
    assert record.artifacts == [detectron2.CONFIG, detectron2.KEYS, PICTURE]
    assert record.tags["detectron2"]
    assert record.logged[STEPS]["scoring_difference"] < detectron2.AGREEMENT[protocol.benchmark]

    with pytest.raises(KeyboardInterrupt):
        run(protocol, dataset, site, tmp_path / "stopped", backbone, report=stop_at(3))
    kept = sorted(path.name for path in (tmp_path / "stopped" / "detectron2").iterdir())
    assert kept == [
        "last_checkpoint",
        "model_0000000.pth",
        "model_0000001.pth",
        *([] if protocol.fpn else ["voc"]),
        "weights.pth",
    ]
    seen: list[Progress] = []
    again, resumed = run(protocol, dataset, site, tmp_path / "stopped", backbone, report=seen.append)
    assert seen[0].done == 4 * 3
    assert "res4_parity" not in resumed.tags, "the backbone has moved since"
    assert again == measured
    timeless = [
        {name: value for name, value in each.logged[STEPS].items() if "time" not in name}
        for each in (record, resumed)
    ]
    assert timeless[0] == timeless[1]
    whole, parts = finished(tmp_path / "whole"), finished(tmp_path / "stopped")
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())


def test_a_run_that_is_told_to_stop_writes_a_checkpoint_after_the_step_under_way(
    site: Site, tmp_path: Path
) -> None:
    # 2 000 steps; the first checkpoint is due after step 40.
    protocol = dataclasses.replace(VOC, iterations=500)

    def strike(progress: Progress) -> None:
        if progress.done == 4 * 3:
            interrupt.ask("a test")

    with pytest.raises(Interrupted, match="a test"):
        run(protocol, TINY_VOC, site, tmp_path / "run", report=strike)
    assert (tmp_path / "run" / "detectron2" / "last_checkpoint").read_text() == "model_0000002.pth"
    seen: list[Progress] = []

    def go_on(progress: Progress) -> None:
        seen.append(progress)
        interrupt.ask("a test")

    with pytest.raises(Interrupted, match="a test"):
        run(protocol, TINY_VOC, site, tmp_path / "run", report=go_on)
    assert [progress.done for progress in seen] == [4 * 4]


def test_processes_that_decode_outlive_a_signal_to_the_whole_group(site: Site, tmp_path: Path) -> None:
    before = set(psutil.Process().children())

    def strike(progress: Progress) -> None:
        if progress.done < 4 * 2:  # each of the two has decoded a batch
            return
        for decoder in set(psutil.Process().children()) - before:
            # The signal comes from a process that is not their parent.
            subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(decoder.pid)], check=True)
        if progress.done == 4 * 3:
            interrupt.ask("a test")

    protocol, decoding = dataclasses.replace(VOC, iterations=500), dataclasses.replace(site, workers=2)
    with pytest.raises(Interrupted, match="a test"):
        run(protocol, TINY_VOC, decoding, tmp_path / "run", report=strike)
    assert (tmp_path / "run" / "detectron2" / "last_checkpoint").read_text() == "model_0000002.pth"
    assert set(psutil.Process().children()) <= before


def test_a_run_that_another_process_has_taken_over_writes_no_checkpoint(site: Site, tmp_path: Path) -> None:
    def hold() -> None:
        raise Interrupted("lost")

    with pytest.raises(Interrupted, match="lost"):
        run(VOC, TINY_VOC, site, tmp_path / "run", hold=hold)
    assert not list((tmp_path / "run" / "detectron2").glob("*.pth"))


def test_a_run_does_not_continue_from_the_checkpoint_of_another(site: Site, tmp_path: Path) -> None:
    """In the folder of a run that is complete, and in one whose newest file a crash has damaged."""
    wanted, _ = run(VOC, TINY_VOC, site, tmp_path / "whole", spec_id="0123456789ab")
    folder = tmp_path / "other" / "detectron2"
    run(VOC, TINY_VOC, site, tmp_path / "other", spec_id="ba9876543210", hold=lambda: None)
    seen: list[Progress] = []
    found, _ = run(VOC, TINY_VOC, site, tmp_path / "other", spec_id="0123456789ab", report=seen.append)
    assert (found, seen[0].done) == (wanted, 4)
    assert {path.name for path in folder.glob("*.pth*")} >= {
        "model_final.pth",
        "model_final.pth.of-ba9876543210",
    }
    content = (folder / "model_final.pth").read_bytes()
    (folder / "model_final.pth").write_bytes(content[:-100])
    assert run(VOC, TINY_VOC, site, tmp_path / "other", spec_id="0123456789ab")[0] == wanted


def test_what_was_trained_to_its_end_is_only_tested_again(site: Site, tmp_path: Path) -> None:
    measured, _ = run(VOC, TINY_VOC, site, tmp_path / "run")
    seen: list[Progress] = []
    assert run(VOC, TINY_VOC, site, tmp_path / "run", report=seen.append)[0] == measured
    assert {progress.note for progress in seen} == {"testing"}


def test_statistics_of_batchnorm_that_were_interrupted_are_computed_again(site: Site, tmp_path: Path) -> None:
    measured, _ = run(VOC, TINY_VOC, site, tmp_path / "run")
    whole, folder = finished(tmp_path / "run")["model"], tmp_path / "run" / "detectron2"
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    seen: list[Progress] = []
    assert run(VOC, TINY_VOC, site, tmp_path / "run", report=seen.append)[0] == measured
    assert {progress.note for progress in seen} == {"testing"}
    trained = torch.load(folder / "model_0000003.pth", weights_only=True)["model"]
    moved = {
        name
        for name, value in finished(tmp_path / "run")["model"].items()
        if not torch.equal(value, trained[name])
    }
    assert moved
    assert {name.rpartition(".")[2] for name in moved} <= {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert all(torch.equal(value, finished(tmp_path / "run")["model"][name]) for name, value in whole.items())


def test_processes_that_decode_change_nothing(site: Site, tmp_path: Path) -> None:
    alone, _ = run(VOC, TINY_VOC, site, tmp_path / "0")
    helped, _ = run(VOC, TINY_VOC, dataclasses.replace(site, workers=2), tmp_path / "2")
    assert helped == alone
    wanted, found = (finished(tmp_path / name)["model"] for name in ("0", "2"))
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    assert not torch.multiprocessing.active_children(), "whoever decoded is gone"


def test_the_rate_of_each_step_is_the_protocols(site: Site) -> None:
    from detectron2.solver import build_lr_scheduler, build_optimizer

    protocol = VOCDetection(iterations=20, drops=(10, 15), warmup_iterations=4)
    cfg = detectron2._config(config.settings(protocol, "resnet18", TINY_VOC, device="cpu", seed=0))
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    for step in range(20):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(protocol.rate(step))
        optimizer.step()
        scheduler.step()


def test_a_checkpoint_of_other_images_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(VOC, TINY_VOC, site, tmp_path / "run", report=stop_at(2))
    with pytest.raises(ValueError, match="was trained on other images than this run's"):
        run(VOC, SyntheticVOC0712(num_trainval=21, num_test=20), site, tmp_path / "run")


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl", "weights.pyth"])
def test_no_code_in_a_checkpoint_is_executed(name: str, site: Site, tmp_path: Path) -> None:
    from reproduce.detection.detectron2_training import _checkpointer

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    content = {"model": {}, "model_state": {}, "__author__": "x", "trap": Trap()}
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(content))
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    (tmp_path / "executed").unlink()  # the trap works
    if name.endswith(".pkl"):
        (tmp_path / "plain.pkl").rename(tmp_path / name)
    else:
        torch.save(content, tmp_path / name)
    checkpointer = _checkpointer(torch.nn.Linear(1, 1), tmp_path, Watch(folder=tmp_path))
    with pytest.raises(pickle.UnpicklingError):
        checkpointer.load(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


def test_images_without_objects_are_named_in_a_line(site: Site, tmp_path: Path) -> None:
    train, test = (TINY_VOC.load(split, site) for split in (TINY_VOC.train_split, TINY_VOC.test_split))
    empty = dataclasses.replace(train, pictures=tuple(each._replace(instances=()) for each in train.pictures))
    with pytest.raises(ValueError, match="no training image has an object to learn from"):
        detectron2.fine_tune(
            VOC, encoder("resnet18_3x3"), TINY_VOC, empty, test, site, CPU, 5, Watch(folder=tmp_path)
        )


def test_a_loss_that_is_not_finite_ends_the_run_in_a_line(site: Site, tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"^Training failed at step \d: .* A lower base_lr may help\.$"
    ):
        run(dataclasses.replace(VOC, base_lr=1e12, warmup_iterations=0), TINY_VOC, site, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_a_line(workers: int, site: Site, tmp_path: Path) -> None:
    images = TINY_VOC.load("2007_test", site)
    (broken := tmp_path / "broken.jpg").write_bytes(images.pictures[0].file.read_bytes()[:-200])
    other = dataclasses.replace(
        images, pictures=(images.pictures[0]._replace(file=broken), *images.pictures[1:])
    )
    cfg = detectron2._config(config.settings(VOC, "resnet18_3x3", TINY_VOC, device="cpu", seed=0))
    model = detectron2._detector(cfg, seed=0)
    decoding = dataclasses.replace(site, workers=workers)
    for content, problem in (
        (None, "truncated"),
        (b"P6 60000 60000 255\n", r"Image size \(3600000000 pixels\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "cannot identify image file"),
    ):
        if content:
            broken.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^\S*broken.jpg cannot be used: .*{problem}"):
            detectron2._test(model, cfg, TINY_VOC, other, tmp_path, decoding, Watch())
    wider = dataclasses.replace(
        images, pictures=(images.pictures[0]._replace(width=65), *images.pictures[1:])
    )
    with pytest.raises(
        ValueError, match=r"cannot be used: Mismatched image shape.* got \(64, 64\), expect \(65, 64\)"
    ):
        detectron2._test(model, cfg, TINY_VOC, wider, tmp_path, decoding, Watch())


# Scores


class Oracle(torch.nn.Module):
    """A detector that returns given detections."""

    def __init__(self, found: dict[int | str, Predicted], images: Annotated) -> None:
        super().__init__()
        self.found, self.sizes = found, {each.id: (each.height, each.width) for each in images.pictures}

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from detectron2.structures import Boxes, Instances
        from pycocotools import mask

        made = []
        for given in batch:
            found, instances = self.found[given["image_id"]], Instances(self.sizes[given["image_id"]])
            instances.pred_boxes = Boxes(torch.tensor(found.boxes, dtype=torch.float32))
            instances.scores, instances.pred_classes = torch.tensor(found.scores), torch.tensor(found.labels)
            if found.masks is not None:
                decoded = np.zeros((0, *instances.image_size), bool)
                instances.pred_masks = torch.tensor(
                    mask.decode(list(found.masks)).transpose(2, 0, 1) > 0 if found.masks else decoded
                )
            made.append({"instances": instances})
        return made


def guesses(images: Annotated, *, masks: bool, perfect: bool) -> dict[int | str, Predicted]:
    """Return the objects themselves, or several moved copies of each.

    Some copies have another class. The masks are moved along with the boxes.
    """
    from pycocotools import mask

    draw = np.random.default_rng(0)

    def of(picture: Picture) -> Predicted:
        boxes, labels, encoded = [], [], []
        for each in picture.instances:
            if each.crowd:
                continue
            for number in range(1 if perfect else 3):
                shift = 0 if perfect else draw.normal(0, 2 + 3 * number)
                boxes.append([end + shift for end in each.box])
                labels.append(
                    each.label if perfect or draw.random() < 0.8 else draw.integers(len(images.classes))
                )
                if masks:
                    moved = [[end + shift for end in polygon] for polygon in each.segmentation or ()]
                    encoded.append(mask.merge(mask.frPyObjects(moved, picture.height, picture.width)))
        scores = (
            np.ones(len(boxes))
            if perfect
            else draw.permutation(len(boxes)) / (len(boxes) + 1) / 2 + draw.random() / 2
        )
        return Predicted(
            id=picture.id,
            boxes=np.array(boxes, np.float64).reshape(-1, 4),
            scores=scores.astype(np.float64),
            labels=np.array(labels, np.int64),
            masks=tuple(encoded) if masks else None,
        )

    return {picture.id: of(picture) for picture in images.pictures}


def scored(
    protocol: Any, dataset: DetectionDataset, site: Site, folder: Path, *, perfect: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores by Detectron2's evaluation, and by ours."""
    images = dataset.load(dataset.test_split, site)
    found = guesses(images, masks=protocol.masks, perfect=perfect)
    cfg = detectron2._config(config.settings(protocol, "resnet18", dataset, device="cpu", seed=0))
    if dataset.benchmark == "voc":
        detectron2.formats.write_voc(images, dataset.test_split, folder)
    results, seen = detectron2._test(Oracle(found, images), cfg, dataset, images, folder, site, Watch())
    theirs = detectron2.formats.measured(results, protocol.metrics, num_found=1)
    ours = {
        f"{prefix}{key}": getattr(found, key)
        for prefix, found in scores(protocol, images, seen).items()
        for key in ("ap", "ap50", "ap75")
    }
    return theirs, ours


def test_the_objects_themselves_have_an_average_precision_of_one(site: Site, tmp_path: Path) -> None:
    theirs, ours = scored(VOC, TINY_VOC, site, tmp_path, perfect=True)
    assert theirs == pytest.approx(dict.fromkeys(VOC.metrics, 1.0))
    assert ours == pytest.approx(theirs)


def test_detectron2s_average_precision_on_voc_is_ours_but_for_its_rounding(
    site: Site, tmp_path: Path
) -> None:
    theirs, ours = scored(VOC, TINY_VOC, site, tmp_path, perfect=False)
    assert 0.05 < theirs["ap"] < theirs["ap50"] < 0.95
    assert ours == pytest.approx(theirs, abs=detectron2.AGREEMENT["voc"])


@pytest.mark.parametrize("perfect", [True, False])
def test_detectron2s_average_precision_on_real_coco_images_is_ours(
    perfect: bool, site: Site, tmp_path: Path
) -> None:
    shared("coco")
    theirs, ours = scored(COCO, COCO2017(), site, tmp_path, perfect=perfect)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert all(math.isfinite(value) for value in theirs.values())
    assert (theirs["box_ap"] > 0.99) is perfect


# Processes


def one_of_two(folder: str, source: str) -> tuple[dict[str, float], dict[str, dict[int, dict[str, float]]]]:
    """Return what each of two processes measures and logs."""
    site = Site(runs=Path(folder), detectron2=Path(source) if source else None)
    record = Record()
    train, test = (TINY_VOC.load(split, site) for split in (TINY_VOC.train_split, TINY_VOC.test_split))
    watch = Watch(record, folder=Path(folder))
    measured = detectron2.fine_tune(VOC, encoder("resnet18_3x3"), TINY_VOC, train, test, site, CPU, 5, watch)
    return measured, {"logged": record.logged}


def test_two_processes_train_one_detector_and_agree_on_what_it_measures(site: Site, tmp_path: Path) -> None:
    TINY_VOC.load("2007_test", Site(runs=tmp_path))  # generated once
    (first, logged), (second, _) = on_two_processes(
        one_of_two, tmp_path, str(tmp_path), str(SITE.detectron2 or "")
    )
    assert first == second
    assert set(first) == set(VOC.metrics)
    whole, record = run(VOC, TINY_VOC, site, tmp_path / "alone")
    # The images, their order and the batch statistics are the same; the processes sample other proposals.
    assert logged["logged"][STEPS]["total_loss"] == pytest.approx(record.logged[STEPS]["total_loss"], rel=0.3)
    assert set(whole) == set(first)
