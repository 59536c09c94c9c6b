"""Whatever a file contains, its parser returns a valid value, or one line that names the file.

Each entry of FILES is a kind of file that others write, or that a crash may cut: how it is written, how it is
read, and the contents that a parser once did not survive. Hypothesis damages valid files and invents others.
What is read is written again and must come back equal. Then follow the values that a type allows, which must
come back equal from each file, and the texts of the command line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pandas
import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from reproduce import messages, overrides, plan, site, worker
from reproduce.commands import options, receive, reference, rehearsed, verify
from reproduce.data import coco2017, imagenet100, inventory, lists, places205, stl10, voc
from reproduce.messages import UserError
from reproduce.nn import feature_cache
from reproduce.nn.weights import Weights
from reproduce.report import filled, observe, publish, render
from reproduce.runs import checkpoint, encoder_file, journal, lease, place
from reproduce.runs.journal import Journal, Point, Result
from reproduce.runs.lease import Lease
from reproduce.runs.progress import Progress
from reproduce.settings import limited_types
from reproduce.site import Site
from reproduce.tracking import address, portable, tags

RUN, OTHER = "0123456789ab", "ba9876543210"
NOTHING = None
"""Outcome of a parser that found no value."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all examples share."""
    return tmp_path_factory.mktemp("parsers")


def fingerprint(value: Any) -> str:
    """Return a text that is equal for equal values; NaN equals NaN."""
    if isinstance(value, portable.PortableRun):
        return json.dumps(portable.to_json(value))
    return repr(value)


def is_one_line(text: str) -> bool:
    return bool(text) and not messages.unprintable(text) and "Traceback" not in text


@contextmanager
def warnings() -> Iterator[list[str]]:
    """Yield the list of what the suite warns of inside the block."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    listener = Listener()
    logging.getLogger("reproduce").addHandler(listener)
    try:
        yield found
    finally:
        logging.getLogger("reproduce").removeHandler(listener)


# The files of a run
# ------------------------------------------------------------------------------------------------------------

LEASE = Lease(
    spec_id=RUN,
    token="0" * 32,
    host="node",
    pid=4711,
    started=1.7e9,
    heartbeat=10.0,
    state="running",
    job="12_3",
    progress=Progress(3, 10, "images", "epoch 1/2"),
    rate=0.5,
)


def write_lease(path: Path, value: Lease) -> None:
    lease._write(path.parent, value)


def read_lease(path: Path) -> Lease | None:
    lease._warn_of_foreign.cache_clear()
    found = lease.read(path.parent, RUN)
    if found is None:
        return None
    words = [found.who, found.reason, *(found.progress[2:] if found.progress else ())]
    assert not messages.unprintable("".join(words)), words
    assert isinstance(found.alive, bool)
    assert found.left is None or isinstance(found.left, float)
    return None if found.state == "unreadable" else replace(found, age=0.0, ahead=0.0)


def write_journal(path: Path, value: journal.Waiting) -> None:
    Journal(path.parent, RUN).add(value.points, value.tags)


def read_journal(path: Path) -> journal.Waiting | None:
    found = Journal(path.parent, RUN).read()
    for point in found.points:
        assert abs(float(point.value)) >= 0 or math.isnan(point.value)
        assert max(abs(point.timestamp), abs(point.step)) < 2**63, "what a database can store"
    return replace(found, size=0, skipped=False) if found.points or found.tags else None


def write_result(path: Path, value: Result) -> None:
    journal.keep_result(path.parent, RUN, value)


def read_result(path: Path) -> Result | None:
    found = journal.kept_result(path.parent, RUN)
    if found is not None:
        content = json.loads(path.read_bytes())
        assert (found.commit, found.facts) == (content["commit"], content.get("facts", {}))
    return found


def write_failure(path: Path, value: str) -> None:
    worker._write_failure(path.parent, RUN, value)


def read_failure(path: Path) -> str | None:
    found = worker._failed_elsewhere(path.parent, RUN)
    assert not messages.unprintable(found)
    return found.removeprefix("another process of the run failed, ") or None


def write_place(path: Path, value: str) -> None:
    path.write_text(value)


def read_place(path: Path) -> str:
    return place.place(path.parent)


def encoder(**tensors: torch.Tensor) -> bytes:
    about = {encoder_file.SPEC: RUN, encoder_file.DIGEST: encoder_file.digest(tensors)}
    return b"".join(map(bytes, encoder_file._serialised(tensors, about)))


def write_encoder(path: Path, value: dict[str, torch.Tensor]) -> None:
    encoder_file.save(path, value, spec_id=RUN)


def read_encoder(path: Path) -> dict[str, torch.Tensor]:
    assert isinstance(encoder_file.digest_of(path), str)
    return dict(sorted(encoder_file.load(path, spec_id=RUN).items()))


FEATURES = {"encoder": "a" * 64, "split": "train"}


def features(path: Path) -> feature_cache._File:
    return feature_cache._File(path, json.dumps(FEATURES))


def write_features(path: Path, value: torch.Tensor) -> None:
    path.unlink(missing_ok=True)
    features(path).write(value, limit=10**9)


def read_features(path: Path) -> torch.Tensor | None:
    assert isinstance(feature_cache.encoder_of(path), str)
    return features(path).read(num_rows=2)


def write_checkpoint(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(checkpoint.save(path.parent, RUN, value, 1).read_bytes())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    assert checkpoint.newest(path.parent, RUN) >= 0
    found = checkpoint.latest(path.parent, RUN)
    checkpoint.move_foreign(path, RUN)
    for each in path.parent.glob("*.of-*"):
        each.unlink()
    return found


def read_newest(path: Path) -> float | None:
    """Return the number of iterations that the file of Detectron2 names."""
    return checkpoint.newest(path.parent.parent, RUN) or None


# The files of the folder of runs
# ------------------------------------------------------------------------------------------------------------

SHAPE = rehearsed.Shape("pretraining", (("backbone", "resnet18"), ("images", "256")))
MEASURED = rehearsed.Measured(
    {
        (SHAPE, "NVIDIA H100"): rehearsed.Measurement(
            seconds=0.1, images=64, steps=8, limit="GPU", memory=10**9, busy=0.9, commit="ab", at="2026-01-01"
        ),
        (SHAPE, "CPU"): rehearsed.Measurement(seconds=1, images=64, steps=8, limit="CPU"),
    }
)


def write_rehearsed(path: Path, value: rehearsed.Measured) -> None:
    value.save(Site(runs=path.parent))


def read_rehearsed(path: Path) -> rehearsed.Measured | None:
    found = rehearsed.read(Site(runs=path.parent))
    for (shape, device), each in found.items():
        assert is_one_line(f"{shape.kind} {device} {each.at} {each.commit} {each.limit}")
        assert math.isfinite(each.seconds / each.images * 10**9)
        assert each.memory is None or messages.size(each.memory)
    return found or None


INVENTORY = inventory.Inventory(num_images=2, digest="a" * 64, content="b" * 64)
KEPT = inventory._Record(
    inventory=INVENTORY,
    num_bytes=1000,
    signature="c" * 64,
    folders={"/no/such/folder": [1, 2]},
    checked=["/no/such/file"],
    checked_signature="d" * 64,
)


def write_inventory(path: Path, value: inventory._Record) -> None:
    path.write_text(json.dumps({"version": inventory.VERSION, "split": "train", **asdict(value)}))


def read_inventory(path: Path) -> inventory._Record | None:
    found = inventory._read(path)
    assert found is None or found.holds in (True, False)
    assert found is None or isinstance(found.inventory.num_images + found.num_bytes, int)
    return found


FAULT = verify.Fault(
    kind="report", about="smoke/table8.json", problem="it was changed", path="/no/such/file", changed=None
)


class NoStore:
    """A store without runs."""

    def finished(self, ids: Any) -> dict[str, Any]:
        return {}


def write_verified(path: Path, value: Sequence[verify.Fault]) -> None:
    verify._keep(path, value)


def read_verified(path: Path) -> list[verify.Fault] | None:
    assert all(map(is_one_line, verify.recalled(Site(runs=path.parent), NoStore())))  # type: ignore[arg-type]
    found, age = verify._kept(path)
    assert math.isfinite(age)
    return found or None


# Records and reports
# ------------------------------------------------------------------------------------------------------------

_SPECS = plan.Request(table="table8", rows="BYOL").specs()
RECORD = portable.PortableRun(
    spec_id=_SPECS[1].id,
    name="byol · linear",
    started=1_700_000_000_000,
    ended=1_700_000_100_000,
    settings=json.loads(json.dumps(portable.identity.canonical(_SPECS[1]))),
    tags={"scale": "smoke", "attempts": "1", "dirty": "False", "kind": "evaluate"},
    params={"seed": "0"},
    final={"top1": 0.5, "loss": math.nan},
    histories={"loss": ((1, 0.5, 1_700_000_000_001), (2, math.nan, 1_700_000_000_002))},
    environments={"environment.json": {"kind": "CPU", "threads": 2, "packages": {"torch": "2"}}},
)


def record_bytes(value: portable.PortableRun) -> bytes:
    return json.dumps(portable.to_json(value)).encode()


def write_record(path: Path, value: portable.PortableRun) -> None:
    path.write_bytes(record_bytes(value))


def read_record(path: Path) -> portable.PortableRun:
    return portable.from_json(receive._json(str(path), path.read_bytes()), str(path))


REPORT = filled.fill(plan.Request(table="table8", rows="BYOL").build(), 1, None)


def write_report(path: Path, value: filled.Filled) -> None:
    path.write_text(render.json(value), encoding="utf-8")


def read_report(path: Path) -> filled.Filled:
    return render.read(path)


def zipped(manifest: bytes, **other: bytes) -> bytes:
    """Return an archive of a record, a report and other files, with any manifest."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {**MEMBERS, "manifest.json": manifest, **other}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


UPSTREAM = replace(
    RECORD,
    spec_id=_SPECS[0].id,
    settings=json.loads(json.dumps(portable.identity.canonical(_SPECS[0]))),
    tags={"scale": "smoke"},
)
MEMBERS = {
    f"runs/{RECORD.spec_id}/record.json": record_bytes(RECORD),
    f"runs/{UPSTREAM.spec_id}/record.json": record_bytes(UPSTREAM),
    "reports/smoke/table8.json": render.json(REPORT).encode(),
}
MANIFEST = json.dumps(
    {
        "kind": "msbreg archive",
        "version": 1,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in MEMBERS.items()
        },
    }
).encode()


def read_archive(path: Path) -> list[str] | None:
    """Return the names of the runs and tables that an import would add."""
    with receive.Archive.opened(path) as archive:
        content = archive.check()
    assert all(map(is_one_line, content.skipped))
    return [*content.runs, *content.tables] or None


def read_manifest(path: Path) -> list[str] | None:
    path.with_name("whole.zip").write_bytes(zipped(path.read_bytes()))
    return read_archive(path.with_name("whole.zip"))


GOLDEN = (Path(__file__).parent / "golden" / "report" / "table99.json").read_bytes()


def write_state(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


def read_state(path: Path) -> dict[str, Any] | None:
    """Use everything that asks the file what was rendered."""
    folder = path.parent
    assert isinstance(publish.damaged(folder), list)
    assert publish.unused_pages(folder) == []
    assert publish._current("table8", "inputs", "runs", folder) is None
    publish._shared_are_current(folder)
    publish._shared_inputs(folder)
    publish._link_pdf(folder)
    return publish._state(folder) or None


STATE = {
    "table8": {"inputs": "a", "files": {"table8.json": "b", "runs.csv": "c", "figures/table8-x.svg": "d"}},
    "index.html": {"inputs": "e", "files": {"index.html": "f", "report.html": "g"}},
}

ROWS = (
    b"table,row,column,metric,seed,spec,run,value,reason\n"
    b"table8,BYOL,acc,top1,0,0123456789ab,run,0.5,\n"
    b'table8,"a, ""b""",acc,top1,1,0123456789ab,,,"not\nrun yet"\n'
)


def read_rows(path: Path) -> list[dict[str, str]] | None:
    found = observe.rows_of(path, "table8")
    observe.write_runs(None, "table9", path.parent)
    return found or None


# The user's files
# ------------------------------------------------------------------------------------------------------------

SITE = b"""\
runs = "/no/such/runs"
tracking_uri = "http://me:secret@host:5000"
device = "cuda:1"
jobs = 2
heartbeat = 5
cache_gb = 1.5
workers = "auto"
[slurm]
partition = "a,b"
time = "1-12:00"
setup = ["module load cuda"]
[data]
imagenet = "~/imagenet"
"""


def read_site(path: Path) -> Site:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSBREG_SITE", str(path))
        found = site.load()
    for key in ("heartbeat", "checkpoint_seconds", "cache_gb", "features_gb"):
        assert float(getattr(found, key)) >= 0
    assert float(found.slurm.poll) > 0
    assert found.jobs <= 10**9
    return found


SUBSET = b"n01440764_10026.JPEG\nn01440764_10027.JPEG\nn02869837/x.png\n"
VOC_IDS = b"000005\r\n2008_000008\r\n"
WNIDS = b"n02869837\nn01749939\n"


def read_subset(path: Path) -> dict[bytes, bytes]:
    return lists.read(path)


def read_classes(path: Path) -> tuple[str, ...]:
    return imagenet100.read_classes(path, hashlib.sha256(path.read_bytes()).hexdigest())


def read_verified_list(path: Path) -> bytes:
    return lists.verified(path, "a" * 64, "there")


PLACES = b"a/abbey/1.jpg 0\na/abbey/2.jpg 0\nb/bar/1.jpg 1\n"


def read_places(path: Path) -> Any:
    names, labels = places205._read_list(path, 2)
    return [*names], labels.tolist(), places205._classes(names, labels, 2, path)


def read_names(path: Path) -> tuple[str, ...]:
    return stl10._classes(path.parent)


COCO = json.dumps(
    {
        "info": {"year": 2017},
        "images": [
            {"id": 7, "file_name": "7.jpg", "width": 8, "height": 6},
            {"id": 3, "file_name": "3.jpg", "width": 4, "height": 4},
            {"id": 1, "file_name": "1.jpg", "width": 5, "height": 5},
        ],
        "categories": [{"id": id_, "name": name} for id_, name in coco2017.CATEGORIES.items()],
        "annotations": [
            {
                **{"id": 1, "image_id": 7, "category_id": 1, "area": 4.0, "bbox": [1, 1, 2, 2], "iscrowd": 0},
                "segmentation": [[1, 1, 3, 1, 3, 3]],
            },
            {
                **{"id": 2, "image_id": 7, "category_id": 3, "area": 4.0, "bbox": [1, 1, 2, 2], "iscrowd": 1},
                "segmentation": {"size": [6, 8], "counts": [10, 28, 10]},
            },
            {
                **{"id": 3, "image_id": 3, "category_id": 3, "area": 4.0, "bbox": [1, 1, 2, 2], "iscrowd": 1},
                "segmentation": {"size": [4, 4], "counts": ":6"},
            },
        ],
    }
).encode()


def read_coco(path: Path) -> Any:
    with coco2017.json_tables.faults(path, "there"):
        pictures, dropped = coco2017._joined(coco2017.json_tables.parse(path, coco2017._compact), path.parent)
    for picture in pictures:
        assert all(math.isfinite(side) for each in picture.instances for side in each.box)
        assert max(picture.width, picture.height) < 2**31
    return pictures, dropped


VOC = b"""\
<annotation><size><width>8</width><height>6</height></size>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>2.5</xmin><ymin>4</ymin><xmax>9</xmax><ymax>4</ymax></bndbox></object></annotation>
"""


@dataclass(frozen=True)
class File:
    """A kind of file."""

    path: str
    valid: tuple[Any, ...]
    """Values, or contents if the suite writes no such file."""
    read: Callable[[Path], Any]
    """Function that returns the value in the file, or NOTHING, or raises a UserError."""
    write: Callable[[Path, Any], None] | None = None
    """Function that writes a value; None if the suite never does."""
    kind: str = "json"
    """`json`, `text` or `binary`."""
    whole: bool = True
    """True if it can be seen that a file was cut."""
    examples: int = 150

    def __str__(self) -> str:
        return self.read.__name__.removeprefix("read_")

    def contents(self, folder: Path) -> list[bytes]:
        """Return valid contents."""
        return [self.content(value, folder) for value in self.valid]

    def content(self, value: Any, folder: Path) -> bytes:
        """Return the content of a file with a value."""
        if self.write is None:
            return bytes(value)
        path = folder / str(self) / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self.write(path, value)
        return path.read_bytes()


def outcome(kind: File, path: Path) -> Any:
    """Return the value in a file, or NOTHING after one line about the file."""
    with warnings() as lines:
        try:
            value = kind.read(path)
        except UserError as error:
            value, lines = NOTHING, [*lines, str(error)]
    for line in lines:
        assert is_one_line(line), line
        assert len(line) < 2000 + len(str(path)), len(line)
        assert str(path) in line or str(path.parent) in line, line
    return value


def check(kind: File, content: bytes, folder: Path) -> Any:
    """Read a file, check the outcome, and return the value."""
    path = folder / str(kind) / kind.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    value = outcome(kind, path)
    if value is not NOTHING and kind.write is not None:
        path.unlink(missing_ok=True)
        kind.write(path, value)
        assert fingerprint(outcome(kind, path)) == fingerprint(value)
    return value


VECTORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True), "c": torch.zeros(0, 2).half()}
FILES = (
    File("lease.json", (LEASE, replace(LEASE, progress=None, rate=None)), read_lease, write_lease),
    File(
        "journal.jsonl",
        (
            journal.Waiting([Point("loss", 0.5, 1, 1), Point("rank", math.nan, 5, 2)], {"a": "b"}, 0),
            journal.Waiting([], {"data_digest": "a" * 64}, 0),
        ),
        read_journal,
        write_journal,
        whole=False,
    ),
    File(
        "result.json",
        (Result({"top1": 0.5, "loss": math.nan}, "abc", {"data_digest": "a"}),),
        read_result,
        write_result,
    ),
    File("failure.txt", ("ValueError: no luck",), read_failure, write_failure),
    File(".place", ("0" * 32,), read_place, write_place, "text"),
    File("encoder.safetensors", (VECTORS,), read_encoder, write_encoder, "binary"),
    File("features.safetensors", (torch.arange(6.0).reshape(2, 3),), read_features, write_features, "binary"),
    File(
        "epoch-00001.pt", ({"a": torch.zeros(2), "b": [1, "c"]},), read_checkpoint, write_checkpoint, "binary"
    ),
    File("detectron2/last_checkpoint", (b"model_0000009.pth", b"model_final.pth"), read_newest, None, "text"),
    File("rehearsed.json", (MEASURED,), read_rehearsed, write_rehearsed),
    File("data.json", (KEPT, replace(KEPT, folders={})), read_inventory, write_inventory),
    File(
        "verified.json",
        ((FAULT,), (FAULT, replace(FAULT, changed=(1, 2), run_id="a"))),
        read_verified,
        write_verified,
    ),
    File("record.json", (RECORD,), read_record, write_record),
    File("table8.json", (REPORT,), read_report, write_report),
    File("table99.json", (GOLDEN,), read_report, None),
    File("msbreg.zip", (zipped(MANIFEST),), read_archive, None, "binary", examples=50),
    File("manifest.json", (MANIFEST,), read_manifest, examples=100),
    File(".rendered", (STATE,), read_state, write_state),
    File("runs.csv", (ROWS,), read_rows, None, "text", whole=False),
    File("site.toml", (SITE,), read_site, None, "text", whole=False),
    File("1percent.txt", (SUBSET,), read_subset, None, "text", whole=False),
    File("verified.txt", (SUBSET,), read_verified_list, None, "text"),
    File("imagenet100.txt", (WNIDS,), read_classes, None, "text", whole=False),
    File("places.txt", (PLACES,), read_places, None, "text", whole=False),
    File("class_names.txt", ("\n".join(stl10.CLASSES).encode(),), read_names, None, "text", whole=False),
    File("trainval.txt", (VOC_IDS,), voc.read_ids, None, "text", whole=False),
    File("000005.xml", (VOC,), voc.read_annotation, None, "text"),
    File("instances.json", (COCO,), read_coco, None),
)


@pytest.mark.parametrize("kind", FILES, ids=str)
def test_a_valid_file_is_read_as_it_was_written(kind: File, folder: Path) -> None:
    for value in kind.valid:
        found = check(kind, kind.content(value, folder), folder)
        assert found is not NOTHING or kind.read in (read_newest, read_verified_list)


HUGE = "9" * 400
FOUND = {
    "lease": (
        (RUN, "another\\nrun"),
        (RUN, "x" * 10_000),
        ("[3, 10,", f"[-1{'0' * 308}, 1{'0' * 308},"),
        ('"images"', '"\\u001b[2J"'),
    ),
    "journal": (
        ("0.5", HUGE),
        ("0.5, 1, 1", f"0.5, {2**63}, 1"),
        ("0.5, 1, 1", f"0.5, 1, -{2**64}"),
        (RUN, "x" * 10_000),
    ),
    "result": (("0.5", HUGE), ('"abc"', "null"), ('"data_digest": "a"', '"data_digest": []'), (RUN, "a\\nb")),
    "failure": (("no luck", "no\\nluck"),),
    "checkpoint": ((f"{RUN}\0\0", "../../../etc/x"),),
    "rehearsed": (
        ("0.1", HUGE),
        ("1000000000", '"much"'),
        ('"at"', '"\\ud800"'),
        ("2026-01-01", "\\u0000"),
    ),
    "inventory": (
        ('{"/no/such/folder": [1, 2]}', "[]"),
        ('"folders": {}, "checked": ["/no/such/file"]', '"folders": {}, "checked": ["\\u0000"]'),
        ('"num_images": 2', '"num_images": "two"'),
    ),
    "verified": (
        ('"report"', "[]"),
        ("null", "[]"),
        ("null", "[1e999, 1]"),
        ("/no/such/file", "\\u0000"),
        ("it was changed", "it was\\nchanged"),
        ('"at": ', f'"at": {HUGE}, "": '),
        ('"at": ', f'"faults": [], "at": {HUGE}, "": '),
    ),
    "record": (('"loss"', '"a\\nb"'), (RECORD.spec_id, "x" * 10_000)),
    "report": (
        ('"alpha": 0.05', f'"alpha": {HUGE}'),
        ('"value": null', f'"value": {HUGE}'),
        ('"alpha": 0.05', '"alpha": 0.05, "a\\nb": 1'),
    ),
    "state": (
        ('{"index.html": "f", "report.html": "g"}', "[]"),
        ('"index.html": "f"', '"index.html": ""'),
        ('{"table8.json": "b", "runs.csv": "c", "figures/table8-x.svg": "d"}', "true"),
    ),
    "site": (
        ("jobs = 2", f"jobs = {'[' * 5000}"),
        ("jobs = 2", f"jobs = {HUGE}"),
        ("heartbeat = 5", f"heartbeat = {HUGE}"),
        ("jobs = 2", '"jo\\nbs" = 2'),
        ('"cuda:1"', '"cuda\\u001b"'),
        ("/no/such/runs", "/dev/null/\\n"),
        ('"a,b"', '"a;b"'),
    ),
    "subset": (("n01440764_10026.JPEG", "x" * 10_000), ("n01440764_10026.JPEG", "\x1b[2J")),
    "classes": (("n02869837", "\x1b[2J"),),
    "ids": (("000005", "x-" * 10_000), ("000005", "\x1b[2J")),
    "places": (("a/abbey/1.jpg 0", "x" * 10_000), ("a/abbey/1.jpg 0", "\x1b[2J")),
    "coco": (
        (":6", "o" * 3_000_000),
        ('"width": 5', f'"width": {HUGE}'),
        ("[1, 1, 2, 2]", "[1e308, 1, 1e308, 2]"),
    ),
    "archive": (("PK\x03\x04", "K\x03\x04"),),
}
"""Changes of valid files that their parsers once did not survive, or took for valid."""


@pytest.mark.parametrize("name", FOUND)
def test_what_once_broke_a_parser_does_so_no_more(name: str, folder: Path) -> None:
    kind = next(kind for kind in FILES if str(kind) == name)
    contents = kind.contents(folder)
    for old, new in FOUND[name]:
        content = next(content for content in contents if old.encode() in content)
        check(kind, content.replace(old.encode(), new.encode(), 1), folder)


@pytest.mark.parametrize("kind", FILES, ids=str)
def test_any_file_gives_a_valid_value_or_one_line(kind: File, folder: Path) -> None:
    contents = kind.contents(folder)

    @strategies.examples(kind.examples)
    @given(strategies.files(contents, is_json=kind.kind == "json"))
    def any_file(content: bytes) -> None:
        check(kind, content, folder)

    any_file()


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind.whole], ids=str)
def test_a_file_that_was_cut_is_not_read(kind: File, folder: Path) -> None:
    contents = kind.contents(folder)

    @strategies.examples(30)
    @given(st.sampled_from(contents), st.floats(0, 1, exclude_max=True))
    def cut(content: bytes, share: float) -> None:
        whole = len(content.strip())
        assert check(kind, content[: int(share * whole)], folder) is NOTHING

    cut()


# Every value that a type allows comes back from its file
# ------------------------------------------------------------------------------------------------------------

METRICS = st.dictionaries(strategies.TEXTS, st.floats(), max_size=4)
FACTS = st.dictionaries(strategies.TEXTS, strategies.TEXTS, max_size=4)
BIG = st.integers(-(2**63) + 1, 2**63 - 1)
POINTS = st.builds(Point, strategies.TEXTS, st.floats(), BIG, BIG)
TENSORS = st.builds(
    lambda shape, kind: torch.arange(math.prod(shape)).reshape(shape).to(kind),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from((torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)),
)
STATES = st.recursive(
    TENSORS | st.none() | st.booleans() | st.integers() | st.floats() | strategies.TEXTS,
    lambda each: st.one_of(
        st.lists(each, max_size=3),
        st.lists(each, max_size=3).map(tuple),
        st.dictionaries(strategies.TEXTS | st.integers(), each, max_size=3),
    ),
    max_leaves=6,
)
SETTINGS = st.fixed_dictionaries(
    {"component": st.sampled_from(("pretrain", "evaluate"))},
    optional={"encoder": st.dictionaries(strategies.NAMES, strategies.PLAIN), "x": strategies.PLAIN},
)


@st.composite
def leases(draw: Any) -> Lease:
    counts, words = st.integers(-(2**53), 2**53), strategies.PRINTABLE.filter(lambda text: len(text) <= 500)
    return Lease(
        spec_id=RUN,
        token=draw(strategies.PRINTABLE),
        host=draw(strategies.PRINTABLE),
        pid=draw(st.integers(1, 2**31 - 1)),
        started=draw(strategies.FINITE),
        job=draw(strategies.PRINTABLE),
        heartbeat=draw(st.floats(0, 1e300, exclude_min=True)),
        state=draw(st.sampled_from(("queued", "running", "finished", "failed", "interrupted"))),
        reason=draw(words),
        progress=draw(st.none() | st.builds(Progress, counts, counts, words, words)),
        rate=draw(st.none() | st.floats(0, 1e300)),
    )


@st.composite
def records(draw: Any) -> portable.PortableRun:
    """Records that a store can contain."""
    times = sorted(draw(st.lists(strategies.MOMENTS, min_size=2, max_size=2)))
    settings = draw(SETTINGS)
    steps = st.dictionaries(st.integers(0, 2**63 - 1), st.tuples(NUMBERS, strategies.MOMENTS), max_size=3)
    histories = draw(st.dictionaries(strategies.NAMES, steps, max_size=2))
    return portable.PortableRun(
        spec_id=portable.identity.digest_of_plain(settings),
        name=draw(strategies.PRINTABLE),
        started=times[0],
        ended=times[1],
        settings=settings,
        tags={"scale": "smoke", **draw(st.dictionaries(TAG_NAMES, strategies.PRINTABLE, max_size=3))},
        params=draw(st.dictionaries(strategies.NAMES.map("p.{}".format), strategies.PRINTABLE, max_size=3)),
        final=draw(st.dictionaries(strategies.NAMES, NUMBERS, min_size=1, max_size=3)),
        histories={
            key: tuple((step, *each[step]) for step in sorted(each)) for key, each in histories.items()
        },
        environments=draw(st.dictionaries(st.just("environment-2.json"), OBJECTS, max_size=1)),
    )


NUMBERS = strategies.FINITE | st.just(math.nan)
OBJECTS = st.dictionaries(st.text(max_size=8), strategies.PLAIN, max_size=3)
TAG_NAMES = strategies.NAMES.map("tag.{}".format)


@st.composite
def reports(draw: Any) -> filled.Filled:
    """The golden report with other numbers and texts in one of its cells."""
    table = filled.loads(GOLDEN, "golden")
    row = draw(st.sampled_from(table.rows))
    key = draw(st.sampled_from(sorted(row.cells)))
    seeds = draw(st.lists(st.integers(0, 10**9), unique=True, max_size=3))
    cell = replace(
        row.cells[key],
        paper=draw(st.none() | st.decimals(-1000, 1000, places=2).map(str)),
        paper_note=draw(st.none() | LINES),
        value=draw(st.none() | strategies.FINITE),
        std=draw(st.none() | strategies.FINITE),
        interval=draw(st.none() | st.tuples(strategies.FINITE, strategies.FINITE)),
        values=tuple(draw(st.lists(strategies.FINITE, min_size=len(seeds), max_size=len(seeds)))),
        seeds=tuple(seeds),
        runs=tuple(draw(st.lists(LINES, min_size=len(seeds), max_size=len(seeds)))),
        reason=draw(st.none() | LINES),
        causes=tuple(draw(st.lists(LINES, max_size=2))),
        against_reason=draw(LINES),
    )
    other = replace(row, cells={**row.cells, key: cell}, note=draw(LINES))
    rows = tuple(other if each is row else each for each in table.rows)
    return replace(table, rows=rows, notes=tuple(draw(st.lists(LINES, max_size=2))))


LINES = strategies.PRINTABLE.map(lambda text: text.replace("$", ""))
"""Text that is not mathematics."""
MEASUREMENTS = st.builds(
    rehearsed.Measurement,
    seconds=st.floats(1e-9, 1e9),
    images=st.integers(1, 10**9),
    steps=st.integers(1, 10**9),
    limit=st.sampled_from(("data", "launch", "GPU", "CPU")),
    memory=st.none() | st.integers(0, 10**12),
    busy=st.none() | st.floats(0, 1),
    commit=strategies.PRINTABLE,
    at=strategies.PRINTABLE,
)
SHAPES = st.builds(
    rehearsed.Shape,
    st.sampled_from(("pretraining", "encoder", "classifier")),
    st.dictionaries(strategies.PRINTABLE, strategies.PRINTABLE, max_size=3).map(
        lambda each: tuple(each.items())
    ),
)
PATHS = strategies.TEXTS.map(lambda text: text.replace("\0", ""))
INVENTORIES = st.builds(
    inventory._Record,
    inventory=st.builds(
        inventory.Inventory, num_images=st.integers(), digest=strategies.SHA256, content=strategies.SHA256
    ),
    num_bytes=st.integers(),
    signature=strategies.SHA256,
    folders=st.dictionaries(PATHS, st.lists(BIG, min_size=2, max_size=2), max_size=3),
    checked=st.lists(PATHS, max_size=3),
    checked_signature=strategies.SHA256,
)
FAULTS = st.builds(
    verify.Fault,
    kind=st.sampled_from(("record", "encoder", "report", "split")),
    about=strategies.PRINTABLE,
    problem=strategies.PRINTABLE,
    path=strategies.PRINTABLE,
    changed=st.none() | st.tuples(BIG, BIG),
    run_id=strategies.PRINTABLE,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "lease": leases(),
    "journal": st.builds(
        lambda points, facts: journal.Waiting(points, facts, 0),
        st.lists(POINTS, min_size=1, max_size=4),
        FACTS,
    ),
    "result": st.builds(Result, METRICS, strategies.TEXTS, FACTS),
    "failure": strategies.PRINTABLE.filter(bool),
    "encoder": st.dictionaries(strategies.NAMES, TENSORS, max_size=3).map(
        lambda each: dict(sorted(each.items()))
    ),
    "features": st.integers(1, 4).map(lambda width: torch.arange(2.0 * width).reshape(2, width)),
    "checkpoint": st.dictionaries(strategies.NAMES, STATES, max_size=3),
    "rehearsed": st.dictionaries(
        st.tuples(SHAPES, strategies.PRINTABLE), MEASUREMENTS, min_size=1, max_size=3
    ).map(rehearsed.Measured),
    "inventory": INVENTORIES,
    "verified": st.lists(FAULTS, min_size=1, max_size=3),
    "record": records(),
    "report1": reports(),
}


@pytest.mark.parametrize("name", VALUES)
def test_every_value_comes_back_from_its_file(name: str, folder: Path) -> None:
    kind = next(kind for kind in FILES if str(kind) == name.rstrip("1"))

    @strategies.examples(50)
    @given(VALUES[name])
    def comes_back(value: Any) -> None:
        report = replace(kind, path="table99.json") if name == "report1" else kind
        path = folder / name / report.path
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        report.write(path, value)  # type: ignore[misc]
        assert fingerprint(outcome(report, path)) == fingerprint(value)

    comes_back()


ROW_TEXTS = st.builds(
    "{}{}".format, strategies.WORDS.filter(lambda word: word[0] != "-"), strategies.PRINTABLE
)
"""Texts that a spreadsheet shows as they are."""
ROOTS = strategies.PRINTABLE.map(lambda text: "/" + text.replace("$", "").strip("/"))
ROWS_OF_RUNS = st.lists(
    st.fixed_dictionaries(
        {
            "row": ROW_TEXTS,
            "column": strategies.NAMES,
            "seed": st.integers(0, 1000),
            "value": st.none() | strategies.FINITE,
            "reason": st.none() | ROW_TEXTS,
        }
    ),
    min_size=1,
    max_size=3,
)


@strategies.examples(25)
@given(first=ROWS_OF_RUNS, second=ROWS_OF_RUNS)
def test_the_rows_of_a_table_stay_when_those_of_another_are_written(
    first: list[dict[str, Any]], second: list[dict[str, Any]], folder: Path
) -> None:
    """Numbers come back bit by bit, and texts with their quotes and commas."""
    path = folder / observe.RUNS
    path.unlink(missing_ok=True)
    for table, rows in (("table8", first), ("table10", second), ("table9", first)):
        lines = [dict.fromkeys(observe.COLUMNS) | row | {"table": table} for row in rows]
        frame = pandas.DataFrame(lines, columns=[*observe.COLUMNS], dtype=object)
        observe.write_runs(frame.astype({"seed": "int64", "value": "float64"}), table, folder)
    for table, rows in (("table8", first), ("table9", first), ("table10", second)):
        read = [
            {**row, "seed": int(row["seed"])} | ({"value": float(row["value"])} if "value" in row else {})
            for row in observe.rows_of(path, table)
        ]
        assert read == [
            {"table": table} | {key: value for key, value in row.items() if value not in (None, "")}
            for row in rows
        ]


@strategies.examples(50)
@given(reports())
def test_an_exported_table_has_the_numbers_of_its_cells(report: filled.Filled) -> None:
    lines = list(csv.DictReader(io.StringIO(render.csv(report), newline="")))
    cells = [row.cells[column.key] for row in report.rows for column in report.columns]
    assert [line["value"] and float(line["value"]) for line in lines] == [
        "" if cell.value is None else cell.value for cell in cells
    ]
    assert [line["paper"] for line in lines] == [cell.paper or "" for cell in cells]
    assert [line["seeds"] for line in lines] == [" ".join(map(str, cell.seeds)) for cell in cells]


SITES = st.fixed_dictionaries(
    {},
    optional={
        "device": st.sampled_from(("auto", "cpu", "cuda", "cuda:12")),
        "jobs": st.integers(0, 10**9),
        "devices": st.integers(1, 10**9),
        "heartbeat": st.floats(0, 1e300, exclude_min=True),
        "checkpoint_seconds": st.floats(0, 1e300),
        "workers": st.just("auto") | st.integers(0, 100),
        "recompute": st.booleans(),
        "compile": st.just("auto") | st.booleans(),
        "tracking_uri": strategies.PRINTABLE,
    },
)
SLURM = st.fixed_dictionaries(
    {},
    optional={
        "partition": strategies.NAMES,
        "grace": st.integers(1, 10**9),
        "poll": st.floats(0.1, 1e300),
        "setup": st.lists(strategies.PRINTABLE, max_size=3),
    },
)


@strategies.examples(50)
@given(keys=SITES, slurm=SLURM, roots=st.dictionaries(st.sampled_from(site.data_roots()), ROOTS, max_size=2))
def test_each_value_of_a_site_file_is_the_site_s(
    keys: dict[str, Any], slurm: dict[str, Any], roots: dict[str, str], folder: Path
) -> None:
    path = folder / "site.toml"
    tables = {"": keys, "[slurm]\n": slurm, "[data]\n": roots}
    path.write_text(
        "".join(
            head
            + "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items())
            for head, table in tables.items()
        ),
        encoding="utf-8",
    )
    found = read_site(path)
    assert {key: getattr(found, key) for key in keys} == keys
    assert {key: getattr(found.slurm, key) for key in slurm} == slurm | (
        {"setup": tuple(slurm["setup"])} if "setup" in slurm else {}
    )
    assert {key: str(root) for key, root in found.data.items()} == {
        key: str(Path(root)) for key, root in roots.items()
    }


STEMS = st.binary(min_size=1, max_size=8).filter(
    lambda name: not set(name) & set(b"/\\.\n\r") and name.strip() == name
)


@strategies.examples(50)
@given(
    names=st.dictionaries(st.tuples(STEMS, STEMS), st.sampled_from((b"JPEG", b"png")), min_size=1, max_size=4)
)
def test_each_name_of_a_list_is_read(names: dict[tuple[bytes, bytes], bytes], folder: Path) -> None:
    path = folder / "list.txt"
    lines = {b"%s/%s" % name: b"%s/%s.%s" % (*name, ending) for name, ending in names.items()}
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines.values()) + b"\r\n")
    assert lists.read(path) == lines


@strategies.examples(50)
@given(
    reason=strategies.TEXTS.map(lambda text: text * 10_000),
    note=strategies.TEXTS.map(lambda text: text * 10_000),
)
def test_no_reason_makes_a_lease_unreadable(reason: str, note: str, folder: Path) -> None:
    lease._write(folder, replace(LEASE, reason=reason, progress=Progress(1, 2, "images", note)))
    found = lease.read(folder, RUN)
    assert found is not None
    assert found.state == LEASE.state
    assert len(found.reason) <= messages.LONGEST


def test_a_line_that_is_broken_is_kept_whatever_follows_it(folder: Path) -> None:
    path = folder / journal.FILE
    path.unlink(missing_ok=True)
    Journal(folder, RUN).add([Point("loss", 0.5, 1, 1)])
    path.write_bytes(b"lost\r" + path.read_bytes())
    waiting = Journal(folder, RUN).read()
    assert waiting.skipped
    Journal(folder, RUN).sent(waiting)
    assert b"lost" in (folder / journal.SKIPPED).read_bytes()


@strategies.examples(100)
@given(entries=st.lists(st.tuples(st.lists(POINTS, max_size=2), FACTS), max_size=4), share=st.floats(0, 1))
def test_a_journal_that_was_cut_keeps_the_entries_before(
    entries: list[tuple[list[Point], dict[str, str]]], share: float, folder: Path
) -> None:
    path = folder / journal.FILE
    path.write_bytes(b"")
    ends = [0]
    for points, facts in entries:
        Journal(folder, RUN).add(points, facts)
        ends.append(path.stat().st_size)
    size = round(share * ends[-1])
    path.write_bytes(path.read_bytes()[:size])
    kept = sum(end - 1 <= size for end in ends[1:])  # the line break may be missing
    found = Journal(folder, RUN).read()
    assert fingerprint(found.points) == fingerprint(
        [point for points, _ in entries[:kept] for point in points]
    )
    assert found.tags == {key: value for _, facts in entries[:kept] for key, value in facts.items()}
    assert not found.skipped


# The user's texts
# ------------------------------------------------------------------------------------------------------------

RUNS = [ours.spec for _, _, ours in plan.Request(table="table8").build().measured()][:3]
KEYS = sorted({name for run in RUNS for name in overrides.settable(run)})
ODD_TEXTS = st.one_of(
    strategies.TEXTS,
    strategies.WORDS,
    st.sampled_from(
        (
            "",
            "none",
            "nan",
            "inf",
            "1e999",
            "9" * 400,
            "9" * 5000,
            "1_0",
            "0x10",
            "²",
            "٣",
            "(",
            ",",
            "1,2",
            "=",
            "1=2",
        )
    ),
    st.integers().map(str),
    st.floats().map(str),
)


def user_error(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or None after an error of one line."""
    try:
        return call()
    except UserError as error:
        line = str(error)
    assert is_one_line(line), line
    assert len(line) < 20_000
    return None


@strategies.examples(300)
@given(st.sampled_from(KEYS) | ODD_TEXTS, ODD_TEXTS)
def test_set_accepts_a_text_or_refuses_it_in_one_line(key: str, text: str) -> None:
    def run() -> Any:
        apply, change = overrides.override(RUNS, f"{key}={text}")
        assert is_one_line(change)
        return [apply(each).id for each in RUNS]

    user_error(run)


@strategies.examples(300)
@given(st.data())
def test_set_reads_each_value_of_a_setting_as_it_is_printed(data: st.DataObject) -> None:
    run = data.draw(st.sampled_from(RUNS))
    paths = overrides.paths_of(run)
    path = data.draw(st.sampled_from([path for path in paths if overrides.full_name(path, paths) in KEYS]))
    owner, key = reference._owner(run, path)
    value = data.draw(strategies.of_type(limited_types(owner)[key]))
    assert overrides.parse(reference.written(value), run.field_type(path), path) == value


@strategies.examples(300)
@given(ODD_TEXTS)
def test_options_are_read_or_refused_in_one_line(text: str) -> None:
    seeds = user_error(options.Options(seeds=text).num_seeds)
    assert seeds is None or (text.isascii() and seeds == int(text))
    user_error(options.Options(apply=text).limits)
    user_error(options.Options(max_gpu_hours=text).limits)
    user_error(lambda: options.Options(jobs=text).applied_to(Site()))
    user_error(lambda: plan.added_row(text))
    user_error(lambda: options._by_row("backbone", [text], ["Mine"]))


TABLE = plan.Request(table="table8").build()


@strategies.examples(200)
@given(ODD_TEXTS | st.text("*?[]!-,BYOL ", max_size=12), st.booleans())
def test_globs_select_rows_and_columns_or_are_refused_in_one_line(glob: str, rows: bool) -> None:
    found = user_error(lambda: TABLE.select(glob) if rows else TABLE.select(columns=glob))
    assert found is None or (found.rows and found.columns)


def test_each_row_and_column_is_selected_by_its_name() -> None:
    for row in TABLE.rows:
        assert row in TABLE.select(row.label).rows
    for column in TABLE.columns:
        assert TABLE.select(columns=column.key).columns == (column,)


LOGINS = strategies.TEXTS.filter(lambda text: len(text) >= 8)
HOSTS = st.sampled_from(("host", "127.0.0.1", "[::1]", "a.b.c"))


@strategies.examples(200)
@given(
    st.sampled_from(("http", "https")),
    strategies.WORDS,
    st.text(min_size=8, max_size=20),
    HOSTS,
    st.integers(1, 65535),
)
def test_the_address_of_a_server_is_split_from_its_login(
    scheme: str, user: str, password: str, host: str, port: int
) -> None:
    given_address = f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{port}"
    found = address.parse(given_address)
    assert found.login == {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    assert found.uri == found.shown == f"{scheme}://{host}:{port}"
    assert (found.host, found.port) == (host.strip("[]"), port)


ADDRESSES = (
    "http://me:secret-word@host:5000/a?b=c",
    "postgresql://me:secret-word@host:5432/db",
    "sqlite:////tmp/a.db",
    "mysql+pymysql://me:secret-word@[::1]/db",
)


@strategies.examples(400)
@given(
    strategies.TEXTS
    | strategies.damaged([each.encode() for each in ADDRESSES]).map(
        lambda each: each.decode("utf-8", "surrogateescape")
    )
)
def test_any_address_is_checked_or_refused_in_one_line(text: str) -> None:
    found = user_error(lambda: address.parse(text))
    if found is not None:
        assert found.server or found.file or found.driver[0]
        assert is_one_line(found.shown), found.shown
        assert isinstance(found.authorization, dict)


WEIGHTS = st.builds(
    Weights,
    sha256=strategies.SHA256,
    file=strategies.PRINTABLE,
    prefix=strategies.NAMES,
    backbone=st.just("resnet18"),
    mean=st.just((0.5, 0.5, 0.5)),
)
CHANGES = st.lists(strategies.TEXTS, max_size=3).map(tuple)
ORDERS = st.one_of(
    st.builds(
        plan.Request,
        table=strategies.TEXTS,
        scale=strategies.TEXTS,
        seeds=st.integers(),
        rows=strategies.TEXTS,
        columns=strategies.TEXTS,
        changes=CHANGES,
        added=st.lists(st.tuples(strategies.TEXTS, WEIGHTS), max_size=2).map(tuple),
    ),
    st.builds(
        plan.Evaluation,
        weights=WEIGHTS,
        protocol=strategies.TEXTS,
        dataset=strategies.TEXTS,
        seeds=st.integers(),
        changes=CHANGES,
        typed=st.none() | CHANGES,
        checkpoint=strategies.TEXTS,
    ),
    st.builds(
        plan.Pretraining,
        method=strategies.TEXTS,
        dataset=strategies.TEXTS,
        seeds=st.integers(),
        changes=CHANGES,
        typed=st.none() | CHANGES,
    ),
)


@strategies.examples(100)
@given(ORDERS)
def test_a_request_reaches_its_worker_as_it_is(order: plan.Order) -> None:
    assert "\n" not in order.dumps()
    assert plan.loads(order.dumps()) == order


@strategies.examples(100)
@given(
    orders=st.lists(st.tuples(strategies.TEXTS, strategies.IDS), min_size=1, max_size=4),
    damage=st.binary(max_size=4),
)
def test_a_list_of_runs_is_read_whole_or_refused(
    orders: list[tuple[str, str]], damage: bytes, folder: Path
) -> None:
    text = "".join(json.dumps({"request": request, "id": id_}) + "\n" for request, id_ in orders)
    path = folder / worker.digest_of_list(text) / "jobs.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert worker.listed(path) == orders
    path.write_bytes(text.encode() + damage)
    assert user_error(lambda: worker.listed(path)) == (None if damage else orders)
    path.write_bytes(text.encode()[:-1])
    assert user_error(lambda: worker.listed(path)) is None


@strategies.examples(200)
@given(
    strategies.files(
        [json.dumps({"host": "h", "pid": 1, "started": 1.5, "token": "a", "place": "b"}).encode()]
    )
)
def test_any_tag_of_an_owner_names_a_process_or_none(content: bytes) -> None:
    entry = SimpleNamespace(
        data=SimpleNamespace(tags={tags.OWNER: content.decode(errors="replace"), "spec_id": RUN})
    )
    assert is_one_line(tags.who(entry))
    assert tags.is_mine(entry) is False
    assert tags.alive(entry, Path("/no/such/folder")) in (True, False, None)
