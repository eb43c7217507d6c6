"""Publishing events to Redis without waiting: a bounded backlog, and a thread that sends."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from time import monotonic

from mloc_dagster.events.bus import listening
from mloc_dagster.events.log import LOG_LENGTH, Channel, LoggedEvent
from mloc_dagster.events.model import Event, TaskEvent
from mloc_dagster.events.stream import (
    STREAM_AWAY,
    StreamClient,
    open_redis,
    read_events,
    send,
)
from mloc_dagster.settings import settings

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


_BATCH = 200
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class RedisPublisher:
    """Sends events from a thread of its own, in order, and again until they have arrived.

    While Redis is away events wait in memory. When there are too many, progress and heartbeats go
    first; what was dropped is counted and said in the log.

    Args:
        client_or_url: Redis; by default `MLOC_REDIS_URL`. A client's own retries delay nothing
            but the thread.
        worker_id: Put on events of tasks that name no worker.
        log_length: Events that each channel's log keeps, about.
        capacity: Events that wait in memory at most.

    Attributes:
        backlog: What waits, and how much of it had to be dropped.
    """

    def __init__(
        self,
        client_or_url: StreamClient | str,
        *,
        worker_id: str | None = None,
        log_length: int = LOG_LENGTH,
        capacity: int = 10_000,
    ) -> None:
        self._owned = isinstance(client_or_url, str)
        self._client = (
            open_redis(client_or_url) if isinstance(client_or_url, str) else client_or_url
        )
        self._worker_id = worker_id
        self._log_length = log_length
        self.backlog = Backlog(capacity)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mloc-events", daemon=True)
        self._thread.start()

    def publish(self, event: Event) -> None:
        """Takes an event and returns at once."""
        if self._worker_id and isinstance(event, TaskEvent) and event.worker_id is None:
            event = event.model_copy(update={"worker_id": self._worker_id})
        self.backlog.put(event)

    def read(
        self, after: Mapping[Channel, str], *, limit: int = 500, wait_s: float = 0
    ) -> Sequence[LoggedEvent]:
        """Returns events in order; see `EventLog.read`."""
        return read_events(self._client, after, limit=limit, wait_s=wait_s)

    def flush(self, timeout_s: float) -> bool:
        """Returns whether everything published so far has arrived within `timeout_s`."""
        return self.backlog.wait_until_empty(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Gives what waits so many seconds to arrive, and says how much did not."""
        self.flush(timeout_s)
        self._closing.set()
        self.backlog.close()
        self._thread.join(timeout=2 * _LONGEST_PAUSE_S)
        left = len(self.backlog)
        if left:
            _log.warning("%d events did not reach Redis before the end", left)
        if self._owned:
            self._client.close()

    def _run(self) -> None:
        pause_s, away_since = 0.0, 0.0
        while not self._closing.is_set():
            batch = self.backlog.peek(_BATCH)
            if not batch:
                continue
            try:
                send(self._client, batch, log_length=self._log_length)
            except (*STREAM_AWAY, OSError) as error:
                if not pause_s:
                    away_since = monotonic()
                    _log.warning("events wait in memory, Redis cannot be reached: %s", error)
                pause_s = min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
                self._closing.wait(pause_s)
                continue
            self.backlog.remove(batch)
            if pause_s:
                pause_s = 0.0
                _log.warning(
                    "Redis is back after %.0f s; %s", monotonic() - away_since, self.backlog.losses
                )


@contextmanager
def publishing_to_redis(
    url: str | None = None, *, worker_id: str | None = None
) -> Generator[RedisPublisher | None]:
    """Publishes what this process does to Redis while the context is open.

    Args:
        url: By default `MLOC_REDIS_URL`; without either nothing is published.
        worker_id: Put on events of tasks.

    Yields:
        The publisher, for events of workers; None without Redis.
    """
    url = url or settings().redis_url
    if url is None:
        yield None
        return
    publisher = RedisPublisher(url, worker_id=worker_id)
    try:
        with listening(publisher.publish):
            yield publisher
    finally:
        publisher.close()
