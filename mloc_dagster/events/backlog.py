"""Events that wait to be sent: in order, and not more than memory should hold."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice

from mloc_dagster.events.model import Event

_log = logging.getLogger(__name__)


class Backlog:
    """A bounded queue that gives up progress and heartbeats before facts.

    Args:
        capacity: Events that wait at most.

    Attributes:
        dropped_progress: Progress and heartbeats dropped since the start.
        dropped_facts: Other events dropped since the start.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[Event] = deque()
        self._momentary = 0
        self._changed = threading.Condition()
        self._closed = False
        self.dropped_progress = self.dropped_facts = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def losses(self) -> str:
        """What was dropped since the start, in words."""
        if not self.dropped_progress + self.dropped_facts:
            return "no event was dropped"
        return (
            f"{self.dropped_progress} progress events and {self.dropped_facts} others"
            " were dropped since the start"
        )

    def put(self, event: Event) -> None:
        """Appends an event, dropping another one or this one when there is no room."""
        with self._changed:
            if len(self._waiting) >= self._capacity and not self._make_room(event):
                return
            self._waiting.append(event)
            self._momentary += event.is_momentary
            self._changed.notify_all()

    def _make_room(self, event: Event) -> bool:
        """Returns whether there is room now; else `event` itself is the one to drop."""
        if not self.dropped_progress + self.dropped_facts:
            _log.warning("too many events wait for Redis: progress and heartbeats are dropped")
        if self._momentary:
            place = next(i for i, each in enumerate(self._waiting) if each.is_momentary)
            del self._waiting[place]
            self._momentary -= 1
            self.dropped_progress += 1
            return True
        if event.is_momentary:
            self.dropped_progress += 1
            return False
        if not self.dropped_facts:
            _log.error("too many events wait for Redis: the oldest are dropped")
        self._waiting.popleft()
        self.dropped_facts += 1
        return True

    def peek(self, count: int) -> Sequence[Event]:
        """Waits for events and returns the oldest; they stay until they are removed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return list(islice(self._waiting, count))

    def remove(self, sent: Sequence[Event]) -> None:
        """Takes out what was sent; some of it may have been dropped meanwhile."""
        with self._changed:
            done = {id(each) for each in sent}
            while self._waiting and id(self._waiting[0]) in done:
                self._momentary -= self._waiting.popleft().is_momentary
            self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Returns whether nothing waits any more, after `timeout_s` at most."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout=timeout_s)

    def close(self) -> None:
        """Wakes whoever waits for events."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
