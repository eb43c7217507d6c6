"""The sensor that publishes to Redis what Dagster's event log says about tasks.

Ids are given when a transaction writes and seen when it commits: an event with a lower id may turn
up after one with a higher id. What is missing between two ids that were seen is therefore looked
for again, for as long as a transaction may take; nothing that was seen is read again.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from time import time

import dagster as dg
from dagster import DagsterEventType
from pydantic import BaseModel, ConfigDict

from mloc_dagster.errors import TerminalError
from mloc_dagster.events import STREAM_AWAY, StreamClient, TaskEvent, open_redis, send
from mloc_dagster.ops import DEAD_LETTER_TAG
from mloc_dagster.sensors.polling import instance_of, polls
from mloc_dagster.sensors.task_facts import RunView, dead_letters, kinds, run_views, task_events
from mloc_dagster.services import EventRow, SqlEventLogStorage, newest_id, rows_after, rows_in
from mloc_dagster.settings import settings

PATIENCE_S = 120.0
"""How long a missing id is looked for. Ids of transactions that failed never come."""

_MOST_GAPS = 200


class Gap(BaseModel):
    """Ids that are missing, both ends included, and when that was noticed (seconds since 1970)."""

    model_config = ConfigDict(frozen=True)

    first: int
    last: int
    since: float


class LogCursor(BaseModel):
    """How far the event log has been read; small enough to be a sensor's cursor.

    Attributes:
        after: Everything up to this id was read, except for what lies in gaps.
        gaps: What was missing, in order.
    """

    model_config = ConfigDict(frozen=True)

    after: int
    gaps: tuple[Gap, ...] = ()

    def advanced(self, seen: Iterable[int], now: float) -> "LogCursor":
        """Returns the cursor after these ids were read, late ones among them.

        Args:
            seen: Ids, in any order.
            now: Seconds since 1970.
        """
        ids = sorted(set(seen))
        late = [each for each in ids if each <= self.after]
        new = [each for each in ids if each > self.after]
        gaps = [
            part
            for gap in self.gaps
            if now - gap.since < PATIENCE_S
            for part in _without(gap, late)
        ]
        before = self.after
        for each in new:
            if each > before + 1:
                gaps.append(Gap(first=before + 1, last=each - 1, since=now))
            before = each
        return LogCursor(after=before, gaps=tuple(gaps[-_MOST_GAPS:]))

    def ranges(self) -> list[tuple[int, int]]:
        """Returns the gaps as pairs of ids, both included."""
        return [(gap.first, gap.last) for gap in self.gaps]


def _without(gap: Gap, ids: Sequence[int]) -> list[Gap]:
    parts: list[Gap] = []
    first = gap.first
    for each in ids:
        if gap.first <= each <= gap.last:
            if first < each:
                parts.append(gap.model_copy(update={"first": first, "last": each - 1}))
            first = each + 1
    if first <= gap.last:
        parts.append(gap.model_copy(update={"first": first}))
    return parts


INTERVAL_S = 1
_BATCH = 5_000
_HISTORY = 10_000
"""Entries that are read when there is no cursor: of a long log only what may still matter."""

_DECIDED_WITHIN_S = 10.0

_NOTHING_NEW = "nothing new"


def facts_since(
    instance: dg.DagsterInstance, cursor: LogCursor | None
) -> tuple[list[TaskEvent], dict[str, list[str]], LogCursor]:
    """Reads one batch of the event log.

    Args:
        instance: Whose log.
        cursor: How far it was read; None for the first time.

    Returns:
        The events, the tasks that failed for good by run, and how far the log is read now.

    Raises:
        TerminalError: If the log is not in one database.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage) or storage.is_run_sharded:
        raise TerminalError("events are published from a PostgreSQL event log only")
    if cursor is None:
        cursor = LogCursor(after=max(0, newest_id(storage) - _HISTORY))
    found = [*rows_in(storage, cursor.ranges()), *rows_after(storage, cursor.after, _BATCH)]
    views = run_views(instance, storage, found)
    rows = list(takewhile(lambda row: not _is_undecided(row, views), found))
    reached = cursor.advanced((each.id for each in rows), time())
    return task_events(rows, views), dead_letters(rows, views), reached


def _is_undecided(row: EventRow, views: Mapping[str, RunView]) -> bool:
    """Returns whether Dagster is about to say if it retries this failed run; it takes no second."""
    if row.type is not DagsterEventType.RUN_FAILURE or row.run_id not in views:
        return False
    is_fresh = time() - row.ts.timestamp() < _DECIDED_WITHIN_S
    return views[row.run_id].retried is None and is_fresh


def publish_since(
    instance: dg.DagsterInstance, client: StreamClient, cursor: LogCursor | None
) -> tuple[list[TaskEvent], LogCursor]:
    """Publishes one batch, and marks runs that failed for good.

    What was published before is recognised by Redis, so that a batch may be repeated.

    Raises:
        redis.RedisError: If Redis cannot be reached; the same cursor reads the batch again.
    """
    events, letters, reached = facts_since(instance, cursor)
    send(client, events)
    for run_id, tasks in letters.items():
        instance.add_run_tags(run_id, {DEAD_LETTER_TAG: ",".join(tasks)})
    return events, reached


def publish_events_sensor() -> dg.SensorDefinition:
    """Builds the sensor; it runs by itself where there is a Redis."""
    url = settings().redis_url

    @dg.sensor(
        name="publish_events",
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING if url else dg.DefaultSensorStatus.STOPPED,
        description="Publishes what happens to tasks on the Redis channel tasks.events.",
    )
    def publish_events(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        url = settings().redis_url
        if url is None:
            return dg.SkipReason("MLOC_REDIS_URL is not set")
        cursor = LogCursor.model_validate_json(context.cursor) if context.cursor else None
        instance = instance_of(context)
        events: list[TaskEvent] = []
        try:
            with open_redis(url) as client:
                for _ in polls(instance):
                    found, reached = publish_since(instance, client, cursor)
                    events += found
                    if reached != cursor:
                        context.update_cursor(reached.model_dump_json())
                    cursor = reached
        except STREAM_AWAY as error:
            return dg.SkipReason(f"Redis cannot be reached, events follow later: {error}")
        return dg.SkipReason(kinds(events) or _NOTHING_NEW)

    return publish_events
