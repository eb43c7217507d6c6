"""Progress of a running shard, published a few times a second and not once a row."""

import time
from datetime import UTC, datetime
from types import TracebackType

from mloc_dagster.events.bus import publish
from mloc_dagster.events.model import TaskEvent, TaskEventType
from mloc_dagster.events.payloads import Payload
from mloc_dagster.results.rows import OutputRow

INTERVAL_S = 0.2


class ProgressBatches:
    """Adds up finished rows and publishes the sum as TASK_PROGRESS.

    Args:
        about: An event of the shard, whose task, run and place are taken over.
    """

    def __init__(self, about: TaskEvent) -> None:
        self._about = about
        self._clear()

    def _clear(self) -> None:
        self._rows = self._tokens = self._errors = 0
        self._since = time.monotonic()

    def add(self, row: OutputRow) -> None:
        """Counts one finished row."""
        self._rows += 1
        self._tokens += row.completion_tokens
        self._errors += row.error is not None
        if self._rows % 64 == 0 or row.latency_s > INTERVAL_S:
            self._publish_if_due()

    def _publish_if_due(self) -> None:
        if time.monotonic() - self._since >= INTERVAL_S:
            self._publish()

    def _publish(self) -> None:
        payload = Payload(rows=self._rows, tokens=self._tokens, errors=self._errors)
        update = {
            "type": TaskEventType.TASK_PROGRESS,
            "payload": payload,
            "ts": datetime.now(UTC),
        }
        publish(self._about.model_copy(update=update))
        self._clear()

    def __enter__(self) -> "ProgressBatches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rows:
            self._publish()
