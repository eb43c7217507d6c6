"""Server-sent events, as the HTML standard has them, out of blocks of bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
