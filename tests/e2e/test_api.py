"""The API over a real ledger and real connections."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from mloc_dagster.api import create_app
from mloc_dagster.ledger import Ledger
from mloc_dagster.results import open_store
from mloc_dagster.settings import settings
from tests.api_server import ECHO, STAGES
from tests.e2e.api_process import served
from tests.ports import free_port

pytestmark = pytest.mark.e2e

_PATIENCE_S = 0.5


@dataclass(frozen=True)
class Api:
    client: httpx.Client
    ledger: Ledger
    url: str

    def connect(self) -> socket.socket:
        parts = urlsplit(self.url)
        return socket.create_connection((parts.hostname, parts.port), timeout=10)


@pytest.fixture
def api(session_home: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    monkeypatch.setenv("MLOC_API_PATIENCE_S", str(_PATIENCE_S))
    settings.cache_clear()
    with (
        closing(Ledger.open()) as ledger,
        served(create_app(ledger)) as url,
        httpx.Client(base_url=url, timeout=300) as client,
    ):
        yield Api(client, ledger, url)


def test_what_was_answered_is_in_the_ledger(api: Api) -> None:
    answer = api.client.post("/api/v1/tasks", content=STAGES)
    assert answer.status_code == 202
    for task in answer.json()["tasks"]:
        shown = api.client.get(f"/api/v1/tasks/{task['task_id']}").json()
        assert {name: shown[name] for name in ("task_id", "status", "depends_on")} == {
            name: task[name] for name in ("task_id", "status", "depends_on")
        }
    with closing(Ledger.open()) as other:
        entries = other.workflow(answer.json()["tasks"][0]["workflow_id"])
    assert [each.node for each in entries] == ["first", "second"]


def test_a_key_holds_over_a_restart(api: Api) -> None:
    key = {"Idempotency-Key": f"key-{time.time_ns()}"}
    first = api.client.post("/api/v1/tasks", content=ECHO, headers=key)
    with (
        closing(Ledger.open()) as ledger,
        served(create_app(ledger)) as url,
    ):
        again = httpx.post(f"{url}/api/v1/tasks", content=ECHO, headers=key)
        other = httpx.post(f"{url}/api/v1/tasks", content=STAGES, headers=key)
    assert again.content == first.content
    assert other.status_code == 409


def test_many_clients_lose_nothing(api: Api) -> None:
    def submit(number: int) -> str:
        text = ECHO.replace("team-a", f"owner-{number % 4}")
        answer = api.client.post("/api/v1/tasks", content=text)
        assert answer.status_code == 202, answer.text
        return answer.json()["tasks"][0]["task_id"]

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(submit, range(400)))
    assert len(set(ids)) == 400
    assert api.ledger.tasks(ids).keys() == set(ids)


def test_cancel_retry_and_filters_on_the_ledger(api: Api) -> None:
    text = ECHO.replace("team-a", "team-z").replace("example", f"l-{time.time_ns()}")
    task = api.client.post("/api/v1/tasks", content=text).json()["tasks"][0]["task_id"]
    label = text.partition("purpose: ")[2].partition("}")[0]
    cancelled = api.client.post(f"/api/v1/tasks/{task}/cancel").json()["tasks"][0]
    assert cancelled["status"] == "CANCELLED"
    query = {"label": f"purpose={label}", "status": "CANCELLED", "owner": "team-z"}
    found = api.client.get("/api/v1/tasks", params=query).json()["tasks"]
    assert [each["task_id"] for each in found] == [task]
    retried = api.client.post(f"/api/v1/tasks/{task}/retry").json()["tasks"][0]
    assert retried["status"] == "PENDING"
    assert api.client.get("/api/v1/tasks", params={"cursor": "junk"}).status_code == 422


def test_workers_metrics_and_readiness_with_a_fleet(api: Api) -> None:
    assert api.client.get("/workers").json() == {"ok": True, "count": 0, "workers": []}
    assert api.client.get("/workers/nobody").status_code == 404
    assert all(each["ok"] for each in api.client.get("/healthz/ready").json()["checks"].values())
    assert "mloc_tasks" in api.client.get("/metrics").text
    assert api.client.post("/admin/cleanup", json={"dry_run": True}).status_code == 200


def test_half_a_head_is_hung_up_on(api: Api) -> None:
    with api.connect() as silent, api.connect() as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
    assert api.client.get("/healthz").status_code == 200


def test_half_a_body_is_408(api: Api) -> None:
    with api.connect() as slow:
        slow.sendall(
            b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc"
        )
        answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"problem+json" in answer
        while answer:
            answer = slow.recv(65536)


def test_who_does_not_read_is_left_and_others_are_served(api: Api) -> None:
    folder = open_store().task("large")
    with folder.create("responses.json") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    before = threading.active_count()
    lazy = [api.connect() for _ in range(60)]
    for each in lazy:
        each.sendall(b"GET /api/v1/results/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    began = time.monotonic()
    assert len(api.client.get("/api/v1/results/large").content) == 64 << 20
    while time.monotonic() - began < 4 * _PATIENCE_S:
        assert api.client.post("/api/v1/tasks", content=ECHO).status_code == 202
    assert time.monotonic() - began < 20
    assert threading.active_count() - before < 60
    for each in lazy:
        with each, pytest.raises((ConnectionResetError, _Ended)):
            _read_on(each)


class _Ended(Exception):
    """The connection ended before the file did."""


def _read_on(connection: socket.socket) -> None:
    received = 0
    while block := connection.recv(1 << 20):
        received += len(block)
    if received < 64 << 20:
        raise _Ended


def test_a_range_of_a_large_file_reads_only_that(api: Api) -> None:
    folder = open_store().task("ranged")
    with folder.create("responses.json") as file:
        file.write(bytes(8 << 20) + b"end")
    answer = api.client.get("/api/v1/results/ranged", headers={"Range": "bytes=-3"})
    assert (answer.status_code, answer.content) == (206, b"end")


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(
    session_home: Path, redis_url: str, tmp_path: Path
) -> None:
    port = free_port()
    environment = os.environ | {
        "MLOC_HOME": str(session_home), "MLOC_REDIS_URL": redis_url,
        "MLOC_RESULTS_URL": str(tmp_path), "MLOC_API_TOKEN": "t",
    }  # fmt: skip
    with closing(Ledger.open(_database(session_home))) as ledger:
        environment["MLOC_POSTGRES_URL"] = _database(session_home)
        process = subprocess.Popen(
            [sys.executable, "-m", "mloc_dagster.cli", "api", "--port", str(port)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_up(url)
            token = {"Authorization": "Bearer t"}
            assert httpx.post(f"{url}/api/v1/tasks", content=ECHO).status_code == 401
            answer = httpx.post(f"{url}/api/v1/tasks", content=ECHO, headers=token)
            assert answer.status_code == 202
            assert ledger.task(answer.json()["tasks"][0]["task_id"]) is not None
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM), errors


def _database(home: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOC_HOME", str(home))
        settings.cache_clear()
        from mloc_dagster.home import postgres_url

        return postgres_url()


def _wait_until_up(url: str) -> None:
    deadline = time.monotonic() + 60
    with httpx.Client(transport=httpx.HTTPTransport(retries=3)) as client:
        while time.monotonic() < deadline:
            try:
                if client.get(f"{url}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                continue
    raise AssertionError("the API does not come up")
