from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from mloc_dagster.cli.service_commands import guarded
from mloc_dagster.settings import settings
from tests.api_server import ECHO, Served, serving

_FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
_EVIL = {"Origin": "https://evil.example"}
_SENT_UNASKED = (
    "text/plain",
    "text/plain;charset=UTF-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)


@pytest.fixture
def api() -> Iterator[Served]:
    with serving() as served:
        yield served


def _submit(api: Served, headers: Mapping[str, str]) -> int:
    return api.client.post("/api/v1/tasks", content=ECHO, headers=headers).status_code


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "", "a b",
             "localhost@evil.example", "0.0.0.0:8000", "[::]"],
)  # fmt: skip
def test_an_unknown_host_is_421_with_the_setting(api: Served, host: str) -> None:
    for path in ("/api/v1/tasks", "/healthz", "/openapi.json"):
        answer = api.client.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert answer.headers["content-type"] == "application/problem+json"
        assert "MLOC_ALLOWED_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:8000", "127.8.9.1", "[::1]:80"]
)
def test_loopback_names_and_addresses_are_known(api: Served, host: str) -> None:
    assert api.client.get("/api/v1/tasks", headers={"Host": host}).status_code == 200


def test_the_address_that_the_api_listens_on_and_named_hosts_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLOC_API_HOST", "10.1.2.3")
    monkeypatch.setenv("MLOC_ALLOWED_HOSTS", "gpu-box, mloc.example.org")
    settings.cache_clear()
    with serving() as api:
        statuses = {
            host: api.client.get("/healthz", headers={"Host": host}).status_code
            for host in ("10.1.2.3:8000", "gpu-box:8000", "mloc.example.org", "10.1.2.4")
        }
    assert list(statuses.values()) == [200, 200, 200, 421]


def test_a_server_that_listens_on_all_addresses_knows_the_one_that_was_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLOC_API_HOST", "0.0.0.0")
    settings.cache_clear()
    with serving() as api:
        called = TestClient(api.client.app, "http://192.0.2.7:8000")
        assert called.get("/healthz").status_code == 200
        assert called.get("/healthz", headers={"Host": "192.0.2.8:8000"}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        _EVIL,
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:5173"},  # another port is another origin
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", **_EVIL},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form
    ],
)
def test_pages_of_other_origins_change_nothing(api: Served, headers: dict[str, str]) -> None:
    task = api.submit()
    for kind in (*_SENT_UNASKED, "application/yaml", "application/json"):
        assert _submit(api, {**headers, "Content-Type": kind}) == 403
    upload = {"template": ("a.yaml", ECHO)}
    assert api.client.post("/api/v1/tasks", files=upload, headers=headers).status_code == 403
    files = {"file": ("b.txt", "x")}
    for path in (f"/api/v1/tasks/{task}/cancel", f"/api/v1/tasks/{task}/retry", "/admin/cleanup"):
        assert api.client.post(path, headers=headers).status_code == 403
    answer = api.client.post(f"/api/v1/results/{task}/files", files=files, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:mloc:cross-origin")
    assert list(api.ledger.entries) == [task]
    assert api.client.get(f"/api/v1/tasks/{task}").json()["status"] != "CANCELLED"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (_EVIL, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        (
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "iframe",
            },
            403,
        ),
        (
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "document",
            },
            200,
        ),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_other_pages_read_nothing_and_links_lead_here(
    api: Served, headers: dict[str, str], status: int
) -> None:
    assert api.client.get("/api/v1/tasks", headers=headers).status_code == status


@pytest.mark.parametrize("kind", _SENT_UNASKED[:3])
def test_programs_and_pages_of_the_api_itself_may_send_what_they_like(
    api: Served, kind: str
) -> None:
    given = {"Content-Type": kind}
    assert _submit(api, {**given, "User-Agent": "curl/8.14.1"}) == 202
    own = {**given, "User-Agent": _FIREFOX, "Origin": "http://127.0.0.1"}
    assert _submit(api, own) == 202
    assert _submit(api, {**own, "Sec-Fetch-Site": "same-origin"}) == 202


def test_a_browser_that_does_not_name_its_page_must_ask_first(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"User-Agent": _FIREFOX}
    task = api.submit()
    for kind in _SENT_UNASKED:
        assert _submit(api, {**old, "Content-Type": kind}) == 415
    assert api.client.post(f"/api/v1/tasks/{task}/cancel", headers=old).status_code == 415
    assert _submit(api, {**old, "Content-Type": "application/yaml"}) == 202
    monkeypatch.setenv("MLOC_API_TOKEN", "t-1")
    settings.cache_clear()
    with serving() as other:
        good = {**old, "Content-Type": "text/plain", "Authorization": "Bearer t-1"}
        assert _submit(other, good) == 202


def test_a_named_origin_may_use_the_api_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_API_ALLOWED_ORIGINS", "https://tools.example.org")
    monkeypatch.setenv("MLOC_API_TOKEN", "t-1")
    settings.cache_clear()
    origin = "https://tools.example.org"
    asks = {"Access-Control-Request-Method": "POST"} | {
        "Access-Control-Request-Headers": "authorization,content-type"
    }
    with serving() as api:
        asked = api.client.options("/api/v1/tasks", headers={"Origin": origin, **asks})
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == origin
        good = {"Authorization": "Bearer t-1", "Sec-Fetch-Site": "cross-site"}
        assert _submit(api, {"Origin": origin, **good}) == 202
        assert _submit(api, {**_EVIL, **good}) == 403
        assert api.client.options("/api/v1/tasks", headers={**_EVIL, **asks}).status_code == 403


async def _ui(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands for Dagster's webserver: answers whatever reaches it."""
    if scope["type"] == "websocket":
        socket = WebSocket(scope, receive, send)
        await socket.accept(subprotocol="graphql-ws")
        await socket.close()
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ui"})


@pytest.fixture
def ui() -> TestClient:
    return TestClient(guarded(_ui, "127.0.0.1"), "http://127.0.0.1:3000")


@pytest.mark.parametrize(
    "query",
    [
        'mutation { deletePipelineRun(runId: "x") { __typename } }',
        "query Q { version } mutation M { logTelemetry { __typename } }",
        "subscription { locationStateChangeEvents { __typename } }",
    ],
)
def test_a_link_changes_nothing_in_dagsters_ui(ui: TestClient, query: str) -> None:
    answer = ui.get("/graphql", params={"query": query})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert ui.get("/graphql", params=[("query", "{ version }"), ("query", query)]).is_client_error
    assert ui.get("/graphql", params={"query": "{ version }"}).status_code == 200
    assert ui.post("/graphql", json={"query": query}).status_code == 200


def test_dagsters_ui_is_guarded_as_the_api_is(ui: TestClient) -> None:
    asked = {"query": "mutation { x }"}
    assert ui.post("/graphql", json=asked, headers=_EVIL).status_code == 403
    assert ui.post("/graphql", params=asked, headers={"Origin": "null"}).status_code == 403
    assert ui.get("/", headers={"Host": "evil.example"}).status_code == 421
    own = {"Origin": "http://127.0.0.1:3000"}
    assert ui.post("/graphql", json=asked, headers=own).status_code == 200
    with ui.websocket_connect("ws://127.0.0.1:3000/graphql", headers=own) as socket:
        assert socket.accepted_subprotocol == "graphql-ws"
    for headers in (_EVIL, {"Host": "evil.example"}):
        with (
            pytest.raises(WebSocketDisconnect),
            ui.websocket_connect("ws://127.0.0.1:3000/graphql", headers=headers),
        ):
            pass
