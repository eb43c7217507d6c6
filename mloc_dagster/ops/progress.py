"""Progress of a running shard, published a few times a second and not once a row."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType

from mloc_dagster.events.bus import publish
from mloc_dagster.events.model import TaskEvent, TaskEventType
from mloc_dagster.events.payloads import Payload
from mloc_dagster.results.rows import OutputRow

INTERVAL_S = 0.2


class ProgressBatches:
    """Adds up finished rows and publishes the sum as TASK_PROGRESS; safe to use from threads.

    Rows that end together are told of together: a listener that hears of the first one alone, after
    a pause, would take it for all that was done in that time. Tokens of reused rows are in no sum:
    no model read or wrote them.

    Args:
        about: An event of the shard, whose task, run and place are taken over.
        also: Called with each sum, too; returns the seconds until the shard's last row, if known.
        clock: Tells the seconds that have passed since some moment.
    """

    def __init__(
        self,
        about: TaskEvent,
        also: Callable[[Payload], float | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._about = about
        self._also = also
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting_since = self._published_at = clock()
        self._clear()

    def _clear(self) -> None:
        self._rows = self._tokens = self._errors = 0
        self._prompt_tokens = self._cached_tokens = self._reused = 0

    def resumed(self, rows: int) -> None:
        """Publishes how many rows earlier attempts had finished, before the first row."""
        if rows:
            self._send(Payload(resumed=rows))

    def add(self, row: OutputRow) -> None:
        """Counts one finished row."""
        with self._lock:
            if not self._rows:
                self._waiting_since = self._clock()
            self._rows += 1
            self._errors += row.error is not None
            if row.reused:
                self._reused += 1
            else:
                self._tokens += row.completion_tokens
                self._prompt_tokens += row.prompt_tokens
                self._cached_tokens += row.cached_tokens
            if self._clock() - self._waiting_since >= INTERVAL_S:
                self._publish()

    def look(self) -> None:
        """Publishes the rows that wait, unless there was a sum a moment ago.

        To be called now and then, between two batches above all: the rows of one are known as soon
        as it has ended, and not with the next one's.
        """
        with self._lock:
            if self._rows and self._clock() - self._published_at >= INTERVAL_S:
                self._publish()

    def _publish(self) -> None:
        payload = Payload(
            rows=self._rows,
            tokens=self._tokens,
            errors=self._errors,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            reused=self._reused,
        )
        eta_s = None if self._also is None else self._also(payload)
        self._send(payload.model_copy(update={"eta_s": eta_s}))
        self._published_at = self._clock()
        self._clear()

    def _send(self, payload: Payload) -> None:
        update = {
            "type": TaskEventType.TASK_PROGRESS,
            "payload": payload,
            "ts": datetime.now(UTC),
        }
        publish(self._about.model_copy(update=update))

    def __enter__(self) -> "ProgressBatches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._rows:
                self._publish()
