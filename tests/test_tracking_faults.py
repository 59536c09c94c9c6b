"""Faults of the tracking store: each is one line, none shows the password, and none writes elsewhere."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from conftest import Home
from toys import PRETRAIN, ended
from waiting import answers, limited

from reproduce.commands import make
from reproduce.messages import public, reason_of, without_secrets
from reproduce.plan import Request
from reproduce.site import Site
from reproduce.tracking import retry, sqlite
from reproduce.tracking.address import parse
from reproduce.tracking.errors import StoreError, UnreachableError, check_answer, of_file
from reproduce.tracking.store import Store

pytestmark = pytest.mark.slow  # MLflow takes seconds to import and its server seconds to start

USER, PASSWORD = "me", "p@ss w/rd+hünter22"
LOGIN = f"{USER}:{quote(PASSWORD, safe='')}"
FORMS = {
    PASSWORD,
    quote(PASSWORD),
    quote(PASSWORD, safe=""),
    quote_plus(PASSWORD),
    base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
}
"""The password as written, decoded and encoded."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


# Texts and addresses


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:secret@host:5000/", "http://host:5000/"),
        ("http://me:se/cr@et?#@host", "http://host"),
        ("http://me:12/34@host", "http://host"),
        ("http://token@host", "http://host"),
        ("http://me:secret", "http://me:***"),
        ("https://me:secret/api?x=1", "https://me:***/api?x=1"),
        ("me:secret", "me:***"),
        ("http://[::1]:secret/", "http://[::1]:***/"),
        ("sqlite:////a:b/c.db", "sqlite:////a:b/c.db"),
        ("https://host:1/#token=secret&x=1", "https://host:1/#token=***&x=1"),
        ("me:secret@host:5000", "host:5000"),
        (
            "postgresql://me:secret@db/x?password=secret&sslmode=on",
            "postgresql://db/x?password=***&sslmode=on",
        ),
        ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
        ("http://[::1", "http://[::1"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert public(address) == shown
    text = without_secrets(f"'{address}': {address}/api; secret", address)
    assert text.startswith(f"'{shown}': {shown}/api")
    assert ("secret" in text) == ("secret" not in address)


def test_a_text_of_a_library_is_shown_without_the_password_in_any_form() -> None:
    address = f"http://{LOGIN}@host:1"
    text = f"no {address}/x and {' and '.join(sorted(FORMS))} or {PASSWORD!r}"
    shown = without_secrets(text, address)
    assert not [form for form in FORMS if form in shown]
    assert shown.startswith("no http://host:1/x and ")
    assert reason_of(ValueError(f"bad {address}")) == "ValueError: bad http://host:1"


def test_advice_about_a_password_stays_whole_in_the_error_of_a_run() -> None:
    def refused() -> None:
        check_answer(401, b"", parse("http://host:5000"))

    with pytest.raises(UnreachableError) as caught:
        retry.retrying(refused, seconds=-1)
    reason = reason_of(caught.value)
    assert "the address (user:password@ before the host), or in MLFLOW_TRACKING_USERNAME and" in reason
    assert "MLFLOW_TRACKING_PASSWORD). Nothing is lost" in reason


WORKS = "sqlite:////path/mlflow.db"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("mlruns", f"'mlruns', a folder; .*{WORKS}"),
        ("file:///tmp/mlruns", f"a folder; .*{WORKS}"),
        ("127.0.0.1:5000", "no scheme: perhaps http://127.0.0.1:5000 is meant"),
        ("me:secret@host:5000", "no scheme: perhaps http://host:5000 is meant"),
        ("databricks", f"does not support.*{WORKS}"),
        ("foo://me:secret@x", f"'foo' is not a scheme of a store.*{WORKS}"),
        ("postgres://me:secret@x/y", "spelt postgresql://"),
        ("http://[::1", "'http://\\[::1', whose host or port is not valid"),
        ("http://me:secret@host:99999", "'http://host:99999', whose host or port is not valid. A password"),
        ("http://me:se/cret@host", "'http://host', whose host or port is not valid. A password"),
        ("https://", "names no host"),
        ("sqlite://", "names no file"),
        ("sqlite://two/slashes.db", "names no file"),
        ("sqlite:////x.db?timeout=3", "options after '\\?' are not supported"),
    ],
)
def test_an_address_that_does_not_work_is_one_line(address: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse(address)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_without_its_driver_names_the_package(tmp_path: Path) -> None:
    store = Store(Site(runs=tmp_path, tracking_uri="mysql://me:secret@host/x"))
    with pytest.raises(
        ValueError, match=r"^The tracking store mysql://host/x needs .* install 'mysqlclient'`"
    ):
        store.status()


@pytest.mark.parametrize("name", ["100%25 done", "q?x=1", "hash#1;a", 'it\'s "so"', "back\\slash", "ümläut"])
def test_a_store_is_written_at_its_literal_path(name: str, tmp_path: Path, template: Path) -> None:
    site = Site(runs=tmp_path / name)
    site.runs.mkdir()
    shutil.copy(template, site.runs)
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        run.text("hello", "note.txt")
        run.finish({})
    assert list(Store(site).finished([PRETRAIN.id])) == [PRETRAIN.id]
    assert Store(site).download(run.run_id, "note.txt", tmp_path / name).read_text() == "hello"
    assert list(site.runs.glob("artifacts/msbreg/smoke/*/artifacts/note.txt")) != []
    assert [path.name for path in tmp_path.iterdir()] == [name]


# Files


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


def foreign(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE own (value)")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer": (newer, "has tables of another MLflow version (schema ffffffffffff, here "),
    "corrupted": (lambda file: file.write_bytes(file.read_bytes()[:4096] + bytes(200_000)), "is damaged ("),
    "cut": (lambda file: os.truncate(file, 100_000), "is damaged (database disk image is malformed)"),
    "text": (lambda file: file.write_text("no database" * 100), "is damaged (file is not a database)"),
    "empty": (lambda file: os.truncate(file, 0), "is an empty file: restore a copy"),
    "folder": (folder, "is a folder: set the path of a file"),
    "foreign": (foreign, "is a database, but not MLflow's: set another path"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_no_store_is_one_line_and_stays_as_it_is(fault: str, place: Home) -> None:
    spoil, says = FILES[fault]
    file = place.runs / "mlflow.db"
    spoil(file)
    before = file.read_bytes() if file.is_file() else b""
    site = Site(runs=place.runs)
    with pytest.raises(StoreError) as caught:
        Store(site).status()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caught.value.temporary
    assert fault == "newer" or Store(site).described() == str(caught.value)
    assert (file.read_bytes() if file.is_file() else b"") == before


@pytest.mark.parametrize(
    ("text", "says", "temporary"),
    [
        ("database or disk is full", "cannot be written .*free some disk space or quota", False),
        ("disk I/O error", "cannot be written .*free some disk space or quota", False),
        ("database disk image is malformed", "is damaged", False),
        ("attempt to write a readonly database", "is read-only", False),
        ("database is locked", "is locked by another process", True),
        ("no such table: runs", "refuses a request", False),
    ],
)
def test_only_a_lock_is_worth_a_wait(text: str, says: str, temporary: bool, tmp_path: Path) -> None:
    error = of_file(
        sqlite3.OperationalError(f"(sqlite3.OperationalError) {text}\n[SQL: ...]"), tmp_path / "x"
    )
    assert re.search(says, str(error))
    assert (error.temporary, "\n" in str(error)) == (temporary, False)


HOLD = """
import fcntl, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
lock = open(sys.argv[2], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(place: Home) -> Iterator[subprocess.Popen[str]]:
    """Start a process that locks the store and the lock of claims."""
    files = place.runs / "mlflow.db", place.runs / "tracking.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with limited(process):
        assert process.stdout.readline() == "held\n"
    yield process
    process.communicate(timeout=60)


def test_a_lock_is_waited_for_with_the_name_of_its_holder_and_ends(
    place: Home,
    holder: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sqlite, "QUIET", 0.1)
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT", 0.3)
    named = f"process {holder.pid} \\({re.escape(sys.executable)} -c"
    with pytest.raises(StoreError, match=f"is locked by {named}") as caught:
        Store(Site(runs=place.runs)).status()
    assert caught.value.temporary
    assert re.search(f"Waiting for the tracking store .*, which {named}", caplog.text)
    monkeypatch.setattr(retry, "QUIET", 0.1)
    with (
        pytest.raises(StoreError, match=f"is held by {named}"),
        retry.held(place.runs / "tracking.lock", 0.3),
    ):
        pass
    assert re.search(f"Waiting for the lock .*, which {named}", caplog.text)
    holder.communicate(timeout=60)
    with retry.held(place.runs / "tracking.lock", 10):
        assert Store(Site(runs=place.runs)).status() == []


# What people do in the UI, and to the folder


def finished(site: Site, *, text: str = "hello") -> str:
    with Store(site).start(PRETRAIN, scale="smoke") as run:
        run.text(text, "note.txt")
        run.finish({"top1": 0.5})
    return run.run_id


def test_a_deleted_experiment_is_restored_and_said(place: Home, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(runs=place.runs)
    run_id = finished(site)
    client = Store(site).connection.client
    (experiment,) = Store(site).connection.experiments("smoke")
    for read in (lambda: Store(site).finished([PRETRAIN.id])[PRETRAIN.id].run_id, lambda: finished(site)):
        client.delete_experiment(experiment)
        caplog.clear()
        assert read() is not None
        assert caplog.messages == [
            "The experiment msbreg/smoke was deleted in MLflow and is restored with its runs. To set its "
            "runs aside, rename it."
        ]
    client.rename_experiment(experiment, "aside")
    assert Store(site).finished([PRETRAIN.id]) == {}
    assert finished(site) != run_id


@pytest.mark.parametrize("edit", ["spec_id", "complete"])
def test_a_run_whose_tag_was_edited_is_not_the_result_of_a_spec(edit: str, place: Home) -> None:
    site = Site(runs=place.runs)
    run_id = finished(site)
    client = Store(site).connection.client
    client.set_tag(run_id, edit, "0123456789ab")
    store = Store(site)
    assert store.finished([PRETRAIN.id, "0123456789ab"]) == {}
    assert [state.state for state in store.status()] == ["interrupted"]
    client.delete_tag(run_id, edit)
    for tag in ("owner", "attempts"):
        client.set_tag(run_id, tag, "edited")
    assert store.finished([PRETRAIN.id, "0123456789ab"]) == {}
    assert [record.attempts for record in store.records([PRETRAIN.id]).values()] in ([], [None])


def fill(site: Site) -> None:
    """Leave a finished run, and one that the next attempt resumes."""
    finished(site)
    with suppress(ValueError), Store(site).start(PRETRAIN.replace("seed", 1), scale="smoke"):
        raise ValueError("no luck")


def read(site: Site, run_id: str) -> None:
    """Check that a run's artifact is found in the folder of this site."""
    store = Store(site)
    assert store.download(run_id, "note.txt", site.runs.parent).read_text() == "hello"
    assert store.connection.client.get_run(run_id).info.artifact_uri.startswith(site.runs.as_uri())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_moved_store_finds_its_artifacts_and_a_copy_leaves_the_original_alone(
    place: Home, tmp_path: Path
) -> None:
    original = Site(runs=place.runs)
    assert ended(fill, original) == 0  # in a process of its own: MLflow remembers where a run's artifacts are
    run_id = Store(original).finished([PRETRAIN.id])[PRETRAIN.id].run_id
    before = contents(original.runs)
    copy = Site(runs=tmp_path / "copy?%41" / "runs")
    shutil.copytree(original.runs, copy.runs)
    store = Store(copy)
    assert store.download(run_id, "note.txt", tmp_path).read_text() == "hello"
    assert store.portable(PRETRAIN.id).final == {"top1": 0.5}
    for seed in (1, 2):
        with store.start(PRETRAIN.replace("seed", seed), scale="smoke") as run:
            run.text("of the copy", "note.txt")
            run.finish({})
    assert contents(original.runs) == before
    assert len(list(copy.runs.glob("artifacts/msbreg/smoke/*/artifacts/note.txt"))) == 3

    moved = Site(runs=tmp_path / "moved" / "runs")
    shutil.move(original.runs, moved.runs)
    assert ended(read, moved, run_id) == 0
    assert not original.runs.exists()


def test_sites_that_share_a_store_find_the_artifacts_of_each_other(place: Home, tmp_path: Path) -> None:
    one = Site(runs=place.runs)
    other = Site(runs=tmp_path / "other", tracking_uri=f"sqlite:///{place.runs / 'mlflow.db'}")
    run_id = finished(one)
    with Store(other).start(PRETRAIN.replace("seed", 1), scale="smoke") as run:
        run.text("of the other", "note.txt")
        run.finish({})
    for site in (one, other, one):
        assert Store(site).download(run_id, "note.txt", tmp_path).read_text() == "hello"
        assert Store(site).download(run.run_id, "note.txt", tmp_path).read_text() == "of the other"


# Servers


@dataclass
class Proxy:
    """A server in front of MLflow's that wants a login, and fails as `mode` says."""

    upstream: int
    mode: str = "pass"

    def __post_init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def address(self, end: str = "") -> str:
        return f"http://{LOGIN}@127.0.0.1:{self.port}{end}"

    def _accept(self) -> None:
        with suppress(OSError):  # at the end of the tests
            while True:
                threading.Thread(target=self._serve, args=(self.server.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            request = self._request(client)
            if not request:
                return
            wanted = b"Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode())
            mode = self.mode if wanted in request else "401"
            if mode == "until complete" and b'"complete"' in request:
                self.mode = "401"
            if mode == "refuse writes":
                mode = "400" if b"/runs/log-batch" in request else "pass"
            if mode == "hang":
                client.recv(1)
            elif mode in ("pass", "until complete"):
                self._pass_on(request, client)
            elif mode != "close":
                client.sendall(self._answer(mode))

    def _request(self, client: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (part := client.recv(65536)):
                return b""
            data += part
        found = re.search(rb"content-length: (\d+)", data, re.IGNORECASE)
        whole = data.index(b"\r\n\r\n") + 4 + (int(found[1]) if found else 0)
        while len(data) < whole:
            data += client.recv(65536)
        return data

    def _pass_on(self, request: bytes, client: socket.socket) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        head = re.sub(rb"\r\nconnection: [^\r]*", b"", head, flags=re.IGNORECASE) + b"\r\nConnection: close"
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            server.sendall(head + b"\r\n\r\n" + body)
            while part := server.recv(65536):
                client.sendall(part)

    def _answer(self, mode: str) -> bytes:
        bodies = {
            "garbage": b"\x00\xff" * 50,
            "login page": b"<html>login</html>",
            # A server that repeats what it was sent, in every form.
            "400": ('{"error_code": "BAD_REQUEST", "message": "' + " ".join(sorted(FORMS)) + '"}').encode(),
            "302": b"",
        }
        body, status = bodies.get(mode, b"no"), mode if mode.isdecimal() else "200"
        more = f"Location: {self.address('/elsewhere')}\r\n" if mode == "302" else "Retry-After: 3600\r\n"
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n"
        return head.encode() + body


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, template: Path, port: int) -> Iterator[Proxy]:
    """Start MLflow's server for a store of its own, and a proxy in front of it."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(template, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        command, variables = Store(Site(runs=folder)).ui_command(port)
    assert not [word for word in command if "sqlite" in word], "every user can read a command line"
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        assert answers(server, f"http://127.0.0.1:{port}/health"), (folder / "server.log").read_text()
        yield Proxy(port)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


SERVER_FAULTS = {
    "500": r"fails \(500\): see its log",
    "503": r"fails \(503\): see its log",
    "401": r"\(401\): it asks for a valid user and password",
    "403": r"\(403\): this user may not do this",
    "429": r"\(429\): it receives too many requests",
    "garbage": "answers, but not as MLflow does",
    "login page": "answers, but not as MLflow does",
    "302": "answers, but not as MLflow does",
    "404": "answers, but not as MLflow does",
    "close": "closed the connection",
    "hang": "did not answer in time",
}


@pytest.mark.parametrize("fault", SERVER_FAULTS)
def test_a_server_that_fails_is_one_line(
    fault: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(runs=tmp_path, tracking_uri=proxy.address("/"))
    opened = Store(site)
    monkeypatch.setattr(proxy, "mode", "pass")
    assert opened.finished([PRETRAIN.id]) == {}
    assert opened.described() == f"http://127.0.0.1:{proxy.port}, a server that answers"
    proxy.mode = fault
    (tmp_path / "x").touch()
    asked: dict[str, Callable[[], object]] = {
        "status": Store(site).status,
        "finished": lambda: opened.finished([PRETRAIN.id]),
        "records": lambda: opened.records([PRETRAIN.id]),
        "download": lambda: opened.download("1" * 32, "x", tmp_path),
        "start": lambda: opened.start(PRETRAIN, scale="smoke"),
    }
    for name, ask in list(asked.items())[: 1 if fault == "hang" else None]:
        with pytest.raises(
            StoreError, match=f"^The tracking server http://127.0.0.1:{proxy.port} "
        ) as caught:
            ask()
        assert re.search(SERVER_FAULTS[fault], str(caught.value)), name
        assert "\n" not in str(caught.value)
        assert caught.value.temporary, "a run waits for it"
    assert fault == "hang" or re.search(SERVER_FAULTS[fault], opened.described())


def test_a_wrong_password_and_no_password_are_one_line(proxy: Proxy, tmp_path: Path) -> None:
    for login in ("", "me@", "me:wrongwrong@"):
        store = Store(Site(runs=tmp_path, tracking_uri=f"http://{login}127.0.0.1:{proxy.port}"))
        with pytest.raises(StoreError, match=r"\(401\): it asks for a valid user and password") as caught:
            store.status()
        assert "wrongwrong" not in str(caught.value)


def everything(home: Home, *texts: str) -> dict[str, bytes]:
    """Return all that commands printed and wrote, archives unpacked, except the site file."""
    found = {f"text {number}": text.encode() for number, text in enumerate(texts)}
    for name, content in contents(home.folder).items():
        if name != "site.toml":
            found[name] = content
        if name.endswith(".zip"):
            with zipfile.ZipFile(home.folder / name) as archive:
                found |= {f"{name}/{each}": archive.read(each) for each in archive.namelist()}
    return found


TABLE = ("table8", "--rows", "BYOL", "--set", "epochs=0")


def test_no_output_of_good_and_of_failing_commands_contains_the_password(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path / "home", site=f'device = "cpu"\ntracking_uri = "{proxy.address("/")}"\n')
    shown = f"http://127.0.0.1:{proxy.port}"
    monkeypatch.setattr(proxy, "mode", "pass")
    done = [
        home.invoke(*TABLE),
        home.invoke("why", "--table", "table8", "--row", "BYOL", "--set", "epochs=0"),
    ]
    done.append(home.invoke("export", "--scale", "smoke", "--file", str(home.folder / "sent.zip")))
    assert [each.returncode for each in done] == [0, 0, 0], done
    assert f"{shown}/#/experiments/" in done[1].stdout
    done.append(home.invoke("ui"))
    assert f"table8: {shown}/#/experiments/" in done[-1].stdout

    # The server repeats the password in each refusal, here the reason why a run fails.
    proxy.mode = "refuse writes"
    done.append(home.invoke(*TABLE[:-1], "epochs=1", MLFLOW_TRACKING_URI=proxy.address()))
    assert done[-1].returncode == make.FAILED
    assert "refuses a request: BAD_REQUEST: ***" in done[-1].stdout
    assert "refuses a request: BAD_REQUEST: ***" in (home.reports / "smoke" / "table8.json").read_text()

    found = everything(home, *(text for each in done for text in (each.stdout, each.stderr)))
    assert {"sent.zip/manifest.json", "reports/smoke/table8.tex", "reports/smoke/index.html"} <= set(found)
    assert len([name for name in found if name.endswith("log.txt")]) == 3
    assert [name for name, text in found.items() for form in FORMS if form.encode() in text] == []

    # The server stores what runs recorded, and refuses everything after the last run.
    site = Site(
        runs=tmp_path / "elsewhere", reports=home.reports, device="cpu", tracking_uri=proxy.address("/")
    )
    proxy.mode = "pass"
    store = Store(site)
    (evaluation,) = [each for each in store.status() if " → linear" in each.name and each.metrics]
    recorded = [store.connection.client.get_run(each.run_id) for each in store.status()]
    assert not [form for form in FORMS if form in str([each.to_dictionary() for each in recorded])]
    store.connection.client.delete_run(evaluation.run_id)
    proxy.mode = "until complete"
    monkeypatch.setattr(make, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(retry, "PAUSE", 0.1)
    monkeypatch.setenv("MSBREG_SITE", str(home.site_file))
    request = Request(table="table8", rows="BYOL", changes=("epochs=0",))
    assert make.produce([request], replace(site, runs=home.runs)) == make.FAILED
    printed = capsys.readouterr().out
    assert "[1/1] byol → linear · " in printed
    assert printed.count("(401): it asks for a valid user and password") == 1
    assert "table8 (smoke): 0 of 1 cells filled" in printed
    assert "(401): it asks for a valid user" in (home.reports / "smoke" / "table8.json").read_text()
