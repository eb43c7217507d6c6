"""Every field through which a template names a URL: none leads to a forbidden address."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import dataset_rows, open_training_rows, scan_batch
from mloc_dagster.errors import MlocError
from mloc_dagster.executors import ImageLoader, adapter_folder, locate_weights, model_place
from mloc_dagster.net import LOCAL, Reach, current_reach
from mloc_dagster.results import deliver, open_store
from mloc_dagster.schema import (
    Adapter,
    CheckpointLoad,
    DatasetData,
    HttpDestination,
    ModelSource,
    SftSpec,
    TrainingData,
)
from mloc_dagster.settings import settings
from tests.api_server import Served, serving
from tests.image_server import ImageServer, image_server, send

API = Reach("api")


@dataclass(frozen=True)
class Entry:
    """A field that may hold a URL.

    Attributes:
        suffix: What such a URL ends with.
        block: A whole template's spec with the URL, for the API.
        use: What a worker does with the URL.
    """

    suffix: str
    block: str
    use: Callable[[str], object]


def read_dataset(url: str) -> object:
    return [row.prompt for row in dataset_rows(DatasetData(type="dataset", url=url)).rows]


def read_training_rows(url: str) -> object:
    return open_training_rows(
        TrainingData(dataset_name=url, text_column="text"), SftSpec.method
    ).found


def load_image(url: str) -> object:
    def no_file(name: str) -> bytes:
        raise FileNotFoundError(name)

    with closing(ImageLoader(no_file)) as loader:
        return loader.load(url)


def find_adapter(**place: str) -> object:
    with adapter_folder(Adapter.model_validate(place)) as folder:
        return folder


def find_weights(**place: str) -> object:
    load = CheckpointLoad.model_validate(place)
    return locate_weights(load, open_store(), settings().home / "weights")


def send_results(url: str) -> object:
    folder = open_store().task("task-1")
    folder.write_bytes("responses.json", b"{}")
    destination = HttpDestination(type="http", url=url, max_attempts=1)
    return deliver(folder, "task-1", destination, [], reach=current_reach())


INFERENCE = "{taskType: inference, model: {source: {type: builtin, identifier: tiny-chat}%s}, %s}"
ITEMS = "data: {type: list, items: [hi]}"
PART = "{type: image_url, image_url: {url: '%s'}}"
TRAINING = "{taskType: %s, model: {source: {type: builtin, identifier: tiny-chat}}, %s}"
ROWS = "data: {prompts: [a]}"
ENTRIES = {
    "data.url": Entry(".txt", INFERENCE % ("", "data: {type: dataset, url: '%s'}"), read_dataset),
    "data.url of openai_batch": Entry(
        ".jsonl", INFERENCE % ("", "data: {type: openai_batch, url: '%s'}"), scan_batch
    ),
    "data.dataset_name": Entry(
        ".jsonl",
        TRAINING % ("sft", "data: {dataset_name: '%s', text_column: text}"),
        read_training_rows,
    ),
    "evaluation.data.dataset_name": Entry(
        ".jsonl",
        TRAINING
        % (
            "sft",
            "data: {rows: [{text: a}], text_column: text}, "
            "evaluation: {data: {dataset_name: '%s', text_column: text}}",
        ),
        read_training_rows,
    ),
    "image_url.url": Entry(
        ".png",
        INFERENCE % ("", f"data: {{type: list, items: [[{{role: user, content: [{PART}]}}]]}}"),
        load_image,
    ),
    "adapters.url": Entry(
        ".zip",
        INFERENCE % (", adapters: [{url: '%s'}]", ITEMS),
        lambda url: find_adapter(url=url),
    ),
    "adapters.path": Entry(
        ".zip",
        INFERENCE % (", adapters: [{path: '%s'}]", ITEMS),
        lambda url: find_adapter(path=url),
    ),
    "model.source.identifier": Entry(
        ".zip",
        "{taskType: inference, model: {source: {type: local, identifier: '%s'}}, " + ITEMS + "}",
        lambda url: model_place(ModelSource(type="local", identifier=url)),
    ),
    "checkpoint.load.url": Entry(
        ".zip",
        TRAINING
        % ("sft", "data: {rows: [{text: a}], text_column: text}, checkpoint: {load: {url: '%s'}}"),
        lambda url: find_weights(url=url),
    ),
    "checkpoint.load.path": Entry(
        ".zip",
        TRAINING
        % ("sft", "data: {rows: [{text: a}], text_column: text}, checkpoint: {load: {path: '%s'}}"),
        lambda url: find_weights(path=url),
    ),
    "reward_model.identifier": Entry(
        ".zip",
        TRAINING % ("ppo", ROWS + ", reward_model: {identifier: '%s'}"),
        # What `load_reward_model` does with an address.
        lambda url: model_place(ModelSource(type="local", identifier=url)),
    ),
    "output.destination.url": Entry(
        "",
        "{taskType: echo, " + ITEMS + ", output: {destination: {type: http, url: '%s'}}}",
        send_results,
    ),
}
"""Fields of ours; those of plug-ins follow from their marks (`test_schema_markers.py`)."""

LINK_LOCAL = [
    "169.254.169.254",
    "[::ffff:169.254.169.254]",
    "[::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "2852039166",
    "0xA9FEA9FE",
    "0251.0376.0251.0376",
    "user:password@169.254.169.254",
    "named.test",
]
PRIVATE = ["127.0.0.1", "[::ffff:10.0.0.1]", "2130706433", "0177.0.0.1"]


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> Entry:
    return ENTRIES[request.param]


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with image_server() as running:
        yield running


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serving() as served:
        yield served


Names = dict[str, list[str]]


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names of hosts, each with the addresses that DNS answers one after the other."""
    known: Names = {"named.test": ["169.254.169.254"]}
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        answers = known.get(name)
        if answers:
            host = answers.pop(0) if len(answers) > 1 else answers[0]
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def refusal(entry: Entry, url: str) -> str:
    """Returns why a worker does not use a URL."""
    with pytest.raises((MlocError, ValueError)) as refused:
        entry.use(url)
    assert not getattr(refused.value, "retryable", False), refused.value
    assert "password" not in str(refused.value)
    return str(refused.value)


def submit(api: Served, entry: Entry, url: str) -> Any:
    spec = entry.block % url
    text = f"apiVersion: mloc/v1\nkind: {kind_of(spec)}\nmetadata: {{name: t}}\nspec:\n  {spec}\n"
    return api.client.post("/api/v1/tasks", content=text)


def kind_of(spec: str) -> str:
    kinds = {"inference": "InferenceTask", "echo": "EchoTask"}
    return kinds.get(spec.partition("taskType: ")[2].partition(",")[0], "TrainingTask")


def test_link_local_is_refused_at_submission(api: Served, entry: Entry) -> None:
    for host in LINK_LOCAL:
        answer = submit(api, entry, f"http://{host}/a{entry.suffix}")
        assert answer.status_code == 422, (host, answer.text)
        (error,) = answer.json()["errors"]
        assert error["line"] == 5
        assert error["message"] == "169.254.169.254 is link-local: nothing is fetched from there"
        assert "password" not in answer.text


def test_private_addresses_are_refused_at_submission(
    api: Served, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"http://{host}/a{entry.suffix}" for host in PRIVATE]
    for url in urls:
        answer = submit(api, entry, url)
        assert answer.status_code == 422, (url, answer.text)
        assert "MLOC_API_PRIVATE_ADDRESSES forbids these" in answer.json()["detail"]
    monkeypatch.setenv("MLOC_API_PRIVATE_ADDRESSES", "1")
    settings.cache_clear()
    with serving() as other:
        assert [submit(other, entry, url).status_code for url in urls] == [202] * len(urls)


@pytest.mark.parametrize("reach", [LOCAL, API], ids=["local", "api"])
def test_link_local_is_refused_by_the_worker(
    entry: Entry, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_API_PRIVATE_ADDRESSES", "1")
    settings.cache_clear()
    with reach.applied():
        for host in LINK_LOCAL:
            said = refusal(entry, f"http://{host}/a{entry.suffix}")
            # httpx takes no octal numbers.
            is_octal = host.startswith("02") and re.search("Invalid IPv4|is no HTTP URL", said)
            assert "link-local" in said or is_octal, said


def test_a_redirect_to_link_local_is_refused_by_the_worker(
    entry: Entry, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_API_PRIVATE_ADDRESSES", "1")
    settings.cache_clear()
    target = f"http://169.254.169.254/a{entry.suffix}"

    def away(handler: BaseHTTPRequestHandler) -> None:
        send(b"", 302, Location=target)(handler)

    for reach in (LOCAL, API):
        with reach.applied():
            said = refusal(entry, server.add(f"/away{entry.suffix}", away))
            assert "link-local" in said or "a redirect, and none is followed" in said


def test_dns_that_changes_after_the_submission_leads_nowhere(
    api: Served, entry: Entry, names: Names
) -> None:
    url = f"http://changing.test/a{entry.suffix}"
    names["changing.test"] = ["93.184.215.14"]
    assert submit(api, entry, url).status_code == 202
    names["changing.test"] = ["169.254.169.254"]
    with API.applied():
        assert "link-local" in refusal(entry, url)
    names["changing.test"] = ["127.0.0.1"]
    with API.applied():
        assert "MLOC_API_PRIVATE_ADDRESSES forbids these" in refusal(entry, url)


def test_dns_that_changes_while_a_worker_connects_leads_nowhere(
    entry: Entry, server: ImageServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first answer may be used: the next ones lead to where nothing may be fetched."""
    connected: list[str] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(str(address[0]))
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    url = server.add(f"/changing{entry.suffix}", send(b"", 404))
    names["changing.test"] = ["127.0.0.1", "169.254.169.254"]
    with pytest.raises((MlocError, ValueError)):
        entry.use(url.replace("127.0.0.1", "changing.test"))
    assert not [each for each in connected if "169.254" in each or "a9fe" in each]


def test_a_chain_leads_no_further_than_its_url(server: ImageServer, tmp_path: Path) -> None:
    """fsspec's own HTTP is guarded as well: behind a cache, within an archive, in a list."""
    url = server.add("/away.txt", send(b"", 302, Location="http://169.254.169.254/a.txt"))
    listed = tmp_path / "list.json"
    listed.write_text('{"a.txt": ["http://169.254.169.254/a.txt"]}')
    for chain in (f"simplecache::{url}", f"reference://a.txt::{listed}"):
        with pytest.raises(MlocError, match="link-local"):
            read_dataset(chain)
