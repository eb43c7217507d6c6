"""Weights handed over from a folder, an archive, a URL or an earlier task."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.errors import (
    IncompleteResultsError,
    InputError,
    TerminalError,
    TransientError,
)
from mloc_dagster.executors.adapters import archive_folder, unpack
from mloc_dagster.executors.model_source import model_place
from mloc_dagster.executors.training.checkpoints import seal
from mloc_dagster.executors.training.weights import locate_weights
from mloc_dagster.results import Folder, ResultStore, open_store, write_manifest
from mloc_dagster.schema import CheckpointLoad, ModelSource
from mloc_dagster.settings import settings

MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"adapter"}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def packed(tmp_path: Path, files: dict[str, bytes], kind: str = "zip") -> Path:
    source = write(tmp_path / f"source-{kind}" / "final_lora", files)
    form = {"zip": "zip", "tar.gz": "gztar"}[kind]
    return Path(shutil.make_archive(str(tmp_path / "packed"), form, source.parent))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ResultStore:
    local = str(tmp_path / "results")
    return open_store(local if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture
def task(store: ResultStore) -> Folder:
    """A finished task with an adapter and an archive of it."""
    folder = store.task("t1")
    for name, content in ADAPTER.items():
        folder.write_bytes(f"final_lora/{name}", content)
    archive_folder(folder, "final_lora", "archives/final_lora.zip")
    write_manifest(folder, [])
    return folder


def locate(tmp_path: Path, store: ResultStore | None = None, **load: Any) -> Path:
    results = store or open_store(str(tmp_path / "results"))
    return locate_weights(CheckpointLoad(**load), results, tmp_path / "cache")


def test_a_folder_is_taken_where_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", MODEL)
    assert locate(tmp_path, path=str(folder)) == folder
    assert locate(tmp_path, type="http", url=folder.as_uri()) == folder


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_unpacked_once(tmp_path: Path, kind: str) -> None:
    path = packed(tmp_path, ADAPTER, kind)
    folder = locate(tmp_path, path=str(path))
    assert contents(folder) == ADAPTER
    stamp = folder.stat().st_ctime_ns
    assert locate(tmp_path, path=str(path)) == folder
    assert folder.stat().st_ctime_ns == stamp


def test_a_task_hands_over_its_final_weights(
    tmp_path: Path, store: ResultStore, task: Folder
) -> None:
    folder = locate(tmp_path, store, type="task", task_id="t1")
    assert contents(folder) == ADAPTER
    if store.url.startswith("/"):
        assert folder == Path(task.url) / "final_lora"


@pytest.mark.parametrize("file", ["final_lora", "archives/final_lora.zip"])
def test_a_task_hands_over_the_file_that_is_named(
    tmp_path: Path, store: ResultStore, task: Folder, file: str
) -> None:
    assert contents(locate(tmp_path, store, type="task", task_id="t1", file=file)) == ADAPTER


def test_a_model_on_a_store_elsewhere_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_RESULTS_URL", f"memory://{tmp_path.name}")
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    try:
        trained = open_store().task("trained")
        for name, content in MODEL.items():
            trained.write_bytes(f"final_model/{name}", content)
        write_manifest(trained, [])
        source = ModelSource(type="local", identifier=f"{trained.url}/final_model")
        assert contents(Path(model_place(source))) == MODEL
    finally:
        settings.cache_clear()


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_the_address_of_an_archive_in_our_results_needs_no_download(
    tmp_path: Path, store: ResultStore, task: Folder, prefix: str
) -> None:
    if prefix and not store.url.startswith("/"):
        pytest.skip("only a local store has a file:// address")
    url = f"{prefix}{task.url}/archives/final_lora.zip"
    folder = locate(tmp_path, store, type="http", url=url)
    assert contents(folder) == ADAPTER
    if store.url.startswith("/"):
        assert folder == Path(task.url) / "final_lora"
        assert not (tmp_path / "cache").exists()


def test_an_archive_whose_folder_is_gone_is_unpacked(
    tmp_path: Path, store: ResultStore, task: Folder
) -> None:
    task.delete("final_lora")
    write_manifest(task, [])
    url = f"{task.url}/archives/final_lora.zip"
    assert contents(locate(tmp_path, store, type="http", url=url)) == ADAPTER


def test_results_that_changed_since_the_manifest_are_refused(
    tmp_path: Path, store: ResultStore, task: Folder
) -> None:
    task.write_bytes("final_lora/adapter_model.safetensors", b"something else")
    with pytest.raises(IncompleteResultsError, match=r"adapter_model\.safetensors"):
        locate(tmp_path, store, type="task", task_id="t1")
    assert not list((tmp_path / "cache").glob("*")) or not store.url.startswith("/")


def test_an_archive_that_changed_since_the_manifest_is_refused(
    tmp_path: Path, store: ResultStore, task: Folder
) -> None:
    task.delete("final_lora")
    task.write_bytes("archives/final_lora.zip", b"something else")
    with pytest.raises(TerminalError, match="sha256"):
        locate(tmp_path, store, type="task", task_id="t1", file="archives/final_lora.zip")


def test_a_task_that_is_not_done_or_left_nothing_is_refused(
    tmp_path: Path, store: ResultStore, task: Folder
) -> None:
    with pytest.raises(InputError, match="left no 'final_loar'; did you mean 'final_lora'"):
        locate(tmp_path, store, type="task", task_id="t1", file="final_loar")
    running = store.task("t2")
    running.write_bytes("task.json", b"{}")
    with pytest.raises(InputError, match=r"left no final_model or final_lora; it holds task\.json"):
        locate(tmp_path, store, type="task", task_id="t2")
    running.write_bytes("final_model/config.json", b"{}")
    with pytest.raises(IncompleteResultsError, match="not done"):
        locate(tmp_path, store, type="task", task_id="t2")


def test_a_complete_checkpoint_of_a_task_that_failed_can_be_taken(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "results"))
    store.task("t3").write_bytes("task.json", b"{}")
    folder = write(tmp_path / "results/t3/checkpoints/checkpoint-5", MODEL)
    seal(folder, 5, {})
    assert locate(tmp_path, store, path=str(folder)) == folder


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"path": "nowhere/at/all"}, "'nowhere/at/all' does not exist"),
        ({"path": "{tmp}/readme.txt"}, "neither a folder nor an archive"),
        ({"path": "{tmp}/empty"}, "holds no weights"),
        ({"path": "{tmp}/config"}, "holds the settings of a model, but no weights"),
        ({"type": "http", "url": "nosuch://host/a.zip"}, "cannot be read here"),
        ({"type": "http", "url": "memory://nowhere/a.zip"}, "there is no such file"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path: Path, load: dict[str, str], message: str) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "config", {"config.json": b"{}"})
    given = {name: value.replace("{tmp}", str(tmp_path)) for name, value in load.items()}
    with pytest.raises(InputError, match=message):
        locate(tmp_path, **given)


def test_pickled_weights_are_refused_unless_they_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "old", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."})
    with pytest.raises(TerminalError, match=r"pytorch_model\.bin.*MLOC_ALLOW_PICKLE"):
        locate(tmp_path, path=str(folder))
    monkeypatch.setenv("MLOC_ALLOW_PICKLE", "true")
    settings.cache_clear()
    load, results = CheckpointLoad(path=str(folder)), open_store(str(tmp_path / "results"))
    assert locate_weights(load, results, tmp_path / "cache") == folder


class Server:
    """Serves one file over HTTP.

    Attributes:
        body: What it answers.
        etag: Its mark; none by default.
        status: The answer's status.
        served: How many bodies it sent out whole.
    """

    def __init__(self) -> None:
        self.body, self.etag, self.status, self.served = b"", "", 200, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(server.body)))
                if server.etag:
                    self.send_header("ETag", server.etag)
                self.end_headers()
                self.wfile.write(server.body)
                server.served += 1

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/final_lora.zip"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server()
    found.body = packed(tmp_path, ADAPTER).read_bytes()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.http.shutdown()
    thread.join()
    found.http.server_close()


def test_an_archive_is_downloaded_again_only_when_it_changed(
    tmp_path: Path, server: Server
) -> None:
    server.etag = '"one"'
    first = locate(tmp_path, type="http", url=server.url)
    assert contents(first) == ADAPTER
    assert locate(tmp_path, type="http", url=server.url) == first
    other = {**ADAPTER, "adapter_model.safetensors": b"later"}
    server.body, server.etag = packed(tmp_path / "other", other).read_bytes(), '"two"'
    assert contents(locate(tmp_path, type="http", url=server.url)) == other


def test_a_sha256_in_the_url_is_checked_and_spares_a_second_look(
    tmp_path: Path, server: Server
) -> None:
    good = f"{server.url}#sha256={hashlib.sha256(server.body).hexdigest()}"
    first = locate(tmp_path, type="http", url=good)
    asked = server.served
    assert locate(tmp_path, type="http", url=good) == first
    assert server.served == asked
    with pytest.raises(TerminalError, match="expected 0000"):
        locate(tmp_path, type="http", url=f"{server.url}#sha256={'0' * 64}")


@pytest.mark.parametrize(
    ("status", "error"), [(404, InputError), (503, TransientError), (429, TransientError)]
)
def test_a_server_that_refuses_is_told_from_one_that_is_busy(
    tmp_path: Path, server: Server, status: int, error: type[Exception]
) -> None:
    server.status = status
    with pytest.raises(error, match=str(status)):
        locate(tmp_path, type="http", url=server.url)
    assert list((tmp_path / "cache").iterdir()) == []


def test_credentials_of_a_cloud_are_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="link-local"):
        locate(tmp_path, type="http", url="http://169.254.169.254/latest/model.zip")


def evil_zip(path: Path, name: str, mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        file.writestr(entry, "/etc/passwd")
    return path


def evil_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as file:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 4
        file.addfile(entry, io.BytesIO(b"evil"))
    return path


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "..\\out"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    for path in (evil_zip(tmp_path / "a.zip", name), evil_tar(tmp_path / "a.tar.gz", name)):
        with pytest.raises(InputError, match="leads out of the archive"):
            unpack(path, tmp_path / "inner" / "to", "a")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "inner" / "out").exists()


def test_an_archive_with_links_or_devices_is_refused(tmp_path: Path) -> None:
    paths = [
        evil_zip(tmp_path / "a.zip", "link", 0o120777),
        evil_tar(tmp_path / "a.tar.gz", "link", tarfile.SYMTYPE),
        evil_tar(tmp_path / "b.tar.gz", "link", tarfile.LNKTYPE),
        evil_tar(tmp_path / "c.tar.gz", "pipe", tarfile.FIFOTYPE),
    ]
    for path in paths:
        with pytest.raises(InputError, match="neither a file nor a folder"):
            unpack(path, tmp_path / "to", path.name)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_damaged_archive_is_refused_and_not_kept(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sound = packed(tmp_path, ADAPTER, name.removeprefix("a.")).read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(InputError, match="not a sound archive"):
        locate(tmp_path, path=str(path))
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_larger_than_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    for kind in ("zip", "tar.gz"):
        with pytest.raises(InputError, match="the disk has 3 free"):
            unpack(packed(tmp_path, ADAPTER, kind), tmp_path / kind, "a")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_the_same_to_the_byte_on_every_store(tmp_path: Path, kind: str) -> None:
    local = open_store(str(tmp_path / "results")).task("t1")
    remote = open_store(f"memory://{tmp_path.name}").task("t1")
    for name, content in MODEL.items():
        local.write_bytes(f"final_model/{name}", content)
    for name, content in reversed(MODEL.items()):
        remote.write_bytes(f"final_model/{name}", content)
    name = archive_folder(local, "final_model", f"archives/final_model.{kind}")
    assert archive_folder(remote, "final_model", name) == name
    assert remote.read_bytes(name) == local.read_bytes(name)
    unpack(Path(local.url) / name, tmp_path / "to", name)
    assert contents(tmp_path / "to") == MODEL


def test_an_empty_folder_makes_no_archive(tmp_path: Path) -> None:
    task = open_store(str(tmp_path / "results")).task("t1")
    with pytest.raises(InputError, match="final_model holds no file"):
        archive_folder(task, "final_model", "archives/final_model.zip")
    with pytest.raises(InputError, match=r"expected one of \.zip"):
        archive_folder(task, "final_model", "archives/final_model.rar")
    assert list(tmp_path.iterdir()) == []
