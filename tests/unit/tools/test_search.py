"""The tool `search`, against a server that answers like the providers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ddgs
import pytest
from ddgs.exceptions import DDGSException

from mloc_dagster.settings import settings
from mloc_dagster.tools import FailedCall
from tests.unit.tools.calls import result
from tests.unit.tools.web_server import WebServer, web_server

KEY = "key-of-the-tests-1234"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with web_server() as served:
        monkeypatch.setenv("MLOC_SERPER_URL", served.url + "/serper")
        monkeypatch.setenv("MLOC_JINA_URL", served.url + "/jina")
        monkeypatch.setenv("SERPER_API_KEY", KEY)
        monkeypatch.setenv("JINA_API_KEY", KEY)
        settings.cache_clear()
        yield served
    monkeypatch.undo()
    settings.cache_clear()


def search(provider: str, most: int = 2) -> dict[str, Any]:
    return {"search": {"provider": provider, "max_results": most}}


def test_serper(web: WebServer) -> None:
    found = [
        {"title": f"Page {n}", "link": f"https://{n}.org/", "snippet": "some\n  words"}
        for n in range(3)
    ]
    web.add("/serper", json.dumps({"organic": found}))
    assert result(search("serper"), "search", query="what is up") == (
        "1. Page 0\nhttps://0.org/\nsome words\n\n2. Page 1\nhttps://1.org/\nsome words"
    )
    (asked,) = web.asked
    assert (asked.method, asked.headers["x-api-key"]) == ("POST", KEY)
    assert json.loads(asked.body) == {"q": "what is up", "num": 2}


def test_jina(web: WebServer) -> None:
    found = [{"title": "Page", "url": "https://a.org/", "description": "words"}]
    web.add("/jina", json.dumps({"data": found}))
    assert result(search("jina"), "search", query="a b") == "1. Page\nhttps://a.org/\nwords"
    (asked,) = web.asked
    assert asked.path == "/jina?q=a+b"
    assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_duckduckgo(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def __init__(self, **options: Any) -> None:
            assert options == {"timeout": 30}

        def text(self, query: str, **options: Any) -> list[dict[str, str]]:
            assert options == {"max_results": 2, "backend": "duckduckgo"}
            if query == "blocked":
                raise DDGSException("202 Ratelimit")
            if query == "nothing":
                raise DDGSException("No results found.")
            return [{"title": query, "href": "https://a.org/", "body": "words"}]

    monkeypatch.setattr(ddgs, "DDGS", Engine)
    item = search("duckduckgo")
    assert result(item, "search", query="cats") == "1. cats\nhttps://a.org/\nwords"
    assert result(item, "search", query="nothing") == "nothing was found"
    assert result(item, "search", query="blocked") == "Error: DuckDuckGo: 202 Ratelimit"


def test_no_result_is_said(web: WebServer) -> None:
    web.add("/serper", "{}")
    assert result(search("serper"), "search", query="x") == "nothing was found"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (f"no such key: {KEY}", 403, "Error: Serper answers 403 no such key: ***"),
        ("<html>", 200, "Error: Serper answers no JSON"),
        ("[]", 200, "Error: Serper answers no JSON object"),
        ('{"organic": [1, {"title": null}]}', 200, "1. "),
    ],
)
def test_what_goes_wrong_is_told_without_the_key(
    web: WebServer, body: str, status: int, said: str
) -> None:
    web.add("/serper", body, status)
    found = result(search("serper"), "search", query="x")
    assert found == said
    assert isinstance(found, FailedCall) == said.startswith("Error")


def test_a_provider_that_is_not_there_is_told(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_SERPER_URL", "http://127.0.0.1:1/")
    settings.cache_clear()
    assert "Error: Serper: ConnectError" in result(search("serper"), "search", query="x")
