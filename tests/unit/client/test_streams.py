"""Long answers of the API: live logs, rows and files, which go on where they broke."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from mloc_dagster.client.async_client import AsyncClient
from mloc_dagster.client.client import Client
from mloc_dagster.client.errors import ApiAwayError, ApiError
from mloc_dagster.client.streams import Event, EventDecoder
from mloc_dagster.errors import DataError

CONTENT = bytes(range(256)) * 40


class Blocks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Sends blocks, and breaks off afterwards if it is to."""

    def __init__(self, blocks: Sequence[bytes], *, breaks: bool = False) -> None:
        self._blocks = blocks
        self._breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._blocks
        if self._breaks:
            raise httpx.ReadError("gone")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for each in self:
            yield each


class Server:
    """Answers with each of some streams in turn."""

    def __init__(self, *answers: httpx.Response) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._answers.pop(0)

    def client(self) -> Client:
        return Client("http://api", transport=httpx.MockTransport(self), pause=lambda seconds: None)


def answer(
    *blocks: bytes, breaks: bool = False, status: int = 200, **headers: str
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, stream=Blocks(blocks, breaks=breaks), headers=named)


def events(*blocks: bytes, breaks: bool = False) -> httpx.Response:
    return answer(*blocks, breaks=breaks, content_type="text/event-stream; charset=utf-8")


def log(number: int) -> bytes:
    data = f'{{"source": "run", "text": "line {number}"}}'
    return f"id: c{number}\nevent: log\ndata: {data}\n\n".encode()


END = b'id: c9\nevent: end\ndata: {"task_id": "t", "status": "DONE"}\n\n'


def test_a_live_log_goes_on_where_it_broke() -> None:
    server = Server(
        events(log(1), log(2)[:20], breaks=True),
        events(b": ping\n\n", log(2)),
        events(log(3) + END),
    )
    with server.client() as client:
        lines = [each.text for each in client.logs("t", follow=True)]
    assert lines == ["line 1", "line 2", "line 3"]
    assert [each.headers.get("last-event-id") for each in server.requests] == [None, "c1", "c2"]
    assert server.requests[0].url.params["follow"] == "true"


def test_a_live_log_that_brings_nothing_is_given_up() -> None:
    server = Server(*[events(b": ping\n\n") for _ in range(20)])
    with server.client() as client, pytest.raises(ApiAwayError, match="broke off"):
        list(client.logs("t", follow=True))
    assert len(server.requests) == 9


def test_paged_logs_end_with_an_empty_page() -> None:
    line = {"source": "run", "text": "one"}

    def page(lines: list[dict[str, str]]) -> httpx.Response:
        body = {"task_id": "t", "count": len(lines), "lines": lines, "next_cursor": "c"}
        return httpx.Response(200, json={**body, "ended": False})

    server = Server(page([line, line]), page([line]), page([]))
    with server.client() as client:
        assert [each.text for each in client.logs("t")] == ["one"] * 3
    assert server.requests[1].url.params["cursor"] == "c"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_are_put_together_from_any_blocks(size: int) -> None:
    first = "event: log\r\nid: 1\r\ndata: ä\r\ndata:b\r\n\r\n"
    text = (first + ": ping\n\nid\ndata\n\nevent: x\n\n").encode()
    decoder = EventDecoder()
    found = [
        event
        for start in range(0, len(text), size)
        for event in decoder.feed(text[start : start + size])
    ]
    assert found == [Event("log", "ä\nb"), Event("message", "")]


def test_rows_come_once_each_though_the_connection_breaks() -> None:
    server = Server(
        answer(b'{"index": 0}\n{"ind', b'ex": 1}\n{"in', breaks=True),
        answer(b'{"index": 0}\n{"index": 1}\n{"index": 2}\n{"index": 3}'),
    )
    with server.client() as client:
        assert [row["index"] for row in client.rows("t")] == [0, 1, 2, 3]
    assert server.requests[0].url.params["format"] == "jsonl"


def test_a_file_goes_on_by_range(tmp_path: Path) -> None:
    rest = f"bytes 5000-{len(CONTENT) - 1}/{len(CONTENT)}"
    server = Server(
        answer(CONTENT[:3000], CONTENT[3000:5000], breaks=True, etag='"one"'),
        answer(CONTENT[5000:], status=206, content_range=rest),
    )
    with server.client() as client:
        saved = client.save_file("t", "artifacts/a b.bin", tmp_path)
    assert saved == tmp_path / "a b.bin"
    assert saved.read_bytes() == CONTENT
    assert [each.name for each in tmp_path.iterdir()] == ["a b.bin"]
    first, second = server.requests
    assert first.url.raw_path == b"/api/v1/results/t/files/artifacts/a%20b.bin"
    assert "range" not in first.headers
    assert (second.headers["range"], second.headers["if-range"]) == ("bytes=5000-", '"one"')


def test_a_file_that_changed_meanwhile_is_fetched_anew(tmp_path: Path) -> None:
    server = Server(answer(b"old content", breaks=True, etag='"one"'), answer(b"new", etag='"two"'))
    with server.client() as client:
        saved = client.save_result("t", tmp_path / "x" / "rows.csv", "csv")
    assert saved.read_bytes() == b"new"


def test_a_bundle_without_a_tag_is_fetched_anew(tmp_path: Path) -> None:
    server = Server(answer(b"half", breaks=True), answer(b"whole"))
    with server.client() as client:
        assert client.save_bundle("t", tmp_path).read_bytes() == b"whole"
    assert "range" not in server.requests[1].headers
    assert server.requests[1].url.params["bundle"] == "tar"


def test_nothing_is_left_of_a_file_that_never_came(tmp_path: Path) -> None:
    target = tmp_path / "rows.csv"
    target.write_text("before")
    server = Server(*[answer(b"x", breaks=True) for _ in range(9)])
    with server.client() as client, pytest.raises(ApiAwayError):
        client.save_result("t", target, "csv")
    assert [each.name for each in tmp_path.iterdir()] == ["rows.csv"]
    assert target.read_text() == "before"
    refused = Server(httpx.Response(500, text="broken"))
    with refused.client() as client, pytest.raises(ApiError, match="HTTP 500"):
        client.save_bundle("t", target)
    assert target.read_text() == "before"


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Server().client() as client, pytest.raises(DataError, match="cannot write"):
        client.save_bundle("t", tmp_path / "file" / "x.tar")


def test_the_async_client_reads_the_same(tmp_path: Path) -> None:
    server = Server(
        events(log(1), breaks=True),
        events(END),
        answer(CONTENT[:10], breaks=True, etag='"e"'),
        answer(CONTENT[10:], status=206, content_range=f"bytes 10-{len(CONTENT) - 1}/*"),
    )

    async def use() -> Path:
        async def pause(seconds: float) -> None:
            pass

        transport = httpx.MockTransport(server)
        async with AsyncClient("http://api", transport=transport, pause=pause) as client:
            assert [each.text async for each in client.logs("t", follow=True)] == ["line 1"]
            return await client.save_file("t", "a.bin", tmp_path)

    assert asyncio.run(use()).read_bytes() == CONTENT


def answer_of(*events: str) -> bytes:
    return b"".join(f"data: {each}\n\n".encode() for each in events)


def said(text: str) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})


def test_a_chat_comes_as_its_text() -> None:
    asked: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        first = json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        usage = json.dumps({"choices": [], "usage": {}})
        content = answer_of(first, said("Pa"), said("ris"), usage, "[DONE]")
        return httpx.Response(200, content=content)

    with Client("http://127.0.0.1:1", transport=httpx.MockTransport(answer)) as client:
        hello = [{"role": "user", "content": "Hi"}]
        assert list(client.chat("m", hello, temperature=0)) == ["Pa", "ris"]
    assert asked == [{"model": "m", "messages": hello, "temperature": 0, "stream": True}]


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (404, b'{"error": {"message": "unknown model"}}', "unknown model"),
        (200, answer_of(said("Pa"), '{"error": {"message": "it broke"}}', "[DONE]"), "it broke"),
        (200, answer_of(said("Pa")), "broke off"),
    ],
)
def test_a_chat_that_is_not_answered_says_why(status: int, content: bytes, message: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=content))
    with (
        Client("http://127.0.0.1:1", transport=transport) as client,
        pytest.raises(ApiError, match=message),
    ):
        list(client.chat("m", [{"role": "user", "content": "Hi"}]))
