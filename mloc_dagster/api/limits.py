"""Limits of requests: size, time to arrive, connections that stand still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mloc_dagster.api.problems import Refusal, problem_response
from mloc_dagster.settings import Settings, settings

_MOST_BYTES = 64 * 1024
"""Bytes that may arrive while no request, chunk or end of one does: headers and trailers. The
parser copies them together again for each packet, in the only loop."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/problem+json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
)
_PROBLEM = (
    b'{"type":"urn:mloc:headers-too-large","title":"Request Header Fields Too Large","status":431,'
    b'"detail":"the headers are larger than %d bytes"}' % _MOST_BYTES
)


class TimeoutProtocol(HttpToolsProtocol):
    """uvicorn's protocol, patient with headers that do not come and answers that nobody reads.

    Its headers may be large, but have an end.
    """

    _hang_up: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _fruitless_bytes = 0
    """That arrived since a part of a request was complete, or its body went on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Parses what came, unless too much of it is headers."""
        self._fruitless_bytes += len(data)
        super().data_received(data)
        if self._fruitless_bytes > _MOST_BYTES and not self.transport.is_closing():
            # In the middle of an answer another one would only confuse.
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE % (len(_PROBLEM), _PROBLEM))
            self.transport.close()

    def on_chunk_header(self) -> None:
        """Knows how long the next part of the body is; the last one has none."""
        self._fruitless_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self._fruitless_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Has a whole request."""
        self._fruitless_bytes = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:  # type: ignore[override]
        """Begins to wait for the client to read what is on its way."""
        super().pause_writing()
        self._unread = self.loop.call_later(settings().api_patience_s, self.transport.abort)

    def resume_writing(self) -> None:  # type: ignore[override]
        """Waits no more."""
        self._stop_watching()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Begins to wait for the rest of the headers; the patience is one for all."""
        super().on_message_begin()
        if self._hang_up is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Waits no more: what follows is looked after by `limits.RequestGuard`."""
        self._stop_waiting()
        self._fruitless_bytes = 0
        super().on_headers_complete()

    def _wait(self) -> None:
        self._hang_up = self.loop.call_later(settings().api_patience_s, self._close)

    def _stop_waiting(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close(self) -> None:
        self._hang_up = None
        self.transport.close()


_BODY_SETTING = "MLOC_API_MAX_BODY_BYTES"
_SLOWEST_BYTES_PER_S = 8_000
"""A body that arrives slower than this, after some patience, holds its connection for nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    Attributes:
        body_bytes: Of a template, or of anything small.
        upload_bytes: Of a request with files.
        result_bytes: Of a result document.
        rows: In templates.
        documents: Templates.
        patience_s: For each pause.
    """

    body_bytes: int
    upload_bytes: int
    result_bytes: int
    rows: int
    documents: int
    patience_s: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Returns those that the settings name."""
        return cls(
            body_bytes=settings.api_max_body_bytes,
            upload_bytes=settings.api_max_upload_bytes,
            result_bytes=settings.api_max_result_bytes,
            rows=settings.api_max_rows,
            documents=settings.api_max_documents,
            patience_s=settings.api_patience_s,
        )

    def bytes_for(self, path: str, content_type: str) -> tuple[int, str]:
        """Returns how large a body may be, and the setting that says so."""
        if content_type.lower().startswith("multipart/form-data"):
            return self.upload_bytes, "MLOC_API_MAX_UPLOAD_BYTES"
        if path.rstrip("/") == "/api/v1/results":
            return self.result_bytes, "MLOC_API_MAX_RESULT_BYTES"
        return self.body_bytes, _BODY_SETTING


class RequestGuard:
    """Refuses bodies that are too large or never end.

    Who does not read the answer is `connections.TimeoutProtocol`'s.

    Args:
        app: What is behind.
        limits: How much is too much.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most, setting = self._limits.bytes_for(scope["path"], headers.get("content-type", ""))
        announced = headers.get("content-length", "")
        answer = _Answer(send)
        try:
            if announced.isdecimal() and int(announced[:20]) > most:
                raise _too_large(most, setting)
            body = _Body(receive, most, setting, self._limits.patience_s, lambda: answer.started)
            await self._app(scope, body, answer)
        except Refusal as refusal:
            if answer.started:
                raise
            await problem_response(refusal, scope["path"])(scope, receive, answer)


class _Body:
    """Counts what arrives, and measures how long it takes."""

    def __init__(
        self,
        receive: Receive,
        most: int,
        setting: str,
        patience_s: float,
        answered: Callable[[], bool],
    ) -> None:
        self._receive = receive
        self._most = most
        self._setting = setting
        self._patience_s = patience_s
        self._answered = answered
        self._began = time.monotonic()
        self._bytes = 0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete or self._answered():  # what follows is only the client's leaving
            return await self._receive()
        try:
            async with asyncio.timeout(self._patience_s):
                message = await self._receive()
        except TimeoutError:
            raise self._too_slow() from None
        if message["type"] != "http.request":
            return message
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > self._most:
            raise _too_large(self._most, self._setting)
        allowed_s = self._patience_s + self._bytes / _SLOWEST_BYTES_PER_S
        if not self._complete and time.monotonic() - self._began > allowed_s:
            raise self._too_slow()
        return message

    def _too_slow(self) -> Refusal:
        detail = f"the body did not arrive in time: {self._bytes:,} bytes of it came"
        return Refusal(408, "request-timeout", detail)


class _Answer:
    """Knows whether the answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self._send(message)


def _too_large(most: int, setting: str) -> Refusal:
    hint = "; put rows into data files" if setting == _BODY_SETTING else ""
    detail = f"the body is larger than {most:,} bytes ({setting}){hint}"
    return Refusal(413, "too-large", detail)
