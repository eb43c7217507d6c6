"""Connections that stand still are hung up on: uvicorn's own timer only runs between requests."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mloc_dagster.settings import settings

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


class PatientProtocol(HttpToolsProtocol):
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
