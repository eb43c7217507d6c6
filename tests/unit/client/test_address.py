from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from mloc_dagster import home
from mloc_dagster.client.client import Client
from mloc_dagster.home import stack_layout
from mloc_dagster.services import make_plan
from mloc_dagster.settings import settings
from tests.ports import free_port


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stack with a token file, as far as files and a process's environment tell of it."""
    port = free_port()
    monkeypatch.setenv("MLOC_API_PORT", str(port))
    monkeypatch.setenv("MLOC_WEBSERVER_PORT", str(free_port()))
    settings.cache_clear()
    layout = stack_layout()
    layout.create()
    make_plan(layout, settings(), worker_gpus=(), run_workers=0).save()
    monkeypatch.delenv("MLOC_API_PORT")
    settings.cache_clear()
    tokens = tmp_path / "tokens"
    tokens.write_text("# ours\nhush-1 ci\nhush-2\n")
    started_with = {**os.environ, "MLOC_API_TOKEN_FILE": str(tokens)}
    process = SimpleNamespace(environ=lambda: started_with)
    monkeypatch.setattr(home, "supervisor_process", lambda _: process)
    return f"http://127.0.0.1:{port}"


def test_a_client_finds_the_stack_of_its_home_and_its_token(stack: str) -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"version": "1"})

    with Client(transport=httpx.MockTransport(answer)) as client:
        client.health()
        assert client.url == stack
    assert requests[0].headers["authorization"] == "Bearer hush-1"
    with Client("http://127.0.0.1:1", transport=httpx.MockTransport(answer)) as other:
        other.health()
    assert "authorization" not in requests[1].headers  # the stack's token is for the stack


def test_without_a_stack_the_port_is_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Client().url == "http://127.0.0.1:8000"
    monkeypatch.setenv("MLOC_API_PORT", "8123")
    settings.cache_clear()
    assert Client().url == "http://127.0.0.1:8123"


def test_a_named_address_goes_before_the_stack(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_API_URL", "http://gpu-box:8000")
    settings.cache_clear()
    assert Client().url == "http://gpu-box:8000"
