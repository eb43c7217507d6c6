"""The tool `http`: where requests may lead, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from mloc_dagster.net import Reach
from mloc_dagster.tools import FailedCall, calling
from tests.unit.tools.calls import opened, result
from tests.unit.tools.web_server import WebServer, web_server


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as served:
        yield served


def tool(web: WebServer, **options: Any) -> dict[str, Any]:
    return {"http": {"allow": [web.host], **options}}


def test_a_page_is_fetched(web: WebServer) -> None:
    url = web.add("/a", '{"a": "ü"}', Content_Type="application/json; charset=utf-8")
    assert result(tool(web), "http", url=url) == (
        '200 OK\napplication/json; charset=utf-8\n\n{"a": "ü"}'
    )


def test_what_a_server_answers_is_a_result_whatever_its_status(web: WebServer) -> None:
    url = web.add("/a", "not now", 503, Content_Type="text/plain")
    assert result(tool(web), "http", url=url) == "503 Service Unavailable\ntext/plain\n\nnot now"
    url = web.add("/empty", "", 204)
    assert result(tool(web), "http", url=url) == "204 No Content"
    url = web.add("/image", b"\x89PNG\0\0", Content_Type="image/png")
    assert result(tool(web), "http", url=url) == "200 OK\n(image/png, which is no text)"


def test_long_answers_are_cut(web: WebServer) -> None:
    url = web.add("/long", "a" * 3_000_000, Content_Type="text/plain")
    found = result(tool(web), "http", url=url)
    assert len(found) < 33_000
    assert found.endswith(" characters more)")


def test_a_model_sees_what_the_tool_takes(web: WebServer) -> None:
    async def run() -> tuple[Any, Any]:
        items = [tool(web), {**tool(web, methods=["GET", "POST"]), "name": "send"}]
        async with opened(*items) as tools:
            return tools.definition("http"), tools.definition("send")

    get, send = asyncio.run(run())
    assert list(get.parameters_json_schema["properties"]) == ["url"]
    assert get.metadata == {"effect": "read"}
    assert web.host in get.description
    properties = send.parameters_json_schema["properties"]
    assert properties["method"]["enum"] == ["GET", "POST"]
    assert send.parameters_json_schema["required"] == ["url"]
    assert send.metadata == {"effect": "write"}


def test_other_methods_are_sent_where_they_are_allowed(web: WebServer) -> None:
    url = web.add("/a", "done", Content_Type="text/plain")
    item = tool(web, methods=["GET", "POST"])
    assert "done" in result(item, "http", url=url, method="POST", body='{"a": 1}')
    (asked,) = web.asked
    assert (asked.method, asked.body) == ("POST", b'{"a": 1}')
    assert "idempotency-key" not in asked.headers
    with calling("t/0/1/c"):
        result(item, "http", url=url, method="POST")
        result(item, "http", url=url)
    keys = [each.headers.get("idempotency-key") for each in web.asked]
    assert keys == [None, "t/0/1/c", None]  # what only reads needs none
    assert asked.headers["content-type"] == "application/json"
    assert "authorization" not in asked.headers


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/", "example.org is not allowed: 127.0.0.1:"),
        ("http://127.0.0.1/", "127.0.0.1 is not allowed"),
        ("http://127.0.0.1:1/", "127.0.0.1:1 is not allowed"),
        ("http://127.0.0.1.example.org/", "is not allowed"),
        ("file:///etc/passwd", "is no http:// or https:// URL"),
        ("/etc/passwd", "is no http:// or https:// URL"),
        ("http://[", "Error: "),
    ],
)
def test_other_hosts_are_refused(web: WebServer, url: str, said: str) -> None:
    found = result(tool(web), "http", url=url)
    assert isinstance(found, FailedCall)
    assert said in found
    assert web.asked == []


def test_a_host_below_another_is_allowed_by_a_star() -> None:
    import httpx2

    from mloc_dagster.tools.failure import ToolFailure
    from mloc_dagster.tools.web import check_host

    allowed = ("*.example.org", "[::1]:8080", "a.org:8443")
    for url in (
        "https://a.example.org/x",
        "http://a.b.EXAMPLE.org",
        "http://[::1]:8080/",
        "https://a.org:8443",
    ):
        check_host(httpx2.URL(url), allowed)
    for url in (
        "https://example.org",
        "https://badexample.org",
        "https://a.example.org.evil.net",
        "https://a.example.org:444",
        "https://a.example.org@evil.net/",
        "https://a.org",
        "http://[::1]/",
    ):
        with pytest.raises(ToolFailure, match="is not allowed"):
            check_host(httpx2.URL(url), allowed)


def test_redirects_lead_to_allowed_hosts_only(web: WebServer) -> None:
    web.add("/b", "there", Content_Type="text/plain")
    near = web.add("/near", "", 302, Location="/b")
    assert "there" in result(tool(web), "http", url=near)
    far = web.add("/far", "", 302, Location="http://169.254.169.254/latest")
    assert "169.254.169.254 is not allowed" in result(tool(web), "http", url=far)
    again = web.add("/again", "", 302, Location="/again")
    assert result(tool(web), "http", url=again) == "Error: more than 5 redirects"


def test_addresses_that_nobody_may_reach_are_refused_though_the_host_is_allowed() -> None:
    item = {"http": {"allow": ["169.254.169.254"]}}
    found = result(item, "http", url="http://169.254.169.254/latest/meta-data")
    assert "169.254.169.254 is link-local: nothing is fetched from there" in found


def test_a_task_of_the_api_reaches_no_private_address(web: WebServer) -> None:
    url = web.add("/a", "secret", Content_Type="text/plain")
    with Reach("api").applied():
        found = result(tool(web), "http", url=url)
    assert "127.0.0.1 is a private address, and MLOC_API_PRIVATE_ADDRESSES forbids these" in found
    assert web.asked == []


def test_a_server_that_does_not_answer_takes_no_longer_than_a_tool_may(web: WebServer) -> None:
    url = web.add_waiting("/late")
    found = result(tool(web), "http", {"tool_timeout": 0.3}, url=url)
    assert found == "Error: http took longer than 0.3 s"
    item = tool(web, methods=["POST"])
    found = result(item, "http", {"tool_timeout": 0.3}, url=url, body="")
    assert found == "Error: http took longer than 0.3 s: it may have been done or not"
