"""`invoke doctor`: its report on this machine and every table, and that it touches nothing."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import threading
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from toys import image_folder

from configs.pretrain import byol, imagenet100, msbreg
from reproduce import messages
from reproduce.commands import disk, doctor
from reproduce.commands.doctor import Machine, Need
from reproduce.data.dataset import Dataset
from reproduce.data.detection import DetectionDataset
from reproduce.data.imagenet import ImageNet
from reproduce.data.imagenet100 import ImageNet100
from reproduce.data.imagenette import Imagenette
from reproduce.data.inaturalist2018 import INaturalist2018
from reproduce.data.places205 import Places205
from reproduce.data.stl10 import STL10
from reproduce.data.voc2007 import VOC2007
from reproduce.nn.cost import Sizes
from reproduce.nn.heads import Heads
from reproduce.nn.weights import Weights
from reproduce.plan import SCALES, SYNTHETIC, components, table_names
from reproduce.protocols.knn import NearestNeighbours
from reproduce.protocols.semi import SemiSupervised
from reproduce.protocols.voc_detection import VOCDetection
from reproduce.readiness import missing
from reproduce.runs import checkpoint
from reproduce.site import PROJECT, Site, data_roots
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking.store import Store
from reproduce.train import build_network, encoder_of

if TYPE_CHECKING:
    from conftest import Home

LIST = "n01440764\nn01443537\n"
LAYOUTS = {
    "imagenet": (ImageNet(), ("train/", "val/")),
    "imagenet100": (
        ImageNet100(class_list_sha256=hashlib.sha256(LIST.encode()).hexdigest()),
        ("train/", "val/", "imagenet100.txt"),
    ),
    "imagenette": (Imagenette(), ("train/", "val/")),
    "imagenette, unpacked": (Imagenette(), ("imagenette2-160/train/", "imagenette2-160/val/")),
    "inaturalist2018": (INaturalist2018(), ("train2018.json", "val2018.json", "train_val2018/")),
    "places205": (
        Places205(),
        (
            "trainvalsplit_places205/train_places205.csv",
            "trainvalsplit_places205/val_places205.csv",
            "images256/",
        ),
    ),
    "stl10": (
        STL10(),
        tuple(
            f"stl10_binary/{name}.bin" for name in ("train_X", "train_y", "test_X", "test_y", "unlabeled_X")
        ),
    ),
    "stl10, itself": (
        STL10(),
        tuple(f"{name}.bin" for name in ("train_X", "train_y", "test_X", "test_y", "unlabeled_X")),
    ),
    "voc2007": (
        VOC2007(),
        tuple(
            f"VOC2007/{name}"
            for name in (
                "JPEGImages/",
                "Annotations/",
                "ImageSets/Main/trainval.txt",
                "ImageSets/Main/test.txt",
            )
        ),
    ),
}
"""Content of each data set's root; a folder ends in a slash."""
KEYS = {"imagenet100": "imagenet", "voc2007": "voc"}
"""Keys in the site file that differ from the data set's name."""
MINE = Weights(backbone="small", sha256="3f" * 32, size=32, resize=32, canvas=32)


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def machine(site: Site) -> Machine:
    return Machine(site, Store(site))


def lay_out(root: Path, places: tuple[str, ...]) -> Path:
    for place in places:
        path = root / place
        (path if place.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if path.name.endswith("_X.bin"):
            with path.open("wb") as file:  # black images, which take no space on the disk
                file.truncate(STL10.published[path.name.removesuffix("_X.bin")] * 3 * 96 * 96)
        elif path.name.endswith("_y.bin"):
            num_images = STL10.published[path.name.removesuffix("_y.bin")]
            path.write_bytes(bytes(range(1, 11)) * (num_images // 10))
        elif not place.endswith("/"):
            path.write_text("000001\n" if path.name == "test.txt" else LIST)
    return root


def entries(text: str) -> dict[str, str]:
    """Return the report's entries by label, their lines joined; a table's label is `table1 smoke`."""
    found: dict[str, str] = {}
    label = ""
    for line in text.splitlines():
        if match := re.match(r"  (\S+(?: +(?:smoke|small|paper)\b)?)  +(.*)", line):
            label = " ".join(match[1].split())
            assert label not in found, f"{label} is there twice"
            found[label] = match[2].strip()
        elif line.startswith("   "):
            found[label] += f" {line.strip()}"
    return found


def told(site: Site, table: str = "table9", scale: str = "smoke") -> dict[str, str]:
    return entries("\n".join(doctor.report(doctor.requests(table, scale), site, Store(site))))


# The command


@pytest.mark.slow
def test_where_everything_is_missing_it_says_so_of_every_table_and_writes_nothing(home: Home) -> None:
    before = home.files()
    done = home.invoke("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert home.files() == before
    assert not home.runs.exists()
    found = entries(done.stdout)
    places = [label for label in found if " " in label]
    assert places == [f"{table} {scale}" for table in table_names() for scale in SCALES]
    for place in places:
        table, scale = place.split()
        if table == "table9":
            assert found[place] == "runs nothing"
        elif scale == "smoke":
            assert found[place].endswith("  ready"), (
                f"{place}: the smoke scale needs nothing that is not installed"
            )
            startable, num_runs = re.findall(r"^(\d+) of (\d+)", found[place])[0]
            assert startable == num_runs
        else:
            assert re.match(r"0 of \d+ .* missing: .*\bGPU\b", found[place])
    assert "missing: imagenet, GPU" in found["table2 paper"]
    assert {"imagenet", "voc2007", "places205", "inaturalist2018"} <= set(
        re.findall(r"\w+", found["table5 paper"])
    )
    assert "the paper used 8 GPUs of 16 GB" in " ".join(done.stdout.split())
    assert f"Ready tables: {len(table_names())} of {len(table_names())} at smoke" in done.stdout
    following = " ".join(done.stdout.split()).partition("Next: ")[2]
    assert following.startswith("11 tables at small lack a GPU, ")
    assert "lack imagenette" in following
    unbroken = ("git clone", str(home.folder), "missing: ")  # a command, a path and a table's line stay whole
    long = [
        line
        for line in done.stdout.splitlines()
        if len(line) > doctor.WIDTH and not any(part in line for part in unbroken)
    ]
    assert not long


@pytest.mark.slow
def test_a_table_at_a_scale_with_one_root_here_one_wrong_and_a_folder_that_is_not_detectron2(
    home: Home,
) -> None:
    imagenet = lay_out(home.folder / "imagenet", LAYOUTS["imagenet"][1])
    places = lay_out(home.folder / "places", ("images256/", "trainvalsplit_places205/train_places205.csv"))
    home.site_file.write_text(
        f'runs = "{home.runs}"\ndevice = "cpu"\njobs = 2\ndetectron2 = "{home.folder}"\n'
        f'[data]\nimagenet = "{imagenet}"\nplaces205 = "{places}"\n'
    )
    done = home.invoke("doctor", "--table", "table5", "--scale", "paper")
    assert (done.returncode, done.stderr) == (0, "")
    found = entries(done.stdout)
    assert found["imagenet"].startswith(f"{imagenet}/train contains no class folders with images.")
    assert found["places205"].startswith(
        f"The data root 'places205' is {places}, which lacks trainvalsplit_places205/val_places205.csv."
    )
    assert found["inaturalist2018"].startswith(
        "The data root 'inaturalist2018' is not set: add `inaturalist2018 = "
    )
    assert "is not Detectron2's source" in found["Detectron2"]
    assert not {"coco2017", "stl10", "imagenette"} & found.keys(), "the table needs none of them"
    assert [label for label in found if label.startswith("table")] == ["table5 paper"]
    assert found["table5 paper"].endswith(
        "missing: imagenet, GPU, voc2007, places205, inaturalist2018, voc0712, Detectron2"
    )
    assert len([line for line in done.stdout.splitlines() if "inaturalist2018, voc0712" in line]) == 1
    assert "Ready tables: 0 of 1 at paper" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--table", "tabel5"), "There is no table 'tabel5'. Did you mean 'table5'?"),
        pytest.param(
            ("--scale", "smol"),
            "There is no scale 'smol'. Did you mean 'smoke'? Known: smoke, small, paper.",
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_wrong_name_ends_in_one_line_and_code_2(arguments: tuple[str, ...], says: str, home: Home) -> None:
    done = home.invoke("doctor", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(says)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("detectron2 = 5", "detectron2 is 5: a path in quotes is expected."),
        ('launcher = "slrum"', "There is no launcher 'slrum'."),
        (
            'tracking_uri = "mlruns"',
            "The tracking store is 'mlruns', a folder; MLflow no longer writes to folders.",
        ),
    ],
    ids=lambda value: value.split()[0] if "=" in value else "",
)
def test_a_broken_site_file_ends_in_one_line_and_code_2(content: str, says: str, home: Home) -> None:
    home.site_file.write_text(content)
    done = home.invoke("doctor", "--table", "table9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert says in done.stderr


# Data


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_root_is_complete_only_with_every_folder_and_list_of_its_layout(name: str, tmp_path: Path) -> None:
    dataset, places = LAYOUTS[name]
    site = Site(
        runs=tmp_path / "runs",
        data={KEYS.get(dataset.name, dataset.name): lay_out(tmp_path / "root", places)},
    )
    dataset.check_root(site)
    for place in places:
        kept = tmp_path / "elsewhere"
        path = tmp_path / "root" / place
        path.rename(kept)
        with pytest.raises(LookupError, match=rf"{re.escape(path.name)}.*Get it: "):
            dataset.check_root(site)
        kept.rename(path)
    dataset.check_root(site)


def test_the_example_of_the_site_file_knows_the_root_of_every_data_set(tmp_path: Path) -> None:
    asked = set()
    for name, cls in components("reproduce.data", Dataset, DetectionDataset).items():
        problems = [each.why for each in missing(cls(), None, Site(runs=tmp_path))]
        assert bool(problems) != name.startswith(SYNTHETIC)
        asked |= {match for why in problems for match in re.findall(r"The data root '(\w+)' is not set", why)}
    assert len(asked) > 5
    assert asked | {"imagenet100_classes", "imagenet_subsets"} == set(data_roots())


def test_the_example_of_the_site_file_has_every_key() -> None:
    example = (PROJECT / "configs" / "site.example.toml").read_text(encoding="utf-8")
    uncommented = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", example, flags=re.MULTILINE))
    assert set(uncommented) == {field.name for field in fields(Site)}


def test_the_images_of_a_root_are_compared_with_the_published_ones(tmp_path: Path) -> None:
    site = Site(runs=tmp_path / "runs", data={"imagenette": image_folder(tmp_path / "root", train=25, val=5)})
    assert told(site, "table8", "small")["imagenette"].startswith(
        "available, but not as published: 250 of 9 469 images of Imagenette's train split; "
        "50 of 3 925 images of Imagenette's val split; a core decodes "
    )
    assert not site.runs.exists()


def test_a_list_that_would_be_fetched_counts_as_here_and_is_not_fetched(tmp_path: Path) -> None:
    site = Site(
        runs=tmp_path / "runs", data={"imagenette": lay_out(tmp_path / "root", LAYOUTS["imagenette"][1])}
    )
    assert not list(missing(Imagenette(), SemiSupervised(), site, fetch=False))
    assert (
        "the first run that needs SimCLR's lists of labelled images fetches them, once"
        in told(site, "table3", "small")["imagenet_subsets"]
    )
    assert not site.runs.exists()


def test_a_list_that_the_user_promised_and_the_root_are_both_named_where_both_are_missing(
    tmp_path: Path,
) -> None:
    site = Site(runs=tmp_path / "runs", data={"imagenet_subsets": tmp_path})
    found = list(missing(Imagenette(), SemiSupervised(), site, fetch=False))
    assert [each.name for each in found] == ["imagenette", "imagenet_subsets"]
    assert "The data root 'imagenette' is not set" in found[0].why
    assert re.search(r"1percent\.txt does not exist\. Get it: http", found[1].why)


# Tables


def evaluation(dataset: Dataset, encoder: Pretrain | Weights = MINE) -> Evaluate:
    return Evaluate(encoder=encoder, protocol=NearestNeighbours(k=5), dataset=dataset)


def test_runs_whose_data_are_here_can_start_and_the_others_are_named_by_what_they_lack(
    tmp_path: Path,
) -> None:
    site = Site(
        runs=tmp_path / "runs",
        device="cpu",
        data={"imagenette": image_folder(tmp_path / "root")},
    )
    found = doctor.need([evaluation(Imagenette()), evaluation(STL10())], machine(site))
    assert found == Need(num_runs=2, startable=1, missing=("stl10",), available=("imagenette",), disk=0)


def test_an_evaluation_lacks_what_its_pretraining_lacks(tmp_path: Path) -> None:
    """Pretraining in bfloat16 is refused on a CPU."""
    site = Site(
        runs=tmp_path / "runs",
        device="cpu",
        data={"imagenette": image_folder(tmp_path / "root")},
    )
    run = replace(msbreg(imagenet100), dataset=Imagenette())
    assert run.precision == "bfloat16"
    found = doctor.need([run, evaluation(Imagenette(), run)], machine(site))
    assert (found.num_runs, found.startable, found.missing) == (2, 0, (doctor.GPU,))
    run = replace(run, precision="float32")
    found = doctor.need([run, evaluation(Imagenette(), run)], machine(site))
    assert (found.startable, found.missing) == (2, ())


def test_a_pretraining_is_not_started_for_evaluations_that_lack_something(tmp_path: Path) -> None:
    site = Site(
        runs=tmp_path / "runs",
        device="cpu",
        data={"imagenette": image_folder(tmp_path / "root")},
    )
    run = replace(msbreg(imagenet100), dataset=Imagenette(), precision="float32")
    in_vain = doctor.need([run, evaluation(STL10(), run)], machine(site))
    assert (in_vain.startable, in_vain.missing) == (0, ("stl10",))
    of_use = doctor.need([run, evaluation(STL10(), run), evaluation(Imagenette(), run)], machine(site))
    assert (of_use.startable, of_use.missing) == (2, ("stl10",))


def test_no_run_can_start_on_a_device_that_is_not_here(tmp_path: Path) -> None:
    site = Site(
        runs=tmp_path / "runs",
        device="cuda:999",
        data={"imagenette": image_folder(tmp_path / "root")},
    )
    assert doctor.need([evaluation(Imagenette())], machine(site)).missing == (doctor.GPU,)
    assert "the site's device is 'cuda:999', so no run can start" in told(site)["GPU"]


def test_a_disk_that_is_too_small_is_missing_though_every_run_can_start(tmp_path: Path) -> None:
    site = Site(
        runs=tmp_path / "runs",
        device="cpu",
        data={"imagenette": image_folder(tmp_path / "root")},
    )
    here = machine(site)
    vars(here)["free_disk"] = 10**8
    run = replace(msbreg(imagenet100), dataset=Imagenette(), precision="float32")
    found = doctor.need([run], here)
    assert (found.startable, found.missing) == (1, (doctor.DISK,))
    assert found.disk > 10**8


# Disk


def test_the_sizes_of_a_resnet_18_counted_by_hand() -> None:
    """11 176 512 parameters without the classifier (torchvision's documentation: 11 689 512, 513 000 of them
    the classifier's)."""
    run = msbreg(imagenet100)
    backbone, running, counters = 11_176_512, 2 * 4_800, 20
    projector = 512 * 512 + 512 + 2 * 512 + 512 * 128 + 128
    predictor = 128 * 512 + 512 + 2 * 512 + 512 * 128 + 128
    running_head = 2 * 512
    encoder = 4 * (backbone + running + projector + running_head) + 8 * (counters + 1)
    online = encoder + 4 * (predictor + running_head) + 8
    momentum = 4 * (backbone + projector + predictor)
    found = doctor.sizes(run, {})
    assert found == (encoder, online + encoder + momentum)


def test_the_sizes_are_those_of_the_files_that_a_run_writes(tmp_path: Path) -> None:
    run = replace(byol(imagenet100, heads=Heads(hidden=128, output=32)), backbone="small")
    network = build_network(run)
    encoder = encoder_of(run, network.online).save(tmp_path)
    momentum = {
        str(index): parameter.detach().clone() for index, parameter in enumerate(network.online.parameters())
    }
    state = checkpoint.save(tmp_path, "", {"network": dict(network.state_dict()), "optimizer": momentum}, 1)
    found = doctor.sizes(run, {})
    assert encoder.stat().st_size == pytest.approx(found.encoder, rel=0.05)
    assert state.stat().st_size == pytest.approx(found.checkpoint, rel=0.1)


def test_a_network_is_built_once_for_methods_that_differ_in_weights_and_anew_for_other_heads() -> None:
    known: dict[object, Sizes] = {}
    runs = [byol(imagenet100, lambda_s=value) for value in (0.0, 1e-3)] + [
        byol(imagenet100, heads=Heads(hidden=64))
    ]
    runs = [replace(run, backbone="small") for run in runs]
    found = [doctor.sizes(run, known) for run in runs]
    assert len(known) == 2
    assert found[0] == found[1] != found[2]


def test_disk_is_encoders_for_good_and_checkpoints_of_what_goes_on_at_once(tmp_path: Path) -> None:
    runs = [replace(byol(imagenet100), backbone="small", seed=seed) for seed in range(3)]
    encoder, state = doctor.sizes(runs[0], {})
    here, server = (
        Site(runs=tmp_path, device="cpu", jobs=2),
        Site(runs=tmp_path, device="cpu", jobs=5, tracking_uri="http://localhost"),
    )
    assert doctor.disk(runs, machine(here)) == 2 * 3 * encoder + 2 * 3 * state
    assert doctor.disk(runs, machine(server)) == 3 * encoder + 3 * 3 * state
    detection = Evaluate(
        encoder=replace(MINE, backbone="resnet50"), protocol=VOCDetection(), dataset=VOC2007()
    )
    assert doctor.disk([detection], machine(here)) == 3 * 2 * 4 * (23_508_032 + disk.HEADS)


def test_the_memory_banks_of_trained_baselines_need_disk(tmp_path: Path) -> None:
    here = machine(Site(runs=tmp_path, device="cpu", jobs=1))
    (trained,) = doctor.requests("table4", "paper", "trained")
    (npid,) = [spec for spec in trained.specs() if isinstance(spec, Pretrain) and spec.method.name == "npid"]
    assert 3 * 656e6 < doctor.disk([npid], here) < 3 * 656e6 + 1.4e9
    kinds = {request.table: request.baselines for request in doctor.requests("", "paper", "trained")}
    assert kinds["table4"] == "trained"
    assert kinds["table8"] == "quoted", "it has no such row"
    with pytest.raises(ValueError, match=r"^table8 has no quoted row whose method can be trained here: "):
        doctor.requests("table8", "paper", "trained")


# The machine


def test_the_tracking_store_is_told_without_opening_it_and_without_its_password(
    tmp_path: Path, template: Path, port: int
) -> None:
    site = Site(runs=tmp_path / "runs")
    assert Store(site).described() == f"sqlite:///{tmp_path}/runs/mlflow.db, created by the first run"
    site.runs.mkdir()
    shutil.copy(template, site.runs)
    assert Store(site).described().endswith("mlflow.db, which exists")
    with socket.create_server(("127.0.0.1", port)) as server:
        address = f"http://me:secret@127.0.0.1:{port}"

        def answer() -> None:
            server.accept()[0].close()  # it is asked first whether it listens at all
            with server.accept()[0] as client:
                assert b"GET /health " in client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")

        threading.Thread(target=answer, daemon=True).start()
        assert (
            Store(Site(tracking_uri=address)).described() == f"http://127.0.0.1:{port}, a server that answers"
        )
    silent = Store(Site(tracking_uri=address)).described()
    assert silent.startswith(f"No tracking server answers at http://127.0.0.1:{port} (")
    database = Store(Site(tracking_uri="postgresql://me:secret@db/mlflow")).described()
    assert (
        database == "postgresql://db/mlflow, a database, for which `pip install 'psycopg2-binary'` is missing"
    )


def test_the_machine_is_told_where_there_is_no_run_yet(tmp_path: Path) -> None:
    site = Site(runs=tmp_path / "a" / "runs", device="cpu", features_gb=0)
    found = told(site)
    assert re.fullmatch(r"\d+\.\d+\.\d+, torch \S+, torchvision \S+, mlflow \S+", found["Python"])
    assert found["disk"].startswith(messages.size(shutil.disk_usage(tmp_path).free).split(".")[0])
    assert found["disk"].endswith("features are not kept (features_gb)")
    assert not (tmp_path / "a").exists()
