"""Connections that stand still are hung up on: uvicorn's own timer only runs between requests."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mloc_dagster.settings import settings


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, patient with headers that do not come and answers that nobody reads."""

    _hang_up: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._wait()

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
