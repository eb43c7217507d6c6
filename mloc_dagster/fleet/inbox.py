"""What workers say to a run, and the bell that tells the run to look."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence

import redis

from mloc_dagster.fleet.records import INBOX_CHANNEL, inbox_key

_log = logging.getLogger(__name__)

_PAUSE_S = 0.5


class Inbox:
    """Messages of every run, on one Redis.

    One subscription serves all runs of a process. It is only a bell: who waits looks again after
    its timeout, whether it rang or not.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._news: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._lock = threading.Lock()
        self._listener: threading.Thread | None = None
        self._closed = threading.Event()

    def wait(self, run_id: str, timeout_s: float) -> None:
        """Returns when the run has news, or after `timeout_s`."""
        self._listen()
        news = self._news[run_id]
        news.wait(timeout_s)
        news.clear()

    def ring(self, run_id: str) -> None:
        """Wakes whoever waits for the run in this process."""
        self._news[run_id].set()

    def read(self, run_id: str, after: int) -> list[str]:
        """Returns the messages of a run but for the first `after`, oldest first."""
        self._news[run_id]  # who reads has a bell from now on; other runs' need none here
        return self._client.lrange(inbox_key(run_id), after, -1)  # type: ignore[return-value]

    def remove(self, run_id: str, messages: Sequence[str]) -> None:
        """Forgets messages that somebody has made durable.

        One by one and not so many from the front: a call that Redis answered just before it died
        is sent again, and must not take along what has come since.
        """
        calls = self._client.pipeline(transaction=False)
        for each in messages:
            calls.lrem(inbox_key(run_id), 1, each)
        calls.execute()

    def forget(self, run_id: str) -> None:
        """Drops the bell of a run that has ended."""
        self._news.pop(run_id, None)

    def close(self) -> None:
        """Ends the subscription; nobody waits any more."""
        self._closed.set()
        with self._lock:
            if self._listener is not None:
                self._client.publish(INBOX_CHANNEL, "")
                self._listener.join()

    def _listen(self) -> None:
        with self._lock:
            if self._listener is None:
                self._listener = threading.Thread(target=self._hear, name="mloc-inbox", daemon=True)
                self._listener.start()

    def _hear(self) -> None:
        while not self._closed.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as subscription:
                    subscription.subscribe(INBOX_CHANNEL)
                    while not self._closed.is_set():
                        message = subscription.get_message(timeout=5)
                        news = self._news.get(str(message["data"])) if message else None
                        if news is not None:
                            news.set()
            except redis.RedisError as error:
                _log.info("the inbox bell is away: %s", error)
                self._closed.wait(_PAUSE_S)
