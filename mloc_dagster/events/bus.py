"""The in-process event bus, and an event log in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

from mloc_dagster.events.log import LOG_LENGTH, Channel, LoggedEvent, channel_of, decode
from mloc_dagster.events.model import Event, TaskEvent

Listener = Callable[[TaskEvent], None]

_listeners: tuple[Listener, ...] = ()
_lock = threading.Lock()


def publish(event: TaskEvent) -> None:
    """Hands `event` to every current listener, in the caller's thread."""
    for listener in _listeners:
        listener(event)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Calls `listener` for each event published while the context is open."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        with _lock:
            _listeners = tuple(each for each in _listeners if each is not listener)


class MemoryEventLog:
    """Keeps events as Redis would: encoded, capped, each fact once.

    Args:
        length: Events that each channel keeps.
    """

    def __init__(self, length: int = LOG_LENGTH) -> None:
        self._logs: dict[Channel, deque[tuple[int, str]]] = {
            each: deque(maxlen=length) for each in Channel
        }
        self._known: set[str] = set()
        self._last = 0
        self._changed = threading.Condition()

    def publish(self, event: Event) -> None:
        """Appends an event, unless its fact is known."""
        with self._changed:
            if not event.is_momentary:
                if event.event_id in self._known:
                    return
                self._known.add(event.event_id)
            self._last += 1
            self._logs[channel_of(event)].append((self._last, event.model_dump_json()))
            self._changed.notify_all()

    def read(
        self, after: Mapping[Channel, str], *, limit: int = 500, wait_s: float = 0
    ) -> Sequence[LoggedEvent]:
        """Returns events in order; see `EventLog.read`."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._found(after, limit)), timeout=wait_s)
            return self._found(after, limit)

    def _found(self, after: Mapping[Channel, str], limit: int) -> list[LoggedEvent]:
        found: list[LoggedEvent] = []
        for channel, position in after.items():
            later = [each for each in self._logs[channel] if each[0] > int(position)]
            found += [
                LoggedEvent(channel, str(place), decode(channel, data))
                for place, data in later[:limit]
            ]
        return found

    def close(self) -> None:
        """Does nothing: what was published is there."""
