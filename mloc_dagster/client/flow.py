"""Answers that are read while they come, and asked for again from where they broke."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import httpx
from pydantic import JsonValue
from pydantic_core import from_json

from mloc_dagster.client.call import Ask
from mloc_dagster.client.errors import ApiAwayError, ApiError
from mloc_dagster.client.event_stream import EventDecoder
from mloc_dagster.wire import LogLevel, LogLine

_MOST_BREAKS = 8
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class Flow[ItemT](ABC):
    """A long answer; who drives it asks, feeds it blocks, and asks again when it broke.

    Attributes:
        done: Whether all of it is there.
    """

    def __init__(self) -> None:
        self.done = False
        self._breaks = 0

    @abstractmethod
    def ask(self) -> Ask:
        """Returns the request for all that is missing."""

    @abstractmethod
    def begin(self, response: httpx.Response) -> None:
        """Takes note of how the answer begins."""

    @abstractmethod
    def feed(self, block: bytes) -> Iterable[ItemT]:
        """Takes a block of the answer; returns what is complete."""

    def end(self) -> Iterable[ItemT]:
        """Takes note that the answer is complete; returns what was left."""
        self.done = True
        return ()

    def broken(self, error: ApiAwayError) -> float:
        """Returns how many seconds to wait before asking again.

        Raises:
            ApiAwayError: If it broke often without bringing anything.
        """
        self._breaks += 1
        if self._breaks > _MOST_BREAKS:
            raise error
        return min(_FIRST_PAUSE_S * 2 ** (self._breaks - 1), _LONGEST_PAUSE_S)

    def advanced(self) -> None:
        """Takes note that something came: patience begins anew."""
        self._breaks = 0


class LogFlow(Flow[LogLine]):
    """A live log: lines until the task has ended.

    Args:
        path: Where it is.
        level: The lowest level to show.
    """

    # The API sends a ping every 15 s.
    _SILENT_S = 60.0

    def __init__(self, path: str, level: LogLevel = "INFO") -> None:
        super().__init__()
        self._path = path
        self._level = level
        self._decoder = EventDecoder()

    def ask(self) -> Ask:
        """Returns the request for what comes after the last line."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._decoder.last_id:
            headers["Last-Event-ID"] = self._decoder.last_id
        return Ask(
            method="GET",
            path=self._path,
            query=(("follow", "true"), ("level", self._level)),
            headers=headers,
            timeout_s=self._SILENT_S,
        )

    def begin(self, response: httpx.Response) -> None:
        """Forgets half an event, which comes again."""
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise ApiError(f"{self._path}: expected a live log", status=response.status_code)
        self._decoder.restart()

    def feed(self, block: bytes) -> Iterable[LogLine]:
        """Returns the lines that are complete."""
        for event in self._decoder.feed(block):
            self.advanced()
            if event.name == "end":
                self.done = True
            elif event.name == "log":
                yield LogLine.model_validate_json(event.data)

    def end(self) -> Iterable[LogLine]:
        """Takes note that the connection was closed: without an `end` before, too early."""
        if not self.done:
            raise ApiAwayError(f"{self._path}: the live log broke off")
        return ()


class RowFlow(Flow[Mapping[str, JsonValue]]):
    """The rows of a result, a line of JSON each. Rows that came are skipped when it broke.

    Args:
        ask: Asks for all of them.
    """

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask = ask
        self._rest = b""
        self._given = 0
        self._seen = 0

    def ask(self) -> Ask:
        """Returns the request for all rows: where one begins is not known."""
        return self._ask

    def begin(self, response: httpx.Response) -> None:
        """Begins to count."""
        self._rest, self._seen = b"", 0

    def feed(self, block: bytes) -> Iterable[Mapping[str, JsonValue]]:
        """Returns the rows that are complete and new."""
        *lines, self._rest = (self._rest + block).split(b"\n")
        return self._rows(lines)

    def end(self) -> Iterable[Mapping[str, JsonValue]]:
        """Returns the last row, which need not end with a line break."""
        self.done = True
        return self._rows([self._rest])

    def _rows(self, lines: Iterable[bytes]) -> Iterable[Mapping[str, JsonValue]]:
        for line in lines:
            if not line.strip():
                continue
            self._seen += 1
            if self._seen > self._given:
                self._given += 1
                self.advanced()
                yield from_json(line)
