"""What was last told of a task, found from the end of the event log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from pydantic import ValidationError

from mloc_dagster.events.log import Channel, decode
from mloc_dagster.events.model import TaskEvent, TaskEventType
from mloc_dagster.events.stream import StreamClient

LOOKED_AT = 20_000
"""Events that are looked at most; those of a few minutes on a busy fleet."""

_PAGE = 500
_RESTARTS = frozenset(
    {TaskEventType.SHARD_STARTED, TaskEventType.SHARD_FAILED, TaskEventType.TASK_REQUEUED}
)


@dataclass(frozen=True, slots=True)
class LastProgress:
    """How far a training said it was.

    Attributes:
        event: Its newest TASK_PROGRESS.
        superseded: Whether its attempt has ended, or another one has begun, since then.
    """

    event: TaskEvent
    superseded: bool


def last_training_progress(
    client: StreamClient, task_id: str, since: datetime, *, looked_at: int = LOOKED_AT
) -> LastProgress | None:
    """Returns how far a training said it was; None where the log has no word of it.

    Args:
        client: Redis.
        task_id: The task.
        since: Before that it said nothing.
        looked_at: Events to look at, at most.

    Raises:
        redis.RedisError: If Redis cannot be reached.
    """
    restarted: datetime | None = None
    for event in _events_of(client, task_id, since, looked_at):
        if event.type in _RESTARTS:
            restarted = max(restarted or event.ts, event.ts)
        elif event.payload.training is not None:
            superseded = restarted is not None and restarted > event.ts
            return LastProgress(event, superseded)
    return None


def last_counts(
    client: StreamClient, task_id: str, since: datetime, *, looked_at: int = LOOKED_AT
) -> Mapping[str, int]:
    """Returns what the shards of a task have counted, by the newest word of each.

    Args:
        client: Redis.
        task_id: The task.
        since: Before that it said nothing.
        looked_at: Events to look at, at most.

    Raises:
        redis.RedisError: If Redis cannot be reached.
    """
    total: Counter[str] = Counter()
    heard: set[int] = set()
    for event in _events_of(client, task_id, since, looked_at):
        if event.shard is None or event.shard.index in heard or not event.payload.counts:
            continue
        heard.add(event.shard.index)
        total.update(event.payload.counts)
        if len(heard) == event.shard.total:
            break
    return total


def _events_of(
    client: StreamClient, task_id: str, since: datetime, looked_at: int
) -> Iterator[TaskEvent]:
    """Yields the events of a task, the newest first."""
    oldest = str(max(0, int(since.timestamp() * 1000)))
    position = "+"
    for _ in range(0, looked_at, _PAGE):
        page = _page_before(client, position, oldest)
        for _, data in page:
            event = _event_of(task_id, data)
            if event is not None:
                yield event
        if len(page) < _PAGE:
            return
        position = f"({page[-1][0]}"


def _page_before(client: StreamClient, position: str, oldest: str) -> list[tuple[str, bytes]]:
    # redis-py's types do not know the shape of the reply.
    reply = cast(
        "list[tuple[bytes, Mapping[bytes, bytes]]]",
        client.xrevrange(Channel.TASKS.log, position, oldest, count=_PAGE),  # pyright: ignore[reportUnknownMemberType]
    )
    return [(place.decode(), fields.get(b"event", b"")) for place, fields in reply]


def _event_of(task_id: str, data: bytes) -> TaskEvent | None:
    """Returns the event if it is one of the task; what is another's is not even read."""
    if task_id.encode() not in data:
        return None
    try:
        event = decode(Channel.TASKS, data)
    except ValidationError:
        return None  # of another version
    return event if isinstance(event, TaskEvent) and event.task_id == task_id else None
