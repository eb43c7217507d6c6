"""Answers that are read while they come: live logs (server-sent events), rows, downloads.

Each is asked for again from where the connection broke. The parsers take blocks of bytes, so that
both clients share them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Never, Self

import httpx
from pydantic import JsonValue
from pydantic_core import from_json, to_json

from mloc_dagster.client.errors import ApiAwayError, ApiError, OpenaiFailure
from mloc_dagster.client.transport import Ask
from mloc_dagster.errors import DataError
from mloc_dagster.results import LocalFiles
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


class ChatFlow(Flow[str]):
    """The text of an answer as it is generated. What broke off cannot go on.

    Args:
        body: The request, as `POST /v1/chat/completions` takes it.
    """

    def __init__(self, body: Mapping[str, JsonValue]) -> None:
        super().__init__()
        self._body = to_json({**body, "stream": True})
        self._decoder = EventDecoder()

    def ask(self) -> Ask:
        """Returns the request."""
        return Ask(
            method="POST",
            path="/v1/chat/completions",
            headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
            content=self._body,
        )

    def begin(self, response: httpx.Response) -> None:
        """Has nothing to look at."""

    def feed(self, block: bytes) -> Iterable[str]:
        """Returns the text that is new.

        Raises:
            ApiError: If the answer ended with an error.
        """
        for event in self._decoder.feed(block):
            if event.data == "[DONE]":
                self.done = True
                continue
            chunk = from_json(event.data)
            if "error" in chunk:
                raise ApiError(OpenaiFailure.model_validate(chunk).error.message)
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    yield text

    def end(self) -> Iterable[str]:
        """Takes note that the connection was closed: too early, if the answer had not ended."""
        if not self.done:
            raise ApiError("the answer broke off: the API, or its worker, has ended")
        return ()

    def broken(self, error: ApiAwayError) -> float:
        """Raises what broke it."""
        raise error


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


_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """An event.

    Attributes:
        name: What kind.
        data: What it says.
    """

    name: str
    data: str


class EventDecoder:
    """Puts events together.

    `httpx-sse` reads a response itself, one way for each kind of client, and leaves resuming to its
    user; its decoders that take text are private.

    Attributes:
        last_id: The id of the last complete event, with which a broken stream goes on.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self.restart()

    def restart(self) -> None:
        """Forgets half an event."""
        self._rest = b""
        self._id = self.last_id
        self._name = ""
        self._data: list[str] = []

    def feed(self, block: bytes) -> Iterator[Event]:
        """Yields the events that are complete."""
        text = self._rest + block
        # A carriage return at the end may be half a line break.
        held = text[-1:] if text.endswith(b"\r") else b""
        *lines, rest = _LINE_END.split(text[: len(text) - len(held)])
        self._rest = rest + held
        for line in lines:
            if line:
                self._field(line.decode("utf-8", "replace"))
            else:
                yield from self._dispatch()

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value

    def _dispatch(self) -> Iterator[Event]:
        name, data = self._name or "message", self._data
        self._name, self._data = "", []
        self.last_id = self._id
        if data:
            yield Event(name, "\n".join(data))


_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Download(Flow[Never]):
    """Writes an answer into a file; use it as a context manager.

    Args:
        ask: Asks for all of it.
        target: Where it appears; a folder takes it under `name`.
        name: What it is called.

    Attributes:
        target: The file.
    """

    def __init__(self, ask: Ask, target: Path, name: str) -> None:
        super().__init__()
        self.target = (target / name if target.is_dir() else target).absolute()
        self._open = ExitStack()
        self._ask = ask
        self._etag = ""
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Creates a temporary file beside the target.

        Raises:
            DataError: If the folder takes none.
        """
        try:
            self._file = self._open.enter_context(LocalFiles().create(str(self.target)))
        except OSError as error:
            raise _unwritable(self.target, error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the file in its place; after an error nothing of it is left."""
        self._open.__exit__(kind, error, trace)

    def ask(self) -> Ask:
        """Returns the request for what is missing; for all, where nobody says it is the same."""
        # Ranges are of what is stored, so it may not be compressed on its way.
        headers = {**self._ask.headers, "Accept-Encoding": "identity"}
        have = self._opened().tell()
        if have and self._etag:
            headers |= {"Range": f"bytes={have}-", "If-Range": self._etag}
        return replace(self._ask, headers=headers)

    def begin(self, response: httpx.Response) -> None:
        """Goes on where it was, or from the start if that is what came."""
        file = self._opened()
        found = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
        partial = response.status_code == httpx.codes.PARTIAL_CONTENT
        if partial and (found is None or int(found[1]) != file.tell()):
            self._etag = ""
            raise ApiAwayError(f"{self._ask.path}: another part came than the one asked for")
        if not partial:
            file.seek(0)
            file.truncate()
            etag = response.headers.get("etag", "")
            self._etag = "" if etag.startswith("W/") else etag

    def feed(self, block: bytes) -> Iterable[Never]:
        """Writes a block.

        Raises:
            DataError: If the disk does not take it.
        """
        try:
            self._opened().write(block)
        except OSError as error:
            raise _unwritable(self.target, error) from error
        if self._etag:
            self.advanced()
        return ()

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            raise RuntimeError("a download is a context manager")
        return self._file


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {target}: {error.strerror or error}")
