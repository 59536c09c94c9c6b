"""Encoders from elsewhere: real files of every kind, a real server, processes that race and are killed."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from toys import CPU, Notes
from waiting import thread_joined

from configs import released
from reproduce import plan
from reproduce.nn import backbones, weight_files
from reproduce.nn.encoder import Encoder
from reproduce.nn.weight_formats import read
from reproduce.nn.weights import Weights
from reproduce.runs import encoder_file
from reproduce.runs.progress import Progress, Watch
from reproduce.site import PROJECT, Site


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """The small backbone with statistics that differ from a new one's."""
    built: torch.nn.Module = backbones.build("small", seed=7)
    with torch.no_grad():
        for index, value in enumerate(built.state_dict().values()):
            value += 1 + index if value.dtype == torch.int64 else 0.01 * index
    return built.eval()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(runs=tmp_path / "runs", device="cpu")


def prefixed(network: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in network.state_dict().items()}


def saved(content: object, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def loaded(path: Path, site: Site, watch: Watch = Watch(), **settings: Any) -> Encoder:
    described = replace(weight_files.describe(path), **settings)
    weight_files.keep(path, described, site)
    return weight_files.load(described, site, CPU, watch)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def assert_same(encoder: Encoder, network: torch.nn.Module) -> None:
    assert not encoder.backbone.training
    assert encoder.projector is None
    with torch.no_grad():
        torch.testing.assert_close(encoder.backbone(images()), network(images()), rtol=1e-6, atol=1e-6)
    assert encoder.digest == encoder_file.digest(encoder.backbone.state_dict())


# Formats and names

LAYOUTS: dict[str, Callable[[torch.nn.Module], Any]] = {
    "torchvision": lambda net: net.state_dict(),
    "moco": lambda net: {
        "epoch": 200,
        "arch": "resnet50",
        # The key encoder has other values, which must not be used.
        "state_dict": {f"module.encoder_k.{k}": v + 1 for k, v in net.state_dict().items()}
        | prefixed(net, "module.encoder_q.")
        | {"module.encoder_q.fc.0.weight": torch.ones(3), "module.queue": torch.ones(2, 2)},
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(1)}},
            "param_groups": [{"lr": 0.03, "params": [0]}],
        },
    },
    "simsiam": lambda net: {
        "state_dict": prefixed(net, "module.encoder.") | {"module.predictor.0.weight": torch.ones(2)}
    },
    "swav": lambda net: OrderedDict(prefixed(net, "module.") | {"module.prototypes.weight": torch.ones(2)}),
    "vissl": lambda net: {
        "classy_state_dict": {
            "base_model": {
                "model": {"trunk": prefixed(net, "_feature_blocks."), "heads": {"0.w": torch.ones(1)}}
            }
        }
    },
    "pixpro": lambda net: {
        "model": prefixed(net, "module.encoder.") | {"module.encoder_k.stem.0.weight": torch.ones(1)}
    },
    "byol": lambda net: {
        "network": prefixed(net, "online.backbone.")
        | {f"target.backbone.{k}": v * 2 for k, v in net.state_dict().items()}
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backbone_is_found_under_every_repositorys_names(
    layout: str, legacy: bool, network: torch.nn.Module, site: Site, tmp_path: Path
) -> None:
    path = saved(LAYOUTS[layout](network), tmp_path / "x.pth.tar", _use_new_zipfile_serialization=not legacy)
    assert_same(loaded(path, site), network)


def test_safetensors_and_our_own_encoders_are_read(
    network: torch.nn.Module, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {name: value.clone() for name, value in prefixed(network, "backbone.").items()} | {
        "projector.0.weight": torch.ones(2, 2)
    }
    save_file(tensors, tmp_path / "other.name")
    notes = Notes()
    assert_same(loaded(tmp_path / "other.name", site, Watch(notes)), network)
    assert notes.tags == {"weights_missing": "none", "weights_unused": "projector.0.weight"}
    assert caplog.messages == ["weights_unused: projector.0.weight"]


def test_an_archive_of_one_file_is_opened_and_of_two_refused(
    network: torch.nn.Module, site: Site, tmp_path: Path
) -> None:
    one = saved(network.state_dict(), tmp_path / "student.pth.tar")
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.write(one, "folder/student.pth.tar")
        archive.writestr("folder/README.txt", "hello")
    assert_same(loaded(tmp_path / "release.zip", site), network)
    with zipfile.ZipFile(tmp_path / "release.zip", "a") as archive:
        archive.write(one, "folder/teacher.pth")
    with pytest.raises(
        ValueError,
        match=r"an archive with 2 files of weights \(folder/student.pth.tar, folder/teacher.pth\): unpack "
        r"it and pass one",
    ):
        read(tmp_path / "release.zip")


def test_half_precision_and_missing_counters_are_fine_and_are_told(
    network: torch.nn.Module, site: Site, tmp_path: Path
) -> None:
    state = {
        name: value.half()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    notes = Notes()
    encoder = loaded(saved(state, tmp_path / "x.pth"), site, Watch(notes))
    assert {value.dtype for value in encoder.backbone.parameters()} == {torch.float32}
    assert notes.tags["weights_missing"].startswith("stem.1.num_batches_tracked, ")
    assert notes.tags["weights_unused"] == "none"


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18_3x3", "resnet18_cifar", pytest.param("resnet50", marks=pytest.mark.slow)]
)
def test_the_backbone_follows_from_the_tensors_and_the_images_from_the_backbone(
    name: str, tmp_path: Path
) -> None:
    state = {f"module.{key}": value for key, value in backbones.build(name, seed=0).state_dict().items()}
    path = saved(state | {"module.fc.weight": torch.ones(3, 3)}, tmp_path / "x.pth")
    found = weight_files.describe(path, name if name in backbones.SAME_TENSORS else "")
    assert found.backbone == name
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    geometry = {"resnet18_3x3": (64, 70, 96), "resnet18_cifar": (32, 35, 48)}
    assert (found.size, found.resize, found.canvas) == geometry.get(name, (224, 256, 448))
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (found.url, found.prefix) == ("", "")


def test_a_small_network_sees_small_images(network: torch.nn.Module, tmp_path: Path) -> None:
    found = weight_files.describe(saved(network.state_dict(), tmp_path / "x.pth"))
    assert (found.backbone, found.size, found.resize, found.canvas) == ("small", 32, 32, 32)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


# Refusals


def test_a_deeper_network_is_not_taken_for_a_shallower_one(tmp_path: Path) -> None:
    state = backbones.build("resnet18", seed=0).state_dict()
    deeper = state | {"layer1.2.conv1.weight": state["layer1.1.conv1.weight"]}
    with pytest.raises(
        ValueError,
        match=r"does not fit resnet18: .* 1 are unexpected \(layer1\.2\.conv1\.weight\); .* Known: small, "
        r"resnet18",
    ):
        weight_files.describe(saved(deeper, tmp_path / "x.pth"))


def test_what_is_missing_or_of_another_shape_is_listed(
    network: torch.nn.Module, site: Site, tmp_path: Path
) -> None:
    state = dict(network.state_dict())
    del state["stem.1.running_var"]
    state["blocks.0.conv1.weight"] = torch.ones(16, 16, 5, 5)
    path = saved(state, tmp_path / "x.pth")
    wrong = r"blocks\.0\.conv1\.weight is \(16, 16, 5, 5\), not \(16, 16, 3, 3\)"
    fault = rf"1 are missing \(stem\.1\.running_var\), 1 have another shape or type \({wrong}\)"
    for backbone in ("", "small"):
        with pytest.raises(ValueError, match=fault):
            weight_files.describe(path, backbone)
    kept = Weights(backbone="small", sha256=weight_files.sha256(path))
    weight_files.place(kept, site).parent.mkdir(parents=True)
    weight_files.place(kept, site).write_bytes(path.read_bytes())
    with pytest.raises(
        ValueError, match=rf"^runs/weights/{kept.sha256[:12]}/weights does not fit small: .*{fault}"
    ):
        weight_files.load(kept, site, CPU)


def test_two_networks_in_a_file_must_be_told_apart_by_a_prefix(
    network: torch.nn.Module, site: Site, tmp_path: Path
) -> None:
    other = {name: value + 1 for name, value in prefixed(network, "backbone.").items()}
    path = saved({"student": prefixed(network, "backbone."), "teacher": other}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError,
        match=r"several networks: choose one with --prefix NAME, where NAME is "
        r"'student\.backbone\.' \(small\) or 'teacher",
    ):
        loaded(path, site)
    student, teacher = (weight_files.describe(path, prefix=name) for name in ("student", "teacher."))
    assert (student.prefix, teacher.prefix) == ("student.backbone.", "teacher.backbone.")
    assert student.id != teacher.id
    weight_files.keep(path, student, site)
    assert_same(weight_files.load(student, site, CPU), network)
    taught = weight_files.load(teacher, site, CPU).backbone.state_dict()
    torch.testing.assert_close(taught["stem.0.weight"], network.state_dict()["stem.0.weight"] + 1)
    with pytest.raises(ValueError, match="contains several networks"):
        weight_files.load(replace(student, prefix=""), site, CPU)
    with pytest.raises(ValueError, match="but not under the prefix 'assistant'"):
        weight_files.describe(path, prefix="assistant")
    twice = saved({"model": network.state_dict(), "state_dict": network.state_dict()}, tmp_path / "y.pth")
    assert_same(loaded(twice, site), network)


class Trap:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(network: torch.nn.Module, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    path = saved({"state_dict": network.state_dict(), "extra": trap}, tmp_path / "zip.pth")
    old = saved(
        {"state_dict": network.state_dict(), "extra": trap},
        tmp_path / "old.pth",
        _use_new_zipfile_serialization=False,
    )
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(trap))
    for each, says in (
        (path, "which cannot be read without executing code; only tensors and plain settings are read"),
        (old, "which cannot be read without executing code; only tensors and plain settings are read"),
        (tmp_path / "raw.pkl", "is a plain pickle, .* can execute code"),
    ):
        with pytest.raises(ValueError, match=says) as refused:
            read(each)
        assert "\n" not in str(refused.value)
    assert not trap.path.exists()
    pickle.loads((tmp_path / "raw.pkl").read_bytes())
    assert trap.path.exists()  # it would have


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0, 3, 100, 20_000, -1])
def test_a_file_cut_short_is_refused_in_one_line(
    kept: int, legacy: bool, network: torch.nn.Module, tmp_path: Path
) -> None:
    path = saved(network.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ValueError,
        match=r"is empty|is broken",
    ) as refused:
        read(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_and_a_backbone_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"^\S*nowhere\.pth does not exist\.$"):
        weight_files.describe(tmp_path / "nowhere.pth")
    with pytest.raises(LookupError, match=r"There is no backbone 'resnet51'\. Did you mean 'resnet50'"):
        weight_files.describe(saved({}, tmp_path / "x.pth"), "resnet51")


def test_a_file_that_changes_while_it_is_described_is_not_kept(
    network: torch.nn.Module, site: Site, tmp_path: Path
) -> None:
    path = saved(network.state_dict(), tmp_path / "x.pth")
    described = weight_files.describe(path)
    saved({name: value + 1 for name, value in network.state_dict().items()}, path)
    with pytest.raises(ValueError, match=rf"has SHA-256 [0-9a-f]{{64}}, but {described.sha256} is expected"):
        weight_files.keep(path, described, site)
    assert not weight_files.place(described, site).exists()


def test_the_path_and_the_name_of_a_file_do_not_matter(
    network: torch.nn.Module, site: Site, tmp_path: Path
) -> None:
    path = saved(network.state_dict(), tmp_path / "x.pth")
    described = weight_files.describe(path)
    weight_files.keep(path, described, site)
    moved = path.rename(tmp_path / "y.pt")
    assert weight_files.describe(moved) == described
    moved.unlink()
    assert_same(weight_files.load(described, site, CPU), network)
    with pytest.raises(
        LookupError,
        match=rf"SHA-256 {'0' * 64} are missing: pass their file to --checkpoint again, or copy .* to "
        rf"runs/weights/0",
    ):
        weight_files.load(Weights(backbone="small", sha256="0" * 64), site, CPU)


# What is said about a file


def test_one_line_says_what_is_taken_and_what_is_left_out(network: torch.nn.Module, tmp_path: Path) -> None:
    path = saved(LAYOUTS["moco"](network), tmp_path / "moco.pth.tar")
    total = len(network.state_dict())
    assert weight_files.remark(path, weight_files.describe(path)) == (
        f"{path}: small under 'state_dict.module.encoder_q.'; the networks that follow it are left out "
        f"(state_dict.module.encoder_k.); {total + 3} of {2 * total + 3} tensors are not used "
        "(state_dict.module.encoder_k.stem.0.weight, state_dict.module.encoder_k.stem.1.weight, "
        f"state_dict.module.encoder_k.stem.1.bias and {total} more)."
    )
    plain = saved(network.state_dict(), tmp_path / "x.pth")
    assert weight_files.remark(plain, weight_files.describe(plain)) == f"{plain}: small."
    sequential = torch.nn.Sequential(*list(models.resnet18().children())[:-1])
    other = saved(prefixed(sequential, "backbone."), tmp_path / "y.ckpt")
    assert weight_files.remark(other, weight_files.describe(other)) == (
        f"{other}: resnet18 under 'backbone.' with the names of torchvision's modules in an nn.Sequential, "
        "as in lightly's examples."
    )


# Releases


class Server(ThreadingHTTPServer):
    """A server of `content`, or of the answers of `answer`, that counts the requests."""

    content = b""
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None
    count = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/encoder_100ep.pth.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.count += 1
        if self.server.answer is not None:
            self.server.answer(self)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *arguments: Any) -> None: ...


@pytest.fixture
def server(network: torch.nn.Module, tmp_path: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.content = saved(prefixed(network, "module."), tmp_path / "served").read_bytes()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread_joined(thread)


def release(server: Server, **settings: Any) -> Weights:
    return Weights(backbone="small", url=server.url, **settings)


def test_a_release_is_fetched_once_and_its_digest_recorded(
    server: Server, network: torch.nn.Module, site: Site
) -> None:
    spec = release(server)
    told: list[Progress] = []
    assert_same(weight_files.load(spec, site, CPU, Watch(report=told.append)), network)
    # The file is the same.
    assert_same(weight_files.load(replace(spec, std=(0.2, 0.2, 0.2), prefix="module."), site, CPU), network)
    assert server.count == 1
    digest = hashlib.sha256(server.content).hexdigest()
    folder = weight_files.place(spec, site).parent
    assert (folder / "sha256").read_text() == f"{digest}  encoder_100ep.pth.tar\n"
    assert {path.name for path in folder.iterdir()} == {"encoder_100ep.pth.tar", "sha256", "lock"}
    assert told[-1] == Progress(len(server.content) // 2**20, 1, "MiB", "fetching encoder_100ep.pth.tar")


def test_what_was_recorded_holds_when_the_file_is_deleted(server: Server, site: Site) -> None:
    spec = release(server)
    weight_files.load(spec, site, CPU)
    path, first = weight_files.place(spec, site), server.content
    path.unlink()
    server.content = first + b"\0"
    new, old = (hashlib.sha256(content).hexdigest() for content in (server.content, first))
    expected = rf"^{server.url} has SHA-256 {new}, but {old} is expected\. "
    with pytest.raises(ValueError, match=expected):
        weight_files.load(spec, site, CPU)
    assert not path.exists()
    server.content = first
    weight_files.load(spec, site, CPU)
    path.write_bytes(first[:-1] + b"!")
    with pytest.raises(
        ValueError,
        match=rf"^runs/weights/.*/encoder_100ep\.pth\.tar has SHA-256 .* but "
        rf"{hashlib.sha256(first).hexdigest()}",
    ):
        weight_files.load(spec, site, CPU)


def test_a_published_digest_is_checked_from_the_first_download_on(
    server: Server, network: torch.nn.Module, site: Site
) -> None:
    with pytest.raises(ValueError, match=f"but {'ab' * 32} is expected"):
        weight_files.load(release(server, sha256="ab" * 32), site, CPU)
    assert_same(
        weight_files.load(release(server, sha256=hashlib.sha256(server.content).hexdigest()), site, CPU),
        network,
    )


def test_an_error_page_is_not_recorded_as_the_release(
    server: Server, network: torch.nn.Module, site: Site
) -> None:
    right = server.content
    for wrong, says in (
        (b"<!DOCTYPE html><p>Log in", "is a web page"),
        (b"", "is empty"),
        (right[:-1000], "is broken, because its end is missing"),
    ):
        server.content = wrong
        with pytest.raises(ValueError, match=rf"^{server.url} {says}"):
            weight_files.load(release(server), site, CPU)
        assert [path.name for path in weight_files.place(release(server), site).parent.iterdir()] == ["lock"]
    server.content = right
    assert_same(weight_files.load(release(server), site, CPU), network)


def not_found(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def cut_off(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    request.wfile.write(b"PK" + b"\0" * 998)


@pytest.mark.parametrize(
    ("answer", "says"),
    [(not_found, "Not Found"), (cut_off, "the connection ended after 1000 of 1000000 bytes")],
)
def test_what_cannot_be_fetched_says_where_to_put_it(
    answer: Callable[[BaseHTTPRequestHandler], None],
    says: str,
    server: Server,
    network: torch.nn.Module,
    site: Site,
) -> None:
    spec, right = release(server), server.content
    server.answer = answer
    place = weight_files.place(spec, site)
    where = f"runs/weights/{place.parent.name}/encoder_100ep.pth.tar"
    with pytest.raises(
        LookupError,
        match=rf"^{server.url} cannot be fetched \({says}\): .* copy the file to {where} in the folder of "
        rf"runs",
    ):
        weight_files.load(spec, site, CPU)
    place.write_bytes(right)
    assert_same(weight_files.load(spec, site, CPU), network)
    assert (place.parent / "sha256").read_text().split()[0] == hashlib.sha256(right).hexdigest()


def test_offline_and_unsafe_addresses_are_named(site: Site, server: Server) -> None:
    url = server.url.replace(str(server.server_port), "1")
    with pytest.raises(
        LookupError,
        match=rf"^{url} cannot be fetched \(.*refused.*\): try again with a network connection, or copy "
        rf"the file to runs/",
    ):
        weight_files.load(Weights(backbone="small", url=url), site, CPU)
    for address in ("http://example.org/x.pth", "file:///etc/passwd", "ftp://example.org/x.pth"):
        with pytest.raises(ValueError, match="is not fetched, because it is not an https address"):
            weight_files.load(Weights(url=address), site, CPU)


LOAD = """
import sys, torch
from pathlib import Path
from reproduce.nn import weight_files
from reproduce.site import Site
from reproduce.nn.weights import Weights
weights, site = Weights(backbone="small", url=sys.argv[1]), Site(runs=Path(sys.argv[2]))
print(weight_files.load(weights, site, torch.device("cpu")).digest)
"""


def loader(server: Server, site: Site) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD, server.url, str(site.runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_processes_that_race_fetch_once_and_a_killed_one_leaves_nothing_behind(
    server: Server, network: torch.nn.Module, site: Site
) -> None:
    half, gone = threading.Event(), threading.Event()

    def stall(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(server.content)))
        request.end_headers()
        request.wfile.write(server.content[:1000])
        request.wfile.flush()
        half.set()
        gone.wait(60)

    server.answer = stall
    killed = loader(server, site)
    assert half.wait(60)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    gone.set()
    assert not weight_files.place(release(server), site).exists()
    server.answer, server.count = None, 0
    racers = [loader(server, site) for _ in range(2)]
    digests = {racer.communicate(timeout=120)[0].strip() for racer in racers}
    assert digests == {weight_files.load(release(server), site, CPU).digest}
    assert server.count == 1
    assert {path.name for path in weight_files.place(release(server), site).parent.iterdir()} == {
        "encoder_100ep.pth.tar",
        "sha256",
        "lock",
    }


# The list of releases


def test_every_release_has_an_address_of_its_own_and_its_normalisation() -> None:
    found = plan.released()
    assert {
        "moco_v2_200",
        "simsiam_100",
        "barlow_twins_1000",
        "vicreg_1000",
        "swav_800",
        "pcl_v2_200",
        "obow_200",
        "simclr_1000",
    } <= set(found)
    assert len({each.url for each in found.values()}) == len(found)
    assert len({each.id for each in found.values()}) == len(found)
    for name, each in found.items():
        assert each.url.startswith("https://")
        assert (each.backbone, each.size, each.resize, each.canvas) == ("resnet50", 224, 256, 448)
        assert each.mean == (0.485, 0.456, 0.406)
        assert each.std == ((0.228, 0.224, 0.225) if name.startswith("swav") else (0.229, 0.224, 0.225))
        assert getattr(released, name.upper()) is each
