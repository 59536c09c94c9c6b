"""What tests share: images in memory, an untrained encoder, a spec, a record that keeps what it is told, a
second process, a web server."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from waiting import joined, thread_joined

from reproduce.data.augmentation import Augmentation
from reproduce.data.dataset import Dataset
from reproduce.data.images import CentreCrop, Found, Images, Shape, Whole
from reproduce.methods.method import Batch as Step
from reproduce.methods.msbreg import MSBReg
from reproduce.nn import backbones
from reproduce.nn.encoder import FILE, Encoder
from reproduce.nn.optimizers import LARS
from reproduce.protocols.protocol import Protocol
from reproduce.report.filled import Filled, fill
from reproduce.report.observe import Finished, frame
from reproduce.report.table import Table
from reproduce.runs import encoder_file
from reproduce.settings import Resampling
from reproduce.site import Site
from reproduce.spec import Pretrain, Spec
from reproduce.tracking.store import Store
from reproduce.train import build_network, encoder_of

R = TypeVar("R")

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c", "d", "e", "f")
READ: dict[str, list[list[int]]] = {}
"""The images read since it was last emptied, batch by batch: for each split as whole images (`train`) and as
crops (`train crops`)."""


def images_read(key: str) -> list[int]:
    """Those of all batches."""
    return [index for batch in READ[key] for index in batch]


class Pictures(Images):
    """Images in memory; their digest is not known."""

    def __init__(self, pixels: NDArray[np.uint8], labels: ArrayLike, classes: Sequence[str]) -> None:
        super().__init__(labels, classes)
        self.pixels = pixels

    def name(self, index: int) -> str:
        return f"image {index}"

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    @property
    def digest(self) -> str:
        return ""


def brighter_by_class(labels: Sequence[int], *, noise: int, step: int, seed: int) -> NDArray[np.uint8]:
    """Random pixels below `noise`, brighter by `step` from one label to the next, -1 the darkest."""
    random = np.random.default_rng(seed).integers(0, noise, (len(labels), 20, 24, 3))
    return (random + step * (1 + np.array(labels))[:, None, None, None]).astype(np.uint8)


class Arrays(Pictures):
    """Pictures of the classes that tell which of them are read."""

    def __init__(self, split: str, classes: list[int], seed: int, labels: list[int] | None = None) -> None:
        pixels = brighter_by_class(classes, noise=90, step=20, seed=seed)
        super().__init__(pixels, classes if labels is None else labels, CLASSES)
        self.split = split

    def find(self, indices: Any, shape: Shape) -> Found:
        key = self.split if isinstance(shape, Whole) else f"{self.split} crops"
        READ.setdefault(key, []).append(np.asarray(indices).tolist())
        return super().find(indices, shape)


@dataclass(frozen=True, kw_only=True)
class Toy(Dataset, name="toy_of_classifiers"):
    """Images of six classes; every seventh of `train` has no label."""

    num_train: int = 140
    num_test: int = 60
    size: int = 16
    resize: int = 16
    canvas: int = 16
    mean: tuple[float, float, float] = (0.5, 0.4, 0.3)
    std: tuple[float, float, float] = (0.2, 0.3, 0.4)
    shift: int = 0
    """Number that is added to the class of each test image, modulo 6, to give its label."""
    subset: tuple[int, ...] = tuple(index for index in range(54) if index % 7)

    title: ClassVar[str] = "toy images"
    test_split: ClassVar[str] = "test"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    def load(self, split: str, site: Site) -> Images:
        if split == "test":
            labels = [(i + self.shift) % 6 for i in range(self.num_test)]
            return Arrays(split, [i % 6 for i in range(self.num_test)], 1, labels)
        return Arrays(split, [i % 7 - 1 for i in range(self.num_train)], seed=2)

    def check_subset(self, name: str, site: Site, *, fetch: bool = True) -> None: ...

    def labelled_subset(self, name: str, site: Site) -> NDArray[np.int64]:
        return np.array(self.subset, np.int64)


@dataclass(frozen=True, kw_only=True)
class Recorded(Dataset, name="toy"):
    """The data set of runs that are recorded and never executed."""

    size: int = 32
    resize: int = 64
    canvas: int = 64
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    sizes: tuple[int, ...] = (32, 64)

    title: ClassVar[str] = "Toy"


@dataclass(frozen=True, kw_only=True)
class Judge(Protocol, name="toy"):
    """The protocol of evaluations that are recorded and never executed."""

    k: int | None = None

    metrics = ("top1",)


PRETRAIN = Pretrain(
    method=MSBReg(),
    dataset=Recorded(),
    backbone="small",
    augmentation=Augmentation(),
    optimizer=LARS(base_lr=0.5),
    epochs=3,
    batch_size=32,
)
"""A run that is recorded and never done."""


def backbone(spec: Pretrain) -> dict[str, torch.Tensor]:
    """Return an encoder's tensors, which fit the backbone of a run and differ from those of another run."""
    state = backbones.build(spec.backbone, seed=spec.method.num_views).state_dict()
    return {f"backbone.{name}": tensor for name, tensor in state.items()}


def recorded(store: Store, site: Site, spec: Spec, final: Mapping[str, float]) -> str:
    """Record a finished run that was never executed, with an encoder if it is a pretraining.

    Returns:
        MLflow's id of the run.
    """
    with store.start(spec, scale="smoke") as run:
        run.log(1, {"loss": 4.0})
        if isinstance(spec, Pretrain):
            path = encoder_file.save(site.runs / spec.id / FILE, backbone(spec), spec_id=spec.id)
            run.artifact(path)
        else:
            run.tag("encoder_digest", encoder_file.digest(backbone(spec.encoder)))
        run.finish(final)
    return run.run_id


def batch(views: list[torch.Tensor], *, seed: int = 0, step: int = 0, num_steps: int = 10) -> Step:
    """Return a step of a run with one epoch on these views, whose images are numbered from 0."""
    n = len(views[0])
    return Step(
        views=views,
        indices=torch.arange(n),
        boxes=[torch.zeros(n, 4, dtype=torch.int64)] * len(views),
        flips=[torch.zeros(n, dtype=torch.bool)] * len(views),
        sizes=torch.full((n, 2), 20),
        seed=seed,
        epoch=0,
        step=step,
        steps_per_epoch=num_steps,
        num_steps=num_steps,
    )


class Notes:
    """A record in memory."""

    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: list[Path] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.setdefault(step, {}).update(metrics)

    def flush(self) -> None: ...

    def tag(self, name: str, value: str) -> None:
        self.tags[name] = value

    def facts(self, values: Mapping[str, str]) -> None:
        self.tags |= values

    def artifact(self, path: Path) -> None:
        self.artifacts.append(path)

    def of(self, name: str) -> list[float]:
        """The values of one measurement, in the order of steps."""
        return [metrics[name] for _, metrics in sorted(self.logged.items()) if name in metrics]


def encoder() -> Encoder:
    """One that was never trained, as `encoder.load` hands it out: frozen and in eval mode."""
    spec = Pretrain(
        method=MSBReg(),
        dataset=Toy(),
        backbone="small",
        augmentation=Augmentation(),
        optimizer=LARS(base_lr=0.1),
        epochs=0,
        batch_size=8,
    )
    online = build_network(spec).online
    online.eval().requires_grad_(False)
    return encoder_of(spec, online)


def ended(target: Callable[..., None], *arguments: object) -> int | None:
    """Runs `target` in a process of its own, a fork of this one, and returns its exit code, -n after signal
    n."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return joined(process)


def on_two_processes(work: Callable[..., R], folder: Path, *arguments: Any) -> list[R]:
    """What `work(*arguments)`, a function of a module, returns on each of two processes of one run; they meet
    in `folder`.

    They are forks of a server, which imports torch, once for all tests.
    """
    start_fork_server()
    given = (work, str(folder), arguments, dict(os.environ))
    torch.multiprocessing.start_processes(_one_of_two, given, nprocs=2, start_method="forkserver")
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


@cache
def start_fork_server() -> None:
    """Start the server of the method `forkserver`, with what each of its processes needs: optimisers import
    torch's compiler."""
    multiprocessing.set_forkserver_preload([__name__, "torch._dynamo"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()


def _one_of_two(
    rank: int,
    work: Callable[..., Any],
    folder: str,
    arguments: tuple[Any, ...],
    environment: Mapping[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(work(*arguments)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # as `distributed.leave` does, and for its reason


def fill_from(
    table: Table, seeds: int, finished: Mapping[str, Finished], reasons: Mapping[str, str]
) -> Filled:
    """Return the table with the numbers of these runs; `reasons` says why a run is not finished."""
    return fill(table, seeds, frame(table, seeds, finished, reasons))


def image_folder(root: Path, *, train: int = 60, val: int = 2, classes: int = 10) -> Path:
    """Write a data set with one folder per class: `train` and `val` images of each, and return its root.

    An image is one pixel.
    """
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label:08}"
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                colour = bytes((label % 256, index % 256, index // 256 + 100 * (split == "val")))
                (folder / f"{index}.ppm").write_bytes(b"P6 1 1 255\n" + colour)
    return root


def originals(images: Images, indices: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whole images, (n, 3, height, width) uint8 if they have one size, and their sizes, (n, 2)."""
    batch = images.read(indices, Whole())
    return batch.pixels, batch.sizes


def centre_crops(
    images: Images, indices: ArrayLike, resize: int, size: int, resampling: Resampling = "bicubic"
) -> torch.Tensor:
    """Return centre crops of images whose shorter side is first `resize`, (n, 3, size, size) uint8."""
    return images.read(indices, CentreCrop(resize, size, resampling)).pixels


@contextmanager
def web_server(name: str, content: bytes = b"") -> Iterator[dict[str, Any]]:
    """Serve one file on this machine inside the block.

    The state has its `url`, the paths that were `asked` for, and may be changed: `content` (404 without) and
    `length`, by default that of the content.
    """
    state: dict[str, Any] = {"content": content, "length": None, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if state["content"] else 404)
            self.send_header("Content-Length", str(state["length"] or len(state["content"])))
            self.end_headers()

        def do_GET(self) -> None:
            state["asked"].append(self.path)
            self.do_HEAD()
            self.wfile.write(state["content"])

        def log_message(self, *arguments: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state["url"] = f"http://127.0.0.1:{running.server_port}/{name}"
    try:
        yield state
    finally:
        running.shutdown()
        thread_joined(thread)
        running.server_close()
