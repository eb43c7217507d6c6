from __future__ import annotations

import asyncio
import json

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from uvicorn import Config
from uvicorn.server import ServerState

from mloc_dagster.api.limits import TimeoutProtocol

_BLOCK = 16 * 1024
_MANY = 1_000
"""Blocks of which a client could send more: 16 MB."""


class _Wire(asyncio.Transport):
    """A client's end, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def close(self) -> None:
        self._closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def _app() -> FastAPI:
    app = FastAPI()

    @app.post("/size")
    async def size(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    return app


async def _send(*blocks: bytes) -> tuple[_Wire, int]:
    """Sends blocks until the server hangs up; returns the wire and how many were taken."""
    config = Config(_app(), http=TimeoutProtocol, lifespan="off", log_level="error")
    config.load()
    state, wire = ServerState(), _Wire()
    protocol = TimeoutProtocol(config, state, {})
    protocol.connection_made(wire)
    taken = 0
    while taken < len(blocks) and not wire.is_closing():
        protocol.data_received(blocks[taken])
        taken += 1
    if wire.is_closing():
        protocol.connection_lost(None)
    await asyncio.gather(*state.tasks)
    return wire, taken


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /", b"a" * _BLOCK),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * _BLOCK),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n" * (_BLOCK // 6)),
    ],
)
def test_headers_without_end_are_431_before_anything_runs(start: bytes, more: bytes) -> None:
    wire, taken = asyncio.run(_send(start, *[more] * _MANY))
    head, _, body = wire.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in head
    assert json.loads(body)["status"] == 431
    assert taken < 10


@pytest.mark.parametrize("more", [b"a" * _BLOCK, b"X: y\r\n" * (_BLOCK // 6)])
def test_trailers_without_end_end_the_connection(more: bytes) -> None:
    head = b"POST /size HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire, taken = asyncio.run(_send(head, b"3\r\nabc\r\n0\r\nX: ", *[more] * _MANY))
    assert wire.is_closing()
    assert taken < 10


def test_large_headers_and_bodies_in_many_pieces_arrive() -> None:
    large = b"X: " + b"a" * 40_000 + b"\r\n"
    head = b"POST /size HTTP/1.1\r\nHost: localhost\r\n" + large
    body = [b"a" * _BLOCK] * 50
    length = b"Content-Length: %d\r\n\r\n" % (50 * _BLOCK)
    plain, _ = asyncio.run(_send(head + length, *body))
    assert plain.sent.endswith(b"\r\n\r\n%d" % (50 * _BLOCK))
    pieces = [b"1\r\na\r\n"] * 30_000
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    chunked, _ = asyncio.run(_send(head, *pieces, b"0\r\n\r\n"))
    assert chunked.sent.endswith(b"\r\n\r\n30000")
