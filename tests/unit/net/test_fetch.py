"""Data, adapters and checkpoints are fetched through one guard, redirects' addresses included."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from mloc_dagster.data import dataset_rows
from mloc_dagster.errors import InputError, MlocError
from mloc_dagster.executors import adapter_folder, locate_weights
from mloc_dagster.net.reach import LOCAL, Reach
from mloc_dagster.results import open_store
from mloc_dagster.schema import Adapter, CheckpointLoad, DatasetData
from mloc_dagster.settings import settings
from tests.image_server import ImageServer, image_server, send

Fetch = Callable[[str], object]


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with image_server() as running:
        yield running


def _archive(*names: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
    return packed.getvalue()


ARCHIVE = _archive("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(params=["data.url", "adapters.url", "checkpoint.load.url"])
def fetch(request: pytest.FixtureRequest, tmp_path: Path) -> Fetch:
    """Fetches a URL as a worker does for one of the fields that may hold one."""

    def data(url: str) -> object:
        return [row.prompt for row in dataset_rows(DatasetData(type="dataset", url=url)).rows]

    def adapter(url: str) -> object:
        with adapter_folder(Adapter(url=url)) as folder:
            return [each.name for each in folder.iterdir()]

    def checkpoint(url: str) -> object:
        load = CheckpointLoad(type="http", url=url)
        return locate_weights(load, open_store(), tmp_path / "weights")

    kinds: dict[str, Fetch] = {
        "data.url": data,
        "adapters.url": adapter,
        "checkpoint.load.url": checkpoint,
    }
    return kinds[request.param]


def _page(handler: BaseHTTPRequestHandler) -> None:
    send(b"a row\n" if handler.path.endswith(".txt") else ARCHIVE)(handler)


def _url(fetch: Fetch, server: ImageServer, name: str) -> str:
    suffix = "txt" if fetch.__name__ == "data" else "tar.gz"
    return server.add(f"/{name}.{suffix}", _page)


def test_a_url_is_fetched_where_it_may_be(fetch: Fetch, server: ImageServer) -> None:
    assert fetch(_url(fetch, server, "plain"))


def test_a_redirect_to_link_local_is_refused_even_of_a_local_task(
    fetch: Fetch, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = _url(fetch, server, "away")
    target = f"http://169.254.169.254/{url.rpartition('/')[2]}"
    server.add("/" + url.rpartition("/")[2], send(b"", 302, Location=target))
    monkeypatch.setenv("MLOC_API_PRIVATE_ADDRESSES", "1")
    settings.cache_clear()
    for reach in (LOCAL, Reach("api")):
        with reach.applied(), pytest.raises(InputError, match="link-local"):
            fetch(url)


def test_a_submitted_task_reaches_no_private_address(fetch: Fetch, server: ImageServer) -> None:
    url = _url(fetch, server, "private")
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        with (
            Reach("api").applied(),
            pytest.raises(InputError, match="MLOC_API_PRIVATE_ADDRESSES"),
        ):
            fetch(url.replace("127.0.0.1", host, 1))
    for host in ("2130706433", "0177.0.0.1"):  # not every client takes these for addresses
        with Reach("api").applied(), pytest.raises(InputError):
            fetch(url.replace("127.0.0.1", host, 1))
    assert f"/{url.rpartition('/')[2]}" not in server.asked


def test_a_submitted_task_chains_no_file_systems(fetch: Fetch, server: ImageServer) -> None:
    url = _url(fetch, server, "chained")
    with Reach("api").applied(), pytest.raises(InputError, match="chains file systems"):
        fetch(f"simplecache::{url}")


def test_a_folder_of_data_with_a_link_out_of_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "open" / "a.txt").write_text("a row")
    monkeypatch.setenv("MLOC_API_DATA_ROOTS", str(tmp_path / "open"))
    settings.cache_clear()
    for url in (str(tmp_path / "open"), f"{tmp_path}/open/*.txt"):
        data = DatasetData(type="dataset", url=url)
        with Reach("api").applied():
            assert [row.prompt for row in dataset_rows(data).rows] == ["a row"]
    (tmp_path / "open" / "b.txt").symlink_to(tmp_path / "secret.txt")
    for url in (str(tmp_path / "open"), f"{tmp_path}/open/*.txt"):
        data = DatasetData(type="dataset", url=url)
        with Reach("api").applied(), pytest.raises(MlocError, match="MLOC_API_DATA_ROOTS"):
            [row.prompt for row in dataset_rows(data).rows]


def an_adapter(folder: Path, weights: str, settings_of_peft: bytes = b"{}") -> Adapter:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(settings_of_peft)
    (folder / weights).write_bytes(b"")
    return Adapter(path=str(folder))


def test_an_adapter_of_a_submitted_task_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT imports the module that the adapter's own settings name beside a `megatron_config`."""
    monkeypatch.setenv("MLOC_API_DATA_ROOTS", str(tmp_path))
    settings.cache_clear()
    config = b'{"megatron_config": {"a": 1}}'
    adapter = an_adapter(tmp_path / "adapter", "adapter_model.safetensors", config)
    with (
        Reach("api").applied(),
        pytest.raises(MlocError, match="megatron_config"),
        adapter_folder(adapter),
    ):
        pass
    with adapter_folder(adapter) as found:
        assert found == tmp_path / "adapter"


def test_a_pickled_adapter_is_loaded_where_the_operator_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = an_adapter(tmp_path / "adapter", "adapter_model.bin")
    with pytest.raises(MlocError, match="MLOC_ALLOW_PICKLE"), adapter_folder(adapter):
        pass
    monkeypatch.setenv("MLOC_ALLOW_PICKLE", "true")
    settings.cache_clear()
    with adapter_folder(adapter) as found:
        assert found == tmp_path / "adapter"
