"""The client against an API that is a function: calls, attempts, errors, secrecy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from mloc_dagster.client.async_client import AsyncClient
from mloc_dagster.client.client import Client
from mloc_dagster.client.errors import ApiAwayError, ApiError, ApiRefusedError, NotFoundError
from mloc_dagster.client.paging import NotEndedError
from mloc_dagster.errors import InputError, TemplateError, TransientError
from mloc_dagster.wire import CleanupRequest, ResultIn, TaskState

ID = "0b0f6f0e-6a4f-4b0c-9a55-2f1d6f0a7c11"
NOW = "2026-01-01T00:00:00Z"
YAML = "apiVersion: mloc/v1\nkind: EchoTask\n"
TOKEN = "hush-hush"

Handler = Callable[[httpx.Request], httpx.Response]


def task(task_id: str = ID, status: str = "DONE") -> dict[str, object]:
    return {
        "task_id": task_id,
        "workflow_id": ID,
        "node": "echo",
        "task_type": "echo",
        "template": "echo",
        "status": status,
        "submitted_at": NOW,
    }


def accepted() -> httpx.Response:
    shown = {key: value for key, value in task(status="PENDING").items() if key != "submitted_at"}
    return httpx.Response(202, json={"count": 1, "tasks": [shown]})


def problem(status: int, kind: str, detail: str, **more: object) -> httpx.Response:
    document = {"type": f"urn:mloc:{kind}", "title": "x", "status": status, "detail": detail}
    return httpx.Response(status, json={**document, **more})


class Api:
    """Answers with each handler in turn, the last one again and again; keeps what came."""

    def __init__(self, *handlers: Handler) -> None:
        self._handlers = list(handlers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        handler = self._handlers.pop(0) if len(self._handlers) > 1 else self._handlers[0]
        return handler(request)

    def client(self, token: str = TOKEN) -> Client:
        transport = httpx.MockTransport(self)
        return Client("http://api", token, transport=transport, pause=self.pauses.append)

    def async_client(self) -> AsyncClient:
        async def answer(request: httpx.Request) -> httpx.Response:
            await request.aread()
            return self(request)

        async def pause(seconds: float) -> None:
            self.pauses.append(seconds)

        transport = httpx.MockTransport(answer)
        return AsyncClient("http://api", TOKEN, transport=transport, pause=pause)


def always(response: Callable[[], httpx.Response]) -> Handler:
    return lambda _: response()


def broken(kind: type[httpx.TransportError]) -> Handler:
    def answer(request: httpx.Request) -> httpx.Response:
        raise kind("no", request=request)

    return answer


AWAY = always(lambda: problem(503, "unavailable", "the database does not answer now"))


def test_a_submission_carries_a_key_and_the_token() -> None:
    api = Api(always(accepted))
    with api.client() as client:
        reply = client.submit(YAML)
    (request,) = api.requests
    assert (request.method, request.url.path) == ("POST", "/api/v1/tasks")
    assert request.content.decode() == YAML
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert len(request.headers["idempotency-key"]) == 36
    assert reply.tasks[0].status is TaskState.PENDING


@pytest.mark.parametrize("failure", [broken(httpx.ReadError), broken(httpx.ConnectError), AWAY])
def test_a_submission_is_sent_again_with_the_same_key(failure: Handler) -> None:
    api = Api(failure, failure, always(accepted))
    with api.client() as client:
        assert client.submit(YAML).count == 1
    assert len(api.requests) == 3
    assert len({each.headers["idempotency-key"] for each in api.requests}) == 1
    assert len(api.pauses) == 2


def test_the_async_client_does_the_same(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    api = Api(
        broken(httpx.ReadError),
        always(accepted),
        always(lambda: httpx.Response(200, json={"count": 1, "tasks": [task()]})),
        always(lambda: problem(404, "unknown-task", "there is no task")),
    )

    async def use() -> None:
        async with api.async_client() as client:
            reply = await client.submit(YAML, files={"rows.jsonl": tmp_path / "rows.jsonl"})
            assert reply.count == 1
            assert [each.task_id async for each in client.list(limit=1)] == [ID]
            with pytest.raises(NotFoundError):
                await client.show("gone")

    asyncio.run(use())
    assert b'filename="rows.jsonl"' in api.requests[1].content


def test_retry_after_is_kept() -> None:
    busy = httpx.Response(503, headers={"Retry-After": "7"})
    api = Api(always(lambda: busy), always(lambda: httpx.Response(200, json=task())))
    with api.client() as client:
        client.show(ID)
    assert api.pauses == [7.0]


def test_what_may_have_been_done_is_not_done_again() -> None:
    api = Api(broken(httpx.ReadError))
    with api.client() as client, pytest.raises(ApiAwayError, match="broke off"):
        client.retry(ID)
    with api.client() as client, pytest.raises(ApiAwayError):
        client.cleanup(CleanupRequest(dry_run=False))
    assert len(api.requests) == 2


def test_what_was_never_sent_is_sent_again() -> None:
    changed = {"count": 1, "tasks": [{"task_id": ID, "status": "PENDING"}]}
    api = Api(broken(httpx.ConnectError), always(lambda: httpx.Response(202, json=changed)))
    with api.client() as client:
        assert client.retry(ID, "failed_rows").tasks[0].task_id == ID
    assert json.loads(api.requests[1].content) == {"scope": "failed_rows"}


def test_patience_ends_with_the_address_and_what_to_do() -> None:
    api = Api(broken(httpx.ConnectError))
    with api.client() as client, pytest.raises(TransientError) as caught:
        client.show(ID)
    assert "http://api" in str(caught.value)
    assert "mloc up" in str(caught.value)
    assert len(api.requests) == 8


def test_a_wrong_template_is_shown_as_the_user_calls_it(tmp_path: Path) -> None:
    template = tmp_path / "mine.yaml"
    template.write_text(YAML)
    findings = [
        {"file": "body.yaml", "line": 2, "column": 3, "path": "spec", "message": "is missing"},
        {"file": "body.yaml", "line": 9, "column": 1, "path": "x", "message": "unknown key"},
    ]
    api = Api(always(lambda: problem(422, "invalid-template", "two", errors=findings)))
    with api.client() as client, pytest.raises(TemplateError) as caught:
        client.submit(template)
    assert str(caught.value).splitlines() == [
        f"{template}:2:3: spec: is missing",
        f"{template}:9:1: x: unknown key",
    ]


@pytest.mark.parametrize(
    ("status", "kind", "bases"),
    [
        (404, NotFoundError, (InputError, ApiError)),
        (409, ApiRefusedError, (InputError,)),
        (413, ApiRefusedError, (InputError,)),
        (422, ApiRefusedError, (InputError,)),
        (401, ApiError, ()),
        (500, ApiError, ()),
    ],
)
def test_problems_become_errors(
    status: int, kind: type[Exception], bases: tuple[type[Exception], ...]
) -> None:
    api = Api(always(lambda: problem(status, "some-kind", "what was wrong")))
    with api.client() as client, pytest.raises(ApiError, match="what was wrong") as caught:
        client.show(ID)
    assert type(caught.value) is kind
    assert all(isinstance(caught.value, base) for base in bases)
    assert caught.value.status == status
    assert caught.value.problem is not None
    assert len(api.requests) == 1


def test_the_token_shows_nowhere() -> None:
    api = Api(
        always(lambda: problem(401, "unauthorized", "this needs a token")),
        broken(httpx.ReadError),
    )
    with api.client() as client:
        texts = [repr(client), repr(vars(client)), str(vars(client))]
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                client.show(ID)
            texts += [str(caught.value), repr(caught.value), repr(vars(caught.value))]
    with pytest.raises(InputError) as refused:
        Client("http://api", f"{TOKEN}\n")
    texts.append(str(refused.value))
    assert not [text for text in texts if TOKEN in text]


@pytest.mark.parametrize("url", ["api:8000", "ftp://api", "http://", "http://me:secret@api"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Client(url)
    assert "secret" not in str(caught.value)


def test_an_answer_of_something_else_is_said_to_be_one() -> None:
    api = Api(always(lambda: httpx.Response(200, text="<html>hello</html>")))
    with api.client() as client, pytest.raises(ApiError, match="not that of an mloc API"):
        client.show(ID)
    moved = Api(always(lambda: httpx.Response(307, headers={"Location": "https://other/"})))
    with moved.client() as client, pytest.raises(ApiError, match="redirected"):
        client.show(ID)
    assert len(moved.requests) == 1


def test_a_list_fetches_the_pages_that_it_needs() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in request.url.params
        ids = [f"{'a' if first else 'b'}{number}" for number in range(2)]
        following = "next" if first else None
        tasks = [task(each) for each in ids]
        return httpx.Response(200, json={"count": 2, "tasks": tasks, "next_cursor": following})

    api = Api(page)
    with api.client() as client:
        found = client.list(status=[TaskState.DONE, "DEAD"], labels={"team": "x=y"}, owner="me")
        assert next(found).task_id == "a0"
        assert len(api.requests) == 1
        assert [each.task_id for each in found] == ["a1", "b0", "b1"]
        assert [each.task_id for each in client.list(limit=3)] == ["a0", "a1", "b0"]
    query = api.requests[0].url.params
    assert query.get_list("status") == ["DONE", "DEAD"]
    assert (query["label"], query["owner"]) == ("team=x=y", "me")
    assert api.requests[1].url.params["cursor"] == "next"


def test_waiting_ends_when_every_task_has() -> None:
    def workflow(*states: str) -> Handler:
        tasks = [task(f"{ID}-{place}", state) for place, state in enumerate(states)]
        body = {"workflow_id": ID, "template": "t", "status": "RUNNING", "count": 2}
        return always(lambda: httpx.Response(200, json={**body, "tasks": tasks}))

    api = Api(workflow("RUNNING", "WAITING"), workflow("DONE", "RUNNING"), workflow("DONE", "DEAD"))
    with api.client() as client:
        ended = client.wait([ID])
    assert [each.status for each in ended] == [TaskState.DONE, TaskState.DEAD]
    assert {each.url.path for each in api.requests} == {f"/api/v1/workflows/{ID}"}
    assert len(api.pauses) == 2


def test_waiting_has_an_end() -> None:
    going = {**task("t", "PENDING"), "waiting_for": "a worker"}
    api = Api(always(lambda: httpx.Response(200, json=going)))
    with api.client() as client, pytest.raises(NotEndedError, match="PENDING: a worker"):
        client.wait("t", timeout_s=0)


def test_results_and_files_go_in(tmp_path: Path) -> None:
    stored = {"task_id": "t", "name": "responses.json", "size": 2, "sha256": "0", "stored": True}
    api = Api(
        always(lambda: httpx.Response(201, json=stored)),
        broken(httpx.WriteError),
        always(lambda: httpx.Response(201, json={"task_id": "t", "count": 1, "files": [stored]})),
    )
    (tmp_path / "a.bin").write_bytes(b"content")
    with api.client() as client:
        assert client.put_result(ResultIn(task_id="t", result={"ok": True})).stored
        assert client.upload("t", {"logs/a.bin": tmp_path / "a.bin"}).count == 1
    assert json.loads(api.requests[0].content)["result"] == {"ok": True}
    for each in api.requests[1:]:
        assert b'filename="logs/a.bin"' in each.content
        assert b"content" in each.content


def test_an_api_that_is_not_ready_says_why() -> None:
    checks = {"redis": {"ok": False, "detail": "away"}}
    api = Api(always(lambda: httpx.Response(503, json={"ok": False, "checks": checks})))
    with api.client() as client:
        assert client.readiness().checks["redis"].detail == "away"


def test_ids_stay_ids() -> None:
    api = Api(always(lambda: httpx.Response(200, json=task())))
    with api.client() as client:
        client.show("../admin?x=1#y")
    assert api.requests[0].url.raw_path == b"/api/v1/tasks/..%2Fadmin%3Fx%3D1%23y"
